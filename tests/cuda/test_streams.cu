// Streams, events, copies and memory, at once and late.
#include "suite.h"

const struct named_test stream_tests[] = {{nullptr, nullptr}};
