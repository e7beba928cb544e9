/* What the user decides: the one options table, the reader of file, environment and flags, and the command line.
 * Precedence: flag > environment > file > default. Every command takes every option. */
#ifndef ENGRAM_CONFIG_CONFIG_H
#define ENGRAM_CONFIG_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/error.h"

enum config_start { START_EARLIEST, START_LATEST };
enum config_guarantee { GUARANTEE_AT_LEAST_ONCE, GUARANTEE_EXACTLY_ONCE };
enum config_timestamp { TIMESTAMP_INPUT, TIMESTAMP_NOW };
enum config_key_dtype { CONFIG_BF16, CONFIG_F32 };
enum config_compute { CONFIG_COMPUTE_AUTO, CONFIG_COMPUTE_F32, CONFIG_COMPUTE_BF16 };
enum config_device { CONFIG_DEVICE_AUTO, CONFIG_DEVICE_CPU, CONFIG_DEVICE_CUDA };
enum config_pool { CONFIG_JOINT, CONFIG_APART };
enum config_lexical_form { CONFIG_COSINE, CONFIG_BM25 };
enum config_log_format { LOG_TEXT, LOG_JSON };

/* The values in force. Strings are owned by the config. Read-only after config_read: any thread may read. A running
 * stage's reload reads another one beside it. */
struct config {
    /* [topics] */
    char *texts_topic, *predictions_topic, *instances_topic, *labels_topic, *dead_letters_topic;
    bool create_topics;
    int64_t topic_partitions;
    int64_t topic_replication;
    /* [stage] */
    char *group;
    char *instance_id;
    int start_from;           /* enum config_start */
    int processing_guarantee; /* enum config_guarantee */
    int64_t batch_tokens;     /* 0: what the backend asks for */
    int64_t batch_wait_ms;
    int64_t queue_tokens;
    int timestamp; /* enum config_timestamp */
    /* [encoder] */
    char *model; /* "": the folder beside the binary, else the installed one */
    int64_t max_seq_length;
    char *text_prefix, *label_prefix;
    int64_t threads;
    int compute; /* enum config_compute */
    /* [compute] */
    int device;    /* enum config_device */
    char *devices; /* "0,1"; "": the first one */
    /* [memory] */
    char *memory;
    int64_t map_size; /* bytes; suffixes KiB MiB GiB TiB and K M G T are read */
    int key_dtype;    /* enum config_key_dtype */
    bool store_text;
    int64_t keys_max;
    /* [predict] */
    int pool; /* enum config_pool */
    double lambda, tau;
    int64_t b;
    double lexical;
    int lexical_form; /* enum config_lexical_form */
    int64_t lexical_candidates;
    double label_power;
    int64_t labels_max;
    double min_score;
    int64_t evidence_max;
    bool evidence_text;
    /* [console] */
    char *listen;
    int64_t port; /* 0: no console */
    /* [log] */
    int log_level; /* enum log_level */
    int log_format;
    /* [kafka], [kafka.consumer], [kafka.producer], and where each value of all of this is from: config's own. */
    struct config_private *private;
};

/* ---- writing the file ---- */

/* section as in the file without its brackets: "predict", "kafka.consumer"; value as a flag takes it. */
struct config_change {
    const char *section, *name, *value;
};

/* Puts values into the file, each name at most once: in place where the name is (the last place, if it is there
 * twice), else at the end of its section, a new section at the end of the file; a missing file is made. All other
 * bytes stay: comments, order, blanks, line ends. A value that already says the same is left as it is written, and
 * where all are, the file is not touched. A link's target is what changes; owner and mode stay.
 * Whole or not at all: the new file takes the old one's place only after it was read and gave these values. Errors, the
 * file being as it was: FATAL E_USAGE (a name or value that no file takes, or a line of the file that is wrong), E_IO,
 * E_DISK_FULL. */
int config_file_set(const char *path, const struct config_change *changes, size_t count, struct error *e);

/* A command's own flag, besides -c FILE, -X, --help and every option of the table. */
struct config_flag {
    const char *name;  /* "label": --label */
    const char *value; /* the value's name in the help, e.g. "FILE"; NULL: a switch */
    const char *help;  /* NULL: not in the help */
    bool repeated;
};

/* A command, as its help prints it. Positional arguments are counted against the bounds. */
struct config_command {
    const char *name;                   /* "teach" */
    const char *usage;                  /* "--id ID --label L [--label L]... TEXT" */
    const char *help;                   /* one or more sentences */
    const char *example;                /* whole lines, as typed */
    const struct config_flag *flags;    /* ends with a NULL name; NULL: none */
    int positional_min, positional_max; /* max -1: any number */
};

struct arguments;

/* Reads argv (after the subcommand), the environment and the file into *config and *arguments; the caller frees both,
 * also after an error. An error is E_USAGE with a line that names the flag, variable or file:line and, for a misspelt
 * name, the nearest one. Sets up the log as its options say, and logs the warnings (an unknown ENGRAM_ variable, a key
 * that is there twice). Returns 1 when --help was asked for and printed to standard output: the command then ends with
 * status 0. */
int config_read(const struct config_command *command, int argc, char **argv, struct config *config,
                struct arguments **arguments, struct error *e);
void config_free(struct config *config);

/* ---- a running stage's options, read again ---- */

const char *config_file(const struct config *config); /* as named with -c; NULL: none */

/* The same command line, environment and file as before, read again into *config, which the caller frees also after an
 * error. The log stays as it is set up; only warnings that `before` did not have are logged. E_USAGE: as config_read,
 * or the file is none that can be read twice (standard input, a pipe). */
int config_read_again(const struct config_command *command, int argc, char **argv, const struct config *before,
                      struct config *config, struct error *e);

/* What has changed, each list for people, separated by commas, empty where there is nothing. Zero-initialise. */
struct config_changes {
    struct buffer live;       /* "tau 0.1 -> 0.2, pool joint -> apart": what a running stage takes */
    struct buffer restart;    /* what it does not take, Kafka's properties included (by their names alone) */
    struct buffer overridden; /* "tau (--tau wins over the file)": changed in the file, to no effect */
};

/* Compares `now` with what was taken last, and where it takes a restart with what the stage was started with. */
void config_compare(const struct config *started, const struct config *taken, const struct config *now,
                    struct config_changes *out);
void config_changes_free(struct config_changes *c);

/* The name most like this one (edits, and how both begin), for a message; NULL only without names. */
const char *config_nearest(const char *name, const char *const *names, size_t count);

bool arguments_has(const struct arguments *a, const char *flag);
const char *arguments_value(const struct arguments *a, const char *flag); /* the last one given, or NULL */
size_t arguments_count(const struct arguments *a, const char *flag);
const char *arguments_nth(const struct arguments *a, const char *flag, size_t i);
size_t arguments_positional_count(const struct arguments *a);
const char *arguments_positional(const struct arguments *a, size_t i);
void arguments_free(struct arguments *a);

/* Every option: name, value in force, from where (flag, environment, file:line, default); secrets (sasl.password,
 * ssl.key.password, ... ) masked. As a readable table or one JSON object. */
void config_print(const struct config *config, bool json, struct buffer *out);
void config_document(struct buffer *out); /* docs/CONFIG.md */

/* A new librdkafka configuration (rd_kafka_conf_t) with bootstrap.servers, our own defaults and what passes through for
 * that client. Our own refused properties are not set here: the consumer and the producer set theirs.
 * The caller hands it to rd_kafka_new (which then owns it) or destroys it. NULL: an error, E_USAGE. */
enum config_client { CLIENT_CONSUMER, CLIENT_PRODUCER };
struct rd_kafka_conf_s;
struct rd_kafka_conf_s *config_kafka(const struct config *config, enum config_client client, struct error *e);
const char *config_bootstrap_servers(const struct config *config); /* for messages */

/* The numbers in the option devices, each once; returns how many. 0: the first device. */
enum { CONFIG_DEVICES_MAX = 64 };
size_t config_devices(const struct config *config, int devices[CONFIG_DEVICES_MAX]);

#endif
