/* What device code may use of CUDA: indices, barriers, warp collectives, atomics, small functions and vector types.
 * Functions are static, so that each object has its own: those of checked .cu files are compiled differently. */
#ifndef EMULATED_DEVICE_H
#define EMULATED_DEVICE_H

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

/* ---- where a thread is ---- */

struct emulated_place {
    uint3 block;
    dim3 block_dim, grid_dim;
};

struct emulated_thread {
    uint3 index;
    const struct emulated_place *place;
};

/* NULL outside kernels. Only the emulation writes it. */
extern __thread struct emulated_thread *emulated_here __attribute__((tls_model("initial-exec")));

#define threadIdx (emulated_here->index)
#define blockIdx (emulated_here->place->block)
#define blockDim (emulated_here->place->block_dim)
#define gridDim (emulated_here->place->grid_dim)
static constexpr int warpSize = 32;

/* The block's dynamic shared memory, 128-byte aligned. */
unsigned char *emulated_shared_memory(void);

/* ---- barriers and warp collectives ---- */

enum emulated_collective {
    EMULATED_SYNCWARP,
    EMULATED_SHFL,
    EMULATED_SHFL_UP,
    EMULATED_SHFL_DOWN,
    EMULATED_SHFL_XOR,
    EMULATED_BALLOT,
    EMULATED_ANY,
    EMULATED_ALL,
    EMULATED_ADD,
    EMULATED_MAX_INT,
    EMULATED_MAX_UNSIGNED,
    EMULATED_MIN_INT,
    EMULATED_MIN_UNSIGNED,
    EMULATED_MMA,
};

void emulated_syncthreads(const char *file, int line);
uint64_t emulated_collective(enum emulated_collective kind, unsigned mask, uint64_t value, int lane, int width);
void emulated_threadfence(void);
[[noreturn]] void emulated_trap(void);

/* d += a b of a whole warp, [16, 16] x [16, 8] bf16 with f32 sums: PTX's mma.sync.aligned.m16n8k16.row.col. */
void emulated_mma_m16n8k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]);

/* The place in the source tells two barriers apart. */
#define __syncthreads() emulated_syncthreads(__FILE__, __LINE__)
#define __threadfence() emulated_threadfence()
#define __threadfence_block() emulated_threadfence()
#define __trap() emulated_trap()

static inline void __syncwarp(unsigned mask = 0xFFFFFFFFU)
{
    emulated_collective(EMULATED_SYNCWARP, mask, 0, 0, 32);
}

template <typename T>
static inline T emulated_shuffle(enum emulated_collective kind, unsigned mask, T value, int lane, int width)
{
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles move 4 or 8 bytes");
    uint64_t bits = 0;
    __builtin_memcpy(&bits, &value, sizeof value);
    bits = emulated_collective(kind, mask, bits, lane, width);
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

#define EMULATED_SHUFFLES(T)                                                                                           \
    static inline T __shfl_sync(unsigned mask, T value, int lane, int width = 32)                                      \
    {                                                                                                                  \
        return emulated_shuffle(EMULATED_SHFL, mask, value, lane, width);                                              \
    }                                                                                                                  \
    static inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32)                             \
    {                                                                                                                  \
        return emulated_shuffle(EMULATED_SHFL_UP, mask, value, (int)delta, width);                                     \
    }                                                                                                                  \
    static inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32)                           \
    {                                                                                                                  \
        return emulated_shuffle(EMULATED_SHFL_DOWN, mask, value, (int)delta, width);                                   \
    }                                                                                                                  \
    static inline T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32)                                 \
    {                                                                                                                  \
        return emulated_shuffle(EMULATED_SHFL_XOR, mask, value, lanes, width);                                         \
    }
EMULATED_SHUFFLES(int)
EMULATED_SHUFFLES(unsigned)
EMULATED_SHUFFLES(float)
EMULATED_SHUFFLES(double)
EMULATED_SHUFFLES(long)
EMULATED_SHUFFLES(unsigned long)
EMULATED_SHUFFLES(long long)
EMULATED_SHUFFLES(unsigned long long)

static inline unsigned __ballot_sync(unsigned mask, int predicate)
{
    return (unsigned)emulated_collective(EMULATED_BALLOT, mask, predicate != 0, 0, 32);
}

static inline int __any_sync(unsigned mask, int predicate)
{
    return (int)emulated_collective(EMULATED_ANY, mask, predicate != 0, 0, 32);
}

static inline int __all_sync(unsigned mask, int predicate)
{
    return (int)emulated_collective(EMULATED_ALL, mask, predicate != 0, 0, 32);
}

static inline unsigned __reduce_add_sync(unsigned mask, unsigned value)
{
    return (unsigned)emulated_collective(EMULATED_ADD, mask, value, 0, 32);
}

static inline int __reduce_add_sync(unsigned mask, int value)
{
    return (int)emulated_collective(EMULATED_ADD, mask, (unsigned)value, 0, 32);
}

static inline unsigned __reduce_max_sync(unsigned mask, unsigned value)
{
    return (unsigned)emulated_collective(EMULATED_MAX_UNSIGNED, mask, value, 0, 32);
}

static inline int __reduce_max_sync(unsigned mask, int value)
{
    return (int)emulated_collective(EMULATED_MAX_INT, mask, (unsigned)value, 0, 32);
}

static inline unsigned __reduce_min_sync(unsigned mask, unsigned value)
{
    return (unsigned)emulated_collective(EMULATED_MIN_UNSIGNED, mask, value, 0, 32);
}

static inline int __reduce_min_sync(unsigned mask, int value)
{
    return (int)emulated_collective(EMULATED_MIN_INT, mask, (unsigned)value, 0, 32);
}

/* ---- atomics: each returns what was there before ---- */

#define EMULATED_ATOMICS(T)                                                                                            \
    T atomicAdd(T *at, T value);                                                                                       \
    T atomicMax(T *at, T value);                                                                                       \
    T atomicMin(T *at, T value);                                                                                       \
    T atomicExch(T *at, T value);                                                                                      \
    T atomicCAS(T *at, T compare, T value);                                                                            \
    T atomicAnd(T *at, T value);                                                                                       \
    T atomicOr(T *at, T value);
EMULATED_ATOMICS(int)
EMULATED_ATOMICS(unsigned)
EMULATED_ATOMICS(unsigned long long)
float atomicAdd(float *at, float value);
float atomicExch(float *at, float value);

/* ---- bits and numbers ---- */

/* Hints for caches do nothing here. */
#define EMULATED_LOAD(name)                                                                                            \
    template <typename T> static inline T name(const T *at)                                                            \
    {                                                                                                                  \
        return *at;                                                                                                    \
    }
EMULATED_LOAD(__ldg)
EMULATED_LOAD(__ldca)
EMULATED_LOAD(__ldcg)
EMULATED_LOAD(__ldcs)
EMULATED_LOAD(__ldlu)

#define EMULATED_STORE(name)                                                                                           \
    template <typename T> static inline void name(T *at, T value)                                                      \
    {                                                                                                                  \
        *at = value;                                                                                                   \
    }
EMULATED_STORE(__stwb)
EMULATED_STORE(__stcg)
EMULATED_STORE(__stcs)

static inline int __popc(unsigned x)
{
    return __builtin_popcount(x);
}

static inline int __popcll(unsigned long long x)
{
    return __builtin_popcountll(x);
}

static inline int __ffs(int x)
{
    return __builtin_ffs(x);
}

static inline int __ffsll(long long x)
{
    return __builtin_ffsll(x);
}

static inline int __clz(int x)
{
    return x ? __builtin_clz((unsigned)x) : 32;
}

static inline int __clzll(long long x)
{
    return x ? __builtin_clzll((unsigned long long)x) : 64;
}

static inline unsigned __brev(unsigned x)
{
    unsigned y = 0;
    for (int i = 0; i < 32; i++) {
        y |= (x >> i & 1) << (31 - i);
    }
    return y;
}

/* Byte i of the result is the one of y:x that nibble i of s names; its top bit asks for that byte's sign instead. */
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s)
{
    const uint64_t both = (uint64_t)y << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned name = s >> (4 * i) & 15, byte = (unsigned)(both >> (8 * (name & 7))) & 255;
        out |= (name & 8 ? (byte & 128 ? 255U : 0U) : byte) << (8 * i);
    }
    return out;
}

template <typename To, typename From> static inline To emulated_bits(From from)
{
    static_assert(sizeof(To) == sizeof(From), "the same bits");
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

static inline unsigned __float_as_uint(float x)
{
    return emulated_bits<unsigned>(x);
}

static inline int __float_as_int(float x)
{
    return emulated_bits<int>(x);
}

static inline float __uint_as_float(unsigned x)
{
    return emulated_bits<float>(x);
}

static inline float __int_as_float(int x)
{
    return emulated_bits<float>(x);
}

/* macros: the C library declares functions of these names */
#define __expf(x) expf(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __powf(x, y) powf(x, y)
#define __fdividef(x, y) ((x) / (y))
#define __frcp_rn(x) (1.0F / (x))
#define __fsqrt_rn(x) sqrtf(x)
#define __fmaf_rn(x, y, z) fmaf(x, y, z)
#define __fadd_rn(x, y) ((float)(x) + (float)(y))
#define __fmul_rn(x, y) ((float)(x) * (float)(y))

static inline float rsqrtf(float x)
{
    return 1.0F / sqrtf(x);
}

#define EMULATED_MIN_MAX(T)                                                                                            \
    static inline T min(T a, T b)                                                                                      \
    {                                                                                                                  \
        return b < a ? b : a;                                                                                          \
    }                                                                                                                  \
    static inline T max(T a, T b)                                                                                      \
    {                                                                                                                  \
        return a < b ? b : a;                                                                                          \
    }
EMULATED_MIN_MAX(int)
EMULATED_MIN_MAX(unsigned)
EMULATED_MIN_MAX(long)
EMULATED_MIN_MAX(unsigned long)
EMULATED_MIN_MAX(long long)
EMULATED_MIN_MAX(unsigned long long)

static inline float min(float a, float b)
{
    return fminf(a, b);
}

static inline float max(float a, float b)
{
    return fmaxf(a, b);
}

static inline double min(double a, double b)
{
    return fmin(a, b);
}

static inline double max(double a, double b)
{
    return fmax(a, b);
}

/* ---- vectors ---- */

#define EMULATED_VECTORS(name, T, two, four)                                                                           \
    struct alignas(two) name##2                                                                                        \
    {                                                                                                                  \
        T x, y;                                                                                                        \
    };                                                                                                                 \
    struct alignas(four) name##4                                                                                       \
    {                                                                                                                  \
        T x, y, z, w;                                                                                                  \
    };                                                                                                                 \
    static inline name##2 make_##name##2(T x, T y)                                                                     \
    {                                                                                                                  \
        return {x, y};                                                                                                 \
    }                                                                                                                  \
    static inline name##4 make_##name##4(T x, T y, T z, T w)                                                           \
    {                                                                                                                  \
        return {x, y, z, w};                                                                                           \
    }
EMULATED_VECTORS(float, float, 8, 16)
EMULATED_VECTORS(int, int, 8, 16)
EMULATED_VECTORS(uint, unsigned, 8, 16)
EMULATED_VECTORS(ushort, unsigned short, 4, 8)
EMULATED_VECTORS(short, short, 4, 8)
EMULATED_VECTORS(uchar, unsigned char, 2, 4)
EMULATED_VECTORS(char, signed char, 2, 4)
EMULATED_VECTORS(longlong, long long, 16, 16)
EMULATED_VECTORS(ulonglong, unsigned long long, 16, 16)

#endif
