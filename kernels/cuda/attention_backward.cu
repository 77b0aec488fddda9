/* Gradients of causal attention on the device.
 *
 * A block of queries meets all keys it may see at once: their scores S and slopes dP = dO V^T exist
 * for a bounded number of (sequence, head) pairs at a time, rows of one kernel turn them into
 * weights P and gradients dS in binary16, and the five products are batches of cuBLAS on tensor
 * cores with FP32 sums.  Scores are thus computed again from queries and keys; what the forward
 * pass knew of their sums is not needed.
 *
 * Query, key, value and gradient are rounded to binary16, each tensor scaled by the power of two
 * that brings its largest magnitude near 2^12, their heads padded to a multiple of 8; dS is scaled
 * by a power of two that its bound (twice the largest |dO| |V| scale, times the head's width)
 * cannot overflow.  Heads that share a key head are summed in order afterwards. */
#include "kernels/cuda/backward.h"

#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"

#include <climits>

#define THREADS       256
#define QUERIES       UINT64_C(512)         /* of a block */
#define SCRATCH_BYTES (UINT64_C(768) << 20) /* of scores, slopes, weights and gradients */
#define KEPT          8 /* scores and slopes of a row that a thread holds in registers */

/* ---- to binary16 ------------------------------------------------------------------------------
 */

enum { TENSOR_Q, TENSOR_K, TENSOR_V, TENSOR_DOUT, TENSORS };

/* Device: what is known of the four tensors, and the factors of products. */
typedef struct attention_state {
    ingot_cuda_range range[TENSORS];
    float score, slope; /* Q K^T and dO V^T become scores (scaled) and dP */
    float dv, dk, dq;   /* P^T dO, dS^T Q, dS K */
    float to_half;      /* dS before it is rounded */
} attention_state;

/* x[rows][head_dim] becomes out[rows][padded]. */
typedef struct pad_job {
    __half *out;
    const float *x;
    ingot_cuda_range *range;
    uint64_t rows;
    unsigned head_dim, padded;
} pad_job;

/* The exponent that a tensor is divided by. */
__device__ static int exponent_of(const ingot_cuda_range &range) {
    const float largest = __uint_as_float(range.largest);
    return largest != 0.0f ? min(max(ilogbf(largest) - 12, -100), 100) : 0;
}

__global__ __launch_bounds__(THREADS) static void pad_range_kernel(const pad_job job) {
    ingot_cuda_range range = {0, 0};
    const uint64_t count = job.rows * job.head_dim, step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step) {
        cuda_range_add(&range, job.x[i]);
    }
    __syncwarp();
    cuda_range_store(job.range, range);
}

__global__ __launch_bounds__(THREADS) static void pad_half_kernel(const pad_job job) {
    const float factor = cuda_power_of_two(-exponent_of(*job.range));
    const uint64_t count = job.rows * job.padded, step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step) {
        const uint64_t row = i / job.padded;
        const unsigned column = (unsigned)(i - row * job.padded);
        job.out[i] = __float2half_rn(
            column < job.head_dim ? job.x[row * job.head_dim + column] * factor : 0.0f);
    }
}

__global__ static void factors_kernel(attention_state *state, float scale, unsigned head_dim) {
    const int q = exponent_of(state->range[TENSOR_Q]), k = exponent_of(state->range[TENSOR_K]);
    const int v = exponent_of(state->range[TENSOR_V]);
    const int dout = exponent_of(state->range[TENSOR_DOUT]);
    /* |dS| <= 2 |scale| head_dim max |dO| max |V| < 2^bound */
    const int bound = dout + 13 + v + 13 + (32 - __clz((int)head_dim)) + 1 +
                      (scale != 0.0f ? ilogbf(scale) + 1 : 0);
    const int shift = min(max(bound - 14, -100), 100);
    state->score = ldexpf(scale, q + k);
    state->slope = ldexpf(1.0f, dout + v);
    state->dv = ldexpf(1.0f, dout);
    state->dk = ldexpf(1.0f, shift + q);
    state->dq = ldexpf(1.0f, shift + k);
    state->to_half = cuda_power_of_two(-shift);
}

/* ---- rows -------------------------------------------------------------------------------------
 */

typedef struct rows_job {
    const float *score, *slope; /* [pairs][queries][stride] */
    __half *weight, *gradient;  /* likewise */
    const attention_state *state;
    uint64_t stride, keys; /* keys first_key .. first_key + keys - 1 */
    uint64_t first_query, queries, first_key;
    uint64_t window;
    float softcap, scale;
} rows_job;

/* The sum or the maximum over a thread block, in every thread. */
template <bool IS_SUM> __device__ static float over_block(float value, float *shared) {
    for (int lane = 16; lane > 0; lane /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, value, lane);
        value = IS_SUM ? value + other : fmaxf(value, other);
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = shared[0];
    for (int i = 1; i < THREADS / 32; i++) {
        value = IS_SUM ? value + shared[i] : fmaxf(value, shared[i]);
    }
    return value;
}

/* A score as the softmax sees it, -infinity where the query does not see the key. */
__device__ static float seen(float score, bool is_visible, float softcap) {
    score = softcap != 0.0f ? softcap * tanhf(score / softcap) : score;
    return is_visible ? score : -INFINITY;
}

/* One row a thread block: weights of the softmax and gradients of the scores. */
__global__ __launch_bounds__(THREADS) static void attention_rows_kernel(const rows_job job) {
    __shared__ float shared[THREADS / 32];
    const uint64_t query = blockIdx.x,
                   at = ((uint64_t)blockIdx.y * job.queries + query) * job.stride;
    const uint64_t position = job.first_query + query;
    const float *score = job.score + at, *slope = job.slope + at;
    const uint64_t end = position + 1 - job.first_key; /* one past the last key seen */
    const uint64_t begin = job.window != 0 && position + 1 > job.window + job.first_key
                               ? position + 1 - job.window - job.first_key
                               : 0;
    float s[KEPT], d[KEPT], top = -INFINITY;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const uint64_t j = threadIdx.x + i * THREADS;
        const bool is_visible = j >= begin && j < end;
        s[i] = is_visible ? seen(score[j], true, job.softcap) : -INFINITY;
        d[i] = is_visible ? slope[j] : 0.0f;
        top = fmaxf(top, s[i]);
    }
    for (uint64_t j = threadIdx.x + KEPT * THREADS; j < end; j += THREADS) {
        top = fmaxf(top, seen(score[j], j >= begin, job.softcap));
    }
    top = over_block<false>(top, shared);
    float sum = 0, along = 0;
#pragma unroll
    for (int i = 0; i < KEPT; i++) {
        const float weight = expf(s[i] - top);
        sum += weight;
        along = fmaf(weight, d[i], along);
    }
    for (uint64_t j = threadIdx.x + KEPT * THREADS; j < end; j += THREADS) {
        const float weight = expf(seen(score[j], j >= begin, job.softcap) - top);
        sum += weight;
        along = fmaf(weight, slope[j], along);
    }
    sum = over_block<true>(sum, shared);
    const float delta = over_block<true>(along, shared) / sum;
    const float by = job.scale * job.state->to_half;
    __half *weights = job.weight + at, *gradients = job.gradient + at;
    for (int i = 0; threadIdx.x + (uint64_t)i * THREADS < job.stride; i++) {
        const uint64_t j = threadIdx.x + (uint64_t)i * THREADS;
        const bool is_visible = j >= begin && j < end;
        float own = -INFINITY, dp = 0.0f;
#pragma unroll
        for (int k = 0; k < KEPT; k++) { /* registers have no index at run time */
            own = k == i ? s[k] : own;
            dp = k == i ? d[k] : dp;
        }
        if (i >= KEPT && is_visible) {
            own = seen(score[j], true, job.softcap);
            dp = slope[j];
        }
        const float weight = expf(own - top) / sum;
        const float bend = job.softcap != 0.0f && is_visible
                               ? 1.0f - own / job.softcap * (own / job.softcap)
                               : 1.0f;
        weights[j] = __float2half_rn(is_visible ? weight : 0.0f);
        gradients[j] = __float2half_rn(is_visible ? weight * (dp - delta) * bend * by : 0.0f);
    }
}

/* ---- batches of products ----------------------------------------------------------------------
 */

enum {
    PART_Q,
    PART_K,
    PART_V,
    PART_DOUT,
    PART_SCORE,
    PART_SLOPE,
    PART_WEIGHT,
    PART_GRADIENT,
    PART_DQ,
    PART_DK,
    PART_DV,
    PARTS
};

/* Everything a call shares. */
typedef struct backward_job {
    ingot_attention shape;
    unsigned padded;
    __half *half[TENSORS];
    float *dq, *dk, *dv; /* dk and dv of every query head */
    float *score, *slope;
    __half *weight, *gradient;
    attention_state *state;
    void **parts;               /* device: [PARTS][pairs of a piece] */
    uint64_t first_pair, pairs; /* of the piece at hand */
    uint64_t first_query, queries, first_key, keys, stride;
} backward_job;

/* Where each pair of a piece has its parts. */
__global__ static void parts_kernel(const backward_job job) {
    const ingot_attention &s = job.shape;
    const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= job.pairs) {
        return;
    }
    const uint64_t sequence = (job.first_pair + i) / s.heads, head = (job.first_pair + i) % s.heads;
    const uint64_t kv_head = head / (s.heads / s.kv_heads);
    const uint64_t query = (sequence * s.q_len + job.first_query) * s.heads + head;
    const uint64_t key = (sequence * s.q_len + job.first_key) * s.kv_heads + kv_head;
    const uint64_t own_key = (sequence * s.q_len + job.first_key) * s.heads + head;
    const uint64_t cell = i * job.queries * job.stride;
    void **parts = job.parts + i;
    parts[PART_Q * job.pairs] = job.half[TENSOR_Q] + query * job.padded;
    parts[PART_K * job.pairs] = job.half[TENSOR_K] + key * job.padded;
    parts[PART_V * job.pairs] = job.half[TENSOR_V] + key * job.padded;
    parts[PART_DOUT * job.pairs] = job.half[TENSOR_DOUT] + query * job.padded;
    parts[PART_SCORE * job.pairs] = job.score + cell;
    parts[PART_SLOPE * job.pairs] = job.slope + cell;
    parts[PART_WEIGHT * job.pairs] = job.weight + cell;
    parts[PART_GRADIENT * job.pairs] = job.gradient + cell;
    parts[PART_DQ * job.pairs] = job.dq + query * s.head_dim;
    parts[PART_DK * job.pairs] = job.dk + own_key * s.head_dim;
    parts[PART_DV * job.pairs] = job.dv + own_key * s.head_dim;
}

/* c (+)= alpha op(a) op(b) for every pair, in the way of BLAS (cuda_half_gemm). */
typedef struct batch_product {
    bool is_a_transposed, is_b_transposed;
    uint64_t rows, columns, depth;
    int a, b, c; /* PART_... */
    uint64_t a_stride, b_stride, c_stride;
    const float *alpha; /* device */
    bool adds;
} batch_product;

static ingot_status multiply_batch(const ingot_cuda *cuda, const backward_job &job,
                                   const batch_product &p) {
    const void *const *a = job.parts + (uint64_t)p.a * job.pairs;
    const void *const *b = job.parts + (uint64_t)p.b * job.pairs;
    void *const *c = job.parts + (uint64_t)p.c * job.pairs;
    return ingot_cublas_status(cublasGemmBatchedEx(
        cuda->blas, p.is_a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N,
        p.is_b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N, (int)p.rows, (int)p.columns, (int)p.depth,
        p.alpha, a, CUDA_R_16F, (int)p.a_stride, b, CUDA_R_16F, (int)p.b_stride,
        p.adds ? &cuda->scalars->one : &cuda->scalars->zero, c, CUDA_R_32F, (int)p.c_stride,
        (int)job.pairs, CUBLAS_COMPUTE_32F, CUBLAS_GEMM_DEFAULT));
}

/* One block of queries of the pairs of a piece. */
static ingot_status backward_block(const ingot_cuda *cuda, const backward_job &job) {
    const ingot_attention &s = job.shape;
    const attention_state *f = job.state;
    const uint64_t wide = job.padded, q = s.heads * wide, kv = s.kv_heads * wide;
    const uint64_t out = s.heads * s.head_dim, n = job.keys, r = job.queries, d = s.head_dim;
    parts_kernel<<<(unsigned)ingot_ceil_div(job.pairs, 128), 128, 0, cuda->stream>>>(job);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(multiply_batch(cuda, job,
                             {true, false, n, r, wide, PART_K, PART_Q, PART_SCORE, kv, q,
                              job.stride, &f->score, false}));
    INGOT_TRY(multiply_batch(cuda, job,
                             {true, false, n, r, wide, PART_V, PART_DOUT, PART_SLOPE, kv, q,
                              job.stride, &f->slope, false}));
    const rows_job rows = {job.score,  job.slope, job.weight,      job.gradient, job.state,
                           job.stride, job.keys,  job.first_query, job.queries,  job.first_key,
                           s.window,   s.softcap, s.scale};
    attention_rows_kernel<<<dim3((unsigned)r, (unsigned)job.pairs), THREADS, 0, cuda->stream>>>(
        rows);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(multiply_batch(
        cuda, job,
        {false, true, d, n, r, PART_DOUT, PART_WEIGHT, PART_DV, q, job.stride, out, &f->dv, true}));
    INGOT_TRY(multiply_batch(
        cuda, job,
        {false, true, d, n, r, PART_Q, PART_GRADIENT, PART_DK, q, job.stride, out, &f->dk, true}));
    return multiply_batch(cuda, job,
                          {false, false, d, r, n, PART_K, PART_GRADIENT, PART_DQ, kv, job.stride,
                           out, &f->dq, false});
}

static ingot_status backward_blocks(const ingot_cuda *cuda, backward_job job, uint64_t most_pairs) {
    const ingot_attention &s = job.shape;
    const uint64_t all = s.sequences * s.heads;
    for (job.first_pair = 0; job.first_pair < all; job.first_pair += job.pairs) {
        job.pairs = ingot_min_u64(most_pairs, all - job.first_pair);
        for (job.first_query = 0; job.first_query < s.q_len; job.first_query += QUERIES) {
            job.queries = ingot_min_u64(QUERIES, s.q_len - job.first_query);
            job.first_key = s.window != 0 && job.first_query + 1 > s.window
                                ? job.first_query + 1 - s.window
                                : 0;
            job.keys = job.first_query + job.queries - job.first_key;
            job.stride = (job.keys + 7) / 8 * 8;
            INGOT_TRY(backward_block(cuda, job));
        }
    }
    return INGOT_OK;
}

/* ---- the whole --------------------------------------------------------------------------------
 */

/* to[tokens][kv_heads][head_dim] = sums over the query heads that share a key head. */
__global__ __launch_bounds__(THREADS) static void shared_heads_kernel(
    float *__restrict__ to, const float *__restrict__ from, uint64_t count, uint64_t heads,
    uint64_t kv_heads, uint64_t head_dim) {
    const uint64_t each = heads / kv_heads, step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < count; i += step) {
        const uint64_t row = i / head_dim, column = i - row * head_dim; /* row: token, key head */
        float sum = 0.0f;
        for (uint64_t h = 0; h < each; h++) {
            sum += from[(row * each + h) * head_dim + column];
        }
        to[i] = sum;
    }
}

static ingot_status pad_tensor(const ingot_cuda *cuda, const pad_job &job) {
    const unsigned blocks = cuda_blocks(cuda, job.rows * job.padded, THREADS);
    pad_range_kernel<<<blocks, THREADS, 0, cuda->stream>>>(job);
    INGOT_TRY(ingot_cuda_launched());
    pad_half_kernel<<<blocks, THREADS, 0, cuda->stream>>>(job);
    return ingot_cuda_launched();
}

static ingot_status with_device_scalars(const ingot_cuda *cuda, const backward_job &job,
                                        uint64_t pairs) {
    INGOT_TRY(ingot_cublas_status(cublasSetPointerMode(cuda->blas, CUBLAS_POINTER_MODE_DEVICE)));
    const ingot_status status = backward_blocks(cuda, job, pairs);
    const cublasStatus_t restored = cublasSetPointerMode(cuda->blas, CUBLAS_POINTER_MODE_HOST);
    INGOT_TRY(status);
    return ingot_cublas_check(restored, "cublasSetPointerMode");
}

ingot_status cuda_attention_backward(void *context, float *dq, float *dk, float *dv,
                                     const float *dout, const float *q, const float *k,
                                     const float *v, const float *out,
                                     const ingot_attention *shape) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const ingot_attention &s = *shape;
    (void)out; /* what it would save is one sum of rows that are read anyway */
    if (s.kv_heads == 0 || s.heads % s.kv_heads != 0 || s.kv_len != s.q_len ||
        s.kv_stride != s.kv_len) {
        return INGOT_ERR_USAGE;
    }
    if (s.q_len > INT_MAX / 16 || s.heads * s.head_dim > INT_MAX / 16) {
        return INGOT_ERR_UNSUPPORTED;
    }
    const uint64_t tokens = s.sequences * s.q_len, q_rows = tokens * s.heads;
    const uint64_t kv_rows = tokens * s.kv_heads, padded = (s.head_dim + 7) / 8 * 8;
    if (tokens == 0 || s.head_dim == 0) {
        return INGOT_OK;
    }
    const uint64_t cells = ingot_min_u64(QUERIES, s.q_len) * ((s.q_len + 7) / 8 * 8);
    const uint64_t pairs = ingot_min_u64(
        s.sequences * s.heads,
        ingot_min_u64(ingot_max_u64(SCRATCH_BYTES / (cells * 12), 1), UINT64_C(65535)));
    ingot_cuda_buffer halves(cuda), scores(cuda), weights(cuda), own(cuda), state(cuda),
        parts(cuda);
    INGOT_TRY(halves.alloc(2 * (q_rows + kv_rows), padded * sizeof(__half)));
    INGOT_TRY(scores.alloc(2 * pairs, cells * sizeof(float)));
    INGOT_TRY(weights.alloc(2 * pairs, cells * sizeof(__half)));
    INGOT_TRY(own.alloc(2 * q_rows, s.head_dim * sizeof(float)));
    INGOT_TRY(state.alloc(1, sizeof(attention_state)));
    INGOT_TRY(parts.alloc(PARTS * pairs, sizeof(void *)));
    backward_job job = {};
    job.shape = s;
    job.padded = (unsigned)padded;
    job.half[TENSOR_Q] = halves.as<__half>();
    job.half[TENSOR_DOUT] = job.half[TENSOR_Q] + q_rows * padded;
    job.half[TENSOR_K] = job.half[TENSOR_DOUT] + q_rows * padded;
    job.half[TENSOR_V] = job.half[TENSOR_K] + kv_rows * padded;
    job.dq = dq;
    job.dk = own.as<float>();
    job.dv = job.dk + q_rows * s.head_dim;
    job.score = scores.as<float>();
    job.slope = job.score + pairs * cells;
    job.weight = weights.as<__half>();
    job.gradient = job.weight + pairs * cells;
    job.state = state.as<attention_state>();
    job.parts = parts.as<void *>();
    const float *const from[TENSORS] = {q, k, v, dout};
    INGOT_TRY(
        ingot_cuda_status(cudaMemsetAsync(job.state, 0, sizeof(attention_state), cuda->stream)));
    INGOT_TRY(ingot_cuda_status(
        cudaMemsetAsync(job.dk, 0, 2 * q_rows * s.head_dim * sizeof(float), cuda->stream)));
    for (int i = 0; i < TENSORS; i++) {
        const bool is_key = i == TENSOR_K || i == TENSOR_V;
        INGOT_TRY(
            pad_tensor(cuda, {job.half[i], from[i], &job.state->range[i], is_key ? kv_rows : q_rows,
                              (unsigned)s.head_dim, (unsigned)padded}));
    }
    factors_kernel<<<1, 1, 0, cuda->stream>>>(job.state, s.scale, (unsigned)s.head_dim);
    INGOT_TRY(ingot_cuda_launched());
    cuda_written(cuda, dq, q_rows * s.head_dim * sizeof *dq);
    cuda_written(cuda, dk, kv_rows * s.head_dim * sizeof *dk);
    cuda_written(cuda, dv, kv_rows * s.head_dim * sizeof *dv);
    INGOT_TRY(with_device_scalars(cuda, job, pairs));
    const uint64_t count = kv_rows * s.head_dim;
    const unsigned blocks = cuda_blocks(cuda, count, THREADS);
    shared_heads_kernel<<<blocks, THREADS, 0, cuda->stream>>>(dk, job.dk, count, s.heads,
                                                              s.kv_heads, s.head_dim);
    shared_heads_kernel<<<blocks, THREADS, 0, cuda->stream>>>(dv, job.dv, count, s.heads,
                                                              s.kv_heads, s.head_dim);
    return ingot_cuda_launched();
}
