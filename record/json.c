/* A record's fields from JSON. The parse is base/json's; nothing here but which members are read, and of what type. */
#include "base/json.h"

#include "record/internal.h"

/* For messages: "field "text" must be a string, not ...". */
static const char *type_words(const struct json *value)
{
    static const char *const words[] = {
        [JSON_NULL] = "null",       [JSON_FALSE] = "a boolean", [JSON_TRUE] = "a boolean", [JSON_NUMBER] = "a number",
        [JSON_STRING] = "a string", [JSON_ARRAY] = "an array",  [JSON_OBJECT] = "a map",
    };
    return words[value->type];
}

/* NULL also for an explicit null: an absent field. */
static const struct json *present(const struct json *map, const char *name)
{
    const struct json *value = json_member(map, name);
    return value && value->type != JSON_NULL ? value : NULL;
}

static int read_labels(const struct json *list, struct arena *scratch, struct fields *out, struct error *e)
{
    if (!list || list->type != JSON_ARRAY) {
        return field_error("labels", "an array", list ? type_words(list) : NULL, e);
    }
    if (fields_list_labels(out, list->count, scratch, e) != 0) {
        return -1;
    }
    size_t i = 0;
    for (const struct json *label = list->child; label; label = label->next, i++) {
        if (label->type != JSON_STRING) {
            return label_error(i, type_words(label), e);
        }
        out->labels[i] = label->text;
    }
    return 0;
}

int json_fields(const struct schema *schema, struct slice value, struct arena *scratch, struct fields *out,
                struct error *e)
{
    const struct json *map;
    if (json_parse(value, RECORD_DEPTH_MAX, scratch, &map, e) != 0) {
        return -1;
    }
    if (map->type != JSON_OBJECT) {
        return error_set(e, ERROR_POISON, E_FORMAT, "the value must be a map, not %s", type_words(map));
    }
    const struct json *name = present(map, schema->name);
    if (name && name->type != JSON_STRING) {
        return field_error(schema->name, "a string", type_words(name), e);
    }
    const struct json *text = json_member(map, "text");
    if (!text || text->type != JSON_STRING) {
        return field_error("text", "a string", text ? type_words(text) : NULL, e);
    }
    out->name = name ? name->text : (struct slice){0};
    out->text = text->text;
    if (schema->labels && read_labels(json_member(map, "labels"), scratch, out, e) != 0) {
        return -1;
    }
    const struct json *metadata = schema->metadata ? present(map, "metadata") : NULL;
    if (metadata) {
        struct buffer compact = {0};
        json_write_tree(&(struct json_writer){.out = &compact}, metadata);
        out->metadata = arena_slice(scratch, (struct slice){compact.data, compact.bytes});
        buffer_free(&compact);
    }
    return 0;
}
