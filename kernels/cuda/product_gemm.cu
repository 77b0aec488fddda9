/* cuda_product for many rows of x, and for weights that no other kernel reads: the weights in 16
 * bits, a piece at a time, and cuBLAS. */
#include "kernels/cuda/forward.h"
#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/weights.h"

#define THREADS 256
/* Of unpacked weights: with fewer, which would stay in the L2 cache, products do not fill the
 * device (decision 0025). */
#define PIECE_BYTES (UINT64_C(64) << 20)

typedef struct gemm_piece {
    void *out; /* [rows][stride] */
    ingot_weight_view w;
    uint64_t first, rows; /* of w */
    uint64_t stride;      /* columns behind those of w are zero */
    int exponent;         /* weights are divided by two to this power */
} gemm_piece;

template <int KIND, typename T>
__global__ __launch_bounds__(THREADS) static void product_unpack_kernel(const gemm_piece piece) {
    const uint64_t step = (uint64_t)gridDim.x * THREADS * 8;
    const uint64_t begin = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) * 8;
    const float factor = cuda_power_of_two(-piece.exponent);
    for (uint64_t row = blockIdx.y; row < piece.rows; row += gridDim.y) {
        for (uint64_t col = begin; col < piece.stride; col += step) {
            float v[8];
            alignas(16) T rounded[8];
            cuda_load_weights<KIND>(v, piece.w, piece.first + row, col);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                rounded[i] = from_float<T>(v[i] * factor);
            }
            *reinterpret_cast<int4 *>(static_cast<T *>(piece.out) + row * piece.stride + col) =
                *reinterpret_cast<const int4 *>(rounded);
        }
    }
}

/* A warp puts the outliers of a row in their places. */
template <typename T>
__global__ __launch_bounds__(THREADS) static void product_scatter_kernel(const gemm_piece piece) {
    const uint64_t warps = (uint64_t)gridDim.x * (THREADS / 32);
    T *out = static_cast<T *>(piece.out);
    const float factor = cuda_power_of_two(-piece.exponent);
    for (uint64_t row = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32; row < piece.rows;
         row += warps) {
        const uint64_t *ends = piece.w.outlier_row_ptr + piece.first + row;
        for (uint64_t k = ends[0] + threadIdx.x % 32; k < ends[1]; k += 32) {
            const float value = cuda_float_at(piece.w.outlier_val, piece.w.dtype, k);
            out[row * piece.stride + piece.w.outlier_col[k]] = from_float<T>(value * factor);
        }
    }
}

/* y from the sums of both matrices. */
__global__ __launch_bounds__(THREADS) static void product_store_kernel(const product_task task,
                                                                       const float *sums,
                                                                       const float *ups) {
    const uint64_t rows = task.w[0].rows, count = task.m * rows;
    const uint64_t step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t at = (uint64_t)blockIdx.x * THREADS + threadIdx.x; at < count; at += step) {
        product_store(task, at / rows, at % rows, sums[at], ups != nullptr ? ups[at] : 0.0f,
                      product_residual(task, at / rows, at % rows));
    }
}

static bool is_plain_result(const product_task &task) {
    return task.y_dtype == INGOT_F32 && task.activation < 0 && task.bias[0] == nullptr &&
           task.residual == nullptr;
}

static uint64_t gemm_stride(const product_task &task) {
    return (task.w[0].cols + 7) / 8 * 8;
}

static uint64_t piece_rows(const product_task &task) {
    const uint64_t most = ingot_max_u64(PIECE_BYTES / (gemm_stride(task) * 2), 1);
    const uint64_t pieces = ingot_ceil_div(task.w[0].rows, most);
    const uint64_t rows = (ingot_ceil_div(task.w[0].rows, pieces) + 127) / 128 * 128;
    return ingot_min_u64(rows, task.w[0].rows);
}

static uint64_t sums_bytes(const product_task &task) {
    return product_aligned(task.m * task.w[0].rows * sizeof(float));
}

uint64_t product_gemm_workspace_bytes(const product_task &task) {
    const uint64_t piece = product_aligned(piece_rows(task) * gemm_stride(task) * 2);
    return piece + (is_plain_result(task) ? 0 : (task.has_up ? 2 : 1) * sums_bytes(task));
}

template <int KIND, typename T>
static ingot_status unpack_as(const product_context *context, const gemm_piece &piece) {
    const uint64_t blocks = 16u * (uint64_t)context->cuda->multiprocessors;
    const uint64_t wide = ingot_ceil_div(piece.stride, THREADS * 8);
    const uint64_t high = ingot_min_u64(ingot_min_u64(piece.rows, 65535),
                                        ingot_max_u64(ingot_ceil_div(blocks, wide), 1));
    INGOT_TRY(product_launch(context, product_unpack_kernel<KIND, T>,
                             dim3((unsigned)wide, (unsigned)high), THREADS, 0, 1, piece));
    if (KIND <= CUDA_WEIGHTS_GROUPED || piece.w.outlier_count == 0) {
        return INGOT_OK;
    }
    const uint64_t warps = ingot_ceil_div(piece.rows, THREADS / 32);
    return product_launch(context, product_scatter_kernel<T>,
                          dim3((unsigned)ingot_min_u64(warps, blocks)), THREADS, 0, 1, piece);
}

template <int KIND>
static ingot_status unpack(const product_context *context, const gemm_piece &piece) {
    return context->dtype == INGOT_F16 ? unpack_as<KIND, __half>(context, piece)
                                       : unpack_as<KIND, __nv_bfloat16>(context, piece);
}

/* sums[m][first .. first + rows - 1] = x times the piece. */
static ingot_status multiply(const product_context *context, float *sums, const product_task &task,
                             const gemm_piece &piece) {
    const bool is_half = context->dtype == INGOT_F16;
    const cudaDataType_t type = is_half ? CUDA_R_16F : CUDA_R_16BF;
    const float alpha = ldexpf(1.0f, piece.exponent), beta = 0.0f;
    return ingot_cublas_status(cublasGemmEx_64(
        context->cuda->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int64_t)piece.rows, (int64_t)task.m,
        (int64_t)piece.stride, &alpha, piece.out, type, (int64_t)piece.stride, task.x, type,
        (int64_t)task.x_stride, &beta, sums + piece.first, CUDA_R_32F, (int64_t)task.w[0].rows,
        CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

/* cuBLAS forgets its workspace with its stream. */
static ingot_status set_stream(const ingot_cuda *cuda, cudaStream_t stream) {
    INGOT_TRY(ingot_cublas_status(cublasSetStream(cuda->blas, stream)));
    return ingot_cublas_status(cublasSetWorkspace(cuda->blas, cuda->workspace, CUDA_BLAS_BYTES));
}

static ingot_status multiply_all(const product_context *context, const product_task &task,
                                 float *const sums[2]) {
    const uint64_t most = piece_rows(task);
    for (int side = 0; side < (task.has_up ? 2 : 1); side++) {
        const ingot_weight_view &w = task.w[side];
        const int exponent = context->dtype == INGOT_F16
                                 ? cuda_exponent_of(task.largest[side], CUDA_WEIGHT_USUAL)
                                 : 0; /* BF16 has the range of FP32 */
        for (uint64_t first = 0; first < w.rows; first += most) {
            const gemm_piece piece = {
                context->workspace, w,       first, ingot_min_u64(most, w.rows - first),
                gemm_stride(task),  exponent};
            ingot_status status;
            CUDA_FOR_WEIGHT_KIND(status, &w, unpack, context, piece);
            INGOT_TRY(status);
            INGOT_TRY(multiply(context, sums[side], task, piece));
        }
    }
    return INGOT_OK;
}

ingot_status product_gemm(const product_context *context, const product_task &task) {
    product_context ordinary = *context; /* the kernels here do not wait by themselves */
    ordinary.is_chained = false;
    const bool is_plain = is_plain_result(task),
               is_elsewhere = context->stream != context->cuda->stream;
    uint8_t *behind =
        context->workspace + product_aligned(piece_rows(task) * gemm_stride(task) * 2);
    float *const sums[2] = {is_plain ? static_cast<float *>(task.y)
                                     : reinterpret_cast<float *>(behind),
                            reinterpret_cast<float *>(behind + sums_bytes(task))};
    if (is_elsewhere) {
        INGOT_TRY(set_stream(context->cuda, context->stream));
    }
    const ingot_status status = multiply_all(&ordinary, task, sums);
    if (is_elsewhere) {
        INGOT_TRY(set_stream(context->cuda, context->cuda->stream));
    }
    INGOT_TRY(status);
    if (is_plain) {
        return INGOT_OK;
    }
    const uint64_t grid = ingot_min_u64(ingot_ceil_div(task.m * task.w[0].rows, THREADS),
                                        16u * (uint64_t)context->cuda->multiprocessors);
    return product_launch(&ordinary, product_store_kernel, dim3((unsigned)grid), THREADS, 0, 1,
                          task, sums[0], task.has_up ? sums[1] : nullptr);
}
