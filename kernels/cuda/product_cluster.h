/* Internal to kernels/cuda: 3 to 64 rows of x with a small matrix of packed weights on Hopper, by
 * products of warpgroups (wgmma); product_wgmma.h has the large ones.
 *
 * A block has eight warps that multiply, two blocks are on a multiprocessor.  A warp takes 16 rows
 * of W, a step of 128 columns at a time, with 4 bits and few rows of x of 256: codes as the file
 * has them from shared memory to registers, where they become the a of a product, exactly q - z.  b
 * is x, in tiles (product_tile_at) that are as wgmma reads them.  One thread fetches a step for
 * all, of a warp of its own where registers suffice (decision 0050), else of the first: two boxes
 * of codes and the tile of x are three instructions of the copy engine.  Barriers count bytes that
 * came and warps that are done.
 *
 * Sums of 128 columns are scaled to FP32 totals: groups are 128 columns or more; PRODUCT_PLAIN are
 * here those of 256 and more, with which a step has one scale, PRODUCT_128 the others where two
 * scales are an aligned word.  Blocks of a cluster share the columns of few rows of W and add up
 * through each other's shared memory, in the order of the columns.  What comes of it may go to the
 * product behind (product_next.h). */
#ifndef INGOT_CUDA_PRODUCT_CLUSTER_H
#define INGOT_CUDA_PRODUCT_CLUSTER_H

#include "kernels/cuda/cluster_sync.h"
#include "kernels/cuda/product_fours.h"
#include "kernels/cuda/product_load.h"
#include "kernels/cuda/product_next.h"
#include "kernels/cuda/weights.h"
#include "kernels/cuda/wgmma.h"

#include <cooperative_groups.h>

#define CLUSTER_WARPS   8 /* that multiply */
#define CLUSTER_THREADS (CLUSTER_WARPS * 32)
#define CLUSTER_ROWS    (CLUSTER_WARPS * 16)
#define CLUSTER_BOX     (CLUSTER_ROWS / 2) /* rows of W, or of U, that are copied at once */
#define CLUSTER_PITCH   (CLUSTER_ROWS + 4) /* of sums: columns two apart, other banks */
#define CLUSTER_BYTES   (113u * 1024)      /* of shared memory for each of two blocks */
#define CLUSTER_LAG     2 /* steps behind its own whose place the first warp fills anew */

typedef struct cluster_job {
    CUtensorMap map[2]; /* codes of the upper and of the lower half of a block's rows */
    product_task task;
    unsigned steps;       /* of a row of W */
    unsigned own_steps;   /* of a block; the last of a cluster may have fewer */
    unsigned group_shift; /* log2 of the chunks of 32 in a group */
    bool is_even;         /* rows in fours, everything about them aligned to that */
} cluster_job;

/* Shared memory: stages of a step each, x and then codes; barriers; the weights of the norm with
 * which rows are handed on.  In the end the sums of all steps, [8 COLUMNS][PITCH], take the place
 * of stages. */
template <int BITS, product_mode MODE, int COLUMNS> struct cluster_layout {
    /* Whether a warp of its own fetches, which takes registers from the others; or else the first
     * of them does, between its products. */
    static constexpr bool HAS_FETCHER = COLUMNS <= (MODE == PRODUCT_GENERAL ? 2 : 4);
    static constexpr unsigned THREADS = CLUSTER_THREADS + (HAS_FETCHER ? 32 : 0);
    static constexpr unsigned FETCHER = HAS_FETCHER ? CLUSTER_THREADS : 0; /* the thread */
    /* 128 columns, so often, are a step: with 4 bits a row of its codes is 128 bytes, too */
    static constexpr int HALVES = BITS == 4 && HAS_FETCHER ? 2 : 1;
    static constexpr unsigned HALF_BYTES = 16 * BITS, ROW_BYTES = HALVES * HALF_BYTES;
    static constexpr unsigned HALF_X_BYTES = COLUMNS * 8 * PRODUCT_STEP_BYTES;
    static constexpr unsigned X_BYTES = HALVES * HALF_X_BYTES, BOX_BYTES = CLUSTER_BOX * ROW_BYTES;
    static constexpr bool IS_SWIZZLED = ROW_BYTES == WGMMA_SWIZZLE;
    static constexpr unsigned STAGE_BYTES = X_BYTES + 2 * BOX_BYTES;
    static constexpr unsigned MOST = (CLUSTER_BYTES - CLUSTER_ROWS * 4) / (STAGE_BYTES + 16),
                              STAGES = MOST < 8 ? MOST : 8;
    static constexpr unsigned BARRIERS = STAGES * STAGE_BYTES; /* where they are */
    static constexpr unsigned WEIGHTS = BARRIERS + 16 * STAGES;
    static constexpr unsigned BYTES = WEIGHTS + CLUSTER_ROWS * 4;
    static_assert(STAGES > CLUSTER_LAG && STAGE_BYTES % (IS_SWIZZLED ? 1024 : 128) == 0, "");
    static_assert(COLUMNS * 8 * CLUSTER_PITCH * sizeof(float) <= BARRIERS, "");
};

#if INGOT_SM90A

/* ---- the end ------------------------------------------------------------------------------------
 */

/* Rows of y that a thread stores, four adjacent ones of a column of the sums, one after the other:
 * a warp has a whole column of the block, or two where there is U. */
typedef struct cluster_items {
    unsigned at, step, count; /* the thread's first, from one to the next, all */
    unsigned fours;           /* of a column */
} cluster_items;

__device__ static inline cluster_items cluster_items_of(const product_task &task) {
    cluster_items items;
    items.fours = (task.has_up ? CLUSTER_BOX : CLUSTER_ROWS) / 4;
    items.at = blockIdx.x * CLUSTER_THREADS + threadIdx.x;
    items.step = gridDim.x * CLUSTER_THREADS;
    items.count = (unsigned)task.m * items.fours;
    if (threadIdx.x >= CLUSTER_THREADS) { /* the warp that fetches has none */
        items.at = items.count;
    }
    return items;
}

/* Four rows of a column from the sums of `blocks` blocks, which where(block) gives, to y, which sum
 * becomes where the job is even. */
template <typename Where>
__device__ static inline void
cluster_put_four(const cluster_job &job, float (&sum)[4], unsigned column, uint64_t first,
                 unsigned blocks, float factor, const float4 &residual, const Where &where) {
    const product_task &task = job.task;
    float up[4] = {};
#pragma unroll 4 /* eight at once, each if it is there, cost 0.3 us */
    for (unsigned i = 0; i < blocks; i++) {
        const float *from = where(i);
        product_read_four(sum, from);
        if (task.has_up) {
            product_read_four(up, from + CLUSTER_BOX);
        }
    }
    if (!job.is_even) {
        product_store_any(task, column, first, make_float4(sum[0], sum[1], sum[2], sum[3]),
                          make_float4(up[0], up[1], up[2], up[3]));
    } else if (first < task.w[0].rows) {
        product_store_four(task, column, first, sum, up, factor, residual);
    }
}

/* What a lane hands on of y, with a norm whose weights are `weight`: four rows of a column, which
 * its warp has, and the sum of their squares. */
__device__ static inline void cluster_hand_four(const product_next &next, unsigned column,
                                                uint64_t first, const float (&y)[4],
                                                const float4 &weight, float power) {
    const float weights[4] = {weight.x, weight.y, weight.z, weight.w};
    float square = 0.0f;
    __half values[4];
#pragma unroll
    for (unsigned k = 0; k < 4; k++) {
        values[k] = finite_half(y[k] * (weights[k] + next.more) * power);
        square = fmaf(y[k], y[k], square);
    }
    product_put_columns(next.x, next.form.bits, next.form.rows, column, (unsigned)first, values);
    for (int other = 16; other > 0; other /= 2) {
        square += __shfl_xor_sync(0xffffffffu, square, other);
    }
    if (threadIdx.x % 32 == 0) {
        next.sums[column * (gridDim.y + 1) + blockIdx.y] = square;
    }
}

/* What a thread knows of the squares of the row of x, or of the residual, that item `at` is of: its
 * part of their sum, and the row's power of two.  Both may be on their way. */
typedef struct cluster_known {
    float part, power;
} cluster_known;

__device__ static inline cluster_known cluster_ask(const product_task &task,
                                                   const cluster_items &items, unsigned at) {
    const unsigned row = at / items.fours, m = (unsigned)task.m;
    return {product_known_part(task.known, row, m, at % items.fours, items.fours),
            product_known_power(task.known, row, m)};
}

/* product_known_factor of that row; all lanes that have the column. */
__device__ static inline float cluster_factor(const product_task &task, const cluster_items &items,
                                              const cluster_known &known) {
    const unsigned mates = items.fours < 32 ? 0xffffu << (threadIdx.x & 16) : 0xffffffffu;
    float square = known.part;
    for (unsigned other = items.fours / 2; other > 0; other /= 2) {
        square += __shfl_xor_sync(mates, square, other);
    }
    return product_known_factor(task.known, square, known.power);
}

/* Sums of all warps to shared memory, then across the cluster, then to y.  Row h * BOX + warp * 8 +
 * wgmma_lane_row is row h of a lane. */
template <typename layout, int COLUMNS>
__device__ static void cluster_finish(float *shared, const float (&totals)[COLUMNS][4],
                                      const cluster_job &job, const cluster_known &known) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const product_task &task = job.task;
    const float4 *weights = reinterpret_cast<const float4 *>(
        reinterpret_cast<const uint8_t *>(shared) + layout::WEIGHTS);
    const cluster_items items = cluster_items_of(task);
    const uint64_t first = (uint64_t)blockIdx.y * (items.fours * 4);
    const bool has_residual = job.is_even && task.residual != nullptr && task.y_dtype == INGOT_F32;
    const bool is_known = task.known.sums != nullptr, hands_norm = task.next.norm_weight != nullptr;
    const auto fetch_residual = [&](unsigned at) {
        const uint64_t row = first + at % items.fours * 4;
        return has_residual && at < items.count && row < task.w[0].rows
                   ? *reinterpret_cast<const float4 *>(static_cast<const float *>(task.residual) +
                                                       at / items.fours * task.w[0].rows + row)
                   : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    };
    /* on its way before it is needed */
    float4 residual = fetch_residual(items.at);
    async_arrived<0>(); /* weights of the norm, in the warp that asked for them */
    __syncthreads();    /* all stages are used up */
    if (warp < CLUSTER_WARPS) {
        float *own = shared + warp * 8 + wgmma_lane_row<layout::HALVES>();
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const unsigned column = c * 8 + lane % 4 * 2 + k % 2;
                own[column * CLUSTER_PITCH + k / 2 * CLUSTER_BOX] = totals[c][k];
            }
        }
    }
    float factor = is_known ? cluster_factor(task, items, known) : 1.0f;
    const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
    cluster_meet();
#pragma unroll 1
    for (unsigned at = items.at; at < items.count; at += items.step) {
        const unsigned row = at % items.fours * 4, column = at / items.fours;
        const float *sums = shared + column * CLUSTER_PITCH + row;
        float y[4] = {};
        cluster_put_four(job, y, column, first + row, gridDim.x, hands_norm ? 1.0f : factor,
                         residual, [&](unsigned i) { return cluster.map_shared_rank(sums, i); });
        if (hands_norm) {
            cluster_hand_four(task.next, column, first + row, y, weights[row / 4], factor);
            if (blockIdx.y == 0 && row == 0) {
                task.next.sums[column * (gridDim.y + 1) + gridDim.y] = factor;
            }
        }
        const unsigned behind = at + items.step;
        residual = fetch_residual(behind);
        if (is_known && behind < items.count) {
            factor = cluster_factor(task, items, cluster_ask(task, items, behind));
        }
    }
    /* nobody leaves while others read its memory; y need not be there */
    cluster_arrive();
    cluster_wait();
}

/* ---- inputs ------------------------------------------------------------------------------------
 */

/* A chunk of both rows of a lane, that of the first at `codes` in shared memory, the other in the
 * other box. */
template <typename layout, int BITS>
__device__ static inline void cluster_take(unsigned (&out)[2][BITS], unsigned codes) {
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        const unsigned row = codes + h * layout::BOX_BYTES;
        if constexpr (BITS % 4 == 0) {
#pragma unroll
            for (unsigned i = 0; i < BITS / 4; i++) {
                const uint4 v = shared_read16(row + i * 16);
                out[h][4 * i] = v.x, out[h][4 * i + 1] = v.y;
                out[h][4 * i + 2] = v.z, out[h][4 * i + 3] = v.w;
            }
        } else {
#pragma unroll
            for (unsigned i = 0; i < BITS; i++) {
                out[h][i] = shared_read4(row + i * 4);
            }
        }
    }
}

/* Where a lane finds scales and zero points of its two rows. */
typedef struct cluster_rows {
    const uint8_t *scale[2], *zero[2];
} cluster_rows;

template <product_mode MODE>
__device__ static inline cluster_rows cluster_find(const product_matrix &w,
                                                   const product_task &task, unsigned row) {
    cluster_rows out;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const bool is_up = h != 0 && task.has_up;
        const unsigned own = min(h != 0 && !is_up ? row + CLUSTER_BOX : row, w.last_row);
        const ingot_weight_view &view = task.w[is_up ? 1 : 0];
        const uint64_t at = (uint64_t)own * w.groups;
        out.scale[h] = static_cast<const uint8_t *>(view.scales) +
                       (at << (MODE == PRODUCT_GENERAL ? w.scale_shift : 1));
        out.zero[h] = MODE == PRODUCT_GENERAL && w.zeros != nullptr ? view.zeros + at : nullptr;
        asm volatile("" : "+l"(out.scale[h])); /* or it would be made anew in every step */
    }
    return out;
}

/* Asks for scales of `count` times 128 columns from the `first` on to come to the L2 cache, 128
 * bytes of a row at most: in the steps themselves a warp would wait for the memory. */
__device__ static inline void cluster_prefetch(const product_matrix &w, const cluster_rows &rows,
                                               unsigned first, unsigned count) {
    const unsigned last = min((first + count) * 4 - 1, w.last_chunk) >> w.group_shift;
    const unsigned from = (first * 4 >> w.group_shift << w.scale_shift) + threadIdx.x % 4 * 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (from <= last << w.scale_shift) {
            asm volatile("prefetch.global.L2 [%0];" ::"l"(rows.scale[h] + from));
        }
    }
}

/* Scales and zero points of both rows of a lane for the halves of a step, as they are stored; but
 * of PRODUCT_PLAIN scale[0] alone, and of PRODUCT_128 both scales in scale[0]. */
template <int HALVES> struct cluster_groups { unsigned scale[HALVES][2], zero[HALVES][2]; };

/* Those of `step`; of PRODUCT_128 rows.scale is where the step has its own. */
template <product_mode MODE, int HALVES>
__device__ static inline cluster_groups<HALVES>
cluster_load_groups(const product_matrix &w, const cluster_rows &rows, unsigned step) {
    cluster_groups<HALVES> out;
    const unsigned first = MODE == PRODUCT_128 ? 0 : step * (4 * HALVES) >> w.group_shift;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if constexpr (MODE == PRODUCT_128 && HALVES == 2) {
            out.scale[0][h] = __ldg(reinterpret_cast<const unsigned *>(rows.scale[h]));
        } else if constexpr (MODE != PRODUCT_GENERAL) {
            out.scale[0][h] =
                __ldg(reinterpret_cast<const unsigned short *>(rows.scale[h]) + first);
        } else {
#pragma unroll
            for (int half = 0; half < HALVES; half++) {
                /* there may be none behind the first half of the last step */
                const unsigned group =
                    half == 0 ? first
                              : min((step * HALVES + half) * 4 >> w.group_shift, w.groups - 1);
                out.scale[half][h] =
                    w.scale_shift == 2
                        ? __ldg(reinterpret_cast<const unsigned *>(rows.scale[h]) + group)
                        : __ldg(reinterpret_cast<const unsigned short *>(rows.scale[h]) + group);
                out.zero[half][h] = w.zeros != nullptr ? __ldg(rows.zero[h] + group) : 0;
            }
        }
    }
    return out;
}

/* The scale of row h for one half of a step. */
template <product_mode MODE, int HALVES>
__device__ static inline float cluster_scale(const cluster_groups<HALVES> &groups,
                                             const product_matrix &w, int half, int h) {
    const unsigned bits = groups.scale[MODE == PRODUCT_GENERAL ? half : 0][h];
    return product_scale<MODE>(MODE == PRODUCT_128 && half != 0 ? bits >> 16 : bits, w);
}

#endif

/* ---- the product -------------------------------------------------------------------------------
 */

template <int BITS, typename T, product_mode MODE, int COLUMNS>
__global__
__launch_bounds__(cluster_layout<BITS, MODE, COLUMNS>::THREADS,
                  2) static void product_cluster_kernel(const __grid_constant__ cluster_job job) {
#if INGOT_SM90A
    typedef cluster_layout<BITS, MODE, COLUMNS> layout;
    constexpr int HALVES = layout::HALVES;
    extern __shared__ __align__(1024) uint8_t cluster_shared[];
    const product_task &task = job.task;
    const product_matrix w = product_matrix_of(task, false, job.group_shift);
    const unsigned rows = task.has_up ? CLUSTER_BOX : CLUSTER_ROWS;
    const unsigned first = blockIdx.x * job.own_steps;
    const unsigned count = min(job.own_steps, job.steps - first);
    const unsigned stages_at = async_address(cluster_shared);
    const unsigned full = stages_at + layout::BARRIERS, empty = full + 8 * layout::STAGES;

    /* by one thread, or, between its products, by a whole warp, which costs it less (decision 0056)
     */
    const auto fetch_codes = [&](unsigned step, auto by_warp) {
        const unsigned stage = step % layout::STAGES, barrier = full + 8 * stage;
        const unsigned to = stages_at + stage * layout::STAGE_BYTES + layout::X_BYTES;
        const unsigned column = (first + step) * layout::ROW_BYTES;
        const unsigned row = blockIdx.y * rows;
        const auto expect = decltype(by_warp)::value ? barrier_expect_by_warp : barrier_expect;
        const auto copy = decltype(by_warp)::value ? bulk_copy_box_by_warp : bulk_copy_box;
        expect(barrier, layout::STAGE_BYTES);
        copy(to, &job.map[0], column, row, barrier);
        copy(to + layout::BOX_BYTES, &job.map[1], column, row + rows - CLUSTER_BOX, barrier);
    };
    const auto fetch_x = [&](unsigned step, auto by_warp) {
        const unsigned stage = step % layout::STAGES;
        const auto copy = decltype(by_warp)::value ? bulk_copy_by_warp : bulk_copy;
        copy(stages_at + stage * layout::STAGE_BYTES,
             static_cast<const uint8_t *>(task.x) + (uint64_t)(first + step) * layout::X_BYTES,
             layout::X_BYTES, full + 8 * stage);
    };
    /* a step behind the first ones, once the one whose place it takes is used up */
    const auto refill = [&](unsigned step) {
        constexpr std::bool_constant<!layout::HAS_FETCHER> by_warp;
        barrier_wait(empty + 8 * (step % layout::STAGES), (step / layout::STAGES - 1) % 2);
        fetch_codes(step, by_warp);
        fetch_x(step, by_warp);
    };
    if (threadIdx.x == layout::FETCHER) {
        for (unsigned i = 0; i < layout::STAGES; i++) {
            barrier_set(full + 8 * i, 1);
            barrier_set(empty + 8 * i, CLUSTER_WARPS);
        }
        barrier_publish();
        for (unsigned i = 0; i < layout::STAGES && i < count; i++) {
            fetch_codes(i, std::false_type());
        }
    }
    if (task.next.norm_weight != nullptr && threadIdx.x / 32 == 1) {
        async_copy<16>(stages_at + layout::WEIGHTS + threadIdx.x % 32 * 16,
                       task.next.norm_weight + blockIdx.y * CLUSTER_ROWS + threadIdx.x % 32 * 4,
                       16);
        async_commit(); /* waited for in the end */
    }
    const unsigned own_row = threadIdx.x / 32 * 8 + wgmma_lane_row<layout::HALVES>();
    cluster_rows where = cluster_find<MODE>(w, task, blockIdx.y * rows + own_row);
    cluster_prefetch(w, where, first * HALVES, count * HALVES);
    const auto go_on = [&](unsigned steps) { /* of PRODUCT_128 */
                                             where.scale[0] += steps * (HALVES * 2);
                                             where.scale[1] += steps * (HALVES * 2);
    };
    if (MODE == PRODUCT_128) {
        go_on(first);
    }
    cluster_groups<HALVES> next_groups = cluster_load_groups<MODE, HALVES>(w, where, first);
    product_wait();
    product_let_next_start(); /* not before: as measured (decision 0045) */
    __syncthreads();
    if (threadIdx.x == layout::FETCHER) {
        for (unsigned i = 0; i < layout::STAGES && i < count; i++) {
            fetch_x(i, std::false_type());
        }
    }
    const cluster_items items = cluster_items_of(task);
    const cluster_known known = cluster_ask(task, items, items.at);

    product_zero<BITS, T> zero[2][1];
    zero[0][0].set(1u << (BITS - 1));
    zero[1][0].set(1u << (BITS - 1));
    unsigned codes = stages_at + layout::X_BYTES + own_row * layout::ROW_BYTES;
    codes += layout::IS_SWIZZLED ? (threadIdx.x % 4 * (BITS / 4) ^ own_row % 8) * 16
                                 : threadIdx.x % 4 * 4 * BITS;
    asm volatile("" : "+r"(codes)); /* or it would be made anew in every step */
    unsigned code[2][BITS], stage = 0, odd = 0;
    float totals[COLUMNS][4] = {};
    const unsigned warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0);
    const bool fetches = layout::HAS_FETCHER && warp == CLUSTER_WARPS;
    if (fetches) {
        if (threadIdx.x == layout::FETCHER) {
#pragma unroll 1
            for (unsigned step = layout::STAGES; step < count; step++) {
                refill(step);
            }
        }
        __syncwarp();
    } else {
        barrier_wait(full, 0);
        cluster_take<layout, BITS>(code, codes);
    }
#pragma unroll 1
    for (unsigned step = 0; !fetches && step < count; step++) {
        const bool is_last = step + 1 == count;
        const cluster_groups<HALVES> groups = next_groups;
        const unsigned here = stage;
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
            unsigned pair[2][16];
            float scale[2], sums[COLUMNS][4];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                scale[h] = cluster_scale<MODE, HALVES>(groups, w, half, h);
                if (MODE == PRODUCT_GENERAL && w.zeros != nullptr) {
                    zero[h][0].set(groups.zero[half][h]);
                }
                product_unpack<BITS, T, 1>(pair[h], code[h], zero[h]);
            }
            if (MODE != PRODUCT_128 && half == HALVES - 1) {
                next_groups =
                    cluster_load_groups<MODE, HALVES>(w, where, first + (is_last ? 0 : step + 1));
            }
            wgmma_products<T, COLUMNS, HALVES>(
                sums, pair,
                wgmma_matrix<COLUMNS * 8>(stages_at + here * layout::STAGE_BYTES +
                                          half * layout::HALF_X_BYTES));
            if (half == HALVES - 1) {
                stage++;
                if (stage == layout::STAGES) {
                    stage = 0;
                    odd ^= 1;
                }
                const unsigned behind = step + layout::STAGES - CLUSTER_LAG;
                if (!layout::HAS_FETCHER && warp == 0 && step >= CLUSTER_LAG && behind < count) {
                    refill(behind);
                }
                __syncwarp();
                if (!is_last) { /* the codes of the next step, while this one is multiplied */
                    if (MODE == PRODUCT_128) { /* not before: as measured (decision 0055) */
                        go_on(1);
                        next_groups = cluster_load_groups<MODE, HALVES>(w, where, 0);
                    }
                    barrier_wait(full + 8 * stage, odd);
                    cluster_take<layout, BITS>(code, codes + stage * layout::STAGE_BYTES);
                }
            } else {
                cluster_take<layout, BITS>(code, (codes ^ (half + 1) * layout::HALF_BYTES) +
                                                     here * layout::STAGE_BYTES);
            }
            wgmma_wait<0>();
            if (half == HALVES - 1 && threadIdx.x % 32 == 0) {
                barrier_arrive(empty + 8 * here);
            }
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    totals[c][k] = fmaf(scale[k / 2], sums[c][k], totals[c][k]);
                }
            }
        }
    }
    cluster_finish<layout, COLUMNS>(reinterpret_cast<float *>(cluster_shared), totals, job, known);
#endif
}

#endif
