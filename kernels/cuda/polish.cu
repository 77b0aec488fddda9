/* Polish of scales, zero points and codes on the device, in the form of kernels/polish.c: all rows
 * take a group together.  One warp takes a row, each lane up to four of at most 128 columns; H of
 * the block lies in shared memory.  What changed moves E H, at once of the columns nearby, later of
 * all, by products on tensor cores in TF32.
 *
 * Rounding to 11 bits is harmless here.  H is rounded once, for all that reads it, by less than the
 * binary16 inputs that it is made of.  Errors and their changes, about a step of the format each,
 * are rounded by 2^-12 of themselves: r is that of weights 1e-4 of a step from those at hand, which
 * moves nothing but ties, and those by as little. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/search.h"

#define THREADS 256
#define WARPS   8
#define BLOCK   128  /* columns whose codes are visited between two updates of all */
#define EACH    4    /* columns of a lane */
#define SPAN    1024 /* columns whose changes move those of all others together, about */

typedef struct polish_job {
    uint8_t *codes; /* [rows][n] */
    float *scales;
    uint8_t *zeros;
    const uint64_t *row_ptr;   /* of outliers; NULL: none */
    const uint8_t *skip;       /* [rows][n], nonzero: an outlier; NULL: none */
    const float *gram;         /* [n][n], damped, in TF32 */
    const float *group_sum;    /* [n]: gram summed over the columns of the own group; NULL: zero
                                  points are not stored */
    const double *group_total; /* [groups] */
    float *r;                  /* [rows][n]: E H */
    float *steps, *product;    /* [rows][group]: c and c H_gg */
    float *change;             /* [rows][span]: of stored values, from column span_at on; TF32 */
    uint64_t rows, n, group_size, groups, group;
    uint64_t at, count;               /* columns at hand */
    uint64_t span, span_at, span_end; /* of them are the last ones of which r knows */
    unsigned bits;
    ingot_dtype scale_dtype;
} polish_job;

__device__ static double warp_sum(double x) {
    for (int lane = 16; lane > 0; lane /= 2) {
        x += __shfl_xor_sync(0xffffffffu, x, lane);
    }
    return x;
}

/* steps[rows][group] = c of the group, zero behind a short one's end */
__global__ static void steps_kernel(const polish_job job) {
    const uint64_t total = job.rows * job.count, step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const uint64_t row = i / job.count, col = i % job.count;
        const float zero = (float)job.zeros[row * job.groups + job.group];
        job.steps[row * job.group_size + col] = (float)job.codes[row * job.n + job.at + col] - zero;
    }
}

/* The scale that is best for the codes, from along = r c and square = c H c; *delta = by how much
 * it changes, 0 unless the loss falls. */
__device__ static float refitted(double *delta, float scale, double along, double square,
                                 ingot_dtype dtype) {
    *delta = 0;
    if (!(square > 0) || scale == 0.0f) {
        return scale;
    }
    const float moved = cuda_scale_store((float)((double)scale + along / square), dtype);
    const double d = (double)moved - (double)scale;
    if (moved == 0.0f || !(d * (2 * along - d * square) > 0)) {
        return scale;
    }
    *delta = d;
    return moved;
}

/* The zero point likewise, from along = the sum of r and square = that of H_gg; *change = what all
 * stored values change by. */
__device__ static double shifted(double *change, double zero, float scale, double along,
                                 double square, unsigned bits) {
    const double top = (double)((1u << bits) - 1), s = (double)scale;
    *change = 0;
    if (s == 0 || !(square > 0)) {
        return zero;
    }
    const double moved = fmin(fmax(rint(zero - along / (s * square)), 0.0), top);
    const double d = -s * (moved - zero);
    if (!(d * (2 * along - d * square) > 0)) {
        return zero;
    }
    *change = d;
    return moved;
}

/* Scales and zero points of a group of any size, without its codes; one warp a row. */
__global__ __launch_bounds__(THREADS) static void refit_kernel(const polish_job job) {
    const int lane = threadIdx.x % 32;
    const uint64_t row = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32;
    if (row >= job.rows) {
        return;
    }
    const float *r = job.r + row * job.n + job.at;
    const float *c = job.steps + row * job.group_size, *p = job.product + row * job.group_size;
    const uint64_t place = row * job.groups + job.group;
    double along = 0, square = 0, sum = 0, delta, moved = 0;
    for (uint64_t i = lane; i < job.count; i += 32) {
        along += (double)r[i] * (double)c[i];
        square += (double)p[i] * (double)c[i];
    }
    const float old = job.scales[place];
    const float scale = refitted(&delta, old, warp_sum(along), warp_sum(square), job.scale_dtype);
    const double old_zero = (double)job.zeros[place];
    double zero = old_zero;
    if (job.group_sum != nullptr &&
        (job.row_ptr == nullptr || job.row_ptr[row] == job.row_ptr[row + 1])) {
        for (uint64_t i = lane; i < job.count; i += 32) {
            sum += (double)(r[i] - (float)delta * p[i]);
        }
        zero =
            shifted(&moved, old_zero, scale, warp_sum(sum), job.group_total[job.group], job.bits);
    }
    for (uint64_t i = lane; i < job.count; i += 32) {
        const float now = scale * (c[i] - (float)(zero - old_zero));
        job.change[row * job.span + job.at - job.span_at + i] = rounded_to_tf32(now - old * c[i]);
    }
    if (lane == 0) {
        job.scales[place] = scale;
        job.zeros[place] = (uint8_t)zero;
    }
}

/* Codes of at most BLOCK columns, after scale and zero point when the group is no larger. */
template <bool IS_GROUP>
__global__ __launch_bounds__(WARPS * 32) void descend_kernel(const polish_job job) {
    extern __shared__ float block[]; /* [count][BLOCK] */
    const int lane = threadIdx.x % 32, count = (int)job.count;
    for (int i = threadIdx.x; i < count * BLOCK; i += blockDim.x) {
        const int row = i / BLOCK, col = i % BLOCK;
        const uint64_t from = (job.at + row) * job.n + job.at + col;
        block[i] = col < count ? job.gram[from] : 0.0f;
    }
    __syncthreads();
    const float top = (float)((1u << job.bits) - 1);
    for (uint64_t row = (uint64_t)blockIdx.x * WARPS + threadIdx.x / 32; row < job.rows;
         row += (uint64_t)gridDim.x * WARPS) {
        const uint64_t place = row * job.groups + job.group;
        float scale = job.scales[place], zero = (float)job.zeros[place];
        float r[EACH], c[EACH], old[EACH];
        bool is_fixed[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int col = k * 32 + lane;
            const uint64_t from = row * job.n + job.at + col;
            r[k] = col < count ? job.r[from] : 0.0f;
            c[k] = col < count ? (float)job.codes[from] - zero : 0.0f;
            old[k] = scale * c[k];
            is_fixed[k] = col >= count || (job.skip != nullptr && job.skip[from] != 0);
        }
        if (IS_GROUP) {
            float p[EACH];
            double along = 0, square = 0, delta;
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                const int col = k * 32 + lane;
                p[k] = col < count ? job.product[row * job.group_size + col] : 0.0f;
                along += (double)r[k] * (double)c[k];
                square += (double)p[k] * (double)c[k];
            }
            scale = refitted(&delta, scale, warp_sum(along), warp_sum(square), job.scale_dtype);
#pragma unroll
            for (int k = 0; k < EACH; k++) {
                r[k] -= (float)delta * p[k];
            }
            if (job.group_sum != nullptr &&
                (job.row_ptr == nullptr || job.row_ptr[row] == job.row_ptr[row + 1])) {
                double sum = 0, change;
#pragma unroll
                for (int k = 0; k < EACH; k++) {
                    sum += (double)r[k];
                }
                const float moved = (float)shifted(&change, (double)zero, scale, warp_sum(sum),
                                                   job.group_total[job.group], job.bits);
#pragma unroll
                for (int k = 0; k < EACH; k++) {
                    const int col = k * 32 + lane;
                    r[k] -= col < count ? (float)change * job.group_sum[job.at + col] : 0.0f;
                    c[k] -= moved - zero;
                }
                zero = moved;
            }
        }
#pragma unroll
        for (int piece = 0; piece < EACH; piece++) {
            for (int j = piece * 32; j < piece * 32 + 32 && j < count && scale != 0.0f; j++) {
                /* Every lane does the owner's work on its own column; only the owner's counts. */
                const float h = block[j * BLOCK + j], own = r[piece];
                const float x = c[piece] + __fdiv_rn(own, scale * h);
                const float wanted = rintf(fminf(fmaxf(x, -zero), top - zero));
                float change = scale * (wanted - c[piece]);
                const bool is_better = lane == j % 32 && !is_fixed[piece] && h > 0.0f &&
                                       change * (2.0f * own - change * h) > 0.0f;
                if (is_better) {
                    c[piece] = wanted;
                }
                change = __shfl_sync(0xffffffffu, is_better ? change : 0.0f, j % 32);
                if (change != 0.0f) {
#pragma unroll
                    for (int k = piece; k < EACH; k++) {
                        r[k] = fmaf(-change, block[j * BLOCK + k * 32 + lane], r[k]);
                    }
                }
            }
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int col = k * 32 + lane;
            if (col < count) {
                job.codes[row * job.n + job.at + col] = (uint8_t)(c[k] + zero);
                job.change[row * job.span + job.at - job.span_at + col] =
                    rounded_to_tf32(scale * c[k] - old[k]);
            }
        }
        if (IS_GROUP && lane == 0) {
            job.scales[place] = scale;
            job.zeros[place] = (uint8_t)zero;
        }
    }
}

/* ---- the rounds -------------------------------------------------------------------------------
 */

/* c[rows][n] = beta c + alpha a[rows][k] b[k][n], row-major, a and b in TF32 */
static ingot_status multiply(const ingot_cuda *cuda, float *c, uint64_t c_stride, float alpha,
                             const float *a, uint64_t a_stride, const float *b, uint64_t b_stride,
                             uint64_t rows, uint64_t k, uint64_t n, float beta) {
    return ingot_cublas_status(
        cublasGemmEx(cuda->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)n, (int)rows, (int)k, &alpha, b,
                     CUDA_R_32F, (int)b_stride, a, CUDA_R_32F, (int)a_stride, &beta, c, CUDA_R_32F,
                     (int)c_stride, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT));
}

/* r[first .. end-1] -= change H of columns at .. at+count-1 */
static ingot_status move(const ingot_cuda *cuda, const polish_job *job, uint64_t at, uint64_t count,
                         uint64_t first, uint64_t end) {
    return first >= end
               ? INGOT_OK
               : multiply(cuda, job->r + first, job->n, -1.0f, job->change + (at - job->span_at),
                          job->span, job->gram + at * job->n + first, job->n, job->rows, count,
                          end - first, 1.0f);
}

static ingot_status descend(const ingot_cuda *cuda, const polish_job *job, bool is_group) {
    const unsigned blocks = (unsigned)ingot_min_u64(ingot_ceil_div(job->rows, WARPS),
                                                    4u * (unsigned)cuda->multiprocessors);
    const size_t bytes = job->count * BLOCK * sizeof(float);
    if (is_group) {
        descend_kernel<true><<<blocks, WARPS * 32, bytes, cuda->stream>>>(*job);
    } else {
        descend_kernel<false><<<blocks, WARPS * 32, bytes, cuda->stream>>>(*job);
    }
    INGOT_TRY(ingot_cuda_launched());
    return move(cuda, job, job->at, job->count, job->span_at, job->span_end);
}

static ingot_status take_group(const ingot_cuda *cuda, polish_job job, uint64_t group) {
    job.group = group;
    job.at = group * job.group_size;
    job.count = ingot_min_u64(job.group_size, job.n - job.at);
    steps_kernel<<<cuda_blocks(cuda, job.rows * job.count, THREADS), THREADS, 0, cuda->stream>>>(
        job);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(multiply(cuda, job.product, job.group_size, 1.0f, job.steps, job.group_size,
                       job.gram + job.at * job.n + job.at, job.n, job.rows, job.count, job.count,
                       0.0f));
    if (job.count <= BLOCK) {
        return descend(cuda, &job, true);
    }
    refit_kernel<<<(unsigned)ingot_ceil_div(job.rows, WARPS), THREADS, 0, cuda->stream>>>(job);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(move(cuda, &job, job.at, job.count, 0, job.n));
    const uint64_t end = job.at + job.count;
    for (; job.at < end; job.at += BLOCK) {
        job.count = ingot_min_u64(BLOCK, end - job.at);
        INGOT_TRY(descend(cuda, &job, false));
    }
    return INGOT_OK;
}

/* Groups of one span: what changes is known at once inside it, outside it when all are done, by
 * products that are deep enough for the device. */
static ingot_status take_span(const ingot_cuda *cuda, polish_job job, uint64_t at) {
    job.span_at = at;
    job.span_end = ingot_min_u64(at + job.span, job.n);
    for (uint64_t first = at; first < job.span_end; first += job.group_size) {
        INGOT_TRY(take_group(cuda, job, first / job.group_size));
    }
    const uint64_t count = job.span_end - at;
    INGOT_TRY(move(cuda, &job, at, count, 0, at));
    return move(cuda, &job, at, count, job.span_end, job.n);
}

/* ---- before them ------------------------------------------------------------------------------
 */

__global__ static void damp_kernel(float *gram, const float *importance, uint64_t n) {
    const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        gram[i * n + i] = importance[i];
    }
}

/* One warp a column: gram summed over the columns of its group. */
__global__ static void group_sum_kernel(float *group_sum, const float *gram, uint64_t n,
                                        uint64_t group) {
    const int lane = threadIdx.x % 32;
    const uint64_t i = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (i >= n) {
        return;
    }
    const uint64_t first = i / group * group, end = min(first + group, n);
    double sum = 0;
    for (uint64_t j = first + lane; j < end; j += 32) {
        sum += (double)gram[i * n + j];
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        group_sum[i] = (float)sum;
    }
}

__global__ static void group_total_kernel(double *group_total, const float *group_sum, uint64_t n,
                                          uint64_t group, uint64_t groups) {
    const uint64_t g = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    double sum = 0;
    for (uint64_t i = g * group; g < groups && i < min((g + 1) * group, n); i++) {
        sum += (double)group_sum[i];
    }
    if (g < groups) {
        group_total[g] = sum;
    }
}

/* x = w - x, or x where there is no w, in TF32 */
__global__ static void round_kernel(float *x, const float *w, uint64_t count) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        x[i] = rounded_to_tf32(w != nullptr ? w[i] - x[i] : x[i]);
    }
}

static ingot_status sum_groups(const ingot_cuda *cuda, polish_job *job, const float *gram,
                               float *sums, double *totals) {
    job->group_sum = sums;
    job->group_total = totals;
    group_sum_kernel<<<(unsigned)ingot_ceil_div(job->n, WARPS), THREADS, 0, cuda->stream>>>(
        sums, gram, job->n, job->group_size);
    INGOT_TRY(ingot_cuda_launched());
    group_total_kernel<<<(unsigned)ingot_ceil_div(job->groups, THREADS), THREADS, 0,
                         cuda->stream>>>(totals, sums, job->n, job->group_size, job->groups);
    return ingot_cuda_launched();
}

/* gram = H of the job with its damping; sums NULL: zero points are not stored. */
static ingot_status prepare(const ingot_cuda *cuda, polish_job *job, float *gram, float *sums,
                            double *totals, const float *importance) {
    const uint64_t n = job->n;
    damp_kernel<<<(unsigned)ingot_ceil_div(n, THREADS), THREADS, 0, cuda->stream>>>(gram,
                                                                                    importance, n);
    INGOT_TRY(ingot_cuda_launched());
    round_kernel<<<cuda_blocks(cuda, n * n, THREADS), THREADS, 0, cuda->stream>>>(gram, nullptr,
                                                                                  n * n);
    INGOT_TRY(ingot_cuda_launched());
    job->gram = gram;
    return sums != nullptr ? sum_groups(cuda, job, gram, sums, totals) : INGOT_OK;
}

/* r = E H */
static ingot_status begin(ingot_cuda *cuda, const polish_job *job, const ingot_quantized *q,
                          const float *w) {
    const uint64_t count = job->rows * job->n;
    ingot_cuda_buffer errors(cuda);
    INGOT_TRY(errors.alloc(count, sizeof(float)));
    float *e = errors.as<float>();
    INGOT_TRY(cuda_quantized_values(cuda, e, q));
    round_kernel<<<cuda_blocks(cuda, count, THREADS), THREADS, 0, cuda->stream>>>(e, w, count);
    INGOT_TRY(ingot_cuda_launched());
    return multiply(cuda, job->r, job->n, 1.0f, e, job->n, job->gram, job->n, job->rows, job->n,
                    job->n, 0.0f);
}

static ingot_status allow_shared_memory(void) {
    constexpr int BYTES = BLOCK * BLOCK * (int)sizeof(float);
    static_assert(BYTES <= CUDA_LEAST_SHARED_BYTES, "on every device");
    INGOT_TRY(ingot_cuda_status(cudaFuncSetAttribute(
        descend_kernel<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES)));
    return ingot_cuda_status(cudaFuncSetAttribute(
        descend_kernel<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
}

ingot_status cuda_polish(void *context, ingot_quantized *q, const float *w, const float *gram,
                         const float *importance, unsigned rounds, ingot_arena *scratch) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t rows = q->rows, n = q->cols, group = q->format.group;
    (void)scratch;
    if (rows == 0 || n == 0) {
        return INGOT_OK;
    }
    if (rows > INT32_MAX || n > INT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    polish_job job = {};
    ingot_cuda_buffer damped(cuda), r(cuda), steps(cuda), product(cuda), change(cuda);
    ingot_cuda_buffer sums(cuda), totals(cuda), skip(cuda);
    INGOT_TRY(damped.alloc(n, n * sizeof(float)));
    INGOT_TRY(r.alloc(rows, n * sizeof(float)));
    INGOT_TRY(steps.alloc(rows, group * sizeof(float)));
    INGOT_TRY(product.alloc(rows, group * sizeof(float)));
    job.span = ingot_max_u64(SPAN / group, 1) * group;
    INGOT_TRY(change.alloc(rows, job.span * sizeof(float)));
    INGOT_TRY(sums.alloc(n, sizeof(float)));
    INGOT_TRY(totals.alloc(q->groups, sizeof(double)));
    job.codes = q->codes;
    job.scales = q->scales;
    job.zeros = q->zeros;
    job.r = r.as<float>();
    job.steps = steps.as<float>();
    job.product = product.as<float>();
    job.change = change.as<float>();
    job.rows = rows;
    job.n = n;
    job.group_size = group;
    job.groups = q->groups;
    job.bits = q->format.bits;
    job.scale_dtype = q->format.scale_dtype;
    if (q->outliers.count != 0) {
        INGOT_TRY(skip.alloc(rows, n));
        INGOT_TRY(cuda_outlier_mask(cuda, skip.as<uint8_t>(), &q->outliers, rows, n));
        job.skip = skip.as<uint8_t>();
        job.row_ptr = q->outliers.row_ptr;
    }
    INGOT_TRY(allow_shared_memory());
    INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(damped.as<float>(), gram, n * n * sizeof(float),
                                                cudaMemcpyDeviceToDevice, cuda->stream)));
    const bool is_free = q->format.zero_mode == INGOT_ZERO_STORED;
    INGOT_TRY(prepare(cuda, &job, damped.as<float>(), is_free ? sums.as<float>() : nullptr,
                      totals.as<double>(), importance));
    INGOT_TRY(begin(cuda, &job, q, w));
    for (unsigned round = 0; round < rounds; round++) {
        for (uint64_t at = 0; at < n; at += job.span) {
            INGOT_TRY(take_span(cuda, job, at));
        }
    }
    return INGOT_OK;
}
