/* Several processes, each with a GPU and a memory of its own, share the keys: each has those on its GPU whose name's
 * hash is its rank's, modulo their number. WORLD_SIZE, RANK, MASTER_ADDR and MASTER_PORT say who they are, as NCCL's
 * users are used to.
 *
 * A search is one round of all processes: its queries go to all of them, each finds the best of its keys, and these go
 * back. NCCL needs all to call it in one order, so rank 0 says what comes next: whoever has queries tells it, and once
 * all are ready it sends each the plan of a round. That goes over one socket a rank, which also shows who is gone.
 *
 * Memories of different processes hold the same keys in different slots, so hits travel by their names' hashes and
 * kinds (as slots, see frame_head), and each process looks up its own slots. */
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "gpu/cuda/keys.h"

enum { WAIT_SECONDS = 600, SAY_SECONDS = 5, HEAR_SECONDS = 2, MAGIC = 0x31474E45 /* "ENG1" */ };

static const double SPIN_SECONDS = 0.002;

enum message_kind {
    MESSAGE_HELLO,
    MESSAGE_WELCOME,
    MESSAGE_REFUSED,
    MESSAGE_READY,
    MESSAGE_WANT,
    MESSAGE_ROUND,
    MESSAGE_LOST
};

/* A rank's queries; n 0: none. */
struct want {
    uint32_t n, b, kinds, careful;
};

struct message {
    uint32_t magic, kind;
    uint32_t rank, world, dim, dtype; /* of who greets; LOST: rank is who is gone */
    union {
        ncclUniqueId id;
        struct want wants[RANKS_MAX]; /* WANT: the first; ROUND: of every rank */
        char reason[160];
    };
};

/* Name and kind -> slot, by open addressing. */
struct name {
    uint64_t tie, slot;
    uint32_t kind; /* 0: free; GONE: was in use */
};
#define GONE UINT32_MAX

struct names {
    struct name *places;      /* [mask + 1] */
    size_t mask, count, used; /* used: with those that are gone */
};

/* A round that rank 0 has announced. */
struct round {
    struct round *next;
    struct want wants[RANKS_MAX];
};

struct group {
    struct keys *keys;
    size_t rank, world;
    int sockets[RANKS_MAX]; /* of rank 0: one for each other rank; of the others: [0] */
    int bell[2];            /* a pipe that wakes the thread that listens */
    ncclComm_t comm;
    struct stream *stream; /* on which rounds run */
    struct names names;    /* the keys' lock covers it */

    pthread_t listener, runner;
    bool listener_runs, runner_runs;
    pthread_mutex_t lock; /* covers all below */
    pthread_cond_t changed;
    struct finish *waiting, **waiting_end; /* searches that no round has taken up */
    struct round *rounds, **rounds_end;
    bool ready, closing;
    struct error error; /* why the group is of no use any more */

    /* the listener's own */
    bool told_ready, told_want;
    bool are_ready[RANKS_MAX]; /* rank 0: what it heard */
    struct want wants[RANKS_MAX];
};

static const struct backend_host *host_of(const struct group *g)
{
    return g->keys->cuda->host;
}

/* ---- names ---- */

static size_t name_place(const struct names *n, uint64_t tie, uint32_t kind)
{
    size_t i = (size_t)(tie ^ kind * 0x9E3779B97F4A7C15U) & n->mask;
    while (n->places[i].kind && (n->places[i].kind != kind || n->places[i].tie != tie)) {
        i = (i + 1) & n->mask;
    }
    return i;
}

static bool names_grow(struct names *n, size_t more)
{
    struct names bigger = {};
    if (n->places && 2 * (n->used + more) <= n->mask) {
        return true;
    }
    bigger.mask = 1023;
    while (bigger.mask < 4 * (n->count + more)) {
        bigger.mask = 2 * bigger.mask + 1;
    }
    bigger.places = (struct name *)calloc(bigger.mask + 1, sizeof *bigger.places);
    if (!bigger.places) {
        return false;
    }
    for (size_t i = 0; n->places && i <= n->mask; i++) {
        const struct name *old = &n->places[i];
        if (old->kind && old->kind != GONE) {
            bigger.places[name_place(&bigger, old->tie, old->kind)] = *old;
            bigger.count++;
        }
    }
    bigger.used = bigger.count;
    free(n->places);
    *n = bigger;
    return true;
}

void group_names_add(struct group *g, const struct keys_block *b, struct mirrored *m)
{
    struct names *n = &g->names;
    m->names = (uint64_t *)calloc(b->rows, sizeof *m->names);
    if (!m->names || !names_grow(n, b->rows)) {
        host_of(g)->log_warn("out of memory for the names of %u keys: other ranks' hits of them are lost", b->rows);
        return;
    }
    for (uint32_t r = 0; r < b->rows; r++) {
        if (b->candidate[r]) {
            const size_t i = name_place(n, b->ties[r], b->kind);
            n->count += n->places[i].kind == 0;
            n->used += n->places[i].kind == 0;
            n->places[i] = {b->ties[r], b->first_slot + r, b->kind};
            m->names[r] = b->ties[r];
        }
    }
}

void group_names_remove(struct group *g, struct mirrored *m)
{
    for (uint32_t r = 0; m->names && r < m->rows; r++) {
        const size_t i = name_place(&g->names, m->names[r], m->kind);
        if (g->names.places[i].kind == m->kind && g->names.places[i].slot == m->first_slot + r) {
            g->names.places[i].kind = GONE; /* the key may already be elsewhere: then its slot is another */
            g->names.count--;
        }
    }
    free(m->names);
    m->names = NULL;
}

/* An earlier view than the names are of may have another key in that slot. */
static bool view_has(const struct keys_view *view, const struct name *name)
{
    for (size_t i = 0; i < view->count; i++) {
        const struct keys_block *b = &view->blocks[i];
        if (name->slot >= b->first_slot && name->slot - b->first_slot < b->rows) {
            const size_t r = (size_t)(name->slot - b->first_slot);
            return b->kind == name->kind && b->ties[r] == name->tie && b->candidate[r];
        }
    }
    return false;
}

uint32_t group_name(struct group *g, const struct keys_view *view, struct keys_hit *hits, uint32_t count)
{
    const bool same = g->keys->any && g->keys->version == view->version;
    uint32_t left = 0;
    for (uint32_t i = 0; i < count && g->names.places; i++) {
        const struct name *name = &g->names.places[name_place(&g->names, hits[i].tie, hits[i].kind)];
        if (name->kind == hits[i].kind && (same || view_has(view, name))) {
            hits[left] = hits[i];
            hits[left++].slot = name->slot;
        }
    }
    return left;
}

/* ---- messages ---- */

static struct message message_of(const struct group *g, enum message_kind kind)
{
    struct message m = {};
    m.magic = MAGIC;
    m.kind = kind;
    m.rank = (uint32_t)g->rank;
    m.world = (uint32_t)g->world;
    m.dim = (uint32_t)g->keys->dim;
    m.dtype = (uint32_t)g->keys->dtype;
    return m;
}

/* Small messages that nobody answers go out at once, and a host that is gone is noticed in the end. */
static void socket_settle(int socket)
{
    const int one = 1;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
}

static bool message_send(int socket, const struct message *m)
{
    const char *at = (const char *)m;
    size_t left = sizeof *m;
    while (left) {
        const ssize_t bytes = send(socket, at, left, MSG_NOSIGNAL);
        if (bytes <= 0 && errno != EINTR) {
            return false;
        }
        at += bytes > 0 ? bytes : 0;
        left -= bytes > 0 ? (size_t)bytes : 0;
    }
    return true;
}

static bool message_receive(int socket, struct message *m)
{
    size_t had = 0;
    while (had < sizeof *m) {
        const ssize_t bytes = recv(socket, (char *)m + had, sizeof *m - had, 0);
        if (bytes == 0 || (bytes < 0 && errno != EINTR)) {
            return false;
        }
        had += bytes > 0 ? (size_t)bytes : 0;
    }
    return m->magic == MAGIC;
}

/* ---- meeting ---- */

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

struct meeting_place {
    const char *host, *port;
    double begun;
    bool said;
};

static struct meeting_place place_named(void)
{
    const char *host = getenv("MASTER_ADDR"), *port = getenv("MASTER_PORT");
    return {host ? host : "127.0.0.1", port ? port : "29500", seconds(), false};
}

/* true: there is time left. Says once what is waited for. */
static bool patience(struct group *g, struct meeting_place *p, size_t come)
{
    const double waited = seconds() - p->begun;
    if (waited > SAY_SECONDS && !p->said) {
        p->said = true;
        host_of(g)->log_info("rank %zu of %zu waits at %s:%s: %zu are there", g->rank, g->world, p->host, p->port,
                             come);
    }
    return waited < WAIT_SECONDS;
}

static int meeting_fail(struct group *g, const struct meeting_place *p, const char *what, struct error *e)
{
    return host_of(g)->error_set(e, ERROR_FATAL, E_NOT_FOUND, "rank %zu of %zu cannot meet the others at %s:%s: %s",
                                 g->rank, g->world, p->host, p->port, what);
}

/* A socket that listens, or is connected; -1: errno says why. */
static int socket_at(const struct meeting_place *p, bool listens)
{
    struct addrinfo hints = {}, *found = NULL;
    int s = -1, one = 1;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(p->host, p->port, &hints, &found) != 0) {
        errno = EHOSTUNREACH;
        return -1;
    }
    for (struct addrinfo *a = found; a && s < 0; a = a->ai_next) {
        s = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (s >= 0 && listens) {
            setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
        }
        if (s >= 0 && (listens ? bind(s, a->ai_addr, a->ai_addrlen) || listen(s, RANKS_MAX)
                               : connect(s, a->ai_addr, a->ai_addrlen))) {
            const int why = errno;
            close(s);
            s = -1;
            errno = why;
        }
    }
    freeaddrinfo(found);
    return s;
}

/* What is wrong with a greeting; NULL: nothing. */
static const char *greeting_wrong(const struct group *g, const struct message *m)
{
    if (m->kind != MESSAGE_HELLO || m->world != g->world) {
        return "it expects another number of ranks (WORLD_SIZE)";
    }
    if (m->rank == 0 || m->rank >= g->world || g->sockets[m->rank] >= 0) {
        return "another process has its RANK";
    }
    if (m->dim != g->keys->dim || m->dtype != (uint32_t)g->keys->dtype) {
        return "its memory's vectors have other dimensions or another key_dtype";
    }
    return NULL;
}

static void greet(struct group *g, int socket, const ncclUniqueId *id, size_t *come)
{
    struct message m, answer = message_of(g, MESSAGE_WELCOME);
    const struct timeval limit = {5, 0}, none = {};
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit); /* a stranger that says nothing */
    if (!message_receive(socket, &m)) {
        close(socket);
        return;
    }
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    const char *wrong = greeting_wrong(g, &m);
    if (wrong) {
        answer.kind = MESSAGE_REFUSED;
        snprintf(answer.reason, sizeof answer.reason, "%s", wrong);
        message_send(socket, &answer);
        close(socket);
        return;
    }
    answer.id = *id;
    if (!message_send(socket, &answer)) {
        close(socket);
        return;
    }
    socket_settle(socket);
    g->sockets[m.rank] = socket;
    ++*come;
}

/* Rank 0: until all others have greeted. */
static int others_meet(struct group *g, ncclUniqueId *id, struct error *e)
{
    struct meeting_place p = place_named();
    size_t come = 1;
    int listens = socket_at(&p, true);
    if (listens < 0) {
        return meeting_fail(g, &p, strerror(errno), e);
    }
    const ncclResult_t status = ncclGetUniqueId(id);
    while (status == ncclSuccess && come < g->world && patience(g, &p, come)) {
        struct pollfd waits = {listens, POLLIN, 0};
        if (poll(&waits, 1, 200) > 0) {
            const int socket = accept(listens, NULL, NULL);
            if (socket >= 0) {
                greet(g, socket, id, &come);
            }
        }
    }
    close(listens);
    if (status != ncclSuccess) {
        return meeting_fail(g, &p, ncclGetErrorString(status), e);
    }
    return come == g->world ? 0 : meeting_fail(g, &p, "not all came", e);
}

/* The others: rank 0 may start later. */
static int first_meet(struct group *g, ncclUniqueId *id, struct error *e)
{
    struct meeting_place p = place_named();
    struct message m = message_of(g, MESSAGE_HELLO);
    const struct timespec pause = {0, 100 * 1000 * 1000};
    while ((g->sockets[0] = socket_at(&p, false)) < 0) {
        const int why = errno;
        if (!patience(g, &p, 1)) {
            return meeting_fail(g, &p, strerror(why), e);
        }
        nanosleep(&pause, NULL);
    }
    socket_settle(g->sockets[0]);
    if (!message_send(g->sockets[0], &m) || !message_receive(g->sockets[0], &m)) {
        return meeting_fail(g, &p, "rank 0 hung up", e);
    }
    if (m.kind == MESSAGE_REFUSED) {
        m.reason[sizeof m.reason - 1] = '\0';
        return meeting_fail(g, &p, m.reason, e);
    }
    *id = m.id;
    return 0;
}

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
        if (poll(all, count + 1, -1) < 0 && errno != EINTR) {
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

void group_ready(struct group *g)
{
    pthread_mutex_lock(&g->lock);
    const bool news = !g->ready;
    g->ready = true;
    pthread_mutex_unlock(&g->lock);
    if (news) {
        bell_ring(g);
    }
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

/* NCCL connects ranks when they are first to send: now, so that no call waits for a rank later. */
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
    if (cuda_stream_open(&k->cuda->backend, &g->stream, e) ||
        (g->rank == 0 ? others_meet(g, &id, e) : first_meet(g, &id, e)) || comm_open(g, &id, e)) {
        group_close(g);
        return -1;
    }
    if (pipe2(g->bell, O_CLOEXEC | O_NONBLOCK) != 0 ||
        !(g->listener_runs = pthread_create(&g->listener, NULL, listen_to_all, g) == 0) ||
        !(g->runner_runs = pthread_create(&g->runner, NULL, run_rounds, g) == 0)) {
        group_close(g);
        return k->cuda->host->error_set(e, ERROR_FATAL, E_INTERNAL, "a thread cannot be started: %s", strerror(errno));
    }
    host_of(g)->log_info("rank %zu of %zu: this process searches a part of the keys for all", g->rank, g->world);
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
