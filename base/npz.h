/* Sparse matrices as SciPy's save_npz writes them (CSR): a zip with format.npy, shape.npy, indptr.npy, indices.npy and
 * data.npy, stored or deflated. Read row by row in constant memory; npz_open reads the whole file once before, so that
 * a damaged one is refused before anybody has used a part of it. */
#ifndef ENGRAM_BASE_NPZ_H
#define ENGRAM_BASE_NPZ_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct npz;

/* Checks it all: the entries' checksums, the arrays' types and sizes, that indptr rises from 0 to the number of
 * indices, that each index is a column, that no value is negative or NaN. Errors: FATAL E_NOT_FOUND, E_IO, or E_CORRUPT
 * for a file that is no such matrix; the text begins with the path. */
int npz_open(struct npz **out, const char *path, struct error *e);

uint64_t npz_rows(const struct npz *m);
uint64_t npz_columns(const struct npz *m);

/* The columns of the next row that are not zero, in the file's order (one that is stored twice comes twice): the first
 * `max` of them into columns, how many there are into *count. 1; 0: no further row; -1. */
int npz_row_next(struct npz *m, uint64_t *columns, size_t max, size_t *count, struct error *e);

void npz_close(struct npz *m);

#endif
