/* Attention of the engine: queries of a pass over the cache, split over its length.
 *
 * A tile is up to 16 rows of queries that read the same keys: the heads of a group for one token of
 * a sequence, or for a few consecutive tokens of a prompt.  A thread block takes a tile and a part
 * of the keys (engine_tile.h); its four warps take 16 keys in turn, copied to slots in shared
 * memory ahead of their use, multiply on tensor cores, and keep the running maximum of flash
 * attention (arXiv 2205.14135).  engine_join.h adds up what warps and blocks have.
 *
 * For sequences the keys of older tokens are on their way before the projections of the newest are
 * done; its own key and value go to the cache and to the slot where they are used.  In that time a
 * block also goes once through all of the kernel, without a trace: of its instructions, some 20 KB,
 * each is used once or a few times, and other kernels have come between, so that fetching them
 * takes longer than what they do.
 *
 * Fragments of mma.m16n8k16 without shuffles: which feature stands behind index k of a product is
 * free as long as queries and keys agree, so that a lane takes 16 bytes of a key and uses them in
 * two products; likewise for the features of values, where a lane holds 8 of them for 4 keys. */
#include "kernels/cuda/engine_join.h"

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

/* ---- heads of sequences -----------------------------------------------------------------------
 */

/* What heads are shaped with, which is there before the projections: features lane + 32 i. */
template <int TURNS> struct head_constants {
    float bias[TURNS][ENGINE_HEAD_PARTS];
    float norm_q[ENGINE_HEAD_PARTS], norm_k[ENGINE_HEAD_PARTS];
    float2 angle[ENGINE_HEAD_PARTS]; /* cosine, sine with its sign */
};

__device__ static void load_angles(float2 (&angle)[ENGINE_HEAD_PARTS], const attention_job &job,
                                   const span &s) {
    const unsigned rotary = job.shape.rotary;
    const float2 *angles = job.angles + (uint64_t)s.first_token * (rotary / 2);
#pragma unroll
    for (unsigned j = 0; j < ENGINE_HEAD_PARTS; j++) {
        const unsigned d = threadIdx.x % 32 + 32 * j;
        angle[j] = engine_angle(angles, d, rotary);
        angle[j].y = d < rotary / 2 ? -angle[j].y : angle[j].y;
    }
}

/* Where head i of the block lies in the row of its projections (which: query, key, value). */
__device__ static unsigned head_at(const attention_job &job, const span &s, unsigned i,
                                   unsigned which) {
    return (which == 0 ? s.first_head + i : s.kv_head) * job.shape.head_dim;
}

template <int TURNS>
__device__ static void load_constants(head_constants<TURNS> *c, const attention_job &job,
                                      const span &s) {
    const unsigned lane = threadIdx.x % 32, dim = job.shape.head_dim;
    const float more = job.shape.is_plus_one ? 1.0f : 0.0f;
#pragma unroll
    for (unsigned j = 0; j < ENGINE_HEAD_PARTS; j++) {
        const unsigned d = lane + 32 * j;
        c->norm_q[j] = job.from.norm_q != nullptr && d < dim ? job.from.norm_q[d] + more : 1.0f;
        c->norm_k[j] = job.from.norm_k != nullptr && d < dim ? job.from.norm_k[d] + more : 1.0f;
    }
#pragma unroll
    for (unsigned t = 0; t < TURNS; t++) {
        const unsigned i = t * WARPS + threadIdx.x / 32;
        const unsigned which = i < s.heads ? 0 : i == s.heads ? 1 : 2;
        const unsigned before = which == 0 ? 0 : job.heads + (which - 1) * job.kv_heads;
        const bool is_there = job.from.bias != nullptr && i < s.heads + 2;
        const float *bias = job.from.bias + before * dim + head_at(job, s, i, which);
#pragma unroll
        for (unsigned j = 0; j < ENGINE_HEAD_PARTS; j++) {
            c->bias[t][j] = is_there && lane + 32 * j < dim ? bias[lane + 32 * j] : 0.0f;
        }
    }
}

/* Heads of one token from projections to heads[][]: queries, and where the newest key is among
 * those of the block, key and value.  All that is read is asked for at once. */
template <int PAD, int ROWS, unsigned SLOTS, int TURNS>
__device__ static void shape_heads(block_memory<PAD, ROWS, SLOTS> *memory, const attention_job &job,
                                   const span &s, const head_constants<TURNS> &constants,
                                   bool is_real) {
    const unsigned dim = job.shape.head_dim, rotary = job.shape.rotary, middle = rotary / 2;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned items = s.heads + (s.is_last ? 2 : 0);
    const bool has_norm = job.from.norm_q != nullptr || job.from.norm_k != nullptr;
    float part[TURNS][ENGINE_HEAD_PARTS], bias[TURNS][ENGINE_HEAD_PARTS];
#pragma unroll
    for (unsigned t = 0; t < TURNS; t++) {
        const unsigned i = t * WARPS + warp, which = i < s.heads ? 0 : i == s.heads ? 1 : 2;
        const float *x = job.from.x[which] + s.first_token * job.from.stride[which] +
                         head_at(job, s, i, which) + lane;
        const bool is_there = is_real && i < items;
#pragma unroll
        for (unsigned j = 0; j < ENGINE_HEAD_PARTS; j++) {
            part[t][j] = is_there && lane + 32 * j < dim ? x[32 * j] : 0.0f;
            bias[t][j] = constants.bias[t][j];
        }
    }
    float *v = memory->scratch[warp];
#pragma unroll 1
    for (unsigned i = warp; i < items; i += WARPS) {
        const unsigned which = i < s.heads ? 0 : i == s.heads ? 1 : 2;
        float own[ENGINE_HEAD_PARTS];
#pragma unroll
        for (unsigned j = 0; j < ENGINE_HEAD_PARTS; j++) {
            own[j] = part[0][j] + bias[0][j];
#pragma unroll
            for (unsigned t = 0; t + 1 < TURNS; t++) {
                part[t][j] = part[t + 1][j];
                bias[t][j] = bias[t + 1][j];
            }
        }
        if (has_norm) {
            const float square = engine_head_square(own);
            const float *norm = which == 0   ? job.from.norm_q
                                : which == 1 ? job.from.norm_k
                                             : nullptr;
            const float factor =
                norm != nullptr ? rsqrtf(square * job.per_feature + job.shape.eps) : 1.0f;
#pragma unroll
            for (unsigned j = 0; j < ENGINE_HEAD_PARTS; j++) {
                own[j] *= factor * (which == 0   ? constants.norm_q[j]
                                    : which == 1 ? constants.norm_k[j]
                                                 : 1.0f);
            }
        }
#pragma unroll
        for (unsigned j = 0; j < ENGINE_HEAD_PARTS; j++) {
            v[lane + 32 * j] = own[j];
        }
        __syncwarp();
        __half *to = memory->heads[which == 0 ? i : ROWS + which - 1] + lane;
#pragma unroll
        for (unsigned j = 0; j < PAD / 32; j++) {
            const unsigned d = lane + 32 * j;
            const bool turns = d < rotary && which != 2;
            const float other = turns ? v[d < middle ? d + middle : d - middle] : 0.0f;
            to[32 * j] = finite_half(
                turns ? fmaf(other, constants.angle[j].y, own[j] * constants.angle[j].x) : own[j]);
        }
        __syncwarp();
    }
}

/* The newest key and value to the cache and to the slot where they are used before they would be
 * fetched; by the warp that does. */
template <int PAD, int ROWS, unsigned SLOTS>
__device__ static void put_newest(block_memory<PAD, ROWS, SLOTS> *memory, const attention_job &job,
                                  const span &s, bool is_real) {
    constexpr unsigned UNITS = PAD / 8;
    const unsigned at = s.end - 1 - s.begin, row = at % STEP, step = at / STEP;
    const unsigned warp = threadIdx.x / 32, which = threadIdx.x % 32 / UNITS;
    const unsigned unit = threadIdx.x % UNITS;
    if (step % WARPS != warp) {
        return;
    }
    if (which < 2 && unit * 8 < job.shape.head_dim && is_real) { /* zeros behind: by copies */
        const uint4 v = *reinterpret_cast<const uint4 *>(&memory->heads[ROWS + which][unit * 8]);
        if (step / WARPS < SLOTS) {
            key_slot<PAD> *slot = &memory->slot[warp][step / WARPS];
            *reinterpret_cast<uint4 *>(which == 0 ? &slot->key[row][slot->key_at(row, unit)]
                                                  : &slot->value[row][slot->value_at(row, unit)]) =
                v;
        }
        *reinterpret_cast<uint4 *>((which == 0 ? job.k : job.v) + s.base +
                                   (uint64_t)(s.end - 1) * job.shape.head_dim + unit * 8) = v;
    }
    __syncwarp();
}

/* Whether heads that were shaped reached the largest of binary16 and were cut off to it; when the
 * keys are used, but in front of a meeting of the block, since the next turn shapes heads anew. */
template <int PAD, int ROWS, unsigned SLOTS>
__device__ static void note_saturated(const block_memory<PAD, ROWS, SLOTS> *memory,
                                      const attention_job &job, const span &s, bool is_real) {
    constexpr unsigned UNITS = PAD / 8;
    __half2 peak = __float2half2_rn(0.0f);
    for (unsigned i = threadIdx.x; i < (ROWS + 2) * UNITS; i += THREADS) {
        const unsigned row = i / UNITS;
        if (row < ROWS ? row < s.heads : s.is_last) {
            const __half2 *from =
                reinterpret_cast<const __half2 *>(&memory->heads[row][i % UNITS * 8]);
#pragma unroll
            for (int k = 0; k < 4; k++) {
                peak = __hmax2(peak, __habs2(from[k]));
            }
        }
    }
    if (is_real) {
        engine_note_saturated(job.saturated, fmaxf(__low2float(peak), __high2float(peak)));
    }
}

/* The keys a row sees, [low, high). */
typedef struct row_limit {
    unsigned low, high;
} row_limit;

template <bool FUSED>
__device__ static row_limit find_limit(const attention_job &job, const span &s, unsigned row) {
    row_limit limit = {0, 0};
    if (row < s.rows) {
        limit.high =
            FUSED ? s.newest + 1 : engine_position(job.rows, s.first_token + row / s.heads) + 1;
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
                /* tanh, wrong by 1e-7 at most */
                value = job.softcap * (1.0f - __fdividef(2.0f, 1.0f + exp2f(value * job.cap_rate)));
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

/* JOINT: in clusters.  Kernels without them are a fifth smaller, and fetch instructions the faster
 * for it. */
template <int PAD, bool FUSED, bool WIDE, bool TILED, bool JOINT>
__global__ __launch_bounds__(
    THREADS,
    PAD == 64 ? 4
    : WIDE    ? 2
              : 3) static void engine_attention_kernel(const __grid_constant__ attention_job job) {
    constexpr int ROWS = WIDE ? 16 : 8, TURNS = (ROWS + 2 + WARPS - 1) / WARPS;
    constexpr unsigned SLOTS = slots_of<TILED>;
    extern __shared__ __align__(16) uint8_t attention_shared[];
    auto *shared = reinterpret_cast<block_memory<PAD, ROWS, SLOTS> *>(attention_shared);
    block_memory<PAD, ROWS, SLOTS> &memory = *shared;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (!FUSED) {
        engine_chain();
    }
    span s = {};
    const bool has_work = find_span<JOINT>(&s, job);
    const unsigned own = s.begin + warp * STEP;
    head_constants<TURNS> constants;
    if (FUSED && has_work) {
        load_constants<TURNS>(&constants, job, s);
        if (job.has_angles) {
            load_angles(constants.angle, job, s);
        }
    }
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
    const row_limit limit[2] = {find_limit<FUSED>(job, s, lane / 4),
                                find_limit<FUSED>(job, s, lane / 4 + 8)};
    const cluster_share share = has_work ? find_share<PAD>(s) : cluster_share{};
    const uint64_t unit = (uint64_t)blockIdx.y * gridDim.x + blockIdx.x, part = unit * gridDim.z;
    const bool is_joint = JOINT && s.members > 1;
    if (is_joint && has_work) {
        expect_parts(&memory, job, s, share);
    }
#pragma unroll 1
    for (unsigned turn = FUSED && JOINT && has_work ? 0 : 1; turn < 2; turn++) {
        const bool is_real = turn == 1;
        if (FUSED && is_real) {
            engine_wait();
        }
        if (!has_work) {
            if (FUSED) {
                engine_let_next_start(); /* it waits for the end of a block that does not say so */
            }
            return;
        }
        if (FUSED) {
            if (!job.has_angles && is_real) {
                load_angles(constants.angle, job, s);
            }
            shape_heads(&memory, job, s, constants, is_real);
        } else {
            stage_queries(&memory, job, s);
        }
        if (!is_real) {
            async_arrived<0>();
        }
        __syncthreads();
        if (FUSED && s.is_last) {
            put_newest(&memory, job, s, is_real);
        }
        unsigned query[PAD / 16][4];
#pragma unroll
        for (int j = 0; j < PAD / 32; j++) {
            const unsigned d = j * 32 + lane % 4 * 8;
            const uint4 low = *reinterpret_cast<const uint4 *>(&memory.heads[lane / 4][d]);
            uint4 high = make_uint4(0, 0, 0, 0);
            if (WIDE) {
                high = *reinterpret_cast<const uint4 *>(&memory.heads[(lane / 4 + 8) % ROWS][d]);
            }
            query[2 * j][0] = low.x, query[2 * j][1] = high.x;
            query[2 * j][2] = low.y, query[2 * j][3] = high.y;
            query[2 * j + 1][0] = low.z, query[2 * j + 1][1] = high.z;
            query[2 * j + 1][2] = low.w, query[2 * j + 1][3] = high.w;
        }
        warp_sums<PAD> sums = {};
        sums.peak[0] = sums.peak[1] = -INFINITY;
        unsigned slot = 0;
#pragma unroll 1
        for (unsigned first = own; first < s.end; first += ROUND) {
            async_arrived<SLOTS - 1>();
            __syncwarp();
            add_keys<PAD, WIDE>(&sums, query, &memory.slot[warp][slot], job, limit, first);
            if (!is_real) {
                break;
            }
            __syncwarp();
            if (first + SLOTS * ROUND < s.end) {
                fetch_keys(&memory.slot[warp][slot], job, s, first + SLOTS * ROUND, NO_KEY);
            }
            async_commit();
            slot = (slot + 1) % SLOTS;
        }
        if (FUSED && is_real) {
            /* Not before: blocks of the next kernel that start, and their copies, would be in front
             * of what this one reads (decision 0044). */
            engine_let_next_start();
        }
        __syncthreads(); /* sums take the place of slots */
        store_sums<PAD, WIDE>(&memory, &sums, is_real);
        if (FUSED) {
            note_saturated(&memory, job, s, is_real);
        }
        __syncthreads();
        if (is_joint && is_real) {
            cluster_wait(); /* the others have set their barriers */
        }
        join_warps<PAD, FUSED, TILED, JOINT>(&memory, job, s, share, part, is_real);
        if (is_joint) {
            if (is_real) {
                await_parts(&memory);
            }
            join_cluster<PAD, FUSED, TILED>(&memory, job, s, share, part, is_real);
        }
    }
    if (s.parts > 1 && cuda_block_ends_last(&memory.is_last, &job.part_done[unit], s.active)) {
        join_parts<FUSED, TILED>(job, s, part);
    }
}

/* ---- the host's side --------------------------------------------------------------------------
 */

/* How a pass of `rows` rows is cut. */
typedef struct attention_cut {
    unsigned chunks, tile_tokens, tiles, splits;
    unsigned cluster; /* blocks that meet in shared memory; 1: none */
    unsigned least_steps;
} attention_cut;

/* In clusters while all blocks of the pass run at once; else they would wait for each other. */
static attention_cut cut_pass(const ingot_engine *e, uint64_t rows, bool is_prompt) {
    const uint64_t group = e->model.heads / e->model.kv_heads;
    const uint64_t multiprocessors = (uint64_t)e->cuda->multiprocessors;
    const uint64_t steps = ingot_ceil_div(e->capacity, STEP);
    attention_cut cut = {};
    cut.chunks = (unsigned)ingot_ceil_div(group, ENGINE_TILE);
    cut.tile_tokens = is_prompt && group <= ENGINE_TILE ? (unsigned)(ENGINE_TILE / group) : 1;
    cut.tiles = (unsigned)ingot_ceil_div(rows, cut.tile_tokens);
    const uint64_t units = (uint64_t)cut.tiles * e->model.kv_heads * cut.chunks;
    cut.cluster = (unsigned)ingot_min_u64(CLUSTER, ingot_ceil_div(steps, LEAST_CLUSTER_STEPS));
    if (e->is_chained && e->cuda->clusters[CLUSTER - 1] != 0 &&
        units * cut.cluster <= multiprocessors) {
        const uint64_t most = ingot_min_u64(multiprocessors / units, ENGINE_SPLITS);
        cut.splits =
            cut.cluster * (unsigned)ingot_min_u64(most / cut.cluster,
                                                  ingot_ceil_div(steps, FULL_STEPS * cut.cluster));
        return cut;
    }
    cut.cluster = 1;
    cut.least_steps = 2 * units < multiprocessors ? LEAST_STEPS : LEAST_MANY_STEPS;
    cut.splits = (unsigned)ingot_min_u64(
        ingot_min_u64(ingot_ceil_div(3 * multiprocessors, units), ENGINE_SPLITS),
        ingot_ceil_div(steps, cut.least_steps));
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

typedef struct attention_choice {
    void (*kernel)(attention_job);
    unsigned bytes; /* of shared memory */
} attention_choice;

template <int PAD, bool FUSED, bool WIDE, bool TILED>
static attention_choice choose(bool is_joint) {
    constexpr int ROWS = WIDE ? 16 : 8;
    constexpr unsigned SLOTS = slots_of<TILED>;
    const unsigned bytes = block_bytes<PAD, ROWS, SLOTS>(is_joint);
    return is_joint
               ? attention_choice{engine_attention_kernel<PAD, FUSED, WIDE, TILED, true>, bytes}
               : attention_choice{engine_attention_kernel<PAD, FUSED, WIDE, TILED, false>, bytes};
}

template <int PAD, bool FUSED, bool WIDE>
static attention_choice choose(bool is_tiled, bool is_joint) {
    return is_tiled ? choose<PAD, FUSED, WIDE, true>(is_joint)
                    : choose<PAD, FUSED, WIDE, false>(is_joint);
}

template <int PAD, bool FUSED>
static attention_choice choose(bool is_wide, bool is_tiled, bool is_joint) {
    return is_wide ? choose<PAD, FUSED, true>(is_tiled, is_joint)
                   : choose<PAD, FUSED, false>(is_tiled, is_joint);
}

template <int PAD>
static attention_choice choose(bool is_fused, bool is_wide, bool is_tiled, bool is_joint) {
    return is_fused ? choose<PAD, true>(is_wide, is_tiled, is_joint)
                    : choose<PAD, false>(is_wide, is_tiled, is_joint);
}

ingot_status engine_attend(const ingot_engine *e, const engine_rows *rows,
                           const engine_layer *layer, const engine_projected *from,
                           ingot_product_form form) {
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
    job.form = form;
    job.part = e->part;
    job.part_scale = e->part_scale;
    job.part_done = e->part_done;
    job.saturated = e->saturated;
    job.heads = (unsigned)m->heads;
    job.kv_heads = (unsigned)m->kv_heads;
    job.group = (unsigned)(m->heads / m->kv_heads);
    job.chunks = cut.chunks;
    job.tile_tokens = cut.tile_tokens;
    job.window = (unsigned)ingot_min_u64(layer->window, UINT32_MAX);
    job.cluster = cut.cluster;
    job.least_steps = cut.least_steps;
    job.has_angles = layer != e->layer;
    job.per_feature = 1.0f / (float)m->head_dim;
    job.scale = m->attention_scale;
    job.softcap = m->softcap;
    job.cap_rate = m->softcap != 0 ? 2.88539008f / m->softcap : 0.0f;
    const bool is_wide = ingot_min_u64(job.group, ENGINE_TILE) * cut.tile_tokens > 8;
    const bool is_half = m->head_dim <= 64;
    /* Parts of the keys last: those that a short context leaves without work start behind all
     * others, and take no room from them. */
    const bool is_joint = cut.cluster > 1, is_tiled = form.rows != 0;
    const attention_choice choice = is_half ? choose<64>(!is_prompt, is_wide, is_tiled, is_joint)
                                            : choose<128>(!is_prompt, is_wide, is_tiled, is_joint);
    const engine_shape shape = {dim3(job.kv_heads * cut.chunks, cut.tiles, cut.splits), THREADS,
                                choice.bytes, cut.cluster};
    return engine_launch(e, choice.kernel, shape, job, true);
}
