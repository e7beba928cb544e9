/* Files that are no sound memory of this format: cut, foreign, of another format, or with a byte flipped. Each is
 * refused or found by name, at its opening, at its first touch or by memory_verify. The damage is done for real, to the
 * file. */

#define _GNU_SOURCE /* nftw in the model, memmem */
#include <lmdb.h>
#include <math.h>

#include "memory_model.h"
#include "store/internal.h" /* data_file_check */

static void test_cut_files(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct model *model = mem_zero(1, sizeof *model);
    struct stat s;
    char path[512];
    filled(&options, model, 800);
    path_in(*state, "data.mdb", path);
    assert_int_equal(stat(path, &s), 0);
    const off_t sizes[] = {s.st_size - 1, s.st_size / 2, 8192, 8191, 100, 1};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        assert_int_equal(truncate(path, sizes[i]), 0);
        refused(MEMORY_READ, &options, E_CORRUPT, "restore a copy");
        refused(MEMORY_WRITE, &options, E_CORRUPT, "restore a copy");
    }
    assert_int_equal(truncate(path, 0), 0);
    refused(MEMORY_READ, &options, E_NOT_FOUND, "engram load");
    struct memory *m = open_ok(MEMORY_WRITE, &options); /* an empty file is a new memory */
    *model = (struct model){0};
    memory_equals(model, m);
    memory_close(m);
    free(model);
}

/* What LMDB itself says: is_free[page], and its last page. */
static size_t free_pages(MDB_env *env, bool *is_free, size_t max)
{
    MDB_txn *txn;
    MDB_cursor *cursor;
    MDB_val key, value;
    MDB_envinfo info;
    memset(is_free, 0, max);
    assert_int_equal(mdb_txn_begin(env, NULL, MDB_RDONLY, &txn), 0);
    assert_int_equal(mdb_cursor_open(txn, 0, &cursor), 0); /* 0: the free list */
    while (mdb_cursor_get(cursor, &key, &value, MDB_NEXT) == 0) {
        size_t count;
        memcpy(&count, value.mv_data, sizeof count);
        for (size_t i = 1; i <= count; i++) {
            size_t page;
            memcpy(&page, (char *)value.mv_data + 8 * i, sizeof page);
            assert_true(page < max);
            is_free[page] = true;
        }
    }
    mdb_cursor_close(cursor);
    mdb_txn_abort(txn);
    assert_int_equal(mdb_env_info(env, &info), 0);
    assert_true(info.me_last_pgno < max);
    return info.me_last_pgno;
}

/* LMDB takes pages at the end and gives them back in one transaction without writing them: the file ends before its
 * last page in use, and is sound. Cut further it is sound just as long as every page that is missing is a free one. */
static void test_missing_free_pages_are_sound(void **state)
{
    enum { PAGES = 20000, ROUNDS = 40 };
    char path[512];
    bool *is_free = mem_alloc(PAGES);
    char *big = mem_zero(1, 900 * 4096);
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi db;
    uint64_t in_use, r = 3;
    struct error e = {0};
    struct stat s;
    size_t short_files = 0, sound_cuts = 0, bad_cuts = 0;
    path_in(*state, "data.mdb", path);
    for (int round = 0; round < ROUNDS; round++) {
        assert_int_equal(mdb_env_create(&env), 0);
        assert_int_equal(mdb_env_set_mapsize(env, (size_t)PAGES * 4096), 0);
        assert_int_equal(mdb_env_open(env, *state, MDB_NOSYNC, 0600), 0);
        assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
        assert_int_equal(mdb_dbi_open(txn, NULL, 0, &db), 0);
        for (int i = 0; i < 6; i++) {
            char name = (char)('a' + random_next(&r) % 5);
            MDB_val key = {1, &name}, value = {random_next(&r) % (100 * 4096), big};
            value.mv_size *= i == 5 ? 9 : 1;
            key.mv_size = 1;
            if (i % 2) {
                int rc = mdb_del(txn, db, &key, NULL);
                assert_true(rc == 0 || rc == MDB_NOTFOUND);
            } else {
                assert_int_equal(mdb_put(txn, db, &key, &value, 0), 0);
            }
        }
        MDB_val gone = {4, "gone"}, large = {random_next(&r) % (900 * 4096), big};
        assert_int_equal(mdb_put(txn, db, &gone, &large, 0), 0);
        assert_int_equal(mdb_del(txn, db, &gone, NULL), 0);
        assert_int_equal(mdb_txn_commit(txn), 0);
        size_t last = free_pages(env, is_free, PAGES);
        mdb_env_close(env);
        assert_int_equal(stat(path, &s), 0);
        assert_int_equal(data_file_check(path, &in_use, &e), 0);
        assert_int_equal(in_use, (last + 1) * 4096);
        short_files += (uint64_t)s.st_size < in_use;
        if (round != ROUNDS - 1 && round % 8 != 7) {
            continue;
        }
        char copy[512], command[1100];
        path_in(*state, "copy", copy);
        snprintf(command, sizeof command, "cp '%s' '%s'", path, copy);
        assert_int_equal(system(command), 0);
        bool sound = true;
        for (size_t pages = (size_t)s.st_size / 4096; pages-- > 2 && bad_cuts < 5 * (size_t)(round + 1);) {
            sound = sound && is_free[pages];
            assert_int_equal(truncate(copy, (off_t)pages * 4096), 0);
            assert_int_equal(data_file_check(copy, &in_use, &e), sound ? 0 : -1);
            sound_cuts += sound;
            bad_cuts += !sound;
        }
    }
    assert_true(short_files > 0 && sound_cuts > 0 && bad_cuts > 0); /* else this test tests nothing */
    free(is_free);
    free(big);
}

static void test_not_a_memory(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    char path[512];
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi db;
    assert_int_equal(mdb_env_create(&env), 0);
    assert_int_equal(mdb_env_set_maxdbs(env, 4), 0);
    assert_int_equal(mdb_env_open(env, *state, 0, 0600), 0);
    assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_dbi_open(txn, "theirs", MDB_CREATE, &db), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    mdb_env_close(env);
    refused(MEMORY_WRITE, &options, E_FORMAT, "not a memory of Engram");
    refused(MEMORY_READ, &options, E_FORMAT, "not a memory of Engram");
    path_in(*state, "data.mdb", path);
    FILE *file = fopen(path, "w");
    for (int i = 0; i < 5000; i++) {
        fprintf(file, "text\n");
    }
    fclose(file);
    refused(MEMORY_WRITE, &options, E_CORRUPT, "not an LMDB database");
}

/* A memory of a later format is refused by its number, whatever else it changed. */
static void test_other_format(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    MDB_txn *txn;
    MDB_val key = {6, "memory"}, value;
    char later[300];
    assert_int_equal(mdb_txn_begin(m->env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_get(txn, m->db[DB_META], &key, &value), 0);
    memcpy(later, value.mv_data, value.mv_size);
    later[16] = 9; /* format: behind checksum and magic */
    value.mv_data = later;
    assert_int_equal(mdb_put(txn, m->db[DB_META], &key, &value, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    memory_close(m);
    refused(MEMORY_READ, &options, E_FORMAT, "format 9");
    refused(MEMORY_WRITE, &options, E_FORMAT, "format 9");
}

/* A memory as Engram 0.1 wrote it before it kept word pieces (1) or what its topics were (2): the line says what to do
 * about it. */
static void older_format(const char *folder, uint32_t format)
{
    char says[96];
    static const char *const names[] = {"meta", "keys",   "tail",        "values",  "instances", "slots",
                                        "free", "labels", "label_names", "offsets", "changes"};
    struct memory_options options = options_for(folder, DTYPE_F32);
    struct error e = {0};
    struct memory *m;
    struct {
        uint64_t checksum;
        char magic[8];
        uint32_t format, rows, dtype, dim;
        char fingerprint[32];
        uint64_t counts[18]; /* format 1 has one less: the model's name stands in the last one's place */
        char model[4];
    } __attribute__((packed)) meta = {.format = format, .rows = 128, .dtype = 1, .dim = DIM, .counts = {1}};
    const size_t bytes = sizeof meta - (format == 1 ? 8 : 0);
    memcpy(meta.magic, "EngramKV", 8);
    memcpy(meta.fingerprint, FINGERPRINT, 32);
    meta.counts[5] = meta.counts[6] = UINT64_MAX;
    meta.counts[16] = format == 1 ? 4 : 2;
    meta.counts[17] = 4;
    memcpy((char *)&meta + bytes - 4, "tiny", 4);
    meta.checksum = XXH3_64bits((char *)&meta + 8, bytes - 8);
    assert_int_equal(bytes, format == 1 ? 204 : 212);
    MDB_env *env;
    MDB_txn *txn;
    MDB_dbi db[11];
    assert_int_equal(mdb_env_create(&env), 0);
    assert_int_equal(mdb_env_set_maxdbs(env, 11), 0);
    assert_int_equal(mdb_env_open(env, folder, 0, 0600), 0);
    assert_int_equal(mdb_txn_begin(env, NULL, 0, &txn), 0);
    for (int i = 0; i < 11; i++) {
        assert_int_equal(mdb_dbi_open(txn, names[i], MDB_CREATE | db_flags((enum db)i), &db[i]), 0);
    }
    MDB_val key = {6, "memory"}, value = {bytes, &meta};
    assert_int_equal(mdb_put(txn, db[0], &key, &value, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    mdb_env_close(env);
    snprintf(says, sizeof says, "the memory has format %u, this version of Engram reads format 3", format);
    for (int mode = MEMORY_READ; mode <= MEMORY_WRITE; mode++) {
        refused((enum memory_mode)mode, &options, E_FORMAT, says);
        refused((enum memory_mode)mode, &options, E_FORMAT, "empty folder");
        refused((enum memory_mode)mode, &options, E_FORMAT, "`engram run` read its topics again");
        refused((enum memory_mode)mode, &options, E_FORMAT, "`engram load`");
    }
    options.fingerprint = NULL; /* and before the encoder is asked about */
    options.dim = 0;
    assert_int_equal(memory_open(&m, MEMORY_READ, &options, &e), -1);
    assert_int_equal(e.code, E_FORMAT);
    assert_true(strlen(e.text) < 360);
}

static void test_older_formats(void **state)
{
    for (uint32_t format = 1; format < MEMORY_FORMAT; format++) {
        char folder[300];
        snprintf(folder, sizeof folder, "%s/%u", (const char *)*state, format);
        assert_int_equal(mkdir(folder, 0700), 0);
        older_format(folder, format);
    }
}

/* Flips a byte in every copy of `needle` that the file holds. */
static int flip_all(const char *folder, const void *needle, size_t bytes)
{
    char path[512];
    struct stat s;
    int flips = 0;
    path_in(folder, "data.mdb", path);
    assert_int_equal(stat(path, &s), 0);
    unsigned char *all = mem_alloc((size_t)s.st_size);
    FILE *file = fopen(path, "r+");
    assert_non_null(file);
    assert_int_equal(fread(all, 1, (size_t)s.st_size, file), s.st_size);
    for (unsigned char *at = all; (at = memmem(at, (size_t)(all + s.st_size - at), needle, bytes)); at += bytes) {
        at[bytes / 2] ^= 0x10;
        flips++;
    }
    rewind(file);
    assert_int_equal(fwrite(all, 1, (size_t)s.st_size, file), s.st_size);
    fclose(file);
    free(all);
    return flips;
}

static void count_problem(const char *line, void *context)
{
    assert_null(strchr(line, '\n'));
    *(int *)context += 1;
}

static void verify_finds(const struct memory_options *options)
{
    struct memory *m = open_ok(MEMORY_READ, options);
    struct error e = {0};
    uint64_t problems;
    int lines = 0;
    assert_int_equal(verify_here(m, count_problem, &lines, &problems, &e), 0);
    assert_true(problems > 0);
    assert_int_equal(lines, problems);
    memory_close(m);
}

/* A flipped byte in a sealed block, in the tail, in a text: each found at the first touch and by verify. */
static void test_flipped_bytes(void **state)
{
    struct error e = {0};
    struct snapshot *s;
    for (int where = 0; where < 3; where++) {
        char folder[300], text[] = "a text found nowhere else";
        snprintf(folder, sizeof folder, "%s/%d", (const char *)*state, where);
        struct memory_options options = options_for(folder, DTYPE_F32);
        struct memory *m = open_ok(MEMORY_WRITE, &options);
        struct memory_source by_hand = {0};
        struct slice label = names_slice("label");
        float vector[DIM], marked[DIM];
        uint64_t r = 12;
        random_vector(&r, marked);
        struct transaction *t = begin_ok(m);
        for (int i = 0; i < 100; i++) { /* block 0 sealed, 36 rows in the tail */
            char id[32];
            snprintf(id, sizeof id, "id-%d", i);
            bool mark = i == (where == 0 ? 30 : 80);
            random_vector(&r, vector);
            assert_int_equal(transaction_fold(t, names_slice(id), names_slice(mark ? text : "t"), &label, 1,
                                              KEY(mark ? marked : vector), &by_hand, NULL, &e),
                             0);
        }
        commit_ok(t);
        memory_close(m);
        assert_true(where == 2 ? flip_all(folder, text, strlen(text)) : flip_all(folder, marked, sizeof marked) > 0);
        verify_finds(&options);
        m = open_ok(MEMORY_READ, &options);
        struct memory_instance got;
        if (where < 2) {
            assert_int_equal(memory_snapshot(m, &s, &e), -1);
            assert_int_equal(e.code, E_CORRUPT);
            assert_non_null(strstr(e.text, where == 0 ? "block 0" : "'tail'"));
            assert_int_equal(memory_look(m, &s, &e), 0); /* what does not touch it still works */
            assert_int_equal(snapshot_instance(s, names_slice("id-80"), &got, &e), 1);
        } else {
            assert_int_equal(memory_snapshot(m, &s, &e), 0);
            assert_int_equal(snapshot_instance(s, names_slice("id-81"), &got, &e), 1);
            assert_int_equal(snapshot_instance(s, names_slice("id-80"), &got, &e), -1);
            assert_int_equal(e.code, E_CORRUPT);
        }
        snapshot_release(s);
        memory_close(m);
    }
}

static void keep_line(const char *line, void *context)
{
    buffer_string(context, line);
    buffer_byte(context, '\n');
}

/* An instance that names a label which is not there: the one who asks for its labels' names hears which, and verify
 * says the same. */
static void test_missing_label(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    const struct slice labels[] = {names_slice("a"), names_slice("b")};
    const struct memory_source by_hand = {0};
    const float vector[DIM] = {1};
    struct memory_instance got;
    struct slice names[2];
    struct snapshot *s;
    struct buffer lines = {0};
    struct error e = {0};
    uint64_t problems, id = 1;
    MDB_txn *txn;
    MDB_val key = {sizeof id, &id};
    struct transaction *t = begin_ok(m);
    assert_int_equal(
        transaction_fold(t, names_slice("i"), names_slice("text"), labels, 2, KEY(vector), &by_hand, NULL, &e), 0);
    commit_ok(t);
    assert_int_equal(mdb_txn_begin(m->env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_del(txn, m->db[DB_LABELS], &key, NULL), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    assert_int_equal(memory_snapshot(m, &s, &e), 0);
    assert_int_equal(snapshot_instance(s, names_slice("i"), &got, &e), 1);
    assert_int_equal(snapshot_label_names(s, &got, names, &e), -1);
    assert_int_equal(e.code, E_CORRUPT);
    assert_non_null(strstr(e.text, "label 1 is missing in 'labels'"));
    snapshot_release(s);
    assert_int_equal(verify_here(m, keep_line, &lines, &problems, &e), 0);
    assert_non_null(strstr(lines.data, "label 1 is missing in 'labels'"));
    buffer_free(&lines);
    memory_close(m);
}

/* A vector that holds no number, though every checksum holds: in a sealed block and in the tail, by either type. */
static void test_vectors_are_finite(void **state)
{
    static const float values[] = {NAN, INFINITY, -INFINITY};
    for (int where = 0; where < 12; where++) {
        const enum dtype dtype = where % 2 ? DTYPE_F32 : DTYPE_BF16;
        struct error e = {0};
        char folder[300];
        uint64_t r = 12, problems;
        int lines = 0;
        snprintf(folder, sizeof folder, "%s/%d", (const char *)*state, where);
        struct memory_options options = options_for(folder, dtype);
        struct memory *m = open_ok(MEMORY_WRITE, &options);
        struct memory_source by_hand = {0};
        struct transaction *t = begin_ok(m);
        for (int i = 0; i < 100; i++) { /* block 0 sealed, 36 rows in the tail */
            char id[32];
            float vector[DIM];
            snprintf(id, sizeof id, "id-%d", i);
            random_vector(&r, vector);
            if (i == (where % 4 < 2 ? 30 : 80)) {
                vector[DIM - 1] = values[where / 4];
            }
            assert_int_equal(
                transaction_fold(t, names_slice(id), names_slice("t"), NULL, 0, KEY(vector), &by_hand, NULL, &e), 0);
        }
        commit_ok(t);
        assert_int_equal(verify_here(m, count_problem, &lines, &problems, &e), 0);
        assert_int_equal(problems, 1);
        memory_close(m);
    }
}

/* Contents that disagree though every checksum holds. */
static void test_verify_compares(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct model *model = mem_zero(1, sizeof *model);
    filled(&options, model, 600);
    struct memory *made = open_ok(MEMORY_WRITE, &options);
    struct transaction *t = begin_ok(made);
    for (unsigned i = 0; i < IDS; i += 9) { /* so that there are free slots */
        struct change c = {.kind = CHANGE_FORGET, .which = i};
        memory_apply_ok(t, &c, 0);
        model->instances[i].exists = false;
        model->instances[i].labels_count = 0;
    }
    commit_ok(t);
    memory_close(made);
    for (enum db db = DB_VALUES; db <= DB_CHANGES; db++) {
        struct memory *m = open_ok(MEMORY_WRITE, &options);
        struct error e = {0};
        uint64_t problems;
        int lines = 0;
        MDB_txn *txn;
        MDB_cursor *cursor;
        MDB_val key, value;
        char kept_key[512], kept[65536];
        assert_int_equal(mdb_txn_begin(m->env, NULL, 0, &txn), 0);
        assert_int_equal(mdb_cursor_open(txn, m->db[db], &cursor), 0);
        assert_int_equal(mdb_cursor_get(cursor, &key, &value, MDB_FIRST), 0);
        memcpy(kept_key, key.mv_data, key.mv_size);
        memcpy(kept, value.mv_data, value.mv_size);
        size_t key_bytes = key.mv_size, bytes = value.mv_size;
        assert_int_equal(mdb_cursor_del(cursor, 0), 0);
        mdb_cursor_close(cursor);
        assert_int_equal(mdb_txn_commit(txn), 0);
        assert_int_equal(verify_here(m, count_problem, &lines, &problems, &e), 0);
        if (problems == 0) {
            fail_msg("an entry missing in '%s' is not found", db_name(db));
        }
        assert_int_equal(mdb_txn_begin(m->env, NULL, 0, &txn), 0);
        key = (MDB_val){key_bytes, kept_key};
        value = (MDB_val){bytes, kept};
        assert_int_equal(mdb_put(txn, m->db[db], &key, &value, 0), 0);
        assert_int_equal(mdb_txn_commit(txn), 0);
        memory_equals(model, m);
        memory_close(m);
    }
    free(model);
}

/* An entry under another key than the one that it was written for, as after a flipped byte in the key: in every
 * database, whatever else would notice. */
static void test_changed_keys_are_found(void **state)
{
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct model *model = mem_zero(1, sizeof *model);
    filled(&options, model, 600);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    for (enum db db = DB_META; db < DB_COUNT; db++) {
        struct error e = {0};
        MDB_txn *txn;
        MDB_val key, value;
        MDB_cursor *cursor;
        char changed[512];
        static char kept[65536];
        struct slice got;
        assert_int_equal(mdb_txn_begin(m->env, NULL, 0, &txn), 0);
        assert_int_equal(mdb_cursor_open(txn, m->db[db], &cursor), 0);
        if (mdb_cursor_get(cursor, &key, &value, MDB_LAST) == 0) {
            memcpy(changed, key.mv_data, key.mv_size);
            struct slice as_written = {changed, key.mv_size};
            assert_int_equal(entry_get(m, txn, db, as_written, 8, &got, &e), 1);
            changed[key.mv_size - 1] = (char)(changed[key.mv_size - 1] ^ 0x40);
            memcpy(kept, value.mv_data, value.mv_size);
            key.mv_data = changed;
            value.mv_data = kept;
            assert_int_equal(mdb_put(txn, m->db[db], &key, &value, 0), 0);
            assert_int_equal(entry_get(m, txn, db, as_written, 8, &got, &e), -1);
            assert_int_equal(e.code, E_CORRUPT);
            assert_non_null(strstr(e.text, db_name(db)));
        } else {
            assert_int_equal(db, DB_FREE); /* nothing was forgotten */
        }
        mdb_cursor_close(cursor);
        mdb_txn_abort(txn);
    }
    memory_close(m);
    free(model);
}

/* Puts another number into block 0 of `values`; the checksum holds. */
static void values_change(const struct memory_options *options, size_t at, uint32_t number)
{
    struct memory *m = open_ok(MEMORY_WRITE, options);
    uint64_t block = 0;
    MDB_txn *txn;
    MDB_val key = {8, &block}, value;
    static char changed[65536];
    assert_int_equal(mdb_txn_begin(m->env, NULL, 0, &txn), 0);
    assert_int_equal(mdb_get(txn, m->db[DB_VALUES], &key, &value), 0);
    memcpy(changed, value.mv_data, value.mv_size);
    memcpy(changed + at, &number, sizeof number);
    checksum_set(key_of(&block), changed, value.mv_size);
    value.mv_data = changed;
    assert_int_equal(mdb_put(txn, m->db[DB_VALUES], &key, &value, 0), 0);
    assert_int_equal(mdb_txn_commit(txn), 0);
    memory_close(m);
}

/* Word pieces whose lists do not fit are believed by nobody; those that a free row has or that cannot be are found. */
static void test_word_pieces_are_proved(void **state)
{
    enum { ROWS = 64, STARTS = 48 + 12 * ROWS + 4 }; /* block_rows; where docs/MEMORY.md puts them */
    struct error e = {0};
    struct memory_source by_hand = {0};
    float vector[DIM] = {1};
    const int32_t pieces[] = {7, 8, 9};
    struct memory_key key = {vector, pieces, 3};
    char id[2] = "a";
    struct memory_options options = options_for(*state, DTYPE_F32);
    struct memory *m = open_ok(MEMORY_WRITE, &options);
    struct transaction *t = begin_ok(m);
    for (; id[0] < 'e'; id[0]++) {
        assert_int_equal(transaction_fold(t, names_slice(id), names_slice("t"), NULL, 0, &key, &by_hand, NULL, &e), 0);
    }
    assert_int_equal(transaction_forget(t, names_slice("b"), NULL, &e), 0);
    commit_ok(t);
    memory_close(m);
    const struct {
        size_t row;
        uint32_t right, wrong;
        bool believed;
    } starts[] = {
        {0, 0, 1, false},     /* pieces of no row */
        {1, 3, 0, true},      /* the free row's */
        {1, 3, 4, false},     /* descending */
        {3, 6, 90000, false}, /* outside */
        {4, 9, 8, true},      /* of a row never handed out */
        {ROWS, 9, 8, false},  /* more than there are */
        {ROWS, 9, 90000, false},
    };
    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
        struct snapshot *s = NULL;
        values_change(&options, STARTS + 4 * starts[i].row, starts[i].wrong);
        verify_finds(&options);
        m = open_ok(MEMORY_WRITE, &options);
        t = begin_ok(m);
        int read = memory_snapshot(m, &s, &e);
        int written = transaction_fold(t, names_slice("c"), names_slice("t"), NULL, 0, &key, &by_hand, NULL, &e);
        assert_int_equal(read, starts[i].believed ? 0 : -1);
        assert_int_equal(written, starts[i].believed ? 0 : -1);
        assert_true(starts[i].believed || e.code == E_CORRUPT);
        snapshot_release(s);
        transaction_abort(t);
        memory_close(m);
        values_change(&options, STARTS + 4 * starts[i].row, starts[i].right);
    }
    const size_t first_piece = 48 + 18 * ROWS + 8; /* there are no label ids */
    values_change(&options, first_piece, 0x80000000u);
    verify_finds(&options);
    values_change(&options, first_piece, 7);
    uint64_t problems;
    m = open_ok(MEMORY_READ, &options);
    assert_int_equal(verify_here(m, print_problem, NULL, &problems, &e), 0);
    assert_int_equal(problems, 0);
    memory_close(m);
}

/* Transaction N is in meta page N & 1, after 128 bytes of it. With another number an earlier commit would open;
 * from the first commit on each is refused. */
static void test_transaction_numbers(void **state)
{
    for (int64_t commits = 0; commits < 6; commits++) {
        char folder[300], path[512];
        uint64_t numbers[2];
        struct model *model = mem_zero(1, sizeof *model);
        snprintf(folder, sizeof folder, "%s/%d", (const char *)*state, (int)commits);
        struct memory_options options = options_for(folder, DTYPE_F32);
        filled(&options, model, commits * 100);
        free(model);
        path_in(folder, "data.mdb", path);
        FILE *file = fopen(path, "r+");
        assert_non_null(file);
        for (int page = 0; page < 2; page++) {
            assert_int_equal(fseek(file, page * 4096 + 144, SEEK_SET), 0);
            assert_int_equal(fread(&numbers[page], sizeof *numbers, 1, file), 1);
        }
        int newer = numbers[1] > numbers[0];
        assert_int_equal(numbers[newer], commits + 1);
        const int64_t steps[2][4] = {{1, 2, -1, 256}, {-1, 1, 256, -2}}; /* of the older one, of the newer */
        for (int page = 0; page < 2; page++) {
            for (size_t i = 0; i < 4; i++) {
                uint64_t wrong = numbers[page] + (uint64_t)steps[page == newer][i];
                fseek(file, page * 4096 + 144, SEEK_SET);
                assert_int_equal(fwrite(&wrong, sizeof wrong, 1, file), 1);
                fflush(file);
                refused(MEMORY_READ, &options, E_CORRUPT, "first pages");
                refused(MEMORY_WRITE, &options, E_CORRUPT, "first pages");
            }
            fseek(file, page * 4096 + 144, SEEK_SET);
            assert_int_equal(fwrite(&numbers[page], sizeof *numbers, 1, file), 1);
            fflush(file);
        }
        fclose(file);
        memory_close(open_ok(MEMORY_WRITE, &options));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        memory_test(test_transaction_numbers),
        memory_test(test_cut_files),
        memory_test(test_missing_free_pages_are_sound),
        memory_test(test_missing_label),
        memory_test(test_not_a_memory),
        memory_test(test_other_format),
        memory_test(test_older_formats),
        memory_test(test_flipped_bytes),
        memory_test(test_vectors_are_finite),
        memory_test(test_verify_compares),
        memory_test(test_changed_keys_are_found),
        memory_test(test_word_pieces_are_proved),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
