// Device memory: each device has addresses of its own, of which none is handed out twice. An allocation lies at the end
// of whole pages and a page that nobody may touch follows it. What is around it within those pages is filled, and seen
// to be as it was when the memory is freed. Freed pages may not be touched again.
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>

#include "internal.h"

namespace emulated
{

enum { FENCE = 0xFE }; /* the bytes around an allocation */

struct allocation {
    char *start, *pages;
    size_t bytes, span; /* of the pages, without the one after them */
    bool freed;
};

struct device {
    std::mutex lock;
    std::vector<struct allocation> allocations; /* by address; they stay when freed */
    char *base;
    size_t next, taken, limit;
};

char *addresses, *shadow;
uint64_t *writers;
size_t addresses_bytes;
static struct device *const devices = new struct device[DEVICES_MAX]();
static struct sigaction fault_before;

// ---- reports ----

static void where(char *text, size_t bytes)
{
    text[0] = 0;
    if (emulated_here) {
        const uint3 b = blockIdx, t = threadIdx;
        snprintf(text, bytes, "kernel %s, block (%u, %u, %u), thread (%u, %u, %u): ", machine_here->kernel->name, b.x,
                 b.y, b.z, t.x, t.y, t.z);
    } else if (machine_here && machine_here->kernel) {
        snprintf(text, bytes, "kernel %s: ", machine_here->kernel->name);
    }
}

void slip(const char *format, ...)
{
    char place[256], text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    where(place, sizeof place);
    fprintf(stderr, "emulated CUDA: %s%s\n", place, text);
    abort();
}

/* A page that may not be touched was: in the addresses of devices, or after the block's shared memory. */
static void fault(int number, siginfo_t *info, void *context)
{
    const char *p = static_cast<const char *>(info->si_addr);
    const struct machine *m = machine_here;
    if (memory_device(p) >= 0) {
        char text[256];
        memory_describe(p, text, sizeof text);
        slip("%p may not be touched: %s", static_cast<const void *>(p), text);
    }
    if (m && emulated_here &&
        reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(m->shared_pages) < SHARED_MAX + (size_t)PAGE) {
        slip("out of bounds of the block's %zu bytes of shared memory", m->shared_bytes);
    }
    if (emulated_here && p >= stack_low - PAGE && p < stack_low) {
        slip("a CUDA thread's stack is used up");
    }
    if (emulated_here) {
        slip("%p is no memory that a kernel may touch", static_cast<const void *>(p));
    }
    if (fault_before.sa_flags & SA_SIGINFO) {
        fault_before.sa_sigaction(number, info, context);
        return;
    }
    signal(SIGSEGV, SIG_DFL);
}

#if EMULATED_ASAN
/* ASan has said what; this says where. */
static void asan_said(const char *report)
{
    char place[256];
    (void)report;
    where(place, sizeof place);
    fprintf(stderr, "emulated CUDA: %ssee AddressSanitizer's report\n", place);
}
#endif

// ---- what a pointer is ----

static void *reserve(size_t bytes, int protection)
{
    void *p = mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
        slip("no room for %zu bytes of addresses", bytes);
    }
    return p;
}

void memory_open(int count, size_t bytes)
{
    struct sigaction action = {};
    action.sa_sigaction = fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &action, &fault_before);
#if EMULATED_ASAN
    __asan_set_error_report_callback(asan_said);
#endif
    addresses_bytes = static_cast<size_t>(count) * DEVICE_ADDRESSES;
    addresses = static_cast<char *>(reserve(addresses_bytes, PROT_NONE));
    if (EMULATED_CHECKER) {
        shadow = static_cast<char *>(reserve(addresses_bytes, PROT_READ | PROT_WRITE));
        writers = static_cast<uint64_t *>(reserve(addresses_bytes / 4 * sizeof *writers, PROT_READ | PROT_WRITE));
    }
    for (int i = 0; i < count; i++) {
        devices[i].base = addresses + static_cast<size_t>(i) * DEVICE_ADDRESSES;
        devices[i].limit = bytes;
    }
}

int memory_device(const void *p)
{
    const size_t offset = reinterpret_cast<uintptr_t>(p) - reinterpret_cast<uintptr_t>(addresses);
    return addresses && offset < addresses_bytes ? static_cast<int>(offset / DEVICE_ADDRESSES) : -1;
}

/* The last allocation that starts at p or before it, freed or not; under the device's lock. */
static struct allocation *before(struct device *d, const void *p)
{
    auto after = std::upper_bound(d->allocations.begin(), d->allocations.end(), static_cast<const char *>(p),
                                  [](const char *a, const struct allocation &b) { return a < b.start; });
    return after == d->allocations.begin() ? nullptr : &*--after;
}

void memory_describe(const void *p, char *text, size_t bytes)
{
    const int device = memory_device(p);
    if (device < 0) {
        snprintf(text, bytes, "it is not memory of a device");
        return;
    }
    struct device *d = &devices[device];
    std::unique_lock<std::mutex> lock(d->lock, std::try_to_lock); /* a fault may have come under it */
    const struct allocation *a = before(d, p), *end = d->allocations.data() + d->allocations.size();
    const struct allocation *next = a ? a + 1 : d->allocations.data();
    const char *at = static_cast<const char *>(p);
    if (a && at < a->start + a->bytes) {
        snprintf(text, bytes, "%s, byte %zu of %zu of device %d", a->freed ? "it was freed" : "it is allocated",
                 static_cast<size_t>(at - a->start), a->bytes, device);
    } else if (next < end && at >= next->pages) {
        snprintf(text, bytes, "out of bounds, %zu bytes before %zu of device %d", static_cast<size_t>(next->start - at),
                 next->bytes, device);
    } else if (a) {
        snprintf(text, bytes, "out of bounds, %zu bytes after the end of %zu of device %d%s",
                 static_cast<size_t>(at - a->start) - a->bytes, a->bytes, device, a->freed ? ", freed" : "");
    } else {
        snprintf(text, bytes, "out of bounds, device %d has handed out nothing", device);
    }
}

[[noreturn]] static void not_usable(const void *p, const char *what)
{
    char text[256];
    memory_describe(p, text, sizeof text);
    slip("%s: %p: %s", what, p, text);
}

static struct allocation usable(const void *p, int device, const char *what)
{
    const int owner = memory_device(p);
    if (owner < 0) {
        slip("%s: a host pointer (%p) where memory of device %d is needed", what, p, device);
    }
    if (owner != device) {
        slip("%s: memory of device %d where device %d's is needed (%p)", what, owner, device, p);
    }
    struct allocation found = {};
    {
        std::lock_guard<std::mutex> lock(devices[device].lock);
        const struct allocation *a = before(&devices[device], p);
        found = a ? *a : found;
    }
    if (!found.start || found.freed || static_cast<const char *>(p) > found.start + found.bytes) {
        not_usable(p, what);
    }
    return found;
}

bool memory_written(const void *p, size_t bytes)
{
    if (!EMULATED_CHECKER || memory_device(p) < 0) {
        return true;
    }
    return memchr(shadow + (static_cast<const char *>(p) - addresses), SHADOW_WRITTEN, bytes) != NULL;
}

void memory_pointer_check(const void *p, int device, const char *what)
{
    usable(p, device, what);
}

void memory_check(const void *p, size_t bytes, int device, unsigned access, const char *what)
{
    if (!bytes) {
        return;
    }
    const struct allocation a = usable(p, device, what);
    const size_t left = static_cast<size_t>(a.start + a.bytes - static_cast<const char *>(p));
    if (bytes > left) {
        slip("%s: %zu bytes at %p, out of bounds: %zu are left of %zu", what, bytes, p, left, a.bytes);
    }
    if (!EMULATED_CHECKER) {
        return;
    }
    char *state = shadow + (static_cast<const char *>(p) - addresses);
    const char *unwritten = static_cast<const char *>(memchr(state, SHADOW_UNWRITTEN, bytes));
    if (access & ACCESS_READ && unwritten) {
        slip("%s: byte %zu of %zu was never written", what, static_cast<size_t>(unwritten - state), bytes);
    }
    if (access & ACCESS_WRITE) {
        memset(state, SHADOW_WRITTEN, bytes);
    }
}

void memory_host_check(const void *p, size_t bytes, const char *what)
{
    if (bytes && (!p || memory_device(p) >= 0)) {
        slip("%s: %p where host memory is needed", what, p);
    }
}

// ---- taking and giving ----

/* Poisoned for ASan, so only looked at and filled while it is not. */
static bool fences(const struct allocation *a, bool fill)
{
    char *ends[2][2] = {{a->pages, a->start}, {a->start + a->bytes, a->pages + a->span}};
    bool whole = true;
    for (auto &end : ends) {
        const size_t bytes = static_cast<size_t>(end[1] - end[0]);
        ASAN_UNPOISON_MEMORY_REGION(end[0], bytes);
        if (fill) {
            memset(end[0], FENCE, bytes);
        }
        for (size_t i = 0; i < bytes; i++) {
            whole = whole && static_cast<unsigned char>(end[0][i]) == FENCE;
        }
        ASAN_POISON_MEMORY_REGION(end[0], bytes);
    }
    return whole;
}

static cudaError_t take(struct device *d, size_t bytes, void **out)
{
    std::lock_guard<std::mutex> lock(d->lock);
    const size_t used = rounded(bytes, MEMORY_ALIGNMENT), span = rounded(bytes, PAGE);
    if (bytes > d->limit || used > d->limit - d->taken) {
        return cudaErrorMemoryAllocation;
    }
    if (span + PAGE > DEVICE_ADDRESSES - d->next) {
        slip("a device's addresses are used up");
    }
    struct allocation a = {};
    a.pages = d->base + d->next;
    a.span = span;
    a.bytes = bytes;
    a.start = a.pages + span - used;
    if (mprotect(a.pages, span, PROT_READ | PROT_WRITE) != 0) {
        return cudaErrorMemoryAllocation;
    }
    memset(a.start, UNWRITTEN, bytes);
    fences(&a, true);
    if (EMULATED_CHECKER) {
        memset(shadow + (a.start - addresses), SHADOW_UNWRITTEN, bytes);
    }
    d->next += span + PAGE;
    d->taken += used;
    d->allocations.push_back(a);
    *out = a.start;
    return cudaSuccess;
}

static void give(struct device *d, void *memory)
{
    std::lock_guard<std::mutex> lock(d->lock);
    struct allocation *a = before(d, memory);
    if (!a || a->start != memory) {
        slip("cudaFree: %p was not handed out by cudaMalloc", memory);
    }
    if (a->freed) {
        slip("cudaFree: %p was freed before", memory);
    }
    if (!fences(a, false)) {
        slip("cudaFree: something wrote out of bounds of the %zu bytes at %p", a->bytes, memory);
    }
    a->freed = true;
    d->taken -= rounded(a->bytes, MEMORY_ALIGNMENT);
    ASAN_POISON_MEMORY_REGION(a->pages, a->span);
    void *gone = mmap(a->pages, a->span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    if (gone == MAP_FAILED) {
        slip("mmap failed");
    }
    checker_memory_gone(a->start, a->bytes);
}

} // namespace emulated

using namespace emulated;

cudaError_t cudaMalloc(void **out, size_t bytes)
{
    if (environment()->failure != cudaSuccess) {
        return failed(environment()->failure);
    }
    if (!out) {
        return failed(cudaErrorInvalidValue);
    }
    *out = nullptr;
    return bytes ? failed(take(&devices[device_current()], bytes, out)) : cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    if (environment()->failure != cudaSuccess) {
        return failed(environment()->failure);
    }
    if (memory) {
        const int device = memory_device(memory);
        if (device < 0) {
            slip("cudaFree: %p is not memory of a device", memory);
        }
        device_wait(device);
        give(&devices[device], memory);
    }
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes)
{
    if (environment()->failure != cudaSuccess) {
        return failed(environment()->failure);
    }
    struct device *d = &devices[device_current()];
    std::lock_guard<std::mutex> lock(d->lock);
    *free_bytes = d->limit - d->taken;
    *total_bytes = d->limit;
    return cudaSuccess;
}
