/* engram forget: a null record (tombstone) for an instance or a label's definition to its topic, so that every replica
 * forgets it; or, with --local, out of a stopped stage's memory alone, which is then outside the replicas' promise. */
#include <stdlib.h>
#include <string.h>

#include "cli/internal.h"
#include "producer/producer.h"
#include "record/record.h"

static const struct config_command command = {
    .name = "forget",
    .usage = "ID | --label L  [--local]",
    .help =
        "Sends a null record for an instance, or for a label's definition, to its topic and waits for the "
        "acknowledgement. Every replica forgets it. A label that instances still name stays, without its text. --local "
        "changes only the memory of a stopped stage, and marks it as changed by hand.",
    .example = "engram forget pkg-1\nengram forget --label use::editing",
    .flags =
        (const struct config_flag[]){
            {"label", "L", "forget this label's definition instead of an instance", false},
            {"local", NULL, "change only the memory of a stopped stage, without Kafka", false},
            {"partition", "N",
             "the partition to write to, if the topic has several and the memory does not know the key", false},
            {0}},
    .positional_min = 0,
    .positional_max = 1,
};

/* One transaction: the forget, and the mark that this memory was changed by hand. */
static int forget_in(struct memory *memory, struct slice name, bool label, bool *found, struct error *e)
{
    struct transaction *t = NULL;
    if (memory_begin(memory, &t, e)) {
        return -1;
    }
    if ((label ? transaction_undefine(t, name, found, e) : transaction_forget(t, name, found, e)) ||
        (*found && transaction_local_change(t, e))) {
        transaction_abort(t);
        return -1;
    }
    if (!*found) {
        transaction_abort(t);
        return 0;
    }
    return transaction_commit(t, e);
}

static int forget_local(const struct config *config, const char *name, bool label)
{
    struct memory *memory = NULL;
    struct buffer out = {0};
    struct error e = {0};
    bool found = false;
    int status = STATUS_FAILED;
    if (cli_memory_open(&memory, config, MEMORY_WRITE, &e) || forget_in(memory, slice_of(name), label, &found, &e)) {
        status = cli_fail(command.name, &e);
    } else if (!found) {
        cli_complain(command.name, "%s has no %s '%s'", config->memory, label ? "definition of the label" : "instance",
                     name);
    } else {
        buffer_format(&out, "forgot %s%s in %s only\n", label ? "the definition of " : "", name, config->memory);
        status = cli_output(command.name, &out) ? STATUS_OK : STATUS_FAILED;
    }
    if (memory) {
        memory_close(memory);
    }
    buffer_free(&out);
    return status;
}

static int forget_send(const struct config *config, const char *name, bool label, int32_t partition)
{
    struct cli_record r = {
        .command = command.name,
        .topic = label ? config->labels_topic : config->instances_topic,
        .key = slice_of(name),
        .is_instance = !label,
        .partition = partition,
    };
    struct buffer done = {0};
    buffer_format(&done, "forgot %s%s", label ? "the definition of " : "", name);
    r.done = done.data;
    int status = cli_send(config, &r);
    buffer_free(&done);
    return status;
}

static int forget(const struct config *config, const struct arguments *a)
{
    const char *label = arguments_value(a, "label");
    const char *name = label ? label : arguments_positional_count(a) ? arguments_positional(a, 0) : NULL;
    struct error e = {0};
    int32_t partition;
    int status;
    if (!name || (label && arguments_positional_count(a))) {
        return cli_usage(command.name, "name one thing to forget: ID, or --label L");
    }
    if (arguments_has(a, "local") && arguments_has(a, "partition")) {
        return cli_usage(command.name, "--partition is about the topic, and --local uses no topic");
    }
    if (!cli_partition(command.name, a, &partition, &status)) {
        return status;
    }
    if (record_check_name(slice_of(name), label ? "label" : "id", &e)) {
        return cli_fail(command.name, &e);
    }
    return arguments_has(a, "local") ? forget_local(config, name, label != NULL)
                                     : forget_send(config, name, label != NULL, partition);
}

int command_forget(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    int status;
    if (cli_read(&command, argc, argv, &config, &arguments, &status)) {
        status = forget(&config, arguments);
    }
    arguments_free(arguments);
    config_free(&config);
    return status;
}
