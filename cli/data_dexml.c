/* The layout of DEXML and of what builds on it: see data.h. trn_X.txt and tst_X.txt hold a text a line, Y.txt a label's
 * text a line, Y.trn.npz and Y.tst.npz a row for each text and a column for each label. Nobody has a name here: labels
 * are called by their number, texts trn-N and tst-N, all from 0. Since numbers are all that holds the files together,
 * one that has a line too many or too few is refused before any of it is used. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/npz.h"
#include "cli/data_forms.h"

struct dexml {
    const char *prefix;
    struct npz *matrix; /* NULL: labels, or nobody asks for them */
    uint64_t row;       /* the matrix's next */
    uint64_t columns[RECORD_LABELS_MAX];
};

static int lines_number_of(const char *path, uint64_t *count, struct error *e)
{
    struct lines *lines = NULL;
    struct slice line;
    int found = 1;
    *count = 0;
    if (lines_open(&lines, path, DATA_LINE_BYTES_MAX, e)) {
        return -1;
    }
    while (found > 0) {
        struct error why = {0};
        found = lines_next(lines, &line, &why);
        found = found < 0 && why.kind == ERROR_POISON ? 1 : found;
        *count += found > 0;
        *e = why;
    }
    lines_close(lines);
    return found;
}

static int count_check(const char *path, uint64_t expected, const char *what, const char *matrix, struct error *e)
{
    uint64_t lines;
    if (lines_number_of(path, &lines, e)) {
        return -1;
    }
    if (lines != expected) {
        return error_set(e, ERROR_FATAL, E_CORRUPT,
                         "%s has %" PRIu64 " lines, but %s has %" PRIu64 " %s: the two do not belong together", path,
                         lines, matrix, expected, what);
    }
    return 0;
}

static int matrix_open(struct dexml *d, const char *path, const char *name, struct error *e)
{
    char *matrix = data_beside(path, name, true), *labels = data_beside(path, "Y.txt", false);
    int result = -1;
    if (!matrix) {
        error_set(e, ERROR_FATAL, E_NOT_FOUND, "the labels of %s are missing: %s must be beside it or one folder up",
                  path, name);
        goto done;
    }
    if (npz_open(&d->matrix, matrix, e) || count_check(path, npz_rows(d->matrix), "rows", matrix, e) ||
        (labels && count_check(labels, npz_columns(d->matrix), "columns", matrix, e))) {
        goto done;
    }
    result = 0;
done:
    free(labels);
    free(matrix);
    return result;
}

int dexml_open(struct dexml **out, const struct data_source *source, struct error *e)
{
    struct dexml *d = mem_zero(1, sizeof *d);
    bool train = data_is_named(source->path, "trn_X.txt"), labels = data_is_named(source->path, "Y.txt");
    *out = d;
    d->prefix = train ? "trn" : "tst";
    if (labels != (source->part == DATA_LABELS)) {
        return error_set(e, ERROR_FATAL, E_USAGE, "%s has %s", source->path,
                         labels ? "labels: give it as --labels" : "texts: the labels are in Y.txt");
    }
    return labels || source->texts_only ? 0 : matrix_open(d, source->path, train ? "Y.trn.npz" : "Y.tst.npz", e);
}

void dexml_close(struct dexml *d)
{
    if (d) {
        npz_close(d->matrix);
        free(d);
    }
}

size_t dexml_labels(const struct dexml *d)
{
    return npz_columns(d->matrix);
}

struct slice dexml_name(size_t number, struct arena *arena)
{
    char name[24];
    int bytes = snprintf(name, sizeof name, "%zu", number);
    return arena_slice(arena, (struct slice){name, (size_t)bytes});
}

/* A CR that no newline follows is left by lines_next. */
static int line_text(struct slice line, struct arena *arena, struct slice *out, struct error *e)
{
    line.bytes -= line.bytes > 0 && line.data[line.bytes - 1] == '\r';
    return data_text(line, "the line", arena, out, e);
}

int dexml_label(size_t number, struct slice line, struct arena *arena, struct label_record *out, struct error *e)
{
    *out = (struct label_record){.label = dexml_name(number, arena), .format = FORMAT_JSON};
    return line_text(line, arena, &out->text, e);
}

int dexml_instance(struct dexml *d, size_t number, struct slice line, struct arena *arena, struct instance_record *out,
                   struct error *e)
{
    char id[32];
    size_t count = 0;
    *out = (struct instance_record){.format = FORMAT_JSON};
    while (d->matrix && d->row <= number) { /* the rows of lines that were too long go by */
        int found = npz_row_next(d->matrix, d->columns, RECORD_LABELS_MAX, &count, e);
        if (found <= 0) {
            return found < 0 ? -1 : error_set(e, ERROR_FATAL, E_CORRUPT, "the text file grew while it was read");
        }
        d->row++;
    }
    if (count > RECORD_LABELS_MAX) {
        return error_set(e, ERROR_POISON, E_LIMIT, "%zu labels are listed, over the limit of %d", count,
                         RECORD_LABELS_MAX);
    }
    if (line_text(line, arena, &out->text, e)) {
        return -1;
    }
    int bytes = snprintf(id, sizeof id, "%s-%zu", d->prefix, number);
    out->id = arena_slice(arena, (struct slice){id, (size_t)bytes});
    out->labels = arena_alloc(arena, (count + 1) * sizeof *out->labels);
    for (out->labels_count = 0; out->labels_count < count; out->labels_count++) {
        out->labels[out->labels_count] = dexml_name(d->columns[out->labels_count], arena);
    }
    data_names_sort(out->labels, &out->labels_count);
    return 0;
}
