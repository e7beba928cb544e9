/* Where an assignment of `texts` starts: at the group's committed offsets, else where start_from says. On the poll
 * thread, from within a rebalance. */
#include <librdkafka/rdkafka.h>

#include "base/clock.h"
#include "base/log.h"
#include "consumer/internal.h"

enum {
    COMMITTED_MS = 5000, /* one question for committed offsets */
    ATTEMPTS = 3,
    PAUSE_MS = 100,
};

static int committed_read(struct kafka_client *c, rd_kafka_topic_partition_list_t *list)
{
    rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        err = rd_kafka_committed(c->rk, list, COMMITTED_MS);
        for (int i = 0; i < list->cnt && !err; i++) {
            err = list->elems[i].err; /* a partition that could not be asked has no offset either */
        }
        if (!err) {
            return 0;
        }
        clock_sleep_ms(PAUSE_MS);
    }
    log_warn("texts: the group's offsets cannot be read: %s", rd_kafka_err2str(err));
    return -1;
}

/* Does the group hold no offset at all on the topic? Then start_from decides, at our first assignment: later the topic
 * must have been created again, which drops the group's offsets. Else a partition without one is new, and what was
 * written to it before we looked must not be missed. all gets every partition with its committed offset. */
static bool group_is_new(struct kafka_client *c, const char *name, rd_kafka_topic_partition_list_t *all)
{
    struct kafka_topic topic = {.name = name};
    if (kafka_topics_describe(c, &topic, 1, false, COMMITTED_MS, NULL)) {
        return false;
    }
    for (int32_t p = 0; p < topic.partitions; p++) {
        rd_kafka_topic_partition_list_add(all, name, p);
    }
    if (!all->cnt || committed_read(c, all)) {
        return false;
    }
    for (int i = 0; i < all->cnt; i++) {
        if (all->elems[i].offset >= 0) {
            return false;
        }
    }
    return true;
}

static void ends_commit(struct kafka_client *c, const rd_kafka_topic_partition_list_t *ends)
{
    rd_kafka_resp_err_t err = RD_KAFKA_RESP_ERR_NO_ERROR;
    for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
        err = rd_kafka_commit(c->rk, ends, 0);
        if (!err) {
            return;
        }
        clock_sleep_ms(PAUSE_MS);
    }
    log_warn("texts: start_from = latest: the start position is not committed: %s: a restart before the first commit "
             "of a partition skips what arrived until then",
             rd_kafka_err2str(err));
}

/* A new group that starts at the ends commits them at once, for every partition: were it done when the first text is
 * published, a restart before that would look for the ends again and miss what came between. */
static void start_latest(struct kafka_client *c, const char *topic, rd_kafka_topic_partition_list_t *list)
{
    rd_kafka_topic_partition_list_t *all = rd_kafka_topic_partition_list_new(16);
    if (group_is_new(c, topic, all)) {
        struct error e;
        if (kafka_offsets_query(c, all, RD_KAFKA_OFFSET_END, COMMITTED_MS, &e)) {
            log_warn("texts: start_from = latest: %s: starting from the beginning", e.text);
        } else {
            ends_commit(c, all);
            for (int i = 0; i < list->cnt; i++) {
                const rd_kafka_topic_partition_t *end =
                    rd_kafka_topic_partition_list_find(all, topic, list->elems[i].partition);
                list->elems[i].offset = end ? end->offset : RD_KAFKA_OFFSET_BEGINNING;
            }
        }
    }
    rd_kafka_topic_partition_list_destroy(all);
}

void text_starts(struct kafka_client *c, const char *topic, bool latest, rd_kafka_topic_partition_list_t *list)
{
    if (committed_read(c, list)) {
        for (int i = 0; i < list->cnt; i++) {
            list->elems[i].offset = RD_KAFKA_OFFSET_STORED;
        }
        return;
    }
    bool missing = false;
    for (int i = 0; i < list->cnt; i++) {
        if (list->elems[i].offset < 0) {
            missing = true;
            list->elems[i].offset = RD_KAFKA_OFFSET_BEGINNING;
        }
    }
    if (missing && latest) {
        start_latest(c, topic, list);
    }
    rd_kafka_topic_partition_list_t *low = missing ? rd_kafka_topic_partition_list_copy(list) : NULL;
    if (low && kafka_offsets_query(c, low, RD_KAFKA_OFFSET_BEGINNING, COMMITTED_MS, NULL) == 0) {
        for (int i = 0; i < list->cnt; i++) {
            if (list->elems[i].offset < 0) {
                list->elems[i].offset = low->elems[i].offset;
            }
        }
    }
    if (low) {
        rd_kafka_topic_partition_list_destroy(low);
    }
}
