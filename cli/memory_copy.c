/* engram memory export | backup | compact. export writes from one snapshot, line by line, however large the memory is,
 * each file whole or not at all (out.c). */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "cli/internal.h"
#include "record/record.h"

static const char command_name[] = "memory";

/* ---- export ---- */

struct export
{
    const struct snapshot *snapshot;
    struct out_file labels, instances; /* path NULL: not wanted */
    struct progress progress;
    uint64_t labels_count, instances_count, total;
    struct buffer line;
    struct error *e;
    bool failed;
};

int memory_labels_json(struct json_writer *w, const struct snapshot *snapshot, const struct memory_instance *i,
                       struct error *e)
{
    struct slice *names = mem_alloc(i->labels_count * sizeof *names);
    int result = snapshot_label_names(snapshot, i, names, e);
    json_name(w, "labels");
    json_array_begin(w);
    for (size_t l = 0; result == 0 && l < i->labels_count; l++) {
        json_write_string(w, names[l]);
    }
    json_array_end(w);
    free(names);
    return result;
}

static int text_missing(struct error *e, const char *what, struct slice name)
{
    return error_set(e, ERROR_FATAL, E_NOT_FOUND,
                     "%s \"%.*s\" was folded with store_text = false: the memory has no text to export (`engram memory "
                     "backup` copies it as it is)",
                     what, (int)name.bytes, name.data);
}

static int line_write(struct export *x, struct out_file *f, const char *what, struct slice name)
{
    if (x->line.bytes > RECORD_BYTES_MAX) { /* control characters take six bytes each in JSON */
        return error_set(x->e, ERROR_FATAL, E_LIMIT, "%s \"%.*s\" is over 1 MiB as JSON, which no command reads", what,
                         (int)name.bytes, name.data);
    }
    buffer_byte(&x->line, '\n');
    if (out_write(f, &x->line, x->e)) {
        return -1;
    }
    uint64_t done = x->labels_count + x->instances_count;
    progress_update(&x->progress, done, x->total ? (double)done / (double)x->total : -1);
    return 0;
}

static int label_export(const struct memory_label *l, void *context)
{
    struct export *x = context;
    struct json_writer w = {.out = &x->line};
    if (!l->defined) {
        return 0; /* the instances that name it bring it back */
    }
    x->failed = true;
    if (!l->text.data) {
        return text_missing(x->e, "the label", l->name);
    }
    buffer_clear(&x->line);
    json_object_begin(&w);
    json_name(&w, "label");
    json_write_string(&w, l->name);
    json_name(&w, "text");
    json_write_string(&w, l->text);
    json_object_end(&w);
    x->labels_count++;
    x->failed = line_write(x, &x->labels, "the label", l->name) != 0;
    return x->failed;
}

static int instance_export(const struct memory_instance *i, void *context)
{
    struct export *x = context;
    struct json_writer w = {.out = &x->line};
    x->failed = true;
    if (!i->text.data) {
        return text_missing(x->e, "the instance", i->id);
    }
    buffer_clear(&x->line);
    json_object_begin(&w);
    json_name(&w, "id");
    json_write_string(&w, i->id);
    json_name(&w, "text");
    json_write_string(&w, i->text);
    if (memory_labels_json(&w, x->snapshot, i, x->e)) {
        return -1;
    }
    json_object_end(&w);
    x->instances_count++;
    x->failed = line_write(x, &x->instances, "the instance", i->id) != 0;
    return x->failed;
}

static int export_write(struct export *x)
{
    if (x->labels.path && (snapshot_each_label(x->snapshot, label_export, x, x->e) || x->failed)) {
        return -1;
    }
    if (x->instances.path && (snapshot_each_instance(x->snapshot, instance_export, x, x->e) || x->failed)) {
        return -1;
    }
    if ((x->labels.path && out_finish(&x->labels, x->e)) || (x->instances.path && out_finish(&x->instances, x->e))) {
        return -1;
    }
    return (x->labels.path && out_publish(&x->labels, x->e)) || (x->instances.path && out_publish(&x->instances, x->e))
               ? -1
               : 0;
}

int memory_export(const struct config *config, const char *labels, const char *instances)
{
    struct error e = {0};
    struct export x = {.e = &e, .labels.fd = -1, .instances.fd = -1};
    struct memory *memory = NULL;
    struct snapshot *snapshot = NULL;
    struct memory_stats stats = {0};
    char digest[33];
    int status = STATUS_FAILED;
    if (cli_memory_open(&memory, config, MEMORY_READ, &e) || memory_look(memory, &snapshot, &e) ||
        snapshot_stats(snapshot, &stats, &e) || (labels && out_open(&x.labels, labels, &e)) ||
        (instances && out_open(&x.instances, instances, &e))) {
        goto done;
    }
    x.snapshot = snapshot;
    x.total = (labels ? stats.label_keys : 0) + (instances ? stats.instances : 0);
    progress_start(&x.progress, "exporting", "records");
    if (export_write(&x)) {
        progress_clear(&x.progress);
        goto done;
    }
    progress_end(&x.progress, x.labels_count + x.instances_count);
    digest_hex(stats.digest, digest);
    /* standard output may be the file */
    cli_note("exported %" PRIu64 " label definitions and %" PRIu64 " instances of %s, digest %s", x.labels_count,
             x.instances_count, config->memory, digest);
    status = STATUS_OK;
done:
    if (status) {
        cli_fail(command_name, &e);
    }
    buffer_free(&x.line);
    out_close(&x.instances);
    out_close(&x.labels);
    memory_stats_free(&stats);
    snapshot_release(snapshot);
    memory_close(memory);
    return status;
}

/* ---- backup, compact ---- */

int memory_backup_to(const struct config *config, const char *folder)
{
    struct memory *memory = NULL;
    struct memory_stats copied = {0};
    struct buffer out = {0};
    struct error e = {0};
    char digest[33];
    int status;
    if (cli_memory_open(&memory, config, MEMORY_READ, &e) || memory_backup(memory, folder, &copied, &e)) {
        status = cli_fail(command_name, &e);
    } else {
        digest_hex(copied.digest, digest);
        buffer_format(&out, "backed up %" PRIu64 " instances and %" PRIu64 " labels to %s, digest %s\n",
                      copied.instances, copied.labels, folder, digest);
        status = cli_output(command_name, &out) ? STATUS_OK : STATUS_FAILED;
    }
    buffer_free(&out);
    memory_stats_free(&copied);
    memory_close(memory);
    return status;
}

int memory_compact_in_place(const struct config *config)
{
    const struct memory_options options = cli_memory_options(config);
    uint64_t before, after;
    struct buffer out = {0};
    struct error e = {0};
    int status;
    if (memory_compact(&options, &before, &after, &e)) {
        status = cli_fail(command_name, &e);
    } else {
        buffer_format(&out, "compacted %s from %.1f to %.1f MiB\n", config->memory, (double)before / (1 << 20),
                      (double)after / (1 << 20));
        status = cli_output(command_name, &out) ? STATUS_OK : STATUS_FAILED;
    }
    buffer_free(&out);
    return status;
}
