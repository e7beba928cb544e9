/* verify_open: the trees first (trees.c), and if they hold together every entry of every database, read in one
 * transaction and held against the others. Reads only. What surprises: it trusts no count in `meta`; it counts for
 * itself and compares at the end. The digest's terms can be computed again only where the text is stored; where it is
 * not, the stored term counts. */
#include <stdio.h>
#include <stdlib.h>

#include "store/internal.h"

struct verify {
    struct memory *m;
    MDB_txn *txn;
    struct meta meta;
    const struct verify_report *to;
    uint64_t problems;
    uint64_t *label_counts; /* [label_bound] instances that name each id */
    struct digest sum;
    uint64_t instances, labels, label_keys, version;
    uint64_t unused[2];    /* rows handed out and not in use, by kind */
    uint64_t free[3];      /* entries of `free` */
    uint64_t tails, slots; /* rows that should be in them */
    struct arena arena;    /* of the row being looked at */
    struct buffer scratch;
};

enum { SNAPSHOT_TRIES = 20 };

static void step(struct verify *v)
{
    if (v->to->step) {
        v->to->step(v->to->context);
    }
}

static void problem(struct verify *v, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void problem(struct verify *v, const char *format, ...)
{
    char line[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    v->problems++;
    if (v->to->problem) {
        v->to->problem(line, v->to->context);
    }
}

/* Was that a broken entry? Then it is counted and the walk goes on; other errors end it. */
static int settle(struct verify *v, const struct error *fault, struct error *e)
{
    if (fault->code == E_CORRUPT || fault->code == E_FORMAT) {
        problem(v, "%s", fault->text);
        return 0;
    }
    if (e) {
        *e = *fault;
    }
    return -1;
}

/* As entry_get; a broken entry is reported and not found. */
static int get(struct verify *v, enum db db, struct slice key, size_t bytes_min, struct slice *value, struct error *e)
{
    struct error fault = {0};
    int found = entry_get(v->m, v->txn, db, key, bytes_min, value, &fault);
    return found < 0 ? settle(v, &fault, e) : found;
}

#define PRINT(s) (int)((s).bytes < 100 ? (s).bytes : 100), (s).data

/* ---- blocks ---- */

/* One row of a block, as `values` shows it. */
struct row {
    uint64_t slot;
    uint32_t kind;
    bool used, candidate;
    uint64_t tie;
    const uint32_t *ids;
    size_t count;
    size_t pieces;
    const unsigned char *vector; /* NULL: broken, reported already */
};

static void row_ids_check(struct verify *v, const struct row *r)
{
    for (size_t i = 0; i < r->count; i++) {
        if (r->ids[i] >= v->meta.label_bound || (i && r->ids[i] <= r->ids[i - 1])) {
            problem(v, "slot %llu: label ids out of range or order", (unsigned long long)r->slot);
            return;
        }
    }
    for (size_t i = 0; i < r->count && r->kind == KEY_INSTANCE; i++) {
        v->label_counts[r->ids[i]]++;
    }
}

static int row_name_check(struct verify *v, const struct row *r, struct error *e)
{
    struct slice value, name;
    uint32_t kind;
    struct error fault = {0};
    int found = get(v, DB_SLOTS, key_of(&r->slot), sizeof(struct slot_head), &value, e);
    if (found <= 0) {
        if (found == 0) {
            problem(v, "slot %llu is in use and has no entry in 'slots'", (unsigned long long)r->slot);
        }
        return found;
    }
    if (slot_decode(v->m, value, &kind, &name, &fault)) {
        return settle(v, &fault, e);
    }
    if (kind != r->kind || hash64(name.data, name.bytes) != r->tie) {
        problem(v, "slot %llu: kind or tie hash is not that of \"%.*s\"", (unsigned long long)r->slot, PRINT(name));
    }
    return 0;
}

/* No score with such a vector is a number: its key would be in no answer. */
static bool vector_finite(const struct memory *m, const unsigned char *vector)
{
    for (size_t i = 0; i < m->dim; i++) {
        uint32_t bits = 0; /* as f32: bf16 is its upper half */
        if (m->dtype == DTYPE_F32) {
            memcpy(&bits, vector + 4 * i, 4);
        } else {
            bits = (uint32_t)vector[2 * i] << 16 | (uint32_t)vector[2 * i + 1] << 24;
        }
        if ((bits & 0x7F800000) == 0x7F800000) {
            return false;
        }
    }
    return true;
}

static int row_check(struct verify *v, const struct row *r, struct error *e)
{
    step(v);
    row_ids_check(v, r);
    if (r->used) {
        bool label_is_itself = r->kind == KEY_LABEL && r->count == 1;
        if (r->candidate != (r->count > 0) || (r->kind == KEY_LABEL && !label_is_itself)) {
            problem(v, "slot %llu: candidate state and label ids disagree", (unsigned long long)r->slot);
        }
        if (r->vector && !vector_finite(v->m, r->vector)) {
            problem(v, "slot %llu: its vector has a number that is not finite", (unsigned long long)r->slot);
        }
        v->slots++;
        return row_name_check(v, r, e);
    }
    bool zero = !r->candidate && r->count == 0 && r->pieces == 0 && r->tie == 0;
    for (size_t i = 0; r->vector && zero && i < v->m->vector_bytes; i++) {
        zero = r->vector[i] == 0;
    }
    if (!zero) {
        problem(v, "slot %llu is free but not empty", (unsigned long long)r->slot);
    }
    v->unused[r->kind - 1]++;
    struct slice value;
    struct wide_key key = free_key(r->kind, r->slot);
    int found = get(v, DB_FREE, (struct slice){(char *)key.bytes, FREE_KEY_BYTES}, 8, &value, e);
    if (found == 0) {
        problem(v, "slot %llu is free and not listed in 'free'", (unsigned long long)r->slot);
    }
    return found < 0 ? -1 : 0;
}

/* The block's vectors in `keys`, or NULL where they are in `tail` or are broken. */
static int sealed_check(struct verify *v, const struct block_header *values, const unsigned char **vectors,
                        struct error *e)
{
    struct slice value;
    struct block_header header;
    struct error fault = {0};
    uint64_t block = values->block;
    *vectors = NULL;
    int found = get(v, DB_KEYS, key_of(&block), sizeof header, &value, e);
    if (found <= 0) {
        if (found == 0) {
            problem(v, "block %llu has no sound entry in 'keys'", (unsigned long long)block);
        }
        return found;
    }
    if (block_header_check(v->m, DB_KEYS, block, value, &header, &fault)) {
        return settle(v, &fault, e);
    }
    if (header.kind != values->kind || header.version > values->version || values->count != v->m->rows) {
        problem(v, "block %llu: 'keys' and 'values' disagree", (unsigned long long)block);
    }
    *vectors = (const unsigned char *)value.data + sizeof header;
    return 0;
}

static int tail_row_check(struct verify *v, uint64_t slot, const unsigned char **vector, struct error *e)
{
    struct slice value;
    struct tail_head head;
    int found = get(v, DB_TAIL, key_of(&slot), sizeof head + v->m->vector_bytes, &value, e);
    if (found > 0) {
        memcpy(&head, value.data, sizeof head);
    }
    if (found == 0 || (found > 0 && (head.slot != slot || value.bytes != sizeof head + v->m->vector_bytes))) {
        problem(v, "slot %llu has no sound entry in 'tail'", (unsigned long long)slot);
        found = 0;
    }
    *vector = found > 0 ? (const unsigned char *)value.data + sizeof head : NULL;
    v->tails++;
    return found < 0 ? -1 : 0;
}

/* Ids that there can be, in rows that were handed out. Nothing more is known without the tokenizer. */
static bool pieces_possible(const struct memory *m, const struct pieces_block *pieces, uint32_t rows)
{
    const uint32_t *ids = pieces->ids;
    for (size_t i = 0; m->piece_bytes == 4 && i < pieces->starts[m->rows]; i++) {
        if (ids[i] > INT32_MAX) {
            return false;
        }
    }
    return pieces->starts[rows] == pieces->starts[m->rows];
}

static int rows_check(struct verify *v, struct slice values, const struct block_header *header,
                      const unsigned char *vectors, bool open, struct error *e)
{
    const struct memory *m = v->m;
    const unsigned char *at = (const unsigned char *)values.data;
    const uint64_t *ties = (const uint64_t *)(const void *)(at + sizeof *header);
    const uint8_t *used = at + values_used_at(m->rows);
    struct pieces_block pieces = values_pieces(m, values);
    struct error lists = {0};
    bool sound = values_lists_check(m, values, &lists) == 0;
    if (!sound) {
        problem(v, "%s", lists.text);
    } else if (!pieces_possible(m, &pieces, header->count)) {
        problem(v, "block %llu: impossible word pieces", (unsigned long long)header->block);
    }
    for (size_t i = 0; i < header->count; i++) {
        struct error fault = {0};
        struct row r = {.slot = header->block * m->rows + i,
                        .kind = header->kind,
                        .used = used[i] != 0,
                        .candidate = used[m->rows + i] != 0,
                        .tie = ties[i],
                        .pieces = sound ? pieces.starts[i + 1] - pieces.starts[i] : 0,
                        .vector = vectors ? vectors + i * m->vector_bytes : NULL};
        if (open && tail_row_check(v, r.slot, &r.vector, e)) {
            return -1;
        }
        if (values_row(m, values, i, &r.ids, &r.count, &fault) ? settle(v, &fault, e) : row_check(v, &r, e)) {
            return -1;
        }
    }
    for (size_t i = header->count; i < m->rows; i++) {
        if (used[i] || used[m->rows + i]) {
            problem(v, "block %llu: a row that was never given out is in use", (unsigned long long)header->block);
        }
    }
    return 0;
}

static int block_check(struct verify *v, uint64_t block, struct error *e)
{
    struct slice value, change;
    struct block_header header;
    struct error fault = {0};
    const unsigned char *vectors = NULL;
    int found = get(v, DB_VALUES, key_of(&block), sizeof header, &value, e);
    if (found <= 0) {
        if (found == 0) {
            problem(v, "block %llu has no sound entry in 'values'", (unsigned long long)block);
        }
        return found;
    }
    if (block_header_check(v->m, DB_VALUES, block, value, &header, &fault)) {
        return settle(v, &fault, e);
    }
    struct wide_key key = changes_key(header.version, block);
    found = get(v, DB_CHANGES, (struct slice){(char *)key.bytes, CHANGES_KEY_BYTES}, 8, &change, e);
    if (found < 0) {
        return -1;
    }
    if (found == 0 || header.version > v->meta.counter) {
        problem(v, "block %llu: version %llu is not listed in 'changes'", (unsigned long long)block,
                (unsigned long long)header.version);
    }
    bool open = v->meta.open[header.kind - 1] == block;
    if (!open && sealed_check(v, &header, &vectors, e)) {
        return -1;
    }
    return rows_check(v, value, &header, vectors, open, e);
}

/* ---- entries ---- */

typedef int entry_check(struct verify *v, struct slice key, struct slice value, struct error *e);

/* Each entry is also looked up by its key, as a reader would: that must find the very same value. */
static int entries_walk(struct verify *v, enum db db, size_t bytes_min, entry_check *check, struct error *e)
{
    MDB_cursor *cursor = NULL;
    MDB_val k, found = {0};
    int result = 0;
    int rc = mdb_cursor_open(v->txn, v->m->db[db], &cursor);
    while (rc == 0 && result == 0) {
        rc = mdb_cursor_get(cursor, &k, &found, MDB_NEXT);
        if (rc) {
            break;
        }
        struct slice key = {k.mv_data, k.mv_size}, value = {found.mv_data, found.mv_size};
        MDB_val named = {0};
        step(v);
        if (value.bytes < bytes_min || !value_fits(v->m, &found) || !checksum_holds(key, value)) {
            problem(v, "the checksum of an entry in '%s' is wrong", db_name(db));
        } else if (mdb_get(v->txn, v->m->db[db], &k, &named) || named.mv_data != found.mv_data) {
            problem(v, "an entry of '%s' is not found by its key", db_name(db));
        } else if (check) {
            result = check(v, key, value, e);
        }
        arena_free(&v->arena);
    }
    if (cursor) {
        mdb_cursor_close(cursor);
    }
    return rc && rc != MDB_NOTFOUND ? memory_error(v->m, rc, "reading", e) : result;
}

static int slot_holds(struct verify *v, uint64_t slot, uint32_t kind, struct slice name, struct error *e)
{
    struct slice value, holder;
    uint32_t kind_there;
    struct error fault = {0};
    int found = get(v, DB_SLOTS, key_of(&slot), sizeof(struct slot_head), &value, e);
    if (found > 0 && slot_decode(v->m, value, &kind_there, &holder, &fault)) {
        return settle(v, &fault, e);
    }
    if (found == 0 || (found > 0 && (kind_there != kind || !slice_equal(holder, name)))) {
        problem(v, "\"%.*s\" and its slot %llu disagree", PRINT(name), (unsigned long long)slot);
    }
    return found < 0 ? -1 : 0;
}

/* The names of an instance's labels, sorted. 1, or 0 where something was broken and reported. */
static int instance_names(struct verify *v, uint64_t slot, struct slice **names, size_t *count, struct error *e)
{
    struct slice value;
    struct block_header header;
    const uint32_t *ids;
    struct error fault = {0};
    uint64_t block = slot / v->m->rows;
    int found = get(v, DB_VALUES, key_of(&block), sizeof header, &value, e);
    if (found <= 0) {
        return found;
    }
    if (block_header_check(v->m, DB_VALUES, block, value, &header, &fault) ||
        values_row(v->m, value, slot % v->m->rows, &ids, count, &fault)) {
        return settle(v, &fault, e);
    }
    *names = arena_alloc(&v->arena, *count * sizeof **names);
    return label_names(v->m, v->txn, ids, *count, *names, &fault) ? settle(v, &fault, e) : 1;
}

static int instance_check(struct verify *v, struct slice id, struct slice value, struct error *e)
{
    struct instance_head head;
    struct slice topic, text, *names = NULL;
    size_t count = 0;
    struct error fault = {0};
    v->instances++;
    if (instance_decode(v->m, value, &head, &topic, &text, &fault)) {
        return settle(v, &fault, e);
    }
    struct digest stored = {head.digest_high, head.digest_low};
    v->sum = digest_add(v->sum, stored);
    if (slot_holds(v, head.slot, KEY_INSTANCE, id, e)) {
        return -1;
    }
    if (!head.has_text) {
        return 0;
    }
    int whole = instance_names(v, head.slot, &names, &count, e);
    if (whole < 0) {
        return -1;
    }
    struct digest again = whole ? instance_digest(&v->scratch, id, names, count, text) : stored;
    if (!whole || again.high != stored.high || again.low != stored.low) {
        problem(v, "the digest of instance \"%.*s\" is not that of its labels and text", PRINT(id));
    }
    return 0;
}

static int label_check(struct verify *v, struct slice key, struct slice value, struct error *e)
{
    struct label_head head;
    struct slice name, topic, text, by_name;
    struct number_value number = {0};
    struct error fault = {0};
    uint64_t id = UINT64_MAX;
    memcpy(&id, key.data, key.bytes == sizeof id ? sizeof id : 0);
    v->labels++;
    if (label_decode(v->m, value, &head, &name, &topic, &text, &fault)) {
        return settle(v, &fault, e);
    }
    int found = name.bytes ? get(v, DB_LABEL_NAMES, name, sizeof number, &by_name, e) : 0;
    if (found > 0) {
        memcpy(&number, by_name.data, sizeof number);
    }
    if (found < 0) {
        return -1;
    }
    if (found == 0 || number.number != id || head.id != id || id >= v->meta.label_bound) {
        problem(v, "label \"%.*s\" and its id %llu disagree", PRINT(name), (unsigned long long)id);
    } else if (v->label_counts[id] != head.instances) {
        problem(v, "label \"%.*s\" is counted %llu times, %llu instances name it", PRINT(name),
                (unsigned long long)head.instances, (unsigned long long)v->label_counts[id]);
    }
    if (head.slot == NO_SLOT) {
        if (head.instances == 0 || head.digest_high || head.digest_low || head.has_text) {
            problem(v, "label \"%.*s\" should have been dropped", PRINT(name));
        }
        return 0;
    }
    struct digest stored = {head.digest_high, head.digest_low};
    struct digest again = head.has_text ? label_digest(&v->scratch, name, text) : stored;
    v->label_keys++;
    v->sum = digest_add(v->sum, stored);
    if (again.high != stored.high || again.low != stored.low) {
        problem(v, "the digest of label \"%.*s\" is not that of its text", PRINT(name));
    }
    return slot_holds(v, head.slot, KEY_LABEL, name, e);
}

static int offset_check(struct verify *v, struct slice key, struct slice value, struct error *e)
{
    struct slice cluster, topic;
    int32_t partition;
    struct error fault = {0};
    v->version += (uint64_t)offset_decode(value).next;
    return offset_key_decode(v->m, key, &cluster, &topic, &partition, &fault) ? settle(v, &fault, e) : 0;
}

static int free_check(struct verify *v, struct slice key, struct slice value, struct error *e)
{
    struct number_value number;
    struct slice label;
    const unsigned char *bytes = (const unsigned char *)key.data;
    memcpy(&number, value.data, sizeof number);
    if (key.bytes != FREE_KEY_BYTES || bytes[0] < 1 || bytes[0] > 3 || big_endian_read(bytes + 1) != number.number) {
        problem(v, "an entry of 'free' is malformed");
        return 0;
    }
    v->free[bytes[0] - 1]++;
    if (bytes[0] != FREE_LABEL_ID) {
        return 0;
    }
    int found = get(v, DB_LABELS, key_of(&number.number), sizeof(struct label_head), &label, e);
    if (found > 0) {
        problem(v, "label id %llu is listed in 'free' and in use", (unsigned long long)number.number);
    }
    return found < 0 ? -1 : 0;
}

static int change_check(struct verify *v, struct slice key, struct slice value, struct error *e)
{
    struct number_value number;
    (void)e;
    memcpy(&number, value.data, sizeof number);
    if (key.bytes != CHANGES_KEY_BYTES || big_endian_read((const unsigned char *)key.data + 8) != number.number) {
        problem(v, "an entry of 'changes' is malformed");
    }
    return 0;
}

/* ---- sums ---- */

static int entries_count(struct verify *v, enum db db, uint64_t expected, struct error *e)
{
    MDB_stat stat;
    int rc = mdb_stat(v->txn, v->m->db[db], &stat);
    if (rc) {
        return memory_error(v->m, rc, "reading", e);
    }
    if (stat.ms_entries != expected) {
        problem(v, "'%s' has %llu entries, %llu are expected", db_name(db), (unsigned long long)stat.ms_entries,
                (unsigned long long)expected);
    }
    return 0;
}

static void equal(struct verify *v, const char *what, uint64_t counted, uint64_t stored)
{
    if (counted != stored) {
        problem(v, "%s: 'meta' says %llu, counted %llu", what, (unsigned long long)stored, (unsigned long long)counted);
    }
}

static int sums_check(struct verify *v, struct error *e)
{
    const struct meta *meta = &v->meta;
    uint64_t open = (meta->open[0] != NO_BLOCK ? 1u : 0u) + (meta->open[1] != NO_BLOCK ? 1u : 0u);
    equal(v, "instances", v->instances, meta->instances);
    equal(v, "labels", v->labels, meta->labels);
    equal(v, "label keys", v->label_keys, meta->label_keys);
    equal(v, "version", v->version, meta->version);
    equal(v, "rows in use", v->slots, meta->instances + meta->label_keys);
    equal(v, "free instance slots", v->free[0], meta->free[0]);
    equal(v, "free label slots", v->free[1], meta->free[1]);
    equal(v, "free label ids", v->free[2], meta->free[2]);
    equal(v, "free instance rows", v->unused[0], meta->free[0]);
    equal(v, "free label rows", v->unused[1], meta->free[1]);
    equal(v, "label ids", v->labels + v->free[2], meta->label_bound);
    if (v->sum.high != meta->digest_high || v->sum.low != meta->digest_low) {
        problem(v, "the digest in 'meta' is not the sum of its terms");
    }
    return entries_count(v, DB_KEYS, meta->next_block - open, e) || entries_count(v, DB_VALUES, meta->next_block, e) ||
                   entries_count(v, DB_CHANGES, meta->next_block, e) || entries_count(v, DB_TAIL, v->tails, e) ||
                   entries_count(v, DB_SLOTS, v->slots, e) || entries_count(v, DB_LABEL_NAMES, v->labels, e) ||
                   entries_count(v, DB_META, 1, e)
               ? -1
               : 0;
}

static int verify_all(struct verify *v, struct error *e)
{
    if (v->meta.label_bound > UINT32_MAX + (uint64_t)1) {
        return corrupt(v->m, e, "'meta' counts more label ids than there can be");
    }
    v->label_counts = mem_zero((size_t)v->meta.label_bound, sizeof *v->label_counts);
    for (uint64_t block = 0; block < v->meta.next_block; block++) {
        if (block_check(v, block, e)) {
            return -1;
        }
    }
    return entries_walk(v, DB_INSTANCES, sizeof(struct instance_head), instance_check, e) ||
                   entries_walk(v, DB_LABELS, sizeof(struct label_head), label_check, e) ||
                   entries_walk(v, DB_OFFSETS, sizeof(struct offset_value), offset_check, e) ||
                   entries_walk(v, DB_FREE, sizeof(struct number_value), free_check, e) ||
                   entries_walk(v, DB_TAIL, sizeof(struct tail_head), NULL, e) ||
                   entries_walk(v, DB_SLOTS, sizeof(struct slot_head), NULL, e) ||
                   entries_walk(v, DB_LABEL_NAMES, sizeof(struct number_value), NULL, e) ||
                   entries_walk(v, DB_CHANGES, sizeof(struct number_value), change_check, e) || sums_check(v, e)
               ? -1
               : 0;
}

/* ---- the trees ---- */

static void tree_problem(const char *line, void *context)
{
    problem(context, "%s", line);
}

/* Begins the transaction, and finds the meta page that it sees: a writer beside us may write over it at any moment. */
static int snapshot_begin(struct verify *v, struct pages *p, struct error *e)
{
    int fd, rc = mdb_env_get_fd(v->m->env, &fd);
    for (int tries = 0; rc == 0 && tries < SNAPSHOT_TRIES; tries++) {
        rc = v->txn ? mdb_txn_renew(v->txn) : mdb_txn_begin(v->m->env, NULL, MDB_RDONLY, &v->txn);
        if (rc == 0 && pages_read(fd, p, e) == 0) {
            for (int i = 0; i < 2; i++) {
                if (p->metas[i].transaction == mdb_txn_id(v->txn)) {
                    p->meta = p->metas[i];
                    return 0;
                }
            }
            corrupt(v->m, e, "no meta page has transaction %zu", mdb_txn_id(v->txn));
        }
        if (rc == 0) {
            mdb_txn_reset(v->txn);
        }
    }
    return rc ? memory_error(v->m, rc, "reading", e) : -1;
}

int verify_open(struct memory *m, const struct verify_report *to, uint64_t *problems, struct error *e)
{
    struct verify v = {.m = m, .to = to};
    struct error fault = {0};
    struct pages p;
    *problems = 0;
    int result = snapshot_begin(&v, &p, &fault) ? settle(&v, &fault, e) : 0;
    if (result == 0 && v.problems == 0) {
        p.step = to->step;
        p.step_context = to->context;
        trees_check(&p, tree_problem, &v);
    }
    if (result == 0 && v.problems == 0) { /* LMDB may follow them */
        result = meta_read(m, v.txn, &v.meta, NULL, &fault) ? settle(&v, &fault, e) : verify_all(&v, e);
    }
    mdb_txn_abort(v.txn);
    free(v.label_counts);
    arena_free(&v.arena);
    buffer_free(&v.scratch);
    *problems = v.problems;
    return result;
}
