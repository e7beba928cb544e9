/* What the files of producer/ share: settings of a producer, which errors speak of one record, and the outbox, which
 * both guarantees stand on. */
#ifndef ENGRAM_PRODUCER_INTERNAL_H
#define ENGRAM_PRODUCER_INTERNAL_H

#include <librdkafka/rdkafka.h>

#include "producer/producer.h"

enum {
    MESSAGE_BYTES_MAX = 4 << 20, /* a record, and a batch, on topics that we create */
};

/* config_kafka with what is ours: idempotent, acknowledged by all replicas, never timed out. NULL: an error. */
rd_kafka_conf_t *producer_configure(const struct config *config, struct error *e);

/* Does this error speak of what was sent (its size, time, form), and not of the broker, the topic or our rights?
 * The broker refuses a whole batch for one record in it: only about a record sent alone is it the last word. */
bool record_refused(rd_kafka_resp_err_t err);

/* ---- the outbox: outputs handed to a producer, in order, until each is acknowledged ---- */

struct outbox;

int outbox_open(struct outbox **out, const struct config *config, const struct kafka_wait *wait, struct error *e);
void outbox_close(struct outbox *box);
int outbox_begin(struct outbox *box, struct error *e);
int outbox_add(struct outbox *box, struct outcome *outcome, struct error *e);
/* Until every output is acknowledged; resends, shrinks and dead-letters on the way. */
int outbox_flush(struct outbox *box, struct error *e);
/* Forgets all outputs. Those not acknowledged are not sent any more, as far as that can be had. */
void outbox_clear(struct outbox *box);
bool outbox_troubled(struct outbox *box, char words[TROUBLE_BYTES]);

/* ---- the forms of an output (letter.c) ---- */

enum letter_form {
    LETTER_WHOLE,   /* a prediction or a null, as the caller gave it */
    LETTER_SMALLER, /* a prediction without evidence texts */
    LETTER_DEAD,    /* the input as a dead letter */
};

enum letter_time {
    TIME_INPUT,   /* the input's */
    TIME_NOW,     /* the time of writing, as the option says */
    TIME_REFUSED, /* the time of writing, since the broker refused the input's: engram.timestamp keeps that */
};

struct letter {
    const struct consumed *input;
    enum letter_form form;
    struct slice value;        /* WHOLE, SMALLER; data NULL: null */
    const struct error *error; /* DEAD */
    const char *stage;         /* DEAD: where it failed */
    enum letter_time time;     /* WHOLE, SMALLER: a dead letter always has the time of writing */
    size_t cut;                /* DEAD: at most about so many bytes of the input; 0: whole */
};

/* Bytes of the input that a dead letter carries when it is not cut. */
size_t letter_bytes(const struct letter *l);

/* Hands a copy of it to the producer. The error is rd_kafka_produceva's. */
rd_kafka_resp_err_t letter_produce(const struct letter *l, rd_kafka_t *rk, rd_kafka_topic_t *topic, void *opaque);

#endif
