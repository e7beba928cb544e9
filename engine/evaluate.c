/* Evaluation: what a list of settings predicts against gold labels, from one retrieval per text; without a list, the
 * engine's own setting. What is measured, and the formulas, are metrics.c's, the predictions are scorer.c's; here texts
 * are retrieved and their gold labels looked up: numbers, 1/p and deciles. Also leave-one-out: the memory's own
 * instances, each without its own key. The surprise: labels of equal score share their ranks, else the hash that orders
 * ties would decide: on debtags, where labels share a text, by 1.5 points of P@1. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/internal.h"

struct evaluation {
    struct engine *g;
    struct evaluation_options options;
    struct predict_options predict;
    struct setting own; /* where no settings were given: predict's */
    const struct setting *settings;
    size_t settings_count;
    struct cutoffs cutoffs;
    struct decile deciles[METRICS_DECILES];
    double c; /* C of the propensity model; NaN where N < 3 */
    struct metrics_deciles by_decile;
    struct label_counts by_label;
    struct metrics_text *texts; /* [kept, settings_count], with keep_texts */
    size_t kept, kept_capacity;
    size_t workers;
    struct worker { /* one a hand of the pool */
        struct evaluation *v;
        struct scorer *scorer;
        struct metrics_sums *sums; /* [settings_count] */
        const struct judged *text; /* in hand */
        size_t number;             /* where its values are kept */
    } * worker;
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

/* N, and how many instances each label of the memory has (out NULL: not asked for). */
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
        failed = out ? snapshot_each_label(snapshot, count_add, out, e) : 0;
    }
    snapshot_release(snapshot);
    return failed;
}

static void workers_open(struct evaluation *v)
{
    const struct scorer_options scorer = {.settings = v->settings,
                                          .settings_count = v->settings_count,
                                          .lexical_candidates = v->predict.lexical_candidates,
                                          .depth = v->cutoffs.deepest};
    v->workers = pool_hands(v->g->pool);
    v->worker = mem_zero(v->workers, sizeof *v->worker);
    for (size_t i = 0; i < v->workers; i++) {
        v->worker[i] = (struct worker){
            .v = v,
            .scorer = scorer_open(&scorer),
            .sums = mem_zero(v->settings_count, sizeof *v->worker[i].sums),
        };
    }
}

int evaluation_open(struct evaluation **out, struct engine *g, const struct evaluation_options *options,
                    struct error *e)
{
    const struct propensity_source *source = &options->propensity;
    struct counts counts = {0};
    uint64_t n = source->n;
    *out = NULL;
    if (!source->from_train) {
        if (counts_from_memory(g->memory, &n, options->settings ? NULL : &counts, e)) {
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
    v->predict = engine_options(g);
    v->own = setting_of(&v->predict);
    v->settings = options->settings ? options->settings : &v->own;
    v->settings_count = options->settings ? options->settings_count : 1;
    v->c = n < 3 ? (double)NAN : (log((double)n) - 1) * pow(source->b + 1, source->a);
    cutoffs_set(&v->cutoffs, options->at, options->at_count);
    deciles_cut(v->deciles, counts.values, counts.count);
    free(counts.values);
    workers_open(v);
    *out = v;
    return 0;
}

void evaluation_close(struct evaluation *v)
{
    if (!v) {
        return;
    }
    for (size_t i = 0; i < v->workers; i++) {
        scorer_close(v->worker[i].scorer);
        free(v->worker[i].sums);
    }
    label_counts_free(&v->by_label);
    free(v->worker);
    free(v->texts);
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

/* The label's number in the memory, NO_LABEL where that does not know it, and N_l, 0 where nobody does. */
static int label_look(const struct evaluation *v, const struct snapshot *snapshot, struct slice name, uint32_t *id,
                      uint64_t *count, struct error *e)
{
    struct memory_label label;
    int found = snapshot_label_named(snapshot, name, &label, e);
    *id = found > 0 ? label.id : NO_LABEL;
    *count = v->options.propensity.from_train ? count_in_train(&v->options.propensity, name)
             : found > 0                      ? label.instances
                                              : 0;
    return found < 0 ? -1 : 0;
}

/* 1/p and decile of a label that has `count` instances. */
static struct gold_label gold_of(const struct evaluation *v, uint64_t count)
{
    const struct propensity_source *source = &v->options.propensity;
    return (struct gold_label){.inverse = 1 + v->c * pow((double)count + source->b, -source->a),
                               .decile = decile_of(v->deciles, count)};
}

static void workers_snapshot(struct evaluation *v, const struct snapshot *snapshot)
{
    for (size_t i = 0; i < v->workers; i++) {
        scorer_snapshot(v->worker[i].scorer, snapshot);
    }
}

/* ---- judging ---- */

static void judged_open(struct judged *text, size_t gold_max, size_t unwanted_max)
{
    text->gold = mem_alloc(gold_max * sizeof *text->gold);
    text->gold_ids = mem_alloc(gold_max * sizeof *text->gold_ids);
    text->unwanted = mem_alloc(unwanted_max * sizeof *text->unwanted);
}

static void judged_close(struct judged *text)
{
    free(text->gold);
    free(text->gold_ids);
    free(text->unwanted);
}

/* Brings the gold into the order that metrics ask for. */
static void judged_sort(struct judged *text)
{
    uint32_t *places = mem_alloc(text->gold_count * sizeof *places);
    uint32_t *ids = mem_alloc(text->gold_count * sizeof *ids);
    gold_sort(text->gold, text->gold_count, places);
    for (size_t i = 0; i < text->gold_count; i++) {
        ids[places[i]] = text->gold_ids[i];
    }
    free(text->gold_ids);
    text->gold_ids = ids;
    free(places);
}

/* The text's values for one setting. */
static void setting_judge(void *context, size_t setting, const struct scored_text *scored)
{
    struct worker *w = context;
    struct evaluation *v = w->v;
    struct metrics_text values;
    metrics_text(&v->cutoffs, w->text->gold, w->text->gold_count, scored->labels, scored->count, &values, NULL);
    metrics_add(&w->sums[setting], &v->cutoffs, &values);
    if (v->options.keep_texts) {
        v->texts[w->number * v->settings_count + setting] = values;
    }
}

struct judging {
    struct evaluation *v;
    const struct judged *texts;
};

static int text_judge(void *context, size_t text, size_t hand, struct error *e)
{
    const struct judging *j = context;
    struct worker *w = &j->v->worker[hand];
    w->text = &j->texts[text];
    w->number = j->v->kept + text;
    return w->text->gold_count ? scorer_text(w->scorer, w->text, setting_judge, w, e) : 0;
}

/* Every setting for each text that has gold labels, by all workers. */
static int texts_judge(struct evaluation *v, const struct judged *texts, size_t n, struct error *e)
{
    struct judging j = {.v = v, .texts = texts};
    if (v->options.keep_texts && v->kept + n > v->kept_capacity) {
        v->kept_capacity = 2 * (v->kept + n);
        v->texts = mem_resize(v->texts, v->kept_capacity * v->settings_count * sizeof *v->texts);
        memset(v->texts + v->kept * v->settings_count, 0,
               (v->kept_capacity - v->kept) * v->settings_count * sizeof *v->texts);
    }
    int failed = pool_share(v->g->pool, n, text_judge, &j, e);
    v->kept += v->options.keep_texts ? n : 0;
    return failed;
}

/* ---- a test text ---- */

bool is_left_out(const struct left_out *left_out, const struct slice *self, struct slice label)
{
    bool is = self && slice_equal(label, *self);
    for (size_t i = 0; left_out && !is && i < left_out->count; i++) {
        is = slice_equal(label, left_out->labels[i]);
    }
    return is;
}

/* What the text is judged by; its matches are set elsewhere. */
static int text_judged(struct judged *out, const struct evaluation *v, const struct snapshot *snapshot,
                       const struct instance_record *text, const struct left_out *left_out, struct error *e)
{
    const struct slice *self = v->options.exclude_self ? &text->id : NULL;
    size_t others = left_out ? left_out->count : 0;
    uint64_t count;
    judged_open(out, text->labels_count, others + 1);
    for (size_t i = 0; i < others + (self != NULL); i++) {
        struct slice name = i < others ? left_out->labels[i] : *self;
        if (label_look(v, snapshot, name, &out->unwanted[out->unwanted_count++], &count, e)) {
            return -1;
        }
    }
    for (size_t i = 0; i < text->labels_count; i++) {
        if (is_left_out(left_out, self, text->labels[i])) {
            continue;
        }
        if (label_look(v, snapshot, text->labels[i], &out->gold_ids[out->gold_count], &count, e)) {
            return -1;
        }
        out->gold[out->gold_count++] = gold_of(v, count);
    }
    judged_sort(out);
    return 0;
}

/* ---- deciles and counts of labels: one setting alone ---- */

struct detail {
    struct evaluation *v;
    const struct snapshot *snapshot;
    const struct judged *text;
    struct error *e;
    bool failed;
};

/* What was predicted: each label's share of the ranks within each cutoff. */
static void predictions_count(struct detail *d, const struct scored_text *scored)
{
    struct evaluation *v = d->v;
    const struct ranked_label *labels = scored->labels;
    size_t count = scored->count;
    for (size_t start = 0, end; start < count && start < v->cutoffs.deepest; start = end) {
        end = ties_end(labels, count, start);
        for (size_t i = start; i < end && !d->failed; i++) {
            struct memory_label known;
            int found = snapshot_label(d->snapshot, scored->ids[i], &known, d->e);
            if (found <= 0) {
                d->failed = found < 0;
                continue;
            }
            struct evaluated_label *label = label_counts_of(&v->by_label, known.name);
            for (size_t k = 0; k < v->cutoffs.count; k++) {
                double chance = ties_chance(start, end, v->cutoffs.at[k]);
                label->predicted[k] += chance;
                label->hits[k] += labels[i].gold == METRICS_NOT_GOLD ? 0 : chance;
            }
        }
    }
}

static void detail_judge(void *context, size_t setting, const struct scored_text *scored)
{
    struct detail *d = context;
    struct metrics_text values;
    metrics_text(&d->v->cutoffs, d->text->gold, d->text->gold_count, scored->labels, scored->count, &values,
                 &d->v->by_decile);
    metrics_add(&d->v->worker[0].sums[setting], &d->v->cutoffs, &values);
    if (d->v->options.per_label) {
        predictions_count(d, scored);
    }
}

static int text_detail(struct evaluation *v, const struct snapshot *snapshot, const struct judged *judged,
                       const struct instance_record *text, const struct left_out *left_out, struct error *e)
{
    struct detail d = {.v = v, .snapshot = snapshot, .text = judged, .e = e};
    const struct slice *self = v->options.exclude_self ? &text->id : NULL;
    if (judged->gold_count == 0) {
        return 0;
    }
    for (size_t i = 0; v->options.per_label && i < text->labels_count; i++) {
        if (!is_left_out(left_out, self, text->labels[i])) {
            label_counts_of(&v->by_label, text->labels[i])->gold++;
        }
    }
    return scorer_text(v->worker[0].scorer, judged, detail_judge, &d, e) || d.failed ? -1 : 0;
}

/* ---- test texts ---- */

static int slice_evaluate(struct evaluation *v, struct retrieval *r, const struct instance_record *texts,
                          const struct left_out *left_out, size_t n, struct error *e)
{
    struct judged *judged = mem_zero(n, sizeof *judged);
    int result = 0;
    workers_snapshot(v, r->snapshot);
    for (size_t i = 0; i < n && result == 0; i++) {
        const struct left_out *out = left_out ? &left_out[i] : NULL;
        judged[i].matches = r->matches[i];
        result = text_judged(&judged[i], v, r->snapshot, &texts[i], out, e);
        if (result == 0 && !v->options.settings) {
            result = text_detail(v, r->snapshot, &judged[i], &texts[i], out, e);
        }
    }
    if (result == 0 && v->options.settings) {
        result = texts_judge(v, judged, n, e);
    }
    for (size_t i = 0; i < n; i++) {
        judged_close(&judged[i]);
    }
    free(judged);
    return result;
}

int evaluation_add(struct evaluation *v, const struct instance_record *texts, const struct left_out *left_out, size_t n,
                   struct error *e)
{
    struct search search = search_for(v->settings, v->settings_count, v->predict.lexical_candidates);
    struct tokens *tokens = mem_zero(n, sizeof *tokens);
    const struct tokens **inputs = mem_alloc(n * sizeof *inputs);
    struct retrieval r;
    int result = 0;
    retrieval_open(&r, v->g, &search, n);
    for (size_t i = 0; i < n; i++) {
        encoder_tokenize(v->g->encoder, ENCODER_TEXT, texts[i].text, &tokens[i]);
        inputs[i] = &tokens[i];
    }
    for (size_t first = 0, count; first < n && result == 0; first += count) {
        count = engine_slice(v->g, inputs + first, n - first, r.texts);
        retrieval_begin(&r, inputs + first, count);
        result =
            retrieval_end(&r, e) || slice_evaluate(v, &r, texts + first, left_out ? left_out + first : NULL, count, e);
    }
    retrieval_close(&r);
    for (size_t i = 0; i < n; i++) {
        tokens_free(&tokens[i]);
    }
    free(inputs);
    free(tokens);
    return result ? -1 : 0;
}

/* ---- leave-one-out ---- */

struct own_row {
    uint64_t order, slot;
};

static int by_order(const void *a, const void *b)
{
    const struct own_row *x = a, *y = b;
    return x->order != y->order ? (x->order > y->order) - (x->order < y->order)
                                : (x->slot > y->slot) - (x->slot < y->slot);
}

/* All instances with labels, in an order that is the same on every replica: by their ids' hashes, mixed. */
static size_t rows_order(const struct keys_view *view, struct own_row **out)
{
    struct own_row *rows = NULL;
    size_t count = 0, capacity = 0;
    for (size_t b = 0; b < view->count; b++) {
        const struct keys_block *block = &view->blocks[b];
        for (uint32_t r = 0; block->kind == KEY_INSTANCE && r < block->rows; r++) {
            if (!block->candidate[r]) {
                continue;
            }
            if (count == capacity) {
                capacity = capacity ? 2 * capacity : 4096;
                rows = mem_resize(rows, capacity * sizeof *rows);
            }
            rows[count++] =
                (struct own_row){(block->ties[r] ^ block->ties[r] >> 29) * 0x9E3779B97F4A7C15U, block->first_slot + r};
        }
    }
    if (count) {
        qsort(rows, count, sizeof *rows, by_order);
    }
    *out = rows;
    return count;
}

static void row_vector(const struct keys_view *view, size_t block_rows, uint64_t slot, float *out)
{
    const struct keys_block *block = &view->blocks[slot / block_rows];
    size_t at = slot % block_rows * view->dim;
    for (size_t i = 0; i < view->dim; i++) {
        if (view->dtype == DTYPE_F32) {
            out[i] = ((const float *)block->vectors)[at + i];
        } else {
            uint32_t bits = (uint32_t)((const uint16_t *)block->vectors)[at + i] << 16;
            memcpy(&out[i], &bits, sizeof out[i]);
        }
    }
}

/* The row's labels are the gold; with exclude_self the label named as its id is neither that nor predicted. */
static int row_judged(struct judged *out, const struct evaluation *v, const struct snapshot *snapshot, uint64_t slot,
                      struct error *e)
{
    struct memory_instance instance;
    struct memory_label label;
    uint64_t count;
    int found = snapshot_instance_at(snapshot, slot, &instance, e);
    if (found <= 0) {
        return found < 0 ? -1 : slot_lost(slot, e);
    }
    judged_open(out, instance.labels_count, 1);
    out->left_out = true;
    if (v->options.exclude_self &&
        label_look(v, snapshot, instance.id, &out->unwanted[out->unwanted_count++], &count, e)) {
        return -1;
    }
    for (size_t i = 0; i < instance.labels_count; i++) {
        if (out->unwanted_count && instance.labels[i] == out->unwanted[0]) {
            continue;
        }
        found = snapshot_label(snapshot, instance.labels[i], &label, e);
        if (found <= 0) {
            return found < 0 ? -1 : label_lost(instance.labels[i], e);
        }
        out->gold_ids[out->gold_count] = label.id;
        out->gold[out->gold_count++] = gold_of(v, label.instances);
    }
    judged_sort(out);
    return 0;
}

/* Takes the row's own key out of its matches. */
static void own_remove(struct matches *m, uint64_t slot)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < m->counts[INSTANCES]; i++) {
        if (m->of[INSTANCES][i].slot != slot) {
            m->of[INSTANCES][kept++] = m->of[INSTANCES][i];
        }
    }
    m->counts[INSTANCES] = kept;
}

/* Retrieves, judges and adds the rows; with a lexical score the caller holds words_lock. */
static int rows_evaluate(struct evaluation *v, struct retrieval *r, const struct own_row *rows, size_t n,
                         struct error *e)
{
    const struct keys_view *view = snapshot_keys(r->snapshot);
    size_t block_rows = snapshot_block_rows(r->snapshot);
    struct judged *judged = mem_zero(n, sizeof *judged);
    int result = 0;
    for (size_t i = 0; i < n; i++) {
        row_vector(view, block_rows, rows[i].slot, r->queries + i * view->dim);
    }
    result = retrieval_search(r, n, e);
    for (size_t i = 0; i < n && result == 0; i++) {
        own_remove(&r->matches[i], rows[i].slot);
        if (search_lexical(&r->search) && retrieval_score_own(r, rows[i].slot, &r->matches[i], e)) {
            result = -1;
            break;
        }
        judged[i].matches = r->matches[i];
        result = row_judged(&judged[i], v, r->snapshot, rows[i].slot, e);
    }
    result = result || texts_judge(v, judged, n, e) ? -1 : 0;
    for (size_t i = 0; i < n; i++) {
        judged_close(&judged[i]);
    }
    free(judged);
    return result;
}

int engine_labelled(struct engine *g, size_t *count, struct error *e)
{
    struct snapshot *snapshot;
    struct own_row *rows;
    if (memory_snapshot(g->memory, &snapshot, e)) {
        return -1;
    }
    *count = rows_order(snapshot_keys(snapshot), &rows);
    free(rows);
    snapshot_release(snapshot);
    return 0;
}

int evaluation_leave_one_out(struct evaluation *v, size_t skip, size_t sample,
                             void (*progress)(size_t done, size_t n, void *context), void *context, struct error *e)
{
    enum { ROWS_AT_ONCE = 64 };
    struct search search = search_for(v->settings, v->settings_count, v->predict.lexical_candidates);
    struct own_row *rows = NULL;
    struct retrieval r;
    size_t n = 0;
    int result = -1;
    search.count++; /* its own key */
    retrieval_open(&r, v->g, &search, ROWS_AT_ONCE);
    r.queries = mem_alloc(r.texts * v->g->dim * sizeof *r.queries);
    if (memory_snapshot(v->g->memory, &r.snapshot, e)) {
        goto done;
    }
    n = rows_order(snapshot_keys(r.snapshot), &rows);
    n = n > skip && n - skip > sample ? skip + sample : n;
    workers_snapshot(v, r.snapshot);
    for (size_t first = skip, count; first < n; first += count) {
        count = n - first < r.texts ? n - first : r.texts;
        pthread_mutex_lock(&v->g->words_lock);
        if (search_lexical(&search)) {
            engine_lexical_sync(v->g, r.snapshot);
        }
        int failed = rows_evaluate(v, &r, rows + first, count, e);
        pthread_mutex_unlock(&v->g->words_lock);
        if (failed) {
            goto done;
        }
        if (progress) {
            progress(first + count - skip, n - skip, context);
        }
    }
    result = 0;
done:
    retrieval_close(&r);
    free(rows);
    return result;
}

/* ---- results ---- */

/* What all workers have summed for one setting. */
static struct metrics_sums sums_of(const struct evaluation *v, size_t setting)
{
    struct metrics_sums sums = v->worker[0].sums[setting];
    for (size_t w = 1; w < v->workers; w++) {
        metrics_merge(&sums, &v->worker[w].sums[setting]);
    }
    return sums;
}

const struct metrics_text *evaluation_text(const struct evaluation *v, size_t text, size_t setting)
{
    return text < v->kept ? &v->texts[text * v->settings_count + setting] : NULL;
}

void evaluation_metrics(const struct evaluation *v, size_t setting, struct metrics *out)
{
    struct metrics_sums sums = sums_of(v, setting);
    *out = (struct metrics){.n = sums.n, .calibration_error = metrics_calibration_error(&sums)};
    for (size_t k = 0; k < v->cutoffs.count; k++) {
        out->at[k] = metrics_values(&sums, &v->cutoffs, k);
    }
    for (unsigned d = 0; d < METRICS_DECILES && !v->options.settings; d++) {
        struct metrics_decile *decile = &out->deciles[d];
        decile->labels = v->deciles[d];
        decile->gold = v->by_decile.gold[d];
        for (size_t k = 0; k < v->cutoffs.count; k++) {
            decile->at[k] = metrics_decile_values(&sums, &v->by_decile, &v->cutoffs, d, k);
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
        uint32_t id;
        result = label_look(v, snapshot, label.name, &id, &label.train, e);
        if (result == 0 && each(&label, context)) {
            break;
        }
    }
    snapshot_release(snapshot);
    free(sorted);
    return result;
}
