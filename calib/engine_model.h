/* A model as the engine of a backend takes it (kernels/engine.h), from its description and a source
 * of weights. */
#ifndef INGOT_ENGINE_MODEL_H
#define INGOT_ENGINE_MODEL_H

#include "calib/model.h"
#include "common/progress.h"
#include "kernels/engine.h"

/* Whether the description has nothing that an engine leaves out: norms behind the two halves of a
 * block, layer norms, and feed-forward layers without a gate. */
bool ingot_engine_model_is_plain(const ingot_model *model);
/* All but weights, for ingot_engine_check_numbers: what the engine does not cover is known before
 * any of them is read. */
ingot_engine_model ingot_engine_model_numbers(const ingot_model *model);
/* *out points into the arena, the model and the source; matrices of a container stay there, others
 * are loaded into the arena: progress counts their MB, and may be NULL.  The model must be plain.
 */
ingot_status ingot_engine_model_create(ingot_engine_model *out, const ingot_model *model,
                                       const ingot_weight_source *source, ingot_arena *arena,
                                       ingot_progress *progress,
                                       ingot_error *error) INGOT_MUST_CHECK;

#endif
