/* The lexical score of keys: see lexical.h. No inverted index: the counts of all terms stand in RAM beside a copy of
 * every row's word pieces (the store's own pages may be written anew by the next commit, and what a row had is needed
 * to take it out of the counts), and a candidate's score is computed from its pieces when asked for.
 *
 * What is dear is a key's norm, for it needs the count of each of its terms, and one fold changes them all through n:
 * norms are kept with the number of the state that they belong to, so one is computed once for a batch and once for as
 * long as nothing is folded. The product with the text needs only the few terms that both have. */
#include "engine/lexical.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"

enum {
    TERMS_AT_ONCE = 1024, /* counted together: their places are fetched ahead */
    LOG_TABLE = 4096,
    AHEAD = 8, /* keys whose pieces are fetched ahead */
};

/* A pair of neighbours and its count, in an open hash table. */
struct pair {
    uint64_t key; /* 0: empty */
    uint32_t df;
};

/* A copy of one block's pieces. */
struct rows {
    uint64_t version;
    uint32_t rows;
    uint32_t *starts; /* [rows + 1]; used and ids follow in the same memory */
    uint8_t *used;
    unsigned char *ids; /* u16 or u32 */
};

/* The distinct terms of one text, in the order in which they come. */
struct term {
    uint64_t key; /* below 2^32: a piece, else a pair */
    uint32_t tf;
};

struct terms {
    struct term *terms;
    size_t count, capacity;
    struct terms_place {
        uint32_t epoch, at;
    } * places; /* [mask + 1], at least four times as many as terms */
    size_t mask;
    uint32_t epoch;
};

struct lexical {
    struct rows *blocks;
    size_t blocks_count;
    size_t block_rows, piece_bytes;
    uint64_t n;            /* keys */
    uint64_t length;       /* word pieces of all keys together */
    float log_n;           /* ln(1 + n) + 1 */
    float logs[LOG_TABLE]; /* [df]: ln(1 + df) */
    uint32_t state;        /* another after every change of the counts */
    uint32_t *pieces;      /* [pieces_count]: how many keys have each, by id */
    size_t pieces_count;
    struct pair *pairs;
    unsigned pairs_bits;
    size_t pairs_used;
    _Atomic uint64_t *norms; /* [blocks_count, block_rows]: state << 32 | the float's bits */
    struct terms scratch;
    uint64_t *batch; /* [TERMS_AT_ONCE] keys to be counted */
    size_t batch_count;
    int32_t *row; /* the row at hand */
    size_t row_capacity;
};

struct lexical_query {
    struct terms terms;
    float *weights; /* [terms]: of t(q), normalised */
    float *idf;     /* [terms]: of the cosine */
    float *bm25;    /* [terms]: a term's idf / s(q, q) */
    size_t pieces;  /* of the text */
    uint32_t *tf;   /* [terms]: of the key at hand; all 0 in between */
    uint32_t *met;  /* [terms]: the terms that the key at hand has */
    size_t capacity;
    uint64_t *bitmap; /* the pieces that the text has */
    size_t bitmap_words;
    struct terms keys[2]; /* the keys at hand, for their norms */
    int32_t *row;
    size_t row_capacity;
};

static float tf_weight(uint32_t tf) /* 1 + ln tf */
{
    return tf == 1 ? 1 : 1 + logf((float)tf);
}

static uint64_t mix(uint64_t key)
{
    return key * 0x9E3779B97F4A7C15U;
}

static uint64_t pair_key(int32_t first, int32_t second)
{
    return ((uint64_t)(uint32_t)first + 1) << 32 | (uint32_t)second;
}

/* ---- the terms of a text ---- */

static void terms_free(struct terms *t)
{
    free(t->terms);
    free(t->places);
}

static void terms_clear(struct terms *t, size_t pieces)
{
    size_t most = 2 * pieces + 1;
    t->count = 0;
    if (most > t->capacity || t->epoch == UINT32_MAX) {
        size_t places = 256;
        t->capacity = most > t->capacity ? most : t->capacity;
        while (places < 4 * t->capacity) {
            places *= 2;
        }
        t->terms = mem_resize(t->terms, t->capacity * sizeof *t->terms);
        free(t->places);
        t->places = mem_zero(places, sizeof *t->places);
        t->mask = places - 1;
        t->epoch = 0;
    }
    t->epoch++;
}

/* The place of a term, or the empty one where it would stand. */
static struct terms_place *terms_place(const struct terms *t, uint64_t key)
{
    size_t at = (size_t)(mix(key) >> 32) & t->mask;
    while (t->places[at].epoch == t->epoch && t->terms[t->places[at].at].key != key) {
        at = (at + 1) & t->mask;
    }
    return &t->places[at];
}

static void terms_add(struct terms *t, uint64_t key)
{
    struct terms_place *place = terms_place(t, key);
    if (place->epoch == t->epoch) {
        t->terms[place->at].tf++;
        return;
    }
    *place = (struct terms_place){t->epoch, (uint32_t)t->count};
    t->terms[t->count++] = (struct term){key, 1};
}

static void terms_of(struct terms *t, const int32_t *pieces, size_t count)
{
    terms_clear(t, count);
    for (size_t i = 0; i < count; i++) {
        terms_add(t, (uint32_t)pieces[i]);
        if (i > 0) {
            terms_add(t, pair_key(pieces[i - 1], pieces[i]));
        }
    }
}

/* ---- counts ---- */

static struct pair *pair_place(const struct lexical *x, uint64_t key)
{
    size_t mask = ((size_t)1 << x->pairs_bits) - 1;
    size_t at = (size_t)(mix(key) >> (64 - x->pairs_bits));
    while (x->pairs[at].key != key && x->pairs[at].key != 0) {
        at = (at + 1) & mask;
    }
    return &x->pairs[at];
}

/* Room for `more` pairs; those that no key has any longer are dropped. */
static void pairs_reserve(struct lexical *x, size_t more)
{
    size_t places = (size_t)1 << x->pairs_bits;
    if ((x->pairs_used + more) * 3 < places * 2) {
        return;
    }
    struct pair *old = x->pairs;
    size_t live = 0;
    for (size_t i = 0; i < places; i++) {
        live += old[i].df > 0;
    }
    while ((live + more) * 2 > (size_t)1 << x->pairs_bits) {
        x->pairs_bits++;
    }
    x->pairs = mem_zero((size_t)1 << x->pairs_bits, sizeof *x->pairs);
    x->pairs_used = live;
    for (size_t i = 0; i < places; i++) {
        if (old[i].df > 0) {
            *pair_place(x, old[i].key) = old[i];
        }
    }
    free(old);
}

static void pieces_reserve(struct lexical *x, size_t count)
{
    if (count > x->pieces_count) {
        x->pieces = mem_resize(x->pieces, count * sizeof *x->pieces);
        memset(x->pieces + x->pieces_count, 0, (count - x->pieces_count) * sizeof *x->pieces);
        x->pieces_count = count;
    }
}

/* Counts the batch in (change 1) or out (-1, modulo 2^32). */
static void batch_apply(struct lexical *x, uint32_t change)
{
    pairs_reserve(x, x->batch_count);
    for (size_t i = 0; i < x->batch_count; i++) {
        __builtin_prefetch(&x->pairs[mix(x->batch[i]) >> (64 - x->pairs_bits)], 1);
    }
    for (size_t i = 0; i < x->batch_count; i++) {
        struct pair *pair = pair_place(x, x->batch[i]);
        x->pairs_used += pair->key == 0;
        pair->key = x->batch[i];
        pair->df += change;
    }
    x->batch_count = 0;
}

/* Counts one key's text in or out; the batch is left to be applied. */
static void key_count(struct lexical *x, const int32_t *pieces, size_t count, uint32_t change)
{
    terms_of(&x->scratch, pieces, count);
    for (size_t i = 0; i < x->scratch.count; i++) {
        uint64_t key = x->scratch.terms[i].key;
        if (key <= UINT32_MAX) {
            pieces_reserve(x, (size_t)key + 1);
            x->pieces[key] += change;
            continue;
        }
        x->batch[x->batch_count++] = key;
        if (x->batch_count == TERMS_AT_ONCE) {
            batch_apply(x, change);
        }
    }
    x->n += change == 1 ? 1 : UINT64_MAX;
    x->length += change == 1 ? count : -(uint64_t)count;
}

static void state_change(struct lexical *x)
{
    x->log_n = (float)(log(1 + (double)x->n) + 1);
    x->state++;
    if (x->state == 0) { /* a norm of 2^32 states ago must not pass for one of now */
        x->state = 1;
        for (size_t i = 0; i < x->blocks_count * x->block_rows; i++) {
            atomic_store_explicit(&x->norms[i], 0, memory_order_relaxed);
        }
    }
}

/* How many keys have a term. */
static uint32_t df_of(const struct lexical *x, uint64_t key)
{
    if (key <= UINT32_MAX) {
        return key < x->pieces_count ? x->pieces[key] : 0;
    }
    return pair_place(x, key)->df;
}

/* Of the cosine: ln((1 + n) / (1 + df)) + 1 */
static float idf_of(const struct lexical *x, uint32_t df)
{
    return x->log_n - (df < LOG_TABLE ? x->logs[df] : logf(1 + (float)df));
}

/* ---- rows ---- */

static size_t pieces_widen(const struct lexical *x, const void *ids, size_t first, size_t count, int32_t **row,
                           size_t *capacity)
{
    if (count > *capacity) {
        *capacity = 2 * count;
        *row = mem_resize(*row, *capacity * sizeof **row);
    }
    if (x->piece_bytes == sizeof(uint16_t)) {
        const uint16_t *from = (const uint16_t *)ids + first;
        for (size_t i = 0; i < count; i++) {
            (*row)[i] = from[i];
        }
    } else if (count) {
        memcpy(*row, (const uint32_t *)ids + first, count * sizeof **row);
    }
    return count;
}

static size_t row_read(const struct lexical *x, uint64_t slot, int32_t **row, size_t *capacity)
{
    const struct rows *b = &x->blocks[slot / x->block_rows];
    size_t r = slot % x->block_rows;
    return pieces_widen(x, b->ids, b->starts[r], b->starts[r + 1] - b->starts[r], row, capacity);
}

static bool row_same(const struct lexical *x, const struct rows *old, const struct pieces_block *new, size_t r)
{
    size_t count = new->starts[r + 1] - new->starts[r];
    if (r >= old->rows || old->used[r] != new->used[r] || old->starts[r + 1] - old->starts[r] != count) {
        return false;
    }
    return memcmp(old->ids + old->starts[r] * x->piece_bytes,
                  (const unsigned char *)new->ids + new->starts[r] * x->piece_bytes, count * x->piece_bytes) == 0;
}

/* Counts the rows that differ out of the old copy, or into the counts from the new block. */
static void rows_count(struct lexical *x, const struct rows *old, const struct pieces_block *new, uint32_t rows,
                       uint32_t change)
{
    bool in = change == 1;
    for (uint32_t r = 0; r < (in ? rows : old->rows); r++) {
        const uint8_t *used = in ? new->used : old->used;
        const uint32_t *starts = in ? new->starts : old->starts;
        const void *ids = in ? new->ids : old->ids;
        if (!used[r] || (r < rows && row_same(x, old, new, r))) {
            continue;
        }
        size_t count = pieces_widen(x, ids, starts[r], starts[r + 1] - starts[r], &x->row, &x->row_capacity);
        key_count(x, x->row, count, change);
    }
    batch_apply(x, change);
}

static void rows_copy(const struct lexical *x, struct rows *out, const struct pieces_block *from, uint32_t rows,
                      uint64_t version)
{
    size_t starts_bytes = (rows + 1) * sizeof *out->starts, used_bytes = (rows + 3) / 4 * 4;
    size_t ids_bytes = from->starts[rows] * x->piece_bytes;
    free(out->starts);
    unsigned char *memory = mem_alloc(starts_bytes + used_bytes + ids_bytes);
    out->starts = (uint32_t *)(void *)memory;
    out->used = memory + starts_bytes;
    out->ids = out->used + used_bytes;
    out->rows = rows;
    out->version = version;
    memcpy(out->starts, from->starts, starts_bytes);
    if (rows) {
        memcpy(out->used, from->used, rows);
        memcpy(out->ids, from->ids, ids_bytes);
    }
}

static void blocks_reserve(struct lexical *x, size_t count)
{
    if (count <= x->blocks_count) {
        return;
    }
    x->blocks = mem_resize(x->blocks, count * sizeof *x->blocks);
    memset(x->blocks + x->blocks_count, 0, (count - x->blocks_count) * sizeof *x->blocks);
    x->norms = mem_resize(x->norms, count * x->block_rows * sizeof *x->norms);
    for (size_t i = x->blocks_count * x->block_rows; i < count * x->block_rows; i++) {
        atomic_init(&x->norms[i], 0);
    }
    x->blocks_count = count;
}

void lexical_sync(struct lexical *x, const struct snapshot *s)
{
    const struct keys_view *view = snapshot_keys(s);
    bool changed = false;
    x->piece_bytes = snapshot_piece_bytes(s);
    x->block_rows = snapshot_block_rows(s);
    blocks_reserve(x, view->count);
    for (size_t i = 0; i < x->blocks_count; i++) {
        static const struct keys_block none = {0}; /* a block that an older snapshot does not have yet */
        static const uint32_t starts[1] = {0};
        const struct keys_block *now = i < view->count ? &view->blocks[i] : &none;
        struct rows *mine = &x->blocks[i];
        struct pieces_block block = {.starts = starts};
        if (mine->version == now->version) {
            continue;
        }
        if (i < view->count) {
            snapshot_pieces(s, i, &block);
        }
        rows_count(x, mine, &block, now->rows, UINT32_MAX);
        rows_count(x, mine, &block, now->rows, 1);
        rows_copy(x, mine, &block, now->rows, now->version);
        changed = true;
    }
    if (changed) {
        state_change(x);
    }
}

static void key_change(struct lexical *x, uint64_t slot, uint32_t change)
{
    size_t count = row_read(x, slot, &x->row, &x->row_capacity);
    key_count(x, x->row, count, change);
    batch_apply(x, change);
    state_change(x);
}

void lexical_omit(struct lexical *x, uint64_t slot)
{
    key_change(x, slot, UINT32_MAX);
}

void lexical_restore(struct lexical *x, uint64_t slot)
{
    key_change(x, slot, 1);
}

struct lexical *lexical_open(void)
{
    struct lexical *x = mem_zero(1, sizeof *x);
    x->pairs_bits = 12;
    x->pairs = mem_zero((size_t)1 << x->pairs_bits, sizeof *x->pairs);
    for (size_t df = 0; df < LOG_TABLE; df++) {
        x->logs[df] = logf(1 + (float)df);
    }
    x->batch = mem_alloc(TERMS_AT_ONCE * sizeof *x->batch);
    state_change(x);
    return x;
}

void lexical_close(struct lexical *x)
{
    if (!x) {
        return;
    }
    for (size_t i = 0; i < x->blocks_count; i++) {
        free(x->blocks[i].starts);
    }
    terms_free(&x->scratch);
    free(x->row);
    free(x->batch);
    free(x->norms);
    free(x->pairs);
    free(x->pieces);
    free(x->blocks);
    free(x);
}

/* ---- a text ---- */

struct lexical_query *lexical_query_open(void)
{
    return mem_zero(1, sizeof(struct lexical_query));
}

void lexical_query_close(struct lexical_query *q)
{
    if (!q) {
        return;
    }
    terms_free(&q->terms);
    terms_free(&q->keys[0]);
    terms_free(&q->keys[1]);
    free(q->weights);
    free(q->idf);
    free(q->bm25);
    free(q->tf);
    free(q->met);
    free(q->bitmap);
    free(q->row);
    free(q);
}

static void query_reserve(struct lexical_query *q, const struct lexical *x)
{
    size_t words = x->pieces_count / 64 + 1;
    if (q->terms.count > q->capacity) {
        q->capacity = 2 * q->terms.count;
        q->weights = mem_resize(q->weights, q->capacity * sizeof *q->weights);
        q->idf = mem_resize(q->idf, q->capacity * sizeof *q->idf);
        q->bm25 = mem_resize(q->bm25, q->capacity * sizeof *q->bm25);
        q->met = mem_resize(q->met, q->capacity * sizeof *q->met);
        free(q->tf);
        q->tf = mem_zero(q->capacity, sizeof *q->tf);
    }
    if (words > q->bitmap_words) {
        free(q->bitmap);
        q->bitmap = mem_zero(words, sizeof *q->bitmap);
        q->bitmap_words = words;
    }
}

/* k1 * (1 - b + b * length / mean length): what a term's tf is weighed against. */
static float bm25_slowness(const struct lexical *x, size_t length)
{
    const double k1 = 1.2, b = 0.75;
    return x->length ? (float)(k1 * (1 - b + b * (double)length * (double)x->n / (double)x->length)) : (float)k1;
}

/* Each term's idf, and that it gives 1 when the text is scored by itself. */
static void bm25_set(struct lexical_query *q, const struct lexical *x, const uint32_t *df)
{
    double itself = 0;
    float slowness = bm25_slowness(x, q->pieces);
    for (size_t i = 0; i < q->terms.count; i++) {
        double tf = (double)q->terms.terms[i].tf, n = (double)x->n;
        q->bm25[i] = df[i] ? (float)log(1 + (n - (double)df[i] + 0.5) / ((double)df[i] + 0.5)) : 0;
        itself += (double)q->bm25[i] * tf / (tf + (double)slowness);
    }
    for (size_t i = 0; i < q->terms.count && itself > 0; i++) {
        q->bm25[i] = (float)((double)q->bm25[i] / itself);
    }
}

void lexical_query_set(struct lexical_query *q, const struct lexical *x, const int32_t *pieces, size_t count)
{
    for (size_t i = 0; i < q->terms.count; i++) { /* the last text's pieces */
        uint64_t key = q->terms.terms[i].key;
        if (key / 64 < q->bitmap_words) {
            q->bitmap[key / 64] = 0;
        }
    }
    terms_of(&q->terms, pieces, count);
    query_reserve(q, x);
    q->pieces = count;
    double squares = 0;
    for (size_t i = 0; i < q->terms.count; i++) {
        const struct term *term = &q->terms.terms[i];
        uint32_t df = df_of(x, term->key);
        q->met[i] = df;
        q->idf[i] = idf_of(x, df);
        q->weights[i] = df ? tf_weight(term->tf) * q->idf[i] : 0;
        squares += (double)q->weights[i] * (double)q->weights[i];
        if (df && term->key <= UINT32_MAX) {
            q->bitmap[term->key / 64] |= (uint64_t)1 << term->key % 64;
        }
    }
    for (size_t i = 0; i < q->terms.count && squares > 0; i++) {
        q->weights[i] /= (float)sqrt(squares);
    }
    bm25_set(q, x, q->met);
}

void lexical_query_of(struct lexical_query *q, const struct lexical *x, uint64_t slot)
{
    size_t count = row_read(x, slot, &q->row, &q->row_capacity);
    lexical_query_set(q, x, q->row, count);
}

/* ---- scores ---- */

static float norm_kept(const struct lexical *x, uint64_t slot)
{
    uint64_t kept = atomic_load_explicit(&x->norms[slot], memory_order_relaxed);
    uint32_t bits = (uint32_t)kept;
    float norm = -1;
    if (kept >> 32 == x->state) {
        memcpy(&norm, &bits, sizeof norm);
    }
    return norm;
}

static void norm_keep(struct lexical *x, uint64_t slot, float norm)
{
    uint32_t bits;
    memcpy(&bits, &norm, sizeof bits);
    atomic_store_explicit(&x->norms[slot], (uint64_t)x->state << 32 | bits, memory_order_relaxed);
}

/* The key's terms; the counts of its pairs are on their way when this returns. */
static void norm_begin(struct lexical_query *q, const struct lexical *x, struct terms *terms, uint64_t slot)
{
    size_t count = row_read(x, slot, &q->row, &q->row_capacity);
    terms_of(terms, q->row, count);
    for (size_t i = 0; i < terms->count; i++) {
        if (terms->terms[i].key > UINT32_MAX) {
            __builtin_prefetch(&x->pairs[mix(terms->terms[i].key) >> (64 - x->pairs_bits)]);
        }
    }
}

static float norm_end(const struct lexical *x, const struct terms *terms)
{
    float squares = 0;
    for (size_t i = 0; i < terms->count; i++) {
        float weight = tf_weight(terms->terms[i].tf) * idf_of(x, df_of(x, terms->terms[i].key));
        squares += weight * weight;
    }
    return sqrtf(squares);
}

static void term_meet(struct lexical_query *q, uint64_t key, size_t *met)
{
    const struct terms_place *place = terms_place(&q->terms, key);
    if (place->epoch == q->terms.epoch && q->tf[place->at]++ == 0) {
        q->met[(*met)++] = place->at;
    }
}

/* The terms that text and key have in common into q->met and q->tf; how many. */
static size_t terms_meet(struct lexical_query *q, size_t count)
{
    size_t met = 0;
    bool before = false;
    for (size_t i = 0; i < count; i++) {
        uint32_t piece = (uint32_t)q->row[i];
        bool has = piece / 64 < q->bitmap_words && (q->bitmap[piece / 64] >> piece % 64 & 1);
        if (has) {
            term_meet(q, piece, &met);
            if (before) {
                term_meet(q, pair_key(q->row[i - 1], q->row[i]), &met);
            }
        }
        before = has;
    }
    return met;
}

/* Scores of one key; the cosine before the division by the key's norm. */
static void key_score(struct lexical_query *q, const struct lexical *x, uint64_t slot, float of[LEXICAL_FORMS])
{
    size_t count = row_read(x, slot, &q->row, &q->row_capacity), met = terms_meet(q, count);
    float product = 0, sum = 0, slowness = met ? bm25_slowness(x, count) : 0;
    for (size_t i = 0; i < met; i++) {
        uint32_t at = q->met[i];
        float tf = (float)q->tf[at];
        product += q->weights[at] * tf_weight(q->tf[at]) * q->idf[at];
        sum += q->bm25[at] * tf / (tf + slowness);
        q->tf[at] = 0;
    }
    of[LEXICAL_COSINE] = product;
    of[LEXICAL_BM25] = sum;
}

static void row_prefetch(const struct lexical *x, uint64_t slot)
{
    const struct rows *b = &x->blocks[slot / x->block_rows];
    const unsigned char *ids = b->ids + b->starts[slot % x->block_rows] * x->piece_bytes;
    __builtin_prefetch(ids);
    __builtin_prefetch(ids + 63);
    __builtin_prefetch(&x->norms[slot]);
}

/* Divides each product by its key's norm. */
static void norms_divide(struct lexical_query *q, struct lexical *x, const uint64_t *slots, size_t n, float *cosines)
{
    size_t waiting = n; /* whose norm has begun; n: none */
    int turn = 0;
    for (size_t i = 0; i <= n; i++) {
        float norm = 1;
        if (i < n && cosines[i] != 0 && (norm = norm_kept(x, slots[i])) > 0) {
            cosines[i] /= norm;
        }
        bool begin = norm < 0;
        if (begin) {
            norm_begin(q, x, &q->keys[turn], slots[i]);
        }
        if ((begin || i == n) && waiting < n) {
            norm = norm_end(x, &q->keys[!turn]);
            norm_keep(x, slots[waiting], norm);
            cosines[waiting] /= norm;
        }
        if (begin) {
            waiting = i;
            turn = !turn;
        }
    }
}

void lexical_scores(struct lexical_query *q, struct lexical *x, const uint64_t *slots, size_t n,
                    float *const scores[LEXICAL_FORMS])
{
    for (size_t i = 0; i < n; i++) {
        float of[LEXICAL_FORMS];
        if (i + 2 * AHEAD < n) {
            __builtin_prefetch(
                &x->blocks[slots[i + 2 * AHEAD] / x->block_rows].starts[slots[i + 2 * AHEAD] % x->block_rows]);
        }
        if (i + AHEAD < n) {
            row_prefetch(x, slots[i + AHEAD]);
        }
        key_score(q, x, slots[i], of);
        for (int form = 0; form < LEXICAL_FORMS; form++) {
            if (scores[form]) {
                scores[form][i] = of[form];
            }
        }
    }
    if (scores[LEXICAL_COSINE]) {
        norms_divide(q, x, slots, n, scores[LEXICAL_COSINE]);
    }
}
