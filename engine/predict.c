/* Predict: encode, retrieve from one snapshot of the memory, aggregate, name the evidence (arXiv 2502.10615, section
 * 3). w = softmax over the b best keys of q.k / tau;   p = sum of w * (lambda * y | (1 - lambda) * e) Encoding and
 * search happen in a turn on the backend, slice by slice; aggregation reads only the snapshot and leaves the backend to
 * others. Sums are in double: their order is the hits' order, so equal hits give equal scores. The surprise: label
 * names are read only for labels that reach the output, and equal scores are common (labels of one instance share its
 * weight), so the cut at labels_max reads on to the end of its run of ties. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/internal.h"

enum { HITS_BYTES_MAX = 16 << 20 }; /* of one slice; bounds its texts where b is large */

struct tally_entry {
    uint32_t label;
    float score; /* what is published, rounded from sum */
    double sum;
};

/* Label id -> sum, for one text: a hash table by open addressing, emptied by raising the epoch. */
struct tally {
    struct tally_entry *entries;
    struct tally_place {
        uint32_t epoch, entry;
    } * places; /* [mask + 1], at least twice as many as entries */
    uint32_t mask, epoch, count;
};

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
    struct snapshot *snapshot;
    size_t hits_max;       /* of a text: b, or apart twice b / 2 */
    float *queries;        /* [texts of a slice, dim] */
    struct keys_hit *hits; /* [texts of a slice, hits_max]; apart: instances before labels */
    struct keys_hit *part; /* apart: [texts of a slice, hits_max / 2], of one kind */
    uint32_t *counts;      /* [texts of a slice] */
    uint32_t *part_counts; /* apart: the same, of one kind */
    double *weights;       /* [hits_max], of one text */
    struct tally tally;
    struct candidate *candidates;
    size_t candidates_capacity;
    uint64_t encode_us, retrieve_us;
};

/* ---- tally ---- */

static void tally_resize(struct tally *t, uint32_t places)
{
    free(t->places);
    t->places = mem_zero(places, sizeof *t->places);
    t->entries = mem_resize(t->entries, places / 2 * sizeof *t->entries);
    t->mask = places - 1;
    t->epoch = 1;
    for (uint32_t i = 0; i < t->count; i++) {
        uint32_t at = t->entries[i].label & t->mask;
        while (t->places[at].epoch == t->epoch) {
            at = (at + 1) & t->mask;
        }
        t->places[at] = (struct tally_place){t->epoch, i};
    }
}

static void tally_clear(struct tally *t)
{
    t->count = 0;
    if (!t->places || t->epoch == UINT32_MAX) {
        tally_resize(t, t->places ? t->mask + 1 : 1024);
    } else {
        t->epoch++;
    }
}

static void tally_add(struct tally *t, uint32_t label, double share)
{
    uint32_t at = label & t->mask; /* label ids are dense: their low bits spread well */
    while (t->places[at].epoch == t->epoch) {
        struct tally_entry *entry = &t->entries[t->places[at].entry];
        if (entry->label == label) {
            entry->sum += share;
            return;
        }
        at = (at + 1) & t->mask;
    }
    t->places[at] = (struct tally_place){t->epoch, t->count};
    t->entries[t->count++] = (struct tally_entry){.label = label, .sum = share};
    if (t->count == (t->mask + 1) / 2) {
        tally_resize(t, (t->mask + 1) * 2);
    }
}

/* ---- one text ---- */

static double kind_factor(const struct predict_options *o, uint32_t kind)
{
    return kind == KEY_INSTANCE ? o->lambda : 1 - o->lambda;
}

/* Softmax over the hits (falling scores), without those whose score is no number. Returns how many stay. */
static uint32_t hits_weigh(struct keys_hit *hits, uint32_t count, double tau, double *weights)
{
    uint32_t kept = 0;
    double sum = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (isfinite(hits[i].score)) {
            hits[kept++] = hits[i];
        }
    }
    for (uint32_t i = 0; i < kept; i++) {
        weights[i] = exp(((double)hits[i].score - (double)hits[0].score) / tau);
        sum += weights[i];
    }
    for (uint32_t i = 0; i < kept; i++) {
        weights[i] /= sum;
    }
    return kept;
}

/* The same by pool: where the kinds are searched apart, each has a softmax of its own. */
static uint32_t text_weigh(const struct prediction_run *r, struct keys_hit *hits, uint32_t count)
{
    uint32_t split = 0;
    while (r->options->apart && split < count && hits[split].kind == KEY_INSTANCE) {
        split++;
    }
    uint32_t instances = hits_weigh(hits, split, r->options->tau, r->weights);
    uint32_t others = hits_weigh(hits + split, count - split, r->options->tau, r->weights + split);
    memmove(hits + instances, hits + split, others * sizeof *hits);
    memmove(r->weights + instances, r->weights + split, others * sizeof *r->weights);
    return instances + others;
}

static int hits_tally(struct prediction_run *r, const struct keys_hit *hits, uint32_t count, struct error *e)
{
    tally_clear(&r->tally);
    for (uint32_t i = 0; i < count; i++) {
        const uint32_t *labels;
        size_t labels_count;
        if (snapshot_values(r->snapshot, hits[i].slot, &labels, &labels_count, e)) {
            return -1;
        }
        double share = r->weights[i] * kind_factor(r->options, hits[i].kind);
        for (size_t l = 0; l < labels_count; l++) {
            tally_add(&r->tally, labels[l], share);
        }
    }
    for (uint32_t i = 0; i < r->tally.count; i++) {
        r->tally.entries[i].score = (float)r->tally.entries[i].sum;
    }
    return 0;
}

static int by_falling_score(const void *a, const void *b)
{
    float x = ((const struct tally_entry *)a)->score, y = ((const struct tally_entry *)b)->score;
    return (x < y) - (x > y);
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

/* The tally's best labels, named, into out->labels. */
static int labels_select(struct prediction_run *r, struct prediction *out, struct error *e)
{
    struct tally *t = &r->tally;
    size_t count = 0, max = r->options->labels_max ? r->options->labels_max : SIZE_MAX;
    if (t->count) {
        qsort(t->entries, t->count, sizeof *t->entries, by_falling_score);
    }
    while (count < t->count && (double)t->entries[count].score >= r->options->min_score &&
           (count < max || t->entries[count].score == t->entries[count - 1].score)) {
        count++;
    }
    if (count == 0) {
        return 0;
    }
    if (count > r->candidates_capacity) {
        r->candidates_capacity = count * 2;
        r->candidates = mem_resize(r->candidates, r->candidates_capacity * sizeof *r->candidates);
    }
    for (size_t i = 0; i < count; i++) {
        struct memory_label label;
        int found = snapshot_label(r->snapshot, t->entries[i].label, &label, e);
        if (found <= 0) {
            return found < 0 ? -1
                             : error_set(e, ERROR_FATAL, E_CORRUPT,
                                         "a value names the label number %u, which is not there", t->entries[i].label);
        }
        r->candidates[i] = (struct candidate){label.name, t->entries[i].score, label.tie};
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

static int by_bytes(const void *a, const void *b)
{
    return slice_compare(*(const struct slice *)a, *(const struct slice *)b);
}

static int evidence_lost(const struct keys_hit *hit, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_CORRUPT, "slot %llu holds a key, but nothing is known of it",
                     (unsigned long long)hit->slot);
}

static int evidence_instance(struct prediction_run *r, const struct keys_hit *hit, struct prediction *p,
                             struct evidence *out, struct error *e)
{
    struct memory_instance instance;
    int found = snapshot_instance_at(r->snapshot, hit->slot, &instance, e);
    if (found <= 0) {
        return found < 0 ? -1 : evidence_lost(hit, e);
    }
    out->kind = EVIDENCE_INSTANCE;
    out->name = arena_slice(&p->arena, instance.id);
    if (r->options->evidence_text && instance.text.data) {
        out->text = arena_slice(&p->arena, instance.text);
    }
    out->labels_count = instance.labels_count;
    out->labels = arena_alloc(&p->arena, instance.labels_count * sizeof *out->labels);
    for (size_t i = 0; i < instance.labels_count; i++) {
        struct memory_label label;
        found = snapshot_label(r->snapshot, instance.labels[i], &label, e);
        if (found <= 0) {
            return found < 0 ? -1 : evidence_lost(hit, e);
        }
        out->labels[i] = arena_slice(&p->arena, label.name);
    }
    qsort(out->labels, out->labels_count, sizeof *out->labels, by_bytes);
    return 0;
}

static int evidence_label(struct prediction_run *r, const struct keys_hit *hit, struct prediction *p,
                          struct evidence *out, struct error *e)
{
    const uint32_t *ids;
    size_t count;
    struct memory_label label;
    if (snapshot_values(r->snapshot, hit->slot, &ids, &count, e)) {
        return -1;
    }
    int found = count == 1 ? snapshot_label(r->snapshot, ids[0], &label, e) : 0;
    if (found <= 0) {
        return found < 0 ? -1 : evidence_lost(hit, e);
    }
    out->kind = EVIDENCE_LABEL;
    out->name = arena_slice(&p->arena, label.name);
    if (r->options->evidence_text && label.text.data) {
        out->text = arena_slice(&p->arena, label.text);
    }
    return 0;
}

/* The hit that gave most among those not yet taken, where each kind's hits stand in falling order: a merge of two
 * lists. next[0] walks the instances, next[1] the labels. */
static uint32_t evidence_next(const struct prediction_run *r, const struct keys_hit *hits, uint32_t count,
                              uint32_t next[2])
{
    static const uint32_t kinds[2] = {KEY_INSTANCE, KEY_LABEL};
    for (int k = 0; k < 2; k++) {
        while (next[k] < count && hits[next[k]].kind != kinds[k]) {
            next[k]++;
        }
    }
    int first = 0;
    if (next[0] == count || next[1] == count) {
        first = next[0] == count;
    } else {
        double instance = r->weights[next[0]] * kind_factor(r->options, KEY_INSTANCE);
        double label = r->weights[next[1]] * kind_factor(r->options, KEY_LABEL);
        first = instance != label ? label > instance : hits[next[1]].tie < hits[next[0]].tie;
    }
    return next[first]++;
}

static int evidence_select(struct prediction_run *r, const struct keys_hit *hits, uint32_t count,
                           struct prediction *out, struct error *e)
{
    size_t max = count < r->options->evidence_max ? count : r->options->evidence_max;
    uint32_t next[2] = {0, 0};
    out->evidence = arena_alloc(&out->arena, max * sizeof *out->evidence);
    for (size_t i = 0; i < max; i++) {
        uint32_t at = evidence_next(r, hits, count, next);
        out->evidence[i] = (struct evidence){.similarity = hits[at].score, .weight = (float)r->weights[at]};
        out->evidence_count = i + 1;
        int failed = hits[at].kind == KEY_INSTANCE ? evidence_instance(r, &hits[at], out, &out->evidence[i], e)
                                                   : evidence_label(r, &hits[at], out, &out->evidence[i], e);
        if (failed) {
            return -1;
        }
    }
    return 0;
}

static int text_predict(struct prediction_run *r, const struct tokens *input, struct keys_hit *hits, uint32_t count,
                        struct prediction *out, struct error *e)
{
    out->truncated = input->truncated;
    out->memory_version = snapshot_version(r->snapshot);
    memcpy(out->model_version, r->g->model_version, sizeof out->model_version);
    count = text_weigh(r, hits, count);
    if (hits_tally(r, hits, count, e) || labels_select(r, out, e) || evidence_select(r, hits, count, out, e)) {
        return -1;
    }
    return 0;
}

/* ---- a batch ---- */

/* A key whose value is zero is no candidate. */
static enum key_kind kinds_for(double lambda)
{
    return lambda <= 0 ? KEY_LABEL : lambda >= 1 ? KEY_INSTANCE : KEY_BOTH;
}

/* The b / 2 best of each kind, instances before labels. */
static int scan_apart(struct prediction_run *r, size_t n, struct error *e)
{
    const struct backend_operations *ops = r->g->backend->ops;
    static const enum key_kind kinds[2] = {KEY_INSTANCE, KEY_LABEL};
    size_t half = r->hits_max / 2;
    memset(r->counts, 0, n * sizeof *r->counts);
    for (int k = 0; k < 2; k++) {
        if (!(kinds_for(r->options->lambda) & kinds[k])) {
            continue;
        }
        if (ops->keys_scan(r->g->keys, r->queries, n, half, kinds[k], r->part, r->part_counts, e)) {
            return -1;
        }
        for (size_t i = 0; i < n; i++) {
            memcpy(r->hits + i * r->hits_max + r->counts[i], r->part + i * half, r->part_counts[i] * sizeof *r->part);
            r->counts[i] += r->part_counts[i];
        }
    }
    return 0;
}

/* Within a turn: queries, hits and counts of one slice. The snapshot is taken in the first turn, not before it, so that
 * a label folded while this batch waited is already seen. */
static int slice_retrieve(struct prediction_run *r, const struct tokens *const *inputs, size_t n, struct error *e)
{
    const struct backend_operations *ops = r->g->backend->ops;
    uint64_t start = clock_us();
    if (!r->snapshot && memory_snapshot(r->g->memory, &r->snapshot, e)) {
        return -1;
    }
    if (encoder_forward(r->g->encoder, inputs, n, r->queries, e)) {
        return -1;
    }
    uint64_t encoded = clock_us();
    r->encode_us += encoded - start;
    int failed = ops->keys_sync(r->g->keys, snapshot_keys(r->snapshot), e) ||
                 (r->options->apart ? scan_apart(r, n, e)
                                    : ops->keys_scan(r->g->keys, r->queries, n, r->options->b,
                                                     kinds_for(r->options->lambda), r->hits, r->counts, e));
    r->retrieve_us += clock_us() - encoded;
    return failed ? -1 : 0;
}

static void run_allocate(struct prediction_run *r, const struct tokens *const *inputs, size_t n, size_t count_max)
{
    size_t most = 0;
    for (size_t first = 0, count; first < n; first += count) {
        count = engine_slice(r->g, inputs + first, n - first, count_max);
        most = count > most ? count : most;
    }
    r->queries = mem_alloc(most * r->g->dim * sizeof *r->queries);
    r->hits = mem_alloc(most * r->hits_max * sizeof *r->hits);
    r->counts = mem_zero(most, sizeof *r->counts);
    r->weights = mem_alloc(r->hits_max * sizeof *r->weights);
    if (r->options->apart) {
        r->part = mem_alloc(most * r->hits_max / 2 * sizeof *r->part);
        r->part_counts = mem_alloc(most * sizeof *r->part_counts);
    }
}

static void run_free(struct prediction_run *r)
{
    free(r->candidates);
    free(r->tally.places);
    free(r->tally.entries);
    free(r->weights);
    free(r->part_counts);
    free(r->counts);
    free(r->part);
    free(r->hits);
    free(r->queries);
    if (r->snapshot) {
        snapshot_release(r->snapshot);
    }
}

int engine_predict_with(struct engine *g, const struct predict_options *options, const struct tokens *const *inputs,
                        size_t n, struct prediction *out, struct predict_times *times, struct error *e)
{
    size_t half = options->b > 1 ? options->b / 2 : 1;
    struct prediction_run r = {.g = g, .options = options, .hits_max = options->apart ? 2 * half : options->b};
    size_t texts_fit = HITS_BYTES_MAX / sizeof(struct keys_hit) / r.hits_max;
    size_t texts_max = texts_fit ? texts_fit : 1;
    int result = -1;
    memset(out, 0, n * sizeof *out);
    if (!g->keys) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "an engine without an encoder or a memory was asked to predict");
    }
    run_allocate(&r, inputs, n, texts_max);
    for (size_t first = 0, count; first < n; first += count) {
        count = engine_slice(g, inputs + first, n - first, texts_max);
        turns_take(&g->turns, TURN_TEXT);
        int failed = slice_retrieve(&r, inputs + first, count, e);
        turns_give(&g->turns);
        if (failed) {
            goto done;
        }
        uint64_t start = clock_us();
        for (size_t i = 0; i < count; i++) {
            if (text_predict(&r, inputs[first + i], r.hits + i * r.hits_max, r.counts[i], &out[first + i], e)) {
                goto done;
            }
        }
        r.retrieve_us += clock_us() - start;
    }
    if (times) {
        *times = (struct predict_times){r.encode_us, r.retrieve_us};
    }
    result = 0;
done:
    for (size_t i = 0; result && i < n; i++) {
        prediction_free(&out[i]);
        out[i] = (struct prediction){0};
    }
    run_free(&r);
    return result;
}

int engine_predict(struct engine *g, const struct tokens *const *inputs, size_t n, struct prediction *out,
                   struct predict_times *times, struct error *e)
{
    struct predict_options options = engine_options(g);
    return engine_predict_with(g, &options, inputs, n, out, times, e);
}
