// Ranks in other processes: a shared-memory object named by the clique's unique id, where each rank says what it calls
// and puts its data, chunk after chunk. Who waits looks again and again, so that a process that dies holds no lock. The
// name is gone as soon as all ranks are in.
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#include "internal.h"
#include "room.h"

namespace emulated
{

struct room_shared {
    std::atomic<int> joined, aborted;
    struct {
        std::atomic<uint64_t> step;
        int process;
        struct room_call call;
    } ranks[ROOM_RANKS];
    alignas(64) char chunks[ROOM_RANKS][ROOM_CHUNK];
};

struct room {
    struct room_shared *shared;
    char name[128];
    int ranks;
};

struct room *room_open(const char *name, int ranks)
{
    struct room *r = new struct room();
    snprintf(r->name, sizeof r->name, "/%.100s", name);
    r->ranks = ranks;
    const int file = shm_open(r->name, O_RDWR | O_CREAT, 0600);
    void *memory = MAP_FAILED;
    if (file >= 0 && ftruncate(file, sizeof *r->shared) == 0) {
        memory = mmap(nullptr, sizeof *r->shared, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    }
    if (file >= 0) {
        close(file);
    }
    if (memory == MAP_FAILED || ranks > ROOM_RANKS) {
        slip("no shared memory %s for %d ranks", r->name, ranks);
    }
    r->shared = static_cast<struct room_shared *>(memory);
    return r;
}

void room_close(struct room *r)
{
    if (r) {
        munmap(r->shared, sizeof *r->shared);
        delete r;
    }
}

void room_join(struct room *r, int rank)
{
    r->shared->ranks[rank].process = getpid();
    if (++r->shared->joined == r->ranks) {
        shm_unlink(r->name);
    }
}

/* Until the condition holds or somebody aborted: false. */
template <typename Condition> static bool wait_until(struct room *r, const char *what, Condition condition)
{
    const time_t start = time(nullptr);
    for (unsigned tries = 0; !condition(); tries++) {
        if (r->shared->aborted) {
            return false;
        }
        if (time(nullptr) - start > PATIENCE_SECONDS) {
            shm_unlink(r->name);
            slip("%s: waited %d seconds for ranks in other processes", what, static_cast<int>(PATIENCE_SECONDS));
        }
        if (tries < 100) {
            sched_yield();
        } else {
            usleep(100);
        }
    }
    return true;
}

bool room_full(struct room *r)
{
    return wait_until(r, "ncclCommInitRank", [r] { return r->shared->joined == r->ranks; });
}

bool room_has(const struct room *r, int rank)
{
    return r->shared->ranks[rank].process == getpid();
}

bool room_meet(struct room *r, const char *what)
{
    uint64_t step = 0;
    for (int i = 0; i < r->ranks; i++) {
        if (room_has(r, i)) {
            step = ++r->shared->ranks[i].step;
        }
    }
    return wait_until(r, what, [r, step] {
        bool all = true;
        for (int i = 0; i < r->ranks; i++) {
            all = all && r->shared->ranks[i].step >= step;
        }
        return all;
    });
}

struct room_call *room_call_of(struct room *r, int rank)
{
    return &r->shared->ranks[rank].call;
}

char *room_chunk(struct room *r, int rank)
{
    return r->shared->chunks[rank];
}

void room_abort(struct room *r)
{
    r->shared->aborted = 1;
}

bool room_aborted(const struct room *r)
{
    return r->shared->aborted != 0;
}

} // namespace emulated
