/* Preloaded into test programs under compute-sanitizer: the products of cuBLAS that the CUDA
 * backend calls, by a plain kernel, a thread to an element, sums in FP64.  The tools cannot look
 * into those of cuBLAS, and do not get past them either: initcheck does not see what they store
 * through the copy engine and reports whoever reads it, under racecheck they end in a hardware
 * exception.  With these, initcheck sees what is read and written of every operand.  Says at the
 * end how many there were. */
#include <cublas_v2.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <atomic>
#include <cstdio>

#define THREADS 128

/* c[n][ldc] = alpha op(a) op(b) + beta c, in the way of BLAS: column by column. */
typedef struct product {
    int64_t m, n, k, lda, ldb, ldc;
    bool is_a_transposed, is_b_transposed;
    const void *a, *b;
    void *c;
    const void *const *a_list, *const *b_list; /* device; NULL: one product */
    void *const *c_list;
    cudaDataType a_type, b_type, c_type;
    float alpha, beta;               /* unless there are pointers */
    const float *alpha_at, *beta_at; /* device */
} product;

__device__ static double number_at(const void *values, cudaDataType type, int64_t at) {
    switch (type) {
    case CUDA_R_16F:
        return (double)__half2float(static_cast<const __half *>(values)[at]);
    case CUDA_R_16BF:
        return (double)__bfloat162float(static_cast<const __nv_bfloat16 *>(values)[at]);
    default:
        return (double)static_cast<const float *>(values)[at];
    }
}

__global__ __launch_bounds__(THREADS) static void plain_product_kernel(const product p) {
    const void *a = p.a_list != nullptr ? p.a_list[blockIdx.z] : p.a;
    const void *b = p.b_list != nullptr ? p.b_list[blockIdx.z] : p.b;
    void *c = p.c_list != nullptr ? p.c_list[blockIdx.z] : p.c;
    const float alpha = p.alpha_at != nullptr ? *p.alpha_at : p.alpha;
    const float beta = p.beta_at != nullptr ? *p.beta_at : p.beta;
    const int64_t step = (int64_t)gridDim.x * THREADS;
    for (int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x; at < p.m * p.n; at += step) {
        const int64_t i = at % p.m, j = at / p.m;
        double sum = 0;
        for (int64_t l = 0; l < p.k; l++) {
            sum += number_at(a, p.a_type, p.is_a_transposed ? i * p.lda + l : l * p.lda + i) *
                   number_at(b, p.b_type, p.is_b_transposed ? l * p.ldb + j : j * p.ldb + l);
        }
        sum *= (double)alpha;
        sum += beta != 0.0f ? (double)beta * number_at(c, p.c_type, j * p.ldc + i) : 0.0;
        if (p.c_type == CUDA_R_16F) {
            static_cast<__half *>(c)[j * p.ldc + i] = __float2half_rn((float)sum);
        } else {
            static_cast<float *>(c)[j * p.ldc + i] = (float)sum;
        }
    }
}

static std::atomic<unsigned long> count;

static cublasStatus_t run(cublasHandle_t handle, product p, const void *alpha, const void *beta,
                          int batch) {
    cudaStream_t stream;
    cublasPointerMode_t mode;
    if (cublasGetStream(handle, &stream) != CUBLAS_STATUS_SUCCESS ||
        cublasGetPointerMode(handle, &mode) != CUBLAS_STATUS_SUCCESS) {
        return CUBLAS_STATUS_NOT_INITIALIZED;
    }
    if (mode == CUBLAS_POINTER_MODE_DEVICE) {
        p.alpha_at = static_cast<const float *>(alpha);
        p.beta_at = static_cast<const float *>(beta);
    } else {
        p.alpha = *static_cast<const float *>(alpha);
        p.beta = *static_cast<const float *>(beta);
    }
    if (p.m == 0 || p.n == 0 || batch == 0) {
        return CUBLAS_STATUS_SUCCESS;
    }
    const int64_t blocks = (p.m * p.n + THREADS - 1) / THREADS;
    plain_product_kernel<<<dim3((unsigned)(blocks < 4096 ? blocks : 4096), 1, (unsigned)batch),
                           THREADS, 0, stream>>>(p);
    count++;
    return cudaGetLastError() == cudaSuccess ? CUBLAS_STATUS_SUCCESS
                                             : CUBLAS_STATUS_EXECUTION_FAILED;
}

static product product_of(cublasOperation_t transa, cublasOperation_t transb, int64_t m, int64_t n,
                          int64_t k, cudaDataType a_type, int64_t lda, cudaDataType b_type,
                          int64_t ldb, cudaDataType c_type, int64_t ldc) {
    product p = {};
    p.is_a_transposed = transa != CUBLAS_OP_N, p.is_b_transposed = transb != CUBLAS_OP_N;
    p.m = m, p.n = n, p.k = k;
    p.lda = lda, p.ldb = ldb, p.ldc = ldc;
    p.a_type = a_type, p.b_type = b_type, p.c_type = c_type;
    return p;
}

/* ---- the functions of cuBLAS -------------------------------------------------------------------
 */

extern "C" {

cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t transa,
                               cublasOperation_t transb, int64_t m, int64_t n, int64_t k,
                               const void *alpha, const void *a, cudaDataType a_type, int64_t lda,
                               const void *b, cudaDataType b_type, int64_t ldb, const void *beta,
                               void *c, cudaDataType c_type, int64_t ldc, cublasComputeType_t,
                               cublasGemmAlgo_t) {
    product p = product_of(transa, transb, m, n, k, a_type, lda, b_type, ldb, c_type, ldc);
    p.a = a, p.b = b, p.c = c;
    return run(handle, p, alpha, beta, 1);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa,
                            cublasOperation_t transb, int m, int n, int k, const void *alpha,
                            const void *a, cudaDataType a_type, int lda, const void *b,
                            cudaDataType b_type, int ldb, const void *beta, void *c,
                            cudaDataType c_type, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t algorithm) {
    return cublasGemmEx_64(handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb,
                           beta, c, c_type, ldc, compute, algorithm);
}

cublasStatus_t cublasSgemm(cublasHandle_t handle, cublasOperation_t transa,
                           cublasOperation_t transb, int m, int n, int k, const float *alpha,
                           const float *a, int lda, const float *b, int ldb, const float *beta,
                           float *c, int ldc) {
    return cublasGemmEx_64(handle, transa, transb, m, n, k, alpha, a, CUDA_R_32F, lda, b,
                           CUDA_R_32F, ldb, beta, c, CUDA_R_32F, ldc, CUBLAS_COMPUTE_32F,
                           CUBLAS_GEMM_DEFAULT);
}

cublasStatus_t cublasGemmBatchedEx(cublasHandle_t handle, cublasOperation_t transa,
                                   cublasOperation_t transb, int m, int n, int k, const void *alpha,
                                   const void *const a[], cudaDataType a_type, int lda,
                                   const void *const b[], cudaDataType b_type, int ldb,
                                   const void *beta, void *const c[], cudaDataType c_type, int ldc,
                                   int batch, cublasComputeType_t, cublasGemmAlgo_t) {
    product p = product_of(transa, transb, m, n, k, a_type, lda, b_type, ldb, c_type, ldc);
    p.a_list = a, p.b_list = b, p.c_list = c;
    return run(handle, p, alpha, beta, batch);
}
}

__attribute__((destructor)) static void report(void) {
    if (count != 0) {
        (void)fprintf(stderr, "plain_products: %lu products\n", count.load());
    }
}
