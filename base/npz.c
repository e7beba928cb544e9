/* See npz.h. The arrays (npy.h) indptr, indices and data are walked side by side: all three have the rows in the same
 * order, so no more than a buffer of each is held. */
#include "base/npz.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "base/npy.h"

enum { FORMAT, SHAPE, INDPTR, INDICES, DATA, ARRAYS };

static const char *const array_names[ARRAYS] = {"format.npy", "shape.npy", "indptr.npy", "indices.npy", "data.npy"};

struct npz {
    char *path;
    zip_t *zip;
    struct npy arrays[ARRAYS];
    uint64_t rows, columns, row;
    uint64_t start; /* of the next row, as indptr has it */
};

/* ---- the archive ---- */

static void arrays_close(struct npz *m)
{
    for (int i = 0; i < ARRAYS; i++) {
        npy_close(&m->arrays[i]);
    }
}

/* format.npy says "csr", in bytes or (older SciPy) in characters of four bytes. */
static int format_check(struct npz *m, struct error *e)
{
    struct npy *a = &m->arrays[FORMAT];
    const unsigned char *bytes;
    char name[NPY_ITEM_BYTES_MAX + 1] = {0};
    if ((a->kind != 'S' && a->kind != 'U') || a->items != 1) {
        return npy_damaged(a, "is not a name", e);
    }
    if (npy_bytes(a, a->item_bytes, &bytes, e)) {
        return -1;
    }
    size_t step = a->kind == 'U' ? 4 : 1;
    for (size_t i = 0; i < a->item_bytes / step; i++) {
        name[i] = (char)(bytes[i * step] > 0x20 && bytes[i * step] < 0x7f ? bytes[i * step] : '\0');
    }
    if (strcmp(name, "csr") != 0) {
        return error_set(e, ERROR_FATAL, E_CORRUPT, "%s has a matrix of format \"%s\": save it as csr (.tocsr())",
                         m->path, name);
    }
    return npy_end(a, e);
}

static bool is_counts(const struct npy *a)
{
    return a->kind == 'i' && (a->item_bytes == 4 || a->item_bytes == 8) && a->dimensions == 1;
}

static int sizes_check(struct npz *m, struct error *e)
{
    struct npy *shape = &m->arrays[SHAPE], *indptr = &m->arrays[INDPTR], *indices = &m->arrays[INDICES],
               *data = &m->arrays[DATA];
    for (int i = SHAPE; i <= INDICES; i++) {
        if (!is_counts(&m->arrays[i])) {
            return npy_damaged(&m->arrays[i], "must be a row of whole numbers of 4 or 8 bytes (int32, int64)", e);
        }
    }
    bool number = data->kind == 'f' ? data->item_bytes == 4 || data->item_bytes == 8
                                    : strchr("iub", data->kind) && data->item_bytes <= 8;
    if (!number || data->dimensions != 1) {
        return npy_damaged(data, "must be a row of numbers (float32, float64, integers or bool)", e);
    }
    if (shape->items != 2) {
        return npy_damaged(shape, "must have two numbers: rows and columns", e);
    }
    if (npy_count(shape, &m->rows, e) || npy_count(shape, &m->columns, e) || npy_end(shape, e)) {
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
    for (int i = 0; i < ARRAYS; i++) {
        if (npy_open(&m->arrays[i], m->zip, m->path, array_names[i], e)) {
            return -1;
        }
    }
    m->row = 0;
    if (format_check(m, e) || sizes_check(m, e) || npy_count(&m->arrays[INDPTR], &m->start, e)) {
        return -1;
    }
    return m->start ? npy_damaged(&m->arrays[INDPTR], "does not begin with 0", e) : 0;
}

static int matrix_end(struct npz *m, struct error *e)
{
    if (m->start != m->arrays[INDICES].items) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s: indptr.npy ends with %" PRIu64 ", but there are %" PRIu64 " indices", m->path, m->start,
                         m->arrays[INDICES].items);
    }
    return npy_end(&m->arrays[INDPTR], e) || npy_end(&m->arrays[INDICES], e) || npy_end(&m->arrays[DATA], e) ? -1 : 0;
}

int npz_row_next(struct npz *m, uint64_t *columns, size_t max, size_t *count, struct error *e)
{
    uint64_t end, column;
    bool set;
    *count = 0;
    if (m->row == m->rows) {
        return matrix_end(m, e);
    }
    if (npy_count(&m->arrays[INDPTR], &end, e)) {
        return -1;
    }
    if (end < m->start || end > m->arrays[INDICES].items) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s: row %" PRIu64 " (from 0) ends at %" PRIu64
                         ": indptr.npy must increase from 0 to the number of indices, %" PRIu64,
                         m->path, m->row, end, m->arrays[INDICES].items);
    }
    for (; m->start < end; m->start++) {
        if (npy_count(&m->arrays[INDICES], &column, e) || npy_set(&m->arrays[DATA], &set, e)) {
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
            error_set(e, ERROR_FATAL, E_CORRUPT, "%s is not a sparse matrix of scipy.sparse.save_npz: %s", m->path,
                      zip_error_strerror(&error));
        }
        zip_error_fini(&error);
        return -1;
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
    free(m->path);
    free(m);
}
