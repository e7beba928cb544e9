/* engram tune: leave-one-out over the memory. A sample of its own instances is predicted, each without its own key, by
 * every setting of a grid from one retrieval; the best is shown beside the one in force, and put into the configuration
 * file where --write asks for it. The gain is measured again with both settings side by side, for its standard error.
 * Read-only for the memory, beside a running stage too. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/internal.h"

static const struct config_command command = {
    .name = "tune",
    .usage = "[--sample N] [--by OBJECTIVE] [--exclude-self] [--write] [--json]",
    .help = "Finds the setting of pool, lambda, tau, b and lexical that predicts the memory's own instances best, each "
            "without its own key (leave-one-out), and shows it beside the setting in force. With --write the choice "
            "goes into the configuration file; a running stage takes it on SIGHUP.",
    .example = "engram tune -c engram.conf --memory my-memory --write",
    .flags =
        (const struct config_flag[]){
            {"sample", "N", "instances to predict (2000)", false},
            {"by", "OBJECTIVE",
             "what is best: p@1, p@5, ndcg@5 or psp@5, or a sum of them such as p@1+0.5*psp@5 (ndcg@5)", false},
            {"exclude-self", NULL, "a label named as the instance's id is neither predicted nor counted (item to item)",
             false},
            {"write", NULL, "put what changed into the configuration file, -c FILE", false},
            {"json", NULL, "one JSON object", false},
            {0}},
};

/* The grid. */
static const double lambdas[] = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9};
static const double taus[] = {0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8};
static const double lexicals[] = {0, 0.5, 1, 2, 3, 4};
static const size_t bs[] = {50, 100, 200, 400};

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { P1, P5, NDCG5, PSP5, MEASURES, TRADES_MAX = 8 };
static const char *const measure_flags[MEASURES] = {"p@1", "p@5", "ndcg@5", "psp@5"};
static const char *const measure_names[MEASURES] = {"P@1", "P@5", "nDCG@5", "PSP@5"};
static const size_t cutoffs[] = {1, 5};

struct figures {
    double of[MEASURES]; /* percent */
    double objective;
};

struct tune {
    size_t sample;
    double weights[MEASURES]; /* of the objective */
    const char *by;
    bool exclude_self;
    struct progress progress;
    size_t passed; /* instances of the passes before */
    size_t n;
    struct setting today, best;
    struct figures today_figures, best_figures;
    double gain, error; /* of the objective */
    bool better;
    struct trade {
        struct setting setting;
        struct figures figures;
    } trades[TRADES_MAX]; /* none is beaten in both P@1 and PSP@5 */
    size_t trades_count;
};

/* ---- the objective ---- */

/* "p@1+0.5*psp@5" into weights. */
static bool objective_read(struct tune *t, const char *text)
{
    t->by = text;
    for (const char *at = text;; at++) {
        char *end;
        double weight = strtod(at, &end);
        if (end != at && *end == '*') {
            at = end + 1;
        } else {
            weight = 1;
        }
        size_t bytes = strcspn(at, "+"), m = 0;
        while (m < MEASURES && (strlen(measure_flags[m]) != bytes || strncmp(measure_flags[m], at, bytes) != 0)) {
            m++;
        }
        if (m == MEASURES || !(weight > 0 && weight <= 1000)) {
            return false;
        }
        t->weights[m] += weight;
        at += bytes;
        if (!*at) {
            return true;
        }
    }
}

static double objective_of(const struct tune *t, const double of[MEASURES])
{
    double sum = 0;
    for (size_t m = 0; m < MEASURES; m++) {
        sum += t->weights[m] > 0 ? t->weights[m] * of[m] : 0; /* PSP may be undefined */
    }
    return sum;
}

static struct figures figures_of(const struct tune *t, const struct evaluation *v, size_t setting, size_t *n)
{
    struct metrics metrics;
    evaluation_metrics(v, setting, &metrics);
    struct figures f = {{metrics.at[0].precision, metrics.at[1].precision, metrics.at[1].ndcg, metrics.at[1].psp}, 0};
    f.objective = objective_of(t, f.of);
    *n = metrics.n;
    return f;
}

/* ---- measuring ---- */

static void tune_progress(size_t done, size_t n, void *context)
{
    struct tune *t = context;
    progress_update(&t->progress, t->passed + done, (double)(t->passed + done) / (double)(2 * n));
}

static int evaluate(struct tune *t, struct engine *engine, const struct grid *grid, bool keep, struct evaluation **out,
                    struct error *e)
{
    struct evaluation_options options = {.propensity = {.a = 0.55, .b = 1.5},
                                         .grid = grid,
                                         .keep_texts = keep,
                                         .at_count = COUNT(cutoffs),
                                         .exclude_self = t->exclude_self};
    memcpy(options.at, cutoffs, sizeof cutoffs);
    return evaluation_open(out, engine, &options, e) || evaluation_leave_one_out(*out, t->sample, tune_progress, t, e)
               ? -1
               : 0;
}

static int by_falling_p1(const void *a, const void *b)
{
    double x = ((const struct trade *)a)->figures.of[P1], y = ((const struct trade *)b)->figures.of[P1];
    return (x < y) - (x > y);
}

/* The settings that no other beats in both P@1 and PSP@5, thinned to TRADES_MAX. */
static void trades_find(struct tune *t, const struct trade *all, size_t count)
{
    struct trade *sorted = mem_alloc(count * sizeof *sorted);
    size_t kept = 0;
    double psp = -1;
    memcpy(sorted, all, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, by_falling_p1);
    for (size_t i = 0; i < count; i++) {
        if (sorted[i].figures.of[PSP5] > psp) {
            psp = sorted[i].figures.of[PSP5];
            sorted[kept++] = sorted[i];
        }
    }
    t->trades_count = kept < TRADES_MAX ? kept : TRADES_MAX;
    for (size_t i = 0; i < t->trades_count; i++) {
        t->trades[i] = sorted[t->trades_count > 1 ? i * (kept - 1) / (t->trades_count - 1) : 0];
    }
    free(sorted);
}

static int grid_walk(struct tune *t, struct engine *engine, struct error *e)
{
    const struct grid grid = {.joint = true,
                              .apart = true,
                              .lambdas = lambdas,
                              .taus = taus,
                              .lexicals = lexicals,
                              .bs = bs,
                              .lambdas_count = COUNT(lambdas),
                              .taus_count = COUNT(taus),
                              .lexicals_count = COUNT(lexicals),
                              .bs_count = COUNT(bs)};
    struct evaluation *v = NULL;
    struct trade *all = NULL;
    int result = evaluate(t, engine, &grid, false, &v, e);
    if (result == 0) {
        size_t count = grid_count(&grid);
        all = mem_alloc(count * sizeof *all);
        for (size_t i = 0; i < count; i++) {
            all[i] = (struct trade){grid_setting(&grid, i), figures_of(t, v, i, &t->n)};
            if (i == 0 || all[i].figures.objective > t->best_figures.objective) {
                t->best = all[i].setting;
                t->best_figures = all[i].figures;
            }
        }
        trades_find(t, all, count);
    }
    free(all);
    evaluation_close(v);
    return result;
}

static struct grid grid_of(const struct setting *s)
{
    return (struct grid){.joint = !s->apart,
                         .apart = s->apart,
                         .lambdas = &s->lambda,
                         .taus = &s->tau,
                         .lexicals = &s->lexical,
                         .bs = &s->b,
                         .lambdas_count = 1,
                         .taus_count = 1,
                         .lexicals_count = 1,
                         .bs_count = 1};
}

/* Each text's part of the objective, so that their mean is the objective. best_gain: the mean of PSP's denominator. */
static double text_objective(const struct tune *t, const struct metrics_text *text, double best_gain)
{
    double of[MEASURES] = {100 * text->at[0].hits, 100 * text->at[1].hits / 5, 100 * text->at[1].ndcg,
                           100 * text->at[1].gain / best_gain};
    return objective_of(t, of);
}

/* Today's and the best setting over the same instances: the gain, and the standard error of the mean difference. */
static int gain_measure(struct tune *t, struct engine *engine, struct error *e)
{
    const struct grid grids[2] = {grid_of(&t->today), grid_of(&t->best)};
    struct evaluation *v[2] = {NULL, NULL};
    size_t n = 0;
    int result = 0;
    for (int i = 0; i < 2 && result == 0; i++) {
        result = evaluate(t, engine, &grids[i], true, &v[i], e);
        t->passed += t->n / 2;
    }
    if (result == 0) {
        const struct metrics_text *a, *b;
        double best_gain = 0, sum = 0, squares = 0;
        t->today_figures = figures_of(t, v[0], 0, &t->n);
        t->best_figures = figures_of(t, v[1], 0, &t->n);
        for (size_t i = 0; (a = evaluation_text(v[0], i, 0)); i++) {
            best_gain += a->best[1].gain;
        }
        best_gain /= (double)t->n;
        for (size_t i = 0; (a = evaluation_text(v[0], i, 0)) && (b = evaluation_text(v[1], i, 0)); i++) {
            if (a->best[0].gain_dcg != 0) { /* it has gold labels */
                double difference = text_objective(t, b, best_gain) - text_objective(t, a, best_gain);
                sum += difference;
                squares += difference * difference;
                n++;
            }
        }
        t->gain = sum / (double)n;
        t->error = n > 1 ? sqrt((squares - sum * t->gain) / (double)(n - 1) / (double)n) : 0;
        t->better = t->gain > t->error; /* also false where it is no number */
    }
    evaluation_close(v[0]);
    evaluation_close(v[1]);
    return result;
}

/* ---- output ---- */

static void setting_row(struct buffer *out, const char *name, const struct setting *s, const struct figures *f)
{
    buffer_format(out, "%-7s%-7s%7g%7g%6zu%9g", name, s->apart ? "apart" : "joint", s->lambda, s->tau, s->b,
                  s->lexical);
    for (size_t m = 0; m < MEASURES; m++) {
        buffer_format(out, "%9.2f", f->of[m]);
    }
    buffer_byte(out, '\n');
}

static void head_row(struct buffer *out)
{
    buffer_format(out, "%-7s%-7s%7s%7s%6s%9s", "", "pool", "lambda", "tau", "b", "lexical");
    for (size_t m = 0; m < MEASURES; m++) {
        buffer_format(out, "%9s", measure_names[m]);
    }
    buffer_byte(out, '\n');
}

static void table_write(const struct tune *t, struct buffer *out)
{
    buffer_format(out, "Leave-one-out over %zu instances, by %s, in percent\n\n", t->n, t->by);
    head_row(out);
    setting_row(out, "today", &t->today, &t->today_figures);
    setting_row(out, "best", &t->best, &t->best_figures);
    buffer_format(out, "\ngain %.2f, standard error %.2f%s\n", t->gain, t->error,
                  t->better ? "" : ": nothing better was found");
    buffer_string(
        out, "\nWhat P@1 (the head) and PSP@5 (the tail) cost each other: no setting beats one of these in both\n");
    head_row(out);
    for (size_t i = 0; i < t->trades_count; i++) {
        setting_row(out, "", &t->trades[i].setting, &t->trades[i].figures);
    }
}

static void number_json(struct json_writer *w, const char *name, double value)
{
    json_name(w, name);
    json_write_double(w, value);
}

static void setting_json(struct json_writer *w, const char *name, const struct setting *s, const struct figures *f)
{
    if (name) {
        json_name(w, name);
    }
    json_object_begin(w);
    json_name(w, "pool");
    json_write_string(w, slice_of(s->apart ? "apart" : "joint"));
    number_json(w, "lambda", s->lambda);
    number_json(w, "tau", s->tau);
    json_name(w, "b");
    json_write_uint(w, s->b);
    number_json(w, "lexical", s->lexical);
    for (size_t m = 0; m < MEASURES; m++) {
        number_json(w, measure_names[m], f->of[m]);
    }
    json_object_end(w);
}

static void json_write(const struct tune *t, bool written, struct buffer *out)
{
    struct json_writer w = {.out = out};
    json_object_begin(&w);
    json_name(&w, "n");
    json_write_uint(&w, t->n);
    json_name(&w, "by");
    json_write_string(&w, slice_of(t->by));
    setting_json(&w, "today", &t->today, &t->today_figures);
    setting_json(&w, "best", &t->best, &t->best_figures);
    number_json(&w, "gain", t->gain);
    number_json(&w, "standard_error", t->error);
    json_name(&w, "better");
    json_write_bool(&w, t->better);
    json_name(&w, "trade_off");
    json_array_begin(&w);
    for (size_t i = 0; i < t->trades_count; i++) {
        setting_json(&w, NULL, &t->trades[i].setting, &t->trades[i].figures);
    }
    json_array_end(&w);
    json_name(&w, "written");
    json_write_bool(&w, written);
    json_object_end(&w);
    buffer_byte(out, '\n');
}

/* ---- the configuration file ---- */

enum { CHANGES_MAX = 5 };

/* The options that differ; values live in the arena. */
static size_t changes_find(const struct tune *t, struct arena *arena, struct config_change *changes)
{
    const struct setting *a = &t->today, *b = &t->best;
    const struct {
        const char *name;
        bool differs;
        double value;
    } numbers[] = {{"lambda", a->lambda != b->lambda, b->lambda},
                   {"tau", a->tau != b->tau, b->tau},
                   {"b", a->b != b->b, (double)b->b},
                   {"lexical", a->lexical != b->lexical, b->lexical}};
    size_t count = 0;
    if (a->apart != b->apart) {
        changes[count++] = (struct config_change){"predict", "pool", b->apart ? "apart" : "joint"};
    }
    for (size_t i = 0; i < COUNT(numbers); i++) {
        if (numbers[i].differs) {
            char text[32];
            int bytes = snprintf(text, sizeof text, "%g", numbers[i].value);
            changes[count++] =
                (struct config_change){"predict", numbers[i].name, arena_string(arena, text, (size_t)bytes)};
        }
    }
    return count;
}

/* Writes what changed where --write asks for it, and says it on standard error. */
static int changes_take(const struct tune *t, const struct config *config, bool write, bool *written, struct error *e)
{
    struct config_change changes[CHANGES_MAX];
    struct arena arena = {0};
    struct buffer text = {0};
    size_t count = t->better ? changes_find(t, &arena, changes) : 0;
    int result = 0;
    for (size_t i = 0; i < count; i++) {
        buffer_format(&text, "%s%s = %s", i ? ", " : "", changes[i].name, changes[i].value);
    }
    if (count && write) {
        result = config_file_set(config_file(config), changes, count, e);
        *written = result == 0;
    }
    if (*written) {
        cli_complain(command.name, "%s: %s; a running stage takes it on SIGHUP", config_file(config), text.data);
    } else if (count && result == 0) {
        cli_complain(command.name, "to take it, put %s into [predict] of the configuration file, or add --write",
                     text.data);
    }
    buffer_free(&text);
    arena_free(&arena);
    return result;
}

/* ---- the command ---- */

static int tune_measure(struct tune *t, const struct config *config, struct error *e)
{
    struct cli_engine opened = {0};
    struct memory_stats stats = {0};
    struct snapshot *snapshot = NULL;
    int result = -1;
    if (cli_open(&opened, config, CLI_MEMORY_READ, e) || memory_look(opened.memory, &snapshot, e) ||
        snapshot_stats(snapshot, &stats, e)) {
        goto done;
    }
    progress_start(&t->progress, "leave-one-out", "instances");
    result = grid_walk(t, opened.engine, e);
    t->passed = t->n;
    if (result == 0 && t->n < 2) {
        result = error_set(e, ERROR_FATAL, E_USAGE,
                           "%s: %zu labelled instances to predict: tuning needs at least 2, load or teach some first",
                           config->memory, t->n);
    }
    result = result == 0 ? gain_measure(t, opened.engine, e) : result;
    progress_end(&t->progress, 2 * t->n);
done:
    snapshot_release(snapshot);
    memory_stats_free(&stats);
    cli_close(&opened);
    return result;
}

static int tune_run(struct tune *t, const struct config *config, const struct arguments *arguments)
{
    struct buffer out = {0};
    struct error e = {0};
    bool written = false;
    int status = STATUS_FAILED;
    t->today =
        (struct setting){config->pool == CONFIG_APART, config->lambda, config->tau, config->lexical, (size_t)config->b};
    if (tune_measure(t, config, &e) || changes_take(t, config, arguments_has(arguments, "write"), &written, &e)) {
        status = cli_fail(command.name, &e);
        goto done;
    }
    if (arguments_has(arguments, "json")) {
        json_write(t, written, &out);
    } else {
        table_write(t, &out);
    }
    status = cli_output(command.name, &out) ? STATUS_OK : STATUS_FAILED;
done:
    buffer_free(&out);
    return status;
}

static bool sample_read(struct tune *t, const char *text, int *status)
{
    char *end;
    long number = text ? strtol(text, &end, 10) : 2000;
    if (text && (end == text || *end || number < 2 || number > 10000000)) {
        *status = cli_usage(command.name, "--sample is \"%s\": it must be a number from 2 to 10000000", text);
        return false;
    }
    t->sample = (size_t)number;
    return true;
}

int command_tune(int argc, char **argv)
{
    struct tune t = {0};
    struct config config = {0};
    struct arguments *arguments = NULL;
    int status;
    if (!cli_read(&command, argc, argv, &config, &arguments, &status)) {
        goto done;
    }
    const char *by = arguments_value(arguments, "by");
    t.exclude_self = arguments_has(arguments, "exclude-self");
    if (!objective_read(&t, by ? by : "ndcg@5")) {
        status = cli_usage(command.name,
                           "--by is \"%s\": it must be p@1, p@5, ndcg@5 or psp@5, or a sum such as "
                           "p@1+0.5*psp@5",
                           by);
    } else if (arguments_has(arguments, "write") && !config_file(&config)) {
        status = cli_usage(command.name, "--write needs the file to write to: -c FILE");
    } else if (sample_read(&t, arguments_value(arguments, "sample"), &status)) {
        status = tune_run(&t, &config, arguments);
    }
done:
    arguments_free(arguments);
    config_free(&config);
    return status;
}
