/* Opening and closing the cuda backend, its memory, and weights on their way to and from it. */
#include "kernels/cuda/backward.h"
#include "kernels/cuda/engine.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/quantize.h"

extern "C" {
#include "kernels/cuda/open.h"
#include "kernels/cuda/product.h"
}

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sys/mman.h>

#define LEAST_MAJOR      8     /* of compute capability: Ampere */
#define BATCH_TOKENS     8192u /* of one forward call: a GEMM of 8192 x 4096 x 4096 takes 0.4 ms */
#define LARGE_PAGE_BYTES (UINT64_C(2) << 20) /* of host memory */
#define SMALL_PAGE_BYTES UINT64_C(4096)
#define FULL_BYTES       (UINT64_C(64) << 20) /* of free memory: a device with less is full */

/* A context with what only this file knows of it. */
typedef struct opened_cuda {
    ingot_cuda cuda; /* first: operations are given its address */
    struct opened_cuda *next;
    uint64_t peak_bytes; /* of the device since the context last asked */
} opened_cuda;

static std::mutex opened_mutex; /* guards the list and what it holds of peaks */
static opened_cuda *all_opened;

/* ---- failures ---------------------------------------------------------------------------------
 */

static thread_local char failure[256];

/* What the pool keeps for later may be what others lack: kernels' code, libraries, other programs.
 */
static void give_back_unused(void) {
    int device = 0;
    cudaMemPool_t pool;
    if (cudaGetDevice(&device) == cudaSuccess &&
        cudaDeviceGetDefaultMemPool(&pool, device) == cudaSuccess) {
        (void)cudaMemPoolTrimTo(pool, 0);
    }
    (void)cudaGetLastError();
}

ingot_status ingot_cuda_failed(const char *call, const char *said, bool is_memory) {
    size_t free_bytes = 0, total_bytes = 0;
    (void)cudaGetLastError(); /* is reported once, not by the next launch */
    const bool is_known = cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess;
    (void)cudaGetLastError();
    is_memory = is_memory || (is_known && free_bytes < FULL_BYTES);
    if (is_memory) {
        give_back_unused();
    }
    int size = snprintf(failure, sizeof failure, "%s: %.*s: %s",
                        is_memory ? "out of device memory" : "the device failed",
                        (int)strcspn(call, "("), call, said);
    if (is_known && size > 0 && (size_t)size < sizeof failure) {
        (void)snprintf(failure + size, sizeof failure - (size_t)size,
                       " (%.2f of %.2f GB were free)", (double)free_bytes / 1e9,
                       (double)total_bytes / 1e9);
    }
    return is_memory ? INGOT_ERR_NO_MEMORY : INGOT_ERR_DEVICE;
}

const char *ingot_cuda_failure(void) {
    return failure;
}

/* ---- memory -----------------------------------------------------------------------------------
 */

/* Whole words: kernels copy the words in which scales and zero points lie. */
static ingot_status cuda_alloc(void *context, void **out, uint64_t bytes) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    if (ingot_device_fault_is_due()) {
        *out = nullptr;
        return ingot_cuda_failed("cudaMallocAsync", "asked to fail", true);
    }
    const uint64_t words = bytes <= UINT64_MAX - 4 ? ingot_max_u64(ingot_ceil_div(bytes, 4), 1) : 0;
    const cudaError_t error =
        words == 0 ? cudaErrorMemoryAllocation : cudaMallocAsync(out, words * 4, cuda->stream);
    if (error != cudaSuccess) {
        *out = nullptr;
        (void)cudaGetLastError(); /* exhaustion is reported once, not by the next launch */
    }
    return ingot_cuda_check(error, "cudaMallocAsync");
}

static void cuda_release(void *context, void *memory) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (memory != nullptr) {
        if (cuda->half.x == memory) {
            cuda->half.x = nullptr;
        }
        (void)cudaFreeAsync(memory, cuda->stream);
    }
}

static ingot_status cuda_upload(void *context, void *device, const void *host, uint64_t bytes) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    cuda_written(cuda, device, bytes);
    if (bytes == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_cuda_status(
        cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, cuda->stream)));
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
}

static ingot_status cuda_download(void *context, void *host, const void *device, uint64_t bytes) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    if (bytes == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_cuda_status(
        cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, cuda->stream)));
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
}

static ingot_status cuda_copy(void *context, void *to, const void *from, uint64_t bytes) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    cuda_written(cuda, to, bytes);
    return to == from || bytes == 0 ? INGOT_OK
                                    : ingot_cuda_status(cudaMemcpyAsync(
                                          to, from, bytes, cudaMemcpyDeviceToDevice, cuda->stream));
}

static ingot_status cuda_copy_rows(void *context, void *to, uint64_t to_stride, const void *from,
                                   uint64_t from_stride, uint64_t bytes, uint64_t rows) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (bytes == 0 || rows == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, to, (rows - 1) * to_stride + bytes);
    return ingot_cuda_status(cudaMemcpy2DAsync(to, to_stride, from, from_stride, bytes, rows,
                                               cudaMemcpyDeviceToDevice, cuda->stream));
}

/* Lets this device read the memory of another where it can reach it; where not, the driver takes
 * copies through the host. */
static void open_peer(ingot_cuda *cuda, const ingot_cuda *other) {
    int can_reach = 0;
    (void)cudaDeviceCanAccessPeer(&can_reach, cuda->device, other->device);
    if (can_reach != 0) {
        cudaMemAccessDesc access = {};
        access.location.type = cudaMemLocationTypeDevice;
        access.location.id = cuda->device;
        access.flags = cudaMemAccessFlagsProtReadWrite;
        (void)cudaMemPoolSetAccess(other->memory, &access, 1);
    }
    (void)cudaGetLastError();
}

static ingot_status cuda_fetch(void *context, void *to, void *from_context, const void *from,
                               uint64_t bytes) {
    const ingot_cuda *other = static_cast<const ingot_cuda *>(from_context);
    ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t peer = UINT64_C(1) << (other->device % 64);
    if (other->device != cuda->device && (cuda->peers & peer) == 0) {
        cuda->peers |= peer;
        open_peer(cuda, other);
    }
    cuda_written(cuda, to, bytes);
    return bytes == 0 ? INGOT_OK
                      : ingot_cuda_status(cudaMemcpyPeerAsync(to, cuda->device, from, other->device,
                                                              bytes, cuda->stream));
}

static ingot_status cuda_zero(void *context, void *device, uint64_t bytes) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    cuda_written(cuda, device, bytes);
    return bytes == 0 ? INGOT_OK
                      : ingot_cuda_status(cudaMemsetAsync(device, 0, bytes, cuda->stream));
}

/* Host memory in pages of 2 MiB where the system has them, pinned then: pinning what the runtime
 * allocates goes page by page of 4 KiB, 2 GB/s, a fifth of a second for the weights of a block. */
static ingot_status cuda_host_alloc(void *context, void **out, uint64_t bytes) {
    (void)ingot_cuda_of(context);
    const uint64_t page = bytes >= LARGE_PAGE_BYTES ? LARGE_PAGE_BYTES : SMALL_PAGE_BYTES;
    const uint64_t size =
        bytes <= UINT64_MAX - page ? ingot_ceil_div(ingot_max_u64(bytes, 1), page) * page : bytes;
    *out = nullptr;
    if (posix_memalign(out, page, size) != 0) {
        *out = nullptr;
        return ingot_cuda_check(cudaErrorMemoryAllocation, "host memory");
    }
    if (page == LARGE_PAGE_BYTES) {
        (void)madvise(*out, size, MADV_HUGEPAGE);
    }
    const cudaError_t error = cudaHostRegister(*out, size, cudaHostRegisterDefault);
    if (error != cudaSuccess) {
        (void)cudaGetLastError();
        free(*out);
        *out = nullptr;
    }
    /* where nothing can be pinned, plain memory serves */
    return error == cudaErrorNotSupported
               ? ingot_cuda_failed("cudaHostRegister", cudaGetErrorString(error), true)
               : ingot_cuda_check(error, "cudaHostRegister");
}

static void cuda_host_release(void *context, void *memory) {
    (void)ingot_cuda_of(context);
    if (memory != nullptr) {
        (void)cudaHostUnregister(memory);
        free(memory);
    }
}

static ingot_status cuda_wait(void *context) {
    return ingot_cuda_status(cudaStreamSynchronize(ingot_cuda_of(context)->stream));
}

/* Contexts of one device share its pool and the pool's mark, which can be set to zero alone: who
 * reads it notes it for all of them. */
static uint64_t cuda_peak_bytes(void *context) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    opened_cuda *own = static_cast<opened_cuda *>(context);
    uint64_t peak = 0, now = 0, anew = 0;
    const std::lock_guard<std::mutex> lock(opened_mutex);
    (void)cudaMemPoolGetAttribute(cuda->memory, cudaMemPoolAttrUsedMemHigh, &peak);
    (void)cudaMemPoolGetAttribute(cuda->memory, cudaMemPoolAttrUsedMemCurrent, &now);
    (void)cudaMemPoolSetAttribute(cuda->memory, cudaMemPoolAttrUsedMemHigh, &anew);
    (void)cudaGetLastError();
    for (opened_cuda *o = all_opened; o != nullptr; o = o->next) {
        if (o->cuda.device == cuda->device) {
            o->peak_bytes = ingot_max_u64(o->peak_bytes, peak);
        }
    }
    peak = ingot_max_u64(own->peak_bytes, now);
    own->peak_bytes = 0;
    return peak;
}

/* ---- views ------------------------------------------------------------------------------------
 */

/* The parts of a view: where each pointer is, and how many bytes it stands for. */
typedef struct view_part {
    const void **pointer;
    uint64_t bytes;
} view_part;

#define VIEW_PARTS 6

static void list_parts(view_part part[VIEW_PARTS], ingot_weight_view *v) {
    const bool is_grouped = v->kind == INGOT_GROUPED;
    const uint64_t groups = v->rows * v->groups_per_row, outliers = v->outlier_count;
    const uint64_t sizes[VIEW_PARTS] = {
        is_grouped ? 0 : v->rows * v->cols * ingot_dtype_bytes(v->dtype),
        is_grouped ? v->rows * v->row_stride_bytes : 0,
        is_grouped ? groups * ingot_dtype_bytes(v->scale_dtype) : 0,
        is_grouped && v->zeros != nullptr ? groups : 0,
        is_grouped && outliers != 0 ? (v->rows + 1) * sizeof(uint64_t) : 0,
        is_grouped ? outliers * sizeof(uint32_t) : 0,
    };
    const void **pointers[VIEW_PARTS] = {
        (const void **)&v->data,
        (const void **)&v->codes,
        (const void **)&v->scales,
        (const void **)&v->zeros,
        (const void **)&v->outlier_row_ptr,
        (const void **)&v->outlier_col,
    };
    for (int i = 0; i < VIEW_PARTS; i++) {
        part[i].pointer = pointers[i];
        part[i].bytes = sizes[i];
    }
}

static view_part outlier_values(ingot_weight_view *v) {
    const view_part part = {
        (const void **)&v->outlier_val,
        v->kind == INGOT_GROUPED ? v->outlier_count * ingot_dtype_bytes(v->dtype) : 0};
    return part;
}

static void cuda_release_view(void *context, ingot_weight_view *device) {
    view_part part[VIEW_PARTS + 1];
    list_parts(part, device);
    part[VIEW_PARTS] = outlier_values(device);
    for (int i = 0; i <= VIEW_PARTS; i++) {
        if (part[i].bytes != 0) {
            cuda_release(context, const_cast<void *>(*part[i].pointer));
        }
    }
    memset(device, 0, sizeof *device);
}

static ingot_status cuda_upload_view(void *context, ingot_weight_view *device,
                                     const ingot_weight_view *host) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    view_part part[VIEW_PARTS + 1];
    const void *from[VIEW_PARTS + 1];
    *device = *host;
    list_parts(part, device);
    part[VIEW_PARTS] = outlier_values(device);
    for (int i = 0; i <= VIEW_PARTS; i++) {
        from[i] = *part[i].pointer;
        *part[i].pointer = nullptr;
    }
    ingot_status status = INGOT_OK;
    for (int i = 0; i <= VIEW_PARTS && status == INGOT_OK; i++) {
        void *memory = nullptr;
        if (part[i].bytes == 0) {
            continue;
        }
        status = cuda_alloc(context, &memory, part[i].bytes);
        *part[i].pointer = memory;
        if (status == INGOT_OK && part[i].bytes % 4 != 0) {
            /* kernels read whole words and shift: what is behind the last scale is defined */
            status = ingot_cuda_status(cudaMemsetAsync(
                static_cast<uint8_t *>(memory) + part[i].bytes / 4 * 4, 0, 4, cuda->stream));
        }
        if (status == INGOT_OK) {
            status = ingot_cuda_status(cudaMemcpyAsync(memory, from[i], part[i].bytes,
                                                       cudaMemcpyHostToDevice, cuda->stream));
        }
    }
    if (status == INGOT_OK) {
        status = ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
    }
    if (status != INGOT_OK) {
        for (int i = 0; i <= VIEW_PARTS; i++) {
            cuda_release(context, const_cast<void *>(*part[i].pointer));
        }
        memset(device, 0, sizeof *device);
    }
    return status;
}

static ingot_status cuda_download_view(void *context, ingot_weight_view *host,
                                       const ingot_weight_view *device, ingot_arena *arena) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    view_part part[VIEW_PARTS + 1];
    *host = *device;
    list_parts(part, host);
    part[VIEW_PARTS] = outlier_values(host);
    ingot_status status = INGOT_OK;
    for (int i = 0; i <= VIEW_PARTS && status == INGOT_OK; i++) {
        void *memory = nullptr;
        if (part[i].bytes != 0) {
            status = ingot_arena_alloc(arena, &memory, part[i].bytes);
            if (status == INGOT_OK) {
                status = ingot_cuda_status(cudaMemcpyAsync(memory, *part[i].pointer, part[i].bytes,
                                                           cudaMemcpyDeviceToHost, cuda->stream));
            }
        }
        *part[i].pointer = memory;
    }
    /* after a failure too: the arena may be given back while a copy is on its way into it */
    const ingot_status waited = ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
    return status != INGOT_OK ? status : waited;
}

/* ---- opening ----------------------------------------------------------------------------------
 */

static void list_opened(opened_cuda *opened) {
    const std::lock_guard<std::mutex> lock(opened_mutex);
    opened->next = all_opened;
    all_opened = opened;
}

static void unlist_opened(const opened_cuda *opened) {
    const std::lock_guard<std::mutex> lock(opened_mutex);
    opened_cuda **link = &all_opened;
    while (*link != nullptr && *link != opened) {
        link = &(*link)->next;
    }
    if (*link != nullptr) {
        *link = opened->next;
    }
}

static void cuda_close(void *context) {
    if (context == nullptr) {
        return;
    }
    unlist_opened(static_cast<opened_cuda *>(context));
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (cuda->stream != nullptr) {
        (void)cudaStreamSynchronize(cuda->stream);
        (void)cudaFreeAsync(cuda->half.values, cuda->stream);
        (void)cudaFreeAsync(cuda->scalars, cuda->stream);
        (void)cudaFreeAsync(cuda->counters, cuda->stream);
    }
    if (cuda->blas != nullptr) {
        (void)cublasDestroy(cuda->blas);
    }
    if (cuda->solver != nullptr) {
        (void)cusolverDnDestroy(cuda->solver);
    }
    if (cuda->stream != nullptr) {
        (void)cudaFreeAsync(cuda->workspace, cuda->stream);
        (void)cudaStreamSynchronize(cuda->stream);
        (void)cudaStreamDestroy(cuda->stream);
    }
    (void)cudaGetLastError();
    ingot_pool_destroy(cuda->pool);
    ingot_free(cuda);
}

/* cuBLAS works in memory of ours: it counts among the peak, and is there from the start. */
static ingot_status open_blas(ingot_cuda *cuda) {
    INGOT_TRY(ingot_cublas_status(cublasCreate(&cuda->blas)));
    INGOT_TRY(ingot_cublas_status(cublasSetStream(cuda->blas, cuda->stream)));
    INGOT_TRY(cuda_alloc(cuda, &cuda->workspace, CUDA_BLAS_BYTES));
    /* initcheck of compute-sanitizer does not see the asynchronous stores of cuBLAS's kernels */
    INGOT_TRY(cuda_zero(cuda, cuda->workspace, CUDA_BLAS_BYTES));
    INGOT_TRY(
        ingot_cublas_status(cublasSetWorkspace(cuda->blas, cuda->workspace, CUDA_BLAS_BYTES)));
    return ingot_cublas_status(cublasSetMathMode(
        cuda->blas,
        (cublasMath_t)(CUBLAS_DEFAULT_MATH | CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION)));
}

static ingot_status fill(ingot_cuda *cuda, int ordinal, unsigned threads) {
    static const ingot_cuda_scalars scalars = {.zero = 0.0f, .one = 1.0f};
    void *memory;
    cuda->device = ordinal;
    INGOT_TRY(ingot_pool_create(&cuda->pool, threads));
    INGOT_TRY(ingot_cuda_status(cudaSetDevice(ordinal)));
    INGOT_TRY(ingot_cuda_status(
        cudaDeviceGetAttribute(&cuda->multiprocessors, cudaDevAttrMultiProcessorCount, ordinal)));
    INGOT_TRY(ingot_cuda_status(
        cudaDeviceGetAttribute(&cuda->major, cudaDevAttrComputeCapabilityMajor, ordinal)));
    INGOT_TRY(ingot_cuda_status(
        cudaDeviceGetAttribute(&cuda->minor, cudaDevAttrComputeCapabilityMinor, ordinal)));
    cuda->is_hopper = cuda->major >= 9;
    product_cluster_open(cuda);
    INGOT_TRY(ingot_cuda_status(cudaDeviceGetAttribute(
        &cuda->shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal)));
    INGOT_TRY(ingot_cuda_status(cudaStreamCreateWithFlags(&cuda->stream, cudaStreamNonBlocking)));
    INGOT_TRY(ingot_cuda_status(cudaDeviceGetDefaultMemPool(&cuda->memory, ordinal)));
    uint64_t keep = UINT64_MAX; /* what is released stays ours for the next block */
    INGOT_TRY(ingot_cuda_status(
        cudaMemPoolSetAttribute(cuda->memory, cudaMemPoolAttrReleaseThreshold, &keep)));
    INGOT_TRY(open_blas(cuda));
    INGOT_TRY(ingot_cuda_solver_status(cusolverDnCreate(&cuda->solver)));
    INGOT_TRY(ingot_cuda_solver_status(cusolverDnSetStream(cuda->solver, cuda->stream)));
    INGOT_TRY(cuda_alloc(cuda, &memory, sizeof scalars));
    cuda->scalars = static_cast<ingot_cuda_scalars *>(memory);
    INGOT_TRY(ingot_cuda_status(cudaMemcpyAsync(cuda->scalars, &scalars, sizeof scalars,
                                                cudaMemcpyHostToDevice, cuda->stream)));
    const uint64_t counter_bytes =
        (uint64_t)cuda->multiprocessors * CUDA_COUNTERS * sizeof(unsigned);
    INGOT_TRY(cuda_alloc(cuda, &memory, counter_bytes));
    cuda->counters = static_cast<unsigned *>(memory);
    INGOT_TRY(cuda_zero(cuda, memory, counter_bytes));
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
}

static const ingot_backend_ops *operations(void) {
    static ingot_backend_ops ops;
    ops.name = "cuda";
    ops.engine = ingot_cuda_engine();
    ops.alloc = cuda_alloc;
    ops.release = cuda_release;
    ops.upload = cuda_upload;
    ops.download = cuda_download;
    ops.copy = cuda_copy;
    ops.copy_rows = cuda_copy_rows;
    ops.fetch = cuda_fetch;
    ops.zero = cuda_zero;
    ops.host_alloc = cuda_host_alloc;
    ops.host_release = cuda_host_release;
    ops.wait = cuda_wait;
    ops.peak_bytes = cuda_peak_bytes;
    ops.upload_view = cuda_upload_view;
    ops.release_view = cuda_release_view;
    ops.download_view = cuda_download_view;
    ops.embed = cuda_embed;
    ops.norm = cuda_norm;
    ops.linear = cuda_linear;
    ops.rotary = cuda_rotary;
    ops.attention = cuda_attention;
    ops.activate = cuda_activate;
    ops.add = cuda_add;
    ops.norm_backward = cuda_norm_backward;
    ops.linear_backward = cuda_linear_backward;
    ops.weight_backward = cuda_weight_backward;
    ops.activate_backward = cuda_activate_backward;
    ops.attention_backward = cuda_attention_backward;
    ops.tuning_begin = cuda_tuning_begin;
    ops.tuning_round = cuda_tuning_round;
    ops.tuning_step = cuda_tuning_step;
    ops.scale_backward = cuda_scale_backward;
    ops.scale_step = cuda_scale_step;
    ops.gram = cuda_gram;
    ops.drift = cuda_drift;
    ops.distance = cuda_distance;
    ops.inner = cuda_inner;
    ops.score = cuda_score;
    ops.draw = cuda_draw;
    ops.divergence = cuda_divergence;
    ops.divergence_backward = cuda_divergence_backward;
    ops.values = cuda_values;
    ops.gram_fold = cuda_gram_fold;
    ops.gram_diagonal = cuda_gram_diagonal;
    ops.factorize = cuda_factorize;
    ops.quantize_rtn = cuda_rtn;
    ops.quantize_search = cuda_search;
    ops.quantize_gptq = cuda_gptq;
    ops.outliers_choose = cuda_outliers_choose;
    ops.outliers_place = cuda_outliers_place;
    ops.quantized_values = cuda_quantized_values;
    ops.quantized_pack = cuda_quantized_pack;
    ops.weight_error = cuda_weight_error;
    ops.quadratic_loss = cuda_quadratic_loss;
    ops.gram_solve = cuda_gram_solve;
    ops.multiply_add = cuda_multiply_add;
    ops.quantize_polish = cuda_polish;
    ops.product = cuda_product;
    ops.product_workspace_bytes = cuda_product_workspace_bytes;
    ops.product_takes = cuda_product_takes;
    ops.product_hands = cuda_product_hands;
    ops.measure_read = cuda_measure_read;
    ops.measure_product = cuda_measure_product;
    ops.failure = ingot_cuda_failure;
    ops.close = cuda_close;
    return &ops;
}

extern "C" __attribute__((visibility("default"))) unsigned ingot_cuda_interface(void) {
    return INGOT_CUDA_INTERFACE;
}

extern "C" __attribute__((visibility("default"))) ingot_status
ingot_cuda_open(ingot_backend *out, int ordinal, unsigned threads, ingot_error *error) {
    static const char remedy[] = "use --device cpu, or see nvidia-smi";
    int count = 0;
    memset(out, 0, sizeof *out);
    const cudaError_t found = cudaGetDeviceCount(&count);
    if (found != cudaSuccess || count == 0) {
        (void)cudaGetLastError();
        return ingot_error_set(error, INGOT_ERR_DEVICE, nullptr, nullptr, remedy,
                               "no CUDA device: %s",
                               found != cudaSuccess ? cudaGetErrorString(found) : "none found");
    }
    ordinal = ordinal < 0 ? 0 : ordinal;
    if (ordinal >= count) {
        return ingot_error_set(error, INGOT_ERR_DEVICE, nullptr, nullptr, remedy,
                               "no CUDA device %d: there are %d", ordinal, count);
    }
    cudaDeviceProp properties;
    const cudaError_t known = cudaGetDeviceProperties(&properties, ordinal);
    if (known != cudaSuccess) {
        (void)cudaGetLastError();
        return ingot_error_set(error, INGOT_ERR_DEVICE, nullptr, nullptr, remedy,
                               "CUDA device %d cannot be used: %s", ordinal,
                               cudaGetErrorString(known));
    }
    if (properties.major < LEAST_MAJOR) {
        return ingot_error_set(
            error, INGOT_ERR_DEVICE, nullptr, nullptr, remedy,
            "CUDA device %d (%s) has compute capability %d.%d, the least is %d.0", ordinal,
            properties.name, properties.major, properties.minor, LEAST_MAJOR);
    }
    void *memory = nullptr;
    ingot_status status = ingot_alloc_zero(&memory, 1, sizeof(opened_cuda));
    ingot_cuda *cuda = static_cast<ingot_cuda *>(memory);
    if (status == INGOT_OK) {
        status = fill(cuda, ordinal, threads);
        list_opened(static_cast<opened_cuda *>(memory)); /* others read its device */
        ingot_device_fault_arm(); /* from here on: what opening takes is not counted */
    }
    if (status != INGOT_OK) {
        const char *failure = ingot_cuda_failure();
        const char *reason = failure[0] != '\0' ? failure : ingot_status_text(status);
        (void)cudaGetLastError();
        cuda_close(cuda);
        return ingot_error_set(error, status, nullptr, nullptr, remedy,
                               "CUDA device %d could not be opened: %s", ordinal, reason);
    }
    out->ops = operations();
    out->context = cuda;
    out->pool = cuda->pool;
    out->has_own_memory = true;
    out->batch_tokens = BATCH_TOKENS;
    (void)snprintf(out->path, sizeof out->path, "cuda/%.40s/sm_%d%d", properties.name,
                   properties.major, properties.minor);
    return INGOT_OK;
}
