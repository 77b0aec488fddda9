/* Internal to kernels/cuda: what the files of cuda_product (product.h) share. */
#ifndef INGOT_CUDA_PRODUCT_PARTS_H
#define INGOT_CUDA_PRODUCT_PARTS_H

#include "kernels/cuda/element.h"

extern "C" {
#include "kernels/cuda/product.h"
}

/* What kernels take of a product: after the preparation of x, all pointers on the device. */
typedef struct product_task {
    ingot_weight_view w[2]; /* W, U */
    const float *bias[2];
    const float *addend[2]; /* [m][rows] FP32: what outliers give; NULL: none */
    const void *x;          /* [m][x_stride] in 16 bits */
    uint64_t x_stride;      /* elements; a multiple of 8, what lies behind the columns is zero */
    const void *residual;
    void *y;
    ingot_dtype y_dtype;
    int activation; /* an ingot_activation, or -1 */
    bool has_up;
    uint64_t m;
} product_task;

/* Waits until the kernels before this one in the stream are done; in every kernel, in every thread
 * that reads or writes what others share. */
__device__ static inline void product_wait(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* The kernel behind this one may start; it waits where it needs what this one writes. */
__device__ static inline void product_let_next_start(void) {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
#endif
}

/* The forms of kernels/cpu/isa_math.c. */
__device__ static inline float product_activate(float x, int kind) {
    switch (kind) {
    case INGOT_ACT_SILU:
        return x / (1.0f + expf(-x));
    case INGOT_ACT_GELU:
        return 0.5f * x * erfcf(-0.7071067812f * x);
    case INGOT_ACT_GELU_TANH: {
        const float root = 0.7978845608f;
        return x / (1.0f + expf(x * fmaf(x * x, -2.0f * root * 0.044715f, -2.0f * root)));
    }
    case INGOT_ACT_RELU:
        return x < 0.0f ? 0.0f : x;
    default:
        return x;
    }
}

/* Everything behind the sums: y[i][row] from x W^T and x U^T. */
__device__ static inline void product_store(const product_task &task, uint64_t i, uint64_t row,
                                            float sum, float up) {
    const uint64_t at = i * task.w[0].rows + row;
    sum += task.addend[0] != nullptr ? task.addend[0][at] : 0.0f;
    sum += task.bias[0] != nullptr ? task.bias[0][row] : 0.0f;
    sum = product_activate(sum, task.activation);
    if (task.has_up) {
        up += task.addend[1] != nullptr ? task.addend[1][at] : 0.0f;
        up += task.bias[1] != nullptr ? task.bias[1][row] : 0.0f;
        sum *= up;
    }
    switch (task.y_dtype) {
    case INGOT_F32:
        sum += task.residual != nullptr ? static_cast<const float *>(task.residual)[at] : 0.0f;
        static_cast<float *>(task.y)[at] = sum;
        break;
    case INGOT_F16:
        sum += task.residual != nullptr ? to_float(static_cast<const __half *>(task.residual)[at])
                                        : 0.0f;
        static_cast<__half *>(task.y)[at] = from_float<__half>(sum);
        break;
    default:
        sum += task.residual != nullptr
                   ? to_float(static_cast<const __nv_bfloat16 *>(task.residual)[at])
                   : 0.0f;
        static_cast<__nv_bfloat16 *>(task.y)[at] = from_float<__nv_bfloat16>(sum);
    }
}

/* Launches `kernel` in a stream; chained: see ingot_product. */
template <typename... Parameters, typename... Arguments>
static inline ingot_status
product_launch(void (*kernel)(Parameters...), dim3 grid, unsigned threads, unsigned shared_bytes,
               cudaStream_t stream, bool is_chained, Arguments... arguments) {
    cudaLaunchAttribute attribute = {};
    attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute.val.programmaticStreamSerializationAllowed = 1;
    cudaLaunchConfig_t config = {};
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = &attribute;
    config.numAttrs = is_chained ? 1 : 0;
    return ingot_cuda_status(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

#endif
