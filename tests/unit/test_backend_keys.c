/* The search over keys on every backend, against brute force: ties, masks, views that change. */
#include "tests/unit/backend_suite.h"

/* ---- blocks of keys ---- */

struct key_set {
    struct keys_view view;
    struct keys_block *block; /* the view's */
    float **values;           /* of each block, what its vectors stand for */
};

static uint64_t version;

/* Small whole numbers have products and sums that are exact in f32, so equal scores are equal whoever adds them up. */
static float key_number(bool whole, enum dtype dtype)
{
    return whole ? (float)random_below(5) - 2 : exact(random_float(1), dtype);
}

static void block_fill(struct key_set *set, size_t i, uint32_t rows, uint64_t first_slot, bool whole)
{
    const size_t dim = set->view.dim, count = rows * dim;
    float *values = hold(mem_aligned(64, count * sizeof *values));
    uint16_t *halves = hold(mem_aligned(64, count * sizeof *halves));
    uint8_t *candidate = hold(mem_alloc(rows));
    uint64_t *ties = hold(mem_alloc(rows * sizeof *ties));
    for (size_t r = 0; r < rows; r++) {
        candidate[r] = random_below(8) != 0;
        ties[r] = (uint64_t)random_below(1 << 30) << 30 | random_below(1 << 30);
    }
    for (size_t j = 0; j < count; j++) {
        values[j] = key_number(whole, set->view.dtype);
    }
    if (random_below(4) == 0) { /* a row that is not a number is no hit */
        values[random_below(rows) * dim] = NAN;
    }
    for (size_t j = 0; j < count; j++) {
        halves[j] = bf16_of(values[j]);
    }
    set->values[i] = values;
    set->block[i] = (struct keys_block){set->view.dtype == DTYPE_BF16 ? (const void *)halves : values,
                                        candidate,
                                        ties,
                                        first_slot,
                                        ++version,
                                        rows,
                                        random_below(3) ? KEY_INSTANCE : KEY_LABEL};
}

static struct key_set keys_make(size_t dim, size_t blocks, uint32_t rows_max, enum dtype dtype, bool whole)
{
    struct key_set set = {.block = hold(mem_zero(blocks, sizeof *set.block)),
                          .values = hold(mem_zero(blocks, sizeof *set.values))};
    uint64_t slot = 7;
    set.view = (struct keys_view){set.block, blocks, dim, dtype, ++version};
    for (size_t i = 0; i < blocks; i++) {
        block_fill(&set, i, 1 + random_below(rows_max), slot, whole);
        slot += set.block[i].rows + random_below(3);
    }
    return set;
}

static struct keys *keys_of(size_t dim, enum dtype dtype)
{
    struct error e = {0};
    struct keys *k;
    must(ops->keys_open(backend, dim, dtype, &k, &e), &e);
    assert_true(held.keys_count < sizeof held.keys / sizeof *held.keys);
    return held.keys[held.keys_count++] = k;
}

/* ---- brute force ---- */

static int hits_compare(const void *a, const void *b)
{
    const struct keys_hit *x = a, *y = b;
    if (x->score != y->score) {
        return x->score > y->score ? -1 : 1;
    }
    return x->tie != y->tie ? (x->tie < y->tie ? -1 : 1) : 0;
}

/* All candidates of the kinds, best first; the caller frees. */
static struct keys_hit *brute_force(const struct key_set *set, const float *query, enum key_kind kinds, size_t *count)
{
    const size_t dim = set->view.dim;
    size_t rows = 1;
    for (size_t i = 0; i < set->view.count; i++) {
        rows += set->block[i].rows;
    }
    struct keys_hit *all = mem_alloc(rows * sizeof *all);
    *count = 0;
    for (size_t i = 0; i < set->view.count; i++) {
        const struct keys_block *b = &set->block[i];
        for (size_t r = 0; r < b->rows && (b->kind & kinds); r++) {
            double score = 0;
            for (size_t c = 0; c < dim; c++) {
                score += (double)query[c] * (double)set->values[i][r * dim + c];
            }
            if (b->candidate[r] && !isnan(score)) {
                all[(*count)++] = (struct keys_hit){(float)score, b->kind, b->first_slot + r, b->ties[r]};
            }
        }
    }
    if (*count) {
        qsort(all, *count, sizeof *all, hits_compare);
    }
    return all;
}

/* Exact (whole numbers): the hits are brute force's. Else: the scores are close to brute force's, place by place, and
 * each hit's own score is its key's. */
static void hits_check(const struct key_set *set, const float *query, enum key_kind kinds, size_t b,
                       const struct keys_hit *hits, uint32_t count, bool whole)
{
    size_t all_count;
    struct keys_hit *all = hold(brute_force(set, query, kinds, &all_count));
    assert_int_equal(count, all_count < b ? all_count : b);
    for (size_t i = 0; i < count; i++) {
        if (whole) {
            assert_true(hits[i].score == all[i].score);
            assert_int_equal(hits[i].slot, all[i].slot);
            assert_int_equal(hits[i].tie, all[i].tie);
            assert_int_equal(hits[i].kind, all[i].kind);
            continue;
        }
        const double bound = 1e-6 * (double)set->view.dim;
        assert_true(fabs((double)hits[i].score - (double)all[i].score) <= bound);
        assert_true(i == 0 || hits[i - 1].score >= hits[i].score);
        size_t j = 0;
        while (j < all_count && all[j].slot != hits[i].slot) {
            j++;
        }
        assert_true(j < all_count && fabs((double)hits[i].score - (double)all[j].score) <= bound);
    }
    held.host_count--;
    free(all);
}

/* ---- a scan ---- */

struct scan {
    size_t n, b;
    enum key_kind kinds;
    float *queries; /* [n, dim] */
    struct tensor on_device;
    struct keys_hit *hits;
    uint32_t *counts;
};

static struct scan scan_make(const struct key_set *set, bool whole, size_t n, size_t b, enum key_kind kinds)
{
    const size_t dim = set->view.dim;
    struct scan s = {.n = n, .b = b, .kinds = kinds, .queries = hold(mem_alloc(n * dim * sizeof *s.queries))};
    for (size_t i = 0; i < n * dim; i++) {
        s.queries[i] = key_number(whole, DTYPE_F32);
    }
    s.on_device = tensor_of(DTYPE_F32, n, dim, s.queries);
    s.hits = hold(mem_alloc(n * b * sizeof *s.hits));
    s.counts = hold(mem_alloc(n * sizeof *s.counts));
    return s;
}

static void scan_start(struct stream *on, struct keys *k, const struct key_set *set, const struct scan *s)
{
    memset(s->counts, 0xFF, s->n * sizeof *s->counts);
    ops->keys_scan(on, k, &set->view, &s->on_device, s->b, s->kinds, s->hits, s->counts);
}

static void scan_compare(const struct key_set *set, const struct scan *s, bool whole)
{
    for (size_t q = 0; q < s->n; q++) {
        hits_check(set, s->queries + q * set->view.dim, s->kinds, s->b, s->hits + q * s->b, s->counts[q], whole);
    }
}

static void scan_check(struct keys *k, const struct key_set *set, const struct scan *s, bool whole)
{
    scan_start(stream, k, set, s);
    done();
    scan_compare(set, s, whole);
}

static void one_check(size_t dim, size_t blocks, uint32_t rows_max, enum dtype dtype, bool whole, size_t n, size_t b,
                      enum key_kind kinds)
{
    const struct key_set set = keys_make(dim, blocks, rows_max, dtype, whole);
    const struct scan s = scan_make(&set, whole, n, b, kinds);
    scan_check(keys_of(dim, dtype), &set, &s, whole);
    drop();
}

static void test_exact(void **state)
{
    (void)state;
    static const size_t scan_dims[] = {1, 3, 17, 32, 100};
    for (size_t i = 0; i < 40; i++) { /* few dimensions and few numbers: ties at every place, the b-th too */
        one_check(scan_dims[i % 5], 1 + random_below(9), 1 + random_below(200), i % 2 ? DTYPE_BF16 : DTYPE_F32, true,
                  1 + random_below(70), 1 + random_below(40), (enum key_kind)(1 + i % 3));
    }
    one_check(8, 3, 20, DTYPE_F32, true, 5, 1000, KEY_BOTH); /* b beyond the keys */
    one_check(8, 5, 90, DTYPE_BF16, true, 600, 3, KEY_BOTH); /* more queries than one walk takes */
}

static void test_close(void **state)
{
    (void)state;
    one_check(384, 5, 256, DTYPE_F32, false, 33, 50, KEY_BOTH);
    one_check(384, 5, 256, DTYPE_BF16, false, 7, 200, KEY_INSTANCE);
    one_check(96, 40, 1, DTYPE_BF16, false, 16, 10, KEY_BOTH); /* blocks of one row, as the memory's tail has them */
}

/* So many blocks of three times 64 keys that what a device allocates at once ends within a block. */
static void test_many_blocks(void **state)
{
    (void)state;
    struct key_set set = keys_make(2, 171, 1, DTYPE_F32, true);
    uint64_t slot = 0;
    for (size_t i = 0; i < set.view.count; i++, slot += 192) {
        block_fill(&set, i, 192, slot, true);
        set.block[i].kind = KEY_INSTANCE;
    }
    const struct scan s = scan_make(&set, true, 2, 7, KEY_BOTH);
    scan_check(keys_of(2, DTYPE_F32), &set, &s, true);
}

static void test_empty(void **state)
{
    (void)state;
    struct keys *keys = keys_of(4, DTYPE_F32);
    struct keys_view view = {NULL, 0, 4, DTYPE_F32, ++version};
    const float queries[8] = {1, 2, 3, 4, NAN, 1, 1, 1};
    float vectors[4] __attribute__((aligned(64))) = {1, 1, 1, 1};
    struct tensor two = tensor_of(DTYPE_F32, 2, 4, queries);
    struct keys_hit hits[4];
    uint32_t counts[2] = {9, 9};
    ops->keys_scan(stream, keys, &view, &two, 2, KEY_BOTH, hits, counts);
    done();
    assert_true(counts[0] == 0 && counts[1] == 0);
    const uint8_t candidate = 1;
    const uint64_t tie = 5;
    const struct keys_block block = {vectors, &candidate, &tie, 3, ++version, 1, KEY_LABEL};
    const struct keys_view more = {&block, 1, 4, DTYPE_F32, ++version};
    ops->keys_scan(stream, keys, &more, &two, 2, KEY_BOTH, hits, counts);
    done();
    assert_true(counts[0] == 1 && counts[1] == 0); /* the second query is not a number */
    assert_true(hits[0].score == 10 && hits[0].slot == 3 && hits[0].kind == KEY_LABEL && hits[0].tie == 5);
    counts[0] = 9;
    ops->keys_scan(stream, keys, &more, &two, 2, KEY_INSTANCE, hits, counts);
    done();
    assert_int_equal(counts[0], 0);
}

/* Scores so near to each other, or so far apart, that one divided by their distance is no number. */
static void test_scores_at_the_ends_of_f32(void **state)
{
    (void)state;
    static const float steps[] = {1e-40F, 5e36F};
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++) {
        struct key_set set = keys_make(1, 4, 200, DTYPE_F32, true);
        struct keys *keys = keys_of(1, DTYPE_F32);
        for (size_t block = 0; block < set.view.count; block++) {
            for (uint32_t r = 0; r < set.block[block].rows; r++) {
                set.values[block][r] = steps[i] * ((float)random_below(61) - 30);
            }
        }
        const struct scan s = scan_make(&set, true, 3, 5, KEY_BOTH);
        scan_check(keys, &set, &s, true);
        drop();
    }
}

/* Keys whose scores rise with their slots, or fall, or are all equal, many more than are searched for: whoever walks
 * them and keeps what is better than what came before keeps all, none, or must go by the ties. Row r is (r / 256, r %
 * 256), exact in bf16 too, and the query makes r of it. */
static void order_check(enum dtype dtype, int sign, size_t b)
{
    const size_t blocks = 40;
    struct key_set set = keys_make(2, blocks, 1, dtype, true);
    uint64_t slot = 0;
    for (size_t i = 0; i < blocks; i++) {
        block_fill(&set, i, 256, slot, true);
        for (size_t r = 0; r < 256; r++, slot++) {
            set.values[i][2 * r] = (float)(slot / 256);
            set.values[i][2 * r + 1] = (float)(slot % 256);
        }
        for (size_t j = 0; j < 512 && dtype == DTYPE_BF16; j++) {
            ((uint16_t *)(uintptr_t)set.block[i].vectors)[j] = bf16_of(set.values[i][j]);
        }
    }
    struct scan s = scan_make(&set, true, 2, b, KEY_BOTH);
    for (size_t q = 0; q < 2; q++) {
        s.queries[2 * q] = (float)sign * 256;
        s.queries[2 * q + 1] = (float)sign;
    }
    s.on_device = tensor_of(DTYPE_F32, 2, 2, s.queries);
    scan_check(keys_of(2, dtype), &set, &s, true);
    drop();
}

static void test_orders(void **state)
{
    (void)state;
    for (enum dtype dtype = DTYPE_BF16; dtype <= DTYPE_F32; dtype++) {
        order_check(dtype, 1, 200);
        order_check(dtype, -1, 1000);
        order_check(dtype, 0, 200);
        order_check(dtype, 1, 3000);
    }
}

/* ---- views that change ---- */

/* What has not changed is not read again where the device has memory of its own, also if it took the keys beforehand.
 */
static void test_only_changes_are_read(void **state)
{
    (void)state;
    if (backend->facts.host_memory || getenv("GPU_TEST_KEY_BYTES")) { /* without room keys are read each time */
        return;
    }
    struct key_set set = keys_make(17, 6, 200, DTYPE_F32, true);
    struct keys *keys = keys_of(17, DTYPE_F32);
    const struct scan s = scan_make(&set, true, 5, 20, KEY_BOTH);
    const struct tensor none = {.dtype = DTYPE_F32, .columns = 17};
    ops->keys_scan(stream, keys, &set.view, &none, 20, KEY_BOTH, NULL, NULL); /* takes them, without a query */
    done();
    block_fill(&set, 3, 40, set.block[3].first_slot, true);
    set.view.version = ++version;
    for (size_t i = 0; i < 6; i++) {
        if (i != 3) {
            float *vectors = (float *)(uintptr_t)set.block[i].vectors,
                  *kept = hold(mem_alloc(set.block[i].rows * 17 * sizeof *kept));
            memcpy(kept, vectors, set.block[i].rows * 17 * sizeof *kept);
            set.values[i] = kept;
            for (size_t j = 0; j < set.block[i].rows * 17; j++) {
                vectors[j] = 1e6F;
            }
        }
    }
    scan_check(keys, &set, &s, true);
}

/* The same view again; a block changed, grown, gone, new; other places; an earlier view after a later one. */
static void test_versions(void **state)
{
    (void)state;
    for (enum dtype dtype = DTYPE_BF16; dtype <= DTYPE_F32; dtype++) {
        const size_t dim = 17, blocks = 6;
        struct key_set set = keys_make(dim, blocks, 30, dtype, true);
        struct keys *keys = keys_of(dim, dtype);
        const struct scan s = scan_make(&set, true, 5, 20, KEY_BOTH);
        const struct key_set first = set;
        scan_check(keys, &set, &s, true);
        scan_check(keys, &set, &s, true);

        set.block = hold(mem_alloc((blocks + 1) * sizeof *set.block));
        set.values = hold(mem_alloc((blocks + 1) * sizeof *set.values));
        memcpy(set.block, first.block, blocks * sizeof *set.block);
        memcpy(set.values, first.values, blocks * sizeof *set.values);
        set.view.blocks = set.block;
        for (size_t i = 0; i < 2; i++) { /* other rows in their places; then one more, elsewhere */
            set.view.version = ++version;
            block_fill(&set, 2, first.block[2].rows + (uint32_t)i, i ? 10000 : first.block[2].first_slot, true);
            set.block[2].kind = first.block[2].kind;
            scan_check(keys, &set, &s, true);
        }
        set.view.version = ++version;
        block_fill(&set, blocks, 7, 20000, true);
        set.view.count = blocks + 1;
        scan_check(keys, &set, &s, true);

        set.view.version = ++version; /* the last one in place of the first, which is gone */
        set.view.count = blocks;
        set.block[0] = set.block[blocks];
        set.values[0] = set.values[blocks];
        scan_check(keys, &set, &s, true);
        scan_check(keys, &first, &s, true);
        scan_check(keys, &set, &s, true);
        drop();
    }
}

/* Batches overlap: an earlier and a later view are searched on two streams, whichever is waited for first. */
static void test_two_views(void **state)
{
    (void)state;
    struct error e = {0};
    struct stream *other;
    must(ops->stream_open(backend, &other, &e), &e);
    struct key_set earlier = keys_make(17, 5, 30, DTYPE_F32, true), later = earlier;
    later.block = hold(mem_alloc(5 * sizeof *later.block));
    later.values = hold(mem_alloc(5 * sizeof *later.values));
    memcpy(later.block, earlier.block, 5 * sizeof *later.block);
    memcpy(later.values, earlier.values, 5 * sizeof *later.values);
    later.view.blocks = later.block;
    later.view.version = ++version;
    block_fill(&later, 4, 40, earlier.block[4].first_slot, true);
    struct keys *keys = keys_of(17, DTYPE_F32);
    const struct scan s = scan_make(&earlier, true, 3, 10, KEY_BOTH), t = scan_make(&later, true, 3, 10, KEY_BOTH);
    done(); /* the queries are there */
    for (int round = 0; round < 6; round++) {
        scan_start(stream, keys, round % 3 ? &earlier : &later, &s);
        scan_start(other, keys, round % 3 ? &later : &earlier, &t);
        must(ops->wait(round % 2 ? stream : other, &e), &e);
        must(ops->wait(round % 2 ? other : stream, &e), &e);
        scan_compare(round % 3 ? &earlier : &later, &s, true);
        scan_compare(round % 3 ? &later : &earlier, &t, true);
    }
    ops->stream_close(other);
}

/* Two sets of keys of one backend have nothing in common, whatever their versions. */
static void test_two_sets(void **state)
{
    (void)state;
    struct key_set one = keys_make(17, 3, 30, DTYPE_F32, true), two = keys_make(17, 4, 30, DTYPE_F32, true);
    two.view.version = one.view.version;
    for (size_t i = 0; i < 3; i++) {
        two.block[i].version = one.block[i].version;
        two.block[i].first_slot = one.block[i].first_slot;
    }
    struct keys *keys[2] = {keys_of(17, DTYPE_F32), keys_of(17, DTYPE_F32)};
    const struct scan s = scan_make(&one, true, 3, 10, KEY_BOTH);
    scan_check(keys[0], &one, &s, true);
    scan_check(keys[1], &two, &s, true);
    scan_check(keys[0], &one, &s, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        SUITE_TEST(test_exact),
        SUITE_TEST(test_close),
        SUITE_TEST(test_empty),
        SUITE_TEST(test_versions),
        SUITE_TEST(test_two_views),
        SUITE_TEST(test_two_sets),
        SUITE_TEST(test_scores_at_the_ends_of_f32),
        SUITE_TEST(test_orders),
        SUITE_TEST(test_many_blocks),
        SUITE_TEST(test_only_changes_are_read),
    };
    return suite_run(tests, sizeof tests / sizeof *tests);
}
