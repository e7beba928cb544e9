/* A record's fields from MessagePack. msgpack-c believes a header's count before it has seen the elements (five bytes
 * make it reserve gigabytes), so a scan of our own goes over the value first: counts and lengths against the bytes that
 * remain, depth, UTF-8 of every str. It keeps where the known fields lie, and only those are handed to msgpack-c. */
#include <msgpack.h>
#include <string.h>

#include "base/utf8.h"
#include "record/internal.h"

/* ---- the scan ---- */

enum token_type { TOKEN_PLAIN, TOKEN_STR, TOKEN_ARRAY, TOKEN_MAP, TOKEN_NEVER };

struct cursor {
    const unsigned char *data;
    size_t bytes;
    size_t at;
};

/* A value's header, with what hangs on it. */
struct token {
    enum token_type type;
    struct slice body; /* after the header: of a str its characters, of a number its bytes; empty for containers */
    uint64_t items;    /* of a container: values that follow (two for each of a map's pairs) */
};

/* First bytes 0xc0 to 0xdf: type, bytes of the length or count that follows, bytes of body besides (an extension's type
 * byte counts as body). */
static const struct {
    unsigned char type, length_bytes, body;
} forms[32] = {
    {TOKEN_PLAIN, 0, 0},  {TOKEN_NEVER, 0, 0}, {TOKEN_PLAIN, 0, 0}, {TOKEN_PLAIN, 0, 0}, /* nil, never, false, true */
    {TOKEN_PLAIN, 1, 0},  {TOKEN_PLAIN, 2, 0}, {TOKEN_PLAIN, 4, 0},                      /* bin */
    {TOKEN_PLAIN, 1, 1},  {TOKEN_PLAIN, 2, 1}, {TOKEN_PLAIN, 4, 1},                      /* ext */
    {TOKEN_PLAIN, 0, 4},  {TOKEN_PLAIN, 0, 8},                                           /* float */
    {TOKEN_PLAIN, 0, 1},  {TOKEN_PLAIN, 0, 2}, {TOKEN_PLAIN, 0, 4}, {TOKEN_PLAIN, 0, 8}, /* uint */
    {TOKEN_PLAIN, 0, 1},  {TOKEN_PLAIN, 0, 2}, {TOKEN_PLAIN, 0, 4}, {TOKEN_PLAIN, 0, 8}, /* int */
    {TOKEN_PLAIN, 0, 2},  {TOKEN_PLAIN, 0, 3}, {TOKEN_PLAIN, 0, 5}, {TOKEN_PLAIN, 0, 9}, /* fixext 1 to 8 */
    {TOKEN_PLAIN, 0, 17},                                                                /* fixext 16 */
    {TOKEN_STR, 1, 0},    {TOKEN_STR, 2, 0},   {TOKEN_STR, 4, 0},                        /* str */
    {TOKEN_ARRAY, 2, 0},  {TOKEN_ARRAY, 4, 0},                                           /* array */
    {TOKEN_MAP, 2, 0},    {TOKEN_MAP, 4, 0},                                             /* map */
};

static int cut_short(size_t at, struct error *e)
{
    return error_set(e, ERROR_POISON, E_FORMAT, "not MessagePack: the value at byte %zu is cut short", at);
}

/* Splits a first byte into type and number (a length, a count), reading the number's bytes. */
static int read_header(struct cursor *c, struct token *out, uint64_t *number, struct error *e)
{
    size_t start = c->at;
    *out = (struct token){.type = TOKEN_PLAIN};
    *number = 0;
    if (c->at == c->bytes) {
        return cut_short(start, e);
    }
    unsigned char first = c->data[c->at++];
    if (first <= 0x7f || first >= 0xe0) {
        return 0;
    }
    if (first <= 0xbf) {
        out->type = first <= 0x8f ? TOKEN_MAP : first <= 0x9f ? TOKEN_ARRAY : TOKEN_STR;
        *number = out->type == TOKEN_STR ? first & 0x1f : first & 0x0f;
        return 0;
    }
    size_t length_bytes = forms[first - 0xc0].length_bytes;
    out->type = forms[first - 0xc0].type;
    if (out->type == TOKEN_NEVER) {
        return error_set(e, ERROR_POISON, E_FORMAT, "not MessagePack: byte 0xc1 at byte %zu", start);
    }
    if (c->bytes - c->at < length_bytes) {
        return cut_short(start, e);
    }
    for (size_t i = 0; i < length_bytes; i++) {
        *number = *number << 8 | c->data[c->at++];
    }
    *number += forms[first - 0xc0].body;
    return 0;
}

/* One header and its body; the cursor is then at the next value (a container's first item). */
static int next_token(struct cursor *c, struct token *out, struct error *e)
{
    size_t start = c->at;
    uint64_t number;
    if (read_header(c, out, &number, e) != 0) {
        return -1;
    }
    size_t left = c->bytes - c->at;
    if (out->type == TOKEN_ARRAY || out->type == TOKEN_MAP) {
        out->items = out->type == TOKEN_MAP ? number * 2 : number;
        if (out->items > left) { /* every value takes at least one byte */
            return error_set(e, ERROR_POISON, E_FORMAT,
                             "not MessagePack: the container at byte %zu counts %llu, but %zu bytes remain", start,
                             (unsigned long long)number, left);
        }
        return 0;
    }
    if (number > left) {
        return cut_short(start, e);
    }
    out->body = (struct slice){(const char *)c->data + c->at, (size_t)number};
    c->at += (size_t)number;
    if (out->type == TOKEN_STR && !utf8_valid(out->body.data, out->body.bytes)) {
        return error_set(e, ERROR_POISON, E_UTF8, "invalid UTF-8 in the str at byte %zu", start);
    }
    return 0;
}

/* Over one whole value that lies in `depth` containers; *token is its own header, the return value's bytes in *whole.
 */
static int skip_value(struct cursor *c, size_t depth, struct token *token, struct slice *whole, struct error *e)
{
    uint64_t left[RECORD_DEPTH_MAX]; /* items still to come, of each open container */
    size_t open = 0;
    size_t start = c->at;
    if (next_token(c, token, e) != 0) {
        return -1;
    }
    for (struct token t = *token;;) {
        if (t.type == TOKEN_ARRAY || t.type == TOKEN_MAP) {
            if (depth + open == RECORD_DEPTH_MAX) {
                return error_set(e, ERROR_POISON, E_FORMAT, "nested deeper than %d levels before byte %zu",
                                 RECORD_DEPTH_MAX, c->at);
            }
            left[open++] = t.items;
        }
        while (open > 0 && left[open - 1] == 0) {
            open--;
        }
        if (open == 0) {
            break;
        }
        left[open - 1]--;
        if (next_token(c, &t, e) != 0) {
            return -1;
        }
    }
    *whole = (struct slice){(const char *)c->data + start, c->at - start};
    return 0;
}

enum field { FIELD_NAME, FIELD_TEXT, FIELD_LABELS, FIELD_METADATA, FIELDS_COUNT };

/* The whole value: where each known field's last value lies (data NULL: nowhere). */
static int scan(const char *const names[FIELDS_COUNT], struct slice value, struct slice found[FIELDS_COUNT],
                struct error *e)
{
    struct cursor c = {(const unsigned char *)value.data, value.bytes, 0};
    struct token map;
    if (next_token(&c, &map, e) != 0) {
        return -1;
    }
    for (uint64_t i = 0; i < map.items / 2; i++) {
        struct token key;
        struct token token;
        struct slice whole;
        if (skip_value(&c, 1, &key, &whole, e) != 0 || skip_value(&c, 1, &token, &whole, e) != 0) {
            return -1;
        }
        for (size_t f = 0; f < FIELDS_COUNT && key.type == TOKEN_STR; f++) {
            if (names[f] && slice_equal(key.body, slice_of(names[f]))) {
                found[f] = whole;
            }
        }
    }
    if (c.at != c.bytes) {
        return error_set(e, ERROR_POISON, E_FORMAT, "not MessagePack: %zu trailing bytes after the map at byte %zu",
                         c.bytes - c.at, c.at);
    }
    return 0;
}

/* ---- the fields ---- */

static const char *type_words(const msgpack_object *value)
{
    switch (value->type) {
    case MSGPACK_OBJECT_NIL:
        return "null";
    case MSGPACK_OBJECT_BOOLEAN:
        return "a boolean";
    case MSGPACK_OBJECT_STR:
        return "a string";
    case MSGPACK_OBJECT_BIN:
        return "binary";
    case MSGPACK_OBJECT_ARRAY:
        return "an array";
    case MSGPACK_OBJECT_MAP:
        return "a map";
    case MSGPACK_OBJECT_EXT:
        return "an extension";
    default:
        return "a number";
    }
}

/* One scanned value through msgpack-c; strings point into the value. */
static int unpack(struct slice whole, msgpack_zone *zone, msgpack_object *out, struct error *e)
{
    size_t at = 0;
    if (msgpack_unpack(whole.data, whole.bytes, &at, zone, out) != MSGPACK_UNPACK_SUCCESS || at != whole.bytes) {
        return error_set(e, ERROR_POISON, E_FORMAT, "not MessagePack: msgpack-c cannot unpack it");
    }
    return 0;
}

/* "" has no address of its own in msgpack-c: a slice that is there has one. */
static struct slice string_slice(const char *data, uint32_t bytes)
{
    return (struct slice){bytes ? data : "", bytes};
}

static int read_name(const char *field, const msgpack_object *value, struct slice *out, struct error *e)
{
    if (value->type == MSGPACK_OBJECT_STR) {
        *out = string_slice(value->via.str.ptr, value->via.str.size);
    } else if (value->type != MSGPACK_OBJECT_NIL) {
        return field_error(field, "a string", type_words(value), e);
    }
    return 0;
}

static int read_text(const msgpack_object *value, struct slice *out, struct error *e)
{
    if (value->type == MSGPACK_OBJECT_STR) {
        *out = string_slice(value->via.str.ptr, value->via.str.size);
        return 0;
    }
    if (value->type != MSGPACK_OBJECT_BIN) {
        return field_error("text", "a string", type_words(value), e);
    }
    *out = string_slice(value->via.bin.ptr, value->via.bin.size);
    if (!utf8_valid(out->data, out->bytes)) {
        return error_set(e, ERROR_POISON, E_UTF8, "field \"text\" is binary and not UTF-8");
    }
    return 0;
}

static int read_labels(const msgpack_object *value, struct arena *scratch, struct fields *out, struct error *e)
{
    if (value->type != MSGPACK_OBJECT_ARRAY) {
        return field_error("labels", "an array", type_words(value), e);
    }
    if (fields_list_labels(out, value->via.array.size, scratch, e) != 0) {
        return -1;
    }
    for (size_t i = 0; i < out->labels_count; i++) {
        const msgpack_object *label = &value->via.array.ptr[i];
        if (label->type != MSGPACK_OBJECT_STR) {
            return label_error(i, type_words(label), e);
        }
        out->labels[i] = string_slice(label->via.str.ptr, label->via.str.size);
    }
    return 0;
}

int msgpack_fields(const struct schema *schema, struct slice value, struct arena *scratch, struct fields *out,
                   struct error *e)
{
    const char *const names[FIELDS_COUNT] = {schema->name, "text", schema->labels ? "labels" : NULL,
                                             schema->metadata ? "metadata" : NULL};
    struct slice found[FIELDS_COUNT] = {0};
    if (scan(names, value, found, e) != 0) {
        return -1;
    }
    int result = -1;
    msgpack_object object;
    msgpack_zone zone;
    if (!msgpack_zone_init(&zone, 1024)) {
        return error_set(e, ERROR_RETRY, E_INTERNAL, "out of memory");
    }
    if (found[FIELD_NAME].data &&
        (unpack(found[FIELD_NAME], &zone, &object, e) != 0 || read_name(schema->name, &object, &out->name, e) != 0)) {
        goto done;
    }
    if (!found[FIELD_TEXT].data) {
        field_error("text", NULL, NULL, e);
        goto done;
    }
    if (unpack(found[FIELD_TEXT], &zone, &object, e) != 0 || read_text(&object, &out->text, e) != 0) {
        goto done;
    }
    if (schema->labels && !found[FIELD_LABELS].data) {
        field_error("labels", NULL, NULL, e);
        goto done;
    }
    if (schema->labels &&
        (unpack(found[FIELD_LABELS], &zone, &object, e) != 0 || read_labels(&object, scratch, out, e) != 0)) {
        goto done;
    }
    if (found[FIELD_METADATA].data && (unsigned char)found[FIELD_METADATA].data[0] != 0xc0) { /* not nil */
        out->metadata = found[FIELD_METADATA];
    }
    result = 0;
done:
    msgpack_zone_destroy(&zone);
    return result;
}
