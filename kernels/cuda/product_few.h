/* Internal to kernels/cuda: one or two rows of x with a matrix of packed weights, on tensor cores.
 *
 * A tile is 16 rows of W (of U for half of the warps, where there is one).  The warps of a block
 * take its steps of 128 columns in turn, so that the block reads 512 adjacent bytes of each row;
 * their sums meet in shared memory at the end of the tile.  Weights go from memory to registers,
 * DEPTH steps ahead and on into the next tile, the first of them before the kernel waits for its
 * predecessor: x alone depends on that.
 *
 * A lane has 32 adjacent columns of a row, 64 bytes with its three neighbours at 4 bits.  These are
 * often four groups, while a product of the tensor core adds up what the four lanes hold.  But it
 * has eight columns for one or two rows of x: lane q of the four finds its x in columns 2q and
 * 2q + 1 of b, with zeros there for the others.  The sums of its own chunk then are in its own
 * registers and meet their scale there. */
#ifndef INGOT_CUDA_PRODUCT_FEW_H
#define INGOT_CUDA_PRODUCT_FEW_H

#include "kernels/cuda/product_input.h"
#include "kernels/cuda/product_load.h"

#define FEW_ROWS 2 /* of x */

typedef struct few_job {
    product_task task;
    product_source source;
    unsigned steps;       /* of a row of W */
    unsigned tiles;       /* of 16 rows */
    unsigned group_shift; /* log2 of the chunks in a group */
    unsigned parts;       /* warps that share the columns: all, or half of them with U */
} few_job;

#define FEW_WARPS   8
#define FEW_THREADS (FEW_WARPS * 32)

typedef float few_sums[FEW_WARPS][FEW_ROWS][16];

/* Shared memory: x [step][m], a step of zeros, sums of two tiles in turn. */
static inline unsigned few_shared_bytes(unsigned steps, unsigned m) {
    return (steps * m + 1) * PRODUCT_STEP_BYTES + 2 * (unsigned)sizeof(few_sums);
}

/* ---- weights to registers ----------------------------------------------------------------------
 */

/* Where a lane finds its two rows. */
template <product_mode MODE> struct product_rows {
    const uint8_t *code[2], *scale[2], *zero[2];

    /* Rows `row` and row + 8; those behind the last are the last, their sums are dropped. */
    __device__ void find(const product_matrix &w, unsigned row) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const unsigned at = min(row + 8 * h, w.last_row);
            code[h] = w.codes + (uint64_t)at * w.stride;
            if (MODE == PRODUCT_PLAIN) {
                scale[h] = w.scales + (uint64_t)at * (w.groups * 2);
            } else {
                scale[h] = w.scales + (uint64_t)at * (w.groups << w.scale_shift);
                zero[h] = w.zeros + (uint64_t)at * w.groups;
            }
        }
    }
};

/* Streamed once: not kept in L1. */
__device__ static inline uint4 product_read16(const uint8_t *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

/* BITS words of a row. */
template <int BITS>
__device__ static inline void product_load_codes(unsigned (&out)[BITS], const uint8_t *at) {
    if constexpr (BITS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < BITS / 4; i++) {
            const uint4 v = product_read16(at + 16 * i);
            out[4 * i] = v.x, out[4 * i + 1] = v.y, out[4 * i + 2] = v.z, out[4 * i + 3] = v.w;
        }
    } else if constexpr (BITS % 2 == 0) {
#pragma unroll
        for (int i = 0; i < BITS / 2; i++) {
            const uint2 v = __ldg(reinterpret_cast<const uint2 *>(at) + i);
            out[2 * i] = v.x, out[2 * i + 1] = v.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < BITS; i++) {
            out[i] = __ldg(reinterpret_cast<const unsigned *>(at) + i);
        }
    }
}

template <product_mode MODE>
__device__ static inline void product_load_group(unsigned *scale, unsigned *zero,
                                                 const product_matrix &w, const uint8_t *scales,
                                                 const uint8_t *zeros, unsigned group) {
    if (MODE == PRODUCT_PLAIN) {
        *scale = __ldg(reinterpret_cast<const unsigned short *>(scales) + group);
        return;
    }
    const uint8_t *at = scales + ((uint64_t)group << w.scale_shift);
    if (w.scale_shift == 2) {
        *scale = __ldg(reinterpret_cast<const unsigned *>(at));
    } else {
        *scale = __ldg(reinterpret_cast<const unsigned short *>(at));
    }
    if (w.zeros != nullptr) {
        *zero = __ldg(zeros + group);
    }
}

/* Chunk number `chunk` of both rows, its scale and zero point.  Behind the last chunk that one is
 * read again: x is zero there. */
template <int BITS, product_mode MODE>
__device__ static inline void product_load_chunk(product_chunk<BITS, 1> *out,
                                                 const product_matrix &w,
                                                 const product_rows<MODE> &rows, unsigned chunk) {
    chunk = min(chunk, w.last_chunk);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        product_load_codes<BITS>(out->code[h], rows.code[h] + (uint64_t)chunk * (4 * BITS));
        product_load_group<MODE>(&out->scale[h][0], &out->zero[h][0], w, rows.scale[h],
                                 rows.zero[h], chunk >> w.group_shift);
    }
}

/* ---- the product -------------------------------------------------------------------------------
 */

/* totals += the chunk's sums times its scales. */
template <int BITS, typename T, product_mode MODE>
__device__ static inline void few_add(float (&totals)[4], const product_chunk<BITS, 1> &chunk,
                                      product_zero<BITS, T> (&zero)[2][1], const product_matrix &w,
                                      const uint8_t *x, unsigned x_at) {
    unsigned pair[2][16];
    float even[4] = {}, odd[4] = {}, scale[2];
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (MODE == PRODUCT_GENERAL && w.zeros != nullptr) {
            zero[h][0].set(chunk.zero[h][0]);
        }
        scale[h] = product_scale<MODE>(chunk.scale[h][0], w);
        product_unpack<BITS, T, 1>(pair[h], chunk.code[h], zero[h]);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 b = *reinterpret_cast<const uint4 *>(x + (x_at ^ 16 * i));
        product_mma<T>(even, pair[0][4 * i], pair[1][4 * i], pair[0][4 * i + 1], pair[1][4 * i + 1],
                       b.x, b.y);
        product_mma<T>(odd, pair[0][4 * i + 2], pair[1][4 * i + 2], pair[0][4 * i + 3],
                       pair[1][4 * i + 3], b.z, b.w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        totals[i] = fmaf(scale[i / 2], even[i] + odd[i], totals[i]);
    }
}

/* The sums of all warps over a tile meet; one of the warps, another one each time, stores. */
__device__ static inline void few_finish(few_sums &shared, float (&totals)[4], const few_job &job,
                                         unsigned tile, unsigned turn) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (i % 2 == 0 || job.task.m > 1) {
            totals[i] += __shfl_xor_sync(0xffffffffu, totals[i], 1);
            totals[i] += __shfl_xor_sync(0xffffffffu, totals[i], 2);
        }
        if (lane % 4 == 0) {
            shared[warp][i % 2][lane / 4 + i / 2 * 8] = totals[i];
        }
    }
    __syncthreads();
    if (warp != turn % FEW_WARPS) {
        return;
    }
    const unsigned row = tile * 16 + lane % 16, column = lane / 16;
    float sum = 0.0f, up = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < FEW_WARPS; i++) {
        const float part = shared[i][column][lane % 16];
        if (i < job.parts) {
            sum += part;
        } else {
            up += part;
        }
    }
    if (column < job.task.m && row < job.task.w[0].rows) {
        product_store(job.task, column, row, sum, up, product_residual(job.task, column, row));
    }
}

template <int BITS, typename T, product_mode MODE, int DEPTH>
__global__
__launch_bounds__(FEW_THREADS,
                  2) static void product_few_kernel(const __grid_constant__ few_job job) {
    extern __shared__ __align__(256) uint8_t few_shared[];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, quarter = lane % 4;
    const unsigned parts = job.parts, steps = job.steps, m = (unsigned)job.task.m;
    const product_matrix w = product_matrix_of(job.task, warp >= parts, job.group_shift);
    const unsigned part = warp >= parts ? warp - parts : warp;
    const unsigned own_steps = part < steps ? (steps - part - 1) / parts + 1 : 0;
    const unsigned own_tiles = (job.tiles - blockIdx.x - 1) / gridDim.x + 1;
    uint8_t *zeros = few_shared + steps * m * PRODUCT_STEP_BYTES;
    few_sums *sums = reinterpret_cast<few_sums *>(zeros + PRODUCT_STEP_BYTES);

    product_let_next_start();
    product_chunk<BITS, 1> chunk[DEPTH];
    product_rows<MODE> rows;
    unsigned next_row = blockIdx.x * 16 + lane / 4;
    const unsigned first_chunk = part * 4 + quarter, stride = parts * 4;
    rows.find(w, next_row);
#pragma unroll
    for (unsigned i = 0; i < DEPTH; i++) {
        if (i < own_steps) {
            product_load_chunk<BITS, MODE>(&chunk[i], w, rows, first_chunk + i * stride);
        }
    }
    {
        product_norm<FEW_THREADS, 2, false> norm;
        norm.fetch(job.source);
        product_wait();
        if (threadIdx.x < PRODUCT_STEP_BYTES / 16) {
            reinterpret_cast<uint4 *>(zeros)[threadIdx.x] = make_uint4(0, 0, 0, 0);
        }
#pragma unroll 1
        for (unsigned row = 0; row < m; row++) {
            norm.row(&sums[0][0][0][0], job.source, row, steps * 16,
                     [&](unsigned unit, const float(&v)[8]) {
                         product_put_unit<BITS, T>(unit, v, [&](unsigned at) {
                             return few_shared + (at / 16 * m + row) * PRODUCT_STEP_BYTES +
                                    product_x_at(row, at % 16);
                         });
                     });
        }
        __syncthreads();
    }

    const unsigned column = lane / 4;
    const bool has_x = column / 2 == quarter && column % 2 < m;
    const uint8_t *x_first =
        has_x ? few_shared + (part * m + column % 2) * PRODUCT_STEP_BYTES : zeros;
    const unsigned x_step = has_x ? parts * m * PRODUCT_STEP_BYTES : 0;
    const unsigned x_at = product_x_at(column % 2, quarter * 4);
    product_zero<BITS, T> zero[2][1];
    zero[0][0].set(1u << (BITS - 1));
    zero[1][0].set(1u << (BITS - 1));
    for (unsigned turn = 0; turn < own_tiles; turn++) {
        const uint8_t *x = x_first;
        float totals[4] = {};
        for (unsigned base = 0; base < own_steps; base += DEPTH) {
#pragma unroll
            for (unsigned i = 0; i < DEPTH; i++) {
                if (base + i < own_steps) {
                    few_add<BITS, T, MODE>(totals, chunk[i], zero, w, x, x_at);
                    x += x_step;
                }
            }
            /* All at once: a wait for one of several loads is a wait for all of them. */
            unsigned next = base + DEPTH, end = own_steps;
            if (next >= own_steps) {
                next = 0;
                end = turn + 1 < own_tiles ? own_steps : 0;
                next_row += gridDim.x * 16;
                rows.find(w, next_row);
            }
#pragma unroll
            for (unsigned i = 0; i < DEPTH; i++) {
                if (next + i < end) {
                    product_load_chunk<BITS, MODE>(&chunk[i], w, rows,
                                                   first_chunk + (next + i) * stride);
                }
            }
        }
        few_finish(sums[turn % 2], totals, job, blockIdx.x + turn * gridDim.x, turn);
    }
}

#endif
