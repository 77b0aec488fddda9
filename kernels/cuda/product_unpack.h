/* Internal to kernels/cuda: codes in registers become factors of tensor-core products.
 *
 * A lane owns 32 consecutive codes of a row, BITS words of the bit string (spec/quantization.md),
 * and turns them into 16 pairs of 16-bit floats, exactly q - z.  A product does not care for the
 * order of its columns as long as x has the same, so pairs are what is cheap to cut out: a half
 * of a word holds 16 / BITS codes, codes at the same place of both halves are a pair.  One LOP3
 * puts a pair into the mantissas of two floats of known exponent (2^10 for binary16, 2^7 for
 * bfloat16), one HFMA2 takes that power and the zero point away again; a code that is not at the
 * low end of the mantissa costs no shift, the factor of the HFMA2 brings it down.  Per weight
 * about 1.2 operations for 4 bits, 1.5 for 3, and an eighth for the product itself, where about 5
 * are to be had. */
#ifndef INGOT_CUDA_PRODUCT_UNPACK_H
#define INGOT_CUDA_PRODUCT_UNPACK_H

#include "kernels/cuda/element.h"

#define PRODUCT_CHUNK 32 /* codes that a lane takes at once */

/* The order in which the codes of a chunk come out. */
template <int BITS> struct product_order {
    static constexpr int IN_HALF = 16 / BITS;        /* codes in a half of a word */
    static constexpr int WORDS = 32 / (2 * IN_HALF); /* words with both halves full */
    static constexpr int PAIRS = WORDS * IN_HALF;    /* of those words; 16, or 15 ... */
    static constexpr bool HAS_REST = PAIRS < 16;     /* ... and codes 30 and 31 */
    __host__ __device__ static constexpr int first_code(int word) {
        return word < WORDS ? 2 * IN_HALF * word : 30;
    }
    __host__ __device__ static constexpr int in_half(int word) {
        return word < WORDS ? IN_HALF : 1;
    }
    /* where code k of a chunk stands: pair position / 2, half position % 2 */
    __host__ __device__ static constexpr int position(int k) {
        const int word = k / (2 * IN_HALF), in_word = k % (2 * IN_HALF);
        return word >= WORDS ? k : 2 * (word * IN_HALF + in_word % IN_HALF) + in_word / IN_HALF;
    }
};

/* The same for a width that is known when the kernel runs. */
__device__ static __noinline__ unsigned product_column_any(unsigned column, unsigned bits) {
    const unsigned in_half = 16 / bits, k = column % PRODUCT_CHUNK;
    const unsigned word = k / (2 * in_half), in_word = k % (2 * in_half);
    const unsigned at = word >= PRODUCT_CHUNK / (2 * in_half)
                            ? k
                            : 2 * (word * in_half + in_word % in_half) + in_word / in_half;
    return column - k + at;
}

/* 0: columns in their own order. */
__device__ static inline unsigned product_column(unsigned column, unsigned bits) {
    return bits == 0   ? column
           : bits == 4 ? (column & ~7u) + column % 4 * 2 + column / 4 % 2
                       : product_column_any(column, bits);
}

/* Tiles, for products of warpgroups: of x in the order of codes, the 128 columns of a step are
 * eight products of 16 rows of b.  Those of a chunk of 32 that a lane multiplies together, four by
 * four, stand two by two in both halves of such a product, beside those of the three other chunks:
 * [step][product][half][rows of x][8].  Where column `column` of row `row` lies, in elements. */
__host__ __device__ static inline unsigned product_tile_at(unsigned rows, unsigned row,
                                                           unsigned column) {
    const unsigned in_step = column % 128, chunk = in_step / PRODUCT_CHUNK;
    const unsigned place = in_step % PRODUCT_CHUNK, product = place / 4, half = place / 2 % 2;
    return ((column / 128 * 8 + product) * 2 + half) * rows * 8 + row * 8 + chunk * 2 + place % 2;
}

/* COUNT columns from `column` on of row `row` to a tile of `rows` rows in the order of codes of
 * `bits` bits; column is a multiple of COUNT, 2 or 4. */
template <unsigned COUNT>
__device__ static inline void product_put_columns(__half *tile, unsigned bits, unsigned rows,
                                                  unsigned row, unsigned column,
                                                  const __half (&value)[COUNT]) {
    if (bits == 4) { /* every second place: in one half of a product after the other */
        __half *to = tile + product_tile_at(rows, row, product_column(column, 4));
#pragma unroll
        for (unsigned k = 0; k < COUNT; k++) {
            to[k * rows * 8] = value[k];
        }
        return;
    }
#pragma unroll
    for (unsigned k = 0; k < COUNT; k++) {
        tile[product_tile_at(rows, row, product_column_any(column + k, bits))] = value[k];
    }
}

#define PRODUCT_TILE 64u /* rows of x in a tile, but for the last one or the only one */

/* The tile that row `row` of m is in, where the last has `last` rows.  Tiles are one behind the
 * other, each with all its columns. */
typedef struct product_tile {
    unsigned first, rows;
} product_tile;

__host__ __device__ static inline product_tile product_tile_of(unsigned row, unsigned m,
                                                               unsigned last) {
    product_tile tile;
    tile.first = row / PRODUCT_TILE * PRODUCT_TILE;
    tile.rows = tile.first + PRODUCT_TILE <= m ? PRODUCT_TILE : last;
    return tile;
}

/* The rows of all of them. */
static inline uint64_t product_tile_rows(uint64_t m, unsigned last) {
    return (m - 1) / PRODUCT_TILE * PRODUCT_TILE + last;
}

/* The floats into whose mantissas codes are put. */
template <typename T> struct product_float;
template <> struct product_float<__half> {
    typedef __half2 pair;
    static constexpr unsigned BASE = 0x64006400u; /* 2^10 twice: bit i of the mantissa is 2^i */
    static constexpr int MANTISSA = 10;
    __device__ static pair of(float x) {
        return __float2half2_rn(x);
    }
};
template <> struct product_float<__nv_bfloat16> {
    typedef __nv_bfloat162 pair;
    static constexpr unsigned BASE = 0x43004300u; /* 2^7 twice */
    static constexpr int MANTISSA = 7;
    __device__ static pair of(float x) {
        return __float2bfloat162_rn(x);
    }
};

template <typename P> __device__ static inline unsigned bits_of(P pair) {
    unsigned bits;
    memcpy(&bits, &pair, sizeof bits);
    return bits;
}

template <typename P> __device__ static inline P pair_of(unsigned bits) {
    P pair;
    memcpy(&pair, &bits, sizeof pair);
    return pair;
}

/* bfloat16 does not hold a power of two and 8 bits below it. */
template <int BITS, typename T> constexpr bool product_is_wide = BITS > product_float<T>::MANTISSA;

/* What takes the zero point away, for one row and group. */
template <int BITS, typename T> struct product_zero {
    /* codes whose places in a half differ by less than PLACES need no shift */
    static constexpr int PLACES = product_is_wide<BITS, T> ? 1 : product_float<T>::MANTISSA / BITS;
    unsigned term[PLACES];
    __device__ void set(unsigned zero) {
        typedef typename product_float<T>::pair pair;
        if (product_is_wide<BITS, T>) {
            term[0] = __float_as_uint(-(8388608.0f + (float)zero));
            return;
        }
        const float base = (float)(1 << product_float<T>::MANTISSA);
        const pair based = pair_of<pair>((zero * 0x00010001u) | product_float<T>::BASE);
#pragma unroll
        for (int i = 0; i < PLACES; i++) {
            const float lowered = base / (float)(1 << (i * BITS));
            term[i] = bits_of(
                __hfma2(based, product_float<T>::of(-1.0f), product_float<T>::of(base - lowered)));
        }
    }
};

__device__ static inline unsigned product_and_or(unsigned a, unsigned mask, unsigned base) {
    unsigned out;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(out) : "r"(a), "r"(mask), "r"(base));
    return out;
}

/* The codes at place `at` of both halves of `word`, less the zero point. */
template <int BITS, typename T>
__device__ static inline unsigned product_pair(unsigned word, int at,
                                               const product_zero<BITS, T> &zero) {
    typedef typename product_float<T>::pair pair;
    if (product_is_wide<BITS, T>) { /* 8 bits: by way of FP32, whose upper half is exact */
        const float low = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + at)) +
                          __uint_as_float(zero.term[0]);
        const float high = __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7442 + at)) +
                           __uint_as_float(zero.term[0]);
        return __byte_perm(__float_as_uint(low), __float_as_uint(high), 0x7632);
    }
    constexpr int PLACES = product_zero<BITS, T>::PLACES;
    const int shift = at / PLACES * PLACES * BITS, place = at % PLACES;
    const unsigned mask = ((1u << BITS) - 1) * 0x00010001u << (place * BITS);
    const unsigned based = product_and_or(word >> shift, mask, product_float<T>::BASE);
    if (place == 0) {
        return bits_of(__hadd2(pair_of<pair>(based), pair_of<pair>(zero.term[0])));
    }
    const float factor = 1.0f / (float)(1 << (place * BITS));
    return bits_of(__hfma2(pair_of<pair>(based), product_float<T>::of(factor),
                           pair_of<pair>(zero.term[place])));
}

/* 16 pairs from the BITS words of a chunk: out[next] = pair(word, at, next), of the codes at place
 * `at` of both halves of a word. */
template <int BITS, typename Pair>
__device__ static inline void product_unpack_pairs(unsigned (&out)[16],
                                                   const unsigned (&code)[BITS], const Pair &pair) {
    typedef product_order<BITS> order;
    int next = 0;
#pragma unroll
    for (int m = 0; m < order::WORDS + order::HAS_REST; m++) {
        constexpr int SPREAD = 16 - BITS * order::IN_HALF; /* bits that are missing in a half */
        const int bit = order::first_code(m) * BITS, count = order::in_half(m);
        const int low = bit / 32, high = low + 1 < BITS ? low + 1 : low;
        unsigned word = code[low];
        if (bit % 32 != 0) {
            word = __funnelshift_r(code[low], code[high], bit % 32);
        }
        if (SPREAD != 0 || m == order::WORDS) {
            word = (word & 0xffffu) | ((word << (16 - BITS * count)) & 0xffff0000u);
        }
#pragma unroll
        for (int at = 0; at < count; at++) {
            out[next] = pair(word, at, next);
            next++;
        }
    }
}

/* The first 16 / ZEROS pairs have zero[0] and so on. */
template <int BITS, typename T, int ZEROS>
__device__ static inline void product_unpack(unsigned (&out)[16], const unsigned (&code)[BITS],
                                             const product_zero<BITS, T> (&zero)[ZEROS]) {
    product_unpack_pairs<BITS>(out, code, [&](unsigned word, int at, int next) {
        return product_pair<BITS, T>(word, at, zero[next / (16 / ZEROS)]);
    });
}

/* What product_unpack_small takes for a zero point: -z 2^-9 twice. */
__device__ static inline unsigned product_small_zero(unsigned zero) {
    const __half2 small = pair_of<__half2>(zero * 0x00010001u); /* z 2^-24 */
    return bits_of(__hmul2(small, __float2half2_rn(-0x1p15f)));
}

/* Pairs of binary16 of PRODUCT_SMALL (q - z), exactly.  A code at the low end of a binary16 is one
 * without an exponent, q 2^-24, and one HFMA2 makes the rest: no registers but the zero point's. */
#define PRODUCT_SMALL 0x1p-9f
template <int BITS>
__device__ static inline void product_unpack_small(unsigned (&out)[16],
                                                   const unsigned (&code)[BITS], unsigned zero) {
    constexpr int PLACES = product_float<__half>::MANTISSA / BITS;
    product_unpack_pairs<BITS>(out, code, [&](unsigned word, int at, int) {
        const int shift = at / PLACES * PLACES * BITS, up = at % PLACES * BITS;
        const unsigned codes = word >> shift & (((1u << BITS) - 1) * 0x00010001u << up);
        return bits_of(__hfma2(pair_of<__half2>(codes),
                               __float2half2_rn(32768.0f / (float)(1u << up)),
                               pair_of<__half2>(zero)));
    });
}

/* sums[16][8] += a[16][16] b[16][8]; a lane holds rows lane / 4 and lane / 4 + 8 of sums in two
 * columns, 2 (lane % 4) and the next: row, column | row, column + 1 | row + 8 ... */
template <typename T>
__device__ static inline void product_mma(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2,
                                          unsigned a3, unsigned b0, unsigned b1);
template <>
__device__ inline void product_mma<__half>(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2,
                                           unsigned a3, unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
template <>
__device__ inline void product_mma<__nv_bfloat16>(float (&sums)[4], unsigned a0, unsigned a1,
                                                  unsigned a2, unsigned a3, unsigned b0,
                                                  unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* b of two such products, of columns 0 to 7 and 8 to 15: b[0], b[1] and b[2], b[3].  Lane i says at
 * which address in shared memory 16 bytes are: eight columns are eight lanes', first those of the
 * upper half of b, then those of the lower. */
__device__ static inline void product_load_b(unsigned (&b)[4], unsigned at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(b[0]), "=r"(b[1]), "=r"(b[2]), "=r"(b[3])
                 : "r"(at));
}

#endif
