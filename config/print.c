/* What people read: a command's help, the options in force, docs/CONFIG.md. All three walk the one table. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/utf8.h"
#include "config/internal.h"

enum { HELP_COLUMN = 26, HELP_WIDTH = 100 };

static const char *const section_titles[] = {
    "Kafka's own properties, for all clients",
    "only for the consumers",
    "only for the producer",
    "their names, and how missing ones are created",
    "the running stage",
    "the model",
    "the device that encodes and searches",
    "what is remembered",
    "from similarity to labels",
    "metrics and health over HTTP",
    "the log",
};

/* ---- help ---- */

/* Words from `column` on, wrapped before HELP_WIDTH and indented; a newline in the text starts a line. */
static void wrap(struct buffer *out, const char *text, size_t column, size_t indent)
{
    bool first = true;
    while (*text) {
        size_t word = strcspn(text, " \n");
        if (!first && (text[-1] == '\n' || column + 1 + word > HELP_WIDTH)) {
            buffer_format(out, "\n%*s", (int)indent, "");
            column = indent;
        } else if (!first) {
            buffer_byte(out, ' ');
            column++;
        }
        buffer_append(out, text, word);
        column += word;
        text += word + (text[word] != '\0');
        first = false;
    }
    buffer_byte(out, '\n');
}

/* "  --flag VALUE        what it does" */
static void flag_line(struct buffer *out, const char *flag, const char *help)
{
    buffer_format(out, "  %-*s", HELP_COLUMN - 2, flag);
    if (strlen(flag) > HELP_COLUMN - 3) {
        buffer_format(out, "\n%*s", HELP_COLUMN, "");
    }
    wrap(out, help, HELP_COLUMN, HELP_COLUMN);
}

static void own_flags(const struct config_command *command, struct buffer *out)
{
    buffer_string(out, "\nFlags\n");
    for (const struct config_flag *f = command->flags; f && f->name; f++) {
        struct buffer flag = {0};
        if (!f->help) {
            continue;
        }
        buffer_format(&flag, "--%s%s%s", f->name, f->value ? " " : "", f->value ? f->value : "");
        flag_line(out, flag.data, f->help);
        buffer_free(&flag);
    }
    flag_line(out, "-c FILE", "read options from this file (without -c no file is read)");
    flag_line(
        out, "-X NAME=VALUE",
        "set a property of Kafka's clients; with the prefix consumer. or producer. only for that kind; repeatable");
    flag_line(out, "--help", "print this text");
    flag_line(out, "--", "end the flags: the next argument may start with a dash");
}

static const char *value_word(const struct option *o)
{
    return o->type == OPTION_STRING ? "TEXT" : o->type == OPTION_BOOL ? "BOOL" : o->type == OPTION_ENUM ? "" : "N";
}

static void option_lines(const char *section, struct buffer *out)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        const struct option *o = &config_options[i];
        if (strcmp(o->section, section) != 0) {
            continue;
        }
        struct buffer flag = {0}, help = {0};
        option_flag(o, &flag);
        buffer_byte(&flag, ' ');
        if (o->type == OPTION_ENUM) {
            for (size_t j = 0; o->names[j]; j++) {
                buffer_format(&flag, "%s%s", j ? "|" : "", o->names[j]);
            }
        }
        buffer_string(&flag, value_word(o));
        buffer_format(&help, "%s%s%s%s", o->help, *o->value ? " [" : "", o->value, *o->value ? "]" : "");
        flag_line(out, flag.data, help.data);
        buffer_free(&flag);
        buffer_free(&help);
    }
}

void help_print(const struct config_command *command, struct buffer *out)
{
    buffer_format(out, "Usage: engram %s%s%s\n\n", command->name, *command->usage ? " " : "", command->usage);
    wrap(out, command->help, 0, 0);
    buffer_string(out, "\nExample\n");
    for (const char *line = command->example; *line;) {
        size_t bytes = strcspn(line, "\n");
        buffer_format(out, "  %.*s\n", (int)bytes, line);
        line += bytes + (line[bytes] == '\n');
    }
    own_flags(command, out);
    buffer_string(
        out, "\nOptions [and their defaults]. Each is also a variable (--batch-tokens is ENGRAM_BATCH_TOKENS) and a\n"
             "line of the file (batch_tokens under [stage]). `engram config` shows the values in use.\n");
    for (size_t s = SCOPES; config_sections[s]; s++) {
        buffer_format(out, "\n[%s] %s\n", config_sections[s], section_titles[s]);
        option_lines(config_sections[s], out);
    }
}

/* ---- what is in force ---- */

/* "flag", "environment", "file:12", "default" */
static void origin_format(struct source source, struct buffer *out)
{
    static const char *const names[ORIGINS] = {"default", "file", "environment", "flag"};
    buffer_string(out, names[source.origin]);
    if (source.origin == ORIGIN_FILE) {
        buffer_format(out, ":%zu", source.line);
    }
}

struct row {
    struct buffer name, value, from;
    const struct option *option; /* NULL: a property of Kafka's */
};

static void clean(struct buffer *value)
{
    for (size_t i = 0; i < value->bytes; i++) {
        unsigned char c = (unsigned char)value->data[i];
        value->data[i] = c < 0x20 || c == 0x7f ? '?' : (char)c;
    }
    if (!utf8_valid(value->data ? value->data : "", value->bytes)) {
        for (size_t i = 0; i < value->bytes; i++) {
            value->data[i] = (unsigned char)value->data[i] < 0x80 ? value->data[i] : '?';
        }
    }
}

static size_t rows_make(const struct config *config, struct row *rows)
{
    const struct config_private *p = config->private;
    size_t count = 0;
    for (size_t i = 0; i < p->properties_count; i++) {
        const struct property *property = &p->properties[i];
        if (property_in_force(config, property)) {
            struct row *row = &rows[count++];
            buffer_format(&row->name, "%s.%s", scope_names[property->scope], property->name);
            buffer_string(&row->value, property_secret(property->name) ? "********" : property->value);
            clean(&row->value);
            origin_format(property->source, &row->from);
        }
    }
    for (size_t i = 0; i < OPTIONS; i++) {
        struct row *row = &rows[count++];
        row->option = &config_options[i];
        buffer_string(&row->name, config_options[i].name);
        option_value(config, &config_options[i], &row->value);
        origin_format(p->sources[i], &row->from);
    }
    return count;
}

static void row_json(const struct config *config, const struct row *row, struct json_writer *w)
{
    const struct option *o = row->option;
    const void *member = o ? (const char *)config + o->offset : NULL;
    json_name(w, row->name.data);
    json_object_begin(w);
    json_name(w, "value");
    if (o && o->type == OPTION_BOOL) {
        json_write_bool(w, *(const bool *)member);
    } else if (o && (o->type == OPTION_INT || o->type == OPTION_SIZE)) {
        json_write_int(w, *(const int64_t *)member);
    } else if (o && o->type == OPTION_DOUBLE) {
        json_write_double(w, *(const double *)member);
    } else {
        json_write_string(w, (struct slice){row->value.data, row->value.bytes});
    }
    json_name(w, "from");
    json_write_string(w, (struct slice){row->from.data, row->from.bytes});
    json_object_end(w);
}

static void rows_table(struct row *rows, size_t count, struct buffer *out)
{
    size_t name_width = 0, value_width = 0;
    for (size_t i = 0; i < count; i++) {
        clean(&rows[i].value);
        name_width = rows[i].name.bytes > name_width ? rows[i].name.bytes : name_width;
        value_width = rows[i].value.bytes > value_width ? rows[i].value.bytes : value_width;
    }
    value_width = value_width > 48 ? 48 : value_width;
    buffer_format(out, "%-*s  %-*s  %s\n", (int)name_width, "NAME", (int)value_width, "VALUE", "FROM");
    for (size_t i = 0; i < count; i++) {
        buffer_format(out, "%-*s  %-*s  %s\n", (int)name_width, rows[i].name.data, (int)value_width,
                      rows[i].value.data ? rows[i].value.data : "", rows[i].from.data);
    }
}

void config_print(const struct config *config, bool json, struct buffer *out)
{
    size_t most = config->private->properties_count + OPTIONS;
    struct row *rows = mem_zero(most, sizeof *rows);
    size_t count = rows_make(config, rows);
    if (json) {
        struct json_writer w = {.out = out};
        json_object_begin(&w);
        for (size_t i = 0; i < count; i++) {
            row_json(config, &rows[i], &w);
        }
        json_object_end(&w);
        buffer_byte(out, '\n');
    } else {
        rows_table(rows, count, out);
    }
    for (size_t i = 0; i < count; i++) {
        buffer_free(&rows[i].name);
        buffer_free(&rows[i].value);
        buffer_free(&rows[i].from);
    }
    free(rows);
}

/* ---- docs/CONFIG.md ---- */

static const char introduction[] =
    "# Options\n\n"
    "<!-- Made by `make docs` from the table in config/options.c: change it there. -->\n\n"
    "Every option is a flag, a variable and a line of a file. Every command accepts all of them and ignores those\n"
    "that it does not need. A flag wins over a variable, a variable over the file, the file over the default.\n"
    "`engram config` shows each value and where it comes from; secrets are masked.\n\n"
    "- **Flag**: `--batch-tokens 4096` or `--batch-tokens=4096`. A true-or-false option may be given without a\n"
    "  value (`--evidence-text`) or with one (`--store-text=false`, `--store-text false`: the next argument is the\n"
    "  value if it reads as one). `--` ends the flags.\n"
    "- **Variable**: `ENGRAM_BATCH_TOKENS=4096`. An empty variable counts as unset. An unknown `ENGRAM_*` variable\n"
    "  gets a warning and is ignored. So are, with one warning for all, those that Kubernetes makes for a Service\n"
    "  named `engram` or `engram-...` (`ENGRAM_PORT=tcp://10.0.0.1:8080`, `ENGRAM_SERVICE_HOST`).\n"
    "- **File**: `engram run -c engram.conf`. Without `-c` no file is read.\n\n"
    "```ini\n"
    "# comments are lines of their own, with # or ;\n"
    "[kafka]\n"
    "bootstrap.servers = kafka-1:9092,kafka-2:9092\n"
    "sasl.password = all of this is the value ; # this too\n\n"
    "[stage]\n"
    "batch_tokens = 4096\n\n"
    "[encoder]\n"
    "text_prefix = \"query: \"\n"
    "```\n\n"
    "The value is everything after the `=` up to the end of the line, without blanks around it. Quotes are part of\n"
    "the value, except for the two prefixes. If a key is repeated, the last one counts, with a warning. An unknown\n"
    "name or a value out of range ends the command with exit status 2 and a line that says where it is.\n\n"
    "A running stage takes the options marked `live` from the file on SIGHUP, without a restart\n"
    "([OPERATIONS.md](OPERATIONS.md#new-options-without-a-restart)).\n\n"
    "`true | false` may also be written yes, no, on, off, 1, 0. Sizes take KiB, MiB, GiB, TiB or K, M, G, T (1,024\n"
    "each).\n";

static const char kafka_text[] =
    "\n## [kafka], [kafka.consumer], [kafka.producer]: Kafka's own properties\n\n"
    "[librdkafka's properties](https://github.com/confluentinc/librdkafka/blob/master/CONFIGURATION.md) are passed on\n"
    "under their own names: `[kafka]` is for every client, the other two are for one kind.\n\n"
    "| where | for every client | for the consumers | for the producer |\n|---|---|---|---|\n"
    "| file | `linger.ms = 5` under `[kafka]` | under `[kafka.consumer]` | under `[kafka.producer]` |\n"
    "| variable | `ENGRAM_KAFKA_LINGER_MS=5` | `ENGRAM_KAFKA_CONSUMER_...` | `ENGRAM_KAFKA_PRODUCER_...` |\n"
    "| flag | `-X linger.ms=5` | `-X consumer.NAME=VALUE` | `-X producer.NAME=VALUE` |\n\n"
    "In a variable the name is in capitals, with underscores for dots. If two sources set a property, the flag wins\n"
    "over the variable and the variable over the file. Within one source, the property for one kind of client wins.\n\n"
    "Engram's own defaults, where they differ from librdkafka's:\n\n"
    "| section | property | default |\n|---|---|---|\n";

static const char refusals_text[] = "\nEngram decides these itself and refuses them:\n\n"
                                    "| property | why |\n|---|---|\n";

static void default_row(const char *section, const char *name, const char *value, void *context)
{
    buffer_format(context, "| [%s] | %s | %s |\n", section, name, value);
}

static void refusal_row(const char *name, const char *reason, void *context)
{
    buffer_format(context, "| %s | %s |\n", name, reason);
}

/* A bar would end the table's cell. */
static void cell(const char *text, struct buffer *out)
{
    for (const char *c = text; *c; c++) {
        buffer_string(out, *c == '|' ? "\\" : "");
        buffer_byte(out, *c);
    }
}

static void option_row(const struct option *o, struct buffer *out)
{
    struct buffer range = {0};
    option_range(o, &range);
    buffer_format(out, "| %s | %s | ", o->name, *o->value ? o->value : "\"\"");
    cell(range.data, out);
    buffer_string(out, " | `");
    option_flag(o, out);
    buffer_string(out, "` | `");
    option_environment(o, out);
    buffer_format(out, "` | %s%s |\n", o->help, o->live ? " (live)" : "");
    buffer_free(&range);
}

void config_document(struct buffer *out)
{
    buffer_string(out, introduction);
    for (size_t s = SCOPES; config_sections[s]; s++) {
        buffer_format(out, "\n## [%s]: %s\n\n", config_sections[s], section_titles[s]);
        buffer_string(out, "| option | default | range | flag | variable | what it is |\n|---|---|---|---|---|---|\n");
        for (size_t i = 0; i < OPTIONS; i++) {
            if (strcmp(config_options[i].section, config_sections[s]) == 0) {
                option_row(&config_options[i], out);
            }
        }
    }
    buffer_string(out, kafka_text);
    property_default_rows(default_row, out);
    buffer_string(out, refusals_text);
    property_refusals(refusal_row, out);
}
