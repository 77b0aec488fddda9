/* Internal to kernels/cuda: codes as denormals of binary16, without a subtraction.
 *
 * A code q within the ten bits of the mantissa of a binary16, all else zero, is a multiple of
 * q 2^-24, and tensor cores multiply denormals exactly: one AND of a word makes a pair of factors.
 * The zero point is taken away from the sums, of which it is a multiple of the sum of x.  For eight
 * codes of 4 bits that takes 7 operations instead of 9, of 8 bits 8 instead of 10, of 3 bits 8.5
 * instead of 12.
 *
 * Tensor cores align what they add by exponents, and that of a denormal is 2^-14 whatever it holds:
 * a code in the lowest bits loses as many.  So codes are moved up.  Where they lie, codes of 3, 4
 * and 8 bits would take 6, 5 and 4 operations, but the relative error of a product was 1.2e-6, 6e-7
 * and 2.5e-7 against FP64, where it is 1.2e-7, 1.3e-7 and 2.2e-7 now (1.2e-7 for q - z). */
#ifndef INGOT_CUDA_PRODUCT_TINY_H
#define INGOT_CUDA_PRODUCT_TINY_H

#include "kernels/cuda/product_unpack.h"

/* A chunk of 32 codes becomes 16 pairs for eight products of a tensor core, two for each. */
template <int BITS> struct product_tiny {
    static_assert(BITS == 3 || BITS == 4 || BITS == 8, "widths that have an order");
    static constexpr float ONE = (BITS == 8 ? 4.0f : BITS == 4 ? 16.0f : 128.0f) * 0x1p-24f;

    /* Where code k of a chunk stands: pair position / 2, half position % 2. */
    __host__ __device__ static constexpr int position(int k) {
        if (BITS == 4) {
            return k / 8 * 8 + (k % 2 * 2 + k / 2 % 2) * 2 + k / 4 % 2;
        }
        if (BITS == 8) {
            return k / 4 * 4 + k % 2 * 2 + k / 2 % 2;
        }
        return k / 16 * 16 + k % 8 * 2 + k / 8 % 2;
    }

    /* Pairs of q ONE. */
    __device__ static void unpack(unsigned (&out)[16], const unsigned (&code)[BITS]) {
        if constexpr (BITS == 4) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                out[4 * i] = code[i] << 4 & 0x00f000f0u;
                out[4 * i + 1] = code[i] >> 4 & 0x00f000f0u;
                out[4 * i + 2] = code[i] & 0x00f000f0u;
                out[4 * i + 3] = code[i] >> 8 & 0x00f000f0u;
            }
        } else if constexpr (BITS == 8) {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                out[2 * i] = code[i] << 2 & 0x03fc03fcu;
                out[2 * i + 1] = code[i] >> 6 & 0x03fc03fcu;
            }
        } else { /* 16 codes are six bytes, eight of them three: codes k and k + 8 are a pair */
#pragma unroll
            for (int t = 0; t < 2; t++) {
                const unsigned head = __byte_perm(code[t], code[t + 1], t == 0 ? 0x4310 : 0x6532);
                const unsigned tail = __byte_perm(code[t], code[t + 1], t == 0 ? 0x5421 : 0x7643);
                const unsigned moved[8] = {head << 7, head << 4, head << 1, head >> 2,
                                           head >> 5, tail,      tail >> 3, tail >> 6};
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    out[8 * t + i] = moved[i] & 0x03800380u;
                }
            }
        }
    }
};

#endif
