/* Evaluation: predictions against gold labels. The precision and propensity-scored metrics of Jain, Prabhu and Varma,
 * "Extreme multi-label loss functions" (KDD 2016), with PSP@k normalised over the whole test set as pyxclib does it:
 * sum of 1/p over the hits, divided by the same sum for the best possible choice of k labels.
 * The surprise: labels of equal score share their ranks. Each metric is the mean over all orders that they could stand
 * in (McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence of tied
 * scores", ECIR 2008), else the hash that orders ties would decide: on debtags, where labels share a text, by 1.5
 * points of P@1. For that every label is asked for, so that a run of ties is seen to its end. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"

enum { RANKS = 100 }; /* the deepest metric is R@100 */

static const size_t precision_at[3] = {1, 3, 5};
static const size_t recall_at[2] = {10, 100};

struct evaluation {
    struct engine *g;
    struct predict_options options;
    struct propensity_source propensity;
    bool exclude_self;
    double c; /* C of the propensity model; NaN where N < 3 */
    /* Sums over the texts. */
    uint64_t n;
    double precision[3], recall[2], ndcg5, psp[3], psp_best[3];
};

int evaluation_open(struct evaluation **out, struct engine *g, const struct propensity_source *propensity,
                    bool exclude_self, struct error *e)
{
    *out = NULL;
    uint64_t n = propensity->n;
    if (!propensity->from_train) {
        struct snapshot *snapshot;
        struct memory_stats stats;
        if (memory_snapshot(g->memory, &snapshot, e)) {
            return -1;
        }
        int failed = snapshot_stats(snapshot, &stats, e);
        snapshot_release(snapshot);
        if (failed) {
            return -1;
        }
        n = stats.instances;
        memory_stats_free(&stats);
    }
    struct evaluation *v = mem_zero(1, sizeof *v);
    v->g = g;
    v->options = g->options;
    v->options.labels_max = 0;
    v->options.min_score = 0;
    v->options.evidence_max = 0;
    v->propensity = *propensity;
    v->exclude_self = exclude_self;
    v->c = n < 3 ? (double)NAN : (log((double)n) - 1) * pow(propensity->b + 1, propensity->a);
    *out = v;
    return 0;
}

void evaluation_close(struct evaluation *v)
{
    free(v);
}

/* ---- propensities ---- */

static uint64_t count_in_train(const struct propensity_source *p, struct slice name)
{
    size_t low = 0, high = p->names_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (slice_compare(p->names[middle], name) < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < p->names_count && slice_equal(p->names[low], name) ? p->name_counts[low] : 0;
}

/* 1/p of a label; a label that nobody knows has N_l = 0. */
static int inverse_propensity(const struct evaluation *v, const struct snapshot *snapshot, struct slice name,
                              double *out, struct error *e)
{
    uint64_t count = 0;
    if (v->propensity.from_train) {
        count = count_in_train(&v->propensity, name);
    } else {
        struct memory_label label;
        int found = snapshot_label_named(snapshot, name, &label, e);
        if (found < 0) {
            return -1;
        }
        count = found ? label.instances : 0;
    }
    *out = 1 + v->c * pow((double)count + v->propensity.b, -v->propensity.a);
    return 0;
}

/* ---- one text ---- */

struct gold {
    const struct slice *names; /* sorted */
    double *inverse;           /* 1/p of each */
    size_t count;
};

static const struct slice *gold_find(const struct gold *gold, struct slice name)
{
    size_t low = 0, high = gold->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = slice_compare(gold->names[middle], name);
        if (order == 0) {
            return &gold->names[middle];
        }
        low = order < 0 ? middle + 1 : low;
        high = order < 0 ? high : middle;
    }
    return NULL;
}

static int by_falling_number(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x < y) - (x > y);
}

/* What stands at each rank, on average over the orders of equal scores. */
struct ranks {
    double hit[RANKS];  /* 1 for a gold label */
    double gain[RANKS]; /* 1/p of a gold label */
};

static void ranks_fill(struct ranks *out, const struct prediction *p, const struct gold *gold, const struct slice *self)
{
    size_t rank = 0;
    for (size_t i = 0; i < p->labels_count && rank < RANKS;) {
        float score = p->labels[i].score;
        double hits = 0, gain = 0;
        size_t tied = 0;
        for (; i < p->labels_count && p->labels[i].score == score; i++) {
            if (self && slice_equal(p->labels[i].label, *self)) {
                continue;
            }
            const struct slice *found = gold_find(gold, p->labels[i].label);
            hits += found != NULL;
            gain += found ? gold->inverse[found - gold->names] : 0;
            tied++;
        }
        for (size_t end = rank + tied; rank < end && rank < RANKS; rank++) {
            out->hit[rank] = hits / (double)tied;
            out->gain[rank] = gain / (double)tied;
        }
    }
}

static double sum_to(const double *values, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += values[i];
    }
    return sum;
}

/* Adds one text. Sorts gold->inverse. */
static void text_add(struct evaluation *v, const struct gold *gold, const struct ranks *ranks)
{
    double dcg = 0, ideal = 0;
    for (size_t r = 0; r < 5; r++) {
        dcg += ranks->hit[r] / log2((double)r + 2);
        ideal += (r < gold->count) / log2((double)r + 2);
    }
    v->n++;
    v->ndcg5 += dcg / ideal;
    for (size_t i = 0; i < 2; i++) {
        v->recall[i] += sum_to(ranks->hit, recall_at[i]) / (double)gold->count;
    }
    qsort(gold->inverse, gold->count, sizeof *gold->inverse, by_falling_number);
    for (size_t i = 0; i < 3; i++) {
        size_t k = precision_at[i];
        v->precision[i] += sum_to(ranks->hit, k) / (double)k;
        v->psp[i] += sum_to(ranks->gain, k);
        v->psp_best[i] += sum_to(gold->inverse, k < gold->count ? k : gold->count);
    }
}

static int text_evaluate(struct evaluation *v, const struct snapshot *snapshot, const struct instance_record *text,
                         const struct prediction *p, struct error *e)
{
    const struct slice *self = v->exclude_self ? &text->id : NULL;
    struct slice *names = mem_alloc(text->labels_count * sizeof *names);
    struct gold gold = {names, mem_alloc(text->labels_count * sizeof(double)), 0};
    struct ranks ranks = {0};
    int result = -1;
    for (size_t i = 0; i < text->labels_count; i++) {
        if (!self || !slice_equal(text->labels[i], *self)) {
            names[gold.count] = text->labels[i];
            if (inverse_propensity(v, snapshot, text->labels[i], &gold.inverse[gold.count], e)) {
                goto done;
            }
            gold.count++;
        }
    }
    if (gold.count) {
        ranks_fill(&ranks, p, &gold, self);
        text_add(v, &gold, &ranks);
    }
    result = 0;
done:
    free(gold.inverse);
    free(names);
    return result;
}

int evaluation_add(struct evaluation *v, const struct instance_record *texts, size_t n, struct error *e)
{
    struct tokens *tokens = mem_zero(n, sizeof *tokens);
    const struct tokens **inputs = mem_alloc(n * sizeof *inputs);
    struct prediction *predictions = mem_zero(n, sizeof *predictions);
    struct snapshot *snapshot = NULL;
    int result = -1;
    for (size_t i = 0; i < n; i++) {
        encoder_tokenize(v->g->encoder, ENCODER_TEXT, texts[i].text, &tokens[i]);
        inputs[i] = &tokens[i];
    }
    if (engine_predict_with(v->g, &v->options, inputs, n, predictions, NULL, e) ||
        memory_snapshot(v->g->memory, &snapshot, e)) {
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        if (text_evaluate(v, snapshot, &texts[i], &predictions[i], e)) {
            goto done;
        }
    }
    result = 0;
done:
    if (snapshot) {
        snapshot_release(snapshot);
    }
    for (size_t i = 0; i < n; i++) {
        prediction_free(&predictions[i]);
        tokens_free(&tokens[i]);
    }
    free(predictions);
    free(inputs);
    free(tokens);
    return result;
}

void evaluation_metrics(const struct evaluation *v, struct metrics *out)
{
    double n = (double)v->n; /* 0 / 0 is the NaN that "not defined" asks for */
    *out = (struct metrics){.ndcg5 = 100 * v->ndcg5 / n, .n = v->n};
    for (size_t i = 0; i < 3; i++) {
        out->precision[i] = 100 * v->precision[i] / n;
        out->psp[i] = isnan(v->c) ? (double)NAN : 100 * v->psp[i] / v->psp_best[i];
    }
    for (size_t i = 0; i < 2; i++) {
        out->recall[i] = 100 * v->recall[i] / n;
    }
}
