/* The tag lane's consumer: a static member of the group over `texts`, one text a poll (the batch calls of
 * librdkafka 2.0.2 lose messages around rebalances), range assignor, offsets committed by hand. What may surprise:
 * resuming a partition that is not paused throws its prefetched messages away in librdkafka 2.0.2, so whether it is
 * paused is remembered here, pauses end before a partition is given back, and every assignment starts from absolute
 * offsets. And a client can be fenced by itself: when its session runs out while the coordinator is away, it forgets
 * its member id, and a commit that still waits is then sent without one, which brokers take for another process of the
 * same name. librdkafka declares that fatal, so another client takes over here, as it does where librdkafka does not
 * find the topic again (topic_back_check). The topic may be deleted and created again between two polls: each partition
 * keeps a mark (kafka/position.h), and a committed offset carries it, for a restart and for the partition's next owner.
 */
#include <librdkafka/rdkafka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "consumer/internal.h"

enum {
    COMMIT_STEP_MS = 100,
    SEEK_MS = 2000,
    LOOK_US = 3000000, /* how often a topic that librdkafka misses is looked for */
    LOOKS = 2,         /* so often seen in a row, it is there */
    FATAL_BYTES = 512, /* of librdkafka's words about a fatal error, terminated */
};

struct text_consumer {
    struct kafka_client *_Atomic client; /* the poll thread writes */
    struct kafka_client **retired;       /* destroyed at the end, for messages and other threads may still use them */
    size_t retired_count;                /* poll thread */
    const struct config *config;
    struct text_consumer_events events;
    char *topic;
    _Atomic bool joined;
    _Atomic uint64_t rebalances;
    _Atomic int uncommitted; /* why a commit waits, an rd_kafka_resp_err_t; 0: none. The committing thread writes */
    struct log_limit commit_limit;
    /* the poll thread's: */
    uint64_t epoch;     /* the last one given */
    bool check_now;     /* whether the topic is still the same */
    bool restart;       /* some partition is restarting */
    bool missing;       /* librdkafka said that the topic is not there, and neither assigned nor read anything since */
    unsigned looks;     /* in a row that saw it nevertheless */
    uint64_t looked_us; /* when it was last looked for */

    struct readings readings; /* partition i of the topic is list[i] */
};

static struct kafka_client *client_of(const struct text_consumer *c)
{
    return atomic_load(&c->client);
}

/* Why librdkafka gave the client up; 0: it did not. Any thread. */
static rd_kafka_resp_err_t fatal_ask(const struct kafka_client *client, char text[FATAL_BYTES])
{
    text[0] = '\0';
    return rd_kafka_fatal_error(client->rk, text, FATAL_BYTES);
}

/* ---- what is ours ---- */

static bool owned(const struct text_consumer *c, int32_t partition, uint64_t epoch) /* under the lock */
{
    return partition >= 0 && (size_t)partition < c->readings.count && epoch != 0 &&
           c->readings.list[partition].epoch == epoch;
}

bool text_consumer_owns(struct text_consumer *c, int32_t partition, uint64_t epoch)
{
    pthread_mutex_lock(&c->readings.lock);
    bool owns = owned(c, partition, epoch);
    pthread_mutex_unlock(&c->readings.lock);
    return owns;
}

static size_t assigned(struct text_consumer *c)
{
    size_t n = 0;
    pthread_mutex_lock(&c->readings.lock);
    for (size_t i = 0; i < c->readings.count; i++) {
        n += c->readings.list[i].epoch != 0;
    }
    pthread_mutex_unlock(&c->readings.lock);
    return n;
}

/* A partition as it is assigned: where it starts, and what its committed offset tells of the topic. */
static struct reading reading_begun(const struct text_consumer *c, const rd_kafka_topic_partition_t *at, bool doubted)
{
    struct reading p = {.topic = c->topic,
                        .partition = at->partition,
                        .epoch = c->epoch,
                        .position = at->offset < 0 ? -1 : at->offset,
                        .doubted = doubted};
    if (!position_read((struct slice){at->metadata, at->metadata_size}, &p.read)) {
        p.read = (struct read_position){0};
    }
    p.read.next = p.position > 0 ? p.position : 0;
    return p;
}

static void partitions_take(struct text_consumer *c, const rd_kafka_topic_partition_list_t *list)
{
    bool doubted = atomic_load(&client_of(c)->trouble) != 0;
    pthread_mutex_lock(&c->readings.lock);
    c->epoch++;
    for (int i = 0; i < list->cnt; i++) {
        size_t partition = (size_t)list->elems[i].partition;
        readings_grow(&c->readings, partition + 1);
        c->readings.list[partition] = reading_begun(c, &list->elems[i], doubted);
    }
    pthread_mutex_unlock(&c->readings.lock);
    c->check_now = true;
}

static void partitions_drop(struct text_consumer *c)
{
    pthread_mutex_lock(&c->readings.lock);
    for (size_t i = 0; i < c->readings.count; i++) {
        c->readings.list[i].epoch = 0;
        c->readings.list[i].doubted = false;
    }
    pthread_mutex_unlock(&c->readings.lock);
}

static struct reading *reading_of(struct text_consumer *c, int32_t partition) /* NULL: never ours */
{
    return partition >= 0 && (size_t)partition < c->readings.count ? &c->readings.list[partition] : NULL;
}

static void partition_answers(struct text_consumer *c, int32_t partition)
{
    c->missing = false;
    c->check_now = readings_answer(&c->readings, client_of(c), reading_of(c, partition)) || c->check_now;
}

/* The end of a partition was met. */
static void end_taken(struct text_consumer *c, int32_t partition, int64_t offset)
{
    struct reading *p = reading_of(c, partition);
    if (p && !p->restarting) {
        c->check_now = !reading_end(&c->readings, p, offset) || c->check_now; /* an end before what was read */
        pthread_mutex_lock(&c->readings.lock);
        p->read.next = p->position > 0 ? p->position : 0;
        pthread_mutex_unlock(&c->readings.lock);
    }
}

/* A text was read. False: it is to be dropped: its partition is not ours, or about to be read from its beginning. */
static bool text_taken(struct text_consumer *c, struct consumed *text)
{
    struct reading *p = reading_of(c, text->partition);
    if (!p || p->restarting) {
        return false;
    }
    text->epoch = p->epoch;
    c->check_now =
        !reading_take(&c->readings, p, text) || c->check_now; /* librdkafka was sent back to the log's start */
    return true;
}

/* ---- is it still the same topic? ---- */

/* Where one partition is another topic's, so are those that cannot tell. True: it is to be read from its beginning. */
static bool check_take(struct text_consumer *c, const struct position_check *check, bool any_broken)
{
    struct reading *p = check->reading;
    bool restart = check->verdict == POSITION_BROKEN || (check->verdict == POSITION_UNPROVED && any_broken);
    if (restart) {
        pthread_mutex_lock(&c->readings.lock);
        *p = (struct reading){.topic = p->topic,
                              .partition = p->partition,
                              .epoch = ++c->epoch,
                              .position = check->low,
                              .restarting = true,
                              .read.next = check->low};
        pthread_mutex_unlock(&c->readings.lock);
    } else if (check->verdict != POSITION_UNASKED) {
        reading_renew(&c->readings, check);
    }
    return restart;
}

/* What came before is nobody's any more: text_consumer_owns says so by its epoch, and no commit speaks of it. */
static void partitions_restart(struct text_consumer *c)
{
    /* seeking what is paused does not survive its end in every librdkafka */
    if (!c->restart || text_consumer_paused(c)) {
        return;
    }
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    for (size_t i = 0; i < c->readings.count; i++) {
        const struct reading *p = &c->readings.list[i];
        if (p->epoch && p->restarting) {
            rd_kafka_topic_partition_list_add(list, p->topic, p->partition)->offset = p->position;
        }
    }
    rd_kafka_error_t *error = list->cnt ? rd_kafka_seek_partitions(client_of(c)->rk, list, SEEK_MS) : NULL;
    c->restart = error != NULL; /* the next poll tries again */
    pthread_mutex_lock(&c->readings.lock);
    for (int i = 0; i < list->cnt && !error; i++) {
        bool failed = list->elems[i].err != 0;
        c->readings.list[list->elems[i].partition].restarting = failed;
        c->restart = c->restart || failed;
    }
    pthread_mutex_unlock(&c->readings.lock);
    if (error) {
        rd_kafka_error_destroy(error);
    }
    rd_kafka_topic_partition_list_destroy(list);
}

static void positions_check_due(struct text_consumer *c)
{
    struct position_check *checks = NULL;
    bool broken = false;
    int restarts = 0;
    if ((!c->check_now && !readings_check_due(&c->readings)) || !c->readings.count) {
        return;
    }
    c->check_now = false;
    size_t n = readings_check(&c->readings, NULL, &checks);
    for (size_t i = 0; i < n; i++) {
        broken = broken || checks[i].verdict == POSITION_BROKEN;
    }
    for (size_t i = 0; i < n; i++) {
        restarts += check_take(c, &checks[i], broken);
    }
    free(checks);
    if (restarts) {
        log_warn("texts: topic '%s' was deleted and created again, or cut: reading %d partition%s from the beginning",
                 c->topic, restarts, restarts == 1 ? "" : "s");
        c->restart = true;
    }
}

/* ---- rebalances: on the poll thread, inside poll or close ---- */

static void assign(struct text_consumer *c, rd_kafka_topic_partition_list_t *list)
{
    struct kafka_client *client = client_of(c);
    bool first = !atomic_load(&c->rebalances);
    text_starts(client, c->topic, first && c->config->start_from == START_LATEST, list);
    rd_kafka_resp_err_t err = rd_kafka_assign(client->rk, list);
    if (err) {
        log_warn("texts: assignment: %s", rd_kafka_err2str(err));
        return;
    }
    partitions_take(c, list);
    c->missing = false;
    atomic_store(&client->expired, false);
    atomic_store(&c->joined, true);
    atomic_fetch_add(&c->rebalances, 1);
    if (!list->cnt) {
        kafka_client_works(client); /* what was wrong with partitions is another replica's to tell */
    }
    if (text_consumer_paused(c) && list->cnt) {
        rd_kafka_pause_partitions(client->rk, list);
    }
    log_info("texts: %d partition%s of %s assigned", list->cnt, list->cnt == 1 ? "" : "s", c->topic);
}

static void revoke(struct text_consumer *c, rd_kafka_topic_partition_list_t *list)
{
    struct kafka_client *client = client_of(c);
    rd_kafka_t *rk = client->rk;
    char text[FATAL_BYTES];
    bool lost = rd_kafka_assignment_lost(rk) != 0;
    bool any = assigned(c) > 0;
    if (lost) {
        if (!fatal_ask(client, text)) { /* fenced by another process, it is given up before */
            atomic_store(&client->expired, true);
        }
        atomic_store(&c->joined, false);
        partitions_drop(c);
    }
    if (any && c->events.revoked) {
        c->events.revoked(c->events.context, lost);
    }
    partitions_drop(c);
    if (text_consumer_paused(c) && list->cnt) {
        rd_kafka_resume_partitions(rk, list);
    }
    rd_kafka_assign(rk, NULL);
    if (any) {
        log_info("texts: partitions %s", lost ? "lost" : "given back");
    }
}

static void rebalance(rd_kafka_t *rk, rd_kafka_resp_err_t err, rd_kafka_topic_partition_list_t *list, void *opaque)
{
    (void)rk;
    struct kafka_client *client = opaque;
    if (err == RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS) {
        assign(client->owner, list);
    } else {
        revoke(client->owner, list);
    }
}

/* ---- opening and closing ---- */

static rd_kafka_conf_t *text_configure(struct text_consumer *c, struct error *e)
{
    struct buffer member = {0};
    buffer_format(&member, "%s-%s", c->config->group, c->config->instance_id);
    rd_kafka_conf_t *conf = kafka_consumer_configure(c->config, NULL, "earliest", e);
    if (conf && (kafka_set(conf, "group.instance.id", member.data, e) ||
                 kafka_set(conf, "partition.assignment.strategy", "range", e))) {
        rd_kafka_conf_destroy(conf);
        conf = NULL;
    }
    if (conf) {
        rd_kafka_conf_set_rebalance_cb(conf, rebalance);
    }
    buffer_free(&member);
    return conf;
}

static int client_open(struct text_consumer *c, struct error *e)
{
    rd_kafka_conf_t *conf = text_configure(c, e);
    struct kafka_client *client = conf ? mem_zero(1, sizeof *client) : NULL;
    if (!conf || kafka_client_open(client, c->config, CLIENT_CONSUMER, conf, "texts", c, e)) {
        free(client);
        return -1;
    }
    atomic_store(&c->client, client);
    return 0;
}

int text_consumer_open(struct text_consumer **out, const struct config *config,
                       const struct text_consumer_events *events, struct error *e)
{
    struct text_consumer *c = mem_zero(1, sizeof *c);
    *out = NULL;
    c->config = config;
    c->events = events ? *events : (struct text_consumer_events){0};
    c->topic = mem_string(config->texts_topic, strlen(config->texts_topic));
    readings_open(&c->readings, config);
    if (client_open(c, e)) {
        text_consumer_close(c);
        return -1;
    }
    *out = c;
    return 0;
}

int text_consumer_subscribe(struct text_consumer *c, struct error *e)
{
    rd_kafka_topic_partition_list_t *topics = rd_kafka_topic_partition_list_new(1);
    rd_kafka_topic_partition_list_add(topics, c->topic, RD_KAFKA_PARTITION_UA);
    rd_kafka_resp_err_t err = rd_kafka_subscribe(client_of(c)->rk, topics);
    rd_kafka_topic_partition_list_destroy(topics);
    if (err) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "subscribing to %s: %s", c->topic, rd_kafka_err2str(err));
    }
    return 0;
}

/* librdkafka closes no client that it gave up: its threads live on until it is destroyed, and must not speak. */
static void client_retire(struct text_consumer *c, struct kafka_client *client)
{
    rd_kafka_set_log_level(client->rk, 0);
    c->retired = mem_resize(c->retired, (c->retired_count + 1) * sizeof *c->retired);
    c->retired[c->retired_count++] = client;
}

void text_consumer_close(struct text_consumer *c)
{
    if (!c) {
        return;
    }
    struct kafka_client *client = client_of(c);
    if (client) {
        rd_kafka_consumer_close(client->rk);
        client_retire(c, client);
    }
    for (size_t i = 0; i < c->retired_count; i++) {
        kafka_client_close(c->retired[i]);
        free(c->retired[i]);
    }
    free(c->retired);
    readings_close(&c->readings);
    free(c->topic);
    free(c);
}

/* ---- polling ---- */

static int fatal(const struct text_consumer *c, rd_kafka_resp_err_t err, const char *text, struct error *e)
{
    if (err == RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID) {
        return error_set(e, ERROR_FATAL, E_FENCED,
                         "the same instance_id runs elsewhere: '%s' in group '%s'. Give each replica its own "
                         "(--instance-id)",
                         c->config->instance_id, c->config->group);
    }
    return error_set(e, ERROR_FATAL, E_INTERNAL, "texts: %s", text);
}

/* The client is replaced by another one, which joins the group. */
static int client_renew(struct text_consumer *c, struct error *e)
{
    struct kafka_client *old = client_of(c);
    c->missing = false;
    atomic_store(&c->joined, false);
    rd_kafka_consumer_close(old->rk);
    if (assigned(c) > 0) {
        partitions_drop(c);
        if (c->events.revoked) {
            c->events.revoked(c->events.context, true);
        }
    }
    if (client_open(c, e)) {
        return -1;
    }
    client_retire(c, old);
    return text_consumer_subscribe(c, e);
}

/* What follows from that: the poll thread's. */
static int fatal_act(struct text_consumer *c, struct error *e)
{
    char text[FATAL_BYTES];
    struct kafka_client *client = client_of(c);
    rd_kafka_resp_err_t err = fatal_ask(client, text);
    if (err == RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID && atomic_load(&client->expired)) {
        log_info("texts: the session in the group ran out while its coordinator was away: joining again");
        return client_renew(c, e);
    }
    return err ? fatal(c, err, text, e) : 0;
}

/* librdkafka 2.4 and later, 2.8 too, can lose sight of a topic that was created again (its issue 4964: an entry of its
 * cache is freed but not removed, and each new one is taken for it and removed). The client then asks for the topic
 * without end and believes no answer; subscribing again does not help. So it is replaced when it missed the topic and
 * was assigned nothing since, not even an empty list as a replica with nothing to do is, while the prober's client sees
 * it. One that only waits, for its next look or for others to join, loses nothing by joining again. */
static int topic_back_check(struct text_consumer *c, struct error *e)
{
    if (!c->missing || clock_us() - c->looked_us < LOOK_US || assigned(c) > 0) {
        return 0;
    }
    c->looks = readings_topic_seen(&c->readings, c->topic) ? c->looks + 1 : 0;
    c->looked_us = clock_us();
    if (c->looks < LOOKS) {
        return 0;
    }
    log_info("texts: topic '%s' is there again: joining again", c->topic);
    return client_renew(c, e);
}

/* What poll hands out beside messages: ends, and trouble that librdkafka goes on trying to overcome. */
static void poll_event(struct text_consumer *c, const rd_kafka_message_t *m)
{
    struct kafka_client *client = client_of(c);
    if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        partition_answers(c, m->partition);
        end_taken(c, m->partition, m->offset);
    } else if (m->err == RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED) {
        kafka_client_trouble_with(client, m->err, READ_GROUP, c->config->group, "");
    } else if (m->err != RD_KAFKA_RESP_ERR__FATAL) {
        if (m->err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART && !c->missing) {
            c->missing = true;
            c->looks = 0;
        }
        kafka_client_trouble_with(client, m->err, READ_TOPIC, c->topic, rd_kafka_message_errstr(m));
    }
}

int text_consumer_poll(struct text_consumer *c, int timeout_ms, struct consumed **out, struct error *e)
{
    *out = NULL;
    positions_check_due(c);
    partitions_restart(c);
    rd_kafka_message_t *m = readings_poll(&c->readings, client_of(c), timeout_ms);
    if (m && !m->err) {
        partition_answers(c, m->partition);
        struct consumed *text = consumed_new(m, FROM_TEXTS, c->topic, 0);
        if (text_taken(c, text)) {
            *out = text;
            return 1;
        }
        consumed_free(text);
        return 0;
    }
    if (m) {
        poll_event(c, m);
        rd_kafka_message_destroy(m);
    }
    readings_refetch(&c->readings, client_of(c));
    return fatal_act(c, e) || topic_back_check(c, e) ? -1 : 0;
}

void text_consumer_pause(struct text_consumer *c)
{
    readings_pause(&c->readings, client_of(c), true);
}

void text_consumer_resume(struct text_consumer *c)
{
    readings_pause(&c->readings, client_of(c), false);
}

bool text_consumer_paused(const struct text_consumer *c)
{
    return atomic_load(&c->readings.paused);
}

/* ---- committing: the publisher's thread ---- */

/* The partition's mark goes along in the offset's metadata: one that held, for the text before the offset may be
 * another topic's already. False: the offset is not ours to commit any more. */
static bool commit_mark(struct text_consumer *c, const struct partition_offset *offset, struct buffer *line)
{
    struct read_position read = {0};
    pthread_mutex_lock(&c->readings.lock);
    bool owns = owned(c, offset->partition, offset->epoch);
    if (owns) {
        read = c->readings.list[offset->partition].read;
    }
    pthread_mutex_unlock(&c->readings.lock);
    if (record_mark_known(&read.mark)) {
        position_write(&read, line);
    }
    return owns;
}

static rd_kafka_topic_partition_list_t *commit_list(struct text_consumer *c, const struct partition_offset *offsets,
                                                    size_t n)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new((int)n);
    for (size_t i = 0; i < n; i++) {
        struct buffer line = {0};
        if (commit_mark(c, &offsets[i], &line)) {
            rd_kafka_topic_partition_t *at = rd_kafka_topic_partition_list_add(list, c->topic, offsets[i].partition);
            at->offset = offsets[i].next;
            at->metadata = line.data; /* freed with the list */
            at->metadata_size = line.bytes;
        }
    }
    return list;
}

/* Each commit has a queue of its own: the answer to one that was given up must not be taken for the next one's. */
static rd_kafka_resp_err_t commit_once(const struct text_consumer *c, struct kafka_client *client,
                                       const rd_kafka_topic_partition_list_t *list, const struct kafka_wait *wait)
{
    rd_kafka_queue_t *answers = rd_kafka_queue_new(client->rk);
    rd_kafka_resp_err_t err = rd_kafka_commit_queue(client->rk, list, answers, NULL, NULL);
    rd_kafka_event_t *event = NULL;
    while (!err && !event) {
        event = rd_kafka_queue_poll(answers, COMMIT_STEP_MS);
        if (!event && client != client_of(c)) {
            err = RD_KAFKA_RESP_ERR__ASSIGNMENT_LOST; /* it was replaced: no answer may come */
        } else if (!event && !kafka_wait_go_on(wait)) {
            err = RD_KAFKA_RESP_ERR__TIMED_OUT;
        }
    }
    if (event) {
        err = rd_kafka_event_error(event);
        const rd_kafka_topic_partition_list_t *each = rd_kafka_event_topic_partition_list(event);
        for (int i = 0; !err && each && i < each->cnt; i++) {
            err = each->elems[i].err;
        }
        rd_kafka_event_destroy(event);
    }
    rd_kafka_queue_destroy(answers);
    return err;
}

/* The group went on without us: what we had is somebody else's now, who starts at the last commit. */
static bool not_ours(rd_kafka_resp_err_t err)
{
    return err == RD_KAFKA_RESP_ERR_ILLEGAL_GENERATION || err == RD_KAFKA_RESP_ERR_UNKNOWN_MEMBER_ID ||
           err == RD_KAFKA_RESP_ERR_REBALANCE_IN_PROGRESS || err == RD_KAFKA_RESP_ERR__ASSIGNMENT_LOST;
}

/* Why a commit does not work, in words that go on: "texts: offsets are not committed: ...". */
static void uncommitted_words(const struct text_consumer *c, int err, struct buffer *out)
{
    bool group = err == RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED;
    buffer_string(out, "texts: offsets are not committed: ");
    if (group || err == RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED) {
        kafka_trouble_words(err, group ? READ_GROUP : READ_TOPIC, group ? c->config->group : c->topic, "", out);
    } else {
        buffer_string(out, rd_kafka_err2str((rd_kafka_resp_err_t)err));
    }
}

/* The client is of no more use. Whether another one takes over is the poll thread's to see; here it only matters that
 * what a session held that ran out is not ours any more. */
static int commit_ended(const struct text_consumer *c, const struct kafka_client *client, rd_kafka_resp_err_t err,
                        struct error *e)
{
    char text[FATAL_BYTES];
    rd_kafka_resp_err_t cause = fatal_ask(client, text);
    if (atomic_load(&client->expired)) {
        return 0;
    }
    return cause ? fatal(c, cause, text, e) : fatal(c, err, rd_kafka_err2str(err), e);
}

static int commit_until_taken(struct text_consumer *c, const struct partition_offset *offsets, size_t n,
                              const struct kafka_wait *wait, struct error *e)
{
    for (bool told = false;;) {
        struct kafka_client *client = client_of(c);
        rd_kafka_topic_partition_list_t *list = commit_list(c, offsets, n);
        bool ours = list->cnt > 0;
        rd_kafka_resp_err_t err = ours ? commit_once(c, client, list, wait) : RD_KAFKA_RESP_ERR_NO_ERROR;
        rd_kafka_topic_partition_list_destroy(list);
        if (err == RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID || err == RD_KAFKA_RESP_ERR__FATAL) {
            return commit_ended(c, client, err, e); /* no later commit of this client could succeed */
        }
        if (told && !err && ours) {
            log_info("texts: offsets are committed again");
        }
        if (!err || not_ours(err)) {
            return 0;
        }
        if (!atomic_exchange(&c->uncommitted, (int)err)) {
            kafka_trouble_count();
        }
        if (!told) { /* apart from the client's trouble, which each text that comes ends */
            struct buffer words = {0};
            uncommitted_words(c, err, &words);
            told = log_limited(&c->commit_limit, LOG_LEVEL_WARN, "%s: trying on", words.data);
            buffer_free(&words);
        }
        if (!kafka_wait_go_on(wait)) {
            return error_set(e, ERROR_RETRY, E_BROKER, "offsets of %s are not committed: %s", c->topic,
                             rd_kafka_err2str(err));
        }
        clock_sleep_ms(COMMIT_STEP_MS);
    }
}

static int commit(void *consumer, const struct partition_offset *offsets, size_t n, const struct kafka_wait *wait,
                  struct error *e)
{
    struct text_consumer *c = consumer;
    int result = commit_until_taken(c, offsets, n, wait, e);
    atomic_store(&c->uncommitted, 0);
    return result;
}

struct committer text_consumer_committer(struct text_consumer *c)
{
    return (struct committer){commit, c};
}

/* ---- where it stands: any thread ---- */

ssize_t text_consumer_lags(struct text_consumer *c, struct partition_lag **out, int timeout_ms)
{
    return readings_lags(&c->readings, client_of(c), out, timeout_ms);
}

int64_t text_consumer_lag(struct text_consumer *c, int timeout_ms)
{
    struct partition_lag *lags = NULL;
    ssize_t count = text_consumer_lags(c, &lags, timeout_ms);
    int64_t sum = count < 0 ? -1 : 0;
    for (ssize_t i = 0; i < count; i++) {
        sum += lags[i].lag;
    }
    free(lags);
    return sum;
}

struct consumer_status text_consumer_status(struct text_consumer *c)
{
    struct consumer_status status = {
        .joined = atomic_load(&c->joined),
        .paused = text_consumer_paused(c),
        .assigned = assigned(c),
        .rebalances = atomic_load(&c->rebalances),
    };
    int uncommitted = atomic_load(&c->uncommitted);
    if (!kafka_client_troubled(client_of(c), status.trouble) && uncommitted) {
        struct buffer words = {0};
        uncommitted_words(c, uncommitted, &words);
        snprintf(status.trouble, sizeof status.trouble, "%s", words.data);
        buffer_free(&words);
    }
    return status;
}
