/* What no option's own range can say: names that Kafka takes, options that must fit each other. */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "config/internal.h"

enum { GROUP_BYTES_MAX = 200, SEQUENCE_MIN = 3, DEVICE_DIGITS_MAX = 4 };

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

bool config_kafka_name(const char *name)
{
    size_t bytes = strlen(name);
    return bytes > 0 && bytes <= CONFIG_TOPIC_BYTES_MAX && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 &&
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
        if (!config_kafka_name(topics[i].topic)) {
            return refuse(config, topics[i].option, e,
                          "is '%s', but a topic's name is 1 to %d letters, digits, dots, dashes and underscores",
                          topics[i].topic, CONFIG_TOPIC_BYTES_MAX);
        }
        for (size_t j = 0; j < i; j++) {
            if (strcmp(topics[i].topic, topics[j].topic) == 0) {
                size_t set = origin_of(config, topics[j].option) > origin_of(config, topics[i].option) ? j : i;
                return refuse(config, topics[set].option, e, "is '%s', which is %s too: each needs its own topic",
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
    if (!config_kafka_name(config->instance_id)) {
        return refuse(config, "instance_id", e,
                      "is '%s', but it takes 1 to %d letters, digits, dots, dashes and underscores",
                      config->instance_id, CONFIG_TOPIC_BYTES_MAX);
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
    if (!*config_bootstrap_servers(config)) {
        return error_set(e, ERROR_FATAL, E_USAGE,
                         "bootstrap.servers is empty: name a broker, as in -X bootstrap.servers=localhost:9092");
    }
    if (!*config->listen) {
        return refuse(config, "listen", e, "is empty, but it takes an address (0.0.0.0: all)");
    }
    return 0;
}

/* ---- devices ---- */

/* The number of item[0..bytes), blanks around it left out; -1: it is none from 0 to 9999. */
static int device_number(const char *item, size_t bytes)
{
    size_t first = 0, end = bytes;
    while (first < end && item[first] == ' ') {
        first++;
    }
    while (first < end && item[end - 1] == ' ') {
        end--;
    }
    for (size_t i = first; i < end; i++) {
        if (!isdigit((unsigned char)item[i])) {
            return -1;
        }
    }
    return first < end && end - first <= DEVICE_DIGITS_MAX ? (int)strtol(item + first, NULL, 10) : -1;
}

/* The item's number after the others; false: it has none that may follow them, and *why says so. */
static bool device_add(const char *item, size_t bytes, int *devices, size_t *count, struct buffer *why)
{
    const int number = device_number(item, bytes), shown = bytes < 32 ? (int)bytes : 32;
    if (number < 0 && strspn(item, " ") >= bytes) {
        buffer_string(why, "an item is empty");
        return false;
    }
    if (number < 0) {
        buffer_format(why, "'%.*s' is not a number from 0 to 9999", shown, item);
        return false;
    }
    for (size_t i = 0; i < *count; i++) {
        if (devices[i] == number) {
            buffer_format(why, "%d is there twice", number);
            return false;
        }
    }
    if (*count == CONFIG_DEVICES_MAX) {
        buffer_format(why, "there are more than %d numbers", CONFIG_DEVICES_MAX);
        return false;
    }
    devices[(*count)++] = number;
    return true;
}

/* "0,1": false, and *why, where it is no such list. An empty one has no numbers. */
static bool devices_read(const char *list, int devices[CONFIG_DEVICES_MAX], size_t *count, struct buffer *why)
{
    *count = 0;
    for (const char *item = list; *list; item++) {
        const size_t bytes = strcspn(item, ",");
        if (!device_add(item, bytes, devices, count, why)) {
            return false;
        }
        item += bytes;
        if (!*item) {
            break;
        }
    }
    return true;
}

static int check_devices(struct config *config, struct error *e)
{
    int devices[CONFIG_DEVICES_MAX];
    size_t count;
    struct buffer why = {0};
    if (!devices_read(config->devices, devices, &count, &why)) {
        refuse(config, "devices", e, "is '%s': %s; it takes numbers of devices, as in 0,1", config->devices, why.data);
        buffer_free(&why);
        return -1;
    }
    if (count && config->device == CONFIG_DEVICE_CPU) {
        config_warn(config, "devices is '%s', to no effect: device is cpu", config->devices);
    }
    return 0;
}

size_t config_devices(const struct config *config, int devices[CONFIG_DEVICES_MAX])
{
    struct buffer why = {0};
    size_t count;
    devices_read(config->devices, devices, &count, &why);
    buffer_free(&why);
    return count;
}

int config_check(struct config *config, struct error *e)
{
    return check_topics(config, e) || check_stage(config, e) ? -1 : check_devices(config, e);
}
