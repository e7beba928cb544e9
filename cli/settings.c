/* Settings of the prediction with what they reach, as `engram tune` and `engram eval --sweep` show them: four measures
 * that tell the head (P@1) from the tail (PSP@5). */
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/internal.h"

const size_t measure_cutoffs[MEASURE_CUTOFFS] = {1, 5};

static const char *const names[MEASURES] = {"P@1", "P@5", "nDCG@5", "PSP@5"};

void measures_read(const struct evaluation *v, size_t setting, double of[MEASURES])
{
    struct metrics metrics;
    evaluation_metrics(v, setting, &metrics);
    of[P1] = metrics.at[0].precision;
    of[P5] = metrics.at[1].precision;
    of[NDCG5] = metrics.at[1].ndcg;
    of[PSP5] = metrics.at[1].psp;
}

void setting_head(struct buffer *out)
{
    buffer_format(out, "%-7s%-7s%7s%7s%6s%9s", "", "pool", "lambda", "tau", "b", "lexical");
    for (size_t m = 0; m < MEASURES; m++) {
        buffer_format(out, "%9s", names[m]);
    }
    buffer_byte(out, '\n');
}

void setting_row(struct buffer *out, const char *name, const struct setting *s, const double of[MEASURES])
{
    buffer_format(out, "%-7s%-7s%7g%7g%6zu%9g", name, s->apart ? "apart" : "joint", s->lambda, s->tau, s->b,
                  s->lexical);
    for (size_t m = 0; m < MEASURES; m++) {
        buffer_format(out, "%9.2f", of[m]);
    }
    buffer_byte(out, '\n');
}

void setting_json(struct json_writer *w, const struct setting *s, const double of[MEASURES])
{
    json_object_begin(w);
    json_name(w, "pool");
    json_write_string(w, slice_of(s->apart ? "apart" : "joint"));
    json_name(w, "lambda");
    json_write_double(w, s->lambda);
    json_name(w, "tau");
    json_write_double(w, s->tau);
    json_name(w, "b");
    json_write_uint(w, s->b);
    json_name(w, "lexical");
    json_write_double(w, s->lexical);
    for (size_t m = 0; m < MEASURES; m++) {
        json_name(w, names[m]);
        json_write_double(w, of[m]);
    }
    json_object_end(w);
}

/* ---- grids ---- */

struct setting *grid_settings(const struct grid *g, size_t *count)
{
    size_t pools = (size_t)g->joint + (size_t)g->apart;
    *count = pools * g->lambdas_count * g->taus_count * g->bs_count * g->lexicals_count;
    struct setting *settings = mem_alloc(*count * sizeof *settings);
    for (size_t at = 0; at < *count; at++) {
        struct setting *s = &settings[at];
        size_t i = at;
        s->lambda = g->lambdas[i % g->lambdas_count];
        i /= g->lambdas_count;
        s->tau = g->taus[i % g->taus_count];
        i /= g->taus_count;
        s->b = g->bs[i % g->bs_count];
        i /= g->bs_count;
        s->apart = pools == 2 ? i % pools == 1 : g->apart;
        s->lexical = g->lexicals[i / pools];
    }
    return settings;
}

/* ---- the sweep ---- */

static const double sweep_lambdas[] = {0.1, 0.3, 0.5, 0.7, 0.9};
static const double sweep_taus[] = {0.05, 0.1, 0.2, 0.4, 0.8};
static const double sweep_lexicals[] = {0, 1, 2, 4};

struct setting *sweep_settings(size_t b, size_t *count)
{
    const struct grid grid = {.joint = true,
                              .apart = true,
                              .lambdas = sweep_lambdas,
                              .taus = sweep_taus,
                              .lexicals = sweep_lexicals,
                              .bs = &b,
                              .lambdas_count = sizeof sweep_lambdas / sizeof *sweep_lambdas,
                              .taus_count = sizeof sweep_taus / sizeof *sweep_taus,
                              .lexicals_count = sizeof sweep_lexicals / sizeof *sweep_lexicals,
                              .bs_count = 1};
    return grid_settings(&grid, count);
}

void sweep_table(const struct evaluation *v, const struct setting *settings, size_t count, struct buffer *out)
{
    double of[MEASURES];
    setting_head(out);
    for (size_t i = 0; i < count; i++) {
        measures_read(v, i, of);
        setting_row(out, "", &settings[i], of);
    }
}

void sweep_json(const struct evaluation *v, const struct setting *settings, size_t count, struct buffer *out)
{
    struct json_writer w = {.out = out};
    double of[MEASURES];
    json_object_begin(&w);
    json_name(&w, "sweep");
    json_array_begin(&w);
    for (size_t i = 0; i < count; i++) {
        measures_read(v, i, of);
        setting_json(&w, &settings[i], of);
    }
    json_array_end(&w);
    json_object_end(&w);
    buffer_byte(out, '\n');
}
