/* Operations on rows and elements: embedding, norms, rotary embedding, activations, sums.
 *
 * All are bound by memory: 16 bytes an access where the addresses allow it, and a grid that fills
 * the device and walks on, so that any size is covered.  Norms and activations of a size that
 * products like leave a copy in binary16 behind (half.cu), which saves reading the result again. */
#include "kernels/cuda/forward.h"
#include "kernels/cuda/weights.h"

#define THREADS 256

/* Blocks for `count` pieces of work, one a thread. */
static unsigned grid_for(const ingot_cuda *cuda, uint64_t count) {
    const uint64_t most = 16u * (uint64_t)cuda->multiprocessors;
    return (unsigned)ingot_min_u64(ingot_ceil_div(count, THREADS), most);
}

/* ---- embedding --------------------------------------------------------------------------------
 */

template <int KIND>
__global__ __launch_bounds__(THREADS) static void embed_kernel(float *__restrict__ y,
                                                               const ingot_weight_view table,
                                                               const uint32_t *__restrict__ ids,
                                                               uint64_t m, float scale,
                                                               bool is_vector) {
    const uint64_t step = (uint64_t)gridDim.x * THREADS * 8;
    for (uint64_t i = blockIdx.y; i < m; i += gridDim.y) {
        float *row = y + i * table.cols;
        for (uint64_t col = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) * 8; col < table.cols;
             col += step) {
            float v[8];
            cuda_load_weights<KIND>(v, table, ids[i], col);
            if (is_vector && col + 8 <= table.cols) {
                float4 *to = reinterpret_cast<float4 *>(row + col);
                to[0] = make_float4(v[0] * scale, v[1] * scale, v[2] * scale, v[3] * scale);
                to[1] = make_float4(v[4] * scale, v[5] * scale, v[6] * scale, v[7] * scale);
                continue;
            }
#pragma unroll
            for (unsigned j = 0; j < 8; j++) {
                if (col + j < table.cols) {
                    row[col + j] = v[j] * scale;
                }
            }
        }
    }
}

/* One warp puts the outliers of one row in their places. */
__global__ __launch_bounds__(THREADS) static void embed_outliers_kernel(
    float *__restrict__ y, const ingot_weight_view table, const uint32_t *__restrict__ ids,
    uint64_t m, float scale) {
    const uint64_t warps = (uint64_t)gridDim.x * (THREADS / 32);
    for (uint64_t i = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32; i < m; i += warps) {
        const uint64_t end = table.outlier_row_ptr[ids[i] + UINT64_C(1)];
        for (uint64_t k = table.outlier_row_ptr[ids[i]] + threadIdx.x % 32; k < end; k += 32) {
            y[i * table.cols + table.outlier_col[k]] =
                cuda_float_at(table.outlier_val, table.dtype, k) * scale;
        }
    }
}

template <int KIND>
static ingot_status launch_embed(const ingot_cuda *cuda, float *y, const ingot_weight_view *table,
                                 const uint32_t *ids, uint64_t m, float scale) {
    const uint64_t wide = ingot_ceil_div(table->cols, THREADS * 8);
    const dim3 grid((unsigned)wide, (unsigned)ingot_min_u64(m, 65535));
    embed_kernel<KIND><<<grid, THREADS, 0, cuda->stream>>>(
        y, *table, ids, m, scale, table->cols % 4 == 0 && cuda_is_aligned(y));
    INGOT_TRY(ingot_cuda_launched());
    if (KIND > CUDA_WEIGHTS_GROUPED && table->outlier_count != 0) {
        embed_outliers_kernel<<<grid_for(cuda, m * 32), THREADS, 0, cuda->stream>>>(y, *table, ids,
                                                                                    m, scale);
        INGOT_TRY(ingot_cuda_launched());
    }
    return INGOT_OK;
}

ingot_status cuda_embed(void *context, float *y, const ingot_weight_view *table,
                        const uint32_t *ids, uint64_t m, float scale) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    for (uint64_t i = 0; i < m; i++) {
        if (ids[i] >= table->rows) {
            return INGOT_ERR_INPUT;
        }
    }
    if (table->cols > UINT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    if (m == 0 || table->cols == 0) {
        return INGOT_OK;
    }
    ingot_cuda_buffer copy(cuda);
    INGOT_TRY(copy.alloc(m, sizeof *ids));
    uint32_t *device_ids = copy.as<uint32_t>();
    INGOT_TRY(ingot_cuda_status(
        cudaMemcpyAsync(device_ids, ids, m * sizeof *ids, cudaMemcpyHostToDevice, cuda->stream)));
    cuda_written(cuda, y, m * table->cols * sizeof *y);
    ingot_status status;
    CUDA_FOR_WEIGHT_KIND(status, table, launch_embed, cuda, y, table, device_ids, m, scale);
    INGOT_TRY(status);
    return ingot_cuda_status(cudaStreamSynchronize(cuda->stream)); /* ids are the caller's again */
}

/* ---- norms ------------------------------------------------------------------------------------
 */

#define NORM_KEPT 4 /* pieces of a row that a thread keeps in registers between passes */

/* The sum over the WIDTH threads of a row, the same bits in each of them. */
template <int WIDTH> __device__ static float row_sum(float value) {
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, lane);
    }
    if (WIDTH == 32) {
        return value;
    }
    __shared__ float sums[WIDTH / 32];
    __syncthreads(); /* the sums of the call before have been read */
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = value;
    }
    __syncthreads();
    float total = 0.0f;
#pragma unroll
    for (int i = 0; i < WIDTH / 32; i++) {
        total += sums[i];
    }
    return total;
}

/* Four or one neighbours. */
template <int VECTOR> struct norm_piece { float v[VECTOR]; };

template <int VECTOR>
__device__ static norm_piece<VECTOR> load_piece(const float *x, uint64_t index) {
    norm_piece<VECTOR> piece;
    if constexpr (VECTOR == 4) {
        const float4 four = reinterpret_cast<const float4 *>(x)[index];
        piece.v[0] = four.x, piece.v[1] = four.y, piece.v[2] = four.z, piece.v[3] = four.w;
    } else {
        piece.v[0] = x[index];
    }
    return piece;
}

typedef struct norm_job {
    float *y;
    const float *x, *weight, *bias;
    __half *half;            /* NULL: no copy in binary16 */
    ingot_cuda_range *range; /* of that copy */
    uint64_t m, n;
    float eps;
    ingot_norm_kind kind;
} norm_job;

template <int VECTOR>
__device__ static void norm_store(const norm_job &job, uint64_t row, uint64_t index,
                                  const norm_piece<VECTOR> &x, float mean, float factor,
                                  ingot_cuda_range *range) {
    const norm_piece<VECTOR> weight = load_piece<VECTOR>(job.weight, index);
    norm_piece<VECTOR> y;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        const float w = job.kind == INGOT_NORM_RMS_PLUS_ONE ? weight.v[i] + 1.0f : weight.v[i];
        y.v[i] = (x.v[i] - mean) * factor * w;
    }
    if (job.bias != nullptr) {
        const norm_piece<VECTOR> bias = load_piece<VECTOR>(job.bias, index);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            y.v[i] += bias.v[i];
        }
    }
    if constexpr (VECTOR == 4) {
        const uint64_t at = row * (job.n / 4) + index;
        reinterpret_cast<float4 *>(job.y)[at] = make_float4(y.v[0], y.v[1], y.v[2], y.v[3]);
        if (job.half != nullptr) {
            const float scale = cuda_power_of_two(-CUDA_HALF_USUAL);
            alignas(8)
                const __half2 halves[2] = {__floats2half2_rn(y.v[0] * scale, y.v[1] * scale),
                                           __floats2half2_rn(y.v[2] * scale, y.v[3] * scale)};
            reinterpret_cast<int2 *>(job.half)[at] = *reinterpret_cast<const int2 *>(halves);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                cuda_range_add(range, y.v[i]);
            }
        }
    } else {
        job.y[row * job.n + index] = y.v[0];
    }
}

/* WIDTH threads (a warp or the block) share a row.  The mean of squares is taken around the mean in
 * a pass of its own, as on the cpu: nothing cancels. */
template <int WIDTH, int VECTOR>
__global__ __launch_bounds__(THREADS) static void norm_kernel(const norm_job job) {
    const uint64_t pieces = job.n / VECTOR;
    const uint64_t rows_at_once = (uint64_t)gridDim.x * (THREADS / WIDTH);
    const unsigned own = threadIdx.x % WIDTH;
    ingot_cuda_range range = {0, 0};
    for (uint64_t row = (uint64_t)blockIdx.x * (THREADS / WIDTH) + threadIdx.x / WIDTH; row < job.m;
         row += rows_at_once) {
        const float *x = job.x + row * job.n;
        norm_piece<VECTOR> kept[NORM_KEPT];
#pragma unroll
        for (int k = 0; k < NORM_KEPT; k++) {
            const uint64_t index = own + (uint64_t)k * WIDTH;
            if (index < pieces) {
                kept[k] = load_piece<VECTOR>(x, index);
            } else {
#pragma unroll
                for (int i = 0; i < VECTOR; i++) {
                    kept[k].v[i] = 0.0f;
                }
            }
        }
        float mean = 0.0f;
        if (job.kind == INGOT_NORM_LAYER) {
            float sum = 0.0f;
#pragma unroll
            for (int k = 0; k < NORM_KEPT; k++) {
#pragma unroll
                for (int i = 0; i < VECTOR; i++) {
                    sum += kept[k].v[i];
                }
            }
            for (uint64_t index = own + (uint64_t)NORM_KEPT * WIDTH; index < pieces;
                 index += WIDTH) {
                const norm_piece<VECTOR> piece = load_piece<VECTOR>(x, index);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) {
                    sum += piece.v[i];
                }
            }
            mean = row_sum<WIDTH>(sum) / (float)job.n;
        }
        float square = 0.0f;
#pragma unroll
        for (int k = 0; k < NORM_KEPT; k++) {
            if (own + (uint64_t)k * WIDTH < pieces) {
#pragma unroll
                for (int i = 0; i < VECTOR; i++) {
                    square = fmaf(kept[k].v[i] - mean, kept[k].v[i] - mean, square);
                }
            }
        }
        for (uint64_t index = own + (uint64_t)NORM_KEPT * WIDTH; index < pieces; index += WIDTH) {
            const norm_piece<VECTOR> piece = load_piece<VECTOR>(x, index);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                square = fmaf(piece.v[i] - mean, piece.v[i] - mean, square);
            }
        }
        const float factor = 1.0f / sqrtf(row_sum<WIDTH>(square) / (float)job.n + job.eps);
#pragma unroll
        for (int k = 0; k < NORM_KEPT; k++) {
            const uint64_t index = own + (uint64_t)k * WIDTH;
            if (index < pieces) {
                norm_store<VECTOR>(job, row, index, kept[k], mean, factor, &range);
            }
        }
        for (uint64_t index = own + (uint64_t)NORM_KEPT * WIDTH; index < pieces; index += WIDTH) {
            norm_store<VECTOR>(job, row, index, load_piece<VECTOR>(x, index), mean, factor, &range);
        }
    }
    if (job.half != nullptr) {
        __syncwarp();
        cuda_range_store(job.range, range);
    }
}

template <int WIDTH> static void launch_norm(const ingot_cuda *cuda, const norm_job &job) {
    const uint64_t blocks = ingot_min_u64(ingot_ceil_div(job.m * WIDTH, THREADS),
                                          16u * (uint64_t)cuda->multiprocessors);
    const bool is_vector = job.n % 4 == 0 && cuda_is_aligned(job.x) && cuda_is_aligned(job.y) &&
                           cuda_is_aligned(job.weight) && cuda_is_aligned(job.bias);
    if (is_vector) {
        norm_kernel<WIDTH, 4><<<(unsigned)blocks, THREADS, 0, cuda->stream>>>(job);
    } else {
        norm_kernel<WIDTH, 1><<<(unsigned)blocks, THREADS, 0, cuda->stream>>>(job);
    }
}

ingot_status cuda_norm(void *context, float *y, const float *x, const float *weight,
                       const float *bias, ingot_norm_kind kind, float eps, uint64_t m, uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (m == 0 || n == 0) {
        return INGOT_OK;
    }
    norm_job job = {y, x,   weight, kind == INGOT_NORM_LAYER ? bias : nullptr, nullptr, nullptr, m,
                    n, eps, kind};
    /* Norms of heads and in place are no inputs of products. */
    const bool is_input = n >= 256 && n % 8 == 0 && m >= CUDA_PRODUCT_ROWS && y != x &&
                          cuda_is_aligned(x) && cuda_is_aligned(y) && cuda_is_aligned(weight) &&
                          cuda_is_aligned(job.bias);
    cuda_written(cuda, y, m * n * sizeof *y);
    if (is_input) {
        INGOT_TRY(cuda_half_begin(cuda, &job.half, m * n));
        job.range = &cuda->scalars->half;
    }
    if (n <= 512) {
        launch_norm<32>(cuda, job);
    } else {
        launch_norm<THREADS>(cuda, job);
    }
    INGOT_TRY(ingot_cuda_launched());
    return is_input ? cuda_half_end(cuda, y, m * n) : INGOT_OK;
}

/* ---- rotary embedding -------------------------------------------------------------------------
 */

#define ROTARY_PAIRS 256 /* whose frequencies travel as an argument: no copy, no waiting */

typedef struct rotary_frequencies {
    double value[ROTARY_PAIRS];
} rotary_frequencies;

/* turns[position][half] = (cosine, sine) of pairs begin .. begin + count - 1 */
__global__ __launch_bounds__(THREADS) static void rotary_angles_kernel(
    float2 *__restrict__ turns, const rotary_frequencies frequencies, uint64_t first,
    uint64_t positions, unsigned half, unsigned begin, unsigned count, float scale) {
    const uint64_t total = positions * count, step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < total; i += step) {
        const uint64_t position = i / count;
        const unsigned pair = (unsigned)(i % count);
        double sine, cosine;
        sincos((double)(first + position) * frequencies.value[pair], &sine, &cosine);
        turns[position * half + begin + pair] =
            make_float2((float)(cosine * (double)scale), (float)(sine * (double)scale));
    }
}

__device__ static void rotate_pair(float &a, float &b, float2 turn) {
    const float low = a, high = b;
    a = low * turn.x - high * turn.y;
    b = high * turn.x + low * turn.y;
}

/* VECTOR pairs a thread; x[m * heads][head_dim]. */
template <int VECTOR>
__global__
__launch_bounds__(THREADS) static void rotary_kernel(float *x, const float2 *__restrict__ turns,
                                                     uint64_t period, uint64_t m, uint64_t heads,
                                                     uint64_t head_dim, unsigned half) {
    const unsigned pieces = half / VECTOR;
    const uint64_t total = m * heads * pieces, step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < total; i += step) {
        const uint64_t head = i / pieces, pair = i % pieces * VECTOR;
        float *low = x + head * head_dim + pair, *high = low + half;
        const float2 *turn = turns + head / heads % period * half + pair;
        if constexpr (VECTOR == 4) {
            float4 a = *reinterpret_cast<float4 *>(low), b = *reinterpret_cast<float4 *>(high);
            rotate_pair(a.x, b.x, turn[0]);
            rotate_pair(a.y, b.y, turn[1]);
            rotate_pair(a.z, b.z, turn[2]);
            rotate_pair(a.w, b.w, turn[3]);
            *reinterpret_cast<float4 *>(low) = a;
            *reinterpret_cast<float4 *>(high) = b;
        } else {
            rotate_pair(*low, *high, *turn);
        }
    }
}

ingot_status cuda_rotary(void *context, float *x, uint64_t first, uint64_t period,
                         const double *inverse_frequency, float scale, uint64_t m, uint64_t heads,
                         uint64_t head_dim, uint64_t rotary_dim) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (rotary_dim > head_dim || rotary_dim % 2 != 0 || rotary_dim > UINT32_MAX || period == 0) {
        return INGOT_ERR_USAGE;
    }
    if (m == 0 || heads == 0 || rotary_dim == 0) {
        return INGOT_OK;
    }
    const uint64_t positions = ingot_min_u64(period, m);
    const unsigned half = (unsigned)(rotary_dim / 2);
    ingot_cuda_buffer memory(cuda);
    INGOT_TRY(memory.alloc(positions, half * sizeof(float2)));
    float2 *turns = memory.as<float2>();
    for (unsigned begin = 0; begin < half; begin += ROTARY_PAIRS) {
        rotary_frequencies frequencies = {};
        const unsigned count = half - begin < ROTARY_PAIRS ? half - begin : ROTARY_PAIRS;
        memcpy(frequencies.value, inverse_frequency + begin, count * sizeof(double));
        rotary_angles_kernel<<<grid_for(cuda, positions * count), THREADS, 0, cuda->stream>>>(
            turns, frequencies, first, positions, half, begin, count, scale);
        INGOT_TRY(ingot_cuda_launched());
    }
    cuda_written(cuda, x, m * heads * head_dim * sizeof *x);
    if (half % 4 == 0 && head_dim % 4 == 0 && cuda_is_aligned(x)) {
        rotary_kernel<4><<<grid_for(cuda, m * heads * (half / 4)), THREADS, 0, cuda->stream>>>(
            x, turns, period, m, heads, head_dim, half);
    } else {
        rotary_kernel<1><<<grid_for(cuda, m * heads * half), THREADS, 0, cuda->stream>>>(
            x, turns, period, m, heads, head_dim, half);
    }
    return ingot_cuda_launched();
}

/* ---- activations and sums ---------------------------------------------------------------------
 */

/* The forms of kernels/cpu/isa_math.c: nothing overflows into NaN, and NaN stays NaN. */
template <ingot_activation KIND> __device__ static float activation(float x) {
    switch (KIND) {
    case INGOT_ACT_SILU:
        return x / (1.0f + expf(-x));
    case INGOT_ACT_GELU: /* erfc keeps relative precision where 1 + erf would cancel */
        return 0.5f * x * erfcf(-0.7071067812f * x);
    case INGOT_ACT_GELU_TANH: { /* 0.5 x (1 + tanh u) = x / (1 + exp(-2u)) */
        const float root = 0.7978845608f;
        return x / (1.0f + expf(x * fmaf(x * x, -2.0f * root * 0.044715f, -2.0f * root)));
    }
    default:
        return x < 0.0f ? 0.0f : x;
    }
}

typedef struct activate_job {
    float *gate;
    const float *up;         /* NULL: none */
    __half *half;            /* NULL: no copy in binary16 */
    ingot_cuda_range *range; /* of that copy */
    uint64_t count;          /* of values */
} activate_job;

template <ingot_activation KIND>
__global__ __launch_bounds__(THREADS) static void activate_kernel(const activate_job job) {
    const uint64_t step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < job.count; i += step) {
        const float value = activation<KIND>(job.gate[i]);
        job.gate[i] = job.up != nullptr ? value * job.up[i] : value;
    }
}

__device__ static float4 multiply_four(float4 a, float4 b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}

template <ingot_activation KIND> __device__ static float4 activation_four(float4 x) {
    return make_float4(activation<KIND>(x.x), activation<KIND>(x.y), activation<KIND>(x.z),
                       activation<KIND>(x.w));
}

/* The same, eight values a thread; count is a multiple of 8. */
template <ingot_activation KIND>
__global__ __launch_bounds__(THREADS) static void activate_eight_kernel(const activate_job job) {
    const uint64_t total = job.count / 8, step = (uint64_t)gridDim.x * THREADS;
    ingot_cuda_range range = {0, 0};
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < total; i += step) {
        float4 *gate = reinterpret_cast<float4 *>(job.gate) + 2 * i;
        float4 low = gate[0], high = gate[1];
        float4 up_low = make_float4(1.0f, 1.0f, 1.0f, 1.0f), up_high = up_low;
        if (job.up != nullptr) {
            up_low = reinterpret_cast<const float4 *>(job.up)[2 * i];
            up_high = reinterpret_cast<const float4 *>(job.up)[2 * i + 1];
        }
        low = multiply_four(activation_four<KIND>(low), up_low);
        high = multiply_four(activation_four<KIND>(high), up_high);
        gate[0] = low;
        gate[1] = high;
        if (job.half != nullptr) {
            const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
            alignas(16) __half halves[8];
#pragma unroll
            for (int j = 0; j < 8; j++) {
                halves[j] = __float2half_rn(v[j] * cuda_power_of_two(-CUDA_HALF_USUAL));
                cuda_range_add(&range, v[j]);
            }
            reinterpret_cast<int4 *>(job.half)[i] = *reinterpret_cast<const int4 *>(halves);
        }
    }
    if (job.half != nullptr) {
        __syncwarp();
        cuda_range_store(job.range, range);
    }
}

template <ingot_activation KIND>
static ingot_status launch_activate(const ingot_cuda *cuda, const activate_job &job,
                                    bool is_vector) {
    if (is_vector) {
        activate_eight_kernel<KIND>
            <<<grid_for(cuda, job.count / 8), THREADS, 0, cuda->stream>>>(job);
    } else {
        activate_kernel<KIND><<<grid_for(cuda, job.count), THREADS, 0, cuda->stream>>>(job);
    }
    return ingot_cuda_launched();
}

ingot_status cuda_activate(void *context, float *gate, const float *up, ingot_activation kind,
                           uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (n == 0) {
        return INGOT_OK;
    }
    activate_job job = {gate, up, nullptr, nullptr, n};
    const bool is_vector = n % 8 == 0 && cuda_is_aligned(gate) && cuda_is_aligned(up);
    /* The length of a row is not known here; a copy pays for a few thousand rows, not for one. */
    const bool is_input = is_vector && n >= UINT64_C(1) << 20;
    cuda_written(cuda, gate, n * sizeof *gate);
    if (is_input) {
        INGOT_TRY(cuda_half_begin(cuda, &job.half, n));
        job.range = &cuda->scalars->half;
    }
    ingot_status status = INGOT_ERR_USAGE;
    switch (kind) {
    case INGOT_ACT_SILU:
        status = launch_activate<INGOT_ACT_SILU>(cuda, job, is_vector);
        break;
    case INGOT_ACT_GELU:
        status = launch_activate<INGOT_ACT_GELU>(cuda, job, is_vector);
        break;
    case INGOT_ACT_GELU_TANH:
        status = launch_activate<INGOT_ACT_GELU_TANH>(cuda, job, is_vector);
        break;
    case INGOT_ACT_RELU:
        status = launch_activate<INGOT_ACT_RELU>(cuda, job, is_vector);
        break;
    }
    INGOT_TRY(status);
    return is_input ? cuda_half_end(cuda, gate, n) : INGOT_OK;
}

__global__ __launch_bounds__(THREADS) static void add_kernel(float *y, const float *x, float scale,
                                                             uint64_t n) {
    const uint64_t step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        y[i] = fmaf(scale, x[i], y[i]);
    }
}

/* The same, four values a thread. */
__global__ __launch_bounds__(THREADS) static void add_four_kernel(float4 *y, const float4 *x,
                                                                  float scale, uint64_t n) {
    const uint64_t step = (uint64_t)gridDim.x * THREADS;
#pragma unroll 2
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < n; i += step) {
        const float4 a = y[i], b = x[i];
        y[i] = make_float4(fmaf(scale, b.x, a.x), fmaf(scale, b.y, a.y), fmaf(scale, b.z, a.z),
                           fmaf(scale, b.w, a.w));
    }
}

ingot_status cuda_add(void *context, float *y, const float *x, float scale, uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (n == 0) {
        return INGOT_OK;
    }
    cuda_written(cuda, y, n * sizeof *y);
    if (n % 4 == 0 && cuda_is_aligned(y) && cuda_is_aligned(x)) {
        add_four_kernel<<<grid_for(cuda, n / 4), THREADS, 0, cuda->stream>>>(
            reinterpret_cast<float4 *>(y), reinterpret_cast<const float4 *>(x), scale, n / 4);
    } else {
        add_kernel<<<grid_for(cuda, n), THREADS, 0, cuda->stream>>>(y, x, scale, n);
    }
    return ingot_cuda_launched();
}
