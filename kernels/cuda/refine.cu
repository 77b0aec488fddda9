/* Targets that make up for drift, on the device (kernels/refine.h): solving with H, and products.
 *
 * Products run on tensor cores in TF32: they are corrections, small beside what they correct, and
 * their own rounding of 2^-11 is small beside them. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/quantize.h"

extern "C" {
#include "kernels/quantize_internal.h"
}

#include <cmath>

#define THREADS 256

/* ---- products ---------------------------------------------------------------------------------
 */

ingot_status cuda_multiply_add(void *context, float *out, float share, const float *a,
                               const float *b, uint64_t rows, uint64_t k, uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const float one = 1.0f;
    if (rows > INT32_MAX || k > INT32_MAX || n > INT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    if (rows == 0 || k == 0 || n == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, out, rows * n * sizeof *out);
    return ingot_cublas_status(cublasGemmEx(cuda->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)n, (int)rows,
                                            (int)k, &share, b, CUDA_R_32F, (int)n, a, CUDA_R_32F,
                                            (int)k, &one, out, CUDA_R_32F, (int)n,
                                            CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT));
}

/* ---- solving ----------------------------------------------------------------------------------
 */

/* Lower triangle (row-major) of the damped H, zeros above. */
template <typename T>
__global__ static void damped_kernel(T *l, const float *gram, uint64_t n, double mean,
                                     double damping) {
    const uint64_t i = blockIdx.y;
    for (uint64_t j = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; j < n;
         j += (uint64_t)gridDim.x * blockDim.x) {
        double value = j <= i ? (double)gram[i * n + j] : 0;
        if (i == j) {
            value = ingot_gptq_damped(value > 0 ? value : mean, damping, mean);
        }
        l[i * n + j] = (T)value;
    }
}

template <typename T>
static ingot_status try_solve(bool *is_done, const ingot_cuda *cuda, float *x, uint64_t rows,
                              const float *gram, uint64_t n, double mean, double damping) {
    ingot_cuda_buffer lower(cuda);
    INGOT_TRY(lower.alloc(n, n * sizeof(T)));
    const dim3 grid((unsigned)ingot_min_u64(ingot_ceil_div(n, THREADS), 64), (unsigned)n);
    damped_kernel<<<grid, THREADS, 0, cuda->stream>>>(lower.as<T>(), gram, n, mean, damping);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(cuda_cholesky(is_done, cuda, lower.as<T>(), n));
    return *is_done ? cuda_substitute(cuda, x, lower.as<T>(), rows, n) : INGOT_OK;
}

static ingot_status solve(ingot_cuda *cuda, float *x, unsigned *damping_step, uint64_t rows,
                          const float *gram, uint64_t n, float *diagonal) {
    ingot_cuda_buffer on_device(cuda);
    uint32_t dead;
    INGOT_TRY(on_device.alloc(n, sizeof(float)));
    INGOT_TRY(cuda_gram_diagonal(cuda, on_device.as<float>(), gram, n));
    INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(diagonal, on_device.as<float>(), n * sizeof(float),
                                                cudaMemcpyDeviceToHost, cuda->stream)));
    INGOT_TRY(ingot_cuda_status(cudaStreamSynchronize(cuda->stream)));
    const double mean = ingot_gptq_mean(diagonal, n, &dead);
    bool is_done = false;
    for (unsigned step = 0; std::isfinite(mean) && !is_done && step < INGOT_DAMPING_STEPS; step++) {
        const double damping = ingot_gptq_dampings[step];
        INGOT_TRY(step + 1 < INGOT_DAMPING_STEPS
                      ? try_solve<float>(&is_done, cuda, x, rows, gram, n, mean, damping)
                      : try_solve<double>(&is_done, cuda, x, rows, gram, n, mean, damping));
        *damping_step = is_done ? step : 255;
    }
    return is_done ? INGOT_OK
                   : ingot_cuda_status(cudaMemsetAsync(x, 0, rows * n * sizeof *x, cuda->stream));
}

ingot_status cuda_gram_solve(void *context, float *x, unsigned *damping_step, uint64_t rows,
                             const float *gram, uint64_t n, ingot_arena *scratch) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    (void)scratch;
    *damping_step = 255;
    if (n > 46340 || rows > INT32_MAX) { /* n^2 must fit the solver's integer */
        return INGOT_ERR_UNSUPPORTED;
    }
    if (rows == 0 || n == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, x, rows * n * sizeof *x);
    void *memory;
    INGOT_TRY(ingot_alloc(&memory, n * sizeof(float)));
    const ingot_status status =
        solve(cuda, x, damping_step, rows, gram, n, static_cast<float *>(memory));
    ingot_free(memory);
    return status;
}
