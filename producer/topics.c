/* The five topics: created where they are missing and that is allowed, then looked at until every partition has a
 * leader. What may surprise: several replicas may start at once and all create; who comes second is told that the topic
 * exists, which is what it wanted. */
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "producer/internal.h"

enum {
    TEXTS,
    PREDICTIONS,
    DEAD_LETTERS,
    INSTANCES,
    LABELS,
    TOPICS,
    ASK_MS = 5000,
    CREATE_MS = 15000,
    PAUSE_MS = 200,
    HIDDEN_ROUNDS = 25, /* each of a pause at least */
};

#define RIGHTS "the right READ on texts, instances and labels, WRITE on predictions and dead letters"

#define COMPACTION_DELETE_RETENTION "604800000" /* 7 days: how long a replica may be away */

static void topics_name(const struct config *config, struct kafka_topic *topics)
{
    topics[TEXTS].name = config->texts_topic;
    topics[PREDICTIONS].name = config->predictions_topic;
    topics[DEAD_LETTERS].name = config->dead_letters_topic;
    topics[INSTANCES].name = config->instances_topic;
    topics[LABELS].name = config->labels_topic;
}

static int names_differ(const struct kafka_topic *topics, struct error *e)
{
    for (int i = 0; i < TOPICS; i++) {
        for (int j = 0; j < i; j++) {
            if (strcmp(topics[i].name, topics[j].name) == 0) {
                return error_set(e, ERROR_FATAL, E_USAGE, "two of the five topics have the name '%s'", topics[i].name);
            }
        }
    }
    return 0;
}

/* ---- creating ---- */

static rd_kafka_NewTopic_t *topic_plan(const struct config *config, const struct kafka_topic *topics, int which,
                                       struct error *e)
{
    char text[256] = "";
    char number[32];
    bool compacted = which == INSTANCES || which == LABELS;
    int partitions = compacted ? 1 : (int)config->topic_partitions;
    rd_kafka_NewTopic_t *plan =
        rd_kafka_NewTopic_new(topics[which].name, partitions, (int)config->topic_replication, text, sizeof text);
    if (!plan) {
        error_set(e, ERROR_FATAL, E_TOPIC, "topic '%s' cannot be created: %s", topics[which].name, text);
        return NULL;
    }
    snprintf(number, sizeof number, "%d", MESSAGE_BYTES_MAX);
    rd_kafka_NewTopic_set_config(plan, "max.message.bytes", number);
    if (compacted) {
        rd_kafka_NewTopic_set_config(plan, "cleanup.policy", "compact");
        rd_kafka_NewTopic_set_config(plan, "delete.retention.ms", COMPACTION_DELETE_RETENTION);
    } else if (which == DEAD_LETTERS) {
        rd_kafka_NewTopic_set_config(plan, "retention.ms", "-1");
    } else if (which == PREDICTIONS && topics[TEXTS].configured) {
        snprintf(number, sizeof number, "%lld", (long long)topics[TEXTS].retention_ms);
        rd_kafka_NewTopic_set_config(plan, "retention.ms", number);
    }
    return plan;
}

/* Brokers that are still starting: one that is not yet part of the cluster takes no replica. */
static bool created_later(rd_kafka_resp_err_t err)
{
    return err == RD_KAFKA_RESP_ERR_NOT_CONTROLLER || err == RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT ||
           err == RD_KAFKA_RESP_ERR_COORDINATOR_LOAD_IN_PROGRESS ||
           err == RD_KAFKA_RESP_ERR_INVALID_REPLICATION_FACTOR || err == RD_KAFKA_RESP_ERR_THROTTLING_QUOTA_EXCEEDED;
}

static void trouble_creating(struct kafka_client *client, rd_kafka_resp_err_t err, const char *name, const char *reason)
{
    struct buffer words = {0};
    buffer_format(&words, "topic '%s' is not created yet: %s", name, reason ? reason : rd_kafka_err2str(err));
    kafka_client_trouble(client, err, words.data);
    buffer_free(&words);
}

/* What the controller says of each topic. RETRY: not decided yet, look again; with E_TOPIC one exists already. */
static int create_result(struct kafka_client *client, rd_kafka_event_t *event, struct error *e)
{
    size_t count = 0;
    int result = 0;
    rd_kafka_resp_err_t err = event ? rd_kafka_event_error(event) : RD_KAFKA_RESP_ERR__TIMED_OUT;
    if (err) {
        return error_set(e, ERROR_RETRY, E_BROKER, "topics are not created: %s", rd_kafka_err2str(err));
    }
    const rd_kafka_topic_result_t **results =
        rd_kafka_CreateTopics_result_topics(rd_kafka_event_CreateTopics_result(event), &count);
    for (size_t i = 0; i < count; i++) {
        const char *name = rd_kafka_topic_result_name(results[i]);
        const char *reason = rd_kafka_topic_result_error_string(results[i]);
        err = rd_kafka_topic_result_error(results[i]);
        if (!err) {
            log_info("topic '%s' created", name);
        } else if (created_later(err)) {
            trouble_creating(client, err, name, reason);
        } else if (err == RD_KAFKA_RESP_ERR_TOPIC_ALREADY_EXISTS) {
            result = error_set(e, ERROR_RETRY, E_TOPIC,
                               "topic '%s' exists and may not be seen: give the stage's Kafka user " RIGHTS, name);
        } else if (err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED ||
                   err == RD_KAFKA_RESP_ERR_CLUSTER_AUTHORIZATION_FAILED) {
            return error_set(e, ERROR_FATAL, E_TOPIC,
                             "topic '%s' is not there or may not be seen, and may not be created: create it, and give "
                             "the stage's Kafka user " RIGHTS,
                             name);
        } else {
            return error_set(e, ERROR_FATAL, E_TOPIC, "topic '%s' cannot be created: %s", name,
                             reason ? reason : rd_kafka_err2str(err));
        }
    }
    return result;
}

static int topics_create(struct kafka_client *client, const struct config *config, const struct kafka_topic *topics,
                         struct error *e)
{
    rd_kafka_NewTopic_t *plans[TOPICS];
    size_t count = 0;
    int result = 0;
    rd_kafka_queue_t *queue = rd_kafka_queue_new(client->rk);
    rd_kafka_event_t *event = NULL;
    for (int i = 0; i < TOPICS; i++) {
        if (topics[i].partitions == 0) {
            plans[count] = topic_plan(config, topics, i, e);
            if (!plans[count]) {
                result = -1;
                goto done;
            }
            count++;
        }
    }
    if (count) {
        rd_kafka_CreateTopics(client->rk, plans, count, NULL, queue);
        event = rd_kafka_queue_poll(queue, CREATE_MS);
        result = create_result(client, event, e);
    }
done:
    if (event) {
        rd_kafka_event_destroy(event);
    }
    rd_kafka_queue_destroy(queue);
    rd_kafka_NewTopic_destroy_array(plans, count);
    return result;
}

/* ---- looking ---- */

static void warn_retention(const struct kafka_topic *topics)
{
    const struct kafka_topic *texts = &topics[TEXTS], *predictions = &topics[PREDICTIONS];
    if (texts->configured && predictions->configured && predictions->retention_ms >= 0 &&
        (texts->retention_ms < 0 || predictions->retention_ms < texts->retention_ms)) {
        log_warn("topic '%s' keeps its records for %.1f hours, less than topic '%s': predictions of old texts may be "
                 "deleted at once. Raise its retention.ms",
                 predictions->name, (double)predictions->retention_ms / 3.6e6, texts->name);
    }
}

/* One round. 1: all is there; 0: look again; -1: FATAL. */
static int topics_look(struct kafka_client *client, const struct config *config, struct kafka_topic *topics,
                       int *hidden, struct error *e)
{
    struct error reason;
    if (kafka_topics_describe(client, topics, TOPICS, true, ASK_MS, &reason)) {
        kafka_client_trouble(client, RD_KAFKA_RESP_ERR__TIMED_OUT, reason.text);
        return 0;
    }
    bool missing = false, led = true;
    for (int i = 0; i < TOPICS; i++) {
        if (topics[i].partitions == 0 && !config->create_topics) {
            return error_set(e, ERROR_FATAL, E_TOPIC,
                             "topic '%s' does not exist: create it, or set create_topics = true. If it does, the "
                             "stage's Kafka user may not see it: give it " RIGHTS,
                             topics[i].name);
        }
        missing = missing || topics[i].partitions == 0;
        led = led && topics[i].led;
    }
    if (missing && topics_create(client, config, topics, &reason)) {
        *hidden += reason.code == E_TOPIC; /* another replica has just made it, or it is hidden from us */
        if (reason.kind != ERROR_RETRY) {
            return error_set(e, reason.kind, reason.code, "%s", reason.text);
        }
        if (reason.code != E_TOPIC) {
            kafka_client_trouble(client, RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT, reason.text);
        } else if (*hidden > HIDDEN_ROUNDS) {
            kafka_client_trouble(client, RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED, reason.text);
        }
    }
    if (missing || !led) {
        return 0;
    }
    kafka_client_works(client);
    return 1;
}

int topics_ensure(const struct config *config, const struct kafka_wait *wait, struct error *e)
{
    struct kafka_topic topics[TOPICS] = {{0}};
    struct kafka_client client = {0};
    int result = -1, seen = 0, hidden = 0;
    topics_name(config, topics);
    rd_kafka_conf_t *conf = NULL;
    if (names_differ(topics, e) || !(conf = config_kafka(config, CLIENT_PRODUCER, e)) ||
        kafka_client_open(&client, config, CLIENT_PRODUCER, conf, "topics", NULL, e) ||
        kafka_client_connect(&client, wait, NULL, e)) {
        goto done;
    }
    while ((seen = topics_look(&client, config, topics, &hidden, e)) == 0) {
        rd_kafka_poll(client.rk, PAUSE_MS);
        if (!kafka_wait_go_on(wait)) {
            error_set(e, ERROR_RETRY, E_BROKER, "the topics do not exist yet: %s did not answer in time",
                      client.brokers);
            goto done;
        }
    }
    if (seen == 1) {
        warn_retention(topics);
        result = 0;
    }
done:
    kafka_client_close(&client);
    return result;
}
