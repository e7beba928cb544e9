#include "suite.h"
const struct named_slip slips[] = {{nullptr, nullptr, nullptr, false}};
