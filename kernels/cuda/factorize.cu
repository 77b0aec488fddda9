/* The order and the factor of H on the device (kernels/quantize.h, ingot_gptq_factor): one Cholesky
 * factorization in reverse order (cholesky.cu), in FP32 up a ladder of dampings and in FP64 at
 * its end. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/quantize.h"

extern "C" {
#include "kernels/quantize_internal.h"
}

#include <cmath>

#define THREADS 256

/* Lower triangle (row-major) of the damped H in the reversed order of the factor, zeros above. */
template <typename T>
__global__ static void reverse_kernel(T *l, const float *gram, const uint32_t *order, uint64_t n,
                                      double mean, double damping) {
    const uint64_t i = blockIdx.y;
    const uint64_t a = order[n - 1 - i];
    for (uint64_t j = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; j < n;
         j += (uint64_t)gridDim.x * blockDim.x) {
        const uint64_t b = order[n - 1 - j];
        double value = 0;
        if (j <= i) {
            value = (double)(a > b ? gram[a * n + b] : gram[b * n + a]);
        }
        if (i == j) {
            value = ingot_gptq_damped(value > 0 ? value : mean, damping, mean);
        }
        l[i * n + j] = (T)value;
    }
}

/* feedback_kj = R_kj / R_jj above the diagonal, R = J L J with the reversal J. */
template <typename T>
__global__ static void feedback_kernel(float *feedback, const T *l, uint64_t n) {
    const uint64_t k = blockIdx.y;
    const T *row = l + (n - 1 - k) * n;
    for (uint64_t j = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; j < n;
         j += (uint64_t)gridDim.x * blockDim.x) {
        const uint64_t c = n - 1 - j;
        feedback[k * n + j] = j > k ? (float)row[c] / (float)l[c * n + c] : 0.0f;
    }
}

/* One rung of the ladder: *is_done, and then the feedback is in place. */
template <typename T>
static ingot_status try_damping(bool *is_done, const ingot_cuda *cuda, ingot_gptq_factor *out,
                                const float *gram, double mean) {
    const uint64_t n = out->cols;
    ingot_cuda_buffer lower(cuda);
    INGOT_TRY(lower.alloc(n, n * sizeof(T)));
    T *l = lower.as<T>();
    const dim3 grid((unsigned)ingot_min_u64(ingot_ceil_div(n, THREADS), 64), (unsigned)n);
    reverse_kernel<<<grid, THREADS, 0, cuda->stream>>>(l, gram, out->order, n, mean, out->damping);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(cuda_cholesky(is_done, cuda, l, n));
    if (*is_done) {
        feedback_kernel<<<grid, THREADS, 0, cuda->stream>>>(out->feedback, l, n);
    }
    return ingot_cuda_launched();
}

/* What is decided on the host from the diagonal alone. */
typedef struct host_part {
    float *diagonal, *importance;
    uint32_t *order;
    double mean;
} host_part;

static ingot_status climb(ingot_cuda *cuda, ingot_gptq_factor *out, const float *gram,
                          host_part *host, ingot_arena *memory) {
    const uint64_t n = out->cols;
    ingot_cuda_buffer diagonal(cuda);
    INGOT_TRY(diagonal.alloc(n, sizeof(float)));
    INGOT_TRY(ingot_arena_array(memory, (void **)&host->diagonal, n, sizeof(float)));
    INGOT_TRY(ingot_arena_array(memory, (void **)&host->importance, n, sizeof(float)));
    INGOT_TRY(ingot_arena_array(memory, (void **)&host->order, n, sizeof(uint32_t)));
    INGOT_TRY(cuda_gram_diagonal(cuda, diagonal.as<float>(), gram, n));
    INGOT_TRY(
        ingot_cuda_status(cudaMemcpyAsync(host->diagonal, diagonal.as<float>(), n * sizeof(float),
                                          cudaMemcpyDeviceToHost, cuda->stream)));
    INGOT_TRY(ingot_cuda_status(cudaStreamSynchronize(cuda->stream)));
    INGOT_TRY(ingot_gptq_order(host->order, host->diagonal, n, out->group, memory));
    host->mean = ingot_gptq_mean(host->diagonal, n, &out->dead_columns);
    INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(out->order, host->order, n * sizeof(uint32_t),
                                                cudaMemcpyHostToDevice, cuda->stream)));
    bool is_done = false;
    for (unsigned step = 0; std::isfinite(host->mean) && !is_done && step < INGOT_DAMPING_STEPS;
         step++) {
        out->damping = ingot_gptq_dampings[step];
        INGOT_TRY(step + 1 < INGOT_DAMPING_STEPS
                      ? try_damping<float>(&is_done, cuda, out, gram, host->mean)
                      : try_damping<double>(&is_done, cuda, out, gram, host->mean));
        out->damping_step = is_done ? step : 255;
    }
    if (!is_done) {
        INGOT_TRY(ingot_cuda_status(
            cudaMemsetAsync(out->feedback, 0, n * n * sizeof(float), cuda->stream)));
    }
    ingot_gptq_importance(host->importance, host->diagonal, n, out->damping, host->mean);
    INGOT_TRY(
        ingot_cuda_status(cudaMemcpyAsync(out->importance, host->importance, n * sizeof(float),
                                          cudaMemcpyHostToDevice, cuda->stream)));
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream)); /* the host's arrays go */
}

ingot_status cuda_factorize(void *context, ingot_gptq_factor *out, const float *gram, uint64_t cols,
                            uint64_t group, ingot_arena *arena, ingot_arena *scratch) {
    (void)scratch;
    ingot_arena *memory;
    host_part host = {};
    *out = ingot_gptq_factor();
    out->cols = cols;
    out->group = group;
    out->damping_step = 255;
    if (cols > 46340) { /* cols^2 must fit the solver's integer */
        return INGOT_ERR_UNSUPPORTED;
    }
    INGOT_TRY(ingot_arena_array(arena, (void **)&out->order, cols, sizeof *out->order));
    INGOT_TRY(ingot_arena_array(arena, (void **)&out->importance, cols, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&out->feedback, cols, cols * sizeof(float)));
    INGOT_TRY(ingot_arena_create(&memory));
    const ingot_status status = climb(ingot_cuda_of(context), out, gram, &host, memory);
    ingot_arena_destroy(memory);
    return status;
}
