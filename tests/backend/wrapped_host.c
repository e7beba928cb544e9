/* As wrapped.c, with the host memory that is optional: see tests/backend/apart/internal.h. */
#include <stdlib.h>

#define OPENS_APART setenv("APART_HOST", "1", 1)
#include "tests/backend/wrapped.c" // NOLINT: the same function
