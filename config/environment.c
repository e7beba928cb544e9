/* ENGRAM_NAME for each option, ENGRAM_KAFKA_NAME for Kafka's properties; an empty variable is no variable. One of ours
 * that names nothing only warns: it may be meant for another version, or for a script. Kubernetes puts about eight
 * variables for each Service into every pod, and a Service named engram begins them as ours begin: they are left out.
 */
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

static bool ends_with(const char *text, const char *end)
{
    size_t bytes = strlen(text), end_bytes = strlen(end);
    return bytes >= end_bytes && strcmp(text + bytes - end_bytes, end) == 0;
}

/* "8080_TCP" and "8080_TCP_ADDR", what follows _PORT_? */
static bool service_port(const char *rest)
{
    static const char *const protocols[] = {"_TCP", "_UDP", "_SCTP"};
    size_t digits = strspn(rest, "0123456789");
    for (size_t i = 0; digits && i < sizeof protocols / sizeof *protocols; i++) {
        size_t bytes = strlen(protocols[i]);
        const char *end = rest + digits + bytes;
        if (strncmp(rest + digits, protocols[i], bytes) == 0 &&
            (!*end || strcmp(end, "_PROTO") == 0 || strcmp(end, "_PORT") == 0 || strcmp(end, "_ADDR") == 0)) {
            return true;
        }
    }
    return false;
}

/* Is the value an address as Kubernetes and Docker write it? */
static bool service_address(const char *value)
{
    return strncmp(value, "tcp://", 6) == 0 || strncmp(value, "udp://", 6) == 0 || strncmp(value, "sctp://", 7) == 0;
}

/* Is it one of a Service's variables: X_SERVICE_HOST, X_SERVICE_PORT, X_SERVICE_PORT_NAME, X_PORT=tcp://10.0.0.1:8080,
 * X_PORT_8080_TCP, X_PORT_8080_TCP_PROTO, _PORT and _ADDR? No option and no property is named so, but for port: there
 * the value tells. */
static bool service_variable(const char *name, const char *value)
{
    if (ends_with(name, "_SERVICE_HOST") || ends_with(name, "_SERVICE_PORT") || strstr(name, "_SERVICE_PORT_")) {
        return true;
    }
    if (ends_with(name, "_PORT") && service_address(value)) {
        return true;
    }
    for (const char *at = strstr(name, "_PORT_"); at; at = strstr(at + 1, "_PORT_")) {
        if (service_port(at + strlen("_PORT_"))) {
            return true;
        }
    }
    return false;
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

/* One line for all of them. */
static void warn_services(struct config *config, const char *first, size_t count)
{
    struct buffer what = {0};
    buffer_string(&what, first);
    if (count > 1) {
        buffer_format(&what, " and %zu more", count - 1);
    }
    config_warn(config,
                "variables of a Kubernetes Service are ignored: %s; enableServiceLinks: false in the pod's spec keeps "
                "them out",
                what.data);
    buffer_free(&what);
}

int config_read_environment(struct config *config, struct error *e)
{
    int result = 0;
    size_t services = 0;
    char *first = NULL; /* of the services' variables, by name: the environment has no order */
    for (char **entry = environ; *entry && result == 0; entry++) {
        const char *equals = strchr(*entry, '=');
        if (!equals || !equals[1] || strncmp(*entry, PREFIX, strlen(PREFIX)) != 0) {
            continue;
        }
        char *name = mem_string(*entry, (size_t)(equals - *entry));
        if (!service_variable(name, equals + 1)) {
            result = variable_read(config, name, equals + 1, e);
        } else if (services++ == 0 || strcmp(name, first) < 0) {
            free(first);
            first = name;
            name = NULL;
        }
        free(name);
    }
    if (services) {
        warn_services(config, first, services);
    }
    free(first);
    return result;
}
