/* What the cluster says of topics: their partitions and settings, and where their partitions begin and end. */
#include <librdkafka/rdkafka.h>
#include <stdlib.h>
#include <string.h>

#include "kafka/internal.h"

static void describe_partitions(const struct rd_kafka_metadata *metadata, struct kafka_topic *topic)
{
    for (int i = 0; i < metadata->topic_cnt; i++) {
        const rd_kafka_metadata_topic_t *found = &metadata->topics[i];
        if (strcmp(found->topic, topic->name) != 0 || found->err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) {
            continue;
        }
        topic->partitions = found->partition_cnt;
        topic->led = found->err == RD_KAFKA_RESP_ERR_NO_ERROR && found->partition_cnt > 0;
        for (int p = 0; p < found->partition_cnt; p++) {
            topic->led = topic->led && found->partitions[p].leader >= 0;
        }
    }
}

static void describe_setting(struct kafka_topic *topic, const char *name, const char *value)
{
    if (strcmp(name, "cleanup.policy") == 0) {
        topic->compact = strstr(value, "compact") != NULL;
    } else if (strcmp(name, "retention.ms") == 0) {
        topic->retention_ms = strtoll(value, NULL, 10);
    } else if (strcmp(name, "delete.retention.ms") == 0) {
        topic->delete_retention_ms = strtoll(value, NULL, 10);
    }
}

static void describe_result(rd_kafka_event_t *event, struct kafka_topic *topics, size_t n)
{
    size_t count = 0;
    const rd_kafka_DescribeConfigs_result_t *result = rd_kafka_event_DescribeConfigs_result(event);
    const rd_kafka_ConfigResource_t **found = rd_kafka_DescribeConfigs_result_resources(result, &count);
    for (size_t r = 0; r < count; r++) {
        for (size_t t = 0; t < n; t++) {
            if (rd_kafka_ConfigResource_error(found[r]) ||
                strcmp(rd_kafka_ConfigResource_name(found[r]), topics[t].name) != 0) {
                continue;
            }
            size_t entries = 0;
            const rd_kafka_ConfigEntry_t **entry = rd_kafka_ConfigResource_configs(found[r], &entries);
            topics[t].configured = entries > 0;
            for (size_t i = 0; i < entries; i++) {
                const char *value = rd_kafka_ConfigEntry_value(entry[i]);
                describe_setting(&topics[t], rd_kafka_ConfigEntry_name(entry[i]), value ? value : "");
            }
        }
    }
}

/* Settings are wanted, not needed: who may not read them goes without. */
static int describe_settings(struct kafka_client *c, struct kafka_topic *topics, size_t n, int timeout_ms,
                             struct error *e)
{
    rd_kafka_ConfigResource_t **resources = mem_zero(n, sizeof *resources);
    size_t count = 0;
    int result = 0;
    for (size_t i = 0; i < n; i++) {
        if (topics[i].partitions > 0) {
            resources[count++] = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, topics[i].name);
        }
    }
    if (count) {
        rd_kafka_queue_t *queue = rd_kafka_queue_new(c->rk);
        rd_kafka_DescribeConfigs(c->rk, resources, count, NULL, queue);
        rd_kafka_event_t *event = rd_kafka_queue_poll(queue, timeout_ms);
        if (!event || rd_kafka_event_error(event) == RD_KAFKA_RESP_ERR__TIMED_OUT) {
            result = error_set(e, ERROR_RETRY, E_BROKER, "the brokers do not describe the topics");
        } else if (!rd_kafka_event_error(event)) {
            describe_result(event, topics, n);
        }
        if (event) {
            rd_kafka_event_destroy(event);
        }
        rd_kafka_queue_destroy(queue);
        rd_kafka_ConfigResource_destroy_array(resources, count);
    }
    free(resources);
    return result;
}

/* All topics are asked for: naming one could create it, where brokers create topics by themselves. No callback is
 * served: a rebalance may be what asks. */
int kafka_topics_describe(struct kafka_client *c, struct kafka_topic *topics, size_t n, bool settings, int timeout_ms,
                          struct error *e)
{
    const struct rd_kafka_metadata *metadata = NULL;
    rd_kafka_resp_err_t err = rd_kafka_metadata(c->rk, 1, NULL, &metadata, timeout_ms);
    if (err) {
        return error_set(e, ERROR_RETRY, E_BROKER, "%s does not list the topics: %s", c->brokers,
                         rd_kafka_err2str(err));
    }
    for (size_t i = 0; i < n; i++) {
        topics[i] = (struct kafka_topic){
            .name = topics[i].name, .compact = true, .retention_ms = -1, .delete_retention_ms = -1};
        describe_partitions(metadata, &topics[i]);
    }
    rd_kafka_metadata_destroy(metadata);
    return settings ? describe_settings(c, topics, n, timeout_ms, e) : 0;
}

int kafka_offsets_query(struct kafka_client *c, rd_kafka_topic_partition_list_t *list, int64_t which, int timeout_ms,
                        struct error *e)
{
    for (int i = 0; i < list->cnt; i++) {
        list->elems[i].offset = which; /* as ListOffsets means it: -2 the start, -1 the end */
    }
    rd_kafka_resp_err_t err = list->cnt ? rd_kafka_offsets_for_times(c->rk, list, timeout_ms) : 0;
    for (int i = 0; i < list->cnt && !err; i++) {
        err = list->elems[i].err;
    }
    if (err) {
        return error_set(e, ERROR_RETRY, E_BROKER, "%s does not give the offsets: %s", c->brokers,
                         rd_kafka_err2str(err));
    }
    return 0;
}
