/* The tag lane's consumer: a static member of the group over `texts`, one text a poll (the batch calls of
 * librdkafka 2.0.2 lose messages around rebalances), range assignor, offsets committed by hand. What may surprise:
 * resuming a partition that is not paused throws its prefetched messages away in librdkafka 2.0.2, so whether it is
 * paused is remembered here, pauses end before a partition is given back, and every assignment starts from absolute
 * offsets. And a client can be fenced by itself: when its session runs out while the coordinator is away, it forgets
 * its member id, and a commit that still waits is then sent without one, which brokers take for another process of the
 * same name. librdkafka declares that fatal, so another client takes over here, as it does where librdkafka does not
 * find the topic again (topic_back_check). The topic may be deleted and created again between two polls: each partition
 * keeps a mark (position.c), and a committed offset carries it, for a restart and for the partition's next owner. */
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
    CHECK_MS = 2000,
    CHECK_US = 5000000, /* how often it is asked whether the topic is still the same */
    SEEK_MS = 2000,
    LOOK_US = 3000000, /* how often a topic that librdkafka misses is looked for */
    LOOKS = 2,         /* so often seen in a row, it is there */
    FATAL_BYTES = 512, /* of librdkafka's words about a fatal error, terminated */
};

struct text_partition {
    uint64_t epoch;            /* of the present assignment; 0: not ours */
    int64_t position;          /* next offset to read; -1: not known yet */
    bool doubted;              /* trouble came, and nothing from here since */
    bool restarting;           /* to be read from its beginning: what still comes is dropped until then */
    struct read_position read; /* by what the topic is known again: it held, or is the first text; next is position's */
    struct record_mark last;   /* of the text read last */
};

struct text_consumer {
    struct kafka_client *_Atomic client;
    struct kafka_client **retired; /* closed; destroyed at the end, for messages and other threads may still use them */
    size_t retired_count;          /* poll thread */
    const struct config *config;
    struct text_consumer_events events;
    char *topic;
    _Atomic bool paused; /* the poll thread writes */
    _Atomic bool joined;
    _Atomic uint64_t rebalances;
    _Atomic int uncommitted; /* why a commit waits, an rd_kafka_resp_err_t; 0: none. The committing thread writes */
    struct log_limit commit_limit;
    /* the poll thread's: */
    uint64_t epoch;    /* the last one given */
    unsigned troubles; /* the client's, as far as they led to doubt */
    struct prober *prober;
    uint64_t checked_us; /* when the topic was last checked */
    bool check_now;
    bool restart;       /* some partition is restarting */
    bool missing;       /* librdkafka said that the topic is not there, and neither assigned nor read anything since */
    unsigned looks;     /* in a row that saw it nevertheless */
    uint64_t looked_us; /* when it was last looked for */

    pthread_mutex_t lock; /* covers what is below */
    struct text_partition *partitions;
    size_t partitions_count;
};

/* ---- what is ours ---- */

static bool owned(const struct text_consumer *c, int32_t partition, uint64_t epoch) /* under the lock */
{
    return partition >= 0 && (size_t)partition < c->partitions_count && epoch != 0 &&
           c->partitions[partition].epoch == epoch;
}

bool text_consumer_owns(struct text_consumer *c, int32_t partition, uint64_t epoch)
{
    pthread_mutex_lock(&c->lock);
    bool owns = owned(c, partition, epoch);
    pthread_mutex_unlock(&c->lock);
    return owns;
}

size_t text_consumer_assigned(struct text_consumer *c)
{
    size_t n = 0;
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < c->partitions_count; i++) {
        n += c->partitions[i].epoch != 0;
    }
    pthread_mutex_unlock(&c->lock);
    return n;
}

/* A partition as it is assigned: where it starts, and what its committed offset tells of the topic. */
static struct text_partition partition_begun(uint64_t epoch, const rd_kafka_topic_partition_t *at, bool doubted)
{
    struct text_partition p = {.epoch = epoch, .position = at->offset < 0 ? -1 : at->offset, .doubted = doubted};
    if (!position_read((struct slice){at->metadata, at->metadata_size}, &p.read)) {
        p.read = (struct read_position){0};
    }
    return p;
}

static void partitions_take(struct text_consumer *c, const rd_kafka_topic_partition_list_t *list)
{
    bool doubted = atomic_load(&c->client->trouble) != 0;
    pthread_mutex_lock(&c->lock);
    c->epoch++;
    for (int i = 0; i < list->cnt; i++) {
        size_t partition = (size_t)list->elems[i].partition;
        if (partition >= c->partitions_count) {
            c->partitions = mem_resize(c->partitions, (partition + 1) * sizeof *c->partitions);
            memset(c->partitions + c->partitions_count, 0,
                   (partition + 1 - c->partitions_count) * sizeof *c->partitions);
            c->partitions_count = partition + 1;
        }
        c->partitions[partition] = partition_begun(c->epoch, &list->elems[i], doubted);
    }
    pthread_mutex_unlock(&c->lock);
    c->check_now = true;
}

static void partitions_drop(struct text_consumer *c)
{
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < c->partitions_count; i++) {
        c->partitions[i].epoch = 0;
        c->partitions[i].doubted = false;
    }
    pthread_mutex_unlock(&c->lock);
}

/* Trouble may be any partition's, for not every error names one: it is over when something came from each. */
static void partitions_doubt(struct text_consumer *c)
{
    unsigned troubles = atomic_load(&c->client->troubles);
    if (troubles == c->troubles) {
        return;
    }
    c->troubles = troubles;
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < c->partitions_count; i++) {
        c->partitions[i].doubted = c->partitions[i].epoch != 0;
    }
    pthread_mutex_unlock(&c->lock);
}

static void partition_works(struct text_consumer *c, int32_t partition)
{
    bool doubts = false;
    c->missing = false;
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < c->partitions_count; i++) {
        struct text_partition *p = &c->partitions[i];
        c->check_now = c->check_now || (p->doubted && partition == (int32_t)i);
        p->doubted = p->doubted && partition != (int32_t)i;
        doubts = doubts || p->doubted;
    }
    pthread_mutex_unlock(&c->lock);
    if (!doubts) {
        kafka_client_works(c->client);
    }
}

static void doubted_refetch(struct text_consumer *c)
{
    if (!atomic_load(&c->client->trouble) || c->paused) {
        return;
    }
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(16);
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < c->partitions_count; i++) {
        if (c->partitions[i].doubted && c->partitions[i].position >= 0) {
            rd_kafka_topic_partition_list_add(list, c->topic, (int32_t)i)->offset = c->partitions[i].position;
        }
    }
    pthread_mutex_unlock(&c->lock);
    kafka_client_refetch(c->client, list);
    rd_kafka_topic_partition_list_destroy(list);
}

/* The end of a partition was met. */
static void position_move(struct text_consumer *c, int32_t partition, int64_t position)
{
    pthread_mutex_lock(&c->lock);
    if (partition >= 0 && (size_t)partition < c->partitions_count && !c->partitions[partition].restarting) {
        struct text_partition *p = &c->partitions[partition];
        c->check_now = c->check_now || position < p->position; /* an end before what was read */
        p->position = position > p->position ? position : p->position;
    }
    pthread_mutex_unlock(&c->lock);
}

/* A text was read. False: it is to be dropped, for its partition is about to be read from its beginning. */
static bool text_taken(struct text_consumer *c, struct consumed *text)
{
    bool taken = true;
    struct record_mark mark = record_mark_of(text->offset, text->timestamp_ms, text->key, text->value);
    pthread_mutex_lock(&c->lock);
    if (text->partition >= 0 && (size_t)text->partition < c->partitions_count) {
        struct text_partition *p = &c->partitions[text->partition];
        taken = !p->restarting;
        text->epoch = p->epoch;
        if (taken) {
            c->check_now = c->check_now || text->offset < p->position; /* librdkafka was sent back to the log's start */
            p->position = text->offset + 1;
            p->last = mark;
            p->read.mark = record_mark_known(&p->read.mark) ? p->read.mark : mark;
        }
    }
    pthread_mutex_unlock(&c->lock);
    return taken;
}

/* ---- is it still the same topic? ---- */

/* Every partition that is ours and in no doubt. */
static size_t checks_fill(struct text_consumer *c, struct position_check *checks)
{
    size_t n = 0;
    for (size_t i = 0; i < c->partitions_count; i++) {
        const struct text_partition *p = &c->partitions[i];
        if (p->epoch && !p->doubted && !p->restarting) {
            checks[n] = (struct position_check){.topic = c->topic, .partition = (int32_t)i, .read = p->read};
            checks[n++].read.next = p->position > 0 ? p->position : 0;
        }
    }
    return n;
}

/* Where one partition is another topic's, so are those that cannot tell. True: it is to be read from its beginning. */
static bool check_take(struct text_consumer *c, const struct position_check *check, bool any_broken)
{
    struct text_partition *p = &c->partitions[check->partition];
    bool restart = check->verdict == POSITION_BROKEN || (check->verdict == POSITION_UNPROVED && any_broken);
    if (restart) {
        *p = (struct text_partition){.epoch = ++c->epoch, .position = check->low, .restarting = true};
    } else if (check->verdict != POSITION_UNASKED) {
        position_renew(&p->read, &p->last, check);
    }
    return restart;
}

/* What came before is nobody's any more: text_consumer_owns says so by its epoch, and no commit speaks of it. */
static void partitions_restart(struct text_consumer *c)
{
    if (!c->restart || c->paused) { /* seeking what is paused does not survive its end in every librdkafka */
        return;
    }
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(1);
    for (size_t i = 0; i < c->partitions_count; i++) {
        if (c->partitions[i].epoch && c->partitions[i].restarting) {
            rd_kafka_topic_partition_list_add(list, c->topic, (int32_t)i)->offset = c->partitions[i].position;
        }
    }
    rd_kafka_error_t *error = list->cnt ? rd_kafka_seek_partitions(c->client->rk, list, SEEK_MS) : NULL;
    c->restart = error != NULL; /* the next poll tries again */
    pthread_mutex_lock(&c->lock);
    for (int i = 0; i < list->cnt && !error; i++) {
        bool failed = list->elems[i].err != 0;
        c->partitions[list->elems[i].partition].restarting = failed;
        c->restart = c->restart || failed;
    }
    pthread_mutex_unlock(&c->lock);
    if (error) {
        rd_kafka_error_destroy(error);
    }
    rd_kafka_topic_partition_list_destroy(list);
}

static void positions_check_due(struct text_consumer *c)
{
    if ((!c->check_now && clock_us() - c->checked_us < CHECK_US) || !c->partitions_count) {
        return;
    }
    struct position_check *checks = mem_zero(c->partitions_count, sizeof *checks);
    size_t n = checks_fill(c, checks);
    bool broken = false;
    int restarts = 0;
    c->check_now = false;
    positions_check(c->prober, checks, n, CHECK_MS);
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < n; i++) {
        broken = broken || checks[i].verdict == POSITION_BROKEN;
    }
    for (size_t i = 0; i < n; i++) {
        restarts += check_take(c, &checks[i], broken);
    }
    pthread_mutex_unlock(&c->lock);
    free(checks);
    if (restarts) {
        log_warn("texts: topic '%s' was deleted and created again, or cut: reading %d partition%s from the beginning",
                 c->topic, restarts, restarts == 1 ? "" : "s");
        c->restart = true;
    }
    c->checked_us = clock_us();
}

/* ---- rebalances: on the poll thread, inside poll or close ---- */

static void assign(struct text_consumer *c, rd_kafka_topic_partition_list_t *list)
{
    bool first = !atomic_load(&c->rebalances);
    text_starts(c->client, c->topic, first && c->config->start_from == START_LATEST, list);
    rd_kafka_resp_err_t err = rd_kafka_assign(c->client->rk, list);
    if (err) {
        log_warn("texts: assignment: %s", rd_kafka_err2str(err));
        return;
    }
    partitions_take(c, list);
    c->missing = false;
    atomic_store(&c->client->expired, false);
    atomic_store(&c->joined, true);
    atomic_fetch_add(&c->rebalances, 1);
    if (!list->cnt) {
        kafka_client_works(c->client); /* what was wrong with partitions is another replica's to tell */
    }
    if (c->paused && list->cnt) {
        rd_kafka_pause_partitions(c->client->rk, list);
    }
    log_info("texts: %d partition%s of %s assigned", list->cnt, list->cnt == 1 ? "" : "s", c->topic);
}

static void revoke(struct text_consumer *c, rd_kafka_topic_partition_list_t *list)
{
    bool lost = rd_kafka_assignment_lost(c->client->rk) != 0;
    bool any = text_consumer_assigned(c) > 0;
    if (lost) {
        atomic_store(&c->joined, false);
        partitions_drop(c);
    }
    if (any && c->events.revoked) {
        c->events.revoked(c->events.context, lost);
    }
    partitions_drop(c);
    if (c->paused && list->cnt) {
        rd_kafka_resume_partitions(c->client->rk, list);
    }
    rd_kafka_assign(c->client->rk, NULL);
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
    c->client = client;
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
    c->prober = prober_open(config);
    pthread_mutex_init(&c->lock, NULL);
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
    rd_kafka_resp_err_t err = rd_kafka_subscribe(c->client->rk, topics);
    rd_kafka_topic_partition_list_destroy(topics);
    if (err) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "subscribing to %s: %s", c->topic, rd_kafka_err2str(err));
    }
    return 0;
}

static void client_retire(struct text_consumer *c, struct kafka_client *client)
{
    c->retired = mem_resize(c->retired, (c->retired_count + 1) * sizeof *c->retired);
    c->retired[c->retired_count++] = client;
}

void text_consumer_close(struct text_consumer *c)
{
    if (!c) {
        return;
    }
    if (c->client) {
        rd_kafka_consumer_close(c->client->rk);
        client_retire(c, c->client);
    }
    for (size_t i = 0; i < c->retired_count; i++) {
        kafka_client_close(c->retired[i]);
        free(c->retired[i]);
    }
    free(c->retired);
    prober_close(c->prober);
    pthread_mutex_destroy(&c->lock);
    free(c->partitions);
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
    struct kafka_client *old = c->client;
    c->missing = false;
    atomic_store(&c->joined, false);
    rd_kafka_consumer_close(old->rk);
    if (text_consumer_assigned(c) > 0) {
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

/* Why librdkafka gave the client up; 0: it did not. Any thread. */
static rd_kafka_resp_err_t fatal_ask(const struct kafka_client *client, char text[FATAL_BYTES])
{
    text[0] = '\0';
    return rd_kafka_fatal_error(client->rk, text, FATAL_BYTES);
}

/* What follows from that: the poll thread's. */
static int fatal_act(struct text_consumer *c, struct error *e)
{
    char text[FATAL_BYTES];
    rd_kafka_resp_err_t err = fatal_ask(c->client, text);
    if (err == RD_KAFKA_RESP_ERR_FENCED_INSTANCE_ID && atomic_load(&c->client->expired)) {
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
    if (!c->missing || clock_us() - c->looked_us < LOOK_US || text_consumer_assigned(c) > 0) {
        return 0;
    }
    c->looks = prober_sees(c->prober, c->topic, CHECK_MS) ? c->looks + 1 : 0;
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
    if (m->err == RD_KAFKA_RESP_ERR__PARTITION_EOF) {
        partition_works(c, m->partition);
        position_move(c, m->partition, m->offset);
    } else if (m->err == RD_KAFKA_RESP_ERR_GROUP_AUTHORIZATION_FAILED) {
        kafka_client_trouble_with(c->client, m->err, READ_GROUP, c->config->group, "");
    } else if (m->err != RD_KAFKA_RESP_ERR__FATAL) {
        if (m->err == RD_KAFKA_RESP_ERR_UNKNOWN_TOPIC_OR_PART && !c->missing) {
            c->missing = true;
            c->looks = 0;
        }
        kafka_client_trouble_with(c->client, m->err, READ_TOPIC, c->topic, rd_kafka_message_errstr(m));
    }
}

int text_consumer_poll(struct text_consumer *c, int timeout_ms, struct consumed **out, struct error *e)
{
    *out = NULL;
    positions_check_due(c);
    partitions_restart(c);
    rd_kafka_message_t *m = rd_kafka_consumer_poll(c->client->rk, timeout_ms);
    partitions_doubt(c);
    if (m && !m->err) {
        partition_works(c, m->partition);
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
    } else {
        kafka_client_recheck(c->client);
    }
    doubted_refetch(c);
    return fatal_act(c, e) || topic_back_check(c, e) ? -1 : 0;
}

static void pause_or_resume(struct text_consumer *c, bool pause)
{
    if (c->paused == pause) {
        return;
    }
    c->paused = pause;
    rd_kafka_topic_partition_list_t *list = NULL;
    if (rd_kafka_assignment(c->client->rk, &list) == RD_KAFKA_RESP_ERR_NO_ERROR) {
        if (list->cnt && pause) {
            rd_kafka_pause_partitions(c->client->rk, list);
        } else if (list->cnt) {
            rd_kafka_resume_partitions(c->client->rk, list);
        }
        rd_kafka_topic_partition_list_destroy(list);
    }
}

void text_consumer_pause(struct text_consumer *c)
{
    pause_or_resume(c, true);
}

void text_consumer_resume(struct text_consumer *c)
{
    pause_or_resume(c, false);
}

bool text_consumer_paused(const struct text_consumer *c)
{
    return c->paused;
}

/* ---- committing: the publisher's thread ---- */

/* The partition's mark goes along in the offset's metadata: one that held, for the text before the offset may be
 * another topic's already. False: the offset is not ours to commit any more. */
static bool commit_mark(struct text_consumer *c, const struct partition_offset *offset, struct buffer *line)
{
    struct read_position read = {0};
    pthread_mutex_lock(&c->lock);
    bool owns = owned(c, offset->partition, offset->epoch);
    if (owns) {
        read = c->partitions[offset->partition].read;
    }
    pthread_mutex_unlock(&c->lock);
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
        if (!event && client != c->client) {
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
        struct kafka_client *client = c->client;
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

ssize_t text_consumer_lags(struct text_consumer *c, struct partition_lag **out, int timeout_ms)
{
    rd_kafka_topic_partition_list_t *list = rd_kafka_topic_partition_list_new(16);
    ssize_t count = -1;
    pthread_mutex_lock(&c->lock);
    struct partition_lag *lags = mem_alloc((c->partitions_count + 1) * sizeof *lags);
    for (size_t i = 0; i < c->partitions_count; i++) {
        if (c->partitions[i].epoch) {
            int64_t position = c->partitions[i].position > 0 ? c->partitions[i].position : 0;
            lags[list->cnt] = (struct partition_lag){c->topic, (int32_t)i, -position};
            rd_kafka_topic_partition_list_add(list, c->topic, (int32_t)i);
        }
    }
    pthread_mutex_unlock(&c->lock);
    if (kafka_offsets_query(c->client, list, RD_KAFKA_OFFSET_END, timeout_ms, NULL) == 0) {
        for (count = 0; count < list->cnt; count++) {
            int64_t behind = list->elems[count].offset + lags[count].lag;
            lags[count].lag = behind > 0 ? behind : 0;
        }
    }
    rd_kafka_topic_partition_list_destroy(list);
    *out = lags;
    if (count < 0) {
        free(lags);
        *out = NULL;
    }
    return count;
}

int64_t text_consumer_lag(struct text_consumer *c, int timeout_ms)
{
    struct partition_lag *lags = NULL;
    ssize_t count = text_consumer_lags(c, &lags, timeout_ms);
    return lags_sum(lags, count);
}

struct consumer_status text_consumer_status(struct text_consumer *c)
{
    struct consumer_status status = {
        .joined = atomic_load(&c->joined),
        .paused = atomic_load(&c->paused) ? text_consumer_assigned(c) : 0,
        .rebalances = atomic_load(&c->rebalances),
    };
    int uncommitted = atomic_load(&c->uncommitted);
    if (!kafka_client_troubled(c->client, status.trouble) && uncommitted) {
        struct buffer words = {0};
        uncommitted_words(c, uncommitted, &words);
        snprintf(status.trouble, sizeof status.trouble, "%s", words.data);
        buffer_free(&words);
    }
    return status;
}
