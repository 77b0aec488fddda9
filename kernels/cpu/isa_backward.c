/* Gradients of the row-wise operations of isa_math.c, compiled once per x86-64 level. */
#include "kernels/cpu/isa_lanes.h"

#include <math.h>

/* ---- norms ------------------------------------------------------------------------------- */

/* With y = h w, h = (x - mean) f, f = 1 / sqrt(mean (x - mean)^2 + eps) and g = dy w:
 * dx = f (g - mean g - h mean(g h)); RMS norms have no mean.  Sums in FP64. */
static void norm_row(float *dx, const float *dy, const float *x, const float *weight,
                     ingot_norm_kind kind, float eps, uint64_t n) {
    const float plus = kind == INGOT_NORM_RMS_PLUS_ONE ? 1.0f : 0.0f;
    const bool has_mean = kind == INGOT_NORM_LAYER;
    double mean = 0, square = 0, slope = 0, along = 0;
    for (uint64_t i = 0; has_mean && i < n; i++) {
        mean += (double)x[i];
    }
    mean /= (double)n;
    for (uint64_t i = 0; i < n; i++) {
        const double v = (double)x[i] - mean, g = (double)dy[i] * (double)(weight[i] + plus);
        square += v * v;
        slope += g;
        along += g * v;
    }
    const double factor = 1.0 / sqrt(square / (double)n + (double)eps);
    const float f = (float)factor, shift = (float)mean;
    const float minus = has_mean ? (float)(slope / (double)n) : 0.0f;
    const float turn = (float)(along * factor * factor / (double)n);
    for (uint64_t i = 0; i < n; i++) {
        dx[i] = f * (dy[i] * (weight[i] + plus) - minus - (x[i] - shift) * turn);
    }
}

/* ---- activations ------------------------------------------------------------------------- */

/* The value of an activation and its derivative. */
typedef struct curve {
    lanes value, slope;
} curve;

/* x l(u) with l the logistic function, and l + x l (1 - l) u': the gates of isa_math.c. */
INLINE curve logistic(lanes x, lanes u, lanes u_slope) {
    const lanes one = lanes_set(1.0f);
    const lanes e = lanes_exp(lanes_mul(u, lanes_set(-1.0f)));
    const lanes gate = lanes_div(one, lanes_add(one, e));
    const lanes rest = lanes_fma(gate, lanes_set(-1.0f), one);
    const lanes turn = lanes_mul(lanes_mul(x, u_slope), lanes_mul(gate, rest));
    return (curve){lanes_mul(x, gate), lanes_add(gate, turn)};
}

INLINE curve silu(lanes x) {
    return logistic(x, x, lanes_set(1.0f));
}

INLINE curve gelu_tanh(lanes x) {
    const float root = 2.0f * 0.7978845608f, cube = root * 0.044715f;
    const lanes square = lanes_mul(x, x);
    return logistic(x, lanes_mul(x, lanes_fma(square, lanes_set(cube), lanes_set(root))),
                    lanes_fma(square, lanes_set(3.0f * cube), lanes_set(root)));
}

INLINE curve relu(lanes x) {
    float v[LANES], slope[LANES];
    lanes_store(v, x);
    for (unsigned i = 0; i < LANES; i++) {
        slope[i] = v[i] > 0.0f ? 1.0f : 0.0f;
    }
    return (curve){lanes_max(lanes_set(0.0f), x), lanes_load(slope)};
}

/* 0.5 x erfc(-x / sqrt 2), derivative 0.5 erfc(-x / sqrt 2) + x exp(-x^2 / 2) / sqrt(2 pi) */
INLINE curve gelu(lanes x) {
    float v[LANES], value[LANES], slope[LANES];
    lanes_store(v, x);
    for (unsigned i = 0; i < LANES; i++) {
        const float half = 0.5f * erfcf(-0.7071067812f * v[i]);
        value[i] = v[i] * half;
        slope[i] = half + v[i] * 0.3989422804f * expf(-0.5f * v[i] * v[i]);
    }
    return (curve){lanes_load(value), lanes_load(slope)};
}

#define ACTIVATE(function)                                                                         \
    for (uint64_t i = 0; i < n; i += LANES) {                                                      \
        const uint64_t count = n - i < LANES ? n - i : LANES;                                      \
        const lanes slope = lanes_load_tail(d + i, count, 0.0f);                                   \
        const curve c = function(lanes_load_tail(gate + i, count, 0.0f));                          \
        lanes along = lanes_mul(slope, c.slope);                                                   \
        if (up != NULL) {                                                                          \
            along = lanes_mul(along, lanes_load_tail(up + i, count, 0.0f));                        \
            lanes_store_tail(up + i, lanes_mul(slope, c.value), count);                            \
        }                                                                                          \
        lanes_store_tail(gate + i, along, count);                                                  \
    }

static void activate(float *gate, float *up, const float *d, ingot_activation kind, uint64_t n) {
    switch (kind) {
    case INGOT_ACT_SILU:
        ACTIVATE(silu)
        break;
    case INGOT_ACT_GELU:
        ACTIVATE(gelu)
        break;
    case INGOT_ACT_GELU_TANH:
        ACTIVATE(gelu_tanh)
        break;
    case INGOT_ACT_RELU:
        ACTIVATE(relu)
        break;
    }
}

/* ---- attention --------------------------------------------------------------------------- */

/* Bounded scores are c tanh(t / c), whose derivative is 1 - tanh^2. */
static void softmax_row(float *score, float *slope, uint64_t n, float scale, float softcap,
                        float log_sum, float delta) {
    const bool is_capped = softcap > 0.0f;
    const lanes minus = lanes_set(-log_sum), less = lanes_set(-delta), by = lanes_set(scale);
    for (uint64_t i = 0; i < n; i += LANES) {
        const uint64_t count = n - i < LANES ? n - i : LANES;
        lanes t = lanes_mul(lanes_load_tail(score + i, count, 0.0f), by);
        lanes turn = by;
        if (is_capped) {
            float v[LANES], factor[LANES];
            lanes_store(v, t);
            for (unsigned k = 0; k < LANES; k++) {
                const float bend = tanhf(v[k] / softcap);
                v[k] = softcap * bend;
                factor[k] = scale * (1.0f - bend * bend);
            }
            t = lanes_load(v);
            turn = lanes_load(factor);
        }
        const lanes weight = lanes_exp(lanes_add(t, minus));
        const lanes along = lanes_add(lanes_load_tail(slope + i, count, 0.0f), less);
        lanes_store_tail(score + i, weight, count);
        lanes_store_tail(slope + i, lanes_mul(lanes_mul(along, weight), turn), count);
    }
}

const ingot_cpu_backward_ops ISA_NAME(ingot_cpu_backward_) = {
    .norm = norm_row,
    .activate = activate,
    .softmax = softmax_row,
};
