/* A fault inside the map of an open memory, or inside LMDB: it follows what is in the pages, so a damaged one ends
 * in SIGSEGV, SIGBUS (also where the file was cut while it was open) or in an assertion of LMDB's. Whoever calls
 * memory_faults_catch gets one line about it, and the process ends with status 1. A fault anywhere else ends the
 * process as before: the handler puts back what was there, and the instruction faults again. Where the map lies
 * only the kernel tells: LMDB does not. */
#define _GNU_SOURCE /* SA_SIGINFO's codes */
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/internal.h"

enum {
    WATCHED_MAX = 8,
    LINE_BYTES = 2000,      /* a path and what is said about it */
    BEYOND_MAP = 3 * 65536, /* how far a node of the last page can point: offset, key, value */
};

struct watched {
    _Atomic uintptr_t from; /* 0: the place is free */
    uintptr_t to;
    char line[LINE_BYTES];
};

static pthread_mutex_t watched_lock = PTHREAD_MUTEX_INITIALIZER; /* of those who fill and clear a place */
static struct watched watched[WATCHED_MAX];
static void (*_Atomic fault_report)(const char *line);
static struct sigaction action_before[2]; /* of SIGSEGV, SIGBUS */

/* ---- the map ---- */

/* The first mapping of that file and that size which nobody watches yet. */
static uintptr_t map_find(const struct stat *file, uint64_t map_bytes)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[PATH_MAX + 128];
    uintptr_t found = 0;
    while (maps && !found && fgets(line, sizeof line, maps)) {
        unsigned long from, to, offset, inode;
        if (sscanf(line, "%lx-%lx %*s %lx %*s %lu", &from, &to, &offset, &inode) == 4 && offset == 0 &&
            inode == file->st_ino && to - from == map_bytes) {
            found = from;
        }
        for (size_t i = 0; i < WATCHED_MAX && found; i++) {
            found = atomic_load(&watched[i].from) == found ? 0 : found;
        }
    }
    if (maps) {
        fclose(maps);
    }
    return found;
}

void fault_watch(struct memory *m)
{
    struct stat file;
    MDB_envinfo info;
    int fd;
    if (mdb_env_get_fd(m->env, &fd) || fstat(fd, &file) || mdb_env_info(m->env, &info)) {
        return;
    }
    uint64_t os_page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t map_bytes = (info.me_mapsize + os_page - 1) / os_page * os_page;
    pthread_mutex_lock(&watched_lock);
    uintptr_t from = map_find(&file, map_bytes);
    m->map = (const unsigned char *)from; /* 0 is NULL */
    for (size_t i = 0; i < WATCHED_MAX && from; i++) {
        if (!atomic_load(&watched[i].from)) {
            watched[i].to = from + map_bytes + BEYOND_MAP;
            snprintf(
                watched[i].line, sizeof watched[i].line,
                "%.1800s: the memory is damaged: run `engram memory verify`, restore a copy or read the topics again",
                m->path);
            atomic_store(&watched[i].from, from);
            break;
        }
    }
    pthread_mutex_unlock(&watched_lock);
}

void fault_unwatch(struct memory *m)
{
    pthread_mutex_lock(&watched_lock);
    for (size_t i = 0; i < WATCHED_MAX && m->map; i++) {
        if (atomic_load(&watched[i].from) == (uintptr_t)m->map) {
            atomic_store(&watched[i].from, 0);
        }
    }
    m->map = NULL;
    pthread_mutex_unlock(&watched_lock);
}

/* ---- the fault ---- */

static void report_and_end(const struct watched *w)
{
    static atomic_flag reported = ATOMIC_FLAG_INIT;
    void (*report)(const char *line) = atomic_load(&fault_report);
    while (atomic_flag_test_and_set(&reported)) {
        pause(); /* another thread met it first, and ends the process */
    }
    report(w->line);
    _exit(1);
}

_Thread_local const struct memory *volatile fault_followed;

static const struct watched *watched_at(uintptr_t address)
{
    for (size_t i = 0; i < WATCHED_MAX; i++) {
        uintptr_t from = atomic_load(&watched[i].from);
        if (from && address >= from && address < watched[i].to) {
            return &watched[i];
        }
    }
    return NULL;
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    bool by_kernel = info->si_code > 0; /* else somebody sent it: no address */
    const struct memory *followed = fault_followed;
    const struct watched *w = by_kernel ? watched_at((uintptr_t)info->si_addr) : NULL;
    (void)context;
    if (by_kernel && !w && followed && followed->map) {
        w = watched_at((uintptr_t)followed->map);
    }
    if (w) {
        report_and_end(w);
    }
    sigaction(number, &action_before[number == SIGBUS], NULL);
    if (!by_kernel) {
        raise(number);
    }
}

void fault_assert(MDB_env *env, const char *message)
{
    const struct memory *m = mdb_env_get_userctx(env);
    const struct watched *w = m->map ? watched_at((uintptr_t)m->map) : NULL;
    (void)message;
    if (w && atomic_load(&fault_report)) {
        report_and_end(w);
    } /* else LMDB prints the message and aborts */
}

void memory_faults_catch(void (*report)(const char *line))
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    bool first = atomic_exchange(&fault_report, report) == NULL;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < 2 && first; i++) {
        sigaction(i ? SIGBUS : SIGSEGV, &action, &action_before[i]);
    }
}
