/* The column loop of GPTQ on the device, in the form of kernels/gptq.c (LDLQ, arXiv 2307.13304).
 *
 * Targets of all columns are kept up to date ("right-looking"): when a group is done, its errors
 * times the feedback are added to the targets of later columns, at once for those within the next
 * 128 columns and by one product per 128 columns for the rest, in TF32: errors are rounded to it by
 * 2^-12, of the feedback tensor cores may cut off up to 2^-10.  So much of an update, which is
 * about a step of the format, moves nothing but ties.  Inside a group one warp takes a row, each
 * lane up to four columns; a column's error goes to the other lanes by shuffle and the feedback of
 * the block lies in shared memory. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/search.h"

#define THREADS 256
#define WARPS   8
#define BLOCK   128 /* columns of one update of what follows */
#define EACH    4   /* columns of a lane */

typedef struct gptq_job {
    const ingot_quantized *q;
    const ingot_gptq_factor *factor;
    uint64_t rows, n;
    float *target;  /* [rows][n], in the order of the factor */
    float *search;  /* [rows][group]: error-updated weights of the group at hand */
    float *weight;  /* [rows][n], in the order of the factor */
    float *error;   /* [rows][BLOCK], of the columns since the last update of all, in TF32 */
    float *ordered; /* [n]: importance in the order of the factor */
    uint8_t *skip;  /* [rows][n], in the order of the factor; NULL: no outliers */
    float *kept;    /* [rows][n], column order: values of outliers; NULL likewise */
} gptq_job;

/* ---- order ------------------------------------------------------------------------------------
 */

__global__ static void gather_kernel(float *target, float *weight, uint8_t *skip, const float *w,
                                     const uint8_t *mask, const uint32_t *order, uint64_t rows,
                                     uint64_t n) {
    const uint64_t total = rows * n, step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const uint64_t from = i / n * n + order[i % n];
        target[i] = weight[i] = w[from];
        if (skip != nullptr) {
            skip[i] = mask[from];
        }
    }
}

__global__ static void order_kernel(float *out, const float *in, const uint32_t *order,
                                    uint64_t n) {
    const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        out[i] = in[order[i]];
    }
}

/* ---- error-updated weights --------------------------------------------------------------------
 */

/* search = w + d with d (I + A) = t - w: what a group's targets become if the group itself is then
 * quantized without error (kernels/gptq.c, updated_weights).  Groups of at most BLOCK columns. */
__global__ __launch_bounds__(WARPS * 32) void updated_kernel(float *search, const float *target,
                                                             const float *weight,
                                                             const float *feedback, uint64_t rows,
                                                             uint64_t n, uint64_t at, int count) {
    extern __shared__ float block[]; /* [count][BLOCK] */
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < count * BLOCK; i += blockDim.x) {
        const int row = i / BLOCK, col = i % BLOCK;
        block[i] = col < count ? feedback[(at + row) * n + at + col] : 0.0f;
    }
    __syncthreads();
    for (uint64_t row = (uint64_t)blockIdx.x * WARPS + threadIdx.x / 32; row < rows;
         row += (uint64_t)gridDim.x * WARPS) {
        float shift[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int col = k * 32 + lane;
            const uint64_t from = row * n + at + col;
            shift[k] = col < count ? target[from] - weight[from] : 0.0f;
        }
#pragma unroll
        for (int piece = 0; piece < EACH; piece++) {
            for (int j = piece * 32; j < piece * 32 + 32 && j < count; j++) {
                const float d = __shfl_sync(0xffffffffu, shift[piece], j % 32);
#pragma unroll
                for (int k = piece; k < EACH; k++) {
                    shift[k] = fmaf(-d, block[j * BLOCK + k * 32 + lane], shift[k]);
                }
            }
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int col = k * 32 + lane;
            if (col < count) {
                search[row * count + col] = shift[k] + weight[row * n + at + col];
            }
        }
    }
}

/* The two halves of the same for larger groups, around a triangular solve: d = t - w, search += w.
 */
__global__ static void shift_kernel(float *search, const float *target, const float *weight,
                                    uint64_t rows, uint64_t n, uint64_t at, uint64_t count,
                                    bool is_before) {
    const uint64_t total = rows * count, step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < total; i += step) {
        const uint64_t from = i / count * n + at + i % count;
        search[i] = is_before ? target[from] - weight[from] : search[i] + weight[from];
    }
}

static ingot_status updated_weights(const ingot_cuda *cuda, const gptq_job *job, uint64_t at,
                                    uint64_t count) {
    const float *feedback = job->factor->feedback;
    if (count <= BLOCK) {
        const int bytes = (int)count * BLOCK * (int)sizeof(float);
        const unsigned blocks = (unsigned)ingot_min_u64(ingot_ceil_div(job->rows, WARPS),
                                                        4u * (unsigned)cuda->multiprocessors);
        updated_kernel<<<blocks, WARPS * 32, bytes, cuda->stream>>>(
            job->search, job->target, job->weight, feedback, job->rows, job->n, at, (int)count);
        return ingot_cuda_launched();
    }
    const unsigned blocks = cuda_blocks(cuda, job->rows * count, THREADS);
    const float one = 1.0f;
    shift_kernel<<<blocks, THREADS, 0, cuda->stream>>>(job->search, job->target, job->weight,
                                                       job->rows, job->n, at, count, true);
    INGOT_TRY(ingot_cuda_launched());
    /* Row-major d U = p is column-major U^T d^T = p^T, and U^T in row-major memory is lower. */
    INGOT_TRY(ingot_cublas_status(cublasStrsm(cuda->blas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_LOWER,
                                              CUBLAS_OP_N, CUBLAS_DIAG_UNIT, (int)count,
                                              (int)job->rows, &one, feedback + at * job->n + at,
                                              (int)job->n, job->search, (int)count)));
    shift_kernel<<<blocks, THREADS, 0, cuda->stream>>>(job->search, job->target, job->weight,
                                                       job->rows, job->n, at, count, false);
    return ingot_cuda_launched();
}

/* ---- columns ----------------------------------------------------------------------------------
 */

typedef struct column_job {
    uint8_t *codes; /* [rows][n], column order */
    float *kept;    /* likewise, or NULL */
    float *error;   /* [rows][BLOCK], from column error_at on */
    const float *target, *weight, *feedback, *scales;
    const uint8_t *zeros, *skip;
    const uint32_t *order;
    uint64_t rows, n, at, groups, group;
    int count, error_at;
    unsigned bits;
    ingot_dtype keep_dtype;
} column_job;

__global__ __launch_bounds__(WARPS * 32) void columns_kernel(const column_job job) {
    extern __shared__ float block[]; /* [count][BLOCK] */
    const int lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < job.count * BLOCK; i += blockDim.x) {
        const int row = i / BLOCK, col = i % BLOCK;
        block[i] = col < job.count ? job.feedback[(job.at + row) * job.n + job.at + col] : 0.0f;
    }
    __syncthreads();
    const float top = (float)((1u << job.bits) - 1);
    for (uint64_t row = (uint64_t)blockIdx.x * WARPS + threadIdx.x / 32; row < job.rows;
         row += (uint64_t)gridDim.x * WARPS) {
        const float scale = job.scales[row * job.groups + job.group];
        const float zero = (float)job.zeros[row * job.groups + job.group];
        const bool is_zero = scale == 0.0f;
        float target[EACH], weight[EACH], error[EACH], kept[EACH];
        unsigned code[EACH], is_kept[EACH];
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int col = k * 32 + lane;
            const uint64_t from = row * job.n + job.at + col;
            target[k] = col < job.count ? job.target[from] : 0.0f;
            weight[k] = col < job.count ? job.weight[from] : 0.0f;
            is_kept[k] = col < job.count && job.skip != nullptr ? job.skip[from] : 0;
            error[k] = kept[k] = 0.0f;
            code[k] = 0;
        }
#pragma unroll
        for (int piece = 0; piece < EACH; piece++) {
            for (int j = piece * 32; j < piece * 32 + 32 && j < job.count; j++) {
                /* Every lane does the owner's work on its own column; only the owner's counts. */
                const float x = is_zero ? 0.0f : __fdiv_rn(target[piece], scale);
                const float c = rintf(fminf(fmaxf(x, -zero), top - zero));
                float e = fmaf(-scale, c, weight[piece]);
                const float value = cuda_outlier_store(target[piece], job.keep_dtype);
                e = is_kept[piece] != 0 ? weight[piece] - value : e;
                if (lane == j % 32) {
                    code[piece] = is_kept[piece] != 0 ? (unsigned)zero : (unsigned)(c + zero);
                    kept[piece] = value;
                    error[piece] = e;
                }
                e = __shfl_sync(0xffffffffu, e, j % 32);
#pragma unroll
                for (int k = piece; k < EACH; k++) {
                    target[k] = fmaf(e, block[j * BLOCK + k * 32 + lane], target[k]);
                }
            }
        }
#pragma unroll
        for (int k = 0; k < EACH; k++) {
            const int col = k * 32 + lane;
            if (col < job.count) {
                const uint64_t to = row * job.n + job.order[job.at + col];
                job.codes[to] = (uint8_t)code[k];
                job.error[row * BLOCK + job.error_at + col] = rounded_to_tf32(error[k]);
                if (is_kept[k] != 0) {
                    job.kept[to] = kept[k];
                }
            }
        }
    }
}

/* target[:, first .. end-1] += error[:, 0 .. k-1] feedback[at .. at+k-1, first .. end-1] */
static ingot_status update(const ingot_cuda *cuda, const gptq_job *job, uint64_t at, int error_at,
                           uint64_t k, uint64_t first, uint64_t end) {
    const float one = 1.0f;
    if (first >= end) {
        return INGOT_OK;
    }
    /* row-major C += E A is column-major C^T += A^T E^T */
    return ingot_cublas_status(cublasGemmEx(
        cuda->blas, CUBLAS_OP_N, CUBLAS_OP_N, (int)(end - first), (int)job->rows, (int)k, &one,
        job->factor->feedback + at * job->n + first, CUDA_R_32F, (int)job->n, job->error + error_at,
        CUDA_R_32F, BLOCK, &one, job->target + first, CUDA_R_32F, (int)job->n,
        CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT));
}

/* ---- the loop ---------------------------------------------------------------------------------
 */

/* Columns done since all later targets were last brought up to date, and how far they are now. */
typedef struct progress {
    uint64_t since, ahead;
} progress;

static ingot_status search_group(const ingot_cuda *cuda, const gptq_job *job, uint64_t at,
                                 uint64_t count, uint64_t group) {
    const ingot_quantized *q = job->q;
    cuda_search_job search = {};
    INGOT_TRY(updated_weights(cuda, job, at, count));
    search.w = job->search;
    search.importance = job->ordered + at;
    search.rows = job->rows;
    search.cols = search.stride = search.group = count;
    search.groups = 1;
    search.bits = q->format.bits;
    search.scale_dtype = q->format.scale_dtype;
    search.scales = q->scales;
    search.zeros = q->zeros;
    search.scale_stride = q->groups;
    search.first_group = group;
    search.skip = job->skip != nullptr ? job->skip + at : nullptr;
    search.skip_stride = job->n;
    return cuda_search_groups(cuda, &search, q->format.zero_mode);
}

static ingot_status quantize_columns(const ingot_cuda *cuda, const gptq_job *job, uint64_t at,
                                     uint64_t count, uint64_t group, int error_at) {
    const ingot_quantized *q = job->q;
    column_job columns = {};
    columns.codes = q->codes;
    columns.kept = job->kept;
    columns.error = job->error;
    columns.target = job->target;
    columns.weight = job->weight;
    columns.feedback = job->factor->feedback;
    columns.scales = q->scales;
    columns.zeros = q->zeros;
    columns.skip = job->skip;
    columns.order = job->factor->order;
    columns.rows = job->rows;
    columns.n = job->n;
    columns.at = at;
    columns.groups = q->groups;
    columns.group = group;
    columns.count = (int)count;
    columns.error_at = error_at;
    columns.bits = q->format.bits;
    columns.keep_dtype = q->outliers.dtype;
    const unsigned blocks = (unsigned)ingot_min_u64(ingot_ceil_div(job->rows, WARPS),
                                                    4u * (unsigned)cuda->multiprocessors);
    columns_kernel<<<blocks, WARPS * 32, (int)count * BLOCK * sizeof(float), cuda->stream>>>(
        columns);
    return ingot_cuda_launched();
}

/* Quantizes columns at .. at+count-1 of one group, at most BLOCK of them, and carries their errors
 * on: to the columns of the next BLOCK at once, to all others when BLOCK of them are done. */
static ingot_status take_columns(const ingot_cuda *cuda, const gptq_job *job, progress *p,
                                 uint64_t at, uint64_t count, uint64_t group) {
    const int error_at = (int)(at - p->since);
    INGOT_TRY(quantize_columns(cuda, job, at, count, group, error_at));
    const uint64_t done = at + count;
    if (done - p->since < BLOCK && p->ahead > done) {
        return update(cuda, job, at, error_at, count, done, p->ahead);
    }
    INGOT_TRY(
        update(cuda, job, p->since, 0, done - p->since, p->ahead > done ? p->ahead : done, job->n));
    if (p->ahead > done) {
        INGOT_TRY(update(cuda, job, at, error_at, count, done, p->ahead));
    }
    p->since = done;
    return INGOT_OK;
}

static ingot_status take_groups(const ingot_cuda *cuda, const gptq_job *job,
                                const uint32_t *order) {
    const uint64_t size = job->factor->group, n = job->n;
    progress p = {0, 0};
    for (uint64_t at = 0; at < n;) {
        const uint64_t group = order[at] / size;
        const uint64_t count = ingot_min_u64(size, n - group * size);
        if (at == p.since) { /* a new run of columns: the next BLOCK, cut to whole groups below */
            p.ahead = ingot_min_u64(at + BLOCK, n);
        }
        if (at + count > p.ahead && at != p.since) { /* would not fit the error buffer */
            INGOT_TRY(update(cuda, job, p.since, 0, at - p.since, p.ahead, n));
            p.since = at;
            p.ahead = ingot_min_u64(at + BLOCK, n);
        }
        INGOT_TRY(search_group(cuda, job, at, count, group));
        for (uint64_t done = 0; done < count; done += BLOCK) {
            const uint64_t width = ingot_min_u64(BLOCK, count - done);
            if (at + done == p.since) {
                p.ahead = ingot_min_u64(at + done + BLOCK, n);
            }
            INGOT_TRY(take_columns(cuda, job, &p, at + done, width, group));
        }
        at += count;
    }
    return INGOT_OK;
}

/* ---- outliers ---------------------------------------------------------------------------------
 */

__global__ static void take_kept_kernel(float *val, const float *kept, const uint64_t *row_ptr,
                                        const uint32_t *col, uint64_t rows, uint64_t n) {
    const uint64_t row = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (uint64_t i = row < rows ? row_ptr[row] : 0; row < rows && i < row_ptr[row + 1]; i++) {
        val[i] = kept[row * n + col[i]];
    }
}

static ingot_status make_masks(const ingot_cuda *cuda, gptq_job *job, uint8_t **mask,
                               ingot_arena *scratch) {
    const ingot_quantized *q = job->q;
    INGOT_TRY(ingot_arena_array(scratch, (void **)mask, job->rows, job->n));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&job->skip, job->rows, job->n));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&job->kept, job->rows, job->n * sizeof(float)));
    return cuda_outlier_mask(cuda, *mask, &q->outliers, job->rows, job->n);
}

/* Every thread block of the kernels above may hold a whole block of feedback. */
static ingot_status allow_shared_memory(void) {
    constexpr int BYTES = BLOCK * BLOCK * (int)sizeof(float);
    static_assert(BYTES <= CUDA_LEAST_SHARED_BYTES, "on every device");
    INGOT_TRY(ingot_cuda_status(
        cudaFuncSetAttribute(updated_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES)));
    return ingot_cuda_status(
        cudaFuncSetAttribute(columns_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, BYTES));
}

ingot_status cuda_gptq(void *context, ingot_quantized *q, const float *w,
                       const ingot_gptq_factor *factor, ingot_arena *scratch) {
    const ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t rows = q->rows, n = q->cols;
    const bool has_outliers = q->outliers.count != 0;
    gptq_job job = {};
    uint8_t *mask = nullptr;
    uint32_t *order; /* host */
    void *memory;
    if (rows == 0 || n == 0) {
        return INGOT_OK;
    }
    if (rows > INT32_MAX || n > INT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    job.q = q;
    job.factor = factor;
    job.rows = rows;
    job.n = n;
    INGOT_TRY(ingot_arena_array(scratch, (void **)&job.target, rows, n * sizeof(float)));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&job.weight, rows, n * sizeof(float)));
    INGOT_TRY(
        ingot_arena_array(scratch, (void **)&job.search, rows, factor->group * sizeof(float)));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&job.error, rows, BLOCK * sizeof(float)));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&job.ordered, n, sizeof(float)));
    if (has_outliers) {
        INGOT_TRY(make_masks(cuda, &job, &mask, scratch));
    }
    INGOT_TRY(allow_shared_memory());
    gather_kernel<<<cuda_blocks(cuda, rows * n, THREADS), THREADS, 0, cuda->stream>>>(
        job.target, job.weight, job.skip, w, mask, factor->order, rows, n);
    INGOT_TRY(ingot_cuda_launched());
    order_kernel<<<(unsigned)ingot_ceil_div(n, THREADS), THREADS, 0, cuda->stream>>>(
        job.ordered, factor->importance, factor->order, n);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(ingot_alloc(&memory, n * sizeof *order));
    order = static_cast<uint32_t *>(memory);
    ingot_status status = ingot_cuda_status(cudaMemcpyAsync(order, factor->order, n * sizeof *order,
                                                            cudaMemcpyDeviceToHost, cuda->stream));
    if (status == INGOT_OK) {
        status = ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
    }
    if (status == INGOT_OK) {
        status = take_groups(cuda, &job, order);
    }
    ingot_free(order);
    if (status == INGOT_OK && has_outliers) {
        take_kept_kernel<<<(unsigned)ingot_ceil_div(rows, THREADS), THREADS, 0, cuda->stream>>>(
            q->outliers.val, job.kept, q->outliers.row_ptr, q->outliers.col, rows, n);
        status = ingot_cuda_launched();
    }
    return status;
}
