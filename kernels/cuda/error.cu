/* How wrong a quantized matrix is, on the device: against its weights (FP64) and under H.
 *
 * tr(E H E^T) is E H on tensor cores in TF32 and the product with E in FP64.  Rounding E and H to
 * 11 bits changes the loss of a row by about 2^-11 |H|_F |e|^2 / (cols e H e^T), with independent
 * signs: below 1e-3 for a matrix of some rows, far below the differences the loss decides. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/quantize.h"

#include <cmath>

#define THREADS      256
#define WARPS        (THREADS / 32)
#define PIECE_FLOATS (UINT64_C(32) << 20) /* of scratch: rows are taken in pieces of this size */

static uint64_t piece_rows(uint64_t rows, uint64_t cols) {
    return ingot_min_u64(rows, ingot_max_u64(1, PIECE_FLOATS / ingot_max_u64(cols, 1)));
}

__device__ static double warp_sum(double x) {
    for (int lane = 16; lane > 0; lane /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    }
    return x;
}

/* Rows first .. first+rows-1 of a quantized matrix as one of their own (all device memory but for
 * the outliers' number, which only says whether there are any). */
static ingot_quantized rows_of(const ingot_quantized *q, uint64_t first, uint64_t rows) {
    ingot_quantized part = *q;
    part.rows = rows;
    part.codes += first * q->cols;
    part.scales += first * q->groups;
    part.zeros += first * q->groups;
    part.outliers.row_ptr = q->outliers.count != 0 ? q->outliers.row_ptr + first : nullptr;
    return part;
}

/* Host sum of `count` device values, in index order. */
static ingot_status add_up(const ingot_cuda *cuda, double *total, const double *sums,
                           uint64_t count, unsigned stride) {
    void *memory;
    INGOT_TRY(ingot_alloc(&memory, count * stride * sizeof(double)));
    double *host = static_cast<double *>(memory);
    ingot_status status = ingot_cuda_status(cudaMemcpyAsync(
        host, sums, count * stride * sizeof *host, cudaMemcpyDeviceToHost, cuda->stream));
    if (status == INGOT_OK) {
        status = ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
    }
    for (uint64_t i = 0; i < count * stride && status == INGOT_OK; i++) {
        total[i % stride] += host[i];
    }
    ingot_free(memory);
    return status;
}

/* ---- against the weights ----------------------------------------------------------------------
 */

/* sums[row][2] = squares of (W F - stored) and of W F, one warp a row. */
template <typename T>
__global__ static void weight_error_kernel(double *sums, const T *source, const float *row_fold,
                                           const float *column_fold, const float *stored,
                                           uint64_t rows, uint64_t cols) {
    const int lane = threadIdx.x % 32;
    const uint64_t row = (uint64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) {
        return;
    }
    const double fold = row_fold != nullptr ? (double)row_fold[row] : 1.0;
    double difference = 0, norm = 0;
    for (uint64_t i = lane; i < cols; i += 32) {
        double w = (double)to_float(source[row * cols + i]) * fold;
        if (column_fold != nullptr) {
            w *= (double)column_fold[i];
        }
        const double e = w - (double)stored[row * cols + i];
        difference += e * e;
        norm += w * w;
    }
    difference = warp_sum(difference);
    norm = warp_sum(norm);
    if (lane == 0) {
        sums[2 * row] = difference;
        sums[2 * row + 1] = norm;
    }
}

static ingot_status weight_error_rows(const ingot_cuda *cuda, double *sums,
                                      const ingot_weight_view *source, uint64_t first,
                                      uint64_t rows, const float *row_fold,
                                      const float *column_fold, const float *stored) {
    const unsigned blocks = (unsigned)ingot_ceil_div(rows, WARPS);
    const uint64_t offset = first * source->cols;
    const float *folds = row_fold != nullptr ? row_fold + first : nullptr;
    switch (source->dtype) {
    case INGOT_F32:
        weight_error_kernel<<<blocks, THREADS, 0, cuda->stream>>>(
            sums, (const float *)source->data + offset, folds, column_fold, stored, rows,
            source->cols);
        break;
    case INGOT_F16:
        weight_error_kernel<<<blocks, THREADS, 0, cuda->stream>>>(
            sums, (const __half *)source->data + offset, folds, column_fold, stored, rows,
            source->cols);
        break;
    case INGOT_BF16:
        weight_error_kernel<<<blocks, THREADS, 0, cuda->stream>>>(
            sums, (const __nv_bfloat16 *)source->data + offset, folds, column_fold, stored, rows,
            source->cols);
        break;
    default:
        return INGOT_ERR_UNSUPPORTED;
    }
    return ingot_cuda_launched();
}

ingot_status cuda_weight_error(void *context, double total[2], const ingot_weight_view *source,
                               const float *row_fold, const float *column_fold,
                               const ingot_quantized *q, ingot_arena *scratch) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t step = piece_rows(q->rows, q->cols);
    (void)scratch;
    total[0] = total[1] = 0;
    ingot_cuda_buffer stored(cuda), sums(cuda);
    INGOT_TRY(stored.alloc(step * q->cols, sizeof(float)));
    INGOT_TRY(sums.alloc(step, 2 * sizeof(double)));
    for (uint64_t first = 0; first < q->rows; first += step) {
        const uint64_t rows = ingot_min_u64(step, q->rows - first);
        const ingot_quantized part = rows_of(q, first, rows);
        INGOT_TRY(cuda_quantized_values(context, stored.as<float>(), &part));
        INGOT_TRY(weight_error_rows(cuda, sums.as<double>(), source, first, rows, row_fold,
                                    column_fold, stored.as<float>()));
        INGOT_TRY(add_up(cuda, total, sums.as<double>(), rows, 2));
    }
    return INGOT_OK;
}

/* ---- under H ----------------------------------------------------------------------------------
 */

/* e = w - e, or w where nothing is stored, in TF32 */
__global__ static void difference_kernel(float *e, const float *w, bool is_stored, uint64_t count) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        e[i] = rounded_to_tf32(is_stored ? w[i] - e[i] : w[i]);
    }
}

/* sums[row] = a[row] . b[row] in FP64, one warp a row */
__global__ static void dot_rows_kernel(double *sums, const float *a, const float *b, uint64_t rows,
                                       uint64_t cols) {
    const int lane = threadIdx.x % 32;
    const uint64_t row = (uint64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    if (row >= rows) {
        return;
    }
    double sum = 0;
    for (uint64_t i = lane; i < cols; i += 32) {
        sum += (double)a[row * cols + i] * (double)b[row * cols + i];
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        sums[row] = sum;
    }
}

/* product[rows][n] = e[rows][n] gram[n][n], gram symmetric */
static ingot_status multiply_gram(const ingot_cuda *cuda, float *product, const float *e,
                                  const float *gram, uint64_t rows, uint64_t n) {
    const float one = 1.0f, zero = 0.0f;
    return ingot_cublas_status(cublasGemmEx(cuda->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)n, (int)rows,
                                            (int)n, &one, gram, CUDA_R_32F, (int)n, e, CUDA_R_32F,
                                            (int)n, &zero, product, CUDA_R_32F, (int)n,
                                            CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT));
}

ingot_status cuda_quadratic_loss(void *context, double *loss, const float *w, uint64_t rows,
                                 uint64_t cols, const ingot_quantized *q, const float *gram,
                                 ingot_arena *scratch) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t step = piece_rows(rows, cols);
    (void)scratch;
    if (rows > INT32_MAX || cols > INT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    *loss = 0;
    ingot_cuda_buffer errors(cuda), product(cuda), sums(cuda);
    INGOT_TRY(errors.alloc(step * cols, sizeof(float)));
    INGOT_TRY(product.alloc(step * cols, sizeof(float)));
    INGOT_TRY(sums.alloc(step, sizeof(double)));
    float *e = errors.as<float>();
    for (uint64_t first = 0; first < rows; first += step) {
        const uint64_t count = ingot_min_u64(step, rows - first);
        if (q != nullptr) {
            const ingot_quantized part = rows_of(q, first, count);
            INGOT_TRY(cuda_quantized_values(context, e, &part));
        }
        difference_kernel<<<cuda_blocks(cuda, count * cols, THREADS), THREADS, 0, cuda->stream>>>(
            e, w + first * cols, q != nullptr, count * cols);
        INGOT_TRY(ingot_cuda_launched());
        INGOT_TRY(multiply_gram(cuda, product.as<float>(), e, gram, count, cols));
        dot_rows_kernel<<<(unsigned)ingot_ceil_div(count, WARPS), THREADS, 0, cuda->stream>>>(
            sums.as<double>(), e, product.as<float>(), count, cols);
        INGOT_TRY(ingot_cuda_launched());
        INGOT_TRY(add_up(cuda, loss, sums.as<double>(), count, 1));
    }
    return INGOT_OK;
}
