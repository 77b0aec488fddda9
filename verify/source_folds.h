/* Fold scales in a container (spec/quantization.md, "Folded scales").  Internal to verify/.
 *
 * NAME#fold[cols] and NAME#rowfold[rows] of a linear say by what the columns and rows of the source
 * were multiplied before it was stored.  What feeds the columns was divided by the same vector: the
 * rows of the producing linear and its bias through that linear's own #rowfold, a norm (which has
 * no fold of its own) by the #fold of the linears behind it. */
#ifndef INGOT_SOURCE_FOLDS_H
#define INGOT_SOURCE_FOLDS_H

#include "verify/verify.h"

/* stored[r][c] = source[r][c] * row[r] * column[c] / divisor[c]; NULL: ones. */
typedef struct ingot_folds {
    const float *row, *column, *divisor;
} ingot_folds;

static inline bool ingot_folds_any(const ingot_folds *folds) {
    return folds->row != NULL || folds->column != NULL || folds->divisor != NULL;
}

/* Is this record a fold vector (an auxiliary tensor, or an alias of one)? */
bool ingot_is_auxiliary(const ingot_container *container, const ingot_tensor *tensor);

/* The folds behind a tensor, in the arena.  One of the wrong length is left out here and reported
 * by ingot_folds_check. */
ingot_status ingot_folds_load(ingot_folds *out, const ingot_verification *verification,
                              const ingot_tensor_report *report, ingot_arena *arena,
                              ingot_error *error) INGOT_MUST_CHECK;

/* Folds must leave the function of the model as it was: the consumers of one producer have equal
 * vectors, and they cancel against the producer's.  Verdicts go into the reports of the auxiliary
 * tensors; one that no fold of the model explains fails. */
ingot_status ingot_folds_check(ingot_verification *verification,
                               ingot_error *error) INGOT_MUST_CHECK;

#endif
