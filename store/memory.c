/* Opens and closes a memory: folder, locks, the LMDB environment, its databases, and the checks before anything is
 * read. What surprises: a read-only open works beside a running writer and never creates anything; a new memory is made
 * whole in one transaction, so that a reader sees either none or all of it. */
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

enum { FILE_MODE = 0600, OPEN_TRIES = 200 };

#define MAP_SIZE_DEFAULT ((uint64_t)1 << 40)

/* ---- the folder ---- */

int folder_sync(const char *path, struct error *e)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || (fsync(fd) && errno != EINVAL) ? errno : 0; /* EINVAL: this file system has nothing to sync */
    if (fd >= 0) {
        close(fd);
    }
    return rc ? error_set(e, ERROR_FATAL, E_IO, "%s: %s", path, strerror(rc)) : 0;
}

int folder_make(const char *path, struct error *e)
{
    struct stat s;
    if (stat(path, &s) == 0) {
        return S_ISDIR(s.st_mode)
                   ? 0
                   : error_set(e, ERROR_FATAL, E_IO, "%s is a file: the option memory must name a folder", path);
    }
    if (mkdir(path, 0700) || chmod(path, 0700)) { /* the umask may have taken too much */
        return error_set(e, ERROR_FATAL, E_IO, "%s: the folder cannot be created: %s", path, strerror(errno));
    }
    size_t bytes = strlen(path);
    while (bytes > 1 && path[bytes - 1] == '/') {
        bytes--;
    }
    while (bytes > 0 && path[bytes - 1] != '/') {
        bytes--;
    }
    char *parent = bytes ? mem_string(path, bytes) : mem_string(".", 1);
    int result = folder_sync(parent, e);
    free(parent);
    return result;
}

int folder_lock(const char *path, int operation)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC), rc;
    do {
        rc = fd < 0 ? -1 : flock(fd, operation);
    } while (rc && fd >= 0 && errno == EINTR);
    if (rc && fd >= 0) {
        close(fd);
    }
    return rc ? -1 : fd;
}

static int missing(const struct memory *m, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_NOT_FOUND,
                     "%s: there is no memory here: `engram load` or `engram run` creates one; the option memory names "
                     "another folder",
                     m->path);
}

/* ---- a new memory, an existing one ---- */

static void sizes_set(struct memory *m)
{
    m->vector_bytes = m->dim * (m->dtype == DTYPE_BF16 ? 2 : 4);
    size_t bytes = sizeof(struct block_header) + m->rows * m->vector_bytes;
    m->values_bytes_min = m->page_bytes / 2; /* LMDB keeps nothing of half a page inline */
    m->block_bytes = bytes < m->values_bytes_min ? m->values_bytes_min : bytes;
}

static int memory_make(struct memory *m, MDB_txn *txn, const struct memory_options *o, struct error *e)
{
    size_t rows = o->block_rows ? o->block_rows : BLOCK_ROWS_DEFAULT;
    if (rows % 64 || rows > BLOCK_ROWS_MAX || strlen(o->fingerprint) != 32) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "%s: no memory can be created with these options", m->path);
    }
    m->rows = rows;
    m->dim = o->dim;
    m->dtype = o->dtype;
    m->piece_bytes = o->vocabulary && o->vocabulary <= UINT16_MAX + 1 ? 2 : 4;
    m->model_name = mem_string(o->model_name, o->model_name ? strlen(o->model_name) : 0);
    memcpy(m->fingerprint, o->fingerprint, sizeof m->fingerprint);
    struct meta meta = {.rows = (uint32_t)rows,
                        .dtype = (uint32_t)o->dtype,
                        .dim = (uint32_t)o->dim,
                        .open = {NO_BLOCK, NO_BLOCK},
                        .piece_bytes = m->piece_bytes};
    memcpy(meta.fingerprint, o->fingerprint, sizeof meta.fingerprint);
    return meta_write(m, txn, &meta, e);
}

static int fingerprint_differs(const struct memory *m, const struct memory_options *o, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_FINGERPRINT,
                     "%s: the memory was made by another encoder (%s, fingerprint %.16s, %zu dimensions) than this one "
                     "(%s, %.16s, %zu): name its model with the option model, or another folder with the option memory",
                     m->path, m->model_name[0] ? m->model_name : "unnamed", m->fingerprint, m->dim,
                     o->model_name ? o->model_name : "unnamed", o->fingerprint ? o->fingerprint : "not given", o->dim);
}

static int memory_accept(struct memory *m, MDB_txn *txn, const struct memory_options *o, struct error *e)
{
    struct meta meta;
    struct slice model;
    if (meta_read(m, txn, &meta, &model, e)) {
        return -1;
    }
    if (meta.rows % 64 || meta.rows < 64 || meta.rows > BLOCK_ROWS_MAX || meta.dim < 1 || meta.dtype > DTYPE_F32 ||
        (meta.piece_bytes != 2 && meta.piece_bytes != 4)) {
        return corrupt(m, e, "'meta' names %u rows, dimension %u, dtype %u, %llu bytes a word piece", meta.rows,
                       meta.dim, meta.dtype, (unsigned long long)meta.piece_bytes);
    }
    m->rows = meta.rows;
    m->dim = meta.dim;
    m->dtype = (enum dtype)meta.dtype;
    m->piece_bytes = (size_t)meta.piece_bytes;
    memcpy(m->fingerprint, meta.fingerprint, sizeof meta.fingerprint);
    m->model_name = mem_string(model.data, model.bytes);
    if ((o->fingerprint && strcmp(o->fingerprint, m->fingerprint) != 0) || (o->dim && o->dim != m->dim)) {
        return fingerprint_differs(m, o, e);
    }
    if (m->mode == MEMORY_WRITE && o->fingerprint && o->dtype != m->dtype) {
        static const char *const names[] = {[DTYPE_BF16] = "bf16", [DTYPE_F32] = "f32"};
        return error_set(e, ERROR_FATAL, E_FINGERPRINT,
                         "%s: the memory has %s keys, the option key_dtype says %s: set key_dtype = %s, or name "
                         "another folder with the option memory",
                         m->path, names[m->dtype], names[o->dtype], names[m->dtype]);
    }
    return 0;
}

/* ---- opening ---- */

/* One try, whose environment stays in m->env, also after an error. A read transaction is begun too: LMDB's mutexes
 * lie in the file, and are met with the first one. */
static int environment_try(struct memory *m)
{
    MDB_txn *txn = NULL;
    int dead;
    int rc = mdb_env_create(&m->env);
    rc = rc ? rc : mdb_env_set_maxdbs(m->env, DB_COUNT);
    rc = rc ? rc : mdb_env_set_maxreaders(m->env, READERS_MAX);
    rc = rc ? rc : mdb_env_set_mapsize(m->env, (size_t)m->map_size);
    rc = rc ? rc : mdb_env_set_userctx(m->env, m);
    rc = rc ? rc : mdb_env_set_assert(m->env, fault_assert);
    rc = rc ? rc : mdb_env_open(m->env, m->path, MDB_NOTLS | (m->mode == MEMORY_READ ? MDB_RDONLY : 0u), FILE_MODE);
    rc = rc ? rc : mdb_reader_check(m->env, &dead);
    rc = rc ? rc : mdb_txn_begin(m->env, NULL, MDB_RDONLY, &txn);
    if (txn) {
        mdb_txn_abort(txn);
    }
    return rc;
}

static int environment_open(struct memory *m, uint64_t map_size, uint64_t bytes_in_use, struct error *e)
{
    size_t os_page = (size_t)sysconf(_SC_PAGESIZE);
    m->map_size = ((map_size ? map_size : MAP_SIZE_DEFAULT) + os_page - 1) / os_page * os_page;
    int rc = environment_try(m);
    /* Who leaves last destroys the mutexes (LMDB 0.9.27 and later), and who waits to enter meanwhile finds them so; the
     * next one to enter alone makes them again. */
    for (int tries = 0; rc == EINVAL && tries < OPEN_TRIES; tries++) {
        mdb_env_close(m->env);
        m->env = NULL;
        clock_sleep_ms(1 + (unsigned)(getpid() + tries) % 8); /* not all who wait at once */
        rc = environment_try(m);
    }
    if (rc == ENOMEM || rc == EOVERFLOW) {
        return error_set(e, ERROR_FATAL, E_IO,
                         "%s: %llu bytes cannot be mapped (%s): lower the option map_size (%llu bytes are in use)",
                         m->path, (unsigned long long)m->map_size, strerror(rc), (unsigned long long)bytes_in_use);
    }
    MDB_stat stat;
    rc = rc ? rc : mdb_env_stat(m->env, &stat);
    if (rc) {
        return memory_error(m, rc, "opening", e);
    }
    m->page_bytes = stat.ms_psize;
    fault_watch(m);
    return 0;
}

/* Opens the databases in `txn`; *made: there was no memory, and now there is an empty one. */
static int databases_open(struct memory *m, MDB_txn *txn, const struct memory_options *o, bool *made, struct error *e)
{
    *made = false;
    int rc = FOLLOW(m, mdb_dbi_open(txn, db_name(DB_META), db_flags(DB_META), &m->db[DB_META]));
    if (rc == MDB_NOTFOUND) {
        MDB_stat root;
        rc = mdb_stat(txn, 1, &root); /* 1: the database that holds the others' names */
        if (rc) {
            return memory_error(m, rc, "opening", e);
        }
        if (root.ms_entries) {
            return error_set(
                e, ERROR_FATAL, E_FORMAT,
                "%s: the folder has an LMDB database that is not a memory of Engram: name another with the "
                "option memory",
                m->path);
        }
        if (m->mode == MEMORY_READ || !o->fingerprint || !o->dim) {
            return missing(m, e);
        }
        *made = true;
    }
    for (enum db db = DB_META; db < DB_COUNT; db++) {
        unsigned flags = db_flags(db) | (*made ? (unsigned)MDB_CREATE : 0u);
        rc = FOLLOW(m, mdb_dbi_open(txn, db_name(db), flags, &m->db[db]));
        if (rc == MDB_NOTFOUND || rc == MDB_INCOMPATIBLE) {
            return corrupt(m, e, "the database '%s' is missing", db_name(db));
        }
        if (rc) {
            return memory_error(m, rc, "opening", e);
        }
    }
    int result = *made ? memory_make(m, txn, o, e) : memory_accept(m, txn, o, e);
    sizes_set(m);
    return result;
}

static int contents_open(struct memory *m, const struct memory_options *o, bool *made, struct error *e)
{
    MDB_txn *txn = NULL;
    int rc = mdb_txn_begin(m->env, NULL, m->mode == MEMORY_READ ? MDB_RDONLY : 0u, &txn);
    if (rc) {
        return memory_error(m, rc, "opening", e);
    }
    if (databases_open(m, txn, o, made, e)) {
        mdb_txn_abort(txn);
        return -1;
    }
    rc = mdb_txn_commit(txn); /* also read-only: an abort would close the handles */
    return rc ? memory_error(m, rc, "opening", e) : 0;
}

static int memory_open_path(struct memory *m, const struct memory_options *o, struct error *e)
{
    uint64_t bytes_in_use;
    bool made = false;
    char *data_path = mem_alloc(strlen(m->path) + sizeof "/data.mdb");
    sprintf(data_path, "%s/data.mdb", m->path);
    int result = -1, folder_fd = -1;
    bool can_make = m->mode == MEMORY_WRITE && o->fingerprint && o->dim;
    if (!can_make && access(data_path, F_OK) && (errno == ENOENT || errno == ENOTDIR)) {
        missing(m, e);
        goto done;
    }
    if (m->mode == MEMORY_WRITE && folder_make(m->path, e)) {
        goto done;
    }
    folder_fd =
        folder_lock(m->path, LOCK_SH); /* no file is swapped under us; where it cannot be had, none is swapped */
    if (registry_enter(m, e) || (m->mode == MEMORY_WRITE ? writer_lock_take(m, e) : writer_lock_namespace(m, e)) ||
        data_file_check(data_path, &bytes_in_use, e)) {
        goto done;
    }
    if (bytes_in_use == 0 && !can_make) {
        missing(m, e);
        goto done;
    }
    if (m->mode == MEMORY_WRITE) {
        copy_leftover_drop(m->path);
        if (file_make(m->path, "data.mdb", e) || file_make(m->path, "lock.mdb", e)) {
            goto done;
        }
    }
    if (environment_open(m, o->map_size, bytes_in_use, e) || contents_open(m, o, &made, e) ||
        (made && folder_sync(m->path, e)) || (m->mode == MEMORY_WRITE && !made && trees_prove(m, e))) {
        goto done;
    }
    result = 0;
done:
    if (folder_fd >= 0) {
        close(folder_fd);
    }
    free(data_path);
    return result;
}

int memory_open(struct memory **out, enum memory_mode mode, const struct memory_options *options, struct error *e)
{
    struct memory *m = mem_zero(1, sizeof *m);
    m->path = mem_string(options->path, strlen(options->path));
    m->mode = mode;
    m->lock_fd = -1;
    m->store_text = options->store_text;
    m->keys_max = options->keys_max;
    pthread_mutex_init(&m->lock, NULL);
    if (memory_open_path(m, options, e)) {
        memory_close(m);
        *out = NULL;
        return -1;
    }
    *out = m;
    return 0;
}

void environment_close(struct memory *m)
{
    readers_free(m);
    view_release(m->view);
    m->view = NULL;
    fault_unwatch(m);
    if (m->env) {
        mdb_env_close(m->env);
    }
    m->env = NULL;
}

void memory_close(struct memory *m)
{
    if (!m) {
        return;
    }
    environment_close(m);
    writer_lock_drop(m);
    registry_leave(m);
    pthread_mutex_destroy(&m->lock);
    free(m->model_name);
    free(m->path);
    free(m);
}
