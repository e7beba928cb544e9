/* engram eval: the metrics of a test file against the memory as it is, read-only, beside a running stage too. */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/internal.h"
#include "record/record.h"

enum { BATCH_TEXTS = 512, BATCH_BYTES = 256 << 10 };

static const struct config_command command = {
    .name = "eval",
    .usage = "--test FILE [--exclude-self] [--train FILE] [--json]",
    .help =
        "Predicts the texts of a labelled file and compares: P@k, PSP@k (propensity-scored: hits on rare labels count "
        "more), R@k and nDCG@5, in percent. labels_max and min_score do not apply. Gold labels that the memory lacks "
        "count as missed. Labels of equal score count as the mean over their orders.",
    .example = "engram eval --memory my-memory --test examples/debtags/test.jsonl.gz",
    .flags =
        (const struct config_flag[]){
            {"test", "FILE", "labelled texts {\"id\", \"text\", \"labels\"}, a line each", false},
            {"exclude-self", NULL, "a label named as the text's id is neither predicted nor counted (item to item)",
             false},
            {"train", "FILE", "label counts for PSP from this file instead of the memory's instances", false},
            {"psp-a", "A", "of the propensity model (default 0.55)", false},
            {"psp-b", "B", "of the propensity model (default 1.5)", false},
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

/* ---- output ---- */

static void metric_write(struct json_writer *w, const char *name, double value)
{
    json_name(w, name);
    json_write_double(w, round(value * 1e4) / 1e4);
}

static void metrics_json(const struct metrics *m, struct buffer *out)
{
    struct json_writer w = {.out = out};
    json_object_begin(&w);
    metric_write(&w, "P@1", m->precision[0]);
    metric_write(&w, "P@3", m->precision[1]);
    metric_write(&w, "P@5", m->precision[2]);
    metric_write(&w, "PSP@1", m->psp[0]);
    metric_write(&w, "PSP@3", m->psp[1]);
    metric_write(&w, "PSP@5", m->psp[2]);
    metric_write(&w, "R@10", m->recall[0]);
    metric_write(&w, "R@100", m->recall[1]);
    metric_write(&w, "nDCG@5", m->ndcg5);
    json_name(&w, "n");
    json_write_uint(&w, m->n);
    json_object_end(&w);
    buffer_byte(out, '\n');
}

/* One row of the table; columns is the first rank's column of five (@1 @3 @5 @10 @100). */
static void metrics_row(struct buffer *out, const char *name, size_t column, const double *values, size_t count)
{
    buffer_format(out, "%-5s", name);
    buffer_format(out, "%*s", (int)(8 * column), "");
    for (size_t i = 0; i < count; i++) {
        if (isnan(values[i])) {
            buffer_format(out, "%8s", "-");
        } else {
            buffer_format(out, "%8.2f", values[i]);
        }
    }
    buffer_byte(out, '\n');
}

static void metrics_table(const struct metrics *m, struct buffer *out)
{
    buffer_format(out, "%-5s%8s%8s%8s%8s%8s\n", "%", "@1", "@3", "@5", "@10", "@100");
    metrics_row(out, "P", 0, m->precision, 3);
    metrics_row(out, "PSP", 0, m->psp, 3);
    metrics_row(out, "R", 3, m->recall, 2);
    metrics_row(out, "nDCG", 2, &m->ndcg5, 1);
    buffer_format(out, "over %" PRIu64 " texts\n", m->n);
}

/* ---- the command ---- */

static int eval_run(struct eval *v, const struct config *config)
{
    const char *train = arguments_value(v->arguments, "train");
    struct cli_engine opened = {0};
    struct buffer out = {0};
    struct error e = {0};
    struct metrics metrics;
    int status = STATUS_FAILED;
    if (data_open(&v->test, command.name, arguments_value(v->arguments, "test"), &v->progress, &e) ||
        (train && train_read(v, train, &e)) || cli_open(&opened, config, CLI_MEMORY_READ, &e) ||
        evaluation_open(&v->evaluation, opened.engine, &v->propensity, arguments_has(v->arguments, "exclude-self"),
                        &e)) {
        status = cli_fail(command.name, &e);
        goto done;
    }
    progress_start(&v->progress, "evaluating", "texts");
    int result = test_read(v, &e);
    progress_end(&v->progress, v->done);
    if (result) {
        status = cli_fail(command.name, &e);
        goto done;
    }
    evaluation_metrics(v->evaluation, &metrics);
    if (arguments_has(v->arguments, "json")) {
        metrics_json(&metrics, &out);
    } else {
        metrics_table(&metrics, &out);
    }
    status = cli_output(command.name, &out) && v->test.bad + v->train.bad == 0 ? STATUS_OK : STATUS_FAILED;
done:
    buffer_free(&out);
    evaluation_close(v->evaluation);
    cli_close(&opened);
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
    v->arguments = arguments;
    v->propensity = (struct propensity_source){.a = 0.55, .b = 1.5};
    if (!test) {
        status = cli_usage(command.name, "what to evaluate is missing: --test FILE");
    } else if (train && strcmp(test, "-") == 0 && strcmp(train, "-") == 0) {
        status = cli_usage(command.name, "only one of --test and --train can be standard input");
    } else if (number_read(arguments, "psp-a", 0, &v->propensity.a, &status) &&
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
