/* Internal to kernels/cuda: up to 64 rows of x with a matrix of packed weights, on tensor cores.
 *
 * A block of eight warps takes 128 rows of W (64 of W and the same 64 of U, where there is one), a
 * warp 16 of them, and COLUMNS times eight rows of x; all warps share the x of a step of 128
 * columns in shared memory.  It comes in the order of the codes (product_order), or each thread
 * puts the units it has copied in order.  x and weights go from memory to shared memory, SLOTS
 * steps of each at a time; the first weights before the kernel waits for its predecessor.
 *
 * Where there are few rows of W, the blocks of a cluster share the columns, and add up their sums
 * through each other's shared memory, in the order of the columns.
 *
 * SUBS 1: groups of 128 or more.  SUBS 4: groups of 32 and 64; the lanes of a row then read 8
 * columns of each of four parts of the step, so that every part is summed by itself. */
#ifndef INGOT_CUDA_PRODUCT_BLOCK_H
#define INGOT_CUDA_PRODUCT_BLOCK_H

#include "kernels/cuda/cluster_sync.h"
#include "kernels/cuda/product_load.h"

#include <cooperative_groups.h>

#define BLOCK_WARPS   8
#define BLOCK_THREADS (BLOCK_WARPS * 32)
#define BLOCK_ROWS    (BLOCK_WARPS * 16)
#define BLOCK_PITCH                                                                                \
    (BLOCK_ROWS + 4) /* of sums in shared memory: columns two apart, other banks                   \
                      */

typedef struct block_job {
    product_task task;
    unsigned steps;       /* of a row of W */
    unsigned own_steps;   /* of a block; the last of a cluster may have fewer */
    unsigned group_shift; /* log2 of the chunks of 32 in a group */
} block_job;

template <int COLUMNS> constexpr unsigned block_x_bytes = COLUMNS * 8 * PRODUCT_STEP_BYTES;
/* Slots of x, then those of each warp; sums take their place in the end. */
template <int COLUMNS>
static constexpr unsigned block_shared_bytes(unsigned slots, unsigned bytes) {
    const unsigned sums = COLUMNS * 8 * BLOCK_PITCH * (unsigned)sizeof(float);
    const unsigned steps = slots * (block_x_bytes<COLUMNS> + BLOCK_WARPS * bytes);
    return sums > steps ? sums : steps;
}

/* Starts the copy of a step of x: 16 units of a row; rows and columns behind the last are zero. */
template <int COLUMNS>
__device__ static inline void block_fetch_x(unsigned slot, const uint8_t *x, unsigned row_bytes,
                                            unsigned m, unsigned step) {
    constexpr unsigned UNITS = COLUMNS * 8 * 16;
#pragma unroll
    for (unsigned i = 0; i < UNITS; i += BLOCK_THREADS) {
        const unsigned at = threadIdx.x + i, row = at / 16, unit = at % 16;
        if (UNITS % BLOCK_THREADS == 0 || at < UNITS) {
            const unsigned column = step * 256 + unit * 16;
            async_copy<16>(slot + row * PRODUCT_STEP_BYTES + product_x_at(row, unit),
                           x + (uint64_t)min(row, m - 1) * row_bytes + column,
                           row < m && column < row_bytes ? 16 : 0);
        }
    }
}

/* Puts what block_fetch_x of this thread brought in the order of codes of 4 or 8 bits. */
template <int BITS, int COLUMNS> __device__ static inline void block_order_x(uint8_t *slot) {
    constexpr unsigned UNITS = COLUMNS * 8 * 16;
#pragma unroll
    for (unsigned i = 0; i < UNITS; i += BLOCK_THREADS) {
        const unsigned at = threadIdx.x + i, row = at / 16;
        if (UNITS % BLOCK_THREADS == 0 || at < UNITS) {
            uint4 *unit = reinterpret_cast<uint4 *>(slot + row * PRODUCT_STEP_BYTES +
                                                    product_x_at(row, at % 16));
            const uint4 v = *unit;
            const unsigned second = BITS == 4 ? v.z : v.y, third = BITS == 4 ? v.y : v.z;
            *unit = make_uint4(__byte_perm(v.x, second, 0x5410), __byte_perm(v.x, second, 0x7632),
                               __byte_perm(third, v.w, 0x5410), __byte_perm(third, v.w, 0x7632));
        }
    }
}

/* totals += the products of a step. */
template <int BITS, typename T, product_mode MODE, int COLUMNS, int SUBS>
__device__ static inline void
block_add(float (&totals)[COLUMNS][4], const product_chunk<BITS, SUBS> &chunk,
          product_zero<BITS, T> (&zero)[2][SUBS], const product_matrix &w, const uint8_t *x) {
    const unsigned lane = threadIdx.x % 32, row = lane / 4, quarter = lane % 4;
    unsigned pair[2][16];
    float scale[2][SUBS], sums[COLUMNS][4] = {};
#pragma unroll
    for (int h = 0; h < 2; h++) {
#pragma unroll
        for (int s = 0; s < SUBS; s++) {
            if (MODE == PRODUCT_GENERAL && w.zeros != nullptr) {
                zero[h][s].set(chunk.zero[h][s]);
            }
            scale[h][s] = product_scale<MODE>(chunk.scale[h][s], w);
        }
        product_unpack<BITS, T, SUBS>(pair[h], chunk.code[h], zero[h]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            const unsigned unit = SUBS == 1 ? quarter * 4 + i : i * 4 + quarter;
            const uint4 b = *reinterpret_cast<const uint4 *>(
                x + (c * 8 + row) * PRODUCT_STEP_BYTES + product_x_at(row, unit));
            product_mma<T>(sums[c], pair[0][4 * i], pair[1][4 * i], pair[0][4 * i + 1],
                           pair[1][4 * i + 1], b.x, b.y);
            product_mma<T>(sums[c], pair[0][4 * i + 2], pair[1][4 * i + 2], pair[0][4 * i + 3],
                           pair[1][4 * i + 3], b.z, b.w);
            if (SUBS == 4 || i == 3) {
#pragma unroll
                for (int k = 0; k < 4; k++) {
                    totals[c][k] = fmaf(scale[k / 2][i % SUBS], sums[c][k], totals[c][k]);
                    sums[c][k] = 0.0f;
                }
            }
        }
    }
}

/* Sums of all warps to shared memory, then across the cluster, then to y. */
template <int COLUMNS>
__device__ static void block_finish(float *shared, const float (&totals)[COLUMNS][4],
                                    const product_task &task) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const unsigned column = c * 8 + lane % 4 * 2 + k % 2;
            shared[column * BLOCK_PITCH + warp * 16 + lane / 4 + k / 2 * 8] = totals[c][k];
        }
    }
    const unsigned rows = task.has_up ? BLOCK_ROWS / 2 : BLOCK_ROWS;
    const uint64_t first = (uint64_t)blockIdx.y * rows;
#if __CUDA_ARCH__ >= 900
    const cooperative_groups::cluster_group cluster = cooperative_groups::this_cluster();
    const unsigned blocks = cluster.num_blocks(), rank = cluster.block_rank();
    cluster_meet();
#else
    const unsigned blocks = 1, rank = 0;
    __syncthreads();
#endif
    for (unsigned at = rank * BLOCK_THREADS + threadIdx.x; at < (unsigned)task.m * rows;
         at += blocks * BLOCK_THREADS) {
        const unsigned row = at % rows, column = at / rows;
        float sum = 0.0f, up = 0.0f;
        for (unsigned i = 0; i < blocks; i++) {
#if __CUDA_ARCH__ >= 900
            const float *other = cluster.map_shared_rank(shared, i) + column * BLOCK_PITCH;
#else
            const float *other = shared + column * BLOCK_PITCH;
#endif
            sum += other[row];
            up += task.has_up ? other[BLOCK_ROWS / 2 + row] : 0.0f;
        }
        if (first + row < task.w[0].rows) {
            product_store(task, column, first + row, sum, up,
                          product_residual(task, column, first + row));
        }
    }
    cluster_arrive(); /* nobody leaves while others read its memory */
    cluster_wait();
}

template <int BITS, typename T, product_mode MODE, int COLUMNS, int SUBS, int SLOTS, int BLOCKS>
__global__
__launch_bounds__(BLOCK_THREADS,
                  BLOCKS) static void product_block_kernel(const __grid_constant__ block_job job) {
    typedef product_slot<BITS, MODE, SUBS> layout;
    extern __shared__ __align__(256) uint8_t block_shared[];
    const product_task &task = job.task;
    const unsigned warp = threadIdx.x / 32;
    const bool is_up = task.has_up && warp >= BLOCK_WARPS / 2;
    const product_matrix w = product_matrix_of(task, is_up, job.group_shift);
    const unsigned first = min(blockIdx.x * job.own_steps, job.steps);
    const unsigned count = min(job.own_steps, job.steps - first);
    const unsigned row = task.has_up ? blockIdx.y * (BLOCK_ROWS / 2) + warp % (BLOCK_WARPS / 2) * 16
                                     : blockIdx.y * BLOCK_ROWS + warp * 16;
    uint8_t *slots = block_shared + SLOTS * block_x_bytes<COLUMNS> + warp * (SLOTS * layout::BYTES);
    const unsigned x_slots_at = async_address(block_shared);
    const unsigned slots_at = async_address(slots);

    product_let_next_start();
    const auto fetch = [&](unsigned slot, unsigned step) {
        if (step < count) {
            product_fetch<BITS, MODE, SUBS>(slots_at + slot * layout::BYTES, w, row, first + step);
        }
    };
#pragma unroll 1
    for (unsigned i = 0; i < SLOTS; i++) {
        fetch(i, i);
    }
    async_commit();
    product_wait();
    const uint8_t *x = static_cast<const uint8_t *>(task.x);
    const unsigned row_bytes = (unsigned)task.x_stride * 2, m = (unsigned)task.m;
    const auto fetch_x = [&](unsigned slot, unsigned step) {
        if (step < count) {
            block_fetch_x<COLUMNS>(x_slots_at + slot * block_x_bytes<COLUMNS>, x, row_bytes, m,
                                   first + step);
        }
    };
#pragma unroll 1
    for (unsigned i = 0; i + 1 < SLOTS; i++) {
        fetch_x(i, i);
        async_commit();
    }

    product_zero<BITS, T> zero[2][SUBS];
#pragma unroll
    for (int s = 0; s < SUBS; s++) {
        zero[0][s].set(1u << (BITS - 1));
        zero[1][s].set(1u << (BITS - 1));
    }
    float totals[COLUMNS][4] = {};
    unsigned slot = 0;
#pragma unroll 1
    for (unsigned step = 0; step < count; step++) {
        product_chunk<BITS, SUBS> chunk;
        async_arrived<SLOTS - 2>();
        if constexpr ((BITS == 4 || BITS == 8) && COLUMNS <= 2) {
            if (task.x_order == 0) {
                block_order_x<BITS, COLUMNS>(block_shared + slot * block_x_bytes<COLUMNS>);
            }
        }
        __syncthreads(); /* all of this step is there, all of the last one is used up */
        fetch_x(slot != 0 ? slot - 1 : SLOTS - 1, step + SLOTS - 1);
        product_take<BITS, MODE, SUBS>(&chunk, slots + slot * layout::BYTES, w, first + step);
        __syncwarp();
        fetch(slot, step + SLOTS);
        async_commit();
        block_add<BITS, T, MODE, COLUMNS, SUBS>(totals, chunk, zero, w,
                                                block_shared + slot * block_x_bytes<COLUMNS>);
        slot = slot + 1 < SLOTS ? slot + 1 : 0;
    }
    async_arrived<0>();
    __syncthreads();
    block_finish<COLUMNS>(reinterpret_cast<float *>(block_shared), totals, task);
}

#endif
