/* How fast the encoder would be if it were its matmuls and nothing else: oneDNN's matmul on the shapes of a BERT
 * layer's weights, prepacked, without bias, epilogue, attention, norms or tokenization. Every worker has oneDNN in one
 * thread and tiles of its own and reads the same weights, as the CPU backend's do. Each layer has weights of its own,
 * so that they pass through the cache as the model's do.
 *   gemm_bench HIDDEN INTERMEDIATE LAYERS THREADS SECONDS f32|bf16 [ROWS]
 * One JSON line for each number of rows in a tile (ROWS: for that alone): the tokens/s that all workers reach together,
 * and oneDNN's name for its kernel. Where oneDNN has only its reference kernel for the type, one line says so instead.
 */
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "gpu/cpu/onednn2.h"

enum { MATMULS = 4, THREADS_MAX = 1024 };
static const size_t tile_rows[] = {32, 64, 128, 256, 512, 1024};

struct bench {
    size_t hidden, intermediate, layers, threads;
    double seconds;
    dnnl_data_type_t type;
    dnnl_engine_t engine;
    size_t rows;
    struct {
        size_t in, out;
    } shapes[MATMULS];
    dnnl_primitive_desc_t describes[MATMULS];
    dnnl_memory_t *weights; /* [layers, MATMULS], packed */
    pthread_barrier_t start;
};

struct worker {
    struct bench *b;
    pthread_t thread;
    dnnl_stream_t stream;
    dnnl_primitive_t run[MATMULS];
    dnnl_memory_t in[MATMULS], out[MATMULS], scratchpad[MATMULS];
    double tokens_per_s;
};

static void check(dnnl_status_t status, const char *call)
{
    if (status != dnnl_success) {
        fprintf(stderr, "gemm_bench: %s failed with status %d\n", call, (int)status);
        exit(1);
    }
}
#define TRY(call) check((call), #call)

/* Small numbers of either sign, never denormal: what a matmul reads has no bearing on its speed but for those. */
static void fill(dnnl_memory_t memory, size_t count, dnnl_data_type_t type)
{
    void *data;
    uint32_t random = 1;
    TRY(dnnl_memory_get_data_handle(memory, &data));
    for (size_t i = 0; i < count; i++) {
        random = random * 1664525 + 1013904223;
        float value = ((float)(random >> 8) / (float)(1 << 24) - 0.5f) * 0.1f + 0.001f;
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        if (type == dnnl_f32) {
            ((float *)data)[i] = value;
        } else {
            ((uint16_t *)data)[i] = (uint16_t)(bits >> 16);
        }
    }
}

static dnnl_memory_t tensor(const struct bench *b, dnnl_primitive_desc_t describes, dnnl_query_t what)
{
    dnnl_memory_t memory;
    TRY(dnnl_memory_create(&memory, dnnl_primitive_desc_query_md(describes, what, 0), b->engine, DNNL_MEMORY_ALLOCATE));
    return memory;
}

/* A matmul's descriptor for b->rows, its weights in the layout that it likes best; NULL: oneDNN has only its reference
 * kernel. */
static dnnl_primitive_desc_t describe(const struct bench *b, size_t i)
{
    const dnnl_dims_t source_shape = {(dnnl_dim_t)b->rows, (dnnl_dim_t)b->shapes[i].in},
                      weights_shape = {(dnnl_dim_t)b->shapes[i].in, (dnnl_dim_t)b->shapes[i].out},
                      target_shape = {(dnnl_dim_t)b->rows, (dnnl_dim_t)b->shapes[i].out};
    dnnl_primitive_desc_t made = NULL;
    dnnl_primitive_attr_t attributes;
    layout_handle source, weights, target;
    const char *kernel = NULL;
    TRY(dnnl_primitive_attr_create(&attributes));
    TRY(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
    TRY(dnnl_memory_desc_create_with_tag(&source, 2, source_shape, b->type, dnnl_ab));
    TRY(dnnl_memory_desc_create_with_tag(&weights, 2, weights_shape, b->type, dnnl_format_tag_any));
    TRY(dnnl_memory_desc_create_with_tag(&target, 2, target_shape, b->type, dnnl_ab));
    if (dnnl_matmul_primitive_desc_create(&made, b->engine, source, weights, NULL, target, attributes) ==
        dnnl_success) {
        TRY(dnnl_primitive_desc_query(made, dnnl_query_impl_info_str, 0, &kernel));
        if (strstr(kernel, "ref")) {
            dnnl_primitive_desc_destroy(made);
            made = NULL;
        }
    }
    dnnl_memory_desc_destroy(target);
    dnnl_memory_desc_destroy(weights);
    dnnl_memory_desc_destroy(source);
    dnnl_primitive_attr_destroy(attributes);
    return made;
}

/* The weights of all layers, from plain f32 into the layout that matmul i likes best. */
static void weights_pack(struct bench *b, size_t i)
{
    const dnnl_dims_t shape = {(dnnl_dim_t)b->shapes[i].in, (dnnl_dim_t)b->shapes[i].out};
    layout_handle layout;
    dnnl_memory_t plain;
    dnnl_stream_t stream;
    TRY(dnnl_memory_desc_create_with_tag(&layout, 2, shape, dnnl_f32, dnnl_ab));
    TRY(dnnl_memory_create(&plain, layout, b->engine, DNNL_MEMORY_ALLOCATE));
    TRY(dnnl_stream_create(&stream, b->engine, dnnl_stream_default_flags));
    fill(plain, b->shapes[i].in * b->shapes[i].out, dnnl_f32);
    layout_view packed = dnnl_primitive_desc_query_md(b->describes[i], dnnl_query_weights_md, 0);
    dnnl_primitive_desc_t describes;
    dnnl_primitive_t reorder;
    TRY(dnnl_reorder_primitive_desc_create(&describes, layout, b->engine, packed, b->engine, NULL));
    TRY(dnnl_primitive_create(&reorder, describes));
    for (size_t layer = 0; layer < b->layers; layer++) {
        dnnl_memory_t to = tensor(b, b->describes[i], dnnl_query_weights_md);
        const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, to}};
        TRY(dnnl_primitive_execute(reorder, stream, 2, arguments));
        TRY(dnnl_stream_wait(stream));
        b->weights[layer * MATMULS + i] = to;
    }
    dnnl_primitive_destroy(reorder);
    dnnl_primitive_desc_destroy(describes);
    dnnl_stream_destroy(stream);
    dnnl_memory_destroy(plain);
    dnnl_memory_desc_destroy(layout);
}

static void tile(struct worker *w)
{
    for (size_t j = 0; j < w->b->layers * MATMULS; j++) {
        size_t i = j % MATMULS;
        const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, w->in[i]},
                                             {DNNL_ARG_WEIGHTS, w->b->weights[j]},
                                             {DNNL_ARG_DST, w->out[i]},
                                             {DNNL_ARG_SCRATCHPAD, w->scratchpad[i]}};
        TRY(dnnl_primitive_execute(w->run[i], w->stream, sizeof arguments / sizeof *arguments, arguments));
    }
    TRY(dnnl_stream_wait(w->stream));
}

static void worker_open(struct worker *w)
{
    struct bench *b = w->b;
    omp_set_num_threads(1);
    TRY(dnnl_stream_create(&w->stream, b->engine, dnnl_stream_default_flags));
    for (size_t i = 0; i < MATMULS; i++) {
        TRY(dnnl_primitive_create(&w->run[i], b->describes[i]));
        w->in[i] = tensor(b, b->describes[i], dnnl_query_src_md);
        w->out[i] = tensor(b, b->describes[i], dnnl_query_dst_md);
        w->scratchpad[i] = tensor(b, b->describes[i], dnnl_query_scratchpad_md);
        fill(w->in[i], b->rows * b->shapes[i].in, b->type);
    }
}

static void worker_close(struct worker *w)
{
    for (size_t i = 0; i < MATMULS; i++) {
        dnnl_primitive_destroy(w->run[i]);
        dnnl_memory_destroy(w->in[i]);
        dnnl_memory_destroy(w->out[i]);
        dnnl_memory_destroy(w->scratchpad[i]);
    }
    dnnl_stream_destroy(w->stream);
}

static void *work(void *context)
{
    struct worker *w = context;
    worker_open(w);
    tile(w);
    pthread_barrier_wait(&w->b->start);
    uint64_t begun = clock_us(), until = begun + (uint64_t)(w->b->seconds * 1e6), now;
    size_t tiles = 0;
    do {
        tile(w);
        tiles++;
        now = clock_us();
    } while (now < until);
    w->tokens_per_s = (double)(tiles * w->b->rows) / ((double)(now - begun) * 1e-6);
    worker_close(w);
    return NULL;
}

/* All workers at once with tiles of that many rows; false: no kernel but the reference. */
static bool measure(struct bench *b, size_t rows)
{
    static struct worker workers[THREADS_MAX];
    double tokens_per_s = 0;
    const char *kernel;
    b->rows = rows;
    for (size_t i = 0; i < MATMULS; i++) {
        b->describes[i] = describe(b, i);
        if (!b->describes[i]) {
            return false;
        }
        weights_pack(b, i);
    }
    TRY(dnnl_primitive_desc_query(b->describes[0], dnnl_query_impl_info_str, 0, &kernel));
    pthread_barrier_init(&b->start, NULL, (unsigned)b->threads);
    for (size_t i = 0; i < b->threads; i++) {
        workers[i] = (struct worker){.b = b};
        if (pthread_create(&workers[i].thread, NULL, work, &workers[i]) != 0) {
            fprintf(stderr, "gemm_bench: no thread\n");
            exit(1);
        }
    }
    for (size_t i = 0; i < b->threads; i++) {
        pthread_join(workers[i].thread, NULL);
        tokens_per_s += workers[i].tokens_per_s;
    }
    pthread_barrier_destroy(&b->start);
    printf("{\"type\": \"%s\", \"rows\": %zu, \"tokens_per_s\": %.0f, \"kernel\": \"%s\"}\n",
           b->type == dnnl_f32 ? "f32" : "bf16", rows, tokens_per_s, kernel);
    fflush(stdout);
    for (size_t j = 0; j < b->layers * MATMULS; j++) {
        dnnl_memory_destroy(b->weights[j]);
    }
    for (size_t i = 0; i < MATMULS; i++) {
        dnnl_primitive_desc_destroy(b->describes[i]);
    }
    return true;
}

int main(int argc, char **argv)
{
    struct bench b = {0};
    if (argc != 7 && argc != 8) {
        fprintf(stderr, "usage: gemm_bench HIDDEN INTERMEDIATE LAYERS THREADS SECONDS f32|bf16 [ROWS]\n");
        return 2;
    }
    b.hidden = strtoull(argv[1], NULL, 10);
    b.intermediate = strtoull(argv[2], NULL, 10);
    b.layers = strtoull(argv[3], NULL, 10);
    b.threads = strtoull(argv[4], NULL, 10);
    b.seconds = strtod(argv[5], NULL);
    b.type = strcmp(argv[6], "bf16") == 0 ? dnnl_bf16 : dnnl_f32;
    if (!b.hidden || !b.intermediate || !b.layers || !b.threads || b.threads > THREADS_MAX) {
        fprintf(stderr, "gemm_bench: a size is 0 or too large\n");
        return 2;
    }
    const size_t shapes[MATMULS][2] = {{b.hidden, 3 * b.hidden},    /* q, k and v */
                                       {b.hidden, b.hidden},        /* the attention's output */
                                       {b.hidden, b.intermediate},  /* up */
                                       {b.intermediate, b.hidden}}; /* down */
    memcpy(b.shapes, shapes, sizeof shapes);
    b.weights = mem_zero(b.layers * MATMULS, sizeof *b.weights);
    omp_set_num_threads(1);
    TRY(dnnl_engine_create(&b.engine, dnnl_cpu, 0));
    size_t only = argc == 8 ? strtoull(argv[7], NULL, 10) : 0;
    for (size_t i = 0; i < (only ? 1 : sizeof tile_rows / sizeof *tile_rows); i++) {
        if (!measure(&b, only ? only : tile_rows[i])) {
            printf("{\"type\": \"%s\", \"left_out\": \"oneDNN has no matmul in %s for this CPU but its reference\"}\n",
                   argv[6], argv[6]);
            break;
        }
    }
    dnnl_engine_destroy(b.engine);
    free(b.weights);
    return 0;
}
