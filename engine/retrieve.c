/* Retrieval: texts to the keys that answer them. A tile of texts is encoded and searched on the same stream, so the
 * queries never leave the device; the lexical score is the host's work. A slice's texts see one snapshot, taken when
 * its first tile is encoded, so that a label folded meanwhile is already seen; slices take theirs in the order in which
 * they began, so that the memory's version never goes back from one output to the next. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/internal.h"

/* Of one slice; they bound its texts where many keys are retrieved. A backend that takes many tokens at once gets more.
 */
enum { MATCHES_BYTES_LEAST = 16 << 20, MATCHES_BYTES_PER_TOKEN = 1024 };

static const enum key_kind key_kinds[KINDS] = {[INSTANCES] = KEY_INSTANCE, [LABELS] = KEY_LABEL};

void retrieval_open(struct retrieval *r, struct engine *g, const struct search *search, size_t texts)
{
    *r = (struct retrieval){.g = g, .search = *search};
    const size_t kinds = search->together ? 1 : KINDS;
    r->matches_max = kinds * search->count;
    const size_t bytes = MATCHES_BYTES_PER_TOKEN * g->slice_tokens;
    size_t fit = (bytes > MATCHES_BYTES_LEAST ? bytes : MATCHES_BYTES_LEAST) / sizeof *r->found / r->matches_max;
    r->texts = texts < fit ? texts : fit ? fit : 1;
    for (size_t kind = 0; kind < kinds; kind++) {
        r->hits[kind] = mem_alloc(r->texts * search->count * sizeof *r->hits[kind]);
        r->hit_counts[kind] = mem_alloc(r->texts * sizeof *r->hit_counts[kind]);
    }
    r->found = mem_alloc(r->texts * r->matches_max * sizeof *r->found);
    r->matches = mem_alloc(r->texts * sizeof *r->matches);
}

void retrieval_close(struct retrieval *r)
{
    if (!r->borrowed) {
        snapshot_release(r->snapshot);
    }
    for (size_t kind = 0; kind < KINDS; kind++) {
        free(r->hits[kind]);
        free(r->hit_counts[kind]);
    }
    free(r->matches);
    free(r->found);
    free(r->queries);
}

/* ---- snapshots in order ---- */

static void unseen_add(struct retrieval *r)
{
    struct retrieval **end = &r->g->unseen;
    pthread_mutex_lock(&r->g->snapshot_lock);
    while (*end) {
        end = &(*end)->next_unseen;
    }
    r->next_unseen = NULL;
    *end = r;
    pthread_mutex_unlock(&r->g->snapshot_lock);
}

/* After an error it may still be in the list. */
static void unseen_remove(struct retrieval *r)
{
    pthread_mutex_lock(&r->g->snapshot_lock);
    struct retrieval **at = &r->g->unseen;
    while (*at && *at != r) {
        at = &(*at)->next_unseen;
    }
    if (*at) {
        *at = r->next_unseen;
    }
    pthread_mutex_unlock(&r->g->snapshot_lock);
}

int retrieval_see(struct retrieval *r, struct error *e)
{
    struct engine *g = r->g;
    int failed = 0;
    pthread_mutex_lock(&g->snapshot_lock);
    while (!r->snapshot && !failed) {
        struct retrieval *first = g->unseen;
        failed = memory_snapshot(g->memory, &first->snapshot, e);
        g->unseen = failed ? first : first->next_unseen;
    }
    pthread_mutex_unlock(&g->snapshot_lock);
    return failed;
}

/* ---- search ---- */

/* A text's hits of one kind after the matches that it has. */
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

/* Puts the scans for a tile's queries on its stream; their hits are the texts' from `first` on. */
static void scan_start(struct retrieval *r, struct stream *s, const struct tensor *queries, size_t first)
{
    const struct backend_operations *ops = r->g->backend->ops;
    const struct keys_view *view = snapshot_keys(r->snapshot);
    const struct search *search = &r->search;
    int mask = 0;
    for (int kind = 0; kind < KINDS; kind++) {
        mask |= search->kinds[kind] ? (int)key_kinds[kind] : 0;
    }
    for (int kind = 0; kind < (search->together ? 1 : KINDS); kind++) {
        if (search->together || search->kinds[kind]) {
            ops->keys_scan(s, r->g->keys, view, queries, search->count,
                           search->together ? (enum key_kind)mask : key_kinds[kind],
                           r->hits[kind] + first * search->count, r->hit_counts[kind] + first);
        }
    }
}

/* From hits to matches: the text at `place` among the hits is the slice's number `text`. */
static void matches_fill(struct retrieval *r, size_t place, size_t text)
{
    struct match *mine = r->found + text * r->matches_max;
    struct matches *m = &r->matches[text];
    *m = (struct matches){.of = {mine, mine}};
    for (int kind = 0; kind < KINDS; kind++) {
        int from = r->search.together ? 0 : kind;
        if (r->search.kinds[kind]) {
            matches_take(m, kind, r->hits[from] + place * r->search.count, r->hit_counts[from][place]);
        }
    }
}

struct searching {
    struct retrieval *r;
    size_t n;
    struct job job;
};

struct search_piece {
    struct retrieval *r;
    size_t seat;
};

enum { SEARCH_ROWS = 32 }; /* queries that a worker takes at once */

static int rows_search(void *context, size_t first, size_t rows, struct error *e)
{
    const struct search_piece *p = context;
    struct retrieval *r = p->r;
    const struct backend *b = r->g->backend;
    struct tensor queries = {.dtype = DTYPE_F32, .rows = rows, .columns = r->g->dim};
    struct stream *s;
    if (seat_stream(r->g, p->seat, &s, e) ||
        b->ops->arena(s, tensor_bytes(b, DTYPE_F32, rows, r->g->dim), &queries.data, e) ||
        b->ops->upload(s, queries.data, r->queries + first * r->g->dim, rows * r->g->dim * sizeof(float), e)) {
        return -1;
    }
    scan_start(r, s, &queries, first);
    return b->ops->wait(s, e);
}

static int search_run(struct job *job, size_t piece, size_t seat, struct error *e)
{
    const struct searching *x = (struct searching *)((char *)job - offsetof(struct searching, job));
    const size_t first = piece * SEARCH_ROWS, rows = x->n - first < SEARCH_ROWS ? x->n - first : SEARCH_ROWS;
    return run_in_halves(rows_search, &(struct search_piece){x->r, seat}, first, rows, e);
}

int retrieval_search(struct retrieval *r, size_t n, struct error *e)
{
    struct searching x = {.r = r, .n = n};
    x.job = (struct job){.run = search_run, .pieces = (n + SEARCH_ROWS - 1) / SEARCH_ROWS, .lane = LANE_BULK};
    pool_begin(r->g->pool, &x.job);
    if (pool_end(r->g->pool, &x.job, e)) {
        return -1;
    }
    for (size_t i = 0; i < n; i++) {
        matches_fill(r, i, i);
    }
    return 0;
}

/* ---- the lexical score ---- */

/* The lexical scores of one of `parts` equal parts of the matches. */
static void matches_score(struct retrieval *r, struct lexical_query *q, struct matches *m, size_t part, size_t parts)
{
    enum { AT_ONCE = 1024 };
    uint64_t slots[AT_ONCE];
    float room[LEXICAL_FORMS][AT_ONCE], *scores[LEXICAL_FORMS];
    for (int form = 0; form < LEXICAL_FORMS; form++) {
        scores[form] = r->search.lexical[form] ? room[form] : NULL;
    }
    for (int kind = 0; kind < KINDS; kind++) {
        size_t end = m->counts[kind] * (part + 1) / parts;
        for (size_t first = m->counts[kind] * part / parts, count; first < end; first += count) {
            struct match *of = m->of[kind] + first;
            count = end - first < AT_ONCE ? end - first : AT_ONCE;
            for (size_t i = 0; i < count; i++) {
                slots[i] = of[i].slot;
            }
            lexical_scores(q, r->g->lexical, slots, count, scores);
            for (int form = 0; form < LEXICAL_FORMS; form++) {
                for (size_t i = 0; scores[form] && i < count; i++) {
                    of[i].lexical[form] = scores[form][i];
                }
            }
        }
    }
}

struct own_work {
    struct retrieval *r;
    uint64_t slot;
    struct matches *matches;
    size_t parts;
};

static int own_score(void *context, size_t part, size_t hand, struct error *e)
{
    (void)e;
    const struct own_work *w = context;
    struct engine *g = w->r->g;
    lexical_query_of(g->lexical_queries[hand], g->lexical, w->slot);
    matches_score(w->r, g->lexical_queries[hand], w->matches, part, w->parts);
    return 0;
}

int retrieval_score_own(struct retrieval *r, uint64_t slot, struct matches *m, struct error *e)
{
    struct own_work work = {r, slot, m, pool_hands(r->g->pool) - 1};
    lexical_omit(r->g->lexical, slot);
    int failed = pool_share(r->g->pool, work.parts, own_score, &work, e);
    lexical_restore(r->g->lexical, slot);
    return failed;
}

static int text_score(void *context, size_t text, size_t hand, struct error *e)
{
    (void)e;
    struct retrieval *r = context;
    const struct tokens *input = r->encoding.inputs[text];
    struct lexical_query *q = r->g->lexical_queries[hand];
    lexical_query_set(q, r->g->lexical, input->ids + 1, input->count - 2); /* without [CLS] and [SEP] */
    matches_score(r, q, &r->matches[text], 0, 1);
    return 0;
}

/* ---- a slice ---- */

static int tile_search(struct encoding *x, struct stream *s, const struct tensor *vectors, size_t first,
                       struct error *e)
{
    struct retrieval *r = (struct retrieval *)x;
    if (retrieval_see(r, e)) {
        return -1;
    }
    scan_start(r, s, vectors, first);
    return 0;
}

void retrieval_begin(struct retrieval *r, const struct tokens *const *inputs, size_t n)
{
    r->encoding = (struct encoding){.g = r->g, .inputs = inputs, .n = n, .lane = LANE_BULK, .then = tile_search};
    if (!r->snapshot) {
        unseen_add(r);
    }
    encoding_begin(&r->encoding);
}

/* The lexical scores of the slice's matches. One slice at a time: the words are counted for its snapshot. */
static int words_score(struct retrieval *r, struct error *e)
{
    struct engine *g = r->g;
    pthread_mutex_lock(&g->words_lock);
    engine_lexical_sync(g, r->snapshot);
    int failed = pool_share(g->pool, r->encoding.n, text_score, r, e);
    pthread_mutex_unlock(&g->words_lock);
    return failed;
}

int retrieval_end(struct retrieval *r, struct error *e)
{
    struct encoding *x = &r->encoding;
    int failed = encoding_end(x, e);
    const uint64_t encoded = clock_us(), streams = r->g->backend->facts.streams;
    if (failed) {
        unseen_remove(r);
    }
    for (size_t i = 0; i < x->n && !failed; i++) {
        matches_fill(r, i, x->dealt[i]);
    }
    encoding_free(x);
    failed = failed || (search_lexical(&r->search) && words_score(r, e)) ? -1 : 0;
    /* tiles run on all streams at once, also with other batches': what counts is their share of the device's time */
    r->encode_us += atomic_load(&x->encode_us) / streams;
    r->search_us += (atomic_load(&x->tiles_us) - atomic_load(&x->encode_us)) / streams + clock_us() - encoded;
    return failed;
}
