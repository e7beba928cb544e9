/* Where a consumer is in its partitions, and the doubt about that: trouble is any partition's until something came from
 * each that is ours. The client reaches no broker. */
#include <librdkafka/rdkafka.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "kafka/position.h"

enum { PARTITIONS = 3, NOT_OURS = 2 };

struct fixture {
    struct config config;
    struct kafka_client client;
    struct readings readings;
};

static int fixture_open(void **state)
{
    static struct fixture f;
    char text[256];
    f = (struct fixture){.client = {.what = "texts", .brokers = "127.0.0.1:1"}};
    pthread_mutex_init(&f.client.lock, NULL);
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_conf_set_log_cb(conf, NULL);
    assert_int_equal(rd_kafka_conf_set(conf, "group.id", "g", text, sizeof text), RD_KAFKA_CONF_OK);
    f.client.rk = rd_kafka_new(RD_KAFKA_CONSUMER, conf, text, sizeof text);
    assert_non_null(f.client.rk);
    readings_open(&f.readings, &f.config);
    readings_grow(&f.readings, PARTITIONS);
    for (int i = 0; i < PARTITIONS; i++) {
        f.readings.list[i] = (struct reading){.topic = "texts", .partition = i, .epoch = i == NOT_OURS ? 0 : 1};
    }
    *state = &f;
    return 0;
}

static int fixture_close(void **state)
{
    struct fixture *f = *state;
    readings_close(&f->readings);
    rd_kafka_consumer_close(f->client.rk);
    rd_kafka_destroy(f->client.rk);
    pthread_mutex_destroy(&f->client.lock);
    return 0;
}

static void poll_nothing(struct fixture *f)
{
    rd_kafka_message_t *m = readings_poll(&f->readings, &f->client, 0);
    if (m) {
        rd_kafka_message_destroy(m);
    }
}

static bool troubled(struct fixture *f)
{
    char words[TROUBLE_BYTES];
    return kafka_client_troubled(&f->client, words);
}

static void test_trouble_is_over_when_something_came_from_each(void **state)
{
    struct fixture *f = *state;
    struct reading *list = f->readings.list;
    poll_nothing(f);
    assert_false(list[0].doubted || list[1].doubted || list[NOT_OURS].doubted);
    kafka_client_trouble(&f->client, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, "somewhere");
    poll_nothing(f);
    assert_true(list[0].doubted && list[1].doubted);
    assert_false(list[NOT_OURS].doubted);
    assert_true(readings_answer(&f->readings, &f->client, &list[1]));
    assert_false(readings_answer(&f->readings, &f->client, &list[1])); /* in doubt no more */
    assert_false(readings_answer(&f->readings, &f->client, NULL));
    assert_true(troubled(f));
    poll_nothing(f);
    assert_false(list[1].doubted); /* by trouble that it had answered to */
    assert_true(readings_answer(&f->readings, &f->client, &list[0]));
    assert_false(troubled(f));
}

static void test_trouble_that_was_told_before_puts_in_doubt_again(void **state)
{
    struct fixture *f = *state;
    struct reading *list = f->readings.list;
    kafka_client_trouble(&f->client, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, "somewhere");
    poll_nothing(f);
    assert_true(readings_answer(&f->readings, &f->client, &list[0]));
    kafka_client_trouble(&f->client, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, "somewhere");
    poll_nothing(f);
    assert_true(list[0].doubted && list[1].doubted);
}

static void test_records_and_ends_move_the_position(void **state)
{
    struct fixture *f = *state;
    struct reading *p = &f->readings.list[0];
    struct consumed first = {.offset = 4, .timestamp_ms = 1, .value = {"a", 1}};
    struct consumed second = {.offset = 7, .timestamp_ms = 2, .value = {"b", 1}};
    assert_true(reading_take(&f->readings, p, &first));
    assert_true(reading_take(&f->readings, p, &second));
    assert_int_equal(p->position, 8);
    assert_int_equal(p->read.next, 8);
    assert_int_equal(p->read.mark.offset, 4); /* the first record; only one that held replaces it */
    assert_int_equal(p->last.offset, 7);
    assert_true(reading_end(&f->readings, p, 10)); /* behind markers */
    assert_int_equal(p->position, 10);
    assert_int_equal(p->read.next, 8);
    assert_false(reading_end(&f->readings, p, 9)); /* before what was read: another topic's */
    assert_int_equal(p->position, 10);
    assert_false(reading_take(&f->readings, p, &first));
    assert_int_equal(p->position, 5);
}

static void test_a_mark_that_held_is_replaced_by_the_last_record(void **state)
{
    struct fixture *f = *state;
    struct reading *p = &f->readings.list[0];
    struct consumed first = {.offset = 4, .value = {"a", 1}}, second = {.offset = 5, .value = {"b", 1}};
    struct position_check held = {.reading = p, .verdict = POSITION_HOLDS, .topic_id = {1}};
    assert_false(reading_renew(&f->readings, &held)); /* nothing was read: neither a mark nor the id is its own */
    assert_false(topic_id_known(p->read.topic_id));
    reading_take(&f->readings, p, &first);
    assert_false(reading_renew(&f->readings, &held)); /* the same mark */
    assert_memory_equal(p->read.topic_id, held.topic_id, TOPIC_ID_BYTES);
    reading_take(&f->readings, p, &second);
    assert_true(reading_renew(&f->readings, &held));
    assert_int_equal(p->read.mark.offset, 5);
}

static void test_paused_nothing_is_fetched_again(void **state)
{
    struct fixture *f = *state;
    kafka_client_trouble(&f->client, RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION, "somewhere");
    poll_nothing(f);
    readings_pause(&f->readings, &f->client, true);
    readings_refetch(&f->readings, &f->client);
    assert_int_equal(f->readings.fetched_us, 0);
    readings_pause(&f->readings, &f->client, false);
    readings_refetch(&f->readings, &f->client);
    assert_int_not_equal(f->readings.fetched_us, 0);
}

int main(void)
{
#define WITH_FIXTURE(test) cmocka_unit_test_setup_teardown(test, fixture_open, fixture_close)
    const struct CMUnitTest tests[] = {
        WITH_FIXTURE(test_trouble_is_over_when_something_came_from_each),
        WITH_FIXTURE(test_trouble_that_was_told_before_puts_in_doubt_again),
        WITH_FIXTURE(test_records_and_ends_move_the_position),
        WITH_FIXTURE(test_a_mark_that_held_is_replaced_by_the_last_record),
        WITH_FIXTURE(test_paused_nothing_is_fetched_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
