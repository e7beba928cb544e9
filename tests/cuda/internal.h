/* What the files of the emulated CUDA runtime share. C-like C++ without exceptions.
 *
 * Threads: a device's table of allocations has a lock; streams, events and NCCL's cliques share one (stream.cc); a host
 * thread's machine, which runs kernels, is its own. Work of a stream runs outside of the lock, in whichever host thread
 * needs it first. EMULATED_CHECKED is defined in the build with the checker: checker.cc is empty without it. */
#ifndef EMULATED_INTERNAL_H
#define EMULATED_INTERNAL_H

#include <stdint.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATED_ASAN 1
#else
#define EMULATED_ASAN 0
#define ASAN_POISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(start, bytes) ((void)(start), (void)(bytes))
#endif

#if defined(EMULATED_CHECKED)
#define EMULATED_CHECKER 1
#else
#define EMULATED_CHECKER 0
#endif

namespace emulated
{

enum {
    WARP = 32,
    BLOCK_THREADS = 1024,
    DEVICES_MAX = 16,
    SHARED_MAX = 227 * 1024,
    SHARED_DEFAULT = 48 * 1024,
    MEMORY_ALIGNMENT = 256,
    PAGE = 4096,
    UNWRITTEN = 0xFF, /* what fresh memory is filled with: NaN in every format */
};

#define DEVICE_ADDRESSES ((size_t)1 << 38) /* bytes of addresses of a device: none is handed out twice */

/* Our own caller's mistake: one line that says which, and the end of the process. */
[[noreturn]] void slip(const char *format, ...) __attribute__((format(printf, 1, 2)));

static constexpr size_t rounded(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* ---- device.cc ---- */

struct settings {
    cudaError_t failure; /* of every call: no driver, no device */
    int devices;
    size_t memory;
    bool late, reverse;
};

const struct settings *environment();
cudaError_t failed(cudaError_t error); /* remembers it for cudaGetLastError */
int device_current();

/* ---- memory.cc ---- */

enum access { ACCESS_READ = 1, ACCESS_WRITE = 2, ACCESS_ATOMIC = 4 };

extern char *addresses; /* of all devices, one after the other */
extern size_t addresses_bytes;
extern char *shadow;      /* with the checker: what is known of each byte of `addresses` */
extern uint64_t *writers; /* with the checker: who wrote each 4 bytes of them last, as checker.cc packs it */

enum shadow_state { SHADOW_NONE, SHADOW_UNWRITTEN, SHADOW_WRITTEN };

void memory_open(int devices, size_t bytes);
int memory_device(const void *p); /* -1: host memory */
/* Memory of the device that may be used so: else a slip. `what` is the call and the argument. */
void memory_check(const void *p, size_t bytes, int device, unsigned access, const char *what);
bool memory_written(const void *p, size_t bytes); /* any of these bytes of a device; without the checker always true */
void memory_pointer_check(const void *p, int device, const char *what); /* into or just after an allocation */
void memory_host_check(const void *p, size_t bytes, const char *what);
void memory_describe(const void *p, char *text, size_t bytes); /* "12 bytes after the end of the 64 bytes at .." */

/* ---- kernel.cc and fiber.cc ---- */

struct fiber;

enum thread_state { THREAD_READY, THREAD_AT_BARRIER, THREAD_IN_COLLECTIVE, THREAD_FINISHED };

struct thread : emulated_thread {
    struct fiber *fiber; /* NULL until it runs, and after it */
    unsigned number;
    enum thread_state state;
    /* the barrier or collective that it waits in */
    const char *file;
    int line;
    enum emulated_collective kind;
    unsigned mask;
    int lane, width;
    uint64_t value, result;
};

struct warp {
    unsigned live, ready, collecting; /* masks of lanes */
    uint32_t clock[WARP][WARP];       /* checker: what each lane knows of each other one's time */
};

/* What runs kernels in one host thread. */
struct machine {
    struct thread threads[BLOCK_THREADS];
    struct warp warps[BLOCK_THREADS / WARP];
    struct emulated_place place;
    const struct emulated_kernel *kernel;
    int device;
    bool reverse;
    unsigned threads_count, warps_count, live, at_barrier;
    unsigned char *shared, *shared_pages; /* the block's dynamic shared memory, at the end of SHARED_MAX bytes */
    size_t shared_bytes;
    uint32_t launch, block_number; /* checker: which kernel of all, and which of its blocks */
    bool fenced;                   /* checker: the kernel had a __threadfence: its blocks may speak to each other */
    uint32_t epoch, block_epoch;   /* checker: counts barriers, and its value when the block began */
    struct shared_cell *cells;     /* checker: [SHARED_MAX], of bytes */
    uint32_t *split;               /* checker: [SHARED_MAX / 4], of words: the block that told its bytes apart */
    struct fiber *fibers, *parked, *host; /* all, those that wait for a thread, and the host thread's own */
    size_t fibers_count;
    void *signal_stack;
};

#define EMULATED_TLS __attribute__((tls_model("initial-exec"))) /* without a call, in a shared library too */

extern __thread struct machine *machine_here EMULATED_TLS; /* NULL: this host thread has run no kernel */
extern __thread const char *stack_low EMULATED_TLS, *stack_high EMULATED_TLS; /* of the fiber that runs */

static inline struct thread *thread_here()
{
    return static_cast<struct thread *>(emulated_here);
}

void kernel_run(const struct emulated_kernel *kernel, int device, dim3 grid, dim3 block, size_t shared_bytes);
cudaError_t kernel_check(const struct emulated_kernel *kernel, int device, dim3 grid, dim3 block, size_t shared_bytes);
/* The next thread that can run, once barriers that are complete have opened; NULL: the block is done. */
struct thread *thread_next(struct machine *m, unsigned warp);
void thread_run(struct machine *m, struct thread *t); /* on its fiber; returns when it has finished */
void mma(float *const d[WARP], const uint32_t *const a[WARP], const uint32_t *const b[WARP]);

void fibers_open(struct machine *m);
void fibers_close(struct machine *m);
void fiber_run(struct machine *m);                      /* from the host: until the block is done */
void fiber_leave(struct machine *m, struct thread *to); /* the running thread waits, another runs */

/* ---- stream.cc ---- */

struct stream;

struct ticket { /* a place in a stream's order */
    struct stream *stream;
    uint64_t number;
};

struct work {
    std::function<void()> run;
    std::vector<struct ticket> after; /* of other streams, done before it runs */
};

extern std::mutex streams_lock;
extern std::condition_variable streams_changed;

struct stream *stream_of(cudaStream_t handle); /* the current device's default stream for NULL */
int stream_device(const struct stream *s);
struct ticket stream_queue_locked(struct stream *s, std::function<void()> run); /* without running it */
void stream_submit(struct stream *s, std::function<void()> run); /* runs it at once unless work is late */
void ticket_wait(struct ticket t);                               /* runs what is needed; never under the lock */
void device_wait(int device);

/* ---- checker.cc ---- */

/* An access of device code, or of the .cu file's host code, to any memory. */
void checker_access(const void *p, size_t bytes, unsigned access);
void checker_kernel_begin(struct machine *m);
void checker_memory_gone(const char *start, size_t bytes); /* freed: what was known of it */
void checker_barrier(struct machine *m);
void checker_collective(struct warp *w, unsigned lanes);

} // namespace emulated

#endif
