/* Memory, copies and every operation of gpu/backend.h on every backend, against plain references in double over many
 * shapes. The search over keys and the work of several streams: test_backend_keys.c, test_backend_streams.c. */
#include <float.h>

#include "tests/unit/backend_suite.h"

static void test_facts(void **state)
{
    (void)state;
    const struct backend_facts *f = &backend->facts;
    assert_true(f->name && *f->name && f->library && *f->library);
    assert_true(f->compute == DTYPE_F32 || f->compute == DTYPE_BF16);
    assert_true(f->row_multiple > 0 && f->streams > 0);
    assert_true(f->tile_tokens > 0 && f->batch_tokens >= f->tile_tokens);
    assert_true((ops->host_alloc == NULL) == (ops->host_release == NULL));
}

/* ---- memory and copies ---- */

static void test_alloc(void **state)
{
    (void)state;
    struct error e = {0};
    const size_t bytes = 10000;
    unsigned char *here = hold(mem_alloc(bytes));
    for (size_t i = 0; i < 3; i++) {
        void *memory;
        must(ops->alloc(backend, bytes, &memory, &e), &e);
        assert_int_equal((uintptr_t)memory % 64, 0);
        memset(here, 1, bytes);
        ops->download(stream, here, memory, bytes);
        done();
        for (size_t j = 0; j < bytes; j++) {
            assert_int_equal(here[j], 0);
        }
        memset(here, 2, bytes);
        must(ops->upload(stream, memory, here, bytes, &e), &e); /* what is used again is zeroed again */
        done();
        ops->release(backend, memory);
    }
    ops->release(backend, NULL);
    ops->weight_close(backend, NULL);
    tensor_release(backend, &(struct tensor){0});
}

/* In their order, also where they cross; parts of memory; the host's side is read and written until `wait`. */
static void test_copies(void **state)
{
    (void)state;
    struct error e = {0};
    const size_t count = 5000;
    float *first = numbers(count, 1, DTYPE_F32), *second = numbers(count, 1, DTYPE_F32);
    float *got[3];
    struct tensor t = tensor_empty(DTYPE_F32, count, 1);
    for (size_t i = 0; i < 3; i++) {
        got[i] = numbers(count, 1, DTYPE_F32);
    }
    must(ops->upload(stream, t.data, first, count * sizeof *first, &e), &e);
    ops->download(stream, got[0], t.data, count * sizeof *first);
    must(ops->upload(stream, t.data, second, count * sizeof *first, &e), &e);
    ops->download(stream, got[1], t.data, count * sizeof *first);
    must(ops->upload(stream, (float *)t.data + 1003, first, 501 * sizeof *first, &e), &e);
    ops->download(stream, got[2], (float *)t.data + 1000, 700 * sizeof *first);
    must(ops->upload(stream, t.data, first, 0, &e), &e);
    done();
    assert_memory_equal(got[0], first, count * sizeof *first);
    assert_memory_equal(got[1], second, count * sizeof *first);
    for (size_t i = 0; i < 700; i++) {
        assert_true(got[2][i] == (i < 3 || i >= 504 ? second[1000 + i] : first[i - 3]));
    }
}

static void test_host_memory(void **state)
{
    (void)state;
    struct error e = {0};
    const size_t count = 3000;
    void *memory;
    if (!ops->host_alloc) {
        return; /* optional */
    }
    float *values = numbers(count, 1, DTYPE_F32);
    struct tensor t = tensor_empty(DTYPE_F32, count, 1);
    must(ops->host_alloc(backend, count * sizeof *values, &memory, &e), &e);
    memcpy(memory, values, count * sizeof *values);
    must(ops->upload(stream, t.data, memory, count * sizeof *values, &e), &e);
    done();
    memset(memory, 0, count * sizeof *values);
    ops->download(stream, memory, t.data, count * sizeof *values);
    done();
    assert_memory_equal(memory, values, count * sizeof *values);
    ops->host_release(backend, memory);
    ops->host_release(backend, NULL);
}

/* Grows and is used again, while calls on the one before still run; a tensor in it is as good as one of its own. */
static void test_arena(void **state)
{
    (void)state;
    struct error e = {0};
    const size_t multiple = backend->facts.row_multiple;
    float *got[4];
    for (size_t i = 0; i < 4; i++) {
        const size_t rows = i == 3 ? 10 : 10 + 3 * multiple * i, columns = 40;
        const size_t bytes = (tensor_bytes(backend, DTYPE_F32, rows, columns) + 63) / 64 * 64;
        float *ones = hold(mem_alloc(rows * columns * sizeof *ones));
        void *memory;
        got[i] = numbers(rows * columns, 1, DTYPE_F32);
        for (size_t j = 0; j < rows * columns; j++) {
            ones[j] = (float)(i + 1);
        }
        must(ops->arena(stream, 2 * bytes, &memory, &e), &e);
        assert_int_equal((uintptr_t)memory % 64, 0);
        const struct tensor x = {memory, DTYPE_F32, rows, columns};
        const struct tensor y = {(char *)memory + bytes, DTYPE_F32, rows, columns};
        must(ops->upload(stream, x.data, ones, rows * columns * sizeof *ones, &e), &e);
        ops->normalise(stream, &y, &x, NULL);
        ops->download(stream, got[i], y.data, rows * columns * sizeof *ones);
    }
    done();
    for (size_t i = 0; i < 4; i++) {
        assert_true(fabs((double)got[i][399] - 1 / sqrt(40)) < 1e-6);
    }
}

/* ---- linear ---- */

struct linear {
    size_t in, width, rows;
    enum dtype dtype;
    enum epilogue epilogue;
    bool kept;
};

static void linear_reference(const struct linear *l, const float *x, const float *weight, const float *bias,
                             double *before, double *out, double *spread)
{
    for (size_t r = 0; r < l->rows; r++) {
        for (size_t o = 0; o < l->width; o++) {
            double sum = (double)bias[o];
            for (size_t i = 0; i < l->in; i++) {
                sum += (double)x[r * l->in + i] * (double)weight[o * l->in + i];
            }
            const size_t at = r * l->width + o;
            before[at] = sum;
            out[at] = l->epilogue == EPILOGUE_GELU ? sum / 2 * (1 + erf(sum / sqrt(2))) : sum;
            /* GELU may be taken of the rounded value that is kept; its slope is at most 1.13 */
            spread[at] = l->epilogue == EPILOGUE_GELU ? 1.13 * fabs(sum) : 0;
        }
    }
}

static struct weight *weight_of(size_t in, size_t width, enum dtype dtype)
{
    struct error e = {0};
    struct weight *w;
    must(ops->weight_open(backend, in, width, dtype, &w, &e), &e);
    assert_true(held.weight_count < sizeof held.weights / sizeof *held.weights);
    return held.weights[held.weight_count++] = w;
}

static void linear_check(const struct linear *l)
{
    const size_t in = l->in, width = l->width, count = l->rows * width;
    float *weight = numbers(in * width, 1, l->dtype), *bias = numbers(width, 2, l->dtype);
    float *x = numbers(l->rows * in, 1, l->dtype);
    struct tensor first = tensor_of(DTYPE_F32, width, in, numbers(in * width, 1, DTYPE_F32));
    struct tensor master = tensor_of(DTYPE_F32, width, in, weight);
    struct tensor first_bias = tensor_of(DTYPE_F32, 1, width, numbers(width, 2, DTYPE_F32));
    struct tensor master_bias = tensor_of(DTYPE_F32, 1, width, bias);
    struct tensor from = tensor_of(l->dtype, l->rows, in, x), out = tensor_empty(l->dtype, l->rows, width);
    struct tensor kept = tensor_empty(l->dtype, l->rows, width);
    struct weight *w = weight_of(in, width, l->dtype);
    ops->weight_pack(stream, w, &first, &first_bias);
    ops->linear(stream, &out, &from, w, l->epilogue, NULL);
    ops->weight_pack(stream, w, &master, &master_bias); /* the first values must be gone */
    ops->linear(stream, &out, &from, w, l->epilogue, l->kept ? &kept : NULL);
    double *before = doubles(count), *expected = doubles(count), *spread = doubles(count);
    linear_reference(l, x, weight, bias, before, expected, spread);
    const double bound = 1e-6 * (4 + sqrt((double)in));
    assert_close(&out, expected, spread, bound, "linear");
    if (l->kept) {
        assert_close(&kept, before, NULL, bound, "linear, before GELU");
    }
    drop();
}

static void test_linear(void **state)
{
    (void)state;
    static const size_t widths[] = {1, 5, 16, 32, 33, 48, 96, 100, 384};
    static const size_t rows[] = {1, 2, 7, 8, 9, 31, 127, 128, 129, 300};
    const enum dtype compute = backend->facts.compute;
    for (size_t i = 0; i < 40; i++) {
        const bool gelu = i % 3 == 1;
        linear_check(&(struct linear){widths[random_below(9)], widths[random_below(9)], rows[i % 10],
                                      i % 2 ? compute : DTYPE_F32, gelu ? EPILOGUE_GELU : EPILOGUE_NONE,
                                      gelu && i % 4 < 2});
    }
    linear_check(&(struct linear){384, 1152, 130, compute, EPILOGUE_NONE, false});
    linear_check(&(struct linear){384, 1536, 77, compute, EPILOGUE_GELU, false});
    linear_check(&(struct linear){384, 1536, 33, compute, EPILOGUE_GELU, true});
    linear_check(&(struct linear){1536, 384, 161, compute, EPILOGUE_NONE, false});
    linear_check(&(struct linear){384, 768, 20, DTYPE_F32, EPILOGUE_NONE, false}); /* a Dense */
}

/* ---- rows ---- */

static const size_t dims[] = {1, 3, 4, 15, 16, 17, 32, 40, 384};
#define DIMS (sizeof dims / sizeof *dims)

/* out [rows, dim] and kept [rows, 2] of y [rows, dim]. */
static void layer_norm_reference(double *out, double *kept, const double *y, const float *norm, double epsilon,
                                 size_t rows, size_t dim)
{
    for (size_t r = 0; r < rows; r++, y += dim, out += dim) {
        double mean = 0, variance = 0;
        for (size_t c = 0; c < dim; c++) {
            mean += y[c] / (double)dim;
        }
        for (size_t c = 0; c < dim; c++) {
            variance += (y[c] - mean) * (y[c] - mean) / (double)dim;
        }
        kept[2 * r] = mean;
        kept[2 * r + 1] = 1 / sqrt(variance + epsilon);
        for (size_t c = 0; c < dim; c++) {
            out[c] = (y[c] - mean) * kept[2 * r + 1] * (double)norm[c] + (double)norm[dim + c];
        }
    }
}

static void test_layer_norm(void **state)
{
    (void)state;
    const enum dtype dtype = backend->facts.compute;
    for (size_t i = 0; i < 6 * DIMS; i++) {
        const size_t dim = dims[i % DIMS], rows = 1 + random_below(40), count = rows * dim;
        float *x = numbers(count, 3, dtype), *more = numbers(count, 2, dtype), *norm = numbers(2 * dim, 2, DTYPE_F32);
        const bool residual = i % 2;
        double *y = doubles(count), *expected = doubles(count), *expected_kept = doubles(2 * rows);
        for (size_t j = 0; j < count; j++) {
            x[j] = exact(x[j] + 5, dtype); /* a mean that is far from 0 */
            y[j] = (double)x[j] + (residual ? (double)more[j] : 0);
        }
        layer_norm_reference(expected, expected_kept, y, norm, 1e-5, rows, dim);
        struct tensor from = tensor_of(dtype, rows, dim, x), rest = tensor_of(dtype, rows, dim, more);
        struct tensor own = tensor_empty(dtype, rows, dim), kept = tensor_empty(DTYPE_F32, rows, 2);
        struct tensor weights = tensor_of(DTYPE_F32, 2, dim, norm);
        const struct tensor *out = i % 3 == 0 ? &own : i % 3 == 1 || !residual ? &from : &rest;
        ops->layer_norm(stream, out, &from, residual ? &rest : NULL, &weights, 1e-5F, i % 4 < 2 ? &kept : NULL);
        assert_close(out, expected, NULL, 1e-4, "layer_norm");
        if (i % 4 < 2) {
            assert_close(&kept, expected_kept, NULL, 1e-4, "layer_norm, mean and rstd");
        }
        drop();
    }
}

static void test_embed(void **state)
{
    (void)state;
    const enum dtype dtype = backend->facts.compute;
    for (size_t i = 0; i < 2 * DIMS; i++) {
        const size_t dim = dims[i % DIMS], words = 50;
        struct tile tile = tile_of(1 + random_below(5), 30, words);
        const size_t count = tile.tokens * dim;
        float *word = numbers(words * dim, 1, DTYPE_F32), *position = numbers(30 * dim, 1, DTYPE_F32);
        float *type = numbers(2 * dim, 1, DTYPE_F32), *norm = numbers(2 * dim, 2, DTYPE_F32);
        double *sum = doubles(count), *expected = doubles(count), *expected_kept = doubles(2 * tile.tokens);
        for (size_t q = 0; q < tile.sequences; q++) {
            for (size_t t = tile.starts[q]; t < tile.starts[q + 1]; t++) {
                for (size_t c = 0; c < dim; c++) {
                    sum[t * dim + c] = (double)word[(size_t)tile.ids[t] * dim + c] +
                                       (double)position[(t - tile.starts[q]) * dim + c] + (double)type[c];
                }
            }
        }
        layer_norm_reference(expected, expected_kept, sum, norm, 1e-5, tile.tokens, dim);
        const struct embedding embedding = {.word = tensor_of(DTYPE_F32, words, dim, word),
                                            .position = tensor_of(DTYPE_F32, 30, dim, position),
                                            .type = tensor_of(DTYPE_F32, 2, dim, type),
                                            .norm = tensor_of(DTYPE_F32, 2, dim, norm),
                                            .epsilon = 1e-5F};
        struct tensor out = tensor_empty(dtype, tile.tokens, dim), kept = tensor_empty(DTYPE_F32, tile.tokens, 2);
        tile_announce(&tile);
        ops->embed(stream, &out, &embedding, i < DIMS ? &kept : NULL);
        assert_close(&out, expected, NULL, 1e-4, "embed");
        if (i < DIMS) {
            assert_close(&kept, expected_kept, NULL, 1e-4, "embed, mean and rstd");
        }
        drop();
    }
}

static void test_pool(void **state)
{
    (void)state;
    const enum dtype dtype = backend->facts.compute;
    for (size_t i = 0; i < 2 * DIMS; i++) {
        const size_t dim = dims[i % DIMS];
        const enum pooling pooling = i < DIMS ? POOLING_MEAN : POOLING_CLS;
        struct tile tile = tile_of(1 + random_below(40), 30, 0);
        float *x = numbers(tile.tokens * dim, 1, dtype);
        double *expected = doubles(tile.sequences * dim);
        for (size_t q = 0; q < tile.sequences; q++) {
            const size_t first = tile.starts[q], end = pooling == POOLING_CLS ? first + 1 : tile.starts[q + 1];
            for (size_t t = first; t < end; t++) {
                for (size_t c = 0; c < dim; c++) {
                    expected[q * dim + c] += (double)x[t * dim + c] / (double)(end - first);
                }
            }
        }
        struct tensor from = tensor_of(dtype, tile.tokens, dim, x);
        struct tensor out = tensor_empty(DTYPE_F32, tile.sequences, dim);
        tile_announce(&tile);
        ops->pool(stream, &out, &from, pooling);
        assert_close(&out, expected, NULL, 1e-5, "pool");
        drop();
    }
}

/* Rows of zeroes, and rows whose sum of squares is no number or beyond f32, beside those of a direction. */
static void test_normalise(void **state)
{
    (void)state;
    static const float special[] = {0, 3e38F, 1e30F, NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 4 * DIMS; i++) {
        const size_t dim = dims[i % DIMS], rows = 1 + random_below(40);
        const bool keep = i % 4 < 2;
        float *x = numbers(rows * dim, 3, DTYPE_F32);
        double *squares = doubles(rows);
        for (size_t r = 0; r < rows; r++) {
            const uint32_t kind = random_below(12);
            for (size_t c = r * dim; c < (r + 1) * dim; c++) {
                x[c] = kind < 3 || (kind < 6 && c == r * dim + dim / 2) ? special[kind] : x[c];
                squares[r] += (double)x[c] * (double)x[c];
            }
        }
        struct tensor from = tensor_of(DTYPE_F32, rows, dim, x), own = tensor_empty(DTYPE_F32, rows, dim);
        struct tensor kept = tensor_empty(DTYPE_F32, rows, 1), *out = i % 2 ? &from : &own;
        ops->normalise(stream, out, &from, keep ? &kept : NULL);
        const float *got = numbers_of(out), *norms = numbers_of(&kept);
        for (size_t r = 0; r < rows; r++) {
            const double norm = sqrt(squares[r]);
            const bool finite = squares[r] <= (double)FLT_MAX;
            for (size_t c = r * dim; c < (r + 1) * dim; c++) {
                const double expected = norm > 0 ? (double)x[c] / norm : 0;
                assert_true(finite ? fabs((double)got[c] - expected) <= 1e-6 : isnan(got[c]));
            }
            assert_true(!keep || (finite ? fabs((double)norms[r] - norm) <= 1e-6 * norm : !isfinite(norms[r])));
        }
        drop();
    }
}

/* ---- attention ---- */

/* One query of one head; returns the kept number. */
static double attention_reference(double *out, const float *qkv, size_t query, size_t rows, size_t dim, size_t head_dim)
{
    double *weights = mem_alloc(rows * sizeof *weights), highest = -INFINITY, sum = 0;
    for (size_t j = 0; j < rows; j++) {
        weights[j] = 0;
        for (size_t c = 0; c < head_dim; c++) {
            weights[j] +=
                (double)qkv[query * 3 * dim + c] * (double)qkv[j * 3 * dim + dim + c] / sqrt((double)head_dim);
        }
        highest = fmax(highest, weights[j]);
    }
    for (size_t j = 0; j < rows; j++) {
        weights[j] = exp(weights[j] - highest);
        sum += weights[j];
    }
    for (size_t c = 0; c < head_dim; c++) {
        out[c] = 0;
        for (size_t j = 0; j < rows; j++) {
            out[c] += weights[j] / sum * (double)qkv[j * 3 * dim + 2 * dim + c];
        }
    }
    free(weights);
    return highest + log(sum);
}

static void attention_check(size_t heads, size_t head_dim, size_t sequences, uint32_t longest, float scale, bool keep)
{
    const size_t dim = heads * head_dim;
    const enum dtype dtype = backend->facts.compute;
    struct tile tile = tile_of(sequences, longest, 0);
    float *qkv = numbers(tile.tokens * 3 * dim, scale, dtype);
    double *expected = doubles(tile.tokens * dim), *sums = doubles(tile.tokens * heads);
    double *spread = doubles(tile.tokens * dim);
    for (size_t q = 0; q < sequences; q++) {
        const size_t first = tile.starts[q], rows = tile.starts[q + 1] - first;
        for (size_t t = 0; t < rows; t++) {
            for (size_t h = 0; h < heads; h++) {
                sums[(first + t) * heads + h] =
                    attention_reference(expected + (first + t) * dim + h * head_dim,
                                        qkv + first * 3 * dim + h * head_dim, t, rows, dim, head_dim);
            }
        }
    }
    for (size_t i = 0; i < tile.tokens * dim; i++) {
        spread[i] = (double)scale; /* the softmax's weights, which add up to 1, may be rounded before they meet v */
    }
    struct tensor from = tensor_of(dtype, tile.tokens, 3 * dim, qkv), out = tensor_empty(dtype, tile.tokens, dim);
    struct tensor kept = tensor_empty(DTYPE_F32, tile.tokens, heads);
    tile_announce(&tile);
    ops->attention(stream, &out, &from, heads, keep ? &kept : NULL);
    /* the exponent's own error grows with the size of the scores */
    const double bound = 2e-6 * (1 + (double)scale * (double)scale * sqrt((double)head_dim));
    assert_close(&out, expected, spread, bound, "attention");
    if (keep) {
        assert_close(&kept, sums, NULL, bound, "attention, log-sum-exp");
    }
    drop();
}

static void test_attention(void **state)
{
    (void)state;
    static const size_t head_dims[] = {1, 3, 8, 16, 32, 64, 128};
    for (size_t i = 0; i < 28; i++) {
        attention_check(1 + random_below(4), head_dims[i % 7], 1 + random_below(4), 1 + random_below(70), 1, i % 4 < 2);
    }
    attention_check(2, 32, 2, 300, 1, true);
    attention_check(12, 32, 3, 20, 2, false);
    attention_check(1, 64, 1, 1, 1, true); /* one token in all */
    attention_check(2, 64, 2, 512, 1, true);
    attention_check(2, 32, 3, 40, 10, true); /* one key takes nearly all: exponents far below -87 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SUITE_TEST(test_facts), SUITE_TEST(test_alloc),     SUITE_TEST(test_copies),     SUITE_TEST(test_host_memory),
        SUITE_TEST(test_arena), SUITE_TEST(test_linear),    SUITE_TEST(test_layer_norm), SUITE_TEST(test_embed),
        SUITE_TEST(test_pool),  SUITE_TEST(test_normalise), SUITE_TEST(test_attention),
    };
    return suite_run(tests, sizeof tests / sizeof *tests);
}
