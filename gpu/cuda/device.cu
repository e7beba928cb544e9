/* Devices' memory, streams and copies. Host code only. Which device a call means is a thread's own state in CUDA, so
 * whatever allocates or launches says so first (device_use). */
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda/internal.h"

enum { STAGING_BYTES = 1 << 20 }; /* of the first chunk; each has room for at least twice what the one before has */

/* ---- errors ---- */

int cuda_check(struct cuda *c, cudaError_t status, const char *what, struct error *e)
{
    if (status == cudaSuccess) {
        return 0;
    }
    cudaGetLastError(); /* forgets it, unless the device itself is lost */
    if (status == cudaErrorMemoryAllocation) {
        return c->host->error_set(e, ERROR_RETRY, E_DEVICE_MEMORY, "the GPU, or its machine, has no memory left for %s",
                                  what);
    }
    return c->host->error_set(e, ERROR_FATAL, E_INTERNAL, "CUDA failed at %s: %s (%s)", what,
                              cudaGetErrorString(status), cudaGetErrorName(status));
}

bool put(struct stream *s, cudaError_t status, const char *what)
{
    return cuda_check(s->cuda, status, what, failed(s) ? NULL : &s->error) == 0;
}

bool launched(struct stream *s, const char *what)
{
    return put(s, cudaGetLastError(), what);
}

void device_use(struct cuda *c, size_t device)
{
    cudaSetDevice(c->devices[device].number);
}

bool home_use(struct stream *s)
{
    if (failed(s)) {
        return false;
    }
    device_use(s->cuda, s->home);
    s->busy[s->home] = true;
    return true;
}

/* ---- memory ---- */

int grown_take(struct stream *s, size_t device, struct grown *g, size_t bytes, struct error *e)
{
    const size_t ample = rounded(bytes + bytes / 4, (size_t)2 << 20); /* growing waits for the whole device */
    if (bytes <= g->bytes) {
        return 0;
    }
    device_use(s->cuda, device);
    if (cuda_check(s->cuda, cudaStreamSynchronize(s->on[device]), "a stream's work", e)) {
        return -1;
    }
    cudaFree(g->memory);
    *g = {NULL, 0};
    if (cudaMalloc(&g->memory, ample) == cudaSuccess) {
        g->bytes = ample;
        return 0;
    }
    cudaGetLastError();
    if (cuda_check(s->cuda, cudaMalloc(&g->memory, bytes), "a batch's working memory", e)) {
        g->memory = NULL;
        return -1;
    }
    g->bytes = bytes;
    return 0;
}

void *staging_take(struct stream *s, size_t bytes, struct error *e)
{
    struct staging *t = &s->staging;
    bytes = rounded(bytes ? bytes : 1, 64);
    while (t->at < t->count && bytes > t->chunks[t->at].bytes - t->used) {
        t->at++;
        t->used = 0;
    }
    if (t->at == t->count) {
        size_t room = t->count ? 2 * t->chunks[t->count - 1].bytes : (size_t)STAGING_BYTES;
        void *memory;
        room = room < bytes ? bytes : room;
        device_use(s->cuda, s->home); /* a thread that has none would take the first GPU, whoever uses that */
        const cudaError_t status =
            t->count == STAGING_MAX ? cudaErrorMemoryAllocation : cudaHostAlloc(&memory, room, cudaHostAllocPortable);
        if (cuda_check(s->cuda, status, "copies to and from it", e)) {
            return NULL;
        }
        t->chunks[t->count].memory = (unsigned char *)memory;
        t->chunks[t->count++].bytes = room;
        t->used = 0;
    }
    t->used += bytes;
    return t->chunks[t->at].memory + t->used - bytes;
}

/* The place of the last region that begins at `address` or before; regions_count: none. They fall by address. */
static size_t region_find(const struct cuda *c, const char *address)
{
    size_t low = 0, high = c->regions_count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        if (c->regions[middle].at[0] <= address) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

/* true: `data` is in a region, which *out becomes, *offset bytes after its start. */
static bool region_of(struct cuda *c, const void *data, struct region *out, size_t *offset)
{
    const char *address = (const char *)data;
    pthread_mutex_lock(&c->lock);
    const size_t i = region_find(c, address);
    const bool found = i < c->regions_count && address < c->regions[i].at[0] + c->regions[i].bytes;
    if (found) {
        *out = c->regions[i];
        *offset = (size_t)(address - out->at[0]);
    }
    pthread_mutex_unlock(&c->lock);
    return found;
}

void *at_device(struct stream *s, size_t device, const void *data)
{
    struct region region;
    size_t offset;
    if (s->cuda->count == 1 || device == 0 || !region_of(s->cuda, data, &region, &offset)) {
        return (void *)(uintptr_t)data;
    }
    return region.at[device] + offset;
}

static int region_add(struct cuda *c, const struct region *region)
{
    if (c->regions_count == c->regions_room) {
        const size_t room = 2 * c->regions_room + 64;
        struct region *more = (struct region *)realloc(c->regions, room * sizeof *more);
        if (!more) {
            return -1;
        }
        c->regions = more;
        c->regions_room = room;
    }
    const size_t i = region_find(c, region->at[0]);
    memmove(c->regions + i + 1, c->regions + i, (c->regions_count - i) * sizeof *c->regions);
    c->regions[i] = *region;
    c->regions_count++;
    return 0;
}

static void region_free(struct cuda *c, const struct region *region)
{
    for (size_t i = 0; i < c->count; i++) {
        device_use(c, i);
        cudaFree(region->at[i]);
    }
}

static int zeroed(struct cuda *c, size_t device, size_t bytes, char **out, struct error *e)
{
    void *memory = NULL;
    device_use(c, device);
    if (cuda_check(c, cudaMalloc(&memory, bytes), "the model's weights", e)) {
        return -1;
    }
    *out = (char *)memory;
    cudaError_t status = cudaMemsetAsync(memory, 0, bytes, c->devices[device].own);
    status = status == cudaSuccess ? cudaStreamSynchronize(c->devices[device].own) : status;
    return cuda_check(c, status, "zeroing memory", e);
}

int cuda_alloc(struct backend *b, size_t bytes, void **out, struct error *e)
{
    struct cuda *c = cuda_of(b);
    struct region region = {};
    region.bytes = bytes ? bytes : 1;
    for (size_t i = 0; i < c->count; i++) {
        if (zeroed(c, i, region.bytes, &region.at[i], e)) {
            region_free(c, &region);
            return -1;
        }
    }
    if (c->count > 1) {
        pthread_mutex_lock(&c->lock);
        const int full = region_add(c, &region);
        pthread_mutex_unlock(&c->lock);
        if (full) {
            region_free(c, &region);
            return c->host->error_set(e, ERROR_FATAL, E_INTERNAL, "out of memory");
        }
    }
    *out = region.at[0];
    return 0;
}

void cuda_release(struct backend *b, void *memory)
{
    struct cuda *c = cuda_of(b);
    struct region region = {};
    region.at[0] = (char *)memory;
    if (!memory) {
        return;
    }
    if (c->count > 1) {
        pthread_mutex_lock(&c->lock);
        const size_t i = region_find(c, region.at[0]);
        region = c->regions[i];
        memmove(c->regions + i, c->regions + i + 1, (--c->regions_count - i) * sizeof *c->regions);
        pthread_mutex_unlock(&c->lock);
    }
    region_free(c, &region);
}

int cuda_host_alloc(struct backend *b, size_t bytes, void **out, struct error *e)
{
    struct cuda *c = cuda_of(b);
    device_use(c, 0);
    return cuda_check(c, cudaHostAlloc(out, bytes ? bytes : 1, cudaHostAllocPortable), "copies to and from it", e);
}

void cuda_host_release(struct backend *b, void *memory)
{
    (void)b;
    if (memory) {
        cudaFreeHost(memory);
    }
}

int cuda_arena(struct stream *s, size_t bytes, void **out, struct error *e)
{
    struct error first = {};
    if (s->finishes && cuda_wait(s, &first)) { /* a search may have to be done again, from the same queries */
        s->error = first;
    }
    if (grown_take(s, s->home, &s->arena, bytes ? bytes : 1, e)) {
        return -1;
    }
    *out = s->arena.memory;
    return 0;
}

/* ---- streams ---- */

int cuda_stream_open(struct backend *b, struct stream **out, struct error *e)
{
    struct cuda *c = cuda_of(b);
    struct stream *s = (struct stream *)calloc(1, sizeof *s);
    if (!s) {
        return c->host->error_set(e, ERROR_FATAL, E_INTERNAL, "out of memory");
    }
    s->cuda = c;
    pthread_mutex_lock(&c->lock);
    s->number = ++c->streams;
    for (size_t i = 1; i < c->count; i++) { /* where the fewest are at home */
        s->home = c->at_home[i] < c->at_home[s->home] ? i : s->home;
    }
    c->at_home[s->home]++;
    pthread_mutex_unlock(&c->lock);
    for (size_t i = 0; i < c->count; i++) {
        device_use(c, i);
        if (cuda_check(c, cudaStreamCreateWithFlags(&s->on[i], cudaStreamNonBlocking), "opening a stream", e)) {
            s->on[i] = NULL;
            cuda_stream_close(s);
            return -1;
        }
    }
    *out = s;
    return 0;
}

void cuda_stream_close(struct stream *s)
{
    struct cuda *c = s->cuda;
    plans_close(s->plans);
    finishes_drop(s);
    for (size_t i = 0; i < c->count; i++) {
        device_use(c, i);
        if (s->on[i]) {
            cudaStreamSynchronize(s->on[i]);
            cudaStreamDestroy(s->on[i]);
        }
        cudaFree(s->scan_memory[i].memory);
    }
    device_use(c, s->home);
    cudaFree(s->arena.memory);
    cudaFree(s->tile_memory.memory);
    cudaFree(s->workspace.memory);
    for (size_t i = 0; i < s->staging.count; i++) {
        cudaFreeHost(s->staging.chunks[i].memory);
    }
    pthread_mutex_lock(&c->lock);
    c->at_home[s->home]--;
    pthread_mutex_unlock(&c->lock);
    free(s);
}

int cuda_wait(struct stream *s, struct error *e)
{
    struct cuda *c = s->cuda;
    for (size_t i = 0; i < c->count; i++) {
        if (s->busy[i]) {
            device_use(c, i);
            put(s, cudaStreamSynchronize(s->on[i]), "a stream's work");
            s->busy[i] = false;
        }
    }
    struct error first = s->error;
    s->error = {};
    if (first.kind == ERROR_NONE) {
        finishes_run(s, &first);
    }
    finishes_drop(s);
    s->staging.at = s->staging.used = 0;
    return first.kind == ERROR_NONE ? 0 : c->host->error_set(e, first.kind, first.code, "%s", first.text);
}

/* ---- copies ---- */

int cuda_upload(struct stream *s, void *to, const void *from_host, size_t bytes, struct error *e)
{
    struct cuda *c = s->cuda;
    struct region region;
    size_t offset = 0;
    if (failed(s) || bytes == 0) {
        return 0;
    }
    const bool all = c->count > 1 && region_of(c, to, &region, &offset);
    for (size_t i = 0; i < c->count; i++) {
        if (all || i == s->home) {
            device_use(c, i);
            void *here = all ? region.at[i] + offset : (char *)to;
            s->busy[i] = true;
            if (cuda_check(c, cudaMemcpyAsync(here, from_host, bytes, cudaMemcpyHostToDevice, s->on[i]),
                           "a copy to the GPU", e)) {
                return -1;
            }
        }
    }
    return 0;
}

void cuda_download(struct stream *s, void *to_host, const void *from, size_t bytes)
{
    if (bytes == 0 || !home_use(s)) {
        return;
    }
    put(s, cudaMemcpyAsync(to_host, at_home(s, from), bytes, cudaMemcpyDeviceToHost, s->on[s->home]),
        "a copy from the GPU");
}

/* ---- the tile ---- */

enum { BLOCK_WARPS = 4, WARP_QUERIES = 16 };

/* A short sequence's head needs fewer than all warps of a block. */
static uint32_t warps_of(uint32_t length)
{
    return length <= WARP_QUERIES ? 1 : length <= 2 * WARP_QUERIES ? 2 : BLOCK_WARPS;
}

static size_t work_count(const struct tile *tile)
{
    size_t count = 0;
    for (size_t i = 0; i < tile->sequences; i++) {
        const uint32_t length = tile->starts[i + 1] - tile->starts[i];
        count += blocks_for(length, WARP_QUERIES * warps_of(length));
    }
    return count;
}

static void work_fill(struct attention_work *out, int32_t *positions, const struct tile *tile)
{
    for (size_t i = 0; i < tile->sequences; i++) {
        const uint32_t first = tile->starts[i], length = tile->starts[i + 1] - first, warps = warps_of(length);
        for (uint32_t t = 0; t < length; t++) {
            positions[first + t] = (int32_t)t;
        }
        for (uint32_t query = 0; query < length; query += WARP_QUERIES * warps) {
            *out++ = {first, length, query, warps};
        }
    }
}

/* One copy: ids, positions, starts and the attention's work side by side. */
int cuda_tile(struct stream *s, const struct tile *tile, struct error *e)
{
    const size_t n = tile->tokens, count = work_count(tile);
    const size_t positions = rounded(n * sizeof *tile->ids, 64), starts = 2 * positions;
    const size_t work = starts + rounded((tile->sequences + 1) * sizeof *tile->starts, 64);
    const size_t bytes = work + count * sizeof(struct attention_work);
    if (failed(s)) {
        return 0;
    }
    unsigned char *here = (unsigned char *)staging_take(s, bytes, e);
    if (!here || grown_take(s, s->home, &s->tile_memory, bytes, e)) {
        return -1;
    }
    memset(here, 0, bytes);
    if (tile->ids) {
        memcpy(here, tile->ids, n * sizeof *tile->ids);
    }
    memcpy(here + starts, tile->starts, (tile->sequences + 1) * sizeof *tile->starts);
    work_fill((struct attention_work *)(here + work), (int32_t *)(here + positions), tile);
    unsigned char *there = (unsigned char *)s->tile_memory.memory;
    s->tile = {(const int32_t *)there,
               (const int32_t *)(there + positions),
               (const uint32_t *)(there + starts),
               (const struct attention_work *)(there + work),
               n,
               tile->sequences,
               count};
    return cuda_upload(s, there, here, bytes, e);
}
