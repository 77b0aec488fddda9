/* One block of a model on a device: what its forward pass and its statistics take by themselves. */
#ifndef INGOT_BENCH_BLOCK_H
#define INGOT_BENCH_BLOCK_H

#include "calib/model.h"

typedef struct ingot_bench_block {
    double forward_seconds, statistics_seconds; /* for a token; the best of the runs */
} ingot_bench_block;

/* Runs the first block on random states, windows of `length` tokens, as many a call as the backend
 * likes, and sums H of every input of its linears. */
ingot_status ingot_bench_block_measure(ingot_bench_block *out, const ingot_model *model,
                                       const ingot_weight_source *source,
                                       const ingot_backend *backend, uint64_t length, unsigned runs,
                                       ingot_error *error) INGOT_MUST_CHECK;

#endif
