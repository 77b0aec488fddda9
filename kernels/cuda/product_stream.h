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
 * Between the end of the kernel in front and the first product stand a few hundred instructions of
 * a warp, one after the other: each warp makes the digits of the columns that it multiplies, and
 * nobody waits for the factor of a norm (decision 0051).
 */
#ifndef INGOT_CUDA_PRODUCT_STREAM_H
#define INGOT_CUDA_PRODUCT_STREAM_H

#include "kernels/cuda/product_input.h"
#include "kernels/cuda/product_stream_unit.h"

#define STREAM_ROWS 2 /* of x */
#define STREAM_KEPT 2 /* units of a row of x that a warp holds in registers */

/* Shared memory: codes [warp][slot], x as stream_x has it, sums [meeting % 2][turn][warp][m][16],
 * squares [m][warp], groups [warp][slot], STREAM_OWN_BYTES [warp]. */
__host__ __device__ constexpr unsigned stream_offset_bytes(unsigned bits, stream_kind kind,
                                                           unsigned units, unsigned m) {
    return (units * m * (stream_offsets(bits, kind) + 2 * stream_parts(kind)) * 4 + 127) / 128 *
           128;
}

static inline unsigned stream_fixed_bytes(unsigned bits, stream_kind kind, unsigned units,
                                          unsigned m, unsigned warps, unsigned turns_shift) {
    return units * m * STREAM_X_BYTES + stream_offset_bytes(bits, kind, units, m) +
           ((2 << turns_shift) * 16 + 1) * warps * m * (unsigned)sizeof(float) +
           warps * STREAM_OWN_BYTES;
}

#if INGOT_SM90A

/* Lanes that have the columns of a group, or of half of a unit, eight each. */
__host__ __device__ constexpr unsigned stream_lanes(stream_kind kind) {
    return 16 / stream_parts(kind);
}

/* What the lane's eight columns of a unit add to the offsets of their group. */
template <int BITS, stream_kind KIND>
__device__ static inline void stream_put_offsets(int *offsets, const unsigned (&digit)[2][DIGITS]) {
    constexpr unsigned LANES = stream_lanes(KIND);
    constexpr int TIMES = stream_has_zeros(KIND) ? 1 : -(1 << (BITS - 1));
    const unsigned lane = threadIdx.x % 32;
    int sum[DIGITS];
#pragma unroll
    for (int d = 0; d < DIGITS; d++) {
        sum[d] = __dp4a((int)digit[0][d], 0x01010101, __dp4a((int)digit[1][d], 0x01010101, 0));
    }
    if (LANES == 16) {
#pragma unroll
        for (int d = 0; d < DIGITS; d++) { /* of both halves at once, below 2^15 */
            const int both = __reduce_add_sync(0xffffffffu, lane < 16 ? sum[d] : sum[d] * 65536);
            const int first = (short)both;
            sum[d] = lane < 16 ? first : (both - first) >> 16;
        }
    } else {
        int two = sum[0] + sum[1] * 65536; /* likewise */
#pragma unroll
        for (unsigned other = 1; other < LANES; other *= 2) {
            two += __shfl_xor_sync(0xffffffffu, two, other);
            sum[2] += __shfl_xor_sync(0xffffffffu, sum[2], other);
        }
        sum[0] = (short)two;
        sum[1] = (two - sum[0]) >> 16;
    }
    if (lane % LANES == 0) {
        *reinterpret_cast<int4 *>(offsets + lane / LANES * STREAM_OFFSETS) =
            make_int4(TIMES * sum[0], TIMES * sum[1], TIMES * sum[2], 0);
    }
}

/* The largest of what lanes have that share a group, or half of a unit where it is longer. */
template <stream_kind KIND> __device__ static inline unsigned stream_largest(unsigned own) {
    constexpr unsigned LANES = stream_lanes(KIND);
    if constexpr (LANES == 16) {
        const bool is_first = threadIdx.x % 32 < 16;
        const unsigned first = __reduce_max_sync(0xffffffffu, is_first ? own : 0);
        const unsigned second = __reduce_max_sync(0xffffffffu, is_first ? 0 : own);
        return is_first ? first : second;
    } else {
#pragma unroll
        for (unsigned other = 1; other < LANES; other *= 2) {
            own = max(own, __shfl_xor_sync(0xffffffffu, own, other));
        }
        return own;
    }
}

/* A unit of a row of x, its number `at`; a warp has eight columns of it in each lane, whose largest
 * magnitude is `own_largest`, as bits.  Digits stand as lanes read them, the columns of each in the
 * order of codes: [chunk of a lane][16 of its columns][digit][lane of a row][16].  With 8 bits the
 * last two lanes of a row have their chunks in turned order, so that reads of codes meet different
 * banks. */
template <int BITS, stream_kind KIND>
__device__ static inline void stream_put(const stream_x &x, unsigned at, const float (&v)[8],
                                         unsigned own_largest) {
    typedef product_digits<BITS> order;
    const unsigned lane = threadIdx.x % 32;
    const unsigned largest = stream_largest<KIND>(own_largest);
    const float inverse = digits_inverse(largest);
    float rounded[2][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int place = BITS == 3 ? i : order::position(i);
        rounded[place / 4][place % 4] = fmaf(v[i], inverse, DIGITS_ROUND);
    }
    unsigned digit[2][DIGITS];
    digits_of(digit[0], rounded[0]);
    digits_of(digit[1], rounded[1]);
    const unsigned chunk = BITS == 8 ? lane / 4 % 2 ^ lane / 16 : lane / 4 % 2;
    uint8_t *to = x.digits + at * STREAM_X_BYTES + chunk * (2 * STREAM_PIECE) + lane / 8 * 16;
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
    if constexpr (stream_offsets(BITS, KIND) != 0) {
        stream_put_offsets<BITS, KIND>(x.offsets + at * stream_offsets(BITS, KIND), digit);
    }
    if (lane % stream_lanes(KIND) == 0) {
        x.units[at * (2 * stream_parts(KIND)) + lane / stream_lanes(KIND)] =
            largest < 0x7f800000u ? digits_unit(largest) * (1.0f / order::FACTOR)
                                  : __uint_as_float(0x7fffffffu);
    }
}

/* The same of a row in binary16. */
template <int BITS, stream_kind KIND>
__device__ static inline void stream_put_halves(const stream_x &x, unsigned at, const uint4 &v) {
    const unsigned pairs[4] = {v.x, v.y, v.z, v.w};
    unsigned two = 0;
    float values[8];
#pragma unroll
    for (int i = 0; i < 4; i++) { /* magnitudes compare as whole numbers do, NaN the largest */
        two = __vmaxu2(two, pairs[i] & 0x7fff7fffu);
        const float2 pair = cuda_pair_floats<INGOT_F16>(pairs[i]);
        values[2 * i] = pair.x, values[2 * i + 1] = pair.y;
    }
    const unsigned short largest = (unsigned short)max(two & 0xffffu, two >> 16);
    stream_put<BITS, KIND>(x, at, values, __float_as_uint(__half2float(__ushort_as_half(largest))));
}

/* Makes digits of a warp's own units of row i of m, which lies in binary16 where they will be: at
 * the start of each unit.  Two at once, since each is a chain of instructions. */
template <int BITS, stream_kind KIND, unsigned WARPS>
__device__ static inline void stream_split_row(const stream_x &x, unsigned i, unsigned units,
                                               unsigned m) {
#pragma unroll 2
    for (unsigned unit = threadIdx.x / 32; unit < units; unit += WARPS) {
        const uint4 v = *reinterpret_cast<const uint4 *>(
            x.digits + (unit * m + i) * STREAM_X_BYTES + threadIdx.x % 32 * 16);
        __syncwarp();
        stream_put_halves<BITS, KIND>(x, unit * m + i, v);
    }
}

/* A warp's own units of row i of m: `filled` times eight columns of binary16 without a norm.  Many
 * are on their way at once, and no other warp needs them.  behind(): when the first are on their
 * way. */
template <int BITS, stream_kind KIND, unsigned WARPS, typename Behind>
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
    stream_split_row<BITS, KIND, WARPS>(x, i, units, m);
}

/* Rows of x in FP32 with a norm of rows without their mean.  Nobody waits for its factor, by which
 * the sums are multiplied in the end; digits are of x times the weights of the norm, whatever their
 * size. */
template <int BITS, stream_kind KIND, unsigned WARPS> struct stream_norm {
    float weight[STREAM_KEPT][8];

    __device__ static void load(float (&w)[STREAM_KEPT][8], const product_source &source,
                                unsigned first) {
#pragma unroll
        for (unsigned j = 0; j < STREAM_KEPT; j++) {
            const unsigned at = (first + j * WARPS) * 32 + threadIdx.x % 32;
            if (at * 8 < source.cols) {
                product_read_norm<false>(w[j], source, at);
            } else { /* anything times zero need not be zero */
#pragma unroll
                for (unsigned k = 0; k < 8; k++) {
                    w[j][k] = 0.0f;
                }
            }
        }
    }

    /* Before product_wait: weights do not depend on the kernel before. */
    __device__ void fetch(const product_source &source, unsigned warp) {
        load(weight, source, warp);
    }

    /* A warp's own units of row i of m, and the sum of the squares of what it has of the row, in
     * every lane.  behind(): when the first are on their way. */
    template <typename Behind>
    __device__ float row(const stream_x &x, const product_source &source, unsigned i, unsigned warp,
                         unsigned units, unsigned m, const Behind &behind) {
        const unsigned filled = (unsigned)source.cols / 8;
        const float more = source.norm_kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0f : 0.0f;
        const float *from = static_cast<const float *>(source.x) + i * source.stride;
        float square = 0.0f;
#pragma unroll 1
        for (unsigned first = warp; first < units; first += STREAM_KEPT * WARPS) {
            float v[STREAM_KEPT][8] = {};
#pragma unroll
            for (unsigned j = 0; j < STREAM_KEPT; j++) {
                const unsigned at = (first + j * WARPS) * 32 + threadIdx.x % 32;
                if (at < filled) {
                    const float4 *eight = reinterpret_cast<const float4 *>(from) + 2 * at;
                    const float4 low = eight[0], high = eight[1];
                    v[j][0] = low.x, v[j][1] = low.y, v[j][2] = low.z, v[j][3] = low.w;
                    v[j][4] = high.x, v[j][5] = high.y, v[j][6] = high.z, v[j][7] = high.w;
                }
            }
            if (first == warp) {
                behind();
            }
            if (units > STREAM_KEPT * WARPS && (first != warp || i != 0)) {
                load(weight, source, first);
            }
#pragma unroll
            for (unsigned j = 0; j < STREAM_KEPT; j++) {
                unsigned largest = 0;
#pragma unroll
                for (unsigned k = 0; k < 8; k++) {
                    square = fmaf(v[j][k], v[j][k], square);
                    v[j][k] *= weight[j][k] + more;
                    largest = max(largest, __float_as_uint(v[j][k]) & 0x7fffffffu);
                }
                if (first + j * WARPS < units) {
                    stream_put<BITS, KIND>(x, (first + j * WARPS) * m + i, v[j], largest);
                }
            }
        }
        for (int other = 16; other > 0; other /= 2) {
            square += __shfl_xor_sync(0xffffffffu, square, other);
        }
        return square;
    }
};

/* The factor of the norm, of what the warps have left of the squares of a row; inverse_cols: the
 * inverse of how many they are. */
template <unsigned WARPS>
__device__ static inline float stream_factor(const float *squares, float inverse_cols, float eps) {
    float square = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < WARPS; i++) {
        square += squares[i];
    }
    return rsqrtf(fmaf(square, inverse_cols, eps));
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

#endif

template <int BITS, stream_kind KIND, int M, unsigned WARPS, bool IS_BOXED>
__global__ __launch_bounds__(WARPS * 32, 16 / WARPS) static void product_stream_kernel(
    const __grid_constant__ stream_job job) {
#if INGOT_SM90A
    typedef stream_slot<BITS> layout;
    typedef stream_groups<KIND> groups;
    extern __shared__ __align__(1024) uint8_t stream_shared[];
    const unsigned lane = threadIdx.x % 32, quarter = lane % 4;
    const unsigned warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0); /* uniform, it is known */
    const unsigned units = job.units, row = lane / 4;
    constexpr unsigned m = M;
    const unsigned sides = job.task.has_up ? 2 : 1, turn_sums = WARPS * m * 16;
    const product_matrix w = product_matrix_of(job.task, false, job.group_shift);
    constexpr unsigned OFFSETS = stream_offsets(BITS, KIND);
    uint8_t *digits = stream_shared + WARPS * job.slots * layout::CODES;
    int *offsets = reinterpret_cast<int *>(digits + units * m * STREAM_X_BYTES);
    const stream_x x_at = {digits, offsets,
                           reinterpret_cast<float *>(offsets + units * m * OFFSETS)};
    float *sums =
        reinterpret_cast<float *>(offsets) + stream_offset_bytes(BITS, KIND, units, m) / 4;
    const unsigned turns_shift = job.turns_shift, turns_least = 1u << turns_shift;
    float *squares = sums + 2 * turns_least * turn_sums;
    const unsigned all_groups = async_address(squares + m * WARPS);
    const stream_room room = {async_address(stream_shared) + warp * job.slots * layout::CODES,
                              all_groups + warp * job.slots * groups::BYTES,
                              all_groups + WARPS * job.slots * groups::BYTES +
                                  warp * STREAM_OWN_BYTES};

    product_let_next_start();
    stream_copies<BITS, KIND, WARPS, IS_BOXED> copies(job, w, room, warp);
    const auto fetch_slots = [&](unsigned from, unsigned until) {
#pragma unroll 1
        for (unsigned slot = from; slot < until; slot++) {
            copies.fetch(slot);
        }
    };
    const bool has_norm = job.source.norm_weight != nullptr;
    stream_norm<BITS, KIND, WARPS> norm;
    if (has_norm) {
        norm.fetch(job.source, warp); /* not behind weights */
    }
    const unsigned soon = job.soon, end = job.slots;
    fetch_slots(0, job.early);
    if constexpr (IS_BOXED) {
        if (soon > job.early) { /* the x of the kernel in front is not behind these */
            copies.await_first();
            fetch_slots(job.early, soon);
        }
    }
    const unsigned own_tiles = stream_keep((job.tiles - blockIdx.x - 1) / gridDim.x + 1);
    const float inverse_cols = 1.0f / (float)(unsigned)job.source.cols;
    if (!has_norm) {
        const uint4 *from = static_cast<const uint4 *>(stream_keep(job.source.x));
        const unsigned filled = stream_keep((unsigned)job.source.cols / 8);
        const unsigned stride = stream_keep((unsigned)job.source.stride / 8);
        product_wait();
#pragma unroll 1
        for (unsigned i = 0; i < m; i++) {
            stream_copy_row<BITS, KIND, WARPS>(x_at, i, from + i * stride, filled, units, m,
                                               [&] { fetch_slots(i == 0 ? soon : end, end); });
        }
    } else {
        product_wait();
#pragma unroll 1
        for (unsigned i = 0; i < m; i++) {
            const float square = norm.row(x_at, job.source, i, warp, units, m,
                                          [&] { fetch_slots(i == 0 ? soon : end, end); });
            if (lane == 0) {
                squares[i * WARPS + warp] = square;
            }
        }
    }
    __syncwarp();

    const unsigned x_first = stream_x_of(x_at, m);
    const unsigned offset_first = stream_offsets_of<BITS, KIND>(x_at, m);
    const unsigned x_unit_first = stream_units_of<KIND>(x_at, m);
    const stream_lane place = stream_place_of<BITS, KIND, IS_BOXED>(room.codes, room.groups, w);
    uint4 b[M][4] = {};
    /* The warps meet when they have left the sums of some turns, or of the last: a turn for each
     * tile of W, two with U. */
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
    float factor = 1.0f;
    unsigned slot = 0;
#pragma unroll 1
    for (unsigned turn = 0; turn < turns; turn++) {
        unsigned x = x_first, offset = offset_first, x_unit = x_unit_first;
        float totals[M][2] = {};
#pragma unroll 1
        for (unsigned unit = warp; unit < units; unit += WARPS) {
            copies.wait(slot);
            stream_unit<BITS, KIND, M>(totals, b, place, slot, x, offset, x_unit);
            __syncwarp();
            copies.fetch(slot);
            x += WARPS * m * STREAM_X_BYTES;
            offset += WARPS * m * (OFFSETS * 4);
            x_unit += WARPS * m * (stream_parts(KIND) * 8);
            slot = slot + 1 == end ? 0 : slot + 1;
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
        if (has_norm && first == 0) {
            factor =
                stream_factor<WARPS>(squares + column * WARPS, inverse_cols, job.source.norm_eps);
        }
        if (first + out_tile < behind) {
            const float *from = met + out_tile * sides * turn_sums + column * 16 + lane % 16;
            const float sum = stream_sum<WARPS>(from, m * 16);
            const float up = job.task.has_up ? stream_sum<WARPS>(from + turn_sums, m * 16) : 0.0f;
            product_store(job.task, column, out_row(first), sum * factor, up * factor, residual);
        }
        residual = fetch_residual(behind);
    }
#endif
}

#endif
