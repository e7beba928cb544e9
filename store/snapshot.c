/* Snapshots: a read transaction and, unless it only looks something up, the block list of that version.
 * Read transactions are kept and renewed, for a snapshot is taken for every batch. What surprises: LMDB lets one thread
 * at a time use a read transaction, so each lookup holds the reader's lock; label lists and keys need none, they are
 * plain memory. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "store/internal.h"

struct reader {
    struct reader *next; /* in memory.idle */
    MDB_txn *txn;
    pthread_mutex_t lock; /* covers txn */
};

struct snapshot {
    struct memory *m;
    struct reader *reader;
    struct view *view; /* NULL: only looks */
    struct meta meta;
};

void readers_free(struct memory *m)
{
    while (m->idle) {
        struct reader *r = m->idle;
        m->idle = r->next;
        mdb_txn_abort(r->txn);
        pthread_mutex_destroy(&r->lock);
        free(r);
    }
}

/* The caller holds memory.lock. */
static int reader_take(struct memory *m, struct reader **out, struct error *e)
{
    int rc;
    struct reader *r = m->idle;
    if (r) {
        rc = mdb_txn_renew(r->txn);
        if (rc) {
            return memory_error(m, rc, "reading", e);
        }
        m->idle = r->next;
        *out = r;
        return 0;
    }
    MDB_txn *txn;
    rc = mdb_txn_begin(m->env, NULL, MDB_RDONLY, &txn);
    int dead = 0;
    if (rc == MDB_READERS_FULL && mdb_reader_check(m->env, &dead) == 0 && dead) {
        rc = mdb_txn_begin(m->env, NULL, MDB_RDONLY, &txn);
    }
    if (rc) {
        return memory_error(m, rc, "reading", e);
    }
    r = mem_zero(1, sizeof *r);
    r->txn = txn;
    pthread_mutex_init(&r->lock, NULL);
    *out = r;
    return 0;
}

static int snapshot_take(struct memory *m, bool keys, struct snapshot **out, struct error *e)
{
    struct snapshot *s = mem_zero(1, sizeof *s);
    int result = -1;
    s->m = m;
    *out = NULL;
    pthread_mutex_lock(&m->lock);
    if (reader_take(m, &s->reader, e) == 0 && meta_read(m, s->reader->txn, &s->meta, NULL, e) == 0 &&
        (!keys || view_take(m, s->reader->txn, &s->meta, &s->view, e) == 0)) {
        result = 0;
    }
    pthread_mutex_unlock(&m->lock);
    if (result) {
        snapshot_release(s);
    } else {
        *out = s;
    }
    return result;
}

int memory_snapshot(struct memory *m, struct snapshot **out, struct error *e)
{
    return snapshot_take(m, true, out, e);
}

int memory_look(struct memory *m, struct snapshot **out, struct error *e)
{
    return snapshot_take(m, false, out, e);
}

void snapshot_release(struct snapshot *s)
{
    if (!s) {
        return;
    }
    struct memory *m = s->m;
    pthread_mutex_lock(&m->lock);
    view_release(s->view);
    if (s->reader) {
        mdb_txn_reset(s->reader->txn);
        s->reader->next = m->idle;
        m->idle = s->reader;
    }
    pthread_mutex_unlock(&m->lock);
    free(s);
}

const struct keys_view *snapshot_keys(const struct snapshot *s)
{
    return s->view ? &s->view->keys : NULL;
}

uint64_t snapshot_version(const struct snapshot *s)
{
    return s->meta.version;
}

/* ---- lookups ---- */

static int look(const struct snapshot *s, enum db db, struct slice key, size_t bytes_min, struct slice *value,
                struct error *e)
{
    pthread_mutex_lock(&s->reader->lock);
    int found = entry_get(s->m, s->reader->txn, db, key, bytes_min, value, e);
    pthread_mutex_unlock(&s->reader->lock);
    return found;
}

/* A block's values by themselves: without a view nobody has compared its version yet. */
static int values_look(const struct snapshot *s, uint64_t block, struct slice *value, struct error *e)
{
    struct block_header header;
    struct slice change;
    int found = look(s, DB_VALUES, key_of(&block), sizeof header, value, e);
    if (found <= 0) {
        return found ? -1 : corrupt(s->m, e, "block %llu of 'values' is missing", (unsigned long long)block);
    }
    if (block_header_check(s->m, DB_VALUES, block, *value, &header, e)) {
        return -1;
    }
    struct wide_key key = changes_key(header.version, block);
    found = look(s, DB_CHANGES, (struct slice){(char *)key.bytes, CHANGES_KEY_BYTES}, sizeof(struct number_value),
                 &change, e);
    return found ? (found < 0 ? -1 : 0)
                 : corrupt(s->m, e, "version %llu of block %llu is not listed in 'changes'",
                           (unsigned long long)header.version, (unsigned long long)block);
}

int snapshot_values(const struct snapshot *s, uint64_t slot, const uint32_t **labels, size_t *count, struct error *e)
{
    uint64_t block = slot / s->m->rows;
    struct slice value = {0};
    if (block >= s->meta.next_block) {
        return corrupt(s->m, e, "slot %llu is in no block", (unsigned long long)slot);
    }
    if (s->view) {
        value = s->view->values[block];
    } else if (values_look(s, block, &value, e)) {
        return -1;
    }
    return values_row(s->m, value, slot % s->m->rows, labels, count, e);
}

size_t snapshot_block_rows(const struct snapshot *s)
{
    return s->m->rows;
}

size_t snapshot_piece_bytes(const struct snapshot *s)
{
    return s->m->piece_bytes;
}

void snapshot_pieces(const struct snapshot *s, size_t block, struct pieces_block *out)
{
    assert(s->view && block < s->view->keys.count);
    *out = values_pieces(s->m, s->view->values[block]);
}

int snapshot_label(const struct snapshot *s, uint32_t id, struct memory_label *out, struct error *e)
{
    uint64_t key = id;
    struct slice value;
    struct label_head head;
    int found = look(s, DB_LABELS, key_of(&key), sizeof head, &value, e);
    if (found <= 0) {
        return found;
    }
    *out = (struct memory_label){0};
    if (label_decode(s->m, value, &head, &out->name, &out->topic, &out->text, e)) {
        return -1;
    }
    out->id = head.id;
    out->defined = head.slot != NO_SLOT;
    out->instances = head.instances;
    out->tie = hash64(out->name.data, out->name.bytes);
    out->partition = head.partition;
    return 1;
}

static bool name_possible(struct slice name)
{
    return name.bytes >= 1 && name.bytes <= NAME_BYTES_MAX;
}

/* The label whose id an entry of `label_names` holds. */
static int label_of_name(const struct snapshot *s, struct slice number, struct memory_label *out, struct error *e)
{
    struct number_value value;
    memcpy(&value, number.data, sizeof value);
    int found = snapshot_label(s, (uint32_t)value.number, out, e);
    return found ? found : corrupt(s->m, e, "label %llu is missing in 'labels'", (unsigned long long)value.number);
}

int snapshot_label_named(const struct snapshot *s, struct slice name, struct memory_label *out, struct error *e)
{
    struct slice value;
    if (!name_possible(name)) {
        return 0;
    }
    int found = look(s, DB_LABEL_NAMES, name, sizeof(struct number_value), &value, e);
    return found <= 0 ? found : label_of_name(s, value, out, e);
}

static int instance_show(const struct snapshot *s, struct slice id, struct slice value, struct memory_instance *out,
                         struct error *e)
{
    struct instance_head head;
    *out = (struct memory_instance){.id = id};
    if (instance_decode(s->m, value, &head, &out->topic, &out->text, e) ||
        snapshot_values(s, head.slot, &out->labels, &out->labels_count, e)) {
        return -1;
    }
    out->slot = head.slot;
    out->time_ms = head.time_ms;
    out->partition = head.partition;
    out->offset = head.offset;
    return 1;
}

int snapshot_instance(const struct snapshot *s, struct slice id, struct memory_instance *out, struct error *e)
{
    /* The id shown must live as long as the snapshot, unlike the caller's: `slots` holds it too. */
    struct slice value;
    struct instance_head head;
    if (!name_possible(id)) {
        return 0;
    }
    int found = look(s, DB_INSTANCES, id, sizeof head, &value, e);
    if (found <= 0) {
        return found;
    }
    memcpy(&head, value.data, sizeof head);
    found = snapshot_instance_at(s, head.slot, out, e);
    if (found < 0) {
        return -1;
    }
    if (found == 0 || !slice_equal(out->id, id)) {
        return corrupt(s->m, e, "slot %llu does not have the instance that 'instances' says",
                       (unsigned long long)head.slot);
    }
    return 1;
}

int snapshot_instance_at(const struct snapshot *s, uint64_t slot, struct memory_instance *out, struct error *e)
{
    struct slice value, id;
    uint32_t kind;
    int found = look(s, DB_SLOTS, key_of(&slot), sizeof(struct slot_head), &value, e);
    if (found <= 0) {
        return found;
    }
    if (slot_decode(s->m, value, &kind, &id, e)) {
        return -1;
    }
    if (kind != KEY_INSTANCE) {
        return 0;
    }
    found = name_possible(id) ? look(s, DB_INSTANCES, id, sizeof(struct instance_head), &value, e) : 0;
    if (found <= 0) {
        return found
                   ? -1
                   : corrupt(s->m, e, "the instance of slot %llu is missing in 'instances'", (unsigned long long)slot);
    }
    return instance_show(s, id, value, out, e);
}

int snapshot_label_names(const struct snapshot *s, const struct memory_instance *i, struct slice *names,
                         struct error *e)
{
    pthread_mutex_lock(&s->reader->lock);
    int result = label_names(s->m, s->reader->txn, i->labels, i->labels_count, names, e);
    pthread_mutex_unlock(&s->reader->lock);
    return result;
}

/* ---- walks ---- */

int snapshot_walk(const struct snapshot *s, enum db db, size_t bytes_min,
                  int (*each)(const struct snapshot *s, struct slice key, struct slice value, void *context,
                              struct error *e),
                  void *context, struct error *e)
{
    MDB_cursor *cursor = NULL;
    MDB_val k, v = {0};
    MDB_stat stat = {0};
    size_t walked = 0;
    int result = 0;
    pthread_mutex_lock(&s->reader->lock);
    int rc = mdb_cursor_open(s->reader->txn, s->m->db[db], &cursor);
    while (rc == 0 && result == 0) {
        rc = FOLLOW(s->m, mdb_cursor_get(cursor, &k, &v, MDB_NEXT));
        if (rc == 0) {
            pthread_mutex_unlock(&s->reader->lock); /* each() looks things up */
            struct slice key = {k.mv_data, k.mv_size}, value = {v.mv_data, v.mv_size};
            if (value.bytes < bytes_min || !value_fits(s->m, &v) || !checksum_holds(key, value)) {
                result = corrupt(s->m, e, "the checksum of an entry in '%s' is wrong", db_name(db));
            } else {
                result = each(s, key, value, context, e);
            }
            pthread_mutex_lock(&s->reader->lock);
            walked++;
        }
    }
    bool whole = rc == MDB_NOTFOUND;
    rc = whole ? mdb_stat(s->reader->txn, s->m->db[db], &stat) : rc;
    if (rc) {
        result = memory_error(s->m, rc, "reading", e);
    } else if (whole && walked != stat.ms_entries) {
        result = corrupt(s->m, e, "'%s' has %zu entries, its record counts %zu", db_name(db), walked, stat.ms_entries);
    }
    if (cursor) {
        mdb_cursor_close(cursor);
    }
    pthread_mutex_unlock(&s->reader->lock);
    return result < 0 ? -1 : 0;
}

struct label_walk {
    int (*each)(const struct memory_label *l, void *context);
    void *context;
};

static int label_step(const struct snapshot *s, struct slice key, struct slice value, void *context, struct error *e)
{
    const struct label_walk *w = context;
    struct memory_label label;
    (void)key;
    if (label_of_name(s, value, &label, e) < 0) {
        return -1;
    }
    return w->each(&label, w->context) ? 1 : 0;
}

int snapshot_each_label(const struct snapshot *s, int (*each)(const struct memory_label *l, void *context),
                        void *context, struct error *e)
{
    struct label_walk w = {each, context};
    return snapshot_walk(s, DB_LABEL_NAMES, sizeof(struct number_value), label_step, &w, e);
}

struct instance_walk {
    int (*each)(const struct memory_instance *i, void *context);
    void *context;
};

static int instance_step(const struct snapshot *s, struct slice key, struct slice value, void *context, struct error *e)
{
    const struct instance_walk *w = context;
    struct memory_instance instance;
    if (instance_show(s, key, value, &instance, e) < 0) {
        return -1;
    }
    return w->each(&instance, w->context) ? 1 : 0;
}

int snapshot_each_instance(const struct snapshot *s, int (*each)(const struct memory_instance *i, void *context),
                           void *context, struct error *e)
{
    struct instance_walk w = {each, context};
    return snapshot_walk(s, DB_INSTANCES, sizeof(struct instance_head), instance_step, &w, e);
}

/* ---- stats ---- */

static int offset_step(const struct snapshot *s, struct slice key, struct slice value, void *context, struct error *e)
{
    struct memory_stats *stats = context;
    struct slice cluster, topic;
    struct memory_offset offset = {0};
    if (offset_key_decode(s->m, key, &cluster, &topic, &offset.partition, e)) {
        return -1;
    }
    offset.cluster = mem_string(cluster.data, cluster.bytes);
    offset.topic = mem_string(topic.data, topic.bytes);
    offset.position = offset_decode(value);
    stats->offsets = mem_resize(stats->offsets, (stats->offsets_count + 1) * sizeof *stats->offsets);
    stats->offsets[stats->offsets_count++] = offset;
    return 0;
}

/* Pages of every tree: the free list, the names, ours, and the two meta pages. */
static int bytes_in_use(const struct snapshot *s, uint64_t *bytes, struct error *e)
{
    uint64_t pages = 2;
    bool possible = true;
    MDB_envinfo info;
    pthread_mutex_lock(&s->reader->lock);
    int rc = mdb_env_info(s->m->env, &info);
    for (int i = 0; i < 2 + DB_COUNT && rc == 0; i++) {
        MDB_stat stat;
        rc = FOLLOW(s->m, mdb_stat(s->reader->txn, i < 2 ? (MDB_dbi)i : s->m->db[i - 2], &stat));
        const size_t of_tree[] = {rc ? 0 : stat.ms_branch_pages, rc ? 0 : stat.ms_leaf_pages,
                                  rc ? 0 : stat.ms_overflow_pages};
        for (size_t k = 0; k < 3; k++) {
            possible = possible && of_tree[k] <= info.me_last_pgno + 1 - pages;
            pages += possible ? of_tree[k] : 0;
        }
    }
    pthread_mutex_unlock(&s->reader->lock);
    *bytes = pages * s->m->page_bytes;
    if (rc) {
        return memory_error(s->m, rc, "reading", e);
    }
    return possible ? 0 : corrupt(s->m, e, "its trees count more pages than the file has");
}

int snapshot_stats(const struct snapshot *s, struct memory_stats *out, struct error *e)
{
    *out = (struct memory_stats){.instances = s->meta.instances,
                                 .labels = s->meta.labels,
                                 .label_keys = s->meta.label_keys,
                                 .dim = s->m->dim,
                                 .dtype = s->m->dtype,
                                 .version = s->meta.version,
                                 .digest = {s->meta.digest_high, s->meta.digest_low},
                                 .model_name = mem_string(s->m->model_name, strlen(s->m->model_name)),
                                 .local_changes = s->meta.local_changes,
                                 .caught_up_ms = s->meta.caught_up_ms};
    memcpy(out->fingerprint, s->m->fingerprint, sizeof out->fingerprint);
    if (bytes_in_use(s, &out->bytes, e) ||
        snapshot_walk(s, DB_OFFSETS, sizeof(struct offset_value), offset_step, out, e)) {
        memory_stats_free(out);
        return -1;
    }
    return 0;
}

void memory_stats_free(struct memory_stats *stats)
{
    for (size_t i = 0; i < stats->offsets_count; i++) {
        free(stats->offsets[i].cluster);
        free(stats->offsets[i].topic);
    }
    free(stats->offsets);
    free(stats->model_name);
    *stats = (struct memory_stats){0};
}
