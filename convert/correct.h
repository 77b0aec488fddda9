/* Target correction: the matrix that makes up for the drift of its inputs (kernels/refine.h),
 * as far as windows that were not used for it confirm. */
#ifndef INGOT_CORRECT_H
#define INGOT_CORRECT_H

#include "kernels/backend.h"

/* What is known of an input [n] whose drift is made up for; all device memory, of the input without
 * folds.  The residual's parts are [hidden][n], or NULL. */
typedef struct ingot_drift {
    const float *solved;   /* [n][n]: D H^-1 of all windows; NULL: no correction */
    const float *residual; /* the same of the residual stream */
    /* Of the windows that the judges are not among, and of the judges. */
    const float *fitted, *fitted_residual; /* as solved and residual */
    const float *judge_gram;               /* [n][n], whole */
    const float *judge_drift, *judge_residual;
} ingot_drift;

/* target[rows][n] = w + share (w D + R) H^-1 with the residual's R where has_residual (then rows is
 * hidden).  *share, 0..1, is what makes the output error of the judges smallest for the correction
 * fitted without them; *gain is the root of what their squared error falls by, relative to the
 * output itself.  w, target: device; target does not overlap w. */
ingot_status ingot_correct(float *target, double *share, double *gain, const ingot_drift *drift,
                           bool has_residual, const float *w, uint64_t rows, uint64_t n,
                           const ingot_backend *backend, ingot_arena *scratch) INGOT_MUST_CHECK;

#endif
