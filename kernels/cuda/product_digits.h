/* Internal to kernels/cuda: codes as bytes, and x as digits of eight bits.
 *
 * Tensor cores multiply bytes exactly: a code of up to 8 bits is one as it is, and x is split into
 * three signed digits, which stand in columns of b that one row of x leaves free.  For eight codes
 * of 4 bits that takes 3 operations instead of the 7 that pairs of binary16 need, of 8 bits none,
 * of 3 bits 6.25 instead of 8.5, and for one row of x half as many products.  Codes of 4 bits
 * become 16 (q - 8) in as many operations, signed, so that symmetric weights have no zero point
 * left to take off the sums: what digits add up to need not be known (decision 0051).
 *
 * x is rounded to multiples of 2^(e - 21), where 2^e is the largest power of two that is not above
 * the largest |x| of the 128 columns of half a unit, or of a group of 32 or 64: |x| / 2^(e - 21) <
 * 2^22, and a binary16 that is not below 2^-11 of the largest is what it was.  Sums over them are
 * exact.  With an x that is not finite they have NaN as what digits count. */
#ifndef INGOT_CUDA_PRODUCT_DIGITS_H
#define INGOT_CUDA_PRODUCT_DIGITS_H

#include "kernels/cuda/product_unpack.h"

#define DIGITS          3 /* of x, the highest first */
#define DIGITS_EXPONENT 21

/* A chunk of 32 codes becomes 8 words of four bytes, two for each of four products of 32 columns of
 * the four lanes that share a row. */
template <int BITS> struct product_digits {
    static_assert(BITS == 3 || BITS == 4 || BITS == 8, "widths that have an order");
    static constexpr bool IS_SIGNED = BITS == 4; /* bytes are FACTOR (q - 8), or else q */
    static constexpr int FACTOR = IS_SIGNED ? 16 : 1;

    /* Where code k of a chunk stands: word position / 4, byte position % 4. */
    __host__ __device__ static constexpr int position(int k) {
        return BITS == 4 ? k / 8 * 8 + k % 2 * 4 + k % 8 / 2 : BITS == 8 ? k : k % 8 * 4 + k / 8;
    }

    /* (codes & 0xf0f0f0f0) ^ 0x80808080, which the compiler makes of two operations. */
    __device__ static unsigned raised(unsigned codes) {
        unsigned out;
        asm("lop3.b32 %0, %1, %2, %3, 0x6a;"
            : "=r"(out)
            : "r"(codes), "r"(0xf0f0f0f0u), "r"(0x80808080u));
        return out;
    }

    __device__ static void unpack(unsigned (&out)[8], const unsigned (&code)[BITS]) {
        if constexpr (BITS == 4) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                out[2 * i] = raised(code[i] << 4);
                out[2 * i + 1] = raised(code[i]);
            }
        } else if constexpr (BITS == 8) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                out[i] = code[i];
            }
        } else { /* eight codes are three bytes: low, middle and high of those of four such */
            const unsigned low =
                __byte_perm(__byte_perm(code[0], code[1], 0x0630), code[2], 0x5210);
            const unsigned middle =
                __byte_perm(__byte_perm(code[0], code[1], 0x0741), code[2], 0x6210);
            const unsigned high =
                __byte_perm(__byte_perm(code[0], code[1], 0x0052), code[2], 0x7410);
            out[0] = low & 0x07070707u;
            out[1] = low >> 3 & 0x07070707u;
            out[2] = (low >> 6 & 0x03030303u) | (middle << 2 & 0x04040404u);
            out[3] = middle >> 1 & 0x07070707u;
            out[4] = middle >> 4 & 0x07070707u;
            out[5] = (middle >> 7 & 0x01010101u) | (high << 1 & 0x06060606u);
            out[6] = high >> 2 & 0x07070707u;
            out[7] = high >> 5 & 0x07070707u;
        }
    }
};

/* The power of two that is one of x's units, 2^(e - 21), for the largest |x| as bits of a float. */
__device__ static inline float digits_unit(unsigned largest) {
    const unsigned exponent = max(largest >> 23, 64u); /* zeros, too */
    return __uint_as_float((exponent - DIGITS_EXPONENT) << 23);
}

/* What digits_unit is divided by. */
__device__ static inline float digits_inverse(unsigned largest) {
    const unsigned exponent = max(largest >> 23, 64u);
    return __uint_as_float((254 + DIGITS_EXPONENT - exponent) << 23);
}

/* x / unit as the low bits of a float: DIGITS_ROUND plus a number below 2^22. */
#define DIGITS_ROUND 12582912.0f /* 1.5 2^23 */

/* digit[d] = digits of four such numbers, one in a byte.  v + 2^7 + 2^15 + 2^23 has the digits of
 * v, each 128 more than it is, as its bytes; DIGITS_ROUND has 2^22 of 2^23 already. */
__device__ static inline void digits_of(unsigned (&digit)[DIGITS], const float (&rounded)[4]) {
    unsigned raised[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        raised[i] = __float_as_uint(rounded[i]) + 0x00408080u;
    }
    const unsigned low[2] = {__byte_perm(raised[0], raised[1], 0x5140),
                             __byte_perm(raised[2], raised[3], 0x5140)};
    digit[0] = __byte_perm(__byte_perm(raised[0], raised[1], 0x0062),
                           __byte_perm(raised[2], raised[3], 0x0062), 0x5410);
    digit[1] = __byte_perm(low[0], low[1], 0x7632);
    digit[2] = __byte_perm(low[0], low[1], 0x5410);
#pragma unroll
    for (int d = 0; d < DIGITS; d++) {
        digit[d] ^= 0x80808080u;
    }
}

/* sums[16][8] += a[16][32] b[32][8], b with a sign, a as IS_SIGNED says; a lane has rows lane / 4
 * and lane / 4 + 8 of sums as product_mma has. */
template <bool IS_SIGNED>
__device__ static inline void digits_mma(int (&sums)[4], unsigned a0, unsigned a1, unsigned a2,
                                         unsigned a3, unsigned b0, unsigned b1) {
    if constexpr (IS_SIGNED) {
        asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    } else {
        asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
            "{%8,%9}, {%0,%1,%2,%3};"
            : "+r"(sums[0]), "+r"(sums[1]), "+r"(sums[2]), "+r"(sums[3])
            : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
    }
}

#endif
