/* ENGRAM_NAME for each option, ENGRAM_KAFKA_NAME for Kafka's properties. A variable of ours that names nothing only
 * warns: it may be meant for another version, or for a script. */
#include <stdlib.h>
#include <string.h>

#include "config/internal.h"

#define PREFIX "ENGRAM_"
#define KAFKA_PREFIX PREFIX "KAFKA_"

extern char **environ;

static const struct option *option_of_variable(const char *name)
{
    const struct option *found = NULL;
    struct buffer variable = {0};
    for (size_t i = 0; i < OPTIONS && !found; i++) {
        buffer_clear(&variable);
        option_environment(&config_options[i], &variable);
        found = strcmp(variable.data, name) == 0 ? &config_options[i] : NULL;
    }
    buffer_free(&variable);
    return found;
}

static void warn_unknown(struct config *config, const char *name)
{
    struct buffer variables[OPTIONS] = {0};
    const char *names[OPTIONS];
    for (size_t i = 0; i < OPTIONS; i++) {
        option_environment(&config_options[i], &variables[i]);
        names[i] = variables[i].data;
    }
    config_warn(config, "the variable %s names no option and is ignored; the nearest is %s", name,
                config_nearest(name, names, OPTIONS));
    for (size_t i = 0; i < OPTIONS; i++) {
        buffer_free(&variables[i]);
    }
}

static int kafka_variable_read(struct config *config, const char *name, const char *value, struct error *e)
{
    enum scope scope;
    const struct known_property *property = property_of_variable(name + strlen(KAFKA_PREFIX), &scope);
    if (!property) {
        config_warn(config, "the variable %s names no property of Kafka's client and is ignored", name);
        return 0;
    }
    return property_set(config, property->name, value, scope, (struct source){ORIGIN_ENVIRONMENT, 0}, name, e);
}

static int variable_read(struct config *config, const char *name, const char *value, struct error *e)
{
    if (strncmp(name, KAFKA_PREFIX, strlen(KAFKA_PREFIX)) == 0) {
        return kafka_variable_read(config, name, value, e);
    }
    const struct option *o = option_of_variable(name);
    if (!o) {
        warn_unknown(config, name);
        return 0;
    }
    return config_set(config, o, value, (struct source){ORIGIN_ENVIRONMENT, 0}, name, e);
}

int config_read_environment(struct config *config, struct error *e)
{
    int result = 0;
    for (char **entry = environ; *entry && result == 0; entry++) {
        const char *equals = strchr(*entry, '=');
        if (equals && strncmp(*entry, PREFIX, strlen(PREFIX)) == 0) {
            char *name = mem_string(*entry, (size_t)(equals - *entry));
            result = variable_read(config, name, equals + 1, e);
            free(name);
        }
    }
    return result;
}
