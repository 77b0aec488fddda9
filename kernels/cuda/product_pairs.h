/* Internal to kernels/cuda: up to 16 rows of x with a matrix of symmetric weights of 4 bits on
 * Hopper that is so small that pairs of blocks with a tile of 32, 64 or 96 rows of W fill the
 * device about once.
 *
 * Each block of a pair, which is a cluster, has one half of the columns.  A warp takes a unit, 128
 * columns of all rows of the tile, then every eighth one behind it: two times 16 rows at once, by
 * tensor cores (mma.sync).  It fetches all it needs itself: lanes copy the codes that they multiply
 * (cp.async), one starts a copy of the unit of x.  Scales alone come for all warps, before x does:
 * a lane that loaded its own would wait for them longest.  In the end a block adds up what its
 * eight warps have, of half of the rows for itself, of the others for its mate, to whose shared
 * memory it stores them.
 *
 * Why it neither takes nor hands on what a norm lacks: decision 0053.  Why not more columns for a
 * block and fewer rows, or the other way round: 0052. */
#ifndef INGOT_CUDA_PRODUCT_PAIRS_H
#define INGOT_CUDA_PRODUCT_PAIRS_H

#include "kernels/cuda/cluster_sync.h"
#include "kernels/cuda/product_fours.h"
#include "kernels/cuda/product_load.h"
#include "kernels/cuda/wgmma.h"

#define PAIR_WARPS   8
#define PAIR_THREADS (PAIR_WARPS * 32)
#define PAIR_X_ROWS  16u /* of the tile of x */
#define PAIR_X_BYTES (PAIR_X_ROWS * PRODUCT_STEP_BYTES)
#define PAIR_PIECES  5u            /* slots of a warp, for codes of 16 rows of a unit each */
#define PAIR_PIECE   (16u * 64)    /* bytes of such a piece */
#define PAIR_BYTES   (113u * 1024) /* for each of two blocks on a multiprocessor */

typedef struct pair_job {
    product_task task;
    unsigned units;       /* of 128 columns, of each block; x is zero in those that are not there */
    unsigned group_shift; /* log2 of the chunks of 32 in a group */
    unsigned pitch;       /* words for the scales that a block has of a row; odd: rows in banks of
                             their own */
    bool is_even;         /* rows in fours, everything about them aligned to that */
} pair_job;

/* Shared memory: what a warp has, warp by warp: a unit of x, pieces of codes, another unit of x;
 * barriers; scales [row][pair_job.pitch], from the aligned word on that has the first.  In the end
 * the sums of a warp, [16][PITCH], and those of the mate, [16][OWN_ROWS], take the places of x and
 * codes. */
template <int TWOS> struct pair_layout {
    static constexpr unsigned ROWS = TWOS * 32,
                              OWN_ROWS = ROWS / 2; /* of a tile; what a block ends */
    static constexpr unsigned X_STRIDE = PAIR_X_BYTES + PAIR_PIECES * PAIR_PIECE;
    static constexpr unsigned WARP_BYTES = X_STRIDE + PAIR_X_BYTES;
    /* of warps: both units of x came; of the block: the mate's sums may come, they came */
    static constexpr unsigned BARRIERS = PAIR_WARPS * WARP_BYTES;
    static constexpr unsigned MAY_COME = BARRIERS + PAIR_WARPS * 2 * 8, CAME = MAY_COME + 8;
    static constexpr unsigned SCALES = CAME + 8;
    static constexpr unsigned PITCH = ROWS + 4; /* of sums: columns two apart, other banks */
    static constexpr unsigned SUMS_BYTES = PAIR_X_ROWS * OWN_ROWS * 4;
    static constexpr unsigned MATES = OWN_ROWS / 4; /* threads of a column of y, four rows each */
    static_assert(SCALES < PAIR_BYTES && SUMS_BYTES <= PAIR_X_BYTES, "");
    static_assert(PAIR_X_ROWS * PITCH * 4 <= X_STRIDE && X_STRIDE % 128 == 0, "");
    static_assert(PAIR_X_ROWS * MATES <= PAIR_THREADS, "");
};

#if INGOT_SM90A

/* totals += scale times the sums of 32 rows of a unit: codes in registers, x in shared memory at
 * `x`, what the lane reads of it.  Of the four lanes of eighths of the rows, each has the scale of
 * one. */
template <typename T>
__device__ static inline void pair_multiply(float (&totals)[2][2][4],
                                            const unsigned (&code)[2][2][4], unsigned scale_bits,
                                            unsigned x) {
    float sums[2][2][4] = {};
    product_zero<4, T> zero;
    zero.set(8);
#pragma unroll
    for (int k = 0; k < 8; k++) { /* 16 columns: half a word of codes of each lane and row */
        unsigned b[4];
        product_load_b(b, x + k * (2 * PAIR_X_ROWS * 16));
#pragma unroll
        for (int t = 0; t < 2; t++) {
            unsigned a[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                a[i] = product_pair<4, T>(code[t][i % 2][k / 2], k % 2 * 2 + i / 2, zero);
            }
#pragma unroll
            for (int c = 0; c < 2; c++) {
                product_mma<T>(sums[t][c], a[0], a[1], a[2], a[3], b[2 * c], b[2 * c + 1]);
            }
        }
    }
    const float own_scale = __half2float(__ushort_as_half((unsigned short)scale_bits));
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float scale = __shfl_sync(0xffffffffu, own_scale, i, 4);
#pragma unroll
        for (int c = 0; c < 2; c++) {
#pragma unroll
            for (int k = i % 2 * 2; k < i % 2 * 2 + 2; k++) {
                totals[i / 2][c][k] = fmaf(scale, sums[i / 2][c][k], totals[i / 2][c][k]);
            }
        }
    }
}

/* The first row of a tile: the last tile has rows of the one before again, if it must, to be whole,
 * and leaves them to that. */
template <int TWOS> __device__ static inline unsigned pair_first_row(const pair_job &job) {
    constexpr unsigned ROWS = pair_layout<TWOS>::ROWS;
    return min(blockIdx.y * ROWS, (unsigned)job.task.w[0].rows - ROWS);
}

__device__ static inline unsigned pair_next_slot(unsigned slot) {
    return slot + 1 == PAIR_PIECES ? 0 : slot + 1;
}

/* What a warp has of the product, to its sums at `sums`. */
template <typename T, int TWOS>
__device__ static inline void pair_rows(const pair_job &job, uint8_t *memory, uint8_t *sums) {
    typedef pair_layout<TWOS> layout;
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned shared = async_address(memory), own = shared + warp * layout::WARP_BYTES;
    const unsigned came = shared + layout::BARRIERS + warp * 16;
    const ingot_weight_view &w = job.task.w[0];
    const unsigned groups = (unsigned)w.groups_per_row;
    const unsigned first_unit = blockIdx.x * job.units; /* of the block */
    const unsigned quarter = lane % 4;
    const unsigned first_row = pair_first_row<TWOS>(job);
    const uint64_t row = first_row + lane / 4;
    /* a lane copies what it multiplies: it waits for nobody */
    const unsigned codes = own + PAIR_X_BYTES + lane * 16;
    const unsigned eight_bytes = (unsigned)w.row_stride_bytes * 8; /* rows */
    const unsigned chunks = (unsigned)w.row_stride_bytes / 16;     /* of 32 columns */
    unsigned chunk = (first_unit + warp) * 4 + quarter;            /* of the unit at hand */
    const uint8_t *codes_from = w.codes + row * w.row_stride_bytes + chunk * 16;
    /* the piece that is `number`th from the first of the warp's unit at hand, `unit`, to a slot */
    const auto fetch_codes = [&](unsigned unit, unsigned number, unsigned slot) {
        const unsigned ahead = number / (2 * TWOS);
        if (unit + ahead * PAIR_WARPS < job.units) {
            const uint8_t *from = codes_from + (uint64_t)(number % (2 * TWOS) * 2) * eight_bytes +
                                  ahead * (PAIR_WARPS * 64);
            const unsigned bytes = chunk + ahead * (PAIR_WARPS * 4) < chunks ? 16 : 0;
            async_copy<16>(codes + slot * PAIR_PIECE, from, bytes);
            async_copy<16>(codes + slot * PAIR_PIECE + PAIR_PIECE / 2, from + eight_bytes, bytes);
        }
        async_commit(); /* also none: groups are counted */
    };
    fetch_codes(warp, 0, 0);
    fetch_codes(warp, 1, 1);
    /* scales, for all warps of the block: a row by eight lanes */
    const unsigned first_group = min(first_unit * 4 >> job.group_shift, groups - 1);
    const unsigned more_groups =
        min((first_unit + job.units) * 4 - 1 >> job.group_shift, groups - 1) - first_group;
    /* of a row of the tile */
    const auto first_scale = [&](unsigned of_block) {
        return (first_row + of_block) * groups + first_group;
    };
#pragma unroll
    for (unsigned i = 0; i < TWOS; i++) {
        const unsigned of_block = i * 32 + threadIdx.x / 8;
        const unsigned first = first_scale(of_block), last = (first + more_groups) / 2;
        unsigned to = shared + layout::SCALES + of_block * job.pitch * 4 + threadIdx.x % 8 * 4;
#pragma unroll 1
        for (unsigned at = first / 2 + threadIdx.x % 8; at <= last; at += 8) {
            async_copy<4>(to, static_cast<const unsigned *>(w.scales) + at, 4);
            to += 32;
        }
    }
#pragma unroll
    for (unsigned i = 2; i < PAIR_PIECES; i++) { /* the first of these groups has the scales */
        fetch_codes(warp, i, i);
    }
    /* where the lane's row of 32 has them: in the first word they start at its half */
    unsigned scales_at[TWOS];
#pragma unroll
    for (unsigned two = 0; two < TWOS; two++) {
        const unsigned of_block = two * 32 + quarter * 8 + lane / 4;
        scales_at[two] =
            shared + layout::SCALES + of_block * job.pitch * 4 + first_scale(of_block) % 2 * 2;
    }
    const auto load_scale = [&](unsigned unit, unsigned two) {
        const unsigned group = min((first_unit + unit) * 4 >> job.group_shift, groups - 1);
        return shared_read2(scales_at[two] + (group - first_group) * 2);
    };
    /* eight rows of x in either half of 16 columns are a matrix of ldmatrix */
    const unsigned x = own + lane / 8 % 2 * (PAIR_X_ROWS * 16) + lane / 16 * 128 + lane % 8 * 16;
    const auto fetch_x = [&](unsigned unit, unsigned slot) {
        if (lane == 0 && unit < job.units) {
            barrier_expect(came + slot * 8, PAIR_X_BYTES);
            bulk_copy(own + slot * layout::X_STRIDE,
                      static_cast<const uint8_t *>(job.task.x) +
                          (uint64_t)(first_unit + unit) * PAIR_X_BYTES,
                      PAIR_X_BYTES, came + slot * 8);
        }
    };
    /* warp 0, once the place of the mate's sums has no unit to come, nor one that is there */
    const auto let_come = [&](unsigned unit) {
        if (threadIdx.x == 0 && unit >= job.units && unit - PAIR_WARPS < job.units) {
            barrier_arrive_at(shared + layout::MAY_COME, blockIdx.x ^ 1);
        }
    };
    unsigned code[2][2][4], slot = 0; /* of the first of two pieces */
    float totals[TWOS][2][2][4] = {};
    /* those of 32 rows */
    const auto take_codes = [&](void) {
        async_arrived<PAIR_PIECES - 2>();
        const unsigned at[2] = {codes + slot * PAIR_PIECE,
                                codes + pair_next_slot(slot) * PAIR_PIECE};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const uint4 v = shared_read16(at[i / 2] + i % 2 * (PAIR_PIECE / 2));
            code[i / 2][i % 2][0] = v.x, code[i / 2][i % 2][1] = v.y;
            code[i / 2][i % 2][2] = v.z, code[i / 2][i % 2][3] = v.w;
        }
    };
    take_codes();
    cluster_wait();
    product_wait();
    fetch_x(warp, 0);
    fetch_x(warp + PAIR_WARPS, 1);
    let_come(PAIR_WARPS);
    product_let_next_start();
    async_arrived<PAIR_PIECES - 3>();
    __syncthreads(); /* all scales are there */
    unsigned x_slot = 0, odd = 0;
#pragma unroll 1
    for (unsigned unit = warp; unit < job.units; unit += PAIR_WARPS) {
        barrier_wait(came + x_slot * 8, odd);
#pragma unroll
        for (unsigned two = 0; two < TWOS; two++) {
            const unsigned second = pair_next_slot(slot);
            fetch_codes(unit, 2 * two + PAIR_PIECES, slot);
            fetch_codes(unit, 2 * two + PAIR_PIECES + 1, second);
            pair_multiply<T>(totals[two], code, load_scale(unit, two),
                             x + x_slot * layout::X_STRIDE);
            slot = pair_next_slot(second);
            take_codes(); /* those behind the last unit are not used */
        }
        codes_from += PAIR_WARPS * 64;
        chunk += PAIR_WARPS * 4;
        __syncwarp(); /* x is used up */
        fetch_x(unit + 2 * PAIR_WARPS, x_slot);
        let_come(unit + 2 * PAIR_WARPS);
        odd ^= x_slot;
        x_slot ^= 1;
    }
    float *to = reinterpret_cast<float *>(sums + warp * layout::WARP_BYTES) + lane / 4;
#pragma unroll
    for (int t = 0; t < 2 * TWOS; t++) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
#pragma unroll
            for (int k = 0; k < 4; k++) {
                const unsigned column = c * 8 + lane % 4 * 2 + k % 2;
                to[column * layout::PITCH + t * 16 + k / 2 * 8] = totals[t / 2][t % 2][c][k];
            }
        }
    }
}

/* Four rows of a column of what all warps have. */
template <typename layout>
__device__ static inline void pair_add_up(float (&v)[4], const uint8_t *sums, unsigned column,
                                          unsigned row) {
#pragma unroll
    for (unsigned i = 0; i < PAIR_WARPS; i++) {
        product_read_four(v, reinterpret_cast<const float *>(sums + i * layout::WARP_BYTES) +
                                 column * layout::PITCH + row);
    }
}

#endif

template <typename T, int TWOS>
__global__
__launch_bounds__(PAIR_THREADS,
                  2) static void product_pairs_kernel(const __grid_constant__ pair_job job) {
#if INGOT_SM90A
    typedef pair_layout<TWOS> layout;
    extern __shared__ __align__(1024) uint8_t pair_memory[];
    const unsigned shared = async_address(pair_memory), rank = blockIdx.x;
    const product_task &task = job.task;
    if (threadIdx.x == 0) {
        for (unsigned i = 0; i < PAIR_WARPS * 2 + 2; i++) {
            barrier_set(shared + layout::BARRIERS + i * 8, 1);
        }
        barrier_publish();
        barrier_expect(shared + layout::CAME, layout::SUMS_BYTES);
    }
    __syncthreads();
    cluster_arrive(); /* published above */
    /* the mate's sums come to a place of x that warp 0 uses up first, those of warps leave it */
    const bool is_odd = (job.units + PAIR_WARPS - 1) / PAIR_WARPS % 2 != 0;
    const unsigned mate_sums = is_odd ? layout::X_STRIDE : 0;
    uint8_t *sums = pair_memory + (is_odd ? 0 : PAIR_X_BYTES);
    pair_rows<T, TWOS>(job, pair_memory, sums);
    const unsigned column = threadIdx.x / layout::MATES, four = threadIdx.x % layout::MATES * 4;
    const uint64_t row = pair_first_row<TWOS>(job) + rank * layout::OWN_ROWS + four;
    const bool is_own = column < task.m && row >= blockIdx.y * layout::ROWS;
    float4 residual = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (is_own && job.is_even && task.residual != nullptr && task.y_dtype == INGOT_F32) {
        residual = *reinterpret_cast<const float4 *>(static_cast<const float *>(task.residual) +
                                                     column * task.w[0].rows + row);
    }
    __syncthreads();
    /* by other threads than those that end rows of the block */
    const unsigned turned = PAIR_THREADS - 1 - threadIdx.x;
    const unsigned mate_column = turned / layout::MATES, mate_four = turned % layout::MATES * 4;
    if (mate_column < PAIR_X_ROWS) {
        float v[4] = {};
        pair_add_up<layout>(v, sums, mate_column, (rank ^ 1) * layout::OWN_ROWS + mate_four);
        barrier_wait(shared + layout::MAY_COME, 0);
        cluster_store_four(shared + mate_sums + (mate_column * layout::OWN_ROWS + mate_four) * 4,
                           shared + layout::CAME, rank ^ 1, make_float4(v[0], v[1], v[2], v[3]));
    }
    float y[4] = {}, none[4] = {};
    if (column < PAIR_X_ROWS) { /* a block stays until all has come that its mate sends */
        pair_add_up<layout>(y, sums, column, rank * layout::OWN_ROWS + four);
        barrier_wait(shared + layout::CAME, 0);
        product_read_four(y, reinterpret_cast<const float *>(pair_memory + mate_sums) +
                                 column * layout::OWN_ROWS + four);
    }
    if (is_own && job.is_even) {
        product_store_four(task, column, row, y, none, 1.0f, residual);
    } else if (is_own) {
        product_store_any(task, column, row, make_float4(y[0], y[1], y[2], y[3]),
                          make_float4(0.0f, 0.0f, 0.0f, 0.0f));
    }
#endif
}

#endif
