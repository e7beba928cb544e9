/* Which of the compiled instruction sets the CPU at hand takes, and the sizes that all of them share. */
#include "gpu/cpu/internal.h"

const struct kernels *kernels_best(void)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("x86-64-v4")) {
        return &kernels_avx512;
    }
    if (__builtin_cpu_supports("x86-64-v3")) {
        return &kernels_avx2;
    }
#endif
    return &kernels_base;
}

/* See struct head in kernels.inc. */
size_t attention_scratch(const struct kernels *k, size_t rows, size_t head_dim)
{
    const size_t whole = (head_dim + k->half - 1) / k->half * k->half;
    return (whole + 2 + k->panel + rows) * k->panel + rows * (whole + head_dim);
}
