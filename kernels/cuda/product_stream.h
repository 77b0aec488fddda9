/* Internal to kernels/cuda: one or two rows of x with a matrix of packed weights of the usual kind,
 * by two blocks on every multiprocessor.
 *
 * A product of a small matrix is over before the memory has answered its first loads, so the loads
 * of the next product must be on their way by then.  A block therefore takes half of the shared
 * memory and of the registers of a multiprocessor: as soon as one of two has ended, one of the next
 * product starts in its place, and fills its slots before it waits for its predecessor.  x alone
 * depends on that.
 *
 * A tile is 16 rows of W, or of U, where there is one.  The warps of a block take its units of 256
 * columns in turn; each copies its own, some units ahead and on into the next tile, to slots of its
 * own, and leaves its sums in shared memory.  The warps meet after some tiles only: one that waited
 * for the others at every tile would have nothing to do for a third of the time.
 *
 * A lane has 64 adjacent columns of a row, its three neighbours the others of the unit, which may
 * be of two groups, while a product of the tensor core adds up what the four lanes hold.  But it
 * has eight columns for one or two rows of x: lane q of the four finds its x in columns 2q and
 * 2q + 1 of b, with zeros there for the others.  The sums of its own columns then are in its own
 * registers and meet their scale there. */
#ifndef INGOT_CUDA_PRODUCT_STREAM_H
#define INGOT_CUDA_PRODUCT_STREAM_H

#include "kernels/cuda/product_input.h"
#include "kernels/cuda/product_load.h"

#define STREAM_ROWS    2 /* of x */
#define STREAM_WARPS   8
#define STREAM_THREADS (STREAM_WARPS * 32)
#define STREAM_UNIT    256 /* columns */
#define STREAM_X_BYTES (STREAM_UNIT * 2)
#define STREAM_ZEROS   256 /* bytes */
#define STREAM_MOST    6   /* slots of a warp */
#define STREAM_TURNS   8   /* of a block between two meetings of its warps */
#define STREAM_KEPT    4   /* units of eight columns of x that a thread holds */

typedef struct stream_job {
    product_task task;
    product_source source;
    unsigned units;       /* of a row of W */
    unsigned tiles;       /* of 16 rows */
    unsigned group_shift; /* log2 of the chunks of 32 in a group, at least 2 */
    unsigned slots;       /* of a warp, 2 to STREAM_MOST */
} stream_job;

/* Codes as the file has them but for the order of the 16-byte pieces of a row, then the aligned
 * word with the scale of both halves of the unit for each row. */
template <int BITS> struct stream_slot {
    static constexpr unsigned PIECES = 2 * BITS, ROW = 16 * PIECES, CODES = 16 * ROW;
    static constexpr unsigned BYTES = CODES + 16 * 2 * 4;
};

/* Shared memory: x [unit][m], zeros, sums [meeting % 2][turn][warp][m][16], slots of each warp. */
static inline unsigned stream_fixed_bytes(unsigned units, unsigned m) {
    return units * m * STREAM_X_BYTES + STREAM_ZEROS +
           2 * STREAM_TURNS * STREAM_WARPS * m * 16 * (unsigned)sizeof(float);
}

static inline unsigned stream_slot_bytes(unsigned bits) {
    return bits == 3   ? stream_slot<3>::BYTES
           : bits == 4 ? stream_slot<4>::BYTES
                       : stream_slot<8>::BYTES;
}

/* Shared memory of a block when two fill a multiprocessor: the runtime takes 1 KB of each. */
static inline unsigned stream_half_bytes(const ingot_cuda *cuda) {
    return ((unsigned)cuda->shared_bytes + 1024) / 2 - 1024;
}

/* Pieces trade places, so that what the lanes of two adjacent rows read at once lies in different
 * banks.  Rows of 3 bits do so by their length. */
template <int BITS> __device__ static inline unsigned stream_place(unsigned row, unsigned piece) {
    return BITS == 4 ? piece ^ row % 2 : BITS == 8 ? piece ^ (piece / 8 + row % 2 * 2) : piece;
}

/* Waits for the first of `slots` groups of copies of this thread. */
__device__ static inline void stream_arrived(unsigned slots) {
    if (slots == 2) {
        async_arrived<1>();
    } else if (slots == 3) {
        async_arrived<2>();
    } else if (slots == 4) {
        async_arrived<3>();
    } else if (slots == 5) {
        async_arrived<4>();
    } else {
        async_arrived<STREAM_MOST - 1>();
    }
}

/* Starts copies of unit `unit` of 16 rows, whose codes and scales begin there; zeros behind the end
 * of a row. */
template <int BITS>
__device__ static inline void stream_fetch(unsigned slot, const uint8_t *codes,
                                           const uint8_t *scales, const product_matrix &w,
                                           unsigned unit) {
    typedef stream_slot<BITS> layout;
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < 16 * layout::PIECES; i += 32) {
        const unsigned at = lane + i, row = at / layout::PIECES, piece = at % layout::PIECES;
        const unsigned column = unit * layout::ROW + piece * 16;
        async_copy<16>(slot + row * layout::ROW + stream_place<BITS>(row, piece) * 16,
                       codes + (row * w.stride + column), column < w.stride ? 16 : 0);
    }
    const unsigned chunk = unit * 8 + lane % 2 * 4;
    const unsigned at = (lane / 2 * w.groups + (min(chunk, w.last_chunk) >> w.group_shift)) * 2;
    async_copy<4>(slot + layout::CODES + lane * 4, scales + (at & ~3u),
                  chunk <= w.last_chunk ? 4 : 0);
}

/* Where a warp copies its units from, one after the other: the lane's first piece and its scale.
 * Groups are at most STREAM_GROUP columns or rows, so that the scales that a lane meets in units of
 * its own stand in the same half of their words. */
#define STREAM_GROUP 1024

template <int BITS> struct stream_cursor {
    typedef stream_slot<BITS> layout;
    const uint8_t *codes, *scales;
    unsigned unit;

    /* The warp's first unit of rows row .. row + 15. */
    __device__ void start(const product_matrix &w, const uint8_t *all_codes,
                          const uint8_t *all_scales, unsigned row) {
        const unsigned lane = threadIdx.x % 32;
        unit = threadIdx.x / 32;
        codes = all_codes + ((uint64_t)(row + lane / layout::PIECES) * w.stride +
                             unit * layout::ROW + lane % layout::PIECES * 16);
        const unsigned group = (unit * 8 + lane % 2 * 4) >> w.group_shift;
        scales = all_scales + (((uint64_t)(row + lane / 2) * w.groups + group) * 2 & ~(uint64_t)3);
    }

    /* Starts copies of a unit that is not cut off, and goes on; `to` is the place of the lane's
     * first piece, `scale_to` that of its scale. */
    __device__ void fetch(const product_matrix &w, unsigned to, unsigned scale_to) {
        constexpr unsigned AT_ONCE = 32 / layout::PIECES; /* rows */
        const uint8_t *from = codes;
        if constexpr (BITS % 4 == 0) {
            static_assert(AT_ONCE % 2 == 0, "the pieces of a lane trade places alike");
#pragma unroll
            for (unsigned i = 0; i < 16; i += AT_ONCE) {
                async_copy<16>(to + i * layout::ROW, from, 16);
                from += AT_ONCE * w.stride;
            }
        } else { /* 32 pieces are some rows and a part of the next */
            const unsigned lane = threadIdx.x % 32, piece = lane % layout::PIECES;
#pragma unroll
            for (unsigned i = 0; i < 16 * layout::PIECES; i += 32) {
                const unsigned over = piece + i % layout::PIECES >= layout::PIECES ? 1 : 0;
                async_copy<16>(to + i * 16,
                               from + i % layout::PIECES * 16 +
                                   (i / layout::PIECES + over) * w.stride - over * layout::ROW,
                               16);
            }
        }
        async_copy<4>(scale_to, scales, 4);
        advance(w);
    }

    __device__ void advance(const product_matrix &w) {
        codes += STREAM_WARPS * layout::ROW;
        scales += STREAM_WARPS * 16 >> w.group_shift;
        unit += STREAM_WARPS;
    }
};

/* Chunk c of both rows of a lane: rows `at` and eight behind it. */
template <int BITS>
__device__ static inline void stream_take(unsigned (&code)[2][BITS], unsigned at, unsigned c) {
    typedef stream_slot<BITS> layout;
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
#pragma unroll
        for (unsigned i = 0; i < BITS / 4; i++) {
            const uint4 v = shared_read16((at ^ (c * (BITS / 4) + i) * 16) + 8 * h * layout::ROW);
            code[h][4 * i] = v.x, code[h][4 * i + 1] = v.y;
            code[h][4 * i + 2] = v.z, code[h][4 * i + 3] = v.w;
        }
    }
}

/* sums += the products of a chunk, in two chains; x: of the lane's columns, or zeros. */
template <int BITS, typename T>
__device__ static inline void stream_add(float (&sums)[2][4], const unsigned (&code)[2][BITS],
                                         const product_zero<BITS, T> (&zero)[1], unsigned x) {
    unsigned pair[2][16];
    product_unpack<BITS, T, 1>(pair[0], code[0], zero);
    product_unpack<BITS, T, 1>(pair[1], code[1], zero);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 b = shared_read16(x + i * 16);
        product_mma<T>(sums[0], pair[0][4 * i], pair[1][4 * i], pair[0][4 * i + 1],
                       pair[1][4 * i + 1], b.x, b.y);
        product_mma<T>(sums[1], pair[0][4 * i + 2], pair[1][4 * i + 2], pair[0][4 * i + 3],
                       pair[1][4 * i + 3], b.z, b.w);
    }
}

/* totals += the lane's 64 columns of a unit times their scales. */
template <int BITS, typename T>
__device__ static inline void stream_unit(float (&totals)[4], unsigned code_at, unsigned scale_at,
                                          const product_zero<BITS, T> (&zero)[1], unsigned x) {
    float sums[2][2][4] = {};
    unsigned code[2][2][BITS];
    if constexpr (BITS % 4 == 0) {
        stream_take<BITS>(code[0], code_at, 0);
        stream_take<BITS>(code[1], code_at, 1);
    } else { /* in words of eight bytes */
#pragma unroll
        for (unsigned i = 0; i < 2 * BITS; i++) {
            const unsigned h = i / BITS, at = i % BITS * 2;
            const uint2 v = shared_read8(code_at + 8 * h * stream_slot<BITS>::ROW + at * 4);
            code[at / BITS][h][at % BITS] = v.x;
            code[(at + 1) / BITS][h][(at + 1) % BITS] = v.y;
        }
    }
    stream_add<BITS, T>(sums[0], code[0], zero, x);
    stream_add<BITS, T>(sums[1], code[1], zero, x + 64);
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        const float scale = __half2float(__ushort_as_half(shared_read2(scale_at + h * 64)));
#pragma unroll
        for (unsigned k = 2 * h; k < 2 * h + 2; k++) {
            const float sum = (sums[0][0][k] + sums[0][1][k]) + (sums[1][0][k] + sums[1][1][k]);
            totals[k] = fmaf(scale, sum, totals[k]);
        }
    }
}

/* Keeps the compiler from working a value out again where it is used. */
__device__ static inline unsigned stream_keep(unsigned value) {
    asm volatile("" : "+r"(value));
    return value;
}

/* The sums of a warp over a tile to to[m][16]. */
__device__ static inline void stream_leave(float *to, float (&totals)[4], unsigned m) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        if (i % 2 < m) {
            totals[i] += __shfl_xor_sync(0xffffffffu, totals[i], 1);
            totals[i] += __shfl_xor_sync(0xffffffffu, totals[i], 2);
            if (lane % 4 == 0) {
                to[i % 2 * 16 + lane / 4 + i / 2 * 8] = totals[i];
            }
        }
    }
}

template <int BITS, typename T>
__global__
__launch_bounds__(STREAM_THREADS,
                  2) static void product_stream_kernel(const __grid_constant__ stream_job job) {
    typedef stream_slot<BITS> layout;
    extern __shared__ __align__(256) uint8_t stream_shared[];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, quarter = lane % 4;
    const unsigned units = job.units, m = (unsigned)job.task.m, row = lane / 4;
    const unsigned sides = job.task.has_up ? 2 : 1, turn_sums = STREAM_WARPS * m * 16;
    const product_matrix w = product_matrix_of(job.task, false, job.group_shift);
    uint8_t *zeros = stream_shared + units * m * STREAM_X_BYTES;
    float *sums = reinterpret_cast<float *>(zeros + STREAM_ZEROS);
    const unsigned slots =
        async_address(sums + 2 * STREAM_TURNS * turn_sums) + warp * (job.slots * layout::BYTES);
    const unsigned end = job.slots * layout::BYTES;

    product_let_next_start();
    stream_cursor<BITS> next;
    unsigned next_tile = blockIdx.x, next_side = 0;
    const auto start = [&]() {
        next.start(w, next_side != 0 ? job.task.w[1].codes : w.codes,
                   next_side != 0 ? static_cast<const uint8_t *>(job.task.w[1].scales) : w.scales,
                   next_tile * 16);
    };
    start();
    const unsigned to = stream_keep(
        slots + (BITS % 4 != 0
                     ? lane * 16
                     : lane / layout::PIECES * layout::ROW +
                           stream_place<BITS>(lane / layout::PIECES, lane % layout::PIECES) * 16));
    const unsigned scale_to = stream_keep(slots + layout::CODES + lane * 4);
    const auto fetch = [&](unsigned slot) {
        if (next_tile < job.tiles && next.unit < units) {
            if (next.unit * 8 + 7 <= w.last_chunk) {
                next.fetch(w, to + slot, scale_to + slot);
            } else {
                const ingot_weight_view &from = job.task.w[next_side];
                stream_fetch<BITS>(slots + slot, from.codes + (uint64_t)next_tile * (16 * w.stride),
                                   static_cast<const uint8_t *>(from.scales) +
                                       (uint64_t)next_tile * (32 * w.groups),
                                   w, next.unit);
                next.advance(w);
            }
            if (next.unit >= units) {
                next_tile += next_side + 1 == sides ? gridDim.x : 0;
                next_side = next_side + 1 == sides ? 0 : 1;
                start();
            }
        }
        async_commit();
    };
#pragma unroll 1
    for (unsigned slot = 0; slot < end; slot += layout::BYTES) {
        fetch(slot);
    }
    {
        product_norm<STREAM_THREADS, STREAM_KEPT, false> norm;
        norm.fetch(job.source);
        if (threadIdx.x < STREAM_ZEROS / 16) {
            reinterpret_cast<uint4 *>(zeros)[threadIdx.x] = make_uint4(0, 0, 0, 0);
        }
        product_wait();
#pragma unroll 1
        for (unsigned i = 0; i < m; i++) {
            norm.row(sums, job.source, i, units * (STREAM_UNIT / 8),
                     [&](unsigned unit, const float(&v)[8]) {
                         product_put_unit<BITS, T>(unit, v, [&](unsigned at) {
                             return stream_shared + (at / 32 * m + i) * STREAM_X_BYTES +
                                    at % 32 * 16;
                         });
                     });
        }
        __syncthreads();
    }

    const bool has_x = row / 2 == quarter && row % 2 < m; /* of b the row is a column */
    /* Zeros come from other banks than x. */
    const unsigned x_first = stream_keep(
        has_x ? async_address(stream_shared) + (warp * m + row % 2) * STREAM_X_BYTES + quarter * 128
              : async_address(zeros) + 64);
    const unsigned x_step = stream_keep(has_x ? STREAM_WARPS * m * STREAM_X_BYTES : 0);
    const unsigned code_at =
        stream_keep(slots + row * layout::ROW +
                    (BITS % 4 != 0 ? quarter * (8 * BITS)
                                   : stream_place<BITS>(row, quarter * (BITS / 2)) * 16));
    const unsigned group = (warp * 8 + quarter / 2 * 4) >> w.group_shift;
    const unsigned scale_at = stream_keep(slots + layout::CODES + (row * 2 + quarter / 2) * 4 +
                                          (row * w.groups + group) % 2 * 2);
    product_zero<BITS, T> zero[1];
    zero[0].set(1u << (BITS - 1));
    /* The warps meet when they have left the sums of some turns, or of the last: a turn for each
     * tile of W, two with U. */
    const unsigned own_tiles = (job.tiles - blockIdx.x - 1) / gridDim.x + 1;
    const unsigned turns = own_tiles * sides;
    unsigned slot = 0;
#pragma unroll 1
    for (unsigned turn = 0; turn < turns; turn++) {
        unsigned x = x_first;
        float totals[4] = {};
#pragma unroll 1
        for (unsigned unit = warp; unit < units; unit += STREAM_WARPS) {
            stream_arrived(job.slots);
            __syncwarp();
            stream_unit<BITS, T>(totals, code_at + slot, scale_at + slot, zero, x);
            __syncwarp();
            fetch(slot);
            x += x_step;
            slot = slot + layout::BYTES < end ? slot + layout::BYTES : 0;
        }
        float *met = sums + turn / STREAM_TURNS % 2 * (STREAM_TURNS * turn_sums);
        stream_leave(met + turn % STREAM_TURNS * turn_sums + warp * (m * 16), totals, m);
        if (turn % STREAM_TURNS != STREAM_TURNS - 1 && turn + 1 != turns) {
            continue;
        }
        __syncthreads();
        const unsigned first = turn / STREAM_TURNS * STREAM_TURNS / sides; /* of own tiles */
        const unsigned count = ((turn + 1) / sides - first) * m * 16;
        if (threadIdx.x < count) {
            const unsigned at = threadIdx.x / (m * 16), column = threadIdx.x / 16 % m;
            const unsigned out_row = (blockIdx.x + (first + at) * gridDim.x) * 16 + lane % 16;
            const float residual = product_residual(job.task, column, out_row);
            float sum[2] = {};
#pragma unroll 1
            for (unsigned side = 0; side < sides; side++) {
                const float *from = met + (at * sides + side) * turn_sums + column * 16 + lane % 16;
                float all = 0.0f;
#pragma unroll
                for (unsigned i = 0; i < STREAM_WARPS; i++) {
                    all += from[i * m * 16];
                }
                sum[side != 0] = all;
            }
            product_store(job.task, column, out_row, sum[0], sum[1], residual);
        }
    }
}

#endif
