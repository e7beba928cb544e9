/* What every Kafka client of ours shares: its settings, opening, connecting and closing it. */
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "kafka/internal.h"

enum {
    STEP_MS = 100,
    DESTROY_US = 5000000,
};

bool kafka_wait_go_on(const struct kafka_wait *wait)
{
    return !wait || !wait->go_on || wait->go_on(wait->context);
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

bool kafka_client_idle(struct kafka_client *c, const struct kafka_wait *wait)
{
    clock_sleep_ms(STEP_MS);
    client_serve(c);
    return kafka_wait_go_on(wait);
}

/* ---- settings ---- */

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

rd_kafka_conf_t *kafka_consumer_configure(const struct config *config, const char *suffix,
                                          const char *auto_offset_reset, struct error *e)
{
    struct buffer group = {0};
    buffer_string(&group, config->group);
    if (suffix) {
        buffer_format(&group, "-%s-%s", config->instance_id, suffix);
    }
    rd_kafka_conf_t *conf = config_kafka(config, CLIENT_CONSUMER, e);
    /* one prefetch queue of 4 MiB: at least 2 s of input, for librdkafka waits 1 s before it refills a full one */
    if (conf &&
        (kafka_set(conf, "enable.auto.commit", "false", e) || kafka_set(conf, "enable.auto.offset.store", "false", e) ||
         kafka_set(conf, "enable.partition.eof", "true", e) ||
         kafka_set(conf, "isolation.level", "read_committed", e) ||
         kafka_set_default(conf, "queued.max.messages.kbytes", "65536", "4096", e) ||
         kafka_set(conf, "group.id", group.data, e) || kafka_set(conf, "auto.offset.reset", auto_offset_reset, e))) {
        rd_kafka_conf_destroy(conf);
        conf = NULL;
    }
    buffer_free(&group);
    return conf;
}

/* ---- opening and closing ---- */

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
    rd_kafka_conf_set_log_cb(conf, trouble_log);
    rd_kafka_conf_set_error_cb(conf, trouble_error);
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
