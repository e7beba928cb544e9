/* Every operation of the CPU backend against a plain scalar reference in double, for each instruction set that this CPU
 * takes, over many shapes; the search over keys against brute force. Looks into gpu/cpu/internal.h to choose the
 * instruction set. Random numbers come from a fixed seed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "gpu/cpu/internal.h"

static struct backend *backend; /* of the current test */
static const struct backend_operations *ops;
static uint64_t seed = 1;

static uint32_t random_below(uint32_t n)
{
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)((seed >> 33) % n);
}

static float random_float(float scale)
{
    return ((float)random_below(1 << 24) / (float)(1 << 23) - 1.0F) * scale;
}

static float *random_floats(size_t count, float scale)
{
    float *x = mem_alloc(count * sizeof *x);
    for (size_t i = 0; i < count; i++) {
        x[i] = random_float(scale);
    }
    return x;
}

/* A tensor with room as the header asks for it, filled. */
static float *tensor(size_t tokens, size_t dim, float scale)
{
    size_t rows = (tokens + BACKEND_ROWS - 1) / BACKEND_ROWS * BACKEND_ROWS;
    float *x = ops->alloc(backend, rows * dim);
    for (size_t i = 0; i < tokens * dim; i++) {
        x[i] = random_float(scale);
    }
    return x;
}

static void assert_close(const float *got, const double *expected, size_t count, double bound, const char *what)
{
    for (size_t i = 0; i < count; i++) {
        if (!(fabs((double)got[i] - expected[i]) <= bound * (1 + fabs(expected[i])))) {
            fail_msg("%s: number %zu of %zu is %.9g, not %.9g", what, i, count, (double)got[i], expected[i]);
        }
    }
}

/* ---- on one stream: every call goes through here ------------------------------------------------------------------
 */

struct call {
    void (*make)(struct stream *s, const void *arguments);
    const void *arguments;
};

static int call_work(struct stream *s, size_t i, void *context, struct error *e)
{
    const struct call *call = context;
    if (i == 0) {
        call->make(s, call->arguments);
    }
    return ops->wait(s, e);
}

static void call(void (*make)(struct stream *s, const void *arguments), const void *arguments)
{
    struct call c = {make, arguments};
    struct error e = {0};
    if (ops->parallel(backend, call_work, &c, &e) != 0) {
        fail_msg("%s", e.text);
    }
}

/* ---- linear -------------------------------------------------------------------------------------------------------
 */

struct linear {
    float *out;
    const float *in;
    const struct weight *weight;
    enum epilogue epilogue;
    const float *residual;
    size_t tokens;
};

static void linear_call(struct stream *s, const void *arguments)
{
    const struct linear *l = arguments;
    ops->linear(s, l->out, l->in, l->weight, l->epilogue, l->residual, l->tokens);
}

static double *linear_reference(const struct linear *l, const float *weight, const float *bias, size_t in, size_t out)
{
    double *y = mem_alloc(l->tokens * out * sizeof *y);
    for (size_t t = 0; t < l->tokens; t++) {
        for (size_t o = 0; o < out; o++) {
            double sum = (double)bias[o];
            for (size_t i = 0; i < in; i++) {
                sum += (double)l->in[t * in + i] * (double)weight[o * in + i];
            }
            if (l->epilogue == EPILOGUE_GELU) {
                sum = sum / 2 * (1 + erf(sum / sqrt(2)));
            } else if (l->epilogue == EPILOGUE_ADD) {
                sum += (double)l->residual[t * out + o];
            }
            y[t * out + o] = sum;
        }
    }
    return y;
}

static void linear_check(size_t in, size_t out, size_t tokens, enum epilogue epilogue, bool in_place)
{
    struct error e = {0};
    float *first = random_floats(in * out, 1), *weight = random_floats(in * out, 1), *bias = random_floats(out, 2);
    float *x = tensor(tokens, in, 1), *y = tensor(tokens, out, 1), *other = tensor(tokens, out, 3);
    struct weight *packed = NULL;
    assert_int_equal(ops->weight_pack(backend, first, bias, in, out, &packed, &e), 0);
    assert_int_equal(ops->weight_repack(backend, packed, weight, bias, &e), 0); /* the first values must be gone */
    struct linear l = {y, x, packed, epilogue, epilogue != EPILOGUE_ADD ? NULL : in_place ? y : other, tokens};
    double *expected = linear_reference(&l, weight, bias, in, out);
    call(linear_call, &l);
    assert_close(y, expected, tokens * out, 1e-6 * (4 + sqrt((double)in)), "linear");
    free(expected);
    ops->weight_release(backend, packed);
    ops->release(backend, x);
    ops->release(backend, y);
    ops->release(backend, other);
    free(first);
    free(weight);
    free(bias);
}

static void test_linear(void **state)
{
    (void)state;
    static const size_t widths[] = {1, 5, 16, 32, 33, 48, 96, 100, 384};
    static const size_t tokens[] = {1, 2, 7, 8, 9, 31, 127, 128, 129, 300};
    for (size_t i = 0; i < 40; i++) {
        linear_check(widths[random_below(9)], widths[random_below(9)], tokens[i % 10], (enum epilogue)(i % 3), i % 2);
    }
    linear_check(384, 1152, 130, EPILOGUE_NONE, false);
    linear_check(384, 1536, 77, EPILOGUE_GELU, false);
    linear_check(1536, 384, 161, EPILOGUE_ADD, true);
}

/* ---- rows ---------------------------------------------------------------------------------------------------------
 */

static const size_t dims[] = {1, 3, 4, 15, 16, 17, 32, 40, 384};
#define DIMS (sizeof dims / sizeof *dims)

struct rows {
    float *out;
    const float *x, *gamma, *beta, *word, *position, *type;
    const int32_t *ids;
    const uint32_t *starts;
    size_t sequences, tokens, dim, heads;
    float epsilon;
    enum pooling pooling;
};

static void layer_norm_call(struct stream *s, const void *arguments)
{
    const struct rows *r = arguments;
    ops->layer_norm(s, r->out, r->x, r->gamma, r->beta, r->epsilon, r->tokens, r->dim);
}

static void layer_norm_reference(double *out, const double *x, const struct rows *r)
{
    for (size_t t = 0; t < r->tokens; t++, x += r->dim, out += r->dim) {
        double mean = 0, variance = 0;
        for (size_t c = 0; c < r->dim; c++) {
            mean += x[c] / (double)r->dim;
        }
        for (size_t c = 0; c < r->dim; c++) {
            variance += (x[c] - mean) * (x[c] - mean) / (double)r->dim;
        }
        for (size_t c = 0; c < r->dim; c++) {
            out[c] = (x[c] - mean) / sqrt(variance + (double)r->epsilon) * (double)r->gamma[c] + (double)r->beta[c];
        }
    }
}

static void test_layer_norm(void **state)
{
    (void)state;
    for (size_t i = 0; i < 3 * DIMS; i++) {
        size_t dim = dims[i % DIMS], tokens = 1 + random_below(20);
        float *x = tensor(tokens, dim, 3), *out = i % 2 ? x : tensor(tokens, dim, 1);
        float *gamma = random_floats(dim, 2), *beta = random_floats(dim, 2);
        double *wide = mem_alloc(tokens * dim * sizeof *wide), *expected = mem_alloc(tokens * dim * sizeof *expected);
        for (size_t j = 0; j < tokens * dim; j++) {
            x[j] += 5; /* a mean that is far from 0 */
            wide[j] = (double)x[j];
        }
        struct rows r = {
            .out = out, .x = x, .gamma = gamma, .beta = beta, .epsilon = 1e-5F, .tokens = tokens, .dim = dim};
        layer_norm_reference(expected, wide, &r);
        call(layer_norm_call, &r);
        assert_close(out, expected, tokens * dim, 1e-4, "layer_norm");
        ops->release(backend, x);
        if (out != x) {
            ops->release(backend, out);
        }
        free(gamma);
        free(beta);
        free(wide);
        free(expected);
    }
}

/* Lengths of random sequences, one of 1 among them: starts [sequences + 1], owned by the caller. */
static uint32_t *random_starts(size_t sequences, uint32_t longest)
{
    uint32_t *starts = mem_alloc((sequences + 1) * sizeof *starts);
    starts[0] = 0;
    for (size_t i = 0; i < sequences; i++) {
        starts[i + 1] = starts[i] + (i == sequences / 2 ? 1 : 1 + random_below(longest));
    }
    return starts;
}

static void embed_call(struct stream *s, const void *arguments)
{
    const struct rows *r = arguments;
    ops->embed(s, r->out, r->ids, r->starts, r->sequences, r->word, r->position, r->type, r->gamma, r->beta, r->epsilon,
               r->dim);
}

static void test_embed(void **state)
{
    (void)state;
    for (size_t i = 0; i < DIMS; i++) {
        const size_t dim = dims[i], sequences = 1 + random_below(5), words = 50;
        uint32_t *starts = random_starts(sequences, 30);
        const size_t tokens = starts[sequences];
        float *word = tensor(words, dim, 1), *position = tensor(30, dim, 1), *type = tensor(2, dim, 1);
        float *gamma = random_floats(dim, 2), *beta = random_floats(dim, 2), *out = tensor(tokens, dim, 1);
        int32_t *ids = mem_alloc(tokens * sizeof *ids);
        double *sum = mem_alloc(tokens * dim * sizeof *sum), *expected = mem_alloc(tokens * dim * sizeof *expected);
        for (size_t q = 0; q < sequences; q++) {
            for (size_t t = starts[q]; t < starts[q + 1]; t++) {
                ids[t] = (int32_t)random_below((uint32_t)words);
                for (size_t c = 0; c < dim; c++) {
                    sum[t * dim + c] = (double)word[(size_t)ids[t] * dim + c] +
                                       (double)position[(t - starts[q]) * dim + c] + (double)type[c];
                }
            }
        }
        struct rows r = {.out = out,
                         .gamma = gamma,
                         .beta = beta,
                         .word = word,
                         .position = position,
                         .type = type,
                         .ids = ids,
                         .starts = starts,
                         .sequences = sequences,
                         .tokens = tokens,
                         .dim = dim,
                         .epsilon = 1e-5F};
        layer_norm_reference(expected, sum, &r);
        call(embed_call, &r);
        assert_close(out, expected, tokens * dim, 1e-4, "embed");
        float *tensors[] = {word, position, type, out};
        for (size_t j = 0; j < 4; j++) {
            ops->release(backend, tensors[j]);
        }
        free(starts);
        free(gamma);
        free(beta);
        free(ids);
        free(sum);
        free(expected);
    }
}

static void pool_call(struct stream *s, const void *arguments)
{
    const struct rows *r = arguments;
    ops->pool(s, r->out, r->x, r->starts, r->sequences, r->dim, r->pooling);
}

static void test_pool(void **state)
{
    (void)state;
    for (size_t i = 0; i < 2 * DIMS; i++) {
        const size_t dim = dims[i % DIMS], sequences = 1 + random_below(5);
        uint32_t *starts = random_starts(sequences, 30);
        float *x = tensor(starts[sequences], dim, 1), *out = ops->alloc(backend, sequences * dim);
        double *expected = mem_zero(sequences * dim, sizeof *expected);
        struct rows r = {.out = out,
                         .x = x,
                         .starts = starts,
                         .sequences = sequences,
                         .dim = dim,
                         .pooling = i < DIMS ? POOLING_MEAN : POOLING_CLS};
        if (i % 3 == 0) { /* a sequence of zeroes has no direction: it stays */
            memset(x, 0, (starts[1] - starts[0]) * dim * sizeof *x);
        }
        for (size_t q = 0; q < sequences; q++) {
            size_t end = r.pooling == POOLING_CLS ? starts[q] + 1 : starts[q + 1];
            double *row = expected + q * dim, squares = 0;
            for (size_t c = 0; c < dim; c++) {
                for (size_t t = starts[q]; t < end; t++) {
                    row[c] += (double)x[t * dim + c] / (double)(end - starts[q]);
                }
                squares += row[c] * row[c];
            }
            for (size_t c = 0; c < dim && squares > 0; c++) {
                row[c] /= sqrt(squares);
            }
        }
        call(pool_call, &r);
        assert_close(out, expected, sequences * dim, 1e-5, "pool");
        ops->release(backend, x);
        ops->release(backend, out);
        free(starts);
        free(expected);
    }
}

/* ---- attention ----------------------------------------------------------------------------------------------------
 */

static void attention_call(struct stream *s, const void *arguments)
{
    const struct rows *r = arguments;
    ops->attention(s, r->out, r->x, r->starts, r->sequences, r->heads, r->dim);
}

/* One query of one head. */
static void attention_reference(double *out, const float *qkv, size_t query, size_t rows, size_t dim, size_t head_dim)
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
}

static void attention_check(size_t heads, size_t head_dim, size_t sequences, uint32_t longest, float scale)
{
    const size_t dim = heads * head_dim;
    uint32_t *starts = random_starts(sequences, longest);
    const size_t tokens = starts[sequences];
    float *qkv = tensor(tokens, 3 * dim, scale), *out = tensor(tokens, dim, 1);
    double *expected = mem_alloc(tokens * dim * sizeof *expected);
    for (size_t q = 0; q < sequences; q++) {
        size_t rows = starts[q + 1] - starts[q];
        for (size_t t = 0; t < rows; t++) {
            for (size_t h = 0; h < heads; h++) {
                attention_reference(expected + (starts[q] + t) * dim + h * head_dim,
                                    qkv + starts[q] * 3 * dim + h * head_dim, t, rows, dim, head_dim);
            }
        }
    }
    struct rows r = {.out = out, .x = qkv, .starts = starts, .sequences = sequences, .heads = heads, .dim = dim};
    call(attention_call, &r);
    /* the exponent's own error grows with the size of the scores */
    assert_close(out, expected, tokens * dim, 2e-6 * (1 + (double)scale * (double)scale * sqrt((double)head_dim)),
                 "attention");
    ops->release(backend, qkv);
    ops->release(backend, out);
    free(starts);
    free(expected);
}

static void test_attention(void **state)
{
    (void)state;
    static const size_t head_dims[] = {1, 3, 8, 16, 32, 64};
    for (size_t i = 0; i < 24; i++) {
        attention_check(1 + random_below(4), head_dims[i % 6], 1 + random_below(4), 1 + random_below(70), 1);
    }
    attention_check(2, 32, 2, 300, 1);
    attention_check(12, 32, 3, 20, 2);
    attention_check(2, 32, 3, 40, 10); /* one key takes nearly all: exponents far below -87 */
}

static void test_exponential(void **state)
{
    (void)state;
    const struct kernels *k = ((struct cpu *)backend)->kernels;
    const size_t count = 200003;
    float *x = mem_alloc(count * sizeof *x), *y = mem_alloc(count * sizeof *y);
    for (size_t i = 0; i < count; i++) {
        x[i] = y[i] = -90.0F * (float)i / (float)count;
    }
    k->exponential(y, count);
    for (size_t i = 0; i < count; i++) {
        double expected = x[i] > -87.0F ? exp((double)x[i]) : 0;
        if (!(fabs((double)y[i] - expected) <= 2e-7 * expected)) {
            fail_msg("exp(%.9g) is %.9g, not %.9g", (double)x[i], (double)y[i], expected);
        }
    }
    float ends[] = {0, -0.0F, -87.5F, -1e4F, -3e38F, -INFINITY};
    k->exponential(ends, 6);
    assert_true(ends[0] == 1 && ends[1] == 1 && ends[2] == 0 && ends[3] == 0 && ends[4] == 0 && ends[5] == 0);
    free(x);
    free(y);
}

static void test_widen(void **state)
{
    (void)state;
    const struct kernels *k = ((struct cpu *)backend)->kernels;
    uint16_t *halves = mem_alloc(65536 * sizeof *halves);
    float *wide = mem_alloc(65536 * sizeof *wide);
    for (uint32_t i = 0; i < 65536; i++) {
        halves[i] = (uint16_t)i;
    }
    k->widen(wide, halves, 65536 - 5); /* not a whole number of vectors */
    for (uint32_t i = 0; i < 65536 - 5; i++) {
        uint32_t bits;
        memcpy(&bits, &wide[i], sizeof bits);
        assert_int_equal(bits, i << 16);
    }
    free(halves);
    free(wide);
}

/* ---- keys ---------------------------------------------------------------------------------------------------------
 */

struct key_set {
    size_t dim, blocks;
    enum key_dtype dtype;
    struct keys_block *block;
    float **values; /* of each block, what its vectors stand for */
};

static uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16); /* the test's numbers are exact in bf16, or cut to it */
}

/* Not inlined: gcc 12.2 at -O1 (the sanitizers' build) drops the mask where it turns the caller's choice into a select.
 */
__attribute__((noinline)) static float bf16_cut(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits &= 0xFFFF0000U;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Small whole numbers have products and sums that are exact in f32, so equal scores are equal whoever adds them up. */
static float key_number(bool whole, enum key_dtype dtype)
{
    float x = whole ? (float)random_below(5) - 2 : random_float(1);
    return dtype == KEY_BF16 ? bf16_cut(x) : x;
}

static struct key_set *keys_make(size_t dim, size_t blocks, uint32_t rows_max, enum key_dtype dtype, bool whole)
{
    struct key_set *set = mem_zero(1, sizeof *set);
    *set = (struct key_set){dim, blocks, dtype, mem_zero(blocks, sizeof *set->block),
                            mem_zero(blocks, sizeof *set->values)};
    uint64_t slot = 7;
    for (size_t i = 0; i < blocks; i++) {
        struct keys_block *b = &set->block[i];
        b->rows = 1 + random_below(rows_max);
        b->kind = random_below(3) ? KEY_INSTANCE : KEY_LABEL;
        b->first_slot = slot;
        slot += b->rows + random_below(3);
        uint8_t *candidate = mem_alloc(b->rows);
        uint64_t *ties = mem_alloc(b->rows * sizeof *ties);
        float *values = mem_aligned(64, b->rows * dim * sizeof *values);
        uint16_t *halves = mem_aligned(64, b->rows * dim * sizeof *halves);
        for (size_t r = 0; r < b->rows; r++) {
            candidate[r] = random_below(8) != 0;
            ties[r] = (uint64_t)random_below(1 << 30) << 30 | random_below(1 << 30);
        }
        for (size_t j = 0; j < b->rows * dim; j++) {
            values[j] = key_number(whole, dtype);
            halves[j] = bf16_of(values[j]);
        }
        if (random_below(4) == 0) { /* a row that is not a number is no hit */
            values[random_below(b->rows) * dim] = NAN;
            for (size_t j = 0; j < b->rows * dim; j++) {
                halves[j] = bf16_of(values[j]);
            }
        }
        b->candidate = candidate;
        b->ties = ties;
        set->values[i] = values;
        b->vectors = dtype == KEY_BF16 ? (const void *)halves : values;
        if (dtype == KEY_F32) {
            free(halves);
        }
    }
    return set;
}

static void keys_free(struct key_set *set)
{
    for (size_t i = 0; i < set->blocks; i++) {
        free((void *)(uintptr_t)set->block[i].candidate);
        free((void *)(uintptr_t)set->block[i].ties);
        if (set->dtype == KEY_BF16) {
            free((void *)(uintptr_t)set->block[i].vectors);
        }
        free(set->values[i]);
    }
    free(set->block);
    free(set->values);
    free(set);
}

static int hits_compare(const void *a, const void *b)
{
    const struct keys_hit *x = a, *y = b;
    if (x->score != y->score) {
        return x->score > y->score ? -1 : 1;
    }
    return x->tie != y->tie ? (x->tie < y->tie ? -1 : 1) : 0;
}

/* All candidates of the kinds, best first; the caller frees. */
static struct keys_hit *brute_force(const struct key_set *set, const float *query, enum key_kind kinds, size_t *count)
{
    struct keys_hit *all = NULL;
    *count = 0;
    for (size_t i = 0; i < set->blocks; i++) {
        const struct keys_block *b = &set->block[i];
        for (size_t r = 0; r < b->rows && (b->kind & kinds); r++) {
            double score = 0;
            for (size_t c = 0; c < set->dim; c++) {
                score += (double)query[c] * (double)set->values[i][r * set->dim + c];
            }
            if (b->candidate[r] && !isnan(score)) {
                all = mem_resize(all, (*count + 1) * sizeof *all);
                all[(*count)++] = (struct keys_hit){(float)score, b->kind, b->first_slot + r, b->ties[r]};
            }
        }
    }
    if (*count) {
        qsort(all, *count, sizeof *all, hits_compare);
    }
    return all;
}

/* Exact (whole numbers): the hits are brute force's. Else: the scores are close to brute force's, place by place, and
 * each hit's own score is its key's. */
static void hits_check(const struct key_set *set, const float *query, enum key_kind kinds, size_t b,
                       const struct keys_hit *hits, uint32_t count, bool exact)
{
    size_t all_count;
    struct keys_hit *all = brute_force(set, query, kinds, &all_count);
    assert_int_equal(count, all_count < b ? all_count : b);
    for (size_t i = 0; i < count; i++) {
        if (exact) {
            assert_true(hits[i].score == all[i].score);
            assert_int_equal(hits[i].slot, all[i].slot);
            assert_int_equal(hits[i].tie, all[i].tie);
            assert_int_equal(hits[i].kind, all[i].kind);
            continue;
        }
        const double bound = 1e-6 * (double)set->dim;
        assert_true(fabs((double)hits[i].score - (double)all[i].score) <= bound);
        assert_true(i == 0 || hits[i - 1].score >= hits[i].score);
        size_t j = 0;
        while (j < all_count && all[j].slot != hits[i].slot) {
            j++;
        }
        assert_true(j < all_count && fabs((double)hits[i].score - (double)all[j].score) <= bound);
    }
    free(all);
}

static void scan_check(size_t dim, size_t blocks, uint32_t rows_max, enum key_dtype dtype, bool whole, size_t n,
                       size_t b, enum key_kind kinds)
{
    struct error e = {0};
    struct key_set *set = keys_make(dim, blocks, rows_max, dtype, whole);
    float *queries = mem_alloc(n * dim * sizeof *queries);
    for (size_t i = 0; i < n * dim; i++) {
        queries[i] = key_number(whole, KEY_F32);
    }
    struct keys_hit *hits = mem_alloc(n * b * sizeof *hits);
    uint32_t *counts = mem_alloc(n * sizeof *counts);
    struct keys *keys = ops->keys_open(backend, dim, dtype);
    const struct keys_view view = {set->block, set->blocks, dim, dtype};
    assert_int_equal(ops->keys_sync(keys, &view, &e), 0);
    assert_int_equal(ops->keys_scan(keys, queries, n, b, kinds, hits, counts, &e), 0);
    for (size_t q = 0; q < n; q++) {
        hits_check(set, queries + q * dim, kinds, b, hits + q * b, counts[q], whole);
    }
    ops->keys_close(keys);
    keys_free(set);
    free(queries);
    free(hits);
    free(counts);
}

static void test_scan_exact(void **state)
{
    (void)state;
    static const size_t scan_dims[] = {1, 3, 17, 32, 100};
    for (size_t i = 0; i < 40; i++) { /* few dimensions and few numbers: ties at every place, the b-th too */
        enum key_kind kinds = (enum key_kind)(1 + i % 3);
        scan_check(scan_dims[i % 5], 1 + random_below(9), 1 + random_below(200), i % 2 ? KEY_BF16 : KEY_F32, true,
                   1 + random_below(70), 1 + random_below(40), kinds);
    }
    scan_check(8, 3, 20, KEY_F32, true, 5, 1000, KEY_BOTH); /* b beyond the keys */
    scan_check(8, 5, 90, KEY_BF16, true, 600, 3, KEY_BOTH); /* more queries than one walk takes */
}

static void test_scan_close(void **state)
{
    (void)state;
    scan_check(384, 5, 256, KEY_F32, false, 33, 50, KEY_BOTH);
    scan_check(384, 5, 256, KEY_BF16, false, 7, 200, KEY_INSTANCE);
    scan_check(96, 40, 1, KEY_BF16, false, 16, 10, KEY_BOTH); /* blocks of one row, as the memory's tail has them */
}

static void test_scan_empty(void **state)
{
    (void)state;
    struct error e = {0};
    struct keys *keys = ops->keys_open(backend, 4, KEY_F32);
    struct keys_view view = {NULL, 0, 4, KEY_F32};
    float queries[8] = {1, 2, 3, 4, NAN, 1, 1, 1}, vectors[4] __attribute__((aligned(64))) = {1, 1, 1, 1};
    struct keys_hit hits[4];
    uint32_t counts[2] = {9, 9};
    assert_int_equal(ops->keys_sync(keys, &view, &e), 0);
    assert_int_equal(ops->keys_scan(keys, queries, 2, 2, KEY_BOTH, hits, counts, &e), 0);
    assert_true(counts[0] == 0 && counts[1] == 0);
    uint8_t candidate = 1;
    uint64_t tie = 5;
    struct keys_block block = {vectors, &candidate, &tie, 3, 1, 1, KEY_LABEL};
    view = (struct keys_view){&block, 1, 4, KEY_F32};
    assert_int_equal(ops->keys_sync(keys, &view, &e), 0);
    assert_int_equal(ops->keys_scan(keys, queries, 2, 2, KEY_BOTH, hits, counts, &e), 0);
    assert_true(counts[0] == 1 && counts[1] == 0); /* the second query is not a number */
    assert_true(hits[0].score == 10 && hits[0].slot == 3 && hits[0].kind == KEY_LABEL && hits[0].tie == 5);
    assert_int_equal(ops->keys_scan(keys, queries, 1, 2, KEY_INSTANCE, hits, counts, &e), 0);
    assert_int_equal(counts[0], 0);
    view.dtype = KEY_BF16;
    assert_int_equal(ops->keys_sync(keys, &view, &e), -1);
    ops->keys_close(keys);
}

/* ---- streams ------------------------------------------------------------------------------------------------------
 */

struct visits {
    uint32_t of[64];
    size_t fails_on;
};

static int visit_work(struct stream *s, size_t i, void *context, struct error *e)
{
    (void)s;
    struct visits *v = context;
    v->of[i]++;
    return i == v->fails_on ? error_set(e, ERROR_RETRY, E_LIMIT, "stream %zu says no", i) : 0;
}

static void test_parallel(void **state)
{
    (void)state;
    struct error e = {0};
    const size_t streams = ops->streams(backend);
    struct visits v = {.fails_on = SIZE_MAX};
    assert_int_equal(ops->parallel(backend, visit_work, &v, &e), 0);
    v.fails_on = streams - 1;
    assert_int_equal(ops->parallel(backend, visit_work, &v, &e), -1);
    assert_int_equal(e.kind, ERROR_RETRY);
    assert_non_null(strstr(e.text, "says no"));
    v.fails_on = SIZE_MAX;
    assert_int_equal(ops->parallel(backend, visit_work, &v, &e), 0); /* an error is told once */
    for (size_t i = 0; i < streams; i++) {
        assert_int_equal(v.of[i], 3);
    }
    assert_true(ops->tile_tokens(backend) > 0 && ops->batch_tokens(backend) >= ops->tile_tokens(backend));
}

/* ---- main ---------------------------------------------------------------------------------------------------------
 */

static int run_all(const struct kernels *kernels, size_t threads)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_linear),     cmocka_unit_test(test_layer_norm), cmocka_unit_test(test_embed),
        cmocka_unit_test(test_pool),       cmocka_unit_test(test_attention),  cmocka_unit_test(test_exponential),
        cmocka_unit_test(test_widen),      cmocka_unit_test(test_scan_exact), cmocka_unit_test(test_scan_close),
        cmocka_unit_test(test_scan_empty), cmocka_unit_test(test_parallel),
    };
    char group[64];
    struct error e = {0};
    if (backend_cpu_open(&backend, threads, &e) != 0) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    ops = backend->ops;
    ((struct cpu *)backend)->kernels = kernels;
    snprintf(group, sizeof group, "backend, %s, %zu threads", kernels->name, ops->streams(backend));
    int failed = cmocka_run_group_tests_name(group, tests, NULL, NULL);
    backend_close(backend);
    return failed;
}

int main(void)
{
    int failed = run_all(&kernels_base, 2);
#if defined(__x86_64__)
    failed += __builtin_cpu_supports("x86-64-v3") ? run_all(&kernels_avx2, 1) : 0;
    failed += __builtin_cpu_supports("x86-64-v4") ? run_all(&kernels_avx512, 3) : 0;
#endif
    return failed != 0;
}
