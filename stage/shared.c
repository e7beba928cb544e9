/* What both lanes use of the stage: threads, faults, readiness, the drain's beginning, what a thread is doing now. */
#include "stage/internal.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"

/* How long a stop waits for brokers before it leaves the rest to the next owner. */
enum { DRAIN_US = 8 * 1000 * 1000 };
/* From when on a step hangs. */
enum { HANG_US = 60 * 1000 * 1000 };

int stage_thread(struct stage *s, pthread_t *thread, void *(*main)(void *), void *context, struct error *e)
{
    sigset_t before;
    threads_signals_block(&before); /* signals are the caller's: lanes never see one */
    atomic_fetch_add(&s->threads, 1);
    int failed = pthread_create(thread, NULL, main, context);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        atomic_fetch_sub(&s->threads, 1);
        return error_set(e, ERROR_FATAL, E_INTERNAL, "a thread cannot be started: %s", strerror(failed));
    }
    return 0;
}

void stage_thread_ends(struct stage *s)
{
    atomic_fetch_sub(&s->threads, 1);
}

void stage_fail(struct stage *s, const struct error *e)
{
    pthread_mutex_lock(&s->lock);
    if (s->fault.kind == ERROR_NONE) {
        s->fault = *e;
    }
    pthread_mutex_unlock(&s->lock);
    stage_error(s, e->code);
    stage_stop(s);
}

void stage_stop(struct stage *s)
{
    if (atomic_exchange(&s->stopping, true)) {
        return;
    }
    atomic_store(&s->give_up_us, clock_us() + DRAIN_US);
    pthread_mutex_lock(&s->lock);
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

bool stage_ended(const struct stage *s)
{
    return atomic_load(&s->threads) == 0;
}

void stage_set_ready(struct stage *s)
{
    engine_set_ready(s->engine, true);
    pthread_mutex_lock(&s->lock);
    s->ready = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

bool stage_wait_ready(struct stage *s)
{
    pthread_mutex_lock(&s->lock);
    while (!s->ready && !atomic_load(&s->stopping)) {
        pthread_cond_wait(&s->changed, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
    return !atomic_load(&s->stopping);
}

void pulse_begin(struct pulse *p, const char *step)
{
    atomic_store(&p->since_us, clock_us());
    atomic_store(&p->reported, false);
    atomic_store(&p->step, step);
}

void pulse_end(struct pulse *p)
{
    atomic_store(&p->step, NULL);
}

const char *pulse_hangs(struct pulse *p)
{
    const char *step = atomic_load(&p->step);
    return step && clock_us() - atomic_load(&p->since_us) > HANG_US ? step : NULL;
}

void stage_waits(struct stage *s, enum lane_name lane, const char *why)
{
    pthread_mutex_lock(&s->lock);
    snprintf(s->waits[lane], sizeof s->waits[lane], "%s", why);
    pthread_mutex_unlock(&s->lock);
}

void stage_error(struct stage *s, enum error_code code)
{
    atomic_fetch_add(&s->counters.errors[code], 1);
}

void stage_live(struct stage *s, int64_t ms)
{
    histogram_add(&s->meters.live, ms < 0 ? 0 : (uint64_t)ms * 1000);
    pthread_mutex_lock(&s->lock);
    if (s->live_count < LIVE_SAMPLES) {
        s->live_ms[s->live_count++] = ms < 0 ? 0 : ms;
    }
    pthread_mutex_unlock(&s->lock);
}
