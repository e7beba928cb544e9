/* An output as a Kafka record: what is kept of the input (key, headers in their order with repeats and nulls, time) and
 * what a dead letter adds. What may surprise: librdkafka takes the time 0 for "now", so an input from 1970 is sent with
 * the current time and says its own in engram.timestamp, as one does whose time the broker refuses. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "producer/internal.h"

static rd_kafka_headers_t *input_headers(const struct letter *l)
{
    rd_kafka_headers_t *headers = NULL;
    if (rd_kafka_message_headers(l->input->message, &headers)) {
        return NULL; /* it has none */
    }
    return headers;
}

static size_t headers_bytes(const rd_kafka_headers_t *headers)
{
    size_t bytes = 0, size = 0;
    const char *name = NULL;
    const void *value = NULL;
    for (size_t i = 0; headers && !rd_kafka_header_get_all(headers, i, &name, &value, &size); i++) {
        bytes += strlen(name) + (value ? size : 0);
    }
    return bytes;
}

size_t letter_bytes(const struct letter *l)
{
    return l->input->key.bytes + l->input->value.bytes + headers_bytes(input_headers(l));
}

static void header_text(rd_kafka_headers_t *headers, const char *name, const char *text)
{
    rd_kafka_header_add(headers, name, -1, text, -1);
}

static void header_number(rd_kafka_headers_t *headers, const char *name, int64_t number)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, number);
    header_text(headers, name, text);
}

static void headers_dead(rd_kafka_headers_t *headers, const struct letter *l, bool cut)
{
    header_text(headers, "__connect.errors.topic", l->input->topic);
    header_number(headers, "__connect.errors.partition", l->input->partition);
    header_number(headers, "__connect.errors.offset", l->input->offset);
    header_text(headers, "__connect.errors.stage", l->stage);
    header_text(headers, "__connect.errors.exception.class.name", error_code_name(l->error->code));
    header_text(headers, "__connect.errors.exception.message", l->error->text);
    if (cut) {
        header_text(headers, "engram.truncated", "true");
    }
}

/* What a cut dead letter keeps: the key first, then the headers if they are not the bulk, then the value's beginning.
 */
struct shares {
    size_t key, value;
    bool headers;
};

static struct shares shares_of(const struct letter *l)
{
    struct shares s = {l->input->key.bytes, l->input->value.bytes, true};
    if (l->cut) {
        size_t left = l->cut;
        s.key = s.key < left / 2 ? s.key : left / 2;
        left -= s.key;
        size_t headers = headers_bytes(input_headers(l));
        s.headers = headers <= left / 2;
        left -= s.headers ? headers : 0;
        s.value = s.value < left ? s.value : left;
    }
    return s;
}

rd_kafka_resp_err_t letter_produce(const struct letter *l, rd_kafka_t *rk, rd_kafka_topic_t *topic, void *opaque)
{
    const struct consumed *input = l->input;
    bool dead = l->form == LETTER_DEAD;
    struct shares keep = shares_of(l);
    bool keep_time = !dead && l->time == TIME_INPUT && input->timestamp_ms > 0;
    bool tell_time = dead || l->time == TIME_REFUSED || (l->time == TIME_INPUT && input->timestamp_ms == 0);
    rd_kafka_headers_t *original = keep.headers ? input_headers(l) : NULL;
    rd_kafka_headers_t *headers = original ? rd_kafka_headers_copy(original) : rd_kafka_headers_new(8);
    if (dead) {
        headers_dead(headers, l, l->cut != 0);
    }
    if (tell_time && input->timestamp_ms >= 0) {
        header_number(headers, "engram.timestamp", input->timestamp_ms);
    }
    struct slice value = dead ? (struct slice){input->value.data, keep.value} : l->value;
    const rd_kafka_vu_t fields[] = {
        {.vtype = RD_KAFKA_VTYPE_RKT, .u.rkt = topic},
        {.vtype = RD_KAFKA_VTYPE_PARTITION, .u.i32 = RD_KAFKA_PARTITION_UA},
        {.vtype = RD_KAFKA_VTYPE_MSGFLAGS, .u.i = RD_KAFKA_MSG_F_COPY},
        {.vtype = RD_KAFKA_VTYPE_KEY, .u.mem = {(void *)(uintptr_t)input->key.data, keep.key}},
        {.vtype = RD_KAFKA_VTYPE_VALUE, .u.mem = {(void *)(uintptr_t)value.data, value.bytes}},
        {.vtype = RD_KAFKA_VTYPE_TIMESTAMP, .u.i64 = keep_time ? input->timestamp_ms : 0},
        {.vtype = RD_KAFKA_VTYPE_HEADERS, .u.headers = headers},
        {.vtype = RD_KAFKA_VTYPE_OPAQUE, .u.ptr = opaque},
    };
    rd_kafka_error_t *failure = rd_kafka_produceva(rk, fields, sizeof fields / sizeof *fields);
    if (!failure) {
        return RD_KAFKA_RESP_ERR_NO_ERROR;
    }
    rd_kafka_resp_err_t err = rd_kafka_error_code(failure);
    rd_kafka_error_destroy(failure);
    rd_kafka_headers_destroy(headers); /* ours still */
    return err;
}
