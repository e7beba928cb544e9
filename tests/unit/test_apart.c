/* The backend in tests/backend/apart/ is as strict as it says: each slip that it is there to show is made here. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "gpu/backend.h"
#include "tests/backend/beside.h"

static struct backend *backend;
static const struct backend_operations *ops;
static struct stream *stream;

static void must(int result, const struct error *e)
{
    if (result != 0) {
        fail_msg("%s", e->text);
    }
}

static void device_open(const char *memory)
{
    struct error e = {0};
    char path[PATH_MAX];
    if (memory) {
        setenv("APART_MEMORY", memory, 1);
    }
    must(backend_plugin_open(&backend, beside(path, APART), &(struct backend_options){.compute = COMPUTE_F32}, &e), &e);
    unsetenv("APART_MEMORY");
    ops = backend->ops;
    must(ops->stream_open(backend, &stream, &e), &e);
}

static int setup(void **state)
{
    (void)state;
    device_open(NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    ops->stream_close(stream);
    backend_close(backend);
    return 0;
}

static void *taken(size_t bytes)
{
    void *memory;
    struct error e = {0};
    must(ops->alloc(backend, bytes, &memory, &e), &e);
    return memory;
}

static void done(void)
{
    struct error e = {0};
    must(ops->wait(stream, &e), &e);
}

/* Runs slip() in a process of its own: aborted, with one line that has `words` in it. */
static void must_abort(void (*slip)(void), const char *words)
{
    char line[512] = "";
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        signal(SIGABRT, SIG_DFL);
        dup2(ends[1], STDERR_FILENO);
        device_open(NULL);
        slip();
        _exit(0);
    }
    close(ends[1]);
    for (size_t bytes = 0; bytes < sizeof line - 1;) {
        ssize_t more = read(ends[0], line + bytes, sizeof line - 1 - bytes);
        if (more <= 0) {
            break;
        }
        bytes += (size_t)more;
    }
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT || !strstr(line, words)) {
        fail_msg("status %x, \"%s\", and not \"%s\"", (unsigned)status, line, words);
    }
}

/* ---- memory ---- */

/* The kernel itself cannot read or write what was handed out. */
static void test_out_of_reach(void **state)
{
    (void)state;
    int ends[2];
    struct error e = {0};
    void *memory[2] = {taken(1000)};
    must(ops->arena(stream, 1000, &memory[1], &e), &e);
    assert_int_equal(pipe(ends), 0);
    for (size_t i = 0; i < 2; i++) {
        errno = 0;
        assert_true(write(ends[1], memory[i], 1) == -1 && errno == EFAULT);
        assert_int_equal(write(ends[1], "x", 1), 1);
        errno = 0;
        assert_true(read(ends[0], memory[i], 1) == -1 && errno == EFAULT);
        assert_int_equal(read(ends[0], &(char){0}, 1), 1);
    }
    close(ends[0]);
    close(ends[1]);
    ops->release(backend, memory[0]);
}

static void slip_released_twice(void)
{
    void *memory = taken(64);
    ops->release(backend, memory);
    ops->release(backend, memory);
}

static void slip_released_by_middle(void)
{
    ops->release(backend, (char *)taken(64) + 32);
}

static void slip_used_after_release(void)
{
    char byte;
    void *memory = taken(64);
    ops->download(stream, &byte, memory, 1);
    ops->release(backend, memory); /* a call on it still runs */
    ops->wait(stream, NULL);
}

static void slip_past_the_end(void)
{
    char bytes[65];
    ops->download(stream, bytes, taken(64), 65);
    ops->wait(stream, NULL);
}

static void slip_old_arena(void)
{
    char byte;
    void *first, *second;
    ops->arena(stream, 64, &first, NULL);
    ops->arena(stream, 64, &second, NULL);
    ops->download(stream, &byte, first, 1);
    ops->wait(stream, NULL);
}

static void slip_no_room_for_row_multiple(void)
{
    const struct tensor x = {taken(10 * sizeof(float)), DTYPE_F32, 10, 1};
    ops->normalise(stream, &x, &x, NULL);
    ops->wait(stream, NULL);
}

static void slip_other_dtype(void)
{
    const struct tensor x = {taken(4096), DTYPE_BF16, 10, 1};
    ops->normalise(stream, &x, &x, NULL);
    ops->wait(stream, NULL);
}

static void slip_no_tile(void)
{
    const struct tensor x = {taken(4096), DTYPE_F32, 10, 1};
    ops->pool(stream, &x, &x, POOLING_MEAN);
    ops->wait(stream, NULL);
}

static void slip_not_waited_for(void)
{
    static char byte;
    ops->upload(stream, taken(1), &byte, 1, NULL);
    ops->stream_close(stream);
}

static void slip_leak(void)
{
    taken(64);
    ops->stream_close(stream);
    backend_close(backend);
}

static void slip_open_stream(void)
{
    backend_close(backend);
}

/* ---- host memory ---- */

/* On a device that has it: the one that was open is left as it is. */
static char *pinned(size_t bytes)
{
    void *memory;
    struct error e = {0};
    setenv("APART_HOST", "1", 1);
    device_open(NULL);
    unsetenv("APART_HOST");
    must(ops->host_alloc(backend, bytes, &memory, &e), &e);
    return memory;
}

static void slip_pinned_past_the_end(void)
{
    const char *memory = pinned(100);
    ops->upload(stream, taken(200), memory + 50, 51, NULL);
    ops->wait(stream, NULL);
}

static void slip_pinned_before_the_start(void)
{
    char *memory = pinned(64);
    ops->download(stream, memory - 1, taken(64), 2);
    ops->wait(stream, NULL);
}

static void slip_pinned_used_after_release(void)
{
    char *memory = pinned(64);
    ops->download(stream, memory, taken(64), 64);
    ops->host_release(backend, memory); /* a copy to it still runs */
    ops->wait(stream, NULL);
}

static void slip_pinned_tile(void)
{
    uint32_t *starts = (uint32_t *)(void *)pinned(2 * sizeof *starts);
    starts[0] = 0;
    starts[1] = 1;
    ops->tile(stream, &(struct tile){NULL, starts, 1, 1}, NULL);
    ops->host_release(backend, starts);
    ops->wait(stream, NULL);
}

static void slip_pinned_released_twice(void)
{
    char *memory = pinned(64);
    ops->host_release(backend, memory);
    ops->host_release(backend, memory);
}

static void slip_pinned_leak(void)
{
    pinned(64);
    ops->stream_close(stream);
    backend_close(backend);
}

static void test_slips(void **state)
{
    (void)state;
    must_abort(slip_released_twice, "released before");
    must_abort(slip_released_by_middle, "never handed out");
    must_abort(slip_used_after_release, "or was released");
    must_abort(slip_past_the_end, "65 bytes");
    must_abort(slip_old_arena, "or was released");
    must_abort(slip_no_room_for_row_multiple, "normalise: 128 bytes");
    must_abort(slip_other_dtype, "of dtype 0");
    must_abort(slip_no_tile, "no tile was announced");
    must_abort(slip_not_waited_for, "nobody waited for");
    must_abort(slip_leak, "1 allocations");
    must_abort(slip_open_stream, "1 streams");
    must_abort(slip_pinned_past_the_end, "upload: 51 bytes");
    must_abort(slip_pinned_before_the_start, "download: 2 bytes");
    must_abort(slip_pinned_used_after_release, "of the host was released");
    must_abort(slip_pinned_tile, "tile's starts");
    must_abort(slip_pinned_released_twice, "of the host was released before");
    must_abort(slip_pinned_leak, "1 of the host's");
}

/* An arena holds no number, whatever was there before. */
static void test_poison(void **state)
{
    (void)state;
    float numbers[100] = {0};
    struct error e = {0};
    void *arena;
    for (size_t i = 0; i < 2; i++) {
        must(ops->arena(stream, sizeof numbers, &arena, &e), &e);
        ops->download(stream, numbers, arena, sizeof numbers);
        done();
        for (size_t j = 0; j < 100; j++) {
            assert_true(isnan(numbers[j]));
            numbers[j] = 1;
        }
        must(ops->upload(stream, arena, numbers, sizeof numbers, &e), &e);
        done();
    }
}

/* ---- late ---- */

/* The host's side is used when somebody waits, and what is read then is what counts. */
static void test_late(void **state)
{
    (void)state;
    struct error e = {0};
    void *memory = taken(sizeof(float));
    float in = 1, out = -1;
    must(ops->upload(stream, memory, &in, sizeof in, &e), &e);
    ops->download(stream, &out, memory, sizeof out);
    in = 2;
    usleep(20000);
    assert_true(out == -1);
    done();
    assert_true(out == 2);
    ops->release(backend, memory);
}

/* Rows after the last: rubbish. */
static void test_spoiled(void **state)
{
    (void)state;
    struct error e = {0};
    struct tensor x;
    float numbers[32];
    must(tensor_alloc(backend, &x, DTYPE_F32, 10, 1, &e), &e);
    ops->normalise(stream, &x, &x, NULL);
    ops->download(stream, numbers, x.data, sizeof numbers);
    done();
    for (size_t i = 0; i < 32; i++) {
        assert_true(i < 10 ? numbers[i] == 0 : isnan(numbers[i]));
    }
    tensor_release(backend, &x);
}

/* ---- keys ---- */

/* What has its version is not looked at again: blocks, vectors, view. */
static void test_mirror(void **state)
{
    (void)state;
    struct error e = {0};
    struct keys *keys;
    struct tensor query;
    const float one = 1;
    float *vectors = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const uint8_t candidate = 1;
    const uint64_t tie = 1;
    struct keys_block blocks[2] = {{vectors, &candidate, &tie, 0, 1, 1, KEY_LABEL},
                                   {vectors + 16, &candidate, &tie, 10, 1, 1, KEY_INSTANCE}};
    struct keys_view view = {blocks, 2, 1, DTYPE_F32, 1};
    struct keys_hit hits[2];
    uint32_t count;
    vectors[0] = 3;
    vectors[16] = 2;
    must(ops->keys_open(backend, 1, DTYPE_F32, &keys, &e), &e);
    must(tensor_alloc(backend, &query, DTYPE_F32, 1, 1, &e), &e);
    must(ops->upload(stream, query.data, &one, sizeof one, &e), &e);
    ops->keys_scan(stream, keys, &view, &query, 2, KEY_BOTH, hits, &count);
    done();
    assert_true(count == 2 && hits[0].score == 3 && hits[1].score == 2);

    float changed = 5;
    mprotect(vectors, 4096, PROT_NONE);
    blocks[1] = (struct keys_block){&changed, &candidate, &tie, 10, 2, 1, KEY_INSTANCE};
    view.version = 2;
    ops->keys_scan(stream, keys, &view, &query, 2, KEY_BOTH, hits, &count);
    done();
    assert_true(count == 2 && hits[0].score == 5 && hits[0].slot == 10 && hits[1].score == 3);

    view.blocks = NULL;
    ops->keys_scan(stream, keys, &view, &query, 1, KEY_LABEL, hits, &count);
    done();
    assert_true(count == 1 && hits[0].score == 3);
    munmap(vectors, 4096);
    tensor_release(backend, &query);
    ops->keys_close(keys);
}

/* ---- a full device ---- */

static void must_be_full(int result, struct error *e)
{
    assert_int_equal(result, -1);
    assert_int_equal(e->kind, ERROR_RETRY);
    assert_int_equal(e->code, E_DEVICE_MEMORY);
    *e = (struct error){0};
}

static void test_full(void **state)
{
    (void)state;
    struct error e = {0};
    struct weight *weight;
    struct keys *keys, *more;
    struct tensor query;
    void *memory, *rest;
    char bytes[4096] = {0};
    const uint32_t starts[2] = {0, 1000};
    const struct tile tile = {NULL, starts, 1000, 1};
    teardown(state);
    device_open("10000");
    must_be_full(ops->alloc(backend, 10001, &memory, &e), &e);
    must(ops->keys_open(backend, 1000, DTYPE_F32, &keys, &e), &e);
    must(tensor_alloc(backend, &query, DTYPE_F32, 1, 1, &e), &e);
    memory = taken(8000);
    must_be_full(ops->alloc(backend, 4000, &rest, &e), &e);
    must_be_full(ops->arena(stream, 4000, &rest, &e), &e);
    must_be_full(ops->upload(stream, memory, bytes, sizeof bytes, &e), &e);
    must_be_full(ops->weight_open(backend, 100, 100, DTYPE_F32, &weight, &e), &e);
    must_be_full(ops->weight_open(backend, 1, 400, DTYPE_F32, &weight, &e), &e); /* the bias no longer fits */
    must_be_full(ops->tile(stream, &tile, &e), &e);
    done(); /* what failed at once is not remembered */

    static float vector[1000];
    const uint8_t candidate = 1;
    const uint64_t tie = 1;
    const struct keys_block block = {vector, &candidate, &tie, 0, 1, 1, KEY_LABEL};
    const struct keys_view view = {&block, 1, 1000, DTYPE_F32, 1};
    struct keys_hit hit;
    uint32_t count;
    query.columns = 1000;
    ops->keys_scan(stream, keys, &view, &query, 1, KEY_BOTH, &hit, &count);
    must_be_full(ops->wait(stream, &e), &e);

    rest = taken(1000);
    ops->release(backend, rest);
    rest = taken(1000); /* what was released is there again */
    ops->release(backend, rest);
    void *last[8] = {NULL};
    for (size_t i = 0; i < 8; i++) {
        ops->alloc(backend, (size_t)1024 >> i, &last[i], NULL);
    }
    must_be_full(ops->keys_open(backend, 1, DTYPE_F32, &more, &e), &e);
    for (size_t i = 0; i < 8; i++) {
        ops->release(backend, last[i]);
    }
    ops->keys_close(keys);
    ops->release(backend, memory);
    tensor_release(backend, &query);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_slips), /* forks: first, while there is no other thread */
        TEST(test_out_of_reach),      TEST(test_poison), TEST(test_late),
        TEST(test_spoiled),           TEST(test_mirror), TEST(test_full),
    };
    return cmocka_run_group_tests_name("apart", tests, NULL, NULL);
}
