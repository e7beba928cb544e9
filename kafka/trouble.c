/* What is wrong with a client, in words: librdkafka's log and errors become ours. What may surprise: librdkafka reports
 * a lost connection again and again and its return never. So trouble is remembered, logged once, and a client in
 * trouble that has nothing else to do asks a broker now and then. */
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "kafka/internal.h"

enum {
    RECHECK_US = 2000000,
    RECHECK_MS = 200,
    LINE_BYTES = 2048,
};

/* The connection's own troubles are told through error_cb, once; librdkafka's lines about them repeat, as do those
 * about a coordinator that is still starting (GETPID), and about the partitions of a topic that comes and goes as the
 * right to see it does (PARTCNT). */
void trouble_log(const rd_kafka_t *rk, int level, const char *facility, const char *text)
{
    struct kafka_client *c = rd_kafka_opaque(rk);
    if (c && strcmp(facility, "SESSTMOUT") == 0) { /* told nowhere else, and here before anything follows from it */
        atomic_store(&c->expired, true);
    }
    if (c && atomic_load(&c->opening) && level <= 3 && strcmp(facility, "SSL") == 0) {
        if (!*c->reason) { /* the cause; what follows are its consequences, of which rd_kafka_new returns the last */
            connection_failed(c, text);
        }
        return;
    }
    enum log_level as = level <= 3   ? LOG_LEVEL_ERROR
                        : level == 4 ? LOG_LEVEL_WARN
                        : level == 5 ? LOG_LEVEL_INFO
                                     : LOG_LEVEL_DEBUG;
    if (strcmp(facility, "FAIL") == 0 || strcmp(facility, "ERROR") == 0 || strcmp(facility, "FATAL") == 0 ||
        strcmp(facility, "GETPID") == 0 || strcmp(facility, "PARTCNT") == 0 || strcmp(facility, "SSLCERTVRFY") == 0) {
        as = LOG_LEVEL_DEBUG;
    }
    char line[LINE_BYTES];
    connection_text(text, line, sizeof line);
    if (c && as != LOG_LEVEL_DEBUG) { /* who asks for librdkafka's debugging wants all of it */
        log_limited(&c->lines_limit, as, "kafka client for %s: %s", c->what, line);
    } else {
        log_write(as, "kafka client for %s: %s", c ? c->what : "?", line);
    }
}

static bool unreachable(int err)
{
    return err == RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN || err == RD_KAFKA_RESP_ERR__RESOLVE ||
           err == RD_KAFKA_RESP_ERR__AUTHENTICATION || err == RD_KAFKA_RESP_ERR__SSL ||
           err == RD_KAFKA_RESP_ERR__TRANSPORT || err == RD_KAFKA_RESP_ERR__TIMED_OUT;
}

static bool missing(int err)
{
    return err == RD_KAFKA_RESP_ERR__UNKNOWN_TOPIC || err == RD_KAFKA_RESP_ERR__UNKNOWN_PARTITION ||
           err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART;
}

/* "NAME [0]: desired partition is no longer available": of a topic that is gone or hidden. */
static void topic_trouble(struct kafka_client *c, int err, const char *reason)
{
    char name[256] = "";
    const char *end = strstr(reason, " [");
    if (end && (size_t)(end - reason) < sizeof name) {
        memcpy(name, reason, (size_t)(end - reason));
        bool reads = rd_kafka_type(c->rk) == RD_KAFKA_CONSUMER;
        kafka_client_trouble_with(c, err, reads ? READ_TOPIC : WRITE_TOPIC, name, reason);
    } else {
        kafka_client_trouble(c, err, reason);
    }
}

void trouble_error(rd_kafka_t *rk, int err, const char *reason, void *opaque)
{
    (void)rk;
    struct kafka_client *c = opaque;
    if (missing(err) || err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) {
        topic_trouble(c, err, reason);
        return;
    }
    if (err == RD_KAFKA_RESP_ERR__FATAL) {
        return; /* the room that polls asks rd_kafka_fatal_error */
    }
    if (err == RD_KAFKA_RESP_ERR__TRANSPORT) {
        connection_failed(c, reason); /* of one broker: told when it was the last one */
        log_debug("kafka client for %s: %s", c->what, reason);
        return;
    }
    if (unreachable(err) && err != RD_KAFKA_RESP_ERR__ALL_BROKERS_DOWN) {
        connection_failed(c, reason);
    }
    kafka_client_trouble(c, err, reason);
}

/* Codes that alternate while one thing is wrong. */
static bool same_trouble(int a, int b)
{
    return a == b || (unreachable(a) && unreachable(b)) || (missing(a) && missing(b));
}

static _Atomic uint64_t troubles;

uint64_t kafka_troubles(void)
{
    return atomic_load(&troubles);
}

void kafka_trouble_count(void)
{
    atomic_fetch_add(&troubles, 1);
}

bool kafka_client_troubled(struct kafka_client *c, char words[TROUBLE_BYTES])
{
    words[0] = '\0';
    if (atomic_load(&c->trouble)) {
        pthread_mutex_lock(&c->lock);
        memcpy(words, c->words, TROUBLE_BYTES);
        pthread_mutex_unlock(&c->lock);
    }
    return words[0] != '\0';
}

void kafka_client_trouble(struct kafka_client *c, int err, const char *text)
{
    if (c->quiet) {
        return;
    }
    atomic_fetch_add(&c->troubles, 1);
    const char *advice = unreachable(err) ? connection_advice(c) : NULL;
    if (same_trouble(atomic_load(&c->trouble), err) && (!advice || atomic_load(&c->advised))) {
        atomic_store(&c->trouble, err);
        return;
    }
    atomic_store(&c->advised, advice != NULL);
    struct buffer words = {0};
    if (advice) {
        buffer_format(&words, "%s: ", c->what);
        connection_words(c, advice, &words);
    } else if (unreachable(err)) {
        buffer_format(&words, "%s: no broker answers at %s%s%s: is it running, is bootstrap.servers right?", c->what,
                      c->brokers, *c->reason ? ": " : "", c->reason);
    } else {
        buffer_format(&words, "%s: %s", c->what, text);
    }
    pthread_mutex_lock(&c->lock);
    snprintf(c->words, sizeof c->words, "%s", words.data);
    pthread_mutex_unlock(&c->lock);
    atomic_store(&c->trouble, err);
    kafka_trouble_count();
    atomic_store(&c->told, log_limited(&c->troubles_limit, LOG_LEVEL_WARN, "%s%s", words.data,
                                       unreachable(err) && !advice ? " Trying on" : ": trying on"));
    buffer_free(&words);
}

void kafka_trouble_words(int err, enum kafka_use use, const char *name, const char *text, struct buffer *out)
{
    const char *what = use == READ_GROUP ? "group" : "topic";
    const char *right = use == WRITE_TOPIC ? "WRITE" : "READ";
    if (err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED || err == RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED) {
        buffer_format(out, "%s '%s' may not be %s: give the stage's Kafka user the right %s on it", what, name,
                      use == READ_TOPIC    ? "read"
                      : use == WRITE_TOPIC ? "written"
                                           : "joined",
                      right);
    } else if (err == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED && use == WRITE_TOPIC) {
        buffer_format(out,
                      "topic '%s' may not be written, nor any other: give the stage's Kafka user the right WRITE on it",
                      name);
    } else if (missing(err)) {
        buffer_format(out, "topic '%s' does not exist: create it (a restart does, where create_topics is set)", name);
    } else if (use == WRITE_TOPIC) {
        buffer_format(out, "topic '%s': %s", name, text);
    } else { /* of a consumer: it names what it speaks of */
        buffer_string(out, text);
    }
}

void kafka_client_trouble_with(struct kafka_client *c, int err, enum kafka_use use, const char *name, const char *text)
{
    struct buffer words = {0};
    kafka_trouble_words(err, use, name, text, &words);
    kafka_client_trouble(c, err, words.data);
    buffer_free(&words);
}

void kafka_client_works(struct kafka_client *c)
{
    if (atomic_load(&c->trouble) && atomic_exchange(&c->trouble, 0) && atomic_load(&c->told)) {
        c->reason[0] = '\0'; /* a later trouble has its own */
        log_info("%s: works again", c->what);
    }
}

void kafka_client_recheck(struct kafka_client *c)
{
    uint64_t now = clock_us();
    if (!unreachable(atomic_load(&c->trouble)) || now - c->asked_us < RECHECK_US) {
        return;
    }
    const struct rd_kafka_metadata *metadata = NULL;
    if (rd_kafka_metadata(c->rk, 0, NULL, &metadata, RECHECK_MS) == RD_KAFKA_RESP_ERR_NO_ERROR) {
        rd_kafka_metadata_destroy(metadata);
        kafka_client_works(c);
    }
    c->asked_us = clock_us();
}
