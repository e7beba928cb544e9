/* JSON: see json.h. yajl reads (as events: its own tree converts numbers); the tree and the writer are ours.
 * yajl alone is too kind: it turns a lone surrogate's escape into '?', takes vertical tabs and form feeds for white
 * space, and ignores a string after the value that does not end, so the text is looked over once before yajl sees
 * it. */
#include "base/json.h"

#include <errno.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yajl/yajl_parse.h>

#include "base/utf8.h"

/* ---- reading ---- */

struct frame {
    struct json *container;
    struct json *last; /* its last element or member so far */
};

struct builder {
    struct arena *arena;
    struct frame *frames; /* [depth_max] */
    unsigned depth;
    unsigned depth_max;
    struct slice name; /* the member's whose value comes next */
    struct json *root;
};

static struct json *builder_add(struct builder *b, enum json_type type, struct slice text)
{
    struct json *node = arena_alloc(b->arena, sizeof *node);
    *node = (struct json){.type = type, .text = text, .name = b->name};
    b->name = (struct slice){0};
    if (b->depth == 0) {
        b->root = node;
        return node;
    }
    struct frame *frame = &b->frames[b->depth - 1];
    if (frame->last) {
        frame->last->next = node;
    } else {
        frame->container->child = node;
    }
    frame->last = node;
    frame->container->count++;
    return node;
}

static int on_null(void *context)
{
    builder_add(context, JSON_NULL, (struct slice){0});
    return 1;
}

static int on_boolean(void *context, int value)
{
    builder_add(context, value ? JSON_TRUE : JSON_FALSE, (struct slice){0});
    return 1;
}

static int on_number(void *context, const char *data, size_t bytes)
{
    struct builder *b = context;
    builder_add(b, JSON_NUMBER, arena_slice(b->arena, (struct slice){data, bytes}));
    return 1;
}

static int on_string(void *context, const unsigned char *data, size_t bytes)
{
    struct builder *b = context;
    builder_add(b, JSON_STRING, arena_slice(b->arena, (struct slice){(const char *)data, bytes}));
    return 1;
}

static int on_name(void *context, const unsigned char *data, size_t bytes)
{
    struct builder *b = context;
    b->name = arena_slice(b->arena, (struct slice){(const char *)data, bytes});
    return 1;
}

static int builder_open(struct builder *b, enum json_type type)
{
    if (b->depth == b->depth_max) {
        return 0; /* yajl stops here with yajl_status_client_canceled */
    }
    struct json *container = builder_add(b, type, (struct slice){0});
    b->frames[b->depth++] = (struct frame){.container = container};
    return 1;
}

static int on_object(void *context)
{
    return builder_open(context, JSON_OBJECT);
}

static int on_array(void *context)
{
    return builder_open(context, JSON_ARRAY);
}

static int on_end(void *context)
{
    struct builder *b = context;
    b->depth--;
    return 1;
}

static const yajl_callbacks callbacks = {
    .yajl_null = on_null,
    .yajl_boolean = on_boolean,
    .yajl_number = on_number,
    .yajl_string = on_string,
    .yajl_start_map = on_object,
    .yajl_map_key = on_name,
    .yajl_end_map = on_end,
    .yajl_start_array = on_array,
    .yajl_end_array = on_end,
};

static void *yajl_mem_alloc(void *context, size_t bytes)
{
    (void)context;
    return mem_alloc(bytes);
}

static void *yajl_mem_resize(void *context, void *old, size_t bytes)
{
    (void)context;
    return mem_resize(old, bytes);
}

static void yajl_mem_free(void *context, void *p)
{
    (void)context;
    free(p);
}

/* The code unit of the \uXXXX at s, or -1 where there is none. */
static int escaped_unit(const char *s, size_t bytes)
{
    if (bytes < 6 || s[0] != '\\' || s[1] != 'u') {
        return -1;
    }
    int unit = 0;
    for (size_t i = 2; i < 6; i++) {
        char c = s[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                           : -1;
        if (digit < 0) {
            return -1;
        }
        unit = unit * 16 + digit;
    }
    return unit;
}

/* Length of the escape at s inside a string; 0: half a surrogate pair. What is no escape at all is left to yajl. */
static size_t escape_bytes(const char *s, size_t bytes)
{
    int unit = escaped_unit(s, bytes);
    if (unit < 0xd800 || unit > 0xdfff) {
        return unit < 0 ? 2 : 6;
    }
    int second = unit < 0xdc00 ? escaped_unit(s + 6, bytes - 6) : -1;
    return second >= 0xdc00 && second <= 0xdfff ? 12 : 0;
}

/* What yajl would let through. */
static int check_text(struct slice text, struct error *e)
{
    size_t valid = utf8_valid_prefix(text.data, text.bytes);
    if (valid < text.bytes) {
        return error_set(e, ERROR_POISON, E_UTF8, "invalid UTF-8 at byte %zu", valid);
    }
    bool in_string = false;
    for (size_t i = 0; i < text.bytes;) {
        char c = text.data[i];
        if (c == '\\' && in_string) {
            size_t bytes = escape_bytes(text.data + i, text.bytes - i);
            if (bytes == 0) {
                return error_set(e, ERROR_POISON, E_UTF8, "lone surrogate %.6s at byte %zu", text.data + i, i);
            }
            i += bytes;
            continue;
        }
        if (c == '"') {
            in_string = !in_string;
        } else if ((c == '\v' || c == '\f') && !in_string) {
            return error_set(e, ERROR_POISON, E_FORMAT, "not JSON: control character at byte %zu", i);
        }
        i++;
    }
    if (in_string) {
        return error_set(e, ERROR_POISON, E_FORMAT, "not JSON: a string does not end at byte %zu", text.bytes);
    }
    return 0;
}

/* yajl's own sentence ("parse error: premature EOF\n") with the place after it. */
static int parse_error(yajl_handle handle, size_t at, struct error *e)
{
    unsigned char *sentence = yajl_get_error(handle, 0, NULL, 0);
    size_t bytes = sentence ? strcspn((const char *)sentence, "\n") : 0;
    error_set(e, ERROR_POISON, E_FORMAT, "not JSON: %.*s at byte %zu", (int)bytes,
              sentence ? (const char *)sentence : "", at);
    if (sentence) {
        yajl_free_error(handle, sentence);
    }
    return -1;
}

int json_parse(struct slice text, unsigned depth_max, struct arena *arena, const struct json **out, struct error *e)
{
    *out = NULL;
    if (check_text(text, e) != 0) {
        return -1;
    }
    struct builder builder = {.arena = arena, .depth_max = depth_max};
    builder.frames = mem_alloc(((size_t)depth_max + 1) * sizeof *builder.frames);
    yajl_alloc_funcs memory = {yajl_mem_alloc, yajl_mem_resize, yajl_mem_free, NULL};
    yajl_handle handle = yajl_alloc(&callbacks, &memory, &builder);
    yajl_config(handle, yajl_dont_validate_strings, 1); /* done above, where its own check has gaps */

    int result = -1;
    yajl_status status = yajl_parse(handle, (const unsigned char *)text.data, text.bytes);
    size_t at = yajl_get_bytes_consumed(handle);
    if (status == yajl_status_ok) {
        status = yajl_complete_parse(handle);
        at = text.bytes;
    }
    if (status == yajl_status_client_canceled) {
        error_set(e, ERROR_POISON, E_FORMAT, "nested deeper than %u levels at byte %zu", depth_max, at);
    } else if (status != yajl_status_ok) {
        parse_error(handle, at, e);
    } else {
        *out = builder.root;
        result = 0;
    }
    yajl_free(handle);
    free(builder.frames);
    return result;
}

const struct json *json_member(const struct json *object, const char *name)
{
    const struct json *found = NULL;
    struct slice wanted = slice_of(name);
    for (const struct json *member = object && object->type == JSON_OBJECT ? object->child : NULL; member;
         member = member->next) {
        if (slice_equal(member->name, wanted)) {
            found = member;
        }
    }
    return found;
}

/* The C locale for this thread, whatever the process has set: numbers have a dot. newlocale("C") allocates nothing. */
static locale_t locale_enter(void)
{
    return uselocale(newlocale(LC_ALL_MASK, "C", (locale_t)0));
}

static void locale_leave(locale_t before)
{
    freelocale(uselocale(before));
}

bool json_double(const struct json *value, double *out)
{
    if (!value || value->type != JSON_NUMBER) {
        return false;
    }
    locale_t before = locale_enter();
    double number = strtod(value->text.data, NULL);
    locale_leave(before);
    if (!isfinite(number)) {
        return false;
    }
    *out = number;
    return true;
}

bool json_int(const struct json *value, int64_t *out)
{
    if (!value || value->type != JSON_NUMBER || strpbrk(value->text.data, ".eE")) {
        return false;
    }
    errno = 0;
    long long number = strtoll(value->text.data, NULL, 10);
    if (errno != 0) {
        return false;
    }
    *out = number;
    return true;
}

/* ---- writing ---- */

static void value_begin(struct json_writer *w)
{
    if (w->comma) {
        buffer_byte(w->out, ',');
    }
    w->comma = true;
}

static void container_begin(struct json_writer *w, char bracket)
{
    value_begin(w);
    buffer_byte(w->out, bracket);
    w->comma = false;
}

static void container_end(struct json_writer *w, char bracket)
{
    buffer_byte(w->out, bracket);
    w->comma = true;
}

void json_object_begin(struct json_writer *w)
{
    container_begin(w, '{');
}

void json_object_end(struct json_writer *w)
{
    container_end(w, '}');
}

void json_array_begin(struct json_writer *w)
{
    container_begin(w, '[');
}

void json_array_end(struct json_writer *w)
{
    container_end(w, ']');
}

static void append_escape(struct buffer *out, unsigned char c)
{
    static const char letters[] = {
        ['"'] = '"', ['\\'] = '\\', ['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't'};
    char letter = c < sizeof letters ? letters[c] : '\0';
    if (letter) {
        buffer_append(out, (char[]){'\\', letter}, 2);
    } else {
        buffer_format(out, "\\u%04x", c);
    }
}

static void append_string(struct buffer *out, struct slice value)
{
    buffer_byte(out, '"');
    size_t plain = 0; /* where the bytes begin that need no escape */
    for (size_t i = 0; i < value.bytes; i++) {
        unsigned char c = (unsigned char)value.data[i];
        if (c < 0x20 || c == '"' || c == '\\') {
            buffer_append(out, value.data + plain, i - plain);
            append_escape(out, c);
            plain = i + 1;
        }
    }
    if (plain < value.bytes) {
        buffer_append(out, value.data + plain, value.bytes - plain);
    }
    buffer_byte(out, '"');
}

static void write_name(struct json_writer *w, struct slice name)
{
    value_begin(w);
    append_string(w->out, name);
    buffer_byte(w->out, ':');
    w->comma = false;
}

void json_name(struct json_writer *w, const char *name)
{
    write_name(w, slice_of(name));
}

void json_write_string(struct json_writer *w, struct slice value)
{
    value_begin(w);
    append_string(w->out, value);
}

void json_write_int(struct json_writer *w, int64_t value)
{
    value_begin(w);
    buffer_format(w->out, "%lld", (long long)value);
}

void json_write_uint(struct json_writer *w, uint64_t value)
{
    value_begin(w);
    buffer_format(w->out, "%llu", (unsigned long long)value);
}

/* A float's value (a score) takes as many digits as bring that float back, from the 6 that every float keeps to the 9
 * that tell any two apart; any other double takes 9. */
void json_write_double(struct json_writer *w, double value)
{
    if (!isfinite(value)) {
        json_write_null(w);
        return;
    }
    value_begin(w);
    char text[32];
    locale_t before = locale_enter();
    int digits = fabs(value) <= 3.4028234663852886e38 && (double)(float)value == value ? 6 : 9;
    do {
        snprintf(text, sizeof text, "%.*g", digits, value);
    } while (digits++ < 9 && strtof(text, NULL) != (float)value);
    locale_leave(before);
    buffer_string(w->out, text);
}

void json_write_bool(struct json_writer *w, bool value)
{
    value_begin(w);
    buffer_string(w->out, value ? "true" : "false");
}

void json_write_null(struct json_writer *w)
{
    value_begin(w);
    buffer_string(w->out, "null");
}

void json_write_raw(struct json_writer *w, struct slice json)
{
    value_begin(w);
    buffer_append(w->out, json.data, json.bytes);
}

/* Recursion, but no deeper than the depth_max that json_parse was given. */
void json_write_tree(struct json_writer *w, const struct json *value)
{
    switch (value->type) {
    case JSON_NULL:
        json_write_null(w);
        break;
    case JSON_FALSE:
    case JSON_TRUE:
        json_write_bool(w, value->type == JSON_TRUE);
        break;
    case JSON_NUMBER:
        json_write_raw(w, value->text);
        break;
    case JSON_STRING:
        json_write_string(w, value->text);
        break;
    case JSON_ARRAY:
    case JSON_OBJECT:
        container_begin(w, value->type == JSON_ARRAY ? '[' : '{');
        for (const struct json *child = value->child; child; child = child->next) {
            if (value->type == JSON_OBJECT) {
                write_name(w, child->name);
            }
            json_write_tree(w, child);
        }
        container_end(w, value->type == JSON_ARRAY ? ']' : '}');
        break;
    }
}
