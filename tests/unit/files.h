/* Whole files for tests. A failure ends the test. Include after cmocka.h. */
#ifndef ENGRAM_TESTS_UNIT_FILES_H
#define ENGRAM_TESTS_UNIT_FILES_H

#include <stdio.h>

#include "base/buffer.h"

static inline void whole_write(const char *path, const void *data, size_t bytes)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    if (bytes > 0) {
        assert_int_equal(fwrite(data, 1, bytes, f), bytes);
    }
    assert_int_equal(fclose(f), 0);
}

/* The caller frees it. */
static inline struct buffer whole_read(const char *path)
{
    struct buffer b = {0};
    char part[65536];
    size_t got;
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    buffer_reserve(&b, 0);
    while ((got = fread(part, 1, sizeof part, f)) > 0) {
        buffer_append(&b, part, got);
    }
    fclose(f);
    return b;
}

#endif
