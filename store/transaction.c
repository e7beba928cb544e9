/* One write transaction: fold, define, forget, undefine, offsets. LMDB makes it whole or nothing, over a kill -9 too.
 * Belongs to one thread, as LMDB demands of writers. What surprises: most of the writing happens in the commit, so a
 * full map or disk shows there; whatever fails half-way marks the transaction, and then it can only be aborted. */
#include <stdlib.h>

#include "base/clock.h"
#include "store/internal.h"

enum { READERS_CHECK_US = 1000000 };

int memory_begin(struct memory *m, struct transaction **out, struct error *e)
{
    *out = NULL;
    if (m->mode != MEMORY_WRITE) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "%s: the memory was opened for reading", m->path);
    }
    uint64_t now = clock_us();
    if (now - m->readers_checked_us > READERS_CHECK_US) { /* a dead reader keeps old pages from being used again */
        int dead;
        mdb_reader_check(m->env, &dead);
        m->readers_checked_us = now;
    }
    struct transaction *t = mem_zero(1, sizeof *t);
    t->m = m;
    int rc = mdb_txn_begin(m->env, NULL, 0, &t->txn);
    if (rc) {
        free(t);
        return memory_error(m, rc, "writing", e);
    }
    if (meta_read(m, t->txn, &t->meta, NULL, e)) {
        transaction_abort(t);
        return -1;
    }
    t->meta.counter++;
    *out = t;
    return 0;
}

void transaction_abort(struct transaction *t)
{
    if (!t) {
        return;
    }
    if (t->txn) {
        mdb_txn_abort(t->txn);
    }
    blocks_free(t);
    table_free(&t->labels);
    table_free(&t->label_ids);
    arena_free(&t->arena);
    buffer_free(&t->scratch);
    free(t);
}

static int broken(const struct transaction *t, struct error *e)
{
    return error_set(e, ERROR_FATAL, E_INTERNAL, "%s: an earlier error left this transaction half done: abort it",
                     t->m->path);
}

int transaction_commit(struct transaction *t, struct error *e)
{
    int result = -1;
    if (t->failed) {
        broken(t, e);
    } else if (!t->touched) {
        result = 0; /* nothing to write: no sync, no new version */
    } else if (blocks_flush(t, e) == 0 && labels_flush(t, e) == 0 && meta_write(t->m, t->txn, &t->meta, e) == 0) {
        int rc = FOLLOW(t->m, mdb_txn_commit(t->txn));
        t->txn = NULL; /* ended, whatever the answer */
        result = rc ? memory_error(t->m, rc, "writing", e) : 0;
    }
    transaction_abort(t);
    return result;
}

/* What every change starts with. */
static int change_begin(struct transaction *t, struct slice name, const char *what, struct error *e)
{
    if (t->failed) {
        return broken(t, e);
    }
    if (name.bytes == 0 || name.bytes > NAME_BYTES_MAX) {
        return error_set(e, ERROR_POISON, E_LIMIT, "%s of %zu bytes: 1 to %d are allowed", what, name.bytes,
                         NAME_BYTES_MAX);
    }
    return 0;
}

/* What every change ends with. */
static int change_end(struct transaction *t, int result)
{
    t->failed = t->failed || result < 0;
    t->touched = t->touched || result == 0;
    return result;
}

static int row_allowed(const struct transaction *t, struct error *e)
{
    uint64_t rows = t->meta.instances + t->meta.label_keys;
    if (t->m->keys_max == 0 || rows < t->m->keys_max) {
        return 0;
    }
    return error_set(e, ERROR_RETRY, E_KEYS_MAX,
                     "%s: the memory has %llu keys, keys_max allows %llu: raise the option keys_max and restart",
                     t->m->path, (unsigned long long)rows, (unsigned long long)t->m->keys_max);
}

static bool source_moved(uint32_t old_bytes, const char *old_topic, int32_t old_partition,
                         const struct memory_source *source)
{
    return old_bytes && slice_equal((struct slice){old_topic, old_bytes}, source->topic) &&
           old_partition != source->partition;
}

static void digest_change(struct transaction *t, struct digest old, struct digest new)
{
    struct digest sum = {t->meta.digest_high, t->meta.digest_low};
    sum = digest_add(digest_subtract(sum, old), new);
    t->meta.digest_high = sum.high;
    t->meta.digest_low = sum.low;
}

static int slot_name_write(struct transaction *t, uint64_t slot, enum key_kind kind, struct slice name, struct error *e)
{
    struct slot_head head = {.kind = (uint32_t)kind, .name_bytes = (uint32_t)name.bytes};
    buffer_clear(&t->scratch);
    buffer_append(&t->scratch, &head, sizeof head);
    buffer_append(&t->scratch, name.data, name.bytes);
    return entry_put(t->m, t->txn, DB_SLOTS, key_of(&slot), t->scratch.data, t->scratch.bytes, e);
}

/* ---- instances ---- */

static int id_order(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

/* Counts the new labels in, then the old ones out: a label in both is never dropped between. ids: in the arena,
 * ascending. */
static int labels_exchange(struct transaction *t, const uint32_t *old_ids, size_t old_count, const struct slice *names,
                           size_t count, uint32_t **ids, struct error *e)
{
    struct label_edit *l;
    *ids = arena_alloc(&t->arena, count * sizeof **ids);
    for (size_t i = 0; i < count; i++) {
        if (label_find_or_add(t, names[i], &l, e)) {
            return -1;
        }
        l->head.instances++;
        l->changed = true;
        (*ids)[i] = l->head.id;
    }
    if (count) {
        qsort(*ids, count, sizeof **ids, id_order);
    }
    for (size_t i = 0; i < old_count; i++) {
        if (label_by_id(t, old_ids[i], &l, e)) {
            return -1;
        }
        if (l->head.instances == 0) {
            return corrupt(t->m, e, "label %u is counted too low", old_ids[i]);
        }
        l->head.instances--;
        l->changed = true;
        if (label_drop_if_idle(t, l, e)) {
            return -1;
        }
    }
    return 0;
}

static int instance_read(struct transaction *t, struct slice id, struct instance_head *head, struct slice *topic,
                         struct error *e)
{
    struct slice value, text;
    int found = entry_get(t->m, t->txn, DB_INSTANCES, id, sizeof *head, &value, e);
    if (found <= 0) {
        return found;
    }
    return instance_decode(t->m, value, head, topic, &text, e) ? -1 : 1;
}

static int instance_write(struct transaction *t, struct slice id, struct slice text, struct instance_head *head,
                          const struct memory_source *source, struct error *e)
{
    head->time_ms = source->time_ms;
    head->offset = source->offset;
    head->partition = source->partition;
    head->topic_bytes = (uint32_t)source->topic.bytes;
    head->has_text = t->m->store_text ? 1 : 0;
    head->text_bytes = head->has_text ? (uint32_t)text.bytes : 0;
    buffer_clear(&t->scratch);
    buffer_append(&t->scratch, head, sizeof *head);
    buffer_append(&t->scratch, source->topic.data, source->topic.bytes);
    buffer_append(&t->scratch, text.data, head->text_bytes);
    return entry_put(t->m, t->txn, DB_INSTANCES, id, t->scratch.data, t->scratch.bytes, e);
}

static int instance_fold(struct transaction *t, struct slice id, struct slice text, const struct slice *labels,
                         size_t labels_count, const struct memory_key *key, const struct memory_source *source,
                         bool exists, struct instance_head *head, struct error *e)
{
    const uint32_t *old_ids = NULL;
    size_t old_count = 0;
    uint32_t *ids;
    struct digest old = {head->digest_high, head->digest_low};
    struct digest new = instance_digest(&t->scratch, id, labels, labels_count, text);
    if (exists ? row_labels(t, head->slot, &old_ids, &old_count, e) : slot_take(t, KEY_INSTANCE, &head->slot, e)) {
        return -1;
    }
    if (labels_exchange(t, old_ids, old_count, labels, labels_count, &ids, e) ||
        row_write(t, head->slot, key, hash64(id.data, id.bytes), labels_count > 0, ids, labels_count, e) ||
        (!exists && slot_name_write(t, head->slot, KEY_INSTANCE, id, e))) {
        return -1;
    }
    head->digest_high = new.high;
    head->digest_low = new.low;
    if (instance_write(t, id, text, head, source, e)) {
        return -1;
    }
    digest_change(t, old, new);
    t->meta.instances += exists ? 0 : 1;
    t->meta.local_changes += source->topic.bytes ? 0 : 1;
    return 0;
}

int transaction_fold(struct transaction *t, struct slice id, struct slice text, const struct slice *labels,
                     size_t labels_count, const struct memory_key *key, const struct memory_source *source, bool *moved,
                     struct error *e)
{
    struct instance_head head = {0};
    struct slice topic = {0};
    if (change_begin(t, id, "an id", e) || key_check(t, key, e)) {
        return -1;
    }
    for (size_t i = 0; i < labels_count; i++) {
        if (change_begin(t, labels[i], "a label's name", e)) {
            return -1;
        }
        if (i && slice_compare(labels[i - 1], labels[i]) >= 0) {
            return error_set(e, ERROR_FATAL, E_INTERNAL, "the labels of an instance must be sorted, without repeats");
        }
    }
    int exists = instance_read(t, id, &head, &topic, e);
    if (exists < 0) {
        return change_end(t, -1);
    }
    if (!exists && row_allowed(t, e)) {
        return -1;
    }
    if (moved) {
        *moved = exists && source_moved((uint32_t)topic.bytes, topic.data, head.partition, source);
    }
    return change_end(t, instance_fold(t, id, text, labels, labels_count, key, source, exists > 0, &head, e));
}

static int instance_forget(struct transaction *t, struct slice id, const struct instance_head *head, struct error *e)
{
    const uint32_t *old_ids;
    size_t old_count;
    uint32_t *ids;
    if (row_labels(t, head->slot, &old_ids, &old_count, e) ||
        labels_exchange(t, old_ids, old_count, NULL, 0, &ids, e) || slot_release(t, head->slot, e) ||
        entry_delete(t->m, t->txn, DB_INSTANCES, id, e) < 0) {
        return -1;
    }
    digest_change(t, (struct digest){head->digest_high, head->digest_low}, (struct digest){0});
    t->meta.instances--;
    return 0;
}

int transaction_forget(struct transaction *t, struct slice id, bool *found, struct error *e)
{
    struct instance_head head;
    struct slice topic;
    if (change_begin(t, id, "an id", e)) {
        return -1;
    }
    int exists = instance_read(t, id, &head, &topic, e);
    if (found) {
        *found = exists > 0;
    }
    if (exists == 0) {
        return 0;
    }
    return change_end(t, exists < 0 ? -1 : instance_forget(t, id, &head, e));
}

/* ---- label definitions ---- */

static int label_define(struct transaction *t, struct label_edit *l, struct slice text, const struct memory_key *key,
                        const struct memory_source *source, struct error *e)
{
    bool defined = label_defined(l);
    struct digest old = {l->head.digest_high, l->head.digest_low};
    struct digest new = label_digest(&t->scratch, l->name, text);
    if (!defined) {
        if (slot_take(t, KEY_LABEL, &l->head.slot, e) || slot_name_write(t, l->head.slot, KEY_LABEL, l->name, e)) {
            return -1;
        }
        t->meta.label_keys++;
    }
    if (row_write(t, l->head.slot, key, hash64(l->name.data, l->name.bytes), true, &l->head.id, 1, e)) {
        return -1;
    }
    l->head.digest_high = new.high;
    l->head.digest_low = new.low;
    l->head.time_ms = source->time_ms;
    l->head.offset = source->offset;
    l->head.partition = source->partition;
    l->topic = arena_slice(&t->arena, source->topic);
    l->text = t->m->store_text ? arena_slice(&t->arena, text) : (struct slice){0};
    l->changed = true;
    digest_change(t, old, new);
    t->meta.local_changes += source->topic.bytes ? 0 : 1;
    return 0;
}

int transaction_define(struct transaction *t, struct slice label, struct slice text, const struct memory_key *key,
                       const struct memory_source *source, bool *moved, struct error *e)
{
    struct label_edit *l;
    if (change_begin(t, label, "a label's name", e) || key_check(t, key, e)) {
        return -1;
    }
    int found = label_find(t, label, &l, e);
    if (found < 0) {
        return change_end(t, -1);
    }
    bool defined = found && label_defined(l);
    if (!defined && row_allowed(t, e)) {
        return -1;
    }
    if (moved) {
        *moved = defined && source_moved((uint32_t)l->topic.bytes, l->topic.data, l->head.partition, source);
    }
    if (label_find_or_add(t, label, &l, e)) {
        return change_end(t, -1);
    }
    return change_end(t, label_define(t, l, text, key, source, e));
}

static int label_undefine(struct transaction *t, struct label_edit *l, struct error *e)
{
    struct digest old = {l->head.digest_high, l->head.digest_low};
    if (slot_release(t, l->head.slot, e)) {
        return -1;
    }
    l->head = (struct label_head){
        .slot = NO_SLOT, .instances = l->head.instances, .name_bytes = l->head.name_bytes, .id = l->head.id};
    l->topic = l->text = (struct slice){0};
    l->changed = true;
    digest_change(t, old, (struct digest){0});
    t->meta.label_keys--;
    return label_drop_if_idle(t, l, e);
}

int transaction_undefine(struct transaction *t, struct slice label, bool *found, struct error *e)
{
    struct label_edit *l;
    if (change_begin(t, label, "a label's name", e)) {
        return -1;
    }
    int exists = label_find(t, label, &l, e);
    bool defined = exists > 0 && label_defined(l);
    if (found) {
        *found = defined;
    }
    if (exists >= 0 && !defined) {
        return 0;
    }
    return change_end(t, exists < 0 ? -1 : label_undefine(t, l, e));
}

/* ---- offsets ---- */

/* Reads the entry of `key`: 1, 0 (then *out is zeros), -1. */
static int offset_read(struct transaction *t, struct slice key, struct offset_value *out, struct error *e)
{
    struct slice value;
    *out = (struct offset_value){0};
    int found = entry_get(t->m, t->txn, DB_OFFSETS, key, sizeof *out, &value, e);
    if (found > 0) {
        memcpy(out, value.data, sizeof *out);
    }
    return found;
}

static void offset_change(struct offset_value *value, const struct read_position *position)
{
    value->next = (uint64_t)position->next;
    if (record_mark_known(&position->mark)) {
        value->mark_offset = position->mark.offset;
        value->mark_time_ms = position->mark.time_ms;
        value->mark_high = position->mark.hash.high;
        value->mark_low = position->mark.hash.low;
    }
    if (topic_id_known(position->topic_id)) {
        memcpy(value->topic_id, position->topic_id, sizeof value->topic_id);
    }
}

int transaction_offset(struct transaction *t, struct slice cluster, struct slice topic, int32_t partition,
                       const struct read_position *position, struct error *e)
{
    struct offset_value before, value;
    if (t->failed) {
        return broken(t, e);
    }
    if (position->next < 0) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "a next offset is not negative");
    }
    if (offset_key(cluster, topic, partition, &t->scratch, e)) {
        return -1;
    }
    struct slice key = {t->scratch.data, t->scratch.bytes};
    int exists = offset_read(t, key, &before, e);
    value = before;
    offset_change(&value, position);
    if (exists > 0 && memcmp(&before, &value, sizeof value) == 0) {
        return 0; /* nothing to write: a restart must not need room in a full map */
    }
    if (exists < 0 || entry_put(t->m, t->txn, DB_OFFSETS, key, &value, sizeof value, e)) {
        return change_end(t, -1);
    }
    t->meta.version += value.next - before.next;
    return change_end(t, 0);
}

int transaction_local_change(struct transaction *t, struct error *e)
{
    if (t->failed) {
        return broken(t, e);
    }
    t->meta.local_changes++;
    return change_end(t, 0);
}

int transaction_caught_up(struct transaction *t, int64_t wall_ms, struct error *e)
{
    if (t->failed) {
        return broken(t, e);
    }
    t->meta.caught_up_ms = wall_ms;
    return change_end(t, 0);
}
