/* Likelihood and divergence of rows of logits, FP64 inside: one thread block per row, sums of fixed
 * shape. */
#include "kernels/cuda/draw_rows.h"
#include "kernels/cuda/forward.h"

#define PAIR_RUN       65536u /* elements a thread block sums */
#define GRID_ROWS_MOST 65535u /* gridDim.y */
#define THREADS        512
#define WARPS          (THREADS / 32)

/* ---- reductions of a block --------------------------------------------------------------------
 */

typedef struct score_peak {
    float value;
    uint32_t index; /* UINT32_MAX: nothing but NaN */
} score_peak;

/* The larger, the lower index of equals; NaN never wins. */
__device__ static score_peak larger(score_peak a, score_peak b) {
    const bool is_b = b.value > a.value || (b.value == a.value && b.index < a.index);
    return is_b ? b : a;
}

/* The largest of x[n], known to every thread. */
__device__ static score_peak row_peak(const float *x, uint64_t n) {
    __shared__ score_peak peaks[WARPS];
    score_peak peak = {-INFINITY, UINT32_MAX};
#pragma unroll 4
    for (uint64_t i = threadIdx.x; i < n; i += THREADS) {
        peak = larger(peak, {x[i], (uint32_t)i});
    }
    __syncwarp();
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        const score_peak other = {__shfl_xor_sync(0xffffffffu, peak.value, lane),
                                  __shfl_xor_sync(0xffffffffu, peak.index, lane)};
        peak = larger(peak, other);
    }
    __syncthreads(); /* the peaks of the call before have been read */
    if (threadIdx.x % 32 == 0) {
        peaks[threadIdx.x / 32] = peak;
    }
    __syncthreads();
    peak = peaks[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) {
        peak = larger(peak, peaks[i]);
    }
    return peak;
}

/* The sum over the block, the same bits in every thread. */
__device__ static double block_sum(double value) {
    __shared__ double sums[WARPS];
    __syncwarp();
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, lane);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = value;
    }
    __syncthreads();
    double total = 0.0;
#pragma unroll
    for (int i = 0; i < WARPS; i++) {
        total += sums[i];
    }
    return total;
}

/* ---- the operations ---------------------------------------------------------------------------
 */

/* targets and nll, or best, may be NULL. */
__global__ __launch_bounds__(THREADS) static void score_kernel(double *nll, uint32_t *best,
                                                               const float *__restrict__ logits,
                                                               const uint32_t *targets, uint64_t m,
                                                               uint64_t vocab) {
    for (uint64_t row = blockIdx.x; row < m; row += gridDim.x) {
        const float *x = logits + row * vocab;
        const score_peak peak = row_peak(x, vocab);
        if (best != nullptr && threadIdx.x == 0) {
            best[row] = peak.index == UINT32_MAX ? 0 : peak.index;
        }
        if (targets == nullptr) {
            continue;
        }
        const double top = (double)peak.value;
        double sum = 0.0;
#pragma unroll 4
        for (uint64_t i = threadIdx.x; i < vocab; i += THREADS) {
            sum += exp((double)x[i] - top);
        }
        sum = block_sum(sum);
        if (threadIdx.x == 0) {
            nll[row] = log(sum) + (top - (double)x[targets[row]]);
        }
    }
}

/* KL = sum p (log p - log q), both logits relative to their own maximum, so that nothing but the
 * two logarithms is subtracted at the end (kernels/cpu/isa_math.c). */
__global__ __launch_bounds__(THREADS) static void divergence_kernel(double *kl,
                                                                    const float *__restrict__ all_p,
                                                                    const float *__restrict__ all_q,
                                                                    uint64_t m, uint64_t vocab) {
    for (uint64_t row = blockIdx.x; row < m; row += gridDim.x) {
        const float *p = all_p + row * vocab, *q = all_q + row * vocab;
        const double top_p = (double)row_peak(p, vocab).value;
        const double top_q = (double)row_peak(q, vocab).value;
        double sum_p = 0.0, sum_q = 0.0, sum_d = 0.0;
#pragma unroll 2
        for (uint64_t i = threadIdx.x; i < vocab; i += THREADS) {
            const double a = (double)p[i] - top_p, b = (double)q[i] - top_q;
            const double e = exp(a);
            sum_p += e;
            sum_q += exp(b);
            sum_d += e * (a - b);
        }
        sum_p = block_sum(sum_p);
        sum_q = block_sum(sum_q);
        sum_d = block_sum(sum_d);
        if (threadIdx.x == 0) {
            const double value = sum_d / sum_p + log(sum_q / sum_p);
            kl[row] = value < 0.0 ? 0.0 : value;
        }
    }
}

/* q becomes share (softmax(q) - softmax(p)). */
__global__ __launch_bounds__(THREADS) static void slope_kernel(float *all_q,
                                                               const float *__restrict__ all_p,
                                                               float share, uint64_t m,
                                                               uint64_t vocab) {
    for (uint64_t row = blockIdx.x; row < m; row += gridDim.x) {
        const float *p = all_p + row * vocab;
        float *q = all_q + row * vocab;
        const float top_p = row_peak(p, vocab).value, top_q = row_peak(q, vocab).value;
        double sum_p = 0.0, sum_q = 0.0;
#pragma unroll 2
        for (uint64_t i = threadIdx.x; i < vocab; i += THREADS) {
            sum_p += (double)expf(p[i] - top_p);
            sum_q += (double)expf(q[i] - top_q);
        }
        const float part_p = (float)(1.0 / block_sum(sum_p)),
                    part_q = (float)(1.0 / block_sum(sum_q));
#pragma unroll 2
        for (uint64_t i = threadIdx.x; i < vocab; i += THREADS) {
            q[i] = share * (expf(q[i] - top_q) * part_q - expf(p[i] - top_p) * part_p);
        }
        __syncthreads(); /* the sums are read before the next row's are written */
    }
}

static unsigned rows_grid(uint64_t m) {
    return (unsigned)ingot_min_u64(m, UINT64_C(1) << 30);
}

/* host[bytes] = device, when the stream has come there. */
static ingot_status fetch(const ingot_cuda *cuda, void *host, const void *device, uint64_t bytes) {
    INGOT_TRY(ingot_cuda_status(
        cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, cuda->stream)));
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
}

ingot_status cuda_score(void *context, double *nll, uint32_t *best, const float *logits,
                        const uint32_t *targets, uint64_t m, uint64_t vocab) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    for (uint64_t i = 0; targets != nullptr && i < m; i++) {
        if (targets[i] >= vocab) {
            return INGOT_ERR_INPUT;
        }
    }
    if (m == 0 || vocab == 0) {
        return INGOT_OK;
    }
    if (vocab > UINT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    ingot_cuda_buffer likelihoods(cuda), indices(cuda), wanted(cuda);
    uint32_t *device_targets = nullptr;
    INGOT_TRY(likelihoods.alloc(m, sizeof *nll));
    INGOT_TRY(indices.alloc(m, sizeof *best));
    if (targets != nullptr) {
        INGOT_TRY(wanted.alloc(m, sizeof *targets));
        device_targets = wanted.as<uint32_t>();
        INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(device_targets, targets, m * sizeof *targets,
                                                    cudaMemcpyHostToDevice, cuda->stream)));
    }
    score_kernel<<<rows_grid(m), THREADS, 0, cuda->stream>>>(
        likelihoods.as<double>(), indices.as<uint32_t>(), logits, device_targets, m, vocab);
    INGOT_TRY(ingot_cuda_launched());
    if (targets != nullptr) {
        INGOT_TRY(fetch(cuda, nll, likelihoods.as<double>(), m * sizeof *nll));
    }
    return best != nullptr ? fetch(cuda, best, indices.as<uint32_t>(), m * sizeof *best) : INGOT_OK;
}

/* ops->draw: the shares are the caller's. */
struct rows_sink {
    uint32_t *next;
    const double *u;

    __device__ void begin() const {
    }
    __device__ double temperature() const {
        return 1;
    }
    __device__ double unit(unsigned row) const {
        return u[row];
    }
    __device__ void best(unsigned, uint32_t) const {
    }
    __device__ void drawn(unsigned row, uint32_t id, bool is_finite) const {
        next[row] = is_finite ? id : UINT32_MAX;
    }
};

/* Of at most GRID_ROWS_MOST rows. */
static ingot_status draw_rows(const ingot_cuda *cuda, uint32_t *next, const double *u,
                              const float *logits, uint64_t m, uint64_t vocab) {
    ingot_cuda_buffer state(cuda), best_part(cuda), sum_part(cuda), indices(cuda), shares(cuda);
    draw_job<rows_sink> job = {};
    const dim3 grid = draw_grid(&job.piece, vocab, m);
    INGOT_TRY(state.alloc(m, 4 * sizeof(uint32_t)));
    INGOT_TRY(best_part.alloc(m * DRAW_BLOCKS_MOST, sizeof *job.best_part));
    INGOT_TRY(sum_part.alloc(m * DRAW_BLOCKS_MOST, sizeof *job.sum_part));
    INGOT_TRY(indices.alloc(m, sizeof *next));
    INGOT_TRY(shares.alloc(m, sizeof *u));
    INGOT_TRY(ingot_cuda_status(
        cudaMemsetAsync(state.as<uint32_t>(), 0, m * 4 * sizeof(uint32_t), cuda->stream)));
    INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(shares.as<double>(), u, m * sizeof *u,
                                                cudaMemcpyHostToDevice, cuda->stream)));
    job.logits = logits;
    job.best_part = best_part.as<unsigned long long>();
    job.sum_part = sum_part.as<double>();
    job.done = state.as<unsigned>();
    job.not_finite = job.done + m;
    job.best = job.not_finite + m;
    job.peak = reinterpret_cast<float *>(job.best + m);
    job.vocab = (unsigned)vocab;
    job.sink = {indices.as<uint32_t>(), shares.as<double>()};
    draw_best_kernel<rows_sink><<<grid, DRAW_THREADS, 0, cuda->stream>>>(job);
    INGOT_TRY(ingot_cuda_launched());
    draw_kernel<rows_sink><<<grid, DRAW_THREADS, 0, cuda->stream>>>(job);
    INGOT_TRY(ingot_cuda_launched());
    return fetch(cuda, next, job.sink.next, m * sizeof *next);
}

ingot_status cuda_draw(void *context, uint32_t *next, const double *u, const float *logits,
                       uint64_t m, uint64_t vocab) {
    if (vocab == 0 || vocab > UINT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    for (uint64_t first = 0; first < m; first += GRID_ROWS_MOST) {
        INGOT_TRY(draw_rows(ingot_cuda_of(context), next + first, u + first, logits + first * vocab,
                            ingot_min_u64(GRID_ROWS_MOST, m - first), vocab));
    }
    return INGOT_OK;
}

ingot_status cuda_divergence(void *context, double *kl, const float *p, const float *q, uint64_t m,
                             uint64_t vocab) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (m == 0 || vocab == 0) {
        return INGOT_OK;
    }
    if (vocab > UINT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    ingot_cuda_buffer values(cuda);
    INGOT_TRY(values.alloc(m, sizeof *kl));
    divergence_kernel<<<rows_grid(m), THREADS, 0, cuda->stream>>>(values.as<double>(), p, q, m,
                                                                  vocab);
    INGOT_TRY(ingot_cuda_launched());
    return fetch(cuda, kl, values.as<double>(), m * sizeof *kl);
}

ingot_status cuda_divergence_backward(void *context, float *q, const float *p, float share,
                                      uint64_t m, uint64_t vocab) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    if (m == 0 || vocab == 0) {
        return INGOT_OK;
    }
    if (vocab > UINT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    slope_kernel<<<rows_grid(m), THREADS, 0, cuda->stream>>>(q, p, share, m, vocab);
    return ingot_cuda_launched();
}

/* sums[block] of a run of PAIR_RUN elements each: of products, or of squared differences */
template <bool IS_INNER>
__global__ __launch_bounds__(THREADS) static void pair_kernel(double *sums, const float *a,
                                                              const float *b, uint64_t n) {
    __shared__ double shared[THREADS];
    const uint64_t begin = (uint64_t)blockIdx.x * PAIR_RUN;
    const uint64_t end = begin + PAIR_RUN < n ? begin + PAIR_RUN : n;
    double sum = 0;
    for (uint64_t i = begin + threadIdx.x; i < end; i += THREADS) {
        const double e = (double)a[i] - (double)b[i];
        sum += IS_INNER ? (double)a[i] * (double)b[i] : e * e;
    }
    shared[threadIdx.x] = sum;
    __syncthreads();
    for (unsigned step = THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) {
            shared[threadIdx.x] += shared[threadIdx.x + step];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = shared[0];
    }
}

static ingot_status sum_pairs(const ingot_cuda *cuda, double *out, const float *a, const float *b,
                              uint64_t n, bool is_inner) {
    const uint64_t runs = ingot_ceil_div(n, PAIR_RUN);
    void *memory;
    *out = 0;
    if (n == 0) {
        return INGOT_OK;
    }
    if (runs > INT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    ingot_cuda_buffer sums(cuda);
    INGOT_TRY(sums.alloc(runs, sizeof(double)));
    if (is_inner) {
        pair_kernel<true><<<(unsigned)runs, THREADS, 0, cuda->stream>>>(sums.as<double>(), a, b, n);
    } else {
        pair_kernel<false>
            <<<(unsigned)runs, THREADS, 0, cuda->stream>>>(sums.as<double>(), a, b, n);
    }
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(ingot_alloc(&memory, runs * sizeof(double)));
    double *host = static_cast<double *>(memory);
    const ingot_status status = fetch(cuda, host, sums.as<double>(), runs * sizeof *host);
    for (uint64_t i = 0; status == INGOT_OK && i < runs; i++) {
        *out += host[i];
    }
    ingot_free(memory);
    return status;
}

ingot_status cuda_distance(void *context, double *out, const float *a, const float *b, uint64_t n) {
    return sum_pairs(ingot_cuda_of(context), out, a, b, n, false);
}

ingot_status cuda_inner(void *context, double *out, const float *a, const float *b, uint64_t n) {
    return sum_pairs(ingot_cuda_of(context), out, a, b, n, true);
}
