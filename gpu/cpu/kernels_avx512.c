/* The loops of kernels.inc for x86-64-v4: 32 registers of 16 floats. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "gpu/cpu/internal.h"

#if defined(__x86_64__)
#pragma GCC optimize("O3", "fp-contract=fast")
#pragma GCC target("arch=x86-64-v4")
#define LANES 16
#define ROWS 12
#define KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#include "gpu/cpu/kernels.inc"
#endif
