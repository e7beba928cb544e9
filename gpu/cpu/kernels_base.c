/* The loops of kernels.inc for any CPU: vectors of 4 floats, as SSE2 and NEON have them. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "gpu/cpu/internal.h"

#pragma GCC optimize("O3", "fp-contract=fast")
#define LANES 4
#define ROWS 6
#define KERNELS kernels_base
#define KERNELS_NAME "base"
#include "gpu/cpu/kernels.inc"
