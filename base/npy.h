/* One array of NumPy in a zip (an npz's entry): its header, of npy format 1 to 3, then its items one after the other
 * through a small buffer. libzip inflates, and checks the checksum where the entry ends. Little-endian numbers, bytes
 * and characters, of one dimension or none, are read; nothing is allocated by what the header says. All errors are
 * FATAL E_CORRUPT and begin with the path. */
#ifndef ENGRAM_BASE_NPY_H
#define ENGRAM_BASE_NPY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <zip.h>

#include "base/error.h"

enum { NPY_ITEM_BYTES_MAX = 32 };

/* Zero-initialise. */
struct npy {
    const char *path, *name; /* borrowed: the zip's, "indptr.npy" */
    char kind;               /* of its dtype: i u f b S U */
    size_t item_bytes;       /* at most NPY_ITEM_BYTES_MAX */
    size_t dimensions;       /* 0 or 1 */
    uint64_t items, taken;   /* how many it holds; how many npy_count took */
    zip_file_t *file;
    unsigned char *buffer;
    size_t at, end; /* what is unread of the buffer */
};

/* At the first item. Closes what was open. */
int npy_open(struct npy *a, zip_t *zip, const char *path, const char *name, struct error *e);
/* The next `bytes` (at most 10,000), valid until the next call. */
int npy_bytes(struct npy *a, size_t bytes, const unsigned char **out, struct error *e);
/* The next item, a whole number that is not negative. */
int npy_count(struct npy *a, uint64_t *out, struct error *e);
/* Whether the next item, a number of at most 8 bytes that is 0 or more, is not 0. */
int npy_set(struct npy *a, bool *out, struct error *e);
/* Nothing may follow the last item. */
int npy_end(struct npy *a, struct error *e);
int npy_damaged(const struct npy *a, const char *what, struct error *e); /* "path: name what"; returns -1 */
void npy_close(struct npy *a);

#endif
