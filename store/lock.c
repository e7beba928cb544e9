/* Who may open a memory: once a process, one writer, and readers only in the writer's PID namespace. Its files, too:
 * made for their owner alone, and no links.
 * The writer holds flock(2) on writer.lock and writes its pid and PID namespace into it. What surprises: a reader finds
 * out whether a writer lives by taking the lock for an instant, so a writer tries for a while before it gives up. */
#define _GNU_SOURCE /* flock */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "store/internal.h"

enum { LOCK_TRIES = 30, LOCK_WAIT_MS = 10 };

/* ---- the registry ---- */

struct registered {
    struct registered *next;
    uint64_t device, inode;
    pid_t pid; /* a child of fork inherits the list, but not the right to use what is in it */
};

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct registered *registry; /* covered by registry_lock */

int registry_enter(struct memory *m, struct error *e)
{
    struct stat folder;
    if (stat(m->path, &folder)) {
        return error_set(e, ERROR_FATAL, E_IO, "%s: %s", m->path, strerror(errno));
    }
    pthread_mutex_lock(&registry_lock);
    bool open = false;
    for (struct registered *r = registry; r; r = r->next) {
        open = open || (r->device == folder.st_dev && r->inode == folder.st_ino && r->pid == getpid());
    }
    if (!open) {
        struct registered *r = mem_alloc(sizeof *r);
        *r = (struct registered){registry, folder.st_dev, folder.st_ino, getpid()};
        registry = r;
        m->registered = true;
        m->registered_device = folder.st_dev;
        m->registered_inode = folder.st_ino;
    }
    pthread_mutex_unlock(&registry_lock);
    return open ? error_set(e, ERROR_FATAL, E_LOCKED, "%s: this process has already opened the memory", m->path) : 0;
}

void registry_leave(struct memory *m)
{
    if (!m->registered) {
        return;
    }
    pthread_mutex_lock(&registry_lock);
    for (struct registered **r = &registry; *r; r = &(*r)->next) {
        if ((*r)->device == m->registered_device && (*r)->inode == m->registered_inode && (*r)->pid == getpid()) {
            struct registered *gone = *r;
            *r = gone->next;
            free(gone);
            break;
        }
    }
    pthread_mutex_unlock(&registry_lock);
    m->registered = false;
}

/* ---- the files ---- */

/* A link is refused to readers too: of two folders that lead to one data.mdb each has locks of its own, and a link at
 * writer.lock would have whoever opens the memory write to a file of another's choice. */
static int files_check(const char *folder, struct error *e)
{
    static const char *const names[] = {"data.mdb", "lock.mdb", "writer.lock"};
    int result = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names && result == 0; i++) {
        char *path = folder_path(folder, names[i]);
        struct stat s;
        if (lstat(path, &s) == 0 && !S_ISREG(s.st_mode)) {
            result =
                error_set(e, ERROR_FATAL, E_IO,
                          "%s is %s: a memory's files must all be in its own folder: name that with the option memory",
                          path, S_ISLNK(s.st_mode) ? "a symbolic link" : "not a regular file");
        }
        free(path);
    }
    return result;
}

int file_make(const char *folder, const char *name, struct error *e)
{
    char *path = folder_path(folder, name);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bool failed = fd < 0 ? errno != EEXIST : fchmod(fd, 0600) != 0; /* the umask may have taken too much */
    int result = failed ? error_set(e, ERROR_FATAL, E_IO, "%s: %s", path, strerror(errno)) : 0;
    if (fd >= 0) {
        close(fd);
    }
    free(path);
    return result;
}

/* ---- writer.lock ---- */

static unsigned long long own_namespace(void) /* 0: unknown */
{
    struct stat s;
    return stat("/proc/self/ns/pid", &s) == 0 ? (unsigned long long)s.st_ino : 0;
}

static bool holder_read(int fd, long *pid, unsigned long long *namespace)
{
    char text[128];
    ssize_t n = pread(fd, text, sizeof text - 1, 0);
    if (n <= 0) {
        return false;
    }
    text[n] = '\0';
    return sscanf(text, "pid %ld pid_namespace %llu", pid, namespace) == 2;
}

static int lock_open(const struct memory *m, int flags)
{
    char *path = folder_path(m->path, "writer.lock");
    int fd = open(path, flags | O_NOFOLLOW | O_CLOEXEC);
    free(path);
    return fd;
}

static int locked_by_another(const struct memory *m, int fd, struct error *e)
{
    char holder[64] = "another process";
    long pid;
    unsigned long long namespace;
    if (holder_read(fd, &pid, &namespace)) {
        snprintf(holder, sizeof holder, "process %ld%s", pid,
                 namespace == own_namespace() ? "" : " of another container");
    }
    return error_set(e, ERROR_FATAL, E_LOCKED,
                     "%s: the memory is being written by %s: stop it first, or name another folder with the option "
                     "memory",
                     m->path, holder);
}

int writer_lock_take(struct memory *m, struct error *e)
{
    int result = -1;
    if (files_check(m->path, e) || file_make(m->path, "writer.lock", e)) {
        return -1;
    }
    int fd = lock_open(m, O_RDWR);
    if (fd < 0) {
        return error_set(e, ERROR_FATAL, E_IO, "%s/writer.lock: %s", m->path, strerror(errno));
    }
    int tries = 0;
    while (flock(fd, LOCK_EX | LOCK_NB)) {
        if (errno != EWOULDBLOCK && errno != EINTR) {
            error_set(e, ERROR_FATAL, E_IO, "%s/writer.lock: %s", m->path, strerror(errno));
            goto done;
        }
        if (++tries == LOCK_TRIES) {
            locked_by_another(m, fd, e);
            goto done;
        }
        clock_sleep_ms(LOCK_WAIT_MS);
    }
    char text[128];
    int n = snprintf(text, sizeof text, "pid %ld pid_namespace %llu\n", (long)getpid(), own_namespace());
    errno = 0; /* a write that is cut short sets none */
    if (pwrite(fd, text, (size_t)n, 0) != n || ftruncate(fd, n)) {
        error_set(e, ERROR_FATAL, E_IO, "%s/writer.lock: %s", m->path, strerror(errno ? errno : ENOSPC));
        goto done;
    }
    m->lock_fd = fd;
    fd = -1;
    result = 0;
done:
    if (fd >= 0) {
        close(fd);
    }
    return result;
}

void writer_lock_drop(struct memory *m)
{
    if (m->lock_fd >= 0) {
        close(m->lock_fd);
        m->lock_fd = -1;
    }
}

int writer_lock_namespace(struct memory *m, struct error *e)
{
    int result = files_check(m->path, e);
    int fd = result ? -1 : lock_open(m, O_RDONLY);
    if (fd < 0) {
        return result; /* never written by us, or not ours to read: LMDB's own checks are left */
    }
    long pid;
    unsigned long long theirs = 0, ours = own_namespace();
    if (ours && flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK && holder_read(fd, &pid, &theirs) && theirs &&
        theirs != ours) {
        result = error_set(e, ERROR_FATAL, E_LOCKED,
                           "%s: the memory is being written in another PID namespace, where its readers must be too: "
                           "run this command in the stage's own container (docker exec), or copy the memory",
                           m->path);
    }
    close(fd); /* drops the shared lock too */
    return result;
}
