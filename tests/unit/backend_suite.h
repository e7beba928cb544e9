/* What the tests of gpu/backend.h share: they run on every backend, and reach a device's memory through its table
 * alone. Random numbers come from a fixed seed. With SUITE_PLUGIN, the name of a plug-in beside the program, they run
 * on that alone: tests/cuda/ builds them so, and a machine with a GPU needs nothing else for them.
 *
 * All that a test takes is on a list and is given back at its end, or by drop(), on failure too. Rows after the last
 * are filled with NaN: no operation may depend on them. Numbers made for a tensor are exact in its dtype, so a
 * reference in double starts from what the device has. */
#ifndef ENGRAM_TESTS_BACKEND_SUITE_H
#define ENGRAM_TESTS_BACKEND_SUITE_H

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
#include "gpu/backend.h"
#ifndef SUITE_PLUGIN
#include "gpu/cpu/internal.h" /* to choose an instruction set; no test looks into it */
#endif
#include "tests/backend/beside.h"

static struct backend *backend; /* of the current group of tests */
static const struct backend_operations *ops;
static struct stream *stream;
static uint64_t seed = 1;

/* ---- numbers ---- */

static inline uint32_t random_below(uint32_t n)
{
    seed = seed * 6364136223846793005U + 1442695040888963407U;
    return (uint32_t)((seed >> 33) % n);
}

static inline float random_float(float scale)
{
    return ((float)random_below(1 << 24) / (float)(1 << 23) - 1.0F) * scale;
}

static inline uint16_t bf16_of(float x) /* to nearest, ties to even */
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isnan(x)) {
        return 0x7FC0;
    }
    return (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

static inline float float_of(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Not inlined: gcc 12.2 at -O1 (the sanitizers' build) drops the rounding where it turns the choice into a select. */
__attribute__((noinline)) static float exact(float x, enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? float_of(bf16_of(x)) : x;
}

/* ---- what a test takes ---- */

static struct {
    void *host[2048];
    struct tensor tensors[64];
    struct weight *weights[8];
    struct keys *keys[8];
    size_t host_count, tensor_count, weight_count, keys_count;
} held;

static inline void must(int result, const struct error *e)
{
    if (result != 0) {
        fail_msg("%s", e->text);
    }
}

static inline void done(void)
{
    struct error e = {0};
    must(ops->wait(stream, &e), &e);
}

static inline void drop(void)
{
    ops->wait(stream, NULL);
    while (held.tensor_count) {
        tensor_release(backend, &held.tensors[--held.tensor_count]);
    }
    while (held.weight_count) {
        ops->weight_close(backend, held.weights[--held.weight_count]);
    }
    while (held.keys_count) {
        ops->keys_close(held.keys[--held.keys_count]);
    }
    while (held.host_count) {
        free(held.host[--held.host_count]);
    }
}

static inline int test_end(void **state)
{
    (void)state;
    drop();
    return 0;
}

static inline void *hold(void *memory)
{
    assert_true(held.host_count < sizeof held.host / sizeof *held.host);
    return held.host[held.host_count++] = memory;
}

static inline float *numbers(size_t count, float scale, enum dtype dtype)
{
    float *x = hold(mem_alloc(count * sizeof *x));
    for (size_t i = 0; i < count; i++) {
        x[i] = exact(random_float(scale), dtype);
    }
    return x;
}

static inline double *doubles(size_t count)
{
    return hold(mem_zero(count ? count : 1, sizeof(double)));
}

/* ---- tensors ---- */

/* values NULL: all NaN. */
static inline struct tensor tensor_of(enum dtype dtype, size_t rows, size_t columns, const float *values)
{
    struct error e = {0};
    struct tensor t;
    const size_t bytes = tensor_bytes(backend, dtype, rows, columns), count = bytes / dtype_bytes(dtype);
    must(tensor_alloc(backend, &t, dtype, rows, columns, &e), &e);
    assert_true(held.tensor_count < sizeof held.tensors / sizeof *held.tensors);
    held.tensors[held.tensor_count++] = t;
    void *raw = hold(mem_alloc(bytes));
    for (size_t i = 0; i < count; i++) {
        const float x = values && i < rows * columns ? values[i] : NAN;
        if (dtype == DTYPE_BF16) {
            ((uint16_t *)raw)[i] = bf16_of(x);
        } else {
            ((float *)raw)[i] = x;
        }
    }
    must(ops->upload(stream, t.data, raw, bytes, &e), &e);
    return t;
}

static inline struct tensor tensor_empty(enum dtype dtype, size_t rows, size_t columns)
{
    return tensor_of(dtype, rows, columns, NULL);
}

/* Waits. */
static inline float *numbers_of(const struct tensor *t)
{
    const size_t count = t->rows * t->columns;
    void *raw = hold(mem_alloc(count * dtype_bytes(t->dtype)));
    float *x = hold(mem_alloc(count * sizeof *x));
    ops->download(stream, raw, t->data, count * dtype_bytes(t->dtype));
    done();
    for (size_t i = 0; i < count; i++) {
        x[i] = t->dtype == DTYPE_BF16 ? float_of(((const uint16_t *)raw)[i]) : ((const float *)raw)[i];
    }
    return x;
}

/* The tensor's numbers are within `bound`, relative to numbers above 1. In bf16 a result is rounded to 8 bits, an error
 * of at most 2^-8 of it; and where a backend may round on the way as well, it is as much of `spread` [count], a bound
 * of what that step's rounding is multiplied with. spread NULL: it may not. */
static inline void assert_close(const struct tensor *t, const double *expected, const double *spread, double bound,
                                const char *what)
{
    const float *got = numbers_of(t);
    for (size_t i = 0; i < t->rows * t->columns; i++) {
        double allowed = bound * (1 + fabs(expected[i]));
        if (t->dtype == DTYPE_BF16) {
            allowed += (fabs(expected[i]) + (spread ? spread[i] : 0)) / 256;
        }
        if (!(fabs((double)got[i] - expected[i]) <= allowed)) {
            fail_msg("%s: number %zu of [%zu, %zu] is %.9g, not %.9g", what, i, t->rows, t->columns, (double)got[i],
                     expected[i]);
        }
    }
}

/* ---- tiles ---- */

/* Random lengths, one of 1 among them; from 512 on the others are all the longest. */
static inline struct tile tile_of(size_t sequences, uint32_t longest, size_t words)
{
    uint32_t *starts = hold(mem_alloc((sequences + 1) * sizeof *starts));
    starts[0] = 0;
    for (size_t i = 0; i < sequences; i++) {
        starts[i + 1] = starts[i] + (i == sequences / 2 ? 1 : longest >= 512 ? longest : 1 + random_below(longest));
    }
    int32_t *ids = words ? hold(mem_alloc(starts[sequences] * sizeof *ids)) : NULL;
    for (size_t t = 0; words && t < starts[sequences]; t++) {
        ids[t] = (int32_t)random_below((uint32_t)words);
    }
    return (struct tile){ids, starts, starts[sequences], sequences};
}

static inline void tile_announce(const struct tile *tile)
{
    struct error e = {0};
    must(ops->tile(stream, tile, &e), &e);
}

/* ---- every backend ---- */

static inline int group_run(const char *name, const struct CMUnitTest *tests, size_t count)
{
    char group[128];
    struct error e = {0};
    ops = backend->ops;
    if (ops->stream_open(backend, &stream, &e) != 0) {
        fprintf(stderr, "%s\n", e.text);
        return 1;
    }
    snprintf(group, sizeof group, "%s, %s, %zu streams", name, backend->facts.compute == DTYPE_BF16 ? "bf16" : "f32",
             backend->facts.streams);
    print_message("[ BACKEND  ] %s\n", group);
    int failed = _cmocka_run_group_tests(group, tests, count, NULL, NULL);
    ops->stream_close(stream);
    backend_close(backend);
    return failed;
}

#ifdef SUITE_PLUGIN

struct plugin_case {
    const char *name;
    enum compute compute;
    size_t devices;
    const char *plain;     /* not NULL: without tensor cores */
    const char *key_bytes; /* of the device's memory that keys may take; NULL: as it likes */
};

static inline void variable_set(const char *name, const char *value)
{
    if (value) {
        setenv(name, value, 1);
    } else {
        unsetenv(name);
    }
}

/* 0 too where the machine has fewer devices. */
static inline int plugin_run(const struct plugin_case *c, const struct CMUnitTest *tests, size_t count)
{
    static const int numbers[] = {0, 1, 2, 3};
    char path[PATH_MAX], name[64];
    struct error e = {0};
    const struct backend_options options = {
        .threads = 2, .compute = c->compute, .devices = numbers, .devices_count = c->devices};
    variable_set("GPU_TEST_PLAIN", c->plain);
    variable_set("GPU_TEST_KEY_BYTES", c->key_bytes);
    if (backend_plugin_open(&backend, beside(path, SUITE_PLUGIN), &options, &e)) {
        fprintf(stderr, "%s: %s\n", c->name, e.text);
        return e.code == E_USAGE && c->devices > 1 ? 0 : 1;
    }
    snprintf(name, sizeof name, "%s, %s", backend->facts.name, c->name);
    return group_run(name, tests, count);
}

/* SUITE_LATE: on emulated devices that run everything as late as they may. The variable SUITE_CASES: how many of the
 * cases, for tools that make a device slow. */
static inline int suite_run(const struct CMUnitTest *tests, size_t count)
{
    static const struct plugin_case cases[] = {
        {"tensor cores", COMPUTE_BF16, 1, NULL, NULL},
        {"keys with little room", COMPUTE_F32, 1, NULL, "4700000"},
        {"4 devices", COMPUTE_BF16, 4, NULL, NULL},
        {"plain", COMPUTE_BF16, 1, "1", NULL},
        {"keys without room", COMPUTE_BF16, 1, NULL, "0"},
        {"4 devices, keys with little room", COMPUTE_F32, 4, NULL, "4700000"},
    };
    int failed = 0;
    setenv("EMULATED_DEVICES", "4", 0);
#ifdef SUITE_LATE
    setenv("EMULATED_LATE", "1", 0);
#endif
    const char *said = getenv("SUITE_CASES");
    const size_t all = sizeof cases / sizeof *cases, some = said ? strtoul(said, NULL, 10) : all;
    for (size_t i = 0; i < some && i < all; i++) {
        failed += plugin_run(&cases[i], tests, count);
    }
    return failed != 0;
}

#else

/* In each dtype that it computes in. kernels NULL: apart. */
static inline int backend_run(const struct kernels *kernels, size_t threads, const struct CMUnitTest *tests,
                              size_t count)
{
    int failed = 0;
    for (enum compute compute = COMPUTE_F32; compute <= COMPUTE_BF16; compute++) {
        char path[PATH_MAX];
        struct error e = {0};
        const struct backend_options options = {.threads = threads, .compute = compute};
        if (kernels ? backend_cpu_open(&backend, &options, &e)
                    : backend_plugin_open(&backend, beside(path, APART), &options, &e)) {
            fprintf(stderr, "%s\n", e.text);
            return 1;
        }
        if (backend->facts.compute != (compute == COMPUTE_BF16 ? DTYPE_BF16 : DTYPE_F32)) { /* a build without bf16 */
            backend_close(backend);
            continue;
        }
        if (kernels) {
            ((struct cpu *)backend)->kernels = kernels;
        }
        failed += group_run(kernels ? kernels->name : "apart", tests, count);
    }
    return failed;
}

/* The CPU with each instruction set that this one takes, and the backend of tests/backend/apart/ without host memory
 * and with it. */
static inline int suite_run(const struct CMUnitTest *tests, size_t count)
{
    int failed = backend_run(&kernels_base, 2, tests, count);
#if defined(__x86_64__)
    failed += __builtin_cpu_supports("x86-64-v3") ? backend_run(&kernels_avx2, 1, tests, count) : 0;
    failed += __builtin_cpu_supports("x86-64-v4") ? backend_run(&kernels_avx512, 3, tests, count) : 0;
    failed += onednn_amx() ? backend_run(&kernels_amx, 2, tests, count) : 0;
#endif
    failed += backend_run(NULL, 1, tests, count);
    setenv("APART_HOST", "1", 1);
    failed += backend_run(NULL, 1, tests, count);
    unsetenv("APART_HOST");
    return failed != 0;
}

#endif

#define SUITE_TEST(f) cmocka_unit_test_teardown(f, test_end)

#endif
