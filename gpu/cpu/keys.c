/* The search: for each query the b keys of largest q.k. The workers take blocks off a counter; each multiplies a tile
 * of keys (widened to f32, small enough for the cache) with the queries, which lie in panels across the lanes of a
 * vector, and keeps a heap of at most b hits a query with the worst on top: its score is the query's threshold, so most
 * scores cost one comparison. After each block the workers share their thresholds: what one worker's full heap shuts
 * out is not among the best of all. At last they merge their heaps, each for a share of the queries.
 *
 * What surprises: ties must come out the same whatever the blocks' order, so a score equal to the threshold is looked
 * at too, and the order of two hits is total: score, then tie, then slot. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/buffer.h"
#include "gpu/cpu/internal.h"

#define TILE 64   /* keys multiplied at once: 96 KiB of f32 at 384 dimensions */
#define GROUP 256 /* queries of one walk over the keys */
#define LOOK 4    /* keys whose scores are compared with the thresholds at once */

struct keys {
    struct cpu *cpu;
    size_t dim;
    enum key_dtype dtype;
    struct keys_view view; /* the snapshot's: see keys_sync */
};

struct hit {
    float score;
    uint32_t block;
    uint32_t row;
};

/* What one worker has found so far for each query of the group. */
struct found {
    struct hit *hits;  /* [queries, b]: heaps, the worst hit on top */
    uint32_t *counts;  /* [queries] */
    float *thresholds; /* [queries up to whole panels]: the worst score of a full heap, this worker's or another's */
    float *tile;       /* [TILE, dim] keys in f32 */
    float *scores;     /* [TILE, panel] */
};

struct scan {
    const struct keys *keys;
    const float *panels; /* the group's queries: panels of [dim, panel] */
    size_t queries;
    size_t b; /* room in a heap: no more than there are keys */
    enum key_kind kinds;
    atomic_size_t next_block;
    _Atomic float *shared; /* [queries]: the highest threshold told so far; one lost in a race is told again */
    struct found *found;   /* one a worker */
    struct keys_hit *hits;
    size_t hits_stride; /* the caller's b */
    uint32_t *counts;
};

/* ---- hits -------------------------------------------------------------------------------------------------------- */

static bool hit_better(const struct keys *k, const struct hit *a, const struct hit *b)
{
    if (a->score != b->score) {
        return a->score > b->score;
    }
    const struct keys_block *of_a = &k->view.blocks[a->block], *of_b = &k->view.blocks[b->block];
    if (of_a->ties[a->row] != of_b->ties[b->row]) {
        return of_a->ties[a->row] < of_b->ties[b->row];
    }
    return of_a->first_slot + a->row < of_b->first_slot + b->row;
}

/* Puts h in place of the top of a heap of `count` hits. */
static void heap_sink(const struct keys *k, struct hit *heap, size_t count, struct hit h)
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
static void heap_offer(const struct keys *k, struct hit *heap, uint32_t *count, size_t b, struct hit h)
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
static void scores_offer(const struct scan *scan, struct found *f, uint32_t block, size_t first, size_t rows,
                         size_t first_query, size_t columns)
{
    const struct keys *k = scan->keys;
    const uint8_t *candidate = k->view.blocks[block].candidate + first;
    float *thresholds = f->thresholds + first_query;
    size_t queries = scan->queries - first_query < columns ? scan->queries - first_query : columns;
    for (size_t look = 0; look < rows; look += LOOK) {
        size_t end = look + LOOK < rows ? look + LOOK : rows;
        if (!k->cpu->kernels->reaches(f->scores + look * columns, thresholds, end - look, columns)) {
            continue;
        }
        for (size_t r = look; r < end; r++) {
            for (size_t q = 0; candidate[r] && q < queries; q++) {
                struct hit h = {f->scores[r * columns + q], block, (uint32_t)(first + r)};
                if (h.score >= thresholds[q]) {
                    struct hit *heap = f->hits + (first_query + q) * scan->b;
                    uint32_t *count = &f->counts[first_query + q];
                    heap_offer(k, heap, count, scan->b, h);
                    if (*count == scan->b && heap[0].score > thresholds[q]) {
                        thresholds[q] = heap[0].score;
                    }
                }
            }
        }
    }
}

static void block_scan(const struct scan *scan, struct found *f, uint32_t index)
{
    const struct keys *k = scan->keys;
    const struct kernels *kernels = k->cpu->kernels;
    const struct keys_block *block = &k->view.blocks[index];
    for (size_t first = 0; first < block->rows; first += TILE) {
        size_t rows = block->rows - first < TILE ? block->rows - first : TILE;
        const float *tile = (const float *)block->vectors + first * k->dim;
        if (k->dtype == KEY_BF16) {
            kernels->widen(f->tile, (const uint16_t *)block->vectors + first * k->dim, rows * k->dim);
            tile = f->tile;
        }
        for (size_t q = 0; q < scan->queries; q += kernels->panel) {
            size_t columns = scan->queries - q <= kernels->half ? kernels->half : kernels->panel;
            kernels->multiply(f->scores, tile, k->dim, 1, rows, k->dim, scan->panels + q * k->dim, columns);
            scores_offer(scan, f, index, first, rows, q, columns);
        }
    }
}

static void thresholds_share(const struct scan *scan, struct found *f)
{
    for (size_t q = 0; q < scan->queries; q++) {
        float told = atomic_load_explicit(&scan->shared[q], memory_order_relaxed);
        if (told > f->thresholds[q]) {
            f->thresholds[q] = told;
        } else if (told < f->thresholds[q]) {
            atomic_store_explicit(&scan->shared[q], f->thresholds[q], memory_order_relaxed);
        }
    }
}

static int scan_work(struct stream *s, size_t i, void *context, struct error *e)
{
    (void)s, (void)e;
    struct scan *scan = context;
    const struct keys_view *view = &scan->keys->view;
    for (;;) {
        size_t block = atomic_fetch_add_explicit(&scan->next_block, 1, memory_order_relaxed);
        if (block >= view->count) {
            return 0;
        }
        if (view->blocks[block].kind & scan->kinds) {
            block_scan(scan, &scan->found[i], (uint32_t)block);
            thresholds_share(scan, &scan->found[i]);
        }
    }
}

/* Merges all workers' heaps of this worker's share of the queries into the first's, and takes them out in order. */
static int merge_work(struct stream *s, size_t i, void *context, struct error *e)
{
    (void)e;
    struct scan *scan = context;
    const struct keys *k = scan->keys;
    for (size_t q = i; q < scan->queries; q += s->cpu->count) {
        struct hit *heap = scan->found[0].hits + q * scan->b;
        uint32_t count = scan->found[0].counts[q];
        for (size_t w = 1; w < s->cpu->count; w++) {
            const struct found *other = &scan->found[w];
            for (size_t h = 0; h < other->counts[q]; h++) {
                heap_offer(k, heap, &count, scan->b, other->hits[q * scan->b + h]);
            }
        }
        scan->counts[q] = count;
        for (; count > 0; count--) {
            struct hit worst = heap[0];
            const struct keys_block *block = &k->view.blocks[worst.block];
            scan->hits[q * scan->hits_stride + count - 1] =
                (struct keys_hit){worst.score, block->kind, block->first_slot + worst.row, block->ties[worst.row]};
            heap_sink(k, heap, count - 1, heap[count - 1]);
        }
    }
    return 0;
}

/* ---- the caller's side ------------------------------------------------------------------------------------------- */

struct keys *cpu_keys_open(struct backend *b, size_t dim, enum key_dtype dtype)
{
    struct keys *k = mem_zero(1, sizeof *k);
    k->cpu = (struct cpu *)b;
    k->dim = dim;
    k->dtype = dtype;
    return k;
}

void cpu_keys_close(struct keys *k)
{
    free(k);
}

int cpu_keys_sync(struct keys *k, const struct keys_view *view, struct error *e)
{
    if (view->dim != k->dim || view->dtype != k->dtype) {
        return error_set(e, ERROR_FATAL, E_INTERNAL,
                         "keys of %zu dimensions (dtype %d) where %zu (dtype %d) are expected", view->dim,
                         (int)view->dtype, k->dim, (int)k->dtype);
    }
    k->view = *view;
    return 0;
}

static size_t keys_count(const struct keys *k, enum key_kind kinds)
{
    size_t rows = 0;
    for (size_t i = 0; i < k->view.count; i++) {
        rows += k->view.blocks[i].kind & kinds ? k->view.blocks[i].rows : 0;
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

static void found_open(struct found *f, const struct scan *scan, size_t queries, size_t columns)
{
    const struct kernels *k = scan->keys->cpu->kernels;
    f->hits = mem_alloc(queries * scan->b * sizeof *f->hits);
    f->counts = mem_zero(queries, sizeof *f->counts);
    f->thresholds = mem_aligned(64, columns * sizeof *f->thresholds);
    f->tile = mem_aligned(64, TILE * scan->keys->dim * sizeof *f->tile);
    f->scores = mem_aligned(64, TILE * k->panel * sizeof *f->scores);
}

static void found_close(struct found *f)
{
    free(f->hits);
    free(f->counts);
    free(f->thresholds);
    free(f->tile);
    free(f->scores);
}

int cpu_keys_scan(struct keys *k, const float *queries, size_t n, size_t b, enum key_kind kinds, struct keys_hit *hits,
                  uint32_t *counts, struct error *e)
{
    int result = 0;
    const size_t workers = k->cpu->count, panel = k->cpu->kernels->panel, rows = keys_count(k, kinds);
    const size_t group = n < GROUP ? n : GROUP, columns = (group + panel - 1) / panel * panel;
    if (n == 0 || b == 0 || rows == 0) {
        memset(counts, 0, n * sizeof *counts);
        return 0;
    }
    struct scan scan = {.keys = k, .b = b < rows ? b : rows, .kinds = kinds, .hits_stride = b};
    float *panels = mem_aligned(64, columns * k->dim * sizeof *panels);
    scan.panels = panels;
    scan.found = mem_zero(workers, sizeof *scan.found);
    scan.shared = mem_alloc(group * sizeof *scan.shared);
    for (size_t w = 0; w < workers; w++) {
        found_open(&scan.found[w], &scan, group, columns);
    }
    for (size_t first = 0; first < n && result == 0; first += group) {
        scan.queries = n - first < group ? n - first : group;
        scan.hits = hits + first * b;
        scan.counts = counts + first;
        atomic_store(&scan.next_block, 0);
        panels_pack(panels, queries + first * k->dim, scan.queries, k->dim, k->cpu->kernels);
        for (size_t q = 0; q < group; q++) {
            atomic_store(&scan.shared[q], -INFINITY);
        }
        for (size_t w = 0; w < workers; w++) {
            memset(scan.found[w].counts, 0, group * sizeof *scan.found[w].counts);
            for (size_t q = 0; q < columns; q++) { /* nothing reaches a padding column's */
                scan.found[w].thresholds[q] = q < scan.queries ? -INFINITY : INFINITY;
            }
        }
        result = workers_run(k->cpu, scan_work, &scan, e);
        result = result == 0 ? workers_run(k->cpu, merge_work, &scan, e) : result;
    }
    for (size_t w = 0; w < workers; w++) {
        found_close(&scan.found[w]);
    }
    free(scan.shared);
    free(scan.found);
    free(panels);
    return result;
}
