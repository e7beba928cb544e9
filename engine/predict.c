/* Predict: retrieve, score, name the labels and the evidence (arXiv 2502.10615, section 3).
 *   p = lambda * sum over instances of weight * y  +  (1 - lambda) * sum over labels of weight * e
 * Only retrieval needs the device; the rest is shared out text by text. Label names are read only for labels that may
 * reach the output. Equal scores are common (labels of one instance share its weight), and names decide between them,
 * so those are read to the end of the run of ties at labels_max. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/internal.h"

/* A label that may reach the output. */
struct candidate {
    struct slice name;
    float score;
    uint64_t tie;
};

/* A match, and what it gave before lambda. */
struct given {
    double weight;
    uint32_t at;
};

/* What turns one text's matches into its prediction, for one hand of the pool. */
struct hand {
    struct predicting *batch;
    struct scorer *scorer;
    struct scored_text scored; /* of the text at hand */
    struct candidate *candidates;
    size_t candidates_capacity;
    struct given *given; /* [b]: the label matches by what they gave */
};

/* A batch on its way. It is cut into slices, two of which are there at once: one that is finished while the device
 * works on the next. All see the first one's snapshot. */
struct predicting {
    struct engine *g;
    struct predict_options options;
    struct setting setting;
    const struct tokens *const *inputs;
    size_t n, begun; /* inputs; those of slices that have begun */
    bool unbegun;    /* counted in the engine's: slices are still to begin */
    struct retrieval slices[2];
    struct snapshot *snapshot;
    struct hand *hands; /* [pool_hands] */
    /* of the slice that is finished */
    const struct retrieval *slice;
    size_t first;
    struct prediction *out;
};

/* ---- labels ---- */

static size_t labels_wanted(const struct predict_options *o)
{
    return o->labels_max ? o->labels_max : SIZE_MAX;
}

static int by_falling_score_then_tie(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    if (x->score != y->score) {
        return x->score > y->score ? -1 : 1;
    }
    if (x->tie != y->tie) {
        return x->tie < y->tie ? -1 : 1;
    }
    return slice_compare(x->name, y->name);
}

/* The labels scored, named, into out->labels; of a run of ties at labels_max those of the smallest `tie`. */
static int labels_select(struct hand *h, struct prediction *out, struct error *e)
{
    const struct scored_text *scored = &h->scored;
    size_t count = scored->count, max = labels_wanted(&h->batch->options);
    if (count == 0) {
        return 0;
    }
    if (count > h->candidates_capacity) {
        h->candidates_capacity = count * 2;
        h->candidates = mem_resize(h->candidates, h->candidates_capacity * sizeof *h->candidates);
    }
    for (size_t i = 0; i < count; i++) {
        struct memory_label label;
        int found = snapshot_label(h->batch->snapshot, scored->ids[i], &label, e);
        if (found <= 0) {
            return found < 0 ? -1 : label_lost(scored->ids[i], e);
        }
        h->candidates[i] = (struct candidate){label.name, scored->labels[i].score, label.tie};
    }
    qsort(h->candidates, count, sizeof *h->candidates, by_falling_score_then_tie);
    count = count < max ? count : max;
    out->labels = arena_alloc(&out->arena, count * sizeof *out->labels);
    out->labels_count = count;
    for (size_t i = 0; i < count; i++) {
        out->labels[i] =
            (struct predicted_label){arena_slice(&out->arena, h->candidates[i].name), h->candidates[i].score};
    }
    return 0;
}

/* ---- evidence ---- */

static int evidence_instance(struct hand *h, const struct match *match, struct prediction *p, struct evidence *out,
                             struct error *e)
{
    struct memory_instance instance;
    int found = snapshot_instance_at(h->batch->snapshot, match->slot, &instance, e);
    if (found <= 0) {
        return found < 0 ? -1 : slot_lost(match->slot, e);
    }
    out->kind = EVIDENCE_INSTANCE;
    out->name = arena_slice(&p->arena, instance.id);
    if (h->batch->options.evidence_text && instance.text.data) {
        out->text = arena_slice(&p->arena, instance.text);
    }
    out->labels_count = instance.labels_count;
    out->labels = arena_alloc(&p->arena, instance.labels_count * sizeof *out->labels);
    if (snapshot_label_names(h->batch->snapshot, &instance, out->labels, e)) {
        return -1;
    }
    for (size_t i = 0; i < out->labels_count; i++) {
        out->labels[i] = arena_slice(&p->arena, out->labels[i]);
    }
    return 0;
}

static int evidence_label(struct hand *h, const struct match *match, struct prediction *p, struct evidence *out,
                          struct error *e)
{
    const uint32_t *ids;
    size_t count;
    struct memory_label label;
    if (snapshot_values(h->batch->snapshot, match->slot, &ids, &count, e)) {
        return -1;
    }
    int found = count == 1 ? snapshot_label(h->batch->snapshot, ids[0], &label, e) : 0;
    if (found <= 0) {
        return found < 0 ? -1 : slot_lost(match->slot, e);
    }
    out->kind = EVIDENCE_LABEL;
    out->name = arena_slice(&p->arena, label.name);
    if (h->batch->options.evidence_text && label.text.data) {
        out->text = arena_slice(&p->arena, label.text);
    }
    return 0;
}

static int by_falling_weight(const void *a, const void *b)
{
    const struct given *x = a, *y = b;
    return x->weight != y->weight ? (x->weight < y->weight) - (x->weight > y->weight)
                                  : (x->at > y->at) - (x->at < y->at);
}

/* Matches give by falling score, except that label_power reorders the labels. */
static void labels_order(struct hand *h)
{
    uint32_t count = h->scored.matches->counts[LABELS];
    for (uint32_t i = 0; i < count; i++) {
        h->given[i] = (struct given){h->scored.weights[LABELS][i], i};
    }
    if (h->batch->setting.label_power > 0 && count) {
        qsort(h->given, count, sizeof *h->given, by_falling_weight);
    }
}

/* The match that gave most among those not yet taken, where each kind's are in falling order: a merge of two lists. */
static int evidence_next(const struct hand *h, const uint32_t next[KINDS])
{
    const struct matches *m = h->scored.matches;
    if (next[INSTANCES] == m->counts[INSTANCES] || next[LABELS] == m->counts[LABELS]) {
        return next[INSTANCES] == m->counts[INSTANCES] ? LABELS : INSTANCES;
    }
    double instance = h->scored.weights[INSTANCES][next[INSTANCES]] * h->batch->setting.lambda;
    const struct given *given = &h->given[next[LABELS]];
    double label = given->weight * (1 - h->batch->setting.lambda);
    bool label_first =
        instance != label ? label > instance : m->of[LABELS][given->at].tie < m->of[INSTANCES][next[INSTANCES]].tie;
    return label_first ? LABELS : INSTANCES;
}

/* Vectors of length 1 that are rounded to bf16 are a little longer or shorter: their product may pass 1 by 0.0005. What
 * is shown is a cosine; ranking and weights keep the number as it is. */
static float cosine_shown(float cosine)
{
    return cosine > 1 ? 1 : cosine < -1 ? -1 : cosine;
}

static float lexical_shown(const struct setting *s, const struct match *match)
{
    return s->form == LEXICAL_COSINE ? cosine_shown(match->lexical[s->form]) : match->lexical[s->form];
}

static int evidence_select(struct hand *h, struct prediction *out, struct error *e)
{
    const struct matches *m = h->scored.matches;
    size_t count = m->counts[INSTANCES] + m->counts[LABELS];
    size_t max = count < h->batch->options.evidence_max ? count : h->batch->options.evidence_max;
    uint32_t next[KINDS] = {0};
    labels_order(h);
    out->evidence = arena_alloc(&out->arena, max * sizeof *out->evidence);
    for (size_t i = 0; i < max; i++) {
        int kind = evidence_next(h, next);
        uint32_t at = kind == LABELS ? h->given[next[kind]].at : next[kind];
        next[kind]++;
        const struct match *match = &m->of[kind][at];
        out->evidence[i] = (struct evidence){
            .similarity = cosine_shown(match->similarity),
            .has_lexical = h->batch->options.lexical > 0,
            .lexical = (float)(h->batch->options.lexical * (double)lexical_shown(&h->batch->setting, match)),
            .weight = (float)h->scored.weights[kind][at]};
        out->evidence_count = i + 1;
        int failed = kind == INSTANCES ? evidence_instance(h, match, out, &out->evidence[i], e)
                                       : evidence_label(h, match, out, &out->evidence[i], e);
        if (failed) {
            return -1;
        }
    }
    return 0;
}

static void scored_keep(void *context, size_t setting, const struct scored_text *scored)
{
    struct hand *h = context;
    (void)setting;
    h->scored = *scored;
}

static int text_predict(struct hand *h, const struct tokens *input, const struct matches *m, struct prediction *out,
                        struct error *e)
{
    const struct predicting *batch = h->batch;
    const struct judged text = {.matches = *m};
    out->truncated = input->truncated;
    out->memory_version = snapshot_version(batch->snapshot);
    memcpy(out->model_version, batch->g->model_version, sizeof out->model_version);
    return scorer_text(h->scorer, &text, scored_keep, h, e) || labels_select(h, out, e) || evidence_select(h, out, e)
               ? -1
               : 0;
}

/* ---- a batch ---- */

static void hand_open(struct hand *h, struct predicting *batch)
{
    const struct predict_options *o = &batch->options;
    h->batch = batch;
    h->scorer = scorer_open(&(struct scorer_options){.settings = &batch->setting,
                                                     .settings_count = 1,
                                                     .lexical_candidates = o->lexical_candidates,
                                                     .depth = labels_wanted(o),
                                                     .least = o->min_score});
    scorer_snapshot(h->scorer, batch->snapshot);
    h->given = mem_alloc(o->b * sizeof *h->given);
}

static void unbegun_set(struct predicting *p, bool unbegun)
{
    struct engine *g = p->g;
    if (p->unbegun == unbegun) {
        return;
    }
    pthread_mutex_lock(&g->begin_lock);
    p->unbegun = unbegun;
    g->unbegun = unbegun ? g->unbegun + 1 : g->unbegun - 1;
    pthread_cond_broadcast(&g->begun);
    pthread_mutex_unlock(&g->begin_lock);
}

static void predicting_free(struct predicting *p)
{
    unbegun_set(p, false);          /* after an error */
    retrieval_close(&p->slices[1]); /* first: the other one owns the snapshot */
    retrieval_close(&p->slices[0]);
    for (size_t i = 0; i < pool_hands(p->g->pool); i++) {
        scorer_close(p->hands[i].scorer);
        free(p->hands[i].candidates);
        free(p->hands[i].given);
    }
    free(p->hands);
    free(p);
}

/* Hands the next slice to the device, if there is one. */
static void slice_begin(struct predicting *p, struct retrieval *slice)
{
    size_t count = engine_slice(p->g, p->inputs + p->begun, p->n - p->begun, slice->texts);
    slice->encoding.n = 0;
    if (count) {
        retrieval_begin(slice, p->inputs + p->begun, count);
    }
    p->begun += count;
    unbegun_set(p, p->begun < p->n);
}

int engine_predict_begin(struct engine *g, const struct predict_options *options, const struct tokens *const *inputs,
                         size_t n, struct predicting **out, struct error *e)
{
    if (!g->keys) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "an engine without an encoder or a memory was asked to predict");
    }
    struct predicting *p = mem_zero(1, sizeof *p);
    size_t most = 0;
    p->g = g;
    p->options = options ? *options : engine_options(g);
    p->setting = setting_of(&p->options);
    p->inputs = inputs;
    p->n = n;
    p->hands = mem_zero(pool_hands(g->pool), sizeof *p->hands);
    for (size_t first = 0, count; first < n; first += count) {
        count = engine_slice(g, inputs + first, n - first, n);
        most = count > most ? count : most;
    }
    const struct search search = search_for(&p->setting, 1, p->options.lexical_candidates);
    retrieval_open(&p->slices[0], g, &search, most);
    if (p->slices[0].texts < n) {
        retrieval_open(&p->slices[1], g, &search, most);
    }
    slice_begin(p, &p->slices[0]);
    *out = p;
    return 0;
}

static int text_finish(void *context, size_t text, size_t hand, struct error *e)
{
    struct predicting *p = context;
    struct hand *h = &p->hands[hand];
    if (!h->scorer) {
        hand_open(h, p);
    }
    return text_predict(h, p->inputs[p->first + text], &p->slice->matches[text], &p->out[p->first + text], e);
}

/* From a slice that the device is done with to predictions. */
static int slice_finish(struct predicting *p, struct retrieval *slice, uint64_t *aggregate_us, struct error *e)
{
    if (retrieval_end(slice, e)) {
        return -1;
    }
    const uint64_t start = clock_us();
    p->slice = slice;
    p->snapshot = slice->snapshot;
    int failed = pool_share(p->g->pool, slice->encoding.n, text_finish, p, e);
    *aggregate_us += clock_us() - start;
    return failed;
}

/* Finishes the slices one after the other, each while the device works on the next. */
static int slices_end(struct predicting *p, struct prediction *out, uint64_t *aggregate_us, struct error *e)
{
    int result = 0;
    p->out = out;
    if (p->begun < p->n) {
        result = retrieval_see(&p->slices[0], e);
        p->slices[1].snapshot = p->slices[0].snapshot;
        p->slices[1].borrowed = true;
        if (result == 0) {
            slice_begin(p, &p->slices[1]);
        }
    }
    for (size_t number = 0; p->first < p->begun; number++) {
        struct retrieval *slice = &p->slices[number % 2];
        const size_t count = slice->encoding.n;
        if (result) {
            retrieval_end(slice, NULL); /* what the device has must end */
        } else if ((result = slice_finish(p, slice, aggregate_us, e)) == 0) {
            slice_begin(p, slice);
        }
        p->first += count;
    }
    return result;
}

int engine_predict_end(struct predicting *p, struct prediction *out, struct predict_times *times, struct error *e)
{
    uint64_t aggregate_us = 0;
    memset(out, 0, p->n * sizeof *out);
    int result = slices_end(p, out, &aggregate_us, e);
    if (times) {
        *times = (struct predict_times){p->slices[0].encode_us + p->slices[1].encode_us,
                                        p->slices[0].search_us + p->slices[1].search_us + aggregate_us};
    }
    for (size_t i = 0; result && i < p->n; i++) {
        prediction_free(&out[i]);
        out[i] = (struct prediction){0};
    }
    predicting_free(p);
    return result;
}

void engine_wait_begun(struct engine *g)
{
    pthread_mutex_lock(&g->begin_lock);
    while (g->unbegun) {
        pthread_cond_wait(&g->begun, &g->begin_lock);
    }
    pthread_mutex_unlock(&g->begin_lock);
    pool_wait_taken(g->pool, LANE_BULK);
}

int engine_predict_with(struct engine *g, const struct predict_options *options, const struct tokens *const *inputs,
                        size_t n, struct prediction *out, struct predict_times *times, struct error *e)
{
    struct predicting *p;
    memset(out, 0, n * sizeof *out);
    return engine_predict_begin(g, options, inputs, n, &p, e) || engine_predict_end(p, out, times, e) ? -1 : 0;
}

int engine_predict(struct engine *g, const struct tokens *const *inputs, size_t n, struct prediction *out,
                   struct predict_times *times, struct error *e)
{
    return engine_predict_with(g, NULL, inputs, n, out, times, e);
}
