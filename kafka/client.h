/* What every Kafka client of ours shares: settings, opening and closing, its troubles in words, and what the cluster
 * says of topics. Nothing here ends the process or gives up on a broker that does not answer: trouble is logged once,
 * and once more when it is over. */
#ifndef ENGRAM_KAFKA_CLIENT_H
#define ENGRAM_KAFKA_CLIENT_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"
#include "base/log.h"
#include "config/config.h"

struct rd_kafka_s;
struct rd_kafka_conf_s;
struct rd_kafka_topic_partition_list_s;

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
    _Atomic bool expired;      /* a consumer's session in its group ran out here, and it has not joined again yet */
    _Atomic bool opening;      /* rd_kafka_new works on it */
    _Atomic int certificate;   /* what OpenSSL last found wrong with a broker's; 0: nothing */
    _Atomic bool advised;      /* the words say what to do */
    bool quiet;                /* trouble is not told: the command line says it itself */
    uint64_t asked_us;         /* when kafka_client_recheck last asked; the thread that polls */
    char reason[160];          /* the last connection's error; for messages, always terminated */
    struct log_limit troubles_limit, lines_limit; /* what the log gets of trouble, and of librdkafka's own lines */
    bool locked;                                  /* lock is made */
    pthread_mutex_t lock;                         /* covers words */
    char words[TROUBLE_BYTES];                    /* the trouble's */
};

/* ---- settings ---- */

/* Sets one property on a configuration; an error is E_INTERNAL (ours) or E_USAGE (a value passed through). */
int kafka_set(struct rd_kafka_conf_s *conf, const char *name, const char *value, struct error *e);
/* The same where the user left librdkafka's own default (given as librdkafka writes it) in place. */
int kafka_set_default(struct rd_kafka_conf_s *conf, const char *name, const char *librdkafka_default, const char *value,
                      struct error *e);
/* A consumer's configuration, with what all of ours need: offsets committed by hand, ends reported, read_committed.
 * Its group.id is the option `group`, or with a suffix <group>-<instance_id>-<suffix>: who assigns by hand needs one
 * too, and neither joins it nor needs a right on it. NULL: an error. */
struct rd_kafka_conf_s *kafka_consumer_configure(const struct config *config, const char *suffix,
                                                 const char *auto_offset_reset, struct error *e);

/* ---- opening and closing ---- */

/* Takes conf over, also on failure. config (borrowed) must outlive the client; what is a literal. *c is zeroed, or was
 * closed before: a trouble that is not over yet then stays, and is not told again. */
int kafka_client_open(struct kafka_client *c, const struct config *config, enum config_client kind,
                      struct rd_kafka_conf_s *conf, const char *what, void *owner, struct error *e);
void kafka_client_close(struct kafka_client *c); /* for a consumer: closed by its room before */

/* Waits until a broker answers. *cluster (may be NULL) gets the cluster's id, owned by the caller.
 * Logs once when nobody answers; RETRY, E_BROKER when told to give up: the line names the address and what to check. */
int kafka_client_connect(struct kafka_client *c, const struct kafka_wait *wait, char **cluster, struct error *e);
/* Between two attempts, before anything is assigned: 100 ms, callbacks served. False: told to give up. */
bool kafka_client_idle(struct kafka_client *c, const struct kafka_wait *wait);

/* ---- troubles ---- */

/* Something did not work that will be tried again: logged once until kafka_client_works is called. The thread
 * that polls. */
void kafka_client_trouble(struct kafka_client *c, int err, const char *text);
/* The same about one topic, or with READ_GROUP about the group of this name: where rights or the topic are missing, the
 * line says what to do; else it ends in text. */
enum kafka_use { READ_TOPIC, WRITE_TOPIC, READ_GROUP };
void kafka_client_trouble_with(struct kafka_client *c, int err, enum kafka_use use, const char *name, const char *text);
void kafka_client_works(struct kafka_client *c);
/* The trouble that is not over yet, in the words that were logged; "": none. False: none. Any thread. */
bool kafka_client_troubled(struct kafka_client *c, char words[TROUBLE_BYTES]);
/* While the brokers are unreachable: asks one now and then (every 2 s, 200 ms at most), so that the log tells the
 * return of a broker also while nothing flows. Cheap when there is no trouble. */
void kafka_client_recheck(struct kafka_client *c);

/* How such a trouble is put, for who logs it himself, and counts it. */
void kafka_trouble_words(int err, enum kafka_use use, const char *name, const char *text, struct buffer *out);
void kafka_trouble_count(void);
/* How often trouble was told, by all clients of this process together. Any thread. */
uint64_t kafka_troubles(void);

/* ---- what the cluster says ---- */

/* A topic as the cluster has it. Settings are -1 (compact: true) where we may not or could not read them. */
struct kafka_topic {
    const char *name;   /* in: which topic */
    int32_t partitions; /* out: 0: there is no such topic */
    bool led;           /* every partition has a leader */
    bool configured;    /* the settings below are known */
    bool compact;       /* cleanup.policy names compact */
    int64_t retention_ms, delete_retention_ms;
};

/* Fills all n from one look at the cluster. RETRY, E_BROKER: not answered within timeout_ms, or not allowed. Settings
 * that may not be read (no right to describe) are no error. */
int kafka_topics_describe(struct kafka_client *c, struct kafka_topic *topics, size_t n, bool settings, int timeout_ms,
                          struct error *e);

/* Fills each partition's offset with the log's start (RD_KAFKA_OFFSET_BEGINNING) or the end that read_committed shows
 * (RD_KAFKA_OFFSET_END): librdkafka's cached watermark is the high one, which an open transaction keeps ahead.
 * RETRY, E_BROKER: not answered within timeout_ms. */
int kafka_offsets_query(struct kafka_client *c, struct rd_kafka_topic_partition_list_s *list, int64_t which,
                        int timeout_ms, struct error *e);

#endif
