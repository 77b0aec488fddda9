/* A described model against the tensors that are there, and what they are called. */
#include "calib/model.h"

#include "common/memory.h"
#include "common/sizes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define NAMED_MOST 5u /* of the tensors that are not there */

/* The tensors as they are looked at, in the order of the model. */
typedef struct inspection {
    const ingot_model *model;
    const ingot_weight_source *source;
    ingot_error *error;
    uint64_t missing; /* those that are not there */
    char first[INGOT_NAME_SIZE];
    char others[512]; /* ", NAME, NAME" */
} inspection;

static void note_missing(inspection *in, const char *name) {
    const size_t used = strlen(in->others);
    if (in->missing == 0) {
        (void)snprintf(in->first, sizeof in->first, "%s", name);
    } else if (in->missing < NAMED_MOST) {
        (void)snprintf(in->others + used, sizeof in->others - used, ", %s", name);
    }
    in->missing++;
}

/* One that is not there is noted, and no other then looked at but for whether it is there.
 * rows 0: a vector. */
static ingot_status require(inspection *in, const char *name, uint64_t rows, uint64_t cols) {
    const ingot_weight_source *source = in->source;
    ingot_weight_info info;
    if (!source->describe(source->self, name, &info)) {
        note_missing(in, name);
        return INGOT_OK;
    }
    if (in->missing != 0) {
        return INGOT_OK;
    }
    if (!info.is_float) {
        return ingot_error_set(in->error, INGOT_ERR_UNSUPPORTED, source->path, name,
                               "save the checkpoint as F16, BF16 or F32",
                               "the model computes with this tensor, but its dtype is none of "
                               "F16, BF16 and F32");
    }
    const bool fits = rows == 0 ? info.rank == 1 && info.dim[0] == cols
                                : info.rank == 2 && info.dim[0] == rows && info.dim[1] == cols;
    if (fits) {
        return INGOT_OK;
    }
    char shape[64] = "a vector";
    if (rows != 0) {
        (void)snprintf(shape, sizeof shape, "%llu rows", (unsigned long long)rows);
    }
    return ingot_error_set(in->error, INGOT_ERR_INPUT, source->path, name,
                           "config.json and the weights do not belong together",
                           "has another shape than config.json says (%s of %llu)", shape,
                           (unsigned long long)cols);
}

static ingot_status refuse_missing(const inspection *in) {
    char rest[48] = "";
    if (in->missing == 0) {
        return INGOT_OK;
    }
    if (in->missing > NAMED_MOST) {
        (void)snprintf(rest, sizeof rest, " and %llu more",
                       (unsigned long long)(in->missing - NAMED_MOST));
    }
    return ingot_error_set(in->error, INGOT_ERR_INPUT, in->source->path, in->first,
                           "is the checkpoint complete?",
                           "config.json describes this tensor, but it is not there%s%s%s",
                           in->missing > 1 ? "; also missing: " : "",
                           in->missing > 1 ? in->others + strlen(", ") : "", rest);
}

/* Frequencies that older versions of transformers saved with every layer, computed from config.json
 * and read by nobody: what removes layers from a checkpoint often leaves them. */
static bool is_left_over(const char *name) {
    static const char end[] = ".rotary_emb.inv_freq";
    const size_t length = strlen(name);
    return length >= sizeof end - 1 && strcmp(name + length - (sizeof end - 1), end) == 0;
}

/* Layers that config.json does not count would be left out, or copied, and the model be another one
 * without them.  A container made before they were refused is run as it was made. */
static ingot_status refuse_more_layers(const inspection *in) {
    const ingot_model *model = in->model;
    const ingot_weight_source *source = in->source;
    const char *name, *first = NULL;
    uint64_t count = model->layers, layer;
    if (source->container != NULL) {
        return INGOT_OK;
    }
    for (uint64_t i = 0; (name = source->name_at(source->self, i)) != NULL; i++) {
        if (ingot_model_layer_of(model, name, &layer) && layer >= model->layers &&
            !is_left_over(name)) {
            first = first == NULL ? name : first;
            count = ingot_max_u64(count, layer + 1);
        }
    }
    return first == NULL
               ? INGOT_OK
               : ingot_error_set(in->error, INGOT_ERR_INPUT, source->path, first,
                                 "see that config.json is the model's, or save the checkpoint "
                                 "without what is left over",
                                 "config.json has %llu layers (num_hidden_layers), the checkpoint "
                                 "%llu",
                                 (unsigned long long)model->layers, (unsigned long long)count);
}

static ingot_status require_block(inspection *in, uint64_t layer) {
    const ingot_model *model = in->model;
    char name[INGOT_NAME_SIZE];
    for (ingot_role role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *linear = &model->linear[role];
        if (!linear->is_present) {
            continue;
        }
        ingot_model_linear_name(model, layer, role, name);
        INGOT_TRY(require(in, name, linear->rows, linear->cols));
        if (linear->has_bias) {
            ingot_model_bias_name(model, layer, role, name);
            INGOT_TRY(require(in, name, 0, linear->rows));
        }
    }
    for (ingot_norm_slot slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        const bool is_head_norm = slot == INGOT_SLOT_Q || slot == INGOT_SLOT_K;
        if (ingot_model_norm_name(model, layer, slot, name)) {
            INGOT_TRY(require(in, name, 0, is_head_norm ? model->head_dim : model->hidden));
        }
    }
    return INGOT_OK;
}

/* config.json may say that the head is tied although the checkpoint stores another one, or say
 * nothing: the tensors decide then, as they do in `transformers`. */
static ingot_status settle_tie(ingot_model *model, const ingot_weight_source *source,
                               ingot_error *error) {
    ingot_weight_info info;
    if (!source->describe(source->self, model->head_name, &info)) {
        model->is_tied = true;
        return INGOT_OK;
    }
    if (model->is_tied && source->is_same != NULL) {
        return source->is_same(source->self, model->embed_name, model->head_name, &model->is_tied,
                               error);
    }
    model->is_tied = model->is_tied || (info.is_alias && !model->is_tie_stated);
    return INGOT_OK;
}

static ingot_status check_tensors(ingot_model *model, const ingot_weight_source *source,
                                  ingot_error *error) {
    inspection in = {.model = model, .source = source, .error = error};
    ingot_weight_info info;
    INGOT_TRY(require(&in, model->embed_name, model->vocab, model->hidden));
    for (uint64_t layer = 0; layer < model->layers; layer++) {
        INGOT_TRY(require_block(&in, layer));
    }
    INGOT_TRY(require(&in, model->final_norm_name, 0, model->hidden));
    if ((model->is_tie_stated && !model->is_tied) ||
        source->describe(source->self, model->head_name, &info)) {
        INGOT_TRY(require(&in, model->head_name, model->vocab, model->hidden));
    }
    INGOT_TRY(refuse_missing(&in));
    INGOT_TRY(refuse_more_layers(&in));
    return settle_tie(model, source, error);
}

ingot_status ingot_model_open(ingot_model *out, const ingot_weight_source *source,
                              ingot_error *error) {
    uint64_t size;
    memset(out, 0, sizeof *out);
    const char *config = source->file(source->self, "config.json", &size);
    if (config == NULL) {
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, source->path, NULL,
                               "name a model, not a statistics file", "there is no config.json");
    }
    char path[1100];
    (void)snprintf(path, sizeof path, "%s/config.json", source->path);
    INGOT_TRY(ingot_model_from_config(out, config, size, path, error));
    ingot_status status = INGOT_OK;
    const char *generation = source->file(source->self, "generation_config.json", &size);
    if (generation != NULL) {
        (void)snprintf(path, sizeof path, "%s/generation_config.json", source->path);
        status = ingot_model_add_eos(out, generation, size, path, error);
    }
    if (status == INGOT_OK) {
        status = check_tensors(out, source, error);
    }
    if (status != INGOT_OK) {
        ingot_model_close(out);
    }
    return status;
}

void ingot_model_close(ingot_model *model) {
    ingot_free(model->inverse_frequency);
    ingot_free(model->window);
    model->inverse_frequency = NULL;
    model->window = NULL;
}

/* ---- names
 * --------------------------------------------------------------------------------------- */

const char *ingot_role_name(ingot_role role) {
    static const char *const names[] = {"q", "k", "v", "o", "gate", "up", "down"};
    return (unsigned)role < INGOT_ROLE_COUNT ? names[role] : "unknown";
}

const char *ingot_input_name(ingot_input input) {
    static const char *const names[] = {"attention", "output", "mlp", "down"};
    return (unsigned)input < INGOT_INPUT_COUNT ? names[input] : "unknown";
}

static void block_name(const ingot_model *model, uint64_t layer, const char *suffix,
                       const char *ending, char *name) {
    (void)snprintf(name, INGOT_NAME_SIZE, "%s.%llu.%s.%s", model->layer_prefix,
                   (unsigned long long)layer, suffix, ending);
}

void ingot_model_linear_name(const ingot_model *model, uint64_t layer, ingot_role role,
                             char *name) {
    block_name(model, layer, model->linear[role].suffix, "weight", name);
}

void ingot_model_bias_name(const ingot_model *model, uint64_t layer, ingot_role role, char *name) {
    block_name(model, layer, model->linear[role].suffix, "bias", name);
}

bool ingot_model_norm_name(const ingot_model *model, uint64_t layer, ingot_norm_slot slot,
                           char *name) {
    if (model->norm_suffix[slot] == NULL) {
        return false;
    }
    block_name(model, layer, model->norm_suffix[slot], "weight", name);
    return true;
}

bool ingot_model_layer_of(const ingot_model *model, const char *name, uint64_t *layer) {
    const size_t prefix = strlen(model->layer_prefix);
    if (strncmp(name, model->layer_prefix, prefix) != 0 || name[prefix] != '.') {
        return false;
    }
    const char *number = name + prefix + 1;
    const size_t digits = strspn(number, "0123456789");
    *layer = strtoull(number, NULL, 10);
    return digits > 0 && digits < 10 && number[digits] == '.';
}

ingot_tensor_class ingot_model_classify(const ingot_model *model, const char *name, uint64_t *layer,
                                        ingot_role *role) {
    char candidate[INGOT_NAME_SIZE];
    if (strcmp(name, model->embed_name) == 0) {
        return INGOT_CLASS_EMBED;
    }
    if (strcmp(name, model->head_name) == 0) {
        return INGOT_CLASS_HEAD;
    }
    if (strcmp(name, model->final_norm_name) == 0) {
        return INGOT_CLASS_NORM;
    }
    if (!ingot_model_layer_of(model, name, layer) || *layer >= model->layers) {
        return INGOT_CLASS_UNKNOWN;
    }
    for (*role = 0; *role < INGOT_ROLE_COUNT; (*role)++) {
        if (!model->linear[*role].is_present) {
            continue;
        }
        ingot_model_linear_name(model, *layer, *role, candidate);
        if (strcmp(candidate, name) == 0) {
            return INGOT_CLASS_LINEAR;
        }
        ingot_model_bias_name(model, *layer, *role, candidate);
        if (model->linear[*role].has_bias && strcmp(candidate, name) == 0) {
            return INGOT_CLASS_BIAS;
        }
    }
    for (ingot_norm_slot slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        if (ingot_model_norm_name(model, *layer, slot, candidate) && strcmp(candidate, name) == 0) {
            return INGOT_CLASS_NORM;
        }
    }
    return INGOT_CLASS_UNKNOWN;
}

const char *ingot_model_stand_in(const ingot_model *model, const char *name) {
    const bool can_be_tied = model->is_tied || !model->is_tie_stated;
    return can_be_tied && strcmp(name, model->head_name) == 0 ? model->embed_name : NULL;
}
