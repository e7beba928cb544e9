/* The plug-in: which GPUs it takes, and the table of operations. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda/internal.h"

/* A tile's largest tensor fits the L2 of an A100 or later; two streams a device, so that one's copies and the host's
 * part run while the other computes. A batch is one tile a stream and one to come. Chosen on paper, see docs/GPU.md. */
enum { TILE_TOKENS = 8192, DEVICE_STREAMS = 2, BATCH_TILES = 2, CAPABILITY_LEAST = 8, DRIVER_LEAST = 13000 };

static void cuda_close(struct backend *b)
{
    struct cuda *c = cuda_of(b);
    for (size_t i = 0; i < c->count; i++) {
        struct device *d = &c->devices[i];
        device_use(c, i);
        if (d->comm) {
            ncclCommDestroy(d->comm);
        }
        if (d->lt) {
            cublasLtDestroy(d->lt);
        }
        if (d->own) {
            cudaStreamDestroy(d->own);
        }
    }
    pthread_mutex_destroy(&c->lock);
    pthread_mutex_destroy(&c->nccl);
    free(c->regions);
    free(c);
}

/* ---- which devices ---- */

static int driver_check(const struct backend_host *host, int *driver, int *count, struct error *e)
{
    const cudaError_t version = cudaDriverGetVersion(driver), counted = cudaGetDeviceCount(count);
    cudaGetLastError();
    if (version != cudaSuccess || *driver == 0) {
        return host->error_set(e, ERROR_FATAL, E_NOT_FOUND, "there is no NVIDIA driver on this machine");
    }
    if (counted == cudaErrorInsufficientDriver || *driver < DRIVER_LEAST) {
        return host->error_set(e, ERROR_FATAL, E_NOT_FOUND,
                               "the NVIDIA driver knows CUDA %d.%d, this plug-in needs %d.%d: install a later driver",
                               *driver / 1000, *driver % 1000 / 10, DRIVER_LEAST / 1000, DRIVER_LEAST % 1000 / 10);
    }
    if (counted == cudaErrorNoDevice || (counted == cudaSuccess && *count == 0)) {
        return host->error_set(e, ERROR_FATAL, E_NOT_FOUND,
                               "the NVIDIA driver shows no GPU to this process: see CUDA_VISIBLE_DEVICES, and whether "
                               "it may use /dev/nvidia*");
    }
    if (counted != cudaSuccess) {
        return host->error_set(e, ERROR_FATAL, E_NOT_FOUND, "the NVIDIA driver does not answer: %s",
                               cudaGetErrorString(counted));
    }
    return 0;
}

static int device_open(struct cuda *c, struct device *d, int number, char *name, size_t name_bytes, struct error *e)
{
    struct cudaDeviceProp p;
    d->number = number;
    if (cuda_check(c, cudaGetDeviceProperties(&p, number), "asking for a GPU", e)) {
        return -1;
    }
    if (p.major < CAPABILITY_LEAST) {
        return c->host->error_set(e, ERROR_FATAL, E_NOT_FOUND,
                                  "GPU %d (%s) has compute capability %d.%d, Engram needs %d.0 or later: A100, RTX 30 "
                                  "or newer",
                                  number, p.name, p.major, p.minor, CAPABILITY_LEAST);
    }
    snprintf(name, name_bytes, "%s", p.name);
    d->processors = p.multiProcessorCount;
    d->shared_bytes = p.sharedMemPerBlockOptin;
    cudaSetDevice(number);
    cudaSetDeviceFlags(cudaDeviceScheduleBlockingSync); /* a thread that waits leaves its CPU to others */
    if (cuda_check(c, cudaStreamCreateWithFlags(&d->own, cudaStreamNonBlocking), "opening a GPU", e)) {
        return -1;
    }
    if (scan_prepare(c, (size_t)(d - c->devices), e)) {
        return -1;
    }
    const cublasStatus_t status = cublasLtCreate(&d->lt);
    if (status != CUBLAS_STATUS_SUCCESS) {
        return c->host->error_set(e, ERROR_FATAL, E_INTERNAL, "cuBLASLt cannot be opened on GPU %d: %s", number,
                                  cublasLtGetStatusString(status));
    }
    return 0;
}

static int numbers_check(const struct backend_options *o, const struct backend_host *host, int count, struct error *e)
{
    if (o->devices_count > DEVICES_MAX) {
        return host->error_set(e, ERROR_FATAL, E_USAGE, "devices names %zu GPUs: at most %d are used", o->devices_count,
                               DEVICES_MAX);
    }
    for (size_t i = 0; i < o->devices_count; i++) {
        if (o->devices[i] < 0 || o->devices[i] >= count) {
            return host->error_set(e, ERROR_FATAL, E_USAGE,
                                   "devices (or LOCAL_RANK) names GPU %d: this process sees %d, numbered from 0",
                                   o->devices[i], count);
        }
    }
    return 0;
}

/* A variable of those that say which process of a group this is; `absent` where it is not set. */
static int number_read(const struct backend_host *host, const char *name, size_t absent, size_t end, size_t *out,
                       struct error *e)
{
    const char *said = getenv(name);
    char *rest = NULL;
    *out = said && *said ? (size_t)strtoul(said, &rest, 10) : absent;
    if (said && *said && (*rest || *out >= end || said[0] == '-')) {
        return host->error_set(e, ERROR_FATAL, E_USAGE, "the environment variable %s is '%s': it must be from 0 to %zu",
                               name, said, end - 1);
    }
    return 0;
}

/* As NCCL's users know it from torchrun and its like: each process has one GPU. */
static int rank_read(struct cuda *c, struct backend_options *o, int *number, struct error *e)
{
    size_t local;
    if (number_read(c->host, "WORLD_SIZE", 1, RANKS_MAX + 1, &c->world, e) ||
        number_read(c->host, "RANK", 0, c->world ? c->world : 1, &c->rank, e) ||
        number_read(c->host, "LOCAL_RANK", 0, 1024, &local, e)) {
        return -1;
    }
    c->world = c->world ? c->world : 1;
    if (c->world > 1 && !getenv("RANK")) {
        return c->host->error_set(
            e, ERROR_FATAL, E_USAGE,
            "the environment variable WORLD_SIZE is %zu, and RANK is not set: it must be from 0 to %zu", c->world,
            c->world - 1);
    }
    if (c->world > 1 && o->devices_count > 1) {
        return c->host->error_set(
            e, ERROR_FATAL, E_USAGE,
            "devices names %zu GPUs and WORLD_SIZE is %zu: where several processes share the keys, "
            "each has one GPU",
            o->devices_count, c->world);
    }
    if (c->world > 1 && o->devices_count == 0 && getenv("LOCAL_RANK")) {
        *number = (int)local;
        o->devices = number;
        o->devices_count = 1;
    }
    return 0;
}

static int devices_open(struct cuda *c, const struct backend_options *o, int driver, struct error *e)
{
    int numbers[DEVICES_MAX] = {};
    ncclComm_t comms[DEVICES_MAX];
    char name[256] = "";
    const size_t count = o->devices_count ? o->devices_count : 1;
    for (size_t i = 0; i < count; i++) {
        numbers[i] = o->devices_count ? o->devices[i] : 0;
        c->count = i + 1;
        if (device_open(c, &c->devices[i], numbers[i], name, sizeof name, e)) {
            return -1;
        }
    }
    if (count > 1) {
        const ncclResult_t status = ncclCommInitAll(comms, (int)count, numbers);
        if (status != ncclSuccess) {
            return c->host->error_set(e, ERROR_FATAL, E_INTERNAL, "NCCL cannot connect the GPUs: %s",
                                      ncclGetErrorString(status));
        }
        for (size_t i = 0; i < count; i++) {
            c->devices[i].comm = comms[i];
        }
        snprintf(c->device, sizeof c->device, "%zu x %s, driver %d.%d", count, name, driver / 1000, driver % 1000 / 10);
    } else {
        snprintf(c->device, sizeof c->device, "%s, driver %d.%d", name, driver / 1000, driver % 1000 / 10);
    }
    return 0;
}

/* ---- opening ---- */

static void library_name(char *out, size_t bytes)
{
    int runtime = 0, nccl = 0;
    const size_t cublas = cublasLtGetVersion();
    cudaRuntimeGetVersion(&runtime);
    ncclGetVersion(&nccl);
    snprintf(out, bytes, "CUDA %d.%d, cuBLAS %zu.%zu.%zu, NCCL %d.%d.%d", runtime / 1000, runtime % 1000 / 10,
             cublas / 10000, cublas / 100 % 100, cublas % 100, nccl / 10000, nccl / 100 % 100, nccl % 100);
}

static const struct backend_operations operations = {
    .close = cuda_close,
    .stream_open = cuda_stream_open,
    .stream_close = cuda_stream_close,
    .wait = cuda_wait,
    .alloc = cuda_alloc,
    .release = cuda_release,
    .arena = cuda_arena,
    .upload = cuda_upload,
    .download = cuda_download,
    .host_alloc = cuda_host_alloc,
    .host_release = cuda_host_release,
    .weight_open = cuda_weight_open,
    .weight_pack = cuda_weight_pack,
    .weight_close = cuda_weight_close,
    .tile = cuda_tile,
    .embed = cuda_embed,
    .linear = cuda_linear,
    .layer_norm = cuda_layer_norm,
    .attention = cuda_attention,
    .pool = cuda_pool,
    .normalise = cuda_normalise,
    .keys_open = cuda_keys_open,
    .keys_close = cuda_keys_close,
    .keys_scan = cuda_keys_scan,
    .assist = NULL,
};

static int plugin_open(struct backend **out, const struct backend_options *options, const struct backend_host *host,
                       struct error *e)
{
    struct backend_options settled = *options;
    int driver = 0, count = 0, number;
    *out = NULL;
    if (driver_check(host, &driver, &count, e)) {
        return -1;
    }
    struct cuda *c = (struct cuda *)calloc(1, sizeof *c);
    if (!c) {
        return host->error_set(e, ERROR_FATAL, E_INTERNAL, "out of memory");
    }
    c->host = host;
    c->plain = getenv("GPU_TEST_PLAIN") != NULL;
    c->backend.ops = &operations;
    pthread_mutex_init(&c->lock, NULL);
    pthread_mutex_init(&c->nccl, NULL);
    library_name(c->library, sizeof c->library);
    if (rank_read(c, &settled, &number, e) || numbers_check(&settled, host, count, e) ||
        devices_open(c, &settled, driver, e)) {
        cuda_close(&c->backend);
        return -1;
    }
    struct backend_facts *f = &c->backend.facts;
    f->name = "cuda";
    f->library = c->library;
    f->device = c->device;
    f->compute = options->compute == COMPUTE_F32 ? DTYPE_F32 : DTYPE_BF16;
    f->row_multiple = ROW_MULTIPLE;
    f->streams = DEVICE_STREAMS * c->count;
    f->host_threads = options->threads;
    const char *tile = getenv("GPU_TEST_TILE");
    f->tile_tokens = tile ? (size_t)strtoul(tile, NULL, 10) : (size_t)TILE_TOKENS;
    f->tile_tokens = f->tile_tokens ? f->tile_tokens : 1;
    f->batch_tokens = f->streams * BATCH_TILES * f->tile_tokens;
    *out = &c->backend;
    return 0;
}

extern "C" __attribute__((visibility("default"))) const struct backend_plugin *engram_backend(void);

extern "C" const struct backend_plugin *engram_backend(void)
{
    static const struct backend_plugin plugin = {BACKEND_ABI, plugin_open};
    return &plugin;
}
