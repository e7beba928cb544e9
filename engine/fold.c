/* Fold: encode what needs it, tile by tile between those of texts, then apply everything in one transaction of the
 * memory, offsets included.
 * The surprise: two refusals still commit what stands before the refused record, so that replaces and forgets ahead of
 * it are never held up: keys_max at the very record, a full map by halving what is tried. */
#include <stdlib.h>

#include "engine/internal.h"

static bool needs_key(const struct fold *f)
{
    return f->kind == FOLD_INSTANCE || f->kind == FOLD_LABEL;
}

/* What the folds that need a key are encoded to, in their order. */
struct encoded_folds {
    size_t count;
    struct tokens *tokens;   /* [count] */
    float *vectors;          /* [count, dim] */
    struct memory_key *keys; /* [count], on those two */
};

static void encoded_free(struct encoded_folds *x)
{
    for (size_t i = 0; i < x->count; i++) {
        tokens_free(&x->tokens[i]);
    }
    free(x->tokens);
    free(x->vectors);
    free(x->keys);
}

/* encoded_free ends it, also after an error. */
static int folds_encode(struct engine *g, const struct fold *folds, size_t n, struct encoded_folds *x, struct error *e)
{
    size_t count = 0;
    *x = (struct encoded_folds){0};
    for (size_t i = 0; i < n; i++) {
        count += needs_key(&folds[i]);
    }
    if (count == 0) {
        return 0;
    }
    if (!g->encoder) {
        return error_set(e, ERROR_FATAL, E_INTERNAL, "an engine without an encoder was asked to fold a text");
    }
    x->count = count;
    x->tokens = mem_zero(count, sizeof *x->tokens);
    x->vectors = mem_alloc(count * g->dim * sizeof *x->vectors);
    x->keys = mem_alloc(count * sizeof *x->keys);
    const struct tokens **inputs = mem_alloc(count * sizeof *inputs);
    for (size_t i = 0, k = 0; i < n; i++) {
        if (needs_key(&folds[i])) {
            struct tokens *tokens = &x->tokens[k];
            encoder_tokenize(g->encoder, folds[i].kind == FOLD_LABEL ? ENCODER_LABEL : ENCODER_TEXT, folds[i].text,
                             tokens);
            inputs[k] = tokens;
            x->keys[k] = (struct memory_key){.vector = x->vectors + k * g->dim,
                                             .pieces = tokens->ids + 1, /* without [CLS] and [SEP] */
                                             .pieces_count = tokens->count - 2};
            k++;
        }
    }
    int result = engine_encode_lane(g, LANE_PROMPT, inputs, count, x->vectors, e);
    free(inputs);
    return result;
}

/* A forget has no source to hand on: one by hand is counted here, the memory counts the other kinds itself. */
static int forget_apply(struct transaction *t, struct fold *f, struct error *e)
{
    int failed = f->kind == FOLD_FORGET ? transaction_forget(t, f->name, &f->found, e)
                                        : transaction_undefine(t, f->name, &f->found, e);
    if (failed) {
        return -1;
    }
    return f->found && f->source.topic.bytes == 0 ? transaction_local_change(t, e) : 0;
}

static int fold_apply(struct transaction *t, struct fold *f, const struct memory_key *key, struct error *e)
{
    switch (f->kind) {
    case FOLD_INSTANCE:
        return transaction_fold(t, f->name, f->text, f->labels, f->labels_count, key, &f->source, &f->moved, e);
    case FOLD_LABEL:
        return transaction_define(t, f->name, f->text, key, &f->source, &f->moved, e);
    case FOLD_FORGET:
    case FOLD_UNDEFINE:
        return forget_apply(t, f, e);
    case FOLD_SKIP:
        return 0;
    }
    return error_set(e, ERROR_FATAL, E_INTERNAL, "no such kind of fold: %d", (int)f->kind);
}

static bool same_partition(const struct memory_source *a, const struct memory_source *b)
{
    return a->partition == b->partition && slice_equal(a->topic, b->topic) && slice_equal(a->cluster, b->cluster);
}

/* The offsets behind folds[0..n): one put for each run of records of one partition. */
static int offsets_apply(struct transaction *t, const struct fold *folds, size_t n, struct error *e)
{
    for (size_t i = 0; i < n; i++) {
        const struct memory_source *s = &folds[i].source;
        bool last_of_run = i + 1 == n || !same_partition(s, &folds[i + 1].source);
        struct read_position read = {.next = s->offset + 1, .mark = folds[i].mark};
        if (s->topic.bytes && last_of_run && transaction_offset(t, s->cluster, s->topic, s->partition, &read, e)) {
            return -1;
        }
    }
    return 0;
}

/* Applies and commits folds[0..n). *applied: n, or fewer on E_KEYS_MAX (then -1); on any other error 0, and *reached is
 * the record at which it came (n: at the commit). */
static int prefix_commit(struct engine *g, struct fold *folds, size_t n, const struct memory_key *keys, size_t *applied,
                         size_t *reached, struct error *e)
{
    struct transaction *t = NULL;
    struct error refused = {0};
    size_t i = 0;
    *applied = 0;
    *reached = 0;
    if (memory_begin(g->memory, &t, e)) {
        return -1;
    }
    for (const struct memory_key *key = keys; i < n; i++) {
        folds[i].found = folds[i].moved = false;
        if (fold_apply(t, &folds[i], key, &refused)) {
            break;
        }
        if (needs_key(&folds[i])) {
            key++;
        }
    }
    *reached = i;
    if (i < n && refused.code != E_KEYS_MAX) {
        transaction_abort(t);
        if (e) {
            *e = refused;
        }
        return -1;
    }
    if (offsets_apply(t, folds, i, e)) {
        transaction_abort(t);
        return -1;
    }
    if (transaction_commit(t, e)) {
        return -1;
    }
    *applied = i;
    if (i < n && e) {
        *e = refused;
    }
    return i < n ? -1 : 0;
}

int engine_fold(struct engine *g, struct fold *folds, size_t n, size_t *applied, struct error *e)
{
    struct encoded_folds encoded;
    struct error why = {0}, full = {0};
    int result = -1;
    *applied = 0;
    if (folds_encode(g, folds, n, &encoded, &why)) {
        goto done;
    }
    size_t limit = n, reached;
    while (prefix_commit(g, folds, limit, encoded.keys, applied, &reached, &why)) {
        if (why.code != E_MAP_FULL || limit <= 1) {
            goto done;
        }
        full = why;
        limit = reached > 0 && reached < limit ? reached : limit / 2;
    }
    result = limit == n ? 0 : -1;
    why = full;
done:
    if (*applied > 0 && atomic_load(&g->ready) && engine_refresh(g, &why)) {
        result = -1;
    }
    encoded_free(&encoded);
    if (result && e) {
        *e = why;
    }
    return result;
}
