/* Internal to kernels/cuda: from packed rows in device memory to registers, and x to shared memory,
 * for the kernels that multiply on tensor cores. */
#ifndef INGOT_CUDA_PRODUCT_LOAD_H
#define INGOT_CUDA_PRODUCT_LOAD_H

#include "kernels/cuda/async_copy.h"
#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/product_unpack.h"

#define PRODUCT_STEP 128 /* columns that the four lanes of a row take at once */
/* Of x in shared memory: a step of one row, 16 units of eight columns. */
#define PRODUCT_STEP_BYTES 256

/* Where unit `unit` of a step lies, so that lanes which read the same unit of the four chunks of a
 * step, or the four units of one chunk, in two rows that follow each other meet different banks. */
__device__ static inline unsigned product_x_at(unsigned row, unsigned unit) {
    return (unit ^ unit >> 3 ^ (row % 2 != 0 ? 6u : 0u)) * 16;
}

/* What lanes need to find weights, in registers: a matrix of the task, no reference into it. */
typedef struct product_matrix {
    const uint8_t *codes, *scales, *zeros;
    unsigned last_row, stride, groups, last_chunk;
    unsigned group_shift;             /* log2 of the chunks in a group */
    unsigned scale_shift;             /* log2 of the bytes of a scale */
    unsigned scale_phase, zero_phase; /* low bits of the addresses of this lane's rows */
    bool is_bf16;                     /* scales of 16 bits; else F16 */
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
    const unsigned first = threadIdx.x % 32 / 4 * out.groups;
    out.scale_phase =
        (unsigned)reinterpret_cast<uintptr_t>(out.scales) + (first << out.scale_shift);
    out.zero_phase = (unsigned)reinterpret_cast<uintptr_t>(out.zeros) + first;
    return out;
}

/* How groups are stored.  PLAIN, symmetric with F16 scales, costs fewer instructions, and 128,
 * PLAIN groups of 128 columns, the fewest, in kernels that have it. */
typedef enum product_mode { PRODUCT_128, PRODUCT_PLAIN, PRODUCT_GENERAL } product_mode;

static inline bool product_is_plain(const ingot_weight_view *w) {
    return w->zeros == nullptr && w->scale_dtype == INGOT_F16;
}

static inline product_mode product_mode_of(const product_task *task) {
    return product_is_plain(&task->w[0]) && (!task->has_up || product_is_plain(&task->w[1]))
               ? PRODUCT_PLAIN
               : PRODUCT_GENERAL;
}

static inline bool product_is_aligned(const void *at, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(at) % bytes == 0;
}

/* Whether all that belongs to a row of y can be read and written `rows` elements at a time. */
static inline bool product_is_even(const product_task &task, unsigned rows) {
    const uintptr_t y = rows * (uintptr_t)ingot_dtype_bytes(task.y_dtype);
    const uintptr_t bias = rows * sizeof(float);
    return task.w[0].rows % rows == 0 && product_is_aligned(task.y, y) &&
           product_is_aligned(task.residual, y) && product_is_aligned(task.bias[0], bias) &&
           product_is_aligned(task.bias[1], bias);
}

/* Whether the kernels that read packed weights can: groups of 32, 64, 128, ... columns or whole
 * rows, rows of whole chunks, and numbers that fit 32 bits. */
static inline bool product_is_regular(const ingot_weight_view *w) {
    return w->kind == INGOT_GROUPED && w->cols % PRODUCT_CHUNK == 0 &&
           product_group_shift(w) >= 0 && w->cols < (UINT64_C(1) << 24) &&
           w->rows < (UINT64_C(1) << 28) && w->rows * w->groups_per_row < (UINT64_C(1) << 30);
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

/* ---- weights on their way ----------------------------------------------------------------------
 *
 * A warp takes 16 rows, a step at a time.  It copies the codes as the file has them, 16 adjacent
 * bytes at once, and for each lane the aligned words that hold its scales and zero points, to a
 * slot of its own in shared memory: what is on its way takes no registers. */

template <int BITS, product_mode MODE, int SUBS> struct product_slot {
    static constexpr unsigned ROW = 16 * BITS, CODES = 16 * ROW;
    static constexpr unsigned WORDS = 2 * 32 * 4; /* [row of the lane][lane] */
    static constexpr unsigned BYTES = CODES + WORDS * (MODE == PRODUCT_PLAIN ? 1 : 2);
};

/* Where a step has several groups: for each row the aligned words that hold its scales of the step,
 * then those with its zero points. */
template <int BITS, product_mode MODE> struct product_slot<BITS, MODE, 4> {
    static constexpr unsigned ROW = 16 * BITS, CODES = 16 * ROW;
    static constexpr unsigned SCALE_WORDS = 4, ZERO_WORDS = 2; /* wherever the first begins */
    static constexpr unsigned SCALES = 16 * SCALE_WORDS * 4, ZEROS = 16 * ZERO_WORDS * 4;
    static constexpr unsigned BYTES = CODES + SCALES + (MODE == PRODUCT_PLAIN ? 0 : ZEROS);
};

/* A chunk of both rows of a lane, with what its SUBS parts are multiplied by. */
template <int BITS, int SUBS> struct product_chunk {
    unsigned code[2][BITS];
    unsigned scale[2][SUBS]; /* bits of the scale dtype */
    unsigned zero[2][SUBS];
};

/* The 16-byte units of a row trade places, so that reads of lanes meet different banks. */
template <int BITS> __device__ static inline unsigned product_swap(unsigned row) {
    return BITS == 4 ? row / 2 % 4 : BITS == 8 ? row % 4 * 2 + row % 2 : 0;
}

/* The aligned word that holds what lies at base + offset. */
__device__ static inline uintptr_t product_word_at(const uint8_t *base, unsigned offset) {
    return (reinterpret_cast<uintptr_t>(base) + offset) & ~(uintptr_t)3;
}

/* Starts a copy of it. */
__device__ static inline void product_copy_word(unsigned to, const uint8_t *base, unsigned offset) {
    async_copy<4>(to, reinterpret_cast<const void *>(product_word_at(base, offset)), 4);
}

/* The same of word `word` from that on, but no word behind the one with what lies at base + last.
 */
__device__ static inline void product_copy_one(unsigned to, const uint8_t *base, unsigned offset,
                                               unsigned word, unsigned last) {
    const uintptr_t from = product_word_at(base, offset) + word * 4;
    const uintptr_t end = product_word_at(base, last);
    async_copy<4>(to, reinterpret_cast<const void *>(from < end ? from : end), 4);
}

/* Starts copies of step `step` of rows row .. row + 15 to a slot.  Rows behind the last are the
 * last, their sums are dropped; columns behind the last are zero, or x is. */
template <int BITS, product_mode MODE, int SUBS>
__device__ static inline void product_fetch(unsigned slot, const product_matrix &w, unsigned row,
                                            unsigned step) {
    typedef product_slot<BITS, MODE, SUBS> layout;
    const unsigned lane = threadIdx.x % 32;
#pragma unroll
    for (unsigned i = 0; i < 16 * BITS; i += 32) {
        const unsigned at = lane + i, own = at / BITS, unit = at % BITS;
        if (BITS % 2 == 0 || at < 16 * BITS) {
            const unsigned column = (step * BITS + unit) * 16;
            async_copy<16>(slot + own * layout::ROW + (unit ^ product_swap<BITS>(own)) * 16,
                           w.codes + (uint64_t)min(row + own, w.last_row) * w.stride + column,
                           column < w.stride ? 16 : 0);
        }
    }
    if constexpr (SUBS == 1) {
        const unsigned group = min(step * 4 + lane % 4, w.last_chunk) >> w.group_shift;
#pragma unroll
        for (unsigned h = 0; h < 2; h++) {
            const unsigned at = min(row + lane / 4 + 8 * h, w.last_row) * w.groups + group;
            const unsigned to = slot + layout::CODES + (h * 32 + lane) * 4;
            if (MODE == PRODUCT_PLAIN) {
                product_copy_word(to, w.scales, at * 2);
                continue;
            }
            product_copy_word(to, w.scales, at << w.scale_shift);
            if (w.zeros != nullptr) {
                product_copy_word(to + layout::WORDS, w.zeros, at);
            }
        }
    } else {
        const unsigned group = step * 4 >> w.group_shift;
        const unsigned last = (w.last_row + 1) * w.groups - 1;
        const unsigned shift = MODE == PRODUCT_PLAIN ? 1 : w.scale_shift;
#pragma unroll
        for (unsigned i = 0; i < 16 * layout::SCALE_WORDS; i += 32) {
            const unsigned at = lane + i, own = at / layout::SCALE_WORDS;
            const unsigned first = min(row + own, w.last_row) * w.groups + group;
            product_copy_one(slot + layout::CODES + at * 4, w.scales, first << shift,
                             at % layout::SCALE_WORDS, last << shift);
        }
        if (MODE == PRODUCT_GENERAL && w.zeros != nullptr) {
            const unsigned own = lane / layout::ZERO_WORDS;
            const unsigned first = min(row + own, w.last_row) * w.groups + group;
            product_copy_one(slot + layout::CODES + layout::SCALES + lane * 4, w.zeros, first,
                             lane % layout::ZERO_WORDS, last);
        }
    }
}

/* What product_fetch brought; all lanes have waited for their copies, and for each other. */
template <int BITS, product_mode MODE, int SUBS>
__device__ static inline void product_take(product_chunk<BITS, SUBS> *out, const uint8_t *slot,
                                           const product_matrix &w, unsigned step) {
    typedef product_slot<BITS, MODE, SUBS> layout;
    const unsigned lane = threadIdx.x % 32, quarter = lane % 4, swap = product_swap<BITS>(lane / 4);
#pragma unroll
    for (unsigned h = 0; h < 2; h++) {
        const uint8_t *row = slot + (lane / 4 + 8 * h) * layout::ROW;
        if constexpr (SUBS == 4) { /* 8 columns of each of four parts; 4 or 8 bits */
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                if constexpr (BITS == 4) {
                    out->code[h][i] =
                        *reinterpret_cast<const unsigned *>(row + (i ^ swap) * 16 + quarter * 4);
                } else {
                    const uint2 v = *reinterpret_cast<const uint2 *>(
                        row + ((2 * i + quarter / 2) ^ swap) * 16 + quarter % 2 * 8);
                    out->code[h][2 * i] = v.x, out->code[h][2 * i + 1] = v.y;
                }
            }
        } else if constexpr (BITS % 4 == 0) {
#pragma unroll
            for (unsigned i = 0; i < BITS / 4; i++) {
                const uint4 v = *reinterpret_cast<const uint4 *>(
                    row + ((quarter * (BITS / 4) + i) ^ swap) * 16);
                out->code[h][4 * i] = v.x, out->code[h][4 * i + 1] = v.y;
                out->code[h][4 * i + 2] = v.z, out->code[h][4 * i + 3] = v.w;
            }
        } else if constexpr (BITS % 2 == 0) {
#pragma unroll
            for (unsigned i = 0; i < BITS / 2; i++) {
                const uint2 v = reinterpret_cast<const uint2 *>(row + quarter * 4 * BITS)[i];
                out->code[h][2 * i] = v.x, out->code[h][2 * i + 1] = v.y;
            }
        } else {
#pragma unroll
            for (unsigned i = 0; i < BITS; i++) {
                out->code[h][i] = reinterpret_cast<const unsigned *>(row + quarter * 4 * BITS)[i];
            }
        }
    }
    const unsigned shift = MODE == PRODUCT_PLAIN ? 1 : w.scale_shift;
    const bool has_zeros = MODE == PRODUCT_GENERAL && w.zeros != nullptr;
    if constexpr (SUBS == 1) {
        const unsigned *words = reinterpret_cast<const unsigned *>(slot + layout::CODES) + lane;
        const unsigned group = min(step * 4 + quarter, w.last_chunk) >> w.group_shift;
        const unsigned scale_bits = (w.scale_phase + (group << shift)) % 4 * 8;
        const unsigned zero_bits = (w.zero_phase + group) % 4 * 8;
#pragma unroll
        for (unsigned h = 0; h < 2; h++) {
            out->scale[h][0] = words[h * 32] >> scale_bits;
            if (has_zeros) {
                out->zero[h][0] = words[layout::WORDS / 4 + h * 32] >> zero_bits & 0xffu;
            }
        }
    } else {
        const uint8_t *scales = slot + layout::CODES + lane / 4 * (layout::SCALE_WORDS * 4);
        const uint8_t *zeros =
            slot + layout::CODES + layout::SCALES + lane / 4 * (layout::ZERO_WORDS * 4);
        const unsigned first = step * 4 >> w.group_shift;
        scales += (w.scale_phase + (first << shift)) % 4;
        zeros += (w.zero_phase + first) % 4;
#pragma unroll
        for (unsigned s = 0; s < SUBS; s++) {
            const unsigned at = (min(step * 4 + s, w.last_chunk) >> w.group_shift) - first;
#pragma unroll
            for (unsigned h = 0; h < 2; h++) {
                const uint8_t *scale = scales + h * (8 * layout::SCALE_WORDS * 4) + (at << shift);
                out->scale[h][s] = shift == 2 ? *reinterpret_cast<const unsigned *>(scale)
                                              : *reinterpret_cast<const unsigned short *>(scale);
                if (has_zeros) {
                    out->zero[h][s] = zeros[h * (8 * layout::ZERO_WORDS * 4) + at];
                }
            }
        }
    }
}

template <product_mode MODE>
__device__ static inline float product_scale(unsigned bits, const product_matrix &w) {
    const float half = __half2float(__ushort_as_half((unsigned short)bits));
    if (MODE != PRODUCT_GENERAL) {
        return half;
    }
    const float other = __uint_as_float(bits << (w.is_bf16 ? 16 : 0));
    return w.is_bf16 || w.scale_shift == 2 ? other : half;
}

#endif
