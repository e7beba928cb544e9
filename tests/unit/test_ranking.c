/* The ranking metrics by themselves: ties against the mean over every order, deciles against their definition, the
 * calibration error by hand; and the table of label counts. The formulas at large are compared with NumPy in
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

#include "engine/internal.h"

enum { LABELS_MAX = 6, GOLD_MAX = 5 };

static const size_t at[] = {5, 1, 3, 10, 1000};
enum { AT = sizeof at / sizeof *at };

static unsigned long long seed = 1;

static unsigned below(unsigned n)
{
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(seed >> 33) % n;
}

struct text {
    struct gold_label gold[GOLD_MAX];
    struct ranked_label labels[LABELS_MAX];
    size_t gold_count, labels_count;
};

/* Some gold labels are predicted, some are not; scores come from few values. */
static struct text text_random(void)
{
    struct text t = {.gold_count = 1 + below(GOLD_MAX), .labels_count = below(LABELS_MAX + 1)};
    float score = 0.9f;
    for (size_t g = 0; g < t.gold_count; g++) {
        t.gold[g] = (struct gold_label){1 + below(50) / 7.0, below(METRICS_DECILES)};
    }
    gold_sort(t.gold, t.gold_count, NULL);
    for (size_t i = 0; i < t.labels_count; i++) {
        score -= below(2) ? 0.1f : 0;
        t.labels[i] = (struct ranked_label){score, METRICS_NOT_GOLD};
    }
    for (size_t g = 0; t.labels_count && g < t.gold_count; g++) {
        size_t place = below((unsigned)t.labels_count);
        if (t.labels[place].gold == METRICS_NOT_GOLD && below(4)) {
            t.labels[place].gold = (int32_t)g;
        }
    }
    return t;
}

/* ---- ties: the mean over every order ---- */

struct plain {
    double hits, recall, ndcg, gain, gain_dcg, best_gain, best_dcg;
};

/* The definitions, for one order without ties. order[labels_count]: indices into labels. */
static struct plain plain_of(const struct text *t, const size_t *order, size_t k)
{
    struct plain p = {0};
    double ideal = 0;
    for (size_t r = 0; r < k && r < t->gold_count; r++) {
        ideal += 1 / log2((double)r + 2);
        p.best_gain += t->gold[r].inverse;
        p.best_dcg += t->gold[r].inverse / log2((double)r + 2);
    }
    for (size_t r = 0; r < k && r < t->labels_count; r++) {
        int32_t gold = t->labels[order[r]].gold;
        if (gold != METRICS_NOT_GOLD) {
            p.hits++;
            p.ndcg += 1 / log2((double)r + 2) / ideal;
            p.gain += t->gold[gold].inverse;
            p.gain_dcg += t->gold[gold].inverse / log2((double)r + 2) / ideal;
        }
    }
    p.recall = p.hits / (double)t->gold_count;
    p.best_dcg /= ideal;
    return p;
}

struct orders {
    const struct text *text;
    size_t order[LABELS_MAX];
    bool used[LABELS_MAX];
    size_t k, seen;
    struct plain sum;
    double first_hit;
};

/* Sums over every order in which no label stands before one of a higher score. */
static void orders_walk(struct orders *o, size_t rank)
{
    const struct text *t = o->text;
    if (rank == t->labels_count) {
        struct plain p = plain_of(t, o->order, o->k);
        double *sum = (double *)&o->sum;
        for (size_t i = 0; i < sizeof p / sizeof(double); i++) {
            sum[i] += ((double *)&p)[i];
        }
        o->first_hit += rank && t->labels[o->order[0]].gold != METRICS_NOT_GOLD;
        o->seen++;
        return;
    }
    for (size_t i = 0; i < t->labels_count; i++) {
        if (o->used[i] || (rank && t->labels[i].score > t->labels[o->order[rank - 1]].score)) {
            continue;
        }
        o->used[i] = true;
        o->order[rank] = i;
        orders_walk(o, rank + 1);
        o->used[i] = false;
    }
}

static void near(double got, double want)
{
    if (!(fabs(got - want) < 1e-12 * (1 + fabs(want)))) {
        fail_msg("%.17g is not %.17g", got, want);
    }
}

static void test_ties_are_the_mean_over_their_orders(void **state)
{
    struct cutoffs c;
    size_t tied = 0;
    (void)state;
    cutoffs_set(&c, at, AT);
    for (int round = 0; round < 500; round++) {
        struct text t = text_random();
        struct metrics_text got;
        metrics_text(&c, t.gold, t.gold_count, t.labels, t.labels_count, &got, NULL);
        for (size_t k = 0; k < AT; k++) {
            struct orders o = {.text = &t, .k = at[k]};
            orders_walk(&o, 0);
            double n = (double)o.seen;
            tied += o.seen > 1;
            near(got.at[k].hits, o.sum.hits / n);
            near(got.at[k].recall, o.sum.recall / n);
            near(got.at[k].ndcg, o.sum.ndcg / n);
            near(got.at[k].gain, o.sum.gain / n);
            near(got.at[k].gain_dcg, o.sum.gain_dcg / n);
            near(got.best[k].gain, o.sum.best_gain / n);
            near(got.best[k].gain_dcg, o.sum.best_dcg / n);
            near(got.first_hit, o.first_hit / n);
        }
        assert_int_equal(got.labels, t.labels_count);
    }
    assert_true(tied > 500);
}

/* ---- sums and deciles ---- */

static void test_deciles_add_up(void **state)
{
    struct cutoffs c;
    struct metrics_sums sums = {0};
    struct metrics_deciles deciles = {0};
    uint64_t gold = 0, gold_seen = 0;
    (void)state;
    cutoffs_set(&c, at, AT);
    for (int round = 0; round < 200; round++) {
        struct text t = text_random();
        struct metrics_text values;
        metrics_text(&c, t.gold, t.gold_count, t.labels, t.labels_count, &values, &deciles);
        metrics_add(&sums, &c, &values);
        gold += t.gold_count;
    }
    assert_int_equal(sums.n, 200);
    for (size_t k = 0; k < AT; k++) {
        struct metrics_values whole = metrics_values(&sums, &c, k), sum = {0};
        for (unsigned d = 0; d < METRICS_DECILES; d++) {
            struct metrics_values part = metrics_decile_values(&sums, &deciles, &c, d, k);
            sum.precision += part.precision;
            sum.recall += part.recall;
            sum.ndcg += part.ndcg;
            sum.psp += part.psp;
            sum.psndcg += part.psndcg;
        }
        near(sum.precision, whole.precision);
        near(sum.recall, whole.recall);
        near(sum.ndcg, whole.ndcg);
        near(sum.psp, whole.psp);
        near(sum.psndcg, whole.psndcg);
        assert_true(whole.psndcg > 0 && whole.psndcg <= 100);
    }
    for (unsigned d = 0; d < METRICS_DECILES; d++) {
        gold_seen += deciles.gold[d];
    }
    assert_int_equal(gold_seen, gold);
}

static void test_the_best_ranking_has_all(void **state)
{
    struct cutoffs c;
    struct metrics_sums sums = {0};
    (void)state;
    cutoffs_set(&c, at, AT);
    for (int round = 0; round < 50; round++) {
        struct text t = text_random();
        struct metrics_text values;
        t.labels_count = t.gold_count;
        for (size_t i = 0; i < t.gold_count; i++) {
            t.labels[i] = (struct ranked_label){1 - (float)i / 10, (int32_t)i};
        }
        metrics_text(&c, t.gold, t.gold_count, t.labels, t.labels_count, &values, NULL);
        metrics_add(&sums, &c, &values);
    }
    for (size_t k = 0; k < AT; k++) {
        struct metrics_values whole = metrics_values(&sums, &c, k);
        near(whole.ndcg, 100);
        near(whole.psp, 100);
        near(whole.psndcg, 100);
        near(at[k] >= GOLD_MAX ? whole.recall : 100, 100);
    }
    near(metrics_values(&sums, &c, 1).precision, 100);
}

static void test_nothing_to_measure(void **state)
{
    struct cutoffs c;
    struct metrics_sums sums = {0};
    (void)state;
    cutoffs_set(&c, at, AT);
    assert_true(isnan(metrics_values(&sums, &c, 0).precision));
    assert_true(isnan(metrics_values(&sums, &c, 0).psp));
    assert_true(isnan(metrics_calibration_error(&sums)));
    const struct gold_label undefined = {(double)NAN, 0};
    const struct ranked_label label = {0.5f, METRICS_NOT_GOLD};
    struct metrics_text values;
    metrics_text(&c, &undefined, 1, &label, 1, &values, NULL);
    metrics_add(&sums, &c, &values);
    assert_true(isnan(metrics_values(&sums, &c, 0).psp) && isnan(metrics_values(&sums, &c, 0).psndcg));
    near(metrics_values(&sums, &c, 0).precision, 0);
}

/* A sequence of equal places in one struct that is filled again and again: nothing of the text before may stay. */
static void test_a_text_leaves_nothing_behind(void **state)
{
    struct cutoffs c;
    struct metrics_text values;
    (void)state;
    cutoffs_set(&c, at, AT);
    memset(&values, 0x7f, sizeof values);
    const struct gold_label gold = {2, 0};
    metrics_text(&c, &gold, 1, NULL, 0, &values, NULL);
    for (size_t k = 0; k < AT; k++) {
        near(values.at[k].hits + values.at[k].ndcg + values.at[k].gain_dcg, 0);
        near(values.best[k].gain, 2);
    }
    near(values.first_hit, 0);
}

static void test_gold_is_sorted(void **state)
{
    (void)state;
    for (int round = 0; round < 200; round++) {
        struct gold_label before[GOLD_MAX], after[GOLD_MAX];
        uint32_t order[GOLD_MAX];
        size_t n = below(GOLD_MAX + 1);
        for (size_t i = 0; i < n; i++) {
            before[i] = after[i] = (struct gold_label){below(3), (unsigned)i};
        }
        gold_sort(after, n, order);
        for (size_t i = 0; i < n; i++) {
            assert_int_equal(after[order[i]].decile, before[i].decile);
            assert_true(i == 0 || after[i - 1].inverse >= after[i].inverse);
        }
    }
}

/* ---- calibration ---- */

static void first_add(struct metrics_sums *sums, const struct cutoffs *c, float score, bool hit)
{
    const struct gold_label gold = {1, 0};
    const struct ranked_label labels[] = {{score, hit ? 0 : METRICS_NOT_GOLD}, {-1, METRICS_NOT_GOLD}};
    struct metrics_text values;
    metrics_text(c, &gold, 1, labels, 2, &values, NULL);
    metrics_add(sums, c, &values);
}

static void test_calibration_error(void **state)
{
    struct cutoffs c;
    struct metrics_sums sums = {0};
    const struct gold_label gold = {1, 0};
    struct metrics_text nothing;
    (void)state;
    cutoffs_set(&c, at, AT);
    first_add(&sums, &c, 0.5f, true);     /* (0.4, 0.5] */
    first_add(&sums, &c, 0.4375f, false); /* the same: |0.46875 - 0.5| * 2/6 */
    first_add(&sums, &c, 0.625f, false);  /* (0.6, 0.7]: |0.625 - 0.5| * 2/6 */
    first_add(&sums, &c, 0.625f, true);
    first_add(&sums, &c, 1.25f, true); /* over 1: the last bin, |1.25 - 1| / 6 */
    first_add(&sums, &c, 0, false);    /* the first bin, right */
    metrics_text(&c, &gold, 1, NULL, 0, &nothing, NULL);
    metrics_add(&sums, &c, &nothing);
    near(metrics_calibration_error(&sums), 100 * (2 * 0.03125 + 2 * 0.125 + 0.25) / 6);
    assert_int_equal(sums.n, 7);
}

/* ---- deciles of label frequency ---- */

static void deciles_check(const uint64_t *counts, size_t n)
{
    struct decile deciles[METRICS_DECILES];
    uint64_t *sorted = mem_alloc(n * sizeof *sorted), labels[METRICS_DECILES] = {0};
    if (n) {
        memcpy(sorted, counts, n * sizeof *sorted);
    }
    deciles_cut(deciles, sorted, n);
    for (size_t i = 0; i < n; i++) {
        size_t rarer = 0;
        for (size_t j = 0; j < n; j++) {
            rarer += counts[j] < counts[i];
        }
        unsigned want = (unsigned)(10 * rarer / n);
        assert_int_equal(decile_of(deciles, counts[i]), want);
        assert_true(counts[i] >= deciles[want].count_min && counts[i] <= deciles[want].count_max);
        labels[want]++;
    }
    for (unsigned d = 0; d < METRICS_DECILES; d++) {
        assert_int_equal(deciles[d].labels, labels[d]);
    }
    assert_int_equal(decile_of(deciles, 0), 0);
    free(sorted);
}

static void test_deciles_of_frequency(void **state)
{
    uint64_t counts[137] = {0};
    (void)state;
    deciles_check(counts, 0);
    for (int round = 0; round < 300; round++) {
        size_t n = 1 + below(137);
        unsigned values = 1 + below(200);
        for (size_t i = 0; i < n; i++) {
            counts[i] = below(values);
        }
        deciles_check(counts, n);
    }
    for (size_t i = 0; i < 100; i++) {
        counts[i] = 100 - i; /* all different: ten of ten */
    }
    struct decile deciles[METRICS_DECILES];
    deciles_cut(deciles, counts, 100);
    for (unsigned d = 0; d < METRICS_DECILES; d++) {
        assert_int_equal(deciles[d].labels, 10);
        assert_int_equal(deciles[d].count_min, 10 * d + 1);
        assert_int_equal(deciles[d].count_max, 10 * d + 10);
    }
}

/* ---- counts of labels ---- */

static void test_label_counts(void **state)
{
    enum { NAMES = 5000 };
    struct label_counts t = {0};
    char name[32];
    (void)state;
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < NAMES; i++) {
            int bytes = snprintf(name, sizeof name, "label %d", i);
            label_counts_of(&t, (struct slice){name, (size_t)bytes})->gold += (uint64_t)i;
        }
    }
    const struct evaluated_label **sorted = label_counts_sorted(&t);
    assert_int_equal(t.count, NAMES);
    for (size_t i = 0; i < NAMES; i++) {
        assert_true(i == 0 || slice_compare(sorted[i - 1]->name, sorted[i]->name) < 0);
        snprintf(name, sizeof name, "label %d", (int)(sorted[i]->gold / 2));
        assert_true(slice_equal(sorted[i]->name, slice_of(name)));
    }
    free(sorted);
    label_counts_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ties_are_the_mean_over_their_orders),
        cmocka_unit_test(test_deciles_add_up),
        cmocka_unit_test(test_the_best_ranking_has_all),
        cmocka_unit_test(test_nothing_to_measure),
        cmocka_unit_test(test_a_text_leaves_nothing_behind),
        cmocka_unit_test(test_gold_is_sorted),
        cmocka_unit_test(test_calibration_error),
        cmocka_unit_test(test_deciles_of_frequency),
        cmocka_unit_test(test_label_counts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
