/* Is a topic still the one that was read? A topic that is deleted and created again has another id, which librdkafka
 * tells from 2.3 on, and other records at the same offsets; one that was cut (an unclean election) has the same id and
 * other records. So of each partition one record that was read, its mark, is fetched again and compared.
 * What may surprise: only a mark from before a re-creation tells of it. So a mark is replaced by a later record only
 * when it held, by one that had been read before it was asked for. */
#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kafka/internal.h"

enum {
    POLL_MS = 50,
    MARK_BYTES_MAX = 256, /* of a written position */
};

struct prober {
    const struct config *config;
    struct kafka_client client; /* rk NULL: not opened yet */
};

struct prober *prober_open(const struct config *config)
{
    struct prober *p = mem_zero(1, sizeof *p);
    p->config = config;
    p->client.quiet = true; /* what is wrong is the lane's own client to tell */
    return p;
}

static void client_close(struct prober *p)
{
    if (p->client.rk) {
        rd_kafka_consumer_close(p->client.rk);
    }
    kafka_client_close(&p->client);
}

void prober_close(struct prober *p)
{
    if (p) {
        client_close(p);
        free(p);
    }
}

static rd_kafka_conf_t *prober_configure(const struct prober *p)
{
    struct error e;
    rd_kafka_conf_t *conf = kafka_consumer_configure(p->config, "check", "error", &e);
    if (conf && (kafka_set(conf, "log_level", "0", &e) || kafka_set(conf, "fetch.min.bytes", "1", &e) ||
                 kafka_set(conf, "fetch.message.max.bytes", "65536", &e))) {
        rd_kafka_conf_destroy(conf);
        conf = NULL;
    }
    return conf;
}

static bool prober_ready(struct prober *p)
{
    struct error e;
    if (!p->client.rk) {
        rd_kafka_conf_t *conf = prober_configure(p);
        return conf && kafka_client_open(&p->client, p->config, CLIENT_CONSUMER, conf, "check", p, &e) == 0;
    }
    return true;
}

bool prober_sees(struct prober *p, const char *topic, int timeout_ms)
{
    struct kafka_topic seen = {.name = topic};
    return prober_ready(p) && kafka_topics_describe(&p->client, &seen, 1, false, timeout_ms, NULL) == 0 && seen.led;
}

static int left_ms(uint64_t until)
{
    uint64_t now = clock_us();
    return now < until ? (int)((until - now) / 1000) : 0;
}

/* ---- topics' ids ---- */

#if RD_KAFKA_VERSION >= 0x020300ff
static void id_found(const rd_kafka_TopicDescription_t *topic, struct position_check *checks, size_t n)
{
    const rd_kafka_Uuid_t *id = rd_kafka_TopicDescription_topic_id(topic);
    if (rd_kafka_error_code(rd_kafka_TopicDescription_error(topic)) || !id) {
        return;
    }
    const uint64_t halves[] = {(uint64_t)rd_kafka_Uuid_most_significant_bits(id),
                               (uint64_t)rd_kafka_Uuid_least_significant_bits(id)};
    unsigned char bytes[TOPIC_ID_BYTES];
    for (size_t i = 0; i < sizeof bytes; i++) {
        bytes[i] = (unsigned char)(halves[i / 8] >> (56 - 8 * (i % 8)));
    }
    for (size_t i = 0; i < n; i++) {
        if (strcmp(checks[i].reading->topic, rd_kafka_TopicDescription_name(topic)) == 0) {
            memcpy(checks[i].topic_id, bytes, sizeof bytes);
        }
    }
}

static void ids_ask(struct prober *p, struct position_check *checks, size_t n, uint64_t until)
{
    const char **names = mem_alloc(n * sizeof *names);
    size_t count = 0;
    for (size_t i = 0; i < n; i++) {
        bool there = false;
        for (size_t j = 0; j < count; j++) {
            there = there || strcmp(names[j], checks[i].reading->topic) == 0;
        }
        if (!there) {
            names[count++] = checks[i].reading->topic;
        }
    }
    rd_kafka_TopicCollection_t *topics = rd_kafka_TopicCollection_of_topic_names(names, count);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(p->client.rk);
    rd_kafka_DescribeTopics(p->client.rk, topics, NULL, queue);
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, left_ms(until));
    if (event && !rd_kafka_event_error(event)) {
        size_t found_count = 0;
        const rd_kafka_TopicDescription_t **found =
            rd_kafka_DescribeTopics_result_topics(rd_kafka_event_DescribeTopics_result(event), &found_count);
        for (size_t i = 0; i < found_count; i++) {
            id_found(found[i], checks, n);
        }
    }
    if (event) {
        rd_kafka_event_destroy(event);
    }
    rd_kafka_queue_destroy(queue);
    rd_kafka_TopicCollection_destroy(topics);
    free(names);
}
#else
static void ids_ask(struct prober *p, struct position_check *checks, size_t n, uint64_t until)
{
    (void)p, (void)checks, (void)n, (void)until;
}
#endif

/* ---- the log's bounds ---- */

static bool bounds_ask(struct prober *p, struct position_check *checks, size_t n, uint64_t until)
{
    rd_kafka_topic_partition_list_t *low = rd_kafka_topic_partition_list_new((int)n);
    for (size_t i = 0; i < n; i++) {
        rd_kafka_topic_partition_list_add(low, checks[i].reading->topic, checks[i].reading->partition);
    }
    rd_kafka_topic_partition_list_t *high = rd_kafka_topic_partition_list_copy(low);
    bool answered = kafka_offsets_query(&p->client, low, RD_KAFKA_OFFSET_BEGINNING, left_ms(until), NULL) == 0 &&
                    kafka_offsets_query(&p->client, high, RD_KAFKA_OFFSET_END, left_ms(until), NULL) == 0;
    for (size_t i = 0; i < n && answered; i++) {
        checks[i].low = low->elems[i].offset;
        checks[i].end = high->elems[i].offset;
    }
    rd_kafka_topic_partition_list_destroy(low);
    rd_kafka_topic_partition_list_destroy(high);
    return answered;
}

/* What ids and bounds alone decide; UNASKED: the mark's record is to be fetched. */
static enum position_verdict bounds_decide(struct position_check *c)
{
    const struct read_position *read = &c->reading->read;
    bool marked = record_mark_known(&read->mark);
    if (read->next == 0 && !marked) {
        return POSITION_HOLDS;
    }
    c->other_id = topic_id_known(read->topic_id) && topic_id_known(c->topic_id) &&
                  memcmp(read->topic_id, c->topic_id, sizeof c->topic_id) != 0;
    if (c->other_id || read->next > c->end || (marked && read->mark.offset >= c->end)) {
        return POSITION_BROKEN;
    }
    return marked && read->mark.offset >= c->low ? POSITION_UNASKED : POSITION_UNPROVED;
}

/* ---- marks ---- */

/* The mark's offset holds no record. Where nothing is compacted, a record that was there cannot be gone from between
 * its neighbours. */
static enum position_verdict missing_decide(struct prober *p, const struct position_check *c, uint64_t until)
{
    struct kafka_topic topic = {.name = c->reading->topic};
    if (kafka_topics_describe(&p->client, &topic, 1, true, left_ms(until), NULL)) {
        return POSITION_UNASKED;
    }
    return topic.configured && !topic.compact ? POSITION_BROKEN : POSITION_UNPROVED;
}

static struct position_check *check_of(const rd_kafka_message_t *m, struct position_check *checks, size_t n)
{
    const char *topic = m->rkt ? rd_kafka_topic_name(m->rkt) : "";
    for (size_t i = 0; i < n; i++) {
        if (checks[i].reading->partition == m->partition && strcmp(checks[i].reading->topic, topic) == 0) {
            return &checks[i];
        }
    }
    return NULL;
}

static enum position_verdict record_decide(struct prober *p, const rd_kafka_message_t *m,
                                           const struct position_check *c, uint64_t until)
{
    const struct record_mark *mark = &c->reading->read.mark;
    rd_kafka_timestamp_type_t type;
    bool answer = !m->err || m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF;
    if (answer && m->offset > mark->offset) {
        return missing_decide(p, c, until);
    }
    if (m->err || m->offset < mark->offset) { /* a follower's end may be at the mark for a moment: its record comes */
        return POSITION_UNASKED;
    }
    struct slice key = {m->key, m->key ? m->key_len : 0}, value = {m->payload, m->payload ? m->len : 0};
    struct record_mark found = record_mark_of(m->offset, rd_kafka_message_timestamp(m, &type), key, value);
    return record_mark_equal(&found, mark) ? POSITION_HOLDS : POSITION_BROKEN;
}

static void marks_ask(struct prober *p, struct position_check *checks, size_t n, uint64_t until)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)n);
    for (size_t i = 0; i < n; i++) {
        if (checks[i].verdict == POSITION_UNASKED) {
            rd_kafka_topic_partition_list_add(list, checks[i].reading->topic, checks[i].reading->partition)->offset =
                checks[i].reading->read.mark.offset;
        }
    }
    int open = list->cnt && !rd_kafka_assign(p->client.rk, list) ? list->cnt : 0;
    while (open && left_ms(until)) {
        rd_kafka_message_t *m = rd_kafka_consumer_poll(p->client.rk, POLL_MS);
        struct position_check *c = m ? check_of(m, checks, n) : NULL;
        if (c && c->verdict == POSITION_UNASKED) {
            c->verdict = record_decide(p, m, c, until);
            open -= c->verdict != POSITION_UNASKED;
        }
        if (m) {
            rd_kafka_message_destroy(m);
        }
    }
    if (list->cnt) {
        rd_kafka_assign(p->client.rk, NULL);
    }
    rd_kafka_topic_partition_list_destroy(list);
}

static bool any(const struct position_check *checks, size_t n, enum position_verdict verdict)
{
    for (size_t i = 0; i < n; i++) {
        if (checks[i].verdict == verdict) {
            return true;
        }
    }
    return false;
}

static void check_once(struct prober *p, struct position_check *checks, size_t n, int timeout_ms)
{
    uint64_t until = clock_us() + (uint64_t)timeout_ms * 1000;
    for (size_t i = 0; i < n; i++) {
        checks[i].verdict = POSITION_UNASKED;
    }
    if (!prober_ready(p)) {
        return;
    }
    ids_ask(p, checks, n, until); /* before the records: an id is the read topic's where a mark still holds after it */
    if (bounds_ask(p, checks, n, until)) {
        for (size_t i = 0; i < n; i++) {
            checks[i].verdict = bounds_decide(&checks[i]);
        }
        marks_ask(p, checks, n, until);
    }
}

void positions_check(struct prober *p, struct position_check *checks, size_t n, int timeout_ms)
{
    if (!n) {
        return;
    }
    check_once(p, checks, n, timeout_ms);
    if (any(checks, n, POSITION_BROKEN)) { /* a leader that was replaced and does not know it yet is behind */
        client_close(p);
        check_once(p, checks, n, timeout_ms);
    }
    if (any(checks, n, POSITION_UNASKED)) { /* the next call's client remembers nothing of a topic that is gone */
        client_close(p);
    }
}

/* ---- written with a committed offset ---- */

#define WRITTEN "engram-1 "

static void hex_write(const unsigned char *bytes, size_t count, struct buffer *out)
{
    for (size_t i = 0; i < count; i++) {
        buffer_format(out, "%02x", bytes[i]);
    }
}

void position_write(const struct read_position *read, struct buffer *out)
{
    const struct record_mark *mark = &read->mark;
    char hash[33];
    digest_hex(mark->hash, hash);
    buffer_format(out, WRITTEN "%" PRId64 " %" PRId64 " %s ", mark->offset, mark->time_ms, hash);
    hex_write(read->topic_id, sizeof read->topic_id, out);
}

bool position_read(struct slice text, struct read_position *out)
{
    char line[MARK_BYTES_MAX], id[2 * TOPIC_ID_BYTES + 1], again[MARK_BYTES_MAX];
    struct buffer written = {0};
    *out = (struct read_position){0};
    if (text.bytes >= sizeof line) {
        return false;
    }
    memcpy(line, text.data ? text.data : "", text.bytes);
    line[text.bytes] = '\0';
    struct record_mark *mark = &out->mark;
    if (sscanf(line, WRITTEN "%" SCNd64 " %" SCNd64 " %16" SCNx64 "%16" SCNx64 " %32[0-9a-f]", &mark->offset,
               &mark->time_ms, &mark->hash.high, &mark->hash.low, id) != 5) {
        return false;
    }
    for (size_t i = 0; i < TOPIC_ID_BYTES && id[2 * i]; i++) {
        sscanf(id + 2 * i, "%2hhx", &out->topic_id[i]);
    }
    position_write(out, &written); /* a line of ours is written back as it was read */
    snprintf(again, sizeof again, "%s", written.data);
    buffer_free(&written);
    return strcmp(again, line) == 0 && strlen(line) == text.bytes;
}
