/* A model without its weights: what config.json says the tensors of a checkpoint are, for plans. */
#ifndef INGOT_PLAN_CONFIG_H
#define INGOT_PLAN_CONFIG_H

#include "calib/model.h"
#include "format/checkpoint.h"

/* True where path is a config.json, or a folder that has one and no weights of any kind. */
bool ingot_plan_is_config(const char *path);

/* Reads a config.json (path: the file or its folder): the model, and a checkpoint without weights
 * that has the tensors it describes, in the dtype that config.json names (torch_dtype or dtype;
 * F32 where it names none).  INGOT_ERR_UNSUPPORTED as for ingot_model_from_config, and for other
 * dtypes and configurations of quantized models.  Both are the caller's to close. */
ingot_status ingot_plan_read_config(ingot_checkpoint **checkpoint, ingot_model *model,
                                    const char *path, ingot_error *error) INGOT_MUST_CHECK;

#endif
