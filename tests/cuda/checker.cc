// The checker of what kernels and the .cu files' host code touch. gcc's -fsanitize=thread puts a call before each
// access of memory; here they are answered, in place of ThreadSanitizer's runtime, which would know neither fibers nor
// devices.
//
// Shared memory: two threads race where at least one writes, not both atomically, and nothing orders them: no barrier
// of the block and, within a warp, no __syncwarp or other collective of both. For each byte the last write is kept and
// two reads that are not ordered among themselves, of different warps where there are such: enough to see any race of
// full warps. Device memory: each byte is no memory, unwritten or written. And a kernel must not read what another of
// its threads wrote, but after a barrier of their block, within a warp, or from another block after a __threadfence of
// any; what is written in less than 4 bytes at once is not followed. Reads before such a write show in reverse order.
#include "internal.h"

#if defined(EMULATED_CHECKED)

#include <link.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <atomic>

namespace emulated
{

struct shared_access {
    uint32_t epoch, time; /* barriers of the block, and the thread's own clock within its warp */
    uint16_t thread;
    bool atomic;
};

struct shared_cell {
    struct shared_access write, reads[2];
};

struct range {
    const char *start, *end;
};

enum { LAUNCH_BITS = 22, BLOCK_BITS = 21, EPOCH_BITS = 10, THREAD_BITS = 10 };

/* Who wrote 4 bytes of device memory; all zero: nobody that is known. */
struct writer {
    uint64_t launch : LAUNCH_BITS, block : BLOCK_BITS, epoch : EPOCH_BITS, thread : THREAD_BITS, atomic : 1;
};

static_assert(sizeof(struct writer) == sizeof *writers, "one word each");

static std::mutex constants_lock;
static std::vector<struct range> constants; /* of all that is loaded: what nobody may write */

// ---- shared memory ----

static struct shared_access access_now(const struct machine *m, unsigned access)
{
    const unsigned me = thread_here()->number, lane = me % WARP;
    return {m->epoch, m->warps[me / WARP].clock[lane][lane], static_cast<uint16_t>(me), (access & ACCESS_ATOMIC) != 0};
}

/* Whether the running thread comes after that access for certain. */
static bool ordered(const struct machine *m, const struct shared_access *before)
{
    const unsigned me = thread_here()->number;
    if (before->epoch != m->epoch || before->thread == me) {
        return true;
    }
    return before->thread / WARP == me / WARP &&
           m->warps[me / WARP].clock[me % WARP][before->thread % WARP] >= before->time;
}

[[noreturn]] static void race(const struct machine *m, size_t byte, const struct shared_access *before,
                              const struct shared_access *now, const char *did, const char *does)
{
    const uint3 t = m->threads[before->thread].index;
    slip("race in shared memory: thread (%u, %u, %u) %s byte %zu, this one %s it, and no %s is between", t.x, t.y, t.z,
         did, byte, does, before->thread / WARP == now->thread / WARP ? "__syncwarp" : "__syncthreads");
}

static inline void race_check(const struct machine *m, size_t byte, const struct shared_access *before,
                              const struct shared_access *now, const char *did, const char *does)
{
    if (!ordered(m, before) && !(before->atomic && now->atomic)) {
        race(m, byte, before, now, did, does);
    }
}

/* A read that comes before this one for certain need not be kept: what races with it races with this one too. */
static void read_keep(const struct machine *m, struct shared_cell *cell, const struct shared_access *now)
{
    for (struct shared_access &kept : cell->reads) {
        if (ordered(m, &kept)) {
            kept = *now;
            return;
        }
    }
    const unsigned warp = now->thread / WARP;
    if (cell->reads[0].thread / WARP == cell->reads[1].thread / WARP && cell->reads[0].thread / WARP != warp) {
        cell->reads[1] = *now;
    }
}

static void cell_touch(struct machine *m, size_t byte, const struct shared_access *now, unsigned access)
{
    struct shared_cell *cell = &m->cells[byte];
    if (access & ACCESS_READ) {
        if (cell->write.epoch < m->block_epoch) {
            slip("reads byte %zu of shared memory, which this block never wrote", byte);
        }
        race_check(m, byte, &cell->write, now, "wrote", "reads");
    }
    if (access & ACCESS_WRITE) {
        race_check(m, byte, &cell->write, now, "wrote", "writes");
        for (const struct shared_access &read : cell->reads) {
            race_check(m, byte, &read, now, "read", "writes");
        }
        cell->write = *now;
    } else {
        read_keep(m, cell, now);
    }
}

/* A word whose bytes this block always touched together has one cell, that of its first byte. */
static void shared_touch(struct machine *m, size_t byte, size_t bytes, unsigned access)
{
    const struct shared_access now = access_now(m, access);
    for (const size_t end = byte + bytes; byte < end;) {
        uint32_t *split = &m->split[byte / 4];
        const bool whole = byte % 4 == 0 && end - byte >= 4;
        if (!whole && *split != m->block_epoch) {
            struct shared_cell *cells = &m->cells[byte / 4 * 4];
            cells[1] = cells[2] = cells[3] = cells[0];
            *split = m->block_epoch;
        }
        if (*split != m->block_epoch) {
            cell_touch(m, byte, &now, access);
            byte += 4;
        } else {
            cell_touch(m, byte++, &now, access);
        }
    }
}

void checker_kernel_begin(struct machine *m)
{
    static std::atomic<uint32_t> launches;
    m->launch = ++launches & ((1U << LAUNCH_BITS) - 1);
    if (!m->cells) {
        m->cells = static_cast<struct shared_cell *>(calloc(SHARED_MAX, sizeof *m->cells));
        m->split = static_cast<uint32_t *>(calloc(SHARED_MAX / 4, sizeof *m->split));
        for (struct warp &w : m->warps) {
            for (unsigned i = 0; i < WARP; i++) {
                w.clock[i][i] = 1;
            }
        }
    }
}

void checker_barrier(struct machine *m)
{
    m->epoch++;
}

/* Lanes that meet know of all that each of them did before. */
void checker_collective(struct warp *w, unsigned lanes)
{
    uint32_t known[WARP] = {};
    for (unsigned rest = lanes; rest; rest &= rest - 1) {
        const uint32_t *clock = w->clock[__builtin_ctz(rest)];
        for (unsigned i = 0; i < WARP; i++) {
            known[i] = known[i] > clock[i] ? known[i] : clock[i];
        }
    }
    for (unsigned rest = lanes; rest; rest &= rest - 1) {
        const int lane = __builtin_ctz(rest);
        memcpy(w->clock[lane], known, sizeof known);
        w->clock[lane][lane]++;
    }
}

// ---- device memory ----

[[noreturn]] static void device_slip(const char *p, unsigned access, const char *why)
{
    char text[256];
    memory_describe(p, text, sizeof text);
    slip("%s %p%s: %s", access & ACCESS_WRITE ? "writes" : "reads", static_cast<const void *>(p), why, text);
}

/* Whether all are written: nearly always, so it is quick. */
static bool all_written(const char *state, size_t bytes)
{
    const uint64_t written = SHADOW_WRITTEN * UINT64_C(0x0101010101010101);
    uint64_t some;
    for (; bytes >= sizeof some; state += sizeof some, bytes -= sizeof some) {
        memcpy(&some, state, sizeof some);
        if (some != written) {
            return false;
        }
    }
    for (; bytes; state++, bytes--) {
        if (*state != SHADOW_WRITTEN) {
            return false;
        }
    }
    return true;
}

static struct writer writer_now(const struct machine *m, unsigned access)
{
    struct writer w = {};
    if (m->block_number < 1U << BLOCK_BITS) {
        w.launch = m->launch;
        w.block = m->block_number;
        w.epoch = m->epoch & ((1U << EPOCH_BITS) - 1);
        w.thread = thread_here()->number & ((1U << THREAD_BITS) - 1);
        w.atomic = (access & ACCESS_ATOMIC) != 0;
    }
    return w;
}

static bool unordered(const struct machine *m, const struct writer *before, const struct writer *now)
{
    if (!now->launch || before->launch != now->launch || (before->atomic && now->atomic)) {
        return false;
    }
    return before->block != now->block ? !m->fenced
                                       : before->epoch == now->epoch && before->thread / WARP != now->thread / WARP;
}

static void writers_touch(const struct machine *m, const char *p, size_t bytes, unsigned access)
{
    const struct writer now = writer_now(m, access);
    const size_t start = static_cast<size_t>(p - addresses), end = start + bytes;
    for (size_t i = start / 4; 4 * i < end; i++) {
        struct writer before;
        memcpy(&before, &writers[i], sizeof before);
        if (access & ACCESS_READ && unordered(m, &before, &now)) {
            const uint3 t = m->threads[before.thread].index;
            slip("race in device memory: thread (%u, %u, %u) of block %u of the grid wrote %p, this one reads it, and "
                 "%s",
                 t.x, t.y, t.z, static_cast<unsigned>(before.block), static_cast<const void *>(addresses + 4 * i),
                 before.block == now.block ? "no __syncthreads is between" : "blocks have no order");
        }
        if (access & ACCESS_WRITE) {
            const struct writer after = start <= 4 * i && 4 * i + 4 <= end ? now : writer();
            memcpy(&writers[i], &after, sizeof after);
        }
    }
}

static void device_touch(const struct machine *m, const char *p, size_t bytes, unsigned access)
{
    const size_t offset = static_cast<size_t>(p - addresses);
    if (static_cast<int>(offset / DEVICE_ADDRESSES) != m->device) {
        slip("%s memory of device %d on device %d (%p)", access & ACCESS_WRITE ? "writes" : "reads",
             static_cast<int>(offset / DEVICE_ADDRESSES), m->device, static_cast<const void *>(p));
    }
    char *state = shadow + offset;
    for (size_t i = 0; !all_written(state, bytes) && i < bytes; i++) {
        if (state[i] == SHADOW_NONE) {
            device_slip(p + i, access, "");
        }
        if (access & ACCESS_READ && state[i] != SHADOW_WRITTEN) {
            device_slip(p + i, access, ", which nothing ever wrote");
        }
    }
    if (access & ACCESS_WRITE) {
        memset(state, SHADOW_WRITTEN, bytes);
    }
    writers_touch(m, p, bytes, access);
}

void checker_memory_gone(const char *start, size_t bytes)
{
    const size_t offset = static_cast<size_t>(start - addresses);
    const size_t first = rounded(offset, PAGE), end = (offset + bytes) / PAGE * PAGE;
    memset(shadow + offset, SHADOW_NONE, bytes);
    if (first < end) { /* the pages too: addresses are not used again */
        madvise(shadow + first, end - first, MADV_DONTNEED);
        madvise(reinterpret_cast<char *>(writers) + 2 * first, 2 * (end - first), MADV_DONTNEED);
    }
}

// ---- all memory ----

static bool within(const void *p, size_t bytes, const void *start, size_t room)
{
    const uintptr_t offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(start);
    return offset < room && bytes <= room - offset;
}

static int constants_of(struct dl_phdr_info *info, size_t, void *)
{
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const auto *h = &info->dlpi_phdr[i];
        if ((h->p_type == PT_LOAD && !(h->p_flags & PF_W)) || h->p_type == PT_GNU_RELRO) {
            const char *start = reinterpret_cast<const char *>(info->dlpi_addr + h->p_vaddr);
            constants.push_back({start, start + h->p_memsz});
        }
    }
    return 0;
}

static bool constant(const char *p)
{
    std::lock_guard<std::mutex> lock(constants_lock);
    for (int again = 0; again < 2; again++) {
        for (const struct range &r : constants) {
            if (p >= r.start && p < r.end) {
                return true;
            }
        }
        constants.clear(); /* more may have been loaded */
        dl_iterate_phdr(constants_of, nullptr);
    }
    return false;
}

static void kernel_touch(const char *p, size_t bytes, unsigned access, bool natural)
{
    struct machine *m = machine_here;
    const size_t all = rounded(SHARED_MAX, PAGE) + PAGE;
    const bool shared = within(p, 1, m->shared_pages, all), device = within(p, 1, addresses, addresses_bytes);
    if ((shared || device) && natural && reinterpret_cast<uintptr_t>(p) % bytes) {
        slip("%zu bytes at once at %p, which is not a multiple of that", bytes, static_cast<const void *>(p));
    }
    if (shared) {
        const size_t byte = static_cast<size_t>(p - reinterpret_cast<const char *>(m->shared));
        if (p < reinterpret_cast<const char *>(m->shared) || byte + bytes > m->shared_bytes) {
            slip("%s out of bounds of the block's %zu bytes of shared memory (byte %zd)",
                 access & ACCESS_WRITE ? "writes" : "reads", m->shared_bytes, static_cast<ssize_t>(byte));
        }
        shared_touch(m, byte, bytes, access);
    } else if (device) {
        device_touch(m, p, bytes, access);
    } else if (access & ACCESS_WRITE || !(within(p, bytes, m->kernel->call, m->kernel->call_bytes) || constant(p))) {
        slip("%s host memory, or another thread's stack (%p)", access & ACCESS_WRITE ? "writes" : "reads",
             static_cast<const void *>(p));
    }
}

/* threadIdx and its like: often, so it is asked first. */
static bool index_read(const char *p, size_t bytes, unsigned access)
{
    return !(access & ACCESS_WRITE) && (within(p, bytes, machine_here, sizeof *machine_here) ||
                                        within(p, bytes, &emulated_here, sizeof emulated_here));
}

static void touch(const void *at, size_t bytes, unsigned access, bool natural)
{
    const char *p = static_cast<const char *>(at);
    if (!emulated_here) {
        if (memory_device(p) >= 0) {
            device_slip(p, access, " in host code");
        }
    } else if ((p < stack_low || p >= stack_high) && !index_read(p, bytes, access)) {
        kernel_touch(p, bytes, access, natural);
    }
}

void checker_access(const void *p, size_t bytes, unsigned access)
{
    touch(p, bytes, access, false);
}

} // namespace emulated

using namespace emulated;

// ---- what gcc calls ----

#define ENTRY extern "C" __attribute__((visibility("hidden")))
#define ACCESSES(bytes)                                                                                                \
    ENTRY void __tsan_read##bytes(void *p)                                                                             \
    {                                                                                                                  \
        touch(p, bytes, ACCESS_READ, true);                                                                            \
    }                                                                                                                  \
    ENTRY void __tsan_write##bytes(void *p)                                                                            \
    {                                                                                                                  \
        touch(p, bytes, ACCESS_WRITE, true);                                                                           \
    }                                                                                                                  \
    ENTRY void __tsan_unaligned_read##bytes(void *p)                                                                   \
    {                                                                                                                  \
        touch(p, bytes, ACCESS_READ, false);                                                                           \
    }                                                                                                                  \
    ENTRY void __tsan_unaligned_write##bytes(void *p)                                                                  \
    {                                                                                                                  \
        touch(p, bytes, ACCESS_WRITE, false);                                                                          \
    }                                                                                                                  \
    ENTRY void __tsan_volatile_read##bytes(void *p)                                                                    \
    {                                                                                                                  \
        touch(p, bytes, ACCESS_READ, true);                                                                            \
    }                                                                                                                  \
    ENTRY void __tsan_volatile_write##bytes(void *p)                                                                   \
    {                                                                                                                  \
        touch(p, bytes, ACCESS_WRITE, true);                                                                           \
    }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)

ENTRY void __tsan_read_range(void *p, size_t bytes)
{
    if (bytes) {
        touch(p, bytes, ACCESS_READ, false);
    }
}

ENTRY void __tsan_write_range(void *p, size_t bytes)
{
    if (bytes) {
        touch(p, bytes, ACCESS_WRITE, false);
    }
}

ENTRY void __tsan_init(void) {}

ENTRY void __tsan_func_entry(void *) {}

ENTRY void __tsan_func_exit(void) {}

ENTRY void __tsan_vptr_update(void *p, void *)
{
    touch(p, sizeof(void *), ACCESS_WRITE, true);
}

ENTRY void __tsan_vptr_read(void *p)
{
    touch(p, sizeof(void *), ACCESS_READ, true);
}

/* The .cu files' calls of these three come here: tests/cuda/rules.mk renames them. */
ENTRY void *emulated_memcpy(void *to, const void *from, size_t bytes)
{
    if (bytes) {
        touch(from, bytes, ACCESS_READ, false);
        touch(to, bytes, ACCESS_WRITE, false);
    }
    return memcpy(to, from, bytes);
}

ENTRY void *emulated_memmove(void *to, const void *from, size_t bytes)
{
    if (bytes) {
        touch(from, bytes, ACCESS_READ, false);
        touch(to, bytes, ACCESS_WRITE, false);
    }
    return memmove(to, from, bytes);
}

ENTRY void *emulated_memset(void *to, int value, size_t bytes)
{
    if (bytes) {
        touch(to, bytes, ACCESS_WRITE, false);
    }
    return memset(to, value, bytes);
}

/* Host code's own atomics; as strict as can be, whatever order was asked for. */
#define EXCHANGE(T, bits, name)                                                                                        \
    ENTRY T __tsan_atomic##bits##_##name(volatile T *p, T value, int)                                                  \
    {                                                                                                                  \
        touch(const_cast<T *>(p), sizeof *p, ACCESS_READ | ACCESS_WRITE | ACCESS_ATOMIC, true);                        \
        return __atomic_##name(p, value, __ATOMIC_SEQ_CST);                                                            \
    }
#define COMPARE(T, bits, name, weak)                                                                                   \
    ENTRY int __tsan_atomic##bits##_compare_exchange_##name(volatile T *p, T *expected, T value, int, int)             \
    {                                                                                                                  \
        touch(const_cast<T *>(p), sizeof *p, ACCESS_READ | ACCESS_WRITE | ACCESS_ATOMIC, true);                        \
        return __atomic_compare_exchange_n(p, expected, value, weak, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);              \
    }
#define ATOMICS(T, bits)                                                                                               \
    ENTRY T __tsan_atomic##bits##_load(const volatile T *p, int)                                                       \
    {                                                                                                                  \
        touch(const_cast<const T *>(p), sizeof *p, ACCESS_READ | ACCESS_ATOMIC, true);                                 \
        return __atomic_load_n(p, __ATOMIC_SEQ_CST);                                                                   \
    }                                                                                                                  \
    ENTRY void __tsan_atomic##bits##_store(volatile T *p, T value, int)                                                \
    {                                                                                                                  \
        touch(const_cast<T *>(p), sizeof *p, ACCESS_WRITE | ACCESS_ATOMIC, true);                                      \
        __atomic_store_n(p, value, __ATOMIC_SEQ_CST);                                                                  \
    }                                                                                                                  \
    ENTRY T __tsan_atomic##bits##_exchange(volatile T *p, T value, int)                                                \
    {                                                                                                                  \
        touch(const_cast<T *>(p), sizeof *p, ACCESS_READ | ACCESS_WRITE | ACCESS_ATOMIC, true);                        \
        return __atomic_exchange_n(p, value, __ATOMIC_SEQ_CST);                                                        \
    }                                                                                                                  \
    EXCHANGE(T, bits, fetch_add)                                                                                       \
    EXCHANGE(T, bits, fetch_sub)                                                                                       \
    EXCHANGE(T, bits, fetch_and)                                                                                       \
    EXCHANGE(T, bits, fetch_or)                                                                                        \
    EXCHANGE(T, bits, fetch_xor)                                                                                       \
    COMPARE(T, bits, strong, false)                                                                                    \
    COMPARE(T, bits, weak, true)
ATOMICS(uint8_t, 8)
ATOMICS(uint16_t, 16)
ATOMICS(uint32_t, 32)
ATOMICS(uint64_t, 64)

ENTRY void __tsan_atomic_thread_fence(int)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

ENTRY void __tsan_atomic_signal_fence(int) {}

#else

namespace emulated
{

void checker_access(const void *, size_t, unsigned) {}

void checker_kernel_begin(struct machine *) {}

void checker_memory_gone(const char *, size_t) {}

void checker_barrier(struct machine *) {}

void checker_collective(struct warp *, unsigned) {}

} // namespace emulated

#endif
