/* Internal to kernels/cuda: attention of the engine, how sums over parts of the keys become those
 * over all of them.  Warps of a block meet in its shared memory; blocks of a cluster send each
 * other what each adds up, an equal share of the tile; clusters, or blocks without one, leave their
 * parts in device memory, where the block that ends last adds them up.  Always in one order. */
#ifndef INGOT_CUDA_ENGINE_JOIN_H
#define INGOT_CUDA_ENGINE_JOIN_H

#include "kernels/cuda/cluster_sync.h"
#include "kernels/cuda/engine_tile.h"
#include "kernels/cuda/last_block.h"
#include "kernels/cuda/product_unpack.h"
#include "kernels/cuda/wgmma.h"

template <int PAD, bool WIDE, int ROWS, unsigned SLOTS>
__device__ static inline void store_sums(block_memory<PAD, ROWS, SLOTS> *memory,
                                         warp_sums<PAD> *sums, bool is_real) {
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int half = 0; half < (WIDE ? 2 : 1); half++) {
        const unsigned row = lane / 4 + half * 8;
        float total = sums->total[half];
        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (lane % 4 == 0 && is_real) {
            memory->peak[warp][row] = sums->peak[half];
            memory->total[warp][row] = total;
        }
#pragma unroll
        for (int j = 0; j < PAD / 64; j++) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const unsigned to =
                    async_address(&memory->out[warp][row][j * 64 + (lane % 4 * 2 + i) * 8]);
#pragma unroll
                for (int d = 0; d < 8; d += 4) {
                    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n"
                                 "@p st.shared.v4.f32 [%0], {%1,%2,%3,%4};\n}" ::"r"(to + d * 4),
                                 "f"(sums->out[j][d][half * 2 + i]),
                                 "f"(sums->out[j][d + 1][half * 2 + i]),
                                 "f"(sums->out[j][d + 2][half * 2 + i]),
                                 "f"(sums->out[j][d + 3][half * 2 + i]), "r"((unsigned)is_real)
                                 : "memory");
                }
            }
        }
    }
}

template <bool FUSED, bool TILED>
__device__ static inline void write_out(const attention_job &job, const span &s, unsigned row,
                                        unsigned d, const float4 &sum, float total, bool is_real) {
    const unsigned in_tile = FUSED ? 0 : row / s.heads, token = s.first_token + in_tile;
    const unsigned column = (s.first_head + row - in_tile * s.heads) * job.shape.head_dim + d;
    const float factor = __fdividef(1.0f, total);
    alignas(8) const __half values[4] = {finite_half(sum.x * factor), finite_half(sum.y * factor),
                                         finite_half(sum.z * factor), finite_half(sum.w * factor)};
    if (TILED) {
        if (is_real) {
            product_put_columns(job.out, job.form.bits, job.form.rows, token, column, values);
        }
        return;
    }
    __half *to = job.out + (uint64_t)token * job.heads * job.shape.head_dim + column;
    const uint2 bits = *reinterpret_cast<const uint2 *>(values);
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %3, 0;\n"
                 "@p st.global.v2.u32 [%0], {%1,%2};\n}" ::"l"(to),
                 "r"(bits.x), "r"(bits.y), "r"((unsigned)is_real)
                 : "memory");
}

__device__ static inline void add_scaled(float4 *sum, const float4 &more, float factor) {
    sum->x = fmaf(more.x, factor, sum->x);
    sum->y = fmaf(more.y, factor, sum->y);
    sum->z = fmaf(more.z, factor, sum->z);
    sum->w = fmaf(more.w, factor, sum->w);
}

/* ---- blocks of a cluster ----------------------------------------------------------------------
 */

/* The number of the block in its cluster. */
__device__ static inline unsigned block_rank(const attention_job &job) {
    return blockIdx.z % job.cluster;
}

/* What lies at `own` in this block, in block `rank` of the cluster. */
__device__ static inline unsigned cluster_address(const void *own, unsigned rank) {
    unsigned at = 0;
#if INGOT_SM90A
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(async_address(own)), "r"(rank));
#else
    (void)own, (void)rank;
#endif
    return at;
}

/* A part of a sum to a block of the cluster, whose barrier counts its bytes: a meeting of the
 * blocks would wait for all that they have under way in device memory. */
__device__ static inline void cluster_put(unsigned to, unsigned scale_to, unsigned barrier,
                                          const float4 &sum, const float2 &scale, bool is_real) {
#if INGOT_SM90A
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "setp.ne.u32 p, %9, 0;\n"
        "@p st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], "
        "{%3,%4,%5,%6}, [%2];\n"
        "@p st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%1], {%7,%8}, "
        "[%2];\n"
        "}" ::"r"(to),
        "r"(scale_to), "r"(barrier), "f"(sum.x), "f"(sum.y), "f"(sum.z), "f"(sum.w), "f"(scale.x),
        "f"(scale.y), "r"((unsigned)is_real)
        : "memory");
#else
    (void)to, (void)scale_to, (void)barrier, (void)sum, (void)scale, (void)is_real;
#endif
}

/* How blocks of a cluster share a tile, four features of a row an item. */
typedef struct cluster_share {
    unsigned items;
    unsigned each, inverse; /* items of a block; 2^20 / each */
    unsigned shift;         /* 2^shift threads an item */
} cluster_share;

template <int PAD> __device__ static inline cluster_share find_share(const span &s) {
    cluster_share share;
    share.items = s.rows * (PAD / 4);
    share.each = (share.items + s.members - 1) / s.members;
    share.inverse = ((1u << 20) + share.each - 1) / share.each;
    share.shift = 0;
    while (share.shift < 3 && share.each << (share.shift + 1) <= THREADS) {
        share.shift++;
    }
    return share;
}

/* Sets the barrier that waits for this block's share; the blocks of the cluster know of it behind
 * cluster_wait. */
template <int PAD, int ROWS, unsigned SLOTS>
__device__ static inline void expect_parts(block_memory<PAD, ROWS, SLOTS> *memory,
                                           const attention_job &job, const span &s,
                                           const cluster_share &share) {
#if INGOT_SM90A
    if (threadIdx.x == 0) {
        const unsigned first = min(block_rank(job) * share.each, share.items);
        const unsigned own = min(share.each, share.items - first);
        const unsigned barrier = async_address(&memory->has_parts);
        barrier_set(barrier, 1);
        barrier_publish();
        barrier_expect(barrier, own * s.members * (unsigned)(sizeof(float4) + sizeof(float2)));
    }
#else
    (void)memory, (void)job, (void)s, (void)share;
#endif
    cluster_arrive();
}

template <int PAD, int ROWS, unsigned SLOTS>
__device__ static inline void await_parts(const block_memory<PAD, ROWS, SLOTS> *memory) {
#if INGOT_SM90A
    barrier_wait(async_address(&memory->has_parts), 0);
#else
    (void)memory;
#endif
}

__device__ static inline void put_part(const attention_job &job, uint64_t part, unsigned row,
                                       unsigned d, const float4 &sum, float peak, float total) {
    *reinterpret_cast<float4 *>(job.part + (part * ENGINE_TILE + row) * ENGINE_HEAD_DIM + d) = sum;
    if (d == 0) {
        job.part_scale[part * ENGINE_TILE + row] = make_float2(peak, total);
    }
}

/* The sums of the warps together: the result, or a part of it, to device memory or to the blocks
 * of the cluster that add up parts. */
template <int PAD, bool FUSED, bool TILED, bool JOINT, int ROWS, unsigned SLOTS>
__device__ static inline void join_warps(block_memory<PAD, ROWS, SLOTS> *memory,
                                         const attention_job &job, const span &s,
                                         const cluster_share &share, uint64_t part, bool is_real) {
#pragma unroll 1
    for (unsigned i = threadIdx.x; i < share.items; i += THREADS) {
        const unsigned row = i / (PAD / 4), d = i % (PAD / 4) * 4;
        float peak = memory->peak[0][row], total = 0.0f;
#pragma unroll
        for (unsigned w = 1; w < WARPS; w++) {
            peak = fmaxf(peak, memory->peak[w][row]);
        }
        const float base = peak == -INFINITY ? 0.0f : peak;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll
        for (unsigned w = 0; w < WARPS; w++) {
            const float factor = exp2f(memory->peak[w][row] - base);
            total = fmaf(memory->total[w][row], factor, total);
            add_scaled(&sum, *reinterpret_cast<const float4 *>(&memory->out[w][row][d]), factor);
        }
        if (JOINT && s.members > 1) {
            const unsigned rank = i * share.inverse >> 20, from = block_rank(job);
            const unsigned at = from * share.each + i - rank * share.each;
            cluster_put(cluster_address(&memory->part[at], rank),
                        cluster_address(&memory->part_scale[at], rank),
                        cluster_address(&memory->has_parts, rank), sum, make_float2(peak, total),
                        is_real);
        } else if (d >= job.shape.head_dim) {
            continue;
        } else if (s.parts == 1) {
            write_out<FUSED, TILED>(job, s, row, d, sum, total, is_real);
        } else if (is_real) {
            put_part(job, part + blockIdx.z, row, d, sum, peak, total);
        }
    }
}

/* This block's share of the tile, from what all blocks of the cluster have put here: the result,
 * or the cluster's part of it. */
template <int PAD, bool FUSED, bool TILED, int ROWS, unsigned SLOTS>
__device__ static inline void
join_cluster(const block_memory<PAD, ROWS, SLOTS> *memory, const attention_job &job, const span &s,
             const cluster_share &share, uint64_t part, bool is_real) {
    const unsigned threads = 1u << share.shift, own = threadIdx.x % threads;
#pragma unroll 1
    for (unsigned first = 0; first < share.each; first += THREADS >> share.shift) {
        const unsigned at = first + (threadIdx.x >> share.shift), i = min(at, share.each - 1);
        const unsigned item = block_rank(job) * share.each + i;
        const unsigned row = item / (PAD / 4), d = item % (PAD / 4) * 4;
        float peak = -INFINITY, total = 0.0f;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 1
        for (unsigned p = 0; p < s.members; p += threads) { /* a thread may see one twice */
            peak = fmaxf(peak, memory->part_scale[min(p + own, s.members - 1) * share.each + i].x);
        }
#pragma unroll
        for (unsigned other = CLUSTER / 2; other > 0; other /= 2) {
            const float more = __shfl_xor_sync(0xffffffffu, peak, other);
            peak = other < threads ? fmaxf(peak, more) : peak;
        }
        const float base = peak == -INFINITY ? 0.0f : peak;
#pragma unroll 1
        for (unsigned p = 0; p < s.members; p += threads) {
            const unsigned from = min(p + own, s.members - 1);
            const float2 scale = memory->part_scale[from * share.each + i];
            const float factor = p + own < s.members ? exp2f(scale.x - base) : 0.0f;
            total = fmaf(scale.y, factor, total);
            add_scaled(&sum, memory->part[from * share.each + i], factor);
        }
#pragma unroll
        for (unsigned other = CLUSTER / 2; other > 0; other /= 2) {
            const float more_total = __shfl_xor_sync(0xffffffffu, total, other);
            const float4 more = make_float4(__shfl_xor_sync(0xffffffffu, sum.x, other),
                                            __shfl_xor_sync(0xffffffffu, sum.y, other),
                                            __shfl_xor_sync(0xffffffffu, sum.z, other),
                                            __shfl_xor_sync(0xffffffffu, sum.w, other));
            if (other < threads) {
                total += more_total;
                add_scaled(&sum, more, 1.0f);
            }
        }
        if (own != 0 || at >= share.each || item >= share.items || d >= job.shape.head_dim) {
            continue;
        }
        if (s.parts == 1) {
            write_out<FUSED, TILED>(job, s, row, d, sum, total, is_real);
        } else if (is_real) {
            put_part(job, part + blockIdx.z / job.cluster, row, d, sum, peak, total);
        }
    }
}

/* The parts of a tile, of which the first is `part`. */
template <bool FUSED, bool TILED>
__device__ static inline void join_parts(const attention_job &job, const span &s, uint64_t part) {
    const unsigned quads = job.shape.head_dim / 4;
    for (unsigned i = threadIdx.x; i < s.rows * quads; i += THREADS) {
        const unsigned row = i / quads, d = i % quads * 4;
        const float2 *scale = job.part_scale + part * ENGINE_TILE + row;
        const float *from = job.part + (part * ENGINE_TILE + row) * ENGINE_HEAD_DIM + d;
        float peak = -INFINITY, total = 0.0f;
        for (unsigned p = 0; p < s.parts; p++) {
            peak = fmaxf(peak, __ldcg(&scale[p * ENGINE_TILE]).x);
        }
        const float base = peak == -INFINITY ? 0.0f : peak;
        float4 sum = make_float4(0, 0, 0, 0);
#pragma unroll 4
        for (unsigned p = 0; p < s.parts; p++) {
            const float2 own = __ldcg(&scale[p * ENGINE_TILE]);
            const float factor = exp2f(own.x - base);
            total = fmaf(own.y, factor, total);
            add_scaled(&sum,
                       __ldcg(reinterpret_cast<const float4 *>(from + (uint64_t)p * ENGINE_TILE *
                                                                          ENGINE_HEAD_DIM)),
                       factor);
        }
        write_out<FUSED, TILED>(job, s, row, d, sum, total, true);
    }
}

#endif
