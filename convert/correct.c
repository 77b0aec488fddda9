/* Target correction (convert/correct.h). */
#include "convert/correct.h"

#include <math.h>

/* out = w a + b (b NULL: nothing) */
static ingot_status shift(float *out, const ingot_backend *backend, const float *w, const float *a,
                          const float *b, uint64_t rows, uint64_t n) {
    const ingot_backend_ops *ops = backend->ops;
    const uint64_t bytes = rows * n * sizeof *out;
    INGOT_TRY(b != NULL ? ops->copy(backend->context, out, b, bytes)
                        : ops->zero(backend->context, out, bytes));
    return ops->multiply_add(backend->context, out, 1.0f, w, a, rows, n, n);
}

/* The error of the judges, |W x' - (W + share P) x|^2, is a constant - 2 share <W D + R, P> +
 * share^2 tr(P H P^T). */
static ingot_status judge(double *share, double *gain, const ingot_drift *drift, bool has_residual,
                          const float *w, uint64_t rows, uint64_t n, const ingot_backend *backend,
                          ingot_arena *scratch) {
    const ingot_backend_ops *ops = backend->ops;
    float *fitted, *wanted;
    double along, square, norm;
    INGOT_TRY(ingot_arena_array(scratch, (void **)&fitted, rows, n * sizeof *fitted));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&wanted, rows, n * sizeof *wanted));
    INGOT_TRY(shift(fitted, backend, w, drift->fitted, has_residual ? drift->fitted_residual : NULL,
                    rows, n));
    INGOT_TRY(shift(wanted, backend, w, drift->judge_drift,
                    has_residual ? drift->judge_residual : NULL, rows, n));
    INGOT_TRY(ops->inner(backend->context, &along, wanted, fitted, rows * n));
    INGOT_TRY(ops->quadratic_loss(backend->context, &square, fitted, rows, n, NULL,
                                  drift->judge_gram, scratch));
    *share = square > 0 ? along / square : 0;
    *share = *share > 0 ? *share : 0;
    *share = *share < 1 ? *share : 1;
    INGOT_TRY(
        ops->quadratic_loss(backend->context, &norm, w, rows, n, NULL, drift->judge_gram, scratch));
    const double gained = *share * (2 * along - *share * square);
    *gain = norm > 0 && gained > 0 ? sqrt(gained / norm) : 0;
    return INGOT_OK;
}

ingot_status ingot_correct(float *target, double *share, double *gain, const ingot_drift *drift,
                           bool has_residual, const float *w, uint64_t rows, uint64_t n,
                           const ingot_backend *backend, ingot_arena *scratch) {
    const ingot_backend_ops *ops = backend->ops;
    const uint64_t bytes = rows * n * sizeof *target;
    INGOT_TRY(judge(share, gain, drift, has_residual, w, rows, n, backend, scratch));
    INGOT_TRY(ops->copy(backend->context, target, w, bytes));
    if (*share == 0) {
        return INGOT_OK;
    }
    const float part = (float)*share;
    INGOT_TRY(ops->multiply_add(backend->context, target, part, w, drift->solved, rows, n, n));
    return has_residual ? ops->add(backend->context, target, drift->residual, part, rows * n)
                        : INGOT_OK;
}
