/* Attention of the engine: queries of a pass over the cache, split over its length.
 *
 * A tile is up to 16 rows of queries that read the same keys: the heads of a group for one token of
 * a sequence, or for a few consecutive tokens of a prompt.  A thread block takes a tile and a part
 * of the keys; its four warps take 16 keys in turn, copied to slots in shared memory ahead of their
 * use, multiply on tensor cores, and keep the running maximum of flash attention (arXiv
 * 2205.14135).  The block that ends last adds the parts up, in order.
 *
 * For sequences the keys of older tokens are on their way before the projections of the newest are
 * done; its own key and value go to the cache and to the slot where they are used.
 *
 * Fragments of mma.m16n8k16 without shuffles: which feature stands behind index k of a product is
 * free as long as queries and keys agree, so that a lane takes 16 bytes of a key and uses them in
 * two products; likewise for the features of values, where a lane holds 8 of them for 4 keys. */
#include "kernels/cuda/async_copy.h"
#include "kernels/cuda/engine_parts.h"
#include "kernels/cuda/last_block.h"

#define THREADS 128
#define WARPS   4u
#define STEP    16u            /* keys of a warp at a time */
#define ROUND   (WARPS * STEP) /* of the block */
/* Of a block at least: with fewer the parts take longer to meet than a block to read its keys
 * (decision 0024: 471 tokens/s for 463 behind 4096 tokens). */
#define LEAST_KEYS (4 * ROUND)
#define SLOTS      2u /* steps of a warp on their way */
#define NO_KEY     UINT32_MAX

typedef struct attention_job {
    engine_rows rows;
    engine_projected from; /* FUSED: what is shaped on the way */
    engine_head_shape shape;
    const float2 *angles;
    const __half *q; /* not FUSED: [m][heads][head_dim] */
    __half *k, *v, *out;
    float *part;
    float2 *part_scale;
    unsigned *part_done;
    unsigned heads, kv_heads, chunks, tile_tokens, window;
    float scale, softcap;
} attention_job;

__device__ static void multiply(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ static unsigned pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

__device__ static unsigned word(const uint4 &v, int i) {
    return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

/* What a block works on. */
typedef struct span {
    unsigned first_token, tokens, first_head, heads, kv_head, rows;
    unsigned begin, end, active; /* keys of this block; blocks that share the tile's keys */
    bool is_last;                /* the newest key is among them */
    uint64_t base;               /* of its head in the cache */
} span;

/* False when the block has nothing to do. */
__device__ static bool find_span(span *s, const attention_job &job) {
    const unsigned group = job.heads / job.kv_heads, chunk = blockIdx.x % job.chunks * ENGINE_TILE;
    s->kv_head = blockIdx.x / job.chunks;
    s->first_head = s->kv_head * group + chunk;
    s->heads = min(group - chunk, ENGINE_TILE);
    s->first_token = blockIdx.z * job.tile_tokens;
    s->tokens = min(job.tile_tokens, job.rows.m - s->first_token);
    s->rows = s->tokens * s->heads;
    const unsigned oldest = engine_position(job.rows, s->first_token);
    const unsigned newest = engine_position(job.rows, s->first_token + s->tokens - 1);
    if (newest >= job.rows.capacity) {
        return false;
    }
    const unsigned low =
        job.window != 0 && oldest + 1 > job.window ? (oldest + 1 - job.window) / STEP * STEP : 0;
    const unsigned high = newest + 1, keys = high - low;
    const unsigned share = ((keys + gridDim.y - 1) / gridDim.y + ROUND - 1) / ROUND * ROUND;
    const unsigned each = max(share, LEAST_KEYS);
    s->active = (keys + each - 1) / each;
    s->begin = low + blockIdx.y * each;
    s->end = min(high, s->begin + each);
    s->is_last = blockIdx.y == s->active - 1;
    s->base = ((uint64_t)engine_sequence(job.rows, s->first_token) * job.kv_heads + s->kv_head) *
              job.rows.padded * job.shape.head_dim;
    return blockIdx.y < s->active;
}

/* Keys and values of a step; units of 8 features trade places, so that reads of lanes meet
 * different banks. */
template <int PAD> struct key_slot {
    __half key[STEP][PAD], value[STEP][PAD];

    __device__ static unsigned key_at(unsigned row, unsigned unit) {
        return (unit ^ row % 2 * 4) * 8;
    }
    __device__ static unsigned value_at(unsigned row, unsigned unit) {
        return (unit ^ row / 2 % 4 * 2) * 8;
    }
};

/* Shared memory of a block. */
template <int PAD, int ROWS> struct block_memory {
    union {
        key_slot<PAD> slot[WARPS][SLOTS];
        float out[WARPS][ROWS][PAD]; /* in the end */
    };
    float scratch[WARPS][ENGINE_HEAD_DIM];
    __half queries[ROWS][PAD];
    float peak[WARPS][ROWS], total[WARPS][ROWS];
    bool is_last;
};

/* Starts copies of the keys and values from `first` on, of one step, but of key `skipped`; zeros
 * behind the features. */
template <int PAD>
__device__ static void fetch_keys(key_slot<PAD> *slot, const attention_job &job, const span &s,
                                  unsigned first, unsigned skipped) {
    constexpr unsigned UNITS = PAD / 8;
    const unsigned dim = job.shape.head_dim;
#pragma unroll 4
    for (unsigned i = threadIdx.x % 32; i < STEP * UNITS; i += 32) {
        const unsigned row = i / UNITS, unit = i % UNITS, bytes = unit * 8 < dim ? 16 : 0;
        const uint64_t from = s.base + (uint64_t)(first + row) * dim + (bytes != 0 ? unit * 8 : 0);
        if (first + row != skipped || bytes == 0) {
            async_copy<16>(async_address(&slot->key[row][slot->key_at(row, unit)]), job.k + from,
                           bytes);
            async_copy<16>(async_address(&slot->value[row][slot->value_at(row, unit)]),
                           job.v + from, bytes);
        }
    }
}

/* Rows of queries[ROWS][PAD] in binary16, zero beyond. */
template <int PAD, int ROWS>
__device__ static void stage_queries(block_memory<PAD, ROWS> *memory, const attention_job &job,
                                     const span &s) {
    const unsigned dim = job.shape.head_dim;
    for (unsigned i = threadIdx.x; i < ROWS * (PAD / 8); i += THREADS) {
        const unsigned row = i / (PAD / 8), d = i % (PAD / 8) * 8;
        uint4 value = make_uint4(0, 0, 0, 0);
        if (row < s.rows && d < dim) {
            const uint64_t token = s.first_token + row / s.heads;
            value = *reinterpret_cast<const uint4 *>(
                job.q + (token * job.heads + s.first_head + row % s.heads) * dim + d);
        }
        *reinterpret_cast<uint4 *>(&memory->queries[row][d]) = value;
    }
}

/* The newest key or value to its place in the slots, where it is used before it would be fetched.
 */
template <int PAD, int ROWS>
__device__ static __half *newest_slot(block_memory<PAD, ROWS> *memory, const span &s, bool is_key,
                                      unsigned d) {
    const unsigned at = s.end - 1 - s.begin, row = at % STEP;
    key_slot<PAD> *slot = &memory->slot[at % ROUND / STEP][at / ROUND % SLOTS];
    return is_key ? &slot->key[row][slot->key_at(row, d / 8) + d % 8]
                  : &slot->value[row][slot->value_at(row, d / 8) + d % 8];
}

/* The same from projections, for one token: heads are shaped on the way, and the newest key and
 * value go to the cache.  Queries were zeroed before. */
template <int PAD, int ROWS>
__device__ static void shape_heads(block_memory<PAD, ROWS> *memory, const attention_job &job,
                                   const span &s, bool has_slot) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = job.shape.head_dim;
    const unsigned token = s.first_token, rotary = job.shape.rotary;
    const unsigned items = s.heads + (s.is_last ? 2 : 0);
    const auto which_of = [&](unsigned i) { return i < s.heads ? 0 : i - s.heads + 1; };
    const auto read = [&](float(&part)[ENGINE_HEAD_PARTS], unsigned i) {
        const unsigned which = which_of(i);
        const unsigned at = which == 0 ? (s.first_head + i) * dim : s.kv_head * dim;
        const unsigned offset = (which == 0   ? 0
                                 : which == 1 ? job.heads
                                              : job.heads + job.kv_heads) *
                                dim;
        engine_read_head(part, job.from.x[which] + token * job.from.stride[which] + at,
                         job.from.bias != nullptr ? job.from.bias + offset + at : nullptr,
                         job.shape);
    };
    float part[ENGINE_HEAD_PARTS], *scratch = memory->scratch[warp];
    float2 angle[ENGINE_HEAD_PARTS];
    if (warp < items) {
        read(part, warp);
    }
#pragma unroll
    for (unsigned i = 0; i < ENGINE_HEAD_PARTS; i++) {
        angle[i] = engine_angle(job.angles + (uint64_t)token * (rotary / 2), lane + 32 * i, rotary);
    }
#pragma unroll 1
    for (unsigned i = warp; i < items; i += WARPS) {
        const unsigned which = which_of(i);
        float next[ENGINE_HEAD_PARTS] = {};
        if (i + WARPS < items) {
            read(next, i + WARPS);
        }
        engine_norm_head(scratch, part,
                         which == 0   ? job.from.norm_q
                         : which == 1 ? job.from.norm_k
                                      : nullptr,
                         job.shape);
#pragma unroll
        for (unsigned j = 0; j < ENGINE_HEAD_PARTS; j++) {
            const unsigned d = lane + 32 * j;
            if (d < dim) {
                const __half v = engine_half(
                    which == 2 ? scratch[d] : engine_rotated(scratch, angle[j], d, rotary));
                if (which == 0) {
                    memory->queries[i][d] = v;
                } else {
                    (which == 1 ? job.k : job.v)[s.base + (uint64_t)(s.end - 1) * dim + d] = v;
                    if (has_slot) {
                        *newest_slot(memory, s, which == 1, d) = v;
                    }
                }
            }
            part[j] = next[j];
        }
    }
}

/* Sums of one warp over its keys.  Index 0 of the row pairs: row lane / 4, index 1: that + 8. */
template <int PAD> struct warp_sums {
    float out[PAD / 64][8][4];
    float peak[2], total[2];
};

/* The keys a row sees, [low, high). */
typedef struct row_limit {
    unsigned low, high;
} row_limit;

__device__ static row_limit find_limit(const attention_job &job, const span &s, unsigned row) {
    row_limit limit = {0, 0};
    if (row < s.rows) {
        limit.high = engine_position(job.rows, s.first_token + row / s.heads) + 1;
        limit.low = job.window != 0 && limit.high > job.window ? limit.high - job.window : 0;
    }
    return limit;
}

/* Scores of 16 keys become weights relative to the new maximum (base 2), sums are brought to it. */
template <int PAD, bool WIDE>
__device__ static void weigh(float (&score)[2][4], warp_sums<PAD> *sums, const attention_job &job,
                             const row_limit (&limit)[2], unsigned first) {
    const float log2_e = 1.44269504f;
#pragma unroll
    for (int half = 0; half < (WIDE ? 2 : 1); half++) {
        float peak = -INFINITY;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const unsigned key = first + i / 2 * 8 + threadIdx.x % 4 * 2 + i % 2;
            float &value = score[i / 2][half * 2 + i % 2];
            value *= job.scale;
            if (job.softcap != 0.0f) {
                value = job.softcap * tanhf(value / job.softcap);
            }
            value = key >= limit[half].low && key < limit[half].high ? value * log2_e : -INFINITY;
            peak = fmaxf(peak, value);
        }
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 1));
        peak = fmaxf(peak, __shfl_xor_sync(0xffffffffu, peak, 2));
        const float before = sums->peak[half], now = fmaxf(before, peak);
        const float base = now == -INFINITY ? 0.0f : now, factor = exp2f(before - base);
        float total = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float &value = score[i / 2][half * 2 + i % 2];
            value = exp2f(value - base);
            total += value;
        }
        sums->peak[half] = now;
        sums->total[half] = sums->total[half] * factor + total;
#pragma unroll
        for (int i = 0; i < PAD / 64 * 8; i++) {
            sums->out[i / 8][i % 8][half * 2] *= factor;
            sums->out[i / 8][i % 8][half * 2 + 1] *= factor;
        }
    }
}

template <int PAD, bool WIDE>
__device__ static void add_keys(warp_sums<PAD> *sums, const unsigned (&query)[PAD / 16][4],
                                const key_slot<PAD> *slot, const attention_job &job,
                                const row_limit (&limit)[2], unsigned first) {
    const unsigned lane = threadIdx.x % 32;
    uint4 key[2][PAD / 32], value[4][PAD / 64];
#pragma unroll
    for (unsigned i = 0; i < 2; i++) {
        const unsigned row = i * 8 + lane / 4;
#pragma unroll
        for (unsigned j = 0; j < PAD / 32; j++) {
            key[i][j] = *reinterpret_cast<const uint4 *>(
                &slot->key[row][slot->key_at(row, j * 4 + lane % 4)]);
        }
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const unsigned row = i / 2 * 8 + lane % 4 * 2 + i % 2;
#pragma unroll
        for (unsigned j = 0; j < PAD / 64; j++) {
            value[i][j] = *reinterpret_cast<const uint4 *>(
                &slot->value[row][slot->value_at(row, j * 8 + lane / 4)]);
        }
    }
    float score[2][4] = {};
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int j = 0; j < PAD / 32; j++) {
            multiply(score[i], query[2 * j], key[i][j].x, key[i][j].y);
            multiply(score[i], query[2 * j + 1], key[i][j].z, key[i][j].w);
        }
    }
    weigh<PAD, WIDE>(score, sums, job, limit, first);
    const unsigned weight[4] = {
        pack(score[0][0], score[0][1]), WIDE ? pack(score[0][2], score[0][3]) : 0u,
        pack(score[1][0], score[1][1]), WIDE ? pack(score[1][2], score[1][3]) : 0u};
#pragma unroll
    for (int j = 0; j < PAD / 64; j++) {
#pragma unroll
        for (int d = 0; d < 8; d++) {
            const unsigned order = d % 2 == 0 ? 0x5410u : 0x7632u;
            multiply(sums->out[j][d], weight,
                     __byte_perm(word(value[0][j], d / 2), word(value[1][j], d / 2), order),
                     __byte_perm(word(value[2][j], d / 2), word(value[3][j], d / 2), order));
        }
    }
}

template <int PAD, bool WIDE, int ROWS>
__device__ static void store_sums(block_memory<PAD, ROWS> *memory, warp_sums<PAD> *sums) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < (WIDE ? 2 : 1); half++) {
        const unsigned row = lane / 4 + half * 8;
        float total = sums->total[half];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (lane % 4 == 0) {
            memory->peak[warp][row] = sums->peak[half];
            memory->total[warp][row] = total;
        }
#pragma unroll
        for (int j = 0; j < PAD / 64; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float *to = &memory->out[warp][row][j * 64 + (lane % 4 * 2 + i) * 8];
#pragma unroll
                for (int d = 0; d < 8; d++) {
                    to[d] = sums->out[j][d][half * 2 + i];
                }
            }
        }
    }
}

__device__ static void write_out(const attention_job &job, const span &s, unsigned row, unsigned d,
                                 const float4 &sum, float total) {
    const uint64_t token = s.first_token + row / s.heads;
    __half *to =
        job.out + (token * job.heads + s.first_head + row % s.heads) * job.shape.head_dim + d;
    const float factor = 1.0f / total;
    alignas(8) const __half values[4] = {engine_half(sum.x * factor), engine_half(sum.y * factor),
                                         engine_half(sum.z * factor), engine_half(sum.w * factor)};
    *reinterpret_cast<uint2 *>(to) = *reinterpret_cast<const uint2 *>(values);
}

__device__ static void add_scaled(float4 *sum, const float4 &more, float factor) {
    sum->x = fmaf(more.x, factor, sum->x);
    sum->y = fmaf(more.y, factor, sum->y);
    sum->z = fmaf(more.z, factor, sum->z);
    sum->w = fmaf(more.w, factor, sum->w);
}

/* The sums of the warps together: the result, or this block's part of it. */
template <int PAD, int ROWS>
__device__ static void join_warps(const block_memory<PAD, ROWS> *memory, const attention_job &job,
                                  const span &s, uint64_t part) {
    const unsigned quads = job.shape.head_dim / 4;
    for (unsigned i = threadIdx.x; i < s.rows * quads; i += THREADS) {
        const unsigned row = i / quads, d = i % quads * 4;
        float peak = memory->peak[0][row], total = 0.0f;
        for (unsigned w = 1; w < WARPS; w++) {
            peak = fmaxf(peak, memory->peak[w][row]);
        }
        const float base = peak == -INFINITY ? 0.0f : peak;
        float4 sum = make_float4(0, 0, 0, 0);
        for (unsigned w = 0; w < WARPS; w++) {
            const float factor = exp2f(memory->peak[w][row] - base);
            total = fmaf(memory->total[w][row], factor, total);
            add_scaled(&sum, *reinterpret_cast<const float4 *>(&memory->out[w][row][d]), factor);
        }
        if (s.active == 1) {
            write_out(job, s, row, d, sum, total);
            continue;
        }
        *reinterpret_cast<float4 *>(job.part + (part * ENGINE_TILE + row) * ENGINE_HEAD_DIM + d) =
            sum;
        if (d == 0) {
            job.part_scale[part * ENGINE_TILE + row] = make_float2(peak, total);
        }
    }
}

/* The parts of all blocks of the tile, whose first is `part`. */
__device__ static void join_parts(const attention_job &job, const span &s, uint64_t part) {
    const unsigned quads = job.shape.head_dim / 4;
    for (unsigned i = threadIdx.x; i < s.rows * quads; i += THREADS) {
        const unsigned row = i / quads, d = i % quads * 4;
        const float2 *scale = job.part_scale + part * ENGINE_TILE + row;
        const float *from = job.part + (part * ENGINE_TILE + row) * ENGINE_HEAD_DIM + d;
        float peak = -INFINITY, total = 0.0f;
        for (unsigned p = 0; p < s.active; p++) {
            peak = fmaxf(peak, __ldcg(&scale[p * ENGINE_TILE]).x);
        }
        const float base = peak == -INFINITY ? 0.0f : peak;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
        for (unsigned p = 0; p < s.active; p++) {
            const float2 own = __ldcg(&scale[p * ENGINE_TILE]);
            const float factor = exp2f(own.x - base);
            total = fmaf(own.y, factor, total);
            add_scaled(&sum,
                       __ldcg(reinterpret_cast<const float4 *>(from + (uint64_t)p * ENGINE_TILE *
                                                                          ENGINE_HEAD_DIM)),
                       factor);
        }
        write_out(job, s, row, d, sum, total);
    }
}

template <int PAD, bool FUSED, bool WIDE>
__global__ __launch_bounds__(THREADS) static void engine_attention_kernel(const attention_job job) {
    constexpr int ROWS = WIDE ? 16 : 8;
    extern __shared__ __align__(16) uint8_t attention_shared[];
    auto *shared = reinterpret_cast<block_memory<PAD, ROWS> *>(attention_shared);
    block_memory<PAD, ROWS> &memory = *shared;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (!FUSED) {
        engine_chain();
    }
    span s = {};
    const bool has_work = find_span(&s, job);
    const unsigned own = s.begin + warp * STEP;
    const bool has_slot = s.is_last && s.end - 1 - s.begin < SLOTS * ROUND;
    if (has_work) {
#pragma unroll 1
        for (unsigned i = 0; i < SLOTS; i++) {
            if (own + i * ROUND < s.end) {
                fetch_keys(&memory.slot[warp][i], job, s, own + i * ROUND,
                           FUSED && s.is_last ? s.end - 1 : NO_KEY);
            }
            async_commit();
        }
    }
    if (FUSED) {
        for (unsigned i = threadIdx.x; i < ROWS * (PAD / 8); i += THREADS) {
            reinterpret_cast<uint4 *>(memory.queries)[i] = make_uint4(0, 0, 0, 0);
        }
        __syncthreads();
        engine_wait();
        engine_let_next_start(); /* not before: its blocks would crowd where there is room early */
    }
    if (!has_work) {
        return;
    }
    if (FUSED) {
        shape_heads(&memory, job, s, has_slot);
    } else {
        stage_queries(&memory, job, s);
    }
    __syncthreads();
    unsigned query[PAD / 16][4];
#pragma unroll
    for (int j = 0; j < PAD / 32; j++) {
        const unsigned d = j * 32 + lane % 4 * 8;
        const uint4 low = *reinterpret_cast<const uint4 *>(&memory.queries[lane / 4][d]);
        uint4 high = make_uint4(0, 0, 0, 0);
        if (WIDE) {
            high = *reinterpret_cast<const uint4 *>(&memory.queries[(lane / 4 + 8) % ROWS][d]);
        }
        query[2 * j][0] = low.x, query[2 * j][1] = high.x;
        query[2 * j][2] = low.y, query[2 * j][3] = high.y;
        query[2 * j + 1][0] = low.z, query[2 * j + 1][1] = high.z;
        query[2 * j + 1][2] = low.w, query[2 * j + 1][3] = high.w;
    }
    const row_limit limit[2] = {find_limit(job, s, lane / 4), find_limit(job, s, lane / 4 + 8)};
    warp_sums<PAD> sums = {};
    sums.peak[0] = sums.peak[1] = -INFINITY;
    unsigned slot = 0;
#pragma unroll 1
    for (unsigned first = own; first < s.end; first += ROUND) {
        async_arrived<SLOTS - 1>();
        __syncwarp();
        add_keys<PAD, WIDE>(&sums, query, &memory.slot[warp][slot], job, limit, first);
        __syncwarp();
        if (first + SLOTS * ROUND < s.end) {
            fetch_keys(&memory.slot[warp][slot], job, s, first + SLOTS * ROUND, NO_KEY);
        }
        async_commit();
        slot = (slot + 1) % SLOTS;
    }
    __syncthreads(); /* sums take the place of slots */
    store_sums<PAD, WIDE, ROWS>(&memory, &sums);
    __syncthreads();
    const uint64_t unit = (uint64_t)blockIdx.z * gridDim.x + blockIdx.x, part = unit * gridDim.y;
    join_warps<PAD, ROWS>(&memory, job, s, part + blockIdx.y);
    if (s.active > 1 && cuda_block_ends_last(&memory.is_last, &job.part_done[unit], s.active)) {
        join_parts(job, s, part);
    }
}

/* ---- the host's side --------------------------------------------------------------------------
 */

/* How a pass of `rows` rows is cut. */
typedef struct attention_cut {
    unsigned chunks, tile_tokens, tiles, splits;
} attention_cut;

static attention_cut cut_pass(const ingot_engine *e, uint64_t rows, bool is_prompt) {
    const uint64_t group = e->model.heads / e->model.kv_heads;
    attention_cut cut;
    cut.chunks = (unsigned)ingot_ceil_div(group, ENGINE_TILE);
    cut.tile_tokens = is_prompt && group <= ENGINE_TILE ? (unsigned)(ENGINE_TILE / group) : 1;
    cut.tiles = (unsigned)ingot_ceil_div(rows, cut.tile_tokens);
    const uint64_t units = (uint64_t)cut.tiles * e->model.kv_heads * cut.chunks;
    const uint64_t wanted = ingot_ceil_div(3 * (uint64_t)e->cuda->multiprocessors, units);
    cut.splits = (unsigned)ingot_min_u64(ingot_min_u64(wanted, ENGINE_SPLITS),
                                         ingot_ceil_div(e->capacity, LEAST_KEYS));
    return cut;
}

uint64_t engine_attention_units(const ingot_engine *e) {
    uint64_t most = 1;
    for (uint64_t rows = 1; rows <= e->pass_rows; rows++) {
        for (int is_prompt = 0; is_prompt < 2; is_prompt++) {
            const attention_cut cut = cut_pass(e, rows, is_prompt != 0);
            most = ingot_max_u64(most, (uint64_t)cut.tiles * e->model.kv_heads * cut.chunks);
        }
    }
    return most;
}

uint64_t engine_attention_parts(const ingot_engine *e) {
    uint64_t most = 1;
    for (uint64_t rows = 1; rows <= e->pass_rows; rows++) {
        for (int is_prompt = 0; is_prompt < 2; is_prompt++) {
            const attention_cut cut = cut_pass(e, rows, is_prompt != 0);
            const uint64_t units = (uint64_t)cut.tiles * e->model.kv_heads * cut.chunks;
            most = ingot_max_u64(most, cut.splits > 1 ? units * cut.splits : 1);
        }
    }
    return most;
}

template <int PAD> static void (*choose(bool is_fused, bool is_wide))(attention_job) {
    return is_fused ? (is_wide ? engine_attention_kernel<PAD, true, true>
                               : engine_attention_kernel<PAD, true, false>)
                    : (is_wide ? engine_attention_kernel<PAD, false, true>
                               : engine_attention_kernel<PAD, false, false>);
}

ingot_status engine_attend(const ingot_engine *e, const engine_rows *rows,
                           const engine_layer *layer, const engine_projected *from) {
    const ingot_engine_model *m = &e->model;
    const bool is_prompt = rows->lengths == nullptr;
    const attention_cut cut = cut_pass(e, rows->m, is_prompt);
    attention_job job = {};
    job.rows = *rows;
    job.from = *from;
    job.shape = {(unsigned)m->head_dim, (unsigned)m->rotary_dim, m->norm_eps,
                 m->norm == INGOT_NORM_RMS_PLUS_ONE};
    job.angles = e->angles;
    job.q = e->q;
    job.k = layer->k;
    job.v = layer->v;
    job.out = e->context;
    job.part = e->part;
    job.part_scale = e->part_scale;
    job.part_done = e->part_done;
    job.heads = (unsigned)m->heads;
    job.kv_heads = (unsigned)m->kv_heads;
    job.chunks = cut.chunks;
    job.tile_tokens = cut.tile_tokens;
    job.window = (unsigned)ingot_min_u64(layer->window, UINT32_MAX);
    job.scale = m->attention_scale;
    job.softcap = m->softcap;
    const uint64_t group = m->heads / m->kv_heads;
    const bool is_wide = ingot_min_u64(group, ENGINE_TILE) * cut.tile_tokens > 8;
    const bool is_half = m->head_dim <= 64;
    const size_t shared =
        is_half ? (is_wide ? sizeof(block_memory<64, 16>) : sizeof(block_memory<64, 8>))
                : (is_wide ? sizeof(block_memory<128, 16>) : sizeof(block_memory<128, 8>));
    const engine_shape shape = {dim3((unsigned)m->kv_heads * cut.chunks, cut.splits, cut.tiles),
                                THREADS, (unsigned)shared};
    return engine_launch(
        e, is_half ? choose<64>(!is_prompt, is_wide) : choose<128>(!is_prompt, is_wide), shape, job,
        true);
}
