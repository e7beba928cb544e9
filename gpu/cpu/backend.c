/* The CPU's table of operations: matmuls by oneDNN, everything else by the loops of our own, on worker threads that
 * each take whole sequences through all operations. Device memory is the process's own. */
#include <oneapi/dnnl/dnnl_version.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "gpu/cpu/internal.h"

/* Measured with tests/bench/encode_bench.c on 2 cores of a Zen 4 (1 MiB L2 each), oneDNN 2.6.3, all-MiniLM-L6-v2.
 * Tokens per CPU second in tiles of 64 / 128 / 256 / 512 / 1,024: titles 3,954 / 4,340 / 4,549 / 4,690 / 4,570, long
 * texts 4,098 / 4,176 / 4,214 / 4,306 / 4,378: what a larger tile saves is rounding and the weights' way from memory,
 * once a tile. Tokens/s of batches on both cores: titles 8,308 at 128, 9,126 at 256, 9,420 at 384, 9,575 at best; long
 * texts 7,522 at 512, 7,960 at 768, 8,350 at best. That is encoding alone on idle cores; in the stage a broker takes
 * turns on them, and the stream that it delays is waited for: texts/s at one tile a stream were 0.82 to 0.85 of
 * encoding alone, at two 0.85 to 0.90 (tests/bench/stage.py). So a batch is two tiles a stream. */
#define TILE_TOKENS 512
#define BATCH_TILES 2

static struct cpu *cpu_of(struct backend *b)
{
    return (struct cpu *)b;
}

static void cpu_close(struct backend *b)
{
    struct cpu *c = cpu_of(b);
    workers_stop(c);
    onednn_close(c->onednn);
    free(c);
}

static size_t cpu_streams(const struct backend *b)
{
    return ((const struct cpu *)b)->count;
}

static int cpu_parallel(struct backend *b, work_function *work, void *context, struct error *e)
{
    return workers_run(cpu_of(b), work, context, e);
}

static int cpu_wait(struct stream *s, struct error *e)
{
    struct error failed = s->error;
    s->error = (struct error){0};
    return failed.kind == ERROR_NONE ? 0 : error_set(e, failed.kind, failed.code, "%s", failed.text);
}

/* ---- memory ------------------------------------------------------------------------------------------------------ */

static float *cpu_alloc(struct backend *b, size_t floats)
{
    (void)b;
    float *tensor = mem_aligned(64, floats * sizeof *tensor);
    memset(tensor, 0, floats * sizeof *tensor);
    return tensor;
}

static void cpu_release(struct backend *b, float *tensor)
{
    (void)b;
    free(tensor);
}

static float *cpu_arena(struct stream *s, size_t floats)
{
    return memory_grow(&s->arena, &s->arena_floats, floats);
}

static void cpu_upload(struct backend *b, float *to, const float *from_host, size_t floats)
{
    (void)b;
    memcpy(to, from_host, floats * sizeof *to);
}

static void cpu_download(struct stream *s, float *to_host, const float *from, size_t floats)
{
    (void)s;
    memcpy(to_host, from, floats * sizeof *to_host);
}

static int cpu_weight_pack(struct backend *b, const float *weight, const float *bias, size_t in, size_t out,
                           struct weight **packed, struct error *e)
{
    return onednn_weight_open(packed, cpu_of(b)->onednn, weight, bias, in, out, e);
}

static int cpu_weight_repack(struct backend *b, struct weight *packed, const float *weight, const float *bias,
                             struct error *e)
{
    return onednn_weight_fill(packed, cpu_of(b)->onednn, weight, bias, e);
}

static void cpu_weight_release(struct backend *b, struct weight *packed)
{
    (void)b;
    onednn_weight_close(packed);
}

/* ---- operations -------------------------------------------------------------------------------------------------- */

static void cpu_embed(struct stream *s, float *out, const int32_t *ids, const uint32_t *starts, size_t sequences,
                      const float *word, const float *position, const float *type, const float *gamma,
                      const float *beta, float epsilon, size_t dim)
{
    const struct kernels *k = s->cpu->kernels;
    for (size_t i = 0; i < sequences; i++) {
        for (size_t row = starts[i]; row < starts[i + 1]; row++) {
            k->sum(out + row * dim, word + (size_t)ids[row] * dim, position + (row - starts[i]) * dim, type, dim);
        }
    }
    k->layer_norm(out, out, gamma, beta, epsilon, starts[sequences], dim);
}

static void cpu_linear(struct stream *s, float *out, const float *in, const struct weight *w, enum epilogue epilogue,
                       const float *residual, size_t tokens)
{
    if (s->error.kind != ERROR_NONE) {
        return;
    }
    if (epilogue == EPILOGUE_ADD && residual != out) {
        memcpy(out, residual, tokens * onednn_weight_width(w) * sizeof *out);
    }
    onednn_linear(s->onednn, out, in, w, epilogue, tokens, &s->error);
}

static void cpu_layer_norm(struct stream *s, float *out, const float *x, const float *gamma, const float *beta,
                           float epsilon, size_t tokens, size_t dim)
{
    s->cpu->kernels->layer_norm(out, x, gamma, beta, epsilon, tokens, dim);
}

static void cpu_attention(struct stream *s, float *out, const float *qkv, const uint32_t *starts, size_t sequences,
                          size_t heads, size_t dim)
{
    const struct kernels *k = s->cpu->kernels;
    for (size_t i = 0; i < sequences; i++) {
        size_t first = starts[i], rows = starts[i + 1] - first;
        float *scratch = memory_grow(&s->scratch, &s->scratch_floats, attention_scratch(k, rows, dim / heads));
        k->attention(out + first * dim, qkv + first * 3 * dim, rows, heads, dim, scratch);
    }
}

static void cpu_pool(struct stream *s, float *out, const float *x, const uint32_t *starts, size_t sequences, size_t dim,
                     enum pooling pooling)
{
    const struct kernels *k = s->cpu->kernels;
    for (size_t i = 0; i < sequences; i++) {
        size_t rows = pooling == POOLING_CLS ? 1 : starts[i + 1] - starts[i];
        k->mean(out + i * dim, x + starts[i] * dim, rows, dim);
        k->normalise(out + i * dim, dim);
    }
}

static size_t cpu_tile_tokens(const struct backend *b)
{
    (void)b;
    return TILE_TOKENS;
}

static size_t cpu_batch_tokens(const struct backend *b)
{
    return cpu_streams(b) * BATCH_TILES * TILE_TOKENS;
}

#define TEXT_OF(x) #x
#define VERSION_TEXT(major, minor, patch) "oneDNN " TEXT_OF(major) "." TEXT_OF(minor) "." TEXT_OF(patch)

static const struct backend_operations operations = {
    .name = "cpu",
    .library = VERSION_TEXT(DNNL_VERSION_MAJOR, DNNL_VERSION_MINOR, DNNL_VERSION_PATCH),
    .close = cpu_close,
    .streams = cpu_streams,
    .parallel = cpu_parallel,
    .wait = cpu_wait,
    .alloc = cpu_alloc,
    .release = cpu_release,
    .arena = cpu_arena,
    .upload = cpu_upload,
    .download = cpu_download,
    .weight_pack = cpu_weight_pack,
    .weight_repack = cpu_weight_repack,
    .weight_release = cpu_weight_release,
    .embed = cpu_embed,
    .linear = cpu_linear,
    .layer_norm = cpu_layer_norm,
    .attention = cpu_attention,
    .pool = cpu_pool,
    .keys_open = cpu_keys_open,
    .keys_close = cpu_keys_close,
    .keys_sync = cpu_keys_sync,
    .keys_scan = cpu_keys_scan,
    .tile_tokens = cpu_tile_tokens,
    .batch_tokens = cpu_batch_tokens,
};

int backend_cpu_open(struct backend **out, size_t threads, struct error *e)
{
    int result = -1;
    struct cpu *c = mem_zero(1, sizeof *c);
    c->backend.ops = &operations;
    c->kernels = kernels_best();
    if (onednn_open(&c->onednn, e) != 0) {
        free(c);
        return -1;
    }
    if (workers_start(c, threads ? threads : threads_allowed(), e) != 0) {
        goto done;
    }
    *out = &c->backend;
    c = NULL;
    result = 0;
done:
    if (c) {
        cpu_close(&c->backend);
    }
    return result;
}
