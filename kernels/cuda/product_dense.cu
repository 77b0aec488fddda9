/* cuda_product for up to eight rows of x and dense weights: as fast as the memory delivers them.
 *
 * A tile is 16 rows of W, or of both W and U by half of the warps each.  The warps of a block take
 * its units of 128 bytes a row in turn; each copies its own, some units ahead and on into the next
 * tile, to slots of its own, the first of them before the kernel waits for its predecessor.  A lane
 * multiplies what it has copied itself: 16 bytes of two rows, twice.  Which columns a product of
 * the tensor core adds up does not matter, so x lies in shared memory as those bytes meet it.
 *
 * Nothing of W is rounded: with x in binary16, weights in BF16 meet the two numbers in BF16 whose
 * sum x is, and those in FP32 are the sum of two in TF32, to 2^-22 of each. */
#include "kernels/cuda/product_load.h"
#include "kernels/cuda/weights.h"

#include <type_traits>

#define DENSE_ROWS    8 /* of x */
#define DENSE_WARPS   8
#define DENSE_THREADS (DENSE_WARPS * 32)
#define DENSE_PIECE   64                /* bytes of a row, 16 of each of its lanes */
#define DENSE_UNIT    (2 * DENSE_PIECE) /* the same of a warp at once */
#define DENSE_SLOT    (16 * DENSE_UNIT)

typedef struct dense_job {
    product_task task;
    unsigned row_bytes; /* of W */
    unsigned units;     /* of a row */
    unsigned tiles;     /* of 16 rows */
    unsigned parts;     /* warps that share the columns: all, or half of them with U */
    unsigned slots;     /* of a warp, 2 to ASYNC_MOST */
} dense_job;

/* Pieces of x for one of W. */
template <int KIND, typename T>
constexpr unsigned dense_parts = KIND == INGOT_BF16 &&std::is_same_v<T, __half> ? 2 : 1;

/* ---- x to shared memory ------------------------------------------------------------------------
 */

/* Puts eight columns of x at place(part, 0), and at place(0, 1) what is left with FP32. */
template <int KIND, typename T, typename Place>
__device__ static inline void dense_put(const uint4 &raw, const Place &place) {
    alignas(16) T x[8];
    *reinterpret_cast<uint4 *>(x) = raw;
    if constexpr (KIND == INGOT_F32) {
        *place(0, 0) = make_uint4(__float_as_uint(to_float(x[0])), __float_as_uint(to_float(x[1])),
                                  __float_as_uint(to_float(x[2])), __float_as_uint(to_float(x[3])));
        *place(0, 1) = make_uint4(__float_as_uint(to_float(x[4])), __float_as_uint(to_float(x[5])),
                                  __float_as_uint(to_float(x[6])), __float_as_uint(to_float(x[7])));
    } else if constexpr (dense_parts<KIND, T> == 2) {
        alignas(16) __nv_bfloat16 part[2][8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            product_split(part[0][i], part[1][i], x[i]);
        }
        *place(0, 0) = *reinterpret_cast<const uint4 *>(part[0]);
        *place(1, 0) = *reinterpret_cast<const uint4 *>(part[1]);
    } else {
        *place(0, 0) = raw;
    }
}

/* All of x; zeros behind its columns. */
template <int KIND, typename T>
__device__ static inline void dense_take_x(uint8_t *to, const dense_job &job) {
    constexpr unsigned PARTS = dense_parts<KIND, T>;
    constexpr unsigned PLACES = KIND == INGOT_F32 ? 2 : 1; /* of 16 bytes, for eight columns */
    constexpr unsigned AT_ONCE = 4;
    const T *x = static_cast<const T *>(job.task.x);
    const unsigned m = (unsigned)job.task.m, filled = (unsigned)(job.task.w[0].cols + 7) / 8;
    const unsigned eights = job.units * (DENSE_UNIT / 16 / PLACES), count = m * eights;
    for (unsigned first = threadIdx.x; first < count; first += AT_ONCE * DENSE_THREADS) {
        uint4 raw[AT_ONCE];
#pragma unroll
        for (unsigned j = 0; j < AT_ONCE; j++) {
            const unsigned at = first + j * DENSE_THREADS, row = at / eights, eight = at % eights;
            raw[j] = make_uint4(0, 0, 0, 0);
            if (at < count && eight < filled) {
                raw[j] = *reinterpret_cast<const uint4 *>(x + row * job.task.x_stride + eight * 8);
            }
        }
#pragma unroll
        for (unsigned j = 0; j < AT_ONCE; j++) {
            const unsigned at = first + j * DENSE_THREADS, row = at / eights, eight = at % eights;
            if (at < count) {
                dense_put<KIND, T>(raw[j], [&](unsigned part, unsigned i) {
                    const unsigned place = eight * PLACES + i, piece = place / 4 * PARTS + part;
                    return reinterpret_cast<uint4 *>(to + (piece * m + row) * DENSE_PIECE +
                                                     place % 4 * 16);
                });
            }
        }
    }
}

/* ---- products ----------------------------------------------------------------------------------
 */

__device__ static inline void dense_mma_tf32(float (&sums)[4], const unsigned (&a)[4], unsigned b0,
                                             unsigned b1) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, "
        "{%8,%9}, {%0,%1,%2,%3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* sums += two columns of each lane's two rows in FP32, the upper 11 bits of them and the rest. */
__device__ static inline void dense_add_wide(float (&sums)[4], unsigned a0, unsigned a1,
                                             unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
    const unsigned a[4] = {a0, a1, a2, a3};
    unsigned high[4], rest[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        high[i] = a[i] + 0x1000u & 0xffffe000u;
        rest[i] = __float_as_uint(__uint_as_float(a[i]) - __uint_as_float(high[i]));
    }
    dense_mma_tf32(sums, high, b0, b1);
    dense_mma_tf32(sums, rest, b0, b1);
}

/* sums += a piece of two rows of W times x. */
template <int KIND>
__device__ static inline void dense_add(float (&sums)[2][4], const uint4 &low, const uint4 &high,
                                        const uint4 &x) {
    if constexpr (KIND == INGOT_F32) {
        dense_add_wide(sums[0], low.x, high.x, low.y, high.y, x.x, x.y);
        dense_add_wide(sums[1], low.z, high.z, low.w, high.w, x.z, x.w);
    } else {
        typedef std::conditional_t<KIND == INGOT_F16, __half, __nv_bfloat16> W;
        product_mma<W>(sums[0], low.x, high.x, low.y, high.y, x.x, x.y);
        product_mma<W>(sums[1], low.z, high.z, low.w, high.w, x.z, x.w);
    }
}

/* The sums of all warps over a tile meet; some of the warps, others each time, store. */
__device__ static inline void dense_finish(float *shared, const float (&totals)[4],
                                           const dense_job &job, unsigned tile, unsigned turn) {
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const unsigned m = (unsigned)job.task.m;
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const unsigned column = lane % 4 * 2 + i % 2;
        if (column < m) {
            shared[(warp * m + column) * 16 + lane / 4 + i / 2 * 8] = totals[i];
        }
    }
    const unsigned column = (warp - turn) % DENSE_WARPS * 2 + lane / 16;
    const unsigned row = tile * 16 + lane % 16;
    const bool is_stored = column < m && row < job.task.w[0].rows;
    const float residual = is_stored ? product_residual(job.task, column, row) : 0.0f;
    __syncthreads();
    if (!is_stored) {
        return;
    }
    float sum = 0.0f, up = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < DENSE_WARPS; i++) {
        const float part = shared[(i * m + column) * 16 + lane % 16];
        if (i < job.parts) {
            sum += part;
        } else {
            up += part;
        }
    }
    product_store(job.task, column, row, sum, up, residual);
}

/* KIND is that of W and of U, T that of x. */
template <int KIND, typename T>
__global__
__launch_bounds__(DENSE_THREADS,
                  2) static void product_dense_kernel(const __grid_constant__ dense_job job) {
    constexpr unsigned PARTS = dense_parts<KIND, T>;
    extern __shared__ __align__(256) uint8_t dense_shared[];
    const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, quarter = lane % 4;
    const unsigned units = job.units, parts = job.parts, m = (unsigned)job.task.m;
    const unsigned part = warp % parts;
    const uint8_t *data = static_cast<const uint8_t *>(job.task.w[warp / parts].data);
    const unsigned last_row = (unsigned)job.task.w[0].rows - 1;
    uint8_t *x = dense_shared + DENSE_WARPS * job.slots * DENSE_SLOT;
    float *sums = reinterpret_cast<float *>(x + units * 2 * PARTS * m * DENSE_PIECE);
    const unsigned slots = async_address(dense_shared) + warp * job.slots * DENSE_SLOT + lane * 16;

    product_let_next_start();
    /* what is copied next: a unit of two rows; those behind the last are the last, their sums are
     * dropped */
    unsigned next_unit = part, next_tile = part < units ? blockIdx.x : job.tiles;
    const uint8_t *from[2];
    const auto find_rows = [&] {
#pragma unroll
        for (unsigned h = 0; h < 2; h++) {
            const unsigned row = min(next_tile * 16 + lane / 4 + 8 * h, last_row);
            from[h] = data + (uint64_t)row * job.row_bytes;
        }
    };
    const auto fetch = [&](unsigned slot) {
        if (next_tile < job.tiles) {
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                const unsigned at = next_unit * DENSE_UNIT + i / 2 * DENSE_PIECE + quarter * 16;
                const bool is_there = at < job.row_bytes;
                async_copy<16>(slot + i * 512, from[i % 2] + (is_there ? at : 0),
                               is_there ? 16 : 0);
            }
            next_unit += parts;
            if (next_unit >= units) {
                next_unit = part;
                next_tile += gridDim.x;
                find_rows();
            }
        }
        async_commit();
    };
    find_rows();
#pragma unroll 1
    for (unsigned i = 0; i < job.slots; i++) {
        fetch(slots + i * DENSE_SLOT);
    }
    product_wait();
    dense_take_x<KIND, T>(x, job);
    __syncthreads();

    const bool has_x = lane / 4 < m;
    const unsigned x_at = async_address(x) + lane / 4 * DENSE_PIECE + quarter * 16;
    const unsigned own_tiles = (job.tiles - blockIdx.x - 1) / gridDim.x + 1;
    unsigned slot = 0;
#pragma unroll 1
    for (unsigned turn = 0; turn < own_tiles; turn++) {
        float totals[4] = {};
#pragma unroll 1
        for (unsigned unit = part; unit < units; unit += parts) {
            async_arrived_first(job.slots);
            uint4 w[4], b[2 * PARTS] = {};
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                w[i] = shared_read16(slots + slot * DENSE_SLOT + i * 512);
            }
            __syncwarp();
            fetch(slots + slot * DENSE_SLOT);
            slot = slot + 1 < job.slots ? slot + 1 : 0;
            if (has_x) {
#pragma unroll
                for (unsigned i = 0; i < 2 * PARTS; i++) {
                    b[i] = shared_read16(x_at + (unit * 2 * PARTS + i) * m * DENSE_PIECE);
                }
            }
            float own[2][4] = {}; /* two short chains: tensor cores cut what they add */
#pragma unroll
            for (unsigned i = 0; i < 2 * PARTS; i++) {
                dense_add<KIND>(own, w[i / PARTS * 2], w[i / PARTS * 2 + 1], b[i]);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                totals[i] += own[0][i] + own[1][i];
            }
        }
        dense_finish(sums + turn % 2 * (DENSE_WARPS * m * 16), totals, job,
                     blockIdx.x + turn * gridDim.x, turn);
    }
    async_arrived<0>();
}

/* ---- the launch --------------------------------------------------------------------------------
 */

static uint64_t row_bytes_of(const ingot_weight_view *w) {
    return w->cols * ingot_dtype_bytes(w->dtype);
}

/* Shared memory of a block beside its slots: x, and sums of two tiles in turn. */
static uint64_t fixed_bytes(const ingot_weight_view *w, uint64_t m, ingot_dtype dtype) {
    const uint64_t units = ingot_ceil_div(row_bytes_of(w), DENSE_UNIT);
    const unsigned parts =
        w->dtype == INGOT_BF16 && dtype == INGOT_F16 ? dense_parts<INGOT_BF16, __half> : 1;
    return units * m * DENSE_UNIT * parts + 2 * DENSE_WARPS * m * 16 * sizeof(float);
}

static unsigned slots_in(uint64_t room, uint64_t fixed) {
    const uint64_t slots = fixed < room ? (room - fixed) / (DENSE_WARPS * DENSE_SLOT) : 0;
    return (unsigned)ingot_min_u64(slots, ASYNC_MOST);
}

bool product_dense_can(const ingot_cuda *cuda, const ingot_weight_view *w, uint64_t m,
                       ingot_dtype dtype) {
    return w->kind == INGOT_DENSE && m <= DENSE_ROWS && row_bytes_of(w) % 16 == 0 &&
           (w->dtype != INGOT_F16 || dtype == INGOT_F16) &&
           slots_in((uint64_t)cuda->shared_bytes, fixed_bytes(w, m, dtype)) >= 2;
}

template <int KIND, typename T>
static ingot_status launch(const product_context *context, const dense_job &job, unsigned grid,
                           unsigned bytes) {
    return product_launch(context, product_dense_kernel<KIND, T>, dim3(grid), DENSE_THREADS, bytes,
                          1, job);
}

ingot_status product_dense(const product_context *context, const product_task &task) {
    const ingot_weight_view *w = &task.w[0];
    if (!product_is_aligned(w->data, 16) || !product_is_aligned(task.w[1].data, 16)) {
        return product_plain(context, task);
    }
    const uint64_t fixed = fixed_bytes(w, task.m, context->dtype);
    const unsigned half_slots = slots_in(product_half_bytes(context->cuda), fixed);
    const unsigned blocks = half_slots >= 3 ? 2 : 1; /* of a multiprocessor */
    dense_job job = {};
    job.task = task;
    job.row_bytes = (unsigned)row_bytes_of(w);
    job.units = (unsigned)ingot_ceil_div(job.row_bytes, DENSE_UNIT);
    job.tiles = (unsigned)ingot_ceil_div(w->rows, 16);
    job.parts = task.has_up ? DENSE_WARPS / 2 : DENSE_WARPS;
    job.slots = blocks == 2 ? half_slots : slots_in((uint64_t)context->cuda->shared_bytes, fixed);
    const unsigned grid = (unsigned)ingot_min_u64(
        job.tiles, (uint64_t)blocks * (unsigned)context->cuda->multiprocessors);
    const unsigned bytes = (unsigned)fixed + job.slots * DENSE_WARPS * DENSE_SLOT;
    const bool is_half = context->dtype == INGOT_F16;
    switch (w->dtype) {
    case INGOT_F16:
        return launch<INGOT_F16, __half>(context, job, grid, bytes);
    case INGOT_BF16:
        return is_half ? launch<INGOT_BF16, __half>(context, job, grid, bytes)
                       : launch<INGOT_BF16, __nv_bfloat16>(context, job, grid, bytes);
    default:
        return is_half ? launch<INGOT_F32, __half>(context, job, grid, bytes)
                       : launch<INGOT_F32, __nv_bfloat16>(context, job, grid, bytes);
    }
}
