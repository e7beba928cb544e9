/* engram memory stats | get ID | verify | export | backup DIR | compact: works on a memory without an encoder, and but
 * for compact beside a running stage. What copies a memory is in memory_copy.c. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "cli/internal.h"

static const struct config_command command = {
    .name = "memory",
    .usage =
        "stats [--json] | get ID [--wait SECONDS] | verify | export [--labels FILE] [--instances FILE] | backup DIR "
        "| compact",
    .help = "Looks at a memory, checks it or copies it. All but compact work while a stage is running.\n"
            "stats: prints what is in it.\n"
            "get: prints one instance as JSON; status 1 if there is none. --wait waits until it is live.\n"
            "verify: checks every page, checksum, block and count, and computes the digest again.\n"
            "export: writes label definitions and instances, sorted by name, to files from which load and replay make "
            "a memory with the same digest.\n"
            "backup: writes a compacted copy to a new folder DIR. A new replica can start from it.\n"
            "compact: shrinks the file of a stopped stage and removes the last bytes of what was forgotten. It needs "
            "room for a copy.",
    .example = "engram memory stats --memory my-memory\nengram memory get libvisio-0.1-1 --memory my-memory\n"
               "engram memory export --labels labels.jsonl.gz --instances instances.jsonl.gz --memory my-memory\n"
               "engram memory backup backups/monday --memory my-memory",
    .flags =
        (const struct config_flag[]){
            {"json", NULL, "stats: print one JSON object", false},
            {"wait", "SECONDS", "get: how long to wait for the instance, 0 to 3600", false},
            {"labels", "FILE", "export: the file for label definitions; .gz compresses, - is standard output", false},
            {"instances", "FILE", "export: the file for instances", false},
            {0}},
    .positional_min = 1,
    .positional_max = 2,
};

/* ---- stats ---- */

static void stats_json(const struct memory_stats *s, const char *digest, struct buffer *out)
{
    struct json_writer w = {.out = out};
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {{"instances", s->instances}, {"labels", s->labels}, {"label_keys", s->label_keys}, {"dim", s->dim}};
    json_object_begin(&w);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        json_name(&w, numbers[i].name);
        json_write_uint(&w, numbers[i].value);
    }
    json_name(&w, "dtype");
    json_write_string(&w, slice_of(s->dtype == DTYPE_F32 ? "f32" : "bf16"));
    json_name(&w, "version");
    json_write_uint(&w, s->version);
    json_name(&w, "digest");
    json_write_string(&w, slice_of(digest));
    json_name(&w, "bytes");
    json_write_uint(&w, s->bytes);
    json_name(&w, "fingerprint");
    json_write_string(&w, slice_of(s->fingerprint));
    json_name(&w, "local_changes");
    json_write_uint(&w, s->local_changes);
    json_name(&w, "caught_up_ms");
    if (s->caught_up_ms) {
        json_write_int(&w, s->caught_up_ms);
    } else {
        json_write_null(&w);
    }
    json_name(&w, "offsets");
    json_array_begin(&w);
    for (size_t i = 0; i < s->offsets_count; i++) {
        json_object_begin(&w);
        json_name(&w, "cluster");
        json_write_string(&w, slice_of(s->offsets[i].cluster));
        json_name(&w, "topic");
        json_write_string(&w, slice_of(s->offsets[i].topic));
        json_name(&w, "partition");
        json_write_int(&w, s->offsets[i].partition);
        json_name(&w, "next");
        json_write_int(&w, s->offsets[i].position.next);
        json_object_end(&w);
    }
    json_array_end(&w);
    json_object_end(&w);
    buffer_byte(out, '\n');
}

static void stats_table(const struct memory_stats *s, const char *digest, struct buffer *out)
{
    buffer_format(out, "instances      %" PRIu64 "\n", s->instances);
    buffer_format(out, "labels         %" PRIu64 " (%" PRIu64 " with a key)\n", s->labels, s->label_keys);
    buffer_format(out, "vectors        %zu dimensions, %s\n", s->dim, s->dtype == DTYPE_F32 ? "f32" : "bf16");
    buffer_format(out, "size           %.1f MiB in use\n", (double)s->bytes / (1 << 20));
    buffer_format(out, "version        %" PRIu64 "\n", s->version);
    buffer_format(out, "digest         %s\n", digest);
    buffer_format(out, "encoder        %s\n", s->fingerprint);
    buffer_format(out, "local changes  %" PRIu64 "%s\n", s->local_changes,
                  s->local_changes ? " (by hand: it may differ from other replicas)" : "");
    for (size_t i = 0; i < s->offsets_count; i++) {
        buffer_format(out, "next offset    %" PRId64 " of %s [%" PRId32 "], cluster %s\n", s->offsets[i].position.next,
                      s->offsets[i].topic, s->offsets[i].partition, s->offsets[i].cluster);
    }
}

static int memory_stats_show(struct memory *m, bool json, struct buffer *out, struct error *e)
{
    struct snapshot *snapshot = NULL;
    struct memory_stats stats;
    char digest[33];
    if (memory_look(m, &snapshot, e)) {
        return -1;
    }
    int result = snapshot_stats(snapshot, &stats, e);
    if (result == 0) {
        digest_hex(stats.digest, digest);
        (json ? stats_json : stats_table)(&stats, digest, out);
        memory_stats_free(&stats);
    }
    snapshot_release(snapshot);
    return result;
}

/* ---- get ---- */

static int instance_json(const struct snapshot *snapshot, const struct memory_instance *i, struct buffer *out,
                         struct error *e)
{
    struct json_writer w = {.out = out};
    json_object_begin(&w);
    json_name(&w, "id");
    json_write_string(&w, i->id);
    if (memory_labels_json(&w, snapshot, i, e)) {
        return -1;
    }
    json_name(&w, "text");
    if (i->text.data) {
        json_write_string(&w, i->text);
    } else {
        json_write_null(&w);
    }
    json_name(&w, "slot");
    json_write_uint(&w, i->slot);
    json_name(&w, "time_ms");
    json_write_int(&w, i->time_ms);
    json_name(&w, "source");
    if (i->topic.bytes) {
        json_object_begin(&w);
        json_name(&w, "topic");
        json_write_string(&w, i->topic);
        json_name(&w, "partition");
        json_write_int(&w, i->partition);
        json_name(&w, "offset");
        json_write_int(&w, i->offset);
        json_object_end(&w);
    } else {
        json_write_null(&w);
    }
    json_object_end(&w);
    buffer_byte(out, '\n');
    return 0;
}

/* One look: 1 found and written to *out, 0 not there, -1 an error. */
static int instance_look(struct memory *m, const char *id, struct buffer *out, struct error *e)
{
    struct snapshot *snapshot = NULL;
    struct memory_instance instance;
    if (memory_look(m, &snapshot, e)) {
        return -1;
    }
    int found = snapshot_instance(snapshot, slice_of(id), &instance, e);
    if (found == 1 && instance_json(snapshot, &instance, out, e)) {
        found = -1;
    }
    snapshot_release(snapshot);
    return found;
}

static int memory_get(struct memory *m, const char *id, unsigned long wait_s, const char *folder, struct buffer *out,
                      struct error *e)
{
    uint64_t until = clock_us() + wait_s * 1000000;
    int found = 0;
    while ((found = instance_look(m, id, out, e)) == 0 && clock_us() < until) {
        clock_sleep_ms(1);
    }
    if (found == 0) {
        return error_set(e, ERROR_FATAL, E_NOT_FOUND, "the memory %s has no instance \"%s\"", folder, id);
    }
    return found < 0 ? -1 : 0;
}

/* ---- verify ---- */

static void report_line(const char *line, void *context)
{
    buffer_string(context, line);
    buffer_byte(context, '\n');
}

static int memory_verify_show(const struct config *config, struct buffer *out, uint64_t *problems, struct error *e)
{
    const struct memory_options options = cli_memory_options(config);
    if (memory_verify_apart(&options, report_line, out, problems, e)) {
        cli_output(command.name, out); /* what was found before it failed */
        return -1;
    }
    if (*problems) {
        buffer_format(out, "%s: %" PRIu64 " problem%s\n", config->memory, *problems, *problems == 1 ? "" : "s");
    } else {
        buffer_format(out, "%s: no damage found\n", config->memory);
    }
    return 0;
}

/* ---- the command ---- */

static int memory_look_at(const struct config *config, const struct arguments *arguments, unsigned long wait_s)
{
    const char *what = arguments_positional(arguments, 0);
    struct memory *memory = NULL;
    struct buffer out = {0};
    struct error e = {0};
    uint64_t problems = 0;
    int status = STATUS_FAILED;
    int result = 0;
    if (strcmp(what, "verify") == 0) {
        result = memory_verify_show(config, &out, &problems, &e);
    } else if (cli_memory_open(&memory, config, MEMORY_READ, &e)) {
        result = -1;
    } else if (strcmp(what, "stats") == 0) {
        result = memory_stats_show(memory, arguments_has(arguments, "json"), &out, &e);
    } else {
        result = memory_get(memory, arguments_positional(arguments, 1), wait_s, config->memory, &out, &e);
    }
    if (result) {
        status = cli_fail(command.name, &e);
    } else if (cli_output(command.name, &out) && problems == 0) {
        status = STATUS_OK;
    }
    buffer_free(&out);
    memory_close(memory);
    return status;
}

/* --wait in whole seconds; false where it is no such number. */
static bool wait_read(const struct arguments *arguments, unsigned long *wait_s)
{
    const char *text = arguments_value(arguments, "wait");
    char *end = NULL;
    *wait_s = text ? strtoul(text, &end, 10) : 0;
    return !text || (*text >= '0' && *text <= '9' && *end == '\0' && *wait_s <= 3600);
}

enum action_kind { STATS, GET, VERIFY, EXPORT, BACKUP, COMPACT, ACTIONS };

static const struct {
    const char *name;
    const char *takes; /* the argument that it needs after its name */
} actions[ACTIONS] = {[STATS] = {"stats", NULL},   [GET] = {"get", "ID"},        [VERIFY] = {"verify", NULL},
                      [EXPORT] = {"export", NULL}, [BACKUP] = {"backup", "DIR"}, [COMPACT] = {"compact", NULL}};

/* Which one is meant; ACTIONS: a usage error was named. */
static enum action_kind action_read(const struct arguments *arguments)
{
    const char *name = arguments_positional(arguments, 0);
    bool exports = arguments_has(arguments, "labels") || arguments_has(arguments, "instances");
    enum action_kind kind = STATS;
    while (kind < ACTIONS && strcmp(name, actions[kind].name) != 0) {
        kind++;
    }
    if (kind == ACTIONS) {
        cli_usage(command.name, "there is no 'memory %s': it is stats, get, verify, export, backup or compact", name);
    } else if (arguments_positional_count(arguments) != (actions[kind].takes ? 2 : 1)) {
        cli_usage(command.name, actions[kind].takes ? "%s needs one %s" : "%s takes no more arguments", name,
                  actions[kind].takes);
        kind = ACTIONS;
    } else if (exports != (kind == EXPORT)) {
        cli_usage(command.name,
                  exports ? "%s takes no --labels and --instances: they are for export"
                          : "nothing to %s: give --labels FILE, --instances FILE or both",
                  name);
        kind = ACTIONS;
    }
    return kind;
}

static int memory_run(const struct config *config, const struct arguments *arguments)
{
    const char *labels = arguments_value(arguments, "labels"), *instances = arguments_value(arguments, "instances");
    enum action_kind kind = action_read(arguments);
    unsigned long wait_s;
    if (kind == ACTIONS) {
        return STATUS_USAGE;
    }
    if (!wait_read(arguments, &wait_s)) {
        return cli_usage(command.name, "--wait %s: it takes whole seconds, 0 to 3600",
                         arguments_value(arguments, "wait"));
    }
    if (labels && instances && strcmp(labels, instances) == 0) {
        return cli_usage(command.name, "--labels and --instances cannot both be %s", labels);
    }
    switch (kind) {
    case EXPORT:
        return memory_export(config, labels, instances);
    case BACKUP:
        return memory_backup_to(config, arguments_positional(arguments, 1));
    case COMPACT:
        return memory_compact_in_place(config);
    default:
        return memory_look_at(config, arguments, wait_s);
    }
}

int command_memory(int argc, char **argv)
{
    struct config config = {0};
    struct arguments *arguments = NULL;
    int status;
    if (cli_read(&command, argc, argv, &config, &arguments, &status)) {
        status = memory_run(&config, arguments);
    }
    arguments_free(arguments);
    config_free(&config);
    return status;
}
