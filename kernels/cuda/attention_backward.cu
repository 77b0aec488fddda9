/* Gradients of causal attention on the device.
 *
 * A block of queries meets all keys it may see at once.  A kernel makes weights P of the softmax
 * and gradients dS = P (dP - delta) of the scores in binary16, for a bounded number of (sequence,
 * head) pairs at a time; the three products with them are batches of cuBLAS on tensor cores with
 * FP32 sums.  Scores S = Q K^T and slopes dP = dO V^T exist in registers alone, a tile at a time
 * (arXiv 2205.14135): first S for the largest of a row and its sum, then both.  delta, the sum of P
 * dP over a row, is the sum of dO O, from the values attention wrote.
 *
 * Query, key, value and gradient are rounded to binary16, each tensor scaled by the power of two
 * that brings its largest magnitude near 2^12, their heads padded to a multiple of 8; dS is scaled
 * by a power of two that its bound (twice the largest |dO| |V| scale, times the head's width)
 * cannot overflow.  Heads that share a key head are summed in order afterwards. */
#include "kernels/cuda/backward.h"

#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"

#include <climits>

#define THREADS       256
#define QUERIES       UINT64_C(512)         /* of a block */
#define SCRATCH_BYTES (UINT64_C(768) << 20) /* of weights and gradients */
#define TILE          64                    /* queries and keys of a tile: 16 to a warp */

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

/* ---- batches of products ----------------------------------------------------------------------
 */

enum {
    PART_Q,
    PART_K,
    PART_V,
    PART_DOUT,
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
    float *dq, *dk, *dv;       /* dk and dv of every query head */
    float *delta;              /* [tokens][heads] */
    __half *weight, *gradient; /* [pairs of a piece][queries][stride] */
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

/* ---- scores -----------------------------------------------------------------------------------
 */

/* delta[rows] = sums of dout[rows][head_dim] times out: a warp a row. */
__global__ __launch_bounds__(THREADS) static void delta_kernel(float *__restrict__ delta,
                                                               const float *__restrict__ dout,
                                                               const float *__restrict__ out,
                                                               uint64_t rows, uint64_t head_dim) {
    const uint64_t warps = (uint64_t)gridDim.x * (THREADS / 32);
    for (uint64_t row = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32; row < rows;
         row += warps) {
        float sum = 0.0f;
        for (uint64_t i = threadIdx.x % 32; i < head_dim; i += 32) {
            sum = fmaf(dout[row * head_dim + i], out[row * head_dim + i], sum);
        }
        for (int lane = 16; lane > 0; lane /= 2) {
            sum += __shfl_xor_sync(0xffffffffu, sum, lane);
        }
        if (threadIdx.x % 32 == 0) {
            delta[row] = sum;
        }
    }
}

/* sums[16 queries of the warp][TILE] += a b^T, both tiles of WIDTH columns. */
template <int WIDTH>
__device__ static void multiply_tile(float (&sums)[TILE / 8][4], const __half *a, const __half *b) {
    constexpr int STRIDE = WIDTH + TILE_PAD;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const __half *a_row = a + (warp * 16 + lane % 16) * STRIDE + lane / 16 * 8;
    const __half *b_row = b + (lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        sums[i][0] = sums[i][1] = sums[i][2] = sums[i][3] = 0.0f;
    }
#pragma unroll
    for (int step = 0; step < WIDTH / 16; step++) {
        unsigned own[4];
        load_matrices(own, a_row + step * 16);
#pragma unroll
        for (int i = 0; i < TILE / 8; i += 2) {
            unsigned other[4];
            load_matrices(other, b_row + i * 8 * STRIDE + step * 16);
            multiply_add(sums[i], own, other[0], other[1]);
            multiply_add(sums[i + 1], own, other[2], other[3]);
        }
    }
}

/* Positions of what a thread holds of a tile, counted from the first key of the piece. */
typedef struct sight {
    int key;         /* its first; the others are 1, 8, 9, 16 ... further */
    int query[2];    /* of either half of its sums */
    int group, pair; /* its rows and columns within those of the warp */
    int window;      /* INT_MAX / 2: all keys */
} sight;

/* Products times `factor` become scores as the softmax sees them, times log2 e: minus infinity
 * where a query does not see a key. */
__device__ static void shape_scores(float (&score)[TILE / 8][4], const sight &at, float factor,
                                    float softcap) {
    const float log2_e = 1.44269504f;
    const float product = softcap != 0.0f ? factor / softcap : factor * log2_e;
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            score[i][j] *= product;
        }
    }
    if (softcap != 0.0f) {
#pragma unroll
        for (int i = 0; i < TILE / 8; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                score[i][j] = softcap * log2_e * tanhf(score[i][j]);
            }
        }
    }
    /* Only tiles at the ends of what the warp's queries see need a mask. */
    const int first = at.key - at.pair * 2, oldest = at.query[0] - at.group;
    if (first + TILE - 1 <= oldest && first + at.window > oldest + 15) {
        return;
    }
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int key = at.key + i * 8 + j % 2, query = at.query[j / 2];
            score[i][j] = key <= query && key + at.window > query ? score[i][j] : -INFINITY;
        }
    }
}

/* Slopes of weights become dS / P: (dP - delta) times what a cap lets through. */
__device__ static void shape_slopes(float (&slope)[TILE / 8][4], const float (&score)[TILE / 8][4],
                                    float factor, const float (&delta)[2], float softcap) {
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            slope[i][j] = fmaf(slope[i][j], factor, -delta[j / 2]);
            slope[i][j] = score[i][j] != -INFINITY ? slope[i][j] : 0.0f;
        }
    }
    if (softcap != 0.0f) {
        const float ln_2 = 0.693147181f;
#pragma unroll
        for (int i = 0; i < TILE / 8; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float bend = score[i][j] * ln_2 / softcap;
                slope[i][j] *= score[i][j] != -INFINITY ? 1.0f - bend * bend : 0.0f;
            }
        }
    }
}

/* A tile of the warp's 16 rows to device memory, whole sectors at a time: by way of the warp's own
 * rows of shared memory (stride WIDTH + TILE_PAD). */
template <int WIDTH>
__device__ static void store_tile(__half *to, uint64_t stride, uint64_t column, int rows,
                                  __half *shared, const unsigned (&low)[TILE / 8],
                                  const unsigned (&high)[TILE / 8]) {
    constexpr int STRIDE = WIDTH + TILE_PAD;
    const int lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
#pragma unroll
    for (int i = 0; i < TILE / 8; i++) {
        *reinterpret_cast<unsigned *>(shared + group * STRIDE + i * 8 + pair * 2) = low[i];
        *reinterpret_cast<unsigned *>(shared + (group + 8) * STRIDE + i * 8 + pair * 2) = high[i];
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 16 * TILE / 8 / 32; i++) {
        const int row = (lane + i * 32) / (TILE / 8), piece = (lane + i * 32) % (TILE / 8) * 8;
        if (row < rows && column + piece < stride) {
            *reinterpret_cast<int4 *>(to + row * stride + column + piece) =
                *reinterpret_cast<const int4 *>(shared + row * STRIDE + piece);
        }
    }
}

/* A thread block: 64 queries of one pair and all keys of the piece.  IS_TIGHT: where shared memory
 * has no room for keys and values together, they take turns. */
template <int WIDTH, bool IS_TIGHT>
__global__ __launch_bounds__(TILE_WARPS *
                             32) static void attention_scores_kernel(const backward_job job) {
    constexpr int STRIDE = WIDTH + TILE_PAD;
    extern __shared__ __align__(16) unsigned char attention_memory[];
    __half *queries = reinterpret_cast<__half *>(attention_memory);
    __half *slopes = queries + TILE * STRIDE, *keys = slopes + TILE * STRIDE;
    __half *values = IS_TIGHT ? keys : keys + TILE * STRIDE;
    const ingot_attention &s = job.shape;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
    const uint64_t first = (uint64_t)(gridDim.x - 1 - blockIdx.x) * TILE; /* late ones see most */
    const uint64_t sequence = (job.first_pair + blockIdx.y) / s.heads;
    const uint64_t head = (job.first_pair + blockIdx.y) % s.heads;
    const uint64_t kv_head = head / (s.heads / s.kv_heads);
    const uint64_t q_stride = s.heads * job.padded, kv_stride = s.kv_heads * job.padded;
    const uint64_t token = sequence * s.q_len + job.first_query,
                   key = sequence * s.q_len + job.first_key;
    const __half *q = job.half[TENSOR_Q] + token * q_stride + head * job.padded;
    const __half *dout = job.half[TENSOR_DOUT] + token * q_stride + head * job.padded;
    const __half *k = job.half[TENSOR_K] + key * kv_stride + kv_head * job.padded;
    const __half *v = job.half[TENSOR_V] + key * kv_stride + kv_head * job.padded;
    const uint64_t last = min(first + TILE, job.queries) - 1;
    const int own =
        (int)(job.first_query - job.first_key + first); /* position of the first query */
    sight at = {};
    at.window = s.window != 0 ? (int)min(s.window, (uint64_t)INT_MAX / 2) : INT_MAX / 2;
    at.group = group, at.pair = pair;
    at.query[0] = own + warp * 16 + group;
    at.query[1] = at.query[0] + 8;
    const int begin_tile = max(own + 1 - at.window, 0) / TILE;
    const int end_tile = (own + (int)(last - first)) / TILE + 1;
    const int tiles = (int)((job.keys + TILE - 1) / TILE);
    const float score_factor = job.state->score, slope_factor = job.state->slope;

    copy_rows<WIDTH>(queries, q, q_stride, first, job.queries, TILE, job.padded);
    copy_rows<WIDTH>(slopes, dout, q_stride, first, job.queries, TILE, job.padded);

    /* the largest score of a row and the sum of weights relative to it */
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    for (int tile = begin_tile; tile < end_tile; tile++) {
        float score[TILE / 8][4];
        __syncthreads();
        copy_rows<WIDTH>(keys, k, kv_stride, (uint64_t)tile * TILE, job.keys, TILE, job.padded);
        async_commit();
        async_arrived<0>();
        __syncthreads();
        multiply_tile<WIDTH>(score, queries, keys);
        at.key = tile * TILE + pair * 2;
        shape_scores(score, at, score_factor, s.softcap);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float peak = top[half];
#pragma unroll
            for (int i = 0; i < TILE / 8; i++) {
                peak = fmaxf(peak, fmaxf(score[i][half * 2], score[i][half * 2 + 1]));
            }
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
            peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
            const float offset = peak == -INFINITY ? 0.0f : peak; /* nothing seen so far */
            total[half] *= power_of_two(top[half] - offset);
            top[half] = peak;
#pragma unroll
            for (int i = 0; i < TILE / 8; i++) {
                total[half] += power_of_two(score[i][half * 2] - offset);
                total[half] += power_of_two(score[i][half * 2 + 1] - offset);
            }
        }
    }
    const float by = s.scale * job.state->to_half; /* dS on its way to binary16 */
    float share[2], delta[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
        share[half] = 1.0f / total[half];
        const uint64_t row = first + warp * 16 + group + half * 8;
        delta[half] = row <= last ? job.delta[(token + row) * s.heads + head] * by : 0.0f;
    }

    const uint64_t cell = ((uint64_t)blockIdx.y * job.queries + first + warp * 16) * job.stride;
    const int rows = (int)last + 1 - (int)first - warp * 16; /* of the warp; may be negative */
    __half *const aside[2] = {keys + warp * 16 * STRIDE, values + warp * 16 * STRIDE};
    for (int tile = 0; tile < tiles; tile++) {
        if (tile < begin_tile || tile >= end_tile) {
            for (int i = lane; i < 16 * TILE / 8; i += 32) {
                const uint64_t row = i / (TILE / 8), column = tile * TILE + i % (TILE / 8) * 8;
                if ((int)row < rows && column < job.stride) {
                    const uint64_t to = cell + row * job.stride + column;
                    *reinterpret_cast<int4 *>(job.weight + to) = make_int4(0, 0, 0, 0);
                    *reinterpret_cast<int4 *>(job.gradient + to) = make_int4(0, 0, 0, 0);
                }
            }
            continue;
        }
        float score[TILE / 8][4], slope[TILE / 8][4];
        __syncthreads();
        copy_rows<WIDTH>(keys, k, kv_stride, (uint64_t)tile * TILE, job.keys, TILE, job.padded);
        if (!IS_TIGHT) {
            copy_rows<WIDTH>(values, v, kv_stride, (uint64_t)tile * TILE, job.keys, TILE,
                             job.padded);
        }
        async_commit();
        async_arrived<0>();
        __syncthreads();
        multiply_tile<WIDTH>(score, queries, keys);
        if (IS_TIGHT) {
            __syncthreads(); /* all keys are read */
            copy_rows<WIDTH>(values, v, kv_stride, (uint64_t)tile * TILE, job.keys, TILE,
                             job.padded);
            async_commit();
            async_arrived<0>();
            __syncthreads();
        }
        multiply_tile<WIDTH>(slope, slopes, values);
        __syncthreads(); /* keys and values make room for what becomes of them */
        at.key = tile * TILE + pair * 2;
        shape_scores(score, at, score_factor, s.softcap);
        shape_slopes(slope, score, slope_factor * by, delta, s.softcap);
        unsigned weights[2][TILE / 8], gradients[2][TILE / 8];
#pragma unroll
        for (int i = 0; i < TILE / 8; i++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int j = half * 2;
                const float low = power_of_two(score[i][j] - top[half]) * share[half];
                const float high = power_of_two(score[i][j + 1] - top[half]) * share[half];
                weights[half][i] = pack_halves(low, high);
                gradients[half][i] = pack_halves(low * slope[i][j], high * slope[i][j + 1]);
            }
        }
        store_tile<WIDTH>(job.weight + cell, job.stride, tile * TILE, rows, aside[0], weights[0],
                          weights[1]);
        if (IS_TIGHT) {
            __syncwarp(); /* the warp's own rows are read */
        }
        store_tile<WIDTH>(job.gradient + cell, job.stride, tile * TILE, rows, aside[1],
                          gradients[0], gradients[1]);
    }
}

/* Of the tiles that a thread block has at once. */
static constexpr int scores_bytes(int width, bool is_tight) {
    return (is_tight ? 3 : 4) * TILE * (width + TILE_PAD) * (int)sizeof(__half);
}

template <int WIDTH, bool IS_TIGHT>
static ingot_status launch_scores(const ingot_cuda *cuda, const backward_job &job) {
    constexpr int BYTES = scores_bytes(WIDTH, IS_TIGHT);
    INGOT_TRY(ingot_cuda_status(cudaFuncSetAttribute(attention_scores_kernel<WIDTH, IS_TIGHT>,
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     BYTES)));
    const dim3 grid((unsigned)ingot_ceil_div(job.queries, TILE), (unsigned)job.pairs);
    attention_scores_kernel<WIDTH, IS_TIGHT><<<grid, TILE_WARPS * 32, BYTES, cuda->stream>>>(job);
    return ingot_cuda_launched();
}

/* Weights and gradients of a block of queries. */
static ingot_status make_scores(const ingot_cuda *cuda, const backward_job &job) {
    static_assert(scores_bytes(128, false) <= CUDA_LEAST_SHARED_BYTES, "on every device");
    static_assert(scores_bytes(256, true) <= CUDA_LEAST_SHARED_BYTES, "on every device");
    if (job.padded <= 64) {
        return launch_scores<64, false>(cuda, job);
    }
    if (job.padded <= 128) {
        return launch_scores<128, false>(cuda, job);
    }
    /* 132 KB; compute capability 8.6, 8.9 and 12.0 have 99 */
    return scores_bytes(256, false) <= cuda->shared_bytes ? launch_scores<256, false>(cuda, job)
                                                          : launch_scores<256, true>(cuda, job);
}

/* ---- blocks of queries ------------------------------------------------------------------------
 */

/* One block of queries of the pairs of a piece. */
static ingot_status backward_block(const ingot_cuda *cuda, const backward_job &job) {
    const ingot_attention &s = job.shape;
    const attention_state *f = job.state;
    const uint64_t wide = job.padded, q = s.heads * wide, kv = s.kv_heads * wide;
    const uint64_t out = s.heads * s.head_dim, n = job.keys, r = job.queries, d = s.head_dim;
    parts_kernel<<<(unsigned)ingot_ceil_div(job.pairs, 128), 128, 0, cuda->stream>>>(job);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(make_scores(cuda, job));
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
    if (s.kv_heads == 0 || s.heads % s.kv_heads != 0 || s.kv_len != s.q_len ||
        s.kv_stride != s.kv_len) {
        return INGOT_ERR_USAGE;
    }
    if (s.head_dim > 256 || s.q_len > INT_MAX / 16 || s.heads * s.head_dim > INT_MAX / 16) {
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
        ingot_min_u64(ingot_max_u64(SCRATCH_BYTES / (cells * 4), 1), UINT64_C(65535)));
    ingot_cuda_buffer halves(cuda), delta(cuda), weights(cuda), own(cuda), state(cuda), parts(cuda);
    INGOT_TRY(halves.alloc(2 * (q_rows + kv_rows), padded * sizeof(__half)));
    INGOT_TRY(delta.alloc(q_rows, sizeof(float)));
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
    job.delta = delta.as<float>();
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
    delta_kernel<<<cuda_blocks(cuda, q_rows * 32, THREADS), THREADS, 0, cuda->stream>>>(
        job.delta, dout, out, q_rows, s.head_dim);
    INGOT_TRY(ingot_cuda_launched());
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
