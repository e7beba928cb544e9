/* Compute: a table of operations on device tensors, and the search over keys. gpu/cpu/ implements it with oneDNN and
 * loops of our own; a CUDA plug-in can stand beside it. gpu/encoder/ is written on this table alone.
 *
 * A backend has one or more streams. Calls on one stream run in order; `parallel` runs a function once on every stream
 * at the same time (on a CPU: one worker thread a stream, each with single-threaded oneDNN; on a GPU: one stream), and
 * that function is the only one that sees a stream. */
#ifndef ENGRAM_GPU_BACKEND_H
#define ENGRAM_GPU_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* ---- keys: what the search reads ---- */

enum key_dtype { KEY_BF16, KEY_F32 };
enum key_kind { KEY_INSTANCE = 1, KEY_LABEL = 2, KEY_BOTH = 3 }; /* a mask where a scan names what it wants */

/* One block of rows of one kind, in the memory's own pages: nothing is copied on a CPU. */
struct keys_block {
    const void *vectors;      /* [rows, dim] bf16 or f32, 64-byte aligned, contiguous */
    const uint8_t *candidate; /* [rows]: 1 for a row in use whose value is not zero, else 0 */
    const uint64_t *ties;     /* [rows]: XXH3-64 of the key's name; exact ties break by it, the smaller first */
    uint64_t first_slot;      /* slot of row 0; row r is slot first_slot + r */
    uint64_t version;         /* changes whenever the block changes */
    uint32_t rows;
    uint32_t kind; /* KEY_INSTANCE or KEY_LABEL */
};

/* All blocks of one snapshot of the memory (rows of the tail included, as blocks of their own). Owned by the snapshot
 * and valid until it is released. */
struct keys_view {
    const struct keys_block *blocks;
    size_t count;
    size_t dim;
    enum key_dtype dtype;
};

/* One hit of a scan. */
struct keys_hit {
    float score; /* q.k */
    uint32_t kind;
    uint64_t slot;
    uint64_t tie;
};

/* ---- weights and tensors ---- */

enum epilogue {
    EPILOGUE_NONE, /* out = in W' + bias */
    EPILOGUE_GELU, /* out = gelu(in W' + bias), gelu(x) = x/2 (1 + erf(x / sqrt 2)) */
    EPILOGUE_ADD,  /* out = in W' + bias + residual */
};
enum pooling { POOLING_MEAN, POOLING_CLS };

/* A tensor of [tokens, n] has room for `tokens` rounded up to a multiple of this many rows; nobody reads what stands in
 * the rows behind `tokens`, and an operation may write there. */
#define BACKEND_ROWS 8

struct backend;
struct stream;
struct weight; /* a packed [out, in] matrix with its bias, in the layout that the backend's matmul likes best */

/* The operations. Tensors are row-major f32 in the device's memory; `tokens` counts the rows of a batch without
 * padding; starts is [sequences + 1] (host memory), starts[0] = 0: sequence s owns rows starts[s] .. starts[s + 1] - 1,
 * at least one. Pointers are the device's unless said otherwise. An operation on a stream returns nothing: one that
 * fails is remembered by its stream, those behind it do nothing, and `wait` tells. */
struct backend_operations {
    const char *name;    /* "cpu" */
    const char *library; /* "oneDNN 2.6.3" */

    void (*close)(struct backend *b);
    size_t (*streams)(const struct backend *b);
    /* Runs work(stream i, i, context) on all streams at once and returns when all have; -1 with the first stream's
     * error. Any thread may call; calls go one after another. Never from inside `work`. */
    int (*parallel)(struct backend *b, int (*work)(struct stream *s, size_t i, void *context, struct error *e),
                    void *context, struct error *e);
    /* Returns when all calls on the stream are done: 0, or -1 with the first one's error (then forgotten). */
    int (*wait)(struct stream *s, struct error *e);

    /* Memory of the device, zeroed, 64-byte aligned; the caller releases it. A forward pass may write its intermediates
     * there, to keep them (training), or in the stream's arena. */
    float *(*alloc)(struct backend *b, size_t floats);
    void (*release)(struct backend *b, float *tensor);
    /* The stream's own memory, grown to what a batch needs and used again: valid until the next call on this stream. */
    float *(*arena)(struct stream *s, size_t floats);
    void (*upload)(struct backend *b, float *to, const float *from_host, size_t floats);
    void (*download)(struct stream *s, float *to_host, const float *from, size_t floats);

    /* weight [out, in] and bias [out] (host memory) packed for `linear`; repack takes changed values of the same shape
     * (no pass may be running). */
    int (*weight_pack)(struct backend *b, const float *weight, const float *bias, size_t in, size_t out,
                       struct weight **packed, struct error *e);
    int (*weight_repack)(struct backend *b, struct weight *packed, const float *weight, const float *bias,
                         struct error *e);
    void (*weight_release)(struct backend *b, struct weight *packed);

    /* out [tokens, dim] = layer_norm(word[ids] + position[0, 1, ..] + type[0]): a gather, two sums and layer_norm.
     * ids [tokens]: host memory, each below word's rows. */
    void (*embed)(struct stream *s, float *out, const int32_t *ids, const uint32_t *starts, size_t sequences,
                  const float *word, const float *position, const float *type, const float *gamma, const float *beta,
                  float epsilon, size_t dim);
    /* out [tokens, out] = epilogue(in [tokens, in]): a matmul, a sum with the bias and the epilogue's own operation.
     * residual [tokens, out] for ADD (may be `out` itself), else NULL. */
    void (*linear)(struct stream *s, float *out, const float *in, const struct weight *w, enum epilogue epilogue,
                   const float *residual, size_t tokens);
    /* out [tokens, dim] = (x - mean) / sqrt(variance + epsilon) * gamma + beta over each row; out may be x. */
    void (*layer_norm)(struct stream *s, float *out, const float *x, const float *gamma, const float *beta,
                       float epsilon, size_t tokens, size_t dim);
    /* out [tokens, dim] = softmax(q k' / sqrt(dim / heads)) v for each head inside each sequence: two matmuls and a
     * softmax; qkv [tokens, 3 dim] holds q, k and v side by side, in each of them the heads side by side. */
    void (*attention)(struct stream *s, float *out, const float *qkv, const uint32_t *starts, size_t sequences,
                      size_t heads, size_t dim);
    /* out [sequences, dim]: the mean over a sequence's rows, or its first row, then divided by its L2 norm (a row of
     * zeroes stays; one whose norm is not finite becomes NaN). */
    void (*pool)(struct stream *s, float *out, const float *x, const uint32_t *starts, size_t sequences, size_t dim,
                 enum pooling pooling);

    /* Keys: an opaque set. keys_sync takes a snapshot's view (a CPU only points at it; a device copies blocks whose
     * version changed); keys_scan then searches it: for each query [n, dim] (host memory, f32) the b candidates of
     * largest q.k among the kinds in the mask, sorted by falling score, exact ties (also at the b-th place) by the
     * smaller `tie`. A score that is not a number is no hit. hits is [n, b], counts [n] (fewer than b only where there
     * are fewer candidates). */
    struct keys *(*keys_open)(struct backend *b, size_t dim, enum key_dtype dtype);
    void (*keys_close)(struct keys *k);
    int (*keys_sync)(struct keys *k, const struct keys_view *view, struct error *e);
    int (*keys_scan)(struct keys *k, const float *queries, size_t n, size_t b, enum key_kind kinds,
                     struct keys_hit *hits, uint32_t *counts, struct error *e);

    /* Tokens that one pass on one stream takes best (whole sequences; more only pushes its tensors out of the cache).
     */
    size_t (*tile_tokens)(const struct backend *b);
    /* Tokens of a batch over all streams from which more no longer helps (the smallest that keeps 95 % of the best
     * tokens/s, by measurement). */
    size_t (*batch_tokens)(const struct backend *b);
};

struct backend {
    const struct backend_operations *ops;
};

/* The CPU backend with `threads` workers (0: as many as this process may use). The caller closes it. */
int backend_cpu_open(struct backend **out, size_t threads, struct error *e);
void backend_close(struct backend *b); /* NULL is fine */

#endif
