/* Activations in binary16 for products on tensor cores, made once for all who read them.
 *
 * One pass rounds the values with the usual scale and finds their range; a second one, which
 * returns at once in the usual case, scales anew what would overflow or lose its low bits.  The
 * host never waits to know which it was. */
#include "kernels/cuda/forward.h"

#define THREADS 256

/* Eight values of one row, fewer at its end. */
__device__ static void load_eight(float (&v)[8], const float *x, unsigned count, bool is_vector) {
    if (is_vector) {
        const float4 low = reinterpret_cast<const float4 *>(x)[0];
        const float4 high = reinterpret_cast<const float4 *>(x)[1];
        v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
        v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
        return;
    }
#pragma unroll
    for (unsigned i = 0; i < 8; i++) {
        v[i] = i < count ? x[i] : 0.0f;
    }
}

__device__ static void store_eight(__half *out, const float (&v)[8], float factor) {
    alignas(16) __half values[8];
#pragma unroll
    for (unsigned i = 0; i < 8; i++) {
        values[i] = __float2half_rn(v[i] * factor);
    }
    *reinterpret_cast<int4 *>(out) = *reinterpret_cast<const int4 *>(values);
}

/* values[m][stride] = x[m][n], or x - minus where that is not NULL, in binary16.  First pass
 * (is_repair false): with the usual scale, *range is collected.  Second: with another where *range
 * asks for it, and *unscale. */
__global__ __launch_bounds__(THREADS) static void half_rows_kernel(
    __half *__restrict__ values, float *unscale, ingot_cuda_range *range,
    const float *__restrict__ x, const float *__restrict__ minus, uint64_t m, uint64_t n,
    uint64_t stride, bool is_vector, bool is_repair) {
    float factor = cuda_power_of_two(-CUDA_HALF_USUAL);
    if (is_repair) {
        const int exponent = cuda_half_exponent(range->largest, CUDA_HALF_USUAL);
        if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) {
            *unscale = cuda_power_of_two(exponent);
        }
        if (exponent == CUDA_HALF_USUAL) {
            return;
        }
        factor = cuda_power_of_two(-exponent);
    }
    ingot_cuda_range own = {0, 0};
    const uint64_t step = (uint64_t)gridDim.x * THREADS * 8;
    for (uint64_t row = blockIdx.y; row < m; row += gridDim.y) {
        const uint64_t first = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) * 8;
#pragma unroll 2
        for (uint64_t col = first; col < stride; col += step) {
            float v[8];
            const unsigned count = (unsigned)min(n - col, (uint64_t)8);
            load_eight(v, x + row * n + col, count, is_vector && count == 8);
            if (minus != nullptr) {
                float other[8];
                load_eight(other, minus + row * n + col, count, is_vector && count == 8);
#pragma unroll
                for (unsigned i = 0; i < 8; i++) {
                    v[i] -= other[i];
                }
            }
            store_eight(values + row * stride + col, v, factor);
#pragma unroll
            for (unsigned i = 0; i < 8; i++) {
                cuda_range_add(&own, v[i]);
            }
        }
    }
    if (!is_repair) {
        cuda_range_store(range, own);
    }
}

/* Where a copy goes and what is learned on the way. */
typedef struct half_target {
    __half *values;
    float *unscale;
    ingot_cuda_range *range; /* zero before the first pass */
} half_target;

static ingot_status launch_rows(const ingot_cuda *cuda, const half_target *to, const float *x,
                                const float *minus, uint64_t m, uint64_t n, bool is_repair) {
    const uint64_t stride = (n + 7) / 8 * 8;
    const uint64_t blocks = 8u * (uint64_t)cuda->multiprocessors;
    const uint64_t wide = ingot_min_u64(ingot_ceil_div(stride, THREADS * 8), blocks);
    const uint64_t high = ingot_min_u64(m, ingot_ceil_div(blocks, wide));
    half_rows_kernel<<<dim3((unsigned)wide, (unsigned)high), THREADS, 0, cuda->stream>>>(
        to->values, to->unscale, to->range, x, minus, m, n, stride,
        n % 4 == 0 && cuda_is_aligned(x) && cuda_is_aligned(minus), is_repair);
    return ingot_cuda_launched();
}

/* Both passes.  Rows without a gap between them are one long row: no thread is left over at their
 * ends. */
static ingot_status convert_rows(const ingot_cuda *cuda, const half_target *to, const float *x,
                                 const float *minus, uint64_t m, uint64_t n) {
    const bool is_flat = n % 8 == 0;
    const uint64_t rows = is_flat ? 1 : m, cols = is_flat ? m * n : n;
    INGOT_TRY(launch_rows(cuda, to, x, minus, rows, cols, false));
    return launch_rows(cuda, to, x, minus, rows, cols, true);
}

/* The copy that is kept over calls. */
static half_target kept_target(const ingot_cuda *cuda) {
    return {static_cast<__half *>(cuda->half.values), &cuda->scalars->unscale,
            &cuda->scalars->half};
}

ingot_status cuda_half_aside(const ingot_cuda *cuda, __half *values, const float *x,
                             const float *minus, uint64_t m, uint64_t n) {
    const half_target to = {values, &cuda->scalars->unscale_aside, &cuda->scalars->aside};
    INGOT_TRY(
        ingot_cuda_status(cudaMemsetAsync(to.range, 0, sizeof(ingot_cuda_range), cuda->stream)));
    return convert_rows(cuda, &to, x, minus, m, n);
}

/* Room for the copy, which is then of nothing. */
static ingot_status make_room(ingot_cuda *cuda, uint64_t m, uint64_t stride) {
    uint64_t bytes;
    cuda->half.x = nullptr;
    if (!ingot_size_mul(&bytes, m, stride) || !ingot_size_mul(&bytes, bytes, sizeof(__half))) {
        return INGOT_ERR_NO_MEMORY;
    }
    if (bytes > cuda->half.bytes) {
        void *memory = nullptr;
        if (cuda->half.values != nullptr) {
            INGOT_TRY(ingot_cuda_status(cudaFreeAsync(cuda->half.values, cuda->stream)));
            cuda->half.values = nullptr;
            cuda->half.bytes = 0;
        }
        const cudaError_t error = cudaMallocAsync(&memory, bytes, cuda->stream);
        if (error != cudaSuccess) {
            (void)cudaGetLastError();
            return ingot_cuda_check(error, "cudaMallocAsync");
        }
        cuda->half.values = memory;
        cuda->half.bytes = bytes;
    }
    return ingot_cuda_status(
        cudaMemsetAsync(&cuda->scalars->half, 0, sizeof(ingot_cuda_range), cuda->stream));
}

static bool has_copy(const ingot_cuda *cuda, const float *x, uint64_t m, uint64_t n) {
    if (cuda->half.x != x) {
        return false;
    }
    return (cuda->half.m == m && cuda->half.n == n) ||
           (cuda->half.is_flat && n % 8 == 0 && cuda->half.m * cuda->half.n == m * n);
}

ingot_status cuda_half_of(ingot_cuda *cuda, cuda_half_copy *out, const float *x, uint64_t m,
                          uint64_t n) {
    const uint64_t stride = (n + 7) / 8 * 8;
    if (!has_copy(cuda, x, m, n)) {
        INGOT_TRY(make_room(cuda, m, stride));
        const half_target to = kept_target(cuda);
        INGOT_TRY(convert_rows(cuda, &to, x, nullptr, m, n));
        cuda->half.x = x;
        cuda->half.m = m;
        cuda->half.n = n;
        cuda->half.is_flat = n % 8 == 0;
    }
    out->values = static_cast<__half *>(cuda->half.values);
    out->stride = stride;
    out->unscale = &cuda->scalars->unscale;
    return INGOT_OK;
}

void cuda_written(ingot_cuda *cuda, const void *memory, uint64_t bytes) {
    const uintptr_t begin = (uintptr_t)memory, end = begin + bytes;
    const uintptr_t copied = (uintptr_t)cuda->half.x;
    if (cuda->half.x != nullptr && begin < copied + cuda->half.m * cuda->half.n * sizeof(float) &&
        copied < end) {
        cuda->half.x = nullptr;
    }
}

ingot_status cuda_half_begin(ingot_cuda *cuda, __half **values, uint64_t count) {
    INGOT_TRY(make_room(cuda, 1, count));
    *values = static_cast<__half *>(cuda->half.values);
    return INGOT_OK;
}

ingot_status cuda_half_end(ingot_cuda *cuda, const float *x, uint64_t count) {
    const half_target to = kept_target(cuda);
    INGOT_TRY(launch_rows(cuda, &to, x, nullptr, 1, count, true));
    cuda->half.x = x;
    cuda->half.m = 1;
    cuda->half.n = count;
    cuda->half.is_flat = true;
    return INGOT_OK;
}

ingot_status cuda_half_multiply(const ingot_cuda *cuda, const cuda_half_gemm *job) {
    INGOT_TRY(ingot_cublas_status(cublasSetPointerMode(cuda->blas, CUBLAS_POINTER_MODE_DEVICE)));
    const cublasStatus_t product = cublasGemmEx_64(
        cuda->blas, job->is_a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
        job->is_b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, (int64_t)job->rows, (int64_t)job->columns,
        (int64_t)job->depth, job->alpha, job->a, CUDA_R_16F, (int64_t)job->a_stride, job->b,
        CUDA_R_16F, (int64_t)job->b_stride, job->adds ? &cuda->scalars->one : &cuda->scalars->zero,
        job->c, CUDA_R_32F, (int64_t)job->c_stride, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT);
    const cublasStatus_t restored = cublasSetPointerMode(cuda->blas, CUBLAS_POINTER_MODE_HOST);
    INGOT_TRY(ingot_cublas_check(product, "cublasGemmEx_64"));
    return ingot_cublas_check(restored, "cublasSetPointerMode");
}
