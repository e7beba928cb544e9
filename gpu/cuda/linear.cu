/* Matmuls by cuBLASLt, with the bias added by it and GELU in a kernel of our own: cuBLASLt's GELU is the one by tanh.
 * cuBLASLt counts columns first: a row-major out [rows, width] = in [rows, in] W' is to it a matrix [width, rows], the
 * transpose of W [in, width] times in [in, rows].
 *
 * Asking how to run a shape takes longer than running it, so each stream remembers the answers; rows are rounded up to
 * ROW_MULTIPLE, for which every tensor has room. A shape for which there is no answer runs in a plain kernel. */
#include <stdlib.h>
#include <string.h>

#include "gpu/cuda/internal.h"
#include "gpu/cuda/warp.h"

enum { PLANS = 4096, THREADS = 256, PLAIN_EDGE = 16, GELU_EACH = 8 };
static const size_t WORKSPACE_BYTES = (size_t)32 << 20; /* what cuBLAS asks for on Hopper */
static const uint32_t REDUCTION = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
static const uint32_t ALIGNMENT = 64; /* bytes, of every tensor: cuBLASLt takes it for granted at 256 */

struct weight {
    struct cuda *cuda;
    size_t in, width;
    enum dtype dtype;
    void *packed[DEVICES_MAX]; /* [width, in], then the bias [width], both of the dtype */
    void *bias[DEVICES_MAX];
};

/* ---- weights ---- */

template <typename T> static __global__ void convert(T *out, const float *x, size_t count)
{
    const size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        store(out + i, x[i]);
    }
}

static void convert_launch(struct stream *s, size_t device, void *out, const void *x, size_t count, enum dtype dtype)
{
    const float *from = (const float *)at_device(s, device, x);
    if (dtype == DTYPE_BF16) {
        LAUNCH(convert<bf16>, blocks_for(count, THREADS), THREADS, 0, s->on[device], (bf16 *)out, from, count);
    } else {
        LAUNCH(convert<float>, blocks_for(count, THREADS), THREADS, 0, s->on[device], (float *)out, from, count);
    }
    launched(s, "weight_pack");
}

int cuda_weight_open(struct backend *b, size_t in, size_t width, enum dtype dtype, struct weight **out, struct error *e)
{
    struct cuda *c = cuda_of(b);
    struct weight *w = (struct weight *)calloc(1, sizeof *w);
    if (!w) {
        return c->host->error_set(e, ERROR_FATAL, E_INTERNAL, "out of memory");
    }
    const size_t each = dtype == DTYPE_BF16 ? sizeof(bf16) : sizeof(float), matrix = rounded(in * width * each, 64);
    *w = {c, in, width, dtype, {}, {}};
    for (size_t i = 0; i < c->count; i++) {
        device_use(c, i);
        if (cuda_check(c, cudaMalloc(&w->packed[i], matrix + width * each), "the model's weights", e)) {
            w->packed[i] = NULL;
            cuda_weight_close(b, w);
            return -1;
        }
        w->bias[i] = (char *)w->packed[i] + matrix;
    }
    *out = w;
    return 0;
}

void cuda_weight_pack(struct stream *s, struct weight *w, const struct tensor *weight, const struct tensor *bias)
{
    if (failed(s)) {
        return;
    }
    for (size_t i = 0; i < s->cuda->count; i++) {
        device_use(s->cuda, i);
        s->busy[i] = true;
        convert_launch(s, i, w->packed[i], weight->data, w->in * w->width, w->dtype);
        convert_launch(s, i, w->bias[i], bias->data, w->width, w->dtype);
    }
}

void cuda_weight_close(struct backend *b, struct weight *w)
{
    (void)b;
    if (w) {
        for (size_t i = 0; i < w->cuda->count; i++) {
            device_use(w->cuda, i);
            cudaFree(w->packed[i]);
        }
        free(w);
    }
}

/* ---- plans ---- */

/* How cuBLASLt runs one shape. */
struct plan {
    size_t rows, in, width; /* rows 0: an empty place */
    enum dtype dtype;
    bool plain; /* it cannot */
    cublasLtMatmulDesc_t matmul;
    cublasLtMatrixLayout_t weight, x, out;
    cublasLtMatmulAlgo_t algo;
};

struct plans {
    struct plan places[PLANS]; /* by open addressing; emptied when half full */
    size_t count;
};

static void plan_close(struct plan *p)
{
    if (p->out) {
        cublasLtMatrixLayoutDestroy(p->out);
    }
    if (p->x) {
        cublasLtMatrixLayoutDestroy(p->x);
    }
    if (p->weight) {
        cublasLtMatrixLayoutDestroy(p->weight);
    }
    if (p->matmul) {
        cublasLtMatmulDescDestroy(p->matmul);
    }
    *p = {};
}

static void plans_empty(struct plans *p)
{
    for (size_t i = 0; i < PLANS; i++) {
        plan_close(&p->places[i]);
    }
    p->count = 0;
}

void plans_close(struct plans *p)
{
    if (p) {
        plans_empty(p);
        free(p);
    }
}

static bool lt_put(struct stream *s, cublasStatus_t status)
{
    if (status != CUBLAS_STATUS_SUCCESS && !failed(s)) {
        s->cuda->host->error_set(&s->error, ERROR_FATAL, E_INTERNAL, "cuBLASLt failed: %s",
                                 cublasLtGetStatusString(status));
    }
    return status == CUBLAS_STATUS_SUCCESS;
}

static bool lt_describe(struct stream *s, struct plan *p)
{
    const cudaDataType_t type = p->dtype == DTYPE_BF16 ? CUDA_R_16BF : CUDA_R_32F;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const cublasLtEpilogue_t bias = CUBLASLT_EPILOGUE_BIAS;
    return lt_put(s, cublasLtMatmulDescCreate(&p->matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F)) &&
           lt_put(s, cublasLtMatmulDescSetAttribute(p->matmul, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                                    sizeof transposed)) &&
           lt_put(s, cublasLtMatmulDescSetAttribute(p->matmul, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias, sizeof bias)) &&
           lt_put(s, cublasLtMatrixLayoutCreate(&p->weight, type, p->in, p->width, (int64_t)p->in)) &&
           lt_put(s, cublasLtMatrixLayoutCreate(&p->x, type, p->in, p->rows, (int64_t)p->in)) &&
           lt_put(s, cublasLtMatrixLayoutCreate(&p->out, type, p->width, p->rows, (int64_t)p->width));
}

static bool plan_bias(struct stream *s, struct plan *p, const struct weight *w)
{
    void *const bias = w->bias[s->home];
    return lt_put(s, cublasLtMatmulDescSetAttribute(p->matmul, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof bias));
}

static bool plan_make(struct stream *s, struct plan *p, const struct weight *w)
{
    static const cublasLtMatmulPreferenceAttributes_t aligned[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found = {};
    int count = 0;
    if (!lt_describe(s, p) || !plan_bias(s, p, w) || !lt_put(s, cublasLtMatmulPreferenceCreate(&preference))) {
        return false;
    }
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &WORKSPACE_BYTES,
                                         sizeof WORKSPACE_BYTES);
    /* parts of a sum are added in f32 too */
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &REDUCTION,
                                         sizeof REDUCTION);
    for (size_t i = 0; i < sizeof aligned / sizeof *aligned; i++) {
        cublasLtMatmulPreferenceSetAttribute(preference, aligned[i], &ALIGNMENT, sizeof ALIGNMENT);
    }
    const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(s->cuda->devices[s->home].lt, p->matmul, p->weight,
                                                                 p->x, p->out, p->out, preference, 1, &found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    p->plain = status != CUBLAS_STATUS_SUCCESS || count == 0 || found.state != CUBLAS_STATUS_SUCCESS;
    p->algo = found.algo;
    return true;
}

/* The plan for this shape; NULL: the stream has failed. */
static struct plan *plan_of(struct stream *s, size_t rows, const struct weight *w)
{
    if (!s->plans) {
        s->plans = (struct plans *)calloc(1, sizeof *s->plans);
    }
    if (!s->plans) {
        s->cuda->host->error_set(&s->error, ERROR_FATAL, E_INTERNAL, "out of memory");
        return NULL;
    }
    if (s->plans->count >= PLANS / 2) {
        plans_empty(s->plans);
    }
    size_t i = (rows * 31 + w->in * 7 + w->width * 3 + (size_t)w->dtype) % PLANS;
    struct plan *p = &s->plans->places[i];
    while (p->rows && (p->rows != rows || p->in != w->in || p->width != w->width || p->dtype != w->dtype)) {
        i = (i + 1) % PLANS;
        p = &s->plans->places[i];
    }
    if (!p->rows) {
        p->in = w->in;
        p->width = w->width;
        p->dtype = w->dtype;
        p->rows = rows;
        if (!plan_make(s, p, w)) {
            plan_close(p);
            return NULL;
        }
        s->plans->count++;
    }
    return p;
}

/* ---- linear ---- */

/* A thread for each number: slow, but of any shape. */
template <typename T>
static __global__ void linear_plain(T *out, const T *x, const T *weight, const T *bias, int rows, int in, int width)
{
    const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= rows || column >= width) {
        return;
    }
    float sum = 0;
    for (int i = 0; i < in; i++) {
        sum += float_of(x[(size_t)row * in + i]) * float_of(weight[(size_t)column * in + i]);
    }
    store(out + (size_t)row * width + column, sum + float_of(bias[column]));
}

template <typename T>
static void plain_launch(struct stream *s, void *out, const void *in, const struct weight *w, size_t rows)
{
    LAUNCH(linear_plain<T>, dim3(blocks_for(w->width, PLAIN_EDGE), blocks_for(rows, PLAIN_EDGE)),
           dim3(PLAIN_EDGE, PLAIN_EDGE), 0, s->on[s->home], (T *)out, (const T *)in, (const T *)w->packed[s->home],
           (const T *)w->bias[s->home], (int)rows, (int)w->in, (int)w->width);
    launched(s, "linear");
}

static __device__ __forceinline__ float gelu_of(float x)
{
    return 0.5F * x * (1 + erff(x * 0.70710678118654752F));
}

template <typename T> struct alignas(16) several {
    T of[GELU_EACH];
};

/* out may be x; each thread takes GELU_EACH numbers that follow one another. */
template <typename T> static __global__ void gelu(T *out, const T *x, size_t count)
{
    const size_t first = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * GELU_EACH;
    if (first + GELU_EACH <= count) {
        struct several<T> numbers = *(const struct several<T> *)(x + first);
        for (int i = 0; i < GELU_EACH; i++) {
            store(&numbers.of[i], gelu_of(float_of(numbers.of[i])));
        }
        *(struct several<T> *)(out + first) = numbers;
        return;
    }
    for (size_t i = first; i < count; i++) {
        store(out + i, gelu_of(float_of(x[i])));
    }
}

template <typename T> static void gelu_launch(struct stream *s, void *out, const void *x, size_t count)
{
    LAUNCH(gelu<T>, blocks_for(count, (size_t)THREADS * GELU_EACH), THREADS, 0, s->on[s->home], (T *)out, (const T *)x,
           count);
    launched(s, "gelu");
}

/* false: the stream has failed. What cuBLASLt offered and then refuses becomes a plain plan. */
static bool plan_run(struct stream *s, struct plan *p, const struct weight *w, void *out, const void *in)
{
    const float one = 1, zero = 0;
    const size_t home = s->home;
    if (!plan_bias(s, p, w)) {
        return false;
    }
    const cublasStatus_t status =
        cublasLtMatmul(s->cuda->devices[home].lt, p->matmul, &one, w->packed[home], p->weight, in, p->x, &zero, out,
                       p->out, out, p->out, &p->algo, s->workspace.memory, WORKSPACE_BYTES, s->on[home]);
    p->plain = status == CUBLAS_STATUS_NOT_SUPPORTED || status == CUBLAS_STATUS_INVALID_VALUE;
    if (p->plain) {
        s->cuda->host->log_warn(
            "cuBLASLt refused a matmul of %zu by %zu by %zu that it had offered: a slow kernel takes its "
            "place (%s)",
            p->rows, p->in, p->width, cublasLtGetStatusString(status));
    }
    return p->plain || lt_put(s, status);
}

void cuda_linear(struct stream *s, const struct tensor *out, const struct tensor *in, const struct weight *w,
                 enum epilogue epilogue, const struct tensor *kept)
{
    const size_t rows = rounded(in->rows, ROW_MULTIPLE), home = s->home;
    const bool gelu_too = epilogue == EPILOGUE_GELU, wide = w->dtype == DTYPE_F32;
    if (!home_use(s) || grown_take(s, home, &s->workspace, WORKSPACE_BYTES, &s->error)) {
        return;
    }
    void *to = at_home(s, out->data), *before = gelu_too && kept ? at_home(s, kept->data) : to;
    const void *from = at_home(s, in->data);
    struct plan *p = plan_of(s, rows, w);
    if (!p) {
        return;
    }
    if (!p->plain && !plan_run(s, p, w, before, from)) {
        return;
    }
    if (p->plain) {
        (wide ? plain_launch<float> : plain_launch<bf16>)(s, before, from, w, in->rows);
    }
    if (gelu_too) {
        (wide ? gelu_launch<float> : gelu_launch<bf16>)(s, to, before, in->rows * w->width);
    }
}
