/* What the files of gpu/cuda/ share: the devices, their streams, and the entries of the table.
 *
 * Several devices are one backend. Each stream has a home, the device on which its tiles are encoded, and a CUDA stream
 * on every device, since keys are spread over all of them. What `alloc` hands out exists on every device: the address
 * is the first device's, an upload goes to all of them, and a stream reads its home's (see regions). What an operation
 * writes there it writes at home only.
 *
 * For tests, environment variables: GPU_TEST_PLAIN (plain loops instead of tensor cores), GPU_TEST_KEY_BYTES (of
 * each device's memory that keys may take), GPU_TEST_TILE (tokens of a tile). */
#ifndef ENGRAM_GPU_CUDA_INTERNAL_H
#define ENGRAM_GPU_CUDA_INTERNAL_H

#include <cublasLt.h>
#include <nccl.h>
#include <pthread.h>

#include "gpu/backend.h"
#include "gpu/cuda/launch.h"

enum { DEVICES_MAX = 16, RANKS_MAX = 32, ROW_MULTIPLE = 64, STAGING_MAX = 64 };

struct device {
    int number;          /* as CUDA counts */
    int processors;      /* multiprocessors */
    size_t shared_bytes; /* that a block may ask for */
    cudaStream_t own;    /* zeroes what alloc hands out */
    cublasLtHandle_t lt;
    ncclComm_t comm; /* NULL: there is one device only */
};

/* What alloc handed out, where there are several devices. */
struct region {
    char *at[DEVICES_MAX];
    size_t bytes;
};

struct cuda {
    struct backend backend; /* first: a struct backend * is a struct cuda * */
    const struct backend_host *host;
    struct device devices[DEVICES_MAX];
    size_t count;
    bool plain;         /* GPU_TEST_PLAIN */
    size_t rank, world; /* processes that share the keys: see group.cu; world 1: this one alone */
    char library[96], device[320];

    pthread_mutex_t lock; /* covers all below */
    uint64_t streams;     /* ever opened */
    size_t at_home[DEVICES_MAX];
    struct region *regions; /* by falling address */
    size_t regions_count, regions_room;
    pthread_mutex_t nccl; /* collectives are put on all devices in one order */
};

/* Pinned host memory, handed out piece by piece until the stream is waited for. */
struct staging {
    struct {
        unsigned char *memory;
        size_t bytes;
    } chunks[STAGING_MAX];
    size_t count, at, used; /* chunks [0, at) are full; of chunk `at` `used` bytes are taken */
};

/* Device memory that grows. */
struct grown {
    void *memory;
    size_t bytes;
};

/* Queries [query, query + 16 warps) of one sequence: one block of threads for each head, or for several heads where the
 * sequence is short. */
struct attention_work {
    uint32_t first, length; /* of the sequence, in tokens */
    uint32_t query;
    uint32_t warps; /* that share a head: 1, 2 or 4 of a block's 4 */
};

struct tile_on_device {
    const int32_t *ids, *positions;    /* [tokens]: of the word, and in its sequence */
    const uint32_t *starts;            /* [sequences + 1] */
    const struct attention_work *work; /* [work_count] */
    size_t tokens, sequences, work_count;
};

struct plans;  /* linear.cu: how cuBLASLt runs each shape */
struct finish; /* scan.cu: what is left to do for a scan once its stream is done */

struct stream {
    struct cuda *cuda;
    size_t home;
    uint64_t number; /* no other stream has had it */
    struct error error;
    cudaStream_t on[DEVICES_MAX];
    bool busy[DEVICES_MAX]; /* something was put on it since the last wait */
    struct staging staging;
    struct grown arena, tile_memory, workspace, scan_memory[DEVICES_MAX];
    struct tile_on_device tile;
    struct plans *plans;
    struct finish *finishes;
};

static inline struct cuda *cuda_of(struct backend *b)
{
    return (struct cuda *)b;
}

static inline bool failed(const struct stream *s)
{
    return s->error.kind != ERROR_NONE;
}

static inline size_t rounded(size_t n, size_t multiple)
{
    return (n + multiple - 1) / multiple * multiple;
}

static inline unsigned blocks_for(size_t n, size_t each)
{
    return (unsigned)((n + each - 1) / each);
}

/* ---- device.cu ---- */

/* 0, or -1 with *e: RETRY E_DEVICE_MEMORY or FATAL E_INTERNAL. */
int cuda_check(struct cuda *c, cudaError_t status, const char *what, struct error *e);
/* The same for a stream, which remembers its first error; true: all is well. */
bool put(struct stream *s, cudaError_t status, const char *what);
/* Of the kernel that was just launched. */
bool launched(struct stream *s, const char *what);
void device_use(struct cuda *c, size_t device);
/* What an operation begins with: its stream's home is to work. false: the stream has failed, and does no more. */
bool home_use(struct stream *s);
/* At least `bytes` on the device; what it held is lost, once the stream is done with it. */
int grown_take(struct stream *s, size_t device, struct grown *g, size_t bytes, struct error *e);
/* Pinned host memory that the stream may use until it is waited for; NULL: *e says why. */
void *staging_take(struct stream *s, size_t bytes, struct error *e);
/* Where a device finds what the caller sees at `data`. */
void *at_device(struct stream *s, size_t device, const void *data);
static inline void *at_home(struct stream *s, const void *data)
{
    return at_device(s, s->home, data);
}

int cuda_stream_open(struct backend *b, struct stream **out, struct error *e);
void cuda_stream_close(struct stream *s);
int cuda_wait(struct stream *s, struct error *e);
int cuda_alloc(struct backend *b, size_t bytes, void **out, struct error *e);
void cuda_release(struct backend *b, void *memory);
int cuda_arena(struct stream *s, size_t bytes, void **out, struct error *e);
int cuda_upload(struct stream *s, void *to, const void *from_host, size_t bytes, struct error *e);
void cuda_download(struct stream *s, void *to_host, const void *from, size_t bytes);
int cuda_host_alloc(struct backend *b, size_t bytes, void **out, struct error *e);
void cuda_host_release(struct backend *b, void *memory);
int cuda_tile(struct stream *s, const struct tile *tile, struct error *e);

/* ---- linear.cu ---- */

int cuda_weight_open(struct backend *b, size_t in, size_t width, enum dtype dtype, struct weight **out,
                     struct error *e);
void cuda_weight_pack(struct stream *s, struct weight *w, const struct tensor *weight, const struct tensor *bias);
void cuda_weight_close(struct backend *b, struct weight *w);
void cuda_linear(struct stream *s, const struct tensor *out, const struct tensor *in, const struct weight *w,
                 enum epilogue epilogue, const struct tensor *kept);
void plans_close(struct plans *p); /* NULL is fine */

/* ---- rows.cu ---- */

void cuda_embed(struct stream *s, const struct tensor *out, const struct embedding *embedding,
                const struct tensor *kept);
void cuda_layer_norm(struct stream *s, const struct tensor *out, const struct tensor *x, const struct tensor *residual,
                     const struct tensor *norm, float epsilon, const struct tensor *kept);
void cuda_pool(struct stream *s, const struct tensor *out, const struct tensor *x, enum pooling pooling);
void cuda_normalise(struct stream *s, const struct tensor *out, const struct tensor *x, const struct tensor *kept);

/* ---- attention.cu ---- */

void cuda_attention(struct stream *s, const struct tensor *out, const struct tensor *qkv, size_t heads,
                    const struct tensor *kept);

/* ---- scan.cu ---- */

int scan_prepare(struct cuda *c, size_t device, struct error *e); /* once for each device, before any search */

/* ---- keys.cu ---- */

int cuda_keys_open(struct backend *b, size_t dim, enum dtype dtype, struct keys **out, struct error *e);
void cuda_keys_close(struct keys *k);
void cuda_keys_scan(struct stream *s, struct keys *k, const struct keys_view *view, const struct tensor *queries,
                    size_t b, enum key_kind kinds, struct keys_hit *hits, uint32_t *counts);
/* What wait does once the streams are done: hands out the hits of their scans. */
int finishes_run(struct stream *s, struct error *e);
void finishes_drop(struct stream *s);

#endif
