/* Internal to kernels/cuda: norm(x) for the kernels that multiply, a row at a time by a whole
 * block, in units of eight columns. */
#ifndef INGOT_CUDA_PRODUCT_INPUT_H
#define INGOT_CUDA_PRODUCT_INPUT_H

#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/product_unpack.h"
#include "kernels/cuda/weights.h"

/* Eight columns of x as they lie in memory, so that loads of several need not wait for each other's
 * conversion; of 16 bits `low` alone. */
typedef struct product_raw {
    uint4 low, high;
} product_raw;

/* Unit `unit` of a row of x that is even. */
__device__ static inline product_raw product_load_raw(const product_source &source, uint64_t row,
                                                      unsigned unit) {
    const uint64_t at = row * source.stride + unit * 8;
    const bool is_wide = source.dtype == INGOT_F32;
    const uint8_t *from = static_cast<const uint8_t *>(source.x) + (at << (is_wide ? 2 : 1));
    product_raw out;
    out.low = *reinterpret_cast<const uint4 *>(from);
    out.high = make_uint4(0, 0, 0, 0);
    if (is_wide) {
        out.high = *reinterpret_cast<const uint4 *>(from + 16);
    }
    return out;
}

__device__ static inline void product_raw_floats(float (&v)[8], const product_raw &raw,
                                                 ingot_dtype dtype) {
    const unsigned word[8] = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                              raw.high.x, raw.high.y, raw.high.z, raw.high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const unsigned pair = word[i / 2], half = i % 2 != 0 ? pair >> 16 : pair & 0xffffu;
        v[i] = __uint_as_float(dtype == INGOT_F32 ? word[i] : half << 16);
        if (dtype == INGOT_F16) {
            v[i] = __half2float(__ushort_as_half((unsigned short)half));
        }
    }
}

/* Unit `unit` of a row of x in any place, zero behind its columns. */
__device__ static inline void product_read_unit(float (&v)[8], const product_source &source,
                                                uint64_t row, unsigned unit) {
    const uint64_t at = row * source.stride + unit * 8;
#pragma unroll
    for (unsigned i = 0; i < 8; i++) {
        v[i] = unit * 8 + i < source.cols ? cuda_float_at(source.x, source.dtype, at + i) : 0;
    }
}

/* The weights of the norm for unit `unit`, without what every weight has more: nothing waits for
 * them here. */
template <bool ANY>
__device__ static inline void product_read_norm(float (&w)[8], const product_source &source,
                                                unsigned unit) {
    if (!ANY || source.is_even) {
        const float4 *from = reinterpret_cast<const float4 *>(source.norm_weight) + 2 * unit;
        const float4 low = __ldg(from), high = __ldg(from + 1);
        w[0] = low.x, w[1] = low.y, w[2] = low.z, w[3] = low.w;
        w[4] = high.x, w[5] = high.y, w[6] = high.z, w[7] = high.w;
    } else {
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            w[i] = unit * 8 + i < source.cols ? __ldg(source.norm_weight + unit * 8 + i) : 0.0f;
        }
    }
}

/* The sum over a block, in every thread, in the same order for all; parts[THREADS / 32] is shared
 * memory.  IS_FIRST: nobody reads it any more from before. */
template <int THREADS, bool IS_FIRST = false>
__device__ static inline float product_block_sum(float *parts, float value) {
    for (int lane = 16; lane > 0; lane /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, lane);
    }
    if (!IS_FIRST) {
        __syncthreads();
    }
    if (threadIdx.x % 32 == 0) {
        parts[threadIdx.x / 32] = value;
    }
    __syncthreads();
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++) {
        sum += parts[i];
    }
    return sum;
}

/* A unit of x on its way; ANY: of rows that are not even, too. */
template <bool ANY> struct product_unit {
    product_raw raw;
    __device__ void load(const product_source &source, uint64_t row, unsigned unit) {
        raw = product_load_raw(source, row, unit);
    }
    __device__ void floats(float (&out)[8], ingot_dtype dtype) const {
        product_raw_floats(out, raw, dtype);
    }
};
template <> struct product_unit<true> {
    float v[8];
    __device__ void load(const product_source &source, uint64_t row, unsigned unit) {
        if (source.is_even) {
            product_raw_floats(v, product_load_raw(source, row, unit), source.dtype);
        } else {
            product_read_unit(v, source, row, unit);
        }
    }
    __device__ void floats(float (&out)[8], ingot_dtype) const {
        memcpy(out, v, sizeof v);
    }
};

/* A thread holds KEPT units in registers, and reads those behind them again, as many at once.
 * ANY: rows that are not even and INGOT_NORM_LAYER, too. */
template <int THREADS, int KEPT, bool ANY> struct product_norm {
    float weight[KEPT][8];

    /* Before product_wait: the weights of the norm do not depend on the kernel before. */
    __device__ void fetch(const product_source &source) {
#pragma unroll
        for (unsigned j = 0; j < KEPT; j++) {
            const unsigned unit = threadIdx.x + j * THREADS;
            if (source.norm_weight != nullptr && unit * 8 < source.cols) {
                product_read_norm<ANY>(weight[j], source, unit);
            }
        }
    }

    /* put(unit, norm(x) of eight columns) for units units of a row, zeros behind the columns.
     * parts[THREADS / 32] is shared memory.  Returns the sum of squares, of what a norm leaves of
     * the row without its mean, in every thread; 0 without a norm. */
    template <typename Put>
    __device__ float row(float *parts, const product_source &source, uint64_t at, unsigned units,
                         const Put &put) const {
        const float more = source.norm_kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0f : 0.0f;
        const bool has_norm = source.norm_weight != nullptr;
        const bool is_layer = ANY && source.norm_kind == INGOT_NORM_LAYER;
        const unsigned cols = (unsigned)source.cols, filled = (cols + 7) / 8;
        product_unit<ANY> kept[KEPT];
        float mean = 0.0f, factor = 1.0f, square = 0.0f;
        const auto load = [&](product_unit<ANY>(&to)[KEPT], unsigned first) {
#pragma unroll
            for (unsigned j = 0; j < KEPT; j++) {
                if (first + j * THREADS < filled) {
                    to[j].load(source, at, first + j * THREADS);
                }
            }
        };
        load(kept, threadIdx.x);
        const auto each = [&](const auto &take) {
            float v[8];
#pragma unroll
            for (unsigned j = 0; j < KEPT; j++) {
                const unsigned unit = threadIdx.x + j * THREADS;
                if (unit < filled) {
                    kept[j].floats(v, source.dtype);
                    take(unit, v, weight[j]);
                }
            }
#pragma unroll 1
            for (unsigned first = threadIdx.x + KEPT * THREADS; first < filled;
                 first += KEPT * THREADS) {
                product_unit<ANY> more[KEPT];
                load(more, first);
#pragma unroll
                for (unsigned j = 0; j < KEPT; j++) {
                    const unsigned unit = first + j * THREADS;
                    float w[8] = {};
                    if (unit < filled) {
                        if (has_norm) {
                            product_read_norm<ANY>(w, source, unit);
                        }
                        more[j].floats(v, source.dtype);
                        take(unit, v, w);
                    }
                }
            }
        };
        if (has_norm && is_layer) {
            float sum = 0.0f;
            each([&](unsigned, const float(&v)[8], const float(&)[8]) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    sum += v[i];
                }
            });
            mean = product_block_sum<THREADS>(parts, sum) / (float)cols;
        }
        if (has_norm) {
            each([&](unsigned unit, const float(&v)[8], const float(&)[8]) {
#pragma unroll
                for (unsigned i = 0; i < 8; i++) {
                    const float off = !ANY || unit * 8 + i < cols ? v[i] - mean : 0.0f;
                    square = fmaf(off, off, square);
                }
            });
            square = product_block_sum<THREADS>(parts, square);
            factor = 1.0f / sqrtf(square / (float)cols + source.norm_eps);
        }
        each([&](unsigned unit, const float(&v)[8], const float(&w)[8]) {
            float out[8];
#pragma unroll
            for (unsigned i = 0; i < 8; i++) {
                out[i] = has_norm ? (v[i] - mean) * factor * (w[i] + more) : v[i];
                if (has_norm && is_layer && source.norm_bias != nullptr) {
                    out[i] += unit * 8 + i < cols ? source.norm_bias[unit * 8 + i] : 0.0f;
                }
            }
            put(unit, out);
        });
        const float zeros[8] = {};
        for (unsigned unit = threadIdx.x; unit < units; unit += THREADS) {
            if (unit >= filled) {
                put(unit, zeros);
            }
        }
        return square;
    }
};

/* Rounds a unit and stores it in the order of codes of BITS bits (0: its own); where(unit) is the
 * place of a unit. */
template <int BITS, typename T, typename Where>
__device__ static inline void product_put_unit(unsigned unit, const float (&v)[8],
                                               const Where &where) {
    if constexpr (BITS == 0 || BITS == 4 || BITS == 8) { /* they stay in the unit */
        alignas(16) T moved[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            moved[BITS == 0                   ? i
                  : product_order < BITS == 0 ? 4
                                              : BITS > ::position(i)] = from_float<T>(v[i]);
        }
        *reinterpret_cast<uint4 *>(where(unit)) = *reinterpret_cast<const uint4 *>(moved);
    } else {
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            const unsigned at = (unsigned)product_order<BITS>::position((int)(unit % 4 * 8 + i));
            reinterpret_cast<T *>(where(unit / 4 * 4 + at / 8))[at % 8] = from_float<T>(v[i]);
        }
    }
}

/* The same to tiles of `rows` rows of x (product_tile_at). */
template <int BITS, typename T>
__device__ static inline void product_put_tile(T *out, unsigned rows, unsigned row, unsigned unit,
                                               const float (&v)[8]) {
    static_assert(BITS != 0, "tiles are in the order of codes");
    if constexpr (BITS == 4 || BITS == 8) { /* whole pairs */
        alignas(16) T moved[8];
        product_put_unit<BITS, T>(0, v, [&](unsigned) { return moved; });
#pragma unroll
        for (unsigned i = 0; i < 8; i += 2) {
            *reinterpret_cast<unsigned *>(out + product_tile_at(rows, row, unit * 8 + i)) =
                *reinterpret_cast<const unsigned *>(moved + i);
        }
    } else {
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            const unsigned at = (unsigned)product_order<BITS>::position((int)(unit % 4 * 8 + i));
            out[product_tile_at(rows, row, unit / 4 * 32 + at)] = from_float<T>(v[i]);
        }
    }
}

#endif
