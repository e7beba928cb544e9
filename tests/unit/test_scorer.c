/* What is measured is what is published: every setting of a list, scored from one retrieval as evaluation and tune do
 * it, against engine_predict by that setting alone. The memory is full of ties: few texts, each many times. */
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

#include "engine/internal.h"
#include "tests/unit/world.h"

enum { INSTANCE_COUNT = 90, LABEL_COUNT = 24, DEPTH = 3, SETTINGS = 144 };

static const char *const texts[] = {"spam",   "mail", "spam filter", "mail server", "a mail client",
                                    "filter", "",     "server"};
enum { TEXT_COUNT = sizeof texts / sizeof *texts };

struct asked {
    struct world world; /* first */
    struct instance_record instances[INSTANCE_COUNT];
    struct tokens tokens[TEXT_COUNT];
    const struct tokens *inputs[TEXT_COUNT];
};

static uint32_t random_below(uint32_t *state, uint32_t below)
{
    *state = *state * 1664525U + 1013904223U;
    return (*state >> 16) % below;
}

static struct fold fold_of(const struct instance_record *r)
{
    return (struct fold){
        .kind = FOLD_INSTANCE, .name = r->id, .text = r->text, .labels = r->labels, .labels_count = r->labels_count};
}

/* Four words, another text for each number: no two scores are nearly equal. */
static void words_string(char *out, size_t bytes, size_t number)
{
    static const char *const words[] = {"spam", "mail", "filter", "server", "client", "a", "the"};
    enum { WORDS = sizeof words / sizeof *words };
    snprintf(out, bytes, "%s %s %s %s", words[number % WORDS], words[number / WORDS % WORDS],
             words[number / WORDS / WORDS % WORDS], words[(number * number + 3) % WORDS]);
}

/* Instances with 0 to 3 labels, some named as a label; every second label is defined. */
static void world_fill(struct asked *w, bool distinct)
{
    static char names[LABEL_COUNT][8], ids[INSTANCE_COUNT][8];
    static struct slice labels[INSTANCE_COUNT][3];
    static char own[INSTANCE_COUNT][64];
    struct fold folds[INSTANCE_COUNT + LABEL_COUNT / 2] = {0};
    uint32_t random = 7;
    size_t n = 0, applied;
    struct error e = {0};
    for (int i = 0; i < LABEL_COUNT; i++) {
        snprintf(names[i], sizeof names[i], "l%02d", i);
        if (i % 2) {
            folds[n++] = (struct fold){.kind = FOLD_LABEL,
                                       .name = slice_of(names[i]),
                                       .text = slice_of(texts[random_below(&random, TEXT_COUNT)])};
        }
    }
    for (int i = 0; i < INSTANCE_COUNT; i++) {
        struct instance_record *r = &w->instances[i];
        uint32_t first = random_below(&random, LABEL_COUNT - 3);
        snprintf(ids[i], sizeof ids[i], i % 9 ? "i%02d" : "l%02d", i % 9 ? i : i / 9);
        words_string(own[i], sizeof own[i], (size_t)i);
        *r = (struct instance_record){.id = slice_of(ids[i]),
                                      .text = slice_of(distinct ? own[i] : texts[random_below(&random, TEXT_COUNT)]),
                                      .labels = labels[i],
                                      .labels_count = random_below(&random, 4)};
        for (size_t l = 0; l < r->labels_count; l++) {
            labels[i][l] = slice_of(names[first + l]);
        }
        folds[n++] = fold_of(r);
    }
    must(engine_fold(w->world.engine, folds, n, &applied, &e), &e);
    assert_int_equal(applied, n);
}

static int world_make(void **state, bool distinct)
{
    static const struct predict_options options = {.lambda = 0.5, .tau = 0.1, .b = 200, .lexical_candidates = 20};
    struct asked *w = mem_zero(1, sizeof *w);
    world_open(&w->world, &(struct world_options){.predict = &options});
    world_fill(w, distinct);
    for (size_t i = 0; i < TEXT_COUNT; i++) {
        encoder_tokenize(w->world.encoder, ENCODER_TEXT, slice_of(texts[i]), &w->tokens[i]);
        w->inputs[i] = &w->tokens[i];
    }
    *state = w;
    return 0;
}

static int ties_open(void **state)
{
    return world_make(state, false);
}

static int distinct_open(void **state)
{
    return world_make(state, true);
}

static int asked_close(void **state)
{
    struct asked *w = *state;
    for (size_t i = 0; i < TEXT_COUNT; i++) {
        tokens_free(&w->tokens[i]);
    }
    world_close(&w->world);
    free(w);
    return 0;
}

static void settings_make(struct setting *out)
{
    static const double lambdas[] = {0.3, 0, 1, 0.7}, taus[] = {0.1, 0.8}, lexicals[] = {3, 0, 3};
    static const enum lexical_form forms[] = {LEXICAL_COSINE, LEXICAL_COSINE, LEXICAL_BM25};
    static const double powers[] = {0, 1, 0.5};
    static const size_t bs[] = {30, 1, 8};
    for (size_t i = 0; i < SETTINGS; i++) {
        out[i] = (struct setting){.apart = i % 2,
                                  .label_power = powers[i / 8 % 3],
                                  .lambda = lambdas[i / 2 % 4],
                                  .tau = taus[i / 8 % 2],
                                  .lexical = lexicals[i / 16 % 3],
                                  .form = forms[i / 16 % 3],
                                  .b = bs[i / 48]};
    }
}

static bool is_published(const struct prediction *p, struct slice name, float score)
{
    for (size_t i = 0; i < p->labels_count; i++) {
        if (slice_equal(p->labels[i].label, name)) {
            return memcmp(&p->labels[i].score, &score, sizeof score) == 0;
        }
    }
    return false;
}

/* What engine_predict says to each text by each setting, and what was compared with it. */
struct seen {
    const struct snapshot *snapshot;
    const struct prediction (*all)[TEXT_COUNT], (*first)[TEXT_COUNT]; /* [settings]: every label; DEPTH of them */
    size_t text, ties, settings_seen;
};

static void scored_check(void *context, size_t setting, const struct scored_text *scored)
{
    struct seen *s = context;
    const struct prediction *all = &s->all[setting][s->text], *first = &s->first[setting][s->text];
    struct error e = {0};
    s->settings_seen++;
    for (size_t i = 0; i < scored->count; i++) { /* the same numbers, in the same order */
        struct memory_label label;
        assert_memory_equal(&scored->labels[i].score, &all->labels[i].score, sizeof(float));
        assert_int_equal(snapshot_label(s->snapshot, scored->ids[i], &label, &e), 1);
        assert_true(is_published(all, label.name, scored->labels[i].score));
    }
    bool cut = all->labels_count > scored->count;
    assert_true(cut || all->labels_count == scored->count);
    if (cut) { /* to the end of the run of ties */
        assert_true(scored->count >= DEPTH && all->labels[scored->count].score < scored->labels[DEPTH - 1].score);
    }
    s->ties += scored->count > DEPTH;
    assert_int_equal(first->labels_count, scored->count < DEPTH ? scored->count : DEPTH);
    for (size_t i = 0; i < first->labels_count; i++) {
        assert_memory_equal(&first->labels[i].score, &scored->labels[i].score, sizeof(float));
        assert_true(slice_equal(first->labels[i].label, all->labels[i].label));
    }
}

static void predict_all(struct asked *w, const struct setting *s, size_t candidates, size_t labels_max,
                        struct prediction *out)
{
    const struct predict_options options = {.apart = s->apart,
                                            .lambda = s->lambda,
                                            .tau = s->tau,
                                            .b = s->b,
                                            .lexical = s->lexical,
                                            .lexical_form = s->form,
                                            .label_power = s->label_power,
                                            .lexical_candidates = candidates,
                                            .labels_max = labels_max};
    struct error e = {0};
    must(engine_predict_with(w->world.engine, &options, w->inputs, TEXT_COUNT, out, NULL, &e), &e);
}

static void test_what_is_measured_is_what_is_published(void **state)
{
    struct asked *w = *state;
    static struct setting settings[SETTINGS];
    static struct prediction all[SETTINGS][TEXT_COUNT], first[SETTINGS][TEXT_COUNT];
    struct error e = {0};
    settings_make(settings);
    for (size_t candidates = 5; candidates <= 1000; candidates += 995) {
        struct search search = search_for(settings, SETTINGS, candidates);
        struct retrieval r;
        const struct scorer_options options = {
            .settings = settings, .settings_count = SETTINGS, .lexical_candidates = candidates, .depth = DEPTH};
        struct scorer *scorer = scorer_open(&options);
        retrieval_open(&r, w->world.engine, &search, TEXT_COUNT);
        retrieval_begin(&r, w->inputs, TEXT_COUNT);
        must(retrieval_end(&r, &e), &e);
        scorer_snapshot(scorer, r.snapshot);
        for (size_t i = 0; i < SETTINGS; i++) {
            predict_all(w, &settings[i], candidates, 0, all[i]);
            predict_all(w, &settings[i], candidates, DEPTH, first[i]);
        }
        struct seen seen = {.snapshot = r.snapshot,
                            .all = (const struct prediction(*)[TEXT_COUNT])all,
                            .first = (const struct prediction(*)[TEXT_COUNT])first};
        for (seen.text = 0; seen.text < TEXT_COUNT; seen.text++) {
            struct judged text = {.matches = r.matches[seen.text]};
            must(scorer_text(scorer, &text, scored_check, &seen, &e), &e);
        }
        assert_int_equal(seen.settings_seen, SETTINGS * TEXT_COUNT);
        assert_true(seen.ties > SETTINGS); /* else the test compares little */
        for (size_t i = 0; i < SETTINGS; i++) {
            for (size_t t = 0; t < TEXT_COUNT; t++) {
                prediction_free(&all[i][t]);
                prediction_free(&first[i][t]);
            }
        }
        retrieval_close(&r);
        scorer_close(scorer);
    }
}

/* ---- leave-one-out ---- */

static void evaluation_start(struct asked *w, const struct setting *settings, size_t count, bool exclude_self,
                             struct evaluation **out)
{
    struct error e = {0};
    const struct evaluation_options options = {.propensity = PROPENSITY_DEFAULT,
                                               .settings = settings,
                                               .settings_count = count,
                                               .keep_texts = true,
                                               .at = {1, 5},
                                               .at_count = 2,
                                               .exclude_self = exclude_self};
    must(evaluation_open(out, w->world.engine, &options, &e), &e);
}

static void part_add(struct metrics_part *sum, const struct metrics_text *text)
{
    sum->hits += text->at[1].hits;
    sum->ndcg += text->at[1].ndcg;
    sum->recall += text->at[0].hits;
}

/* Instance i as the test text of an evaluation while the memory lacks it. */
static void forgotten_add(struct asked *w, size_t i, const struct setting *settings, size_t count, bool exclude_self,
                          struct metrics_part *sums)
{
    struct fold fold = {.kind = FOLD_FORGET, .name = w->instances[i].id};
    struct evaluation *v;
    struct error e = {0};
    size_t applied;
    must(engine_fold(w->world.engine, &fold, 1, &applied, &e), &e);
    assert_true(fold.found);
    evaluation_start(w, settings, count, exclude_self, &v);
    must(evaluation_add(v, &w->instances[i], NULL, 1, &e), &e);
    for (size_t s = 0; s < count; s++) {
        part_add(&sums[s], evaluation_text(v, 0, s));
    }
    evaluation_close(v);
    fold = fold_of(&w->instances[i]);
    must(engine_fold(w->world.engine, &fold, 1, &applied, &e), &e);
}

static void leave_one_out_check(struct asked *w, const struct setting *settings, size_t count, bool exclude_self)
{
    static struct metrics_part want[SETTINGS], got[SETTINGS];
    struct evaluation *v;
    struct error e = {0};
    size_t hit = 0;
    memset(want, 0, sizeof want);
    memset(got, 0, sizeof got);
    for (size_t i = 0; i < INSTANCE_COUNT; i++) {
        if (w->instances[i].labels_count) {
            forgotten_add(w, i, settings, count, exclude_self, want);
        }
    }
    evaluation_start(w, settings, count, exclude_self, &v);
    must(evaluation_leave_one_out(v, 0, SIZE_MAX, NULL, NULL, &e), &e);
    for (size_t s = 0; s < count; s++) {
        for (size_t t = 0; evaluation_text(v, t, s); t++) {
            part_add(&got[s], evaluation_text(v, t, s));
        }
        hit += want[s].hits > 0;
        assert_true(fabs(got[s].hits - want[s].hits) < 1e-6);
        assert_true(fabs(got[s].ndcg - want[s].ndcg) < 1e-6);
        assert_true(fabs(got[s].recall - want[s].recall) < 1e-6);
    }
    assert_true(10 * hit > 9 * count); /* else little was compared */
    evaluation_close(v);
}

/* Words, their forms and the labels' counts are all those of a memory without the row. */
static void test_leave_one_out_is_forgetting(void **state)
{
    static struct setting settings[SETTINGS];
    settings_make(settings);
    leave_one_out_check(*state, settings, SETTINGS, false);
    leave_one_out_check(*state, settings, SETTINGS, true);
}

/* Where no setting takes as many keys as the memory has labels, the one key more that leave-one-out asks for, in place
 * of the row's own, brings a label too many. */
static void test_leave_one_out_of_few_keys(void **state)
{
    static struct setting settings[SETTINGS];
    size_t count = 0;
    settings_make(settings);
    for (size_t i = 0; i < SETTINGS; i++) {
        if (settings[i].apart && settings[i].lexical <= 0 && settings[i].b <= 8) {
            settings[count++] = settings[i];
        }
    }
    assert_true(count > 1);
    leave_one_out_check(*state, settings, count, false);
}

/* A label may be left out by many names that are one: a file can say so line by line. */
static void test_a_label_is_left_out_as_often_as_it_is_named(void **state)
{
    enum { NAMED = 1000 };
    struct asked *w = *state;
    struct slice names[NAMED];
    struct metrics_part with = {0}, without = {0};
    struct error e = {0};
    for (size_t i = 0; i < INSTANCE_COUNT; i++) {
        const struct setting setting = {.lambda = 0.5, .tau = 0.1, .b = 2};
        const struct instance_record *text = &w->instances[i];
        for (size_t n = 0; n < NAMED && text->labels_count; n++) {
            names[n] = text->labels[0];
        }
        for (size_t named = 0; named <= NAMED && text->labels_count > 1; named += NAMED) {
            const struct left_out left_out = {names, named};
            struct evaluation *v;
            evaluation_start(w, &setting, 1, false, &v);
            must(evaluation_add(v, text, &left_out, 1, &e), &e);
            part_add(named ? &with : &without, evaluation_text(v, 0, 0));
            evaluation_close(v);
        }
    }
    assert_true(with.hits > 0 && with.hits < without.hits);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_what_is_measured_is_what_is_published, ties_open, asked_close),
        cmocka_unit_test_setup_teardown(test_leave_one_out_is_forgetting, distinct_open, asked_close),
        cmocka_unit_test_setup_teardown(test_leave_one_out_of_few_keys, distinct_open, asked_close),
        cmocka_unit_test_setup_teardown(test_a_label_is_left_out_as_often_as_it_is_named, distinct_open, asked_close),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
