/* The engine's kernels over rows: embedding, norm, heads of a prompt, activation, and weights
 * unpacked to binary16. */
#include "kernels/cuda/engine_parts.h"
#include "kernels/cuda/forward.h"
#include "kernels/cuda/product_input.h"
#include "kernels/cuda/product_next.h"
#include "kernels/cuda/weights.h"

#define THREADS 256

/* ---- embedding --------------------------------------------------------------------------------
 */

typedef struct embed_job {
    engine_rows rows;
    ingot_weight_view table;
    float *x;
    float2 *angles;
    const double *inverse_frequency;
    unsigned rotary;
    float scale, rotary_scale;
    ingot_product_next next;
    product_known known; /* how the power of two follows from a sum of squares */
    float more;          /* than each weight of the norm of next */
} embed_job;

/* What products hand on of rows that are there in whole: the norm of x times a power of two. */
__device__ static void hand_on_row(const embed_job &job, unsigned row, const float *x) {
    __shared__ float part[THREADS / 32];
    const ingot_product_next &next = job.next;
    float square = 0.0f;
    for (unsigned col = threadIdx.x; col < job.table.cols; col += THREADS) {
        square = fmaf(x[col], x[col], square);
    }
    square = product_block_sum<THREADS, true>(part, square);
    const float power = product_known_factor(job.known, square, 1.0f);
    for (unsigned col = threadIdx.x * 4; col < job.table.cols; col += THREADS * 4) {
        __half values[4];
#pragma unroll
        for (unsigned i = 0; i < 4; i++) {
            values[i] = finite_half(x[col + i] * (next.norm_weight[col + i] + job.more) * power);
        }
        product_put_columns(static_cast<__half *>(next.x), next.form.bits, next.form.rows, row, col,
                            values);
    }
    if (threadIdx.x == 0) {
        next.squares.sums[2 * row] = square;
        next.squares.sums[2 * row + 1] = power;
    }
}

/* A block per row.  The first kernel of a pass: it waits for everything before it, and no other
 * starts before it has ended, so that these may read ids, lengths and older keys at once. */
template <int KIND>
__global__ __launch_bounds__(THREADS) static void engine_embed_kernel(const embed_job job) {
    const uint64_t row = blockIdx.x, id = job.rows.ids[row];
    float *x = job.x + row * job.table.cols;
    const double position = engine_position(job.rows, (unsigned)row);
    for (unsigned i = threadIdx.x; i < job.rotary / 2; i += THREADS) {
        double sine, cosine;
        sincos(position * job.inverse_frequency[i], &sine, &cosine);
        job.angles[row * (job.rotary / 2) + i] =
            make_float2((float)cosine * job.rotary_scale, (float)sine * job.rotary_scale);
    }
    for (uint64_t col = threadIdx.x * 8; col < job.table.cols; col += THREADS * 8) {
        float v[8];
        cuda_load_weights<KIND>(v, job.table, id, col);
#pragma unroll
        for (unsigned j = 0; j < 8; j++) {
            if (col + j < job.table.cols) {
                x[col + j] = v[j] * job.scale;
            }
        }
    }
    if (KIND > CUDA_WEIGHTS_GROUPED && job.table.outlier_count != 0) {
        __syncthreads();
        const uint64_t *ends = job.table.outlier_row_ptr + id;
        for (uint64_t k = ends[0] + threadIdx.x; k < ends[1]; k += THREADS) {
            x[job.table.outlier_col[k]] =
                cuda_float_at(job.table.outlier_val, job.table.dtype, k) * job.scale;
        }
    }
    if (job.next.x != nullptr) {
        __syncthreads();
        hand_on_row(job, (unsigned)row, x);
    }
}

template <int KIND> static ingot_status launch_embed(const ingot_engine *e, const embed_job &job) {
    const engine_shape shape = {dim3(job.rows.m), THREADS};
    return engine_launch(e, engine_embed_kernel<KIND>, shape, job, false);
}

ingot_status engine_embed(const ingot_engine *e, const engine_rows *rows,
                          const ingot_product_next *next) {
    embed_job job = {};
    job.next = *next;
    job.known.cols = (unsigned)e->model.hidden;
    job.known.eps = e->model.norm_eps;
    job.more = e->model.norm == INGOT_NORM_RMS_PLUS_ONE ? 1.0f : 0.0f;
    job.rows = *rows;
    job.table = e->embed.w;
    job.x = e->x;
    job.angles = e->angles;
    job.inverse_frequency = e->inverse_frequency;
    job.rotary = (unsigned)e->model.rotary_dim;
    job.scale = e->model.embed_scale;
    job.rotary_scale = e->model.rotary_scale;
    ingot_status status;
    CUDA_FOR_WEIGHT_KIND(status, &job.table, launch_embed, e, job);
    return status;
}

/* ---- norm --------------------------------------------------------------------------------------
 */

typedef struct norm_job {
    __half *out;
    const float *x, *weight;
    unsigned n;
    float eps;
    bool is_plus_one;
    unsigned *saturated;
} norm_job;

/* A block per row; n is a multiple of 4. */
__global__ __launch_bounds__(THREADS) static void engine_norm_kernel(const norm_job job) {
    __shared__ float part[THREADS / 32];
    engine_chain();
    const float4 *x = reinterpret_cast<const float4 *>(job.x + (uint64_t)blockIdx.x * job.n);
    uint2 *out = reinterpret_cast<uint2 *>(job.out + (uint64_t)blockIdx.x * job.n);
    float factor = 1.0f;
    if (job.weight != nullptr) {
        float square = 0.0f;
        for (unsigned i = threadIdx.x; i < job.n / 4; i += THREADS) {
            const float4 v = x[i];
            square += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
        square = product_block_sum<THREADS, true>(part, square);
        factor = 1.0f / sqrtf(square / (float)job.n + job.eps);
    }
    const float more = job.is_plus_one ? 1.0f : 0.0f;
    float peak = 0.0f;
    for (unsigned i = threadIdx.x; i < job.n / 4; i += THREADS) {
        float4 v = x[i];
        if (job.weight != nullptr) {
            const float4 w = reinterpret_cast<const float4 *>(job.weight)[i];
            v.x *= factor * (w.x + more), v.y *= factor * (w.y + more);
            v.z *= factor * (w.z + more), v.w *= factor * (w.w + more);
        }
        alignas(8) const __half values[4] = {finite_half(v.x, &peak), finite_half(v.y, &peak),
                                             finite_half(v.z, &peak), finite_half(v.w, &peak)};
        out[i] = *reinterpret_cast<const uint2 *>(values);
    }
    engine_note_saturated(job.saturated, peak);
}

ingot_status engine_norm(const ingot_engine *e, const engine_rows *rows, const float *weight) {
    const norm_job job = {e->normed,
                          e->x,
                          weight,
                          (unsigned)e->model.hidden,
                          e->model.norm_eps,
                          e->model.norm == INGOT_NORM_RMS_PLUS_ONE,
                          e->saturated};
    const engine_shape shape = {dim3(rows->m), THREADS};
    return engine_launch(e, engine_norm_kernel, shape, job, true);
}

/* ---- heads of a prompt -------------------------------------------------------------------------
 */

typedef struct heads_job {
    engine_rows rows;
    engine_projected from;
    engine_head_shape shape;
    const float2 *angles;
    __half *q, *k, *v;
    unsigned heads, kv_heads;
    unsigned *saturated;
} heads_job;

/* A warp per head of a row. */
__global__ __launch_bounds__(THREADS) static void engine_heads_kernel(const heads_job job) {
    __shared__ float scratch[THREADS / 32][ENGINE_HEAD_DIM];
    engine_chain();
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = job.shape.head_dim;
    const unsigned all = job.heads + 2 * job.kv_heads;
    const uint64_t item = (uint64_t)blockIdx.x * (THREADS / 32) + warp;
    if (item >= (uint64_t)job.rows.m * all) {
        return;
    }
    const unsigned row = (unsigned)(item / all), head = (unsigned)(item % all);
    const unsigned which = head < job.heads ? 0 : head < job.heads + job.kv_heads ? 1 : 2;
    const unsigned own = which == 0 ? head : (head - job.heads) % job.kv_heads;
    const unsigned position = engine_position(job.rows, row), rotary = job.shape.rotary;
    if (position >= job.rows.capacity) {
        return;
    }
    float *v = scratch[warp], part[ENGINE_HEAD_PARTS];
    engine_read_head(part, job.from.x[which] + row * job.from.stride[which] + (uint64_t)own * dim,
                     job.from.bias != nullptr ? job.from.bias + (uint64_t)head * dim : nullptr,
                     job.shape);
    engine_norm_head(v, part,
                     which == 0   ? job.from.norm_q
                     : which == 1 ? job.from.norm_k
                                  : nullptr,
                     job.shape);
    const uint64_t sequence = engine_sequence(job.rows, row);
    const uint64_t at = ((sequence * job.kv_heads + own) * job.rows.padded + position) * dim;
    __half *to = which == 0   ? job.q + ((uint64_t)row * job.heads + own) * dim
                 : which == 1 ? job.k + at
                              : job.v + at;
    const float2 *angles = job.angles + (uint64_t)row * (rotary / 2);
    float peak = 0.0f;
    for (unsigned d = lane; d < dim; d += 32) {
        to[d] = finite_half(
            which == 2 ? v[d] : engine_rotated(v, engine_angle(angles, d, rotary), d, rotary),
            &peak);
    }
    engine_note_saturated(job.saturated, peak);
}

ingot_status engine_heads(const ingot_engine *e, const engine_rows *rows, const engine_layer *layer,
                          const engine_projected *from) {
    const ingot_engine_model *m = &e->model;
    const heads_job job = {*rows,
                           *from,
                           {(unsigned)m->head_dim, (unsigned)m->rotary_dim, m->norm_eps,
                            m->norm == INGOT_NORM_RMS_PLUS_ONE},
                           e->angles,
                           e->q,
                           layer->k,
                           layer->v,
                           (unsigned)m->heads,
                           (unsigned)m->kv_heads,
                           e->saturated};
    const uint64_t items = rows->m * (m->heads + 2 * m->kv_heads);
    const engine_shape shape = {dim3((unsigned)ingot_ceil_div(items, THREADS / 32)), THREADS};
    return engine_launch(e, engine_heads_kernel, shape, job, true);
}

/* ---- values of a sequence ----------------------------------------------------------------------
 */

typedef struct clear_job {
    __half *values;       /* of the first layer and head */
    uint64_t layer, head; /* from one to the next */
    uint64_t count;       /* of a head, a multiple of 8 */
    unsigned kv_heads;
} clear_job;

/* A block per layer and head. */
__global__ __launch_bounds__(THREADS) static void engine_clear_kernel(const clear_job job) {
    uint4 *to = reinterpret_cast<uint4 *>(job.values + blockIdx.x / job.kv_heads * job.layer +
                                          blockIdx.x % job.kv_heads * job.head);
    for (uint64_t i = threadIdx.x; i < job.count / 8; i += THREADS) {
        to[i] = make_uint4(0, 0, 0, 0);
    }
}

ingot_status engine_clear(const ingot_engine *e, uint64_t sequence, uint64_t count) {
    const ingot_engine_model *m = &e->model;
    const uint64_t head = e->padded * m->head_dim, each = m->kv_heads * head;
    const clear_job job = {e->layer[0].v + sequence * each, 2 * e->sequences * each, head,
                           count * m->head_dim, (unsigned)m->kv_heads};
    const engine_shape shape = {dim3((unsigned)(m->layers * m->kv_heads)), THREADS};
    return count == 0 ? INGOT_OK : engine_launch(e, engine_clear_kernel, shape, job, false);
}

/* ---- activation and bias -----------------------------------------------------------------------
 */

typedef struct activate_job {
    __half *out;
    const __half *gate, *up; /* [m][n] */
    const float *gate_bias, *up_bias;
    ingot_activation kind;
    unsigned n;
    uint64_t count;
    unsigned *saturated;
} activate_job;

/* The forms of rows.cu: nothing overflows into NaN. */
__device__ static float activation(float x, ingot_activation kind) {
    switch (kind) {
    case INGOT_ACT_SILU:
        return x / (1.0f + expf(-x));
    case INGOT_ACT_GELU:
        return 0.5f * x * erfcf(-0.7071067812f * x);
    case INGOT_ACT_GELU_TANH: {
        const float root = 0.7978845608f;
        return x / (1.0f + expf(x * fmaf(x * x, -2.0f * root * 0.044715f, -2.0f * root)));
    }
    default:
        return x < 0.0f ? 0.0f : x;
    }
}

__global__ __launch_bounds__(THREADS) static void engine_activate_kernel(const activate_job job) {
    engine_chain();
    const uint64_t step = (uint64_t)gridDim.x * THREADS * 8;
    uint64_t i = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) * 8;
    float peak = 0.0f;
    for (; i + 8 <= job.count; i += step) { /* with biases n is a multiple of 8 */
        alignas(16) __half gate[8], up[8];
        *reinterpret_cast<uint4 *>(gate) = *reinterpret_cast<const uint4 *>(job.gate + i);
        *reinterpret_cast<uint4 *>(up) = *reinterpret_cast<const uint4 *>(job.up + i);
        const bool has_bias = job.gate_bias != nullptr || job.up_bias != nullptr;
        const unsigned d = has_bias ? (unsigned)(i % job.n) : 0;
#pragma unroll
        for (unsigned j = 0; j < 8; j++) {
            float g = __half2float(gate[j]), u = __half2float(up[j]);
            g += job.gate_bias != nullptr ? job.gate_bias[d + j] : 0.0f;
            u += job.up_bias != nullptr ? job.up_bias[d + j] : 0.0f;
            gate[j] = finite_half(activation(g, job.kind) * u, &peak);
        }
        *reinterpret_cast<uint4 *>(job.out + i) = *reinterpret_cast<const uint4 *>(gate);
    }
    for (; i < job.count; i++) { /* one thread's: without biases */
        job.out[i] = finite_half(
            activation(__half2float(job.gate[i]), job.kind) * __half2float(job.up[i]), &peak);
    }
    engine_note_saturated(job.saturated, peak);
}

static engine_shape spread(const ingot_engine *e, uint64_t items) {
    const uint64_t blocks = ingot_ceil_div(ingot_max_u64(items, 1), THREADS);
    const engine_shape shape = {
        dim3((unsigned)ingot_min_u64(blocks, 32u * (uint64_t)e->cuda->multiprocessors)), THREADS};
    return shape;
}

ingot_status engine_activate(const ingot_engine *e, const engine_rows *rows, const float *gate_bias,
                             const float *up_bias) {
    const uint64_t count = rows->m * e->model.ffn;
    const activate_job job = {e->inner,
                              e->gate_up,
                              e->gate_up + e->pass_rows * e->model.ffn,
                              gate_bias,
                              up_bias,
                              e->model.activation,
                              (unsigned)e->model.ffn,
                              count,
                              e->saturated};
    return engine_launch(e, engine_activate_kernel, spread(e, count / 8), job, true);
}

typedef struct bias_job {
    float *x;
    const float *bias;
    uint64_t count;
    unsigned n;
} bias_job;

__global__ __launch_bounds__(THREADS) static void engine_bias_kernel(const bias_job job) {
    engine_chain();
    const uint64_t step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < job.count; i += step) {
        job.x[i] += job.bias[i % job.n];
    }
}

ingot_status engine_add_bias(const ingot_engine *e, const engine_rows *rows, const float *bias) {
    const bias_job job = {e->x, bias, rows->m * e->model.hidden, (unsigned)e->model.hidden};
    return engine_launch(e, engine_bias_kernel, spread(e, job.count), job, true);
}

/* ---- weights in binary16 ------------------------------------------------------------------------
 */

typedef struct unpack_job {
    __half *out;
    ingot_weight_view w;
    uint64_t first, rows;
    float factor;
} unpack_job;

/* A block per row; w.cols is a multiple of 8. */
template <int KIND>
__global__ __launch_bounds__(THREADS) static void engine_unpack_kernel(const unpack_job job) {
    engine_chain();
    for (uint64_t row = blockIdx.x; row < job.rows; row += gridDim.x) {
        __half *out = job.out + row * job.w.cols;
#pragma unroll 2
        for (uint64_t col = threadIdx.x * 8; col < job.w.cols; col += THREADS * 8) {
            float v[8];
            alignas(16) __half values[8];
            cuda_load_weights<KIND>(v, job.w, job.first + row, col);
#pragma unroll
            for (int j = 0; j < 8; j++) {
                values[j] = __float2half_rn(v[j] * job.factor);
            }
            *reinterpret_cast<uint4 *>(out + col) = *reinterpret_cast<const uint4 *>(values);
        }
    }
}

/* A warp per row. */
__global__ __launch_bounds__(THREADS) static void engine_outliers_kernel(const unpack_job job) {
    engine_chain();
    const uint64_t row = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32;
    if (row >= job.rows) {
        return;
    }
    const uint64_t *ends = job.w.outlier_row_ptr + job.first + row;
    for (uint64_t k = ends[0] + threadIdx.x % 32; k < ends[1]; k += 32) {
        job.out[row * job.w.cols + job.w.outlier_col[k]] =
            __float2half_rn(cuda_float_at(job.w.outlier_val, job.w.dtype, k) * job.factor);
    }
}

template <int KIND>
static ingot_status launch_unpack(const ingot_engine *e, const unpack_job &job) {
    const uint64_t blocks = ingot_min_u64(job.rows, 64u * (uint64_t)e->cuda->multiprocessors);
    const engine_shape rows = {dim3((unsigned)blocks), THREADS};
    INGOT_TRY(engine_launch(e, engine_unpack_kernel<KIND>, rows, job, true));
    if (KIND > CUDA_WEIGHTS_GROUPED && job.w.outlier_count != 0) {
        const engine_shape shape = {dim3((unsigned)ingot_ceil_div(job.rows * 32, THREADS)),
                                    THREADS};
        return engine_launch(e, engine_outliers_kernel, shape, job, true);
    }
    return INGOT_OK;
}

ingot_status engine_unpack(const ingot_engine *e, __half *out, const engine_linear *linear,
                           uint64_t first, uint64_t rows) {
    const unpack_job job = {out, linear->w, first, rows,
                            ldexpf(1.0f, -cuda_exponent_of(linear->largest, CUDA_WEIGHT_USUAL))};
    ingot_status status;
    CUDA_FOR_WEIGHT_KIND(status, &job.w, launch_unpack, e, job);
    return status;
}

/* ---- how large weights are ----------------------------------------------------------------------
 */

typedef struct bound_job {
    const void *values;
    ingot_dtype dtype;
    uint64_t count;
    unsigned *largest; /* bits of a magnitude; not finite: none */
} bound_job;

__global__ __launch_bounds__(THREADS) static void engine_bound_kernel(const bound_job job) {
    unsigned largest = 0;
    const uint64_t step = (uint64_t)gridDim.x * THREADS;
    for (uint64_t i = (uint64_t)blockIdx.x * THREADS + threadIdx.x; i < job.count; i += step) {
        const unsigned bits =
            __float_as_uint(cuda_float_at(job.values, job.dtype, i)) & 0x7fffffffu;
        largest = bits < 0x7f800000u ? max(largest, bits) : largest;
    }
    for (int other = 16; other > 0; other /= 2) {
        largest = max(largest, __shfl_xor_sync(0xffffffffu, largest, other));
    }
    if (threadIdx.x % 32 == 0) {
        atomicMax(job.largest, largest);
    }
}

static ingot_status add_bound(const ingot_engine *e, unsigned *largest, const void *values,
                              ingot_dtype dtype, uint64_t count) {
    const bound_job job = {values, dtype, count, largest};
    return count == 0 ? INGOT_OK
                      : engine_launch(e, engine_bound_kernel, spread(e, count), job, false);
}

ingot_status engine_bound(const ingot_engine *e, const ingot_weight_view *w, float *largest) {
    ingot_cuda_buffer memory(e->cuda);
    INGOT_TRY(memory.alloc(2, sizeof(unsigned)));
    unsigned *bits = memory.as<unsigned>();
    float host[2] = {0, 0};
    INGOT_TRY(ingot_cuda_status(cudaMemsetAsync(bits, 0, 2 * sizeof *bits, e->cuda->stream)));
    const bool is_grouped = w->kind == INGOT_GROUPED;
    INGOT_TRY(is_grouped
                  ? add_bound(e, bits, w->scales, w->scale_dtype, w->rows * w->groups_per_row)
                  : add_bound(e, bits, w->data, w->dtype, w->rows * w->cols));
    if (is_grouped) {
        INGOT_TRY(add_bound(e, bits + 1, w->outlier_val, w->dtype, w->outlier_count));
    }
    INGOT_TRY(ingot_cuda_status(
        cudaMemcpyAsync(host, bits, sizeof host, cudaMemcpyDeviceToHost, e->cuda->stream)));
    INGOT_TRY(ingot_cuda_status(cudaStreamSynchronize(e->cuda->stream)));
    host[0] *= is_grouped ? (float)(1u << w->bits) : 1.0f;
    *largest = host[0] > host[1] ? host[0] : host[1];
    return INGOT_OK;
}
