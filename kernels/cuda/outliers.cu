/* Sparse outliers of a matrix on the device.  Choosing them is rare and branchy: it runs on the
 * host, in kernels/outliers.c, on copies. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/quantize.h"

#define THREADS 256

/* One thread a row. */
__global__ static void place_kernel(uint8_t *codes, float *val, const uint8_t *zeros,
                                    const uint64_t *row_ptr, const uint32_t *col, const float *w,
                                    uint64_t rows, uint64_t cols, uint64_t group, uint64_t groups,
                                    ingot_dtype dtype) {
    const uint64_t row = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (uint64_t i = row < rows ? row_ptr[row] : 0; row < rows && i < row_ptr[row + 1]; i++) {
        codes[row * cols + col[i]] = zeros[row * groups + col[i] / group];
        val[i] = cuda_outlier_store(w[row * cols + col[i]], dtype);
    }
}

ingot_status cuda_outliers_place(void *context, ingot_quantized *q, const ingot_outliers *outliers,
                                 const float *w, ingot_arena *arena) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    q->outliers = *outliers;
    if (outliers->count == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_array(arena, (void **)&q->outliers.val, outliers->count, sizeof(float)));
    place_kernel<<<(unsigned)ingot_ceil_div(q->rows, THREADS), THREADS, 0, cuda->stream>>>(
        q->codes, q->outliers.val, q->zeros, outliers->row_ptr, outliers->col, w, q->rows, q->cols,
        q->format.group, q->groups, outliers->dtype);
    return ingot_cuda_launched();
}

/* *out = a host copy of count * size bytes; NULL stays NULL. */
static ingot_status take(const ingot_cuda *cuda, void **out, const void *device, uint64_t count,
                         uint64_t size, ingot_arena *host) {
    *out = nullptr;
    if (device == nullptr) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_array(host, out, count, size));
    INGOT_TRY(ingot_cuda_status(
        cudaMemcpyAsync(*out, device, count * size, cudaMemcpyDeviceToHost, cuda->stream)));
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
}

static ingot_status give(const ingot_cuda *cuda, void **out, const void *host, uint64_t count,
                         uint64_t size, ingot_arena *arena) {
    INGOT_TRY(ingot_arena_array(arena, out, count, size));
    INGOT_TRY(ingot_cuda_status(
        cudaMemcpyAsync(*out, host, count * size, cudaMemcpyHostToDevice, cuda->stream)));
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
}

static ingot_status choose(const ingot_cuda *cuda, ingot_quantized *q, const float *w,
                           const float *importance, uint64_t count, ingot_dtype dtype,
                           ingot_arena *arena, ingot_arena *host) {
    const uint64_t weights = q->rows * q->cols, groups = q->rows * q->groups;
    ingot_quantized copy = *q;
    void *host_w, *host_importance, *row_ptr, *col, *val;
    INGOT_TRY(take(cuda, (void **)&copy.codes, q->codes, weights, 1, host));
    INGOT_TRY(take(cuda, (void **)&copy.scales, q->scales, groups, sizeof(float), host));
    INGOT_TRY(take(cuda, (void **)&copy.zeros, q->zeros, groups, 1, host));
    INGOT_TRY(take(cuda, &host_w, w, weights, sizeof(float), host));
    INGOT_TRY(take(cuda, &host_importance, importance, q->cols, sizeof(float), host));
    copy.outliers = ingot_outliers();
    INGOT_TRY(ingot_outliers_choose(&copy, static_cast<float *>(host_w),
                                    static_cast<float *>(host_importance), count, dtype, host, host,
                                    cuda->pool));
    INGOT_TRY(give(cuda, &row_ptr, copy.outliers.row_ptr, q->rows + 1, sizeof(uint64_t), arena));
    INGOT_TRY(give(cuda, &col, copy.outliers.col, count, sizeof(uint32_t), arena));
    INGOT_TRY(give(cuda, &val, copy.outliers.val, count, sizeof(float), arena));
    q->outliers.count = count;
    q->outliers.left_out = copy.outliers.left_out;
    q->outliers.row_ptr = static_cast<uint64_t *>(row_ptr);
    q->outliers.col = static_cast<uint32_t *>(col);
    q->outliers.val = static_cast<float *>(val);
    return INGOT_OK;
}

ingot_status cuda_outliers_choose(void *context, ingot_quantized *q, const float *w,
                                  const float *importance, uint64_t count, ingot_dtype dtype,
                                  ingot_arena *arena, ingot_arena *scratch) {
    ingot_arena *host;
    (void)scratch;
    q->outliers = ingot_outliers();
    q->outliers.dtype = dtype;
    if (count == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_create(&host));
    const ingot_status status =
        choose(ingot_cuda_of(context), q, w, importance, count, dtype, arena, host);
    ingot_arena_destroy(host);
    return status;
}
