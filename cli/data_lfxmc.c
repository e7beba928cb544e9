/* The LF-XMC distribution: see data.h. lbl.json, trn.json and tst.json hold an object a line: uid, title, content, and
 * for instances target_ind (numbers of labels) and target_rel (their relevance). The surprise: target_ind names the
 * line of lbl.json, from 0, not the uid; so instances read lbl.json first, for the uids, which become the names. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/data_forms.h"

struct lfxmc {
    bool content, texts_only;
    struct arena scratch; /* the line's tree */
    struct name_set seen; /* uids of this file */
    char *labels_path;    /* lbl.json; NULL for labels, and where nobody asks for them */
    struct buffer names;  /* uids of lbl.json, one after the other */
    uint64_t *ends;       /* where each ends; one that ends where it begins is a bad line */
    size_t ends_count, ends_capacity;
};

static int field_wrong(const char *field, const struct json *value, const char *what, struct error *e)
{
    if (!value || value->type == JSON_NULL) {
        return error_set(e, ERROR_POISON, E_FIELD, "field \"%s\" is %s: it must be %s", field,
                         value ? "null" : "missing", what);
    }
    return error_set(e, ERROR_POISON, E_FIELD, "field \"%s\" must be %s", field, what);
}

/* ---- what labels and instances have in common ---- */

static int uid_read(struct lfxmc *x, const struct json *object, struct slice *out, struct error *e)
{
    const struct json *uid = json_member(object, "uid");
    int64_t number;
    bool fresh;
    if (!uid || !(uid->type == JSON_STRING || json_int(uid, &number))) {
        return field_wrong("uid", uid, "a string or a whole number", e);
    }
    if (record_check_name(uid->text, "field \"uid\"", e)) {
        return -1;
    }
    name_set_number(&x->seen, uid->text, &fresh);
    if (!fresh) {
        return error_set(e, ERROR_POISON, E_KEY, "uid \"%.*s\" is in an earlier line too: each may occur once",
                         (int)uid->text.bytes, uid->text.data);
    }
    *out = uid->text;
    return 0;
}

/* title, or title and content with a space between; content may be absent. */
static int text_read(const struct lfxmc *x, const struct json *object, struct arena *arena, struct slice *out,
                     struct error *e)
{
    const struct json *title = json_member(object, "title"), *content = json_member(object, "content");
    struct buffer both = {0};
    if (!title || title->type != JSON_STRING) {
        return field_wrong("title", title, "a string", e);
    }
    if (!x->content || !content || content->type == JSON_NULL) {
        return data_text(title->text, "field \"title\"", arena, out, e);
    }
    if (content->type != JSON_STRING) {
        return field_wrong("content", content, "a string", e);
    }
    buffer_append(&both, title->text.data, title->text.bytes);
    if (title->text.bytes && content->text.bytes) {
        buffer_byte(&both, ' ');
    }
    buffer_append(&both, content->text.data, content->text.bytes);
    int result = data_text((struct slice){both.data, both.bytes}, "title and content", arena, out, e);
    buffer_free(&both);
    return result;
}

static int object_read(struct lfxmc *x, struct slice line, const struct json **out, struct error *e)
{
    arena_free(&x->scratch);
    if (json_parse(line, RECORD_DEPTH_MAX, &x->scratch, out, e)) {
        return -1;
    }
    return (*out)->type == JSON_OBJECT ? 0 : error_set(e, ERROR_POISON, E_FORMAT, "the line must be a JSON object");
}

int lfxmc_label(struct lfxmc *x, struct slice line, struct arena *arena, struct label_record *out, struct error *e)
{
    const struct json *object;
    struct slice uid = {0};
    *out = (struct label_record){.format = FORMAT_JSON};
    if (object_read(x, line, &object, e)) {
        return -1;
    }
    if (json_member(object, "target_ind")) {
        return error_set(e, ERROR_POISON, E_FIELD, "has a field \"target_ind\": this is an instance, not a label");
    }
    if (uid_read(x, object, &uid, e) || text_read(x, object, arena, &out->text, e)) {
        return -1;
    }
    out->label = arena_slice(arena, uid);
    return 0;
}

/* ---- lbl.json ahead ---- */

static void name_append(struct lfxmc *x, struct slice name)
{
    if (x->ends_count == x->ends_capacity) {
        x->ends_capacity = x->ends_capacity ? 2 * x->ends_capacity : 1024;
        x->ends = mem_resize(x->ends, x->ends_capacity * sizeof *x->ends);
    }
    buffer_append(&x->names, name.data, name.bytes);
    x->ends[x->ends_count++] = x->names.bytes;
}

/* A bad line keeps its number, without a name. It is named by who reads the labels themselves, and here by each
 * instance that means it. */
static int labels_read(struct lfxmc *x, struct error *e)
{
    struct lines *lines = NULL;
    struct slice line;
    int found;
    if (lines_open(&lines, x->labels_path, DATA_LINE_BYTES_MAX, e)) {
        return -1;
    }
    for (;;) {
        struct label_record label = {0};
        struct arena arena = {0};
        struct error why = {0};
        found = lines_next(lines, &line, &why);
        if (found == 0 || (found < 0 && why.kind != ERROR_POISON)) {
            *e = why;
            break;
        }
        bool good = found > 0 && lfxmc_label(x, line, &arena, &label, &why) == 0;
        name_append(x, good ? label.label : (struct slice){"", 0});
        arena_free(&arena);
    }
    lines_close(lines);
    name_set_free(&x->seen);
    return found;
}

int lfxmc_open(struct lfxmc **out, const struct data_source *source, struct error *e)
{
    struct lfxmc *x = mem_zero(1, sizeof *x);
    *out = x;
    x->content = source->content;
    x->texts_only = source->texts_only;
    if (source->part == DATA_LABELS || source->texts_only) {
        return 0;
    }
    x->labels_path = data_beside(source->path, "lbl.json", false);
    if (!x->labels_path) {
        return error_set(e, ERROR_FATAL, E_NOT_FOUND,
                         "%s refers to labels by their line in lbl.json (or lbl.json.gz), which must be beside it",
                         source->path);
    }
    return labels_read(x, e);
}

size_t lfxmc_labels(const struct lfxmc *x)
{
    return x->ends_count;
}

struct slice lfxmc_name(const struct lfxmc *x, size_t number)
{
    uint64_t start = number ? x->ends[number - 1] : 0;
    return (struct slice){x->names.data + start, x->ends[number] - start};
}

void lfxmc_close(struct lfxmc *x)
{
    if (x) {
        arena_free(&x->scratch);
        name_set_free(&x->seen);
        buffer_free(&x->names);
        free(x->ends);
        free(x->labels_path);
        free(x);
    }
}

/* ---- instances ---- */

/* One entry of target_ind as a label's name. */
static int target_read(const struct lfxmc *x, const struct json *target, size_t at, struct slice *out, struct error *e)
{
    int64_t number;
    if (!json_int(target, &number)) {
        return error_set(e, ERROR_POISON, E_FIELD, "target_ind[%zu] must be a whole number", at);
    }
    if (number < 0 || (uint64_t)number >= x->ends_count) {
        return error_set(e, ERROR_POISON, E_FIELD,
                         "target_ind[%zu] is %" PRId64 ", but %s has the lines 0 to %zu: the lists must go together",
                         at, number, x->labels_path, x->ends_count - (x->ends_count > 0));
    }
    *out = lfxmc_name(x, (size_t)number);
    if (out->bytes == 0) {
        return error_set(e, ERROR_POISON, E_FIELD,
                         "target_ind[%zu] is %" PRId64 ", but %s:%" PRId64 " has no label that can be read: correct it",
                         at, number, x->labels_path, number + 1);
    }
    return 0;
}

/* target_rel says how relevant each is: 0 is no label. Absent: all are. */
static int relevance_read(const struct json *relevance, size_t at, bool *out, struct error *e)
{
    double value = 1;
    if (relevance && (!json_double(relevance, &value) || value < 0)) {
        return error_set(e, ERROR_POISON, E_FIELD, "target_rel[%zu] must be a number, 0 or more", at);
    }
    *out = value > 0;
    return 0;
}

static int labels_of(const struct lfxmc *x, const struct json *object, struct arena *arena, struct instance_record *out,
                     struct error *e)
{
    const struct json *targets = json_member(object, "target_ind"), *relevances = json_member(object, "target_rel");
    if (!targets || targets->type != JSON_ARRAY) {
        return field_wrong("target_ind", targets, "a list of lines in lbl.json, from 0", e);
    }
    if (relevances && relevances->type != JSON_ARRAY) {
        return field_wrong("target_rel", relevances, "a list of numbers", e);
    }
    if (relevances && relevances->count != targets->count) {
        return error_set(e, ERROR_POISON, E_FIELD, "target_ind has %zu entries, target_rel %zu: there must be as many",
                         targets->count, relevances->count);
    }
    if (targets->count > RECORD_LABELS_MAX) {
        return error_set(e, ERROR_POISON, E_LIMIT, "%zu labels are listed, over the limit of %d", targets->count,
                         RECORD_LABELS_MAX);
    }
    out->labels = arena_alloc(arena, (targets->count + 1) * sizeof *out->labels);
    const struct json *relevance = relevances ? relevances->child : NULL;
    size_t at = 0;
    for (const struct json *target = targets->child; target; target = target->next, at++) {
        struct slice name = {0};
        bool relevant = false;
        if (target_read(x, target, at, &name, e) || relevance_read(relevance, at, &relevant, e)) {
            return -1;
        }
        if (relevant) {
            out->labels[out->labels_count++] = arena_slice(arena, name);
        }
        relevance = relevance ? relevance->next : NULL;
    }
    data_names_sort(out->labels, &out->labels_count);
    return 0;
}

int lfxmc_instance(struct lfxmc *x, struct slice line, struct arena *arena, struct instance_record *out,
                   struct error *e)
{
    const struct json *object;
    struct slice uid = {0};
    *out = (struct instance_record){.format = FORMAT_JSON};
    if (object_read(x, line, &object, e) || uid_read(x, object, &uid, e) ||
        text_read(x, object, arena, &out->text, e)) {
        return -1;
    }
    out->id = arena_slice(arena, uid);
    return x->texts_only ? 0 : labels_of(x, object, arena, out, e);
}
