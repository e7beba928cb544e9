/* What the files of store/ share: the layout as it is on disk (docs/MEMORY.md describes the same, byte by byte),
 * the open memory, and the edits that a write transaction collects before it flushes them into LMDB. Everything on disk
 * is little-endian; structs below are the stored bytes, without padding. Values that LMDB keeps inline are aligned to 2
 * bytes only: their heads are copied out, never cast. Values over half a page are on pages of their own, 16 bytes in:
 * `keys` and `values` are always that large, and may be read in place. */
#ifndef ENGRAM_STORE_INTERNAL_H
#define ENGRAM_STORE_INTERNAL_H

#include <lmdb.h>
#include <pthread.h>
#include <string.h>

#include "store/memory.h"

_Static_assert(sizeof(size_t) == 8 && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "64-bit little-endian machines only");

enum {
    MEMORY_FORMAT = 3,
    BLOCK_ROWS_DEFAULT = 128,
    BLOCK_ROWS_MAX = 256,
    ROW_PIECES_MAX = 65535, /* so that a block's starts fit their 32 bits */
    NAME_BYTES_MAX = 255,
    CLUSTER_BYTES_MAX = 200,
    TOPIC_BYTES_MAX = 249,
    FREE_LABEL_ID = 3, /* in `free`, beside KEY_INSTANCE and KEY_LABEL */
};

#define NO_BLOCK UINT64_MAX
#define NO_SLOT UINT64_MAX

enum db {
    DB_META,
    DB_KEYS,
    DB_TAIL,
    DB_VALUES,
    DB_INSTANCES,
    DB_SLOTS,
    DB_FREE,
    DB_LABELS,
    DB_LABEL_NAMES,
    DB_OFFSETS,
    DB_CHANGES,
    DB_COUNT,
};

/* ---- stored forms ---- */

/* Every value starts with its checksum: the XXH3-64 of the bytes after it, seeded with the XXH3-64 of its key. */

struct meta {
    uint64_t checksum;
    char magic[8];
    uint32_t format, rows, dtype, dim;
    char fingerprint[32];
    uint64_t counter; /* raised by each write transaction; the version of the blocks that it changed */
    uint64_t instances, labels, label_keys;
    uint64_t next_block;
    uint64_t open[2];     /* the block of each kind whose rows are in `tail`, or NO_BLOCK */
    uint64_t free[3];     /* entries of `free`: instance slots, label slots, label ids */
    uint64_t label_bound; /* one more than the largest label id ever given */
    uint64_t version;
    uint64_t local_changes;
    int64_t caught_up_ms;
    uint64_t digest_high, digest_low;
    uint64_t piece_bytes; /* of a word piece's id in `values`: 2 or 4 */
    uint64_t model_bytes; /* the model's name follows */
};
_Static_assert(sizeof(struct meta) == 208, "meta has no padding");

/* In front of a block of `keys` and of its `values`. */
struct block_header {
    uint64_t checksum;
    uint64_t block;
    uint64_t version;
    uint32_t count; /* rows ever handed out: the first `count` */
    uint32_t kind;
    uint32_t dtype, dim, rows;
    uint32_t labels; /* `values`: label ids after the fixed part; `keys`: 0 */
};
_Static_assert(sizeof(struct block_header) == 48, "with LMDB's 16 bytes: vectors start on a cache line");

struct tail_head { /* the vector follows */
    uint64_t checksum;
    uint64_t slot;
};

struct instance_head { /* topic and text follow */
    uint64_t checksum;
    uint64_t slot;
    uint64_t digest_high, digest_low;
    int64_t time_ms;
    int64_t offset;
    int32_t partition;
    uint32_t text_bytes;
    uint32_t has_text;
    uint32_t topic_bytes;
};
_Static_assert(sizeof(struct instance_head) == 64, "no padding");

struct label_head { /* name, topic and text follow */
    uint64_t checksum;
    uint64_t slot; /* NO_SLOT: not defined, and then the next two, the source and the text are empty */
    uint64_t digest_high, digest_low;
    uint64_t instances;
    int64_t time_ms;
    int64_t offset;
    int32_t partition;
    uint32_t text_bytes;
    uint32_t has_text;
    uint32_t topic_bytes;
    uint32_t name_bytes;
    uint32_t id;
};
_Static_assert(sizeof(struct label_head) == 80, "no padding");

struct slot_head { /* the name follows */
    uint64_t checksum;
    uint32_t kind;
    uint32_t name_bytes;
};

struct offset_value {
    uint64_t checksum;
    uint64_t next;
    int64_t mark_offset; /* the three of a struct record_mark */
    int64_t mark_time_ms;
    uint64_t mark_high, mark_low;
    unsigned char topic_id[TOPIC_ID_BYTES];
};
_Static_assert(sizeof(struct offset_value) == 64, "no padding");

struct number_value { /* label_names: the id; free, changes: what the key says */
    uint64_t checksum;
    uint64_t number;
};

/* `values` after its header: ties [rows] u64, starts [rows + 1] u32, piece_starts [rows + 1] u32, used [rows] u8,
 * candidate [rows] u8, label ids u32, pieces u16 or u32. rows is a multiple of 64, so each is aligned to its size. */
static inline size_t values_starts_at(size_t rows)
{
    return sizeof(struct block_header) + 8 * rows;
}
static inline size_t values_piece_starts_at(size_t rows)
{
    return values_starts_at(rows) + 4 * (rows + 1);
}
static inline size_t values_used_at(size_t rows)
{
    return values_piece_starts_at(rows) + 4 * (rows + 1);
}
static inline size_t values_ids_at(size_t rows)
{
    return values_used_at(rows) + 2 * rows;
}

/* ---- the open memory ---- */

struct view;
struct reader;

struct memory {
    char *path;
    enum memory_mode mode;
    MDB_env *env;
    MDB_dbi db[DB_COUNT];
    size_t page_bytes;
    uint64_t map_size;
    const unsigned char *map; /* where LMDB mapped the file; NULL: not known */
    int lock_fd;              /* writer.lock, -1 in a reader */
    bool registered;
    uint64_t registered_device, registered_inode;
    size_t rows, dim;
    size_t piece_bytes; /* of a word piece's id */
    enum dtype dtype;
    size_t vector_bytes;     /* of one row */
    size_t block_bytes;      /* of a value of `keys` */
    size_t values_bytes_min; /* a value of `values` is padded to this */
    char fingerprint[33];
    char *model_name;
    bool store_text;
    uint64_t keys_max;
    uint64_t readers_checked_us; /* the writing thread's */

    pthread_mutex_t lock; /* covers the two below and every reference count of a view */
    struct view *view;    /* the newest block list, kept between snapshots */
    struct reader *idle;  /* read transactions to renew */
};

/* Turns LMDB's answer into an error: MAP_FULL and DISK_FULL are RETRY, the rest FATAL. Returns -1. */
enum { READERS_MAX = 254 }; /* read transactions of all processes at once */
int memory_error(const struct memory *m, int rc, const char *doing, struct error *e);
/* Does LMDB's answer mean that the file cannot grow, also where it says EIO? Why, for a message; else NULL. */
const char *full_words(MDB_env *env, int rc);
int corrupt(const struct memory *m, struct error *e, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* lock.c: who may open. The registry holds the memories of this process: LMDB must not open one twice. */
int registry_enter(struct memory *m, struct error *e);
void registry_leave(struct memory *m);
int writer_lock_take(struct memory *m, struct error *e);
/* An empty file that its owner alone may read and write, whatever the umask; one that is there stays as it is. */
int file_make(const char *folder, const char *name, struct error *e);
void writer_lock_drop(struct memory *m);
int writer_lock_namespace(struct memory *m, struct error *e); /* refuses beside a writer in another PID namespace */

/* memory.c: the folder. */
int folder_make(const char *path, struct error *e); /* for its owner alone; one that is there stays as it is */
int folder_sync(const char *path, struct error *e);
/* flock(2) on the folder itself: LOCK_SH while somebody opens the memory, LOCK_EX while a compaction swaps data.mdb.
 * The descriptor, which holds it until it is closed, or -1. */
int folder_lock(const char *path, int operation);
void environment_close(struct memory *m); /* readers, views and the environment; locks stay */

/* file.c: data.mdb before it is mapped. *bytes_in_use 0: absent or empty, a new memory. */
int data_file_check(const char *path, uint64_t *bytes_in_use, struct error *e);
char *folder_path(const char *folder, const char *name); /* the caller frees it */
/* The file that a copy is written to before it becomes data.mdb; one that was cut short is deleted by the next writer.
 * The caller holds writer.lock. */
#define COPY_NAME "data.mdb.copy"
void copy_leftover_drop(const char *folder);

/* ---- pages (pages.c): the file as LMDB lays it out, read with pread(2) ---- */

enum {
    PAGE_HEAD = 16,
    PAGE_OVERFLOW = 0x04, /* the kind of page that a large value begins in */
    NODE_BIG = 0x01,      /* the value is on pages of its own */
    NODE_TREE = 0x02,     /* the value is a struct lmdb_tree */
};

#define NO_PAGE UINT64_MAX

struct lmdb_tree {
    uint32_t pad; /* of the first tree: the page size */
    uint16_t flags, depth;
    uint64_t branch_pages, leaf_pages, overflow_pages, entries, root;
};
struct lmdb_meta { /* a meta page after its page head */
    uint32_t magic, version;
    uint64_t address, map_size;
    struct lmdb_tree free, main;
    uint64_t last_page, transaction;
};
_Static_assert(sizeof(struct lmdb_tree) == 48 && sizeof(struct lmdb_meta) == 136, "as LMDB writes them");

struct pages {
    int fd;
    size_t page_bytes;
    uint64_t file_bytes, in_file; /* in_file: whole pages */
    struct lmdb_meta metas[2];
    struct lmdb_meta meta;       /* the one whose trees are walked; pages_read takes the newer */
    unsigned char *used, *free;  /* a bit for each page up to the last one in use; NULL: not tracked */
    void (*step)(void *context); /* called for each page of a tree; NULL: not */
    void *step_context;
};

struct tree_entry {
    struct slice key;
    uint64_t bytes;            /* of the value */
    const unsigned char *data; /* the value; NULL: it is on pages of its own, from `page` on */
    uint64_t page;
};
typedef int tree_entry_each(const struct tree_entry *entry, void *context, struct error *e);

/* The two meta pages and the size of the file. The error's text names no path. */
int pages_read(int fd, struct pages *out, struct error *e);
void pages_track(struct pages *p); /* from now on a page must not be used twice, nor be free as well */
void pages_untrack(struct pages *p);
bool page_is_free(const struct pages *p, uint64_t page); /* of tracked pages */
/* Every page of a tree; each (NULL is fine) gets every entry in order. The first thing that does not hold ends it with
 * -1 and E_CORRUPT. flags: what LMDB must have stored for the tree. */
int tree_walk(struct pages *pages, const char *name, const struct lmdb_tree *tree, unsigned flags,
              tree_entry_each *each, void *context, struct error *e);
int pages_free_walk(struct pages *p, struct error *e); /* marks what the free list holds; of tracked pages */

/* ---- trees (trees.c): a memory's own among them ---- */

/* That the newer meta page has the later commit, by the counter in `meta`; 0 also where that is not known. */
int trees_newer_check(const struct pages *p, struct error *e);
/* All thirteen, each page used once; reports what does not hold, one line a tree, and returns how many. */
uint64_t trees_check(struct pages *p, void (*report)(const char *line, void *context), void *context);
int trees_prove(const struct memory *m, struct error *e); /* of the open memory: E_CORRUPT names the first */

/* ---- faults (fault.c) ---- */

void fault_watch(struct memory *m); /* finds m->map; a fault in it is reported, see memory_faults_catch */
void fault_unwatch(struct memory *m);
/* A call of LMDB's that follows pages of the map: a fault inside it is the memory's too, wherever it points (LMDB reads
 * through pointers that only a sound page leaves set). */
#define FOLLOW(m, call) (fault_followed = (m), fault_left(call))
extern _Thread_local const struct memory *volatile fault_followed;
static inline int fault_left(int rc)
{
    fault_followed = NULL;
    return rc;
}
void fault_assert(MDB_env *env, const char *message); /* LMDB's own assertion failed: its context is the memory */

/* ---- entries (entries.c) ---- */

const char *db_name(enum db db);
unsigned db_flags(enum db db);
struct slice key_of(const uint64_t *number); /* for the databases with integer keys */

/* A key of big-endian numbers sorts by them. */
struct wide_key {
    unsigned char bytes[16];
};
struct wide_key changes_key(uint64_t version, uint64_t block); /* 16 bytes */
struct wide_key free_key(unsigned kind, uint64_t number);      /* 9 bytes */
enum { CHANGES_KEY_BYTES = 16, FREE_KEY_BYTES = 9 };
uint64_t big_endian_read(const unsigned char *bytes);

/* A value that LMDB found in the map ends in its page, or has as many pages as the head of its first one counts. */
bool value_fits(const struct memory *m, const MDB_val *v);
void checksum_set(struct slice key, void *value, size_t bytes);
bool checksum_holds(struct slice key, struct slice value);

/* 1: *value is the entry, of at least bytes_min, its checksum holds; 0: no such key; -1: an error. */
int entry_get(const struct memory *m, MDB_txn *txn, enum db db, struct slice key, size_t bytes_min, struct slice *value,
              struct error *e);
/* Sets the checksum in `value` and writes it. */
int entry_put(const struct memory *m, MDB_txn *txn, enum db db, struct slice key, void *value, size_t bytes,
              struct error *e);
/* 1: deleted; 0: there was none. */
int entry_delete(const struct memory *m, MDB_txn *txn, enum db db, struct slice key, struct error *e);

/* The record in `meta` as it is stored; false: it is none, or damaged. */
bool meta_stored(struct slice key, struct slice value, struct meta *out);
/* model (may be NULL): the name of the encoder's model, in the map. */
int meta_read(const struct memory *m, MDB_txn *txn, struct meta *out, struct slice *model, struct error *e);
int meta_write(const struct memory *m, MDB_txn *txn, struct meta *meta, struct error *e);

/* The parts point into value. */
int instance_decode(const struct memory *m, struct slice value, struct instance_head *head, struct slice *topic,
                    struct slice *text, struct error *e);
int label_decode(const struct memory *m, struct slice value, struct label_head *head, struct slice *name,
                 struct slice *topic, struct slice *text, struct error *e);
/* The names of these labels, sorted by bytes, into names [count]; they point into the map. */
int label_names(const struct memory *m, MDB_txn *txn, const uint32_t *ids, size_t count, struct slice *names,
                struct error *e);
int slot_decode(const struct memory *m, struct slice value, uint32_t *kind, struct slice *name, struct error *e);

/* Checks that a value of `keys` or `values` is that of this block; copies the header out. */
int block_header_check(const struct memory *m, enum db db, uint64_t block, struct slice value,
                       struct block_header *header, struct error *e);
/* The label ids of one row of a value of `values`. */
int values_row(const struct memory *m, struct slice value, size_t row, const uint32_t **ids, size_t *count,
               struct error *e);
/* The word pieces of all rows, whose header was checked. */
struct pieces_block values_pieces(const struct memory *m, struct slice value);
/* That both kinds of lists ascend and end where their ids do: once, before anything believes them. */
int values_lists_check(const struct memory *m, struct slice value, struct error *e);

int offset_key(struct slice cluster, struct slice topic, int32_t partition, struct buffer *out, struct error *e);
struct read_position offset_decode(struct slice value); /* of sizeof(struct offset_value) */
int offset_key_decode(const struct memory *m, struct slice key, struct slice *cluster, struct slice *topic,
                      int32_t *partition, struct error *e);

/* The digest's terms; scratch is emptied first. */
struct digest instance_digest(struct buffer *scratch, struct slice id, const struct slice *labels, size_t count,
                              struct slice text);
struct digest label_digest(struct buffer *scratch, struct slice label, struct slice text);

/* ---- views (view.c): the block list of one version ---- */

/* Immutable while more than the cache refers to it; counted under memory.lock. */
struct view {
    size_t references;
    uint64_t counter; /* meta.counter that it shows */
    struct keys_view keys;
    struct keys_block *blocks; /* [keys.count], by block number */
    struct slice *values;      /* [keys.count], the blocks' `values` in the map */
    size_t capacity;
    struct tail_rows *tails[2]; /* copies of the open blocks' rows, by kind */
};

/* Brings memory.view to what the transaction sees and takes one reference. The caller holds memory.lock. */
int view_take(struct memory *m, MDB_txn *txn, const struct meta *meta, struct view **out, struct error *e);
void view_release(struct view *v); /* the caller holds memory.lock; NULL is fine */

/* snapshot.c */
void readers_free(struct memory *m);
/* Walks a database; each() gets every entry whose checksum holds and returns 0 to go on, 1 to stop, -1 on an error. */
int snapshot_walk(const struct snapshot *s, enum db db, size_t bytes_min,
                  int (*each)(const struct snapshot *s, struct slice key, struct slice value, void *context,
                              struct error *e),
                  void *context, struct error *e);

/* ---- verify (verify.c) ---- */

struct verify_report {
    void (*problem)(const char *line, void *context);
    void (*step)(void *context); /* once for every page, row and entry; NULL: not */
    void *context;
};
/* What memory_verify_apart does, in this process. */
int verify_open(struct memory *m, const struct verify_report *to, uint64_t *problems, struct error *e);

/* ---- transactions ---- */

/* A hash table from numbers to pointers (not NULL); zero-initialise to start. */
struct table {
    uint64_t *keys;
    void **values;
    size_t capacity, count;
};
void *table_get(const struct table *t, uint64_t key); /* NULL: none */
void table_put(struct table *t, uint64_t key, void *value);
void table_free(struct table *t);

/* One block being changed: its values decoded, its vectors copied once a row of them changes. */
struct block_edit {
    struct block_edit *next;
    uint64_t block;
    uint64_t version_before; /* 0: new */
    uint32_t kind, count;
    bool sealed;                           /* it is in `keys`; else its rows are in `tail` */
    unsigned char *image;                  /* [block_bytes] the value of `keys` to be; NULL: no row changed */
    uint64_t changed[BLOCK_ROWS_MAX / 64]; /* of a block not sealed: rows whose vector is in the image */
    uint64_t ties[BLOCK_ROWS_MAX];
    uint8_t used[BLOCK_ROWS_MAX];
    uint8_t candidate[BLOCK_ROWS_MAX];
    struct {
        const uint32_t *ids; /* in transaction.rows */
        size_t count;
    } labels[BLOCK_ROWS_MAX];
    struct {
        const void *ids; /* as stored, in transaction.rows */
        size_t count;
    } pieces[BLOCK_ROWS_MAX];
};

struct label_edit {
    struct label_edit *next;
    struct label_edit *same_hash;
    struct slice name, topic, text; /* in the transaction's arena */
    struct label_head head;
    bool stored; /* `labels` and `label_names` hold it */
    bool gone;   /* dropped in this transaction */
    bool changed;
};

/* Owned by one thread. Blocks and labels are edited here and flushed at the commit, so that a batch writes each once.
 */
struct transaction {
    struct memory *m;
    MDB_txn *txn;
    struct meta meta;
    bool failed;  /* an error left it half done: it can only be aborted */
    bool touched; /* there is something to commit */
    struct table blocks;
    struct block_edit *block_list;
    struct arena rows; /* the edited rows' labels and pieces */
    size_t edit_bytes; /* of the edits and of rows */
    struct table labels, label_ids;
    struct label_edit *label_list;
    struct arena arena;
    struct buffer scratch;
};

static inline bool label_defined(const struct label_edit *l)
{
    return l->head.slot != NO_SLOT;
}

/* blocks.c: rows of keys and values. A slot is block * rows + row. */
int slot_take(struct transaction *t, enum key_kind kind, uint64_t *slot, struct error *e);
int slot_release(struct transaction *t, uint64_t slot, struct error *e);                   /* zeroes the row */
int key_check(const struct transaction *t, const struct memory_key *key, struct error *e); /* touches nothing */
/* key NULL: the row becomes free. */
int row_write(struct transaction *t, uint64_t slot, const struct memory_key *key, uint64_t tie, bool candidate,
              const uint32_t *ids, size_t count, struct error *e);
/* Valid until the next row_write or slot_release. */
int row_labels(struct transaction *t, uint64_t slot, const uint32_t **ids, size_t *count, struct error *e);
int number_take(struct transaction *t, unsigned kind, uint64_t *number, struct error *e); /* from `free`: 1, 0, -1 */
int number_release(struct transaction *t, unsigned kind, uint64_t number, struct error *e);
int blocks_flush(struct transaction *t, struct error *e);
void blocks_free(struct transaction *t);

/* labels.c: labels being changed. */
int label_find(struct transaction *t, struct slice name, struct label_edit **out, struct error *e); /* 1, 0, -1 */
int label_find_or_add(struct transaction *t, struct slice name, struct label_edit **out, struct error *e);
int label_by_id(struct transaction *t, uint32_t id, struct label_edit **out, struct error *e);
int label_drop_if_idle(struct transaction *t, struct label_edit *l, struct error *e);
int labels_flush(struct transaction *t, struct error *e);

#endif
