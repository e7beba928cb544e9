/* What the commands share: exit statuses, the error line, the progress bar, and opening what a command works with.
 * One file a command; each gives command_NAME(argc, argv) with argv after the command's name (argv[0] is the first
 * argument), and one line in the table of engram.c. Results go to standard output, everything else to standard error.
 */
#ifndef ENGRAM_CLI_INTERNAL_H
#define ENGRAM_CLI_INTERNAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"
#include "base/json.h"
#include "base/lines.h"
#include "config/config.h"
#include "engine/engine.h"
#include "gpu/backend.h"
#include "gpu/encoder/encoder.h"
#include "store/memory.h"

enum { STATUS_OK = 0, STATUS_FAILED = 1, STATUS_USAGE = 2 };

int command_run(int argc, char **argv);
int command_tag(int argc, char **argv);
int command_load(int argc, char **argv);
int command_eval(int argc, char **argv);
int command_tune(int argc, char **argv);
int command_encode(int argc, char **argv);
int command_replay(int argc, char **argv);
int command_teach(int argc, char **argv);
int command_define(int argc, char **argv);
int command_forget(int argc, char **argv);
int command_memory(int argc, char **argv);
int command_config(int argc, char **argv);

/* How every command begins. False: the command ends now with *status (help was printed, or a usage error was named).
 * The caller frees config and arguments in both cases; zero-initialise them:
 *     if (!cli_read(&command, argc, argv, &config, &arguments, &status)) goto done; */
bool cli_read(const struct config_command *command, int argc, char **argv, struct config *config,
              struct arguments **arguments, int *status);

/* "engram NAME: text" on standard error; returns the exit status: 2 for E_USAGE, else 1. */
int cli_fail(const char *name, const struct error *e);
int cli_status(const struct error *e); /* that exit status alone */
/* The same line for what is no error of a call, e.g. a bad line of a file. Control characters come out as '?'. */
void cli_complain(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* One line on standard error that is no complaint. */
void cli_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* A usage error that the command finds itself: the line, then where the help is. Returns 2. */
int cli_usage(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* From now on a fault in the map of a memory (memory_faults_catch), and memory that runs out (mem_failure_to), ends the
 * command with one line and status 1. */
void cli_faults_catch(const char *name);

/* Writes to standard output and empties the buffer. A terminal gets what could steer it escaped (terminal.h). False: it
 * cannot be written (the reason was printed): end with 1. */
bool cli_output(const char *name, struct buffer *out);

/* What a command works with, opened in this order and closed in the reverse one. Zero-initialise. */
struct cli_engine {
    struct backend *backend;
    struct encoder *encoder;
    struct memory *memory; /* NULL with CLI_ENCODER */
    struct engine *engine;
};

enum cli_open_mode {
    CLI_ENCODER,      /* no memory */
    CLI_MEMORY_READ,  /* an existing one, beside a running stage */
    CLI_MEMORY_WRITE, /* as its only writer; made if absent */
};

int cli_open(struct cli_engine *c, const struct config *config, enum cli_open_mode mode, struct error *e);
void cli_close(struct cli_engine *c);
struct predict_options cli_predict_options(const struct config *config);

/* The memory alone, without an encoder to check it against: for `memory` and forget --local. */
struct memory_options cli_memory_options(const struct config *config);
int cli_memory_open(struct memory **out, const struct config *config, enum memory_mode mode, struct error *e);

/* The model's folder: the option, else the one beside the binary, else the installed one; else E_MODEL says what to do.
 * Owned by the caller. */
int cli_model(const struct config *config, char **folder, struct error *e);

/* "engram 0.1.0 (librdkafka 2.0.2, LMDB 0.9.24, oneDNN 2.6.3, model all-MiniLM-L6-v2)"; in oneDNN's place what the
 * backend says: "CUDA 13.0, cuBLAS 13.10.0, NCCL 2.32.3". */
void cli_versions(const struct backend *backend, const char *model, struct buffer *out); /* backend NULL: none */

/* device.c: the backend that the options name. *why, where `auto` has a plug-in and takes the CPU: what is wrong with
 * it; else of kind ERROR_NONE. Errors: E_NOT_FOUND (device = cuda, and it or its plug-in is not there), E_USAGE (a
 * number that no device has), as backend_plugin_open and backend_cpu_open. */
int cli_backend_open(struct backend **out, const struct config *config, struct error *why, struct error *e);
void cli_device(const struct backend *b, struct buffer *out); /* "cpu", "cuda (2 x NVIDIA H100, driver 13.0)" */
/* The file of that name beside this program, else PREFIX/`installed` where the program is PREFIX/bin/engram; NULL:
 * neither is there. The caller frees it. */
char *cli_beside(const char *name, const char *installed);

/* memory_copy.c: the parts of `engram memory` that copy one; each returns the exit status. export takes the paths of
 * its flags, NULL for a part that is not wanted. */
int memory_export(const struct config *config, const char *labels, const char *instances);
int memory_backup_to(const struct config *config, const char *folder);
int memory_compact_in_place(const struct config *config);
/* Writes the member "labels" of an instance: its labels' names, sorted by bytes. After -1 what was written is cut off.
 */
int memory_labels_json(struct json_writer *w, const struct snapshot *snapshot, const struct memory_instance *i,
                       struct error *e);

/* A progress bar on standard error: redrawn on a terminal; elsewhere a line every few seconds, and nothing for what is
 * over sooner. One thread. */
struct progress {
    const char *what; /* "folding instances" */
    const char *unit; /* "instances": the rate is in unit/s */
    uint64_t started_us, shown_us;
    uint64_t items;
    bool terminal, shown;
};

void progress_start(struct progress *p, const char *what, const char *unit);
/* items done so far; fraction of the whole, 0 to 1, below 0 when unknown. Cheap: call it as often as you like. */
void progress_update(struct progress *p, uint64_t items, double fraction);
/* The last state stays on the terminal. Before other lines go to standard error, progress_clear takes the bar away. */
void progress_end(struct progress *p, uint64_t items);
void progress_clear(struct progress *p);

/* A file of results being written, whole or not at all; compressed where the name ends in .gz. Zero-initialise with fd
 * -1. Errors: E_IO, E_DISK_FULL. */
struct out_file {
    const char *path;    /* borrowed, also for messages; "-": standard output */
    char *partial;       /* the file until it is whole; NULL: written in place (standard output, a device, a pipe) */
    struct gzFile_s *gz; /* plain files go through it too, uncompressed */
    int fd;
    bool terminal;
};

int out_open(struct out_file *f, const char *path, struct error *e);
int out_write(struct out_file *f, struct buffer *line, struct error *e); /* a terminal gets it escaped */
int out_finish(struct out_file *f, struct error *e);  /* everything on the disk, under the temporary name still */
int out_publish(struct out_file *f, struct error *e); /* after out_finish: under its own name */
void out_close(struct out_file *f);                   /* always; what was not published is gone */

/* settings.c: settings of the prediction with what they reach, in percent. */
enum { P1, P5, NDCG5, PSP5, MEASURES, MEASURE_CUTOFFS = 2 };
extern const size_t measure_cutoffs[MEASURE_CUTOFFS]; /* what an evaluation must be asked for, for measures_read */
struct json_writer;
void measures_read(const struct evaluation *v, size_t setting, double of[MEASURES]);
struct setting cli_setting(const struct config *config); /* in force */
const char *pool_name(const struct setting *s);
const char *form_name(const struct setting *s);
void setting_head(struct buffer *out);
void setting_row(struct buffer *out, const char *name, const struct setting *s, const double of[MEASURES]);
void setting_json(struct json_writer *w, const struct setting *s, const double of[MEASURES]);
/* Values to choose from; borrowed. */
struct grid {
    bool joint, apart;
    const double *lambdas, *taus, *lexicals, *powers;
    const enum lexical_form *forms; /* of every lexical above 0 */
    const size_t *bs;
    size_t lambdas_count, taus_count, lexicals_count, forms_count, powers_count, bs_count;
};

/* Every combination, by lexical, form, power, pool, b, tau, lambda, the last the fastest; the caller frees it. */
struct setting *grid_settings(const struct grid *g, size_t *count);

/* The settings of `eval --sweep`, in all else as in force, and their results. */
struct setting *sweep_settings(const struct config *config, size_t *count);
void sweep_table(const struct evaluation *v, const struct setting *settings, size_t count, struct buffer *out);
void sweep_json(const struct evaluation *v, const struct setting *settings, size_t count, struct buffer *out);

/* eval_output.c: what `engram eval` shows; at[count]: the cutoffs. */
struct eval_cutoffs {
    size_t at[METRICS_CUTOFFS_MAX];
    size_t count;
};

/* "1,3,5": false, and *why one line without the flag's name, where it is no list of 1 to 8 different numbers from 1 to
 * 1000. */
bool eval_cutoffs_read(struct eval_cutoffs *c, const char *list, struct buffer *why);
void eval_json(const struct metrics *m, const struct eval_cutoffs *c, bool deciles, struct buffer *out);
void eval_table(const struct metrics *m, const struct eval_cutoffs *c, struct buffer *out);
void eval_decile_tables(const struct metrics *m, const struct eval_cutoffs *c, struct buffer *out);
/* A line of JSON for each label into f, which is open; finished, not yet published. */
int eval_labels_write(const struct evaluation *v, const struct eval_cutoffs *c, struct out_file *f, struct error *e);

/* eval_show.c: texts with their right, wrong and missed labels and the evidence, to read. */
enum { EVAL_SHOW_MAX = 1000 };

struct eval_show {
    size_t wanted, shown; /* texts; wanted 0: none */
    struct buffer out;    /* the caller prints and frees it */
    struct engine *engine;
    struct memory *memory;
    struct predict_options options; /* every candidate, every piece of evidence */
    size_t labels_max;              /* of the options in force; 0: no limit */
    double min_score;
    bool exclude_self;
    size_t columns;
};

void eval_show_start(struct eval_show *s, const struct cli_engine *opened, bool exclude_self,
                     const struct config *config);
/* Appends those of the texts that have a gold label, until `wanted` are shown. Arguments as evaluation_add. */
int eval_show_add(struct eval_show *s, const struct instance_record *texts, const struct left_out *left_out, size_t n,
                  struct error *e);

/* Lines of standard input, read ahead by a thread of its own, so that a batch is whatever waits: whole ones from a
 * file, one line at a time from somebody who types. */
struct input;

struct input_line {
    char *data; /* owned by who took it, NUL after it */
    size_t bytes;
    bool bad; /* the line cannot be read: data says why */
};

int input_open(struct input **out, struct error *e);
/* A blank line among JSON lines holds nothing, as in data files; among plain ones it is a text like any other, so that
 * the lines of input and output stay side by side. */
bool input_passes_over(const struct input_line *line, bool json_lines);
/* Up to max lines that wait, at least one (waits for it); 0: the end; -1: standard input cannot be read on. */
int input_take(struct input *in, struct input_line *lines, size_t max, struct error *e);
void input_close(struct input *in);

/* Single records to their topics: what teach, define, forget and replay share. */
enum {
    CLI_CONNECT_MS = 10000, /* for a broker to answer at all */
    CLI_TOPICS_MS = 30000,  /* for new topics to have leaders */
    CLI_ANSWER_MS = 30000,  /* for the broker's word on a record */
};

struct sender;

struct cli_record {
    const char *command; /* for messages */
    const char *topic;
    struct slice key, value; /* value.data NULL: a tombstone */
    bool is_instance;        /* else a label: the memory may know its partition */
    int32_t partition;       /* what --partition says; -1: nothing */
    const char *done;        /* "taught pkg-1": how the line on standard output begins */
};

/* Connects, sends it and prints one line with topic, partition and offset; returns the exit status. */
int cli_send(const struct config *config, const struct cli_record *r);
/* How many partitions the topic has, after creating what is missing where create_topics allows it. */
int cli_topics_ensure(struct sender *s, const struct config *config, const char *topic, int32_t *partitions,
                      struct error *e);
/* --partition N into *partition, -1 without one. False: a usage error, *status says. */
bool cli_partition(const char *command, const struct arguments *a, int32_t *partition, int *status);

#endif
