/* Internal to kernels/cuda: from packed rows in device memory to registers, and x to shared memory,
 * for the kernels that multiply on tensor cores. */
#ifndef INGOT_CUDA_PRODUCT_LOAD_H
#define INGOT_CUDA_PRODUCT_LOAD_H

#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/product_unpack.h"

#define PRODUCT_STEP 128 /* columns that the four lanes of a row take at once */
/* Of x in shared memory: a step of one row is four chunks of 64 bytes, each with 16 bytes behind
 * it, so that lanes which read different chunks of up to two rows meet different banks. */
#define PRODUCT_CHUNK_BYTES 80
#define PRODUCT_STEP_BYTES  (4 * PRODUCT_CHUNK_BYTES)

/* What lanes need to find weights, in registers: a matrix of the task, no reference into it. */
typedef struct product_matrix {
    const uint8_t *codes, *scales, *zeros;
    unsigned last_row, stride, groups, last_chunk;
    unsigned group_shift; /* log2 of the chunks in a group */
    unsigned scale_shift; /* log2 of the bytes of a scale */
    bool is_bf16;         /* scales of 16 bits; else F16 */
} product_matrix;

__device__ static inline product_matrix product_matrix_of(const product_task &task, bool is_up,
                                                          unsigned group_shift) {
    const ingot_weight_view &w = task.w[0]; /* U is alike but for its pointers */
    product_matrix out;
    out.codes = is_up ? task.w[1].codes : w.codes;
    out.scales = static_cast<const uint8_t *>(is_up ? task.w[1].scales : w.scales);
    out.zeros = is_up ? task.w[1].zeros : w.zeros;
    out.last_row = (unsigned)w.rows - 1;
    out.stride = (unsigned)w.row_stride_bytes;
    out.groups = (unsigned)w.groups_per_row;
    out.last_chunk = (unsigned)(w.cols / PRODUCT_CHUNK) - 1;
    out.group_shift = group_shift;
    out.scale_shift = w.scale_dtype == INGOT_F32 ? 2 : 1;
    out.is_bf16 = w.scale_dtype == INGOT_BF16;
    return out;
}

/* How groups are stored.  PLAIN, symmetric with F16 scales, costs the fewest instructions. */
typedef enum product_mode { PRODUCT_PLAIN, PRODUCT_GENERAL } product_mode;

static inline bool product_is_plain(const ingot_weight_view *w) {
    return w->zeros == nullptr && w->scale_dtype == INGOT_F16;
}

static inline product_mode product_mode_of(const product_task *task) {
    return product_is_plain(&task->w[0]) && (!task->has_up || product_is_plain(&task->w[1]))
               ? PRODUCT_PLAIN
               : PRODUCT_GENERAL;
}

/* Whether the kernels that read packed weights can: groups of 32, 64, 128, ... columns or whole
 * rows, rows of whole chunks, and numbers that fit 32 bits. */
static inline bool product_is_regular(const ingot_weight_view *w) {
    return w->kind == INGOT_GROUPED && w->cols % PRODUCT_CHUNK == 0 &&
           product_group_shift(w) >= 0 && w->cols < (UINT64_C(1) << 24) &&
           w->rows < (UINT64_C(1) << 28);
}

/* Calls the template function `launch` for a width. */
#define PRODUCT_FOR_BITS(status, bits, launch, ...)                                                \
    do {                                                                                           \
        switch (bits) {                                                                            \
        case 2:                                                                                    \
            (status) = launch<2>(__VA_ARGS__);                                                     \
            break;                                                                                 \
        case 3:                                                                                    \
            (status) = launch<3>(__VA_ARGS__);                                                     \
            break;                                                                                 \
        case 4:                                                                                    \
            (status) = launch<4>(__VA_ARGS__);                                                     \
            break;                                                                                 \
        case 5:                                                                                    \
            (status) = launch<5>(__VA_ARGS__);                                                     \
            break;                                                                                 \
        case 6:                                                                                    \
            (status) = launch<6>(__VA_ARGS__);                                                     \
            break;                                                                                 \
        case 7:                                                                                    \
            (status) = launch<7>(__VA_ARGS__);                                                     \
            break;                                                                                 \
        default:                                                                                   \
            (status) = launch<8>(__VA_ARGS__);                                                     \
        }                                                                                          \
    } while (0)

/* Where a lane finds its two rows. */
template <product_mode MODE> struct product_rows {
    const uint8_t *code[2], *scale[2], *zero[2];

    /* Rows `row` and row + 8; those behind the last are the last, their sums are dropped. */
    __device__ void find(const product_matrix &w, unsigned row) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const unsigned at = min(row + 8 * h, w.last_row);
            code[h] = w.codes + (uint64_t)at * w.stride;
            if (MODE == PRODUCT_PLAIN) {
                scale[h] = w.scales + (uint64_t)at * (w.groups * 2);
            } else {
                scale[h] = w.scales + (uint64_t)at * (w.groups << w.scale_shift);
                zero[h] = w.zeros + (uint64_t)at * w.groups;
            }
        }
    }
};

/* A chunk of both rows as it comes from memory, with what its SUBS parts are multiplied by. */
template <int BITS, int SUBS> struct product_chunk {
    unsigned code[2][BITS];
    unsigned scale[2][SUBS]; /* bits of the scale dtype */
    unsigned zero[2][SUBS];
};

template <product_mode MODE>
__device__ static inline float product_scale(unsigned bits, const product_matrix &w) {
    const float half = __half2float(__ushort_as_half((unsigned short)bits));
    if (MODE == PRODUCT_PLAIN) {
        return half;
    }
    const float other = __uint_as_float(bits << (w.is_bf16 ? 16 : 0));
    return w.is_bf16 || w.scale_shift == 2 ? other : half;
}

/* Streamed once: not kept in L1. */
__device__ static inline uint4 product_read16(const uint8_t *at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

/* BITS words of a row. */
template <int BITS>
__device__ static inline void product_load_codes(unsigned (&out)[BITS], const uint8_t *at) {
    if constexpr (BITS % 4 == 0) {
#pragma unroll
        for (int i = 0; i < BITS / 4; i++) {
            const uint4 v = product_read16(at + 16 * i);
            out[4 * i] = v.x, out[4 * i + 1] = v.y, out[4 * i + 2] = v.z, out[4 * i + 3] = v.w;
        }
    } else if constexpr (BITS % 2 == 0) {
#pragma unroll
        for (int i = 0; i < BITS / 2; i++) {
            const uint2 v = __ldg(reinterpret_cast<const uint2 *>(at) + i);
            out[2 * i] = v.x, out[2 * i + 1] = v.y;
        }
    } else {
#pragma unroll
        for (int i = 0; i < BITS; i++) {
            out[i] = __ldg(reinterpret_cast<const unsigned *>(at) + i);
        }
    }
}

template <product_mode MODE>
__device__ static inline void product_load_group(unsigned *scale, unsigned *zero,
                                                 const product_matrix &w, const uint8_t *scales,
                                                 const uint8_t *zeros, unsigned group) {
    if (MODE == PRODUCT_PLAIN) {
        *scale = __ldg(reinterpret_cast<const unsigned short *>(scales) + group);
        return;
    }
    const uint8_t *at = scales + ((uint64_t)group << w.scale_shift);
    if (w.scale_shift == 2) {
        *scale = __ldg(reinterpret_cast<const unsigned *>(at));
    } else {
        *scale = __ldg(reinterpret_cast<const unsigned short *>(at));
    }
    if (w.zeros != nullptr) {
        *zero = __ldg(zeros + group);
    }
}

/* Chunk number `chunk` of both rows, its scale and zero point.  Behind the last chunk that one is
 * read again: x is zero there. */
template <int BITS, product_mode MODE>
__device__ static inline void product_load_chunk(product_chunk<BITS, 1> *out,
                                                 const product_matrix &w,
                                                 const product_rows<MODE> &rows, unsigned chunk) {
    chunk = min(chunk, w.last_chunk);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        product_load_codes<BITS>(out->code[h], rows.code[h] + (uint64_t)chunk * (4 * BITS));
        product_load_group<MODE>(&out->scale[h][0], &out->zero[h][0], w, rows.scale[h],
                                 rows.zero[h], chunk >> w.group_shift);
    }
}

/* Step number `step` of both rows in the other way: each of its four parts of 32 columns belongs to
 * all four lanes, 8 columns each, so that a group of 32 is summed up by itself.  4 and 8 bits. */
template <int BITS, product_mode MODE>
__device__ static inline void
product_load_parts(product_chunk<BITS, 4> *out, const product_matrix &w,
                   const product_rows<MODE> &rows, unsigned step, unsigned lane) {
    static_assert(BITS == 4 || BITS == 8, "eight codes are words");
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const unsigned chunk = min(step * 4 + i, w.last_chunk);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint8_t *at = rows.code[h] + (uint64_t)chunk * (4 * BITS) + lane * BITS;
            if (BITS == 4) {
                out->code[h][i] = __ldg(reinterpret_cast<const unsigned *>(at));
            } else {
                const uint2 v = __ldg(reinterpret_cast<const uint2 *>(at));
                out->code[h][(2 * i) % BITS] = v.x;
                out->code[h][(2 * i + 1) % BITS] = v.y;
            }
            product_load_group<MODE>(&out->scale[h][i], &out->zero[h][i], w, rows.scale[h],
                                     rows.zero[h], chunk >> w.group_shift);
        }
    }
}

/* A chunk of x to shared memory in the order of product_order. */
template <int BITS, typename T>
__device__ static inline void product_put_chunk(uint8_t *out, const T (&v)[PRODUCT_CHUNK]) {
    alignas(16) T moved[PRODUCT_CHUNK];
#pragma unroll
    for (int i = 0; i < PRODUCT_CHUNK; i++) {
        moved[product_order<BITS>::position(i)] = v[i];
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        reinterpret_cast<uint4 *>(out)[i] = reinterpret_cast<const uint4 *>(moved)[i];
    }
}

#endif
