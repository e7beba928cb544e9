/* What a memory meets from outside: a second writer, readers beside a writer, other encoders, full maps and disks,
 * limits, and kill -9. Each fault is made for real, with files, limits and child processes. Damaged files are in
 * test_memory_damage.c. */

#define _GNU_SOURCE /* nftw in the model, memmem */
#include <errno.h>
#include <fcntl.h>
#include <lmdb.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "memory_model.h"
#include "store/internal.h" /* data_file_check */

/* Runs work in a child process; its assertions fail the child, and that fails the test. */
static void in_child(void (*work)(void *context), void *context)
{
    pid_t pid = fork_child();
    assert_true(pid >= 0);
    if (pid == 0) {
        work(context);
        _exit(0);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* In a child a cmocka assertion would longjmp into the parent's test: children check with this. */
#define CHILD_CHECK(condition)                                                                                         \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: child: %s does not hold\n", __FILE__, __LINE__, #condition);                       \
            _exit(1);                                                                                                  \
        }                                                                                                              \
    } while (0)

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static void test_missing_memory(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    char path[512], file[512];
    struct stat s;
    refused(MEMORY_READ, &options, E_NOT_FOUND, "engram load");
    path_in(*state, "absent", path);
    options.path = path;
    refused(MEMORY_READ, &options, E_NOT_FOUND, "engram load");
    options.fingerprint = NULL; /* a writer without an encoder makes nothing */
    refused(MEMORY_WRITE, &options, E_NOT_FOUND, "engram load");
    assert_int_equal(stat(path, &s), -1);
    options.fingerprint = FINGERPRINT;
    path_in(*state, "absent/too/deep", path);
    refused(MEMORY_WRITE, &options, E_IO, "cannot be created");
    path_in(*state, "file", file);
    fclose(fopen(file, "w"));
    options.path = file;
    refused(MEMORY_WRITE, &options, E_IO, "folder");
    refused(MEMORY_READ, &options, E_NOT_FOUND, "engram load");
    path_in(*state, "made/", path);
    options.path = path;
    memory_close(open_ok(MEMORY_WRITE, &options));
    memory_close(open_ok(MEMORY_READ, &options));
}

static void test_other_encoders_memory(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_BF16);
    memory_close(open_ok(MEMORY_WRITE, &options));
    options.fingerprint = "ffffffffffffffffffffffffffffffff";
    options.model_name = "another";
    refused(MEMORY_WRITE, &options, E_FINGERPRINT, "another");
    refused(MEMORY_READ, &options, E_FINGERPRINT, "tiny");
    options.fingerprint = FINGERPRINT;
    options.dim = DIM + 1;
    refused(MEMORY_WRITE, &options, E_FINGERPRINT, "13");
    options.dim = DIM;
    options.dtype = DTYPE_F32;
    refused(MEMORY_WRITE, &options, E_FINGERPRINT, "key_dtype = bf16");
    memory_close(open_ok(MEMORY_READ, &options)); /* takes what is there */
    options.fingerprint = NULL;
    options.dim = 0;
    struct memory *m = open_ok(MEMORY_READ, &options);
    struct transaction *t;
    struct error e = {0};
    assert_int_equal(memory_begin(m, &t, &e), -1);
    memory_close(m);
    memory_close(open_ok(MEMORY_WRITE, &options)); /* forget --local has no encoder */
}

static void second_process(void *context)
{
    const struct memory_options *options = context;
    struct memory *m;
    struct error e = {0};
    char text[64];
    snprintf(text, sizeof text, "process %ld", (long)getppid());
    CHILD_CHECK(memory_open(&m, MEMORY_WRITE, options, &e) == -1 && e.code == E_LOCKED && strstr(e.text, text));
    CHILD_CHECK(memory_open(&m, MEMORY_READ, options, &e) == 0);
    memory_close(m);
}

static void test_one_writer(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_BF16);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    unsigned flags;
    assert_int_equal(mdb_env_get_flags(m->env, &flags), 0);
    assert_int_equal(flags & (MDB_NOSYNC | MDB_NOMETASYNC | MDB_WRITEMAP | MDB_NOLOCK), 0);
    assert_int_equal(flags & MDB_NOTLS, MDB_NOTLS);
    in_child(second_process, &options);
    refused(MEMORY_READ, &options, E_LOCKED, "already");
    refused(MEMORY_WRITE, &options, E_LOCKED, "already");
    memory_close(m);
    memory_close(open_ok(MEMORY_WRITE, &options));
}

static void refused_in_namespace(void *context)
{
    const struct memory_options *options = context;
    struct memory *m;
    struct error e = {0};
    CHILD_CHECK(memory_open(&m, MEMORY_READ, options, &e) == -1 && e.code == E_LOCKED &&
                strstr(e.text, "PID namespace"));
}

/* While a writer lives whose lock file names another PID namespace, readers are refused; once it is gone they are not.
 */
static void test_readers_share_the_writers_namespace(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_BF16);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    char path[512];
    path_in(*state, "writer.lock", path);
    FILE *lock = fopen(path, "r+");
    assert_non_null(lock);
    assert_true(fprintf(lock, "pid 1 pid_namespace 1\n") > 0 && ftruncate(fileno(lock), 22) == 0);
    fclose(lock);
    in_child(refused_in_namespace, &options);
    memory_close(m);
    memory_close(open_ok(MEMORY_READ, &options));
}

/* ---- readers beside a writer ------------------------------------------------------------------------------------ */

struct beside {
    const struct memory_options *options;
    struct model *model;
    int to_child[2], from_child[2];
};

static bool byte_pass(int fd, bool write_it)
{
    char c = 'x';
    return (write_it ? write(fd, &c, 1) : read(fd, &c, 1)) == 1;
}

/* Holds one snapshot while the parent commits; then it still shows the old version, and a new one the new. */
static void reader_beside(const struct beside *b)
{
    struct memory *m;
    struct snapshot *s;
    struct error e = {0};
    struct model *model = b->model; /* as it was at the fork */
    CHILD_CHECK(memory_open(&m, MEMORY_READ, b->options, &e) == 0);
    CHILD_CHECK(memory_snapshot(m, &s, &e) == 0);
    CHILD_CHECK(byte_pass(b->from_child[1], true) && byte_pass(b->to_child[0], false));
    snapshot_equals(model, s);
    snapshot_release(s);
    for (int64_t i = 500; i < 900; i++) {
        struct change c = change_draw(11, (uint64_t)i);
        model_apply(model, &c, i);
    }
    memory_equals(model, m);
    memory_close(m);
}

static void test_reader_beside_writer(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_BF16);
    struct model *model = mem_zero(1, sizeof *model);
    filled(&options, model, 500);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct beside b = {.options = &options, .model = model};
    assert_int_equal(pipe(b.to_child) | pipe(b.from_child), 0);
    pid_t pid = fork_child();
    assert_true(pid >= 0);
    if (pid == 0) {
        reader_beside(&b);
        _exit(0);
    }
    assert_true(byte_pass(b.from_child[0], false));
    for (int64_t at = 500; at < 900; at += 40) {
        batch_ok(m, model, 11, at, at + 40);
    }
    assert_true(byte_pass(b.to_child[1], true));
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    for (int i = 0; i < 2; i++) {
        close(b.to_child[i]);
        close(b.from_child[i]);
    }
    memory_equals(model, m);
    memory_close(m);
    free(model);
}

/* A reader killed inside a snapshot keeps its slot in LMDB's table until the next open clears it. */
static void test_dead_readers_are_cleared(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_BF16);
    struct model *model = mem_zero(1, sizeof *model);
    filled(&options, model, 100);
    for (int i = 0; i < 2; i++) {
        pid_t pid = fork_child();
        assert_true(pid >= 0);
        if (pid == 0) {
            struct memory *m;
            struct snapshot *s;
            struct error e = {0};
            CHILD_CHECK(memory_open(&m, MEMORY_READ, &options, &e) == 0 && memory_snapshot(m, &s, &e) == 0);
            raise(SIGKILL);
        }
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    }
    struct memory *m = open_ok(MEMORY_READ, &options);
    int dead = -1;
    assert_int_equal(mdb_reader_check(m->env, &dead), 0);
    assert_int_equal(dead, 0); /* the open cleared both */
    memory_close(m);
    free(model);
}

/* ---- limits ----------------------------------------------------------------------------------------------------- */

/* Applies changes one a transaction until one fails; returns its number. */
static int64_t until_error(struct memory *m, struct model *model, int64_t from, struct error *e)
{
    for (int64_t i = from; i < from + 5000; i++) {
        struct change c = change_draw(13, (uint64_t)i);
        struct transaction *t = begin_ok(m);
        if (memory_apply(t, &c, i, NULL, e) ||
            transaction_offset(t, names_slice("cluster"), names_slice("instances"), 0, READ_TO(i + 1), e)) {
            transaction_abort(t);
            return i;
        }
        if (transaction_commit(t, e)) {
            return i;
        }
        model_apply(model, &c, i);
    }
    return -1;
}

static void test_full_map_then_a_larger_one(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct model *model = mem_zero(1, sizeof *model);
    struct error e = {0};
    options.map_size = 300000;
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    int64_t at = until_error(m, model, 0, &e);
    assert_true(at > 10);
    for (int i = 0; i < 3; i++) { /* again and again: nothing of it stays */
        assert_int_equal(e.code, E_MAP_FULL);
        assert_int_equal(e.kind, ERROR_RETRY);
        assert_non_null(strstr(e.text, "map_size"));
        memory_equals(model, m);
        e = (struct error){0};
        assert_int_equal(until_error(m, model, at, &e), at);
    }
    memory_close(m);
    options.map_size = 1 << 24;
    m = open_ok(MEMORY_WRITE, &options);
    memory_equals(model, m);
    batch_ok(m, model, 13, at, at + 500);
    memory_equals(model, m);
    memory_close(m);
    options.map_size = 4096; /* smaller than what is there: reading works, writing says so */
    m = open_ok(MEMORY_WRITE, &options);
    memory_equals(model, m);
    memory_close(m);
    free(model);
}

struct full_disk {
    const struct memory_options *options;
    struct model *model;
};

static void disk_fills(void *context)
{
    const struct full_disk *d = context;
    struct error e = {0};
    struct memory *m = open_ok(MEMORY_WRITE, d->options);
    struct rlimit limit = {200000, 200000};
    struct rlimit before;
    signal(SIGXFSZ, SIG_IGN);
    CHILD_CHECK(getrlimit(RLIMIT_FSIZE, &before) == 0);
    limit.rlim_max = before.rlim_max;
    CHILD_CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    int64_t at = until_error(m, d->model, 0, &e);
    CHILD_CHECK(at > 10 && e.code == E_DISK_FULL && e.kind == ERROR_RETRY && strstr(e.text, "ulimit -f"));
    memory_equals(d->model, m);
    e = (struct error){0};
    CHILD_CHECK(until_error(m, d->model, at, &e) == at && e.code == E_DISK_FULL);
    CHILD_CHECK(setrlimit(RLIMIT_FSIZE, &before) == 0); /* room again: it goes on by itself */
    batch_ok(m, d->model, 13, at, at + 300);
    memory_equals(d->model, m);
    memory_close(m);
    m = open_ok(MEMORY_WRITE, d->options);
    memory_equals(d->model, m);
    memory_close(m);
}

static void test_full_disk(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct full_disk d = {&options, mem_zero(1, sizeof *d.model)};
    in_child(disk_fills, &d);
    free(d.model);
}

static void map_is_refused(void *context)
{
    struct memory_options options = *(const struct memory_options *)context;
    struct memory *m;
    struct error e = {0};
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    CHILD_CHECK(file && fscanf(file, "%llu", &pages) == 1);
    fclose(file);
    struct rlimit limit;
    CHILD_CHECK(getrlimit(RLIMIT_AS, &limit) == 0);
    limit.rlim_cur = pages * (unsigned long long)sysconf(_SC_PAGESIZE) + (1ull << 30);
    CHILD_CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    options.map_size = 0; /* the default, 1 TiB */
    CHILD_CHECK(memory_open(&m, MEMORY_WRITE, &options, &e) == -1 && e.kind == ERROR_FATAL &&
                strstr(e.text, "map_size"));
    options.map_size = 1 << 24;
    CHILD_CHECK(memory_open(&m, MEMORY_WRITE, &options, &e) == 0);
    memory_close(m);
}

static void test_refused_map(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    in_child(map_is_refused, &options);
}

static void test_keys_max(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct error e = {0};
    float vector[DIM] = {1}, other[DIM] = {2};
    struct slice label = names_slice("l"), text = names_slice("t");
    struct memory_source source = {names_slice("c"), names_slice("instances"), 0, 1, 1};
    options.keys_max = 3;
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct transaction *t = begin_ok(m);
    assert_int_equal(transaction_fold(t, names_slice("a"), text, &label, 1, KEY(vector), &source, NULL, &e), 0);
    assert_int_equal(transaction_fold(t, names_slice("b"), text, &label, 1, KEY(vector), &source, NULL, &e), 0);
    assert_int_equal(transaction_define(t, label, text, KEY(vector), &source, NULL, &e), 0);
    for (int i = 0; i < 2; i++) { /* the second time after a commit */
        e = (struct error){0};
        struct slice new = names_slice("new");
        assert_int_equal(transaction_fold(t, names_slice("c"), text, &new, 1, KEY(vector), &source, NULL, &e), -1);
        assert_int_equal(e.code, E_KEYS_MAX);
        assert_int_equal(e.kind, ERROR_RETRY);
        assert_non_null(strstr(e.text, "keys_max"));
        assert_int_equal(transaction_define(t, names_slice("m"), text, KEY(vector), &source, NULL, &e), -1);
        assert_int_equal(e.code, E_KEYS_MAX);
        assert_int_equal(transaction_fold(t, names_slice("a"), text, &label, 1, KEY(other), &source, NULL, &e), 0);
        assert_int_equal(transaction_define(t, label, text, KEY(other), &source, NULL, &e), 0);
        commit_ok(t);
        struct snapshot *s;
        struct memory_label got;
        assert_int_equal(memory_look(m, &s, &e), 0);
        assert_int_equal(snapshot_label_named(s, new, &got, &e), 0); /* nothing was touched */
        snapshot_release(s);
        t = begin_ok(m);
    }
    assert_int_equal(transaction_forget(t, names_slice("b"), NULL, &e), 0);
    assert_int_equal(transaction_fold(t, names_slice("c"), text, NULL, 0, KEY(vector), &source, NULL, &e), 0);
    commit_ok(t);
    uint64_t problems;
    assert_int_equal(verify_here(m, print_problem, NULL, &problems, &e), 0);
    assert_int_equal(problems, 0);
    memory_close(m);
}

/* More block copies in one transaction than are kept at a time: flushed early, and still whole or nothing. */
static void test_large_transaction(void **state)
{
    enum { WIDE = 2048, ROWS = 20000 };
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct error e = {0};
    float *vector = mem_zero(WIDE, sizeof *vector);
    struct memory_source source = {names_slice("c"), names_slice("instances"), 0, 1, 1};
    struct slice label = names_slice("l");
    char id[32];
    uint64_t problems;
    options.dim = WIDE;
    options.block_rows = 256;
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    for (int run = 0; run < 2; run++) {
        struct transaction *t = begin_ok(m);
        for (int i = 0; i < ROWS; i++) {
            snprintf(id, sizeof id, "%d", i * 7 % ROWS);
            vector[i % WIDE] = (float)(i + run);
            if (transaction_fold(t, names_slice(id), names_slice("t"), &label, 1, KEY(vector), &source, NULL, &e)) {
                fail_msg("%s", e.text);
            }
        }
        if (run == 0) {
            transaction_abort(t);
            struct snapshot *s;
            assert_int_equal(memory_snapshot(m, &s, &e), 0);
            assert_int_equal(snapshot_keys(s)->count, 0);
            snapshot_release(s);
        } else {
            commit_ok(t);
        }
    }
    assert_int_equal(verify_here(m, print_problem, NULL, &problems, &e), 0);
    assert_int_equal(problems, 0);
    struct snapshot *s;
    struct memory_stats stats;
    assert_int_equal(memory_snapshot(m, &s, &e), 0);
    assert_int_equal(snapshot_keys(s)->count, (ROWS + 255) / 256);
    assert_int_equal(snapshot_stats(s, &stats, &e), 0);
    assert_int_equal(stats.instances, ROWS);
    memory_stats_free(&stats);
    snapshot_release(s);
    memory_close(m);
    free(vector);
}

/* ---- kill -9 ---------------------------------------------------------------------------------------------------- */

/* Folds change after change, each with its offset, and tells each commit to the pipe. */
static void fold_until_killed(const struct memory_options *options, int64_t from, int fd)
{
    struct memory *m;
    struct error e = {0};
    CHILD_CHECK(memory_open(&m, MEMORY_WRITE, options, &e) == 0);
    for (int64_t i = from;; i++) {
        struct change c = change_draw(14, (uint64_t)i);
        struct transaction *t;
        CHILD_CHECK(memory_begin(m, &t, &e) == 0 && memory_apply(t, &c, i, NULL, &e) == 0);
        CHILD_CHECK(transaction_offset(t, names_slice("cluster"), names_slice("instances"), 0, READ_TO(i + 1), &e) ==
                    0);
        CHILD_CHECK(transaction_commit(t, &e) == 0);
        CHILD_CHECK(write(fd, &i, sizeof i) == sizeof i);
    }
}

static void test_kill_loses_nothing(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_BF16);
    struct model *model = mem_zero(1, sizeof *model);
    for (int round = 0; round < 6; round++) {
        int fds[2];
        int64_t from = model->next, told = from - 1, number;
        assert_int_equal(pipe(fds), 0);
        pid_t pid = fork_child();
        assert_true(pid >= 0);
        if (pid == 0) {
            close(fds[0]);
            fold_until_killed(&options, from, fds[1]);
        }
        close(fds[1]);
        while (told < from + 20 + round * 17 && read(fds[0], &number, sizeof number) == sizeof number) {
            told = number;
        }
        assert_int_equal(kill(pid, SIGKILL), 0);
        int status;
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        while (read(fds[0], &number, sizeof number) == sizeof number) {
            told = number;
        }
        close(fds[0]);
        struct memory *m = open_ok(MEMORY_WRITE, &options);
        struct snapshot *s;
        struct error e = {0};
        assert_int_equal(memory_look(m, &s, &e), 0);
        int64_t next = (int64_t)snapshot_version(s);
        snapshot_release(s);
        assert_true(next == told + 1 || next == told + 2); /* killed between the commit and its telling */
        for (int64_t i = from; i < next; i++) {
            struct change c = change_draw(14, (uint64_t)i);
            model_apply(model, &c, i);
        }
        memory_equals(model, m);
        memory_close(m);
    }
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        memory_test(test_missing_memory),
        memory_test(test_other_encoders_memory),
        memory_test(test_one_writer),
        memory_test(test_readers_share_the_writers_namespace),
        memory_test(test_reader_beside_writer),
        memory_test(test_dead_readers_are_cleared),
        memory_test(test_full_map_then_a_larger_one),
        memory_test(test_full_disk),
        memory_test(test_refused_map),
        memory_test(test_keys_max),
        memory_test(test_large_transaction),
        memory_test(test_kill_loses_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
