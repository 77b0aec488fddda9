/* Internal to kernels/cuda: y that a product hands on to the one behind it (ingot_product_next),
 * and what that one makes of it.
 *
 * A norm needs whole rows, of which a block has a part.  So blocks leave sums of squares of their
 * parts beside y times the weights of the norm, and the product behind, whose sums are linear in
 * x, multiplies them by the factor that follows from all. */
#ifndef INGOT_CUDA_PRODUCT_NEXT_H
#define INGOT_CUDA_PRODUCT_NEXT_H

#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/product_unpack.h"

/* What lies at `from` if it is there, else `other`; no branch, behind which the compiler would take
 * what a warp has in common for what a thread has. */
__device__ static inline float product_load_if(const float *from, bool is_there, float other) {
    float value = other;
    asm volatile("{\n.reg .pred p;\nsetp.ne.u32 p, %2, 0;\n@p ld.global.cg.f32 %0, [%1];\n}"
                 : "+f"(value)
                 : "l"(from), "r"((unsigned)is_there)
                 : "memory");
    return value;
}

/* What member `own` of `members` threads adds up of the squares of a row: every `members`th part.
 * Zero behind the m rows there are. */
__device__ static inline float product_known_part(const product_known &known, unsigned row,
                                                  unsigned m, unsigned own, unsigned members) {
    float sum = 0.0f;
#pragma unroll 4
    for (unsigned part = 0; part < known.parts; part += members) {
        sum += product_load_if(known.sums + row * (known.parts + 1) + part + own,
                               part + own < known.parts && row < m, 0.0f);
    }
    return sum;
}

/* The power of two times which x came. */
__device__ static inline float product_known_power(const product_known &known, unsigned row,
                                                   unsigned m) {
    return product_load_if(known.sums + row * (known.parts + 1) + known.parts,
                           known.is_factor && row < m, 1.0f);
}

/* From the sum of the squares of a row: what y is multiplied by, or the power of two times which it
 * is handed on. */
__device__ static inline float product_known_factor(const product_known &known, float square,
                                                    float power) {
    const float root = sqrtf(square / (float)known.cols + known.eps);
    if (known.is_factor) { /* values that are not finite were cut off (finite_half) */
        return isfinite(root) ? 1.0f / (root * power) : __uint_as_float(0x7fffffffu);
    }
    const int exponent = (int)(__float_as_uint(root) >> 23 & 0xff); /* of 2^-5 / root: */
    return __uint_as_float((unsigned)max(1, min(2 * 127 - 5 - exponent, 200)) << 23);
}

#endif
