/* Why a connection fails, in words: what librdkafka guesses at counts only until a broker has answered. The broker is
 * librdkafka's own mock. */
#include <librdkafka/rdkafka.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "kafka/internal.h"

#define BROKEN_EARLY                                                                                                   \
    "127.0.0.1:9092/1: Disconnected: verify that security.protocol is correctly configured, broker might require "     \
    "SASL authentication (after 1ms in state APIVERSION_QUERY)"
#define BROKEN_AT_ONCE                                                                                                 \
    "127.0.0.1:9092/1: Disconnected while requesting ApiVersion: might be caused by incorrect security.protocol "      \
    "configuration (connecting to a SSL listener?) or broker version is < 0.10 (after 1ms in state APIVERSION_QUERY)"
#define TLS_CUT_SHORT                                                                                                  \
    "ssl://127.0.0.1:9092/1: SSL handshake failed: error:0A000126:SSL routines::unexpected eof while reading (after "  \
    "5ms in state SSL_HANDSHAKE)"
#define OTHER_PROTOCOL                                                                                                 \
    "ssl://127.0.0.1:9092/1: SSL handshake failed: error:0A00010B:SSL routines::wrong version number (after 5ms in "   \
    "state SSL_HANDSHAKE)"

static void client_open(struct kafka_client *c, const char *brokers)
{
    char text[256];
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_conf_set_log_cb(conf, NULL);
    assert_int_equal(rd_kafka_conf_set(conf, "test.mock.num.brokers", brokers, text, sizeof text), RD_KAFKA_CONF_OK);
    *c = (struct kafka_client){.what = "texts", .brokers = "127.0.0.1:9092"};
    c->rk = rd_kafka_new(RD_KAFKA_PRODUCER, conf, text, sizeof text);
    assert_non_null(c->rk);
}

static void test_before_a_broker_answers(void **state)
{
    (void)state;
    struct kafka_client c;
    client_open(&c, "0");
    connection_failed(&c, BROKEN_EARLY);
    assert_non_null(connection_advice(&c));
    connection_failed(&c, BROKEN_AT_ONCE);
    assert_non_null(connection_advice(&c));
    connection_failed(&c, TLS_CUT_SHORT);
    assert_non_null(connection_advice(&c));
    connection_failed(&c, OTHER_PROTOCOL);
    assert_non_null(connection_advice(&c));
    rd_kafka_destroy(c.rk);
}

static void test_after_a_broker_answered(void **state)
{
    (void)state;
    struct kafka_client c;
    client_open(&c, "1");
    char *cluster = rd_kafka_clusterid(c.rk, 60000);
    assert_non_null(cluster);
    rd_kafka_mem_free(c.rk, cluster);
    connection_failed(&c, BROKEN_EARLY);
    assert_null(connection_advice(&c));
    assert_string_equal(c.reason, "Disconnected");
    connection_failed(&c, BROKEN_AT_ONCE);
    assert_null(connection_advice(&c));
    assert_string_equal(c.reason, "Disconnected while requesting ApiVersion");
    connection_failed(&c, TLS_CUT_SHORT);
    assert_null(connection_advice(&c));
    connection_failed(&c, OTHER_PROTOCOL); /* no guess: the listener speaks another one by now */
    assert_non_null(connection_advice(&c));
    rd_kafka_destroy(c.rk);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_before_a_broker_answers),
        cmocka_unit_test(test_after_a_broker_answered),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
