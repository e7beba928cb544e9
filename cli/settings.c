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

const char *pool_name(const struct setting *s)
{
    return s->apart ? "apart" : "joint";
}

const char *form_name(const struct setting *s)
{
    return s->form == LEXICAL_BM25 ? "bm25" : "cosine";
}

struct setting cli_setting(const struct config *config)
{
    const struct predict_options options = cli_predict_options(config);
    return setting_of(&options);
}

void setting_head(struct buffer *out)
{
    buffer_format(out, "%-7s%-7s%7s%7s%6s%9s%8s%7s", "", "pool", "lambda", "tau", "b", "lexical", "form", "power");
    for (size_t m = 0; m < MEASURES; m++) {
        buffer_format(out, "%9s", names[m]);
    }
    buffer_byte(out, '\n');
}

void setting_row(struct buffer *out, const char *name, const struct setting *s, const double of[MEASURES])
{
    buffer_format(out, "%-7s%-7s%7g%7g%6zu%9g%8s%7g", name, pool_name(s), s->lambda, s->tau, s->b, s->lexical,
                  s->lexical > 0 ? form_name(s) : "-", s->label_power);
    for (size_t m = 0; m < MEASURES; m++) {
        buffer_format(out, "%9.2f", of[m]);
    }
    buffer_byte(out, '\n');
}

void setting_json(struct json_writer *w, const struct setting *s, const double of[MEASURES])
{
    json_object_begin(w);
    json_name(w, "pool");
    json_write_string(w, slice_of(pool_name(s)));
    json_name(w, "lambda");
    json_write_double(w, s->lambda);
    json_name(w, "tau");
    json_write_double(w, s->tau);
    json_name(w, "b");
    json_write_uint(w, s->b);
    json_name(w, "lexical");
    json_write_double(w, s->lexical);
    json_name(w, "lexical_form");
    json_write_string(w, slice_of(form_name(s)));
    json_name(w, "label_power");
    json_write_double(w, s->label_power);
    for (size_t m = 0; m < MEASURES; m++) {
        json_name(w, names[m]);
        json_write_double(w, of[m]);
    }
    json_object_end(w);
}

/* ---- grids ---- */

/* All lambdas, taus, bs and pools with what `like` has of the rest. */
static void settings_fill(const struct grid *g, const struct setting *like, struct setting *out, size_t *count)
{
    for (int apart = 0; apart < 2; apart++) {
        for (size_t b = 0; (apart ? g->apart : g->joint) && b < g->bs_count; b++) {
            for (size_t i = 0; i < g->taus_count * g->lambdas_count; i++) {
                struct setting *s = &out[(*count)++];
                *s = *like;
                s->apart = apart;
                s->b = g->bs[b];
                s->tau = g->taus[i / g->lambdas_count];
                s->lambda = g->lambdas[i % g->lambdas_count];
            }
        }
    }
}

struct setting *grid_settings(const struct grid *g, size_t *count)
{
    size_t most =
        2 * g->lambdas_count * g->taus_count * g->bs_count * g->lexicals_count * g->forms_count * g->powers_count;
    struct setting *settings = mem_alloc(most * sizeof *settings);
    *count = 0;
    for (size_t l = 0; l < g->lexicals_count; l++) {
        for (size_t f = 0; f < (g->lexicals[l] > 0 ? g->forms_count : 1); f++) { /* one where none is used */
            for (size_t p = 0; p < g->powers_count; p++) {
                const struct setting like = {
                    .lexical = g->lexicals[l], .form = g->forms[f], .label_power = g->powers[p]};
                settings_fill(g, &like, settings, count);
            }
        }
    }
    return settings;
}

/* ---- the sweep ---- */

#define COUNT(array) (sizeof(array) / sizeof *(array))

static const double sweep_lambdas[] = {0.1, 0.3, 0.5, 0.7, 0.9};
static const double sweep_taus[] = {0.05, 0.1, 0.2, 0.4, 0.8};
static const double sweep_lexicals[] = {0, 1, 2, 4};

struct setting *sweep_settings(const struct config *config, size_t *count)
{
    const struct setting in_force = cli_setting(config);
    const struct grid grid = {.joint = true,
                              .apart = true,
                              .lambdas = sweep_lambdas,
                              .taus = sweep_taus,
                              .lexicals = sweep_lexicals,
                              .powers = &in_force.label_power,
                              .forms = &in_force.form,
                              .bs = &in_force.b,
                              .lambdas_count = COUNT(sweep_lambdas),
                              .taus_count = COUNT(sweep_taus),
                              .lexicals_count = COUNT(sweep_lexicals),
                              .forms_count = 1,
                              .powers_count = 1,
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
