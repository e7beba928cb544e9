/* A commit meets a client that librdkafka gave up because its session in the group had run out: the publish thread lets
 * the offsets go, and the poll thread has another client join. librdkafka's own mock is the broker; what librdkafka
 * says of the client is put in its mouth, at the moment that no test can hit at will. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <librdkafka/rdkafka.h>
#include <librdkafka/rdkafka_mock.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/clock.h"
#include "consumer/consumer.h"

enum { POLL_MS = 100, WAIT_US = 60000000 };

/* ---- librdkafka's word on the client ---- */

static rd_kafka_t *_Atomic member_client; /* which subscribed last */
static rd_kafka_t *_Atomic given_up;      /* NULL: none */
static _Atomic bool expires;              /* its session is seen to have run out only when it is asked for the reason */
static _Atomic int commits;               /* of clients given up */
static _Atomic int unanswered;            /* how many questions for committed offsets no partition answers */

rd_kafka_resp_err_t rd_kafka_subscribe(rd_kafka_t *rk, const rd_kafka_topic_partition_list_t *topics)
{
    rd_kafka_resp_err_t (*next)(rd_kafka_t *, const rd_kafka_topic_partition_list_t *) =
        dlsym(RTLD_NEXT, "rd_kafka_subscribe");
    atomic_store(&member_client, rk);
    return next(rk, topics);
}

rd_kafka_resp_err_t rd_kafka_commit_queue(rd_kafka_t *rk, const rd_kafka_topic_partition_list_t *offsets,
                                          rd_kafka_queue_t *queue,
                                          void (*called)(rd_kafka_t *rk, rd_kafka_resp_err_t err,
                                                         rd_kafka_topic_partition_list_t *offsets, void *context),
                                          void *context)
{
    if (rk == atomic_load(&given_up)) {
        atomic_fetch_add(&commits, 1);
        return RD_KAFKA_RESP_ERR__FATAL;
    }
    rd_kafka_resp_err_t (*next)(rd_kafka_t *, const rd_kafka_topic_partition_list_t *, rd_kafka_queue_t *,
                                void (*)(rd_kafka_t *, rd_kafka_resp_err_t, rd_kafka_topic_partition_list_t *, void *),
                                void *) = dlsym(RTLD_NEXT, "rd_kafka_commit_queue");
    return next(rk, offsets, queue, called, context);
}

rd_kafka_resp_err_t rd_kafka_committed(rd_kafka_t *rk, rd_kafka_topic_partition_list_t *partitions, int timeout_ms)
{
    rd_kafka_resp_err_t (*next)(rd_kafka_t *, rd_kafka_topic_partition_list_t *, int) =
        dlsym(RTLD_NEXT, "rd_kafka_committed");
    if (atomic_load(&unanswered) == 0) {
        return next(rk, partitions, timeout_ms);
    }
    atomic_fetch_sub(&unanswered, 1);
    for (int i = 0; i < partitions->cnt; i++) { /* as the coordinator does that does not know of a right yet */
        partitions->elems[i].offset = RD_KAFKA_OFFSET_INVALID;
        partitions->elems[i].err = RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
    }
    return RD_KAFKA_RESP_ERR_NO_ERROR;
}

rd_kafka_resp_err_t rd_kafka_fatal_error(rd_kafka_t *rk, char *text, size_t bytes)
{
    rd_kafka_resp_err_t (*next)(rd_kafka_t *, char *, size_t) = dlsym(RTLD_NEXT, "rd_kafka_fatal_error");
    if (rk != atomic_load(&given_up)) {
        return next(rk, text, bytes);
    }
    if (atomic_load(&expires)) {
        struct kafka_client *client = rd_kafka_opaque(rk);
        atomic_store(&client->expired, true);
    }
    snprintf(text, bytes, "as if fenced");
    return RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID;
}

/* ---- a member of a group on a mock cluster ---- */

struct member {
    rd_kafka_t *host;
    rd_kafka_mock_cluster_t *cluster;
    struct config config;
    struct text_consumer *consumer;
    struct partition_offset offset; /* of a partition that is ours */
    pthread_t poll_thread;
    _Atomic int revoked;       /* calls of the event */
    _Atomic int revoked_aside; /* those on another thread than the one that polls */
};

static void revoked(void *context, bool lost)
{
    struct member *m = context;
    (void)lost;
    atomic_fetch_add(&m->revoked, 1);
    atomic_fetch_add(&m->revoked_aside, !pthread_equal(pthread_self(), m->poll_thread));
}

static int poll_once(struct member *m, struct error *e)
{
    struct consumed *text = NULL;
    int got = text_consumer_poll(m->consumer, POLL_MS, &text, e);
    if (text) {
        m->offset = (struct partition_offset){text->partition, text->epoch, text->offset + 1};
    }
    consumed_free(text);
    return got;
}

static void text_send(struct member *m)
{
    assert_int_equal(rd_kafka_producev(m->host, RD_KAFKA_V_TOPIC("texts"), RD_KAFKA_V_PARTITION(0),
                                       RD_KAFKA_V_VALUE("a text", 6), RD_KAFKA_V_END),
                     0);
    assert_int_equal(rd_kafka_flush(m->host, WAIT_US / 1000), 0);
}

/* Until a text is read. */
static void member_join(struct member *m)
{
    const struct text_consumer_events events = {revoked, m};
    struct error e = {0};
    m->offset = (struct partition_offset){0};
    assert_int_equal(text_consumer_open(&m->consumer, &m->config, &events, &e), 0);
    assert_int_equal(text_consumer_subscribe(m->consumer, &e), 0);
    for (uint64_t until = clock_us() + WAIT_US; !m->offset.epoch && clock_us() < until;) {
        assert_true(poll_once(m, &e) >= 0);
    }
    assert_true(text_consumer_owns(m->consumer, 0, m->offset.epoch));
}

static void member_open(struct member *m)
{
    static const struct config_command command = {.name = "probe", .usage = "", .help = "Probes.", .example = ""};
    char text[256], servers[256], log_level[] = "--log-level";
    struct arguments *arguments = NULL;
    struct error e = {0};
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    *m = (struct member){.poll_thread = pthread_self()};
    rd_kafka_conf_set_log_cb(conf, NULL);
    rd_kafka_conf_set(conf, "test.mock.num.brokers", "1", text, sizeof text);
    m->host = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof text);
    assert_non_null(m->host);
    m->cluster = rd_kafka_handle_mock_cluster(m->host);
    assert_int_equal(rd_kafka_mock_topic_create(m->cluster, "texts", 1, 1), 0);
    text_send(m);
    snprintf(servers, sizeof servers, "bootstrap.servers=%s", rd_kafka_mock_cluster_bootstraps(m->cluster));
    char *words[] = {log_level, (char[]){"error"}, (char[]){"-X"}, servers, NULL};
    assert_int_equal(config_read(&command, 4, words, &m->config, &arguments, &e), 0);
    arguments_free(arguments);
    member_join(m);
}

static void member_close(struct member *m)
{
    text_consumer_close(m->consumer);
    config_free(&m->config);
    rd_kafka_destroy(m->host);
}

struct committed {
    struct member *member;
    int result;
    struct error error;
};

static void *commit_main(void *context)
{
    struct committed *c = context;
    struct committer committer = text_consumer_committer(c->member->consumer);
    c->result = committer.commit(committer.consumer, &c->member->offset, 1, NULL, &c->error);
    return NULL;
}

/* Commits from a thread of its own, as the publisher does. */
static struct committed commit_aside(struct member *m)
{
    struct committed c = {.member = m};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, commit_main, &c), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    return c;
}

/* ---- tests ---- */

static void test_a_commit_leaves_the_client_to_the_poll_thread(void **state)
{
    (void)state;
    struct member m;
    struct error e = {0};
    member_open(&m);
    assert_int_equal(commit_aside(&m).result, 0);
    assert_int_equal(atomic_load(&commits), 0);

    atomic_store(&expires, true);
    atomic_store(&given_up, atomic_load(&member_client));
    struct committed c = commit_aside(&m);
    assert_int_equal(atomic_load(&commits), 1);
    assert_int_equal(c.result, 0);                /* not ours any more */
    assert_int_equal(atomic_load(&m.revoked), 0); /* and nothing was done about it */
    assert_ptr_equal(atomic_load(&member_client), atomic_load(&given_up));

    for (uint64_t until = clock_us() + WAIT_US;
         atomic_load(&member_client) == atomic_load(&given_up) && clock_us() < until;) {
        assert_true(poll_once(&m, &e) >= 0);
    }
    assert_ptr_not_equal(atomic_load(&member_client), atomic_load(&given_up));
    assert_int_equal(atomic_load(&m.revoked), 1);
    assert_int_equal(atomic_load(&m.revoked_aside), 0);
    atomic_store(&given_up, NULL);
    member_close(&m);
}

static void test_fenced_by_another_it_is_fatal(void **state)
{
    (void)state;
    struct member m;
    struct error e = {0};
    member_open(&m);
    atomic_store(&expires, false);
    atomic_store(&given_up, atomic_load(&member_client));
    struct committed c = commit_aside(&m);
    assert_int_equal(c.result, -1);
    assert_int_equal(c.error.kind, ERROR_FATAL);
    assert_int_equal(c.error.code, E_FENCED);
    assert_int_equal(poll_once(&m, &e), -1);
    assert_int_equal(e.code, E_FENCED);
    atomic_store(&given_up, NULL);
    member_close(&m);
}

/* Where a partition's offset cannot be read, once or for long, nothing is read again. */
static void test_an_offset_that_cannot_be_read_is_not_missing(void **state)
{
    (void)state;
    struct member m;
    member_open(&m);
    assert_int_equal(m.offset.next, 1);
    for (int questions = 1; questions <= 100; questions += 99) {
        assert_int_equal(commit_aside(&m).result, 0);
        text_consumer_close(m.consumer);
        text_send(&m);
        int64_t committed = m.offset.next;
        atomic_store(&unanswered, questions);
        member_join(&m);
        assert_int_equal(m.offset.next, committed + 1);
        assert_true(atomic_load(&unanswered) < questions);
        atomic_store(&unanswered, 0);
    }
    member_close(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_commit_leaves_the_client_to_the_poll_thread),
        cmocka_unit_test(test_fenced_by_another_it_is_fatal),
        cmocka_unit_test(test_an_offset_that_cannot_be_read_is_not_missing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
