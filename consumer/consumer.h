/* Kafka in: the tag lane's group consumer over `texts`, and the learn lane's consumer over every partition of
 * `instances` and `labels`. Records come out decoded. Each consumer has one poll thread; what other threads may call
 * says so. */
#ifndef ENGRAM_CONSUMER_CONSUMER_H
#define ENGRAM_CONSUMER_CONSUMER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "config/config.h"
#include "kafka/client.h"
#include "kafka/consumed.h"
#include "kafka/position.h"
#include "record/record.h"

/* ---- texts: the tag lane ---- */

struct text_consumer;

/* The group's partitions are about to go. Called on the poll thread, from inside text_consumer_poll or _close.
 * lost false: text_consumer_owns still says true and commits still count, so finish what is in compute, publish,
 * commit, and return, within a few seconds (the group waits for it). lost true: owns already says false; drop. When it
 * returns, owns says false for all that was assigned before; texts that only wait are to be dropped. */
struct text_consumer_events {
    void (*revoked)(void *context, bool lost);
    void *context;
};

/* A static member of the group: group.id = group, group.instance.id = <group>-<instance_id>. Does not join yet. */
int text_consumer_open(struct text_consumer **out, const struct config *config,
                       const struct text_consumer_events *events, struct error *e);

/* Joins the group; call it once, when the learn lane has caught up. Poll thread. */
int text_consumer_subscribe(struct text_consumer *c, struct error *e);

/* Waits up to timeout_ms. 1: *out holds the next text (record, null or poison), owned by the caller. 0: none came.
 * -1: FATAL, E_FENCED (the same instance_id runs elsewhere) or E_INTERNAL. Poll thread; call it at least every few
 * minutes (max.poll.interval.ms), also while paused. Rebalances run inside. */
int text_consumer_poll(struct text_consumer *c, int timeout_ms, struct consumed **out, struct error *e);

/* Pausing throws away what was prefetched: rare, please. It is remembered over a rebalance. Poll thread. */
void text_consumer_pause(struct text_consumer *c);
void text_consumer_resume(struct text_consumer *c);
bool text_consumer_paused(const struct text_consumer *c);

/* Any thread: is this partition still ours, by the assignment that the text came with? */
bool text_consumer_owns(struct text_consumer *c, int32_t partition, uint64_t epoch);

/* What a publisher commits its offsets by: valid until the consumer is closed. The publisher's thread, or any single
 * thread at a time, may commit, also while `revoked` waits for it. */
struct committer text_consumer_committer(struct text_consumer *c);

/* Texts between our position and the end that read_committed shows, over what is assigned. Asks the brokers: waits up
 * to timeout_ms. -1: not answered (RETRY). Any thread. */
int64_t text_consumer_lag(struct text_consumer *c, int timeout_ms);
/* The same by partition: *out [the number returned], freed by the caller. -1: not answered. Any thread. */
ssize_t text_consumer_lags(struct text_consumer *c, struct partition_lag **out, int timeout_ms);

struct consumer_status {
    bool joined;         /* the group has given an assignment, maybe an empty one, and the session still holds */
    bool paused;         /* all that is assigned */
    size_t assigned;     /* partitions now ours */
    uint64_t rebalances; /* assignments that came, since open */
    char trouble[TROUBLE_BYTES]; /* what is told and not over yet; "": none */
};
struct consumer_status text_consumer_status(struct text_consumer *c); /* any thread */

/* Leaves without leaving the group (a static member keeps its place for session.timeout.ms): `revoked` is called if
 * anything is assigned. Every struct consumed must be freed before. Poll thread, or after it has ended. */
void text_consumer_close(struct text_consumer *c);

/* ---- instances and labels: the learn lane ---- */

/* What the memory holds of a partition. read.next 0 means that the partition was seen and nothing of it was applied:
 * the stage stores that for each partition at its first start (learn_consumer_position), so that a changed number is
 * noticed. */
struct learn_offset {
    const char *cluster, *topic;
    int32_t partition;
    struct read_position read;
};

struct learn_consumer;

/* Assigns every partition of both topics, each from the offset stored for it (else from its beginning).
 * caught_up_ms: wall time at which this memory had last read to the end; 0: never (an empty memory that is about to
 * start reading may store now: it cannot have missed anything). Waits for brokers. FATAL, E_TOPIC, with a line that
 * says what to do: a topic is missing, or was deleted and created again; an offset stored for another cluster, below
 * the log's start or beyond its end; another number of partitions than stored; away for longer than
 * delete.retention.ms. RETRY, E_BROKER: told to give up.
 */
int learn_consumer_open(struct learn_consumer **out, const struct config *config, const struct learn_offset *stored,
                        size_t n, int64_t caught_up_ms, const struct kafka_wait *wait, struct error *e);

const char *
learn_consumer_cluster(const struct learn_consumer *c); /* the cluster's id, for what is folded; any thread */

/* Waits up to timeout_ms. 1: *out holds the next record, owned by the caller. 0: none came. -1: FATAL, E_TOPIC: an
 * offset that the log does not have (any more), or a topic that was deleted and created again. Poll thread. */
int learn_consumer_poll(struct learn_consumer *c, int timeout_ms, struct consumed **out, struct error *e);

/* By what the topic of a record that was handed out is known again: to be stored with its fold. Poll thread, until the
 * next poll. */
const struct record_mark *learn_consumer_mark(const struct learn_consumer *c, const struct consumed *record);
/* How often a partition's mark changed without a fold that stored it: see learn_position.read. Poll thread. */
uint64_t learn_consumer_marks(const struct learn_consumer *c);

/* While a record waits to be folded (a full memory): keeps the client alive without reading on. Poll thread. */
void learn_consumer_pause(struct learn_consumer *c);
void learn_consumer_resume(struct learn_consumer *c);

/* Has every partition been read to the end that it had at open? It speaks of what poll has handed out: fold that first.
 * True for good once true. Any thread. */
bool learn_consumer_caught_up(struct learn_consumer *c);

/* Looks where every partition ends now, up to timeout_ms for each of two questions. 1: looked; 0: not answered; -1:
 * FATAL, E_TOPIC: a topic has another number of partitions by now, or is another one. Poll thread. */
int learn_consumer_look(struct learn_consumer *c, int timeout_ms, struct error *e);
/* The wall time of the last look, once poll has handed out all that stood before those ends (0: not yet, or no look):
 * the memory's time last caught up, once that is folded. A load that never pauses is no hindrance. Poll thread. */
int64_t learn_consumer_seen_ms(struct learn_consumer *c);

/* Records between position and the end that read_committed shows, by partition: as text_consumer_lags. Any thread. */
ssize_t learn_consumer_lags(struct learn_consumer *c, struct partition_lag **out, int timeout_ms);
bool learn_consumer_troubled(struct learn_consumer *c, char words[TROUBLE_BYTES]); /* any thread */

/* Partition i: what poll has handed out of it, and by what the topic is known again. False: no such i. Poll thread. */
struct learn_position {
    const char *topic;
    int32_t partition;
    struct read_position read;
};
bool learn_consumer_position(struct learn_consumer *c, size_t i, struct learn_position *out);

void learn_consumer_close(struct learn_consumer *c); /* every struct consumed must be freed before */

#endif
