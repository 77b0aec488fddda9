/* config.json -> ingot_model: sizes, rotary frequencies, windows, biases, folds, names; and every
 * configuration or checkpoint that must be refused. */
#include "calib/model.h"

#include "checkpoint_folder.h"
#include "common/json.h"

#include <math.h>

#define BASE                                                                                       \
    "\"hidden_size\":8,\"intermediate_size\":12,\"num_hidden_layers\":4,"                          \
    "\"num_attention_heads\":4,\"vocab_size\":6,\"max_position_embeddings\":64"
#define LLAMA   "\"model_type\":\"llama\"," BASE
#define MISTRAL "\"model_type\":\"mistral\"," BASE
#define QWEN2   "\"model_type\":\"qwen2\"," BASE
#define QWEN3   "\"model_type\":\"qwen3\"," BASE

static ingot_status read_model(ingot_model *model, const char *members) {
    char text[2048];
    memset(&error, 0, sizeof error);
    (void)snprintf(text, sizeof text, "{%s}", members);
    return ingot_model_from_config(model, text, strlen(text), "config.json", &error);
}

/* A model that must be accepted; the caller closes it. */
static ingot_model accepted(const char *members) {
    ingot_model model;
    const ingot_status status = read_model(&model, members);
    if (status != INGOT_OK) {
        printf("\n    %s: %s", members, error.reason);
    }
    CU_ASSERT_EQUAL_FATAL(status, INGOT_OK);
    return model;
}

static void refused(const char *members, ingot_status wanted, const char *text) {
    ingot_model model;
    check_error(members, read_model(&model, members), wanted, text);
    CU_ASSERT(error.remedy[0] != '\0');
}

static void test_sizes(void) {
    ingot_model model = accepted(LLAMA);
    CU_ASSERT_STRING_EQUAL(model.family, "llama");
    CU_ASSERT(model.hidden == 8 && model.ffn == 12 && model.layers == 4 && model.heads == 4);
    CU_ASSERT(model.kv_heads == 4 && model.head_dim == 2 && model.vocab == 6);
    CU_ASSERT(model.context == 64 && model.rotary_dim == 2 && !model.is_tied);
    CU_ASSERT(model.activation == INGOT_ACT_SILU && model.norm == INGOT_NORM_RMS);
    CU_ASSERT_DOUBLE_EQUAL(model.norm_eps, 1e-6, 1e-12);
    CU_ASSERT_DOUBLE_EQUAL(model.attention_scale, sqrt(0.5), 1e-7);
    CU_ASSERT_EQUAL(model.eos_count, 0);
    ingot_model_close(&model);

    model = accepted(LLAMA ",\"num_key_value_heads\":2,\"head_dim\":6,\"rms_norm_eps\":1e-5,"
                           "\"hidden_act\":\"gelu_pytorch_tanh\",\"tie_word_embeddings\":true,"
                           "\"eos_token_id\":[5,1],\"architectures\":[\"LlamaForCausalLM\"]");
    CU_ASSERT(model.kv_heads == 2 && model.head_dim == 6 && model.is_tied);
    CU_ASSERT(model.activation == INGOT_ACT_GELU_TANH);
    CU_ASSERT(model.eos_count == 2 && model.eos_ids[0] == 5 && model.eos_ids[1] == 1);
    CU_ASSERT(model.linear[INGOT_ROLE_Q].rows == 24 && model.linear[INGOT_ROLE_Q].cols == 8);
    CU_ASSERT(model.linear[INGOT_ROLE_V].rows == 12 && model.linear[INGOT_ROLE_O].cols == 24);
    CU_ASSERT(model.linear[INGOT_ROLE_GATE].rows == 12 && model.linear[INGOT_ROLE_DOWN].rows == 8);
    ingot_model_close(&model);

    /* ids that no token has never come: they are left out, as `transformers` does in effect */
    model = accepted(LLAMA ",\"eos_token_id\":[6,1,-1,2,3,4,5,0,1,2]");
    CU_ASSERT(model.eos_count == 8 && model.eos_ids[0] == 1 && model.eos_ids[7] == 2);
    CU_ASSERT_FALSE(model.is_endless);
    ingot_model_close(&model);
    model = accepted(LLAMA ",\"eos_token_id\":6");
    CU_ASSERT(model.eos_count == 0 && model.is_endless);
    ingot_model_close(&model);

    model = accepted(QWEN3); /* a family whose heads are 128 wide unless the file says otherwise */
    CU_ASSERT_EQUAL(model.head_dim, 128);
    ingot_model_close(&model);
    model = accepted(LLAMA ",\"head_dim\":null,\"num_key_value_heads\":null,\"eos_token_id\":null");
    CU_ASSERT(model.head_dim == 2 && model.kv_heads == 4);
    ingot_model_close(&model);
    /* the type is missing: the architecture names the family */
    model = accepted("\"architectures\":[\"Qwen2ForCausalLM\"]," BASE);
    CU_ASSERT_STRING_EQUAL(model.family, "qwen2");
    ingot_model_close(&model);
}

static void test_families(void) {
    ingot_model model = accepted(LLAMA ",\"attention_bias\":true");
    CU_ASSERT(model.linear[INGOT_ROLE_Q].has_bias && model.linear[INGOT_ROLE_O].has_bias);
    CU_ASSERT(!model.linear[INGOT_ROLE_UP].has_bias && model.norm_suffix[INGOT_SLOT_Q] == NULL);
    ingot_model_close(&model);
    model = accepted(LLAMA ",\"mlp_bias\":true");
    CU_ASSERT(!model.linear[INGOT_ROLE_V].has_bias && model.linear[INGOT_ROLE_DOWN].has_bias);
    ingot_model_close(&model);
    model = accepted(MISTRAL ",\"attention_bias\":true");
    CU_ASSERT(!model.linear[INGOT_ROLE_Q].has_bias);
    ingot_model_close(&model);
    model = accepted(QWEN2);
    CU_ASSERT(model.linear[INGOT_ROLE_Q].has_bias && model.linear[INGOT_ROLE_K].has_bias);
    CU_ASSERT(model.linear[INGOT_ROLE_V].has_bias && !model.linear[INGOT_ROLE_O].has_bias);
    ingot_model_close(&model);
    model = accepted(QWEN3);
    CU_ASSERT(!model.linear[INGOT_ROLE_Q].has_bias);
    CU_ASSERT_STRING_EQUAL(model.norm_suffix[INGOT_SLOT_K], "self_attn.k_norm");
    ingot_model_close(&model);
}

/* ---- rotary embedding --------------------------------------------------------------------------
 */

#define WIDE "\"head_dim\":8,"

static void check_frequencies(const char *members, const double wanted[4]) {
    ingot_model model = accepted(members);
    CU_ASSERT_EQUAL_FATAL(model.rotary_dim, 8);
    for (int i = 0; i < 4; i++) {
        CU_ASSERT_DOUBLE_EQUAL(model.inverse_frequency[i], wanted[i], 1e-12);
    }
    CU_ASSERT_EQUAL(model.rope_attention_factor, 1.0f);
    ingot_model_close(&model);
}

static void test_rope(void) {
    const double plain[] = {1, 0.1, 0.01, 0.001};
    const double other[] = {1, 0.01, 0.0001, 0.000001};
    const double linear[] = {0.25, 0.025, 0.0025, 0.00025};
    check_frequencies(WIDE LLAMA, plain);
    check_frequencies(WIDE LLAMA ",\"rope_scaling\":null,\"rope_theta\":1e8", other);
    check_frequencies(WIDE LLAMA ",\"rope_theta\":100000000", other);
    check_frequencies(WIDE LLAMA ",\"rope_parameters\":{\"rope_theta\":1e8}", other);
    check_frequencies(WIDE LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}", linear);
    check_frequencies(WIDE LLAMA ",\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":4}",
                      linear);
    check_frequencies(WIDE LLAMA ",\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":4.0}",
                      linear);
    /* where both stand, the older one counts, as in `transformers` */
    check_frequencies(WIDE LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\"},"
                                 "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}",
                      linear);
    check_frequencies(WIDE LLAMA ",\"rope_parameters\":{\"rope_type\":\"default\"},"
                                 "\"rope_scaling\":{}",
                      plain);

    /* Theta 100: wavelengths 6.28, 19.9, 62.8 and 199. Original length 32, factors 1 and 4: the
     * first is kept, the last two are divided, the second is 32 / 19.87 = 1.61 of 1..4. */
    const double f = pow(100, -0.25);
    const double smooth = (32 * f / (2 * 3.14159265358979323846) - 1) / 3;
    const double llama3[] = {1, (1 - smooth) * f / 8 + smooth * f, 0.1 / 8, pow(100, -0.75) / 8};
    CU_ASSERT(smooth > 0.1 && smooth < 0.9);
#define LLAMA3 "\"factor\":8.0,\"low_freq_factor\":1.0,\"high_freq_factor\":4.0"
    check_frequencies(WIDE LLAMA
                      ",\"rope_theta\":100,\"rope_scaling\":{\"rope_type\":\"llama3\"," LLAMA3
                      ",\"original_max_position_embeddings\":32}",
                      llama3);
    check_frequencies(WIDE LLAMA ",\"rope_parameters\":{\"rope_type\":\"llama3\","
                                 "\"rope_theta\":100.0," LLAMA3
                                 ",\"original_max_position_embeddings\":32}",
                      llama3);
    check_frequencies(WIDE LLAMA ",\"original_max_position_embeddings\":32,\"rope_parameters\":{"
                                 "\"rope_type\":\"llama3\",\"rope_theta\":100.0," LLAMA3 "}",
                      llama3);

    check_frequencies(WIDE LLAMA ",\"partial_rotary_factor\":1,\"rope_parameters\":{"
                                 "\"rope_theta\":10000.0,\"partial_rotary_factor\":1.0}",
                      plain);
    refused(LLAMA ",\"partial_rotary_factor\":0.5", INGOT_ERR_UNSUPPORTED, "partial_rotary_factor");
    refused(QWEN3 ",\"rope_parameters\":{\"rope_theta\":1e6,\"partial_rotary_factor\":0.25}",
            INGOT_ERR_UNSUPPORTED, "partial_rotary_factor");
    refused(LLAMA ",\"partial_rotary_factor\":\"1\"", INGOT_ERR_INPUT, "partial_rotary_factor");

    static const char *const unsupported[] = {"dynamic", "yarn", "longrope", "su", "mrope"};
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        char members[512];
        (void)snprintf(members, sizeof members,
                       LLAMA ",\"rope_scaling\":{\"type\":\"%s\",\"factor\":2.0}", unsupported[i]);
        refused(members, INGOT_ERR_UNSUPPORTED, unsupported[i]);
    }
    refused(LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e6}}",
            INGOT_ERR_UNSUPPORTED, "layer");
    refused(LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}", INGOT_ERR_INPUT, "factor");
    refused(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.5}", INGOT_ERR_INPUT,
            "factor");
    refused(LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":\"4\"}", INGOT_ERR_INPUT,
            "factor");
    refused(LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8.0}", INGOT_ERR_INPUT,
            "low_freq_factor");
    refused(LLAMA ",\"rope_scaling\":[1]", INGOT_ERR_INPUT, "rope_scaling");
    refused(LLAMA ",\"rope_theta\":0", INGOT_ERR_INPUT, "rope_theta");
    refused(LLAMA ",\"rope_theta\":\"x\"", INGOT_ERR_INPUT, "rope_theta");
    refused(LLAMA ",\"partial_rotary_factor\":0", INGOT_ERR_UNSUPPORTED, "partial_rotary_factor");
}

static void check_windows(const char *members, uint64_t a, uint64_t b, uint64_t c, uint64_t d) {
    ingot_model model = accepted(members);
    const uint64_t *w = model.window;
    if (w[0] != a || w[1] != b || w[2] != c || w[3] != d) {
        printf("\n    %s: %llu %llu %llu %llu", members, (unsigned long long)w[0],
               (unsigned long long)w[1], (unsigned long long)w[2], (unsigned long long)w[3]);
        CU_FAIL("windows");
    }
    ingot_model_close(&model);
}

static void test_windows(void) {
    check_windows(LLAMA ",\"sliding_window\":5,\"use_sliding_window\":true", 0, 0, 0, 0);
    check_windows(MISTRAL ",\"sliding_window\":5", 5, 5, 5, 5);
    check_windows(MISTRAL ",\"sliding_window\":null", 0, 0, 0, 0);
    check_windows(MISTRAL, 4096, 4096, 4096, 4096); /* the default of its class */
    check_windows(QWEN2 ",\"sliding_window\":5,\"max_window_layers\":1", 0, 0, 0, 0);
    check_windows(QWEN2 ",\"use_sliding_window\":false,\"sliding_window\":5", 0, 0, 0, 0);
    check_windows(QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":5,"
                        "\"max_window_layers\":1",
                  0, 5, 5, 5);
    check_windows(QWEN2 ",\"use_sliding_window\":true,\"max_window_layers\":3", 0, 0, 0, 4096);
    check_windows(QWEN2 ",\"use_sliding_window\":true,\"sliding_window\":5", 0, 0, 0, 0);
    check_windows(QWEN3 ",\"use_sliding_window\":true,\"sliding_window\":null,"
                        "\"max_window_layers\":0",
                  0, 0, 0, 0);
#define TYPES                                                                                      \
    ",\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\","            \
    "\"full_attention\"]"
    check_windows(QWEN3 ",\"use_sliding_window\":true,\"sliding_window\":5,"
                        "\"max_window_layers\":1" TYPES,
                  5, 0, 5, 0);
    check_windows(QWEN3 ",\"sliding_window\":5" TYPES, 0, 0, 0, 0);
    refused(QWEN3 ",\"layer_types\":[\"full_attention\"]", INGOT_ERR_INPUT, "layer_types");
    refused(QWEN3 ",\"layer_types\":{}", INGOT_ERR_INPUT, "layer_types");
    refused(QWEN3 ",\"layer_types\":[\"linear_attention\"]", INGOT_ERR_UNSUPPORTED,
            "linear_attention");
    refused(MISTRAL ",\"sliding_window\":-1", INGOT_ERR_INPUT, "sliding_window");
}

static void test_refused(void) {
    ingot_model model;
    check_error("no JSON", ingot_model_from_config(&model, "x", 1, "config.json", &error),
                INGOT_ERR_INPUT, "JSON");
    check_error("a list", ingot_model_from_config(&model, "[]", 2, "config.json", &error),
                INGOT_ERR_INPUT, "object");
    check_error("empty", ingot_model_from_config(&model, "", 0, "config.json", &error),
                INGOT_ERR_INPUT, "JSON");
    refused("\"a\":1", INGOT_ERR_INPUT, "model_type");
    refused("\"model_type\":\"banana\"", INGOT_ERR_UNSUPPORTED, "banana");
    refused("\"model_type\":\"banana\"", INGOT_ERR_UNSUPPORTED, "llama, mistral, qwen2, qwen3");
    refused("\"model_type\":3", INGOT_ERR_INPUT, "model_type");
    refused("\"architectures\":[\"BananaForCausalLM\"]", INGOT_ERR_UNSUPPORTED,
            "BananaForCausalLM");
    refused(LLAMA ",\"architectures\":[\"LlamaForSequenceClassification\"]", INGOT_ERR_UNSUPPORTED,
            "LlamaForSequenceClassification");
    refused(LLAMA ",\"architectures\":\"LlamaForCausalLM\"", INGOT_ERR_INPUT, "architectures");
    refused(LLAMA ",\"hidden_act\":\"mish\"", INGOT_ERR_UNSUPPORTED, "mish");
    refused(LLAMA ",\"num_key_value_heads\":3", INGOT_ERR_INPUT, "fit together");
    refused(LLAMA ",\"num_key_value_heads\":8", INGOT_ERR_INPUT, "num_key_value_heads");
    refused(LLAMA ",\"head_dim\":3", INGOT_ERR_INPUT, "fit together");
    refused(LLAMA ",\"head_dim\":1000000", INGOT_ERR_INPUT, "head_dim");
    refused(LLAMA ",\"rms_norm_eps\":-1", INGOT_ERR_INPUT, "rms_norm_eps");
    refused(LLAMA ",\"tie_word_embeddings\":1", INGOT_ERR_INPUT, "tie_word_embeddings");
    refused(LLAMA ",\"attention_bias\":\"yes\"", INGOT_ERR_INPUT, "attention_bias");
    refused(LLAMA ",\"eos_token_id\":[1,\"2\"]", INGOT_ERR_INPUT, "eos_token_id");
    refused(LLAMA ",\"eos_token_id\":1.0", INGOT_ERR_INPUT, "eos_token_id");
    refused(LLAMA ",\"eos_token_id\":[0,1,2,3,4,5,0,1,2]", INGOT_ERR_INPUT, "eos_token_id");
    static const char *const keys[] = {"hidden_size",       "intermediate_size",
                                       "num_hidden_layers", "num_attention_heads",
                                       "vocab_size",        "max_position_embeddings"};
    static const char *const values[] = {"0",     "-1",   "1.5", "\"8\"", "9223372036854775807",
                                         "1e300", "null", "[8]"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            char members[1024] = "\"model_type\":\"llama\"";
            for (size_t j = 0; j < sizeof keys / sizeof *keys; j++) {
                const size_t used = strlen(members);
                (void)snprintf(members + used, sizeof members - used, ",\"%s\":%s", keys[j],
                               j == i ? values[v] : "4");
            }
            refused(members, INGOT_ERR_INPUT, keys[i]);
        }
    }
    refused("\"num_attention_heads\":3,\"model_type\":\"llama\",\"hidden_size\":8,"
            "\"intermediate_size\":12,\"num_hidden_layers\":4,\"vocab_size\":6,"
            "\"max_position_embeddings\":64",
            INGOT_ERR_INPUT, "does not divide");
}

static void test_folds(void) {
    ingot_model model = accepted(LLAMA ",\"num_key_value_heads\":2");
    CU_ASSERT_EQUAL_FATAL(model.fold_count, 4);
    const ingot_fold_desc *f = model.fold;
    CU_ASSERT(f[0].is_norm && f[0].slot == INGOT_SLOT_ATTENTION && f[0].consumer_count == 3);
    CU_ASSERT(f[1].is_norm && f[1].slot == INGOT_SLOT_MLP && f[1].consumer_count == 2);
    CU_ASSERT(!f[2].is_norm && f[2].producer == INGOT_ROLE_V);
    CU_ASSERT(f[2].consumers[0] == INGOT_ROLE_O && f[2].repeat == 2 && f[2].head_dim == 2);
    CU_ASSERT(!f[3].is_norm && f[3].producer == INGOT_ROLE_UP);
    CU_ASSERT(f[3].consumers[0] == INGOT_ROLE_DOWN && f[3].repeat == 1);
    /* every consumer of a fold reads one input, all that read a norm are consumers of it */
    for (unsigned i = 0; i < model.fold_count; i++) {
        const ingot_input input = model.linear[f[i].consumers[0]].input;
        unsigned readers = 0;
        for (ingot_role role = 0; role < INGOT_ROLE_COUNT; role++) {
            readers += model.linear[role].input == input;
        }
        CU_ASSERT_EQUAL(readers, f[i].consumer_count);
    }
    /* heads read in groups: column c of o comes from row (c / 4) * 2 + c % 2 of v */
    CU_ASSERT_EQUAL(model.linear[INGOT_ROLE_O].cols, model.linear[INGOT_ROLE_V].rows * f[2].repeat);
    ingot_model_close(&model);
}

static void test_names(void) {
    ingot_model model = accepted(QWEN3 ",\"attention_bias\":true");
    char name[INGOT_NAME_SIZE];
    uint64_t layer = 0;
    ingot_role role = 0;
    ingot_model_linear_name(&model, 3, INGOT_ROLE_DOWN, name);
    CU_ASSERT_STRING_EQUAL(name, "model.layers.3.mlp.down_proj.weight");
    CU_ASSERT_EQUAL(ingot_model_classify(&model, name, &layer, &role), INGOT_CLASS_LINEAR);
    CU_ASSERT(layer == 3 && role == INGOT_ROLE_DOWN);
    ingot_model_bias_name(&model, 2, INGOT_ROLE_K, name);
    CU_ASSERT_STRING_EQUAL(name, "model.layers.2.self_attn.k_proj.bias");
    CU_ASSERT_EQUAL(ingot_model_classify(&model, name, &layer, &role), INGOT_CLASS_BIAS);
    CU_ASSERT(layer == 2 && role == INGOT_ROLE_K);
    CU_ASSERT(ingot_model_norm_name(&model, 1, INGOT_SLOT_Q, name));
    CU_ASSERT_STRING_EQUAL(name, "model.layers.1.self_attn.q_norm.weight");
    CU_ASSERT_FALSE(ingot_model_norm_name(&model, 1, INGOT_SLOT_MLP_POST, name));
    static const struct {
        const char *name;
        ingot_tensor_class wanted;
    } cases[] = {
        {"model.embed_tokens.weight", INGOT_CLASS_EMBED},
        {"lm_head.weight", INGOT_CLASS_HEAD},
        {"model.norm.weight", INGOT_CLASS_NORM},
        {"model.layers.0.input_layernorm.weight", INGOT_CLASS_NORM},
        {"model.layers.0.self_attn.q_norm.weight", INGOT_CLASS_NORM},
        {"model.layers.0.self_attn.rotary_emb.inv_freq", INGOT_CLASS_UNKNOWN},
        {"model.layers.4.mlp.up_proj.weight", INGOT_CLASS_UNKNOWN}, /* beyond the last layer */
        {"model.layers.00.mlp.up_proj.weight", INGOT_CLASS_UNKNOWN},
        {"model.layers.-0.mlp.up_proj.weight", INGOT_CLASS_UNKNOWN},
        {"model.layers.", INGOT_CLASS_UNKNOWN},
        {"model.layersX0.mlp.up_proj.weight", INGOT_CLASS_UNKNOWN},
        {"model.layers.0.mlp.up_proj.bias", INGOT_CLASS_UNKNOWN}, /* this family has none */
        {"", INGOT_CLASS_UNKNOWN},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const ingot_tensor_class found = ingot_model_classify(&model, cases[i].name, &layer, &role);
        if (found != cases[i].wanted) {
            printf("\n    %s: %d", cases[i].name, (int)found);
        }
        CU_ASSERT_EQUAL(found, cases[i].wanted);
    }
    ingot_model_close(&model);
}

/* ---- with weights ------------------------------------------------------------------------------
 */

/* A llama of one layer, 2 wide, as a checkpoint: every tensor F32 but `odd_name`, which is left out
 * (odd_shape NULL) or has another shape or dtype.  head: none, the table's bytes, others. */
typedef enum head_kind { NO_HEAD, SAME_HEAD, OTHER_HEAD } head_kind;

static void put_model(const char *config, head_kind head, const char *odd_name,
                      const char *odd_shape, const char *odd_dtype) {
    static const struct {
        const char *name, *shape;
        unsigned elements;
    } tensors[] = {
        {"model.embed_tokens.weight", "[3,2]", 6},
        {"model.norm.weight", "[2]", 2},
        {"model.layers.0.input_layernorm.weight", "[2]", 2},
        {"model.layers.0.post_attention_layernorm.weight", "[2]", 2},
        {"model.layers.0.self_attn.q_proj.weight", "[2,2]", 4},
        {"model.layers.0.self_attn.k_proj.weight", "[2,2]", 4},
        {"model.layers.0.self_attn.v_proj.weight", "[2,2]", 4},
        {"model.layers.0.self_attn.o_proj.weight", "[2,2]", 4},
        {"model.layers.0.mlp.gate_proj.weight", "[4,2]", 8},
        {"model.layers.0.mlp.up_proj.weight", "[4,2]", 8},
        {"model.layers.0.mlp.down_proj.weight", "[2,4]", 8},
        {"lm_head.weight", "[3,2]", 6},
    };
    char header[4096] = "{";
    uint8_t bytes[8 + 4096 + 512] = {0};
    unsigned offset = 0;
    const size_t count = sizeof tensors / sizeof *tensors - (head == NO_HEAD ? 1 : 0);
    for (size_t i = 0; i < count; i++) {
        const size_t used = strlen(header);
        const bool is_odd = odd_name != NULL && strcmp(odd_name, tensors[i].name) == 0;
        if (is_odd && odd_shape == NULL) {
            continue;
        }
        (void)snprintf(header + used, sizeof header - used,
                       "%s\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%u,%u]}",
                       used > 1 ? "," : "", tensors[i].name, is_odd ? odd_dtype : "F32",
                       is_odd ? odd_shape : tensors[i].shape, offset,
                       offset + 4 * tensors[i].elements);
        offset += 4 * tensors[i].elements;
    }
    (void)snprintf(header + strlen(header), sizeof header - strlen(header), "}");
    const size_t length = strlen(header);
    bytes[0] = (uint8_t)length;
    bytes[1] = (uint8_t)(length >> 8);
    memcpy(bytes + 8, header, length);
    if (head == OTHER_HEAD) {
        bytes[8 + length + offset - 1] = 1;
    }
    folder_clear();
    put_text("config.json", config);
    put_bytes("model.safetensors", bytes, 8 + length + offset);
}

#define LAYERS(count)                                                                              \
    "{\"model_type\":\"llama\",\"hidden_size\":2,\"intermediate_size\":4,"                         \
    "\"num_hidden_layers\":" count ",\"num_attention_heads\":1,\"vocab_size\":3,"                  \
    "\"max_position_embeddings\":8"
#define ONE_LAYER LAYERS("1")
#define SILENT    ONE_LAYER "}"
#define TIED      ONE_LAYER ",\"tie_word_embeddings\":true}"
#define NOT_TIED  ONE_LAYER ",\"tie_word_embeddings\":false}"

static ingot_status open_model(ingot_model *model) {
    ingot_weight_source source;
    INGOT_TRY(ingot_weight_source_open(&source, folder, true, &error));
    const ingot_status status = ingot_model_open(model, &source, &error);
    ingot_weight_source_close(&source);
    return status;
}

static void test_tie(void) {
    static const struct {
        const char *config;
        head_kind head;
        int wanted; /* is_tied, -1: refused */
    } cases[] = {
        {SILENT, NO_HEAD, 1},    {SILENT, SAME_HEAD, 0},   {SILENT, OTHER_HEAD, 0},
        {TIED, NO_HEAD, 1},      {TIED, SAME_HEAD, 1},     {TIED, OTHER_HEAD, 0},
        {NOT_TIED, NO_HEAD, -1}, {NOT_TIED, SAME_HEAD, 0}, {NOT_TIED, OTHER_HEAD, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ingot_model model;
        put_model(cases[i].config, cases[i].head, NULL, NULL, NULL);
        const ingot_status status = open_model(&model);
        if (cases[i].wanted < 0) {
            check_error(cases[i].config, status, INGOT_ERR_INPUT, "lm_head.weight");
            continue;
        }
        CU_ASSERT_EQUAL_FATAL(status, INGOT_OK);
        CU_ASSERT_EQUAL(model.is_tied, cases[i].wanted);
        ingot_model_close(&model);
    }
}

static void test_tensors(void) {
    static const char *const names[] = {"model.embed_tokens.weight",
                                        "model.norm.weight",
                                        "model.layers.0.input_layernorm.weight",
                                        "model.layers.0.self_attn.o_proj.weight",
                                        "model.layers.0.mlp.gate_proj.weight",
                                        "model.layers.0.mlp.down_proj.weight"};
    ingot_model model;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        put_model(TIED, NO_HEAD, names[i], NULL, NULL);
        check_error("missing", open_model(&model), INGOT_ERR_INPUT, names[i]);
    }
    put_model(ONE_LAYER ",\"attention_bias\":true}", NO_HEAD, NULL, NULL, NULL);
    check_error("the first", open_model(&model), INGOT_ERR_INPUT, "0.self_attn.q_proj.bias");
    CU_ASSERT_STRING_EQUAL(error.reason,
                           "config.json describes this tensor, but it is not there; also missing: "
                           "model.layers.0.self_attn.k_proj.bias, "
                           "model.layers.0.self_attn.v_proj.bias, "
                           "model.layers.0.self_attn.o_proj.bias");
    put_model(LAYERS("3") ",\"tie_word_embeddings\":false}", NO_HEAD, "model.norm.weight", NULL,
              NULL);
    check_error("many", open_model(&model), INGOT_ERR_INPUT, "model.layers.1.self_attn.q_proj");
    CU_ASSERT_STRING_EQUAL(error.reason,
                           "config.json describes this tensor, but it is not there; also missing: "
                           "model.layers.1.self_attn.k_proj.weight, "
                           "model.layers.1.self_attn.v_proj.weight, "
                           "model.layers.1.self_attn.o_proj.weight, "
                           "model.layers.1.mlp.gate_proj.weight and 15 more");
    put_model(TIED, NO_HEAD, "model.layers.0.mlp.down_proj.weight", "[4,2]", "F32");
    check_error("transposed", open_model(&model), INGOT_ERR_INPUT, "2 rows of 4");
    put_model(TIED, NO_HEAD, "model.layers.0.mlp.down_proj.weight", "[8]", "F32");
    check_error("flat", open_model(&model), INGOT_ERR_INPUT, "another shape");
    put_model(TIED, NO_HEAD, "model.norm.weight", "[1,2]", "F32");
    check_error("norm as a matrix", open_model(&model), INGOT_ERR_INPUT, "a vector of 2");
    put_model(TIED, NO_HEAD, "model.layers.0.mlp.down_proj.weight", "[2,4]", "I32");
    check_error("integers", open_model(&model), INGOT_ERR_UNSUPPORTED, "dtype");
    put_model(TIED, NO_HEAD, "model.layers.0.mlp.down_proj.weight", "[2,2]", "F64");
    check_error("doubles", open_model(&model), INGOT_ERR_UNSUPPORTED, "dtype");

    put_model(TIED, NO_HEAD, NULL, NULL, NULL);
    put_text("generation_config.json", "{\"eos_token_id\":[2,1]}");
    CU_ASSERT_EQUAL_FATAL(open_model(&model), INGOT_OK);
    CU_ASSERT(model.eos_count == 2 && model.eos_ids[0] == 2 && model.eos_ids[1] == 1);
    ingot_model_close(&model);
    put_text("generation_config.json", "{\"eos_token_id\":[3,2]}");
    CU_ASSERT_EQUAL_FATAL(open_model(&model), INGOT_OK);
    CU_ASSERT(model.eos_count == 1 && model.eos_ids[0] == 2 && !model.is_endless);
    ingot_model_close(&model);
    put_text("generation_config.json", "{\"eos_token_id\":true}");
    check_error("eos", open_model(&model), INGOT_ERR_INPUT, "eos_token_id");
    put_text("generation_config.json", "[");
    check_error("eos", open_model(&model), INGOT_ERR_INPUT, "generation_config.json");
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"sizes and defaults", test_sizes},
        {"families", test_families},
        {"rotary frequencies", test_rope},
        {"windows", test_windows},
        {"refused configurations", test_refused},
        {"folds", test_folds},
        {"names and classes", test_names},
        {"tied heads", test_tie},
        {"tensors that are not as described", test_tensors},
        CU_TEST_INFO_NULL,
    };
    folder_make();
    const int result = suite_run("model", tests);
    folder_remove();
    return result;
}
