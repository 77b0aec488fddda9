/* cuda_product: x is normalised and rounded, outliers are multiplied, and a kernel for the shape is
 * chosen.  The kernel of this file reads weights of every kind, slowly: a warp per row of W. */
#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/weights.h"

#define THREADS    256
#define PLAIN_ROWS 4u /* rows of x that a pass over W serves */

/* ---- x in 16 bits -----------------------------------------------------------------------------
 */

typedef struct input_job {
    void *out;       /* [m][stride] */
    uint64_t stride; /* columns behind `cols` become zero */
    const void *x;
    uint64_t m, cols;
    ingot_dtype x_dtype;
    const float *norm_weight, *norm_bias;
    ingot_norm_kind norm_kind;
    float norm_eps;
} input_job;

/* The sum over a block, in every thread; the same order for all. */
__device__ static float block_sum(float value) {
    __shared__ float parts[THREADS / 32];
    for (int lane = 16; lane > 0; lane /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, lane);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = value;
    }
    __syncthreads();
    float sum = 0.0f;
    for (int i = 0; i < THREADS / 32; i++) {
        sum += parts[i];
    }
    return sum;
}

/* A block per row. */
template <typename T>
__global__ __launch_bounds__(THREADS) static void product_input_kernel(const input_job job) {
    product_let_next_start();
    product_wait();
    const uint64_t row = blockIdx.x, first = row * job.cols;
    T *out = static_cast<T *>(job.out) + row * job.stride;
    const bool is_layer = job.norm_kind == INGOT_NORM_LAYER;
    float mean = 0.0f, factor = 1.0f;
    if (job.norm_weight != nullptr) {
        float sum = 0.0f;
        for (uint64_t k = threadIdx.x; is_layer && k < job.cols; k += THREADS) {
            sum += cuda_float_at(job.x, job.x_dtype, first + k);
        }
        mean = is_layer ? block_sum(sum) / (float)job.cols : 0.0f;
        sum = 0.0f;
        for (uint64_t k = threadIdx.x; k < job.cols; k += THREADS) {
            const float v = cuda_float_at(job.x, job.x_dtype, first + k) - mean;
            sum = fmaf(v, v, sum);
        }
        factor = rsqrtf(block_sum(sum) / (float)job.cols + job.norm_eps);
    }
    for (uint64_t k = threadIdx.x; k < job.stride; k += THREADS) {
        float v = 0.0f;
        if (k < job.cols) {
            v = (cuda_float_at(job.x, job.x_dtype, first + k) - mean) * factor;
            if (job.norm_weight != nullptr) {
                v *= job.norm_weight[k] + (job.norm_kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0f : 0.0f);
                v += is_layer && job.norm_bias != nullptr ? job.norm_bias[k] : 0.0f;
            }
        }
        out[k] = from_float<T>(v);
    }
}

/* Whether kernels can read x as it is. */
static bool is_input_ready(const ingot_product *job) {
    return job->x_dtype == job->dtype && job->norm_weight == nullptr && job->w->cols % 8 == 0 &&
           (reinterpret_cast<uintptr_t>(job->x) & 15) == 0;
}

/* ---- any weights ------------------------------------------------------------------------------
 */

/* sums[i] += columns col .. col + 7 of a row of W times those of row i of x. */
template <typename T>
__device__ static void plain_add(float (&sums)[PLAIN_ROWS], const float (&v)[8], const T *x,
                                 uint64_t stride, unsigned m) {
#pragma unroll
    for (unsigned i = 0; i < PLAIN_ROWS; i++) {
        if (i < m) {
            alignas(16) T values[8];
            *reinterpret_cast<int4 *>(values) = *reinterpret_cast<const int4 *>(x + i * stride);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                sums[i] = fmaf(v[j], to_float(values[j]), sums[i]);
            }
        }
    }
}

template <int KIND, typename T>
__device__ static void plain_row(float (&sums)[PLAIN_ROWS], const product_task &task,
                                 const ingot_weight_view &w, uint64_t row, const T *x, unsigned m) {
    const unsigned lane = threadIdx.x % 32;
    for (uint64_t col = lane * 8; col < w.cols; col += 256) {
        float v[8];
        cuda_load_weights<KIND>(v, w, row, col);
        plain_add(sums, v, x + col, task.x_stride, m);
    }
    if (KIND > CUDA_WEIGHTS_GROUPED && w.outlier_count != 0) {
        const uint64_t end = w.outlier_row_ptr[row + 1]; /* the code under it stands for zero */
        for (uint64_t k = w.outlier_row_ptr[row] + lane; k < end; k += 32) {
            const float value = cuda_float_at(w.outlier_val, w.dtype, k);
            const T *at = x + w.outlier_col[k];
#pragma unroll
            for (unsigned i = 0; i < PLAIN_ROWS; i++) {
                sums[i] = i < m ? fmaf(value, to_float(at[i * task.x_stride]), sums[i]) : sums[i];
            }
        }
    }
    __syncwarp();
#pragma unroll
    for (unsigned i = 0; i < PLAIN_ROWS; i++) {
        for (int other = 16; other > 0; other /= 2) {
            sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], other);
        }
    }
}

/* KIND is that of W and of U. */
template <int KIND, typename T>
__global__ __launch_bounds__(THREADS) static void product_plain_kernel(const product_task task) {
    product_let_next_start();
    product_wait();
    const uint64_t warps = (uint64_t)gridDim.x * (THREADS / 32);
    const uint64_t first = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32;
    for (uint64_t row = first; row < task.w[0].rows; row += warps) {
        for (uint64_t i = 0; i < task.m; i += PLAIN_ROWS) {
            float sums[2][PLAIN_ROWS] = {};
            const T *x = static_cast<const T *>(task.x) + i * task.x_stride;
            const unsigned m = (unsigned)min(task.m - i, (uint64_t)PLAIN_ROWS);
            plain_row<KIND, T>(sums[0], task, task.w[0], row, x, m);
            if (task.has_up) {
                plain_row<KIND, T>(sums[1], task, task.w[1], row, x, m);
            }
#pragma unroll
            for (unsigned j = 0; j < PLAIN_ROWS; j++) {
                if (j < m && threadIdx.x % 32 == j) {
                    product_store(task, i + j, row, sums[0][j], sums[1][j]);
                }
            }
        }
    }
}

template <int KIND>
static ingot_status launch_plain(const ingot_cuda *cuda, const product_task &task,
                                 ingot_dtype dtype, cudaStream_t stream, bool is_chained) {
    const unsigned grid = (unsigned)ingot_min_u64(ingot_ceil_div(task.w[0].rows, THREADS / 32),
                                                  64u * (uint64_t)cuda->multiprocessors);
    return dtype == INGOT_F16 ? product_launch(product_plain_kernel<KIND, __half>, dim3(grid),
                                               THREADS, 0, stream, is_chained, task)
                              : product_launch(product_plain_kernel<KIND, __nv_bfloat16>,
                                               dim3(grid), THREADS, 0, stream, is_chained, task);
}

/* ---- the product ------------------------------------------------------------------------------
 */

static uint64_t input_stride(const ingot_product *job) {
    return (job->w->cols + 255) / 256 * 256;
}

extern "C" uint64_t cuda_product_workspace_bytes(void *context, const ingot_product *job) {
    (void)context;
    return (job->m * input_stride(job) * 2 + 255) / 256 * 256;
}

/* task->x from job->x; *is_chained becomes whether a kernel of ours went before. */
static ingot_status make_input(product_task *task, const ingot_product *job, cudaStream_t stream,
                               bool *is_chained) {
    task->x = job->x;
    task->x_stride = job->w->cols;
    if (is_input_ready(job)) {
        return INGOT_OK;
    }
    const input_job input = {job->workspace, input_stride(job), job->x,           job->m,
                             job->w->cols,   job->x_dtype,      job->norm_weight, job->norm_bias,
                             job->norm_kind, job->norm_eps};
    task->x = job->workspace;
    task->x_stride = input.stride;
    const dim3 grid((unsigned)job->m);
    INGOT_TRY(job->dtype == INGOT_F16 ? product_launch(product_input_kernel<__half>, grid, THREADS,
                                                       0, stream, *is_chained, input)
                                      : product_launch(product_input_kernel<__nv_bfloat16>, grid,
                                                       THREADS, 0, stream, *is_chained, input));
    *is_chained = true;
    return INGOT_OK;
}

static bool is_supported(const ingot_product *job) {
    const ingot_weight_view *w = job->w, *up = job->up;
    return cuda_weight_kind(w) >= 0 && w->rows <= UINT32_MAX && w->cols <= UINT32_MAX &&
           w->cols != 0 && job->m <= UINT32_MAX &&
           (job->dtype == INGOT_F16 || job->dtype == INGOT_BF16) &&
           (up == nullptr || (job->has_activation && up->rows == w->rows && up->cols == w->cols &&
                              cuda_weight_kind(up) == cuda_weight_kind(w)));
}

extern "C" ingot_status cuda_product(void *context, const ingot_product *job) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const cudaStream_t stream = job->stream != nullptr ? job->stream : cuda->stream;
    if (!is_supported(job)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    if (job->m == 0 || job->w->rows == 0) {
        return INGOT_OK;
    }
    product_task task = {};
    task.w[0] = *job->w;
    task.bias[0] = job->bias;
    task.has_up = job->up != nullptr;
    if (task.has_up) {
        task.w[1] = *job->up;
        task.bias[1] = job->up_bias;
    }
    task.residual = job->residual;
    task.y = job->y;
    task.y_dtype = job->y_dtype;
    task.activation = job->has_activation ? (int)job->activation : -1;
    task.m = job->m;
    bool is_chained = job->is_chained;
    INGOT_TRY(make_input(&task, job, stream, &is_chained));
    ingot_status status;
    CUDA_FOR_WEIGHT_KIND(status, job->w, launch_plain, cuda, task, job->dtype, stream, is_chained);
    return status;
}
