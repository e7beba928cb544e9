/* The loops of gpu/cpu/ that no operation of the table shows by themselves, for each instruction set that this CPU
 * takes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "gpu/cpu/internal.h"

static const struct kernels *kernels; /* of the current group of tests */

static void test_exponential(void **state)
{
    (void)state;
    const size_t count = 200003;
    float *x = mem_alloc(count * sizeof *x), *y = mem_alloc(count * sizeof *y);
    for (size_t i = 0; i < count; i++) {
        x[i] = y[i] = -90.0F * (float)i / (float)count;
    }
    kernels->exponential(y, count);
    for (size_t i = 0; i < count; i++) {
        double expected = x[i] > -87.0F ? exp((double)x[i]) : 0;
        if (!(fabs((double)y[i] - expected) <= 2e-7 * expected)) {
            fail_msg("exp(%.9g) is %.9g, not %.9g", (double)x[i], (double)y[i], expected);
        }
    }
    float ends[] = {0, -0.0F, -87.5F, -1e4F, -3e38F, -INFINITY};
    kernels->exponential(ends, 6);
    assert_true(ends[0] == 1 && ends[1] == 1 && ends[2] == 0 && ends[3] == 0 && ends[4] == 0 && ends[5] == 0);
    free(x);
    free(y);
}

static void test_widen(void **state)
{
    (void)state;
    uint16_t *halves = mem_alloc(65536 * sizeof *halves);
    float *wide = mem_alloc(65536 * sizeof *wide);
    for (uint32_t i = 0; i < 65536; i++) {
        halves[i] = (uint16_t)i;
    }
    kernels->widen(wide, halves, 65536 - 5); /* not a whole number of vectors */
    for (uint32_t i = 0; i < 65536 - 5; i++) {
        uint32_t bits;
        memcpy(&bits, &wide[i], sizeof bits);
        assert_int_equal(bits, i << 16);
    }
    free(halves);
    free(wide);
}

static int run_all(const struct kernels *k)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exponential),
        cmocka_unit_test(test_widen),
    };
    kernels = k;
    print_message("[ KERNELS  ] %s\n", k->name);
    return cmocka_run_group_tests_name(k->name, tests, NULL, NULL);
}

int main(void)
{
    int failed = run_all(&kernels_base);
#if defined(__x86_64__)
    failed += __builtin_cpu_supports("x86-64-v3") ? run_all(&kernels_avx2) : 0;
    failed += __builtin_cpu_supports("x86-64-v4") ? run_all(&kernels_avx512) : 0;
#endif
    return failed != 0;
}
