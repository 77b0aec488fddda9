/* The container against the checkpoint it claims to come from (spec/quality.md, "Verification
 * against the source").  Internal to verify/. */
#ifndef INGOT_SOURCE_CHECK_H
#define INGOT_SOURCE_CHECK_H

#include "verify/verify.h"

/* Checks every tensor and every verbatim file of the container against the checkpoint, both ways:
 * nothing missing, nothing extra, shapes equal, source digests equal to the ledger's, dense tensors
 * bit-equal (folded ones equal to source times fold), weight errors of quantized tensors
 * recomputed, equal to the ledger's within INGOT_ERROR_TOLERANCE and under their bound, folds
 * cancelling.
 *
 * Every tensor is looked at; the verdicts stand in verification->tensors, and the error is that of
 * the first failure in load order (INGOT_FAIL_SOURCE).  Source tensors are read once, in tiles of
 * rows of at most about 16 MiB. */
ingot_status ingot_source_check(ingot_verification *verification,
                                const ingot_checkpoint *checkpoint, ingot_pool *pool,
                                ingot_progress *progress, ingot_error *error) INGOT_MUST_CHECK;

/* Adds to source_differences what is unlike the checkpoint: a tensor or a file (the other NULL),
 * and why; error is set where it is the first one. */
void ingot_source_differs(ingot_verification *verification, const char *tensor, const char *file,
                          const char *reason, ingot_error *error);
/* What is to be said of difference i, and of which tensor: NULL where the reason names a file.
 * Texts are the verification's. */
const char *ingot_source_difference(const ingot_verification *verification, uint64_t i,
                                    const char **tensor);

#define INGOT_ERROR_TOLERANCE 1e-6
/* Folds of a producer and its consumers are F32 reciprocals of one another: their product differs
 * from 1 by at most two roundings, 2^-23. */
#define INGOT_FOLD_TOLERANCE 1e-6

/* The sums behind the bound on a weight error, added up tile by tile. */
typedef struct ingot_bound_sums {
    double step_squared; /* sum over weights of the squared step of plain rounding */
    double norm_squared; /* sum over weights of w^2 */
} ingot_bound_sums;
/* Adds the rows of w[rows][cols], folds applied. */
void ingot_bound_add(ingot_bound_sums *sums, const ingot_tensor *tensor, const float *w,
                     uint64_t rows);
/* The largest weight error an honest conversion of these weights may show. */
double ingot_bound_value(const ingot_bound_sums *sums);

#endif
