/* The search: for each query the b keys of largest q.k. A tile of keys (widened to f32, small enough for the cache) is
 * multiplied with the queries, which lie in panels across the lanes of a vector. A query's hits are collected, and
 * whenever its room is full about b are kept: the lowest score of them is the query's threshold, so most scores cost
 * one comparison.
 *
 * What surprises: ties must come out the same whatever the blocks' order, so a score equal to the threshold is looked
 * at too, and the order of two hits is total: score, then tie, then slot. */
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "gpu/cpu/internal.h"

#define TILE 64   /* keys multiplied at once: 96 KiB of f32 at 384 dimensions */
#define GROUP 256 /* queries of one walk over the keys */

struct keys {
    size_t dim;
    enum dtype dtype;
};

struct hit {
    float score;
    uint32_t block;
    uint32_t row;
};

/* What a stream has found so far for each query of the group; its memory is used again. */
struct found {
    struct hit *hits;  /* [queries, room] */
    uint32_t *counts;  /* [queries] */
    float *thresholds; /* [queries up to whole panels]: the lowest score that can be among the b best */
    void *panels;      /* the queries: panels of [dim, panel] f32, or as they are cut */
    void *tile;        /* [TILE, dim] keys in f32, or cut_scores' scratch */
    float *scores;     /* [TILE, panel] */
    void *memory;      /* of all of them */
    size_t bytes;
};

struct scan {
    const struct kernels *kernels;
    const struct keys_view *view;
    struct found *found;
    size_t queries; /* of the group */
    size_t b;       /* no more than there are keys */
    size_t room;    /* for hits of a query: more than b, so that they need not be looked through often */
    bool cuts;      /* keys are multiplied in bf16, with queries that are cut for that */
};

/* Bytes of a panel of queries. */
static size_t panel_bytes(const struct kernels *k, size_t dim, bool cuts)
{
    return (cuts ? CUT_PARTS * sizeof(uint16_t) : sizeof(float)) * dim * k->panel;
}

static void *panel_of(const struct scan *scan, size_t first_query)
{
    return (char *)scan->found->panels +
           first_query / scan->kernels->panel * panel_bytes(scan->kernels, scan->view->dim, scan->cuts);
}

/* ---- hits -------------------------------------------------------------------------------------------------------- */

static bool hit_better(const struct keys_view *k, const struct hit *a, const struct hit *b)
{
    if (a->score != b->score) {
        return a->score > b->score;
    }
    const struct keys_block *of_a = &k->blocks[a->block], *of_b = &k->blocks[b->block];
    if (of_a->ties[a->row] != of_b->ties[b->row]) {
        return of_a->ties[a->row] < of_b->ties[b->row];
    }
    return of_a->first_slot + a->row < of_b->first_slot + b->row;
}

static void hits_swap(struct hit *hits, size_t i, size_t j)
{
    struct hit h = hits[i];
    hits[i] = hits[j];
    hits[j] = h;
}

/* Moves those that are better than one of them before it, and the others behind; returns where that one is. n >= 3. */
static size_t hits_part(const struct keys_view *k, struct hit *hits, size_t n)
{
    const size_t middle = n / 2, last = n - 1;
    if (hit_better(k, &hits[middle], &hits[0])) {
        hits_swap(hits, 0, middle);
    }
    if (hit_better(k, &hits[last], &hits[0])) {
        hits_swap(hits, 0, last);
    }
    if (hit_better(k, &hits[middle], &hits[last])) { /* the middle one of three goes to the end */
        hits_swap(hits, middle, last);
    }
    const struct hit pivot = hits[last];
    size_t place = 0;
    for (size_t i = 0; i < last; i++) {
        if (hit_better(k, &hits[i], &pivot)) {
            hits_swap(hits, i, place++);
        }
    }
    hits_swap(hits, place, last);
    return place;
}

static void hits_sort(const struct keys_view *k, struct hit *hits, size_t n)
{
    enum { FEW = 12 };
    while (n > FEW) {
        const size_t place = hits_part(k, hits, n), behind = n - place - 1;
        if (place < behind) { /* the smaller part first: a shallow stack */
            hits_sort(k, hits, place);
            hits += place + 1;
            n = behind;
        } else {
            hits_sort(k, hits + place + 1, behind);
            n = place;
        }
    }
    for (size_t i = 1; i < n; i++) {
        struct hit h = hits[i];
        size_t at = i;
        for (; at > 0 && hit_better(k, &h, &hits[at - 1]); at--) {
            hits[at] = hits[at - 1];
        }
        hits[at] = h;
    }
}

/* Leaves those that can be among the b best of n > b hits, a few more than b, by the bins that their scores fall into;
 * where most are in one bin, b, sorted. Returns how many; *least: the lowest score of them. */
static size_t hits_cut(const struct keys_view *k, struct hit *hits, size_t n, size_t b, float *least)
{
    enum { BINS = 256 };
    float low = hits[0].score, high = low;
    for (size_t i = 1; i < n; i++) {
        low = hits[i].score < low ? hits[i].score : low;
        high = hits[i].score > high ? hits[i].score : high;
    }
    size_t kept = n;
    const float scale = (BINS - 1) / (high - low);
    if (scale > 0 && scale <= FLT_MAX) { /* neither all the same, or as good as that, nor without an end */
        uint32_t bins[BINS] = {0};
        size_t bin = BINS, above = 0;
        for (size_t i = 0; i < n; i++) {
            bins[(size_t)((hits[i].score - low) * scale)]++;
        }
        while (above < b) {
            above += bins[--bin];
        }
        for (size_t i = kept = 0; i < n; i++) { /* without a branch on what nobody can predict */
            const struct hit h = hits[i];
            hits[kept] = h;
            kept += (size_t)((h.score - low) * scale) >= bin;
        }
    }
    if (kept > b + (n - b) / 2) {
        hits_sort(k, hits, kept);
        kept = b;
    }
    *least = hits[0].score;
    for (size_t i = 1; i < kept; i++) {
        *least = hits[i].score < *least ? hits[i].score : *least;
    }
    return kept;
}

/* ---- scan -------------------------------------------------------------------------------------------------------- */

static void hit_add(const struct scan *scan, size_t query, struct hit h)
{
    const struct found *f = scan->found;
    struct hit *hits = f->hits + query * scan->room;
    hits[f->counts[query]++] = h;
    if (f->counts[query] == scan->room) {
        f->counts[query] = (uint32_t)hits_cut(scan->view, hits, scan->room, scan->b, &f->thresholds[query]);
    }
}

/* Takes the hits out of the scores [rows, columns] of keys block/first.. for the queries first_query... */
static void scores_take(const struct scan *scan, uint32_t block, size_t first, size_t rows, size_t first_query,
                        size_t columns)
{
    const struct found *f = scan->found;
    const uint8_t *candidate = scan->view->blocks[block].candidate + first;
    const float *thresholds = f->thresholds + first_query;
    uint32_t reaching[TILE];
    scan->kernels->reaching(reaching, f->scores, thresholds, rows, columns);
    for (size_t r = 0; r < rows; r++) {
        for (uint32_t left = candidate[r] ? reaching[r] : 0; left; left &= left - 1) {
            const size_t q = (size_t)__builtin_ctz(left);
            const struct hit h = {f->scores[r * columns + q], block, (uint32_t)(first + r)};
            if (h.score >= thresholds[q]) {
                hit_add(scan, first_query + q, h);
            }
        }
    }
}

/* scores [rows, columns] of a tile of keys and the panel of the queries from first_query on. */
static void tile_scores(const struct scan *scan, const void *keys, size_t rows, size_t first_query, size_t columns)
{
    const struct kernels *kernels = scan->kernels;
    const struct found *f = scan->found;
    const size_t dim = scan->view->dim;
    if (scan->cuts) {
        kernels->cut_scores(f->scores, keys, rows, dim, panel_of(scan, first_query), columns, f->tile);
    } else {
        kernels->multiply(f->scores, keys, dim, 1, rows, dim, panel_of(scan, first_query), columns);
    }
}

static void block_scan(const struct scan *scan, uint32_t index)
{
    const struct kernels *kernels = scan->kernels;
    const struct keys_block *block = &scan->view->blocks[index];
    const struct found *f = scan->found;
    const size_t dim = scan->view->dim, row_bytes = dim * dtype_bytes(scan->view->dtype);
    for (size_t first = 0; first < block->rows; first += TILE) {
        const size_t rows = block->rows - first < TILE ? block->rows - first : TILE;
        const void *keys = (const char *)block->vectors + first * row_bytes;
        if (scan->view->dtype == DTYPE_BF16 && !scan->cuts) {
            kernels->widen(f->tile, keys, rows * dim);
            keys = f->tile;
        }
        for (size_t q = 0; q < scan->queries; q += kernels->panel) {
            const size_t columns = scan->queries - q <= kernels->half ? kernels->half : kernels->panel;
            tile_scores(scan, keys, rows, q, columns);
            scores_take(scan, index, first, rows, q, columns);
        }
    }
}

/* A query's hits, the best first; how many. */
static uint32_t hits_give(const struct scan *scan, size_t query, struct keys_hit *out)
{
    struct hit *hits = scan->found->hits + query * scan->room;
    size_t count = scan->found->counts[query];
    if (count > scan->b) {
        count = hits_cut(scan->view, hits, count, scan->b, &scan->found->thresholds[query]);
    }
    hits_sort(scan->view, hits, count);
    count = count < scan->b ? count : scan->b;
    for (size_t i = 0; i < count; i++) {
        const struct keys_block *block = &scan->view->blocks[hits[i].block];
        out[i] =
            (struct keys_hit){hits[i].score, block->kind, block->first_slot + hits[i].row, block->ties[hits[i].row]};
    }
    return (uint32_t)count;
}

/* ---- the caller's side ------------------------------------------------------------------------------------------- */

int cpu_keys_open(struct backend *b, size_t dim, enum dtype dtype, struct keys **out, struct error *e)
{
    (void)b, (void)e;
    struct keys *k = mem_zero(1, sizeof *k);
    k->dim = dim;
    k->dtype = dtype;
    *out = k;
    return 0;
}

void cpu_keys_close(struct keys *k)
{
    free(k);
}

void found_free(struct found *f)
{
    if (f) {
        free(f->memory);
        free(f);
    }
}

static size_t keys_count(const struct keys_view *view, enum key_kind kinds)
{
    size_t rows = 0;
    for (size_t i = 0; i < view->count; i++) {
        rows += view->blocks[i].kind & kinds ? view->blocks[i].rows : 0;
    }
    return rows;
}

/* queries [n, dim] across the lanes: panels of [dim, panel], the last one of [dim, half] where that is enough. */
static void panels_pack(const struct scan *scan, const float *queries, size_t dim)
{
    const struct kernels *k = scan->kernels;
    for (size_t first = 0; first < scan->queries; first += k->panel) {
        const size_t left = scan->queries - first, n = left < k->panel ? left : k->panel;
        const size_t columns = n <= k->half ? k->half : k->panel;
        float *panel = panel_of(scan, first);
        if (scan->cuts) {
            k->queries_cut(panel_of(scan, first), queries + first * dim, n, dim);
            continue;
        }
        for (size_t q = 0; q < columns; q++) {
            for (size_t c = 0; c < dim; c++) {
                panel[c * columns + q] = q < n ? queries[(first + q) * dim + c] : 0;
            }
        }
    }
}

/* Room for `bytes` at *next, which moves on by whole cache lines. memory NULL: only that. */
static void *found_place(unsigned char *memory, size_t *next, size_t bytes)
{
    void *place = memory ? memory + *next : NULL;
    *next += (bytes + 63) / 64 * 64;
    return place;
}

/* Places all in `memory`, one after the other; returns the bytes that they take. */
static size_t found_places(struct found *f, unsigned char *memory, const struct scan *scan, size_t group)
{
    const struct kernels *k = scan->kernels;
    const size_t panels = (group + k->panel - 1) / k->panel, columns = panels * k->panel, dim = scan->view->dim;
    size_t next = 0;
    f->hits = found_place(memory, &next, group * scan->room * sizeof *f->hits);
    f->counts = found_place(memory, &next, group * sizeof *f->counts);
    f->thresholds = found_place(memory, &next, columns * sizeof *f->thresholds);
    f->panels = found_place(memory, &next, panels * panel_bytes(k, dim, scan->cuts));
    f->tile = found_place(memory, &next, TILE * dim * sizeof(float));
    f->scores = found_place(memory, &next, TILE * k->panel * sizeof *f->scores);
    return next;
}

static struct found *found_prepare(struct stream *s, const struct scan *scan, size_t group)
{
    if (!s->found) {
        s->found = mem_zero(1, sizeof *s->found);
    }
    size_t bytes = found_places(s->found, NULL, scan, group);
    found_places(s->found, memory_grow(&s->found->memory, &s->found->bytes, bytes), scan, group);
    return s->found;
}

void cpu_keys_scan(struct stream *s, struct keys *k, const struct keys_view *view, const struct tensor *queries,
                   size_t b, enum key_kind kinds, struct keys_hit *hits, uint32_t *counts)
{
    const struct kernels *kernels = s->cpu->kernels;
    const size_t n = queries->rows, rows = keys_count(view, kinds), dim = k->dim;
    const size_t group = n < GROUP ? n : GROUP;
    if (s->error.kind != ERROR_NONE) {
        return;
    }
    if (view->dim != dim || view->dtype != k->dtype || queries->columns != dim) {
        error_set(&s->error, ERROR_FATAL, E_INTERNAL,
                  "keys of %zu dimensions (dtype %d) and queries of %zu where %zu (dtype %d) are expected", view->dim,
                  (int)view->dtype, queries->columns, dim, (int)k->dtype);
        return;
    }
    if (b == 0 || rows == 0) {
        memset(counts, 0, n * sizeof *counts);
        return;
    }
    struct scan scan = {.kernels = kernels, .view = view, .b = b < rows ? b : rows};
    scan.room = scan.b + scan.b / 2 + 16;
    scan.room = scan.room < rows ? scan.room : rows + 1; /* never full */
    scan.cuts = kernels->cut_scores && k->dtype == DTYPE_BF16 && dim % CUT_DEPTH == 0;
    scan.found = found_prepare(s, &scan, group);
    for (size_t first = 0; first < n; first += group) {
        const struct found *f = scan.found;
        scan.queries = n - first < group ? n - first : group;
        panels_pack(&scan, (const float *)queries->data + first * dim, dim);
        memset(f->counts, 0, group * sizeof *f->counts);
        const size_t columns = (scan.queries + kernels->panel - 1) / kernels->panel * kernels->panel;
        for (size_t q = 0; q < columns; q++) { /* nothing reaches a padding column's */
            f->thresholds[q] = q < scan.queries ? -INFINITY : INFINITY;
        }
        for (size_t i = 0; i < view->count; i++) {
            if (view->blocks[i].kind & kinds) {
                block_scan(&scan, (uint32_t)i);
            }
        }
        for (size_t q = 0; q < scan.queries; q++) {
            counts[first + q] = hits_give(&scan, q, hits + (first + q) * b);
        }
    }
}
