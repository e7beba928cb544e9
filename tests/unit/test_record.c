/* record: what is taken and what is poison, in both formats and alike; names, counts, sizes and depth at their limits;
 * predictions in both formats. Hostile and random input: test_record_hostile.c. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <msgpack.h>

#include "base/utf8.h"
#include "tests/unit/record_decoded.h"

/* ---- tables ----------------------------------------------------------------------------------------------------- */

struct poison {
    enum kind kind;
    const char *key; /* NULL: none */
    struct slice value;
    enum error_code code;
    const char *words;
};

static const struct poison poison_json[] = {
    {TEXT, NULL, SLICE(""), E_FORMAT, "empty value"},
    {TEXT, NULL, SLICE(" "), E_FORMAT, "premature EOF"},
    {TEXT, NULL, SLICE("null"), E_FORMAT, "must be a map, not null"},
    {TEXT, NULL, SLICE("[]"), E_FORMAT, "must be a map, not an array"},
    {TEXT, NULL, SLICE("\"text\""), E_FORMAT, "must be a map, not a string"},
    {TEXT, NULL, SLICE("plain words"), E_FORMAT, "not JSON"},
    {TEXT, NULL, SLICE("{\"text\":\"a\""), E_FORMAT, "premature EOF"},
    {TEXT, NULL, SLICE("{\"text\":\"a\"}x"), E_FORMAT, "trailing"},
    {TEXT, NULL, SLICE("{\"text\":\"a\"}\0"), E_FORMAT, "trailing"},
    {TEXT, NULL, SLICE("{\"text\":\"a\"}{}"), E_FORMAT, "trailing"},
    {TEXT, NULL, SLICE("\0{\"text\":\"a\"}"), E_SCHEMA_FRAME, "schema id 2065855589"},
    {TEXT, NULL, SLICE("\0\0\0\0\7{}"), E_SCHEMA_FRAME, "schema registry's frame (schema id 7)"},
    {TEXT, NULL, SLICE("\0"), E_SCHEMA_FRAME, "first byte 0x00"},
    {TEXT, NULL, SLICE("\xef\xbb\xbf{\"text\":\"a\"}"), E_FORMAT, "byte order mark"},
    {TEXT, NULL, SLICE("{}"), E_FIELD, "field \"text\" is missing"},
    {TEXT, NULL, SLICE("{\"text\":null}"), E_FIELD, "\"text\" must be a string, not null"},
    {TEXT, NULL, SLICE("{\"text\":1}"), E_FIELD, "\"text\" must be a string, not a number"},
    {TEXT, NULL, SLICE("{\"text\":[\"a\"]}"), E_FIELD, "\"text\" must be a string, not an array"},
    {TEXT, NULL, SLICE("{\"text\":\"a\",\"text\":true}"), E_FIELD, "\"text\" must be a string, not a boolean"},
    {TEXT, NULL, SLICE("{\"Text\":\"a\"}"), E_FIELD, "field \"text\" is missing"},
    {TEXT, NULL, SLICE("{\"text\":\"a\\u0000b\"}"), E_NUL, "\"text\" has a NUL character at byte 1"},
    {TEXT, NULL, SLICE("{\"text\":\"\\ud800\"}"), E_UTF8, "lone surrogate"},
    {TEXT, NULL, SLICE("{\"text\":\"a\",\"x\":\"\\udc00\"}"), E_UTF8, "lone surrogate"},
    {TEXT, NULL, SLICE("{\"text\":\"\xff\"}"), E_UTF8, "invalid UTF-8 at byte 9"},
    {TEXT, NULL, SLICE("{\"text\":\"a\",\"id\":5}"), E_FIELD, "\"id\" must be a string, not a number"},
    {TEXT, "k", SLICE("{\"text\":\"a\",\"id\":\"\"}"), E_FIELD, "\"id\" is empty"},
    {TEXT, "k", SLICE("{\"text\":\"a\",\"id\":\"\\u0000\"}"), E_NUL, "\"id\" has a NUL"},
    {INSTANCE, "k", SLICE("{\"text\":\"a\"}"), E_FIELD, "field \"labels\" is missing"},
    {INSTANCE, "k", SLICE("{\"text\":\"a\",\"labels\":null}"), E_FIELD, "\"labels\" must be an array, not null"},
    {INSTANCE, "k", SLICE("{\"text\":\"a\",\"labels\":\"b\"}"), E_FIELD, "\"labels\" must be an array, not a string"},
    {INSTANCE, "k", SLICE("{\"text\":\"a\",\"labels\":[\"b\",1]}"), E_FIELD,
     "labels[1] must be a string, not a number"},
    {INSTANCE, "k", SLICE("{\"text\":\"a\",\"labels\":[\"b\",null]}"), E_FIELD, "labels[1] must be a string, not null"},
    {INSTANCE, "k", SLICE("{\"text\":\"a\",\"labels\":[\"b\",\"\"]}"), E_FIELD, "labels[1] is empty"},
    {INSTANCE, "k", SLICE("{\"text\":\"a\",\"labels\":[\"\\u0000\"]}"), E_NUL, "labels[0] has a NUL"},
    {INSTANCE, "k", SLICE("{\"labels\":[\"b\"]}"), E_FIELD, "field \"text\" is missing"},
    {INSTANCE, "k", SLICE("{\"id\":\"j\",\"text\":\"a\",\"labels\":[]}"), E_KEY,
     "\"id\" is \"j\" but the record key is \"k\""},
    {INSTANCE, NULL, SLICE("{\"id\":\"j\",\"text\":\"a\",\"labels\":[]}"), E_KEY, "the record key is missing"},
    {INSTANCE, "", SLICE("{\"text\":\"a\",\"labels\":[]}"), E_KEY, "the record key is empty"},
    {INSTANCE, "\xff", SLICE("{\"text\":\"a\",\"labels\":[]}"), E_KEY, "the record key is not UTF-8"},
    {INSTANCE, NULL, SLICE(""), E_KEY, "the record key is missing"},
    {LABEL, NULL, SLICE("{\"label\":\"j\",\"text\":\"a\"}"), E_KEY, "the record key is missing"},
    {LABEL, "k", SLICE("{\"label\":\"j\",\"text\":\"a\"}"), E_KEY, "\"label\" is \"j\" but the record key is \"k\""},
    {LABEL, "k", SLICE("{\"label\":[],\"text\":\"a\"}"), E_FIELD, "\"label\" must be a string, not an array"},
    {LABEL, "k", SLICE("{\"label\":\"k\"}"), E_FIELD, "field \"text\" is missing"},
};

static const struct poison poison_msgpack[] = {
    {TEXT, NULL, SLICE("\x80"), E_FIELD, "field \"text\" is missing"},
    {TEXT, NULL, SLICE("\x81\xa4text\xc0"), E_FIELD, "\"text\" must be a string, not null"},
    {TEXT, NULL, SLICE("\x81\xa4text\x01"), E_FIELD, "\"text\" must be a string, not a number"},
    {TEXT, NULL, SLICE("\x81\xa4text\xca\x7f\xc0\0\0"), E_FIELD, "\"text\" must be a string, not a number"},
    {TEXT, NULL,
     SLICE("\x81\xa4text\x91\xa1"
           "a"),
     E_FIELD, "\"text\" must be a string, not an array"},
    {TEXT, NULL, SLICE("\x81\xa4text\xd4\x01\x02"), E_FIELD, "\"text\" must be a string, not an extension"},
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a\xa4text\xc3"),
     E_FIELD, "\"text\" must be a string, not a boolean"},
    {TEXT, NULL,
     SLICE("\x81\xc4\x04text\xa1"
           "a"),
     E_FIELD, "field \"text\" is missing"}, /* a key that is no str */
    {TEXT, NULL,
     SLICE("\x81\xa4text\xa3"
           "a\0b"),
     E_NUL, "NUL character at byte 1"},
    {TEXT, NULL, SLICE("\x81\xa4text\xa1\xff"), E_UTF8, "invalid UTF-8 in the str at byte 6"},
    {TEXT, NULL, SLICE("\x81\xa4text\xa3\xed\xa0\x80"), E_UTF8, "invalid UTF-8"},
    {TEXT, NULL, SLICE("\x81\xa4text\xc4\x01\xff"), E_UTF8, "is binary and not UTF-8"},
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a\xa1x\xa1\xff"),
     E_UTF8, "invalid UTF-8"},
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a\xa8metadata\xa1\xff"),
     E_UTF8, "invalid UTF-8"},
    {TEXT, NULL,
     SLICE("\x81\xa4text\xa1"
           "ax"),
     E_FORMAT, "1 trailing bytes after the map at byte 8"},
    {TEXT, NULL, SLICE("\x80\x80"), E_FORMAT, "trailing"},
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a\xa1x\xc1"),
     E_FORMAT, "0xc1"},
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a\xa1x"),
     E_FORMAT, "cut short"}, /* an odd number of values */
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a"),
     E_FORMAT, "cut short"},
    {TEXT, NULL, SLICE("\x81\xa4te"), E_FORMAT, "cut short"},
    {TEXT, NULL,
     SLICE("\x81\xa4text\xa5"
           "ab"),
     E_FORMAT, "cut short"},
    {TEXT, NULL, SLICE("\xde"), E_FORMAT, "cut short"},
    {TEXT, NULL, SLICE("\xdf\xff\xff\xff\xff"), E_FORMAT, "counts 4294967295, but 0 bytes remain"},
    {TEXT, NULL,
     SLICE("\xde\xff\xff\xa4text\xa1"
           "a"),
     E_FORMAT, "counts 65535, but 7 bytes remain"},
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a\xa1x\xdd\xff\xff\xff\xff"),
     E_FORMAT, "counts 4294967295, but 0 bytes remain"},
    {INSTANCE, "k",
     SLICE("\x82\xa4text\xa1"
           "a\xa6labels\xdd\xff\xff\xff\xff"),
     E_FORMAT, "counts 4294967295, but 0 bytes remain"},
    {TEXT, NULL,
     SLICE("\x81\xa4text\xdb\xff\xff\xff\xff"
           "a"),
     E_FORMAT, "cut short"},
    {TEXT, NULL,
     SLICE("\x81\xa4text\xc6\xff\xff\xff\xff"
           "a"),
     E_FORMAT, "cut short"},
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a\xa1x\xc9\xff\xff\xff\xff\x01"),
     E_FORMAT, "cut short"},
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a\xa1x\xcf\0\0\0\0\0\0\0"),
     E_FORMAT, "cut short"},
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a\xa2id\x05"),
     E_FIELD, "\"id\" must be a string, not a number"},
    {TEXT, NULL,
     SLICE("\x82\xa4text\xa1"
           "a\xa2id\xc4\x01x"),
     E_FIELD, "\"id\" must be a string, not binary"},
    {TEXT, "k",
     SLICE("\x82\xa4text\xa1"
           "a\xa2id\xa0"),
     E_FIELD, "\"id\" is empty"},
    {TEXT, "k",
     SLICE("\x82\xa4text\xa1"
           "a\xa2id\xa1\0"),
     E_NUL, "\"id\" has a NUL"},
    {TEXT, NULL, SLICE("\x93\x01\x02\x03"), E_FORMAT, "first byte 0x93"},
    {TEXT, NULL,
     SLICE("\xa1"
           "a"),
     E_FORMAT, "first byte 0xa1"},
    {TEXT, NULL, SLICE("\xc0"), E_FORMAT, "first byte 0xc0"},
    {INSTANCE, "k",
     SLICE("\x81\xa4text\xa1"
           "a"),
     E_FIELD, "field \"labels\" is missing"},
    {INSTANCE, "k",
     SLICE("\x82\xa4text\xa1"
           "a\xa6labels\xc0"),
     E_FIELD, "\"labels\" must be an array, not null"},
    {INSTANCE, "k",
     SLICE("\x82\xa4text\xa1"
           "a\xa6labels\x92\xa1"
           "b\x07"),
     E_FIELD, "labels[1] must be a string, not a number"},
    {INSTANCE, "k",
     SLICE("\x82\xa4text\xa1"
           "a\xa6labels\x91\xa0"),
     E_FIELD, "labels[0] is empty"},
    {INSTANCE, "k",
     SLICE("\x83\xa2id\xa1j\xa4text\xa1"
           "a\xa6labels\x90"),
     E_KEY, "\"id\" is \"j\" but the record key is \"k\""},
    {INSTANCE, NULL,
     SLICE("\x83\xa2id\xa1j\xa4text\xa1"
           "a\xa6labels\x90"),
     E_KEY, "the record key is missing"},
    {LABEL, "k",
     SLICE("\x82\xa5label\xa1j\xa4text\xa1"
           "a"),
     E_KEY, "\"label\" is \"j\" but the record key is \"k\""},
};

static void assert_all_poison(const char *table, const struct poison *cases, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        char what[40];
        snprintf(what, sizeof what, "%s %zu", table, i);
        assert_poison(what, cases[i].kind, slice_of(cases[i].key), cases[i].value, cases[i].code, cases[i].words);
    }
}

static void test_poison_json(void **state)
{
    (void)state;
    assert_all_poison("JSON", poison_json, sizeof poison_json / sizeof *poison_json);
}

static void test_poison_msgpack(void **state)
{
    (void)state;
    assert_all_poison("MessagePack", poison_msgpack, sizeof poison_msgpack / sizeof *poison_msgpack);
}

/* ---- limits ----------------------------------------------------------------------------------------------------- */

/* The instance in either format, with the faults of names and counts that both can hold. */
static void encode_instance(const char *id, struct slice text, const struct slice *labels, size_t count,
                            enum record_format format, struct buffer *out)
{
    struct instance_record r = {.id = slice_of(id), .text = text, .labels_count = count};
    r.labels = (struct slice *)(uintptr_t)labels;
    buffer_clear(out);
    record_encode_instance(&r, format, out);
}

static void test_names(void **state)
{
    (void)state;
    char name[257];
    memset(name, 'n', sizeof name);
    name[253] = '\xc3'; /* 255 bytes that end in a character of two */
    name[254] = '\xa9';
    struct buffer value = {0};
    struct decoded d;
    for (int format = FORMAT_JSON; format <= FORMAT_MSGPACK; format++) {
        struct slice longest = {name, 255};
        struct slice too_long = {name, 256};
        encode_instance(NULL, SLICE("t"), &longest, 1, (enum record_format)format, &value);
        assert_int_equal(decode(INSTANCE, longest, whole(&value), &d, NULL), 0);
        assert_slice(d.instance.id, longest);
        assert_slice(d.instance.labels[0], longest);
        arena_free(&d.arena);
        assert_poison("key of 256", INSTANCE, too_long, whole(&value), E_KEY, "the record key is over 255 bytes long");
        assert_poison("key with NUL", INSTANCE, SLICE("a\0"), whole(&value), E_KEY, "the record key has a NUL");
        encode_instance(NULL, SLICE("t"), &too_long, 1, (enum record_format)format, &value);
        assert_poison("label of 256", INSTANCE, longest, whole(&value), E_LIMIT, "labels[0] is over 255 bytes long");

        buffer_clear(&value);
        struct label_record label = {.label = too_long, .text = SLICE("t")};
        record_encode_label(&label, (enum record_format)format, &value);
        assert_poison("own name of 256", LABEL, SLICE("k"), whole(&value), E_LIMIT, "\"label\" is over 255 bytes long");
        /* Of a text, only an id of its own has the limits of a name: the key may be anything. */
        buffer_clear(&value);
        struct text_record text = {.text = SLICE("t")};
        record_encode_text(&text, (enum record_format)format, &value);
        assert_int_equal(decode(TEXT, too_long, whole(&value), &d, NULL), 0);
        assert_slice(d.text.id, too_long);
        arena_free(&d.arena);
        assert_int_equal(decode(TEXT, SLICE("\xff"), whole(&value), &d, NULL), 0);
        assert_null(d.text.id.data);
        arena_free(&d.arena);
        assert_int_equal(decode(TEXT, NO_KEY, whole(&value), &d, NULL), 0);
        assert_null(d.text.id.data);
        arena_free(&d.arena);
    }
    buffer_free(&value);

    struct error e;
    assert_int_equal(record_check_name(SLICE("a"), "--id", &e), 0);
    assert_int_equal(record_check_name(SLICE(""), "--id", &e), -1);
    assert_string_equal(e.text, "--id is empty");
    assert_int_equal(e.code, E_KEY);
}

static void test_label_count(void **state)
{
    (void)state;
    struct slice labels[RECORD_LABELS_MAX + 1];
    char names[RECORD_LABELS_MAX + 1][8];
    for (size_t i = 0; i <= RECORD_LABELS_MAX; i++) {
        snprintf(names[i], sizeof *names, "%zu", i);
        labels[i] = slice_of(names[i]);
    }
    struct buffer value = {0};
    struct decoded d;
    for (int format = FORMAT_JSON; format <= FORMAT_MSGPACK; format++) {
        encode_instance(NULL, SLICE("t"), labels, RECORD_LABELS_MAX, (enum record_format)format, &value);
        assert_int_equal(decode(INSTANCE, SLICE("k"), whole(&value), &d, NULL), 0);
        assert_int_equal(d.instance.labels_count, RECORD_LABELS_MAX);
        for (size_t i = 1; i < RECORD_LABELS_MAX; i++) {
            assert_true(slice_compare(d.instance.labels[i - 1], d.instance.labels[i]) < 0);
        }
        arena_free(&d.arena);
        encode_instance(NULL, SLICE("t"), labels, RECORD_LABELS_MAX + 1, (enum record_format)format, &value);
        assert_poison("1,001 labels", INSTANCE, SLICE("k"), whole(&value), E_LIMIT, "1001 labels are listed");
    }
    /* Counted as listed: 1,001 times the same name is too many. */
    for (size_t i = 0; i <= RECORD_LABELS_MAX; i++) {
        labels[i] = SLICE("same");
    }
    encode_instance(NULL, SLICE("t"), labels, RECORD_LABELS_MAX + 1, FORMAT_JSON, &value);
    assert_poison("1,001 times one label", INSTANCE, SLICE("k"), whole(&value), E_LIMIT, "1001 labels");
    buffer_free(&value);
}

static void test_sizes(void **state)
{
    (void)state;
    struct buffer value = {0};
    struct decoded d;
    for (int format = FORMAT_JSON; format <= FORMAT_MSGPACK; format++) {
        size_t overhead = format == FORMAT_JSON ? strlen("{\"text\":\"\"}") : 1 + 5 + 5;
        char *letters = mem_alloc(RECORD_BYTES_MAX);
        memset(letters, 'x', RECORD_BYTES_MAX);
        for (size_t over = 0; over < 2; over++) {
            struct text_record r = {.text = {letters, RECORD_BYTES_MAX - overhead + over}};
            buffer_clear(&value);
            record_encode_text(&r, (enum record_format)format, &value);
            assert_int_equal(value.bytes, RECORD_BYTES_MAX + over);
            if (over) {
                assert_poison("1 MiB and a byte", TEXT, NO_KEY, whole(&value), E_LIMIT,
                              "1048577 bytes, over the limit");
                continue;
            }
            assert_int_equal(decode(TEXT, NO_KEY, whole(&value), &d, NULL), 0);
            assert_int_equal(d.text.text.bytes, RECORD_TEXT_BYTES_MAX);
            assert_true(d.text.cut);
            arena_free(&d.arena);
        }
        free(letters);
    }
    /* The cut falls at a character's end, whatever the character. */
    static const char *const characters[] = {"x", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80"};
    for (size_t i = 0; i < 4; i++) {
        for (size_t shift = 0; shift < 5; shift++) {
            struct buffer text = {0};
            buffer_append(&text, "aaaa", shift);
            while (text.bytes <= RECORD_TEXT_BYTES_MAX) {
                buffer_string(&text, characters[i]);
            }
            buffer_clear(&value);
            struct label_record r = {.text = whole(&text)};
            record_encode_label(&r, i % 2 ? FORMAT_JSON : FORMAT_MSGPACK, &value);
            assert_int_equal(decode(LABEL, SLICE("k"), whole(&value), &d, NULL), 0);
            size_t kept = d.label.text.bytes;
            assert_true(kept <= RECORD_TEXT_BYTES_MAX && kept > RECORD_TEXT_BYTES_MAX - strlen(characters[i]));
            assert_true(utf8_valid(d.label.text.data, kept));
            assert_memory_equal(d.label.text.data, text.data, kept);
            arena_free(&d.arena);
            buffer_free(&text);
        }
    }
    /* Exactly 64 KiB is no cut; a NUL behind the cut is poison all the same. */
    char *exact = mem_alloc(RECORD_TEXT_BYTES_MAX + 1);
    memset(exact, 'x', RECORD_TEXT_BYTES_MAX);
    exact[RECORD_TEXT_BYTES_MAX] = '\0';
    for (size_t over = 0; over < 2; over++) {
        struct text_record r = {.text = {exact, RECORD_TEXT_BYTES_MAX + over}};
        buffer_clear(&value);
        record_encode_text(&r, FORMAT_MSGPACK, &value);
        if (over) {
            assert_poison("NUL behind the cut", TEXT, NO_KEY, whole(&value), E_NUL, "at byte 65536");
        } else {
            assert_int_equal(decode(TEXT, NO_KEY, whole(&value), &d, NULL), 0);
            assert_false(d.text.cut);
            arena_free(&d.arena);
        }
    }
    free(exact);
    buffer_free(&value);
}

static void test_depth(void **state)
{
    (void)state;
    struct decoded d;
    /* The record's map is level 1: 15 more are allowed, whether anybody reads the field or not, also in a map's key. */
    for (unsigned inner = 14; inner <= 17; inner++) {
        for (int unread = 0; unread < 2; unread++) {
            struct buffer json = {0};
            struct buffer packed = {0};
            buffer_string(&json, unread ? "{\"text\":\"a\",\"x\":" : "{\"text\":\"a\",\"metadata\":");
            buffer_string(&packed, unread ? "\x82\xa4text\xa1"
                                            "a\xa1x"
                                          : "\x82\xa4text\xa1"
                                            "a\xa8metadata");
            for (unsigned i = 0; i < inner; i++) {
                buffer_byte(&json, '[');
                buffer_byte(&packed, i + 1 < inner ? '\x91' : '\x90');
            }
            for (unsigned i = 0; i < inner; i++) {
                buffer_byte(&json, ']');
            }
            buffer_byte(&json, '}');
            if (inner <= 15) {
                assert_int_equal(decode(TEXT, NO_KEY, whole(&json), &d, NULL), 0);
                arena_free(&d.arena);
                assert_int_equal(decode(TEXT, NO_KEY, whole(&packed), &d, NULL), 0);
                arena_free(&d.arena);
            } else {
                assert_poison("deep JSON", TEXT, NO_KEY, whole(&json), E_FORMAT, "nested deeper than 16");
                assert_poison("deep MessagePack", TEXT, NO_KEY, whole(&packed), E_FORMAT, "nested deeper than 16");
            }
            buffer_free(&json);
            buffer_free(&packed);
        }
    }
    struct buffer key = {0};
    buffer_string(&key, "\x81");
    for (int i = 0; i < 16; i++) {
        buffer_string(&key, "\x91");
    }
    buffer_string(&key, "\x01\x01");
    assert_poison("deep key", TEXT, NO_KEY, whole(&key), E_FORMAT, "nested deeper than 16");
    buffer_free(&key);
}

/* ---- what is taken ---------------------------------------------------------------------------------------------- */

static void assert_text(struct slice key, struct slice value, const char *id, struct slice text, const char *metadata)
{
    struct decoded d;
    struct error e = {0};
    if (decode(TEXT, key, value, &d, &e) != 0) {
        fail_msg("%s: %s", value.data, e.text);
    }
    assert_true((d.text.id.data != NULL) == (id != NULL));
    assert_slice(d.text.id, slice_of(id));
    assert_slice(d.text.text, text);
    assert_slice(d.text.metadata, slice_of(metadata));
    assert_false(d.text.cut);
    assert_int_equal(d.text.format, (unsigned char)value.data[0] < 0x80 ? FORMAT_JSON : FORMAT_MSGPACK);
    arena_free(&d.arena);
}

static void test_texts(void **state)
{
    (void)state;
    assert_text(NO_KEY, SLICE("{\"text\":\"\"}"), NULL, SLICE(""), NULL);
    assert_text(SLICE("k"), SLICE(" {\"text\":\"a\"}\n"), "k", SLICE("a"), NULL);
    assert_text(SLICE("k"), SLICE("{\"id\":\"i\",\"text\":\"a\"}"), "i", SLICE("a"), NULL);
    assert_text(SLICE("k"), SLICE("{\"id\":null,\"text\":\"a\",\"metadata\":null}"), "k", SLICE("a"), NULL);
    assert_text(SLICE("k"), SLICE("{\"id\":\"i\",\"id\":null,\"text\":1,\"text\":\"a\"}"), "k", SLICE("a"), NULL);
    assert_text(SLICE("\xff"), SLICE("{\"text\":\"a\"}"), NULL, SLICE("a"), NULL);
    assert_text(SLICE(""), SLICE("{\"text\":\"a\"}"), "", SLICE("a"), NULL);
    assert_text(NO_KEY, SLICE("{\"labels\":5,\"label\":{},\"text\":\"\\u00e9\",\"x\":[{\"text\":1}]}"), NULL,
                SLICE("\xc3\xa9"), NULL);
    assert_text(NO_KEY,
                SLICE("{\"metadata\": { \"a\" : [18446744073709551615, 1e400, -0, 1.0, 1E+2],\n\"s\":\"\\u0000\\/\"},"
                      "\"text\":\"a\"}"),
                NULL, SLICE("a"), "{\"a\":[18446744073709551615,1e400,-0,1.0,1E+2],\"s\":\"\\u0000/\"}");
    assert_text(NO_KEY, SLICE("{\"metadata\":7,\"text\":\"a\"}"), NULL, SLICE("a"), "7");
    assert_text(NO_KEY, SLICE("{\"metadata\":{\"a\":1,\"a\":2},\"text\":\"a\"}"), NULL, SLICE("a"),
                "{\"a\":1,\"a\":2}");

    assert_text(SLICE("k"),
                SLICE("\x81\xa4text\xa1"
                      "a"),
                "k", SLICE("a"), NULL);
    assert_text(SLICE("k"), SLICE("\x81\xa4text\xa0"), "k", SLICE(""), NULL);
    assert_text(SLICE("k"), SLICE("\x81\xa4text\xc4\x00"), "k", SLICE(""), NULL);
    assert_text(SLICE("k"), SLICE("\x81\xa4text\xc4\x03\xe2\x82\xac"), "k", SLICE("\xe2\x82\xac"), NULL);
    assert_text(SLICE("k"),
                SLICE("\xde\x00\x01\xd9\x04text\xda\x00\x01"
                      "a"),
                "k", SLICE("a"), NULL);
    assert_text(SLICE("k"),
                SLICE("\xdf\x00\x00\x00\x02\xdb\x00\x00\x00\x04text\xdb\x00\x00\x00\x01"
                      "a\xa2id\xc0"),
                "k", SLICE("a"), NULL);
    assert_text(SLICE("k"),
                SLICE("\x83\xa4text\x01\xa2id\xa1i\xa4text\xa1"
                      "a"),
                "i", SLICE("a"), NULL);
    /* Keys of every type, extensions, NaN: nobody reads them. */
    assert_text(
        NO_KEY,
        SLICE("\x87\x05\x06\xc0\xc0\x91\x01\xd4\x01\x02\xc4\x04text\xa1y\xca\x7f\xc0\x00\x00\xcb\x7f\xf0\x00\x00"
              "\x00\x00\x00\x00\xa1x\xc7\x01\x05\xff\xa4text\xa1"
              "a"),
        NULL, SLICE("a"), NULL);
}

/* Metadata byte by byte, not in its shortest form; with an extension and a NaN. */
static void test_msgpack_metadata(void **state)
{
    (void)state;
    struct decoded d;
    assert_int_equal(decode(TEXT, NO_KEY,
                            SLICE("\x82\xa8metadata\x93\xd3\x00\x00\x00\x00\x00\x00\x00\x01\xd6\xff\x01\x02\x03\x04"
                                  "\xca\x7f\xc0\x01\x01\xa4text\xa1"
                                  "a"),
                            &d, NULL),
                     0);
    struct slice metadata =
        SLICE("\x93\xd3\x00\x00\x00\x00\x00\x00\x00\x01\xd6\xff\x01\x02\x03\x04\xca\x7f\xc0\x01\x01");
    assert_slice(d.text.metadata, metadata);
    struct prediction p = {.model_version = "0"};
    struct buffer out = {0};
    record_encode_prediction(&p, &d.text, NULL, false, &out);
    char *end = out.data + out.bytes - metadata.bytes; /* the last field: there is no source */
    assert_memory_equal(end, metadata.data, metadata.bytes);
    assert_memory_equal(end - 9, "\xa8metadata", 9);
    buffer_free(&out);
    /* It cannot be said in JSON: left out there. */
    record_encode_text(&d.text, FORMAT_JSON, &out);
    assert_string_equal(out.data, "{\"text\":\"a\"}");
    buffer_free(&out);
    arena_free(&d.arena);
}

static void test_instances(void **state)
{
    (void)state;
    static const char json[] =
        "{\"labels\":[\"b\",\"a\",\"b\",\"\xc3\xa9\",\"B\",\"ab\",\"a\"],\"text\":\"t\",\"id\":\"k\"}";
    static const char packed[] = "\x83\xa6labels\x97\xa1"
                                 "b\xa1"
                                 "a\xa1"
                                 "b\xa2\xc3\xa9\xa1"
                                 "B\xa2"
                                 "ab\xa1"
                                 "a\xa4text\xa1t\xa2id\xa1k";
    static const char *const expected[] = {"B", "a", "ab", "b", "\xc3\xa9"};
    for (int i = 0; i < 4; i++) {
        struct slice value = i < 2 ? SLICE(json) : SLICE(packed);
        struct decoded d = {0};
        struct error e = {0};
        int result = i % 2 ? record_instance_from_value(value, &d.arena, &d.instance, &e)
                           : decode(INSTANCE, SLICE("k"), value, &d, &e);
        assert_int_equal(result, 0);
        assert_slice(d.instance.id, SLICE("k"));
        assert_slice(d.instance.text, SLICE("t"));
        assert_int_equal(d.instance.labels_count, 5);
        for (size_t l = 0; l < 5; l++) {
            assert_slice(d.instance.labels[l], slice_of(expected[l]));
        }
        arena_free(&d.arena);
    }
    struct decoded d;
    assert_int_equal(decode(INSTANCE, SLICE("k"), SLICE("{\"text\":\"t\",\"labels\":[],\"metadata\":1}"), &d, NULL), 0);
    assert_int_equal(d.instance.labels_count, 0);
    arena_free(&d.arena);
}

static void test_from_value(void **state)
{
    (void)state;
    struct arena arena = {0};
    struct instance_record instance;
    struct label_record label;
    struct error e;
    assert_int_equal(record_label_from_value(SLICE("{\"label\": \"l\", \"text\": \"t\"}"), &arena, &label, &e), 0);
    assert_slice(label.label, SLICE("l"));
    assert_slice(label.text, SLICE("t"));
    assert_int_equal(record_label_from_value(SLICE("{\"text\":\"t\"}"), &arena, &label, &e), -1);
    assert_string_equal(e.text, "field \"label\" is missing");
    assert_int_equal(
        record_instance_from_value(SLICE("{\"id\":null,\"text\":\"t\",\"labels\":[]}"), &arena, &instance, &e), -1);
    assert_string_equal(e.text, "field \"id\" is missing");
    assert_int_equal(
        record_instance_from_value(SLICE("{\"id\":\"\",\"text\":\"t\",\"labels\":[]}"), &arena, &instance, &e), -1);
    assert_string_equal(e.text, "field \"id\" is empty");
    arena_free(&arena);
}

/* A mark is known again by each of its parts; nothing moves between key and value unseen. */
static void test_marks(void **state)
{
    (void)state;
    const struct slice null = {0}, empty = {"", 0}, a = slice_of("a"), b = slice_of("b"), ab = slice_of("ab");
    const struct record_mark marks[] = {
        record_mark_of(7, 1000, a, b),       record_mark_of(8, 1000, a, b),        record_mark_of(7, 1001, a, b),
        record_mark_of(7, -1, a, b),         record_mark_of(7, 1000, b, a),        record_mark_of(7, 1000, ab, empty),
        record_mark_of(7, 1000, empty, ab),  record_mark_of(7, 1000, ab, null),    record_mark_of(7, 1000, null, ab),
        record_mark_of(7, 1000, null, null), record_mark_of(7, 1000, null, empty), record_mark_of(7, 1000, empty, null),
    };
    const size_t n = sizeof marks / sizeof *marks;
    for (size_t i = 0; i < n; i++) {
        assert_true(record_mark_known(&marks[i]));
        for (size_t j = 0; j < n; j++) {
            assert_int_equal(record_mark_equal(&marks[i], &marks[j]), i == j);
        }
    }
    char copy[] = "a";
    struct record_mark again = record_mark_of(7, 1000, slice_of(copy), slice_of("b"));
    assert_true(record_mark_equal(&again, &marks[0]));
    assert_false(record_mark_known(&(struct record_mark){.offset = 7, .time_ms = 1000}));
}

/* Names in an error's line are cut, and their control characters replaced. */
static void test_quoted_names(void **state)
{
    (void)state;
    assert_poison("newline", LABEL, SLICE("a\nb"), SLICE("{\"label\":\"\\u001b[1m\",\"text\":\"t\"}"), E_KEY,
                  "\"label\" is \"?[1m\" but the record key is \"a?b\"");
    char name[256];
    memset(name, 'n', 255);
    name[255] = '\0';
    memcpy(name + 58, "\xe2\x82\xac", 3);
    struct slice key = {name, 255};
    struct decoded d;
    struct error e;
    assert_int_equal(decode(LABEL, key, SLICE("{\"label\":\"l\",\"text\":\"t\"}"), &d, &e), -1);
    assert_true(utf8_valid(e.text, strlen(e.text)));
    assert_non_null(strstr(e.text, "nnn...\""));
    arena_free(&d.arena);
}

/* ---- encoding --------------------------------------------------------------------------------------------------- */

static void fill_prediction(struct prediction *p)
{
    static struct predicted_label labels[] = {{{"role::program", 13}, 0.5f}, {{"\xc3\xa9\n", 3}, 0.1f}};
    static struct slice names[] = {{"a", 1}, {"b", 1}};
    static struct evidence evidence[] = {
        {.kind = EVIDENCE_INSTANCE,
         .name = {"vim", 3},
         .similarity = 0.75f,
         .weight = 0.25f,
         .labels = names,
         .labels_count = 2,
         .text = {"an editor", 9}},
        {.kind = EVIDENCE_LABEL, .name = {"use::editing", 12}, .similarity = NAN, .weight = 1e-7f},
        {.kind = EVIDENCE_LABEL,
         .name = {"b", 1},
         .similarity = 0.5f,
         .has_lexical = true,
         .lexical = 0.125f,
         .weight = 0.25f},
    };
    *p = (struct prediction){.labels = labels,
                             .labels_count = 2,
                             .evidence = evidence,
                             .evidence_count = 3,
                             .model_version = "0123456789abcdef",
                             .memory_version = UINT64_MAX};
}

static void test_prediction_json(void **state)
{
    (void)state;
    struct prediction p;
    fill_prediction(&p);
    struct text_record text = {.id = SLICE("k\""), .text = SLICE("t"), .metadata = SLICE("{\"a\":1e400}"), .cut = true};
    struct record_source source = {"texts", 3, INT64_MAX};
    struct buffer out = {0};
    record_encode_prediction(&p, &text, &source, true, &out);
    assert_string_equal(
        out.data,
        "{\"id\":\"k\\\"\",\"labels\":[{\"label\":\"role::program\",\"score\":0.5},{\"label\":\"\xc3\xa9\\n\","
        "\"score\":0.1}],"
        "\"evidence\":[{\"kind\":\"instance\",\"id\":\"vim\",\"similarity\":0.75,\"weight\":0.25,\"labels\":[\"a\","
        "\"b\"],"
        "\"text\":\"an editor\"},{\"kind\":\"label\",\"label\":\"use::editing\",\"similarity\":null,\"weight\":1e-07},"
        "{\"kind\":\"label\",\"label\":\"b\",\"similarity\":0.5,\"lexical\":0.125,\"weight\":0.25}],"
        "\"truncated\":true,\"model_version\":\"0123456789abcdef\",\"memory_version\":18446744073709551615,"
        "\"metadata\":{\"a\":1e400},\"source\":{\"topic\":\"texts\",\"partition\":3,\"offset\":9223372036854775807}}");
    buffer_clear(&out);
    text = (struct text_record){.text = SLICE("t")};
    p = (struct prediction){.model_version = "m", .truncated = false};
    record_encode_prediction(&p, &text, &(struct record_source){0}, false, &out);
    assert_string_equal(out.data,
                        "{\"id\":null,\"labels\":[],\"evidence\":[],\"truncated\":false,\"model_version\":\"m\","
                        "\"memory_version\":0}");
    buffer_free(&out);
}

/* MessagePack says the same as JSON: unpacked by msgpack-c and printed by it, with_text off. */
static void test_prediction_msgpack(void **state)
{
    (void)state;
    struct prediction p;
    fill_prediction(&p);
    struct text_record text = {
        .id = SLICE("k"), .text = SLICE("t"), .metadata = SLICE("\x91\x07"), .format = FORMAT_MSGPACK};
    struct record_source source = {"texts", 3, 12};
    struct buffer out = {0};
    record_encode_prediction(&p, &text, &source, false, &out);
    msgpack_unpacked unpacked;
    msgpack_unpacked_init(&unpacked);
    size_t at = 0;
    assert_int_equal(msgpack_unpack_next(&unpacked, out.data, out.bytes, &at), MSGPACK_UNPACK_SUCCESS);
    assert_int_equal(at, out.bytes);
    char printed[2048];
    size_t bytes = (size_t)msgpack_object_print_buffer(printed, sizeof printed, unpacked.data);
    printed[bytes] = '\0';
    assert_string_equal(
        printed,
        "{\"id\"=>\"k\", \"labels\"=>[{\"label\"=>\"role::program\", \"score\"=>0.500000}, "
        "{\"label\"=>\"\xc3\xa9\n\", "
        "\"score\"=>0.100000}], \"evidence\"=>[{\"kind\"=>\"instance\", \"id\"=>\"vim\", \"similarity\"=>0.750000, "
        "\"weight\"=>0.250000, \"labels\"=>[\"a\", \"b\"]}, {\"kind\"=>\"label\", \"label\"=>\"use::editing\", "
        "\"similarity\"=>nan, \"weight\"=>0.000000}, {\"kind\"=>\"label\", \"label\"=>\"b\", "
        "\"similarity\"=>0.500000, \"lexical\"=>0.125000, \"weight\"=>0.250000}], \"truncated\"=>false, "
        "\"model_version\"=>\"0123456789abcdef\", "
        "\"memory_version\"=>18446744073709551615, \"metadata\"=>[7], \"source\"=>{\"topic\"=>\"texts\", "
        "\"partition\"=>3, \"offset\"=>12}}");
    msgpack_unpacked_destroy(&unpacked);
    buffer_free(&out);
}

/* Metadata of a data file that is replayed as MessagePack. */
static void test_metadata_into_msgpack(void **state)
{
    (void)state;
    struct decoded d;
    assert_int_equal(
        decode(TEXT, NO_KEY,
               SLICE("{\"text\":\"t\",\"metadata\":[18446744073709551615,-1,1.5,1e400,-99999999999999999999,"
                     "{\"a\":[true,false,null,\"s\"]}]}"),
               &d, NULL),
        0);
    struct buffer out = {0};
    record_encode_text(&d.text, FORMAT_MSGPACK, &out);
    arena_free(&d.arena);
    assert_int_equal(decode(TEXT, NO_KEY, whole(&out), &d, NULL), 0);
    assert_slice(d.text.metadata,
                 SLICE("\x96\xcf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xcb\x3f\xf8\x00\x00\x00\x00\x00\x00"
                       "\xa5"
                       "1e400\xcb\xc4\x15\xaf\x1d\x78\xb5\x8c\x40\x81\xa1"
                       "a\x94\xc3\xc2\xc0\xa1s"));
    arena_free(&d.arena);
    buffer_free(&out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_poison_json),
        cmocka_unit_test(test_poison_msgpack),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_label_count),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_depth),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_msgpack_metadata),
        cmocka_unit_test(test_instances),
        cmocka_unit_test(test_from_value),
        cmocka_unit_test(test_marks),
        cmocka_unit_test(test_quoted_names),
        cmocka_unit_test(test_prediction_json),
        cmocka_unit_test(test_prediction_msgpack),
        cmocka_unit_test(test_metadata_into_msgpack),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
