/* Ranking metrics: see metrics.h. Everything is computed from runs of equal scores: a label of a run that covers the
 * ranks start..end stands among the first k with the chance (min(end, k) - start) / (end - start), and is worth the
 * mean of the discounts of the ranks within both. So the cost of a text is its labels up to the deepest cutoff, once,
 * and its hits times the cutoffs. */
#include "engine/metrics.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static size_t at_most(size_t a, size_t b)
{
    return a < b ? a : b;
}

void cutoffs_set(struct cutoffs *c, const size_t *at, size_t count)
{
    assert(count >= 1 && count <= METRICS_CUTOFFS_MAX);
    c->count = count;
    c->deepest = 0;
    for (size_t i = 0; i < count; i++) {
        assert(at[i] >= 1 && at[i] <= METRICS_RANK_MAX);
        c->at[i] = at[i];
        c->deepest = at[i] > c->deepest ? at[i] : c->deepest;
    }
    c->discounts[0] = 0;
    for (size_t k = 1; k <= METRICS_RANK_MAX; k++) {
        c->discounts[k] = c->discounts[k - 1] + 1 / log2((double)k + 1);
    }
}

/* ---- one text ---- */

size_t ties_end(const struct ranked_label *labels, size_t labels_count, size_t start)
{
    size_t end = start + 1;
    while (end < labels_count && labels[end].score == labels[start].score) {
        end++;
    }
    return end;
}

double ties_chance(size_t start, size_t end, size_t k)
{
    return k <= start ? 0 : (double)(at_most(end, k) - start) / (double)(end - start);
}

/* One hit somewhere on the ranks start..end, of a text with gold_count gold labels. */
static void hit_add(struct metrics_part *at, const struct cutoffs *c, size_t start, size_t end, size_t gold_count,
                    double inverse)
{
    for (size_t i = 0; i < c->count; i++) {
        size_t k = c->at[i];
        if (k <= start) {
            continue;
        }
        double chance = ties_chance(start, end, k);
        double discount = (c->discounts[at_most(end, k)] - c->discounts[start]) / (double)(end - start);
        double ndcg = discount / c->discounts[at_most(gold_count, k)];
        at[i].hits += chance;
        at[i].recall += chance / (double)gold_count;
        at[i].ndcg += ndcg;
        at[i].gain += chance * inverse;
        at[i].gain_dcg += ndcg * inverse;
    }
}

static void best_set(struct metrics_best *best, const struct cutoffs *c, const struct gold_label *gold,
                     size_t gold_count)
{
    for (size_t i = 0; i < c->count; i++) {
        size_t reached = at_most(gold_count, c->at[i]);
        double gain = 0, dcg = 0;
        for (size_t g = 0; g < reached; g++) {
            gain += gold[g].inverse;
            dcg += gold[g].inverse * (c->discounts[g + 1] - c->discounts[g]);
        }
        best[i] = (struct metrics_best){gain, dcg / c->discounts[reached]};
    }
}

void metrics_text(const struct cutoffs *c, const struct gold_label *gold, size_t gold_count,
                  const struct ranked_label *labels, size_t labels_count, struct metrics_text *out,
                  struct metrics_deciles *deciles)
{
    assert(gold_count > 0);
    out->labels = labels_count;
    out->first_score = labels_count ? (double)labels[0].score : 0;
    out->first_hit = 0;
    memset(out->at, 0, c->count * sizeof *out->at);
    best_set(out->best, c, gold, gold_count);
    for (size_t start = 0, end; start < at_most(labels_count, c->deepest); start = end) {
        end = ties_end(labels, labels_count, start);
        for (size_t i = start; i < end; i++) {
            if (labels[i].gold == METRICS_NOT_GOLD) {
                continue;
            }
            const struct gold_label *hit = &gold[labels[i].gold];
            hit_add(out->at, c, start, end, gold_count, hit->inverse);
            if (deciles) {
                hit_add(deciles->at[hit->decile], c, start, end, gold_count, hit->inverse);
            }
            out->first_hit += ties_chance(start, end, 1);
        }
    }
    for (size_t g = 0; deciles && g < gold_count; g++) {
        deciles->gold[gold[g].decile]++;
    }
}

/* Insertion: gold labels are few, and equal ones keep their order. */
void gold_sort(struct gold_label *gold, size_t gold_count, uint32_t *order)
{
    for (size_t i = 0; i < gold_count; i++) {
        struct gold_label moved = gold[i];
        size_t to = i;
        for (; to > 0 && gold[to - 1].inverse < moved.inverse; to--) {
            gold[to] = gold[to - 1];
        }
        gold[to] = moved;
        if (order) {
            for (size_t j = 0; j < i; j++) {
                order[j] += order[j] >= to;
            }
            order[i] = (uint32_t)to;
        }
    }
}

/* ---- a test set ---- */

static void part_add(struct metrics_part *sum, const struct metrics_part *part)
{
    sum->hits += part->hits;
    sum->recall += part->recall;
    sum->ndcg += part->ndcg;
    sum->gain += part->gain;
    sum->gain_dcg += part->gain_dcg;
}

void metrics_add(struct metrics_sums *sums, const struct cutoffs *c, const struct metrics_text *text)
{
    sums->n++;
    for (size_t i = 0; i < c->count; i++) {
        part_add(&sums->at[i], &text->at[i]);
        sums->best[i].gain += text->best[i].gain;
        sums->best[i].gain_dcg += text->best[i].gain_dcg;
    }
    if (text->labels) {
        double bin = ceil(text->first_score * METRICS_BINS) - 1;
        struct metrics_bin *b = &sums->bins[bin < 0 ? 0 : bin < METRICS_BINS ? (int)bin : METRICS_BINS - 1];
        b->n++;
        b->score += text->first_score;
        b->hits += text->first_hit;
    }
}

void metrics_merge(struct metrics_sums *sums, const struct metrics_sums *more)
{
    sums->n += more->n;
    for (size_t i = 0; i < METRICS_CUTOFFS_MAX; i++) {
        part_add(&sums->at[i], &more->at[i]);
        sums->best[i].gain += more->best[i].gain;
        sums->best[i].gain_dcg += more->best[i].gain_dcg;
    }
    for (size_t i = 0; i < METRICS_BINS; i++) {
        sums->bins[i].n += more->bins[i].n;
        sums->bins[i].score += more->bins[i].score;
        sums->bins[i].hits += more->bins[i].hits;
    }
}

static struct metrics_values values_of(const struct metrics_part *part, const struct metrics_sums *sums,
                                       const struct cutoffs *c, size_t cutoff)
{
    double n = (double)sums->n; /* 0 / 0 is the NaN that "not defined" asks for */
    return (struct metrics_values){
        .precision = 100 * part->hits / (double)c->at[cutoff] / n,
        .recall = 100 * part->recall / n,
        .ndcg = 100 * part->ndcg / n,
        .psp = 100 * part->gain / sums->best[cutoff].gain,
        .psndcg = 100 * part->gain_dcg / sums->best[cutoff].gain_dcg,
    };
}

struct metrics_values metrics_values(const struct metrics_sums *sums, const struct cutoffs *c, size_t cutoff)
{
    return values_of(&sums->at[cutoff], sums, c, cutoff);
}

struct metrics_values metrics_decile_values(const struct metrics_sums *sums, const struct metrics_deciles *deciles,
                                            const struct cutoffs *c, unsigned decile, size_t cutoff)
{
    return values_of(&deciles->at[decile][cutoff], sums, c, cutoff);
}

double metrics_calibration_error(const struct metrics_sums *sums)
{
    double n = 0, off = 0;
    for (size_t i = 0; i < METRICS_BINS; i++) {
        n += sums->bins[i].n;
        off += fabs(sums->bins[i].score - sums->bins[i].hits);
    }
    return 100 * off / n;
}

/* ---- deciles of label frequency ---- */

static int by_rising_count(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

void deciles_cut(struct decile out[METRICS_DECILES], uint64_t *counts, size_t n)
{
    unsigned decile = 0;
    memset(out, 0, METRICS_DECILES * sizeof *out);
    if (n) {
        qsort(counts, n, sizeof *counts, by_rising_count);
    }
    for (size_t i = 0; i < n; i++) {
        if (i == 0 || counts[i] != counts[i - 1]) {
            decile = (unsigned)(i * METRICS_DECILES / n);
        }
        struct decile *d = &out[decile];
        d->count_min = d->labels ? d->count_min : counts[i];
        d->count_max = counts[i];
        d->labels++;
    }
}

unsigned decile_of(const struct decile deciles[METRICS_DECILES], uint64_t count)
{
    unsigned found = 0;
    for (unsigned d = 0; d < METRICS_DECILES; d++) {
        if (deciles[d].labels && deciles[d].count_min <= count) {
            found = d;
        }
    }
    return found;
}
