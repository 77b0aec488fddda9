/* Internal to calib/: the buffers of a forward pass, which the backward pass reads
 * (calib/backward.h). */
#ifndef INGOT_FORWARD_INTERNAL_H
#define INGOT_FORWARD_INTERNAL_H

#include "calib/forward.h"

#define INGOT_WORKSPACE_BUFFERS 15

/* Buffers of [max_tokens] rows.  Those after `up` exist only where is_kept: then nothing a gradient
 * needs is overwritten.  NULL: the model has no use for it. */
struct ingot_workspace {
    const ingot_backend *backend;
    uint64_t max_tokens;
    bool is_kept;
    union {
        struct {
            float *normed;    /* [hidden], input of q, k, v; not kept: of gate and up as well */
            float *output;    /* [hidden], what a half of the block adds */
            float *q;         /* [heads * head_dim] */
            float *context;   /* [heads * head_dim], the attention's output */
            float *k, *v;     /* [kv_heads * head_dim], without a cache */
            float *gate, *up; /* [ffn]; gate only in gated models */

            float *mlp_normed;       /* [hidden], input of gate and up */
            float *inner;            /* [ffn], input of down */
            float *middle;           /* [hidden], the residual stream between the halves */
            float *q_raw, *k_raw;    /* like q and k, before their norms */
            float *attention_output; /* [hidden], before its norm */
            float *mlp_output;       /* [hidden], before its norm */
        };
        float *buffer[INGOT_WORKSPACE_BUFFERS];
    };
};

/* As ingot_workspace_create; is_kept: for ingot_block_backward. */
ingot_status ingot_workspace_open(ingot_workspace **out, const ingot_model *model,
                                  const ingot_backend *backend, uint64_t max_tokens, bool is_kept,
                                  ingot_error *error) INGOT_MUST_CHECK;

#endif
