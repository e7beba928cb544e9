/* Streams on every backend: what runs in order, what runs side by side, and what becomes of an error. */
#include <pthread.h>
#include <stdatomic.h>

#include "tests/unit/backend_suite.h"

/* ---- errors ---- */

/* What fails everywhere: a scan of keys whose dimensions are not the view's. The first of two is remembered. */
static void fail_twice(struct keys *k, const struct tensor *queries)
{
    static const struct keys_view views[2] = {{NULL, 0, 5, DTYPE_F32, 1}, {NULL, 0, 7, DTYPE_BF16, 2}};
    static struct keys_hit hits[4];
    static uint32_t counts[4];
    for (size_t i = 0; i < 2; i++) {
        ops->keys_scan(stream, k, &views[i], queries, 1, KEY_BOTH, hits, counts);
    }
}

static void test_errors(void **state)
{
    (void)state;
    struct error e = {0}, alone = {0};
    float one = 1, two = 2, got[3] = {-1, -1, -1};
    struct tensor x = tensor_of(DTYPE_F32, 1, 1, &one), queries = tensor_of(DTYPE_F32, 4, 4, NULL);
    struct keys *keys;
    must(ops->keys_open(backend, 4, DTYPE_F32, &keys, &e), &e);
    held.keys[held.keys_count++] = keys;
    ops->keys_scan(stream, keys, &(struct keys_view){NULL, 0, 5, DTYPE_F32, 1}, &queries, 1, KEY_BOTH,
                   &(struct keys_hit){0}, &(uint32_t){0});
    assert_int_equal(ops->wait(stream, &alone), -1);
    assert_int_equal(alone.kind, ERROR_FATAL);
    assert_true(*alone.text);

    ops->download(stream, &got[0], x.data, sizeof one);
    fail_twice(keys, &queries);
    ops->upload(stream, x.data, &two, sizeof two, NULL);
    ops->download(stream, &got[1], x.data, sizeof one);
    assert_int_equal(ops->wait(stream, &e), -1);
    assert_true(e.kind == alone.kind && e.code == alone.code); /* the first one's */
    assert_string_equal(e.text, alone.text);
    assert_true(got[0] == 1 && got[1] == -1); /* what came before was done, what came after had no effect */

    ops->download(stream, &got[2], x.data, sizeof one);
    done(); /* an error is reported once */
    assert_true(got[2] == 1);
}

/* Without a place for the reason, too; and one stream's error is not another's. */
static void test_errors_apart(void **state)
{
    (void)state;
    struct error e = {0};
    struct stream *other;
    struct keys *keys;
    struct tensor queries = tensor_of(DTYPE_F32, 4, 4, NULL);
    done();
    must(ops->stream_open(backend, &other, &e), &e);
    must(ops->keys_open(backend, 4, DTYPE_F32, &keys, &e), &e);
    held.keys[held.keys_count++] = keys;
    fail_twice(keys, &queries);
    assert_int_equal(ops->wait(other, &e), 0);
    assert_int_equal(ops->wait(stream, NULL), -1);
    assert_int_equal(ops->wait(stream, NULL), 0);
    ops->stream_close(other);
}

/* An operation after an error has no effect either. */
static void test_no_effect(void **state)
{
    (void)state;
    const enum dtype dtype = backend->facts.compute;
    struct error e = {0};
    struct keys *keys;
    struct weight *weight;
    const uint32_t starts[2] = {0, 4};
    const int32_t ids[4] = {0};
    const struct tile tile = {ids, starts, 4, 1};
    float ones[16];
    for (size_t i = 0; i < 16; i++) {
        ones[i] = 1;
    }
    struct tensor x = tensor_of(dtype, 4, 4, ones), y = tensor_of(dtype, 4, 4, ones), qkv = tensor_empty(dtype, 4, 12);
    struct tensor norm = tensor_of(DTYPE_F32, 2, 4, ones), master = tensor_of(DTYPE_F32, 4, 4, ones);
    struct tensor bias = tensor_of(DTYPE_F32, 1, 4, ones), rows = tensor_of(DTYPE_F32, 4, 4, ones);
    struct tensor kept[2] = {tensor_of(DTYPE_F32, 4, 2, ones), tensor_of(dtype, 4, 4, ones)};
    struct tensor pooled = tensor_of(DTYPE_F32, 1, 4, ones), norms = tensor_of(DTYPE_F32, 4, 1, ones);
    const struct embedding embedding = {master, master, master, norm, 1e-5F};
    must(ops->keys_open(backend, 4, DTYPE_F32, &keys, &e), &e);
    held.keys[held.keys_count++] = keys;
    must(ops->weight_open(backend, 4, 4, dtype, &weight, &e), &e);
    held.weights[held.weight_count++] = weight;
    ops->weight_pack(stream, weight, &master, &bias);
    must(ops->tile(stream, &tile, &e), &e);
    done();
    fail_twice(keys, &rows);
    ops->embed(stream, &x, &embedding, &kept[0]);
    ops->linear(stream, &y, &x, weight, EPILOGUE_GELU, &kept[1]);
    ops->layer_norm(stream, &x, &x, &x, &norm, 1e-5F, &kept[0]);
    ops->attention(stream, &x, &qkv, 2, &kept[0]);
    ops->pool(stream, &pooled, &x, POOLING_MEAN);
    ops->normalise(stream, &rows, &rows, &norms);
    ops->weight_pack(stream, weight, &rows, &bias);
    assert_int_equal(ops->wait(stream, NULL), -1);
    const struct tensor *all[] = {&x, &y, &rows, &kept[0], &kept[1], &pooled, &norms};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        const float *got = numbers_of(all[i]);
        for (size_t j = 0; j < all[i]->rows * all[i]->columns; j++) {
            assert_true(got[j] == 1);
        }
    }
}

/* ---- side by side ---- */

enum { SIDE_BY_SIDE = 4, ROUNDS = 12, DIM = 48, HEADS = 3, QUERIES = 5, KEYS = 40, BEST = 7 };

/* What all streams share, and what each of them must find: made before by one stream alone. */
static struct shared {
    struct embedding embedding;
    struct tensor norm;
    struct weight *qkv, *out;
    struct keys *keys;
    struct keys_view views[2]; /* of the same memory, one after the other */
    struct tile tiles[SIDE_BY_SIDE];
    float vectors[SIDE_BY_SIDE][QUERIES * DIM];
    struct keys_hit hits[SIDE_BY_SIDE][2][QUERIES * BEST];
    atomic_int wrong;
} shared;

/* Encodes a tile and scans with what comes out, all of it queued before the first wait. */
static int round_run(struct stream *s, size_t i, size_t view, float *vectors, struct keys_hit *hits, uint32_t *counts,
                     struct error *e)
{
    const enum dtype dtype = backend->facts.compute;
    const struct tile *tile = &shared.tiles[i];
    const size_t tokens = tile->tokens, n = tile->sequences,
                 step = (tensor_bytes(backend, dtype, tokens, DIM) + 63) / 64 * 64;
    const size_t pooled_bytes = (tensor_bytes(backend, DTYPE_F32, n, DIM) + 63) / 64 * 64;
    void *memory;
    if (ops->arena(s, 5 * step + pooled_bytes, &memory, e) || ops->tile(s, tile, e)) {
        return -1;
    }
    char *at = memory;
    const struct tensor x = {at, dtype, tokens, DIM}, qkv = {at + step, dtype, tokens, 3 * DIM};
    const struct tensor context = {at + 4 * step, dtype, tokens, DIM}, pooled = {at + 5 * step, DTYPE_F32, n, DIM};
    ops->embed(s, &x, &shared.embedding, NULL);
    ops->linear(s, &qkv, &x, shared.qkv, EPILOGUE_NONE, NULL);
    ops->attention(s, &context, &qkv, HEADS, NULL);
    ops->layer_norm(s, &x, &context, &x, &shared.norm, 1e-5F, NULL);
    ops->linear(s, &context, &x, shared.out, EPILOGUE_GELU, NULL);
    ops->pool(s, &pooled, &context, POOLING_MEAN);
    ops->normalise(s, &pooled, &pooled, NULL);
    ops->keys_scan(s, shared.keys, &shared.views[view], &pooled, BEST, KEY_BOTH, hits, counts);
    ops->download(s, vectors, pooled.data, n * DIM * sizeof *vectors);
    return ops->wait(s, e);
}

/* The same operations on the same shapes: what differs is at most who adds up first. */
static bool round_same(size_t i, size_t view, const float *vectors, const struct keys_hit *hits, const uint32_t *counts)
{
    const double bound = backend->facts.compute == DTYPE_BF16 ? 0.02 : 1e-5;
    for (size_t j = 0; j < shared.tiles[i].sequences * DIM; j++) {
        if (!(fabs((double)vectors[j] - (double)shared.vectors[i][j]) <= bound)) {
            return false;
        }
    }
    for (size_t q = 0; q < shared.tiles[i].sequences; q++) {
        for (size_t j = 0; j < BEST; j++) {
            const size_t k = q * BEST + j;
            if (counts[q] != BEST ||
                !(fabs((double)hits[k].score - (double)shared.hits[i][view][k].score) <= DIM * bound)) {
                return false;
            }
        }
    }
    return true;
}

static void *side_thread(void *context)
{
    const size_t i = *(const size_t *)context;
    struct error e = {0};
    struct stream *s;
    if (ops->stream_open(backend, &s, &e) != 0) {
        atomic_fetch_add(&shared.wrong, 1);
        return NULL;
    }
    for (size_t round = 0; round < ROUNDS; round++) {
        float vectors[QUERIES * DIM];
        struct keys_hit hits[QUERIES * BEST];
        uint32_t counts[QUERIES];
        const size_t view = (round + i) % 2, tile = (i + round) % SIDE_BY_SIDE;
        if (round_run(s, tile, view, vectors, hits, counts, &e) != 0 ||
            !round_same(tile, view, vectors, hits, counts)) {
            atomic_fetch_add(&shared.wrong, 1);
        }
    }
    ops->stream_close(s);
    return NULL;
}

static struct tensor table(size_t rows, size_t columns)
{
    return tensor_of(DTYPE_F32, rows, columns, numbers(rows * columns, 1, DTYPE_F32));
}

static struct weight *weight_packed(size_t in, size_t width)
{
    struct error e = {0};
    struct weight *w;
    struct tensor master = table(width, in), bias = table(1, width);
    must(ops->weight_open(backend, in, width, backend->facts.compute, &w, &e), &e);
    ops->weight_pack(stream, w, &master, &bias);
    return held.weights[held.weight_count++] = w;
}

static void shared_make(void)
{
    static struct keys_block blocks[2][2];
    static uint8_t candidates[KEYS];
    static uint64_t ties[KEYS];
    struct error e = {0};
    memset(&shared, 0, sizeof shared);
    memset(candidates, 1, sizeof candidates);
    shared.embedding = (struct embedding){table(50, DIM), table(30, DIM), table(2, DIM), table(2, DIM), 1e-5F};
    shared.norm = table(2, DIM);
    shared.qkv = weight_packed(DIM, 3 * DIM);
    shared.out = weight_packed(DIM, DIM);
    for (size_t i = 0; i < 2; i++) {
        blocks[i][0] = blocks[0][0];
        for (size_t b = i; b < 2; b++) { /* the second view shares the first block */
            float *vectors = hold(mem_aligned(64, KEYS * DIM * sizeof *vectors));
            memcpy(vectors, hold(numbers(KEYS * DIM, 1, DTYPE_F32)), KEYS * DIM * sizeof *vectors);
            held.host_count--;
            blocks[i][b] = (struct keys_block){vectors, candidates, ties, b * KEYS, i + 1, KEYS, KEY_LABEL};
        }
        shared.views[i] = (struct keys_view){blocks[i], 2, DIM, DTYPE_F32, i + 1};
    }
    must(ops->keys_open(backend, DIM, DTYPE_F32, &shared.keys, &e), &e);
    held.keys[held.keys_count++] = shared.keys;
    for (size_t i = 0; i < SIDE_BY_SIDE; i++) {
        shared.tiles[i] = tile_of(QUERIES, 30, 50);
        for (size_t view = 0; view < 2; view++) {
            uint32_t counts[QUERIES];
            must(round_run(stream, i, view, shared.vectors[i], shared.hits[i][view], counts, &e), &e);
        }
    }
}

static void test_side_by_side(void **state)
{
    (void)state;
    pthread_t threads[SIDE_BY_SIDE];
    size_t numbers_of_threads[SIDE_BY_SIDE];
    shared_make();
    for (size_t i = 0; i < SIDE_BY_SIDE; i++) {
        numbers_of_threads[i] = i;
        assert_int_equal(pthread_create(&threads[i], NULL, side_thread, &numbers_of_threads[i]), 0);
    }
    for (size_t i = 0; i < SIDE_BY_SIDE; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(atomic_load(&shared.wrong), 0);
}

/* ---- help ---- */

static bool is_set(const void *context)
{
    return atomic_load((const atomic_bool *)context);
}

static void *assist_thread(void *context)
{
    struct error e = {0};
    struct stream *s;
    if (ops->stream_open(backend, &s, &e) != 0) {
        atomic_fetch_add(&shared.wrong, 1);
        return NULL;
    }
    ops->assist(s, is_set, context);
    ops->stream_close(s);
    return NULL;
}

/* A stream that is helped finds the same as alone. */
static void test_assist(void **state)
{
    (void)state;
    pthread_t helpers[2];
    atomic_bool finished = false;
    struct error e = {0};
    if (!ops->assist) {
        return; /* optional */
    }
    shared_make();
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(pthread_create(&helpers[i], NULL, assist_thread, &finished), 0);
    }
    for (size_t round = 0; round < 10 * ROUNDS; round++) {
        float vectors[QUERIES * DIM];
        struct keys_hit hits[QUERIES * BEST];
        uint32_t counts[QUERIES];
        const size_t tile = round % SIDE_BY_SIDE, view = round % 2;
        if (round_run(stream, tile, view, vectors, hits, counts, &e) != 0 ||
            !round_same(tile, view, vectors, hits, counts)) {
            atomic_fetch_add(&shared.wrong, 1);
        }
    }
    atomic_store(&finished, true);
    for (size_t i = 0; i < 2; i++) {
        pthread_join(helpers[i], NULL);
    }
    assert_int_equal(atomic_load(&shared.wrong), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SUITE_TEST(test_errors),       SUITE_TEST(test_errors_apart), SUITE_TEST(test_no_effect),
        SUITE_TEST(test_side_by_side), SUITE_TEST(test_assist),
    };
    return suite_run(tests, sizeof tests / sizeof *tests);
}
