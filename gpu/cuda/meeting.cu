/* How the ranks of a group meet: rank 0 listens at MASTER_ADDR and MASTER_PORT until all others have come, and hands
 * out what NCCL needs to connect them. The sockets stay: they carry messages of one size, and show who is gone. Nobody
 * is asked for a password: as NCCL itself, this is for a network that is trusted. */
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "gpu/cuda/group.h"

enum { WAIT_SECONDS = 600, SAY_SECONDS = 5, ANSWER_SECONDS = 10, MAGIC = 0x31474E45 /* "ENG1" */ };

/* ---- messages ---- */

struct message message_of(const struct group *g, enum message_kind kind)
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

/* Small messages that nobody answers go out at once, and a host that is gone is noticed within half a minute. */
static void socket_settle(int socket)
{
    const int one = 1, quiet_seconds = 10, between_seconds = 5, times = 4, unsent_ms = 30 * 1000;
    setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &quiet_seconds, sizeof quiet_seconds);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &between_seconds, sizeof between_seconds);
    setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &times, sizeof times);
    setsockopt(socket, IPPROTO_TCP, TCP_USER_TIMEOUT, &unsent_ms, sizeof unsent_ms);
}

bool message_send(int socket, const struct message *m)
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

bool message_receive(int socket, struct message *m)
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

double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Whoever is at the other end may be a stranger that says nothing. */
static bool message_first(int socket, struct message *m)
{
    const struct timeval limit = {ANSWER_SECONDS, 0}, none = {};
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    const bool came = message_receive(socket, m);
    setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &none, sizeof none);
    return came;
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

static bool told_to_stop(void)
{
    sigset_t pending;
    return sigpending(&pending) == 0 && (sigismember(&pending, SIGTERM) || sigismember(&pending, SIGINT));
}

/* true: there is time left, and nobody wants the process to end. Says once what is waited for. */
static bool patience(struct group *g, struct meeting_place *p, size_t come)
{
    const double waited = seconds() - p->begun;
    if (waited > SAY_SECONDS && !p->said) {
        p->said = true;
        if (g->rank == 0) {
            host_of(g)->log_info("rank 0 of %zu waits at %s:%s: %zu are there", g->world, p->host, p->port, come);
        } else {
            host_of(g)->log_info("rank %zu of %zu waits for rank 0 at %s:%s", g->rank, g->world, p->host, p->port);
        }
    }
    return waited < WAIT_SECONDS && !told_to_stop();
}

static int meeting_fail(struct group *g, const struct meeting_place *p, const char *what, struct error *e)
{
    return host_of(g)->error_set(e, ERROR_FATAL, E_NOT_FOUND, "rank %zu of %zu cannot meet the others at %s:%s: %s",
                                 g->rank, g->world, p->host, p->port, what);
}

/* At this address, or at any of the machine's where it is not one of them: a service's in front of it, say. */
static int listen_at(int s, const struct addrinfo *a, const char *port)
{
    struct addrinfo hints = {}, *any = NULL;
    int one = 1, failed;
    setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    failed = bind(s, a->ai_addr, a->ai_addrlen);
    hints.ai_flags = AI_PASSIVE;
    hints.ai_family = a->ai_family;
    hints.ai_socktype = SOCK_STREAM;
    if (failed && errno == EADDRNOTAVAIL && getaddrinfo(NULL, port, &hints, &any) == 0) {
        failed = bind(s, any->ai_addr, any->ai_addrlen);
        freeaddrinfo(any);
    }
    return failed || listen(s, RANKS_MAX);
}

/* A socket that listens, or is connected; -1: errno says why. */
static int socket_at(const struct meeting_place *p, bool listens)
{
    struct addrinfo hints = {}, *found = NULL;
    int s = -1;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(p->host, p->port, &hints, &found) != 0) {
        errno = EHOSTUNREACH;
        return -1;
    }
    for (struct addrinfo *a = found; a && s < 0; a = a->ai_next) {
        s = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, a->ai_protocol);
        if (s >= 0 && (listens ? listen_at(s, a, p->port) : connect(s, a->ai_addr, a->ai_addrlen))) {
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
        return "WORLD_SIZE is not the same as rank 0's";
    }
    if (m->rank == 0 || m->rank >= g->world || g->sockets[m->rank] >= 0) {
        return "another process has this RANK";
    }
    if (m->dim != g->keys->dim || m->dtype != (uint32_t)g->keys->dtype) {
        return "this memory's vectors have other dimensions or another key_dtype than rank 0's";
    }
    return NULL;
}

static void greet(struct group *g, int socket, const ncclUniqueId *id, size_t *come)
{
    struct message m, answer = message_of(g, MESSAGE_WELCOME);
    if (!message_first(socket, &m)) {
        close(socket);
        return;
    }
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
    if (come < g->world) {
        char text[96];
        snprintf(text, sizeof text, "%zu of %zu came%s", come, g->world,
                 told_to_stop() ? " before it was told to stop" : "");
        return meeting_fail(g, &p, text, e);
    }
    return 0;
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
    if (!message_send(g->sockets[0], &m) || !message_first(g->sockets[0], &m)) {
        return meeting_fail(g, &p, "who is there is not rank 0 of this version, or has ended", e);
    }
    if (m.kind == MESSAGE_REFUSED) {
        m.reason[sizeof m.reason - 1] = '\0';
        return meeting_fail(g, &p, m.reason, e);
    }
    *id = m.id;
    return 0;
}

int group_meet(struct group *g, ncclUniqueId *id, struct error *e)
{
    return g->rank == 0 ? others_meet(g, id, e) : first_meet(g, id, e);
}
