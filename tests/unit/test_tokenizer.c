/* gpu/encoder/tokenizer: every code point against digests of what Hugging Face tokenizers made of it
 * (tests/golden/make_codepoints.py), the tiny model's golden ids, truncation to the piece, special tokens, long words,
 * bad bytes, and settings that are refused (test_tokenizer_folder.c has added tokens and a folder's files). Runs from
 * the root of the tree. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>
#include <utf8proc.h>

#include "base/digest.h"
#include "base/json.h"
#include "base/lines.h"
#include "gpu/encoder/codepoint.h"
#include "gpu/encoder/tokenizer.h"
#include "tests/unit/files.h"

#define TINY "tests/golden/tiny-bert/vocab.txt"
#define CODEPOINTS_VOCAB "tests/golden/codepoints-vocab.txt"
#define RANGE 4096

static char folder[] = "/tmp/test_tokenizer.XXXXXX";

/* The lines of a file as pieces, with the special tokens among them, and more added tokens. */
static int open_file(struct tokenizer **out, const char *path, struct tokenizer_settings settings, struct error *e)
{
    struct lines *lines = NULL;
    struct slice line;
    struct arena arena = {0};
    struct slice *pieces = mem_alloc(65536 * sizeof *pieces);
    struct added_token added[SPECIAL_TOKENS + 8];
    size_t count = 0, more = settings.added_count;
    assert_true(more <= 8);
    for (size_t i = 0; i < more; i++) {
        added[i] = settings.added[i];
    }
    assert_int_equal(lines_open(&lines, path, 1 << 20, NULL), 0);
    while (lines_next(lines, &line, NULL) > 0) {
        pieces[count] = arena_slice(&arena, line);
        for (size_t i = 0; i < SPECIAL_TOKENS; i++) {
            if (slice_equal(pieces[count], slice_of(special_tokens[i]))) {
                added[more++] = (struct added_token){.text = pieces[count], .id = (int32_t)count, .special = true};
            }
        }
        count++;
    }
    lines_close(lines);
    settings.pieces = pieces;
    settings.piece_count = count;
    settings.added = added;
    settings.added_count = more;
    settings.continuing = slice_of(CONTINUING);
    settings.word_chars_max = WORD_CHARS_USUAL;
    int result = tokenizer_open(out, &settings, e);
    arena_free(&arena);
    free(pieces);
    return result;
}

static struct tokenizer *open_with(const char *path, bool lower_case, bool strip_accents, bool chinese)
{
    struct tokenizer *t = NULL;
    struct error e = {0};
    const struct tokenizer_settings settings = {
        .lower_case = lower_case, .strip_accents = strip_accents, .tokenize_chinese_chars = chinese};
    if (open_file(&t, path, settings, &e) != 0) {
        fail_msg("%s", e.text);
    }
    return t;
}

static const char *write_vocab(const char *text, size_t bytes)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/vocab.txt", folder);
    whole_write(path, text, bytes);
    return path;
}

/* The pieces of a text by name, spaces between, "..." behind them where it was truncated. */
static const char *pieces(const struct tokenizer *t, const char *text, size_t bytes, size_t ids_max)
{
    static struct buffer out;
    int32_t *ids = mem_alloc(ids_max * sizeof *ids); /* on the heap, so that ASan sees one id too many */
    bool truncated = false;
    size_t count = tokenizer_encode(t, text, bytes, ids, ids_max, &truncated);
    struct slice vocabulary = tokenizer_vocabulary(t);
    buffer_clear(&out);
    for (size_t i = 0; i < count; i++) {
        const char *piece = vocabulary.data;
        for (int32_t skip = ids[i]; skip > 0; skip--) {
            piece = strchr(piece, '\n') + 1;
        }
        buffer_format(&out, "%s%.*s", i == 0 ? "" : " ", (int)strcspn(piece, "\n"), piece);
    }
    buffer_string(&out, truncated ? " ..." : "");
    free(ids);
    return out.data;
}

#define assert_pieces(t, text, ids_max, expected)                                                                      \
    assert_string_equal(pieces(t, text, sizeof(text) - 1, ids_max), expected)

/* ---- against the reference ------------------------------------------------------------------------------------- */

static size_t utf8_put(char *out, int32_t c)
{
    return (size_t)utf8proc_encode_char(c, (utf8proc_uint8_t *)out);
}

static void encode_into(const struct tokenizer *t, const char *text, size_t bytes, struct buffer *ids)
{
    int32_t some[64];
    size_t count = tokenizer_encode(t, text, bytes, some, 64, NULL);
    buffer_append(ids, some, count * sizeof *some);
}

/* The two lines that make_codepoints.py writes about a code point. */
static void encode_codepoint(const struct tokenizer *t, int32_t c, struct buffer *ids)
{
    static const int32_t KEPT[] = {0x1E000, 0x1D165, 0x111C0}; /* marks that are not stripped, of three classes */
    char text[32];
    size_t n = 0;
    text[n++] = 'a';
    n += utf8_put(text + n, c);
    text[n++] = 'b';
    encode_into(t, text, n, ids);
    n = 0;
    text[n++] = 'b';
    n += utf8_put(text + n, KEPT[0]);
    n += utf8_put(text + n, c);
    n += utf8_put(text + n, KEPT[1]);
    n += utf8_put(text + n, c);
    n += utf8_put(text + n, KEPT[2]);
    encode_into(t, text, n, ids);
}

static struct tokenizer *open_single_word(void)
{
    struct tokenizer *t = NULL;
    struct error e = {0};
    const struct added_token added = {.text = slice_of("<e>"), .id = 10000, .single_word = true};
    const struct tokenizer_settings settings = {.lower_case = true, .added = &added, .added_count = 1};
    assert_int_equal(open_file(&t, CODEPOINTS_VOCAB, settings, &e), 0);
    return t;
}

/* Whether that character before it keeps the <e> from being a single word. */
static bool touches(const struct tokenizer *t, int32_t c)
{
    char text[8];
    int32_t ids[16];
    size_t n = utf8_put(text, c);
    memcpy(text + n, "<e>", 3);
    size_t count = tokenizer_encode(t, text, n + 3, ids, 16, NULL);
    return ids[count - 2] != 10000;
}

static void test_every_code_point(void **state)
{
    (void)state;
    struct tokenizer *modes[] = {open_with(CODEPOINTS_VOCAB, true, true, true),
                                 open_with(CODEPOINTS_VOCAB, false, false, true),
                                 open_with(CODEPOINTS_VOCAB, true, false, false), open_single_word()};
    struct lines *golden = NULL;
    struct slice line;
    struct buffer ids = {0};
    int ranges = 0;
    assert_int_equal(lines_open(&golden, "tests/golden/codepoints.txt", 1024, NULL), 0);
    for (; lines_next(golden, &line, NULL) > 0; ranges++) {
        char *rest = NULL;
        int32_t first = (int32_t)strtoul(line.data, &rest, 16);
        assert_int_equal(first, ranges * RANGE);
        for (size_t mode = 0; mode < 4; mode++) {
            uint64_t expected = strtoull(rest, &rest, 16);
            buffer_clear(&ids);
            for (int32_t c = first; c < first + RANGE; c++) {
                if (c >= 0xD800 && c <= 0xDFFF) {
                    continue;
                }
                if (mode < 3) {
                    encode_codepoint(modes[mode], c, &ids);
                } else {
                    buffer_byte(&ids, touches(modes[mode], c));
                }
            }
            if (ids.bytes > 0 && hash64(ids.data, ids.bytes) != expected) {
                fail_msg("ids differ from tokenizers' among U+%04X to U+%04X, mode %zu", (unsigned)first,
                         (unsigned)first + RANGE - 1, mode);
            }
        }
    }
    assert_int_equal(ranges, 0x110000 / RANGE);
    lines_close(golden);
    buffer_free(&ids);
    for (size_t mode = 0; mode < 4; mode++) {
        tokenizer_close(modes[mode]);
    }
}

static void test_tiny_golden(void **state)
{
    (void)state;
    struct tokenizer *t = open_with(TINY, true, true, true);
    struct lines *lines = NULL;
    struct slice line;
    struct buffer text = {0};
    struct arena arena = {0};
    const struct json *golden = NULL;
    size_t seen = 0;
    assert_int_equal(lines_open(&lines, "tests/golden/tiny-bert-golden.json", 1 << 20, NULL), 0);
    while (lines_next(lines, &line, NULL) > 0) {
        buffer_append(&text, line.data, line.bytes);
        buffer_byte(&text, '\n');
    }
    lines_close(lines);
    assert_int_equal(json_parse((struct slice){text.data, text.bytes}, 8, &arena, &golden, NULL), 0);
    for (const struct json *one = golden->child; one != NULL; one = one->next, seen++) {
        int32_t ids[48]; /* the tiny model's max_seq_length */
        struct slice input = json_member(one, "text")->text;
        size_t count = tokenizer_encode(t, input.data, input.bytes, ids, 48, NULL);
        const struct json *token = json_member(one, "tokens")->child;
        for (size_t i = 0; i < count; i++, token = token->next) {
            int64_t expected = -1;
            assert_non_null(token);
            assert_true(json_int(token, &expected));
            assert_int_equal(ids[i], expected);
        }
        assert_null(token);
    }
    assert_true(seen > 5);
    arena_free(&arena);
    buffer_free(&text);
    tokenizer_close(t);
}

/* ---- one thing at a time --------------------------------------------------------------------------------------- */

static void test_pieces(void **state)
{
    (void)state;
    struct tokenizer *t = open_with(TINY, true, true, true);
    assert_pieces(t, "", 48, "[CLS] [SEP]");
    assert_pieces(t, " \t\r\n\xC2\xA0 ", 48, "[CLS] [SEP]");
    assert_pieces(t, "The TOOLS, debugging", 48, "[CLS] the tool ##s , debug ##g ##ing [SEP]");
    assert_pieces(t,
                  "\xC3\x89"
                  "e\xCC\x81",
                  48, "[CLS] e ##e [SEP]");
    assert_pieces(t, "a\xE6\x96\x87z", 48, "[CLS] a \xE6\x96\x87 z [SEP]");
    assert_pieces(t, "\xCE\xA3\xCE\xA3", 48, "[CLS] \xCF\x83 ##\xCF\x83 [SEP]"); /* no final sigma */
    assert_pieces(t,
                  "a\xE2\x98\x83"
                  "b c",
                  48, "[CLS] [UNK] c [SEP]");
    assert_pieces(t, "a\0b", 48, "[CLS] a ##b [SEP]");
    assert_pieces(t,
                  "a\xFF"
                  "b\xC3",
                  48, "[CLS] a ##b [SEP]"); /* bad bytes are U+FFFD, which is dropped */
    assert_pieces(t,
                  "a\xED\xA0\x80"
                  "b",
                  48, "[CLS] a ##b [SEP]");
    tokenizer_close(t);

    t = open_with(TINY, true, false, false);
    assert_pieces(t, "\xC3\x89 e\xCC\x81", 48, "[CLS] \xC3\xA9 [UNK] [SEP]");
    assert_pieces(t, "\xE6\x96\x87 \xE6\x96\x87z", 48, "[CLS] \xE6\x96\x87 \xE6\x96\x87 ##z [SEP]");
    tokenizer_close(t);

    t = open_with(TINY, false, false, true);
    assert_pieces(t, "The the", 48, "[CLS] [UNK] the [SEP]");
    tokenizer_close(t);
}

static void test_special_tokens(void **state)
{
    (void)state;
    struct tokenizer *t = open_with(TINY, true, true, true);
    assert_pieces(t, "a[SEP]b", 48, "[CLS] a [SEP] b [SEP]");
    assert_pieces(t, "[[MASK]][PAD]", 48, "[CLS] [ [MASK] ] [PAD] [SEP]");
    assert_pieces(t, "[CLS", 48, "[CLS] [ c ##l ##s [SEP]");
    assert_pieces(t,
                  "[sep] [S\xCC\x81"
                  "EP]",
                  48, "[CLS] [ s ##e ##p ] [ s ##e ##p ] [SEP]");
    assert_pieces(t, "[UNK]ed", 48, "[CLS] [UNK] e ##d [SEP]");
    tokenizer_close(t);

    static const char few[] = "[UNK]\n[CLS]\n[SEP]\n[\n]\nmask\n"; /* a vocabulary without [MASK] knows no such token */
    t = open_with(write_vocab(few, sizeof few - 1), true, true, true);
    assert_pieces(t, "[MASK]", 48, "[CLS] [ mask ] [SEP]");
    tokenizer_close(t);
}

static void test_truncation(void **state)
{
    (void)state;
    struct tokenizer *t = open_with(TINY, true, true, true);
    assert_pieces(t, "the tools", 5, "[CLS] the tool ##s [SEP]");
    assert_pieces(t, "the tools", 4, "[CLS] the tool [SEP] ...");
    assert_pieces(t, "the tools", 3, "[CLS] the [SEP] ...");
    assert_pieces(t, "the tools", 2, "[CLS] [SEP] ...");
    assert_pieces(t, "", 2, "[CLS] [SEP]");
    /* nothing is dropped where nothing more would have come */
    assert_pieces(t, "the \xCC\x81\xE2\x80\x8B \n", 3, "[CLS] the [SEP]");
    assert_pieces(t, "the.", 3, "[CLS] the [SEP] ...");
    assert_pieces(t, "the[PAD]", 3, "[CLS] the [SEP] ...");
    assert_pieces(t, "the \xE2\x98\x83", 3, "[CLS] the [SEP] ...");
    tokenizer_close(t);
}

/* What stands behind the piece that fills the ids is not read: here it cannot be. */
static void test_stops_when_full(void **state)
{
    (void)state;
    static const char text[] = "the the the x";
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    struct tokenizer *t = open_with(TINY, true, true, true);
    char *two = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(two, MAP_FAILED);
    assert_int_equal(mprotect(two + page, page, PROT_NONE), 0);
    char *start = two + page - (sizeof text - 1);
    memcpy(start, text, sizeof text - 1);
    assert_string_equal(pieces(t, start, 1 << 20, 5), "[CLS] the the the [SEP] ...");
    munmap(two, 2 * page);
    tokenizer_close(t);
}

static char *repeated(const char *unit, size_t times)
{
    struct buffer out = {0};
    for (size_t i = 0; i < times; i++) {
        buffer_string(&out, unit);
    }
    return out.data;
}

/* The unit that many times over is one word: so many pieces, or [UNK] where they are 0. */
static void assert_word(const struct tokenizer *t, const char *unit, size_t times, size_t pieces_expected)
{
    char *text = repeated(unit, times);
    int32_t ids[300];
    size_t count = tokenizer_encode(t, text, strlen(text), ids, 300, NULL);
    assert_int_equal(count, pieces_expected == 0 ? 3 : pieces_expected + 2);
    assert_int_equal(ids[1] == tokenizer_piece_id(t, "[UNK]", 5), pieces_expected == 0);
    free(text);
}

static void test_long_words(void **state)
{
    (void)state;
    struct tokenizer *t = open_with(TINY, true, true, true);
    assert_word(t, "b", 100, 100);
    assert_word(t, "b", 101, 0);
    assert_word(t, "b", 1000000, 0);
    assert_word(t, "b\xCC\x81", 100, 100); /* what is stripped does not count */
    assert_word(t, "b\xCC\x81", 101, 0);
    assert_word(t, "\xF0\x9D\x85\xA5", 250000, 0);                 /* U+1D165: a mark that is kept and sorted */
    assert_word(t, "\xF0\x9D\x85\xAD\xF0\x9D\x85\xA5", 125000, 0); /* and two of falling classes */
    assert_pieces(t, "\xCC\x81\xCC\x81\xCC\x81", 48, "[CLS] [SEP]");
    tokenizer_close(t);
}

/* The ids are full while a run of marks as long as a word may be still waits: the window must take no more of it. */
static void test_full_before_marks(void **state)
{
    (void)state;
    const struct slice vocabulary[] = {slice_of("[UNK]"), slice_of("[CLS]"), slice_of("[SEP]"), slice_of("a")};
    char *longest = repeated("q", ADDED_BYTES_MAX), *before = repeated("d", ADDED_BYTES_MAX - 6);
    char *marks = repeated("\xF0\x9D\x85\xA5", WORD_CHARS_MAX + 1); /* U+1D165, which is kept */
    const struct added_token added = {.text = slice_of(longest), .id = 4, .normalized = true};
    const struct tokenizer_settings settings = {.pieces = vocabulary,
                                                .piece_count = 4,
                                                .added = &added,
                                                .added_count = 1,
                                                .lower_case = true,
                                                .strip_accents = true,
                                                .continuing = slice_of(CONTINUING),
                                                .word_chars_max = WORD_CHARS_MAX};
    struct tokenizer *t = NULL;
    struct buffer text = {0};
    assert_int_equal(tokenizer_open(&t, &settings, NULL), 0);
    buffer_format(&text, "a b%s%se", before, marks);
    assert_string_equal(pieces(t, text.data, text.bytes, 3), "[CLS] a [SEP] ...");
    buffer_free(&text);
    tokenizer_close(t);
    free(longest);
    free(before);
    free(marks);
}

static void test_vocabulary(void **state)
{
    (void)state;
    static const char text[] =
        "\xEF\xBB\xBF[PAD]\r\n[UNK]\r\n[CLS]\n\n[SEP]\nb\nb\n##c"; /* BOM, CRLF, an empty piece, a repeated one */
    struct tokenizer *t = open_with(write_vocab(text, sizeof text - 1), true, true, true);
    static const char expected[] = "[PAD]\n[UNK]\n[CLS]\n\n[SEP]\nb\nb\n##c\n";
    struct slice vocabulary = tokenizer_vocabulary(t);
    assert_int_equal(tokenizer_ids_end(t), 8);
    assert_int_equal(vocabulary.bytes, sizeof expected - 1);
    assert_memory_equal(vocabulary.data, expected, sizeof expected - 1);
    assert_int_equal(tokenizer_piece_id(t, "[PAD]", 5), 0);
    assert_int_equal(tokenizer_piece_id(t, "b", 1), 6);
    assert_int_equal(tokenizer_piece_id(t, "##c", 3), 7);
    assert_int_equal(tokenizer_piece_id(t, "##", 2), -1);
    assert_int_equal(tokenizer_piece_id(t, "zzz", 3), -1);
    assert_int_equal(tokenizer_piece_id(t, "", 0), -1);
    assert_pieces(t, "bc", 8, "[CLS] b ##c [SEP]");
    tokenizer_close(t);
}

/* Refused in one line that says `named`. */
static void assert_refused(const char *vocabulary, const struct added_token *added, const char *named)
{
    struct tokenizer *t = NULL;
    struct error e = {0};
    const struct tokenizer_settings settings = {
        .lower_case = true, .strip_accents = true, .added = added, .added_count = added ? 1 : 0};
    assert_int_equal(open_file(&t, write_vocab(vocabulary, strlen(vocabulary)), settings, &e), -1);
    assert_null(t);
    assert_int_equal(e.kind, ERROR_FATAL);
    assert_int_equal(e.code, E_MODEL);
    if (!strstr(e.text, named) || strchr(e.text, '\n')) {
        fail_msg("says %s, and not %s", e.text, named);
    }
}

static void test_refused(void **state)
{
    (void)state;
    char *long_text = repeated("x", ADDED_BYTES_MAX + 1);
    static const char good[] = "[UNK]\n[CLS]\n[SEP]\n";
    assert_refused("", NULL, "[UNK]");
    assert_refused("[CLS]\n[SEP]\na\n", NULL, "[UNK]");
    assert_refused("[UNK]\n[SEP]\na\n", NULL, "[CLS]");
    assert_refused("[UNK]\n[CLS]\na\n", NULL, "[SEP]");
    const struct {
        const char *text, *named;
        bool normalized;
    } added[] = {
        {"", "0 bytes", false},           {long_text, "257 bytes", false},
        {" x", "blank", false},           {"x\xE3\x80\x80", "blank", true},
        {"\xCC\x81", "is nothing", true}, {"a\xF0\x9D\x85\xA5", "combining mark", true},
    };
    for (size_t i = 0; i < sizeof added / sizeof *added; i++) {
        const struct added_token token = {.text = slice_of(added[i].text), .id = 3, .normalized = added[i].normalized};
        assert_refused(good, &token, added[i].named);
    }
    free(long_text);
}

/* As Python's str.lower() has it: a capital sigma looks past what is not cased to what is before and after it. */
static void test_text_lower(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"", ""},
        {"Cats & DOGS [SEP] 1", "cats & dogs [sep] 1"},
        {"\u0130ZM\u0130R \u00C9\u1E9E", "i\u0307zmi\u0307r \u00E9\u00DF"},
        {"\u03A3", "\u03C3"},
        {"\u039F\u03A3 \u03A3\u039F", "\u03BF\u03C2 \u03C3\u03BF"},
        {"\u039F\u03A3\u039F", "\u03BF\u03C3\u03BF"},
        {"\u039F\u03A3\u03A3", "\u03BF\u03C3\u03C2"},
        {"\u039F\u0301.\u03A3\u2019\u00AD", "\u03BF\u0301.\u03C2\u2019\u00AD"},
        {"\u039F'\u03A3'\u0301\u039F", "\u03BF'\u03C3'\u0301\u03BF"},
        {"1\u03A3", "1\u03C3"},
        {"a1\u03A3", "a1\u03C3"},
        {"a\u03A31b", "a\u03C21b"},
        {"\u00AA\u03A3\u2160", "\u00AA\u03C3\u2170"},
        {"\u02B0\u03A3", "\u02B0\u03C3"},
        {"A\xFF\u03A3", "a\xFF\u03C3"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct buffer lower = {0};
        text_lower(slice_of(cases[i][0]), &lower);
        buffer_byte(&lower, '\0');
        assert_string_equal(lower.data, cases[i][1]);
        buffer_free(&lower);
    }
}

static int setup(void **state)
{
    (void)state;
    return mkdtemp(folder) == NULL ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    char path[128];
    snprintf(path, sizeof path, "%s/vocab.txt", folder);
    unlink(path);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_code_point), cmocka_unit_test(test_tiny_golden),
        cmocka_unit_test(test_pieces),           cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_truncation),       cmocka_unit_test(test_stops_when_full),
        cmocka_unit_test(test_long_words),       cmocka_unit_test(test_full_before_marks),
        cmocka_unit_test(test_vocabulary),       cmocka_unit_test(test_refused),
        cmocka_unit_test(test_text_lower),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
