/* The loops of kernels.inc for x86-64-v3: 16 registers of 8 floats. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "gpu/cpu/internal.h"

#if defined(__x86_64__)
#pragma GCC optimize("O3", "fp-contract=fast")
#pragma GCC target("arch=x86-64-v3")
#define LANES 8
#define ROWS 6
#define KERNELS kernels_avx2
#define KERNELS_NAME "avx2"
#include "gpu/cpu/kernels.inc"
#endif
