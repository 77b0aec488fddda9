/* Target correction: the matrix that makes up for the drift of its inputs (kernels/refine.h),
 * as far as windows that were not used for it confirm. */
#ifndef INGOT_CORRECT_H
#define INGOT_CORRECT_H

#include "convert/team.h"

/* What is known of an input x[n] whose drift is made up for; all device memory, of the input
 * without folds.  D is [n][n], the sum of (x' - x) x^T; or, where one matrix alone reads the input,
 * that of the matrix's output, P = sum (y' - y) x^T, [rows][n], which is smaller or takes in more:
 * y = W x plus what else is added to the residual stream. */
typedef struct ingot_drift {
    bool is_of_output;        /* P in place of D */
    const float *solved;      /* D H^-1 of all windows; NULL: no correction */
    const float *fitted;      /* the same of the windows that the judges are not among */
    const float *judge_gram;  /* [n][n], whole: H of the judges, */
    const float *judge_drift; /* and their D */
} ingot_drift;

/* target[rows][n] = w + share w D H^-1, or w + share P H^-1.  *share, 0..1, is what makes the
 * output error of the judges smallest for the correction fitted without them; *gain is the root of
 * what their squared error falls by, relative to the output itself.  w, target: device; target does
 * not overlap w.  Of a matrix that ranks share, each gives its rows, of P those from first_row on;
 * both figures are of the whole. */
ingot_status ingot_correct(float *target, double *share, double *gain, const ingot_drift *drift,
                           const float *w, uint64_t first_row, uint64_t rows, uint64_t n,
                           const ingot_rank *rank, ingot_arena *scratch) INGOT_MUST_CHECK;

#endif
