/* Predict: retrieve, score, name the labels and the evidence (arXiv 2502.10615, section 3).
 *   p = lambda * sum over instances of weight * y  +  (1 - lambda) * sum over labels of weight * e
 * Only retrieval needs the backend. Label names are read only for labels that may reach the output. Equal scores are
 * common (labels of one instance share its weight), and names decide between them, so those are read to the end of the
 * run of ties at labels_max. */
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

/* One call of engine_predict. */
struct prediction_run {
    struct engine *g;
    const struct predict_options *options;
    struct setting setting;
    struct retrieval retrieval;
    struct scorer *scorer;
    struct scored_text scored; /* of the text at hand */
    struct candidate *candidates;
    size_t candidates_capacity;
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
static int labels_select(struct prediction_run *r, struct prediction *out, struct error *e)
{
    const struct scored_text *scored = &r->scored;
    size_t count = scored->count, max = labels_wanted(r->options);
    if (count == 0) {
        return 0;
    }
    if (count > r->candidates_capacity) {
        r->candidates_capacity = count * 2;
        r->candidates = mem_resize(r->candidates, r->candidates_capacity * sizeof *r->candidates);
    }
    for (size_t i = 0; i < count; i++) {
        struct memory_label label;
        int found = snapshot_label(r->retrieval.snapshot, scored->ids[i], &label, e);
        if (found <= 0) {
            return found < 0 ? -1
                             : error_set(e, ERROR_FATAL, E_CORRUPT,
                                         "a value names the label number %u, which does not exist", scored->ids[i]);
        }
        r->candidates[i] = (struct candidate){label.name, scored->labels[i].score, label.tie};
    }
    qsort(r->candidates, count, sizeof *r->candidates, by_falling_score_then_tie);
    count = count < max ? count : max;
    out->labels = arena_alloc(&out->arena, count * sizeof *out->labels);
    out->labels_count = count;
    for (size_t i = 0; i < count; i++) {
        out->labels[i] =
            (struct predicted_label){arena_slice(&out->arena, r->candidates[i].name), r->candidates[i].score};
    }
    return 0;
}

/* ---- evidence ---- */

static int evidence_lost(const struct match *match, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_CORRUPT, "slot %llu has a key, but nothing else is known about it",
                     (unsigned long long)match->slot);
}

static int evidence_instance(struct prediction_run *r, const struct match *match, struct prediction *p,
                             struct evidence *out, struct error *e)
{
    struct memory_instance instance;
    int found = snapshot_instance_at(r->retrieval.snapshot, match->slot, &instance, e);
    if (found <= 0) {
        return found < 0 ? -1 : evidence_lost(match, e);
    }
    out->kind = EVIDENCE_INSTANCE;
    out->name = arena_slice(&p->arena, instance.id);
    if (r->options->evidence_text && instance.text.data) {
        out->text = arena_slice(&p->arena, instance.text);
    }
    out->labels_count = instance.labels_count;
    out->labels = arena_alloc(&p->arena, instance.labels_count * sizeof *out->labels);
    if (snapshot_label_names(r->retrieval.snapshot, &instance, out->labels, e)) {
        return -1;
    }
    for (size_t i = 0; i < out->labels_count; i++) {
        out->labels[i] = arena_slice(&p->arena, out->labels[i]);
    }
    return 0;
}

static int evidence_label(struct prediction_run *r, const struct match *match, struct prediction *p,
                          struct evidence *out, struct error *e)
{
    const uint32_t *ids;
    size_t count;
    struct memory_label label;
    if (snapshot_values(r->retrieval.snapshot, match->slot, &ids, &count, e)) {
        return -1;
    }
    int found = count == 1 ? snapshot_label(r->retrieval.snapshot, ids[0], &label, e) : 0;
    if (found <= 0) {
        return found < 0 ? -1 : evidence_lost(match, e);
    }
    out->kind = EVIDENCE_LABEL;
    out->name = arena_slice(&p->arena, label.name);
    if (r->options->evidence_text && label.text.data) {
        out->text = arena_slice(&p->arena, label.text);
    }
    return 0;
}

/* The match that gave most among those not yet taken, where each kind's stand in falling order: a merge of two lists.
 */
static int evidence_next(const struct prediction_run *r, const uint32_t next[KINDS])
{
    const struct matches *m = r->scored.matches;
    if (next[INSTANCES] == m->counts[INSTANCES] || next[LABELS] == m->counts[LABELS]) {
        return next[INSTANCES] == m->counts[INSTANCES] ? LABELS : INSTANCES;
    }
    double instance = r->scored.weights[INSTANCES][next[INSTANCES]] * r->setting.lambda;
    double label = r->scored.weights[LABELS][next[LABELS]] * (1 - r->setting.lambda);
    bool label_first =
        instance != label ? label > instance : m->of[LABELS][next[LABELS]].tie < m->of[INSTANCES][next[INSTANCES]].tie;
    return label_first ? LABELS : INSTANCES;
}

/* Vectors of length 1 that are rounded to bf16 are a little longer or shorter: their product may pass 1 by 0.0005. What
 * is shown is a cosine; ranking and weights keep the number as it is. */
static float cosine_shown(float cosine)
{
    return cosine > 1 ? 1 : cosine < -1 ? -1 : cosine;
}

static int evidence_select(struct prediction_run *r, struct prediction *out, struct error *e)
{
    const struct matches *m = r->scored.matches;
    size_t count = m->counts[INSTANCES] + m->counts[LABELS];
    size_t max = count < r->options->evidence_max ? count : r->options->evidence_max;
    uint32_t next[KINDS] = {0};
    out->evidence = arena_alloc(&out->arena, max * sizeof *out->evidence);
    for (size_t i = 0; i < max; i++) {
        int kind = evidence_next(r, next);
        uint32_t at = next[kind]++;
        const struct match *match = &m->of[kind][at];
        out->evidence[i] =
            (struct evidence){.similarity = cosine_shown(match->similarity),
                              .has_lexical = r->retrieval.search.lexical,
                              .lexical = (float)(r->options->lexical * (double)cosine_shown(match->lexical)),
                              .weight = (float)r->scored.weights[kind][at]};
        out->evidence_count = i + 1;
        int failed = kind == INSTANCES ? evidence_instance(r, match, out, &out->evidence[i], e)
                                       : evidence_label(r, match, out, &out->evidence[i], e);
        if (failed) {
            return -1;
        }
    }
    return 0;
}

static void scored_keep(void *context, size_t setting, const struct scored_text *scored)
{
    struct prediction_run *r = context;
    (void)setting;
    r->scored = *scored;
}

static int text_predict(struct prediction_run *r, const struct tokens *input, const struct matches *m,
                        struct prediction *out, struct error *e)
{
    const struct judged text = {.matches = *m};
    out->truncated = input->truncated;
    out->memory_version = snapshot_version(r->retrieval.snapshot);
    memcpy(out->model_version, r->g->model_version, sizeof out->model_version);
    return scorer_text(r->scorer, r->retrieval.snapshot, &text, scored_keep, r, e) || labels_select(r, out, e) ||
                   evidence_select(r, out, e)
               ? -1
               : 0;
}

/* ---- a batch ---- */

static void run_open(struct prediction_run *r, const struct tokens *const *inputs, size_t n)
{
    const struct predict_options *o = r->options;
    const struct scorer_options scorer = {.settings = &r->setting,
                                          .settings_count = 1,
                                          .lexical_candidates = o->lexical_candidates,
                                          .depth = labels_wanted(o),
                                          .least = o->min_score};
    struct search search = search_for(&r->setting, 1, o->lexical_candidates);
    size_t most = 0;
    for (size_t first = 0, count; first < n; first += count) {
        count = engine_slice(r->g, inputs + first, n - first, n);
        most = count > most ? count : most;
    }
    retrieval_open(&r->retrieval, r->g, &search, most);
    r->scorer = scorer_open(&scorer);
}

static void run_close(struct prediction_run *r)
{
    retrieval_close(&r->retrieval);
    scorer_close(r->scorer);
    free(r->candidates);
}

int engine_predict_with(struct engine *g, const struct predict_options *options, const struct tokens *const *inputs,
                        size_t n, struct prediction *out, struct predict_times *times, struct error *e)
{
    struct prediction_run r = {.g = g, .options = options, .setting = setting_of(options)};
    uint64_t aggregate_us = 0;
    int result = -1;
    memset(out, 0, n * sizeof *out);
    if (!g->keys) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "an engine without an encoder or a memory was asked to predict");
    }
    run_open(&r, inputs, n);
    for (size_t first = 0, count; first < n; first += count) {
        count = engine_slice(g, inputs + first, n - first, r.retrieval.texts);
        if (retrieval_slice(&r.retrieval, inputs + first, count, e)) {
            goto done;
        }
        uint64_t start = clock_us();
        for (size_t i = 0; i < count; i++) {
            if (text_predict(&r, inputs[first + i], &r.retrieval.matches[i], &out[first + i], e)) {
                goto done;
            }
        }
        aggregate_us += clock_us() - start;
    }
    if (times) {
        *times = (struct predict_times){r.retrieval.encode_us, r.retrieval.search_us + aggregate_us};
    }
    result = 0;
done:
    for (size_t i = 0; result && i < n; i++) {
        prediction_free(&out[i]);
        out[i] = (struct prediction){0};
    }
    run_close(&r);
    return result;
}

int engine_predict(struct engine *g, const struct tokens *const *inputs, size_t n, struct prediction *out,
                   struct predict_times *times, struct error *e)
{
    struct predict_options options = engine_options(g);
    return engine_predict_with(g, &options, inputs, n, out, times, e);
}
