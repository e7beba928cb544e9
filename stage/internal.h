/* What the stage's files share. Threads: one for the learn lane; four for the tag lane (poll, begin, end, publish); the
 * caller's, for start, tick, stop and close. */
#ifndef ENGRAM_STAGE_INTERNAL_H
#define ENGRAM_STAGE_INTERNAL_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/metrics.h"
#include "consumer/consumer.h"
#include "producer/producer.h"
#include "stage/console/console.h"
#include "stage/stage.h"

/* ---- queue.c: between two threads of a lane ---- */

struct queue;

struct queue *queue_open(size_t weight_max);
void queue_free(struct queue *q, void (*release)(void *item)); /* NULL is fine */
/* Waits up to wait_ms for room; false: there was none, or the queue is closed, and the item is still the caller's. */
bool queue_push(struct queue *q, void *item, size_t weight, unsigned wait_ms);
/* Waits up to wait_ms until less than `weight` waits; false: it does not. */
bool queue_wait_below(struct queue *q, size_t weight, unsigned wait_ms);
/* Waits for an item, then up to fill_ms for weight_max to be there; takes what waits within both bounds (one item at
 * least). 0: the queue is closed. */
size_t queue_take(struct queue *q, void **items, size_t items_max, size_t weight_max, unsigned fill_ms);
void queue_done(struct queue *q, size_t count); /* so many of what was taken is finished */
/* Waits up to wait_ms until all that was taken is done; false: it is not. */
bool queue_settle(struct queue *q, unsigned wait_ms);
void queue_clear(struct queue *q, void (*release)(void *item)); /* drops what waits */
void queue_close(struct queue *q);
size_t queue_weight(struct queue *q);

/* ---- shared.c: what the lanes use of the stage ---- */

/* What a thread is doing now, for the watchdog. step NULL: nothing that could hang. */
struct pulse {
    const char *_Atomic step;
    _Atomic uint64_t since_us;
    _Atomic bool reported;
};

void pulse_begin(struct pulse *p, const char *step);
void pulse_end(struct pulse *p);
const char *pulse_hangs(struct pulse *p); /* the step that lasts too long, or NULL */

enum { LIVE_SAMPLES = 1024, ERROR_KINDS = E_INTERNAL + 1 };

struct stage_counters { /* since start; any thread adds */
    _Atomic uint64_t texts, tokens, folds, forgets, dead_letters, batches;
    _Atomic uint64_t errors[ERROR_KINDS]; /* by error_code */
    _Atomic uint64_t reloads[2];          /* refused, taken */
};

struct stage_meters { /* since start; any thread adds */
    struct histogram batch_texts, batch_tokens, encode, retrieve, publish, text, live;
};

/* What the console shows beside them: samples that the caller's thread takes. */
struct shown {
    pthread_mutex_t lock; /* covers everything down to lags_count; no lane takes it */
    char why[1100];       /* why the stage is not ready; empty: it is */
    struct consumer_status texts;
    size_t queue_tokens;
    uint64_t keys, bytes, version;
    char digest[33];
    struct partition_lag *lags[2]; /* the tag lane's, the learn lane's */
    size_t lags_count[2];
    uint64_t memory_us, lags_us; /* when these were last taken; the caller's thread */
};

enum lane_name { TAG_LANE, LEARN_LANE, LANE_NAMES };

struct tag_lane;
struct learn_lane;

struct stage {
    const struct config *config;
    struct engine *engine;
    struct memory *memory;

    _Atomic bool stopping;         /* drain now */
    _Atomic uint64_t give_up_us;   /* while stopping: when to stop waiting for brokers; 0: not stopping */
    _Atomic int threads;           /* still running */
    struct kafka_wait wait_run;    /* false once stopping: for waits that have nothing to lose */
    struct kafka_wait wait_finish; /* false when the drain's time is over: for what is already computed */

    pthread_mutex_t lock; /* covers everything down to `tag` */
    pthread_cond_t changed;
    bool ready; /* the learn lane has reached the end seen at start */
    struct error fault;
    char waits[LANE_NAMES][1024];  /* why a lane waits for something that is no broker; empty: it does not */
    int64_t live_ms[LIVE_SAMPLES]; /* label-to-live of the interval's folds, the first so many */
    size_t live_count;

    struct stage_counters counters;
    struct stage_meters meters;
    struct shown shown;
    struct console *console; /* NULL: none */
    const char *versions;
    struct tag_lane *tag;
    struct learn_lane *learn;

    /* The caller's thread only: what stage_tick saw last. */
    uint64_t tick_us;
    uint64_t tick_texts, tick_tokens, tick_folds, tick_dead_letters;
};

int stage_thread(struct stage *s, pthread_t *thread, void *(*main)(void *), void *context, struct error *e);
void stage_thread_ends(struct stage *s);
void stage_fail(struct stage *s, const struct error *e); /* keeps the first fault, begins the drain */
void stage_live(struct stage *s, int64_t ms);            /* one fold's label-to-live */
void stage_set_ready(struct stage *s);
void stage_waits(struct stage *s, enum lane_name lane, const char *why); /* "": not any more */
void stage_error(struct stage *s, enum error_code code);                 /* counts it; any thread */
bool stage_wait_ready(struct stage *s); /* false: the stage stops before it was ready */

/* ---- the lanes ---- */

int learn_lane_start(struct learn_lane **out, struct stage *s, struct error *e);
void learn_lane_close(struct learn_lane *l); /* joins; NULL is fine */
struct pulse *learn_lane_pulse(struct learn_lane *l);

int tag_lane_start(struct tag_lane **out, struct stage *s, struct error *e);
void tag_lane_close(struct tag_lane *t); /* joins; NULL is fine */
void tag_lane_watch(struct tag_lane *t, void (*watch)(struct pulse *p, const char *lane));
int64_t tag_lane_lag(struct tag_lane *t); /* -1: unknown */

/* For what is shown; the caller's thread. Lags as text_consumer_lags; troubles in words, as kafka_client_troubled. */
struct consumer_status tag_lane_status(struct tag_lane *t);
size_t tag_lane_queued(struct tag_lane *t); /* tokens */
bool tag_lane_troubled(struct tag_lane *t, char words[TROUBLE_BYTES]);
const char *tag_lane_hangs(struct tag_lane *t);
ssize_t tag_lane_lags(struct tag_lane *t, struct partition_lag **out, int timeout_ms);
bool learn_lane_opened(struct learn_lane *l); /* it has found brokers and topics */
bool learn_lane_troubled(struct learn_lane *l, char words[TROUBLE_BYTES]);
ssize_t learn_lane_lags(struct learn_lane *l, struct partition_lag **out, int timeout_ms);

/* ---- shown.c ---- */

void shown_open(struct stage *s);
void shown_close(struct stage *s);
void shown_sample(struct stage *s);
bool shown_ready(void *context, struct buffer *why);
void shown_metrics(void *context, struct buffer *out);

#endif
