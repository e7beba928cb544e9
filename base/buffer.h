/* Bytes: allocation, borrowed slices and growing buffers.
 * Allocation never returns NULL: out of memory ends the process with one line and status 1. It is the only place where
 * a library function of ours ends it: nothing could be done about it in all the places that allocate, and nothing is
 * lost, since what is not committed is done again. Everything whose size comes from outside is bounded before it is
 * allocated.
 */
#ifndef ENGRAM_BASE_BUFFER_H
#define ENGRAM_BASE_BUFFER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Who writes that line, from any thread; it may not allocate. Set it before threads start. Default: standard error. */
void mem_failure_to(void (*say)(const char *line));
void *mem_alloc(size_t bytes);                     /* as malloc; free() releases */
void *mem_zero(size_t count, size_t bytes);        /* as calloc */
void *mem_resize(void *old, size_t bytes);         /* as realloc */
char *mem_string(const char *data, size_t bytes);  /* a copy with a NUL after it */
void *mem_aligned(size_t alignment, size_t bytes); /* as aligned_alloc, bytes rounded up; free() releases */

/* Bytes that somebody else owns. data may be NULL only where bytes is 0. */
struct slice {
    const char *data;
    size_t bytes;
};

struct slice slice_of(const char *string); /* of a C string; NULL gives the empty slice */
bool slice_equal(struct slice a, struct slice b);
int slice_compare(struct slice a, struct slice b); /* by bytes, as memcmp; a prefix sorts first */
int slice_order(const void *a, const void *b);     /* the same for qsort and bsearch */
void slices_sort(struct slice *slices, size_t count);
struct slice slice_of_last_name(const char *path); /* "b" of "/a/b" and of "/a/b//"; borrowed */

/* A growing buffer; zero-initialise to start, buffer_free to end. data is kept NUL-terminated after `bytes`
 * (NULL only while nothing was ever appended). */
struct buffer {
    char *data;
    size_t bytes;
    size_t capacity;
};

void buffer_reserve(struct buffer *b, size_t more); /* room for `more` bytes after the end */
void buffer_append(struct buffer *b, const void *data, size_t bytes);
void buffer_byte(struct buffer *b, char c);
void buffer_string(struct buffer *b, const char *string);
void buffer_format(struct buffer *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void buffer_clear(struct buffer *b); /* empties, keeps the memory */
void buffer_free(struct buffer *b);

/* An arena: many small allocations that end together. Zero-initialise to start. Memory is 16-byte aligned, not zeroed.
 */
struct arena {
    struct arena_chunk *chunks;
};

void *arena_alloc(struct arena *a, size_t bytes);
char *arena_string(struct arena *a, const char *data, size_t bytes); /* a copy with a NUL after it */
struct slice arena_slice(struct arena *a, struct slice s);
void arena_free(struct arena *a);

#endif
