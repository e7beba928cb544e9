/* What a text's matches weigh, by the equations of arXiv 2502.10615 section 3 (one softmax over the b best of
 * both kinds) and 2511.13189 (one for each kind). Sums are in double, in the matches' order, so that equal matches give
 * equal scores. Reads nothing but what it is handed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"

/* ---- matches ---- */

static bool match_before(const struct match *a, const struct match *b)
{
    if (a->score != b->score) {
        return a->score > b->score;
    }
    return a->tie != b->tie ? a->tie < b->tie : a->slot < b->slot;
}

static int match_order(const void *a, const void *b)
{
    return match_before(a, b) ? -1 : 1;
}

static void match_swap(struct match *a, struct match *b)
{
    struct match kept = *a;
    *a = *b;
    *b = kept;
}

/* Brings the `keep` best to the front, in any order (Hoare's selection). */
static void matches_select(struct match *m, size_t count, size_t keep)
{
    while (keep > 0 && keep < count) {
        size_t low = 0, high = count - 1;
        struct match pivot = m[(count - 1) / 2]; /* never the last: each turn leaves fewer */
        for (;;) {
            while (match_before(&m[low], &pivot)) {
                low++;
            }
            while (match_before(&pivot, &m[high])) {
                high--;
            }
            if (low >= high) {
                break;
            }
            match_swap(&m[low++], &m[high--]);
        }
        size_t front = high + 1; /* none of them is behind one of the rest */
        if (keep < front) {
            count = front;
        } else {
            m += front;
            count -= front;
            keep -= front;
        }
    }
}

uint32_t matches_rank(struct match *matches, uint32_t count, double lexical, enum lexical_form form, size_t keep)
{
    for (uint32_t i = 0; i < count; i++) {
        double words = lexical > 0 ? lexical * (double)matches[i].lexical[form] : 0;
        matches[i].score = matches[i].similarity + (float)words;
    }
    matches_select(matches, count, keep);
    count = count < keep ? count : (uint32_t)keep;
    if (count) {
        qsort(matches, count, sizeof *matches, match_order);
    }
    return count;
}

size_t half_of(size_t b)
{
    return b > 1 ? b / 2 : 1;
}

void matches_cut(struct matches *m, bool apart, size_t b)
{
    size_t half = half_of(b);
    if (apart) {
        for (int kind = 0; kind < KINDS; kind++) {
            m->counts[kind] = m->counts[kind] < half ? m->counts[kind] : (uint32_t)half;
        }
        return;
    }
    uint32_t next[KINDS] = {0};
    while (next[INSTANCES] + next[LABELS] < b) {
        bool instance = next[INSTANCES] < m->counts[INSTANCES], label = next[LABELS] < m->counts[LABELS];
        if (!instance && !label) {
            break;
        }
        bool first =
            instance && (!label || match_before(&m->of[INSTANCES][next[INSTANCES]], &m->of[LABELS][next[LABELS]]));
        next[first ? INSTANCES : LABELS]++;
    }
    memcpy(m->counts, next, sizeof next);
}

void matches_weigh(const struct matches *m, bool apart, double tau, double *weights[KINDS])
{
    double best[KINDS] = {-INFINITY, -INFINITY}, sums[KINDS] = {0};
    for (int kind = 0; kind < KINDS; kind++) {
        best[kind] = m->counts[kind] ? (double)m->of[kind][0].score : best[kind];
    }
    if (!apart) {
        best[INSTANCES] = best[LABELS] = fmax(best[INSTANCES], best[LABELS]);
    }
    for (int kind = 0; kind < KINDS; kind++) {
        for (uint32_t i = 0; i < m->counts[kind]; i++) {
            weights[kind][i] = exp(((double)m->of[kind][i].score - best[kind]) / tau);
            sums[kind] += weights[kind][i];
        }
    }
    if (!apart) {
        sums[INSTANCES] = sums[LABELS] = sums[INSTANCES] + sums[LABELS];
    }
    for (int kind = 0; kind < KINDS; kind++) {
        for (uint32_t i = 0; i < m->counts[kind]; i++) {
            weights[kind][i] /= sums[kind];
        }
    }
}

/* ---- tally ---- */

static void tally_resize(struct tally *t, uint32_t places)
{
    free(t->places);
    t->places = mem_zero(places, sizeof *t->places);
    t->labels = mem_resize(t->labels, places / 2 * sizeof *t->labels);
    t->mask = places - 1;
    t->epoch = 1;
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t at = t->labels[i] & t->mask;
        while (t->places[at].epoch == t->epoch) {
            at = (at + 1) & t->mask;
        }
        t->places[at] = (struct tally_place){t->epoch, i};
    }
}

void tally_clear(struct tally *t)
{
    t->count = 0;
    if (!t->places || t->epoch == UINT32_MAX) {
        tally_resize(t, t->places ? t->mask + 1 : 1024);
    } else {
        t->epoch++;
    }
}

void tally_free(struct tally *t)
{
    free(t->places);
    free(t->labels);
}

/* Where the label is noted, or would be. */
static uint32_t tally_seek(const struct tally *t, uint32_t label)
{
    uint32_t at = label & t->mask; /* label ids are dense: their low bits spread well */
    while (t->places[at].epoch == t->epoch && t->labels[t->places[at].at] != label) {
        at = (at + 1) & t->mask;
    }
    return at;
}

uint32_t tally_place(struct tally *t, uint32_t label)
{
    uint32_t at = tally_seek(t, label);
    if (t->places[at].epoch == t->epoch) {
        return t->places[at].at;
    }
    t->places[at] = (struct tally_place){t->epoch, t->count};
    t->labels[t->count++] = label;
    if (t->count == (t->mask + 1) / 2) {
        tally_resize(t, (t->mask + 1) * 2);
    }
    return t->count - 1;
}

uint32_t tally_find(const struct tally *t, uint32_t label)
{
    uint32_t at = tally_seek(t, label);
    return t->places[at].epoch == t->epoch ? t->places[at].at : NO_LABEL;
}
