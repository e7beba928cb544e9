/* Data files, the front: see data.h. A bad line is named by file and number and skipped; the command goes on and ends
 * with status 1. */
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "cli/data.h"

enum { COUNTED_BYTES_MAX = 64 << 20 };

static size_t line_max(enum data_form form)
{
    return form == DATA_JSONL ? RECORD_BYTES_MAX : DATA_LINE_BYTES_MAX;
}

/* Of a file small enough to read ahead whole, the lines say how much of it is done, the bytes read do not. */
static uint64_t lines_count(const char *path, size_t max)
{
    struct lines *lines = NULL;
    struct slice line;
    uint64_t count = 0;
    if (lines_open(&lines, path, max, NULL) == 0) {
        for (int found = 1; found > 0 && lines_size(lines) > 0 && lines_size(lines) <= COUNTED_BYTES_MAX;) {
            struct error e = {0};
            found = lines_next(lines, &line, &e);
            found = found < 0 && e.kind == ERROR_POISON ? 1 : found;
            count += found > 0;
        }
        lines_close(lines);
    }
    return count;
}

int data_open(struct data_file *f, const struct data_source *source, struct error *e)
{
    struct data_source own = *source;
    *f = (struct data_file){.command = source->command, .progress = source->progress};
    if (data_find(source, &f->path, &f->form, e)) {
        return -1;
    }
    own.path = f->path;
    if (f->progress && strcmp(f->path, "-") != 0) {
        f->lines_total = lines_count(f->path, line_max(f->form));
    }
    if (lines_open(&f->lines, f->path, line_max(f->form), e)) {
        return -1;
    }
    if ((f->form == DATA_LFXMC && lfxmc_open(&f->lfxmc, &own, e)) ||
        (f->form == DATA_DEXML && dexml_open(&f->dexml, &own, e))) {
        return -1;
    }
    if (source->pairs && f->form != DATA_JSONL) {
        return pairs_open(&f->pairs, f, f->lfxmc ? lfxmc_labels(f->lfxmc) : dexml_labels(f->dexml), e);
    }
    return 0;
}

void data_close(struct data_file *f)
{
    pairs_close(f->pairs);
    lfxmc_close(f->lfxmc);
    dexml_close(f->dexml);
    lines_close(f->lines);
    free(f->path);
    f->pairs = NULL;
    f->lfxmc = NULL;
    f->dexml = NULL;
    f->lines = NULL;
    f->path = NULL;
}

size_t data_number(const struct data_file *f)
{
    return lines_number(f->lines);
}

static void data_bad(struct data_file *f, const struct error *e)
{
    data_bad_at(f, f->path, data_number(f), e);
}

/* The next line that holds a record: of JSON, one that is not blank. 1, 0 at the end, -1. */
static int line_next(struct data_file *f, struct slice *line, struct error *e)
{
    for (;;) {
        struct error why = {0};
        int found = lines_next(f->lines, line, &why);
        if (found < 0 && why.kind == ERROR_POISON) {
            data_bad(f, &why);
        } else if (found < 0) {
            *e = why;
            return -1;
        } else if (found == 0 || f->form == DATA_DEXML || !line_is_blank(*line)) {
            return found;
        }
    }
}

int data_label_next(struct data_file *f, struct arena *arena, struct label_record *out, struct error *e)
{
    struct slice line;
    int found;
    while ((found = line_next(f, &line, e)) > 0) {
        struct error why = {0};
        int result = f->form == DATA_LFXMC   ? lfxmc_label(f->lfxmc, line, arena, out, &why)
                     : f->form == DATA_DEXML ? dexml_label(data_number(f) - 1, line, arena, out, &why)
                                             : record_label_from_value(line, arena, out, &why);
        if (result == 0) {
            return 1;
        }
        data_bad(f, &why);
    }
    return found;
}

/* The names of the labels that the instance's pairs leave out. */
static void excluded_find(struct data_file *f, struct arena *arena)
{
    size_t count;
    const uint64_t *labels = pairs_of(f->pairs, data_number(f) - 1, &count);
    struct slice *names = count ? arena_alloc(arena, count * sizeof *names) : NULL;
    f->excluded = names;
    f->excluded_count = 0;
    for (size_t i = 0; i < count; i++) {
        struct slice name = f->lfxmc ? lfxmc_name(f->lfxmc, labels[i]) : dexml_name(labels[i], arena);
        if (name.bytes) {
            names[f->excluded_count++] = arena_slice(arena, name);
        }
    }
}

int data_instance_next(struct data_file *f, struct arena *arena, struct instance_record *out, struct error *e)
{
    struct slice line;
    int found;
    while ((found = line_next(f, &line, e)) > 0) {
        struct error why = {0};
        int result = f->form == DATA_LFXMC   ? lfxmc_instance(f->lfxmc, line, arena, out, &why)
                     : f->form == DATA_DEXML ? dexml_instance(f->dexml, data_number(f) - 1, line, arena, out, &why)
                                             : record_instance_from_value(line, arena, out, &why);
        if (result == 0) {
            excluded_find(f, arena);
            return 1;
        }
        if (why.kind == ERROR_FATAL) {
            *e = why;
            return -1;
        }
        data_bad(f, &why);
    }
    if (found == 0) {
        pairs_end(f->pairs, f, data_number(f));
    }
    return found;
}

int data_text_next(struct data_file *f, struct arena *arena, struct text_record *out, struct error *e)
{
    struct instance_record instance;
    struct slice line;
    int found;
    if (f->form != DATA_JSONL) {
        found = data_instance_next(f, arena, &instance, e);
        if (found > 0) {
            *out = (struct text_record){.id = instance.id, .text = instance.text, .format = FORMAT_JSON};
        }
        return found;
    }
    while ((found = line_next(f, &line, e)) > 0) {
        struct error why = {0};
        if (record_decode_text((struct slice){0}, line, arena, out, &why) == 0) {
            return 1;
        }
        data_bad(f, &why);
    }
    return found;
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

bool data_text_flag(const char *command, const struct arguments *a, bool *content, int *status)
{
    const char *text = arguments_value(a, "text");
    *content = text && strcmp(text, "title+content") == 0;
    if (text && !*content && strcmp(text, "title") != 0) {
        *status = cli_usage(command, "--text %s: must be title or title+content", text);
        return false;
    }
    return true;
}
