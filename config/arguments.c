/* The command line after the subcommand: a command's own flags, every option of the table, -c, -X, --help and
 * positional arguments. Flags are read first, since they name the file, and applied last, since they win. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "config/internal.h"

/* One flag as given. Exactly one of own, option and property is set; strings are argv's. */
struct given {
    const struct config_flag *own;
    const struct option *option;
    const char *property; /* of -X: "consumer.name=value" */
    const char *value;    /* NULL: a switch */
};

struct arguments {
    struct given *given;
    size_t given_count;
    const char **positional;
    size_t positional_count;
    const char *file;
    bool help;
};

/* What is left of argv while it is read. */
struct cursor {
    int argc;
    char **argv;
    int at;
};

static void given_add(struct arguments *a, struct given given)
{
    a->given = mem_resize(a->given, (a->given_count + 1) * sizeof *a->given);
    a->given[a->given_count++] = given;
}

static const struct config_flag *own_flag(const struct config_command *command, const char *name)
{
    for (const struct config_flag *f = command->flags; f && f->name; f++) {
        if (strcmp(f->name, name) == 0) {
            return f;
        }
    }
    return NULL;
}

static const struct option *option_of_flag(const char *name)
{
    const struct option *found = NULL;
    struct buffer flag = {0};
    for (size_t i = 0; i < OPTIONS && !found; i++) {
        buffer_clear(&flag);
        option_flag(&config_options[i], &flag);
        found = strcmp(flag.data + 2, name) == 0 ? &config_options[i] : NULL;
    }
    buffer_free(&flag);
    return found;
}

static int flag_unknown(const struct config_command *command, const char *name, struct error *e)
{
    struct buffer flags[OPTIONS] = {0};
    const char *names[OPTIONS + 64];
    size_t count = 0;
    for (const struct config_flag *f = command->flags; f && f->name && count < 63; f++) {
        names[count++] = f->name;
    }
    names[count++] = "help";
    for (size_t i = 0; i < OPTIONS; i++) {
        option_flag(&config_options[i], &flags[i]);
        names[count++] = flags[i].data + 2;
    }
    error_set(e, ERROR_FATAL, E_USAGE, "there is no flag --%s; the nearest is --%s", name,
              config_nearest(name, names, count));
    for (size_t i = 0; i < OPTIONS; i++) {
        buffer_free(&flags[i]);
    }
    return -1;
}

/* The value after a flag: inline (--flag=value), or the next argument whatever it looks like. */
static int value_take(struct cursor *c, const char *flag, const char *inline_value, const char **value, struct error *e)
{
    if (inline_value) {
        *value = inline_value;
    } else if (c->at + 1 < c->argc) {
        *value = c->argv[++c->at];
    } else {
        return error_set(e, ERROR_FATAL, E_USAGE, "%s needs a value after it", flag);
    }
    return 0;
}

static int own_read(struct arguments *a, struct cursor *c, const struct config_flag *flag, const char *shown,
                    const char *inline_value, struct error *e)
{
    struct given given = {.own = flag};
    if (!flag->value && inline_value) {
        return error_set(e, ERROR_FATAL, E_USAGE, "--%s takes no value", flag->name);
    }
    if (flag->value && !flag->repeated && arguments_has(a, flag->name)) {
        return error_set(e, ERROR_FATAL, E_USAGE, "--%s is given twice", flag->name);
    }
    if (flag->value && value_take(c, shown, inline_value, &given.value, e)) {
        return -1;
    }
    given_add(a, given);
    return 0;
}

/* A bool alone is true; the next argument is its value only where it reads as one. */
static int option_take(struct arguments *a, struct cursor *c, const struct option *o, const char *shown,
                       const char *inline_value, struct error *e)
{
    struct given given = {.option = o};
    bool value;
    if (o->type == OPTION_BOOL && !inline_value) {
        bool next = c->at + 1 < c->argc && option_reads_as_bool(c->argv[c->at + 1], &value);
        given.value = next ? c->argv[++c->at] : "true";
    } else if (value_take(c, shown, inline_value, &given.value, e)) {
        return -1;
    }
    given_add(a, given);
    return 0;
}

static int long_read(struct arguments *a, struct cursor *c, const struct config_command *command, struct error *e)
{
    const char *argument = c->argv[c->at];
    const char *equals = strchr(argument, '=');
    size_t bytes = equals ? (size_t)(equals - argument) : strlen(argument);
    char *shown = mem_string(argument, bytes);
    const char *name = shown + 2;
    const struct config_flag *own = own_flag(command, name);
    const struct option *option = option_of_flag(name);
    int result = 0;
    assert(!own || !option);
    if (strcmp(name, "help") == 0) {
        a->help = true;
    } else if (own) {
        result = own_read(a, c, own, shown, equals ? equals + 1 : NULL, e);
    } else if (option) {
        result = option_take(a, c, option, shown, equals ? equals + 1 : NULL, e);
    } else {
        result = flag_unknown(command, name, e);
    }
    free(shown);
    return result;
}

/* -c FILE, -X name=value, -h; the value may touch the letter. */
static int short_read(struct arguments *a, struct cursor *c, struct error *e)
{
    const char *argument = c->argv[c->at];
    char flag[3] = {'-', argument[1], '\0'};
    const char *touching = argument[2] ? argument + 2 : NULL;
    struct given given = {0};
    switch (argument[1]) {
    case 'c':
        return value_take(c, flag, touching, &a->file, e);
    case 'X':
        if (value_take(c, flag, touching, &given.property, e)) {
            return -1;
        }
        given_add(a, given);
        return 0;
    case 'h':
        a->help = true;
        return 0;
    default:
        return error_set(e, ERROR_FATAL, E_USAGE,
                         "there is no flag %s; put -- before an argument that starts with a dash", argument);
    }
}

int arguments_check(const struct arguments *a, const struct config_command *command, struct error *e)
{
    size_t count = a->positional_count;
    if (command->positional_max >= 0 && count > (size_t)command->positional_max) {
        return error_set(e, ERROR_FATAL, E_USAGE, "'%s' is one argument too many; usage: engram %s %s",
                         a->positional[command->positional_max], command->name, command->usage);
    }
    if (count < (size_t)command->positional_min) {
        return error_set(e, ERROR_FATAL, E_USAGE, "an argument is missing; usage: engram %s %s", command->name,
                         command->usage);
    }
    return 0;
}

int arguments_read(struct arguments **out, const struct config_command *command, int argc, char **argv, struct error *e)
{
    struct arguments *a = *out = mem_zero(1, sizeof *a);
    struct cursor c = {argc, argv, 0};
    bool flags_over = false;
    a->positional = mem_zero((size_t)argc + 1, sizeof *a->positional);
    for (; c.at < argc; c.at++) {
        const char *argument = argv[c.at];
        int result = 0;
        if (flags_over || argument[0] != '-' || argument[1] == '\0') {
            a->positional[a->positional_count++] = argument;
        } else if (strcmp(argument, "--") == 0) {
            flags_over = true;
        } else if (argument[1] == '-') {
            result = long_read(a, &c, command, e);
        } else {
            result = short_read(a, &c, e);
        }
        if (result) {
            return -1;
        }
    }
    return 0;
}

/* name=value with "consumer." or "producer." before it. */
static int property_apply(struct config *config, const char *text, struct error *e)
{
    static const char *const prefixes[SCOPES] = {"", "consumer.", "producer."};
    const char *equals = strchr(text, '=');
    enum scope scope = SCOPE_ALL;
    if (!equals || equals == text) {
        return error_set(e, ERROR_FATAL, E_USAGE,
                         "-X takes name=value, with consumer. or producer. before it if needed");
    }
    for (int i = SCOPE_CONSUMER; i < SCOPES; i++) {
        if (strncmp(text, prefixes[i], strlen(prefixes[i])) == 0) {
            scope = (enum scope)i;
            text += strlen(prefixes[i]);
        }
    }
    char *name = mem_string(text, (size_t)(equals - text));
    int result = property_set(config, name, equals + 1, scope, (struct source){ORIGIN_FLAG, 0}, "-X", e);
    free(name);
    return result;
}

int arguments_apply(const struct arguments *a, struct config *config, struct error *e)
{
    int result = 0;
    for (size_t i = 0; i < a->given_count && result == 0; i++) {
        const struct given *g = &a->given[i];
        if (g->option) {
            struct buffer flag = {0};
            option_flag(g->option, &flag);
            result = config_set(config, g->option, g->value, (struct source){ORIGIN_FLAG, 0}, flag.data, e);
            buffer_free(&flag);
        } else if (g->property) {
            result = property_apply(config, g->property, e);
        }
    }
    return result;
}

const char *arguments_file(const struct arguments *a)
{
    return a->file;
}

bool arguments_help(const struct arguments *a)
{
    return a->help;
}

bool arguments_has(const struct arguments *a, const char *flag)
{
    return arguments_count(a, flag) > 0;
}

const char *arguments_value(const struct arguments *a, const char *flag)
{
    size_t count = arguments_count(a, flag);
    return count ? arguments_nth(a, flag, count - 1) : NULL;
}

size_t arguments_count(const struct arguments *a, const char *flag)
{
    size_t count = 0;
    for (size_t i = 0; i < a->given_count; i++) {
        count += a->given[i].own && strcmp(a->given[i].own->name, flag) == 0;
    }
    return count;
}

const char *arguments_nth(const struct arguments *a, const char *flag, size_t n)
{
    for (size_t i = 0; i < a->given_count; i++) {
        if (a->given[i].own && strcmp(a->given[i].own->name, flag) == 0 && n-- == 0) {
            return a->given[i].value;
        }
    }
    return NULL;
}

size_t arguments_positional_count(const struct arguments *a)
{
    return a->positional_count;
}

const char *arguments_positional(const struct arguments *a, size_t i)
{
    return i < a->positional_count ? a->positional[i] : NULL;
}

void arguments_free(struct arguments *a)
{
    if (a) {
        free(a->given);
        free(a->positional);
        free(a);
    }
}
