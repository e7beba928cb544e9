/* Ranking metrics of one text after another, summed. It knows neither engine nor store nor names: a text is its
 * predicted labels in falling score and what its gold labels weigh. No allocation anywhere, so that a tuner may call it
 * for every pair of text and setting; a text's own values can be read, for standard errors of paired differences.
 * The surprise: labels of equal score share their ranks, and every value is the mean over all orders that they could
 * stand in (McSherry and Najork, "Computing information retrieval performance measures efficiently in the presence of
 * tied scores", ECIR 2008). So a hit within a run of ties counts in parts. */
#ifndef ENGRAM_ENGINE_METRICS_H
#define ENGRAM_ENGINE_METRICS_H

#include <stddef.h>
#include <stdint.h>

enum {
    METRICS_CUTOFFS_MAX = 8,
    METRICS_RANK_MAX = 1000, /* the deepest cutoff there may be */
    METRICS_DECILES = 10,
    METRICS_BINS = 10, /* of the calibration error */
    METRICS_NOT_GOLD = -1,
};

/* The k's of P@k and the others, in the order in which they were asked for; read-only after cutoffs_set. */
struct cutoffs {
    size_t count;
    size_t at[METRICS_CUTOFFS_MAX];
    size_t deepest;
    double discounts[METRICS_RANK_MAX + 1]; /* [k]: sum of 1 / log2(r + 1) over the ranks r = 1..k */
};

/* at[count]: each 1 to METRICS_RANK_MAX, count 1 to METRICS_CUTOFFS_MAX. */
void cutoffs_set(struct cutoffs *c, const size_t *at, size_t count);

/* ---- one text ---- */

struct gold_label {
    double inverse;  /* 1/p, of the propensity model; NaN where it is not defined */
    unsigned decile; /* of label frequency, from 0 (the rarest) */
};

struct ranked_label {
    float score;
    int32_t gold; /* index into the text's gold labels, or METRICS_NOT_GOLD */
};

/* The parts of the metrics at one k that hits make up; of one text, or summed over texts. */
struct metrics_part {
    double hits;     /* gold labels among the first k; P@k is hits / k */
    double recall;   /* hits / gold labels: R@k */
    double ndcg;     /* DCG / ideal DCG: nDCG@k */
    double gain;     /* sum of 1/p over the hits: the numerator of PSP@k */
    double gain_dcg; /* sum of 1/p / log2(rank + 1) over the hits, / ideal DCG: the numerator of PSnDCG@k */
};

/* The same of the best choice of k labels: the gold labels by falling 1/p. What PSP@k and PSnDCG@k are divided by. */
struct metrics_best {
    double gain, gain_dcg;
};

struct metrics_text {
    size_t labels;                               /* predicted ones; 0: the two below mean nothing */
    double first_score;                          /* of the first label, as a confidence */
    double first_hit;                            /* 1 where it is gold; a run of ties: the share of it that is */
    struct metrics_part at[METRICS_CUTOFFS_MAX]; /* by cutoff; the rest is not set */
    struct metrics_best best[METRICS_CUTOFFS_MAX];
};

/* By decile of label frequency: the parts that hits on its labels make up, so that the ten add up to the whole. */
struct metrics_deciles {
    uint64_t gold[METRICS_DECILES]; /* gold labels of all texts */
    struct metrics_part at[METRICS_DECILES][METRICS_CUTOFFS_MAX];
};

/* gold[gold_count]: by falling 1/p (gold_sort), at least one. labels[labels_count]: by falling score, each gold label
 * at most once, and the run of ties that stands at the deepest cutoff to its end; ranks behind the last label are
 * misses. *out is overwritten; *deciles (NULL: not asked for) is added to, zero-initialise it. */
void metrics_text(const struct cutoffs *c, const struct gold_label *gold, size_t gold_count,
                  const struct ranked_label *labels, size_t labels_count, struct metrics_text *out,
                  struct metrics_deciles *deciles);

/* Sorts by falling 1/p. order[gold_count] (may be NULL) gets the place of each label as they stood before. */
void gold_sort(struct gold_label *gold, size_t gold_count, uint32_t *order);

/* The end of the run of equal scores that starts at labels[start]: its labels stand on the ranks start to end - 1,
 * counted from 0. */
size_t ties_end(const struct ranked_label *labels, size_t labels_count, size_t start);
/* The chance that one label of the run stands among the first k. */
double ties_chance(size_t start, size_t end, size_t k);

/* ---- a test set ---- */

struct metrics_sums { /* zero-initialise */
    uint64_t n;       /* texts */
    struct metrics_part at[METRICS_CUTOFFS_MAX];
    struct metrics_best best[METRICS_CUTOFFS_MAX];
    struct metrics_bin { /* texts by their first label's score: (0, 0.1], (0.1, 0.2] .. */
        double n, score, hits;
    } bins[METRICS_BINS];
};

void metrics_add(struct metrics_sums *sums, const struct cutoffs *c, const struct metrics_text *text);

void metrics_merge(struct metrics_sums *sums, const struct metrics_sums *more);

/* In percent; NaN where not defined.
 *   P@k       mean over the texts of hits among the first k / k
 *   R@k       mean of hits / gold labels
 *   nDCG@k    mean of DCG@k / sum of 1 / log2(r + 1) over r = 1..min(k, gold labels); DCG@k: the same sum over hits'
 *             ranks
 *   PSP@k     sum over the texts of the hits' 1/p / the same sum for the best choice of k labels (Jain, Prabhu and
 *             Varma, "Extreme multi-label loss functions", KDD 2016, normalised over the whole test set as pyxclib's
 *             psprecision)
 *   PSnDCG@k  as nDCG@k with 1/p as a hit's gain, summed over the texts / the same sum for the order of falling 1/p
 *             (the same paper, as pyxclib's psndcg) */
struct metrics_values {
    double precision, recall, ndcg, psp, psndcg;
};

struct metrics_values metrics_values(const struct metrics_sums *sums, const struct cutoffs *c, size_t cutoff);
/* What the labels of one decile give of them: the ten add up to metrics_values. */
struct metrics_values metrics_decile_values(const struct metrics_sums *sums, const struct metrics_deciles *deciles,
                                            const struct cutoffs *c, unsigned decile, size_t cutoff);

/* Expected calibration error of the first label, in percent: ten bins of equal width over its score, sum over bins of
 * (share of texts) * |mean score - share of hits| (Naeini, Cooper and Hauskrecht, "Obtaining well calibrated
 * probabilities using Bayesian binning", AAAI 2015; Guo et al., "On calibration of modern neural networks", ICML 2017,
 * equation 3). Texts for which no label was predicted have no confidence and are left out; NaN without any other. */
double metrics_calibration_error(const struct metrics_sums *sums);

/* ---- deciles of label frequency ---- */

/* Labels in rising order of their count cut into ten equal parts; labels of equal count belong together, to the part of
 * the first of them, so that a part may be empty. */
struct decile {
    uint64_t labels;
    uint64_t count_min, count_max; /* of its labels; both 0 where it has none */
};

/* counts[n] is sorted in place. */
void deciles_cut(struct decile out[METRICS_DECILES], uint64_t *counts, size_t n);
/* The decile, from 0, of a label of that count; one that nobody knows has count 0 and is of the first. */
unsigned decile_of(const struct decile deciles[METRICS_DECILES], uint64_t count);

#endif
