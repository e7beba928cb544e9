/* engram eval: the metrics of a test file against the memory as it is, read-only, beside a running stage too. */
#include <stdlib.h>
#include <string.h>

#include "cli/internal.h"
#include "record/record.h"

enum { BATCH_TEXTS = 512, BATCH_BYTES = 256 << 10 };

static const struct config_command command = {
    .name = "eval",
    .usage = "--test FILE [--at LIST] [--exclude-self] [--train FILE] [--deciles] [--per-label FILE] [--json]",
    .help = "Predicts the texts of a labelled file and compares, in percent: P@k, R@k, nDCG@k, PSP@k and PSnDCG@k "
            "(propensity-scored: hits on rare labels count more), and ECE, the expected calibration error of the first "
            "label's score. labels_max and min_score do not apply. Gold labels that the memory lacks count as missed. "
            "Labels of equal score count as the mean over their orders.",
    .example = "engram eval --memory my-memory --test examples/debtags/test.jsonl.gz",
    .flags =
        (const struct config_flag[]){
            {"test", "FILE", "labelled texts {\"id\", \"text\", \"labels\"}, a line each", false},
            {"at", "LIST", "the k's, 1 to 8 numbers from 1 to 1000 (default 1,3,5,10,100)", false},
            {"exclude-self", NULL, "a label named as the text's id is neither predicted nor counted (item to item)",
             false},
            {"train", "FILE",
             "label counts for PSP, PSnDCG and deciles from this file instead of the memory's instances", false},
            {"psp-a", "A", "of the propensity model (default 0.55)", false},
            {"psp-b", "B", "of the propensity model (default 1.5)", false},
            {"deciles", NULL, "also by how many instances a label has: ten equal parts of the labels, rarest first",
             false},
            {"per-label", "FILE",
             "write each label's counts as lines of JSON: train, gold, predicted and hits at each k", false},
            {"json", NULL, "one JSON object", false},
            {0}},
};

struct eval {
    const struct arguments *arguments;
    struct propensity_source propensity;
    struct arena train_arena;
    struct slice *names; /* every label of every training instance, then each once */
    uint64_t *name_counts;
    size_t names_count, names_capacity;
    struct data_file train, test;
    struct progress progress;
    struct eval_cutoffs cutoffs;
    struct evaluation *evaluation;
    struct arena arena; /* of the texts that wait */
    struct instance_record texts[BATCH_TEXTS];
    size_t count, bytes;
    uint64_t done;
};

/* ---- label counts from a file ---- */

static int by_bytes(const void *a, const void *b)
{
    return slice_compare(*(const struct slice *)a, *(const struct slice *)b);
}

static void names_add(struct eval *v, const struct instance_record *r)
{
    if (v->names_count + r->labels_count > v->names_capacity) {
        v->names_capacity = (v->names_count + r->labels_count) * 2;
        v->names = mem_resize(v->names, v->names_capacity * sizeof *v->names);
    }
    for (size_t i = 0; i < r->labels_count; i++) {
        v->names[v->names_count++] = arena_slice(&v->train_arena, r->labels[i]);
    }
}

/* Sorts the names and folds repeats into counts. */
static void names_count(struct eval *v)
{
    size_t kept = 0;
    if (v->names_count) {
        qsort(v->names, v->names_count, sizeof *v->names, by_bytes);
    }
    v->name_counts = mem_zero(v->names_count, sizeof *v->name_counts);
    for (size_t i = 0; i < v->names_count; i++) {
        if (kept == 0 || !slice_equal(v->names[kept - 1], v->names[i])) {
            v->names[kept++] = v->names[i];
        }
        v->name_counts[kept - 1]++;
    }
    v->propensity.names = v->names;
    v->propensity.name_counts = v->name_counts;
    v->propensity.names_count = kept;
}

static int train_read(struct eval *v, const char *path, struct error *e)
{
    struct slice line;
    int found;
    if (data_open(&v->train, command.name, path, NULL, e)) {
        return -1;
    }
    while ((found = data_next(&v->train, &line, e)) > 0) {
        struct error why = {0};
        struct instance_record r;
        struct arena arena = {0};
        if (record_instance_from_value(line, &arena, &r, &why)) {
            data_bad(&v->train, &why);
        } else {
            names_add(v, &r);
            v->propensity.n++;
        }
        arena_free(&arena);
    }
    v->propensity.from_train = true;
    names_count(v);
    return found;
}

/* ---- the test file ---- */

static int test_flush(struct eval *v, struct error *e)
{
    if (evaluation_add(v->evaluation, v->texts, v->count, e)) {
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
    struct slice line;
    int found;
    while ((found = data_next(&v->test, &line, e)) > 0) {
        struct error why = {0};
        if (record_instance_from_value(line, &v->arena, &v->texts[v->count], &why)) {
            data_bad(&v->test, &why);
            continue;
        }
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
    memcpy(options.at, v->cutoffs.at, sizeof options.at);
    if (data_open(&v->test, command.name, arguments_value(a, "test"), &v->progress, e) ||
        (train && train_read(v, train, e))) {
        return -1;
    }
    options.propensity = v->propensity;
    if (cli_open(opened, config, CLI_MEMORY_READ, e) || evaluation_open(&v->evaluation, opened->engine, &options, e)) {
        return -1;
    }
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
    evaluation_metrics(v->evaluation, &metrics);
    if (arguments_has(v->arguments, "json")) {
        eval_json(&metrics, &v->cutoffs, deciles, &out);
    } else {
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
    v->propensity = (struct propensity_source){.a = 0.55, .b = 1.5};
    if (!test) {
        status = cli_usage(command.name, "what to evaluate is missing: --test FILE");
    } else if (train && strcmp(test, "-") == 0 && strcmp(train, "-") == 0) {
        status = cli_usage(command.name, "only one of --test and --train can be standard input");
    } else if (per_label && strcmp(per_label, "-") == 0) {
        status = cli_usage(command.name, "--per-label needs a file: standard output has the metrics");
    } else if (cutoffs_read(v, &status) && number_read(arguments, "psp-a", 0, &v->propensity.a, &status) &&
               number_read(arguments, "psp-b", 0.001, &v->propensity.b, &status)) {
        status = eval_run(v, &config);
    }
done:
    arena_free(&v->arena);
    arena_free(&v->train_arena);
    free(v->names);
    free(v->name_counts);
    free(v);
    arguments_free(arguments);
    config_free(&config);
    return status;
}
