/* base/json: what is JSON and what is not, numbers as written, surrogates, depth, the writer's output under a locale
 * that writes commas. */
#include <locale.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/json.h"

/* Literals with NULs inside keep their length. */
#define SLICE(literal) ((struct slice){literal, sizeof(literal) - 1})

static int parse(struct slice text, unsigned depth_max, struct arena *arena, const struct json **out, struct error *e)
{
    /* An exact copy on the heap, so that ASan sees a read behind the end. */
    char *copy = mem_alloc(text.bytes ? text.bytes : 1);
    memcpy(copy, text.data, text.bytes);
    int result = json_parse((struct slice){copy, text.bytes}, depth_max, arena, out, e);
    free(copy);
    return result;
}

/* What the tree writes back. */
static void assert_rewritten(const char *text, const char *expected)
{
    struct arena arena = {0};
    struct buffer out = {0};
    struct error e = {0};
    const struct json *tree;
    if (parse(slice_of(text), 16, &arena, &tree, &e) != 0) {
        fail_msg("%s: %s", text, e.text);
    }
    json_write_tree(&(struct json_writer){.out = &out}, tree);
    assert_string_equal(out.data, expected);
    buffer_free(&out);
    arena_free(&arena);
}

static void test_accepted(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"null", "null"},
        {" true ", "true"},
        {"false", "false"},
        {"0", "0"},
        {"-0", "-0"},
        {"1.0", "1.0"},
        {"1E+2", "1E+2"},
        {"18446744073709551615", "18446744073709551615"},
        {"1e400", "1e400"},
        {"-123456789012345678901234567890.000", "-123456789012345678901234567890.000"},
        {"\"\"", "\"\""},
        {"[]", "[]"},
        {"{}", "{}"},
        {"\t[ 1 ,\r\n 2 ]", "[1,2]"},
        {"{\"a\":{\"b\":[1,\"x\",null,{}]},\"a\":2}", "{\"a\":{\"b\":[1,\"x\",null,{}]},\"a\":2}"},
        {"\"\\u0041\\u00e9\\u20ac\\ud83d\\ude00\"", "\"A\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\""},
        {"\"\\uD83D\\uDE00\\\\u\\ud83d\\ude00\"", "\"\xf0\x9f\x98\x80\\\\u\xf0\x9f\x98\x80\""},
        {"\"\\\\ud800\"", "\"\\\\ud800\""}, /* an escaped backslash, then letters */
        {"\"\\/\\b\\f\\n\\r\\t\\\"\\u0001\"", "\"/\\b\\f\\n\\r\\t\\\"\\u0001\""},
        {"\"\xf4\x8f\xbf\xbf\x7f\"", "\"\xf4\x8f\xbf\xbf\x7f\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_rewritten(cases[i][0], cases[i][1]);
    }
}

static void test_refused(void **state)
{
    (void)state;
    static const struct {
        struct slice text;
        enum error_code code;
        const char *words;
    } cases[] = {
        {{"", 0}, E_FORMAT, "at byte 0"},
        {SLICE("  "), E_FORMAT, "at byte 2"},
        {SLICE("{"), E_FORMAT, "premature EOF"},
        {SLICE("{\"a\""), E_FORMAT, "premature EOF"},
        {SLICE("[1,2"), E_FORMAT, "premature EOF"},
        {SLICE("\"abc"), E_FORMAT, "string does not end"},
        {SLICE("{}\"abc"), E_FORMAT, "string does not end"},
        {SLICE("{} nul"), E_FORMAT, "trailing"},
        {SLICE("{}-"), E_FORMAT, "trailing"},
        {SLICE("{}/"), E_FORMAT, "trailing"},
        {SLICE("{} x"), E_FORMAT, "trailing"},
        {SLICE("{}{}"), E_FORMAT, "trailing"},
        {SLICE("{}\0"), E_FORMAT, "trailing"},
        {SLICE("1 2"), E_FORMAT, "trailing"},
        {SLICE("{\"a\":1,}"), E_FORMAT, "not JSON"},
        {SLICE("[1,]"), E_FORMAT, "not JSON"},
        {SLICE("[1 2]"), E_FORMAT, "not JSON"},
        {SLICE("{a:1}"), E_FORMAT, "not JSON"},
        {SLICE("{1:1}"), E_FORMAT, "not JSON"},
        {SLICE("{'a':1}"), E_FORMAT, "not JSON"},
        {SLICE("[01]"), E_FORMAT, "not JSON"},
        {SLICE("[1.]"), E_FORMAT, "not JSON"},
        {SLICE("[.5]"), E_FORMAT, "not JSON"},
        {SLICE("[+1]"), E_FORMAT, "not JSON"},
        {SLICE("[-]"), E_FORMAT, "not JSON"},
        {SLICE("[1e]"), E_FORMAT, "not JSON"},
        {SLICE("[0x1]"), E_FORMAT, "not JSON"},
        {SLICE("[NaN]"), E_FORMAT, "not JSON"},
        {SLICE("[Infinity]"), E_FORMAT, "not JSON"},
        {SLICE("[nul]"), E_FORMAT, "not JSON"},
        {SLICE("[True]"), E_FORMAT, "not JSON"},
        {SLICE("// c\n1"), E_FORMAT, "not JSON"},
        {SLICE("/* c */ 1"), E_FORMAT, "not JSON"},
        {SLICE("[1]]"), E_FORMAT, "trailing"},
        {SLICE("]"), E_FORMAT, "not JSON"},
        {SLICE("[}"), E_FORMAT, "not JSON"},
        {SLICE("\v1"), E_FORMAT, "control character at byte 0"},
        {SLICE("[1,\f2]"), E_FORMAT, "control character at byte 3"},
        {SLICE("\"a\nb\""), E_FORMAT, "not JSON"},
        {SLICE("\"a\0b\""), E_FORMAT, "not JSON"},
        {SLICE("\"\\x\""), E_FORMAT, "not JSON"},
        {SLICE("\"\\u12g4\""), E_FORMAT, "not JSON"},
        {SLICE("\"\\"), E_FORMAT, "not JSON"},
        {SLICE("\"\\u00"), E_FORMAT, "not JSON"},
        {SLICE("\xef\xbb\xbf{}"), E_FORMAT, "not JSON"},
        {SLICE("\"\\ud800\""), E_UTF8, "lone surrogate \\ud800 at byte 1"},
        {SLICE("\"\\uD83Dx\""), E_UTF8, "lone surrogate"},
        {SLICE("\"\\ud83d\\u0041\""), E_UTF8, "lone surrogate"},
        {SLICE("\"\\ud83d\\ud83d\\ude00\""), E_UTF8, "lone surrogate"},
        {SLICE("\"\\ude00\""), E_UTF8, "lone surrogate"},
        {SLICE("{\"\\udfff\":1}"), E_UTF8, "lone surrogate"},
        {SLICE("\"\\\\\\ud800\""), E_UTF8, "at byte 3"},
        {SLICE("\"\xff\""), E_UTF8, "invalid UTF-8 at byte 1"},
        {SLICE("\"\xc3\""), E_UTF8, "invalid UTF-8 at byte 1"},
        {SLICE("\"\xed\xa0\x80\""), E_UTF8, "invalid UTF-8 at byte 1"},
        {SLICE("\"\xc0\xaf\""), E_UTF8, "invalid UTF-8 at byte 1"},
        {SLICE("\"\xf4\x90\x80\x80\""), E_UTF8, "invalid UTF-8 at byte 1"},
        {SLICE("{\"12345678\":\"\xe2\x82\"}"), E_UTF8, "invalid UTF-8 at byte 13"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct arena arena = {0};
        struct error e = {0};
        const struct json *tree;
        if (parse(cases[i].text, 16, &arena, &tree, &e) != -1) {
            fail_msg("case %zu was taken: %s", i, cases[i].text.data);
        }
        if (e.kind != ERROR_POISON || e.code != cases[i].code || !strstr(e.text, cases[i].words)) {
            fail_msg("case %zu (%s): %s %s", i, cases[i].text.data, error_code_name(e.code), e.text);
        }
        assert_null(tree);
        assert_null(strchr(e.text, '\n'));
        arena_free(&arena);
    }
}

/* Every prefix of a sound text is refused, and none reads behind its end. */
static void test_cut(void **state)
{
    (void)state;
    struct slice whole = SLICE("{\"a\":[1.5e3,true,\"\\ud83d\\ude00\xe2\x82\xac\"],\"b\":{\"c\":null}}");
    for (size_t bytes = 0; bytes < whole.bytes; bytes++) {
        struct arena arena = {0};
        struct error e = {0};
        const struct json *tree;
        assert_int_equal(parse((struct slice){whole.data, bytes}, 16, &arena, &tree, &e), -1);
        assert_true(e.code == E_FORMAT || e.code == E_UTF8);
        arena_free(&arena);
    }
}

static void test_depth(void **state)
{
    (void)state;
    for (unsigned depth = 1; depth <= 20; depth++) {
        struct buffer text = {0};
        for (unsigned i = 0; i < depth; i++) {
            buffer_string(&text, i % 2 ? "{\"a\":" : "[");
        }
        buffer_string(&text, "1");
        for (unsigned i = depth; i-- > 0;) {
            buffer_string(&text, i % 2 ? "}" : "]");
        }
        struct arena arena = {0};
        struct error e = {0};
        const struct json *tree;
        int result = parse((struct slice){text.data, text.bytes}, 16, &arena, &tree, &e);
        assert_int_equal(result, depth <= 16 ? 0 : -1);
        if (depth > 16) {
            assert_int_equal(e.code, E_FORMAT);
            assert_non_null(strstr(e.text, "nested deeper than 16 levels"));
        }
        arena_free(&arena);
        buffer_free(&text);
    }
}

/* A mebibyte that opens containers and closes none: refused at the seventeenth. */
static void test_hostile_nesting(void **state)
{
    (void)state;
    static const char *const units[] = {"[", "{\"a\":", "[[],", "{\"a\":[],\"b\":"};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        struct buffer text = {0};
        while (text.bytes < 1 << 20) {
            buffer_string(&text, units[i]);
        }
        struct arena arena = {0};
        struct error e = {0};
        const struct json *tree;
        assert_int_equal(parse((struct slice){text.data, text.bytes}, 16, &arena, &tree, &e), -1);
        assert_non_null(strstr(e.text, "nested deeper"));
        arena_free(&arena);
        buffer_free(&text);
    }
}

static void test_members(void **state)
{
    (void)state;
    struct arena arena = {0};
    struct error e = {0};
    const struct json *tree;
    assert_int_equal(parse(SLICE("{\"a\":1,\"b\\u0000\":[\"x\",\"\\u0000y\"],\"a\":9223372036854775807,"
                                 "\"c\":9223372036854775808,\"d\":-1.5e2,\"e\":1e400}"),
                           16, &arena, &tree, &e),
                     0);
    assert_int_equal(tree->count, 6);
    int64_t integer = 0;
    double real = 0;
    assert_true(json_int(json_member(tree, "a"), &integer)); /* the last one */
    assert_int_equal(integer, INT64_MAX);
    assert_false(json_int(json_member(tree, "c"), &integer));
    assert_false(json_int(json_member(tree, "d"), &integer));
    assert_true(json_double(json_member(tree, "d"), &real));
    assert_true(real == -150.0);
    assert_false(json_double(json_member(tree, "e"), &real));
    assert_false(json_double(tree, &real));
    assert_false(json_int(NULL, &integer));
    assert_null(json_member(tree, "z"));
    assert_null(json_member(tree, "b")); /* its name goes on behind the NUL */
    const struct json *list = tree->child->next;
    assert_int_equal(list->name.bytes, 2);
    assert_int_equal(list->count, 2);
    assert_true(slice_equal(list->child->next->text, SLICE("\0y")));
    arena_free(&arena);
}

static const char *written(struct buffer *out, double value)
{
    buffer_clear(out);
    json_write_double(&(struct json_writer){.out = out}, value);
    return out->data;
}

static void test_numbers(void **state)
{
    (void)state;
    struct buffer out = {0};
    assert_string_equal(written(&out, 0.5), "0.5");
    assert_string_equal(written(&out, (double)0.1f), "0.1");
    assert_string_equal(written(&out, (double)0.73123456f), "0.73123455");
    assert_string_equal(written(&out, 64.49), "64.49");
    assert_string_equal(written(&out, 123456789.0), "123456789");
    assert_string_equal(written(&out, -0.0), "-0");
    assert_string_equal(written(&out, 1e300), "1e+300");
    assert_string_equal(written(&out, NAN), "null");
    assert_string_equal(written(&out, -INFINITY), "null");
    /* Every float comes back as itself. */
    uint32_t bits = 1;
    for (int i = 0; i < 20000; i++) {
        bits = bits * 1664525u + 1013904223u;
        float value;
        memcpy(&value, &bits, sizeof value);
        if (isfinite(value)) {
            assert_true(strtof(written(&out, (double)value), NULL) == value);
        }
    }
    buffer_free(&out);
}

/* A locale whose decimal point is a comma, made here: a bare Debian has none. */
static void enter_comma_locale(char folder[])
{
    assert_non_null(mkdtemp(folder));
    char command[512];
    snprintf(command, sizeof command,
             "cd %s && printf 'comment_char %%%%\\nescape_char /\\nLC_NUMERIC\\ndecimal_point \"<U002C>\"\\n"
             "thousands_sep \"\"\\ngrouping -1\\nEND LC_NUMERIC\\n' >source && "
             "localedef -c -i ./source -f ANSI_X3.4-1968 ./comma >/dev/null 2>&1",
             folder);
    int status = system(command); /* localedef says 1 for the categories that it has to make up */
    assert_true(status != -1);
    setenv("LOCPATH", folder, 1);
    assert_non_null(setlocale(LC_NUMERIC, "comma"));
    char text[8];
    snprintf(text, sizeof text, "%g", 1.5);
    assert_string_equal(text, "1,5");
}

static void test_numbers_under_a_locale(void **state)
{
    (void)state;
    char folder[] = "/tmp/test_json.XXXXXX";
    enter_comma_locale(folder);
    struct buffer out = {0};
    struct arena arena = {0};
    const struct json *tree;
    double real = 0;
    assert_string_equal(written(&out, 64.49), "64.49");
    assert_string_equal(written(&out, (double)0.73123456f), "0.73123455");
    assert_int_equal(parse(SLICE("2.5"), 0, &arena, &tree, NULL), 0);
    assert_true(json_double(tree, &real) && real == 2.5);
    char text[8];
    snprintf(text, sizeof text, "%g", 1.5);
    assert_string_equal(text, "1,5"); /* and the process keeps its own */

    setlocale(LC_ALL, "C");
    unsetenv("LOCPATH");
    char command[64];
    snprintf(command, sizeof command, "rm -rf %s", folder);
    assert_int_equal(system(command), 0);
    arena_free(&arena);
    buffer_free(&out);
}

static void test_writer(void **state)
{
    (void)state;
    struct buffer out = {0};
    struct json_writer w = {.out = &out};
    json_object_begin(&w);
    json_name(&w, "a");
    json_array_begin(&w);
    json_array_end(&w);
    json_name(&w, "b");
    json_array_begin(&w);
    json_write_int(&w, INT64_MIN);
    json_write_uint(&w, UINT64_MAX);
    json_write_bool(&w, false);
    json_write_null(&w);
    json_object_begin(&w);
    json_object_end(&w);
    json_array_end(&w);
    json_name(&w, "c\n");
    json_write_string(&w, SLICE("q\"\\\0\x1f\x7f/"));
    json_name(&w, "d");
    json_write_raw(&w, SLICE("[1]"));
    json_object_end(&w);
    assert_string_equal(out.data, "{\"a\":[],\"b\":[-9223372036854775808,18446744073709551615,false,null,{}],"
                                  "\"c\\n\":\"q\\\"\\\\\\u0000\\u001f\x7f/\",\"d\":[1]}");
    buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accepted),
        cmocka_unit_test(test_refused),
        cmocka_unit_test(test_cut),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_hostile_nesting),
        cmocka_unit_test(test_members),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_numbers_under_a_locale),
        cmocka_unit_test(test_writer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
