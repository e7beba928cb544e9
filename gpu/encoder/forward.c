/* The forward pass of one tile on one stream. Nothing is padded: all tokens of a tile are in one [tokens, dim] matrix,
 * and attention alone knows where a sequence ends. */
#include "gpu/encoder/internal.h"

/* ---- where tensors go -------------------------------------------------------------------------------------------- */

/* Takes room for a tensor at *next, which moves on by whole cache lines. */
static struct tensor place(const struct backend *b, size_t *next, void *memory, enum dtype dtype, size_t rows,
                           size_t columns)
{
    struct tensor t = {
        .data = memory ? (unsigned char *)memory + *next : NULL, .dtype = dtype, .rows = rows, .columns = columns};
    *next += (tensor_bytes(b, dtype, rows, columns) + 63) / 64 * 64;
    return t;
}

/* A layer that keeps nothing writes over what it no longer needs, and the next one over all of it. */
static void layer_place(const struct encoder *enc, struct layer_pass *l, size_t *next, void *memory, size_t tokens,
                        bool keep)
{
    const struct backend *b = enc->backend;
    const enum dtype dtype = b->facts.compute;
    const size_t dim = enc->config.dim;
    *l = (struct layer_pass){
        .qkv = place(b, next, memory, dtype, tokens, 3 * dim),
        .context = place(b, next, memory, dtype, tokens, dim),
        .middle = place(b, next, memory, dtype, tokens, dim),
        .hidden = place(b, next, memory, dtype, tokens, enc->config.intermediate),
    };
    l->attended = l->middle;
    if (keep) {
        l->attended = place(b, next, memory, dtype, tokens, dim);
        l->projected = place(b, next, memory, dtype, tokens, dim);
        l->out = place(b, next, memory, dtype, tokens, dim);
        l->before_gelu = place(b, next, memory, dtype, tokens, enc->config.intermediate);
        l->log_sums = place(b, next, memory, DTYPE_F32, tokens, enc->config.heads);
        l->norm1 = place(b, next, memory, DTYPE_F32, tokens, 2);
        l->norm2 = place(b, next, memory, DTYPE_F32, tokens, 2);
    }
}

size_t pass_place(const struct encoder *enc, struct pass *p, void *memory, size_t tokens, size_t sequences, bool keep)
{
    const struct backend *b = enc->backend;
    const struct model_config *c = &enc->config;
    size_t next = 0;
    p->tokens = place(b, &next, memory, b->facts.compute, tokens, c->dim);
    p->embed_norm = place(b, &next, memory, DTYPE_F32, keep ? tokens : 0, 2);
    p->pooled = place(b, &next, memory, DTYPE_F32, sequences, c->dim);
    p->norms = place(b, &next, memory, DTYPE_F32, sequences, 1);
    p->vectors = place(b, &next, memory, DTYPE_F32, sequences, c->width);
    p->keep = keep;
    for (size_t i = 0; i < (keep ? c->layers : 1); i++) {
        layer_place(enc, &p->layers[i], &next, memory, tokens, keep);
    }
    return next;
}

/* ---- the pass ---------------------------------------------------------------------------------------------------- */

/* Returns where the layer's output is. */
static struct tensor layer_run(const struct encoder *enc, struct stream *s, const struct layer *w,
                               const struct layer_pass *l, const struct tensor *x, bool keep)
{
    const struct backend_operations *ops = enc->backend->ops;
    const float eps = enc->config.epsilon;
    const struct tensor *out = keep ? &l->out : x, *projected = keep ? &l->projected : x;

    ops->linear(s, &l->qkv, x, w->attention->packed, EPILOGUE_NONE, NULL);                  /* [tokens, 3 dim] */
    ops->attention(s, &l->context, &l->qkv, enc->config.heads, keep ? &l->log_sums : NULL); /* [tokens, dim]   */
    ops->linear(s, &l->attended, &l->context, w->attention_output->packed, EPILOGUE_NONE, NULL);
    ops->layer_norm(s, &l->middle, &l->attended, x, &w->attention_norm->tensor, eps, keep ? &l->norm1 : NULL);
    ops->linear(s, &l->hidden, &l->middle, w->hidden->packed, EPILOGUE_GELU, keep ? &l->before_gelu : NULL);
    ops->linear(s, projected, &l->hidden, w->output->packed, EPILOGUE_NONE, NULL); /* [tokens, dim]   */
    ops->layer_norm(s, out, projected, &l->middle, &w->output_norm->tensor, eps, keep ? &l->norm2 : NULL);
    return *out;
}

int forward_pass(const struct encoder *enc, struct stream *s, const struct tile *tile, const struct pass *p,
                 void (*between)(void *context), void *context, struct error *e)
{
    const struct backend_operations *ops = enc->backend->ops;
    const struct embedding embedding = {.word = enc->parameters[WORD].tensor,
                                        .position = enc->parameters[POSITION].tensor,
                                        .type = enc->parameters[TYPE].tensor,
                                        .norm = enc->parameters[EMBEDDING_NORM].tensor,
                                        .epsilon = enc->config.epsilon};
    struct tensor x = p->tokens;
    if (ops->tile(s, tile, e)) {
        return -1;
    }
    ops->embed(s, &x, &embedding, p->keep ? &p->embed_norm : NULL);
    for (size_t i = 0; i < enc->config.layers; i++) {
        if (i > 0 && between) {
            between(context);
        }
        x = layer_run(enc, s, &enc->layers[i], &p->layers[p->keep ? i : 0], &x, p->keep);
    }
    const struct tensor *last = enc->dense ? &p->vectors : &p->pooled;
    ops->pool(s, &p->pooled, &x, enc->config.pooling); /* [sequences, dim] */
    if (enc->dense) {
        ops->linear(s, &p->vectors, &p->pooled, enc->dense->packed, EPILOGUE_NONE, NULL); /* [sequences, width] */
    }
    ops->normalise(s, &p->vectors, last, &p->norms); /* [sequences, width] */
    return 0;
}

int encoder_pass(const struct encoder *enc, struct stream *s, const struct tile *tile, void (*between)(void *context),
                 void *context, struct encoded *out, struct error *e)
{
    struct layer_pass layer;
    struct pass p = {.layers = &layer};
    void *memory;
    size_t bytes = pass_place(enc, &p, NULL, tile->tokens, tile->sequences, false);
    if (enc->backend->ops->arena(s, bytes, &memory, e)) {
        return -1;
    }
    pass_place(enc, &p, memory, tile->tokens, tile->sequences, false);
    *out = (struct encoded){p.norms, p.vectors};
    return forward_pass(enc, s, tile, &p, enc->backend->facts.host_memory ? between : NULL, context, e);
}
