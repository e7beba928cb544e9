/* memory_verify in a child process: what ends it, a fault or a standstill, is a problem of the memory like the others.
 * What is no fault of the memory's (no memory left, a kill from outside) is an error: nothing is known then. The child
 * opens the memory for itself, since LMDB's environments do not survive a fork, and sends what it finds through a pipe:
 * a kind, the length of what follows, and that. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "store/internal.h"

enum {
    KIND_PROBLEM = 'P', /* a line */
    KIND_ALIVE = '.',   /* nothing */
    KIND_ENDED = 'E',   /* the number of problems */
    KIND_FAILED = 'F',  /* a struct error */
    STEPS_A_SIGN = 4096,
    STANDSTILL_MS = 120 * 1000,
    BODY_BYTES_MAX = sizeof(struct error),
};

struct frame {
    uint32_t kind, bytes;
    char body[BODY_BYTES_MAX];
};

/* ---- the child ---- */

static int child_fd; /* of the pipe, for the signal handler too */

static void frame_send(uint32_t kind, const void *body, size_t bytes)
{
    struct frame f = {.kind = kind, .bytes = (uint32_t)(bytes < BODY_BYTES_MAX ? bytes : BODY_BYTES_MAX)};
    memcpy(f.body, body, f.bytes);
    const char *at = (const char *)&f;
    for (size_t left = offsetof(struct frame, body) + f.bytes; left > 0;) {
        ssize_t n = write(child_fd, at, left);
        if (n < 0 && errno != EINTR) {
            _exit(1); /* nobody listens */
        }
        at += n > 0 ? n : 0;
        left -= n > 0 ? (size_t)n : 0;
    }
}

static void problem_send(const char *line, void *context)
{
    (void)context;
    frame_send(KIND_PROBLEM, line, strlen(line));
}

static void step_count(void *context)
{
    uint64_t *steps = context;
    if (++*steps % STEPS_A_SIGN == 0) {
        frame_send(KIND_ALIVE, "", 0);
    }
}

static void fault_send(const char *line)
{
    (void)line;
    problem_send("a page points outside the file or to a wrong place: reading it caused a fault", NULL);
}

static void memory_failure_send(const char *line)
{
    struct error e = {0};
    error_set(&e, ERROR_FATAL, E_IO, "%s", line);
    frame_send(KIND_FAILED, &e, sizeof e);
}

static void child_run(const struct memory_options *options)
{
    const struct rlimit no_core = {0};
    struct memory *m = NULL;
    struct error e = {0};
    uint64_t steps = 0, problems;
    const struct verify_report to = {.problem = problem_send, .step = step_count, .context = &steps};
    setrlimit(RLIMIT_CORE, &no_core); /* the parent reports it */
    signal(SIGPIPE, SIG_DFL);
    memory_faults_catch(fault_send);
    mem_failure_to(memory_failure_send);
    if (memory_open(&m, MEMORY_READ, options, &e) || verify_open(m, &to, &problems, &e)) {
        frame_send(KIND_FAILED, &e, sizeof e);
    } else {
        frame_send(KIND_ENDED, &problems, sizeof problems);
    }
    memory_close(m);
    _exit(0); /* nothing of the parent's is flushed twice */
}

/* ---- the parent ---- */

struct apart {
    int fd;
    pid_t child;
    void (*report)(const char *line, void *context);
    void *context;
    uint64_t problems;
};

static void apart_problem(struct apart *a, const char *line)
{
    a->problems++;
    a->report(line, a->context);
}

/* The next frame: 1, 0 at the end of the pipe, -1 after a standstill. */
static int frame_receive(const struct apart *a, struct frame *f)
{
    const size_t head = offsetof(struct frame, body);
    size_t got = 0, wanted = head;
    while (got < wanted) {
        struct pollfd p = {.fd = a->fd, .events = POLLIN};
        int ready = poll(&p, 1, STANDSTILL_MS);
        if (ready == 0) {
            return -1;
        }
        ssize_t n = ready > 0 ? read(a->fd, (char *)f + got, wanted - got) : -1;
        if (n == 0 || (n < 0 && errno != EINTR)) {
            return 0;
        }
        got += n > 0 ? (size_t)n : 0;
        if (got >= head) {
            wanted = head + (f->bytes < BODY_BYTES_MAX ? f->bytes : BODY_BYTES_MAX);
        }
    }
    return 1;
}

/* What the child sends, until it has ended. 1: it came to an end by itself; 0: it did not; -1: it failed, *e says why.
 */
static int child_follow(struct apart *a, struct error *e)
{
    struct frame f;
    char line[BODY_BYTES_MAX + 1];
    int got;
    while ((got = frame_receive(a, &f)) > 0) {
        if (f.kind == KIND_PROBLEM) {
            snprintf(line, sizeof line, "%.*s", (int)f.bytes, f.body);
            apart_problem(a, line);
        } else if (f.kind == KIND_FAILED) {
            if (e) {
                memcpy(e, f.body, sizeof *e);
            }
            return -1;
        } else if (f.kind == KIND_ENDED) {
            return 1;
        }
    }
    if (got < 0) {
        apart_problem(a, "the check made no progress for two minutes and was ended");
        kill(a->child, SIGKILL);
    }
    return 0;
}

/* The child ended before its time. A problem where it met a fault; else an error. */
static int end_judge(struct apart *a, int status, const char *path, struct error *e)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL};
    const int number = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        if (faults[i] == number) {
            char line[64];
            snprintf(line, sizeof line, "the check was ended by signal %d", number);
            apart_problem(a, line);
            return 0;
        }
    }
    return error_set(e, ERROR_FATAL, E_IO, "%s: the check was stopped from outside (%s %d): run it again", path,
                     number ? "signal" : "status", number ? number : WEXITSTATUS(status));
}

int memory_verify_apart(const struct memory_options *options, void (*report)(const char *line, void *context),
                        void *context, uint64_t *problems, struct error *e)
{
    struct apart a = {.report = report, .context = context};
    int ends[2], status = 0;
    *problems = 0;
    if (pipe(ends)) {
        return error_set(e, ERROR_FATAL, E_IO, "%s: a pipe cannot be made: %s", options->path, strerror(errno));
    }
    a.child = fork();
    if (a.child == 0) {
        close(ends[0]);
        child_fd = ends[1];
        child_run(options);
    }
    close(ends[1]);
    a.fd = ends[0];
    if (a.child < 0) {
        close(a.fd);
        return error_set(e, ERROR_FATAL, E_IO, "%s: a child process cannot be started: %s", options->path,
                         strerror(errno));
    }
    int ended = child_follow(&a, e);
    close(a.fd);
    while (waitpid(a.child, &status, 0) < 0 && errno == EINTR) {}
    if (ended == 0 && a.problems == 0) {
        ended = end_judge(&a, status, options->path, e);
    }
    *problems = a.problems;
    return ended < 0 ? -1 : 0;
}
