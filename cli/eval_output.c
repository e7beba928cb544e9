/* What `engram eval` shows: the metrics as a table or as JSON, their parts by decile of label frequency, and the counts
 * of each label as JSON lines. Metrics are rows and cutoffs columns, in the order in which they were asked for. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/internal.h"

static const struct row {
    const char *name;
    size_t offset;
} rows[] = {
    {"P", offsetof(struct metrics_values, precision)},   {"PSP", offsetof(struct metrics_values, psp)},
    {"R", offsetof(struct metrics_values, recall)},      {"nDCG", offsetof(struct metrics_values, ndcg)},
    {"PSnDCG", offsetof(struct metrics_values, psndcg)},
};

enum { ROWS = sizeof rows / sizeof *rows };

static double value_of(const struct metrics_values *values, const struct row *row)
{
    double value;
    memcpy(&value, (const char *)values + row->offset, sizeof value);
    return value;
}

/* ---- the list of cutoffs ---- */

static bool cutoff_add(struct eval_cutoffs *c, const char *text, size_t bytes, struct buffer *why)
{
    size_t k = 0;
    for (size_t i = 0; i < bytes && k <= METRICS_RANK_MAX; i++) {
        k = text[i] >= '0' && text[i] <= '9' ? 10 * k + (size_t)(text[i] - '0') : METRICS_RANK_MAX + 1;
    }
    if (k < 1 || k > METRICS_RANK_MAX) {
        buffer_format(why, "\"%.*s\" is not a number from 1 to %d", (int)bytes, text, METRICS_RANK_MAX);
        return false;
    }
    for (size_t i = 0; i < c->count; i++) {
        if (c->at[i] == k) {
            buffer_format(why, "%zu is given twice", k);
            return false;
        }
    }
    if (c->count == METRICS_CUTOFFS_MAX) {
        buffer_format(why, "there are more than %d numbers", METRICS_CUTOFFS_MAX);
        return false;
    }
    c->at[c->count++] = k;
    return true;
}

bool eval_cutoffs_read(struct eval_cutoffs *c, const char *list, struct buffer *why)
{
    c->count = 0;
    for (const char *at = list;; at++) {
        size_t bytes = strcspn(at, ",");
        if (!cutoff_add(c, at, bytes, why)) {
            return false;
        }
        at += bytes;
        if (!*at) {
            return true;
        }
    }
}

/* ---- JSON ---- */

/* Ten digits: json_write_double's nine are those of a float. */
static void number_write(struct json_writer *w, double value)
{
    char text[32];
    if (!isfinite(value)) {
        json_write_null(w);
        return;
    }
    snprintf(text, sizeof text, "%.10g", value);
    json_write_raw(w, slice_of(text));
}

static void numbers_write(struct json_writer *w, const char *name, const double *values, const struct eval_cutoffs *c)
{
    for (size_t k = 0; k < c->count; k++) {
        char at[32];
        snprintf(at, sizeof at, "%s@%zu", name, c->at[k]);
        json_name(w, at);
        number_write(w, values[k]);
    }
}

static void values_write(struct json_writer *w, const struct metrics_values *values, const struct eval_cutoffs *c)
{
    for (size_t r = 0; r < ROWS; r++) {
        double row[METRICS_CUTOFFS_MAX];
        for (size_t k = 0; k < c->count; k++) {
            row[k] = value_of(&values[k], &rows[r]);
        }
        numbers_write(w, rows[r].name, row, c);
    }
}

static void count_write(struct json_writer *w, const char *name, uint64_t count)
{
    json_name(w, name);
    json_write_uint(w, count);
}

static void decile_write(struct json_writer *w, const struct metrics_decile *d, unsigned number,
                         const struct eval_cutoffs *c)
{
    json_object_begin(w);
    count_write(w, "decile", number);
    count_write(w, "labels", d->labels.labels);
    json_name(w, "train_min");
    number_write(w, d->labels.labels ? (double)d->labels.count_min : (double)NAN);
    json_name(w, "train_max");
    number_write(w, d->labels.labels ? (double)d->labels.count_max : (double)NAN);
    count_write(w, "gold", d->gold);
    numbers_write(w, "recall", d->recall, c);
    values_write(w, d->at, c);
    json_object_end(w);
}

void eval_json(const struct metrics *m, const struct eval_cutoffs *c, bool deciles, struct buffer *out)
{
    struct json_writer w = {.out = out};
    json_object_begin(&w);
    values_write(&w, m->at, c);
    json_name(&w, "ECE");
    number_write(&w, m->calibration_error);
    count_write(&w, "n", m->n);
    if (deciles) {
        json_name(&w, "deciles");
        json_array_begin(&w);
        for (unsigned d = 0; d < METRICS_DECILES; d++) {
            decile_write(&w, &m->deciles[d], d + 1, c);
        }
        json_array_end(&w);
    }
    json_object_end(&w);
    buffer_byte(out, '\n');
}

/* ---- tables ---- */

static void percent_cell(struct buffer *out, double value)
{
    if (isnan(value)) {
        buffer_format(out, "%8s", "-");
    } else {
        buffer_format(out, "%8.2f", value);
    }
}

static void cutoffs_head(struct buffer *out, const struct eval_cutoffs *c)
{
    for (size_t k = 0; k < c->count; k++) {
        char at[16];
        snprintf(at, sizeof at, "@%zu", c->at[k]);
        buffer_format(out, "%8s", at);
    }
    buffer_byte(out, '\n');
}

static void row_cells(struct buffer *out, const struct metrics_values *values, const struct row *row,
                      const struct eval_cutoffs *c)
{
    for (size_t k = 0; k < c->count; k++) {
        percent_cell(out, value_of(&values[k], row));
    }
    buffer_byte(out, '\n');
}

void eval_table(const struct metrics *m, const struct eval_cutoffs *c, struct buffer *out)
{
    buffer_format(out, "%-6s", "%");
    cutoffs_head(out, c);
    for (size_t r = 0; r < ROWS; r++) {
        buffer_format(out, "%-6s", rows[r].name);
        row_cells(out, m->at, &rows[r], c);
    }
    buffer_format(out, "%-6s", "ECE");
    percent_cell(out, m->calibration_error);
    buffer_format(out, "\nover %" PRIu64 " texts\n", m->n);
}

/* What the labels of each decile are, and how many of their gold occurrences were found. */
static void recall_table(const struct metrics *m, const struct eval_cutoffs *c, struct buffer *out)
{
    buffer_format(out, "%-6s%8s%18s%9s", "decile", "labels", "instances", "gold");
    cutoffs_head(out, c);
    for (unsigned d = 0; d < METRICS_DECILES; d++) {
        const struct metrics_decile *decile = &m->deciles[d];
        char range[48] = "-";
        if (decile->labels.labels) {
            snprintf(range, sizeof range, "%" PRIu64 " - %" PRIu64, decile->labels.count_min, decile->labels.count_max);
        }
        buffer_format(out, "%-6u%8" PRIu64 "%18s%9" PRIu64, d + 1, decile->labels.labels, range, decile->gold);
        for (size_t k = 0; k < c->count; k++) {
            percent_cell(out, decile->recall[k]);
        }
        buffer_byte(out, '\n');
    }
}

void eval_decile_tables(const struct metrics *m, const struct eval_cutoffs *c, struct buffer *out)
{
    buffer_string(
        out, "\nTenths of the labels by how many instances have them, the rarest first, and the percentage of their\n"
             "gold occurrences that is found (a gold label that is not known is in the first)\n");
    recall_table(m, c, out);
    buffer_string(out, "\nThe part of each metric that comes from each decile's labels: the ten add up to it\n");
    for (size_t r = 0; r < ROWS; r++) {
        buffer_format(out, "%s%-6s", r ? "\n" : "", rows[r].name);
        cutoffs_head(out, c);
        for (unsigned d = 0; d < METRICS_DECILES; d++) {
            buffer_format(out, "%-6u", d + 1);
            row_cells(out, m->deciles[d].at, &rows[r], c);
        }
    }
}

/* ---- counts of each label ---- */

struct labels_out {
    const struct eval_cutoffs *cutoffs;
    struct out_file *file;
    struct buffer line;
    struct error *e;
    bool failed;
};

static int label_write(const struct evaluated_label *l, void *context)
{
    struct labels_out *x = context;
    struct json_writer w = {.out = &x->line};
    buffer_clear(&x->line);
    json_object_begin(&w);
    json_name(&w, "label");
    json_write_string(&w, l->name);
    count_write(&w, "train", l->train);
    count_write(&w, "gold", l->gold);
    numbers_write(&w, "predicted", l->predicted, x->cutoffs);
    numbers_write(&w, "hits", l->hits, x->cutoffs);
    json_object_end(&w);
    buffer_byte(&x->line, '\n');
    x->failed = out_write(x->file, &x->line, x->e) != 0;
    return x->failed;
}

int eval_labels_write(const struct evaluation *v, const struct eval_cutoffs *c, struct out_file *f, struct error *e)
{
    struct labels_out x = {.cutoffs = c, .file = f, .e = e};
    int failed = evaluation_each_label(v, label_write, &x, e) || x.failed || out_finish(f, e);
    buffer_free(&x.line);
    return failed ? -1 : 0;
}
