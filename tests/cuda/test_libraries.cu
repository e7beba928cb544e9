// cuBLASLt against plain loops, and NCCL driven by one thread or by one for each rank.
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "suite.h"

// ---- cuBLASLt ----

struct shape {
    int m, n, k;
    bool transpose_a, transpose_b, bias;
    cudaDataType_t in, out;
    float alpha, beta;
};

static size_t size_of(cudaDataType_t type)
{
    return type == CUDA_R_32F ? 4 : 2;
}

/* [rows, columns] with `ld` between columns, whose gaps stay unwritten on the device. */
struct matrix {
    cudaDataType_t type;
    int rows, columns, ld;
    std::vector<float> numbers; /* exact in its type */
    char *device;
};

static struct matrix matrix_new(cudaDataType_t type, int rows, int columns, bool filled)
{
    const int ld = (rows + 3) / 8 * 8 + 8; /* whole 16 bytes from column to column */
    struct matrix m = {type, rows, columns, ld, std::vector<float>(rows * columns), device_new<char>(ld * columns * 4)};
    for (int c = 0; filled && c < columns; c++) {
        std::vector<__nv_bfloat16> halves(rows);
        for (int r = 0; r < rows; r++) {
            halves[r] = __float2bfloat16(random_float());
            m.numbers[c * rows + r] = __bfloat162float(halves[r]);
        }
        const void *from = type == CUDA_R_32F ? (const void *)&m.numbers[c * rows] : halves.data();
        OK(cudaMemcpy(m.device + c * ld * size_of(type), from, rows * size_of(type), cudaMemcpyHostToDevice));
    }
    return m;
}

static float number_of(const struct matrix *m, int row, int column, bool transposed)
{
    return transposed ? m->numbers[row * m->rows + column] : m->numbers[column * m->rows + row];
}

static cublasLtMatrixLayout_t layout_of(const struct matrix *m)
{
    cublasLtMatrixLayout_t layout;
    OK(cublasLtMatrixLayoutCreate(&layout, m->type, m->rows, m->columns, m->ld));
    return layout;
}

static cublasLtMatmulDesc_t desc_of(const struct shape *s, const struct matrix *bias)
{
    const int32_t ta = s->transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, tb = s->transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasLtMatmulDesc_t desc;
    OK(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    OK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta));
    OK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb));
    if (s->bias) {
        OK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue));
        OK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias->device, sizeof(void *)));
        OK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &s->out, sizeof s->out));
    }
    return desc;
}

static void expect(const struct shape *s, const struct matrix *a, const struct matrix *b, const struct matrix *c,
                   const struct matrix *d, const struct matrix *bias)
{
    for (int column = 0; column < s->n; column++) {
        std::vector<char> got(s->m * size_of(s->out));
        OK(cudaMemcpy(got.data(), d->device + column * d->ld * size_of(s->out), got.size(), cudaMemcpyDeviceToHost));
        for (int row = 0; row < s->m; row++) {
            double sum = 0;
            for (int k = 0; k < s->k; k++) {
                sum += (double)number_of(a, row, k, s->transpose_a) * (double)number_of(b, k, column, s->transpose_b);
            }
            sum = (double)s->alpha * sum + (double)s->beta * (double)number_of(c, row, column, false);
            sum += s->bias ? (double)bias->numbers[row] : 0;
            const double is = s->out == CUDA_R_32F ? (double)((const float *)got.data())[row]
                                                   : (double)__bfloat162float(((const __nv_bfloat16 *)got.data())[row]);
            const double allowed = s->out == CUDA_R_32F ? 1e-5 * (1 + s->k / 16.0) : 1e-5 + fabs(sum) / 256;
            if (!(fabs(is - sum) <= allowed)) {
                fail_msg("[%d, %d] x [%d, %d], at %d, %d: %g, not %g", s->m, s->k, s->k, s->n, row, column, is, sum);
            }
        }
    }
}

static void multiplied(cublasLtHandle_t handle, const struct shape *s)
{
    const struct matrix a = matrix_new(s->in, s->transpose_a ? s->k : s->m, s->transpose_a ? s->m : s->k, true);
    const struct matrix b = matrix_new(s->in, s->transpose_b ? s->n : s->k, s->transpose_b ? s->k : s->n, true);
    const struct matrix c = matrix_new(s->out, s->m, s->n, s->beta != 0), bias = matrix_new(s->out, s->m, 1, true);
    const struct matrix d = matrix_new(s->out, s->m, s->n, false);
    const uint64_t most = 4096;
    const uint32_t alignment = 16;
    void *workspace = device_new<char>(most);
    cublasLtMatmulDesc_t desc = desc_of(s, &bias);
    cublasLtMatrixLayout_t la = layout_of(&a), lb = layout_of(&b), lc = layout_of(&c), ld = layout_of(&d);
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found[2];
    int count;
    OK(cublasLtMatmulPreferenceCreate(&preference));
    OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most));
    OK(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment, 4));
    OK(cublasLtMatmulAlgoGetHeuristic(handle, desc, la, lb, lc, ld, preference, 2, found, &count));
    assert_int_equal(count, 1);
    OK(cublasLtMatmul(handle, desc, &s->alpha, a.device, la, b.device, lb, &s->beta, c.device, lc, d.device, ld,
                      &found[0].algo, workspace, found[0].workspaceSize, nullptr));
    expect(s, &a, &b, &c, &d, &bias);
    assert_int_equal(cublasLtMatmul(handle, desc, &s->alpha, a.device + size_of(s->in), la, b.device, lb, &s->beta,
                                    c.device, lc, d.device, ld, &found[0].algo, workspace, most, nullptr),
                     CUBLAS_STATUS_INVALID_VALUE); /* not aligned as was said */
    for (cublasLtMatrixLayout_t l : {la, lb, lc, ld}) {
        OK(cublasLtMatrixLayoutDestroy(l));
    }
    OK(cublasLtMatmulPreferenceDestroy(preference));
    OK(cublasLtMatmulDescDestroy(desc));
    for (void *p : {(void *)a.device, (void *)b.device, (void *)c.device, (void *)d.device, (void *)bias.device}) {
        OK(cudaFree(p));
    }
    OK(cudaFree(workspace));
}

static void matmuls(void **)
{
    cublasLtHandle_t handle;
    OK(cublasLtCreate(&handle));
    for (int i = 0; i < 16; i++) {
        const cudaDataType_t in = i & 4 ? CUDA_R_16BF : CUDA_R_32F;
        const struct shape s = {13 + i,
                                9,
                                37,
                                (i & 1) != 0,
                                (i & 2) != 0,
                                i % 3 == 0,
                                in,
                                i & 8 ? in : CUDA_R_32F,
                                i % 5 * 0.5F + 1,
                                i % 4 == 1 ? 0.5F : 0};
        multiplied(handle, &s);
    }
    OK(cublasLtDestroy(handle));
}

static void refused(void **)
{
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatmulPreference_t preference;
    cublasLtMatmulHeuristicResult_t found;
    cublasLtMatrixLayout_t a, b, d;
    const int32_t bias_type = CUDA_R_32F;
    int count = 7;
    OK(cublasLtCreate(&handle));
    OK(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    OK(cublasLtMatmulPreferenceCreate(&preference));
    OK(cublasLtMatrixLayoutCreate(&a, CUDA_R_16BF, 16, 24, 16));
    OK(cublasLtMatrixLayoutCreate(&b, CUDA_R_16BF, 16, 8, 16));
    OK(cublasLtMatrixLayoutCreate(&d, CUDA_R_16BF, 16, 8, 16));
    assert_int_equal(cublasLtMatmulAlgoGetHeuristic(handle, desc, a, b, d, d, preference, 1, &found, &count),
                     CUBLAS_STATUS_INVALID_VALUE); /* 24 is not 16 */
    assert_int_equal(count, 0);
    OK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &bias_type, sizeof bias_type));
    assert_int_equal(cublasLtMatmulAlgoGetHeuristic(handle, desc, d, b, d, d, preference, 1, &found, &count),
                     CUBLAS_STATUS_INVALID_VALUE);
    assert_int_equal(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &count, 1),
                     CUBLAS_STATUS_INVALID_VALUE);
    for (cublasLtMatrixLayout_t l : {a, b, d}) {
        OK(cublasLtMatrixLayoutDestroy(l));
    }
    OK(cublasLtMatmulPreferenceDestroy(preference));
    OK(cublasLtMatmulDescDestroy(desc));
    OK(cublasLtDestroy(handle));
}

/* A figure to look at, not a test: [64, 384] x [384, 1536], as row-major programs ask for it. */
static void speed(void **)
{
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    const int32_t transposed = CUBLAS_OP_T;
    const float one = 1, zero = 0;
    __nv_bfloat16 *from = device_new<__nv_bfloat16>(384 * 1536), *to = device_new<__nv_bfloat16>(64 * 1536);
    OK(cudaMemset(from, 0, 384 * 1536 * sizeof *from));
    OK(cudaDeviceSynchronize());
    OK(cublasLtCreate(&handle));
    OK(cublasLtMatmulDescCreate(&desc, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    OK(cublasLtMatmulDescSetAttribute(desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    OK(cublasLtMatrixLayoutCreate(&a, CUDA_R_16BF, 384, 1536, 384));
    OK(cublasLtMatrixLayoutCreate(&b, CUDA_R_16BF, 384, 64, 384));
    OK(cublasLtMatrixLayoutCreate(&d, CUDA_R_16BF, 1536, 64, 1536));
    const auto start = std::chrono::steady_clock::now();
    OK(cublasLtMatmul(handle, desc, &one, from, a, from, b, &zero, to, d, to, d, nullptr, nullptr, 0, nullptr));
    OK(cudaDeviceSynchronize());
    const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
    print_message("[64, 384] x [384, 1536]: %.1f ms\n", spent.count());
    for (cublasLtMatrixLayout_t l : {a, b, d}) {
        OK(cublasLtMatrixLayoutDestroy(l));
    }
    OK(cublasLtMatmulDescDestroy(desc));
    OK(cublasLtDestroy(handle));
    OK(cudaFree(from));
    OK(cudaFree(to));
}

// ---- NCCL ----

enum { RANKS = 2, COUNT = 5 };

struct rank {
    ncclComm_t comm;
    cudaStream_t stream;
    float *mine, *all;
    __nv_bfloat16 *halves;
    uint64_t *largest;
};

/* No assertions: it runs in threads too. */
static void rank_open(struct rank *r, int device, int number)
{
    float mine[COUNT];
    __nv_bfloat16 halves[COUNT];
    uint64_t largest[COUNT];
    for (int i = 0; i < COUNT; i++) {
        mine[i] = (float)(10 * number + i);
        halves[i] = __float2bfloat16(mine[i] + 1);
        largest[i] = (uint64_t)(number ? i : COUNT - i) << 40;
    }
    cudaSetDevice(device);
    cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking);
    cudaMalloc(&r->mine, sizeof mine);
    cudaMalloc(&r->all, RANKS * sizeof mine);
    cudaMalloc(&r->halves, sizeof halves);
    cudaMalloc(&r->largest, sizeof largest);
    cudaMemcpy(r->mine, mine, sizeof mine, cudaMemcpyHostToDevice);
    cudaMemcpy(r->halves, halves, sizeof halves, cudaMemcpyHostToDevice);
    cudaMemcpy(r->largest, largest, sizeof largest, cudaMemcpyHostToDevice);
}

static void rank_calls(struct rank *r, int device)
{
    cudaSetDevice(device);
    ncclAllGather(r->mine, r->all, COUNT, ncclFloat32, r->comm, r->stream);
    ncclAllReduce(r->halves, r->halves, COUNT, ncclBfloat16, ncclSum, r->comm, r->stream);
    ncclAllReduce(r->largest, r->largest, COUNT, ncclUint64, ncclMax, r->comm, r->stream);
    ncclBroadcast(r->mine, r->mine, COUNT, ncclFloat32, 1, r->comm, r->stream);
}

/* The last of so many ones, or twos, that they take several chunks of a room. */
static float large_sum(struct rank *r, int number)
{
    const size_t count = 200001;
    float *large, last = 0;
    const std::vector<float> ones(count, (float)(number + 1));
    cudaMalloc(&large, count * sizeof *large);
    cudaMemcpy(large, ones.data(), count * sizeof *large, cudaMemcpyHostToDevice);
    ncclAllReduce(large, large, count, ncclFloat32, ncclSum, r->comm, r->stream);
    cudaMemcpyAsync(&last, large + count - 1, sizeof last, cudaMemcpyDeviceToHost, r->stream);
    cudaStreamSynchronize(r->stream);
    cudaFree(large);
    return last;
}

/* Each sends the first half of `all` to the other's second half. */
static void rank_exchange(struct rank *r, int number)
{
    cudaSetDevice(number);
    ncclSend(r->all, COUNT, ncclFloat32, 1 - number, r->comm, r->stream);
    ncclRecv(r->all + COUNT, COUNT, ncclFloat32, 1 - number, r->comm, r->stream);
}

static void rank_close(struct rank *r, int number)
{
    cudaSetDevice(number);
    ncclCommFinalize(r->comm);
    ncclCommDestroy(r->comm);
    cudaStreamDestroy(r->stream);
    cudaFree(r->mine);
    cudaFree(r->all);
    cudaFree(r->halves);
    cudaFree(r->largest);
}

static void ranks_expect(struct rank *ranks)
{
    for (int n = 0; n < RANKS; n++) {
        struct rank *r = &ranks[n];
        OK(cudaSetDevice(n));
        OK(cudaStreamSynchronize(r->stream));
        const std::vector<float> mine = host_of(r->mine, COUNT), all = host_of(r->all, RANKS * COUNT);
        const std::vector<__nv_bfloat16> halves = host_of(r->halves, COUNT);
        const std::vector<uint64_t> largest = host_of(r->largest, COUNT);
        for (int i = 0; i < COUNT; i++) {
            assert_true(mine[i] == (float)(10 + i));
            assert_true(all[i] == (float)i && all[COUNT + i] == (float)(i)); /* exchanged: the other's first half */
            assert_true(__bfloat162float(halves[i]) == (float)(12 + 2 * i));
            assert_true(largest[i] == (uint64_t)(i > COUNT - i ? i : COUNT - i) << 40);
        }
    }
    OK(cudaSetDevice(0));
}

static void one_thread(bool by_id)
{
    struct rank ranks[RANKS];
    ncclComm_t comms[RANKS];
    ncclUniqueId id;
    int count, number;
    if (by_id) {
        OK(ncclGetUniqueId(&id));
        OK(ncclGroupStart());
        for (int n = 0; n < RANKS; n++) {
            OK(cudaSetDevice(n));
            OK(ncclCommInitRank(&comms[n], RANKS, id, n));
        }
        OK(ncclGroupEnd());
    } else {
        OK(ncclCommInitAll(comms, RANKS, nullptr));
    }
    for (int n = 0; n < RANKS; n++) {
        ranks[n].comm = comms[n];
        OK(ncclCommCount(comms[n], &count));
        OK(ncclCommUserRank(comms[n], &number));
        assert_true(count == RANKS && number == n);
        rank_open(&ranks[n], n, n);
    }
    for (int step = 0; step < 2; step++) {
        OK(ncclGroupStart());
        for (int n = 0; n < RANKS; n++) {
            (step ? rank_exchange : rank_calls)(&ranks[n], n);
        }
        OK(ncclGroupEnd());
    }
    ranks_expect(ranks);
    for (int n = 0; n < RANKS; n++) {
        rank_close(&ranks[n], n);
    }
    OK(cudaSetDevice(0));
}

static void one_thread_all(void **)
{
    one_thread(false);
}

static void one_thread_by_id(void **)
{
    one_thread(true);
}

static void thread_per_rank(void **)
{
    struct rank ranks[RANKS];
    ncclUniqueId id;
    std::vector<std::thread> threads;
    OK(ncclGetUniqueId(&id));
    for (int n = 0; n < RANKS; n++) {
        threads.emplace_back([&ranks, id, n] {
            struct rank *r = &ranks[n];
            rank_open(r, n, n);
            ncclCommInitRank(&r->comm, RANKS, id, n);
            rank_calls(r, n);
            ncclGroupStart();
            rank_exchange(r, n);
            ncclGroupEnd();
            cudaStreamSynchronize(r->stream);
        });
    }
    for (std::thread &t : threads) {
        t.join();
    }
    ranks_expect(ranks);
    for (int n = 0; n < RANKS; n++) {
        rank_close(&ranks[n], n);
    }
    OK(cudaSetDevice(0));
}

/* A rank that waits for one that never comes gets away when that one aborts. */
static void aborted(void **)
{
    struct rank ranks[RANKS];
    ncclComm_t comms[RANKS];
    ncclResult_t error;
    OK(ncclCommInitAll(comms, RANKS, nullptr));
    for (int n = 0; n < RANKS; n++) {
        ranks[n].comm = comms[n];
        rank_open(&ranks[n], n, n);
    }
    std::thread waiting([&] {
        rank_calls(&ranks[0], 0);
        cudaStreamSynchronize(ranks[0].stream);
    });
    OK(ncclCommAbort(comms[1]));
    waiting.join();
    OK(ncclCommGetAsyncError(comms[0], &error));
    assert_int_equal(error, ncclRemoteError);
    OK(ncclCommAbort(comms[0]));
    for (int n = 0; n < RANKS; n++) {
        ranks[n].comm = nullptr;
        rank_close(&ranks[n], n);
    }
    OK(cudaSetDevice(0));
}

/* As a process of its own, on its own only device: the clique's second rank, whose id comes from the first. */
int rank_process(const char *id_text)
{
    struct rank r;
    ncclUniqueId id = {};
    snprintf(id.internal, sizeof id.internal, "%s", id_text);
    rank_open(&r, 0, 1);
    if (ncclCommInitRank(&r.comm, RANKS, id, 1) != ncclSuccess) {
        return 1;
    }
    rank_calls(&r, 0);
    large_sum(&r, 1);
    cudaStreamSynchronize(r.stream);
    rank_close(&r, 0);
    return 0;
}

static void process_per_rank(void **)
{
    struct rank r;
    ncclUniqueId id;
    int status;
    OK(ncclGetUniqueId(&id));
    const pid_t child = fork();
    if (child == 0) {
        execl("/proc/self/exe", "test_emulation", "rank", id.internal, (char *)nullptr);
        _exit(127);
    }
    rank_open(&r, 0, 0);
    OK(ncclCommInitRank(&r.comm, RANKS, id, 0));
    rank_calls(&r, 0);
    const float sum = large_sum(&r, 0);
    OK(cudaStreamSynchronize(r.stream));
    assert_true(sum == 3);
    const std::vector<float> mine = host_of(r.mine, COUNT), all = host_of(r.all, RANKS * COUNT);
    const std::vector<uint64_t> largest = host_of(r.largest, COUNT);
    for (int i = 0; i < COUNT; i++) {
        assert_true(mine[i] == (float)(10 + i) && all[i] == (float)i && all[COUNT + i] == (float)(10 + i));
        assert_true(largest[i] == (uint64_t)(i > COUNT - i ? i : COUNT - i) << 40);
    }
    rank_close(&r, 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

const struct named_test library_tests[] = {{"matmuls", matmuls},
                                           {"refused", refused},
                                           {"speed", speed},
                                           {"one_thread_all", one_thread_all},
                                           {"one_thread_by_id", one_thread_by_id},
                                           {"thread_per_rank", thread_per_rank},
                                           {"process_per_rank", process_per_rank},
                                           {"aborted", aborted},
                                           {nullptr, nullptr}};
