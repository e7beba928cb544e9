/* The keys of internal.h's device: it has blocks of its own, known by their first slot, and takes those again that
 * changed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/backend/apart/internal.h"

/* What a set of keys has of a block. */
struct mirror {
    uint64_t first_slot, version;
    uint32_t rows, kind;
    float *vectors; /* [rows, dim]; these three are one allocation */
    uint64_t *ties;
    uint8_t *candidate;
    size_t bytes;
};

struct keys {
    struct device *device;
    size_t dim;
    enum dtype dtype;
    pthread_mutex_t lock; /* covers all below */
    bool any;             /* `version` is that of a view */
    uint64_t version;
    struct mirror *blocks;
    size_t count;
};

static void mirror_free(struct keys *k, struct mirror *m)
{
    free(m->vectors);
    unreserve(k->device, m->bytes);
}

int apart_keys_open(struct backend *b, size_t dim, enum dtype dtype, struct keys **out, struct error *e)
{
    struct device *d = device_of(b);
    if (!reserve(d, sizeof(struct keys))) {
        return memory_out(d, sizeof(struct keys), e);
    }
    struct keys *k = host_memory(1, sizeof *k);
    k->device = d;
    k->dim = dim;
    k->dtype = dtype;
    pthread_mutex_init(&k->lock, NULL);
    opened(d, 1);
    *out = k;
    return 0;
}

void apart_keys_close(struct keys *k)
{
    struct device *d = k->device;
    for (size_t i = 0; i < k->count; i++) {
        mirror_free(k, &k->blocks[i]);
    }
    free(k->blocks);
    pthread_mutex_destroy(&k->lock);
    free(k);
    unreserve(d, sizeof(struct keys));
    opened(d, -1);
}

static bool mirror_is(const struct mirror *m, const struct keys_block *b)
{
    return m->first_slot == b->first_slot && m->version == b->version && m->rows == b->rows && m->kind == b->kind;
}

static int mirror_fill(struct keys *k, struct mirror *m, const struct keys_block *b, struct error *e)
{
    const size_t numbers = (size_t)b->rows * k->dim;
    const size_t bytes = b->rows * (sizeof *m->ties + sizeof *m->candidate) + numbers * sizeof *m->vectors;
    if (!reserve(k->device, bytes)) {
        return memory_out(k->device, bytes, e);
    }
    *m = (struct mirror){b->first_slot, b->version, b->rows, b->kind, NULL, NULL, NULL, bytes};
    m->vectors = host_memory(1, bytes + sizeof *m->ties);
    m->ties = (uint64_t *)(void *)(m->vectors + rounded(numbers, 2));
    m->candidate = (uint8_t *)(m->ties + b->rows);
    for (size_t i = 0; i < numbers; i++) {
        if (k->dtype == DTYPE_F32) {
            m->vectors[i] = ((const float *)b->vectors)[i];
        } else {
            m->vectors[i] = float_of(((const uint16_t *)b->vectors)[i]);
        }
    }
    memcpy(m->ties, b->ties, b->rows * sizeof *m->ties);
    memcpy(m->candidate, b->candidate, b->rows);
    return 0;
}

/* Takes the blocks that changed, and only those: the host's side of the others is not looked at. */
static int keys_take(struct keys *k, const struct keys_view *view, struct error *e)
{
    if (view->dim != k->dim || view->dtype != k->dtype) {
        return k->device->host->error_set(e, ERROR_FATAL, E_INTERNAL,
                                          "a view of %zu dimensions (dtype %d) for keys of %zu (dtype %d)", view->dim,
                                          (int)view->dtype, k->dim, (int)k->dtype);
    }
    if (k->any && k->version == view->version) {
        return 0;
    }
    struct mirror *old = k->blocks;
    const size_t old_count = k->count;
    k->blocks = host_memory(view->count, sizeof *k->blocks);
    k->any = false;
    for (size_t i = 0; i < old_count; i++) { /* first what is gone, which makes room */
        size_t j = 0;
        while (j < view->count && !mirror_is(&old[i], &view->blocks[j])) {
            j++;
        }
        if (j == view->count) {
            mirror_free(k, &old[i]);
        } else {
            k->blocks[j] = old[i];
        }
    }
    free(old);
    for (k->count = 0; k->count < view->count; k->count++) {
        if (!k->blocks[k->count].vectors && mirror_fill(k, &k->blocks[k->count], &view->blocks[k->count], e) != 0) {
            for (size_t i = k->count + 1; i < view->count; i++) {
                if (k->blocks[i].vectors) {
                    mirror_free(k, &k->blocks[i]);
                }
            }
            return -1;
        }
    }
    k->any = true;
    k->version = view->version;
    return 0;
}

static int hit_compare(const void *a, const void *b)
{
    const struct keys_hit *x = a, *y = b;
    if (x->score != y->score) {
        return x->score > y->score ? -1 : 1;
    }
    if (x->tie != y->tie) {
        return x->tie < y->tie ? -1 : 1;
    }
    return x->slot < y->slot ? -1 : x->slot > y->slot;
}

static size_t score_all(const struct keys *k, const float *query, enum key_kind kinds, struct keys_hit *all)
{
    size_t count = 0;
    for (size_t i = 0; i < k->count; i++) {
        const struct mirror *m = &k->blocks[i];
        for (size_t r = 0; r < m->rows && (m->kind & kinds); r++) {
            double score = 0;
            for (size_t j = 0; j < k->dim; j++) {
                score += (double)query[j] * (double)m->vectors[r * k->dim + j];
            }
            if (m->candidate[r] && !isnan(score)) {
                all[count++] = (struct keys_hit){(float)score, m->kind, m->first_slot + r, m->ties[r]};
            }
        }
    }
    qsort(all, count, sizeof *all, hit_compare);
    return count;
}

static void keys_scan_run(struct stream *s, const struct call *c)
{
    struct keys *k = c->keys;
    if (c->x.rows > s->device->scan_max || (c->x.rows && *s->device->once && unlink(s->device->once) == 0)) {
        memory_out(s->device, c->x.rows, &s->error);
        return;
    }
    pinned_check(s->device, c->hits, c->x.rows * c->b * sizeof *c->hits, "keys_scan's hits");
    pinned_check(s->device, c->counts, c->x.rows * sizeof *c->counts, "keys_scan's counts");
    pthread_mutex_lock(&k->lock);
    if (keys_take(k, c->view, &s->error) == 0 && c->x.rows) {
        const float *queries = read_of(s, &c->x, DTYPE_F32, c->x.rows, k->dim, "keys_scan's queries");
        size_t rows = 0;
        for (size_t i = 0; i < k->count; i++) {
            rows += k->blocks[i].rows;
        }
        struct keys_hit *all = host_memory(rows, sizeof *all);
        for (size_t q = 0; q < c->x.rows; q++) {
            size_t count = score_all(k, queries + q * k->dim, c->kinds, all);
            count = count < c->b ? count : c->b;
            memcpy(c->hits + q * c->b, all, count * sizeof *all);
            c->counts[q] = (uint32_t)count;
        }
        free(all);
    }
    pthread_mutex_unlock(&k->lock);
}

void apart_keys_scan(struct stream *s, struct keys *k, const struct keys_view *view, const struct tensor *queries,
                     size_t b, enum key_kind kinds, struct keys_hit *hits, uint32_t *counts)
{
    queue(s, &(struct call){.run = keys_scan_run,
                            .keys = k,
                            .view = view,
                            .x = *queries,
                            .b = b,
                            .kinds = kinds,
                            .hits = hits,
                            .counts = counts});
}
