/* Compute: a table of operations on typed tensors in a device's memory, and the search over keys. gpu/cpu/ implements
 * it with oneDNN and loops of our own; another device can come as a plug-in (see the end). gpu/encoder/ is written on
 * this table alone.
 *
 * Work goes to a stream. Its calls run in order, copies included, and may still be running when they return; `wait`
 * returns when all are done. Different streams run side by side, each used by one thread at a time. An operation on a
 * stream returns nothing: the first that fails is remembered by its stream, those after it have no effect, and `wait`
 * reports it. What allocates returns its error at once, since device memory can run out: RETRY E_DEVICE_MEMORY, and a
 * smaller tile may fit. Structs that describe arguments (tensors, an embedding, a tile) are read before a call returns.
 *
 * Rows: a tensor that an operation writes has room for its rows rounded up to `row_multiple`. The rows after the last
 * are nobody's: any operation may read or write them, and none depends on what is in them. */
#ifndef ENGRAM_GPU_BACKEND_H
#define ENGRAM_GPU_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- tensors ---- */

enum dtype { DTYPE_BF16, DTYPE_F32 }; /* the numbers are in the memory's files too */

/* A matrix [rows, columns] in the device's memory, row-major and without gaps. */
struct tensor {
    void *data;
    enum dtype dtype;
    size_t rows, columns;
};

/* ---- keys: what the search reads ---- */

enum key_kind { KEY_INSTANCE = 1, KEY_LABEL = 2, KEY_BOTH = 3 }; /* a mask where a scan names what it wants */

/* One block of rows of one kind, in the memory's own pages: nothing is copied on a CPU. */
struct keys_block {
    const void *vectors;      /* [rows, dim] bf16 or f32, 64-byte aligned, contiguous; host memory */
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
    enum dtype dtype;
    uint64_t version; /* of one memory, equal versions are equal views: a set of keys that has it need not look again */
};

/* One hit of a scan. */
struct keys_hit {
    float score; /* q.k */
    uint32_t kind;
    uint64_t slot;
    uint64_t tie;
};

/* ---- what operations take ---- */

/* Whole sequences without padding, in host memory: sequence s owns tokens starts[s] .. starts[s + 1] - 1, at least one.
 */
struct tile {
    const int32_t *ids;     /* [tokens]; NULL where nothing is embedded */
    const uint32_t *starts; /* [sequences + 1], starts[0] = 0 */
    size_t tokens, sequences;
};

struct embedding {
    struct tensor word, position, type; /* f32, [.., dim] */
    struct tensor norm;                 /* as layer_norm's */
    float epsilon;
};

enum epilogue {
    EPILOGUE_NONE, /* out = in W' + bias */
    EPILOGUE_GELU, /* out = gelu(in W' + bias), gelu(x) = x/2 (1 + erf(x / sqrt 2)) */
};
enum pooling { POOLING_MEAN, POOLING_CLS };

struct backend;
struct stream;
struct keys;
struct weight; /* a packed [out, in] matrix with its bias, in the layout that the backend's matmul likes best */

/* What a backend says of itself. */
struct backend_facts {
    const char *name;    /* "cpu" */
    const char *library; /* "oneDNN 2.6.3" */
    const char *device;  /* "2 x NVIDIA H100, driver 13.0"; NULL: the host's CPU */
    enum dtype compute;  /* of activations and of the encoder's packed weights */
    size_t row_multiple;
    size_t streams;      /* how many streams, each with a thread, use the whole device */
    size_t host_threads; /* for what else the host computes, beside the streams' own threads; 0: those do it */
    size_t tile_tokens;  /* tokens that one pass on one stream takes best (whole sequences) */
    size_t batch_tokens; /* tokens of a batch over all streams from which more no longer helps */
    bool host_memory;    /* device memory is the process's own: a pass may be left between two operations for a while */
};

/* ---- the operations ----
 *
 * Tensors are of the compute dtype (activations) where nothing else is said; sums are f32 always. `kept` is a place for
 * what a backward pass needs, NULL where that is not wanted. An entry marked optional may be NULL. */
struct backend_operations {
    void (*close)(struct backend *b); /* streams, weights and keys are closed before */

    int (*stream_open)(struct backend *b, struct stream **out, struct error *e);
    void (*stream_close)(struct stream *s); /* no call on it may be running */
    /* Returns when all calls on the stream are done: 0, or -1 with the first one's error (then forgotten). */
    int (*wait)(struct stream *s, struct error *e);

    /* Memory of the device, zeroed, 64-byte aligned; the caller releases it, with no call on it still running. */
    int (*alloc)(struct backend *b, size_t bytes, void **out, struct error *e);
    void (*release)(struct backend *b, void *memory); /* NULL is fine */
    /* The stream's own memory, 64-byte aligned, grown to what a tile needs and used again: valid until the next call of
     * arena on this stream, which waits for what runs. */
    int (*arena)(struct stream *s, size_t bytes, void **out, struct error *e);
    /* In order with the stream's other calls. The host's side must stay as it is until `wait`. */
    int (*upload)(struct stream *s, void *to, const void *from_host, size_t bytes, struct error *e);
    void (*download)(struct stream *s, void *to_host, const void *from, size_t bytes);
    /* Optional: host memory from which copies need not be staged. */
    int (*host_alloc)(struct backend *b, size_t bytes, void **out, struct error *e);
    void (*host_release)(struct backend *b, void *memory); /* NULL is fine */

    /* Room for a packed weight [width, in] of the compute dtype or f32. weight_pack fills it from the master weight
     * [width, in] and bias [1, width], f32 in device memory, as often as they change (no other stream may be using it).
     */
    int (*weight_open)(struct backend *b, size_t in, size_t width, enum dtype dtype, struct weight **out,
                       struct error *e);
    void (*weight_pack)(struct stream *s, struct weight *w, const struct tensor *weight, const struct tensor *bias);
    void (*weight_close)(struct backend *b, struct weight *w); /* NULL is fine */

    /* Announces the tile that embed, attention and pool work on, and uploads it. The host's side must stay as it is
     * until `wait`. */
    int (*tile)(struct stream *s, const struct tile *tile, struct error *e);
    /* out [tokens, dim] = layer_norm(word[ids] + position[0, 1, ..] + type[0]): a gather, two sums and layer_norm.
     * kept [tokens, 2] f32: mean and 1 / sqrt(variance + epsilon). */
    void (*embed)(struct stream *s, const struct tensor *out, const struct embedding *embedding,
                  const struct tensor *kept);
    /* out [rows, width] = epilogue(in [rows, in]), both of the weight's dtype: a matmul, a sum with the bias and the
     * epilogue's own operation. kept [rows, width]: the values before GELU. */
    void (*linear)(struct stream *s, const struct tensor *out, const struct tensor *in, const struct weight *w,
                   enum epilogue epilogue, const struct tensor *kept);
    /* out [rows, dim] = (y - mean) / sqrt(variance + epsilon) * gamma + beta over each row of y = x + residual (x alone
     * where residual is NULL); out may be x or residual. norm [2, dim] f32: gamma, then beta. kept as embed's. */
    void (*layer_norm)(struct stream *s, const struct tensor *out, const struct tensor *x,
                       const struct tensor *residual, const struct tensor *norm, float epsilon,
                       const struct tensor *kept);
    /* out [tokens, dim] = softmax(q k' / sqrt(dim / heads)) v for each head inside each sequence: two matmuls and a
     * softmax; qkv [tokens, 3 dim] holds q, k and v side by side, in each of them the heads side by side. kept [tokens,
     * heads] f32: ln sum exp(q k' / sqrt(dim / heads)). */
    void (*attention)(struct stream *s, const struct tensor *out, const struct tensor *qkv, size_t heads,
                      const struct tensor *kept);
    /* out [sequences, dim] f32: the mean over a sequence's rows, or its first row. */
    void (*pool)(struct stream *s, const struct tensor *out, const struct tensor *x, enum pooling pooling);
    /* out [rows, columns] = each row of x divided by its L2 norm, both f32; out may be x. A row of zeroes stays; one
     * whose sum of squares is not finite in f32 becomes NaN. kept [rows, 1] f32: the norms, of such a row not finite.
     */
    void (*normalise)(struct stream *s, const struct tensor *out, const struct tensor *x, const struct tensor *kept);

    /* Keys: an opaque set, one for a memory, used from any stream. */
    int (*keys_open)(struct backend *b, size_t dim, enum dtype dtype, struct keys **out, struct error *e);
    void (*keys_close)(struct keys *k);
    /* For each of queries [n, dim] f32 (device) the b candidates of largest q.k in the view among the kinds in the
     * mask, sorted by falling score, exact ties (also at the b-th place) by the smaller `tie`. A score that is not a
     * number is no hit; a view of another dim or dtype is an error. A CPU reads the view where it is; a device first
     * takes the blocks whose version changed, which it knows by their first_slot. Batches overlap: scans of an earlier
     * and of a later view may run on two streams at once. hits [n, b] and counts [n] (fewer than b only where there are
     * fewer candidates) are host memory, written when `wait` returns; view and queries must be there until then, or
     * until the next call of arena. Without a query it only takes the blocks that changed. */
    void (*keys_scan)(struct stream *s, struct keys *k, const struct keys_view *view, const struct tensor *queries,
                      size_t b, enum key_kind kinds, struct keys_hit *hits, uint32_t *counts);

    /* Optional: a thread that has nothing else to do lends itself to the operations of other streams until finished()
     * says so. It brings a stream of its own. */
    void (*assist)(struct stream *s, bool (*finished)(const void *context), const void *context);
};

struct backend {
    const struct backend_operations *ops;
    struct backend_facts facts;
};

/* A tensor of these shapes on the device, zeroed, with room for whole row_multiples; tensor_release frees its data. */
int tensor_alloc(struct backend *b, struct tensor *out, enum dtype dtype, size_t rows, size_t columns, struct error *e);
void tensor_release(struct backend *b, struct tensor *t); /* a tensor of zeroes is fine */
size_t dtype_bytes(enum dtype dtype);
size_t tensor_bytes(const struct backend *b, enum dtype dtype, size_t rows, size_t columns); /* whole row_multiples */

/* ---- opening ---- */

enum compute { COMPUTE_AUTO, COMPUTE_F32, COMPUTE_BF16 }; /* auto: the one that measures faster */

struct backend_options {
    size_t threads; /* the CPU's worker threads; 0: as many as this process may use */
    enum compute compute;
    const int *devices; /* [devices_count]: a plug-in's devices, by their number; none: the first */
    size_t devices_count;
};

/* The CPU backend. The caller closes it. */
int backend_cpu_open(struct backend **out, const struct backend_options *options, struct error *e);
void backend_close(struct backend *b); /* NULL is fine */

/* A plug-in is one shared library with one symbol, engram_backend: a function that returns a struct backend_plugin. It
 * calls nothing of the program but what it is handed, which outlives it. */
#define BACKEND_ABI 2
#define BACKEND_SYMBOL "engram_backend"

struct backend_host {
    int (*error_set)(struct error *e, enum error_class kind, enum error_code code, const char *format, ...);
    void (*log_info)(const char *format, ...);
    void (*log_warn)(const char *format, ...);
};

struct backend_plugin {
    uint32_t abi; /* BACKEND_ABI of the header that it was compiled with */
    int (*open)(struct backend **out, const struct backend_options *options, const struct backend_host *host,
                struct error *e);
};

typedef const struct backend_plugin *backend_plugin_function(void);

/* Loads the shared library at `path`, which stays loaded; it is told how many threads 0 stands for. Errors: FATAL E_NOT_FOUND (no such file, or what it needs is
 * missing), E_INTERNAL (no plug-in, or another ABI), or its own. */
int backend_plugin_open(struct backend **out, const char *path, const struct backend_options *options, struct error *e);

#ifdef __cplusplus
}
#endif

#endif
