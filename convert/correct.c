/* Target correction (convert/correct.h). */
#include "convert/correct.h"

#include <math.h>

/* The rows at hand. */
typedef struct rows_of {
    const ingot_drift *drift;
    const float *w;
    uint64_t first_row, rows, n;
    const ingot_rank *rank;
} rows_of;

/* *out = w a, or a itself where it is of the output already */
static ingot_status of_output(const float **out, const float *a, const rows_of *at,
                              ingot_arena *scratch) {
    const ingot_backend *backend = at->rank->backend;
    const ingot_backend_ops *ops = backend->ops;
    const uint64_t rows = at->rows, n = at->n;
    float *product;
    *out = a + at->first_row * n;
    if (at->drift->is_of_output) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_array(scratch, (void **)&product, rows, n * sizeof *product));
    INGOT_TRY(ops->zero(backend->context, product, rows * n * sizeof *product));
    *out = product;
    return ops->multiply_add(backend->context, product, 1.0f, at->w, a, rows, n, n);
}

/* The error of the judges, |W x' - (W + share C) x|^2, is a constant - 2 share <P, C> + share^2
 * tr(C H C^T), with P what is wanted of the output. */
static ingot_status judge(double *share, double *gain, const rows_of *at, ingot_arena *scratch) {
    const ingot_backend *backend = at->rank->backend;
    const ingot_backend_ops *ops = backend->ops;
    const ingot_drift *drift = at->drift;
    const uint64_t rows = at->rows, n = at->n;
    const float *fitted, *wanted;
    double sum[3];
    INGOT_TRY(of_output(&fitted, drift->fitted, at, scratch));
    INGOT_TRY(of_output(&wanted, drift->judge_drift, at, scratch));
    INGOT_TRY(ops->inner(backend->context, &sum[0], wanted, fitted, rows * n));
    INGOT_TRY(ops->quadratic_loss(backend->context, &sum[1], fitted, rows, n, NULL,
                                  drift->judge_gram, scratch));
    INGOT_TRY(ops->quadratic_loss(backend->context, &sum[2], at->w, rows, n, NULL,
                                  drift->judge_gram, scratch));
    INGOT_TRY(ingot_team_sum_host(at->rank, sum, 3));
    const double along = sum[0], square = sum[1], norm = sum[2];
    *share = square > 0 ? along / square : 0;
    *share = *share > 0 ? *share : 0;
    *share = *share < 1 ? *share : 1;
    const double gained = *share * (2 * along - *share * square);
    *gain = norm > 0 && gained > 0 ? sqrt(gained / norm) : 0;
    return INGOT_OK;
}

ingot_status ingot_correct(float *target, double *share, double *gain, const ingot_drift *drift,
                           const float *w, uint64_t first_row, uint64_t rows, uint64_t n,
                           const ingot_rank *rank, ingot_arena *scratch) {
    const ingot_backend *backend = rank->backend;
    const ingot_backend_ops *ops = backend->ops;
    const rows_of at = {drift, w, drift->is_of_output ? first_row : 0, rows, n, rank};
    INGOT_TRY(judge(share, gain, &at, scratch));
    INGOT_TRY(ops->copy(backend->context, target, w, rows * n * sizeof *target));
    if (*share == 0) {
        return INGOT_OK;
    }
    const float part = (float)*share;
    return drift->is_of_output
               ? ops->add(backend->context, target, drift->solved + first_row * n, part, rows * n)
               : ops->multiply_add(backend->context, target, part, w, drift->solved, rows, n, n);
}
