/* The console on libmicrohttpd: one thread of the library's polls all connections. The surprises: the library's time
 * limit is for silence alone, so connections that drip bytes are shut down here by age; and the listening socket is
 * made here, because the library does not say why it could not. */
#include "stage/console/console.h"

#include <errno.h>
#include <microhttpd.h>
#include <netdb.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"

enum {
    CONNECTIONS_MAX = 64,
    CONNECTIONS_EACH = 16,       /* of one address: a hostile one leaves room for the health check of others */
    CONNECTION_BYTES = 16 << 10, /* request line and headers, and what is read and written at once */
    SILENT_S = 5,
    LIFE_US = 10 * 1000 * 1000,
    BACKLOG = 64,
    NICE = 19,
};

struct connection_slot {
    int fd; /* -1: free */
    uint64_t since_us;
};

struct console {
    struct MHD_Daemon *daemon;
    struct console_source source;
    char *version;
    bool lowered;                                  /* the library's thread has low priority; that thread's */
    pthread_mutex_t lock;                          /* covers what is below */
    struct connection_slot slots[CONNECTIONS_MAX]; /* a descriptor leaves before the library closes it */
};

/* ---- answers ---- */

static enum MHD_Result answer(struct MHD_Connection *connection, unsigned status, const char *type, struct buffer *body)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(body->bytes, body->data ? body->data : "", MHD_RESPMEM_MUST_COPY);
    buffer_free(body);
    if (!r) {
        return MHD_NO;
    }
    MHD_add_response_header(r, "Content-Type", type);
    MHD_add_response_header(r, "Cache-Control", "no-store");
    MHD_add_response_header(r, "Connection", "close");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED) {
        MHD_add_response_header(r, "Allow", "GET, HEAD");
    }
    enum MHD_Result result = MHD_queue_response(connection, status, r);
    MHD_destroy_response(r);
    return result;
}

static unsigned page(struct console *c, const char *url, const char **type, struct buffer *body)
{
    if (strcmp(url, "/metrics") == 0) {
        *type = "text/plain; version=0.0.4; charset=utf-8";
        c->source.metrics(c->source.context, body);
        return MHD_HTTP_OK;
    }
    if (strcmp(url, "/ready") == 0) {
        bool ready = c->source.ready(c->source.context, body);
        buffer_string(body, ready ? "ready\n" : "\n");
        return ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE;
    }
    if (strcmp(url, "/ping") == 0) {
        buffer_string(body, "pong\n");
        return MHD_HTTP_OK;
    }
    if (strcmp(url, "/version") == 0) {
        buffer_format(body, "%s\n", c->version);
        return MHD_HTTP_OK;
    }
    buffer_string(body, "there are /ping, /ready, /metrics and /version\n");
    return MHD_HTTP_NOT_FOUND;
}

/* Called first when the headers are there; the answer is given then, so no body is ever read. */
static enum MHD_Result request(void *context, struct MHD_Connection *connection, const char *url, const char *method,
                               const char *http, const char *upload, size_t *upload_bytes, void **state)
{
    (void)http, (void)upload, (void)upload_bytes, (void)state;
    struct console *c = context;
    struct buffer body = {0};
    const char *type = "text/plain; charset=utf-8";
    unsigned status;
    if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 && strcmp(method, MHD_HTTP_METHOD_HEAD) != 0) {
        buffer_string(&body, "only GET and HEAD are answered\n");
        status = MHD_HTTP_METHOD_NOT_ALLOWED;
    } else {
        status = page(c, url, &type, &body);
    }
    return answer(connection, status, type, &body);
}

/* ---- connections ---- */

/* On the library's thread, for each connection at its start and its end. */
static void connection_changes(void *context, struct MHD_Connection *connection, void **slot,
                               enum MHD_ConnectionNotificationCode code)
{
    struct console *c = context;
    if (!c->lowered) {
        setpriority(PRIO_PROCESS, 0, NICE); /* on Linux of the calling thread alone; without it nothing is lost */
        c->lowered = true;
    }
    pthread_mutex_lock(&c->lock);
    if (code == MHD_CONNECTION_NOTIFY_STARTED) {
        const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
        for (size_t i = 0; info && !*slot && i < CONNECTIONS_MAX; i++) {
            if (c->slots[i].fd < 0) {
                c->slots[i] = (struct connection_slot){info->connect_fd, clock_us()};
                *slot = &c->slots[i];
            }
        }
    } else if (*slot) {
        ((struct connection_slot *)*slot)->fd = -1;
    }
    pthread_mutex_unlock(&c->lock);
}

void console_sweep(struct console *c)
{
    if (!c) {
        return;
    }
    uint64_t now = clock_us();
    pthread_mutex_lock(&c->lock);
    for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
        if (c->slots[i].fd >= 0 && now - c->slots[i].since_us > LIFE_US) {
            shutdown(c->slots[i].fd, SHUT_RDWR); /* the library then sees its end and closes it */
        }
    }
    pthread_mutex_unlock(&c->lock);
}

/* ---- opening and closing ---- */

/* -1: errno says why. */
static int listen_socket(const struct addrinfo *at)
{
    int on = 1;
    int fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd >= 0 && (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) || bind(fd, at->ai_addr, at->ai_addrlen) ||
                    listen(fd, BACKLOG))) {
        int failed = errno;
        close(fd);
        errno = failed;
        fd = -1;
    }
    return fd;
}

static bool not_here(int failed)
{
    return failed == EADDRNOTAVAIL || failed == EAFNOSUPPORT;
}

/* A listening socket, or -1. A name may have several addresses: the first one that this machine has. */
static int listen_at(const char *address, uint16_t port, struct error *e)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char service[8];
    snprintf(service, sizeof service, "%u", (unsigned)port);
    int failed = getaddrinfo(address, service, &hints, &found);
    if (failed) {
        return error_set(e, ERROR_FATAL, E_IO, "the console cannot listen at '%s': %s: check the option listen",
                         address, gai_strerror(failed));
    }
    int fd = -1;
    errno = EADDRNOTAVAIL;
    for (const struct addrinfo *at = found; at && not_here(errno); at = at->ai_next) {
        fd = listen_socket(at);
        if (fd >= 0) {
            break;
        }
    }
    if (fd < 0) {
        error_set(e, ERROR_FATAL, E_IO,
                  "the console cannot listen at %s, port %s: %s: choose another with %s (--port 0: no console)",
                  address, service, strerror(errno), not_here(errno) ? "--listen" : "--port");
    }
    freeaddrinfo(found);
    return fd;
}

static struct MHD_Daemon *daemon_start(struct console *c, int fd)
{
    sigset_t before;
    threads_signals_block(&before); /* signals are the main thread's */
    struct MHD_Daemon *daemon =
        MHD_start_daemon(MHD_USE_AUTO_INTERNAL_THREAD, 0, NULL, NULL, request, c, MHD_OPTION_LISTEN_SOCKET, fd,
                         MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX, MHD_OPTION_PER_IP_CONNECTION_LIMIT,
                         (unsigned)CONNECTIONS_EACH, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES,
                         MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)SILENT_S, MHD_OPTION_NOTIFY_CONNECTION,
                         connection_changes, c, MHD_OPTION_END);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return daemon;
}

int console_open(struct console **out, const char *address, uint16_t port, const struct console_source *source,
                 struct error *e)
{
    *out = NULL;
    int fd = listen_at(address, port, e);
    if (fd < 0) {
        return -1;
    }
    struct console *c = mem_zero(1, sizeof *c);
    c->source = *source;
    c->version = mem_string(source->version, strlen(source->version));
    pthread_mutex_init(&c->lock, NULL);
    for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
        c->slots[i].fd = -1;
    }
    c->daemon = daemon_start(c, fd); /* owns the socket, also where it fails */
    if (!c->daemon) {
        console_close(c);
        return error_set(e, ERROR_FATAL, E_INTERNAL, "the console's HTTP server cannot be started");
    }
    *out = c;
    return 0;
}

void console_close(struct console *c)
{
    if (!c) {
        return;
    }
    if (c->daemon) {
        MHD_stop_daemon(c->daemon);
    }
    pthread_mutex_destroy(&c->lock);
    free(c->version);
    free(c);
}
