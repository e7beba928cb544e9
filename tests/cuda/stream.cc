// Streams, events and copies. A stream is a queue of work. Whoever needs a place in it done runs what is before it, or
// waits for the thread that does: at once after each call, or with EMULATED_LATE only when somebody synchronises. Work
// that must follow another stream's first sees to that; since places are handed out in order, nothing waits in a ring.
#include <stdlib.h>
#include <time.h>

#include <set>

#include "internal.h"

namespace emulated
{

enum { LATE_QUERIES = 4 };

struct stream {
    int device;
    bool blocking; /* in order with the default stream */
    bool open;
    bool running;          /* some thread runs the work at the front */
    uint64_t queued, done; /* places handed out, and done */
    std::deque<struct work> waiting;
};

struct event {
    int device;
    bool timing, open;
    struct ticket place;        /* of its last record; no stream: never recorded */
    std::shared_ptr<double> ms; /* when that record ran */
};

/* Under the lock: the queues, and the lists of what was ever opened, which stays so that a late use can be told. */
std::mutex streams_lock;
std::condition_variable streams_changed;
static auto &streams = *new std::vector<struct stream *>(); /* never destroyed: threads may outlive main() */
static struct stream *defaults[DEVICES_MAX];
static auto &events = *new std::set<const struct event *>();
static std::mutex pinned_lock;
static auto &pinned = *new std::set<void *>();

// ---- queues ----

static struct stream *stream_new(int device, bool blocking)
{
    struct stream *s = new struct stream();
    s->device = device;
    s->blocking = blocking;
    s->open = true;
    streams.push_back(s);
    return s;
}

static struct stream *default_of(int device)
{
    std::lock_guard<std::mutex> lock(streams_lock);
    if (!defaults[device]) {
        defaults[device] = stream_new(device, true);
    }
    return defaults[device];
}

struct stream *stream_of(cudaStream_t handle)
{
    if (!handle) {
        return default_of(device_current());
    }
    struct stream *s = reinterpret_cast<struct stream *>(handle);
    std::lock_guard<std::mutex> lock(streams_lock);
    for (const struct stream *known : streams) {
        if (known == s && s->open) {
            return s;
        }
    }
    slip("a stream that was destroyed, or never was one (%p)", static_cast<void *>(handle));
}

int stream_device(const struct stream *s)
{
    return s->device;
}

/* The default stream is in order with all blocking ones, both ways. */
static void order_defaults(const struct stream *s, struct work *w)
{
    const struct stream *of_device = defaults[s->device];
    if (s == of_device) {
        for (struct stream *other : streams) {
            if (other != s && other->device == s->device && other->blocking && other->done < other->queued) {
                w->after.push_back({other, other->queued});
            }
        }
    } else if (s->blocking && of_device && of_device->done < of_device->queued) {
        w->after.push_back({defaults[s->device], of_device->queued});
    }
}

struct ticket stream_queue_locked(struct stream *s, std::function<void()> run)
{
    struct work w = {std::move(run), {}};
    order_defaults(s, &w);
    s->waiting.push_back(std::move(w));
    return {s, ++s->queued};
}

static struct ticket stream_queue(struct stream *s, std::function<void()> run)
{
    std::lock_guard<std::mutex> lock(streams_lock);
    return stream_queue_locked(s, std::move(run));
}

void stream_submit(struct stream *s, std::function<void()> run)
{
    const struct ticket place = stream_queue(s, std::move(run));
    if (!environment()->late) {
        ticket_wait(place);
    }
}

/* The stream's next piece of work, with the lock given up meanwhile. */
static void work_run(struct stream *s, std::unique_lock<std::mutex> &lock)
{
    struct work w = std::move(s->waiting.front());
    s->waiting.pop_front();
    s->running = true;
    lock.unlock();
    for (const struct ticket &t : w.after) {
        ticket_wait(t);
    }
    w.run();
    lock.lock();
    s->running = false;
    s->done++;
    streams_changed.notify_all();
}

void ticket_wait(struct ticket t)
{
    std::unique_lock<std::mutex> lock(streams_lock);
    while (t.stream && t.stream->done < t.number) {
        if (t.stream->running) {
            streams_changed.wait(lock);
        } else {
            work_run(t.stream, lock);
        }
    }
}

static struct ticket last_of(struct stream *s)
{
    std::lock_guard<std::mutex> lock(streams_lock);
    return {s, s->queued};
}

void device_wait(int device)
{
    std::vector<struct ticket> all;
    {
        std::lock_guard<std::mutex> lock(streams_lock);
        for (struct stream *s : streams) {
            if (s->device == device) {
                all.push_back({s, s->queued});
            }
        }
    }
    for (const struct ticket &t : all) {
        ticket_wait(t);
    }
}

/* Who asks again and again gets on too: each answer runs one piece of work. */
static bool ticket_done(struct ticket t)
{
    std::unique_lock<std::mutex> lock(streams_lock);
    const bool done = !t.stream || t.stream->done >= t.number;
    if (!done && !t.stream->running) {
        work_run(t.stream, lock);
    }
    return done;
}

static struct event *event_of(cudaEvent_t handle)
{
    struct event *e = reinterpret_cast<struct event *>(handle);
    std::lock_guard<std::mutex> lock(streams_lock);
    if (!events.count(e) || !e->open) {
        slip("an event that was destroyed, or never was one (%p)", static_cast<void *>(handle));
    }
    return e;
}

static struct ticket place_of(const struct event *e)
{
    std::lock_guard<std::mutex> lock(streams_lock);
    return e->place;
}

static double now_ms()
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6;
}

// ---- copies ----

static enum cudaMemcpyKind kind_of(const void *to, const void *from, enum cudaMemcpyKind kind)
{
    if (kind != cudaMemcpyDefault) {
        return kind;
    }
    const int into = memory_device(to) >= 0, out_of = memory_device(from) >= 0;
    return static_cast<enum cudaMemcpyKind>(2 * out_of + into); /* the enumeration's own order */
}

/* Runs in the stream, when its turn has come. */
static void copy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, int to_device, int from_device)
{
    if (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice) {
        memory_check(from, bytes, from_device, ACCESS_READ, "the source of a copy");
    } else {
        memory_host_check(from, bytes, "the source of a copy");
    }
    if (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) {
        memory_check(to, bytes, to_device, ACCESS_WRITE, "the destination of a copy");
    } else {
        memory_host_check(to, bytes, "the destination of a copy");
    }
    if (bytes) {
        memmove(to, from, bytes);
    }
}

static cudaError_t usable()
{
    return environment()->failure == cudaSuccess ? cudaSuccess : failed(environment()->failure);
}

} // namespace emulated

using namespace emulated;

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind, cudaStream_t stream)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDefault) {
        return failed(cudaErrorInvalidMemcpyDirection);
    }
    struct stream *s = stream_of(stream);
    const enum cudaMemcpyKind known = kind_of(to, from, kind);
    stream_submit(s, [=] { copy(to, from, bytes, known, s->device, s->device); });
    return cudaSuccess;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t bytes, enum cudaMemcpyKind kind)
{
    const cudaError_t error = cudaMemcpyAsync(to, from, bytes, kind, nullptr);
    if (error == cudaSuccess && kind_of(to, from, kind) != cudaMemcpyDeviceToDevice) {
        ticket_wait(last_of(stream_of(nullptr)));
    }
    return error;
}

cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t bytes,
                                cudaStream_t stream)
{
    const int devices = environment()->devices;
    if (usable() != cudaSuccess) {
        return usable();
    }
    if (to_device < 0 || to_device >= devices || from_device < 0 || from_device >= devices) {
        return failed(cudaErrorInvalidDevice);
    }
    stream_submit(stream_of(stream), [=] { copy(to, from, bytes, cudaMemcpyDeviceToDevice, to_device, from_device); });
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void *memory, int value, size_t bytes, cudaStream_t stream)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    struct stream *s = stream_of(stream);
    stream_submit(s, [=] {
        memory_check(memory, bytes, s->device, ACCESS_WRITE, "cudaMemset");
        memset(memory, value, bytes);
    });
    return cudaSuccess;
}

cudaError_t cudaMemset(void *memory, int value, size_t bytes)
{
    return cudaMemsetAsync(memory, value, bytes, nullptr);
}

cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned flags)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    if (!out || flags & ~7U) {
        return failed(cudaErrorInvalidValue);
    }
    *out = nullptr;
    if (!bytes) {
        return cudaSuccess;
    }
    if (posix_memalign(out, MEMORY_ALIGNMENT, bytes) != 0) {
        return failed(cudaErrorMemoryAllocation);
    }
    memset(*out, UNWRITTEN, bytes);
    std::lock_guard<std::mutex> lock(pinned_lock);
    pinned.insert(*out);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *memory)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    std::lock_guard<std::mutex> lock(pinned_lock);
    if (memory && !pinned.erase(memory)) {
        slip("cudaFreeHost: %p was not handed out by cudaHostAlloc, or was freed before", memory);
    }
    free(memory);
    return cudaSuccess;
}

// ---- streams ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    if (!out || flags & ~1U) {
        return failed(cudaErrorInvalidValue);
    }
    std::lock_guard<std::mutex> lock(streams_lock);
    *out = reinterpret_cast<cudaStream_t>(stream_new(device_current(), !(flags & cudaStreamNonBlocking)));
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *out)
{
    return cudaStreamCreateWithFlags(out, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    if (!stream) {
        return failed(cudaErrorInvalidResourceHandle);
    }
    struct stream *s = stream_of(stream);
    ticket_wait(last_of(s));
    std::lock_guard<std::mutex> lock(streams_lock);
    s->open = false;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    ticket_wait(last_of(stream_of(stream)));
    return cudaSuccess;
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    const struct ticket last = last_of(stream_of(stream));
    static thread_local unsigned asked;
    if (environment()->late && ++asked % LATE_QUERIES == 0) { /* who asks again and again sees it done in the end */
        ticket_wait(last);
    }
    return ticket_done(last) ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    if (flags) {
        return failed(cudaErrorInvalidValue);
    }
    const struct ticket place = place_of(event_of(event));
    stream_submit(stream_of(stream), [place] { ticket_wait(place); });
    return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, void (*function)(void *), void *argument)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    stream_submit(stream_of(stream), [=] { function(argument); });
    return cudaSuccess;
}

cudaError_t emulated_kernel_launch(const struct emulated_kernel *kernel, dim3 grid, dim3 block, size_t shared_bytes,
                                   cudaStream_t stream)
{
    cudaError_t error = usable();
    if (error == cudaSuccess) {
        struct stream *s = stream_of(stream);
        error = s->device == device_current() ? kernel_check(kernel, s->device, grid, block, shared_bytes)
                                              : cudaErrorInvalidResourceHandle;
        if (error == cudaSuccess) {
            const struct emulated_kernel k = *kernel;
            stream_submit(s, [=] {
                kernel_run(&k, s->device, grid, block, shared_bytes);
                k.drop(k.call);
            });
            return cudaSuccess;
        }
    }
    kernel->drop(kernel->call);
    return failed(error);
}

// ---- events ----

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    if (!out || flags & ~3U) {
        return failed(cudaErrorInvalidValue);
    }
    struct event *e = new struct event();
    e->device = device_current();
    e->timing = !(flags & cudaEventDisableTiming);
    e->open = true;
    std::lock_guard<std::mutex> lock(streams_lock);
    events.insert(e);
    *out = reinterpret_cast<cudaEvent_t>(e);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *out)
{
    return cudaEventCreateWithFlags(out, cudaEventDefault);
}

/* What waits for it holds its place, not the event. */
cudaError_t cudaEventDestroy(cudaEvent_t event)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    struct event *e = event_of(event);
    std::lock_guard<std::mutex> lock(streams_lock);
    e->open = false;
    e->ms.reset();
    return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    struct event *e = event_of(event);
    struct stream *s = stream_of(stream);
    if (e->device != s->device) {
        return failed(cudaErrorInvalidResourceHandle);
    }
    auto ms = std::make_shared<double>(0);
    const struct ticket place = stream_queue(s, [ms] { *ms = now_ms(); });
    {
        std::lock_guard<std::mutex> lock(streams_lock);
        e->place = place;
        e->ms = ms;
    }
    if (!environment()->late) {
        ticket_wait(place);
    }
    return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    ticket_wait(place_of(event_of(event)));
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t event)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    return ticket_done(place_of(event_of(event))) ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t start, cudaEvent_t end)
{
    if (usable() != cudaSuccess) {
        return usable();
    }
    const struct event *from = event_of(start), *to = event_of(end);
    const struct ticket first = place_of(from), second = place_of(to);
    if (!from->timing || !to->timing || !first.stream || !second.stream || from->device != to->device) {
        return failed(cudaErrorInvalidResourceHandle);
    }
    std::lock_guard<std::mutex> lock(streams_lock);
    if (first.stream->done < first.number || second.stream->done < second.number) {
        return cudaErrorNotReady;
    }
    *ms = static_cast<float>(*to->ms - *from->ms);
    return cudaSuccess;
}
