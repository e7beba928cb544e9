/* Reading a command's configuration: defaults, file, environment, flags, each over the one before; then the checks that
 * span options (check.c). The log is set up here, as soon as the options say how, so that warnings come in the form
 * asked for. */
#include "config/config.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"
#include "config/internal.h"

/* instance_id is the host's name unless set; what Kafka takes in no name becomes a dash. */
static void instance_id_default(struct config *config)
{
    char host[CONFIG_TOPIC_BYTES_MAX + 1] = "";
    if (*config->instance_id) {
        return;
    }
    if (gethostname(host, sizeof host - 1) != 0 || !*host) {
        snprintf(host, sizeof host, "localhost");
    }
    for (char *c = host; *c; c++) {
        char one[2] = {*c, '\0'};
        *c = config_kafka_name(one) || *c == '.' ? *c : '-';
    }
    free(config->instance_id);
    config->instance_id = mem_string(host, strlen(host));
}

static int sources_read(struct config *config, const struct arguments *arguments, struct error *e)
{
    const char *file = arguments_file(arguments);
    if (file && config_read_file(config, file, strcmp(file, "-") == 0 ? "standard input" : file, e)) {
        return -1;
    }
    if (config_read_environment(config, e) || arguments_apply(arguments, config, e)) {
        return -1;
    }
    instance_id_default(config);
    return property_defaults(config, e) || config_check(config, e) ? -1 : property_warnings(config, e);
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

/* Everything but the log. */
static int all_read(const struct config_command *command, int argc, char **argv, struct config *config,
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
    return sources_read(config, *arguments, e) || arguments_check(*arguments, command, e) ? -1 : 0;
}

int config_read(const struct config_command *command, int argc, char **argv, struct config *config,
                struct arguments **arguments, struct error *e)
{
    int result = all_read(command, argc, argv, config, arguments, e);
    if (result) {
        return result;
    }
    log_setup((enum log_level)config->log_level, config->log_format == LOG_JSON);
    for (size_t i = 0; i < config->private->warnings_count; i++) {
        log_warn("%s", config->private->warnings[i]);
    }
    return 0;
}

const char *config_file(const struct config *config)
{
    return config->private->file;
}

static bool warned(const struct config *config, const char *warning)
{
    for (size_t i = 0; i < config->private->warnings_count; i++) {
        if (strcmp(config->private->warnings[i], warning) == 0) {
            return true;
        }
    }
    return false;
}

/* A pipe or standard input gives nothing a second time, and a file that reads as empty would put every option back to
 * its default. A file that is missing is for the reader to say. */
static bool reads_twice(const char *path)
{
    struct stat status;
    return strcmp(path, "-") != 0 && (stat(path, &status) != 0 || S_ISREG(status.st_mode));
}

int config_read_again(const struct config_command *command, int argc, char **argv, const struct config *before,
                      struct config *config, struct error *e)
{
    struct arguments *arguments = NULL;
    int result = -1;
    *config = (struct config){0};
    if (arguments_read(&arguments, command, argc, argv, e)) {
        goto done;
    }
    const char *file = arguments_file(arguments);
    if (file && !reads_twice(file)) {
        error_set(e, ERROR_FATAL, E_USAGE, "%s cannot be read a second time: name a file with -c", config_file(before));
        goto done;
    }
    arguments_free(arguments);
    arguments = NULL;
    result = all_read(command, argc, argv, config, &arguments, e);
    for (size_t i = 0; result == 0 && i < config->private->warnings_count; i++) {
        if (!warned(before, config->private->warnings[i])) {
            log_warn("%s", config->private->warnings[i]);
        }
    }
done:
    arguments_free(arguments);
    return result;
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
        for (size_t i = 0; i < OPTIONS; i++) {
            free(p->file_values[i]);
        }
        free(p->properties);
        free(p->warnings);
        free(p->file);
        free(p);
    }
    *config = (struct config){0};
}
