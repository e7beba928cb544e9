/* Encoding: each record is written once, through a writer that turns into JSON or MessagePack. Appends to the caller's
 * buffer and touches nothing else. MessagePack says its counts first, so whoever opens a map counts its fields. */
#include <msgpack.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "record/record.h"

struct writer {
    enum record_format format;
    struct json_writer json;
    msgpack_packer packer;
};

static int append(void *buffer, const char *data, size_t bytes)
{
    buffer_append(buffer, data, bytes);
    return 0;
}

static struct writer writer_of(enum record_format format, struct buffer *out)
{
    struct writer w = {.format = format, .json = {.out = out}};
    msgpack_packer_init(&w.packer, out, append);
    return w;
}

static void put_map(struct writer *w, size_t fields)
{
    if (w->format == FORMAT_JSON) {
        json_object_begin(&w->json);
    } else {
        msgpack_pack_map(&w->packer, fields);
    }
}

static void put_map_end(struct writer *w)
{
    if (w->format == FORMAT_JSON) {
        json_object_end(&w->json);
    }
}

static void put_array(struct writer *w, size_t elements)
{
    if (w->format == FORMAT_JSON) {
        json_array_begin(&w->json);
    } else {
        msgpack_pack_array(&w->packer, elements);
    }
}

static void put_array_end(struct writer *w)
{
    if (w->format == FORMAT_JSON) {
        json_array_end(&w->json);
    }
}

static void put_name(struct writer *w, const char *name)
{
    if (w->format == FORMAT_JSON) {
        json_name(&w->json, name);
    } else {
        msgpack_pack_str_with_body(&w->packer, name, strlen(name));
    }
}

static void put_string(struct writer *w, struct slice value)
{
    if (w->format == FORMAT_JSON) {
        json_write_string(&w->json, value);
    } else {
        msgpack_pack_str_with_body(&w->packer, value.data ? value.data : "", value.bytes);
    }
}

static void put_null(struct writer *w)
{
    if (w->format == FORMAT_JSON) {
        json_write_null(&w->json);
    } else {
        msgpack_pack_nil(&w->packer);
    }
}

static void put_bool(struct writer *w, bool value)
{
    if (w->format == FORMAT_JSON) {
        json_write_bool(&w->json, value);
    } else if (value) {
        msgpack_pack_true(&w->packer);
    } else {
        msgpack_pack_false(&w->packer);
    }
}

static void put_float(struct writer *w, float value)
{
    if (w->format == FORMAT_JSON) {
        json_write_double(&w->json, (double)value);
    } else {
        msgpack_pack_float(&w->packer, value);
    }
}

static void put_int(struct writer *w, int64_t value)
{
    if (w->format == FORMAT_JSON) {
        json_write_int(&w->json, value);
    } else {
        msgpack_pack_int64(&w->packer, value);
    }
}

static void put_uint(struct writer *w, uint64_t value)
{
    if (w->format == FORMAT_JSON) {
        json_write_uint(&w->json, value);
    } else {
        msgpack_pack_uint64(&w->packer, value);
    }
}

static void put_names(struct writer *w, const struct slice *names, size_t count)
{
    put_array(w, count);
    for (size_t i = 0; i < count; i++) {
        put_string(w, names[i]);
    }
    put_array_end(w);
}

/* A JSON number as MessagePack's nearest: an integer of 64 bits, else a double, else (1e400) its characters. */
static void pack_number(msgpack_packer *packer, const struct json *value)
{
    int64_t integer;
    double real;
    errno = 0;
    unsigned long long natural = strtoull(value->text.data, NULL, 10); /* turns a sign around: only for what has none */
    bool is_natural = errno == 0 && !strpbrk(value->text.data, "-.eE");
    if (json_int(value, &integer)) {
        msgpack_pack_int64(packer, integer);
    } else if (is_natural) {
        msgpack_pack_uint64(packer, natural);
    } else if (json_double(value, &real)) {
        msgpack_pack_double(packer, real);
    } else {
        msgpack_pack_str_with_body(packer, value->text.data, value->text.bytes);
    }
}

/* Recursion, but the tree is no deeper than the record was. */
static void pack_tree(msgpack_packer *packer, const struct json *value)
{
    switch (value->type) {
    case JSON_NULL:
        msgpack_pack_nil(packer);
        break;
    case JSON_FALSE:
        msgpack_pack_false(packer);
        break;
    case JSON_TRUE:
        msgpack_pack_true(packer);
        break;
    case JSON_NUMBER:
        pack_number(packer, value);
        break;
    case JSON_STRING:
        msgpack_pack_str_with_body(packer, value->text.data, value->text.bytes);
        break;
    case JSON_ARRAY:
    case JSON_OBJECT:
        if (value->type == JSON_ARRAY) {
            msgpack_pack_array(packer, value->count);
        } else {
            msgpack_pack_map(packer, value->count);
        }
        for (const struct json *child = value->child; child; child = child->next) {
            if (value->type == JSON_OBJECT) {
                msgpack_pack_str_with_body(packer, child->name.data, child->name.bytes);
            }
            pack_tree(packer, child);
        }
        break;
    }
}

static bool carries_metadata(const struct text_record *text, enum record_format format)
{
    return text->metadata.bytes > 0 && (text->format == format || text->format == FORMAT_JSON);
}

static void put_metadata(struct writer *w, const struct text_record *text)
{
    put_name(w, "metadata");
    if (w->format == FORMAT_JSON) {
        json_write_raw(&w->json, text->metadata);
    } else if (text->format == FORMAT_MSGPACK) {
        append(w->packer.data, text->metadata.data, text->metadata.bytes);
    } else {
        struct arena scratch = {0};
        const struct json *tree;
        if (json_parse(text->metadata, RECORD_DEPTH_MAX, &scratch, &tree, NULL) == 0) {
            pack_tree(&w->packer, tree);
        } else {
            msgpack_pack_nil(&w->packer); /* cannot be: decoding checked it */
        }
        arena_free(&scratch);
    }
}

/* A field that is left out where it has no value. */
static void put_optional(struct writer *w, const char *name, struct slice value)
{
    if (value.data) {
        put_name(w, name);
        put_string(w, value);
    }
}

void record_encode_text(const struct text_record *r, enum record_format format, struct buffer *out)
{
    struct writer w = writer_of(format, out);
    bool metadata = carries_metadata(r, format);
    put_map(&w, 1 + (size_t)(r->id.data != NULL) + (size_t)metadata);
    put_optional(&w, "id", r->id);
    put_name(&w, "text");
    put_string(&w, r->text);
    if (metadata) {
        put_metadata(&w, r);
    }
    put_map_end(&w);
}

void record_encode_instance(const struct instance_record *r, enum record_format format, struct buffer *out)
{
    struct writer w = writer_of(format, out);
    put_map(&w, 2 + (size_t)(r->id.data != NULL));
    put_optional(&w, "id", r->id);
    put_name(&w, "text");
    put_string(&w, r->text);
    put_name(&w, "labels");
    put_names(&w, r->labels, r->labels_count);
    put_map_end(&w);
}

void record_encode_label(const struct label_record *r, enum record_format format, struct buffer *out)
{
    struct writer w = writer_of(format, out);
    put_map(&w, 1 + (size_t)(r->label.data != NULL));
    put_optional(&w, "label", r->label);
    put_name(&w, "text");
    put_string(&w, r->text);
    put_map_end(&w);
}

static void put_evidence(struct writer *w, const struct evidence *item, bool with_text)
{
    bool instance = item->kind == EVIDENCE_INSTANCE;
    struct slice text = with_text ? item->text : (struct slice){0};
    put_map(w, 4 + (size_t)item->has_lexical + (size_t)instance + (size_t)(text.data != NULL));
    put_name(w, "kind");
    put_string(w, slice_of(instance ? "instance" : "label"));
    put_name(w, instance ? "id" : "label");
    put_string(w, item->name);
    put_name(w, "similarity");
    put_float(w, item->similarity);
    if (item->has_lexical) {
        put_name(w, "lexical");
        put_float(w, item->lexical);
    }
    put_name(w, "weight");
    put_float(w, item->weight);
    if (instance) {
        put_name(w, "labels");
        put_names(w, item->labels, item->labels_count);
    }
    put_optional(w, "text", text);
    put_map_end(w);
}

/* The fields "labels" and "evidence". */
static void put_answer(struct writer *w, const struct prediction *p, bool with_text)
{
    put_name(w, "labels");
    put_array(w, p->labels_count);
    for (size_t i = 0; i < p->labels_count; i++) {
        put_map(w, 2);
        put_name(w, "label");
        put_string(w, p->labels[i].label);
        put_name(w, "score");
        put_float(w, p->labels[i].score);
        put_map_end(w);
    }
    put_array_end(w);
    put_name(w, "evidence");
    put_array(w, p->evidence_count);
    for (size_t i = 0; i < p->evidence_count; i++) {
        put_evidence(w, &p->evidence[i], with_text);
    }
    put_array_end(w);
}

static void put_source(struct writer *w, const struct record_source *source)
{
    put_name(w, "source");
    put_map(w, 3);
    put_name(w, "topic");
    put_string(w, slice_of(source->topic));
    put_name(w, "partition");
    put_int(w, source->partition);
    put_name(w, "offset");
    put_int(w, source->offset);
    put_map_end(w);
}

void record_encode_prediction(const struct prediction *p, const struct text_record *text,
                              const struct record_source *source, bool with_text, struct buffer *out)
{
    struct writer w = writer_of(text->format, out);
    bool metadata = carries_metadata(text, text->format);
    bool sourced = source && source->topic;
    put_map(&w, 6 + (size_t)metadata + (size_t)sourced);
    put_name(&w, "id");
    if (text->id.data) {
        put_string(&w, text->id);
    } else {
        put_null(&w);
    }
    put_answer(&w, p, with_text);
    put_name(&w, "truncated");
    put_bool(&w, p->truncated || text->cut);
    put_name(&w, "model_version");
    put_string(&w, slice_of(p->model_version));
    put_name(&w, "memory_version");
    put_uint(&w, p->memory_version);
    if (metadata) {
        put_metadata(&w, text);
    }
    if (sourced) {
        put_source(&w, source);
    }
    put_map_end(&w);
}

void prediction_free(struct prediction *p)
{
    if (p) {
        arena_free(&p->arena);
        *p = (struct prediction){0};
    }
}
