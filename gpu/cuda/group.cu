/* Several processes, each with a GPU and a memory of its own, share the keys: each has those on its GPU whose name's
 * hash is its rank's, modulo their number. WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT say who they are, as NCCL's
 * users are used to.
 *
 * A search is one round of all processes: its queries go to all of them, each finds the best of its keys, and these go
 * back. NCCL needs all to call it in one order, so rank 0 says what comes next: whoever has queries tells it, and once
 * all are ready it sends each the plan of a round. That goes over one socket a rank, which also shows who is gone. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "gpu/cuda/group.h"

enum { HEAR_SECONDS = 2, SAY_SECONDS = 5 };
static const double SPIN_SECONDS = 0.002;

/* ---- the end ---- */

/* From now on every search fails, for good: the others do without no rank. The first reason counts. */
static void group_fail(struct group *g, enum error_code code, const char *text)
{
    pthread_mutex_lock(&g->lock);
    if (g->error.kind == ERROR_NONE && !g->closing) {
        host_of(g)->error_set(&g->error, ERROR_FATAL, code, "%s", text);
    }
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void rank_lost(struct group *g, size_t rank)
{
    char text[160];
    snprintf(text, sizeof text, "rank %zu of %zu, which has a part of the keys, is gone: start all ranks again", rank,
             g->world);
    group_fail(g, E_NOT_FOUND, text);
    for (size_t i = 1; g->rank == 0 && i < g->world; i++) {
        struct message m = message_of(g, MESSAGE_LOST);
        m.rank = (uint32_t)rank;
        message_send(g->sockets[i], &m);
    }
}

/* ---- the thread that listens ---- */

static void bell_ring(struct group *g)
{
    const ssize_t bytes = write(g->bell[1], "", 1); /* full: it rings already */
    (void)bytes;
}

static bool usable(struct group *g)
{
    pthread_mutex_lock(&g->lock);
    const bool is = !g->closing && g->error.kind == ERROR_NONE;
    pthread_mutex_unlock(&g->lock);
    return is;
}

static void round_add(struct group *g, const struct want *wants)
{
    struct round *r = (struct round *)calloc(1, sizeof *r);
    if (!r) {
        group_fail(g, E_INTERNAL, "out of memory");
        return;
    }
    memcpy(r->wants, wants, sizeof r->wants);
    pthread_mutex_lock(&g->lock);
    *g->rounds_end = r;
    g->rounds_end = &r->next;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

/* Rank 0: begins a round where all are ready and somebody wants one. */
static void round_begin(struct group *g)
{
    struct message m = message_of(g, MESSAGE_ROUND);
    bool ready = true, wanted = false;
    for (size_t i = 0; i < g->world; i++) {
        ready = ready && g->are_ready[i];
        wanted = wanted || g->wants[i].n;
    }
    if (!ready || !wanted) {
        return;
    }
    memcpy(m.wants, g->wants, sizeof m.wants);
    memset(g->wants, 0, sizeof g->wants);
    for (size_t i = 1; i < g->world; i++) {
        if (!message_send(g->sockets[i], &m)) {
            rank_lost(g, i);
            return;
        }
    }
    g->told_want = false;
    round_add(g, m.wants);
}

/* The first search in that state; the caller has the lock. */
static struct finish *first_in(struct group *g, enum finish_state state)
{
    struct finish *f = g->waiting;
    while (f && f->state != state) {
        f = f->next_waiting;
    }
    return f;
}

/* What this rank has to say: that it is ready, and that it has queries. */
static void news_tell(struct group *g)
{
    struct message m = message_of(g, MESSAGE_WANT);
    pthread_mutex_lock(&g->lock);
    const bool ready = g->ready && !g->told_ready;
    struct finish *f = first_in(g, FINISH_WAITS);
    const bool wants = f && !g->told_want;
    if (wants) {
        f->state = FINISH_TOLD;
        m.wants[0] = {(uint32_t)f->n, (uint32_t)f->b, (uint32_t)f->kinds, f->careful};
    }
    pthread_mutex_unlock(&g->lock);
    g->told_ready = g->told_ready || ready;
    g->told_want = g->told_want || wants;
    if (g->rank == 0) {
        g->are_ready[0] = g->told_ready;
        g->wants[0] = wants ? m.wants[0] : g->wants[0];
        return;
    }
    struct message first = message_of(g, MESSAGE_READY);
    if ((ready && !message_send(g->sockets[0], &first)) || (wants && !message_send(g->sockets[0], &m))) {
        rank_lost(g, 0);
    }
}

static bool want_sound(const struct want *w)
{
    return w->n <= QUERIES_MAX && w->kinds <= KEY_BOTH && (w->n == 0 || w->b > 0);
}

static bool wants_sound(const struct group *g, const struct want *wants)
{
    for (size_t i = 0; i < g->world; i++) {
        if (!want_sound(&wants[i])) {
            return false;
        }
    }
    return true;
}

static void message_take(struct group *g, size_t from)
{
    struct message m;
    if (!message_receive(g->sockets[from], &m)) {
        rank_lost(g, from);
        return;
    }
    if (g->rank == 0 && m.kind == MESSAGE_READY) {
        g->are_ready[from] = true;
    } else if (g->rank == 0 && m.kind == MESSAGE_WANT && want_sound(&m.wants[0])) {
        g->wants[from] = m.wants[0];
    } else if (g->rank > 0 && m.kind == MESSAGE_ROUND && wants_sound(g, m.wants)) {
        g->told_want = g->told_want && !m.wants[g->rank].n;
        round_add(g, m.wants);
    } else if (g->rank > 0 && m.kind == MESSAGE_LOST) {
        rank_lost(g, m.rank);
    } else {
        rank_lost(g, from);
    }
}

/* Rank 0: true while a search waits for a rank that has not caught up with its topics; says so once. */
static bool unready_tell(struct group *g)
{
    bool wanted = false;
    size_t late = 0;
    while (late < g->world && g->are_ready[late]) {
        late++;
    }
    for (size_t i = 0; i < g->world; i++) {
        wanted = wanted || g->wants[i].n;
    }
    if (g->rank > 0 || !wanted || late == g->world) {
        g->waits_since = 0;
        return false;
    }
    g->waits_since = g->waits_since > 0 ? g->waits_since : seconds();
    if (seconds() - g->waits_since > SAY_SECONDS && !g->told_unready) {
        g->told_unready = true;
        host_of(g)->log_info("texts wait until rank %zu of %zu has its keys: it is still catching up", late, g->world);
    }
    return true;
}

static void *listen_to_all(void *context)
{
    struct group *g = (struct group *)context;
    const size_t count = g->rank == 0 ? g->world : 1;
    while (usable(g)) {
        struct pollfd all[RANKS_MAX + 1];
        for (size_t i = 0; i < count; i++) {
            all[i] = {g->sockets[i], POLLIN, 0}; /* poll passes over -1: rank 0 itself */
        }
        all[count] = {g->bell[0], POLLIN, 0};
        news_tell(g);
        if (g->rank == 0) {
            round_begin(g);
            news_tell(g); /* what waits behind what is under way now */
        }
        if (poll(all, count + 1, unready_tell(g) ? 1000 : -1) < 0 && errno != EINTR) {
            rank_lost(g, g->rank);
        }
        char rings[64];
        if (all[count].revents && read(g->bell[0], rings, sizeof rings) < 0) {
            rank_lost(g, g->rank);
        }
        for (size_t i = 0; i < count && usable(g); i++) {
            if (all[i].revents) {
                message_take(g, i);
            }
        }
    }
    for (size_t i = 0; i < count; i++) {
        shutdown(g->sockets[i], SHUT_RDWR); /* the others hear of it at once */
    }
    return NULL;
}

/* ---- the thread that runs rounds, and alone calls NCCL ---- */

/* Also ends what waits for ranks that are gone. */
static void comm_end(struct group *g)
{
    if (g->comm) {
        device_use(g->keys->cuda, 0);
        ncclCommAbort(g->comm);
        g->comm = NULL;
    }
}

/* This rank's search that the round is about. */
static struct finish *finish_next(struct group *g)
{
    pthread_mutex_lock(&g->lock);
    struct finish *f = first_in(g, FINISH_TOLD);
    if (f) {
        f->state = FINISH_RUNS;
    }
    pthread_mutex_unlock(&g->lock);
    return f;
}

static void queries_send(struct group *g, const struct finding *f, size_t root)
{
    struct stream *s = g->stream;
    nccl_put(s, ncclBroadcast(f->queries, (void *)(uintptr_t)f->queries, f->n * g->keys->dim, ncclFloat32, (int)root,
                              g->comm, s->on[0]));
}

/* To all, though only the rank whose queries they answer needs them. */
static void best_gather(struct group *g, const struct finding *f, struct keys_hit *lists, uint32_t *counts)
{
    struct stream *s = g->stream;
    nccl_put(s, ncclAllGather(f->best, lists, f->n * f->b * sizeof *lists, ncclUint8, g->comm, s->on[0]));
    nccl_put(s, ncclAllGather(f->best_counts, counts, f->n, ncclUint32, g->comm, s->on[0]));
}

/* What one rank's queries need; `mine` where it is this one. */
static struct finding part_place(struct group *g, const struct want *w, const struct finish *mine,
                                 struct keys_hit **lists, uint32_t **counts)
{
    struct stream *s = g->stream;
    struct finding f = {};
    f.queries = mine ? mine->queries : NULL;
    f.n = w->n;
    f.b = w->b;
    finding_place(s, 0, &f, g->keys->dim, g->keys->stride, g->world, lists, counts, &s->error);
    return f;
}

static void part_run(struct group *g, const struct want *w, size_t root, struct finish *mine)
{
    struct stream *s = g->stream;
    const struct searching x = {g->keys, s, NULL, (enum key_kind)w->kinds, w->careful != 0};
    struct keys_hit *lists;
    uint32_t *counts;
    struct finding f = part_place(g, w, mine, &lists, &counts);
    if (mine) {
        put(s, cudaStreamWaitEvent(s->on[0], mine->ready, 0), "the queries");
    }
    queries_send(g, &f, root);
    device_search(&x, 0, &f);
    best_gather(g, &f, lists, counts);
    if (mine && !failed(s)) {
        finding_merge(s, 0, &f, lists, counts, g->world);
        result_download(s, &f, mine);
    }
}

/* All of a round, one rank's part after the other. What may wait for the stream comes first: once the first part waits
 * for other ranks, only round_wait may, which hears when one of them is gone. */
static void parts_run(struct group *g, const struct round *r, struct finish *mine)
{
    struct keys *k = g->keys;
    struct keys_hit *lists;
    uint32_t *counts;
    pthread_mutex_lock(&k->lock);
    device_use(k->cuda, 0);
    for (size_t i = 0; i < g->world && !failed(g->stream); i++) {
        if (r->wants[i].n) {
            part_place(g, &r->wants[i], i == g->rank ? mine : NULL, &lists, &counts);
        }
    }
    for (size_t i = 0; i < g->world && !failed(g->stream); i++) {
        if (r->wants[i].n) {
            part_run(g, &r->wants[i], i, i == g->rank ? mine : NULL);
        }
    }
    reader_record(k, g->stream);
    pthread_mutex_unlock(&k->lock);
}

/* Until the stream is done. A rank that is gone leaves the others' streams waiting for ever: then NCCL is ended. */
static void round_wait(struct group *g)
{
    const double begun = seconds();
    const struct timespec pause = {0, 50 * 1000};
    while (cudaStreamQuery(g->stream->on[0]) == cudaErrorNotReady) {
        ncclResult_t async = ncclSuccess;
        nccl_put(g->stream, ncclCommGetAsyncError(g->comm, &async));
        nccl_put(g->stream, async == ncclInProgress ? ncclSuccess : async);
        if (failed(g->stream) || !usable(g)) {
            comm_end(g);
            break;
        }
        if (seconds() - begun < SPIN_SECONDS) {
            sched_yield();
        } else {
            nanosleep(&pause, NULL);
        }
    }
    streams_wait(g->stream);
}

/* NCCL or the stream has failed: most likely since a rank is gone, of which the listener hears, and says who. */
static void round_fail(struct group *g)
{
    const double begun = seconds();
    const struct timespec pause = {0, 10 * 1000 * 1000};
    while (usable(g) && seconds() - begun < HEAR_SECONDS) {
        nanosleep(&pause, NULL);
    }
    group_fail(g, g->stream->error.code, g->stream->error.text);
}

static void round_run(struct group *g, const struct round *r)
{
    struct finish *mine = r->wants[g->rank].n ? finish_next(g) : NULL;
    parts_run(g, r, mine);
    round_wait(g);
    if (failed(g->stream)) {
        round_fail(g);
    }
    pthread_mutex_lock(&g->lock);
    if (mine) {
        mine->state = FINISH_DONE;
    }
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
}

static void *run_rounds(void *context)
{
    struct group *g = (struct group *)context;
    pthread_mutex_lock(&g->lock);
    while (!g->closing && g->error.kind == ERROR_NONE) {
        struct round *r = g->rounds;
        if (!r) {
            pthread_cond_wait(&g->changed, &g->lock);
            continue;
        }
        g->rounds = r->next;
        g->rounds_end = g->rounds ? g->rounds_end : &g->rounds;
        pthread_mutex_unlock(&g->lock);
        round_run(g, r);
        free(r);
        bell_ring(g);
        pthread_mutex_lock(&g->lock);
    }
    pthread_mutex_unlock(&g->lock);
    comm_end(g);
    return NULL;
}

/* ---- what keys.cu calls ---- */

int group_ready(struct group *g, struct error *e)
{
    pthread_mutex_lock(&g->lock);
    const bool news = !g->ready;
    const struct error why = g->error;
    g->ready = true;
    pthread_mutex_unlock(&g->lock);
    if (news) {
        bell_ring(g);
    }
    return why.kind == ERROR_NONE ? 0 : host_of(g)->error_set(e, why.kind, why.code, "%s", why.text);
}

void group_search(struct group *g, struct finish *f)
{
    pthread_mutex_lock(&g->lock);
    f->state = FINISH_WAITS;
    f->next_waiting = NULL;
    *g->waiting_end = f;
    g->waiting_end = &f->next_waiting;
    pthread_mutex_unlock(&g->lock);
    bell_ring(g);
}

/* Takes *f out of what waits. */
static void waiting_remove(struct group *g, struct finish *f)
{
    struct finish **at = &g->waiting;
    while (*at && *at != f) {
        at = &(*at)->next_waiting;
    }
    if (*at) {
        *at = f->next_waiting;
    }
    for (at = &g->waiting; *at; at = &(*at)->next_waiting) {}
    g->waiting_end = at;
}

int group_wait(struct group *g, struct finish *f, struct error *e)
{
    pthread_mutex_lock(&g->lock);
    while (f->state == FINISH_RUNS || (f->state != FINISH_DONE && g->error.kind == ERROR_NONE)) {
        pthread_cond_wait(&g->changed, &g->lock);
    }
    waiting_remove(g, f);
    f->state = FINISH_DONE;
    const struct error why = g->error;
    pthread_mutex_unlock(&g->lock);
    return why.kind == ERROR_NONE ? 0 : host_of(g)->error_set(e, why.kind, why.code, "%s", why.text);
}

/* ---- opening ---- */

/* What NCCL has left to do until it is first called is done now, while all ranks are there. */
static ncclResult_t comm_connect(struct group *g)
{
    const cudaStream_t on = g->stream->on[0];
    if (grown_take(g->stream, 0, &g->stream->scan_memory[0], g->world + 1, NULL)) {
        return ncclUnhandledCudaError;
    }
    char *memory = (char *)g->stream->scan_memory[0].memory;
    cudaMemsetAsync(memory, 0, g->world + 1, on);
    ncclResult_t status = ncclAllGather(memory, memory + 1, 1, ncclUint8, g->comm, on);
    status = status ? status : ncclBroadcast(memory, memory, 1, ncclUint8, 0, g->comm, on);
    return status || cudaStreamSynchronize(on) == cudaSuccess ? status : ncclUnhandledCudaError;
}

static int comm_open(struct group *g, const ncclUniqueId *id, struct error *e)
{
    device_use(g->keys->cuda, 0);
    setenv("NCCL_RUNTIME_CONNECT", "0", 0); /* all connections now: none is to wait for a rank later */
    ncclResult_t status = ncclCommInitRank(&g->comm, (int)g->world, *id, (int)g->rank);
    if (status != ncclSuccess) {
        g->comm = NULL;
    }
    status = status ? status : comm_connect(g);
    if (status != ncclSuccess) {
        return host_of(g)->error_set(e, ERROR_FATAL, E_INTERNAL, "rank %zu of %zu: NCCL cannot connect the GPUs: %s",
                                     g->rank, g->world, ncclGetErrorString(status));
    }
    return 0;
}

int group_open(struct group **out, struct keys *k, struct error *e)
{
    struct group *g = (struct group *)calloc(1, sizeof *g);
    ncclUniqueId id;
    if (!g) {
        return k->cuda->host->error_set(e, ERROR_FATAL, E_INTERNAL, "out of memory");
    }
    g->keys = k;
    g->rank = k->cuda->rank;
    g->world = k->cuda->world;
    g->waiting_end = &g->waiting;
    g->rounds_end = &g->rounds;
    g->bell[0] = g->bell[1] = -1;
    for (size_t i = 0; i < RANKS_MAX; i++) {
        g->sockets[i] = -1;
    }
    pthread_mutex_init(&g->lock, NULL);
    pthread_cond_init(&g->changed, NULL);
    if (cuda_stream_open(&k->cuda->backend, &g->stream, e) || group_meet(g, &id, e) || comm_open(g, &id, e)) {
        group_close(g);
        return -1;
    }
    int why = pipe2(g->bell, O_CLOEXEC | O_NONBLOCK) ? errno : 0;
    why = why ? why : pthread_create(&g->listener, NULL, listen_to_all, g);
    g->listener_runs = !why;
    why = why ? why : pthread_create(&g->runner, NULL, run_rounds, g);
    g->runner_runs = !why;
    if (why) {
        group_close(g);
        return k->cuda->host->error_set(e, ERROR_FATAL, E_INTERNAL, "a thread cannot be started: %s", strerror(why));
    }
    host_of(g)->log_info("rank %zu of %zu: all are there, and this process has a part of the keys", g->rank, g->world);
    *out = g;
    return 0;
}

void group_close(struct group *g)
{
    if (!g) {
        return;
    }
    pthread_mutex_lock(&g->lock);
    g->closing = true;
    pthread_cond_broadcast(&g->changed);
    pthread_mutex_unlock(&g->lock);
    bell_ring(g);
    if (g->listener_runs) {
        pthread_join(g->listener, NULL);
    }
    if (g->runner_runs) {
        pthread_join(g->runner, NULL);
    }
    comm_end(g);
    if (g->stream) {
        cuda_stream_close(g->stream);
    }
    for (size_t i = 0; i < RANKS_MAX; i++) {
        if (g->sockets[i] >= 0) {
            close(g->sockets[i]);
        }
    }
    for (size_t i = 0; i < 2; i++) {
        if (g->bell[i] >= 0) {
            close(g->bell[i]);
        }
    }
    while (g->rounds) {
        struct round *r = g->rounds;
        g->rounds = r->next;
        free(r);
    }
    free(g->names.places);
    pthread_mutex_destroy(&g->lock);
    pthread_cond_destroy(&g->changed);
    free(g);
}
