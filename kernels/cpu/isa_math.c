/* Element-wise and row-wise arithmetic of the cpu backend, compiled once per x86-64 level. */
#include "kernels/cpu/isa_lanes.h"

#include <math.h>

/* ---- norms ------------------------------------------------------------------------------- */

static float sum_squares(const float *x, uint64_t n, float shift) {
    const lanes minus = lanes_set(-shift);
    lanes sum = lanes_set(0.0f);
    uint64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        const lanes v = lanes_add(lanes_load(x + i), minus);
        sum = lanes_fma(v, v, sum);
    }
    if (i < n) {
        const lanes v = lanes_add(lanes_load_tail(x + i, n - i, shift), minus);
        sum = lanes_fma(v, v, sum);
    }
    return lanes_sum(sum);
}

static float sum_plain(const float *x, uint64_t n) {
    lanes sum = lanes_set(0.0f);
    uint64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        sum = lanes_add(sum, lanes_load(x + i));
    }
    if (i < n) {
        sum = lanes_add(sum, lanes_load_tail(x + i, n - i, 0.0f));
    }
    return lanes_sum(sum);
}

static void norm_layer(float *y, const float *x, const float *weight, const float *bias, float eps,
                       uint64_t n) {
    const float mean = sum_plain(x, n) / (float)n;
    const float factor = 1.0f / sqrtf(sum_squares(x, n, mean) / (float)n + eps);
    for (uint64_t i = 0; i < n; i++) {
        const float v = (x[i] - mean) * factor * weight[i];
        y[i] = bias != NULL ? v + bias[i] : v;
    }
}

static void norm(float *y, const float *x, const float *weight, const float *bias,
                 ingot_norm_kind kind, float eps, uint64_t n) {
    if (kind == INGOT_NORM_LAYER) {
        norm_layer(y, x, weight, bias, eps, n);
        return;
    }
    const float factor = 1.0f / sqrtf(sum_squares(x, n, 0.0f) / (float)n + eps);
    const float plus = kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0f : 0.0f;
    for (uint64_t i = 0; i < n; i++) {
        y[i] = x[i] * factor * (weight[i] + plus);
    }
}

/* ---- activations ------------------------------------------------------------------------- */

/* x / (1 + exp(-factor x)), the logistic gate */
INLINE lanes logistic_gate(lanes x, lanes exponent) {
    return lanes_div(x, lanes_add(lanes_set(1.0f), lanes_exp(exponent)));
}

INLINE lanes silu(lanes x) {
    return logistic_gate(x, lanes_mul(x, lanes_set(-1.0f)));
}

/* 0.5 x (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3) */
INLINE lanes gelu_tanh(lanes x) {
    const float root = 0.7978845608f;
    const lanes square = lanes_mul(x, x);
    const lanes inner =
        lanes_fma(square, lanes_set(-2.0f * root * 0.044715f), lanes_set(-2.0f * root));
    return logistic_gate(x, lanes_mul(x, inner));
}

INLINE lanes relu(lanes x) {
    return lanes_max(lanes_set(0.0f), x); /* the second operand is given back for NaN */
}

/* erfc keeps relative precision where 1 + erf would cancel. */
INLINE lanes gelu(lanes x) {
    float v[LANES];
    lanes_store(v, x);
    for (unsigned i = 0; i < LANES; i++) {
        v[i] = 0.5f * v[i] * erfcf(-0.7071067812f * v[i]);
    }
    return lanes_load(v);
}

#define ACTIVATE(function)                                                                         \
    do {                                                                                           \
        uint64_t i = 0;                                                                            \
        for (; i + LANES <= n; i += LANES) {                                                       \
            lanes v = function(lanes_load(gate + i));                                              \
            if (up != NULL) {                                                                      \
                v = lanes_mul(v, lanes_load(up + i));                                              \
            }                                                                                      \
            lanes_store(gate + i, v);                                                              \
        }                                                                                          \
        if (i < n) {                                                                               \
            lanes v = function(lanes_load_tail(gate + i, n - i, 0.0f));                            \
            if (up != NULL) {                                                                      \
                v = lanes_mul(v, lanes_load_tail(up + i, n - i, 0.0f));                            \
            }                                                                                      \
            lanes_store_tail(gate + i, v, n - i);                                                  \
        }                                                                                          \
    } while (0)

static void activate(float *gate, const float *up, ingot_activation kind, uint64_t n) {
    switch (kind) {
    case INGOT_ACT_SILU:
        ACTIVATE(silu);
        break;
    case INGOT_ACT_GELU:
        ACTIVATE(gelu);
        break;
    case INGOT_ACT_GELU_TANH:
        ACTIVATE(gelu_tanh);
        break;
    case INGOT_ACT_RELU:
        ACTIVATE(relu);
        break;
    }
}

static void add(float *y, const float *x, float scale, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        y[i] = y[i] + scale * x[i];
    }
}

static void scale_by(float *y, float scale, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        y[i] *= scale;
    }
}

static void rotate(float *x, const float *cosine, const float *sine, uint64_t half) {
    for (uint64_t i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

static void angles(float *cosine, float *sine, const double *frequency, double position,
                   float scale, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        const double angle = position * frequency[i];
        cosine[i] = (float)(cos(angle) * scale);
        sine[i] = (float)(sin(angle) * scale);
    }
}

/* ---- softmax of one key block ------------------------------------------------------------- */

/* softcap tanh(x / softcap) with tanh |u| = (1 - e) / (1 + e), e = exp(-2 |u|).  1 - e cancels for
 * small u, so the error is absolute: 1e-7 softcap, far below what a score carries. */
INLINE lanes soft_capped(lanes x, float softcap) {
    const lanes u = lanes_mul(x, lanes_set(1.0f / softcap));
    const lanes e = lanes_exp(lanes_mul(lanes_abs(u), lanes_set(-2.0f)));
    const lanes one = lanes_set(1.0f);
    lanes t = lanes_div(lanes_fma(e, lanes_set(-1.0f), one), lanes_add(one, e));
    EACH_PART(p) {
        const vec_u32 sign = (vec_u32)u.part[p] & 0x80000000u;
        t.part[p] = (vec_f32)((vec_u32)t.part[p] | sign);
    }
    return lanes_mul(t, lanes_set(softcap));
}

static float softmax(float *scores, uint64_t n, float scale, float softcap, float *maximum,
                     float *sum) {
    const lanes factor = lanes_set(scale);
    const uint64_t whole = n / LANES * LANES;
    lanes top = lanes_set(-INFINITY);
    lanes tail = lanes_set(-INFINITY);
    for (uint64_t i = 0; i < whole; i += LANES) {
        lanes v = lanes_mul(lanes_load(scores + i), factor);
        if (softcap > 0.0f) {
            v = soft_capped(v, softcap);
        }
        lanes_store(scores + i, v);
        top = lanes_max(top, v);
    }
    if (whole < n) {
        float buffer[LANES];
        tail = lanes_mul(lanes_load_tail(scores + whole, n - whole, 0.0f), factor);
        if (softcap > 0.0f) {
            tail = soft_capped(tail, softcap);
        }
        lanes_store(buffer, tail);
        tail = lanes_load_tail(buffer, n - whole, -INFINITY);
        top = lanes_max(top, tail);
    }
    const float before = *maximum;
    const float here = lanes_maximum(top);
    const float now = here > before ? here : before;
    const lanes minus = lanes_set(-now);
    lanes total = lanes_set(0.0f);
    for (uint64_t i = 0; i < whole; i += LANES) {
        const lanes v = lanes_exp(lanes_add(lanes_load(scores + i), minus));
        lanes_store(scores + i, v);
        total = lanes_add(total, v);
    }
    if (whole < n) {
        const lanes v = lanes_exp(lanes_add(tail, minus));
        lanes_store_tail(scores + whole, v, n - whole);
        total = lanes_add(total, v);
    }
    const float correction = before == now ? 1.0f : expf(before - now);
    *maximum = now;
    *sum = *sum * correction + lanes_sum(total);
    return correction;
}

/* ---- statistics, likelihood, divergence ---------------------------------------------------- */

static void magnitude(double *sums, const float *x, uint64_t n) {
    for (uint64_t i = 0; i < n; i++) {
        sums[i] += (double)fabsf(x[i]);
    }
}

/* A value is finite exactly when 0 times it is zero; the sum of such products keeps a NaN. */
static bool all_finite(const float *x, uint64_t n) {
    lanes sum = lanes_set(0.0f);
    const lanes zero = lanes_set(0.0f);
    uint64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        sum = lanes_fma(lanes_load(x + i), zero, sum);
    }
    if (i < n) {
        sum = lanes_fma(lanes_load_tail(x + i, n - i, 0.0f), zero, sum);
    }
    return lanes_sum(sum) == 0.0f;
}

static float maximum_of(const float *x, uint64_t n) {
    lanes top = lanes_set(-INFINITY);
    uint64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        top = lanes_max(top, lanes_load(x + i));
    }
    if (i < n) {
        top = lanes_max(top, lanes_load_tail(x + i, n - i, -INFINITY));
    }
    return lanes_maximum(top);
}

static uint64_t argmax(const float *x, uint64_t n) {
    const float top = maximum_of(x, n);
    for (uint64_t i = 0; i < n; i++) {
        if (x[i] == top) {
            return i;
        }
    }
    return 0; /* nothing but NaN */
}

static double nll(const float *x, uint64_t n, uint64_t target) {
    const double top = (double)maximum_of(x, n);
    const lanes64 shift = lanes64_set(top);
    lanes64 sum = lanes64_set(0.0);
    uint64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        sum = lanes64_add(sum, lanes64_exp(lanes64_sub(lanes64_load_f32(x + i), shift)));
    }
    double total = lanes64_sum(sum);
    for (; i < n; i++) {
        total += exp((double)x[i] - top);
    }
    return log(total) + (top - (double)x[target]);
}

/* KL = sum p (log p - log q) with log p = x - top - log sum.  Both logits are taken relative to
 * their own maximum, so the difference d of a term is small when the distributions are close and
 * nothing but the two logarithms of order d is subtracted at the end. */
static double divergence(const float *p, const float *q, uint64_t n) {
    const double top_p = (double)maximum_of(p, n), top_q = (double)maximum_of(q, n);
    const lanes64 shift_p = lanes64_set(top_p), shift_q = lanes64_set(top_q);
    lanes64 sum_p = lanes64_set(0.0), sum_q = sum_p, sum_d = sum_p;
    uint64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        const lanes64 a = lanes64_sub(lanes64_load_f32(p + i), shift_p);
        const lanes64 b = lanes64_sub(lanes64_load_f32(q + i), shift_q);
        const lanes64 e = lanes64_exp(a);
        sum_p = lanes64_add(sum_p, e);
        sum_q = lanes64_add(sum_q, lanes64_exp(b));
        sum_d = lanes64_fma(e, lanes64_sub(a, b), sum_d);
    }
    double total_p = lanes64_sum(sum_p), total_q = lanes64_sum(sum_q);
    double total_d = lanes64_sum(sum_d);
    for (; i < n; i++) {
        const double a = (double)p[i] - top_p, b = (double)q[i] - top_q;
        const double e = exp(a);
        total_p += e;
        total_q += exp(b);
        total_d += e * (a - b);
    }
    const double kl = total_d / total_p + log(total_q / total_p);
    return kl < 0.0 ? 0.0 : kl;
}

static void exp_f32(float *y, const float *x, uint64_t n) {
    for (uint64_t i = 0; i < n; i += LANES) {
        const uint64_t count = n - i < LANES ? n - i : LANES;
        lanes_store_tail(y + i, lanes_exp(lanes_load_tail(x + i, count, 0.0f)), count);
    }
}

static void exp_f64(double *y, const double *x, uint64_t n) {
    for (uint64_t i = 0; i < n; i += 8) {
        double buffer[8] = {0};
        const uint64_t count = n - i < 8 ? n - i : 8;
        memcpy(buffer, x + i, count * sizeof(double));
        lanes64_store(buffer, lanes64_exp(lanes64_load(buffer)));
        memcpy(y + i, buffer, count * sizeof(double));
    }
}

const ingot_cpu_math_ops ISA_NAME(ingot_cpu_math_) = {
    .norm = norm,
    .activate = activate,
    .add = add,
    .scale = scale_by,
    .rotate = rotate,
    .angles = angles,
    .softmax = softmax,
    .magnitude = magnitude,
    .is_finite = all_finite,
    .nll = nll,
    .argmax = argmax,
    .divergence = divergence,
    .exp_f32 = exp_f32,
    .exp_f64 = exp_f64,
};
