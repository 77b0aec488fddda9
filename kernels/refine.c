/* Targets that make up for drift: solving with H, and products (kernels/refine.h). */
#include "kernels/refine.h"

#include "common/sizes.h"
#include "kernels/quantize_internal.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

/* ---- solving -------------------------------------------------------------------------------- */

typedef struct solve_task {
    float *x;
    const float *lower;   /* [n][n], or */
    const double *lower2; /* the same in FP64 */
    double *rows64;       /* [threads][TILE][n], with lower2 */
    uint64_t rows, n;
} solve_task;

/* X H^-1 = X L^-T L^-1 for a tile of rows. */
static void solve_tile(void *context, size_t tile, unsigned worker) {
    const solve_task *t = context;
    const uint64_t first = tile * INGOT_QUANTIZE_TILE;
    const uint64_t rows = ingot_tile_end(tile, t->rows) - first;
    const int m = (int)rows, n = (int)t->n;
    float *x = t->x + first * t->n;
    if (t->lower != NULL) {
        cblas_strsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, m, n, 1.0f,
                    t->lower, n, x, n);
        cblas_strsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, m, n, 1.0f,
                    t->lower, n, x, n);
        return;
    }
    double *wide = t->rows64 + (uint64_t)worker * INGOT_QUANTIZE_TILE * t->n;
    for (uint64_t i = 0; i < rows * t->n; i++) {
        wide[i] = (double)x[i];
    }
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, m, n, 1.0,
                t->lower2, n, wide, n);
    cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, m, n, 1.0,
                t->lower2, n, wide, n);
    for (uint64_t i = 0; i < rows * t->n; i++) {
        x[i] = (float)wide[i];
    }
}

static double damped(const float *gram, uint64_t n, uint64_t i, uint64_t j, double damping,
                     double mean) {
    const double value = (double)gram[i * n + j];
    return i != j ? value : ingot_gptq_damped(value > 0 ? value : mean, damping, mean);
}

static bool factor_f32(float *l, const float *gram, uint64_t n, double damping, double mean) {
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j <= i; j++) {
            l[i * n + j] = (float)damped(gram, n, i, j, damping, mean);
        }
    }
    return ingot_cholesky_f32(l, n);
}

static bool factor_f64(double *l, const float *gram, uint64_t n, double damping, double mean) {
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j <= i; j++) {
            l[i * n + j] = damped(gram, n, i, j, damping, mean);
        }
    }
    return ingot_cholesky_f64(l, n);
}

ingot_status ingot_gram_solve(float *x, unsigned *damping_step, uint64_t rows, const float *gram,
                              uint64_t n, ingot_arena *scratch, ingot_pool *pool) {
    solve_task task = {.x = x, .rows = rows, .n = n};
    float *diagonal, *lower;
    uint32_t dead;
    *damping_step = 255;
    if (n > 46340) { /* n^2 must fit the LAPACK integer */
        return INGOT_ERR_UNSUPPORTED;
    }
    INGOT_TRY(ingot_arena_array(scratch, (void **)&diagonal, n, sizeof *diagonal));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&lower, n, n * sizeof *lower));
    for (uint64_t j = 0; j < n; j++) {
        diagonal[j] = gram[j * n + j];
    }
    const double mean = ingot_gptq_mean(diagonal, n, &dead);
    for (unsigned step = 0; isfinite(mean) && step + 1 < INGOT_DAMPING_STEPS; step++) {
        if (factor_f32(lower, gram, n, ingot_gptq_dampings[step], mean)) {
            *damping_step = step;
            task.lower = lower;
            break;
        }
    }
    if (task.lower == NULL && isfinite(mean)) {
        double *lower2;
        INGOT_TRY(ingot_arena_array(scratch, (void **)&lower2, n, n * sizeof *lower2));
        INGOT_TRY(ingot_arena_array(scratch, (void **)&task.rows64,
                                    (uint64_t)ingot_pool_width(pool) * INGOT_QUANTIZE_TILE,
                                    n * sizeof(double)));
        if (factor_f64(lower2, gram, n, ingot_gptq_dampings[INGOT_DAMPING_STEPS - 1], mean)) {
            *damping_step = INGOT_DAMPING_STEPS - 1;
            task.lower2 = lower2;
        }
    }
    if (*damping_step == 255) {
        memset(x, 0, rows * n * sizeof *x);
        return INGOT_OK;
    }
    ingot_pool_run(pool, ingot_row_tiles(rows), solve_tile, &task);
    return INGOT_OK;
}

/* ---- products ------------------------------------------------------------------------------- */

typedef struct multiply_task {
    float *out;
    float share;
    const float *a, *b;
    uint64_t rows, k, n;
} multiply_task;

static void multiply_tile(void *context, size_t tile, unsigned worker) {
    const multiply_task *t = context;
    (void)worker;
    const uint64_t first = tile * INGOT_QUANTIZE_TILE;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans,
                (int)(ingot_tile_end(tile, t->rows) - first), (int)t->n, (int)t->k, t->share,
                t->a + first * t->k, (int)t->k, t->b, (int)t->n, 1.0f, t->out + first * t->n,
                (int)t->n);
}

void ingot_multiply_add(float *out, float share, const float *a, const float *b, uint64_t rows,
                        uint64_t k, uint64_t n, ingot_pool *pool) {
    multiply_task task = {.out = out, .share = share, .a = a, .b = b, .rows = rows, .k = k, .n = n};
    ingot_pool_run(pool, ingot_row_tiles(rows), multiply_tile, &task);
}
