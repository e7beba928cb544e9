/* What the two formats' readers say of fields in the same words, and the limit that both meet while reading. */
#include "record/internal.h"

int field_error(const char *field, const char *wanted, const char *found, struct error *e)
{
    if (!found) {
        return error_set(e, ERROR_POISON, E_FIELD, "field \"%s\" is missing", field);
    }
    return error_set(e, ERROR_POISON, E_FIELD, "field \"%s\" must be %s, not %s", field, wanted, found);
}

int label_error(size_t index, const char *found, struct error *e)
{
    return error_set(e, ERROR_POISON, E_FIELD, "labels[%zu] must be a string, not %s", index, found);
}

int fields_list_labels(struct fields *fields, size_t count, struct arena *scratch, struct error *e)
{
    if (count > RECORD_LABELS_MAX) {
        return error_set(e, ERROR_POISON, E_LIMIT, "%zu labels are listed, over the limit of %d", count,
                         RECORD_LABELS_MAX);
    }
    fields->labels = arena_alloc(scratch, count * sizeof *fields->labels);
    fields->labels_count = count;
    return 0;
}
