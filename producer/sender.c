/* Single records and bulk for the command line: idempotent, acknowledged by all replicas, and bounded in time, since
 * somebody sits before it. What may surprise: a broker refuses a whole batch for one record in it, so a refused record
 * is sent again alone before it is called refused. */
#include <librdkafka/rdkafka.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "producer/internal.h"

enum { STEP_MS = 100 };

/* A record on its way; the copy is for sending it again. */
struct parcel {
    struct sender *sender;
    struct parcel *next; /* among the refused ones */
    const char *topic;   /* the caller's: lives as long as the sender's use */
    int32_t partition;
    uint64_t number;
    bool alone;
    bool settled;
    rd_kafka_resp_err_t err;
    struct sent sent;
    struct slice key, value; /* in bytes behind the struct; data NULL: none */
    char bytes[];
};

struct sender {
    struct kafka_client client;
    struct sender_failure failure;
    struct parcel *refused; /* by a batch's error: to be sent alone */
    uint64_t open;          /* parcels with the producer */
    uint64_t acknowledged;
    uint64_t heard_us; /* when the broker last said something */
};

/* ---- opening ---- */

static void delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
    (void)rk, (void)opaque;
    struct parcel *p = m->_private;
    p->settled = true;
    p->err = m->err;
    p->sent = (struct sent){m->partition, m->offset};
    p->sender->open--;
    p->sender->heard_us = clock_us();
    if (p->alone) {
        return; /* parcel_wait owns it */
    }
    if (!m->err) {
        p->sender->acknowledged++;
        free(p);
        return;
    }
    p->next = p->sender->refused;
    p->sender->refused = p;
}

static bool before_deadline(void *context)
{
    return clock_us() < *(const uint64_t *)context;
}

int sender_open(struct sender **out, const struct config *config, int connect_ms, struct error *e)
{
    struct sender *s = mem_zero(1, sizeof *s);
    uint64_t deadline = clock_us() + (uint64_t)connect_ms * 1000;
    struct kafka_wait wait = {before_deadline, &deadline};
    *out = NULL;
    rd_kafka_conf_t *conf = producer_configure(config, e);
    if (conf) {
        rd_kafka_conf_set_dr_msg_cb(conf, delivered);
    }
    if (!conf || kafka_client_open(&s->client, config, CLIENT_PRODUCER, conf, "sending", s, e)) {
        free(s);
        return -1;
    }
    s->client.quiet = true;
    if (kafka_client_connect(&s->client, &wait, NULL, e)) {
        sender_close(s);
        return -1;
    }
    *out = s;
    return 0;
}

void sender_close(struct sender *s)
{
    if (!s) {
        return;
    }
    if (s->client.rk && s->open) {
        rd_kafka_purge(s->client.rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        rd_kafka_flush(s->client.rk, STEP_MS * 10);
    }
    kafka_client_close(&s->client);
    for (struct parcel *p = s->refused, *next; p; p = next) {
        next = p->next;
        free(p);
    }
    free(s);
}

void sender_on_failure(struct sender *s, const struct sender_failure *failure)
{
    s->failure = *failure;
}

uint64_t sender_acknowledged(const struct sender *s)
{
    return s->acknowledged;
}

int sender_partitions(struct sender *s, const char *topic, int32_t *count, struct error *e)
{
    struct kafka_topic described = {.name = topic};
    if (kafka_topics_describe(&s->client, &described, 1, false, STEP_MS * 100, e)) {
        return -1;
    }
    *count = described.partitions;
    if (!described.partitions) {
        return error_set(e, ERROR_FATAL, E_TOPIC, "topic '%s' does not exist: create it, or name another", topic);
    }
    return 0;
}

/* ---- one record ---- */

static struct parcel *parcel_new(struct sender *s, const char *topic, int32_t partition, struct slice key,
                                 struct slice value)
{
    struct parcel *p = mem_alloc(sizeof *p + key.bytes + value.bytes + 1);
    *p = (struct parcel){.sender = s, .topic = topic, .partition = partition};
    if (key.data) {
        p->key = (struct slice){p->bytes, key.bytes};
        memcpy(p->bytes, key.data, key.bytes);
    }
    if (value.data) {
        p->value = (struct slice){p->bytes + key.bytes, value.bytes};
        memcpy(p->bytes + key.bytes, value.data, value.bytes);
    }
    return p;
}

static rd_kafka_resp_err_t parcel_produce(struct parcel *p)
{
    const rd_kafka_vu_t fields[] = {
        {.vtype = RD_KAFKA_VTYPE_TOPIC, .u.cstr = p->topic},
        {.vtype = RD_KAFKA_VTYPE_PARTITION, .u.i32 = p->partition},
        {.vtype = RD_KAFKA_VTYPE_MSGFLAGS, .u.i = RD_KAFKA_MSG_F_COPY},
        {.vtype = RD_KAFKA_VTYPE_KEY, .u.mem = {(void *)(uintptr_t)p->key.data, p->key.bytes}},
        {.vtype = RD_KAFKA_VTYPE_VALUE, .u.mem = {(void *)(uintptr_t)p->value.data, p->value.bytes}},
        {.vtype = RD_KAFKA_VTYPE_OPAQUE, .u.ptr = p},
    };
    rd_kafka_error_t *failure = rd_kafka_produceva(p->sender->client.rk, fields, sizeof fields / sizeof *fields);
    rd_kafka_resp_err_t err = failure ? rd_kafka_error_code(failure) : RD_KAFKA_RESP_ERR_NO_ERROR;
    if (failure) {
        rd_kafka_error_destroy(failure);
    } else {
        p->sender->open++;
    }
    return err;
}

static int word(const struct sender *s, const char *topic, rd_kafka_resp_err_t err, struct error *e)
{
    const char *text = rd_kafka_err2str(err);
    switch (err) {
    case RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE:
    case RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE:
        return error_set(e, ERROR_POISON, E_TOO_LARGE, "topic '%s' refuses the record for its size: %s", topic, text);
    case RD_KAFKA_RESP_ERR_INVALID_RECORD:
    case RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP:
        return error_set(e, ERROR_POISON, E_REFUSED, "topic '%s' refuses the record: %s", topic, text);
    case RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC:
    case RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART:
        return error_set(e, ERROR_RETRY, E_TOPIC, "topic '%s' does not exist: create it, or name another", topic);
    case RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION:
        return error_set(e, ERROR_RETRY, E_TOPIC, "topic '%s' has no such partition", topic);
    case RD_KAFKA_RESP_ERR__TIMED_OUT:
        return error_set(e, ERROR_RETRY, E_BROKER,
                         "%s did not acknowledge in time%s%s: whether topic '%s' has it is not known",
                         s->client.brokers, *s->client.reason ? ": " : "", s->client.reason, topic);
    default:
        return error_set(e, ERROR_RETRY, E_BROKER, "topic '%s': %s", topic, text);
    }
}

/* Sends one parcel with nobody beside it and waits for the word on it. The parcel stays the caller's, unless the wait
 * ends without one: then it belongs to the producer, until sender_close (*lost). */
static rd_kafka_resp_err_t parcel_wait(struct parcel *p, int timeout_ms, bool *lost)
{
    struct sender *s = p->sender;
    uint64_t deadline = clock_us() + (uint64_t)timeout_ms * 1000;
    p->alone = true;
    p->settled = false;
    *lost = false;
    rd_kafka_resp_err_t err;
    while ((err = parcel_produce(p)) == RD_KAFKA_RESP_ERR__QUEUE_FULL && clock_us() < deadline) {
        rd_kafka_poll(s->client.rk, STEP_MS);
    }
    if (err) {
        return err;
    }
    while (!p->settled && clock_us() < deadline) {
        rd_kafka_flush(s->client.rk, STEP_MS);
    }
    if (!p->settled) { /* dropped while its report can still be heard */
        rd_kafka_purge(s->client.rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        rd_kafka_flush(s->client.rk, STEP_MS * 10);
        *lost = !p->settled;
        return RD_KAFKA_RESP_ERR__TIMED_OUT;
    }
    return p->err;
}

int sender_send(struct sender *s, const char *topic, int32_t partition, struct slice key, struct slice value,
                int timeout_ms, struct sent *out, struct error *e)
{
    bool lost = false;
    struct parcel *p = parcel_new(s, topic, partition < 0 ? RD_KAFKA_PARTITION_UA : partition, key, value);
    rd_kafka_resp_err_t err = parcel_wait(p, timeout_ms, &lost);
    *out = p->sent;
    if (!lost) {
        free(p);
    }
    s->acknowledged += err == RD_KAFKA_RESP_ERR_NO_ERROR;
    return err ? word(s, topic, err, e) : 0;
}

/* ---- bulk ---- */

/* Those that a batch's error hit, one by one. */
static int refused_resend(struct sender *s, int timeout_ms, struct error *e)
{
    while (s->refused) {
        struct parcel *p = s->refused;
        struct error refusal;
        bool lost = false;
        s->refused = p->next;
        rd_kafka_resp_err_t err = record_refused(p->err) ? parcel_wait(p, timeout_ms, &lost) : p->err;
        const char *topic = p->topic;
        uint64_t number = p->number;
        if (!lost) {
            free(p);
        }
        if (err && !record_refused(err)) {
            return word(s, topic, err, e);
        }
        s->acknowledged += err == RD_KAFKA_RESP_ERR_NO_ERROR;
        if (err && s->failure.failed) {
            word(s, topic, err, &refusal);
            s->failure.failed(s->failure.context, number, &refusal);
        }
    }
    return 0;
}

static int silence(const struct sender *s, int timeout_ms, struct error *e)
{
    if (clock_us() - s->heard_us < (uint64_t)timeout_ms * 1000) {
        return 0;
    }
    return error_set(e, ERROR_RETRY, E_BROKER, "%s acknowledges nothing any more%s%s: %llu records are in doubt",
                     s->client.brokers, *s->client.reason ? ": " : "", s->client.reason, (unsigned long long)s->open);
}

int sender_queue(struct sender *s, const char *topic, struct slice key, struct slice value, uint64_t number,
                 int timeout_ms, struct error *e)
{
    struct parcel *p = parcel_new(s, topic, RD_KAFKA_PARTITION_UA, key, value);
    rd_kafka_resp_err_t err;
    p->number = number;
    if (!s->open) {
        s->heard_us = clock_us(); /* nothing was owed: silence starts now */
    }
    while ((err = parcel_produce(p)) == RD_KAFKA_RESP_ERR__QUEUE_FULL) {
        rd_kafka_poll(s->client.rk, STEP_MS);
        if (silence(s, timeout_ms, e)) {
            free(p);
            return -1;
        }
    }
    if (err && record_refused(err)) {
        p->err = err;
        p->next = s->refused;
        s->refused = p;
    } else if (err) {
        free(p);
        return word(s, topic, err, e);
    }
    rd_kafka_poll(s->client.rk, 0);
    return s->refused ? refused_resend(s, timeout_ms, e) : 0;
}

int sender_flush(struct sender *s, int timeout_ms, struct error *e)
{
    if (s->open) {
        rd_kafka_flush(s->client.rk, STEP_MS);
    }
    if (refused_resend(s, timeout_ms, e) || (s->open && silence(s, timeout_ms, e))) {
        return -1;
    }
    return s->open == 0;
}
