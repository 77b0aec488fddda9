/* Fuzz target: config.json -> model description.  What is accepted must be consistent: sizes within
 * the limits, finite frequencies, names that are classified as what they name. */
#include "calib/model.h"

#include <math.h>
#include <stdlib.h>

#define require(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static void check(const ingot_model *model) {
    char name[INGOT_NAME_SIZE];
    uint64_t layer = 0;
    ingot_role role;
    require(model->layers >= 1 && model->layers <= 1024 && model->vocab >= 1);
    require(model->hidden >= 1 && model->hidden <= 1 << 20 && model->ffn <= 1 << 20);
    require(model->kv_heads >= 1 && model->heads % model->kv_heads == 0);
    require(model->head_dim % 2 == 0 && model->heads * model->head_dim <= 1 << 20);
    require(model->rotary_dim >= 2 && model->rotary_dim <= model->head_dim);
    require(isfinite(model->norm_eps) && isfinite(model->attention_scale));
    for (uint64_t i = 0; i < model->rotary_dim / 2; i++) {
        require(isfinite(model->inverse_frequency[i]) && model->inverse_frequency[i] >= 0);
    }
    for (unsigned i = 0; i < model->eos_count; i++) {
        require(model->eos_ids[i] < model->vocab);
    }
    for (ingot_role r = 0; r < INGOT_ROLE_COUNT; r++) {
        if (model->linear[r].is_present) {
            ingot_model_linear_name(model, model->layers - 1, r, name);
            require(ingot_model_classify(model, name, &layer, &role) == INGOT_CLASS_LINEAR);
            require(layer == model->layers - 1 && role == r);
        }
    }
    for (ingot_norm_slot slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        if (ingot_model_norm_name(model, 0, slot, name)) {
            require(ingot_model_classify(model, name, &layer, &role) == INGOT_CLASS_NORM);
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ingot_model model;
    ingot_error error;
    if (ingot_model_from_config(&model, (const char *)data, size, "config.json", &error) ==
        INGOT_OK) {
        check(&model);
        ingot_model_close(&model);
    } else {
        require(error.reason[0] != '\0' && model.window == NULL);
    }
    return 0;
}
