/* What the files of consumer/ share: where an assignment of texts starts. */
#ifndef ENGRAM_CONSUMER_INTERNAL_H
#define ENGRAM_CONSUMER_INTERNAL_H

#include <librdkafka/rdkafka.h>

#include "consumer/consumer.h"

/* start.c, for the tag lane: puts into list where each partition starts: absolute where it can be learnt, which tells
 * the lag and spares librdkafka a lookup that a pause could cross; else as librdkafka finds it (committed, then
 * auto.offset.reset = earliest). latest: a group that is new starts at the ends. */
void text_starts(struct kafka_client *c, const char *topic, bool latest, rd_kafka_topic_partition_list_t *list);

#endif
