/* Internal to kernels/cuda: the context of the cuda backend and what its files share.
 *
 * C++17, included by .cu files alone; the one function the rest of the tree sees is
 * ingot_cuda_open (kernels/cuda/open.h).  All work goes to one stream, in order.  Device memory
 * comes from the device's stream-ordered pool (cudaMallocAsync), which keeps what is released, so
 * that arenas and scratch cost no synchronisation.  Host functions that fail return a status and
 * leave no allocation behind; a failed launch is reported by the operation that made it.
 *
 * Deterministic: no floating-point atomics, reductions in an order that depends on shapes and on
 * the GPU model alone. */
#ifndef INGOT_CUDA_H
#define INGOT_CUDA_H

extern "C" {
#include "common/memory.h"
#include "common/pool.h"
#include "common/sizes.h"
#include "kernels/backend.h"
#include "kernels/cuda/card.h"
}

#include <cublas_v2.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <cusolverDn.h>

#define CUDA_COUNTERS   16u                  /* a multiprocessor */
#define CUDA_BLAS_BYTES (UINT64_C(32) << 20) /* workspace; what cuBLAS asks for on Hopper */

/* What a conversion to binary16 met. */
typedef struct ingot_cuda_range {
    unsigned largest;     /* bits of the largest finite magnitude: they order like the values */
    unsigned has_special; /* NaN or infinity */
} ingot_cuda_range;

/* Lives on the device, for the alpha and beta of cuBLAS among others; overwritten by every
 * operation in the order of the stream. */
typedef struct ingot_cuda_scalars {
    float zero, one; /* these two never change */
    float unscale;   /* of the copy in binary16 */
    float alpha;     /* of the product to come */
    ingot_cuda_range half, weights;
    float unscale_aside; /* of cuda_half_aside */
    ingot_cuda_range aside;
} ingot_cuda_scalars;

typedef struct ingot_cuda : ingot_cuda_card {
    int device;
    uint64_t peers; /* a bit for each other device whose memory was asked for */
    cudaStream_t stream;
    cudaMemPool_t memory;
    cublasHandle_t blas;       /* bound to the stream; scalars come from the host */
    void *workspace;           /* of blas, device */
    cusolverDnHandle_t solver; /* bound to the stream */
    ingot_pool *pool;          /* host threads, for the operations that stay on the host */

    ingot_cuda_scalars *scalars; /* device: what kernels and products leave for each other */
    unsigned *counters; /* device, CUDA_COUNTERS a multiprocessor: of blocks that meet, zero at
                           first and then as each kernel leaves them (product_wgmma_tile.h) */

    /* Activations in binary16, kept over calls (half.cu). */
    struct {
        void *values; /* device, `bytes` of them */
        uint64_t bytes;
        const float *x; /* whose copy this is; NULL: none */
        uint64_t m, n;
        bool is_flat; /* without columns between the rows: good for any m n of this product */
    } half;
} ingot_cuda;

/* Notes for ops->failure that `call` (its text up to the parenthesis) failed, and what was said of
 * it.  INGOT_ERR_NO_MEMORY where is_memory or the device is full, which calls that need a little
 * memory of their own (a kernel's code, a library's workspace) report as they please; else
 * INGOT_ERR_DEVICE. */
ingot_status ingot_cuda_failed(const char *call, const char *said, bool is_memory); /* open.cu */
const char *ingot_cuda_failure(void);

static inline ingot_status ingot_cuda_check(cudaError_t error, const char *call) {
    return error == cudaSuccess ? INGOT_OK
                                : ingot_cuda_failed(call, cudaGetErrorString(error),
                                                    error == cudaErrorMemoryAllocation);
}

static inline ingot_status ingot_cublas_check(cublasStatus_t error, const char *call) {
    return error == CUBLAS_STATUS_SUCCESS ? INGOT_OK
                                          : ingot_cuda_failed(call, cublasGetStatusString(error),
                                                              error == CUBLAS_STATUS_ALLOC_FAILED);
}

static inline ingot_status ingot_cusolver_check(cusolverStatus_t error, const char *call) {
    return error == CUSOLVER_STATUS_SUCCESS
               ? INGOT_OK
               : ingot_cuda_failed(call,
                                   error == CUSOLVER_STATUS_INTERNAL_ERROR     ? "internal error"
                                   : error == CUSOLVER_STATUS_EXECUTION_FAILED ? "execution failed"
                                                                               : "failed",
                                   error == CUSOLVER_STATUS_ALLOC_FAILED);
}

/* The status of a call, which is noted under its own name when it fails. */
#define ingot_cuda_status(call)        ingot_cuda_check((call), #call)
#define ingot_cublas_status(call)      ingot_cublas_check((call), #call)
#define ingot_cuda_solver_status(call) ingot_cusolver_check((call), #call)

/* The status of the launch just made. */
static inline ingot_status ingot_cuda_check_launch(const char *function) {
    return ingot_cuda_check(cudaGetLastError(), function);
}
#define ingot_cuda_launched() ingot_cuda_check_launch(__func__)

/* Launches `kernel` with as much shared memory as `config` asks for (launch.cu). */
ingot_status ingot_cuda_launch(const void *kernel, const cudaLaunchConfig_t &config,
                               void **arguments);

template <typename... Parameters>
static inline ingot_status cuda_launch(void (*kernel)(Parameters...),
                                       const cudaLaunchConfig_t &config, Parameters... arguments) {
    void *at[] = {&arguments...};
    return ingot_cuda_launch(reinterpret_cast<const void *>(kernel), config, at);
}

/* Temporary device memory of one operation, released in the order of the stream. */
class ingot_cuda_buffer {
  public:
    explicit ingot_cuda_buffer(const ingot_cuda *cuda) : cuda_(cuda) {
    }
    ~ingot_cuda_buffer() {
        if (memory_ != nullptr) {
            (void)cudaFreeAsync(memory_, cuda_->stream);
        }
    }
    ingot_cuda_buffer(const ingot_cuda_buffer &) = delete;
    ingot_cuda_buffer &operator=(const ingot_cuda_buffer &) = delete;
    /* INGOT_ERR_NO_MEMORY when the device is full or the product overflows.  Once per buffer. */
    ingot_status alloc(uint64_t count, uint64_t size_bytes) {
        uint64_t bytes;
        if (!ingot_size_mul(&bytes, count, size_bytes)) {
            return INGOT_ERR_NO_MEMORY;
        }
        if (ingot_device_fault_is_due()) {
            return ingot_cuda_failed("cudaMallocAsync", "asked to fail", true);
        }
        const cudaError_t error = cudaMallocAsync(&memory_, bytes != 0 ? bytes : 1, cuda_->stream);
        if (error != cudaSuccess) {
            memory_ = nullptr;
            (void)cudaGetLastError();
        }
        return ingot_cuda_check(error, "cudaMallocAsync");
    }
    template <typename T> T *as() const {
        return static_cast<T *>(memory_);
    }

  private:
    const ingot_cuda *cuda_;
    void *memory_ = nullptr;
};

/* Of L1 and shared memory together, the part that kernels of a pass ask for, in percent.  All ask
 * for the same: a multiprocessor that has to change it must run empty first.  Products that keep
 * scales in L1 (product_few.h) leave most to it, others need all of it. */
static inline unsigned cuda_carveout(bool uses_l1) {
    return uses_l1 ? 72 : 100;
}

/* The context of an operation, its device made current in this thread. */
static inline ingot_cuda *ingot_cuda_of(void *context) {
    ingot_cuda *cuda = static_cast<ingot_cuda *>(context);
    (void)cudaSetDevice(cuda->device); /* what fails here fails again in the call that follows */
    return cuda;
}

#endif
