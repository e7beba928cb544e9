/* The nearest of some names, for a misspelt one. */
#include <limits.h>
#include <string.h>

#include "config/config.h"

enum { NAME_BYTES_MAX = 64 };

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Edits between two names: insert, delete, replace, swap of neighbours (optimal string alignment). Only the first
 * NAME_BYTES_MAX bytes of each count. */
static size_t distance(const char *a, const char *b)
{
    size_t m = smaller(strlen(a), NAME_BYTES_MAX), n = smaller(strlen(b), NAME_BYTES_MAX);
    size_t rows[3][NAME_BYTES_MAX + 1];
    size_t *before = rows[0], *last = rows[1], *row = rows[2];
    for (size_t j = 0; j <= n; j++) {
        last[j] = j;
    }
    for (size_t i = 1; i <= m; i++) {
        row[0] = i;
        for (size_t j = 1; j <= n; j++) {
            row[j] = smaller(smaller(last[j], row[j - 1]) + 1, last[j - 1] + (a[i - 1] != b[j - 1]));
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) {
                row[j] = smaller(row[j], before[j - 2] + 1);
            }
        }
        size_t *spare = before;
        before = last;
        last = row;
        row = spare;
    }
    return last[n];
}

/* Twice the edits, less what the two begin with in common: batch_size means batch_tokens rather than map_size. */
static long unlikeness(const char *a, const char *b)
{
    long common = 0;
    while (common < NAME_BYTES_MAX && a[common] && a[common] == b[common]) {
        common++;
    }
    return 2 * (long)distance(a, b) - common;
}

const char *config_nearest(const char *name, const char *const *names, size_t count)
{
    const char *nearest = NULL;
    long best = LONG_MAX;
    for (size_t i = 0; i < count; i++) {
        long score = unlikeness(name, names[i]);
        if (score < best) {
            best = score;
            nearest = names[i];
        }
    }
    return nearest;
}
