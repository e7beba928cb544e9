/* What the files of gpu/cpu/ share: the worker threads (workers.c), all calls of oneDNN (onednn.c), the loops of our
 * own (kernels.inc, compiled for several instruction sets), the search (keys.c) and the table of operations
 * (backend.c). */
#ifndef ENGRAM_GPU_CPU_INTERNAL_H
#define ENGRAM_GPU_CPU_INTERNAL_H

#include <pthread.h>

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

    /* One sequence: out [rows, dim], qkv [rows, 3 dim]; scratch holds attention_scratch() floats, 64-byte aligned. */
    void (*attention)(float *out, const float *qkv, size_t rows, size_t heads, size_t dim, float *scratch);
    void (*layer_norm)(float *out, const float *x, const float *gamma, const float *beta, float epsilon, size_t rows,
                       size_t dim);
    void (*sum)(float *out, const float *a, const float *b, const float *c, size_t count); /* out = a + b + c */
    void (*mean)(float *out, const float *x, size_t rows, size_t dim);                     /* over the rows */
    void (*normalise)(float *x, size_t dim);                                               /* to L2 norm 1 */
    void (*exponential)(float *x, size_t count); /* e^x for x <= 0, relative error below 2e-7; 0 below -87 */
};

extern const struct kernels kernels_base;
#if defined(__x86_64__)
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avx512;
#endif

const struct kernels *kernels_best(void); /* for the CPU at hand */
size_t attention_scratch(const struct kernels *k, size_t rows, size_t head_dim);

/* ---- the backend and its workers -------------------------------------------------------------------------------- */

struct cpu;

/* One worker: a thread, with what only that thread touches. */
struct stream {
    struct cpu *cpu;
    size_t index;
    pthread_t thread;
    struct onednn_stream *onednn;
    float *arena; /* handed out by arena() */
    size_t arena_floats;
    float *scratch; /* of one operation */
    size_t scratch_floats;
    struct error error;  /* of the first operation that failed since the last wait; kind ERROR_NONE: none */
    struct error result; /* of the work of the current parallel(), read by its caller when all are done */
};

typedef int work_function(struct stream *s, size_t i, void *context, struct error *e);

struct cpu {
    struct backend backend; /* first: a struct backend * is a struct cpu * */
    const struct kernels *kernels;
    struct onednn *onednn;
    struct stream *streams;
    size_t count;

    pthread_mutex_t turn; /* held through one parallel() */
    pthread_mutex_t lock; /* covers all below */
    pthread_cond_t start, finish;
    work_function *work; /* of the current round */
    void *context;
    uint64_t round; /* raised to start one */
    size_t busy;    /* workers that have not finished it */
    bool stopping;
};

int workers_start(struct cpu *c, size_t count, struct error *e);
void workers_stop(struct cpu *c);
int workers_run(struct cpu *c, work_function *work, void *context, struct error *e);

/* At least `floats` floats, 64-byte aligned, what they held is lost when they grow. */
float *memory_grow(float **memory, size_t *have, size_t floats);

/* ---- oneDNN ------------------------------------------------------------------------------------------------------ */

int onednn_open(struct onednn **out, struct error *e);
void onednn_close(struct onednn *o);
/* Called by the worker's own thread, which oneDNN then leaves alone: no OpenMP team. */
int onednn_stream_open(struct onednn_stream **out, struct onednn *o, struct error *e);
void onednn_stream_close(struct onednn_stream *s);

int onednn_weight_open(struct weight **out, struct onednn *o, const float *weight, const float *bias, size_t in,
                       size_t width, struct error *e);
int onednn_weight_fill(struct weight *w, struct onednn *o, const float *weight, const float *bias, struct error *e);
void onednn_weight_close(struct weight *w);
size_t onednn_weight_width(const struct weight *w); /* its columns `out` */

/* out [rows, out] = epilogue(in W' + bias), ADD adds to what out holds. rows are rounded up to BACKEND_ROWS. */
int onednn_linear(struct onednn_stream *s, float *out, const float *in, const struct weight *w, enum epilogue epilogue,
                  size_t rows, struct error *e);

/* ---- keys -------------------------------------------------------------------------------------------------------- */

struct keys *cpu_keys_open(struct backend *b, size_t dim, enum key_dtype dtype);
void cpu_keys_close(struct keys *k);
int cpu_keys_sync(struct keys *k, const struct keys_view *view, struct error *e);
int cpu_keys_scan(struct keys *k, const float *queries, size_t n, size_t b, enum key_kind kinds, struct keys_hit *hits,
                  uint32_t *counts, struct error *e);

#endif
