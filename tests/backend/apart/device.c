/* The device of internal.h: its memory, its streams and what they copy. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/backend/apart/internal.h"

enum { TILE_TOKENS = 128, BATCH_TOKENS = 256, PAGE = 65536, ALIGNMENT = 64 };

#define RESERVED ((size_t)1 << 38) /* bytes of addresses: none is handed out twice */

void slip(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fputs("apart: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    abort();
}

void *host_memory(size_t count, size_t bytes)
{
    void *memory = calloc(count ? count : 1, bytes ? bytes : 1);
    if (!memory) {
        slip("out of memory");
    }
    return memory;
}

size_t rounded(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

/* ---- memory ---- */

bool reserve(struct device *d, size_t bytes)
{
    pthread_mutex_lock(&d->lock);
    const bool fits = bytes <= d->limit - d->taken;
    d->taken += fits ? bytes : 0;
    pthread_mutex_unlock(&d->lock);
    return fits;
}

void unreserve(struct device *d, size_t bytes)
{
    pthread_mutex_lock(&d->lock);
    d->taken -= bytes;
    pthread_mutex_unlock(&d->lock);
}

int memory_out(struct device *d, size_t bytes, struct error *e)
{
    return d->host->error_set(e, ERROR_RETRY, E_DEVICE_MEMORY, "the device has no room for %zu bytes more", bytes);
}

/* At the end of whole pages, and a page that nobody may touch after them: what is written past the end shows. */
int memory_take(struct device *d, size_t bytes, void **out, struct error *e)
{
    const size_t span = rounded(bytes, PAGE) + PAGE;
    if (!reserve(d, bytes)) {
        return memory_out(d, bytes, e);
    }
    pthread_mutex_lock(&d->lock);
    if (span > RESERVED - d->next || mprotect(d->inside + d->next, span - PAGE, PROT_READ | PROT_WRITE) != 0) {
        pthread_mutex_unlock(&d->lock);
        unreserve(d, bytes);
        return memory_out(d, bytes, e);
    }
    if (d->count == d->room) {
        d->room = 2 * d->room + 64;
        d->blocks = realloc(d->blocks, d->room * sizeof *d->blocks);
        if (!d->blocks) {
            slip("out of memory");
        }
    }
    struct block *b = &d->blocks[d->count++];
    b->pages = d->outside + d->next;
    b->span = span;
    b->outside = b->pages + (span - PAGE - rounded(bytes, ALIGNMENT));
    b->bytes = bytes;
    d->next += span;
    *out = b->outside;
    pthread_mutex_unlock(&d->lock);
    return 0;
}

static char *inside_of(const struct device *d, const char *outside)
{
    return d->inside + (outside - d->outside);
}

void memory_give(struct device *d, void *memory)
{
    pthread_mutex_lock(&d->lock);
    size_t i = 0;
    while (i < d->count && d->blocks[i].outside != memory) {
        i++;
    }
    if (i == d->count) {
        slip("%p was released before, or never handed out", memory);
    }
    const struct block b = d->blocks[i];
    d->blocks[i] = d->blocks[--d->count];
    d->taken -= b.bytes;
    /* fresh pages: what was there is gone */
    if (mmap(inside_of(d, b.pages), b.span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
             0) == MAP_FAILED) {
        slip("mmap failed");
    }
    pthread_mutex_unlock(&d->lock);
}

void *at(struct device *d, const void *memory, size_t bytes, const char *what)
{
    const char *start = memory;
    pthread_mutex_lock(&d->lock);
    for (size_t i = 0; i < d->count; i++) {
        const struct block *b = &d->blocks[i];
        if (start >= b->outside && start < b->outside + b->bytes) {
            if (bytes > (size_t)(b->outside + b->bytes - start)) {
                slip("%s: %zu bytes at %p, which has %zu", what, bytes, memory,
                     (size_t)(b->outside + b->bytes - start));
            }
            pthread_mutex_unlock(&d->lock);
            return inside_of(d, start);
        }
    }
    slip("%s: %p is not memory of the device, or was released", what, memory);
}

static int apart_alloc(struct backend *b, size_t bytes, void **out, struct error *e)
{
    return memory_take(device_of(b), bytes ? bytes : 1, out, e); /* fresh pages are zeroed */
}

static void apart_release(struct backend *b, void *memory)
{
    if (memory) {
        memory_give(device_of(b), memory);
    }
}

void opened(struct device *d, int more)
{
    pthread_mutex_lock(&d->lock);
    d->open = (size_t)((long)d->open + more);
    pthread_mutex_unlock(&d->lock);
}

/* ---- tensors ---- */

uint16_t bf16_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return isnan(x) ? 0x7FC0 : (uint16_t)((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

float float_of(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static float *lend(struct stream *s, const struct lent *l)
{
    if (s->lent_count == LENT_MAX) {
        slip("more than %d tensors in one call", LENT_MAX);
    }
    struct lent *lent = &s->lent[s->lent_count++];
    *lent = *l;
    lent->numbers = lent->inside;
    if (lent->dtype == DTYPE_BF16) {
        lent->numbers = host_memory(rounded(l->rows, ROW_MULTIPLE) * l->columns, sizeof *lent->numbers);
        for (size_t i = 0; i < l->rows * l->columns; i++) {
            lent->numbers[i] = float_of(((const uint16_t *)lent->inside)[i]);
        }
    }
    return lent->numbers;
}

/* Once the call has run. After the last row of what it wrote there is rubbish. */
static void take_back(struct stream *s)
{
    while (s->lent_count) {
        const struct lent *l = &s->lent[--s->lent_count];
        const size_t count = l->rows * l->columns, room = rounded(l->rows, ROW_MULTIPLE) * l->columns;
        for (size_t i = count; l->written && i < room; i++) {
            l->numbers[i] = NAN;
        }
        for (size_t i = 0; l->written && l->dtype == DTYPE_BF16 && i < room; i++) {
            ((uint16_t *)l->inside)[i] = bf16_of(l->numbers[i]);
        }
        if (l->numbers != l->inside) {
            free(l->numbers);
        }
    }
}

static void tensor_check(const struct tensor *t, enum dtype dtype, size_t rows, size_t columns, const char *what)
{
    if (t->dtype != dtype || t->columns != columns || t->rows < rows) {
        slip("%s: a tensor [%zu, %zu] of dtype %d for [%zu, %zu] of dtype %d", what, t->rows, t->columns, (int)t->dtype,
             rows, columns, (int)dtype);
    }
}

const float *read_of(struct stream *s, const struct tensor *t, enum dtype dtype, size_t rows, size_t columns,
                     const char *what)
{
    tensor_check(t, dtype, rows, columns, what);
    void *inside = at(s->device, t->data, rows * columns * (dtype == DTYPE_BF16 ? 2 : 4), what);
    return lend(s, &(struct lent){.inside = inside, .dtype = dtype, .rows = rows, .columns = columns});
}

float *write_of(struct stream *s, const struct tensor *t, enum dtype dtype, size_t rows, size_t columns,
                const char *what)
{
    if (!t->data) {
        return NULL;
    }
    tensor_check(t, dtype, rows, columns, what);
    if (t->rows != rows) {
        slip("%s: a tensor of %zu rows for %zu", what, t->rows, rows);
    }
    void *inside = at(s->device, t->data, rounded(rows, ROW_MULTIPLE) * columns * (dtype == DTYPE_BF16 ? 2 : 4), what);
    return lend(s, &(struct lent){.inside = inside, .dtype = dtype, .rows = rows, .columns = columns, .written = true});
}

/* ---- streams ---- */

static void *stream_thread(void *context)
{
    struct stream *s = context;
    pthread_mutex_lock(&s->lock);
    for (;;) {
        while (!s->closing && !(s->go && s->first)) {
            pthread_cond_wait(&s->changed, &s->lock);
        }
        if (s->closing) {
            break;
        }
        struct call *c = s->first;
        pthread_mutex_unlock(&s->lock);
        if (s->error.kind == ERROR_NONE) {
            c->run(s, c);
            take_back(s);
        }
        unreserve(s->device, c->staged);
        pthread_mutex_lock(&s->lock);
        s->first = c->next;
        if (!s->first) {
            s->end = &s->first;
            s->go = false;
        }
        free(c);
        pthread_cond_broadcast(&s->changed);
    }
    pthread_mutex_unlock(&s->lock);
    return NULL;
}

static int apart_stream_open(struct backend *b, struct stream **out, struct error *e)
{
    struct device *d = device_of(b);
    struct stream *s = host_memory(1, sizeof *s);
    s->device = d;
    s->end = &s->first;
    pthread_mutex_init(&s->lock, NULL);
    pthread_cond_init(&s->changed, NULL);
    if (pthread_create(&s->thread, NULL, stream_thread, s) != 0) {
        free(s);
        return d->host->error_set(e, ERROR_FATAL, E_INTERNAL, "a stream's thread cannot be started");
    }
    opened(d, 1);
    *out = s;
    return 0;
}

static void apart_stream_close(struct stream *s)
{
    struct device *d = s->device;
    pthread_mutex_lock(&s->lock);
    if (s->first) {
        slip("a stream was closed with calls that nobody waited for");
    }
    s->closing = true;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
    pthread_join(s->thread, NULL);
    if (s->arena) {
        memory_give(d, s->arena);
    }
    unreserve(d, s->tile_bytes);
    free((void *)(uintptr_t)s->tile.ids);
    free((void *)(uintptr_t)s->tile.starts);
    opened(d, -1);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

void queue(struct stream *s, const struct call *call)
{
    struct call *c = host_memory(1, sizeof *c);
    *c = *call;
    c->next = NULL;
    pthread_mutex_lock(&s->lock);
    *s->end = c;
    s->end = &c->next;
    pthread_mutex_unlock(&s->lock);
}

static void finish(struct stream *s)
{
    pthread_mutex_lock(&s->lock);
    s->go = s->first != NULL;
    pthread_cond_broadcast(&s->changed);
    while (s->first) {
        pthread_cond_wait(&s->changed, &s->lock);
    }
    pthread_mutex_unlock(&s->lock);
}

static int apart_wait(struct stream *s, struct error *e)
{
    finish(s);
    const struct error first = s->error;
    s->error = (struct error){.kind = ERROR_NONE};
    return first.kind == ERROR_NONE ? 0 : s->device->host->error_set(e, first.kind, first.code, "%s", first.text);
}

/* ---- copies ---- */

/* Another address each time: the last one is of no use from now on. */
static int apart_arena(struct stream *s, size_t bytes, void **out, struct error *e)
{
    finish(s);
    if (s->arena) {
        memory_give(s->device, s->arena);
        s->arena = NULL;
    }
    bytes = bytes ? bytes : 1;
    if (*s->device->full && access(s->device->full, F_OK) == 0) {
        return memory_out(s->device, bytes, e);
    }
    if (memory_take(s->device, bytes, &s->arena, e) != 0) {
        return -1;
    }
    memset(inside_of(s->device, s->arena), 0xFF, bytes); /* NaN in every dtype */
    *out = s->arena;
    return 0;
}

static void upload_run(struct stream *s, const struct call *c)
{
    if (c->bytes) {
        pinned_check(s->device, c->from, c->bytes, "upload");
        memcpy(at(s->device, c->to, c->bytes, "upload"), c->from, c->bytes);
    }
}

/* As on a device that stages a copy, its bytes are taken until it is done. */
static int apart_upload(struct stream *s, void *to, const void *from_host, size_t bytes, struct error *e)
{
    if (!reserve(s->device, bytes)) {
        return memory_out(s->device, bytes, e);
    }
    queue(s, &(struct call){.run = upload_run, .to = to, .from = from_host, .bytes = bytes, .staged = bytes});
    return 0;
}

static void download_run(struct stream *s, const struct call *c)
{
    if (c->bytes) {
        pinned_check(s->device, c->to, c->bytes, "download");
        memcpy(c->to, at(s->device, c->from, c->bytes, "download"), c->bytes);
    }
}

static void apart_download(struct stream *s, void *to_host, const void *from, size_t bytes)
{
    queue(s, &(struct call){.run = download_run, .to = to_host, .from = from, .bytes = bytes});
}

static void tile_run(struct stream *s, const struct call *c)
{
    const struct tile *t = &c->tile;
    pinned_check(s->device, t->starts, (t->sequences + 1) * sizeof *t->starts, "tile's starts");
    pinned_check(s->device, t->ids, t->ids ? t->tokens * sizeof *t->ids : 0, "tile's ids");
    if (t->sequences == 0 || t->starts[0] != 0 || t->starts[t->sequences] != t->tokens) {
        slip("tile: %zu sequences, %zu tokens", t->sequences, t->tokens);
    }
    for (size_t i = 0; i < t->sequences; i++) {
        if (t->starts[i] >= t->starts[i + 1]) {
            slip("tile: sequence %zu has no token", i);
        }
    }
    int32_t *ids = t->ids ? host_memory(t->tokens, sizeof *ids) : NULL;
    uint32_t *starts = host_memory(t->sequences + 1, sizeof *starts);
    if (ids) {
        memcpy(ids, t->ids, t->tokens * sizeof *ids);
    }
    memcpy(starts, t->starts, (t->sequences + 1) * sizeof *starts);
    free((void *)(uintptr_t)s->tile.ids);
    free((void *)(uintptr_t)s->tile.starts);
    s->tile = (struct tile){.ids = ids, .starts = starts, .tokens = t->tokens, .sequences = t->sequences};
}

static int apart_tile(struct stream *s, const struct tile *tile, struct error *e)
{
    const size_t bytes = tile->tokens * sizeof *tile->ids + (tile->sequences + 1) * sizeof *tile->starts;
    unreserve(s->device, s->tile_bytes);
    s->tile_bytes = 0;
    if (!reserve(s->device, bytes)) {
        return memory_out(s->device, bytes, e);
    }
    s->tile_bytes = bytes;
    queue(s, &(struct call){.run = tile_run, .tile = *tile});
    return 0;
}

/* ---- opening ---- */

static void apart_close(struct backend *b)
{
    struct device *d = device_of(b);
    const size_t pinned = pinned_close(d);
    if (d->open || d->count || d->taken || pinned) {
        slip("closed with %zu streams, weights or keys open and %zu allocations, %zu bytes; %zu of the host's", d->open,
             d->count, d->taken, pinned);
    }
    munmap(d->outside, RESERVED);
    munmap(d->inside, RESERVED);
    pthread_mutex_destroy(&d->lock);
    free(d->blocks);
    free(d);
}

static const struct backend_operations operations = {
    .close = apart_close,
    .stream_open = apart_stream_open,
    .stream_close = apart_stream_close,
    .wait = apart_wait,
    .alloc = apart_alloc,
    .release = apart_release,
    .arena = apart_arena,
    .upload = apart_upload,
    .download = apart_download,
    .weight_open = apart_weight_open,
    .weight_pack = apart_weight_pack,
    .weight_close = apart_weight_close,
    .tile = apart_tile,
    .embed = apart_embed,
    .linear = apart_linear,
    .layer_norm = apart_layer_norm,
    .attention = apart_attention,
    .pool = apart_pool,
    .normalise = apart_normalise,
    .keys_open = apart_keys_open,
    .keys_close = apart_keys_close,
    .keys_scan = apart_keys_scan,
};

/* A number of the environment. */
static size_t setting(const char *name, size_t otherwise)
{
    const char *value = getenv(name);
    return value ? strtoull(value, NULL, 10) : otherwise;
}

static int devices_check(const struct backend_options *options, const struct backend_host *host, struct error *e)
{
    if (getenv("APART_ABSENT")) {
        return host->error_set(e, ERROR_FATAL, E_NOT_FOUND, "there is no device of this kind");
    }
    for (size_t i = 0; i < options->devices_count; i++) {
        if (options->devices[i] > 1) {
            return host->error_set(e, ERROR_FATAL, E_USAGE, "there is no device %d: there are 0 and 1",
                                   options->devices[i]);
        }
    }
    return 0;
}

static int apart_open(struct backend **out, const struct backend_options *options, const struct backend_host *host,
                      struct error *e)
{
    *out = NULL;
    if (devices_check(options, host, e) != 0) {
        return -1;
    }
    struct device *d = host_memory(1, sizeof *d);
    snprintf(d->said, sizeof d->said, "%zu x loops", options->devices_count ? options->devices_count : 1);
    d->operations = operations;
    if (getenv("APART_HOST")) {
        d->operations.host_alloc = apart_host_alloc;
        d->operations.host_release = apart_host_release;
    }
    d->backend.ops = &d->operations;
    d->backend.facts = (struct backend_facts){.name = "apart",
                                              .library = "plain loops",
                                              .device = d->said,
                                              .compute = options->compute == COMPUTE_BF16 ? DTYPE_BF16 : DTYPE_F32,
                                              .row_multiple = ROW_MULTIPLE,
                                              .streams = 1,
                                              .host_threads = options->threads,
                                              .tile_tokens = TILE_TOKENS,
                                              .batch_tokens = BATCH_TOKENS};
    d->host = host;
    d->limit = setting("APART_MEMORY", RESERVED);
    snprintf(d->full, sizeof d->full, "%s", getenv("APART_FULL") ? getenv("APART_FULL") : "");
    snprintf(d->once, sizeof d->once, "%s", getenv("APART_ONCE") ? getenv("APART_ONCE") : "");
    d->scan_max = setting("APART_SCAN", RESERVED);
    pthread_mutex_init(&d->lock, NULL);
    char **sides[] = {&d->outside, &d->inside};
    for (size_t i = 0; i < 2; i++) {
        *sides[i] = mmap(NULL, RESERVED, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (*sides[i] == MAP_FAILED) {
            return host->error_set(e, ERROR_FATAL, E_INTERNAL, "no %zu bytes of addresses", RESERVED);
        }
    }
    host->log_info("backend apart: memory of its own, calls run when they are waited for");
    *out = &d->backend;
    return 0;
}

/* The one symbol: the rest is compiled with -fvisibility=hidden. */
__attribute__((visibility("default"))) const struct backend_plugin *engram_backend(void);

const struct backend_plugin *engram_backend(void)
{
    static const struct backend_plugin plugin = {BACKEND_ABI, apart_open};
    return &plugin;
}
