/* The calibration batch: hidden states of all windows between two blocks, as the quantized prefix
 * of the model makes them and, where asked for, as the full-precision model does. */
#ifndef INGOT_CONVERT_BATCH_H
#define INGOT_CONVERT_BATCH_H

#include "convert/loop.h"
#include "convert/plan_forecast.h"

/* Which streams a batch has. */
typedef enum ingot_streams {
    INGOT_PREFIX_ALONE,
    INGOT_BOTH,        /* the full-precision one too */
    INGOT_BOTH_IN_TURN /* and a pair's hook wants one input in a run */
} ingot_streams;

/* Hidden states of all windows. */
typedef struct ingot_states {
    float *values;     /* [windows][length][hidden]; NULL: not kept */
    bool is_on_device; /* where they live: device memory if they fit, else pinned */
} ingot_states;

typedef struct ingot_batch {
    uint64_t windows, length; /* sequences and tokens of each */
    uint64_t judges;          /* the last ones, held out of the statistics to judge choices */
    uint64_t chunk;           /* windows of one forward call */
    ingot_states prefix;      /* on the quantized prefix */
    ingot_states exact;       /* in the full-precision model */
    ingot_streams streams;
    bool unfolds;                    /* inputs are collected behind folded linears */
    bool is_halfway;                 /* the states are those between the halves of a block */
    float *scratch;                  /* [chunk][length][hidden], device */
    float *aside[INGOT_INPUT_COUNT]; /* [chunk][length][width], device: inputs of the exact
                                        states, in turn all the same memory; NULL without
                                        these */
    float *aside_residual[INGOT_INPUT_COUNT]; /* [chunk][length][hidden]: the residual stream at
                                                 the inputs of o and down */
    float *aside_output;                      /* [chunk][length][hidden]: for what is made of an
                                                 input of these */
    float *unfolded; /* [chunk][length][width], device: an input of the prefix without the fold of
                        what made it; NULL: never needed */
    ingot_workspace *workspace;
} ingot_batch;

/* Embeds the windows of the job for all streams.  So much device memory is left free for the work
 * on a block (NULL: none): states move to the host and forward calls shrink until it fits.  arena
 * (host) holds the embedding table meanwhile and may be reset afterwards. */
ingot_status ingot_batch_create(ingot_batch *out, const ingot_loop_job *job, uint64_t judges,
                                ingot_streams streams, const ingot_block_need *need,
                                ingot_arena *arena, ingot_error *error) INGOT_MUST_CHECK;
/* Gives back what a forward call needs beside the states, until it is woken: what is done between
 * calls needs as much.  Host memory stays. */
void ingot_batch_rest(ingot_batch *batch, const ingot_backend *backend);
/* Calls may follow; of fewer windows where there is less memory by now. */
ingot_status ingot_batch_wake(ingot_batch *batch, const ingot_loop_job *job) INGOT_MUST_CHECK;
/* Gives the states on the quantized prefix back when they are not needed any more. */
void ingot_batch_forget_prefix(ingot_batch *batch, const ingot_backend *backend);
/* Moves the exact states to the host where these have memory of the device and the host has some
 * left. */
ingot_status ingot_batch_spare_exact(ingot_batch *batch,
                                     const ingot_loop_job *job) INGOT_MUST_CHECK;
void ingot_batch_destroy(ingot_batch *batch, const ingot_backend *backend);

/* What becomes of a block's output. */
typedef struct ingot_batch_use {
    ingot_input_hook hook; /* not NULL: sees the inputs; the output is dropped */
    void *hook_context;
    float *output;         /* not NULL: [end - first][length][hidden], device, takes the output */
    bool is_exact;         /* of the exact states instead of the prefix's */
    ingot_block_part part; /* INGOT_BLOCK_WHOLE: what is left of the block */
    bool stops;            /* with a hook: the block is not run beyond input `last` */
    ingot_input last;
} ingot_batch_use; /* neither hook nor output: the states advance */

/* Advances all states by the attention half of a block, as it is in the checkpoint and as it is by
 * now: what follows runs the other half alone, until ingot_batch_end. */
ingot_status ingot_batch_halfway(ingot_batch *batch, const ingot_loop_job *job,
                                 const ingot_block *exact, const ingot_block *prefix,
                                 ingot_error *error) INGOT_MUST_CHECK;
/* A new block follows. */
void ingot_batch_end(ingot_batch *batch);

/* Runs a block over windows first .. end-1 of one stream. */
ingot_status ingot_batch_run(const ingot_batch *batch, const ingot_loop_job *job,
                             const ingot_block *block, uint64_t first, uint64_t end,
                             const ingot_batch_use *use, ingot_error *error) INGOT_MUST_CHECK;

/* An input in the full-precision model, which the hook may overwrite, and on the quantized prefix,
 * [m][width] both, and the residual stream that the linears behind it add to, [m][hidden]; device
 * memory, valid during the call. */
typedef struct ingot_pair_inputs {
    float *exact;
    const float *prefix;
    /* [m][hidden], for o and down; else NULL: */
    const float *exact_residual, *prefix_residual;
    float *scratch;
} ingot_pair_inputs;
typedef ingot_status (*ingot_pair_hook)(void *context, ingot_input input,
                                        const ingot_pair_inputs *inputs, uint64_t m,
                                        uint64_t width);

typedef struct ingot_pair_use {
    unsigned wanted;  /* a bit for each input (1 << input) that the hook is to see, */
    ingot_input last; /* the last of them: neither block is run beyond it, */
    bool advances;    /* but for the exact one when its states advance */
    ingot_pair_hook hook;
    void *hook_context;
} ingot_pair_use;

/* Runs exact, the block as it is in the checkpoint, over windows first .. end-1 of the exact
 * states, which may advance and thus become what the block should put out; and prefix, the block as
 * it is by now, over the same windows of the prefix, whose states stay. */
ingot_status ingot_batch_run_pair(const ingot_batch *batch, const ingot_loop_job *job,
                                  const ingot_block *exact, const ingot_block *prefix,
                                  uint64_t first, uint64_t end, const ingot_pair_use *use,
                                  ingot_error *error) INGOT_MUST_CHECK;

/* *out (device, from the arena) = exact states of windows first .. end-1: once the block has run on
 * them, what its output is measured against. */
ingot_status ingot_batch_exact(float **out, const ingot_batch *batch, const ingot_loop_job *job,
                               uint64_t first, uint64_t end, ingot_arena *arena) INGOT_MUST_CHECK;

#endif
