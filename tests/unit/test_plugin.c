/* Loading a backend from a shared library: every reason for which that fails is one line. That a plug-in works is
 * proved by test_backend.c, which runs on one. */
#define _GNU_SOURCE /* dladdr */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dlfcn.h>
#include <stdlib.h>

#include "base/clock.h"
#include "gpu/backend.h"
#include "tests/backend/beside.h"

static const struct backend_options defaults = {.threads = 1, .compute = COMPUTE_F32};

static void refused(const char *path, enum error_code code, const char *text)
{
    struct error e = {0};
    struct backend *b = (struct backend *)&e;
    assert_int_equal(backend_plugin_open(&b, path, &defaults, &e), -1);
    assert_null(b);
    assert_int_equal(e.kind, ERROR_FATAL);
    assert_int_equal(e.code, code);
    assert_string_equal(e.text, text);
}

static void test_no_file(void **state)
{
    (void)state;
    refused("build/nothing.so", E_NOT_FOUND,
            "the plug-in build/nothing.so cannot be loaded: No such file or directory");
    refused("", E_NOT_FOUND, "the plug-in  cannot be loaded: No such file or directory");
}

/* A bare name is a file in the working folder, not one of the system's libraries. */
static void test_bare_name(void **state)
{
    (void)state;
    refused("libc.so.6", E_NOT_FOUND, "the plug-in libc.so.6 cannot be loaded: No such file or directory");
}

static void test_no_library(void **state)
{
    (void)state;
    char path[] = "/tmp/engram-plugin-XXXXXX", text[256];
    int file = mkstemp(path);
    assert_true(file >= 0);
    snprintf(text, sizeof text, "the plug-in %s cannot be loaded: %s: file too short", path, path);
    refused(path, E_NOT_FOUND, text);
    close(file);
    unlink(path);
}

static void test_no_symbol(void **state)
{
    (void)state;
    Dl_info libc;
    char text[PATH_MAX + 256];
    union {
        int (*function)(const char *);
        void *address;
    } some = {puts};
    assert_true(dladdr(some.address, &libc));
    snprintf(text, sizeof text, "%s is no plug-in of Engram: it has no symbol engram_backend", libc.dli_fname);
    refused(libc.dli_fname, E_INTERNAL, text);
}

static void test_other_abi(void **state)
{
    (void)state;
    char path[PATH_MAX], text[PATH_MAX + 256];
    snprintf(text, sizeof text,
             "the plug-in %s has ABI %d, this version of Engram needs %d: use the plug-in that came with it",
             beside(path, "libengram_other_abi.so"), BACKEND_ABI + 41, BACKEND_ABI);
    refused(path, E_INTERNAL, text);
}

/* Opened twice, two backends; what the plug-in says of itself is handed on. */
static void test_opened(void **state)
{
    (void)state;
    char path[PATH_MAX];
    struct error e = {0};
    struct backend *one, *two;
    assert_int_equal(backend_plugin_open(&one, beside(path, APART), &defaults, &e), 0);
    assert_int_equal(backend_plugin_open(&two, path, &defaults, &e), 0);
    assert_ptr_not_equal(one, two);
    assert_string_equal(one->facts.name, "apart");
    assert_string_equal(one->facts.device, "1 x loops");
    assert_int_equal(one->facts.host_threads, 1);
    assert_false(one->facts.host_memory);
    backend_close(one);
    backend_close(two);
}

/* It is told which devices; one that is not there is a wrong option, and none at all is a fault of its own. */
static void test_devices(void **state)
{
    (void)state;
    const int numbers[] = {1, 0, 7};
    struct backend_options options = {.threads = 3, .devices = numbers, .devices_count = 2};
    char path[PATH_MAX];
    struct error e = {0};
    struct backend *b;
    assert_int_equal(backend_plugin_open(&b, beside(path, APART), &options, &e), 0);
    assert_string_equal(b->facts.device, "2 x loops");
    assert_int_equal(b->facts.host_threads, 3);
    backend_close(b);
    options.devices_count = 3;
    assert_int_equal(backend_plugin_open(&b, path, &options, &e), -1);
    assert_null(b);
    assert_int_equal(e.code, E_USAGE);
    assert_string_equal(e.text, "there is no device 7: there are 0 and 1");
    setenv("APART_ABSENT", "1", 1);
    refused(path, E_NOT_FOUND, "there is no device of this kind");
    unsetenv("APART_ABSENT");
}

/* As many threads for the host as this process may use, where nobody says how many. */
static void test_threads(void **state)
{
    (void)state;
    char path[PATH_MAX];
    struct error e = {0};
    struct backend *b;
    assert_int_equal(backend_plugin_open(&b, beside(path, APART), &(struct backend_options){0}, &e), 0);
    assert_int_equal(b->facts.host_threads, threads_allowed());
    backend_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_file),   cmocka_unit_test(test_bare_name), cmocka_unit_test(test_no_library),
        cmocka_unit_test(test_no_symbol), cmocka_unit_test(test_other_abi), cmocka_unit_test(test_opened),
        cmocka_unit_test(test_devices),   cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests_name("plugin", tests, NULL, NULL);
}
