/* The forward pass, and how a batch is dealt out over the backend's streams. Nothing is padded: all tokens of a tile
 * stand in one [tokens, dim] matrix, and attention alone knows where a sequence ends.
 *
 * A tile is some whole sequences that go through all layers on one stream, small enough for its intermediates to stay
 * in the cache; streams take tiles off a counter until none is left. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/encoder/internal.h"

/* ---- one tile ---------------------------------------------------------------------------------------------------- */

/* A layer's tensors in a row's floats: input d, qkv 3 d, context d, middle d, hidden. */
static size_t layer_floats(const struct encoder *enc)
{
    return 6 * enc->config.dim + enc->config.intermediate;
}

static size_t rows_rounded(size_t tokens)
{
    return (tokens + BACKEND_ROWS - 1) / BACKEND_ROWS * BACKEND_ROWS;
}

size_t activations_floats(const struct encoder *enc, size_t tokens, bool keep)
{
    size_t row = keep ? enc->config.layers * layer_floats(enc) + enc->config.dim : layer_floats(enc);
    return rows_rounded(tokens) * row;
}

void forward_pass(const struct encoder *enc, struct stream *s, const int32_t *ids, const uint32_t *starts,
                  size_t sequences, const struct activations *a, float *out)
{
    const struct backend_operations *ops = enc->backend->ops;
    const struct encoder_parameter *p = enc->parameters;
    const size_t n = starts[sequences], d = enc->config.dim, heads = enc->config.heads;
    const float eps = enc->config.epsilon;
    float *x = a->memory;
    ops->embed(s, x, ids, starts, sequences, p[WORD].tensor, p[POSITION].tensor, p[TYPE].tensor,
               p[EMBEDDING_NORM].tensor, p[EMBEDDING_NORM].tensor + d, eps, d);
    for (size_t i = 0; i < enc->config.layers; i++) {
        const struct layer *l = &enc->layers[i];
        const float *norm1 = l->attention_norm->tensor, *norm2 = l->output_norm->tensor;
        float *qkv = x + a->rows * d, *context = qkv + a->rows * 3 * d, *middle = context + a->rows * d;
        float *hidden = middle + a->rows * d, *next = a->keep ? x + a->rows * layer_floats(enc) : x;

        ops->linear(s, qkv, x, l->attention->packed, EPILOGUE_NONE, NULL, n);             /* [tokens, 3 dim] */
        ops->attention(s, context, qkv, starts, sequences, heads, d);                     /* [tokens, dim]   */
        ops->linear(s, middle, context, l->attention_output->packed, EPILOGUE_ADD, x, n); /* [tokens, dim]   */
        ops->layer_norm(s, middle, middle, norm1, norm1 + d, eps, n, d);                  /* [tokens, dim]   */
        ops->linear(s, hidden, middle, l->hidden->packed, EPILOGUE_GELU, NULL, n);        /* [tokens, inter] */
        ops->linear(s, next, hidden, l->output->packed, EPILOGUE_ADD, middle, n);         /* [tokens, dim]   */
        ops->layer_norm(s, next, next, norm2, norm2 + d, eps, n, d);                      /* [tokens, dim]   */
        x = next;
    }
    ops->pool(s, out, x, starts, sequences, d, enc->config.pooling); /* [seqs, dim]     */
}

/* ---- a batch ----------------------------------------------------------------------------------------------------- */

struct batch {
    struct encoder *enc;
    const struct tokens *const *inputs;
    size_t *order; /* [n]: inputs from the longest to the shortest */
    size_t n;
    size_t tiles;
    atomic_size_t next_tile;
    float *out;
};

/* Inputs are dealt out to the tiles from the longest on, to and fro, so that all tiles get about as many tokens: the
 * input of a tile in each round of dealing, or n where there is none. */
static size_t tile_input(const struct batch *b, size_t tile, size_t round)
{
    size_t i = round * b->tiles + (round % 2 ? b->tiles - 1 - tile : tile);
    return i < b->n ? b->order[i] : b->n;
}

static int tile_run(const struct batch *b, struct stream *s, size_t tile, struct error *e)
{
    const struct encoder *enc = b->enc;
    const struct backend_operations *ops = enc->backend->ops;
    const size_t dim = enc->config.dim, rounds = (b->n + b->tiles - 1) / b->tiles;
    size_t tokens = 0, sequences = 0;
    for (size_t round = 0; round < rounds; round++) {
        size_t input = tile_input(b, tile, round);
        tokens += input < b->n ? b->inputs[input]->count : 0;
    }
    int32_t *ids = mem_alloc(tokens * sizeof *ids);
    uint32_t *starts = mem_alloc((rounds + 1) * sizeof *starts);
    starts[0] = 0;
    for (size_t round = 0; round < rounds; round++) {
        size_t input = tile_input(b, tile, round);
        if (input < b->n) {
            const struct tokens *t = b->inputs[input];
            memcpy(ids + starts[sequences], t->ids, t->count * sizeof *ids);
            starts[sequences + 1] = starts[sequences] + t->count;
            sequences++;
        }
    }
    const size_t floats = activations_floats(enc, tokens, false);
    float *memory = ops->arena(s, floats + sequences * dim), *pooled = memory + floats;
    const struct activations a = {.memory = memory, .rows = rows_rounded(tokens)};
    forward_pass(enc, s, ids, starts, sequences, &a, pooled);
    for (size_t round = 0, i = 0; round < rounds; round++) {
        size_t input = tile_input(b, tile, round);
        if (input < b->n) {
            ops->download(s, b->out + input * dim, pooled + i++ * dim, dim);
        }
    }
    int result = ops->wait(s, e);
    free(starts);
    free(ids);
    return result;
}

static int batch_work(struct stream *s, size_t i, void *context, struct error *e)
{
    (void)i;
    struct batch *b = context;
    for (;;) {
        size_t tile = atomic_fetch_add_explicit(&b->next_tile, 1, memory_order_relaxed);
        if (tile >= b->tiles) {
            return 0;
        }
        if (tile_run(b, s, tile, e) != 0) {
            return -1;
        }
    }
}

/* By falling length: a counting sort, lengths are at most max_seq_length. */
static void order_by_length(struct batch *b, size_t longest)
{
    size_t *places = mem_zero(longest + 2, sizeof *places);
    for (size_t i = 0; i < b->n; i++) {
        places[longest - b->inputs[i]->count + 1]++;
    }
    for (size_t i = 1; i <= longest + 1; i++) {
        places[i] += places[i - 1];
    }
    for (size_t i = 0; i < b->n; i++) {
        b->order[places[longest - b->inputs[i]->count]++] = i;
    }
    free(places);
}

/* A vector that is not finite would match no key, in silence. The model is at fault, not the text: no finite weight of
 * a trained model comes near f32's end. So this is FATAL: were the text refused as poison, replicas whose sums round
 * differently could disagree on which texts the memory holds. */
static int vectors_check(const struct encoder *enc, const struct tokens *const *inputs, size_t n, const float *out,
                         struct error *e)
{
    for (size_t i = 0; i < n * enc->config.dim; i++) {
        if (!isfinite(out[i])) {
            const size_t input = i / enc->config.dim;
            return error_set(e, ERROR_FATAL, E_MODEL,
                             "model %s: the vector of a text of %u word pieces (number %zu of %zu in its batch) is not "
                             "finite: the model's weights are damaged or too large; use another model",
                             enc->name, inputs[input]->count, input + 1, n);
        }
    }
    return 0;
}

int encoder_forward(struct encoder *enc, const struct tokens *const *inputs, size_t n, float *out, struct error *e)
{
    const struct backend_operations *ops = enc->backend->ops;
    const size_t streams = ops->streams(enc->backend), best = ops->tile_tokens(enc->backend);
    struct batch b = {.enc = enc, .inputs = inputs, .n = n, .out = out};
    size_t tokens = 0, longest = 0;
    for (size_t i = 0; i < n; i++) {
        tokens += inputs[i]->count;
        longest = inputs[i]->count > longest ? inputs[i]->count : longest;
    }
    if (n == 0) {
        return 0;
    }
    /* as many tiles on each stream, and no tile without a sequence */
    b.tiles = ((tokens + best - 1) / best + streams - 1) / streams * streams;
    b.tiles = b.tiles < n ? b.tiles : n;
    b.order = mem_alloc(n * sizeof *b.order);
    order_by_length(&b, longest);
    int result = ops->parallel(enc->backend, batch_work, &b, e);
    free(b.order);
    return result ? result : vectors_check(enc, inputs, n, out, e);
}
