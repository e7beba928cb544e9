/* Allocation, slices, buffers and arenas: see buffer.h. */
#include "base/buffer.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void (*mem_say)(const char *line);

void mem_failure_to(void (*say)(const char *line))
{
    mem_say = say;
}

/* _exit: other threads still run, and what they share must not be taken away under them. */
_Noreturn static void mem_failed(size_t bytes)
{
    static atomic_flag said = ATOMIC_FLAG_INIT;
    char line[160];
    while (atomic_flag_test_and_set(&said)) {
        pause(); /* another thread is about to end the process */
    }
    snprintf(line, sizeof line, "out of memory: %zu bytes could not be allocated: raise the limit, or use less", bytes);
    if (mem_say) {
        mem_say(line);
    } else {
        fprintf(stderr, "engram: %s\n", line);
    }
    _exit(1);
}

static void *mem_checked(void *p, size_t bytes)
{
    if (!p) {
        mem_failed(bytes);
    }
    return p;
}

/* A product that does not fit asks for more than there can be. */
static size_t mem_product(size_t count, size_t bytes)
{
    return bytes && count > SIZE_MAX / bytes ? SIZE_MAX : count * bytes;
}

void *mem_alloc(size_t bytes)
{
    return mem_checked(malloc(bytes ? bytes : 1), bytes);
}

void *mem_zero(size_t count, size_t bytes)
{
    return mem_checked(calloc(count ? count : 1, bytes ? bytes : 1), mem_product(count, bytes));
}

void *mem_resize(void *old, size_t bytes)
{
    return mem_checked(realloc(old, bytes ? bytes : 1), bytes);
}

char *mem_string(const char *data, size_t bytes)
{
    char *copy = mem_alloc(bytes + 1);
    if (bytes) {
        memcpy(copy, data, bytes);
    }
    copy[bytes] = '\0';
    return copy;
}

void *mem_aligned(size_t alignment, size_t bytes)
{
    size_t rounded = bytes > SIZE_MAX - alignment ? 0 : (bytes + alignment - 1) / alignment * alignment;
    return mem_checked(bytes && !rounded ? NULL : aligned_alloc(alignment, rounded ? rounded : alignment), bytes);
}

struct slice slice_of(const char *string)
{
    return (struct slice){string, string ? strlen(string) : 0};
}

bool slice_equal(struct slice a, struct slice b)
{
    return a.bytes == b.bytes && (a.bytes == 0 || memcmp(a.data, b.data, a.bytes) == 0);
}

struct slice slice_of_last_name(const char *path)
{
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') {
        end--;
    }
    size_t start = end;
    while (start > 0 && path[start - 1] != '/') {
        start--;
    }
    return (struct slice){path + start, end - start};
}

int slice_compare(struct slice a, struct slice b)
{
    size_t shared = a.bytes < b.bytes ? a.bytes : b.bytes;
    int order = shared ? memcmp(a.data, b.data, shared) : 0;
    return order ? order : (a.bytes > b.bytes) - (a.bytes < b.bytes);
}

int slice_order(const void *a, const void *b)
{
    return slice_compare(*(const struct slice *)a, *(const struct slice *)b);
}

void slices_sort(struct slice *slices, size_t count)
{
    if (count) { /* qsort takes no NULL */
        qsort(slices, count, sizeof *slices, slice_order);
    }
}

void buffer_reserve(struct buffer *b, size_t more)
{
    size_t need = b->bytes + more + 1;
    if (need <= more) {
        mem_failed(more);
    }
    if (need <= b->capacity) {
        return;
    }
    size_t capacity = b->capacity ? b->capacity : 64;
    while (capacity < need) {
        capacity = capacity > SIZE_MAX / 2 ? need : 2 * capacity;
    }
    b->data = mem_resize(b->data, capacity);
    b->capacity = capacity;
}

void buffer_append(struct buffer *b, const void *data, size_t bytes)
{
    buffer_reserve(b, bytes);
    if (bytes) {
        memcpy(b->data + b->bytes, data, bytes);
    }
    b->bytes += bytes;
    b->data[b->bytes] = '\0';
}

void buffer_byte(struct buffer *b, char c)
{
    buffer_append(b, &c, 1);
}

void buffer_string(struct buffer *b, const char *string)
{
    buffer_append(b, string, strlen(string));
}

void buffer_format(struct buffer *b, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    va_list again;
    va_copy(again, arguments);
    int bytes = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (bytes > 0) {
        buffer_reserve(b, (size_t)bytes);
        vsnprintf(b->data + b->bytes, (size_t)bytes + 1, format, again);
        b->bytes += (size_t)bytes;
    }
    va_end(again);
}

void buffer_clear(struct buffer *b)
{
    b->bytes = 0;
    if (b->data) {
        b->data[0] = '\0';
    }
}

void buffer_free(struct buffer *b)
{
    free(b->data);
    *b = (struct buffer){0};
}

struct arena_chunk {
    struct arena_chunk *next;
    size_t used;
    size_t capacity;
    _Alignas(16) char data[];
};

enum { ARENA_CHUNK_BYTES = 4096 - sizeof(struct arena_chunk) };

void *arena_alloc(struct arena *a, size_t bytes)
{
    size_t rounded = (bytes + 15) & ~(size_t)15;
    if (rounded < bytes || rounded > SIZE_MAX - sizeof(struct arena_chunk)) {
        mem_failed(bytes);
    }
    struct arena_chunk *chunk = a->chunks;
    if (!chunk || chunk->capacity - chunk->used < rounded) {
        size_t capacity = rounded > ARENA_CHUNK_BYTES ? rounded : ARENA_CHUNK_BYTES;
        chunk = mem_alloc(sizeof *chunk + capacity);
        *chunk = (struct arena_chunk){.next = a->chunks, .capacity = capacity};
        a->chunks = chunk;
    }
    void *p = chunk->data + chunk->used;
    chunk->used += rounded;
    return p;
}

char *arena_string(struct arena *a, const char *data, size_t bytes)
{
    char *copy = arena_alloc(a, bytes + 1);
    if (bytes) {
        memcpy(copy, data, bytes);
    }
    copy[bytes] = '\0';
    return copy;
}

struct slice arena_slice(struct arena *a, struct slice s)
{
    return (struct slice){arena_string(a, s.data, s.bytes), s.bytes};
}

void arena_free(struct arena *a)
{
    for (struct arena_chunk *chunk = a->chunks; chunk;) {
        struct arena_chunk *next = chunk->next;
        free(chunk);
        chunk = next;
    }
    a->chunks = NULL;
}
