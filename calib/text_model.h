/* What a tool that reads text needs, opened together: a checkpoint folder or a container, the
 * description of its model and its tokenizer. */
#ifndef INGOT_TEXT_MODEL_H
#define INGOT_TEXT_MODEL_H

#include "calib/model.h"
#include "calib/tokenizer.h"

typedef struct ingot_text_model {
    ingot_weight_source source;
    ingot_model model;
    ingot_tokenizer *tokenizer;
    bool has_source, has_model;
} ingot_text_model;

/* verify: digests of a container's tensors while loading.  INGOT_ERR_INPUT when there is no
 * tokenizer.json or its ids go beyond the embedding.  On failure nothing stays open. */
ingot_status ingot_text_model_open(ingot_text_model *out, const char *path, bool verify,
                                   ingot_error *error) INGOT_MUST_CHECK;
void ingot_text_model_close(ingot_text_model *text_model); /* a zeroed one is fine */

#endif
