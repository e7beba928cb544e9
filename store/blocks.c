/* Rows of keys and values inside a write transaction: slots, vectors, label lists, word pieces. Each block that changes
 * is decoded once, edited in memory, and flushed at the commit (or earlier, when the copies grow large), so that a
 * batch writes it once. What surprises: a block of either kind that is not full yet has no entry in `keys`; its rows
 * are one by one in `tail` until the last one is handed out, and then move. */
#include <stdlib.h>

#include "store/internal.h"

enum { EDITS_BYTES_MAX = 64 << 20 }; /* flush early above this */

/* ---- numbers that were given back ---- */

int number_take(struct transaction *t, unsigned kind, uint64_t *number, struct error *e)
{
    if (t->meta.free[kind - 1] == 0) {
        return 0;
    }
    struct wide_key from = free_key(kind, 0);
    MDB_val key = {FREE_KEY_BYTES, from.bytes}, value;
    MDB_cursor *cursor;
    int rc = mdb_cursor_open(t->txn, t->m->db[DB_FREE], &cursor);
    if (rc) {
        return memory_error(t->m, rc, "reading", e);
    }
    rc = FOLLOW(t->m, mdb_cursor_get(cursor, &key, &value, MDB_SET_RANGE));
    bool found = rc == 0 && key.mv_size == FREE_KEY_BYTES && *(unsigned char *)key.mv_data == kind;
    if (found) {
        *number = big_endian_read((unsigned char *)key.mv_data + 1);
        rc = FOLLOW(t->m, mdb_cursor_del(cursor, 0));
    }
    mdb_cursor_close(cursor);
    if (rc == MDB_NOTFOUND || (rc == 0 && !found)) {
        return corrupt(t->m, e, "'free' has fewer entries than 'meta' counts");
    }
    if (rc) {
        return memory_error(t->m, rc, "writing", e);
    }
    t->meta.free[kind - 1]--;
    return 1;
}

int number_release(struct transaction *t, unsigned kind, uint64_t number, struct error *e)
{
    struct wide_key key = free_key(kind, number);
    struct number_value value = {.number = number};
    t->meta.free[kind - 1]++;
    return entry_put(t->m, t->txn, DB_FREE, (struct slice){(char *)key.bytes, FREE_KEY_BYTES}, &value, sizeof value, e);
}

/* ---- edits ---- */

static struct block_edit *edit_add(struct transaction *t, uint64_t block)
{
    struct block_edit *b = mem_zero(1, sizeof *b);
    b->block = block;
    b->next = t->block_list;
    t->block_list = b;
    table_put(&t->blocks, block, b);
    t->edit_bytes += sizeof *b;
    return b;
}

/* Bytes of a row's lists, which end with the edits. */
static void *rows_copy(struct transaction *t, const void *data, size_t bytes)
{
    void *kept = arena_alloc(&t->rows, bytes);
    if (bytes) {
        memcpy(kept, data, bytes);
    }
    t->edit_bytes += bytes;
    return kept;
}

static void edit_decode(struct transaction *t, struct block_edit *b, struct slice value,
                        const struct block_header *header)
{
    const struct memory *m = t->m;
    const unsigned char *at = (const unsigned char *)value.data;
    struct pieces_block pieces = values_pieces(m, value);
    const uint32_t *ids = rows_copy(t, at + values_ids_at(m->rows), sizeof *ids * header->labels);
    const char *piece_ids = rows_copy(t, pieces.ids, m->piece_bytes * pieces.starts[m->rows]);
    memcpy(b->ties, at + sizeof *header, sizeof *b->ties * m->rows);
    memcpy(b->used, at + values_used_at(m->rows), m->rows);
    memcpy(b->candidate, at + values_used_at(m->rows) + m->rows, m->rows);
    const uint32_t *starts = (const uint32_t *)(const void *)(at + values_starts_at(m->rows));
    for (size_t row = 0; row < m->rows; row++) {
        b->labels[row].ids = ids + starts[row];
        b->labels[row].count = starts[row + 1] - starts[row];
        b->pieces[row].ids = piece_ids + m->piece_bytes * pieces.starts[row];
        b->pieces[row].count = pieces.starts[row + 1] - pieces.starts[row];
    }
}

static int edit_get(struct transaction *t, uint64_t block, struct block_edit **out, struct error *e)
{
    struct memory *m = t->m;
    struct block_header header;
    struct slice value;
    *out = table_get(&t->blocks, block);
    if (*out) {
        return 0;
    }
    int found = entry_get(m, t->txn, DB_VALUES, key_of(&block), sizeof header, &value, e);
    if (found <= 0) {
        return found ? -1 : corrupt(m, e, "block %llu of 'values' is missing", (unsigned long long)block);
    }
    if (block_header_check(m, DB_VALUES, block, value, &header, e) || values_lists_check(m, value, e)) {
        return -1;
    }
    struct block_edit *b = edit_add(t, block);
    b->version_before = header.version;
    b->kind = header.kind;
    b->count = header.count;
    b->sealed = t->meta.open[header.kind - 1] != block;
    edit_decode(t, b, value, &header);
    *out = b;
    return 0;
}

static struct block_edit *edit_new(struct transaction *t, enum key_kind kind)
{
    struct block_edit *b = edit_add(t, t->meta.next_block++);
    b->kind = (uint32_t)kind;
    t->meta.open[kind - 1] = b->block;
    return b;
}

void blocks_free(struct transaction *t)
{
    while (t->block_list) {
        struct block_edit *b = t->block_list;
        t->block_list = b->next;
        free(b->image);
        free(b);
    }
    table_free(&t->blocks);
    arena_free(&t->rows);
    t->edit_bytes = 0;
}

/* ---- slots ---- */

int slot_take(struct transaction *t, enum key_kind kind, uint64_t *slot, struct error *e)
{
    int found = number_take(t, kind, slot, e);
    if (found) {
        return found < 0 ? -1 : 0;
    }
    struct block_edit *b = NULL;
    uint64_t open = t->meta.open[kind - 1];
    if (open != NO_BLOCK && edit_get(t, open, &b, e)) {
        return -1;
    }
    if (!b || b->count == t->m->rows) { /* full, but not flushed yet */
        b = edit_new(t, kind);
    }
    *slot = b->block * t->m->rows + b->count++;
    return 0;
}

static uint16_t bf16_of(float value) /* rounded to nearest, ties to even; finite values only */
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    bits += 0x7FFF + (bits >> 16 & 1);
    return (uint16_t)(bits >> 16);
}

static void vector_store(const struct memory *m, const float *vector, unsigned char *out)
{
    if (!vector) {
        memset(out, 0, m->vector_bytes);
    } else if (m->dtype == DTYPE_F32) {
        memcpy(out, vector, m->vector_bytes);
    } else {
        for (size_t i = 0; i < m->dim; i++) {
            uint16_t half = bf16_of(vector[i]);
            memcpy(out + 2 * i, &half, sizeof half);
        }
    }
}

static void image_make(struct transaction *t, struct block_edit *b)
{
    b->image = mem_zero(1, t->m->block_bytes);
    t->edit_bytes += t->m->block_bytes;
}

/* A vector that is already there, bit for bit, costs no rewrite of its block. */
static int vector_write(struct transaction *t, struct block_edit *b, size_t row, const unsigned char *bytes,
                        struct error *e)
{
    const struct memory *m = t->m;
    size_t at = sizeof(struct block_header) + row * m->vector_bytes;
    if (b->sealed && !b->image) {
        struct slice value;
        struct block_header header;
        int found = entry_get(m, t->txn, DB_KEYS, key_of(&b->block), sizeof header, &value, e);
        if (found <= 0) {
            return found ? -1 : corrupt(m, e, "block %llu of 'keys' is missing", (unsigned long long)b->block);
        }
        if (block_header_check(m, DB_KEYS, b->block, value, &header, e)) {
            return -1;
        }
        if (memcmp(value.data + at, bytes, m->vector_bytes) == 0) {
            return 0;
        }
        image_make(t, b);
        memcpy(b->image, value.data, value.bytes);
    }
    if (!b->image) {
        image_make(t, b);
    }
    memcpy(b->image + at, bytes, m->vector_bytes);
    b->changed[row / 64] |= (uint64_t)1 << row % 64;
    return 0;
}

static int edits_bound(struct transaction *t, struct error *e)
{
    if (t->edit_bytes < EDITS_BYTES_MAX) {
        return 0;
    }
    if (blocks_flush(t, e)) {
        return -1;
    }
    blocks_free(t);
    return 0;
}

int key_check(const struct transaction *t, const struct memory_key *key, struct error *e)
{
    const int32_t most = t->m->piece_bytes == 2 ? UINT16_MAX : INT32_MAX;
    if (key->pieces_count > ROW_PIECES_MAX) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "%s: a key of %zu word pieces: %d are allowed", t->m->path,
                         key->pieces_count, ROW_PIECES_MAX);
    }
    for (size_t i = 0; i < key->pieces_count; i++) {
        if (key->pieces[i] < 0 || key->pieces[i] > most) {
            return error_set(e, ERROR_FATAL, E_INTERNAL, "%s: word piece %d does not fit the memory's %zu bytes",
                             t->m->path, key->pieces[i], t->m->piece_bytes);
        }
    }
    return 0;
}

/* key (NULL: none) was checked. */
static void row_pieces_set(struct transaction *t, struct block_edit *b, size_t row, const struct memory_key *key)
{
    size_t count = key ? key->pieces_count : 0;
    b->pieces[row].ids = NULL;
    if (count && t->m->piece_bytes == 2) {
        uint16_t *narrow = arena_alloc(&t->rows, count * sizeof *narrow);
        for (size_t i = 0; i < count; i++) {
            narrow[i] = (uint16_t)key->pieces[i];
        }
        t->edit_bytes += count * sizeof *narrow;
        b->pieces[row].ids = narrow;
    } else if (count) {
        b->pieces[row].ids = rows_copy(t, key->pieces, count * sizeof *key->pieces);
    }
    b->pieces[row].count = count;
}

int row_write(struct transaction *t, uint64_t slot, const struct memory_key *key, uint64_t tie, bool candidate,
              const uint32_t *ids, size_t count, struct error *e)
{
    struct block_edit *b;
    size_t row = slot % t->m->rows;
    buffer_clear(&t->scratch);
    buffer_reserve(&t->scratch, t->m->vector_bytes);
    unsigned char *bytes = (unsigned char *)t->scratch.data;
    vector_store(t->m, key ? key->vector : NULL, bytes);
    if (edit_get(t, slot / t->m->rows, &b, e) || vector_write(t, b, row, bytes, e)) {
        return -1;
    }
    b->ties[row] = tie;
    b->used[row] = key ? 1 : 0;
    b->candidate[row] = candidate ? 1 : 0;
    b->labels[row].ids = rows_copy(t, ids, count * sizeof *ids);
    b->labels[row].count = count;
    row_pieces_set(t, b, row, key);
    return edits_bound(t, e);
}

int slot_release(struct transaction *t, uint64_t slot, struct error *e)
{
    struct block_edit *b;
    if (edit_get(t, slot / t->m->rows, &b, e)) {
        return -1;
    }
    uint32_t kind = b->kind; /* row_write may flush and free the edit */
    if (row_write(t, slot, NULL, 0, false, NULL, 0, e) || number_release(t, kind, slot, e)) {
        return -1;
    }
    return entry_delete(t->m, t->txn, DB_SLOTS, key_of(&slot), e) < 0 ? -1 : 0;
}

int row_labels(struct transaction *t, uint64_t slot, const uint32_t **ids, size_t *count, struct error *e)
{
    struct block_edit *b;
    if (edit_get(t, slot / t->m->rows, &b, e)) {
        return -1;
    }
    *ids = b->labels[slot % t->m->rows].ids;
    *count = b->labels[slot % t->m->rows].count;
    return 0;
}

/* ---- flushing ---- */

static struct block_header header_of(const struct transaction *t, const struct block_edit *b, uint32_t labels)
{
    const struct memory *m = t->m;
    return (struct block_header){.block = b->block,
                                 .version = t->meta.counter,
                                 .count = b->count,
                                 .kind = b->kind,
                                 .dtype = (uint32_t)m->dtype,
                                 .dim = (uint32_t)m->dim,
                                 .rows = (uint32_t)m->rows,
                                 .labels = labels};
}

static int values_flush(struct transaction *t, struct block_edit *b, struct error *e)
{
    const struct memory *m = t->m;
    uint32_t starts[BLOCK_ROWS_MAX + 1] = {0}, piece_starts[BLOCK_ROWS_MAX + 1] = {0};
    for (size_t row = 0; row < m->rows; row++) {
        starts[row + 1] = starts[row] + (uint32_t)b->labels[row].count;
        piece_starts[row + 1] = piece_starts[row] + (uint32_t)b->pieces[row].count;
    }
    struct block_header header = header_of(t, b, starts[m->rows]);
    struct buffer *out = &t->scratch;
    buffer_clear(out);
    buffer_append(out, &header, sizeof header);
    buffer_append(out, b->ties, sizeof *b->ties * m->rows);
    buffer_append(out, starts, sizeof *starts * (m->rows + 1));
    buffer_append(out, piece_starts, sizeof *piece_starts * (m->rows + 1));
    buffer_append(out, b->used, m->rows);
    buffer_append(out, b->candidate, m->rows);
    for (size_t row = 0; row < m->rows; row++) {
        buffer_append(out, b->labels[row].ids, sizeof(uint32_t) * b->labels[row].count);
    }
    for (size_t row = 0; row < m->rows; row++) {
        buffer_append(out, b->pieces[row].ids, m->piece_bytes * b->pieces[row].count);
    }
    if (out->bytes < m->values_bytes_min) {
        size_t padding = m->values_bytes_min - out->bytes;
        buffer_reserve(out, padding);
        memset(out->data + out->bytes, 0, padding);
        out->bytes += padding;
    }
    return entry_put(m, t->txn, DB_VALUES, key_of(&b->block), out->data, out->bytes, e);
}

static int keys_flush(struct transaction *t, struct block_edit *b, struct error *e)
{
    struct block_header header = header_of(t, b, 0);
    memcpy(b->image, &header, sizeof header);
    return entry_put(t->m, t->txn, DB_KEYS, key_of(&b->block), b->image, t->m->block_bytes, e);
}

static int tail_flush(struct transaction *t, struct block_edit *b, struct error *e)
{
    const struct memory *m = t->m;
    for (size_t row = 0; row < b->count; row++) {
        if (!(b->changed[row / 64] >> row % 64 & 1)) {
            continue;
        }
        struct tail_head head = {.slot = b->block * m->rows + row};
        buffer_clear(&t->scratch);
        buffer_append(&t->scratch, &head, sizeof head);
        buffer_append(&t->scratch, b->image + sizeof(struct block_header) + row * m->vector_bytes, m->vector_bytes);
        if (entry_put(m, t->txn, DB_TAIL, key_of(&head.slot), t->scratch.data, t->scratch.bytes, e)) {
            return -1;
        }
    }
    memset(b->changed, 0, sizeof b->changed);
    return 0;
}

/* The block is full: its rows move from the tail into `keys`. */
static int seal(struct transaction *t, struct block_edit *b, struct error *e)
{
    const struct memory *m = t->m;
    if (!b->image) {
        image_make(t, b);
    }
    for (size_t row = 0; row < m->rows; row++) {
        uint64_t slot = b->block * m->rows + row;
        if (!(b->changed[row / 64] >> row % 64 & 1)) {
            struct slice value;
            size_t bytes = sizeof(struct tail_head) + m->vector_bytes;
            int found = entry_get(m, t->txn, DB_TAIL, key_of(&slot), bytes, &value, e);
            if (found <= 0) {
                return found ? -1 : corrupt(m, e, "slot %llu of 'tail' is missing", (unsigned long long)slot);
            }
            memcpy(b->image + sizeof(struct block_header) + row * m->vector_bytes,
                   value.data + sizeof(struct tail_head), m->vector_bytes);
        }
        if (entry_delete(m, t->txn, DB_TAIL, key_of(&slot), e) < 0) {
            return -1;
        }
    }
    b->sealed = true;
    if (t->meta.open[b->kind - 1] == b->block) {
        t->meta.open[b->kind - 1] = NO_BLOCK;
    }
    return keys_flush(t, b, e);
}

static int change_note(struct transaction *t, struct block_edit *b, struct error *e)
{
    if (b->version_before == t->meta.counter) {
        return 0;
    }
    struct wide_key old = changes_key(b->version_before, b->block), new = changes_key(t->meta.counter, b->block);
    struct number_value value = {.number = b->block};
    if (b->version_before) {
        int found = entry_delete(t->m, t->txn, DB_CHANGES, (struct slice){(char *)old.bytes, CHANGES_KEY_BYTES}, e);
        if (found <= 0) {
            return found ? -1
                         : corrupt(t->m, e, "version %llu of block %llu is not listed in 'changes'",
                                   (unsigned long long)b->version_before, (unsigned long long)b->block);
        }
    }
    b->version_before = t->meta.counter;
    return entry_put(t->m, t->txn, DB_CHANGES, (struct slice){(char *)new.bytes, CHANGES_KEY_BYTES}, &value,
                     sizeof value, e);
}

static int edit_order(const void *a, const void *b)
{
    const struct block_edit *x = *(struct block_edit *const *)a, *y = *(struct block_edit *const *)b;
    return (x->block > y->block) - (x->block < y->block);
}

static int edit_flush(struct transaction *t, struct block_edit *b, struct error *e)
{
    int result;
    if (b->sealed) {
        result = b->image ? keys_flush(t, b, e) : 0;
    } else if (b->count == t->m->rows) {
        result = seal(t, b, e);
    } else {
        result = tail_flush(t, b, e);
    }
    return result || values_flush(t, b, e) || change_note(t, b, e) ? -1 : 0;
}

int blocks_flush(struct transaction *t, struct error *e)
{
    size_t count = 0;
    for (struct block_edit *b = t->block_list; b; b = b->next) {
        count++;
    }
    struct block_edit **edits = mem_alloc(count * sizeof *edits);
    size_t n = 0;
    for (struct block_edit *b = t->block_list; b; b = b->next) {
        edits[n++] = b;
    }
    if (n) {
        qsort(edits, n, sizeof *edits, edit_order); /* LMDB appends and splits less */
    }
    int result = 0;
    for (size_t i = 0; i < n && result == 0; i++) {
        result = edit_flush(t, edits[i], e);
    }
    free(edits);
    return result;
}
