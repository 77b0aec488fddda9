/* Launches of products and of the engine go through here. */
#include "kernels/cuda/cuda.h"

#define FREE_BYTES (48 * 1024) /* of shared memory, that a kernel has without being asked */

ingot_status ingot_cuda_launch(const void *kernel, const cudaLaunchConfig_t &config,
                               void **arguments) {
    if (config.dynamicSmemBytes > FREE_BYTES) {
        INGOT_TRY(ingot_cuda_status(cudaFuncSetAttribute(
            kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)config.dynamicSmemBytes)));
    }
    return ingot_cuda_status(cudaLaunchKernelExC(&config, kernel, arguments));
}
