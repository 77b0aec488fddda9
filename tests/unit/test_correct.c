/* Target correction (convert/correct.h) against the errors themselves, in FP64: the share is the
 * best one for the judges, and the target of all windows is the one nearest to what the layer
 * should put out. */
#include "convert/correct.h"
#include "quantize_inputs.h"

#include <math.h>
#include <string.h>

#define FITTED 260u
#define JUDGES 70u
#define TOKENS (FITTED + JUDGES)

/* A layer of W[rows][n] with inputs of both streams, and what else is added to its output. */
typedef struct layer {
    uint64_t rows, n;
    float *w, *exact, *prefix;           /* inputs [TOKENS][n] */
    float *exact_stream, *prefix_stream; /* [TOKENS][rows] */
} layer;

static float *normals(ingot_arena *arena, uint64_t count, double scale) {
    float *x = NULL;
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&x, count * sizeof *x) == INGOT_OK);
    for (uint64_t i = 0; i < count; i++) {
        x[i] = (float)(scale * input_normal());
    }
    return x;
}

/* trust: how much of the drift of the fitted windows the judges share. */
static layer make_layer(ingot_arena *arena, uint64_t rows, uint64_t n, double trust) {
    layer l = {.rows = rows,
               .n = n,
               .w = normals(arena, rows * n, 0.3),
               .exact = normals(arena, TOKENS * n, 1),
               .prefix = normals(arena, TOKENS * n, 0.05),
               .exact_stream = normals(arena, TOKENS * rows, 1),
               .prefix_stream = normals(arena, TOKENS * rows, 0.05)};
    const float *mix = normals(arena, n * n, 0.04), *bend = normals(arena, n * rows, 0.04);
    for (uint64_t t = 0; t < TOKENS; t++) {
        const float part = t < FITTED ? 1.0f : (float)trust;
        for (uint64_t i = 0; i < n; i++) {
            float sum = l.prefix[t * n + i] + l.exact[t * n + i];
            for (uint64_t j = 0; j < n; j++) {
                sum += part * mix[i * n + j] * l.exact[t * n + j];
            }
            l.prefix[t * n + i] = sum;
        }
        for (uint64_t r = 0; r < rows; r++) {
            float sum = l.prefix_stream[t * rows + r] + l.exact_stream[t * rows + r];
            for (uint64_t j = 0; j < n; j++) {
                sum += part * bend[r * n + j] * l.exact[t * n + j];
            }
            l.prefix_stream[t * rows + r] = sum;
        }
    }
    return l;
}

/* Squared error of tokens first .. end-1 when T takes the place of W. */
static double error_of(const layer *l, const float *target, bool has_residual, uint64_t first,
                       uint64_t end) {
    double total = 0;
    for (uint64_t t = first; t < end; t++) {
        for (uint64_t r = 0; r < l->rows; r++) {
            const float *w = l->w + r * l->n, *v = target + r * l->n;
            double e = has_residual ? (double)l->exact_stream[t * l->rows + r] -
                                          (double)l->prefix_stream[t * l->rows + r]
                                    : 0;
            for (uint64_t j = 0; j < l->n; j++) {
                e += (double)w[j] * (double)l->exact[t * l->n + j] -
                     (double)v[j] * (double)l->prefix[t * l->n + j];
            }
            total += e * e;
        }
    }
    return total;
}

/* Drift of the input, or of the output and the stream, of tokens first .. end-1. */
static float *drift_of(const ingot_backend *b, const layer *l, bool is_of_output, uint64_t first,
                       uint64_t end, ingot_arena *arena) {
    const uint64_t p = is_of_output ? l->rows : l->n;
    float *sum = normals(arena, p * l->n, 0), *y = normals(arena, TOKENS * l->rows, 0);
    const float *x = l->prefix + first * l->n;
    for (uint64_t i = 0; is_of_output && i < TOKENS * l->rows; i++) {
        const uint64_t t = i / l->rows, r = i % l->rows;
        y[i] = l->exact_stream[i];
        for (uint64_t j = 0; j < l->n; j++) {
            y[i] += l->w[r * l->n + j] * (l->exact[t * l->n + j] - l->prefix[t * l->n + j]);
        }
    }
    CU_ASSERT(b->ops->drift(b->context, sum, is_of_output ? y + first * p : l->exact + first * p,
                            is_of_output ? l->prefix_stream + first * p : x, x, end - first, p,
                            l->n) == INGOT_OK);
    return sum;
}

/* D H^-1 (or P H^-1) of tokens 0 .. end-1. */
static float *solved(const ingot_backend *b, const layer *l, bool is_of_output, uint64_t end,
                     ingot_arena *arena) {
    float *gram = normals(arena, l->n * l->n, 0);
    float *x = drift_of(b, l, is_of_output, 0, end, arena);
    unsigned step;
    CU_ASSERT(b->ops->gram(b->context, gram, NULL, NULL, l->prefix, end, l->n) == INGOT_OK);
    CU_ASSERT(b->ops->gram_solve(b->context, x, &step, is_of_output ? l->rows : l->n, gram, l->n,
                                 arena) == INGOT_OK);
    CU_ASSERT(step == 0);
    return x;
}

static void check_layer(const ingot_backend *b, double trust, bool has_residual) {
    ingot_arena *arena = new_arena();
    const layer l = make_layer(arena, 15, 24, trust);
    const uint64_t n = l.n, count = l.rows * n;
    float *target = normals(arena, count, 1), *gram = normals(arena, n * n, 0);
    double share, gain;
    CU_ASSERT(b->ops->gram(b->context, gram, NULL, NULL, l.prefix + FITTED * n, JUDGES, n) ==
              INGOT_OK);
    ingot_gram_fold(gram, gram, NULL, n, NULL);
    const ingot_drift drift = {.is_of_output = has_residual,
                               .solved = solved(b, &l, has_residual, TOKENS, arena),
                               .fitted = solved(b, &l, has_residual, FITTED, arena),
                               .judge_gram = gram,
                               .judge_drift = drift_of(b, &l, has_residual, FITTED, TOKENS, arena)};
    const ingot_rank rank = {.size = 1, .backend = b};
    CU_ASSERT(ingot_correct(target, &share, &gain, &drift, l.w, 0, l.rows, n, &rank, arena) ==
              INGOT_OK);
    CU_ASSERT(share >= 0 && share <= 1 && gain >= 0);
    CU_ASSERT(trust > 0 || share < 0.2);
    CU_ASSERT(trust < 1 || share > 0.8);
    { /* no other share of the correction fitted without them serves the judges */
        const double none = error_of(&l, l.w, has_residual, FITTED, TOKENS);
        float *trial = normals(arena, count, 0);
        double best = INFINITY, best_share = 0, norm = 0;
        for (unsigned i = 0; i <= 50; i++) {
            memcpy(trial, l.w, count * sizeof *trial);
            CU_ASSERT(has_residual || b->ops->multiply_add(b->context, trial, (float)i / 50.0f, l.w,
                                                           drift.fitted, l.rows, n, n) == INGOT_OK);
            for (uint64_t k = 0; has_residual && k < count; k++) {
                trial[k] += (float)i / 50.0f * drift.fitted[k];
            }
            const double error = error_of(&l, trial, has_residual, FITTED, TOKENS);
            best_share = error < best ? i / 50.0 : best_share;
            best = error < best ? error : best;
        }
        CU_ASSERT(fabs(share - best_share) <= 0.011);
        for (uint64_t t = FITTED; t < TOKENS; t++) {
            for (uint64_t r = 0; r < l.rows; r++) {
                double y = 0;
                for (uint64_t j = 0; j < n; j++) {
                    y += (double)l.w[r * n + j] * (double)l.prefix[t * n + j];
                }
                norm += y * y;
            }
        }
        /* the grid misses the best share by at most 0.01 */
        CU_ASSERT(fabs(gain * gain - (none - best) / norm) <= 2e-3 * none / norm);
    }
    if (share > 0.8) { /* and the target is nearly the best matrix for all windows */
        const double error = error_of(&l, target, has_residual, 0, TOKENS);
        CU_ASSERT(error < 0.5 * error_of(&l, l.w, has_residual, 0, TOKENS));
    }
    ingot_arena_destroy(arena);
}

static void shares(void) {
    ingot_backend backend;
    CU_ASSERT_FATAL(ingot_backend_open(&backend, "cpu", 2, NULL) == INGOT_OK);
    for (unsigned i = 0; i < 2; i++) {
        check_layer(&backend, 1, i == 1);
        check_layer(&backend, 0.5, i == 1);
        check_layer(&backend, 0, i == 1);
        check_layer(&backend, -1, i == 1); /* made worse by it: nothing is done */
    }
    ingot_backend_close(&backend);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"shares and targets", shares},
        CU_TEST_INFO_NULL,
    };
    input_start("correct");
    return suite_run("correct", tests);
}
