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

/* LMDB reports a write that was cut short as EIO: is there no room left, by the disk or by the process's limit? */
static bool is_full(MDB_env *env)
{
    struct statvfs disk;
    struct rlimit limit;
    struct stat file;
    int fd;
    const uint64_t margin = 1 << 20;
    if (mdb_env_get_fd(env, &fd)) {
        return false;
    }
    if (fstatvfs(fd, &disk) == 0 && (uint64_t)disk.f_bavail * disk.f_frsize < margin) {
        return true;
    }
    return getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY && fstat(fd, &file) == 0 &&
           (uint64_t)file.st_size + margin > limit.rlim_cur;
}

bool disk_is_full(MDB_env *env, int rc)
{
    return rc == ENOSPC || rc == EDQUOT || rc == EFBIG || (rc == EIO && is_full(env));
}

int memory_error(const struct memory *m, int rc, const char *doing, struct error *e)
{
    if (disk_is_full(m->env, rc)) {
        return error_set(e, ERROR_RETRY, E_DISK_FULL,
                         "%s: no space left on the device: free some, the memory is as it was", m->path);
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
