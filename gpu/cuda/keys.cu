/* Which keys are on which device, and a search from end to end: keys.h says how a device has them.
 *
 * A block of the memory belongs to one device, by its first slot, and is known there by its version: a new view costs
 * what has changed. What finds no room on its device is copied to it for every search. A search runs on all devices:
 * the queries go from the stream's home to the others, each finds the best of its keys, and home has the best of those.
 *
 * The lock is held while work is put on the streams, not while it runs. Events keep the streams' work apart: one that
 * uploads keys, which others wait for, and the searches, which whoever overwrites a frame waits for. */
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda/keys.h"

static const double MEMORY_SHARE = 0.75; /* of what is free when the keys are opened */

/* ---- opening ---- */

static size_t each_bytes(enum dtype dtype)
{
    return dtype == DTYPE_BF16 ? 2 : 4;
}

static int event_open(struct cuda *c, cudaEvent_t *out, struct error *e)
{
    return cuda_check(c, cudaEventCreateWithFlags(out, cudaEventDisableTiming | cudaEventBlockingSync),
                      "opening an event", e);
}

static int mirror_open(struct keys *k, size_t device, struct error *e)
{
    struct cuda *c = k->cuda;
    struct mirror *m = &k->mirrors[device];
    size_t free_bytes = 0, all = 0;
    device_use(c, device);
    for (size_t kind = 0; kind < KINDS; kind++) {
        void **table = (void **)&m->piles[kind].table;
        if (cuda_check(c, cudaMalloc(table, SLABS_MAX * sizeof(unsigned char *)), "the keys", e)) {
            *table = NULL;
            return -1;
        }
    }
    for (size_t i = 0; i < STAGES; i++) {
        void **memory = (void **)&m->stages[i].memory;
        if (cuda_check(c, cudaHostAlloc(memory, STAGE_FRAMES * k->frame_bytes, cudaHostAllocPortable),
                       "copies to and from it", e) ||
            event_open(c, &m->stages[i].copied, e)) {
            return -1;
        }
    }
    if (event_open(c, &m->uploaded, e) || cuda_check(c, cudaMemGetInfo(&free_bytes, &all), "asking for memory", e)) {
        return -1;
    }
    const char *said = getenv("GPU_TEST_KEY_BYTES");
    m->room = said ? (size_t)strtoull(said, NULL, 10) : (size_t)((double)free_bytes * MEMORY_SHARE);
    return 0;
}

int cuda_keys_open(struct backend *b, size_t dim, enum dtype dtype, struct keys **out, struct error *e)
{
    struct cuda *c = cuda_of(b);
    struct keys *k = (struct keys *)calloc(1, sizeof *k);
    struct mirror *mirrors = (struct mirror *)calloc(c->count, sizeof *mirrors);
    if (!k || !mirrors) {
        free(k);
        free(mirrors);
        return c->host->error_set(e, ERROR_FATAL, E_INTERNAL, "out of memory");
    }
    k->cuda = c;
    k->dim = dim;
    k->dtype = dtype;
    k->stride = rounded(dim, COLUMNS_MULTIPLE);
    k->frame_bytes = FRAME_VECTORS + FRAME_ROWS * k->stride * each_bytes(dtype);
    k->mirrors = mirrors;
    pthread_mutex_init(&k->lock, NULL);
    for (size_t i = 0; i < c->count; i++) {
        if (mirror_open(k, i, e)) {
            cuda_keys_close(k);
            return -1;
        }
    }
    if (c->world > 1 && group_open(&k->group, k, e)) {
        cuda_keys_close(k);
        return -1;
    }
    *out = k;
    return 0;
}

static void mirror_close(struct keys *k, size_t device)
{
    struct mirror *m = &k->mirrors[device];
    device_use(k->cuda, device);
    for (size_t kind = 0; kind < KINDS; kind++) {
        for (size_t i = 0; i < m->piles[kind].slabs_count; i++) {
            cudaFree(m->piles[kind].slabs[i]);
        }
        cudaFree(m->piles[kind].table);
        free(m->piles[kind].free);
    }
    for (size_t i = 0; i < STAGES; i++) {
        if (m->stages[i].memory) {
            cudaFreeHost(m->stages[i].memory);
        }
        if (m->stages[i].copied) {
            cudaEventDestroy(m->stages[i].copied);
        }
    }
    if (m->uploaded) {
        cudaEventDestroy(m->uploaded);
    }
    cudaFree(m->alone);
}

void cuda_keys_close(struct keys *k)
{
    for (size_t i = 0; k->group && i < k->count; i++) {
        group_names_remove(k->group, &k->blocks[i]);
    }
    group_close(k->group);
    for (size_t i = 0; i < k->cuda->count; i++) {
        mirror_close(k, i);
        for (size_t j = 0; j < k->readers_count; j++) {
            cudaEventDestroy(k->readers[j].searched[i]);
        }
    }
    free(k->readers);
    free(k->mirrors);
    free(k->blocks);
    pthread_mutex_destroy(&k->lock);
    free(k);
}

/* ---- frames ---- */

static size_t pile_of(uint32_t kind)
{
    return kind == KEY_LABEL ? 1 : 0;
}

static size_t frames_of(uint32_t rows)
{
    return (rows + FRAME_ROWS - 1) / FRAME_ROWS;
}

/* true: the pile has another slab. Without room there is none: that is no error. */
static bool slab_add(struct keys *k, struct stream *s, size_t device, struct pile *p)
{
    struct mirror *m = &k->mirrors[device];
    const size_t bytes = SLAB_FRAMES * k->frame_bytes;
    void *memory;
    if (p->slabs_count == SLABS_MAX || bytes > m->room || m->refused) {
        return false;
    }
    if (cudaMalloc(&memory, bytes) != cudaSuccess) {
        cudaGetLastError();
        m->refused = true;
        return false;
    }
    m->room -= bytes;
    put(s, cudaMemsetAsync(memory, 0, bytes, s->on[device]), "the keys"); /* a frame without candidates is none */
    p->slabs[p->slabs_count] = (unsigned char *)memory;
    put(s,
        cudaMemcpyAsync(p->table + p->slabs_count, p->slabs + p->slabs_count, sizeof *p->table, cudaMemcpyHostToDevice,
                        s->on[device]),
        "the keys");
    p->slabs_count++;
    return true;
}

/* Whoever overwrites what a search may still read waits for all searches, on the device. */
static void readers_wait(struct keys *k, struct stream *s, size_t device)
{
    for (size_t i = 0; i < k->readers_count; i++) {
        put(s, cudaStreamWaitEvent(s->on[device], k->readers[i].searched[device], 0), "the keys");
    }
}

/* A frame that nobody uses; false: there is no room. */
static bool frame_take(struct keys *k, struct stream *s, size_t device, struct pile *p, uint32_t *out)
{
    if (p->free_count) {
        *out = p->free[--p->free_count];
        return true;
    }
    if (p->used == p->slabs_count * SLAB_FRAMES && !slab_add(k, s, device, p)) {
        return false;
    }
    *out = p->used++;
    return true;
}

static bool frame_give(struct pile *p, uint32_t frame)
{
    if (p->free_count == p->free_room) {
        const size_t room = 2 * p->free_room + 64;
        uint32_t *more = (uint32_t *)realloc(p->free, room * sizeof *more);
        if (!more) {
            return false;
        }
        p->free = more;
        p->free_room = room;
    }
    p->free[p->free_count++] = frame;
    return true;
}

static unsigned char *frame_on_device(const struct keys *k, const struct pile *p, uint32_t frame)
{
    return p->slabs[frame / SLAB_FRAMES] + frame % SLAB_FRAMES * k->frame_bytes;
}

/* The block's rows that are this process's: by their names, so that it is the same wherever a memory has them. */
struct mine {
    uint16_t rows[BLOCK_FRAMES_MAX * FRAME_ROWS];
    uint32_t count;
};

static struct mine rows_mine(const struct keys *k, const struct keys_block *b)
{
    struct mine mine;
    mine.count = 0;
    for (uint32_t r = 0; r < b->rows; r++) {
        if (k->cuda->world == 1 || b->ties[r] % k->cuda->world == k->cuda->rank) {
            mine.rows[mine.count++] = (uint16_t)r;
        }
    }
    return mine;
}

/* Makes the block's frame number `part` at `out`. */
static void frame_make(const struct keys *k, const struct keys_block *b, const struct mine *mine, size_t part,
                       unsigned char *out)
{
    const size_t first = part * FRAME_ROWS;
    const size_t each = each_bytes(k->dtype), row_bytes = k->dim * each, stride_bytes = k->stride * each;
    struct frame_head *head = (struct frame_head *)out;
    memset(out, 0, k->frame_bytes);
    head->first_slot = b->first_slot + first; /* in a group rows are left out, and hits get other slots: group_name */
    head->born = k->sequence;
    head->died = UINT32_MAX;
    head->kind = b->kind;
    for (size_t i = 0; i < FRAME_ROWS && first + i < mine->count; i++) {
        const size_t row = mine->rows[first + i];
        head->candidates |= (uint64_t)(b->candidate[row] != 0) << i;
        ((uint64_t *)(out + FRAME_TIES))[i] = b->ties[row];
        memcpy(out + FRAME_VECTORS + i * stride_bytes, (const unsigned char *)b->vectors + row * row_bytes, row_bytes);
    }
}

/* Says that what was made in the stage has been put on the stream. */
static void stage_close(struct keys *k, struct stream *s, size_t device)
{
    struct mirror *m = &k->mirrors[device];
    struct stage *stage = &m->stages[m->stage];
    if (stage->used) {
        put(s, cudaEventRecord(stage->copied, s->on[device]), "the keys");
        m->stage = (m->stage + 1) % STAGES;
        stage->used = 0;
    }
}

/* Room for `count` frames in a stage: in the next one, once what was last copied from it has been, where they do not
 * fit. */
static unsigned char *stage_take(struct keys *k, struct stream *s, size_t device, size_t count)
{
    struct mirror *m = &k->mirrors[device];
    if (m->stages[m->stage].used + count > STAGE_FRAMES) {
        stage_close(k, s, device);
    }
    struct stage *stage = &m->stages[m->stage];
    if (stage->used == 0) {
        put(s, cudaEventSynchronize(stage->copied), "the keys");
    }
    stage->used += count;
    return stage->memory + (stage->used - count) * k->frame_bytes;
}

static void frames_upload(struct keys *k, struct stream *s, size_t device, const struct keys_block *b,
                          const struct mine *mine, const struct mirrored *to)
{
    const struct pile *p = &k->mirrors[device].piles[pile_of(b->kind)];
    unsigned char *here = stage_take(k, s, device, frames_of(to->mine));
    for (size_t i = 0; i < frames_of(to->mine); i++, here += k->frame_bytes) {
        frame_make(k, b, mine, i, here);
        put(s,
            cudaMemcpyAsync(frame_on_device(k, p, to->frames[i]), here, k->frame_bytes, cudaMemcpyHostToDevice,
                            s->on[device]),
            "the keys");
    }
}

/* ---- a new view ---- */

static uint32_t device_for(const struct keys *k, uint64_t first_slot)
{
    return (uint32_t)((first_slot / FRAME_ROWS * 0x9E3779B97F4A7C15U >> 32) % k->cuda->count);
}

/* From now on no search sees its frames, and others may have them. */
static void block_forget(struct keys *k, struct stream *s, struct mirrored *old, const uint32_t *now)
{
    struct pile *p = &k->mirrors[old->device].piles[pile_of(old->kind)];
    device_use(k->cuda, old->device);
    for (size_t i = 0; old->placed && i < frames_of(old->mine); i++) {
        struct frame_head *head = (struct frame_head *)frame_on_device(k, p, old->frames[i]);
        put(s, cudaMemcpyAsync(&head->died, now, sizeof *now, cudaMemcpyHostToDevice, s->on[old->device]), "the keys");
        if (!frame_give(p, old->frames[i])) {
            put(s, cudaErrorMemoryAllocation, "the keys");
        }
    }
    k->absent -= !old->placed;
    if (k->group) {
        group_names_remove(k->group, old);
    }
}

static void block_take(struct keys *k, struct stream *s, const struct keys_view *view, size_t place,
                       struct mirrored *out)
{
    const struct keys_block *b = &view->blocks[place];
    struct pile *p;
    const struct mine mine = rows_mine(k, b);
    size_t had = 0;
    *out = {b->first_slot, b->version, b->rows, b->kind, device_for(k, b->first_slot),
            mine.count,    true,       false,   {},      NULL};
    p = &k->mirrors[out->device].piles[pile_of(b->kind)];
    device_use(k->cuda, out->device);
    while (had < frames_of(out->mine) && frame_take(k, s, out->device, p, &out->frames[had])) {
        had++;
    }
    out->placed = had == frames_of(out->mine);
    if (out->placed) {
        frames_upload(k, s, out->device, b, &mine, out);
    }
    while (!out->placed && had) {
        frame_give(p, out->frames[--had]);
    }
    k->absent += !out->placed;
    if (k->group) {
        group_names_add(k->group, view, place, out);
    }
}

static int slots_compare(const void *a, const void *b)
{
    const uint64_t x = ((const struct mirrored *)a)->first_slot, y = ((const struct mirrored *)b)->first_slot;
    return x < y ? -1 : x > y;
}

/* What there is of this block, where it has a place and has not changed. Views mostly have their blocks where the last
 * one had them. */
static struct mirrored *unchanged(struct mirrored *old, size_t count, const struct mirrored *sorted, size_t place,
                                  const struct keys_block *b)
{
    struct mirrored key = {};
    struct mirrored *found = place < count ? &old[place] : NULL;
    key.first_slot = b->first_slot;
    if (!found || found->first_slot != b->first_slot) {
        found = sorted ? (struct mirrored *)bsearch(&key, sorted, count, sizeof key, slots_compare) : NULL;
    }
    return found && found->placed && found->version == b->version && found->rows == b->rows && found->kind == b->kind
               ? found
               : NULL;
}

static void absent_tell(struct keys *k)
{
    size_t rows = 0, all = 0;
    if (!k->absent || k->told || k->group) {
        return;
    }
    for (size_t i = 0; i < k->count; i++) {
        all += k->blocks[i].rows;
        rows += k->blocks[i].placed ? 0 : k->blocks[i].rows;
    }
    k->told = true;
    k->cuda->host->log_warn("the GPU's memory has no room for %zu of %zu keys: each search copies them to it, which is "
                            "slow; more GPUs (devices), or bf16 keys (key_dtype) in a new memory, help",
                            rows, all);
}

static int view_check(const struct keys *k, const struct keys_view *view, struct error *e)
{
    if (view->dim != k->dim || view->dtype != k->dtype) {
        return k->cuda->host->error_set(e, ERROR_FATAL, E_INTERNAL,
                                        "a view of %zu dimensions (dtype %d) for keys of %zu (dtype %d)", view->dim,
                                        (int)view->dtype, k->dim, (int)k->dtype);
    }
    for (size_t i = 0; i < view->count; i++) {
        if (view->blocks[i].rows > BLOCK_FRAMES_MAX * FRAME_ROWS) {
            return k->cuda->host->error_set(e, ERROR_FATAL, E_INTERNAL, "a block of %u keys: a GPU takes %d at most",
                                            view->blocks[i].rows, BLOCK_FRAMES_MAX * FRAME_ROWS);
        }
    }
    return 0;
}

/* Sorted where the view has its blocks elsewhere than the last one; else, or without memory, as they are. */
static bool moved(const struct keys *k, const struct keys_view *view)
{
    const size_t n = k->count < view->count ? k->count : view->count;
    for (size_t i = 0; i < n; i++) {
        if (k->blocks[i].first_slot != view->blocks[i].first_slot) {
            return true;
        }
    }
    return false;
}

/* Brings all devices up to date with the view. What is gone goes first, which makes room. */
static void keys_take(struct keys *k, struct stream *s, const struct keys_view *view)
{
    if ((k->any && k->version == view->version) || view_check(k, view, &s->error)) {
        return;
    }
    struct mirrored *blocks = (struct mirrored *)calloc(view->count + 1, sizeof *blocks);
    uint32_t *now = (uint32_t *)staging_take(s, sizeof *now, &s->error);
    if (!blocks || !now) {
        put(s, blocks ? cudaSuccess : cudaErrorMemoryAllocation, "the keys");
        free(blocks);
        return;
    }
    const bool sort = moved(k, view);
    if (sort) {
        qsort(k->blocks, k->count, sizeof *k->blocks, slots_compare);
    }
    for (size_t i = 0; i < k->cuda->count; i++) { /* who waits for this stream's changes waits for all before them */
        device_use(k->cuda, i);
        s->busy[i] = true;
        put(s, cudaStreamWaitEvent(s->on[i], k->mirrors[i].uploaded, 0), "the keys");
        readers_wait(k, s, i);
        k->mirrors[i].refused = false;
    }
    *now = ++k->sequence;
    k->any = false;
    for (size_t i = 0; i < k->count; i++) {
        k->blocks[i].old = true;
    }
    for (size_t i = 0; i < view->count; i++) {
        struct mirrored *had = unchanged(k->blocks, k->count, sort ? k->blocks : NULL, i, &view->blocks[i]);
        if (had) {
            had->old = false;
            blocks[i] = *had;
        } else {
            blocks[i].old = true; /* is to be taken */
        }
    }
    for (size_t i = 0; i < k->count; i++) {
        if (k->blocks[i].old) {
            block_forget(k, s, &k->blocks[i], now);
        }
    }
    for (size_t i = 0; i < view->count; i++) {
        if (blocks[i].old) {
            block_take(k, s, view, i, &blocks[i]);
        }
    }
    for (size_t i = 0; i < k->cuda->count; i++) {
        device_use(k->cuda, i);
        stage_close(k, s, i);
        put(s, cudaEventRecord(k->mirrors[i].uploaded, s->on[i]), "the keys");
    }
    free(k->blocks);
    k->blocks = blocks;
    k->count = view->count;
    k->any = !failed(s);
    k->version = view->version;
    absent_tell(k);
    if (k->group && k->absent) {
        k->any = false; /* so that whoever searches next hears it too */
        k->cuda->host->error_set(
            &s->error, ERROR_FATAL, E_DEVICE_MEMORY,
            "rank %zu of %zu: the GPU has no room for its part of the keys: use one with more memory, more "
            "ranks, or bf16 keys (key_dtype) in a new memory",
            k->cuda->rank, k->cuda->world);
    }
}

/* ---- a search on one device ---- */

/* About 0.618 n, with no divisor in common with n: steps of it visit all of n, at any time evenly spread (Knuth, volume
 * 3, section 6.4). */
static uint32_t turn_for(uint32_t n)
{
    for (uint32_t turn = (uint32_t)((uint64_t)n * 618 / 1000) | 1;; turn += 2) {
        uint32_t a = n, b = turn;
        while (b) {
            const uint32_t rest = a % b;
            a = b;
            b = rest;
        }
        if (a <= 1) {
            return turn;
        }
    }
}

/* Frames [0, frames.end), step by step. */
static void frames_search(const struct searching *x, size_t device, const struct finding *f, struct frames frames)
{
    size_t seen = 0; /* of these: what is elsewhere may be of another kind */
    const uint32_t end = frames.end;
    frames.all = end;
    frames.turn = turn_for(end);
    for (frames.first = 0; frames.first < end; frames.first = frames.end) {
        const size_t step = scan_step(f, seen, x->careful) / FRAME_ROWS;
        frames.end = step < end - frames.first ? frames.first + (uint32_t)step : end;
        finding_scan(x->stream, device, f, &frames, x->keys->dtype);
        seen += (size_t)(frames.end - frames.first) * FRAME_ROWS;
    }
}

/* The blocks that have no place on this device: some at a time are copied to it. */
static void absent_search(const struct searching *x, size_t device, const struct finding *f, struct frames frames)
{
    struct keys *k = x->keys;
    struct stream *s = x->stream;
    struct mirror *m = &k->mirrors[device];
    size_t i = 0;
    if (!m->alone &&
        cuda_check(k->cuda, cudaMalloc((void **)&m->alone, STAGE_FRAMES * k->frame_bytes), "the keys", &s->error)) {
        m->alone = NULL;
        return;
    }
    readers_wait(k, s, device); /* they share `alone` */
    frames.slabs = NULL;
    frames.alone = m->alone;
    while (i < k->count) {
        unsigned char *here = stage_take(k, s, device, STAGE_FRAMES);
        for (frames.end = 0; i < k->count && frames.end + BLOCK_FRAMES_MAX <= STAGE_FRAMES; i++) {
            const struct mirrored *b = &k->blocks[i];
            if (b->placed || b->device != device || !(b->kind & x->kinds)) {
                continue;
            }
            const struct mine mine = rows_mine(k, &x->view->blocks[i]);
            for (size_t part = 0; part < frames_of(mine.count); part++) {
                frame_make(k, &x->view->blocks[i], &mine, part, here + frames.end++ * k->frame_bytes);
            }
        }
        put(s, cudaMemcpyAsync(m->alone, here, frames.end * k->frame_bytes, cudaMemcpyHostToDevice, s->on[device]),
            "the keys");
        stage_close(k, s, device);
        frames_search(x, device, f, frames);
    }
}

void device_search(const struct searching *x, size_t device, const struct finding *f)
{
    struct keys *k = x->keys;
    struct stream *s = x->stream;
    struct frames frames = {};
    frames.bytes = k->frame_bytes;
    frames.sequence = k->sequence;
    frames.dim = (int)k->dim;
    frames.stride = (int)k->stride;
    device_use(k->cuda, device);
    s->busy[device] = true;
    put(s, cudaStreamWaitEvent(s->on[device], k->mirrors[device].uploaded, 0), "the keys");
    finding_begin(s, device, f, k->dtype, k->dim, k->stride);
    for (size_t kind = 0; kind < KINDS; kind++) {
        const struct pile *p = &k->mirrors[device].piles[kind];
        if (x->kinds & (kind ? KEY_LABEL : KEY_INSTANCE)) {
            frames.slabs = p->table;
            frames.end = p->used;
            frames_search(x, device, f, frames);
        }
    }
    if (k->absent && x->view) {
        absent_search(x, device, f, frames);
    }
    finding_end(s, device, f);
}

/* ---- all devices ---- */

bool nccl_put(struct stream *s, ncclResult_t status)
{
    if (status != ncclSuccess && !failed(s)) {
        s->cuda->host->error_set(&s->error, ERROR_FATAL, E_INTERNAL, "NCCL failed: %s", ncclGetErrorString(status));
    }
    return status == ncclSuccess;
}

/* From home to all. */
static void queries_send(struct stream *s, const struct finding *f, size_t count)
{
    struct cuda *c = s->cuda;
    pthread_mutex_lock(&c->nccl);
    nccl_put(s, ncclGroupStart());
    for (size_t i = 0; i < c->count; i++) {
        nccl_put(s, ncclBroadcast(f[s->home].queries, (void *)(uintptr_t)f[i].queries, count, ncclFloat32, (int)s->home,
                                  c->devices[i].comm, s->on[i]));
    }
    nccl_put(s, ncclGroupEnd());
    pthread_mutex_unlock(&c->nccl);
}

/* From all to home, one list after the other. */
static void best_gather(struct stream *s, const struct finding *f, struct keys_hit *lists, uint32_t *counts)
{
    struct cuda *c = s->cuda;
    const size_t n = f[s->home].n, hits = n * f[s->home].b;
    const ncclComm_t home = c->devices[s->home].comm;
    const cudaStream_t on = s->on[s->home];
    pthread_mutex_lock(&c->nccl);
    nccl_put(s, ncclGroupStart());
    for (size_t i = 0; i < c->count; i++) {
        const ncclComm_t comm = c->devices[i].comm;
        nccl_put(s, ncclSend(f[i].best, hits * sizeof *lists, ncclUint8, (int)s->home, comm, s->on[i]));
        nccl_put(s, ncclSend(f[i].best_counts, n, ncclUint32, (int)s->home, comm, s->on[i]));
        nccl_put(s, ncclRecv(lists + i * hits, hits * sizeof *lists, ncclUint8, (int)i, home, on));
        nccl_put(s, ncclRecv(counts + i * n, n, ncclUint32, (int)i, home, on));
    }
    nccl_put(s, ncclGroupEnd());
    pthread_mutex_unlock(&c->nccl);
}

/* Puts one pass on the streams; *out is where its result will be, on the home device. */
static bool pass_search(const struct searching *x, const float *queries, size_t n, size_t b, struct finding *out)
{
    struct keys *k = x->keys;
    struct stream *s = x->stream;
    struct cuda *c = s->cuda;
    struct finding f[DEVICES_MAX] = {};
    struct keys_hit *lists[DEVICES_MAX];
    uint32_t *counts[DEVICES_MAX];
    for (size_t i = 0; i < c->count; i++) {
        const bool gathers = i == s->home && c->count > 1;
        f[i].queries = i == s->home ? queries : NULL;
        f[i].n = n;
        f[i].b = b;
        if (finding_place(s, i, &f[i], k->dim, k->stride, gathers ? c->count : 0, &lists[i], &counts[i], &s->error)) {
            return false;
        }
    }
    if (c->count > 1) {
        queries_send(s, f, n * k->dim);
    }
    for (size_t i = 0; i < c->count; i++) {
        device_search(x, i, &f[i]);
    }
    if (c->count > 1) {
        best_gather(s, f, lists[s->home], counts[s->home]);
        device_use(c, s->home);
        finding_merge(s, s->home, &f[s->home], lists[s->home], counts[s->home], c->count);
    }
    *out = f[s->home];
    return !failed(s);
}

/* ---- the stream's end ---- */

bool result_download(struct stream *s, const struct finding *f, const struct finish *to)
{
    return put(s,
               cudaMemcpyAsync(to->found, f->best, f->n * f->b * sizeof *to->found, cudaMemcpyDeviceToHost,
                               s->on[s->home]),
               "the hits") &&
           put(s,
               cudaMemcpyAsync(to->found_counts, f->best_counts, f->n * sizeof *to->found_counts,
                               cudaMemcpyDeviceToHost, s->on[s->home]),
               "the hits");
}

void reader_record(struct keys *k, struct stream *s)
{
    struct cuda *c = k->cuda;
    size_t i = 0;
    while (i < k->readers_count && k->readers[i].stream != s->number) {
        i++;
    }
    if (i == k->readers_count) {
        struct reader *more = (struct reader *)realloc(k->readers, (i + 1) * sizeof *more);
        if (!more) {
            put(s, cudaErrorMemoryAllocation, "the keys");
            return;
        }
        k->readers = more;
        k->readers[i] = {s->number, {}};
        for (size_t j = 0; j < c->count; j++) {
            device_use(c, j);
            if (event_open(c, &k->readers[i].searched[j], &s->error)) {
                return; /* what was opened is not: the device is lost */
            }
        }
        k->readers_count++;
    }
    for (size_t j = 0; j < c->count; j++) {
        device_use(c, j);
        put(s, cudaEventRecord(k->readers[i].searched[j], s->on[j]), "the keys");
    }
}

/* Puts the search that *f describes on the stream, or has the group do it. */
static void finish_start(struct stream *s, struct finish *f, bool careful)
{
    struct keys *k = f->keys;
    const struct searching x = {k, s, f->view, f->kinds, careful};
    struct finding finding;
    pthread_mutex_lock(&k->lock);
    keys_take(k, s, f->view);
    if (!failed(s) && !k->group && pass_search(&x, f->queries, f->n, f->b, &finding)) {
        device_use(s->cuda, s->home);
        result_download(s, &finding, f);
    }
    if (!k->group) {
        reader_record(k, s); /* also of a search that failed on its way: a part of it may run */
    }
    pthread_mutex_unlock(&k->lock);
    if (!failed(s) && k->group && group_ready(k->group, &s->error) == 0) {
        f->careful = careful;
        device_use(s->cuda, s->home);
        if (put(s, cudaEventRecord(f->ready, s->on[s->home]), "the queries")) {
            group_search(k->group, f);
        }
    }
}

static void finish_take(struct stream *s, const struct finish *f)
{
    struct keys *k = f->keys;
    for (size_t i = 0; i < f->n; i++) {
        struct keys_hit *hits = f->found + i * f->b;
        uint32_t count = f->found_counts[i];
        if (count > f->b) {
            k->cuda->host->error_set(&s->error, ERROR_FATAL, E_INTERNAL, "a search lost hits of query %zu", i);
            return;
        }
        if (f->b > SORTED_MAX) {
            qsort(hits, count, sizeof *hits, hits_compare);
        }
        if (k->group) {
            pthread_mutex_lock(&k->lock);
            count = group_name(k->group, f->view, hits, count);
            pthread_mutex_unlock(&k->lock);
        }
        memcpy(f->hits + i * f->b, hits, count * sizeof *hits);
        f->counts[i] = count;
    }
}

static bool overflowed(const struct finish *f)
{
    for (size_t i = 0; i < f->n; i++) {
        if (f->found_counts[i] == UINT32_MAX) {
            return true;
        }
    }
    return false;
}

bool streams_wait(struct stream *s)
{
    for (size_t i = 0; i < s->cuda->count; i++) {
        device_use(s->cuda, i);
        put(s, cudaStreamSynchronize(s->on[i]), "a stream's work");
    }
    return !failed(s);
}

/* Its result is there; false: it will never be. */
static bool finish_wait(struct stream *s, struct finish *f)
{
    return f->keys->group ? group_wait(f->keys->group, f, &s->error) == 0 : streams_wait(s);
}

int finishes_run(struct stream *s, struct error *e)
{
    for (struct finish *f = s->finishes; f && !failed(s); f = f->next) {
        if (finish_wait(s, f) && overflowed(f)) {
            finish_start(s, f, true);
            if (!failed(s)) {
                finish_wait(s, f);
            }
        }
        if (!failed(s)) {
            finish_take(s, f);
        }
    }
    if (failed(s)) {
        *e = s->error;
        s->error = {};
        return -1;
    }
    return 0;
}

void finishes_drop(struct stream *s)
{
    while (s->finishes) {
        struct finish *f = s->finishes;
        s->finishes = f->next;
        if (f->keys->group) {
            group_wait(f->keys->group, f, NULL);
            cudaEventDestroy(f->ready);
        }
        free(f);
    }
}

/* A pass over n queries from `first` on; NULL: the stream has failed. */
static struct finish *finish_open(struct stream *s, struct keys *k, const struct keys_view *view, const float *queries,
                                  size_t n, size_t b, enum key_kind kinds)
{
    struct finish *f = (struct finish *)calloc(1, sizeof *f);
    if (!f) {
        s->cuda->host->error_set(&s->error, ERROR_FATAL, E_INTERNAL, "out of memory");
        return NULL;
    }
    f->keys = k;
    f->view = view;
    f->queries = queries;
    f->kinds = kinds;
    f->n = n;
    f->b = b;
    f->state = FINISH_DONE;
    f->found = (struct keys_hit *)staging_take(s, n * b * sizeof *f->found, &s->error);
    f->found_counts = (uint32_t *)staging_take(s, n * sizeof *f->found_counts, &s->error);
    device_use(s->cuda, s->home);
    if (!f->found || !f->found_counts || (k->group && event_open(s->cuda, &f->ready, &s->error))) {
        free(f);
        return NULL;
    }
    return f;
}

void cuda_keys_scan(struct stream *s, struct keys *k, const struct keys_view *view, const struct tensor *queries,
                    size_t b, enum key_kind kinds, struct keys_hit *hits, uint32_t *counts)
{
    struct finish **end = &s->finishes;
    const float *rows = (const float *)at_home(s, queries->data);
    while (*end) {
        end = &(*end)->next;
    }
    const size_t most = queries_for(b);
    for (size_t first = 0; first < queries->rows && !failed(s); first += most) {
        const size_t n = queries->rows - first < most ? queries->rows - first : most;
        struct finish *f = finish_open(s, k, view, rows + first * k->dim, n, b, kinds);
        if (f) {
            f->hits = hits + first * b;
            f->counts = counts + first;
            *end = f;
            end = &f->next;
            finish_start(s, f, false);
        }
    }
    if (queries->rows == 0 && !failed(s)) { /* brings the keys up to date */
        pthread_mutex_lock(&k->lock);
        keys_take(k, s, view);
        pthread_mutex_unlock(&k->lock);
        if (k->group && !failed(s)) {
            group_ready(k->group, &s->error);
        }
    }
}
