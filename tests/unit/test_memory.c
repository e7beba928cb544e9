/* The memory against its model: thousands of random folds, replaces, forgets, definitions and undefinitions, in
 * batches, with everything visible compared after each; snapshots that outlive commits; digests in any order; threads;
 * label ids. */
#define _XOPEN_SOURCE 700 /* nftw, in the model */
#include <pthread.h>

#include "memory_model.h"

static void follows_model(const char *path, enum dtype dtype, uint64_t seed, bool store_text)
{
    struct memory_options options = options_for(path, dtype);
    options.store_text = store_text;
    struct model *model = mem_zero(1, sizeof *model);
    model->no_text = !store_text;
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    uint64_t r = seed;
    int64_t at = 0;
    for (int batch = 0; batch < 50; batch++) {
        int64_t size = batch % 3 ? (int64_t)(random_next(&r) % 160) + 1 : 1;
        batch_ok(m, model, seed, at, at + size);
        at += size;
        memory_equals(model, m);
        if (batch % 17 == 16) {
            memory_close(m);
            m = open_ok(MEMORY_WRITE, &options);
            memory_equals(model, m);
        }
    }
    memory_close(m);
    free(model);
}

static void test_model_f32(void **state)
{
    follows_model(*state, DTYPE_F32, 1, true);
}

static void test_model_bf16(void **state)
{
    follows_model(*state, DTYPE_BF16, 2, true);
}

static void test_model_without_text(void **state)
{
    follows_model(*state, DTYPE_BF16, 3, false);
}

/* Snapshots taken before each of ten commits still show what was there then. */
static void test_snapshots_are_isolated(void **state)
{
    enum { LIVE = 10 };
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct model *model = mem_zero(1, sizeof *model);
    struct model *then = mem_zero(LIVE, sizeof *then);
    struct snapshot *snapshots[LIVE];
    struct error e = {0};
    for (int i = 0; i < LIVE; i++) {
        then[i] = *model;
        assert_int_equal(memory_snapshot(m, &snapshots[i], &e), 0);
        batch_ok(m, model, 4, i * 90, (i + 1) * 90);
    }
    for (int i = LIVE - 1; i >= 0; i--) {
        snapshot_equals(&then[i], snapshots[i]);
        snapshot_release(snapshots[i]);
        memory_equals(model, m);
    }
    struct snapshot *look;
    assert_int_equal(memory_look(m, &look, &e), 0);
    assert_null(snapshot_keys(look));
    snapshot_equals(model, look);
    snapshot_release(look);
    memory_close(m);
    free(then);
    free(model);
}

/* An uncommitted transaction is seen by nobody, and leaves nothing when aborted. */
static void test_abort_leaves_nothing(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_BF16);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct model *model = mem_zero(1, sizeof *model);
    batch_ok(m, model, 5, 0, 300);
    struct transaction *t = begin_ok(m);
    for (int64_t i = 300; i < 700; i++) {
        struct change c = change_draw(5, (uint64_t)i);
        memory_apply_ok(t, &c, i);
    }
    memory_equals(model, m);
    transaction_abort(t);
    memory_equals(model, m);
    batch_ok(m, model, 5, 300, 320);
    memory_equals(model, m);
    memory_close(m);
    free(model);
}

/* The same set, reached in other orders and over detours, has the same digest; another set has another. */
static void test_digest_knows_no_order(void **state)
{
    struct model *model = mem_zero(1, sizeof *model);
    for (int64_t i = 0; i < 900; i++) {
        struct change c = change_draw(6, (uint64_t)i);
        model_apply(model, &c, i);
    }
    struct digest want = model_digest(model);
    for (int run = 0; run < 3; run++) {
        char path[300];
        snprintf(path, sizeof path, "%s/run-%d", (const char *)*state, run); /* made by the open */
        struct memory_options options = options_for(path, DTYPE_BF16);
        struct memory *m = open_ok(MEMORY_WRITE, &options);
        struct model *detour = mem_zero(1, sizeof *detour);
        struct error e = {0};
        batch_ok(m, detour, 7 + (uint64_t)run, 0, 500); /* something else first */
        struct transaction *t = begin_ok(m);
        for (unsigned k = 0; k < IDS + NAMES; k++) {
            unsigned i = run == 1 ? IDS + NAMES - 1 - k : k * 101 % (IDS + NAMES);
            struct change c = {.which = i < IDS ? i : i - IDS};
            if (i < IDS) {
                c.instance = model->instances[i];
                c.kind = c.instance.exists ? CHANGE_FOLD : CHANGE_FORGET;
            } else {
                c.label = model->labels[i - IDS];
                c.kind = c.label.defined ? CHANGE_DEFINE : CHANGE_UNDEFINE;
            }
            memory_apply_ok(t, &c, k);
        }
        commit_ok(t);
        struct snapshot *s;
        struct memory_stats stats;
        assert_int_equal(memory_look(m, &s, &e), 0);
        assert_int_equal(snapshot_stats(s, &stats, &e), 0);
        assert_true(stats.digest.high == want.high && stats.digest.low == want.low);
        memory_stats_free(&stats);
        snapshot_release(s);
        t = begin_ok(m);
        struct change c = change_draw(6, 0);
        c.kind = CHANGE_FOLD;
        snprintf(c.instance.text, sizeof c.instance.text, "another");
        memory_apply_ok(t, &c, 0);
        commit_ok(t);
        assert_int_equal(memory_look(m, &s, &e), 0);
        assert_int_equal(snapshot_stats(s, &stats, &e), 0);
        assert_false(stats.digest.high == want.high && stats.digest.low == want.low);
        memory_stats_free(&stats);
        snapshot_release(s);
        memory_close(m);
        free(detour);
    }
    free(model);
}

/* One known digest, computed elsewhere: xxhash's own tool over MessagePack bytes written by hand. */
static void test_digest_known(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct error e = {0};
    float vector[DIM] = {1};
    char long_text[301];
    memset(long_text, 'x', 300);
    long_text[300] = '\0';
    struct slice labels[] = {names_slice("a"), names_slice("b")};
    struct memory_source by_hand = {0};
    struct transaction *t = begin_ok(m);
    assert_int_equal(
        transaction_fold(t, names_slice("k"), names_slice(long_text), labels, 2, KEY(vector), &by_hand, NULL, &e), 0);
    assert_int_equal(transaction_define(t, names_slice("a"), names_slice(""), KEY(vector), &by_hand, NULL, &e), 0);
    commit_ok(t);
    char instance[400] = "\x94\xa1i\xa1k\x92\xa1"
                         "a\xa1"
                         "b\xda\x01\x2c"; /* str 16, 300 bytes */
    memcpy(instance + 14 - 1, long_text, 300);
    assert_int_equal((unsigned char)instance[12], 0x2c);
    XXH128_hash_t first = XXH3_128bits(instance, 313);
    XXH128_hash_t second = XXH3_128bits("\x93\xa1l\xa1"
                                        "a\xa0",
                                        6);
    unsigned __int128 sum =
        ((unsigned __int128)first.high64 << 64 | first.low64) + ((unsigned __int128)second.high64 << 64 | second.low64);
    struct snapshot *s;
    struct memory_stats stats;
    assert_int_equal(memory_look(m, &s, &e), 0);
    assert_int_equal(snapshot_stats(s, &stats, &e), 0);
    assert_true(stats.digest.high == (uint64_t)(sum >> 64) && stats.digest.low == (uint64_t)sum);
    assert_int_equal(stats.local_changes, 2);
    memory_stats_free(&stats);
    snapshot_release(s);
    memory_close(m);
}

static uint64_t slot_of(struct memory *m, const char *id)
{
    struct snapshot *s;
    struct memory_instance got;
    struct error e = {0};
    assert_int_equal(memory_look(m, &s, &e), 0);
    assert_int_equal(snapshot_instance(s, names_slice(id), &got, &e), 1);
    snapshot_release(s);
    return got.slot;
}

static int id_below(const struct memory_label *l, void *bound)
{
    assert_true(l->id < *(const uint32_t *)bound);
    return 0;
}

/* A replace keeps the slot, a forget gives it to the next of the kind; label ids are given again too. */
static void test_slots_and_ids_are_reused(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct error e = {0};
    struct memory_source source = {names_slice("c"), names_slice("instances"), 0, 1, 1};
    float vector[DIM] = {0.5f};
    char name[32];
    struct slice label = names_slice(name);
    for (int i = 0; i < 200; i++) {
        struct transaction *t = begin_ok(m);
        snprintf(name, sizeof name, "label-%d", i);
        label = names_slice(name);
        char id[32];
        snprintf(id, sizeof id, "id-%d", i % 70);
        assert_int_equal(
            transaction_fold(t, names_slice(id), names_slice("t"), &label, 1, KEY(vector), &source, NULL, &e), 0);
        commit_ok(t);
    }
    uint64_t slot = slot_of(m, "id-40");
    struct transaction *t = begin_ok(m);
    bool found;
    assert_int_equal(transaction_forget(t, names_slice("id-40"), &found, &e), 0);
    assert_true(found);
    assert_int_equal(transaction_forget(t, names_slice("id-40"), &found, &e), 0);
    assert_false(found);
    assert_int_equal(transaction_undefine(t, names_slice("never"), &found, &e), 0);
    assert_false(found);
    commit_ok(t);
    struct snapshot *s;
    assert_int_equal(memory_snapshot(m, &s, &e), 0);
    const struct keys_block *block = &snapshot_keys(s)->blocks[slot / 64];
    for (size_t i = 0; i < DIM; i++) {
        assert_true(((const float *)block->vectors)[slot % 64 * DIM + i] == 0);
    }
    assert_int_equal(block->candidate[slot % 64], 0);
    /* 70 instances name at most 71 labels at a time */
    assert_int_equal(snapshot_each_label(s, id_below, &(uint32_t){72}, &e), 0);
    snapshot_release(s);
    t = begin_ok(m);
    assert_int_equal(transaction_define(t, names_slice("a label"), names_slice("t"), KEY(vector), &source, NULL, &e),
                     0);
    assert_int_equal(
        transaction_fold(t, names_slice("other"), names_slice("t"), NULL, 0, KEY(vector), &source, NULL, &e), 0);
    commit_ok(t);
    assert_int_equal(slot_of(m, "other"), slot);
    memory_close(m);
}

/* Whether the memory knows how far this partition was read, and then *out. */
static bool position_find(const struct snapshot *s, struct slice cluster, struct slice topic, int32_t partition,
                          struct read_position *out)
{
    struct memory_stats stats;
    struct error e = {0};
    bool found = false;
    assert_int_equal(snapshot_stats(s, &stats, &e), 0);
    for (size_t i = 0; i < stats.offsets_count && !found; i++) {
        const struct memory_offset *o = &stats.offsets[i];
        found = slice_equal(slice_of(o->cluster), cluster) && slice_equal(slice_of(o->topic), topic) &&
                o->partition == partition;
        *out = o->position;
    }
    memory_stats_free(&stats);
    return found;
}

/* A key seen in another partition is reported; hand-made changes are counted; offsets sum to the version. */
static void test_sources_and_offsets(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct error e = {0};
    float vector[DIM] = {0.5f};
    struct slice c = names_slice("c"), topic = names_slice("instances"), id = names_slice("x"), text = names_slice("t");
    struct memory_source first = {c, topic, 0, 1, 1}, second = {c, topic, 1, 1, 1}, by_hand = {0};
    bool moved = true;
    struct transaction *t = begin_ok(m);
    assert_int_equal(transaction_fold(t, id, text, NULL, 0, KEY(vector), &first, &moved, &e), 0);
    assert_false(moved);
    assert_int_equal(transaction_fold(t, id, text, NULL, 0, KEY(vector), &second, &moved, &e), 0);
    assert_true(moved);
    assert_int_equal(transaction_fold(t, id, text, NULL, 0, KEY(vector), &second, &moved, &e), 0);
    assert_false(moved);
    assert_int_equal(transaction_fold(t, id, text, NULL, 0, KEY(vector), &by_hand, &moved, &e), 0);
    assert_false(moved);
    assert_int_equal(transaction_define(t, id, text, KEY(vector), &first, &moved, &e), 0);
    assert_false(moved);
    assert_int_equal(transaction_define(t, id, text, KEY(vector), &second, &moved, &e), 0);
    assert_true(moved);
    assert_int_equal(transaction_local_change(t, &e), 0);
    assert_int_equal(transaction_caught_up(t, 1234567, &e), 0);
    assert_int_equal(transaction_offset(t, c, topic, 0, READ_TO(10), &e), 0);
    assert_int_equal(transaction_offset(t, c, topic, 1, READ_TO(5), &e), 0);
    assert_int_equal(transaction_offset(t, names_slice("d"), topic, 1, READ_TO(100), &e), 0);
    assert_int_equal(transaction_offset(t, c, topic, 0, READ_TO(12), &e), 0);
    commit_ok(t);
    struct snapshot *s;
    struct memory_stats stats;
    struct memory_label label;
    struct read_position read;
    assert_int_equal(memory_look(m, &s, &e), 0);
    assert_int_equal(snapshot_version(s), 117);
    assert_int_equal(snapshot_label_named(s, id, &label, &e), 1);
    assert_int_equal(label.partition, 1);
    assert_true(slice_equal(label.topic, topic));
    assert_true(position_find(s, c, topic, 1, &read));
    assert_int_equal(read.next, 5);
    assert_false(record_mark_known(&read.mark));
    assert_true(position_find(s, names_slice("d"), topic, 1, &read));
    assert_int_equal(read.next, 100);
    assert_false(position_find(s, c, topic, 2, &read));
    assert_int_equal(snapshot_stats(s, &stats, &e), 0);
    assert_int_equal(stats.local_changes, 2);
    assert_int_equal(stats.caught_up_ms, 1234567);
    assert_int_equal(stats.offsets_count, 3);
    assert_string_equal(stats.model_name, "tiny");
    assert_true(stats.bytes > 0 && stats.bytes % 4096 == 0);
    memory_stats_free(&stats);
    snapshot_release(s);
    memory_close(m);
}

/* What is known of a partition's last record and of its topic: kept where a later position does not know it. */
static void test_positions(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct error e = {0};
    struct slice c = names_slice("c"), topic = names_slice("labels");
    const struct read_position full = {
        .next = 8, .mark = {7, 1234567, {UINT64_MAX, 3}}, .topic_id = {1, [TOPIC_ID_BYTES - 1] = 255}};
    const struct read_position steps[] = {
        {.next = 0},
        {.next = 5, .mark = record_mark_of(4, -1, names_slice("key"), (struct slice){0})},
        full,
        {.next = 9, .mark = {8, 1234568, {0, 1}}},
        {.next = 10, .topic_id = {2}},
        {.next = 10},
    };
    struct read_position expected = {0}, read;
    struct snapshot *s;
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        struct transaction *t = begin_ok(m);
        assert_int_equal(transaction_offset(t, c, topic, 3, &steps[i], &e), 0);
        assert_int_equal(transaction_offset(t, c, topic, 4, READ_TO(1), &e), 0); /* another one stays apart */
        commit_ok(t);
        expected.next = steps[i].next;
        expected.mark = record_mark_known(&steps[i].mark) ? steps[i].mark : expected.mark;
        if (steps[i].topic_id[0]) {
            memcpy(expected.topic_id, steps[i].topic_id, sizeof expected.topic_id);
        }
        memory_close(m);
        m = open_ok(MEMORY_WRITE, &options);
        assert_int_equal(memory_look(m, &s, &e), 0);
        assert_true(position_find(s, c, topic, 3, &read));
        assert_memory_equal(&read, &expected, sizeof read);
        assert_int_equal(snapshot_version(s), (uint64_t)expected.next + 1);
        snapshot_release(s);
    }
    memory_close(m);
}

static void fold_refused(struct transaction *t, const int32_t *pieces, size_t count)
{
    struct error e = {0};
    float vector[DIM] = {0.5f};
    struct memory_source by_hand = {0};
    struct memory_key key = {vector, pieces, count};
    assert_int_equal(transaction_fold(t, names_slice("x"), names_slice("t"), NULL, 0, &key, &by_hand, NULL, &e), -1);
    assert_int_equal(e.code, E_INTERNAL);
    e = (struct error){0};
    assert_int_equal(transaction_define(t, names_slice("x"), names_slice("t"), &key, &by_hand, NULL, &e), -1);
    assert_int_equal(e.code, E_INTERNAL);
}

static void pieces_of_first_row(struct memory *m, size_t piece_bytes, const int32_t *want, size_t count)
{
    struct error e = {0};
    struct snapshot *s;
    struct pieces_block got;
    assert_int_equal(memory_snapshot(m, &s, &e), 0);
    assert_int_equal(snapshot_piece_bytes(s), piece_bytes);
    snapshot_pieces(s, 0, &got);
    assert_int_equal(got.used[0], 1);
    assert_int_equal(got.starts[1] - got.starts[0], count);
    for (size_t i = 0; i < count; i++) {
        uint32_t id = piece_bytes == 2 ? ((const uint16_t *)got.ids)[i] : ((const uint32_t *)got.ids)[i];
        assert_int_equal(id, want[i]);
    }
    snapshot_release(s);
}

/* The vocabulary decides the width once; what does not fit is refused before anything is touched; a text may be long.
 */
static void test_widths_of_word_pieces(void **state)
{
    enum { LONG = 65535 };
    const size_t vocabularies[] = {1, 65536, 65537, 0}, widths[] = {2, 2, 4, 4};
    int32_t *pieces = mem_alloc((LONG + 1) * sizeof *pieces);
    for (int i = 0; i < 4; i++) {
        char path[300];
        snprintf(path, sizeof path, "%s/%d", (const char *)*state, i);
        struct memory_options options = options_for(path, DTYPE_BF16);
        options.vocabulary = vocabularies[i];
        int32_t most = widths[i] == 2 ? UINT16_MAX : INT32_MAX, least = -1;
        struct memory *m = open_ok(MEMORY_WRITE, &options);
        struct error e = {0};
        struct transaction *t = begin_ok(m);
        for (int k = 0; k < LONG + 1; k++) {
            pieces[k] = k % 5 ? k * 7919 % most : most - k % 2;
        }
        fold_refused(t, pieces, LONG + 1);
        fold_refused(t, &least, 1);
        if (widths[i] == 2) {
            fold_refused(t, &(int32_t){UINT16_MAX + 1}, 1);
        }
        float vector[DIM] = {0.5f};
        struct memory_source by_hand = {0};
        struct memory_key key = {vector, pieces, LONG};
        assert_int_equal(transaction_fold(t, names_slice("y"), names_slice("t"), NULL, 0, &key, &by_hand, NULL, &e), 0);
        memset(pieces, 0, LONG * sizeof *pieces); /* it was copied */
        commit_ok(t);
        memory_close(m);
        for (int k = 0; k < LONG; k++) {
            pieces[k] = k % 5 ? k * 7919 % most : most - k % 2;
        }
        options.vocabulary = widths[i] == 2 ? 0 : 100; /* an existing memory keeps its own */
        m = open_ok(MEMORY_WRITE, &options);
        pieces_of_first_row(m, widths[i], pieces, LONG);
        t = begin_ok(m); /* the block is decoded and written anew around another row */
        key.pieces_count = 3;
        assert_int_equal(transaction_fold(t, names_slice("z"), names_slice("t"), NULL, 0, &key, &by_hand, NULL, &e), 0);
        commit_ok(t);
        pieces_of_first_row(m, widths[i], pieces, LONG);
        t = begin_ok(m);
        assert_int_equal(transaction_fold(t, names_slice("y"), names_slice("t"), NULL, 0, &key, &by_hand, NULL, &e), 0);
        commit_ok(t);
        pieces_of_first_row(m, widths[i], pieces, 3);
        memory_close(m);
    }
    free(pieces);
}

static void meta_pages_read(const char *folder, char pages[2 * 4096])
{
    char path[512];
    snprintf(path, sizeof path, "%s/data.mdb", folder);
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    assert_int_equal(fread(pages, 4096, 2, file), 2);
    fclose(file);
}

/* A stage stores the offsets that it found at each start: where the map is full, that must not need a page. */
static void test_the_same_offset_writes_nothing(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct error e = {0};
    struct slice c = names_slice("c"), topic = names_slice("labels");
    char before[2 * 4096], after[2 * 4096];
    for (int64_t next = 0; next < 2; next++) {
        struct transaction *t = begin_ok(m);
        meta_pages_read(options.path, before);
        assert_int_equal(transaction_offset(t, c, topic, 0, READ_TO(next), &e), 0);
        commit_ok(t);
        meta_pages_read(options.path, after);
        assert_memory_not_equal(before, after, sizeof before);
        t = begin_ok(m);
        assert_int_equal(transaction_offset(t, c, topic, 0, READ_TO(next), &e), 0);
        commit_ok(t);
        meta_pages_read(options.path, before);
        assert_memory_equal(before, after, sizeof before);
    }
    memory_close(m);
}

/* Names and label lists that the record format never lets through are refused, and leave the transaction whole. */
static void test_bad_names_are_refused(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct error e = {0};
    float vector[DIM] = {0.5f};
    char name[256];
    memset(name, 'n', sizeof name);
    struct slice longest = {name, 255}, too_long = {name, 256};
    struct slice unsorted[] = {names_slice("b"), names_slice("a")};
    struct memory_source by_hand = {0};
    struct transaction *t = begin_ok(m);
    assert_int_equal(transaction_fold(t, too_long, longest, NULL, 0, KEY(vector), &by_hand, NULL, &e), -1);
    assert_int_equal(e.code, E_LIMIT);
    assert_int_equal(transaction_fold(t, longest, longest, &too_long, 1, KEY(vector), &by_hand, NULL, &e), -1);
    assert_int_equal(transaction_fold(t, longest, longest, unsorted, 2, KEY(vector), &by_hand, NULL, &e), -1);
    assert_int_equal(transaction_forget(t, (struct slice){0}, NULL, &e), -1);
    assert_int_equal(transaction_fold(t, longest, longest, &longest, 1, KEY(vector), &by_hand, NULL, &e), 0);
    assert_int_equal(transaction_define(t, longest, longest, KEY(vector), &by_hand, NULL, &e), 0);
    commit_ok(t);
    struct snapshot *s;
    struct memory_label label;
    struct memory_instance instance;
    assert_int_equal(memory_look(m, &s, &e), 0);
    assert_int_equal(snapshot_label_named(s, longest, &label, &e), 1);
    assert_int_equal(snapshot_instance(s, longest, &instance, &e), 1);
    assert_int_equal(snapshot_instance(s, too_long, &instance, &e), 0);
    assert_int_equal(snapshot_instance(s, (struct slice){0}, &instance, &e), 0);
    snapshot_release(s);
    memory_close(m);
}

/* ---- threads ---------------------------------------------------------------------------------------------------- */

enum { READER_THREADS = 3, THREAD_BATCHES = 60 };

struct shared_reading {
    struct memory *m;
    pthread_mutex_t lock;
    bool done; /* covered by lock */
    uint64_t snapshots, mismatches;
};

/* Each batch folds the same 96 ids with one label, named by its number: whoever looks must see one number in all. */
static void *read_all(void *context)
{
    struct shared_reading *shared = context;
    struct error e = {0};
    uint64_t snapshots = 0, mismatches = 0;
    for (bool done = false; !done; snapshots++) {
        struct snapshot *s;
        pthread_mutex_lock(&shared->lock);
        done = shared->done;
        pthread_mutex_unlock(&shared->lock);
        if (memory_snapshot(shared->m, &s, &e)) {
            mismatches++;
            break;
        }
        const struct keys_view *view = snapshot_keys(s);
        uint64_t rows = 0;
        for (size_t b = 0; b < view->count; b++) {
            for (size_t row = 0; row < view->blocks[b].rows; row++) {
                const float *vector = (const float *)view->blocks[b].vectors + row * DIM;
                const uint32_t *ids;
                size_t count;
                rows += view->blocks[b].candidate[row];
                mismatches += vector[0] != (float)snapshot_version(s);
                mismatches += snapshot_values(s, view->blocks[b].first_slot + row, &ids, &count, &e) || count != 1;
            }
        }
        struct memory_label label;
        char name[32];
        snprintf(name, sizeof name, "l%llu", (unsigned long long)snapshot_version(s));
        mismatches += rows != (snapshot_version(s) ? 96 : 0);
        mismatches += snapshot_label_named(s, names_slice(name), &label, &e) != (snapshot_version(s) ? 1 : 0);
        snapshot_release(s);
    }
    pthread_mutex_lock(&shared->lock);
    shared->snapshots += snapshots;
    shared->mismatches += mismatches;
    pthread_mutex_unlock(&shared->lock);
    return NULL;
}

static void test_threads_see_whole_versions(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct shared_reading shared = {.m = open_ok(MEMORY_WRITE, &options), .lock = PTHREAD_MUTEX_INITIALIZER};
    pthread_t threads[READER_THREADS];
    struct error e = {0};
    for (size_t i = 0; i < READER_THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, read_all, &shared), 0);
    }
    for (int batch = 1; batch <= THREAD_BATCHES; batch++) {
        struct transaction *t = begin_ok(shared.m);
        float vector[DIM] = {(float)batch};
        char id[32], name[32];
        snprintf(name, sizeof name, "l%d", batch);
        struct slice label = names_slice(name), c = names_slice("c"), topic = names_slice("instances");
        struct memory_source source = {c, topic, 0, batch, 0};
        for (int i = 0; i < 96; i++) {
            snprintf(id, sizeof id, "%d", i);
            assert_int_equal(
                transaction_fold(t, names_slice(id), names_slice("t"), &label, 1, KEY(vector), &source, NULL, &e), 0);
        }
        assert_int_equal(transaction_offset(t, c, topic, 0, READ_TO(batch), &e), 0);
        commit_ok(t);
    }
    pthread_mutex_lock(&shared.lock);
    shared.done = true;
    pthread_mutex_unlock(&shared.lock);
    for (size_t i = 0; i < READER_THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(shared.mismatches, 0);
    assert_true(shared.snapshots >= READER_THREADS);
    memory_close(shared.m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        memory_test(test_model_f32),
        memory_test(test_model_bf16),
        memory_test(test_model_without_text),
        memory_test(test_snapshots_are_isolated),
        memory_test(test_abort_leaves_nothing),
        memory_test(test_digest_knows_no_order),
        memory_test(test_digest_known),
        memory_test(test_slots_and_ids_are_reused),
        memory_test(test_sources_and_offsets),
        memory_test(test_positions),
        memory_test(test_widths_of_word_pieces),
        memory_test(test_the_same_offset_writes_nothing),
        memory_test(test_bad_names_are_refused),
        memory_test(test_threads_see_whole_versions),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
