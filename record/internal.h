/* What the record room's files share: a value's fields, read alike from both formats, before names and limits are
 * looked at. Private to record/. */
#ifndef ENGRAM_RECORD_INTERNAL_H
#define ENGRAM_RECORD_INTERNAL_H

#include "record/record.h"

/* Which fields a kind of record has; everything else in its value is unknown and ignored. */
struct schema {
    const char *name; /* of the field that names it: "id" or "label" */
    bool labels;
    bool metadata;
};

/* Slices point into the value or into the scratch arena that the reader was given. data NULL: absent (or null). */
struct fields {
    struct slice name;
    struct slice text;
    struct slice *labels; /* as listed */
    size_t labels_count;
    struct slice metadata; /* one whole value in the record's format, JSON in compact form */
};

/* Read a whole value: syntax, depth, UTF-8, types, and how many labels are listed. */
int json_fields(const struct schema *schema, struct slice value, struct arena *scratch, struct fields *out,
                struct error *e);
int msgpack_fields(const struct schema *schema, struct slice value, struct arena *scratch, struct fields *out,
                   struct error *e);

/* Room for the labels that the value lists, or POISON E_LIMIT. */
int fields_list_labels(struct fields *fields, size_t count, struct arena *scratch, struct error *e);

/* POISON E_FIELD, in the same words for both formats. found: the type met, NULL for none. */
int field_error(const char *field, const char *wanted, const char *found, struct error *e);
int label_error(size_t index, const char *found, struct error *e);

#endif
