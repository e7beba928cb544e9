/* A device whose memory runs out: a tile that it has no room for is run in halves, with the same results; only what
 * does not fit by itself is an error, and the caller may try again. On the backend of tests/backend/apart/, with as
 * little memory as one text takes. */
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/internal.h"
#include "tests/backend/beside.h"
#include "tests/unit/world.h"

enum { TEXTS = 300, INSTANCES_FOLDED = 200, LONGEST = 13 };

static const struct predict_options predict_options = {
    .lambda = 0.5, .tau = 0.1, .b = 10, .labels_max = 3, .evidence_max = 1};

/* A device with so many bytes of memory and what stands on it. */
struct opened {
    struct backend *backend;
    struct encoder *encoder;
    struct engine *engine;
};

static void opened_close(struct opened *o)
{
    engine_close(o->engine);
    if (o->encoder) {
        encoder_close(o->encoder);
    }
    backend_close(o->backend);
    *o = (struct opened){0};
}

/* bytes 0: as much as it likes. -1: there is no room to open it. */
static int opened_open(struct opened *o, struct memory *memory, size_t bytes, struct error *e)
{
    char path[PATH_MAX], text[32];
    const struct backend_options options = {.threads = 2, .compute = COMPUTE_F32};
    *o = (struct opened){0};
    snprintf(text, sizeof text, "%zu", bytes);
    if (bytes) {
        setenv("APART_MEMORY", text, 1);
    }
    must(backend_plugin_open(&o->backend, beside(path, APART), &options, e), e);
    unsetenv("APART_MEMORY");
    if (encoder_open(&o->encoder, o->backend, &(struct encoder_options){.folder = "tests/golden/tiny-bert"}, e) ||
        engine_open(&o->engine, o->backend, o->encoder, memory, &predict_options, e)) {
        opened_close(o);
        return -1;
    }
    return 0;
}

/* ---- what every test starts from ---- */

struct fixture {
    struct world world; /* its engine is on a device without limit */
    struct tokens tokens[TEXTS];
    const struct tokens *inputs[TEXTS]; /* the longest last */
    float *vectors;
    struct prediction predictions[TEXTS];
    size_t dim;
    size_t bytes; /* of a device that has room for the longest text, and not for one token more */
};

static void text_of(size_t i, char text[256])
{
    strcpy(text, "a");
    for (size_t word = 0; word < i % (LONGEST + 1); word++) {
        strcat(text, word % 2 ? " debug tool" : " linux kernel");
    }
}

static void fold_one(struct world *w, size_t number)
{
    char id[24], text[256], name[24];
    struct error e = {0};
    size_t applied;
    text_of(number, text);
    snprintf(id, sizeof id, "id %zu", number);
    snprintf(name, sizeof name, "label %zu", number % 7);
    struct slice label = slice_of(name);
    struct fold fold = {.kind = FOLD_INSTANCE,
                        .name = slice_of(id),
                        .text = slice_of(text),
                        .labels = &label,
                        .labels_count = 1,
                        .source = {.topic = slice_of("instances"), .offset = (int64_t)number}};
    must(engine_fold(w->engine, &fold, 1, &applied, &e), &e);
}

static bool longest_fits(struct fixture *f, size_t bytes)
{
    struct opened o;
    struct error e = {0};
    int failed = opened_open(&o, NULL, bytes, &e);
    if (!failed) {
        float *vector = mem_alloc(f->dim * sizeof *vector);
        failed = engine_encode(o.engine, &f->inputs[TEXTS - 1], 1, vector, &e);
        free(vector);
        opened_close(&o);
    }
    assert_true(!failed || (e.kind == ERROR_RETRY && e.code == E_DEVICE_MEMORY));
    return !failed;
}

static int setup(void **state)
{
    struct fixture *f = mem_zero(1, sizeof *f);
    struct error e = {0};
    size_t too_few = 0;
    world_open(&f->world, &(struct world_options){.predict = &predict_options, .plugin = APART});
    f->dim = encoder_dim(f->world.encoder);
    for (size_t i = 0; i < INSTANCES_FOLDED; i++) {
        fold_one(&f->world, i);
    }
    for (size_t i = 0; i < TEXTS; i++) {
        char text[256];
        text_of(i == TEXTS - 1 ? LONGEST : i, text);
        encoder_tokenize(f->world.encoder, ENCODER_TEXT, slice_of(text), &f->tokens[i]);
        f->inputs[i] = &f->tokens[i];
    }
    f->vectors = mem_alloc(TEXTS * f->dim * sizeof *f->vectors);
    must(engine_encode(f->world.engine, f->inputs, TEXTS, f->vectors, &e), &e);
    must(engine_predict(f->world.engine, f->inputs, TEXTS, f->predictions, NULL, &e), &e);
    for (f->bytes = 4096; !longest_fits(f, f->bytes); f->bytes *= 2) {
        too_few = f->bytes;
    }
    while (f->bytes - too_few > 1) {
        const size_t middle = too_few + (f->bytes - too_few) / 2;
        *(longest_fits(f, middle) ? &f->bytes : &too_few) = middle;
    }
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    for (size_t i = 0; i < TEXTS; i++) {
        tokens_free(&f->tokens[i]);
        prediction_free(&f->predictions[i]);
    }
    free(f->vectors);
    world_close(&f->world);
    free(f);
    return 0;
}

/* ---- what is logged meanwhile ---- */

static FILE *log_file;
static int log_saved;

static void log_begin(void)
{
    log_file = tmpfile();
    assert_non_null(log_file);
    log_saved = dup(STDERR_FILENO);
    dup2(fileno(log_file), STDERR_FILENO);
}

/* How many lines said that the device has no room. */
static size_t log_end(void)
{
    char line[1024];
    size_t count = 0;
    dup2(log_saved, STDERR_FILENO);
    close(log_saved);
    rewind(log_file);
    while (fgets(line, sizeof line, log_file)) {
        count += strstr(line, "warn  the device has no room for ") != NULL;
    }
    fclose(log_file);
    return count;
}

/* ---- tests ---- */

static void encodes_the_same(struct fixture *f, struct engine *g)
{
    struct error e = {0};
    float *vectors = mem_zero(TEXTS * f->dim, sizeof *vectors);
    must(engine_encode(g, f->inputs, TEXTS, vectors, &e), &e);
    assert_memory_equal(vectors, f->vectors, TEXTS * f->dim * sizeof *vectors);
    free(vectors);
}

static void predicts_the_same(const struct fixture *f, struct engine *g)
{
    struct error e = {0};
    struct prediction *out = mem_zero(TEXTS, sizeof *out);
    must(engine_predict(g, f->inputs, TEXTS, out, NULL, &e), &e);
    for (size_t i = 0; i < TEXTS; i++) {
        const struct prediction *one = &out[i], *other = &f->predictions[i];
        assert_int_equal(one->labels_count, other->labels_count);
        for (size_t j = 0; j < one->labels_count; j++) {
            assert_true(slice_equal(one->labels[j].label, other->labels[j].label));
            assert_true(one->labels[j].score == other->labels[j].score);
        }
        prediction_free(&out[i]);
    }
    free(out);
}

/* Whatever is too large at first. It is said as the size goes down, a step or two here, where texts are long beside the
 * tile; later batches fail no more. */
static void test_smaller_tiles(void **state)
{
    struct fixture *f = *state;
    struct opened o;
    struct error e = {0};
    log_begin();
    must(opened_open(&o, NULL, f->bytes, &e), &e);
    const size_t tile_tokens = o.backend->facts.tile_tokens;
    encodes_the_same(f, o.engine);
    const size_t lower = atomic_load(&o.engine->tile_tokens);
    encodes_the_same(f, o.engine);
    encodes_the_same(f, o.engine);
    const size_t at_last = atomic_load(&o.engine->tile_tokens);
    opened_close(&o);
    const size_t said = log_end();
    assert_true(said == 1 || said == 2);
    assert_true(lower < tile_tokens && lower > 1 && at_last == lower);
}

/* As test_smaller_tiles, in memory that the host has for it. */
static void test_host_memory(void **state)
{
    setenv("APART_HOST", "1", 1);
    test_smaller_tiles(state);
    unsetenv("APART_HOST");
}

/* A scan without room shows when it is waited for. */
static void test_smaller_scans(void **state)
{
    struct fixture *f = *state;
    struct opened o;
    struct error e = {0};
    log_begin();
    setenv("APART_SCAN", "1", 1);
    must(opened_open(&o, f->world.memory, 0, &e), &e);
    unsetenv("APART_SCAN");
    predicts_the_same(f, o.engine);
    predicts_the_same(f, o.engine);
    encodes_the_same(f, o.engine);
    opened_close(&o);
    assert_true(log_end() > 0);
}

/* Vectors that come from the memory, as leave-one-out has them. */
static void test_smaller_searches(void **state)
{
    struct fixture *f = *state;
    const struct search search = {.together = true, .kinds = {true, true}, .count = 5};
    struct retrieval r[2];
    struct opened o;
    struct error e = {0};
    setenv("APART_SCAN", "3", 1);
    must(opened_open(&o, f->world.memory, 0, &e), &e);
    unsetenv("APART_SCAN");
    for (size_t i = 0; i < 2; i++) {
        retrieval_open(&r[i], i ? o.engine : f->world.engine, &search, TEXTS);
        r[i].queries = mem_alloc(TEXTS * f->dim * sizeof *r[i].queries);
        memcpy(r[i].queries, f->vectors, TEXTS * f->dim * sizeof *r[i].queries);
        must(memory_snapshot(f->world.memory, &r[i].snapshot, &e), &e);
        must(retrieval_search(&r[i], TEXTS, &e), &e);
    }
    for (size_t i = 0; i < TEXTS; i++) {
        const struct matches *one = &r[0].matches[i], *other = &r[1].matches[i];
        assert_int_equal(one->counts[INSTANCES], 5);
        assert_int_equal(other->counts[INSTANCES], 5);
        for (size_t j = 0; j < 5; j++) {
            assert_true(one->of[INSTANCES][j].slot == other->of[INSTANCES][j].slot &&
                        one->of[INSTANCES][j].similarity == other->of[INSTANCES][j].similarity);
        }
    }
    retrieval_close(&r[0]);
    retrieval_close(&r[1]);
    opened_close(&o);
}

static void refused(int failed, const struct error *e)
{
    assert_int_equal(failed, -1);
    assert_int_equal(e->kind, ERROR_RETRY);
    assert_int_equal(e->code, E_DEVICE_MEMORY);
    assert_non_null(strstr(e->text, "the device has no room for "));
}

/* One text that has no room by itself is an error, which asks for nothing smaller from then on; others go on. */
static void test_one_text_too_large(void **state)
{
    struct fixture *f = *state;
    struct tokens longer = {0};
    const struct tokens *inputs[3] = {f->inputs[0], &longer, f->inputs[1]};
    char text[1024] = "a";
    struct opened o;
    struct error e = {0};
    float *vectors = mem_alloc(TEXTS * f->dim * sizeof *vectors);
    for (size_t word = 0; word < 40; word++) {
        strcat(text, " linux kernel");
    }
    encoder_tokenize(f->world.encoder, ENCODER_TEXT, slice_of(text), &longer);
    log_begin();
    must(opened_open(&o, NULL, f->bytes, &e), &e);
    refused(engine_encode(o.engine, &inputs[1], 1, vectors, &e), &e);
    assert_int_equal(atomic_load(&o.engine->tile_tokens), o.backend->facts.tile_tokens);
    e = (struct error){0};
    refused(engine_encode(o.engine, inputs, 3, vectors, &e), &e);
    e = (struct error){0};
    must(engine_encode(o.engine, inputs, 1, vectors, &e), &e);
    assert_memory_equal(vectors, f->vectors, f->dim * sizeof *vectors);
    encodes_the_same(f, o.engine);
    opened_close(&o);
    assert_true(log_end() <= 2);
    tokens_free(&longer);
    free(vectors);
}

/* Keys that have no room: no tile is small enough, so later ones stay as they were. */
static void test_keys_too_large(void **state)
{
    struct fixture *f = *state;
    struct prediction *out = mem_zero(TEXTS, sizeof *out);
    struct opened o;
    struct error e = {0};
    log_begin();
    must(opened_open(&o, f->world.memory, f->bytes + 4096, &e), &e);
    for (size_t i = 0; i < 2; i++) {
        refused(engine_predict(o.engine, f->inputs, 3, out, NULL, &e), &e);
        e = (struct error){0};
    }
    assert_int_equal(atomic_load(&o.engine->tile_tokens), o.backend->facts.tile_tokens);
    must(engine_encode(o.engine, f->inputs, 1, f->vectors, &e), &e);
    opened_close(&o);
    assert_int_equal(log_end(), 0);
    free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_smaller_tiles),      cmocka_unit_test(test_host_memory),
        cmocka_unit_test(test_smaller_scans),      cmocka_unit_test(test_smaller_searches),
        cmocka_unit_test(test_one_text_too_large), cmocka_unit_test(test_keys_too_large),
    };
    return cmocka_run_group_tests_name("device memory", tests, setup, teardown);
}
