/* Reading a command's configuration: defaults, file, environment, flags, each over the one before; then the checks that
 * span options. The log is set up here, as soon as the options say how, so that warnings come in the form asked for. */
#include "config/config.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "config/internal.h"

enum { TOPIC_BYTES_MAX = 249, GROUP_BYTES_MAX = 200, SEQUENCE_MIN = 3 };

void config_warn(struct config *config, const char *format, ...)
{
    struct config_private *p = config->private;
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    p->warnings = mem_resize(p->warnings, (p->warnings_count + 1) * sizeof *p->warnings);
    p->warnings[p->warnings_count++] = mem_string(text, strlen(text));
}

int config_set(struct config *config, const struct option *o, const char *text, struct source source, const char *where,
               struct error *e)
{
    if (option_set(config, o, text, e)) {
        return error_wrap(e, "%s", where);
    }
    config->private->sources[o - config_options] = source;
    return 0;
}

void config_where(const struct config *config, const struct option *o, struct buffer *out)
{
    struct source source = config->private->sources[o - config_options];
    switch (source.origin) {
    case ORIGIN_FILE:
        buffer_format(out, "%s:%zu", config->private->file, source.line);
        break;
    case ORIGIN_ENVIRONMENT:
        option_environment(o, out);
        break;
    case ORIGIN_FLAG:
        option_flag(o, out);
        break;
    default:
        buffer_string(out, "default");
    }
}

/* ---- checks
 * ---------------------------------------------------------------------------------------------------------- */

/* "--group: group TEXT" */
static int refuse(const struct config *config, const char *name, struct error *e, const char *format, ...)
    __attribute__((format(printf, 4, 5)));

static int refuse(const struct config *config, const char *name, struct error *e, const char *format, ...)
{
    struct buffer where = {0};
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    config_where(config, option_named(name), &where);
    error_set(e, ERROR_FATAL, E_USAGE, "%s: %s %s", where.data, name, text);
    buffer_free(&where);
    return -1;
}

/* Kafka's rule for topics, which it also applies to group.instance.id. */
static bool kafka_name(const char *name)
{
    size_t bytes = strlen(name);
    return bytes > 0 && bytes <= TOPIC_BYTES_MAX && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
           name[strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")] == '\0';
}

static enum origin origin_of(const struct config *config, const char *name)
{
    return config->private->sources[option_named(name) - config_options].origin;
}

static int check_topics(const struct config *config, struct error *e)
{
    const struct {
        const char *option, *topic;
    } topics[] = {
        {"texts_topic", config->texts_topic},
        {"predictions_topic", config->predictions_topic},
        {"instances_topic", config->instances_topic},
        {"labels_topic", config->labels_topic},
        {"dead_letters_topic", config->dead_letters_topic},
    };
    for (size_t i = 0; i < sizeof topics / sizeof topics[0]; i++) {
        if (!kafka_name(topics[i].topic)) {
            return refuse(config, topics[i].option, e,
                          "is '%s', but a topic's name is 1 to %d letters, digits, dots, dashes and underscores",
                          topics[i].topic, TOPIC_BYTES_MAX);
        }
        for (size_t j = 0; j < i; j++) {
            if (strcmp(topics[i].topic, topics[j].topic) == 0) {
                size_t set = origin_of(config, topics[j].option) > origin_of(config, topics[i].option) ? j : i;
                return refuse(config, topics[set].option, e, "is '%s', which is %s too: each needs a topic of its own",
                              topics[i].topic, topics[i + j - set].option);
            }
        }
    }
    if (config->topic_replication == 0) {
        return refuse(config, "topic_replication", e, "is 0, but it takes -1 (the broker's default) or at least 1");
    }
    return 0;
}

static bool has_control(const char *text)
{
    for (const char *c = text; *c; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            return true;
        }
    }
    return false;
}

static int check_stage(const struct config *config, struct error *e)
{
    if (!*config->group || strlen(config->group) > GROUP_BYTES_MAX || has_control(config->group)) {
        return refuse(config, "group", e, "takes 1 to %d bytes without control characters", GROUP_BYTES_MAX);
    }
    if (!kafka_name(config->instance_id)) {
        return refuse(config, "instance_id", e,
                      "is '%s', but it takes 1 to %d letters, digits, dots, dashes and underscores",
                      config->instance_id, TOPIC_BYTES_MAX);
    }
    if (config->processing_guarantee == GUARANTEE_EXACTLY_ONCE) {
        return refuse(config, "processing_guarantee", e, "cannot be exactly-once yet: leave it at at-least-once");
    }
    if (config->batch_tokens > config->queue_tokens) {
        return refuse(config, "batch_tokens", e, "is %lld, more than queue_tokens (%lld): no batch could fill",
                      (long long)config->batch_tokens, (long long)config->queue_tokens);
    }
    if (config->max_seq_length > 0 && config->max_seq_length < SEQUENCE_MIN) {
        return refuse(config, "max_seq_length", e, "is %lld, but [CLS], [SEP] and one word piece are %d",
                      (long long)config->max_seq_length, SEQUENCE_MIN);
    }
    if (!*config->memory) {
        return refuse(config, "memory", e, "is empty, but it takes a folder");
    }
    return 0;
}

int config_check(const struct config *config, struct error *e)
{
    return check_topics(config, e) ? -1 : check_stage(config, e);
}

/* ---- reading
 * --------------------------------------------------------------------------------------------------------- */

/* instance_id is the host's name unless told; what Kafka takes in no name becomes a dash. */
static void instance_id_default(struct config *config)
{
    char host[TOPIC_BYTES_MAX + 1] = "";
    if (*config->instance_id) {
        return;
    }
    if (gethostname(host, sizeof host - 1) != 0 || !*host) {
        snprintf(host, sizeof host, "localhost");
    }
    for (char *c = host; *c; c++) {
        char one[2] = {*c, '\0'};
        *c = kafka_name(one) || *c == '.' ? *c : '-';
    }
    free(config->instance_id);
    config->instance_id = mem_string(host, strlen(host));
}

static int sources_read(struct config *config, const struct arguments *arguments, struct error *e)
{
    const char *file = arguments_file(arguments);
    if (file && config_read_file(config, file, e)) {
        return -1;
    }
    if (config_read_environment(config, e) || arguments_apply(arguments, config, e)) {
        return -1;
    }
    instance_id_default(config);
    return property_defaults(config, e) ? -1 : config_check(config, e);
}

static int help_write(const struct config_command *command, struct error *e)
{
    struct buffer out = {0};
    help_print(command, &out);
    size_t written = fwrite(out.data, 1, out.bytes, stdout);
    bool whole = written == out.bytes && fflush(stdout) == 0;
    buffer_free(&out);
    return whole ? 1 : error_set(e, ERROR_FATAL, E_IO, "standard output cannot be written");
}

int config_read(const struct config_command *command, int argc, char **argv, struct config *config,
                struct arguments **arguments, struct error *e)
{
    *config = (struct config){.private = mem_zero(1, sizeof(struct config_private))};
    *arguments = NULL;
    for (size_t i = 0; i < OPTIONS; i++) {
        option_default(config, &config_options[i]);
    }
    if (arguments_read(arguments, command, argc, argv, e)) {
        return -1;
    }
    if (arguments_help(*arguments)) {
        return help_write(command, e);
    }
    if (sources_read(config, *arguments, e) || arguments_check(*arguments, command, e)) {
        return -1;
    }
    log_setup((enum log_level)config->log_level, config->log_format == LOG_JSON);
    for (size_t i = 0; i < config->private->warnings_count; i++) {
        log_warn("%s", config->private->warnings[i]);
    }
    return 0;
}

void config_free(struct config *config)
{
    struct config_private *p = config->private;
    for (size_t i = 0; i < OPTIONS; i++) {
        if (config_options[i].type == OPTION_STRING) {
            free(*(char **)(void *)((char *)config + config_options[i].offset));
        }
    }
    if (p) {
        for (size_t i = 0; i < p->properties_count; i++) {
            free(p->properties[i].name);
            free(p->properties[i].value);
        }
        for (size_t i = 0; i < p->warnings_count; i++) {
            free(p->warnings[i]);
        }
        free(p->properties);
        free(p->warnings);
        free(p->file);
        free(p);
    }
    *config = (struct config){0};
}
