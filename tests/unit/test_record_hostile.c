/* record under hostile input: a mebibyte of nesting or of counts, 200,000 mutated records, noise. Nothing may crash,
 * take more than linear time or much memory; what is taken must come back the same from both formats, and msgpack-c
 * must read what is taken as MessagePack. The numbers are seeded: a failure comes again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>
#include <msgpack.h>

#include "tests/unit/record_decoded.h"

/* A mebibyte of each: linear in time (they would run for minutes) and bounded in memory. */
static void test_hostile_mebibyte(void **state)
{
    (void)state;
    static const struct {
        const char *start, *unit;
        size_t unit_bytes;
    } cases[] = {
        {"", "[", 1},
        {"", "{\"a\":", 5},
        {"{\"text\":\"a\",\"metadata\":", "[", 1},
        {"{\"text\":\"a\",\"metadata\":[", "[],", 3},
        {"{\"text\":\"a\",\"metadata\":[", "0,", 2},
        {"{\"text\":\"", "\\u0041", 6},
        {"{\"text\":\"", "\\ud83d\\ude00", 12},
        {"{\"text\":\"", "\\", 1},
        {"{", "\"text\":\"\",", 10},
        {"{\"text\":\"\",\"labels\":[", "\"a\",", 4},
        {"{\"text\":\"a\",\"x\":", "1", 1},
        {"\x82\xa4text\xa1"
         "a\xa1x",
         "\x91", 1},
        {"\xdf\x7f\xff\xff\xff", "\x80", 1},
        {"\xdf\x01\xff\xff\xff", "\x90\xc0", 2},
        {"\x81\xa6labels\xdd\x01\xff\xff\xff", "\xc0", 1},
        {"\x81\x9f", "\x9f", 1},
        {"\xde\xff\xff", "\xa4text\xa0", 6},
    };
    struct buffer value = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        buffer_clear(&value);
        buffer_string(&value, cases[i].start);
        while (value.bytes + cases[i].unit_bytes <= RECORD_BYTES_MAX) {
            buffer_append(&value, cases[i].unit, cases[i].unit_bytes);
        }
        for (int kind = TEXT; kind <= LABEL; kind++) {
            struct decoded d;
            struct error e = {0};
            assert_int_equal(decode((enum kind)kind, SLICE("k"), whole(&value), &d, &e), -1);
            assert_int_equal(e.kind, ERROR_POISON);
            arena_free(&d.arena);
        }
    }
    buffer_free(&value);
#ifndef __SANITIZE_ADDRESS__ /* its quarantine keeps what was freed */
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    assert_true(usage.ru_maxrss < 128 << 10); /* KiB */
#endif
}

static void assert_same(enum kind kind, const struct decoded *a, const struct decoded *b)
{
    if (kind == TEXT) {
        assert_slice(a->text.id, b->text.id);
        assert_true((a->text.id.data == NULL) == (b->text.id.data == NULL));
        assert_slice(a->text.text, b->text.text);
    } else if (kind == LABEL) {
        assert_slice(a->label.label, b->label.label);
        assert_slice(a->label.text, b->label.text);
    } else {
        assert_slice(a->instance.id, b->instance.id);
        assert_slice(a->instance.text, b->instance.text);
        assert_int_equal(a->instance.labels_count, b->instance.labels_count);
        for (size_t i = 0; i < a->instance.labels_count; i++) {
            assert_slice(a->instance.labels[i], b->instance.labels[i]);
        }
    }
}

static void encode(enum kind kind, const struct decoded *d, enum record_format format, struct buffer *out)
{
    buffer_clear(out);
    if (kind == TEXT) {
        record_encode_text(&d->text, format, out);
    } else if (kind == INSTANCE) {
        record_encode_instance(&d->instance, format, out);
    } else {
        record_encode_label(&d->label, format, out);
    }
}

/* What was taken comes back the same from both formats, and what both formats say of it is the same. */
static void assert_round_trips(enum kind kind, struct slice key, const struct decoded *d, struct buffer *scratch)
{
    enum record_format own = kind == TEXT ? d->text.format : FORMAT_JSON;
    for (int format = FORMAT_JSON; format <= FORMAT_MSGPACK; format++) {
        struct decoded again;
        struct error e = {0};
        encode(kind, d, (enum record_format)format, scratch);
        if (scratch->bytes > RECORD_BYTES_MAX) {
            continue;
        }
        int result = decode(kind, key, whole(scratch), &again, &e);
        /* A key that is a text's id may be what a value's own id may not: empty, long, with a NUL. */
        if (result != 0 && kind == TEXT && record_check_name(d->text.id, "id", NULL) != 0) {
            continue;
        }
        if (result != 0) {
            fail_msg("does not come back: %s", e.text);
        }
        assert_same(kind, d, &again);
        if (kind == TEXT && (enum record_format)format == own) {
            assert_slice(again.text.metadata, d->text.metadata);
        }
        arena_free(&again.arena);
    }
}

/* ---- fuzz ------------------------------------------------------------------------------------------------------- */

static uint64_t random_state = 20240607;

static uint32_t random_below(uint32_t n)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((random_state >> 33) % n);
}

static const struct slice seeds[] = {
    SLICE("{\"id\":\"k\",\"text\":\"some words \\u00e9\\ud83d\\ude00 "
          "\xe2\x82\xac\",\"metadata\":{\"a\":[1,2.5e3,null,true,\"x\"]}}"),
    SLICE("{\"id\":\"k\",\"text\":\"some words\",\"labels\":[\"b\",\"a\",\"b\",\"\\u00e9\"]}"),
    SLICE("{\"label\":\"k\",\"text\":\"a label\"}"),
    SLICE("\x83\xa2id\xa1k\xa4text\xaasome words\xa8metadata\x82\xa1"
          "a\x93\x01\xcb\x40\x09\x21\xfb\x54\x44\x2d\x18\xc0\xa1"
          "b\xd6\x01\x00\x00\x00\x01"),
    SLICE("\x83\xa2id\xa1k\xa4text\xc4\x05words\xa6labels\x93\xa1"
          "b\xa1"
          "a\xd9\x01"
          "b"),
    SLICE("\xde\x00\x02\xa5label\xa1k\xa4text\xda\x00\x02\xc3\xa9"),
};

/* Bytes that mean something to one format or the other. */
static const char telling[] =
    "{}[]\",:\\u0d8cnte1-.\0\x80\x81\x8f\x90\x9f\xa0\xbf\xc0\xc1\xc4\xc6\xc7\xca\xcf\xd4\xd9\xdb"
    "\xdc\xdd\xde\xdf\xed\xf4\xff";

static void mutate(struct buffer *value)
{
    for (uint32_t n = 1 + (random_below(4) == 0); n > 0 && value->bytes > 0; n--) {
        size_t at = random_below((uint32_t)value->bytes);
        switch (random_below(6)) {
        case 0:
            value->data[at] = (char)random_below(256);
            break;
        case 1:
            value->data[at] = telling[random_below(sizeof telling - 1)];
            break;
        case 2:
            value->bytes = at; /* cut */
            break;
        case 3: { /* a piece again, at the end */
            size_t bytes = 1 + random_below((uint32_t)(value->bytes - at));
            buffer_reserve(value, bytes);
            memcpy(value->data + value->bytes, value->data + at, bytes);
            value->bytes += bytes;
            break;
        }
        case 4: /* a byte out */
            memmove(value->data + at, value->data + at + 1, value->bytes - at - 1);
            value->bytes--;
            break;
        default: /* a byte in */
            buffer_reserve(value, 1);
            memmove(value->data + at + 1, value->data + at, value->bytes - at);
            value->data[at] = telling[random_below(sizeof telling - 1)];
            value->bytes++;
        }
    }
}

/* Whatever is taken as MessagePack, msgpack-c takes too, to its end. */
static void assert_msgpack_agrees(struct slice value)
{
    msgpack_unpacked unpacked;
    msgpack_unpacked_init(&unpacked);
    size_t at = 0;
    assert_int_equal(msgpack_unpack_next(&unpacked, value.data, value.bytes, &at), MSGPACK_UNPACK_SUCCESS);
    assert_int_equal(at, value.bytes);
    assert_int_equal(unpacked.data.type, MSGPACK_OBJECT_MAP);
    msgpack_unpacked_destroy(&unpacked);
}

static void test_fuzz(void **state)
{
    (void)state;
    struct buffer value = {0};
    struct buffer scratch = {0};
    size_t taken = 0;
    size_t codes[E_INTERNAL + 1] = {0};
    for (size_t i = 0; i < 200000; i++) {
        struct slice seed = seeds[i % (sizeof seeds / sizeof *seeds)];
        buffer_clear(&value);
        buffer_append(&value, seed.data, seed.bytes);
        mutate(&value);
        enum kind kind = random_below(8) ? (enum kind)(i % 3) : (enum kind)random_below(3);
        struct slice key = random_below(8) ? SLICE("k") : NO_KEY;
        struct decoded d;
        struct error e = {0};
        if (decode(kind, key, whole(&value), &d, &e) == 0) {
            taken++;
            if ((unsigned char)value.data[0] >= 0x80) { /* MessagePack: JSON begins with ASCII */
                assert_msgpack_agrees(whole(&value));
            }
            assert_round_trips(kind, key, &d, &scratch);
        } else {
            assert_int_equal(e.kind, ERROR_POISON);
            assert_true(e.code > E_OK && e.code <= E_KEY && e.text[0] != '\0');
            codes[e.code]++;
        }
        arena_free(&d.arena);
    }
    /* The loop went where it was meant to go. */
    assert_true(taken > 10000);
    assert_true(codes[E_FORMAT] > 5000 && codes[E_FIELD] > 5000 && codes[E_UTF8] > 1000 && codes[E_KEY] > 1000 &&
                codes[E_NUL] > 10 && codes[E_SCHEMA_FRAME] > 10);
    buffer_free(&value);
    buffer_free(&scratch);
}

/* Bytes without any sense, behind each first byte there is. */
static void test_noise(void **state)
{
    (void)state;
    char noise[64];
    for (size_t i = 0; i < 256 * 100; i++) {
        size_t bytes = 1 + random_below(sizeof noise);
        noise[0] = (char)(i & 255);
        for (size_t j = 1; j < bytes; j++) {
            noise[j] = (char)random_below(256);
        }
        struct decoded d;
        struct error e = {0};
        if (decode((enum kind)(i % 3), SLICE("k"), (struct slice){noise, bytes}, &d, &e) != 0) {
            assert_int_equal(e.kind, ERROR_POISON);
        }
        arena_free(&d.arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile_mebibyte),
        cmocka_unit_test(test_fuzz),
        cmocka_unit_test(test_noise),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
