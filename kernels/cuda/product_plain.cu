/* cuda_product for weights of every kind, dense ones among them, slowly: a warp per row of W on the
 * cores, and the reference for the kernels that are fast. */
#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/weights.h"

#define THREADS    256
#define PLAIN_ROWS 4u /* rows of x that a pass over W serves */

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
                    product_store(task, i + j, row, sums[0][j], sums[1][j],
                                  product_residual(task, i + j, row));
                }
            }
        }
    }
}

template <int KIND>
static ingot_status launch_plain(const product_context *context, const product_task &task) {
    const unsigned grid = (unsigned)ingot_min_u64(ingot_ceil_div(task.w[0].rows, THREADS / 32),
                                                  64u * (uint64_t)context->cuda->multiprocessors);
    return context->dtype == INGOT_F16
               ? product_launch(context, product_plain_kernel<KIND, __half>, dim3(grid), THREADS, 0,
                                1, task)
               : product_launch(context, product_plain_kernel<KIND, __nv_bfloat16>, dim3(grid),
                                THREADS, 0, 1, task);
}

ingot_status product_plain(const product_context *context, const product_task &task) {
    ingot_status status;
    CUDA_FOR_WEIGHT_KIND(status, &task.w[0], launch_plain, context, task);
    return status;
}
