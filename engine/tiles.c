/* Texts to vectors. A batch is dealt out into tiles, some whole sequences each, small enough for a tile's intermediates
 * to stay in the cache; the pool's workers take tile after tile, also the next batch's, so that one worker that is held
 * up holds up nobody else. Between two layers a worker lets a brief fold in. A tile for which the device has no room
 * is run in halves, and later tiles are smaller.
 * The surprise: a batch of fewer tiles than workers is helped by those with nothing to do, where the backend can share
 * an operation. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "engine/internal.h"

enum { BRIEF_TOKENS = 128 }; /* of a batch that may be let in between two layers of another's tile */

/* ---- seats ---- */

int seat_stream(struct engine *g, size_t seat, struct stream **out, struct error *e)
{
    struct seat *at = &g->seats[seat];
    if (!at->stream && g->backend->ops->stream_open(g->backend, &at->stream, e)) {
        return -1;
    }
    *out = at->stream;
    return 0;
}

static void host_free(struct backend *b, void *memory)
{
    if (b->ops->host_release) {
        b->ops->host_release(b, memory);
    } else {
        free(memory);
    }
}

void seat_close(struct engine *g, struct seat *seat)
{
    if (seat->stream) {
        g->backend->ops->stream_close(seat->stream);
    }
    host_free(g->backend, seat->host);
}

/* ---- a device without room ---- */

int run_in_halves(int (*run)(void *context, size_t first, size_t n, struct error *e), void *context, size_t first,
                  size_t n, struct error *e)
{
    if (run(context, first, n, e) == 0) {
        return 0;
    }
    if (e->kind != ERROR_RETRY || e->code != E_DEVICE_MEMORY || n <= 1) {
        return -1;
    }
    const size_t half = n / 2;
    *e = (struct error){.kind = ERROR_NONE};
    if (run_in_halves(run, context, first, half, e)) {
        return -1;
    }
    return run_in_halves(run, context, first + half, n - half, e);
}

/* Dealt tiles are of about tile_tokens; half of it more still counts as that many. */
static bool tokens_fit(size_t tokens, size_t tile_tokens)
{
    return 2 * tokens < 3 * tile_tokens;
}

static bool tile_fits(struct engine *g, size_t tokens)
{
    const size_t tile_tokens = atomic_load(&g->tile_tokens);
    return tile_tokens == g->backend->facts.tile_tokens || tokens_fit(tokens, tile_tokens);
}

/* A tile of that many tokens failed where a smaller one did not: later ones are not to fail first. */
static void tile_lower(struct engine *g, size_t failed_tokens)
{
    size_t before = atomic_load(&g->tile_tokens), lower;
    do {
        lower = before;
        while (tokens_fit(failed_tokens, lower)) {
            lower /= 2;
        }
        if (lower == before) {
            return;
        }
    } while (!atomic_compare_exchange_weak(&g->tile_tokens, &before, lower));
    log_warn("the device has no room for %zu tokens at once: it takes about %zu from now on", failed_tokens, lower);
}

/* ---- a tile ---- */

struct between {
    struct engine *g;
    size_t seat;
    bool yielded;
};

static void between_layers(void *context)
{
    struct between *b = context;
    pool_yield(b->g->pool, b->seat, &b->yielded);
}

/* Room for `bytes` in the seat's host memory, from *next on. */
static void *host_place(const struct seat *at, size_t *next, size_t bytes)
{
    void *place = at->host ? (unsigned char *)at->host + *next : NULL;
    *next += (bytes + 63) / 64 * 64;
    return place;
}

static size_t seat_places(const struct engine *g, struct seat *at, size_t tokens, size_t sequences)
{
    size_t next = 0;
    at->ids = host_place(at, &next, tokens * sizeof *at->ids);
    at->starts = host_place(at, &next, (sequences + 1) * sizeof *at->starts);
    at->encoded = host_place(at, &next, 0);
    host_place(at, &next, tensor_bytes(g->backend, DTYPE_F32, sequences, 1)); /* the norms */
    host_place(at, &next, sequences * g->dim * sizeof(float));                /* the vectors after them */
    return next;
}

/* Room on the host for a tile, which the device reads and writes while the stream runs. */
static int seat_reserve(struct engine *g, struct seat *at, size_t tokens, size_t sequences, struct error *e)
{
    size_t bytes = seat_places(g, at, tokens, sequences);
    if (bytes > at->host_bytes) {
        host_free(g->backend, at->host);
        at->host = NULL;
        at->host_bytes = 0;
        if (!g->backend->ops->host_alloc) {
            at->host = mem_aligned(64, 2 * bytes);
        } else if (g->backend->ops->host_alloc(g->backend, 2 * bytes, &at->host, e)) {
            return -1;
        }
        at->host_bytes = 2 * bytes;
        seat_places(g, at, tokens, sequences);
    }
    return 0;
}

static size_t part_tokens(const struct encoding *x, size_t first, size_t n)
{
    size_t tokens = 0;
    for (size_t i = first; i < first + n; i++) {
        tokens += x->inputs[x->dealt[i]]->count;
    }
    return tokens;
}

/* The sequences dealt[first .. first + n), one after the other. */
static int part_fill(const struct encoding *x, struct seat *at, size_t first, size_t n, struct tile *out,
                     struct error *e)
{
    const size_t *inputs = x->dealt + first, tokens = part_tokens(x, first, n);
    if (seat_reserve(x->g, at, tokens, n, e)) {
        return -1;
    }
    at->starts[0] = 0;
    for (size_t i = 0; i < n; i++) {
        const struct tokens *t = x->inputs[inputs[i]];
        memcpy(at->ids + at->starts[i], t->ids, t->count * sizeof *at->ids);
        at->starts[i + 1] = at->starts[i] + t->count;
    }
    *out = (struct tile){.ids = at->ids, .starts = at->starts, .tokens = tokens, .sequences = n};
    return 0;
}

/* The norms, and the vectors after them where the caller wants those: one download. */
static void encoded_download(const struct encoding *x, struct seat *at, struct stream *s, const struct encoded *encoded)
{
    const size_t n = encoded->norms.rows;
    const size_t gap = (size_t)((unsigned char *)encoded->vectors.data - (unsigned char *)encoded->norms.data);
    at->norms = (float *)at->encoded;
    at->vectors = (float *)(void *)((unsigned char *)at->encoded + gap);
    x->g->backend->ops->download(s, at->encoded, encoded->norms.data,
                                 x->out ? gap + n * x->g->dim * sizeof(float) : n * sizeof(float));
}

/* What the device gave: all norms finite, and the vectors where the caller wants them. */
static int part_take(const struct encoding *x, const struct seat *at, size_t first, size_t n, struct error *e)
{
    const size_t *inputs = x->dealt + first, dim = x->g->dim;
    for (size_t i = 0; i < n; i++) {
        if (encoder_norm_check(x->g->encoder, at->norms[i], x->inputs[inputs[i]]->count, inputs[i], x->n, e)) {
            return -1;
        }
        if (x->out) {
            memcpy(x->out + inputs[i] * dim, at->vectors + i * dim, dim * sizeof *x->out);
        }
    }
    return 0;
}

/* One worker's piece: a tile, which goes through the device whole, or in parts where that has no room for it. */
struct piece {
    struct encoding *x;
    size_t seat;
    struct between between;
    uint64_t encode_us;
    size_t failed_tokens; /* of the last part that there was no room for; 0: none, or it is known */
};

static int part_run(void *context, size_t first, size_t n, struct error *e)
{
    struct piece *p = context;
    struct encoding *x = p->x;
    struct engine *g = x->g;
    struct seat *at = &g->seats[p->seat];
    struct encoded encoded;
    struct tile tile;
    struct stream *s;
    const uint64_t start = clock_us();
    if (n > 1 && !tile_fits(g, part_tokens(x, first, n))) {
        return error_set(e, ERROR_RETRY, E_DEVICE_MEMORY, "the device had no room for so many tokens before");
    }
    if (seat_stream(g, p->seat, &s, e) || part_fill(x, at, first, n, &tile, e)) {
        return -1;
    }
    int result = encoder_pass(g->encoder, s, &tile, between_layers, &p->between, &encoded, e);
    p->encode_us += clock_us() - start;
    if (result == 0) {
        encoded_download(x, at, s, &encoded);
        result = x->then ? x->then(x, s, &encoded.vectors, first, e) : 0;
    }
    struct error *reason = result ? NULL : e; /* the first error counts, but what runs still has to end */
    if (g->backend->ops->wait(s, reason) || result) {
        p->failed_tokens = e->code == E_DEVICE_MEMORY ? tile.tokens : 0;
        return -1;
    }
    if (p->failed_tokens) {
        tile_lower(g, p->failed_tokens);
        p->failed_tokens = 0;
    }
    return part_take(x, at, first, n, e);
}

static int tile_run(struct job *job, size_t number, size_t seat, struct error *e)
{
    struct encoding *x = (struct encoding *)((char *)job - offsetof(struct encoding, job));
    struct piece p = {.x = x, .seat = seat, .between = {.g = x->g, .seat = seat}};
    const size_t first = x->firsts[number];
    const uint64_t start = clock_us();
    int result = run_in_halves(part_run, &p, first, x->firsts[number + 1] - first, e);
    atomic_fetch_add(&x->encode_us, p.encode_us);
    atomic_fetch_add(&x->tiles_us, clock_us() - start);
    if (result) {
        atomic_store(&x->open, 0); /* the tiles that are left out will not count down */
    } else {
        atomic_fetch_sub(&x->open, 1);
    }
    return result;
}

/* ---- help ---- */

static bool encoding_done(const void *context)
{
    const struct encoding *x = context;
    return atomic_load(&x->open) <= 0;
}

static void encoding_help(struct job *job, size_t seat)
{
    struct encoding *x = (struct encoding *)((char *)job - offsetof(struct encoding, job));
    struct stream *s;
    if (seat_stream(x->g, seat, &s, NULL) == 0) {
        x->g->backend->ops->assist(s, encoding_done, x);
    }
}

/* ---- a batch ---- */

/* Inputs from the longest to the shortest: a counting sort, lengths are at most max_seq_length. */
static void order_by_length(const struct encoding *x, size_t *order, size_t longest)
{
    size_t *places = mem_zero(longest + 2, sizeof *places);
    for (size_t i = 0; i < x->n; i++) {
        places[longest - x->inputs[i]->count + 1]++;
    }
    for (size_t i = 1; i <= longest + 1; i++) {
        places[i] += places[i - 1];
    }
    for (size_t i = 0; i < x->n; i++) {
        order[places[longest - x->inputs[i]->count]++] = i;
    }
    free(places);
}

/* Inputs are dealt out to the tiles from the longest on, to and fro, so that all tiles get about as many tokens. */
static void tiles_deal(struct encoding *x, size_t tiles, size_t longest)
{
    size_t *order = mem_alloc(x->n * sizeof *order), next = 0;
    order_by_length(x, order, longest);
    for (size_t tile = 0; tile < tiles; tile++) {
        x->firsts[tile] = next;
        for (size_t round = 0; round * tiles < x->n; round++) {
            size_t i = round * tiles + (round % 2 ? tiles - 1 - tile : tile);
            if (i < x->n) {
                x->dealt[next++] = order[i];
            }
        }
    }
    x->firsts[tiles] = next;
    free(order);
}

void encoding_begin(struct encoding *x)
{
    const struct backend_facts *facts = &x->g->backend->facts;
    const size_t tile_tokens = atomic_load(&x->g->tile_tokens);
    size_t tokens = 0, longest = 0;
    for (size_t i = 0; i < x->n; i++) {
        tokens += x->inputs[i]->count;
        longest = x->inputs[i]->count > longest ? x->inputs[i]->count : longest;
    }
    /* as many tiles on each stream, and no tile without a sequence */
    size_t tiles = (tokens + tile_tokens - 1) / tile_tokens;
    tiles = (tiles + facts->streams - 1) / facts->streams * facts->streams;
    tiles = tiles < x->n ? tiles : x->n;
    x->dealt = mem_alloc(x->n * sizeof *x->dealt);
    x->firsts = mem_alloc((tiles + 1) * sizeof *x->firsts);
    if (tiles) {
        tiles_deal(x, tiles, longest);
    }
    atomic_init(&x->open, (long)tiles);
    atomic_init(&x->encode_us, 0);
    atomic_init(&x->tiles_us, 0);
    x->job = (struct job){.run = tile_run, .pieces = tiles, .lane = x->lane, .brief = tokens <= BRIEF_TOKENS};
    if (x->g->backend->ops->assist && tiles < facts->streams) {
        x->job.help = encoding_help;
    }
    pool_begin(x->g->pool, &x->job);
}

int encoding_end(struct encoding *x, struct error *e)
{
    return pool_end(x->g->pool, &x->job, e);
}

void encoding_free(struct encoding *x)
{
    free(x->dealt);
    free(x->firsts);
    x->dealt = x->firsts = NULL;
}

int engine_encode_lane(struct engine *g, enum lane lane, const struct tokens *const *inputs, size_t n, float *out,
                       struct error *e)
{
    if (n && !g->encoder) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "an engine without an encoder was asked to encode");
    }
    if (n == 0) {
        return 0;
    }
    struct encoding x = {.g = g, .inputs = inputs, .n = n, .lane = lane, .out = out};
    encoding_begin(&x);
    int failed = encoding_end(&x, e);
    encoding_free(&x);
    return failed;
}

int engine_encode(struct engine *g, const struct tokens *const *inputs, size_t n, float *out, struct error *e)
{
    return engine_encode_lane(g, LANE_BULK, inputs, n, out, e);
}
