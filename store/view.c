/* The block list of one version of the memory, kept between snapshots: only blocks that `changes` lists since are
 * looked at again, and each block's checksum is proved when it enters the list. Touches the map read-only. What
 * surprises: pointers of unchanged blocks stay right from one read transaction to the next, since LMDB never moves the
 * pages of a value that is not written. A view that a snapshot still shows is not changed but copied. */
#include <stdlib.h>

#include "store/internal.h"

/* Rows of an open block, side by side: `tail` keeps each alone. */
struct tail_rows {
    size_t references;
    uint64_t block;
    unsigned char *vectors; /* [rows, dim], 64-byte aligned */
};

static void tail_release(struct tail_rows *tail)
{
    if (tail && --tail->references == 0) {
        free(tail->vectors);
        free(tail);
    }
}

void view_release(struct view *v)
{
    if (v && --v->references == 0) {
        tail_release(v->tails[0]);
        tail_release(v->tails[1]);
        free(v->blocks);
        free(v->values);
        free(v);
    }
}

static void view_reserve(struct view *v, size_t count)
{
    if (count > v->capacity) {
        size_t capacity = v->capacity * 2 > count ? v->capacity * 2 : count;
        v->blocks = mem_resize(v->blocks, capacity * sizeof *v->blocks);
        v->values = mem_resize(v->values, capacity * sizeof *v->values);
        v->capacity = capacity;
    }
    v->keys.blocks = v->blocks;
}

static struct view *view_copy(const struct memory *m, const struct view *old)
{
    struct view *v = mem_zero(1, sizeof *v);
    v->references = 1;
    v->keys.dim = m->dim;
    v->keys.dtype = m->dtype;
    if (old && old->keys.count) {
        v->keys.version = v->counter = old->counter;
        view_reserve(v, old->keys.count);
        v->keys.count = old->keys.count;
        memcpy(v->blocks, old->blocks, old->keys.count * sizeof *v->blocks);
        memcpy(v->values, old->values, old->keys.count * sizeof *v->values);
        for (size_t i = 0; i < 2; i++) {
            v->tails[i] = old->tails[i];
            if (v->tails[i]) {
                v->tails[i]->references++;
            }
        }
    }
    return v;
}

static int tail_load(const struct memory *m, MDB_txn *txn, const struct block_header *header, struct tail_rows **out,
                     struct error *e)
{
    struct tail_rows *tail = mem_zero(1, sizeof *tail);
    tail->references = 1;
    tail->block = header->block;
    tail->vectors = mem_aligned(64, m->rows * m->vector_bytes);
    for (size_t row = 0; row < header->count; row++) {
        uint64_t slot = header->block * m->rows + row;
        struct tail_head head;
        struct slice value;
        int found = entry_get(m, txn, DB_TAIL, key_of(&slot), sizeof head + m->vector_bytes, &value, e);
        if (found > 0) {
            memcpy(&head, value.data, sizeof head);
        }
        if (found == 0 || (found > 0 && (head.slot != slot || value.bytes != sizeof head + m->vector_bytes))) {
            found = corrupt(m, e, "slot %llu of 'tail' is missing", (unsigned long long)slot);
        }
        if (found < 0) {
            tail_release(tail);
            return -1;
        }
        memcpy(tail->vectors + row * m->vector_bytes, value.data + sizeof head, m->vector_bytes);
    }
    *out = tail;
    return 0;
}

/* The vectors of a sealed block, of at most `version`. One whose version is not above `since` was proved before. */
static int sealed_load(const struct memory *m, MDB_txn *txn, uint64_t block, uint64_t version, uint64_t since,
                       const void **vectors, struct error *e)
{
    MDB_val k = {sizeof block, &block}, v = {0};
    int rc = FOLLOW(m, mdb_get(txn, m->db[DB_KEYS], &k, &v));
    if (rc && rc != MDB_NOTFOUND) {
        return memory_error(m, rc, "reading", e);
    }
    struct block_header header;
    struct slice value = rc ? (struct slice){0} : (struct slice){v.mv_data, v.mv_size};
    if (rc || block_header_check(m, DB_KEYS, block, value, &header, e)) {
        return rc ? corrupt(m, e, "block %llu of 'keys' is missing", (unsigned long long)block) : -1;
    }
    if (header.version > version || !value_fits(m, &v) ||
        (header.version > since && !checksum_holds(key_of(&block), value))) {
        return corrupt(m, e, "the checksum of block %llu in 'keys' is wrong", (unsigned long long)block);
    }
    *vectors = value.data + sizeof header;
    if ((uintptr_t)*vectors % 64) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "%s: LMDB placed block %llu off a cache line", m->path,
                         (unsigned long long)block);
    }
    return 0;
}

/* version: what `changes` says that the block has; an earlier one is not what the last commit wrote. */
static int block_load(const struct memory *m, MDB_txn *txn, const struct meta *meta, struct view *v, uint64_t block,
                      uint64_t version, struct error *e)
{
    struct slice value;
    struct block_header header;
    int found = entry_get(m, txn, DB_VALUES, key_of(&block), sizeof header, &value, e);
    if (found <= 0) {
        return found ? -1 : corrupt(m, e, "block %llu of 'values' is missing", (unsigned long long)block);
    }
    if (block_header_check(m, DB_VALUES, block, value, &header, e) || values_lists_check(m, value, e)) {
        return -1;
    }
    if (header.version != version) {
        return corrupt(m, e, "block %llu of 'values' has version %llu, 'changes' lists %llu", (unsigned long long)block,
                       (unsigned long long)header.version, (unsigned long long)version);
    }
    const void *vectors = NULL;
    struct tail_rows **tail = &v->tails[header.kind == KEY_LABEL];
    if (meta->open[header.kind == KEY_LABEL] == block) {
        struct tail_rows *rows;
        if (tail_load(m, txn, &header, &rows, e)) {
            return -1;
        }
        tail_release(*tail);
        *tail = rows;
        vectors = rows->vectors;
    } else {
        if (sealed_load(m, txn, block, version, v->counter, &vectors, e)) {
            return -1;
        }
        if (*tail && (*tail)->block == block) {
            tail_release(*tail);
            *tail = NULL;
        }
    }
    v->values[block] = value;
    v->blocks[block] = (struct keys_block){
        .vectors = vectors,
        .candidate = (const uint8_t *)value.data + values_used_at(m->rows) + m->rows,
        .ties = (const uint64_t *)(const void *)(value.data + sizeof header),
        .first_slot = block * m->rows,
        .version = header.version,
        .rows = header.count,
        .kind = header.kind,
    };
    return 0;
}

/* Looks again at every block that changed since v->counter. */
static int view_update(const struct memory *m, MDB_txn *txn, const struct meta *meta, struct view *v, struct error *e)
{
    MDB_cursor *cursor = NULL;
    int result = -1;
    size_t fresh = 0, before = v->keys.count, after = (size_t)meta->next_block;
    if (after < before) {
        return corrupt(m, e, "blocks are missing");
    }
    view_reserve(v, after);
    int rc = mdb_cursor_open(txn, m->db[DB_CHANGES], &cursor);
    struct wide_key from = changes_key(v->counter + 1, 0);
    MDB_val key = {CHANGES_KEY_BYTES, from.bytes}, value;
    rc = rc ? rc : FOLLOW(m, mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE));
    for (; rc == 0; rc = FOLLOW(m, mdb_cursor_get(cursor, &key, &value, MDB_NEXT))) {
        bool whole = key.mv_size == CHANGES_KEY_BYTES;
        uint64_t version = whole ? big_endian_read(key.mv_data) : 0;
        uint64_t block = whole ? big_endian_read((unsigned char *)key.mv_data + 8) : NO_BLOCK;
        if (block >= after) {
            corrupt(m, e, "'changes' names a block that is not there");
            goto done;
        }
        if (block_load(m, txn, meta, v, block, version, e)) {
            goto done;
        }
        fresh += block >= before;
    }
    if (rc != MDB_NOTFOUND) {
        memory_error(m, rc, "reading", e);
        goto done;
    }
    if (fresh != after - before) {
        corrupt(m, e, "'changes' lacks blocks");
        goto done;
    }
    v->keys.count = after;
    v->keys.version = v->counter = meta->counter;
    result = 0;
done:
    if (cursor) {
        mdb_cursor_close(cursor);
    }
    return result;
}

int view_take(struct memory *m, MDB_txn *txn, const struct meta *meta, struct view **out, struct error *e)
{
    if (!m->view || m->view->counter != meta->counter) {
        if (!m->view || m->view->references > 1) {
            struct view *copy = view_copy(m, m->view);
            view_release(m->view);
            m->view = copy;
        }
        if (view_update(m, txn, meta, m->view, e)) {
            view_release(m->view); /* half changed: the next snapshot starts again */
            m->view = NULL;
            return -1;
        }
    }
    m->view->references++;
    *out = m->view;
    return 0;
}
