/* filter_labels_test.txt and filter_labels_train.txt: see data.h. A line holds a row and a label, both from 0: the
 * text is that label itself ("reciprocal pairs"), so it would be no merit to predict it. Only evaluation looks at them,
 * as the field does; what was learnt keeps its labels. All pairs are kept in RAM, 16 bytes each. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "cli/data_forms.h"

enum { PAIR_BYTES_MAX = 256 };

struct pair {
    uint64_t row, label;
};

struct pairs {
    char *path;
    struct pair *all; /* by row */
    size_t count, capacity;
    uint64_t row_max, row_max_line;
    uint64_t *labels; /* of the row last asked for */
};

static int by_row(const void *a, const void *b)
{
    const struct pair *x = a, *y = b;
    return x->row != y->row ? (x->row > y->row) - (x->row < y->row) : (x->label > y->label) - (x->label < y->label);
}

/* Digits, then what ends them. */
static bool number_read(const char **at, const char *end, uint64_t *out)
{
    const char *start = *at;
    *out = 0;
    for (; *at < end && **at >= '0' && **at <= '9' && *at - start < 18; (*at)++) {
        *out = 10 * *out + (uint64_t)(**at - '0');
    }
    bool read = *at > start && (*at == end || **at == ' ' || **at == '\t');
    while (*at < end && (**at == ' ' || **at == '\t')) {
        (*at)++;
    }
    return read;
}

static int pair_read(struct slice line, size_t labels, struct pair *out, struct error *e)
{
    const char *at = line.data, *end = line.data + line.bytes;
    if (!number_read(&at, end, &out->row) || !number_read(&at, end, &out->label) || at != end) {
        return error_set(e, ERROR_POISON, E_FORMAT, "must have two numbers, a row and a label, both from 0");
    }
    if (out->label >= labels) {
        return error_set(e, ERROR_POISON, E_FORMAT, "names label %" PRIu64 " (from 0), but there are %zu", out->label,
                         labels);
    }
    return 0;
}

static int pairs_read(struct pairs *p, struct data_file *f, size_t labels, struct error *e)
{
    struct lines *lines = NULL;
    struct slice line;
    int found = 1;
    if (lines_open(&lines, p->path, PAIR_BYTES_MAX, e)) {
        return -1;
    }
    while (found > 0) {
        struct pair pair;
        struct error why = {0};
        found = lines_next(lines, &line, &why);
        if (found < 0 && why.kind != ERROR_POISON) {
            *e = why;
        } else if (found < 0 || (found > 0 && line.bytes && pair_read(line, labels, &pair, &why))) {
            data_bad_at(f, p->path, lines_number(lines), &why);
            found = 1;
        } else if (found > 0 && line.bytes) {
            if (p->count == p->capacity) {
                p->capacity = p->capacity ? 2 * p->capacity : 1024;
                p->all = mem_resize(p->all, p->capacity * sizeof *p->all);
            }
            if (pair.row >= p->row_max) {
                p->row_max = pair.row;
                p->row_max_line = lines_number(lines);
            }
            p->all[p->count++] = pair;
        }
    }
    lines_close(lines);
    return found;
}

int pairs_open(struct pairs **out, struct data_file *f, size_t labels, struct error *e)
{
    bool train = data_is_named(f->path, "trn.json") || data_is_named(f->path, "trn_X.txt");
    bool test = data_is_named(f->path, "tst.json") || data_is_named(f->path, "tst_X.txt");
    char *path = train || test ? data_beside(f->path, train ? "filter_labels_train.txt" : "filter_labels_test.txt",
                                             f->form == DATA_DEXML)
                               : NULL;
    *out = NULL;
    if (!path) {
        return 0;
    }
    struct pairs *p = mem_zero(1, sizeof *p);
    *out = p;
    p->path = path;
    if (pairs_read(p, f, labels, e)) {
        return -1;
    }
    if (p->count) {
        qsort(p->all, p->count, sizeof *p->all, by_row);
    }
    return 0;
}

const uint64_t *pairs_of(struct pairs *p, uint64_t row, size_t *count)
{
    size_t low = 0, high = p ? p->count : 0;
    *count = 0;
    if (!p) {
        return NULL;
    }
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (p->all[middle].row < row) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    while (low + *count < p->count && p->all[low + *count].row == row) {
        ++*count;
    }
    p->labels = mem_resize(p->labels, (*count + 1) * sizeof *p->labels);
    for (size_t i = 0; i < *count; i++) {
        p->labels[i] = p->all[low + i].label;
    }
    return p->labels;
}

void pairs_end(struct pairs *p, struct data_file *f, uint64_t rows)
{
    if (p && p->count && p->row_max >= rows) {
        struct error e;
        error_set(&e, ERROR_POISON, E_FORMAT, "names row %" PRIu64 " (from 0), but %s has %" PRIu64 " lines",
                  p->row_max, f->path, rows);
        data_bad_at(f, p->path, p->row_max_line, &e);
    }
}

void pairs_close(struct pairs *p)
{
    if (p) {
        free(p->labels);
        free(p->all);
        free(p->path);
        free(p);
    }
}
