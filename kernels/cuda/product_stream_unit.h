/* Internal to kernels/cuda: what a warp of product_stream.h does with a unit of 16 rows and 256
 * columns that has come to shared memory.
 *
 * A lane has 64 adjacent columns of a row, its three neighbours the others of the unit, which are
 * of several groups, while a product of the tensor core adds up what the four lanes hold.  But it
 * has eight columns for a row of x: with groups of 128 columns and more, columns 4h to 4h + 2 of b
 * are the digits of that row (product_digits.h) in half h of the unit, with zeros for the lanes of
 * the other half.  With groups of 64 and of 32 they are those of half h of half s of the unit, in
 * two products, one for each s; with groups of 32 the sums of both chunks of a lane stand by
 * themselves. */
#ifndef INGOT_CUDA_PRODUCT_STREAM_UNIT_H
#define INGOT_CUDA_PRODUCT_STREAM_UNIT_H

#include "kernels/cuda/product_digits.h"
#include "kernels/cuda/product_stream_copies.h"

#define STREAM_X_BYTES (STREAM_UNIT * DIGITS)
#define STREAM_PIECE   (64 * DIGITS) /* bytes of x of 64 columns, 16 of each lane of a row */
#define STREAM_OFFSETS 4             /* of a group: one for each column of b */

/* Offsets of a unit of a row of x: where codes have no sign, or zero points of their own. */
__host__ __device__ constexpr unsigned stream_offsets(unsigned bits, stream_kind kind) {
    const bool is_signed = bits == 4 && product_digits<4>::IS_SIGNED;
    return is_signed && !stream_has_zeros(kind) ? 0 : 2 * stream_parts(kind) * STREAM_OFFSETS;
}

#if INGOT_SM90A

/* Where x is in shared memory. */
typedef struct stream_x {
    uint8_t *digits; /* [unit][m][STREAM_X_BYTES] */
    int *offsets;    /* [unit][m][half][group of it][STREAM_OFFSETS]: sums of digits; of symmetric
                        weights times what takes the middle off the sums of codes */
    float *units;    /* [unit][m][half][group of it]: what digits count */
} stream_x;

/* ---- inputs ------------------------------------------------------------------------------------
 */

/* Chunk c of both rows of a lane: rows `at` and eight behind it. */
template <int BITS>
__device__ static inline void stream_take(unsigned (&code)[2][BITS], unsigned at, unsigned c) {
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
#pragma unroll
        for (unsigned i = 0; i < BITS / 4; i++) {
            const uint4 v = shared_read16((at ^ (c * (BITS / 4) + i) * 16) +
                                          8 * h * stream_slot<BITS>::BOX_ROW);
            code[h][4 * i] = v.x, code[h][4 * i + 1] = v.y;
            code[h][4 * i + 2] = v.z, code[h][4 * i + 3] = v.w;
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

    /* Chunk c of both rows, as bytes. */
    __device__ void unpack(unsigned (&word)[2][8], unsigned c) const {
        product_digits<BITS>::unpack(word[0], code[c][0]);
        product_digits<BITS>::unpack(word[1], code[c][1]);
    }
};

/* Where a lane finds what belongs to a unit of 16 rows, in shared memory. */
typedef struct stream_lane {
    unsigned codes, groups; /* in slot 0 of its warp */
    unsigned scale_bytes;   /* of a word, for __byte_perm: the scale, but with groups of 32, ... */
    unsigned zero_bytes;    /* ... and the zero point of the lane's first group */
    unsigned has_x[2]; /* whether the lane has x in its column of b, in the product of half s */
} stream_lane;

/* The lane's places where slot 0 of its warp has codes and groups there. */
template <int BITS, stream_kind KIND, bool IS_BOXED>
__device__ static inline stream_lane stream_place_of(unsigned codes, unsigned groups,
                                                     const product_matrix &w) {
    typedef stream_slot<BITS> layout;
    constexpr unsigned PARTS = stream_parts(KIND);
    const unsigned lane = threadIdx.x % 32, quarter = lane % 4, row = lane / 4, half = quarter / 2;
    const unsigned chunk = threadIdx.x / 32 * 8 + half * 4; /* of the warp's first unit */
    const unsigned group = row * w.groups + (chunk >> w.group_shift);
    const unsigned own =
        BITS == 3   ? quarter * (8 * BITS)
        : BITS == 4 ? (quarter * 2 ^ (IS_BOXED ? row : row % 2)) * 16
                    : half * (16 * layout::BOX_ROW) + ((quarter % 2 * 4 ^ half * 2) ^ row) * 16;
    /* Of b, the lane's row is a column; of sums, the lane has two columns: with several groups in
     * half s of a unit those of half `half` of it. */
    const bool has_digit = row % 4 < DIGITS;
    stream_lane out;
    out.codes = stream_keep(codes + row * layout::BOX_ROW + own);
    out.groups = stream_keep(groups + row * stream_groups<KIND>::ROW +
                             (PARTS == 1 ? half * stream_groups<KIND>::HALF : 0));
    out.scale_bytes = stream_keep((PARTS == 1 ? group % 2 : half) != 0 ? 0x4432u : 0x4410u);
    out.zero_bytes = 0x4440u + (PARTS == 1   ? group % 4
                                : PARTS == 2 ? (row * w.groups + half) % 4
                                             : half * 2);
    for (unsigned s = 0; s < 2; s++) {
        out.has_x[s] =
            has_digit && (PARTS == 1 ? row / 4 == half : row / 4 == quarter % 2 && s == half);
    }
    return out;
}

/* A lane's place in the digits of the warp's first unit. */
__device__ static inline unsigned stream_x_of(const stream_x &x, unsigned m) {
    const unsigned lane = threadIdx.x % 32, digit = min(lane / 4 % 4, DIGITS - 1u);
    return stream_keep(async_address(x.digits) + threadIdx.x / 32 * m * STREAM_X_BYTES +
                       digit * 64 + lane % 4 * 16);
}

/* The lane's columns of b in the offsets of the warp's first unit, of the first group that they are
 * of. */
template <int BITS, stream_kind KIND>
__device__ static inline unsigned stream_offsets_of(const stream_x &x, unsigned m) {
    const unsigned quarter = threadIdx.x % 4;
    return stream_keep(
        async_address(x.offsets) + threadIdx.x / 32 * m * (stream_offsets(BITS, KIND) * 4) +
        (stream_parts(KIND) == 4 ? quarter / 2 * 32 + quarter % 2 * 8 : quarter * 8));
}

/* And what digits count there. */
template <stream_kind KIND>
__device__ static inline unsigned stream_units_of(const stream_x &x, unsigned m) {
    constexpr unsigned PARTS = stream_parts(KIND);
    return stream_keep(async_address(x.units) + threadIdx.x / 32 * m * (PARTS * 8) +
                       threadIdx.x % 4 / 2 * (PARTS == 4 ? 8 : 4));
}

/* ---- sums --------------------------------------------------------------------------------------
 */

/* What zero points make of the sums of both rows of a lane; `at` are its offsets of a group, `zero`
 * the words with its zero points and `bytes` where they are in them. */
template <int BITS, stream_kind KIND>
__device__ static inline void stream_start(int (&sums)[4], unsigned at, const unsigned (&zero)[2],
                                           unsigned bytes) {
    typedef product_digits<BITS> digits;
    constexpr int OWN = digits::IS_SIGNED ? 1 << (BITS - 1) : 0; /* taken off already */
    const uint2 offset = shared_read8(at);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        int times = 1;
        if (stream_has_zeros(KIND)) {
            times = (OWN - (int)__byte_perm(zero[h], 0, bytes)) * digits::FACTOR;
        }
        sums[2 * h] = times * (int)offset.x, sums[2 * h + 1] = times * (int)offset.y;
    }
}

/* Of 16 codes of both rows of a lane, unpacked from `word` on, and its x. */
template <int BITS>
__device__ static inline void stream_multiply(int (&first)[4], int (&second)[4],
                                              const unsigned (&word)[2][8], int p, const uint4 &x) {
    constexpr bool IS_SIGNED = product_digits<BITS>::IS_SIGNED;
    digits_mma<IS_SIGNED>(first, word[0][4 * p], word[1][4 * p], word[0][4 * p + 1],
                          word[1][4 * p + 1], x.x, x.y);
    digits_mma<IS_SIGNED>(second, word[0][4 * p + 2], word[1][4 * p + 2], word[0][4 * p + 3],
                          word[1][4 * p + 3], x.z, x.w);
}

/* totals[row of x][row of W, and eight behind it] += what a lane has of the 256 columns of a unit,
 * times their scales; stream_total makes sums of it.  x, offsets, x_units: of the unit, as
 * stream_x_of and the others have it.  b: zeros in lanes without x.  Groups of 128 columns and
 * more. */
template <int BITS, stream_kind KIND, int M>
__device__ static inline void stream_unit_whole(float (&totals)[M][2], uint4 (&b)[M][4],
                                                const stream_lane &at, unsigned slot, unsigned x,
                                                unsigned offsets, unsigned x_units) {
    typedef stream_groups<KIND> groups;
    constexpr unsigned OFFSETS = stream_offsets(BITS, KIND);
    stream_codes<BITS> own;
    own.take(at.codes + slot * stream_slot<BITS>::CODES);
    const unsigned at_groups = at.groups + slot * groups::BYTES;
    unsigned scale[2], zero[2] = {};
    int sums[M][2][4] = {}; /* two chains */
    float x_unit[M];
    if constexpr (groups::HAS_ZEROS) {
#pragma unroll
        for (unsigned h = 0; h < 2; h++) {
            const uint2 both = shared_read8(at_groups + h * 8 * groups::ROW);
            scale[h] = both.x, zero[h] = both.y;
        }
    }
#pragma unroll
    for (int i = 0; i < M; i++) {
        if constexpr (OFFSETS != 0) {
            stream_start<BITS, KIND>(sums[i][0], offsets + i * (OFFSETS * 4), zero, at.zero_bytes);
        }
        x_unit[i] = __uint_as_float(shared_read4(x_units + i * 8));
    }
#pragma unroll
    for (int c = 0; c < 2; c++) {
        unsigned word[2][8];
        own.unpack(word, c);
#pragma unroll
        for (int p = 0; p < 2; p++) {
#pragma unroll
            for (int i = 0; i < M; i++) {
                uint4 &own_x = b[i][2 * c + p];
                stream_read_x(own_x, x + i * STREAM_X_BYTES + (2 * c + p) * STREAM_PIECE,
                              at.has_x[0]);
                stream_multiply<BITS>(sums[i][0], sums[i][1], word, p, own_x);
            }
        }
    }
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        if constexpr (!groups::HAS_ZEROS) {
            scale[h] = shared_read4(at_groups + h * 8 * groups::ROW);
        }
        const unsigned half = __byte_perm(scale[h], 0, at.scale_bytes);
        const float own_scale = __half2float(__ushort_as_half((unsigned short)half));
#pragma unroll
        for (int i = 0; i < M; i++) {
            const int high = sums[i][0][2 * h] + sums[i][1][2 * h];
            const int low = sums[i][0][2 * h + 1] + sums[i][1][2 * h + 1];
            totals[i][h] = fmaf((float)(high * 256 + low), own_scale * x_unit[i], totals[i][h]);
        }
    }
}

/* Words with the scales and the zero points of a lane: [half of the unit][row]. */
typedef struct stream_own_groups {
    unsigned scale[2][2], zero[2][2];
} stream_own_groups;

/* `at`: where the lane's rows have their groups in the slot; their words are read together. */
template <stream_kind KIND>
__device__ static inline stream_own_groups stream_read_groups(unsigned at) {
    typedef stream_groups<KIND> groups;
    const bool is_second = threadIdx.x % 4 >= 2; /* of its words of 32 bits */
    stream_own_groups out = {};
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        const unsigned row = at + h * 8 * groups::ROW;
        if constexpr (KIND == STREAM_64) {
            const uint2 v = shared_read8(row);
            out.scale[0][h] = v.x, out.scale[1][h] = v.y;
        } else if constexpr (KIND == STREAM_64_ZEROS) {
            const uint4 v = shared_read16(row);
            out.scale[0][h] = v.x, out.zero[0][h] = v.y;
            out.scale[1][h] = v.z, out.zero[1][h] = v.w;
        } else {
#pragma unroll
            for (unsigned s = 0; s < 2; s++) {
                if constexpr (groups::HAS_ZEROS) {
                    const uint4 v = shared_read16(row + s * groups::HALF);
                    out.scale[s][h] = is_second ? v.y : v.x, out.zero[s][h] = v.z;
                } else {
                    out.scale[s][h] = shared_read4(row + s * groups::HALF + (is_second ? 4 : 0));
                }
            }
        }
    }
    return out;
}

/* A scale in its word: with groups of 64 where `bytes` says, of 32 the first or the second. */
template <stream_kind KIND>
__device__ static inline float stream_scale(unsigned word, unsigned bytes, unsigned part) {
    if (stream_parts(KIND) == 2) {
        return __half2float(__ushort_as_half((unsigned short)__byte_perm(word, 0, bytes)));
    }
    const __half2 pair = *reinterpret_cast<const __half2 *>(&word);
    return part == 0 ? __low2float(pair) : __high2float(pair);
}

/* The same with groups of 64 or 32 columns. */
template <int BITS, stream_kind KIND, int M>
__device__ static inline void stream_unit_parts(float (&totals)[M][2], uint4 (&b)[M][4],
                                                const stream_lane &at, unsigned slot, unsigned x,
                                                unsigned offsets, unsigned x_units) {
    typedef stream_groups<KIND> groups;
    constexpr unsigned PARTS = stream_parts(KIND), OFFSETS = stream_offsets(BITS, KIND);
    /* of the two groups of a lane in half s, the one whose sums stand in round c: with 8 bits its
     * chunks come in turned order (stream_put) */
    const auto part_of = [](unsigned c, unsigned s) {
        return PARTS == 2 ? 0u : BITS == 8 && s == 1 ? 1 - c : c;
    };
    stream_codes<BITS> own;
    own.take(at.codes + slot * stream_slot<BITS>::CODES);
    const stream_own_groups group = stream_read_groups<KIND>(at.groups + slot * groups::BYTES);
    int sums[M][2][4];
#pragma unroll
    for (unsigned c = 0; c < 2; c++) {
#pragma unroll
        for (unsigned s = 0; s < 2 && (c == 0 || PARTS == 4); s++) {
            const unsigned bytes =
                PARTS == 2 ? at.zero_bytes ^ s * 2 : at.zero_bytes + part_of(c, s);
#pragma unroll
            for (int i = 0; i < M; i++) {
                if constexpr (OFFSETS != 0) {
                    const unsigned own_group = s * PARTS + part_of(c, s);
                    stream_start<BITS, KIND>(
                        sums[i][s], offsets + (i * OFFSETS + own_group * STREAM_OFFSETS) * 4,
                        group.zero[s], bytes);
                } else {
#pragma unroll
                    for (int k = 0; k < 4; k++) {
                        sums[i][s][k] = 0;
                    }
                }
            }
        }
        unsigned word[2][8];
        own.unpack(word, c);
#pragma unroll
        for (int p = 0; p < 2; p++) {
#pragma unroll
            for (int i = 0; i < M; i++) {
#pragma unroll
                for (int s = 0; s < 2; s++) {
                    uint4 &own_x = b[i][2 * p + s];
                    stream_read_x(own_x, x + i * STREAM_X_BYTES + (2 * c + p) * STREAM_PIECE,
                                  at.has_x[s]);
                    stream_multiply<BITS>(sums[i][s], sums[i][s], word, p, own_x);
                }
            }
        }
        if (c == 0 && PARTS == 2) {
            continue;
        }
#pragma unroll
        for (unsigned s = 0; s < 2; s++) {
            float x_unit[M];
#pragma unroll
            for (int i = 0; i < M; i++) {
                const unsigned own_group = i * (2 * PARTS) + s * PARTS + part_of(c, s);
                x_unit[i] = __uint_as_float(shared_read4(x_units + own_group * 4));
            }
#pragma unroll
            for (unsigned h = 0; h < 2; h++) {
                const float scale =
                    stream_scale<KIND>(group.scale[s][h], at.scale_bytes, part_of(c, s));
#pragma unroll
                for (int i = 0; i < M; i++) {
                    totals[i][h] = fmaf((float)(sums[i][s][2 * h] * 256 + sums[i][s][2 * h + 1]),
                                        scale * x_unit[i], totals[i][h]);
                }
            }
        }
    }
}

template <int BITS, stream_kind KIND, int M>
__device__ static inline void stream_unit(float (&totals)[M][2], uint4 (&b)[M][4],
                                          const stream_lane &at, unsigned slot, unsigned x,
                                          unsigned offsets, unsigned x_units) {
    if constexpr (stream_parts(KIND) == 1) {
        stream_unit_whole<BITS, KIND, M>(totals, b, at, slot, x, offsets, x_units);
    } else {
        stream_unit_parts<BITS, KIND, M>(totals, b, at, slot, x, offsets, x_units);
    }
}

/* The sum over the lanes of a row: of two columns of b each, whose first counts 2^8 times the
 * second; the second of three digits is digit 1, or nothing behind digit 2. */
__device__ static inline float stream_total(float own) {
    own *= threadIdx.x % 2 == 0 ? 256.0f : 1.0f / 256.0f;
    own += __shfl_xor_sync(0xffffffffu, own, 1);
    return own + __shfl_xor_sync(0xffffffffu, own, 2);
}

#endif

#endif
