/* What differs between the options of a running stage and those read again, in words. Values are compared, not texts: a
 * line that says the same in another way, or a variable in place of a line, has changed nothing. */
#include <stdlib.h>
#include <string.h>

#include "config/internal.h"

static void comma(struct buffer *out)
{
    buffer_string(out, out->bytes ? ", " : "");
}

/* "tau 0.1 -> 0.2" where the option differs; an empty text is shown as "". */
static void option_compare(const struct option *o, const struct config *before, const struct config *now,
                           struct buffer *out)
{
    struct buffer old = {0}, new = {0};
    option_value(before, o, &old);
    option_value(now, o, &new);
    if (!slice_equal((struct slice){old.data, old.bytes}, (struct slice){new.data, new.bytes})) {
        comma(out);
        buffer_format(out, "%s %s -> %s", o->name, old.bytes ? old.data : "\"\"", new.bytes ? new.data : "\"\"");
    }
    buffer_free(&old);
    buffer_free(&new);
}

/* An option whose line in the file is another one, while a variable or a flag wins over it. */
static void overridden_compare(size_t option, const struct config *before, const struct config *now, struct buffer *out)
{
    const char *old = before->private->file_values[option], *new = now->private->file_values[option];
    bool same = old && new ? strcmp(old, new) == 0 : old == new;
    if (!same && now->private->sources[option].origin > ORIGIN_FILE) {
        comma(out);
        buffer_format(out, "%s (", config_options[option].name);
        config_where(now, &config_options[option], out);
        buffer_string(out, " wins over the file)");
    }
}

/* The entry by which one kind of client takes another value now, or took another before; NULL: it takes the same. Our
 * own defaults follow from options, which are named themselves. */
static const struct property *property_differs(const char *name, enum scope client, const struct config *before,
                                               const struct config *now)
{
    const struct property *old = property_winner(before, name, client), *new = property_winner(now, name, client);
    bool defaults = old && new && old->source.origin == ORIGIN_DEFAULT &&new->source.origin == ORIGIN_DEFAULT;
    if (defaults || (old && new &&strcmp(old->value, new->value) == 0)) {
        return NULL;
    }
    return new ? new : old;
}

static bool property_listed(const struct config *config, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++) {
        if (strcmp(property_canonical(config->private->properties[i].name), property_canonical(name)) == 0) {
            return true;
        }
    }
    return false;
}

static void property_compare(const char *name, const struct config *before, const struct config *now,
                             struct buffer *out)
{
    const struct property *consumer = property_differs(name, SCOPE_CONSUMER, before, now);
    const struct property *producer = property_differs(name, SCOPE_PRODUCER, before, now);
    const struct property *changed[2] = {consumer, producer == consumer ? NULL : producer};
    for (size_t i = 0; i < 2; i++) {
        if (changed[i]) {
            comma(out);
            buffer_format(out, "%s.%s", scope_names[changed[i]->scope], changed[i]->name);
        }
    }
}

/* Each property that either of both names, once. */
static void properties_compare(const struct config *before, const struct config *now, struct buffer *out)
{
    const struct config_private *old = before->private, *new = now->private;
    for (size_t i = 0; i < old->properties_count; i++) {
        if (!property_listed(before, i, old->properties[i].name)) {
            property_compare(old->properties[i].name, before, now, out);
        }
    }
    for (size_t i = 0; i < new->properties_count; i++) {
        const char *name = new->properties[i].name;
        if (!property_listed(before, old->properties_count, name) && !property_listed(now, i, name)) {
            property_compare(name, before, now, out);
        }
    }
}

void config_compare(const struct config *started, const struct config *taken, const struct config *now,
                    struct config_changes *out)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *o = &config_options[i];
        option_compare(o, o->live ? taken : started, now, o->live ? &out->live : &out->restart);
        overridden_compare(i, taken, now, &out->overridden);
    }
    properties_compare(started, now, &out->restart);
}

void config_changes_free(struct config_changes *c)
{
    buffer_free(&c->live);
    buffer_free(&c->restart);
    buffer_free(&c->overridden);
}
