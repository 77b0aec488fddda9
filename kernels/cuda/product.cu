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
    unsigned tile;   /* not 0: out is in tiles, the last of so many rows (product_tile_of) */
    product_source source;
    float *squares; /* [m][2] or NULL: sums of squares of rows */
} input_job;

/* A block per row; columns in the order of codes of BITS bits, as in product_task. */
template <int BITS, typename T>
__global__ __launch_bounds__(INPUT_THREADS) static void product_input_kernel(const input_job job) {
    __shared__ float parts[INPUT_THREADS / 32];
    product_norm<INPUT_THREADS, 2, true> norm;
    T *out = static_cast<T *>(job.out) + blockIdx.x * job.stride;
    product_let_next_start();
    norm.fetch(job.source);
    product_wait();
    const float square = norm.row(
        parts, job.source, blockIdx.x, (unsigned)(job.stride / 8),
        [&](unsigned unit, const float(&v)[8]) {
            if constexpr (BITS != 0) {
                if (job.tile != 0) {
                    const product_tile tile = product_tile_of(blockIdx.x, gridDim.x, job.tile);
                    product_put_tile<BITS, T>(static_cast<T *>(job.out) + tile.first * job.stride,
                                              tile.rows, blockIdx.x - tile.first, unit, v);
                    return;
                }
            }
            product_put_unit<BITS, T>(unit, v, [&](unsigned at) { return out + at * 8; });
        });
    if (job.squares != nullptr && threadIdx.x == 0) {
        job.squares[2 * blockIdx.x] = square;
    }
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
    const unsigned warp = (blockIdx.x * TILE_THREADS + threadIdx.x) / 32, lane = threadIdx.x % 32;
    const unsigned eights = ((m - 1) / PRODUCT_TILE * PRODUCT_TILE + job.tile) / 8;
    const unsigned step = warp / eights, row = warp % eights * 8 + lane / 4;
    if ((uint64_t)step * PRODUCT_STEP >= job.stride) {
        return;
    }
    const product_tile tile = product_tile_of(row, m, job.tile);
    const uint16_t *x = static_cast<const uint16_t *>(job.source.x) + row * job.source.stride;
    uint16_t *out = static_cast<uint16_t *>(job.out) + tile.first * job.stride;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const unsigned column = step * PRODUCT_STEP + lane % 4 * PRODUCT_CHUNK + i * 8;
        uint4 v = make_uint4(0, 0, 0, 0);
        if (row < m && column < job.source.cols) {
            v = *reinterpret_cast<const uint4 *>(x + column);
        }
        const unsigned pairs[4] = {__byte_perm(v.x, v.z, 0x5410), __byte_perm(v.x, v.z, 0x7632),
                                   __byte_perm(v.y, v.w, 0x5410), __byte_perm(v.y, v.w, 0x7632)};
#pragma unroll
        for (unsigned pair = 0; pair < 4; pair++) {
            *reinterpret_cast<unsigned *>(out + product_tile_at(tile.rows, row - tile.first,
                                                                column + 2 * pair)) = pairs[pair];
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
static bool is_source_ready(const product_source *source, bool is_stream) {
    const bool has_norm = source->norm_weight != nullptr;
    return source->is_even && (!has_norm || source->norm_kind != INGOT_NORM_LAYER) &&
           (!is_stream || source->dtype == (has_norm ? INGOT_F32 : INGOT_F16));
}

/* Whole steps of the kernel that takes tiles: two of 128 columns are one of product_wgmma.h. */
static uint64_t input_stride(const ingot_product *job, unsigned tile) {
    const uint64_t step = PRODUCT_STEP * (tile != 0 ? 2 : 1);
    return (job->w->cols + step - 1) / step * step;
}

/* In rows, or in tiles, the last of so many. */
static uint64_t input_bytes(const ingot_product *job, unsigned tile) {
    const uint64_t rows = tile != 0 ? product_tile_rows(job->m, tile) : job->m;
    return product_aligned(rows * input_stride(job, tile) * 2);
}

template <int BITS>
static ingot_status launch_input(const product_context *context, const input_job &input,
                                 uint64_t m) {
    if (BITS == 4 && input.tile != 0 && is_input_ready(&input.source, context->dtype)) {
        const uint64_t eights = product_tile_rows(m, input.tile) / 8;
        const uint64_t warps = input.stride / PRODUCT_STEP * eights;
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
                               const ingot_product *job, unsigned order, unsigned tile) {
    const input_job input = {context->workspace, input_stride(job, tile), tile, *source,
                             job->x_squares};
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

/* sum + outlier `k` of W times its column of row i of x. */
template <typename T>
__device__ static inline float add_outlier(float sum, const ingot_weight_view &w, uint64_t k,
                                           const T *x, uint64_t x_stride, unsigned x_order,
                                           unsigned x_tile, unsigned i) {
    const unsigned column = product_column((unsigned)w.outlier_col[k], x_order);
    const uint64_t at = x_tile != 0 ? product_tile_at(x_tile, i, column) : i * x_stride + column;
    return fmaf(cuda_float_at(w.outlier_val, w.dtype, k), to_float(x[at]), sum);
}

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
                sum = add_outlier(sum, w, k, x, x_stride, x_order, x_tile, i);
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

#define OUTLIERS_MANY 16u /* rows of x */

/* The same for more rows of x: each lane takes its own, so that nothing is added up across them. */
template <typename T>
__global__ __launch_bounds__(THREADS) static void product_outliers_many_kernel(
    float *out, const ingot_weight_view w, const T *x, uint64_t x_stride, unsigned x_order,
    unsigned x_tile, unsigned m) {
    product_let_next_start();
    product_wait();
    const uint64_t warps = (uint64_t)gridDim.x * (THREADS / 32);
    for (uint64_t row = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32; row < w.rows;
         row += warps) {
        const uint64_t begin = w.outlier_row_ptr[row], end = w.outlier_row_ptr[row + 1];
        for (unsigned i = threadIdx.x % 32; i < m; i += 32) {
            float sum = 0.0f;
#pragma unroll 4
            for (uint64_t k = begin; k < end; k++) {
                sum = add_outlier(sum, w, k, x, x_stride, x_order, x_tile, i);
            }
            out[i * w.rows + row] = sum;
        }
    }
}

template <typename T>
static ingot_status launch_outliers(const product_context *context, const product_task &task,
                                    const ingot_weight_view &w, float *out) {
    const dim3 grid((unsigned)ingot_min_u64(ingot_ceil_div(w.rows, THREADS / 32),
                                            16u * (uint64_t)context->cuda->multiprocessors));
    return product_launch(context,
                          task.m < OUTLIERS_MANY ? product_outliers_kernel<T>
                                                 : product_outliers_many_kernel<T>,
                          grid, THREADS, 0, 1, out, w, static_cast<const T *>(task.x),
                          task.x_stride, task.x_order, task.x_tile, (unsigned)task.m);
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
        INGOT_TRY(context->dtype == INGOT_F16
                      ? launch_outliers<__half>(context, *task, w, out)
                      : launch_outliers<__nv_bfloat16>(context, *task, w, out));
        task->addend[side] = out;
        context->workspace += product_aligned(task->m * w.rows * sizeof(float));
        context->is_chained = true;
    }
    return INGOT_OK;
}

/* ---- which kernels -----------------------------------------------------------------------------
 */

typedef enum product_path {
    PATH_FEW,
    PATH_BLOCK,
    PATH_WGMMA,
    PATH_DENSE,
    PATH_PLAIN,
    PATH_GEMM
} product_path;

#define PLAIN_MOST 8u /* rows of x from which weights in 16 bits pay for kinds without a kernel */

bool cuda_product_is_alike(const ingot_weight_view *w, const ingot_weight_view *up) {
    return up == nullptr || (up->rows == w->rows && cuda_weights_are_alike(up, w));
}

/* The most rows of x with which weights stay packed.  Outliers of many rows take longer than
 * weights in 16 bits, where they are in their places. */
static uint64_t packed_most(const ingot_cuda *cuda, const ingot_weight_view *w,
                            const ingot_weight_view *up) {
    const uint64_t wgmma = product_wgmma_most(cuda, w, up != nullptr);
    const uint64_t most = wgmma != 0 ? wgmma : product_block_most(cuda, w);
    return has_outliers(w) || has_outliers(up) ? ingot_min_u64(most, PRODUCT_TILE) : most;
}

/* The rows of the last tile of x, or 0 where the product takes no tiles. */
static unsigned tile_of_input(const ingot_cuda *cuda, const ingot_product *job) {
    return product_wgmma_tile(cuda, job->w, job->up != nullptr, job->m, job->x_form.rows != 0);
}

static product_path choose(const ingot_cuda *cuda, const ingot_product *job) {
    if (job->x_form.rows != 0) {
        return PATH_WGMMA;
    }
    if (product_few_can(cuda, job->w, job->m)) {
        return PATH_FEW;
    }
    if (product_dense_can(cuda, job->w, job->m, job->dtype)) {
        return PATH_DENSE;
    }
    if (job->m > packed_most(cuda, job->w, job->up)) {
        return job->m > PLAIN_MOST || product_gemm_reads(job->w, job->m, job->dtype) ? PATH_GEMM
                                                                                     : PATH_PLAIN;
    }
    return tile_of_input(cuda, job) != 0 ? PATH_WGMMA : PATH_BLOCK;
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
    const bool has_up = job->up != nullptr;
    uint64_t bytes = input_bytes(job, tile_of_input(cuda, job));
    switch (choose(cuda, job)) {
    case PATH_WGMMA:
        bytes += product_wgmma_parts_bytes(cuda, job->w, has_up, job->m) + addend_bytes(job);
        break;
    case PATH_FEW:
    case PATH_BLOCK:
    case PATH_DENSE:
    case PATH_PLAIN: /* needs none, but fewer rows may have gone another way */
        bytes += addend_bytes(job);
        break;
    case PATH_GEMM:
        bytes += product_gemm_workspace_bytes(task_of(job), job->dtype);
        break;
    default:
        break;
    }
    return bytes;
}

extern "C" uint64_t cuda_product_packed_rows(void *context, const ingot_weight_view *w,
                                             const ingot_weight_view *up) {
    const ingot_cuda *cuda = static_cast<const ingot_cuda *>(context);
    return packed_most(cuda, w, up);
}

extern "C" bool cuda_product_uses_l1(void *context, const ingot_product *job) {
    const ingot_cuda *cuda = static_cast<const ingot_cuda *>(context);
    const product_task task = task_of(job);
    return choose(cuda, job) == PATH_FEW && !product_stream_can(cuda, &task, job->dtype);
}

/* ---- what products hand on ---------------------------------------------------------------------
 */

/* Whether the product can take x in tiles or hand on y: what belongs to rows of y is read and
 * written in fours, and norms are those of rows without their mean. */
static bool is_handy(const ingot_product *job) {
    const product_task task = task_of(job);
    return is_supported(job) && job->dtype == INGOT_F16 && job->norm_kind != INGOT_NORM_LAYER &&
           product_is_even(task, 4);
}

extern "C" ingot_product_form cuda_product_takes(void *context, const ingot_product *job) {
    const ingot_cuda *cuda = static_cast<const ingot_cuda *>(context);
    const ingot_product_form none = {};
    /* whole steps: nothing would make the columns behind them zero */
    if (!is_handy(job) || job->m > PRODUCT_TILE || job->w->cols % (2 * PRODUCT_STEP) != 0 ||
        job->m > packed_most(cuda, job->w, job->up)) {
        return none;
    }
    const ingot_product_form form = {
        job->w->bits, product_wgmma_tile(cuda, job->w, job->up != nullptr, job->m, true)};
    return form.rows != 0 ? form : none;
}

extern "C" unsigned cuda_product_hands(void *context, const ingot_product *job, bool has_norm) {
    const ingot_cuda *cuda = static_cast<const ingot_cuda *>(context);
    /* in whole steps, as products take it */
    if (!is_handy(job) || job->m > PRODUCT_TILE || job->w->rows % (2 * PRODUCT_STEP) != 0 ||
        choose(cuda, job) != PATH_WGMMA) {
        return 0;
    }
    if (!has_norm) {
        return 1;
    }
    return job->up == nullptr && product_cluster_can(cuda, job->w, false, job->m)
               ? product_cluster_parts(job->w)
               : 0;
}

/* Whether the job says what a product can take and hand on (product.h). */
static bool is_handed_well(ingot_cuda *cuda, const ingot_product *job) {
    const ingot_product_next *next = &job->next;
    const bool has_norm = next->norm_weight != nullptr;
    const unsigned bits = next->form.bits, rows = next->form.rows;
    if (job->x_form.rows != 0) {
        ingot_product plain = *job;
        plain.x_form = {};
        const ingot_product_form form = cuda_product_takes(cuda, &plain);
        if (form.rows != job->x_form.rows || form.bits != job->x_form.bits ||
            job->norm_weight != nullptr || job->x_dtype != INGOT_F16) {
            return false;
        }
    }
    if (next->x == nullptr) {
        return job->y != nullptr && !has_norm &&
               (job->squares.sums == nullptr || job->x_form.rows != 0);
    }
    const unsigned parts = cuda_product_hands(cuda, job, has_norm);
    const bool has_form = (bits == 3 || bits == 4 || bits == 8) && rows >= job->m &&
                          (rows == 16 || rows == 32 || rows == 64);
    return parts != 0 && has_form && (job->y != nullptr) == has_norm &&
           (has_norm ? parts == next->squares.parts && next->squares.sums != nullptr &&
                           job->squares.sums != nullptr && product_is_aligned(next->norm_weight, 16)
                     : job->squares.sums == nullptr || job->x_form.rows != 0);
}

/* What kernels take of it. */
static void hand_over(const ingot_product *job, product_task *task) {
    const bool has_norm = job->next.norm_weight != nullptr;
    task->next = {static_cast<__half *>(job->next.x), job->next.form, job->next.norm_weight,
                  job->norm_kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0f : 0.0f, job->next.squares.sums};
    if (job->squares.sums != nullptr) { /* nothing is read without */
        task->known = {job->squares.sums, job->squares.parts,
                       (unsigned)(has_norm ? job->w->rows : job->w->cols), job->norm_eps,
                       !has_norm};
    }
}

extern "C" bool cuda_product_normalises(void *context, const ingot_product *job) {
    const ingot_cuda *cuda = static_cast<const ingot_cuda *>(context);
    return job->x_form.rows == 0 && job->norm_weight != nullptr &&
           job->norm_kind != INGOT_NORM_LAYER &&
           (choose(cuda, job) != PATH_FEW || has_outliers(job->w) || has_outliers(job->up));
}

/* ---- the product ------------------------------------------------------------------------------
 */

/* Tile `index` of x and what belongs to it; where there are several, there are no addends. */
static product_task tile_of(const product_task &all, uint64_t index) {
    const uint64_t first = index * PRODUCT_TILE, tiles = ingot_ceil_div(all.m, PRODUCT_TILE);
    const uint64_t y_bytes = first * all.w[0].rows * ingot_dtype_bytes(all.y_dtype);
    product_task task = all;
    task.m = ingot_min_u64(all.m - first, PRODUCT_TILE);
    task.x_tile = all.x_tile != 0 && index + 1 != tiles ? PRODUCT_TILE : all.x_tile;
    task.x = static_cast<const uint16_t *>(all.x) + first * all.x_stride;
    task.y = static_cast<uint8_t *>(all.y) + y_bytes;
    if (all.residual != nullptr) {
        task.residual = static_cast<const uint8_t *>(all.residual) + y_bytes;
    }
    return task;
}

/* With each tile of x, by a kernel that takes one. */
static ingot_status multiply_tiles(product_context *context, const product_task &task,
                                   product_path path) {
    const uint64_t tiles = ingot_ceil_div(task.m, PRODUCT_TILE);
    for (uint64_t i = 0; i < tiles; i++) {
        INGOT_TRY(path == PATH_WGMMA ? product_wgmma(context, tile_of(task, i))
                                     : product_block(context, tile_of(task, i)));
        context->is_chained = true;
    }
    return INGOT_OK;
}

extern "C" ingot_status cuda_product(void *context, const ingot_product *job) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (!is_supported(job)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    if (job->m == 0 || job->w->rows == 0) {
        return INGOT_OK;
    }
    if (!is_handed_well(cuda, job)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    const product_path path = choose(cuda, job);
    product_context work = {cuda,
                            job->dtype,
                            job->is_chained,
                            static_cast<uint8_t *>(job->workspace),
                            cuda_product_uses_l1(cuda, job),
                            {job->largest, job->up_largest}};
    product_source source = {job->x,         job->x_dtype,     job->w->cols,
                             job->w->cols,   job->norm_weight, job->norm_bias,
                             job->norm_kind, job->norm_eps,    is_even(job)};
    product_task task = task_of(job);
    const bool is_packed = path == PATH_BLOCK || path == PATH_WGMMA;
    const bool has_addends = has_outliers(job->w) || has_outliers(job->up);
    const bool is_plain = is_input_ready(&source, job->dtype);
    const bool is_handed = job->x_form.rows != 0;
    const bool is_stream = path == PATH_FEW && product_stream_can(cuda, &task, job->dtype);
    const bool is_ready = is_handed                          ? true
                          : path == PATH_FEW && !has_addends ? is_source_ready(&source, is_stream)
                          : path == PATH_BLOCK ? is_plain && product_block_orders(job->w, job->m)
                                               : is_plain && path != PATH_WGMMA;
    hand_over(job, &task);
    task.x_tile = path == PATH_WGMMA ? tile_of_input(cuda, job) : 0;
    task.x_order = is_packed && (is_handed || !is_ready) ? job->w->bits : 0;
    if (path == PATH_WGMMA) {
        task.parts = reinterpret_cast<float4 *>(work.workspace);
        work.workspace += product_wgmma_parts_bytes(cuda, job->w, task.has_up, job->m);
    }
    if (!is_ready) {
        INGOT_TRY(make_input(&work, &source, job, task.x_order, task.x_tile));
    }
    task.x = source.x;
    task.x_stride = source.stride;
    if (has_addends && (path == PATH_FEW || is_packed)) {
        INGOT_TRY(make_addends(&work, &task));
    }
    return is_packed            ? multiply_tiles(&work, task, path)
           : path == PATH_FEW   ? product_few(&work, task, source)
           : path == PATH_DENSE ? product_dense(&work, task)
           : path == PATH_PLAIN ? product_plain(&work, task)
                                : product_gemm(&work, task);
}
