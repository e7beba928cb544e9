// Kernels: blocks run one after the other in the host thread that needs the kernel done, the threads of a block take
// turns at barriers and warp collectives. A barrier opens when all threads that have not finished are at it.
#include <stdlib.h>
#include <sys/mman.h>

#include <map>

#include "internal.h"

__thread struct emulated_thread *emulated_here;

namespace emulated
{

__thread struct machine *machine_here EMULATED_TLS;

/* Shared memory that cudaFuncSetAttribute allowed, by kernel and device. */
static std::mutex allowances_lock;
static auto &allowances = *new std::map<std::pair<const void *, int>, size_t>();

/* Gives the machine back when its host thread ends. */
struct machine_owner {
    struct machine *machine = nullptr;
    ~machine_owner()
    {
        if (machine) {
            fibers_close(machine);
            munmap(machine->shared_pages, rounded(SHARED_MAX, PAGE) + PAGE);
            free(machine->cells);
            free(machine->split);
            free(machine);
            machine_here = nullptr;
        }
    }
};

static struct machine *machine_open()
{
    static thread_local struct machine_owner owner;
    if (!owner.machine) {
        struct machine *m = static_cast<struct machine *>(calloc(1, sizeof *m));
        const size_t bytes = rounded(SHARED_MAX, PAGE);
        void *pages = mmap(nullptr, bytes + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (!m || pages == MAP_FAILED || mprotect(static_cast<char *>(pages) + bytes, PAGE, PROT_NONE) != 0) {
            slip("no room for a block");
        }
        m->shared_pages = static_cast<unsigned char *>(pages);
        fibers_open(m);
        owner.machine = m;
    }
    return machine_here = owner.machine;
}

// ---- blocks ----

/* What no thread wrote is NaN in every format, and at the end of pages: what lies after it may not be touched. */
static void shared_fresh(struct machine *m, size_t bytes)
{
    const size_t all = rounded(SHARED_MAX, PAGE);
    ASAN_UNPOISON_MEMORY_REGION(m->shared_pages, all);
    m->shared = m->shared_pages + all - rounded(bytes, 128);
    m->shared_bytes = bytes;
    memset(m->shared, UNWRITTEN, rounded(bytes, 128));
    ASAN_POISON_MEMORY_REGION(m->shared_pages, static_cast<size_t>(m->shared - m->shared_pages));
    ASAN_POISON_MEMORY_REGION(m->shared + bytes, rounded(bytes, 128) - bytes);
}

static void block_begin(struct machine *m)
{
    for (unsigned w = 0; w < m->warps_count; w++) {
        const unsigned lanes = m->threads_count - w * WARP;
        m->warps[w].live = m->warps[w].ready = lanes < WARP ? (1U << lanes) - 1 : ~0U;
        m->warps[w].collecting = 0;
    }
    for (unsigned i = 0; i < m->threads_count; i++) {
        m->threads[i].state = THREAD_READY;
    }
    m->live = m->threads_count;
    m->at_barrier = 0;
    shared_fresh(m, m->shared_bytes);
    checker_barrier(m);
    m->block_epoch = m->epoch;
}

static void threads_place(struct machine *m, dim3 block)
{
    m->threads_count = block.x * block.y * block.z;
    m->warps_count = (m->threads_count + WARP - 1) / WARP;
    for (unsigned i = 0; i < m->threads_count; i++) {
        struct thread *t = &m->threads[i];
        t->index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
        t->place = &m->place;
        t->number = i;
        t->fiber = nullptr;
    }
}

void kernel_run(const struct emulated_kernel *kernel, int device, dim3 grid, dim3 block, size_t shared_bytes)
{
    struct machine *m = machine_open();
    if (m->kernel) {
        slip("kernel %s was launched by one", kernel->name);
    }
    m->kernel = kernel;
    m->device = device;
    m->reverse = environment()->reverse;
    m->fenced = false;
    m->shared_bytes = shared_bytes;
    for (size_t i = 0; i < kernel->pointers_count; i++) {
        if (kernel->pointers[i]) {
            memory_pointer_check(kernel->pointers[i], device, "an argument");
        }
    }
    threads_place(m, block);
    m->place.block_dim = block;
    m->place.grid_dim = grid;
    checker_kernel_begin(m);
    const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
    for (uint64_t i = 0; i < blocks; i++) {
        const uint64_t b = m->reverse ? blocks - 1 - i : i;
        m->place.block = {static_cast<unsigned>(b % grid.x), static_cast<unsigned>(b / grid.x % grid.y),
                          static_cast<unsigned>(b / grid.x / grid.y)};
        m->block_number = static_cast<uint32_t>(b);
        block_begin(m);
        fiber_run(m);
    }
    ASAN_UNPOISON_MEMORY_REGION(m->shared_pages, rounded(SHARED_MAX, PAGE));
    m->kernel = nullptr;
}

/* As CUDA answers to a launch that the device cannot do. */
cudaError_t kernel_check(const struct emulated_kernel *kernel, int device, dim3 grid, dim3 block, size_t shared_bytes)
{
    const bool sizes = grid.x && grid.y && grid.z && block.x && block.y && block.z && grid.x <= 2147483647 &&
                       grid.y <= 65535 && grid.z <= 65535 && block.x <= BLOCK_THREADS && block.y <= BLOCK_THREADS &&
                       block.z <= 64 && block.x * block.y * block.z <= BLOCK_THREADS;
    if (!sizes) {
        return cudaErrorInvalidConfiguration;
    }
    if (shared_bytes > SHARED_MAX) {
        return cudaErrorInvalidValue;
    }
    if (kernel->function && shared_bytes > SHARED_DEFAULT) {
        std::lock_guard<std::mutex> lock(allowances_lock);
        const auto found = allowances.find({kernel->function, device});
        return found != allowances.end() && shared_bytes <= found->second ? cudaSuccess : cudaErrorInvalidValue;
    }
    return cudaSuccess;
}

// ---- turns ----

/* All who wait are at one barrier, or somebody waits in vain. */
static void barrier_open(struct machine *m)
{
    const struct thread *first = nullptr;
    for (unsigned i = 0; i < m->threads_count; i++) {
        struct thread *t = &m->threads[i];
        if (t->state != THREAD_AT_BARRIER) {
            continue;
        }
        if (first && (first->line != t->line || (first->file != t->file && strcmp(first->file, t->file) != 0))) {
            slip("divergent __syncthreads: threads %u and %u of the block wait at %s:%d and %s:%d", first->number,
                 t->number, first->file, first->line, t->file, t->line);
        }
        first = first ? first : t;
        t->state = THREAD_READY;
        m->warps[i / WARP].ready |= 1U << i % WARP;
    }
    m->at_barrier = 0;
    checker_barrier(m);
}

static const char *name_of(enum emulated_collective kind)
{
    static const char *const names[] = {"__syncwarp",        "__shfl_sync",
                                        "__shfl_up_sync",    "__shfl_down_sync",
                                        "__shfl_xor_sync",   "__ballot_sync",
                                        "__any_sync",        "__all_sync",
                                        "__reduce_add_sync", "__reduce_max_sync",
                                        "__reduce_max_sync", "__reduce_min_sync",
                                        "__reduce_min_sync", "mma"};
    return names[kind];
}

[[noreturn]] static void waits_in_vain(const struct machine *m)
{
    const struct thread *barrier = nullptr, *collective = nullptr;
    for (unsigned i = 0; i < m->threads_count; i++) {
        const struct thread *t = &m->threads[i];
        barrier = !barrier && t->state == THREAD_AT_BARRIER ? t : barrier;
        collective = !collective && t->state == THREAD_IN_COLLECTIVE ? t : collective;
    }
    if (barrier) {
        slip("divergent __syncthreads: thread %u of the block waits at %s:%d, and thread %u in %s with the mask %#x",
             barrier->number, barrier->file, barrier->line, collective->number, name_of(collective->kind),
             collective->mask);
    }
    slip("thread %u of the block waits in %s with the mask %#x for lanes that never come", collective->number,
         name_of(collective->kind), collective->mask);
}

struct thread *thread_next(struct machine *m, unsigned warp)
{
    for (;;) {
        for (unsigned i = 0; i < m->warps_count; i++) {
            const unsigned after = warp + (m->reverse ? m->warps_count - i : i);
            const unsigned w = after < m->warps_count ? after : after - m->warps_count, ready = m->warps[w].ready;
            if (ready) {
                return &m->threads[w * WARP + static_cast<unsigned>(m->reverse ? 31 - __builtin_clz(ready)
                                                                               : __builtin_ctz(ready))];
            }
        }
        if (!m->live) {
            return nullptr;
        }
        if (m->at_barrier != m->live) {
            waits_in_vain(m);
        }
        barrier_open(m);
        warp = m->reverse ? m->warps_count - 1 : 0;
    }
}

static struct warp *warp_of(struct machine *m, const struct thread *t)
{
    return &m->warps[t->number / WARP];
}

static unsigned lane_of(const struct thread *t)
{
    return t->number % WARP;
}

static bool collective_ready(const struct warp *w, unsigned mask);
static void collective_done(struct machine *m, struct thread *t, unsigned lanes);

/* A collective does not wait for lanes that have finished. */
static void collectives_without(struct machine *m, struct warp *w)
{
    const unsigned first = static_cast<unsigned>(w - m->warps) * WARP;
    for (unsigned rest = w->collecting; rest; rest = rest & (rest - 1) & w->collecting) {
        struct thread *t = &m->threads[first + static_cast<unsigned>(__builtin_ctz(rest))];
        if (collective_ready(w, t->mask)) {
            collective_done(m, t, t->mask & w->live);
        }
    }
}

void thread_run(struct machine *m, struct thread *t)
{
    struct warp *w = warp_of(m, t);
    const unsigned bit = 1U << lane_of(t);
    m->kernel->run(m->kernel->call);
    t->state = THREAD_FINISHED;
    m->live--;
    w->live &= ~bit;
    w->ready &= ~bit;
    if (w->collecting) {
        collectives_without(m, w);
    }
}

// ---- warp collectives ----

static bool collective_ready(const struct warp *w, unsigned mask)
{
    return (mask & w->live & ~w->collecting) == 0;
}

static uint64_t reduced(uint64_t a, uint64_t b, enum emulated_collective kind)
{
    const uint32_t x = static_cast<uint32_t>(a), y = static_cast<uint32_t>(b);
    const int32_t sx = static_cast<int32_t>(x), sy = static_cast<int32_t>(y);
    switch (kind) {
    case EMULATED_ADD:
        return static_cast<uint32_t>(x + y);
    case EMULATED_MAX_INT:
        return sx > sy ? x : y;
    case EMULATED_MIN_INT:
        return sx < sy ? x : y;
    case EMULATED_MAX_UNSIGNED:
        return x > y ? x : y;
    case EMULATED_MIN_UNSIGNED:
        return x < y ? x : y;
    default:
        return a | b;
    }
}

/* The lane that `lane` reads from: its own where CUDA says so. */
static unsigned shuffle_source(const struct thread *t, unsigned lane)
{
    const unsigned width = static_cast<unsigned>(t->width), first = lane & ~(width - 1), end = first + width;
    const unsigned by = static_cast<unsigned>(t->lane);
    unsigned from;
    switch (t->kind) {
    case EMULATED_SHFL:
        return first + (by & (width - 1));
    case EMULATED_SHFL_UP:
        return lane < first + by ? lane : lane - by;
    case EMULATED_SHFL_DOWN:
        from = lane + by;
        return from < end ? from : lane;
    default: /* reading from an earlier group is fine */
        from = lane ^ by;
        return from < end ? from : lane;
    }
}

static void shuffle(struct thread *lanes, unsigned group)
{
    for (unsigned rest = group; rest; rest &= rest - 1) {
        const unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
        const unsigned from = shuffle_source(&lanes[lane], lane);
        /* CUDA does not say what a lane that takes no part gives */
        lanes[lane].result = group >> from & 1 ? lanes[from].value : ~UINT64_C(0);
    }
}

static void multiply(struct thread *lanes)
{
    float *d[WARP];
    const uint32_t *a[WARP], *b[WARP];
    for (unsigned i = 0; i < WARP; i++) {
        const void *const *registers = reinterpret_cast<const void *const *>(lanes[i].value);
        d[i] = static_cast<float *>(const_cast<void *>(registers[0]));
        a[i] = static_cast<const uint32_t *>(registers[1]);
        b[i] = static_cast<const uint32_t *>(registers[2]);
    }
    mma(d, a, b);
}

static void collective_compute(struct thread *lanes, const struct thread *t, unsigned group)
{
    const enum emulated_collective kind = t->kind;
    uint64_t all = lanes[__builtin_ctz(group)].value, every = 1, any = 0, ballot = 0;
    if (kind == EMULATED_SYNCWARP) {
        return;
    }
    if (kind >= EMULATED_SHFL && kind <= EMULATED_SHFL_XOR) {
        shuffle(lanes, group);
        return;
    }
    if (kind == EMULATED_MMA) {
        multiply(lanes);
        return;
    }
    for (unsigned rest = group; rest; rest &= rest - 1) {
        const unsigned lane = static_cast<unsigned>(__builtin_ctz(rest));
        const uint64_t value = lanes[lane].value;
        every &= value;
        any |= value;
        ballot |= (value & 1) << lane;
        all = rest == group ? value : reduced(all, value, kind);
    }
    const uint64_t result = kind == EMULATED_BALLOT ? ballot
                            : kind == EMULATED_ANY  ? any
                            : kind == EMULATED_ALL  ? every
                                                    : all;
    for (unsigned rest = group; rest; rest &= rest - 1) {
        lanes[__builtin_ctz(rest)].result = result;
    }
}

/* All lanes of the group are here: they must have come for the same. */
static void collective_done(struct machine *m, struct thread *t, unsigned group)
{
    struct warp *w = warp_of(m, t);
    struct thread *lanes = &m->threads[t->number - lane_of(t)];
    for (unsigned rest = group; rest; rest &= rest - 1) {
        struct thread *other = &lanes[__builtin_ctz(rest)];
        if (other->kind != t->kind || other->mask != t->mask) {
            slip("mismatched warp collectives: lane %u is in %s with the mask %#x, lane %u in %s with %#x", lane_of(t),
                 name_of(t->kind), t->mask, lane_of(other), name_of(other->kind), other->mask);
        }
        other->state = THREAD_READY;
    }
    collective_compute(lanes, t, group);
    w->collecting &= ~group;
    w->ready |= group;
    checker_collective(w, group);
}

static struct machine *machine_of_kernel(const char *what)
{
    if (!emulated_here) {
        slip("%s outside of a kernel", what);
    }
    return machine_here;
}

} // namespace emulated

using namespace emulated;

uint64_t emulated_collective(enum emulated_collective kind, unsigned mask, uint64_t value, int lane, int width)
{
    struct machine *m = machine_of_kernel(name_of(kind));
    struct thread *t = thread_here();
    struct warp *w = warp_of(m, t);
    const unsigned bit = 1U << lane_of(t);
    if (!(mask & bit)) {
        slip("%s: lane %u is not in the mask %#x", name_of(kind), lane_of(t), mask);
    }
    if (width < 1 || width > WARP || (width & (width - 1))) {
        slip("%s: a width of %d", name_of(kind), width);
    }
    t->kind = kind;
    t->mask = mask;
    t->value = value;
    t->lane = lane;
    t->width = width;
    w->collecting |= bit;
    w->ready &= ~bit;
    if (collective_ready(w, mask)) {
        collective_done(m, t, mask & w->live);
    } else {
        t->state = THREAD_IN_COLLECTIVE;
        fiber_leave(m, thread_next(m, t->number / WARP));
    }
    return t->result;
}

void emulated_syncthreads(const char *file, int line)
{
    struct machine *m = machine_of_kernel("__syncthreads");
    struct thread *t = thread_here();
    t->state = THREAD_AT_BARRIER;
    t->file = file;
    t->line = line;
    m->at_barrier++;
    warp_of(m, t)->ready &= ~(1U << lane_of(t));
    fiber_leave(m, thread_next(m, t->number / WARP));
}

cudaError_t cudaFuncSetAttribute(const void *function, enum cudaFuncAttribute attribute, int value)
{
    if (environment()->failure != cudaSuccess) {
        return failed(environment()->failure);
    }
    if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) {
        return attribute == cudaFuncAttributePreferredSharedMemoryCarveout ? cudaSuccess
                                                                           : failed(cudaErrorInvalidValue);
    }
    if (value < 0 || value > SHARED_MAX) {
        return failed(cudaErrorInvalidValue);
    }
    std::lock_guard<std::mutex> lock(allowances_lock);
    allowances[{function, device_current()}] = static_cast<size_t>(value);
    return cudaSuccess;
}

void emulated_threadfence(void)
{
    machine_of_kernel("__threadfence")->fenced = true;
}

void emulated_trap(void)
{
    slip("__trap");
}

unsigned char *emulated_shared_memory(void)
{
    return machine_of_kernel("shared memory")->shared;
}

void emulated_mma_m16n8k16_bf16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    const void *registers[3] = {d, a, b};
    if (machine_of_kernel("mma") && warp_of(machine_here, thread_here())->live != ~0U) {
        slip("mma in a warp of which some threads are missing or have finished");
    }
    emulated_collective(EMULATED_MMA, ~0U, reinterpret_cast<uintptr_t>(registers), 0, WARP);
}
