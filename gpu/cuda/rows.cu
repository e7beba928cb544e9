/* What works row by row: embeddings with their layer norm, the layer norm of a sum, pooling, the L2 norm. A warp takes
 * a row, or a block of threads a sequence; what is read once from memory is kept in shared memory as f32. */
#include "gpu/cuda/internal.h"
#include "gpu/cuda/warp.h"

enum { ROW_SHARED = 32768, ROW_WARPS = 8, POOL_THREADS_MAX = 512 };

/* ---- layer norm ---- */

/* (y - mean) / sqrt(variance + epsilon) * gamma + beta of a row y that the warp has in shared memory, each lane the
 * numbers lane, lane + 32, ..; sum is of the lane's own. norm: gamma, then beta; kept: mean and 1 / sqrt(..), or NULL.
 */
template <typename T>
static __device__ void norm_store(T *out, const float *y, float sum, const float *norm, float *kept, int dim,
                                  float epsilon)
{
    const int lane = threadIdx.x % WARP;
    const float mean = warp_sum(sum) / (float)dim;
    float squares = 0;
    for (int i = lane; i < dim; i += WARP) {
        squares += (y[i] - mean) * (y[i] - mean);
    }
    const float rstd = 1 / sqrtf(warp_sum(squares) / (float)dim + epsilon);
    for (int i = lane; i < dim; i += WARP) {
        store(out + i, (y[i] - mean) * rstd * norm[i] + norm[dim + i]);
    }
    if (kept && lane == 0) {
        kept[0] = mean;
        kept[1] = rstd;
    }
}

/* residual may be NULL; out may be x or residual. */
template <typename T>
static __global__ void layer_norm_rows(T *out, const T *x, const T *residual, const float *norm, float *kept, int rows,
                                       int dim, float epsilon)
{
    SHARED_MEMORY(shared);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int row = blockIdx.x * (blockDim.x / WARP) + warp;
    float *y = (float *)shared + (size_t)warp * dim;
    if (row >= rows) {
        return;
    }
    const size_t at = (size_t)row * dim;
    float sum = 0;
    for (int i = lane; i < dim; i += WARP) {
        y[i] = float_of(x[at + i]) + (residual ? float_of(residual[at + i]) : 0);
        sum += y[i];
    }
    norm_store(out + at, y, sum, norm, kept ? kept + 2 * row : NULL, dim, epsilon);
}

template <typename T>
static __global__ void embed_rows(T *out, const int32_t *ids, const int32_t *positions, const float *word,
                                  const float *position, const float *type, const float *norm, float *kept, int tokens,
                                  int dim, float epsilon)
{
    SHARED_MEMORY(shared);
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int token = blockIdx.x * (blockDim.x / WARP) + warp;
    float *y = (float *)shared + (size_t)warp * dim;
    if (token >= tokens) {
        return;
    }
    const float *of_word = word + (size_t)ids[token] * dim, *of_position = position + (size_t)positions[token] * dim;
    float sum = 0;
    for (int i = lane; i < dim; i += WARP) {
        y[i] = of_word[i] + of_position[i] + type[i];
        sum += y[i];
    }
    norm_store(out + (size_t)token * dim, y, sum, norm, kept ? kept + 2 * token : NULL, dim, epsilon);
}

static unsigned warps_for(size_t dim)
{
    const size_t fit = ROW_SHARED / (dim * sizeof(float));
    return fit < 1 ? 1 : fit < ROW_WARPS ? (unsigned)fit : (unsigned)ROW_WARPS;
}

static float *kept_at(struct stream *s, const struct tensor *kept)
{
    return kept ? (float *)at_home(s, kept->data) : NULL;
}

template <typename T>
static void layer_norm_launch(struct stream *s, const struct tensor *out, const struct tensor *x,
                              const struct tensor *residual, const struct tensor *norm, float epsilon,
                              const struct tensor *kept)
{
    const unsigned warps = warps_for(x->columns);
    LAUNCH(layer_norm_rows<T>, blocks_for(x->rows, warps), warps * WARP, warps * x->columns * sizeof(float),
           s->on[s->home], (T *)at_home(s, out->data), (const T *)at_home(s, x->data),
           residual ? (const T *)at_home(s, residual->data) : NULL, (const float *)at_home(s, norm->data),
           kept_at(s, kept), (int)x->rows, (int)x->columns, epsilon);
}

void cuda_layer_norm(struct stream *s, const struct tensor *out, const struct tensor *x, const struct tensor *residual,
                     const struct tensor *norm, float epsilon, const struct tensor *kept)
{
    if (!home_use(s)) {
        return;
    }
    if (x->dtype == DTYPE_BF16) {
        layer_norm_launch<bf16>(s, out, x, residual, norm, epsilon, kept);
    } else {
        layer_norm_launch<float>(s, out, x, residual, norm, epsilon, kept);
    }
    launched(s, "layer_norm");
}

template <typename T>
static void embed_launch(struct stream *s, const struct tensor *out, const struct embedding *x,
                         const struct tensor *kept)
{
    const size_t dim = out->columns;
    const unsigned warps = warps_for(dim);
    LAUNCH(embed_rows<T>, blocks_for(s->tile.tokens, warps), warps * WARP, warps * dim * sizeof(float), s->on[s->home],
           (T *)at_home(s, out->data), s->tile.ids, s->tile.positions, (const float *)at_home(s, x->word.data),
           (const float *)at_home(s, x->position.data), (const float *)at_home(s, x->type.data),
           (const float *)at_home(s, x->norm.data), kept_at(s, kept), (int)s->tile.tokens, (int)dim, x->epsilon);
}

void cuda_embed(struct stream *s, const struct tensor *out, const struct embedding *embedding,
                const struct tensor *kept)
{
    if (!home_use(s)) {
        return;
    }
    if (out->dtype == DTYPE_BF16) {
        embed_launch<bf16>(s, out, embedding, kept);
    } else {
        embed_launch<float>(s, out, embedding, kept);
    }
    launched(s, "embed");
}

/* ---- pooling and norm ---- */

/* A block of threads for each sequence: the mean over its rows, or over the first alone. */
template <typename T>
static __global__ void pool_sequence(float *out, const T *x, const uint32_t *starts, int dim, bool first_only)
{
    const uint32_t first = starts[blockIdx.x], end = first_only ? first + 1 : starts[blockIdx.x + 1];
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        float sum = 0;
        for (uint32_t row = first; row < end; row++) {
            sum += float_of(x[(size_t)row * dim + i]);
        }
        out[(size_t)blockIdx.x * dim + i] = sum / (float)(end - first);
    }
}

void cuda_pool(struct stream *s, const struct tensor *out, const struct tensor *x, enum pooling pooling)
{
    if (!home_use(s)) {
        return;
    }
    const unsigned sequences = (unsigned)s->tile.sequences;
    const int dim = (int)x->columns;
    const unsigned columns = (unsigned)rounded(x->columns, WARP);
    const unsigned threads = columns < POOL_THREADS_MAX ? columns : (unsigned)POOL_THREADS_MAX;
    float *to = (float *)at_home(s, out->data);
    if (x->dtype == DTYPE_BF16) {
        LAUNCH(pool_sequence<bf16>, sequences, threads, 0, s->on[s->home], to, (const bf16 *)at_home(s, x->data),
               s->tile.starts, dim, pooling == POOLING_CLS);
    } else {
        LAUNCH(pool_sequence<float>, sequences, threads, 0, s->on[s->home], to, (const float *)at_home(s, x->data),
               s->tile.starts, dim, pooling == POOLING_CLS);
    }
    launched(s, "pool");
}

/* A row of zeroes stays, and one whose sum of squares is not finite becomes NaN. */
static __global__ void normalise_rows(float *out, const float *x, float *kept, int rows, int dim)
{
    const int lane = threadIdx.x % WARP, row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) {
        return;
    }
    const size_t at = (size_t)row * dim;
    float squares = 0;
    for (int i = lane; i < dim; i += WARP) {
        squares += x[at + i] * x[at + i];
    }
    const float norm = sqrtf(warp_sum(squares));
    const float factor = norm > 0 ? isfinite(norm) ? 1 / norm : NAN : norm == 0 ? 1 : NAN;
    for (int i = lane; i < dim; i += WARP) {
        out[at + i] = x[at + i] * factor;
    }
    if (kept && lane == 0) {
        kept[row] = norm;
    }
}

void cuda_normalise(struct stream *s, const struct tensor *out, const struct tensor *x, const struct tensor *kept)
{
    if (!home_use(s)) {
        return;
    }
    LAUNCH(normalise_rows, blocks_for(x->rows, ROW_WARPS), ROW_WARPS * WARP, 0, s->on[s->home],
           (float *)at_home(s, out->data), (const float *)at_home(s, x->data), kept_at(s, kept), (int)x->rows,
           (int)x->columns);
    launched(s, "normalise");
}
