/* Internal to kernels/cuda: single values on the device, and the size of a grid. */
#ifndef INGOT_CUDA_ELEMENT_H
#define INGOT_CUDA_ELEMENT_H

#include "kernels/cuda/cuda.h"

#include <cuda_bf16.h>

__device__ static inline float to_float(float x) {
    return x;
}
__device__ static inline float to_float(__half x) {
    return __half2float(x);
}
__device__ static inline float to_float(__nv_bfloat16 x) {
    return __bfloat162float(x);
}

template <typename T> __device__ static inline T from_float(float x);
template <> __device__ inline float from_float<float>(float x) {
    return x;
}
template <> __device__ inline __half from_float<__half>(float x) {
    return __float2half_rn(x);
}
template <> __device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
    return __float2bfloat16_rn(x);
}

/* Binary16 without infinities; NaN stays. */
__device__ static inline __half finite_half(float x) {
    const float largest = 65504.0f;
    return __float2half_rn(x > largest ? largest : x < -largest ? -largest : x);
}
/* The same; *peak: the largest magnitude so far. */
__device__ static inline __half finite_half(float x, float *peak) {
    *peak = fmaxf(*peak, fabsf(x));
    return finite_half(x);
}

/* x rounded to a float type and back. */
__device__ static inline float rounded_to(float x, ingot_dtype dtype) {
    return dtype == INGOT_F16    ? __half2float(__float2half_rn(x))
           : dtype == INGOT_BF16 ? __bfloat162float(__float2bfloat16_rn(x))
                                 : x;
}

/* kernels/quantize.h, ingot_scale_store */
__device__ static inline float cuda_scale_store(float scale, ingot_dtype dtype) {
    const float smallest = dtype == INGOT_F16 ? 0x1p-24f : 0x1p-100f;
    const float largest = dtype == INGOT_F16 ? 0x1p15f : 0x1p100f;
    const float stored = rounded_to(scale, dtype);
    if (!(fabsf(stored) >= smallest)) {
        return 0.0f;
    }
    return fabsf(stored) <= largest ? stored : copysignf(largest, scale);
}

/* kernels/quantize.h, ingot_outlier_store: of F16 or F32 */
__device__ static inline float cuda_outlier_store(float w, ingot_dtype dtype) {
    return dtype == INGOT_F16 ? __half2float(finite_half(w)) : w;
}

/* x to the 11 bits of TF32, to nearest: tensor cores may cut the rest off, and if they did so to E
 * and H alike every loss would be too small by 1e-3. */
__device__ static inline float rounded_to_tf32(float x) {
    const unsigned bits = (__float_as_uint(x) + 0x1000u) & 0xffffe000u;
    return isfinite(x) ? __uint_as_float(bits) : x;
}

/* Thread blocks of a grid-stride loop over `count` elements: enough to fill the device. */
static inline unsigned cuda_blocks(const ingot_cuda *cuda, uint64_t count, unsigned threads) {
    const uint64_t wanted = ingot_max_u64(1, ingot_ceil_div(count, threads));
    return (unsigned)ingot_min_u64(wanted, 16u * (unsigned)cuda->multiprocessors);
}

#endif
