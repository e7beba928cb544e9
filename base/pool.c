/* The worker threads: see pool.h. One lock covers everything; a piece runs without it. What surprises: a seat is a
 * place where one piece runs at a time. A worker has two, its own and one for the brief piece that it lets in. */
#include "base/pool.h"

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/clock.h"

#define HELPERS_MAX 3 /* of a job: what it does is too small for more */

/* What pool_share hands round; on its caller's stack. */
struct shared {
    struct shared *next;
    int (*run)(void *context, size_t piece, size_t hand, struct error *e);
    void *context;
    size_t pieces, taken;
    size_t hands;   /* that ever joined: the next one's number */
    size_t working; /* that are in it now */
    struct error error;
};

struct worker {
    struct pool *pool;
    size_t index;
    pthread_t thread;
};

struct pool {
    struct worker *workers;
    size_t count, lanes;
    bool lanes_share;           /* workers that take the lanes' jobs share work too: there are no others */
    pthread_mutex_t lock;       /* covers all below, and what is the pool's in jobs and shared work */
    pthread_cond_t work;        /* there is something to do, or it is over */
    pthread_cond_t event;       /* a piece was taken or is done */
    struct job *waiting[LANES]; /* with pieces to be taken, the oldest first */
    struct job *helped;         /* that run and can be helped */
    struct shared *shared;      /* with pieces to be taken */
    enum lane last;             /* of the last piece taken */
    bool fair, stopping;
};

/* ---- jobs ---- */

/* The lane whose turn it is; LANES: nothing waits. */
static enum lane lane_next(const struct pool *p)
{
    bool bulk_is_due = p->fair && p->last == LANE_PROMPT && p->waiting[LANE_BULK];
    if (p->waiting[LANE_PROMPT] && !bulk_is_due) {
        return LANE_PROMPT;
    }
    return p->waiting[LANE_BULK] ? LANE_BULK : LANES;
}

static void helped_remove(struct pool *p, struct job *j)
{
    struct job **at = &p->helped;
    while (*at && *at != j) {
        at = &(*at)->next;
    }
    if (*at) {
        *at = j->next;
    }
}

static void job_finish_piece(struct pool *p, struct job *j)
{
    j->done++;
    if (j->done == j->pieces && j->help) {
        helped_remove(p, j);
    }
    pthread_cond_broadcast(&p->event);
}

/* Takes the lane's next piece and runs it. The lock is held on both sides of the call. */
static void piece_run(struct pool *p, enum lane lane, size_t seat)
{
    struct job *j = p->waiting[lane];
    size_t piece = j->taken++;
    p->last = lane;
    if (j->taken == j->pieces) {
        p->waiting[lane] = j->next;
        j->next = NULL;
        if (j->help) {
            j->next = p->helped;
            p->helped = j;
        }
        pthread_cond_broadcast(&p->event);
    }
    bool leave_out = j->error.kind != ERROR_NONE;
    pthread_mutex_unlock(&p->lock);
    struct error failed = {0};
    if (!leave_out && j->run(j, piece, seat, &failed) && failed.kind == ERROR_NONE) {
        error_set(&failed, ERROR_FATAL, E_INTERNAL, "a worker failed without a reason");
    }
    pthread_mutex_lock(&p->lock);
    if (failed.kind != ERROR_NONE && j->error.kind == ERROR_NONE) {
        j->error = failed;
    }
    job_finish_piece(p, j);
}

/* The one that has the fewest helpers, if it can use another. */
static struct job *job_to_help(struct pool *p)
{
    struct job *found = NULL;
    for (struct job *j = p->helped; j; j = j->next) {
        if (j->helpers < HELPERS_MAX && (!found || j->helpers < found->helpers)) {
            found = j;
        }
    }
    return found;
}

static void job_help(struct pool *p, struct job *j, size_t seat)
{
    j->helpers++;
    pthread_mutex_unlock(&p->lock);
    j->help(j, seat);
    pthread_mutex_lock(&p->lock);
    j->helpers--;
    pthread_cond_broadcast(&p->event);
}

void pool_begin(struct pool *p, struct job *job)
{
    struct job **end = &p->waiting[job->lane];
    job->next = NULL;
    job->taken = job->done = job->helpers = 0;
    job->error = (struct error){0};
    if (job->pieces == 0) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    while (*end) {
        end = &(*end)->next;
    }
    *end = job;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
}

int pool_end(struct pool *p, struct job *job, struct error *e)
{
    pthread_mutex_lock(&p->lock);
    while (job->done < job->pieces || job->helpers) {
        pthread_cond_wait(&p->event, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    const struct error *failed = &job->error;
    return failed->kind == ERROR_NONE ? 0 : error_set(e, failed->kind, failed->code, "%s", failed->text);
}

/* The lock is held on both sides of the call. */
static void brief_run(struct pool *p, size_t seat, bool *yielded)
{
    if (!*yielded && p->waiting[LANE_PROMPT] && p->waiting[LANE_PROMPT]->brief) {
        *yielded = true;
        piece_run(p, LANE_PROMPT, seat);
    }
}

void pool_yield(struct pool *p, size_t seat, bool *yielded)
{
    if (*yielded || seat >= p->count) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    brief_run(p, p->count + seat, yielded);
    pthread_mutex_unlock(&p->lock);
}

void pool_wait_taken(struct pool *p, enum lane lane)
{
    pthread_mutex_lock(&p->lock);
    while (p->waiting[lane]) {
        pthread_cond_wait(&p->event, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
}

/* ---- shared work ---- */

#define NO_SEAT SIZE_MAX

/* Does pieces of it until none is left to take, and between two of them one brief piece on `seat`, the worker's own.
 * The lock is held on both sides of the call. */
static void shared_work(struct pool *p, struct shared *w, size_t seat)
{
    size_t hand = w->hands++;
    bool yielded = seat == NO_SEAT;
    w->working++;
    while (w->taken < w->pieces && w->error.kind == ERROR_NONE) {
        size_t piece = w->taken++;
        struct error failed = {0};
        pthread_mutex_unlock(&p->lock);
        if (w->run(w->context, piece, hand, &failed) && failed.kind == ERROR_NONE) {
            error_set(&failed, ERROR_FATAL, E_INTERNAL, "a worker failed without a reason");
        }
        pthread_mutex_lock(&p->lock);
        if (failed.kind != ERROR_NONE && w->error.kind == ERROR_NONE) {
            w->error = failed;
        }
        brief_run(p, seat, &yielded);
    }
    w->working--;
    pthread_cond_broadcast(&p->event);
}

/* Shared work with pieces left. Who has left it never finds it again, so a worker joins once. */
static struct shared *shared_next(struct pool *p)
{
    struct shared *w = p->shared;
    while (w && (w->taken == w->pieces || w->error.kind != ERROR_NONE)) {
        w = w->next;
    }
    return w;
}

int pool_share(struct pool *p, size_t pieces, int (*run)(void *context, size_t piece, size_t hand, struct error *e),
               void *context, struct error *e)
{
    struct shared w = {.run = run, .context = context, .pieces = pieces};
    if (pieces == 0) {
        return 0;
    }
    pthread_mutex_lock(&p->lock);
    w.next = p->shared;
    p->shared = &w;
    if (pieces > 1) {
        pthread_cond_broadcast(&p->work);
    }
    shared_work(p, &w, NO_SEAT);
    struct shared **at = &p->shared;
    while (*at != &w) {
        at = &(*at)->next;
    }
    *at = w.next;
    while (w.working) {
        pthread_cond_wait(&p->event, &p->lock);
    }
    pthread_mutex_unlock(&p->lock);
    return w.error.kind == ERROR_NONE ? 0 : error_set(e, w.error.kind, w.error.code, "%s", w.error.text);
}

size_t pool_hands(const struct pool *p)
{
    return p->count + 1; /* and the caller */
}

/* ---- threads ---- */

static void *worker_main(void *argument)
{
    const struct worker *w = argument;
    struct pool *p = w->pool;
    const bool has_lane = w->index < p->lanes, shares = !has_lane || p->lanes_share;
    free(mem_alloc(1)); /* the thread's own heap is reserved now, not while a library needs memory and has no way out */
    pthread_mutex_lock(&p->lock);
    while (!p->stopping) {
        struct shared *shared = shares ? shared_next(p) : NULL;
        enum lane lane = has_lane ? lane_next(p) : LANES;
        struct job *helped = has_lane ? job_to_help(p) : NULL;
        if (shared) {
            shared_work(p, shared, has_lane ? w->index : NO_SEAT);
        } else if (lane != LANES) {
            piece_run(p, lane, w->index);
        } else if (helped) {
            job_help(p, helped, w->index);
        } else {
            pthread_cond_wait(&p->work, &p->lock);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

int pool_open(struct pool **out, size_t workers, size_t lanes, struct error *e)
{
    struct pool *p = mem_zero(1, sizeof *p);
    int failed = 0;
    p->lanes = lanes;
    p->lanes_share = lanes == workers;
    p->fair = true;
    p->last = LANE_BULK;
    p->workers = mem_zero(workers, sizeof *p->workers);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->event, NULL);
    sigset_t before;
    threads_signals_block(&before); /* signals are the main thread's */
    for (; p->count < workers && !failed; p->count += !failed) {
        struct worker *w = &p->workers[p->count];
        w->pool = p;
        w->index = p->count;
        failed = pthread_create(&w->thread, NULL, worker_main, w);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failed) {
        error_set(e, ERROR_FATAL, E_INTERNAL, "cannot start worker thread %zu of %zu: %s; lower `threads`",
                  p->count + 1, workers, strerror(failed));
        pool_close(p);
        return -1;
    }
    *out = p;
    return 0;
}

void pool_close(struct pool *p)
{
    if (!p) {
        return;
    }
    pthread_mutex_lock(&p->lock);
    p->stopping = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (size_t i = 0; i < p->count; i++) {
        pthread_join(p->workers[i].thread, NULL);
    }
    pthread_cond_destroy(&p->event);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p->workers);
    free(p);
}

size_t pool_seats(const struct pool *p)
{
    return 2 * p->count;
}

void pool_fair(struct pool *p, bool fair)
{
    pthread_mutex_lock(&p->lock);
    p->fair = fair;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
}
