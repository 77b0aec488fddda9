/* What a scale search (kernels/cpu/isa_quantize.c, kernels/cuda/search.cu) may find for a group, by
 * the same search in FP64.
 *
 * A search refines the six candidates whose refitted scales remove most of the sum of d w^2.  What
 * is left of that sum is small where codes have many bits, and sums in FP32 know it to a few 2^-24
 * of the whole alone: at 7 bits to a hundredth of itself.  So candidates whose loss is as near to
 * that of the sixth are on the list or not as sums happen to be rounded, and one of them may become
 * the best when it is refined.  Hence two bounds: the least final loss of all that may be on the
 * list, and of those that surely are. */
#ifndef INGOT_SEARCH_REFERENCE_H
#define INGOT_SEARCH_REFERENCE_H

#include "quantize_inputs.h"

#define SEARCH_STEPS   32
#define SEARCH_WINDOWS 5
#define SEARCH_KEPT    6
#define SEARCH_REFITS  4
#define SEARCH_MOST    (SEARCH_STEPS * SEARCH_WINDOWS)

/* w[n] and their importance d[n], which is 0 where a weight is left out. */
typedef struct search_group {
    const float *w, *d;
    uint64_t n;
    unsigned top, half;
    ingot_dtype dtype; /* of the scale */
    bool is_free;      /* zero points are stored */
} search_group;

typedef struct search_sums {
    double d, dw, wc, cc, c, loss;
} search_sums;

/* Sums for the codes that a scale gives, which are of FP32 by definition, in FP64. */
static inline search_sums search_sum(const search_group *g, float scale, unsigned zero) {
    const float inverse = 1.0f / scale, low = -(float)zero, high = (float)(g->top - zero);
    search_sums s = {0};
    for (uint64_t i = 0; i < g->n; i++) {
        const double w = (double)g->w[i], d = (double)g->d[i];
        const double c = (double)rintf(fminf(fmaxf(g->w[i] * inverse, low), high));
        const double e = w - (double)scale * c;
        s.d += d;
        s.dw += d * w;
        s.wc += d * w * c;
        s.cc += d * c * c;
        s.c += d * c;
        s.loss += d * e * e;
    }
    return s;
}

/* The least loss on the way of one candidate through its refits; 0, less than any, where all codes
 * are the same: then rounding decides where the zero goes. */
static inline double search_refine(const search_group *g, float scale, unsigned zero) {
    double best = HUGE_VAL;
    for (int round = 0; round < SEARCH_REFITS; round++) {
        const float stored = ingot_scale_store(scale, g->dtype);
        if (stored == 0.0f) {
            break;
        }
        const search_sums s = search_sum(g, stored, zero);
        best = fmin(best, s.loss);
        const double determinant = s.d * s.cc - s.c * s.c;
        double shift = 0;
        if (g->is_free && determinant <= 1e-5 * s.d * s.cc) {
            return 0;
        }
        if (g->is_free) { /* w = slope c + m: the zero moves by -m / slope */
            const double slope = (s.d * s.wc - s.c * s.dw) / determinant;
            const double m = (s.dw - slope * s.c) / s.d;
            const double moved = slope != 0 ? rint((double)zero - m / slope) : (double)zero;
            const unsigned old = zero;
            zero = (unsigned)fmin(fmax(moved, 0), (double)g->top);
            shift = (double)old - (double)zero;
        }
        const double cc = s.cc + 2 * shift * s.c + shift * shift * s.d;
        if (!(cc > 0)) {
            break;
        }
        scale = (float)((s.wc + shift * s.dw) / cc);
        if (shift == 0 && ingot_scale_store(scale, g->dtype) == stored) {
            break;
        }
    }
    return best;
}

typedef struct search_candidate {
    float scale; /* refitted */
    unsigned zero;
    double loss; /* with it */
} search_candidate;

static inline void search_consider(search_candidate *list, unsigned *count, const search_group *g,
                                   double energy, float scale, unsigned zero) {
    if (fabsf(scale) > 0.0f) {
        const search_sums s = search_sum(g, scale, zero);
        if (s.cc > 0) {
            list[(*count)++] =
                (search_candidate){(float)(s.wc / s.cc), zero, energy - s.wc * s.wc / s.cc};
        }
    }
}

static inline unsigned search_candidates(search_candidate *list, const search_group *g,
                                         double energy, float low, float high) {
    unsigned count = 0;
    const float largest = fmaxf(-low, high), end = (float)g->half / (float)(g->half - 1);
    for (unsigned i = 0; !g->is_free && i <= SEARCH_STEPS; i++) {
        const float part =
            i < SEARCH_STEPS ? 0.5f + (end - 0.5f) * (float)i / (float)(SEARCH_STEPS - 1) : 1.0f;
        const float scale = largest * part / (float)g->half;
        search_consider(list, &count, g, energy, scale, g->half);
        search_consider(list, &count, g, energy, -scale, g->half);
    }
    for (unsigned i = 0; g->is_free && i < SEARCH_MOST; i++) {
        const float part = 0.35f + 0.75f * (float)(i / SEARCH_WINDOWS) / (float)(SEARCH_STEPS - 1);
        const float scale = (high - low) / (float)g->top * part;
        const float at_low = -low / scale, at_high = (float)g->top - high / scale;
        const float zero = rintf(at_low + (at_high - at_low) * (float)(i % SEARCH_WINDOWS) /
                                              (float)(SEARCH_WINDOWS - 1));
        search_consider(list, &count, g, energy, scale,
                        (unsigned)fminf(fmaxf(zero, 0.0f), (float)g->top));
    }
    return count;
}

static inline int search_compare(const void *a, const void *b) {
    const double x = ((const search_candidate *)a)->loss, y = ((const search_candidate *)b)->loss;
    return (x > y) - (x < y);
}

typedef struct search_bounds {
    double low, high; /* of the loss that a search may leave */
    double energy;    /* sum of d w^2 */
} search_bounds;

static inline search_bounds search_bounds_of(const search_group *g) {
    search_candidate list[SEARCH_MOST];
    float low = 0, high = 0;
    double energy = 0;
    for (uint64_t i = 0; i < g->n; i++) {
        low = fminf(low, g->w[i]);
        high = fmaxf(high, g->w[i]);
        energy += (double)g->d[i] * (double)g->w[i] * (double)g->w[i];
    }
    search_bounds out = {energy, energy, energy};
    const float largest = fmaxf(-low, high);
    if (largest == 0.0f) {
        return out;
    }
    /* Three sums of up to 128 values one after the other: errors of 2^-25 each that are like
     * random ones; four times what is expected of them. */
    const double doubt = 4 * 0x1p-24 * sqrt((double)(g->n < 128 ? g->n : 128)) * energy;
    const unsigned count = search_candidates(list, g, energy, low, high);
    qsort(list, count, sizeof *list, search_compare);
    const float plain = ingot_scale_store(
        g->is_free ? (high - low) / (float)g->top : largest / (float)(g->half - 1), g->dtype);
    if (plain != 0.0f) {
        const unsigned zero =
            g->is_free ? (unsigned)fminf(rintf(-low / plain), (float)g->top) : g->half;
        out.low = out.high = fmin(energy, search_sum(g, plain, zero).loss);
    }
    const double sixth = count >= SEARCH_KEPT ? list[SEARCH_KEPT - 1].loss : HUGE_VAL;
    const double next = count > SEARCH_KEPT ? list[SEARCH_KEPT].loss : HUGE_VAL;
    for (unsigned i = 0; i < count && list[i].loss <= sixth + doubt; i++) {
        const double loss = search_refine(g, list[i].scale, list[i].zero);
        out.low = fmin(out.low, loss);
        if (i < SEARCH_KEPT && list[i].loss < next - doubt) {
            out.high = fmin(out.high, loss);
        }
    }
    return out;
}

/* ---- whole matrices ---------------------------------------------------------------------------
 */

/* 1 where group `index` of row `row` of a searched matrix has a loss beyond its bounds.  What a
 * search sees of a residual r = w - s q in FP32 is off by some 2^-24 |w|; by Cauchy the sum of d
 * r^2 by that times its root and the root of the sum of d w^2. */
static inline unsigned search_is_outside(const float *w, const float *importance,
                                         const uint8_t *is_outlier, const ingot_quantized *q,
                                         const float *stored, uint64_t row, uint64_t index) {
    const uint64_t first = index * q->format.group, left = q->cols - first;
    const uint64_t n = left < q->format.group ? left : q->format.group;
    float *copy = calloc(2 * n, sizeof *copy);
    double loss = 0;
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t col = first + i;
        if (!is_outlier[col]) {
            const double e = (double)w[row * q->cols + col] - (double)stored[col];
            copy[i] = w[row * q->cols + col];
            copy[n + i] = importance != NULL ? importance[col] : 1.0f;
            loss += (double)copy[n + i] * e * e;
        }
    }
    const search_group g = {copy,
                            copy + n,
                            n,
                            (1u << q->format.bits) - 1,
                            1u << (q->format.bits - 1),
                            q->format.scale_dtype,
                            q->format.zero_mode == INGOT_ZERO_STORED};
    const search_bounds bounds = search_bounds_of(&g);
    const double rounding = 8 * 0x1p-24 * sqrt(bounds.energy);
    const double below = rounding * (sqrt(bounds.low) + rounding);
    const double above = rounding * (sqrt(bounds.high) + rounding);
    free(copy);
    return !(loss >= bounds.low - below && loss <= bounds.high + above);
}

/* How many groups of a matrix (host) that was searched have a loss that no search leaves. */
static inline unsigned search_outside(const float *w, const float *importance,
                                      const ingot_quantized *q) {
    float *stored = calloc(q->cols, sizeof *stored);
    uint8_t *is_outlier = calloc(q->cols, 1);
    unsigned outside = 0;
    for (uint64_t row = 0; row < q->rows; row++) {
        const uint64_t *ends = q->outliers.count != 0 ? q->outliers.row_ptr + row : NULL;
        memset(is_outlier, 0, q->cols);
        for (uint64_t k = ends != NULL ? ends[0] : 0; ends != NULL && k < ends[1]; k++) {
            is_outlier[q->outliers.col[k]] = 1;
        }
        ingot_quantized_row(stored, q, row);
        for (uint64_t index = 0; index < q->groups; index++) {
            outside += search_is_outside(w, importance, is_outlier, q, stored, row, index);
        }
    }
    free(stored);
    free(is_outlier);
    return outside;
}

/* Of so many groups, those that may lie outside: where a refit comes to lie between two scales that
 * can be stored, it may be rounded to either, and a candidate then goes another way. */
static inline uint64_t search_outside_most(uint64_t groups) {
    return 1 + groups / 5000;
}

#endif
