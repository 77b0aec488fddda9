/* What a tool that reads text needs: a checkpoint folder or a container, the description of its
 * model and its tokenizer. */
#ifndef INGOT_TEXT_MODEL_H
#define INGOT_TEXT_MODEL_H

#include "calib/model.h"
#include "calib/tokenizer.h"

#define INGOT_TOKENIZER_FILE "tokenizer.json"

/* The tokenizer of a source, for ingot_tokenizer_destroy; what every tool opens one with.
 * INGOT_ERR_NOT_FOUND when there is none, INGOT_ERR_INPUT when it is malformed or has ids that the
 * model's embedding has no rows for. */
ingot_status ingot_source_tokenizer(ingot_tokenizer **out, const ingot_weight_source *source,
                                    const ingot_model *model, ingot_error *error) INGOT_MUST_CHECK;

typedef struct ingot_text_model {
    ingot_weight_source source;
    ingot_model model;
    ingot_tokenizer *tokenizer;
    bool has_source, has_model;
} ingot_text_model;

/* All three.  verify: digests of a container's tensors while loading.  On failure nothing stays
 * open. */
ingot_status ingot_text_model_open(ingot_text_model *out, const char *path, bool verify,
                                   ingot_error *error) INGOT_MUST_CHECK;
/* Without the tokenizer, for those who need none or open it later. */
ingot_status ingot_text_model_open_weights(ingot_text_model *out, const char *path, bool verify,
                                           ingot_error *error) INGOT_MUST_CHECK;
void ingot_text_model_close(ingot_text_model *text_model); /* a zeroed one is fine */

#endif
