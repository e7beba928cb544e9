/* One text's matches scored by every setting of a grid. What settings share is done once: ranking for each lexical
 * weight, the labels that the b best keys name for each pool and b, the sums of weights for each tau; lambda only mixes
 * the two kinds' sums. The surprise: lambda 0 and 1 leave one kind out before the b best are taken, so the three cases
 * are walked one after another. */
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"

enum { TOP_SMALL = 16 }; /* up to this depth the best are kept in order while looking; else all are sorted */

size_t grid_count(const struct grid *g)
{
    return ((size_t)g->joint + (size_t)g->apart) * g->lambdas_count * g->taus_count * g->bs_count * g->lexicals_count;
}

/* Settings by lexical, pool, b, tau, lambda, the last the fastest. */
static size_t setting_index(const struct grid *g, size_t lexical, size_t pool, size_t b, size_t tau, size_t lambda)
{
    size_t pools = (size_t)g->joint + (size_t)g->apart;
    return (((lexical * pools + pool) * g->bs_count + b) * g->taus_count + tau) * g->lambdas_count + lambda;
}

struct setting grid_setting(const struct grid *g, size_t i)
{
    size_t pools = (size_t)g->joint + (size_t)g->apart;
    struct setting s = {.lambda = g->lambdas[i % g->lambdas_count]};
    i /= g->lambdas_count;
    s.tau = g->taus[i % g->taus_count];
    i /= g->taus_count;
    s.b = g->bs[i % g->bs_count];
    i /= g->bs_count;
    s.apart = pools == 2 ? i % pools == 1 : g->apart;
    s.lexical = g->lexicals[i / pools];
    return s;
}

struct search grid_search(const struct grid *g, size_t lexical_candidates)
{
    struct search s = {0};
    for (size_t i = 0; i < g->lambdas_count; i++) {
        s.kinds[INSTANCES] |= g->lambdas[i] > 0;
        s.kinds[LABELS] |= g->lambdas[i] < 1;
    }
    for (size_t i = 0; i < g->lexicals_count; i++) {
        s.lexical |= g->lexicals[i] > 0;
        size_t count = g->lexicals[i] > 0 ? lexical_candidates : 0;
        s.count = s.count > count ? s.count : count;
    }
    for (size_t i = 0; i < g->bs_count; i++) {
        s.count = s.count > g->bs[i] ? s.count : g->bs[i];
    }
    return s;
}

/* ---- a scorer ---- */

/* What one thread needs for one text after another. */
struct scorer {
    const struct grid *grid;
    size_t lexical_candidates, depth, b_max;
    size_t matches_max;          /* of a kind */
    struct match *ranked[KINDS]; /* [matches_max] */
    double *weights[KINDS];      /* [matches_max] */
    struct tally tally;          /* the labels of the matches at hand */
    uint32_t *places;            /* their places in the tally, match by match, instances first */
    uint32_t *places_end[KINDS]; /* [matches_max]: where each match's end */
    size_t places_capacity;
    size_t labels_capacity;
    double *sums[KINDS];         /* [labels_capacity] by place */
    int32_t *gold;               /* [labels_capacity]: gold's index, METRICS_NOT_GOLD, or UNWANTED */
    float *scores;               /* [labels_capacity] */
    struct ranked_label *labels; /* [labels_capacity]: the result */
    uint32_t *ids;               /* [labels_capacity] */
    struct scored {
        float score;
        uint32_t place;
    } * best; /* [labels_capacity] */
};

enum { UNWANTED = -2 };

struct scorer *scorer_open(const struct grid *grid, size_t lexical_candidates, size_t depth)
{
    struct scorer *s = mem_zero(1, sizeof *s);
    s->grid = grid;
    s->lexical_candidates = lexical_candidates;
    s->depth = depth;
    s->matches_max = grid_search(grid, lexical_candidates).count;
    for (size_t i = 0; i < grid->bs_count; i++) {
        s->b_max = grid->bs[i] > s->b_max ? grid->bs[i] : s->b_max;
    }
    for (int kind = 0; kind < KINDS; kind++) {
        s->ranked[kind] = mem_alloc(s->matches_max * sizeof *s->ranked[kind]);
        s->weights[kind] = mem_alloc(s->matches_max * sizeof *s->weights[kind]);
        s->places_end[kind] = mem_alloc(s->matches_max * sizeof *s->places_end[kind]);
    }
    return s;
}

void scorer_close(struct scorer *s)
{
    for (int kind = 0; kind < KINDS; kind++) {
        free(s->ranked[kind]);
        free(s->weights[kind]);
        free(s->places_end[kind]);
        free(s->sums[kind]);
    }
    tally_free(&s->tally);
    free(s->places);
    free(s->gold);
    free(s->scores);
    free(s->labels);
    free(s->ids);
    free(s->best);
    free(s);
}

static void labels_reserve(struct scorer *s)
{
    if (s->tally.count <= s->labels_capacity) {
        return;
    }
    s->labels_capacity = 2 * (size_t)s->tally.count;
    for (int kind = 0; kind < KINDS; kind++) {
        s->sums[kind] = mem_resize(s->sums[kind], s->labels_capacity * sizeof *s->sums[kind]);
    }
    s->gold = mem_resize(s->gold, s->labels_capacity * sizeof *s->gold);
    s->scores = mem_resize(s->scores, s->labels_capacity * sizeof *s->scores);
    s->labels = mem_resize(s->labels, s->labels_capacity * sizeof *s->labels);
    s->ids = mem_resize(s->ids, s->labels_capacity * sizeof *s->ids);
    s->best = mem_resize(s->best, s->labels_capacity * sizeof *s->best);
}

/* Notes the labels of the matches, and which of them are gold. */
static int labels_note(struct scorer *s, const struct snapshot *snapshot, const struct matches *m,
                       const struct judged *text, struct error *e)
{
    uint32_t end = 0;
    tally_clear(&s->tally);
    for (int kind = 0; kind < KINDS; kind++) {
        for (uint32_t i = 0; i < m->counts[kind]; i++) {
            const uint32_t *labels;
            size_t count;
            if (snapshot_values(snapshot, m->of[kind][i].slot, &labels, &count, e)) {
                return -1;
            }
            if (end + count > s->places_capacity) {
                s->places_capacity = 2 * (end + count);
                s->places = mem_resize(s->places, s->places_capacity * sizeof *s->places);
            }
            for (size_t l = 0; l < count; l++) {
                s->places[end++] = tally_place(&s->tally, labels[l]);
            }
            s->places_end[kind][i] = end;
        }
    }
    labels_reserve(s);
    for (uint32_t i = 0; i < s->tally.count; i++) {
        s->gold[i] = METRICS_NOT_GOLD;
    }
    for (size_t i = 0; i < text->gold_count; i++) {
        uint32_t at = tally_find(&s->tally, text->gold_ids[i]);
        if (at != NO_LABEL) {
            s->gold[at] = (int32_t)i;
        }
    }
    for (size_t i = 0; i < text->unwanted_count; i++) {
        uint32_t at = tally_find(&s->tally, text->unwanted[i]);
        if (at != NO_LABEL) {
            s->gold[at] = UNWANTED;
        }
    }
    return 0;
}

static void labels_sum(struct scorer *s, const struct matches *m)
{
    uint32_t next = 0;
    for (int kind = 0; kind < KINDS; kind++) {
        memset(s->sums[kind], 0, s->tally.count * sizeof *s->sums[kind]);
        for (uint32_t i = 0; i < m->counts[kind]; i++) {
            for (; next < s->places_end[kind][i]; next++) {
                s->sums[kind][s->places[next]] += s->weights[kind][i];
            }
        }
    }
}

static int by_falling_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    return x->score != y->score ? (x->score < y->score) - (x->score > y->score)
                                : (x->place > y->place) - (x->place < y->place);
}

/* The score that a label must reach to stand among the first `depth`, ties included. */
static float score_needed(const struct scorer *s, uint32_t count)
{
    float best[TOP_SMALL];
    size_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        float score = s->scores[i];
        if (kept == s->depth && score <= best[kept - 1]) {
            continue;
        }
        size_t at = kept < s->depth ? kept++ : kept - 1;
        for (; at > 0 && best[at - 1] < score; at--) {
            best[at] = best[at - 1];
        }
        best[at] = score;
    }
    return kept == s->depth ? best[kept - 1] : 0;
}

/* The best labels by falling score, to the end of the run of ties at `depth`. */
static size_t labels_rank(struct scorer *s, double lambda)
{
    uint32_t count = s->tally.count;
    size_t kept = 0;
    for (uint32_t i = 0; i < count; i++) {
        s->scores[i] =
            s->gold[i] == UNWANTED ? -1 : (float)(lambda * s->sums[INSTANCES][i] + (1 - lambda) * s->sums[LABELS][i]);
    }
    float needed = s->depth <= TOP_SMALL ? score_needed(s, count) : 0;
    for (uint32_t i = 0; i < count; i++) {
        if (s->scores[i] >= needed) {
            s->best[kept++] = (struct scored){s->scores[i], i};
        }
    }
    if (kept) {
        qsort(s->best, kept, sizeof *s->best, by_falling_score);
    }
    for (size_t i = 0; i < kept; i++) {
        s->labels[i] = (struct ranked_label){s->best[i].score, s->gold[s->best[i].place]};
        s->ids[i] = s->tally.labels[s->best[i].place];
    }
    return kept;
}

/* ---- a text ---- */

/* lambda 0: label keys alone are candidates; 1: instance keys alone; between: both. */
static int lambda_case(double lambda)
{
    return lambda <= 0 ? 0 : lambda >= 1 ? 2 : 1;
}

static bool case_occurs(const struct grid *g, int which)
{
    for (size_t i = 0; i < g->lambdas_count; i++) {
        if (lambda_case(g->lambdas[i]) == which) {
            return true;
        }
    }
    return false;
}

/* All taus and lambdas of one case, for the matches as cut. */
static void case_score(struct scorer *s, const struct matches *m, bool apart, int which, size_t base, scorer_each *each,
                       void *context)
{
    const struct grid *g = s->grid;
    for (size_t t = 0; t < g->taus_count; t++) {
        matches_weigh(m, apart, g->taus[t], s->weights);
        labels_sum(s, m);
        for (size_t l = 0; l < g->lambdas_count; l++) {
            if (lambda_case(g->lambdas[l]) == which) {
                size_t count = labels_rank(s, g->lambdas[l]);
                each(context, base + t * g->lambdas_count + l, s->labels, s->ids, count);
            }
        }
    }
}

int scorer_text(struct scorer *s, const struct snapshot *snapshot, const struct judged *text, scorer_each *each,
                void *context, struct error *e)
{
    const struct grid *g = s->grid;
    for (size_t x = 0; x < g->lexicals_count; x++) {
        struct matches all = {.of = {s->ranked[INSTANCES], s->ranked[LABELS]}};
        size_t most = g->lexicals[x] > 0 ? s->lexical_candidates : s->b_max;
        for (int kind = 0; kind < KINDS; kind++) {
            uint32_t count = text->matches.counts[kind];
            count = count < most ? count : (uint32_t)most;
            if (count) {
                memcpy(all.of[kind], text->matches.of[kind], count * sizeof *all.of[kind]);
            }
            all.counts[kind] = matches_rank(all.of[kind], count, g->lexicals[x], s->b_max);
        }
        for (int which = 0; which < 3; which++) {
            struct matches mine = all;
            mine.counts[INSTANCES] = which == 0 ? 0 : mine.counts[INSTANCES];
            mine.counts[LABELS] = which == 2 ? 0 : mine.counts[LABELS];
            for (size_t cut = 0; case_occurs(g, which) && cut < 2 * g->bs_count; cut++) {
                bool apart = cut >= g->bs_count;
                size_t b = cut % g->bs_count, pool = apart && g->joint ? 1 : 0;
                struct matches m = mine;
                if (!(apart ? g->apart : g->joint)) {
                    continue;
                }
                matches_cut(&m, apart, g->bs[b]);
                if (labels_note(s, snapshot, &m, text, e)) {
                    return -1;
                }
                case_score(s, &m, apart, which, setting_index(g, x, pool, b, 0, 0), each, context);
            }
        }
    }
    return 0;
}
