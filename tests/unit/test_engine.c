/* Predict and fold on a real memory with a tiny random BERT: what is exact (order, ties, counts, prefixes, offsets).
 * The numbers themselves are compared with NumPy in tests/golden/test_engine.py. */
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
#include "base/digest.h"
#include "tests/unit/world.h"

static const struct predict_options defaults = {
    .lambda = 0.5, .tau = 0.1, .b = 200, .labels_max = 10, .evidence_max = 5};

static struct world *opened(const struct predict_options *options, uint64_t map_size, uint64_t keys_max)
{
    struct world *w = mem_zero(1, sizeof *w);
    world_open(w, &(struct world_options){.predict = options, .map_size = map_size, .keys_max = keys_max});
    return w;
}

static void closed(struct world *w)
{
    world_close(w);
    free(w);
}

static void predict_one(struct world *w, const char *text, struct prediction *out)
{
    struct error e = {0};
    struct tokens tokens;
    const struct tokens *inputs[1] = {&tokens};
    encoder_tokenize(w->encoder, ENCODER_TEXT, slice_of(text), &tokens);
    must(engine_predict(w->engine, inputs, 1, out, NULL, &e), &e);
    tokens_free(&tokens);
}

static void encode_one(struct world *w, const char *text, float *out)
{
    struct error e = {0};
    struct tokens tokens;
    const struct tokens *inputs[1] = {&tokens};
    encoder_tokenize(w->encoder, ENCODER_TEXT, slice_of(text), &tokens);
    must(engine_encode(w->engine, inputs, 1, out, &e), &e);
    tokens_free(&tokens);
}

/* Puts a key with this very vector, past the encoder. */
static void put_instance(struct world *w, const char *id, const struct slice *labels, size_t labels_count,
                         const float *vector)
{
    struct error e = {0};
    struct transaction *t;
    struct memory_source source = {0};
    struct memory_key key = {.vector = vector};
    must(memory_begin(w->memory, &t, &e), &e);
    must(transaction_fold(t, slice_of(id), slice_of("text"), labels, labels_count, &key, &source, NULL, &e), &e);
    must(transaction_commit(t, &e), &e);
}

static void put_label(struct world *w, const char *name, const float *vector)
{
    struct error e = {0};
    struct transaction *t;
    struct memory_source source = {0};
    struct memory_key key = {.vector = vector};
    must(memory_begin(w->memory, &t, &e), &e);
    must(transaction_define(t, slice_of(name), slice_of("text"), &key, &source, NULL, &e), &e);
    must(transaction_commit(t, &e), &e);
}

static struct fold fold_of(enum fold_kind kind, const char *name, const struct slice *label, int64_t offset)
{
    return (struct fold){.kind = kind,
                         .name = slice_of(name),
                         .text = slice_of("a text"),
                         .labels = label,
                         .labels_count = label ? 1 : 0,
                         .source = {.cluster = slice_of("c"), .topic = slice_of("instances"), .offset = offset}};
}

static struct memory_stats stats_of(struct world *w)
{
    struct error e = {0};
    struct snapshot *s;
    struct memory_stats stats;
    must(memory_snapshot(w->memory, &s, &e), &e);
    must(snapshot_stats(s, &stats, &e), &e);
    snapshot_release(s);
    return stats;
}

/* The memory holds these pieces at the row of the one key of this kind. */
static void assert_pieces(struct world *w, enum key_kind kind, enum encoder_input input, const char *text)
{
    struct error e = {0};
    struct snapshot *s;
    struct tokens tokens;
    size_t seen = 0;
    encoder_tokenize(w->encoder, input, slice_of(text), &tokens);
    must(memory_snapshot(w->memory, &s, &e), &e);
    assert_int_equal(snapshot_piece_bytes(s), 2);
    for (size_t b = 0; b < snapshot_keys(s)->count; b++) {
        struct pieces_block pieces;
        snapshot_pieces(s, b, &pieces);
        if (snapshot_keys(s)->blocks[b].kind != kind) {
            continue;
        }
        assert_int_equal(pieces.used[0], 1);
        assert_int_equal(pieces.starts[1] + 2, tokens.count);
        for (size_t i = 0; i < pieces.starts[1]; i++) {
            assert_int_equal(((const uint16_t *)pieces.ids)[i], tokens.ids[i + 1]);
            seen++;
        }
    }
    assert_true(seen > 2); /* else the test compares nothing */
    snapshot_release(s);
    tokens_free(&tokens);
}

static void assert_stats(struct world *w, uint64_t instances, uint64_t label_keys, uint64_t version)
{
    struct memory_stats stats = stats_of(w);
    assert_int_equal(stats.instances, instances);
    assert_int_equal(stats.label_keys, label_keys);
    assert_int_equal(stats.version, version);
    memory_stats_free(&stats);
}

/* ---- predict ---------------------------------------------------------------------------------------------------- */

static void test_empty_memory_has_no_labels(void **state)
{
    (void)state;
    struct world *w = opened(&defaults, 64 << 20, 0);
    struct prediction p;
    predict_one(w, "a text", &p);
    assert_int_equal(p.labels_count, 0);
    assert_int_equal(p.evidence_count, 0);
    assert_int_equal(p.memory_version, 0);
    assert_string_equal(p.model_version, encoder_model_version(w->encoder));
    assert_false(p.truncated);
    prediction_free(&p);
    closed(w);
}

static int by_tie(const void *a, const void *b)
{
    const struct slice *x = a, *y = b;
    uint64_t i = hash64(x->data, x->bytes), k = hash64(y->data, y->bytes);
    return (i > k) - (i < k);
}

static void test_equal_scores_break_by_the_name(void **state)
{
    (void)state;
    struct slice names[12], sorted[12];
    char text[12][8];
    for (int i = 0; i < 12; i++) {
        snprintf(text[i], sizeof text[i], "l%02d", i);
        names[i] = sorted[i] = slice_of(text[i]);
    }
    qsort(sorted, 12, sizeof *sorted, by_tie);
    for (size_t max = 1; max <= 12; max += 5) {
        struct predict_options options = defaults;
        options.labels_max = max;
        struct world *w = opened(&options, 64 << 20, 0);
        float vector[4096];
        struct prediction p;
        encode_one(w, "a text", vector);
        put_instance(w, "i", names, 12, vector);
        predict_one(w, "a text", &p);
        assert_int_equal(p.labels_count, max);
        for (size_t i = 0; i < max; i++) {
            assert_true(slice_equal(p.labels[i].label, sorted[i]));
            assert_true(fabsf(p.labels[i].score - 0.5F) < 1e-6F);
        }
        prediction_free(&p);
        closed(w);
    }
}

static void test_evidence_is_what_gave_most(void **state)
{
    (void)state;
    struct predict_options options = defaults;
    options.lambda = 0.25;
    options.evidence_max = 4;
    options.evidence_text = true;
    struct world *w = opened(&options, 64 << 20, 0);
    size_t dim = encoder_dim(w->encoder);
    float near[4096], far[4096];
    struct slice labels[3] = {slice_of("b"), slice_of("c"), slice_of("é")};
    struct slice ids[3] = {slice_of("i0"), slice_of("i1"), slice_of("i2")};
    struct prediction p;
    encode_one(w, "a text", near);
    for (size_t i = 0; i < dim; i++) {
        far[i] = near[i] * 0.95F;
    }
    for (size_t i = 0; i < 3; i++) { /* nearest, but an instance gives only a quarter of its weight */
        put_instance(w, ids[i].data, labels, 3, near);
    }
    put_label(w, "defined", far);
    qsort(ids, 3, sizeof *ids, by_tie);
    predict_one(w, "a text", &p);
    assert_int_equal(p.evidence_count, 4);
    assert_int_equal(p.evidence[0].kind, EVIDENCE_LABEL);
    assert_true(slice_equal(p.evidence[0].name, slice_of("defined")));
    assert_true(slice_equal(p.evidence[0].text, slice_of("text")));
    double sum = p.evidence[0].weight;
    for (size_t i = 0; i < 3; i++) {
        const struct evidence *v = &p.evidence[i + 1];
        assert_int_equal(v->kind, EVIDENCE_INSTANCE);
        assert_true(slice_equal(v->name, ids[i]));
        assert_int_equal(v->labels_count, 3);
        assert_true(slice_equal(v->labels[0], labels[0]) && slice_equal(v->labels[2], labels[2]));
        assert_true(v->weight > p.evidence[0].weight && v->similarity > p.evidence[0].similarity);
        sum += v->weight;
    }
    assert_true(fabs(sum - 1) < 1e-5);
    prediction_free(&p);
    closed(w);
}

static void test_a_key_without_value_is_no_candidate(void **state)
{
    (void)state;
    static const double lambdas[3] = {0, 0.5, 1};
    static const char *best[3] = {"by label", "by instance", "by instance"};
    static const size_t counts[3] = {1, 2, 1};
    for (int i = 0; i < 3; i++) {
        struct predict_options options = defaults;
        options.lambda = lambdas[i];
        struct world *w = opened(&options, 64 << 20, 0);
        float near[4096], far[4096];
        struct slice label = slice_of("by instance");
        struct prediction p;
        encode_one(w, "a text", near);
        encode_one(w, "another thing", far);
        put_instance(w, "unlabelled", NULL, 0, near);
        put_instance(w, "labelled", &label, 1, near);
        put_label(w, "by label", far);
        predict_one(w, "a text", &p);
        assert_int_equal(p.labels_count, counts[i]);
        assert_int_equal(p.evidence_count, counts[i]);
        assert_true(slice_equal(p.labels[0].label, slice_of(best[i])));
        if (counts[i] == 1) {
            assert_true(fabsf(p.labels[0].score - 1) < 1e-6F);
        }
        prediction_free(&p);
        closed(w);
    }
}

static void test_many_labels_on_one_text(void **state)
{
    (void)state;
    enum { LABELS = 1000, INSTANCES = 3 };
    struct predict_options options = defaults;
    options.labels_max = 0;
    options.lambda = 1;
    struct world *w = opened(&options, 64 << 20, 0);
    static char names[INSTANCES * LABELS][8];
    static struct slice labels[INSTANCES * LABELS];
    float vector[4096];
    struct prediction p;
    double sum = 0;
    encode_one(w, "a text", vector);
    for (int i = 0; i < INSTANCES * LABELS; i++) {
        snprintf(names[i], sizeof names[i], "%05d", i);
        labels[i] = slice_of(names[i]);
    }
    for (int i = 0; i < INSTANCES; i++) {
        char id[4] = {'i', (char)('0' + i)};
        put_instance(w, id, labels + i * LABELS, LABELS, vector);
    }
    predict_one(w, "a text", &p);
    assert_int_equal(p.labels_count, INSTANCES * LABELS);
    for (size_t i = 0; i < p.labels_count; i++) {
        sum += (double)p.labels[i].score;
    }
    assert_true(fabs(sum - LABELS) < 1e-3);
    prediction_free(&p);
    closed(w);
}

static void test_a_batch_of_many_slices(void **state)
{
    (void)state;
    struct world *w = opened(&defaults, 64 << 20, 0);
    size_t dim = encoder_dim(w->encoder), n = 2 * engine_slice_tokens(w->engine) / 8;
    struct error e = {0};
    struct tokens *tokens = mem_zero(n, sizeof *tokens);
    const struct tokens **inputs = mem_alloc(n * sizeof *inputs);
    float *together = mem_alloc(n * dim * sizeof *together), alone[4096];
    for (size_t i = 0; i < n; i++) {
        char text[64];
        snprintf(text, sizeof text, "the text number %zu of many %zu", i, i * 7919 % 1000);
        encoder_tokenize(w->encoder, ENCODER_TEXT, slice_of(text), &tokens[i]);
        inputs[i] = &tokens[i];
    }
    must(engine_encode(w->engine, inputs, n, together, &e), &e);
    for (size_t i = 0; i < n; i += n / 7) {
        must(engine_encode(w->engine, inputs + i, 1, alone, &e), &e);
        for (size_t k = 0; k < dim; k++) {
            assert_true(fabsf(together[i * dim + k] - alone[k]) < 1e-5F);
        }
    }
    for (size_t i = 0; i < n; i++) {
        tokens_free(&tokens[i]);
    }
    free(together);
    free(inputs);
    free(tokens);
    closed(w);
}

/* ---- fold ------------------------------------------------------------------------------------------------------- */

static void test_fold_reports_and_moves_offsets(void **state)
{
    (void)state;
    struct world *w = opened(&defaults, 64 << 20, 0);
    struct slice label = slice_of("x");
    struct error e = {0};
    size_t applied;
    struct fold folds[] = {
        fold_of(FOLD_INSTANCE, "a", &label, 0),  fold_of(FOLD_LABEL, "x", NULL, 5),
        fold_of(FOLD_FORGET, "a", NULL, 6),      fold_of(FOLD_FORGET, "never there", NULL, 7),
        fold_of(FOLD_UNDEFINE, "x", NULL, 8),    fold_of(FOLD_UNDEFINE, "x", NULL, 9),
        fold_of(FOLD_INSTANCE, "b", &label, 10), fold_of(FOLD_SKIP, "", NULL, 20),
    };
    folds[6].mark = record_mark_of(10, 1, slice_of("b"), slice_of("v")); /* not the last one: it is not stored */
    folds[7].mark = record_mark_of(20, 2, slice_of(""), slice_of("w"));
    must(engine_fold(w->engine, folds, 8, &applied, &e), &e);
    assert_int_equal(applied, 8);
    assert_true(folds[2].found && !folds[3].found && folds[4].found && !folds[5].found);
    assert_stats(w, 1, 0, 21);
    struct memory_stats stats;
    struct snapshot *s;
    must(memory_look(w->memory, &s, &e), &e);
    must(snapshot_stats(s, &stats, &e), &e);
    assert_int_equal(stats.offsets_count, 1);
    assert_true(record_mark_equal(&stats.offsets[0].position.mark, &folds[7].mark));
    memory_stats_free(&stats);
    snapshot_release(s);

    struct fold moved = fold_of(FOLD_INSTANCE, "b", &label, 3);
    moved.source.partition = 1;
    must(engine_fold(w->engine, &moved, 1, &applied, &e), &e);
    assert_true(moved.moved);
    assert_stats(w, 1, 0, 21 + 4);
    closed(w);
}

/* A model whose numbers overflow: neither a text nor a record gets through, and the memory stays where it is. */
static void test_a_vector_that_is_not_finite_is_an_error(void **state)
{
    (void)state;
    struct world *w = opened(&defaults, 64 << 20, 0);
    struct slice label = slice_of("x");
    struct error e = {0};
    size_t applied, count;
    struct fold good[] = {fold_of(FOLD_INSTANCE, "a", &label, 0), fold_of(FOLD_LABEL, "x", NULL, 1)};
    must(engine_fold(w->engine, good, 2, &applied, &e), &e);

    const struct encoder_parameter *p = encoder_parameters(w->encoder, &count);
    const size_t last = count - 1, dim = p[last].columns;
    float *huge = mem_alloc(dim * sizeof *huge);
    for (size_t i = 0; i < dim; i++) {
        huge[i] = 1e30F; /* every number of the vector is finite, but not their squares */
    }
    must(encoder_parameter_set(w->encoder, last, huge, huge, &e), &e);
    free(huge);
    for (int kind = FOLD_INSTANCE; kind <= FOLD_LABEL; kind++) {
        struct fold fold = fold_of(kind, "b", &label, 2);
        assert_int_equal(engine_fold(w->engine, &fold, 1, &applied, &e), -1);
        assert_int_equal(applied, 0);
        assert_int_equal(e.kind, ERROR_FATAL);
        assert_int_equal(e.code, E_MODEL);
    }
    struct tokens tokens;
    struct prediction prediction = {0};
    encoder_tokenize(w->encoder, ENCODER_TEXT, slice_of("a"), &tokens);
    e = (struct error){0};
    assert_int_equal(engine_predict(w->engine, (const struct tokens *[]){&tokens}, 1, &prediction, NULL, &e), -1);
    assert_int_equal(e.code, E_MODEL);
    tokens_free(&tokens);
    assert_stats(w, 1, 1, 2);
    closed(w);
}

/* Each key keeps the word pieces that it was encoded from, [CLS] and [SEP] aside, whatever stands between. */
static void test_fold_keeps_word_pieces(void **state)
{
    (void)state;
    struct world *w = opened(&defaults, 64 << 20, 0);
    struct error e = {0};
    size_t applied;
    struct fold folds[] = {fold_of(FOLD_FORGET, "never there", NULL, 0), fold_of(FOLD_INSTANCE, "a", NULL, 1),
                           fold_of(FOLD_SKIP, "", NULL, 2), fold_of(FOLD_LABEL, "x", NULL, 3)};
    folds[1].text = slice_of("a tool for the library");
    folds[3].text = slice_of("files of the library");
    must(engine_fold(w->engine, folds, 4, &applied, &e), &e);
    assert_pieces(w, KEY_INSTANCE, ENCODER_TEXT, "a tool for the library");
    assert_pieces(w, KEY_LABEL, ENCODER_LABEL, "files of the library");
    closed(w);
}

static void test_folds_by_hand_are_counted(void **state)
{
    (void)state;
    struct world *w = opened(&defaults, 64 << 20, 0);
    struct error e = {0};
    size_t applied;
    struct fold folds[] = {fold_of(FOLD_INSTANCE, "a", NULL, 0), fold_of(FOLD_LABEL, "x", NULL, 0),
                           fold_of(FOLD_FORGET, "a", NULL, 0)};
    for (size_t i = 0; i < 3; i++) {
        folds[i].source = (struct memory_source){0};
    }
    must(engine_fold(w->engine, folds, 3, &applied, &e), &e);
    assert_stats(w, 0, 1, 0);
    struct memory_stats stats = stats_of(w);
    assert_int_equal(stats.local_changes, 3);
    memory_stats_free(&stats);
    closed(w);
}

static void test_keys_max_commits_what_stands_before(void **state)
{
    (void)state;
    struct world *w = opened(&defaults, 64 << 20, 3);
    struct slice label = slice_of("x");
    struct error e = {0};
    size_t applied;
    struct fold folds[] = {
        fold_of(FOLD_INSTANCE, "a", &label, 0), fold_of(FOLD_INSTANCE, "b", &label, 1),
        fold_of(FOLD_LABEL, "x", NULL, 2),      fold_of(FOLD_INSTANCE, "a", NULL, 3),
        fold_of(FOLD_INSTANCE, "c", &label, 4), fold_of(FOLD_FORGET, "a", NULL, 5),
    };
    assert_int_equal(engine_fold(w->engine, folds, 6, &applied, &e), -1);
    assert_int_equal(e.code, E_KEYS_MAX);
    assert_int_equal(e.kind, ERROR_RETRY);
    assert_int_equal(applied, 4);
    assert_stats(w, 2, 1, 4);
    assert_int_equal(engine_fold(w->engine, folds + 4, 2, &applied, &e), -1);
    assert_int_equal(applied, 0);
    assert_stats(w, 2, 1, 4);
    must(engine_fold(w->engine, folds + 5, 1, &applied, &e), &e);
    folds[4].source.offset = 6; /* sent again: there is room now */
    must(engine_fold(w->engine, folds + 4, 1, &applied, &e), &e);
    assert_stats(w, 2, 1, 7);
    closed(w);
}

static void test_a_full_map_commits_what_fits(void **state)
{
    (void)state;
    enum { N = 256 };
    struct world *w = opened(&defaults, 1 << 20, 0);
    static char ids[N][8], text[8192];
    struct fold folds[N];
    struct error e = {0};
    size_t total = 0, applied;
    memset(text, 'a', sizeof text);
    for (int i = 0; i < N; i++) {
        snprintf(ids[i], sizeof ids[i], "%d", i);
        folds[i] = fold_of(FOLD_INSTANCE, ids[i], NULL, i);
        folds[i].text = (struct slice){text, sizeof text};
    }
    do {
        assert_int_equal(engine_fold(w->engine, folds + total, N - total, &applied, &e), -1);
        assert_int_equal(e.code, E_MAP_FULL);
        assert_int_equal(e.kind, ERROR_RETRY);
        total += applied;
        assert_stats(w, total, 0, total);
    } while (applied);
    assert_in_range(total, 16, 127); /* 8 KiB each in 1 MiB */
    closed(w);
}

/* ---- both lanes ------------------------------------------------------------------------------------------------- */

struct lane {
    struct world *world;
    atomic_bool stop;
    unsigned predicted;
    uint64_t version;
    bool good;
};

static void *predict_until_told(void *context)
{
    struct lane *lane = context;
    lane->good = true;
    while (!atomic_load(&lane->stop)) {
        struct prediction p;
        predict_one(lane->world, "text seen while labels come in", &p);
        lane->good &= p.memory_version >= lane->version && p.evidence_count <= 5 &&
                      (p.evidence_count > 0) == (p.memory_version > 0);
        lane->version = p.memory_version;
        lane->predicted++;
        prediction_free(&p);
    }
    return NULL;
}

static void test_predict_beside_fold(void **state)
{
    (void)state;
    struct lane lane = {.world = opened(&defaults, 64 << 20, 0)};
    struct slice label = slice_of("x");
    struct error e = {0};
    pthread_t thread;
    size_t applied;
    pthread_create(&thread, NULL, predict_until_told, &lane);
    for (int i = 0; i < 60; i++) {
        struct fold folds[4];
        char ids[4][16];
        for (int k = 0; k < 4; k++) {
            snprintf(ids[k], sizeof ids[k], "%d", (i * 4 + k) % 100);
            folds[k] = fold_of(FOLD_INSTANCE, ids[k], &label, i * 4 + k);
        }
        must(engine_fold(lane.world->engine, folds, 4, &applied, &e), &e);
    }
    atomic_store(&lane.stop, true);
    pthread_join(thread, NULL);
    assert_true(lane.good);
    assert_true(lane.predicted > 0);
    assert_stats(lane.world, 100, 0, 240);
    closed(lane.world);
}

static void test_options_outside_their_range(void **state)
{
    (void)state;
    struct world *w = opened(&defaults, 64 << 20, 0);
    struct predict_options wrong[] = {defaults, defaults, defaults, defaults, defaults, defaults, defaults};
    wrong[0].lambda = 1.5;
    wrong[1].tau = 0;
    wrong[2].tau = (double)NAN;
    wrong[3].b = 0;
    wrong[4].lexical = -1;
    wrong[5].lexical = (double)INFINITY;
    wrong[6].lexical = 1; /* of no candidates */
    for (size_t i = 0; i < 7; i++) {
        struct engine *g;
        struct error e = {0};
        assert_int_equal(engine_open(&g, w->backend, w->encoder, w->memory, &wrong[i], &e), -1);
        assert_int_equal(e.code, E_USAGE);
        assert_null(g);
    }
    closed(w);
}

enum { ROOMY = 3 };

/* Batches until told: `good` while all texts of each were answered by the same options, seen[] counting which. */
struct batches {
    struct world *world;
    atomic_bool stop;
    bool good;
    _Atomic unsigned seen[ROOMY + 1]; /* by labels_max */
};

static void *batches_until_told(void *context)
{
    struct batches *b = context;
    struct tokens tokens;
    const struct tokens *inputs[8];
    encoder_tokenize(b->world->encoder, ENCODER_TEXT, slice_of("a text"), &tokens);
    for (size_t i = 0; i < 8; i++) {
        inputs[i] = &tokens;
    }
    b->good = true;
    while (!atomic_load(&b->stop)) {
        struct prediction p[8];
        b->good = b->good && engine_predict(b->world->engine, inputs, 8, p, NULL, NULL) == 0;
        size_t count = p[0].labels_count;
        for (size_t i = 0; i < 8; i++) {
            bool texts = p[i].evidence_count > 0 && p[i].evidence[0].text.data;
            b->good =
                b->good && p[i].labels_count == count && p[i].evidence_count == count && texts == (count == ROOMY);
            prediction_free(&p[i]);
        }
        atomic_fetch_add(&b->seen[count <= ROOMY ? count : 0], 1);
    }
    tokens_free(&tokens);
    return NULL;
}

static void test_options_change_between_batches(void **state)
{
    (void)state;
    struct predict_options narrow = defaults, roomy = defaults, wrong = defaults;
    narrow.labels_max = narrow.evidence_max = 1;
    roomy.labels_max = roomy.evidence_max = ROOMY;
    roomy.evidence_text = roomy.apart = true;
    wrong.labels_max = 0;
    wrong.tau = 0;
    struct batches b = {.world = opened(&narrow, 64 << 20, 0)};
    struct slice labels[4] = {slice_of("a"), slice_of("b"), slice_of("c"), slice_of("d")};
    struct error e = {0};
    pthread_t thread;
    float near[4096];
    encode_one(b.world, "a text", near);
    for (size_t i = 0; i < 4; i++) {
        put_instance(b.world, labels[i].data, labels, 4, near);
    }
    pthread_create(&thread, NULL, batches_until_told, &b);
    for (unsigned change = 1; change <= 20; change++) { /* the next batch but one has begun after it, whatever it was */
        const struct predict_options *next = change % 2 ? &roomy : &narrow;
        must(engine_options_set(b.world->engine, next, &e), &e);
        for (unsigned seen = atomic_load(&b.seen[next->labels_max]);
             atomic_load(&b.seen[next->labels_max]) < seen + 2;) {
            clock_sleep_ms(1);
        }
        unsigned others = atomic_load(&b.seen[change % 2 ? 1 : ROOMY]);
        assert_int_equal(engine_options_set(b.world->engine, &wrong, &e), -1);
        assert_int_equal(e.code, E_USAGE);
        clock_sleep_ms(1);
        assert_int_equal(atomic_load(&b.seen[change % 2 ? 1 : ROOMY]), others);
    }
    atomic_store(&b.stop, true);
    pthread_join(thread, NULL);
    assert_true(b.good);
    assert_int_equal(b.seen[0], 0);
    closed(b.world);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_empty_memory_has_no_labels),
        cmocka_unit_test(test_equal_scores_break_by_the_name),
        cmocka_unit_test(test_evidence_is_what_gave_most),
        cmocka_unit_test(test_a_key_without_value_is_no_candidate),
        cmocka_unit_test(test_many_labels_on_one_text),
        cmocka_unit_test(test_a_batch_of_many_slices),
        cmocka_unit_test(test_fold_reports_and_moves_offsets),
        cmocka_unit_test(test_fold_keeps_word_pieces),
        cmocka_unit_test(test_a_vector_that_is_not_finite_is_an_error),
        cmocka_unit_test(test_folds_by_hand_are_counted),
        cmocka_unit_test(test_keys_max_commits_what_stands_before),
        cmocka_unit_test(test_a_full_map_commits_what_fits),
        cmocka_unit_test(test_predict_beside_fold),
        cmocka_unit_test(test_options_outside_their_range),
        cmocka_unit_test(test_options_change_between_batches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
