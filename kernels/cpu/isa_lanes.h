/* Sixteen floats or eight doubles at a time, whatever the width of the registers.
 *
 * Every sum that depends on its order runs over these lanes and ends in one fixed tree, so levels
 * v3 and v4, which both contract a * b + c into one rounding, agree bit for bit.  Included by
 * isa_*.c alone, which are compiled once per level; everything here is static. */
#ifndef INGOT_ISA_LANES_H
#define INGOT_ISA_LANES_H

#include "kernels/cpu/cpu.h"

#include <immintrin.h>
#include <string.h>

#define ISA_JOIN_(a, b) a##b
#define ISA_JOIN(a, b)  ISA_JOIN_(a, b)
#define ISA_NAME(stem)  ISA_JOIN(stem, ISA) /* ISA: v2, v3 or v4, from the makefile */

#define INLINE static inline __attribute__((always_inline))

#define LANES 16u
#if defined(__AVX512F__)
#define NATIVE            16u /* floats in a register */
#define VEC_MAX(a, b)     ((vec_f32)_mm512_max_ps((__m512)(a), (__m512)(b)))
#define VEC_MIN(a, b)     ((vec_f32)_mm512_min_ps((__m512)(a), (__m512)(b)))
#define VEC_MAX_F64(a, b) ((vec_f64)_mm512_max_pd((__m512d)(a), (__m512d)(b)))
#elif defined(__AVX2__)
#define NATIVE            8u
#define VEC_MAX(a, b)     ((vec_f32)_mm256_max_ps((__m256)(a), (__m256)(b)))
#define VEC_MIN(a, b)     ((vec_f32)_mm256_min_ps((__m256)(a), (__m256)(b)))
#define VEC_MAX_F64(a, b) ((vec_f64)_mm256_max_pd((__m256d)(a), (__m256d)(b)))
#else
#define NATIVE            4u
#define VEC_MAX(a, b)     ((vec_f32)_mm_max_ps((__m128)(a), (__m128)(b)))
#define VEC_MIN(a, b)     ((vec_f32)_mm_min_ps((__m128)(a), (__m128)(b)))
#define VEC_MAX_F64(a, b) ((vec_f64)_mm_max_pd((__m128d)(a), (__m128d)(b)))
#endif
#define PARTS (LANES / NATIVE)

typedef float vec_f32 __attribute__((vector_size(4 * NATIVE)));
typedef int32_t vec_i32 __attribute__((vector_size(4 * NATIVE)));
typedef uint32_t vec_u32 __attribute__((vector_size(4 * NATIVE)));
typedef double vec_f64 __attribute__((vector_size(4 * NATIVE)));
typedef int64_t vec_i64 __attribute__((vector_size(4 * NATIVE)));
typedef uint64_t vec_u64 __attribute__((vector_size(4 * NATIVE)));
typedef float vec_half __attribute__((vector_size(2 * NATIVE)));

typedef struct lanes {
    vec_f32 part[PARTS];
} lanes;
typedef struct lanes64 { /* 8 doubles */
    vec_f64 part[PARTS];
} lanes64;

/* Loops over parts are unrolled completely: a lanes value lives in registers. */
#define EACH_PART(p) _Pragma("GCC unroll 4") for (unsigned p = 0; p < PARTS; p++)

INLINE lanes lanes_set(float value) {
    lanes r;
    EACH_PART(p) {
        r.part[p] = (vec_f32){0} + value;
    }
    return r;
}

/* Loads and stores go register by register: a copy of the whole struct would be made in smaller
 * pieces through the stack, and reading those back at full width stalls. */
INLINE lanes lanes_load(const float *x) {
    lanes r;
    EACH_PART(p) {
        memcpy(&r.part[p], x + p * NATIVE, sizeof r.part[p]);
    }
    return r;
}

/* The first n < 16 of x, the rest `fill`. */
INLINE lanes lanes_load_tail(const float *x, uint64_t n, float fill) {
    float buffer[LANES];
    for (unsigned i = 0; i < LANES; i++) {
        buffer[i] = i < n ? x[i] : fill;
    }
    return lanes_load(buffer);
}

INLINE void lanes_store(float *y, lanes a) {
    EACH_PART(p) {
        memcpy(y + p * NATIVE, &a.part[p], sizeof a.part[p]);
    }
}

INLINE void lanes_store_tail(float *y, lanes a, uint64_t n) {
    float buffer[LANES];
    lanes_store(buffer, a);
    memcpy(y, buffer, n * sizeof(float));
}

INLINE lanes lanes_add(lanes a, lanes b) {
    EACH_PART(p) {
        a.part[p] = a.part[p] + b.part[p];
    }
    return a;
}

INLINE lanes lanes_mul(lanes a, lanes b) {
    EACH_PART(p) {
        a.part[p] = a.part[p] * b.part[p];
    }
    return a;
}

INLINE lanes lanes_div(lanes a, lanes b) {
    EACH_PART(p) {
        a.part[p] = a.part[p] / b.part[p];
    }
    return a;
}

/* a b + c, one rounding where the level has it */
INLINE lanes lanes_fma(lanes a, lanes b, lanes c) {
    EACH_PART(p) {
        c.part[p] = a.part[p] * b.part[p] + c.part[p];
    }
    return c;
}

INLINE lanes lanes_max(lanes a, lanes b) {
    EACH_PART(p) {
        a.part[p] = VEC_MAX(a.part[p], b.part[p]);
    }
    return a;
}

INLINE lanes lanes_abs(lanes a) {
    EACH_PART(p) {
        a.part[p] = (vec_f32)((vec_u32)a.part[p] & 0x7fffffffu);
    }
    return a;
}

/* The first halvings of a sum: i + (i + 8), then i + (i + 4). */
INLINE __m128 lanes_quarter(lanes a) {
#if defined(__AVX512F__)
    const __m512 all = (__m512)a.part[0];
    const __m256 half = _mm512_castps512_ps256(all) + _mm512_extractf32x8_ps(all, 1);
    return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
#elif defined(__AVX2__)
    const __m256 half = (__m256)(a.part[0] + a.part[1]);
    return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
#else
    return (__m128)((a.part[0] + a.part[2]) + (a.part[1] + a.part[3]));
#endif
}

/* Halves added to halves: i + (i + 8), then i + (i + 4), i + (i + 2), i + (i + 1). */
INLINE float lanes_sum(lanes a) {
    const __m128 quarter = lanes_quarter(a);
    const __m128 pair = quarter + _mm_movehl_ps(quarter, quarter);
    return pair[0] + pair[1];
}

/* lanes_sum of four at once, the same bits. */
INLINE void lanes_sum_4(float *sums, lanes a, lanes b, lanes c, lanes d) {
    const __m128 qa = lanes_quarter(a), qb = lanes_quarter(b);
    const __m128 qc = lanes_quarter(c), qd = lanes_quarter(d);
    const __m128 ab = _mm_unpacklo_ps(qa, qb) + _mm_unpackhi_ps(qa, qb);
    const __m128 cd = _mm_unpacklo_ps(qc, qd) + _mm_unpackhi_ps(qc, qd);
    _mm_storeu_ps(sums, _mm_movelh_ps(ab, cd) + _mm_movehl_ps(cd, ab));
}

INLINE float lanes_maximum(lanes a) {
    float v[LANES];
    lanes_store(v, a);
    for (unsigned i = 1; i < LANES; i++) {
        v[0] = v[i] > v[0] ? v[i] : v[0];
    }
    return v[0];
}

/* exp, error below 1.5 units in the last place where the result is normal; 0 below exp(-87.33),
 * held at exp(88.37) above; NaN stays NaN.  2^n exp(r) with |r| <= ln 2 / 2 and the Taylor
 * polynomial of degree 7, whose remainder is 5e-9. */
INLINE vec_f32 vec_exp(vec_f32 x) {
    const vec_f32 zero = {0};
    const vec_f32 lowest = zero - 87.33654f, highest = zero + 88.37626f;
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    vec_f32 v = VEC_MAX(lowest, VEC_MIN(highest, x)); /* second operand is given back for NaN */
    const vec_f32 t = v * 1.44269504f + magic;
    const vec_f32 n = t - magic;
    v = v - n * 0.693359375f; /* ln 2 in two pieces, the first exact times n */
    v = v + n * 2.12194440e-4f;
    vec_f32 p = zero + 1.98412698e-4f;
    p = p * v + 1.38888889e-3f;
    p = p * v + 8.33333333e-3f;
    p = p * v + 4.16666667e-2f;
    p = p * v + 1.66666667e-1f;
    p = p * v + 0.5f;
    p = p * (v * v) + v;
    p = p + 1.0f;
    const vec_u32 power = ((vec_u32)t << 23) + 0x3f800000u;
    p = p * (vec_f32)power;
    return (vec_f32)((vec_u32)p & ~(vec_u32)(x < lowest));
}

INLINE lanes lanes_exp(lanes a) {
    EACH_PART(p) {
        a.part[p] = vec_exp(a.part[p]);
    }
    return a;
}

/* ---- eight doubles ---------------------------------------------------------------------- */

INLINE lanes64 lanes64_set(double value) {
    lanes64 r;
    EACH_PART(p) {
        r.part[p] = (vec_f64){0} + value;
    }
    return r;
}

INLINE lanes64 lanes64_load(const double *x) {
    lanes64 r;
    EACH_PART(p) {
        memcpy(&r.part[p], x + p * (NATIVE / 2), sizeof r.part[p]);
    }
    return r;
}

INLINE void lanes64_store(double *y, lanes64 a) {
    EACH_PART(p) {
        memcpy(y + p * (NATIVE / 2), &a.part[p], sizeof a.part[p]);
    }
}

INLINE lanes64 lanes64_load_f32(const float *x) {
    lanes64 r;
    EACH_PART(p) {
        vec_half h;
        memcpy(&h, x + p * (NATIVE / 2), sizeof h);
        r.part[p] = __builtin_convertvector(h, vec_f64);
    }
    return r;
}

INLINE lanes64 lanes64_add(lanes64 a, lanes64 b) {
    EACH_PART(p) {
        a.part[p] = a.part[p] + b.part[p];
    }
    return a;
}

INLINE lanes64 lanes64_sub(lanes64 a, lanes64 b) {
    EACH_PART(p) {
        a.part[p] = a.part[p] - b.part[p];
    }
    return a;
}

INLINE lanes64 lanes64_fma(lanes64 a, lanes64 b, lanes64 c) {
    EACH_PART(p) {
        c.part[p] = a.part[p] * b.part[p] + c.part[p];
    }
    return c;
}

INLINE double lanes64_sum(lanes64 a) {
    double v[8];
    lanes64_store(v, a);
    for (unsigned width = 4; width > 0; width /= 2) {
        for (unsigned i = 0; i < width; i++) {
            v[i] += v[i + width];
        }
    }
    return v[0];
}

/* exp for x <= 0 (and a little above), relative error below 1e-15; 0 below exp(-708); NaN stays
 * NaN.  As vec_exp, Taylor polynomial of degree 12. */
INLINE vec_f64 vec_exp_f64(vec_f64 x) {
    const vec_f64 zero = {0};
    const vec_f64 lowest = zero - 708.0;
    const double magic = 6755399441055744.0; /* 1.5 * 2^52 */
    vec_f64 v = VEC_MAX_F64(lowest, x);
    const vec_f64 t = v * 1.4426950408889634 + magic;
    const vec_f64 n = t - magic;
    v = v - n * 0x1.62e42fefa0000p-1;
    v = v - n * 0x1.cf79abc9e3b39p-40;
    vec_f64 p = zero + 1.0 / 479001600.0;
    p = p * v + 1.0 / 39916800.0;
    p = p * v + 1.0 / 3628800.0;
    p = p * v + 1.0 / 362880.0;
    p = p * v + 1.0 / 40320.0;
    p = p * v + 1.0 / 5040.0;
    p = p * v + 1.0 / 720.0;
    p = p * v + 1.0 / 120.0;
    p = p * v + 1.0 / 24.0;
    p = p * v + 1.0 / 6.0;
    p = p * v + 0.5;
    p = p * (v * v) + v;
    p = p + 1.0;
    const vec_u64 power = ((vec_u64)t << 52) + 0x3ff0000000000000u;
    p = p * (vec_f64)power;
    return (vec_f64)((vec_u64)p & ~(vec_u64)(x < lowest));
}

INLINE lanes64 lanes64_exp(lanes64 a) {
    EACH_PART(p) {
        a.part[p] = vec_exp_f64(a.part[p]);
    }
    return a;
}

#endif
