/* Where a consumer is in each of its partitions, and the doubt about that: what both lanes do alike. What may surprise:
 * a partition in doubt is fetched again, since where nothing is written only that shows that the trouble is over. */
#include <librdkafka/rdkafka.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kafka/internal.h"

enum {
    REFETCH_US = 5000000,
    CHECK_US = 5000000, /* how often it is asked whether the topics are still the same */
    CHECK_MS = 2000,
};

void readings_open(struct readings *r, const struct config *config)
{
    r->prober = prober_open(config);
    pthread_mutex_init(&r->lock, NULL);
}

void readings_close(struct readings *r)
{
    prober_close(r->prober);
    pthread_mutex_destroy(&r->lock);
    free(r->list);
}

void readings_grow(struct readings *r, size_t count)
{
    if (count > r->count) {
        r->list = mem_resize(r->list, count * sizeof *r->list);
        memset(r->list + r->count, 0, (count - r->count) * sizeof *r->list);
        r->count = count;
    }
}

/* ---- polling ---- */

static void readings_doubt(struct readings *r, const struct kafka_client *c)
{
    unsigned troubles = atomic_load(&c->troubles);
    if (troubles == r->troubles) {
        return;
    }
    r->troubles = troubles;
    pthread_mutex_lock(&r->lock);
    for (size_t i = 0; i < r->count; i++) {
        r->list[i].doubted = r->list[i].epoch != 0;
    }
    pthread_mutex_unlock(&r->lock);
}

rd_kafka_message_t *readings_poll(struct readings *r, struct kafka_client *c, int timeout_ms)
{
    rd_kafka_message_t *m = rd_kafka_consumer_poll(c->rk, timeout_ms);
    readings_doubt(r, c);
    if (!m) {
        kafka_client_recheck(c);
    }
    return m;
}

bool readings_answer(struct readings *r, struct kafka_client *c, struct reading *from)
{
    bool was = from && from->doubted;
    bool doubts = false;
    pthread_mutex_lock(&r->lock);
    if (from) {
        from->doubted = false;
    }
    for (size_t i = 0; i < r->count; i++) {
        doubts = doubts || r->list[i].doubted;
    }
    pthread_mutex_unlock(&r->lock);
    if (!doubts) {
        kafka_client_works(c);
    }
    return was;
}

void readings_refetch(struct readings *r, struct kafka_client *c)
{
    uint64_t now = clock_us();
    if (!atomic_load(&c->trouble) || atomic_load(&r->paused) || now - r->fetched_us < REFETCH_US) {
        return;
    }
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    for (size_t i = 0; i < r->count; i++) {
        const struct reading *p = &r->list[i];
        if (p->doubted && p->position >= 0) {
            rd_kafka_topic_partition_list_add(list, p->topic, p->partition)->offset = p->position;
        }
    }
    if (list->cnt) {
        rd_kafka_error_t *error = rd_kafka_seek_partitions(c->rk, list, 0);
        if (error) {
            rd_kafka_error_destroy(error); /* tried again in a while */
        }
        r->fetched_us = now;
    }
    rd_kafka_topic_partition_list_destroy(list);
}

bool reading_take(struct readings *r, struct reading *p, const struct consumed *record)
{
    struct record_mark mark = record_mark_of(record->offset, record->timestamp_ms, record->key, record->value);
    bool onward = record->offset >= p->position;
    pthread_mutex_lock(&r->lock);
    p->position = record->offset + 1;
    p->read.next = p->position;
    p->last = mark;
    if (!record_mark_known(&p->read.mark)) {
        p->read.mark = mark;
    }
    pthread_mutex_unlock(&r->lock);
    return onward;
}

bool reading_end(struct readings *r, struct reading *p, int64_t offset)
{
    bool onward = offset >= p->position;
    pthread_mutex_lock(&r->lock);
    p->position = onward ? offset : p->position;
    pthread_mutex_unlock(&r->lock);
    return onward;
}

void readings_pause(struct readings *r, struct kafka_client *c, bool pause)
{
    rd_kafka_topic_partition_list_t *list = NULL;
    if (atomic_exchange(&r->paused, pause) == pause ||
        rd_kafka_assignment(c->rk, &list) != RD_KAFKA_RESP_ERR_NO_ERROR) {
        return;
    }
    if (list->cnt && pause) {
        rd_kafka_pause_partitions(c->rk, list);
    } else if (list->cnt) {
        rd_kafka_resume_partitions(c->rk, list);
    }
    rd_kafka_topic_partition_list_destroy(list);
}

/* ---- is a topic still the one that was read? ---- */

bool readings_check_due(const struct readings *r)
{
    return clock_us() - r->checked_us >= CHECK_US;
}

size_t readings_check(struct readings *r, struct reading *one, struct position_check **checks)
{
    size_t n = 0;
    *checks = mem_zero(r->count + 1, sizeof **checks);
    for (size_t i = 0; i < r->count; i++) {
        struct reading *p = &r->list[i];
        if (one ? p == one : p->epoch && !p->doubted && !p->restarting) {
            (*checks)[n++].reading = p;
        }
    }
    positions_check(r->prober, *checks, n, CHECK_MS);
    r->checked_us = clock_us();
    return n;
}

bool reading_renew(struct readings *r, const struct position_check *check)
{
    struct reading *p = check->reading;
    bool renewed = record_mark_known(&p->last) && !record_mark_equal(&p->read.mark, &p->last);
    pthread_mutex_lock(&r->lock);
    if (renewed) {
        p->read.mark = p->last;
    }
    if (topic_id_known(check->topic_id) && record_mark_known(&p->read.mark)) { /* unread, it may be a later topic's */
        memcpy(p->read.topic_id, check->topic_id, sizeof p->read.topic_id);
    }
    pthread_mutex_unlock(&r->lock);
    return renewed;
}

bool readings_topic_seen(struct readings *r, const char *topic)
{
    return prober_sees(r->prober, topic, CHECK_MS);
}

/* ---- lag ---- */

ssize_t readings_lags(struct readings *r, struct kafka_client *c, struct partition_lag **out, int timeout_ms)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(16);
    ssize_t count = -1;
    pthread_mutex_lock(&r->lock);
    struct partition_lag *lags = mem_alloc((r->count + 1) * sizeof *lags);
    for (size_t i = 0; i < r->count; i++) {
        const struct reading *p = &r->list[i];
        if (p->epoch) {
            lags[list->cnt] = (struct partition_lag){p->topic, p->partition, p->position > 0 ? -p->position : 0};
            rd_kafka_topic_partition_list_add(list, p->topic, p->partition);
        }
    }
    pthread_mutex_unlock(&r->lock);
    if (kafka_offsets_query(c, list, RD_KAFKA_OFFSET_END, timeout_ms, NULL) == 0) {
        for (count = 0; count < list->cnt; count++) {
            int64_t behind = list->elems[count].offset + lags[count].lag;
            lags[count].lag = behind > 0 ? behind : 0;
        }
    }
    rd_kafka_topic_partition_list_destroy(list);
    *out = lags;
    if (count < 0) {
        free(lags);
        *out = NULL;
    }
    return count;
}
