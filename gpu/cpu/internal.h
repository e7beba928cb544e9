/* What the files of gpu/cpu/ share: all calls of oneDNN (onednn.c), the loops of our own (kernels.inc, compiled for
 * several instruction sets), the search (keys.c) and the table of operations (backend.c). */
#ifndef ENGRAM_GPU_CPU_INTERNAL_H
#define ENGRAM_GPU_CPU_INTERNAL_H

#include "gpu/backend.h"

/* ---- loops of our own, one table for each instruction set ------------------------------------------------------- */

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
    /* True if any score of scores [rows, columns] reaches (>=) its column's threshold. */
    bool (*reaches)(const float *scores, const float *thresholds, size_t rows, size_t columns);
    void (*widen)(float *to, const uint16_t *from_bf16, size_t count);

    /* One sequence: out [rows, dim], qkv [rows, 3 dim], kept [rows, heads] or NULL; scratch holds attention_scratch()
     * floats, 64-byte aligned. */
    void (*attention)(float *out, const float *qkv, size_t rows, size_t heads, size_t dim, float *kept, float *scratch);
    /* norm [2, dim], kept [rows, 2] or NULL; residual may be NULL. */
    void (*layer_norm)(float *out, const float *x, const float *residual, const float *norm, float epsilon, size_t rows,
                       size_t dim, float *kept);
    void (*sum)(float *out, const float *a, const float *b, const float *c, size_t count); /* out = a + b + c */
    void (*mean)(float *out, const float *x, size_t rows, size_t dim);                     /* over the rows */
    float (*normalise)(float *out, const float *x, size_t dim); /* to L2 norm 1; returns the norm */
    void (*exponential)(float *x, size_t count); /* e^x for x <= 0, relative error below 2e-7; 0 below -87 */
    void (*gelu)(float *out, const float *x, size_t count);
};

extern const struct kernels kernels_base;
#if defined(__x86_64__)
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avx512;
#endif

const struct kernels *kernels_best(void); /* for the CPU at hand */
size_t attention_scratch(const struct kernels *k, size_t rows, size_t head_dim);

/* ---- the backend and its streams --------------------------------------------------------------------------------- */

#define CPU_ROWS 8 /* row_multiple */

struct cpu {
    struct backend backend; /* first: a struct backend * is a struct cpu * */
    const struct kernels *kernels;
    struct onednn *onednn;
};

/* A calling thread's: every call is done when it returns. */
struct stream {
    struct cpu *cpu;
    struct onednn_stream *onednn;
    struct tile tile;
    void *arena; /* handed out by arena() */
    size_t arena_bytes;
    float *scratch; /* of one operation */
    size_t scratch_floats;
    struct found *found; /* of a scan */
    struct error error;  /* of the first operation that failed since the last wait; kind ERROR_NONE: none */
};

/* At least `bytes`, 64-byte aligned and zeroed when it grows: padding rows are computed, never on denormal rubbish.
 * NULL: there is not that much. */
void *memory_grow(void **memory, size_t *have, size_t bytes);
float *stream_scratch(struct stream *s, size_t floats);

/* ---- oneDNN ------------------------------------------------------------------------------------------------------ */

int onednn_open(struct onednn **out, struct error *e);
void onednn_close(struct onednn *o);
int onednn_stream_open(struct onednn_stream **out, struct onednn *o, struct error *e);
void onednn_stream_close(struct onednn_stream *s);

int onednn_weight_open(struct weight **out, struct onednn *o, size_t in, size_t width, enum dtype dtype,
                       struct error *e);
int onednn_weight_fill(struct weight *w, struct onednn *o, const float *weight, const float *bias, struct error *e);
void onednn_weight_close(struct weight *w);

/* out [rows, width] = epilogue(in W' + bias). rows are rounded up to CPU_ROWS. */
int onednn_linear(struct onednn_stream *s, void *out, const void *in, const struct weight *w, enum epilogue epilogue,
                  size_t rows, struct error *e);

/* ---- keys -------------------------------------------------------------------------------------------------------- */

int cpu_keys_open(struct backend *b, size_t dim, enum dtype dtype, struct keys **out, struct error *e);
void cpu_keys_close(struct keys *k);
void cpu_keys_scan(struct stream *s, struct keys *k, const struct keys_view *view, const struct tensor *queries,
                   size_t b, enum key_kind kinds, struct keys_hit *hits, uint32_t *counts);
void found_free(struct found *f); /* NULL is fine */

#endif
