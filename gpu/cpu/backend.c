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
 * once a tile. A batch is one tile a stream and one to come: a stream that is held up leaves it to the others. */
#define TILE_TOKENS 512
#define BATCH_TILES 2

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

/* Where the process has no memory left, mem_aligned ends it with one line. */
static void *memory_zeroed(size_t bytes)
{
    void *memory = mem_aligned(64, bytes);
    memset(memory, 0, bytes);
    return memory;
}

void *memory_grow(void **memory, size_t *have, size_t bytes)
{
    if (*have < bytes) {
        free(*memory);
        *memory = memory_zeroed(bytes);
        *have = bytes;
    }
    return *memory;
}

float *stream_scratch(struct stream *s, size_t floats)
{
    void *scratch = s->scratch;
    size_t have = s->scratch_floats * sizeof(float);
    s->scratch = memory_grow(&scratch, &have, floats * sizeof(float));
    s->scratch_floats = have / sizeof(float);
    return s->scratch;
}

static int cpu_alloc(struct backend *b, size_t bytes, void **out, struct error *e)
{
    (void)b, (void)e;
    *out = memory_zeroed(bytes);
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
    return onednn_weight_open(out, cpu_of(b)->onednn, in, width, dtype, e);
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

static float *kept_of(const struct tensor *kept)
{
    return kept ? kept->data : NULL;
}

static void cpu_embed(struct stream *s, const struct tensor *out, const struct embedding *embedding,
                      const struct tensor *kept)
{
    const struct kernels *k = s->cpu->kernels;
    const struct tile *t = &s->tile;
    const size_t dim = out->columns;
    const float *word = embedding->word.data, *position = embedding->position.data, *type = embedding->type.data;
    float *rows = out->data;
    if (stream_failed(s)) {
        return;
    }
    for (size_t i = 0; i < t->sequences; i++) {
        for (size_t row = t->starts[i]; row < t->starts[i + 1]; row++) {
            k->sum(rows + row * dim, word + (size_t)t->ids[row] * dim, position + (row - t->starts[i]) * dim, type,
                   dim);
        }
    }
    k->layer_norm(rows, rows, NULL, embedding->norm.data, embedding->epsilon, t->tokens, dim, kept_of(kept));
}

static void cpu_linear(struct stream *s, const struct tensor *out, const struct tensor *in, const struct weight *w,
                       enum epilogue epilogue, const struct tensor *kept)
{
    const bool apart = kept && epilogue == EPILOGUE_GELU;
    if (stream_failed(s) || onednn_linear(s->onednn, apart ? kept->data : out->data, in->data, w,
                                          apart ? EPILOGUE_NONE : epilogue, in->rows, &s->error)) {
        return;
    }
    if (apart) {
        s->cpu->kernels->gelu(out->data, kept->data, out->rows * out->columns);
    }
}

static void cpu_layer_norm(struct stream *s, const struct tensor *out, const struct tensor *x,
                           const struct tensor *residual, const struct tensor *norm, float epsilon,
                           const struct tensor *kept)
{
    if (!stream_failed(s)) {
        s->cpu->kernels->layer_norm(out->data, x->data, residual ? residual->data : NULL, norm->data, epsilon, x->rows,
                                    x->columns, kept_of(kept));
    }
}

static void cpu_attention(struct stream *s, const struct tensor *out, const struct tensor *qkv, size_t heads,
                          const struct tensor *kept)
{
    const struct kernels *k = s->cpu->kernels;
    const struct tile *t = &s->tile;
    const size_t dim = out->columns;
    float *to = out->data, *kept_rows = kept_of(kept);
    const float *from = qkv->data;
    for (size_t i = 0; i < t->sequences && !stream_failed(s); i++) {
        size_t first = t->starts[i], rows = t->starts[i + 1] - first;
        float *scratch = stream_scratch(s, attention_scratch(k, rows, dim / heads));
        k->attention(to + first * dim, from + first * 3 * dim, rows, heads, dim,
                     kept_rows ? kept_rows + first * heads : NULL, scratch);
    }
}

static void cpu_pool(struct stream *s, const struct tensor *out, const struct tensor *x, enum pooling pooling)
{
    const struct tile *t = &s->tile;
    const size_t dim = x->columns;
    const float *from = x->data;
    float *to = out->data;
    for (size_t i = 0; i < t->sequences && !stream_failed(s); i++) {
        size_t rows = pooling == POOLING_CLS ? 1 : t->starts[i + 1] - t->starts[i];
        s->cpu->kernels->mean(to + i * dim, from + t->starts[i] * dim, rows, dim);
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
};

int backend_cpu_open(struct backend **out, const struct backend_options *options, struct error *e)
{
    struct cpu *c = mem_zero(1, sizeof *c);
    const size_t streams = options->threads ? options->threads : threads_allowed();
    c->backend.ops = &operations;
    c->backend.facts = (struct backend_facts){
        .name = "cpu",
        .library = VERSION_TEXT(DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH),
        .compute = DTYPE_F32,
        .row_multiple = CPU_ROWS,
        .streams = streams,
        .tile_tokens = TILE_TOKENS,
        .batch_tokens = streams * BATCH_TILES * TILE_TOKENS,
        .host_memory = true,
    };
    c->kernels = kernels_best();
    if (onednn_open(&c->onednn, e)) {
        cpu_close(&c->backend);
        return -1;
    }
    *out = &c->backend;
    return 0;
}
