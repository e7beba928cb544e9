/* base/buffer: memory that runs out. Whatever asks for more than there is, or for more than can be counted, ends the
 * process with one line and status 1, also where several threads ask at once. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/buffer.h"

const char *__asan_default_options(void);

/* AddressSanitizer's malloc would end the process itself. */
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

/* The sizes come at run time, or the compiler knows that they are too large. */
static volatile size_t most = SIZE_MAX;

static void ask_alloc(void)
{
    mem_alloc(most / 4);
}

static void ask_product(void)
{
    mem_zero(most / 8, 16);
}

static void ask_resize(void)
{
    mem_resize(mem_alloc(10), most / 4);
}

static void ask_aligned(void)
{
    mem_aligned(64, most - 10);
}

static void ask_reserve(void)
{
    struct buffer b = {0};
    buffer_string(&b, "some");
    buffer_reserve(&b, most / 4 * 3);
}

static void ask_reserve_all(void)
{
    struct buffer b = {0};
    buffer_string(&b, "some");
    buffer_reserve(&b, most - 2);
}

static void ask_arena(void)
{
    struct arena a = {0};
    arena_alloc(&a, most - 7);
}

static void *ask_in_thread(void *unused)
{
    ask_alloc();
    return unused;
}

static void ask_threads(void)
{
    pthread_t threads[8];
    for (size_t i = 0; i < 8; i++) {
        pthread_create(&threads[i], NULL, ask_in_thread, NULL);
    }
    for (size_t i = 0; i < 8; i++) {
        pthread_join(threads[i], NULL);
    }
}

static void say(const char *line)
{
    char text[256];
    int bytes = snprintf(text, sizeof text, "said: %s\n", line);
    if (write(STDERR_FILENO, text, (size_t)bytes) < 0) {
        _exit(3);
    }
}

/* What a child that asks writes to standard error, and how it ends. */
static int asked(void (*ask)(void), bool told, char *line, size_t bytes)
{
    int ends[2], status = 0;
    size_t used = 0;
    assert_int_equal(pipe(ends), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], STDERR_FILENO);
        mem_failure_to(told ? say : NULL);
        ask();
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t n; (n = read(ends[0], line + used, bytes - 1 - used)) > 0;) {
        used += (size_t)n;
    }
    line[used] = '\0';
    close(ends[0]);
    waitpid(child, &status, 0);
    return status;
}

static void test_out_of_memory(void **state)
{
    static void (*const asks[])(void) = {ask_alloc,   ask_product,     ask_resize, ask_aligned,
                                         ask_reserve, ask_reserve_all, ask_arena,  ask_threads};
    (void)state;
    for (size_t i = 0; i < 2 * sizeof asks / sizeof *asks; i++) {
        char line[4096];
        bool told = i % 2;
        int status = asked(asks[i / 2], told, line, sizeof line);
        const char *begin = told ? "said: out of memory: " : "engram: out of memory: ";
        const char *found = strstr(line, begin); /* behind a warning of AddressSanitizer's */
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 1 || !found || strstr(found + strlen(begin), begin) ||
            strchr(found, '\n') != line + strlen(line) - 1) {
            fail_msg("%zu: status %x: %s", i, (unsigned)status, line);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
