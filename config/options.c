/* The options table, and how one option is parsed and shown. Parsing, help, variables' names and docs/CONFIG.md all
 * come from this table; a new option is one line here and one member of struct config; LIVE() around its section, where
 * a running stage takes another value without a restart. Numbers are read under the C locale, whatever the process has
 * set. */
#include "config/internal.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <locale.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/log.h"
#include "base/utf8.h"

#define KIB 1024.0
#define MIB (1024 * KIB)
#define TIB (1024 * 1024 * MIB)

static const char *const start_names[] = {"earliest", "latest", NULL};
static const char *const guarantee_names[] = {"at-least-once", "exactly-once", NULL};
static const char *const timestamp_names[] = {"input", "now", NULL};
static const char *const dtype_names[] = {"bf16", "f32", NULL};
static const char *const compute_names[] = {"auto", "f32", "bf16", NULL};
static const char *const device_names[] = {"auto", "cpu", "cuda", NULL};
static const char *const pool_names[] = {"joint", "apart", NULL};
static const char *const form_names[] = {"cosine", "bm25", NULL};
static const char *const level_names[] = {"error", "warn", "info", "debug", NULL};
static const char *const format_names[] = {"text", "json", NULL};

/* In a row's place for its section: a running stage takes another value without a restart (`live` of struct option). */
#define LIVE(section) section, true

#define AT(member) offsetof(struct config, member)
#define STRING(section, id, value, help)                                                                               \
    {                                                                                                                  \
        section, .name = #id, OPTION_STRING, value, 0, 0, NULL, help, AT(id)                                           \
    }
#define BOOL(section, id, value, help)                                                                                 \
    {                                                                                                                  \
        section, .name = #id, OPTION_BOOL, value, 0, 0, NULL, help, AT(id)                                             \
    }
#define INT(section, id, value, min, max, help)                                                                        \
    {                                                                                                                  \
        section, .name = #id, OPTION_INT, value, min, max, NULL, help, AT(id)                                          \
    }
#define SIZE(section, id, value, min, max, help)                                                                       \
    {                                                                                                                  \
        section, .name = #id, OPTION_SIZE, value, min, max, NULL, help, AT(id)                                         \
    }
#define DOUBLE(section, id, value, min, max, help)                                                                     \
    {                                                                                                                  \
        section, .name = #id, OPTION_DOUBLE, value, min, max, NULL, help, AT(id)                                       \
    }
#define ENUM(section, id, value, names, help)                                                                          \
    {                                                                                                                  \
        section, .name = #id, OPTION_ENUM, value, 0, 0, names, help, AT(id)                                            \
    }

/* clang-format off */
const struct option config_options[OPTIONS] = {
    STRING("topics", texts_topic, "texts", "texts to tag"),
    STRING("topics", predictions_topic, "predictions", "labels predicted for the texts, with evidence"),
    STRING("topics", instances_topic, "instances", "labelled instances to learn from; null forgets one"),
    STRING("topics", labels_topic, "labels", "label definitions; null forgets one"),
    STRING("topics", dead_letters_topic, "dead-letters", "records that can never be processed, with the reason in their headers"),
    BOOL("topics", create_topics, "true", "create missing topics"),
    INT("topics", topic_partitions, "6", 1, 10000, "partitions of texts, predictions and dead letters when they are created (instances and labels get one)"),
    INT("topics", topic_replication, "-1", -1, 32767, "replicas of a topic when it is created; -1: the broker's default"),

    STRING("stage", group, "engram", "consumer group whose members share the texts"),
    STRING("stage", instance_id, "", "name of this replica, unique in the group and the same after a restart; empty: the host's name"),
    ENUM("stage", start_from, "earliest", start_names, "where a group without offsets starts to read texts"),
    ENUM("stage", processing_guarantee, "at-least-once", guarantee_names, "at-least-once: after a crash a text may be answered twice, but is never left out (exactly-once is not implemented yet)"),
    INT("stage", batch_tokens, "0", 0, 1048576, "most tokens in a batch; 0: as many as suit the backend"),
    INT("stage", batch_wait_ms, "0", 0, 60000, "how long a batch may wait for more texts, in milliseconds"),
    INT("stage", queue_tokens, "65536", 1024, 1073741824, "tokens that may wait to be encoded before partitions are paused"),
    ENUM("stage", timestamp, "input", timestamp_names, "timestamp of a prediction: its text's, or the time of writing"),

    STRING("encoder", model, "", "a Hugging Face or sentence-transformers folder; empty: models/all-MiniLM-L6-v2 beside the binary, else the installed one"),
    INT("encoder", max_seq_length, "0", 0, 8192, "most word pieces that are read of a text, [CLS] and [SEP] included; 0: the model's own limit"),
    STRING("encoder", text_prefix, "", "put before each text (models such as E5 and BGE need it), in place of the model's default prompt; in the file, double quotes keep blanks at its ends"),
    STRING("encoder", label_prefix, "", "put before each label's text, in place of that prompt; quotes as for text_prefix"),
    INT("encoder", threads, "0", 0, 1024, "threads for computing on the CPU; with a GPU, for what the CPU computes beside it; 0: as many as this process may use"),
    ENUM("encoder", compute, "auto", compute_names, "number format for encoding; auto: bf16 on a GPU, and on a CPU with AMX or AVX512-BF16 where it is faster; else f32"),

    ENUM("compute", device, "auto", device_names, "what encodes and searches; cuda: NVIDIA GPUs, by the plug-in libengram_cuda.so, which lies beside the binary or in ../lib/engram of its folder; auto: cuda where the plug-in is there and can be used, else the CPU"),
    STRING("compute", devices, "", "which GPUs, by their numbers, as in 0,1; empty: the first one"),

    STRING("memory", memory, "engram-memory", "folder of the memory"),
    SIZE("memory", map_size, "1TiB", MIB, 64 * TIB, "size that the memory may grow to, in bytes (address space, not disk); KiB MiB GiB TiB or K M G T may follow"),
    ENUM("memory", key_dtype, "bf16", dtype_names, "type of the vectors in a new memory"),
    BOOL("memory", store_text, "true", "keep the texts of instances and labels, for evidence"),
    INT("memory", keys_max, "0", 0, 1099511627776.0, "most instances and labels in the memory; 0: no limit"),

    ENUM(LIVE("predict"), pool, "joint", pool_names, "joint: the b best keys, one softmax; apart: the b / 2 best instances and the b / 2 best labels, a softmax for each"),
    DOUBLE(LIVE("predict"), lambda, "0.5", 0, 1, "share of instances against label texts; 0: only label texts, 1: only instances"),
    DOUBLE(LIVE("predict"), tau, "0.1", 0.0001, 1000, "temperature of the softmax over similarities"),
    INT(LIVE("predict"), b, "200", 1, 10000, "how many keys are retrieved for a text"),
    DOUBLE(LIVE("predict"), lexical, "0", 0, 100, "weight of the words in common, added to the similarity when keys are ranked; 0: off"),
    ENUM(LIVE("predict"), lexical_form, "cosine", form_names, "with lexical: score the words in common by TF-IDF cosine or by BM25 (scaled so that a text scores 1 with itself)"),
    INT(LIVE("predict"), lexical_candidates, "1000", 1, 100000, "with lexical: how many instances and how many labels, those of largest similarity, are ranked"),
    DOUBLE(LIVE("predict"), label_power, "0", 0, 10, "a label's text is weighted by (1 + its instances)^-label_power; 0: all alike"),
    INT(LIVE("predict"), labels_max, "10", 0, 1000000, "most labels in a prediction; 0: no limit"),
    DOUBLE(LIVE("predict"), min_score, "0", 0, 1, "labels with a lower score are left out"),
    INT(LIVE("predict"), evidence_max, "5", 0, 10000, "most pieces of evidence in a prediction"),
    BOOL(LIVE("predict"), evidence_text, "false", "evidence includes its texts"),

    STRING("console", listen, "127.0.0.1", "address for /metrics, /ready, /ping and /version; 0.0.0.0: all addresses of this machine"),
    INT("console", port, "8080", 0, 65535, "port of the console; 0: no console"),

    ENUM(LIVE("log"), log_level, "info", level_names, "lowest level that is logged, to standard error"),
    ENUM("log", log_format, "text", format_names, "format of the log"),
};
/* clang-format on */

const char *const config_sections[] = {"kafka",   "kafka.consumer", "kafka.producer", "topics",  "stage", "encoder",
                                       "compute", "memory",         "predict",        "console", "log",   NULL};

const struct option *option_named(const char *name)
{
    for (size_t i = 0; i < OPTIONS; i++) {
        if (strcmp(config_options[i].name, name) == 0) {
            return &config_options[i];
        }
    }
    return NULL;
}

static void *member(const struct config *config, const struct option *o)
{
    return (char *)(uintptr_t)config + o->offset;
}

bool option_reads_as_bool(const char *text, bool *value)
{
    static const char *const yes[] = {"true", "yes", "on", "1"};
    static const char *const no[] = {"false", "no", "off", "0"};
    for (size_t i = 0; i < 4; i++) {
        if (strcasecmp(text, yes[i]) == 0 || strcasecmp(text, no[i]) == 0) {
            *value = strcasecmp(text, yes[i]) == 0;
            return true;
        }
    }
    return false;
}

/* A whole decimal number and nothing else; *end is what follows it. */
static bool int_parse(const char *text, int64_t *value, const char **end)
{
    char *stop;
    const char *digits = text + (*text == '-' || *text == '+');
    if (!isdigit((unsigned char)*digits)) {
        return false;
    }
    errno = 0;
    *value = strtoll(text, &stop, 10);
    *end = stop;
    return errno == 0;
}

static bool size_parse(const char *text, int64_t *value)
{
    static const char *const suffixes[][2] = {{"KiB", "K"}, {"MiB", "M"}, {"GiB", "G"}, {"TiB", "T"}};
    const char *end;
    if (!int_parse(text, value, &end) || *value < 0) {
        return false;
    }
    while (*end == ' ') {
        end++;
    }
    if (*end == '\0' || strcasecmp(end, "B") == 0) {
        return true;
    }
    for (unsigned i = 0; i < 4; i++) {
        if (strcasecmp(end, suffixes[i][0]) == 0 || strcasecmp(end, suffixes[i][1]) == 0) {
            unsigned shift = 10 * (i + 1);
            *value = *value <= INT64_MAX >> shift ? *value << shift : INT64_MAX;
            return true;
        }
    }
    return false;
}

/* Decimal digits, a dot, an exponent: no hexadecimal, no "nan", and no comma under any locale. */
static bool double_parse(const char *text, double *value)
{
    if (*text == '\0' || text[strspn(text, "0123456789.eE+-")] != '\0') {
        return false;
    }
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    locale_t before = uselocale(c);
    char *end;
    *value = strtod(text, &end);
    uselocale(before);
    freelocale(c);
    return *end == '\0' && isfinite(*value);
}

static int out_of_form(const struct option *o, const char *text, struct error *e)
{
    struct buffer range = {0};
    option_range(o, &range);
    error_set(e, ERROR_FATAL, E_USAGE, "%s is '%s', but it takes %s", o->name, text, range.data);
    buffer_free(&range);
    return -1;
}

static int enum_set(int *to, const struct option *o, const char *text, struct error *e)
{
    for (int i = 0; o->names[i]; i++) {
        if (strcmp(o->names[i], text) == 0) {
            *to = i;
            return 0;
        }
    }
    return out_of_form(o, text, e);
}

int option_set(struct config *config, const struct option *o, const char *text, struct error *e)
{
    void *to = member(config, o);
    const char *end = "";
    int64_t number = 0;
    double real = 0;
    bool read;
    switch (o->type) {
    case OPTION_STRING:
        if (!utf8_valid(text, strlen(text))) {
            return error_set(e, ERROR_FATAL, E_USAGE, "%s is not valid UTF-8", o->name);
        }
        free(*(char **)to);
        *(char **)to = mem_string(text, strlen(text));
        return 0;
    case OPTION_BOOL:
        return option_reads_as_bool(text, to) ? 0 : out_of_form(o, text, e);
    case OPTION_ENUM:
        return enum_set(to, o, text, e);
    case OPTION_INT:
    case OPTION_SIZE:
        read = o->type == OPTION_SIZE ? size_parse(text, &number) : int_parse(text, &number, &end) && !*end;
        if (!read || (double)number < o->min || (double)number > o->max) {
            return out_of_form(o, text, e);
        }
        *(int64_t *)to = number;
        return 0;
    case OPTION_DOUBLE:
        if (!double_parse(text, &real) || real < o->min || real > o->max) {
            return out_of_form(o, text, e);
        }
        *(double *)to = real;
        return 0;
    }
    return error_set(e, ERROR_FATAL, E_INTERNAL, "%s has no type", o->name);
}

void option_default(struct config *config, const struct option *o)
{
    struct error e;
    if (option_set(config, o, o->value, &e)) {
        log_error("the default of an option is not valid: %s", e.text);
        abort();
    }
}

/* 1099511627776 as "1TiB": the largest unit that divides it. */
static void size_format(int64_t bytes, struct buffer *out)
{
    static const char *const units[] = {"", "KiB", "MiB", "GiB", "TiB"};
    size_t unit = 0;
    while (unit < 4 && bytes >= 1024 && bytes % 1024 == 0) {
        bytes /= 1024;
        unit++;
    }
    buffer_format(out, "%" PRId64 "%s", bytes, units[unit]);
}

/* %.15g reads back as what a user typed; a comma of the locale becomes a dot. */
static void double_format(double value, struct buffer *out)
{
    size_t start = out->bytes;
    buffer_format(out, "%.15g", value);
    char *comma = memchr(out->data + start, ',', out->bytes - start);
    if (comma) {
        *comma = '.';
    }
}

void option_range(const struct option *o, struct buffer *out)
{
    switch (o->type) {
    case OPTION_STRING:
        buffer_string(out, "text");
        break;
    case OPTION_BOOL:
        buffer_string(out, "true | false");
        break;
    case OPTION_INT:
        buffer_format(out, "%.0f .. %.0f", o->min, o->max);
        break;
    case OPTION_SIZE:
        size_format((int64_t)o->min, out);
        buffer_string(out, " .. ");
        size_format((int64_t)o->max, out);
        break;
    case OPTION_DOUBLE:
        double_format(o->min, out);
        buffer_string(out, " .. ");
        double_format(o->max, out);
        break;
    case OPTION_ENUM:
        for (size_t i = 0; o->names[i]; i++) {
            buffer_format(out, "%s%s", i ? " | " : "", o->names[i]);
        }
        break;
    }
}

void option_flag(const struct option *o, struct buffer *out)
{
    buffer_string(out, "--");
    for (const char *c = o->name; *c; c++) {
        buffer_byte(out, *c == '_' ? '-' : *c);
    }
}

void option_environment(const struct option *o, struct buffer *out)
{
    buffer_string(out, "ENGRAM_");
    for (const char *c = o->name; *c; c++) {
        buffer_byte(out, (char)toupper((unsigned char)*c));
    }
}

void option_value(const struct config *config, const struct option *o, struct buffer *out)
{
    const void *from = member(config, o);
    switch (o->type) {
    case OPTION_STRING:
        buffer_string(out, *(char *const *)from);
        break;
    case OPTION_BOOL:
        buffer_string(out, *(const bool *)from ? "true" : "false");
        break;
    case OPTION_INT:
        buffer_format(out, "%" PRId64, *(const int64_t *)from);
        break;
    case OPTION_SIZE:
        size_format(*(const int64_t *)from, out);
        break;
    case OPTION_DOUBLE:
        double_format(*(const double *)from, out);
        break;
    case OPTION_ENUM:
        buffer_string(out, o->names[*(const int *)from]);
        break;
    }
}
