/* base/lines: every way a file ends its lines, gz with several members, every place a gz can be cut, lines that are too
 * long, standard input, and what is no file at all. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>
#include <zlib.h>

#include "base/lines.h"
#include "tests/unit/files.h"

static char folder[] = "/tmp/test_lines.XXXXXX";

static const char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static const char *write_file(const char *name, const void *data, size_t bytes)
{
    const char *path = path_of(name);
    whole_write(path, data, bytes);
    return path;
}

/* Appends one gzip member. */
static void append_member(struct buffer *out, const char *data, size_t bytes)
{
    z_stream z = {0};
    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
    uLong bound = deflateBound(&z, (uLong)bytes);
    buffer_reserve(out, bound);
    z.next_in = (unsigned char *)(uintptr_t)data;
    z.avail_in = (uInt)bytes;
    z.next_out = (unsigned char *)out->data + out->bytes;
    z.avail_out = (uInt)bound;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    out->bytes += z.total_out;
    deflateEnd(&z);
}

/* All lines, each in brackets; where an error comes, its code's name in '!' and (FATAL) the end. */
static char *read_all(const char *path, size_t line_max)
{
    struct buffer out = {0};
    struct error e = {0};
    struct lines *l;
    buffer_string(&out, "");
    if (lines_open(&l, path, line_max, &e) != 0) {
        assert_null(l);
        buffer_format(&out, "!%s", error_code_name(e.code));
        return out.data;
    }
    for (;;) {
        struct slice line;
        int more = lines_next(l, &line, &e);
        if (more == 0) {
            break;
        }
        if (more > 0) {
            buffer_byte(&out, '[');
            buffer_append(&out, line.data, line.bytes);
            buffer_byte(&out, ']');
            continue;
        }
        buffer_format(&out, "!%s", error_code_name(e.code));
        if (e.kind == ERROR_FATAL) {
            assert_int_equal(lines_next(l, &line, &e), -1); /* for good */
            break;
        }
        buffer_format(&out, "@%zu", lines_number(l));
    }
    lines_close(l);
    return out.data;
}

static void assert_lines(const char *path, size_t line_max, const char *expected)
{
    char *got = read_all(path, line_max);
    assert_string_equal(got, expected);
    free(got);
}

static const struct {
    const char *text, *expected;
} endings[] = {
    {"", ""},
    {"\n", "[]"},
    {"a", "[a]"},
    {"a\n", "[a]"},
    {"a\nb", "[a][b]"},
    {"a\r\nb\r\n", "[a][b]"},
    {"a\r\n\r\n\nb", "[a][][][b]"},
    {"a\rb\n", "[a\rb]"},
    {"a\r\r\n", "[a\r]"},
    {"\xef\xbb\xbf", ""},
    {"\xef\xbb\xbf\n", "[]"},
    {"\xef\xbb\xbf"
     "a\r\n\xef\xbb\xbf"
     "b\n",
     "[a][\xef\xbb\xbf"
     "b]"},
    {"\xef\xbb", "[\xef\xbb]"},
    {"\x1f", "[\x1f]"},
    {"\x1fx\ny", "[\x1fx][y]"},
};

static void test_endings(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        assert_lines(write_file("plain", endings[i].text, strlen(endings[i].text)), 100, endings[i].expected);
        struct buffer gz = {0};
        append_member(&gz, endings[i].text, strlen(endings[i].text));
        assert_lines(write_file("lines.gz", gz.data, gz.bytes), 100, endings[i].expected);
        assert_lines(write_file("gz-by-its-first-bytes", gz.data, gz.bytes), 100, endings[i].expected);
        buffer_free(&gz);
    }
    assert_lines(write_file("nul", "a\0b\nc", 5), 100,
                 "[a"); /* the NUL is in the line: the brackets' string ends there */
}

/* Members may end in the middle of a line, be empty, and be followed by zeros. */
static void test_members(void **state)
{
    (void)state;
    struct buffer gz = {0};
    append_member(&gz, "a\nb", 3);
    append_member(&gz, "", 0);
    append_member(&gz, "c\r", 2);
    append_member(&gz, "\nd", 2);
    assert_lines(write_file("many.gz", gz.data, gz.bytes), 100, "[a][bc][d]");
    for (int i = 0; i < 100; i++) {
        buffer_byte(&gz, '\0');
    }
    assert_lines(write_file("padded.gz", gz.data, gz.bytes), 100, "[a][bc][d]");
    buffer_byte(&gz, 'x');
    assert_lines(write_file("garbage.gz", gz.data, gz.bytes), 100, "[a][bc]!IO");
    buffer_free(&gz);
    assert_lines(write_file("plain.gz", "a\nb\n", 4), 100, "!IO");
}

static void test_cut_anywhere(void **state)
{
    (void)state;
    struct buffer gz = {0};
    append_member(&gz, "one\ntwo\n", 8);
    size_t boundary = gz.bytes;
    append_member(&gz, "three\nfour\n", 11);
    for (size_t bytes = 0; bytes < gz.bytes; bytes++) {
        if (bytes == boundary) {
            continue; /* a whole file of one member: nobody can tell */
        }
        char *got = read_all(write_file("cut.gz", gz.data, bytes), 100);
        if (strlen(got) < 3 || strcmp(got + strlen(got) - 3, "!IO") != 0) {
            fail_msg("cut to %zu of %zu bytes: %s", bytes, gz.bytes, got);
        }
        free(got);
    }
    assert_lines(write_file("whole.gz", gz.data, gz.bytes), 100, "[one][two][three][four]");
    /* One flipped bit in the second member's data or checksum: an error, whatever was read before it. (The last byte of
     * deflated data has bits that mean nothing.) */
    size_t harmless = 0;
    for (size_t i = boundary + 10; i < gz.bytes; i++) {
        gz.data[i] = (char)(gz.data[i] ^ 0x10);
        char *got = read_all(write_file("flipped.gz", gz.data, gz.bytes), 100);
        harmless += strcmp(got, "[one][two][three][four]") == 0;
        assert_true(strstr(got, "!IO") || strcmp(got, "[one][two][three][four]") == 0);
        free(got);
        gz.data[i] = (char)(gz.data[i] ^ 0x10);
    }
    assert_true(harmless <= 1);
    buffer_free(&gz);
}

static void test_line_max(void **state)
{
    (void)state;
    const char text[] = "12345\n123456\n1234567890123\n\xef\xbb\xbf\n12345\r\n12345678";
    assert_lines(write_file("long", text, strlen(text)), 5, "[12345]!LIMIT@2!LIMIT@3[\xef\xbb\xbf][12345]!LIMIT@6");
    const char start[] = "\xef\xbb\xbf"
                         "12345\r\n1\n";
    assert_lines(write_file("long", start, strlen(start)), 5, "[12345][1]");

    struct error e = {0};
    struct lines *l;
    struct slice line;
    assert_int_equal(lines_open(&l, write_file("named", "1\n123456\n", 9), 5, &e), 0);
    assert_int_equal(lines_next(l, &line, &e), 1);
    assert_int_equal(lines_next(l, &line, &e), -1);
    assert_int_equal(e.kind, ERROR_POISON);
    assert_non_null(strstr(e.text, "line 2: longer than 5 bytes"));
    assert_non_null(strstr(e.text, "/named"));
    assert_int_equal(lines_next(l, &line, &e), 0);
    lines_close(l);
}

/* Lines of all lengths around the reader's chunks, plain and gz, against the text that they were written from. */
static void test_chunks(void **state)
{
    (void)state;
    struct buffer text = {0};
    struct buffer expected = {0};
    uint32_t random = 7;
    for (size_t i = 0; i < 60; i++) {
        random = random * 1664525u + 1013904223u;
        size_t bytes = i % 5 == 0 ? 65536 - 3 + i % 7 : random % 20000;
        buffer_byte(&expected, '[');
        for (size_t j = 0; j < bytes; j++) {
            random = random * 1664525u + 1013904223u;
            char c = (char)('a' + (random >> 24) % 26);
            buffer_byte(&text, c);
            buffer_byte(&expected, c);
        }
        buffer_byte(&expected, ']');
        buffer_string(&text, i % 2 ? "\r\n" : "\n");
    }
    assert_lines(write_file("chunks", text.data, text.bytes), 1 << 20, expected.data);
    struct buffer gz = {0};
    for (size_t at = 0; at < text.bytes; at += 50001) {
        append_member(&gz, text.data + at, text.bytes - at < 50001 ? text.bytes - at : 50001);
    }
    assert_lines(write_file("chunks.gz", gz.data, gz.bytes), 1 << 20, expected.data);
    buffer_free(&gz);

    /* A line of 8 MB where 10 bytes are allowed is not kept. */
    buffer_clear(&text);
    for (size_t i = 0; i < 8 << 20; i++) {
        buffer_byte(&text, 'x');
    }
    buffer_string(&text, "\nok\n");
    assert_lines(write_file("huge", text.data, text.bytes), 10, "!LIMIT@1[ok]");
    buffer_free(&text);
    buffer_free(&expected);
}

static void test_progress(void **state)
{
    (void)state;
    struct error e = {0};
    struct lines *l;
    struct slice line;
    assert_int_equal(lines_open(&l, write_file("progress", "a\nb\n", 4), 10, &e), 0);
    assert_int_equal(lines_size(l), 4);
    assert_int_equal(lines_offset(l), 0);
    while (lines_next(l, &line, &e) > 0) {}
    assert_int_equal(lines_offset(l), 4);
    assert_int_equal(lines_number(l), 2);
    lines_close(l);
}

static void test_no_file(void **state)
{
    (void)state;
    struct error e = {0};
    struct lines *l;
    assert_int_equal(lines_open(&l, path_of("missing"), 10, &e), -1);
    assert_int_equal(e.kind, ERROR_FATAL);
    assert_non_null(strstr(e.text, "/missing: No such file"));
    assert_int_equal(lines_open(&l, folder, 10, &e), -1);
    assert_non_null(strstr(e.text, "it is a directory"));
    lines_close(NULL);
}

/* Reads a pipe as standard input. A first line is answered before more is written: nothing is read ahead for its sake.
 */
static void test_standard_input(void **state)
{
    (void)state;
    int ends[2];
    int saved = dup(STDIN_FILENO);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(dup2(ends[0], STDIN_FILENO), STDIN_FILENO);
    close(ends[0]);
    struct error e = {0};
    struct lines *l;
    struct slice line;
    assert_int_equal(lines_open(&l, "-", 10, &e), 0);
    assert_int_equal(lines_size(l), 0);
    assert_int_equal(write(ends[1], "\n", 1), 1);
    assert_int_equal(lines_next(l, &line, &e), 1);
    assert_int_equal(line.bytes, 0);
    assert_int_equal(write(ends[1], "ab\ncd", 5), 5);
    assert_int_equal(lines_next(l, &line, &e), 1);
    assert_memory_equal(line.data, "ab", 2);
    close(ends[1]);
    assert_int_equal(lines_next(l, &line, &e), 1);
    assert_memory_equal(line.data, "cd", 2);
    assert_int_equal(lines_next(l, &line, &e), 0);
    lines_close(l);
    assert_int_equal(fcntl(STDIN_FILENO, F_GETFD), 0); /* left open: it is the process's */

    struct buffer gz = {0};
    append_member(&gz, "x\ny\n", 4);
    assert_int_equal(pipe(ends), 0);
    dup2(ends[0], STDIN_FILENO);
    close(ends[0]);
    assert_int_equal(write(ends[1], gz.data, gz.bytes), gz.bytes);
    close(ends[1]);
    assert_lines("-", 10, "[x][y]");
    buffer_free(&gz);
    dup2(saved, STDIN_FILENO);
    close(saved);
}

static int make_folder(void **state)
{
    (void)state;
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_endings),  cmocka_unit_test(test_members),        cmocka_unit_test(test_cut_anywhere),
        cmocka_unit_test(test_line_max), cmocka_unit_test(test_chunks),         cmocka_unit_test(test_progress),
        cmocka_unit_test(test_no_file),  cmocka_unit_test(test_standard_input),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
