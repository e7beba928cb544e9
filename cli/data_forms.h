/* The forms of data files: the types of all of them and what each reader offers to the front (data.h). A reader knows
 * this and its own file, no other. */
#ifndef ENGRAM_CLI_DATA_FORMS_H
#define ENGRAM_CLI_DATA_FORMS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/digest.h"
#include "base/error.h"
#include "base/lines.h"
#include "cli/internal.h"
#include "record/record.h"

enum { DATA_LINE_BYTES_MAX = 64 << 20 }; /* of the field's forms: a line holds a whole article */

enum data_form {
    DATA_JSONL, /* Engram's own records, a line each */
    DATA_LFXMC, /* lbl.json, trn.json, tst.json */
    DATA_DEXML, /* Y.txt, trn_X.txt, tst_X.txt with Y.trn.npz, Y.tst.npz */
};

enum data_part { DATA_LABELS, DATA_TRAIN, DATA_TEST }; /* which of a folder's files */

struct data_source {
    const char *command; /* for messages */
    const char *path;    /* a file, a folder, or "-" */
    enum data_part part;
    bool folder_only;          /* a file is an error */
    bool content;              /* LF-XMC: the text is title and content, else the title alone */
    bool texts_only;           /* the labels of instances are not asked for */
    bool pairs;                /* filter_labels_*.txt is */
    struct progress *progress; /* cleared before a message; may be NULL */
};

struct lfxmc;
struct dexml;
struct pairs;

/* Zero-initialise. */
struct data_file {
    const char *command; /* borrowed */
    char *path;          /* of the file itself; NULL: not open */
    enum data_form form;
    struct lines *lines;
    struct progress *progress;
    uint64_t bad;         /* lines that were named and skipped */
    uint64_t lines_total; /* for the bar; 0: not counted */
    struct lfxmc *lfxmc;
    struct dexml *dexml;
    struct pairs *pairs;
    const struct slice *excluded; /* of the instance last returned: labels that its pairs leave out, in its arena */
    size_t excluded_count;
};

/* ---- what the readers share ---- */

/* One line on standard error, "path:number: why", and counted. */
void data_bad_at(struct data_file *f, const char *path, size_t number, const struct error *e);
/* UTF-8 without NUL, cut to the record's limit, into the arena. what: how a message calls it. */
int data_text(struct slice text, const char *what, struct arena *arena, struct slice *out, struct error *e);
/* Sorts by bytes and drops repeats. */
void data_names_sort(struct slice *names, size_t *count);

/* Names met before, by their digests; a name's number is its place in the order of first meeting. Zero-initialise. */
struct name_set {
    struct name_slot {
        struct digest digest;
        uint64_t number; /* + 1; 0: free */
    } * slots;
    size_t slots_count; /* a power of two */
    size_t count;
};

size_t name_set_number(struct name_set *s, struct slice name, bool *fresh);
void name_set_free(struct name_set *s);

/* The file's path (owned by the caller) and form. */
int data_find(const struct data_source *source, char **path, enum data_form *form, struct error *e);
/* "name" or "name.gz" in the folder of the file `path` (up: or in the folder above); NULL: neither. Owned by the
 * caller. */
char *data_beside(const char *path, const char *name, bool up);
bool data_is_named(const char *path, const char *name); /* with or without .gz */

/* LF-XMC: one line as a record. source->path is the file's own. */
int lfxmc_open(struct lfxmc **out, const struct data_source *source, struct error *e);
int lfxmc_label(struct lfxmc *x, struct slice line, struct arena *arena, struct label_record *out, struct error *e);
int lfxmc_instance(struct lfxmc *x, struct slice line, struct arena *arena, struct instance_record *out,
                   struct error *e);
size_t lfxmc_labels(const struct lfxmc *x);                    /* lines of lbl.json */
struct slice lfxmc_name(const struct lfxmc *x, size_t number); /* of a label; bytes 0: its line is bad */
void lfxmc_close(struct lfxmc *x);

/* DEXML: line `number` (from 0) as a record. */
int dexml_open(struct dexml **out, const struct data_source *source, struct error *e);
int dexml_label(size_t number, struct slice line, struct arena *arena, struct label_record *out, struct error *e);
/* Error classes: POISON for this line, FATAL for the matrix. */
int dexml_instance(struct dexml *d, size_t number, struct slice line, struct arena *arena, struct instance_record *out,
                   struct error *e);
size_t dexml_labels(const struct dexml *d); /* columns of the matrix */
struct slice dexml_name(size_t number, struct arena *arena);
void dexml_close(struct dexml *d);

/* filter_labels_test.txt (_train for trn files) beside the file: (row, label) pairs, numbers from 0, that are neither
 * predicted nor counted; *out NULL without one. Bad lines are named. labels: how many there are. */
int pairs_open(struct pairs **out, struct data_file *f, size_t labels, struct error *e);
/* The labels of a row's pairs, valid until the next call. p may be NULL. */
const uint64_t *pairs_of(struct pairs *p, uint64_t row, size_t *count);
/* After the last row: names a pair of a row that the file does not have. */
void pairs_end(struct pairs *p, struct data_file *f, uint64_t rows);
void pairs_close(struct pairs *p);

#endif
