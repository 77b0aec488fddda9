/* What examples/decode takes and what it refuses, on containers of one block that are made here:
 * everything is decided before a device is looked for, so that none is needed. */
#define main decode_main
int decode_main(int argc, char **argv);
#include "examples/decode/decode.c"
#undef main

#include "common/ingot_status.h"
#include "format/container_write.h"
#include "suite.h"

#include <unistd.h>

#define LAYER "model.layers.0."

typedef struct tensor {
    const char *name;
    uint64_t rows, cols; /* rows 0: a vector */
} tensor;

/* hidden 16, 2 heads of 8 and one key head, ffn 24, 32 ids. */
static const tensor plain[] = {
    {"model.embed_tokens.weight", 32, 16},
    {LAYER "input_layernorm.weight", 0, 16},
    {LAYER "self_attn.q_proj.weight", 16, 16},
    {LAYER "self_attn.k_proj.weight", 8, 16},
    {LAYER "self_attn.v_proj.weight", 8, 16},
    {LAYER "self_attn.o_proj.weight", 16, 16},
    {LAYER "post_attention_layernorm.weight", 0, 16},
    {LAYER "mlp.gate_proj.weight", 24, 16},
    {LAYER "mlp.up_proj.weight", 24, 16},
    {LAYER "mlp.down_proj.weight", 16, 24},
    {"model.norm.weight", 0, 16},
    {"lm_head.weight", 32, 16},
};
#define PLAIN (sizeof plain / sizeof *plain)

static const char sizes[] =
    "\"hidden_size\": 16, \"intermediate_size\" :24,\"num_hidden_layers\":1,\n\"vocab_size\": 32, "
    "\"num_attention_heads\": 2, \"num_key_value_heads\": 1, \"hidden_act\": \"silu\"";

static char path[64];

/* `change`: takes the place of the tensor of its name, or is one more; name alone: is left out. */
static void write_model(const char *config, const tensor *change) {
    static const float zeros[32 * 24];
    ingot_tensor_spec specs[PLAIN + 1] = {0};
    ingot_weight_view views[PLAIN + 1] = {0};
    const ingot_file_spec file = {.name = "config.json", .bytes = config, .size = strlen(config)};
    ingot_writer *writer;
    ingot_error error;
    uint64_t count = 0;
    bool is_placed = false;
    for (size_t i = 0; i <= PLAIN; i++) {
        const bool is_change = change != NULL && !is_placed &&
                               (i == PLAIN || strcmp(plain[i].name, change->name) == 0);
        if (i == PLAIN && !is_change) {
            break;
        }
        const tensor *t = is_change ? change : &plain[i];
        is_placed = is_placed || is_change;
        if (t->cols == 0) {
            continue;
        }
        const uint64_t rows = t->rows != 0 ? t->rows : 1;
        specs[count] = (ingot_tensor_spec){
            .name = t->name, .kind = INGOT_DENSE, .rank = t->rows != 0 ? 2 : 1, .dtype = INGOT_F32};
        specs[count].dim[0] = t->rows != 0 ? t->rows : t->cols;
        specs[count].dim[1] = t->rows != 0 ? t->cols : 0;
        views[count++] = (ingot_weight_view){
            .kind = INGOT_DENSE, .rows = rows, .cols = t->cols, .dtype = INGOT_F32, .data = zeros};
    }
    const ingot_writer_plan plan = {.tensors = specs,
                                    .tensor_count = count,
                                    .files = &file,
                                    .file_count = 1,
                                    .meta = "{}",
                                    .meta_size = 2};
    const ingot_ledger ledger = {.weight_error = NAN,
                                 .weight_error_rtn = NAN,
                                 .output_error = NAN,
                                 .output_error_rtn = NAN,
                                 .damping = NAN};
    CU_ASSERT_EQUAL_FATAL(ingot_writer_create(&writer, path, true, &plan, &error), INGOT_OK);
    for (uint64_t i = 0; i < count; i++) {
        CU_ASSERT_EQUAL_FATAL(ingot_writer_put(writer, i, &views[i], &ledger, &error), INGOT_OK);
    }
    CU_ASSERT_EQUAL_FATAL(ingot_writer_finish(writer, 1, NULL, NULL, &error), INGOT_OK);
}

/* Runs the program; what it says on stderr into text. */
static int run_program(char text[2048], const char *count, const char *id) {
    char name[] = "decode", *arguments[] = {name, path, (char *)(uintptr_t)count, (char[]){"1"},
                                            (char *)(uintptr_t)id};
    FILE *to = tmpfile();
    CU_ASSERT_FATAL(to != NULL);
    (void)fflush(stderr);
    const int kept = dup(STDERR_FILENO);
    CU_ASSERT_FATAL(kept >= 0 && dup2(fileno(to), STDERR_FILENO) >= 0);
    const int code = decode_main(5, arguments);
    (void)fflush(stderr);
    CU_ASSERT_FATAL(dup2(kept, STDERR_FILENO) >= 0);
    (void)close(kept);
    rewind(to);
    text[fread(text, 1, 2047, to)] = '\0';
    (void)fclose(to);
    return code;
}

/* What the program says of count and id with the model that was written: NULL: it goes on to the
 * device. */
static void expect(const char *what, const char *count, const char *id, const char *says) {
    char text[2048];
    const int code = run_program(text, count, id);
    const bool is_right = says != NULL ? code == 2 && strstr(text, says) != NULL
                                       : code == 0 || strncmp(text, "decode: cuda: ", 14) == 0;
    if (!is_right) {
        printf("\n    %s: %d, %s", what, code, text);
    }
    CU_ASSERT(is_right);
}

static void expect_model(const char *what, const char *type, const char *more, const tensor *change,
                         const char *says) {
    char config[1024];
    snprintf(config, sizeof config, "{\"model_type\": \"%s\", %s%s%s}", type, sizes,
             *more != '\0' ? ", " : "", more);
    write_model(config, change);
    expect(what, "3", "2", says);
}

static void test_models(void) {
    expect_model("llama", "llama", "", NULL, NULL);
    expect_model("tied", "llama", "", &(tensor){"lm_head.weight", 0, 0}, NULL);
    expect_model("mistral", "mistral", "\"sliding_window\": 7", NULL, NULL);
    expect_model("mistral", "mistral", "\"sliding_window\": null", NULL, NULL);
    expect_model("qwen2", "qwen2", "\"use_sliding_window\": false, \"sliding_window\": 9",
                 &(tensor){LAYER "self_attn.q_proj.bias", 0, 16}, NULL);
    expect_model("qwen3", "qwen3", "\"head_dim\": 8",
                 &(tensor){LAYER "self_attn.q_norm.weight", 0, 8}, NULL);
}

static void test_unknown(void) {
    expect_model("family", "gemma", "", NULL, "of no family");
    expect_model("name of a family", "llama4", "", NULL, "of no family");
    expect_model("factor", "llama", "\"rope_scaling\": {\"factor\": 8.0}", NULL, "frequencies");
    expect_model("type", "llama", "\"rope_parameters\": {\"rope_type\": \"dynamic\"}", NULL,
                 "frequencies");
    expect_model("part", "llama", "\"partial_rotary_factor\": 0.5", NULL, "frequencies");
    expect_model("activation", "llama\", \"hidden_act\": \"gelu", "", NULL, "activation");
    expect_model("windows", "qwen2", "\"use_sliding_window\": true", NULL, "windows");
    expect_model("window", "mistral", "\"sliding_window\": -1", NULL, "window");
    expect_model("sizes", "llama\", \"num_attention_heads\": 0, \"a\": \"", "", NULL, "heads = 0");
    expect_model("layers", "llama\", \"num_hidden_layers\": 1e300, \"a\": \"", "", NULL,
                 "no sizes");
    expect_model("more", "llama", "", &(tensor){LAYER "post_feedforward.weight", 0, 16},
                 "tensors that this program does not");
    expect_model("another layer", "llama", "",
                 &(tensor){"model.layers.1.mlp.up_proj.weight", 24, 16},
                 "tensors that this program does not");
    expect_model("no layer", "llama\", \"num_hidden_layers\": 2, \"a\": \"", "", NULL,
                 "model.layers.1.self_attn.q_proj.weight: the container has no such tensor");
    expect_model("no norm", "llama", "", &(tensor){LAYER "input_layernorm.weight", 0, 0},
                 LAYER "input_layernorm.weight: the container has no such tensor");
    write_model("no JSON", NULL);
    expect("no config.json", "3", "2", "of no family");
}

static void test_shapes(void) {
    static const struct {
        tensor change;
        const char *says;
    } cases[] = {
        {{LAYER "input_layernorm.weight", 0, 15}, "layer 0, norm_attention: has 15 values"},
        {{LAYER "post_attention_layernorm.weight", 0, 1}, "layer 0, norm_mlp: has 1 values"},
        {{LAYER "post_attention_layernorm.weight", 16, 2}, "is no vector of floats"},
        {{"model.norm.weight", 0, 17}, "final_norm: has 17 values"},
        {{LAYER "self_attn.k_proj.bias", 0, 7}, "layer 0, bias of K: has 7 values"},
        {{LAYER "self_attn.k_norm.weight", 0, 16}, "layer 0, norm_k: has 16 values"},
        {{LAYER "self_attn.q_proj.weight", 24, 16}, "q_proj.weight: the shape is 24 x 16"},
        {{LAYER "self_attn.v_proj.weight", 16, 16}, "v_proj.weight: the shape is 16 x 16"},
        {{LAYER "self_attn.o_proj.weight", 16, 8}, "o_proj.weight: the shape is 16 x 8"},
        {{LAYER "mlp.gate_proj.weight", 16, 16}, "gate_proj.weight: the shape is 16 x 16"},
        {{LAYER "mlp.down_proj.weight", 16, 16}, "down_proj.weight: the shape is 16 x 16"},
        {{"lm_head.weight", 31, 16}, "lm_head.weight: the shape is 31 x 16"},
        {{"model.embed_tokens.weight", 32, 12}, "embed_tokens.weight: the shape is 32 x 12"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        expect_model(cases[i].change.name, "llama", "", &cases[i].change, cases[i].says);
    }
}

static void test_arguments(void) {
    expect_model("llama", "llama", "", NULL, NULL);
    expect("count", "0", "2", "0 is no count");
    expect("count", "-1", "2", "-1 is no count");
    expect("count", "3x", "2", "3x is no count");
    expect("count", "16777217", "2", "16777217 is no count");
    expect("capacity", "16777216", "2", "capacity = 16777218");
    expect("id", "3", "x", "x is no token id");
    expect("id", "3", "", " is no token id");
    expect("id", "3", "-2", "-2 is no token id");
    expect("id", "3", " 2", " 2 is no token id");
    expect("id", "3", "4294967298", "4294967298 is no token id");
    expect("id", "3", "99999999999999999999", "is no token id");
    expect("id", "3", "32", "beyond the vocabulary");
    expect("id", "3", "31", NULL);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"models that it knows", test_models},
        {"models that it does not know", test_unknown},
        {"shapes", test_shapes},
        {"arguments", test_arguments},
        CU_TEST_INFO_NULL,
    };
    snprintf(path, sizeof path, "/tmp/ingot-example-%d.ingot", (int)getpid());
    const int result = suite_run("examples/decode", tests);
    (void)unlink(path);
    return result;
}
