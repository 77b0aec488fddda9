/* Statistics of a layer's inputs on the device: the lower triangle of x^T x on tensor cores, sums
 * of magnitudes, and the number of rows that had to be left out.
 *
 * H is accumulated from binary16 products (half.cu) with FP32 sums, by panels of columns: the
 * product of a panel with everything below its first row covers the triangle and little more.  One
 * call adds the sum over its m rows, so the order of additions depends on the calls alone. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"

#define THREADS     256
#define PANEL       1024 /* columns: the share of the upper triangle that is computed in vain */
#define COLUMN_RUNS 64   /* runs of rows that magnitudes are summed over side by side */

/* magnitude of 32 columns and one run of rows: partial[run][n] */
__global__ static void magnitude_run_kernel(double *partial, const __half *x, const float *unscale,
                                            uint64_t m, uint64_t n, uint64_t stride,
                                            uint64_t rows_per_run) {
    __shared__ double sums[8][33];
    const uint64_t col = (uint64_t)blockIdx.x * 32 + threadIdx.x;
    const uint64_t first = blockIdx.y * rows_per_run;
    const uint64_t end = first + rows_per_run < m ? first + rows_per_run : m;
    double sum = 0;
    for (uint64_t row = first + threadIdx.y; row < end && col < n; row += blockDim.y) {
        sum += (double)fabsf(__half2float(x[row * stride + col]));
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.y == 0 && col < n) {
        for (unsigned i = 1; i < blockDim.y; i++) {
            sum += sums[i][threadIdx.x];
        }
        partial[blockIdx.y * n + col] = sum * (double)*unscale;
    }
}

__global__ static void magnitude_add_kernel(double *magnitude, const double *partial, uint64_t n,
                                            unsigned runs) {
    const uint64_t col = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (col < n) {
        double sum = 0;
        for (unsigned run = 0; run < runs; run++) {
            sum += partial[run * n + col];
        }
        magnitude[col] += sum;
    }
}

static ingot_status add_magnitudes(const ingot_cuda *cuda, double *magnitude,
                                   const cuda_half_copy *half, uint64_t m, uint64_t n) {
    const uint64_t rows_per_run = ingot_ceil_div(m, COLUMN_RUNS);
    const unsigned runs = (unsigned)ingot_ceil_div(m, rows_per_run);
    ingot_cuda_buffer partial(cuda);
    INGOT_TRY(partial.alloc(runs * n, sizeof(double)));
    const dim3 grid((unsigned)ingot_ceil_div(n, 32), runs), block(32, 8);
    magnitude_run_kernel<<<grid, block, 0, cuda->stream>>>(
        partial.as<double>(), half->values, half->unscale, m, n, half->stride, rows_per_run);
    INGOT_TRY(ingot_cuda_launched());
    magnitude_add_kernel<<<(unsigned)ingot_ceil_div(n, THREADS), THREADS, 0, cuda->stream>>>(
        magnitude, partial.as<double>(), n, runs);
    return ingot_cuda_launched();
}

/* scale[0] = unscale^2, scale[1] = 1: alpha and beta of the products */
__global__ static void gram_scale_kernel(float *scale, const float *unscale) {
    scale[0] = *unscale * *unscale;
    scale[1] = 1.0f;
}

static ingot_status add_products(ingot_cuda *cuda, float *gram, const cuda_half_copy *half,
                                 uint64_t m, uint64_t n) {
    ingot_cuda_buffer scales(cuda);
    INGOT_TRY(scales.alloc(2, sizeof(float)));
    const float *scale = scales.as<float>();
    gram_scale_kernel<<<1, 1, 0, cuda->stream>>>(scales.as<float>(), half->unscale);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(ingot_cublas_status(cublasSetPointerMode(cuda->blas, CUBLAS_POINTER_MODE_DEVICE)));
    ingot_status status = INGOT_OK;
    for (uint64_t first = 0; first < n && status == INGOT_OK; first += PANEL) {
        const uint64_t width = ingot_min_u64(PANEL, n - first), height = n - first;
        /* Row-major gram[first ..][first .. first+width-1] = X_below^T X_panel is column-major
         * [width][height] = X_panel^T X_below; x is [stride][m] to it. */
        status = ingot_cublas_status(cublasGemmEx(
            cuda->blas, CUBLAS_OP_N, CUBLAS_OP_T, (int)width, (int)height, (int)m, scale,
            half->values + first, CUDA_R_16F, (int)half->stride, half->values + first, CUDA_R_16F,
            (int)half->stride, scale + 1, gram + first * n + first, CUDA_R_32F, (int)n,
            CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
    }
    const ingot_status restored =
        ingot_cublas_status(cublasSetPointerMode(cuda->blas, CUBLAS_POINTER_MODE_HOST));
    return status != INGOT_OK ? status : restored;
}

/* ---- rows that are left out -------------------------------------------------------------------
 */

/* flags[row] = 1 and the row of the copy becomes zero where it has a value that is not finite; one
 * warp a row.  Nothing is read in the usual case that there is none. */
__global__ static void drop_rows_kernel(uint8_t *flags, uint64_t *dropped, __half *x,
                                        const ingot_cuda_range *range, uint64_t m, uint64_t n,
                                        uint64_t stride) {
    if (range->has_special == 0) {
        return;
    }
    const int lane = threadIdx.x % 32;
    const uint64_t row = (uint64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (row >= m) {
        return;
    }
    bool is_bad = false;
    for (uint64_t col = lane; col < n; col += 32) {
        const float value = __half2float(x[row * stride + col]);
        is_bad = is_bad || !isfinite(value);
    }
    if (!__any_sync(0xffffffffu, is_bad)) {
        return;
    }
    for (uint64_t col = lane; col < n; col += 32) {
        x[row * stride + col] = __float2half_rn(0.0f);
    }
    if (lane == 0) {
        flags[row] = 1;
        if (dropped != nullptr) {
            atomicAdd((unsigned long long *)dropped, 1ull);
        }
    }
}

/* The rows become NaN: products that read the copy next are to see that something was wrong. */
__global__ static void restore_rows_kernel(const uint8_t *flags, __half *x,
                                           const ingot_cuda_range *range, uint64_t m, uint64_t n,
                                           uint64_t stride) {
    const uint64_t row = (uint64_t)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    if (range->has_special == 0 || row >= m || flags[row] == 0) {
        return;
    }
    for (uint64_t col = threadIdx.x % 32; col < n; col += 32) {
        x[row * stride + col] = __float2half_rn(NAN);
    }
}

ingot_status cuda_gram(void *context, float *gram, double *magnitude, uint64_t *dropped,
                       const float *x, uint64_t m, uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    cuda_half_copy half;
    ingot_cuda_buffer flags(cuda);
    if (m == 0 || n == 0) {
        return INGOT_OK;
    }
    if (m > INT32_MAX || n > INT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    const unsigned blocks = (unsigned)ingot_ceil_div(m, THREADS / 32);
    const ingot_cuda_range *range = &cuda->scalars->half;
    INGOT_TRY(cuda_half_of(cuda, &half, x, m, n));
    INGOT_TRY(flags.alloc(m, 1));
    INGOT_TRY(ingot_cuda_status(cudaMemsetAsync(flags.as<void>(), 0, m, cuda->stream)));
    drop_rows_kernel<<<blocks, THREADS, 0, cuda->stream>>>(flags.as<uint8_t>(), dropped,
                                                           half.values, range, m, n, half.stride);
    INGOT_TRY(ingot_cuda_launched());
    if (magnitude != nullptr) {
        INGOT_TRY(add_magnitudes(cuda, magnitude, &half, m, n));
    }
    if (gram != nullptr) {
        INGOT_TRY(add_products(cuda, gram, &half, m, n));
    }
    restore_rows_kernel<<<blocks, THREADS, 0, cuda->stream>>>(flags.as<uint8_t>(), half.values,
                                                              range, m, n, half.stride);
    return ingot_cuda_launched();
}
