/* What a damaged page ends in when LMDB follows it: SIGBUS, SIGSEGV, an assertion. Each is one line and status 1 for
 * who asked for it, and a problem for memory_verify_apart; a fault anywhere else ends the process as ever. The damage
 * is done to the file. */

#define _GNU_SOURCE /* nftw in the model, memmem */
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/log.h"
#include "memory_model.h"
#include "store/internal.h"

enum { PAGE = 4096 };

/* ---- damage ---- */

static unsigned char *file_read(const char *folder, size_t *bytes)
{
    char path[512];
    struct stat s;
    path_in(folder, "data.mdb", path);
    assert_int_equal(stat(path, &s), 0);
    FILE *file = fopen(path, "r");
    unsigned char *all = mem_alloc((size_t)s.st_size);
    assert_int_equal(fread(all, 1, (size_t)s.st_size, file), s.st_size);
    fclose(file);
    *bytes = (size_t)s.st_size;
    return all;
}

static void file_write(const char *folder, const unsigned char *all, size_t bytes)
{
    char path[512];
    path_in(folder, "data.mdb", path);
    FILE *file = fopen(path, "r+");
    assert_int_equal(fwrite(all, 1, bytes, file), bytes);
    fclose(file);
}

static void cut(const char *folder)
{
    char path[512];
    path_in(folder, "data.mdb", path);
    assert_int_equal(truncate(path, 2L * PAGE), 0);
}

static bool node_at(const unsigned char *page, size_t offset)
{
    size_t lower = page[12] | (size_t)page[13] << 8;
    for (size_t i = 16; i < lower; i += 2) {
        if ((page[i] | (size_t)page[i + 1] << 8) == offset) {
            return page[10] == 2; /* a leaf */
        }
    }
    return false;
}

/* Every leaf that has a node of this id, also those that are free by now: the whole page, or the flags of the node. */
static void leaves_damage(const char *folder, const char *id, bool whole)
{
    size_t bytes, done = 0;
    unsigned char *all = file_read(folder, &bytes);
    for (unsigned char *at = all; (at = memmem(at, (size_t)(all + bytes - at), id, strlen(id))); at += strlen(id)) {
        size_t in_file = (size_t)(at - all);
        unsigned char *page = all + in_file / PAGE * PAGE;
        if (in_file % PAGE > 8 && node_at(page, in_file % PAGE - 8)) {
            at[-4] |= 4; /* a list of duplicates, where there can be none */
            memset(page, 0, whole ? PAGE : 0);
            done++;
        }
    }
    file_write(folder, all, bytes);
    free(all);
    assert_true(done > 0);
}

static void assertion(const char *folder)
{
    leaves_damage(folder, "id-919", true);
}

static void duplicates(const char *folder)
{
    leaves_damage(folder, "id-919", false);
}

/* ---- a child that meets it ---- */

static void fault_log(const char *line)
{
    log_text(LOG_LEVEL_ERROR, line);
}

static int one_instance(const struct memory_instance *i, void *context)
{
    (void)i;
    (void)context;
    return 0;
}

static void all_read(const struct memory_options *options, void (*damage)(const char *folder), bool while_open)
{
    struct error e = {0};
    struct memory *m;
    struct snapshot *s;
    if (!while_open) {
        damage(options->path);
    }
    if (memory_open(&m, MEMORY_READ, options, &e)) {
        _exit(3);
    }
    if (while_open) {
        damage(options->path);
    }
    if (memory_look(m, &s, &e) || snapshot_each_instance(s, one_instance, NULL, &e)) {
        _exit(4);
    }
    _exit(0);
}

/* Runs `work` in a child whose standard error comes back; the child's status. */
static int child_says(char *said, size_t size, void (*work)(void *context), void *context)
{
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork_child();
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        log_setup(LOG_LEVEL_INFO, true);
        signal(SIGSEGV, SIG_DFL); /* cmocka's */
        signal(SIGBUS, SIG_DFL);
        memory_faults_catch(fault_log);
        work(context);
        _exit(5);
    }
    close(ends[1]);
    size_t got = 0;
    for (ssize_t n; (n = read(ends[0], said + got, size - 1 - got)) > 0;) {
        got += (size_t)n;
    }
    said[got] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return status;
}

struct reading {
    const struct memory_options *options;
    void (*damage)(const char *folder);
    bool while_open;
};

static void read_in_child(void *context)
{
    const struct reading *r = context;
    all_read(r->options, r->damage, r->while_open);
}

static void test_fault_in_the_map_is_one_line(void **state)
{
    const struct {
        void (*damage)(const char *folder);
        bool while_open;
    } cases[] = {{cut, true}, {assertion, false}, {assertion, true}, {duplicates, false}, {duplicates, true}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char folder[300], said[4096], expected[600];
        snprintf(folder, sizeof folder, "%s/%zu", (const char *)*state, i);
        struct memory_options options = options_for(folder, DTYPE_F32);
        struct model *model = mem_zero(1, sizeof *model);
        filled(&options, model, 400);
        free(model);
        struct reading r = {&options, cases[i].damage, cases[i].while_open};
        int status = child_says(said, sizeof said, read_in_child, &r);
        snprintf(expected, sizeof expected,
                 "\"level\":\"error\",\"message\":\"%s: the memory is damaged: run `engram memory verify`, restore a "
                 "copy or "
                 "read the topics again\"}\n",
                 folder);
        assert_true(WIFEXITED(status));
        assert_int_equal(WEXITSTATUS(status), 1);
        assert_true(strlen(said) > strlen(expected));
        assert_string_equal(said + strlen(said) - strlen(expected), expected);
        assert_ptr_equal(strchr(said, '\n'), said + strlen(said) - 1);
        assert_int_equal(strncmp(said, "{\"time\":\"20", 11), 0);
    }
}

static volatile int *volatile nowhere = (volatile int *)64;

static void fault_elsewhere(void *context)
{
    const struct memory_options *options = context;
    open_ok(MEMORY_READ, options);
    *nowhere = 1;
}

static void sent_from_outside(void *context)
{
    const struct memory_options *options = context;
    open_ok(MEMORY_READ, options);
    raise(SIGBUS);
}

static void test_fault_elsewhere_is_none_of_ours(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct model *model = mem_zero(1, sizeof *model);
    char said[65536];
    filled(&options, model, 100);
    free(model);
    for (int i = 0; i < 2; i++) {
        int status = child_says(said, sizeof said, i ? sent_from_outside : fault_elsewhere, &options);
        assert_null(strstr(said, "the memory is damaged"));
#ifdef __SANITIZE_ADDRESS__
        assert_true(WIFSIGNALED(status) || strstr(said, "AddressSanitizer"));
#else
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), i ? SIGBUS : SIGSEGV);
#endif
    }
}

static void count_line(const char *line, void *context)
{
    assert_null(strchr(line, '\n'));
    *(uint64_t *)context += 1;
}

static void test_verify_apart(void **state)
{
    void (*const damages[])(const char *folder) = {NULL, assertion, duplicates};
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        char folder[300];
        uint64_t problems = 99, lines = 0;
        struct error e = {0};
        snprintf(folder, sizeof folder, "%s/%zu", (const char *)*state, i);
        struct memory_options options = options_for(folder, DTYPE_F32);
        assert_int_equal(memory_verify_apart(&options, count_line, &lines, &problems, &e), -1);
        assert_int_equal(e.code, E_NOT_FOUND);
        struct model *model = mem_zero(1, sizeof *model);
        filled(&options, model, 400);
        free(model);
        if (damages[i]) {
            damages[i](folder);
        }
        assert_int_equal(memory_verify_apart(&options, count_line, &lines, &problems, &e), 0);
        assert_int_equal(problems > 0, damages[i] != NULL);
        assert_int_equal(lines, problems);
    }
}

/* `meta` counts so many labels that verify finds no memory for their counts: that says nothing about the pages. */
static void verify_without_memory(void *context)
{
    const struct memory_options *options = context;
    struct memory *m = open_ok(MEMORY_WRITE, options);
    struct transaction *t = begin_ok(m);
    struct error e = {0};
    struct rlimit limit;
    unsigned long long pages = 0;
    uint64_t problems, lines = 0;
    t->meta.label_bound = UINT32_MAX;
    t->touched = true;
    FILE *file = fopen("/proc/self/statm", "r");
    if (transaction_commit(t, &e) || !file || fscanf(file, "%llu", &pages) != 1 || getrlimit(RLIMIT_AS, &limit)) {
        _exit(3);
    }
    fclose(file);
    memory_close(m);
    limit.rlim_cur = pages * (unsigned long long)sysconf(_SC_PAGESIZE) + (1ull << 30);
    int failed = setrlimit(RLIMIT_AS, &limit) ? 0 : memory_verify_apart(options, count_line, &lines, &problems, &e);
    fputs(e.text, stderr);
    _exit(failed && lines == 0 ? 0 : 4);
}

static void test_no_memory_for_verify_is_no_damage(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    char said[65536];
    assert_int_equal(child_says(said, sizeof said, verify_without_memory, &options), 0);
#ifndef __SANITIZE_ADDRESS__
    assert_int_equal(strncmp(said, "out of memory: ", strlen("out of memory: ")), 0);
#endif
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        memory_test(test_fault_in_the_map_is_one_line),
        memory_test(test_fault_elsewhere_is_none_of_ours),
        memory_test(test_verify_apart),
        memory_test(test_no_memory_for_verify_is_no_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
