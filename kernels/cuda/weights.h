/* Internal to kernels/cuda: reading weights of any kind on the device, eight columns at a time.
 *
 * Values are those of ingot_weight_row, bit for bit, except that outliers are not put in place:
 * they are few, and whoever reads whole rows adds them afterwards.  Sums over columns start at
 * multiples of 8, where the codes of every width start on a byte and a group cannot end
 * (spec/quantization.md). */
#ifndef INGOT_CUDA_WEIGHTS_H
#define INGOT_CUDA_WEIGHTS_H

#include "kernels/cuda/cuda.h"

#include <cstdint>
#include <cuda_bf16.h>

/* How the weights of a view are stored, as an argument of templates: an ingot_dtype, or this plus
 * the bits of a grouped-affine view. */
#define CUDA_WEIGHTS_GROUPED 16

/* -1 where no kernel reads the view. */
static inline int cuda_weight_kind(const ingot_weight_view *w) {
    if (w->kind == INGOT_DENSE) {
        return w->dtype == INGOT_F32 || w->dtype == INGOT_F16 || w->dtype == INGOT_BF16
                   ? (int)w->dtype
                   : -1;
    }
    return w->kind == INGOT_GROUPED && w->bits >= 2 && w->bits <= 8
               ? CUDA_WEIGHTS_GROUPED + (int)w->bits
               : -1;
}

/* Whether a kernel can read both by the same addresses and arithmetic: columns, kind of codes,
 * groups, scales and zero points are stored alike.  Rows and outliers may differ. */
static inline bool cuda_weights_are_alike(const ingot_weight_view *a, const ingot_weight_view *b) {
    if (a->kind != b->kind || a->cols != b->cols) {
        return false;
    }
    return a->kind == INGOT_DENSE
               ? a->dtype == b->dtype
               : a->bits == b->bits && a->group == b->group && a->scale_dtype == b->scale_dtype &&
                     a->zero_mode == b->zero_mode;
}

/* Calls the template function `launch` for the kind of a view; INGOT_ERR_UNSUPPORTED without one.
 */
#define CUDA_FOR_WEIGHT_KIND(status, view, launch, ...)                                            \
    do {                                                                                           \
        switch (cuda_weight_kind(view)) {                                                          \
        case INGOT_F32:                                                                            \
            (status) = launch<INGOT_F32>(__VA_ARGS__);                                             \
            break;                                                                                 \
        case INGOT_F16:                                                                            \
            (status) = launch<INGOT_F16>(__VA_ARGS__);                                             \
            break;                                                                                 \
        case INGOT_BF16:                                                                           \
            (status) = launch<INGOT_BF16>(__VA_ARGS__);                                            \
            break;                                                                                 \
        case CUDA_WEIGHTS_GROUPED + 2:                                                             \
            (status) = launch<CUDA_WEIGHTS_GROUPED + 2>(__VA_ARGS__);                              \
            break;                                                                                 \
        case CUDA_WEIGHTS_GROUPED + 3:                                                             \
            (status) = launch<CUDA_WEIGHTS_GROUPED + 3>(__VA_ARGS__);                              \
            break;                                                                                 \
        case CUDA_WEIGHTS_GROUPED + 4:                                                             \
            (status) = launch<CUDA_WEIGHTS_GROUPED + 4>(__VA_ARGS__);                              \
            break;                                                                                 \
        case CUDA_WEIGHTS_GROUPED + 5:                                                             \
            (status) = launch<CUDA_WEIGHTS_GROUPED + 5>(__VA_ARGS__);                              \
            break;                                                                                 \
        case CUDA_WEIGHTS_GROUPED + 6:                                                             \
            (status) = launch<CUDA_WEIGHTS_GROUPED + 6>(__VA_ARGS__);                              \
            break;                                                                                 \
        case CUDA_WEIGHTS_GROUPED + 7:                                                             \
            (status) = launch<CUDA_WEIGHTS_GROUPED + 7>(__VA_ARGS__);                              \
            break;                                                                                 \
        case CUDA_WEIGHTS_GROUPED + 8:                                                             \
            (status) = launch<CUDA_WEIGHTS_GROUPED + 8>(__VA_ARGS__);                              \
            break;                                                                                 \
        default:                                                                                   \
            (status) = INGOT_ERR_UNSUPPORTED;                                                      \
        }                                                                                          \
    } while (0)

/* Element `index` of an array of floats of any dtype. */
__device__ static inline float cuda_float_at(const void *data, ingot_dtype dtype, uint64_t index) {
    switch (dtype) {
    case INGOT_F16:
        return __half2float(static_cast<const __half *>(data)[index]);
    case INGOT_BF16:
        return __bfloat162float(static_cast<const __nv_bfloat16 *>(data)[index]);
    default:
        return static_cast<const float *>(data)[index];
    }
}

/* Two values of 16 bits each as floats. */
template <int KIND> __device__ static inline float2 cuda_pair_floats(unsigned pair) {
    if (KIND == INGOT_BF16) {
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    }
    __half2 halves;
    memcpy(&halves, &pair, sizeof halves);
    return __half22float2(halves);
}

template <int KIND>
__device__ static inline void cuda_load_dense(float (&v)[8], const ingot_weight_view &w,
                                              uint64_t row, uint64_t col) {
    constexpr uint64_t BYTES = KIND == INGOT_F32 ? 4 : 2;
    const char *at = static_cast<const char *>(w.data) + (row * w.cols + col) * BYTES;
    const bool is_vector = col + 8 <= w.cols && (reinterpret_cast<uintptr_t>(at) & 15) == 0;
    if (is_vector && KIND == INGOT_F32) {
        const float4 low = reinterpret_cast<const float4 *>(at)[0];
        const float4 high = reinterpret_cast<const float4 *>(at)[1];
        v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
        v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
    } else if (is_vector) {
        const uint4 words = *reinterpret_cast<const uint4 *>(at);
        const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float2 two = cuda_pair_floats<KIND>(pairs[i]);
            v[2 * i] = two.x;
            v[2 * i + 1] = two.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) {
            v[i] = col + i < w.cols
                       ? cuda_float_at(w.data, (ingot_dtype)KIND, row * w.cols + col + i)
                       : 0.0f;
        }
    }
}

/* Eight codes: BITS bytes, the first code in the lowest bits.  Behind the end of a row is zero. */
template <int BITS>
__device__ static inline uint64_t cuda_load_codes(const uint8_t *row, uint64_t col,
                                                  uint64_t stride_bytes) {
    const uint64_t at = col / 8 * BITS;
    switch (BITS) {
    case 2:
        return *reinterpret_cast<const uint16_t *>(row + at);
    case 4:
        return *reinterpret_cast<const uint32_t *>(row + at);
    case 8: {
        const uint2 words = *reinterpret_cast<const uint2 *>(row + at);
        return (uint64_t)words.y << 32 | words.x;
    }
    default: {
        uint64_t codes = 0;
#pragma unroll
        for (int i = 0; i < BITS; i++) {
            codes |= at + i < stride_bytes ? (uint64_t)row[at + i] << (8 * i) : 0;
        }
        return codes;
    }
    }
}

template <int BITS>
__device__ static inline void cuda_load_grouped(float (&v)[8], const ingot_weight_view &w,
                                                uint64_t row, uint64_t col) {
    const uint64_t group = row * w.groups_per_row + (unsigned)col / (unsigned)w.group;
    const int zero = w.zero_mode == INGOT_ZERO_STORED ? (int)w.zeros[group] : 1 << (BITS - 1);
    const float scale = cuda_float_at(w.scales, w.scale_dtype, group);
    const uint64_t codes =
        cuda_load_codes<BITS>(w.codes + row * w.row_stride_bytes, col, w.row_stride_bytes);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int code = (int)(codes >> (BITS * i)) & ((1 << BITS) - 1);
        v[i] = col + i < w.cols ? scale * (float)(code - zero) : 0.0f;
    }
}

/* v = columns col .. col + 7 of row `row`, zero behind the last; col is a multiple of 8 and less
 * than the number of columns, which fits 32 bits. */
template <int KIND>
__device__ static inline void cuda_load_weights(float (&v)[8], const ingot_weight_view &w,
                                                uint64_t row, uint64_t col) {
    if constexpr (KIND > CUDA_WEIGHTS_GROUPED) {
        cuda_load_grouped<KIND - CUDA_WEIGHTS_GROUPED>(v, w, row, col);
    } else {
        cuda_load_dense<KIND>(v, w, row, col);
    }
}

#endif
