/* Data files, a JSON record a line: what load, eval and replay read. A bad line is named by file and number and
 * skipped; the command goes on and ends with status 1. See internal.h. */
#include <string.h>

#include "cli/internal.h"
#include "record/record.h"

enum { COUNTED_BYTES_MAX = 64 << 20 };

/* Of a file small enough to read ahead whole, the lines say how much of it is done, the bytes read do not. */
static uint64_t lines_count(const char *path)
{
    struct lines *lines = NULL;
    struct slice line;
    uint64_t count = 0;
    if (lines_open(&lines, path, RECORD_BYTES_MAX, NULL) == 0) {
        for (int found = 1; found > 0 && lines_size(lines) > 0 && lines_size(lines) <= COUNTED_BYTES_MAX;) {
            struct error e = {0};
            found = lines_next(lines, &line, &e);
            found = found < 0 && e.class == ERROR_POISON ? 1 : found;
            count += found > 0;
        }
        lines_close(lines);
    }
    return count;
}

int data_open(struct data_file *f, const char *command, const char *path, struct progress *progress, struct error *e)
{
    *f = (struct data_file){.command = command, .path = path, .progress = progress};
    if (progress && strcmp(path, "-") != 0) {
        f->lines_total = lines_count(path);
    }
    return lines_open(&f->lines, path, RECORD_BYTES_MAX, e);
}

void data_close(struct data_file *f)
{
    if (f->lines) {
        lines_close(f->lines);
    }
    f->lines = NULL;
}

static bool is_blank(struct slice line)
{
    for (size_t i = 0; i < line.bytes; i++) {
        if (line.data[i] != ' ' && line.data[i] != '\t' && line.data[i] != '\r') {
            return false;
        }
    }
    return true;
}

void data_bad(struct data_file *f, const struct error *e)
{
    f->bad++;
    if (f->progress) {
        progress_clear(f->progress);
    }
    cli_complain(f->command, "%s:%zu: %s", strcmp(f->path, "-") == 0 ? "standard input" : f->path,
                 lines_number(f->lines), e->text);
}

int data_next(struct data_file *f, struct slice *line, struct error *e)
{
    for (;;) {
        struct error why = {0};
        int found = lines_next(f->lines, line, &why);
        if (found < 0 && why.class == ERROR_POISON) {
            data_bad(f, &why);
        } else if (found < 0) {
            *e = why;
            return -1;
        } else if (found == 0 || !is_blank(*line)) {
            return found;
        }
    }
}

double data_fraction(const struct data_file *files, size_t count)
{
    double read = 0, size = 0, lines = 0, lines_total = 0;
    bool counted = true;
    for (size_t i = 0; i < count; i++) {
        if (files[i].lines) {
            if (lines_size(files[i].lines) == 0) {
                return -1;
            }
            read += (double)lines_offset(files[i].lines);
            size += (double)lines_size(files[i].lines);
            lines += (double)lines_number(files[i].lines);
            lines_total += (double)files[i].lines_total;
            counted &= files[i].lines_total > 0;
        }
    }
    return counted && lines_total > 0 ? lines / lines_total : size > 0 ? read / size : -1;
}
