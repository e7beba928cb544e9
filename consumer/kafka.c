/* What every Kafka client of ours shares: opening one, its log and its health, what the cluster says of topics.
 * What may surprise: librdkafka reports a lost connection again and again and its return never. So trouble is
 * remembered, logged once, and a client in trouble that has nothing else to do asks a broker now and then. */
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "consumer/internal.h"

enum {
    RECHECK_US = 2000000,
    RECHECK_MS = 200,
    REFETCH_US = 5000000,
    STEP_MS = 100,
    DESTROY_US = 5000000,
    LINE_BYTES = 2048,
};

bool kafka_wait_go_on(const struct kafka_wait *wait)
{
    return !wait || !wait->go_on || wait->go_on(wait->context);
}

/* ---- log and health ---- */

/* The connection's own troubles are told through error_cb, once; librdkafka's lines about them repeat, as do those
 * about a coordinator that is still starting (GETPID), and about the partitions of a topic that comes and goes as the
 * right to see it does (PARTCNT). */
static void log_bridge(const rd_kafka_t *rk, int level, const char *facility, const char *text)
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

static void error_bridge(rd_kafka_t *rk, int err, const char *reason, void *opaque)
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

void trouble_count(void)
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
    if (same_trouble(atomic_load(&c->trouble), err) && (!advice || c->advised)) {
        atomic_store(&c->trouble, err);
        return;
    }
    c->advised = advice != NULL;
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
    trouble_count();
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
    atomic_store(&c->reached, true);
    if (atomic_load(&c->trouble) && atomic_exchange(&c->trouble, 0) && atomic_load(&c->told)) {
        c->reason[0] = '\0'; /* a later trouble has its own */
        log_info("%s: works again", c->what);
    }
}

/* Serves the callbacks of a client that is not polled yet. */
static void client_serve(struct kafka_client *c)
{
    if (rd_kafka_type(c->rk) == RD_KAFKA_PRODUCER) {
        rd_kafka_poll(c->rk, 0);
        return;
    }
    rd_kafka_message_t *m = rd_kafka_consumer_poll(c->rk, 0);
    if (m) {
        rd_kafka_message_destroy(m); /* an error: nothing is assigned yet */
    }
}

bool client_pause(struct kafka_client *c, const struct kafka_wait *wait)
{
    clock_sleep_ms(STEP_MS);
    client_serve(c);
    return kafka_wait_go_on(wait);
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

/* ---- opening ---- */

int kafka_set(rd_kafka_conf_t *conf, const char *name, const char *value, struct error *e)
{
    char text[256];
    if (rd_kafka_conf_set(conf, name, value, text, sizeof text) != RD_KAFKA_CONF_OK) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "librdkafka's %s = %s: %s", name, value, text);
    }
    return 0;
}

int kafka_set_default(rd_kafka_conf_t *conf, const char *name, const char *librdkafka_default, const char *value,
                      struct error *e)
{
    char now[64];
    size_t bytes = sizeof now;
    if (rd_kafka_conf_get(conf, name, now, &bytes) == RD_KAFKA_CONF_OK && strcmp(now, librdkafka_default) != 0) {
        return 0; /* the user's */
    }
    return kafka_set(conf, name, value, e);
}

int kafka_client_open(struct kafka_client *c, const struct config *config, enum config_client kind,
                      rd_kafka_conf_t *conf, const char *what, void *owner, struct error *e)
{
    char text[512];
    c->what = what;
    c->brokers = config_bootstrap_servers(config);
    c->owner = owner;
    if (!c->locked) {
        pthread_mutex_init(&c->lock, NULL);
        c->locked = true;
    }
    rd_kafka_conf_set_opaque(conf, c);
    rd_kafka_conf_set_log_cb(conf, log_bridge);
    rd_kafka_conf_set_error_cb(conf, error_bridge);
    rd_kafka_conf_set_ssl_cert_verify_cb(conf, connection_certificate_check);
    c->reason[0] = '\0';
    atomic_store(&c->opening, true);
    c->rk = rd_kafka_new(kind == CLIENT_PRODUCER ? RD_KAFKA_PRODUCER : RD_KAFKA_CONSUMER, conf, text, sizeof text);
    atomic_store(&c->opening, false);
    if (!c->rk) {
        char words[512];
        connection_text(text, words, sizeof words);
        rd_kafka_conf_destroy(conf);
        return error_set(e, ERROR_FATAL, E_USAGE, "librdkafka refuses its configuration: %s%s%s%s", words,
                         *c->reason ? " (" : "", c->reason, *c->reason ? ")" : "");
    }
    if (kind == CLIENT_CONSUMER) {
        rd_kafka_poll_set_consumer(c->rk);
    }
    return 0;
}

/* A client on its way out: held by the thread that destroys it and by who waits for that; the last one frees this. */
struct farewell {
    rd_kafka_t *rk;
    _Atomic int holders;
};

static bool farewell_leave(struct farewell *f)
{
    bool last = atomic_fetch_sub(&f->holders, 1) == 1;
    if (last) {
        free(f);
    }
    return last;
}

static void *farewell_main(void *context)
{
    struct farewell *f = context;
    rd_kafka_destroy(f->rk);
    farewell_leave(f);
    return NULL;
}

/* librdkafka 2.0.2 never comes back from rd_kafka_destroy where a topic was deleted while it was consumed: a thread of
 * its own waits for partitions that nobody has any more. Nothing is left to lose by then, so it gets a few seconds. */
static void client_destroy(rd_kafka_t *rk)
{
    struct farewell *f = mem_zero(1, sizeof *f);
    pthread_t thread;
    *f = (struct farewell){.rk = rk, .holders = 2};
    rd_kafka_set_log_level(rk, 0); /* its log goes to a struct kafka_client, which may be gone before it */
    if (pthread_create(&thread, NULL, farewell_main, f)) {
        rd_kafka_destroy(rk);
        free(f);
        return;
    }
    pthread_detach(thread);
    uint64_t until = clock_us() + DESTROY_US;
    while (atomic_load(&f->holders) == 2 && clock_us() < until) {
        clock_sleep_ms(1);
    }
    if (!farewell_leave(f)) {
        log_debug("a Kafka client does not close: it is left running");
    }
}

void kafka_client_close(struct kafka_client *c)
{
    if (c->rk) {
        client_destroy(c->rk);
        c->rk = NULL;
    }
}

int kafka_client_connect(struct kafka_client *c, const struct kafka_wait *wait, char **cluster, struct error *e)
{
    for (;;) {
        char *id = rd_kafka_clusterid(c->rk, STEP_MS);
        client_serve(c);
        if (id) {
            if (cluster) {
                *cluster = mem_string(id, strlen(id));
            }
            rd_kafka_mem_free(c->rk, id);
            kafka_client_works(c);
            return 0;
        }
        if (!kafka_wait_go_on(wait)) {
            const char *advice = connection_advice(c);
            if (advice) {
                struct buffer words = {0};
                connection_words(c, advice, &words);
                error_set(e, ERROR_RETRY, E_BROKER, "%s", words.data);
                buffer_free(&words);
                return -1;
            }
            return error_set(e, ERROR_RETRY, E_BROKER,
                             "no broker answers at %s%s%s: start Kafka there, or set bootstrap.servers (-X "
                             "bootstrap.servers=HOST:PORT)",
                             c->brokers, *c->reason ? ": " : "", c->reason);
        }
    }
}

/* ---- what the cluster says ---- */

static void describe_partitions(const struct rd_kafka_metadata *metadata, struct kafka_topic *topic)
{
    for (int i = 0; i < metadata->topic_cnt; i++) {
        const rd_kafka_metadata_topic_t *found = &metadata->topics[i];
        if (strcmp(found->topic, topic->name) != 0 || found->err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART) {
            continue;
        }
        topic->partitions = found->partition_cnt;
        topic->led = found->err == RD_KAFKA_RESP_ERR_NO_ERROR && found->partition_cnt > 0;
        for (int p = 0; p < found->partition_cnt; p++) {
            topic->led = topic->led && found->partitions[p].leader >= 0;
        }
    }
}

static void describe_setting(struct kafka_topic *topic, const char *name, const char *value)
{
    if (strcmp(name, "cleanup.policy") == 0) {
        topic->compact = strstr(value, "compact") != NULL;
    } else if (strcmp(name, "retention.ms") == 0) {
        topic->retention_ms = strtoll(value, NULL, 10);
    } else if (strcmp(name, "delete.retention.ms") == 0) {
        topic->delete_retention_ms = strtoll(value, NULL, 10);
    } else if (strcmp(name, "max.message.bytes") == 0) {
        topic->max_message_bytes = strtoll(value, NULL, 10);
    }
}

static void describe_result(rd_kafka_event_t *event, struct kafka_topic *topics, size_t n)
{
    size_t count = 0;
    const rd_kafka_DescribeConfigs_result_t *result = rd_kafka_event_DescribeConfigs_result(event);
    const rd_kafka_ConfigResource_t **found = rd_kafka_DescribeConfigs_result_resources(result, &count);
    for (size_t r = 0; r < count; r++) {
        for (size_t t = 0; t < n; t++) {
            if (rd_kafka_ConfigResource_error(found[r]) ||
                strcmp(rd_kafka_ConfigResource_name(found[r]), topics[t].name) != 0) {
                continue;
            }
            size_t entries = 0;
            const rd_kafka_ConfigEntry_t **entry = rd_kafka_ConfigResource_configs(found[r], &entries);
            topics[t].configured = entries > 0;
            for (size_t i = 0; i < entries; i++) {
                const char *value = rd_kafka_ConfigEntry_value(entry[i]);
                describe_setting(&topics[t], rd_kafka_ConfigEntry_name(entry[i]), value ? value : "");
            }
        }
    }
}

/* Settings are wanted, not needed: who may not read them goes without. */
static int describe_settings(struct kafka_client *c, struct kafka_topic *topics, size_t n, int timeout_ms,
                             struct error *e)
{
    rd_kafka_ConfigResource_t **resources = mem_zero(n, sizeof *resources);
    size_t count = 0;
    int result = 0;
    for (size_t i = 0; i < n; i++) {
        if (topics[i].partitions > 0) {
            resources[count++] = rd_kafka_ConfigResource_new(RD_KAFKA_RESOURCE_TOPIC, topics[i].name);
        }
    }
    if (count) {
        rd_kafka_queue_t *queue = rd_kafka_queue_new(c->rk);
        rd_kafka_DescribeConfigs(c->rk, resources, count, NULL, queue);
        rd_kafka_event_t *event = rd_kafka_queue_poll(queue, timeout_ms);
        if (!event || rd_kafka_event_error(event) == RD_KAFKA_RESP_ERR__TIMED_OUT) {
            result = error_set(e, ERROR_RETRY, E_BROKER, "the brokers do not describe the topics");
        } else if (!rd_kafka_event_error(event)) {
            describe_result(event, topics, n);
        }
        if (event) {
            rd_kafka_event_destroy(event);
        }
        rd_kafka_queue_destroy(queue);
        rd_kafka_ConfigResource_destroy_array(resources, count);
    }
    free(resources);
    return result;
}

/* All topics are asked for: naming one could create it, where brokers create topics by themselves. No callback is
 * served: a rebalance may be what asks. */
int kafka_topics_describe(struct kafka_client *c, struct kafka_topic *topics, size_t n, bool settings, int timeout_ms,
                          struct error *e)
{
    const struct rd_kafka_metadata *metadata = NULL;
    rd_kafka_resp_err_t err = rd_kafka_metadata(c->rk, 1, NULL, &metadata, timeout_ms);
    if (err) {
        return error_set(e, ERROR_RETRY, E_BROKER, "%s does not list the topics: %s", c->brokers,
                         rd_kafka_err2str(err));
    }
    for (size_t i = 0; i < n; i++) {
        topics[i] = (struct kafka_topic){.name = topics[i].name,
                                         .compact = true,
                                         .retention_ms = -1,
                                         .delete_retention_ms = -1,
                                         .max_message_bytes = -1};
        describe_partitions(metadata, &topics[i]);
    }
    rd_kafka_metadata_destroy(metadata);
    return settings ? describe_settings(c, topics, n, timeout_ms, e) : 0;
}

int offsets_query(struct kafka_client *c, rd_kafka_topic_partition_list_t *list, int64_t which, int timeout_ms,
                  struct error *e)
{
    for (int i = 0; i < list->cnt; i++) {
        list->elems[i].offset = which; /* as ListOffsets means it: -2 the start, -1 the end */
    }
    rd_kafka_resp_err_t err = list->cnt ? rd_kafka_offsets_for_times(c->rk, list, timeout_ms) : 0;
    for (int i = 0; i < list->cnt && !err; i++) {
        err = list->elems[i].err;
    }
    if (err) {
        return error_set(e, ERROR_RETRY, E_BROKER, "%s does not give the offsets: %s", c->brokers,
                         rd_kafka_err2str(err));
    }
    return 0;
}

int64_t lags_sum(struct partition_lag *lags, ssize_t count)
{
    int64_t sum = count < 0 ? -1 : 0;
    for (ssize_t i = 0; i < count; i++) {
        sum += lags[i].lag;
    }
    free(lags);
    return sum;
}

void refetch(struct kafka_client *c, rd_kafka_topic_partition_list_t *list)
{
    uint64_t now = clock_us();
    if (!list->cnt || now - c->fetched_us < REFETCH_US) {
        return;
    }
    rd_kafka_error_t *error = rd_kafka_seek_partitions(c->rk, list, 0);
    if (error) {
        rd_kafka_error_destroy(error); /* tried again in a while */
    }
    c->fetched_us = now;
}

int consumer_configure(rd_kafka_conf_t *conf, struct error *e)
{
    /* one prefetch queue of 4 MiB: at least 2 s of input, for librdkafka waits 1 s before it refills a full one */
    return kafka_set(conf, "enable.auto.commit", "false", e) ||
                   kafka_set(conf, "enable.auto.offset.store", "false", e) ||
                   kafka_set(conf, "enable.partition.eof", "true", e) ||
                   kafka_set(conf, "isolation.level", "read_committed", e) ||
                   kafka_set_default(conf, "queued.max.messages.kbytes", "65536", "4096", e)
               ? -1
               : 0;
}
