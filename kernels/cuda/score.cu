/* Scores of logits on the device: negative log-likelihood, argmax, divergence; one thread block a
 * row, FP64 sums in a fixed order. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"

#define THREADS 256

/* The largest value of a row and the lowest index that has it. */
struct peak {
    float value;
    uint64_t index;
};

__device__ static bool is_before(const peak &a, const peak &b) {
    return a.value > b.value || (a.value == b.value && a.index < b.index);
}

__device__ static peak row_peak(const float *row, uint64_t n, peak *shared) {
    peak best = {-INFINITY, UINT64_MAX};
    for (uint64_t i = threadIdx.x; i < n; i += THREADS) {
        const peak own = {row[i], i};
        if (is_before(own, best)) {
            best = own;
        }
    }
    shared[threadIdx.x] = best;
    __syncthreads();
    for (unsigned step = THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step && is_before(shared[threadIdx.x + step], shared[threadIdx.x])) {
            shared[threadIdx.x] = shared[threadIdx.x + step];
        }
        __syncthreads();
    }
    best = shared[0];
    __syncthreads();
    return best;
}

__device__ static double block_sum(double x, double *shared) {
    shared[threadIdx.x] = x;
    __syncthreads();
    for (unsigned step = THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) {
            shared[threadIdx.x] += shared[threadIdx.x + step];
        }
        __syncthreads();
    }
    x = shared[0];
    __syncthreads();
    return x;
}

__device__ static double log_sum(const float *row, uint64_t n, float largest, double *shared) {
    double sum = 0;
    for (uint64_t i = threadIdx.x; i < n; i += THREADS) {
        sum += exp((double)row[i] - (double)largest);
    }
    return log(block_sum(sum, shared));
}

__global__ __launch_bounds__(THREADS) void score_kernel(double *nll, uint32_t *best,
                                                        const float *logits,
                                                        const uint32_t *targets, uint64_t vocab) {
    __shared__ peak peaks[THREADS];
    __shared__ double sums[THREADS];
    const float *row = logits + blockIdx.x * vocab;
    const peak top = row_peak(row, vocab, peaks);
    if (threadIdx.x == 0) {
        best[blockIdx.x] = (uint32_t)(top.index == UINT64_MAX ? 0 : top.index);
    }
    if (targets != nullptr) {
        const double total = log_sum(row, vocab, top.value, sums);
        if (threadIdx.x == 0) {
            nll[blockIdx.x] = total + (double)top.value - (double)row[targets[blockIdx.x]];
        }
    }
}

__global__ __launch_bounds__(THREADS) void divergence_kernel(double *kl, const float *p,
                                                             const float *q, uint64_t vocab) {
    __shared__ peak peaks[THREADS];
    __shared__ double sums[THREADS];
    const float *p_row = p + blockIdx.x * vocab, *q_row = q + blockIdx.x * vocab;
    const float p_top = row_peak(p_row, vocab, peaks).value;
    const float q_top = row_peak(q_row, vocab, peaks).value;
    const double p_log = log_sum(p_row, vocab, p_top, sums);
    const double q_log = log_sum(q_row, vocab, q_top, sums);
    double sum = 0;
    for (uint64_t i = threadIdx.x; i < vocab; i += THREADS) {
        const double a = (double)p_row[i] - (double)p_top - p_log;
        const double b = (double)q_row[i] - (double)q_top - q_log;
        sum += exp(a) * (a - b);
    }
    sum = block_sum(sum, sums);
    if (threadIdx.x == 0) {
        kl[blockIdx.x] = sum > 0 || isnan(sum) ? sum : 0;
    }
}

ingot_status cuda_score(void *context, double *nll, uint32_t *best, const float *logits,
                        const uint32_t *targets, uint64_t m, uint64_t vocab) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    if (m == 0) {
        return INGOT_OK;
    }
    if (m > INT32_MAX || vocab == 0) {
        return INGOT_ERR_USAGE;
    }
    ingot_cuda_buffer device_nll(cuda), device_best(cuda), device_targets(cuda);
    INGOT_TRY(device_nll.alloc(m, sizeof *nll));
    INGOT_TRY(device_best.alloc(m, sizeof *best));
    if (targets != nullptr) {
        INGOT_TRY(device_targets.alloc(m, sizeof *targets));
        INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(device_targets.as<void>(), targets,
                                                    m * sizeof *targets, cudaMemcpyHostToDevice,
                                                    cuda->stream)));
    }
    score_kernel<<<(unsigned)m, THREADS, 0, cuda->stream>>>(device_nll.as<double>(),
                                                            device_best.as<uint32_t>(), logits,
                                                            device_targets.as<uint32_t>(), vocab);
    INGOT_TRY(ingot_cuda_launched());
    if (targets != nullptr) {
        INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(nll, device_nll.as<void>(), m * sizeof *nll,
                                                    cudaMemcpyDeviceToHost, cuda->stream)));
    }
    INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(best, device_best.as<void>(), m * sizeof *best,
                                                cudaMemcpyDeviceToHost, cuda->stream)));
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
}

ingot_status cuda_divergence(void *context, double *kl, const float *p, const float *q, uint64_t m,
                             uint64_t vocab) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    if (m == 0) {
        return INGOT_OK;
    }
    if (m > INT32_MAX || vocab == 0) {
        return INGOT_ERR_USAGE;
    }
    ingot_cuda_buffer device_kl(cuda);
    INGOT_TRY(device_kl.alloc(m, sizeof *kl));
    divergence_kernel<<<(unsigned)m, THREADS, 0, cuda->stream>>>(device_kl.as<double>(), p, q,
                                                                 vocab);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(kl, device_kl.as<void>(), m * sizeof *kl,
                                                cudaMemcpyDeviceToHost, cuda->stream)));
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
}
