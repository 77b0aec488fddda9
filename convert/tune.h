/* Block tuning (--effort best): signed gradient descent on the rounding of all linears of a block
 * at once and on their scales, so that the block's output on the quantized prefix comes near the
 * full-precision block's output on full-precision inputs.  The published relatives are SignRound
 * (arXiv 2309.05516) and BRECQ (arXiv 2102.05426); here it starts from codes that GPTQ chose, and
 * every iterate that may be kept is judged on windows that neither it nor H has seen. */
#ifndef INGOT_TUNE_H
#define INGOT_TUNE_H

#include "convert/block.h"
#include "convert/plan_learning.h"
#include "convert/prefetch.h"

/* The linears of the block that are tuned. */
typedef struct ingot_tune_job {
    const ingot_loop_job *loop;
    const ingot_batch *batch; /* prefix: the block's inputs; exact: its outputs, already */
    const ingot_block *block; /* norms and biases as they are stored */
    ingot_prefetch *ahead;    /* for the blocks behind it; NULL: they come from the source */
    ingot_quantized
        *linear[INGOT_ROLE_COUNT];         /* the start, and the result; NULL: as in the block */
    const float *target[INGOT_ROLE_COUNT]; /* [rows][cols], device: what they stand for */
    bool is_fixed[INGOT_ROLE_COUNT];       /* stays at its start */
    /* What they were quantized by, and ingot_linear_bound: one that strays from its source is
     * fixed.  NULL: it may stray. */
    const ingot_linear_job *made_by[INGOT_ROLE_COUNT];
    double bound[INGOT_ROLE_COUNT];
} ingot_tune_job;

/* Deterministic by the seed of the loop's job. */
ingot_status ingot_tune_block(ingot_tune_result *out, const ingot_tune_job *job,
                              ingot_error *error) INGOT_MUST_CHECK;
/* Work of tuning one block, for forecasts. */
ingot_learning_work ingot_tune_work(uint64_t windows, uint64_t length, uint64_t judges);
/* Device memory it takes beside the block and the states of the batch. */
uint64_t ingot_tune_bytes(const ingot_model *model, uint64_t length);

#endif
