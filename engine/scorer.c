/* The scorer: p = wV and the choice of labels, for one text's matches and one setting or many. The stage predicts with
 * it by its own setting, evaluation and tune by as many as they compare: what is measured is what is published, to the
 * last bit. What a setting has in common with the one before it is not computed again, so settings are taken in an
 * order in which that is most. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"

enum { TOP_SMALL = 16 }; /* up to this depth the best are kept in order while looking; else all are sorted */

struct setting setting_of(const struct predict_options *o)
{
    return (struct setting){.apart = o->apart,
                            .lambda = o->lambda,
                            .tau = o->tau,
                            .lexical = o->lexical,
                            .form = o->lexical_form,
                            .label_power = o->label_power,
                            .b = o->b};
}

struct search search_for(const struct setting *settings, size_t count, size_t lexical_candidates)
{
    struct search s = {.together = count == 1 && !settings->apart && settings->lexical <= 0};
    for (size_t i = 0; i < count; i++) {
        const struct setting *x = &settings[i];
        size_t keys = x->lexical > 0 ? lexical_candidates : x->apart ? half_of(x->b) : x->b;
        s.kinds[INSTANCES] |= x->lambda > 0; /* a key whose value is zero is no candidate */
        s.kinds[LABELS] |= x->lambda < 1;
        s.lexical[x->form] |= x->lexical > 0;
        s.count = s.count > keys ? s.count : keys;
    }
    return s;
}

bool search_lexical(const struct search *s)
{
    return s->lexical[LEXICAL_COSINE] || s->lexical[LEXICAL_BM25];
}

/* ---- in which order ---- */

/* What is to be done again where a setting differs from the one before it. */
enum stage { STAGE_RANK, STAGE_CUT, STAGE_WEIGH, STAGE_POWER, STAGE_MIX };

/* The keys that are candidates: of labels alone (lambda 0), of both kinds, of instances alone (1). */
static int kinds_of(const struct setting *s)
{
    return s->lambda <= 0 ? 0 : s->lambda < 1 ? 1 : 2;
}

static int compare(double a, double b)
{
    return (a > b) - (a < b);
}

/* Which of two settings comes first, and in *stage the first thing that they do not have in common. */
static int settings_compare(const struct setting *a, const struct setting *b, enum stage *stage)
{
    const struct {
        enum stage stage;
        int order;
    } by[] = {
        {STAGE_RANK, compare(a->lexical, b->lexical)},
        {STAGE_RANK, a->lexical > 0 ? (int)a->form - (int)b->form : 0},
        {STAGE_CUT, kinds_of(a) - kinds_of(b)},
        {STAGE_CUT, (int)a->apart - (int)b->apart},
        {STAGE_CUT, (a->b > b->b) - (a->b < b->b)},
        {STAGE_WEIGH, compare(a->tau, b->tau)},
        {STAGE_POWER, compare(a->label_power, b->label_power)},
        {STAGE_MIX, compare(a->lambda, b->lambda)},
    };
    size_t i = 0;
    while (i + 1 < sizeof by / sizeof *by && by[i].order == 0) {
        i++;
    }
    *stage = by[i].stage;
    return by[i].order;
}

struct step {
    const struct setting *setting;
    enum stage stage;
};

static int by_settings(const void *a, const void *b)
{
    const struct step *x = a, *y = b;
    enum stage stage;
    int order = settings_compare(x->setting, y->setting, &stage);
    return order ? order : (x->setting > y->setting) - (x->setting < y->setting);
}

/* ---- a scorer ---- */

/* What one thread needs for one text after another. */
struct scorer {
    struct scorer_options options;
    const struct snapshot *snapshot;
    struct step *steps; /* [settings_count] */
    float least;        /* options.least, rounded up */
    double *powers;     /* [powers_count]: those of the settings, 0 left out */
    size_t powers_count;
    uint32_t *counts; /* by label id: instances that have it, + 1; 0: not looked up yet */
    size_t counts_capacity;
    size_t b_max, matches_max;   /* of a kind */
    struct matches all, cut;     /* of the text at hand: ranked; and the b best of them */
    struct match *ranked[KINDS]; /* [matches_max] */
    double *weights[KINDS];      /* [matches_max]: what each match gives, before lambda */
    double *shares;              /* [matches_max]: the label matches' part of the softmax */
    double *factors;             /* [powers_count, matches_max]: (1 + count)^-g of the label matches */
    struct tally tally;          /* the labels of the matches at hand */
    uint32_t *places;            /* their places in the tally, match by match, instances first */
    uint32_t *places_end[KINDS]; /* [matches_max]: where each match's end */
    size_t places_capacity;
    size_t labels_capacity;
    double *sums[KINDS];         /* [labels_capacity] by place: what matches of each kind give */
    int32_t *gold;               /* [labels_capacity]: gold's index, METRICS_NOT_GOLD */
    struct ranked_label *labels; /* [labels_capacity]: the result */
    uint32_t *ids;               /* [labels_capacity] */
    struct scored {
        float score;
        uint32_t place;
    } * best; /* [labels_capacity] */
};

static void powers_find(struct scorer *s)
{
    s->powers = mem_alloc(s->options.settings_count * sizeof *s->powers);
    for (size_t i = 0; i < s->options.settings_count; i++) {
        double power = s->options.settings[i].label_power;
        size_t p = 0;
        while (p < s->powers_count && s->powers[p] != power) {
            p++;
        }
        if (power > 0 && p == s->powers_count) {
            s->powers[s->powers_count++] = power;
        }
    }
}

struct scorer *scorer_open(const struct scorer_options *options)
{
    struct scorer *s = mem_zero(1, sizeof *s);
    s->options = *options;
    powers_find(s);
    s->least = (float)options->least;
    if ((double)s->least < options->least) {
        s->least = nextafterf(s->least, INFINITY);
    }
    s->matches_max = search_for(options->settings, options->settings_count, options->lexical_candidates).count;
    s->steps = mem_alloc(options->settings_count * sizeof *s->steps);
    for (size_t i = 0; i < options->settings_count; i++) {
        s->b_max = options->settings[i].b > s->b_max ? options->settings[i].b : s->b_max;
        s->steps[i] = (struct step){&options->settings[i], STAGE_RANK};
    }
    qsort(s->steps, options->settings_count, sizeof *s->steps, by_settings);
    for (size_t i = 1; i < options->settings_count; i++) {
        settings_compare(s->steps[i - 1].setting, s->steps[i].setting, &s->steps[i].stage);
    }
    for (int kind = 0; kind < KINDS; kind++) {
        s->ranked[kind] = mem_alloc(s->matches_max * sizeof *s->ranked[kind]);
        s->weights[kind] = mem_alloc(s->matches_max * sizeof *s->weights[kind]);
        s->places_end[kind] = mem_alloc(s->matches_max * sizeof *s->places_end[kind]);
    }
    s->shares = mem_alloc(s->matches_max * sizeof *s->shares);
    s->factors = mem_alloc(s->powers_count * s->matches_max * sizeof *s->factors);
    return s;
}

void scorer_close(struct scorer *s)
{
    if (!s) {
        return;
    }
    for (int kind = 0; kind < KINDS; kind++) {
        free(s->ranked[kind]);
        free(s->weights[kind]);
        free(s->places_end[kind]);
        free(s->sums[kind]);
    }
    tally_free(&s->tally);
    free(s->shares);
    free(s->factors);
    free(s->powers);
    free(s->counts);
    free(s->steps);
    free(s->places);
    free(s->gold);
    free(s->labels);
    free(s->ids);
    free(s->best);
    free(s);
}

/* ---- the stages ---- */

/* The text's matches of each kind by falling score, as many as the largest b may take; the text may bring more. */
static void stage_rank(struct scorer *s, const struct setting *setting, const struct judged *text)
{
    size_t most = setting->lexical > 0 ? s->options.lexical_candidates : s->b_max;
    most = most < s->matches_max ? most : s->matches_max;
    for (int kind = 0; kind < KINDS; kind++) {
        uint32_t count = text->matches.counts[kind];
        count = count < most ? count : (uint32_t)most;
        s->all.of[kind] = s->ranked[kind];
        if (count) {
            memcpy(s->all.of[kind], text->matches.of[kind], count * sizeof *s->all.of[kind]);
        }
        s->all.counts[kind] = matches_rank(s->all.of[kind], count, setting->lexical, setting->form, s->b_max);
    }
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
    s->labels = mem_resize(s->labels, s->labels_capacity * sizeof *s->labels);
    s->ids = mem_resize(s->ids, s->labels_capacity * sizeof *s->ids);
    s->best = mem_resize(s->best, s->labels_capacity * sizeof *s->best);
}

/* Which of the tally's labels are gold. */
static void labels_mark(struct scorer *s, const struct judged *text)
{
    for (uint32_t i = 0; i < s->tally.count; i++) {
        s->gold[i] = METRICS_NOT_GOLD;
    }
    for (size_t i = 0; i < text->gold_count; i++) {
        uint32_t at = tally_find(&s->tally, text->gold_ids[i]);
        if (at != NO_LABEL) {
            s->gold[at] = (int32_t)i;
        }
    }
}

int label_lost(uint32_t id, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_CORRUPT, "a value names the label number %u, which does not exist", id);
}

int slot_lost(uint64_t slot, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_CORRUPT, "slot %llu has a key, but nothing else is known about it",
                     (unsigned long long)slot);
}

/* How many instances have the label. */
static int label_count(struct scorer *s, uint32_t id, double *out, struct error *e)
{
    if (id >= s->counts_capacity) { /* ids are dense */
        size_t capacity = 2 * ((size_t)id + 512);
        s->counts = mem_resize(s->counts, capacity * sizeof *s->counts);
        memset(s->counts + s->counts_capacity, 0, (capacity - s->counts_capacity) * sizeof *s->counts);
        s->counts_capacity = capacity;
    }
    if (s->counts[id] == 0) {
        struct memory_label label;
        int found = snapshot_label(s->snapshot, id, &label, e);
        if (found <= 0) {
            return found < 0 ? -1 : label_lost(id, e);
        }
        s->counts[id] = (uint32_t)label.instances + 1;
    }
    *out = (double)(s->counts[id] - 1);
    return 0;
}

/* Each label match's factor by each power; it has one label. */
static int factors_set(struct scorer *s, const struct judged *text, struct error *e)
{
    for (uint32_t i = 0; s->powers_count && i < s->cut.counts[LABELS]; i++) {
        uint32_t place = s->places[s->places_end[LABELS][i] - 1];
        double count = 0;
        if (label_count(s, s->tally.labels[place], &count, e)) {
            return -1;
        }
        count -= text->left_out && s->gold[place] >= 0;
        for (size_t p = 0; p < s->powers_count; p++) {
            s->factors[p * s->matches_max + i] = pow(1 + count, -s->powers[p]);
        }
    }
    return 0;
}

/* The b best matches, and the labels that they name: V[top-b]. */
static int stage_cut(struct scorer *s, const struct setting *setting, const struct judged *text, struct error *e)
{
    struct matches *m = &s->cut;
    uint32_t end = 0;
    *m = s->all;
    m->counts[INSTANCES] = kinds_of(setting) == 0 ? 0 : m->counts[INSTANCES];
    m->counts[LABELS] = kinds_of(setting) == 2 ? 0 : m->counts[LABELS];
    matches_cut(m, setting->apart, setting->b);
    tally_clear(&s->tally);
    for (int kind = 0; kind < KINDS; kind++) {
        for (uint32_t i = 0; i < m->counts[kind]; i++) {
            const uint32_t *labels;
            size_t count;
            if (snapshot_values(s->snapshot, m->of[kind][i].slot, &labels, &count, e)) {
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
    labels_mark(s, text);
    return factors_set(s, text, e);
}

/* What the matches of a kind give to each label. */
static void labels_sum(struct scorer *s, int kind, const struct judged *text)
{
    const struct matches *m = &s->cut;
    uint32_t next = kind == LABELS && m->counts[INSTANCES] ? s->places_end[INSTANCES][m->counts[INSTANCES] - 1] : 0;
    if (s->tally.count) {
        memset(s->sums[kind], 0, s->tally.count * sizeof *s->sums[kind]);
    }
    for (uint32_t i = 0; i < m->counts[kind]; i++) {
        for (; next < s->places_end[kind][i]; next++) {
            s->sums[kind][s->places[next]] += s->weights[kind][i];
        }
    }
    for (size_t i = 0; i < text->unwanted_count; i++) {
        uint32_t at = tally_find(&s->tally, text->unwanted[i]);
        if (at != NO_LABEL) {
            s->sums[kind][at] = -1; /* below any score that is wanted, whatever lambda */
        }
    }
}

/* w. */
static void stage_weigh(struct scorer *s, const struct setting *setting, const struct judged *text)
{
    double *shares[KINDS] = {s->weights[INSTANCES], s->shares};
    matches_weigh(&s->cut, setting->apart, setting->tau, shares);
    labels_sum(s, INSTANCES, text);
}

static void stage_power(struct scorer *s, const struct setting *setting, const struct judged *text)
{
    const double *factors = s->factors;
    for (size_t p = 0; p < s->powers_count && s->powers[p] != setting->label_power; p++) {
        factors += s->matches_max;
    }
    for (uint32_t i = 0; i < s->cut.counts[LABELS]; i++) {
        s->weights[LABELS][i] = setting->label_power > 0 ? s->shares[i] * factors[i] : s->shares[i];
    }
    labels_sum(s, LABELS, text);
}

/* The first `depth` scores so far, in falling order. */
struct top {
    float scores[TOP_SMALL];
    size_t count, depth;
};

/* The score that a label must reach from now on to be among them, ties included. */
static float top_add(struct top *top, float score, float needed)
{
    size_t at = top->count < top->depth ? top->count++ : top->depth - 1;
    for (; at > 0 && top->scores[at - 1] < score; at--) {
        top->scores[at] = top->scores[at - 1];
    }
    top->scores[at] = score;
    return top->count == top->depth && top->scores[top->depth - 1] > needed ? top->scores[top->depth - 1] : needed;
}

static int by_falling_score(const void *a, const void *b)
{
    const struct scored *x = a, *y = b;
    return x->score != y->score ? (x->score < y->score) - (x->score > y->score)
                                : (x->place > y->place) - (x->place < y->place);
}

/* p, and of its labels those that may be among the first `depth` into s->best; how many. */
static size_t labels_mix(struct scorer *s, double lambda)
{
    const double *instances = s->sums[INSTANCES], *labels = s->sums[LABELS];
    struct top top = {.depth = s->options.depth};
    float needed = s->least;
    size_t kept = 0, count = 0;
    for (uint32_t i = 0; i < s->tally.count; i++) {
        float score = (float)(lambda * instances[i] + (1 - lambda) * labels[i]);
        if (score >= needed) {
            s->best[kept++] = (struct scored){score, i};
            needed = top.depth <= TOP_SMALL ? top_add(&top, score, needed) : needed;
        }
    }
    for (size_t i = 0; i < kept; i++) {
        if (s->best[i].score >= needed) {
            s->best[count++] = s->best[i];
        }
    }
    return count;
}

/* The labels that are wanted, in order. */
static size_t stage_mix(struct scorer *s, const struct setting *setting)
{
    size_t kept = labels_mix(s, setting->lambda), count = 0;
    if (kept) {
        qsort(s->best, kept, sizeof *s->best, by_falling_score);
    }
    while (count < kept && (count < s->options.depth || s->best[count].score == s->best[count - 1].score)) {
        s->labels[count] = (struct ranked_label){s->best[count].score, s->gold[s->best[count].place]};
        s->ids[count] = s->tally.labels[s->best[count].place];
        count++;
    }
    return count;
}

void scorer_snapshot(struct scorer *s, const struct snapshot *snapshot)
{
    s->snapshot = snapshot;
    free(s->counts);
    s->counts = NULL;
    s->counts_capacity = 0;
}

int scorer_text(struct scorer *s, const struct judged *text, scorer_each *each, void *context, struct error *e)
{
    for (size_t i = 0; i < s->options.settings_count; i++) {
        const struct setting *setting = s->steps[i].setting;
        switch (s->steps[i].stage) {
        case STAGE_RANK:
            stage_rank(s, setting, text); /* fall through */
        case STAGE_CUT:
            if (stage_cut(s, setting, text, e)) {
                return -1;
            }
            /* fall through */
        case STAGE_WEIGH:
            stage_weigh(s, setting, text); /* fall through */
        case STAGE_POWER:
            stage_power(s, setting, text); /* fall through */
        case STAGE_MIX:
            break;
        }
        struct scored_text scored = {.labels = s->labels, .ids = s->ids, .matches = &s->cut, .weights = s->weights};
        scored.count = stage_mix(s, setting);
        each(context, (size_t)(setting - s->options.settings), &scored);
    }
    return 0;
}
