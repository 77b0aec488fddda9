/* Weights between their forms on the device: source to FP32 under folds, H under a fold, codes to
 * values, codes to packed rows (spec/quantization.md).  Element-wise and exact: the bits are those
 * of the cpu backend. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/quantize.h"

#include <cuda_bf16.h>

#define THREADS 256

/* ---- source values ----------------------------------------------------------------------------
 */

template <typename T>
__global__ static void values_kernel(float *out, unsigned long long *bad, const T *source,
                                     const float *row_fold, const float *column_fold,
                                     uint64_t total, uint64_t cols) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        float value = to_float(source[i]);
        if (!isfinite(value)) {
            atomicMin(bad, (unsigned long long)i);
        }
        if (row_fold != nullptr) {
            value *= row_fold[i / cols];
        }
        if (column_fold != nullptr) {
            value *= column_fold[i % cols];
        }
        out[i] = value;
    }
}

ingot_status cuda_values(void *context, float *out, uint64_t *bad, const ingot_weight_view *source,
                         const float *row_fold, const float *column_fold) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t total = source->rows * source->cols, cols = source->cols;
    ingot_cuda_buffer first(cuda);
    *bad = UINT64_MAX;
    if (total == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, out, total * sizeof *out);
    INGOT_TRY(first.alloc(1, sizeof(unsigned long long)));
    unsigned long long *at = first.as<unsigned long long>();
    INGOT_TRY(ingot_cuda_status(cudaMemsetAsync(at, 0xff, sizeof *at, cuda->stream)));
    const unsigned blocks = cuda_blocks(cuda, total, THREADS);
    switch (source->dtype) {
    case INGOT_F32:
        values_kernel<<<blocks, THREADS, 0, cuda->stream>>>(out, at, (const float *)source->data,
                                                            row_fold, column_fold, total, cols);
        break;
    case INGOT_F16:
        values_kernel<<<blocks, THREADS, 0, cuda->stream>>>(out, at, (const __half *)source->data,
                                                            row_fold, column_fold, total, cols);
        break;
    case INGOT_BF16:
        values_kernel<<<blocks, THREADS, 0, cuda->stream>>>(
            out, at, (const __nv_bfloat16 *)source->data, row_fold, column_fold, total, cols);
        break;
    default:
        return INGOT_ERR_UNSUPPORTED;
    }
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(ingot_cuda_status(
        cudaMemcpyAsync(bad, at, sizeof *bad, cudaMemcpyDeviceToHost, cuda->stream)));
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
}

/* ---- H ----------------------------------------------------------------------------------------
 */

#define TILE 32

/* A tile of the lower triangle and its mirror image: each element is read and written by one thread
 * block, so out may be gram. */
__global__ static void gram_fold_kernel(float *out, const float *gram, const float *fold,
                                        uint64_t n) {
    __shared__ float tile[TILE][TILE + 1];
    const uint64_t row0 = (uint64_t)blockIdx.y * TILE, col0 = (uint64_t)blockIdx.x * TILE;
    if (col0 > row0) {
        return;
    }
    const unsigned x = threadIdx.x;
    for (unsigned y = threadIdx.y; y < TILE; y += blockDim.y) {
        const uint64_t i = row0 + y, j = col0 + x;
        float value = 0;
        if (i < n && j <= i) {
            value = gram[i * n + j];
            value = fold != nullptr ? value / (fold[i] * fold[j]) : value;
        }
        tile[y][x] = value;
    }
    __syncthreads();
    for (unsigned y = threadIdx.y; y < TILE; y += blockDim.y) {
        const uint64_t i = row0 + y, j = col0 + x;
        if (i < n && j <= i) {
            out[i * n + j] = tile[y][x];
        }
        /* element (mirror_row, mirror_col) of the upper triangle is (mirror_col, mirror_row) */
        const uint64_t mirror_row = col0 + y, mirror_col = row0 + x;
        if (mirror_col < n && mirror_row < mirror_col) {
            out[mirror_row * n + mirror_col] = tile[x][y];
        }
    }
}

ingot_status cuda_gram_fold(void *context, float *out, const float *gram, const float *fold,
                            uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t tiles = ingot_ceil_div(n, TILE);
    if (n == 0) {
        return INGOT_OK;
    }
    if (tiles > 65535) {
        return INGOT_ERR_UNSUPPORTED;
    }
    cuda_written(cuda, out, n * n * sizeof *out);
    const dim3 grid((unsigned)tiles, (unsigned)tiles), block(TILE, 8);
    gram_fold_kernel<<<grid, block, 0, cuda->stream>>>(out, gram, fold, n);
    return ingot_cuda_launched();
}

__global__ static void gram_diagonal_kernel(float *out, const float *gram, uint64_t n) {
    const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        out[i] = gram[i * n + i];
    }
}

ingot_status cuda_gram_diagonal(void *context, float *out, const float *gram, uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (n == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, out, n * sizeof *out);
    gram_diagonal_kernel<<<(unsigned)ingot_ceil_div(n, THREADS), THREADS, 0, cuda->stream>>>(
        out, gram, n);
    return ingot_cuda_launched();
}

/* ---- codes ------------------------------------------------------------------------------------
 */

__global__ static void quantized_values_kernel(float *out, const uint8_t *codes,
                                               const float *scales, const uint8_t *zeros,
                                               uint64_t total, uint64_t cols, uint64_t group,
                                               uint64_t groups) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const uint64_t g = i / cols * groups + i % cols / group;
        out[i] = scales[g] * ((float)codes[i] - (float)zeros[g]);
    }
}

/* One thread a row: outliers are few. */
__global__ static void put_outliers_kernel(float *out, const uint64_t *row_ptr, const uint32_t *col,
                                           const float *val, uint64_t rows, uint64_t cols) {
    const uint64_t row = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (uint64_t i = row < rows ? row_ptr[row] : 0; row < rows && i < row_ptr[row + 1]; i++) {
        out[row * cols + col[i]] = val[i];
    }
}

ingot_status cuda_quantized_values(void *context, float *out, const ingot_quantized *q) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t total = q->rows * q->cols;
    if (total == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, out, total * sizeof *out);
    quantized_values_kernel<<<cuda_blocks(cuda, total, THREADS), THREADS, 0, cuda->stream>>>(
        out, q->codes, q->scales, q->zeros, total, q->cols, q->format.group, q->groups);
    INGOT_TRY(ingot_cuda_launched());
    if (q->outliers.count != 0) {
        put_outliers_kernel<<<(unsigned)ingot_ceil_div(q->rows, THREADS), THREADS, 0,
                              cuda->stream>>>(out, q->outliers.row_ptr, q->outliers.col,
                                              q->outliers.val, q->rows, q->cols);
    }
    return ingot_cuda_launched();
}

/* Four packed bytes a thread, gathered from the codes whose bits they hold. */
__global__ static void pack_codes_kernel(uint32_t *packed, const uint8_t *codes, uint64_t rows,
                                         uint64_t cols, uint64_t words, unsigned bits) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x, total = rows * words;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const uint8_t *row = codes + i / words * cols;
        const uint64_t first_bit = i % words * 32;
        uint64_t col = first_bit / bits;
        const unsigned skip = (unsigned)(first_bit - col * bits); /* bits of it in earlier words */
        uint64_t value = 0;
        for (unsigned at = 0; at < 32 + skip && col < cols; at += bits, col++) {
            value |= (uint64_t)row[col] << at;
        }
        packed[i] = (uint32_t)(value >> skip);
    }
}

template <typename T>
__global__ static void pack_floats_kernel(T *out, const float *in, uint64_t count) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        out[i] = from_float<T>(in[i]);
    }
}

static ingot_status pack_floats(const ingot_cuda *cuda, void *out, const float *in, uint64_t count,
                                ingot_dtype dtype) {
    const unsigned blocks = cuda_blocks(cuda, count, THREADS);
    switch (dtype) {
    case INGOT_F32:
        pack_floats_kernel<<<blocks, THREADS, 0, cuda->stream>>>((float *)out, in, count);
        break;
    case INGOT_F16:
        pack_floats_kernel<<<blocks, THREADS, 0, cuda->stream>>>((__half *)out, in, count);
        break;
    case INGOT_BF16:
        pack_floats_kernel<<<blocks, THREADS, 0, cuda->stream>>>((__nv_bfloat16 *)out, in, count);
        break;
    default:
        return INGOT_ERR_UNSUPPORTED;
    }
    return ingot_cuda_launched();
}

static ingot_status copy_part(const ingot_cuda *cuda, ingot_arena *arena, void **out,
                              const void *from, uint64_t count, uint64_t size) {
    INGOT_TRY(ingot_arena_array(arena, out, count, size));
    return ingot_cuda_status(
        cudaMemcpyAsync(*out, from, count * size, cudaMemcpyDeviceToDevice, cuda->stream));
}

static ingot_status pack_outliers(const ingot_cuda *cuda, ingot_weight_view *view,
                                  const ingot_quantized *q, ingot_arena *arena) {
    const ingot_outliers *o = &q->outliers;
    void *row_ptr, *col, *val;
    INGOT_TRY(copy_part(cuda, arena, &row_ptr, o->row_ptr, q->rows + 1, sizeof *o->row_ptr));
    INGOT_TRY(copy_part(cuda, arena, &col, o->col, o->count, sizeof *o->col));
    INGOT_TRY(ingot_arena_array(arena, &val, o->count, ingot_dtype_bytes(o->dtype)));
    view->outlier_row_ptr = static_cast<uint64_t *>(row_ptr);
    view->outlier_col = static_cast<uint32_t *>(col);
    view->outlier_val = val;
    return pack_floats(cuda, val, o->val, o->count, o->dtype);
}

ingot_status cuda_quantized_pack(void *context, ingot_weight_view *view, const ingot_quantized *q,
                                 ingot_arena *arena) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t groups = q->rows * q->groups;
    const uint64_t stride = (q->cols * q->format.bits + 127) / 128 * 16;
    void *codes, *scales, *zeros = nullptr;
    INGOT_TRY(ingot_arena_array(arena, &codes, q->rows, stride));
    INGOT_TRY(ingot_arena_array(arena, &scales, groups, ingot_dtype_bytes(q->format.scale_dtype)));
    pack_codes_kernel<<<cuda_blocks(cuda, q->rows * stride / 4, THREADS), THREADS, 0,
                        cuda->stream>>>(static_cast<uint32_t *>(codes), q->codes, q->rows, q->cols,
                                        stride / 4, q->format.bits);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(pack_floats(cuda, scales, q->scales, groups, q->format.scale_dtype));
    if (q->format.zero_mode == INGOT_ZERO_STORED) {
        INGOT_TRY(copy_part(cuda, arena, &zeros, q->zeros, groups, 1));
    }
    *view = ingot_weight_view();
    view->kind = INGOT_GROUPED;
    view->rows = q->rows;
    view->cols = q->cols;
    view->dtype = q->outliers.count != 0 ? q->outliers.dtype : INGOT_F16;
    view->bits = q->format.bits;
    view->zero_mode = q->format.zero_mode;
    view->scale_dtype = q->format.scale_dtype;
    view->group = q->format.group;
    view->groups_per_row = q->groups;
    view->row_stride_bytes = stride;
    view->codes = static_cast<uint8_t *>(codes);
    view->scales = scales;
    view->zeros = static_cast<uint8_t *>(zeros);
    view->outlier_count = q->outliers.count;
    return q->outliers.count != 0 ? pack_outliers(cuda, view, q, arena) : INGOT_OK;
}
