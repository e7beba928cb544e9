/* What the files of consumer/ share: offsets asked of the brokers, and a message made into a struct consumed. */
#ifndef ENGRAM_CONSUMER_INTERNAL_H
#define ENGRAM_CONSUMER_INTERNAL_H

#include <librdkafka/rdkafka.h>

#include "consumer/consumer.h"

/* Settings that both consumers need, on a configuration that config_kafka made. */
int consumer_configure(rd_kafka_conf_t *conf, struct error *e);

/* Fills each partition's offset with the log's start (RD_KAFKA_OFFSET_BEGINNING) or the end that read_committed shows
 * (RD_KAFKA_OFFSET_END): librdkafka's cached watermark is the high one, which an open transaction keeps ahead.
 * RETRY, E_BROKER: not answered within timeout_ms. */
int offsets_query(struct kafka_client *c, rd_kafka_topic_partition_list_t *list, int64_t which, int timeout_ms,
                  struct error *e);

/* For a consumer in trouble: fetches anew from the offsets in list, every 5 s at most. librdkafka tells an error once
 * and an end once, so where nothing is written only another fetch shows that the trouble is over. The thread that
 * polls; what it polls next comes from there. */
void refetch(struct kafka_client *c, rd_kafka_topic_partition_list_t *list);

/* All lags together; -1 where count is. Frees lags. */
int64_t lags_sum(struct partition_lag *lags, ssize_t count);

/* Counts trouble that is no client's own: see kafka_troubles. */
void trouble_count(void);

/* ---- is a topic still the one that was read? (position.c) ---- */

enum position_verdict {
    POSITION_UNASKED,  /* no answer in time: ask again */
    POSITION_HOLDS,    /* the mark's record is there, or nothing was read yet */
    POSITION_UNPROVED, /* no mark, or its record is gone (retention, compaction): nothing speaks against it */
    POSITION_BROKEN,   /* the topic was deleted and created again, or cut */
};

struct position_check {
    const char *topic; /* in */
    int32_t partition;
    struct read_position read;
    enum position_verdict verdict;          /* out, and where it is not UNASKED: */
    int64_t low, end;                       /* the log's start, and the end that read_committed shows */
    unsigned char topic_id[TOPIC_ID_BYTES]; /* zeros: librdkafka does not tell it */
    bool other_id;                          /* BROKEN, by the topic's id alone */
};

/* Asks with a client of its own, so that nothing else that is read is disturbed. It belongs to one thread. */
struct prober;

struct prober *prober_open(const struct config *config); /* does not connect */
void prober_close(struct prober *p);                     /* NULL is fine */
/* Fills every verdict, within timeout_ms; what seems broken is asked about twice. A mark that was read before the call
 * and holds proves that all which was read of its partition before the call came from this very topic. */
void positions_check(struct prober *p, struct position_check *checks, size_t n, int timeout_ms);

/* The topic is there, and each partition has a leader. False too where no answer comes within timeout_ms. */
bool prober_sees(struct prober *p, const char *topic, int timeout_ms);

/* After a check that was answered and is not BROKEN: the position is known by the record read last (unknown: by its
 * mark as before) and by the topic's id from now on. True: the mark is another one. */
bool position_renew(struct read_position *read, const struct record_mark *last, const struct position_check *check);

/* A position's mark and topic id in one line of text, to travel with a committed offset; next is not in it. False: that
 * is none of ours. */
void position_write(const struct read_position *read, struct buffer *out);
bool position_read(struct slice text, struct read_position *out);

/* start.c, for the tag lane: puts into list where each partition starts: absolute where it can be learnt, which tells
 * the lag and spares librdkafka a lookup that a pause could cross; else as librdkafka finds it (committed, then
 * auto.offset.reset = earliest). latest: a group that is new starts at the ends. */
void text_starts(struct kafka_client *c, const char *topic, bool latest, rd_kafka_topic_partition_list_t *list);

/* Between two attempts, before anything is assigned: 100 ms, callbacks served. False: told to give up. */
bool client_pause(struct kafka_client *c, const struct kafka_wait *wait);

/* connection.c: why a connection fails. */
/* librdkafka's callback for a broker's certificate: accepts what OpenSSL accepts, and keeps what it does not. */
int connection_certificate_check(struct rd_kafka_s *rk, const char *broker, int32_t id, int *x509_error, int depth,
                                 const char *der, size_t bytes, char *text, size_t text_bytes, void *opaque);
void connection_text(const char *text, char *out, size_t bytes);  /* librdkafka's line, no secret in it */
void connection_failed(struct kafka_client *c, const char *text); /* sets c->reason */
/* What to do about c->reason where the broker or this client refuses the other; NULL: nobody is there. A literal. */
const char *connection_advice(const struct kafka_client *c);
/* The reason, then that advice. */
void connection_words(const struct kafka_client *c, const char *advice, struct buffer *out);

/* Takes the message over and decodes it. Never fails: what cannot be decoded is CONSUMED_POISON. */
struct consumed *consumed_new(rd_kafka_message_t *message, enum consumed_from from, const char *topic, uint64_t epoch);

#endif
