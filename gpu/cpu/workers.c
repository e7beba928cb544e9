/* The worker threads, one a stream: each waits for a round, runs the work on its own stream and reports. Rounds go one
 * after another (cpu.turn), whoever asks.
 * What surprises: a stream's oneDNN state is made by its own thread, for OpenMP counts threads for each caller. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/clock.h"
#include "gpu/cpu/internal.h"

static int stream_prepare(struct stream *s, size_t i, void *context, struct error *e)
{
    (void)i, (void)context;
    return onednn_stream_open(&s->onednn, s->cpu->onednn, e);
}

static void *worker(void *argument)
{
    struct stream *s = argument;
    struct cpu *c = s->cpu;
    uint64_t done = 0;
    pthread_mutex_lock(&c->lock);
    for (;;) {
        while (c->round == done && !c->stopping) {
            pthread_cond_wait(&c->start, &c->lock);
        }
        if (c->stopping) {
            break;
        }
        done = c->round;
        pthread_mutex_unlock(&c->lock);
        s->result = (struct error){0};
        if (c->work(s, s->index, c->context, &s->result) != 0 && s->result.kind == ERROR_NONE) {
            error_set(&s->result, ERROR_FATAL, E_INTERNAL, "a worker failed without a reason");
        }
        pthread_mutex_lock(&c->lock);
        if (--c->busy == 0) {
            pthread_cond_signal(&c->finish);
        }
    }
    pthread_mutex_unlock(&c->lock);
    return NULL;
}

int workers_run(struct cpu *c, work_function *work, void *context, struct error *e)
{
    int result = 0;
    pthread_mutex_lock(&c->turn);
    pthread_mutex_lock(&c->lock);
    c->work = work;
    c->context = context;
    c->busy = c->count;
    c->round++;
    pthread_cond_broadcast(&c->start);
    while (c->busy > 0) {
        pthread_cond_wait(&c->finish, &c->lock);
    }
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < c->count && result == 0; i++) {
        const struct error *failed = &c->streams[i].result;
        if (failed->kind != ERROR_NONE) {
            result = error_set(e, failed->kind, failed->code, "%s", failed->text);
        }
    }
    pthread_mutex_unlock(&c->turn);
    return result;
}

int workers_start(struct cpu *c, size_t count, struct error *e)
{
    pthread_mutex_init(&c->turn, NULL);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->start, NULL);
    pthread_cond_init(&c->finish, NULL);
    c->streams = mem_zero(count, sizeof *c->streams);
    sigset_t before;
    threads_signals_block(&before); /* signals are the main thread's */
    for (; c->count < count; c->count++) {
        struct stream *s = &c->streams[c->count];
        s->cpu = c;
        s->index = c->count;
        int failed = pthread_create(&s->thread, NULL, worker, s);
        if (failed) {
            pthread_sigmask(SIG_SETMASK, &before, NULL);
            return error_set(e, ERROR_FATAL, E_INTERNAL, "cannot start worker thread %zu of %zu: %s; lower `threads`",
                             c->count + 1, count, strerror(failed));
        }
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return workers_run(c, stream_prepare, NULL, e);
}

void workers_stop(struct cpu *c)
{
    pthread_mutex_lock(&c->lock);
    c->stopping = true;
    pthread_cond_broadcast(&c->start);
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < c->count; i++) {
        struct stream *s = &c->streams[i];
        pthread_join(s->thread, NULL);
        onednn_stream_close(s->onednn);
        free(s->arena);
        free(s->scratch);
    }
    free(c->streams);
    pthread_cond_destroy(&c->finish);
    pthread_cond_destroy(&c->start);
    pthread_mutex_destroy(&c->lock);
    pthread_mutex_destroy(&c->turn);
}
