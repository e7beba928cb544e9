/* The stage's frame: start, the figures of the last ten seconds, the watchdog, close. The work is in learn_lane.c and
 * tag_lane.c, what they share in shared.c. The surprise: nothing here waits for a broker, so a stop works before one
 * was ever reached. */
#include "stage/internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

enum {
    REPORT_US = 10 * 1000 * 1000,
};

/* ---- threads, faults, readiness ---- */

static bool stage_runs(void *context)
{
    const struct stage *s = context;
    return !atomic_load(&s->stopping);
}

static bool stage_may_finish(void *context)
{
    const struct stage *s = context;
    uint64_t give_up_us = atomic_load(&s->give_up_us);
    return give_up_us == 0 || clock_us() < give_up_us;
}

/* ---- figures and watchdog ---- */

static void stage_watch(struct pulse *p, const char *lane)
{
    const char *step = pulse_hangs(p);
    if (step && !atomic_exchange(&p->reported, true)) {
        log_warn("the %s lane has been %s for more than a minute", lane, step);
    }
}

static int compare_ms(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a;
    int64_t y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* " label-to-live p50 12 ms p99 40 ms", or nothing where nothing was folded. Starts a new interval. */
static void stage_live_text(struct stage *s, struct buffer *out)
{
    int64_t samples[LIVE_SAMPLES];
    pthread_mutex_lock(&s->lock);
    size_t count = s->live_count;
    memcpy(samples, s->live_ms, count * sizeof *samples);
    s->live_count = 0;
    pthread_mutex_unlock(&s->lock);
    if (count > 0) {
        qsort(samples, count, sizeof *samples, compare_ms);
        buffer_format(out, ", label-to-live p50 %" PRId64 " ms p99 %" PRId64 " ms", samples[count / 2],
                      samples[count * 99 / 100]);
    }
}

static uint64_t stage_keys(struct stage *s)
{
    struct snapshot *snapshot = NULL;
    struct memory_stats stats = {0};
    uint64_t keys = 0;
    if (memory_look(s->memory, &snapshot, NULL) == 0 && snapshot_stats(snapshot, &stats, NULL) == 0) {
        keys = stats.instances + stats.label_keys;
    }
    memory_stats_free(&stats);
    snapshot_release(snapshot);
    return keys;
}

static void stage_report(struct stage *s, double seconds)
{
    uint64_t texts = atomic_load(&s->counters.texts);
    uint64_t tokens = atomic_load(&s->counters.tokens);
    uint64_t folds = atomic_load(&s->counters.folds) + atomic_load(&s->counters.forgets);
    uint64_t dead_letters = atomic_load(&s->counters.dead_letters);
    bool worked = texts != s->tick_texts || folds != s->tick_folds || dead_letters != s->tick_dead_letters;
    if (worked) {
        int64_t lag = tag_lane_lag(s->tag);
        struct buffer line = {0};
        buffer_format(&line, "%.1f texts/s, %.0f tokens/s, ", (double)(texts - s->tick_texts) / seconds,
                      (double)(tokens - s->tick_tokens) / seconds);
        buffer_format(&line, lag < 0 ? "lag unknown" : "lag %" PRId64, lag);
        buffer_format(&line, ", %.1f folds/s, %" PRIu64 " keys, %" PRIu64 " dead letters",
                      (double)(folds - s->tick_folds) / seconds, stage_keys(s), dead_letters);
        stage_live_text(s, &line);
        log_info("%s", line.data);
        buffer_free(&line);
    }
    s->tick_texts = texts;
    s->tick_tokens = tokens;
    s->tick_folds = folds;
    s->tick_dead_letters = dead_letters;
}

void stage_tick(struct stage *s)
{
    stage_watch(learn_lane_pulse(s->learn), "learn");
    tag_lane_watch(s->tag, stage_watch);
    if (s->console) {
        shown_sample(s);
        console_sweep(s->console);
    }
    uint64_t now = clock_us();
    if (now - s->tick_us >= REPORT_US) {
        stage_report(s, (double)(now - s->tick_us) / 1e6);
        s->tick_us = now;
    }
}

void stage_reloaded(struct stage *s, bool taken)
{
    atomic_fetch_add(&s->counters.reloads[taken], 1);
}

/* ---- start and close ---- */

/* Before the lanes: a port in use is refused with nothing begun. */
static int stage_console(struct stage *s, struct error *e)
{
    struct console_source source = {shown_metrics, shown_ready, s, s->versions};
    if (s->config->port == 0) {
        return 0;
    }
    if (console_open(&s->console, s->config->listen, (uint16_t)s->config->port, &source, e)) {
        return -1;
    }
    bool v6 = strchr(s->config->listen, ':') != NULL;
    log_info("console: http://%s%s%s:%d with /metrics, /ready, /ping, /version", v6 ? "[" : "", s->config->listen,
             v6 ? "]" : "", (int)s->config->port);
    return 0;
}

int stage_start(struct stage **out, const struct config *config, struct engine *engine, struct memory *memory,
                const char *versions, struct error *e)
{
    struct stage *s = mem_zero(1, sizeof *s);
    s->config = config;
    s->engine = engine;
    s->memory = memory;
    s->versions = versions;
    s->wait_run = (struct kafka_wait){stage_runs, s};
    s->wait_finish = (struct kafka_wait){stage_may_finish, s};
    s->tick_us = clock_us();
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    engine_set_ready(engine, false);
    shown_open(s);
    if (stage_console(s, e) || tag_lane_start(&s->tag, s, e) || learn_lane_start(&s->learn, s, e)) {
        stage_close(s, NULL);
        return -1;
    }
    *out = s;
    return 0;
}

int stage_close(struct stage *s, struct error *e)
{
    if (!s) {
        return 0;
    }
    stage_stop(s);
    console_close(s->console);
    tag_lane_close(s->tag);
    learn_lane_close(s->learn);
    int result = 0;
    if (s->fault.kind != ERROR_NONE) {
        if (e) {
            *e = s->fault;
        }
        result = -1;
    }
    shown_close(s);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
    return result;
}
