/* Reading ahead: while one block is at work, threads of its own read the matrices of the next one
 * and digest them.
 *
 * To the forward pass this is a weight source like any other: what was read ahead is handed out,
 * everything else comes from the source underneath. */
#ifndef INGOT_PREFETCH_H
#define INGOT_PREFETCH_H

#include "convert/loop.h"

typedef struct ingot_prefetch ingot_prefetch;

/* Starts on the matrices of block `first`, if there is one.  repeats: the model is gone through
 * again and again, without ingot_prefetch_bytes; table and head stay in pinned memory once they
 * were asked for. */
ingot_status ingot_prefetch_create(ingot_prefetch **out, const ingot_loop_job *job, uint64_t first,
                                   bool repeats) INGOT_MUST_CHECK;
void ingot_prefetch_destroy(ingot_prefetch *prefetch); /* NULL is fine */

/* Makes the matrices of a block available, and starts on those of the next one.  What was handed
 * out for the block before is gone.  Blocks are taken in order. */
ingot_status ingot_prefetch_take(ingot_prefetch *prefetch, uint64_t layer,
                                 ingot_error *error) INGOT_MUST_CHECK;
/* Starts on a block that need not follow the last one; it is the next to be taken. */
ingot_status ingot_prefetch_begin(ingot_prefetch *prefetch, uint64_t layer,
                                  ingot_error *error) INGOT_MUST_CHECK;
/* The source over the checkpoint; views of the block's matrices lie in pinned memory and are valid
 * until the next take. */
const ingot_weight_source *ingot_prefetch_source(const ingot_prefetch *prefetch);
/* Bytes of a tensor of the block and their XXH3-128; NULL when it was not read ahead. */
const void *ingot_prefetch_bytes(const ingot_prefetch *prefetch, uint64_t source_index,
                                 uint8_t digest[16]);

#endif
