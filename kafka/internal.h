/* What the files of kafka/ share: librdkafka's callbacks, why a connection fails, and the client that asks whether a
 * topic is still the one that was read. */
#ifndef ENGRAM_KAFKA_INTERNAL_H
#define ENGRAM_KAFKA_INTERNAL_H

#include <librdkafka/rdkafka.h>

#include "kafka/client.h"
#include "kafka/position.h"

/* ---- trouble.c: librdkafka's callbacks for its log and its errors ---- */

void trouble_log(const rd_kafka_t *rk, int level, const char *facility, const char *text);
void trouble_error(rd_kafka_t *rk, int err, const char *reason, void *opaque);

/* ---- connection.c: why a connection fails ---- */

/* librdkafka's callback for a broker's certificate: accepts what OpenSSL accepts, and keeps what it does not. */
int connection_certificate_check(rd_kafka_t *rk, const char *broker, int32_t id, int *x509_error, int depth,
                                 const char *der, size_t bytes, char *text, size_t text_bytes, void *opaque);
void connection_text(const char *text, char *out, size_t bytes);  /* librdkafka's line, no secret in it */
void connection_failed(struct kafka_client *c, const char *text); /* sets c->reason */
/* What to do about c->reason where the broker or this client refuses the other; NULL: nobody is there. A literal. */
const char *connection_advice(const struct kafka_client *c);
/* The reason, then that advice. */
void connection_words(const struct kafka_client *c, const char *advice, struct buffer *out);

/* ---- position.c: whether marks hold ---- */

/* Asks with a client of its own, so that nothing else that is read is disturbed. It belongs to one thread. */
struct prober *prober_open(const struct config *config); /* does not connect */
void prober_close(struct prober *p);                     /* NULL is fine */
/* Fills every verdict, within timeout_ms; what seems broken is asked about twice. */
void positions_check(struct prober *p, struct position_check *checks, size_t n, int timeout_ms);
bool prober_sees(struct prober *p, const char *topic, int timeout_ms); /* see readings_topic_seen */

#endif
