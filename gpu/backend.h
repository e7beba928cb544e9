/* Compute: a table of operations on device tensors, and the search over keys. gpu/cpu/ implements it with oneDNN and
 * loops of our own; a CUDA plug-in can stand beside it. gpu/encoder/ is written on this table alone.
 *
 * A backend has one or more streams. Calls on one stream run in order; `parallel` runs a function once on every stream at
 * the same time (on a CPU: one worker thread a stream, each with single-threaded oneDNN; on a GPU: one stream). */
#ifndef ENGRAM_GPU_BACKEND_H
#define ENGRAM_GPU_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

/* ---- keys: what the search reads ------------------------------------------------------------------------------- */

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

/* All blocks of one snapshot of the memory (rows of the tail included, as blocks of their own). Owned by the snapshot and valid
 * until it is released. */
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

/* ---- weights and tensors ---------------------------------------------------------------------------------------- */

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16 };
enum epilogue { EPILOGUE_NONE, EPILOGUE_GELU, EPILOGUE_ADD }; /* ADD: out = in W' + bias + residual */
enum pooling { POOLING_MEAN, POOLING_CLS };

struct backend;
struct stream;
struct weight; /* a packed [out, in] matrix with its bias, in the layout that the backend's matmul likes best */

/* The operations. Tensors are row-major f32 in the device's memory; `tokens` counts the rows of a batch without padding;
 * starts is [sequences + 1] (host memory): sequence s owns rows starts[s] .. starts[s + 1] - 1.
 * Each returns 0 or -1 with *e filled. Pointers are the device's unless said otherwise. */
struct backend_operations {
    const char *name;    /* "cpu" */
    const char *library; /* "oneDNN 2.6.3" */

    void (*close)(struct backend *b);
    size_t (*streams)(const struct backend *b);
    struct stream *(*stream)(struct backend *b, size_t i);
    /* Runs work(stream i, i, context) on all streams at once; returns when all have; -1 with the first error. */
    int (*parallel)(struct backend *b, int (*work)(struct stream *s, size_t i, void *context, struct error *e),
                    void *context, struct error *e);
    int (*wait)(struct stream *s, struct error *e);

    /* Memory of the device. alloc zeroes; the arena of a stream grows to what a batch needs and is reused. */
    float *(*alloc)(struct backend *b, size_t floats);
    void (*release)(struct backend *b, float *tensor);
    void (*upload)(struct backend *b, float *to, const float *from_host, size_t floats);
    void (*download)(struct stream *s, float *to_host, const float *from, size_t floats);

    /* weight [out, in] f32 and bias [out] (host memory) packed for `linear`; repack takes changed values. */
    int (*weight_pack)(struct backend *b, const float *weight, const float *bias, size_t in, size_t out,
                       struct weight **packed, struct error *e);
    int (*weight_repack)(struct backend *b, struct weight *packed, const float *weight, const float *bias,
                         struct error *e);
    void (*weight_release)(struct backend *b, struct weight *packed);

    /* out [tokens, dim] = word[ids] + position[0..] + type[0], then layer norm with gamma, beta. ids: host memory. */
    int (*embed)(struct stream *s, float *out, const int32_t *ids, const uint32_t *starts, size_t sequences,
                 const float *word, const float *position, const float *type, const float *gamma, const float *beta,
                 float epsilon, size_t dim, struct error *e);
    /* out [tokens, out] = epilogue(in [tokens, in] W' + bias); residual [tokens, out] for ADD (may be `out` itself). */
    int (*linear)(struct stream *s, float *out, const float *in, const struct weight *w, enum epilogue epilogue,
                  const float *residual, size_t tokens, struct error *e);
    /* x [tokens, dim], in place. */
    int (*layer_norm)(struct stream *s, float *x, const float *gamma, const float *beta, float epsilon, size_t tokens,
                      size_t dim, struct error *e);
    /* out [tokens, dim] from qkv [tokens, 3 dim] (q, k, v side by side), heads of dim / heads, softmax(q k' / sqrt(d)) v
     * inside each sequence. */
    int (*attention)(struct stream *s, float *out, const float *qkv, const uint32_t *starts, size_t sequences,
                     size_t heads, size_t dim, struct error *e);
    /* out [sequences, dim]: mean over a sequence's rows, or its first; then L2 norm when normalise. */
    int (*pool)(struct stream *s, float *out, const float *x, const uint32_t *starts, size_t sequences, size_t dim,
                enum pooling pooling, bool normalise, struct error *e);

    /* Keys: an opaque set. keys_sync takes a snapshot's view (a CPU only points at it; a device copies blocks whose version
     * changed); keys_scan then searches it: for each query [n, dim] (host memory, f32) the b candidates of largest q.k among
     * the kinds in the mask, sorted by falling score, exact ties (also at the b-th place) by the smaller `tie`.
     * hits is [n, b], counts [n] (fewer than b only where there are fewer candidates). */
    struct keys *(*keys_open)(struct backend *b, size_t dim, enum key_dtype dtype);
    void (*keys_close)(struct keys *k);
    int (*keys_sync)(struct keys *k, const struct keys_view *view, struct error *e);
    int (*keys_scan)(struct keys *k, const float *queries, size_t n, size_t b, enum key_kind kinds,
                     struct keys_hit *hits, uint32_t *counts, struct error *e);

    /* Tokens of a batch, over all streams, from which more no longer helps (the smallest that keeps 95 % of the best tokens/s). */
    size_t (*batch_tokens)(const struct backend *b);
};

struct backend {
    const struct backend_operations *ops;
};

/* The CPU backend with `threads` workers (0: as many as this process may use). The caller closes it. */
int backend_cpu_open(struct backend **out, size_t threads, struct error *e);
void backend_close(struct backend *b); /* NULL is fine */

#endif
