/* Internal to kernels/cuda: the operations of ingot_backend_ops that serve the forward pass and
 * the statistics; kernels/backend.h says what each computes. */
#ifndef INGOT_CUDA_FORWARD_H
#define INGOT_CUDA_FORWARD_H

#include "kernels/cuda/cuda.h"

#include <cstdint>

/* rows.cu */
ingot_status cuda_embed(void *context, float *y, const ingot_weight_view *table,
                        const uint32_t *ids, uint64_t m, float scale);
ingot_status cuda_norm(void *context, float *y, const float *x, const float *weight,
                       const float *bias, ingot_norm_kind kind, float eps, uint64_t m, uint64_t n);
ingot_status cuda_rotary(void *context, float *x, uint64_t first, uint64_t period,
                         const double *inverse_frequency, float scale, uint64_t m, uint64_t heads,
                         uint64_t head_dim, uint64_t rotary_dim);
ingot_status cuda_activate(void *context, float *gate, const float *up, ingot_activation kind,
                           uint64_t n);
ingot_status cuda_add(void *context, float *y, const float *x, float scale, uint64_t n);

/* linear.cu */
ingot_status cuda_linear(void *context, float *y, const ingot_weight_view *w, const float *bias,
                         const float *x, uint64_t m);

/* attention.cu */
ingot_status cuda_attention(void *context, float *out, const float *q, const float *k,
                            const float *v, const ingot_attention *shape);

/* gram.cu */
ingot_status cuda_gram(void *context, float *gram, double *magnitude, uint64_t *dropped,
                       const float *x, uint64_t m, uint64_t n);
ingot_status cuda_drift(void *context, float *out, const float *a, const float *b, const float *x,
                        uint64_t m, uint64_t p, uint64_t n);

/* score.cu */
ingot_status cuda_distance(void *context, double *out, const float *a, const float *b, uint64_t n);
ingot_status cuda_inner(void *context, double *out, const float *a, const float *b, uint64_t n);
ingot_status cuda_score(void *context, double *nll, uint32_t *best, const float *logits,
                        const uint32_t *targets, uint64_t m, uint64_t vocab);
ingot_status cuda_draw(void *context, uint32_t *next, const double *u, const float *logits,
                       uint64_t m, uint64_t vocab);
ingot_status cuda_divergence(void *context, double *kl, const float *p, const float *q, uint64_t m,
                             uint64_t vocab);
ingot_status cuda_divergence_backward(void *context, float *q, const float *p, float share,
                                      uint64_t m, uint64_t vocab);

/* measure.cu */
ingot_status cuda_measure_read(void *context, double *bytes_per_second);
ingot_status cuda_measure_product(void *context, struct ingot_measured *out,
                                  const struct ingot_measure_shape *shape, uint64_t seed);

/* Rows of x from which a product is worth an unpacked copy of the weights and a call of cuBLAS. */
#define CUDA_PRODUCT_ROWS 16

/* ---- activations in binary16 (half.cu) --------------------------------------------------------
 */

/* Powers of two that values are divided by on their way to binary16 when nothing speaks against it:
 * activations and weights as models have them then keep all bits of all but the smallest. */
#define CUDA_HALF_USUAL   (-2)
#define CUDA_WEIGHT_USUAL (-8)

/* Activations rounded to binary16, divided by 2^CUDA_HALF_USUAL, or by the power of two that brings
 * the largest finite magnitude into range. */
typedef struct cuda_half_copy {
    __half *values;       /* [m][stride], columns behind n are zero */
    uint64_t stride;      /* n rounded up to a multiple of 8: products want 16-byte rows */
    const float *unscale; /* device: what products are multiplied by */
} cuda_half_copy;

/* The copy of x[m][n]; made once as long as x is not written, since several products and the
 * statistics read the same input.  Valid until the next call. */
ingot_status cuda_half_of(ingot_cuda *cuda, cuda_half_copy *out, const float *x, uint64_t m,
                          uint64_t n);
/* values[m][n rounded up to a multiple of 8] = the same of another input, or of x - minus where
 * that is not NULL, for products of two: not kept.  Its factor is scalars->unscale_aside. */
ingot_status cuda_half_aside(const ingot_cuda *cuda, __half *values, const float *x,
                             const float *minus, uint64_t m, uint64_t n);
/* To be called by every operation that writes device memory: forgets a copy of that range. */
void cuda_written(ingot_cuda *cuda, const void *memory, uint64_t bytes);

/* For operations that write activations and make the copy on the way: *values has room for
 * `count` of them (a multiple of 8), divided by 2^CUDA_HALF_USUAL, and scalars->half is to become
 * the range of the activations.  cuda_half_end
 * follows in the stream and scales what does not fit; x then has a copy, which serves any n that is
 * a multiple of 8. */
ingot_status cuda_half_begin(ingot_cuda *cuda, __half **values, uint64_t count);
ingot_status cuda_half_end(ingot_cuda *cuda, const float *x, uint64_t count);

/* c (+)= alpha op(a) op(b) on tensor cores with FP32 sums, in the way of BLAS: matrices are stored
 * column by column, strides lead from one column to the next. */
typedef struct cuda_half_gemm {
    bool is_a_transposed, is_b_transposed;
    uint64_t rows, columns, depth; /* of op(a): rows x depth, of op(b): depth x columns */
    const __half *a;
    uint64_t a_stride;
    const __half *b;
    uint64_t b_stride;
    const float *alpha; /* device */
    bool adds;
    float *c;
    uint64_t c_stride;
} cuda_half_gemm;
ingot_status cuda_half_multiply(const ingot_cuda *cuda, const cuda_half_gemm *job);

/* out[rows][stride] = rows first .. of a view in binary16, stride its columns rounded up to a
 * multiple of 8; scalars->alpha becomes what a product with the copy at hand is multiplied by
 * (linear.cu). */
ingot_status cuda_unpack_half(const ingot_cuda *cuda, __half *out, const ingot_weight_view *w,
                              uint64_t first, uint64_t rows, uint64_t stride);

/* ---- what kernels share ------------------------------------------------------------------------
 */

#ifdef __CUDACC__

/* The exponent of two to divide values by: `usual`, unless the largest would then overflow or fall
 * where bits are lost.  Bounded, so that the power is a normal number. */
__host__ __device__ static inline int cuda_exponent_of(float largest, int usual) {
    const int exponent = largest != 0.0f ? ilogbf(largest) : usual;
    const int needed = exponent - 14 > -120 ? exponent - 14 : -120;
    return exponent - usual >= -2 && exponent - usual < 15 ? usual : needed;
}
__device__ static inline int cuda_half_exponent(unsigned largest_bits, int usual) {
    return cuda_exponent_of(__uint_as_float(largest_bits), usual);
}

/* 2^exponent, |exponent| <= 126 */
__device__ static inline float cuda_power_of_two(int exponent) {
    return __uint_as_float((unsigned)(127 + exponent) << 23);
}

/* The range of one value joins that of others. */
__device__ static inline void cuda_range_add(ingot_cuda_range *range, float value) {
    const unsigned bits = __float_as_uint(value) & 0x7fffffffu;
    if (bits < 0x7f800000u) {
        range->largest = max(range->largest, bits);
    } else {
        range->has_special = 1;
    }
}

/* The ranges of a warp join *out; every lane must call. */
__device__ static inline void cuda_range_store(ingot_cuda_range *out, ingot_cuda_range range) {
    for (int lane = 16; lane > 0; lane /= 2) {
        range.largest = max(range.largest, __shfl_xor_sync(0xffffffffu, range.largest, lane));
        range.has_special |= __shfl_xor_sync(0xffffffffu, range.has_special, lane);
    }
    if (threadIdx.x % 32 == 0) {
        if (range.largest > out->largest) { /* a stale value costs an operation, no more */
            atomicMax(&out->largest, range.largest);
        }
        if (range.has_special != 0) {
            atomicOr(&out->has_special, 1u);
        }
    }
}

template <typename T> __host__ __device__ static inline bool cuda_is_aligned(const T *pointer) {
    return (reinterpret_cast<uintptr_t>(pointer) & 15) == 0;
}

#endif

#endif
