/* Statistics of a layer's inputs: the lower triangle of x^T x, sums of magnitudes, the rows that
 * had to be left out, and products of drift with the inputs.
 *
 * The triangle is made of panels, GEMMs of block columns on the binary16 copy that the layer's
 * products share (half.cu), FP32 sums.  What lies above the diagonal in a panel's first rows is
 * computed too and means nothing.
 *
 * Rows with a value that is not finite count as dropped.  Finite rows beyond WIDE would push all
 * others out of the range of binary16: they are added in FP32.  Both kinds are zero in the copy
 * while the panels read it, and put back afterwards; where no row is of either kind, which the
 * device alone knows, these kernels return at once.
 *
 * Differences for drift are taken in FP32 and rounded to binary16 like the inputs they are
 * multiplied with: drift is small beside what it is the drift of, and 2^-11 of it smaller still. */
#include "kernels/cuda/forward.h"

#define THREADS 256
#define WIDE    0x1p24f /* 29 binades below it have all bits of binary16: spread enough */

enum row_kind : uint8_t { ROW_GOOD, ROW_DROPPED, ROW_WIDE };

/* What one call finds out about its rows; on the device. */
typedef struct gram_state {
    unsigned has_apart, has_wide;
    ingot_cuda_range good; /* of the rows that stay in the copy */
    int exponent;          /* the copy is divided by two to the power of it */
} gram_state;

/* ---- rows that are set apart ------------------------------------------------------------------
 */

/* A value, or its difference to another. */
__device__ static float value_at(const float *x, const float *minus, uint64_t i) {
    return minus != nullptr ? x[i] - minus[i] : x[i];
}

/* One warp looks at one row of x, or of x - minus.  *copied is the range of the whole copy: usually
 * nothing is to be looked for; NULL: there is no copy, look. */
__global__ __launch_bounds__(THREADS) static void gram_rows_kernel(
    row_kind *kinds, gram_state *state, uint64_t *dropped, const ingot_cuda_range *copied,
    const float *__restrict__ x, const float *__restrict__ minus, uint64_t m, uint64_t n) {
    if (copied != nullptr && copied->has_special == 0 && __uint_as_float(copied->largest) <= WIDE) {
        return;
    }
    const uint64_t warps = (uint64_t)gridDim.x * (THREADS / 32);
    const unsigned lane = threadIdx.x % 32;
    for (uint64_t row = ((uint64_t)blockIdx.x * THREADS + threadIdx.x) / 32; row < m;
         row += warps) {
        ingot_cuda_range range = {0, 0};
#pragma unroll 4
        for (uint64_t col = lane; col < n; col += 32) {
            cuda_range_add(&range, value_at(x, minus, row * n + col));
        }
        __syncwarp();
        for (int other = 16; other > 0; other /= 2) {
            range.largest = max(range.largest, __shfl_xor_sync(0xffffffffu, range.largest, other));
            range.has_special |= __shfl_xor_sync(0xffffffffu, range.has_special, other);
        }
        if (lane != 0) {
            continue;
        }
        if (range.has_special != 0) {
            kinds[row] = ROW_DROPPED;
            atomicOr(&state->has_apart, 1u);
            if (dropped != nullptr) {
                atomicAdd(reinterpret_cast<unsigned long long *>(dropped), 1ull);
            }
        } else if (__uint_as_float(range.largest) > WIDE) {
            kinds[row] = ROW_WIDE;
            atomicOr(&state->has_apart, 1u);
            atomicOr(&state->has_wide, 1u);
        } else {
            atomicMax(&state->good.largest, range.largest);
        }
    }
}

/* Rounds x (or x - minus) again, without the rows set apart, to the range of the rest, where
 * *copied is that of the copy at hand. */
__global__ __launch_bounds__(THREADS) static void gram_set_apart_kernel(
    __half *__restrict__ values, const ingot_cuda_range *copied, const row_kind *kinds,
    gram_state *state, const float *__restrict__ x, const float *__restrict__ minus, uint64_t m,
    uint64_t n, uint64_t stride) {
    const bool has_apart = state->has_apart != 0;
    const int exponent =
        cuda_half_exponent(has_apart ? state->good.largest : copied->largest, CUDA_HALF_USUAL);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        state->exponent = exponent;
    }
    if (!has_apart) {
        return;
    }
    const float factor = cuda_power_of_two(-exponent);
    for (uint64_t row = blockIdx.x; row < m; row += gridDim.x) {
        const bool is_good = kinds[row] == ROW_GOOD;
        for (uint64_t col = threadIdx.x; col < stride; col += THREADS) {
            const float value =
                is_good && col < n ? value_at(x, minus, row * n + col) * factor : 0.0f;
            values[row * stride + col] = __float2half_rn(value);
        }
    }
}

/* What a product of two such copies is multiplied by. */
__global__ static void gram_alpha_kernel(ingot_cuda_scalars *scalars, const gram_state *a,
                                         const gram_state *b) {
    scalars->alpha = ldexpf(1.0f, a->exponent + b->exponent);
}

/* The copy as it was. */
__global__ __launch_bounds__(THREADS) static void gram_put_back_kernel(
    __half *__restrict__ values, const ingot_cuda_scalars *scalars, const gram_state *state,
    const float *__restrict__ x, uint64_t m, uint64_t n, uint64_t stride) {
    if (state->has_apart == 0) {
        return;
    }
    const float factor =
        cuda_power_of_two(-cuda_half_exponent(scalars->half.largest, CUDA_HALF_USUAL));
    for (uint64_t row = blockIdx.x; row < m; row += gridDim.x) {
        for (uint64_t col = threadIdx.x; col < stride; col += THREADS) {
            const float value = col < n ? x[row * n + col] * factor : 0.0f;
            values[row * stride + col] = __float2half_rn(value);
        }
    }
}

/* gram += x_r^T x_r for every wide row r, in order; a block takes rows of gram. */
__global__ __launch_bounds__(THREADS) static void gram_wide_kernel(float *gram,
                                                                   const row_kind *kinds,
                                                                   const gram_state *state,
                                                                   const float *__restrict__ x,
                                                                   uint64_t m, uint64_t n) {
    if (state->has_wide == 0) {
        return;
    }
    for (uint64_t i = blockIdx.x; i < n; i += gridDim.x) {
        for (uint64_t row = 0; row < m; row++) {
            if (kinds[row] != ROW_WIDE) {
                continue;
            }
            const float *values = x + row * n;
            const float own = values[i];
            for (uint64_t j = threadIdx.x; j <= i; j += THREADS) {
                gram[i * n + j] = fmaf(own, values[j], gram[i * n + j]);
            }
        }
    }
}

/* ---- magnitudes -------------------------------------------------------------------------------
 */

#define CHUNK_ROWS    256u
#define CHUNK_COLUMNS 32u

/* partial[chunk][n] = sum of |x| over the rows of a chunk that are not dropped: 8 warps take every
 * 8th row each, a lane per column, and are added in order. */
__global__ __launch_bounds__(THREADS) static void gram_magnitude_kernel(
    double *__restrict__ partial, const row_kind *kinds, const float *__restrict__ x, uint64_t m,
    uint64_t n) {
    __shared__ double sums[THREADS / 32][CHUNK_COLUMNS];
    const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint64_t col = (uint64_t)blockIdx.x * CHUNK_COLUMNS + lane;
    const uint64_t chunks = (m + CHUNK_ROWS - 1) / CHUNK_ROWS;
    for (uint64_t chunk = blockIdx.y; chunk < chunks; chunk += gridDim.y) {
        const uint64_t end = min((chunk + 1) * CHUNK_ROWS, m);
        double sum = 0.0;
        if (col < n) {
#pragma unroll 8
            for (uint64_t row = chunk * CHUNK_ROWS + warp; row < end; row += THREADS / 32) {
                const float value = x[row * n + col];
                sum += kinds[row] != ROW_DROPPED ? (double)fabsf(value) : 0.0;
            }
        }
        sums[warp][lane] = sum;
        __syncthreads();
        if (warp == 0 && col < n) {
            double total = 0.0;
#pragma unroll
            for (unsigned i = 0; i < THREADS / 32; i++) {
                total += sums[i][lane];
            }
            partial[chunk * n + col] = total;
        }
        __syncthreads();
    }
}

__global__ __launch_bounds__(THREADS) static void gram_magnitude_sum_kernel(
    double *magnitude, const double *__restrict__ partial, uint64_t chunks, uint64_t n) {
    const uint64_t col = (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    if (col >= n) {
        return;
    }
    double total = 0.0;
    for (uint64_t chunk = 0; chunk < chunks; chunk++) {
        total += partial[chunk * n + col];
    }
    magnitude[col] += total;
}

static ingot_status add_magnitude(const ingot_cuda *cuda, double *magnitude, const row_kind *kinds,
                                  const float *x, uint64_t m, uint64_t n) {
    const uint64_t chunks = ingot_ceil_div(m, CHUNK_ROWS);
    const dim3 grid((unsigned)ingot_ceil_div(n, CHUNK_COLUMNS),
                    (unsigned)ingot_min_u64(chunks, 65535));
    ingot_cuda_buffer partial(cuda);
    INGOT_TRY(partial.alloc(chunks * n, sizeof *magnitude));
    gram_magnitude_kernel<<<grid, THREADS, 0, cuda->stream>>>(partial.as<double>(), kinds, x, m, n);
    INGOT_TRY(ingot_cuda_launched());
    gram_magnitude_sum_kernel<<<(unsigned)ingot_ceil_div(n, THREADS), THREADS, 0, cuda->stream>>>(
        magnitude, partial.as<double>(), chunks, n);
    return ingot_cuda_launched();
}

/* ---- the triangle -----------------------------------------------------------------------------
 */

#define TILE_ROWS    128u /* of what cuBLAS gives to one multiprocessor at a time, about */
#define TILE_COLUMNS 256u
#define MOST_PANELS  16u

/* Width of the panels of a triangle of n: few panels compute much above the diagonal, many leave
 * the device half empty at the end of each.  The time is about that of the rounds in which all
 * multiprocessors take a tile, plus a start for each panel. */
static uint64_t panel_width(const ingot_cuda *cuda, uint64_t n) {
    uint64_t best = n, best_cost = UINT64_MAX;
    for (uint64_t panels = 1; panels <= MOST_PANELS; panels++) {
        const uint64_t width =
            ingot_ceil_div(ingot_ceil_div(n, panels), TILE_COLUMNS) * TILE_COLUMNS;
        uint64_t cost = 0;
        for (uint64_t first = 0; first < n; first += width) {
            const uint64_t columns = ingot_min_u64(width, n - first);
            const uint64_t tiles =
                ingot_ceil_div(columns, TILE_ROWS) * ingot_ceil_div(n - first, TILE_COLUMNS);
            cost += 16 * ingot_ceil_div(tiles, (uint64_t)cuda->multiprocessors) + 1;
        }
        if (cost < best_cost) {
            best = width;
            best_cost = cost;
        }
    }
    return best;
}

/* Columns first .. first + width - 1 of gram from row `first` down; cuBLAS, which counts the other
 * way round, sees gram's columns as its rows. */
static ingot_status add_triangle(const ingot_cuda *cuda, float *gram, const cuda_half_copy *copy,
                                 uint64_t m, uint64_t n) {
    const uint64_t width = panel_width(cuda, n);
    for (uint64_t first = 0; first < n; first += width) {
        const cuda_half_gemm panel = {
            .is_a_transposed = false,
            .is_b_transposed = true,
            .rows = ingot_min_u64(width, n - first),
            .columns = n - first,
            .depth = m,
            .a = copy->values + first,
            .a_stride = copy->stride,
            .b = copy->values + first,
            .b_stride = copy->stride,
            .alpha = &cuda->scalars->alpha,
            .adds = true,
            .c = gram + first * n + first,
            .c_stride = n,
        };
        INGOT_TRY(cuda_half_multiply(cuda, &panel));
    }
    return INGOT_OK;
}

/* ---- the operations ---------------------------------------------------------------------------
 */

static ingot_status zeroed(const ingot_cuda *cuda, ingot_cuda_buffer *out, uint64_t count,
                           uint64_t size) {
    INGOT_TRY(out->alloc(count, size));
    return ingot_cuda_status(cudaMemsetAsync(out->as<void>(), 0, count * size, cuda->stream));
}

ingot_status cuda_gram(void *context, float *gram, double *magnitude, uint64_t *dropped,
                       const float *x, uint64_t m, uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (m == 0 || n == 0) {
        return INGOT_OK;
    }
    if (n > UINT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    const unsigned grid = 8u * (unsigned)cuda->multiprocessors;
    cuda_half_copy copy = {};
    ingot_cuda_buffer kinds_memory(cuda), state_memory(cuda);
    INGOT_TRY(zeroed(cuda, &kinds_memory, m, sizeof(row_kind)));
    INGOT_TRY(zeroed(cuda, &state_memory, 1, sizeof(gram_state)));
    row_kind *kinds = kinds_memory.as<row_kind>();
    gram_state *state = state_memory.as<gram_state>();
    if (gram != nullptr) {
        INGOT_TRY(cuda_half_of(cuda, &copy, x, m, n));
    }
    gram_rows_kernel<<<grid, THREADS, 0, cuda->stream>>>(
        kinds, state, dropped, gram != nullptr ? &cuda->scalars->half : nullptr, x, nullptr, m, n);
    INGOT_TRY(ingot_cuda_launched());
    if (magnitude != nullptr) {
        cuda_written(cuda, magnitude, n * sizeof *magnitude);
        INGOT_TRY(add_magnitude(cuda, magnitude, kinds, x, m, n));
    }
    if (gram == nullptr) {
        return INGOT_OK;
    }
    cuda_written(cuda, gram, n * n * sizeof *gram);
    gram_set_apart_kernel<<<grid, THREADS, 0, cuda->stream>>>(
        copy.values, &cuda->scalars->half, kinds, state, x, nullptr, m, n, copy.stride);
    INGOT_TRY(ingot_cuda_launched());
    gram_alpha_kernel<<<1, 1, 0, cuda->stream>>>(cuda->scalars, state, state);
    INGOT_TRY(ingot_cuda_launched());
    INGOT_TRY(add_triangle(cuda, gram, &copy, m, n));
    gram_wide_kernel<<<grid, THREADS, 0, cuda->stream>>>(gram, kinds, state, x, m, n);
    INGOT_TRY(ingot_cuda_launched());
    gram_put_back_kernel<<<grid, THREADS, 0, cuda->stream>>>(copy.values, cuda->scalars, state, x,
                                                             m, n, copy.stride);
    return ingot_cuda_launched();
}

/* One side of a product for drift: its copy without the rows set apart. */
typedef struct drift_side {
    __half *values;
    const ingot_cuda_range *copied;
    const float *x, *minus;
    uint64_t n, stride;
    row_kind *kinds;
    gram_state *state;
} drift_side;

static ingot_status set_apart(const ingot_cuda *cuda, const drift_side *side, uint64_t m) {
    const unsigned grid = 8u * (unsigned)cuda->multiprocessors;
    gram_rows_kernel<<<grid, THREADS, 0, cuda->stream>>>(
        side->kinds, side->state, nullptr, side->copied, side->x, side->minus, m, side->n);
    INGOT_TRY(ingot_cuda_launched());
    gram_set_apart_kernel<<<grid, THREADS, 0, cuda->stream>>>(
        side->values, side->copied, side->kinds, side->state, side->x, side->minus, m, side->n,
        side->stride);
    return ingot_cuda_launched();
}

ingot_status cuda_drift(void *context, float *out, const float *a, const float *b, const float *x,
                        uint64_t m, uint64_t p, uint64_t n) {
    ingot_cuda *cuda = ingot_cuda_of(context);
    if (m == 0 || p == 0 || n == 0) {
        return INGOT_OK;
    }
    cuda_half_copy copy;
    const uint64_t stride = (p + 7) / 8 * 8;
    ingot_cuda_buffer difference(cuda), kinds(cuda), states(cuda);
    INGOT_TRY(difference.alloc(m, stride * sizeof(__half)));
    INGOT_TRY(zeroed(cuda, &kinds, 2 * m, sizeof(row_kind)));
    INGOT_TRY(zeroed(cuda, &states, 2, sizeof(gram_state)));
    row_kind *kind = kinds.as<row_kind>();
    gram_state *state = states.as<gram_state>();
    INGOT_TRY(cuda_half_aside(cuda, difference.as<__half>(), a, b, m, p));
    INGOT_TRY(cuda_half_of(cuda, &copy, x, m, n));
    cuda_written(cuda, out, p * n * sizeof *out);
    const drift_side drift = {
        difference.as<__half>(), &cuda->scalars->aside, a, b, p, stride, kind, state};
    const drift_side inputs = {copy.values, &cuda->scalars->half, x,        nullptr,
                               n,           copy.stride,          kind + m, state + 1};
    INGOT_TRY(set_apart(cuda, &drift, m));
    INGOT_TRY(set_apart(cuda, &inputs, m));
    gram_alpha_kernel<<<1, 1, 0, cuda->stream>>>(cuda->scalars, state, state + 1);
    INGOT_TRY(ingot_cuda_launched());
    /* row-major D^T X is column-major X^T D */
    const cuda_half_gemm product = {
        .is_a_transposed = false,
        .is_b_transposed = true,
        .rows = n,
        .columns = p,
        .depth = m,
        .a = copy.values,
        .a_stride = copy.stride,
        .b = difference.as<__half>(),
        .b_stride = stride,
        .alpha = &cuda->scalars->alpha,
        .adds = true,
        .c = out,
        .c_stride = n,
    };
    INGOT_TRY(cuda_half_multiply(cuda, &product));
    gram_put_back_kernel<<<8u * (unsigned)cuda->multiprocessors, THREADS, 0, cuda->stream>>>(
        copy.values, cuda->scalars, state + 1, x, m, n, copy.stride);
    return ingot_cuda_launched();
}
