/* Internal to kernels/cuda: what product_wgmma.h works on, who has which steps of it, and how sums
 * of a tile of W become y, by one block or by those that meet in it. */
#ifndef INGOT_CUDA_PRODUCT_WGMMA_TILE_H
#define INGOT_CUDA_PRODUCT_WGMMA_TILE_H

#include "kernels/cuda/product_load.h"
#include "kernels/cuda/product_next.h"
#include "kernels/cuda/weights.h"
#include "kernels/cuda/wgmma.h"

#define WGMMA_WARPS   16 /* that multiply */
#define WGMMA_THREADS ((WGMMA_WARPS + 4) * 32)
#define WGMMA_ROWS    (WGMMA_WARPS * 16)
#define WGMMA_BOX     (WGMMA_ROWS / 2) /* rows of W, or of U, that are copied at once */
#define WGMMA_BYTES   (201u * 1024)    /* of shared memory, at most, for stages */
#define WGMMA_SCALES                                                                               \
    16 /* groups of a row whose scales are copied at once; a slot: 32 bytes a row */
#define WGMMA_SLOTS 3
#define WGMMA_KNOWN 64 /* threads, of those that do not multiply, that find factors of rows */

/* The 128 columns, so often, of a step: with 4 bits a row of its codes is 128 bytes, too. */
constexpr unsigned wgmma_halves(unsigned bits) {
    return bits == 4 ? 2 : 1;
}

typedef struct wgmma_job {
    CUtensorMap map[2];       /* codes of the upper and of the lower half of a tile's rows */
    CUtensorMap scale_map[2]; /* their scales, where has_boxes */
    product_task task;
    unsigned *counters;    /* ingot_cuda */
    const void *scales[2]; /* of the upper and of the lower half of a tile's rows */
    const uint8_t *zeros[2];
    unsigned steps;       /* of a row of W */
    unsigned span;        /* units, steps of all tiles, that gridDim.x blocks share: ... */
    unsigned least, more; /* ... `more` of them `least` + 1 times, the others `least` times ... */
    unsigned piece;       /* ... so many: one, or whole tiles */
    unsigned whole;       /* tiles behind those, so many for each block */
    unsigned group_shift; /* log2 of the chunks of 32 in a group */
    bool has_boxes;       /* scales come by boxes of WGMMA_SCALES groups */
    bool is_even;         /* rows in pairs, everything about them aligned to that */
    bool is_bare;         /* that, and sums go to y in FP32 as they are */
} wgmma_job;

/* Shared memory: stages of a step each, x and then codes; slots of scales; barriers, the last of
 * which says that factors of rows of x are there; these, and parts of them. */
template <int BITS, int COLUMNS> struct wgmma_layout {
    static constexpr unsigned HALVES = wgmma_halves(BITS), HALF_BYTES = 16 * BITS;
    static constexpr unsigned HALF_X_BYTES = COLUMNS * 8 * PRODUCT_STEP_BYTES;
    static constexpr unsigned X_BYTES = HALVES * HALF_X_BYTES, ROW_BYTES = HALVES * HALF_BYTES;
    static constexpr unsigned BOX_BYTES = WGMMA_BOX * ROW_BYTES;
    static constexpr bool IS_SWIZZLED = ROW_BYTES == WGMMA_SWIZZLE;
    static constexpr unsigned STAGE_BYTES = X_BYTES + 2 * BOX_BYTES;
    static constexpr unsigned MOST = WGMMA_BYTES / (STAGE_BYTES + 16), STAGES = MOST < 8 ? MOST : 8;
    static constexpr unsigned SCALES = STAGES * STAGE_BYTES; /* where they are: */
    static constexpr unsigned SLOT_BYTES = WGMMA_ROWS * WGMMA_SCALES * 2;
    static constexpr unsigned BARRIERS = SCALES + WGMMA_SLOTS * SLOT_BYTES;
    static constexpr unsigned FACTORS = BARRIERS + 16 * STAGES + 16;
    static constexpr unsigned BYTES = FACTORS + (PRODUCT_TILE + WGMMA_KNOWN) * 4;
    static_assert(STAGES >= 3 && STAGES * HALVES <= WGMMA_SCALES, "");
    static_assert(STAGE_BYTES % (IS_SWIZZLED ? 1024 : 128) == 0 && X_BYTES % 1024 == 0, "");
};

#if INGOT_SM90A

/* ---- who has which steps -----------------------------------------------------------------------
 */

/* The first unit of block (part, span).  Blocks with less than one unit more come last. */
__device__ static inline unsigned wgmma_begin(const wgmma_job &job, unsigned part, unsigned span) {
    return span * job.span + (part * job.least + min(part, job.more)) * job.piece;
}

/* The part of its span that has a unit. */
__device__ static inline unsigned wgmma_part_of(const wgmma_job &job, unsigned unit) {
    const unsigned at = unit % job.span, first = job.more * (job.least + 1);
    return at < first ? at / (job.least + 1) : job.more + (at - first) / job.least;
}

/* The units of a block: first what it has of tiles that blocks share, then whole ones. */
typedef struct wgmma_units {
    unsigned begin, stop; /* of the former */
    unsigned whole;       /* the first of the latter */
    unsigned count;       /* of both */
} wgmma_units;

__device__ static inline wgmma_units wgmma_units_of(const wgmma_job &job) {
    wgmma_units units;
    units.begin = wgmma_begin(job, blockIdx.x, blockIdx.y);
    units.stop = wgmma_begin(job, blockIdx.x + 1, blockIdx.y);
    units.whole = job.span * gridDim.y + blockIdx.x * job.whole * job.steps;
    units.count = units.stop - units.begin + job.whole * job.steps;
    return units;
}

/* A value that all lanes of a warp have, for the compiler to know. */
__device__ static inline unsigned wgmma_same(unsigned value) {
    return __shfl_sync(0xffffffffu, value, 0);
}

/* ---- the end ------------------------------------------------------------------------------------
 */

__device__ static inline void wgmma_add_two(float (&v)[2], const void *from, ingot_dtype dtype) {
    float2 more;
    if (dtype == INGOT_F32) {
        more = *static_cast<const float2 *>(from);
    } else {
        const unsigned pair = *static_cast<const unsigned *>(from);
        more = dtype == INGOT_F16 ? cuda_pair_floats<INGOT_F16>(pair)
                                  : cuda_pair_floats<INGOT_BF16>(pair);
    }
    v[0] += more.x, v[1] += more.y;
}

/* product_store of rows row and row + 1, where the job is even; sums are multiplied by `factor`
 * (product_known). */
__device__ static inline void wgmma_store_two(const product_task &task, uint64_t i, uint64_t row,
                                              float (&sum)[2], float (&up)[2], float factor) {
    const uint64_t at = i * task.w[0].rows + row;
    if (task.addend[0] != nullptr) {
        wgmma_add_two(sum, task.addend[0] + at, INGOT_F32);
    }
    sum[0] *= factor, sum[1] *= factor;
    if (task.bias[0] != nullptr) {
        wgmma_add_two(sum, task.bias[0] + row, INGOT_F32);
    }
    if (task.activation >= 0) {
        sum[0] = product_activate(sum[0], task.activation);
        sum[1] = product_activate(sum[1], task.activation);
    }
    if (task.has_up) {
        if (task.addend[1] != nullptr) {
            wgmma_add_two(up, task.addend[1] + at, INGOT_F32);
        }
        up[0] *= factor, up[1] *= factor;
        if (task.bias[1] != nullptr) {
            wgmma_add_two(up, task.bias[1] + row, INGOT_F32);
        }
        sum[0] *= up[0], sum[1] *= up[1];
    }
    const bool is_float = task.y_dtype == INGOT_F32;
    if (task.residual != nullptr) {
        wgmma_add_two(sum, static_cast<const uint8_t *>(task.residual) + at * (is_float ? 4 : 2),
                      task.y_dtype);
    }
    if (task.next.x != nullptr) {
        const __half values[2] = {from_float<__half>(sum[0]), from_float<__half>(sum[1])};
        product_put_columns(task.next.x, task.next.form.bits, task.next.form.rows, (unsigned)i,
                            (unsigned)row, values);
        return;
    }
    if (is_float) {
        *reinterpret_cast<float2 *>(static_cast<float *>(task.y) + at) =
            make_float2(sum[0], sum[1]);
        return;
    }
    *reinterpret_cast<unsigned *>(static_cast<uint16_t *>(task.y) + at) =
        task.y_dtype == INGOT_F16 ? bits_of(__floats2half2_rn(sum[0], sum[1]))
                                  : bits_of(__floats2bfloat162_rn(sum[0], sum[1]));
}

/* product_store of both, where the job is not even: seldom met. */
__device__ static __noinline__ void wgmma_store_any(const product_task &task, unsigned i,
                                                    uint64_t row, float2 sum, float2 up) {
    const float sums[2] = {sum.x, sum.y}, ups[2] = {up.x, up.y};
#pragma unroll
    for (unsigned k = 0; k < 2; k++) {
        if (row + k < task.w[0].rows) {
            product_store(task, i, row + k, sums[k], ups[k], product_residual(task, i, row + k));
        }
    }
}

__device__ static inline void wgmma_store(const wgmma_job &job, unsigned column, uint64_t row,
                                          float (&sum)[2], float (&up)[2], float factor) {
    if (!job.is_even) {
        wgmma_store_any(job.task, column, row, make_float2(sum[0], sum[1]),
                        make_float2(up[0], up[1]));
    } else if (row < job.task.w[0].rows) {
        wgmma_store_two(job.task, column, row, sum, up, factor);
    }
}

/* Lanes of rows that are neighbours differ by this. */
template <int BITS> constexpr int wgmma_lane_next = BITS == 4 ? 8 : 4;

/* What sums of a row of x are multiplied by; behind the wait for them. */
template <typename layout>
__device__ static inline float wgmma_factor(const product_task &task, unsigned row) {
    extern __shared__ __align__(1024) uint8_t wgmma_shared[];
    return task.known.sums != nullptr
               ? reinterpret_cast<const float *>(wgmma_shared + layout::FACTORS)[row]
               : 1.0f;
}

/* Sums of eight columns of x, as wgmma leaves them, to y.  Lanes of rows that are neighbours trade
 * values, so that each has both rows of one column. */
template <int BITS, int COLUMNS>
__device__ static inline void wgmma_put_eight(const wgmma_job &job, unsigned tile, unsigned c,
                                              const float (&v)[4]) {
    const product_task &task = job.task;
    const unsigned lane = threadIdx.x % 32;
    const bool is_odd = wgmma_lane_row<wgmma_layout<BITS, COLUMNS>::HALVES>() % 2 != 0;
    const unsigned column = c * 8 + lane % 4 * 2 + (is_odd ? 1 : 0);
    const float from_low =
        __shfl_xor_sync(0xffffffffu, is_odd ? v[0] : v[1], wgmma_lane_next<BITS>);
    const float from_high =
        __shfl_xor_sync(0xffffffffu, is_odd ? v[2] : v[3], wgmma_lane_next<BITS>);
    if (column >= (unsigned)task.m) {
        return;
    }
    const float factor = wgmma_factor<wgmma_layout<BITS, COLUMNS>>(task, column);
    float low[2] = {is_odd ? from_low : v[0], is_odd ? v[1] : from_low};
    float high[2] = {is_odd ? from_high : v[2], is_odd ? v[3] : from_high};
    const unsigned own =
        threadIdx.x / 32 * 8 + wgmma_lane_row<wgmma_layout<BITS, COLUMNS>::HALVES>() / 2 * 2;
    if (task.has_up) {
        wgmma_store(job, column, (uint64_t)tile * WGMMA_BOX + own, low, high, factor);
        return;
    }
    const uint64_t row = (uint64_t)tile * WGMMA_ROWS + own;
    if (job.is_bare) {
        float *y = static_cast<float *>(task.y) + column * task.w[0].rows + row;
        if (row < task.w[0].rows) {
            *reinterpret_cast<float2 *>(y) = make_float2(low[0] * factor, low[1] * factor);
        }
        if (row + WGMMA_BOX < task.w[0].rows) {
            *reinterpret_cast<float2 *>(y + WGMMA_BOX) =
                make_float2(high[0] * factor, high[1] * factor);
        }
        return;
    }
    wgmma_store(job, column, row, low, high, factor);
    wgmma_store(job, column, row + WGMMA_BOX, high, low, factor);
}

/* The same of a whole tile; destroys totals. */
template <int BITS, int COLUMNS>
__device__ static inline void wgmma_put(const wgmma_job &job, unsigned tile,
                                        float (&totals)[COLUMNS][4]) {
#pragma unroll 1
    for (unsigned c = 0; c < COLUMNS; c++) { /* rolled up, the first are moved away */
        wgmma_put_eight<BITS, COLUMNS>(job, tile, c, totals[0]);
#pragma unroll
        for (int i = 0; i + 1 < COLUMNS; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                totals[i][k] = totals[i + 1][k];
            }
        }
    }
}

/* Sums times what those of their rows of x are multiplied by; behind the wait for that. */
template <int BITS, int COLUMNS>
__device__ static inline void wgmma_apply_factors(const product_task &task,
                                                  float (&totals)[COLUMNS][4]) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            totals[c][k] *= wgmma_factor<wgmma_layout<BITS, COLUMNS>>(
                task, c * 8 + threadIdx.x % 4 * 2 + k % 2);
        }
    }
}

/* A whole tile where sums go to y as they are: nothing is rolled up. */
template <int BITS, int COLUMNS>
__device__ static inline void wgmma_put_bare(const wgmma_job &job, unsigned tile,
                                             const float (&totals)[COLUMNS][4]) {
    const unsigned lane = threadIdx.x % 32, m = (unsigned)job.task.m;
    const bool is_odd = wgmma_lane_row<wgmma_layout<BITS, COLUMNS>::HALVES>() % 2 != 0;
    const unsigned column = lane % 4 * 2 + (is_odd ? 1 : 0);
    const uint64_t rows = job.task.w[0].rows;
    const uint64_t row = (uint64_t)tile * WGMMA_ROWS + threadIdx.x / 32 * 8 +
                         wgmma_lane_row<wgmma_layout<BITS, COLUMNS>::HALVES>() / 2 * 2;
    const bool has_low = row < rows, has_high = row + WGMMA_BOX < rows;
    float *y = static_cast<float *>(job.task.y) + column * rows + row;
#pragma unroll
    for (unsigned c = 0; c < COLUMNS; c++) {
        const float(&v)[4] = totals[c];
        const float from_low =
            __shfl_xor_sync(0xffffffffu, is_odd ? v[0] : v[1], wgmma_lane_next<BITS>);
        const float from_high =
            __shfl_xor_sync(0xffffffffu, is_odd ? v[2] : v[3], wgmma_lane_next<BITS>);
        if (has_low && c * 8 + column < m) {
            *reinterpret_cast<float2 *>(y) =
                make_float2(is_odd ? from_low : v[0], is_odd ? v[1] : from_low);
        }
        if (has_high && c * 8 + column < m) {
            *reinterpret_cast<float2 *>(y + WGMMA_BOX) =
                make_float2(is_odd ? from_high : v[2], is_odd ? v[3] : from_high);
        }
        y += 8 * rows;
    }
}

/* Where the sums of eight columns of a warp lie that part `part` has of a tile: its units may begin
 * in one tile and end in another. */
template <int COLUMNS>
__device__ static inline float4 *wgmma_part(const wgmma_job &job, unsigned part, unsigned tile) {
    const unsigned block = blockIdx.y * gridDim.x + part;
    const unsigned is_second = wgmma_begin(job, part, blockIdx.y) < tile * job.steps ? 1 : 0;
    return job.task.parts + (uint64_t)(block * 2 + is_second) * (COLUMNS * WGMMA_WARPS * 32) +
           threadIdx.x;
}

/* Counters of warps: parts that are there, a bit for each part that did not wait for them, and how
 * often they all were there, the turn, which alone is left for the next kernel. */
#define WGMMA_COUNT   0xffffu
#define WGMMA_LEFT(p) (0x10000u << (p))
#define WGMMA_TURN    0x1000000u
#define WGMMA_TURNS   0xff000000u
#define WGMMA_POLLS   1000 /* at least half a millisecond */

__device__ static inline unsigned *wgmma_counter(const wgmma_job &job, unsigned tile) {
    static_assert(CUDA_COUNTERS == WGMMA_WARPS, "tiles that are shared: one a multiprocessor");
    return job.counters + tile * WGMMA_WARPS + threadIdx.x / 32;
}

/* The blocks that have parts of a tile. */
__device__ static inline unsigned wgmma_blocks(const wgmma_job &job, unsigned tile,
                                               unsigned *first) {
    *first = wgmma_part_of(job, tile * job.steps);
    return wgmma_part_of(job, (tile + 1) * job.steps - 1) - *first + 1;
}

/* Leaves the part of this block for the others.  Returns the turn, and in WGMMA_COUNT whether this
 * warp is the last. */
template <int COLUMNS>
__device__ static unsigned wgmma_leave(const wgmma_job &job, unsigned tile,
                                       const float (&totals)[COLUMNS][4]) {
    float4 *part = wgmma_part<COLUMNS>(job, blockIdx.x, tile);
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        __stcg(part + c * (WGMMA_WARPS * 32),
               make_float4(totals[c][0], totals[c][1], totals[c][2], totals[c][3]));
    }
    __syncwarp();
    unsigned before = 0, first;
    if (threadIdx.x % 32 == 0) {
        asm volatile("atom.add.acq_rel.gpu.global.u32 %0, [%1], 1;"
                     : "=r"(before)
                     : "l"(wgmma_counter(job, tile))
                     : "memory");
    }
    before = wgmma_same(before);
    const bool is_last = (before & WGMMA_COUNT) + 1 == wgmma_blocks(job, tile, &first);
    return (before & WGMMA_TURNS) + (is_last ? 1 : 0);
}

/* Waits until all parts of a tile are there; returns whether they are, or else this part is left to
 * the last.  A block that waits may keep the others from running, if it shares the device with work
 * of other streams: there is an end to it. */
__device__ static inline bool wgmma_await(unsigned *counter, unsigned turn, unsigned blocks,
                                          unsigned own) {
    for (unsigned i = 0; i < WGMMA_POLLS; i++) {
        unsigned now;
        asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
        now = wgmma_same(now);
        if ((now & WGMMA_TURNS) != turn || (now & WGMMA_COUNT) == blocks) {
            __threadfence();
            return true;
        }
    }
    unsigned before = 0;
    if (threadIdx.x % 32 == 0) {
        before = atomicOr(counter, WGMMA_LEFT(own));
        if ((before & WGMMA_TURNS) != turn) { /* the last is through, the bit not for it */
            (void)atomicAnd(counter, ~WGMMA_LEFT(own));
        }
    }
    before = wgmma_same(before);
    __threadfence();
    return (before & WGMMA_TURNS) != turn;
}

/* This warp's share of the columns of a tile that several blocks have parts of: every `blocks`th
 * eight, and, when it is the last, what was left to it.  left: from wgmma_leave. */
template <int BITS, int COLUMNS>
__device__ static __noinline__ void wgmma_join(const wgmma_job &job, unsigned tile, unsigned left) {
    static_assert(COLUMNS <= 8, "bits of WGMMA_LEFT");
    unsigned first, found = 0;
    const unsigned blocks = wgmma_blocks(job, tile, &first), own = blockIdx.x - first;
    const unsigned turn = left & WGMMA_TURNS;
    unsigned *counter = wgmma_counter(job, tile);
    bool is_last = (left & WGMMA_COUNT) != 0;
    if (is_last && threadIdx.x % 32 == 0) { /* what was found is not needed yet */
        found = atomicExch(counter, turn + WGMMA_TURN);
    }
    unsigned shares =
        own < COLUMNS && (is_last || wgmma_await(counter, turn, blocks, own)) ? WGMMA_LEFT(own) : 0;
#pragma unroll 1
    for (;;) {
#pragma unroll 1
        for (unsigned c = 0; c < COLUMNS; c++) {
            if ((shares & WGMMA_LEFT(c % blocks)) == 0) {
                continue;
            }
            float sum[4] = {};
#pragma unroll 1
            for (unsigned i = 0; i < blocks; i += 4) {
                float4 v[4];
#pragma unroll
                for (unsigned k = 0; k < 4; k++) {
                    v[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                    if (i + k < blocks) {
                        v[k] = __ldcg(wgmma_part<COLUMNS>(job, first + i + k, tile) +
                                      c * (WGMMA_WARPS * 32));
                    }
                }
#pragma unroll
                for (unsigned k = 0; k < 4; k++) {
                    sum[0] += v[k].x, sum[1] += v[k].y, sum[2] += v[k].z, sum[3] += v[k].w;
                }
            }
            wgmma_put_eight<BITS, COLUMNS>(job, tile, c, sum);
        }
        if (!is_last) {
            return;
        }
        is_last = false;
        shares = wgmma_same(found) & ~WGMMA_TURNS & ~WGMMA_COUNT;
    }
}

#endif

#endif
