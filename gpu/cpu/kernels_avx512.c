/* The loops of kernels.inc for x86-64-v4: 32 registers of 16 floats. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "gpu/cpu/internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC optimize("O3", "fp-contract=fast")
#pragma GCC target("arch=x86-64-v4")
#define GREATER(a, b) ((vector)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define LESSER(a, b) ((vector)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define HALVES(w) ((halves)_mm512_cvtepi32_epi16((__m512i)(w)))
#define WORDS(h) ((words)_mm512_cvtepu16_epi32((__m256i)(h)))
#define BITS(is) _mm512_movepi32_mask((__m512i)(is))
#define LANES 16
#define ROWS 12
#define KERNELS kernels_avx512
#define KERNELS_NAME "avx512"
#include "gpu/cpu/kernels.inc"
#endif
