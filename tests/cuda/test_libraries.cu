#include "suite.h"
const struct named_test library_tests[] = {{nullptr, nullptr}};
