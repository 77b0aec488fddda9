/* config.json -> ingot_model.  An architecture is a row of `families`; everything a family may vary
 * in is a field, so that a new one is a new row and, at most, a new value of a field. */
#include "calib/model.h"

#include "common/json.h"
#include "common/memory.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define MAX_LAYERS 1024u
#define MAX_WIDTH  (UINT64_C(1) << 20)
#define MAX_VOCAB  (UINT64_C(1) << 24)
#define PI         3.14159265358979323846

typedef enum bias_rule { BIAS_NEVER, BIAS_ALWAYS, BIAS_BY_KEY } bias_rule;
typedef enum window_rule {
    WINDOW_NEVER,
    WINDOW_IF_SET,    /* sliding_window, when it is a number, in every layer */
    WINDOW_IF_ENABLED /* only with use_sliding_window, in the layers layer_types calls sliding,
                         without that list from layer max_window_layers on */
} window_rule;

/* What `transformers` assumes where a key is absent, for every family that has the key. */
#define DEFAULT_WINDOW             4096
#define DEFAULT_FIRST_WINDOW_LAYER 28

typedef struct family {
    const char *model_type;
    const char *architecture;             /* names the family where model_type is missing */
    uint64_t default_head_dim;            /* 0: hidden_size / num_attention_heads */
    bias_rule qkv_bias, o_bias, mlp_bias; /* BY_KEY: attention_bias, mlp_bias */
    bool has_qk_norm;
    window_rule window;
    ingot_norm_kind norm;
    const char *eps_key;
    bool is_gated;
    bool tied_by_default; /* what `transformers` assumes when the key is absent */
} family;

/* Sources: the configuration classes of `transformers` 4.x and 5.x. */
static const family families[] = {
    {"llama", "LlamaForCausalLM", 0, BIAS_BY_KEY, BIAS_BY_KEY, BIAS_BY_KEY, false, WINDOW_NEVER,
     INGOT_NORM_RMS, "rms_norm_eps", true, false},
    {"mistral", "MistralForCausalLM", 0, BIAS_NEVER, BIAS_NEVER, BIAS_NEVER, false, WINDOW_IF_SET,
     INGOT_NORM_RMS, "rms_norm_eps", true, false},
    {"qwen2", "Qwen2ForCausalLM", 0, BIAS_ALWAYS, BIAS_NEVER, BIAS_NEVER, false, WINDOW_IF_ENABLED,
     INGOT_NORM_RMS, "rms_norm_eps", true, false},
    {"qwen3", "Qwen3ForCausalLM", 128, BIAS_BY_KEY, BIAS_BY_KEY, BIAS_NEVER, true,
     WINDOW_IF_ENABLED, INGOT_NORM_RMS, "rms_norm_eps", true, false},
};

static const struct {
    const char *name;
    ingot_activation kind;
} activations[] = {
    {"silu", INGOT_ACT_SILU},          {"swish", INGOT_ACT_SILU},
    {"gelu", INGOT_ACT_GELU},          {"gelu_pytorch_tanh", INGOT_ACT_GELU_TANH},
    {"gelu_new", INGOT_ACT_GELU_TANH}, {"relu", INGOT_ACT_RELU},
};

typedef struct reading {
    const json_t *config;
    const char *path;
    ingot_error *error;
} reading;

static ingot_status refuse(const reading *in, ingot_status status, const char *key,
                           const char *reason) {
    return ingot_error_set(in->error, status, in->path, NULL,
                           status == INGOT_ERR_UNSUPPORTED ? "this version does not convert it"
                                                           : "check config.json",
                           "%s: %s", key, reason);
}

static ingot_status get_size(const reading *in, const char *key, uint64_t *out, uint64_t most) {
    INGOT_TRY(ingot_json_get_u64(in->config, key, out, in->path, in->error));
    if (*out < 1 || *out > most) {
        return refuse(in, INGOT_ERR_INPUT, key, "is missing or out of range");
    }
    return INGOT_OK;
}

static bool has_value(const reading *in, const char *key) {
    const json_t *value = json_object_get(in->config, key);
    return value != NULL && !json_is_null(value);
}

/* ---- family, sizes ----------------------------------------------------------------------------
 */

/* The first of `architectures`, or NULL. */
static ingot_status get_architecture(const reading *in, const char **out) {
    const json_t *list = json_object_get(in->config, "architectures");
    *out = NULL;
    if (list == NULL || json_is_null(list)) {
        return INGOT_OK;
    }
    *out = json_string_value(json_array_get(list, 0));
    return *out != NULL ? INGOT_OK
                        : refuse(in, INGOT_ERR_INPUT, "architectures", "is no list of names");
}

static ingot_status refuse_family(const reading *in, const char *name) {
    char known[128] = "";
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const size_t used = strlen(known);
        (void)snprintf(known + used, sizeof known - used, "%s%s", i > 0 ? ", " : "",
                       families[i].model_type);
    }
    return ingot_error_set(in->error, INGOT_ERR_UNSUPPORTED, in->path, NULL,
                           "this version does not convert it",
                           "the architecture '%s' is not known (known: %s)", name, known);
}

static ingot_status find_family(const reading *in, const family **out) {
    static const char causal[] = "ForCausalLM";
    const char *type = NULL;
    const char *architecture;
    INGOT_TRY(ingot_json_get_string(in->config, "model_type", &type, in->path, in->error));
    INGOT_TRY(get_architecture(in, &architecture));
    if (type == NULL && architecture == NULL) {
        return refuse(in, INGOT_ERR_INPUT, "model_type", "is missing");
    }
    /* A classifier or an encoder of the family shares its type but has other tensors. */
    const size_t length = architecture != NULL ? strlen(architecture) : 0;
    const size_t tail = sizeof causal - 1;
    if (architecture != NULL &&
        (length < tail || strcmp(architecture + length - tail, causal) != 0)) {
        return refuse_family(in, architecture);
    }
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        if (type != NULL ? strcmp(families[i].model_type, type) == 0
                         : strcmp(families[i].architecture, architecture) == 0) {
            *out = &families[i];
            return INGOT_OK;
        }
    }
    return refuse_family(in, type != NULL ? type : architecture);
}

static ingot_status read_sizes(ingot_model *model, const reading *in, const family *kind) {
    double eps = 1e-6;
    const char *activation = "silu";
    bool is_tied = kind->tied_by_default;
    INGOT_TRY(get_size(in, "hidden_size", &model->hidden, MAX_WIDTH));
    INGOT_TRY(get_size(in, "intermediate_size", &model->ffn, MAX_WIDTH));
    INGOT_TRY(get_size(in, "num_hidden_layers", &model->layers, MAX_LAYERS));
    INGOT_TRY(get_size(in, "num_attention_heads", &model->heads, MAX_WIDTH));
    INGOT_TRY(get_size(in, "vocab_size", &model->vocab, MAX_VOCAB));
    INGOT_TRY(get_size(in, "max_position_embeddings", &model->context, UINT32_MAX));
    model->kv_heads = model->heads;
    INGOT_TRY(get_size(in, "num_key_value_heads", &model->kv_heads, model->heads));
    const bool is_divided = kind->default_head_dim == 0;
    model->head_dim = is_divided ? model->hidden / model->heads : kind->default_head_dim;
    INGOT_TRY(get_size(in, "head_dim", &model->head_dim, 4096));
    if (is_divided && !has_value(in, "head_dim") && model->hidden % model->heads != 0) {
        return refuse(in, INGOT_ERR_INPUT, "num_attention_heads", "does not divide hidden_size");
    }
    if (model->heads % model->kv_heads != 0 || model->head_dim % 2 != 0 ||
        model->heads * model->head_dim > MAX_WIDTH) {
        return refuse(in, INGOT_ERR_INPUT, "num_attention_heads",
                      "heads, key heads and head_dim do not fit together");
    }
    INGOT_TRY(ingot_json_get_double(in->config, kind->eps_key, &eps, in->path, in->error));
    if (!(eps >= 0 && eps < 1)) {
        return refuse(in, INGOT_ERR_INPUT, kind->eps_key, "is out of range");
    }
    INGOT_TRY(
        ingot_json_get_bool(in->config, "tie_word_embeddings", &is_tied, in->path, in->error));
    INGOT_TRY(ingot_json_get_string(in->config, "hidden_act", &activation, in->path, in->error));
    model->norm = kind->norm;
    model->norm_eps = (float)eps;
    model->is_tied = is_tied;
    model->is_tie_stated = has_value(in, "tie_word_embeddings");
    model->embed_scale = 1.0f;
    model->attention_scale = (float)(1.0 / sqrt((double)model->head_dim));
    for (size_t i = 0; i < sizeof activations / sizeof *activations; i++) {
        if (strcmp(activations[i].name, activation) == 0) {
            model->activation = activations[i].kind;
            return INGOT_OK;
        }
    }
    return refuse(in, INGOT_ERR_UNSUPPORTED, "hidden_act", activation);
}

/* ---- rotary embedding -------------------------------------------------------------------------
 */

typedef struct rope_options {
    const char *type;
    double theta, factor, low, high, original, partial;
} rope_options;

/* Reads one object of rotary parameters over what is in *rope. */
static ingot_status read_rope_object(rope_options *rope, const json_t *from, const reading *in) {
    const struct {
        const char *key;
        double *value;
    } numbers[] = {
        {"rope_theta", &rope->theta},      {"partial_rotary_factor", &rope->partial},
        {"factor", &rope->factor},         {"low_freq_factor", &rope->low},
        {"high_freq_factor", &rope->high}, {"original_max_position_embeddings", &rope->original},
    };
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)from, key, value) {
        if (json_is_object(value)) { /* parameters of one kind of layer each */
            return refuse(in, INGOT_ERR_UNSUPPORTED, "rope_parameters",
                          "differ from layer to layer");
        }
    }
    /* The type's key was first called "type". */
    INGOT_TRY(ingot_json_get_string(from, "type", &rope->type, in->path, in->error));
    INGOT_TRY(ingot_json_get_string(from, "rope_type", &rope->type, in->path, in->error));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        INGOT_TRY(
            ingot_json_get_double(from, numbers[i].key, numbers[i].value, in->path, in->error));
    }
    return INGOT_OK;
}

/* Newer configurations hold everything in rope_parameters, older ones theta on the top level and
 * the rest in rope_scaling; where both stand, `transformers` takes rope_scaling. */
static ingot_status read_rope(rope_options *rope, const ingot_model *model, const reading *in) {
    const json_t *scaling = json_object_get(in->config, "rope_scaling");
    const json_t *parameters = json_object_get(in->config, "rope_parameters");
    const bool has_scaling = scaling != NULL && !json_is_null(scaling) &&
                             !(json_is_object(scaling) && json_object_size(scaling) == 0);
    const json_t *from = has_scaling ? scaling : parameters;
    *rope = (rope_options){
        .type = "default", .theta = 10000.0, .original = (double)model->context, .partial = 1.0};
    INGOT_TRY(ingot_json_get_double(in->config, "rope_theta", &rope->theta, in->path, in->error));
    INGOT_TRY(ingot_json_get_double(in->config, "partial_rotary_factor", &rope->partial, in->path,
                                    in->error));
    if (json_is_object(from)) {
        INGOT_TRY(read_rope_object(rope, from, in));
    } else if (from != NULL && !json_is_null(from)) {
        return refuse(in, INGOT_ERR_INPUT, "rope_scaling", "is not an object");
    }
    INGOT_TRY(ingot_json_get_double(in->config, "original_max_position_embeddings", &rope->original,
                                    in->path, in->error));
    if (!(rope->theta > 1.0)) {
        return refuse(in, INGOT_ERR_INPUT, "rope_theta", "is out of range");
    }
    if (rope->partial != 1.0) { /* spec/cli.md, section 13 */
        return refuse(in, INGOT_ERR_UNSUPPORTED, "partial_rotary_factor",
                      "is not 1: some programs turn a part of each head, others all of it");
    }
    return INGOT_OK;
}

/* Llama 3: long wavelengths are divided by factor, short ones kept, those between interpolated. */
static double llama3_frequency(double frequency, const rope_options *rope) {
    const double wavelength = 2.0 * PI / frequency;
    if (wavelength > rope->original / rope->low) {
        return frequency / rope->factor;
    }
    if (wavelength < rope->original / rope->high) {
        return frequency;
    }
    const double smooth = (rope->original / wavelength - rope->low) / (rope->high - rope->low);
    return (1.0 - smooth) * frequency / rope->factor + smooth * frequency;
}

static ingot_status make_rotary(ingot_model *model, const reading *in) {
    rope_options rope;
    void *memory;
    INGOT_TRY(read_rope(&rope, model, in));
    const bool is_llama3 = strcmp(rope.type, "llama3") == 0;
    const bool is_linear = strcmp(rope.type, "linear") == 0;
    if (!is_llama3 && !is_linear && strcmp(rope.type, "default") != 0) {
        return refuse(in, INGOT_ERR_UNSUPPORTED, "rope type", rope.type);
    }
    if ((is_linear || is_llama3) && !(rope.factor >= 1.0)) {
        return refuse(in, INGOT_ERR_INPUT, "rope_scaling", "factor is missing or below 1");
    }
    if (is_llama3 && !(rope.original > 0 && rope.low > 0 && rope.high > rope.low)) {
        return refuse(in, INGOT_ERR_INPUT, "rope_scaling",
                      "low_freq_factor and high_freq_factor are missing or out of order");
    }
    model->rope_attention_factor = 1.0f;
    model->rotary_dim = model->head_dim;
    const uint64_t pairs = model->rotary_dim / 2;
    INGOT_TRY(ingot_alloc_zero(&memory, pairs, sizeof(double)));
    model->inverse_frequency = memory;
    for (uint64_t i = 0; i < pairs; i++) {
        const double exponent = (double)(2 * i) / (double)model->rotary_dim;
        const double frequency = pow(rope.theta, -exponent);
        model->inverse_frequency[i] = is_llama3   ? llama3_frequency(frequency, &rope)
                                      : is_linear ? frequency / rope.factor
                                                  : frequency;
    }
    return INGOT_OK;
}

/* ---- attention windows ------------------------------------------------------------------------
 */

/* Whether layer_types (a list, or NULL) makes the layer a sliding one. */
static ingot_status read_layer_type(bool *is_sliding, const json_t *types, uint64_t layer,
                                    const reading *in) {
    if (types == NULL || json_is_null(types)) {
        return INGOT_OK;
    }
    const char *type = json_string_value(json_array_get(types, layer));
    if (type == NULL) {
        return refuse(in, INGOT_ERR_INPUT, "layer_types", "is no list of one name per layer");
    }
    *is_sliding = strcmp(type, "sliding_attention") == 0;
    return *is_sliding || strcmp(type, "full_attention") == 0
               ? INGOT_OK
               : refuse(in, INGOT_ERR_UNSUPPORTED, "layer_types", type);
}

static ingot_status read_windows(ingot_model *model, const reading *in, const family *kind) {
    uint64_t window = 0;
    uint64_t first_layer = DEFAULT_FIRST_WINDOW_LAYER;
    bool is_enabled = false;
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, model->layers, sizeof(uint64_t)));
    model->window = memory;
    if (kind->window == WINDOW_NEVER) {
        return INGOT_OK;
    }
    if (json_object_get(in->config, "sliding_window") == NULL) { /* null means none */
        window = DEFAULT_WINDOW;
    }
    INGOT_TRY(ingot_json_get_u64(in->config, "sliding_window", &window, in->path, in->error));
    INGOT_TRY(
        ingot_json_get_bool(in->config, "use_sliding_window", &is_enabled, in->path, in->error));
    INGOT_TRY(
        ingot_json_get_u64(in->config, "max_window_layers", &first_layer, in->path, in->error));
    for (uint64_t layer = 0; layer < model->layers; layer++) {
        bool is_sliding = kind->window == WINDOW_IF_SET;
        if (kind->window == WINDOW_IF_ENABLED) {
            is_sliding = layer >= first_layer;
            INGOT_TRY(read_layer_type(&is_sliding, json_object_get(in->config, "layer_types"),
                                      layer, in));
            is_sliding = is_sliding && is_enabled;
        }
        model->window[layer] = is_sliding ? window : 0;
    }
    return INGOT_OK;
}

/* ---- linears, norms, folds ----------------------------------------------------------------------
 */

static ingot_status has_bias(bool *out, const reading *in, bias_rule rule, const char *key) {
    *out = rule == BIAS_ALWAYS;
    return rule == BIAS_BY_KEY ? ingot_json_get_bool(in->config, key, out, in->path, in->error)
                               : INGOT_OK;
}

static ingot_status describe_linears(ingot_model *model, const reading *in, const family *kind) {
    bool qkv;
    bool o;
    bool mlp;
    INGOT_TRY(has_bias(&qkv, in, kind->qkv_bias, "attention_bias"));
    INGOT_TRY(has_bias(&o, in, kind->o_bias, "attention_bias"));
    INGOT_TRY(has_bias(&mlp, in, kind->mlp_bias, "mlp_bias"));
    const uint64_t q_rows = model->heads * model->head_dim;
    const uint64_t kv_rows = model->kv_heads * model->head_dim;
    const uint64_t h = model->hidden;
    const uint64_t f = model->ffn;
    ingot_linear_desc *linear = model->linear;
    linear[INGOT_ROLE_Q] =
        (ingot_linear_desc){true, qkv, q_rows, h, INGOT_INPUT_ATTENTION, "self_attn.q_proj"};
    linear[INGOT_ROLE_K] =
        (ingot_linear_desc){true, qkv, kv_rows, h, INGOT_INPUT_ATTENTION, "self_attn.k_proj"};
    linear[INGOT_ROLE_V] =
        (ingot_linear_desc){true, qkv, kv_rows, h, INGOT_INPUT_ATTENTION, "self_attn.v_proj"};
    linear[INGOT_ROLE_O] =
        (ingot_linear_desc){true, o, h, q_rows, INGOT_INPUT_OUTPUT, "self_attn.o_proj"};
    linear[INGOT_ROLE_GATE] =
        (ingot_linear_desc){kind->is_gated, mlp, f, h, INGOT_INPUT_MLP, "mlp.gate_proj"};
    linear[INGOT_ROLE_UP] = (ingot_linear_desc){true, mlp, f, h, INGOT_INPUT_MLP, "mlp.up_proj"};
    linear[INGOT_ROLE_DOWN] =
        (ingot_linear_desc){true, mlp, h, f, INGOT_INPUT_DOWN, "mlp.down_proj"};
    return INGOT_OK;
}

static void describe_rest(ingot_model *model, const family *kind) {
    (void)snprintf(model->family, sizeof model->family, "%s", kind->model_type);
    model->layer_prefix = "model.layers";
    model->embed_name = "model.embed_tokens.weight";
    model->final_norm_name = "model.norm.weight";
    model->head_name = "lm_head.weight";
    model->norm_suffix[INGOT_SLOT_ATTENTION] = "input_layernorm";
    model->norm_suffix[INGOT_SLOT_MLP] = "post_attention_layernorm";
    if (kind->has_qk_norm) {
        model->norm_suffix[INGOT_SLOT_Q] = "self_attn.q_norm";
        model->norm_suffix[INGOT_SLOT_K] = "self_attn.k_norm";
    }
    model->fold[model->fold_count++] =
        (ingot_fold_desc){.is_norm = true,
                          .slot = INGOT_SLOT_ATTENTION,
                          .consumers = {INGOT_ROLE_Q, INGOT_ROLE_K, INGOT_ROLE_V},
                          .consumer_count = 3,
                          .repeat = 1,
                          .head_dim = model->head_dim};
    ingot_fold_desc mlp = {.is_norm = true,
                           .slot = INGOT_SLOT_MLP,
                           .consumers = {INGOT_ROLE_UP, INGOT_ROLE_GATE},
                           .consumer_count = kind->is_gated ? 2 : 1,
                           .repeat = 1,
                           .head_dim = model->head_dim};
    model->fold[model->fold_count++] = mlp;
    model->fold[model->fold_count++] = (ingot_fold_desc){.producer = INGOT_ROLE_V,
                                                         .consumers = {INGOT_ROLE_O},
                                                         .consumer_count = 1,
                                                         .repeat = model->heads / model->kv_heads,
                                                         .head_dim = model->head_dim};
    if (kind->is_gated) { /* the product passes up's scale on; an activation alone does not */
        model->fold[model->fold_count++] = (ingot_fold_desc){.producer = INGOT_ROLE_UP,
                                                             .consumers = {INGOT_ROLE_DOWN},
                                                             .consumer_count = 1,
                                                             .repeat = 1,
                                                             .head_dim = model->head_dim};
    }
}

/* Ids that no token of the vocabulary has never come: a model is none the worse for them. */
static ingot_status read_eos(ingot_model *model, const reading *in) {
    const json_t *value = json_object_get(in->config, "eos_token_id");
    const size_t most = sizeof model->eos_ids / sizeof *model->eos_ids;
    if (value == NULL || json_is_null(value)) {
        return INGOT_OK;
    }
    const size_t count = json_is_array(value) ? json_array_size(value) : 1;
    model->eos_count = 0;
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(id)) {
            return refuse(in, INGOT_ERR_INPUT, "eos_token_id", "is no number of a token");
        }
        if (json_integer_value(id) < 0 || (uint64_t)json_integer_value(id) >= model->vocab) {
            continue;
        }
        if (model->eos_count == most) {
            return refuse(in, INGOT_ERR_INPUT, "eos_token_id", "has too many entries");
        }
        model->eos_ids[model->eos_count++] = (uint32_t)json_integer_value(id);
    }
    model->is_endless = count != 0 && model->eos_count == 0;
    return INGOT_OK;
}

/* A beginning that is no token of the vocabulary is none: most uses do without it. */
static void read_bos(ingot_model *model, const reading *in) {
    const json_t *id = json_object_get(in->config, "bos_token_id");
    model->has_bos = json_is_integer(id) && json_integer_value(id) >= 0 &&
                     (uint64_t)json_integer_value(id) < model->vocab;
    model->bos_id = model->has_bos ? (uint32_t)json_integer_value(id) : 0;
}

static ingot_status read_config(ingot_model *model, const reading *in) {
    const family *kind = NULL;
    if (!json_is_object(in->config)) {
        return refuse(in, INGOT_ERR_INPUT, "config", "is not a JSON object");
    }
    INGOT_TRY(find_family(in, &kind));
    INGOT_TRY(read_sizes(model, in, kind));
    INGOT_TRY(make_rotary(model, in));
    INGOT_TRY(read_windows(model, in, kind));
    INGOT_TRY(describe_linears(model, in, kind));
    describe_rest(model, kind);
    read_bos(model, in);
    return read_eos(model, in);
}

ingot_status ingot_model_from_config(ingot_model *out, const char *config, uint64_t size,
                                     const char *path, ingot_error *error) {
    json_t *root;
    memset(out, 0, sizeof *out);
    INGOT_TRY(ingot_json_parse(&root, config, size, path, error));
    const reading in = {root, path, error};
    const ingot_status status = read_config(out, &in);
    json_decref(root);
    if (status == INGOT_ERR_NO_MEMORY) {
        (void)ingot_error_set(error, status, path, NULL, NULL, "out of memory");
    }
    if (status != INGOT_OK) {
        ingot_model_close(out);
    }
    return status;
}

ingot_status ingot_model_add_eos(ingot_model *model, const char *generation_config, uint64_t size,
                                 const char *path, ingot_error *error) {
    json_t *root;
    INGOT_TRY(ingot_json_parse(&root, generation_config, size, path, error));
    const reading in = {root, path, error};
    const ingot_status status = read_eos(model, &in);
    json_decref(root);
    return status;
}
