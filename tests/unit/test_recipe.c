/* convert/recipe.h and convert/plan.h: what was asked for, and what each tensor gets. */
#include "convert/plan.h"
#include "convert/plan_forecast.h"
#include "suite.h"

#include <math.h>
#include <string.h>

#define TINY "tests/fixtures/tiny-llama"
#define TIED "tests/fixtures/tiny-qwen3"

static ingot_status parse(ingot_recipe *recipe, const char *text, ingot_error *error) {
    return ingot_recipe_parse(recipe, text, strlen(text), "recipe.json", error);
}

static void test_precedence(void) {
    ingot_recipe recipe;
    ingot_error error = {0};
    bool is_named;
    ingot_recipe_init(&recipe);
    recipe.defaults.bits = 3; /* as --bits 3 does */
    recipe.defaults.given |= INGOT_GIVEN_BITS;
    CU_ASSERT(parse(&recipe,
                    "{\"defaults\":{\"bits\":5,\"group\":64,\"symmetric\":false},"
                    "\"head_bits\":6,\"samples\":7,"
                    "\"tensors\":[{\"pattern\":\"*.down_proj.*\",\"bits\":8},"
                    "{\"pattern\":\"model.layers.1.*\",\"group\":\"row\",\"method\":\"keep\"}]}",
                    &error) == INGOT_OK);
    ingot_setting s = ingot_recipe_setting(&recipe, "model.layers.0.mlp.up_proj.weight", &is_named);
    CU_ASSERT(!is_named && s.bits == 3 && s.group == 64 && !s.is_symmetric);
    CU_ASSERT(s.method == INGOT_CHOICE_DEFAULT);
    s = ingot_recipe_setting(&recipe, "model.layers.1.mlp.down_proj.weight", &is_named);
    CU_ASSERT(is_named && s.bits == 8 && s.group == 0 && s.method == INGOT_CHOICE_KEEP);
    CU_ASSERT(recipe.head_bits == 6 && recipe.embed_bits == 0 && recipe.samples == 7);
    ingot_recipe_free(&recipe);
}

static void test_bad_recipes(void) {
    static const char *const texts[][2] = {
        {"[]", "object"},
        {"{\"bits\":4}", "bits"},
        {"{\"defaults\":{\"bit\":4}}", "bit"},
        {"{\"defaults\":{\"bits\":9}}", "bits"},
        {"{\"defaults\":{\"bits\":\"4\"}}", "bits"},
        {"{\"defaults\":{\"group\":48}}", "group"},
        {"{\"defaults\":{\"group\":true}}", "group"},
        {"{\"defaults\":{\"method\":\"magic\"}}", "magic"},
        {"{\"defaults\":{\"outliers\":0.9}}", "outliers"},
        {"{\"defaults\":{\"scale_dtype\":\"f8\"}}", "f8"},
        {"{\"defaults\":{\"bits\":4,\"bits\":4}}", "recipe.json"},
        {"{\"tensors\":{}}", "tensors"},
        {"{\"tensors\":[1]}", "rule 1"},
        {"{\"tensors\":[{\"bits\":4}]}", "pattern"},
        {"{\"tensors\":[{\"pattern\":\"*\",\"colour\":4}]}", "colour"},
        {"{\"effort\":\"huge\"}", "huge"},
        {"{\"samples\":0}", "samples"},
        {"{\"steps\":[]}", "steps"},
        {"{\"steps\":{\"polsh\":1}}", "polsh"},
        {"{\"steps\":{\"polish\":17}}", "polish"},
        {"{\"steps\":{\"correction\":1}}", "correction"},
        {"{\"embed_bits\":1}", "embed_bits"},
        {"{", "recipe.json"},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        ingot_recipe recipe;
        ingot_error error = {0};
        char text[INGOT_ERROR_TEXT_SIZE];
        ingot_recipe_init(&recipe);
        CU_ASSERT(parse(&recipe, texts[i][0], &error) == INGOT_ERR_INPUT);
        ingot_error_format(&error, text, sizeof text);
        if (strstr(text, texts[i][1]) == NULL) {
            printf(" %s: %s", texts[i][0], text);
        }
        CU_ASSERT(strstr(text, texts[i][1]) != NULL);
        ingot_recipe_free(&recipe);
    }
}

/* Steps: all by default, each to be left out, and recorded. */
static void test_steps(void) {
    ingot_recipe recipe;
    ingot_error error = {0};
    ingot_recipe_init(&recipe);
    CU_ASSERT(recipe.steps.is_sequential && recipe.steps.corrects &&
              recipe.steps.corrects_residual && recipe.steps.polish_rounds == 3 &&
              recipe.steps.tunes && recipe.steps.distills);
    CU_ASSERT(parse(&recipe, "{\"steps\":{\"polish\":0,\"residual\":false,\"tuning\":false}}",
                    &error) == INGOT_OK);
    CU_ASSERT(!recipe.steps.tunes && recipe.steps.distills);
    CU_ASSERT(recipe.steps.is_sequential && recipe.steps.corrects &&
              !recipe.steps.corrects_residual && recipe.steps.polish_rounds == 0);
    json_t *json = ingot_recipe_json(&recipe);
    char *text = ingot_json_canonical(json);
    CU_ASSERT_FATAL(text != NULL);
    CU_ASSERT(strstr(text, "\"steps\":{\"correction\":true,\"distillation\":true,\"polish\":0,"
                           "\"residual\":false,\"sequential\":true,\"tuning\":false}") != NULL);
    free(text);
    json_decref(json);
    ingot_recipe_free(&recipe);
}

static void test_contradictions(void) {
    ingot_recipe recipe;
    ingot_error error = {0};
    ingot_recipe_init(&recipe);
    CU_ASSERT(ingot_recipe_check(&recipe, false, &error) == INGOT_OK);
    recipe.defaults.method = INGOT_CHOICE_GPTQ;
    recipe.defaults.given |= INGOT_GIVEN_METHOD;
    CU_ASSERT(ingot_recipe_check(&recipe, false, &error) == INGOT_ERR_USAGE);
    CU_ASSERT(ingot_recipe_check(&recipe, true, &error) == INGOT_OK);
    recipe.effort = INGOT_EFFORT_FAST;
    CU_ASSERT(ingot_recipe_check(&recipe, true, &error) == INGOT_ERR_USAGE);
    recipe.effort = INGOT_EFFORT_BEST;
    CU_ASSERT(ingot_recipe_check(&recipe, true, &error) == INGOT_OK); /* gptq */
    recipe.defaults.method = INGOT_CHOICE_RTN;
    CU_ASSERT(ingot_recipe_check(&recipe, true, &error) == INGOT_ERR_USAGE);
    ingot_recipe_init(&recipe);
    CU_ASSERT(parse(&recipe, "{\"tensors\":[{\"pattern\":\"*\",\"method\":\"awq\"}]}", &error) ==
              INGOT_OK);
    CU_ASSERT(ingot_recipe_check(&recipe, false, &error) == INGOT_ERR_USAGE);
    ingot_recipe_free(&recipe);
}

static void test_uses_data(void) {
    static const struct {
        const char *text;
        bool uses;
    } cases[] = {
        {"{}", true}, /* gptq where there is data */
        {"{\"effort\":\"fast\"}", true},
        {"{\"defaults\":{\"method\":\"rtn\"}}", false},
        {"{\"defaults\":{\"method\":\"rtn\"},\"target_bpw\":3.5}", true},
        {"{\"defaults\":{\"method\":\"keep\"},\"tensors\":[{\"pattern\":\"*\",\"bits\":3}]}",
         false},
        {"{\"defaults\":{\"method\":\"rtn\"},\"tensors\":[{\"pattern\":\"*\",\"method\":\"awq\"}]}",
         true},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        ingot_recipe recipe;
        ingot_error error = {0};
        ingot_recipe_init(&recipe);
        CU_ASSERT_FATAL(parse(&recipe, cases[i].text, &error) == INGOT_OK);
        CU_ASSERT(ingot_recipe_uses_data(&recipe) == cases[i].uses);
        ingot_recipe_free(&recipe);
    }
}

/* ---- plans over a small checkpoint ---------------------------------------------------------- */

typedef struct small {
    ingot_checkpoint *checkpoint;
    ingot_weight_source source;
    ingot_model model;
    ingot_error error;
} small;

static void open_model(small *s, const char *folder) {
    *s = (small){0};
    CU_ASSERT_FATAL(ingot_checkpoint_open(&s->checkpoint, folder, &s->error) == INGOT_OK);
    ingot_weight_source_from_checkpoint(&s->source, s->checkpoint);
    CU_ASSERT_FATAL(ingot_model_open(&s->model, &s->source, &s->error) == INGOT_OK);
}

static void open_small(small *s) {
    open_model(s, TINY);
}

static void close_small(small *s) {
    ingot_model_close(&s->model);
    ingot_weight_source_close(&s->source);
    ingot_checkpoint_close(s->checkpoint);
}

static ingot_status plan_with(ingot_plan *plan, small *s, const char *text, bool has_data) {
    ingot_recipe recipe;
    ingot_recipe_init(&recipe);
    CU_ASSERT_FATAL(parse(&recipe, text, &s->error) == INGOT_OK);
    const ingot_status status =
        ingot_plan_create(plan, s->checkpoint, &s->model, &recipe, has_data, &s->error);
    ingot_recipe_free(&recipe);
    return status;
}

static void test_plan(void) {
    small s;
    ingot_plan plan;
    open_small(&s);
    CU_ASSERT_FATAL(plan_with(&plan, &s, "{}", false) == INGOT_OK);
    uint64_t seen = 0;
    for (uint64_t i = 0; i < ingot_checkpoint_count(s.checkpoint); i++) {
        seen +=
            ingot_plan_find(&plan, ingot_checkpoint_at(s.checkpoint, i)->name) != INGOT_PLAN_NONE;
    }
    CU_ASSERT(seen == ingot_checkpoint_count(s.checkpoint)); /* every tensor has a fate */
    const uint64_t q = ingot_plan_find(&plan, "model.layers.0.self_attn.q_proj.weight");
    CU_ASSERT_FATAL(q != INGOT_PLAN_NONE);
    CU_ASSERT(plan.specs[q].kind == INGOT_GROUPED && plan.specs[q].bits == 4);
    CU_ASSERT(plan.specs[q].group == s.model.linear[INGOT_ROLE_Q].cols); /* min(128, K) */
    CU_ASSERT(plan.tensors[q].method == INGOT_METHOD_RTN && !plan.has_folds && !plan.needs_gram);
    CU_ASSERT(strcmp(plan.tensors[0].name, s.model.embed_name) == 0);
    CU_ASSERT(plan.specs[0].kind == INGOT_DENSE);
    ingot_plan_free(&plan);
    CU_ASSERT_FATAL(plan_with(&plan, &s, "{}", true) == INGOT_OK);
    CU_ASSERT(plan.tensors[ingot_plan_find(&plan, "model.layers.0.mlp.up_proj.weight")].method ==
              INGOT_METHOD_GPTQ);
    CU_ASSERT(plan.needs_gram && plan.gram_bytes > 0);
    ingot_plan_free(&plan);
    /* an explicit group larger than every row */
    CU_ASSERT(plan_with(&plan, &s, "{\"defaults\":{\"group\":128}}", false) == INGOT_ERR_USAGE);
    close_small(&s);
}

/* A source of twice the width takes as much more while its blocks are at work, also where learning
 * them takes most. */
static void test_plan_wide_source(void) {
    small s;
    ingot_plan plan;
    open_small(&s);
    CU_ASSERT_FATAL(plan_with(&plan, &s, "{}", true) == INGOT_OK);
    for (uint64_t tuning = 0; tuning <= UINT64_C(1) << 40; tuning += UINT64_C(1) << 40) {
        const uint64_t bytes = plan.piece_bytes;
        const ingot_block_need narrow = ingot_plan_block_need(&plan, &s.model, true, tuning, 0);
        plan.piece_bytes = 2 * bytes;
        const ingot_block_need wide = ingot_plan_block_need(&plan, &s.model, true, tuning, 0);
        plan.piece_bytes = bytes;
        CU_ASSERT(wide.beside_calls == narrow.beside_calls + bytes);
        CU_ASSERT(wide.between_calls == narrow.between_calls + bytes);
    }
    ingot_plan_free(&plan);
    close_small(&s);
}

static void test_plan_rules(void) {
    small s;
    ingot_plan plan;
    open_small(&s);
    CU_ASSERT_FATAL(plan_with(&plan, &s,
                              "{\"embed_bits\":8,\"tensors\":["
                              "{\"pattern\":\"*.o_proj.*\",\"method\":\"keep\"},"
                              "{\"pattern\":\"*.up_proj.*\",\"outliers\":0.01,\"bits\":3,"
                              "\"scale_dtype\":\"bf16\"}]}",
                              false) == INGOT_OK);
    const uint64_t o = ingot_plan_find(&plan, "model.layers.0.self_attn.o_proj.weight");
    const uint64_t up = ingot_plan_find(&plan, "model.layers.0.mlp.up_proj.weight");
    CU_ASSERT(plan.specs[o].kind == INGOT_DENSE);
    CU_ASSERT(plan.specs[up].bits == 3 && plan.specs[up].scale_dtype == INGOT_BF16);
    CU_ASSERT(plan.specs[up].outlier_count ==
              (uint64_t)(0.01 * (double)(plan.specs[up].dim[0] * plan.specs[up].dim[1])));
    CU_ASSERT(plan.specs[0].kind == INGOT_GROUPED && plan.specs[0].bits == 8);
    ingot_plan_free(&plan);
    close_small(&s);
}

static void test_plan_folds(void) {
    small s;
    ingot_plan plan;
    open_small(&s);
    CU_ASSERT_FATAL(plan_with(&plan, &s, "{\"defaults\":{\"method\":\"awq\"}}", true) == INGOT_OK);
    CU_ASSERT(plan.has_folds);
    const uint64_t q = ingot_plan_find(&plan, "model.layers.0.self_attn.q_proj.weight#fold");
    const uint64_t k = ingot_plan_find(&plan, "model.layers.0.self_attn.k_proj.weight#fold");
    const uint64_t v = ingot_plan_find(&plan, "model.layers.0.self_attn.v_proj.weight#rowfold");
    const uint64_t norm = ingot_plan_find(&plan, "model.layers.0.input_layernorm.weight");
    CU_ASSERT_FATAL(q != INGOT_PLAN_NONE && k != INGOT_PLAN_NONE && v != INGOT_PLAN_NONE);
    CU_ASSERT(plan.specs[q].kind == INGOT_AUXILIARY && plan.specs[k].kind == INGOT_ALIAS);
    CU_ASSERT(plan.specs[k].alias_of == q && plan.specs[v].dim[0] == s.model.linear[2].rows);
    CU_ASSERT(plan.specs[norm].dtype == INGOT_F32);
    ingot_plan_free(&plan);
    /* one consumer that is kept: its fold is off, the others stay */
    CU_ASSERT_FATAL(plan_with(&plan, &s,
                              "{\"defaults\":{\"method\":\"awq\"},\"tensors\":["
                              "{\"pattern\":\"*.k_proj.*\",\"method\":\"rtn\"}]}",
                              true) == INGOT_OK);
    CU_ASSERT(ingot_plan_find(&plan, "model.layers.0.self_attn.q_proj.weight#fold") ==
              INGOT_PLAN_NONE);
    CU_ASSERT(ingot_plan_find(&plan, "model.layers.0.mlp.down_proj.weight#fold") !=
              INGOT_PLAN_NONE);
    ingot_plan_free(&plan);
    close_small(&s);
}

/* The embedding and a head that is tied to it: bits that are asked for go before defaults, rules
 * before both, and a head that is kept is the embedding's, unless that one is quantized. */
static void test_plan_ends(void) {
    enum { DENSE = 0, ALIAS = 16 };
    static const struct {
        const char *recipe;
        unsigned embed, head; /* bits */
    } cases[] = {
        {"{}", DENSE, ALIAS},
        {"{\"head_bits\":8}", DENSE, 8},
        {"{\"embed_bits\":4}", 4, ALIAS},
        {"{\"tensors\":[{\"pattern\":\"*\",\"method\":\"keep\"}]}", DENSE, ALIAS},
        {"{\"head_bits\":8,\"tensors\":[{\"pattern\":\"lm_head.*\",\"method\":\"keep\"}]}", DENSE,
         ALIAS},
        {"{\"embed_bits\":4,\"tensors\":[{\"pattern\":\"lm_head.*\",\"method\":\"keep\"}]}", 4,
         DENSE},
        {"{\"defaults\":{\"method\":\"keep\"},\"embed_bits\":4,\"head_bits\":8}", 4, 8},
        {"{\"defaults\":{\"method\":\"keep\"}}", DENSE, ALIAS},
        {"{\"defaults\":{\"bits\":3},\"head_bits\":8,\"tensors\":["
         "{\"pattern\":\"lm_head.*\",\"group\":\"row\"}]}",
         DENSE, 8},
        {"{\"head_bits\":8,\"tensors\":[{\"pattern\":\"lm_head.*\",\"bits\":5}]}", DENSE, 5},
    };
    small s;
    open_model(&s, TIED);
    CU_ASSERT(s.model.is_tied);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        ingot_plan plan;
        CU_ASSERT_FATAL(plan_with(&plan, &s, cases[i].recipe, false) == INGOT_OK);
        const uint64_t ends[2] = {ingot_plan_find(&plan, s.model.embed_name),
                                  ingot_plan_find(&plan, s.model.head_name)};
        unsigned found[2] = {99, 99};
        for (unsigned end = 0; end < 2 && ends[end] != INGOT_PLAN_NONE; end++) {
            const ingot_tensor_spec *spec = &plan.specs[ends[end]];
            found[end] = spec->kind == INGOT_ALIAS ? ALIAS : spec->bits;
        }
        if (found[0] != cases[i].embed || found[1] != cases[i].head) {
            (void)fprintf(stderr, "\n  %s: %u, %u\n", cases[i].recipe, found[0], found[1]);
            CU_FAIL("another plan for the ends");
        }
        ingot_plan_free(&plan);
    }
    close_small(&s);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"precedence", test_precedence},
        {"steps", test_steps},
        {"bad recipes", test_bad_recipes},
        {"contradictions", test_contradictions},
        {"plan", test_plan},
        {"plan: a source of wide numbers", test_plan_wide_source},
        {"plan: rules", test_plan_rules},
        {"use of data", test_uses_data},
        {"plan: folds", test_plan_folds},
        {"plan: embedding and head", test_plan_ends},
        CU_TEST_INFO_NULL,
    };
    return suite_run("recipe", tests);
}
