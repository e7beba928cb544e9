// Mistakes, each in a process of its own that must end with a line saying which. `hidden` keeps a pointer from the
// check of a kernel's arguments, so that the access itself is judged.
#include <thread>

#include "suite.h"

#if defined(__SANITIZE_ADDRESS__)
#define ASAN_OR(line) "see AddressSanitizer's report"
#else
#define ASAN_OR(line) line
#endif

struct hidden {
    int *p;
};

#define RUN(kernel, block, shared, ...)                                                                                \
    do {                                                                                                               \
        if (LAUNCH(kernel, 1, block, shared, nullptr, __VA_ARGS__) != cudaSuccess ||                                   \
            cudaDeviceSynchronize() != cudaSuccess) {                                                                  \
            fprintf(stderr, "the launch failed\n");                                                                    \
        }                                                                                                              \
    } while (0)

static int *memory(size_t count)
{
    int *p = nullptr;
    cudaMalloc(&p, count * sizeof *p);
    return p;
}

// ---- turns ----

__global__ static void divergent(int *out)
{
    if (threadIdx.x < 7) {
        __syncthreads();
    }
    if (threadIdx.x < 50) {
        __syncthreads();
    }
    *out = 1;
}

static void divergent_barrier(void)
{
    RUN(divergent, 64, 0, memory(1));
}

__global__ static void halves(int *out)
{
    if (threadIdx.x < 16) {
        __syncthreads();
    } else {
        __syncwarp();
    }
    *out = 1;
}

static void barrier_and_warp(void)
{
    RUN(halves, 32, 0, memory(1));
}

__global__ static void two_collectives(int *out)
{
    *out = threadIdx.x % 2 ? __any_sync(0xFFFFFFFFU, 1) : __all_sync(0xFFFFFFFFU, 1);
}

static void mismatched_collective(void)
{
    RUN(two_collectives, 32, 0, memory(1));
}

__global__ static void two_masks(int *out)
{
    *out = __shfl_sync(threadIdx.x < 8 ? 0xFFFFU : 0xFFFFFFFFU, 1, 0);
}

static void mismatched_masks(void)
{
    RUN(two_masks, 32, 0, memory(1));
}

__global__ static void not_in_mask(int *out)
{
    *out = __shfl_sync(0xFFFFU, 1, 0);
}

static void outside_of_mask(void)
{
    RUN(not_in_mask, 32, 0, memory(1));
}

// ---- shared memory ----

template <int kind> __global__ static void races(int *out)
{
    SHARED(raw);
    int *slots = (int *)raw;
    const int me = (int)threadIdx.x, n = (int)blockDim.x;
    slots[me] = 0;
    __syncthreads();
    slots[me] = me;
    if (kind == 1) {
        __syncwarp();
    }
    if (kind == 2) {
        __syncthreads();
    }
    out[me] = slots[(me + 1) % n]; /* kind 0 and, over several warps, 1: the neighbour may not have written */
    if (kind == 2) {
        slots[me] = 0; /* the neighbour may not have read */
    }
}

static void race_in_warp(void)
{
    RUN(races<0>, 32, 128, memory(32));
}

static void race_between_warps(void)
{
    RUN(races<1>, 64, 256, memory(64));
}

static void race_after_read(void)
{
    RUN(races<2>, 64, 256, memory(64));
}

__global__ static void words_and_halves(int *out)
{
    SHARED(raw);
    ((int *)raw)[threadIdx.x] = 0;
    __syncthreads();
    if (threadIdx.x % 2) {
        ((short *)raw)[threadIdx.x] = 1;
    } else {
        *out = ((int *)raw)[threadIdx.x / 2];
    }
}

static void race_on_half(void)
{
    RUN(words_and_halves, 32, 128, memory(1));
}

__global__ static void half_atomic(int *out)
{
    SHARED(raw);
    unsigned *sum = (unsigned *)raw;
    if (threadIdx.x == 0) {
        *sum = 0;
    }
    __syncthreads();
    if (threadIdx.x < 63) {
        atomicAdd(sum, 1U);
    } else {
        *sum += 1;
    }
    *out = 0;
}

static void race_with_atomic(void)
{
    RUN(half_atomic, 64, 4, memory(1));
}

__global__ static void unwritten_slots(int *out)
{
    SHARED(raw);
    if (threadIdx.x < 31) {
        raw[threadIdx.x] = 1;
    }
    __syncthreads();
    out[threadIdx.x] = raw[threadIdx.x];
}

static void unwritten_shared(void)
{
    RUN(unwritten_slots, 32, 32, memory(32));
}

__global__ static void far_slot(int *out, int at)
{
    SHARED(raw);
    ((volatile unsigned char *)raw)[at] = 1;
    *out = 1;
}

static void shared_bounds(void)
{
    RUN(far_slot, 1, 128, memory(1), 200);
}

static void shared_bounds_near(void)
{
    RUN(far_slot, 1, 100, memory(1), 100);
}

// ---- device memory ----

template <int kind> __global__ static void neighbours(int *out, int *slots)
{
    const int n = (int)blockDim.x, me = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    slots[me] = me;
    __syncthreads();
    out[me] = slots[kind == 1 ? me : (me + n) % (2 * n)];
    if (kind == 1) {
        slots[me] = 1;
        out[me] = slots[(int)blockIdx.x * n + ((int)threadIdx.x + 32) % n];
    }
}

static void race_of_blocks(void)
{
    int *slots = memory(128);
    cudaMemset(slots, 0, 128 * sizeof *slots);
    LAUNCH(neighbours<0>, 2, 64, 0, nullptr, memory(128), slots);
    cudaDeviceSynchronize();
}

static void race_of_warps(void)
{
    LAUNCH(neighbours<1>, 2, 64, 0, nullptr, memory(128), memory(128));
    cudaDeviceSynchronize();
}

__global__ static void reads(int *out, struct hidden from, int at)
{
    *out = *((volatile int *)from.p + at);
}

__global__ static void writes(struct hidden to, int at)
{
    *((volatile int *)to.p + at) = 1;
}

static void unwritten_read(void)
{
    int *p = memory(8);
    cudaMemset(p, 0, 7 * sizeof *p);
    RUN(reads, 1, 0, memory(1), hidden{p}, 6);
    RUN(reads, 1, 0, memory(1), hidden{p}, 7);
}

__global__ static void copies(int *out, struct hidden from)
{
    int local[10];
    memcpy(local, from.p, sizeof local);
    *out = local[threadIdx.x];
}

static void unwritten_memcpy(void)
{
    int *p = memory(10);
    cudaMemset(p, 0, 9 * sizeof *p);
    RUN(copies, 1, 0, memory(1), hidden{p});
}

static void host_memcpy(void)
{
    int host, *p = memory(1);
    cudaMemset(p, 0, sizeof *p);
    cudaDeviceSynchronize();
    memcpy(&host, p, sizeof host);
    fprintf(stderr, "%d\n", host);
}

static void unwritten_copy(void)
{
    int host[2];
    cudaMemcpy(host, memory(2), sizeof host, cudaMemcpyDeviceToHost);
}

static void far_bounds(void)
{
    RUN(writes, 1, 0, hidden{memory(8)}, 64 + 7);
}

static void near_bounds(void)
{
    int *p = memory(8);
    RUN(writes, 1, 0, hidden{p}, 8);
    cudaFree(p);
}

static void before_bounds(void)
{
    int *p = memory(8);
    RUN(writes, 1, 0, hidden{p}, -1);
    cudaFree(p);
}

static void freed_memory(void)
{
    int *p = memory(8), *out = memory(1);
    cudaMemset(p, 0, 8 * sizeof *p);
    cudaFree(p);
    RUN(reads, 1, 0, out, hidden{p}, 0);
}

static void freed_argument(void)
{
    int *p = memory(8);
    cudaFree(p);
    RUN(reads, 1, 0, p, hidden{p}, 0);
}

static void freed_twice(void)
{
    int *p = memory(8);
    cudaFree(p);
    cudaFree(p);
}

static void other_device(void)
{
    int *p = memory(8);
    cudaMemset(p, 0, 8 * sizeof *p);
    cudaDeviceSynchronize();
    cudaSetDevice(1);
    RUN(reads, 1, 0, memory(1), hidden{p}, 0);
}

static void other_device_argument(void)
{
    int *p = memory(8);
    cudaSetDevice(1);
    RUN(reads, 1, 0, p, hidden{p}, 0);
}

static void other_device_copy(void)
{
    int host = 1, *p = memory(1);
    cudaSetDevice(1);
    cudaMemcpy(p, &host, sizeof host, cudaMemcpyHostToDevice);
}

static void host_argument(void)
{
    static int host = 3;
    RUN(reads, 1, 0, &host, hidden{&host}, 0);
}

static void host_memory(void)
{
    static int host = 3;
    RUN(reads, 1, 0, memory(1), hidden{&host}, 0);
}

static void host_in_copy(void)
{
    int a = 1, b = 2;
    cudaMemcpy(&a, &b, sizeof a, cudaMemcpyHostToDevice);
}

static void device_in_copy(void)
{
    int *from = memory(1);
    cudaMemset(from, 0, sizeof *from);
    cudaMemcpy(memory(1), from, sizeof *from, cudaMemcpyDeviceToHost);
}

static void copy_bounds(void)
{
    int host[9] = {};
    cudaMemcpy(memory(8), host, sizeof host, cudaMemcpyHostToDevice);
}

static void host_code(void)
{
    int *p = memory(1);
    cudaMemset(p, 0, sizeof *p);
    cudaDeviceSynchronize();
    *(volatile int *)p = 1;
}

static void misaligned(void)
{
    int *p = memory(8);
    RUN(writes, 1, 0, hidden{(int *)((char *)p + 2)}, 0);
}

// ---- libraries ----

static void mismatched_nccl(void)
{
    ncclComm_t comms[2];
    float *p[2];
    ncclCommInitAll(comms, 2, nullptr);
    ncclGroupStart();
    for (int i = 0; i < 2; i++) {
        cudaSetDevice(i);
        cudaMalloc(&p[i], 64);
        cudaMemset(p[i], 0, 64);
        ncclAllReduce(p[i], p[i], i ? 16 : 8, ncclFloat32, ncclSum, comms[i], nullptr);
    }
    ncclGroupEnd();
    cudaDeviceSynchronize();
}

static void mismatched_root(void)
{
    ncclComm_t comms[2];
    ncclUniqueId id;
    std::vector<std::thread> ranks;
    ncclGetUniqueId(&id);
    for (int i = 0; i < 2; i++) {
        ranks.emplace_back([&, i] {
            float *p;
            cudaSetDevice(i);
            cudaMalloc(&p, 64);
            cudaMemset(p, 0, 64);
            ncclCommInitRank(&comms[i], 2, id, i);
            ncclBroadcast(p, p, 16, ncclFloat32, i, comms[i], nullptr);
            cudaDeviceSynchronize();
        });
    }
    for (std::thread &rank : ranks) {
        rank.join();
    }
}

static void destroyed_stream(void)
{
    cudaStream_t stream;
    cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
    cudaStreamDestroy(stream);
    cudaStreamSynchronize(stream);
}

const struct named_slip slips[] = {
    {"divergent_barrier", divergent_barrier, "divergent __syncthreads", false},
    {"barrier_and_warp", barrier_and_warp, "divergent __syncthreads", false},
    {"mismatched_collective", mismatched_collective, "mismatched warp collectives", false},
    {"mismatched_masks", mismatched_masks, "mismatched warp collectives", false},
    {"outside_of_mask", outside_of_mask, "is not in the mask", false},
    {"race_in_warp", race_in_warp, "no __syncwarp is between", true},
    {"race_between_warps", race_between_warps, "no __syncthreads is between", true},
    {"race_after_read", race_after_read, "race in shared memory", true},
    {"race_on_half", race_on_half, "no __syncwarp is between", true},
    {"race_with_atomic", race_with_atomic, "race in shared memory", true},
    {"unwritten_shared", unwritten_shared, "reads byte 31 of shared memory, which this block never wrote", true},
    {"shared_bounds", shared_bounds, "out of bounds of the block's", false},
    {"shared_bounds_near", shared_bounds_near, "out of bounds of the block's", true},
    {"race_of_blocks", race_of_blocks, "blocks have no order", true},
    {"race_of_warps", race_of_warps, "race in device memory", true},
    {"unwritten_read", unwritten_read, "which nothing ever wrote", true},
    {"unwritten_memcpy", unwritten_memcpy, "which nothing ever wrote", true},
    {"host_memcpy", host_memcpy, "in host code", true},
    {"unwritten_copy", unwritten_copy, "the source of a copy: byte 0 of 8 was never written", true},
    {"far_bounds", far_bounds, "out of bounds", false},
    {"near_bounds", near_bounds, ASAN_OR("out of bounds"), false},
    {"before_bounds", before_bounds, ASAN_OR("out of bounds"), false},
    {"freed_memory", freed_memory, ASAN_OR("it was freed"), false},
    {"freed_argument", freed_argument, "an argument", false},
    {"freed_twice", freed_twice, "was freed before", false},
    {"other_device", other_device, "memory of device 0 on device 1", true},
    {"other_device_argument", other_device_argument, "memory of device 0 where device 1's is needed", false},
    {"other_device_copy", other_device_copy, "memory of device 0 where device 1's is needed", false},
    {"host_argument", host_argument, "a host pointer", false},
    {"host_memory", host_memory, "reads host memory", true},
    {"host_in_copy", host_in_copy, "a host pointer", false},
    {"device_in_copy", device_in_copy, "where host memory is needed", false},
    {"copy_bounds", copy_bounds, "out of bounds", false},
    {"host_code", host_code, "in host code", true},
    {"misaligned", misaligned, "not a multiple", true},
    {"mismatched_nccl", mismatched_nccl, "mismatched NCCL calls", false},
    {"mismatched_root", mismatched_root, "mismatched NCCL calls", false},
    {"destroyed_stream", destroyed_stream, "a stream that was destroyed", false},
    {nullptr, nullptr, nullptr, false}};
