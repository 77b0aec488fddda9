/* Causal attention on the device: online softmax over tiles of keys (arXiv 1805.02867, 2205.14135),
 * so that the score matrix never exists.
 *
 * Queries, keys and values are first rounded to binary16, each tensor by one power of two that
 * brings its largest magnitude into range, and their heads padded with zeros to a width the tiles
 * know; products run on tensor cores (mma.sync m16n8k16) with FP32 sums, the softmax in FP32.
 * Against FP64 the relative error stays near that of binary16 rounding, 5e-4 of the largest value.
 *
 * One thread block takes 64 queries of one head of one sequence, 16 to a warp, and walks over the
 * keys they may see.  Not here: splitting one query's keys over blocks (decoding). */
#include "kernels/cuda/forward.h"

#include <cuda_pipeline_primitives.h>

#define QUERIES 64 /* of a thread block */
#define WARPS   4
#define PAD     8 /* halves behind a row in shared memory: rows start 4 banks apart */

/* ---- rounding to binary16 ---------------------------------------------------------------------
 */

/* Exponent to divide by so that a tensor whose largest magnitude has these bits fits binary16 with
 * room for sums; 0 for what fits anyway, and for NaN and infinities, which no scale helps. */
__device__ static int half_exponent(unsigned largest_bits) {
    const float largest = __uint_as_float(largest_bits);
    return largest > 32768.0f && isfinite(largest) ? ilogbf(largest) - 14 : 0;
}

/* *largest_bits = max over rows[i][width] of |x|, as bits (which order like the values). */
__global__ static void attention_range_kernel(unsigned *largest_bits, const float *x, uint64_t rows,
                                              uint64_t width, uint64_t rows_per_run,
                                              uint64_t run_stride) {
    unsigned largest = 0;
    const uint64_t total = rows * width, step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const uint64_t row = i / width;
        const uint64_t at = row / rows_per_run * run_stride + row % rows_per_run;
        const unsigned bits = __float_as_uint(x[at * width + i % width]) & 0x7fffffffu;
        largest = bits > largest ? bits : largest;
    }
    for (int lane = 16; lane > 0; lane /= 2) {
        const unsigned other = __shfl_xor_sync(0xffffffffu, largest, lane);
        largest = other > largest ? other : largest;
    }
    if (threadIdx.x % 32 == 0 && largest != 0) {
        atomicMax(largest_bits, largest);
    }
}

/* out[rows * heads][padded] = x of [runs][run_stride][heads][head_dim], rounded and scaled; eight
 * values a thread. */
__global__ static void attention_half_kernel(__half *out, const float *x, const unsigned *largest,
                                             uint64_t rows, uint64_t heads, unsigned head_dim,
                                             unsigned padded, uint64_t rows_per_run,
                                             uint64_t run_stride) {
    const float factor = exp2f(-(float)half_exponent(*largest));
    const unsigned pieces = padded / 8;
    const uint64_t total = rows * heads * pieces, step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const uint64_t head_row = i / pieces, row = head_row / heads;
        const unsigned first = (unsigned)(i % pieces) * 8;
        const uint64_t at = row / rows_per_run * run_stride + row % rows_per_run;
        const float *from = x + (at * heads + head_row % heads) * head_dim;
        alignas(16) __half values[8];
#pragma unroll
        for (unsigned j = 0; j < 8; j++) {
            const float value = first + j < head_dim ? from[first + j] : 0.0f;
            values[j] = __float2half_rn(value * factor);
        }
        *reinterpret_cast<int4 *>(out + head_row * padded + first) =
            *reinterpret_cast<const int4 *>(values);
    }
}

/* ---- tensor core helpers ----------------------------------------------------------------------
 */

__device__ static void load_matrices(unsigned (&r)[4], const __half *row) {
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ static void load_matrices_transposed(unsigned (&r)[4], const __half *row) {
    const unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ static void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0,
                                    unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static unsigned pack_halves(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const unsigned *>(&pair);
}

/* ---- the kernel -------------------------------------------------------------------------------
 */

typedef struct attention_job {
    float *out;              /* [sequences][q_len][heads][head_dim] */
    const __half *q, *k, *v; /* compact: [sequences][q_len or kv_len][heads or kv_heads][WIDTH] */
    const unsigned *largest; /* of q, k, v */
    ingot_attention shape;
} attention_job;

/* to[rows][WIDTH + PAD] = rows first .. of a head; rows at or behind `end` become zero. */
template <int WIDTH>
__device__ static void copy_rows(__half *to, const __half *from, uint64_t row_stride,
                                 uint64_t first, uint64_t end, int rows) {
    constexpr int PIECES = WIDTH / 8;
    for (int i = threadIdx.x; i < rows * PIECES; i += WARPS * 32) {
        const int row = i / PIECES, piece = i % PIECES;
        __half *target = to + row * (WIDTH + PAD) + piece * 8;
        if (first + row < end) {
            __pipeline_memcpy_async(target, from + (first + row) * row_stride + piece * 8, 16);
        } else {
            *reinterpret_cast<int4 *>(target) = make_int4(0, 0, 0, 0);
        }
    }
}

/* WIDTH: head_dim, padded; KEYS: keys of a tile; STAGES: tiles in flight. */
template <int WIDTH, int KEYS, int STAGES>
__global__ __launch_bounds__(WARPS * 32) void attention_tile_kernel(const attention_job job) {
    constexpr int STRIDE = WIDTH + PAD, STEPS = WIDTH / 16, TILES = KEYS / 8;
    constexpr bool KEEPS_QUERIES = WIDTH <= 128; /* in registers; else read again for every tile */
    extern __shared__ __align__(16) unsigned char attention_memory[];
    __half *queries = reinterpret_cast<__half *>(attention_memory);
    __half *keys = queries + QUERIES * STRIDE, *values = keys + STAGES * KEYS * STRIDE;
    const ingot_attention &s = job.shape;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, group = lane / 4, pair = lane % 4;
    /* Late queries see most keys: they start first. */
    const uint64_t first_query = (uint64_t)(gridDim.x - 1 - blockIdx.x) * QUERIES;
    const uint64_t head = blockIdx.y, sequence = blockIdx.z;
    const uint64_t kv_head = head / (s.heads / s.kv_heads), past = s.kv_len - s.q_len;
    const uint64_t q_stride = s.heads * WIDTH, kv_stride = s.kv_heads * WIDTH;
    const __half *q = job.q + sequence * s.q_len * q_stride + head * WIDTH;
    const __half *k = job.k + sequence * s.kv_len * kv_stride + kv_head * WIDTH;
    const __half *v = job.v + sequence * s.kv_len * kv_stride + kv_head * WIDTH;
    const uint64_t last_query = min(first_query + QUERIES, s.q_len) - 1;
    const uint64_t end_key = past + last_query + 1;
    const uint64_t oldest = past + first_query;
    const uint64_t begin_key =
        s.window != 0 && oldest + 1 > s.window ? (oldest + 1 - s.window) / KEYS * KEYS : 0;
    const int tile_count = (int)((end_key - begin_key + KEYS - 1) / KEYS);

    copy_rows<WIDTH>(queries, q, q_stride, first_query, s.q_len, QUERIES);
    copy_rows<WIDTH>(keys, k, kv_stride, begin_key, s.kv_len, KEYS);
    copy_rows<WIDTH>(values, v, kv_stride, begin_key, s.kv_len, KEYS);
    __pipeline_commit();

    const float product =
        s.scale * exp2f((float)(half_exponent(job.largest[0]) + half_exponent(job.largest[1])));
    const float log2_e = 1.44269504f;
    unsigned fragment[KEEPS_QUERIES ? STEPS : 1][4];
    float sums[WIDTH / 8][4], largest[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < WIDTH / 8; i++) {
#pragma unroll
        for (int j = 0; j < 4; j++) {
            sums[i][j] = 0;
        }
    }
    const __half *query_row = queries + (warp * 16 + lane % 16) * STRIDE + lane / 16 * 8;
    const uint64_t position[2] = {past + first_query + warp * 16 + group,
                                  past + first_query + warp * 16 + group + 8};

    for (int tile = 0; tile < tile_count; tile++) {
        const int stage = STAGES == 1 ? 0 : tile % STAGES;
        const uint64_t first_key = begin_key + (uint64_t)tile * KEYS;
        if (STAGES > 1 && tile + 1 < tile_count) {
            const int next = (tile + 1) % STAGES;
            copy_rows<WIDTH>(keys + next * KEYS * STRIDE, k, kv_stride, first_key + KEYS, s.kv_len,
                             KEYS);
            copy_rows<WIDTH>(values + next * KEYS * STRIDE, v, kv_stride, first_key + KEYS,
                             s.kv_len, KEYS);
            __pipeline_commit();
            __pipeline_wait_prior(1);
        } else {
            __pipeline_wait_prior(0);
        }
        __syncthreads();
        if (KEEPS_QUERIES && tile == 0) {
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                load_matrices(fragment[KEEPS_QUERIES ? step : 0], query_row + step * 16);
            }
        }

        /* scores of 16 queries and KEYS keys */
        float score[TILES][4];
#pragma unroll
        for (int i = 0; i < TILES; i++) {
            score[i][0] = score[i][1] = score[i][2] = score[i][3] = 0;
        }
        const __half *key_row =
            keys + (stage * KEYS + lane / 16 * 8 + lane % 8) * STRIDE + lane / 8 % 2 * 8;
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (!KEEPS_QUERIES) {
                load_matrices(fragment[0], query_row + step * 16);
            }
#pragma unroll
            for (int i = 0; i < TILES; i += 2) {
                unsigned b[4];
                load_matrices(b, key_row + i * 8 * STRIDE + step * 16);
                multiply_add(score[i], fragment[KEEPS_QUERIES ? step : 0], b[0], b[1]);
                multiply_add(score[i + 1], fragment[KEEPS_QUERIES ? step : 0], b[2], b[3]);
            }
        }

        /* mask and running maximum */
        float peak[2] = {largest[0], largest[1]};
#pragma unroll
        for (int i = 0; i < TILES; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint64_t key = first_key + i * 8 + pair * 2 + j % 2, own = position[j / 2];
                float value = score[i][j] * product;
                if (s.softcap != 0.0f) {
                    value = s.softcap * tanhf(value / s.softcap);
                }
                const bool is_seen = key <= own && (s.window == 0 || key + s.window > own);
                score[i][j] = is_seen ? value * log2_e : -INFINITY;
                peak[j / 2] = fmaxf(peak[j / 2], score[i][j]);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            peak[half] = fmaxf(peak[half], __shfl_xor_sync(0xffffffffu, peak[half], 1));
            peak[half] = fmaxf(peak[half], __shfl_xor_sync(0xffffffffu, peak[half], 2));
            /* nothing seen so far: any finite reference will do */
            const float reference = peak[half] == -INFINITY ? 0.0f : peak[half];
            const float decay = exp2f(largest[half] - reference);
            largest[half] = peak[half];
            peak[half] = reference;
            total[half] *= decay;
#pragma unroll
            for (int i = 0; i < WIDTH / 8; i++) {
                sums[i][half * 2] *= decay;
                sums[i][half * 2 + 1] *= decay;
            }
        }
#pragma unroll
        for (int i = 0; i < TILES; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                score[i][j] = exp2f(score[i][j] - peak[j / 2]);
                total[j / 2] += score[i][j];
            }
        }

        /* sums += weights x values */
        const __half *value_row = values + (stage * KEYS + lane % 16) * STRIDE + lane / 16 * 8;
#pragma unroll
        for (int i = 0; i < TILES; i += 2) {
            const unsigned a[4] = {pack_halves(score[i][0], score[i][1]),
                                   pack_halves(score[i][2], score[i][3]),
                                   pack_halves(score[i + 1][0], score[i + 1][1]),
                                   pack_halves(score[i + 1][2], score[i + 1][3])};
#pragma unroll
            for (int column = 0; column < WIDTH / 8; column += 2) {
                unsigned b[4];
                load_matrices_transposed(b, value_row + i * 8 * STRIDE + column * 8);
                multiply_add(sums[column], a, b[0], b[1]);
                multiply_add(sums[column + 1], a, b[2], b[3]);
            }
        }
        __syncthreads();
        if (STAGES == 1 && tile + 1 < tile_count) {
            copy_rows<WIDTH>(keys, k, kv_stride, first_key + KEYS, s.kv_len, KEYS);
            copy_rows<WIDTH>(values, v, kv_stride, first_key + KEYS, s.kv_len, KEYS);
            __pipeline_commit();
        }
    }

    const float unscale = exp2f((float)half_exponent(job.largest[2]));
#pragma unroll
    for (int half = 0; half < 2; half++) {
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
        const uint64_t query = first_query + warp * 16 + group + half * 8;
        if (query >= s.q_len) {
            continue;
        }
        float *row = job.out + ((sequence * s.q_len + query) * s.heads + head) * s.head_dim;
        const float factor = unscale / total[half];
#pragma unroll
        for (int i = 0; i < WIDTH / 8; i++) {
            const unsigned column = i * 8 + pair * 2;
            if (column < s.head_dim) {
                row[column] = sums[i][half * 2] * factor;
            }
            if (column + 1 < s.head_dim) {
                row[column + 1] = sums[i][half * 2 + 1] * factor;
            }
        }
    }
}

/* ---- launching --------------------------------------------------------------------------------
 */

template <int WIDTH, int KEYS, int STAGES>
static ingot_status launch_tiles(const ingot_cuda *cuda, const attention_job &job) {
    constexpr int BYTES = (QUERIES + 2 * STAGES * KEYS) * (WIDTH + PAD) * (int)sizeof(__half);
    const ingot_attention &s = job.shape;
    if (s.heads > 65535) {
        return INGOT_ERR_UNSUPPORTED;
    }
    INGOT_TRY(ingot_cuda_status(cudaFuncSetAttribute(attention_tile_kernel<WIDTH, KEYS, STAGES>,
                                                     cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     BYTES)));
    /* the third dimension of a grid ends at 65535 */
    for (uint64_t first = 0; first < s.sequences; first += 65535) {
        attention_job part = job;
        part.out += first * s.q_len * s.heads * s.head_dim;
        part.q += first * s.q_len * s.heads * WIDTH;
        part.k += first * s.kv_len * s.kv_heads * WIDTH;
        part.v += first * s.kv_len * s.kv_heads * WIDTH;
        const dim3 grid((unsigned)ingot_ceil_div(s.q_len, QUERIES), (unsigned)s.heads,
                        (unsigned)ingot_min_u64(s.sequences - first, 65535));
        attention_tile_kernel<WIDTH, KEYS, STAGES><<<grid, WARPS * 32, BYTES, cuda->stream>>>(part);
    }
    return ingot_cuda_launched();
}

/* One of q, k, v to binary16: out[sequences * length][heads][padded]. */
static ingot_status to_half(const ingot_cuda *cuda, __half *out, unsigned *largest, const float *x,
                            uint64_t sequences, uint64_t length, uint64_t stride, uint64_t heads,
                            unsigned head_dim, unsigned padded) {
    const unsigned blocks = 8u * (unsigned)cuda->multiprocessors;
    const uint64_t rows = sequences * length;
    attention_range_kernel<<<blocks, 256, 0, cuda->stream>>>(largest, x, rows, heads * head_dim,
                                                             length, stride);
    INGOT_TRY(ingot_cuda_launched());
    attention_half_kernel<<<blocks, 256, 0, cuda->stream>>>(out, x, largest, rows, heads, head_dim,
                                                            padded, length, stride);
    return ingot_cuda_launched();
}

ingot_status cuda_attention(void *context, float *out, const float *q, const float *k,
                            const float *v, const ingot_attention *shape) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const ingot_attention &s = *shape;
    if (s.kv_len < s.q_len || s.kv_stride < s.kv_len || s.kv_heads == 0 ||
        s.heads % s.kv_heads != 0) {
        return INGOT_ERR_USAGE;
    }
    if (s.head_dim > 256) {
        return INGOT_ERR_UNSUPPORTED;
    }
    if (s.sequences == 0 || s.q_len == 0) {
        return INGOT_OK;
    }
    const unsigned width = s.head_dim <= 64 ? 64 : s.head_dim <= 128 ? 128 : 256;
    const unsigned head_dim = (unsigned)s.head_dim;
    ingot_cuda_buffer q_half(cuda), k_half(cuda), v_half(cuda), largest(cuda);
    INGOT_TRY(q_half.alloc(s.sequences * s.q_len * s.heads, width * sizeof(__half)));
    INGOT_TRY(k_half.alloc(s.sequences * s.kv_len * s.kv_heads, width * sizeof(__half)));
    INGOT_TRY(v_half.alloc(s.sequences * s.kv_len * s.kv_heads, width * sizeof(__half)));
    INGOT_TRY(largest.alloc(3, sizeof(unsigned)));
    unsigned *bits = largest.as<unsigned>();
    INGOT_TRY(ingot_cuda_status(cudaMemsetAsync(bits, 0, 3 * sizeof *bits, cuda->stream)));
    INGOT_TRY(to_half(cuda, q_half.as<__half>(), bits, q, s.sequences, s.q_len, s.q_len, s.heads,
                      head_dim, width));
    INGOT_TRY(to_half(cuda, k_half.as<__half>(), bits + 1, k, s.sequences, s.kv_len, s.kv_stride,
                      s.kv_heads, head_dim, width));
    INGOT_TRY(to_half(cuda, v_half.as<__half>(), bits + 2, v, s.sequences, s.kv_len, s.kv_stride,
                      s.kv_heads, head_dim, width));
    cuda_written(cuda, out, s.sequences * s.q_len * s.heads * s.head_dim * sizeof *out);
    const attention_job job = {
        out, q_half.as<__half>(), k_half.as<__half>(), v_half.as<__half>(), bits, s};
    switch (width) {
    case 64:
        return launch_tiles<64, 64, 2>(cuda, job);
    case 128:
        return launch_tiles<128, 64, 2>(cuda, job);
    default:
        return launch_tiles<256, 32, 1>(cuda, job);
    }
}
