/* Is a topic still the one that was read? Of each partition one record that was read, its mark, is looked for again. */
#ifndef ENGRAM_KAFKA_POSITION_H
#define ENGRAM_KAFKA_POSITION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "kafka/client.h"
#include "record/record.h"

/* How far reading is behind the end that read_committed shows: transaction markers are no records that wait. */
struct partition_lag {
    const char *topic; /* the consumer's */
    int32_t partition;
    int64_t lag;
};

/* All lags together; -1 where count is. Frees lags. */
int64_t lags_sum(struct partition_lag *lags, ssize_t count);

/* For a consumer in trouble: fetches anew from the offsets in list, every 5 s at most. librdkafka tells an error once
 * and an end once, so where nothing is written only another fetch shows that the trouble is over. The thread that
 * polls; what it polls next comes from there. */
void kafka_client_refetch(struct kafka_client *c, struct rd_kafka_topic_partition_list_s *list);

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

#endif
