/* What the files of gpu/cpu/ share: all calls of oneDNN (onednn.c), the loops of our own (kernels.inc, compiled for
 * several instruction sets), the search (keys.c) and the table of operations (backend.c). */
#ifndef ENGRAM_GPU_CPU_INTERNAL_H
#define ENGRAM_GPU_CPU_INTERNAL_H

#include <stdatomic.h>

#include "gpu/backend.h"

/* ---- loops of our own, one table for each instruction set ------------------------------------------------------- */

enum { CUT_PARTS = 3, CUT_DEPTH = 32 }; /* of cut_scores: bf16 numbers that make an f32; dimensions at a time */

/* A panel is a matrix stored with its columns padded to `panel` floats: [depth, panel], 64-byte aligned. The loops
 * multiply by panels: queries of a scan and of an attention head lie across the lanes of a vector, so that sums, maxima
 * and thresholds of each query need no work across lanes. */
struct kernels {
    const char *name; /* of the instruction set */
    size_t panel;     /* columns of a panel: two vectors */
    size_t half;      /* columns of a narrow panel: one vector */

    /* out [rows, columns] = a [rows, depth] panel [depth, columns], columns = panel or half; the element (r, k) of a
     * stands at a[r * row_stride + k * depth_stride]. */
    void (*multiply)(float *out, const float *a, size_t row_stride, size_t depth_stride, size_t rows, size_t depth,
                     const float *panel, size_t columns);
    /* NULL, or the same for keys [rows, dim] in bf16 and the queries [n, dim] of a panel, dim a multiple of CUT_DEPTH:
     * scores [rows up to whole 16, columns]. panel: CUT_PARTS dim panel numbers, 64-byte aligned; scratch: [16, dim].
     */
    void (*queries_cut)(uint16_t *panel, const float *queries, size_t n, size_t dim);
    void (*cut_scores)(float *scores, const uint16_t *keys, size_t rows, size_t dim, const uint16_t *panel,
                       size_t columns, uint16_t *scratch);
    /* Which scores of scores [rows, columns] reach (>=) their column's threshold: bit c of found[row]. */
    void (*reaching)(uint32_t *found, const float *scores, const float *thresholds, size_t rows, size_t columns);
    void (*widen)(float *to, const uint16_t *from_bf16, size_t count);
    void (*narrow)(uint16_t *to_bf16, const float *from, size_t count); /* ties to even; NaN stays NaN */

    /* Below, dtype is that of out, x, residual and qkv; sums are f32. */

    /* Heads first .. first + count - 1 of one sequence: out [rows, dim], qkv [rows, 3 dim], kept [rows, heads] or NULL;
     * scratch holds attention_scratch() floats, 64-byte aligned. */
    void (*attention)(void *out, const void *qkv, enum dtype dtype, size_t rows, size_t heads, size_t first,
                      size_t count, size_t dim, float *kept, float *scratch);
    /* norm [2, dim], kept [rows, 2] or NULL; residual may be NULL; row: scratch of dim floats. */
    void (*layer_norm)(void *out, const void *x, const void *residual, enum dtype dtype, const float *norm,
                       float epsilon, size_t rows, size_t dim, float *kept, float *row);
    /* One row: the layer norm of word + position + type [dim]. */
    void (*embed)(void *out, enum dtype dtype, const float *word, const float *position, const float *type,
                  const float *norm, float epsilon, size_t dim, float *kept, float *row);
    void (*mean)(float *out, const void *x, enum dtype dtype, size_t rows, size_t dim); /* over the rows */
    float (*normalise)(float *out, const float *x, size_t dim); /* to L2 norm 1; returns the norm */
    void (*exponential)(float *x, size_t count); /* e^x for x <= 0, relative error below 2e-7; 0 below -87 */
    /* `columns` of each row of out and x, whose rows are `stride` apart; out may be x. Error below 3e-7 |x| in f32 and,
     * before rounding, 4e-5 |x| in bf16. */
    void (*gelu)(void *out, const void *x, enum dtype dtype, size_t rows, size_t columns, size_t stride);
};

extern const struct kernels kernels_base;
#if defined(__x86_64__)
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avx512;
extern const struct kernels kernels_amx;
#endif

const struct kernels *kernels_best(bool amx); /* for the CPU at hand; amx: the process may use AMX-BF16 */
size_t attention_scratch(const struct kernels *k, size_t rows, size_t head_dim);

/* ---- the backend and its streams --------------------------------------------------------------------------------- */

#define CPU_ROWS 8 /* row_multiple */

/* One part of an operation, run on whichever stream took it. */
typedef void part_function(struct stream *s, const void *operation, bool shared, size_t part);

/* The one operation that is shared at a time: see share.c. */
struct share {
    _Alignas(64) atomic_uint_fast64_t claim;
    _Alignas(64) atomic_size_t done;
    _Alignas(64) atomic_size_t helpers; /* threads in cpu_assist */
    atomic_flag taken;                  /* by an owner */
    atomic_size_t rest;                 /* operations that nobody shares */
    atomic_bool failed;
    struct error error; /* of the part that set `failed` */
    part_function *run;
    const void *operation;
};

struct cpu {
    struct backend backend; /* first: a struct backend * is a struct cpu * */
    const struct kernels *kernels;
    struct onednn *onednn;
    struct share share;
};

/* A calling thread's: every call is done when it returns. */
struct stream {
    struct cpu *cpu;
    struct onednn_stream *onednn;
    struct tile tile;
    void *arena; /* handed out by arena() */
    size_t arena_bytes;
    void *scratch; /* of one operation */
    size_t scratch_bytes;
    struct found *found; /* of a scan */
    struct error error;  /* of the first operation that failed since the last wait; kind ERROR_NONE: none */
};

/* 64-byte aligned and zeroed. */
void *memory_zero(size_t bytes);
/* At least `bytes` of the same; what they held is lost when they grow. */
void *memory_grow(void **memory, size_t *have, size_t bytes);

/* run(0 .. parts[shared] - 1), in any order, by this stream and by those that assist; shared: whether any may. */
void share_run(struct stream *s, part_function *run, const void *operation, const size_t parts[2]);
void cpu_assist(struct stream *s, bool (*finished)(const void *context), const void *context);

/* ---- oneDNN ------------------------------------------------------------------------------------------------------ */

int onednn_open(struct onednn **out, const struct kernels *kernels, struct error *e);
void onednn_close(struct onednn *o);
bool onednn_bf16(void); /* this CPU multiplies bf16 itself */
bool onednn_amx(void);  /* ... with AMX, and the kernel has allowed this process to use it */
int onednn_stream_open(struct onednn_stream **out, struct onednn *o, struct error *e);
void onednn_stream_close(struct onednn_stream *s);

/* streams: how many may share a linear, at least 1. */
int onednn_weight_open(struct weight **out, struct onednn *o, size_t in, size_t width, enum dtype dtype, size_t streams,
                       struct error *e);
int onednn_weight_fill(struct weight *w, struct onednn *o, const float *weight, const float *bias, struct error *e);
void onednn_weight_close(struct weight *w);

/* out [rows, width] = in W' + bias is made of pieces, in any order and by any stream: of fewer, which is faster, where
 * it is not shared. The numbers do not depend on that. The rows of the last ones are rounded up to CPU_ROWS. */
struct piece {
    size_t row, rows, column, columns;
};
size_t onednn_pieces(const struct weight *w, size_t rows, bool shared);
struct piece onednn_piece(const struct weight *w, size_t rows, bool shared, size_t number);
int onednn_linear(struct onednn_stream *s, void *out, const void *in, const struct weight *w, const struct piece *piece,
                  struct error *e);

/* ---- keys -------------------------------------------------------------------------------------------------------- */

int cpu_keys_open(struct backend *b, size_t dim, enum dtype dtype, struct keys **out, struct error *e);
void cpu_keys_close(struct keys *k);
void cpu_keys_scan(struct stream *s, struct keys *k, const struct keys_view *view, const struct tensor *queries,
                   size_t b, enum key_kind kinds, struct keys_hit *hits, uint32_t *counts);
void found_free(struct found *f); /* NULL is fine */

#endif
