// cuBLASLt: descriptors, and one matmul. Both factors are brought to f32 and packed once, then panels of 8 rows by 4
// columns of D are summed in registers.
#include <stdlib.h>

#include "cublasLt.h"
#include "cuda_bf16.h"
#include "internal.h"

struct cublasLtContext {
    int device;
};

struct emulated_matmul_desc {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    int32_t transpose_a, transpose_b, pointer_mode, bias_type; /* bias_type -1: D's */
    uint32_t epilogue;
    const void *bias;
};

struct emulated_matrix_layout {
    uint32_t type;
    int32_t order, batch;
    uint64_t rows, columns;
    int64_t ld, stride;
};

struct emulated_matmul_preference {
    uint64_t workspace_bytes;
    uint32_t alignment[4]; /* of A, B, C and D */
};

namespace emulated
{

enum { ALGORITHM = 0x456d756c, ROWS = 8, COLUMNS = 4 };
static const size_t workspace_wanted = 65536;

typedef float lanes __attribute__((vector_size(16)));

struct multiplication {
    struct emulated_matmul_desc desc;
    struct emulated_matrix_layout a, b, c, d;
    const void *from_a, *from_b, *from_c;
    void *to, *workspace;
    size_t workspace_bytes;
    float alpha, beta;
    int device;
};

// ---- checks ----

static size_t bytes_of(uint32_t type)
{
    return type == CUDA_R_16BF ? 2 : type == CUDA_R_32F ? 4 : 0;
}

/* As cuBLASLt answers: a wrong call, or one that it does not do. Batches are among those here. */
static cublasStatus_t layouts_check(const struct emulated_matmul_desc *desc, const struct emulated_matrix_layout *a,
                                    const struct emulated_matrix_layout *b, const struct emulated_matrix_layout *c,
                                    const struct emulated_matrix_layout *d)
{
    for (const struct emulated_matrix_layout *l : {a, b, c, d}) {
        if (!l || !l->rows || !l->columns || l->ld < static_cast<int64_t>(l->rows)) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
        if (!bytes_of(l->type) || l->order != CUBLASLT_ORDER_COL || l->batch != 1) {
            return CUBLAS_STATUS_NOT_SUPPORTED;
        }
    }
    const bool at = desc->transpose_a != CUBLAS_OP_N, bt = desc->transpose_b != CUBLAS_OP_N;
    const uint64_t m = at ? a->columns : a->rows, k = at ? a->rows : a->columns;
    if ((bt ? b->columns : b->rows) != k || d->rows != m || d->columns != (bt ? b->rows : b->columns) ||
        c->rows != d->rows || c->columns != d->columns) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    const uint32_t bias = desc->bias_type < 0 ? d->type : static_cast<uint32_t>(desc->bias_type);
    const bool types = a->type == b->type && c->type == d->type && (a->type == CUDA_R_16BF || d->type == CUDA_R_32F) &&
                       bias == d->type; /* cuBLASLt's table has no other for these */
    const bool epilogue = desc->epilogue == CUBLASLT_EPILOGUE_DEFAULT || desc->epilogue == CUBLASLT_EPILOGUE_BIAS;
    const bool scale = desc->scale == CUDA_R_32F && desc->pointer_mode == CUBLASLT_POINTER_MODE_HOST;
    return types && epilogue && scale ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

static bool aligned(const void *p, size_t bytes)
{
    return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// ---- the multiplication ----

static float number_at(const void *from, uint32_t type, size_t i)
{
    return type == CUDA_R_32F ? static_cast<const float *>(from)[i]
                              : __bfloat162float(static_cast<const __nv_bfloat16 *>(from)[i]);
}

/* Panels of `width` rows of op(X), k after k, the last panel filled up with zeroes: by_rows where a row of op(X) is a
 * column of X in memory. */
static std::vector<float> packed(const void *from, const struct emulated_matrix_layout *l, bool by_rows, size_t width)
{
    const size_t n = by_rows ? l->columns : l->rows, k = by_rows ? l->rows : l->columns;
    const size_t ld = static_cast<size_t>(l->ld);
    std::vector<float> out(rounded(n, width) * k);
    for (size_t i = 0; i < n; i++) {
        float *to = out.data() + i / width * width * k + i % width;
        for (size_t j = 0; j < k; j++) {
            to[j * width] = number_at(from, l->type, by_rows ? i * ld + j : j * ld + i);
        }
    }
    return out;
}

static void panel(const float *a, const float *b, size_t k, float out[COLUMNS][ROWS])
{
    lanes sums[COLUMNS][2] = {};
    for (size_t i = 0; i < k; i++, a += ROWS, b += COLUMNS) {
        lanes low, high;
        memcpy(&low, a, sizeof low);
        memcpy(&high, a + 4, sizeof high);
        for (int c = 0; c < COLUMNS; c++) {
            sums[c][0] += low * b[c];
            sums[c][1] += high * b[c];
        }
    }
    memcpy(out, sums, sizeof sums);
}

static void finish(const struct multiplication *m, size_t row, size_t column, float sum)
{
    const size_t at = column * static_cast<size_t>(m->d.ld) + row;
    float x = m->alpha * sum;
    if (m->beta != 0) {
        x += m->beta * number_at(m->from_c, m->c.type, column * static_cast<size_t>(m->c.ld) + row);
    }
    if (m->desc.epilogue == CUBLASLT_EPILOGUE_BIAS) {
        x += number_at(m->desc.bias, static_cast<uint32_t>(m->desc.bias_type), row);
    }
    if (m->d.type == CUDA_R_32F) {
        static_cast<float *>(m->to)[at] = x;
    } else {
        static_cast<__nv_bfloat16 *>(m->to)[at] = __float2bfloat16_rn(x);
    }
}

/* Columns are looked at one by one: what lies between two is nobody's. */
static void matrix_check(const void *p, const struct emulated_matrix_layout *l, int device, unsigned access,
                         const char *what)
{
    const size_t element = bytes_of(l->type);
    for (size_t c = 0; c < l->columns; c++) {
        memory_check(static_cast<const char *>(p) + c * static_cast<size_t>(l->ld) * element, l->rows * element, device,
                     access, what);
    }
}

/* Of a column of B that nothing has written comes a column of D that nothing has written: callers may round sizes up,
 * as long as nobody reads what comes of it. */
static void columns_check(const struct multiplication *m, bool bt)
{
    const size_t bytes = m->b.rows * bytes_of(m->b.type), out_bytes = m->d.rows * bytes_of(m->d.type);
    if (!EMULATED_CHECKER || bt) {
        matrix_check(m->from_b, &m->b, m->device, ACCESS_READ, "cublasLtMatmul's B");
        matrix_check(m->to, &m->d, m->device, ACCESS_WRITE, "cublasLtMatmul's D");
        return;
    }
    for (size_t c = 0; c < m->b.columns; c++) {
        const char *column =
            static_cast<const char *>(m->from_b) + c * static_cast<size_t>(m->b.ld) * bytes_of(m->b.type);
        const bool written = memory_written(column, bytes);
        memory_check(column, bytes, m->device, written ? ACCESS_READ : 0, "cublasLtMatmul's B");
        memory_check(static_cast<char *>(m->to) + c * static_cast<size_t>(m->d.ld) * bytes_of(m->d.type), out_bytes,
                     m->device, written ? ACCESS_WRITE : 0, "cublasLtMatmul's D");
    }
}

static void multiply(const struct multiplication *m)
{
    const bool at = m->desc.transpose_a != CUBLAS_OP_N, bt = m->desc.transpose_b != CUBLAS_OP_N;
    const size_t k = at ? m->a.rows : m->a.columns;
    matrix_check(m->from_a, &m->a, m->device, ACCESS_READ, "cublasLtMatmul's A");
    if (m->beta != 0) {
        matrix_check(m->from_c, &m->c, m->device, ACCESS_READ, "cublasLtMatmul's C");
    }
    if (m->desc.epilogue == CUBLASLT_EPILOGUE_BIAS) {
        memory_check(m->desc.bias, m->d.rows * bytes_of(static_cast<uint32_t>(m->desc.bias_type)), m->device,
                     ACCESS_READ, "cublasLtMatmul's bias");
    }
    if (m->workspace) {
        memory_check(m->workspace, m->workspace_bytes, m->device, 0, "cublasLtMatmul's workspace");
        memset(m->workspace, UNWRITTEN, m->workspace_bytes); /* what was in it is gone */
    }
    columns_check(m, bt);
    const std::vector<float> a = packed(m->from_a, &m->a, at, ROWS), b = packed(m->from_b, &m->b, !bt, COLUMNS);
    for (size_t column = 0; column < m->d.columns; column += COLUMNS) {
        for (size_t row = 0; row < m->d.rows; row += ROWS) {
            float sums[COLUMNS][ROWS];
            panel(a.data() + row * k, b.data() + column * k, k, sums);
            for (size_t c = column; c < column + COLUMNS && c < m->d.columns; c++) {
                for (size_t r = row; r < row + ROWS && r < m->d.rows; r++) {
                    finish(m, r, c, sums[c - column][r - row]);
                }
            }
        }
    }
}

static cublasStatus_t assign(void *to, size_t to_bytes, const void *value, size_t bytes)
{
    if (!value || bytes != to_bytes) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

} // namespace emulated

using namespace emulated;

#define ASSIGN(field) assign(&(field), sizeof(field), value, bytes)

// ---- the library ----

cublasStatus_t cublasLtCreate(cublasLtHandle_t *out)
{
    if (environment()->failure != cudaSuccess) {
        return CUBLAS_STATUS_NOT_INITIALIZED;
    }
    *out = new cublasLtContext{device_current()};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

size_t cublasLtGetVersion(void)
{
    return 120900;
}

size_t cublasLtGetCudartVersion(void)
{
    return CUDART_VERSION;
}

const char *cublasGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
        return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR:
        return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR:
        return "CUBLAS_STATUS_LICENSE_ERROR";
    }
    return "CUBLAS_STATUS_UNKNOWN";
}

const char *cublasGetStatusString(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "success";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "the library was not initialized";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "an unsupported value or parameter was passed to the function";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "the functionality requested is not supported";
    default:
        return cublasGetStatusName(status);
    }
}

const char *cublasLtGetStatusName(cublasStatus_t status)
{
    return cublasGetStatusName(status);
}

const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return cublasGetStatusString(status);
}

// ---- descriptors ----

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *out, cublasComputeType_t compute, cudaDataType_t scale)
{
    *out = new emulated_matmul_desc{
        compute, scale, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_POINTER_MODE_HOST, -1, CUBLASLT_EPILOGUE_DEFAULT, nullptr};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes)
{
    if (!desc) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
        return ASSIGN(desc->compute);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
        return ASSIGN(desc->scale);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        return ASSIGN(desc->pointer_mode);
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return ASSIGN(desc->transpose_a);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return ASSIGN(desc->transpose_b);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return ASSIGN(desc->epilogue);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return ASSIGN(desc->bias);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return ASSIGN(desc->bias_type);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *out, cudaDataType_t type, uint64_t rows,
                                          uint64_t columns, int64_t ld)
{
    *out = new emulated_matrix_layout{static_cast<uint32_t>(type), CUBLASLT_ORDER_COL, 1, rows, columns, ld, 0};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                cublasLtMatrixLayoutAttribute_t attribute, const void *value,
                                                size_t bytes)
{
    if (!layout) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
        return ASSIGN(layout->type);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
        return ASSIGN(layout->order);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
        return ASSIGN(layout->rows);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
        return ASSIGN(layout->columns);
    case CUBLASLT_MATRIX_LAYOUT_LD:
        return ASSIGN(layout->ld);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        return ASSIGN(layout->batch);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        return ASSIGN(layout->stride);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *out)
{
    *out = new emulated_matmul_preference{0, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t bytes)
{
    uint32_t unused;
    if (!preference) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return ASSIGN(preference->workspace_bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return ASSIGN(preference->alignment[attribute - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES]);
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return ASSIGN(unused);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

// ---- matmul ----

/* The algorithm remembers the alignments that it was chosen for: they are checked when it runs. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t results[], int *found)
{
    if (!handle || !desc || !preference || !results || !found || wanted < 1) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    *found = 0;
    const cublasStatus_t status = layouts_check(desc, a, b, c, d);
    if (status != CUBLAS_STATUS_SUCCESS) {
        return status;
    }
    cublasLtMatmulHeuristicResult_t r = {};
    r.workspaceSize = preference->workspace_bytes < workspace_wanted ? preference->workspace_bytes : workspace_wanted;
    r.wavesCount = 1;
    r.algo.data[0] = ALGORITHM;
    r.algo.data[1] = r.workspaceSize;
    for (int i = 0; i < 4; i++) {
        r.algo.data[2 + i] = preference->alignment[i];
    }
    results[0] = r;
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

static cublasStatus_t algorithm_check(const struct multiplication *m, const cublasLtMatmulAlgo_t *algo)
{
    const void *const matrices[4] = {m->from_a, m->from_b, m->from_c, m->to};
    if (!algo) { /* cuBLASLt asks its heuristic: alignments are those of the pointers */
        return CUBLAS_STATUS_SUCCESS;
    }
    if (algo->data[0] != ALGORITHM || m->workspace_bytes < algo->data[1]) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    for (int i = 0; i < 4; i++) {
        if ((matrices[i] || i != 2) && !aligned(matrices[i], algo->data[2 + i])) {
            return CUBLAS_STATUS_INVALID_VALUE;
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream)
{
    if (!handle || !desc || !alpha || !beta || !a || !b || !d) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    cublasStatus_t status = layouts_check(desc, a_layout, b_layout, c_layout, d_layout);
    if (status != CUBLAS_STATUS_SUCCESS) {
        return status;
    }
    struct stream *s = stream_of(stream);
    struct multiplication m = {*desc,
                               *a_layout,
                               *b_layout,
                               *c_layout,
                               *d_layout,
                               a,
                               b,
                               c,
                               d,
                               workspace,
                               workspace_bytes,
                               *static_cast<const float *>(alpha),
                               *static_cast<const float *>(beta),
                               stream_device(s)};
    m.desc.bias_type = m.desc.bias_type < 0 ? static_cast<int32_t>(m.d.type) : m.desc.bias_type;
    status = algorithm_check(&m, algo);
    if (status != CUBLAS_STATUS_SUCCESS) {
        return status;
    }
    if ((m.beta != 0 && !c) || (workspace_bytes && !workspace) ||
        (m.desc.epilogue == CUBLASLT_EPILOGUE_BIAS && !m.desc.bias) || !aligned(a, bytes_of(m.a.type)) ||
        !aligned(b, bytes_of(m.b.type)) || !aligned(d, bytes_of(m.d.type)) || (workspace && !aligned(workspace, 16))) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    if (handle->device != m.device ||
        device_current() != m.device) { /* it runs kernels of the device it was made for */
        return CUBLAS_STATUS_ARCH_MISMATCH;
    }
    stream_submit(s, [m] { multiply(&m); });
    return CUBLAS_STATUS_SUCCESS;
}
