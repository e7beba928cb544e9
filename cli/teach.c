/* engram teach and engram define: one labelled instance, or one label definition, to its topic. What is sent was
 * encoded, decoded as the stage will decode it, and encoded again, so that nothing goes out that would come back as
 * poison. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "cli/internal.h"
#include "producer/producer.h"
#include "record/record.h"

static const struct config_command teach = {
    .name = "teach",
    .usage = "--id ID --label L [--label L]... TEXT",
    .help = "Sends one labelled instance to the topic of instances and waits for the acknowledgement. A running stage "
            "folds it at once. The same id again replaces it.",
    .example = "engram teach --id pkg-1 --label role::program --label use::editing \"a small text editor\"",
    .flags =
        (const struct config_flag[]){
            {"id", "ID", "the instance's name, and the record's key (required)", false},
            {"label", "L", "a label of the instance; repeatable", true},
            {"partition", "N",
             "the partition to write to, if the topic has several and the memory does not know the id", false},
            {0}},
    .positional_min = 1,
    .positional_max = 1,
};

static const struct config_command define = {
    .name = "define",
    .usage = "LABEL TEXT",
    .help = "Sends one label definition to the topic of labels and waits for the acknowledgement. A defined label is "
            "predicted for texts like its own, even before any instance has it.",
    .example = "engram define use::editing \"writing and changing texts\"",
    .flags =
        (const struct config_flag[]){
            {"partition", "N",
             "the partition to write to, if the topic has several and the memory does not know the label", false},
            {0}},
    .positional_min = 2,
    .positional_max = 2,
};

static int argument_check(const char *what, const char *text, struct error *e)
{
    if (!utf8_valid(text, strlen(text))) {
        return error_set(e, ERROR_POISON, E_UTF8, "%s is not UTF-8", what);
    }
    return 0;
}

/* The record's value, in JSON: encoded as given, read as the stage reads it, and encoded as it was understood. */
static int instance_value(const struct arguments *a, const char *id, struct buffer *out, struct error *e)
{
    struct arena arena = {0};
    struct buffer given = {0};
    struct instance_record r = {.id = slice_of(id), .text = slice_of(arguments_positional(a, 0))};
    int result = argument_check("the id", id, e) || argument_check("the text", r.text.data, e);
    r.labels_count = arguments_count(a, "label");
    r.labels = mem_zero(r.labels_count, sizeof *r.labels);
    for (size_t i = 0; i < r.labels_count && !result; i++) {
        r.labels[i] = slice_of(arguments_nth(a, "label", i));
        result = argument_check("a label", r.labels[i].data, e);
    }
    if (!result) {
        struct instance_record understood;
        record_encode_instance(&r, FORMAT_JSON, &given);
        result = record_decode_instance(r.id, (struct slice){given.data, given.bytes}, &arena, &understood, e);
        if (!result) {
            record_encode_instance(&understood, FORMAT_JSON, out);
        }
    }
    free(r.labels);
    buffer_free(&given);
    arena_free(&arena);
    return result ? -1 : 0;
}

static int label_value(const char *label, const char *text, struct buffer *out, struct error *e)
{
    struct arena arena = {0};
    struct buffer given = {0};
    struct label_record r = {.label = slice_of(label), .text = slice_of(text)}, understood;
    int result = argument_check("the label", label, e) || argument_check("the text", text, e);
    if (!result) {
        record_encode_label(&r, FORMAT_JSON, &given);
        result = record_decode_label(r.label, (struct slice){given.data, given.bytes}, &arena, &understood, e);
        if (!result) {
            record_encode_label(&understood, FORMAT_JSON, out);
        }
    }
    buffer_free(&given);
    arena_free(&arena);
    return result ? -1 : 0;
}

static int teach_send(const struct config *config, const struct arguments *a)
{
    const char *id = arguments_value(a, "id");
    struct cli_record r = {.command = teach.name, .topic = config->instances_topic, .is_instance = true};
    struct buffer value = {0}, done = {0};
    struct error e = {0};
    int status = STATUS_FAILED;
    if (!id || arguments_count(a, "label") == 0) {
        return cli_usage(teach.name, "an instance needs --id ID and at least one --label L");
    }
    if (!cli_partition(teach.name, a, &r.partition, &status)) {
        return status;
    }
    if (instance_value(a, id, &value, &e)) {
        status = cli_fail(teach.name, &e);
    } else {
        r.key = slice_of(id);
        r.value = (struct slice){value.data, value.bytes};
        buffer_format(&done, "taught %s", id);
        r.done = done.data;
        status = cli_send(config, &r);
    }
    buffer_free(&done);
    buffer_free(&value);
    return status;
}

static int define_send(const struct config *config, const struct arguments *a)
{
    const char *label = arguments_positional(a, 0);
    struct cli_record r = {.command = define.name, .topic = config->labels_topic};
    struct buffer value = {0}, done = {0};
    struct error e = {0};
    int status = STATUS_FAILED;
    if (!cli_partition(define.name, a, &r.partition, &status)) {
        return status;
    }
    if (label_value(label, arguments_positional(a, 1), &value, &e)) {
        status = cli_fail(define.name, &e);
    } else {
        r.key = slice_of(label);
        r.value = (struct slice){value.data, value.bytes};
        buffer_format(&done, "defined %s", label);
        r.done = done.data;
        status = cli_send(config, &r);
    }
    buffer_free(&done);
    buffer_free(&value);
    return status;
}

static int command_send(const struct config_command *command, int argc, char **argv,
                        int (*send)(const struct config *config, const struct arguments *a))
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    int status;
    if (cli_read(command, argc, argv, &config, &arguments, &status)) {
        status = send(&config, arguments);
    }
    arguments_free(arguments);
    config_free(&config);
    return status;
}

int command_teach(int argc, char **argv)
{
    return command_send(&teach, argc, argv, teach_send);
}

int command_define(int argc, char **argv)
{
    return command_send(&define, argc, argv, define_send);
}
