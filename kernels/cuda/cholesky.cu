/* Cholesky factors and solving with them: H = L L^T, x H^-1.
 *
 * cuSOLVER and cuBLAS do the blocks on the diagonal in FP32; nearly all of the work is products of
 * the blocks beside them, which run on tensor cores: a factor is the sum of two values of TF32
 * (22 bits, as good as FP32), and of the four products of such sums the one of both low parts is
 * left out.  One GEMM makes the other three, the smallest terms first: for each factor high, low,
 * high, high stand one behind another, and the first three of one factor meet the last three of the
 * other.
 *
 * FP64, the last step of the damping, is cuSOLVER's alone: it is rarely needed.
 *
 * Row-major L is column-major U = L^T, H = U^T U, and row-major x is column-major x^T: below, all
 * is as BLAS counts, column by column. */
#include "kernels/cuda/element.h"
#include "kernels/cuda/quantize.h"

#define THREADS 256
#define BLOCK   512u  /* columns of a block on the diagonal */
#define PARTS   4u    /* of a stack */
#define STRIPS  8u    /* of what is left of the triangle: more of them compute less above it, */
#define STRIP   2048u /* as long as each fills the device */

/* ---- blocks on the diagonal -------------------------------------------------------------------
 */

/* *is_bad = 1 when an element of the diagonal is not a positive finite number. */
template <typename T>
__global__ static void diagonal_check_kernel(int *is_bad, const T *l, uint64_t n) {
    const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && !(l[i * n + i] > (T)0 && isfinite((float)l[i * n + i]))) {
        *is_bad = 1;
    }
}

static ingot_status potrf(const ingot_cuda *cuda, float *u, int n, int stride, int *info) {
    ingot_cuda_buffer work(cuda);
    int size = 0;
    INGOT_TRY(ingot_cuda_solver_status(
        cusolverDnSpotrf_bufferSize(cuda->solver, CUBLAS_FILL_MODE_UPPER, n, u, stride, &size)));
    INGOT_TRY(work.alloc((uint64_t)size, sizeof(float)));
    return ingot_cuda_solver_status(cusolverDnSpotrf(cuda->solver, CUBLAS_FILL_MODE_UPPER, n, u,
                                                     stride, work.as<float>(), size, info));
}

static ingot_status potrf(const ingot_cuda *cuda, double *u, int n, int stride, int *info) {
    ingot_cuda_buffer work(cuda);
    int size = 0;
    INGOT_TRY(ingot_cuda_solver_status(
        cusolverDnDpotrf_bufferSize(cuda->solver, CUBLAS_FILL_MODE_UPPER, n, u, stride, &size)));
    INGOT_TRY(work.alloc((uint64_t)size, sizeof(double)));
    return ingot_cuda_solver_status(cusolverDnDpotrf(cuda->solver, CUBLAS_FILL_MODE_UPPER, n, u,
                                                     stride, work.as<double>(), size, info));
}

/* x[count][columns] = op(U)^-1 x of a block on the diagonal */
static ingot_status solve_block(const ingot_cuda *cuda, float *x, const float *u, uint64_t count,
                                uint64_t columns, uint64_t n, cublasOperation_t op) {
    const float one = 1.0f;
    return ingot_cublas_status(cublasStrsm(cuda->blas, CUBLAS_SIDE_LEFT, CUBLAS_FILL_MODE_UPPER, op,
                                           CUBLAS_DIAG_NON_UNIT, (int)count, (int)columns, &one, u,
                                           (int)n, x, (int)n));
}

/* ---- products ---------------------------------------------------------------------------------
 */

/* Parts of a factor: columns of `count` values lie `stride` apart, the parts `part` apart. */
typedef struct stack {
    float *values;
    uint64_t stride, part;
} stack;

__global__ static void stack_kernel(stack out, const float *in, uint64_t count, uint64_t columns,
                                    uint64_t in_stride) {
    for (uint64_t column = blockIdx.y; column < columns; column += gridDim.y) {
        for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count;
             i += (uint64_t)gridDim.x * blockDim.x) {
            const float value = in[column * in_stride + i];
            const float high = rounded_to_tf32(value), low = rounded_to_tf32(value - high);
            float *to = out.values + column * out.stride + i;
            to[0] = high;
            to[out.part] = low;
            to[2 * out.part] = high;
            to[3 * out.part] = high;
        }
    }
}

static ingot_status fill(const ingot_cuda *cuda, const stack &out, const float *in, uint64_t count,
                         uint64_t columns, uint64_t in_stride) {
    const dim3 grid((unsigned)ingot_min_u64(ingot_ceil_div(count, THREADS), 64),
                    (unsigned)ingot_min_u64(columns, 65535));
    stack_kernel<<<grid, THREADS, 0, cuda->stream>>>(out, in, count, columns, in_stride);
    return ingot_cuda_launched();
}

/* c[rows][columns] -= op(a) b, both of depth k */
static ingot_status subtract(const ingot_cuda *cuda, float *c, uint64_t c_stride,
                             cublasOperation_t op, const float *a, uint64_t a_stride,
                             const float *b, uint64_t b_stride, uint64_t rows, uint64_t columns,
                             uint64_t k) {
    const float one = 1.0f, minus = -1.0f;
    return ingot_cublas_status(
        cublasGemmEx(cuda->blas, op, CUBLAS_OP_N, (int)rows, (int)columns, (int)(3 * k), &minus, a,
                     CUDA_R_32F, (int)a_stride, b, CUDA_R_32F, (int)b_stride, &one, c, CUDA_R_32F,
                     (int)c_stride, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_GEMM_DEFAULT));
}

/* ---- factors ----------------------------------------------------------------------------------
 */

/* U behind a block of k rows at `at` is done; what follows it loses their part. */
static ingot_status update_triangle(const ingot_cuda *cuda, float *u, const stack &rows,
                                    uint64_t at, uint64_t k, uint64_t n) {
    const uint64_t first = at + k, rest = n - first;
    const uint64_t width = ingot_max_u64(STRIP, ingot_ceil_div(rest, STRIPS));
    INGOT_TRY(fill(cuda, rows, u + first * n + at, k, rest, n));
    for (uint64_t from = 0; from < rest; from += width) {
        const uint64_t columns = ingot_min_u64(width, rest - from);
        INGOT_TRY(subtract(cuda, u + (first + from) * n + first, n, CUBLAS_OP_T, rows.values,
                           rows.stride, rows.values + from * rows.stride + rows.part, rows.stride,
                           from + columns, columns, k));
    }
    return INGOT_OK;
}

/* info[blocks]: of every block on the diagonal. */
static ingot_status factorize(const ingot_cuda *cuda, float *u, uint64_t n, int *info) {
    ingot_cuda_buffer memory(cuda);
    INGOT_TRY(memory.alloc(n > BLOCK ? n - BLOCK : 0, PARTS * BLOCK * sizeof(float)));
    const stack rows = {memory.as<float>(), PARTS * BLOCK, BLOCK};
    for (uint64_t at = 0; at < n; at += BLOCK) {
        const uint64_t k = ingot_min_u64(BLOCK, n - at);
        float *corner = u + at * n + at;
        INGOT_TRY(potrf(cuda, corner, (int)k, (int)n, info + at / BLOCK));
        if (at + k < n) {
            INGOT_TRY(solve_block(cuda, corner + k * n, corner, k, n - at - k, n, CUBLAS_OP_T));
            INGOT_TRY(update_triangle(cuda, u, rows, at, k, n));
        }
    }
    return INGOT_OK;
}

static ingot_status factorize(const ingot_cuda *cuda, double *u, uint64_t n, int *info) {
    return potrf(cuda, u, (int)n, (int)n, info);
}

template <typename T>
static ingot_status cholesky(bool *is_done, const ingot_cuda *cuda, T *l, uint64_t n) {
    const uint64_t blocks = ingot_ceil_div(n, BLOCK), count = blocks + 1;
    ingot_cuda_buffer flags(cuda);
    void *memory;
    INGOT_TRY(flags.alloc(count, sizeof(int)));
    int *info = flags.as<int>();
    INGOT_TRY(ingot_cuda_status(cudaMemsetAsync(info, 0, count * sizeof *info, cuda->stream)));
    INGOT_TRY(factorize(cuda, l, n, info));
    diagonal_check_kernel<<<(unsigned)ingot_ceil_div(n, THREADS), THREADS, 0, cuda->stream>>>(
        info + blocks, l, n);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(ingot_alloc(&memory, count * sizeof *info));
    int *found = static_cast<int *>(memory);
    ingot_status status = ingot_cuda_status(
        cudaMemcpyAsync(found, info, count * sizeof *found, cudaMemcpyDeviceToHost, cuda->stream));
    if (status == INGOT_OK) {
        status = ingot_cuda_status(cudaStreamSynchronize(cuda->stream));
    }
    *is_done = status == INGOT_OK;
    for (uint64_t i = 0; i < count && status == INGOT_OK; i++) {
        *is_done = *is_done && found[i] == 0;
    }
    ingot_free(memory);
    return status;
}

ingot_status cuda_cholesky(bool *is_done, const ingot_cuda *cuda, float *l, uint64_t n) {
    return cholesky(is_done, cuda, l, n);
}

ingot_status cuda_cholesky(bool *is_done, const ingot_cuda *cuda, double *l, uint64_t n) {
    return cholesky(is_done, cuda, l, n);
}

/* ---- solving ----------------------------------------------------------------------------------
 */

/* What solving needs: the blocks of U beside one on the diagonal, and what is solved of x. */
typedef struct solving {
    const float *u;
    float *x;
    uint64_t rows, n; /* of x, row by row */
    float *beside;
    stack solved;
} solving;

/* x = U^-T x, from the first block on; each takes its part from those behind it. */
static ingot_status solve_forward(const ingot_cuda *cuda, const solving *s) {
    const uint64_t n = s->n;
    const stack beside = {s->beside, PARTS * BLOCK, BLOCK};
    for (uint64_t at = 0; at < n; at += BLOCK) {
        const uint64_t k = ingot_min_u64(BLOCK, n - at), next = at + k;
        const float *corner = s->u + at * n + at;
        float *x = s->x + at;
        INGOT_TRY(solve_block(cuda, x, corner, k, s->rows, n, CUBLAS_OP_T));
        if (next < n) {
            INGOT_TRY(fill(cuda, beside, corner + k * n, k, n - next, n));
            INGOT_TRY(fill(cuda, s->solved, x, k, s->rows, n));
            INGOT_TRY(subtract(cuda, x + k, n, CUBLAS_OP_T, beside.values, beside.stride,
                               s->solved.values + s->solved.part, s->solved.stride, n - next,
                               s->rows, k));
        }
    }
    return INGOT_OK;
}

/* x = U^-1 x, from the last block back; each takes its part from those before it.  Their blocks of
 * U are above it, one part behind another. */
static ingot_status solve_backward(const ingot_cuda *cuda, const solving *s) {
    const uint64_t n = s->n;
    for (uint64_t block = ingot_ceil_div(n, BLOCK); block-- > 0;) {
        const uint64_t at = block * BLOCK, k = ingot_min_u64(BLOCK, n - at);
        const float *column = s->u + at * n;
        INGOT_TRY(solve_block(cuda, s->x + at, column + at, k, s->rows, n, CUBLAS_OP_N));
        if (at != 0) {
            const stack solved = {s->solved.values, PARTS * k, k};
            const stack beside = {s->beside, at, at * k};
            INGOT_TRY(fill(cuda, beside, column, at, k, n));
            INGOT_TRY(fill(cuda, solved, s->x + at, k, s->rows, n));
            INGOT_TRY(subtract(cuda, s->x, n, CUBLAS_OP_N, beside.values, beside.stride,
                               solved.values + solved.part, solved.stride, at, s->rows, k));
        }
    }
    return INGOT_OK;
}

ingot_status cuda_substitute(const ingot_cuda *cuda, float *x, const float *l, uint64_t rows,
                             uint64_t n) {
    ingot_cuda_buffer beside(cuda), solved(cuda);
    const uint64_t column_bytes = PARTS * BLOCK * sizeof(float);
    INGOT_TRY(beside.alloc(n > BLOCK ? n : 0, column_bytes));
    INGOT_TRY(solved.alloc(n > BLOCK ? rows : 0, column_bytes));
    const solving s = {.u = l,
                       .x = x,
                       .rows = rows,
                       .n = n,
                       .beside = beside.as<float>(),
                       .solved = {solved.as<float>(), PARTS * BLOCK, BLOCK}};
    INGOT_TRY(solve_forward(cuda, &s));
    return solve_backward(cuda, &s);
}

template <typename A, typename B>
__global__ static void convert_kernel(A *out, const B *in, uint64_t count) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        out[i] = (A)in[i];
    }
}

ingot_status cuda_substitute(const ingot_cuda *cuda, float *x, const double *l, uint64_t rows,
                             uint64_t n) {
    const unsigned blocks = cuda_blocks(cuda, rows * n, THREADS);
    ingot_cuda_buffer wide(cuda), info(cuda);
    INGOT_TRY(wide.alloc(rows * n, sizeof(double)));
    INGOT_TRY(info.alloc(1, sizeof(int)));
    convert_kernel<<<blocks, THREADS, 0, cuda->stream>>>(wide.as<double>(), x, rows * n);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(ingot_cuda_solver_status(
        cusolverDnDpotrs(cuda->solver, CUBLAS_FILL_MODE_UPPER, (int)n, (int)rows, l, (int)n,
                         wide.as<double>(), (int)n, info.as<int>())));
    convert_kernel<<<blocks, THREADS, 0, cuda->stream>>>(x, wide.as<double>(), rows * n);
    return ingot_cuda_launched();
}
