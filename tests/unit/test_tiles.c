/* How texts share the device: batches in flight see the memory in the order in which they began, a fold need not wait
 * for a batch, and a batch's tiles give what each text alone gives. With a tiny random BERT. */
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/internal.h"
#include "tests/unit/world.h"

static struct world *opened(size_t threads)
{
    static const struct predict_options options = {
        .lambda = 0.5, .tau = 0.1, .b = 10, .labels_max = 3, .evidence_max = 1};
    struct world *w = mem_zero(1, sizeof *w);
    world_open(w, &(struct world_options){.predict = &options, .threads = threads});
    return w;
}

static void closed(struct world *w)
{
    world_close(w);
    free(w);
}

/* n texts of different lengths, tokenized. */
struct texts {
    size_t n;
    struct tokens *tokens;
    const struct tokens **inputs;
};

static struct texts texts_make(const struct world *w, size_t n)
{
    struct texts t = {n, mem_zero(n, sizeof *t.tokens), mem_alloc(n * sizeof *t.inputs)};
    for (size_t i = 0; i < n; i++) {
        char text[256] = "a";
        for (size_t word = 0; word < i % 13; word++) {
            strcat(text, word % 2 ? " debug tool" : " linux kernel");
        }
        encoder_tokenize(w->encoder, ENCODER_TEXT, slice_of(text), &t.tokens[i]);
        t.inputs[i] = &t.tokens[i];
    }
    return t;
}

static void texts_free(struct texts *t)
{
    for (size_t i = 0; i < t->n; i++) {
        tokens_free(&t->tokens[i]);
    }
    free(t->tokens);
    free(t->inputs);
}

static void fold_one(struct world *w, size_t number)
{
    static const char *const words[] = {"kernel", "debug", "a tool", "more"};
    char id[24];
    struct slice label = slice_of("x");
    struct error e = {0};
    size_t applied;
    snprintf(id, sizeof id, "id %zu", number % 50);
    struct fold fold = {.kind = FOLD_INSTANCE,
                        .name = slice_of(id),
                        .text = slice_of(words[number % 4]),
                        .labels = &label,
                        .labels_count = 1,
                        .source = {.topic = slice_of("instances"), .offset = (int64_t)number}};
    must(engine_fold(w->engine, &fold, 1, &applied, &e), &e);
}

/* Many tiles at once, in whatever order, give each text its own vector. */
static void test_every_text_gets_its_own_vector(void **state)
{
    (void)state;
    struct world *w = opened(3);
    struct texts t = texts_make(w, 700);
    struct error e = {0};
    const size_t dim = encoder_dim(w->encoder);
    float *all = mem_alloc(t.n * dim * sizeof *all), *one = mem_alloc(dim * sizeof *one);
    must(engine_encode(w->engine, t.inputs, t.n, all, &e), &e);
    for (size_t i = 0; i < t.n; i++) {
        must(engine_encode(w->engine, t.inputs + i, 1, one, &e), &e);
        for (size_t c = 0; c < dim; c++) {
            assert_true(fabsf(one[c] - all[i * dim + c]) < 1e-5F);
        }
    }
    free(one);
    free(all);
    texts_free(&t);
    closed(w);
}

struct folding {
    struct world *world;
    atomic_bool over;
    size_t folded;
};

static void *fold_main(void *context)
{
    struct folding *f = context;
    while (!atomic_load(&f->over)) {
        fold_one(f->world, f->folded++);
    }
    return NULL;
}

/* While labels are folded all the time, batches overlap: each sees one version of the memory, and no output an older
 * one than the output before it. */
static void test_versions_never_go_back(void **state)
{
    (void)state;
    struct world *w = opened(2);
    struct texts t = texts_make(w, 200);
    struct folding folding = {.world = w};
    struct predicting *in_flight[3] = {0};
    struct prediction *out = mem_alloc(t.n * sizeof *out);
    struct error e = {0};
    uint64_t last = 0, first = 0;
    pthread_t thread;
    fold_one(w, 0);
    folding.folded = 1;
    pthread_create(&thread, NULL, fold_main, &folding);
    for (size_t batch = 0; batch < 60; batch++) {
        const size_t n = batch % 3 ? 3 : t.n; /* small ones that would overtake */
        struct predicting **slot = &in_flight[batch % 3];
        if (*slot) {
            must(engine_predict_end(*slot, out, NULL, &e), &e);
            const size_t count = (batch - 3) % 3 ? 3 : t.n;
            const uint64_t version = out[0].memory_version;
            for (size_t i = 0; i < count; i++) {
                assert_int_equal(out[i].memory_version, version);
                prediction_free(&out[i]);
            }
            assert_true(version >= last);
            last = version;
            first = first ? first : last;
        }
        must(engine_predict_begin(w->engine, NULL, t.inputs, n, slot, &e), &e);
    }
    for (size_t i = 0; i < 3; i++) {
        must(engine_predict_end(in_flight[i], out, NULL, &e), &e);
        for (size_t j = 0; j < (i ? 3 : t.n); j++) {
            prediction_free(&out[j]);
        }
    }
    atomic_store(&folding.over, true);
    pthread_join(thread, NULL);
    assert_true(last > first); /* the folds went on meanwhile */
    free(out);
    texts_free(&t);
    closed(w);
}

/* One worker, and a batch of many tiles: a label that comes meanwhile is live long before the batch is done. */
static void test_a_fold_goes_between_the_tiles_of_a_batch(void **state)
{
    (void)state;
    struct world *w = opened(1);
    struct texts t = texts_make(w, 20000);
    struct encoding batch = {.g = w->engine, .inputs = t.inputs, .n = t.n, .lane = LANE_BULK};
    struct error e = {0};
    encoding_begin(&batch);
    fold_one(w, 0);
    fold_one(w, 1);
    assert_true(atomic_load(&batch.open) > (long)batch.job.pieces / 2);
    must(encoding_end(&batch, &e), &e);
    encoding_free(&batch);
    texts_free(&t);
    closed(w);
}

/* A slice is what the backend says of itself; a CPU's is small enough to wait for, however many threads it has. */
static void test_a_slice_is_the_backends_batch(void **state)
{
    (void)state;
    for (size_t threads = 1; threads <= 40; threads += 39) {
        struct world *w = opened(threads);
        assert_int_equal(engine_slice_tokens(w->engine), w->backend->facts.batch_tokens);
        assert_true(w->backend->facts.batch_tokens <= 16384);
        closed(w);
    }
}

struct begun_wait {
    struct engine *engine;
    atomic_bool over;
};

static void *begun_main(void *context)
{
    struct begun_wait *w = context;
    engine_wait_begun(w->engine);
    atomic_store(&w->over, true);
    return NULL;
}

/* A batch of many slices is in work when its last one is, not when its first one is: those that begin after it would
 * take the device, and a snapshot, too early. */
static void test_a_batch_has_begun_with_its_last_slice(void **state)
{
    (void)state;
    struct world *w = opened(1);
    struct texts t = texts_make(w, 2000);
    struct prediction *out = mem_alloc(t.n * sizeof *out);
    struct begun_wait wait = {.engine = w->engine};
    struct predicting *p;
    struct error e = {0};
    pthread_t thread;
    fold_one(w, 0);
    assert_true(engine_slice(w->engine, t.inputs, t.n, t.n) < t.n / 3);
    must(engine_predict_begin(w->engine, NULL, t.inputs, t.n, &p, &e), &e);
    pthread_create(&thread, NULL, begun_main, &wait);
    pool_wait_taken(w->engine->pool, LANE_BULK); /* the first slice's tiles */
    clock_sleep_ms(50);
    assert_false(atomic_load(&wait.over));
    must(engine_predict_end(p, out, NULL, &e), &e);
    pthread_join(thread, NULL);
    for (size_t i = 0; i < t.n; i++) {
        prediction_free(&out[i]);
    }
    free(out);
    texts_free(&t);
    closed(w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_text_gets_its_own_vector),
        cmocka_unit_test(test_versions_never_go_back),
        cmocka_unit_test(test_a_fold_goes_between_the_tiles_of_a_batch),
        cmocka_unit_test(test_a_slice_is_the_backends_batch),
        cmocka_unit_test(test_a_batch_has_begun_with_its_last_slice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
