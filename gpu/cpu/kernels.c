/* Which of the compiled instruction sets the CPU at hand takes, and the sizes that all of them share. */
#include "gpu/cpu/internal.h"

const struct kernels *kernels_best(bool amx)
{
#if defined(__x86_64__)
    if (amx && __builtin_cpu_supports("x86-64-v4") && __builtin_cpu_supports("avx512bf16")) {
        return &kernels_amx;
    }
    if (__builtin_cpu_supports("x86-64-v4")) {
        return &kernels_avx512;
    }
    if (__builtin_cpu_supports("x86-64-v3")) {
        return &kernels_avx2;
    }
#else
    (void)amx;
#endif
    return &kernels_base;
}

/* See struct head in kernels.inc. */
size_t attention_scratch(const struct kernels *k, size_t rows, size_t head_dim)
{
    const size_t whole = (head_dim + k->half - 1) / k->half * k->half;
    const size_t most = (rows + k->panel - 1) / k->panel * k->panel;
    return (whole + 2 + (whole < k->panel ? k->panel : whole) + most) * k->panel + most * (whole + head_dim);
}
