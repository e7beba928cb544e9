/* Every call of oneDNN, as version 3 has them (Debian 13); onednn2.h makes them of version 2's (Debian 12).
 *
 * Weights are packed once into the layout that the matmul asks for. A stream keeps one primitive for each (weight
 * shape, rows): oneDNN compiles one for each row count, so a linear goes over its rows in chunks of CHUNK and rounds
 * the last one up to CPU_ROWS; one primitive takes 0.3 ms to make. Measured on 2 cores with AVX-512 and AMX: chunks of
 * 256 rows are 1 to 4 % faster than those of 128, and 512 slower than both on long texts. Version 2 multiplies bf16
 * from AVX-512 on, and without AVX512-BF16 or AMX slower than f32: there a bf16 weight is multiplied in f32, so that
 * bf16 gives about the same numbers everywhere. What surprises: a primitive with a scratchpad of oneDNN's own gives
 * wrong numbers outside the thread that made it, so each stream hands in its own; and OpenMP's thread count belongs to
 * the calling thread, so every call sets it to 1: a team for one matmul would only spin beside the other streams. */
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "gpu/cpu/internal.h"
#include "gpu/cpu/onednn2.h"

#define CHUNK 256 /* rows; a multiple of CPU_ROWS */

struct onednn {
    dnnl_engine_t engine;
    const struct kernels *kernels;
    bool bf16; /* this CPU multiplies bf16 */
};

/* A weight's columns are cut into slabs, each a matmul of its own, so that several streams can share one linear. */
#define SLABS 8
#define SLAB_SHARED 4   /* slabs at most for the sake of sharing */
#define SLAB_MOST 768   /* columns */
#define SLAB_COLUMNS 64 /* in whole multiples of these: what one kernel of oneDNN covers */

struct slab {
    layout_handle layout;
    dnnl_memory_t packed;
    dnnl_memory_t bias;
};

/* oneDNN's best matmul, which there is from AVX-512 on, packs weights and writes whole rows alone. There a linear is
 * one matmul; its slabs are views of the packed weight, and whoever shares it writes a slab elsewhere and copies it.
 * Where weights stay as they are, each slab has its own and is written in place: smaller ones are faster there. */
struct weight {
    size_t in, width;
    enum dtype dtype;
    bool converts;     /* bf16 values, which this CPU multiplies in f32 */
    bool whole_rows;   /* the matmul writes nothing else: */
    struct slab whole; /* owns its memory; else that of the slabs is their own */
    size_t columns;    /* of a slab; the last one may have fewer */
    size_t slabs;
    struct slab slab[SLABS];
};

/* A matmul for one row count, with the memory objects that it is run on. */
struct primitive {
    dnnl_primitive_t run;
    dnnl_memory_t in, out, scratchpad;
    size_t scratch_bytes;
};

/* Of in [rows, in] to `columns` of a row of `stride`. */
struct shape {
    size_t in, columns, stride;
    dnnl_data_type_t type;
    struct primitive by_rows[CHUNK / CPU_ROWS];
};

struct onednn_stream {
    struct onednn *onednn;
    dnnl_stream_t stream;
    struct shape *shapes;
    size_t count;
    void *scratch; /* the primitives' own */
    size_t scratch_bytes;
    void *apart; /* what a matmul reads or writes that is no part of a tensor */
    size_t apart_bytes;
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

static bool onednn_has(dnnl_cpu_isa_t isa)
{
    return (dnnl_get_effective_cpu_isa() & isa) == isa;
}

bool onednn_bf16(void)
{
    return onednn_has(dnnl_cpu_isa_avx512_core_bf16);
}

bool onednn_amx(void)
{
    return onednn_has(dnnl_cpu_isa_avx512_core_amx);
}

int onednn_open(struct onednn **out, const struct kernels *kernels, struct error *e)
{
    int result = 0;
    struct onednn *o = mem_zero(1, sizeof *o);
    o->kernels = kernels;
    o->bf16 = onednn_bf16();
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
        for (size_t j = 0; j < CHUNK / CPU_ROWS; j++) {
            primitive_close(&s->shapes[i].by_rows[j]);
        }
    }
    free(s->shapes);
    free(s->scratch);
    free(s->apart);
    dnnl_stream_destroy(s->stream);
    free(s);
}

/* oneDNN ends the process by a signal where it finds no memory for a kernel, which it makes with a primitive or when
 * one runs for the first time. So it is asked for before: if there is none, mem_alloc says so. One thread at a time, or
 * one would take what the other has asked for. */
static pthread_mutex_t kernel_lock = PTHREAD_MUTEX_INITIALIZER;

/* a kernel, and the heap of 64 MiB that another thread may map meanwhile, aligned */
#define KERNEL_BYTES ((size_t)192 << 20)

static void kernel_begin(void)
{
    pthread_mutex_lock(&kernel_lock);
    free(mem_alloc(KERNEL_BYTES));
}

static void kernel_end(void)
{
    pthread_mutex_unlock(&kernel_lock);
}

/* ---- weights ----------------------------------------------------------------------------------------------------- */

static dnnl_data_type_t type_of(const struct weight *w)
{
    return w->dtype == DTYPE_BF16 && !w->converts ? dnnl_bf16 : dnnl_f32;
}

static size_t slab_columns(const struct weight *w, size_t slab)
{
    return slab + 1 < w->slabs ? w->columns : w->width - slab * w->columns;
}

/* The descriptor of a matmul of that shape with a bias; layout: the weights', which may be "any" (then the primitive
 * descriptor says what it likes best). The caller destroys *made. */
static int matmul_describe(dnnl_primitive_desc_t *made, dnnl_engine_t engine, const struct shape *shape, size_t rows,
                           layout_view layout, struct error *e)
{
    int result = 0;
    dnnl_primitive_attr_t attributes = NULL;
    layout_handle source = NULL, bias = NULL, target = NULL;
    const dnnl_dim_t in = (dnnl_dim_t)shape->in, columns = (dnnl_dim_t)shape->columns;
    const dnnl_dims_t source_shape = {(dnnl_dim_t)rows, in}, bias_shape = {1, columns},
                      target_shape = {(dnnl_dim_t)rows, columns}, target_strides = {(dnnl_dim_t)shape->stride, 1};
    TRY(dnnl_primitive_attr_create(&attributes));
    TRY(dnnl_primitive_attr_set_scratchpad_mode(attributes, dnnl_scratchpad_mode_user));
    TRY(dnnl_memory_desc_create_with_tag(&source, 2, source_shape, shape->type, dnnl_ab));
    TRY(dnnl_memory_desc_create_with_tag(&bias, 2, bias_shape, dnnl_f32, dnnl_ab));
    TRY(dnnl_memory_desc_create_with_strides(&target, 2, target_shape, shape->type, target_strides));
    TRY(dnnl_matmul_primitive_desc_create(made, engine, source, layout, bias, target, attributes));
done:
    layout_close(target);
    layout_close(bias);
    layout_close(source);
    if (attributes) {
        dnnl_primitive_attr_destroy(attributes);
    }
    return result;
}

static struct shape shape_for(const struct weight *w, size_t columns)
{
    const bool in_place = !w->converts && !w->whole_rows;
    return (struct shape){w->in, columns, in_place ? w->width : columns, type_of(w), {{0}}};
}

/* The layout that the matmul likes best for these columns, and the name of its implementation. */
#define NAME_BYTES 64

static int layout_choose(layout_handle *out, char *name, const struct onednn *o, const struct shape *shape,
                         struct error *e)
{
    int result = 0;
    const char *info = NULL;
    dnnl_primitive_desc_t likes = NULL;
    layout_handle any = NULL;
    const dnnl_dims_t any_shape = {(dnnl_dim_t)shape->in, (dnnl_dim_t)shape->columns};
    omp_set_num_threads(1);
    kernel_begin();
    TRY(dnnl_memory_desc_create_with_tag(&any, 2, any_shape, shape->type, dnnl_format_tag_any));
    result = matmul_describe(&likes, o->engine, shape, CHUNK, any, e);
    if (result != 0) {
        goto done;
    }
    TRY(dnnl_memory_desc_clone(out, dnnl_primitive_desc_query_md(likes, dnnl_query_weights_md, 0)));
    TRY(dnnl_primitive_desc_query(likes, dnnl_query_impl_info_str, 0, &info));
    snprintf(name, NAME_BYTES, "%s", info);
done:
    kernel_end();
    if (likes) {
        dnnl_primitive_desc_destroy(likes);
    }
    layout_close(any);
    return result;
}

/* packed, bias: where the values are; DNNL_MEMORY_ALLOCATE: in memory of its own. */
static int slab_open(struct slab *slab, const struct onednn *o, size_t columns, void *packed, void *bias,
                     struct error *e)
{
    int result = 0;
    layout_handle bias_layout = NULL;
    const dnnl_dims_t bias_shape = {1, (dnnl_dim_t)columns};
    TRY(dnnl_memory_desc_create_with_tag(&bias_layout, 2, bias_shape, dnnl_f32, dnnl_ab));
    TRY(dnnl_memory_create(&slab->packed, slab->layout, o->engine, packed));
    TRY(dnnl_memory_create(&slab->bias, bias_layout, o->engine, bias));
done:
    layout_close(bias_layout);
    return result;
}

/* A row of a slab is not a whole multiple of 2 KiB, if SLABS allow that: where weights stay as they are, all rows would
 * be in the same few lines of the first cache. Measured on a Zen 3 core, 512 rows of 384 by 1,536 columns in slabs of
 * 1,536 / 768 / 512 / 384: 66 / 85 / 65 / 89 GFLOP/s. */
static void slabs_choose(struct weight *w, size_t streams)
{
    size_t slabs = (w->width + SLAB_MOST - 1) / SLAB_MOST;
    streams = streams < SLAB_SHARED ? streams : SLAB_SHARED;
    slabs = slabs < streams ? streams : slabs;
    do {
        slabs = slabs < SLABS ? slabs : SLABS;
        w->columns = (w->width + slabs - 1) / slabs;
        w->columns = (w->columns + SLAB_COLUMNS - 1) / SLAB_COLUMNS * SLAB_COLUMNS;
    } while (w->columns % 512 == 0 && slabs++ < SLABS);
    w->slabs = (w->width + w->columns - 1) / w->columns;
}

/* Slab i as a view of the packed weight: *is, where these columns alone would be packed as they are there. */
static int view_open(bool *is, struct weight *w, size_t i, const struct onednn *o, struct error *e)
{
    int result = 0;
    const size_t columns = slab_columns(w, i), first = i * w->columns;
    const size_t bytes = dnnl_memory_desc_get_size(w->whole.layout) / (w->width / SLAB_COLUMNS);
    const struct shape shape = shape_for(w, columns);
    const dnnl_dims_t part_shape = {(dnnl_dim_t)w->in, (dnnl_dim_t)columns}, begin = {0, 0};
    struct slab *slab = &w->slab[i];
    char name[NAME_BYTES];
    layout_handle part = NULL;
    void *packed, *bias;
    if (layout_choose(&slab->layout, name, o, &shape, e)) {
        return -1;
    }
    *is = dnnl_memory_desc_create_submemory(&part, w->whole.layout, part_shape, begin) == dnnl_success &&
          dnnl_memory_desc_equal(slab->layout, part);
    if (*is) {
        TRY(dnnl_memory_get_data_handle(w->whole.packed, &packed));
        TRY(dnnl_memory_get_data_handle(w->whole.bias, &bias));
        result = slab_open(slab, o, columns, (char *)packed + first / SLAB_COLUMNS * bytes, (float *)bias + first, e);
    }
done:
    layout_close(part);
    return result;
}

static int views_open(struct weight *w, const struct onednn *o, size_t streams, struct error *e)
{
    bool are = streams > 1 && w->width % SLAB_COLUMNS == 0;
    for (size_t i = 0; i < w->slabs && are; i++) {
        if (view_open(&are, w, i, o, e)) {
            return -1;
        }
    }
    w->slabs = are ? w->slabs : 1;
    return 0;
}

static int slabs_open(struct weight *w, const struct onednn *o, struct error *e)
{
    char name[NAME_BYTES];
    for (size_t i = 0; i < w->slabs; i++) {
        const size_t columns = slab_columns(w, i);
        const struct shape shape = shape_for(w, columns);
        layout_close(w->slab[i].layout);
        w->slab[i].layout = NULL;
        if (layout_choose(&w->slab[i].layout, name, o, &shape, e) ||
            slab_open(&w->slab[i], o, columns, DNNL_MEMORY_ALLOCATE, DNNL_MEMORY_ALLOCATE, e)) {
            return -1;
        }
    }
    return 0;
}

/* Whether a slab in place is left to a lesser matmul than the whole. */
static int whole_rows_choose(struct weight *w, const struct onednn *o, struct error *e)
{
    char whole[NAME_BYTES], slab[NAME_BYTES];
    const struct shape of_whole = {w->in, w->width, w->width, type_of(w), {{0}}}, of_slab = shape_for(w, w->columns);
    if (w->converts || w->slabs == 1) {
        return 0;
    }
    if (layout_choose(&w->whole.layout, whole, o, &of_whole, e) ||
        layout_choose(&w->slab[0].layout, slab, o, &of_slab, e)) {
        return -1;
    }
    w->whole_rows = strcmp(whole, slab) != 0;
    return 0;
}

int onednn_weight_open(struct weight **out, struct onednn *o, size_t in, size_t width, enum dtype dtype, size_t streams,
                       struct error *e)
{
    struct weight *w = mem_zero(1, sizeof *w);
    w->in = in;
    w->width = width;
    w->dtype = dtype;
    w->converts = dtype == DTYPE_BF16 && !o->bf16;
    slabs_choose(w, streams);
    int result = whole_rows_choose(w, o, e);
    if (result == 0 && w->whole_rows) {
        layout_close(w->slab[0].layout);
        w->slab[0].layout = NULL;
        result = slab_open(&w->whole, o, width, DNNL_MEMORY_ALLOCATE, DNNL_MEMORY_ALLOCATE, e) ||
                         views_open(w, o, streams, e)
                     ? -1
                     : 0;
    } else if (result == 0) {
        result = slabs_open(w, o, e);
    }
    if (result) {
        onednn_weight_close(w);
        return -1;
    }
    *out = w;
    return 0;
}

/* values: [columns, in] f32. */
static int slab_fill(const struct slab *slab, const struct onednn *o, size_t in, size_t columns, const float *values,
                     const float *bias, struct error *e)
{
    int result = 0;
    dnnl_stream_t stream = NULL;
    dnnl_memory_t plain = NULL;
    dnnl_primitive_desc_t describes = NULL;
    dnnl_primitive_t reorder = NULL;
    layout_handle layout = NULL;
    void *bias_data = NULL;
    const dnnl_dims_t shape = {(dnnl_dim_t)in, (dnnl_dim_t)columns};
    union {
        const float *from;
        void *handle; /* oneDNN takes no pointer to const; a reorder only reads its source */
    } source = {values};
    kernel_begin();
    omp_set_num_threads(1);
    TRY(dnnl_memory_desc_create_with_tag(&layout, 2, shape, dnnl_f32, dnnl_ba));
    TRY(dnnl_memory_create(&plain, layout, o->engine, source.handle));
    TRY(dnnl_stream_create(&stream, o->engine, dnnl_stream_default_flags));
    TRY(dnnl_reorder_primitive_desc_create(&describes, layout, o->engine, slab->layout, o->engine, NULL));
    TRY(dnnl_primitive_create(&reorder, describes));
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_FROM, plain}, {DNNL_ARG_TO, slab->packed}};
    TRY(dnnl_primitive_execute(reorder, stream, 2, arguments));
    TRY(dnnl_stream_wait(stream));
    TRY(dnnl_memory_get_data_handle(slab->bias, &bias_data));
    memcpy(bias_data, bias, columns * sizeof *bias);
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

int onednn_weight_fill(struct weight *w, struct onednn *o, const float *weight, const float *bias, struct error *e)
{
    int result = 0;
    float *rounded = NULL;
    if (w->converts) {
        const size_t count = w->in * w->width;
        uint16_t *narrow = mem_alloc(count * sizeof *narrow);
        rounded = mem_alloc(count * sizeof *rounded);
        o->kernels->narrow(narrow, weight, count);
        o->kernels->widen(rounded, narrow, count);
        free(narrow);
        weight = rounded;
    }
    for (size_t i = 0; i < w->slabs && !w->whole_rows && result == 0; i++) {
        const size_t first = i * w->columns;
        result = slab_fill(&w->slab[i], o, w->in, slab_columns(w, i), weight + first * w->in, bias + first, e);
    }
    if (w->whole_rows) {
        result = slab_fill(&w->whole, o, w->in, w->width, weight, bias, e);
    }
    free(rounded);
    return result;
}

static void slab_close(const struct slab *slab)
{
    if (slab->packed) {
        dnnl_memory_destroy(slab->packed);
    }
    if (slab->bias) {
        dnnl_memory_destroy(slab->bias);
    }
    layout_close(slab->layout);
}

void onednn_weight_close(struct weight *w)
{
    if (!w) {
        return;
    }
    for (size_t i = 0; i < SLABS; i++) {
        slab_close(&w->slab[i]);
    }
    slab_close(&w->whole);
    free(w);
}

/* ---- linear ------------------------------------------------------------------------------------------------------ */

static size_t slabs_taken(const struct weight *w, bool shared)
{
    return w->whole_rows && !shared ? 1 : w->slabs;
}

size_t onednn_pieces(const struct weight *w, size_t rows, bool shared)
{
    return (rows + CHUNK - 1) / CHUNK * slabs_taken(w, shared);
}

struct piece onednn_piece(const struct weight *w, size_t rows, bool shared, size_t number)
{
    const size_t slabs = slabs_taken(w, shared), row = number / slabs * CHUNK, slab = number % slabs;
    return (struct piece){
        .row = row,
        .rows = rows - row < CHUNK ? rows - row : CHUNK,
        .column = slab * w->columns,
        .columns = slabs == 1 ? w->width : slab_columns(w, slab),
    };
}

static int primitive_open(struct primitive *out, const struct onednn_stream *s, const struct shape *shape,
                          layout_view weights, size_t rows, struct error *e)
{
    int result = 0;
    struct primitive p = {0};
    dnnl_primitive_desc_t describes = NULL;
    dnnl_engine_t engine = s->onednn->engine;
    kernel_begin();
    if (matmul_describe(&describes, engine, shape, rows, weights, e) != 0) {
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

/* Weights of one shape have one layout, so they share their primitives. */
static struct shape *shape_of(struct onednn_stream *s, const struct weight *w, size_t columns)
{
    const struct shape wanted = shape_for(w, columns);
    for (size_t i = 0; i < s->count; i++) {
        const struct shape *have = &s->shapes[i];
        if (have->in == wanted.in && have->columns == wanted.columns && have->stride == wanted.stride &&
            have->type == wanted.type) {
            return &s->shapes[i];
        }
    }
    s->shapes = mem_resize(s->shapes, (s->count + 1) * sizeof *s->shapes);
    s->shapes[s->count] = wanted;
    return &s->shapes[s->count++];
}

static bool is_whole(const struct weight *w, const struct piece *piece)
{
    return w->whole_rows && piece->columns == w->width;
}

static int matmul_run(struct onednn_stream *s, void *out, void *in, const struct weight *w, const struct piece *piece,
                      struct error *e)
{
    int result = 0;
    struct shape *shape = shape_of(s, w, piece->columns);
    const struct slab *slab = is_whole(w, piece) ? &w->whole : &w->slab[piece->column / w->columns];
    const size_t eights = (piece->rows + CPU_ROWS - 1) / CPU_ROWS;
    struct primitive *p = &shape->by_rows[eights - 1];
    const bool first = !p->run;
    omp_set_num_threads(1);
    if (first && primitive_open(p, s, shape, slab->layout, eights * CPU_ROWS, e) != 0) {
        return -1;
    }
    void *scratch = memory_grow(&s->scratch, &s->scratch_bytes, p->scratch_bytes + 1);
    if (first) {
        kernel_begin();
    }
    TRY(dnnl_memory_set_data_handle(p->in, in));
    TRY(dnnl_memory_set_data_handle(p->out, out));
    TRY(dnnl_memory_set_data_handle(p->scratchpad, scratch));
    const dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, p->in},
                                         {DNNL_ARG_WEIGHTS, slab->packed},
                                         {DNNL_ARG_BIAS, slab->bias},
                                         {DNNL_ARG_DST, p->out},
                                         {DNNL_ARG_SCRATCHPAD, p->scratchpad}};
    TRY(dnnl_primitive_execute(p->run, s->stream, sizeof arguments / sizeof *arguments, arguments));
done:
    if (first) {
        kernel_end();
    }
    return result;
}

/* in and out are bf16, the matmul is not. */
static int converted_run(struct onednn_stream *s, uint16_t *out, const uint16_t *in, const struct weight *w,
                         const struct piece *piece, struct error *e)
{
    const struct kernels *k = s->onednn->kernels;
    float *wide = memory_grow(&s->apart, &s->apart_bytes, CHUNK * (w->in + piece->columns) * sizeof *wide);
    float *product = wide + CHUNK * w->in;
    k->widen(wide, in, piece->rows * w->in);
    if (matmul_run(s, product, wide, w, piece, e)) {
        return -1;
    }
    for (size_t r = 0; r < piece->rows; r++) {
        k->narrow(out + r * w->width, product + r * piece->columns, piece->columns);
    }
    return 0;
}

/* A slab of a weight whose matmul writes whole rows. */
static int apart_run(struct onednn_stream *s, char *out, void *in, const struct weight *w, const struct piece *piece,
                     struct error *e)
{
    const size_t bytes = dtype_bytes(w->dtype), row = piece->columns * bytes;
    char *product = memory_grow(&s->apart, &s->apart_bytes, CHUNK * row);
    if (matmul_run(s, product, in, w, piece, e)) {
        return -1;
    }
    for (size_t r = 0; r < piece->rows; r++) {
        memcpy(out + r * w->width * bytes, product + r * row, row);
    }
    return 0;
}

int onednn_linear(struct onednn_stream *s, void *out, const void *in, const struct weight *w, const struct piece *piece,
                  struct error *e)
{
    const size_t bytes = dtype_bytes(w->dtype);
    union {
        const char *from;
        void *handle; /* as in slab_fill */
    } source = {(const char *)in + piece->row * w->in * bytes};
    void *target = (char *)out + (piece->row * w->width + piece->column) * bytes;
    if (w->converts) {
        return converted_run(s, target, source.handle, w, piece, e);
    }
    return w->whole_rows && !is_whole(w, piece) ? apart_run(s, target, source.handle, w, piece, e)
                                                : matmul_run(s, target, source.handle, w, piece, e);
}
