/* The operations of internal.h's device, in plain loops. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/backend/apart/internal.h"

struct weight {
    size_t in, width;
    enum dtype dtype;
    struct tensor matrix, bias; /* [width, in], [1, width] f32; the matrix is rounded to the dtype */
};

/* Of activations. */
static enum dtype compute(const struct stream *s)
{
    return s->device->backend.facts.compute;
}

static struct tensor tensor_or_none(const struct tensor *t)
{
    return t ? *t : (struct tensor){0};
}

static const struct tile *tile_of(const struct stream *s, const char *what)
{
    if (s->tile.sequences == 0) {
        slip("%s: no tile was announced", what);
    }
    return &s->tile;
}

/* ---- operations ---- */

/* Sums are in double here; what would be beyond f32 is no number, as where they are not. */
static bool beyond(double sum)
{
    return !(fabs(sum) <= (double)FLT_MAX);
}

/* Row r of out = layer_norm of y [dim]; stats: the row's two kept numbers or NULL. */
static void norm_row(float *out, const float *y, size_t dim, const float *norm, float epsilon, float *stats)
{
    double mean = 0, variance = 0;
    for (size_t c = 0; c < dim; c++) {
        mean += (double)y[c] / (double)dim;
    }
    for (size_t c = 0; c < dim; c++) {
        variance += ((double)y[c] - mean) * ((double)y[c] - mean) / (double)dim;
    }
    const double rstd = beyond(variance) ? NAN : 1 / sqrt(variance + (double)epsilon);
    for (size_t c = 0; c < dim; c++) {
        out[c] = (float)(((double)y[c] - mean) * rstd * (double)norm[c] + (double)norm[dim + c]);
    }
    if (stats) {
        stats[0] = (float)mean;
        stats[1] = (float)rstd;
    }
}

static void embed_run(struct stream *s, const struct call *c)
{
    const struct tile *tile = tile_of(s, "embed");
    const struct embedding *e = &c->embedding;
    const size_t dim = c->out.columns, n = tile->tokens;
    float *out = write_of(s, &c->out, compute(s), n, dim, "embed"),
          *kept = write_of(s, &c->kept, DTYPE_F32, n, 2, "embed's kept");
    const float *word = read_of(s, &e->word, DTYPE_F32, e->word.rows, dim, "embed's word");
    const float *position = read_of(s, &e->position, DTYPE_F32, e->position.rows, dim, "embed's position");
    const float *type = read_of(s, &e->type, DTYPE_F32, 1, dim, "embed's type"),
                *norm = read_of(s, &e->norm, DTYPE_F32, 2, dim, "norm");
    if (!tile->ids) {
        slip("embed: a tile without ids");
    }
    for (size_t q = 0; q < tile->sequences; q++) {
        for (size_t t = tile->starts[q]; t < tile->starts[q + 1]; t++) {
            const size_t id = (size_t)tile->ids[t], place = t - tile->starts[q];
            if (id >= e->word.rows || place >= e->position.rows) {
                slip("embed: word %zu of %zu at place %zu of %zu", id, e->word.rows, place, e->position.rows);
            }
            for (size_t i = 0; i < dim; i++) {
                out[t * dim + i] = word[id * dim + i] + position[place * dim + i] + type[i];
            }
            norm_row(out + t * dim, out + t * dim, dim, norm, e->epsilon, kept ? kept + 2 * t : NULL);
        }
    }
}

void apart_embed(struct stream *s, const struct tensor *out, const struct embedding *embedding,
                 const struct tensor *kept)
{
    queue(s, &(struct call){.run = embed_run, .out = *out, .embedding = *embedding, .kept = tensor_or_none(kept)});
}

static void linear_run(struct stream *s, const struct call *c)
{
    const size_t in = c->weight->in, width = c->weight->width, rows = c->x.rows;
    const float *x = read_of(s, &c->x, c->weight->dtype, rows, in, "linear's in");
    const float *weight = read_of(s, &c->weight->matrix, DTYPE_F32, width, in, "weight");
    const float *bias = read_of(s, &c->weight->bias, DTYPE_F32, 1, width, "bias");
    float *out = write_of(s, &c->out, c->weight->dtype, rows, width, "linear"),
          *kept = write_of(s, &c->kept, c->weight->dtype, rows, width, "linear's kept");
    for (size_t r = 0; r < rows; r++) {
        for (size_t o = 0; o < width; o++) {
            double sum = (double)bias[o];
            for (size_t i = 0; i < in; i++) {
                sum += (double)x[r * in + i] * (double)weight[o * in + i];
            }
            if (kept) {
                kept[r * width + o] = (float)sum;
            }
            out[r * width + o] = (float)(c->epilogue == EPILOGUE_GELU ? sum / 2 * (1 + erf(sum / sqrt(2))) : sum);
        }
    }
}

void apart_linear(struct stream *s, const struct tensor *out, const struct tensor *in, const struct weight *w,
                  enum epilogue epilogue, const struct tensor *kept)
{
    queue(s, &(struct call){.run = linear_run,
                            .out = *out,
                            .x = *in,
                            .weight = (struct weight *)(uintptr_t)w,
                            .epilogue = epilogue,
                            .kept = tensor_or_none(kept)});
}

static void layer_norm_run(struct stream *s, const struct call *c)
{
    const size_t rows = c->x.rows, dim = c->x.columns;
    const float *x = read_of(s, &c->x, compute(s), rows, dim, "layer_norm's x"),
                *norm = read_of(s, &c->norm, DTYPE_F32, 2, dim, "norm");
    const float *residual = c->more.data ? read_of(s, &c->more, compute(s), rows, dim, "layer_norm's residual") : NULL;
    float *out = write_of(s, &c->out, compute(s), rows, dim, "layer_norm"),
          *kept = write_of(s, &c->kept, DTYPE_F32, rows, 2, "layer_norm's kept");
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = r * dim; i < (r + 1) * dim; i++) {
            out[i] = residual ? x[i] + residual[i] : x[i];
        }
        norm_row(out + r * dim, out + r * dim, dim, norm, c->epsilon, kept ? kept + 2 * r : NULL);
    }
}

void apart_layer_norm(struct stream *s, const struct tensor *out, const struct tensor *x, const struct tensor *residual,
                      const struct tensor *norm, float epsilon, const struct tensor *kept)
{
    queue(s, &(struct call){.run = layer_norm_run,
                            .out = *out,
                            .x = *x,
                            .more = tensor_or_none(residual),
                            .norm = *norm,
                            .epsilon = epsilon,
                            .kept = tensor_or_none(kept)});
}

/* One query of one head: q, k and v point at the head's part of the query's row and of the sequence's first row. */
static float attend(float *out, const float *q, const float *k, const float *v, size_t rows, size_t dim,
                    size_t head_dim, double *weights)
{
    double highest = -INFINITY, sum = 0;
    for (size_t j = 0; j < rows; j++) {
        weights[j] = 0;
        for (size_t i = 0; i < head_dim; i++) {
            weights[j] += (double)q[i] * (double)k[j * 3 * dim + i] / sqrt((double)head_dim);
        }
        highest = weights[j] > highest ? weights[j] : highest;
    }
    for (size_t j = 0; j < rows; j++) {
        weights[j] = exp(weights[j] - highest);
        sum += weights[j];
    }
    for (size_t i = 0; i < head_dim; i++) {
        double value = 0;
        for (size_t j = 0; j < rows; j++) {
            value += weights[j] / sum * (double)v[j * 3 * dim + i];
        }
        out[i] = (float)value;
    }
    return (float)(highest + log(sum));
}

static void attention_run(struct stream *s, const struct call *c)
{
    const struct tile *tile = tile_of(s, "attention");
    const size_t dim = c->out.columns, n = tile->tokens, head_dim = dim / c->heads;
    const float *qkv = read_of(s, &c->x, compute(s), n, 3 * dim, "attention's qkv");
    float *out = write_of(s, &c->out, compute(s), n, dim, "attention"),
          *kept = write_of(s, &c->kept, DTYPE_F32, n, c->heads, "attention's kept");
    double *weights = host_memory(n, sizeof *weights);
    for (size_t t = 0, sequence = 0; t < n; t++) {
        sequence += t == tile->starts[sequence + 1];
        const size_t first = tile->starts[sequence], rows = tile->starts[sequence + 1] - first;
        for (size_t h = 0; h < c->heads; h++) {
            const float *q = qkv + t * 3 * dim + h * head_dim, *k = qkv + first * 3 * dim + dim + h * head_dim;
            float lse = attend(out + t * dim + h * head_dim, q, k, k + dim, rows, dim, head_dim, weights);
            if (kept) {
                kept[t * c->heads + h] = lse;
            }
        }
    }
    free(weights);
}

void apart_attention(struct stream *s, const struct tensor *out, const struct tensor *qkv, size_t heads,
                     const struct tensor *kept)
{
    queue(s,
          &(struct call){.run = attention_run, .out = *out, .x = *qkv, .heads = heads, .kept = tensor_or_none(kept)});
}

static void pool_run(struct stream *s, const struct call *c)
{
    const struct tile *tile = tile_of(s, "pool");
    const size_t dim = c->out.columns;
    const float *x = read_of(s, &c->x, compute(s), tile->tokens, dim, "pool's x");
    float *out = write_of(s, &c->out, DTYPE_F32, tile->sequences, dim, "pool");
    for (size_t q = 0; q < tile->sequences; q++) {
        const size_t first = tile->starts[q], end = c->pooling == POOLING_CLS ? first + 1 : tile->starts[q + 1];
        for (size_t i = 0; i < dim; i++) {
            double sum = 0;
            for (size_t t = first; t < end; t++) {
                sum += (double)x[t * dim + i];
            }
            out[q * dim + i] = (float)(sum / (double)(end - first));
        }
    }
}

void apart_pool(struct stream *s, const struct tensor *out, const struct tensor *x, enum pooling pooling)
{
    queue(s, &(struct call){.run = pool_run, .out = *out, .x = *x, .pooling = pooling});
}

static void normalise_run(struct stream *s, const struct call *c)
{
    const size_t rows = c->x.rows, columns = c->x.columns;
    const float *x = read_of(s, &c->x, DTYPE_F32, rows, columns, "normalise's x");
    float *out = write_of(s, &c->out, DTYPE_F32, rows, columns, "normalise"),
          *kept = write_of(s, &c->kept, DTYPE_F32, rows, 1, "its kept");
    for (size_t r = 0; r < rows; r++) {
        double squares = 0;
        for (size_t i = r * columns; i < (r + 1) * columns; i++) {
            squares += (double)x[i] * (double)x[i];
        }
        const double norm = beyond(squares) ? NAN : sqrt(squares);
        for (size_t i = r * columns; i < (r + 1) * columns; i++) {
            out[i] = squares == 0 ? x[i] : (float)((double)x[i] / norm);
        }
        if (kept) {
            kept[r] = (float)norm;
        }
    }
}

void apart_normalise(struct stream *s, const struct tensor *out, const struct tensor *x, const struct tensor *kept)
{
    queue(s, &(struct call){.run = normalise_run, .out = *out, .x = *x, .kept = tensor_or_none(kept)});
}

/* ---- weights ---- */

void apart_weight_close(struct backend *b, struct weight *w)
{
    struct device *d = device_of(b);
    if (!w) {
        return;
    }
    if (w->matrix.data) {
        memory_give(d, w->matrix.data);
    }
    if (w->bias.data) {
        memory_give(d, w->bias.data);
    }
    opened(d, -1);
    free(w);
}

int apart_weight_open(struct backend *b, size_t in, size_t width, enum dtype dtype, struct weight **out,
                      struct error *e)
{
    struct device *d = device_of(b);
    if (dtype != DTYPE_F32 && dtype != b->facts.compute) {
        return d->host->error_set(e, ERROR_FATAL, E_INTERNAL, "a weight of dtype %d", (int)dtype);
    }
    struct weight *w = host_memory(1, sizeof *w);
    *w = (struct weight){in, width, dtype, {NULL, DTYPE_F32, width, in}, {NULL, DTYPE_F32, 1, width}};
    opened(d, 1);
    if (memory_take(d, in * width * sizeof(float), &w->matrix.data, e) != 0 ||
        memory_take(d, width * sizeof(float), &w->bias.data, e) != 0) {
        apart_weight_close(b, w);
        return -1;
    }
    const size_t bytes = in * width * sizeof(float);
    memset(at(d, w->matrix.data, bytes, "weight"), 0xFF, bytes); /* nothing was packed yet: NaN */
    *out = w;
    return 0;
}

static void weight_pack_run(struct stream *s, const struct call *c)
{
    const struct weight *w = c->weight;
    const size_t count = w->in * w->width;
    const float *from = read_of(s, &c->x, DTYPE_F32, w->width, w->in, "master weight");
    float *to = at(s->device, w->matrix.data, count * sizeof *to, "weight");
    for (size_t i = 0; i < count; i++) {
        to[i] = w->dtype == DTYPE_BF16 ? float_of(bf16_of(from[i])) : from[i];
    }
    memcpy(at(s->device, w->bias.data, w->width * sizeof(float), "bias"),
           read_of(s, &c->more, DTYPE_F32, 1, w->width, "master bias"), w->width * sizeof(float));
}

void apart_weight_pack(struct stream *s, struct weight *w, const struct tensor *weight, const struct tensor *bias)
{
    queue(s, &(struct call){.run = weight_pack_run, .weight = w, .x = *weight, .more = *bias});
}
