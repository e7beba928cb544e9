/* Copies of a memory: a backup into another folder, beside a running stage, and the compaction of a stopped one. Both
 * write every entry of one snapshot, in order, into a fresh file beside its place, flush it and rename it, so that
 * there is a whole memory or none. What surprises: LMDB's own compacting copy is not used, for it keeps the keys of
 * forgotten rows in branch pages and knows nothing of checksums; here each is checked on its way. */
#define _GNU_SOURCE /* flock */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "store/internal.h"

enum { COMMIT_BYTES = 8 << 20, FILE_MODE = 0600 };

#define COPY_MARGIN ((uint64_t)1 << 20)
#define MIB(bytes) ((double)(bytes) / (1 << 20))

/* ---- writing one ---- */

struct copy {
    const struct memory *m;
    const char *folder; /* where it is written */
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi db[DB_COUNT];
    enum db current;
    size_t pending; /* bytes put since the last commit */
    uint64_t bytes; /* that it will need at the most */
};

static int copy_error(const struct copy *c, int rc, struct error *e)
{
    const char *full = c->env ? full_words(c->env, rc) : NULL;
    if (full) {
        return error_set(e, ERROR_RETRY, E_DISK_FULL, "%s: %s; the copy needs up to %.1f MiB, nothing of it was kept",
                         c->folder, full, MIB(c->bytes));
    }
    return error_set(e, ERROR_FATAL, E_IO, "%s: the copy cannot be written: %s", c->folder, mdb_strerror(rc));
}

static int room_check(const struct copy *c, struct error *e)
{
    struct statvfs disk;
    if (statvfs(c->folder, &disk)) {
        return error_set(e, ERROR_FATAL, E_IO, "%s: %s", c->folder, strerror(errno));
    }
    uint64_t room = (uint64_t)disk.f_bavail * disk.f_frsize;
    if (room < c->bytes + COPY_MARGIN) {
        return error_set(e, ERROR_RETRY, E_DISK_FULL,
                         "%s: the copy needs up to %.1f MiB, and %.1f MiB are free: make room first", c->folder,
                         MIB(c->bytes + COPY_MARGIN), MIB(room));
    }
    return 0;
}

static int entry_copy(const struct snapshot *s, struct slice key, struct slice value, void *context, struct error *e)
{
    struct copy *c = context;
    MDB_val k = {key.bytes, (void *)(uintptr_t)key.data}, v = {value.bytes, (void *)(uintptr_t)value.data};
    (void)s;
    int rc = mdb_put(c->txn, c->db[c->current], &k, &v, MDB_APPEND);
    if (rc == MDB_KEYEXIST) {
        return corrupt(c->m, e, "the entries of '%s' are out of order", db_name(c->current));
    }
    c->pending += key.bytes + value.bytes;
    if (rc == 0 && c->pending > COMMIT_BYTES) { /* dirty pages are memory */
        rc = mdb_txn_commit(c->txn);
        c->txn = NULL;
        c->pending = 0;
        rc = rc ? rc : mdb_txn_begin(c->env, NULL, 0, &c->txn);
    }
    return rc ? copy_error(c, rc, e) : 0;
}

static int copy_open(struct copy *c, const char *path, struct error *e)
{
    MDB_stat stat;
    size_t os_page = (size_t)sysconf(_SC_PAGESIZE);
    size_t map = (size_t)(c->bytes * 2 + ((uint64_t)64 << 20)) / os_page * os_page;
    int rc = mdb_env_create(&c->env);
    rc = rc ? rc : mdb_env_set_maxdbs(c->env, DB_COUNT);
    rc = rc ? rc : mdb_env_set_mapsize(c->env, map);
    /* no flush before the end: until it is renamed the file is no memory */
    rc = rc ? rc : mdb_env_open(c->env, path, MDB_NOSUBDIR | MDB_NOLOCK | MDB_NOSYNC | MDB_NOTLS, FILE_MODE);
    rc = rc ? rc : mdb_env_stat(c->env, &stat);
    if (rc == 0 && stat.ms_psize != c->m->page_bytes) {
        return error_set(
            e, ERROR_FATAL, E_FORMAT,
            "%s: the memory has pages of %zu bytes, this machine uses pages of %u: copy it on a machine like its own",
            c->m->path, c->m->page_bytes, stat.ms_psize);
    }
    rc = rc ? rc : mdb_txn_begin(c->env, NULL, 0, &c->txn);
    for (enum db db = 0; db < DB_COUNT && rc == 0; db++) {
        rc = mdb_dbi_open(c->txn, db_name(db), db_flags(db) | MDB_CREATE, &c->db[db]);
    }
    return rc ? copy_error(c, rc, e) : 0;
}

static int copy_fill(struct copy *c, const struct snapshot *s, struct error *e)
{
    /* `meta` last: of the commits that this takes only the last one holds its counter, see trees_newer_check */
    for (enum db i = 0; i < DB_COUNT; i++) {
        c->current = (i + 1) % DB_COUNT;
        if (snapshot_walk(s, c->current, sizeof(uint64_t), entry_copy, c, e)) {
            return -1;
        }
    }
    int rc = mdb_txn_commit(c->txn);
    c->txn = NULL;
    rc = rc ? rc : mdb_env_sync(c->env, 1);
    return rc ? copy_error(c, rc, e) : 0;
}

/* Writes folder/COPY_NAME, flushed, from one snapshot; on an error there is no such file. stats, zeroed, becomes
 * the snapshot's. The caller holds the folder's writer.lock. */
static int copy_write(struct memory *m, const char *folder, struct memory_stats *stats, struct error *e)
{
    struct copy c = {.m = m, .folder = folder};
    struct snapshot *s = NULL;
    uint64_t bytes_in_use;
    char *path = folder_path(folder, COPY_NAME);
    int result = -1;
    copy_leftover_drop(folder);
    if (memory_look(m, &s, e) || snapshot_stats(s, stats, e)) {
        goto done;
    }
    c.bytes = stats->bytes;
    if (room_check(&c, e) || file_make(folder, COPY_NAME, e) || copy_open(&c, path, e) || copy_fill(&c, s, e)) {
        goto done;
    }
    mdb_env_close(c.env);
    c.env = NULL;
    result = data_file_check(path, &bytes_in_use, e);
done:
    if (c.txn) {
        mdb_txn_abort(c.txn);
    }
    if (c.env) {
        mdb_env_close(c.env);
    }
    if (result) {
        copy_leftover_drop(folder);
    }
    snapshot_release(s);
    free(path);
    return result;
}

/* The copy takes its place: the folder has the whole of it, or what it had before. */
static int copy_rename(const char *folder, struct error *e)
{
    char *from = folder_path(folder, COPY_NAME), *to = folder_path(folder, "data.mdb");
    int result =
        rename(from, to) ? error_set(e, ERROR_FATAL, E_IO, "%s: %s", to, strerror(errno)) : folder_sync(folder, e);
    free(to);
    free(from);
    return result;
}

/* ---- backup ---- */

static int memory_refuse(const char *folder, struct error *e)
{
    char *data = folder_path(folder, "data.mdb");
    bool there = access(data, F_OK) == 0;
    free(data);
    return there ? error_set(e, ERROR_FATAL, E_IO, "%s: there is a memory here already: name another folder", folder)
                 : 0;
}

int memory_backup(struct memory *m, const char *folder, struct memory_stats *copied, struct error *e)
{
    struct memory target = {.path = (char *)(uintptr_t)folder, .lock_fd = -1}; /* for its writer.lock alone */
    char *lock = folder_path(folder, "writer.lock");
    bool absent = access(folder, F_OK) && errno == ENOENT;
    int result = -1;
    *copied = (struct memory_stats){0};
    if (memory_refuse(folder, e) || folder_make(folder, e) || writer_lock_take(&target, e)) {
        goto done;
    }
    if (memory_refuse(folder, e) == 0) { /* asked again under the lock: now it stays true */
        result = copy_write(m, folder, copied, e) || copy_rename(folder, e) ? -1 : 0;
    }
    if (result && absent) {
        unlink(lock);
        rmdir(folder);
    }
done:
    if (result) {
        memory_stats_free(copied);
    }
    writer_lock_drop(&target);
    free(lock);
    return result;
}

/* ---- compaction ---- */

/* Who has the memory open holds a lock on the first byte of lock.mdb, as LMDB does it. Our own is no obstacle, and goes
 * when any descriptor of that file is closed: fd stays open as long as the memory. */
static int readers_refuse(const struct memory *m, int fd, struct error *e)
{
    struct flock first = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    if (fcntl(fd, F_GETLK, &first)) {
        return error_set(e, ERROR_FATAL, E_IO, "%s/lock.mdb: %s", m->path, strerror(errno));
    }
    if (first.l_type != F_UNLCK) {
        return error_set(e, ERROR_FATAL, E_LOCKED,
                         "%s: process %ld is reading the memory: compact the memory when that has ended", m->path,
                         (long)first.l_pid);
    }
    return 0;
}

/* The copy gets the owner and the rights of the file that it replaces: root may compact another user's memory, and that
 * user may not have root give it another file by a link. */
static int owner_keep(const char *folder, const struct stat *old, struct error *e)
{
    char *path = folder_path(folder, COPY_NAME);
    int result = 0, fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fchown(fd, old->st_uid, old->st_gid) || fchmod(fd, old->st_mode & 07777)) {
        result = error_set(e, ERROR_FATAL, E_IO,
                           "%s: the new file cannot be given the owner of data.mdb (%s): compact it as that user",
                           folder, strerror(errno));
    }
    if (fd >= 0) {
        close(fd);
    }
    free(path);
    return result;
}

/* Swaps the files while nobody has the memory open and nobody can open it: a reader of the old file beside a writer of
 * the new one would share a lock.mdb that speaks of two. */
static int file_swap(struct memory *m, int lock_fd, struct error *e)
{
    environment_close(m);
    int folder_fd = folder_lock(m->path, LOCK_EX);
    if (folder_fd < 0) {
        return error_set(e, ERROR_FATAL, E_IO, "%s: the folder cannot be locked: %s", m->path, strerror(errno));
    }
    int result = readers_refuse(m, lock_fd, e) || copy_rename(m->path, e) ? -1 : 0;
    close(folder_fd);
    return result;
}

int memory_compact(const struct memory_options *options, uint64_t *bytes_before, uint64_t *bytes_after, struct error *e)
{
    struct memory *m = NULL;
    struct stat old, new;
    struct memory_stats stats = {0};
    char *data = folder_path(options->path, "data.mdb"), *lock = folder_path(options->path, "lock.mdb");
    int result = -1, lock_fd = -1;
    if (memory_open(&m, MEMORY_WRITE, options, e)) {
        goto done;
    }
    lock_fd = open(lock, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (lock_fd < 0 || lstat(data, &old)) {
        error_set(e, ERROR_FATAL, E_IO, "%s: %s", lock_fd < 0 ? lock : data, strerror(errno));
        goto done;
    }
    if (readers_refuse(m, lock_fd, e) || copy_write(m, m->path, &stats, e)) {
        goto done;
    }
    if (owner_keep(m->path, &old, e) || file_swap(m, lock_fd, e)) {
        copy_leftover_drop(m->path);
        goto done;
    }
    *bytes_before = (uint64_t)old.st_size;
    *bytes_after = stat(data, &new) ? 0 : (uint64_t) new.st_size;
    result = 0;
done:
    memory_stats_free(&stats);
    memory_close(m);
    if (lock_fd >= 0) {
        close(lock_fd);
    }
    free(lock);
    free(data);
    return result;
}
