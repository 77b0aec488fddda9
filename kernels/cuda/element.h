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

/* x rounded to a float type and back. */
__device__ static inline float rounded_to(float x, ingot_dtype dtype) {
    return dtype == INGOT_F16    ? __half2float(__float2half_rn(x))
           : dtype == INGOT_BF16 ? __bfloat162float(__float2bfloat16_rn(x))
                                 : x;
}

/* Thread blocks of a grid-stride loop over `count` elements: enough to fill the device. */
static inline unsigned cuda_blocks(const ingot_cuda *cuda, uint64_t count, unsigned threads) {
    const uint64_t wanted = ingot_max_u64(1, ingot_ceil_div(count, threads));
    return (unsigned)ingot_min_u64(wanted, 16u * (unsigned)cuda->multiprocessors);
}

#endif
