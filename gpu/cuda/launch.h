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
#define LAUNCH(kernel, blocks, threads, shared, on, ...)                                                               \
    emulated_launch(#kernel, (blocks), (threads), (shared), (on), kernel, __VA_ARGS__)
#define SHARED_MEMORY(name) unsigned char *const name = emulated_shared_memory()
#endif

#endif
