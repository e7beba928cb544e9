/* What the tests of the record room share: a decoded record of any kind, from exact copies of its bytes. */
#ifndef ENGRAM_TESTS_UNIT_RECORD_DECODED_H
#define ENGRAM_TESTS_UNIT_RECORD_DECODED_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "record/record.h"

/* Literals with NULs inside keep their length. */
#define SLICE(literal) ((struct slice){literal, sizeof(literal) - 1})
#define NO_KEY ((struct slice){NULL, 0})

enum kind { TEXT, INSTANCE, LABEL };

/* A record of any kind, decoded. */
struct decoded {
    struct arena arena;
    struct text_record text;
    struct instance_record instance;
    struct label_record label;
};

/* Decodes exact copies on the heap and frees them at once: ASan sees a read behind the end, or of what is not a copy.
 */
static inline int decode(enum kind kind, struct slice key, struct slice value, struct decoded *out, struct error *e)
{
    char *value_copy = mem_alloc(value.bytes ? value.bytes : 1);
    memcpy(value_copy, value.data, value.bytes);
    char *key_copy = key.data ? mem_alloc(key.bytes ? key.bytes : 1) : NULL;
    if (key_copy && key.bytes) {
        memcpy(key_copy, key.data, key.bytes);
    }
    struct slice k = {key_copy, key.bytes};
    struct slice v = {value_copy, value.bytes};
    *out = (struct decoded){0};
    int result = kind == TEXT       ? record_decode_text(k, v, &out->arena, &out->text, e)
                 : kind == INSTANCE ? record_decode_instance(k, v, &out->arena, &out->instance, e)
                                    : record_decode_label(k, v, &out->arena, &out->label, e);
    free(value_copy);
    free(key_copy);
    return result;
}

static inline struct slice whole(const struct buffer *b)
{
    return (struct slice){b->data, b->bytes};
}

static inline void assert_slice(struct slice got, struct slice expected)
{
    if (!slice_equal(got, expected)) {
        fail_msg("\"%.*s\" is not \"%.*s\"", (int)got.bytes, got.data, (int)expected.bytes, expected.data);
    }
}

static inline void assert_poison(const char *what, enum kind kind, struct slice key, struct slice value,
                                 enum error_code code, const char *words)
{
    struct decoded d;
    struct error e = {0};
    if (decode(kind, key, value, &d, &e) != -1) {
        fail_msg("%s was taken", what);
    }
    if (e.kind != ERROR_POISON || e.code != code || !strstr(e.text, words)) {
        fail_msg("%s: %s %s", what, error_code_name(e.code), e.text);
    }
    assert_null(strpbrk(e.text, "\n\r"));
    arena_free(&d.arena);
}

#endif
