/* Internal to kernels/cuda: the end of products whose threads have four adjacent rows of a column
 * of y each. */
#ifndef INGOT_CUDA_PRODUCT_FOURS_H
#define INGOT_CUDA_PRODUCT_FOURS_H

#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/product_unpack.h"
#include "kernels/cuda/weights.h"

__device__ static inline void product_add_four(float (&v)[4], const void *from, ingot_dtype dtype) {
    if (dtype == INGOT_F32) {
        const float4 more = *static_cast<const float4 *>(from);
        v[0] += more.x, v[1] += more.y, v[2] += more.z, v[3] += more.w;
        return;
    }
    const uint2 more = *static_cast<const uint2 *>(from);
    const float2 low = dtype == INGOT_F16 ? cuda_pair_floats<INGOT_F16>(more.x)
                                          : cuda_pair_floats<INGOT_BF16>(more.x);
    const float2 high = dtype == INGOT_F16 ? cuda_pair_floats<INGOT_F16>(more.y)
                                           : cuda_pair_floats<INGOT_BF16>(more.y);
    v[0] += low.x, v[1] += low.y, v[2] += high.x, v[3] += high.y;
}

__device__ static inline void product_scale_four(float (&v)[4], float factor) {
    v[0] *= factor, v[1] *= factor, v[2] *= factor, v[3] *= factor;
}

/* product_store of rows row .. row + 3, where the job is even; sums are multiplied by `factor`
 * (product_known), `residual` counts where y is FP32.  sum becomes y. */
__device__ static inline void product_store_four(const product_task &task, uint64_t i, uint64_t row,
                                                 float (&sum)[4], float (&up)[4], float factor,
                                                 const float4 &residual) {
    const uint64_t at = i * task.w[0].rows + row;
    if (task.addend[0] != nullptr) {
        product_add_four(sum, task.addend[0] + at, INGOT_F32);
    }
    product_scale_four(sum, factor);
    if (task.bias[0] != nullptr) {
        product_add_four(sum, task.bias[0] + row, INGOT_F32);
    }
    if (task.activation >= 0) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            sum[k] = product_activate(sum[k], task.activation);
        }
    }
    if (task.has_up) {
        if (task.addend[1] != nullptr) {
            product_add_four(up, task.addend[1] + at, INGOT_F32);
        }
        product_scale_four(up, factor);
        if (task.bias[1] != nullptr) {
            product_add_four(up, task.bias[1] + row, INGOT_F32);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            sum[k] *= up[k];
        }
    }
    const bool is_float = task.y_dtype == INGOT_F32;
    if (is_float) {
        sum[0] += residual.x, sum[1] += residual.y, sum[2] += residual.z, sum[3] += residual.w;
    } else if (task.residual != nullptr) {
        product_add_four(sum, static_cast<const uint16_t *>(task.residual) + at, task.y_dtype);
    }
    if (task.next.x != nullptr && task.next.norm_weight == nullptr) {
        const __half values[4] = {from_float<__half>(sum[0]), from_float<__half>(sum[1]),
                                  from_float<__half>(sum[2]), from_float<__half>(sum[3])};
        product_put_columns(task.next.x, task.next.form.bits, task.next.form.rows, (unsigned)i,
                            (unsigned)row, values);
        return;
    }
    if (is_float) {
        *reinterpret_cast<float4 *>(static_cast<float *>(task.y) + at) =
            make_float4(sum[0], sum[1], sum[2], sum[3]);
        return;
    }
    uint2 out;
    if (task.y_dtype == INGOT_F16) {
        out = make_uint2(bits_of(__floats2half2_rn(sum[0], sum[1])),
                         bits_of(__floats2half2_rn(sum[2], sum[3])));
    } else {
        out = make_uint2(bits_of(__floats2bfloat162_rn(sum[0], sum[1])),
                         bits_of(__floats2bfloat162_rn(sum[2], sum[3])));
    }
    *reinterpret_cast<uint2 *>(static_cast<uint16_t *>(task.y) + at) = out;
}

__device__ static inline void product_read_four(float (&v)[4], const float *from) {
    const float4 four = *reinterpret_cast<const float4 *>(from);
    v[0] += four.x, v[1] += four.y, v[2] += four.z, v[3] += four.w;
}

/* product_store of rows row .. row + 3, where the job is not even: seldom met. */
__device__ static __noinline__ void product_store_any(const product_task &task, unsigned i,
                                                      uint64_t row, float4 sum, float4 up) {
    const float sums[4] = {sum.x, sum.y, sum.z, sum.w}, ups[4] = {up.x, up.y, up.z, up.w};
#pragma unroll
    for (unsigned k = 0; k < 4; k++) {
        if (row + k < task.w[0].rows) {
            product_store(task, i, row + k, sums[k], ups[k], product_residual(task, i, row + k));
        }
    }
}

#endif
