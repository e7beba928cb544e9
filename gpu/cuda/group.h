/* What the files of a group of processes share: group.cu (its threads), meeting.cu (how they meet, and what they send
 * each other), names.cu (whose slot a hit is in). */
#ifndef ENGRAM_GPU_CUDA_GROUP_H
#define ENGRAM_GPU_CUDA_GROUP_H

#include "gpu/cuda/keys.h"

enum message_kind {
    MESSAGE_HELLO,
    MESSAGE_WELCOME,
    MESSAGE_REFUSED,
    MESSAGE_READY,
    MESSAGE_WANT,
    MESSAGE_ROUND,
    MESSAGE_LOST
};

/* A rank's queries; n 0: none. */
struct want {
    uint32_t n, b, kinds, careful;
};

struct message {
    uint32_t magic, kind;
    uint32_t rank, world, dim, dtype; /* of who greets; LOST: rank is who is gone */
    union {
        ncclUniqueId id;
        struct want wants[RANKS_MAX]; /* WANT: the first; ROUND: of every rank */
        char reason[160];
    };
};

/* Name and kind -> slot, by open addressing. */
struct name {
    uint64_t tie, slot;
    uint32_t kind;  /* 0: free; GONE: was in use */
    uint32_t place; /* of its block in a view, when it was added */
};
#define GONE UINT32_MAX

struct names {
    struct name *places;      /* [mask + 1] */
    size_t mask, count, used; /* used: with those that are gone */
};

/* A round that rank 0 has announced. */
struct round {
    struct round *next;
    struct want wants[RANKS_MAX];
};

struct group {
    struct keys *keys;
    size_t rank, world;
    int sockets[RANKS_MAX]; /* of rank 0: one for each other rank; of the others: [0] */
    int bell[2];            /* a pipe that wakes the thread that listens */
    ncclComm_t comm;
    struct stream *stream; /* on which rounds run */
    struct names names;    /* the keys' lock covers it */

    pthread_t listener, runner;
    bool listener_runs, runner_runs;
    pthread_mutex_t lock; /* covers all below */
    pthread_cond_t changed;
    struct finish *waiting, **waiting_end; /* searches that no round has taken up */
    struct round *rounds, **rounds_end;
    bool ready, closing;
    struct error error; /* why the group is of no use any more */

    /* the listener's own */
    bool told_ready, told_want, told_unready;
    double waits_since;        /* rank 0: a search for a rank that is not ready; 0: none does */
    bool are_ready[RANKS_MAX]; /* rank 0: what it heard */
    struct want wants[RANKS_MAX];
};

static inline const struct backend_host *host_of(const struct group *g)
{
    return g->keys->cuda->host;
}

double seconds(void); /* of a clock that never goes back */

/* ---- meeting.cu ---- */

/* Waits until all ranks have met; *id is what NCCL needs of rank 0. */
int group_meet(struct group *g, ncclUniqueId *id, struct error *e);
struct message message_of(const struct group *g, enum message_kind kind);
bool message_send(int socket, const struct message *m);
bool message_receive(int socket, struct message *m); /* false: who sent is gone, or is none of ours */

#endif
