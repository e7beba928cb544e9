/* Decoding: what both formats have in common. It finds out the format, has its reader collect the fields, and applies
 * the rules of names, keys and limits. Touches nothing but the bytes handed in and the arenas. What surprises: a record
 * is read in a scratch arena of its own and only what is kept is copied out, since texts wait in a queue and a JSON
 * tree takes up to 32 times its text. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "record/internal.h"

static const struct schema text_schema = {.name = "id", .metadata = true};
static const struct schema instance_schema = {.name = "id", .labels = true};
static const struct schema label_schema = {.name = "label"};

/* By the first byte; a frame counts as JSON. */
static enum record_format format_of(struct slice value)
{
    unsigned char first = value.bytes ? (unsigned char)value.data[0] : 0;
    return (first >= 0x80 && first <= 0x8f) || first == 0xde || first == 0xdf ? FORMAT_MSGPACK : FORMAT_JSON;
}

/* A schema registry's frame: 0x00, four bytes of schema id, then somebody else's format. */
static int frame_error(struct slice value, struct error *e)
{
    const unsigned char *b = (const unsigned char *)value.data;
    if (value.bytes < 5) {
        return error_set(e, ERROR_POISON, E_SCHEMA_FRAME, "first byte 0x00: neither JSON nor a MessagePack map");
    }
    unsigned id = (unsigned)b[1] << 24 | (unsigned)b[2] << 16 | (unsigned)b[3] << 8 | b[4];
    return error_set(e, ERROR_POISON, E_SCHEMA_FRAME,
                     "first byte 0x00: a schema registry's frame (schema id %u); send plain JSON or MessagePack, "
                     "without the registry's serializer",
                     id);
}

static int read_fields(const struct schema *schema, struct slice value, struct arena *scratch, struct fields *out,
                       struct error *e)
{
    *out = (struct fields){0};
    if (value.bytes == 0) {
        return error_set(e, ERROR_POISON, E_FORMAT,
                         "empty value: zero bytes are not a record (only null forgets a key)");
    }
    if (value.bytes > RECORD_BYTES_MAX) {
        return error_set(e, ERROR_POISON, E_LIMIT, "value of %zu bytes, over the limit of %d", value.bytes,
                         RECORD_BYTES_MAX);
    }
    unsigned char first = (unsigned char)value.data[0];
    if (first == 0) {
        return frame_error(value, e);
    }
    if (format_of(value) == FORMAT_MSGPACK) {
        return msgpack_fields(schema, value, scratch, out, e);
    }
    if (value.bytes >= 3 && memcmp(value.data, "\xef\xbb\xbf", 3) == 0) {
        return error_set(e, ERROR_POISON, E_FORMAT, "value starts with a byte order mark: send JSON without one");
    }
    if (first >= 0x80) {
        return error_set(e, ERROR_POISON, E_FORMAT, "first byte 0x%02x: neither JSON nor a MessagePack map", first);
    }
    return json_fields(schema, value, scratch, out, e);
}

/* A name's fault in words and code, or NULL where it may name something. */
static const char *name_fault(struct slice name, enum error_code *code)
{
    if (name.bytes == 0) {
        *code = E_FIELD;
        return "is empty";
    }
    if (name.bytes > RECORD_NAME_BYTES_MAX) {
        *code = E_LIMIT;
        return "is over 255 bytes long";
    }
    if (!utf8_valid(name.data, name.bytes)) {
        *code = E_UTF8;
        return "is not UTF-8";
    }
    if (memchr(name.data, '\0', name.bytes)) {
        *code = E_NUL;
        return "has a NUL character";
    }
    return NULL;
}

int record_check_name(struct slice key, const char *what, struct error *e)
{
    enum error_code code;
    const char *fault = key.data ? name_fault(key, &code) : "is missing";
    return fault ? error_set(e, ERROR_POISON, E_KEY, "%s %s", what, fault) : 0;
}

/* The name in the value, where there is one. */
static int check_own_name(const struct schema *schema, struct slice name, struct error *e)
{
    enum error_code code;
    const char *fault = name.data ? name_fault(name, &code) : NULL;
    return fault ? error_set(e, ERROR_POISON, code, "field \"%s\" %s", schema->name, fault) : 0;
}

/* A name for a message of one line: its start, without control characters. */
static const char *quoted(struct slice name, char out[64])
{
    size_t bytes = utf8_cut(name.data, name.bytes, 60);
    for (size_t i = 0; i < bytes; i++) {
        unsigned char c = (unsigned char)name.data[i];
        out[i] = (char)(c < 0x20 || c == 0x7f ? '?' : c);
    }
    memcpy(out + bytes, bytes < name.bytes ? "..." : "", bytes < name.bytes ? 4 : 1);
    return out;
}

static int check_agrees(const struct schema *schema, struct slice key, struct slice name, struct error *e)
{
    if (!name.data || slice_equal(key, name)) {
        return 0;
    }
    char in_value[64];
    char in_key[64];
    return error_set(e, ERROR_POISON, E_KEY, "field \"%s\" is \"%s\" but the record key is \"%s\": they must agree",
                     schema->name, quoted(name, in_value), quoted(key, in_key));
}

static int check_text(struct slice text, struct error *e)
{
    if (!text.data) {
        return field_error("text", NULL, NULL, e);
    }
    const char *nul = text.bytes ? memchr(text.data, '\0', text.bytes) : NULL;
    if (nul) {
        return error_set(e, ERROR_POISON, E_NUL, "field \"text\" has a NUL character at byte %zu of the text",
                         (size_t)(nul - text.data));
    }
    return 0;
}

static struct slice cut_text(struct slice text, struct arena *arena)
{
    return arena_slice(arena, (struct slice){text.data, utf8_cut(text.data, text.bytes, RECORD_TEXT_BYTES_MAX)});
}

/* Checks the listed names and hands them out sorted, each once. */
static int take_labels(const struct fields *fields, struct arena *arena, struct instance_record *out, struct error *e)
{
    for (size_t i = 0; i < fields->labels_count; i++) {
        enum error_code code;
        const char *fault = name_fault(fields->labels[i], &code);
        if (fault) {
            return error_set(e, ERROR_POISON, code, "labels[%zu] %s", i, fault);
        }
    }
    slices_sort(fields->labels, fields->labels_count);
    out->labels = arena_alloc(arena, fields->labels_count * sizeof *out->labels);
    for (size_t i = 0; i < fields->labels_count; i++) {
        if (i == 0 || !slice_equal(fields->labels[i], fields->labels[i - 1])) {
            out->labels[out->labels_count++] = arena_slice(arena, fields->labels[i]);
        }
    }
    return 0;
}

int record_decode_text(struct slice key, struct slice value, struct arena *arena, struct text_record *out,
                       struct error *e)
{
    struct arena scratch = {0};
    struct fields fields;
    int result = -1;
    *out = (struct text_record){.format = format_of(value)};
    if (read_fields(&text_schema, value, &scratch, &fields, e) != 0 ||
        check_own_name(&text_schema, fields.name, e) != 0 || check_text(fields.text, e) != 0) {
        goto done;
    }
    if (fields.name.data) {
        out->id = arena_slice(arena, fields.name);
    } else if (key.data && utf8_valid(key.data, key.bytes)) {
        out->id = arena_slice(arena, key);
    }
    out->text = cut_text(fields.text, arena);
    out->cut = out->text.bytes < fields.text.bytes;
    if (fields.metadata.data) {
        out->metadata = arena_slice(arena, fields.metadata);
    }
    result = 0;
done:
    arena_free(&scratch);
    return result;
}

/* name: checked already. The value's own name must agree with it. */
static int decode_instance(struct slice name, const struct fields *fields, struct arena *arena,
                           struct instance_record *out, struct error *e)
{
    if (check_agrees(&instance_schema, name, fields->name, e) != 0 || check_text(fields->text, e) != 0 ||
        take_labels(fields, arena, out, e) != 0) {
        return -1;
    }
    out->id = arena_slice(arena, name);
    out->text = cut_text(fields->text, arena);
    return 0;
}

static int decode_label(struct slice name, const struct fields *fields, struct arena *arena, struct label_record *out,
                        struct error *e)
{
    if (check_agrees(&label_schema, name, fields->name, e) != 0 || check_text(fields->text, e) != 0) {
        return -1;
    }
    out->label = arena_slice(arena, name);
    out->text = cut_text(fields->text, arena);
    return 0;
}

/* The name: the record's key, or where there is none by design (a data file) the value's own, then required. */
static int read_named(const struct schema *schema, const struct slice *key, struct slice value, struct arena *scratch,
                      struct fields *fields, struct slice *name, struct error *e)
{
    if ((key && record_check_name(*key, "the record key", e) != 0) ||
        read_fields(schema, value, scratch, fields, e) != 0 || check_own_name(schema, fields->name, e) != 0) {
        return -1;
    }
    *name = key ? *key : fields->name;
    return name->data ? 0 : field_error(schema->name, NULL, NULL, e);
}

static int read_instance(const struct slice *key, struct slice value, struct arena *arena, struct instance_record *out,
                         struct error *e)
{
    struct arena scratch = {0};
    struct fields fields;
    struct slice name;
    *out = (struct instance_record){.format = format_of(value)};
    int result = read_named(&instance_schema, key, value, &scratch, &fields, &name, e);
    if (result == 0) {
        result = decode_instance(name, &fields, arena, out, e);
    }
    arena_free(&scratch);
    return result;
}

static int read_label(const struct slice *key, struct slice value, struct arena *arena, struct label_record *out,
                      struct error *e)
{
    struct arena scratch = {0};
    struct fields fields;
    struct slice name;
    *out = (struct label_record){.format = format_of(value)};
    int result = read_named(&label_schema, key, value, &scratch, &fields, &name, e);
    if (result == 0) {
        result = decode_label(name, &fields, arena, out, e);
    }
    arena_free(&scratch);
    return result;
}

int record_decode_instance(struct slice key, struct slice value, struct arena *arena, struct instance_record *out,
                           struct error *e)
{
    return read_instance(&key, value, arena, out, e);
}

int record_decode_label(struct slice key, struct slice value, struct arena *arena, struct label_record *out,
                        struct error *e)
{
    return read_label(&key, value, arena, out, e);
}

int record_instance_from_value(struct slice value, struct arena *arena, struct instance_record *out, struct error *e)
{
    return read_instance(NULL, value, arena, out, e);
}

int record_label_from_value(struct slice value, struct arena *arena, struct label_record *out, struct error *e)
{
    return read_label(NULL, value, arena, out, e);
}
