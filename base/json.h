/* JSON on yajl: a tree that keeps every number's own characters (18446744073709551615 and 1e400 pass unchanged), and a
 * writer. Parsing is strict: one value, UTF-8 as RFC 3629, no lone surrogates, no trailing bytes, bounded depth. */
#ifndef ENGRAM_BASE_JSON_H
#define ENGRAM_BASE_JSON_H

#include "base/buffer.h"
#include "base/error.h"

enum json_type { JSON_NULL, JSON_FALSE, JSON_TRUE, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
    enum json_type type;
    struct slice text;        /* a string's bytes (unescaped, NUL after them) or a number's characters */
    struct slice name;        /* its name, inside an object */
    const struct json *child; /* first element or member, in the order of the text */
    const struct json *next;  /* next sibling */
    size_t count;             /* elements or members */
};

/* Parses one value; the tree lives in the arena. Errors: POISON, E_FORMAT or E_UTF8, with the byte offset in the text.
 */
int json_parse(struct slice text, unsigned depth_max, struct arena *arena, const struct json **out, struct error *e);

const struct json *json_member(const struct json *object, const char *name); /* the last one of that name, or NULL */
bool json_double(const struct json *value, double *out);                     /* false: no number, or not finite */
bool json_int(const struct json *value, int64_t *out);                       /* false: no integer in range */

/* Writing, one call a token; commas and colons come by themselves. Compact form. */
struct json_writer {
    struct buffer *out;
    bool comma; /* a comma is due before the next value or name */
};

void json_object_begin(struct json_writer *w);
void json_object_end(struct json_writer *w);
void json_array_begin(struct json_writer *w);
void json_array_end(struct json_writer *w);
void json_name(struct json_writer *w, const char *name);
void json_write_string(struct json_writer *w, struct slice value); /* valid UTF-8 */
void json_write_int(struct json_writer *w, int64_t value);
void json_write_uint(struct json_writer *w, uint64_t value);
void json_write_double(struct json_writer *w, double value); /* shortest of %.9g; NaN and infinities become null */
void json_write_bool(struct json_writer *w, bool value);
void json_write_null(struct json_writer *w);
void json_write_raw(struct json_writer *w, struct slice json); /* a whole value already in JSON */
void json_write_tree(struct json_writer *w, const struct json *value);

#endif
