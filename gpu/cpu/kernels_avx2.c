/* The loops of kernels.inc for x86-64-v3: 16 registers of 8 floats. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "gpu/cpu/internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC optimize("O3", "fp-contract=fast")
#pragma GCC target("arch=x86-64-v3")
#define GREATER(a, b) ((vector)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define LESSER(a, b) ((vector)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define HALVES(w) __builtin_convertvector(w, halves)
#define WORDS(h) ((words)_mm256_cvtepu16_epi32((__m128i)(h)))
#define BITS(is) _mm256_movemask_ps((__m256)(is))
#define LANES 8
#define ROWS 6
#define KERNELS kernels_avx2
#define KERNELS_NAME "avx2"
#include "gpu/cpu/kernels.inc"
#endif
