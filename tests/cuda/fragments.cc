// What tensor cores do, and atomics.
#include "internal.h"

namespace emulated
{

static float low_half(uint32_t pair)
{
    return __uint_as_float(pair << 16);
}

static float high_half(uint32_t pair)
{
    return __uint_as_float(pair & 0xFFFF0000U);
}

/* PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type": with g = lane / 4 and t = lane % 4, registers
 * of a are rows g and g + 8 at columns 2t, then the same at 2t + 8; those of b rows 2t and 2t + 8 of column g; d is
 * (g, 2t), (g, 2t + 1), then row g + 8. The low half of a register comes first. */
__attribute__((no_sanitize("address", "undefined"))) void mma(float *const d[WARP], const uint32_t *const a[WARP],
                                                              const uint32_t *const b[WARP])
{
    float rows[16][16], columns[8][16];
    for (int lane = 0; lane < WARP; lane++) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; i++) {
            float *to = &rows[g + 8 * (i % 2)][2 * t + 8 * (i / 2)];
            to[0] = low_half(a[lane][i]);
            to[1] = high_half(a[lane][i]);
        }
        for (int i = 0; i < 2; i++) {
            columns[g][2 * t + 8 * i] = low_half(b[lane][i]);
            columns[g][2 * t + 8 * i + 1] = high_half(b[lane][i]);
        }
    }
    for (int lane = 0; lane < WARP; lane++) {
        for (int i = 0; i < 4; i++) {
            const float *row = rows[lane / 4 + 8 * (i / 2)], *column = columns[2 * (lane % 4) + i % 2];
            float sum = 0;
            for (int k = 0; k < 16; k++) {
                sum += row[k] * column[k];
            }
            d[lane][i] += sum;
        }
    }
}

/* A slip unless device code may do this there. Without the checker a bad address faults by itself. */
static void atomic_check(const void *at, size_t bytes)
{
    if (reinterpret_cast<uintptr_t>(at) % bytes) {
        slip("an atomic at %p, which is not a multiple of %zu", at, bytes);
    }
    checker_access(at, bytes, ACCESS_READ | ACCESS_WRITE | ACCESS_ATOMIC);
}

/* Blocks of another host thread may be at the same number. */
template <typename T, typename Change> static T changed(T *at, Change change)
{
    atomic_check(at, sizeof *at);
    T before, after;
    __atomic_load(at, &before, __ATOMIC_RELAXED);
    do {
        after = change(before);
    } while (!__atomic_compare_exchange(at, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return before;
}

} // namespace emulated

using namespace emulated;

#define ATOMIC(T, name, expression)                                                                                    \
    T name(T *at, T value)                                                                                             \
    {                                                                                                                  \
        return changed(at, [value](T before) -> T { return expression; });                                             \
    }
#define ATOMICS(T, sum)                                                                                                \
    ATOMIC(T, atomicAdd, sum)                                                                                          \
    ATOMIC(T, atomicMax, before > value ? before : value)                                                              \
    ATOMIC(T, atomicMin, before < value ? before : value)                                                              \
    ATOMIC(T, atomicExch, ((void)before, value))                                                                       \
    ATOMIC(T, atomicAnd, before &value)                                                                                \
    ATOMIC(T, atomicOr, before | value)                                                                                \
    T atomicCAS(T *at, T compare, T value)                                                                             \
    {                                                                                                                  \
        return changed(at, [compare, value](T before) -> T { return before == compare ? value : before; });            \
    }
ATOMICS(int, static_cast<int>(static_cast<unsigned>(before) + static_cast<unsigned>(value)))
ATOMICS(unsigned, before + value)
ATOMICS(unsigned long long, before + value)
ATOMIC(float, atomicAdd, before + value)
ATOMIC(float, atomicExch, ((void)before, value))
