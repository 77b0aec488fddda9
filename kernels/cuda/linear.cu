/* y = x W^T + bias.
 *
 * Many rows of x: the weights are unpacked to binary16, a bounded piece of rows at a time, and
 * cuBLAS multiplies them with the binary16 copy of x (half.cu) on tensor cores, FP32 sums and
 * results.  What was divided by powers of two on the way is put right by alpha, which never leaves
 * the device.  The bias is there first and the product is added to it.
 *
 * Few rows: a warp per row of W unpacks in registers and multiplies in FP32. */
#include "kernels/cuda/forward.h"
#include "kernels/cuda/weights.h"

#define THREADS     256
#define PIECE_BYTES (UINT64_C(256) << 20) /* of unpacked weights at once: 32768 x 4096 */

/* ---- unpacking to binary16 --------------------------------------------------------------------
 */

typedef struct unpack_job {
    __half *out; /* [rows][stride] */
    ingot_weight_view w;
    uint64_t first, rows; /* of w */
    uint64_t stride;      /* columns behind those of w are zero */
    ingot_cuda_scalars *scalars;
    bool is_repair; /* see half.cu: the second pass scales where the first found reason to */
} unpack_job;

/* The exponent of two that this pass divides by; false when there is nothing to do. */
__device__ static bool unpack_exponent(const unpack_job &job, int *exponent) {
    *exponent = CUDA_WEIGHT_USUAL;
    if (job.is_repair) {
        *exponent = cuda_half_exponent(job.scalars->weights.largest, CUDA_WEIGHT_USUAL);
    }
    return !job.is_repair || *exponent != CUDA_WEIGHT_USUAL;
}

template <int KIND>
__global__ __launch_bounds__(THREADS) static void linear_unpack_kernel(const unpack_job job) {
    int exponent;
    const bool has_work = unpack_exponent(job, &exponent);
    if (job.is_repair && blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
        job.scalars->alpha = ldexpf(job.scalars->unscale, exponent); /* for the product to come */
    }
    if (!has_work) {
        return;
    }
    const float factor = cuda_power_of_two(-exponent);
    ingot_cuda_range range = {0, 0};
    const uint64_t step = (uint64_t)gridDim.x * THREADS * 8;
    const uint64_t begin = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) * 8;
    for (uint64_t row = blockIdx.y; row < job.rows; row += gridDim.y) {
        for (uint64_t col = begin; col < job.stride; col += step) {
            float v[8];
            alignas(16) __half halves[8];
            cuda_load_weights<KIND>(v, job.w, job.first + row, col);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                cuda_range_add(&range, v[i]);
                halves[i] = __float2half_rn(v[i] * factor);
            }
            *reinterpret_cast<int4 *>(job.out + row * job.stride + col) =
                *reinterpret_cast<const int4 *>(halves);
        }
    }
    if (!job.is_repair) {
        cuda_range_store(&job.scalars->weights, range);
    }
}

/* One warp puts the outliers of one row in their places. */
__global__ __launch_bounds__(THREADS) static void linear_outliers_kernel(const unpack_job job) {
    int exponent;
    if (!unpack_exponent(job, &exponent)) {
        return;
    }
    const float factor = cuda_power_of_two(-exponent);
    ingot_cuda_range range = {0, 0};
    const uint64_t warps = (uint64_t)gridDim.x * (THREADS / 32);
    for (uint64_t row = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32; row < job.rows;
         row += warps) {
        const uint64_t *ends = job.w.outlier_row_ptr + job.first + row;
        for (uint64_t k = ends[0] + threadIdx.x % 32; k < ends[1]; k += 32) {
            const float value = cuda_float_at(job.w.outlier_val, job.w.dtype, k);
            cuda_range_add(&range, value);
            job.out[row * job.stride + job.w.outlier_col[k]] = __float2half_rn(value * factor);
        }
    }
    if (!job.is_repair) {
        __syncwarp();
        cuda_range_store(&job.scalars->weights, range);
    }
}

template <int KIND> static ingot_status launch_unpack(const ingot_cuda *cuda, unpack_job job) {
    const uint64_t blocks = 16u * (uint64_t)cuda->multiprocessors;
    const uint64_t wide = ingot_ceil_div(job.stride, THREADS * 8);
    const uint64_t high = ingot_min_u64(ingot_min_u64(job.rows, 65535),
                                        ingot_max_u64(ingot_ceil_div(blocks, wide), 1));
    const dim3 grid((unsigned)wide, (unsigned)high);
    const unsigned outlier_grid =
        (unsigned)ingot_min_u64(ingot_ceil_div(job.rows * 32, THREADS), blocks);
    const bool has_outliers = KIND > CUDA_WEIGHTS_GROUPED && job.w.outlier_count != 0;
    INGOT_TRY(ingot_cuda_status(
        cudaMemsetAsync(&cuda->scalars->weights, 0, sizeof(ingot_cuda_range), cuda->stream)));
    for (int pass = 0; pass < 2; pass++) {
        job.is_repair = pass == 1;
        linear_unpack_kernel<KIND><<<grid, THREADS, 0, cuda->stream>>>(job);
        INGOT_TRY(ingot_cuda_launched());
        if (has_outliers) {
            linear_outliers_kernel<<<outlier_grid, THREADS, 0, cuda->stream>>>(job);
            INGOT_TRY(ingot_cuda_launched());
        }
    }
    return INGOT_OK;
}

ingot_status cuda_unpack_half(const ingot_cuda *cuda, __half *out, const ingot_weight_view *w,
                              uint64_t first, uint64_t rows, uint64_t stride) {
    const unpack_job job = {out, *w, first, rows, stride, cuda->scalars, false};
    ingot_status status;
    CUDA_FOR_WEIGHT_KIND(status, w, launch_unpack, cuda, job);
    return status;
}

/* ---- many rows --------------------------------------------------------------------------------
 */

/* y[m][rows] = bias[rows], or zero. */
__global__ __launch_bounds__(THREADS) static void linear_bias_kernel(float *__restrict__ y,
                                                                     const float *__restrict__ bias,
                                                                     uint64_t m, uint64_t rows) {
    const uint64_t col = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    if (col >= rows) {
        return;
    }
    const float value = bias != nullptr ? bias[col] : 0.0f;
    for (uint64_t i = blockIdx.y; i < m; i += gridDim.y) {
        y[i * rows + col] = value;
    }
}

static ingot_status fill_bias(const ingot_cuda *cuda, float *y, const float *bias, uint64_t m,
                              uint64_t rows) {
    const dim3 grid((unsigned)ingot_ceil_div(rows, THREADS), (unsigned)ingot_min_u64(m, 1024));
    linear_bias_kernel<<<grid, THREADS, 0, cuda->stream>>>(y, bias, m, rows);
    return ingot_cuda_launched();
}

/* y[m][first .. first + rows - 1] (+)= alpha x w[rows][k]^T: the columns of y are what cuBLAS,
 * which counts the other way round, calls rows. */
static ingot_status multiply(const ingot_cuda *cuda, float *y, uint64_t y_stride,
                             const __half *weights, const cuda_half_copy *x, const float *alpha,
                             bool adds, uint64_t m, uint64_t rows) {
    const cuda_half_gemm product = {
        .is_a_transposed = true,
        .is_b_transposed = false,
        .rows = rows,
        .columns = m,
        .depth = x->stride,
        .a = weights,
        .a_stride = x->stride,
        .b = x->values,
        .b_stride = x->stride,
        .alpha = alpha,
        .adds = adds,
        .c = y,
        .c_stride = y_stride,
    };
    return cuda_half_multiply(cuda, &product);
}

static ingot_status linear_many(ingot_cuda *cuda, float *y, const ingot_weight_view *w,
                                const float *bias, const float *x, uint64_t m) {
    cuda_half_copy copy;
    INGOT_TRY(cuda_half_of(cuda, &copy, x, m, w->cols));
    if (bias != nullptr) {
        INGOT_TRY(fill_bias(cuda, y, bias, m, w->rows));
    }
    const bool is_ready = w->kind == INGOT_DENSE && w->dtype == INGOT_F16 && w->cols % 8 == 0 &&
                          cuda_is_aligned(static_cast<const __half *>(w->data));
    if (is_ready) {
        return multiply(cuda, y, w->rows, static_cast<const __half *>(w->data), &copy, copy.unscale,
                        bias != nullptr, m, w->rows);
    }
    const uint64_t row_bytes = copy.stride * sizeof(__half);
    const uint64_t most = ingot_max_u64(PIECE_BYTES / row_bytes, 1);
    const uint64_t count = ingot_ceil_div(w->rows, most);
    const uint64_t piece = (ingot_ceil_div(w->rows, count) + 255) / 256 * 256;
    ingot_cuda_buffer memory(cuda);
    INGOT_TRY(memory.alloc(ingot_min_u64(piece, w->rows), row_bytes));
    for (uint64_t first = 0; first < w->rows; first += piece) {
        const uint64_t rows = ingot_min_u64(piece, w->rows - first);
        INGOT_TRY(cuda_unpack_half(cuda, memory.as<__half>(), w, first, rows, copy.stride));
        INGOT_TRY(multiply(cuda, y + first, w->rows, memory.as<__half>(), &copy,
                           &cuda->scalars->alpha, bias != nullptr, m, rows));
    }
    return INGOT_OK;
}

/* ---- few rows ---------------------------------------------------------------------------------
 */

typedef struct gemv_job {
    float *y;
    ingot_weight_view w;
    const float *bias, *x;
    unsigned m;
    bool is_vector; /* rows of x start at 16 bytes */
} gemv_job;

template <int ROWS>
__device__ static void gemv_add(float (&sums)[ROWS], const gemv_job &job, const float (&v)[8],
                                uint64_t col) {
    const bool is_whole = job.is_vector && col + 8 <= job.w.cols;
#pragma unroll
    for (int i = 0; i < ROWS; i++) {
        if (ROWS > 1 && i >= job.m) {
            break;
        }
        const float *x = job.x + i * job.w.cols + col;
        if (is_whole) {
            const float4 low = reinterpret_cast<const float4 *>(x)[0];
            const float4 high = reinterpret_cast<const float4 *>(x)[1];
            sums[i] = fmaf(v[0], low.x, sums[i]);
            sums[i] = fmaf(v[1], low.y, sums[i]);
            sums[i] = fmaf(v[2], low.z, sums[i]);
            sums[i] = fmaf(v[3], low.w, sums[i]);
            sums[i] = fmaf(v[4], high.x, sums[i]);
            sums[i] = fmaf(v[5], high.y, sums[i]);
            sums[i] = fmaf(v[6], high.z, sums[i]);
            sums[i] = fmaf(v[7], high.w, sums[i]);
        } else {
#pragma unroll
            for (int j = 0; j < 8; j++) {
                sums[i] = col + j < job.w.cols ? fmaf(v[j], x[j], sums[i]) : sums[i];
            }
        }
    }
}

/* One warp per row of W; a lane takes every 32nd piece of eight columns. */
template <int KIND, int ROWS>
__global__ __launch_bounds__(THREADS) static void linear_gemv_kernel(const gemv_job job) {
    const unsigned lane = threadIdx.x % 32;
    const uint64_t warps = (uint64_t)gridDim.x * (THREADS / 32);
    for (uint64_t row = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32; row < job.w.rows;
         row += warps) {
        float sums[ROWS] = {};
        float v[8];
        for (uint64_t col = lane * 8; col < job.w.cols; col += 256) {
            cuda_load_weights<KIND>(v, job.w, row, col);
            gemv_add<ROWS>(sums, job, v, col);
        }
        if (KIND > CUDA_WEIGHTS_GROUPED && job.w.outlier_count != 0) {
            const uint64_t end = job.w.outlier_row_ptr[row + 1];
            for (uint64_t k = job.w.outlier_row_ptr[row] + lane; k < end; k += 32) {
                const uint64_t col = job.w.outlier_col[k];
                cuda_load_weights<KIND>(v, job.w, row, col / 8 * 8);
                float more = cuda_float_at(job.w.outlier_val, job.w.dtype, k);
#pragma unroll
                for (int j = 0; j < 8; j++) { /* what the code stands for gives way */
                    more -= j == col % 8 ? v[j] : 0.0f;
                }
#pragma unroll
                for (int i = 0; i < ROWS; i++) {
                    if (i < job.m) {
                        sums[i] = fmaf(more, job.x[i * job.w.cols + col], sums[i]);
                    }
                }
            }
        }
        const float bias = job.bias != nullptr ? job.bias[row] : 0.0f;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < ROWS; i++) {
#pragma unroll
            for (int other = 16; other > 0; other /= 2) {
                sums[i] += __shfl_xor_sync(0xffffffffu, sums[i], other);
            }
            if (lane == 0 && i < job.m) {
                job.y[i * job.w.rows + row] = sums[i] + bias;
            }
        }
    }
}

template <int KIND> static ingot_status launch_gemv(const ingot_cuda *cuda, const gemv_job &job) {
    const unsigned grid = (unsigned)ingot_min_u64(ingot_ceil_div(job.w.rows, THREADS / 32),
                                                  64u * (uint64_t)cuda->multiprocessors);
    if (job.m == 1) {
        linear_gemv_kernel<KIND, 1><<<grid, THREADS, 0, cuda->stream>>>(job);
    } else if (job.m <= 4) {
        linear_gemv_kernel<KIND, 4><<<grid, THREADS, 0, cuda->stream>>>(job);
    } else {
        linear_gemv_kernel<KIND, CUDA_PRODUCT_ROWS><<<grid, THREADS, 0, cuda->stream>>>(job);
    }
    return ingot_cuda_launched();
}

ingot_status cuda_linear(void *context, float *y, const ingot_weight_view *w, const float *bias,
                         const float *x, uint64_t m) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (cuda_weight_kind(w) < 0 || w->cols > UINT32_MAX || w->rows > UINT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    if (m == 0 || w->rows == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, y, m * w->rows * sizeof *y);
    if (w->cols == 0) {
        return fill_bias(cuda, y, bias, m, w->rows);
    }
    if (m >= CUDA_PRODUCT_ROWS) {
        return linear_many(cuda, y, w, bias, x, m);
    }
    const gemv_job job = {y, *w, bias, x, (unsigned)m, w->cols % 4 == 0 && cuda_is_aligned(x)};
    ingot_status status;
    CUDA_FOR_WEIGHT_KIND(status, w, launch_gemv, cuda, job);
    return status;
}
