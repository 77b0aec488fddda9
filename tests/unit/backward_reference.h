/* What the gradient operations of kernels/backend.h compute, in FP64 and in the plainest form, with
 * sizes as in backend_reference.h. */
#ifndef INGOT_BACKWARD_REFERENCE_H
#define INGOT_BACKWARD_REFERENCE_H

#include "backend_reference.h"

static inline void ref_norm_backward(double *value, double *size, const float *dy, const float *x,
                                     const float *weight, ingot_norm_kind kind, float eps,
                                     uint64_t m, uint64_t n) {
    for (uint64_t i = 0; i < m; i++, x += n, dy += n, value += n, size += n) {
        const double count = (double)n;
        double mean = 0, square = 0, slope = 0, along = 0, slope_size = 0, along_size = 0;
        for (uint64_t j = 0; kind == INGOT_NORM_LAYER && j < n; j++) {
            mean += (double)x[j] / count;
        }
        for (uint64_t j = 0; j < n; j++) {
            square += ((double)x[j] - mean) * ((double)x[j] - mean) / count;
        }
        const double factor = 1 / sqrt(square + (double)eps);
        for (uint64_t j = 0; j < n; j++) {
            const double w = (double)weight[j] + (kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0 : 0.0);
            const double g = (double)dy[j] * w, h = ((double)x[j] - mean) * factor;
            slope += kind == INGOT_NORM_LAYER ? g / count : 0;
            along += g * h / count;
            slope_size += fabs(g) / count;
            along_size += fabs(g * h) / count;
        }
        for (uint64_t j = 0; j < n; j++) {
            const double w = (double)weight[j] + (kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0 : 0.0);
            const double g = (double)dy[j] * w, h = ((double)x[j] - mean) * factor;
            value[j] = factor * (g - slope - h * along);
            size[j] = factor * (fabs(g) + slope_size +
                                (fabs((double)x[j]) + fabs(mean)) * factor * along_size);
        }
    }
}

/* dx[m][cols] of before + dy W */
static inline void ref_linear_backward(double *value, double *size, const ingot_weight_view *w,
                                       const float *dy, const float *before, uint64_t m) {
    for (uint64_t i = 0; i < m * w->cols; i++) {
        value[i] = (double)before[i];
        size[i] = fabs(value[i]);
    }
    for (uint64_t r = 0; r < w->rows; r++) {
        for (uint64_t c = 0; c < w->cols; c++) {
            const double weight = ref_weight(w, r, c);
            for (uint64_t i = 0; i < m; i++) {
                const double slope = (double)dy[i * w->rows + r];
                value[i * w->cols + c] += slope * weight;
                size[i * w->cols + c] +=
                    fabs(slope * weight) + 0x1p-15 * (fabs(slope) + fabs(weight));
            }
        }
    }
}

static inline void ref_weight_backward(double *value, double *size, const float *dy, const float *x,
                                       const float *before, uint64_t m, uint64_t rows,
                                       uint64_t cols) {
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t c = 0; c < cols; c++) {
            double sum = (double)before[r * cols + c], magnitude = fabs(sum);
            for (uint64_t i = 0; i < m; i++) {
                const double a = (double)dy[i * rows + r], b = (double)x[i * cols + c];
                sum += a * b;
                magnitude += fabs(a * b) + 0x1p-15 * (fabs(a) + fabs(b));
            }
            value[r * cols + c] = sum;
            size[r * cols + c] = magnitude;
        }
    }
}

/* The derivative of an activation. */
static inline double ref_activation_slope(double x, ingot_activation kind) {
    const double root = sqrt(2.0 / 3.14159265358979323846);
    const double inner = root * (x + 0.044715 * x * x * x), gate = 1 / (1 + exp(-x));
    const double wide = 1 / (1 + exp(-2 * inner));
    switch (kind) {
    case INGOT_ACT_SILU:
        return gate + x * gate * (1 - gate);
    case INGOT_ACT_GELU:
        return 0.5 * erfc(-x / sqrt(2.0)) +
               x * exp(-0.5 * x * x) / sqrt(2 * 3.14159265358979323846);
    case INGOT_ACT_GELU_TANH:
        return wide + x * wide * (1 - wide) * 2 * root * (1 + 3 * 0.044715 * x * x);
    case INGOT_ACT_RELU:
        return x > 0 ? 1 : 0;
    }
    return NAN;
}

/* value[2][n] of gate and up (up NULL: [n]). */
static inline void ref_activate_backward(double *value, double *size, const float *gate,
                                         const float *up, const float *d, ingot_activation kind,
                                         uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        double condition;
        const double other = up != NULL ? (double)up[i] : 1.0, x = (double)gate[i];
        const double act = ref_activation(x, kind, &condition);
        value[i] = (double)d[i] * other * ref_activation_slope(x, kind);
        /* the slope is a sum of terms near 1 that may cancel */
        size[i] = fabs((double)d[i] * other) * (1 + condition) * 2;
        if (up != NULL) {
            value[n + i] = (double)d[i] * act;
            size[n + i] = fabs((double)d[i] * act) * (1 + condition);
        }
    }
}

/* ---- attention --------------------------------------------------------------------------------
 */

typedef struct ref_attention_inputs {
    const float *q, *k, *v, *out, *dout;
} ref_attention_inputs;

/* Adds what query i of one head contributes: value and size are dq, dk, dv one after the other. */
static inline void ref_attend_backward(double *const value[3], double *const size[3],
                                       const ref_attention_inputs *in, const ingot_attention *s,
                                       uint64_t at, uint64_t kv, uint64_t i) {
    const uint64_t stride = s->kv_heads * s->head_dim, n = s->head_dim;
    const uint64_t first = s->window > 0 && i + 1 > s->window ? i + 1 - s->window : 0;
    double *weight = calloc(i + 1, sizeof *weight), *bend = calloc(i + 1, sizeof *bend);
    double top = -INFINITY, total = 0, delta = 0, delta_size = 0, condition = 0;
    for (uint64_t j = first; j <= i; j++) {
        double dot = 0, magnitude = 0;
        for (uint64_t d = 0; d < n; d++) {
            dot += (double)in->q[at + d] * (double)in->k[kv + j * stride + d];
            magnitude += fabs((double)in->q[at + d] * (double)in->k[kv + j * stride + d]);
        }
        const double score = dot * (double)s->scale, cap = (double)s->softcap;
        const double t = cap > 0 ? tanh(score / cap) : 0;
        weight[j] = cap > 0 ? cap * t : score;
        bend[j] = (double)s->scale * (1 - t * t);
        top = fmax(top, weight[j]);
        condition = fmax(condition, magnitude * fabs((double)s->scale) + cap);
    }
    for (uint64_t j = first; j <= i; j++) {
        weight[j] = exp(weight[j] - top);
        total += weight[j];
    }
    /* dO . O is a sum over keys, of values that may cancel in O: its errors are relative to these
     */
    for (uint64_t d = 0; d < n; d++) {
        delta += (double)in->dout[at + d] * (double)in->out[at + d];
        for (uint64_t j = first; j <= i; j++) {
            delta_size += weight[j] / total *
                          fabs((double)in->dout[at + d] * (double)in->v[kv + j * stride + d]);
        }
    }
    for (uint64_t j = first; j <= i; j++) {
        const double p = weight[j] / total;
        double slope = -delta, slope_size = delta_size;
        for (uint64_t d = 0; d < n; d++) {
            slope += (double)in->dout[at + d] * (double)in->v[kv + j * stride + d];
            slope_size += fabs((double)in->dout[at + d] * (double)in->v[kv + j * stride + d]);
        }
        slope *= p * bend[j];
        slope_size *= p * fabs((double)s->scale) * (1 + condition);
        for (uint64_t d = 0; d < n; d++) {
            const uint64_t to = kv + j * stride + d;
            value[0][at + d] += slope * (double)in->k[to];
            size[0][at + d] += slope_size * fabs((double)in->k[to]);
            value[1][to] += slope * (double)in->q[at + d];
            size[1][to] += slope_size * fabs((double)in->q[at + d]);
            value[2][to] += p * (double)in->dout[at + d];
            size[2][to] += p * fabs((double)in->dout[at + d]) * (1 + condition);
        }
    }
    free(weight);
    free(bend);
}

static inline void ref_attention_backward(double *const value[3], double *const size[3],
                                          const ref_attention_inputs *in,
                                          const ingot_attention *s) {
    for (uint64_t row = 0; row < s->sequences * s->q_len * s->heads; row++) {
        const uint64_t head = row % s->heads, i = row / s->heads % s->q_len;
        const uint64_t sequence = row / s->heads / s->q_len;
        const uint64_t kv_head = head / (s->heads / s->kv_heads);
        ref_attend_backward(value, size, in, s, row * s->head_dim,
                            (sequence * s->kv_len * s->kv_heads + kv_head) * s->head_dim, i);
    }
}

#endif
