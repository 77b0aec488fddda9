/* Fuzz target: recipes.  What is accepted must hold legal settings, give every tensor a legal one,
 * and describe itself in canonical JSON for the provenance. */
#include "convert/recipe.h"

#include <stdlib.h>
#include <string.h>

#define require(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

static void check_setting(const ingot_setting *s) {
    require(s->bits >= 2 && s->bits <= 8);
    require(s->group == 0 || s->group == 32 || s->group == 64 || s->group == 128);
    require(s->outliers >= 0 && s->outliers <= 0.5);
    require(strcmp(ingot_choice_name(s->method), "") != 0);
    require(s->scale <= INGOT_SCALE_F32);
}

static void check(ingot_recipe *recipe) {
    static const char *const names[] = {"model.layers.0.mlp.down_proj.weight",
                                        "model.layers.17.self_attn.q_proj.weight",
                                        "model.embed_tokens.weight", "lm_head.weight", "x"};
    ingot_error error = {0};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        bool is_named;
        const ingot_setting setting = ingot_recipe_setting(recipe, names[i], &is_named);
        check_setting(&setting);
        require(!is_named || recipe->rule_count > 0);
    }
    for (int has_data = 0; has_data < 2; has_data++) {
        require(ingot_recipe_check(recipe, has_data != 0, &error) == INGOT_OK ||
                error.reason[0] != '\0');
    }
    require(recipe->samples >= 1 && recipe->seed <= INT64_MAX);
    require(recipe->embed_bits <= 8 && recipe->head_bits <= 8);
    ingot_recipe_settle(recipe, true);
    require(recipe->defaults.method != INGOT_CHOICE_DEFAULT);
    json_t *json = ingot_recipe_json(recipe);
    char *text = json == NULL ? NULL : ingot_json_canonical(json);
    require(text != NULL);
    free(text);
    json_decref(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    ingot_recipe recipe;
    ingot_error error = {0};
    ingot_recipe_init(&recipe);
    const ingot_status status =
        ingot_recipe_parse(&recipe, (const char *)data, size, "recipe.json", &error);
    if (status == INGOT_OK) {
        check(&recipe);
    } else {
        require(error.status == status && error.reason[0] != '\0');
    }
    ingot_recipe_free(&recipe);
    return 0;
}
