// Streams, events, copies and memory, at once and late.
#include <thread>

#include "suite.h"

static bool is_late(void)
{
    return getenv("EMULATED_LATE") != nullptr;
}

__global__ static void add(int *at, int value)
{
    *at += value;
}

__global__ static void twice(int *to, const int *from)
{
    *to = 2 * *from;
}

static cudaStream_t stream_new(void)
{
    cudaStream_t stream;
    OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    return stream;
}

static cudaEvent_t event_new(void)
{
    cudaEvent_t event;
    OK(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
    return event;
}

/* Host memory is read, and written, when the copy's turn comes. */
static void copies(void **)
{
    cudaStream_t stream = stream_new();
    int *device = device_new<int>(1), *pinned, back = 0;
    OK(cudaHostAlloc(&pinned, sizeof *pinned, cudaHostAllocDefault));
    *pinned = 1;
    OK(cudaMemcpyAsync(device, pinned, sizeof *pinned, cudaMemcpyHostToDevice, stream));
    *pinned = 2;
    OK(LAUNCH(add, 1, 1, 0, stream, device, 10));
    OK(cudaMemcpyAsync(&back, device, sizeof back, cudaMemcpyDeviceToHost, stream));
    assert_int_equal(back, is_late() ? 0 : 11);
    OK(cudaStreamSynchronize(stream));
    assert_int_equal(back, is_late() ? 12 : 11);
    OK(cudaStreamDestroy(stream));
    OK(cudaFreeHost(pinned));
    OK(cudaFree(device));
}

/* Waiting for one stream runs what it needs of another, and no more. */
static void events(void **)
{
    cudaStream_t a = stream_new(), b = stream_new();
    cudaEvent_t event = event_new();
    int *device = device_of(std::vector<int>{5, 0}), now[2];
    OK(LAUNCH(add, 1, 1, 0, a, device, 1));
    OK(cudaEventRecord(event, a));
    OK(LAUNCH(add, 1, 1, 0, a, device, 100)); /* after the event */
    OK(cudaStreamWaitEvent(b, event));
    OK(LAUNCH(twice, 1, 1, 0, b, device + 1, device));
    OK(cudaMemcpyAsync(now, device, sizeof now, cudaMemcpyDeviceToHost, b));
    OK(cudaStreamSynchronize(b));
    assert_int_equal(now[0], is_late() ? 6 : 106);
    assert_int_equal(now[1], is_late() ? 12 : 212);
    assert_int_equal(cudaStreamQuery(a), is_late() ? cudaErrorNotReady : cudaSuccess);
    OK(cudaStreamSynchronize(a));
    OK(cudaStreamQuery(a));
    assert_int_equal(host_of(device, 1)[0], 106);
    OK(cudaEventDestroy(event));
    OK(cudaStreamDestroy(a));
    OK(cudaStreamDestroy(b));
    OK(cudaFree(device));
}

static void event_questions(void **)
{
    cudaStream_t stream = stream_new();
    cudaEvent_t event = event_new(), start, end;
    int *device = device_of(std::vector<int>{0});
    float ms;
    OK(cudaEventQuery(event)); /* never recorded: done */
    OK(LAUNCH(add, 1, 1, 0, stream, device, 1));
    OK(cudaEventRecord(event, stream));
    assert_int_equal(cudaEventQuery(event), is_late() ? cudaErrorNotReady : cudaSuccess);
    while (cudaEventQuery(event) == cudaErrorNotReady) { /* gets there */
    }
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    OK(cudaEventCreate(&start));
    OK(cudaEventCreate(&end));
    assert_int_equal(cudaEventElapsedTime(&ms, start, end), cudaErrorInvalidResourceHandle);
    OK(cudaEventRecord(start, stream));
    OK(cudaEventRecord(end, stream));
    OK(cudaEventSynchronize(end));
    OK(cudaEventElapsedTime(&ms, start, end));
    assert_true(ms >= 0);
    assert_int_equal(cudaEventElapsedTime(&ms, event, end), cudaErrorInvalidResourceHandle);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidResourceHandle);
    for (cudaEvent_t e : {event, start, end}) {
        OK(cudaEventDestroy(e));
    }
    OK(cudaStreamDestroy(stream));
    OK(cudaFree(device));
}

/* The default stream is in order with blocking ones only. */
static void default_stream(void **)
{
    cudaStream_t blocking, free_one = stream_new();
    int *device = device_of(std::vector<int>{0, 0}), now[2];
    OK(cudaStreamCreateWithFlags(&blocking, cudaStreamDefault));
    OK(LAUNCH(add, 1, 1, 0, blocking, device, 1));
    OK(LAUNCH(add, 1, 1, 0, free_one, device + 1, 1));
    OK(cudaMemcpy(now, device, sizeof now, cudaMemcpyDeviceToHost));
    assert_int_equal(now[0], 1);
    assert_int_equal(now[1], is_late() ? 0 : 1);
    OK(cudaMemsetAsync(device, 0, sizeof *device));
    OK(LAUNCH(add, 1, 1, 0, blocking, device, 7));
    OK(cudaStreamSynchronize(blocking));
    OK(cudaMemcpyAsync(now, device, sizeof *now, cudaMemcpyDefault, free_one));
    OK(cudaDeviceSynchronize());
    assert_int_equal(now[0], 7);
    OK(cudaStreamDestroy(blocking));
    OK(cudaStreamDestroy(free_one));
    OK(cudaFree(device));
}

static void memory_runs_out(void **)
{
    size_t left, total, now;
    void *most, *more = &left;
    OK(cudaMemGetInfo(&left, &total));
    assert_true(total == 64 << 20 && left <= total);
    OK(cudaMalloc(&most, left - 4096));
    assert_int_equal((uintptr_t)most % 256, 0);
    assert_int_equal(cudaMalloc(&more, 8192), cudaErrorMemoryAllocation);
    assert_null(more);
    assert_int_equal(cudaGetLastError(), cudaErrorMemoryAllocation);
    OK(cudaGetLastError());
    OK(cudaMemGetInfo(&now, &total));
    assert_int_equal(now, 4096);
    OK(cudaFree(most));
    OK(cudaMemGetInfo(&now, &total));
    assert_int_equal(now, left);
    OK(cudaMalloc(&more, 8192));
    OK(cudaFree(more));
    OK(cudaFree(nullptr));
}

static void peers(void **)
{
    int *here = device_of(std::vector<int>{41}), *there, back = 0;
    OK(cudaSetDevice(1));
    there = device_of(std::vector<int>{0});
    OK(cudaMemcpyPeerAsync(there, 1, here, 0, sizeof *here, nullptr));
    OK(LAUNCH(add, 1, 1, 0, nullptr, there, 1));
    OK(cudaMemcpy(&back, there, sizeof back, cudaMemcpyDeviceToHost));
    assert_int_equal(back, 42);
    cudaStream_t of_one = stream_new();
    OK(cudaFree(there));
    OK(cudaSetDevice(0));
    assert_int_equal(LAUNCH(add, 1, 1, 0, of_one, here, 1), cudaErrorInvalidResourceHandle);
    assert_int_equal(cudaSetDevice(2), cudaErrorInvalidDevice);
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidDevice);
    OK(cudaStreamDestroy(of_one));
    OK(cudaFree(here));
}

static void properties(void **)
{
    struct cudaDeviceProp p;
    int value;
    char id[32];
    OK(cudaGetDeviceProperties(&p, 1));
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, 1));
    assert_int_equal(value, p.multiProcessorCount);
    OK(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, 0));
    assert_int_equal(value, p.major);
    OK(cudaDeviceGetPCIBusId(id, sizeof id, 1));
    assert_string_equal(id, "0000:02:00.0");
    assert_string_equal(cudaGetErrorName(cudaErrorMemoryAllocation), "cudaErrorMemoryAllocation");
    assert_string_equal(cudaGetErrorString(cudaErrorNoDevice), "no CUDA-capable device is detected");
}

__global__ static void much(int *out, int rounds)
{
    SHARED(raw);
    int *sum = (int *)raw;
    if (threadIdx.x == 0) {
        *sum = 0;
    }
    __syncthreads();
    for (int i = 0; i < rounds; i++) {
        atomicAdd(sum, 1);
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        atomicAdd(out, *sum);
    }
}

/* Several host threads, each with a stream of its own and one that they share. */
static void host_threads(void **)
{
    enum { THREADS = 4, ROUNDS = 20 };
    int *device = device_of(std::vector<int>(THREADS + 1));
    cudaStream_t shared = stream_new();
    std::vector<std::thread> threads;
    for (int t = 0; t < THREADS; t++) {
        threads.emplace_back([=] {
            cudaStream_t own;
            cudaStreamCreateWithFlags(&own, cudaStreamNonBlocking);
            for (int i = 0; i < ROUNDS; i++) {
                LAUNCH(much, 3, 64, sizeof(int), own, device + t, 4);
                LAUNCH(much, 1, 32, sizeof(int), shared, device + THREADS, 1);
                if (i % 5 == 0) {
                    cudaStreamSynchronize(i % 2 ? shared : own);
                }
            }
            cudaDeviceSynchronize();
            cudaStreamDestroy(own);
        });
    }
    for (std::thread &t : threads) {
        t.join();
    }
    const std::vector<int> sums = host_of(device, THREADS + 1);
    for (int t = 0; t < THREADS; t++) {
        assert_int_equal(sums[t], 3 * 64 * 4 * ROUNDS);
    }
    assert_int_equal(sums[THREADS], 32 * THREADS * ROUNDS);
    OK(cudaStreamDestroy(shared));
    OK(cudaFree(device));
}

const struct named_test stream_tests[] = {{"copies", copies},
                                          {"events", events},
                                          {"event_questions", event_questions},
                                          {"default_stream", default_stream},
                                          {"memory_runs_out", memory_runs_out},
                                          {"peers", peers},
                                          {"properties", properties},
                                          {"host_threads", host_threads},
                                          {nullptr, nullptr}};
