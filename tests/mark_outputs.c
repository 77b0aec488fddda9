/* For initcheck of compute-sanitizer, which does not see what kernels of cuBLAS store through the
 * copy engine, and then reports our kernels that read it: preloaded into a test program, this
 * writes NaN to the output of every product of cuBLAS that does not add to it, by a fill that
 * initcheck does see.  So it still reports whoever reads what no product was to write, and a
 * product that read its output would be seen in the results.  Says at the end how many there were.
 */
#include <cublas_v2.h>
#include <cuda.h>

#include <dlfcn.h>
#include <link.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static atomic_ulong marked;

static _Noreturn void fail(const char *what) {
    (void)fprintf(stderr, "mark_outputs: %s\n", what);
    abort();
}

static int find_cublas(struct dl_phdr_info *info, size_t size, void *found) {
    (void)size;
    if (strstr(info->dlpi_name, "/libcublas.so") == NULL) {
        return 0;
    }
    *(void **)found = dlopen(info->dlpi_name, RTLD_LAZY | RTLD_NOLOAD);
    return 1;
}

/* *function = the library's own; the library is in no scope that RTLD_NEXT looks through. */
static void find_next(void *function, const char *name) {
    void *library = NULL;
    (void)dl_iterate_phdr(find_cublas, &library);
    void *symbol = library != NULL ? dlsym(library, name) : NULL;
    if (symbol == NULL) {
        fail(name);
    }
    memcpy(function, &symbol, sizeof symbol); /* C has no cast from data to function */
}

static void find_driver(void *function, const char *name) {
    void *library = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL);
    void *symbol = library != NULL ? dlsym(library, name) : NULL;
    if (symbol == NULL) {
        fail(name);
    }
    memcpy(function, &symbol, sizeof symbol);
}

static CUstream stream_of(cublasHandle_t handle) {
    cublasStatus_t (*get)(cublasHandle_t, cudaStream_t *);
    cudaStream_t stream;
    find_next(&get, "cublasGetStream_v2");
    if (get(handle, &stream) != CUBLAS_STATUS_SUCCESS) {
        fail("cublasGetStream");
    }
    return stream;
}

/* bytes of the device, behind what its stream has been given. */
static void take(void *to, const void *from, size_t bytes, CUstream stream) {
    CUresult (*copy)(void *, CUdeviceptr, size_t, CUstream), (*wait)(CUstream);
    find_driver(&copy, "cuMemcpyDtoHAsync_v2");
    find_driver(&wait, "cuStreamSynchronize");
    if (copy(to, (CUdeviceptr)from, bytes, stream) != CUDA_SUCCESS ||
        wait(stream) != CUDA_SUCCESS) {
        fail("cuMemcpyDtoHAsync");
    }
}

/* Whether a product with this beta, an FP32 number, leaves nothing of what its output was. */
static bool is_new(cublasHandle_t handle, const void *beta) {
    cublasStatus_t (*get)(cublasHandle_t, cublasPointerMode_t *);
    cublasPointerMode_t mode;
    float value;
    find_next(&get, "cublasGetPointerMode_v2");
    if (get(handle, &mode) != CUBLAS_STATUS_SUCCESS) {
        fail("cublasGetPointerMode");
    }
    if (mode == CUBLAS_POINTER_MODE_HOST) {
        memcpy(&value, beta, sizeof value);
    } else {
        take(&value, beta, sizeof value, stream_of(handle));
    }
    return value == 0;
}

/* c[columns][stride], the first `rows` of each. */
static void mark(cublasHandle_t handle, void *c, cudaDataType type, int64_t rows, int64_t columns,
                 int64_t stride) {
    CUresult (*fill)(CUdeviceptr, size_t, unsigned char, size_t, size_t, CUstream);
    const size_t bytes = type == CUDA_R_32F ? 4 : 2;
    find_driver(&fill, "cuMemsetD2D8Async");
    if (fill((CUdeviceptr)c, (size_t)stride * bytes, 0xff, (size_t)rows * bytes, (size_t)columns,
             stream_of(handle)) != CUDA_SUCCESS) {
        fail("cuMemsetD2D8Async");
    }
    atomic_fetch_add(&marked, 1);
}

/* ---- the products that the backend calls ------------------------------------------------------
 */

cublasStatus_t cublasGemmEx_64(cublasHandle_t handle, cublasOperation_t transa,
                               cublasOperation_t transb, int64_t m, int64_t n, int64_t k,
                               const void *alpha, const void *a, cudaDataType a_type, int64_t lda,
                               const void *b, cudaDataType b_type, int64_t ldb, const void *beta,
                               void *c, cudaDataType c_type, int64_t ldc,
                               cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
    __typeof__(&cublasGemmEx_64) next;
    find_next(&next, "cublasGemmEx_64");
    if (is_new(handle, beta)) {
        mark(handle, c, c_type, m, n, ldc);
    }
    return next(handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c,
                c_type, ldc, compute, algorithm);
}

cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t transa,
                            cublasOperation_t transb, int m, int n, int k, const void *alpha,
                            const void *a, cudaDataType a_type, int lda, const void *b,
                            cudaDataType b_type, int ldb, const void *beta, void *c,
                            cudaDataType c_type, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t algorithm) {
    __typeof__(&cublasGemmEx) next;
    find_next(&next, "cublasGemmEx");
    if (is_new(handle, beta)) {
        mark(handle, c, c_type, m, n, ldc);
    }
    return next(handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c,
                c_type, ldc, compute, algorithm);
}

cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t transa,
                              cublasOperation_t transb, int m, int n, int k, const float *alpha,
                              const float *a, int lda, const float *b, int ldb, const float *beta,
                              float *c, int ldc) {
    __typeof__(&cublasSgemm_v2) next;
    find_next(&next, "cublasSgemm_v2");
    if (is_new(handle, beta)) {
        mark(handle, c, CUDA_R_32F, m, n, ldc);
    }
    return next(handle, transa, transb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

cublasStatus_t cublasGemmBatchedEx(cublasHandle_t handle, cublasOperation_t transa,
                                   cublasOperation_t transb, int m, int n, int k, const void *alpha,
                                   const void *const a[], cudaDataType a_type, int lda,
                                   const void *const b[], cudaDataType b_type, int ldb,
                                   const void *beta, void *const c[], cudaDataType c_type, int ldc,
                                   int count, cublasComputeType_t compute,
                                   cublasGemmAlgo_t algorithm) {
    __typeof__(&cublasGemmBatchedEx) next;
    find_next(&next, "cublasGemmBatchedEx");
    if (count > 0 && is_new(handle, beta)) {
        void **outputs = malloc((size_t)count * sizeof *outputs);
        if (outputs == NULL) {
            fail("no memory");
        }
        take(outputs, c, (size_t)count * sizeof *outputs, stream_of(handle));
        for (int i = 0; i < count; i++) {
            mark(handle, outputs[i], c_type, m, n, ldc);
        }
        free(outputs);
    }
    return next(handle, transa, transb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c,
                c_type, ldc, count, compute, algorithm);
}

__attribute__((destructor)) static void report(void) {
    if (marked != 0) {
        (void)fprintf(stderr, "mark_outputs: %lu outputs of products\n", (unsigned long)marked);
    }
}
