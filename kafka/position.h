/* What a consumer reads, partition by partition: where it is, whether trouble puts that in doubt, and whether the topic
 * is still the one that was read. One thread polls and alone writes here; others read under the lock. */
#ifndef ENGRAM_KAFKA_POSITION_H
#define ENGRAM_KAFKA_POSITION_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "kafka/client.h"
#include "kafka/consumed.h"
#include "record/record.h"

struct rd_kafka_message_s;
struct prober;

/* One partition. */
struct reading {
    const char *topic; /* the consumer's */
    int32_t partition;
    uint64_t epoch;            /* of the present assignment; 0: not ours */
    int64_t position;          /* next offset to read; -1: not known yet */
    bool doubted;              /* trouble came, and nothing from here since */
    bool restarting;           /* to be read from its beginning: what still comes is dropped until then */
    struct read_position read; /* how far it was read, and by what the topic is known again: a mark that held, or the
                                * first record */
    struct record_mark last;   /* of the record read last; unknown: none yet */
};

struct readings {
    struct prober *prober;           /* asks about marks, with a client of its own; the poll thread's */
    unsigned troubles;               /* the client's, as far as they led to doubt; the poll thread's */
    uint64_t checked_us, fetched_us; /* when readings_check and readings_refetch last asked; the poll thread's */
    _Atomic bool paused;             /* the poll thread writes */
    pthread_mutex_t lock;            /* covers what is below */
    struct reading *list;
    size_t count;
};

void readings_open(struct readings *r, const struct config *config); /* *r is zeroed; does not connect */
void readings_close(struct readings *r);
/* Makes room for so many; the new ones are zeroed. Under the lock. */
void readings_grow(struct readings *r, size_t count);

/* ---- polling: the poll thread ---- */

/* rd_kafka_consumer_poll. Trouble that came may be any partition's, for not every error names one: all are in doubt
 * from then on, each until something comes from it. */
struct rd_kafka_message_s *readings_poll(struct readings *r, struct kafka_client *c, int timeout_ms);
/* Something came from here (NULL: from what is not read): the trouble is over when something came from each. True: it
 * had been in doubt. */
bool readings_answer(struct readings *r, struct kafka_client *c, struct reading *from);
/* In trouble: fetches again what is in doubt, every 5 s at most. librdkafka tells an error once and an end once, so
 * where nothing is written only another fetch shows that the trouble is over. */
void readings_refetch(struct readings *r, struct kafka_client *c);
/* A record was read, or the end was met at this offset. False: it lies before what was read. */
bool reading_take(struct readings *r, struct reading *p, const struct consumed *record);
bool reading_end(struct readings *r, struct reading *p, int64_t offset);

/* Pauses or resumes all that is assigned: what was prefetched is thrown away. */
void readings_pause(struct readings *r, struct kafka_client *c, bool pause);

/* ---- is a topic still the one that was read? The poll thread ---- */

enum position_verdict {
    POSITION_UNASKED,  /* no answer in time: ask again */
    POSITION_HOLDS,    /* the mark's record is there, or nothing was read yet */
    POSITION_UNPROVED, /* no mark, or its record is gone (retention, compaction): nothing speaks against it */
    POSITION_BROKEN,   /* the topic was deleted and created again, or cut */
};

struct position_check {
    struct reading *reading;                /* in */
    enum position_verdict verdict;          /* out, and where it is not UNASKED: */
    int64_t low, end;                       /* the log's start, and the end that read_committed shows */
    unsigned char topic_id[TOPIC_ID_BYTES]; /* zeros: librdkafka does not tell it */
    bool other_id;                          /* BROKEN, by the topic's id alone */
};

bool readings_check_due(const struct readings *r); /* every 5 s */
/* Asks about one alone, or with NULL about all that are ours, in no doubt and not restarting; for a few seconds at
 * most. *checks [the number returned] is freed by the caller. A mark that was read before the call and holds proves
 * that all which was read of its partition before the call came from this very topic. */
size_t readings_check(struct readings *r, struct reading *one, struct position_check **checks);
/* After a check that was answered and is not BROKEN: the position is known by the record read last (none: by its mark
 * as before) and by the topic's id from now on. True: the mark is another one. */
bool reading_renew(struct readings *r, const struct position_check *check);

/* The topic is there, and each partition has a leader. False too where no answer comes within 2 s. */
bool readings_topic_seen(struct readings *r, const char *topic);

/* A position's mark and topic id in one line of text, to travel with a committed offset; next is not in it. False: that
 * is none of ours. Any thread. */
void position_write(const struct read_position *read, struct buffer *out);
bool position_read(struct slice text, struct read_position *out);

/* ---- lag: any thread ---- */

/* How far reading is behind the end that read_committed shows: transaction markers are no records that wait. */
struct partition_lag {
    const char *topic; /* the consumer's */
    int32_t partition;
    int64_t lag;
};

/* Of each partition that is ours: *out [the number returned], freed by the caller. -1: the brokers did not answer
 * within timeout_ms. */
ssize_t readings_lags(struct readings *r, struct kafka_client *c, struct partition_lag **out, int timeout_ms);

#endif
