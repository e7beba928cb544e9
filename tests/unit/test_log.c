/* The log: one line of UTF-8 an event whatever the message holds, JSON that is JSON, and a limit on what repeats. */
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/utf8.h"

enum { OUT_BYTES = 1 << 16 };

static char out[OUT_BYTES];
static int stderr_before = -1;
static FILE *file;

static void capture(void)
{
    file = tmpfile();
    assert_non_null(file);
    stderr_before = dup(STDERR_FILENO);
    assert_true(dup2(fileno(file), STDERR_FILENO) >= 0);
}

/* What was written since capture(), terminated. */
static const char *captured(void)
{
    assert_true(dup2(stderr_before, STDERR_FILENO) >= 0);
    close(stderr_before);
    rewind(file);
    size_t bytes = fread(out, 1, sizeof out - 1, file);
    out[bytes] = '\0';
    fclose(file);
    return out;
}

static unsigned lines_of(const char *text)
{
    unsigned lines = 0;
    for (; *text; text++) {
        lines += *text == '\n';
    }
    return lines;
}

/* The message of the one line of JSON in text, as it stands between its quotes. */
static void check_json(const char *text, const char *expected)
{
    const char *from = strstr(text, "\"message\":\"");
    assert_non_null(from);
    from += strlen("\"message\":\"");
    size_t bytes = strlen(from);
    assert_true(bytes >= 3);
    assert_string_equal(from + bytes - 3, "\"}\n");
    assert_int_equal(bytes - 3, strlen(expected));
    assert_memory_equal(from, expected, bytes - 3);
    assert_true(utf8_valid(text, strlen(text)));
    assert_int_equal(lines_of(text), 1);
}

static void test_a_message_is_one_line(void **state)
{
    (void)state;
    static const struct {
        const char *message, *written;
    } cases[] = {
        {"plain", "plain"},
        {"a\nb\r\nc\td\x1b[31m\x7f", "a?b??c?d?[31m?"},
        {"quote \" and \\", "quote \\\" and \\\\"},
        {"caf\xc3\xa9 \xf0\x9f\x98\x80", "caf\xc3\xa9 \xf0\x9f\x98\x80"},
        {"next\xc2\x85line \xe2\x80\xa8 \xe2\x80\xa9.", "next?line ? ?."},
        {"\xc2\xa0\xe2\x80\xa7 \xe2\x80\xaf \xe2\x81\xaa", "\xc2\xa0\xe2\x80\xa7 \xe2\x80\xaf \xe2\x81\xaa"},
        {"\xc2\x9b\x31m \xe2\x80\xaa\xe2\x80\xae \xe2\x81\xa6\xe2\x81\xa9", "?1m ?? ??"},
        {"\xe2\x80\x8e\xe2\x80\x8f\xd8\x9c", "???"},
        {"bad \xff\xc3+ \xed\xa0\x80 \xc0\x80 cut \xe2\x82", "bad ??+ ??? ?? cut ??"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        log_setup(LOG_LEVEL_INFO, true);
        capture();
        log_warn("%s", cases[i].message);
        check_json(captured(), cases[i].written);
        log_setup(LOG_LEVEL_INFO, false);
        capture();
        log_warn("%s", cases[i].message);
        const char *text = captured();
        assert_int_equal(lines_of(text), 1);
        assert_true(utf8_valid(text, strlen(text)));
        assert_non_null(strstr(text, "Z warn  "));
    }
}

/* A long message is cut, also where each byte of it is written as two, and also amid a character. */
static void test_a_long_message(void **state)
{
    (void)state;
    static const char *const fillers[] = {"\"", "\n", "\xf0\x9f\x98\x80", "x"};
    for (size_t i = 0; i < sizeof fillers / sizeof *fillers; i++) {
        char message[10000] = " ";
        while (strlen(message) + 4 < sizeof message) {
            strcat(message, fillers[i]);
        }
        log_setup(LOG_LEVEL_INFO, true);
        capture();
        log_error("%s", message);
        const char *text = captured();
        assert_int_equal(lines_of(text), 1);
        assert_true(utf8_valid(text, strlen(text)));
        assert_true(strlen(text) > 2000 && strlen(text) < 5000);
        assert_string_equal(text + strlen(text) - 3, "\"}\n");
    }
}

static void test_what_repeats_is_limited(void **state)
{
    (void)state;
    struct log_limit limit = {0};
    unsigned told = 0;
    log_setup(LOG_LEVEL_INFO, false);
    capture();
    for (unsigned i = 0; i < 1000; i++) {
        told += log_limited(&limit, LOG_LEVEL_WARN, "again %u", i);
        assert_false(log_limited(&limit, LOG_LEVEL_DEBUG, "not at this level"));
    }
    assert_int_equal(lines_of(captured()), told);
    assert_true(told >= LOG_LIMIT_LINES && told <= 2 * LOG_LIMIT_LINES); /* a minute may have begun meanwhile */

    unsigned before = 1000 - told;
    atomic_store(&limit.left_out, before);
    atomic_store(&limit.minute, 0); /* as if it was long ago */
    capture();
    assert_true(log_limited(&limit, LOG_LEVEL_WARN, "once more"));
    assert_true(log_limited(&limit, LOG_LEVEL_WARN, "and more"));
    const char *text = captured();
    char expected[100];
    snprintf(expected, sizeof expected, "once more (and %u lines like this before it)\n", before);
    assert_non_null(strstr(text, expected));
    assert_non_null(strstr(text, "and more\n"));
}

static void test_the_level_changes(void **state)
{
    (void)state;
    log_setup(LOG_LEVEL_WARN, true);
    capture();
    log_info("one");
    log_set_level(LOG_LEVEL_DEBUG);
    log_debug("two");
    log_set_level(LOG_LEVEL_ERROR);
    log_warn("three");
    check_json(captured(), "two");
}

/* Every day of 400 years and more, against the C library's calendar. */
static void test_dates(void **state)
{
    (void)state;
    for (uint64_t day = 0; day < 160000; day++) {
        time_t seconds = (time_t)day * 86400;
        struct tm utc;
        unsigned year, month, of_month;
        gmtime_r(&seconds, &utc);
        clock_date(day, &year, &month, &of_month);
        assert_int_equal(year, utc.tm_year + 1900);
        assert_int_equal(month, utc.tm_mon + 1);
        assert_int_equal(of_month, utc.tm_mday);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_message_is_one_line),
        cmocka_unit_test(test_a_long_message),
        cmocka_unit_test(test_what_repeats_is_limited),
        cmocka_unit_test(test_the_level_changes),
        cmocka_unit_test(test_dates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
