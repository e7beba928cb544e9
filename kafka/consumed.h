/* What goes from a consumer to a producer: a record as it came, decoded, and the offset that may be committed once the
 * outputs of all records before it are acknowledged. */
#ifndef ENGRAM_KAFKA_CONSUMED_H
#define ENGRAM_KAFKA_CONSUMED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"
#include "kafka/client.h"
#include "record/record.h"

struct rd_kafka_message_s;

/* ---- a record as it came ---- */

enum consumed_kind {
    CONSUMED_RECORD, /* decoded: one of the three below */
    CONSUMED_NULL,   /* a null value: a text to pass through, an instance or label to forget (`key` names it) */
    CONSUMED_POISON, /* `poison` says why; key_usable: it names an instance or label, which is then to be forgotten */
};

enum consumed_from { FROM_TEXTS, FROM_INSTANCES, FROM_LABELS };

/* One record, owned by whoever polled it, freed with consumed_free by any thread. Key, value and headers live in the
 * message, what was decoded in the arena. A learn-lane null whose key names nothing is CONSUMED_POISON. */
struct consumed {
    struct rd_kafka_message_s *message; /* owned; headers are read from it */
    enum consumed_from from;
    enum consumed_kind kind;
    const char *topic; /* the consumer's, valid until it is closed */
    int32_t partition;
    int64_t offset;
    int64_t timestamp_ms; /* -1: none */
    uint64_t epoch;       /* which assignment of the partition it came with; 0 in the learn lane */
    struct slice key;     /* data NULL: none */
    struct slice value;   /* data NULL: null; bytes 0 otherwise: zero bytes, poison */
    bool key_usable;      /* 1 to 255 bytes of UTF-8 without NUL */
    struct arena arena;
    struct text_record text;
    struct instance_record instance;
    struct label_record label;
    struct error *poison; /* NULL: none; freed with the record */
};

/* Takes the message over and decodes it. Never fails: what cannot be decoded is CONSUMED_POISON. */
struct consumed *consumed_new(struct rd_kafka_message_s *message, enum consumed_from from, const char *topic,
                              uint64_t epoch);
void consumed_free(struct consumed *c); /* NULL is fine */

/* ---- offsets to commit ---- */

struct partition_offset {
    int32_t partition;
    uint64_t epoch;
    int64_t next; /* the offset behind the last text whose output, and all before it, were acknowledged */
};

/* A group consumer as a publisher sees it: whose offsets it commits, and how. */
struct committer {
    /* Commits, and waits until the broker took it. Partitions that are not ours any more are left out (their next owner
     * starts at the last commit). 0: committed, or not ours any more. RETRY: told to give up. FATAL: E_FENCED,
     * E_INTERNAL. */
    int (*commit)(void *consumer, const struct partition_offset *offsets, size_t n, const struct kafka_wait *wait,
                  struct error *e);
    void *consumer;
};

#endif
