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

/* Shared memory: x [step][m] in PRODUCT_STEP_BYTES, a chunk of zeros, sums. */
template <int WARPS> static inline unsigned few_shared_bytes(unsigned steps, unsigned m) {
    return steps * m * PRODUCT_STEP_BYTES + PRODUCT_CHUNK_BYTES +
           2 * WARPS * FEW_ROWS * 16 * (unsigned)sizeof(float);
}

/* 1 / sqrt(mean x^2 + eps) of a row of x, the same in every thread of every block. */
template <int WARPS>
__device__ static float few_norm_factor(float *parts, const product_source &source, unsigned row) {
    float sum = 0.0f;
#pragma unroll 2
    for (unsigned block = threadIdx.x; block < (unsigned)source.cols / 8; block += WARPS * 32) {
        float v[8];
        product_read_eight(v, source, row, block);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            sum = fmaf(v[i], v[i], sum);
        }
    }
    __syncwarp();
    for (int lane = 16; lane > 0; lane /= 2) {
        sum += __shfl_xor_sync(0xffffffffu, sum, lane);
    }
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    sum = 0.0f;
    for (int i = 0; i < WARPS; i++) {
        sum += parts[i];
    }
    return 1.0f / sqrtf(sum / (float)source.cols + source.norm_eps);
}

/* norm(x), rounded, to shared memory in the order of the codes, zeros behind its columns. */
template <int BITS, typename T, int WARPS>
__device__ static void few_load_x(uint8_t *shared, float *parts, const few_job &job) {
    const product_source &source = job.source;
    const unsigned m = (unsigned)job.task.m, chunks = job.steps * 4;
    const unsigned cols = (unsigned)source.cols;
    const bool has_norm = source.norm_weight != nullptr;
    const bool is_copy =
        !has_norm &&
        source.dtype ==
            (sizeof(T) == 2 && product_float<T>::MANTISSA == 10 ? INGOT_F16 : INGOT_BF16);
    const float more = source.norm_kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0f : 0.0f;
#pragma unroll 1
    for (unsigned row = 0; row < m; row++) {
        const float factor =
            has_norm ? few_norm_factor<WARPS>(parts + row * WARPS, source, row) : 1.0f;
#pragma unroll 1
        for (unsigned chunk = threadIdx.x; chunk < chunks; chunk += WARPS * 32) {
            T rounded[PRODUCT_CHUNK];
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                float v[8] = {};
                const unsigned first = chunk * PRODUCT_CHUNK + i * 8;
                if (is_copy) {
                    alignas(16) T eight[8];
                    *reinterpret_cast<uint4 *>(eight) = make_uint4(0, 0, 0, 0);
                    if (first < cols) {
                        *reinterpret_cast<uint4 *>(eight) = *reinterpret_cast<const uint4 *>(
                            static_cast<const T *>(source.x) + row * source.stride + first);
                    }
#pragma unroll
                    for (unsigned k = 0; k < 8; k++) {
                        rounded[i * 8 + k] = eight[k];
                    }
                    continue;
                }
                if (first < cols) {
                    product_read_eight(v, source, row, chunk * 4 + i);
                }
#pragma unroll
                for (unsigned k = 0; k < 8; k++) {
                    if (has_norm && first < cols) {
                        v[k] *= factor * (__ldg(source.norm_weight + first + k) + more);
                    }
                    rounded[i * 8 + k] = from_float<T>(v[k]);
                }
            }
            product_put_chunk<BITS, T>(shared + (chunk / 4 * m + row) * PRODUCT_STEP_BYTES +
                                           chunk % 4 * PRODUCT_CHUNK_BYTES,
                                       rounded);
        }
    }
    if (threadIdx.x < PRODUCT_CHUNK_BYTES / 4) {
        reinterpret_cast<unsigned *>(shared + job.steps * m * PRODUCT_STEP_BYTES)[threadIdx.x] = 0;
    }
}

/* totals += the chunk's sums times its scales. */
template <int BITS, typename T, product_mode MODE>
__device__ static inline void few_add(float (&totals)[4], const product_chunk<BITS, 1> &chunk,
                                      product_zero<BITS, T> (&zero)[2][1], const product_matrix &w,
                                      const uint8_t *x) {
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
        const uint4 b = reinterpret_cast<const uint4 *>(x)[i];
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
template <int WARPS>
__device__ static inline void few_finish(float (*shared)[FEW_ROWS][16], float (&totals)[4],
                                         const few_job &job, unsigned tile, unsigned turn) {
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
    if (warp != turn % WARPS) {
        return;
    }
    const unsigned row = tile * 16 + lane % 16, column = lane / 16;
    float sum = 0.0f, up = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < WARPS; i++) {
        const float part = shared[i][column][lane % 16];
        if (i < job.parts) {
            sum += part;
        } else {
            up += part;
        }
    }
    if (column < job.task.m && row < job.task.w[0].rows) {
        product_store(job.task, column, row, sum, up);
    }
}

template <int BITS, typename T, product_mode MODE, int WARPS, int DEPTH, int BLOCKS>
__global__
__launch_bounds__(WARPS * 32,
                  BLOCKS) static void product_few_kernel(const __grid_constant__ few_job job) {
    extern __shared__ __align__(16) uint8_t few_shared[];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, quarter = lane % 4;
    const unsigned parts = job.parts, steps = job.steps, m = (unsigned)job.task.m;
    const product_matrix w = product_matrix_of(job.task, warp >= parts, job.group_shift);
    const unsigned part = warp >= parts ? warp - parts : warp;
    const unsigned own_steps = part < steps ? (steps - part - 1) / parts + 1 : 0;
    const unsigned own_tiles = (job.tiles - blockIdx.x - 1) / gridDim.x + 1;
    uint8_t *zeros = few_shared + steps * m * PRODUCT_STEP_BYTES;
    auto *sums = reinterpret_cast<float(*)[FEW_ROWS][16]>(zeros + PRODUCT_CHUNK_BYTES);

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
    product_wait();
    few_load_x<BITS, T, WARPS>(few_shared, &sums[0][0][0], job);
    __syncthreads();

    const unsigned column = lane / 4;
    const bool has_x = column / 2 == quarter && column % 2 < m;
    const uint8_t *x_first = has_x ? few_shared + (part * m + column % 2) * PRODUCT_STEP_BYTES +
                                         quarter * PRODUCT_CHUNK_BYTES
                                   : zeros;
    const unsigned x_step = has_x ? parts * m * PRODUCT_STEP_BYTES : 0;
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
                    few_add<BITS, T, MODE>(totals, chunk[i], zero, w, x);
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
        few_finish<WARPS>(sums + turn % 2 * WARPS, totals, job, blockIdx.x + turn * gridDim.x,
                          turn);
    }
}

#endif
