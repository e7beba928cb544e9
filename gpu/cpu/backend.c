/* The CPU's table of operations: matmuls by oneDNN, everything else by the loops of our own. A stream is the calling
 * thread's: every call is done when it returns, and device memory is the process's own. */
#include <oneapi/dnnl/dnnl_version.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "gpu/cpu/internal.h"

/* Measured with tests/bench/encode_bench.c on 2 cores of a Zen 4 (1 MiB L2 each), oneDNN 2.6.3, all-MiniLM-L6-v2.
 * Tokens per CPU second in tiles of 64 / 128 / 256 / 512 / 1,024: titles 3,954 / 4,340 / 4,549 / 4,690 / 4,570, long
 * texts 4,098 / 4,176 / 4,214 / 4,306 / 4,378: what a larger tile saves is rounding and the weights' way from memory,
 * once a tile. In bf16 on AMX, tiles of 1,024 are 2 to 5 % faster than those of 512, and 6 to 8 % with a search over
 * 25,000 keys, which is one for each tile. A batch is one tile a stream and one to come: a stream that is held up
 * leaves it to the others. */
#define TILE_TOKENS 512
#define TILE_TOKENS_BF16 1024
#define BATCH_TILES 2
#define BATCH_TOKENS_MAX 16384 /* 3 s at 5,000 tokens/s: nobody waits longer, however many threads there are */

#define GROUPS 4 /* of heads, where streams share a sequence's attention */

static struct cpu *cpu_of(struct backend *b)
{
    return (struct cpu *)b;
}

static void cpu_close(struct backend *b)
{
    struct cpu *c = cpu_of(b);
    onednn_close(c->onednn);
    free(c);
}

/* ---- streams ----------------------------------------------------------------------------------------------------- */

static void cpu_stream_close(struct stream *s)
{
    onednn_stream_close(s->onednn);
    found_free(s->found);
    free(s->arena);
    free(s->scratch);
    free(s);
}

static int cpu_stream_open(struct backend *b, struct stream **out, struct error *e)
{
    struct stream *s = mem_zero(1, sizeof *s);
    s->cpu = cpu_of(b);
    if (onednn_stream_open(&s->onednn, s->cpu->onednn, e)) {
        cpu_stream_close(s);
        return -1;
    }
    *out = s;
    return 0;
}

static int cpu_wait(struct stream *s, struct error *e)
{
    struct error failed = s->error;
    s->error = (struct error){0};
    return failed.kind == ERROR_NONE ? 0 : error_set(e, failed.kind, failed.code, "%s", failed.text);
}

static bool stream_failed(const struct stream *s)
{
    return s->error.kind != ERROR_NONE;
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static int cpu_alloc(struct backend *b, size_t bytes, void **out, struct error *e)
{
    (void)b, (void)e;
    *out = memory_zero(bytes);
    return 0;
}

static void cpu_release(struct backend *b, void *memory)
{
    (void)b;
    free(memory);
}

static int cpu_arena(struct stream *s, size_t bytes, void **out, struct error *e)
{
    (void)e;
    *out = memory_grow(&s->arena, &s->arena_bytes, bytes);
    return 0;
}

static int cpu_upload(struct stream *s, void *to, const void *from_host, size_t bytes, struct error *e)
{
    (void)e;
    if (!stream_failed(s)) {
        memcpy(to, from_host, bytes);
    }
    return 0;
}

static void cpu_download(struct stream *s, void *to_host, const void *from, size_t bytes)
{
    if (!stream_failed(s)) {
        memcpy(to_host, from, bytes);
    }
}

static int cpu_weight_open(struct backend *b, size_t in, size_t width, enum dtype dtype, struct weight **out,
                           struct error *e)
{
    return onednn_weight_open(out, cpu_of(b)->onednn, in, width, dtype, b->facts.streams, e);
}

static void cpu_weight_pack(struct stream *s, struct weight *w, const struct tensor *weight, const struct tensor *bias)
{
    if (!stream_failed(s)) {
        onednn_weight_fill(w, s->cpu->onednn, weight->data, bias->data, &s->error);
    }
}

static void cpu_weight_close(struct backend *b, struct weight *w)
{
    (void)b;
    onednn_weight_close(w);
}

/* ---- operations -------------------------------------------------------------------------------------------------- */

static int cpu_tile(struct stream *s, const struct tile *tile, struct error *e)
{
    (void)e;
    s->tile = *tile;
    return 0;
}

/* Room for one row's values, or for a block's; what was in it is lost where it grows. */
static float *stream_scratch(struct stream *s, size_t floats)
{
    return memory_grow(&s->scratch, &s->scratch_bytes, floats * sizeof(float));
}

static float *kept_of(const struct tensor *kept)
{
    return kept ? kept->data : NULL;
}

static void *row_of(const struct tensor *t, size_t row)
{
    return (char *)t->data + row * t->columns * dtype_bytes(t->dtype);
}

static void cpu_embed(struct stream *s, const struct tensor *out, const struct embedding *embedding,
                      const struct tensor *kept)
{
    const struct kernels *k = s->cpu->kernels;
    const struct tile *t = &s->tile;
    const size_t dim = out->columns;
    const float *word = embedding->word.data, *position = embedding->position.data, *type = embedding->type.data;
    float *scratch = stream_scratch(s, dim);
    for (size_t i = 0; i < t->sequences && !stream_failed(s); i++) {
        for (size_t row = t->starts[i]; row < t->starts[i + 1]; row++) {
            k->embed(row_of(out, row), out->dtype, word + (size_t)t->ids[row] * dim,
                     position + (row - t->starts[i]) * dim, type, embedding->norm.data, embedding->epsilon, dim,
                     kept ? kept_of(kept) + 2 * row : NULL, scratch);
        }
    }
}

struct linear {
    const struct tensor *out, *in, *kept;
    const struct weight *weight;
    enum epilogue epilogue;
};

/* GELU is a loop of its own over a piece that is still in the cache: oneDNN's costs a quarter of its matmul. */
static void linear_part(struct stream *s, const void *operation, bool shared, size_t part)
{
    const struct linear *l = operation;
    const struct tensor *out = l->out, *product = l->kept ? l->kept : out;
    const struct piece piece = onednn_piece(l->weight, l->in->rows, shared, part);
    const size_t first = piece.column * dtype_bytes(out->dtype);
    if (onednn_linear(s->onednn, product->data, l->in->data, l->weight, &piece, &s->error) == 0 &&
        l->epilogue == EPILOGUE_GELU) {
        s->cpu->kernels->gelu((char *)row_of(out, piece.row) + first, (char *)row_of(product, piece.row) + first,
                              out->dtype, piece.rows, piece.columns, out->columns);
    }
}

static void cpu_linear(struct stream *s, const struct tensor *out, const struct tensor *in, const struct weight *w,
                       enum epilogue epilogue, const struct tensor *kept)
{
    const struct linear linear = {out, in, epilogue == EPILOGUE_GELU ? kept : NULL, w, epilogue};
    const size_t parts[2] = {onednn_pieces(w, in->rows, false), onednn_pieces(w, in->rows, true)};
    if (!stream_failed(s)) {
        share_run(s, linear_part, &linear, parts);
    }
}

static void cpu_layer_norm(struct stream *s, const struct tensor *out, const struct tensor *x,
                           const struct tensor *residual, const struct tensor *norm, float epsilon,
                           const struct tensor *kept)
{
    if (!stream_failed(s)) {
        s->cpu->kernels->layer_norm(out->data, x->data, residual ? residual->data : NULL, x->dtype, norm->data, epsilon,
                                    x->rows, x->columns, kept_of(kept), stream_scratch(s, x->columns));
    }
}

struct attention {
    const struct tensor *out, *qkv, *kept;
    const struct tile *tile; /* the owner's: a helper's stream has another */
    size_t heads;
    size_t groups[2]; /* of heads, each a part: one where it is not shared */
};

static void attention_part(struct stream *s, const void *operation, bool shared, size_t part)
{
    const struct attention *a = operation;
    const struct kernels *k = s->cpu->kernels;
    const size_t groups = a->groups[shared], sequence = part / groups, group = part % groups;
    const size_t row = a->tile->starts[sequence], rows = a->tile->starts[sequence + 1] - row;
    const size_t first = group * a->heads / groups, count = (group + 1) * a->heads / groups - first;
    const size_t dim = a->out->columns;
    k->attention(row_of(a->out, row), row_of(a->qkv, row), a->out->dtype, rows, a->heads, first, count, dim,
                 a->kept ? kept_of(a->kept) + row * a->heads : NULL,
                 stream_scratch(s, attention_scratch(k, rows, dim / a->heads)));
}

static void cpu_attention(struct stream *s, const struct tensor *out, const struct tensor *qkv, size_t heads,
                          const struct tensor *kept)
{
    const struct attention a = {out, qkv, kept, &s->tile, heads, {1, heads < GROUPS ? heads : GROUPS}};
    const size_t sequences = s->tile.sequences, parts[2] = {sequences, sequences * a.groups[true]};
    if (!stream_failed(s)) {
        share_run(s, attention_part, &a, parts);
    }
}

static void cpu_pool(struct stream *s, const struct tensor *out, const struct tensor *x, enum pooling pooling)
{
    const struct tile *t = &s->tile;
    const size_t dim = x->columns;
    for (size_t i = 0; i < t->sequences && !stream_failed(s); i++) {
        const size_t rows = pooling == POOLING_CLS ? 1 : t->starts[i + 1] - t->starts[i];
        s->cpu->kernels->mean(row_of(out, i), row_of(x, t->starts[i]), x->dtype, rows, dim);
    }
}

static void cpu_normalise(struct stream *s, const struct tensor *out, const struct tensor *x, const struct tensor *kept)
{
    const size_t dim = x->columns;
    const float *from = x->data;
    float *to = out->data, *norms = kept_of(kept);
    for (size_t i = 0; i < x->rows && !stream_failed(s); i++) {
        float norm = s->cpu->kernels->normalise(to + i * dim, from + i * dim, dim);
        if (norms) {
            norms[i] = norm;
        }
    }
}

#define TEXT_OF(x) #x
#define VERSION_TEXT(major, minor, patch) "oneDNN " TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)

static const struct backend_operations operations = {
    .close = cpu_close,
    .stream_open = cpu_stream_open,
    .stream_close = cpu_stream_close,
    .wait = cpu_wait,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .arena = cpu_arena,
    .upload = cpu_upload,
    .download = cpu_download,
    .weight_open = cpu_weight_open,
    .weight_pack = cpu_weight_pack,
    .weight_close = cpu_weight_close,
    .tile = cpu_tile,
    .embed = cpu_embed,
    .linear = cpu_linear,
    .layer_norm = cpu_layer_norm,
    .attention = cpu_attention,
    .pool = cpu_pool,
    .normalise = cpu_normalise,
    .keys_open = cpu_keys_open,
    .keys_close = cpu_keys_close,
    .keys_scan = cpu_keys_scan,
    .assist = cpu_assist,
};

/* Whether a linear takes less time in bf16: one of the model-like shape [128, 384] -> 1,536, the best of several. */
static int bf16_pays(struct cpu *c, bool *out, struct error *e)
{
    enum { ROUNDS = 5, ROWS = 128, IN = 384, WIDTH = 1536 };
    uint64_t best[] = {[DTYPE_BF16] = UINT64_MAX, [DTYPE_F32] = UINT64_MAX};
    struct stream *s = NULL;
    struct tensor in = {0}, to = {0};
    int result = cpu_stream_open(&c->backend, &s, e);
    for (enum dtype dtype = DTYPE_BF16; dtype <= DTYPE_F32 && result == 0; dtype++) {
        struct weight *w = NULL;
        result = onednn_weight_open(&w, c->onednn, IN, WIDTH, dtype, c->backend.facts.streams, e) ||
                         tensor_alloc(&c->backend, &in, dtype, ROWS, IN, e) ||
                         tensor_alloc(&c->backend, &to, dtype, ROWS, WIDTH, e)
                     ? -1
                     : 0;
        for (size_t round = 0; round < ROUNDS && result == 0; round++) {
            const uint64_t start = clock_us();
            cpu_linear(s, &to, &in, w, EPILOGUE_NONE, NULL);
            const uint64_t took = clock_us() - start;
            best[dtype] = took < best[dtype] ? took : best[dtype];
            result = cpu_wait(s, e);
        }
        tensor_release(&c->backend, &in);
        tensor_release(&c->backend, &to);
        onednn_weight_close(w);
    }
    if (s) {
        cpu_stream_close(s);
    }
    *out = best[DTYPE_BF16] < best[DTYPE_F32];
    return result;
}

static int compute_choose(struct cpu *c, const struct backend_options *options, struct error *e)
{
    bool bf16 = options->compute == COMPUTE_BF16;
    if (options->compute == COMPUTE_AUTO && onednn_bf16() && bf16_pays(c, &bf16, e)) {
        return -1;
    }
    struct backend_facts *facts = &c->backend.facts;
    facts->compute = bf16 ? DTYPE_BF16 : DTYPE_F32;
    facts->tile_tokens = bf16 && onednn_bf16() ? TILE_TOKENS_BF16 : TILE_TOKENS;
    facts->batch_tokens = facts->streams * BATCH_TILES * facts->tile_tokens;
    facts->batch_tokens = facts->batch_tokens < BATCH_TOKENS_MAX ? facts->batch_tokens : BATCH_TOKENS_MAX;
    return 0;
}

int backend_cpu_open(struct backend **out, const struct backend_options *options, struct error *e)
{
    struct cpu *c = mem_aligned(_Alignof(struct cpu), sizeof *c);
    const size_t streams = options->threads ? options->threads : threads_allowed();
    memset(c, 0, sizeof *c);
    c->backend.ops = &operations;
    c->backend.facts = (struct backend_facts){
        .name = "cpu",
        .library = VERSION_TEXT(DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH),
        .row_multiple = CPU_ROWS,
        .streams = streams,
        .host_memory = true,
    };
    c->kernels = kernels_best(onednn_amx());
    if (onednn_open(&c->onednn, c->kernels, e) || compute_choose(c, options, e)) {
        cpu_close(&c->backend);
        return -1;
    }
    *out = &c->backend;
    return 0;
}
