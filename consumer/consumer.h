/* Kafka in: the tag lane's group consumer over `texts`, the learn lane's consumer over every partition of `instances`
 * and `labels`, and what every Kafka client of ours shares (logs, health, topic descriptions). Records come out
 * decoded. Each consumer has one poll thread; what other threads may call says so. Nothing here ends the process or
 * gives up on a broker that does not answer: trouble is logged once, and once more when it is over. */
#ifndef ENGRAM_CONSUMER_CONSUMER_H
#define ENGRAM_CONSUMER_CONSUMER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/buffer.h"
#include "base/error.h"
#include "base/log.h"
#include "config/config.h"
#include "record/record.h"

/* ---- what every Kafka client shares ---- */

struct rd_kafka_s;
struct rd_kafka_conf_s;
struct rd_kafka_message_s;

/* How long to wait for a broker: functions that wait ask go_on() about every 100 ms, from the calling thread, and give
 * up (RETRY, E_BROKER) when it returns false. NULL instead of a pointer to one of these: wait for ever. */
struct kafka_wait {
    bool (*go_on)(void *context);
    void *context;
};

bool kafka_wait_go_on(const struct kafka_wait *wait);

enum { TROUBLE_BYTES = 320 }; /* of a trouble in words, terminated */

/* A librdkafka client with its log bridged to ours and its health remembered. It is librdkafka's opaque. */
struct kafka_client {
    struct rd_kafka_s *rk;
    const char *what; /* "texts": which client, in messages */
    const char *brokers;
    void *owner;               /* for the callbacks of the room that opened it */
    _Atomic int trouble;       /* the rd_kafka_resp_err_t met last and not over yet; 0: none */
    _Atomic unsigned troubles; /* how often trouble came, also where it was told before */
    _Atomic bool told;         /* it was logged */
    _Atomic bool reached;      /* some broker answered since the start */
    _Atomic bool expired;      /* a consumer's session in its group ran out here, and it has not joined again yet */
    _Atomic bool opening;      /* rd_kafka_new works on it */
    _Atomic int certificate;   /* what OpenSSL last found wrong with a broker's; 0: nothing */
    _Atomic bool advised;      /* the words say what to do */
    bool quiet;                /* trouble is not told: the command line says it itself */
    uint64_t asked_us;         /* when kafka_client_recheck last asked; the thread that polls */
    uint64_t fetched_us;       /* when refetch last fetched anew; the thread that polls */
    char reason[160];          /* the last connection's error; for messages, always terminated */
    struct log_limit troubles_limit, lines_limit; /* what the log gets of trouble, and of librdkafka's own lines */
    bool locked;                                  /* lock is made */
    pthread_mutex_t lock;                         /* covers words */
    char words[TROUBLE_BYTES];                    /* the trouble's */
};

/* Takes conf over, also on failure. config (borrowed) must outlive the client; what is a literal. *c is zeroed, or was
 * closed before: a trouble that is not over yet then stays, and is not told again. */
int kafka_client_open(struct kafka_client *c, const struct config *config, enum config_client kind,
                      struct rd_kafka_conf_s *conf, const char *what, void *owner, struct error *e);
void kafka_client_close(struct kafka_client *c); /* for a consumer: closed by its room before */

/* Sets one property on a configuration; an error is E_INTERNAL (ours) or E_USAGE (a value passed through). */
int kafka_set(struct rd_kafka_conf_s *conf, const char *name, const char *value, struct error *e);
/* The same where the user left librdkafka's own default (given as librdkafka writes it) in place. */
int kafka_set_default(struct rd_kafka_conf_s *conf, const char *name, const char *librdkafka_default, const char *value,
                      struct error *e);

/* Something did not work that will be tried again: logged once until kafka_client_works is called. Any thread. */
void kafka_client_trouble(struct kafka_client *c, int err, const char *text);
/* The same about one topic, or with READ_GROUP about the group of this name: where rights or the topic are missing, the
 * line says what to do; else it ends in text. */
enum kafka_use { READ_TOPIC, WRITE_TOPIC, READ_GROUP };
void kafka_client_trouble_with(struct kafka_client *c, int err, enum kafka_use use, const char *name, const char *text);
void kafka_client_works(struct kafka_client *c);
/* The trouble that is not over yet, in the words that were logged; "": none. False: none. Any thread. */
bool kafka_client_troubled(struct kafka_client *c, char words[TROUBLE_BYTES]);
/* How such a trouble is put, for who logs it himself. */
void kafka_trouble_words(int err, enum kafka_use use, const char *name, const char *text, struct buffer *out);
/* While the brokers are unreachable: asks one now and then (every 2 s, 200 ms at most), so that the log tells the
 * return of a broker also while nothing flows. Cheap when there is no trouble. */
void kafka_client_recheck(struct kafka_client *c);

/* Waits until a broker answers. *cluster (may be NULL) gets the cluster's id, owned by the caller.
 * Logs once when nobody answers; RETRY, E_BROKER when told to give up: the line names the address and what to check. */
int kafka_client_connect(struct kafka_client *c, const struct kafka_wait *wait, char **cluster, struct error *e);

/* How often trouble was told, by all clients of this process together. Any thread. */
uint64_t kafka_troubles(void);

/* How far reading is behind the end that read_committed shows: transaction markers are no records that wait. */
struct partition_lag {
    const char *topic; /* the consumer's */
    int32_t partition;
    int64_t lag;
};

/* A topic as the cluster has it. Settings are -1 (compact: true) where we may not or could not read them. */
struct kafka_topic {
    const char *name;   /* in: which topic */
    int32_t partitions; /* out: 0: there is no such topic */
    bool led;           /* every partition has a leader */
    bool configured;    /* the settings below are known */
    bool compact;       /* cleanup.policy names compact */
    int64_t retention_ms, delete_retention_ms, max_message_bytes;
};

/* Fills all n from one look at the cluster. RETRY, E_BROKER: not answered within timeout_ms, or not allowed. Settings
 * that may not be read (no right to describe) are no error. */
int kafka_topics_describe(struct kafka_client *c, struct kafka_topic *topics, size_t n, bool settings, int timeout_ms,
                          struct error *e);

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

void consumed_free(struct consumed *c); /* NULL is fine */

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

struct partition_offset {
    int32_t partition;
    uint64_t epoch;
    int64_t next; /* the offset behind the last text whose output, and all before it, were acknowledged */
};

/* Commits, and waits until the broker took it. Partitions that are not ours any more are left out (their next owner
 * starts at the last commit). Publisher thread, or any single thread at a time, also while `revoked` waits for it. 0:
 * committed, or not ours any more. RETRY: told to give up. FATAL: E_FENCED. */
int text_consumer_commit(struct text_consumer *c, const struct partition_offset *offsets, size_t n,
                         const struct kafka_wait *wait, struct error *e);

/* Texts between our position and the end that read_committed shows, over what is assigned. Asks the brokers: waits up
 * to timeout_ms. -1: not answered (RETRY). Any thread. */
int64_t text_consumer_lag(struct text_consumer *c, int timeout_ms);
/* The same by partition: *out [the number returned], freed by the caller. -1: not answered. Any thread. */
ssize_t text_consumer_lags(struct text_consumer *c, struct partition_lag **out, int timeout_ms);
size_t text_consumer_assigned(struct text_consumer *c); /* partitions now ours; any thread */

struct consumer_status {
    bool joined;         /* the group has given an assignment, maybe an empty one, and the session still holds */
    size_t paused;       /* partitions */
    uint64_t rebalances; /* assignments that came, since open */
    char trouble[TROUBLE_BYTES]; /* what is told and not over yet; "": none */
};
struct consumer_status text_consumer_status(struct text_consumer *c); /* any thread */

/* Leaves without leaving the group (a static member keeps its place for session.timeout.ms): `revoked` is called if
 * anything is assigned. Every struct consumed must be freed before. Poll thread, or after it has ended. */
void text_consumer_close(struct text_consumer *c);

/* For the publisher's transactions: the librdkafka client (rd_kafka_consumer_group_metadata). */
struct rd_kafka_s *text_consumer_client(struct text_consumer *c);

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

/* Records between position and the end that read_committed shows; asks the brokers, up to timeout_ms. -1: not answered.
 * Any thread. */
int64_t learn_consumer_lag(struct learn_consumer *c, int timeout_ms);

/* The same by partition: as text_consumer_lags. Any thread. */
ssize_t learn_consumer_lags(struct learn_consumer *c, struct partition_lag **out, int timeout_ms);
bool learn_consumer_troubled(struct learn_consumer *c, char words[TROUBLE_BYTES]); /* any thread */

/* Partition i: where reading stands (what poll handed out, and ends), and where it began. False: no such i. Any thread.
 */
struct learn_position {
    const char *topic;
    int32_t partition;
    int64_t start;    /* where reading began */
    int64_t end;      /* the end seen at open */
    int64_t position; /* next offset to read */
    bool stored;      /* an offset for it was given to open */
    bool caught_up;
    struct read_position read; /* what poll has handed out, and by what the topic is known again; poll thread alone */
};
bool learn_consumer_position(struct learn_consumer *c, size_t i, struct learn_position *out);

void learn_consumer_close(struct learn_consumer *c); /* every struct consumed must be freed before */

#endif
