/* Kafka's own properties: they pass through to librdkafka under its names, for both clients or for one. librdkafka
 * tells its list (rd_kafka_conf_properties_show), checks each value as it is read, and gets them again for each client.
 * What Engram must decide itself is refused with the reason. */
#include <ctype.h>
#include <librdkafka/rdkafka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/internal.h"

const char *const scope_names[SCOPES] = {"kafka", "kafka.consumer", "kafka.producer"};

static const struct refusal {
    const char *name, *reason;
} refusals[] = {
    {"enable.auto.commit", "Engram commits an offset when the predictions before it are acknowledged"},
    {"auto.commit.enable", "Engram commits an offset when the predictions before it are acknowledged"},
    {"enable.auto.offset.store", "Engram stores an offset when the predictions before it are acknowledged"},
    {"group.id", "use the option group"},
    {"group.instance.id", "Engram derives it from the options group and instance_id"},
    {"transactional.id", "Engram derives it from the options group and instance_id"},
    {"enable.idempotence", "Engram always writes idempotently"},
    {"acks", "Engram always waits for all in-sync replicas"},
    {"request.required.acks", "Engram always waits for all in-sync replicas"},
    {"auto.offset.reset", "use the option start_from"},
    {"partition.assignment.strategy", "Engram always uses range"},
    {"enable.partition.eof", "Engram sets it where it needs to know a partition's end"},
    {"isolation.level", "Engram reads only committed records (read_committed)"},
    {"group.protocol", "Engram always uses the classic protocol"},
    {"message.timeout.ms", "Engram never gives up a record (no limit)"},
    {"delivery.timeout.ms", "Engram never gives up a record (no limit)"},
};

enum { REFUSALS = sizeof refusals / sizeof refusals[0] };

static struct {
    struct known_property *known;
    size_t count;
} list; /* written by the first call alone, before threads start */

/* ---- librdkafka's list ---- */

static const char *refusal_of(const char *name)
{
    for (size_t i = 0; i < REFUSALS; i++) {
        if (strcmp(refusals[i].name, name) == 0) {
            return refusals[i].reason;
        }
    }
    return NULL;
}

static void list_add(struct slice name, enum scope scope, struct slice alias)
{
    for (size_t i = 0; i < list.count; i++) {
        if (slice_equal(slice_of(list.known[i].name), name)) {
            list.known[i].scope = list.known[i].scope == scope ? scope : SCOPE_ALL;
            return;
        }
    }
    struct known_property known = {
        .name = mem_string(name.data, name.bytes),
        .alias = alias.bytes ? mem_string(alias.data, alias.bytes) : NULL,
        .scope = scope,
    };
    known.refused = refusal_of(known.name);
    list.known = mem_resize(list.known, (list.count + 1) * sizeof *list.known);
    list.known[list.count++] = known;
}

/* "linger.ms | P | 0 .. 900000 | 5 | high | Alias for `queue.buffering.max.ms`: Delay ... <br>*Type: float*" */
static void list_line(const char *line)
{
    static const char alias_mark[] = "Alias for `", by_code[] = "*Type: see dedicated API*";
    const char *bar = strchr(line, '|');
    if (!bar || !islower((unsigned char)*line) || strstr(line, by_code)) {
        return;
    }
    size_t name_bytes = strcspn(line, " |");
    const char *scope_end = strchr(bar + 1, '|');
    bool consumer = false, producer = false;
    for (const char *c = bar + 1; scope_end && c < scope_end; c++) {
        consumer = consumer || *c == 'C' || *c == '*';
        producer = producer || *c == 'P' || *c == '*';
    }
    struct slice alias = {0};
    const char *mark = strstr(line, alias_mark);
    if (mark) {
        alias.data = mark + strlen(alias_mark);
        alias.bytes = strcspn(alias.data, "`");
    }
    list_add((struct slice){line, name_bytes},
             consumer == producer ? SCOPE_ALL
             : consumer           ? SCOPE_CONSUMER
                                  : SCOPE_PRODUCER,
             alias);
}

static void list_make(void)
{
    char *text = NULL;
    size_t bytes = 0;
    if (list.count > 0) {
        return;
    }
    FILE *memory = open_memstream(&text, &bytes);
    if (memory) {
        rd_kafka_conf_properties_show(memory);
        fclose(memory);
        char *rest = text;
        for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
            list_line(line);
        }
    }
    free(text);
    for (size_t i = 0; i < REFUSALS; i++) {
        list_add(slice_of(refusals[i].name), SCOPE_ALL, (struct slice){0});
    }
}

const struct known_property *property_named(const char *name)
{
    list_make();
    for (size_t i = 0; i < list.count; i++) {
        if (strcmp(list.known[i].name, name) == 0) {
            return &list.known[i];
        }
    }
    return NULL;
}

static const char *property_nearest(const char *name)
{
    list_make();
    const char **names = mem_alloc(list.count * sizeof *names);
    for (size_t i = 0; i < list.count; i++) {
        names[i] = list.known[i].name;
    }
    const char *nearest = config_nearest(name, names, list.count);
    free(names);
    return nearest;
}

/* Is `variable` the name in capitals, dots as underscores? */
static bool variable_is(const char *variable, const char *name)
{
    for (; *variable && *name; variable++, name++) {
        if (*variable != (*name == '.' ? '_' : toupper((unsigned char)*name))) {
            return false;
        }
    }
    return !*variable && !*name;
}

static const struct known_property *named_by_variable(const char *variable)
{
    for (size_t i = 0; i < list.count; i++) {
        if (variable_is(variable, list.known[i].name)) {
            return &list.known[i];
        }
    }
    return NULL;
}

const struct known_property *property_of_variable(const char *rest, enum scope *scope)
{
    static const char *const prefixes[SCOPES] = {"", "CONSUMER_", "PRODUCER_"};
    const struct known_property *known = NULL;
    list_make();
    for (int i = SCOPE_ALL; i < SCOPES && !known; i++) {
        if (strncmp(rest, prefixes[i], strlen(prefixes[i])) == 0) {
            known = named_by_variable(rest + strlen(prefixes[i]));
            *scope = (enum scope)i;
        }
    }
    return known;
}

void property_refusals(void (*each)(const char *name, const char *reason, void *context), void *context)
{
    for (size_t i = 0; i < REFUSALS; i++) {
        each(refusals[i].name, refusals[i].reason, context);
    }
}

bool property_secret(const char *name)
{
    static const char *const marks[] = {"password",
                                        "passphrase",
                                        "secret",
                                        "key.pem",
                                        "sasl.jaas",
                                        "oauthbearer.config",
                                        "oauthbearer.extensions",
                                        "sasl.kerberos.kinit.cmd"};
    for (size_t i = 0; i < sizeof marks / sizeof marks[0]; i++) {
        if (strstr(name, marks[i])) {
            return true;
        }
    }
    return false;
}

/* ---- setting ---- */

const char *property_canonical(const char *name)
{
    const struct known_property *known = property_named(name);
    return known && known->alias ? known->alias : name;
}

/* One entry per (origin, scope, property): the later one counts, with a word where both are the file's. */
static void property_keep(struct config *config, const char *name, const char *value, enum scope scope,
                          struct source source, const char *where)
{
    struct config_private *private = config->private;
    struct property *p = NULL;
    for (size_t i = 0; i < private->properties_count && !p; i++) {
        struct property *old = &private->properties[i];
        if (old->source.origin == source.origin && old->scope == scope &&
            strcmp(property_canonical(old->name), property_canonical(name)) == 0) {
            p = old;
        }
    }
    if (p && source.origin == ORIGIN_FILE) {
        config_warn(config, "%s: %s is in line %zu too; the later one counts", where, name, p->source.line);
    }
    if (!p) {
        private->properties =
            mem_resize(private->properties, (private->properties_count + 1) * sizeof *private->properties);
        p = &private->properties[private->properties_count++];
        *p = (struct property){0};
    }
    free(p->name);
    free(p->value);
    *p = (struct property){mem_string(name, strlen(name)), mem_string(value, strlen(value)), scope, source};
}

static int scope_check(const struct known_property *known, enum scope scope, const char *where, struct error *e)
{
    if (known && known->scope != SCOPE_ALL && scope != SCOPE_ALL && known->scope != scope) {
        return error_set(e, ERROR_FATAL, E_USAGE, "%s: only the %s has '%s'", where,
                         known->scope == SCOPE_CONSUMER ? "consumer" : "producer", known->name);
    }
    return 0;
}

int property_set(struct config *config, const char *name, const char *value, enum scope scope, struct source source,
                 const char *where, struct error *e)
{
    char text[512] = "";
    const struct known_property *known = property_named(name);
    const char *reason = known ? known->refused : NULL;
    if (reason) {
        return error_set(e, ERROR_FATAL, E_USAGE, "%s: %s cannot be set: %s", where, name, reason);
    }
    if (scope_check(known, scope, where, e)) {
        return -1;
    }
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    rd_kafka_conf_res_t result = rd_kafka_conf_set(conf, name, value, text, sizeof text);
    rd_kafka_conf_destroy(conf);
    if (result == RD_KAFKA_CONF_UNKNOWN && !known) {
        return error_set(e, ERROR_FATAL, E_USAGE, "%s: librdkafka has no property '%s'; the nearest is '%s'", where,
                         name, property_nearest(name));
    }
    if (result != RD_KAFKA_CONF_OK) {
        return error_set(e, ERROR_FATAL, E_USAGE, "%s: %s: %s", where, name, text);
    }
    property_keep(config, name, value, scope, source, where);
    return 0;
}

/* An input may be larger than librdkafka's million bytes; and one prefetch queue holds seconds of input, not minutes,
 * since a paused partition throws it away. */
static const struct {
    const char *name, *value;
    enum scope scope;
} defaults[] = {
    {"bootstrap.servers", "localhost:9092", SCOPE_ALL},     {"topic.metadata.refresh.interval.ms", "30000", SCOPE_ALL},
    {"session.timeout.ms", "10000", SCOPE_CONSUMER},        {"check.crcs", "true", SCOPE_CONSUMER},
    {"queued.max.messages.kbytes", "4096", SCOPE_CONSUMER}, {"message.max.bytes", "4194304", SCOPE_PRODUCER},
};

enum { DEFAULTS = sizeof defaults / sizeof defaults[0] };

int property_defaults(struct config *config, struct error *e)
{
    static const struct source source = {ORIGIN_DEFAULT, 0};
    for (size_t i = 0; i < DEFAULTS; i++) {
        if (property_set(config, defaults[i].name, defaults[i].value, defaults[i].scope, source, "default", e)) {
            return -1;
        }
    }
    struct buffer client = {0};
    buffer_format(&client, "engram-%s", config->instance_id);
    int result = property_set(config, "client.id", client.data, SCOPE_ALL, source, "default", e);
    buffer_free(&client);
    return result;
}

void property_default_rows(void (*each)(const char *section, const char *name, const char *value, void *context),
                           void *context)
{
    each(scope_names[SCOPE_ALL], "client.id", "engram-<instance_id>", context);
    for (size_t i = 0; i < DEFAULTS; i++) {
        each(scope_names[defaults[i].scope], defaults[i].name, defaults[i].value, context);
    }
}

/* ---- one client's view ---- */

/* Is an entry meant for a client that knows the property? */
static bool meant_for(const struct property *p, enum scope client)
{
    const struct known_property *known = property_named(p->name);
    return (p->scope == SCOPE_ALL || p->scope == client) &&
           (!known || known->scope == SCOPE_ALL || known->scope == client);
}

static bool above(const struct property *a, const struct property *b)
{
    return a->source.origin != b->source.origin ? a->source.origin > b->source.origin : a->scope > b->scope;
}

const struct property *property_winner(const struct config *config, const char *name, enum scope client)
{
    const char *wanted = property_canonical(name);
    const struct property *best = NULL;
    for (size_t i = 0; i < config->private->properties_count; i++) {
        const struct property *p = &config->private->properties[i];
        if (strcmp(property_canonical(p->name), wanted) == 0 && meant_for(p, client) && (!best || above(p, best))) {
            best = p;
        }
    }
    return best;
}

bool property_in_force(const struct config *config, const struct property *p)
{
    return property_winner(config, p->name, SCOPE_CONSUMER) == p ||
           property_winner(config, p->name, SCOPE_PRODUCER) == p;
}

static enum scope scope_of(enum config_client client)
{
    return client == CLIENT_CONSUMER ? SCOPE_CONSUMER : SCOPE_PRODUCER;
}

rd_kafka_conf_t *config_kafka(const struct config *config, enum config_client client, struct error *e)
{
    rd_kafka_conf_t *conf = rd_kafka_conf_new();
    for (size_t i = 0; i < config->private->properties_count; i++) {
        const struct property *p = &config->private->properties[i];
        char text[512];
        if (property_winner(config, p->name, scope_of(client)) == p &&
            rd_kafka_conf_set(conf, p->name, p->value, text, sizeof text) != RD_KAFKA_CONF_OK) {
            error_set(e, ERROR_FATAL, E_USAGE, "%s: %s", p->name, text);
            rd_kafka_conf_destroy(conf);
            return NULL;
        }
    }
    return conf;
}

static long number_of(const rd_kafka_conf_t *conf, const char *name)
{
    char text[64] = "0";
    size_t bytes = sizeof text;
    rd_kafka_conf_get(conf, name, text, &bytes);
    return strtol(text, NULL, 10);
}

/* A member that the broker has not heard of for session.timeout.ms is put out of the group. Kafka's own advice is a
 * heartbeat each third of it, so that one that is late or lost does not start a rebalance. A max.poll.interval.ms below
 * session.timeout.ms is librdkafka's to refuse. */
int property_warnings(struct config *config, struct error *e)
{
    rd_kafka_conf_t *conf = config_kafka(config, CLIENT_CONSUMER, e);
    if (!conf) {
        return -1;
    }
    long session = number_of(conf, "session.timeout.ms"), heartbeat = number_of(conf, "heartbeat.interval.ms");
    if (session < 3 * heartbeat) {
        config_warn(config,
                    "session.timeout.ms (%ld) is less than three times heartbeat.interval.ms (%ld): a late heartbeat "
                    "can cost a replica its partitions; raise the one or lower the other",
                    session, heartbeat);
    }
    rd_kafka_conf_destroy(conf);
    return 0;
}

const char *config_bootstrap_servers(const struct config *config)
{
    const struct property *p = property_winner(config, "bootstrap.servers", SCOPE_CONSUMER);
    return p ? p->value : "";
}
