/* Distillation (--effort best): all quantized matrices of the blocks are learned at once, scales
 * always and codes where the model is not too large, so that the model's next-token distribution
 * comes near the full-precision model's.  The relative is the end-to-end phase of EfficientQAT
 * (arXiv 2407.11062); here the loss is the divergence, steps go along signs, and an iterate is kept
 * for its divergence on windows that are held out.
 *
 * During the block loop finished matrices wait in host memory, and with --resume on disk as well
 * (convert/waiting.h); for the distillation all of them are on the device. */
#ifndef INGOT_DISTILL_H
#define INGOT_DISTILL_H

#include "convert/batch.h"
#include "convert/plan_learning.h"

typedef struct ingot_distill ingot_distill;

/* Weights up to which conversions learn codes as well: their positions take 4 bytes each. */
#define INGOT_DISTILL_CODES_MOST (UINT64_C(1) << 30)

/* job outlives it.  codes_most: matrices that have more weights together keep their codes. */
ingot_status ingot_distill_create(ingot_distill **out, const ingot_loop_job *job,
                                  uint64_t codes_most) INGOT_MUST_CHECK;
void ingot_distill_destroy(ingot_distill *d); /* NULL is fine */

/* Device memory it takes beside the exact states of the batch, by the plan; *waiting_bytes: host
 * memory of the matrices that wait. */
uint64_t ingot_distill_bytes(uint64_t *waiting_bytes, const ingot_plan *plan,
                             const ingot_model *model, uint64_t length);

/* Work of it, for forecasts: tokens of a block are those of every one of them. */
ingot_learning_work ingot_distill_work(const ingot_plan *plan, uint64_t windows, uint64_t length,
                                       uint64_t judges);

/* Copies a block's norms, biases and those linears that are not kept, from the device. */
ingot_status ingot_distill_keep_block(ingot_distill *d, const ingot_block *block) INGOT_MUST_CHECK;
/* Copies a finished matrix, from device memory or from the host's (is_on_host).  bound: on its
 * weight error (ingot_linear_bound); one that is over it comes out as it is here. */
ingot_status ingot_distill_keep_matrix(ingot_distill *d, uint64_t layer, ingot_role role,
                                       const ingot_quantized *q, double bound, bool is_fixed,
                                       bool is_on_host) INGOT_MUST_CHECK;
/* A kept matrix where it waits, in host memory; d's own. */
const ingot_quantized *ingot_distill_waiting(const ingot_distill *d, uint64_t layer,
                                             ingot_role role);

/* Learns the kept matrices.  batch->exact are the states behind the last block; the
 * last batch->judges windows are held out.  out->has_run is false, and nothing is changed, when
 * the device has no memory for it.  Deterministic by the job's seed. */
ingot_status ingot_distill_run(ingot_distill_result *out, ingot_distill *d,
                               const ingot_batch *batch, ingot_error *error) INGOT_MUST_CHECK;
/* The weight error of a kept matrix that was learned; NaN: it is as it was kept. */
double ingot_distill_error(const ingot_distill *d, uint64_t layer, ingot_role role);
/* *q = a kept matrix as it is by now, in device memory from the arena. */
ingot_status ingot_distill_matrix(ingot_quantized *q, const ingot_distill *d, uint64_t layer,
                                  ingot_role role, ingot_arena *arena) INGOT_MUST_CHECK;

#endif
