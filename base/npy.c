/* See npy.h. */
#include "base/npy.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"

enum { BUFFER_BYTES = 64 << 10, HEADER_BYTES_MAX = 10000 };

int npy_damaged(const struct npy *a, const char *what, struct error *e)
{
    error_set(e, ERROR_FATAL, E_CORRUPT, "%s: %s %s", a->path, a->name, what);
    return -1;
}

/* ---- bytes and items ---- */

/* The next `bytes` of the entry, valid until the next call. */
int npy_bytes(struct npy *a, size_t bytes, const unsigned char **out, struct error *e)
{
    if (a->end - a->at < bytes) {
        memmove(a->buffer, a->buffer + a->at, a->end - a->at);
        a->end -= a->at;
        a->at = 0;
    }
    while (a->end - a->at < bytes) {
        zip_int64_t got = zip_fread(a->file, a->buffer + a->end, BUFFER_BYTES - a->end);
        if (got < 0) {
            return npy_damaged(a, zip_file_strerror(a->file), e);
        }
        if (got == 0) {
            return npy_damaged(a, "is cut short", e);
        }
        a->end += (size_t)got;
    }
    *out = a->buffer + a->at;
    a->at += bytes;
    return 0;
}

/* Nothing may follow the last item; libzip compares the checksum when it is asked for more. */
int npy_end(struct npy *a, struct error *e)
{
    unsigned char more;
    zip_int64_t got = a->at < a->end ? 1 : zip_fread(a->file, &more, 1);
    if (got < 0) {
        return npy_damaged(a, zip_file_strerror(a->file), e);
    }
    return got ? npy_damaged(a, "is longer than its header says", e) : 0;
}

static uint64_t bits_of(const unsigned char *bytes, size_t count)
{
    uint64_t bits = 0;
    for (size_t i = 0; i < count; i++) {
        bits |= (uint64_t)bytes[i] << (8 * i);
    }
    return bits;
}

/* A whole number that is not negative. */
int npy_count(struct npy *a, uint64_t *out, struct error *e)
{
    const unsigned char *bytes;
    if (a->taken == a->items) {
        return npy_damaged(a, "has too few items", e);
    }
    if (npy_bytes(a, a->item_bytes, &bytes, e)) {
        return -1;
    }
    a->taken++;
    *out = bits_of(bytes, a->item_bytes);
    if (bytes[a->item_bytes - 1] & 0x80) {
        return npy_damaged(a, "has a negative number", e);
    }
    return 0;
}

/* Whether the next value is not zero. */
int npy_set(struct npy *a, bool *out, struct error *e)
{
    const unsigned char *bytes;
    if (npy_bytes(a, a->item_bytes, &bytes, e)) {
        return -1;
    }
    a->taken++;
    uint64_t bits = bits_of(bytes, a->item_bytes);
    bool sign = bytes[a->item_bytes - 1] & 0x80;
    if (a->kind == 'f') {
        float narrow;
        double wide;
        if (a->item_bytes == sizeof narrow) {
            uint32_t low = (uint32_t)bits;
            memcpy(&narrow, &low, sizeof narrow);
            wide = (double)narrow;
        } else {
            memcpy(&wide, &bits, sizeof wide);
        }
        *out = wide != 0;
        return wide >= 0 ? 0 : npy_damaged(a, "has a value that is below 0 or NaN: a relevance is 0 or more", e);
    }
    *out = bits != 0;
    return a->kind == 'i' && sign ? npy_damaged(a, "has a value below 0: a relevance is 0 or more", e) : 0;
}

/* ---- an array's header ---- */

/* What follows 'key': in the header, a Python dictionary as NumPy writes it; NULL: no such key. */
static const char *header_value(const char *header, const char *key)
{
    const char *at = strstr(header, key);
    if (at) {
        at += strlen(key);
        at += strspn(at, " ");
    }
    return at;
}

/* '<i8', '|b1', '<U3': the byte order, the kind and the width. */
static int type_read(struct npy *a, const char *header, struct error *e)
{
    const char *at = header_value(header, "'descr':");
    char *end = NULL;
    unsigned long width = 0;
    if (at && at[0] == '\'' && (at[1] == '<' || at[1] == '|') && isalpha((unsigned char)at[2]) &&
        isdigit((unsigned char)at[3])) {
        width = strtoul(at + 3, &end, 10);
        width *= at[2] == 'U' ? 4 : 1;
    }
    if (!end || *end != '\'' || width == 0 || width > NPY_ITEM_BYTES_MAX) {
        size_t shown = at ? strcspn(at, ",}\n") : 0;
        return error_set(
            e, ERROR_FATAL, E_CORRUPT,
            "%s: %s is of type %.*s: only little-endian numbers can be read (scipy.sparse.save_npz writes them)",
            a->path, a->name,
            shown == 0   ? 7
            : shown > 40 ? 40
                         : (int)shown,
            shown ? at : "unknown");
    }
    a->kind = at[2];
    a->item_bytes = width;
    return 0;
}

/* () or (5,): an array of one dimension or of none. */
static int shape_read(struct npy *a, const char *header, struct error *e)
{
    const char *at = header_value(header, "'shape':");
    char *end = NULL;
    a->items = 1;
    a->dimensions = 0;
    if (at && strncmp(at, "()", 2) == 0) {
        return 0;
    }
    if (at && at[0] == '(' && isdigit((unsigned char)at[1])) {
        errno = 0;
        a->items = strtoull(at + 1, &end, 10);
        a->dimensions = 1;
    }
    if (!end || errno || strncmp(end, ",)", 2) != 0 || a->items > UINT64_MAX / NPY_ITEM_BYTES_MAX / 2) {
        return npy_damaged(a, "does not have one dimension", e);
    }
    return 0;
}

static int header_read(struct npy *a, uint64_t entry_bytes, struct error *e)
{
    char header[HEADER_BYTES_MAX + 1];
    const unsigned char *bytes;
    if (npy_bytes(a, 10, &bytes, e)) {
        return -1;
    }
    bool wide = bytes[6] >= 2;
    if (memcmp(bytes, "\x93NUMPY", 6) != 0 || bytes[6] < 1 || bytes[6] > 3) {
        return npy_damaged(a, "is not a NumPy array (npy, version 1 to 3)", e);
    }
    uint64_t header_bytes = bits_of(bytes + 8, 2);
    if (wide) {
        uint64_t low = header_bytes;
        if (npy_bytes(a, 2, &bytes, e)) {
            return -1;
        }
        header_bytes = low | bits_of(bytes, 2) << 16;
    }
    if (header_bytes > HEADER_BYTES_MAX) {
        return npy_damaged(a, "has a header that is too long", e);
    }
    if (npy_bytes(a, (size_t)header_bytes, &bytes, e)) {
        return -1;
    }
    memcpy(header, bytes, (size_t)header_bytes);
    header[header_bytes] = '\0';
    const char *order = header_value(header, "'fortran_order':");
    if (!order || strncmp(order, "False", 5) != 0) {
        return npy_damaged(a, "is in Fortran order, or does not say: it must be in C order", e);
    }
    if (type_read(a, header, e) || shape_read(a, header, e)) {
        return -1;
    }
    uint64_t head = (wide ? 12U : 10U) + header_bytes;
    if (entry_bytes < head || entry_bytes - head != a->items * a->item_bytes) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s: %s has %" PRIu64 " bytes, but its header says %" PRIu64 " items of %zu bytes", a->path,
                         a->name, entry_bytes, a->items, a->item_bytes);
    }
    return 0;
}

/* ---- the entry ---- */

int npy_open(struct npy *a, zip_t *zip, const char *path, const char *name, struct error *e)
{
    zip_stat_t status;
    zip_int64_t index = zip_name_locate(zip, name, 0);
    npy_close(a);
    a->path = path;
    a->name = name;
    if (index < 0) {
        error_set(e, ERROR_FATAL, E_CORRUPT, "%s has no %s: it is not a sparse matrix of scipy.sparse.save_npz", path,
                  name);
        return -1;
    }
    if (zip_stat_index(zip, (zip_uint64_t)index, 0, &status) || !(status.valid & ZIP_STAT_SIZE)) {
        return npy_damaged(a, "has no size", e);
    }
    a->file = zip_fopen_index(zip, (zip_uint64_t)index, 0);
    if (!a->file) {
        return npy_damaged(a, zip_strerror(zip), e);
    }
    a->buffer = mem_alloc(BUFFER_BYTES);
    return header_read(a, status.size, e);
}

void npy_close(struct npy *a)
{
    if (a->file) {
        zip_fclose(a->file);
    }
    free(a->buffer);
    *a = (struct npy){0};
}
