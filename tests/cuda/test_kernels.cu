// Device code: indices, barriers, warp collectives, atomics, tensor cores and the small functions.
#include <chrono>

#include "suite.h"

template <int width> __global__ static void sums(float *out, const float *in, int count)
{
    SHARED(raw);
    float *partial = (float *)raw;
    float sum = 0;
    for (int i = (int)threadIdx.x; i < count; i += (int)blockDim.x) {
        sum += in[(int)blockIdx.x * count + i];
    }
    for (int lanes = width / 2; lanes; lanes /= 2) {
        sum += __shfl_down_sync(0xFFFFFFFFU, sum, lanes);
    }
    if (threadIdx.x % 32 == 0) {
        partial[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (unsigned w = 1; w < (blockDim.x + 31) / 32; w++) {
            sum += partial[w];
        }
        out[blockIdx.x] = sum;
    }
}

static void reductions(void **)
{
    const int blocks = 3, count = 777;
    std::vector<float> in(blocks * count);
    for (float &x : in) {
        x = roundf(random_float() * 100); /* sums are exact */
    }
    float *from = device_of(in), *to = device_new<float>(blocks);
    OK(LAUNCH(sums<32>, blocks, 256, 8 * sizeof(float), nullptr, to, from, count));
    const std::vector<float> got = host_of(to, blocks);
    for (int b = 0; b < blocks; b++) {
        float sum = 0;
        for (int i = 0; i < count; i++) {
            sum += in[b * count + i];
        }
        assert_true(got[b] == sum);
    }
    OK(cudaFree(from));
    OK(cudaFree(to));
}

/* What is no race: halves of a word by two threads, words after a barrier, a warp's own words after __syncwarp or a
 * shuffle, and atomics. */
__global__ static void orderly(unsigned *out)
{
    SHARED(raw);
    const int me = (int)threadIdx.x, n = (int)blockDim.x, other = me ^ 1;
    unsigned short *halves = (unsigned short *)raw;
    unsigned *words = (unsigned *)raw, *sum = words + n;
    halves[me] = (unsigned short)me;
    halves[n + me] = (unsigned short)(2 * me);
    if (me == 0) {
        *sum = 0;
    }
    __syncthreads();
    unsigned mine = words[me]; /* two threads wrote it */
    atomicAdd(sum, mine & 0xFFFFU);
    __syncthreads();
    words[me] = mine;
    __syncwarp();
    mine += words[other];
    const unsigned theirs = __shfl_xor_sync(0xFFFFFFFFU, mine, 1);
    words[me] = theirs;
    __syncwarp(0x3U << (me % 32 & ~1)); /* pairs of lanes */
    out[me] = words[other] - mine + *sum;
}

static void no_false_alarms(void **)
{
    const int n = 64;
    unsigned *out = device_new<unsigned>(n), expected = 0;
    OK(LAUNCH(orderly, 1, n, (n + 1) * sizeof(unsigned), nullptr, out));
    for (int i = 0; i < n; i++) { /* the low halves: 0, 2, 4 .. of the first half, their doubles in the second */
        expected += (unsigned)(i < n / 2 ? 2 * i : 4 * (i - n / 2));
    }
    for (const unsigned got : host_of(out, n)) {
        assert_int_equal(got, expected);
    }
    OK(cudaFree(out));
}

/* The last block adds up what all have written. */
__global__ static void last_block(unsigned *sum, unsigned *parts, unsigned *come)
{
    SHARED(raw);
    bool *last = (bool *)raw;
    parts[blockIdx.x * blockDim.x + threadIdx.x] = 1;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        *last = atomicAdd(come, 1U) == gridDim.x - 1;
    }
    __syncthreads();
    for (unsigned i = threadIdx.x; *last && i < gridDim.x * blockDim.x; i += blockDim.x) {
        atomicAdd(sum, parts[i]);
    }
}

static void fences(void **)
{
    unsigned *counts = device_of(std::vector<unsigned>{0, 0}), *parts = device_new<unsigned>(5 * 64);
    OK(LAUNCH(last_block, 5, 64, 1, nullptr, counts, parts, counts + 1));
    assert_int_equal(host_of(counts, 1)[0], 5 * 64);
    OK(cudaFree(counts));
    OK(cudaFree(parts));
}

/* Everything is turned round twice, through shared memory, in a block that is no multiple of a warp. */
__global__ static void turned(int *out, int shift)
{
    SHARED(raw);
    int *places = (int *)raw;
    const int n = (int)(blockDim.x * blockDim.y * blockDim.z);
    const int me = (int)(threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z));
    places[(me + shift) % n] = me;
    __syncthreads();
    const int other = places[me];
    __syncthreads();
    places[me] = other;
    __syncthreads();
    out[(blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)) * n + me] = places[(me + shift) % n];
}

static void shared_memory(void **)
{
    const dim3 grid(2, 3, 2), block(5, 7, 3);
    const size_t n = 105;
    int *out = device_new<int>(12 * n);
    OK(LAUNCH(turned, grid, block, n * sizeof(int), nullptr, out, 41));
    const std::vector<int> got = host_of(out, 12 * n);
    for (size_t i = 0; i < got.size(); i++) {
        assert_int_equal(got[i], i % n);
    }
    OK(cudaFree(out));
}

__global__ static void counted(int *ints, unsigned *unsigneds, unsigned long long *longs, float *floats)
{
    const int me = (int)(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(&ints[0], me);
    atomicMax(&ints[1], me);
    atomicMin(&ints[2], -me);
    atomicAdd(&unsigneds[0], 2U);
    atomicMax(&unsigneds[1], 0x80000000U + (unsigned)me);
    atomicOr(&unsigneds[2], 1U << (me % 32));
    atomicAdd(&longs[0], 1ULL << 33);
    atomicAdd(&floats[0], 0.5F);
    if (atomicCAS(&ints[3], 0, me + 1) == 0) { /* one of all */
        atomicExch(&ints[4], me);
    }
}

static void atomics(void **)
{
    int *ints = device_of(std::vector<int>{0, 0, 0, 0, -1});
    unsigned *unsigneds = device_of(std::vector<unsigned>{0, 0, 0});
    unsigned long long *longs = device_of(std::vector<unsigned long long>{0});
    float *floats = device_of(std::vector<float>{0});
    OK(LAUNCH(counted, 4, 96, 0, nullptr, ints, unsigneds, longs, floats));
    const std::vector<int> i = host_of(ints, 5);
    const std::vector<unsigned> u = host_of(unsigneds, 3);
    assert_int_equal(i[0], 384 * 383 / 2);
    assert_int_equal(i[1], 383);
    assert_int_equal(i[2], -383);
    assert_int_equal(i[3], i[4] + 1);
    assert_int_equal(u[0], 768);
    assert_true(u[1] == 0x80000000U + 383 && u[2] == 0xFFFFFFFFU);
    assert_true(host_of(longs, 1)[0] == 384ULL << 33);
    assert_true(host_of(floats, 1)[0] == 192);
    for (void *p : {(void *)ints, (void *)unsigneds, (void *)longs, (void *)floats}) {
        OK(cudaFree(p));
    }
}

/* One warp: each lane puts what it got into its own row of `out`. */
__global__ static void collectives(int *out)
{
    const int lane = (int)threadIdx.x;
    const unsigned all = 0xFFFFFFFFU;
    int *row = out + lane * 16;
    row[0] = __shfl_sync(all, lane * 3, (lane + 5) % 32);
    row[1] = __shfl_up_sync(all, lane, 3);
    row[2] = __shfl_down_sync(all, lane, 4, 8);
    row[3] = __shfl_xor_sync(all, lane, 17);
    row[4] = (int)__ballot_sync(all, lane % 3 == 0);
    row[5] = __any_sync(all, lane == 31);
    row[6] = __all_sync(all, lane < 31);
    row[7] = __reduce_add_sync(all, lane - 16);
    row[8] = __reduce_max_sync(all, lane - 40);
    row[9] = (int)__reduce_min_sync(all, (unsigned)lane + 7U);
    row[10] = (int)(__shfl_xor_sync(all, (unsigned long long)lane << 40, 1) >> 40);
    row[11] = lane < 8 ? __reduce_add_sync(0xFFU, lane) : __reduce_add_sync(0xFFFFFF00U, 1);
    row[12] = (int)__shfl_sync(all, (float)lane * 0.5F, 9, 16);
}

static void warps(void **)
{
    int *out = device_new<int>(32 * 16);
    OK(cudaMemset(out, 0, 32 * 16 * sizeof(int)));
    OK(LAUNCH(collectives, 1, 32, 0, nullptr, out));
    const std::vector<int> got = host_of(out, 32 * 16);
    unsigned thirds = 0;
    for (int i = 0; i < 32; i += 3) {
        thirds |= 1U << i;
    }
    for (int lane = 0; lane < 32; lane++) {
        const int expected[13] = {(lane + 5) % 32 * 3,
                                  lane < 3 ? lane : lane - 3,
                                  lane % 8 < 4 ? lane + 4 : lane,
                                  lane ^ 17,
                                  (int)thirds,
                                  1,
                                  0,
                                  31 * 16 - 16 * 32,
                                  -9,
                                  7,
                                  lane ^ 1,
                                  lane < 8 ? 28 : 24,
                                  lane < 16 ? 4 : 12};
        for (int i = 0; i < 13; i++) {
            if (got[lane * 16 + i] != expected[i]) {
                fail_msg("lane %d, collective %d: %d, not %d", lane, i, got[lane * 16 + i], expected[i]);
            }
        }
    }
    OK(cudaFree(out));
}

/* One warp and one tile; a is [16, 16] and b [16, 8], both row-major. */
__global__ static void tile(float *d, const __nv_bfloat16 *a, const __nv_bfloat16 *b)
{
    const int g = (int)threadIdx.x / 4, t = (int)threadIdx.x % 4;
    uint32_t ra[4], rb[2];
    float rd[4];
    for (int i = 0; i < 4; i++) {
        const __nv_bfloat16 *at = a + (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
        ra[i] = __bfloat16_as_ushort(at[0]) | (uint32_t)__bfloat16_as_ushort(at[1]) << 16;
        rd[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
    }
    for (int i = 0; i < 2; i++) {
        const __nv_bfloat16 *at = b + (2 * t + 8 * i) * 8 + g;
        rb[i] = __bfloat16_as_ushort(at[0]) | (uint32_t)__bfloat16_as_ushort(at[8]) << 16;
    }
    emulated_mma_m16n8k16_bf16(rd, ra, rb);
    for (int i = 0; i < 4; i++) {
        d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = rd[i];
    }
}

static void tensor_cores(void **)
{
    std::vector<__nv_bfloat16> a(256), b(128);
    std::vector<float> d(128), expected(128);
    for (__nv_bfloat16 &x : a) {
        x = __float2bfloat16(random_float());
    }
    for (__nv_bfloat16 &x : b) {
        x = __float2bfloat16(random_float());
    }
    for (int r = 0; r < 16; r++) {
        for (int c = 0; c < 8; c++) {
            double sum = d[r * 8 + c] = random_float();
            for (int k = 0; k < 16; k++) {
                sum += (double)__bfloat162float(a[r * 16 + k]) * (double)__bfloat162float(b[k * 8 + c]);
            }
            expected[r * 8 + c] = (float)sum;
        }
    }
    __nv_bfloat16 *on_a = device_of(a), *on_b = device_of(b);
    float *on_d = device_of(d);
    OK(LAUNCH(tile, 1, 32, 0, nullptr, on_d, on_a, on_b));
    const std::vector<float> got = host_of(on_d, 128);
    for (int i = 0; i < 128; i++) {
        assert_true(fabsf(got[i] - expected[i]) < 1e-5F);
    }
    OK(cudaFree(on_a));
    OK(cudaFree(on_b));
    OK(cudaFree(on_d));
}

static void small_functions(void **)
{
    assert_int_equal(__popc(0xF0F0U), 8);
    assert_int_equal(__popcll(~0ULL), 64);
    assert_int_equal(__ffs(8), 4);
    assert_int_equal(__ffsll(0), 0);
    assert_int_equal(__clz(1), 31);
    assert_int_equal(__clz(0), 32);
    assert_true(__brev(1U) == 0x80000000U && __brev(0x3U) == 0xC0000000U);
    assert_true(__byte_perm(0x03020100U, 0x07060504U, 0x7531U) == 0x07050301U);
    assert_true(__byte_perm(0x00008000U, 0, 0x0009U) == 0x000000FFU);
    assert_true(__float_as_uint(1.0F) == 0x3F800000U && __int_as_float(0x40000000) == 2.0F);
    assert_true(max(3U, 5U) == 5U && min(-1, 2) == -1 && max(1.5F, NAN) == 1.5F);
    assert_true(rsqrtf(4.0F) == 0.5F);
}

static unsigned bf16(float x)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(x));
}

static void bf16_rounding(void **)
{
    assert_int_equal(bf16(1.0F), 0x3F80);
    assert_int_equal(bf16(__uint_as_float(0x3F808000U)), 0x3F80); /* half way, to even */
    assert_int_equal(bf16(__uint_as_float(0x3F818000U)), 0x3F82);
    assert_int_equal(bf16(__uint_as_float(0x3F808001U)), 0x3F81);
    assert_int_equal(bf16(-INFINITY), 0xFF80);
    assert_int_equal(bf16(3.4e38F), 0x7F80);
    assert_true(isnan(__bfloat162float(__float2bfloat16(__uint_as_float(0x7F800001U)))));
    const float2 two = __bfloat1622float2(__floats2bfloat162_rn(1.5F, -2.0F));
    assert_true(two.x == 1.5F && two.y == -2.0F);
}

__global__ static void nothing(int *out)
{
    (void)out;
}

static void limits(void **)
{
    int *out = device_new<int>(1);
    OK(LAUNCH(nothing, 1, 1024, 0, nullptr, out));
    assert_int_equal(LAUNCH(nothing, 1, 1025, 0, nullptr, out), cudaErrorInvalidConfiguration);
    assert_int_equal(LAUNCH(nothing, 0, 32, 0, nullptr, out), cudaErrorInvalidConfiguration);
    assert_int_equal(LAUNCH(nothing, dim3(1, 65536), 32, 0, nullptr, out), cudaErrorInvalidConfiguration);
    assert_int_equal(LAUNCH(nothing, 1, 32, 48 * 1024 + 1, nullptr, out), cudaErrorInvalidValue);
    OK(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 * 1024));
    OK(LAUNCH(nothing, 1, 32, 100 * 1024, nullptr, out));
    assert_int_equal(cudaGetLastError(), cudaErrorInvalidValue);
    assert_int_equal(cudaGetLastError(), cudaSuccess);
    OK(cudaFree(out));
}

__global__ static void filled(int *out, int value, struct emulated_place place)
{
    out[threadIdx.x] = value + (int)place.block.x;
}

/* A launch by a lambda that holds the arguments. */
static void lambdas(void **)
{
    int *out = device_new<int>(32), value = 3;
    const struct emulated_place place = {{4, 0, 0}, {}, {}};
    OK(emulated_launch("filled", 1, 32, 0, nullptr, [=] { filled(out, value, place); }));
    value = 5;
    for (const int got : host_of(out, 32)) {
        assert_int_equal(got, 7);
    }
    OK(cudaFree(out));
}

__global__ static void switching(int rounds)
{
    for (int i = 0; i < rounds; i++) {
        __syncwarp();
    }
}

/* A figure to look at, not a test. */
static void speed(void **)
{
    const int rounds = 20000;
    const auto start = std::chrono::steady_clock::now();
    OK(LAUNCH(switching, 1, 32, 0, nullptr, rounds));
    OK(cudaDeviceSynchronize());
    const std::chrono::duration<double, std::nano> spent = std::chrono::steady_clock::now() - start;
    print_message("a lane's turn in __syncwarp: %.0f ns\n", spent.count() / rounds / 32);
}

const struct named_test kernel_tests[] = {{"reductions", reductions},
                                          {"shared_memory", shared_memory},
                                          {"no_false_alarms", no_false_alarms},
                                          {"fences", fences},
                                          {"atomics", atomics},
                                          {"warps", warps},
                                          {"tensor_cores", tensor_cores},
                                          {"small_functions", small_functions},
                                          {"bf16_rounding", bf16_rounding},
                                          {"limits", limits},
                                          {"lambdas", lambdas},
                                          {"speed", speed},
                                          {nullptr, nullptr}};
