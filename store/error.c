/* What LMDB and the memory's own checks report, in one line that says what to do. Full (map, disk) is RETRY, damage is
 * FATAL. */
#define _DEFAULT_SOURCE /* EDQUOT */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "store/internal.h"

int corrupt(const struct memory *m, struct error *e, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    return error_set(e, ERROR_FATAL, E_CORRUPT, "%s: the memory is damaged: %s: restore a copy, or start an empty one",
                     m->path, text);
}

/* Is the limit that this process has on the size of a file in the way? */
static bool at_file_limit(int fd, uint64_t margin)
{
    struct rlimit limit;
    struct stat file;
    return getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && fstat(fd, &file) == 0 &&
           (uint64_t)file.st_size + margin > limit.rlim_cur;
}

/* LMDB reports a write that was cut short as EIO, whether the disk or the limit cut it. */
const char *full_words(MDB_env *env, int rc)
{
    static const char disk_full[] = "no space left on the device: free some";
    static const char limit_reached[] = "the limit on file sizes (ulimit -f) is reached: raise it";
    struct statvfs disk;
    int fd;
    const uint64_t margin = 1 << 20;
    if (rc == ENOSPC || rc == EDQUOT) {
        return disk_full;
    }
    if (rc == EFBIG) {
        return limit_reached;
    }
    if (rc != EIO || mdb_env_get_fd(env, &fd)) {
        return NULL;
    }
    if (at_file_limit(fd, margin)) {
        return limit_reached;
    }
    return fstatvfs(fd, &disk) == 0 && (uint64_t)disk.f_bavail * disk.f_frsize < margin ? disk_full : NULL;
}

int memory_error(const struct memory *m, int rc, const char *doing, struct error *e)
{
    const char *full = full_words(m->env, rc);
    if (full) {
        return error_set(e, ERROR_RETRY, E_DISK_FULL, "%s: %s, the memory is as it was", m->path, full);
    }
    switch (rc) {
    case MDB_MAP_FULL:
        return error_set(e, ERROR_RETRY, E_MAP_FULL,
                         "%s: the map of %llu bytes is full: raise the option map_size and restart", m->path,
                         (unsigned long long)m->map_size);
    case MDB_MAP_RESIZED:
        return error_set(e, ERROR_FATAL, E_MAP_FULL,
                         "%s: the memory has outgrown the map of %llu bytes: raise the option map_size and restart",
                         m->path, (unsigned long long)m->map_size);
    case MDB_READERS_FULL:
        return error_set(e, ERROR_RETRY, E_LOCKED, "%s: %d read transactions are open already: end some first", m->path,
                         READERS_MAX);
    case MDB_CORRUPTED:
    case MDB_PAGE_NOTFOUND:
    case MDB_INVALID:
        return corrupt(m, e, "%s", mdb_strerror(rc));
    case MDB_BAD_TXN: /* LMDB met damage in this transaction, be it within this very call */
        return corrupt(m, e, "LMDB found a damaged page");
    case MDB_VERSION_MISMATCH:
        return error_set(e, ERROR_FATAL, E_FORMAT, "%s: %s: the folder was made by another version of LMDB", m->path,
                         mdb_strerror(rc));
    case EACCES:
    case EPERM:
        return error_set(e, ERROR_FATAL, E_IO,
                         "%s: %s: data.mdb must be readable, and lock.mdb writable for readers too", m->path,
                         strerror(rc));
    case MDB_PANIC:
        return error_set(e, ERROR_FATAL, E_IO, "%s: an earlier write to the disk failed: restart", m->path);
    default:
        return error_set(e, ERROR_FATAL, E_IO, "%s: %s the memory: %s", m->path, doing, mdb_strerror(rc));
    }
}
