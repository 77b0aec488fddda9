/* Inner loops of quantization, compiled once per instruction set (macro ISA).  Written with
 * vectors of 16 floats on every one of them, so that sums have the same lanes everywhere; what
 * differs between instruction sets is fused multiply-add alone. */
#include "format/half.h"
#include "kernels/quantize.h"
#include "kernels/quantize_isa.h"

#include <math.h>
#if defined(__AVX512F__) || defined(__F16C__)
#include <immintrin.h>
#endif

#define JOIN_(a, b) a##_##b
#define JOIN(a, b)  JOIN_(a, b)
#define LANES       INGOT_QUANTIZE_LANES
#define TILE        INGOT_QUANTIZE_TILE

typedef float vf __attribute__((vector_size(64)));
typedef float vf_u __attribute__((vector_size(64), aligned(4)));
typedef int32_t vi __attribute__((vector_size(64)));
typedef uint8_t vb __attribute__((vector_size(16)));
typedef uint8_t vb_u __attribute__((vector_size(16), aligned(1)));
typedef float vf8 __attribute__((vector_size(32)));
typedef float vf8_u __attribute__((vector_size(32), aligned(4)));
typedef double vd8 __attribute__((vector_size(64)));

#define LADDER_STEPS 32 /* candidates of either sign */
#define WINDOWS      5  /* zero points tried for each scale */
#define KEPT         6  /* candidates that are refined */
#define REFITS       4  /* rounds of refinement, at most */

static inline vf load(const float *p) {
    return *(const vf_u *)p;
}
static inline vf splat(float x) {
    return x - (vf){0};
}
/* a where mask is set, else b. */
#define pick(mask, a, b) ((vf)(((vi)(a) & (mask)) | ((vi)(b) & ~(mask))))
static inline vf minimum(vf a, vf b) {
#ifdef __AVX512F__
    return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return pick(a < b, a, b);
#endif
}
static inline vf maximum(vf a, vf b) {
#ifdef __AVX512F__
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return pick(a > b, a, b);
#endif
}
/* To nearest, ties to even; |x| < 2^22. */
static inline vf nearest(vf x) {
    const float magic = 12582912.0f;
    return (x + magic) - magic;
}
/* Lanes added in a fixed order, in FP64. */
static inline double sum(vf v) {
    double total = 0;
    for (unsigned i = 0; i < LANES; i++) {
        total += (double)v[i];
    }
    return total;
}

static void to_f32(float *out, const void *in, ingot_dtype dtype, uint64_t count) {
    uint64_t i = 0;
#ifdef __F16C__
    if (dtype == INGOT_F16) {
        const uint16_t *half = in;
        for (; i + 8 <= count; i += 8) {
            const __m128i h = _mm_loadu_si128((const __m128i_u *)(half + i));
            _mm256_storeu_ps(out + i, _mm256_cvtph_ps(h));
        }
    }
#endif
    if (dtype == INGOT_BF16) {
        const uint16_t *bits = in;
        for (; i < count; i++) {
            out[i] = ingot_bf16_to_f32(bits[i]);
        }
    }
    if (i < count) {
        const uint8_t *rest = (const uint8_t *)in + i * ingot_dtype_bytes(dtype);
        ingot_convert_to_f32(out + i, rest, dtype, count - i);
    }
}

static uint64_t first_not_finite(const float *values, uint64_t count) {
    const vi exponent = (vi){0} + 0x7f800000;
    uint64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const vi bad = ((vi)load(values + i) & exponent) == exponent;
        int any = 0;
        for (unsigned k = 0; k < LANES; k++) {
            any |= bad[k];
        }
        if (any != 0) {
            break;
        }
    }
    for (; i < count; i++) {
        if (!isfinite(values[i])) {
            return i;
        }
    }
    return count;
}

static void range(float *low, float *high, const float *w, uint64_t count) {
    float a = w[0], b = w[0];
    uint64_t i = 0;
    if (count >= LANES) {
        vf va = load(w), vb_ = va;
        for (i = LANES; i + LANES <= count; i += LANES) {
            const vf x = load(w + i);
            va = minimum(x, va);
            vb_ = maximum(x, vb_);
        }
        for (unsigned k = 0; k < LANES; k++) {
            a = va[k] < a ? va[k] : a;
            b = vb_[k] > b ? vb_[k] : b;
        }
    }
    for (; i < count; i++) {
        a = w[i] < a ? w[i] : a;
        b = w[i] > b ? w[i] : b;
    }
    *low = a;
    *high = b;
}

static void codes(uint8_t *out, const float *w, uint64_t count, float scale, unsigned zero,
                  unsigned bits) {
    const float low = -(float)zero, high = (float)((1u << bits) - 1 - zero);
    if (scale == 0.0f) {
        memset(out, (int)zero, count);
        return;
    }
    uint64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const vf x = minimum(maximum(load(w + i) / scale, splat(low)), splat(high));
        const vi q = __builtin_convertvector(nearest(x) - low, vi);
        *(vb_u *)(out + i) = __builtin_convertvector(q, vb);
    }
    for (; i < count; i++) {
        float x = w[i] / scale;
        x = x < low ? low : x;
        x = x > high ? high : x;
        out[i] = (uint8_t)(rintf(x) - low);
    }
}

/* ---- scale search ------------------------------------------------------------------------- */

/* Sums over a group for the codes that `inverse`, low and high give, c = q - z:
 * w c, c c, c (all weighted) and, when scale is not 0, the loss. */
typedef struct fit {
    double wc, cc, c, loss;
} fit;

static inline void fit_group(fit *out, const float *w, const float *d, uint64_t n, float inverse,
                             float low, float high) {
    vf wc = {0}, cc = {0}, cs = {0};
    for (uint64_t i = 0; i < n; i += LANES) {
        const vf x = load(w + i), weight = load(d + i);
        const vf c = nearest(minimum(maximum(x * inverse, splat(low)), splat(high)));
        const vf t = weight * c;
        wc += t * x;
        cc += t * c;
        cs += t;
    }
    out->wc = sum(wc);
    out->cc = sum(cc);
    out->c = sum(cs);
}

static inline void loss_group(fit *out, const float *w, const float *d, uint64_t n, float scale,
                              float low, float high) {
    const float inverse = 1.0f / scale;
    vf wc = {0}, cc = {0}, cs = {0}, loss = {0};
    for (uint64_t i = 0; i < n; i += LANES) {
        const vf x = load(w + i), weight = load(d + i);
        const vf c = nearest(minimum(maximum(x * inverse, splat(low)), splat(high)));
        const vf t = weight * c, e = x - scale * c;
        wc += t * x;
        cc += t * c;
        cs += t;
        loss += weight * e * e;
    }
    out->wc = sum(wc);
    out->cc = sum(cc);
    out->c = sum(cs);
    out->loss = sum(loss);
}

/* The best few candidates by what their refitted scale would remove from the loss. */
typedef struct shortlist {
    double gain[KEPT];
    float scale[KEPT];
    unsigned zero[KEPT];
} shortlist;

static void shortlist_add(shortlist *list, double gain, float scale, unsigned zero) {
    if (!(gain > list->gain[KEPT - 1])) {
        return;
    }
    unsigned at = KEPT - 1;
    for (; at > 0 && gain > list->gain[at - 1]; at--) {
        list->gain[at] = list->gain[at - 1];
        list->scale[at] = list->scale[at - 1];
        list->zero[at] = list->zero[at - 1];
    }
    list->gain[at] = gain;
    list->scale[at] = scale;
    list->zero[at] = zero;
}

static void consider(shortlist *list, const float *w, const float *d, uint64_t n, float scale,
                     unsigned zero, unsigned top) {
    fit f;
    if (!(fabsf(scale) > 0.0f)) {
        return;
    }
    fit_group(&f, w, d, n, 1.0f / scale, -(float)zero, (float)(top - zero));
    if (f.cc > 0) {
        shortlist_add(list, f.wc * f.wc / f.cc, (float)(f.wc / f.cc), zero);
    }
}

/* Tries one stored scale; *f holds its sums afterwards. */
static void attempt(ingot_group_choice *best, fit *f, const float *w, const float *d, uint64_t n,
                    float scale, unsigned zero, unsigned top) {
    loss_group(f, w, d, n, scale, -(float)zero, (float)(top - zero));
    if (f->loss < (double)best->loss) {
        *best = (ingot_group_choice){.scale = scale, .zero = zero, .loss = (float)f->loss};
    }
}

static void refine(ingot_group_choice *best, const float *w, const float *d, uint64_t n,
                   float scale, unsigned zero, unsigned top, bool is_free, double weight,
                   double mean, ingot_dtype dtype) {
    for (unsigned round = 0; round < REFITS; round++) {
        const float stored = ingot_scale_store(scale, dtype);
        fit f;
        if (stored == 0.0f) {
            return;
        }
        attempt(best, &f, w, d, n, stored, zero, top);
        const unsigned old_zero = zero;
        const double determinant = weight * f.cc - f.c * f.c;
        double shift = 0;
        if (is_free && determinant > 0) { /* w = s c + m: the zero moves by -m / s */
            const double s = (weight * f.wc - f.c * mean) / determinant;
            const double m = (mean - s * f.c) / weight;
            double moved = s != 0 ? rint((double)zero - m / s) : (double)zero;
            moved = moved < 0 ? 0 : moved > (double)top ? (double)top : moved;
            zero = (unsigned)moved;
            shift = (double)old_zero - (double)zero;
        }
        const double cc = f.cc + 2 * shift * f.c + shift * shift * weight;
        const double wc = f.wc + shift * mean;
        if (!(cc > 0)) {
            return;
        }
        scale = (float)(wc / cc);
        if (zero == old_zero && ingot_scale_store(scale, dtype) == stored) {
            return;
        }
    }
}

static void search(ingot_group_choice *choice, const float *w, const float *d, uint64_t n,
                   unsigned bits, ingot_zero_mode zero_mode, ingot_dtype dtype) {
    const unsigned top = (1u << bits) - 1, half = 1u << (bits - 1);
    const bool is_free = zero_mode == INGOT_ZERO_STORED;
    vf total = {0}, product = {0}, energy = {0};
    for (uint64_t i = 0; i < n; i += LANES) {
        const vf x = load(w + i), weight = load(d + i);
        total += weight;
        product += weight * x;
        energy += weight * x * x;
    }
    const double weight = sum(total), mean = sum(product);
    float low, high;
    range(&low, &high, w, n);
    low = low < 0 ? low : 0;
    high = high > 0 ? high : 0;
    *choice = (ingot_group_choice){.scale = 0, .zero = half, .loss = (float)sum(energy)};
    const float largest = -low > high ? -low : high;
    if (largest == 0.0f) {
        return;
    }
    shortlist list = {.gain = {-1, -1, -1, -1, -1, -1}};
    if (!is_free) {
        const float steps = LADDER_STEPS - 1;
        const float end = (float)half / (float)(half - 1); /* max|w| on code 2^(bits-1) - 1 */
        for (unsigned i = 0; i < LADDER_STEPS; i++) {
            const float part = 0.5f + (end - 0.5f) * (float)i / steps;
            const float scale = largest * part / (float)half;
            consider(&list, w, d, n, scale, half, top);
            consider(&list, w, d, n, -scale, half, top);
        }
        consider(&list, w, d, n, largest / (float)half, half, top);
        consider(&list, w, d, n, -largest / (float)half, half, top);
        attempt(choice, &(fit){0}, w, d, n, ingot_scale_store(largest / (float)(half - 1), dtype),
                half, top);
    } else {
        for (unsigned i = 0; i < LADDER_STEPS; i++) {
            const float part = 0.35f + 0.75f * (float)i / (LADDER_STEPS - 1);
            const float scale = (high - low) / (float)top * part;
            /* the window of codes slid from one end of the range to the other */
            const float at_low = -low / scale, at_high = (float)top - high / scale;
            for (unsigned k = 0; k < WINDOWS; k++) {
                float zero = rintf(at_low + (at_high - at_low) * (float)k / (WINDOWS - 1));
                zero = zero < 0 ? 0 : zero > (float)top ? (float)top : zero;
                consider(&list, w, d, n, scale, (unsigned)zero, top);
            }
        }
        const float scale = ingot_scale_store((high - low) / (float)top, dtype);
        if (scale != 0.0f) {
            const float zero = rintf(-low / scale);
            attempt(choice, &(fit){0}, w, d, n, scale, zero > (float)top ? top : (unsigned)zero,
                    top);
        }
    }
    for (unsigned i = 0; i < KEPT && list.gain[i] >= 0; i++) {
        refine(choice, w, d, n, list.scale[i], list.zero[i], top, is_free, weight, mean, dtype);
    }
}

/* ---- GPTQ --------------------------------------------------------------------------------- */

static void feedback(uint8_t *out, float *e, const float *t, const float *w, const float *a,
                     uint64_t stride, uint64_t columns, const float *scale, const float *zero,
                     unsigned bits, const uint8_t *keep, float *kept, ingot_dtype keep_dtype) {
    const float top = (float)((1u << bits) - 1);
    for (uint64_t j = 0; j < columns; j++) {
        vf target[TILE / LANES];
        for (unsigned v = 0; v < TILE / LANES; v++) {
            target[v] = load(t + j * TILE + v * LANES);
        }
        for (uint64_t k = 0; k < j; k++) {
            const float factor = a[k * stride + j];
            for (unsigned v = 0; v < TILE / LANES; v++) {
                target[v] += load(e + k * TILE + v * LANES) * factor;
            }
        }
        for (unsigned v = 0; v < TILE / LANES; v++) {
            const uint64_t at = j * TILE + v * LANES;
            const vf s = load(scale + v * LANES), z = load(zero + v * LANES);
            const vi is_zero = s == 0.0f;
            const vf divisor = pick(is_zero, splat(1.0f), s);
            const vf x = pick(is_zero, (vf){0}, target[v] / divisor);
            const vf c = nearest(minimum(maximum(x, -z), top - z));
            *(vb_u *)(out + at) = __builtin_convertvector(__builtin_convertvector(c + z, vi), vb);
            *(vf_u *)(e + at) = load(w + at) - s * c;
            if (keep == NULL) {
                continue;
            }
            for (unsigned lane = 0; lane < LANES; lane++) {
                if (keep[at + lane] != 0) {
                    kept[at + lane] = ingot_outlier_store(target[v][lane], keep_dtype);
                    out[at + lane] = (uint8_t)z[lane];
                    e[at + lane] = w[at + lane] - kept[at + lane];
                }
            }
        }
    }
}

/* ---- polish ------------------------------------------------------------------------------- */

static inline vf widen(const uint8_t *bytes) {
    const vi wide = __builtin_convertvector(*(const vb_u *)bytes, vi);
    return __builtin_convertvector(wide, vf);
}

static void descend(uint8_t *code, float *r, const float *gram, uint64_t stride, uint64_t columns,
                    const float *scale, const float *zero, unsigned bits, const uint8_t *keep) {
    const float top = (float)((1u << bits) - 1);
    for (uint64_t j = 0; j < columns; j++) {
        const float h = gram[j * stride + j];
        for (unsigned v = 0; v < TILE / LANES && h > 0.0f; v++) {
            const uint64_t at = j * TILE + v * LANES;
            const vf s = load(scale + v * LANES), z = load(zero + v * LANES), own = load(r + at);
            const vi is_fixed = (s == 0.0f) | (widen(keep + at) != 0.0f);
            const vf step = pick(is_fixed, splat(1.0f), s * h);
            const vf old = widen(code + at) - z;
            const vf wanted = nearest(minimum(maximum(old + own / step, -z), top - z));
            const vf change = s * (wanted - old);
            const vi is_better = ~is_fixed & (change * (2.0f * own - change * h) > 0.0f);
            const vf d = pick(is_better, change, (vf){0});
            int any = 0;
            for (unsigned lane = 0; lane < LANES; lane++) {
                any |= is_better[lane];
            }
            if (any == 0) {
                continue;
            }
            const vf now = pick(is_better, wanted, old) + z;
            *(vb_u *)(code + at) = __builtin_convertvector(__builtin_convertvector(now, vi), vb);
            for (uint64_t i = j + 1; i < columns; i++) {
                vf_u *other = (vf_u *)(r + i * TILE + v * LANES);
                *other -= d * gram[j * stride + i];
            }
        }
    }
}

/* ---- errors ------------------------------------------------------------------------------- */

static void row(float *out, const uint8_t *q, uint64_t cols, uint64_t group, const float *scales,
                const uint8_t *zeros) {
    for (uint64_t first = 0, g = 0; first < cols; first += group, g++) {
        const uint64_t end = first + group < cols ? first + group : cols;
        const float scale = scales[g], zero = (float)zeros[g];
        uint64_t i = first;
        for (; i + LANES <= end; i += LANES) {
            const vi code = __builtin_convertvector(*(const vb_u *)(q + i), vi);
            *(vf_u *)(out + i) = scale * (__builtin_convertvector(code, vf) - zero);
        }
        for (; i < end; i++) {
            out[i] = scale * ((float)q[i] - zero);
        }
    }
}

static inline vd8 wide(const float *p) {
    return __builtin_convertvector((vf8)(*(const vf8_u *)p), vd8);
}

static void error_row(double sums[2], const float *source, float row_fold, const float *column_fold,
                      const float *stored, uint64_t cols) {
    vd8 difference[2] = {{0}, {0}}, norm[2] = {{0}, {0}};
    const double fold = (double)row_fold;
    uint64_t i = 0;
    for (; i + LANES <= cols; i += LANES) {
        for (unsigned v = 0; v < 2; v++) {
            vd8 w = wide(source + i + 8 * v) * fold;
            if (column_fold != NULL) {
                w = w * wide(column_fold + i + 8 * v);
            }
            const vd8 e = w - wide(stored + i + 8 * v);
            difference[v] += e * e;
            norm[v] += w * w;
        }
    }
    for (unsigned v = 0; v < 2; v++) {
        for (unsigned k = 0; k < 8; k++) {
            sums[0] += difference[v][k];
            sums[1] += norm[v][k];
        }
    }
    for (; i < cols; i++) {
        const double w =
            (double)source[i] * fold * (column_fold != NULL ? (double)column_fold[i] : 1.0);
        const double e = w - (double)stored[i];
        sums[0] += e * e;
        sums[1] += w * w;
    }
}

static double dot(const float *a, const float *b, uint64_t count) {
    vd8 lanes[2] = {{0}, {0}};
    double total = 0;
    uint64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        lanes[0] += wide(a + i) * wide(b + i);
        lanes[1] += wide(a + i + 8) * wide(b + i + 8);
    }
    for (unsigned v = 0; v < 2; v++) {
        for (unsigned k = 0; k < 8; k++) {
            total += lanes[v][k];
        }
    }
    for (; i < count; i++) {
        total += (double)a[i] * (double)b[i];
    }
    return total;
}

#define NAME_(x) #x
#define NAME(x)  NAME_(x)
const ingot_quantize_ops JOIN(ingot_quantize_ops, ISA) = {
    .name = NAME(ISA),
    .to_f32 = to_f32,
    .first_not_finite = first_not_finite,
    .range = range,
    .codes = codes,
    .search = search,
    .feedback = feedback,
    .descend = descend,
    .row = row,
    .error_row = error_row,
    .dot = dot,
};
