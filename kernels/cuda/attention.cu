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
#include "kernels/cuda/attention_tile.h"
#include "kernels/cuda/forward.h"

#include <climits>

#define QUERIES 64 /* of a thread block */

/* ---- rounding to binary16 ---------------------------------------------------------------------
 */

/* Exponent to divide by so that a tensor whose largest finite magnitude has these bits fits
 * binary16 with room for sums; 0 for what fits anyway. */
__device__ static int half_exponent(const ingot_cuda_range &range) {
    const float largest = __uint_as_float(range.largest);
    return largest > 32768.0f ? ilogbf(largest) - 14 : 0;
}

/* A tensor on its way to tiles: x[runs][run_stride][heads][head_dim] becomes
 * out[rows][heads][padded], rows = runs * rows_per_run. */
typedef struct half_job {
    __half *out;
    const float *x;
    const float *values; /* of keys: x[i] becomes NaN where values[i] is not finite; else NULL */
    bool is_value;       /* what is not finite becomes zero: its key sees to those who see it */
    ingot_cuda_range *range;
    uint64_t rows, rows_per_run, run_stride;
    unsigned heads, head_dim, padded;
    bool is_vector; /* every head starts at 16 bytes and has a multiple of 8 values */
    bool is_repair; /* the pass that scales, where the first one found reason to */
} half_job;

/* Tensor cores multiply what a mask gave a weight of zero too, and zero times NaN is NaN. */
__device__ static float contained(const half_job &job, float x, float value) {
    if (job.is_value) {
        return isfinite(x) ? x : 0.0f;
    }
    return job.values == nullptr || isfinite(value) ? x : NAN;
}

/* One thread block a row, eight values a thread. */
__global__ static void attention_half_kernel(const half_job job) {
    float factor = 1.0f;
    if (job.is_repair) {
        const int exponent = half_exponent(*job.range);
        if (exponent == 0) {
            return;
        }
        factor = cuda_power_of_two(-exponent);
    }
    const unsigned pieces = job.padded / 8, shift = __ffs((int)pieces) - 1; /* a power of two */
    ingot_cuda_range range = {0, 0};
    for (uint64_t row = blockIdx.x; row < job.rows; row += gridDim.x) {
        const uint64_t run = row / job.rows_per_run;
        const uint64_t at = run * job.run_stride + (row - run * job.rows_per_run);
        const float *from_row = job.x + at * job.heads * job.head_dim;
        __half *to_row = job.out + row * job.heads * job.padded;
        for (unsigned i = threadIdx.x; i < job.heads * pieces; i += blockDim.x) {
            const unsigned head = i >> shift, first = (i & (pieces - 1)) * 8;
            const float *from = from_row + head * job.head_dim + first;
            float v[8];
            if (job.is_vector && first < job.head_dim) {
                const float4 low = reinterpret_cast<const float4 *>(from)[0];
                const float4 high = reinterpret_cast<const float4 *>(from)[1];
                v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
                v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
            } else {
#pragma unroll
                for (unsigned j = 0; j < 8; j++) {
                    v[j] = first + j < job.head_dim ? from[j] : 0.0f;
                }
            }
            alignas(16) __half values[8];
#pragma unroll
            for (unsigned j = 0; j < 8; j++) {
                const float value = job.values != nullptr && first + j < job.head_dim
                                        ? job.values[from - job.x + j]
                                        : 0.0f;
                values[j] = __float2half_rn(contained(job, v[j], value) * factor);
                cuda_range_add(&range, v[j]);
            }
            *reinterpret_cast<int4 *>(to_row + i * 8) = *reinterpret_cast<const int4 *>(values);
        }
    }
    if (!job.is_repair) {
        __syncwarp();
        cuda_range_store(job.range, range);
    }
}

/* ---- the kernel -------------------------------------------------------------------------------
 */

typedef struct attention_job {
    float *out;              /* [sequences][q_len][heads][head_dim] */
    const __half *q, *k, *v; /* compact: [sequences][q_len or kv_len][heads or kv_heads][WIDTH] */
    const ingot_cuda_range *range; /* of q, k, v */
    ingot_attention shape;
} attention_job;

/* WIDTH: head_dim, padded; KEYS: keys of a tile; STAGES: tiles in flight. */
template <int WIDTH, int KEYS, int STAGES>
__global__ __launch_bounds__(TILE_WARPS * 32) void attention_tile_kernel(const attention_job job) {
    constexpr int STRIDE = WIDTH + TILE_PAD, STEPS = WIDTH / 16, TILES = KEYS / 8;
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

    copy_rows<WIDTH>(queries, q, q_stride, first_query, s.q_len, QUERIES, WIDTH);
    copy_rows<WIDTH>(keys, k, kv_stride, begin_key, s.kv_len, KEYS, WIDTH);
    copy_rows<WIDTH>(values, v, kv_stride, begin_key, s.kv_len, KEYS, WIDTH);
    async_commit();

    /* Scores are kept as they come from the tensor cores; `product` makes them exponents of two. */
    const float log2_e = 1.44269504f;
    const float unscaled =
        s.scale * exp2f((float)(half_exponent(job.range[0]) + half_exponent(job.range[1])));
    const float product = s.softcap != 0.0f ? log2_e : unscaled * log2_e;
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
    /* Positions count from the first key that any query of the block sees. */
    const int warp_position = (int)(past + first_query - begin_key) + warp * 16;
    const int window = s.window != 0 ? (int)min(s.window, (uint64_t)INT_MAX / 2) : INT_MAX / 2;

    for (int tile = 0; tile < tile_count; tile++) {
        const int stage = STAGES == 1 ? 0 : tile % STAGES;
        const uint64_t first_key = begin_key + (uint64_t)tile * KEYS;
        if (STAGES > 1 && tile + 1 < tile_count) {
            const int next = (tile + 1) % STAGES;
            copy_rows<WIDTH>(keys + next * KEYS * STRIDE, k, kv_stride, first_key + KEYS, s.kv_len,
                             KEYS, WIDTH);
            copy_rows<WIDTH>(values + next * KEYS * STRIDE, v, kv_stride, first_key + KEYS,
                             s.kv_len, KEYS, WIDTH);
            async_commit();
            async_arrived<1>();
        } else {
            async_arrived<0>();
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

        if (s.softcap != 0.0f) {
#pragma unroll
            for (int i = 0; i < TILES; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    score[i][j] = s.softcap * tanhf(score[i][j] * unscaled / s.softcap);
                }
            }
        }
        /* Only tiles at the ends of what the warp's queries see need a mask. */
        const int tile_key = tile * KEYS;
        if (tile_key + KEYS - 1 > warp_position || tile_key + window <= warp_position + 15) {
#pragma unroll
            for (int i = 0; i < TILES; i++) {
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int key = tile_key + i * 8 + pair * 2 + j % 2;
                    const int own = warp_position + group + j / 2 * 8;
                    if (key > own || key + window <= own) {
                        score[i][j] = -INFINITY;
                    }
                }
            }
        }

        /* running maximum */
        float peak[2] = {largest[0], largest[1]};
#pragma unroll
        for (int i = 0; i < TILES; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                peak[j / 2] = fmaxf(peak[j / 2], score[i][j]);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            peak[half] = fmaxf(peak[half], __shfl_xor_sync(0xffffffffu, peak[half], 1));
            peak[half] = fmaxf(peak[half], __shfl_xor_sync(0xffffffffu, peak[half], 2));
        }
        if (__any_sync(0xffffffffu, peak[0] > largest[0] || peak[1] > largest[1])) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                /* Nothing seen so far: the sums are zero and stay so. */
                const float decay = largest[half] == -INFINITY
                                        ? 0.0f
                                        : power_of_two((largest[half] - peak[half]) * product);
                total[half] *= decay;
#pragma unroll
                for (int i = 0; i < WIDTH / 8; i++) {
                    sums[i][half * 2] *= decay;
                    sums[i][half * 2 + 1] *= decay;
                }
                largest[half] = peak[half];
            }
        }
        /* A row that sees nothing here and saw nothing before has weights of zero. */
        const float offset[2] = {largest[0] == -INFINITY ? 0.0f : largest[0] * product,
                                 largest[1] == -INFINITY ? 0.0f : largest[1] * product};
#pragma unroll
        for (int i = 0; i < TILES; i++) {
#pragma unroll
            for (int j = 0; j < 4; j++) {
                score[i][j] = power_of_two(fmaf(score[i][j], product, -offset[j / 2]));
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
            copy_rows<WIDTH>(keys, k, kv_stride, first_key + KEYS, s.kv_len, KEYS, WIDTH);
            copy_rows<WIDTH>(values, v, kv_stride, first_key + KEYS, s.kv_len, KEYS, WIDTH);
            async_commit();
        }
    }

    const float unscale = exp2f((float)half_exponent(job.range[2]));
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
    constexpr int BYTES = (QUERIES + 2 * STAGES * KEYS) * (WIDTH + TILE_PAD) * (int)sizeof(__half);
    static_assert(BYTES <= CUDA_LEAST_SHARED_BYTES, "on every device");
    const ingot_attention &s = job.shape;
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
        attention_tile_kernel<WIDTH, KEYS, STAGES>
            <<<grid, TILE_WARPS * 32, BYTES, cuda->stream>>>(part);
    }
    return ingot_cuda_launched();
}

/* One of q, k, v to binary16. */
static ingot_status to_half(const ingot_cuda *cuda, half_job job) {
    const unsigned blocks =
        (unsigned)ingot_min_u64(job.rows, 16u * (unsigned)cuda->multiprocessors);
    job.is_vector = job.head_dim % 8 == 0 && cuda_is_aligned(job.x);
    for (int pass = 0; pass < 2; pass++) {
        job.is_repair = pass == 1;
        attention_half_kernel<<<blocks, 256, 0, cuda->stream>>>(job);
        INGOT_TRY(ingot_cuda_launched());
    }
    return INGOT_OK;
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
    if (s.heads > 65535 || s.kv_len > INT_MAX / 4) {
        return INGOT_ERR_UNSUPPORTED;
    }
    ingot_cuda_buffer q_half(cuda), k_half(cuda), v_half(cuda), ranges(cuda);
    const uint64_t q_rows = s.sequences * s.q_len, k_rows = s.sequences * s.kv_len;
    INGOT_TRY(q_half.alloc(q_rows * s.heads, width * sizeof(__half)));
    INGOT_TRY(k_half.alloc(k_rows * s.kv_heads, width * sizeof(__half)));
    INGOT_TRY(v_half.alloc(k_rows * s.kv_heads, width * sizeof(__half)));
    INGOT_TRY(ranges.alloc(3, sizeof(ingot_cuda_range)));
    ingot_cuda_range *range = ranges.as<ingot_cuda_range>();
    INGOT_TRY(ingot_cuda_status(cudaMemsetAsync(range, 0, 3 * sizeof *range, cuda->stream)));
    half_job job = {};
    job.head_dim = head_dim;
    job.padded = width;
    job.out = q_half.as<__half>();
    job.x = q;
    job.range = range;
    job.rows = q_rows;
    job.rows_per_run = job.run_stride = s.q_len;
    job.heads = (unsigned)s.heads;
    INGOT_TRY(to_half(cuda, job));
    job.rows = k_rows;
    job.rows_per_run = s.kv_len;
    job.run_stride = s.kv_stride;
    job.heads = (unsigned)s.kv_heads;
    job.out = k_half.as<__half>();
    job.x = k;
    job.values = v;
    job.range = range + 1;
    INGOT_TRY(to_half(cuda, job));
    job.values = nullptr;
    job.is_value = true;
    job.out = v_half.as<__half>();
    job.x = v;
    job.range = range + 2;
    INGOT_TRY(to_half(cuda, job));
    cuda_written(cuda, out, q_rows * s.heads * s.head_dim * sizeof *out);
    const attention_job tiles = {
        out, q_half.as<__half>(), k_half.as<__half>(), v_half.as<__half>(), range, s};
    switch (width) {
    case 64:
        return launch_tiles<64, 64, 2>(cuda, tiles);
    case 128:
        return launch_tiles<128, 64, 2>(cuda, tiles);
    default:
        return launch_tiles<256, 32, 1>(cuda, tiles);
    }
}
