/* Kafka out: the topics, the publisher (one output for each input, acknowledged before offsets move), and a sender of
 * single records for the command line. Every producer of ours is idempotent and waits for all replicas.
 * Nothing here gives up on a broker that does not answer unless told to; only the broker's word about one very record
 * makes a dead letter of it. */
#ifndef ENGRAM_PRODUCER_PRODUCER_H
#define ENGRAM_PRODUCER_PRODUCER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"
#include "config/config.h"
#include "kafka/client.h"
#include "kafka/consumed.h"

/* ---- topics ---- */

/* Every topic exists and every partition has a leader when this returns 0. With create_topics, missing ones are made:
 * texts, predictions and dead letters with topic_partitions, instances and labels with one partition, compacted.
 * Warns where predictions are kept for less time than texts. Waits for brokers.
 * FATAL, E_TOPIC: missing while create_topics is off, or creation was refused. RETRY, E_BROKER: told to give up. */
int topics_ensure(const struct config *config, const struct kafka_wait *wait, struct error *e);

/* ---- the publisher ---- */

/* One input's one output: a record's `value` goes to predictions, for a null a null; poison goes to dead letters. All
 * of it is borrowed until publisher_commit or publisher_abort returned, the inputs too. */
struct outcome {
    const struct consumed *input;
    struct slice value;
    /* A prediction refused for its size: encodes it without evidence texts into *out and returns true, or returns
     * false where that would not be smaller. Called once at the most, inside the publisher's functions. May be NULL. */
    bool (*smaller)(void *context, struct buffer *out);
    void *context;
    enum error_code refusal; /* out, after publisher_commit: why it is a dead letter after all; E_OK: it is not */
};

struct publisher;

/* committer: whose offsets are committed (copied); NULL for the learn lane's dead letters, whose offsets live in the
 * memory. wait is asked while a call waits for the broker (copied). A publisher and its calls belong to one thread; a
 * second publisher is a second producer. Does not wait for brokers. */
int publisher_open(struct publisher **out, const struct config *config, const struct committer *committer,
                   const struct kafka_wait *wait, struct error *e);

/* begin, then publish any number of batches, then commit or abort. A call that fails with
 *   RETRY, E_BROKER: was told to give up; nothing was committed: abort, then end or begin again with the same outcomes;
 *   FATAL (E_FENCED, E_INTERNAL): abort and stop. */
int publisher_begin(struct publisher *p, struct error *e);

/* Hands the outcomes to the producer, in order, waiting for room. offsets: what may be committed once these outcomes
 * and all before them are acknowledged (copied; a later batch's offset of a partition replaces an earlier one). */
int publisher_publish(struct publisher *p, struct outcome *outcomes, size_t n, const struct partition_offset *offsets,
                      size_t offsets_count, struct error *e);

/* Waits until every output is acknowledged (records refused for size are sent smaller, then dead-lettered), then
 * commits the offsets. Offsets of partitions that are not ours any more are left out. */
int publisher_commit(struct publisher *p, struct error *e);

/* Forgets what was published since begin and not committed: what is not sent yet is not sent. Offsets stay. */
void publisher_abort(struct publisher *p);

void publisher_close(struct publisher *p);

bool publisher_troubled(struct publisher *p, char words[TROUBLE_BYTES]); /* kafka_client_troubled; any thread */

/* ---- single records, for the command line ---- */

struct sender;

/* Connects, waiting connect_ms at the most: RETRY, E_BROKER, with a line that names the address. */
int sender_open(struct sender **out, const struct config *config, int connect_ms, struct error *e);
void sender_close(struct sender *s);

/* How many partitions a topic has; E_TOPIC: there is none of that name. */
int sender_partitions(struct sender *s, const char *topic, int32_t *count, struct error *e);

struct sent {
    int32_t partition;
    int64_t offset;
};

/* One record, and the broker's word on it. value.data NULL: a tombstone. partition -1: by the key (CRC32).
 * Errors: E_TOO_LARGE, E_REFUSED (POISON), E_BROKER, E_TOPIC (RETRY: not acknowledged within timeout_ms). */
int sender_send(struct sender *s, const char *topic, int32_t partition, struct slice key, struct slice value,
                int timeout_ms, struct sent *out, struct error *e);

/* Bulk: queues one record (copied), waiting for room. One that the broker refuses is handed to failed() with the number
 * given here, later, from inside a sender call. -1: not a record's own fault (E_TOPIC, E_BROKER: nothing was
 * acknowledged for timeout_ms), give up. */
struct sender_failure {
    void (*failed)(void *context, uint64_t number, const struct error *e);
    void *context;
};
void sender_on_failure(struct sender *s, const struct sender_failure *failure);
int sender_queue(struct sender *s, const char *topic, struct slice key, struct slice value, uint64_t number,
                 int timeout_ms, struct error *e);
/* Waits for the broker's word on all that was queued, 100 ms at the most. 1: all is said; 0: not yet; -1: as above. */
int sender_flush(struct sender *s, int timeout_ms, struct error *e);
uint64_t sender_acknowledged(const struct sender *s);

#endif
