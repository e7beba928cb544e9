/* The model folder of a test: its files by name. Include after cmocka.h. */
#ifndef ENGRAM_TESTS_UNIT_MODEL_FOLDER_H
#define ENGRAM_TESTS_UNIT_MODEL_FOLDER_H

#include <string.h>

#include "tests/unit/files.h"

static char folder[96];

static inline const char *inside(const char *file)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, file);
    return path;
}

static inline void file_put(const char *file, const void *data, size_t bytes)
{
    whole_write(inside(file), data, bytes);
}

/* The first `from` in the file becomes `to`; the safetensors header keeps its length where both are as long. */
static inline void file_edit(const char *file, const char *from, const char *to)
{
    struct buffer b = whole_read(inside(file)), changed = {0};
    const size_t length = strlen(from);
    char *at = b.data, *end = b.data + b.bytes;
    while (at + length <= end && memcmp(at, from, length) != 0) {
        at++;
    }
    if (at + length > end) {
        fail_msg("%s has no %s", file, from);
    }
    buffer_append(&changed, b.data, (size_t)(at - b.data));
    buffer_string(&changed, to);
    buffer_append(&changed, at + length, b.bytes - (size_t)(at - b.data) - length);
    file_put(file, changed.data, changed.bytes);
    buffer_free(&b);
    buffer_free(&changed);
}

#endif
