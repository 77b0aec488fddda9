/* The fast decoder of a device: a whole model resident with its KV cache, many sequences at once, a
 * token per sequence and call without work on the host in between.
 *
 * It computes what the operations of kernels/backend.h compute one by one, in fewer passes: keys,
 * values and the inputs of products are binary16, sums and the residual stream are FP32.  What it
 * does not cover (ingot_engine_check) runs through those operations.
 *
 * The description of a model and the meaning of all calls are in kernels/ingot_kernels.h; calib/
 * fills the description from a checkpoint's or a container's config.json. */
#ifndef INGOT_ENGINE_H
#define INGOT_ENGINE_H

#include "kernels/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ENGINE_SEQUENCES 64u  /* most */
#define ENGINE_HEAD_DIM  128u /* most */

/* The geometry of a matrix; its pointers are those of a host view, else NULL.  Of a container the
 * index must be one of its tensors'. */
ingot_weight_view ingot_engine_matrix_view(const ingot_engine_matrix *matrix);

/* What of ingot_engine_check needs no weights: neither layers nor matrices and vectors are looked
 * at.  Only a matrix that is not of floating point is INGOT_ERR_UNSUPPORTED beyond it. */
ingot_status ingot_engine_check_numbers(const ingot_engine_model *model,
                                        const ingot_engine_options *options,
                                        ingot_error *error) INGOT_MUST_CHECK;

struct ingot_engine_ops {
    /* The functions of kernels/ingot_kernels.h of like name. */
    ingot_status (*create)(void *context, ingot_engine **out, const ingot_engine_model *model,
                           const ingot_engine_options *options, ingot_engine_load *load,
                           ingot_error *error);
    void (*destroy)(ingot_engine *engine);
    ingot_status (*rewind)(ingot_engine *engine, uint64_t sequence);
    ingot_status (*feed)(ingot_engine *engine, uint64_t sequence, const uint32_t *ids,
                         uint64_t count, float *logits);
    ingot_status (*sampler)(ingot_engine *engine, double temperature, const uint64_t *state);
    ingot_status (*next)(ingot_engine *engine, uint64_t ahead, uint32_t *ids);
    ingot_status (*logits)(ingot_engine *engine, float *logits);
    ingot_status (*saturated)(ingot_engine *engine, bool *is_saturated);
};

#ifdef __cplusplus
}
#endif

#endif
