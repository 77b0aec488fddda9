/* What the output of a block comes to at the end of the model, whose later blocks are run as they
 * are in the checkpoint. */
#ifndef INGOT_SUFFIX_H
#define INGOT_SUFFIX_H

#include "convert/prefetch.h"

/* states[3][count][length][hidden] (device): outputs of block `layer` for the same `count` windows,
 * of two candidates and of the full-precision model; used up.  divergence[i] = mean KL(full
 * precision || candidate i) in nats over all positions.  ahead reads the blocks, from layer + 1 on
 * (ingot_prefetch_begin); NULL: they come from the source.  arena gives device memory. */
ingot_status ingot_suffix_divergence(double divergence[2], const ingot_loop_job *job,
                                     ingot_prefetch *ahead, float *states, uint64_t layer,
                                     uint64_t count, uint64_t length, ingot_arena *arena,
                                     ingot_error *error) INGOT_MUST_CHECK;

#endif
