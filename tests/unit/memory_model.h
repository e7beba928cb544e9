/* What the memory should hold, kept in plain arrays and computed without store/: an oracle for the tests of the memory.
 * Changes are drawn from (seed, number), so a replay needs no log. Everything visible is compared: rows, candidates,
 * labels, word pieces, counts, texts, order, offsets and the digest, which is encoded and summed here a second time. */
#ifndef ENGRAM_TESTS_MEMORY_MODEL_H
#define ENGRAM_TESTS_MEMORY_MODEL_H

#include <ftw.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <cmocka.h>

#include "store/internal.h"

enum { IDS = 400, NAMES = 48, DIM = 12, LABELS_MAX = 6, TEXT_MAX = 48, PIECES_MAX = 24 };

#define FINGERPRINT "00112233445566778899aabbccddeeff"
#define READ_TO(n) (&(struct read_position){.next = (n)})

struct model_pieces {
    size_t count;
    int32_t ids[PIECES_MAX];
};

struct model_instance {
    bool exists;
    size_t labels_count;
    unsigned labels[LABELS_MAX]; /* ascending */
    char text[TEXT_MAX];
    float vector[DIM];
    struct model_pieces pieces;
    int64_t offset;
};

struct model_label {
    bool defined;
    char text[TEXT_MAX];
    float vector[DIM];
    struct model_pieces pieces;
};

struct model {
    struct model_instance instances[IDS];
    struct model_label labels[NAMES];
    int64_t next; /* offset */
    bool no_text;
};

enum change_kind { CHANGE_FOLD, CHANGE_FORGET, CHANGE_DEFINE, CHANGE_UNDEFINE };

struct change {
    enum change_kind kind;
    unsigned which;
    struct model_instance instance; /* of a fold */
    struct model_label label;       /* of a definition */
};

static inline uint64_t random_next(uint64_t *state) /* splitmix64 */
{
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

static inline void id_name(unsigned i, char out[32])
{
    snprintf(out, 32, "id-%u", i * 7919 % 1000);
}

static inline void label_name(unsigned i, char out[32])
{
    snprintf(out, 32, "%clabel/%02u", 'z' - (int)(i % 5), i); /* neither by number nor by length in order */
}

static inline struct slice names_slice(const char *s)
{
    return (struct slice){s, strlen(s)};
}

static inline void random_text(uint64_t *r, char out[TEXT_MAX])
{
    snprintf(out, TEXT_MAX, "%.*s%llu", (int)(random_next(r) % 24), "a text of some length h\xc3\xa9",
             (unsigned long long)(random_next(r) % 100000));
    out[random_next(r) % 8 ? TEXT_MAX - 1 : 0] = '\0'; /* some are empty */
}

static inline void random_vector(uint64_t *r, float out[DIM])
{
    for (size_t i = 0; i < DIM; i++) {
        out[i] = (float)((double)(random_next(r) >> 11) / (double)(1ull << 52) - 1.0);
        if (i % 4 == 0) { /* halfway between two bf16 */
            uint32_t bits;
            memcpy(&bits, &out[i], sizeof bits);
            bits = (bits & 0xFFFF0000u) | 0x8000u;
            memcpy(&out[i], &bits, sizeof bits);
        }
    }
}

/* None, some, many; the first and the last that two bytes hold among them. */
static inline void random_pieces(uint64_t *r, struct model_pieces *out)
{
    out->count = random_next(r) % 4 ? random_next(r) % (PIECES_MAX + 1) : 0;
    for (size_t i = 0; i < out->count; i++) {
        uint64_t dice = random_next(r);
        out->ids[i] = dice % 16 == 0 ? 0 : dice % 16 == 1 ? UINT16_MAX : (int32_t)(dice >> 48);
    }
}

static inline struct change change_draw(uint64_t seed, uint64_t number)
{
    uint64_t r = seed * 1000003 + number * 7;
    struct change c = {.kind = CHANGE_FOLD};
    unsigned dice = (unsigned)(random_next(&r) % 100);
    c.kind = dice < 55 ? CHANGE_FOLD : dice < 75 ? CHANGE_FORGET : dice < 90 ? CHANGE_DEFINE : CHANGE_UNDEFINE;
    c.which = (unsigned)(random_next(&r) % (c.kind <= CHANGE_FORGET ? IDS : NAMES));
    if (c.kind == CHANGE_FOLD) {
        size_t want = random_next(&r) % (LABELS_MAX + 1);
        for (unsigned l = 0; l < NAMES && c.instance.labels_count < want; l++) {
            if (random_next(&r) % NAMES < 2 * want) {
                c.instance.labels[c.instance.labels_count++] = l;
            }
        }
        c.instance.exists = true;
        random_text(&r, c.instance.text);
        random_vector(&r, c.instance.vector);
        random_pieces(&r, &c.instance.pieces);
    } else if (c.kind == CHANGE_DEFINE) {
        c.label.defined = true;
        random_text(&r, c.label.text);
        random_vector(&r, c.label.vector);
        random_pieces(&r, &c.label.pieces);
    }
    return c;
}

static inline void model_apply(struct model *model, const struct change *c, int64_t offset)
{
    switch (c->kind) {
    case CHANGE_FOLD:
        model->instances[c->which] = c->instance;
        model->instances[c->which].offset = offset;
        break;
    case CHANGE_FORGET:
        model->instances[c->which] = (struct model_instance){0};
        break;
    case CHANGE_DEFINE:
        model->labels[c->which] = c->label;
        break;
    case CHANGE_UNDEFINE:
        model->labels[c->which] = (struct model_label){0};
        break;
    }
    model->next = offset + 1;
}

static inline int by_name(const void *a, const void *b)
{
    return slice_compare(*(const struct slice *)a, *(const struct slice *)b);
}

/* The names of an instance's labels, sorted by bytes; `room` holds them. */
static inline void model_label_names(const struct model_instance *i, char room[][32], struct slice *out)
{
    for (size_t k = 0; k < i->labels_count; k++) {
        label_name(i->labels[k], room[k]);
        out[k] = names_slice(room[k]);
    }
    if (i->labels_count) {
        qsort(out, i->labels_count, sizeof *out, by_name);
    }
}

static inline struct memory_key model_key(const float vector[DIM], const struct model_pieces *pieces)
{
    return (struct memory_key){.vector = vector, .pieces = pieces->ids, .pieces_count = pieces->count};
}

static inline int memory_apply(struct transaction *t, const struct change *c, int64_t offset, bool *moved,
                               struct error *e)
{
    char name[32], room[LABELS_MAX][32];
    struct slice labels[LABELS_MAX];
    struct memory_source source = {names_slice("cluster"), names_slice("instances"), 0, offset, offset * 10};
    struct memory_key key = c->kind == CHANGE_FOLD ? model_key(c->instance.vector, &c->instance.pieces)
                                                   : model_key(c->label.vector, &c->label.pieces);
    if (c->kind <= CHANGE_FORGET) {
        id_name(c->which, name);
    } else {
        label_name(c->which, name);
    }
    switch (c->kind) {
    case CHANGE_FOLD:
        model_label_names(&c->instance, room, labels);
        return transaction_fold(t, names_slice(name), names_slice(c->instance.text), labels, c->instance.labels_count,
                                &key, &source, moved, e);
    case CHANGE_FORGET:
        return transaction_forget(t, names_slice(name), NULL, e);
    case CHANGE_DEFINE:
        return transaction_define(t, names_slice(name), names_slice(c->label.text), &key, &source, moved, e);
    case CHANGE_UNDEFINE:
        return transaction_undefine(t, names_slice(name), NULL, e);
    }
    return -1;
}

static inline void memory_apply_ok(struct transaction *t, const struct change *c, int64_t offset)
{
    struct error e = {0};
    if (memory_apply(t, c, offset, NULL, &e)) {
        fail_msg("%s", e.text);
    }
}

/* ---- the digest, a second time ---------------------------------------------------------------------------------- */

static inline void pack(struct buffer *b, const char *s)
{
    size_t n = strlen(s);
    assert_true(n < 256);
    if (n >= 32) {
        buffer_byte(b, (char)0xd9);
    }
    buffer_byte(b, n < 32 ? (char)(0xa0 | n) : (char)n);
    buffer_append(b, s, n);
}

static inline unsigned __int128 digest_term(struct buffer *b)
{
    XXH128_hash_t h = XXH3_128bits(b->data, b->bytes);
    buffer_free(b);
    return (unsigned __int128)h.high64 << 64 | h.low64;
}

static inline struct digest model_digest(const struct model *model)
{
    unsigned __int128 sum = 0;
    for (unsigned i = 0; i < IDS; i++) {
        const struct model_instance *instance = &model->instances[i];
        char name[32], room[LABELS_MAX][32];
        struct slice labels[LABELS_MAX];
        struct buffer b = {0};
        if (!instance->exists) {
            continue;
        }
        id_name(i, name);
        model_label_names(instance, room, labels);
        buffer_byte(&b, (char)0x94);
        pack(&b, "i");
        pack(&b, name);
        buffer_byte(&b, (char)(0x90 | instance->labels_count));
        for (size_t k = 0; k < instance->labels_count; k++) {
            pack(&b, labels[k].data);
        }
        pack(&b, instance->text);
        sum += digest_term(&b);
    }
    for (unsigned i = 0; i < NAMES; i++) {
        char name[32];
        struct buffer b = {0};
        if (!model->labels[i].defined) {
            continue;
        }
        label_name(i, name);
        buffer_byte(&b, (char)0x93);
        pack(&b, "l");
        pack(&b, name);
        pack(&b, model->labels[i].text);
        sum += digest_term(&b);
    }
    return (struct digest){(uint64_t)(sum >> 64), (uint64_t)sum};
}

/* ---- comparing -------------------------------------------------------------------------------------------------- */

/* The bf16 next to x: of the two around it the nearer, of equals the even one. */
static inline uint16_t nearest_bf16(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint32_t down = bits & 0xFFFF0000u, up = down + 0x10000u;
    float a, b;
    memcpy(&a, &down, sizeof a);
    memcpy(&b, &up, sizeof b);
    double below = (double)x - (double)a, above = (double)b - (double)x;
    below = below < 0 ? -below : below;
    above = above < 0 ? -above : above;
    bool take_up = above < below || (above == below && (up >> 16 & 1) == 0);
    return (uint16_t)((take_up ? up : down) >> 16);
}

static inline void row_equals(const struct keys_view *view, const struct keys_block *block, size_t row,
                              const float *vector)
{
    for (size_t i = 0; i < DIM; i++) {
        if (view->dtype == DTYPE_F32) {
            assert_memory_equal(&((const float *)block->vectors)[row * DIM + i], &vector[i], sizeof *vector);
        } else {
            assert_int_equal(((const uint16_t *)block->vectors)[row * DIM + i], nearest_bf16(vector[i]));
        }
    }
}

/* The pieces of a row in use. */
static inline void pieces_equal(const struct snapshot *s, uint64_t slot, const struct model_pieces *want)
{
    const struct keys_view *view = snapshot_keys(s);
    size_t block = 0;
    while (slot >= view->blocks[block].first_slot + view->blocks[block].rows) {
        block++;
    }
    size_t row = slot - view->blocks[block].first_slot;
    struct pieces_block got;
    snapshot_pieces(s, block, &got);
    assert_int_equal(got.used[row], 1);
    assert_int_equal(got.starts[row + 1] - got.starts[row], want->count);
    for (size_t i = 0; i < want->count; i++) {
        size_t at = got.starts[row] + i;
        assert_int_equal(snapshot_piece_bytes(s) == 2 ? ((const uint16_t *)got.ids)[at]
                                                      : ((const uint32_t *)got.ids)[at],
                         want->ids[i]);
    }
}

static inline size_t model_label_count(const struct model *model, unsigned label)
{
    size_t count = 0;
    for (unsigned i = 0; i < IDS; i++) {
        for (size_t k = 0; k < model->instances[i].labels_count; k++) {
            count += model->instances[i].labels[k] == label;
        }
    }
    return count;
}

static inline void instance_equals(const struct model *model, const struct snapshot *s, unsigned which,
                                   const struct memory_instance *got)
{
    const struct model_instance *want = &model->instances[which];
    struct error e = {0};
    char name[32], room[LABELS_MAX][32];
    struct slice labels[LABELS_MAX];
    id_name(which, name);
    assert_true(slice_equal(got->id, names_slice(name)));
    if (model->no_text) {
        assert_null(got->text.data);
    } else {
        assert_non_null(got->text.data);
        assert_true(slice_equal(got->text, names_slice(want->text)));
    }
    assert_int_equal(got->offset, want->offset);
    assert_int_equal(got->time_ms, want->offset * 10);
    assert_int_equal(got->partition, 0);
    assert_true(slice_equal(got->topic, names_slice("instances")));
    if (snapshot_keys(s)) {
        pieces_equal(s, got->slot, &want->pieces);
    }
    assert_int_equal(got->labels_count, want->labels_count);
    model_label_names(want, room, labels);
    struct slice names[LABELS_MAX];
    assert_int_equal(snapshot_label_names(s, got, names, &e), 0);
    for (size_t k = 0; k < got->labels_count; k++) {
        assert_true(k == 0 || got->labels[k] > got->labels[k - 1]);
        assert_true(slice_equal(names[k], labels[k]));
    }
}

static inline unsigned which_named(struct slice name, bool label)
{
    for (unsigned i = 0; i < (label ? NAMES : IDS); i++) {
        char known[32];
        if (label) {
            label_name(i, known);
        } else {
            id_name(i, known);
        }
        if (slice_equal(name, names_slice(known))) {
            return i;
        }
    }
    fail_msg("an unknown name: %.*s", (int)name.bytes, name.data);
    return 0;
}

/* One row of the view that is in use belongs to one thing of the model; marks it as seen. */
static inline void candidate_equals(const struct model *model, const struct snapshot *s, const struct keys_block *block,
                                    size_t row, bool *seen_instance, bool *seen_label)
{
    const struct keys_view *view = snapshot_keys(s);
    uint64_t slot = block->first_slot + row;
    struct error e = {0};
    const uint32_t *ids;
    size_t count;
    assert_int_equal(snapshot_values(s, slot, &ids, &count, &e), 0);
    if (block->kind == KEY_LABEL) {
        struct memory_label label;
        assert_int_equal(count, 1);
        assert_int_equal(snapshot_label(s, ids[0], &label, &e), 1);
        unsigned which = which_named(label.name, true);
        assert_false(seen_label[which]);
        seen_label[which] = true;
        assert_true(model->labels[which].defined);
        row_equals(view, block, row, model->labels[which].vector);
        pieces_equal(s, slot, &model->labels[which].pieces);
        assert_true(block->ties[row] == XXH3_64bits(label.name.data, label.name.bytes));
    } else {
        struct memory_instance instance;
        assert_int_equal(block->kind, KEY_INSTANCE);
        assert_int_equal(snapshot_instance_at(s, slot, &instance, &e), 1);
        assert_int_equal(instance.slot, slot);
        unsigned which = which_named(instance.id, false);
        assert_false(seen_instance[which]);
        seen_instance[which] = true;
        assert_true(count == instance.labels_count && count == model->instances[which].labels_count);
        row_equals(view, block, row, model->instances[which].vector);
        assert_true(block->ties[row] == XXH3_64bits(instance.id.data, instance.id.bytes));
    }
}

static inline void keys_equal(const struct model *model, const struct snapshot *s)
{
    const struct keys_view *view = snapshot_keys(s);
    bool seen_instance[IDS] = {0}, seen_label[NAMES] = {0};
    size_t used = 0;
    assert_int_equal(view->dim, DIM);
    for (size_t b = 0; b < view->count; b++) {
        const struct keys_block *block = &view->blocks[b];
        assert_int_equal((uintptr_t)block->vectors % 64, 0);
        assert_int_equal((uintptr_t)block->ties % 8, 0);
        struct pieces_block pieces;
        snapshot_pieces(s, b, &pieces);
        assert_int_equal((uintptr_t)pieces.ids % snapshot_piece_bytes(s), 0);
        assert_int_equal((uintptr_t)pieces.starts % 4, 0);
        assert_int_equal(pieces.starts[0], 0);
        for (size_t row = 0; row < block->rows; row++) {
            used += pieces.used[row];
            assert_true(pieces.used[row] || pieces.starts[row] == pieces.starts[row + 1]);
            assert_true(block->candidate[row] <= 1 && block->candidate[row] <= pieces.used[row]);
            if (block->candidate[row]) {
                candidate_equals(model, s, block, row, seen_instance, seen_label);
            }
        }
    }
    for (unsigned i = 0; i < IDS; i++) {
        assert_int_equal(seen_instance[i], model->instances[i].exists && model->instances[i].labels_count > 0);
        used -= model->instances[i].exists;
    }
    for (unsigned i = 0; i < NAMES; i++) {
        assert_int_equal(seen_label[i], model->labels[i].defined);
        used -= model->labels[i].defined;
    }
    assert_int_equal(used, 0);
}

struct order_check {
    struct buffer last;
    size_t count;
};

static inline void in_order(struct order_check *o, struct slice name)
{
    assert_true(o->count == 0 || slice_compare((struct slice){o->last.data, o->last.bytes}, name) < 0);
    buffer_clear(&o->last);
    buffer_append(&o->last, name.data, name.bytes);
    o->count++;
}

static inline int label_in_order(const struct memory_label *l, void *context)
{
    in_order(context, l->name);
    return 0;
}

static inline int instance_in_order(const struct memory_instance *i, void *context)
{
    in_order(context, i->id);
    return 0;
}

static inline void labels_equal(const struct model *model, const struct snapshot *s, size_t *labels, size_t *keys)
{
    struct error e = {0};
    for (unsigned i = 0; i < NAMES; i++) {
        char name[32];
        struct memory_label got;
        size_t count = model_label_count(model, i);
        bool defined = model->labels[i].defined;
        label_name(i, name);
        int found = snapshot_label_named(s, names_slice(name), &got, &e);
        assert_int_equal(found, defined || count > 0);
        if (!found) {
            continue;
        }
        *labels += 1;
        *keys += defined;
        assert_int_equal(got.defined, defined);
        assert_int_equal(got.instances, count);
        assert_true(slice_equal(got.topic, names_slice(defined ? "instances" : "")));
        assert_true(got.id < NAMES); /* freed ids are given out again */
        if (defined && !model->no_text) {
            assert_non_null(got.text.data);
            assert_true(slice_equal(got.text, names_slice(model->labels[i].text)));
        } else {
            assert_null(got.text.data);
        }
    }
}

static inline void stats_equal(const struct model *model, const struct snapshot *s, size_t instances, size_t labels,
                               size_t keys)
{
    struct error e = {0};
    struct memory_stats stats;
    struct digest digest = model_digest(model);
    assert_int_equal(snapshot_stats(s, &stats, &e), 0);
    assert_int_equal(stats.instances, instances);
    assert_int_equal(stats.labels, labels);
    assert_int_equal(stats.label_keys, keys);
    assert_true(stats.digest.high == digest.high && stats.digest.low == digest.low);
    assert_int_equal(stats.version, model->next);
    assert_int_equal(snapshot_version(s), model->next);
    assert_int_equal(stats.local_changes, 0);
    assert_int_equal(stats.offsets_count, model->next ? 1 : 0);
    if (model->next) {
        assert_string_equal(stats.offsets[0].cluster, "cluster");
        assert_string_equal(stats.offsets[0].topic, "instances");
        assert_int_equal(stats.offsets[0].position.next, model->next);
        assert_int_equal(stats.offsets[0].partition, 0);
    }
    assert_string_equal(stats.fingerprint, FINGERPRINT);
    memory_stats_free(&stats);
}

/* Everything that the snapshot shows is what the model holds. */
static inline void snapshot_equals(const struct model *model, const struct snapshot *s)
{
    struct error e = {0};
    size_t instances = 0, labels = 0, keys = 0;
    for (unsigned i = 0; i < IDS; i++) {
        char name[32];
        struct memory_instance got;
        id_name(i, name);
        int found = snapshot_instance(s, names_slice(name), &got, &e);
        assert_int_equal(found, model->instances[i].exists);
        if (found) {
            instances++;
            instance_equals(model, s, i, &got);
        }
    }
    labels_equal(model, s, &labels, &keys);
    if (snapshot_keys(s)) {
        keys_equal(model, s);
    }
    stats_equal(model, s, instances, labels, keys);
    struct order_check order = {0};
    assert_int_equal(snapshot_each_label(s, label_in_order, &order, &e), 0);
    assert_int_equal(order.count, labels);
    order.count = 0;
    assert_int_equal(snapshot_each_instance(s, instance_in_order, &order, &e), 0);
    assert_int_equal(order.count, instances);
    buffer_free(&order.last);
}

/* As memory_verify_apart, in this process. */
static inline int verify_here(struct memory *m, void (*report)(const char *line, void *context), void *context,
                              uint64_t *problems, struct error *e)
{
    return verify_open(m, &(struct verify_report){.problem = report, .context = context}, problems, e);
}

static inline void print_problem(const char *line, void *context)
{
    (void)context;
    print_error("verify: %s\n", line);
}

static inline void memory_equals(const struct model *model, struct memory *m)
{
    struct error e = {0};
    struct snapshot *s;
    uint64_t problems;
    if (memory_snapshot(m, &s, &e)) {
        fail_msg("%s", e.text);
    }
    snapshot_equals(model, s);
    snapshot_release(s);
    assert_int_equal(verify_here(m, print_problem, NULL, &problems, &e), 0);
    assert_int_equal(problems, 0);
}

/* ---- folders ---------------------------------------------------------------------------------------------------- */

/* cmocka's setup and teardown: *state is the path of a fresh folder; gone afterwards, also when the test fails. */
static int folder_setup(void **state)
{
    const char *temporary = getenv("TMPDIR");
    char *path = mem_alloc(256);
    snprintf(path, 256, "%s/engram-test-memory-XXXXXX", temporary ? temporary : "/tmp");
    *state = path;
    return mkdtemp(path) ? 0 : -1;
}

static int remove_one(const char *path, const struct stat *s, int type, struct FTW *walk)
{
    (void)s;
    (void)type;
    (void)walk;
    return remove(path);
}

static int folder_teardown(void **state)
{
    int result = nftw(*state, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    free(*state);
    return result;
}

/* A key without word pieces. */
#define KEY(v) (&(struct memory_key){.vector = (v)})

#define memory_test(f) cmocka_unit_test_setup_teardown(f, folder_setup, folder_teardown)

/* Word pieces of four bytes beside f32, of two beside bf16. */
static inline struct memory_options options_for(const char *path, enum dtype dtype)
{
    return (struct memory_options){.path = path,
                                   .dtype = dtype,
                                   .dim = DIM,
                                   .fingerprint = FINGERPRINT,
                                   .model_name = "tiny",
                                   .store_text = true,
                                   .map_size = 1 << 30,
                                   .vocabulary = dtype == DTYPE_F32 ? UINT16_MAX + 2 : UINT16_MAX + 1,
                                   .block_rows = 64};
}

static inline struct memory *open_ok(enum memory_mode mode, const struct memory_options *options)
{
    struct error e = {0};
    struct memory *m;
    if (memory_open(&m, mode, options, &e)) {
        fail_msg("%s", e.text);
    }
    return m;
}

static inline struct transaction *begin_ok(struct memory *m)
{
    struct error e = {0};
    struct transaction *t;
    if (memory_begin(m, &t, &e)) {
        fail_msg("%s", e.text);
    }
    return t;
}

static inline void commit_ok(struct transaction *t)
{
    struct error e = {0};
    if (transaction_commit(t, &e)) {
        fail_msg("%s", e.text);
    }
}

/* Draws changes [from, to) and applies them to both in one transaction. */
static inline void batch_ok(struct memory *m, struct model *model, uint64_t seed, int64_t from, int64_t to)
{
    struct error e = {0};
    struct transaction *t = begin_ok(m);
    for (int64_t i = from; i < to; i++) {
        struct change c = change_draw(seed, (uint64_t)i);
        memory_apply_ok(t, &c, i);
        model_apply(model, &c, i);
    }
    assert_int_equal(transaction_offset(t, names_slice("cluster"), names_slice("instances"), 0, READ_TO(to), &e), 0);
    commit_ok(t);
}

static inline void path_in(const char *folder, const char *name, char out[512])
{
    assert_true(snprintf(out, 512, "%s/%s", folder, name) < 512);
}

/* A child that ends with its parent, also when that is killed. */
static inline pid_t fork_child(void)
{
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0 && (prctl(PR_SET_PDEATHSIG, SIGKILL) || getppid() != parent)) {
        _exit(1);
    }
    assert_true(pid >= 0);
    return pid;
}

static inline void refused(enum memory_mode mode, const struct memory_options *options, enum error_code code,
                           const char *word)
{
    struct error e = {0};
    struct memory *m;
    assert_int_equal(memory_open(&m, mode, options, &e), -1);
    assert_null(m);
    assert_string_equal(error_code_name(e.code), error_code_name(code));
    assert_int_equal(e.kind, ERROR_FATAL);
    if (!strstr(e.text, word)) {
        fail_msg("\"%s\" does not say \"%s\"", e.text, word);
    }
    assert_null(strchr(e.text, '\n'));
}

static inline void filled(const struct memory_options *options, struct model *model, int64_t changes)
{
    struct memory *m = open_ok(MEMORY_WRITE, options);
    for (int64_t at = 0; at < changes; at += 100) {
        batch_ok(m, model, 11, at, at + 100);
    }
    memory_close(m);
}

#endif
