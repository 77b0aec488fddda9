/* What rounding one matrix does to the model: the mean KL(model || model with that matrix rounded)
 * over a few windows of the calibration text, per matrix and width.
 *
 * One pass over the blocks serves many candidates (a matrix at a width): each has its own hidden
 * states, branches off the exact ones at its block and then runs through the same blocks as all
 * the others.  For C candidates over L blocks that is C L / 2 block forwards of the windows in
 * place of C L, and the weights are read once per wave of candidates that fit into memory. */
#ifndef INGOT_SENSITIVITY_H
#define INGOT_SENSITIVITY_H

#include "calib/dataset.h"
#include "convert/allocate.h"
#include "convert/plan.h"

/* Widths that are measured; wider ones follow the law of uniform rounding, 4^-bits. */
#define INGOT_MEASURED_LEAST 2u
#define INGOT_MEASURED_MOST  4u
#define INGOT_MEASURED_COUNT (INGOT_MEASURED_MOST - INGOT_MEASURED_LEAST + 1u)

/* Mean KL in nats; index w is INGOT_MEASURED_LEAST + w bits. */
typedef struct ingot_sensitivity {
    double kl[INGOT_MEASURED_COUNT];
} ingot_sensitivity;

/* Tokens that are looked at: at most so many windows, spread over the calibration batch, and of
 * each the first so many tokens. */
#define INGOT_SENSITIVITY_WINDOWS 8u
#define INGOT_SENSITIVITY_LENGTH  256u
ingot_status ingot_sensitivity_windows(ingot_windows *out,
                                       const ingot_windows *calibration) INGOT_MUST_CHECK;

/* Memory that measuring `count` matrices on windows of a batch takes, beside a block and an end of
 * the model; out of memory it goes on with less. */
uint64_t ingot_sensitivity_bytes(const ingot_model *model, uint64_t count, uint64_t windows,
                                 uint64_t length, uint64_t batch_tokens, bool has_own_memory);

typedef struct ingot_sensitivity_job {
    const ingot_weight_source *source;
    const ingot_model *model;
    const ingot_backend *backend;
    const ingot_plan *plan;
    const uint64_t *tensors; /* [count] indices in the plan: linears of blocks, layers rising */
    uint64_t count;
    const ingot_windows *windows;
    uint64_t state_bytes; /* of hidden states kept at once; 0: what the backend stands */
    unsigned *shortages;  /* counted: times it began anew with less memory; or NULL */
} ingot_sensitivity_job;

/* out[count].  Matrices are rounded with searched scales in the geometry of the plan (group, zero
 * points, scale dtype, outliers), whatever the method of the conversion.  Out of memory it begins
 * anew with half the states and half the calls, as long as there is more than one of either.
 * INGOT_ERR_NUMERIC when a divergence is not finite. */
ingot_status ingot_sensitivity_measure(ingot_sensitivity *out, const ingot_sensitivity_job *job,
                                       ingot_error *error) INGOT_MUST_CHECK;

/* cost[w] for INGOT_WIDTH_LEAST + w bits: measured, then 4^-bits; made not to increase. */
void ingot_sensitivity_costs(double cost[INGOT_WIDTH_COUNT], const ingot_sensitivity *measured);

#endif
