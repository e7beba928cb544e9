/* What the kernels share: numbers of either dtype as f32, sums over a warp, and the tensor cores' one instruction. */
#ifndef ENGRAM_GPU_CUDA_WARP_H
#define ENGRAM_GPU_CUDA_WARP_H

#include <stdint.h>

#include "gpu/cuda/launch.h"

typedef __nv_bfloat16 bf16;

enum { WARP = 32 };
#define ALL_LANES 0xFFFFFFFFU

static __device__ __forceinline__ float float_of(float x)
{
    return x;
}

static __device__ __forceinline__ float float_of(bf16 x)
{
    return __bfloat162float(x);
}

static __device__ __forceinline__ void store(float *to, float x)
{
    *to = x;
}

static __device__ __forceinline__ void store(bf16 *to, float x)
{
    *to = __float2bfloat16_rn(x);
}

/* Two bf16 in one register, the first in its low half. */
static __device__ __forceinline__ uint32_t pair_of(bf16 low, bf16 high)
{
    return (uint32_t)__bfloat16_as_ushort(low) | (uint32_t)__bfloat16_as_ushort(high) << 16;
}

static __device__ __forceinline__ uint32_t pair_of(float low, float high)
{
    return pair_of(__float2bfloat16_rn(low), __float2bfloat16_rn(high));
}

static __device__ __forceinline__ float warp_sum(float x)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, step);
    }
    return x;
}

static __device__ __forceinline__ float warp_max(float x)
{
    for (int step = WARP / 2; step > 0; step /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    }
    return x;
}

/* d [16, 8] += a [16, 16] b [16, 8], a warp together: a and b bf16, d f32. Of lane 4 g + t: d holds (g, 2t), (g, 2t +
 * 1), (g + 8, 2t), (g + 8, 2t + 1); a (g, 2t ..), (g + 8, 2t ..), (g, 2t + 8 ..), (g + 8, 2t + 8 ..), two columns each;
 * b (2t .., g), (2t + 8 .., g), two rows each (PTX ISA, mma.m16n8k16). */
static __device__ __forceinline__ void mma(float d[4], const uint32_t a[4], const uint32_t b[2])
{
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
    emulated_mma_m16n8k16_bf16(d, a, b);
#endif
}

/* Four matrices [8, 8] of bf16 in shared memory, a warp together: lane 8 i + r says where row r of matrix i is, 16-byte
 * aligned. Of lane 4 g + t, b[i] holds (2t, g) and (2t + 1, g) of matrix i: as mma takes them (PTX ISA, ldmatrix). */
static __device__ __forceinline__ void matrices_transposed(uint32_t b[4], const bf16 *row)
{
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"((uint32_t)__cvta_generic_to_shared(row))
                 : "memory");
#else
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    for (int i = 0; i < 4; i++) {
        const bf16 *first = (const bf16 *)__shfl_sync(ALL_LANES, (unsigned long long)row, 8 * i + 2 * t);
        const bf16 *second = (const bf16 *)__shfl_sync(ALL_LANES, (unsigned long long)row, 8 * i + 2 * t + 1);
        b[i] = pair_of(first[g], second[g]);
    }
#endif
}

#endif
