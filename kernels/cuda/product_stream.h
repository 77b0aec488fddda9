/* Internal to kernels/cuda: one or two rows of x in binary16 with a matrix of packed weights of the
 * usual kind, by two blocks on every multiprocessor.
 *
 * A product of a small matrix is over before the memory has answered its first loads, so the loads
 * of the next product must be on their way by then.  A block therefore takes half of the shared
 * memory and of the registers of a multiprocessor: as soon as one of two has ended, one of the next
 * product starts in its place, and fills slots before it waits for its predecessor.  x alone
 * depends on that, and is late when all the copies of a block stand before it: they are not all
 * started until x is asked for.  The smallest matrices have one block on every multiprocessor,
 * which starts while the kernel before still runs there (decision 0041).
 *
 * A tile is 16 rows of W, or of U, where there is one.  The warps of a block take its units of 256
 * columns in turn; each copies its own, some units ahead and on into the next tile, to slots of its
 * own, and leaves its sums in shared memory.  The warps meet after some tiles only: one that waited
 * for the others at every tile would have nothing to do for a third of the time.
 *
 * A lane has 64 adjacent columns of a row, its three neighbours the others of the unit, which may
 * be of two groups, while a product of the tensor core adds up what the four lanes hold.  But it
 * has eight columns for one or two rows of x: columns 2i and 2i + 1 of b are row i of x in the
 * first and in the second half of the unit, with zeros for the lanes of the other half.  Four lanes
 * hold what is not zero of a row; they are adjacent, so that shared memory answers them at once. */
#ifndef INGOT_CUDA_PRODUCT_STREAM_H
#define INGOT_CUDA_PRODUCT_STREAM_H

#include "kernels/cuda/product_input.h"
#include "kernels/cuda/product_load.h"
#include "kernels/cuda/product_tiny.h"

#define STREAM_ROWS       2 /* of x */
#define STREAM_WARPS      8
#define STREAM_THREADS    (STREAM_WARPS * 32)
#define STREAM_UNIT       256 /* columns */
#define STREAM_X_BYTES    (STREAM_UNIT * 2)
#define STREAM_JUMP_BYTES (STREAM_WARPS * 2 * 16)
#define STREAM_MOST       6 /* slots of a warp */
#define STREAM_KEPT       4 /* units of eight columns of x that a thread holds */

typedef struct stream_job {
    product_task task;
    product_source source;
    unsigned units;       /* of a row of W */
    unsigned tiles;       /* of 16 rows */
    unsigned group_shift; /* log2 of the chunks of 32 in a group, at least 2 */
    unsigned slots;       /* of a warp, 2 to STREAM_MOST */
    unsigned early;       /* of them, filled before x is asked for */
} stream_job;

/* Codes as the file has them but for the order of the 16-byte pieces of a row, then the aligned
 * word with the scale of both halves of the unit for each row. */
template <int BITS> struct stream_slot {
    static constexpr unsigned PIECES = 2 * BITS, ROW = 16 * PIECES, CODES = 16 * ROW;
    static constexpr unsigned BYTES = CODES + 16 * 2 * 4;
};

/* Log2 of the turns of a block, a tile of one side each, between two meetings of its warps: turns
 * over long rows are long, and want the room for slots. */
__host__ __device__ static inline unsigned stream_turns_shift(unsigned units) {
    return units > 32 ? 2 : 3;
}

/* Shared memory: x [unit][m], what its zero points make of it [unit][m][half], jumps [warp][side],
 * sums [meeting % 2][turn][warp][m][16], slots of each warp.  Slots are aligned to 128 bytes. */
__host__ __device__ static inline unsigned stream_offset_bytes(unsigned units, unsigned m) {
    return (units * m * 8 + 127) / 128 * 128;
}

static inline unsigned stream_fixed_bytes(unsigned units, unsigned m) {
    return units * m * STREAM_X_BYTES + stream_offset_bytes(units, m) + STREAM_JUMP_BYTES +
           (2 << stream_turns_shift(units)) * STREAM_WARPS * m * 16 * (unsigned)sizeof(float);
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
    if (slots > 4) {
        if (slots == 5) {
            async_arrived<4>();
        } else {
            async_arrived<STREAM_MOST - 1>();
        }
    } else if (slots == 4) {
        async_arrived<3>();
    } else if (slots == 3) {
        async_arrived<2>();
    } else {
        async_arrived<1>();
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

    __device__ void jump(longlong2 far) {
        codes += far.x;
        scales += far.y;
        unit = threadIdx.x / 32;
    }
};

__device__ static inline longlong2 stream_read_jump(unsigned at) {
    longlong2 v;
    asm volatile("ld.shared.v2.s64 {%0,%1}, [%2];" : "=l"(v.x), "=l"(v.y) : "r"(at) : "memory");
    return v;
}

/* jumps[side] = from behind a warp's units of the tile of a side to its first of the block's next
 * tile, of W, or U and W in turn: bytes of codes and of scales. */
template <int BITS>
__device__ static inline void stream_jumps(longlong2 *jumps, const product_task &task,
                                           const product_matrix &w, unsigned units) {
    const unsigned warp = threadIdx.x / 32, side = threadIdx.x % 32;
    const unsigned own = warp < units ? (units - warp - 1) / STREAM_WARPS + 1 : 0;
    const ingot_weight_view &from = task.w[side % 2], &to = task.w[task.has_up ? 1 - side % 2 : 0];
    const long long tile = task.has_up && side == 0 ? 0 : (long long)gridDim.x * 16;
    if (side < 2) {
        const long long codes = task.has_up ? to.codes - from.codes : 0;
        const long long scales = task.has_up ? static_cast<const uint8_t *>(to.scales) -
                                                   static_cast<const uint8_t *>(from.scales)
                                             : 0;
        jumps[side] = make_longlong2(
            codes + tile * w.stride - own * (STREAM_WARPS * stream_slot<BITS>::ROW),
            scales + tile * w.groups * 2 - own * (STREAM_WARPS * 16 >> w.group_shift));
    }
}

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

/* A unit of a row of x: piece p of eight columns of quarter q, in the order of codes, is at
 * p * 64 + q * 16.  Where the eight columns `unit` of a row go, of whose unit x is the place. */
template <int BITS>
__device__ static inline void stream_put(uint8_t *x, unsigned unit, const __half (&v)[8]) {
    typedef product_tiny<BITS> tiny;
    uint8_t *to = x + unit / 4 % 2 * 256 + unit / 8 % 4 * 16; /* of the chunk */
    if constexpr (BITS % 4 == 0) {
        alignas(16) __half moved[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            moved[tiny::position(i)] = v[i];
        }
        *reinterpret_cast<uint4 *>(to + unit % 4 * 64) = *reinterpret_cast<const uint4 *>(moved);
    } else {
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            const unsigned at = (unsigned)tiny::position((int)(unit % 4 * 8 + i));
            *reinterpret_cast<__half *>(to + at / 8 * 64 + at % 8 * 2) = v[i];
        }
    }
}

/* The same for floats. */
template <int BITS>
__device__ static inline void stream_put_floats(uint8_t *x, unsigned unit, const float (&v)[8]) {
    alignas(16) __half rounded[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        rounded[i] = from_float<__half>(v[i]);
    }
    stream_put<BITS>(x, unit, rounded);
}

/* What sums of half a unit begin with: the sum of x there less the zero point of every code. */
template <int BITS> __device__ static inline float stream_offset(float sum) {
    return sum * -((float)(1 << (BITS - 1)) * product_tiny<BITS>::ONE);
}

/* A warp's own units of a row of x, `filled` times eight columns of binary16 without a norm, and
 * their offsets as stream_offsets has them.  Many are on their way at once, and no other warp needs
 * them.  behind(): when the first are on their way. */
template <int BITS, typename Behind>
__device__ static inline void stream_copy_row(uint8_t *x, float *offsets, const uint4 *from,
                                              unsigned filled, unsigned units, unsigned m,
                                              const Behind &behind) {
    constexpr unsigned AT_ONCE = 8;
    const unsigned lane = threadIdx.x % 32;
#pragma unroll 1
    for (unsigned first = threadIdx.x / 32; first < units; first += AT_ONCE * STREAM_WARPS) {
        uint4 raw[AT_ONCE];
        float sum[AT_ONCE];
#pragma unroll
        for (unsigned j = 0; j < AT_ONCE; j++) {
            const unsigned at = (first + j * STREAM_WARPS) * 32 + lane;
            raw[j] = make_uint4(0, 0, 0, 0);
            if (at < filled) {
                raw[j] = from[at];
            }
        }
        if (first < STREAM_WARPS) {
            behind();
        }
#pragma unroll
        for (unsigned j = 0; j < AT_ONCE; j++) {
            const unsigned unit = first + j * STREAM_WARPS;
            alignas(16) __half v[8];
            memcpy(v, &raw[j], sizeof v);
            if (unit < units) {
                stream_put<BITS>(x + unit * m * STREAM_X_BYTES, lane, v);
            }
            sum[j] = 0.0f;
#pragma unroll
            for (unsigned i = 0; i < 8; i++) {
                sum[j] += __half2float(v[i]);
            }
        }
#pragma unroll
        for (int other = 8; other > 0; other /= 2) { /* not the halves */
#pragma unroll
            for (unsigned j = 0; j < AT_ONCE; j++) {
                sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], other);
            }
        }
#pragma unroll
        for (unsigned j = 0; j < AT_ONCE; j++) {
            const unsigned unit = first + j * STREAM_WARPS;
            if (unit < units && lane % 16 == 0) {
                offsets[unit * m * 2 + lane / 16] = stream_offset<BITS>(sum[j]);
            }
        }
    }
}

/* to[unit * m][half] = stream_offset of the units of a warp in a row of x.  Four at once, since
 * each is a chain of shuffles. */
template <int BITS>
__device__ static inline void stream_offsets(float *to, const uint8_t *x, unsigned units,
                                             unsigned m) {
    const unsigned lane = threadIdx.x % 32;
#pragma unroll 1
    for (unsigned first = threadIdx.x / 32; first < units; first += 4 * STREAM_WARPS) {
        float sum[4] = {};
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            const unsigned unit = min(first + j * STREAM_WARPS, units - 1);
            const uint4 raw =
                *reinterpret_cast<const uint4 *>(x + unit * m * STREAM_X_BYTES + lane * 16);
            const unsigned pair[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 v = __half22float2(pair_of<__half2>(pair[i]));
                sum[j] += v.x + v.y;
            }
        }
#pragma unroll
        for (int other = 16; other > 0; other = other == 4 ? 1 : other / 2) { /* not the halves */
#pragma unroll
            for (unsigned j = 0; j < 4; j++) {
                sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], other);
            }
        }
#pragma unroll
        for (unsigned j = 0; j < 4; j++) {
            const unsigned unit = first + j * STREAM_WARPS;
            if (unit < units && (lane == 0 || lane == 2)) {
                to[unit * m * 2 + lane / 2] = stream_offset<BITS>(sum[j]);
            }
        }
    }
}

/* b = 16 bytes of shared memory in lanes that have x, what it was in others: lanes that read zeros
 * instead would cost shared memory as much as those with x (4 cycles a read, 2 without them). */
__device__ static inline void stream_read_x(uint4 &b, unsigned at, unsigned has_x) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %5, 0;\n"
                 "@p ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
                 : "+r"(b.x), "+r"(b.y), "+r"(b.z), "+r"(b.w)
                 : "r"(at), "r"(has_x)
                 : "memory");
}

/* What a lane has of a unit in its slot, of the rows lane / 4 and eight behind it. */
template <int BITS> struct stream_codes {
    unsigned code[2][2][BITS]; /* [chunk][row] */

    __device__ void take(unsigned at) {
        if constexpr (BITS % 4 == 0) {
            stream_take<BITS>(code[0], at, 0);
            stream_take<BITS>(code[1], at, 1);
        } else { /* in words of eight bytes */
#pragma unroll
            for (unsigned i = 0; i < 2 * BITS; i++) {
                const unsigned h = i / BITS, word = i % BITS * 2;
                const uint2 v = shared_read8(at + 8 * h * stream_slot<BITS>::ROW + word * 4);
                code[word / BITS][h][word % BITS] = v.x;
                code[(word + 1) / BITS][h][(word + 1) % BITS] = v.y;
            }
        }
    }
};

/* Where a lane finds what belongs to a unit of 16 rows, in shared memory. */
typedef struct stream_lane {
    unsigned codes, scales; /* in slot 0 */
    unsigned scale_bytes;   /* of two words, for __byte_perm: the scales of both halves */
    unsigned has_x;         /* whether the lane has x in its columns of b */
} stream_lane;

/* totals += ONE times the 256 columns of a unit times their scales, in lanes lane % 4 < m for row
 * lane % 4 of x; x and offsets: of the unit.  b: zeros in lanes without x. */
template <int BITS>
__device__ static inline void stream_unit(float (&totals)[2], uint4 (&b)[4], const stream_lane &at,
                                          unsigned slot, unsigned x, unsigned offsets) {
    typedef product_tiny<BITS> tiny;
    stream_codes<BITS> own;
    own.take(at.codes + slot);
    const uint2 offset = shared_read8(offsets);
    float sums[2][4] = {}; /* two chains */
    sums[0][0] = sums[0][2] = __uint_as_float(offset.x);
    sums[0][1] = sums[0][3] = __uint_as_float(offset.y);
#pragma unroll
    for (int c = 0; c < 2; c++) {
        unsigned pair[2][16];
        tiny::unpack(pair[0], own.code[c][0]);
        tiny::unpack(pair[1], own.code[c][1]);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            stream_read_x(b[i], x + (4 * c + i) * 64, at.has_x);
            product_mma<__half>(sums[0], pair[0][4 * i], pair[1][4 * i], pair[0][4 * i + 1],
                                pair[1][4 * i + 1], b[i].x, b[i].y);
            product_mma<__half>(sums[1], pair[0][4 * i + 2], pair[1][4 * i + 2], pair[0][4 * i + 3],
                                pair[1][4 * i + 3], b[i].z, b[i].w);
        }
    }
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        const uint2 words = shared_read8(at.scales + slot + h * 64);
        const float2 scale =
            __half22float2(pair_of<__half2>(__byte_perm(words.x, words.y, at.scale_bytes)));
        const float first = sums[0][2 * h] + sums[1][2 * h];
        const float second = sums[0][2 * h + 1] + sums[1][2 * h + 1];
        totals[h] = fmaf(scale.x, first, fmaf(scale.y, second, totals[h]));
    }
}

/* What the warps have left of a row of a tile: at `from` and every `step` floats. */
__device__ static inline float stream_sum(const float *from, unsigned step) {
    float sum = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < STREAM_WARPS; i++) {
        sum += from[i * step];
    }
    return sum;
}

/* Keeps the compiler from working a value out again where it is used. */
__device__ static inline unsigned stream_keep(unsigned value) {
    asm volatile("" : "+r"(value));
    return value;
}
__device__ static inline const void *stream_keep(const void *value) {
    asm volatile("" : "+l"(value));
    return value;
}

/* The lane's place where slot 0 of its warp is at `slots`. */
template <int BITS>
__device__ static inline stream_lane stream_place_of(unsigned slots, const product_matrix &w,
                                                     unsigned m) {
    typedef stream_slot<BITS> layout;
    const unsigned lane = threadIdx.x % 32, quarter = lane % 4, row = lane / 4;
    const unsigned chunk = threadIdx.x / 32 * 8; /* of the warp's first unit */
    const unsigned first_scale = row * w.groups + (chunk >> w.group_shift);
    const unsigned second_scale = row * w.groups + ((chunk + 4) >> w.group_shift);
    /* Of b, the lane's row is a column. */
    return {stream_keep(slots + row * layout::ROW +
                        (BITS % 4 != 0 ? quarter * (8 * BITS)
                                       : stream_place<BITS>(row, quarter * (BITS / 2)) * 16)),
            stream_keep(slots + layout::CODES + row * 8),
            stream_keep((first_scale % 2 != 0 ? 0x32u : 0x10u) |
                        (second_scale % 2 != 0 ? 0x7600u : 0x5400u)),
            row / 2 < m && row % 2 == quarter / 2};
}

template <int BITS>
__global__
__launch_bounds__(STREAM_THREADS,
                  2) static void product_stream_kernel(const __grid_constant__ stream_job job) {
    typedef stream_slot<BITS> layout;
    extern __shared__ __align__(256) uint8_t stream_shared[];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, quarter = lane % 4;
    const unsigned units = job.units, m = (unsigned)job.task.m, row = lane / 4;
    const unsigned sides = job.task.has_up ? 2 : 1, turn_sums = STREAM_WARPS * m * 16;
    const product_matrix w = product_matrix_of(job.task, false, job.group_shift);
    float *offsets = reinterpret_cast<float *>(stream_shared + units * m * STREAM_X_BYTES);
    longlong2 *jumps = reinterpret_cast<longlong2 *>(offsets + stream_offset_bytes(units, m) / 4);
    float *sums = reinterpret_cast<float *>(jumps + 2 * STREAM_WARPS);
    const unsigned turns_shift = stream_turns_shift(units), turns_least = 1u << turns_shift;
    const unsigned slots =
        async_address(sums + 2 * turns_least * turn_sums) + warp * (job.slots * layout::BYTES);
    const unsigned end = job.slots * layout::BYTES;

    product_let_next_start();
    stream_cursor<BITS> next;
    unsigned next_tile = blockIdx.x, next_side = 0;
    next.start(w, w.codes, w.scales, next_tile * 16);
    stream_jumps<BITS>(jumps + 2 * warp, job.task, w, units);
    __syncwarp();
    const unsigned jumps_at = stream_keep(async_address(jumps + 2 * warp));
    const unsigned whole = (w.last_chunk + 1) / 8; /* units that are not cut off */
    const unsigned to = stream_keep(
        slots + (BITS % 4 != 0
                     ? lane * 16
                     : lane / layout::PIECES * layout::ROW +
                           stream_place<BITS>(lane / layout::PIECES, lane % layout::PIECES) * 16));
    const unsigned scale_to = stream_keep(slots + layout::CODES + lane * 4);
    const auto fetch = [&](unsigned slot) {
        if (next_tile < job.tiles && next.unit < units) {
            if (next.unit < whole) {
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
                next.jump(stream_read_jump(jumps_at + next_side * 16));
                next_tile += next_side + 1 == sides ? gridDim.x : 0;
                next_side = next_side + 1 == sides ? 0 : 1;
            }
        }
        async_commit();
    };
    const auto fetch_slots = [&](unsigned from, unsigned until) {
#pragma unroll 1
        for (unsigned slot = from; slot < until; slot += layout::BYTES) {
            fetch(slot);
        }
    };
    product_norm<STREAM_THREADS, STREAM_KEPT, false> norm;
    if (job.source.norm_weight != nullptr) {
        norm.fetch(job.source); /* not behind weights */
    }
    const unsigned early = job.early * layout::BYTES;
    fetch_slots(0, early);
    if (job.source.norm_weight == nullptr && job.source.dtype == INGOT_F16) {
        const uint4 *from = static_cast<const uint4 *>(stream_keep(job.source.x));
        const unsigned filled = stream_keep((unsigned)job.source.cols / 8);
        const unsigned stride = stream_keep((unsigned)job.source.stride / 8);
        product_wait();
#pragma unroll 1
        for (unsigned i = 0; i < m; i++) {
            stream_copy_row<BITS>(stream_shared + i * STREAM_X_BYTES, offsets + i * 2,
                                  from + i * stride, filled, units, m,
                                  [&] { fetch_slots(i == 0 ? early : end, end); });
        }
    } else {
        product_wait();
#pragma unroll 1
        for (unsigned i = 0; i < m; i++) {
            norm.row(
                sums, job.source, i, units * (STREAM_UNIT / 8),
                [&](unsigned unit, const float(&v)[8]) {
                    stream_put_floats<BITS>(stream_shared + (unit / 32 * m + i) * STREAM_X_BYTES,
                                            unit, v);
                },
                [&] { fetch_slots(i == 0 ? early : end, end); });
        }
        __syncthreads();
#pragma unroll 1
        for (unsigned i = 0; i < m; i++) {
            stream_offsets<BITS>(offsets + i * 2, stream_shared + i * STREAM_X_BYTES, units, m);
        }
    }
    __syncwarp();

    /* Of b, the lane's row is a column. */
    const unsigned x_first = stream_keep(async_address(stream_shared) +
                                         (warp * m + row / 2 % m) * STREAM_X_BYTES + quarter * 16);
    const unsigned offset_first =
        stream_keep(async_address(offsets) + (warp * m + min(quarter, m - 1)) * 8);
    const stream_lane place = stream_place_of<BITS>(slots, w, m);
    uint4 b[4] = {};
    /* The warps meet when they have left the sums of some turns, or of the last: a turn for each
     * tile of W, two with U. */
    const unsigned own_tiles = (job.tiles - blockIdx.x - 1) / gridDim.x + 1;
    const unsigned turns = own_tiles * sides;
    /* What a thread stores after a meeting, whose first tile of the block's is `first`: a row of a
     * tile, for one row of x. */
    const unsigned out_tile = threadIdx.x / (m * 16), column = threadIdx.x / 16 % m;
    const auto out_row = [&](unsigned first) {
        return (blockIdx.x + (first + out_tile) * gridDim.x) * 16 + lane % 16;
    };
    const auto fetch_residual = [&](unsigned first) {
        const bool is_there = out_tile < turns_least / sides && first + out_tile < own_tiles;
        return is_there ? product_residual(job.task, column, out_row(first)) : 0.0f;
    };
    float residual = fetch_residual(0); /* on its way long before it is needed */
    unsigned slot = 0;
#pragma unroll 1
    for (unsigned turn = 0; turn < turns; turn++) {
        unsigned x = x_first, offset = offset_first;
        float totals[2] = {};
#pragma unroll 1
        for (unsigned unit = warp; unit < units; unit += STREAM_WARPS) {
            stream_arrived(job.slots);
            __syncwarp();
            stream_unit<BITS>(totals, b, place, slot, x, offset);
            __syncwarp();
            fetch(slot);
            x += STREAM_WARPS * m * STREAM_X_BYTES;
            offset += STREAM_WARPS * m * 8;
            slot = slot + layout::BYTES < end ? slot + layout::BYTES : 0;
        }
        float *met = sums + (turn >> turns_shift) % 2 * (turn_sums << turns_shift);
        if (quarter < m) {
            float *to = met + turn % turns_least * turn_sums + (warp * m + quarter) * 16 + row;
            to[0] = totals[0] / product_tiny<BITS>::ONE;
            to[8] = totals[1] / product_tiny<BITS>::ONE;
        }
        if (turn % turns_least != turns_least - 1 && turn + 1 != turns) {
            continue;
        }
        __syncthreads();
        const unsigned first = (turn & ~(turns_least - 1)) / sides, behind = (turn + 1) / sides;
        if (first + out_tile < behind) {
            const float *from = met + out_tile * sides * turn_sums + column * 16 + lane % 16;
            const float sum = stream_sum(from, m * 16);
            const float up = job.task.has_up ? stream_sum(from + turn_sums, m * 16) : 0.0f;
            product_store(job.task, column, out_row(first), sum, up, residual);
        }
        residual = fetch_residual(behind);
    }
}

#endif
