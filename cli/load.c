/* engram load: label definitions, then instances, folded from files straight into the memory of a stopped stage. It is
 * the memory's only writer while it runs. Running it again replaces what it finds, so a load that was cut short is
 * finished by starting it once more. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/data.h"
#include "cli/internal.h"
#include "record/record.h"

enum { BATCH_RECORDS = 512, BATCH_BYTES = 256 << 10 }; /* one transaction: about a second of encoding */

static const struct config_command command = {
    .name = "load",
    .usage = "[--data FOLDER] [--labels FILE] [--instances FILE]",
    .help =
        "Folds files of labelled instances and label definitions into the memory of a stopped stage, without Kafka. "
        "The "
        "memory is created if it does not exist. The value's id or label is the key; the same key again replaces. A "
        "bad line is reported and skipped. A FILE may also be a file of an LF-XMC or DEXML data set, or the set's "
        "folder.",
    .example = "engram load --memory my-memory --labels examples/debtags/labels.jsonl.gz \\\n"
               "            --instances examples/debtags/train.jsonl.gz",
    .flags =
        (const struct config_flag[]){
            {"data", "FOLDER", "the folder of a data set: its labels and its instances (the part to train with)",
             false},
            {"labels", "FILE", "label definitions {\"label\", \"text\"}, one a line", false},
            {"instances", "FILE", "instances {\"id\", \"text\", \"labels\"}, one a line", false},
            {"text", "title|title+content", "what to read as the text of an LF-XMC line (default title)", false},
            {0}},
};

struct load {
    struct engine *engine;
    struct data_file files[2]; /* labels, instances */
    struct progress progress;
    uint64_t folded[2];
    struct arena arena; /* of the records in folds */
    struct fold folds[BATCH_RECORDS];
    size_t count, bytes;
};

/* Folds what was gathered. A refusal (map or disk full, keys_max) ends the load: nothing that it did is lost. */
static int load_flush(struct load *l, enum fold_kind kind, struct error *e)
{
    size_t done = 0, applied = 1;
    int result = 0;
    while (done < l->count && applied) {
        result = engine_fold(l->engine, l->folds + done, l->count - done, &applied, e);
        done += applied;
        l->folded[kind == FOLD_INSTANCE] += applied;
        if (result && e->kind != ERROR_RETRY) {
            break;
        }
    }
    if (done < l->count) {
        struct slice name = l->folds[done].name;
        return error_wrap(e, "stopped at %s \"%.*s\"", kind == FOLD_LABEL ? "the label" : "the instance",
                          (int)name.bytes, name.data);
    }
    l->count = l->bytes = 0;
    arena_free(&l->arena);
    progress_update(&l->progress, l->folded[0] + l->folded[1], data_fraction(l->files, 2));
    return 0;
}

/* The next record of the file as a fold; as data_label_next. */
static int fold_next(struct load *l, struct data_file *file, enum fold_kind kind, struct fold *out, struct error *e)
{
    struct instance_record instance;
    struct label_record label;
    int found;
    *out = (struct fold){.kind = kind, .source.time_ms = clock_wall_ms()};
    if (kind == FOLD_LABEL) {
        found = data_label_next(file, &l->arena, &label, e);
        if (found > 0) {
            out->name = label.label;
            out->text = label.text;
        }
    } else {
        found = data_instance_next(file, &l->arena, &instance, e);
        if (found > 0) {
            out->name = instance.id;
            out->text = instance.text;
            out->labels = instance.labels;
            out->labels_count = instance.labels_count;
        }
    }
    return found;
}

static int load_file(struct load *l, struct data_file *file, enum fold_kind kind, struct error *e)
{
    int found;
    while ((found = fold_next(l, file, kind, &l->folds[l->count], e)) > 0) {
        l->bytes += l->folds[l->count++].text.bytes;
        if ((l->count == BATCH_RECORDS || l->bytes > BATCH_BYTES) && load_flush(l, kind, e)) {
            return -1;
        }
    }
    if (found < 0) {
        struct error flush;
        load_flush(l, kind, &flush); /* what is before the fault is folded; the fault is the news */
        return -1;
    }
    return load_flush(l, kind, e);
}

static void load_summary(const struct load *l, const char *memory, struct buffer *out)
{
    double seconds = (double)(clock_us() - l->progress.started_us) / 1e6;
    uint64_t bad = l->files[0].bad + l->files[1].bad;
    buffer_format(out, "folded %" PRIu64 " label definitions and %" PRIu64 " instances into %s in %.1f s", l->folded[0],
                  l->folded[1], memory, seconds);
    if (bad) {
        buffer_format(out, "; skipped %" PRIu64 " bad line%s", bad, bad == 1 ? "" : "s");
    }
    buffer_byte(out, '\n');
}

static int load_open(struct load *l, const struct data_source *sources, struct error *e)
{
    for (int i = 0; i < 2; i++) {
        if (sources[i].path && data_open(&l->files[i], &sources[i], e)) {
            return -1;
        }
    }
    return 0;
}

static int load_run(const struct config *config, struct data_source *sources)
{
    struct load *l = mem_zero(1, sizeof *l);
    struct cli_engine opened = {0};
    struct buffer out = {0};
    struct error e = {0};
    int status = STATUS_FAILED;
    sources[0].progress = sources[1].progress = &l->progress;
    if (load_open(l, sources, &e) || cli_open(&opened, config, CLI_MEMORY_WRITE, &e)) {
        goto failed;
    }
    l->engine = opened.engine;
    progress_start(&l->progress, "folding", "records");
    int result = l->files[0].lines ? load_file(l, &l->files[0], FOLD_LABEL, &e) : 0;
    if (result == 0 && l->files[1].lines) {
        result = load_file(l, &l->files[1], FOLD_INSTANCE, &e);
    }
    progress_end(&l->progress, l->folded[0] + l->folded[1]);
    load_summary(l, config->memory, &out);
    status = cli_output(command.name, &out) && l->files[0].bad + l->files[1].bad == 0 ? STATUS_OK : STATUS_FAILED;
    if (result == 0) {
        goto done;
    }
failed:
    status = cli_fail(command.name, &e);
done:
    buffer_free(&out);
    arena_free(&l->arena);
    cli_close(&opened);
    data_close(&l->files[1]);
    data_close(&l->files[0]);
    free(l);
    return status;
}

/* What the flags name: labels, instances. --data is both, where they have none of their own. */
static bool load_sources(const struct arguments *a, struct data_source *out, int *status)
{
    static const char *const flags[] = {"labels", "instances"};
    const char *folder = arguments_value(a, "data");
    bool content;
    if (!data_text_flag(command.name, a, &content, status)) {
        return false;
    }
    for (int i = 0; i < 2; i++) {
        const char *path = arguments_value(a, flags[i]);
        out[i] = (struct data_source){.command = command.name,
                                      .path = path ? path : folder,
                                      .part = i == 0 ? DATA_LABELS : DATA_TRAIN,
                                      .folder_only = !path,
                                      .content = content};
    }
    if (!out[0].path && !out[1].path) {
        *status = cli_usage(command.name, "nothing to load: give --labels FILE, --instances FILE or both");
    } else if (out[0].path && out[1].path && strcmp(out[0].path, "-") == 0 && strcmp(out[1].path, "-") == 0) {
        *status = cli_usage(command.name, "only one of --labels and --instances can be standard input");
    } else {
        return true;
    }
    return false;
}

int command_load(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    struct data_source sources[2];
    int status;
    if (cli_read(&command, argc, argv, &config, &arguments, &status) && load_sources(arguments, sources, &status)) {
        status = load_run(&config, sources);
    }
    arguments_free(arguments);
    config_free(&config);
    return status;
}
