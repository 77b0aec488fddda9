/* The calibration batch: hidden states of all windows between two blocks. */
#ifndef INGOT_CONVERT_BATCH_H
#define INGOT_CONVERT_BATCH_H

#include "convert/loop.h"

typedef struct ingot_batch {
    uint64_t windows, length; /* sequences and tokens of each */
    uint64_t judges;          /* the last ones, held out of the statistics to judge choices */
    uint64_t chunk;           /* windows of one forward call */
    bool is_on_device;        /* where the states live: device memory if it fits, else pinned */
    float *states;            /* [windows][length][hidden] */
    float *scratch;           /* [chunk][length][hidden], device */
    ingot_workspace *workspace;
} ingot_batch;

/* Embeds the windows of the job.  reserve_bytes of device memory are left free for the work on a
 * block: states move to the host and forward calls shrink until it fits.  arena (host) holds the
 * embedding table meanwhile and may be reset afterwards. */
ingot_status ingot_batch_create(ingot_batch *out, const ingot_loop_job *job, uint64_t judges,
                                uint64_t reserve_bytes, ingot_arena *arena,
                                ingot_error *error) INGOT_MUST_CHECK;
void ingot_batch_destroy(ingot_batch *batch, const ingot_backend *backend);

/* What becomes of a block's output. */
typedef struct ingot_batch_use {
    ingot_input_hook hook; /* not NULL: sees the inputs; the output is dropped */
    void *hook_context;
    float *output; /* not NULL: [end - first][length][hidden], device, takes the output */
} ingot_batch_use; /* neither: the states advance */

/* Runs a block over windows first .. end-1. */
ingot_status ingot_batch_run(const ingot_batch *batch, const ingot_loop_job *job,
                             const ingot_block *block, uint64_t first, uint64_t end,
                             const ingot_batch_use *use, ingot_error *error) INGOT_MUST_CHECK;

#endif
