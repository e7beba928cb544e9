/* consumer/ and producer/ driven from outside, without a stage: what test_kafka_rooms.py starts.
 *   rooms topics                  topics_ensure
 *   rooms tag                     an echo: each text's prediction is made from the text, published, committed
 *   rooms cut TOPIC PARTITION OFFSET    deletes the records before the offset
 *   rooms committed                     the group's offsets of texts, and their metadata
 *   rooms commit PARTITION NEXT METADATA    commits that, once the group has no member any more
 *   rooms deny TOPIC                    nobody may write to it any more; rooms allow TOPIC takes that back
 *   rooms learn [--stored TOPIC:PARTITION:NEXT]... [--cluster ID] [--caught-up MS]    prints what it reads
 * Lines on standard input steer it: pause, resume, hold (no commits), lag, stop. Events go to standard output as words.
 * A text "big A B" has a prediction of A bytes, or B without its evidence texts. */
#include <inttypes.h>
#include <librdkafka/rdkafka.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "consumer/consumer.h"
#include "producer/producer.h"

static const struct config_command command = {
    .name = "rooms",
    .usage = "topics | tag | learn | cut TOPIC PARTITION OFFSET",
    .help = "Drives consumer/ and producer/ for tests.",
    .example = "rooms topics",
    .flags = (const struct config_flag[]){{"stored", "TOPIC:PARTITION:NEXT", "an offset that the memory holds", true},
                                          {"cluster", "ID", "the cluster of those offsets (the one at hand)", false},
                                          {"caught-up", "MS", "when the memory last caught up", false},
                                          {0}},
    .positional_min = 1,
    .positional_max = 4,
};

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

static int failed(const struct error *e)
{
    say("error %s %s", error_code_name(e->code), e->text);
    return 1;
}

/* A line of standard input, if one waits: into word. */
static bool steered(char word[16])
{
    static char pending[256];
    static size_t bytes;
    struct pollfd in = {.fd = STDIN_FILENO, .events = POLLIN};
    if (!memchr(pending, '\n', bytes) && poll(&in, 1, 0) > 0) {
        ssize_t n = read(STDIN_FILENO, pending + bytes, sizeof pending - bytes);
        bytes += n > 0 ? (size_t)n : 0;
    }
    char *end = memchr(pending, '\n', bytes);
    if (!end) {
        return false;
    }
    size_t length = (size_t)(end - pending);
    snprintf(word, 16, "%.*s", (int)length, pending);
    bytes -= length + 1;
    memmove(pending, end + 1, bytes);
    return true;
}

static const char *kind_of(const struct consumed *c)
{
    static const char *const kinds[] = {"record", "null", "poison"};
    return kinds[c->kind];
}

/* ---- tag ---- */

struct echo {
    struct text_consumer *consumer;
    struct publisher *publisher;
    bool hold;
};

enum { BATCH_TEXTS = 500 };

struct big {
    size_t whole, smaller;
};

struct made {
    struct outcome outcome;
    struct buffer value;
    struct big big;
};

static bool smaller(void *context, struct buffer *out)
{
    const struct big *big = context;
    for (size_t i = 0; i < big->smaller; i++) {
        buffer_byte(out, 's');
    }
    return big->smaller > 0;
}

static void outcome_make(struct consumed *text, struct made *made)
{
    made->outcome = (struct outcome){.input = text, .smaller = smaller, .context = &made->big};
    if (text->kind != CONSUMED_RECORD) {
        return;
    }
    if (sscanf(text->text.text.data, "big %zu %zu", &made->big.whole, &made->big.smaller) >= 1) {
        for (size_t i = 0; i < made->big.whole; i++) {
            buffer_byte(&made->value, 'w');
        }
    } else {
        buffer_format(&made->value, "echo %s", text->text.text.data);
    }
    made->outcome.value = (struct slice){made->value.data, made->value.bytes};
}

/* One batch, with one publish for each text: what is committed at the end is each partition's last. */
static int echo_publish(struct echo *echo, struct consumed **texts, size_t n, struct error *e)
{
    struct made *made = mem_zero(n, sizeof *made);
    int result = publisher_begin(echo->publisher, e);
    for (size_t i = 0; i < n && !result; i++) {
        struct partition_offset next = {texts[i]->partition, texts[i]->epoch, texts[i]->offset + 1};
        outcome_make(texts[i], &made[i]);
        result = publisher_publish(echo->publisher, &made[i].outcome, 1, &next, echo->hold ? 0 : 1, e);
    }
    result = result || publisher_commit(echo->publisher, e);
    for (size_t i = 0; i < n && !result; i++) {
        say("published %d %" PRId64 " %s%s", texts[i]->partition, texts[i]->offset, kind_of(texts[i]),
            texts[i]->kind == CONSUMED_POISON || made[i].outcome.refusal != E_OK ? " dead" : "");
    }
    if (result) {
        publisher_abort(echo->publisher);
    }
    for (size_t i = 0; i < n; i++) {
        buffer_free(&made[i].value);
        consumed_free(texts[i]);
    }
    free(made);
    return result ? -1 : 0;
}

/* A text and what waits behind it. -1: an error. */
static int echo_batch(struct echo *echo, struct error *e)
{
    struct consumed *texts[BATCH_TEXTS];
    size_t n = 0;
    int got = text_consumer_poll(echo->consumer, 50, &texts[0], e);
    while (got > 0) {
        n++;
        got = n < BATCH_TEXTS ? text_consumer_poll(echo->consumer, 5, &texts[n], e) : 0;
    }
    return n ? echo_publish(echo, texts, n, e) | got : got;
}

static void revoked(void *context, bool lost)
{
    (void)context;
    say("revoked %s", lost ? "lost" : "given");
}

static int tag(const struct config *config)
{
    struct echo echo = {0};
    struct error e = {0};
    const struct text_consumer_events events = {revoked, &echo};
    int status = 0;
    char word[16] = "";
    if (text_consumer_open(&echo.consumer, config, &events, &e)) {
        return failed(&e);
    }
    struct committer committer = text_consumer_committer(echo.consumer);
    if (publisher_open(&echo.publisher, config, &committer, NULL, &e) || text_consumer_subscribe(echo.consumer, &e)) {
        return failed(&e);
    }
    for (size_t assigned = 0; strcmp(word, "stop") != 0;) {
        if (echo_batch(&echo, &e)) {
            status = failed(&e);
            break;
        }
        size_t now = text_consumer_status(echo.consumer).assigned;
        if (now != assigned) {
            assigned = now;
            say("assigned %zu", assigned);
        }
        if (steered(word)) {
            if (strcmp(word, "pause") == 0) {
                text_consumer_pause(echo.consumer);
            } else if (strcmp(word, "resume") == 0) {
                text_consumer_resume(echo.consumer);
            }
            echo.hold = echo.hold || strcmp(word, "hold") == 0;
            say("%s %" PRId64, word, text_consumer_lag(echo.consumer, 5000));
        }
    }
    publisher_close(echo.publisher);
    text_consumer_close(echo.consumer);
    say("closed");
    return status;
}

/* ---- learn ---- */

/* "TOPIC:PARTITION:NEXT" */
static struct learn_offset stored_read(char *text, const char *cluster)
{
    char *next = strrchr(text, ':');
    *next++ = '\0';
    char *partition = strrchr(text, ':');
    *partition++ = '\0';
    return (struct learn_offset){cluster, text, atoi(partition), {.next = atoll(next)}};
}

static int64_t learn_lag(struct learn_consumer *c)
{
    struct partition_lag *lags = NULL;
    ssize_t count = learn_consumer_lags(c, &lags, 5000);
    int64_t sum = count < 0 ? -1 : 0;
    for (ssize_t i = 0; i < count; i++) {
        sum += lags[i].lag;
    }
    free(lags);
    return sum;
}

static int learn_loop(struct learn_consumer *c, struct error *e)
{
    char word[16] = "";
    for (bool caught_up = false; strcmp(word, "stop") != 0;) {
        struct consumed *r = NULL;
        int got = learn_consumer_poll(c, 50, &r, e);
        if (got < 0) {
            return failed(e);
        }
        if (got) {
            say("%s %s %d %" PRId64 " %.*s%s%s", kind_of(r), r->topic, r->partition, r->offset, (int)r->key.bytes,
                r->key.data ? r->key.data : "", r->poison ? " " : "",
                r->poison ? error_code_name(r->poison->code) : "");
        }
        consumed_free(r);
        if (!caught_up && learn_consumer_caught_up(c)) {
            caught_up = true;
            say("caught-up");
        }
        if (steered(word)) {
            if (strcmp(word, "pause") == 0) {
                learn_consumer_pause(c);
            } else if (strcmp(word, "resume") == 0) {
                learn_consumer_resume(c);
            }
            say("%s %" PRId64, word, learn_lag(c));
        }
    }
    return 0;
}

static int learn(const struct config *config, const struct arguments *a)
{
    size_t n = arguments_count(a, "stored");
    struct learn_offset *stored = mem_zero(n + 1, sizeof *stored);
    char **copies = mem_zero(n + 1, sizeof *copies);
    struct learn_consumer *c = NULL;
    struct error e = {0};
    const char *cluster = arguments_value(a, "cluster"), *caught_up = arguments_value(a, "caught-up");
    for (size_t i = 0; i < n; i++) {
        copies[i] = mem_string(arguments_nth(a, "stored", i), strlen(arguments_nth(a, "stored", i)));
        stored[i] = stored_read(copies[i], cluster ? cluster : "");
    }
    int status;
    if (learn_consumer_open(&c, config, stored, n, caught_up ? atoll(caught_up) : 0, NULL, &e)) {
        status = failed(&e);
    } else {
        say("cluster %s", learn_consumer_cluster(c));
        status = learn_loop(c, &e);
    }
    learn_consumer_close(c);
    for (size_t i = 0; i < n; i++) {
        free(copies[i]);
    }
    free(copies);
    free(stored);
    return status;
}

/* ---- what is done to topics ---- */

static int admin_open(struct kafka_client *client, const struct config *config)
{
    struct error e = {0};
    rd_kafka_conf_t *conf = config_kafka(config, CLIENT_PRODUCER, &e);
    if (!conf || kafka_client_open(client, config, CLIENT_PRODUCER, conf, "admin", NULL, &e)) {
        return failed(&e);
    }
    return 0;
}

static int deny(const struct config *config, const char *topic, bool take_back)
{
    struct kafka_client client = {0};
    char text[256] = "";
    if (admin_open(&client, config)) {
        return 1;
    }
    rd_kafka_AclBinding_t *acl = (take_back ? rd_kafka_AclBindingFilter_new : rd_kafka_AclBinding_new)(
        RD_KAFKA_RESOURCE_TOPIC, topic, RD_KAFKA_RESOURCE_PATTERN_LITERAL, "User:ANONYMOUS", "*",
        RD_KAFKA_ACL_OPERATION_WRITE, RD_KAFKA_ACL_PERMISSION_TYPE_DENY, text, sizeof text);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(client.rk);
    if (take_back) {
        rd_kafka_DeleteAcls(client.rk, &acl, 1, NULL, queue);
    } else {
        rd_kafka_CreateAcls(client.rk, &acl, 1, NULL, queue);
    }
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, 30000);
    say("%s %s", take_back ? "allowed" : "denied", rd_kafka_err2str(rd_kafka_event_error(event)));
    rd_kafka_event_destroy(event);
    rd_kafka_queue_destroy(queue);
    rd_kafka_AclBinding_destroy(acl);
    kafka_client_close(&client);
    return 0;
}

static int cut(const struct config *config, const struct arguments *a)
{
    struct kafka_client client = {0};
    if (admin_open(&client, config)) {
        return 1;
    }
    rd_kafka_topic_partition_list_t *before = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(before, arguments_positional(a, 1), atoi(arguments_positional(a, 2)))->offset =
        atoll(arguments_positional(a, 3));
    rd_kafka_DeleteRecords_t *records = rd_kafka_DeleteRecords_new(before);
    rd_kafka_queue_t *queue = rd_kafka_queue_new(client.rk);
    rd_kafka_DeleteRecords(client.rk, &records, 1, NULL, queue);
    rd_kafka_event_t *event = rd_kafka_queue_poll(queue, 30000);
    const rd_kafka_topic_partition_list_t *result =
        rd_kafka_DeleteRecords_result_offsets(rd_kafka_event_DeleteRecords_result(event));
    say("cut %s", rd_kafka_err2str(result->elems[0].err));
    rd_kafka_event_destroy(event);
    rd_kafka_queue_destroy(queue);
    rd_kafka_DeleteRecords_destroy(records);
    rd_kafka_topic_partition_list_destroy(before);
    kafka_client_close(&client);
    return 0;
}

/* ---- what is done to the group ---- */

enum { PARTITIONS = 6, ANSWER_MS = 10000, AGAIN_MS = 200 };

static int group_open(struct kafka_client *client, const struct config *config)
{
    struct error e = {0};
    rd_kafka_conf_t *conf = config_kafka(config, CLIENT_CONSUMER, &e);
    if (!conf || kafka_set(conf, "group.id", config->group, &e) ||
        kafka_client_open(client, config, CLIENT_CONSUMER, conf, "group", NULL, &e)) {
        return failed(&e);
    }
    return 0;
}

static int committed(const struct config *config)
{
    struct kafka_client client = {0};
    if (group_open(&client, config)) {
        return 1;
    }
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(PARTITIONS);
    rd_kafka_topic_partition_list_add_range(list, config->texts_topic, 0, PARTITIONS - 1);
    rd_kafka_resp_err_t err = rd_kafka_committed(client.rk, list, ANSWER_MS);
    for (int i = 0; i < list->cnt; i++) {
        const rd_kafka_topic_partition_t *at = &list->elems[i];
        say("committed %d %" PRId64 " %.*s", at->partition, at->offset, (int)at->metadata_size,
            at->metadata ? (const char *)at->metadata : "");
    }
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_consumer_close(client.rk);
    kafka_client_close(&client);
    return err ? 1 : 0;
}

static int commit(const struct config *config, const struct arguments *a)
{
    struct kafka_client client = {0};
    if (group_open(&client, config)) {
        return 1;
    }
    const char *metadata = arguments_positional(a, 3);
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_t *at =
        rd_kafka_topic_partition_list_add(list, config->texts_topic, atoi(arguments_positional(a, 1)));
    at->offset = atoll(arguments_positional(a, 2));
    at->metadata = mem_string(metadata, strlen(metadata));
    at->metadata_size = strlen(metadata);
    while (rd_kafka_commit(client.rk, list, 0)) { /* a static member keeps its place for a while after its end */
        clock_sleep_ms(AGAIN_MS);
    }
    say("commit ok");
    rd_kafka_topic_partition_list_destroy(list);
    rd_kafka_consumer_close(client.rk);
    kafka_client_close(&client);
    return 0;
}

int main(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *a = NULL;
    struct error e = {0};
    int status = 2;
    if (config_read(&command, argc - 1, argv + 1, &config, &a, &e)) {
        failed(&e);
    } else if (strcmp(arguments_positional(a, 0), "topics") == 0) {
        status = topics_ensure(&config, NULL, &e) ? failed(&e) : 0;
        if (!status) {
            say("ok");
        }
    } else if (strcmp(arguments_positional(a, 0), "tag") == 0) {
        status = tag(&config);
    } else if (strcmp(arguments_positional(a, 0), "committed") == 0) {
        status = committed(&config);
    } else if (strcmp(arguments_positional(a, 0), "commit") == 0) {
        status = commit(&config, a);
    } else if (strcmp(arguments_positional(a, 0), "cut") == 0) {
        status = cut(&config, a);
    } else if (strcmp(arguments_positional(a, 0), "deny") == 0 || strcmp(arguments_positional(a, 0), "allow") == 0) {
        status = deny(&config, arguments_positional(a, 1), *arguments_positional(a, 0) == 'a');
    } else {
        status = learn(&config, a);
    }
    arguments_free(a);
    config_free(&config);
    return status;
}
