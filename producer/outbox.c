/* Outputs on their way: handed to an idempotent producer in order, acknowledged one by one. One thread owns an outbox
 * and its producer; delivery reports run on it, inside the calls that poll. What may surprise: a broker refuses a whole
 * batch for one record in it. So a refused record is sent again alone, and only what the broker says then counts:
 * smaller, then a dead letter, then a cut one. Everything else (lost leaders, rights, a missing topic) is waited for,
 * with what comes behind held back, so that the order stays. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "producer/internal.h"

enum {
    STEP_MS = 100,
    PAUSE_MS = 500, /* before records are sent again that failed for something that may pass */
    PURGE_MS = 1000,
    CUT_BYTES_MIN = 256,
};

enum output_state {
    OUTPUT_WAITING, /* not sent yet */
    OUTPUT_SENT,    /* with the producer */
    OUTPUT_FAILED,  /* to be sent again; err says why */
    OUTPUT_DONE,    /* acknowledged */
};

struct output {
    struct outcome *outcome;
    struct letter letter;
    enum output_state state;
    rd_kafka_resp_err_t err;
    bool alone;            /* sent without company: the broker's word is about this record */
    bool asked_smaller;    /* outcome->smaller was called */
    struct buffer smaller; /* its answer */
    struct error refusal;  /* why a prediction became a dead letter */
};

struct outbox {
    struct kafka_client client; /* rk NULL: no producer at present */
    const struct config *config;
    struct kafka_wait wait;
    rd_kafka_topic_t *predictions, *dead_letters;
    struct output **outputs; /* in order */
    size_t count, capacity;
    size_t sent;   /* outputs in state OUTPUT_SENT */
    size_t unsent; /* outputs in state OUTPUT_WAITING or OUTPUT_FAILED */
    struct log_limit renewals_limit;
};

/* ---- the producer ---- */

rd_kafka_conf_t *producer_configure(const struct config *config, struct error *e)
{
    rd_kafka_conf_t *conf = config_kafka(config, CLIENT_PRODUCER, e);
    if (conf && (kafka_set(conf, "enable.idempotence", "true", e) || kafka_set(conf, "acks", "all", e) ||
                 kafka_set(conf, "message.timeout.ms", "0", e) ||
                 kafka_set_default(conf, "message.max.bytes", "1000000", "4194304", e))) {
        rd_kafka_conf_destroy(conf);
        conf = NULL;
    }
    return conf;
}

bool record_refused(rd_kafka_resp_err_t err)
{
    return err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE || err == RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE ||
           err == RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP || err == RD_KAFKA_RESP_ERR_INVALID_RECORD;
}

static bool output_unsent(const struct output *o)
{
    return o->state == OUTPUT_WAITING || o->state == OUTPUT_FAILED;
}

static void output_moves(struct outbox *box, struct output *o, enum output_state to, rd_kafka_resp_err_t err)
{
    box->sent -= o->state == OUTPUT_SENT;
    box->unsent -= output_unsent(o);
    o->state = to;
    o->err = err;
    box->sent += to == OUTPUT_SENT;
    box->unsent += output_unsent(o);
}

static void output_settle(struct outbox *box, struct output *o, rd_kafka_resp_err_t err)
{
    output_moves(box, o, err ? OUTPUT_FAILED : OUTPUT_DONE, err);
}

static void delivered(rd_kafka_t *rk, const rd_kafka_message_t *m, void *opaque)
{
    (void)rk;
    struct kafka_client *client = opaque;
    struct outbox *box = client->owner;
    output_settle(box, m->_private, m->err);
    if (!m->err && !box->unsent) { /* one topic may take its records while the other is missing */
        kafka_client_works(client);
    }
}

/* The input's partition number, modulo: order within a partition stays, whatever partitioner the texts came by. */
static int32_t partition_of(const rd_kafka_topic_t *topic, const void *key, size_t key_bytes, int32_t count,
                            void *topic_opaque, void *opaque)
{
    (void)topic, (void)key, (void)key_bytes, (void)topic_opaque;
    const struct output *o = opaque;
    return o->outcome->input->partition % count;
}

static rd_kafka_topic_t *topic_open(struct outbox *box, const char *name)
{
    rd_kafka_topic_conf_t *conf = rd_kafka_default_topic_conf_dup(box->client.rk);
    rd_kafka_topic_conf_set_partitioner_cb(conf, partition_of);
    return rd_kafka_topic_new(box->client.rk, name, conf);
}

static int producer_open(struct outbox *box, struct error *e)
{
    rd_kafka_conf_t *conf = producer_configure(box->config, e);
    if (!conf) {
        return -1;
    }
    /* else librdkafka itself chooses the partition of a record without a key, and never asks partition_of */
    if (kafka_set(conf, "sticky.partitioning.linger.ms", "0", e)) {
        rd_kafka_conf_destroy(conf);
        return -1;
    }
    rd_kafka_conf_set_dr_msg_cb(conf, delivered);
    if (kafka_client_open(&box->client, box->config, CLIENT_PRODUCER, conf, "predictions", box, e)) {
        return -1;
    }
    box->predictions = topic_open(box, box->config->predictions_topic);
    box->dead_letters = topic_open(box, box->config->dead_letters_topic);
    if (!box->predictions || !box->dead_letters) {
        return error_set(e, ERROR_FATAL, E_USAGE, "topics '%s' and '%s': %s", box->config->predictions_topic,
                         box->config->dead_letters_topic, rd_kafka_err2str(rd_kafka_last_error()));
    }
    return 0;
}

static void producer_close(struct outbox *box)
{
    if (!box->client.rk) {
        return;
    }
    if (box->sent) { /* no delivery report may come for outputs that are gone */
        rd_kafka_purge(box->client.rk, RD_KAFKA_PURGE_F_QUEUE | RD_KAFKA_PURGE_F_INFLIGHT);
        rd_kafka_flush(box->client.rk, PURGE_MS);
    }
    if (box->predictions) {
        rd_kafka_topic_destroy(box->predictions);
    }
    if (box->dead_letters) {
        rd_kafka_topic_destroy(box->dead_letters);
    }
    box->predictions = box->dead_letters = NULL;
    kafka_client_close(&box->client);
}

/* An idempotent producer that lost its place in the broker's sequence is of no more use, nor is one that asked for a
 * place while it had no right to write anywhere. What was not acknowledged is sent again by a new one: some of it may
 * then stand twice, none is missing. It begins after a moment, for the new one may meet the same. */
static int producer_renew(struct outbox *box, struct error *e)
{
    char text[256];
    rd_kafka_resp_err_t err = rd_kafka_fatal_error(box->client.rk, text, sizeof text);
    if (err == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED) {
        kafka_client_trouble_with(&box->client, err, WRITE_TOPIC, box->config->predictions_topic, text);
    } else {
        log_limited(&box->renewals_limit, LOG_LEVEL_WARN, "predictions: a new producer takes over: %s", text);
    }
    clock_sleep_ms(PAUSE_MS);
    producer_close(box);
    for (size_t i = 0; i < box->count; i++) {
        if (box->outputs[i]->state == OUTPUT_SENT) {
            output_settle(box, box->outputs[i], RD_KAFKA_RESP_ERR__FATAL);
        }
    }
    return producer_open(box, e);
}

static bool producer_failed(const struct outbox *box)
{
    char text[8];
    return rd_kafka_fatal_error(box->client.rk, text, sizeof text) != 0;
}

/* ---- one output ---- */

/* The broker's word about this very record: decides the form in which it is sent next. FATAL: no form is left. */
static int output_refused(struct outbox *box, struct output *o, struct error *e)
{
    struct letter *l = &o->letter;
    bool size = o->err == RD_KAFKA_RESP_ERR_MSG_SIZE_TOO_LARGE || o->err == RD_KAFKA_RESP_ERR_RECORD_LIST_TOO_LARGE;
    if (l->form == LETTER_DEAD) {
        size_t bytes = l->cut ? l->cut : letter_bytes(l);
        if (!size || bytes <= CUT_BYTES_MIN) {
            return error_set(e, ERROR_FATAL, E_REFUSED, "topic '%s' refuses a dead letter: %s. %s",
                             box->config->dead_letters_topic, rd_kafka_err2str(o->err),
                             o->err == RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP
                                 ? "Its time is this machine's clock: is that right?"
                                 : "It must take any record (no compaction, max.message.bytes of 4 MiB)");
        }
        l->cut = bytes / 2 > CUT_BYTES_MIN ? bytes / 2 : CUT_BYTES_MIN;
        return 0;
    }
    if (o->err == RD_KAFKA_RESP_ERR_INVALID_TIMESTAMP && l->time == TIME_INPUT) {
        l->time = TIME_REFUSED;
        return 0;
    }
    if (size && !o->asked_smaller && o->outcome->smaller) {
        o->asked_smaller = true;
        if (o->outcome->smaller(o->outcome->context, &o->smaller) && o->smaller.bytes < l->value.bytes) {
            l->form = LETTER_SMALLER;
            l->value = (struct slice){o->smaller.data, o->smaller.bytes};
            return 0;
        }
    }
    error_set(&o->refusal, ERROR_POISON, size ? E_TOO_LARGE : E_REFUSED,
              "its prediction of %zu bytes was refused by topic '%s': %s", l->value.bytes,
              box->config->predictions_topic, rd_kafka_err2str(o->err));
    l->form = LETTER_DEAD;
    l->stage = "publish";
    l->error = &o->refusal;
    return 0;
}

static int told_to_stop(const struct outbox *box, struct error *e)
{
    return error_set(e, ERROR_RETRY, E_BROKER, "stopped while %zu outputs are not acknowledged: their inputs stay",
                     box->sent + box->unsent);
}

static rd_kafka_topic_t *output_topic(const struct outbox *box, const struct output *o)
{
    return o->letter.form == LETTER_DEAD ? box->dead_letters : box->predictions;
}

static void trouble(struct outbox *box, const struct output *o, rd_kafka_resp_err_t err)
{
    kafka_client_trouble_with(&box->client, err, WRITE_TOPIC, rd_kafka_topic_name(output_topic(box, o)),
                              rd_kafka_err2str(err));
}

/* Hands it to the producer, waiting for room and for what may pass. It ends as SENT, or FAILED where the producer
 * itself ended. -1: told to stop, or FATAL. */
static int output_send(struct outbox *box, struct output *o, struct error *e)
{
    for (;;) {
        struct letter *l = &o->letter;
        rd_kafka_resp_err_t err = letter_produce(l, box->client.rk, output_topic(box, o), o);
        if (!err) {
            output_moves(box, o, OUTPUT_SENT, RD_KAFKA_RESP_ERR_NO_ERROR);
            rd_kafka_poll(box->client.rk, 0);
            return 0;
        }
        if (producer_failed(box)) { /* which librdkafka may tell as the error that it failed with */
            output_settle(box, o, RD_KAFKA_RESP_ERR__FATAL);
            return 0;
        }
        o->err = err;
        if (record_refused(err)) { /* librdkafka's own limit: nothing was sent, and it is about this record */
            if (output_refused(box, o, e)) {
                return -1;
            }
            continue;
        }
        if (err != RD_KAFKA_RESP_ERR__QUEUE_FULL) {
            trouble(box, o, err);
        }
        rd_kafka_poll(box->client.rk, STEP_MS);
        if (!kafka_wait_go_on(&box->wait)) {
            return told_to_stop(box, e);
        }
    }
}

/* Until no output is with the producer. */
static int sent_wait(struct outbox *box, struct error *e)
{
    while (box->sent) {
        rd_kafka_flush(box->client.rk, STEP_MS);
        if (box->sent && producer_failed(box)) {
            return producer_renew(box, e);
        }
        if (box->sent && !kafka_wait_go_on(&box->wait)) {
            return told_to_stop(box, e);
        }
        if (box->sent) {
            kafka_client_recheck(&box->client);
        }
    }
    return 0;
}

/* A refused record: alone, in one form after the other, until it is acknowledged or fails for something else. */
static int output_send_alone(struct outbox *box, struct output *o, struct error *e)
{
    if (sent_wait(box, e)) {
        return -1;
    }
    while (o->state == OUTPUT_FAILED && record_refused(o->err)) {
        if (o->alone && output_refused(box, o, e)) {
            return -1;
        }
        o->alone = true;
        if (output_send(box, o, e) || sent_wait(box, e)) {
            return -1;
        }
    }
    return 0;
}

/* ---- all of them ---- */

int outbox_open(struct outbox **out, const struct config *config, const struct kafka_wait *wait, struct error *e)
{
    struct outbox *box = mem_zero(1, sizeof *box);
    *out = NULL;
    box->config = config;
    box->wait = wait ? *wait : (struct kafka_wait){0};
    if (producer_open(box, e)) {
        outbox_close(box);
        return -1;
    }
    *out = box;
    return 0;
}

static struct output *output_new(struct outbox *box, struct outcome *outcome)
{
    struct output *o = mem_zero(1, sizeof *o);
    enum consumed_kind kind = outcome->input->kind;
    o->outcome = outcome;
    o->letter = (struct letter){
        .input = outcome->input,
        .form = kind == CONSUMED_POISON ? LETTER_DEAD : LETTER_WHOLE,
        .value = kind == CONSUMED_RECORD ? outcome->value : (struct slice){0},
        .error = outcome->input->poison,
        .stage = "decode",
        .time = box->config->timestamp == TIMESTAMP_NOW ? TIME_NOW : TIME_INPUT,
    };
    return o;
}

int outbox_begin(struct outbox *box, struct error *e)
{
    if (!box->client.rk && producer_open(box, e)) { /* after outbox_clear */
        return -1;
    }
    /* troubles that came while nothing was to be sent, and nobody listened, say nothing of the present */
    box->client.quiet = true;
    rd_kafka_poll(box->client.rk, 0);
    box->client.quiet = false;
    return 0;
}

int outbox_add(struct outbox *box, struct outcome *outcome, struct error *e)
{
    if (box->count == box->capacity) {
        box->capacity = box->capacity ? 2 * box->capacity : 64;
        box->outputs = mem_resize(box->outputs, box->capacity * sizeof(struct output *));
    }
    struct output *o = output_new(box, outcome);
    box->outputs[box->count++] = o;
    box->unsent++;
    if (box->unsent > 1) {
        return 0; /* what failed or waits goes first, in outbox_flush */
    }
    return output_send(box, o, e);
}

static int send_unsent(struct outbox *box, struct error *e)
{
    for (size_t i = 0; i < box->count; i++) {
        struct output *o = box->outputs[i];
        if (!output_unsent(o)) {
            continue;
        }
        if (o->state == OUTPUT_FAILED && record_refused(o->err) ? output_send_alone(box, o, e)
                                                                : output_send(box, o, e)) {
            return -1;
        }
        if (producer_failed(box)) {
            return producer_renew(box, e);
        }
    }
    return 0;
}

/* The first failure for something that may pass is told, once. True: there is one. */
static bool passing_trouble(struct outbox *box)
{
    for (size_t i = 0; i < box->count; i++) {
        const struct output *o = box->outputs[i];
        if (o->state == OUTPUT_FAILED && !record_refused(o->err)) {
            bool ours = o->err == RD_KAFKA_RESP_ERR__FATAL || o->err == RD_KAFKA_RESP_ERR__PURGE_QUEUE ||
                        o->err == RD_KAFKA_RESP_ERR__PURGE_INFLIGHT;
            if (!ours) {
                trouble(box, o, o->err);
            }
            return !ours;
        }
    }
    return false;
}

int outbox_flush(struct outbox *box, struct error *e)
{
    for (;;) {
        if (sent_wait(box, e)) {
            return -1;
        }
        if (!box->unsent) {
            break;
        }
        if (passing_trouble(box)) {
            rd_kafka_poll(box->client.rk, PAUSE_MS);
        }
        if (!kafka_wait_go_on(&box->wait)) {
            return told_to_stop(box, e);
        }
        if (producer_failed(box) ? producer_renew(box, e) : send_unsent(box, e)) {
            return -1;
        }
    }
    for (size_t i = 0; i < box->count; i++) {
        box->outputs[i]->outcome->refusal = box->outputs[i]->refusal.code;
    }
    return 0;
}

void outbox_clear(struct outbox *box)
{
    if (box->sent) {
        producer_close(box); /* what it still holds must not be sent, and no report of it come */
    }
    for (size_t i = 0; i < box->count; i++) {
        buffer_free(&box->outputs[i]->smaller);
        free(box->outputs[i]);
    }
    box->count = box->sent = box->unsent = 0;
}

void outbox_close(struct outbox *box)
{
    if (!box) {
        return;
    }
    producer_close(box);
    box->sent = 0;
    outbox_clear(box);
    free(box->outputs);
    free(box);
}

bool outbox_troubled(struct outbox *box, char words[TROUBLE_BYTES])
{
    return kafka_client_troubled(&box->client, words);
}
