/* The search: for each query the b keys of largest q.k. A tile of keys (widened to f32, small enough for the cache) is
 * multiplied with the queries, which lie in panels across the lanes of a vector; a heap of at most b hits a query has
 * the worst on top: its score is the query's threshold, so most scores cost one comparison.
 *
 * What surprises: ties must come out the same whatever the blocks' order, so a score equal to the threshold is looked
 * at too, and the order of two hits is total: score, then tie, then slot. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "gpu/cpu/internal.h"

#define TILE 64   /* keys multiplied at once: 96 KiB of f32 at 384 dimensions */
#define GROUP 256 /* queries of one walk over the keys */
#define LOOK 4    /* keys whose scores are compared with the thresholds at once */

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
    struct hit *hits;  /* [queries, b]: heaps, the worst hit on top */
    uint32_t *counts;  /* [queries] */
    float *thresholds; /* [queries up to whole panels]: the worst score of a full heap */
    float *panels;     /* the queries: panels of [dim, panel] */
    float *tile;       /* [TILE, dim] keys in f32 */
    float *scores;     /* [TILE, panel] */
    void *memory;      /* of all of them */
    size_t bytes;
};

struct scan {
    const struct kernels *kernels;
    const struct keys_view *view;
    struct found *found;
    size_t queries; /* of the group */
    size_t b;       /* room in a heap: no more than there are keys */
};

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

/* Puts h in place of the top of a heap of `count` hits. */
static void heap_sink(const struct keys_view *k, struct hit *heap, size_t count, struct hit h)
{
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= count) {
            break;
        }
        if (child + 1 < count && hit_better(k, &heap[child], &heap[child + 1])) {
            child++;
        }
        if (!hit_better(k, &h, &heap[child])) {
            break;
        }
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = h;
}

/* Keeps h if it is among the best b. */
static void heap_offer(const struct keys_view *k, struct hit *heap, uint32_t *count, size_t b, struct hit h)
{
    if (*count == b) {
        if (hit_better(k, &h, &heap[0])) {
            heap_sink(k, heap, b, h);
        }
        return;
    }
    size_t i = (*count)++;
    while (i > 0 && hit_better(k, &heap[(i - 1) / 2], &h)) {
        heap[i] = heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    heap[i] = h;
}

/* ---- scan -------------------------------------------------------------------------------------------------------- */

/* Offers the scores [rows, columns] of keys block/first.. to the queries first_query... */
static void scores_offer(const struct scan *scan, uint32_t block, size_t first, size_t rows, size_t first_query,
                         size_t columns)
{
    const struct found *f = scan->found;
    const uint8_t *candidate = scan->view->blocks[block].candidate + first;
    float *thresholds = f->thresholds + first_query;
    size_t queries = scan->queries - first_query < columns ? scan->queries - first_query : columns;
    for (size_t look = 0; look < rows; look += LOOK) {
        size_t end = look + LOOK < rows ? look + LOOK : rows;
        if (!scan->kernels->reaches(f->scores + look * columns, thresholds, end - look, columns)) {
            continue;
        }
        for (size_t r = look; r < end; r++) {
            for (size_t q = 0; candidate[r] && q < queries; q++) {
                struct hit h = {f->scores[r * columns + q], block, (uint32_t)(first + r)};
                if (h.score >= thresholds[q]) {
                    struct hit *heap = f->hits + (first_query + q) * scan->b;
                    uint32_t *count = &f->counts[first_query + q];
                    heap_offer(scan->view, heap, count, scan->b, h);
                    thresholds[q] = *count == scan->b ? heap[0].score : thresholds[q];
                }
            }
        }
    }
}

static void block_scan(const struct scan *scan, uint32_t index)
{
    const struct kernels *kernels = scan->kernels;
    const struct keys_block *block = &scan->view->blocks[index];
    const struct found *f = scan->found;
    const size_t dim = scan->view->dim;
    for (size_t first = 0; first < block->rows; first += TILE) {
        size_t rows = block->rows - first < TILE ? block->rows - first : TILE;
        const float *tile = (const float *)block->vectors + first * dim;
        if (scan->view->dtype == DTYPE_BF16) {
            kernels->widen(f->tile, (const uint16_t *)block->vectors + first * dim, rows * dim);
            tile = f->tile;
        }
        for (size_t q = 0; q < scan->queries; q += kernels->panel) {
            size_t columns = scan->queries - q <= kernels->half ? kernels->half : kernels->panel;
            kernels->multiply(f->scores, tile, dim, 1, rows, dim, f->panels + q * dim, columns);
            scores_offer(scan, index, first, rows, q, columns);
        }
    }
}

/* Takes a query's hits out of its heap, the worst first. */
static void heap_empty(const struct keys_view *view, struct hit *heap, size_t count, struct keys_hit *out)
{
    for (; count > 0; count--) {
        struct hit worst = heap[0];
        const struct keys_block *block = &view->blocks[worst.block];
        out[count - 1] =
            (struct keys_hit){worst.score, block->kind, block->first_slot + worst.row, block->ties[worst.row]};
        heap_sink(view, heap, count - 1, heap[count - 1]);
    }
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
static void panels_pack(float *panels, const float *queries, size_t n, size_t dim, const struct kernels *k)
{
    for (size_t first = 0; first < n; first += k->panel) {
        size_t columns = n - first <= k->half ? k->half : k->panel;
        float *panel = panels + first * dim;
        for (size_t q = 0; q < columns; q++) {
            for (size_t c = 0; c < dim; c++) {
                panel[c * columns + q] = first + q < n ? queries[(first + q) * dim + c] : 0;
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
static size_t found_places(struct found *f, unsigned char *memory, size_t queries, size_t columns, size_t b, size_t dim,
                           size_t panel)
{
    size_t next = 0;
    f->hits = found_place(memory, &next, queries * b * sizeof *f->hits);
    f->counts = found_place(memory, &next, queries * sizeof *f->counts);
    f->thresholds = found_place(memory, &next, columns * sizeof *f->thresholds);
    f->panels = found_place(memory, &next, columns * dim * sizeof *f->panels);
    f->tile = found_place(memory, &next, TILE * dim * sizeof *f->tile);
    f->scores = found_place(memory, &next, TILE * panel * sizeof *f->scores);
    return next;
}

static struct found *found_prepare(struct stream *s, size_t queries, size_t columns, size_t b, size_t dim)
{
    const size_t panel = s->cpu->kernels->panel;
    if (!s->found) {
        s->found = mem_zero(1, sizeof *s->found);
    }
    size_t bytes = found_places(s->found, NULL, queries, columns, b, dim, panel);
    found_places(s->found, memory_grow(&s->found->memory, &s->found->bytes, bytes), queries, columns, b, dim, panel);
    return s->found;
}

void cpu_keys_scan(struct stream *s, struct keys *k, const struct keys_view *view, const struct tensor *queries,
                   size_t b, enum key_kind kinds, struct keys_hit *hits, uint32_t *counts)
{
    const struct kernels *kernels = s->cpu->kernels;
    const size_t n = queries->rows, rows = keys_count(view, kinds), dim = k->dim;
    const size_t group = n < GROUP ? n : GROUP,
                 columns = (group + kernels->panel - 1) / kernels->panel * kernels->panel;
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
    scan.found = found_prepare(s, group, columns, scan.b, dim);
    for (size_t first = 0; first < n; first += group) {
        const struct found *f = scan.found;
        scan.queries = n - first < group ? n - first : group;
        panels_pack(f->panels, (const float *)queries->data + first * dim, scan.queries, dim, kernels);
        memset(f->counts, 0, group * sizeof *f->counts);
        for (size_t q = 0; q < columns; q++) { /* nothing reaches a padding column's */
            f->thresholds[q] = q < scan.queries ? -INFINITY : INFINITY;
        }
        for (size_t i = 0; i < view->count; i++) {
            if (view->blocks[i].kind & kinds) {
                block_scan(&scan, (uint32_t)i);
            }
        }
        for (size_t q = 0; q < scan.queries; q++) {
            counts[first + q] = f->counts[q];
            heap_empty(view, f->hits + q * scan.b, f->counts[q], hits + (first + q) * b);
        }
    }
}
