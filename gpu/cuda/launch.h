/* What nvcc and g++ both take: kernels are launched, and shared memory is had, through these two macros. Under nvcc
 * they are CUDA's own; tests/cuda/ compiles the same files with g++ and runs them on the CPU. */
#ifndef ENGRAM_GPU_CUDA_LAUNCH_H
#define ENGRAM_GPU_CUDA_LAUNCH_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* LAUNCH(kernel, blocks, threads, bytes of shared memory, CUDA stream, arguments...) */
#ifdef __CUDACC__
#define LAUNCH(kernel, blocks, threads, shared, on, ...) kernel<<<(blocks), (threads), (shared), (on)>>>(__VA_ARGS__)
#define SHARED_MEMORY(name) extern __shared__ __align__(16) unsigned char name[]
#else
/* As on a device, the arguments are taken when the kernel is launched, not when it runs. */
template <typename... P, typename... A>
static inline void launch_emulated(const char *name, dim3 blocks, dim3 threads, size_t shared, cudaStream_t on,
                                   void (*kernel)(P...), A... arguments)
{
    emulated_launch(name, blocks, threads, shared, on, [=] { kernel(arguments...); });
}
#define LAUNCH(kernel, blocks, threads, shared, on, ...)                                                               \
    launch_emulated(#kernel, (blocks), (threads), (shared), (on), kernel, __VA_ARGS__)
#define SHARED_MEMORY(name) unsigned char *const name = emulated_shared_memory()
#endif

#endif
