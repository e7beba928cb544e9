/* Reads the JSON files of a model folder and their members, and words what is wrong with them. Reads only the file that
 * it is asked for. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/encoder/internal.h"

#define JSON_BYTES_MAX ((size_t)32 << 20) /* a tokenizer.json of 500,000 pieces takes 14 MB */

void reading_complain(const struct reading *r, const char *format, ...)
{
    struct buffer place = {0};
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    buffer_format(&place, "model folder %s", r->folder);
    if (r->file) {
        buffer_format(&place, ", %s", r->file);
    }
    error_set(r->e, ERROR_FATAL, E_MODEL, "%s: %s", place.data, text);
    buffer_free(&place);
}

/* ---- files ------------------------------------------------------------------------------------------------------- */

char *reading_path(const char *folder, const char *inside, const char *file)
{
    struct buffer path = {0};
    buffer_format(&path, "%s/%s%s%s", folder, inside, *inside ? "/" : "", file);
    return path.data;
}

int reading_file(struct reading *r, const char *inside, const char *file)
{
    int result = -1;
    struct buffer bytes = {0};
    struct error reason = {0};
    char *path = reading_path(r->folder, inside, file);
    r->file = arena_string(r->arena, path + strlen(r->folder) + 1, strlen(path) - strlen(r->folder) - 1);
    r->json = NULL;
    FILE *f = fopen(path, "re");
    if (!f) {
        result = errno == ENOENT || errno == ENOTDIR ? 0 : refuse(r, "%s", strerror(errno));
        goto done;
    }
    size_t got;
    char part[4096];
    while ((got = fread(part, 1, sizeof part, f)) > 0 && bytes.bytes <= JSON_BYTES_MAX) {
        buffer_append(&bytes, part, got);
    }
    if (ferror(f) || bytes.bytes > JSON_BYTES_MAX) {
        reading_complain(r, "cannot be read, or is over %zu bytes", JSON_BYTES_MAX);
    } else if (json_parse((struct slice){bytes.data, bytes.bytes}, 32, r->arena, &r->json, &reason) != 0) {
        reading_complain(r, "%s", reason.text);
    } else {
        result = 1;
    }
done:
    if (f) {
        fclose(f);
    }
    buffer_free(&bytes);
    free(path);
    return result;
}

int reading_object(struct reading *r, const char *inside, const char *file)
{
    int found = reading_file(r, inside, file);
    return found == 1 && r->json->type != JSON_OBJECT ? refuse(r, "is not a JSON object") : found;
}

/* ---- members ----------------------------------------------------------------------------------------------------- */

const struct json *reading_member(const struct reading *r, const char *name)
{
    const struct json *j = r->json ? json_member(r->json, name) : NULL;
    return j && j->type != JSON_NULL ? j : NULL;
}

bool json_text_is(const struct json *j, const char *text)
{
    return j->type == JSON_STRING && slice_equal(j->text, slice_of(text));
}

const char *json_shown(const struct json *j)
{
    return j->type == JSON_STRING || j->type == JSON_NUMBER ? j->text.data
           : j->type == JSON_TRUE                           ? "true"
           : j->type == JSON_FALSE                          ? "false"
                                                            : "a list or an object";
}

int reading_flag(const struct reading *r, const char *name, bool absent, bool *out)
{
    const struct json *j = reading_member(r, name);
    if (j && j->type != JSON_TRUE && j->type != JSON_FALSE) {
        return refuse(r, "%s is %.40s, neither true nor false", name, json_shown(j));
    }
    *out = j ? j->type == JSON_TRUE : absent;
    return 0;
}

int reading_size(const struct reading *r, const char *name, size_t low, size_t high, size_t absent, size_t *out)
{
    const struct json *j = reading_member(r, name);
    int64_t n = (int64_t)absent;
    if (!j && absent == 0) {
        return refuse(r, "%s is missing", name);
    }
    if (j && (!json_int(j, &n) || n < (int64_t)low || n > (int64_t)high)) {
        return refuse(r, "%s is %.40s; %zu to %zu can be run", name, json_shown(j), low, high);
    }
    *out = (size_t)n;
    return 0;
}

int reading_text_expect(const struct reading *r, const char *name, const char *expected)
{
    const struct json *j = reading_member(r, name);
    return !j || json_text_is(j, expected)
               ? 0
               : refuse(r, "%s is %.80s; only %s can be run", name, json_shown(j), expected);
}

int reading_flag_expect(const struct reading *r, const char *name, bool expected)
{
    bool is;
    if (reading_flag(r, name, expected, &is) != 0) {
        return -1;
    }
    return is == expected ? 0 : refuse(r, "%s is %s, which cannot be run", name, is ? "true" : "false");
}

struct reading reading_inside(const struct reading *r, const char *name)
{
    struct reading inner = *r;
    struct buffer file = {0};
    buffer_format(&file, "%s, %s", r->file, name);
    inner.file = arena_string(r->arena, file.data, file.bytes);
    inner.json = reading_member(r, name);
    buffer_free(&file);
    return inner;
}
