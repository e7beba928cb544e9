/* The engine's life: opens the pool and the key set, cuts batches into slices. */
#include "engine/engine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/internal.h"

static int options_check(const struct predict_options *o, struct error *e)
{
    if (!(o->lambda >= 0 && o->lambda <= 1)) {
        return error_set(e, ERROR_FATAL, E_USAGE, "lambda is %g: it must be from 0 to 1", o->lambda);
    }
    if (!(o->tau > 0 && isfinite(o->tau))) {
        return error_set(e, ERROR_FATAL, E_USAGE, "tau is %g: it must be above 0", o->tau);
    }
    if (!(o->lexical >= 0 && isfinite(o->lexical))) {
        return error_set(e, ERROR_FATAL, E_USAGE, "lexical is %g: it must be 0 or above", o->lexical);
    }
    if (o->lexical > 0 && o->lexical_candidates == 0) {
        return error_set(e, ERROR_FATAL, E_USAGE, "lexical_candidates is 0: at least one key must be scored");
    }
    if (!(o->label_power >= 0 && isfinite(o->label_power))) {
        return error_set(e, ERROR_FATAL, E_USAGE, "label_power is %g: it must be 0 or above", o->label_power);
    }
    if (o->b == 0) {
        return error_set(e, ERROR_FATAL, E_USAGE, "b is 0: at least one key must be retrieved");
    }
    return 0;
}

/* The key set has the memory's shape, which an encoder of the same fingerprint shares. */
static int keys_begin(struct engine *g, struct error *e)
{
    struct snapshot *snapshot;
    if (memory_snapshot(g->memory, &snapshot, e)) {
        return -1;
    }
    struct keys_view view = *snapshot_keys(snapshot);
    snapshot_release(snapshot);
    if (view.dim != g->dim) {
        return error_set(e, ERROR_FATAL, E_FINGERPRINT,
                         "the memory has vectors of %zu dimensions, the model %s gives %zu", view.dim,
                         encoder_name(g->encoder), g->dim);
    }
    return g->backend->ops->keys_open(g->backend, view.dim, view.dtype, &g->keys, e);
}

void engine_lexical_sync(struct engine *g, const struct snapshot *s)
{
    if (!g->lexical) {
        size_t hands = pool_hands(g->pool);
        g->lexical = lexical_open();
        g->lexical_queries = mem_alloc(hands * sizeof *g->lexical_queries);
        for (size_t i = 0; i < hands; i++) {
            g->lexical_queries[i] = lexical_query_open();
        }
    }
    lexical_sync(g->lexical, s);
}

static int pool_begin_for(struct engine *g, struct error *e)
{
    const struct backend_facts *facts = &g->backend->facts;
    if (pool_open(&g->pool, facts->streams + facts->host_threads, facts->streams, e)) {
        return -1;
    }
    g->seats = mem_zero(pool_seats(g->pool), sizeof *g->seats);
    return 0;
}

int engine_open(struct engine **out, struct backend *backend, struct encoder *encoder, struct memory *memory,
                const struct predict_options *options, struct error *e)
{
    *out = NULL;
    if (options_check(options, e)) {
        return -1;
    }
    struct engine *g = mem_zero(1, sizeof *g);
    g->backend = backend;
    g->encoder = encoder;
    g->memory = memory;
    g->options = *options;
    pthread_mutex_init(&g->options_lock, NULL);
    pthread_mutex_init(&g->snapshot_lock, NULL);
    pthread_mutex_init(&g->begin_lock, NULL);
    pthread_cond_init(&g->begun, NULL);
    pthread_mutex_init(&g->refresh_lock, NULL);
    pthread_mutex_init(&g->words_lock, NULL);
    if (encoder) {
        g->dim = encoder_dim(encoder);
        g->slice_tokens = backend->facts.batch_tokens;
        atomic_init(&g->tile_tokens, backend->facts.tile_tokens);
        memcpy(g->model_version, encoder_model_version(encoder), sizeof g->model_version);
        if (pool_begin_for(g, e) || (memory && keys_begin(g, e))) {
            engine_close(g);
            return -1;
        }
    }
    *out = g;
    return 0;
}

void engine_close(struct engine *g)
{
    if (!g) {
        return;
    }
    if (g->keys) {
        g->backend->ops->keys_close(g->keys);
    }
    for (size_t i = 0; g->lexical && i < pool_hands(g->pool); i++) {
        lexical_query_close(g->lexical_queries[i]);
    }
    free(g->lexical_queries);
    lexical_close(g->lexical);
    if (g->refresher) {
        g->backend->ops->stream_close(g->refresher);
    }
    for (size_t i = 0; g->seats && i < pool_seats(g->pool); i++) {
        seat_close(g, &g->seats[i]);
    }
    pool_close(g->pool);
    free(g->seats);
    pthread_mutex_destroy(&g->words_lock);
    pthread_mutex_destroy(&g->refresh_lock);
    pthread_cond_destroy(&g->begun);
    pthread_mutex_destroy(&g->begin_lock);
    pthread_mutex_destroy(&g->snapshot_lock);
    pthread_mutex_destroy(&g->options_lock);
    free(g);
}

int engine_options_set(struct engine *g, const struct predict_options *options, struct error *e)
{
    if (options_check(options, e)) {
        return -1;
    }
    pthread_mutex_lock(&g->options_lock);
    g->options = *options;
    pthread_mutex_unlock(&g->options_lock);
    return 0;
}

struct predict_options engine_options(struct engine *g)
{
    pthread_mutex_lock(&g->options_lock);
    struct predict_options options = g->options;
    pthread_mutex_unlock(&g->options_lock);
    return options;
}

struct encoder *engine_encoder(const struct engine *g)
{
    return g->encoder;
}

size_t engine_slice_tokens(const struct engine *g)
{
    return g->slice_tokens;
}

int engine_refresh(struct engine *g, struct error *e)
{
    const struct backend_operations *ops = g->backend->ops;
    const struct tensor none = {.dtype = DTYPE_F32, .columns = g->dim};
    struct snapshot *snapshot = NULL;
    struct error why = {0};
    if (!g->keys || g->backend->facts.host_memory) {
        return 0;
    }
    pthread_mutex_lock(&g->refresh_lock);
    int failed = (!g->refresher && ops->stream_open(g->backend, &g->refresher, &why)) ||
                 memory_snapshot(g->memory, &snapshot, &why);
    if (!failed) {
        ops->keys_scan(g->refresher, g->keys, snapshot_keys(snapshot), &none, 1, KEY_BOTH, NULL, NULL);
        failed = ops->wait(g->refresher, &why);
    }
    snapshot_release(snapshot);
    pthread_mutex_unlock(&g->refresh_lock);
    return failed && why.kind == ERROR_FATAL ? error_set(e, why.kind, why.code, "%s", why.text) : 0;
}

/* So that the first text does not wait for it. What cannot be read here is told to that text. */
static void words_count(struct engine *g)
{
    struct snapshot *snapshot;
    if (!g->keys || engine_options(g).lexical <= 0) {
        return;
    }
    if (memory_snapshot(g->memory, &snapshot, NULL) == 0) {
        pthread_mutex_lock(&g->words_lock);
        engine_lexical_sync(g, snapshot);
        pthread_mutex_unlock(&g->words_lock);
        snapshot_release(snapshot);
    }
}

void engine_set_ready(struct engine *g, bool ready)
{
    if (ready) { /* what fails here fails for the first text too */
        words_count(g);
        engine_refresh(g, NULL);
    }
    atomic_store(&g->ready, ready);
    if (g->pool) {
        pool_fair(g->pool, ready);
    }
}

size_t engine_slice(const struct engine *g, const struct tokens *const *inputs, size_t n, size_t count_max)
{
    size_t count = 0, tokens = 0;
    while (count < n && count < count_max && (count == 0 || tokens + inputs[count]->count <= g->slice_tokens)) {
        tokens += inputs[count++]->count;
    }
    return count;
}
