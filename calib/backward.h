/* The backward pass of a decoder block: gradients of its linears' weights.
 *
 * Straight from the formulas, over the gradient operations of kernels/backend.h: dX = dY W,
 * dW = dY^T X, the rotation by the opposite angle, attention with scores computed again. */
#ifndef INGOT_BACKWARD_H
#define INGOT_BACKWARD_H

#include "calib/forward.h"

/* What a forward pass leaves behind and what the way back needs, for at most max_tokens tokens, on
 * the device: about 4 * max_tokens * (6 hidden + 5 heads * head_dim + 6 kv_heads * head_dim +
 * 4 ffn) bytes. */
typedef struct ingot_tape ingot_tape;
ingot_status ingot_tape_create(ingot_tape **out, const ingot_model *model,
                               const ingot_backend *backend, uint64_t max_tokens,
                               ingot_error *error) INGOT_MUST_CHECK;
void ingot_tape_destroy(ingot_tape *tape);

/* ingot_block_forward without a cache, kept on the tape. */
ingot_status ingot_tape_forward(ingot_tape *tape, const ingot_block *block, float *x,
                                uint64_t sequences, uint64_t q_len) INGOT_MUST_CHECK;

/* The same for the way back alone: x is used up, and the block's output is not made. */
ingot_status ingot_tape_recall(ingot_tape *tape, const ingot_block *block, float *x,
                               uint64_t sequences, uint64_t q_len) INGOT_MUST_CHECK;

/* After either, with the same block: gradient[role][rows][cols] (device, NULL: not
 * wanted) += gradient by the values of that linear, from dy[sequences * q_len][hidden] (device),
 * the gradient by the block's output, which is overwritten: it becomes that by the block's input
 * where that is wanted, x[sequences * q_len][hidden] (device), the values of that input; NULL: not
 * wanted.  Uses the tape up. */
ingot_status ingot_tape_backward(ingot_tape *tape, const ingot_block *block, float *dy,
                                 const float *x,
                                 float *const gradient[INGOT_ROLE_COUNT]) INGOT_MUST_CHECK;

#endif
