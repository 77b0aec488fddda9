/* Weights of the cpu backend, compiled once per x86-64 level: unpacking of dense and grouped-affine
 * rows (spec/quantization.md) and products with few rows.
 *
 * The values are those of ingot_weight_row, bit for bit: code minus zero point is an exact
 * integer, and one multiplication by the scale rounds once. */
#include "kernels/cpu/isa_halves.h"

/* ---- dense ------------------------------------------------------------------------------- */

static void dense_segment(float *out, const ingot_weight_view *w, uint64_t row, uint64_t first,
                          uint64_t count) {
    float_segment(out, w->data, w->dtype, row * w->cols + first, count);
}

/* ---- grouped affine ------------------------------------------------------------------------ */

static float value_at(const void *data, ingot_dtype dtype, uint64_t index) {
    switch (dtype) {
    case INGOT_F16:
        return ingot_f16_to_f32(((const uint16_t *)data)[index]);
    case INGOT_BF16:
        return ingot_bf16_to_f32(((const uint16_t *)data)[index]);
    default:
        return ((const float *)data)[index];
    }
}

/* Eight codes, which fill exactly `bits` bytes, as integers.  Four codes of up to 8 bits fit 32
 * bits, so each half is one word shifted by four distances. */
typedef int32_t vec8_i32 __attribute__((vector_size(32)));
typedef uint32_t vec8_u32 __attribute__((vector_size(32)));
typedef float vec8_f32 __attribute__((vector_size(32)));

INLINE void eight_codes(float *out, const uint8_t *codes, unsigned bits, int32_t zero,
                        float scale) {
    uint64_t word = 0;
    memcpy(&word, codes, bits);
    const uint32_t low = (uint32_t)word, high = (uint32_t)(word >> (4 * bits));
    const uint32_t mask = (1u << bits) - 1u;
    vec8_u32 v = {low, low, low, low, high, high, high, high};
    const vec8_u32 shift = {0, bits, 2 * bits, 3 * bits, 0, bits, 2 * bits, 3 * bits};
    v = (v >> shift) & mask;
    const vec8_i32 c = (vec8_i32)v - zero;
    const vec8_f32 f = __builtin_convertvector(c, vec8_f32) * scale;
    memcpy(out, &f, sizeof f);
}

INLINE void few_codes(float *out, const uint8_t *codes, unsigned bits, int32_t zero, float scale,
                      unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        const unsigned bit = i * bits;
        unsigned word = codes[bit / 8];
        if (bit % 8 + bits > 8) {
            word |= (unsigned)codes[bit / 8 + 1] << 8;
        }
        const int32_t code = (int32_t)(word >> (bit % 8) & ((1u << bits) - 1u));
        out[i] = (float)(code - zero) * scale;
    }
}

/* One run of codes under one scale; it starts on a byte. */
INLINE void run(float *out, const uint8_t *codes, unsigned bits, int32_t zero, float scale,
                uint64_t count) {
    uint64_t i = 0;
    for (; i + 8 <= count; i += 8) {
        eight_codes(out + i, codes, bits, zero, scale);
        codes += bits;
    }
    if (i < count) {
        few_codes(out + i, codes, bits, zero, scale, (unsigned)(count - i));
    }
}

INLINE void grouped_bits(float *out, const ingot_weight_view *w, uint64_t row, uint64_t first,
                         uint64_t count, unsigned bits) {
    const uint8_t *codes = w->codes + row * w->row_stride_bytes;
    const uint64_t end = first + count;
    uint64_t at = first;
    for (uint64_t g = first / w->group; at < end; g++) {
        const uint64_t group_end = (g + 1) * w->group;
        const uint64_t stop = group_end < end ? group_end : end;
        const uint64_t index = row * w->groups_per_row + g;
        const float scale = value_at(w->scales, w->scale_dtype, index);
        const int32_t zero = w->zero_mode == INGOT_ZERO_STORED ? (int32_t)w->zeros[index]
                                                               : (int32_t)(1u << (bits - 1u));
        run(out + (at - first), codes + at / 8 * bits, bits, zero, scale, stop - at);
        at = stop;
    }
}

static void outliers(float *out, const ingot_weight_view *w, uint64_t row, uint64_t first,
                     uint64_t count) {
    uint64_t low = w->outlier_row_ptr[row];
    const uint64_t end = w->outlier_row_ptr[row + 1];
    uint64_t high = end;
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        if (w->outlier_col[middle] < first) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    for (; low < end && w->outlier_col[low] < first + count; low++) {
        out[w->outlier_col[low] - first] = value_at(w->outlier_val, w->dtype, low);
    }
}

static void grouped_segment(float *out, const ingot_weight_view *w, uint64_t row, uint64_t first,
                            uint64_t count) {
    /* The width is a constant in each case, so shifts and loads are. */
    switch (w->bits) {
    case 2:
        grouped_bits(out, w, row, first, count, 2);
        break;
    case 3:
        grouped_bits(out, w, row, first, count, 3);
        break;
    case 4:
        grouped_bits(out, w, row, first, count, 4);
        break;
    case 5:
        grouped_bits(out, w, row, first, count, 5);
        break;
    case 6:
        grouped_bits(out, w, row, first, count, 6);
        break;
    case 7:
        grouped_bits(out, w, row, first, count, 7);
        break;
    default:
        grouped_bits(out, w, row, first, count, 8);
        break;
    }
    if (w->outlier_count != 0) {
        outliers(out, w, row, first, count);
    }
}

static void segment(float *out, const ingot_weight_view *w, uint64_t row, uint64_t first,
                    uint64_t count) {
    if (w->kind == INGOT_GROUPED) {
        grouped_segment(out, w, row, first, count);
    } else {
        dense_segment(out, w, row, first, count);
    }
}

/* ---- products with few rows ------------------------------------------------------------------ */

INLINE void dots_rows(float *sums, const float *w, const float *x, uint64_t x_stride,
                      const unsigned m, uint64_t count) {
    lanes sum[INGOT_CPU_DOT_ROWS][2];
    for (unsigned r = 0; r < m; r++) {
        sum[r][0] = sum[r][1] = lanes_set(0.0f);
    }
    uint64_t i = 0;
    for (; i + 2 * LANES <= count; i += 2 * LANES) {
        const lanes a = lanes_load(w + i), b = lanes_load(w + i + LANES);
        for (unsigned r = 0; r < m; r++) {
            const float *row = x + r * x_stride + i;
            sum[r][0] = lanes_fma(a, lanes_load(row), sum[r][0]);
            sum[r][1] = lanes_fma(b, lanes_load(row + LANES), sum[r][1]);
        }
    }
    for (; i < count; i += LANES) {
        const uint64_t n = count - i < LANES ? count - i : LANES;
        const lanes a = lanes_load_tail(w + i, n, 0.0f);
        for (unsigned r = 0; r < m; r++) {
            const lanes b = lanes_load_tail(x + r * x_stride + i, n, 0.0f);
            sum[r][0] = lanes_fma(a, b, sum[r][0]);
        }
    }
    for (unsigned r = 0; r < m; r++) {
        sums[r] += lanes_sum(lanes_add(sum[r][0], sum[r][1]));
    }
}

static void dots(float *sums, const float *w, const float *x, uint64_t x_stride, unsigned m,
                 uint64_t count) {
    switch (m) {
    case 1:
        dots_rows(sums, w, x, x_stride, 1, count);
        break;
    case 2:
        dots_rows(sums, w, x, x_stride, 2, count);
        break;
    case 3:
        dots_rows(sums, w, x, x_stride, 3, count);
        break;
    default:
        dots_rows(sums, w, x, x_stride, 4, count);
        break;
    }
}

/* Columns unpacked at a time: they stay in the first-level cache. */
#define ROW_SEGMENT 2048u

static void row_dots(float *sums, const ingot_weight_view *w, uint64_t row, const float *x,
                     uint64_t x_stride, unsigned m) {
    if (w->kind == INGOT_DENSE && w->dtype == INGOT_F32) {
        dots(sums, (const float *)w->data + row * w->cols, x, x_stride, m, w->cols);
        return;
    }
    float buffer[ROW_SEGMENT] __attribute__((aligned(64)));
    for (uint64_t at = 0; at < w->cols; at += ROW_SEGMENT) {
        const uint64_t rest = w->cols - at;
        const uint64_t count = rest < ROW_SEGMENT ? rest : ROW_SEGMENT;
        segment(buffer, w, row, at, count);
        dots(sums, buffer, x + at, x_stride, m, count);
    }
}

const ingot_cpu_weight_ops ISA_NAME(ingot_cpu_weight_) = {
    .segment = segment,
    .dots = dots,
    .row_dots = row_dots,
};
