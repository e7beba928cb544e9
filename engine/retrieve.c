/* Retrieval: texts to the keys that answer them. Encoding, search and the lexical score happen in a turn on the
 * backend, slice by slice; what comes of it is the caller's alone. The snapshot is taken in the first turn, not before
 * it, so that a label folded while the batch waited is already seen. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/internal.h"

enum { MATCHES_BYTES_MAX = 16 << 20 }; /* of one slice; bounds its texts where many keys are retrieved */

static const enum key_kind key_kinds[KINDS] = {[INSTANCES] = KEY_INSTANCE, [LABELS] = KEY_LABEL};

void retrieval_open(struct retrieval *r, struct engine *g, const struct search *search, size_t texts)
{
    *r = (struct retrieval){.g = g, .search = *search};
    r->matches_max = search->together ? search->count : KINDS * search->count;
    size_t fit = MATCHES_BYTES_MAX / sizeof *r->found / r->matches_max;
    r->texts = texts < fit ? texts : fit ? fit : 1;
    r->queries = mem_alloc(r->texts * g->dim * sizeof *r->queries);
    r->hits = mem_alloc(r->texts * search->count * sizeof *r->hits);
    r->hit_counts = mem_alloc(r->texts * sizeof *r->hit_counts);
    r->found = mem_alloc(r->texts * r->matches_max * sizeof *r->found);
    r->matches = mem_alloc(r->texts * sizeof *r->matches);
}

void retrieval_close(struct retrieval *r)
{
    if (r->snapshot) {
        snapshot_release(r->snapshot);
    }
    free(r->matches);
    free(r->found);
    free(r->hit_counts);
    free(r->hits);
    free(r->queries);
}

/* ---- search ---- */

/* A text's hits of one kind behind the matches that it has. */
static void matches_take(struct matches *m, int kind, const struct keys_hit *hits, uint32_t count)
{
    m->of[kind] = m->of[INSTANCES] + m->counts[INSTANCES] * (uint32_t)(kind == LABELS);
    for (uint32_t i = 0; i < count; i++) {
        if (hits[i].kind == (uint32_t)key_kinds[kind] && isfinite(hits[i].score)) {
            m->of[kind][m->counts[kind]++] = (struct match){
                .slot = hits[i].slot, .tie = hits[i].tie, .similarity = hits[i].score, .score = hits[i].score};
        }
    }
}

static int search_run(struct retrieval *r, size_t n, enum key_kind kinds, struct error *e)
{
    const struct backend_operations *ops = r->g->backend->ops;
    return ops->keys_scan(r->g->keys, r->queries, n, r->search.count, kinds, r->hits, r->hit_counts, e);
}

int retrieval_search(struct retrieval *r, size_t n, struct error *e)
{
    int mask = 0;
    if (r->g->backend->ops->keys_sync(r->g->keys, snapshot_keys(r->snapshot), e)) {
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        struct match *mine = r->found + i * r->matches_max;
        r->matches[i] = (struct matches){.of = {mine, mine}};
    }
    for (int kind = 0; kind < KINDS; kind++) {
        mask |= r->search.kinds[kind] ? (int)key_kinds[kind] : 0;
    }
    if (r->search.together && search_run(r, n, (enum key_kind)mask, e)) {
        return -1;
    }
    for (int kind = 0; kind < KINDS; kind++) {
        if (!r->search.kinds[kind]) {
            continue;
        }
        if (!r->search.together && search_run(r, n, key_kinds[kind], e)) {
            return -1;
        }
        for (size_t i = 0; i < n; i++) {
            matches_take(&r->matches[i], kind, r->hits + i * r->search.count, r->hit_counts[i]);
        }
    }
    return 0;
}

/* ---- the lexical score ---- */

struct lexical_work {
    struct retrieval *r;
    const struct tokens *const *inputs;
    size_t n;
    atomic_size_t next;
};

/* The lexical scores of one of `parts` equal parts of the matches. */
static void matches_score(struct retrieval *r, struct lexical_query *q, struct matches *m, size_t part, size_t parts)
{
    enum { AT_ONCE = 1024 };
    uint64_t slots[AT_ONCE];
    float cosines[AT_ONCE];
    for (int kind = 0; kind < KINDS; kind++) {
        size_t end = m->counts[kind] * (part + 1) / parts;
        for (size_t first = m->counts[kind] * part / parts, count; first < end; first += count) {
            struct match *of = m->of[kind] + first;
            count = end - first < AT_ONCE ? end - first : AT_ONCE;
            for (size_t i = 0; i < count; i++) {
                slots[i] = of[i].slot;
            }
            lexical_cosines(q, r->g->lexical, slots, count, cosines);
            for (size_t i = 0; i < count; i++) {
                of[i].lexical = cosines[i];
            }
        }
    }
}

struct own_work {
    struct retrieval *r;
    uint64_t slot;
    struct matches *matches;
};

static int own_work(struct stream *s, size_t i, void *context, struct error *e)
{
    (void)s, (void)e;
    struct own_work *w = context;
    struct engine *g = w->r->g;
    lexical_query_of(g->lexical_queries[i], g->lexical, w->slot);
    matches_score(w->r, g->lexical_queries[i], w->matches, i, g->backend->ops->streams(g->backend));
    return 0;
}

int retrieval_score_own(struct retrieval *r, uint64_t slot, struct matches *m, struct error *e)
{
    struct backend *b = r->g->backend;
    struct own_work work = {r, slot, m};
    lexical_omit(r->g->lexical, slot);
    int failed = b->ops->parallel(b, own_work, &work, e);
    lexical_restore(r->g->lexical, slot);
    return failed;
}

static int lexical_work(struct stream *s, size_t i, void *context, struct error *e)
{
    (void)s, (void)e;
    struct lexical_work *w = context;
    for (size_t at; (at = atomic_fetch_add_explicit(&w->next, 1, memory_order_relaxed)) < w->n;) {
        struct lexical_query *q = w->r->g->lexical_queries[i];
        lexical_query_set(q, w->r->g->lexical, w->inputs[at]->ids + 1, w->inputs[at]->count - 2); /* no [CLS], [SEP] */
        matches_score(w->r, q, &w->r->matches[at], 0, 1);
    }
    return 0;
}

int retrieval_slice(struct retrieval *r, const struct tokens *const *inputs, size_t n, struct error *e)
{
    struct engine *g = r->g;
    uint64_t start = clock_us(), encoded = start;
    int result = -1;
    turns_take(&g->turns, TURN_TEXT);
    if (!r->snapshot && memory_snapshot(g->memory, &r->snapshot, e)) {
        goto done;
    }
    if (encoder_forward(g->encoder, inputs, n, r->queries, e)) {
        goto done;
    }
    encoded = clock_us();
    if (retrieval_search(r, n, e)) {
        goto done;
    }
    result = 0;
    if (r->search.lexical) {
        struct lexical_work work = {.r = r, .inputs = inputs, .n = n};
        engine_lexical_sync(g, r->snapshot);
        result = g->backend->ops->parallel(g->backend, lexical_work, &work, e);
    }
done:
    turns_give(&g->turns);
    r->encode_us += encoded - start;
    r->search_us += clock_us() - encoded;
    return result;
}
