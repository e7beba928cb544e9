/* What keys.cu (which keys are on which device) and scan.cu (the search over them) share.
 *
 * A device has its keys in frames of FRAME_ROWS rows: a head, the rows' ties, their vectors, padded with zeroes. Frames
 * never change while they are in use: a block that changes gets other frames, and the old ones say from when on they
 * are gone. So a search of an earlier view sees what it must, without a table of its own. */
#ifndef ENGRAM_GPU_CUDA_KEYS_H
#define ENGRAM_GPU_CUDA_KEYS_H

#include "gpu/cuda/internal.h"

enum {
    FRAME_ROWS = 32,
    SLAB_FRAMES = 1024, /* allocated at once */
    SLABS_MAX = 16384,  /* of one kind: half a billion rows */
    QUERIES_MAX = 256,  /* searched at once */
    SORTED_MAX = 2048,  /* hits of a query that the device sorts; more are sorted by the host */
    HITS_LEAST = 4096,  /* room for hits of a query while it is searched */
    COLUMNS_MULTIPLE = 32,
};

struct frame_head {
    uint64_t first_slot; /* of row 0 */
    uint64_t candidates; /* bit r: row r is one */
    uint32_t born, died; /* visible where born <= the search's sequence number < died */
    uint32_t kind;
    uint32_t unused[9];
};
static_assert(sizeof(struct frame_head) == 64, "vectors begin on a line of the cache");

enum { FRAME_TIES = sizeof(struct frame_head), FRAME_VECTORS = FRAME_TIES + FRAME_ROWS * (int)sizeof(uint64_t) };

/* Some frames of a pile. */
struct frames {
    const unsigned char *const *slabs; /* SLAB_FRAMES each; NULL: all are in `alone` */
    const unsigned char *alone;
    size_t bytes;        /* of a frame */
    uint32_t first, end; /* the search's part of [0, all), in the order of frame_at */
    uint32_t all, turn;  /* turn: no divisor of `all` but 1 divides it */
    uint32_t sequence;   /* see frame_head */
    int dim, stride;     /* numbers of a row, and with its padding */
};

/* A search's state on one device, for one pass over at most QUERIES_MAX queries. All in device memory. */
struct finding {
    const float *queries;  /* [n, dim] */
    __nv_bfloat16 *parts;  /* [n rounded up to 8, 2, stride]: each query as the sum of two bf16 */
    float *least;          /* [n]: a hit has at least this score */
    uint32_t *counts;      /* [n]: hits so far; more than `room` were found where it is larger */
    uint32_t *overflows;   /* [n]: not 0: some hits were lost, search again in smaller steps */
    struct keys_hit *hits; /* [n, room] */
    struct keys_hit *best; /* [n, b]: the result */
    uint32_t *best_counts; /* [n]; UINT32_MAX: overflowed */
    size_t n, b, room;
};

size_t queries_for(size_t b); /* that one pass takes: fewer than QUERIES_MAX where their lists would be large */
/* Places the search's memory on the device; queries NULL: those too. */
int finding_place(struct stream *s, size_t device, struct finding *f, size_t dim, size_t stride, size_t gathered,
                  struct keys_hit **from_all, uint32_t **counts_from_all, struct error *e);
void finding_begin(struct stream *s, size_t device, const struct finding *f, enum dtype dtype, size_t dim,
                   size_t stride);
/* Hits in these frames join those that were found before; then only the b best are kept. Frames times FRAME_ROWS are at
 * most scan_step(..) rows. */
void finding_scan(struct stream *s, size_t device, const struct finding *f, const struct frames *frames,
                  enum dtype dtype);
/* The rows that the next finding_scan may take after `seen`; careful: whatever their order is, none overflows. */
size_t scan_step(const struct finding *f, size_t seen, bool careful);
void finding_end(struct stream *s, size_t device, const struct finding *f);
/* f = the best of what all devices found: lists [devices, n, b] with their counts [devices, n]. */
void finding_merge(struct stream *s, size_t device, const struct finding *f, const struct keys_hit *lists,
                   const uint32_t *counts, size_t devices);
int hits_compare(const void *a, const void *b); /* best first */

/* ---- keys.cu ---- */

enum { KINDS = 2, BLOCK_FRAMES_MAX = 8, STAGE_FRAMES = 128, STAGES = 2 };

/* All frames of one kind on one device. */
struct pile {
    unsigned char *slabs[SLABS_MAX];
    size_t slabs_count;
    unsigned char **table; /* the same [SLABS_MAX], on the device */
    uint32_t used;         /* frames that were ever used */
    uint32_t *free;        /* [free_count] that are not in use */
    size_t free_count, free_room;
};

/* Pinned host memory in which frames are made. */
struct stage {
    unsigned char *memory; /* [STAGE_FRAMES] frames */
    size_t used;           /* frames, since it was last taken */
    cudaEvent_t copied;
};

struct mirror {
    struct pile piles[KINDS];
    struct stage stages[STAGES];
    size_t stage;
    cudaEvent_t uploaded; /* the last change of its frames */
    size_t room;          /* bytes that slabs may still take */
    bool refused;         /* for this view there is no more */
    unsigned char *alone; /* [STAGE_FRAMES]: where frames without a place are searched */
};

/* What there is of one block of the view. */
struct mirrored {
    uint64_t first_slot, version;
    uint32_t rows, kind;
    uint32_t device, mine; /* mine: its rows that are this process's */
    bool placed, old;      /* old: while a new view is compared, not in that */
    uint32_t frames[BLOCK_FRAMES_MAX];
    uint64_t *names; /* [rows] ties of candidates, else 0; only in a group */
};

/* A stream's last search. */
struct reader {
    uint64_t stream;
    cudaEvent_t searched[DEVICES_MAX];
};

struct group;

struct keys {
    struct cuda *cuda;
    size_t dim, stride, frame_bytes;
    enum dtype dtype;
    struct group *group;  /* NULL: no other process has any of them */
    pthread_mutex_t lock; /* covers all below */
    bool any;             /* `version` is that of a view */
    uint64_t version;
    uint32_t sequence;
    struct mirrored *blocks; /* [count], as in the view */
    size_t count, absent;    /* absent: blocks that are not placed */
    bool told;               /* that some are absent */
    struct mirror *mirrors;  /* [devices] */
    struct reader *readers;
    size_t readers_count;
};

/* A search on one device of the keys that it has now. The caller has the lock. */
struct searching {
    struct keys *keys;
    struct stream *stream;
    const struct keys_view *view; /* for keys without a place; NULL: there are none */
    enum key_kind kinds;
    bool careful;
};
void device_search(const struct searching *x, size_t device, const struct finding *f);
void reader_record(struct keys *k, struct stream *s); /* after it */
bool nccl_put(struct stream *s, ncclResult_t status);
bool streams_wait(struct stream *s);

enum finish_state {
    FINISH_WAITS,
    FINISH_TOLD, /* the others know of it */
    FINISH_RUNS,
    FINISH_DONE,
};

/* What is left to do for one pass of a search. */
struct finish {
    struct finish *next;
    struct keys *keys;
    const struct keys_view *view;
    const float *queries; /* on the home device */
    enum key_kind kinds;
    size_t n, b;
    struct keys_hit *found; /* [n, b], pinned host memory */
    uint32_t *found_counts; /* [n] */
    struct keys_hit *hits;  /* the caller's, as counts */
    uint32_t *counts;
    /* in a group; the group's lock covers them */
    struct finish *next_waiting;
    cudaEvent_t ready; /* the queries are there */
    bool careful;
    enum finish_state state;
};
bool result_download(struct stream *s, const struct finding *f, const struct finish *to);

/* ---- group.cu ---- */

/* Waits for the other processes. */
int group_open(struct group **out, struct keys *k, struct error *e);
void group_close(struct group *g); /* NULL is fine */
/* This process's keys are there: it can take part. -1: the group is of no use any more, for the reason in *e. */
int group_ready(struct group *g, struct error *e);
/* Has *f searched by all; its `ready` is recorded. group_wait returns once it is done, or -1 with the reason why it
 * never will be; then nobody uses it any more. */
void group_search(struct group *g, struct finish *f);
int group_wait(struct group *g, struct finish *f, struct error *e);
/* The keys of the view's block at `place` can be named, or those of a block no longer. */
void group_names_add(struct group *g, const struct keys_view *view, size_t place, struct mirrored *m);
void group_names_remove(struct group *g, struct mirrored *m);
/* Gives hits of other processes the slots that the view has them in, and drops those that it does not have; returns how
 * many are left. The caller has the keys' lock. */
uint32_t group_name(struct group *g, const struct keys_view *view, struct keys_hit *hits, uint32_t count);

#endif
