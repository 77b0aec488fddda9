/* Internal to kernels/cuda: norm(x) for the kernels that multiply, a row at a time by a whole
 * block, in units of eight columns. */
#ifndef INGOT_CUDA_PRODUCT_INPUT_H
#define INGOT_CUDA_PRODUCT_INPUT_H

#include "kernels/cuda/product_parts.h"
#include "kernels/cuda/product_unpack.h"
#include "kernels/cuda/weights.h"

#define PRODUCT_KEPT 2 /* units that a thread holds in registers; those behind it reads again */

/* Unit `unit` of a row of x, zero behind its columns.  ANY: rows that are not even, too. */
template <bool ANY>
__device__ static inline void product_read_unit(float (&v)[8], const product_source &source,
                                                uint64_t row, unsigned unit) {
    const uint64_t at = row * source.stride + unit * 8;
    if (ANY && !source.is_even) {
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            v[i] = unit * 8 + i < source.cols ? cuda_float_at(source.x, source.dtype, at + i) : 0;
        }
        return;
    }
    if (source.dtype == INGOT_F32) {
        const float4 *from =
            reinterpret_cast<const float4 *>(static_cast<const float *>(source.x) + at);
        const float4 low = from[0], high = from[1];
        v[0] = low.x, v[1] = low.y, v[2] = low.z, v[3] = low.w;
        v[4] = high.x, v[5] = high.y, v[6] = high.z, v[7] = high.w;
        return;
    }
    const uint4 words =
        *reinterpret_cast<const uint4 *>(static_cast<const unsigned short *>(source.x) + at);
    const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const unsigned pair = pairs[i];
        if (source.dtype == INGOT_BF16) {
            v[2 * i] = __uint_as_float(pair << 16);
            v[2 * i + 1] = __uint_as_float(pair & 0xffff0000u);
        } else {
            v[2 * i] = __half2float(__ushort_as_half((unsigned short)pair));
            v[2 * i + 1] = __half2float(__ushort_as_half((unsigned short)(pair >> 16)));
        }
    }
}

/* The weights of the norm for unit `unit`. */
template <bool ANY>
__device__ static inline void product_read_norm(float (&w)[8], const product_source &source,
                                                unsigned unit) {
    const float more = source.norm_kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0f : 0.0f;
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
#pragma unroll
    for (int i = 0; i < 8; i++) {
        w[i] += more;
    }
}

/* The sum over a block, in every thread, in the same order for all. */
template <int THREADS> __device__ static inline float product_block_sum(float *parts, float value) {
    for (int lane = 16; lane > 0; lane /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, lane);
    }
    __syncthreads();
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

/* ANY: rows that are not even and INGOT_NORM_LAYER, too. */
template <int THREADS, bool ANY> struct product_norm {
    float weight[PRODUCT_KEPT][8];

    /* Before product_wait: the weights of the norm do not depend on the kernel before. */
    __device__ void fetch(const product_source &source) {
#pragma unroll
        for (unsigned j = 0; j < PRODUCT_KEPT; j++) {
            const unsigned unit = threadIdx.x + j * THREADS;
            if (source.norm_weight != nullptr && unit * 8 < source.cols) {
                product_read_norm<ANY>(weight[j], source, unit);
            }
        }
    }

    /* put(unit, norm(x) of eight columns) for units units of a row, zeros behind the columns.
     * parts[THREADS / 32] is shared memory. */
    template <typename Put>
    __device__ void row(float *parts, const product_source &source, uint64_t at, unsigned units,
                        const Put &put) const {
        const bool has_norm = source.norm_weight != nullptr;
        const bool is_layer = ANY && source.norm_kind == INGOT_NORM_LAYER;
        const unsigned cols = (unsigned)source.cols, filled = (cols + 7) / 8;
        float kept[PRODUCT_KEPT][8], mean = 0.0f, factor = 1.0f;
#pragma unroll
        for (unsigned j = 0; j < PRODUCT_KEPT; j++) {
            const unsigned unit = threadIdx.x + j * THREADS;
            if (unit < filled) {
                product_read_unit<ANY>(kept[j], source, at, unit);
            }
        }
        const auto each = [&](const auto &take) {
#pragma unroll
            for (unsigned j = 0; j < PRODUCT_KEPT; j++) {
                const unsigned unit = threadIdx.x + j * THREADS;
                if (unit < filled) {
                    take(unit, kept[j], weight[j]);
                }
            }
#pragma unroll 1
            for (unsigned unit = threadIdx.x + PRODUCT_KEPT * THREADS; unit < filled;
                 unit += THREADS) {
                float v[8], w[8] = {};
                product_read_unit<ANY>(v, source, at, unit);
                if (has_norm) {
                    product_read_norm<ANY>(w, source, unit);
                }
                take(unit, v, w);
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
            float sum = 0.0f;
            each([&](unsigned unit, const float(&v)[8], const float(&)[8]) {
#pragma unroll
                for (unsigned i = 0; i < 8; i++) {
                    const float off = !ANY || unit * 8 + i < cols ? v[i] - mean : 0.0f;
                    sum = fmaf(off, off, sum);
                }
            });
            sum = product_block_sum<THREADS>(parts, sum);
            factor = 1.0f / sqrtf(sum / (float)cols + source.norm_eps);
        }
        each([&](unsigned unit, const float(&v)[8], const float(&w)[8]) {
            float out[8];
#pragma unroll
            for (unsigned i = 0; i < 8; i++) {
                out[i] = has_norm ? (v[i] - mean) * factor * w[i] : v[i];
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
            memcpy(out + product_tile_at(rows, row, (uint64_t)unit * 8 + i), moved + i, 4);
        }
    } else {
#pragma unroll
        for (unsigned i = 0; i < 8; i++) {
            const unsigned at = (unsigned)product_order<BITS>::position((int)(unit % 4 * 8 + i));
            out[product_tile_at(rows, row, (uint64_t)(unit / 4) * 32 + at)] = from_float<T>(v[i]);
        }
    }
}

#endif
