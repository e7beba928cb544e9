/* The file: `key = value` under `[section]`, comments on lines of their own, values taken whole. Ours because inih, the
 * usual reader, cuts long lines and ends a value at " ;", which a password may hold. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/lines.h"
#include "config/internal.h"

enum { LINE_BYTES_MAX = 1 << 30 }; /* a guard for memory, no limit that anybody meets */

struct reader {
    struct config *config;
    char *section; /* owned; NULL before the first */
    size_t line;
    char where[512]; /* "engram.conf:12" */
};

bool file_blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r' || c == '\f' || c == '\v';
}

static struct slice trim(struct slice s)
{
    while (s.bytes > 0 && file_blank(s.data[0])) {
        s.data++;
        s.bytes--;
    }
    while (s.bytes > 0 && file_blank(s.data[s.bytes - 1])) {
        s.bytes--;
    }
    return s;
}

struct file_line file_line_of(struct slice line)
{
    struct file_line l = {.kind = LINE_WRONG};
    line = trim(line);
    if (line.bytes == 0) {
        l.kind = LINE_BLANK;
    } else if (line.data[0] == '#' || line.data[0] == ';') {
        l.kind = LINE_COMMENT;
    } else if (line.data[0] == '[') {
        if (line.data[line.bytes - 1] == ']') {
            l.kind = LINE_SECTION;
            l.name = trim((struct slice){line.data + 1, line.bytes - 2});
        }
    } else {
        const char *equals = memchr(line.data, '=', line.bytes);
        if (equals && equals > line.data) {
            l.kind = LINE_PAIR;
            l.name = trim((struct slice){line.data, (size_t)(equals - line.data)});
            l.value = trim((struct slice){equals + 1, line.bytes - (size_t)(equals - line.data) - 1});
        }
    }
    return l;
}

static int section_read(struct reader *r, struct slice name, struct error *e)
{
    free(r->section);
    r->section = mem_string(name.data, name.bytes);
    size_t count = 0;
    for (; config_sections[count]; count++) {
        if (strcmp(config_sections[count], r->section) == 0) {
            return 0;
        }
    }
    return error_set(e, ERROR_FATAL, E_USAGE, "%s: there is no section [%s]; the nearest is [%s]", r->where, r->section,
                     config_nearest(r->section, config_sections, count));
}

static int key_unknown(const struct reader *r, const char *key, struct error *e)
{
    const char *names[OPTIONS];
    for (size_t i = 0; i < OPTIONS; i++) {
        names[i] = config_options[i].name;
    }
    const char *nearest = config_nearest(key, names, OPTIONS);
    return error_set(e, ERROR_FATAL, E_USAGE, "%s: there is no option '%s'; the nearest is '%s' under [%s]", r->where,
                     key, nearest, option_named(nearest)->section);
}

/* Blanks at the ends of a prefix matter to an encoder; only there may quotes hold them. */
bool file_takes_quotes(const struct option *o)
{
    return o->offset == offsetof(struct config, text_prefix) || o->offset == offsetof(struct config, label_prefix);
}

bool file_is_quoted(struct slice value)
{
    return value.bytes >= 2 && value.data[0] == '"' && value.data[value.bytes - 1] == '"';
}

static const char *unquote(const struct option *o, char *value)
{
    if (file_takes_quotes(o) && file_is_quoted(slice_of(value))) {
        value[strlen(value) - 1] = '\0';
        return value + 1;
    }
    return value;
}

static int option_read(struct reader *r, const struct option *o, char *value, struct error *e)
{
    struct source *source = &r->config->private->sources[o - config_options];
    if (source->origin == ORIGIN_FILE) {
        config_warn(r->config, "%s: %s is in line %zu too; the later one counts", r->where, o->name, source->line);
    }
    const char *text = unquote(o, value);
    if (config_set(r->config, o, text, (struct source){ORIGIN_FILE, r->line}, r->where, e)) {
        if (e && (strchr(value, '#') || strchr(value, ';'))) {
            size_t used = strlen(e->text);
            snprintf(e->text + used, sizeof e->text - used, "; comments are lines of their own");
        }
        return -1;
    }
    char **said = &r->config->private->file_values[o - config_options];
    free(*said);
    *said = mem_string(text, strlen(text));
    return 0;
}

static int pair_read(struct reader *r, const char *key, char *value, struct error *e)
{
    const struct option *o = option_named(key);
    const char *section = r->section ? r->section : "";
    for (int scope = 0; scope < SCOPES; scope++) {
        bool ours = o && !property_named(key); /* log_level is a name on both sides */
        if (strcmp(section, scope_names[scope]) == 0 && !ours) {
            return property_set(r->config, key, value, (enum scope)scope, (struct source){ORIGIN_FILE, r->line},
                                r->where, e);
        }
    }
    if (o && strcmp(o->section, section) == 0) {
        return option_read(r, o, value, e);
    }
    if (o || property_named(key)) {
        return error_set(e, ERROR_FATAL, E_USAGE, "%s: '%s' belongs under [%s]", r->where, key,
                         o ? o->section : scope_names[SCOPE_ALL]);
    }
    return key_unknown(r, key, e);
}

static int line_read(struct reader *r, struct slice line, struct error *e)
{
    struct file_line l = file_line_of(line);
    if (l.kind == LINE_BLANK || l.kind == LINE_COMMENT) {
        return 0;
    }
    if (memchr(line.data, '\0', line.bytes)) {
        return error_set(e, ERROR_FATAL, E_USAGE, "%s: a NUL character", r->where);
    }
    if (l.kind == LINE_SECTION) {
        return section_read(r, l.name, e);
    }
    if (l.kind == LINE_WRONG) {
        return error_set(e, ERROR_FATAL, E_USAGE, "%s: %s", r->where,
                         *trim(line).data == '[' ? "a section's line ends with ]; comments are lines of their own"
                                                 : "this is not a `key = value`, a `[section]` or a comment");
    }
    char *key_text = mem_string(l.name.data, l.name.bytes);
    char *value_text = mem_string(l.value.data, l.value.bytes);
    int result = pair_read(r, key_text, value_text, e);
    free(value_text);
    free(key_text);
    return result;
}

/* A password in a file that every user of the machine may read. */
static void secrets_check(struct config *config, const char *path, const char *name)
{
    struct stat s;
    const struct config_private *p = config->private;
    for (size_t i = 0; i < p->properties_count; i++) {
        const struct property *property = &p->properties[i];
        if (property->source.origin == ORIGIN_FILE && property_secret(property->name) && stat(path, &s) == 0 &&
            S_ISREG(s.st_mode) && (s.st_mode & S_IROTH)) {
            config_warn(config, "%s has %s, and every user of this machine may read it: `chmod o= %s`", name,
                        property->name, name);
            return;
        }
    }
}

int config_read_file(struct config *config, const char *path, const char *name, struct error *e)
{
    struct reader r = {.config = config};
    struct lines *lines = NULL;
    struct slice line;
    int result = lines_open(&lines, path, LINE_BYTES_MAX, e);
    if (result) {
        error_wrap(e, "-c");
        goto done;
    }
    config->private->file = mem_string(name, strlen(name));
    while ((result = lines_next(lines, &line, e)) > 0) {
        r.line = lines_number(lines);
        snprintf(r.where, sizeof r.where, "%s:%zu", name, r.line);
        result = line_read(&r, line, e);
        if (result) {
            goto done;
        }
    }
    secrets_check(config, path, name);
done:
    if (result && e) {
        e->code = E_USAGE;
    }
    free(r.section);
    lines_close(lines);
    return result;
}
