/* The encoder's parameters: which there are, where their numbers are in the files, and the fingerprint over them.
 * Nothing of a file is kept: tables and norms go to the backend's memory, matrices to its packed layout, and as they
 * are to its memory where masters are asked for.
 *
 * What surprises: a canonical name (no `bert.` or `0.auto_model.`, weight and bias also for gamma and beta, `dense` for
 * a Dense module's `linear`) is what we and the fingerprint speak of; only tensor_find knows how the file spells it. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/digest.h"
#include "gpu/encoder/internal.h"
#include "gpu/encoder/safetensors.h"

#define PARTS_MAX 3 /* q, k and v */
#define UPLOAD_ROWS 1024
#define PER_LAYER 6

/* One tensor of a file under its canonical name. */
struct named_tensor {
    char name[96];
    char stored[128]; /* as the file spells it */
    struct stored_tensor tensor;
};

/* A file of tensors. */
struct source {
    struct safetensors *file;
    const char *path, *prefix; /* of its names */
};

struct loading {
    struct encoder *enc;
    struct source model, dense;
    const struct source *from;    /* the one of the parameter being read */
    struct named_tensor *tensors; /* all that were used so far */
    size_t count;
    float *weight, *bias; /* of one parameter, for the hand-over: grown only to what the file is known to hold */
};

/* ---- the list ---------------------------------------------------------------------------------------------------- */

static void parameter_add(struct encoder *enc, enum parameter_kind kind, size_t rows, size_t columns, const char *name)
{
    struct encoder_parameter *p = &enc->parameters[enc->parameter_count++];
    p->kind = kind;
    p->rows = rows;
    p->columns = columns;
    snprintf(p->name, sizeof p->name, "%s", name);
}

static void layer_add(struct encoder *enc, size_t number)
{
    const size_t dim = enc->config.dim, intermediate = enc->config.intermediate;
    const struct encoder_parameter *p = enc->parameters + enc->parameter_count;
    const struct {
        const char *name;
        enum parameter_kind kind;
        size_t rows, columns;
    } members[PER_LAYER] = {
        {"attention.self", PARAMETER_LINEAR, 3 * dim, dim},
        {"attention.output.dense", PARAMETER_LINEAR, dim, dim},
        {"attention.output.LayerNorm", PARAMETER_NORM, 1, dim},
        {"intermediate.dense", PARAMETER_LINEAR, intermediate, dim},
        {"output.dense", PARAMETER_LINEAR, dim, intermediate},
        {"output.LayerNorm", PARAMETER_NORM, 1, dim},
    };
    for (size_t i = 0; i < PER_LAYER; i++) {
        char name[80];
        snprintf(name, sizeof name, "encoder.layer.%zu.%s", number, members[i].name);
        parameter_add(enc, members[i].kind, members[i].rows, members[i].columns, name);
    }
    enc->layers[number] = (struct layer){p, p + 1, p + 2, p + 3, p + 4, p + 5};
}

static void parameters_list(struct encoder *enc)
{
    const struct model_config *c = &enc->config;
    enc->parameters = mem_zero(FIRST_LAYER + PER_LAYER * c->layers + 1, sizeof *enc->parameters);
    enc->layers = mem_zero(c->layers, sizeof *enc->layers);
    parameter_add(enc, PARAMETER_TABLE, c->vocabulary, c->dim, "embeddings.word_embeddings");
    parameter_add(enc, PARAMETER_TABLE, c->positions, c->dim, "embeddings.position_embeddings");
    parameter_add(enc, PARAMETER_TABLE, c->types, c->dim, "embeddings.token_type_embeddings");
    parameter_add(enc, PARAMETER_NORM, 1, c->dim, "embeddings.LayerNorm");
    for (size_t i = 0; i < c->layers; i++) {
        layer_add(enc, i);
    }
    if (c->dense_path) {
        enc->dense = &enc->parameters[enc->parameter_count];
        parameter_add(enc, PARAMETER_LINEAR, c->width, c->dim, "dense");
    }
}

void parameters_free(struct encoder *enc)
{
    for (size_t i = 0; i < enc->parameter_count; i++) {
        struct encoder_parameter *p = &enc->parameters[i];
        tensor_release(enc->backend, &p->tensor);
        tensor_release(enc->backend, &p->bias);
        enc->backend->ops->weight_close(enc->backend, p->packed);
    }
    free(enc->parameters);
    free(enc->layers);
}

/* ---- values ------------------------------------------------------------------------------------------------------ */

/* Rows first .. first + rows - 1 of a tensor [of, columns], which is made where it is not there yet. */
static int rows_upload(struct encoder *enc, struct tensor *t, size_t of, size_t columns, size_t first, size_t rows,
                       const float *values, struct error *e)
{
    const struct backend_operations *ops = enc->backend->ops;
    if (!t->data && tensor_alloc(enc->backend, t, DTYPE_F32, of, columns, e)) {
        return -1;
    }
    if (ops->upload(enc->stream, (float *)t->data + first * columns, values, rows * columns * sizeof *values, e)) {
        return -1;
    }
    return ops->wait(enc->stream, e);
}

static int linear_set(struct encoder *enc, struct encoder_parameter *p, const float *weight, const float *bias,
                      struct error *e)
{
    const struct backend_operations *ops = enc->backend->ops;
    const enum dtype dtype = p == enc->dense ? DTYPE_F32 : enc->backend->facts.compute;
    if ((!p->packed && ops->weight_open(enc->backend, p->columns, p->rows, dtype, &p->packed, e)) ||
        rows_upload(enc, &p->tensor, p->rows, p->columns, 0, p->rows, weight, e) ||
        rows_upload(enc, &p->bias, 1, p->rows, 0, 1, bias, e)) {
        return -1;
    }
    ops->weight_pack(enc->stream, p->packed, &p->tensor, &p->bias);
    int failed = ops->wait(enc->stream, e);
    if (!enc->masters) {
        tensor_release(enc->backend, &p->tensor);
        tensor_release(enc->backend, &p->bias);
    }
    return failed;
}

int encoder_parameter_set(struct encoder *enc, size_t i, const float *weight, const float *bias, struct error *e)
{
    struct encoder_parameter *p = &enc->parameters[i];
    switch (p->kind) {
    case PARAMETER_TABLE:
        return rows_upload(enc, &p->tensor, p->rows, p->columns, 0, p->rows, weight, e);
    case PARAMETER_NORM:
        return rows_upload(enc, &p->tensor, 2, p->columns, 0, 1, weight, e) ||
                       rows_upload(enc, &p->tensor, 2, p->columns, 1, 1, bias, e)
                   ? -1
                   : 0;
    case PARAMETER_LINEAR:
        break;
    }
    return linear_set(enc, p, weight, bias, e);
}

/* ---- from the file ----------------------------------------------------------------------------------------------- */

static int prefix_find(struct loading *l, struct error *e)
{
    static const char *const prefixes[] = {"", "bert.", "0.auto_model."};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        char name[96];
        struct stored_tensor ignored;
        snprintf(name, sizeof name, "%sembeddings.word_embeddings.weight", prefixes[i]);
        int found = safetensors_find(l->model.file, name, &ignored, e);
        if (found != 0) {
            l->model.prefix = prefixes[i];
            return found < 0 ? -1 : 0;
        }
    }
    return error_set(
        e, ERROR_FATAL, E_MODEL,
        "%s: tensor embeddings.word_embeddings.weight is missing (with the prefixes bert. and 0.auto_model. too)",
        l->model.path);
}

/* The tensor of canonical name `module`.`member`, of shape [rows, columns] ([columns] where rows is 0). */
static int tensor_find(struct loading *l, const char *module, const char *member, size_t rows, size_t columns,
                       struct stored_tensor *out, struct error *e)
{
    const struct source *from = l->from;
    const size_t suffix = strlen(module) > 9 ? strlen(module) - 9 : 0;
    const char *spelled = from == &l->dense ? "linear" : module;
    struct named_tensor *t = &l->tensors[l->count];
    snprintf(t->name, sizeof t->name, "%s.%s", module, member);
    snprintf(t->stored, sizeof t->stored, "%s%s.%s", from->prefix, spelled, member);
    int found = safetensors_find(from->file, t->stored, out, e);
    if (found == 0 && strcmp(module + suffix, "LayerNorm") == 0) {
        char old[sizeof t->stored];
        snprintf(old, sizeof old, "%s%s.%s", from->prefix, module, strcmp(member, "bias") ? "gamma" : "beta");
        found = safetensors_find(from->file, old, out, e);
        if (found != 0) {
            memcpy(t->stored, old, sizeof old);
        }
    }
    if (found <= 0) {
        return found < 0 ? -1 : error_set(e, ERROR_FATAL, E_MODEL, "%s: tensor %s is missing", from->path, t->stored);
    }
    bool fits = rows ? out->rank == 2 && out->shape[0] == rows && out->shape[1] == columns
                     : out->rank == 1 && out->shape[0] == columns;
    if (!fits) {
        struct buffer shape = {0};
        for (size_t i = 0; i < out->rank; i++) {
            buffer_format(&shape, "%s%zu", i ? ", " : "", out->shape[i]);
        }
        error_set(e, ERROR_FATAL, E_MODEL, "%s: tensor %s has shape [%s]; config.json asks for [%.*zu%s%zu]",
                  from->path, t->stored, shape.data ? shape.data : "", rows ? 1 : 0, rows, rows ? ", " : "", columns);
        buffer_free(&shape);
        return -1;
    }
    t->tensor = *out;
    l->count++;
    return 0;
}

/* Numbers first .. first + count - 1 of a tensor that was found, to out; refused where one is not finite. */
static int numbers_read(const struct loading *l, const struct named_tensor *named, size_t first, size_t count,
                        float *out, struct error *e)
{
    const struct stored_tensor *t = &named->tensor;
    size_t i = 0;
    tensor_read(t, first, count, out);
    while (i < count && isfinite(out[i])) {
        i++;
    }
    if (i == count) {
        return 0;
    }
    struct buffer place = {0};
    const size_t columns = t->shape[t->rank - 1];
    if (t->rank == 2) {
        buffer_format(&place, "%zu, ", (first + i) / columns);
    }
    buffer_format(&place, "%zu", (first + i) % columns);
    error_set(e, ERROR_FATAL, E_MODEL, "%s: tensor %s [%s] is %s: the file is damaged, or its training failed",
              l->from->path, named->stored, place.data, isnan(out[i]) ? "NaN" : "infinite");
    buffer_free(&place);
    return -1;
}

static int table_load(struct loading *l, struct encoder_parameter *p, struct error *e)
{
    struct stored_tensor t;
    if (tensor_find(l, p->name, "weight", p->rows, p->columns, &t, e) != 0) {
        return -1;
    }
    l->weight = mem_resize(l->weight, UPLOAD_ROWS * p->columns * sizeof *l->weight);
    for (size_t first = 0; first < p->rows; first += UPLOAD_ROWS) {
        size_t rows = p->rows - first < UPLOAD_ROWS ? p->rows - first : UPLOAD_ROWS;
        if (numbers_read(l, &l->tensors[l->count - 1], first * p->columns, rows * p->columns, l->weight, e) != 0) {
            return -1;
        }
        if (rows_upload(l->enc, &p->tensor, p->rows, p->columns, first, rows, l->weight, e)) {
            return -1;
        }
    }
    return 0;
}

/* All numbers of a tensor, as part `part` of `parts` of *out. */
static int part_load(struct loading *l, const char *module, const char *member, size_t rows, size_t columns,
                     size_t part, size_t parts, float **out, struct error *e)
{
    struct stored_tensor t;
    if (tensor_find(l, module, member, rows, columns, &t, e) != 0) {
        return -1;
    }
    *out = mem_resize(*out, parts * t.count * sizeof **out);
    return numbers_read(l, &l->tensors[l->count - 1], 0, t.count, *out + part * t.count, e);
}

/* A Dense without bias has one of zeroes. */
static int dense_bias_none(struct loading *l, size_t width, struct error *e)
{
    struct stored_tensor t;
    int found = safetensors_find(l->dense.file, "linear.bias", &t, e);
    if (found != 0) {
        return found < 0 ? -1
                         : error_set(e, ERROR_FATAL, E_MODEL,
                                     "%s: tensor linear.bias is there, but config.json says that bias is false",
                                     l->dense.path);
    }
    l->bias = mem_resize(l->bias, width * sizeof *l->bias);
    memset(l->bias, 0, width * sizeof *l->bias);
    return 0;
}

/* Weight and bias of a norm, a matrix, or the three matrices of an attention one below the other. */
static int parameter_load(struct loading *l, size_t i, struct error *e)
{
    static const char *const attention_parts[PARTS_MAX] = {"query", "key", "value"};
    struct encoder_parameter *p = &l->enc->parameters[i];
    const bool dense = p == l->enc->dense;
    l->from = dense ? &l->dense : &l->model;
    if (p->kind == PARAMETER_TABLE) {
        return table_load(l, p, e);
    }
    const bool norm = p->kind == PARAMETER_NORM,
               attention = !norm && p->rows == 3 * p->columns && strstr(p->name, ".self");
    const size_t parts = attention ? PARTS_MAX : 1, rows = p->rows / parts, biases = norm ? p->columns : rows;
    for (size_t part = 0; part < parts; part++) {
        char module[96];
        snprintf(module, sizeof module, "%s%s%s", p->name, attention ? "." : "",
                 attention ? attention_parts[part] : "");
        if (part_load(l, module, "weight", norm ? 0 : rows, p->columns, part, parts, &l->weight, e) ||
            (dense && !l->enc->config.dense_bias ? dense_bias_none(l, biases, e)
                                                 : part_load(l, module, "bias", 0, biases, part, parts, &l->bias, e))) {
            return -1;
        }
    }
    return encoder_parameter_set(l->enc, i, l->weight, l->bias, e);
}

/* ---- the fingerprint --------------------------------------------------------------------------------------------- */

static int tensors_compare(const void *a, const void *b)
{
    return strcmp(((const struct named_tensor *)a)->name, ((const struct named_tensor *)b)->name);
}

/* Length first, so that nothing can run over into its neighbour. */
static void hash_text(XXH3_state_t *state, struct slice text)
{
    uint8_t length[8];
    for (size_t i = 0; i < sizeof length; i++) {
        length[i] = (uint8_t)((uint64_t)text.bytes >> (8 * i));
    }
    XXH3_128bits_update(state, length, sizeof length);
    XXH3_128bits_update(state, text.data, text.bytes);
}

/* XXH3-128 over what the encoder uses: each tensor in the order of its canonical name, the vocabulary, and all settings
 * that change an embedding. */
static void fingerprint_take(struct loading *l)
{
    struct encoder *enc = l->enc;
    const struct model_config *c = &enc->config;
    struct buffer line = {0};
    XXH3_state_t *state = XXH3_createState();
    XXH3_128bits_reset(state);
    qsort(l->tensors, l->count, sizeof *l->tensors, tensors_compare);
    for (size_t i = 0; i < l->count; i++) {
        const struct stored_tensor *t = &l->tensors[i].tensor;
        buffer_clear(&line);
        buffer_format(&line, "%s %s", l->tensors[i].name, tensor_dtype_name(t->dtype));
        for (size_t d = 0; d < t->rank; d++) {
            buffer_format(&line, " %zu", t->shape[d]);
        }
        hash_text(state, (struct slice){line.data, line.bytes});
        XXH3_128bits_update(state, t->bytes, t->byte_count);
    }
    hash_text(state, tokenizer_vocabulary(c->tokenizer));
    buffer_clear(&line);
    buffer_format(&line,
                  "lower_case %d strip_accents %d chinese_chars %d pooling %s heads %zu epsilon_ppq %.0f length %zu",
                  c->lower_case, c->strip_accents, c->tokenize_chinese_chars,
                  c->pooling == POOLING_CLS ? "cls" : "mean", c->heads, (double)c->epsilon * 1e15, c->max_seq_length);
    hash_text(state, (struct slice){line.data, line.bytes});
    hash_text(state, slice_of(enc->prefixes[ENCODER_TEXT]));
    hash_text(state, slice_of(enc->prefixes[ENCODER_LABEL]));
    const struct slice extras = tokenizer_extras(c->tokenizer);
    if (extras.bytes > 0) { /* a tokenizer without any has the fingerprint that it had before there were any */
        hash_text(state, extras);
    }
    if (c->lower_text) {
        hash_text(state, slice_of("text in lower case"));
    }
    XXH128_hash_t hash = XXH3_128bits_digest(state);
    digest_hex((struct digest){hash.high64, hash.low64}, enc->fingerprint);
    memcpy(enc->model_version, enc->fingerprint, sizeof enc->model_version - 1);
    XXH3_freeState(state);
    buffer_free(&line);
}

int parameters_load(struct encoder *enc, struct error *e)
{
    int result = -1;
    const struct model_config *c = &enc->config;
    struct loading l = {.enc = enc, .model.path = c->weights_path, .dense = {.path = c->dense_path, .prefix = ""}};
    if (safetensors_open(&l.model.file, c->weights_path, e) || prefix_find(&l, e) ||
        (c->dense_path && safetensors_open(&l.dense.file, c->dense_path, e))) {
        goto done;
    }
    parameters_list(enc);
    l.tensors = mem_alloc(enc->parameter_count * 2 * PARTS_MAX * sizeof *l.tensors);
    for (size_t i = 0; i < enc->parameter_count; i++) {
        if (parameter_load(&l, i, e) != 0) {
            goto done;
        }
    }
    fingerprint_take(&l);
    result = 0;
done:
    safetensors_close(l.model.file);
    safetensors_close(l.dense.file);
    free(l.tensors);
    free(l.weight);
    free(l.bias);
    return result;
}
