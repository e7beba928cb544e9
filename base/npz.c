/* See npz.h. libzip takes the archive apart, inflates, and checks the checksum where an entry ends. Here the five
 * arrays' headers (NumPy's npy format 1 to 3) are read, and indptr, indices and data walked side by side, each through
 * a small buffer: rows stand in all three in the same order. Nothing is allocated by what the file says of itself. */
#include "base/npz.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zip.h>

#include "base/buffer.h"

enum { BUFFER_BYTES = 64 << 10, HEADER_BYTES_MAX = 10000, ITEM_BYTES_MAX = 32 };

/* One array: where its next item stands. */
struct array {
    const char *name; /* "indptr.npy" */
    zip_file_t *file;
    char kind;         /* of its dtype: i u f b S U */
    size_t item_bytes; /* at most ITEM_BYTES_MAX */
    size_t dimensions; /* 0 or 1 */
    uint64_t items;    /* how many it holds */
    uint64_t taken;
    unsigned char *buffer; /* [BUFFER_BYTES] */
    size_t at, end;
};

enum { FORMAT, SHAPE, INDPTR, INDICES, DATA, ARRAYS };

static const char *const array_names[ARRAYS] = {"format.npy", "shape.npy", "indptr.npy", "indices.npy", "data.npy"};

struct npz {
    char *path;
    zip_t *zip;
    struct array arrays[ARRAYS];
    uint64_t rows, columns, row;
    uint64_t start; /* of the next row, as indptr has it */
};

static int array_damaged(const struct npz *m, const struct array *a, const char *what, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_CORRUPT, "%s: %s %s", m->path, a->name, what);
}

/* ---- bytes and items ---- */

/* The next `bytes` of the entry, valid until the next call. */
static int array_bytes(const struct npz *m, struct array *a, size_t bytes, const unsigned char **out, struct error *e)
{
    if (a->end - a->at < bytes) {
        memmove(a->buffer, a->buffer + a->at, a->end - a->at);
        a->end -= a->at;
        a->at = 0;
    }
    while (a->end - a->at < bytes) {
        zip_int64_t got = zip_fread(a->file, a->buffer + a->end, BUFFER_BYTES - a->end);
        if (got < 0) {
            return array_damaged(m, a, zip_file_strerror(a->file), e);
        }
        if (got == 0) {
            return array_damaged(m, a, "is cut short", e);
        }
        a->end += (size_t)got;
    }
    *out = a->buffer + a->at;
    a->at += bytes;
    return 0;
}

/* Behind the last item nothing may stand; libzip compares the checksum when it is asked for more. */
static int array_end(const struct npz *m, struct array *a, struct error *e)
{
    unsigned char more;
    zip_int64_t got = a->at < a->end ? 1 : zip_fread(a->file, &more, 1);
    if (got < 0) {
        return array_damaged(m, a, zip_file_strerror(a->file), e);
    }
    return got ? array_damaged(m, a, "is longer than its header says", e) : 0;
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
static int array_count(const struct npz *m, struct array *a, uint64_t *out, struct error *e)
{
    const unsigned char *bytes;
    if (a->taken == a->items) {
        return array_damaged(m, a, "has too few items", e);
    }
    if (array_bytes(m, a, a->item_bytes, &bytes, e)) {
        return -1;
    }
    a->taken++;
    *out = bits_of(bytes, a->item_bytes);
    if (bytes[a->item_bytes - 1] & 0x80) {
        return array_damaged(m, a, "holds a negative number", e);
    }
    return 0;
}

/* Whether the next value is not zero. */
static int array_set(const struct npz *m, struct array *a, bool *out, struct error *e)
{
    const unsigned char *bytes;
    if (array_bytes(m, a, a->item_bytes, &bytes, e)) {
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
        return wide >= 0 ? 0 : array_damaged(m, a, "holds a value below 0 or NaN: a relevance is 0 or more", e);
    }
    *out = bits != 0;
    return a->kind == 'i' && sign ? array_damaged(m, a, "holds a value below 0: a relevance is 0 or more", e) : 0;
}

/* ---- an array's header ---- */

/* What stands behind 'key': in the header, a Python dictionary as NumPy writes it; NULL: no such key. */
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
static int type_read(const struct npz *m, struct array *a, const char *header, struct error *e)
{
    const char *at = header_value(header, "'descr':");
    char *end = NULL;
    unsigned long width = 0;
    if (at && at[0] == '\'' && (at[1] == '<' || at[1] == '|') && isalpha((unsigned char)at[2]) &&
        isdigit((unsigned char)at[3])) {
        width = strtoul(at + 3, &end, 10);
        width *= at[2] == 'U' ? 4 : 1;
    }
    if (!end || *end != '\'' || width == 0 || width > ITEM_BYTES_MAX) {
        size_t shown = at ? strcspn(at, ",}\n") : 0;
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s: %s is of type %.*s: little-endian numbers are read (scipy.sparse.save_npz writes them)",
                         m->path, a->name,
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
static int shape_read(const struct npz *m, struct array *a, const char *header, struct error *e)
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
    if (!end || errno || strncmp(end, ",)", 2) != 0 || a->items > UINT64_MAX / ITEM_BYTES_MAX / 2) {
        return array_damaged(m, a, "has a shape that is not of one dimension", e);
    }
    return 0;
}

static int header_read(const struct npz *m, struct array *a, uint64_t entry_bytes, struct error *e)
{
    char header[HEADER_BYTES_MAX + 1];
    const unsigned char *bytes;
    if (array_bytes(m, a, 10, &bytes, e)) {
        return -1;
    }
    bool wide = bytes[6] >= 2;
    if (memcmp(bytes, "\x93NUMPY", 6) != 0 || bytes[6] < 1 || bytes[6] > 3) {
        return array_damaged(m, a, "is no array of NumPy (npy, version 1 to 3)", e);
    }
    uint64_t header_bytes = bits_of(bytes + 8, 2);
    if (wide) {
        uint64_t low = header_bytes;
        if (array_bytes(m, a, 2, &bytes, e)) {
            return -1;
        }
        header_bytes = low | bits_of(bytes, 2) << 16;
    }
    if (header_bytes > HEADER_BYTES_MAX) {
        return array_damaged(m, a, "has a header that is too long", e);
    }
    if (array_bytes(m, a, (size_t)header_bytes, &bytes, e)) {
        return -1;
    }
    memcpy(header, bytes, (size_t)header_bytes);
    header[header_bytes] = '\0';
    const char *order = header_value(header, "'fortran_order':");
    if (!order || strncmp(order, "False", 5) != 0) {
        return array_damaged(m, a, "is in Fortran's order, or does not say: it must be in C's", e);
    }
    if (type_read(m, a, header, e) || shape_read(m, a, header, e)) {
        return -1;
    }
    uint64_t head = (wide ? 12U : 10U) + header_bytes;
    if (entry_bytes < head || entry_bytes - head != a->items * a->item_bytes) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s: %s has %" PRIu64 " bytes, but its header says %" PRIu64 " items of %zu bytes", m->path,
                         a->name, entry_bytes, a->items, a->item_bytes);
    }
    return 0;
}

/* ---- the archive ---- */

static int array_open(struct npz *m, struct array *a, struct error *e)
{
    zip_stat_t status;
    zip_int64_t index = zip_name_locate(m->zip, a->name, 0);
    if (index < 0) {
        return error_set(e, ERROR_FATAL, E_CORRUPT, "%s holds no %s: it is no sparse matrix of scipy.sparse.save_npz",
                         m->path, a->name);
    }
    if (zip_stat_index(m->zip, (zip_uint64_t)index, 0, &status) || !(status.valid & ZIP_STAT_SIZE)) {
        return array_damaged(m, a, "has no size", e);
    }
    a->file = zip_fopen_index(m->zip, (zip_uint64_t)index, 0);
    if (!a->file) {
        return array_damaged(m, a, zip_strerror(m->zip), e);
    }
    a->at = a->end = 0;
    a->taken = 0;
    return header_read(m, a, status.size, e);
}

static void arrays_close(struct npz *m)
{
    for (int i = 0; i < ARRAYS; i++) {
        if (m->arrays[i].file) {
            zip_fclose(m->arrays[i].file);
        }
        m->arrays[i].file = NULL;
    }
}

/* format.npy says "csr", in bytes or (older SciPy) in characters of four bytes. */
static int format_check(struct npz *m, struct error *e)
{
    struct array *a = &m->arrays[FORMAT];
    const unsigned char *bytes;
    char name[ITEM_BYTES_MAX + 1] = {0};
    if ((a->kind != 'S' && a->kind != 'U') || a->items != 1) {
        return array_damaged(m, a, "is no name", e);
    }
    if (array_bytes(m, a, a->item_bytes, &bytes, e)) {
        return -1;
    }
    size_t step = a->kind == 'U' ? 4 : 1;
    for (size_t i = 0; i < a->item_bytes / step; i++) {
        name[i] = (char)(bytes[i * step] > 0x20 && bytes[i * step] < 0x7f ? bytes[i * step] : '\0');
    }
    if (strcmp(name, "csr") != 0) {
        return error_set(e, ERROR_FATAL, E_CORRUPT, "%s holds a matrix of format \"%s\": save it as csr (.tocsr())",
                         m->path, name);
    }
    return array_end(m, a, e);
}

static bool is_counts(const struct array *a)
{
    return a->kind == 'i' && (a->item_bytes == 4 || a->item_bytes == 8) && a->dimensions == 1;
}

static int sizes_check(struct npz *m, struct error *e)
{
    struct array *shape = &m->arrays[SHAPE], *indptr = &m->arrays[INDPTR], *indices = &m->arrays[INDICES],
                 *data = &m->arrays[DATA];
    for (int i = SHAPE; i <= INDICES; i++) {
        if (!is_counts(&m->arrays[i])) {
            return array_damaged(m, &m->arrays[i], "must be a row of whole numbers of 4 or 8 bytes (int32, int64)", e);
        }
    }
    bool number = data->kind == 'f' ? data->item_bytes == 4 || data->item_bytes == 8
                                    : strchr("iub", data->kind) && data->item_bytes <= 8;
    if (!number || data->dimensions != 1) {
        return array_damaged(m, data, "must be a row of numbers (float32, float64, whole ones or bool)", e);
    }
    if (shape->items != 2) {
        return array_damaged(m, shape, "must hold two numbers: rows and columns", e);
    }
    if (array_count(m, shape, &m->rows, e) || array_count(m, shape, &m->columns, e) || array_end(m, shape, e)) {
        return -1;
    }
    if (indptr->items == 0 || indptr->items - 1 != m->rows) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s: indptr.npy has %" PRIu64 " items, but a matrix of %" PRIu64
                         " rows has one more than rows",
                         m->path, indptr->items, m->rows);
    }
    if (indices->items != data->items) {
        return error_set(e, ERROR_FATAL, E_CORRUPT, "%s: indices.npy has %" PRIu64 " items, data.npy %" PRIu64, m->path,
                         indices->items, data->items);
    }
    return 0;
}

/* Opens the five arrays at their beginning: before the first row. */
static int matrix_start(struct npz *m, struct error *e)
{
    arrays_close(m);
    for (int i = 0; i < ARRAYS; i++) {
        if (array_open(m, &m->arrays[i], e)) {
            return -1;
        }
    }
    m->row = 0;
    if (format_check(m, e) || sizes_check(m, e) || array_count(m, &m->arrays[INDPTR], &m->start, e)) {
        return -1;
    }
    return m->start ? array_damaged(m, &m->arrays[INDPTR], "does not begin with 0", e) : 0;
}

static int matrix_end(struct npz *m, struct error *e)
{
    if (m->start != m->arrays[INDICES].items) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s: indptr.npy ends with %" PRIu64 ", but there are %" PRIu64 " indices", m->path, m->start,
                         m->arrays[INDICES].items);
    }
    return array_end(m, &m->arrays[INDPTR], e) || array_end(m, &m->arrays[INDICES], e) ||
                   array_end(m, &m->arrays[DATA], e)
               ? -1
               : 0;
}

int npz_row_next(struct npz *m, uint64_t *columns, size_t max, size_t *count, struct error *e)
{
    uint64_t end, column;
    bool set;
    *count = 0;
    if (m->row == m->rows) {
        return matrix_end(m, e);
    }
    if (array_count(m, &m->arrays[INDPTR], &end, e)) {
        return -1;
    }
    if (end < m->start || end > m->arrays[INDICES].items) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s: row %" PRIu64 " (from 0) ends at %" PRIu64
                         ": indptr.npy must rise from 0 to the number of indices, %" PRIu64,
                         m->path, m->row, end, m->arrays[INDICES].items);
    }
    for (; m->start < end; m->start++) {
        if (array_count(m, &m->arrays[INDICES], &column, e) || array_set(m, &m->arrays[DATA], &set, e)) {
            return -1;
        }
        if (column >= m->columns) {
            return error_set(e, ERROR_FATAL, E_CORRUPT,
                             "%s: row %" PRIu64 " names column %" PRIu64 " (both from 0), but there are %" PRIu64
                             " columns",
                             m->path, m->row, column, m->columns);
        }
        if (set && *count < max) {
            columns[*count] = column;
        }
        *count += set;
    }
    m->row++;
    return 1;
}

static int archive_open(struct npz *m, struct error *e)
{
    int code = 0;
    m->zip = zip_open(m->path, ZIP_RDONLY, &code);
    if (!m->zip) {
        int number = errno;
        zip_error_t error;
        zip_error_init_with_code(&error, code);
        if (code == ZIP_ER_NOENT || code == ZIP_ER_OPEN || code == ZIP_ER_READ) {
            error_set(e, ERROR_FATAL, code == ZIP_ER_NOENT ? E_NOT_FOUND : E_IO, "cannot open %s: %s", m->path,
                      strerror(number));
        } else {
            error_set(e, ERROR_FATAL, E_CORRUPT, "%s is no sparse matrix of scipy.sparse.save_npz: %s", m->path,
                      zip_error_strerror(&error));
        }
        zip_error_fini(&error);
        return -1;
    }
    for (int i = 0; i < ARRAYS; i++) {
        m->arrays[i].name = array_names[i];
        m->arrays[i].buffer = mem_alloc(BUFFER_BYTES);
    }
    return 0;
}

int npz_open(struct npz **out, const char *path, struct error *e)
{
    struct npz *m = mem_zero(1, sizeof *m);
    size_t count;
    int found = -1;
    *out = NULL;
    m->path = mem_string(path, strlen(path));
    if (archive_open(m, e) == 0 && matrix_start(m, e) == 0) {
        do {
            found = npz_row_next(m, NULL, 0, &count, e);
        } while (found > 0);
    }
    if (found < 0 || matrix_start(m, e)) {
        npz_close(m);
        return -1;
    }
    *out = m;
    return 0;
}

uint64_t npz_rows(const struct npz *m)
{
    return m->rows;
}

uint64_t npz_columns(const struct npz *m)
{
    return m->columns;
}

void npz_close(struct npz *m)
{
    if (!m) {
        return;
    }
    arrays_close(m);
    if (m->zip) {
        zip_discard(m->zip);
    }
    for (int i = 0; i < ARRAYS; i++) {
        free(m->arrays[i].buffer);
    }
    free(m->path);
    free(m);
}
