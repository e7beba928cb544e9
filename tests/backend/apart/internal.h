/* A backend for tests, as a plug-in: plain loops on a device that keeps apart what callers may not touch. It proves
 * that whoever uses gpu/backend.h keeps to it, by making each slip show:
 *   - Its memory is apart: what it hands out are addresses that nobody can read or write; the bytes are elsewhere, at
 *     the same offset. An address that was released, or that is outside of what was asked for, ends the process.
 *   - It is late: calls are queued with their arguments, and a thread of the stream's own begins them when somebody
 *     waits, no sooner. What must live until `wait` is used as late as can be, and nothing is there before.
 *   - Rows after the last are made NaN by whatever writes a tensor, and so is what an arena or a weight held before.
 *   - It has a row multiple that no other backend has, and no optional entry but the one below. It computes in f32, or
 *     in bf16 where that is asked for: the same numbers, rounded where a tensor holds them.
 * It says that it is one device, or as many as it was told to use; there are number 0 and number 1. A slip ends the
 * process with one line. Variables of the environment, read when it is opened:
 *   APART_MEMORY  how many bytes of memory the device has
 *   APART_FULL    names a file: while it is there, no arena has room
 *   APART_ONCE    names a file: the scan that finds it there has no room, and takes the file away
 *   APART_SCAN    how many queries one scan has room for; more is out of memory, which shows when it is waited for
 *   APART_HOST    set: it has host memory (pinned.c), the optional entry
 *   APART_ABSENT  set: there is no such device */
#ifndef ENGRAM_TESTS_BACKEND_APART_INTERNAL_H
#define ENGRAM_TESTS_BACKEND_APART_INTERNAL_H

#include <pthread.h>

#include "gpu/backend.h"

enum { ROW_MULTIPLE = 32 };

struct block { /* of memory, in use */
    char *outside;
    size_t bytes;
    char *pages; /* outside, as is all that callers see */
    size_t span;
};

struct pinned { /* memory of the host */
    struct pinned *next;
    char *start;
    size_t bytes;
    char *pages;
    size_t span;
    bool released;
};

struct device {
    struct backend backend; /* first: a struct backend * is a struct device * */
    const struct backend_host *host;
    struct backend_operations operations;
    char said[32];               /* facts.device */
    char full[4096], once[4096]; /* names of files; empty: none */
    char *outside, *inside;      /* RESERVED bytes each */
    size_t limit, scan_max;

    pthread_mutex_t lock; /* covers all below */
    size_t taken;         /* bytes of memory in use, staged copies included */
    size_t next;          /* the first byte of RESERVED that was never used */
    struct block *blocks;
    size_t count, room;
    size_t open; /* streams, weights and sets of keys */
    struct pinned *pinned;
};

/* Arguments of a call; each operation uses some of them. */
struct call {
    void (*run)(struct stream *s, const struct call *c); /* not after an error */
    struct call *next;
    void *to;
    const void *from;
    size_t bytes, staged, heads, b;         /* staged: bytes of the device's memory that the call itself takes */
    struct tensor out, x, more, norm, kept; /* data NULL: none */
    struct embedding embedding;
    struct tile tile;
    struct weight *weight;
    enum epilogue epilogue;
    enum pooling pooling;
    float epsilon;
    struct keys *keys;
    const struct keys_view *view;
    enum key_kind kinds;
    struct keys_hit *hits;
    uint32_t *counts;
};

/* A tensor's numbers, while a call runs: where they are, or as f32 beside it. */
struct lent {
    float *numbers; /* [rows, columns] */
    void *inside;
    enum dtype dtype;
    size_t rows, columns;
    bool written;
};

enum { LENT_MAX = 8 };

struct stream {
    struct device *device;
    void *arena;
    size_t tile_bytes; /* that the last announced tile takes */

    pthread_t thread;
    pthread_mutex_t lock; /* covers all below; while the thread works, all but the queue is its own */
    pthread_cond_t changed;
    struct call *first, **end;
    bool go, closing;
    struct error error; /* the first */
    struct tile tile;   /* copies */
    struct lent lent[LENT_MAX];
    size_t lent_count;
};

/* A caller broke the rules. */
__attribute__((noreturn, format(printf, 1, 2))) void slip(const char *format, ...);
void *host_memory(size_t count, size_t bytes); /* zeroed */
size_t rounded(size_t n, size_t multiple);
static inline struct device *device_of(struct backend *b)
{
    return (struct device *)b;
}

/* ---- device.c ---- */

bool reserve(struct device *d, size_t bytes); /* false: that much is not there */
void unreserve(struct device *d, size_t bytes);
int memory_out(struct device *d, size_t bytes, struct error *e);
int memory_take(struct device *d, size_t bytes, void **out, struct error *e); /* zeroed */
void memory_give(struct device *d, void *memory);
void *at(struct device *d, const void *memory, size_t bytes, const char *what); /* where the device finds these bytes */
void opened(struct device *d, int more);                                        /* streams, weights, sets of keys */
void queue(struct stream *s, const struct call *call);

/* A tensor that an operation reads, for as long as the call runs. */
const float *read_of(struct stream *s, const struct tensor *t, enum dtype dtype, size_t rows, size_t columns,
                     const char *what);
/* One that it writes: with room for whole row multiples. NULL: it is not wanted. */
float *write_of(struct stream *s, const struct tensor *t, enum dtype dtype, size_t rows, size_t columns,
                const char *what);
uint16_t bf16_of(float x); /* to nearest, ties to even */
float float_of(uint16_t half);

/* ---- pinned.c ---- */

int apart_host_alloc(struct backend *b, size_t bytes, void **out, struct error *e);
void apart_host_release(struct backend *b, void *memory);
/* What a call reads or writes on the host: where that is such memory, all of it, and still handed out. */
void pinned_check(struct device *d, const void *memory, size_t bytes, const char *what);
size_t pinned_close(struct device *d); /* returns how much was not released */

/* ---- the entries of the table in the other files ---- */

void apart_embed(struct stream *s, const struct tensor *out, const struct embedding *embedding,
                 const struct tensor *kept);
void apart_linear(struct stream *s, const struct tensor *out, const struct tensor *in, const struct weight *w,
                  enum epilogue epilogue, const struct tensor *kept);
void apart_layer_norm(struct stream *s, const struct tensor *out, const struct tensor *x, const struct tensor *residual,
                      const struct tensor *norm, float epsilon, const struct tensor *kept);
void apart_attention(struct stream *s, const struct tensor *out, const struct tensor *qkv, size_t heads,
                     const struct tensor *kept);
void apart_pool(struct stream *s, const struct tensor *out, const struct tensor *x, enum pooling pooling);
void apart_normalise(struct stream *s, const struct tensor *out, const struct tensor *x, const struct tensor *kept);
void apart_weight_close(struct backend *b, struct weight *w);
int apart_weight_open(struct backend *b, size_t in, size_t width, enum dtype dtype, struct weight **out,
                      struct error *e);
void apart_weight_pack(struct stream *s, struct weight *w, const struct tensor *weight, const struct tensor *bias);
int apart_keys_open(struct backend *b, size_t dim, enum dtype dtype, struct keys **out, struct error *e);
void apart_keys_close(struct keys *k);
void apart_keys_scan(struct stream *s, struct keys *k, const struct keys_view *view, const struct tensor *queries,
                     size_t b, enum key_kind kinds, struct keys_hit *hits, uint32_t *counts);

#endif
