/* What a GPU gives: tokens/s of encoding, searches over many keys, a fold until it is seen. Prints Markdown tables for
 * docs/GPU.md. Needs the plug-in beside it and the CUDA runtime; weights and keys are random.
 *   gpu_bench [--tiny]      tiny: sizes at which it runs on an emulated device, to see that it runs */
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cuda_runtime.h>

#include "gpu/backend.h"
#include "tests/backend/beside.h"

static struct backend *backend;
static const struct backend_operations *ops;
static bool tiny;
static struct error error;

static void die(void)
{
    fprintf(stderr, "gpu_bench: %s\n", error.text);
    exit(1);
}

static void must(int result)
{
    if (result) {
        die();
    }
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void *memory_of(size_t bytes)
{
    void *memory = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!memory) {
        snprintf(error.text, sizeof error.text, "out of memory");
        die();
    }
    return memory;
}

/* ---- the device's own limits ---- */

static struct tensor tensor_random(struct stream *s, size_t rows, size_t columns, float scale)
{
    struct tensor t;
    uint64_t state = rows * 2654435761U + columns;
    float *values = (float *)memory_of(rows * columns * sizeof *values);
    for (size_t i = 0; i < rows * columns; i++) {
        values[i] = scale * ((float)(random_next(&state) >> 40) / (float)(1 << 23) - 1);
    }
    must(tensor_alloc(backend, &t, DTYPE_F32, rows, columns, &error));
    must(ops->upload(s, t.data, values, rows * columns * sizeof *values, &error));
    must(ops->wait(s, &error));
    free(values);
    return t;
}

static struct weight *weight_random(struct stream *s, size_t in, size_t width, enum dtype dtype)
{
    struct weight *w;
    struct tensor master = tensor_random(s, width, in, 0.05F), bias = tensor_random(s, 1, width, 0.05F);
    must(ops->weight_open(backend, in, width, dtype, &w, &error));
    ops->weight_pack(s, w, &master, &bias);
    must(ops->wait(s, &error));
    tensor_release(backend, &master);
    tensor_release(backend, &bias);
    return w;
}

/* TFLOP/s of an n x n matmul in bf16 on one stream, the best of some. */
static double gemm_rate(struct stream *s, size_t n)
{
    double best = 0;
    struct tensor in, out;
    struct weight *w = weight_random(s, n, n, DTYPE_BF16);
    must(tensor_alloc(backend, &in, DTYPE_BF16, n, n, &error));
    must(tensor_alloc(backend, &out, DTYPE_BF16, n, n, &error));
    uint16_t *values = (uint16_t *)memory_of(n * n * sizeof *values);
    uint64_t state = 7;
    for (size_t i = 0; i < n * n; i++) { /* of magnitude 0.5 to 1, either sign: on zeroes a GPU is faster */
        values[i] = (uint16_t)(0x3F00 | (random_next(&state) >> 32 & 0x807F));
    }
    must(ops->upload(s, in.data, values, n * n * sizeof *values, &error));
    must(ops->wait(s, &error));
    free(values);
    for (int round = 0; round < 5; round++) {
        const int times = tiny ? 1 : 20;
        const double start = seconds();
        for (int i = 0; i < times; i++) {
            ops->linear(s, &out, &in, w, EPILOGUE_NONE, NULL);
        }
        must(ops->wait(s, &error));
        const double rate = 2.0 * (double)n * (double)n * (double)n * times / (seconds() - start) / 1e12;
        best = rate > best ? rate : best;
    }
    tensor_release(backend, &in);
    tensor_release(backend, &out);
    ops->weight_close(backend, w);
    return best;
}

/* Bytes/s read and written by a copy on the device. */
static double copy_rate(size_t bytes)
{
    void *from = NULL, *to = NULL;
    double best = 0;
    if (cudaMalloc(&from, bytes) != cudaSuccess || cudaMalloc(&to, bytes) != cudaSuccess) {
        snprintf(error.text, sizeof error.text, "no device memory for %zu bytes twice", bytes);
        die();
    }
    cudaMemset(from, 1, bytes);
    cudaDeviceSynchronize();
    for (int round = 0; round < 5; round++) {
        const int times = tiny ? 1 : 10;
        const double start = seconds();
        for (int i = 0; i < times; i++) {
            cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, 0);
        }
        cudaDeviceSynchronize();
        const double rate = 2.0 * (double)bytes * times / (seconds() - start);
        best = rate > best ? rate : best;
    }
    cudaFree(from);
    cudaFree(to);
    return best;
}

/* ---- encoding ---- */

enum { DIM = 384, WIDE = 1536, HEADS = 12, LAYERS = 6, WORDS = 30522, POSITIONS = 512 }; /* all-MiniLM-L6-v2 */

static struct model {
    struct embedding embedding;
    struct {
        struct weight *qkv, *attended, *hidden, *output;
        struct tensor norm1, norm2;
    } layers[LAYERS];
} model;

static void model_make(struct stream *s)
{
    model.embedding = {tensor_random(s, WORDS, DIM, 1), tensor_random(s, POSITIONS, DIM, 1),
                       tensor_random(s, 2, DIM, 1), tensor_random(s, 2, DIM, 1), 1e-12F};
    for (int i = 0; i < LAYERS; i++) {
        model.layers[i] = {weight_random(s, DIM, 3 * DIM, backend->facts.compute),
                           weight_random(s, DIM, DIM, backend->facts.compute),
                           weight_random(s, DIM, WIDE, backend->facts.compute),
                           weight_random(s, WIDE, DIM, backend->facts.compute),
                           tensor_random(s, 2, DIM, 1),
                           tensor_random(s, 2, DIM, 1)};
    }
}

static struct tensor place(size_t *next, void *memory, enum dtype dtype, size_t rows, size_t columns)
{
    struct tensor t = {memory ? (char *)memory + *next : NULL, dtype, rows, columns};
    *next += (tensor_bytes(backend, dtype, rows, columns) + 63) / 64 * 64;
    return t;
}

/* The encoder's pass, as gpu/encoder/forward.c has it. */
static void pass(struct stream *s, const struct tile *tile, float *vectors)
{
    const enum dtype dtype = backend->facts.compute;
    struct tensor x = {}, qkv = {}, context = {}, middle = {}, hidden = {}, pooled = {};
    void *memory = NULL;
    for (int round = 0; round < 2; round++) {
        size_t next = 0;
        x = place(&next, memory, dtype, tile->tokens, DIM);
        qkv = place(&next, memory, dtype, tile->tokens, 3 * DIM);
        context = place(&next, memory, dtype, tile->tokens, DIM);
        middle = place(&next, memory, dtype, tile->tokens, DIM);
        hidden = place(&next, memory, dtype, tile->tokens, WIDE);
        pooled = place(&next, memory, DTYPE_F32, tile->sequences, DIM);
        must(round == 0 ? ops->arena(s, next, &memory, &error) : 0);
    }
    must(ops->tile(s, tile, &error));
    ops->embed(s, &x, &model.embedding, NULL);
    for (int i = 0; i < LAYERS; i++) {
        ops->linear(s, &qkv, &x, model.layers[i].qkv, EPILOGUE_NONE, NULL);
        ops->attention(s, &context, &qkv, HEADS, NULL);
        ops->linear(s, &middle, &context, model.layers[i].attended, EPILOGUE_NONE, NULL);
        ops->layer_norm(s, &middle, &middle, &x, &model.layers[i].norm1, 1e-12F, NULL);
        ops->linear(s, &hidden, &middle, model.layers[i].hidden, EPILOGUE_GELU, NULL);
        ops->linear(s, &x, &hidden, model.layers[i].output, EPILOGUE_NONE, NULL);
        ops->layer_norm(s, &x, &x, &middle, &model.layers[i].norm2, 1e-12F, NULL);
    }
    ops->pool(s, &pooled, &x, POOLING_MEAN);
    ops->normalise(s, &pooled, &pooled, NULL);
    ops->download(s, vectors, pooled.data, tile->sequences * DIM * sizeof *vectors);
}

struct encoding {
    size_t length; /* about, of each text */
    double until;
    size_t tokens; /* encoded */
};

static struct tile tile_make(size_t length, size_t tokens, int32_t *ids, uint32_t *starts)
{
    uint64_t state = length;
    struct tile t = {ids, starts, 0, 0};
    for (;;) {
        const size_t n = length * 3 / 4 + random_next(&state) % (length / 2 + 1);
        if (t.sequences && t.tokens + n > tokens) {
            return t;
        }
        for (size_t i = 0; i < n; i++) {
            ids[t.tokens++] = (int32_t)(random_next(&state) % WORDS);
        }
        starts[++t.sequences] = (uint32_t)t.tokens;
    }
}

static void *encode(void *context)
{
    struct encoding *x = (struct encoding *)context;
    struct error mine = {};
    struct stream *s;
    void *host;
    const size_t tokens = tiny ? 160 : backend->facts.tile_tokens, bytes = tokens * sizeof(int32_t);
    if (ops->stream_open(backend, &s, &mine) ||
        ops->host_alloc(backend, 2 * bytes + 64 + tokens * DIM * sizeof(float), &host, &mine)) {
        error = mine;
        die();
    }
    int32_t *ids = (int32_t *)host;
    uint32_t *starts = (uint32_t *)(ids + tokens);
    starts[0] = 0;
    const struct tile tile = tile_make(x->length, tokens, ids, starts);
    float *vectors = (float *)(void *)((char *)host + (2 * bytes + 64) / 64 * 64);
    pass(s, &tile, vectors);
    must(ops->wait(s, &mine));
    do {
        pass(s, &tile, vectors);
        if (ops->wait(s, &mine)) {
            error = mine;
            die();
        }
        x->tokens += tile.tokens;
    } while (seconds() < x->until);
    ops->host_release(backend, host);
    ops->stream_close(s);
    return NULL;
}

/* Tokens/s of all streams, each with its thread. */
static double encode_rate(size_t length)
{
    struct encoding x[64];
    pthread_t threads[64];
    const size_t n = backend->facts.streams;
    const double start = seconds();
    size_t tokens = 0;
    for (size_t i = 0; i < n; i++) {
        x[i] = {length, start + (tiny ? 0 : 4), 0};
        pthread_create(&threads[i], NULL, encode, &x[i]);
    }
    for (size_t i = 0; i < n; i++) {
        pthread_join(threads[i], NULL);
        tokens += x[i].tokens;
    }
    return (double)tokens / (seconds() - start);
}

/* Of one token in a text of `length`, matmuls and attention. */
static double flops(size_t length)
{
    return LAYERS * (2.0 * (4 * DIM * DIM + 2 * DIM * WIDE) + 4.0 * DIM * (double)length);
}

static void encode_print(const char *name, size_t length, double limit)
{
    const double rate = encode_rate(length);
    printf("| %s, about %zu tokens a text | %zu | %.0f | %.0f | %.0f %% |\n", name, length, backend->facts.tile_tokens,
           rate, rate / (double)length, 100 * rate * flops(length) / (limit * 1e12));
    fflush(stdout);
}

/* ---- keys ---- */

enum { BLOCK_ROWS = 128 };

struct memory {
    struct keys_view view;
    struct keys_block *blocks;
    uint8_t candidates[BLOCK_ROWS];
};

static struct filling {
    uint16_t *vectors;
    size_t first, end;
} fillings[16];

static void *fill(void *context)
{
    const struct filling *f = (const struct filling *)context;
    uint64_t state = f->first * 2 + 1;
    for (size_t i = f->first; i < f->end;
         i += 4) { /* of magnitude 0.03 to 0.06, either sign: vectors of length about 1 */
        const uint64_t bits = random_next(&state);
        for (size_t j = 0; j < 4; j++) {
            f->vectors[i + j] = (uint16_t)(0x3D00 | (bits >> (16 * j) & 0x807F));
        }
    }
    return NULL;
}

static void memory_make(struct memory *m, size_t keys)
{
    const size_t count = keys / BLOCK_ROWS, numbers = count * BLOCK_ROWS * DIM, each = numbers / 16 / 4 * 4;
    uint16_t *vectors = (uint16_t *)memory_of(numbers * sizeof *vectors);
    uint64_t *ties = (uint64_t *)memory_of(count * BLOCK_ROWS * sizeof *ties), state = 5;
    pthread_t threads[16];
    for (size_t i = 0; i < 16; i++) {
        fillings[i] = {vectors, i * each, i == 15 ? numbers : (i + 1) * each};
        pthread_create(&threads[i], NULL, fill, &fillings[i]);
    }
    for (size_t i = 0; i < 16; i++) {
        pthread_join(threads[i], NULL);
    }
    memset(m->candidates, 1, sizeof m->candidates);
    m->blocks = (struct keys_block *)memory_of(count * sizeof *m->blocks);
    for (size_t i = 0; i < count; i++) {
        for (size_t r = 0; r < BLOCK_ROWS; r++) {
            ties[i * BLOCK_ROWS + r] = random_next(&state);
        }
        m->blocks[i] = {vectors + i * BLOCK_ROWS * DIM,
                        m->candidates,
                        ties + i * BLOCK_ROWS,
                        i * BLOCK_ROWS,
                        1,
                        BLOCK_ROWS,
                        KEY_INSTANCE};
    }
    m->view = {m->blocks, count, DIM, DTYPE_BF16, 1};
}

static void memory_free(struct memory *m)
{
    free((void *)(uintptr_t)m->blocks[0].vectors);
    free((void *)(uintptr_t)m->blocks[0].ties);
    free(m->blocks);
}

static int double_compare(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* Milliseconds of a search, the median of some. `fold`: one block changes before each. */
static double scan_time(struct stream *s, struct keys *k, struct memory *m, const struct tensor *queries, size_t b,
                        bool fold, double *worst)
{
    enum { TIMES = 41 };
    double times[TIMES];
    const size_t n = queries->rows, rounds = tiny ? 1 : (size_t)TIMES;
    struct keys_hit *hits = (struct keys_hit *)memory_of(n * b * sizeof *hits);
    uint32_t *counts = (uint32_t *)memory_of(n * sizeof *counts);
    for (size_t i = 0; i < rounds + 3; i++) {
        if (fold) {
            m->blocks[m->view.count - 1].version++;
            m->view.version++;
        }
        const double start = seconds();
        ops->keys_scan(s, k, &m->view, queries, b, KEY_BOTH, hits, counts);
        must(ops->wait(s, &error));
        if (i >= 3) {
            times[i - 3] = (seconds() - start) * 1e3;
        }
    }
    qsort(times, rounds, sizeof *times, double_compare);
    if (worst) {
        *worst = times[rounds - 1];
    }
    free(hits);
    free(counts);
    return times[rounds / 2];
}

static void keys_print(struct stream *s, size_t count, double bandwidth)
{
    static const size_t batches[] = {1, 32, 256};
    struct memory m;
    struct keys *k;
    struct keys_hit hit;
    uint32_t one;
    memory_make(&m, count);
    struct tensor queries = tensor_random(s, 256, DIM, 0.088F);
    must(ops->keys_open(backend, DIM, DTYPE_BF16, &k, &error));
    struct tensor first = queries;
    first.rows = 1;
    const double start = seconds();
    ops->keys_scan(s, k, &m.view, &first, 1, KEY_BOTH, &hit, &one);
    must(ops->wait(s, &error));
    const double loaded = seconds() - start;
    for (size_t b = 200; b <= 1000; b += 800) {
        for (size_t i = 0; i < (tiny ? 1 : 3); i++) {
            struct tensor some = queries;
            some.rows = batches[i];
            const double ms = scan_time(s, k, &m, &some, b, false, NULL);
            printf("| %zu | %zu | %zu | %.3f | %.0f | %.0f %% |\n", m.view.count * BLOCK_ROWS, batches[i], b, ms,
                   (double)batches[i] / ms * 1e3,
                   100 * (double)(m.view.count * BLOCK_ROWS * DIM * 2) / (ms * 1e-3) / bandwidth);
            fflush(stdout);
        }
    }
    double worst, folded = scan_time(s, k, &m, &first, 200, true, &worst);
    printf(
        "\n%zu keys: taken to the device in %.2f s; one block changed and searched: median %.3f ms, worst %.3f ms.\n",
        m.view.count * BLOCK_ROWS, loaded, folded, worst);
    ops->keys_close(k);
    tensor_release(backend, &queries);
    memory_free(&m);
}

static void model_free(void)
{
    struct embedding *e = &model.embedding;
    struct tensor *tensors[] = {&e->word, &e->position, &e->type, &e->norm};
    for (size_t i = 0; i < 4; i++) {
        tensor_release(backend, tensors[i]);
    }
    for (int i = 0; i < LAYERS; i++) {
        struct weight *weights[] = {model.layers[i].qkv, model.layers[i].attended, model.layers[i].hidden,
                                    model.layers[i].output};
        for (size_t j = 0; j < 4; j++) {
            ops->weight_close(backend, weights[j]);
        }
        tensor_release(backend, &model.layers[i].norm1);
        tensor_release(backend, &model.layers[i].norm2);
    }
}

/* With tiles of so many tokens; 0: as many as the plug-in takes. */
static struct stream *begin(size_t tile)
{
    char path[PATH_MAX], text[32];
    const struct backend_options options = {2, COMPUTE_BF16, NULL, 0};
    struct stream *s;
    snprintf(text, sizeof text, "%zu", tile);
    if (tile) {
        setenv("GPU_TEST_TILE", text, 1);
    } else {
        unsetenv("GPU_TEST_TILE");
    }
    must(backend_plugin_open(&backend, beside(path, "libengram_cuda.so"), &options, &error));
    ops = backend->ops;
    must(ops->stream_open(backend, &s, &error));
    return s;
}

static void end(struct stream *s)
{
    ops->stream_close(s);
    backend_close(backend);
}

static void encoding_print(size_t tile, double limit)
{
    struct stream *s = begin(tile);
    model_make(s);
    encode_print("S", 20, limit);
    encode_print("L", 103, limit);
    model_free();
    end(s);
}

int main(int argc, char **argv)
{
    static const size_t tiles[] = {0, 2048, 4096, 16384, 32768};
    tiny = argc > 1 && strcmp(argv[1], "--tiny") == 0;
    struct stream *s = begin(0);
    const double limit = gemm_rate(s, tiny ? 64 : 8192), bandwidth = copy_rate(tiny ? 1 << 20 : (size_t)4 << 30);
    printf("%s; %s. A matmul in bf16 runs at %.0f TFLOP/s, a copy moves %.2f TB/s.\n\n", backend->facts.device,
           backend->facts.library, limit, bandwidth / 1e12);
    end(s);
    printf("| encoding | tokens of a tile | tokens/s | texts/s | of the matmul's rate |\n|---|---:|---:|---:|---:|\n");
    for (size_t i = 0; i < (tiny ? 1 : sizeof tiles / sizeof *tiles); i++) {
        encoding_print(tiles[i], limit);
    }
    s = begin(0);
    for (size_t keys = tiny ? 1024 : 1000000; keys <= (tiny ? 2048 : 10000000); keys *= tiny ? 2 : 10) {
        printf(
            "\n| keys | queries | b | ms | queries/s | of the copy's bandwidth |\n|---:|---:|---:|---:|---:|---:|\n");
        keys_print(s, keys, bandwidth);
    }
    end(s);
    return 0;
}
