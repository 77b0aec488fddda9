/* Statistics of a block's inputs on the calibration batch: H, magnitudes for folds, and the drift
 * against the full-precision model. */
#ifndef INGOT_COLLECT_H
#define INGOT_COLLECT_H

#include "convert/block.h"
#include "convert/team.h"

/* Inputs as bits of a mask. */
#define INGOT_INPUT_BIT(input) (1u << (unsigned)(input))
#define INGOT_INPUT_ALL        ((1u << INGOT_INPUT_COUNT) - 1)

/* Gathers what is planned of the inputs in the mask that are present (INGOT_ERR_NUMERIC: all rows
 * of one have values that are not finite): runs the block on the prefix as far as the last of them,
 * with the weights that state->block has now, and the block of the checkpoint on the full-precision
 * stream where that is kept, which advances when is_last.  Fills tokens, magnitude (with folds),
 * plain_gram, gram and drift of these inputs; they lie in host (the block's) and in the device
 * memory of the input.  scratch (device) is reset, and the batch rests. */
ingot_status ingot_collect(ingot_block_state *state, const ingot_loop_job *job,
                           const ingot_rank *rank, ingot_batch *batch, unsigned inputs,
                           bool is_last, ingot_arena *host, ingot_arena *scratch,
                           ingot_error *error) INGOT_MUST_CHECK;

/* H and magnitudes of all inputs of the block as it is in the checkpoint, on the prefix without the
 * judges: what folds are chosen by, before the inputs are collected one after another.  Nothing
 * else is gathered, and the full-precision stream stays. */
ingot_status ingot_collect_for_folds(ingot_block_state *state, const ingot_loop_job *job,
                                     const ingot_rank *rank, ingot_batch *batch, ingot_arena *host,
                                     ingot_arena *scratch, ingot_error *error) INGOT_MUST_CHECK;

#endif
