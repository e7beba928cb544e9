/* The little of cmocka that the tests of gpu/backend.h use, for a machine that has a GPU and a compiler but no cmocka.
 * What it prints is counted as cmocka's is. */
#ifndef ENGRAM_TESTS_CUDA_CHECK_CMOCKA_H
#define ENGRAM_TESTS_CUDA_CHECK_CMOCKA_H

#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int (*CMFixtureFunction)(void **state);

struct CMUnitTest {
    const char *name;
    void (*test)(void **state);
    CMFixtureFunction teardown;
};

#define cmocka_unit_test_teardown(f, end)                                                                              \
    {                                                                                                                  \
        .name = #f, .test = f, .teardown = end                                                                         \
    }

static jmp_buf check_failed;

#define print_message printf
#define fail_msg(...)                                                                                                  \
    do {                                                                                                               \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fprintf(stderr, " (%s:%d)\n", __FILE__, __LINE__);                                                             \
        longjmp(check_failed, 1);                                                                                      \
    } while (0)
#define assert_true(x)                                                                                                 \
    do {                                                                                                               \
        if (!(x)) {                                                                                                    \
            fail_msg("not so: %s", #x);                                                                                \
        }                                                                                                              \
    } while (0)
#define assert_int_equal(x, y)                                                                                         \
    do {                                                                                                               \
        const long long check_x = (long long)(x), check_y = (long long)(y);                                            \
        if (check_x != check_y) {                                                                                      \
            fail_msg("%s is %lld, not %lld", #x, check_x, check_y);                                                    \
        }                                                                                                              \
    } while (0)
#define assert_string_equal(x, y) assert_true(strcmp(x, y) == 0)
#define assert_memory_equal(x, y, bytes) assert_true(memcmp(x, y, bytes) == 0)

static inline int _cmocka_run_group_tests(const char *group, const struct CMUnitTest *tests, size_t count,
                                          CMFixtureFunction setup, CMFixtureFunction teardown)
{
    int failed = 0;
    (void)setup, (void)teardown;
    printf("[==========] %s: Running %zu test(s).\n", group, count);
    for (size_t i = 0; i < count; i++) {
        void *state = NULL;
        printf("[ RUN      ] %s\n", tests[i].name);
        fflush(stdout);
        const int bad = setjmp(check_failed);
        if (!bad) {
            tests[i].test(&state);
        }
        tests[i].teardown(&state);
        printf(bad ? "[  FAILED  ] %s\n" : "[       OK ] %s\n", tests[i].name);
        failed += bad;
    }
    return failed;
}

#endif
