/* The knowledge memory in LMDB: keys (vectors, and the word pieces that they were encoded from) and values (labels) in
 * blocks of one kind, a tail for rows that no block holds yet, instances, labels, offsets, and a digest over what was
 * folded. Layout: docs/MEMORY.md.
 * One writer (flock on writer.lock), any number of readers in other processes of the same PID namespace.
 * A memory is opened once a process; snapshots may be taken from any thread, a transaction belongs to one thread. */
#ifndef ENGRAM_STORE_MEMORY_H
#define ENGRAM_STORE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buffer.h"
#include "base/digest.h"
#include "base/error.h"
#include "gpu/backend.h"
#include "record/record.h"

struct memory;

enum memory_mode {
    MEMORY_READ,  /* an existing memory, read-only, beside a running writer */
    MEMORY_WRITE, /* an existing or a new one, as the only writer */
};

struct memory_options {
    const char *path; /* the folder */
    uint64_t map_size;
    enum dtype
        dtype;  /* of a new memory; an existing one keeps its own, a difference is E_FINGERPRINT in MEMORY_WRITE */
    size_t dim; /* 0: take what is there (a reader without an encoder) */
    const char *fingerprint; /* the encoder's, 32 hex digits; NULL: do not check (a reader without an encoder) */
    const char *model_name;  /* for messages */
    bool store_text;         /* applies to what is folded from now on */
    uint64_t keys_max;       /* rows of both kinds together; 0: no limit */
    uint32_t block_rows;     /* of a new memory: 64, 128, 192 or 256; 0: 128 (see docs/MEMORY.md for why) */
    size_t vocabulary; /* the encoder's word pieces: a new memory keeps 2 bytes of each id up to 65,536 of them, else 4;
                          0: 4. An existing memory keeps its width, which its fingerprint makes the right one. */
};

/* Errors: FATAL E_LOCKED (another writer, with its pid), E_FINGERPRINT, E_CORRUPT, E_FORMAT, E_IO, E_NOT_FOUND. */
int memory_open(struct memory **out, enum memory_mode mode, const struct memory_options *options, struct error *e);
void memory_close(struct memory *m);

/* ---- reading ---- */

/* One version of the memory, for one batch. Slices that come from a snapshot point into the map and end with it.
 * Several may live at once, in one thread or many; one may be read by several threads at once. */
struct snapshot;

int memory_snapshot(struct memory *m, struct snapshot **out, struct error *e);
/* The same without keys: snapshot_keys is NULL, and opening a large memory just to look something up reads no vectors.
 */
int memory_look(struct memory *m, struct snapshot **out, struct error *e);
void snapshot_release(struct snapshot *s); /* NULL is fine */

const struct keys_view *snapshot_keys(const struct snapshot *s);
uint64_t snapshot_version(const struct snapshot *s); /* memory_version: sum over partitions of next offsets */

/* Label ids of an instance's slot (ascending), of a label's slot: its own. 0 or -1 (E_CORRUPT). */
int snapshot_values(const struct snapshot *s, uint64_t slot, const uint32_t **labels, size_t *count, struct error *e);

struct memory_label {
    struct slice name;
    struct slice text; /* data NULL: not stored or not defined */
    uint32_t id;
    bool defined;
    uint64_t instances; /* how many instances name it */
    uint64_t tie;       /* XXH3-64 of the name */
    struct slice topic; /* its definition's; bytes 0: not defined, or loaded by hand */
    int32_t partition;
};

struct memory_instance {
    struct slice id;
    struct slice text;      /* data NULL: not stored */
    const uint32_t *labels; /* ids, ascending */
    size_t labels_count;
    uint64_t slot;
    int64_t time_ms;    /* the record's timestamp */
    struct slice topic; /* bytes 0: loaded by hand */
    int32_t partition;
    int64_t offset;
};

/* The word pieces of a block's rows, in its order; pointers into the map, valid while the snapshot lives. They are
 * those of the block's version: snapshot_keys(s)->blocks[block].version. */
struct pieces_block {
    const void
        *ids; /* u16 or u32, as snapshot_piece_bytes says, aligned to that; row r has starts[r] to starts[r + 1] */
    const uint32_t *starts; /* [rows + 1], ascending */
    const uint8_t *used;    /* [rows]: 1 where the row holds a key; a free row has no pieces */
};

size_t snapshot_piece_bytes(const struct snapshot *s); /* 2 or 4 */
size_t snapshot_block_rows(const struct snapshot *s);  /* row r of block i has slot i * rows + r */
/* block: below snapshot_keys(s)->count; rows: the block's. Not for a memory_look. Proved when the block was first seen.
 */
void snapshot_pieces(const struct snapshot *s, size_t block, struct pieces_block *out);

/* 1 found, 0 not, -1 error. */
int snapshot_label(const struct snapshot *s, uint32_t id, struct memory_label *out, struct error *e);
int snapshot_label_named(const struct snapshot *s, struct slice name, struct memory_label *out, struct error *e);
int snapshot_instance(const struct snapshot *s, struct slice id, struct memory_instance *out, struct error *e);
int snapshot_instance_at(const struct snapshot *s, uint64_t slot, struct memory_instance *out, struct error *e);

/* The names of an instance's labels, sorted by bytes, into names [labels_count]: slices into the snapshot. 0 or -1. */
int snapshot_label_names(const struct snapshot *s, const struct memory_instance *i, struct slice *names,
                         struct error *e);

/* Every label in the order of its name, every instance in the order of its id; each() returns 0 to go on, else the walk
 * ends there and returns 0. */
int snapshot_each_label(const struct snapshot *s, int (*each)(const struct memory_label *l, void *context),
                        void *context, struct error *e);
int snapshot_each_instance(const struct snapshot *s, int (*each)(const struct memory_instance *i, void *context),
                           void *context, struct error *e);

struct memory_offset {
    char *cluster, *topic;
    int32_t partition;
    struct read_position position;
};

struct memory_stats {
    uint64_t instances, labels, label_keys;
    size_t dim;
    enum dtype dtype;
    uint64_t version;
    struct digest digest;
    uint64_t bytes; /* of data.mdb that are in use */
    char fingerprint[33];
    char *model_name; /* of the encoder that made it; owned */
    uint64_t local_changes;
    int64_t caught_up_ms;          /* wall time last caught up; 0: never */
    struct memory_offset *offsets; /* owned; memory_stats_free */
    size_t offsets_count;
};

int snapshot_stats(const struct snapshot *s, struct memory_stats *out, struct error *e);
void memory_stats_free(struct memory_stats *stats);

/* Everything checked: the pages of every tree, every checksum, block, slot, label count, and the digest computed again
 * from ids, labels and texts where they are stored. *problems counts what is wrong; each is handed to report(). 0 also
 * with problems. A child process does it, which opens the memory for itself, read-only: a signal that ends it, and two
 * minutes without a step forward, are a problem too, and reported as one. For a process that has no other threads yet.
 */
int memory_verify_apart(const struct memory_options *options, void (*report)(const char *line, void *context),
                        void *context, uint64_t *problems, struct error *e);

/* From now on a fault inside the map of a memory (damage to LMDB's own pages ends in SIGSEGV, SIGBUS or an assertion)
 * is handed to report() as one line without a newline, and ends the process with status 1. report() may do what a
 * signal handler may. A fault anywhere else ends the process as before. */
void memory_faults_catch(void (*report)(const char *line));

/* ---- copies ---- */

/* Writes one snapshot of the memory, compacted, into `folder`, beside a running stage: the way to back up a memory, and
 * to give it to a new replica. The folder is made if absent and must hold no memory. Flushed and whole, or not there:
 * data.mdb appears last, by a rename. Every checksum is checked on the way. Errors: E_IO (a memory is there already, or
 * the folder cannot be written), E_DISK_FULL, E_CORRUPT, E_LOCKED (another copy to the same place). *copied: what was
 * copied; on success memory_stats_free frees it. */
int memory_backup(struct memory *m, const char *folder, struct memory_stats *copied, struct error *e);

/* Rewrites the data.mdb of a stopped stage without unused pages and replaces it in one rename; what was forgotten has
 * no byte left in it. Opens and closes the memory itself; nobody else may have it open. Needs room beside the file for
 * what is in use. *bytes_before, *bytes_after: the file's sizes. Errors as memory_open, and E_DISK_FULL. */
int memory_compact(const struct memory_options *options, uint64_t *bytes_before, uint64_t *bytes_after,
                   struct error *e);

/* ---- writing ---- */

/* One LMDB write transaction. What fold, define and forget did is seen by nobody until the commit. After E_MAP_FULL or
 * E_DISK_FULL (kind RETRY), abort it: nothing of it stays. E_KEYS_MAX (kind RETRY) refuses one fold and leaves the
 * transaction whole. */
struct transaction;

int memory_begin(struct memory *m, struct transaction **out, struct error *e);
int transaction_commit(struct transaction *t, struct error *e); /* ends it, also on error */
void transaction_abort(struct transaction *t);                  /* NULL is fine */

struct memory_source {
    struct slice cluster, topic; /* topic bytes 0: by hand (counts as a local change) */
    int32_t partition;
    int64_t offset;
    int64_t time_ms;
};

/* A key as it was encoded; all of it is copied. */
struct memory_key {
    const float *vector;   /* [dim] f32 */
    const int32_t *pieces; /* word-piece ids of the text, without [CLS] and [SEP] */
    size_t pieces_count;   /* at most 65,535 */
};

/* Same id or label again: replaces. labels sorted by bytes, without repeats. A piece that the memory's width cannot
 * hold is E_INTERNAL. moved (may be NULL): set when the key was last seen in another partition. */
int transaction_fold(struct transaction *t, struct slice id, struct slice text, const struct slice *labels,
                     size_t labels_count, const struct memory_key *key, const struct memory_source *source, bool *moved,
                     struct error *e);
int transaction_define(struct transaction *t, struct slice label, struct slice text, const struct memory_key *key,
                       const struct memory_source *source, bool *moved, struct error *e);
/* found (may be NULL): whether there was something to forget. */
int transaction_forget(struct transaction *t, struct slice id, bool *found, struct error *e);
int transaction_undefine(struct transaction *t, struct slice label, bool *found, struct error *e);

/* How far a partition was read; the memory's version is the sum of all `next`. A mark or a topic's id that the position
 * does not know stays as it is stored. */
int transaction_offset(struct transaction *t, struct slice cluster, struct slice topic, int32_t partition,
                       const struct read_position *position, struct error *e);
int transaction_local_change(struct transaction *t, struct error *e); /* counts one change made by hand */
int transaction_caught_up(struct transaction *t, int64_t wall_ms, struct error *e);

#endif
