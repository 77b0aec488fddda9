/* For tests that compile code of kernels/cuda into themselves and run where there is no device:
 * stand-ins for what that code calls, which do nothing. */
#ifndef INGOT_TEST_NO_DEVICE_H
#define INGOT_TEST_NO_DEVICE_H

#include <cstdint>
#include <cublas_v2.h>

extern "C" cublasStatus_t cublasGemmEx_64(cublasHandle_t, cublasOperation_t, cublasOperation_t,
                                          int64_t, int64_t, int64_t, const void *, const void *,
                                          cudaDataType, int64_t, const void *, cudaDataType,
                                          int64_t, const void *, void *, cudaDataType, int64_t,
                                          cublasComputeType_t, cublasGemmAlgo_t) {
    return CUBLAS_STATUS_SUCCESS;
}

/* Of no memory: what counts is which pointers are NULL, and that they are aligned. */
template <typename T> static T *somewhere(void) {
    return reinterpret_cast<T *>(UINT64_C(1) << 32);
}

#endif
