/* What the operations of kernels/backend.h compute, in FP64 and in the plainest form: the yardstick
 * of every backend.  Beside each value stands the size its rounding errors are relative to (the sum
 * of the magnitudes that went into it, times the conditioning of what follows), so that one bound
 * |got - value| <= c epsilon size serves large and cancelling results alike.
 *
 * Nothing here shares code with a backend: weights are decoded from spec/quantization.md. */
#ifndef INGOT_BACKEND_REFERENCE_H
#define INGOT_BACKEND_REFERENCE_H

#include "kernels/backend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- weights --------------------------------------------------------------------------------- */

static inline double ref_half(unsigned bits) {
    const int exponent = (int)(bits >> 10 & 31);
    const double fraction = (double)(bits & 1023);
    const double magnitude =
        exponent == 0 ? ldexp(fraction, -24) : ldexp(fraction + 1024.0, exponent - 25);
    return bits >> 15 != 0 ? -magnitude : magnitude;
}

static inline double ref_element(const void *data, ingot_dtype dtype, uint64_t index) {
    uint16_t half;
    uint32_t word;
    float value;
    if (dtype == INGOT_F16) {
        memcpy(&half, (const uint16_t *)data + index, sizeof half);
        return ref_half(half);
    }
    if (dtype == INGOT_BF16) {
        memcpy(&half, (const uint16_t *)data + index, sizeof half);
        word = (uint32_t)half << 16;
        memcpy(&value, &word, sizeof value);
        return (double)value;
    }
    memcpy(&value, (const float *)data + index, sizeof value);
    return (double)value;
}

/* The code of one weight: w->bits bits of the string, the lowest first. */
static inline int ref_code(const ingot_weight_view *w, uint64_t row, uint64_t col) {
    const uint64_t bit = col * w->bits;
    const uint8_t *at = w->codes + row * w->row_stride_bytes + bit / 8;
    const unsigned shift = bit % 8, high = shift + w->bits > 8 ? at[1] : 0;
    return (int)((high << 8 | at[0]) >> shift & ((1u << w->bits) - 1));
}

static inline int ref_zero(const ingot_weight_view *w, uint64_t group) {
    return w->zero_mode == INGOT_ZERO_STORED ? w->zeros[group] : 1 << (w->bits - 1);
}

/* One weight as a loader computes it: an outlier, or s (q - z) rounded once to binary32. */
static inline double ref_weight(const ingot_weight_view *w, uint64_t row, uint64_t col) {
    if (w->kind == INGOT_DENSE) {
        return ref_element(w->data, w->dtype, row * w->cols + col);
    }
    const bool is_sparse = w->outlier_count != 0;
    for (uint64_t i = is_sparse ? w->outlier_row_ptr[row] : 0;
         is_sparse && i < w->outlier_row_ptr[row + 1]; i++) {
        if (w->outlier_col[i] == col) {
            return ref_element(w->outlier_val, w->dtype, i);
        }
    }
    const uint64_t group = row * w->groups_per_row + col / w->group;
    return (double)(float)(ref_element(w->scales, w->scale_dtype, group) *
                           (double)(ref_code(w, row, col) - ref_zero(w, group)));
}

/* ---- rows --------------------------------------------------------------------------------------
 */

static inline void ref_embed(double *value, const ingot_weight_view *table, const uint32_t *ids,
                             uint64_t m, float scale) {
    for (uint64_t i = 0; i < m; i++) {
        for (uint64_t c = 0; c < table->cols; c++) {
            const double weight = ref_weight(table, ids[i], c);
            value[i * table->cols + c] = (double)(float)(weight * (double)scale);
        }
    }
}

static inline void ref_norm(double *value, double *size, const float *x, const float *weight,
                            const float *bias, ingot_norm_kind kind, float eps, uint64_t m,
                            uint64_t n) {
    for (uint64_t i = 0; i < m; i++, x += n, value += n, size += n) {
        double mean = 0, mean_size = 0, square = 0;
        for (uint64_t j = 0; kind == INGOT_NORM_LAYER && j < n; j++) {
            mean += (double)x[j] / (double)n;
            mean_size += fabs((double)x[j]) / (double)n;
        }
        for (uint64_t j = 0; j < n; j++) {
            square += ((double)x[j] - mean) * ((double)x[j] - mean) / (double)n;
        }
        const double factor = 1.0 / sqrt(square + (double)eps);
        for (uint64_t j = 0; j < n; j++) {
            const double w = (double)weight[j] + (kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0 : 0.0);
            const double b = kind == INGOT_NORM_LAYER && bias != NULL ? (double)bias[j] : 0.0;
            value[j] = ((double)x[j] - mean) * factor * w + b;
            size[j] = (fabs((double)x[j]) + mean_size) * factor * fabs(w) + fabs(b);
        }
    }
}

/* All weights of a row, and what a product of few rows may round in units of, beyond the weight:
 * the cpu backend sums s q x and s z x apart (kernels/cpu/isa_product.c), as one kernel of the cuda
 * backend does.  has_offset: that, of zero points that are not below least_zero; else zeros. */
static inline void ref_row(double *weight, double *offset, const ingot_weight_view *w, uint64_t row,
                           bool has_offset, int least_zero) {
    for (uint64_t c = 0; w->kind == INGOT_DENSE && c < w->cols; c++) {
        weight[c] = ref_weight(w, row, c);
        offset[c] = 0;
    }
    if (w->kind == INGOT_DENSE) {
        return;
    }
    for (uint64_t first = 0; first < w->cols; first += w->group) {
        const uint64_t group = row * w->groups_per_row + first / w->group;
        const uint64_t end = first + w->group < w->cols ? first + w->group : w->cols;
        const double scale = ref_element(w->scales, w->scale_dtype, group);
        const int zero = ref_zero(w, group);
        for (uint64_t c = first; c < end; c++) {
            weight[c] = (double)(float)(scale * (double)(ref_code(w, row, c) - zero));
            offset[c] = has_offset ? scale * (zero > least_zero ? zero : least_zero) : 0;
        }
    }
    for (uint64_t i = w->outlier_count != 0 ? w->outlier_row_ptr[row] : 0;
         w->outlier_count != 0 && i < w->outlier_row_ptr[row + 1]; i++) {
        weight[w->outlier_col[i]] = ref_element(w->outlier_val, w->dtype, i);
    }
}

/* x[m][cols] as [m / 4, rounded up][cols][4], zeros behind the rows. */
static inline double *ref_fours(const float *x, uint64_t m, uint64_t cols) {
    double *fours = calloc((m + 3) / 4 * 4 * cols, sizeof *fours);
    for (uint64_t i = 0; i < m; i++) {
        for (uint64_t c = 0; c < cols; c++) {
            fours[(i / 4 * cols + c) * 4 + i % 4] = (double)x[i * cols + c];
        }
    }
    return fours;
}

/* sum[4] += the products of four rows of x with one of W, each in the order of its columns, and
 * magnitude[4] theirs.  Four, because a column waits for the sum of the last. */
static inline void ref_dot_four(double sum[4], double magnitude[4], const double *four,
                                const double *weight, uint64_t cols) {
    for (uint64_t c = 0; c < cols; c++) {
        for (unsigned k = 0; k < 4; k++) {
            const double product = four[c * 4 + k] * weight[c];
            sum[k] += product;
            magnitude[k] += fabs(product);
        }
    }
}

/* A device may multiply values of binary16: below its normal range an operand loses 2^-25, whatever
 * its size, which is 2^-15 of its roundoff.  has_offset: zero points count beside the weights. */
typedef struct ref_product {
    double *value, *size; /* [m][w->rows] */
    const ingot_weight_view *w;
    const float *bias; /* or NULL */
    const float *x;    /* [m][w->cols] */
    uint64_t m;
    bool has_offset;
    int least_zero;         /* which zero points count as at least, where they do */
    double *fours, *x_lost; /* of ref_product_start */
} ref_product;

static inline void ref_product_start(ref_product *p) {
    const uint64_t cols = p->w->cols;
    p->fours = ref_fours(p->x, p->m, cols);
    p->x_lost = calloc(p->m + 1, sizeof *p->x_lost);
    for (uint64_t i = 0; i < p->m * cols; i++) {
        p->x_lost[i / cols] += 0x1p-15 * fabs((double)p->x[i]);
    }
}

static inline void ref_product_end(ref_product *p) {
    free(p->fours);
    free(p->x_lost);
}

/* Some rows of W; threads may share them. */
static inline void ref_product_rows(const ref_product *p, uint64_t first, uint64_t end) {
    const uint64_t cols = p->w->cols, m = p->m;
    double *row = calloc(cols, sizeof *row), *offset = calloc(cols, sizeof *offset);
    for (uint64_t r = first; r < end; r++) {
        const double start = p->bias != NULL ? (double)p->bias[r] : 0.0;
        double lost = fabs(start);
        ref_row(row, offset, p->w, r, p->has_offset, p->least_zero);
        for (uint64_t c = 0; c < cols; c++) {
            lost += 0x1p-15 * fabs(row[c]);
        }
        for (uint64_t i = 0; i < m; i += 4) {
            const double *four = p->fours + i * cols;
            double sum[4] = {start, start, start, start}, magnitude[4] = {0}, unused[4] = {0};
            ref_dot_four(sum, magnitude, four, row, cols);
            if (p->has_offset) {
                ref_dot_four(unused, magnitude, four, offset, cols);
            }
            for (unsigned k = 0; k < 4 && i + k < m; k++) {
                p->value[(i + k) * p->w->rows + r] = sum[k];
                p->size[(i + k) * p->w->rows + r] = magnitude[k] + lost + p->x_lost[i + k];
            }
        }
    }
    free(row);
    free(offset);
}

static inline void ref_linear(double *value, double *size, const ingot_weight_view *w,
                              const float *bias, const float *x, uint64_t m) {
    ref_product p = {value, size, w, bias, x, m, m <= 4, 0, NULL, NULL};
    ref_product_start(&p);
    ref_product_rows(&p, 0, w->rows);
    ref_product_end(&p);
}

/* x is the input; what lies behind rotary_dim comes out as it was. */
static inline void ref_rotary(double *value, double *size, const float *x, uint64_t first,
                              uint64_t period, const double *inverse_frequency, float scale,
                              uint64_t m, uint64_t heads, uint64_t head_dim, uint64_t rotary_dim) {
    const uint64_t half = rotary_dim / 2;
    for (uint64_t i = 0; i < m * heads * head_dim; i++) {
        value[i] = (double)x[i];
        size[i] = 0;
    }
    for (uint64_t row = 0; row < m * heads; row++) {
        for (uint64_t i = 0; i < half; i++) {
            const uint64_t a = row * head_dim + i, b = a + half;
            const double angle = (double)(first + row / heads % period) * inverse_frequency[i];
            const double cosine = cos(angle) * (double)scale, sine = sin(angle) * (double)scale;
            value[a] = (double)x[a] * cosine - (double)x[b] * sine;
            value[b] = (double)x[b] * cosine + (double)x[a] * sine;
            size[a] = fabs((double)x[a] * cosine) + fabs((double)x[b] * sine);
            size[b] = fabs((double)x[b] * cosine) + fabs((double)x[a] * sine);
        }
    }
}

/* ---- attention
 * ----------------------------------------------------------------------------------- */

/* One query of one head over keys first .. last; k and v point at key 0 of its head. */
static inline void ref_attend(double *value, double *size, const float *q, const float *k,
                              const float *v, const ingot_attention *s, uint64_t first,
                              uint64_t last) {
    const uint64_t stride = s->kv_heads * s->head_dim;
    double *score = calloc(last + 1, sizeof *score);
    double top = -INFINITY, total = 0, condition = 0;
    for (uint64_t j = first; j <= last; j++) {
        double dot = 0, magnitude = 0;
        for (uint64_t d = 0; d < s->head_dim; d++) {
            const double product = (double)q[d] * (double)k[j * stride + d];
            dot += product;
            magnitude += fabs(product);
        }
        const double cap = (double)s->softcap;
        score[j] = dot * (double)s->scale;
        score[j] = cap > 0 ? cap * tanh(score[j] / cap) : score[j];
        top = fmax(top, score[j]);
        condition = fmax(condition, magnitude * fabs((double)s->scale) + cap);
    }
    for (uint64_t j = first; j <= last; j++) {
        score[j] = exp(score[j] - top);
        total += score[j];
    }
    for (uint64_t d = 0; d < s->head_dim; d++) {
        value[d] = size[d] = 0;
        for (uint64_t j = first; j <= last; j++) {
            const double part = score[j] / total * (double)v[j * stride + d];
            value[d] += part;
            size[d] += fabs(part) * (1 + condition); /* exp turns absolute errors into relative */
        }
    }
    free(score);
}

static inline void ref_attention(double *value, double *size, const float *q, const float *k,
                                 const float *v, const ingot_attention *s) {
    for (uint64_t n = 0; n < s->sequences; n++) {
        for (uint64_t i = 0; i < s->q_len; i++) {
            const uint64_t last = s->kv_len - s->q_len + i;
            const uint64_t first = s->window > 0 && last + 1 > s->window ? last + 1 - s->window : 0;
            for (uint64_t h = 0; h < s->heads; h++) {
                const uint64_t kv_head = h / (s->heads / s->kv_heads);
                const uint64_t kv = (n * s->kv_stride * s->kv_heads + kv_head) * s->head_dim;
                const uint64_t at = ((n * s->q_len + i) * s->heads + h) * s->head_dim;
                ref_attend(value + at, size + at, q + at, k + kv, v + kv, s, first, last);
            }
        }
    }
}

/* ---- elements
 * ------------------------------------------------------------------------------------- */

static inline double ref_activation(double x, ingot_activation kind, double *condition) {
    const double inner = sqrt(2.0 / 3.14159265358979323846) * (x + 0.044715 * x * x * x);
    *condition = 0;
    switch (kind) {
    case INGOT_ACT_SILU:
        *condition = fabs(x);
        return x / (1.0 + exp(-x));
    case INGOT_ACT_GELU:
        *condition = x * x;
        return 0.5 * x * erfc(-x / sqrt(2.0));
    case INGOT_ACT_GELU_TANH:
        *condition = fabs(2 * inner);
        return x / (1.0 + exp(-2 * inner));
    case INGOT_ACT_RELU:
        return x > 0 ? x : 0;
    }
    return NAN;
}

static inline void ref_activate(double *value, double *size, const float *gate, const float *up,
                                ingot_activation kind, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        double condition;
        value[i] = ref_activation((double)gate[i], kind, &condition);
        value[i] *= up != NULL ? (double)up[i] : 1.0;
        size[i] = fabs(value[i]) * (1 + condition);
    }
}

static inline void ref_add(double *value, double *size, const float *y, const float *x, float scale,
                           uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        const double product = (double)scale * (double)x[i];
        value[i] = (double)y[i] + product;
        size[i] = fabs((double)y[i]) + fabs(product);
    }
}

/* ---- statistics, likelihood, divergence
 * -------------------------------------------------------------- */

/* Adds to gram[n][n] (lower triangle), gram_size[n][n] and magnitude[n]; returns how many rows were
 * left out. */
static inline uint64_t ref_gram(double *gram, double *gram_size, double *magnitude, const float *x,
                                uint64_t m, uint64_t n) {
    uint64_t dropped = 0;
    for (uint64_t r = 0; r < m; r++, x += n) {
        bool is_good = true;
        for (uint64_t i = 0; i < n; i++) {
            is_good = is_good && isfinite(x[i]);
        }
        dropped += !is_good;
        for (uint64_t i = 0; is_good && i < n; i++) {
            magnitude[i] += fabs((double)x[i]);
            for (uint64_t j = 0; j <= i; j++) {
                const double product = (double)x[i] * (double)x[j];
                gram[i * n + j] += product;
                gram_size[i * n + j] += fabs(product);
            }
        }
    }
    return dropped;
}

/* log sum exp of one row; *best = index of the largest, the lowest of several */
static inline long double ref_log_sum_exp(const float *x, uint64_t n, uint32_t *best) {
    long double others = 0; /* beside the largest, whose term is 1 */
    *best = 0;
    for (uint64_t i = 1; i < n; i++) {
        *best = x[i] > x[*best] ? (uint32_t)i : *best;
    }
    for (uint64_t i = 0; i < n; i++) {
        others += i != *best ? expl((long double)x[i] - (long double)x[*best]) : 0;
    }
    return log1pl(others) + (long double)x[*best];
}

static inline double ref_nll(const float *x, uint64_t n, uint64_t target, uint32_t *best) {
    return (double)(ref_log_sum_exp(x, n, best) - (long double)x[target]);
}

/* *size = sum of the magnitudes of the terms: what an error of FP64 is relative to. */
static inline double ref_divergence(const float *p, const float *q, uint64_t n, double *size) {
    uint32_t best;
    const long double all_p = ref_log_sum_exp(p, n, &best), all_q = ref_log_sum_exp(q, n, &best);
    long double kl = 0, magnitude = 0;
    for (uint64_t i = 0; i < n; i++) {
        const long double log_p = (long double)p[i] - all_p, log_q = (long double)q[i] - all_q;
        kl += expl(log_p) * (log_p - log_q);
        magnitude += expl(log_p) * fabsl(log_p - log_q);
    }
    *size = (double)magnitude;
    return (double)kl;
}

#endif
