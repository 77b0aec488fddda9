/* One block at work: its weights, its statistics, its folds.  Shared by the loop and AWQ. */
#ifndef INGOT_CONVERT_BLOCK_H
#define INGOT_CONVERT_BLOCK_H

#include "convert/batch.h"
#include "convert/correct.h"
#include "convert/linear.h"

#define INGOT_MAX_FOLDS 8
/* A fold is searched by so many vectors, each tried on so many rows of a consumer at most. */
#define INGOT_FOLD_TRIALS 40u
#define INGOT_FOLD_ROWS   512u

/* Statistics of one input of the block. */
typedef struct ingot_input_state {
    bool is_present;
    bool is_corrected; /* its drift is made up for, */
    bool has_residual; /* and that of the residual stream that its linear adds to */
    bool is_collected;
    bool has_outliers; /* of a linear that reads it */
    bool is_of_linear; /* its fold is in the rows of the linear that makes it, not in a norm */
    uint64_t width, tokens;
    ingot_arena *memory;      /* device: of H; */
    ingot_arena *solving;     /* of drift, judges and factor, until its matrices are quantized */
    float *plain_gram;        /* [width][width], whole, device; NULL without data */
    float *magnitude;         /* [width], mean |x|, host */
    float *gram;              /* under the fold, device; plain_gram itself without one */
    float *fold;              /* [width], host: what the columns are multiplied by; NULL: none
                                 planned */
    float *device_fold;       /* the same on the device */
    ingot_drift drift;        /* of the input without folds */
    ingot_gptq_factor factor; /* of gram, for the group size factor.group (0: not made yet) */
} ingot_input_state;

typedef struct ingot_block_state {
    uint64_t layer;
    ingot_block block;                          /* weights as the forward pass sees them */
    ingot_block checkpoint;                     /* as the checkpoint has them */
    ingot_weight_view source[INGOT_ROLE_COUNT]; /* as the checkpoint has them, device */
    ingot_input_state input[INGOT_INPUT_COUNT];
    float *row_fold[INGOT_ROLE_COUNT];        /* [rows], host, or NULL */
    float *device_row_fold[INGOT_ROLE_COUNT]; /* the same on the device */
    float *norm_fold[INGOT_SLOT_COUNT];       /* [width], host: what the norm is divided by, or
                                                 NULL */
    bool is_fold_planned[INGOT_MAX_FOLDS], is_fold_applied[INGOT_MAX_FOLDS];
    ingot_weight_view fetched[INGOT_ROLE_COUNT]; /* what several devices quantized, on this one */
} ingot_block_state;

/* AWQ (arXiv 2306.00978): chooses the folds of a block and fills input[].fold, row_fold and
 * norm_fold of every planned one (ones where it was rejected), on the host and on the device.
 * batch may be NULL (statistics file): then a fold is kept when the loss of its consumers under H
 * falls; else when the output error of the whole block on the judges falls as well.  arena is host
 * memory, device device memory; what is chosen lies there. */
ingot_status ingot_awq_choose(ingot_block_state *state, const ingot_loop_job *job,
                              const ingot_rank *rank, const ingot_batch *batch, ingot_arena *arena,
                              ingot_arena *device, ingot_error *error) INGOT_MUST_CHECK;

#endif
