/* What keys.cu (which keys are on which device) and scan.cu (the search over them) share.
 *
 * A device has its keys in frames of FRAME_ROWS rows: a head, the rows' ties, their vectors, padded with zeroes. Frames
 * never change while they are in use: a block that changes gets other frames, and the old ones say from when on they
 * are gone. So a search of an earlier view sees what it must, without a table of its own. */
#ifndef ENGRAM_GPU_CUDA_KEYS_H
#define ENGRAM_GPU_CUDA_KEYS_H

#include "gpu/cuda/internal.h"

enum {
    FRAME_ROWS = 64,
    SLAB_FRAMES = 512, /* allocated at once */
    SLABS_MAX = 16384, /* of one kind: half a billion rows */
    QUERIES_MAX = 256, /* searched at once */
    SORTED_MAX = 2048, /* hits of a query that the device sorts; more are sorted by the host */
    HITS_LEAST = 4096, /* room for hits of a query while it is searched */
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

/* Frames [first, end) of a pile. */
struct frames {
    const unsigned char *const *slabs; /* SLAB_FRAMES each; NULL: all are in `alone` */
    const unsigned char *alone;
    size_t bytes; /* of a frame */
    uint32_t first, end;
    uint32_t sequence; /* see frame_head */
    int dim, stride;   /* numbers of a row, and with its padding */
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

/* Places the search's memory on the device. */
int finding_place(struct stream *s, size_t device, struct finding *f, const struct keys_view *view, size_t stride,
                  size_t gathered, struct keys_hit **from_all, uint32_t **counts_from_all, struct error *e);
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

#endif
