/* The lexical score while the memory changes. By itself against the formula, counted anew from what the memory should
 * hold; through a live engine against one that was opened just now, to the last bit. NumPy's figures:
 * tests/golden/test_engine.py. */
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/engine.h"
#include "engine/lexical.h"

#define MODEL "tests/golden/tiny-bert"

enum { KEYS = 300, TEXT_PIECES = 16, DIM = 8, FOLDER = 64 };

static void must(int result, const struct error *e)
{
    if (result) {
        fail_msg("%s", e->text);
    }
}

static uint64_t random_next(uint64_t *state)
{
    uint64_t z = *state += 0x9E3779B97F4A7C15U;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9U;
    z = (z ^ z >> 27) * 0x94D049BB133111EBU;
    return z ^ z >> 31;
}

static size_t below(uint64_t *state, size_t bound)
{
    return (size_t)(random_next(state) % bound);
}

static struct memory *memory_made(char folder[FOLDER], const struct memory_options *like)
{
    struct memory_options options = *like;
    struct memory *m;
    struct error e = {0};
    snprintf(folder, FOLDER, "/tmp/engram-lexical-XXXXXX");
    assert_non_null(mkdtemp(folder));
    options.path = folder;
    options.map_size = 64 << 20;
    options.dtype = DTYPE_F32;
    must(memory_open(&m, MEMORY_WRITE, &options, &e), &e);
    return m;
}

static void memory_removed(struct memory *m, const char *folder)
{
    static const char *const files[] = {"data.mdb", "lock.mdb", "writer.lock"};
    memory_close(m);
    for (size_t i = 0; i < 3; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
    assert_int_equal(rmdir(folder), 0);
}

static struct snapshot *snapshot_of(struct memory *m)
{
    struct snapshot *s;
    struct error e = {0};
    must(memory_snapshot(m, &s, &e), &e);
    return s;
}

/* ---- by itself -------------------------------------------------------------------------------------------------- */

struct text {
    bool exists;
    size_t count;
    int32_t pieces[TEXT_PIECES];
};

struct keys_model {
    struct text keys[KEYS]; /* instances, and one in four a label */
    int32_t first;          /* the smallest piece */
    uint64_t random;
};

static bool is_label(size_t key)
{
    return key % 4 == 3;
}

/* Products of two draws: some are common, and pairs are so many that their table grows. */
static void text_draw(struct keys_model *m, struct text *out)
{
    *out = (struct text){.exists = true, .count = below(&m->random, TEXT_PIECES + 1)};
    for (size_t i = 0; i < out->count; i++) {
        out->pieces[i] = m->first + (int32_t)(below(&m->random, 30) * below(&m->random, 30));
    }
}

static void key_write(struct transaction *t, const struct text *text, size_t key)
{
    static const float vector[DIM] = {1};
    struct memory_key encoded = {vector, text->pieces, text->count};
    struct memory_source source = {0};
    struct slice label = slice_of("x");
    struct error e = {0};
    char name[16];
    snprintf(name, sizeof name, "%zu", key);
    if (is_label(key)) {
        must(text->exists ? transaction_define(t, slice_of(name), slice_of("t"), &encoded, &source, NULL, &e)
                          : transaction_undefine(t, slice_of(name), NULL, &e),
             &e);
    } else {
        must(text->exists ? transaction_fold(t, slice_of(name), slice_of("t"), &label, 1, &encoded, &source, NULL, &e)
                          : transaction_forget(t, slice_of(name), NULL, &e),
             &e);
    }
}

/* One commit of `changes` random folds, replaces and forgets. */
static void keys_change(struct keys_model *m, struct memory *memory, size_t changes)
{
    struct transaction *t;
    struct error e = {0};
    must(memory_begin(memory, &t, &e), &e);
    for (size_t i = 0; i < changes; i++) {
        size_t key = below(&m->random, KEYS);
        if (m->keys[key].exists && below(&m->random, 3) == 0) {
            m->keys[key].exists = false;
        } else {
            text_draw(m, &m->keys[key]);
        }
        key_write(t, &m->keys[key], key);
    }
    must(transaction_commit(t, &e), &e);
}

/* How often a term stands in a text: a piece, or with second >= 0 a pair. */
static unsigned tf_of(const struct text *text, int32_t first, int32_t second)
{
    unsigned tf = 0;
    for (size_t i = 0; i < text->count; i++) {
        bool pair = second < 0 || (i + 1 < text->count && text->pieces[i + 1] == second);
        tf += text->pieces[i] == first && pair;
    }
    return tf;
}

/* s(q, k) of BM25 for one term. */
static double bm25_part(const struct keys_model *m, const struct text *k, double tf, double df)
{
    double n = 0, length = 0;
    for (size_t key = 0; key < KEYS; key++) {
        n += m->keys[key].exists;
        length += m->keys[key].exists ? (double)m->keys[key].count : 0;
    }
    double slowness = 1.2 * (0.25 + 0.75 * (double)k->count / (length / n));
    return log(1 + (n - df + 0.5) / (df + 0.5)) * tf / (tf + slowness);
}

/* By the formula, not normalised: t(q).t(k), or s(q, k); every term at its first place in q. */
static double product_of(const struct keys_model *m, const struct text *q, const struct text *k, enum lexical_form form)
{
    double product = 0;
    for (size_t at = 0; at < 2 * q->count; at++) {
        size_t i = at / 2, n = 0, df = 0;
        int32_t first = q->pieces[i], second = -1;
        if (at % 2 && i + 1 == q->count) {
            continue;
        }
        second = at % 2 ? q->pieces[i + 1] : second;
        struct text before = *q;
        before.count = at % 2 ? i + 1 : i;
        if (tf_of(&before, first, second)) {
            continue;
        }
        for (size_t key = 0; key < KEYS; key++) {
            n += m->keys[key].exists;
            df += m->keys[key].exists && tf_of(&m->keys[key], first, second);
        }
        unsigned tf_q = tf_of(q, first, second), tf_k = tf_of(k, first, second);
        double idf = log((1 + (double)n) / (1 + (double)df)) + 1;
        if (df && tf_k) {
            product += form == LEXICAL_BM25 ? bm25_part(m, k, tf_k, (double)df)
                                            : (1 + log(tf_q)) * (1 + log(tf_k)) * idf * idf;
        }
    }
    return product;
}

static double score_of(const struct keys_model *m, const struct text *q, const struct text *k, enum lexical_form form)
{
    double itself = product_of(m, q, q, form);
    if (form == LEXICAL_COSINE) {
        itself = sqrt(itself * product_of(m, k, k, form));
    }
    return itself > 0 ? product_of(m, q, k, form) / itself : 0;
}

static void both_score(struct lexical_query *q, struct lexical *x, const uint64_t *slots, size_t n,
                       float out[LEXICAL_FORMS][KEYS])
{
    memset(out, 0, LEXICAL_FORMS * sizeof *out);
    lexical_scores(q, x, slots, n, (float *[LEXICAL_FORMS]){out[LEXICAL_COSINE], out[LEXICAL_BM25]});
}

/* The slots of the instances that are there, and their numbers. */
static size_t slots_of(const struct keys_model *m, const struct snapshot *s, uint64_t slots[KEYS], size_t keys[KEYS])
{
    size_t count = 0;
    for (size_t key = 0; key < KEYS; key++) {
        struct memory_instance instance;
        struct error e = {0};
        char name[16];
        snprintf(name, sizeof name, "%zu", key);
        if (m->keys[key].exists && !is_label(key)) {
            assert_int_equal(snapshot_instance(s, slice_of(name), &instance, &e), 1);
            slots[count] = instance.slot;
            keys[count++] = key;
        }
    }
    return count;
}

/* `x`, which was brought to this snapshot in whatever way, scores as one opened on it; a few keys by the formula. */
static void assert_scores(struct keys_model *m, struct lexical *x, struct lexical_query *q, const struct snapshot *s,
                          size_t by_formula)
{
    struct lexical *fresh = lexical_open();
    struct lexical_query *other = lexical_query_open();
    uint64_t slots[KEYS];
    size_t keys[KEYS], count = slots_of(m, s, slots, keys);
    float got[LEXICAL_FORMS][KEYS], want[LEXICAL_FORMS][KEYS];
    lexical_sync(fresh, s);
    for (size_t turn = 0; turn < 4; turn++) {
        struct text text;
        text_draw(m, &text);
        lexical_query_set(q, x, text.pieces, text.count);
        lexical_query_set(other, fresh, text.pieces, text.count);
        both_score(q, x, slots, count, got);
        both_score(other, fresh, slots, count, want);
        assert_memory_equal(got, want, sizeof got);
        for (size_t i = 0; i < LEXICAL_FORMS * by_formula && count; i++) {
            enum lexical_form form = i % LEXICAL_FORMS;
            size_t at = below(&m->random, count);
            assert_true(fabs((double)got[form][at] - score_of(m, &text, &m->keys[keys[at]], form)) < 1e-5);
        }
    }
    for (size_t i = 0; i < count; i += 17) { /* a key's own text is the text that it was folded with */
        const struct text *text = &m->keys[keys[i]];
        lexical_query_of(q, x, slots[i]);
        lexical_query_set(other, fresh, text->pieces, text->count);
        both_score(q, x, slots, count, got);
        both_score(other, fresh, slots, count, want);
        assert_memory_equal(got, want, sizeof got);
        assert_true(fabs((double)got[LEXICAL_COSINE][i] - (text->count > 0)) < 1e-5);
        assert_true(fabs((double)got[LEXICAL_BM25][i] - (text->count > 0)) < 1e-5);
    }
    lexical_query_close(other);
    lexical_close(fresh);
}

/* One key left out: the others score as if it had never been; then as before. */
static void assert_omits(struct keys_model *m, struct lexical *x, struct lexical_query *q, const struct snapshot *s)
{
    uint64_t slots[KEYS];
    size_t keys[KEYS], count = slots_of(m, s, slots, keys);
    if (count < 2) {
        return;
    }
    struct text text = m->keys[keys[0]];
    float got[LEXICAL_FORMS][KEYS];
    lexical_omit(x, slots[0]);
    m->keys[keys[0]].exists = false;
    for (size_t i = 1; i < count; i += 23) {
        lexical_query_set(q, x, text.pieces, text.count);
        both_score(q, x, &slots[i], 1, got);
        for (enum lexical_form form = 0; form < LEXICAL_FORMS; form++) {
            assert_true(fabs((double)got[form][0] - score_of(m, &text, &m->keys[keys[i]], form)) < 1e-5);
        }
    }
    lexical_restore(x, slots[0]);
    m->keys[keys[0]].exists = true;
    assert_scores(m, x, q, s, 0);
}

static void counts_follow(size_t vocabulary, size_t piece_bytes, int32_t first)
{
    static struct keys_model m, old_model;
    char folder[FOLDER];
    struct memory_options options = {.dim = DIM,
                                     .fingerprint = "00112233445566778899aabbccddeeff",
                                     .model_name = "m",
                                     .vocabulary = vocabulary,
                                     .block_rows = 64};
    struct memory *memory = memory_made(folder, &options);
    struct lexical *x = lexical_open();
    struct lexical_query *q = lexical_query_open();
    struct snapshot *old = NULL;
    m = (struct keys_model){.first = first, .random = vocabulary};
    for (size_t round = 0; round < 40; round++) {
        keys_change(&m, memory, round % 3 == 0 ? 60 : 1 + round % 5);
        struct snapshot *s = snapshot_of(memory);
        assert_int_equal(snapshot_piece_bytes(s), piece_bytes);
        if (round % 4 != 3) { /* now and then two commits at once */
            lexical_sync(x, s);
            assert_scores(&m, x, q, s, round % 8 == 0 ? 10 : 0);
        }
        if (round % 10 == 5) {
            lexical_sync(x, s);
            assert_omits(&m, x, q, s);
        }
        if (round == 3) {
            old = s;
            old_model = m;
        } else {
            snapshot_release(s);
        }
    }
    struct snapshot *s = snapshot_of(memory);
    assert_true(snapshot_keys(s)->count > snapshot_keys(old)->count && snapshot_keys(s)->count >= 4);
    lexical_sync(x, old); /* and back: blocks that were not there yet count nothing */
    assert_scores(&old_model, x, q, old, 10);
    lexical_sync(x, s);
    assert_scores(&m, x, q, s, 10);
    snapshot_release(s);
    snapshot_release(old);
    lexical_query_close(q);
    lexical_close(x);
    memory_removed(memory, folder);
}

static void test_counts_follow_the_memory(void **state)
{
    (void)state;
    counts_follow(30522, 2, 29600);
}

static void test_counts_of_a_large_vocabulary(void **state)
{
    (void)state;
    counts_follow(70000, 4, 69100); /* pieces that two bytes cannot hold */
}

static void test_a_memory_without_keys(void **state)
{
    (void)state;
    char folder[FOLDER];
    struct memory_options options = {.dim = DIM, .fingerprint = "00112233445566778899aabbccddeeff", .model_name = "m"};
    struct memory *memory = memory_made(folder, &options);
    struct lexical *x = lexical_open();
    struct lexical_query *q = lexical_query_open();
    struct snapshot *s = snapshot_of(memory);
    lexical_sync(x, s);
    lexical_query_set(q, x, (const int32_t[]){5, 6, 5}, 3);
    lexical_scores(q, x, NULL, 0, (float *[LEXICAL_FORMS]){NULL});
    snapshot_release(s);
    lexical_query_close(q);
    lexical_close(x);
    memory_removed(memory, folder);
}

/* ---- through an engine ------------------------------------------------------------------------------------------ */

struct world {
    char folder[FOLDER];
    struct backend *backend;
    struct encoder *encoder;
    struct memory *memory;
    struct engine *engine;
    uint64_t random;
};

static const struct predict_options lexical_on = {
    .lambda = 0.4, .tau = 0.3, .b = 60, .lexical = 1.5, .lexical_candidates = 120, .evidence_max = 60};

static void world_open(struct world *w, const struct predict_options *options, uint64_t seed)
{
    struct error e = {0};
    struct encoder_options model = {.folder = MODEL};
    *w = (struct world){.random = seed};
    must(backend_cpu_open(&w->backend, &(struct backend_options){.threads = 2, .compute = COMPUTE_F32}, &e), &e);
    must(encoder_open(&w->encoder, w->backend, &model, &e), &e);
    struct memory_options memory = {.dim = encoder_dim(w->encoder),
                                    .fingerprint = encoder_fingerprint(w->encoder),
                                    .model_name = encoder_name(w->encoder),
                                    .vocabulary = encoder_vocabulary(w->encoder)};
    w->memory = memory_made(w->folder, &memory);
    must(engine_open(&w->engine, w->backend, w->encoder, w->memory, options, &e), &e);
}

static void world_close(struct world *w)
{
    engine_close(w->engine);
    memory_removed(w->memory, w->folder);
    encoder_close(w->encoder);
    backend_close(w->backend);
}

enum { WORDS = 24, TEXT_BYTES = 128, IDS = 200, NAMES = 16, ASKED = 6 };

/* Up to nine words of one to three word pieces each; may be none. */
static void words_draw(uint64_t *random, char out[TEXT_BYTES])
{
    size_t words = below(random, 10);
    out[0] = '\0';
    for (size_t i = 0, at = 0; i < words; i++) {
        size_t word = below(random, WORDS);
        int bytes = snprintf(out + at, TEXT_BYTES - at, "%c%.*s ", (char)('a' + word), (int)(word % 3), "xy");
        at += (size_t)bytes;
    }
}

struct named {
    bool exists;
    char text[TEXT_BYTES];
    char name[16];
    struct slice label; /* an instance's */
};

static const char *const label_names[NAMES] = {"l0", "l1", "l2",  "l3",  "l4",  "l5",  "l6",  "l7",
                                               "l8", "l9", "l10", "l11", "l12", "l13", "l14", "l15"};

static void fold_one(struct world *w, struct named *key, bool label)
{
    struct error e = {0};
    size_t applied;
    struct fold fold = {
        .name = slice_of(key->name), .text = slice_of(key->text), .labels = &key->label, .labels_count = label ? 0 : 1};
    fold.kind = key->exists ? (label ? FOLD_LABEL : FOLD_INSTANCE) : (label ? FOLD_UNDEFINE : FOLD_FORGET);
    must(engine_fold(w->engine, &fold, 1, &applied, &e), &e);
}

struct held {
    struct named instances[IDS], labels[NAMES];
};

static void held_change(struct world *w, struct held *h)
{
    bool label = below(&w->random, 6) == 0;
    size_t at = below(&w->random, label ? NAMES : IDS);
    struct named *key = label ? &h->labels[at] : &h->instances[at];
    if (key->exists && below(&w->random, 4) == 0) {
        key->exists = false;
    } else {
        key->exists = true;
        words_draw(&w->random, key->text);
        key->label = slice_of(label_names[below(&w->random, NAMES)]);
        snprintf(key->name, sizeof key->name, "%s", label ? label_names[at] : "");
        if (!label) {
            snprintf(key->name, sizeof key->name, "i%zu", at);
        }
    }
    fold_one(w, key, label);
}

static void predict_texts(struct engine *g, char texts[ASKED][TEXT_BYTES], struct prediction *out)
{
    struct error e = {0};
    struct tokens tokens[ASKED];
    const struct tokens *inputs[ASKED];
    for (size_t i = 0; i < ASKED; i++) {
        encoder_tokenize(engine_encoder(g), ENCODER_TEXT, slice_of(texts[i]), &tokens[i]);
        inputs[i] = &tokens[i];
    }
    must(engine_predict(g, inputs, ASKED, out, NULL, &e), &e);
    for (size_t i = 0; i < ASKED; i++) {
        tokens_free(&tokens[i]);
    }
}

static void assert_close(float a, float b, float bound)
{
    assert_true(fabsf(a - b) <= bound);
}

/* What two engines say of a text is the same; labels of nearly equal score may stand in another order. */
static void assert_predictions(const struct prediction *a, const struct prediction *b, float bound)
{
    assert_int_equal(a->labels_count, b->labels_count);
    assert_int_equal(a->evidence_count, b->evidence_count);
    for (size_t i = 0; i < a->labels_count; i++) {
        size_t at = 0;
        while (at < b->labels_count && !slice_equal(a->labels[i].label, b->labels[at].label)) {
            at++;
        }
        assert_true(bound > 0 ? at < b->labels_count : at == i);
        assert_close(a->labels[i].score, b->labels[at].score, bound);
    }
    for (size_t i = 0; i < a->evidence_count; i++) {
        assert_true(bound > 0 || slice_equal(a->evidence[i].name, b->evidence[i].name));
        assert_int_equal(a->evidence[i].has_lexical, b->evidence[i].has_lexical);
        assert_close(a->evidence[i].weight, b->evidence[i].weight, bound);
        assert_close(a->evidence[i].similarity + a->evidence[i].lexical,
                     b->evidence[i].similarity + b->evidence[i].lexical, bound);
    }
}

/* Both engines on ASKED random texts; how much of what they say comes from words in common. */
static double compare_engines(struct world *w, struct engine *other, float bound)
{
    char texts[ASKED][TEXT_BYTES];
    struct prediction mine[ASKED], theirs[ASKED];
    double lexical = 0;
    for (size_t i = 0; i < ASKED; i++) {
        words_draw(&w->random, texts[i]);
    }
    predict_texts(w->engine, texts, mine);
    predict_texts(other, texts, theirs);
    for (size_t i = 0; i < ASKED; i++) {
        assert_predictions(&mine[i], &theirs[i], bound);
        for (size_t k = 0; k < mine[i].evidence_count; k++) {
            lexical += (double)mine[i].evidence[k].lexical;
        }
        prediction_free(&mine[i]);
        prediction_free(&theirs[i]);
    }
    return lexical;
}

static void compare_with_fresh(struct world *w, const struct predict_options *options)
{
    struct engine *fresh;
    struct error e = {0};
    must(engine_open(&fresh, w->backend, w->encoder, w->memory, options, &e), &e);
    compare_engines(w, fresh, 0);
    engine_close(fresh);
}

static void test_a_live_engine_follows_its_memory(void **state)
{
    (void)state;
    static struct held held;
    struct world w;
    held = (struct held){0};
    world_open(&w, &lexical_on, 1);
    for (size_t i = 0; i < 400; i++) { /* more than a block of 128 rows */
        held_change(&w, &held);
        if (i % 5 == 0) {
            compare_with_fresh(&w, &lexical_on);
        }
    }
    struct snapshot *s = snapshot_of(w.memory);
    assert_true(snapshot_keys(s)->count > 2);
    snapshot_release(s);
    world_close(&w);
}

/* The score may be switched on and off while the memory changes: the counts catch up by themselves. */
static void test_switched_on_in_a_running_engine(void **state)
{
    (void)state;
    static struct held held;
    struct world w;
    struct error e = {0};
    struct predict_options off = lexical_on, other = lexical_on;
    held = (struct held){0};
    off.lexical = 0;
    other.apart = true;
    other.lexical = 0.3;
    other.lexical_form = LEXICAL_BM25;
    other.lexical_candidates = 5;
    world_open(&w, &off, 2);
    const struct predict_options *turns[] = {&off, &lexical_on, &other, &off, &off, &other, &lexical_on, &off};
    for (size_t turn = 0; turn < sizeof turns / sizeof *turns; turn++) {
        must(engine_options_set(w.engine, turns[turn], &e), &e);
        for (size_t i = 0; i < 40; i++) {
            held_change(&w, &held);
        }
        compare_with_fresh(&w, turns[turn]);
    }
    world_close(&w);
}

/* Two replicas, of which one has folded and forgotten what the other never saw, each in its own order. */
static void test_replicas_agree(void **state)
{
    (void)state;
    static struct held held;
    struct world a, b;
    struct predict_options all = lexical_on; /* no cut, where nearly equal keys could trade places */
    held = (struct held){0};
    all.b = all.lexical_candidates = 1000;
    for (int apart = 0; apart < 2; apart++) {
        all.apart = apart;
        all.lexical_form = apart ? LEXICAL_BM25 : LEXICAL_COSINE;
        world_open(&a, &all, 3);
        world_open(&b, &all, 4);
        held = (struct held){0};
        for (size_t i = 0; i < 300; i++) {
            held_change(&a, &held);
            if (i % 50 == 0) { /* so that its counts have followed, and not been taken once */
                compare_with_fresh(&a, &all);
            }
        }
        for (size_t i = 0; i < NAMES; i++) {
            if (held.labels[i].exists) {
                fold_one(&b, &held.labels[i], true);
            }
        }
        for (size_t i = IDS; i-- > 0;) {
            if (held.instances[i].exists) {
                fold_one(&b, &held.instances[i], false);
            }
        }
        double lexical = 0;
        for (size_t i = 0; i < 10; i++) {
            lexical += compare_engines(&a, b.engine, 1e-5F);
        }
        assert_true(lexical > 10);
        world_close(&a);
        world_close(&b);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_counts_follow_the_memory),        cmocka_unit_test(test_counts_of_a_large_vocabulary),
        cmocka_unit_test(test_a_memory_without_keys),           cmocka_unit_test(test_a_live_engine_follows_its_memory),
        cmocka_unit_test(test_switched_on_in_a_running_engine), cmocka_unit_test(test_replicas_agree),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
