/* The search over frames of keys: scores, and the b best of them for each query, without a matrix of all scores.
 *
 * Keys are walked in steps. A step's kernel multiplies, and appends a hit to its query's list where the score is at
 * least the b-th best of the steps before; then a second kernel cuts the list to the b best. The first step is as large
 * as a list, and each may be some times as large as all before it together: if keys come in no special order, about b
 * hits are appended for as many keys as were seen before. Where a list overflows all the same, the whole search is done
 * again in steps that cannot (finishes_run).
 *
 * Keys in bf16 are multiplied by the tensor cores as they are. A query is cut into two bf16 numbers, their sum exact to
 * 16 bits, so a score differs from one in f32 by rounding alone. Every row is summed in one order: equal keys have
 * equal scores. */
#include <stdlib.h>

#include "gpu/cuda/keys.h"
#include "gpu/cuda/warp.h"

enum {
    THREADS = 256,
    SCAN_WARPS = THREADS / WARP,
    PART_PAD = 32, /* numbers after a query in shared memory, so that two rows lie in different banks */
    BINS = 256,
    DIGITS = 20, /* bytes by which hits are ordered: score, tie, slot */
};

static const size_t LISTS_BYTES = (size_t)128 << 20; /* about, of one pass's lists */

/* ---- order ---- */

/* Unsigned numbers in the order of floats. */
static __host__ __device__ inline uint32_t order_of(float x)
{
    union {
        float number;
        uint32_t bits;
    } u;
    u.number = x + 0.0F; /* -0 is 0 */
    return u.bits & 0x80000000U ? ~u.bits : u.bits | 0x80000000U;
}

/* Byte `digit` of a hit: the better hit has the larger in the first that differs. */
static __device__ inline uint32_t digit_of(const struct keys_hit *h, int digit)
{
    if (digit < 4) {
        return order_of(h->score) >> (24 - 8 * digit) & 0xFF;
    }
    const uint64_t low = digit < 12 ? ~h->tie : ~h->slot;
    return (uint32_t)(low >> (56 - 8 * ((digit - 4) % 8))) & 0xFF;
}

static __host__ __device__ inline bool better(const struct keys_hit *x, const struct keys_hit *y)
{
    if (x->score != y->score) {
        return x->score > y->score;
    }
    return x->tie != y->tie ? x->tie < y->tie : x->slot < y->slot;
}

int hits_compare(const void *a, const void *b)
{
    const struct keys_hit *x = (const struct keys_hit *)a, *y = (const struct keys_hit *)b;
    return better(x, y) ? -1 : better(y, x) ? 1 : 0;
}

/* ---- scores ---- */

static __global__ void begin(struct finding f, int dim, int stride, bool parts)
{
    const int row = blockIdx.x;
    for (int i = threadIdx.x; parts && i < stride; i += blockDim.x) {
        const float x = row < (int)f.n && i < dim ? f.queries[(size_t)row * dim + i] : 0;
        const bf16 high = __float2bfloat16_rn(x);
        bf16 *to = f.parts + (size_t)row * 2 * stride + i;
        to[0] = high;
        to[stride] = __float2bfloat16_rn(isfinite(float_of(high)) ? x - float_of(high) : 0.0F);
    }
    if (threadIdx.x == 0 && row < (int)f.n) {
        f.least[row] = -INFINITY;
        f.counts[row] = 0;
        f.overflows[row] = 0;
    }
}

/* Frames are walked in an order that mixes them: neighbours often are alike, or gone together. */
static __device__ inline const unsigned char *frame_at(const struct frames *f, uint32_t place)
{
    const uint32_t frame = (uint32_t)((uint64_t)place * f->turn % f->all);
    const unsigned char *slab = f->slabs ? f->slabs[frame / SLAB_FRAMES] : f->alone;
    return slab + (f->slabs ? frame % SLAB_FRAMES : frame) * f->bytes;
}

/* Its candidates, as far as this search sees the frame. */
static __device__ inline uint64_t candidates_of(const struct frames *f, const unsigned char *frame)
{
    const struct frame_head *head = (const struct frame_head *)frame;
    return head->born <= f->sequence && f->sequence < head->died ? head->candidates : 0;
}

static __device__ inline void append(const struct finding *f, int query, float score, const unsigned char *frame,
                                     int row)
{
    const uint32_t place = atomicAdd(&f->counts[query], 1U);
    if (place < f->room) {
        const struct frame_head *head = (const struct frame_head *)frame;
        struct keys_hit *hit = &f->hits[(size_t)query * f->room + place];
        hit->score = score;
        hit->kind = head->kind;
        hit->slot = head->first_slot + row;
        hit->tie = ((const uint64_t *)(frame + FRAME_TIES))[row];
    }
}

/* What a block of threads takes at once: 8 TILES queries, and so many frames; of a frame a warp takes 16 rows, or 32
 * where the queries, which are in shared memory, would else be read too often. */
template <int TILES> struct share {
    static const int parts = TILES >= 4 ? 2 : 1, rows = 16 * parts;
    static const int frame_warps = FRAME_ROWS / rows, frames = SCAN_WARPS / frame_warps;
    static const int unrolled = TILES >= 8 ? 1 : TILES >= 4 ? 2 : 4; /* more would spill */
};

template <int TILES> static __device__ void queries_load(bf16 *parts, float *least, const struct finding &f, int stride)
{
    const int pieces = 2 * stride / 8, first = blockIdx.y * 8 * TILES, end = ((int)f.n + 7) / 8 * 8;
    for (int i = threadIdx.x; i < 8 * TILES * pieces; i += THREADS) {
        const int row = i / pieces, column = i % pieces * 8;
        *(uint4 *)(parts + row * (2 * stride + PART_PAD) + column) =
            first + row < end ? *(const uint4 *)(f.parts + (size_t)(first + row) * 2 * stride + column)
                              : make_uint4(0, 0, 0, 0);
    }
    for (int i = threadIdx.x; i < 8 * TILES; i += THREADS) {
        least[i] = first + i < (int)f.n ? f.least[first + i] : NAN;
    }
}

/* The sum over a row may run in any order, as long as keys and queries agree: a lane takes 8 numbers that follow one
 * another for what the instruction calls columns 2t, 2t + 1, 2t + 8, 2t + 9 of two steps. */
template <int TILES>
static __global__ void __launch_bounds__(THREADS, 2) scan_tensor(struct frames frames, struct finding f)
{
    SHARED_MEMORY(shared);
    typedef struct share<TILES> share;
    const int stride = frames.stride, row_numbers = 2 * stride + PART_PAD, query0 = blockIdx.y * 8 * TILES;
    const int warp = threadIdx.x / WARP, g = threadIdx.x % WARP / 4, t = threadIdx.x % 4;
    bf16 *parts = (bf16 *)shared;
    float *least = (float *)(parts + 8 * TILES * row_numbers);
    queries_load<TILES>(parts, least, f, stride);
    __syncthreads();
    for (uint32_t at = frames.first + blockIdx.x * share::frames + warp / share::frame_warps; at < frames.end;
         at += gridDim.x * share::frames) {
        const unsigned char *frame = frame_at(&frames, at);
        const int row0 = warp % share::frame_warps * share::rows + g;
        const uint64_t candidates = candidates_of(&frames, frame);
        const bf16 *keys = (const bf16 *)(frame + FRAME_VECTORS) + (size_t)row0 * stride + 8 * t;
        float scores[share::parts][TILES][4] = {};
        if (!candidates) {
            continue;
        }
#pragma unroll(share::unrolled)
        for (int i = 0; i < stride; i += COLUMNS_MULTIPLE) {
            uint32_t first[share::parts][4], second[share::parts][4];
#pragma unroll
            for (int part = 0; part < share::parts; part++) {
                const bf16 *row = keys + (size_t)part * 16 * stride + i;
                const uint4 upper = __ldg((const uint4 *)row), lower = __ldg((const uint4 *)(row + 8 * stride));
                first[part][0] = upper.x, first[part][1] = lower.x, first[part][2] = upper.y, first[part][3] = lower.y;
                second[part][0] = upper.z, second[part][1] = lower.z, second[part][2] = upper.w,
                second[part][3] = lower.w;
            }
#pragma unroll
            for (int tile = 0; tile < TILES; tile++) {
                const bf16 *query = parts + (8 * tile + g) * row_numbers + i + 8 * t;
                const uint4 high = *(const uint4 *)query, low = *(const uint4 *)(query + stride);
                const uint32_t b[4][2] = {{high.x, high.y}, {high.z, high.w}, {low.x, low.y}, {low.z, low.w}};
#pragma unroll
                for (int part = 0; part < share::parts; part++) {
                    mma(scores[part][tile], first[part], b[0]);
                    mma(scores[part][tile], second[part], b[1]);
                    mma(scores[part][tile], first[part], b[2]);
                    mma(scores[part][tile], second[part], b[3]);
                }
            }
        }
#pragma unroll
        for (int i = 0; i < 4 * TILES * share::parts; i++) {
            const int part = i / 4 / TILES, tile = i / 4 % TILES;
            const int query = 8 * tile + 2 * t + i % 2, row = row0 + 16 * part + i % 4 / 2 * 8;
            if ((candidates >> row & 1) && scores[part][tile][i % 4] >= least[query]) {
                append(&f, query0 + query, scores[part][tile][i % 4], frame, row);
            }
        }
    }
}

/* A warp takes a row, and all queries one after the other. */
template <typename T> static __global__ void scan_plain(struct frames frames, struct finding f)
{
    const int lane = threadIdx.x % WARP;
    const uint32_t rows = (frames.end - frames.first) * FRAME_ROWS;
    for (uint32_t i = blockIdx.x * SCAN_WARPS + threadIdx.x / WARP; i < rows; i += gridDim.x * SCAN_WARPS) {
        const unsigned char *frame = frame_at(&frames, frames.first + i / FRAME_ROWS);
        const int row = i % FRAME_ROWS;
        const T *key = (const T *)(frame + FRAME_VECTORS) + (size_t)row * frames.stride;
        if (!(candidates_of(&frames, frame) >> row & 1)) {
            continue;
        }
        for (int query = 0; query < (int)f.n; query++) {
            float score = 0;
            for (int c = lane; c < frames.dim; c += WARP) {
                score += float_of(key[c]) * f.queries[(size_t)query * frames.dim + c];
            }
            score = warp_sum(score);
            if (lane == 0 && score >= f.least[query]) {
                append(&f, query, score, frame, row);
            }
        }
    }
}

/* ---- the b best ---- */

struct cut { /* in shared memory */
    uint32_t bins[BINS];
    uint32_t warps[SCAN_WARPS];
    uint8_t prefix[DIGITS]; /* of the worst hit that stays; of it `depth` bytes count */
    int depth;
    bool found;
    uint32_t need, least;
};

/* More than 0: better than the prefix; 0: begins with it. */
static __device__ int prefix_compare(const struct keys_hit *h, const struct cut *c, int depth)
{
    for (int digit = 0; digit < depth; digit++) {
        const int of = (int)digit_of(h, digit) - (int)c->prefix[digit];
        if (of != 0) {
            return of;
        }
    }
    return 0;
}

/* The first warp, all of it: goes down the bins, 8 a lane, until `need` hits are had; found: they end with a bin. */
static __device__ void bin_choose(struct cut *c, int digit)
{
    enum { EACH = BINS / WARP };
    const int lane = threadIdx.x, top = BINS - 1 - EACH * lane;
    const uint32_t need = c->need;
    uint32_t mine = 0, sum;
    for (int i = 0; i < EACH; i++) {
        mine += c->bins[top - i];
    }
    sum = mine;
    for (int step = 1; step < WARP; step *= 2) {
        const uint32_t before = __shfl_up_sync(ALL_LANES, sum, step);
        sum += lane >= step ? before : 0;
    }
    __syncwarp(); /* all have read `need` */
    if (sum >= need && sum - mine < need) {
        uint32_t left = need - (sum - mine);
        int bin = top;
        while (c->bins[bin] < left) {
            left -= c->bins[bin--];
        }
        c->need = left;
        c->prefix[digit] = (uint8_t)bin;
        c->depth = digit + 1;
        c->found = c->bins[bin] == left || digit == DIGITS - 1;
    }
}

/* Finds the prefix with which or better than which exactly b hits are: by their first byte, then of those that are
 * still in doubt by the next. */
static __device__ void cut_find(struct cut *c, const struct keys_hit *hits, uint32_t count, uint32_t b)
{
    if (threadIdx.x == 0) {
        c->need = b;
        c->depth = 0;
    }
    for (int digit = 0; digit < DIGITS; digit++) {
        for (int i = threadIdx.x; i < BINS; i += THREADS) {
            c->bins[i] = 0;
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < count; i += THREADS) {
            if (prefix_compare(&hits[i], c, digit) == 0) {
                atomicAdd(&c->bins[digit_of(&hits[i], digit)], 1U);
            }
        }
        __syncthreads();
        if (threadIdx.x < WARP) {
            bin_choose(c, digit);
        }
        __syncthreads();
        if (c->found) {
            break;
        }
    }
}

/* Moves the hits that stay to the front, in their order; at most b. */
static __device__ void cut_make(struct cut *c, struct keys_hit *hits, uint32_t count, uint32_t b)
{
    const int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint32_t kept = 0;
    for (uint32_t first = 0; first < count; first += THREADS) {
        const uint32_t i = first + threadIdx.x;
        struct keys_hit hit = {};
        bool stays = false;
        if (i < count) {
            hit = hits[i];
            stays = prefix_compare(&hit, c, c->depth) >= 0;
        }
        const uint32_t votes = __ballot_sync(ALL_LANES, stays);
        if (lane == 0) {
            c->warps[warp] = (uint32_t)__popc(votes);
        }
        __syncthreads(); /* also: all have read before one writes */
        uint32_t place = kept + (uint32_t)__popc(votes & ((1U << lane) - 1));
        for (int w = 0; w < SCAN_WARPS; w++) {
            place += w < warp ? c->warps[w] : 0;
            kept += c->warps[w];
        }
        if (stays && place < b) {
            hits[place] = hit;
            atomicMin(&c->least, order_of(hit.score));
        }
        __syncthreads();
    }
}

static __device__ inline float float_of_order(uint32_t order)
{
    return __uint_as_float(order & 0x80000000U ? order & 0x7FFFFFFFU : ~order);
}

/* A block of threads for each query: leaves its b best hits, whose worst is what later ones must reach. */
static __global__ void tighten(struct finding f)
{
    SHARED_MEMORY(shared);
    struct cut *c = (struct cut *)shared;
    const uint32_t query = blockIdx.x, found = f.counts[query], b = (uint32_t)f.b;
    const uint32_t count = found < f.room ? found : (uint32_t)f.room;
    struct keys_hit *hits = f.hits + (size_t)query * f.room;
    if (found <= b) {
        return;
    }
    if (threadIdx.x == 0) {
        c->least = UINT32_MAX;
    }
    cut_find(c, hits, count, b);
    __syncthreads();
    cut_make(c, hits, count, b);
    if (threadIdx.x == 0) {
        f.overflows[query] |= found > f.room;
        f.counts[query] = b;
        f.least[query] = float_of_order(c->least);
    }
}

/* A block of threads for each query: its hits, at most b, sorted by merging neighbours (bitonic). */
static __global__ void sort_best(struct finding f, int size)
{
    SHARED_MEMORY(shared);
    struct keys_hit *hits = (struct keys_hit *)shared;
    const uint32_t query = blockIdx.x, count = f.counts[query];
    for (int i = threadIdx.x; i < size; i += THREADS) {
        struct keys_hit none = {-INFINITY, 0, UINT64_MAX, UINT64_MAX};
        hits[i] = i < (int)count ? f.hits[(size_t)query * f.room + i] : none;
    }
    for (int run = 2; run <= size; run *= 2) {
        for (int step = run / 2; step > 0; step /= 2) {
            __syncthreads();
            for (int i = threadIdx.x; i < size; i += THREADS) {
                const int other = i ^ step; /* the thread with the smaller one sees to both */
                if (other > i && (i & run ? better(&hits[i], &hits[other]) : better(&hits[other], &hits[i]))) {
                    const struct keys_hit hit = hits[i];
                    hits[i] = hits[other];
                    hits[other] = hit;
                }
            }
        }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < (int)f.b; i += THREADS) {
        f.best[(size_t)query * f.b + i] = hits[i];
    }
    if (threadIdx.x == 0) {
        f.best_counts[query] = f.overflows[query] ? UINT32_MAX : count;
    }
}

/* The same without sorting. */
static __global__ void copy_best(struct finding f)
{
    const uint32_t query = blockIdx.x, count = f.counts[query];
    const struct keys_hit none = {};
    for (uint32_t i = threadIdx.x; i < f.b; i += blockDim.x) {
        f.best[(size_t)query * f.b + i] = i < count ? f.hits[(size_t)query * f.room + i] : none;
    }
    if (threadIdx.x == 0) {
        f.best_counts[query] = f.overflows[query] ? UINT32_MAX : count;
    }
}

/* A block of threads for each query: all devices' lists become its hits. */
static __global__ void join(struct finding f, const struct keys_hit *lists, const uint32_t *counts, int devices)
{
    const uint32_t query = blockIdx.x;
    uint32_t total = 0, overflow = 0;
    for (int device = 0; device < devices; device++) {
        const size_t list = (size_t)device * f.n + query;
        /* after NCCL was ended, what is there may be anything: nobody sees what comes of it */
        const uint32_t count = counts[list] <= f.b ? counts[list] : 0;
        overflow |= counts[list] > f.b;
        for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) {
            f.hits[query * f.room + total + i] = lists[list * f.b + i];
        }
        total += count;
    }
    if (threadIdx.x == 0) {
        f.counts[query] = total;
        f.overflows[query] = overflow;
        f.least[query] = -INFINITY;
    }
}

/* ---- one device's search ---- */

static void *place(unsigned char *memory, size_t *next, size_t bytes)
{
    void *at = memory ? memory + *next : NULL;
    *next += rounded(bytes, 256);
    return at;
}

static size_t room_for(size_t b, size_t gathered)
{
    size_t room = HITS_LEAST;
    while (room < 8 * b || room < gathered * b) {
        room *= 2;
    }
    return room;
}

size_t queries_for(size_t b)
{
    const size_t fit = LISTS_BYTES / (room_for(b, 0) * sizeof(struct keys_hit));
    return fit < 1 ? 1 : fit < QUERIES_MAX ? fit : (size_t)QUERIES_MAX;
}

int finding_place(struct stream *s, size_t device, struct finding *f, size_t dim, size_t stride, size_t gathered,
                  struct keys_hit **from_all, uint32_t **counts_from_all, struct error *e)
{
    struct grown *g = &s->scan_memory[device];
    const float *given = f->queries;
    f->room = room_for(f->b, gathered);
    for (unsigned char *memory = NULL;;) {
        size_t next = 0;
        void *queries = place(memory, &next, given ? 0 : f->n * dim * sizeof(float));
        f->queries = given ? given : (const float *)queries;
        f->parts = (bf16 *)place(memory, &next, rounded(f->n, 8) * 2 * stride * sizeof(bf16));
        f->least = (float *)place(memory, &next, f->n * sizeof *f->least);
        f->counts = (uint32_t *)place(memory, &next, f->n * sizeof *f->counts);
        f->overflows = (uint32_t *)place(memory, &next, f->n * sizeof *f->overflows);
        f->hits = (struct keys_hit *)place(memory, &next, f->n * f->room * sizeof *f->hits);
        f->best = (struct keys_hit *)place(memory, &next, f->n * f->b * sizeof *f->best);
        f->best_counts = (uint32_t *)place(memory, &next, f->n * sizeof *f->best_counts);
        *from_all = (struct keys_hit *)place(memory, &next, gathered * f->n * f->b * sizeof *f->best);
        *counts_from_all = (uint32_t *)place(memory, &next, gathered * f->n * sizeof *f->counts);
        if (memory) {
            return 0;
        }
        if (grown_take(s, device, g, next, e)) {
            return -1;
        }
        memory = (unsigned char *)g->memory;
    }
}

void finding_begin(struct stream *s, size_t device, const struct finding *f, enum dtype dtype, size_t dim,
                   size_t stride)
{
    LAUNCH(begin, (unsigned)rounded(f->n, 8), 128, 0, s->on[device], *f, (int)dim, (int)stride, dtype == DTYPE_BF16);
    launched(s, "keys_scan");
}

template <int TILES> static size_t tensor_bytes_for(size_t stride)
{
    return 8 * TILES * ((2 * stride + PART_PAD) * sizeof(bf16) + sizeof(float));
}

template <int TILES> static int tensor_prepare(struct cuda *c, size_t device, struct error *e)
{
    return cuda_check(c,
                      cudaFuncSetAttribute(scan_tensor<TILES>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           (int)c->devices[device].shared_bytes),
                      "asking for shared memory", e);
}

int scan_prepare(struct cuda *c, size_t device, struct error *e)
{
    return tensor_prepare<1>(c, device, e) || tensor_prepare<2>(c, device, e) || tensor_prepare<4>(c, device, e) ||
                   tensor_prepare<8>(c, device, e)
               ? -1
               : 0;
}

/* As many blocks of threads as the device runs at once; each walks on. */
template <int TILES>
static void tensor_launch(struct stream *s, size_t device, const struct frames *frames, const struct finding *f)
{
    const size_t bytes = tensor_bytes_for<TILES>((size_t)frames->stride);
    const unsigned groups = blocks_for(f->n, 8 * TILES);
    const unsigned all = blocks_for(frames->end - frames->first, share<TILES>::frames);
    int each = 1;
    put(s, cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, scan_tensor<TILES>, THREADS, bytes), "keys_scan");
    const unsigned most =
        blocks_for((size_t)s->cuda->devices[device].processors * (size_t)(each > 0 ? each : 1), groups);
    LAUNCH(scan_tensor<TILES>, dim3(all < most ? all : most, groups), THREADS, bytes, s->on[device], *frames, *f);
}

/* As many queries at once as there are, and as shared memory takes. */
static bool tensor_scan(struct stream *s, size_t device, const struct frames *frames, const struct finding *f)
{
    const size_t room = s->cuda->devices[device].shared_bytes, stride = (size_t)frames->stride;
    if (f->n > 32 && tensor_bytes_for<8>(stride) <= room) {
        tensor_launch<8>(s, device, frames, f);
    } else if (f->n > 16 && tensor_bytes_for<4>(stride) <= room) {
        tensor_launch<4>(s, device, frames, f);
    } else if (f->n > 8 && tensor_bytes_for<2>(stride) <= room) {
        tensor_launch<2>(s, device, frames, f);
    } else if (tensor_bytes_for<1>(stride) <= room) {
        tensor_launch<1>(s, device, frames, f);
    } else {
        return false;
    }
    return true;
}

void finding_scan(struct stream *s, size_t device, const struct finding *f, const struct frames *frames,
                  enum dtype dtype)
{
    const unsigned blocks = blocks_for((size_t)(frames->end - frames->first) * FRAME_ROWS, SCAN_WARPS);
    const unsigned most = (unsigned)s->cuda->devices[device].processors * 8, some = blocks < most ? blocks : most;
    if (dtype == DTYPE_F32) {
        LAUNCH(scan_plain<float>, some, THREADS, 0, s->on[device], *frames, *f);
    } else if (s->cuda->plain || !tensor_scan(s, device, frames, f)) {
        LAUNCH(scan_plain<bf16>, some, THREADS, 0, s->on[device], *frames, *f);
    }
    LAUNCH(tighten, (unsigned)f->n, THREADS, sizeof(struct cut), s->on[device], *f);
    launched(s, "keys_scan");
}

size_t scan_step(const struct finding *f, size_t seen, bool careful)
{
    const size_t safe = f->room - f->b, more = seen * (f->room / (2 * f->b) - 1);
    return careful || more < safe ? safe : more;
}

void finding_end(struct stream *s, size_t device, const struct finding *f)
{
    int size = 2;
    while (size < (int)f->b) {
        size *= 2;
    }
    if (f->b <= SORTED_MAX) {
        LAUNCH(sort_best, (unsigned)f->n, THREADS, size * sizeof(struct keys_hit), s->on[device], *f, size);
    } else {
        LAUNCH(copy_best, (unsigned)f->n, THREADS, 0, s->on[device], *f);
    }
    launched(s, "keys_scan");
}

void finding_merge(struct stream *s, size_t device, const struct finding *f, const struct keys_hit *lists,
                   const uint32_t *counts, size_t devices)
{
    LAUNCH(join, (unsigned)f->n, THREADS, 0, s->on[device], *f, lists, counts, (int)devices);
    LAUNCH(tighten, (unsigned)f->n, THREADS, sizeof(struct cut), s->on[device], *f);
    finding_end(s, device, f);
}
