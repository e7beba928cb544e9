/* Every call of oneDNN, as version 3 has them (Debian 13); onednn2.h makes them of version 2's (Debian 12).
 *
 * Weights are packed once into the layout that the matmul asks for. A stream keeps one primitive for each (weight
 * shape, epilogue, rows): oneDNN compiles one for each row count, so a linear goes over its rows in chunks of CHUNK and
 * rounds the last one up to CPU_ROWS; measured on a Zen 4 core, 8 rows already run at 97 % of the speed of 1,024,
 * and one primitive takes 0.3 ms to make. What surprises: a primitive with a scratchpad of oneDNN's own gives wrong
 * numbers outside the thread that made it, so each stream hands in its own; and OpenMP's thread count belongs to the
 * calling thread, so every call sets it to 1: a team for one matmul would only spin beside the other streams. */
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "gpu/cpu/internal.h"
#include "gpu/cpu/onednn2.h"

#define CHUNK 128 /* rows; a multiple of CPU_ROWS */
#define EPILOGUES 2

struct onednn {
    dnnl_engine_t engine;
};

struct weight {
    size_t in, width;
    enum dtype dtype;
    layout_handle layout;
    dnnl_memory_t packed; /* owns its data */
    dnnl_memory_t bias;   /* the same */
};

/* A matmul for one row count, with the memory objects that it is run on. */
struct primitive {
    dnnl_primitive_t run;
    dnnl_memory_t in, out, scratchpad;
    size_t scratch_bytes;
};

struct shape {
    size_t in, width;
    struct primitive by_rows[EPILOGUES][CHUNK / CPU_ROWS];
};

struct onednn_stream {
    struct onednn *onednn;
    dnnl_stream_t stream;
    struct shape *shapes;
    size_t count;
    void *scratch;
    size_t scratch_bytes;
};

#define TRY(call)                                                                                                      \
    do {                                                                                                               \
        dnnl_status_t status_ = (call);                                                                                \
        if (status_ != dnnl_success) {                                                                                 \
            result =                                                                                                   \
                error_set(e, ERROR_FATAL, E_INTERNAL, "oneDNN: %.60s failed with status %d", #call, (int)status_);     \
            goto done;                                                                                                 \
        }                                                                                                              \
    } while (0)

int onednn_open(struct onednn **out, struct error *e)
{
    int result = 0;
    struct onednn *o = mem_zero(1, sizeof *o);
    TRY(dnnl_engine_create(&o->engine, dnnl_cpu, 0));
    *out = o;
    o = NULL;
done:
    onednn_close(o);
    return result;
}

void onednn_close(struct onednn *o)
{
    if (o) {
        dnnl_engine_destroy(o->engine);
        free(o);
    }
}

int onednn_stream_open(struct onednn_stream **out, struct onednn *o, struct error *e)
{
    int result = 0;
    struct onednn_stream *s = mem_zero(1, sizeof *s);
    s->onednn = o;
    TRY(dnnl_stream_create(&s->stream, o->engine, dnnl_stream_default_flags));
    *out = s;
    s = NULL;
done:
    onednn_stream_close(s);
    return result;
}

static void layout_close(layout_handle layout)
{
    if (layout) {
        dnnl_memory_desc_destroy(layout);
    }
}

static void primitive_close(struct primitive *p)
{
    if (p->run) {
        dnnl_primitive_destroy(p->run);
    }
    dnnl_memory_t owned[] = {p->in, p->out, p->scratchpad};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) {
        if (owned[i]) {
            dnnl_memory_destroy(owned[i]);
        }
    }
    memset(p, 0, sizeof *p);
}

void onednn_stream_close(struct onednn_stream *s)
{
    if (!s) {
        return;
    }
    for (size_t i = 0; i < s->count; i++) {
        struct primitive *p = &s->shapes[i].by_rows[0][0];
        for (size_t j = 0; j < EPILOGUES * (CHUNK / CPU_ROWS); j++) {
            primitive_close(p + j);
        }
    }
    free(s->shapes);
    free(s->scratch);
    dnnl_stream_destroy(s->stream);
    free(s);
}

/* oneDNN ends the process by a signal where it finds no memory for a kernel. So it is asked for before: if there is
 * none, mem_alloc says so. One thread at a time, or one would take what the other has asked for. */
static pthread_mutex_t kernel_lock = PTHREAD_MUTEX_INITIALIZER;

static void kernel_begin(void)
{
    enum { KERNEL_BYTES = 64 << 20 };
    pthread_mutex_lock(&kernel_lock);
    free(mem_alloc(KERNEL_BYTES));
}

static void kernel_end(void)
{
    pthread_mutex_unlock(&kernel_lock);
}

/* ---- weights ----------------------------------------------------------------------------------------------------- */

/* The descriptor of out [rows, width] = in [rows, in] W' + bias with its epilogue; layout: the weights', which may be
 * "any" (then the primitive descriptor says what it likes best). The caller destroys *made. */
static int matmul_describe(dnnl_primitive_desc_t *made, dnnl_engine_t engine, size_t rows, size_t in, size_t width,
                           layout_view layout, enum epilogue epilogue, struct error *e)
{
    int result = 0;
    dnnl_primitive_attr_t attributes = NULL;
    dnnl_post_ops_t post = NULL;
    layout_handle source = NULL, bias = NULL, target = NULL;
    const dnnl_dims_t source_shape = {(dnnl_dim_t)rows, (dnnl_dim_t)in}, bias_shape = {1, (dnnl_dim_t)width},
                      target_shape = {(dnnl_dim_t)rows, (dnnl_dim_t)width};
    TRY(dnnl_primitive_attr_create(&attributes));
    TRY(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
    TRY(dnnl_post_ops_create(&post));
    if (epilogue == EPILOGUE_GELU) {
        TRY(dnnl_post_ops_append_eltwise(post, dnnl_eltwise_gelu_erf, 0, 0));
    }
    TRY(dnnl_primitive_attr_set_post_ops(attributes, post));
    TRY(dnnl_memory_desc_create_with_tag(&source, 2, source_shape, dnnl_f32, dnnl_ab));
    TRY(dnnl_memory_desc_create_with_tag(&bias, 2, bias_shape, dnnl_f32, dnnl_ab));
    TRY(dnnl_memory_desc_create_with_tag(&target, 2, target_shape, dnnl_f32, dnnl_ab));
    TRY(dnnl_matmul_primitive_desc_create(made, engine, source, layout, bias, target, attributes));
done:
    layout_close(target);
    layout_close(bias);
    layout_close(source);
    if (post) {
        dnnl_post_ops_destroy(post);
    }
    if (attributes) {
        dnnl_primitive_attr_destroy(attributes);
    }
    return result;
}

int onednn_weight_open(struct weight **out, struct onednn *o, size_t in, size_t width, enum dtype dtype,
                       struct error *e)
{
    int result = 0;
    dnnl_primitive_desc_t likes = NULL;
    struct weight *w = mem_zero(1, sizeof *w);
    w->in = in;
    w->width = width;
    w->dtype = dtype;
    const dnnl_dims_t shape = {(dnnl_dim_t)in, (dnnl_dim_t)width}, bias_shape = {1, (dnnl_dim_t)width};
    layout_handle any = NULL, bias_layout = NULL;
    TRY(dnnl_memory_desc_create_with_tag(&any, 2, shape, dnnl_f32, dnnl_format_tag_any));
    TRY(dnnl_memory_desc_create_with_tag(&bias_layout, 2, bias_shape, dnnl_f32, dnnl_ab));
    kernel_begin();
    result = matmul_describe(&likes, o->engine, CHUNK, in, width, any, EPILOGUE_NONE, e);
    kernel_end();
    if (result != 0) {
        goto done;
    }
    TRY(dnnl_memory_desc_clone(&w->layout, dnnl_primitive_desc_query_md(likes, dnnl_query_weights_md, 0)));
    TRY(dnnl_memory_create(&w->packed, w->layout, o->engine, DNNL_MEMORY_ALLOCATE));
    TRY(dnnl_memory_create(&w->bias, bias_layout, o->engine, DNNL_MEMORY_ALLOCATE));
    *out = w;
    w = NULL;
done:
    if (likes) {
        dnnl_primitive_desc_destroy(likes);
    }
    layout_close(bias_layout);
    layout_close(any);
    onednn_weight_close(w);
    return result;
}

int onednn_weight_fill(struct weight *w, struct onednn *o, const float *weight, const float *bias, struct error *e)
{
    int result = 0;
    dnnl_stream_t stream = NULL;
    dnnl_memory_t plain = NULL;
    dnnl_primitive_desc_t describes = NULL;
    dnnl_primitive_t reorder = NULL;
    layout_handle layout = NULL;
    void *bias_data = NULL;
    const dnnl_dims_t shape = {(dnnl_dim_t)w->in, (dnnl_dim_t)w->width};
    union {
        const float *from;
        void *handle; /* oneDNN takes no pointer to const; a reorder only reads its source */
    } values = {weight};
    kernel_begin();
    omp_set_num_threads(1);
    TRY(dnnl_memory_desc_create_with_tag(&layout, 2, shape, dnnl_f32, dnnl_ba));
    TRY(dnnl_memory_create(&plain, layout, o->engine, values.handle));
    TRY(dnnl_stream_create(&stream, o->engine, dnnl_stream_default_flags));
    TRY(dnnl_reorder_primitive_desc_create(&describes, layout, o->engine, w->layout, o->engine, NULL));
    TRY(dnnl_primitive_create(&reorder, describes));
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, w->packed}};
    TRY(dnnl_primitive_execute(reorder, stream, 2, arguments));
    TRY(dnnl_stream_wait(stream));
    TRY(dnnl_memory_get_data_handle(w->bias, &bias_data));
    memcpy(bias_data, bias, w->width * sizeof *bias);
done:
    kernel_end();
    if (reorder) {
        dnnl_primitive_destroy(reorder);
    }
    if (describes) {
        dnnl_primitive_desc_destroy(describes);
    }
    if (stream) {
        dnnl_stream_destroy(stream);
    }
    if (plain) {
        dnnl_memory_destroy(plain);
    }
    layout_close(layout);
    return result;
}

void onednn_weight_close(struct weight *w)
{
    if (!w) {
        return;
    }
    if (w->packed) {
        dnnl_memory_destroy(w->packed);
    }
    if (w->bias) {
        dnnl_memory_destroy(w->bias);
    }
    layout_close(w->layout);
    free(w);
}

/* ---- linear ------------------------------------------------------------------------------------------------------ */

static int primitive_open(struct primitive *out, struct onednn_stream *s, const struct weight *w, size_t rows,
                          enum epilogue epilogue, struct error *e)
{
    int result = 0;
    struct primitive p = {0};
    dnnl_primitive_desc_t describes = NULL;
    dnnl_engine_t engine = s->onednn->engine;
    kernel_begin();
    if (matmul_describe(&describes, engine, rows, w->in, w->width, w->layout, epilogue, e) != 0) {
        result = -1;
        goto done;
    }
    layout_view source = dnnl_primitive_desc_query_md(describes, dnnl_query_src_md, 0);
    layout_view target = dnnl_primitive_desc_query_md(describes, dnnl_query_dst_md, 0);
    layout_view scratch = dnnl_primitive_desc_query_md(describes, dnnl_query_scratchpad_md, 0);
    p.scratch_bytes = dnnl_memory_desc_get_size(scratch);
    TRY(dnnl_primitive_create(&p.run, describes));
    TRY(dnnl_memory_create(&p.in, source, engine, DNNL_MEMORY_NONE));
    TRY(dnnl_memory_create(&p.out, target, engine, DNNL_MEMORY_NONE));
    TRY(dnnl_memory_create(&p.scratchpad, scratch, engine, DNNL_MEMORY_NONE));
    *out = p;
    memset(&p, 0, sizeof p);
done:
    kernel_end();
    primitive_close(&p);
    if (describes) {
        dnnl_primitive_desc_destroy(describes);
    }
    return result;
}

static struct shape *shape_of(struct onednn_stream *s, const struct weight *w)
{
    for (size_t i = 0; i < s->count; i++) {
        if (s->shapes[i].in == w->in && s->shapes[i].width == w->width) {
            return &s->shapes[i];
        }
    }
    s->shapes = mem_resize(s->shapes, (s->count + 1) * sizeof *s->shapes);
    struct shape *shape = &s->shapes[s->count++];
    memset(shape, 0, sizeof *shape);
    shape->in = w->in;
    shape->width = w->width;
    return shape;
}

int onednn_linear(struct onednn_stream *s, void *out, const void *in, const struct weight *w, enum epilogue epilogue,
                  size_t rows, struct error *e)
{
    int result = 0;
    struct shape *shape = shape_of(s, w);
    omp_set_num_threads(1);
    for (size_t first = 0; first < rows; first += CHUNK) {
        size_t count = rows - first < CHUNK ? rows - first : CHUNK, eights = (count + CPU_ROWS - 1) / CPU_ROWS;
        struct primitive *p = &shape->by_rows[epilogue][eights - 1];
        if (!p->run && primitive_open(p, s, w, eights * CPU_ROWS, epilogue, e) != 0) {
            return -1;
        }
        union {
            const float *from;
            void *handle; /* as in onednn_weight_fill */
        } source = {(const float *)in + first * w->in};
        TRY(dnnl_memory_set_data_handle(p->in, source.handle));
        TRY(dnnl_memory_set_data_handle(p->out, (float *)out + first * w->width));
        TRY(dnnl_memory_set_data_handle(p->scratchpad,
                                        memory_grow(&s->scratch, &s->scratch_bytes, p->scratch_bytes + 1)));
        const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, p->in},
                                             {DNNL_ARG_WEIGHTS, w->packed},
                                             {DNNL_ARG_BIAS, w->bias},
                                             {DNNL_ARG_DST, p->out},
                                             {DNNL_ARG_SCRATCHPAD, p->scratchpad}};
        TRY(dnnl_primitive_execute(p->run, s->stream, sizeof arguments / sizeof *arguments, arguments));
    }
done:
    return result;
}
