/* Attention inside each sequence of a tile, all of them in one launch, without padding: see struct attention_work. The
 * softmax is taken online, block of keys by block of keys (Milakov and Gimelshein 2018, arXiv 1805.02867; as in
 * FlashAttention, arXiv 2205.14135). In bf16 the tensor cores multiply; attention_plain is the same in plain loops, for
 * f32 and for heads of other sizes. */
#include "gpu/cuda/internal.h"
#include "gpu/cuda/warp.h"

enum {
    WARPS = 4,    /* of a block of threads */
    QUERIES = 16, /* that a warp takes */
    KEYS = 64,    /* that are in shared memory at once, of all the block's heads together */
    PAD = 8,      /* numbers after each of their rows, so that 8 rows lie in different banks */
    TILES = KEYS / 8,
};

/* ---- tensor cores ---- */

/* Rows of K and V of up to 4 heads: row slot * keys + i is key key0 + i of the block's head `slot`. What is past the
 * end of the sequence is 0. */
template <int STEPS>
static __device__ void keys_load(bf16 *k, bf16 *v, const bf16 *qkv, const struct attention_work &w, int heads,
                                 int head0, int keys, int key0)
{
    const int size = 16 * STEPS, dim = heads * size, pieces = size / 8;
    for (int i = threadIdx.x; i < KEYS * pieces; i += WARPS * WARP) {
        const int row = i / pieces, column = i % pieces * 8, head = head0 + row / keys, key = key0 + row % keys;
        uint4 of_k = make_uint4(0, 0, 0, 0), of_v = of_k;
        if (head < heads && key < (int)w.length) {
            const bf16 *at = qkv + ((size_t)w.first + key) * 3 * dim + dim + head * size + column;
            of_k = *(const uint4 *)at;
            of_v = *(const uint4 *)(at + dim);
        }
        *(uint4 *)(k + row * (size + PAD) + column) = of_k;
        *(uint4 *)(v + row * (size + PAD) + column) = of_v;
    }
}

/* s [16, 8 of tile j] = q k' of this warp's keys; -inf where there is no key. k, v: the warp's head's rows. */
template <int STEPS>
static __device__ __forceinline__ void scores(float s[TILES][4], const uint32_t q[STEPS][4], const bf16 *k, int count)
{
    const int g = threadIdx.x % WARP / 4, t = threadIdx.x % 4, stride = 16 * STEPS + PAD;
#pragma unroll
    for (int j = 0; j < TILES; j++) {
        s[j][0] = s[j][1] = s[j][2] = s[j][3] = 0;
        if (8 * j < count) {
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                const bf16 *at = k + (8 * j + g) * stride + 16 * step + 2 * t;
                const uint32_t b[2] = {*(const uint32_t *)at, *(const uint32_t *)(at + 8)};
                mma(s[j], q[step], b);
            }
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            s[j][i] = 8 * j + 2 * t + i % 2 < count ? s[j][i] : -INFINITY;
        }
    }
}

/* o [16, size] += p v: the scores' registers are as they must be for the next multiplication. */
template <int STEPS>
static __device__ __forceinline__ void values_add(float o[2 * STEPS][4], const float p[TILES][4], const bf16 *v,
                                                  int count)
{
    const int lane = threadIdx.x % WARP, stride = 16 * STEPS + PAD;
#pragma unroll
    for (int j = 0; j < TILES; j += 2) {
        if (8 * j < count) {
            const uint32_t a[4] = {pair_of(p[j][0], p[j][1]), pair_of(p[j][2], p[j][3]),
                                   pair_of(p[j + 1][0], p[j + 1][1]), pair_of(p[j + 1][2], p[j + 1][3])};
#pragma unroll
            for (int n = 0; n < 2 * STEPS; n += 2) {
                uint32_t b[4]; /* keys 0 .. 7 and 8 .. 15 of 8 columns, then of the next 8 */
                matrices_transposed(b, v + (8 * j + lane % 16) * stride + 8 * n + lane / 16 * 8);
                mma(o[n], a, b);
                mma(o[n + 1], a, b + 2);
            }
        }
    }
}

/* One step of the online softmax for rows g (half 0) and g + 8 (half 1): s becomes exp(s - the largest so far). */
template <int STEPS>
static __device__ __forceinline__ void softmax_step(float s[TILES][4], float o[2 * STEPS][4], float largest[2],
                                                    float sum[2], float scale)
{
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = largest[half], more = 0;
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            most = fmaxf(most, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        }
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 1));
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, 2));
        const float keep = exp2f((largest[half] - most) * scale);
#pragma unroll
        for (int j = 0; j < TILES; j++) {
            s[j][2 * half] = exp2f((s[j][2 * half] - most) * scale);
            s[j][2 * half + 1] = exp2f((s[j][2 * half + 1] - most) * scale);
            more += s[j][2 * half] + s[j][2 * half + 1];
        }
#pragma unroll
        for (int n = 0; n < 2 * STEPS; n++) {
            o[n][2 * half] *= keep;
            o[n][2 * half + 1] *= keep;
        }
        largest[half] = most;
        sum[half] = sum[half] * keep + more;
    }
}

/* scale: log2(e) / sqrt(size), so that exp2 gives exp. Heads of size 16 STEPS. */
template <int STEPS>
static __global__ void attention_tensor(bf16 *out, const bf16 *qkv, float *log_sums, const struct attention_work *works,
                                        int heads, float scale)
{
    SHARED_MEMORY(shared);
    const struct attention_work w = works[blockIdx.x];
    const int size = 16 * STEPS, dim = heads * size, stride = size + PAD, keys = QUERIES * (int)w.warps;
    const int warp = threadIdx.x / WARP, slot = warp / (int)w.warps, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    const int head0 = blockIdx.y * (WARPS / (int)w.warps), head = head0 + slot, length = (int)w.length;
    const int first = (int)w.query + warp % (int)w.warps * QUERIES; /* of the warp's queries */
    bf16 *k = (bf16 *)shared, *v = k + KEYS * stride;
    if (head0 >= heads) {
        return; /* all of the block */
    }
    const bool works_on = head < heads && first < length;
    uint32_t q[STEPS][4];
    float s[TILES][4], o[2 * STEPS][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    const bf16 *at = qkv + ((size_t)w.first + first) * 3 * dim + head * size + 2 * t;
#pragma unroll
    for (int step = 0; step < STEPS; step++) {
#pragma unroll
        for (int i = 0; i < 4; i++) { /* rows g and g + 8, columns 2t and 2t + 8 */
            const int row = g + i % 2 * 8;
            q[step][i] = works_on && first + row < length
                             ? *(const uint32_t *)(at + (size_t)row * 3 * dim + 16 * step + i / 2 * 8)
                             : 0;
        }
    }
    for (int key0 = 0; key0 < length; key0 += keys) {
        __syncthreads();
        keys_load<STEPS>(k, v, qkv, w, heads, head0, keys, key0);
        __syncthreads();
        if (works_on) {
            const int count = length - key0 < keys ? length - key0 : keys;
            scores<STEPS>(s, q, k + slot * keys * stride, count);
            softmax_step<STEPS>(s, o, largest, sum, scale);
            values_add<STEPS>(o, s, v + slot * keys * stride, count);
        }
    }
    if (!works_on) {
        return;
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        sum[half] += __shfl_xor_sync(ALL_LANES, sum[half], 1);
        sum[half] += __shfl_xor_sync(ALL_LANES, sum[half], 2);
        const int row = first + g + half * 8;
        if (row < length) {
            const size_t token = (size_t)w.first + row;
            const float share = 1 / sum[half];
            uint32_t *to = (uint32_t *)(out + token * dim + head * size + 2 * t);
#pragma unroll
            for (int n = 0; n < 2 * STEPS; n++) {
                to[4 * n] = pair_of(o[n][2 * half] * share, o[n][2 * half + 1] * share);
            }
            if (log_sums && t == 0) {
                log_sums[token * heads + head] = largest[half] * scale * 0.69314718055994531F + logf(sum[half]);
            }
        }
    }
}

/* ---- plain loops ---- */

/* A warp takes a query of one head: each lane the score of one of 32 keys, then the sums of some columns. Shared memory
 * holds the warp's query and its sums, `size` numbers each. */
template <typename T>
static __global__ void attention_plain(T *out, const T *qkv, float *log_sums, const struct attention_work *works,
                                       int heads, int size, float scale)
{
    SHARED_MEMORY(shared);
    const struct attention_work w = works[blockIdx.x];
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y, dim = heads * size;
    const int length = (int)w.length, end = (int)(w.query + QUERIES * w.warps);
    float *q = (float *)shared + (size_t)warp * 2 * size, *o = q + size;
    for (int row = (int)w.query + warp; row < end && row < length; row += WARPS) {
        const size_t token = (size_t)w.first + row;
        float largest = -INFINITY, sum = 0;
        for (int i = lane; i < size; i += WARP) {
            q[i] = float_of(qkv[token * 3 * dim + head * size + i]);
            o[i] = 0;
        }
        __syncwarp();
        for (int key0 = 0; key0 < length; key0 += WARP) {
            const T *rows = qkv + ((size_t)w.first + key0) * 3 * dim + dim + head * size;
            const int count = length - key0 < WARP ? length - key0 : WARP;
            float score = lane < count ? 0 : -INFINITY;
            for (int i = 0; lane < count && i < size; i++) {
                score += q[i] * float_of(rows[(size_t)lane * 3 * dim + i]);
            }
            const float most = fmaxf(largest, warp_max(score)), keep = exp2f((largest - most) * scale);
            const float p = exp2f((score - most) * scale);
            for (int first = 0; first < size; first += WARP) { /* all lanes: they hand p round */
                const int i = first + lane;
                float more = i < size ? o[i] * keep : 0;
                for (int j = 0; j < count; j++) {
                    const float weight = __shfl_sync(ALL_LANES, p, j);
                    more += i < size ? weight * float_of(rows[(size_t)j * 3 * dim + dim + i]) : 0;
                }
                if (i < size) {
                    o[i] = more;
                }
            }
            sum = sum * keep + warp_sum(p);
            largest = most;
        }
        for (int i = lane; i < size; i += WARP) {
            store(out + token * dim + head * size + i, o[i] / sum);
        }
        if (log_sums && lane == 0) {
            log_sums[token * heads + head] = largest * scale * 0.69314718055994531F + logf(sum);
        }
        __syncwarp();
    }
}

/* ---- the operation ---- */

template <int STEPS>
static void tensor_launch(struct stream *s, void *out, const void *qkv, float *log_sums, int heads, float scale)
{
    const size_t bytes = 2 * KEYS * (16 * STEPS + PAD) * sizeof(bf16);
    LAUNCH(attention_tensor<STEPS>, dim3((unsigned)s->tile.work_count, (unsigned)heads), WARPS * WARP, bytes,
           s->on[s->home], (bf16 *)out, (const bf16 *)qkv, log_sums, s->tile.work, heads, scale);
}

template <typename T>
static void attention_plain_launch(struct stream *s, void *out, const void *qkv, float *log_sums, int heads, int size,
                                   float scale)
{
    LAUNCH(attention_plain<T>, dim3((unsigned)s->tile.work_count, (unsigned)heads), WARPS * WARP,
           (size_t)WARPS * 2 * size * sizeof(float), s->on[s->home], (T *)out, (const T *)qkv, log_sums, s->tile.work,
           heads, size, scale);
}

void cuda_attention(struct stream *s, const struct tensor *out, const struct tensor *qkv, size_t heads,
                    const struct tensor *kept)
{
    const int size = (int)(out->columns / heads), n = (int)heads;
    const float scale = 1.44269504088896341F / sqrtf((float)size);
    if (!home_use(s)) {
        return;
    }
    void *to = at_home(s, out->data), *from = at_home(s, qkv->data);
    float *log_sums = kept ? (float *)at_home(s, kept->data) : NULL;
    const int steps = qkv->dtype == DTYPE_BF16 && !s->cuda->plain && size % 16 == 0 ? size / 16 : 0;
    switch (steps) {
    case 1:
        tensor_launch<1>(s, to, from, log_sums, n, scale);
        break;
    case 2:
        tensor_launch<2>(s, to, from, log_sums, n, scale);
        break;
    case 4:
        tensor_launch<4>(s, to, from, log_sums, n, scale);
        break;
    case 8:
        tensor_launch<8>(s, to, from, log_sums, n, scale);
        break;
    default:
        if (qkv->dtype == DTYPE_BF16) {
            attention_plain_launch<bf16>(s, to, from, log_sums, n, size, scale);
        } else {
            attention_plain_launch<float>(s, to, from, log_sums, n, size, scale);
        }
    }
    launched(s, "attention");
}
