/* engram eval: the metrics of a test file against the memory as it is, read-only, beside a running stage too. */
#include <stdlib.h>
#include <string.h>

#include "cli/data.h"
#include "cli/internal.h"
#include "record/record.h"

enum { BATCH_TEXTS = 512, BATCH_BYTES = 256 << 10 };

static const struct config_command command = {
    .name = "eval",
    .usage =
        "--test FILE [--at LIST] [--exclude-self] [--train FILE] [--deciles] [--per-label FILE] [--show N | --sweep] "
        "[--json]",
    .help =
        "Predicts labels for the texts of a labelled file and compares them with its labels. Prints, in percent: P@k, "
        "R@k, nDCG@k, PSP@k and PSnDCG@k (propensity-scored: hits on rare labels count more), and ECE, the expected "
        "calibration error of the first label's score. labels_max and min_score do not apply. A gold label that the "
        "memory does not know counts as missed. Labels of equal score count as the mean over their orders. A FILE may "
        "also be a file of an LF-XMC or DEXML data set, or the set's folder; its filter_labels_*.txt is applied.",
    .example = "engram eval --memory my-memory --test examples/debtags/test.jsonl.gz",
    .flags =
        (const struct config_flag[]){
            {"test", "FILE", "labelled texts {\"id\", \"text\", \"labels\"}, one a line (required)", false},
            {"at", "LIST", "the k's: 1 to 8 numbers from 1 to 1000 (default 1,3,5,10,100)", false},
            {"exclude-self", NULL, "do not predict or count the label whose name is the text's id (item to item)",
             false},
            {"train", "FILE",
             "take the label counts for PSP, PSnDCG and deciles from this file, not from the memory's instances",
             false},
            {"text", "title|title+content", "what to read as the text of an LF-XMC line (default title)", false},
            {"psp-a", "A", "A of the propensity model (default 0.55)", false},
            {"psp-b", "B", "B of the propensity model (default 1.5)", false},
            {"deciles", NULL, "also print the metrics by label frequency: ten equal parts of the labels, rarest first",
             false},
            {"per-label", "FILE", "write a line of JSON for each label: train, gold, and predicted and hits at each k",
             false},
            {"show", "N",
             "first print N texts (1 to 1000) that have a gold label, with their right, wrong and missed labels and "
             "the evidence for each; labels_max and min_score apply here",
             false},
            {"sweep", NULL,
             "print only P@1, P@5, nDCG@5 and PSP@5 for a grid of pool, lambda, tau and lexical; other options keep "
             "their values",
             false},
            {"json", NULL, "print one JSON object", false},
            {0}},
};

struct eval {
    const struct arguments *arguments;
    struct propensity_source propensity;
    bool content; /* --text */
    struct name_set train_names;
    struct train_label {
        struct slice name; /* in train_arena */
        uint64_t count;
    } * train_labels; /* by their numbers in train_names, then by name */
    size_t train_capacity;
    struct arena train_arena;
    struct slice *names; /* of train_labels, as the propensities want them */
    uint64_t *name_counts;
    struct data_file train, test;
    struct progress progress;
    struct eval_cutoffs cutoffs;
    struct evaluation *evaluation;
    struct eval_show show;
    bool sweep;
    struct setting *settings; /* [settings_count]: of the sweep */
    size_t settings_count;
    struct arena arena; /* of the texts that wait */
    struct instance_record texts[BATCH_TEXTS];
    struct left_out left_out[BATCH_TEXTS]; /* by filter_labels_*.txt */
    size_t count, bytes;
    uint64_t done;
};

/* ---- label counts from a file ---- */

static int by_name(const void *a, const void *b)
{
    return slice_compare(((const struct train_label *)a)->name, ((const struct train_label *)b)->name);
}

static void train_count(struct eval *v, const struct instance_record *r)
{
    for (size_t i = 0; i < r->labels_count; i++) {
        bool fresh;
        size_t number = name_set_number(&v->train_names, r->labels[i], &fresh);
        if (number == v->train_capacity) {
            v->train_capacity = v->train_capacity ? 2 * v->train_capacity : 1024;
            v->train_labels = mem_resize(v->train_labels, v->train_capacity * sizeof *v->train_labels);
        }
        if (fresh) {
            v->train_labels[number] = (struct train_label){arena_slice(&v->train_arena, r->labels[i]), 0};
        }
        v->train_labels[number].count++;
    }
}

/* As the propensities want them: sorted by name. */
static void train_counted(struct eval *v)
{
    size_t count = v->train_names.count;
    v->names = mem_zero(count + 1, sizeof *v->names);
    v->name_counts = mem_zero(count + 1, sizeof *v->name_counts);
    if (count) {
        qsort(v->train_labels, count, sizeof *v->train_labels, by_name);
    }
    for (size_t i = 0; i < count; i++) {
        v->names[i] = v->train_labels[i].name;
        v->name_counts[i] = v->train_labels[i].count;
    }
    v->propensity.from_train = true;
    v->propensity.names = v->names;
    v->propensity.name_counts = v->name_counts;
    v->propensity.names_count = count;
}

static int train_read(struct eval *v, const char *path, struct error *e)
{
    const struct data_source source = {
        .command = command.name, .path = path, .part = DATA_TRAIN, .content = v->content};
    struct instance_record r;
    struct arena arena = {0};
    int found;
    if (data_open(&v->train, &source, e)) {
        return -1;
    }
    while ((found = data_instance_next(&v->train, &arena, &r, e)) > 0) {
        train_count(v, &r);
        v->propensity.n++;
        arena_free(&arena);
    }
    arena_free(&arena);
    train_counted(v);
    return found;
}

/* ---- the test file ---- */

static int test_flush(struct eval *v, struct error *e)
{
    if (evaluation_add(v->evaluation, v->texts, v->left_out, v->count, e) ||
        eval_show_add(&v->show, v->texts, v->left_out, v->count, e)) {
        return -1;
    }
    v->done += v->count;
    v->count = v->bytes = 0;
    arena_free(&v->arena);
    progress_update(&v->progress, v->done, data_fraction(&v->test, 1));
    return 0;
}

static int test_read(struct eval *v, struct error *e)
{
    int found;
    while ((found = data_instance_next(&v->test, &v->arena, &v->texts[v->count], e)) > 0) {
        v->left_out[v->count] = (struct left_out){v->test.excluded, v->test.excluded_count};
        v->bytes += v->texts[v->count++].text.bytes;
        if ((v->count == BATCH_TEXTS || v->bytes > BATCH_BYTES) && test_flush(v, e)) {
            return -1;
        }
    }
    return found < 0 ? -1 : test_flush(v, e);
}

/* ---- the command ---- */

/* Everything up to the result, with the progress bar. */
static int eval_measure(struct eval *v, const struct config *config, struct cli_engine *opened, struct error *e)
{
    const struct arguments *a = v->arguments;
    const char *train = arguments_value(a, "train");
    struct evaluation_options options = {.at_count = v->cutoffs.count,
                                         .exclude_self = arguments_has(a, "exclude-self"),
                                         .per_label = arguments_has(a, "per-label")};
    const struct data_source test = {.command = command.name,
                                     .path = arguments_value(a, "test"),
                                     .part = DATA_TEST,
                                     .content = v->content,
                                     .pairs = true,
                                     .progress = &v->progress};
    memcpy(options.at, v->cutoffs.at, sizeof options.at);
    if (v->sweep) {
        v->settings = sweep_settings(config, &v->settings_count);
        options.settings = v->settings;
        options.settings_count = v->settings_count;
        options.at_count = MEASURE_CUTOFFS;
        memcpy(options.at, measure_cutoffs, sizeof measure_cutoffs);
    }
    if (data_open(&v->test, &test, e) || (train && train_read(v, train, e))) {
        return -1;
    }
    options.propensity = v->propensity;
    if (cli_open(opened, config, CLI_MEMORY_READ, e) || evaluation_open(&v->evaluation, opened->engine, &options, e)) {
        return -1;
    }
    eval_show_start(&v->show, opened, options.exclude_self, config);
    progress_start(&v->progress, "evaluating", "texts");
    int result = test_read(v, e);
    progress_end(&v->progress, v->done);
    return result;
}

static int eval_run(struct eval *v, const struct config *config)
{
    const char *per_label = arguments_value(v->arguments, "per-label");
    bool deciles = arguments_has(v->arguments, "deciles");
    struct out_file labels = {.fd = -1};
    struct cli_engine opened = {0};
    struct buffer out = {0};
    struct error e = {0};
    struct metrics metrics;
    int status = STATUS_FAILED;
    if ((per_label && out_open(&labels, per_label, &e)) || eval_measure(v, config, &opened, &e) ||
        (per_label && (eval_labels_write(v->evaluation, &v->cutoffs, &labels, &e) || out_publish(&labels, &e)))) {
        status = cli_fail(command.name, &e);
        goto done;
    }
    evaluation_metrics(v->evaluation, 0, &metrics);
    if (v->sweep) {
        (arguments_has(v->arguments, "json") ? sweep_json : sweep_table)(v->evaluation, v->settings, v->settings_count,
                                                                         &out);
    } else if (arguments_has(v->arguments, "json")) {
        eval_json(&metrics, &v->cutoffs, deciles, &out);
    } else {
        buffer_append(&out, v->show.out.data, v->show.out.bytes);
        eval_table(&metrics, &v->cutoffs, &out);
        if (deciles) {
            eval_decile_tables(&metrics, &v->cutoffs, &out);
        }
    }
    status = cli_output(command.name, &out) && v->test.bad + v->train.bad == 0 ? STATUS_OK : STATUS_FAILED;
done:
    buffer_free(&out);
    evaluation_close(v->evaluation);
    cli_close(&opened);
    out_close(&labels);
    data_close(&v->test);
    data_close(&v->train);
    return status;
}

/* A finite number from low to 10, or a usage error. */
static bool number_read(const struct arguments *arguments, const char *flag, double low, double *out, int *status)
{
    const char *value = arguments_value(arguments, flag);
    char *end;
    if (!value) {
        return true;
    }
    double number = strtod(value, &end);
    if (end == value || *end || !(number >= low && number <= 10)) {
        *status = cli_usage(command.name, "--%s is \"%s\": it must be a number from %g to 10", flag, value, low);
        return false;
    }
    *out = number;
    return true;
}

static bool cutoffs_read(struct eval *v, int *status)
{
    const char *list = arguments_value(v->arguments, "at");
    struct buffer why = {0};
    bool good = eval_cutoffs_read(&v->cutoffs, list ? list : "1,3,5,10,100", &why);
    if (!good) {
        *status = cli_usage(command.name, "--at is \"%s\": %s", list, why.data);
    }
    buffer_free(&why);
    return good;
}

/* --show N, 0 without one. */
static bool show_read(struct eval *v, int *status)
{
    const char *value = arguments_value(v->arguments, "show");
    size_t digits = value ? strspn(value, "0123456789") : 0;
    if (!value) {
        return true;
    }
    v->show.wanted = digits && digits < 5 && !value[digits] ? strtoul(value, NULL, 10) : 0;
    if (v->show.wanted < 1 || v->show.wanted > EVAL_SHOW_MAX) {
        *status = cli_usage(command.name, "--show is \"%s\": it must be a number from 1 to %d", value, EVAL_SHOW_MAX);
        return false;
    }
    if (arguments_has(v->arguments, "json")) {
        *status = cli_usage(command.name, "--show prints texts to read: it does not go with --json");
        return false;
    }
    return true;
}

/* --sweep shows four measures of each setting, and nothing else. */
static bool sweep_read(struct eval *v, int *status)
{
    static const char *const others[] = {"at", "deciles", "per-label", "show"};
    v->sweep = arguments_has(v->arguments, "sweep");
    for (size_t i = 0; v->sweep && i < sizeof others / sizeof *others; i++) {
        if (arguments_has(v->arguments, others[i])) {
            *status = cli_usage(command.name, "--sweep does not go with --%s", others[i]);
            return false;
        }
    }
    return true;
}

int command_eval(int argc, char **argv)
{
    struct eval *v = mem_zero(1, sizeof *v);
    struct config config = {0};
    struct arguments *arguments = NULL;
    int status;
    if (!cli_read(&command, argc, argv, &config, &arguments, &status)) {
        goto done;
    }
    const char *test = arguments_value(arguments, "test"), *train = arguments_value(arguments, "train");
    const char *per_label = arguments_value(arguments, "per-label");
    v->arguments = arguments;
    v->propensity = (struct propensity_source)PROPENSITY_DEFAULT;
    if (!test) {
        status = cli_usage(command.name, "what to evaluate is missing: --test FILE");
    } else if (train && strcmp(test, "-") == 0 && strcmp(train, "-") == 0) {
        status = cli_usage(command.name, "only one of --test and --train can be standard input");
    } else if (per_label && strcmp(per_label, "-") == 0) {
        status = cli_usage(command.name, "--per-label needs a file: standard output has the metrics");
    } else if (cutoffs_read(v, &status) && show_read(v, &status) && sweep_read(v, &status) &&
               data_text_flag(command.name, arguments, &v->content, &status) &&
               number_read(arguments, "psp-a", 0, &v->propensity.a, &status) &&
               number_read(arguments, "psp-b", 0.001, &v->propensity.b, &status)) {
        status = eval_run(v, &config);
    }
done:
    buffer_free(&v->show.out);
    arena_free(&v->arena);
    arena_free(&v->train_arena);
    name_set_free(&v->train_names);
    free(v->train_labels);
    free(v->names);
    free(v->name_counts);
    free(v->settings);
    free(v);
    arguments_free(arguments);
    config_free(&config);
    return status;
}
