/* Data files, a JSON record a line: what load, eval and replay read. A bad line is named by file and number and
 * skipped; the command goes on and ends with status 1. See internal.h. */
#include <string.h>

#include "cli/internal.h"
#include "record/record.h"

int data_open(struct data_file *f, const char *command, const char *path, struct progress *progress, struct error *e)
{
    *f = (struct data_file){.command = command, .path = path, .progress = progress};
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
    double read = 0, size = 0;
    for (size_t i = 0; i < count; i++) {
        if (files[i].lines) {
            if (lines_size(files[i].lines) == 0) {
                return -1;
            }
            read += (double)lines_offset(files[i].lines);
            size += (double)lines_size(files[i].lines);
        }
    }
    return size > 0 ? read / size : -1;
}
