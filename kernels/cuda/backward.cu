/* Gradients of linears, norms and activations on the device.
 *
 * Products run on tensor cores with binary16 factors and FP32 sums, as in linear.cu: the gradient
 * by a linear's output is rounded once for both of its products (half.cu keeps the copy), scaled by
 * the power of two that suits it.  Rows and elements are FP32. */
#include "kernels/cuda/backward.h"

#include "kernels/cuda/element.h"
#include "kernels/cuda/forward.h"

#define THREADS     256
#define PIECE_BYTES (UINT64_C(256) << 20) /* of unpacked weights at once */

/* ---- norms ------------------------------------------------------------------------------------
 */

typedef struct norm_job {
    float *dx;
    const float *dy, *x, *weight;
    uint64_t m, n;
    float eps;
    ingot_norm_kind kind;
} norm_job;

/* The sum over WIDTH threads that share a row, in every one of them. */
template <int WIDTH> __device__ static float sum_row(float value, float *shared) {
    for (int lane = 16; lane > 0; lane /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, lane);
    }
    if (WIDTH == 32) {
        return value;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        shared[threadIdx.x / 32] = value;
    }
    __syncthreads();
    value = 0;
    for (int i = 0; i < WIDTH / 32; i++) {
        value += shared[i];
    }
    return value;
}

/* With h = (x - mean) f and g = dy w: dx = f (g - mean g - h mean(g h)), RMS norms without means.
 * WIDTH threads a row. */
template <int WIDTH>
__global__ __launch_bounds__(THREADS) static void norm_backward_kernel(const norm_job job) {
    __shared__ float shared[THREADS / 32];
    const unsigned lane = threadIdx.x % WIDTH;
    const float plus = job.kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0f : 0.0f;
    const bool has_mean = job.kind == INGOT_NORM_LAYER;
    const float count = (float)job.n;
    for (uint64_t row = (uint64_t)blockIdx.x * (THREADS / WIDTH) + threadIdx.x / WIDTH; row < job.m;
         row += (uint64_t)gridDim.x * (THREADS / WIDTH)) {
        const float *x = job.x + row * job.n, *dy = job.dy + row * job.n;
        float *dx = job.dx + row * job.n;
        float mean = 0, square = 0, slope = 0, along = 0;
        if (has_mean) {
            for (uint64_t i = lane; i < job.n; i += WIDTH) {
                mean += x[i];
            }
            mean = sum_row<WIDTH>(mean, shared) / count;
        }
        for (uint64_t i = lane; i < job.n; i += WIDTH) {
            const float v = x[i] - mean, g = dy[i] * (job.weight[i] + plus);
            square = fmaf(v, v, square);
            slope += g;
            along = fmaf(g, v, along);
        }
        square = sum_row<WIDTH>(square, shared);
        along = sum_row<WIDTH>(along, shared);
        slope = has_mean ? sum_row<WIDTH>(slope, shared) / count : 0.0f;
        const float f = 1.0f / sqrtf(square / count + job.eps);
        const float turn = along * f * f / count;
        for (uint64_t i = lane; i < job.n; i += WIDTH) {
            dx[i] = f * (dy[i] * (job.weight[i] + plus) - slope - (x[i] - mean) * turn);
        }
    }
}

ingot_status cuda_norm_backward(void *context, float *dx, const float *dy, const float *x,
                                const float *weight, ingot_norm_kind kind, float eps, uint64_t m,
                                uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (m == 0 || n == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, dx, m * n * sizeof *dx);
    const norm_job job = {dx, dy, x, weight, m, n, eps, kind};
    const uint64_t most = 32u * (uint64_t)cuda->multiprocessors;
    if (n <= 1024) {
        const uint64_t blocks = ingot_min_u64(ingot_ceil_div(m, THREADS / 32), most);
        norm_backward_kernel<32><<<(unsigned)blocks, THREADS, 0, cuda->stream>>>(job);
    } else {
        norm_backward_kernel<THREADS>
            <<<(unsigned)ingot_min_u64(m, most), THREADS, 0, cuda->stream>>>(job);
    }
    return ingot_cuda_launched();
}

/* ---- linears ----------------------------------------------------------------------------------
 */

__global__ static void product_alpha_kernel(ingot_cuda_scalars *scalars) {
    scalars->alpha = scalars->unscale * scalars->unscale_aside;
}

ingot_status cuda_linear_backward(void *context, float *dx, const ingot_weight_view *w,
                                  const float *dy, bool adds, uint64_t m) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t stride = (w->cols + 7) / 8 * 8;
    cuda_half_copy copy;
    if (w->cols > UINT32_MAX || w->rows > UINT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    if (m == 0 || w->cols == 0 || w->rows == 0) {
        return m == 0 || adds || w->cols == 0 ? INGOT_OK
                                              : ingot_cuda_status(cudaMemsetAsync(
                                                    dx, 0, m * w->cols * sizeof *dx, cuda->stream));
    }
    cuda_written(cuda, dx, m * w->cols * sizeof *dx);
    INGOT_TRY(cuda_half_of(cuda, &copy, dy, m, w->rows));
    const uint64_t most = ingot_max_u64(PIECE_BYTES / (stride * sizeof(__half)) / 8 * 8, 8);
    ingot_cuda_buffer memory(cuda);
    INGOT_TRY(memory.alloc(ingot_min_u64(most, w->rows), stride * sizeof(__half)));
    for (uint64_t first = 0; first < w->rows; first += most) {
        const uint64_t rows = ingot_min_u64(most, w->rows - first);
        INGOT_TRY(cuda_unpack_half(cuda, memory.as<__half>(), w, first, rows, stride));
        const cuda_half_gemm product = {
            .is_a_transposed = false,
            .is_b_transposed = false,
            .rows = w->cols,
            .columns = m,
            .depth = rows,
            .a = memory.as<__half>(),
            .a_stride = stride,
            .b = copy.values + first,
            .b_stride = copy.stride,
            .alpha = &cuda->scalars->alpha,
            .adds = adds || first != 0,
            .c = dx,
            .c_stride = w->cols,
        };
        INGOT_TRY(cuda_half_multiply(cuda, &product));
    }
    return INGOT_OK;
}

ingot_status cuda_weight_backward(void *context, float *dw, const float *dy, const float *x,
                                  uint64_t m, uint64_t rows, uint64_t cols) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const uint64_t stride = (cols + 7) / 8 * 8;
    cuda_half_copy copy;
    if (m == 0 || rows == 0 || cols == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, dw, rows * cols * sizeof *dw);
    ingot_cuda_buffer memory(cuda);
    INGOT_TRY(memory.alloc(m, stride * sizeof(__half)));
    INGOT_TRY(cuda_half_of(cuda, &copy, dy, m, rows));
    INGOT_TRY(cuda_half_aside(cuda, memory.as<__half>(), x, nullptr, m, cols));
    product_alpha_kernel<<<1, 1, 0, cuda->stream>>>(cuda->scalars);
    INGOT_TRY(ingot_cuda_launched());
    const cuda_half_gemm product = {
        .is_a_transposed = false,
        .is_b_transposed = true,
        .rows = cols,
        .columns = rows,
        .depth = m,
        .a = memory.as<__half>(),
        .a_stride = stride,
        .b = copy.values,
        .b_stride = copy.stride,
        .alpha = &cuda->scalars->alpha,
        .adds = true,
        .c = dw,
        .c_stride = cols,
    };
    return cuda_half_multiply(cuda, &product);
}

/* ---- activations ------------------------------------------------------------------------------
 */

/* The value of an activation, and in *slope its derivative. */
template <int KIND> __device__ static float activation_of(float x, float *slope) {
    if (KIND == INGOT_ACT_RELU) {
        *slope = x > 0.0f ? 1.0f : 0.0f;
        return fmaxf(x, 0.0f);
    }
    if (KIND == INGOT_ACT_GELU) {
        const float half = 0.5f * erfcf(-0.7071067812f * x);
        *slope = half + x * 0.3989422804f * expf(-0.5f * x * x);
        return x * half;
    }
    float u = x, turn = 1.0f;
    if (KIND == INGOT_ACT_GELU_TANH) {
        const float root = 2.0f * 0.7978845608f, cube = root * 0.044715f;
        u = x * fmaf(x * x, cube, root);
        turn = fmaf(x * x, 3.0f * cube, root);
    }
    const float gate = 1.0f / (1.0f + expf(-u));
    const float rest = 1.0f / (1.0f + expf(u));
    *slope = gate + (rest == 0.0f || gate == 0.0f ? 0.0f : x * turn * gate * rest);
    return x * gate;
}

template <int KIND>
__global__ __launch_bounds__(THREADS) static void activate_backward_kernel(float *gate, float *up,
                                                                           const float *d,
                                                                           uint64_t n) {
    const uint64_t step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        float slope;
        const float value = activation_of<KIND>(gate[i], &slope), by = d[i];
        if (up != nullptr) {
            gate[i] = by * up[i] * slope;
            up[i] = by * value;
        } else {
            gate[i] = by * slope;
        }
    }
}

ingot_status cuda_activate_backward(void *context, float *gate, float *up, const float *d,
                                    ingot_activation kind, uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    const unsigned blocks = cuda_blocks(cuda, n, THREADS);
    if (n == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, gate, n * sizeof *gate);
    if (up != nullptr) {
        cuda_written(cuda, up, n * sizeof *up);
    }
    switch (kind) {
    case INGOT_ACT_SILU:
        activate_backward_kernel<INGOT_ACT_SILU>
            <<<blocks, THREADS, 0, cuda->stream>>>(gate, up, d, n);
        break;
    case INGOT_ACT_GELU:
        activate_backward_kernel<INGOT_ACT_GELU>
            <<<blocks, THREADS, 0, cuda->stream>>>(gate, up, d, n);
        break;
    case INGOT_ACT_GELU_TANH:
        activate_backward_kernel<INGOT_ACT_GELU_TANH>
            <<<blocks, THREADS, 0, cuda->stream>>>(gate, up, d, n);
        break;
    case INGOT_ACT_RELU:
        activate_backward_kernel<INGOT_ACT_RELU>
            <<<blocks, THREADS, 0, cuda->stream>>>(gate, up, d, n);
        break;
    }
    return ingot_cuda_launched();
}
