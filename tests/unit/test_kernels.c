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

static uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

/* Every bf16 and numbers around it, against the two neighbours that they lie between. */
static void test_narrow(void **state)
{
    (void)state;
    enum { AROUND = 7 };
    static const uint32_t below[AROUND] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff, 0x4000};
    float *x = mem_alloc(65536 * AROUND * sizeof *x);
    uint16_t *y = mem_alloc(65536 * AROUND * sizeof *y);
    for (uint32_t i = 0; i < 65536 * AROUND; i++) {
        const uint32_t bits = (i / AROUND) << 16 | below[i % AROUND];
        memcpy(&x[i], &bits, sizeof bits);
    }
    kernels->narrow(y, x, 65536 * AROUND - 3); /* not a whole number of vectors */
    for (uint32_t i = 0; i < 65536 * AROUND - 3; i++) {
        const uint32_t bits = bits_of(x[i]), low = bits & 0xffff, upper = bits >> 16;
        if (isnan(x[i])) {
            assert_true((y[i] & 0x7f80) == 0x7f80 && (y[i] & 0x7f) != 0);
            continue;
        }
        if (!strcmp(kernels->name, "amx") && (bits & 0x7f800000) == 0) { /* it has no denormal numbers */
            assert_int_equal(y[i] & 0x7fff, 0);
            continue;
        }
        assert_int_equal(y[i], low > 0x8000 || (low == 0x8000 && upper % 2) ? upper + 1 : upper);
    }
    free(x);
    free(y);
}

static double gelu(double x)
{
    return x / 2 * (1 + erf(x / sqrt(2)));
}

/* In f32 within 1e-6 of |x|, in bf16 within half a place of the result and 4e-5 of |x|; and in place, over part of a
 * row. */
static void test_gelu(void **state)
{
    (void)state;
    enum { ROWS = 400, COLUMNS = 501, STRIDE = 640 };
    float *x = mem_zero(ROWS * STRIDE, sizeof *x), *y = mem_zero(ROWS * STRIDE, sizeof *y);
    uint16_t *half = mem_zero(ROWS * STRIDE, sizeof *half);
    for (size_t i = 0; i < ROWS * STRIDE; i++) {
        const float at = (float)i / (ROWS * STRIDE) * 2 - 1;
        x[i] = i % 3 ? at * 7 : at * at * at * 60;
        y[i] = x[i];
    }
    kernels->narrow(half, x, ROWS * STRIDE);
    kernels->gelu(y, x, DTYPE_F32, ROWS, COLUMNS, STRIDE);
    for (size_t i = 0; i < ROWS * STRIDE; i++) {
        const double expected = i % STRIDE < COLUMNS ? gelu((double)x[i]) : (double)x[i];
        if (!(fabs((double)y[i] - expected) <= 1e-6 * fabs((double)x[i]))) {
            fail_msg("gelu(%.9g) is %.9g, not %.9g", (double)x[i], (double)y[i], expected);
        }
    }
    kernels->widen(x, half, ROWS * STRIDE);
    kernels->gelu(half, half, DTYPE_BF16, ROWS, COLUMNS, STRIDE);
    kernels->widen(y, half, ROWS * STRIDE);
    for (size_t i = 0; i < ROWS * STRIDE; i++) {
        const double expected = i % STRIDE < COLUMNS ? gelu((double)x[i]) : (double)x[i];
        if (!(fabs((double)y[i] - expected) <= fabs(expected) / 256 + 4e-5 * fabs((double)x[i]))) {
            fail_msg("in bf16 gelu(%.9g) is %.9g, not %.9g", (double)x[i], (double)y[i], expected);
        }
    }
    float ends[] = {0, 8, 1e30F, INFINITY, NAN, -8, -1e30F};
    kernels->gelu(ends, ends, DTYPE_F32, 1, 7, 7);
    assert_true(ends[0] == 0 && ends[1] == 8 && ends[2] == 1e30F && isinf(ends[3]) && isnan(ends[4]) && ends[5] == 0 &&
                ends[6] == 0);
    free(x);
    free(y);
    free(half);
}

static int run_all(const struct kernels *k)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exponential),
        cmocka_unit_test(test_widen),
        cmocka_unit_test(test_narrow),
        cmocka_unit_test(test_gelu),
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
    failed += onednn_amx() ? run_all(&kernels_amx) : 0;
#endif
    return failed != 0;
}
