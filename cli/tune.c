/* engram tune: leave-one-out over the memory, in three looks at three samples of its own instances, each predicted
 * without its own key. The first measures every setting of a grid. The best of thousands on one sample owes part of its
 * lead to that sample, so the second measures the best few of them again, and what is best there is chosen. The last
 * measures the choice beside the setting in force: these instances had no say in it, so gain and standard error are
 * honest. --write puts the choice into the configuration file. Read-only for the memory, beside a running stage too. */
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
    .help = "Finds the setting of pool, lambda, tau, b, lexical, lexical_form and label_power that best predicts the "
            "memory's own instances, each without its own key (leave-one-out), and shows it next to the current "
            "setting, on instances that had no say in the choice. --write writes it into the configuration file; a "
            "running stage takes it on SIGHUP.",
    .example = "engram tune -c engram.conf --memory my-memory --write",
    .flags =
        (const struct config_flag[]){
            {"sample", "N",
             "how many instances every setting is tried on; the best are tried on twice as many others (default 2000)",
             false},
            {"by", "OBJECTIVE",
             "what to maximise: p@1, p@5, ndcg@5, psp@5, or a sum such as p@1+0.5*psp@5 (default ndcg@5)", false},
            {"exclude-self", NULL, "do not predict or count the label whose name is the instance's id (item to item)",
             false},
            {"write", NULL, "write what changed into the configuration file, -c FILE", false},
            {"json", NULL, "print one JSON object", false},
            {0}},
};

/* The grid. */
static const double lambdas[] = {0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9};
static const double taus[] = {0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.8};
static const double lexicals[] = {0, 0.5, 1, 2, 3, 4};
static const double powers[] = {0, 0.5, 1, 1.5};
static const enum lexical_form forms[] = {LEXICAL_COSINE, LEXICAL_BM25};
static const size_t bs[] = {50, 100, 200, 400};

#define COUNT(array) (sizeof(array) / sizeof *(array))

enum { TRADES_MAX = 8, FINALISTS = 12, FINAL_SAMPLES = 2 /* times --sample */, LABELLED_LEAST = 5 };
static const char *const measure_flags[MEASURES] = {"p@1", "p@5", "ndcg@5", "psp@5"};

struct figures {
    double of[MEASURES]; /* percent */
    double objective;
};

/* Some of the labelled instances, in the order of evaluation_leave_one_out. */
struct look {
    size_t skip, sample;
    size_t settings; /* measured on them */
};

struct measured {
    struct setting setting;
    struct figures figures;
};

struct tune {
    size_t sample;
    double weights[MEASURES]; /* of the objective */
    const char *by;
    bool exclude_self;
    struct progress progress;
    struct look first, second, last;
    double done, share; /* of the work: before this look, and its own */
    uint64_t passed;    /* instances of the looks before */
    size_t n;           /* instances of the last look */
    struct measured today, best;
    double gain, error; /* of the objective */
    bool better;
    struct measured trades[TRADES_MAX + 1]; /* the best, and what else is not beaten in both P@1 and PSP@5 */
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
static int evaluate(struct tune *t, struct engine *engine, const struct setting *settings, size_t count,
                    struct look *look, double share, bool keep, struct evaluation **out, struct error *e)
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
        evaluation_leave_one_out(*out, look->skip, look->sample, tune_progress, t, e)) {
        return -1;
    }
    look->settings = count;
    t->passed += t->n;
    t->done += share;
    return 0;
}

/* The three looks share no instance of a memory that stays as it is. Where there are too few for that, the second takes
 * all but those of the last. */
static void looks_plan(struct tune *t, size_t labelled)
{
    size_t most = FINAL_SAMPLES * t->sample;
    size_t last = 2 * labelled / LABELLED_LEAST < most ? 2 * labelled / LABELLED_LEAST : most, rest = labelled - last;
    t->first = (struct look){.sample = t->sample < rest ? t->sample : rest};
    t->second =
        (struct look){.skip = t->first.sample, .sample = rest - t->first.sample < most ? rest - t->first.sample : most};
    if (t->second.sample < t->first.sample) {
        t->second = (struct look){.sample = rest};
    }
    t->last = (struct look){.skip = t->second.skip + t->second.sample, .sample = last};
}

/* ---- the looks ---- */

static int by_falling_p1(const void *a, const void *b)
{
    double x = ((const struct measured *)a)->figures.of[P1], y = ((const struct measured *)b)->figures.of[P1];
    return (x < y) - (x > y);
}

/* Brings to the front those that no other beats in both P@1 and PSP@5, by falling P@1; how many. */
static size_t unbeaten_find(struct measured *all, size_t count)
{
    size_t kept = 0;
    double psp = -1;
    qsort(all, count, sizeof *all, by_falling_p1);
    for (size_t i = 0; i < count; i++) {
        if (all[i].figures.of[PSP5] > psp) {
            psp = all[i].figures.of[PSP5];
            all[kept++] = all[i];
        }
    }
    return kept;
}

static int by_falling_objective(const void *a, const void *b)
{
    double x = ((const struct measured *)a)->figures.objective, y = ((const struct measured *)b)->figures.objective;
    return (x < y) - (x > y);
}

/* all[count] gets the figures of its settings. */
static int settings_measure(struct tune *t, struct engine *engine, struct measured *all, size_t count,
                            struct look *look, double share, struct error *e)
{
    struct evaluation *v = NULL;
    struct setting *settings = mem_alloc(count * sizeof *settings);
    for (size_t i = 0; i < count; i++) {
        settings[i] = all[i].setting;
    }
    int result = evaluate(t, engine, settings, count, look, share, false, &v, e);
    for (size_t i = 0; result == 0 && i < count; i++) {
        all[i].figures = figures_of(t, v, i);
    }
    evaluation_close(v);
    free(settings);
    return result;
}

static struct measured *grid_all(size_t *count)
{
    const struct grid grid = {.joint = true,
                              .apart = true,
                              .lambdas = lambdas,
                              .taus = taus,
                              .lexicals = lexicals,
                              .forms = forms,
                              .powers = powers,
                              .bs = bs,
                              .lambdas_count = COUNT(lambdas),
                              .taus_count = COUNT(taus),
                              .lexicals_count = COUNT(lexicals),
                              .forms_count = COUNT(forms),
                              .powers_count = COUNT(powers),
                              .bs_count = COUNT(bs)};
    struct setting *settings = grid_settings(&grid, count);
    struct measured *all = mem_zero(*count, sizeof *all);
    for (size_t i = 0; i < *count; i++) {
        all[i].setting = settings[i];
    }
    free(settings);
    return all;
}

/* The first two looks: the best of all, and what else to show. */
static int best_find(struct tune *t, struct engine *engine, struct error *e)
{
    struct measured finalists[FINALISTS];
    size_t count;
    struct measured *all = grid_all(&count);
    int result = settings_measure(t, engine, all, count, &t->first, 0.6, e);
    if (result == 0) {
        qsort(all, count, sizeof *all, by_falling_objective);
        memcpy(finalists, all, sizeof finalists);
        result = settings_measure(t, engine, finalists, FINALISTS, &t->second, 0.2, e);
    }
    if (result == 0) {
        qsort(finalists, FINALISTS, sizeof *finalists, by_falling_objective);
        t->best = finalists[0];
        size_t unbeaten = unbeaten_find(all, count);
        t->trades_count = unbeaten < TRADES_MAX ? unbeaten : TRADES_MAX;
        for (size_t i = 0; i < t->trades_count; i++) {
            t->trades[i] = all[t->trades_count > 1 ? i * (unbeaten - 1) / (t->trades_count - 1) : 0];
        }
    }
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

/* The last look: at the setting in force, the best, and those to be shown with it. */
static int gain_measure(struct tune *t, struct engine *engine, struct error *e)
{
    struct setting settings[TRADES_MAX + 2] = {t->today.setting, t->best.setting};
    struct evaluation *v = NULL;
    for (size_t i = 0; i < t->trades_count; i++) {
        settings[i + 2] = t->trades[i].setting;
    }
    int result = evaluate(t, engine, settings, t->trades_count + 2, &t->last, 0.2, true, &v, e);
    if (result == 0) {
        t->today.figures = figures_of(t, v, 0);
        t->best.figures = figures_of(t, v, 1);
        gain_set(t, v, 0, 1);
        for (size_t i = 0; i < t->trades_count; i++) {
            t->trades[i].figures = figures_of(t, v, i + 2);
        }
        t->trades[t->trades_count++] = t->best;
        t->trades_count = unbeaten_find(t->trades, t->trades_count);
    }
    evaluation_close(v);
    return result;
}

/* ---- output ---- */

static void table_write(const struct tune *t, struct buffer *out)
{
    buffer_format(out, "Leave-one-out over %zu instances, by %s, in percent\n\n", t->n, t->by);
    setting_head(out);
    setting_row(out, "today", &t->today.setting, t->today.figures.of);
    setting_row(out, "best", &t->best.setting, t->best.figures.of);
    buffer_format(out, "\ngain %.2f, standard error %.2f%s\n", t->gain, t->error,
                  t->better ? "" : ": nothing better was found");
    buffer_string(out,
                  "\nWhat P@1 (the head) and PSP@5 (the tail) cost each other: none of these beats another in both\n");
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

static void look_json(struct json_writer *w, const struct look *look)
{
    json_object_begin(w);
    json_name(w, "settings");
    json_write_uint(w, look->settings);
    json_name(w, "first");
    json_write_uint(w, look->skip);
    json_name(w, "instances");
    json_write_uint(w, look->sample);
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
    json_name(&w, "today");
    setting_json(&w, &t->today.setting, t->today.figures.of);
    json_name(&w, "best");
    setting_json(&w, &t->best.setting, t->best.figures.of);
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
    json_name(&w, "looks");
    json_array_begin(&w);
    look_json(&w, &t->first);
    look_json(&w, &t->second);
    look_json(&w, &t->last);
    json_array_end(&w);
    json_name(&w, "written");
    json_write_bool(&w, written);
    json_object_end(&w);
    buffer_byte(out, '\n');
}

/* ---- the configuration file ---- */

enum { CHANGES_MAX = 7 };

/* The options in which b differs from a; values live in the arena. */
static size_t changes_find(const struct setting *a, const struct setting *b, struct arena *arena,
                           struct config_change *changes)
{
    const struct {
        const char *name;
        bool differs;
        const char *word; /* NULL: value */
        double value;
    } options[CHANGES_MAX] = {
        {"pool", a->apart != b->apart, pool_name(b), 0},
        {"lambda", a->lambda != b->lambda, NULL, b->lambda},
        {"tau", a->tau != b->tau, NULL, b->tau},
        {"b", a->b != b->b, NULL, (double)b->b},
        {"lexical", a->lexical != b->lexical, NULL, b->lexical},
        {"lexical_form", b->lexical > 0 && a->form != b->form, form_name(b), 0},
        {"label_power", a->label_power != b->label_power, NULL, b->label_power},
    };
    size_t count = 0;
    for (size_t i = 0; i < CHANGES_MAX; i++) {
        if (options[i].differs) {
            char text[32];
            int bytes = options[i].word ? snprintf(text, sizeof text, "%s", options[i].word)
                                        : snprintf(text, sizeof text, "%g", options[i].value);
            changes[count++] =
                (struct config_change){"predict", options[i].name, arena_string(arena, text, (size_t)bytes)};
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
    *out = cli_setting(&saved);
    config_free(&saved);
    free(path);
    return result;
}

/* Writes what changed where --write asks for it, and says it on standard error. */
static int changes_take(const struct tune *t, const struct config *config, bool write, bool *written, struct error *e)
{
    struct config_change changes[CHANGES_MAX];
    struct setting saved = t->today.setting;
    struct arena arena = {0};
    struct buffer text = {0};
    if (t->better && write && setting_saved(config, &saved, e)) {
        return -1;
    }
    size_t count = t->better ? changes_find(&saved, &t->best.setting, &arena, changes) : 0;
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
    if (labelled < LABELLED_LEAST) {
        error_set(e, ERROR_FATAL, E_USAGE, "%s: %zu instances with labels: tuning needs more, load or teach some first",
                  config->memory, labelled);
        goto done;
    }
    looks_plan(t, labelled);
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
    t->today.setting = cli_setting(config);
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
