/* The learn lane's consumer: every partition of `instances` and `labels`, assigned by hand, from the offsets that the
 * memory holds. It commits nothing and never resets an offset: a memory that could have missed a tombstone is refused,
 * and so is a topic that is not the one any more that it read (kafka/position.h).
 * What may surprise: the end of a partition is its EOF event, since markers and compaction leave gaps that no record
 * fills; and an offset of 0 that the memory holds says only that the partition was seen. */
#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "consumer/internal.h"

enum {
    ASK_MS = 5000,
    LOOK_QUIET_US = 2000000, /* so long brokers may not know of a new topic, or that they lead it */
    TOPICS = 2,
    ASSIGNED = 1, /* every partition's epoch: by hand, once */
};

struct learn_partition {
    struct reading *reading;
    enum consumed_from from;
    int64_t start, end;
    bool stored;
    int64_t look_end; /* at the last look; the poll thread's */
    bool caught_up;   /* under the readings' lock */
};

struct learn_consumer {
    struct kafka_client client;
    const struct config *config;
    char *cluster;
    char *topics[TOPICS]; /* instances, labels */
    int64_t look_ms;      /* wall time of the last look; the poll thread's */
    uint64_t marks;       /* the poll thread's */
    size_t count;
    struct learn_partition *partitions; /* partition i is that of readings.list[i] */
    struct readings readings;
    size_t behind; /* partitions not caught up yet; under the readings' lock */
};

/* What to do with a memory that cannot follow these topics any more. */
#define REPLACE_MEMORY "copy another replica's memory, or start an empty one (--memory)"

/* ---- may this memory follow these topics? ---- */

static int check_cluster(const struct learn_consumer *c, const struct learn_offset *stored, size_t n, struct error *e)
{
    const char *other = NULL;
    bool here = false;
    for (size_t i = 0; i < n; i++) {
        bool ours = strcmp(stored[i].cluster, c->cluster) == 0;
        here = here || ours;
        other = stored[i].read.next > 0 && !ours ? stored[i].cluster : other;
        if (ours && stored[i].read.next > 0 && strcmp(stored[i].topic, c->topics[0]) != 0 &&
            strcmp(stored[i].topic, c->topics[1]) != 0) {
            log_warn("learn: this memory also has what it read from topic '%s', which is not followed any more",
                     stored[i].topic);
        }
    }
    if (here) {
        return 0;
    }
    if (other) {
        return error_set(e, ERROR_FATAL, E_TOPIC,
                         "this memory followed the Kafka cluster %s, and %s is the cluster %s: " REPLACE_MEMORY, other,
                         c->client.brokers, c->cluster);
    }
    return 0;
}

/* A changed number of partitions moves keys: the old copy of one would stay for ever. */
static int partitions_changed(const char *topic, int32_t now, int32_t before, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_TOPIC,
                     "topic '%s' has %d partitions, and this memory was made from %d: keys may have moved. To migrate, "
                     "make a new topic with the number that you want, send every record to it, name it in the "
                     "options and start an empty memory (--memory)",
                     topic, now, before);
}

static int check_partitions(const struct learn_consumer *c, const struct kafka_topic *topic,
                            const struct learn_offset *stored, size_t n, struct error *e)
{
    int32_t known = 0;
    for (size_t i = 0; i < n; i++) {
        known += strcmp(stored[i].cluster, c->cluster) == 0 && strcmp(stored[i].topic, topic->name) == 0;
    }
    return known && known != topic->partitions ? partitions_changed(topic->name, topic->partitions, known, e) : 0;
}

static int ended(const char *topic, int32_t partition, int64_t end, int64_t next, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_TOPIC,
                     "topic '%s', partition %d ends at offset %" PRId64 ", and this memory has read to %" PRId64
                     ": the topic was deleted and created again, or cut: " REPLACE_MEMORY,
                     topic, partition, end, next);
}

static int check_offset(const struct learn_partition *p, int64_t low, struct error *e)
{
    const struct reading *at = p->reading;
    if (p->stored && p->start < low) {
        return error_set(e, ERROR_FATAL, E_TOPIC,
                         "topic '%s', partition %d begins at offset %" PRId64
                         ", and this memory has read only to %" PRId64 ": it may have missed records: " REPLACE_MEMORY,
                         at->topic, at->partition, low, p->start);
    }
    return p->stored && p->start > p->end ? ended(at->topic, at->partition, p->end, p->start, e) : 0;
}

/* Compaction drops a tombstone once it is older than delete.retention.ms: who was away for longer can have missed one,
 * unless there is nothing behind what it has read. */
static int check_away(const struct learn_consumer *c, const struct kafka_topic *topic, int64_t caught_up_ms,
                      struct error *e)
{
    int64_t away_ms = clock_wall_ms() - caught_up_ms;
    bool behind = false;
    for (size_t i = 0; i < c->count; i++) {
        const struct learn_partition *p = &c->partitions[i];
        behind = behind || (p->reading->topic == topic->name && p->stored && p->start < p->end);
    }
    if (behind && caught_up_ms > 0 && topic->delete_retention_ms >= 0 && away_ms > topic->delete_retention_ms) {
        return error_set(e, ERROR_FATAL, E_TOPIC,
                         "this memory last caught up %.1f hours ago, and topic '%s' keeps tombstones for %.1f "
                         "(delete.retention.ms): it may have missed some: " REPLACE_MEMORY,
                         (double)away_ms / 3.6e6, topic->name, (double)topic->delete_retention_ms / 3.6e6);
    }
    return 0;
}

static void warn_settings(const struct kafka_topic *topic)
{
    if (!topic->configured) {
        log_warn("learn: the settings of topic '%s' may not be read: cleanup.policy and delete.retention.ms are not "
                 "checked",
                 topic->name);
    } else if (!topic->compact) {
        log_warn("learn: topic '%s' is not compacted: it will forget old records, and a replica that starts later will "
                 "learn less. Set cleanup.policy=compact",
                 topic->name);
    }
}

/* ---- opening ---- */

/* One look: do both topics exist, with leaders? 1: yes; 0: look again; -1: FATAL. Not every broker knows at once of a
 * topic that was just made. */
static int topics_look(struct learn_consumer *c, struct kafka_topic *topics, uint64_t quiet_until, struct error *e)
{
    struct error reason;
    if (kafka_topics_describe(&c->client, topics, TOPICS, true, ASK_MS, &reason)) {
        kafka_client_trouble(&c->client, RD_KAFKA_RESP_ERR__TIMED_OUT, reason.text);
        return 0;
    }
    for (int i = 0; i < TOPICS; i++) {
        if (topics[i].partitions == 0) {
            if (clock_us() < quiet_until) {
                return 0;
            }
            return error_set(e, ERROR_FATAL, E_TOPIC, "topic '%s' does not exist: create it, or set create_topics",
                             topics[i].name);
        }
    }
    for (int i = 0; i < TOPICS; i++) {
        if (!topics[i].led) {
            kafka_client_trouble(&c->client, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE, "partitions without a leader");
            return 0;
        }
    }
    kafka_client_works(&c->client);
    return 1;
}

/* stored NULL: the memory has nothing of it. */
static void partition_begin(struct learn_partition *p, struct reading *reading, const struct learn_offset *stored)
{
    p->reading = reading;
    p->stored = stored != NULL;
    if (stored) {
        p->start = stored->read.next;
        reading->read = stored->read;
    }
}

static void partitions_list(struct learn_consumer *c, const struct kafka_topic *topics,
                            const struct learn_offset *stored, size_t n)
{
    c->count = (size_t)topics[0].partitions + (size_t)topics[1].partitions;
    c->partitions = mem_zero(c->count, sizeof *c->partitions);
    readings_grow(&c->readings, c->count);
    for (size_t i = 0; i < c->count; i++) {
        struct reading *p = &c->readings.list[i];
        const struct learn_offset *found = NULL;
        bool labels = i >= (size_t)topics[0].partitions;
        p->topic = topics[labels].name;
        p->partition = (int32_t)(labels ? i - (size_t)topics[0].partitions : i);
        p->epoch = ASSIGNED;
        for (size_t s = 0; s < n; s++) {
            if (stored[s].read.next > 0 && stored[s].partition == p->partition &&
                strcmp(stored[s].topic, p->topic) == 0 && strcmp(stored[s].cluster, c->cluster) == 0) {
                found = &stored[s];
            }
        }
        c->partitions[i].from = labels ? FROM_LABELS : FROM_INSTANCES;
        partition_begin(&c->partitions[i], p, found);
    }
}

static rd_kafka_topic_partition_list_t *kafka_list(const struct learn_consumer *c)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)c->count);
    for (size_t i = 0; i < c->count; i++) {
        const struct learn_partition *p = &c->partitions[i];
        rd_kafka_topic_partition_list_add(list, p->reading->topic, p->reading->partition)->offset = p->start;
    }
    return list;
}

/* Fills start (where nothing is stored), end and position. RETRY: not answered. */
static int offsets_look(struct learn_consumer *c, struct error *e)
{
    rd_kafka_topic_partition_list_t *low = kafka_list(c), *high = kafka_list(c);
    int result = kafka_offsets_query(&c->client, low, RD_KAFKA_OFFSET_BEGINNING, ASK_MS, e) ||
                 kafka_offsets_query(&c->client, high, RD_KAFKA_OFFSET_END, ASK_MS, e);
    for (size_t i = 0; i < c->count && !result; i++) {
        struct learn_partition *p = &c->partitions[i];
        p->end = high->elems[i].offset;
        p->start = p->stored ? p->start : low->elems[i].offset;
        p->reading->position = p->start;
        result = check_offset(p, low->elems[i].offset, e);
    }
    rd_kafka_topic_partition_list_destroy(low);
    rd_kafka_topic_partition_list_destroy(high);
    return result ? -1 : 0;
}

static int give_up(const struct learn_consumer *c, struct error *e)
{
    return error_set(e, ERROR_RETRY, E_BROKER, "%s did not answer in time", c->client.brokers);
}

/* ---- is it still the same topic? ---- */

static int broken(const struct position_check *check, struct error *e)
{
    const struct reading *at = check->reading;
    if (check->other_id) {
        return error_set(e, ERROR_FATAL, E_TOPIC,
                         "topic '%s' was deleted and created again (its id is another one), and this memory has read "
                         "%" PRId64 " records of the old one: " REPLACE_MEMORY,
                         at->topic, at->read.next);
    }
    if (at->read.next > check->end) {
        return ended(at->topic, at->partition, check->end, at->read.next, e);
    }
    return error_set(e, ERROR_FATAL, E_TOPIC,
                     "topic '%s', partition %d has another record at offset %" PRId64 " than this memory has read "
                     "there: the topic was deleted and created again, or cut: " REPLACE_MEMORY,
                     at->topic, at->partition, at->read.mark.offset);
}

/* Checks partitions that are in no doubt, or one alone. 1: all were; 0: not answered; -1: FATAL, E_TOPIC. */
static int positions_hold(struct learn_consumer *c, struct reading *one, struct error *e)
{
    struct position_check *checks = NULL;
    size_t n = readings_check(&c->readings, one, &checks);
    int result = 1;
    for (size_t i = 0; i < n && result >= 0; i++) {
        if (checks[i].verdict == POSITION_BROKEN) {
            result = broken(&checks[i], e);
        } else if (checks[i].verdict == POSITION_UNASKED) {
            result = 0;
        } else {
            c->marks += reading_renew(&c->readings, &checks[i]);
        }
    }
    free(checks);
    return result;
}

/* Now and then. A partition that was in doubt is asked about before anything of it is handed out, once: without an
 * answer the next check decides. */
static int positions_check_due(struct learn_consumer *c, struct error *e)
{
    return readings_check_due(&c->readings) && positions_hold(c, NULL, e) < 0 ? -1 : 0;
}

/* Waits until the topics are known to be those that the memory has read. */
static int same_topics(struct learn_consumer *c, const struct kafka_wait *wait, struct error *e)
{
    for (int tries = 1;; tries++) {
        int held = positions_hold(c, NULL, e);
        if (held) {
            return held < 0 ? -1 : 0;
        }
        if (tries > 1) { /* the first client may be one that has just met leaders in motion */
            kafka_client_trouble(&c->client, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE,
                                 "whether the topics are those that this memory has read is not answered");
        }
        if (!kafka_client_idle(&c->client, wait)) {
            return give_up(c, e);
        }
    }
}

/* Connects, looks at topics and offsets until the brokers answer, and decides whether this memory may follow them. */
static int learn_prepare(struct learn_consumer *c, const struct learn_offset *stored, size_t n, int64_t caught_up_ms,
                         const struct kafka_wait *wait, struct error *e)
{
    struct kafka_topic topics[TOPICS] = {{.name = c->topics[0]}, {.name = c->topics[1]}};
    if (kafka_client_connect(&c->client, wait, &c->cluster, e) || check_cluster(c, stored, n, e)) {
        return -1;
    }
    uint64_t quiet_until = clock_us() + LOOK_QUIET_US;
    for (int seen = 0; (seen = topics_look(c, topics, quiet_until, e)) != 1;) {
        if (seen < 0 || !kafka_client_idle(&c->client, wait)) {
            return seen < 0 ? -1 : give_up(c, e);
        }
    }
    for (int i = 0; i < TOPICS; i++) {
        warn_settings(&topics[i]);
        if (check_partitions(c, &topics[i], stored, n, e)) {
            return -1;
        }
    }
    partitions_list(c, topics, stored, n);
    struct error look;
    quiet_until = clock_us() + LOOK_QUIET_US;
    while (offsets_look(c, &look)) {
        if (look.kind != ERROR_RETRY) {
            return error_set(e, look.kind, look.code, "%s", look.text);
        }
        if (clock_us() > quiet_until) {
            kafka_client_trouble(&c->client, RD_KAFKA_RESP_ERR_LEADER_NOT_AVAILABLE, look.text);
        }
        if (!kafka_client_idle(&c->client, wait)) {
            return give_up(c, e);
        }
    }
    if (same_topics(c, wait, e)) {
        return -1;
    }
    return check_away(c, &topics[0], caught_up_ms, e) || check_away(c, &topics[1], caught_up_ms, e) ? -1 : 0;
}

int learn_consumer_open(struct learn_consumer **out, const struct config *config, const struct learn_offset *stored,
                        size_t n, int64_t caught_up_ms, const struct kafka_wait *wait, struct error *e)
{
    struct learn_consumer *c = mem_zero(1, sizeof *c);
    rd_kafka_topic_partition_list_t *list = NULL;
    int result = -1;
    *out = NULL;
    c->config = config;
    c->topics[0] = mem_string(config->instances_topic, strlen(config->instances_topic));
    c->topics[1] = mem_string(config->labels_topic, strlen(config->labels_topic));
    readings_open(&c->readings, config);
    rd_kafka_conf_t *conf = kafka_consumer_configure(config, "learn", "error", e);
    if (!conf || kafka_client_open(&c->client, config, CLIENT_CONSUMER, conf, "learn", c, e) ||
        learn_prepare(c, stored, n, caught_up_ms, wait, e)) {
        goto done;
    }
    c->behind = c->count;
    list = kafka_list(c);
    rd_kafka_resp_err_t err = rd_kafka_assign(c->client.rk, list);
    if (err) {
        error_set(e, ERROR_FATAL, E_INTERNAL, "assigning %s and %s: %s", c->topics[0], c->topics[1],
                  rd_kafka_err2str(err));
        goto done;
    }
    *out = c;
    c = NULL;
    result = 0;
done:
    if (list) {
        rd_kafka_topic_partition_list_destroy(list);
    }
    learn_consumer_close(c);
    return result;
}

void learn_consumer_close(struct learn_consumer *c)
{
    if (!c) {
        return;
    }
    if (c->client.rk) {
        rd_kafka_consumer_close(c->client.rk);
    }
    kafka_client_close(&c->client);
    readings_close(&c->readings);
    free(c->partitions);
    free(c->topics[0]);
    free(c->topics[1]);
    free(c->cluster);
    free(c);
}

const char *learn_consumer_cluster(const struct learn_consumer *c)
{
    return c->cluster;
}

/* ---- polling ---- */

static struct learn_partition *partition_find(struct learn_consumer *c, const rd_kafka_message_t *m)
{
    const char *topic = m->rkt ? rd_kafka_topic_name(m->rkt) : "";
    for (size_t i = 0; i < c->count; i++) {
        const struct reading *at = c->partitions[i].reading;
        if (at->partition == m->partition && strcmp(at->topic, topic) == 0) {
            return &c->partitions[i];
        }
    }
    return NULL;
}

static void partition_moved(struct learn_consumer *c, struct learn_partition *p)
{
    pthread_mutex_lock(&c->readings.lock);
    if (!p->caught_up && p->reading->position >= p->end) {
        p->caught_up = true;
        c->behind--;
    }
    pthread_mutex_unlock(&c->readings.lock);
}

/* Something came from p: a record, or its end. -1: FATAL, the topic is another one. */
static int partition_answers(struct learn_consumer *c, struct learn_partition *p, struct error *e)
{
    if (p->reading->doubted && positions_hold(c, p->reading, e) < 0) {
        return -1;
    }
    readings_answer(&c->readings, &c->client, p->reading);
    return 0;
}

static int poll_event(struct learn_consumer *c, const rd_kafka_message_t *m, struct error *e)
{
    struct learn_partition *p = partition_find(c, m);
    if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF && p) {
        if (partition_answers(c, p, e)) {
            return -1;
        }
        reading_end(&c->readings, p->reading, m->offset);
        partition_moved(c, p);
        return 0;
    }
    const char *topic = p ? p->reading->topic : "?";
    if (m->err == RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET) {
        return error_set(e, ERROR_FATAL, E_TOPIC,
                         "topic '%s', partition %d has no offset %" PRId64
                         " any more: it was deleted and created again, cut, or outlived its retention: " REPLACE_MEMORY,
                         topic, m->partition, p ? p->reading->position : m->offset);
    }
    if (m->err != RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED) { /* it joins no group, and needs no right on one */
        kafka_client_trouble_with(&c->client, m->err, READ_TOPIC, topic, rd_kafka_message_errstr(m));
    }
    return 0;
}

static struct consumed *record_take(struct learn_consumer *c, struct learn_partition *p, rd_kafka_message_t *m)
{
    struct consumed *record = consumed_new(m, p->from, p->reading->topic, 0);
    reading_take(&c->readings, p->reading, record);
    partition_moved(c, p);
    return record;
}

int learn_consumer_poll(struct learn_consumer *c, int timeout_ms, struct consumed **out, struct error *e)
{
    *out = NULL;
    if (positions_check_due(c, e)) {
        return -1;
    }
    rd_kafka_message_t *m = readings_poll(&c->readings, &c->client, timeout_ms);
    struct learn_partition *p = m && !m->err ? partition_find(c, m) : NULL;
    if (p && partition_answers(c, p, e) == 0) {
        *out = record_take(c, p, m);
        return 1;
    }
    int result = p ? -1 : 0;
    if (m) {
        result = p ? -1 : poll_event(c, m, e);
        rd_kafka_message_destroy(m);
    }
    readings_refetch(&c->readings, &c->client);
    return result;
}

const struct record_mark *learn_consumer_mark(const struct learn_consumer *c, const struct consumed *record)
{
    for (size_t i = 0; i < c->count; i++) {
        const struct reading *at = c->partitions[i].reading;
        if (at->topic == record->topic && at->partition == record->partition) {
            return &at->read.mark;
        }
    }
    return NULL;
}

void learn_consumer_pause(struct learn_consumer *c)
{
    readings_pause(&c->readings, &c->client, true);
}

void learn_consumer_resume(struct learn_consumer *c)
{
    readings_pause(&c->readings, &c->client, false);
}

uint64_t learn_consumer_marks(const struct learn_consumer *c)
{
    return c->marks;
}

/* ---- where it stands: any thread ---- */

bool learn_consumer_caught_up(struct learn_consumer *c)
{
    pthread_mutex_lock(&c->readings.lock);
    bool caught_up = c->behind == 0;
    pthread_mutex_unlock(&c->readings.lock);
    return caught_up;
}

ssize_t learn_consumer_lags(struct learn_consumer *c, struct partition_lag **out, int timeout_ms)
{
    return readings_lags(&c->readings, &c->client, out, timeout_ms);
}

bool learn_consumer_troubled(struct learn_consumer *c, char words[TROUBLE_BYTES])
{
    return kafka_client_troubled(&c->client, words);
}

/* Does each topic still have the partitions that are read? A topic that is gone is poll's to tell. */
static int check_growth(const struct learn_consumer *c, const struct kafka_topic *topics, struct error *e)
{
    for (size_t t = 0; t < TOPICS; t++) {
        int32_t known = 0;
        for (size_t i = 0; i < c->count; i++) {
            known += c->partitions[i].reading->topic == topics[t].name;
        }
        if (topics[t].partitions && topics[t].partitions != known) {
            return partitions_changed(topics[t].name, topics[t].partitions, known, e);
        }
    }
    return 0;
}

int learn_consumer_look(struct learn_consumer *c, int timeout_ms, struct error *e)
{
    struct kafka_topic topics[TOPICS] = {{.name = c->topics[0]}, {.name = c->topics[1]}};
    int64_t now_ms = clock_wall_ms();
    if (kafka_topics_describe(&c->client, topics, TOPICS, false, timeout_ms, NULL)) {
        return 0;
    }
    if (check_growth(c, topics, e) || positions_hold(c, NULL, e) < 0) {
        return -1;
    }
    rd_kafka_topic_partition_list_t *ends = kafka_list(c);
    bool answered = kafka_offsets_query(&c->client, ends, RD_KAFKA_OFFSET_END, timeout_ms, NULL) == 0;
    for (size_t i = 0; i < c->count && answered; i++) {
        c->partitions[i].look_end = ends->elems[i].offset;
        c->look_ms = now_ms;
    }
    rd_kafka_topic_partition_list_destroy(ends);
    return answered;
}

int64_t learn_consumer_seen_ms(struct learn_consumer *c)
{
    int64_t seen_ms = c->look_ms;
    pthread_mutex_lock(&c->readings.lock);
    for (size_t i = 0; i < c->count; i++) {
        if (c->partitions[i].reading->position < c->partitions[i].look_end) {
            seen_ms = 0;
        }
    }
    pthread_mutex_unlock(&c->readings.lock);
    return seen_ms;
}

bool learn_consumer_position(struct learn_consumer *c, size_t i, struct learn_position *out)
{
    if (i >= c->count) {
        return false;
    }
    const struct reading *at = c->partitions[i].reading;
    *out = (struct learn_position){at->topic, at->partition, at->read};
    return true;
}
