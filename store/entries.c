/* The stored forms: keys, heads, checksums, and the digest's terms. Touches LMDB only through get, put and delete.
 * What surprises: a head is copied out before it is read, for LMDB aligns small values to two bytes only. */
#include <msgpack.h>

#include "store/internal.h"

static const char META_MAGIC[8] = {'E', 'n', 'g', 'r', 'a', 'm', 'K', 'V'};
static const char META_KEY[] = "memory";

static const struct {
    const char *name;
    unsigned flags;
} DATABASES[DB_COUNT] = {
    [DB_META] = {"meta", 0},
    [DB_KEYS] = {"keys", MDB_INTEGERKEY},
    [DB_TAIL] = {"tail", MDB_INTEGERKEY},
    [DB_VALUES] = {"values", MDB_INTEGERKEY},
    [DB_INSTANCES] = {"instances", 0},
    [DB_SLOTS] = {"slots", MDB_INTEGERKEY},
    [DB_FREE] = {"free", 0},
    [DB_LABELS] = {"labels", MDB_INTEGERKEY},
    [DB_LABEL_NAMES] = {"label_names", 0},
    [DB_OFFSETS] = {"offsets", 0},
    [DB_CHANGES] = {"changes", 0},
};

const char *db_name(enum db db)
{
    return DATABASES[db].name;
}

unsigned db_flags(enum db db)
{
    return DATABASES[db].flags;
}

struct slice key_of(const uint64_t *number)
{
    return (struct slice){(const char *)number, sizeof *number};
}

static void big_endian_write(unsigned char *bytes, uint64_t number)
{
    for (size_t i = 0; i < 8; i++) {
        bytes[i] = (unsigned char)(number >> (56 - 8 * i));
    }
}

uint64_t big_endian_read(const unsigned char *bytes)
{
    uint64_t number = 0;
    for (size_t i = 0; i < 8; i++) {
        number = number << 8 | bytes[i];
    }
    return number;
}

struct wide_key changes_key(uint64_t version, uint64_t block)
{
    struct wide_key key;
    big_endian_write(key.bytes, version);
    big_endian_write(key.bytes + 8, block);
    return key;
}

struct wide_key free_key(unsigned kind, uint64_t number)
{
    struct wide_key key = {{(unsigned char)kind}};
    big_endian_write(key.bytes + 1, number);
    return key;
}

static uint64_t checksum_of(struct slice key, const void *value, size_t bytes)
{
    return hash64_seeded((const char *)value + sizeof(uint64_t), bytes - sizeof(uint64_t), hash64(key.data, key.bytes));
}

void checksum_set(struct slice key, void *value, size_t bytes)
{
    uint64_t sum = checksum_of(key, value, bytes);
    memcpy(value, &sum, sizeof sum);
}

bool checksum_holds(struct slice key, struct slice value)
{
    uint64_t sum;
    if (value.bytes < sizeof sum) {
        return false;
    }
    memcpy(&sum, value.data, sizeof sum);
    return sum == checksum_of(key, value.data, value.bytes);
}

bool value_fits(const struct memory *m, const MDB_val *v)
{
    const unsigned char *at = v->mv_data;
    if (!m->map || at < m->map || (uint64_t)(at - m->map) >= m->map_size) {
        return true; /* a page that this transaction wrote is LMDB's own memory */
    }
    uint64_t offset = (uint64_t)(at - m->map), in_page = offset % m->page_bytes, page;
    uint16_t kind;
    uint32_t pages;
    if (in_page != PAGE_HEAD) {
        return v->mv_size <= m->page_bytes - in_page;
    }
    memcpy(&page, at - PAGE_HEAD, sizeof page);
    memcpy(&kind, at - 6, sizeof kind);
    memcpy(&pages, at - 4, sizeof pages);
    return page == offset / m->page_bytes && kind == PAGE_OVERFLOW &&
           PAGE_HEAD + v->mv_size <= (uint64_t)pages * m->page_bytes;
}

static MDB_val lmdb_val(struct slice s)
{
    return (MDB_val){s.bytes, (void *)(uintptr_t)s.data};
}

/* A key as a person reads it: numbers in decimal, names as they are. */
static void key_print(enum db db, struct slice key, char *out, size_t size)
{
    uint64_t number;
    if ((db_flags(db) & MDB_INTEGERKEY) && key.bytes == sizeof number) {
        memcpy(&number, key.data, sizeof number);
        snprintf(out, size, "%llu", (unsigned long long)number);
    } else if (db == DB_FREE || db == DB_CHANGES || db == DB_OFFSETS) {
        snprintf(out, size, "of %zu bytes", key.bytes);
    } else {
        snprintf(out, size, "\"%.*s\"", (int)(key.bytes < 100 ? key.bytes : 100), key.data);
    }
}

int entry_get(const struct memory *m, MDB_txn *txn, enum db db, struct slice key, size_t bytes_min, struct slice *value,
              struct error *e)
{
    MDB_val k = lmdb_val(key), v = {0}; /* a damaged page can have LMDB find a key and set no value */
    int rc = FOLLOW(m, mdb_get(txn, m->db[db], &k, &v));
    if (rc == MDB_NOTFOUND) {
        return 0;
    }
    if (rc) {
        return memory_error(m, rc, "reading", e);
    }
    *value = (struct slice){v.mv_data, v.mv_size};
    if (value->bytes < bytes_min || !value_fits(m, &v) || !checksum_holds(key, *value)) {
        char printed[128];
        key_print(db, key, printed, sizeof printed);
        return corrupt(m, e, "the checksum of entry %s in '%s' is wrong", printed, db_name(db));
    }
    return 1;
}

int entry_put(const struct memory *m, MDB_txn *txn, enum db db, struct slice key, void *value, size_t bytes,
              struct error *e)
{
    checksum_set(key, value, bytes);
    MDB_val k = lmdb_val(key), v = {bytes, value};
    int rc = FOLLOW(m, mdb_put(txn, m->db[db], &k, &v, 0));
    return rc ? memory_error(m, rc, "writing", e) : 0;
}

int entry_delete(const struct memory *m, MDB_txn *txn, enum db db, struct slice key, struct error *e)
{
    MDB_val k = lmdb_val(key);
    int rc = FOLLOW(m, mdb_del(txn, m->db[db], &k, NULL));
    if (rc == MDB_NOTFOUND) {
        return 0;
    }
    return rc ? memory_error(m, rc, "writing", e) : 1;
}

bool meta_stored(struct slice key, struct slice value, struct meta *out)
{
    if (value.bytes < sizeof *out || !checksum_holds(key, value)) {
        return false;
    }
    memcpy(out, value.data, sizeof *out);
    return memcmp(out->magic, META_MAGIC, sizeof META_MAGIC) == 0 && out->format == MEMORY_FORMAT;
}

int meta_read(const struct memory *m, MDB_txn *txn, struct meta *out, struct slice *model, struct error *e)
{
    const struct slice key = {META_KEY, sizeof META_KEY - 1};
    MDB_val k = lmdb_val(key), v = {0};
    int rc = FOLLOW(m, mdb_get(txn, m->db[DB_META], &k, &v));
    if (rc && rc != MDB_NOTFOUND) {
        return memory_error(m, rc, "reading", e);
    }
    /* Magic and format first: another format may keep its checksum elsewhere. */
    const size_t format_ends = offsetof(struct meta, format) + sizeof out->format;
    *out = (struct meta){0};
    if (rc == 0) {
        memcpy(out, v.mv_data, v.mv_size < sizeof *out ? v.mv_size : sizeof *out);
    }
    if (rc || v.mv_size < format_ends || memcmp(out->magic, META_MAGIC, sizeof META_MAGIC) != 0) {
        return error_set(e, ERROR_FATAL, E_FORMAT,
                         "%s: this is not a memory of Engram: name another folder with the option memory", m->path);
    }
    if (out->format != MEMORY_FORMAT) {
        return error_set(
            e, ERROR_FATAL, E_FORMAT, "%s: the memory has format %u, this version of Engram reads format %d: %s",
            m->path, out->format, MEMORY_FORMAT,
            out->format < MEMORY_FORMAT
                ? "name an empty folder with the option memory, and let `engram run` read its topics again "
                  "or `engram load` the files (or an export by the version that made it)"
                : "use the version that made it, or start an empty memory");
    }
    if (v.mv_size < sizeof *out || v.mv_size - sizeof *out != out->model_bytes ||
        !checksum_holds(key, (struct slice){v.mv_data, v.mv_size})) {
        return corrupt(m, e, "the checksum of 'meta' is wrong");
    }
    if (model) {
        *model = (struct slice){(const char *)v.mv_data + sizeof *out, (size_t)out->model_bytes};
    }
    return 0;
}

int meta_write(const struct memory *m, MDB_txn *txn, struct meta *meta, struct error *e)
{
    char value[sizeof *meta + NAME_BYTES_MAX];
    size_t model_bytes = m->model_name ? strlen(m->model_name) : 0;
    model_bytes = model_bytes < NAME_BYTES_MAX ? model_bytes : NAME_BYTES_MAX;
    memcpy(meta->magic, META_MAGIC, sizeof META_MAGIC);
    meta->format = MEMORY_FORMAT;
    meta->model_bytes = model_bytes;
    memcpy(value, meta, sizeof *meta);
    memcpy(value + sizeof *meta, m->model_name ? m->model_name : "", model_bytes);
    struct slice key = {META_KEY, sizeof META_KEY - 1};
    return entry_put(m, txn, DB_META, key, value, sizeof *meta + model_bytes, e);
}

int instance_decode(const struct memory *m, struct slice value, struct instance_head *head, struct slice *topic,
                    struct slice *text, struct error *e)
{
    if (value.bytes >= sizeof *head) {
        memcpy(head, value.data, sizeof *head);
    }
    if (value.bytes < sizeof *head || value.bytes != sizeof *head + head->topic_bytes + head->text_bytes) {
        return corrupt(m, e, "an entry of 'instances' has a wrong length");
    }
    const char *at = value.data + sizeof *head;
    *topic = (struct slice){at, head->topic_bytes};
    *text = (struct slice){head->has_text ? at + head->topic_bytes : NULL, head->text_bytes};
    return 0;
}

int label_decode(const struct memory *m, struct slice value, struct label_head *head, struct slice *name,
                 struct slice *topic, struct slice *text, struct error *e)
{
    if (value.bytes >= sizeof *head) {
        memcpy(head, value.data, sizeof *head);
    }
    if (value.bytes < sizeof *head ||
        value.bytes != sizeof *head + head->name_bytes + head->topic_bytes + head->text_bytes) {
        return corrupt(m, e, "an entry of 'labels' has a wrong length");
    }
    const char *at = value.data + sizeof *head;
    *name = (struct slice){at, head->name_bytes};
    *topic = (struct slice){at + head->name_bytes, head->topic_bytes};
    *text = (struct slice){head->has_text ? at + head->name_bytes + head->topic_bytes : NULL, head->text_bytes};
    return 0;
}

int label_names(const struct memory *m, MDB_txn *txn, const uint32_t *ids, size_t count, struct slice *names,
                struct error *e)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t id = ids[i];
        struct slice value, topic, text;
        struct label_head head;
        int found = entry_get(m, txn, DB_LABELS, key_of(&id), sizeof head, &value, e);
        if (found == 0) {
            corrupt(m, e, "label %llu is missing in 'labels'", (unsigned long long)id);
        }
        if (found <= 0 || label_decode(m, value, &head, &names[i], &topic, &text, e)) {
            return -1;
        }
    }
    slices_sort(names, count);
    return 0;
}

int slot_decode(const struct memory *m, struct slice value, uint32_t *kind, struct slice *name, struct error *e)
{
    struct slot_head head;
    if (value.bytes >= sizeof head) {
        memcpy(&head, value.data, sizeof head);
    }
    if (value.bytes < sizeof head || value.bytes != sizeof head + head.name_bytes) {
        return corrupt(m, e, "an entry of 'slots' has a wrong length");
    }
    *kind = head.kind;
    *name = (struct slice){value.data + sizeof head, head.name_bytes};
    return 0;
}

int block_header_check(const struct memory *m, enum db db, uint64_t block, struct slice value,
                       struct block_header *header, struct error *e)
{
    if (value.bytes >= sizeof *header) {
        memcpy(header, value.data, sizeof *header);
    }
    bool whole = value.bytes >= sizeof *header && header->block == block && header->rows == m->rows &&
                 header->dim == m->dim && header->dtype == (uint32_t)m->dtype && header->count >= 1 &&
                 header->count <= m->rows && (header->kind == KEY_INSTANCE || header->kind == KEY_LABEL);
    if (whole && db == DB_KEYS) {
        whole = value.bytes == m->block_bytes && header->count == m->rows;
    } else if (whole) {
        size_t bytes = values_ids_at(m->rows);
        uint32_t pieces;
        whole = value.bytes >= bytes;
        if (whole) {
            memcpy(&pieces, value.data + values_piece_starts_at(m->rows) + sizeof pieces * m->rows, sizeof pieces);
            bytes += sizeof(uint32_t) * (size_t)header->labels + m->piece_bytes * pieces;
            whole = value.bytes == (bytes < m->values_bytes_min ? m->values_bytes_min : bytes);
        }
    }
    /* Values that have pages of their own begin 16 bytes into one. A page that this very transaction wrote is LMDB's
     * own allocation, aligned to 16 bytes, not to a page. */
    if (whole && (uintptr_t)value.data % 8) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "%s: LMDB placed block %llu of '%s' where it cannot be read",
                         m->path, (unsigned long long)block, db_name(db));
    }
    return whole ? 0
                 : corrupt(m, e, "block %llu of '%s' has a header that does not fit", (unsigned long long)block,
                           db_name(db));
}

int values_row(const struct memory *m, struct slice value, size_t row, const uint32_t **ids, size_t *count,
               struct error *e)
{
    struct block_header header;
    memcpy(&header, value.data, sizeof header);
    const uint32_t *starts = (const uint32_t *)(const void *)(value.data + values_starts_at(m->rows));
    if (row >= m->rows || starts[row] > starts[row + 1] || starts[row + 1] > header.labels) {
        return corrupt(m, e, "the label lists of block %llu do not fit", (unsigned long long)header.block);
    }
    *ids = (const uint32_t *)(const void *)(value.data + values_ids_at(m->rows)) + starts[row];
    *count = starts[row + 1] - starts[row];
    return 0;
}

struct pieces_block values_pieces(const struct memory *m, struct slice value)
{
    struct block_header header;
    memcpy(&header, value.data, sizeof header);
    return (struct pieces_block){
        .ids = value.data + values_ids_at(m->rows) + sizeof(uint32_t) * (size_t)header.labels,
        .starts = (const uint32_t *)(const void *)(value.data + values_piece_starts_at(m->rows)),
        .used = (const uint8_t *)value.data + values_used_at(m->rows),
    };
}

int values_lists_check(const struct memory *m, struct slice value, struct error *e)
{
    struct block_header header;
    memcpy(&header, value.data, sizeof header);
    const uint32_t *labels = (const uint32_t *)(const void *)(value.data + values_starts_at(m->rows));
    const uint32_t *pieces =
        labels + m->rows + 1; /* its last one is bound to the value's length by the header's check */
    bool whole = labels[0] == 0 && pieces[0] == 0 && labels[m->rows] == header.labels;
    for (size_t row = 0; row < m->rows; row++) {
        whole = whole && labels[row] <= labels[row + 1] && pieces[row] <= pieces[row + 1];
    }
    return whole ? 0
                 : corrupt(m, e, "the label lists or word pieces of block %llu do not fit",
                           (unsigned long long)header.block);
}

int offset_key(struct slice cluster, struct slice topic, int32_t partition, struct buffer *out, struct error *e)
{
    bool whole = cluster.bytes <= CLUSTER_BYTES_MAX && topic.bytes >= 1 && topic.bytes <= TOPIC_BYTES_MAX &&
                 partition >= 0 && (cluster.bytes == 0 || !memchr(cluster.data, 0, cluster.bytes)) &&
                 !memchr(topic.data, 0, topic.bytes);
    if (!whole) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "no such cluster, topic or partition can have an offset");
    }
    buffer_clear(out);
    buffer_append(out, cluster.data, cluster.bytes);
    buffer_byte(out, 0);
    buffer_append(out, topic.data, topic.bytes);
    buffer_byte(out, 0);
    for (int shift = 24; shift >= 0; shift -= 8) {
        buffer_byte(out, (char)((uint32_t)partition >> shift));
    }
    return 0;
}

struct read_position offset_decode(struct slice value)
{
    struct offset_value stored;
    memcpy(&stored, value.data, sizeof stored);
    struct read_position position = {
        .next = (int64_t)stored.next,
        .mark = {stored.mark_offset, stored.mark_time_ms, {stored.mark_high, stored.mark_low}},
    };
    memcpy(position.topic_id, stored.topic_id, sizeof position.topic_id);
    return position;
}

int offset_key_decode(const struct memory *m, struct slice key, struct slice *cluster, struct slice *topic,
                      int32_t *partition, struct error *e)
{
    const char *end = key.data + key.bytes;
    const char *cluster_end = memchr(key.data, 0, key.bytes);
    const char *topic_end = cluster_end ? memchr(cluster_end + 1, 0, (size_t)(end - cluster_end - 1)) : NULL;
    if (!topic_end || topic_end == cluster_end + 1 || end - topic_end != 5) {
        return corrupt(m, e, "a key of 'offsets' is malformed");
    }
    *cluster = (struct slice){key.data, (size_t)(cluster_end - key.data)};
    *topic = (struct slice){cluster_end + 1, (size_t)(topic_end - cluster_end - 1)};
    uint32_t number = 0;
    for (size_t i = 1; i <= 4; i++) {
        number = number << 8 | (unsigned char)topic_end[i];
    }
    *partition = (int32_t)number;
    return 0;
}

static int pack_write(void *buffer, const char *data, size_t bytes)
{
    buffer_append(buffer, data, bytes);
    return 0;
}

static void pack_string(msgpack_packer *pack, struct slice s)
{
    msgpack_pack_str(pack, s.bytes);
    msgpack_pack_str_body(pack, s.data, s.bytes);
}

struct digest instance_digest(struct buffer *scratch, struct slice id, const struct slice *labels, size_t count,
                              struct slice text)
{
    msgpack_packer pack;
    msgpack_packer_init(&pack, scratch, pack_write);
    buffer_clear(scratch);
    msgpack_pack_array(&pack, 4);
    pack_string(&pack, slice_of("i"));
    pack_string(&pack, id);
    msgpack_pack_array(&pack, count);
    for (size_t i = 0; i < count; i++) {
        pack_string(&pack, labels[i]);
    }
    pack_string(&pack, text);
    return digest_of(scratch->data, scratch->bytes);
}

struct digest label_digest(struct buffer *scratch, struct slice label, struct slice text)
{
    msgpack_packer pack;
    msgpack_packer_init(&pack, scratch, pack_write);
    buffer_clear(scratch);
    msgpack_pack_array(&pack, 3);
    pack_string(&pack, slice_of("l"));
    pack_string(&pack, label);
    pack_string(&pack, text);
    return digest_of(scratch->data, scratch->bytes);
}
