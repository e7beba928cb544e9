/* What the emulation's tests share. Each file has a list of tests; slips run in a child process that must abort. */
#ifndef ENGRAM_TESTS_CUDA_SUITE_H
#define ENGRAM_TESTS_CUDA_SUITE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

extern "C" {
#include <cmocka.h>
}

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

#include "cublasLt.h"
#include "cuda_bf16.h"
#include "cuda_runtime.h"
#include "nccl.h"

#define LAUNCH(kernel, grid, block, shared, stream, ...)                                                               \
    emulated_launch(#kernel, grid, block, shared, stream, kernel, ##__VA_ARGS__)
#define SHARED(name) unsigned char *name = emulated_shared_memory()
#define OK(call) assert_int_equal(call, 0)

#if defined(EMULATED_CHECKED)
static constexpr bool checked = true;
#else
static constexpr bool checked = false;
#endif

static inline float random_float(void) /* in -1 .. 1 */
{
    static uint64_t seed = 1;
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    return (float)(seed >> 40) / (float)(1 << 23) - 1.0F;
}

template <typename T> static T *device_of(const std::vector<T> &host)
{
    T *device;
    OK(cudaMalloc(&device, host.size() * sizeof(T)));
    OK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
    return device;
}

template <typename T> static T *device_new(size_t count)
{
    T *device;
    OK(cudaMalloc(&device, count * sizeof(T)));
    return device;
}

template <typename T> static std::vector<T> host_of(const T *device, size_t count)
{
    std::vector<T> host(count);
    OK(cudaMemcpy(host.data(), device, count * sizeof(T), cudaMemcpyDeviceToHost));
    return host;
}

struct named_test {
    const char *name;
    void (*run)(void **state);
};

/* A mistake, and what the line that it ends with must have in it; only_checked: no other flavour sees it. */
struct named_slip {
    const char *name;
    void (*run)(void);
    const char *line;
    bool only_checked;
};

extern const struct named_test kernel_tests[], stream_tests[], library_tests[];
extern const struct named_slip slips[];

int rank_process(const char *id);

#endif
