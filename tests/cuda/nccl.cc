// NCCL: ranks of a clique, in threads of this process or (collectives only) in others, meet by the number of their
// calls. What a rank calls within a group (or one call outside) is one piece of work of its stream; when it runs, it
// waits until the other ranks have called too, sees to what their streams do before it, and then one rank moves the
// data of all. Without EMULATED_LATE a call outside of a group returns when that is done. A rank that waits for a
// minute in vain is a slip.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <map>
#include <string>

#include "cuda_bf16.h"
#include "internal.h"
#include "nccl.h"
#include "room.h"

namespace emulated
{

enum operation { BROADCAST, ALL_GATHER, ALL_REDUCE, SEND, RECEIVE };

static const char *const names[] = {"ncclBroadcast", "ncclAllGather", "ncclAllReduce", "ncclSend", "ncclRecv"};

/* One rank's call. */
struct call {
    enum operation operation;
    const void *from;
    void *to;
    size_t count;
    ncclDataType_t type;
    ncclRedOp_t reduction;
    int peer; /* or root */
    struct ncclComm *comm;
    cudaStream_t stream;
    std::shared_ptr<struct meeting> meeting;
};

/* Where calls that belong together meet: all ranks' n-th collective, or one n-th send with its receive. */
struct meeting {
    std::vector<struct call> calls; /* by rank; of two ends: the send, the receive */
    std::vector<struct ticket> places;
    size_t come;
    uint64_t number; /* of a collective */
    bool moving, done;
};

struct clique {
    int ranks;
    size_t local, left; /* ranks in this process (0: not known yet), and how many are gone */
    bool aborted;
    struct room *room;  /* of a clique made by ncclCommInitRank */
    uint64_t exchanged; /* collectives done with other processes */
    std::vector<struct ncclComm *> comms;
    /* those that some have not come to yet: by pair, sender * ranks + receiver (-1: collectives), and number */
    std::map<std::pair<int, uint64_t>, std::shared_ptr<struct meeting>> meetings;
};

} // namespace emulated

using namespace emulated;

struct ncclComm {
    struct clique *clique;
    int rank, device;
    bool finalized;
    uint64_t collectives;
    std::vector<uint64_t> sent, received; /* by peer */
};

namespace emulated
{

/* All under streams_lock. */
static auto &cliques = *new std::map<std::string, struct clique *>(); /* by unique id */
static uint64_t unique_ids;
static thread_local int group_depth;
static thread_local std::vector<struct call> group_calls;
static thread_local std::vector<struct ncclComm *> group_joins;

static size_t bytes_of(ncclDataType_t type)
{
    switch (type) {
    case ncclInt8:
    case ncclUint8:
        return 1;
    case ncclBfloat16:
    case ncclFloat16:
        return 2;
    case ncclInt32:
    case ncclUint32:
    case ncclFloat32:
        return 4;
    case ncclInt64:
    case ncclUint64:
    case ncclFloat64:
        return 8;
    }
    return 0;
}

/* Waits for what another rank does; the thread holds streams_lock. */
template <typename Condition>
static void patience(std::unique_lock<std::mutex> &lock, const char *what, int rank, Condition condition)
{
    if (!streams_changed.wait_for(lock, std::chrono::seconds(PATIENCE_SECONDS), condition)) {
        slip("%s: rank %d has waited %d seconds for the other ranks", what, rank, (int)PATIENCE_SECONDS);
    }
}

// ---- moving the data ----

template <typename T, typename Read, typename Write>
static void reduce(const std::vector<struct call> &calls, Read read, Write write)
{
    const struct call *first = &calls[0];
    std::vector<T> sums(first->count);
    for (const struct call &c : calls) {
        for (size_t i = 0; i < c.count; i++) {
            const T x = read(c.from, i);
            sums[i] = &c == first                   ? x
                      : first->reduction == ncclSum ? static_cast<T>(sums[i] + x)
                                                    : (sums[i] < x ? x : sums[i]);
        }
    }
    for (const struct call &c : calls) {
        for (size_t i = 0; c.to && i < c.count; i++) {
            write(c.to, i, sums[i]);
        }
    }
}

template <typename T> static void reduce_plain(const std::vector<struct call> &calls)
{
    reduce<T>(
        calls, [](const void *p, size_t i) { return static_cast<const T *>(p)[i]; },
        [](void *p, size_t i, T x) { static_cast<T *>(p)[i] = x; });
}

static void all_reduce(const std::vector<struct call> &calls)
{
    switch (calls[0].type) {
    case ncclFloat32:
        return reduce_plain<float>(calls);
    case ncclInt32:
        return reduce_plain<int32_t>(calls);
    case ncclUint32:
        return reduce_plain<uint32_t>(calls);
    case ncclInt64:
        return reduce_plain<int64_t>(calls);
    case ncclUint64:
        return reduce_plain<uint64_t>(calls);
    default: /* bf16, summed in f32 */
        return reduce<float>(
            calls, [](const void *p, size_t i) { return __bfloat162float(static_cast<const __nv_bfloat16 *>(p)[i]); },
            [](void *p, size_t i, float x) { static_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16_rn(x); });
    }
}

static void buffers_check(const struct call *c, int ranks)
{
    const size_t bytes = c->count * bytes_of(c->type);
    const bool reads = c->operation != RECEIVE && (c->operation != BROADCAST || c->comm->rank == c->peer);
    if (reads) {
        memory_check(c->from, bytes, c->comm->device, ACCESS_READ, names[c->operation]);
    }
    if (c->operation != SEND) {
        const size_t parts = c->operation == ALL_GATHER ? static_cast<size_t>(ranks) : 1;
        memory_check(c->to, parts * bytes, c->comm->device, ACCESS_WRITE, names[c->operation]);
    }
}

static void move_data(const struct meeting *m, int ranks)
{
    const struct call *first = &m->calls[0];
    const size_t bytes = first->count * bytes_of(first->type);
    for (const struct call &c : m->calls) {
        buffers_check(&c, ranks);
    }
    if (!bytes) {
        return;
    }
    switch (first->operation) {
    case BROADCAST: {
        const struct call *root = &m->calls[static_cast<size_t>(first->peer)];
        const std::vector<char> data(static_cast<const char *>(root->from),
                                     static_cast<const char *>(root->from) + bytes);
        for (const struct call &c : m->calls) {
            memcpy(c.to, data.data(), bytes);
        }
        break;
    }
    case ALL_GATHER: {
        std::vector<char> data(m->calls.size() * bytes);
        for (size_t i = 0; i < m->calls.size(); i++) {
            memcpy(data.data() + i * bytes, m->calls[i].from, bytes);
        }
        for (const struct call &c : m->calls) {
            memcpy(c.to, data.data(), data.size());
        }
        break;
    }
    case ALL_REDUCE:
        all_reduce(m->calls);
        break;
    case SEND:
    case RECEIVE:
        memmove(m->calls[1].to, first->from, bytes);
        break;
    }
}

// ---- with other processes ----

static void chunk_put(struct room *room, const struct call *c, size_t offset, size_t bytes)
{
    if (c->operation != BROADCAST || c->comm->rank == c->peer) {
        memcpy(room_chunk(room, c->comm->rank), static_cast<const char *>(c->from) + offset, bytes);
    }
}

/* `bytes` at `offset` of each rank's `whole`. */
static void chunk_take(struct room *room, const std::vector<struct call> &calls, size_t offset, size_t bytes,
                       size_t whole)
{
    const int ranks = calls[0].comm->clique->ranks;
    std::vector<struct call> all(static_cast<size_t>(ranks), calls[0]);
    for (int r = 0; r < ranks; r++) {
        struct call *c = &all[static_cast<size_t>(r)];
        c->from = room_chunk(room, r);
        c->to = nullptr;
        c->count = bytes / bytes_of(c->type);
    }
    for (const struct call &c : calls) {
        char *to = static_cast<char *>(c.to) + offset;
        all[static_cast<size_t>(c.comm->rank)].to = to;
        if (c.operation == BROADCAST) {
            memcpy(to, room_chunk(room, c.peer), bytes);
        }
        for (int r = 0; c.operation == ALL_GATHER && r < ranks; r++) {
            memcpy(to + static_cast<size_t>(r) * whole, room_chunk(room, r), bytes);
        }
    }
    if (calls[0].operation == ALL_REDUCE) {
        all_reduce(all);
    }
}

static bool calls_compare(struct room *room, const std::vector<struct call> &calls)
{
    const char *what = names[calls[0].operation];
    for (const struct call &c : calls) {
        *room_call_of(room, c.comm->rank) = {c.operation, c.type, c.reduction, c.peer, c.count};
    }
    if (!room_meet(room, what)) {
        return false;
    }
    const struct room_call *a = room_call_of(room, 0);
    for (int r = 1; r < calls[0].comm->clique->ranks; r++) {
        const struct room_call *b = room_call_of(room, r);
        if (memcmp(a, b, sizeof *a) != 0) {
            slip("mismatched NCCL calls: rank 0 calls %s of %zu (type %d, operation %d, root %d), rank %d %s of %zu "
                 "(type %d, operation %d, root %d)",
                 names[a->operation], static_cast<size_t>(a->count), a->type, a->reduction, a->root, r,
                 names[b->operation], static_cast<size_t>(b->count), b->type, b->reduction, b->root);
        }
    }
    return room_meet(room, what);
}

/* false: some rank aborted. */
static bool exchange(struct room *room, const std::vector<struct call> &calls)
{
    const char *what = names[calls[0].operation];
    const size_t whole = calls[0].count * bytes_of(calls[0].type);
    for (const struct call &c : calls) {
        buffers_check(&c, c.comm->clique->ranks);
    }
    bool fine = calls_compare(room, calls);
    for (size_t offset = 0; fine && offset < whole; offset += ROOM_CHUNK) {
        const size_t bytes = whole - offset < ROOM_CHUNK ? whole - offset : ROOM_CHUNK;
        for (const struct call &c : calls) {
            chunk_put(room, &c, offset, bytes);
        }
        fine = room_meet(room, what);
        if (fine) {
            chunk_take(room, calls, offset, bytes, whole);
            fine = room_meet(room, what);
        }
    }
    return fine;
}

// ---- meeting ----

static bool fits(const struct call *a, const struct call *b)
{
    const bool sizes = a->count == b->count && a->type == b->type;
    if (a->operation == SEND) {
        return sizes;
    }
    return sizes && a->operation == b->operation && (a->operation != BROADCAST || a->peer == b->peer) &&
           (a->operation != ALL_REDUCE || a->reduction == b->reduction);
}

static void meeting_check(const struct meeting *m)
{
    const struct call *a = &m->calls[0];
    for (const struct call &c : m->calls) {
        const struct call *b = &c;
        if (!fits(a, b)) {
            slip("mismatched NCCL calls: rank %d calls %s of %zu (type %d, operation %d, root %d), rank %d %s of %zu "
                 "(type %d, operation %d, root %d)",
                 a->comm->rank, names[a->operation], a->count, (int)a->type, (int)a->reduction, a->peer, b->comm->rank,
                 names[b->operation], b->count, (int)b->type, (int)b->reduction, b->peer);
        }
    }
}

/* One call of a piece of work, in the stream's turn. */
static void meeting_run(struct meeting *m, const struct call *own)
{
    struct clique *clique = own->comm->clique;
    std::unique_lock<std::mutex> lock(streams_lock);
    patience(lock, names[own->operation], own->comm->rank,
             [&] { return clique->aborted || m->come == m->calls.size(); });
    if (clique->aborted || m->done) {
        return;
    }
    if (m->moving) {
        patience(lock, names[own->operation], own->comm->rank, [&] { return clique->aborted || m->done; });
        return;
    }
    m->moving = true;
    meeting_check(m);
    const bool apart = clique->local < static_cast<size_t>(clique->ranks) && own->operation < SEND;
    patience(lock, names[own->operation], own->comm->rank,
             [&] { return clique->aborted || !apart || clique->exchanged == m->number; });
    lock.unlock();
    for (const struct ticket &t : m->places) {
        ticket_wait({t.stream, t.number - 1});
    }
    bool fine = true;
    if (apart) {
        fine = exchange(clique->room, m->calls);
    } else {
        move_data(m, clique->ranks);
    }
    lock.lock();
    clique->aborted = clique->aborted || !fine;
    clique->exchanged += apart;
    m->done = true;
    streams_changed.notify_all();
}

/* Under the lock: the call comes to its meeting, at `place` in its stream. */
static std::shared_ptr<struct meeting> meeting_join(const struct call *c, struct ticket place)
{
    struct ncclComm *comm = c->comm;
    struct clique *clique = comm->clique;
    const size_t peer = static_cast<size_t>(c->peer);
    std::pair<int, uint64_t> key;
    size_t seats = 2, seat = c->operation == SEND ? 0 : 1;
    if (c->operation == SEND) {
        key = {comm->rank * clique->ranks + c->peer, comm->sent[peer]++};
    } else if (c->operation == RECEIVE) {
        key = {c->peer * clique->ranks + comm->rank, comm->received[peer]++};
    } else {
        key = {-1, comm->collectives++};
        seats = clique->local;
        seat = 0;
        for (int r = 0; r < comm->rank; r++) {
            seat += clique->comms[static_cast<size_t>(r)] != nullptr;
        }
    }
    std::shared_ptr<struct meeting> m = clique->meetings[key];
    if (!m) {
        m = clique->meetings[key] = std::make_shared<struct meeting>();
        m->calls.resize(seats);
        m->places.resize(seats);
        m->number = key.second;
    }
    m->calls[seat] = *c;
    m->places[seat] = place;
    if (++m->come == seats) {
        clique->meetings.erase(key);
    }
    streams_changed.notify_all();
    return m;
}

static bool together(const struct call *a, const struct call *b)
{
    return a->comm == b->comm && a->stream == b->stream;
}

/* What this thread called in a group: first each rank's calls come to their meetings, then all may run. */
static void group_run(std::vector<struct call> calls)
{
    std::vector<struct ticket> places;
    const int device = device_current();
    for (size_t i = 0; i < calls.size(); i++) {
        bool first = true;
        for (size_t j = 0; j < i; j++) {
            first = first && !together(&calls[i], &calls[j]);
        }
        if (!first) {
            continue;
        }
        cudaSetDevice(calls[i].comm->device); /* NULL is that device's stream */
        struct stream *s = stream_of(calls[i].stream);
        if (stream_device(s) != calls[i].comm->device) {
            slip("%s: a stream of device %d, and rank %d is on device %d", names[calls[i].operation], stream_device(s),
                 calls[i].comm->rank, calls[i].comm->device);
        }
        auto own = std::make_shared<std::vector<struct call>>();
        std::lock_guard<std::mutex> lock(streams_lock);
        const struct ticket place = stream_queue_locked(s, [own] {
            for (const struct call &c : *own) {
                meeting_run(c.meeting.get(), &c);
            }
        });
        for (size_t j = i; j < calls.size(); j++) {
            if (together(&calls[i], &calls[j])) {
                own->push_back(calls[j]);
                own->back().meeting = meeting_join(&calls[j], place);
            }
        }
        places.push_back(place);
    }
    cudaSetDevice(device);
    for (const struct ticket &t : places) {
        if (!environment()->late) {
            ticket_wait(t);
        }
    }
}

static ncclResult_t submit(const struct call *c)
{
    if (!c->comm || !bytes_of(c->type) || c->peer < 0 || c->peer >= c->comm->clique->ranks) {
        return ncclInvalidArgument;
    }
    if (c->comm->clique->aborted || c->comm->finalized) {
        return ncclInvalidUsage;
    }
    if (c->operation >= SEND && !c->comm->clique->comms[static_cast<size_t>(c->peer)]) {
        slip("%s between processes is not emulated", names[c->operation]);
    }
    if (group_depth) {
        group_calls.push_back(*c);
    } else {
        group_run({*c});
    }
    return ncclSuccess;
}

// ---- cliques ----

static struct ncclComm *comm_new(struct clique *clique, int rank, int device)
{
    const size_t ranks = static_cast<size_t>(clique->ranks);
    return clique->comms[static_cast<size_t>(rank)] =
               new ncclComm{clique, rank, device, false, 0, std::vector<uint64_t>(ranks), std::vector<uint64_t>(ranks)};
}

static struct clique *clique_new(int ranks)
{
    struct clique *clique = new struct clique();
    clique->ranks = ranks;
    clique->comms.resize(static_cast<size_t>(ranks));
    return clique;
}

/* Then it is known which ranks are in this process. */
static void join_wait(const struct ncclComm *comm)
{
    struct clique *clique = comm->clique;
    const bool full = room_full(clique->room);
    std::lock_guard<std::mutex> lock(streams_lock);
    size_t local = 0;
    for (int r = 0; r < clique->ranks; r++) {
        local += room_has(clique->room, r);
    }
    clique->aborted = clique->aborted || !full;
    clique->local = local;
    for (auto known = cliques.begin(); known != cliques.end();) {
        known = known->second == clique ? cliques.erase(known) : std::next(known);
    }
}

/* Streams that its work may be in are done before. */
static ncclResult_t comm_leave(struct ncclComm *comm)
{
    std::lock_guard<std::mutex> lock(streams_lock);
    struct clique *clique = comm->clique;
    if (++clique->left == clique->local) {
        for (struct ncclComm *c : clique->comms) {
            delete c;
        }
        room_close(clique->room);
        delete clique;
    }
    return ncclSuccess;
}

} // namespace emulated

ncclResult_t ncclGetVersion(int *version)
{
    *version = NCCL_VERSION_CODE;
    return ncclSuccess;
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id)
{
    std::lock_guard<std::mutex> lock(streams_lock);
    memset(id, 0, sizeof *id);
    snprintf(id->internal, sizeof id->internal, "emulated-%ld-%lld-%llu", static_cast<long>(getpid()),
             static_cast<long long>(std::chrono::system_clock::now().time_since_epoch().count()),
             static_cast<unsigned long long>(unique_ids++));
    return ncclSuccess;
}

ncclResult_t ncclCommInitAll(ncclComm_t *comms, int devices_count, const int *devices)
{
    int present;
    if (cudaGetDeviceCount(&present) != cudaSuccess) {
        return ncclUnhandledCudaError;
    }
    for (int i = 0; i < devices_count; i++) {
        const int device = devices ? devices[i] : i;
        if (device < 0 || device >= present) {
            return ncclInvalidArgument;
        }
        for (int j = 0; j < i; j++) {
            if ((devices ? devices[j] : j) == device) { /* two ranks on one device */
                return ncclInvalidUsage;
            }
        }
    }
    if (devices_count < 1) {
        return ncclInvalidArgument;
    }
    std::lock_guard<std::mutex> lock(streams_lock);
    struct clique *clique = clique_new(devices_count);
    for (int i = 0; i < devices_count; i++) {
        comms[i] = comm_new(clique, i, devices ? devices[i] : i);
    }
    clique->local = static_cast<size_t>(devices_count);
    return ncclSuccess;
}

ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank)
{
    if (environment()->failure != cudaSuccess) {
        return ncclUnhandledCudaError;
    }
    if (!comm || ranks < 1 || rank < 0 || rank >= ranks) {
        return ncclInvalidArgument;
    }
    {
        std::lock_guard<std::mutex> lock(streams_lock);
        struct clique **clique = &cliques[std::string(id.internal, sizeof id.internal)];
        if (!*clique) {
            *clique = clique_new(ranks);
            (*clique)->room = room_open(id.internal, ranks);
        }
        if ((*clique)->ranks != ranks || (*clique)->comms[static_cast<size_t>(rank)]) {
            slip("ncclCommInitRank: rank %d of %d, in a clique of %d that may have it already", rank, ranks,
                 (*clique)->ranks);
        }
        for (const struct ncclComm *other : (*clique)->comms) {
            if (other && other->device == device_current()) {
                return ncclInvalidUsage; /* two ranks on one device */
            }
        }
        *comm = comm_new(*clique, rank, device_current());
        room_join((*clique)->room, rank);
    }
    if (group_depth) {
        group_joins.push_back(*comm);
    } else {
        join_wait(*comm);
    }
    return ncclSuccess;
}

ncclResult_t ncclCommFinalize(ncclComm_t comm)
{
    if (!comm || comm->finalized) {
        return ncclInvalidArgument;
    }
    comm->finalized = true;
    device_wait(comm->device);
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t comm)
{
    if (!comm) {
        return ncclSuccess;
    }
    device_wait(comm->device);
    return comm_leave(comm);
}

ncclResult_t ncclCommAbort(ncclComm_t comm)
{
    if (!comm) {
        return ncclSuccess;
    }
    {
        std::lock_guard<std::mutex> lock(streams_lock);
        comm->clique->aborted = true;
        if (comm->clique->room) {
            room_abort(comm->clique->room);
        }
        streams_changed.notify_all();
    }
    device_wait(comm->device);
    return comm_leave(comm);
}

ncclResult_t ncclCommCount(const ncclComm_t comm, int *count)
{
    *count = comm->clique->ranks;
    return ncclSuccess;
}

ncclResult_t ncclCommUserRank(const ncclComm_t comm, int *rank)
{
    *rank = comm->rank;
    return ncclSuccess;
}

ncclResult_t ncclCommCuDevice(const ncclComm_t comm, int *device)
{
    *device = comm->device;
    return ncclSuccess;
}

ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *error)
{
    std::lock_guard<std::mutex> lock(streams_lock);
    const struct clique *clique = comm->clique;
    *error = clique->aborted || (clique->room && room_aborted(clique->room)) ? ncclRemoteError : ncclSuccess;
    return ncclSuccess;
}

const char *ncclGetErrorString(ncclResult_t result)
{
    static const char *const texts[] = {"no error",
                                        "unhandled cuda error",
                                        "unhandled system error",
                                        "internal error",
                                        "invalid argument",
                                        "invalid usage",
                                        "remote process exited or there was a network error",
                                        "NCCL operation in progress"};
    return result >= 0 && result <= ncclInProgress ? texts[result] : "unknown result code";
}

const char *ncclGetLastError(ncclComm_t comm)
{
    (void)comm;
    return "";
}

ncclResult_t ncclGroupStart(void)
{
    group_depth++;
    return ncclSuccess;
}

ncclResult_t ncclGroupEnd(void)
{
    if (!group_depth) {
        return ncclInvalidUsage;
    }
    if (--group_depth) {
        return ncclSuccess;
    }
    std::vector<struct ncclComm *> joins;
    std::vector<struct call> calls;
    joins.swap(group_joins);
    calls.swap(group_calls);
    for (const struct ncclComm *comm : joins) {
        join_wait(comm);
    }
    group_run(std::move(calls));
    return ncclSuccess;
}

ncclResult_t ncclBroadcast(const void *from, void *to, size_t count, ncclDataType_t type, int root, ncclComm_t comm,
                           cudaStream_t stream)
{
    const struct call c = {BROADCAST, from, to, count, type, ncclSum, root, comm, stream, nullptr};
    return submit(&c);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t count, ncclDataType_t type, ncclComm_t comm,
                           cudaStream_t stream)
{
    const struct call c = {ALL_GATHER, from, to, count, type, ncclSum, 0, comm, stream, nullptr};
    return submit(&c);
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t count, ncclDataType_t type, ncclRedOp_t operation,
                           ncclComm_t comm, cudaStream_t stream)
{
    const bool numbers = type == ncclFloat32 || type == ncclBfloat16 || (type >= ncclInt32 && type <= ncclUint64);
    if (!numbers || (operation != ncclSum && operation != ncclMax)) {
        return ncclInvalidArgument; /* not emulated */
    }
    const struct call c = {ALL_REDUCE, from, to, count, type, operation, 0, comm, stream, nullptr};
    return submit(&c);
}

ncclResult_t ncclSend(const void *from, size_t count, ncclDataType_t type, int peer, ncclComm_t comm,
                      cudaStream_t stream)
{
    const struct call c = {SEND, from, nullptr, count, type, ncclSum, peer, comm, stream, nullptr};
    return submit(&c);
}

ncclResult_t ncclRecv(void *to, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream)
{
    const struct call c = {RECEIVE, nullptr, to, count, type, ncclSum, peer, comm, stream, nullptr};
    return submit(&c);
}
