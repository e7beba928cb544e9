/* engram tune: leave-one-out over the memory. A sample of its own instances is predicted, each without its own key, by
 * every setting of a grid from one retrieval; the best few of them are tried again on other instances, and what is best
 * there is chosen: the best of thousands on one sample owes part of its lead to that sample. The chosen one and the one
 * in force are then compared instance by instance, for the standard error of the gain. --write puts the choice into the
 * configuration file. Read-only for the memory, beside a running stage too. */
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
    .help = "Finds the setting of pool, lambda, tau, b and lexical that best predicts the memory's own instances, each "
            "without its own key (leave-one-out), and shows it next to the current setting. --write writes it into the "
            "configuration file; a running stage takes it on SIGHUP.",
    .example = "engram tune -c engram.conf --memory my-memory --write",
    .flags =
        (const struct config_flag[]){
            {"sample", "N", "how many instances to predict (default 2000)", false},
            {"by", "OBJECTIVE",
             "what to maximise: p@1, p@5, ndcg@5, psp@5, or a sum such as p@1+0.5*psp@5 (default ndcg@5)", false},
            {"exclude-self", NULL, "do not predict or count the label whose name is the instance's id (item to item)",
             false},
            {"write", NULL, "write what changed into the configuration file, -c FILE", false},
            {"json", NULL, "print one JSON object", false},
            {0}},
};

/* The grid. */
static const double lambdas[] = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9};
static const double taus[] = {0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8};
static const double lexicals[] = {0, 0.5, 1, 2, 3, 4};
static const size_t bs[] = {50, 100, 200, 400};

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { TRADES_MAX = 8, FINALISTS = 12, FINAL_SAMPLES = 2 /* times --sample */ };
static const char *const measure_flags[MEASURES] = {"p@1", "p@5", "ndcg@5", "psp@5"};

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
    size_t skip, final_sample; /* of the second look */
    double done, share;        /* of the work: before this pass, and its own */
    uint64_t passed;           /* instances of the passes before */
    size_t n;                  /* instances of the last pass */
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

static struct figures figures_of(const struct tune *t, const struct evaluation *v, size_t setting)
{
    struct figures f;
    measures_read(v, setting, f.of);
    f.objective = objective_of(t, f.of);
    return f;
}

/* ---- measuring ---- */

static void tune_progress(size_t done, size_t n, void *context)
{
    struct tune *t = context;
    progress_update(&t->progress, t->passed + done, t->done + t->share * (double)done / (double)n);
    t->n = n;
}

/* share: of the whole work, by the clock. */
static int evaluate(struct tune *t, struct engine *engine, const struct setting *settings, size_t count, size_t skip,
                    size_t sample, double share, bool keep, struct evaluation **out, struct error *e)
{
    struct evaluation_options options = {.propensity = PROPENSITY_DEFAULT,
                                         .settings = settings,
                                         .settings_count = count,
                                         .keep_texts = keep,
                                         .at_count = MEASURE_CUTOFFS,
                                         .exclude_self = t->exclude_self};
    memcpy(options.at, measure_cutoffs, sizeof measure_cutoffs);
    t->share = share;
    if (evaluation_open(out, engine, &options, e) ||
        evaluation_leave_one_out(*out, skip, sample, tune_progress, t, e)) {
        return -1;
    }
    t->passed += t->n;
    t->done += share;
    return 0;
}

/* ---- grids ---- */

/* A grid of the values that some settings have. */
struct values {
    struct grid grid;
    double lambdas[FINALISTS], taus[FINALISTS], lexicals[FINALISTS];
    size_t bs[FINALISTS];
};

static void value_add(double *values, size_t *count, double value)
{
    for (size_t i = 0; i < *count; i++) {
        if (values[i] == value) {
            return;
        }
    }
    values[(*count)++] = value;
}

static void values_of(struct values *v, const struct setting *settings, size_t count)
{
    double sizes[FINALISTS];
    *v = (struct values){0};
    for (size_t i = 0; i < count; i++) {
        v->grid.joint |= !settings[i].apart;
        v->grid.apart |= settings[i].apart;
        value_add(v->lambdas, &v->grid.lambdas_count, settings[i].lambda);
        value_add(v->taus, &v->grid.taus_count, settings[i].tau);
        value_add(v->lexicals, &v->grid.lexicals_count, settings[i].lexical);
        value_add(sizes, &v->grid.bs_count, (double)settings[i].b);
    }
    for (size_t i = 0; i < v->grid.bs_count; i++) {
        v->bs[i] = (size_t)sizes[i];
    }
    v->grid.lambdas = v->lambdas;
    v->grid.taus = v->taus;
    v->grid.lexicals = v->lexicals;
    v->grid.bs = v->bs;
}

/* ---- the two looks ---- */

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

static int by_falling_objective(const void *a, const void *b)
{
    double x = ((const struct trade *)a)->figures.objective, y = ((const struct trade *)b)->figures.objective;
    return (x < y) - (x > y);
}

/* Every setting of the grid, measured; the caller frees *all. */
static int settings_measure(struct tune *t, struct engine *engine, const struct grid *grid, size_t skip, size_t sample,
                            double share, struct trade **all, size_t *count, struct error *e)
{
    struct evaluation *v = NULL;
    struct setting *settings = grid_settings(grid, count);
    int result = evaluate(t, engine, settings, *count, skip, sample, share, false, &v, e);
    *all = NULL;
    if (result == 0) {
        *all = mem_alloc(*count * sizeof **all);
        for (size_t i = 0; i < *count; i++) {
            (*all)[i] = (struct trade){settings[i], figures_of(t, v, i)};
        }
    }
    evaluation_close(v);
    free(settings);
    return result;
}

static int best_find(struct tune *t, struct engine *engine, struct error *e)
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
    struct trade *all, *finals = NULL;
    struct setting finalists[FINALISTS];
    struct values values;
    size_t count, finals_count;
    int result = settings_measure(t, engine, &grid, 0, t->sample, 0.5, &all, &count, e);
    if (result == 0) {
        qsort(all, count, sizeof *all, by_falling_objective);
        for (size_t i = 0; i < FINALISTS; i++) {
            finalists[i] = all[i].setting;
        }
        values_of(&values, finalists, FINALISTS);
        result = settings_measure(t, engine, &values.grid, t->skip, t->final_sample, 0.3, &finals, &finals_count, e);
    }
    if (result == 0) {
        trades_find(t, finals, finals_count);
        qsort(finals, finals_count, sizeof *finals, by_falling_objective);
        t->best = finals[0].setting;
    }
    free(finals);
    free(all);
    return result;
}

/* Each text's part of the objective, so that their mean is the objective. best_gain: the mean of PSP's denominator. */
static double text_objective(const struct tune *t, const struct metrics_text *text, double best_gain)
{
    double of[MEASURES] = {100 * text->at[0].hits, 100 * text->at[1].hits / 5, 100 * text->at[1].ndcg,
                           100 * text->at[1].gain / best_gain};
    return objective_of(t, of);
}

/* The gain, and the standard error of the mean difference over the same instances. */
static void gain_set(struct tune *t, const struct evaluation *v, size_t today, size_t best)
{
    const struct metrics_text *a, *b;
    double gold_gain = 0, sum = 0, squares = 0;
    size_t n = 0;
    for (size_t i = 0; (a = evaluation_text(v, i, today)); i++) {
        gold_gain += a->best[1].gain;
        n += a->best[0].gain_dcg != 0; /* it has gold labels */
    }
    gold_gain /= (double)n;
    for (size_t i = 0; (a = evaluation_text(v, i, today)) && (b = evaluation_text(v, i, best)); i++) {
        if (a->best[0].gain_dcg != 0) {
            double difference = text_objective(t, b, gold_gain) - text_objective(t, a, gold_gain);
            sum += difference;
            squares += difference * difference;
        }
    }
    t->n = n;
    t->gain = sum / (double)n;
    t->error = n > 1 ? sqrt(fmax(0, squares - sum * t->gain) / (double)(n - 1) / (double)n) : 0;
    t->better = t->gain > t->error; /* also false where it is no number */
}

static int gain_measure(struct tune *t, struct engine *engine, struct error *e)
{
    const struct setting both[2] = {t->today, t->best};
    struct evaluation *v = NULL;
    int result = evaluate(t, engine, both, 2, t->skip, t->final_sample, 0.2, true, &v, e);
    if (result == 0) {
        t->today_figures = figures_of(t, v, 0);
        t->best_figures = figures_of(t, v, 1);
        gain_set(t, v, 0, 1);
    }
    evaluation_close(v);
    return result;
}

/* ---- output ---- */

static void table_write(const struct tune *t, struct buffer *out)
{
    buffer_format(out, "Leave-one-out over %zu instances, by %s, in percent\n\n", t->n, t->by);
    setting_head(out);
    setting_row(out, "today", &t->today, t->today_figures.of);
    setting_row(out, "best", &t->best, t->best_figures.of);
    buffer_format(out, "\ngain %.2f, standard error %.2f%s\n", t->gain, t->error,
                  t->better ? "" : ": nothing better was found");
    buffer_string(
        out, "\nWhat P@1 (the head) and PSP@5 (the tail) cost each other: no setting beats one of these in both\n");
    setting_head(out);
    for (size_t i = 0; i < t->trades_count; i++) {
        setting_row(out, "", &t->trades[i].setting, t->trades[i].figures.of);
    }
}

static void number_json(struct json_writer *w, const char *name, double value)
{
    json_name(w, name);
    json_write_double(w, value);
}

static void json_write(const struct tune *t, bool written, struct buffer *out)
{
    struct json_writer w = {.out = out};
    json_object_begin(&w);
    json_name(&w, "n");
    json_write_uint(&w, t->n);
    json_name(&w, "by");
    json_write_string(&w, slice_of(t->by));
    json_name(&w, "today");
    setting_json(&w, &t->today, t->today_figures.of);
    json_name(&w, "best");
    setting_json(&w, &t->best, t->best_figures.of);
    number_json(&w, "gain", t->gain);
    number_json(&w, "standard_error", t->error);
    json_name(&w, "better");
    json_write_bool(&w, t->better);
    json_name(&w, "trade_off");
    json_array_begin(&w);
    for (size_t i = 0; i < t->trades_count; i++) {
        setting_json(&w, &t->trades[i].setting, t->trades[i].figures.of);
    }
    json_array_end(&w);
    json_name(&w, "written");
    json_write_bool(&w, written);
    json_object_end(&w);
    buffer_byte(out, '\n');
}

/* ---- the configuration file ---- */

enum { CHANGES_MAX = 5 };

static struct setting setting_in(const struct config *config)
{
    return (struct setting){.apart = config->pool == CONFIG_APART,
                            .lambda = config->lambda,
                            .tau = config->tau,
                            .lexical = config->lexical,
                            .b = (size_t)config->b};
}

/* The options in which b differs from a; values live in the arena. */
static size_t changes_find(const struct setting *a, const struct setting *b, struct arena *arena,
                           struct config_change *changes)
{
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

/* What the file says, without the flags of this command. */
static int setting_saved(const struct config *config, struct setting *out, struct error *e)
{
    char flag[] = "-c";
    char *path = mem_string(config_file(config), strlen(config_file(config)));
    char *argv[] = {flag, path};
    struct config saved = {0};
    int result = config_read_again(&command, 2, argv, config, &saved, e);
    *out = setting_in(&saved);
    config_free(&saved);
    free(path);
    return result;
}

/* Writes what changed where --write asks for it, and says it on standard error. */
static int changes_take(const struct tune *t, const struct config *config, bool write, bool *written, struct error *e)
{
    struct config_change changes[CHANGES_MAX];
    struct setting saved = t->today;
    struct arena arena = {0};
    struct buffer text = {0};
    if (t->better && write && setting_saved(config, &saved, e)) {
        return -1;
    }
    size_t count = t->better ? changes_find(&saved, &t->best, &arena, changes) : 0;
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
        cli_complain(command.name, "to use it, put %s into [predict] of the configuration file, or add --write",
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
    size_t labelled;
    int result = -1;
    if (cli_open(&opened, config, CLI_MEMORY_READ, e) || engine_labelled(opened.engine, &labelled, e)) {
        goto done;
    }
    if (labelled < 2) {
        error_set(e, ERROR_FATAL, E_USAGE, "%s: %zu instances with labels: tuning needs more, load or teach some first",
                  config->memory, labelled);
        goto done;
    }
    bool others = labelled >= 2 * t->sample; /* enough for a second look */
    t->skip = others ? t->sample : 0;
    t->final_sample = others ? FINAL_SAMPLES * t->sample : t->sample;
    progress_start(&t->progress, "leave-one-out", "instances");
    result = best_find(t, opened.engine, e) || gain_measure(t, opened.engine, e) ? -1 : 0;
    progress_end(&t->progress, t->passed);
done:
    cli_close(&opened);
    return result;
}

static int tune_run(struct tune *t, const struct config *config, const struct arguments *arguments)
{
    struct buffer out = {0};
    struct error e = {0};
    bool written = false;
    int status = STATUS_FAILED;
    t->today = setting_in(config);
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
