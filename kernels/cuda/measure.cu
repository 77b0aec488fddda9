/* Measuring cuda_product: every call reads other weights than the calls before it, several times
 * the L2 cache in turn, in a graph whose replays are timed by events.  Before that the result of
 * one call, written over poison, is compared with FP64. */
#include "common/random.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/product_unpack.h"
#include "kernels/cuda/weights.h"

extern "C" {
#include "kernels/cuda/product.h"
#include "kernels/measure.h"
}

#include <algorithm>
#include <cmath>

#define THREADS      256
#define REPLAYS      20
#define LEAST_CALLS  50
#define ROTATE_BYTES (UINT64_C(256) << 20)
#define READ_BYTES   (UINT64_C(1) << 30)

/* ---- inputs -----------------------------------------------------------------------------------
 */

__device__ static uint64_t random_bits(uint64_t seed, uint64_t index) {
    uint64_t state = seed + index;
    return ingot_random_bits(&state);
}

__global__ static void measure_fill_kernel(uint64_t *out, uint64_t count, uint64_t seed,
                                           uint64_t keep, uint64_t set) {
    const uint64_t step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step) {
        out[i] = (random_bits(seed, i) & keep) | set;
    }
}

/* Four uniform numbers of variance 1/12 each, times `scale`. */
template <typename T>
__global__ static void measure_floats_kernel(T *out, uint64_t count, uint64_t seed, float scale) {
    const uint64_t step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step) {
        const uint64_t bits = random_bits(seed, i);
        float sum = -2.0f;
        for (int k = 0; k < 4; k++) {
            sum += (float)(bits >> (16 * k) & 0xffff) * (1.0f / 65536.0f);
        }
        out[i] = from_float<T>(sum * scale);
    }
}

/* x in the form in which a product takes what is handed on; cols are a multiple of 4. */
__global__ static void measure_tile_kernel(__half *tile, const __half *x, uint64_t m, uint64_t cols,
                                           ingot_product_form form) {
    const uint64_t step = (uint64_t)gridDim.x * THREADS, pieces = cols / 4;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < m * pieces; i += step) {
        const unsigned row = (unsigned)(i / pieces), column = (unsigned)(i % pieces * 4);
        const __half *from = x + row * cols + column;
        const __half values[4] = {from[0], from[1], from[2], from[3]};
        product_put_columns(tile, form.bits, form.rows, row, column, values);
    }
}

/* ---- reference --------------------------------------------------------------------------------
 */

__device__ static double measure_weight(const ingot_weight_view &w, uint64_t row, uint64_t k) {
    if (w.kind == INGOT_DENSE) {
        return (double)cuda_float_at(w.data, w.dtype, row * w.cols + k);
    }
    const uint64_t bit = k * w.bits, group = row * w.groups_per_row + k / w.group;
    const uint8_t *at = w.codes + row * w.row_stride_bytes + bit / 8;
    const unsigned high = bit % 8 + w.bits > 8 ? at[1] : 0u;
    const int code = (int)((at[0] | high << 8) >> (bit % 8)) & ((1 << w.bits) - 1);
    const int zero = w.zeros != nullptr ? w.zeros[group] : 1 << (w.bits - 1);
    return (double)cuda_float_at(w.scales, w.scale_dtype, group) * (code - zero);
}

/* A warp per row of W; sums[0] += (y - y')^2 and sums[1] += y'^2 of its row, in order. */
template <typename T>
__global__ __launch_bounds__(THREADS) static void measure_error_kernel(double *sums,
                                                                       const ingot_weight_view w,
                                                                       const T *x, const float *y,
                                                                       uint64_t m) {
    const uint64_t row = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32;
    if (row >= w.rows) {
        return;
    }
    double error = 0.0, size = 0.0;
    for (uint64_t i = 0; i < m; i++) {
        double sum = 0.0;
        for (uint64_t k = threadIdx.x % 32; k < w.cols; k += 32) {
            sum += measure_weight(w, row, k) * (double)to_float(x[i * w.cols + k]);
        }
        for (int other = 16; other > 0; other /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, other);
        }
        const double off = (double)y[i * w.rows + row] - sum;
        error += off * off;
        size += sum * sum;
    }
    if (threadIdx.x % 32 == 0) {
        sums[2 * row] = error;
        sums[2 * row + 1] = size;
    }
}

/* ---- timing -----------------------------------------------------------------------------------
 */

/* Times of a call in us: the 10th, 50th and 90th percentile of the replays of a graph of `calls`
 * calls of call(index). */
template <typename Call>
static ingot_status time_calls(const ingot_cuda *cuda, double times_us[3], unsigned calls,
                               const Call &call) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t replay = nullptr;
    cudaEvent_t begin = nullptr, end = nullptr;
    float times[REPLAYS];
    ingot_status status =
        ingot_cuda_status(cudaStreamBeginCapture(cuda->stream, cudaStreamCaptureModeThreadLocal));
    for (unsigned i = 0; i < calls && status == INGOT_OK; i++) {
        status = call(i);
    }
    const ingot_status captured = ingot_cuda_status(cudaStreamEndCapture(cuda->stream, &graph));
    status = status == INGOT_OK ? captured : status;
    INGOT_TRY(status);
    status = ingot_cuda_status(cudaGraphInstantiate(&replay, graph, 0));
    (void)cudaGraphDestroy(graph);
    INGOT_TRY(status);
    status = cudaEventCreate(&begin) == cudaSuccess && cudaEventCreate(&end) == cudaSuccess
                 ? INGOT_OK
                 : INGOT_ERR_DEVICE;
    for (int i = -2; i < REPLAYS && status == INGOT_OK; i++) { /* two to warm up */
        const bool is_done = cudaEventRecord(begin, cuda->stream) == cudaSuccess &&
                             cudaGraphLaunch(replay, cuda->stream) == cudaSuccess &&
                             cudaEventRecord(end, cuda->stream) == cudaSuccess &&
                             cudaEventSynchronize(end) == cudaSuccess &&
                             cudaEventElapsedTime(&times[i < 0 ? 0 : i], begin, end) == cudaSuccess;
        status = is_done ? INGOT_OK : INGOT_ERR_DEVICE;
    }
    (void)cudaEventDestroy(begin);
    (void)cudaEventDestroy(end);
    (void)cudaGraphExecDestroy(replay);
    INGOT_TRY(status);
    std::sort(times, times + REPLAYS);
    const int at[3] = {REPLAYS / 10, REPLAYS / 2, REPLAYS - 1 - REPLAYS / 10};
    for (int i = 0; i < 3; i++) {
        times_us[i] = 1e3 * (double)times[at[i]] / calls;
    }
    return INGOT_OK;
}

/* ---- what the memory delivers -----------------------------------------------------------------
 */

__global__ __launch_bounds__(512) static void measure_read_kernel(const uint4 *in, uint64_t count,
                                                                  unsigned *out) {
    const uint64_t step = (uint64_t)gridDim.x * 512;
    uint64_t i = (uint64_t)blockIdx.x * 512 + threadIdx.x;
    unsigned mix = 0;
    for (; i + 3 * step < count; i += 4 * step) {
        const uint4 a = in[i], b = in[i + step], c = in[i + 2 * step], d = in[i + 3 * step];
        mix ^= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
        mix ^= c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < count; i += step) {
        mix ^= in[i].x;
    }
    if (mix == 0x9E3779B9u) { /* almost never: keeps the reads */
        *out = mix;
    }
}

ingot_status cuda_measure_read(void *context, double *bytes_per_second) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    ingot_cuda_buffer memory(cuda);
    INGOT_TRY(memory.alloc(READ_BYTES, 1));
    unsigned *out = memory.as<unsigned>();
    measure_fill_kernel<<<cuda_blocks(cuda, READ_BYTES / 8, THREADS), THREADS, 0, cuda->stream>>>(
        memory.as<uint64_t>(), READ_BYTES / 8, 1, UINT64_MAX, 0);
    INGOT_TRY(ingot_cuda_launched());
    *bytes_per_second = 0.0;
    for (unsigned blocks = 2; blocks <= 16; blocks *= 2) {
        double times[3];
        INGOT_TRY(time_calls(cuda, times, 2, [&](unsigned) {
            measure_read_kernel<<<blocks *(unsigned)cuda->multiprocessors, 512, 0, cuda->stream>>>(
                memory.as<uint4>(), READ_BYTES / 16, out);
            return ingot_cuda_launched();
        }));
        *bytes_per_second = std::max(*bytes_per_second, (double)READ_BYTES / times[1] * 1e6);
    }
    return INGOT_OK;
}

/* ---- products ---------------------------------------------------------------------------------
 */

typedef struct weight_copies {
    ingot_weight_view view;                              /* the first */
    uint64_t count, code_bytes, scale_bytes, zero_bytes; /* of each */
} weight_copies;

static ingot_weight_view copy_at(const weight_copies *copies, uint64_t index) {
    ingot_weight_view view = copies->view;
    index %= copies->count;
    if (view.kind == INGOT_DENSE) {
        view.data = static_cast<const uint8_t *>(view.data) + index * copies->code_bytes;
        return view;
    }
    view.codes += index * copies->code_bytes;
    view.scales = static_cast<const uint8_t *>(view.scales) + index * copies->scale_bytes;
    view.zeros = view.zeros != nullptr ? view.zeros + index * copies->zero_bytes : nullptr;
    return view;
}

static uint64_t aligned(uint64_t bytes) {
    return (bytes + 255) / 256 * 256;
}

static ingot_status fill(const ingot_cuda *cuda, void *out, uint64_t bytes, uint64_t seed,
                         uint64_t keep, uint64_t set) {
    measure_fill_kernel<<<cuda_blocks(cuda, bytes / 8, THREADS), THREADS, 0, cuda->stream>>>(
        static_cast<uint64_t *>(out), bytes / 8, seed, keep, set);
    return ingot_cuda_launched();
}

static ingot_status make_dense(const ingot_cuda *cuda, weight_copies *out,
                               ingot_cuda_buffer *memory, const ingot_measure_shape *shape,
                               uint64_t seed) {
    *out = {};
    out->view.kind = INGOT_DENSE;
    out->view.dtype = INGOT_BF16;
    out->view.rows = shape->rows;
    out->view.cols = shape->cols;
    out->code_bytes = aligned(shape->rows * shape->cols * 2);
    out->count = ingot_max_u64(2, ingot_ceil_div(ROTATE_BYTES, out->code_bytes));
    INGOT_TRY(memory->alloc(out->count, out->code_bytes));
    __nv_bfloat16 *data = memory->as<__nv_bfloat16>();
    const uint64_t count = out->count * out->code_bytes / 2;
    out->view.data = data;
    measure_floats_kernel<<<cuda_blocks(cuda, count, THREADS), THREADS, 0, cuda->stream>>>(
        data, count, seed, 0.05f);
    return ingot_cuda_launched();
}

/* Random codes, scales of either sign around 2^-7, zero points of the width. */
static ingot_status make_copies(const ingot_cuda *cuda, weight_copies *out,
                                ingot_cuda_buffer *memory, const ingot_measure_shape *shape,
                                uint64_t seed) {
    ingot_weight_view *view = &out->view;
    *out = {};
    view->kind = INGOT_GROUPED;
    view->rows = shape->rows;
    view->cols = shape->cols;
    view->dtype = view->scale_dtype = INGOT_F16;
    view->bits = shape->bits;
    view->zero_mode = shape->has_zeros ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC;
    view->group = ingot_min_u64(shape->group, shape->cols);
    view->groups_per_row = ingot_ceil_div(shape->cols, view->group);
    view->row_stride_bytes = (shape->cols * shape->bits + 127) / 128 * 16;
    out->code_bytes = aligned(view->rows * view->row_stride_bytes);
    out->scale_bytes = aligned(view->rows * view->groups_per_row * 2);
    out->zero_bytes = shape->has_zeros ? aligned(view->rows * view->groups_per_row) : 0;
    const uint64_t each = out->code_bytes + out->scale_bytes + out->zero_bytes;
    out->count = ingot_max_u64(2, ingot_ceil_div(ROTATE_BYTES, each));
    INGOT_TRY(memory->alloc(out->count, each));
    uint8_t *codes = memory->as<uint8_t>();
    uint8_t *scales = codes + out->count * out->code_bytes;
    uint8_t *zeros = scales + out->count * out->scale_bytes;
    view->codes = codes;
    view->scales = scales;
    view->zeros = shape->has_zeros ? zeros : nullptr;
    INGOT_TRY(fill(cuda, codes, out->count * out->code_bytes, seed, UINT64_MAX, 0));
    INGOT_TRY(fill(cuda, scales, out->count * out->scale_bytes, seed + 1, 0x83ff83ff83ff83ffu,
                   0x2000200020002000u));
    const uint64_t most = (1u << shape->bits) - 1;
    return fill(cuda, zeros, out->count * out->zero_bytes, seed + 2, most * 0x0101010101010101u, 0);
}

template <typename T>
static ingot_status measure_error(const ingot_cuda *cuda, double *error, const ingot_product *job,
                                  const void *x) {
    const ingot_weight_view *w = job->w;
    ingot_cuda_buffer sums(cuda);
    void *host = nullptr;
    INGOT_TRY(sums.alloc(w->rows, 2 * sizeof(double)));
    measure_error_kernel<T>
        <<<(unsigned)ingot_ceil_div(w->rows * 32, THREADS), THREADS, 0, cuda->stream>>>(
            sums.as<double>(), *w, static_cast<const T *>(x), static_cast<const float *>(job->y),
            job->m);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(ingot_alloc(&host, w->rows * 2 * sizeof(double)));
    double *parts = static_cast<double *>(host);
    ingot_status status =
        ingot_cuda_status(cudaMemcpyAsync(parts, sums.as<double>(), w->rows * 2 * sizeof(double),
                                          cudaMemcpyDeviceToHost, cuda->stream));
    if (status == INGOT_OK) {
        status = ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
    }
    double off = 0.0, size = 0.0;
    for (uint64_t i = 0; i < w->rows && status == INGOT_OK; i++) {
        off += parts[2 * i];
        size += parts[2 * i + 1];
    }
    *error = std::sqrt(off / size);
    ingot_free(host);
    return status;
}

static ingot_status measure_cublas(const ingot_cuda *cuda, double *median_us,
                                   const ingot_measure_shape *shape, const void *x, float *y) {
    const uint64_t count = shape->rows * shape->cols;
    const uint64_t copies = ingot_max_u64(2, ingot_ceil_div(ROTATE_BYTES, count * 2));
    ingot_cuda_buffer memory(cuda);
    double times[3];
    INGOT_TRY(memory.alloc(copies * count, 2));
    const __nv_bfloat16 *weights = memory.as<__nv_bfloat16>();
    measure_floats_kernel<<<cuda_blocks(cuda, copies * count, THREADS), THREADS, 0, cuda->stream>>>(
        memory.as<__nv_bfloat16>(), copies * count, 7, 0.05f);
    INGOT_TRY(ingot_cuda_launched());
    const float alpha = 1.0f, beta = 0.0f;
    const unsigned calls = (unsigned)ingot_max_u64(LEAST_CALLS, copies);
    INGOT_TRY(time_calls(cuda, times, calls, [&](unsigned i) {
        return ingot_cublas_status(cublasGemmEx_64(
            cuda->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int64_t)shape->rows, (int64_t)shape->m,
            (int64_t)shape->cols, &alpha, weights + i % copies * count, CUDA_R_16BF,
            (int64_t)shape->cols, x, CUDA_R_16BF, (int64_t)shape->cols, &beta, y, CUDA_R_32F,
            (int64_t)shape->rows, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    }));
    *median_us = times[1];
    return INGOT_OK;
}

static ingot_status fill_x(const ingot_cuda *cuda, void *x, uint64_t count, ingot_dtype dtype,
                           uint64_t seed) {
    const unsigned grid = cuda_blocks(cuda, count, THREADS);
    if (dtype == INGOT_F16) {
        measure_floats_kernel<<<grid, THREADS, 0, cuda->stream>>>(static_cast<__half *>(x), count,
                                                                  seed, 1.7f);
    } else {
        measure_floats_kernel<<<grid, THREADS, 0, cuda->stream>>>(static_cast<__nv_bfloat16 *>(x),
                                                                  count, seed, 1.7f);
    }
    return ingot_cuda_launched();
}

/* x: rows, also where the job has them in another form. */
static ingot_status measure_ours(ingot_cuda *cuda, ingot_measured *out, const ingot_product *job,
                                 const void *x, const weight_copies *copies) {
    double times[3];
    ingot_product call = *job;
    const uint64_t y_bytes = job->m * job->w->rows * sizeof(float);
    INGOT_TRY(ingot_cuda_status(cudaMemsetAsync(job->y, 0xff, y_bytes, cuda->stream)));
    INGOT_TRY(cuda_product(cuda, job));
    INGOT_TRY(job->dtype == INGOT_F16 ? measure_error<__half>(cuda, &out->error, job, x)
                                      : measure_error<__nv_bfloat16>(cuda, &out->error, job, x));
    const unsigned calls = (unsigned)ingot_max_u64(LEAST_CALLS, copies->count);
    call.is_chained = true;
    INGOT_TRY(time_calls(cuda, times, calls, [&](unsigned i) {
        const ingot_weight_view view = copy_at(copies, i);
        call.w = &view;
        return cuda_product(cuda, &call);
    }));
    out->low_us = times[0], out->median_us = times[1], out->high_us = times[2];
    return INGOT_OK;
}

ingot_status cuda_measure_product(void *context, ingot_measured *out,
                                  const ingot_measure_shape *shape, uint64_t seed) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    ingot_cuda_buffer x(cuda), tile(cuda), y(cuda), workspace(cuda);
    weight_copies copies;
    *out = {};
    INGOT_TRY(x.alloc(shape->m * shape->cols, 2));
    INGOT_TRY(y.alloc(shape->m * shape->rows, sizeof(float)));
    INGOT_TRY(fill_x(cuda, x.as<void>(), shape->m * shape->cols, shape->dtype, seed + 3));
    {
        ingot_cuda_buffer memory(cuda);
        INGOT_TRY(shape->bits == 16 ? make_dense(cuda, &copies, &memory, shape, seed)
                                    : make_copies(cuda, &copies, &memory, shape, seed));
        ingot_product job = {};
        job.m = shape->m;
        job.w = &copies.view;
        job.x = x.as<void>();
        job.x_dtype = job.dtype = shape->dtype;
        job.y = y.as<void>();
        job.y_dtype = INGOT_F32;
        if (shape->is_handed) {
            job.x_form = cuda_product_takes(cuda, &job);
            if (job.x_form.rows == 0) {
                return INGOT_OK;
            }
            INGOT_TRY(tile.alloc(job.x_form.rows * shape->cols, sizeof(__half)));
            job.x = tile.as<void>();
            measure_tile_kernel<<<cuda_blocks(cuda, shape->m * shape->cols, THREADS), THREADS, 0,
                                  cuda->stream>>>(tile.as<__half>(), x.as<__half>(), shape->m,
                                                  shape->cols, job.x_form);
            INGOT_TRY(ingot_cuda_launched());
        }
        INGOT_TRY(workspace.alloc(cuda_product_workspace_bytes(cuda, &job), 1));
        job.workspace = workspace.as<void>();
        INGOT_TRY(measure_ours(cuda, out, &job, x.as<void>(), &copies));
        out->is_measured = true;
    }
    const ingot_weight_view *w = &copies.view;
    out->bytes = w->kind == INGOT_DENSE
                     ? w->rows * w->cols * 2
                     : w->rows * w->row_stride_bytes +
                           w->rows * w->groups_per_row * (shape->has_zeros ? 3 : 2);
    INGOT_TRY(fill_x(cuda, x.as<void>(), shape->m * shape->cols, INGOT_BF16, seed + 3));
    return measure_cublas(cuda, &out->cublas_us, shape, x.as<void>(), y.as<float>());
}
