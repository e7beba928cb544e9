/* An output as a Kafka record: what is kept of the input (key, headers in their order with repeats and nulls, time) and
 * what a dead letter adds. A dead letter that somebody sends again has those headers already: they are replaced, and
 * counted in engram.attempts, by which such a record is known. What may surprise: librdkafka takes the time 0 for
 * "now", so an input from 1970 is sent with the current time and says its own in engram.timestamp, as one does whose
 * time the broker refuses. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "producer/internal.h"

/* What a dead letter adds. */
#define ERRORS "__connect.errors."
#define TIMESTAMP "engram.timestamp"
#define TRUNCATED "engram.truncated"
#define ATTEMPTS "engram.attempts"

static const char *const added[] = {
    ERRORS "topic",
    ERRORS "partition",
    ERRORS "offset",
    ERRORS "stage",
    ERRORS "exception.class.name",
    ERRORS "exception.message",
    ATTEMPTS,
    TIMESTAMP,
    TRUNCATED,
};

enum { ADDED = sizeof added / sizeof *added };

static rd_kafka_headers_t *input_headers(const struct letter *l)
{
    rd_kafka_headers_t *headers = NULL;
    if (rd_kafka_message_headers(l->input->message, &headers)) {
        return NULL; /* it has none */
    }
    return headers;
}

/* How often this record came back as a dead letter and was sent again; 0: it is none. */
static int64_t attempts_of(const rd_kafka_headers_t *headers)
{
    const void *value = NULL;
    size_t bytes = 0;
    char text[16] = "";
    if (!headers || rd_kafka_header_get_last(headers, ATTEMPTS, &value, &bytes)) {
        return 0;
    }
    if (value && bytes < sizeof text) {
        memcpy(text, value, bytes);
    }
    long attempts = strtol(text, NULL, 10);
    return attempts > 1 ? attempts : 1; /* somebody else may have written there */
}

/* The headers that are the record's own, without those that a dead letter added to it before it was sent again: the
 * last one of each name, since a dead letter puts its own behind those of the record. */
static rd_kafka_headers_t *own_headers(const rd_kafka_headers_t *headers)
{
    size_t last[ADDED], size = 0;
    const char *name = NULL;
    const void *value = NULL;
    if (!headers) {
        return rd_kafka_headers_new(ADDED);
    }
    if (!attempts_of(headers)) {
        return rd_kafka_headers_copy(headers);
    }
    rd_kafka_headers_t *own = rd_kafka_headers_new(rd_kafka_header_cnt(headers));
    for (size_t a = 0; a < ADDED; a++) {
        last[a] = SIZE_MAX;
        for (size_t i = 0; !rd_kafka_header_get_all(headers, i, &name, &value, &size); i++) {
            last[a] = strcmp(name, added[a]) == 0 ? i : last[a];
        }
    }
    for (size_t i = 0; !rd_kafka_header_get_all(headers, i, &name, &value, &size); i++) {
        bool theirs = false;
        for (size_t a = 0; a < ADDED && !theirs; a++) {
            theirs = last[a] == i;
        }
        if (!theirs) {
            rd_kafka_header_add(own, name, -1, value, value ? (ssize_t)size : 0);
        }
    }
    return own;
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
    header_text(headers, ERRORS "topic", l->input->topic);
    header_number(headers, ERRORS "partition", l->input->partition);
    header_number(headers, ERRORS "offset", l->input->offset);
    header_text(headers, ERRORS "stage", l->stage);
    header_text(headers, ERRORS "exception.class.name", error_code_name(l->error->code));
    header_text(headers, ERRORS "exception.message", l->error->text);
    header_number(headers, ATTEMPTS, attempts_of(input_headers(l)) + 1);
    if (cut) {
        header_text(headers, TRUNCATED, "true");
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
    rd_kafka_headers_t *headers = own_headers(keep.headers ? input_headers(l) : NULL);
    if (dead) {
        headers_dead(headers, l, l->cut != 0);
    }
    if (tell_time && input->timestamp_ms >= 0) {
        header_number(headers, TIMESTAMP, input->timestamp_ms);
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
