/* A Kafka message made into a record: what it names, what it says, or why it can never work. Decoding stands here and
 * nowhere else, so that both lanes and every replica decide alike. */
#include <librdkafka/rdkafka.h>
#include <stdlib.h>

#include "kafka/consumed.h"

static int decode(struct consumed *c, struct error *e)
{
    switch (c->from) {
    case FROM_INSTANCES:
        return record_decode_instance(c->key, c->value, &c->arena, &c->instance, e);
    case FROM_LABELS:
        return record_decode_label(c->key, c->value, &c->arena, &c->label, e);
    default:
        return record_decode_text(c->key, c->value, &c->arena, &c->text, e);
    }
}

struct consumed *consumed_new(rd_kafka_message_t *message, enum consumed_from from, const char *topic, uint64_t epoch)
{
    struct consumed *c = mem_zero(1, sizeof *c);
    struct error e = {0};
    rd_kafka_timestamp_type_t type;
    *c = (struct consumed){
        .message = message,
        .from = from,
        .topic = topic,
        .partition = message->partition,
        .offset = message->offset,
        .timestamp_ms = rd_kafka_message_timestamp(message, &type),
        .epoch = epoch,
        .key = {message->key, message->key ? message->key_len : 0},
        .value = {message->payload, message->payload ? message->len : 0},
    };
    c->key_usable = record_check_name(c->key, "the record key", &e) == 0;
    if (c->key_usable || from == FROM_TEXTS) { /* a text's key may be anything */
        c->kind = CONSUMED_NULL;
        if (!c->value.data) {
            return c;
        }
        c->kind = CONSUMED_RECORD;
        if (decode(c, &e) == 0) {
            return c;
        }
    }
    c->kind = CONSUMED_POISON;
    c->poison = mem_alloc(sizeof *c->poison);
    *c->poison = e;
    return c;
}

void consumed_free(struct consumed *c)
{
    if (!c) {
        return;
    }
    rd_kafka_message_destroy(c->message);
    arena_free(&c->arena);
    free(c->poison);
    free(c);
}
