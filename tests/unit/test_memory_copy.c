/* Copies of a memory: backups beside a writer that goes on, compactions, and what must be left when either fails. The
 * bytes of what was forgotten are looked for in the file itself. */

#define _GNU_SOURCE /* nftw in the model, memmem */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "memory_model.h"

static struct memory_options source_options(const char *folder, char path[512])
{
    path_in(folder, "source", path);
    struct memory_options options = options_for(folder, DTYPE_BF16);
    options.path = path;
    return options;
}

static void backup_ok(struct memory *m, const char *folder, const struct model *model)
{
    struct error e = {0};
    struct memory_stats copied;
    if (memory_backup(m, folder, &copied, &e)) {
        fail_msg("%s", e.text);
    }
    struct digest want = model_digest(model);
    assert_memory_equal(&copied.digest, &want, sizeof want);
    memory_stats_free(&copied);
}

static void backup_refused(struct memory *m, const char *folder, enum error_code code, const char *word)
{
    struct error e = {0};
    struct memory_stats copied;
    assert_int_equal(memory_backup(m, folder, &copied, &e), -1);
    assert_string_equal(error_code_name(e.code), error_code_name(code));
    if (!strstr(e.text, word)) {
        fail_msg("\"%s\" does not say \"%s\"", e.text, word);
    }
    assert_null(strchr(e.text, '\n'));
}

static void compact_refused(const struct memory_options *options, enum error_code code, const char *word)
{
    struct error e = {0};
    uint64_t before, after;
    assert_int_equal(memory_compact(options, &before, &after, &e), -1);
    assert_string_equal(error_code_name(e.code), error_code_name(code));
    if (!strstr(e.text, word)) {
        fail_msg("\"%s\" does not say \"%s\"", e.text, word);
    }
}

static void compact_ok(const struct memory_options *options, uint64_t *before, uint64_t *after)
{
    struct error e = {0};
    if (memory_compact(options, before, after, &e)) {
        fail_msg("%s", e.text);
    }
}

/* Everything visible, every checksum, and nothing beside the three files. */
static void is_whole(const struct model *model, const struct memory_options *options)
{
    struct memory *m = open_ok(MEMORY_READ, options);
    memory_equals(model, m);
    memory_close(m);
    DIR *folder = opendir(options->path);
    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder));) {
        assert_true(entry->d_name[0] == '.' || strcmp(entry->d_name, "data.mdb") == 0 ||
                    strcmp(entry->d_name, "lock.mdb") == 0 || strcmp(entry->d_name, "writer.lock") == 0);
    }
    closedir(folder);
}

static bool file_holds(const char *folder, const char *word)
{
    char path[512];
    struct buffer bytes = {0};
    path_in(folder, "data.mdb", path);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    buffer_reserve(&bytes, 64 << 20);
    bytes.bytes = fread(bytes.data, 1, 64 << 20, file);
    assert_true(bytes.bytes > 0 && bytes.bytes < 64 << 20);
    fclose(file);
    bool holds = memmem(bytes.data, bytes.bytes, word, strlen(word)) != NULL;
    buffer_free(&bytes);
    return holds;
}

/* ---- backup ----------------------------------------------------------------------------------------------------- */

static void test_backup_beside_a_writer(void **state)
{
    char path[512], copy[512], again[512];
    struct memory_options options = source_options(*state, path), copied = options;
    struct model *model = mem_zero(1, sizeof *model), *then = mem_zero(1, sizeof *then);
    path_in(*state, "copy", copy);
    path_in(*state, "again", again);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    batch_ok(m, model, 21, 0, 400);
    batch_ok(m, model, 21, 400, 900);
    *then = *model;
    struct transaction *open = begin_ok(m); /* a write under way is in no backup */
    struct change c = change_draw(22, 1);
    memory_apply_ok(open, &c, 5000);
    backup_ok(m, copy, then);
    transaction_abort(open);
    batch_ok(m, model, 21, 900, 1300);
    copied.path = copy;
    is_whole(then, &copied);
    memory_equals(model, m);
    memory_close(m);
    /* the copy goes on as the source did, and can be copied itself */
    m = open_ok(MEMORY_WRITE, &copied);
    batch_ok(m, then, 21, 900, 1300);
    memory_equals(model, m);
    backup_ok(m, again, model);
    memory_close(m);
    copied.path = again;
    is_whole(model, &copied);
    free(then);
    free(model);
}

static void test_backup_of_an_empty_memory(void **state)
{
    char path[512], copy[512];
    struct memory_options options = source_options(*state, path), copied = options;
    struct model *model = mem_zero(1, sizeof *model);
    path_in(*state, "copy", copy);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    backup_ok(m, copy, model);
    memory_close(m);
    copied.path = copy;
    is_whole(model, &copied);
    free(model);
}

static void test_backup_is_refused(void **state)
{
    char path[512], copy[512], file[512], deep[512], left[512];
    struct memory_options options = source_options(*state, path), copied = options;
    struct model *model = mem_zero(1, sizeof *model);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    batch_ok(m, model, 23, 0, 100);
    backup_refused(m, path, E_IO, "already"); /* its own folder */
    path_in(*state, "file", file);
    fclose(fopen(file, "w"));
    backup_refused(m, file, E_IO, "folder");
    path_in(*state, "absent/too/deep", deep);
    backup_refused(m, deep, E_IO, "cannot be created");
    /* an empty folder is fine (a mounted volume), also with what a killed backup left */
    path_in(*state, "copy", copy);
    assert_int_equal(mkdir(copy, 0777), 0);
    path_in(copy, "data.mdb.copy", left);
    FILE *half = fopen(left, "w");
    fputs("half", half);
    fclose(half);
    backup_ok(m, copy, model);
    copied.path = copy;
    is_whole(model, &copied);
    backup_refused(m, copy, E_IO, "already");
    is_whole(model, &copied);
    memory_close(m);
    free(model);
}

static void test_damage_is_not_copied(void **state)
{
    char path[512], copy[512], data[512];
    struct memory_options options = source_options(*state, path);
    struct error e = {0};
    struct stat s;
    float vector[DIM] = {1};
    struct memory_source source = {names_slice("c"), names_slice("instances"), 0, 1, 1};
    struct slice label = names_slice("l");
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct transaction *t = begin_ok(m);
    assert_int_equal(
        transaction_fold(t, names_slice("id"), names_slice("MARKED TEXT"), &label, 1, KEY(vector), &source, NULL, &e),
        0);
    assert_int_equal(transaction_commit(t, &e), 0);
    memory_close(m);
    path_in(path, "data.mdb", data);
    int fd = open(data, O_RDWR);
    assert_int_equal(fstat(fd, &s), 0);
    char *bytes = mem_alloc((size_t)s.st_size);
    assert_int_equal(pread(fd, bytes, (size_t)s.st_size, 0), s.st_size);
    char *mark = memmem(bytes, (size_t)s.st_size, "MARKED", 6);
    assert_non_null(mark);
    assert_int_equal(pwrite(fd, "m", 1, mark - bytes), 1);
    close(fd);
    free(bytes);
    path_in(*state, "copy", copy);
    m = open_ok(MEMORY_READ, &options);
    backup_refused(m, copy, E_CORRUPT, "checksum");
    assert_int_equal(stat(copy, &s), -1);
    memory_close(m);
    compact_refused(&options, E_CORRUPT, "checksum");
    memory_close(open_ok(MEMORY_WRITE, &options));
}

/* In a child: the limit on file sizes stands for the disk. */
static void disk_is_full(const struct memory_options *options, const char *copy)
{
    struct rlimit limit = {60000, 60000};
    struct error e = {0};
    struct memory_stats copied;
    uint64_t before, after;
    signal(SIGXFSZ, SIG_IGN);
    struct memory *m = NULL;
    bool good = memory_open(&m, MEMORY_READ, options, &e) == 0 && setrlimit(RLIMIT_FSIZE, &limit) == 0 &&
                memory_backup(m, copy, &copied, &e) == -1 && e.code == E_DISK_FULL && strstr(e.text, "ulimit -f") &&
                strstr(e.text, copy);
    memory_close(m);
    good = good && memory_compact(options, &before, &after, &e) == -1 && e.code == E_DISK_FULL;
    if (!good) {
        fprintf(stderr, "child: %s\n", e.text);
    }
    _exit(good ? 0 : 1);
}

static void test_full_disk_leaves_nothing(void **state)
{
    char path[512], copy[512];
    struct memory_options options = source_options(*state, path);
    struct model *model = mem_zero(1, sizeof *model);
    struct stat s;
    int status;
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    batch_ok(m, model, 24, 0, 500);
    memory_close(m);
    path_in(*state, "copy", copy);
    pid_t pid = fork_child();
    if (pid == 0) {
        disk_is_full(&options, copy);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(stat(copy, &s), -1);
    assert_int_equal(errno, ENOENT);
    is_whole(model, &options);
    free(model);
}

/* ---- compaction ------------------------------------------------------------------------------------------------- */

static void test_compact_shrinks(void **state)
{
    char path[512], data[512];
    struct memory_options options = source_options(*state, path);
    struct model *model = mem_zero(1, sizeof *model);
    uint64_t before, after, again;
    struct stat s;
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    for (int64_t at = 0; at < 2000; at += 100) {
        batch_ok(m, model, 25, at, at + 100);
    }
    memory_close(m);
    path_in(path, "data.mdb", data);
    assert_int_equal(chmod(data, 0640), 0);
    struct memory_options blind = options; /* the command has no encoder */
    blind.fingerprint = NULL;
    blind.dim = 0;
    compact_ok(&blind, &before, &after);
    assert_true(after < before);
    assert_int_equal(stat(data, &s), 0);
    assert_int_equal(s.st_size, after);
    assert_int_equal(s.st_mode & 07777, 0640);
    is_whole(model, &options);
    m = open_ok(MEMORY_WRITE, &options); /* goes on, and is compacted again */
    batch_ok(m, model, 25, 2000, 2300);
    memory_equals(model, m);
    memory_close(m);
    compact_ok(&blind, &before, &again);
    is_whole(model, &options);
    free(model);
}

static void text_of(unsigned i, struct buffer *out)
{
    buffer_clear(out);
    buffer_format(out, "SECRET-%04u ", i);
    while (out->bytes < (i % 7 == 0 ? 9000u : 20u + i % 900u)) { /* inline, and on pages of their own */
        buffer_format(out, "secret-%04u ", i);
    }
}

/* Six word pieces whose two bytes each spell a word in the file. */
static void pieces_spell(unsigned i, int32_t pieces[6])
{
    char word[16];
    snprintf(word, sizeof word, "pieces-%04u ", i);
    for (int k = 0; k < 6; k++) {
        uint16_t piece;
        memcpy(&piece, word + 2 * k, sizeof piece);
        pieces[k] = piece;
    }
}

/* What was forgotten, replaced or undefined: no byte of its id, name, text or word pieces stays in the file. */
static void test_forgotten_bytes_leave_the_file(void **state)
{
    enum { SECRETS = 600 };
    char path[512], copy[512], word[64];
    struct memory_options options = source_options(*state, path);
    struct error e = {0};
    struct buffer text = {0};
    float vector[DIM] = {1};
    int32_t pieces[6];
    struct memory_key key = {vector, pieces, 6};
    struct memory_source source = {names_slice("c"), names_slice("instances"), 0, 1, 1};
    unsigned held = 0, pieces_held = 0;
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    for (unsigned i = 0; i < SECRETS; i += 50) {
        struct transaction *t = begin_ok(m);
        for (unsigned k = i; k < i + 50; k++) {
            snprintf(word, sizeof word, "ID-OF-%04u", k);
            struct slice label = names_slice(k % 2 ? "odd" : word);
            pieces_spell(k, pieces);
            text_of(k, &text);
            struct slice secret = {text.data, text.bytes};
            assert_int_equal(transaction_fold(t, names_slice(word), secret, &label, 1, &key, &source, NULL, &e), 0);
            if (k % 5 == 0) {
                assert_int_equal(transaction_define(t, label, secret, &key, &source, NULL, &e), 0);
            }
            if (k % 11 == 0) { /* replaced by a shorter one in the same transaction */
                assert_int_equal(transaction_fold(t, names_slice(word), names_slice("harmless"), &label, 1, KEY(vector),
                                                  &source, NULL, &e),
                                 0);
            }
        }
        assert_int_equal(transaction_commit(t, &e), 0);
    }
    struct transaction *t = begin_ok(m);
    for (unsigned i = 0; i < SECRETS; i++) {
        snprintf(word, sizeof word, "ID-OF-%04u", i);
        assert_int_equal(transaction_undefine(t, names_slice(word), NULL, &e), 0);
        assert_int_equal(transaction_forget(t, names_slice(word), NULL, &e), 0);
        snprintf(word, sizeof word, "plain-%04u", i);
        struct slice label = names_slice("plain");
        if (i % 3 == 0) { /* pages that the forgotten ones share */
            assert_int_equal(
                transaction_fold(t, names_slice(word), names_slice("t"), &label, 1, KEY(vector), &source, NULL, &e), 0);
        }
    }
    assert_int_equal(transaction_undefine(t, names_slice("odd"), NULL, &e), 0);
    assert_int_equal(transaction_commit(t, &e), 0);
    path_in(*state, "copy", copy);
    struct memory_stats copied;
    assert_int_equal(memory_backup(m, copy, &copied, &e), 0);
    memory_stats_free(&copied);
    memory_close(m);
    for (unsigned i = 0; i < SECRETS; i++) {
        snprintf(word, sizeof word, "ecret-%04u", i);
        held += file_holds(path, word);
        snprintf(word, sizeof word, "pieces-%04u", i);
        pieces_held += file_holds(path, word);
    }
    assert_true(held > 100 && pieces_held > 100 && file_holds(path, "ID-OF-")); /* else the test proves nothing */
    uint64_t before, after;
    compact_ok(&options, &before, &after);
    const char *const folders[] = {path, copy};
    for (int f = 0; f < 2; f++) {
        assert_false(file_holds(folders[f], "SECRET"));
        assert_false(file_holds(folders[f], "ecret-"));
        assert_false(file_holds(folders[f], "ID-OF-"));
        assert_false(file_holds(folders[f], "pieces-"));
        assert_true(file_holds(folders[f], "plain-0000"));
    }
    buffer_free(&text);
}

static void test_compact_is_refused(void **state)
{
    char path[512], absent[512];
    struct memory_options options = source_options(*state, path), none = options;
    struct model *model = mem_zero(1, sizeof *model);
    int ready[2], leave[2], status;
    char byte = 0;
    path_in(*state, "absent", absent);
    none.path = absent;
    none.fingerprint = NULL;
    compact_refused(&none, E_NOT_FOUND, "no memory");
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    batch_ok(m, model, 26, 0, 100);
    compact_refused(&options, E_LOCKED, "already"); /* open in this process */
    memory_close(m);
    assert_int_equal(pipe(ready), 0);
    assert_int_equal(pipe(leave), 0);
    pid_t pid = fork_child();
    if (pid == 0) { /* a reader, as an export is one */
        struct snapshot *s = NULL;
        bool good = memory_open(&m, MEMORY_READ, &options, NULL) == 0 && memory_look(m, &s, NULL) == 0 &&
                    write(ready[1], &byte, 1) == 1 && read(leave[0], &byte, 1) == 1;
        snapshot_release(s);
        memory_close(m);
        _exit(good ? 0 : 1);
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    char word[64];
    snprintf(word, sizeof word, "process %ld is reading", (long)pid);
    compact_refused(&options, E_LOCKED, word);
    assert_int_equal(write(leave[1], &byte, 1), 1);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    is_whole(model, &options);
    uint64_t before, after;
    compact_ok(&options, &before, &after);
    is_whole(model, &options);
    for (int i = 0; i < 2; i++) {
        close(ready[i]);
        close(leave[i]);
    }
    free(model);
}

/* Killed at any moment, a compaction leaves the old file or the new one, and the next writer clears what it began. */
static void test_killed_compaction(void **state)
{
    char path[512];
    struct memory_options options = source_options(*state, path);
    struct model *model = mem_zero(1, sizeof *model);
    int status;
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    for (int64_t at = 0; at < 1000; at += 100) {
        batch_ok(m, model, 27, at, at + 100);
    }
    memory_close(m);
    for (int round = 0; round < 12; round++) {
        pid_t pid = fork_child();
        if (pid == 0) {
            for (;;) {
                uint64_t before, after;
                if (memory_compact(&options, &before, &after, NULL)) {
                    _exit(1);
                }
            }
        }
        usleep((useconds_t)(3000 + 1700 * round));
        assert_int_equal(kill(pid, SIGKILL), 0);
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_true(WIFSIGNALED(status));
        memory_close(open_ok(MEMORY_WRITE, &options));
        is_whole(model, &options);
    }
    free(model);
}

/* Readers that come and go beside compactions see a whole memory each time. */
static void test_openings_beside_compactions(void **state)
{
    char path[512];
    struct memory_options options = source_options(*state, path);
    struct model *model = mem_zero(1, sizeof *model);
    int status;
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    batch_ok(m, model, 28, 0, 300);
    memory_close(m);
    pid_t pid = fork_child();
    if (pid == 0) {
        unsigned done = 0, tries = 0;
        while (done < 10 && tries++ < 100000) {
            struct error e = {0};
            uint64_t before, after;
            if (memory_compact(&options, &before, &after, &e) == 0) {
                done++;
            } else if (e.code != E_LOCKED) {
                fprintf(stderr, "child: %s\n", e.text);
                _exit(1);
            }
        }
        _exit(done == 10 ? 0 : 1);
    }
    pid_t ended;
    while ((ended = waitpid(pid, &status, WNOHANG)) == 0) {
        m = open_ok(MEMORY_READ, &options);
        memory_equals(model, m);
        memory_close(m);
        usleep(2000);
    }
    assert_int_equal(ended, pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    m = open_ok(MEMORY_WRITE, &options);
    batch_ok(m, model, 28, 300, 400);
    memory_close(m);
    is_whole(model, &options);
    free(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        memory_test(test_backup_beside_a_writer),
        memory_test(test_backup_of_an_empty_memory),
        memory_test(test_backup_is_refused),
        memory_test(test_damage_is_not_copied),
        memory_test(test_full_disk_leaves_nothing),
        memory_test(test_compact_shrinks),
        memory_test(test_forgotten_bytes_leave_the_file),
        memory_test(test_compact_is_refused),
        memory_test(test_killed_compaction),
        memory_test(test_openings_beside_compactions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
