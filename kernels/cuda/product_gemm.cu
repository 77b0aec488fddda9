/* cuda_product for many rows of x, and for weights that no other kernel reads: the weights in 16
 * bits, a piece at a time, and cuBLAS.  It reads dense ones of 16 bits as they are; where x is in
 * binary16 and they are in BF16, it multiplies the two numbers in BF16 whose sum x is as rows of
 * their own. */
#include "kernels/cuda/forward.h"
#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/product_unpack.h"
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

/* out[2][m][stride] = both parts of x, zero behind its columns. */
__global__ __launch_bounds__(THREADS) static void product_split_kernel(__nv_bfloat16 *out,
                                                                       uint64_t stride,
                                                                       const product_task task) {
    const uint64_t count = task.m * stride, step = (uint64_t)gridDim.x * THREADS;
    const __half *x = static_cast<const __half *>(task.x);
    for (uint64_t at = (uint64_t)blockIdx.x * THREADS + threadIdx.x; at < count; at += step) {
        const uint64_t row = at / stride, col = at % stride;
        const __half v = col < task.w[0].cols ? x[row * task.x_stride + col] : __half(0.0f);
        product_split(out[at], out[count + at], v);
    }
}

/* y from the sums of both matrices, each of so many parts of x. */
__global__ __launch_bounds__(THREADS) static void product_store_kernel(const product_task task,
                                                                       const float *sums,
                                                                       const float *ups,
                                                                       unsigned parts) {
    const uint64_t rows = task.w[0].rows, count = task.m * rows;
    const uint64_t step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t at = (uint64_t)blockIdx.x * THREADS + threadIdx.x; at < count; at += step) {
        float sum = sums[at], up = ups != nullptr ? ups[at] : 0.0f;
        if (parts == 2) {
            sum += sums[count + at];
            up += ups != nullptr ? ups[count + at] : 0.0f;
        }
        product_store(task, at / rows, at % rows, sum, up,
                      product_residual(task, at / rows, at % rows));
    }
}

/* Parts of x in BF16 that weights in BF16 meet as they are.  More rows of x take longer twice than
 * weights that are unpacked. */
static unsigned parts_of(const ingot_weight_view *w, uint64_t m, ingot_dtype dtype) {
    const bool is_split = w->kind == INGOT_DENSE && w->dtype == INGOT_BF16 && dtype == INGOT_F16 &&
                          m <= PRODUCT_TILE && w->cols % 8 == 0;
    return is_split ? 2 : 1;
}

bool product_gemm_reads(const ingot_weight_view *w, uint64_t m, ingot_dtype dtype) {
    return w->kind == INGOT_DENSE && w->cols % 8 == 0 &&
           (w->dtype == dtype || parts_of(w, m, dtype) == 2);
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

/* Of one matrix. */
static uint64_t sums_bytes(const product_task &task, unsigned parts) {
    return product_aligned(parts * task.m * task.w[0].rows * sizeof(float));
}

/* What lies in front of the sums: both parts of x, or a piece of the weights, or nothing. */
static uint64_t front_bytes(const product_task &task, ingot_dtype dtype) {
    const uint64_t row = gemm_stride(task) * 2;
    return parts_of(&task.w[0], task.m, dtype) == 2 ? product_aligned(2 * task.m * row)
           : product_gemm_reads(&task.w[0], task.m, dtype)
               ? 0
               : product_aligned(piece_rows(task) * row);
}

uint64_t product_gemm_workspace_bytes(const product_task &task, ingot_dtype dtype) {
    const unsigned parts = parts_of(&task.w[0], task.m, dtype);
    const bool has_sums = parts == 2 || !is_plain_result(task);
    return front_bytes(task, dtype) +
           (has_sums ? (task.has_up ? 2 : 1) * sums_bytes(task, parts) : 0);
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

/* x as cuBLAS reads it. */
typedef struct gemm_x {
    const void *x;      /* [m][stride] */
    uint64_t m, stride; /* rows: of all parts */
    ingot_dtype dtype;
} gemm_x;

/* sums[m][first .. first + rows - 1] = alpha x times rows of W, which lie at `from` in the dtype of
 * x. */
static ingot_status multiply(const ingot_cuda *cuda, float *sums, const gemm_piece &piece,
                             const void *from, const gemm_x &x, float alpha) {
    const cudaDataType_t type = x.dtype == INGOT_F16 ? CUDA_R_16F : CUDA_R_16BF;
    const float beta = 0.0f;
    return ingot_cublas_status(
        cublasGemmEx_64(cuda->blas, CUBLAS_OP_T, CUBLAS_OP_N, (int64_t)piece.rows, (int64_t)x.m,
                        (int64_t)piece.stride, &alpha, from, type, (int64_t)piece.stride, x.x, type,
                        (int64_t)x.stride, &beta, sums + piece.first, CUDA_R_32F,
                        (int64_t)piece.w.rows, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

/* The same of all rows, which are read as they are or unpacked a piece at a time. */
static ingot_status multiply_side(const product_context *context, float *sums,
                                  const product_task &task, int side, const gemm_x &x) {
    const ingot_weight_view &w = task.w[side];
    const int exponent = x.dtype == INGOT_F16
                             ? cuda_exponent_of(context->largest[side], CUDA_WEIGHT_USUAL)
                             : 0; /* BF16 has the range of FP32 */
    gemm_piece piece = {context->workspace, w, 0, w.rows, gemm_stride(task), exponent};
    if (product_gemm_reads(&w, task.m, context->dtype)) {
        return multiply(context->cuda, sums, piece, w.data, x, 1.0f);
    }
    const uint64_t most = piece_rows(task);
    for (; piece.first < w.rows; piece.first += most) {
        piece.rows = ingot_min_u64(most, w.rows - piece.first);
        ingot_status status;
        CUDA_FOR_WEIGHT_KIND(status, &w, unpack, context, piece);
        INGOT_TRY(status);
        INGOT_TRY(multiply(context->cuda, sums, piece, piece.out, x, ldexpf(1.0f, exponent)));
    }
    return INGOT_OK;
}

static ingot_status multiply_all(const product_context *context, const product_task &task,
                                 float *const sums[2]) {
    gemm_x x = {task.x, task.m, task.x_stride, context->dtype};
    if (parts_of(&task.w[0], task.m, x.dtype) == 2) {
        __nv_bfloat16 *out = reinterpret_cast<__nv_bfloat16 *>(context->workspace);
        x = {out, 2 * task.m, gemm_stride(task), INGOT_BF16};
        INGOT_TRY(product_launch(context, product_split_kernel,
                                 dim3(cuda_blocks(context->cuda, task.m * x.stride, THREADS)),
                                 THREADS, 0, 1, out, x.stride, task));
    }
    for (int side = 0; side < (task.has_up ? 2 : 1); side++) {
        INGOT_TRY(multiply_side(context, sums[side], task, side, x));
    }
    return INGOT_OK;
}

ingot_status product_gemm(const product_context *context, const product_task &task) {
    product_context ordinary = *context; /* the kernels here do not wait by themselves */
    ordinary.is_chained = false;
    const unsigned parts = parts_of(&task.w[0], task.m, context->dtype);
    const bool is_plain = parts == 1 && is_plain_result(task);
    uint8_t *behind = context->workspace + front_bytes(task, context->dtype);
    float *const sums[2] = {is_plain ? static_cast<float *>(task.y)
                                     : reinterpret_cast<float *>(behind),
                            reinterpret_cast<float *>(behind + sums_bytes(task, parts))};
    INGOT_TRY(multiply_all(&ordinary, task, sums));
    if (is_plain) {
        return INGOT_OK;
    }
    return product_launch(&ordinary, product_store_kernel,
                          dim3(cuda_blocks(context->cuda, task.m * task.w[0].rows, THREADS)),
                          THREADS, 0, 1, task, sums[0], task.has_up ? sums[1] : nullptr, parts);
}
