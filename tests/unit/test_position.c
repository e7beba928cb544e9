/* A position in one line of text, as it travels with a committed offset: what was written is read back, and what others
 * put there (tools and other clients write what they like) is none of ours. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "kafka/position.h"

static const struct read_position written = {
    .next = 8, /* not in the line: the committed offset says it */
    .mark = {.offset = 7, .time_ms = 1764290096123, .hash = {0x0123456789abcdef, 0xfedcba9876543210}},
    .topic_id = {0x00, 0x7f, 0x80, 0xff, [15] = 0x01},
};
#define LINE "engram-1 7 1764290096123 0123456789abcdeffedcba9876543210 007f80ff000000000000000000000001"

static void test_what_was_written_is_read_back(void **state)
{
    (void)state;
    struct buffer line = {0};
    struct read_position read;
    position_write(&written, &line);
    assert_string_equal(line.data, LINE);
    assert_true(position_read((struct slice){line.data, line.bytes}, &read));
    assert_int_equal(read.next, 0);
    assert_true(record_mark_equal(&read.mark, &written.mark));
    assert_memory_equal(read.topic_id, written.topic_id, TOPIC_ID_BYTES);
    const struct read_position ends[] = {
        {.mark = {INT64_MAX, -1, {UINT64_MAX, UINT64_MAX}}},
        {.mark = {0, INT64_MIN, {0, 1}}, .topic_id = {[0] = 255}},
    };
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        buffer_clear(&line);
        position_write(&ends[i], &line);
        assert_true(position_read((struct slice){line.data, line.bytes}, &read));
        assert_memory_equal(&read, &ends[i], sizeof read);
    }
    buffer_free(&line);
}

static void test_what_others_write_is_not_ours(void **state)
{
    (void)state;
    static const char *const others[] = {
        "",
        " ",
        "engram-1",
        "committed by a tool",
        "engram-2" LINE,
        LINE " ",
        " " LINE,
        LINE "0",
        LINE "\n",
        "engram-1  7 1764290096123 0123456789abcdeffedcba9876543210 007f80ff000000000000000000000001",
        "engram-1 7 1764290096123 0123456789abcdeffedcba987654321 007f80ff000000000000000000000001",
        "engram-1 7 1764290096123 0123456789abcdeffedcba9876543210 007f80ff00000000000000000000000",
        "engram-1 +7 1764290096123 0123456789abcdeffedcba9876543210 007f80ff000000000000000000000001",
        "engram-1 7 99999999999999999999 0123456789abcdeffedcba9876543210 007f80ff000000000000000000000001",
        "engram-1 7 1764290096123 0123456789ABCDEFfedcba9876543210 007f80ff000000000000000000000001",
    };
    struct read_position read;
    for (size_t i = 0; i < sizeof others / sizeof *others; i++) {
        assert_false(position_read(slice_of(others[i]), &read));
    }
    assert_false(position_read((struct slice){0}, &read));
    assert_false(position_read((struct slice){LINE "\0more", sizeof LINE + 4}, &read));
    for (size_t bytes = 0; bytes < sizeof LINE - 1; bytes++) { /* cut anywhere */
        assert_false(position_read((struct slice){LINE, bytes}, &read));
    }
    char long_line[1000];
    memset(long_line, '7', sizeof long_line);
    memcpy(long_line, LINE, sizeof LINE - 1);
    assert_false(position_read((struct slice){long_line, sizeof long_line}, &read));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_was_written_is_read_back),
        cmocka_unit_test(test_what_others_write_is_not_ours),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
