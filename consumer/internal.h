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

/* Between two attempts, before anything is assigned: 100 ms, callbacks served. False: told to give up. */
bool client_pause(struct kafka_client *c, const struct kafka_wait *wait);

/* Takes the message over and decodes it. Never fails: what cannot be decoded is CONSUMED_POISON. */
struct consumed *consumed_new(rd_kafka_message_t *message, enum consumed_from from, const char *topic, uint64_t epoch);

#endif
