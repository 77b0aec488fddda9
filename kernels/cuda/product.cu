/* cuda_product: x is normalised and rounded where the kernel that multiplies does not do it,
 * outliers are multiplied by themselves, and a kernel is chosen by the shape. */
#include "kernels/cuda/product_input.h"
#include "kernels/cuda/product_load.h"
#include "kernels/cuda/weights.h"

#define THREADS 256

/* ---- x in 16 bits -----------------------------------------------------------------------------
 */

#define INPUT_THREADS 512

typedef struct input_job {
    void *out;       /* [m][stride] */
    uint64_t stride; /* columns behind those of the source become zero */
    unsigned tile;   /* not 0: out is in tiles of so many rows (product_tile_at) */
    product_shared shared;
    product_source source;
} input_job;

/* In all blocks of a kernel, in no order with anything else it does. */
__device__ static inline void input_clear(const product_shared &shared) {
    for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < shared.counter_count;
         i += gridDim.x * blockDim.x) {
        shared.counters[i] = 0;
    }
}

/* A block per row; columns in the order of codes of BITS bits, as in product_task. */
template <int BITS, typename T>
__global__ __launch_bounds__(INPUT_THREADS) static void product_input_kernel(const input_job job) {
    __shared__ float parts[INPUT_THREADS / 32];
    product_norm<INPUT_THREADS, 2, true> norm;
    T *out = static_cast<T *>(job.out) + blockIdx.x * job.stride;
    product_let_next_start();
    norm.fetch(job.source);
    product_wait();
    input_clear(job.shared);
    norm.row(parts, job.source, blockIdx.x, (unsigned)(job.stride / 8),
             [&](unsigned unit, const float(&v)[8]) {
                 if constexpr (BITS != 0) {
                     if (job.tile != 0) {
                         product_put_tile<BITS, T>(static_cast<T *>(job.out), job.tile, blockIdx.x,
                                                   unit, v);
                         return;
                     }
                 }
                 product_put_unit<BITS, T>(unit, v, [&](unsigned at) { return out + at * 8; });
             });
}

#define TILE_THREADS 128
/* Of a multiprocessor: 32 registers for a thread, where there are 2048 threads; others have 1536.
 */
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ == 800 || __CUDA_ARCH__ == 900
#define TILE_BLOCKS 16
#else
#define TILE_BLOCKS 12
#endif

/* x as it is to tiles in the order of codes of 4 bits, which stays within units of eight columns:
 * a warp takes eight rows of a step.  Its lanes write adjacent words.  A block is so small that it
 * finds registers beside one of product_wgmma.h, and waits there for the end of the product in
 * front. */
__global__ __launch_bounds__(TILE_THREADS,
                             TILE_BLOCKS) static void product_tile_kernel(const input_job job,
                                                                          unsigned m) {
    product_let_next_start();
    product_wait();
    input_clear(job.shared);
    const unsigned warp = (blockIdx.x * TILE_THREADS + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const unsigned step = warp / (job.tile / 8), row = warp % (job.tile / 8) * 8 + lane / 4;
    if ((uint64_t)step * PRODUCT_STEP >= job.stride) {
        return;
    }
    const uint16_t *x = static_cast<const uint16_t *>(job.source.x) + row * job.source.stride;
    uint16_t *out = static_cast<uint16_t *>(job.out);
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const uint64_t column = (uint64_t)step * PRODUCT_STEP + lane % 4 * PRODUCT_CHUNK + i * 8;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (row < m && column < job.source.cols) {
            v = *reinterpret_cast<const uint4 *>(x + column);
        }
        const unsigned pairs[4] = {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
                                   __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632)};
#pragma unroll
        for (unsigned pair = 0; pair < 4; pair++) {
            *reinterpret_cast<unsigned *>(out + product_tile_at(job.tile, row, column + 2 * pair)) =
                pairs[pair];
        }
    }
}

/* Whether kernels can read x as it is. */
static bool is_input_ready(const product_source *source, ingot_dtype dtype) {
    return source->dtype == dtype && source->norm_weight == nullptr && source->is_even;
}

static bool is_even(const ingot_product *job) {
    return job->w->cols % 8 == 0 && (reinterpret_cast<uintptr_t>(job->x) & 15) == 0 &&
           (reinterpret_cast<uintptr_t>(job->norm_weight) & 15) == 0;
}

/* Whether the kernel for one or two rows can, which normalises and rounds on its way. */
static bool is_source_ready(const product_source *source) {
    return source->is_even &&
           (source->norm_weight == nullptr || source->norm_kind != INGOT_NORM_LAYER);
}

/* Whole steps of the kernel that takes tiles: two of 128 columns are one of product_wgmma.h. */
static uint64_t input_stride(const ingot_product *job, unsigned tile) {
    const uint64_t step = PRODUCT_STEP * (tile != 0 ? 2 : 1);
    return (job->w->cols + step - 1) / step * step;
}

/* In rows, or tiles of so many. */
static uint64_t input_bytes(const ingot_product *job, unsigned tile) {
    return product_aligned((tile != 0 ? tile : job->m) * input_stride(job, tile) * 2);
}

template <int BITS>
static ingot_status launch_input(const product_context *context, const input_job &input,
                                 uint64_t m) {
    if (BITS == 4 && input.tile != 0 && is_input_ready(&input.source, context->dtype)) {
        const uint64_t warps = input.stride / PRODUCT_STEP * (input.tile / 8);
        return product_launch(context, product_tile_kernel,
                              dim3((unsigned)ingot_ceil_div(warps, TILE_THREADS / 32)),
                              TILE_THREADS, 0, 1, input, (unsigned)m);
    }
    const dim3 grid((unsigned)m);
    return context->dtype == INGOT_F16
               ? product_launch(context, product_input_kernel<BITS, __half>, grid, INPUT_THREADS, 0,
                                1, input)
               : product_launch(context, product_input_kernel<BITS, __nv_bfloat16>, grid,
                                INPUT_THREADS, 0, 1, input);
}

/* x in 16 bits to the workspace; *source becomes that. */
static ingot_status make_input(product_context *context, product_source *source,
                               const ingot_product *job, unsigned order, unsigned tile,
                               const product_shared &shared) {
    const input_job input = {context->workspace, input_stride(job, tile), tile, shared, *source};
    ingot_status status;
    if (order == 0) {
        status = launch_input<0>(context, input, job->m);
    } else {
        PRODUCT_FOR_BITS(status, order, launch_input, context, input, job->m);
    }
    INGOT_TRY(status);
    source->x = input.out;
    source->dtype = job->dtype;
    source->stride = input.stride;
    source->norm_weight = nullptr;
    source->is_even = job->w->cols % 8 == 0;
    context->workspace += input_bytes(job, tile);
    context->is_chained = true;
    return INGOT_OK;
}

/* ---- outliers ---------------------------------------------------------------------------------
 */

/* A warp per row of W: out[i][row] = the outliers of the row times those columns of row i of x. */
template <typename T>
__global__ __launch_bounds__(THREADS) static void product_outliers_kernel(
    float *out, const ingot_weight_view w, const T *x, uint64_t x_stride, unsigned x_order,
    unsigned x_tile, unsigned m) {
    product_let_next_start();
    product_wait();
    const unsigned lane = threadIdx.x % 32;
    const uint64_t warps = (uint64_t)gridDim.x * (THREADS / 32);
    for (uint64_t row = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32; row < w.rows;
         row += warps) {
        const uint64_t begin = w.outlier_row_ptr[row], end = w.outlier_row_ptr[row + 1];
        for (unsigned i = 0; i < m; i++) {
            float sum = 0.0f;
            for (uint64_t k = begin + lane; k < end; k += 32) {
                const uint64_t column = product_column(w.outlier_col[k], x_order);
                const uint64_t at =
                    x_tile != 0 ? product_tile_at(x_tile, i, column) : i * x_stride + column;
                sum = fmaf(cuda_float_at(w.outlier_val, w.dtype, k), to_float(x[at]), sum);
            }
            __syncwarp();
            for (int other = 16; other > 0; other /= 2) {
                sum += __shfl_xor_sync(0xffffffffu, sum, other);
            }
            if (lane == 0) {
                out[i * w.rows + row] = sum;
            }
        }
    }
}

static bool has_outliers(const ingot_weight_view *w) {
    return w != nullptr && w->kind == INGOT_GROUPED && w->outlier_count != 0;
}

static uint64_t addend_bytes(const ingot_product *job) {
    return (has_outliers(job->w) + has_outliers(job->up)) *
           product_aligned(job->m * job->w->rows * sizeof(float));
}

/* What outliers give to both sums; the kernels for packed weights take it from there. */
static ingot_status make_addends(product_context *context, product_task *task) {
    for (int side = 0; side <= (task->has_up ? 1 : 0); side++) {
        const ingot_weight_view &w = task->w[side];
        if (!has_outliers(&w)) {
            continue;
        }
        float *out = reinterpret_cast<float *>(context->workspace);
        const unsigned m = (unsigned)task->m;
        const dim3 grid((unsigned)ingot_min_u64(ingot_ceil_div(w.rows, THREADS / 32),
                                                16u * (uint64_t)context->cuda->multiprocessors));
        INGOT_TRY(context->dtype == INGOT_F16
                      ? product_launch(context, product_outliers_kernel<__half>, grid, THREADS, 0,
                                       1, out, w, static_cast<const __half *>(task->x),
                                       task->x_stride, task->x_order, task->x_tile, m)
                      : product_launch(context, product_outliers_kernel<__nv_bfloat16>, grid,
                                       THREADS, 0, 1, out, w,
                                       static_cast<const __nv_bfloat16 *>(task->x), task->x_stride,
                                       task->x_order, task->x_tile, m));
        task->addend[side] = out;
        context->workspace += product_aligned(m * w.rows * sizeof(float));
        context->is_chained = true;
    }
    return INGOT_OK;
}

/* ---- the product ------------------------------------------------------------------------------
 */

typedef enum product_path { PATH_FEW, PATH_BLOCK, PATH_WGMMA, PATH_PLAIN, PATH_GEMM } product_path;

#define PLAIN_MOST 8u /* rows of x from which weights in 16 bits pay for kinds without a kernel */

bool cuda_product_is_alike(const ingot_weight_view *w, const ingot_weight_view *up) {
    return up == nullptr || (up->rows == w->rows && cuda_weights_are_alike(up, w));
}

static product_path choose(const ingot_cuda *cuda, const ingot_product *job) {
    if (product_few_can(cuda, job->w, job->m)) {
        return PATH_FEW;
    }
    if (product_wgmma_tile(cuda, job->w, job->m) != 0) {
        return PATH_WGMMA;
    }
    if (product_block_can(job->w, job->m)) {
        return PATH_BLOCK;
    }
    return job->m <= PLAIN_MOST ? PATH_PLAIN : PATH_GEMM;
}

static bool is_supported(const ingot_product *job) {
    const ingot_weight_view *w = job->w;
    return cuda_weight_kind(w) >= 0 && w->rows <= UINT32_MAX && w->cols <= UINT32_MAX &&
           w->cols != 0 && job->m <= UINT32_MAX &&
           (job->dtype == INGOT_F16 || job->dtype == INGOT_BF16) &&
           cuda_product_is_alike(w, job->up) && (job->up == nullptr || job->has_activation);
}

static product_task task_of(const ingot_product *job) {
    product_task task = {};
    task.w[0] = *job->w;
    task.bias[0] = job->bias;
    task.has_up = job->up != nullptr;
    if (task.has_up) {
        task.w[1] = *job->up;
        task.bias[1] = job->up_bias;
    }
    task.residual = job->residual;
    task.y = job->y;
    task.y_dtype = job->y_dtype;
    task.activation = job->has_activation ? (int)job->activation : -1;
    task.m = job->m;
    return task;
}

extern "C" uint64_t cuda_product_workspace_bytes(void *context, const ingot_product *job) {
    const ingot_cuda *cuda = static_cast<const ingot_cuda *>(context);
    uint64_t bytes = input_bytes(job, product_wgmma_tile(cuda, job->w, job->m));
    switch (choose(cuda, job)) {
    case PATH_WGMMA: {
        uint64_t shared_bytes;
        (void)product_wgmma_shared(cuda, job->w, job->up != nullptr, job->m, nullptr,
                                   &shared_bytes);
        bytes += shared_bytes + addend_bytes(job);
        break;
    }
    case PATH_FEW:
    case PATH_BLOCK:
        bytes += addend_bytes(job);
        break;
    case PATH_GEMM:
        bytes += product_gemm_workspace_bytes(task_of(job));
        break;
    default:
        break;
    }
    return bytes;
}

extern "C" bool cuda_product_uses_l1(void *context, const ingot_product *job) {
    const ingot_cuda *cuda = static_cast<const ingot_cuda *>(context);
    const product_task task = task_of(job);
    return choose(cuda, job) == PATH_FEW && !product_stream_can(cuda, &task, job->dtype);
}

extern "C" ingot_status cuda_product(void *context, const ingot_product *job) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (!is_supported(job)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    if (job->m == 0 || job->w->rows == 0) {
        return INGOT_OK;
    }
    const product_path path = choose(cuda, job);
    product_context work = {cuda,
                            job->stream != nullptr ? job->stream : cuda->stream,
                            job->dtype,
                            job->is_chained,
                            static_cast<uint8_t *>(job->workspace),
                            cuda_product_uses_l1(cuda, job)};
    product_source source = {job->x,         job->x_dtype,     job->w->cols,
                             job->w->cols,   job->norm_weight, job->norm_bias,
                             job->norm_kind, job->norm_eps,    is_even(job)};
    product_task task = task_of(job);
    const bool is_packed = path == PATH_BLOCK || path == PATH_WGMMA;
    const bool has_addends = has_outliers(job->w) || has_outliers(job->up);
    const bool is_plain = is_input_ready(&source, job->dtype);
    const bool is_ready = path == PATH_FEW && !has_addends ? is_source_ready(&source)
                          : path == PATH_BLOCK ? is_plain && product_block_orders(job->w, job->m)
                                               : is_plain && path != PATH_WGMMA;
    task.x_tile = path == PATH_WGMMA ? product_wgmma_tile(cuda, job->w, job->m) : 0;
    task.x_order = is_packed && !is_ready ? job->w->bits : 0;
    if (path == PATH_WGMMA) {
        uint64_t bytes;
        task.shared =
            product_wgmma_shared(cuda, job->w, task.has_up, job->m, work.workspace, &bytes);
        work.workspace += bytes;
    }
    if (!is_ready) {
        INGOT_TRY(make_input(&work, &source, job, task.x_order, task.x_tile, task.shared));
    }
    task.x = source.x;
    task.x_stride = source.stride;
    if (has_addends && (path == PATH_FEW || is_packed)) {
        INGOT_TRY(make_addends(&work, &task));
    }
    return path == PATH_FEW     ? product_few(&work, task, source)
           : path == PATH_BLOCK ? product_block(&work, task)
           : path == PATH_WGMMA ? product_wgmma(&work, task)
           : path == PATH_PLAIN ? product_plain(&work, task)
                                : product_gemm(&work, task);
}
