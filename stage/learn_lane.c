/* The learn lane, one thread: poll -> decode -> (dead letters) -> encode and fold in one transaction, offsets included.
 * Whatever waits is one batch, bounded in tokens. A batch is folded only after its dead letters are acknowledged, and a
 * record is let go only after its fold is committed, so a stop at any moment loses and repeats nothing.
 * The surprise: a full memory stops this lane here, inside lane_fold, without moving an offset. */
#include "stage/internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

enum {
    BATCH_RECORDS = 1024,
    POLL_MS = 500,
    RETRY_MS = 1000,            /* between tries to fold into a full memory */
    FLOWS_US = 5 * 1000 * 1000, /* without a refusal, before the lane says that it goes on */
    REFRESH_US = 1000 * 1000,   /* how often the device is looked at */
    LOOK_US = 60 * 1000 * 1000, /* how often the topics' ends are looked at, to store the time last caught up */
    BYTES_PER_TOKEN = 4,        /* of a text, roughly: only to bound a batch before it is tokenized */
};

struct learn_lane {
    struct stage *stage;
    pthread_t thread;
    struct pulse pulse;
    struct learn_consumer *consumer;
    struct publisher *publisher; /* for dead letters */
    struct consumed *records[BATCH_RECORDS];
    struct fold folds[BATCH_RECORDS];
    size_t count;
    _Atomic bool opened; /* consumer and publisher are there */
    struct log_limit moved_limit;
    bool ready;
    enum error_code full; /* why the memory takes no more, as it was said; E_OK: it does */
    bool looking;         /* the ends at the last look are not reached yet */
    uint64_t refused_us;  /* when the memory last took no more */
    uint64_t looked_us;   /* 0: not yet */
    uint64_t refreshed_us;
    uint64_t marks; /* learn_consumer_marks, as far as the memory has them */
};

struct pulse *learn_lane_pulse(struct learn_lane *l)
{
    return &l->pulse;
}

bool learn_lane_opened(struct learn_lane *l)
{
    return atomic_load(&l->opened);
}

bool learn_lane_troubled(struct learn_lane *l, char words[TROUBLE_BYTES])
{
    words[0] = '\0';
    return atomic_load(&l->opened) && (learn_consumer_troubled(l->consumer, words) ||
                                       (atomic_load(&l->pulse.step) && publisher_troubled(l->publisher, words)));
}

ssize_t learn_lane_lags(struct learn_lane *l, struct partition_lag **out, int timeout_ms)
{
    return atomic_load(&l->opened) ? learn_consumer_lags(l->consumer, out, timeout_ms) : -1;
}

/* ---- ready ---- */

static void lane_ready(struct learn_lane *l)
{
    struct stage *s = l->stage;
    struct snapshot *snapshot = NULL;
    struct memory_stats stats = {0};
    if (l->ready) {
        return;
    }
    l->ready = true;
    if (memory_look(s->memory, &snapshot, NULL) == 0 && snapshot_stats(snapshot, &stats, NULL) == 0) {
        log_info("ready: %" PRIu64 " instances, %" PRIu64 " labels in memory (version %" PRIu64 "); %s -> %s",
                 stats.instances, stats.labels, stats.version, s->config->texts_topic, s->config->predictions_topic);
    }
    memory_stats_free(&stats);
    snapshot_release(snapshot);
    stage_set_ready(s);
}

/* ---- a full memory ---- */

/* The memory takes no more: said once for each reason. Tags go on; this lane stays at its record. */
static void lane_full(struct learn_lane *l, const struct error *e)
{
    if (l->full != e->code) {
        log_error("the learn lane waits, nothing is lost: %s", e->text);
        stage_waits(l->stage, LEARN_LANE, e->text);
        stage_error(l->stage, e->code);
        l->full = e->code;
    }
    if (e->code == E_KEYS_MAX || e->code == E_MAP_FULL) {
        lane_ready(l); /* only a restart helps this lane, so the other one need not wait for it */
    }
    learn_consumer_pause(l->consumer);
    for (uint64_t until = clock_us() + RETRY_MS * 1000; clock_us() < until && !atomic_load(&l->stage->stopping);) {
        clock_sleep_ms(50);
    }
    l->refused_us = clock_us();
}

/* It is said late that a full memory takes records again: pages that come free let some in now and then. */
static void lane_flows(struct learn_lane *l)
{
    if (l->full != E_OK && clock_us() - l->refused_us >= FLOWS_US) {
        log_info("the learn lane goes on");
        stage_waits(l->stage, LEARN_LANE, "");
        l->full = E_OK;
    }
}

/* ---- opening ---- */

/* One transaction that stores small things about the reading itself, once all that was polled is folded: that each
 * partition was seen, by what its topic is known again, and when the memory last caught up (0: left as it is). */
static int lane_note(struct learn_lane *l, int64_t caught_up_ms, struct error *e)
{
    struct transaction *t = NULL;
    if (memory_begin(l->stage->memory, &t, e)) {
        return -1;
    }
    struct learn_position p;
    struct slice cluster = slice_of(learn_consumer_cluster(l->consumer));
    for (size_t i = 0; learn_consumer_position(l->consumer, i, &p); i++) {
        if (transaction_offset(t, cluster, slice_of(p.topic), p.partition, &p.read, e)) {
            transaction_abort(t);
            return -1;
        }
    }
    if (caught_up_ms && transaction_caught_up(t, caught_up_ms, e)) {
        transaction_abort(t);
        return -1;
    }
    return transaction_commit(t, e);
}

/* Opens the consumer from the offsets that the memory holds; an empty memory notes when it began. */
static int lane_open(struct learn_lane *l, struct error *e)
{
    struct stage *s = l->stage;
    struct snapshot *snapshot = NULL;
    struct memory_stats stats = {0};
    struct learn_offset *stored = NULL;
    int result = -1;
    if (topics_ensure(s->config, &s->wait_run, e) || memory_look(s->memory, &snapshot, e) ||
        snapshot_stats(snapshot, &stats, e)) {
        goto done;
    }
    if (stats.local_changes > 0) {
        log_warn("this memory has %" PRIu64
                 " changes made by hand (load, forget --local): it may differ from other replicas",
                 stats.local_changes);
    }
    stored = mem_zero(stats.offsets_count, sizeof *stored);
    for (size_t i = 0; i < stats.offsets_count; i++) {
        const struct memory_offset *o = &stats.offsets[i];
        stored[i] = (struct learn_offset){o->cluster, o->topic, o->partition, o->position};
    }
    if (learn_consumer_open(&l->consumer, s->config, stored, stats.offsets_count, stats.caught_up_ms, &s->wait_run,
                            e) ||
        publisher_open(&l->publisher, s->config, NULL, &s->wait_finish, e)) {
        goto done;
    }
    atomic_store(&l->opened, true);
    while ((result = lane_note(l, stats.caught_up_ms ? 0 : clock_wall_ms(), e)) != 0 && e->kind == ERROR_RETRY &&
           !atomic_load(&s->stopping)) {
        lane_full(l, e);
    }
    learn_consumer_resume(l->consumer);
done:
    free(stored);
    memory_stats_free(&stats);
    snapshot_release(snapshot);
    return result;
}

/* ---- a batch ---- */

static void lane_clear(struct learn_lane *l)
{
    for (size_t i = 0; i < l->count; i++) {
        consumed_free(l->records[i]);
    }
    l->count = 0;
}

/* Whatever waits, up to one slice of the backend. Waits only for the first record. */
static int lane_gather(struct learn_lane *l, struct error *e)
{
    size_t tokens_max = engine_slice_tokens(l->stage->engine);
    size_t sequence_max = encoder_max_seq_length(engine_encoder(l->stage->engine));
    size_t tokens = 0;
    while (l->count < BATCH_RECORDS && tokens < tokens_max) {
        struct consumed *record = NULL;
        int got = learn_consumer_poll(l->consumer, l->count ? 0 : POLL_MS, &record, e);
        if (got <= 0) {
            return got;
        }
        size_t guess = record->value.bytes / BYTES_PER_TOKEN + 2;
        tokens += guess < sequence_max ? guess : sequence_max;
        l->records[l->count++] = record;
    }
    return 0;
}

static struct fold lane_fold_of(const struct learn_lane *l, const struct consumed *c)
{
    struct fold f = {.name = c->key};
    bool instance = c->from == FROM_INSTANCES;
    if (c->kind == CONSUMED_RECORD && instance) {
        f.kind = FOLD_INSTANCE;
        f.text = c->instance.text;
        f.labels = c->instance.labels;
        f.labels_count = c->instance.labels_count;
    } else if (c->kind == CONSUMED_RECORD) {
        f.kind = FOLD_LABEL;
        f.text = c->label.text;
    } else if (c->key_usable) {
        f.kind = instance ? FOLD_FORGET : FOLD_UNDEFINE; /* a tombstone, or a poison record: what its key named goes */
    } else {
        f.kind = FOLD_SKIP;
    }
    f.source = (struct memory_source){
        .cluster = slice_of(learn_consumer_cluster(l->consumer)),
        .topic = slice_of(c->topic),
        .partition = c->partition,
        .offset = c->offset,
        .time_ms = c->timestamp_ms,
    };
    f.mark = *learn_consumer_mark(l->consumer, c);
    return f;
}

/* Poison goes to the dead letters, and is acknowledged there, before anything of the batch is folded. */
static int lane_bury(struct learn_lane *l, struct error *e)
{
    struct outcome outcomes[BATCH_RECORDS];
    size_t n = 0;
    for (size_t i = 0; i < l->count; i++) {
        if (l->records[i]->kind == CONSUMED_POISON) {
            outcomes[n++] = (struct outcome){.input = l->records[i]};
        }
    }
    if (n == 0) {
        return 0;
    }
    if (publisher_begin(l->publisher, e) || publisher_publish(l->publisher, outcomes, n, NULL, 0, e) ||
        publisher_commit(l->publisher, e)) {
        publisher_abort(l->publisher);
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        stage_error(l->stage, outcomes[i].input->poison->code);
    }
    atomic_fetch_add(&l->stage->counters.dead_letters, n);
    return 0;
}

/* What was committed: counted, its label-to-live taken, moved keys reported. */
static void lane_applied(struct learn_lane *l, size_t from, size_t to)
{
    int64_t now = clock_wall_ms();
    for (size_t i = from; i < to; i++) {
        const struct fold *f = &l->folds[i];
        bool forget = f->kind == FOLD_FORGET || f->kind == FOLD_UNDEFINE;
        atomic_fetch_add(forget ? &l->stage->counters.forgets : &l->stage->counters.folds, f->kind != FOLD_SKIP);
        if (!forget && f->kind != FOLD_SKIP && f->source.time_ms >= 0) {
            stage_live(l->stage, now - f->source.time_ms);
        }
        if (f->moved) {
            log_limited(&l->moved_limit, LOG_LEVEL_WARN,
                        "%.*s was last seen in another partition of %.*s: all its producers must agree on a "
                        "partitioner",
                        (int)f->name.bytes, f->name.data, (int)f->source.topic.bytes, f->source.topic.data);
        }
    }
}

/* Folds the batch, waiting as long as it takes. 0: all of it is committed; 1: told to stop before; -1: a fault. */
static int lane_fold(struct learn_lane *l, struct error *e)
{
    for (size_t i = 0; i < l->count; i++) {
        l->folds[i] = lane_fold_of(l, l->records[i]);
    }
    size_t most = l->full != E_OK ? 1 : l->count; /* one record tells whether there is room again, then two, four */
    for (size_t done = 0; done < l->count;) {
        size_t applied = 0;
        size_t n = most < l->count - done ? most : l->count - done;
        int failed = engine_fold(l->stage->engine, l->folds + done, n, &applied, e);
        lane_applied(l, done, done + applied);
        done += applied;
        if (!failed) {
            most = 2 * n;
            continue;
        }
        if (e->kind != ERROR_RETRY) {
            return -1;
        }
        if (applied == 0) {
            lane_full(l, e);
            most = 1;
            if (atomic_load(&l->stage->stopping)) {
                return 1;
            }
        }
    }
    learn_consumer_resume(l->consumer);
    return 0;
}

/* ---- the thread ---- */

/* Looks where the topics end, now and then, and notes that time once all before it is folded, or tombstones could be
 * missed after a long absence. The next look waits for that: a load that never pauses must not move the goal. */
static int lane_look(struct learn_lane *l, bool at_once, struct error *e)
{
    uint64_t now = clock_us();
    if (!l->looking && (at_once || !l->looked_us || now - l->looked_us >= LOOK_US)) {
        int looked = learn_consumer_look(l->consumer, POLL_MS, e);
        if (looked < 0) {
            return -1;
        }
        l->looking = looked > 0;
        l->looked_us = now;
    }
    int64_t seen_ms = l->looking ? learn_consumer_seen_ms(l->consumer) : 0;
    uint64_t marks = learn_consumer_marks(l->consumer);
    if (!seen_ms && marks == l->marks) {
        return 0;
    }
    if (lane_note(l, seen_ms, e)) {
        return e->kind == ERROR_RETRY ? 0 : -1; /* a full disk: with the next look */
    }
    l->looking = l->looking && !seen_ms;
    l->marks = marks;
    return 0;
}

/* While nothing is learned, too: a process of a group may be gone. */
static int lane_refresh(struct learn_lane *l, struct error *e)
{
    const uint64_t now = clock_us();
    if (now - l->refreshed_us < REFRESH_US) {
        return 0;
    }
    l->refreshed_us = now;
    return engine_refresh(l->stage->engine, e);
}

/* 0; 1: told to stop before a batch was folded; -1. */
static int lane_step(struct learn_lane *l, struct error *e)
{
    if (lane_gather(l, e)) {
        return -1;
    }
    if (l->count > 0) {
        pulse_begin(&l->pulse, "folding");
        int failed = lane_bury(l, e) ? -1 : lane_fold(l, e);
        pulse_end(&l->pulse);
        lane_clear(l);
        if (failed) {
            return failed;
        }
    }
    lane_flows(l);
    if (learn_consumer_caught_up(l->consumer)) {
        lane_ready(l);
        if (lane_refresh(l, e)) {
            return -1;
        }
    }
    return lane_look(l, false, e);
}

static void *lane_main(void *context)
{
    struct learn_lane *l = context;
    struct stage *s = l->stage;
    struct error e = {0};
    int ended = lane_open(l, &e);
    while (!ended && !atomic_load(&s->stopping)) {
        ended = lane_step(l, &e);
    }
    if (!ended) {
        ended = lane_look(l, true, &e);
    }
    lane_clear(l);
    if (ended < 0 && !(e.kind == ERROR_RETRY && atomic_load(&s->stopping))) {
        stage_fail(s, &e);
    }
    stage_thread_ends(s);
    return NULL;
}

int learn_lane_start(struct learn_lane **out, struct stage *s, struct error *e)
{
    struct learn_lane *l = mem_zero(1, sizeof *l);
    l->stage = s;
    if (stage_thread(s, &l->thread, lane_main, l, e)) {
        free(l);
        return -1;
    }
    *out = l;
    return 0;
}

void learn_lane_close(struct learn_lane *l)
{
    if (!l) {
        return;
    }
    pthread_join(l->thread, NULL);
    publisher_close(l->publisher);
    learn_consumer_close(l->consumer);
    free(l);
}
