/* One record to its topic, and the broker's word on it: what teach, define and forget share. Bounded in time, since
 * somebody waits before the terminal. See internal.h. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "cli/internal.h"
#include "producer/producer.h"

static bool before_deadline(void *context)
{
    return clock_us() < *(const uint64_t *)context;
}

int cli_topics_ensure(struct sender *s, const struct config *config, const char *topic, int32_t *partitions,
                      struct error *e)
{
    uint64_t deadline = clock_us() + CLI_TOPICS_MS * 1000ull;
    struct kafka_wait wait = {before_deadline, &deadline};
    if (sender_partitions(s, topic, partitions, e) == 0) {
        return 0;
    }
    if (e->code != E_TOPIC || !config->create_topics || topics_ensure(config, &wait, e)) {
        return -1;
    }
    return sender_partitions(s, topic, partitions, e);
}

/* The partition that the memory saw this key come from: false where it does not know. */
static bool partition_remembered(const struct config *config, const struct cli_record *r, int32_t *partition)
{
    struct memory *memory = NULL;
    struct snapshot *snapshot = NULL;
    struct memory_instance instance;
    struct memory_label label;
    struct slice topic = {0};
    if (cli_memory_open(&memory, config, MEMORY_READ, NULL) == 0 && memory_look(memory, &snapshot, NULL) == 0) {
        if (r->is_instance && snapshot_instance(snapshot, r->key, &instance, NULL) == 1) {
            topic = instance.topic;
            *partition = instance.partition;
        } else if (!r->is_instance && snapshot_label_named(snapshot, r->key, &label, NULL) == 1) {
            topic = label.topic;
            *partition = label.partition;
        }
    }
    bool known = slice_equal(topic, slice_of(r->topic));
    snapshot_release(snapshot);
    if (memory) {
        memory_close(memory);
    }
    return known;
}

/* A key must stay in its partition, and which partitioner the other producers use is not known here: with several
 * partitions the memory says where it came from, or the user does. */
static int partition_choose(const struct config *config, const struct cli_record *r, int32_t partitions,
                            int32_t *partition, struct error *e)
{
    if (r->partition >= partitions) {
        return error_set(e, ERROR_FATAL, E_USAGE, "topic '%s' has no partition %d: it has %d, from 0", r->topic,
                         r->partition, partitions);
    }
    *partition = r->partition;
    if (*partition >= 0 || partitions == 1) {
        *partition = *partition < 0 ? 0 : *partition;
        return 0;
    }
    if (partition_remembered(config, r, partition) && *partition < partitions) {
        return 0;
    }
    return error_set(e, ERROR_FATAL, E_USAGE,
                     "topic '%s' has %d partitions, and it is not known here which one this key belongs to: name it "
                     "with --partition N",
                     r->topic, partitions);
}

int cli_send(const struct config *config, const struct cli_record *r)
{
    struct sender *sender = NULL;
    struct buffer out = {0};
    struct error e = {0};
    struct sent sent;
    int32_t partitions = 0, partition = 0;
    int status = STATUS_FAILED;
    if (sender_open(&sender, config, CLI_CONNECT_MS, &e) ||
        (r->value.data ? cli_topics_ensure(sender, config, r->topic, &partitions, &e)
                       : sender_partitions(sender, r->topic, &partitions, &e)) ||
        partition_choose(config, r, partitions, &partition, &e) ||
        sender_send(sender, r->topic, partition, r->key, r->value, CLI_ANSWER_MS, &sent, &e)) {
        status = cli_fail(r->command, &e);
        goto done;
    }
    buffer_format(&out, "%s: topic %s, partition %d, offset %" PRId64 "\n", r->done, r->topic, sent.partition,
                  sent.offset);
    status = cli_output(r->command, &out) ? STATUS_OK : STATUS_FAILED;
done:
    buffer_free(&out);
    sender_close(sender);
    return status;
}

bool cli_partition(const char *command, const struct arguments *a, int32_t *partition, int *status)
{
    const char *text = arguments_value(a, "partition");
    char *end = NULL;
    long number = text ? strtol(text, &end, 10) : -1;
    if (text && (!*text || *end || number < 0 || number > INT32_MAX)) {
        *status = cli_usage(command, "--partition %s: must be a number from 0", text);
        return false;
    }
    *partition = (int32_t)number;
    return true;
}
