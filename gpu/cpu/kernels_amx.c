/* The loops of kernels.inc as for x86-64-v4, on CPUs that also have AVX512-BF16 and AMX-BF16. Its bf16 has no denormal
 * numbers: they become 0. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "gpu/cpu/internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#pragma GCC optimize("O3", "fp-contract=fast")
#pragma GCC target("arch=x86-64-v4,avx512bf16")
#define GREATER(a, b) ((vector)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define LESSER(a, b) ((vector)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define WORDS(h) ((words)_mm512_cvtepu16_epi32((__m256i)(h)))
#define NARROW(v) ((halves)_mm512_cvtneps_pbh((__m512)(v)))
#define ATTENTION_BF16 "gpu/cpu/attention_amx.inc"
#define SCORES_BF16 "gpu/cpu/scores_amx.inc"
#define BITS(is) _mm512_movepi32_mask((__m512i)(is))
#define LANES 16
#define ROWS 12
#define KERNELS kernels_amx
#define KERNELS_NAME "amx"
#include "gpu/cpu/kernels.inc"
#endif
