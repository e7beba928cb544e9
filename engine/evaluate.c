/* Evaluation: predictions against gold labels. What is measured, and the formulas, are metrics.c's; here names become
 * what it needs: each text's gold labels with their 1/p and decile, and the prediction's labels with what they hit.
 * The surprise: labels of equal score share their ranks, else the hash that orders ties would decide: on debtags, where
 * labels share a text, by 1.5 points of P@1. For that every label is asked for, so that a run of ties is seen to its
 * end. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"

struct evaluation {
    struct engine *g;
    struct evaluation_options options;
    struct predict_options predict;
    struct cutoffs cutoffs;
    struct decile deciles[METRICS_DECILES];
    double c; /* C of the propensity model; NaN where N < 3 */
    struct metrics_sums sums;
    struct metrics_deciles by_decile;
    struct label_counts by_label;
    /* The labels of the text in hand: [labels_capacity]. */
    struct ranked_label *labels;
    const struct slice **names;
    size_t labels_capacity;
};

/* ---- opening ---- */

struct counts {
    uint64_t *values;
    size_t count, capacity;
};

static int count_add(const struct memory_label *label, void *context)
{
    struct counts *counts = context;
    if (counts->count == counts->capacity) {
        counts->capacity = counts->capacity ? 2 * counts->capacity : 1024;
        counts->values = mem_resize(counts->values, counts->capacity * sizeof *counts->values);
    }
    counts->values[counts->count++] = label->instances;
    return 0;
}

/* N, and how many instances each label of the memory has. */
static int counts_from_memory(struct memory *memory, uint64_t *n, struct counts *out, struct error *e)
{
    struct snapshot *snapshot;
    struct memory_stats stats;
    if (memory_look(memory, &snapshot, e)) {
        return -1;
    }
    int failed = snapshot_stats(snapshot, &stats, e);
    if (!failed) {
        *n = stats.instances;
        memory_stats_free(&stats);
        failed = snapshot_each_label(snapshot, count_add, out, e);
    }
    snapshot_release(snapshot);
    return failed;
}

int evaluation_open(struct evaluation **out, struct engine *g, const struct evaluation_options *options,
                    struct error *e)
{
    const struct propensity_source *source = &options->propensity;
    struct counts counts = {0};
    uint64_t n = source->n;
    *out = NULL;
    if (!source->from_train) {
        if (counts_from_memory(g->memory, &n, &counts, e)) {
            free(counts.values);
            return -1;
        }
    } else if (source->names_count) {
        counts = (struct counts){mem_alloc(source->names_count * sizeof *counts.values), source->names_count, 0};
        memcpy(counts.values, source->name_counts, source->names_count * sizeof *counts.values);
    }
    struct evaluation *v = mem_zero(1, sizeof *v);
    v->g = g;
    v->options = *options;
    v->predict = g->options;
    v->predict.labels_max = 0;
    v->predict.min_score = 0;
    v->predict.evidence_max = 0;
    v->c = n < 3 ? (double)NAN : (log((double)n) - 1) * pow(source->b + 1, source->a);
    cutoffs_set(&v->cutoffs, options->at, options->at_count);
    deciles_cut(v->deciles, counts.values, counts.count);
    free(counts.values);
    *out = v;
    return 0;
}

void evaluation_close(struct evaluation *v)
{
    if (v) {
        label_counts_free(&v->by_label);
        free(v->names);
        free(v->labels);
        free(v);
    }
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

/* N_l; 0 for a label that nobody knows. */
static int label_count(const struct evaluation *v, const struct snapshot *snapshot, struct slice name, uint64_t *out,
                       struct error *e)
{
    struct memory_label label;
    if (v->options.propensity.from_train) {
        *out = count_in_train(&v->options.propensity, name);
        return 0;
    }
    int found = snapshot_label_named(snapshot, name, &label, e);
    *out = found > 0 ? label.instances : 0;
    return found < 0 ? -1 : 0;
}

/* ---- one text ---- */

struct gold {
    struct slice *names; /* sorted by bytes */
    uint32_t *places;    /* of each name, its place in labels */
    struct gold_label *labels;
    size_t count;
};

static void gold_free(struct gold *gold)
{
    free(gold->labels);
    free(gold->places);
    free(gold->names);
}

/* The names that do not count for one text: left out of the gold and of the prediction alike. */
struct unwanted {
    const struct slice *self; /* with exclude_self, else NULL */
    const struct left_out *others;
};

static bool is_unwanted(const struct unwanted *u, struct slice name)
{
    bool is = u->self && slice_equal(name, *u->self);
    for (size_t i = 0; u->others && !is && i < u->others->count; i++) {
        is = slice_equal(name, u->others->labels[i]);
    }
    return is;
}

static int gold_fill(struct gold *gold, const struct evaluation *v, const struct snapshot *snapshot,
                     const struct instance_record *text, const struct unwanted *unwanted, struct error *e)
{
    const struct propensity_source *source = &v->options.propensity;
    gold->names = mem_alloc(text->labels_count * sizeof *gold->names);
    gold->places = mem_alloc(text->labels_count * sizeof *gold->places);
    gold->labels = mem_alloc(text->labels_count * sizeof *gold->labels);
    for (size_t i = 0; i < text->labels_count; i++) {
        uint64_t count;
        if (is_unwanted(unwanted, text->labels[i])) {
            continue;
        }
        if (label_count(v, snapshot, text->labels[i], &count, e)) {
            return -1;
        }
        gold->names[gold->count] = text->labels[i];
        gold->labels[gold->count++] = (struct gold_label){
            .inverse = 1 + v->c * pow((double)count + source->b, -source->a), .decile = decile_of(v->deciles, count)};
    }
    gold_sort(gold->labels, gold->count, gold->places);
    return 0;
}

static int32_t gold_find(const struct gold *gold, struct slice name)
{
    size_t low = 0, high = gold->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = slice_compare(gold->names[middle], name);
        if (order == 0) {
            return (int32_t)gold->places[middle];
        }
        low = order < 0 ? middle + 1 : low;
        high = order < 0 ? high : middle;
    }
    return METRICS_NOT_GOLD;
}

/* The one place that looks into a prediction: v->labels and v->names. Returns how many labels there are. */
static size_t labels_fill(struct evaluation *v, const struct prediction *p, const struct gold *gold,
                          const struct unwanted *unwanted)
{
    size_t count = 0;
    if (p->labels_count > v->labels_capacity) {
        v->labels_capacity = 2 * p->labels_count;
        v->labels = mem_resize(v->labels, v->labels_capacity * sizeof *v->labels);
        v->names = mem_resize(v->names, v->labels_capacity * sizeof *v->names);
    }
    for (size_t i = 0; i < p->labels_count; i++) {
        const struct predicted_label *label = &p->labels[i];
        if (!is_unwanted(unwanted, label->label)) {
            v->labels[count] = (struct ranked_label){label->score, gold_find(gold, label->label)};
            v->names[count++] = &label->label;
        }
    }
    return count;
}

static void labels_count(struct evaluation *v, const struct gold *gold, size_t count)
{
    for (size_t i = 0; i < gold->count; i++) {
        label_counts_of(&v->by_label, gold->names[i])->gold++;
    }
    for (size_t start = 0, end; start < count && start < v->cutoffs.deepest; start = end) {
        end = ties_end(v->labels, count, start);
        for (size_t i = start; i < end; i++) {
            struct evaluated_label *label = label_counts_of(&v->by_label, *v->names[i]);
            for (size_t k = 0; k < v->cutoffs.count; k++) {
                double chance = ties_chance(start, end, v->cutoffs.at[k]);
                label->predicted[k] += chance;
                label->hits[k] += v->labels[i].gold == METRICS_NOT_GOLD ? 0 : chance;
            }
        }
    }
}

static int text_evaluate(struct evaluation *v, const struct snapshot *snapshot, const struct instance_record *text,
                         const struct left_out *left_out, const struct prediction *p, struct error *e)
{
    const struct unwanted unwanted = {v->options.exclude_self ? &text->id : NULL, left_out};
    struct gold gold = {0};
    int result = gold_fill(&gold, v, snapshot, text, &unwanted, e);
    if (result == 0 && gold.count) {
        struct metrics_text values;
        size_t count = labels_fill(v, p, &gold, &unwanted);
        metrics_text(&v->cutoffs, gold.labels, gold.count, v->labels, count, &values, &v->by_decile);
        metrics_add(&v->sums, &v->cutoffs, &values);
        if (v->options.per_label) {
            labels_count(v, &gold, count);
        }
    }
    gold_free(&gold);
    return result;
}

int evaluation_add(struct evaluation *v, const struct instance_record *texts, const struct left_out *left_out, size_t n,
                   struct error *e)
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
    if (engine_predict_with(v->g, &v->predict, inputs, n, predictions, NULL, e) ||
        memory_look(v->g->memory, &snapshot, e)) {
        goto done;
    }
    for (size_t i = 0; i < n; i++) {
        if (text_evaluate(v, snapshot, &texts[i], left_out ? &left_out[i] : NULL, &predictions[i], e)) {
            goto done;
        }
    }
    result = 0;
done:
    snapshot_release(snapshot);
    for (size_t i = 0; i < n; i++) {
        prediction_free(&predictions[i]);
        tokens_free(&tokens[i]);
    }
    free(predictions);
    free(inputs);
    free(tokens);
    return result;
}

/* ---- results ---- */

void evaluation_metrics(const struct evaluation *v, struct metrics *out)
{
    *out = (struct metrics){.n = v->sums.n, .calibration_error = metrics_calibration_error(&v->sums)};
    for (size_t k = 0; k < v->cutoffs.count; k++) {
        out->at[k] = metrics_values(&v->sums, &v->cutoffs, k);
    }
    for (unsigned d = 0; d < METRICS_DECILES; d++) {
        struct metrics_decile *decile = &out->deciles[d];
        decile->labels = v->deciles[d];
        decile->gold = v->by_decile.gold[d];
        for (size_t k = 0; k < v->cutoffs.count; k++) {
            decile->at[k] = metrics_decile_values(&v->sums, &v->by_decile, &v->cutoffs, d, k);
            decile->recall[k] = 100 * v->by_decile.at[d][k].hits / (double)decile->gold;
        }
    }
}

int evaluation_each_label(const struct evaluation *v, int (*each)(const struct evaluated_label *l, void *context),
                          void *context, struct error *e)
{
    const struct evaluated_label **sorted = label_counts_sorted(&v->by_label);
    struct snapshot *snapshot = NULL;
    int result = memory_look(v->g->memory, &snapshot, e);
    for (size_t i = 0; result == 0 && i < v->by_label.count; i++) {
        struct evaluated_label label = *sorted[i];
        result = label_count(v, snapshot, label.name, &label.train, e);
        if (result == 0 && each(&label, context)) {
            break;
        }
    }
    snapshot_release(snapshot);
    free(sorted);
    return result;
}
