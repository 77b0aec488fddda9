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
 * has eight columns for a row of x: columns 4h to 4h + 2 of b are the digits of that row
 * (product_digits.h) in half h of the unit, with zeros for the lanes of the other half. */
#ifndef INGOT_CUDA_PRODUCT_STREAM_H
#define INGOT_CUDA_PRODUCT_STREAM_H

#include "kernels/cuda/product_digits.h"
#include "kernels/cuda/product_input.h"
#include "kernels/cuda/product_load.h"

#define STREAM_ROWS       2   /* of x */
#define STREAM_UNIT       256 /* columns */
#define STREAM_X_BYTES    (STREAM_UNIT * DIGITS)
#define STREAM_PIECE      (64 * DIGITS) /* bytes of x of 64 columns, 16 of each lane of a row */
#define STREAM_OFFSETS    8             /* of a unit: one for each column of b */
#define STREAM_JUMP_BYTES (2 * 16)      /* of a warp */
#define STREAM_KEPT       4             /* units of eight columns of x that a thread holds */

typedef struct stream_job {
    product_task task;
    product_source source;
    unsigned units;       /* of a row of W */
    unsigned tiles;       /* of 16 rows */
    unsigned group_shift; /* log2 of the chunks of 32 in a group, at least 2 */
    unsigned turns_shift; /* log2 of the turns of a block, a tile of one side each, between two
                             meetings of its warps */
    unsigned slots;       /* of a warp, 2 to ASYNC_MOST */
    unsigned early;       /* of them, filled before x is asked for */
} stream_job;

/* Codes as the file has them but for the order of the 16-byte pieces of a row, then the aligned
 * word with the scale of both halves of the unit for each row. */
template <int BITS> struct stream_slot {
    static constexpr unsigned PIECES = 2 * BITS, ROW = 16 * PIECES, CODES = 16 * ROW;
    static constexpr unsigned BYTES = CODES + 16 * 2 * 4;
};

/* Shared memory: x [unit][m], what its zero points make of it [unit][m][STREAM_OFFSETS] and the
 * units of its digits [unit][m][half], jumps [warp][side], sums [meeting % 2][turn][warp][m][16],
 * slots of each warp.  Slots are aligned to 128 bytes. */
__host__ __device__ static inline unsigned stream_offset_bytes(unsigned units, unsigned m) {
    return (units * m * (STREAM_OFFSETS + 2) * 4 + 127) / 128 * 128;
}

static inline unsigned stream_fixed_bytes(unsigned units, unsigned m, unsigned warps,
                                          unsigned turns_shift) {
    return units * m * STREAM_X_BYTES + stream_offset_bytes(units, m) + warps * STREAM_JUMP_BYTES +
           (2 << turns_shift) * warps * m * 16 * (unsigned)sizeof(float);
}

static inline unsigned stream_slot_bytes(unsigned bits) {
    return bits == 3   ? stream_slot<3>::BYTES
           : bits == 4 ? stream_slot<4>::BYTES
                       : stream_slot<8>::BYTES;
}

/* Pieces trade places, so that what the lanes of two adjacent rows read at once lies in different
 * banks.  Rows of 3 bits do so by their length. */
template <int BITS> __device__ static inline unsigned stream_place(unsigned row, unsigned piece) {
    return BITS == 4 ? piece ^ row % 2 : BITS == 8 ? piece ^ (piece / 8 + row % 2 * 2) : piece;
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

template <int BITS, unsigned WARPS> struct stream_cursor {
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
        codes += WARPS * layout::ROW;
        scales += WARPS * 16 >> w.group_shift;
        unit += WARPS;
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
template <int BITS, unsigned WARPS>
__device__ static inline void stream_jumps(longlong2 *jumps, const product_task &task,
                                           const product_matrix &w, unsigned units) {
    const unsigned warp = threadIdx.x / 32, side = threadIdx.x % 32;
    const unsigned own = warp < units ? (units - warp - 1) / WARPS + 1 : 0;
    const ingot_weight_view &from = task.w[side % 2], &to = task.w[task.has_up ? 1 - side % 2 : 0];
    const long long tile = task.has_up && side == 0 ? 0 : (long long)gridDim.x * 16;
    if (side < 2) {
        const long long codes = task.has_up ? to.codes - from.codes : 0;
        const long long scales = task.has_up ? static_cast<const uint8_t *>(to.scales) -
                                                   static_cast<const uint8_t *>(from.scales)
                                             : 0;
        jumps[side] =
            make_longlong2(codes + tile * w.stride - own * (WARPS * stream_slot<BITS>::ROW),
                           scales + tile * w.groups * 2 - own * (WARPS * 16 >> w.group_shift));
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

/* Where x is in shared memory. */
typedef struct stream_x {
    uint8_t *digits; /* [unit][m][STREAM_X_BYTES] */
    int *offsets;    /* [unit][m][STREAM_OFFSETS] */
    float *units;    /* [unit][m][half] */
} stream_x;

/* A unit of a row of x, its number `at`; a warp has eight columns of it in each lane.  Digits stand
 * as lanes read them, the columns of each in the order of codes: [chunk of a lane][16 of its
 * columns][digit][lane of a row][16]. */
template <int BITS>
__device__ static inline void stream_put(const stream_x &x, unsigned at, const __half (&v)[8]) {
    typedef product_digits<BITS> order;
    const unsigned lane = threadIdx.x % 32;
    unsigned own_largest = 0;
    float value[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        value[i] = __half2float(v[i]);
        own_largest = max(own_largest, __float_as_uint(fabsf(value[i])));
    }
    const unsigned first_largest = __reduce_max_sync(0xffffffffu, lane < 16 ? own_largest : 0);
    const unsigned second_largest = __reduce_max_sync(0xffffffffu, lane < 16 ? 0 : own_largest);
    const unsigned largest = lane < 16 ? first_largest : second_largest;
    const float inverse = digits_inverse(largest);
    int number[2][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int place = BITS == 3 ? i : order::position(i);
        number[place / 4][place % 4] = __float2int_rn(value[i] * inverse);
    }
    unsigned digit[2][DIGITS];
    digits_of(digit[0], number[0]);
    digits_of(digit[1], number[1]);
    uint8_t *to =
        x.digits + at * STREAM_X_BYTES + lane / 4 % 2 * (2 * STREAM_PIECE) + lane / 8 * 16;
#pragma unroll
    for (int d = 0; d < DIGITS; d++) {
        if constexpr (BITS != 3) { /* eight columns stay together */
            *reinterpret_cast<uint2 *>(to + lane % 4 / 2 * STREAM_PIECE + d * 64 + lane % 2 * 8) =
                make_uint2(digit[0][d], digit[1][d]);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const int place = order::position(i); /* of the first eight of a chunk */
                to[place / 16 * STREAM_PIECE + d * 64 + place % 16 + lane % 4] =
                    (uint8_t)(digit[i / 4][d] >> i % 4 * 8);
            }
        }
    }
    int offset[2][4] = {};
#pragma unroll
    for (int d = 0; d < DIGITS; d++) { /* of both halves at once, below 2^15 */
        const int own =
            __dp4a((int)digit[0][d], 0x01010101, __dp4a((int)digit[1][d], 0x01010101, 0));
        const int both = __reduce_add_sync(0xffffffffu, lane < 16 ? own : own * 65536);
        const int first = (short)both;
        offset[0][d] = -(1 << (BITS - 1)) * first;
        offset[1][d] = -(1 << (BITS - 1)) * ((both - first) >> 16);
    }
    if (lane % 16 == 0) {
        const unsigned half = lane / 16;
        *reinterpret_cast<int4 *>(x.offsets + at * STREAM_OFFSETS + half * 4) =
            half == 0 ? make_int4(offset[0][0], offset[0][1], offset[0][2], 0)
                      : make_int4(offset[1][0], offset[1][1], offset[1][2], 0);
        x.units[at * 2 + half] =
            largest < 0x7f800000u ? digits_unit(largest) : __uint_as_float(0x7fffffffu);
    }
}

/* Makes digits of a warp's own units of row i of m, which lies in binary16 where they will be: at
 * the start of each unit.  Two at once, since each is a chain of instructions. */
template <int BITS, unsigned WARPS>
__device__ static inline void stream_split_row(const stream_x &x, unsigned i, unsigned units,
                                               unsigned m) {
#pragma unroll 2
    for (unsigned unit = threadIdx.x / 32; unit < units; unit += WARPS) {
        alignas(16) __half v[8];
        const uint8_t *from = x.digits + (unit * m + i) * STREAM_X_BYTES + threadIdx.x % 32 * 16;
        *reinterpret_cast<uint4 *>(v) = *reinterpret_cast<const uint4 *>(from);
        __syncwarp();
        stream_put<BITS>(x, unit * m + i, v);
    }
}

/* A warp's own units of row i of m: `filled` times eight columns of binary16 without a norm.  Many
 * are on their way at once, and no other warp needs them.  behind(): when the first are on their
 * way. */
template <int BITS, unsigned WARPS, typename Behind>
__device__ static inline void stream_copy_row(const stream_x &x, unsigned i, const uint4 *from,
                                              unsigned filled, unsigned units, unsigned m,
                                              const Behind &behind) {
    constexpr unsigned AT_ONCE = 8;
    const unsigned lane = threadIdx.x % 32;
#pragma unroll 1
    for (unsigned first = threadIdx.x / 32; first < units; first += AT_ONCE * WARPS) {
        uint4 raw[AT_ONCE];
#pragma unroll
        for (unsigned j = 0; j < AT_ONCE; j++) {
            const unsigned at = (first + j * WARPS) * 32 + lane;
            raw[j] = make_uint4(0, 0, 0, 0);
            if (at < filled) {
                raw[j] = from[at];
            }
        }
        if (first < WARPS) {
            behind();
        }
#pragma unroll
        for (unsigned j = 0; j < AT_ONCE; j++) {
            const unsigned unit = first + j * WARPS;
            if (unit < units) {
                *reinterpret_cast<uint4 *>(x.digits + (unit * m + i) * STREAM_X_BYTES + lane * 16) =
                    raw[j];
            }
        }
    }
    __syncwarp();
    stream_split_row<BITS, WARPS>(x, i, units, m);
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
    unsigned scale_bytes;   /* of a word, for __byte_perm: the scale of its half */
    unsigned has_x;         /* whether the lane has x in its column of b */
} stream_lane;

/* totals[row of x][row of W, and eight behind it] += what a lane has of the 256 columns of a unit,
 * times their scales; stream_total makes sums of it.  x, offsets, x_units: of the unit, as
 * stream_x_of and the others have it.  b: zeros in lanes without x. */
template <int BITS, int M>
__device__ static inline void stream_unit(float (&totals)[M][2], uint4 (&b)[M][4],
                                          const stream_lane &at, unsigned slot, unsigned x,
                                          unsigned offsets, unsigned x_units) {
    stream_codes<BITS> own;
    own.take(at.codes + slot);
    int sums[M][2][4] = {}; /* two chains */
#pragma unroll
    for (int i = 0; i < M; i++) {
        const uint2 offset = shared_read8(offsets + i * (STREAM_OFFSETS * 4));
        sums[i][0][0] = sums[i][0][2] = (int)offset.x;
        sums[i][0][1] = sums[i][0][3] = (int)offset.y;
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
        unsigned word[2][8];
        product_digits<BITS>::unpack(word[0], own.code[c][0]);
        product_digits<BITS>::unpack(word[1], own.code[c][1]);
#pragma unroll
        for (int p = 0; p < 2; p++) {
#pragma unroll
            for (int i = 0; i < M; i++) {
                uint4 &own_x = b[i][2 * c + p];
                stream_read_x(own_x, x + i * STREAM_X_BYTES + (2 * c + p) * STREAM_PIECE, at.has_x);
                digits_mma(sums[i][0], word[0][4 * p], word[1][4 * p], word[0][4 * p + 1],
                           word[1][4 * p + 1], own_x.x, own_x.y);
                digits_mma(sums[i][1], word[0][4 * p + 2], word[1][4 * p + 2], word[0][4 * p + 3],
                           word[1][4 * p + 3], own_x.z, own_x.w);
            }
        }
    }
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        const unsigned half =
            __byte_perm(shared_read4(at.scales + slot + h * 64), 0, at.scale_bytes);
        const float scale = __half2float(__ushort_as_half((unsigned short)half));
#pragma unroll
        for (int i = 0; i < M; i++) {
            const int high = sums[i][0][2 * h] + sums[i][1][2 * h];
            const int low = sums[i][0][2 * h + 1] + sums[i][1][2 * h + 1];
            const float unit = __uint_as_float(shared_read4(x_units + i * 8));
            totals[i][h] = fmaf((float)(high * 256 + low), scale * unit, totals[i][h]);
        }
    }
}

/* The sum over the lanes of a row: of two columns of b each, whose first counts 2^8 times the
 * second; the second of a half is digit 1, or nothing behind digit 2. */
__device__ static inline float stream_total(float own) {
    own *= threadIdx.x % 2 == 0 ? 256.0f : 1.0f / 256.0f;
    own += __shfl_xor_sync(0xffffffffu, own, 1);
    return own + __shfl_xor_sync(0xffffffffu, own, 2);
}

/* What the warps have left of a row of a tile: at `from` and every `step` floats. */
template <unsigned WARPS>
__device__ static inline float stream_sum(const float *from, unsigned step) {
    float sum = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < WARPS; i++) {
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
__device__ static inline stream_lane stream_place_of(unsigned slots, const product_matrix &w) {
    typedef stream_slot<BITS> layout;
    const unsigned lane = threadIdx.x % 32, quarter = lane % 4, row = lane / 4, half = quarter / 2;
    const unsigned chunk = threadIdx.x / 32 * 8 + half * 4; /* of the warp's first unit */
    const unsigned scale = row * w.groups + (chunk >> w.group_shift);
    /* Of b, the lane's row is a column. */
    return {stream_keep(slots + row * layout::ROW +
                        (BITS % 4 != 0 ? quarter * (8 * BITS)
                                       : stream_place<BITS>(row, quarter * (BITS / 2)) * 16)),
            stream_keep(slots + layout::CODES + row * 8 + half * 4),
            stream_keep(scale % 2 != 0 ? 0x4432u : 0x4410u), row % 4 < DIGITS && row / 4 == half};
}

/* A lane's place in the digits of the warp's first unit. */
__device__ static inline unsigned stream_x_of(const stream_x &x, unsigned m) {
    const unsigned lane = threadIdx.x % 32, digit = min(lane / 4 % 4, DIGITS - 1u);
    return stream_keep(async_address(x.digits) + threadIdx.x / 32 * m * STREAM_X_BYTES +
                       digit * 64 + lane % 4 * 16);
}

/* The lane's columns of b in the offsets of the warp's first unit. */
__device__ static inline unsigned stream_offsets_of(const stream_x &x, unsigned m) {
    return stream_keep(async_address(x.offsets) + threadIdx.x / 32 * m * (STREAM_OFFSETS * 4) +
                       threadIdx.x % 4 * 8);
}

/* What the digits of its half count, of the warp's first unit. */
__device__ static inline unsigned stream_units_of(const stream_x &x, unsigned m) {
    return stream_keep(async_address(x.units) + threadIdx.x / 32 * m * 8 + threadIdx.x % 4 / 2 * 4);
}

template <int BITS, int M, unsigned WARPS>
__global__ __launch_bounds__(WARPS * 32, 16 / WARPS) static void product_stream_kernel(
    const __grid_constant__ stream_job job) {
    typedef stream_slot<BITS> layout;
    extern __shared__ __align__(256) uint8_t stream_shared[];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, quarter = lane % 4;
    const unsigned units = job.units, row = lane / 4;
    constexpr unsigned m = M;
    const unsigned sides = job.task.has_up ? 2 : 1, turn_sums = WARPS * m * 16;
    const product_matrix w = product_matrix_of(job.task, false, job.group_shift);
    int *offsets = reinterpret_cast<int *>(stream_shared + units * m * STREAM_X_BYTES);
    const stream_x x_at = {stream_shared, offsets,
                           reinterpret_cast<float *>(offsets + units * m * STREAM_OFFSETS)};
    longlong2 *jumps = reinterpret_cast<longlong2 *>(offsets + stream_offset_bytes(units, m) / 4);
    float *sums = reinterpret_cast<float *>(jumps + 2 * WARPS);
    const unsigned turns_shift = job.turns_shift, turns_least = 1u << turns_shift;
    const unsigned slots =
        async_address(sums + 2 * turns_least * turn_sums) + warp * (job.slots * layout::BYTES);
    const unsigned end = job.slots * layout::BYTES;

    product_let_next_start();
    stream_cursor<BITS, WARPS> next;
    unsigned next_tile = blockIdx.x, next_side = 0;
    next.start(w, w.codes, w.scales, next_tile * 16);
    stream_jumps<BITS, WARPS>(jumps + 2 * warp, job.task, w, units);
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
    product_norm<WARPS * 32, STREAM_KEPT, false> norm;
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
            stream_copy_row<BITS, WARPS>(x_at, i, from + i * stride, filled, units, m,
                                         [&] { fetch_slots(i == 0 ? early : end, end); });
        }
    } else {
        product_wait();
#pragma unroll 1
        for (unsigned i = 0; i < m; i++) {
            norm.row(
                sums, job.source, i, units * (STREAM_UNIT / 8),
                [&](unsigned unit, const float(&v)[8]) {
                    product_put_unit<0, __half>(unit, v, [&](unsigned) {
                        return stream_shared + (unit / 32 * m + i) * STREAM_X_BYTES +
                               unit % 32 * 16;
                    });
                },
                [&] { fetch_slots(i == 0 ? early : end, end); });
        }
        __syncthreads();
#pragma unroll 1
        for (unsigned i = 0; i < m; i++) {
            stream_split_row<BITS, WARPS>(x_at, i, units, m);
        }
    }
    __syncwarp();

    const unsigned x_first = stream_x_of(x_at, m), offset_first = stream_offsets_of(x_at, m);
    const unsigned x_unit_first = stream_units_of(x_at, m);
    const stream_lane place = stream_place_of<BITS>(slots, w);
    uint4 b[M][4] = {};
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
        unsigned x = x_first, offset = offset_first, x_unit = x_unit_first;
        float totals[M][2] = {};
#pragma unroll 1
        for (unsigned unit = warp; unit < units; unit += WARPS) {
            async_arrived_first(job.slots);
            __syncwarp();
            stream_unit<BITS, M>(totals, b, place, slot, x, offset, x_unit);
            __syncwarp();
            fetch(slot);
            x += WARPS * m * STREAM_X_BYTES;
            offset += WARPS * m * (STREAM_OFFSETS * 4);
            x_unit += WARPS * m * 8;
            slot = slot + layout::BYTES < end ? slot + layout::BYTES : 0;
        }
        float *met = sums + (turn >> turns_shift) % 2 * (turn_sums << turns_shift);
#pragma unroll
        for (unsigned i = 0; i < m; i++) {
            const float low = stream_total(totals[i][0]), high = stream_total(totals[i][1]);
            if (quarter == i) {
                float *to = met + turn % turns_least * turn_sums + (warp * m + i) * 16 + row;
                to[0] = low;
                to[8] = high;
            }
        }
        if (turn % turns_least != turns_least - 1 && turn + 1 != turns) {
            continue;
        }
        __syncthreads();
        const unsigned first = (turn & ~(turns_least - 1)) / sides, behind = (turn + 1) / sides;
        if (first + out_tile < behind) {
            const float *from = met + out_tile * sides * turn_sums + column * 16 + lane % 16;
            const float sum = stream_sum<WARPS>(from, m * 16);
            const float up = job.task.has_up ? stream_sum<WARPS>(from + turn_sums, m * 16) : 0.0f;
            product_store(job.task, column, out_row(first), sum, up, residual);
        }
        residual = fetch_residual(behind);
    }
}

#endif
