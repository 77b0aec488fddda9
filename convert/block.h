/* One block at work: its weights, its statistics, its folds.  Shared by the loop and AWQ. */
#ifndef INGOT_CONVERT_BLOCK_H
#define INGOT_CONVERT_BLOCK_H

#include "convert/linear.h"
#include "convert/loop.h"

#define INGOT_MAX_FOLDS 8

/* Statistics of one input of the block. */
typedef struct ingot_input_state {
    bool is_present;
    uint64_t width, tokens;
    float *plain_gram;        /* [width][width], whole; NULL without data */
    float *magnitude;         /* [width], mean |x| */
    float *gram;              /* under the fold; plain_gram itself without one */
    float *fold;              /* [width]: what the columns are multiplied by; NULL: none planned */
    ingot_gptq_factor factor; /* of gram, for the group size factor.group (0: not made yet) */
} ingot_input_state;

typedef struct ingot_block_state {
    uint64_t layer;
    ingot_block block;                          /* weights as the forward pass sees them */
    ingot_weight_view source[INGOT_ROLE_COUNT]; /* as the checkpoint has them */
    ingot_input_state input[INGOT_INPUT_COUNT];
    float *row_fold[INGOT_ROLE_COUNT];  /* [rows] or NULL */
    float *norm_fold[INGOT_SLOT_COUNT]; /* [width]: what the norm is divided by, or NULL */
    bool is_fold_planned[INGOT_MAX_FOLDS];
} ingot_block_state;

/* The hidden states of the calibration batch. */
typedef struct ingot_batch {
    uint64_t windows, length; /* sequences and tokens of each */
    uint64_t judges;          /* the last ones, held out of the statistics to judge choices */
    uint64_t chunk;           /* windows of one forward call */
    float *states;            /* [windows][length][hidden], host */
    float *scratch;           /* [chunk][length][hidden], device */
    ingot_workspace *workspace;
} ingot_batch;

/* AWQ (arXiv 2306.00978): chooses the folds of a block and fills input[].fold, row_fold and
 * norm_fold of every planned one (ones where it was rejected).  batch may be NULL (statistics
 * file): then a fold is kept when the loss of its consumers under H falls; else when the output
 * error of the whole block on the judges falls as well.  Memory is the arena's. */
ingot_status ingot_awq_choose(ingot_block_state *state, const ingot_loop_job *job,
                              const ingot_batch *batch, ingot_arena *arena,
                              ingot_error *error) INGOT_MUST_CHECK;

#endif
