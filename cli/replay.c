/* engram replay: a data set produced to its topics, keyed: labels, then instances, then texts. A bad line is named and
 * skipped, a record that the broker refuses is named too; the rest goes on. One line at the end says what was
 * acknowledged. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/data.h"
#include "cli/internal.h"
#include "producer/producer.h"
#include "record/record.h"

enum { LABELS, INSTANCES, TEXTS, FILES };

static const char *const nouns[FILES] = {"labels", "instances", "texts"};

static const struct config_command command = {
    .name = "replay",
    .usage = "[--data FOLDER] [--labels FILE] [--instances FILE] [--texts FILE] [--rate N] [--format json|msgpack]",
    .help =
        "Sends a data set to its topics, with labels and ids as keys: first labels, then instances, then texts "
        "(without their labels). Waits for every acknowledgement. A bad line is reported and skipped. A FILE may also "
        "be a file of an LF-XMC or DEXML data set, or the set's folder.",
    .example =
        "engram replay --labels examples/debtags/labels.jsonl.gz --instances examples/debtags/train.jsonl.gz \\\n"
        "              --texts examples/debtags/test.jsonl.gz",
    .flags =
        (const struct config_flag[]){
            {"data", "FOLDER",
             "the folder of a data set: its labels, instances (to train with) and texts (to test with)", false},
            {"labels", "FILE", "label definitions {\"label\", \"text\"}, one a line", false},
            {"instances", "FILE", "instances {\"id\", \"text\", \"labels\"}, one a line", false},
            {"texts", "FILE", "texts {\"id\", \"text\", \"metadata\"}, one a line", false},
            {"text", "title|title+content", "what to read as the text of an LF-XMC line (default title)", false},
            {"rate", "N", "send at most N records a second; may be a fraction", false},
            {"format", "json|msgpack", "format of the records (default json)", false},
            {0}},
};

struct replay {
    struct sender *sender;
    const char *topics[FILES];
    struct data_source sources[FILES];
    struct data_file files[FILES];
    struct progress progress;
    enum record_format format;
    double rate; /* 0: no limit */
    uint64_t started_us, queued;
    uint64_t sent[FILES], refused;
    int current;
};

/* ---- one record ---- */

/* The next line as the record that it will be: *key and *out. As data_label_next. */
static int replay_next(struct replay *r, int which, struct arena *arena, struct slice *key, struct buffer *out,
                       struct error *e)
{
    struct instance_record instance;
    struct label_record label;
    struct text_record text;
    int found;
    switch (which) {
    case LABELS:
        if ((found = data_label_next(&r->files[which], arena, &label, e)) > 0) {
            *key = label.label;
            record_encode_label(&label, r->format, out);
        }
        return found;
    case INSTANCES:
        if ((found = data_instance_next(&r->files[which], arena, &instance, e)) > 0) {
            *key = instance.id;
            record_encode_instance(&instance, r->format, out);
        }
        return found;
    default:
        if ((found = data_text_next(&r->files[which], arena, &text, e)) > 0) {
            *key = text.id;
            record_encode_text(&text, r->format, out);
        }
        return found;
    }
}

static void refused(void *context, uint64_t number, const struct error *e)
{
    struct replay *r = context;
    r->refused++;
    r->sent[r->current]--;
    progress_clear(&r->progress);
    cli_complain(command.name, "%s:%" PRIu64 ": %s", r->files[r->current].path, number, e->text);
}

/* Holds the next record back until its time has come; reports are heard meanwhile. */
static int replay_pace(struct replay *r, struct error *e)
{
    while (r->rate > 0) {
        double due = (double)r->queued / r->rate - (double)(clock_us() - r->started_us) / 1e6;
        if (due <= 0) {
            break;
        }
        if (sender_flush(r->sender, CLI_ANSWER_MS, e) < 0) {
            return -1;
        }
        clock_sleep_ms(due > 0.1 ? 100 : (unsigned)(due * 1000) + 1);
    }
    return 0;
}

/* ---- files ---- */

static int replay_drain(struct replay *r, struct error *e)
{
    int said;
    while ((said = sender_flush(r->sender, CLI_ANSWER_MS, e)) == 0) {
        progress_update(&r->progress, sender_acknowledged(r->sender), data_fraction(r->files, FILES));
    }
    return said < 0 ? -1 : 0;
}

static int replay_file(struct replay *r, int which, struct error *e)
{
    struct data_file *file = &r->files[which];
    struct arena arena = {0};
    struct buffer value = {0};
    struct slice key = {0};
    int found = 0, result = 0;
    r->current = which;
    while (!result && (found = replay_next(r, which, &arena, &key, &value, e)) > 0) {
        result =
            replay_pace(r, e) || sender_queue(r->sender, r->topics[which], key, (struct slice){value.data, value.bytes},
                                              data_number(file), CLI_ANSWER_MS, e);
        if (!result) {
            r->queued++;
            r->sent[which]++;
            progress_update(&r->progress, r->queued, data_fraction(r->files, FILES));
        }
        arena_free(&arena);
        buffer_clear(&value);
    }
    arena_free(&arena);
    buffer_free(&value);
    if (result) {
        return -1;
    }
    struct error drain;
    if (found < 0) { /* what is before the fault is sent; the fault is the news */
        replay_drain(r, &drain);
        return -1;
    }
    return replay_drain(r, e);
}

static void replay_summary(const struct replay *r, struct buffer *out)
{
    double seconds = (double)(clock_us() - r->started_us) / 1e6;
    uint64_t bad = r->files[LABELS].bad + r->files[INSTANCES].bad + r->files[TEXTS].bad;
    const char *comma = "sent ";
    for (int i = 0; i < FILES; i++) {
        if (r->files[i].path) {
            buffer_format(out, "%s%" PRIu64 " %s", comma, r->sent[i], nouns[i]);
            comma = ", ";
        }
    }
    buffer_format(out, " in %.1f s, all acknowledged", seconds);
    if (bad) {
        buffer_format(out, "; skipped %" PRIu64 " bad line%s", bad, bad == 1 ? "" : "s");
    }
    if (r->refused) {
        buffer_format(out, "; %" PRIu64 " refused by the broker", r->refused);
    }
    buffer_byte(out, '\n');
}

/* ---- the command ---- */

static int replay_open(struct replay *r, const struct config *config, struct error *e)
{
    const struct sender_failure failure = {refused, r};
    int32_t partitions;
    for (int i = 0; i < FILES; i++) {
        if (r->sources[i].path && data_open(&r->files[i], &r->sources[i], e)) {
            return -1;
        }
    }
    if (sender_open(&r->sender, config, CLI_CONNECT_MS, e)) {
        return -1;
    }
    sender_on_failure(r->sender, &failure);
    for (int i = 0; i < FILES; i++) {
        if (r->files[i].lines && cli_topics_ensure(r->sender, config, r->topics[i], &partitions, e)) {
            return -1;
        }
    }
    return 0;
}

static int replay_run(struct replay *r, const struct config *config)
{
    struct buffer out = {0};
    struct error e = {0};
    int status = STATUS_FAILED;
    if (replay_open(r, config, &e)) {
        status = cli_fail(command.name, &e);
        goto done;
    }
    r->started_us = clock_us();
    progress_start(&r->progress, "sending", "records");
    int result = 0;
    for (int i = 0; i < FILES && !result; i++) {
        result = r->files[i].lines ? replay_file(r, i, &e) : 0;
    }
    progress_end(&r->progress, sender_acknowledged(r->sender));
    if (result) {
        error_wrap(&e, "%" PRIu64 " records acknowledged, then", sender_acknowledged(r->sender));
        status = cli_fail(command.name, &e);
        goto done;
    }
    replay_summary(r, &out);
    status = cli_output(command.name, &out) ? STATUS_OK : STATUS_FAILED;
    if (r->refused + r->files[LABELS].bad + r->files[INSTANCES].bad + r->files[TEXTS].bad) {
        status = STATUS_FAILED;
    }
done:
    buffer_free(&out);
    sender_close(r->sender);
    for (int i = 0; i < FILES; i++) {
        data_close(&r->files[i]);
    }
    return status;
}

/* What the flags name. --data is all, where they have none of their own. */
static bool replay_sources(struct replay *r, const struct arguments *a, int *status)
{
    static const enum data_part parts[FILES] = {DATA_LABELS, DATA_TRAIN, DATA_TEST};
    const char *folder = arguments_value(a, "data");
    bool content;
    if (!data_text_flag(command.name, a, &content, status)) {
        return false;
    }
    for (int i = 0; i < FILES; i++) {
        const char *path = arguments_value(a, nouns[i]);
        r->sources[i] = (struct data_source){.command = command.name,
                                             .path = path ? path : folder,
                                             .part = parts[i],
                                             .folder_only = !path,
                                             .content = content,
                                             .texts_only = i == TEXTS,
                                             .progress = &r->progress};
    }
    return true;
}

static bool replay_options(struct replay *r, const struct arguments *a, int *status)
{
    const char *rate = arguments_value(a, "rate"), *format = arguments_value(a, "format");
    char *end = NULL;
    int given = 0, standard_input = 0;
    for (int i = 0; i < FILES; i++) {
        const char *path = r->sources[i].path;
        given += path != NULL;
        standard_input += path && strcmp(path, "-") == 0;
    }
    r->rate = rate ? strtod(rate, &end) : 0;
    r->format = format && strcmp(format, "msgpack") == 0 ? FORMAT_MSGPACK : FORMAT_JSON;
    if (!given) {
        *status = cli_usage(command.name, "nothing to send: give --labels FILE, --instances FILE or --texts FILE");
    } else if (standard_input > 1) {
        *status = cli_usage(command.name, "only one of the files can be standard input");
    } else if (rate && (!*rate || *end || !(r->rate > 0) || r->rate > 1e9)) {
        *status = cli_usage(command.name, "--rate %s: must be a number of records a second, above 0", rate);
    } else if (format && strcmp(format, "json") != 0 && r->format != FORMAT_MSGPACK) {
        *status = cli_usage(command.name, "--format %s: must be json or msgpack", format);
    } else {
        return true;
    }
    return false;
}

int command_replay(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    struct replay r = {0};
    int status;
    if (cli_read(&command, argc, argv, &config, &arguments, &status) && replay_sources(&r, arguments, &status) &&
        replay_options(&r, arguments, &status)) {
        r.topics[LABELS] = config.labels_topic;
        r.topics[INSTANCES] = config.instances_topic;
        r.topics[TEXTS] = config.texts_topic;
        status = replay_run(&r, &config);
    }
    arguments_free(arguments);
    config_free(&config);
    return status;
}
