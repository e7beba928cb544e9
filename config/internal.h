/* What config's own files share: the table, where values are from, the list of Kafka's properties. */
#ifndef ENGRAM_CONFIG_INTERNAL_H
#define ENGRAM_CONFIG_INTERNAL_H

#include "config/config.h"

/* ---- the table ---- */

enum option_type {
    OPTION_STRING,
    OPTION_BOOL,
    OPTION_INT,
    OPTION_SIZE, /* bytes, with a suffix or without */
    OPTION_DOUBLE,
    OPTION_ENUM,
};

struct option {
    const char *section;
    bool live; /* a running stage takes another value without a restart */
    const char *name;
    enum option_type type;
    const char *value;        /* the default, written as a user would */
    double min, max;          /* of a number, both included */
    const char *const *names; /* of an enum, in the order of its values; ends with NULL */
    const char *help;
    size_t offset; /* in struct config; the member's type follows from `type` */
};

enum { OPTIONS = 45 };
extern const struct option config_options[OPTIONS];

extern const char *const config_sections[]; /* [kafka] and its two scopes, then the table's; ends with NULL */

const struct option *option_named(const char *name); /* NULL: none */
/* Parses text into the option's member. An error's text starts with the option's name, without a source. */
int option_set(struct config *config, const struct option *o, const char *text, struct error *e);
void option_default(struct config *config, const struct option *o);
bool option_reads_as_bool(const char *text, bool *value);
void option_range(const struct option *o, struct buffer *out);       /* "0 .. 1", "input | now", "true | false" */
void option_flag(const struct option *o, struct buffer *out);        /* "--batch-tokens" */
void option_environment(const struct option *o, struct buffer *out); /* "ENGRAM_BATCH_TOKENS" */
void option_value(const struct config *config, const struct option *o, struct buffer *out);

/* ---- where a value is from ---- */

/* Rising precedence; the sources are read in this order, so that a later one overwrites. */
enum origin { ORIGIN_DEFAULT, ORIGIN_FILE, ORIGIN_ENVIRONMENT, ORIGIN_FLAG, ORIGINS };

struct source {
    enum origin origin;
    size_t line; /* ORIGIN_FILE */
};

/* Whose a Kafka property is. */
enum scope { SCOPE_ALL, SCOPE_CONSUMER, SCOPE_PRODUCER, SCOPES };
extern const char *const scope_names[SCOPES]; /* "kafka", "kafka.consumer", "kafka.producer": the file's sections */

struct property {
    char *name, *value; /* owned */
    enum scope scope;
    struct source source;
};

struct config_private {
    struct source sources[OPTIONS];
    struct property *properties; /* each (origin, scope, name) once */
    size_t properties_count;
    char *file;                 /* as named with -c, or NULL */
    char *file_values[OPTIONS]; /* what the file says, whoever wins; NULL: nothing */
    char **warnings;            /* they wait until the log is set up as the options say */
    size_t warnings_count;
};

void config_warn(struct config *config, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Sets an option; `where` names flag, variable or file:line in errors. */
int config_set(struct config *config, const struct option *o, const char *text, struct source source, const char *where,
               struct error *e);
/* Where an option's value is from, for people: "--tau", "ENGRAM_TAU", "engram.conf:12", "default". */
void config_where(const struct config *config, const struct option *o, struct buffer *out);
/* What no option's own range can say; warns of what has no effect. */
int config_check(struct config *config, struct error *e);
/* Kafka's rule for topics, which it also applies to group.instance.id. */
enum { CONFIG_TOPIC_BYTES_MAX = 249 };
bool config_kafka_name(const char *name);

/* ---- the sources ---- */

/* A line of the file, without its end. */
struct file_line {
    enum { LINE_BLANK, LINE_COMMENT, LINE_SECTION, LINE_PAIR, LINE_WRONG } kind;
    struct slice name;  /* of the section; the pair's key */
    struct slice value; /* of a pair; where it is empty, what follows the = is blank */
};

struct file_line file_line_of(struct slice line);
bool file_blank(char c);                        /* what the reader takes away around names and values */
bool file_takes_quotes(const struct option *o); /* around a value, so that blanks at its ends stay */
bool file_is_quoted(struct slice value);        /* then it is what is between the quotes */
/* Reads `path`, called `name` in messages. */
int config_read_file(struct config *config, const char *path, const char *name, struct error *e);
int config_read_environment(struct config *config, struct error *e);

/* Flags are read before the file, since they name it, and applied after everything else. */
int arguments_read(struct arguments **out, const struct config_command *command, int argc, char **argv,
                   struct error *e);
int arguments_apply(const struct arguments *a, struct config *config, struct error *e);
int arguments_check(const struct arguments *a, const struct config_command *command, struct error *e); /* how many */
const char *arguments_file(const struct arguments *a); /* -c's, or NULL */
bool arguments_help(const struct arguments *a);

/* ---- Kafka's properties ---- */

struct known_property {
    char *name;
    char *alias;         /* the name that it stands for, or NULL */
    enum scope scope;    /* which clients know it */
    const char *refused; /* why it is not the user's to set, or NULL */
};

/* librdkafka's own list, made at the first call (before threads start); NULL: no property of that name. */
const struct known_property *property_named(const char *name);
/* The property of ENGRAM_KAFKA_<rest>, or NULL. */
const struct known_property *property_of_variable(const char *rest, enum scope *scope);
void property_refusals(void (*each)(const char *name, const char *reason, void *context), void *context);
bool property_secret(const char *name);

/* Adds a property, checked by librdkafka. Errors name `where`. */
int property_set(struct config *config, const char *name, const char *value, enum scope scope, struct source source,
                 const char *where, struct error *e);
int property_defaults(struct config *config, struct error *e); /* needs instance_id */
int property_warnings(struct config *config, struct error *e); /* of properties that do not fit each other */
void property_default_rows(void (*each)(const char *section, const char *name, const char *value, void *context),
                           void *context);
/* The entry that a client (SCOPE_CONSUMER, SCOPE_PRODUCER) takes for a property; NULL: librdkafka's default. */
const struct property *property_winner(const struct config *config, const char *name, enum scope client);
const char *property_canonical(const char *name); /* what an alias stands for, else the name itself */
/* Does a client take this very entry, or does another one win over it for every client? */
bool property_in_force(const struct config *config, const struct property *p);

/* ---- printing ---- */

void help_print(const struct config_command *command, struct buffer *out);

#endif
