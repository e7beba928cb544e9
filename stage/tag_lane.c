/* The tag lane, four threads in a row: poll (decode, tokenize) -> begin (batches go to the engine) -> end (their
 * predictions come back) -> publish (the output records written, sent and acknowledged, then offsets). One thread each,
 * so texts of a partition leave in the order in which they came, and the last text of an acknowledged batch is the
 * offset to commit. The surprise: on a rebalance or a stop what waits in the first queue is dropped, what was taken
 * from it is finished. A batch keeps a snapshot of the memory only until it is computed: however long the publish
 * thread waits for a broker, the memory's file does not grow for it. */
#include "stage/internal.h"

#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"

enum {
    BATCH_TEXTS = 4096,
    BATCHES_BEGUN = 2,    /* with the engine, beside the one that ends */
    BATCHES_COMPUTED = 4, /* and not yet with the publisher, from which on no more begin */
    PARTITIONS_MAX = 1024,
    POLL_MS = 500,
    PAUSED_POLL_MS = 20,
    ROOM_MS = 200,     /* how long a full queue is waited for before partitions are paused */
    SETTLE_MS = 15000, /* how long a rebalance waits for what is in compute */
    RETRY_MS = 1000,   /* between tries to compute a batch for which the device has no memory */
};

/* Bytes of a record that weigh as much as one token: a short text may carry a megabyte of metadata. */
enum { BYTES_PER_TOKEN = 64 };

/* One text on its way. */
struct work {
    struct work *next; /* in the overflow list */
    struct consumed *consumed;
    struct tokens tokens;
    struct prediction prediction;
    struct buffer value; /* the output record */
    uint64_t polled_us;
    const struct tag_lane *lane;
};

struct batch {
    struct predicting *predicting; /* NULL: nothing of it is predicted */
    const struct tokens **inputs;  /* [texts_count], of the texts that are */
    struct work **texts;
    size_t texts_count;
    uint64_t tokens;
    uint64_t number; /* batches are numbered as they begin, from 1 on */
    bool failed;     /* it could not be predicted */
    size_t count;
    struct work *works[];
};

struct tag_lane {
    struct stage *stage;
    pthread_t poll_thread, begin_thread, end_thread, publish_thread;
    bool poll_started, begin_started, end_started, publish_started;
    struct pulse compute_pulse, publish_pulse;
    struct queue *texts; /* struct work, weighed in tokens (work_weight) */
    /* struct batch, weighed 1; NULL is the last item */
    struct queue *begun, *computed;
    struct text_consumer *consumer;
    struct publisher *publisher;           /* the publish thread's */
    struct work *overflow, **overflow_end; /* polled and not yet in the queue; the poll thread's */
    pthread_mutex_t begin_lock;            /* covers begun_count; held while a batch begins, see lane_finish */
    uint64_t begun_count;
    uint64_t again_count; /* the end thread's: batches up to this number begin again; it holds begin_lock. 0: none */
    struct log_limit waits_limit, on_limit;
};

static void work_free(void *item)
{
    struct work *w = item;
    tokens_free(&w->tokens);
    prediction_free(&w->prediction);
    buffer_free(&w->value);
    consumed_free(w->consumed);
    free(w);
}

static size_t work_weight(const struct work *w)
{
    size_t bytes = w->consumed->value.bytes / BYTES_PER_TOKEN + 1;
    return w->tokens.count > bytes ? w->tokens.count : bytes;
}

static void batch_free(void *item)
{
    struct batch *b = item;
    if (b) {
        for (size_t i = 0; i < b->count; i++) {
            work_free(b->works[i]);
        }
        free(b->inputs);
        free(b->texts);
    }
    free(b);
}

static bool work_owned(const struct work *w)
{
    return text_consumer_owns(w->lane->consumer, w->consumed->partition, w->consumed->epoch);
}

/* ---- poll ---- */

static void lane_drop_waiting(struct tag_lane *t)
{
    queue_clear(t->texts, work_free);
    for (struct work *w = t->overflow; w;) {
        struct work *next = w->next;
        work_free(w);
        w = next;
    }
    t->overflow = NULL;
    t->overflow_end = &t->overflow;
}

static void lane_revoked(void *context, bool lost)
{
    struct tag_lane *t = context;
    lane_drop_waiting(t);
    if (!lost && !queue_settle(t->texts, SETTLE_MS)) {
        log_warn("partitions go to another replica before their last batch was acknowledged: it will be tagged again");
    }
}

static void lane_push_overflow(struct tag_lane *t, unsigned wait_ms)
{
    while (t->overflow) {
        struct work *w = t->overflow;
        struct work *next = w->next; /* once pushed, w may be answered and freed before this thread goes on */
        if (!queue_push(t->texts, w, work_weight(w), wait_ms)) {
            return;
        }
        t->overflow = next;
        if (!t->overflow) {
            t->overflow_end = &t->overflow;
        }
    }
}

static void lane_take_in(struct tag_lane *t, struct consumed *consumed)
{
    struct work *w = mem_zero(1, sizeof *w);
    w->lane = t;
    w->consumed = consumed;
    w->polled_us = clock_us();
    if (consumed->kind == CONSUMED_RECORD) {
        encoder_tokenize(engine_encoder(t->stage->engine), ENCODER_TEXT, consumed->text.text, &w->tokens);
    }
    *t->overflow_end = w;
    t->overflow_end = &w->next;
    bool paused = text_consumer_paused(t->consumer);
    lane_push_overflow(t, paused ? 0 : ROOM_MS);
    if (t->overflow && !paused) {
        text_consumer_pause(t->consumer);
    }
}

static void lane_resume_at_half(struct tag_lane *t)
{
    if (!text_consumer_paused(t->consumer)) {
        return;
    }
    lane_push_overflow(t, 0);
    if (!t->overflow && queue_weight(t->texts) <= (size_t)t->stage->config->queue_tokens / 2) {
        text_consumer_resume(t->consumer);
    }
}

static void *poll_main(void *context)
{
    struct tag_lane *t = context;
    struct stage *s = t->stage;
    struct error e = {0};
    int failed = 0;
    if (stage_wait_ready(s)) {
        failed = text_consumer_subscribe(t->consumer, &e);
    }
    while (!failed && !atomic_load(&s->stopping)) {
        struct consumed *consumed = NULL;
        int timeout_ms = text_consumer_paused(t->consumer) ? PAUSED_POLL_MS : POLL_MS;
        int got = text_consumer_poll(t->consumer, timeout_ms, &consumed, &e);
        failed = got < 0 ? -1 : 0;
        if (got > 0) {
            lane_take_in(t, consumed);
        }
        lane_resume_at_half(t);
    }
    if (failed) {
        stage_fail(s, &e);
    }
    queue_close(t->texts);
    lane_drop_waiting(t);
    stage_thread_ends(s);
    return NULL;
}

/* ---- compute ---- */

/* What would have worked later is no fault of a stage that stops. */
static void lane_failed(struct stage *s, const char *before, const struct error *e)
{
    if (!(e->kind == ERROR_RETRY && atomic_load(&s->stopping))) {
        stage_fail(s, e);
    } else {
        log_warn("stopped before the last batch was %s, it will be tagged again: %s", before, e->text);
    }
}

static void lane_computed(struct stage *s, const struct batch *b, const struct predict_times *times)
{
    atomic_fetch_add(&s->counters.tokens, b->tokens);
    atomic_fetch_add(&s->counters.batches, 1);
    histogram_add(&s->meters.batch_texts, b->texts_count);
    histogram_add(&s->meters.batch_tokens, b->tokens);
    histogram_add(&s->meters.encode, times->encode_us);
    histogram_add(&s->meters.retrieve, times->retrieve_us);
}

/* Hands to the engine what is a text and still ours; the rest of the batch passes as it is. */
static int lane_begin(struct tag_lane *t, struct batch *b, struct error *e)
{
    b->inputs = mem_alloc(b->count * sizeof *b->inputs);
    b->texts = mem_alloc(b->count * sizeof *b->texts);
    for (size_t i = 0; i < b->count; i++) {
        struct work *w = b->works[i];
        if (w->consumed->kind == CONSUMED_RECORD && work_owned(w)) {
            b->inputs[b->texts_count] = &w->tokens;
            b->texts[b->texts_count++] = w;
            b->tokens += w->tokens.count;
        }
    }
    return b->texts_count == 0
               ? 0
               : engine_predict_begin(t->stage->engine, NULL, b->inputs, b->texts_count, &b->predicting, e);
}

/* Waits for the engine's predictions and hands them to their texts, in place of those that they had. */
static int lane_end(struct tag_lane *t, struct batch *b, struct error *e)
{
    struct predict_times times = {0};
    if (!b->predicting) {
        return 0;
    }
    struct prediction *predictions = mem_zero(b->texts_count, sizeof *predictions);
    int failed = engine_predict_end(b->predicting, predictions, &times, e);
    b->predicting = NULL;
    for (size_t i = 0; i < b->texts_count && !failed; i++) {
        prediction_free(&b->texts[i]->prediction);
        b->texts[i]->prediction = predictions[i];
    }
    if (!failed) {
        lane_computed(t->stage, b, &times);
    }
    free(predictions);
    return failed;
}

/* A wait for memory of the device is no step that hangs. */
static void lane_wait(struct tag_lane *t)
{
    struct stage *s = t->stage;
    pulse_end(&t->compute_pulse);
    for (uint64_t until = clock_us() + RETRY_MS * 1000; clock_us() < until && !atomic_load(&s->stopping);) {
        clock_sleep_ms(50);
    }
    pulse_begin(&t->compute_pulse, "computing a batch");
}

/* Computes a batch again that had begun, until the device has memory for it or the stage stops. */
static int lane_again(struct tag_lane *t, struct batch *b, struct error *e)
{
    struct stage *s = t->stage;
    while (b->texts_count) {
        if (engine_predict_begin(s->engine, NULL, b->inputs, b->texts_count, &b->predicting, e)) {
            return -1;
        }
        if (lane_end(t, b, e) == 0) {
            return 0;
        }
        if (e->kind != ERROR_RETRY || atomic_load(&s->stopping)) {
            return -1;
        }
        lane_wait(t);
    }
    return 0;
}

/* Ends a batch. Where the device has no memory for it, the batch is computed again, and so are those that had begun
 * after it: they saw an older memory than it sees now, and no text's memory is older than that of the text before.
 * Until they are through, no other batch begins. */
static int lane_finish(struct tag_lane *t, struct batch *b, struct error *e)
{
    struct stage *s = t->stage;
    int failed = lane_end(t, b, e);
    if (failed && e->kind == ERROR_RETRY && !t->again_count && !atomic_load(&s->stopping)) {
        log_limited(&t->waits_limit, LOG_LEVEL_ERROR, "the tag lane waits, nothing is lost: %s", e->text);
        stage_waits(s, TAG_LANE, e->text);
        stage_error(s, e->code);
        pthread_mutex_lock(&t->begin_lock);
        t->again_count = t->begun_count;
        lane_wait(t);
    }
    if (t->again_count) {
        failed = lane_again(t, b, e);
    }
    if (t->again_count && (failed || b->number == t->again_count)) {
        t->again_count = 0;
        pthread_mutex_unlock(&t->begin_lock);
        stage_waits(s, TAG_LANE, "");
        if (!failed) {
            log_limited(&t->on_limit, LOG_LEVEL_INFO, "the tag lane goes on");
        }
    }
    return failed;
}

/* While the publisher has enough to do, texts wait where a rebalance drops them. */
static struct batch *lane_take(struct tag_lane *t, void **items, size_t batch_tokens)
{
    while (!queue_wait_below(t->computed, BATCHES_COMPUTED, POLL_MS)) {}
    size_t count = queue_take(t->texts, items, BATCH_TEXTS, batch_tokens, (unsigned)t->stage->config->batch_wait_ms);
    if (count == 0) {
        return NULL;
    }
    struct batch *b = mem_alloc(sizeof *b + count * sizeof *b->works);
    *b = (struct batch){.count = count};
    for (size_t i = 0; i < count; i++) {
        b->works[i] = items[i];
    }
    return b;
}

static void batch_push(struct queue *q, struct batch *b)
{
    while (!queue_push(q, b, 1, POLL_MS)) {}
}

/* The next batch begins as soon as all of the last is in work. */
static void *begin_main(void *context)
{
    struct tag_lane *t = context;
    struct stage *s = t->stage;
    struct error e = {0};
    void **items = mem_alloc(BATCH_TEXTS * sizeof *items);
    size_t batch_tokens = s->config->batch_tokens ? (size_t)s->config->batch_tokens : engine_slice_tokens(s->engine);
    int failed = 0;
    for (struct batch *b; (b = lane_take(t, items, batch_tokens)) != NULL;) {
        pthread_mutex_lock(&t->begin_lock);
        failed = failed || lane_begin(t, b, &e);
        b->number = failed ? 0 : ++t->begun_count;
        pthread_mutex_unlock(&t->begin_lock);
        if (failed) {
            stage_fail(s, &e); /* the poll thread then closes the queue: until then batches are let go uncommitted */
            queue_done(t->texts, b->count);
            batch_free(b);
            continue;
        }
        batch_push(t->begun, b);
        engine_wait_begun(s->engine);
    }
    batch_push(t->begun, NULL); /* the end: what is before it is finished */
    free(items);
    stage_thread_ends(s);
    return NULL;
}

/* Batches end in the order in which they began. */
static void *end_main(void *context)
{
    struct tag_lane *t = context;
    struct error e = {0};
    void *item = NULL;
    bool failed = false;
    while (queue_take(t->begun, &item, 1, 1, 0) == 1 && item) {
        struct batch *b = item;
        pulse_begin(&t->compute_pulse, "computing a batch");
        b->failed = lane_finish(t, b, &e);
        pulse_end(&t->compute_pulse);
        if (b->failed && !failed) {
            lane_failed(t->stage, "computed", &e);
        }
        failed = failed || b->failed;
        batch_push(t->computed, b);
    }
    batch_push(t->computed, NULL);
    stage_thread_ends(t->stage);
    return NULL;
}

/* ---- publish ---- */

/* Whether texts travel was decided when the batch was predicted: the option may be another one by now. */
static bool work_has_texts(const struct work *w)
{
    for (size_t i = 0; i < w->prediction.evidence_count; i++) {
        if (w->prediction.evidence[i].text.data) {
            return true;
        }
    }
    return false;
}

static bool work_smaller(void *context, struct buffer *out)
{
    const struct work *w = context;
    const struct consumed *c = w->consumed;
    if (!work_has_texts(w)) {
        return false;
    }
    struct record_source source = {c->topic, c->partition, c->offset};
    record_encode_prediction(&w->prediction, &c->text, &source, false, out);
    return true;
}

static void work_encode(struct work *w)
{
    const struct consumed *c = w->consumed;
    struct record_source source = {c->topic, c->partition, c->offset};
    record_encode_prediction(&w->prediction, &c->text, &source, true, &w->value);
}

struct outcomes {
    struct outcome *list;
    size_t count;
    struct partition_offset offsets[PARTITIONS_MAX];
    size_t offsets_count;
};

static void outcomes_offset(struct outcomes *o, const struct consumed *c)
{
    struct partition_offset offset = {c->partition, c->epoch, c->offset + 1};
    for (size_t i = 0; i < o->offsets_count; i++) {
        if (o->offsets[i].partition == c->partition && o->offsets[i].epoch == c->epoch) {
            o->offsets[i] = offset;
            return;
        }
    }
    o->offsets[o->offsets_count++] = offset;
}

/* One outcome for each text that is still ours. Stops where a batch touches more partitions than there is room for:
 * *from is then the first text of the next round. */
static void outcomes_fill(struct outcomes *o, const struct batch *b, size_t *from)
{
    o->count = 0;
    o->offsets_count = 0;
    for (; *from < b->count && o->offsets_count < PARTITIONS_MAX; ++*from) {
        struct work *w = b->works[*from];
        if (!work_owned(w)) {
            continue;
        }
        struct outcome *outcome = &o->list[o->count++];
        *outcome = (struct outcome){.input = w->consumed, .context = w};
        if (w->consumed->kind == CONSUMED_RECORD) {
            work_encode(w);
            outcome->value = (struct slice){w->value.data, w->value.bytes};
            outcome->smaller = work_smaller;
        }
        outcomes_offset(o, w->consumed);
    }
}

static void lane_published(struct stage *s, const struct outcomes *o, uint64_t begun_us)
{
    uint64_t now = clock_us();
    size_t dead_letters = 0;
    for (size_t i = 0; i < o->count; i++) {
        const struct outcome *outcome = &o->list[i];
        const struct work *w = outcome->context;
        histogram_add(&s->meters.text, now - w->polled_us);
        enum error_code why = w->consumed->kind == CONSUMED_POISON ? w->consumed->poison->code : outcome->refusal;
        if (why != E_OK) {
            stage_error(s, why);
            dead_letters++;
        }
    }
    histogram_add(&s->meters.publish, now - begun_us);
    atomic_fetch_add(&s->counters.dead_letters, dead_letters);
    atomic_fetch_add(&s->counters.texts, o->count);
}

static int lane_publish(struct tag_lane *t, const struct batch *b, struct outcomes *o, struct error *e)
{
    for (size_t from = 0; from < b->count;) {
        outcomes_fill(o, b, &from);
        if (o->count == 0) {
            continue;
        }
        uint64_t begun_us = clock_us();
        if (publisher_begin(t->publisher, e) ||
            publisher_publish(t->publisher, o->list, o->count, o->offsets, o->offsets_count, e) ||
            publisher_commit(t->publisher, e)) {
            publisher_abort(t->publisher);
            return -1;
        }
        lane_published(t->stage, o, begun_us);
    }
    return 0;
}

static void *publish_main(void *context)
{
    struct tag_lane *t = context;
    struct stage *s = t->stage;
    struct outcomes o = {.list = mem_alloc(BATCH_TEXTS * sizeof *o.list)};
    struct error e = {0};
    void *item = NULL;
    bool failed = false;
    while (queue_take(t->computed, &item, 1, 1, 0) == 1 && item) {
        struct batch *b = item;
        failed = failed || b->failed;
        pulse_begin(&t->publish_pulse, "publishing a batch");
        if (!failed && lane_publish(t, b, &o, &e)) {
            failed = true; /* from here on nothing more is published, or an offset would pass over this batch */
            lane_failed(s, "acknowledged", &e);
        }
        pulse_end(&t->publish_pulse);
        queue_done(t->texts, b->count);
        batch_free(b);
    }
    free(o.list);
    stage_thread_ends(s);
    return NULL;
}

/* ---- start and close ---- */

int tag_lane_start(struct tag_lane **out, struct stage *s, struct error *e)
{
    struct tag_lane *t = mem_zero(1, sizeof *t);
    struct text_consumer_events events = {lane_revoked, t};
    t->stage = s;
    t->overflow_end = &t->overflow;
    pthread_mutex_init(&t->begin_lock, NULL);
    t->texts = queue_open((size_t)s->config->queue_tokens);
    t->begun = queue_open(BATCHES_BEGUN);
    t->computed = queue_open(SIZE_MAX); /* what has begun always finds room */
    *out = t;                           /* tag_lane_close frees it, also after an error */
    if (text_consumer_open(&t->consumer, s->config, &events, e)) {
        return -1;
    }
    struct committer committer = text_consumer_committer(t->consumer);
    if (publisher_open(&t->publisher, s->config, &committer, &s->wait_finish, e)) {
        return -1;
    }
    if (stage_thread(s, &t->publish_thread, publish_main, t, e)) {
        return -1;
    }
    t->publish_started = true;
    if (stage_thread(s, &t->end_thread, end_main, t, e)) {
        batch_push(t->computed, NULL);
        return -1;
    }
    t->end_started = true;
    if (stage_thread(s, &t->begin_thread, begin_main, t, e)) {
        batch_push(t->begun, NULL);
        return -1;
    }
    t->begin_started = true;
    if (stage_thread(s, &t->poll_thread, poll_main, t, e)) {
        queue_close(t->texts);
        return -1;
    }
    t->poll_started = true;
    return 0;
}

void tag_lane_close(struct tag_lane *t)
{
    if (!t) {
        return;
    }
    if (t->poll_started) {
        pthread_join(t->poll_thread, NULL);
    }
    if (t->begin_started) {
        pthread_join(t->begin_thread, NULL);
    }
    if (t->end_started) {
        pthread_join(t->end_thread, NULL);
    }
    if (t->publish_started) {
        pthread_join(t->publish_thread, NULL);
    }
    publisher_close(t->publisher);
    text_consumer_close(t->consumer);
    queue_free(t->texts, work_free);
    queue_free(t->begun, batch_free);
    queue_free(t->computed, batch_free);
    pthread_mutex_destroy(&t->begin_lock);
    free(t);
}

void tag_lane_watch(struct tag_lane *t, void (*watch)(struct pulse *p, const char *lane))
{
    watch(&t->compute_pulse, "tag");
    watch(&t->publish_pulse, "tag");
}

struct consumer_status tag_lane_status(struct tag_lane *t)
{
    return text_consumer_status(t->consumer);
}

size_t tag_lane_queued(struct tag_lane *t)
{
    return queue_weight(t->texts);
}

/* The producer's trouble counts while something is with it: idle, it does not learn that it is over. */
bool tag_lane_troubled(struct tag_lane *t, char words[TROUBLE_BYTES])
{
    words[0] = '\0';
    return atomic_load(&t->publish_pulse.step) && publisher_troubled(t->publisher, words);
}

const char *tag_lane_hangs(struct tag_lane *t)
{
    const char *step = pulse_hangs(&t->compute_pulse);
    return step ? step : pulse_hangs(&t->publish_pulse);
}

ssize_t tag_lane_lags(struct tag_lane *t, struct partition_lag **out, int timeout_ms)
{
    return text_consumer_lags(t->consumer, out, timeout_ms);
}

int64_t tag_lane_lag(struct tag_lane *t)
{
    return text_consumer_lag(t->consumer, 1000);
}
