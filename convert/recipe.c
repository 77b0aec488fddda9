/* Recipes: reading, checking, and the setting of one tensor (spec/recipe.md). */
#include "convert/recipe.h"

#include "calib/dataset.h"
#include "common/files.h"
#include "common/memory.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>

#define RECIPE_LIMIT_BYTES (16u << 20)
#define REMEDY             "spec/recipe.md has the keys of recipes"

static ingot_status check_keys(const json_t *object, const char *const *keys, size_t count,
                               const char *file, ingot_error *error) {
    const ingot_status status = ingot_json_check_keys(object, keys, count, file, error);
    if (status == INGOT_ERR_INPUT && error != NULL) {
        (void)snprintf(error->remedy, sizeof error->remedy, "%s", REMEDY);
    }
    return status;
}

static const char *const choice_names[] = {"default", "keep", "rtn",     "searched",
                                           "awq",     "gptq", "awq+gptq"};
static const char *const scale_names[] = {"auto", "f16", "bf16", "f32"};
static const char *const effort_names[] = {"default", "fast", "best"};

const char *ingot_choice_name(ingot_choice choice) {
    return choice_names[choice];
}

void ingot_recipe_init(ingot_recipe *recipe) {
    *recipe = (ingot_recipe){
        .defaults = {.method = INGOT_CHOICE_DEFAULT,
                     .bits = 4,
                     .group = 128,
                     .is_symmetric = true,
                     .scale = INGOT_SCALE_AUTO},
        .samples = INGOT_WINDOW_COUNT,
        .steps = {.is_sequential = true,
                  .corrects = true,
                  .corrects_residual = true,
                  .polish_rounds = 3,
                  .tunes = true,
                  .distills = true},
    };
}

void ingot_recipe_free(ingot_recipe *recipe) {
    for (uint64_t i = 0; i < recipe->rule_count; i++) {
        free(recipe->rules[i].pattern);
    }
    ingot_free(recipe->rules);
    recipe->rules = NULL;
    recipe->rule_count = 0;
}

/* Position of value in names[count], or count. */
static unsigned find_name(const char *const *names, unsigned count, const char *value) {
    unsigned i = 0;
    while (i < count && strcmp(names[i], value) != 0) {
        i++;
    }
    return i;
}

ingot_status ingot_recipe_parse_method(ingot_setting *setting, const char *value, const char *file,
                                       ingot_error *error) {
    const unsigned count = sizeof choice_names / sizeof *choice_names;
    const unsigned i = find_name(choice_names, count, value);
    if (i == count || i == INGOT_CHOICE_DEFAULT) {
        return ingot_error_set(error, file != NULL ? INGOT_ERR_INPUT : INGOT_ERR_USAGE, file, NULL,
                               "use rtn, awq, gptq, awq+gptq, or in a recipe also searched, keep",
                               "unknown method \"%s\"", value);
    }
    setting->method = (ingot_choice)i;
    setting->given |= INGOT_GIVEN_METHOD;
    return INGOT_OK;
}

ingot_status ingot_recipe_parse_group(ingot_setting *setting, const char *value, const char *file,
                                      ingot_error *error) {
    static const char *const names[] = {"row", "32", "64", "128"};
    static const uint64_t groups[] = {0, 32, 64, 128};
    const unsigned i = find_name(names, 4, value);
    if (i == 4) {
        return ingot_error_set(error, file != NULL ? INGOT_ERR_INPUT : INGOT_ERR_USAGE, file, NULL,
                               "use 32, 64, 128 or row", "illegal group \"%s\"", value);
    }
    setting->group = groups[i];
    setting->given |= INGOT_GIVEN_GROUP;
    return INGOT_OK;
}

ingot_status ingot_recipe_parse_effort(ingot_recipe *recipe, const char *value, const char *file,
                                       ingot_error *error) {
    const unsigned i = find_name(effort_names, 3, value);
    if (i == 3) {
        return ingot_error_set(error, file != NULL ? INGOT_ERR_INPUT : INGOT_ERR_USAGE, file, NULL,
                               "use fast, default or best", "unknown effort \"%s\"", value);
    }
    recipe->effort = (ingot_effort)i;
    recipe->given |= INGOT_GIVEN_EFFORT;
    return INGOT_OK;
}

/* ---- reading ------------------------------------------------------------------------------ */

static ingot_status read_u64(const json_t *object, const char *key, uint64_t *out, uint64_t minimum,
                             uint64_t maximum, const char *file, ingot_error *error) {
    INGOT_TRY(ingot_json_get_u64(object, key, out, file, error));
    if (*out < minimum || *out > maximum) {
        return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                               "\"%s\" must lie between %llu and %llu", key,
                               (unsigned long long)minimum, (unsigned long long)maximum);
    }
    return INGOT_OK;
}

static bool has_key(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return value != NULL && !json_is_null(value);
}

static ingot_status read_group(ingot_setting *s, const json_t *object, const char *file,
                               ingot_error *error) {
    const json_t *value = json_object_get(object, "group");
    char text[32];
    if (json_is_string(value)) {
        return ingot_recipe_parse_group(s, json_string_value(value), file, error);
    }
    snprintf(text, sizeof text, "%lld",
             json_is_integer(value) ? (long long)json_integer_value(value) : -1LL);
    return ingot_recipe_parse_group(s, text, file, error);
}

/* The six members of a setting; those already in s->given stay. */
static ingot_status read_setting(ingot_setting *s, const json_t *object, const char *file,
                                 ingot_error *error) {
    const char *text = NULL;
    ingot_setting read = *s;
    INGOT_TRY(ingot_json_get_string(object, "method", &text, file, error));
    if (text != NULL) {
        INGOT_TRY(ingot_recipe_parse_method(&read, text, file, error));
    }
    if (has_key(object, "bits")) {
        uint64_t bits = 0;
        INGOT_TRY(read_u64(object, "bits", &bits, 2, 8, file, error));
        read.bits = (unsigned)bits;
        read.given |= INGOT_GIVEN_BITS;
    }
    if (has_key(object, "group")) {
        INGOT_TRY(read_group(&read, object, file, error));
    }
    if (has_key(object, "symmetric")) {
        INGOT_TRY(ingot_json_get_bool(object, "symmetric", &read.is_symmetric, file, error));
        read.given |= INGOT_GIVEN_SYMMETRIC;
    }
    if (has_key(object, "outliers")) {
        INGOT_TRY(ingot_json_get_double(object, "outliers", &read.outliers, file, error));
        if (!(read.outliers >= 0 && read.outliers <= 0.5)) {
            return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                                   "\"outliers\" must lie between 0 and 0.5");
        }
        read.given |= INGOT_GIVEN_OUTLIERS;
    }
    text = NULL;
    INGOT_TRY(ingot_json_get_string(object, "scale_dtype", &text, file, error));
    if (text != NULL) {
        const unsigned i = find_name(scale_names, 4, text);
        if (i == 4) {
            return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, "use auto, f16, bf16 or f32",
                                   "unknown scale_dtype \"%s\"", text);
        }
        read.scale = (ingot_scale_choice)i;
        read.given |= INGOT_GIVEN_SCALE;
    }
    const ingot_setting old = *s;
    *s = read;
    s->method = old.given & INGOT_GIVEN_METHOD ? old.method : read.method;
    s->bits = old.given & INGOT_GIVEN_BITS ? old.bits : read.bits;
    s->group = old.given & INGOT_GIVEN_GROUP ? old.group : read.group;
    s->is_symmetric = old.given & INGOT_GIVEN_SYMMETRIC ? old.is_symmetric : read.is_symmetric;
    s->outliers = old.given & INGOT_GIVEN_OUTLIERS ? old.outliers : read.outliers;
    s->scale = old.given & INGOT_GIVEN_SCALE ? old.scale : read.scale;
    return INGOT_OK;
}

static ingot_status read_rules(ingot_recipe *recipe, const json_t *root, const char *file,
                               ingot_error *error) {
    static const char *const keys[] = {"pattern",   "method",   "bits",       "group",
                                       "symmetric", "outliers", "scale_dtype"};
    const json_t *rules = json_object_get(root, "tensors");
    if (rules == NULL || json_is_null(rules)) {
        return INGOT_OK;
    }
    if (!json_is_array(rules)) {
        return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                               "\"tensors\" must be a list of rules");
    }
    INGOT_TRY(ingot_alloc_zero((void **)&recipe->rules, json_array_size(rules) + 1,
                               sizeof *recipe->rules));
    for (size_t i = 0; i < json_array_size(rules); i++) {
        const json_t *rule = json_array_get(rules, i);
        const char *pattern = NULL;
        if (!json_is_object(rule)) {
            return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                                   "rule %zu of \"tensors\" is no object", i + 1);
        }
        INGOT_TRY(check_keys(rule, keys, sizeof keys / sizeof *keys, file, error));
        INGOT_TRY(ingot_json_get_string(rule, "pattern", &pattern, file, error));
        if (pattern == NULL) {
            return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                                   "rule %zu of \"tensors\" has no \"pattern\"", i + 1);
        }
        recipe->rules[i].pattern = strdup(pattern);
        if (recipe->rules[i].pattern == NULL) {
            return INGOT_ERR_NO_MEMORY;
        }
        recipe->rule_count = i + 1;
        INGOT_TRY(read_setting(&recipe->rules[i].setting, rule, file, error));
    }
    return INGOT_OK;
}

static ingot_status read_own(ingot_recipe *recipe, const json_t *root, const char *file,
                             ingot_error *error) {
    const char *effort = NULL;
    INGOT_TRY(ingot_json_get_string(root, "effort", &effort, file, error));
    if (effort != NULL && !(recipe->given & INGOT_GIVEN_EFFORT)) {
        INGOT_TRY(ingot_recipe_parse_effort(recipe, effort, file, error));
    }
    uint64_t embed = recipe->embed_bits, head = recipe->head_bits;
    if (has_key(root, "embed_bits") && !(recipe->given & INGOT_GIVEN_EMBED)) {
        INGOT_TRY(read_u64(root, "embed_bits", &embed, 2, 8, file, error));
        recipe->given |= INGOT_GIVEN_EMBED;
    }
    if (has_key(root, "head_bits") && !(recipe->given & INGOT_GIVEN_HEAD)) {
        INGOT_TRY(read_u64(root, "head_bits", &head, 2, 8, file, error));
        recipe->given |= INGOT_GIVEN_HEAD;
    }
    if (has_key(root, "target_bpw") && !(recipe->given & INGOT_GIVEN_TARGET)) {
        INGOT_TRY(ingot_json_get_double(root, "target_bpw", &recipe->target_bpw, file, error));
        if (!(recipe->target_bpw >= 2 && recipe->target_bpw <= 8)) {
            return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                                   "\"target_bpw\" must lie between 2 and 8");
        }
        recipe->given |= INGOT_GIVEN_TARGET;
    }
    recipe->embed_bits = (unsigned)embed;
    recipe->head_bits = (unsigned)head;
    if (has_key(root, "samples") && !(recipe->given & INGOT_GIVEN_SAMPLES)) {
        INGOT_TRY(read_u64(root, "samples", &recipe->samples, 1, 1u << 20, file, error));
        recipe->given |= INGOT_GIVEN_SAMPLES;
    }
    if (has_key(root, "seq_len") && !(recipe->given & INGOT_GIVEN_LENGTH)) {
        INGOT_TRY(read_u64(root, "seq_len", &recipe->seq_len, 2, 1u << 20, file, error));
        recipe->given |= INGOT_GIVEN_LENGTH;
    }
    if (has_key(root, "seed") && !(recipe->given & INGOT_GIVEN_SEED)) {
        INGOT_TRY(read_u64(root, "seed", &recipe->seed, 0, INT64_MAX, file, error));
        recipe->given |= INGOT_GIVEN_SEED;
    }
    return INGOT_OK;
}

static ingot_status read_steps(ingot_steps *steps, const json_t *root, const char *file,
                               ingot_error *error) {
    static const char *const keys[] = {"sequential", "correction",   "residual",
                                       "tuning",     "distillation", "polish"};
    bool *const switches[] = {&steps->is_sequential, &steps->corrects, &steps->corrects_residual,
                              &steps->tunes, &steps->distills};
    const json_t *object = json_object_get(root, "steps");
    if (object == NULL || json_is_null(object)) {
        return INGOT_OK;
    }
    if (!json_is_object(object)) {
        return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                               "\"steps\" must be an object");
    }
    INGOT_TRY(check_keys(object, keys, sizeof keys / sizeof *keys, file, error));
    for (unsigned i = 0; i < sizeof switches / sizeof *switches; i++) {
        const json_t *value = json_object_get(object, keys[i]);
        if (value != NULL && !json_is_boolean(value)) {
            return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                                   "\"%s\" must be true or false", keys[i]);
        }
        *switches[i] = value != NULL ? json_is_true(value) : *switches[i];
    }
    uint64_t rounds = steps->polish_rounds;
    if (has_key(object, "polish")) {
        INGOT_TRY(read_u64(object, "polish", &rounds, 0, 16, file, error));
    }
    steps->polish_rounds = (unsigned)rounds;
    return INGOT_OK;
}

static json_t *steps_json(const ingot_steps *steps) {
    return json_pack("{s:b, s:b, s:b, s:b, s:b, s:i}", "sequential", steps->is_sequential,
                     "correction", steps->corrects, "residual", steps->corrects_residual, "tuning",
                     steps->tunes, "distillation", steps->distills, "polish",
                     (int)steps->polish_rounds);
}

static ingot_status read_root(ingot_recipe *recipe, const json_t *root, const char *file,
                              ingot_error *error) {
    static const char *const keys[] = {"defaults",  "tensors", "effort",  "steps", "embed_bits",
                                       "head_bits", "samples", "seq_len", "seed",  "target_bpw"};
    static const char *const setting_keys[] = {"method",    "bits",     "group",
                                               "symmetric", "outliers", "scale_dtype"};
    if (!json_is_object(root)) {
        return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                               "a recipe is one JSON object");
    }
    INGOT_TRY(check_keys(root, keys, sizeof keys / sizeof *keys, file, error));
    const json_t *defaults = json_object_get(root, "defaults");
    if (defaults != NULL && !json_is_null(defaults)) {
        if (!json_is_object(defaults)) {
            return ingot_error_set(error, INGOT_ERR_INPUT, file, NULL, REMEDY,
                                   "\"defaults\" must be an object");
        }
        INGOT_TRY(check_keys(defaults, setting_keys, sizeof setting_keys / sizeof *setting_keys,
                             file, error));
        INGOT_TRY(read_setting(&recipe->defaults, defaults, file, error));
    }
    INGOT_TRY(read_own(recipe, root, file, error));
    INGOT_TRY(read_steps(&recipe->steps, root, file, error));
    return read_rules(recipe, root, file, error);
}

ingot_status ingot_recipe_parse(ingot_recipe *recipe, const char *text, uint64_t size,
                                const char *file, ingot_error *error) {
    json_t *root = NULL;
    INGOT_TRY(ingot_json_parse(&root, text, size, file, error));
    const ingot_status status = read_root(recipe, root, file, error);
    json_decref(root);
    return status;
}

ingot_status ingot_recipe_read(ingot_recipe *recipe, const char *path, ingot_error *error) {
    char *bytes = NULL;
    uint64_t size = 0;
    INGOT_TRY(ingot_file_read_all(path, RECIPE_LIMIT_BYTES, &bytes, &size, error));
    const ingot_status status = ingot_recipe_parse(recipe, bytes, size, path, error);
    ingot_free(bytes);
    return status;
}

/* ---- use ----------------------------------------------------------------------------------- */

bool ingot_rule_matches(const ingot_rule *rule, const char *name) {
    return fnmatch(rule->pattern, name, 0) == 0;
}

ingot_setting ingot_recipe_setting(const ingot_recipe *recipe, const char *name, bool *is_named) {
    ingot_setting s = recipe->defaults;
    s.given = 0;
    *is_named = false;
    for (uint64_t i = 0; i < recipe->rule_count; i++) {
        const ingot_setting *r = &recipe->rules[i].setting;
        if (!ingot_rule_matches(&recipe->rules[i], name)) {
            continue;
        }
        *is_named = true;
        s.given |= r->given;
        s.method = r->given & INGOT_GIVEN_METHOD ? r->method : s.method;
        s.bits = r->given & INGOT_GIVEN_BITS ? r->bits : s.bits;
        s.group = r->given & INGOT_GIVEN_GROUP ? r->group : s.group;
        s.is_symmetric = r->given & INGOT_GIVEN_SYMMETRIC ? r->is_symmetric : s.is_symmetric;
        s.outliers = r->given & INGOT_GIVEN_OUTLIERS ? r->outliers : s.outliers;
        s.scale = r->given & INGOT_GIVEN_SCALE ? r->scale : s.scale;
    }
    return s;
}

void ingot_recipe_settle(ingot_recipe *recipe, bool has_data) {
    if (recipe->defaults.method == INGOT_CHOICE_DEFAULT) {
        recipe->defaults.method = recipe->effort == INGOT_EFFORT_FAST ? INGOT_CHOICE_SEARCHED
                                  : has_data                          ? INGOT_CHOICE_GPTQ
                                                                      : INGOT_CHOICE_RTN;
    }
}

static bool needs_data(ingot_choice choice) {
    return choice == INGOT_CHOICE_AWQ || choice == INGOT_CHOICE_GPTQ ||
           choice == INGOT_CHOICE_AWQ_GPTQ;
}

static bool is_plain(ingot_choice choice) {
    return choice == INGOT_CHOICE_RTN || choice == INGOT_CHOICE_KEEP;
}

bool ingot_recipe_uses_data(const ingot_recipe *recipe) {
    bool uses = recipe->target_bpw != 0 || recipe->effort == INGOT_EFFORT_BEST ||
                !is_plain(recipe->defaults.method);
    for (uint64_t i = 0; i < recipe->rule_count; i++) {
        const ingot_setting *r = &recipe->rules[i].setting;
        uses = uses || ((r->given & INGOT_GIVEN_METHOD) != 0 && !is_plain(r->method));
    }
    return uses;
}

ingot_status ingot_recipe_check(const ingot_recipe *recipe, bool has_data, ingot_error *error) {
    const ingot_setting *d = &recipe->defaults;
    if (recipe->effort == INGOT_EFFORT_BEST && d->given & INGOT_GIVEN_METHOD &&
        d->method != INGOT_CHOICE_GPTQ && d->method != INGOT_CHOICE_AWQ_GPTQ) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "leave one of them out",
                               "method %s contradicts --effort best, which tunes what GPTQ chose",
                               choice_names[d->method]);
    }
    if (recipe->effort == INGOT_EFFORT_FAST && (d->given & INGOT_GIVEN_METHOD) &&
        d->method != INGOT_CHOICE_SEARCHED) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "leave one of them out",
                               "method %s contradicts --effort fast, which rounds with searched "
                               "scales",
                               choice_names[d->method]);
    }
    if (recipe->target_bpw != 0 && (d->given & INGOT_GIVEN_BITS)) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL,
                               "leave one of them out; a recipe's rule may state the bits of "
                               "single tensors",
                               "bits for all tensors contradict a target of bits per weight");
    }
    ingot_choice needy = needs_data(d->method) ? d->method : INGOT_CHOICE_DEFAULT;
    for (uint64_t i = 0; i < recipe->rule_count; i++) {
        const ingot_setting *r = &recipe->rules[i].setting;
        needy = r->given & INGOT_GIVEN_METHOD && needs_data(r->method) ? r->method : needy;
    }
    if (needy != INGOT_CHOICE_DEFAULT && !has_data) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL,
                               "give --text FILE or --stats FILE.calib, or use --method rtn",
                               "method %s needs calibration data", choice_names[needy]);
    }
    return INGOT_OK;
}

/* ---- provenance ----------------------------------------------------------------------------- */

static int set_decimal(json_t *object, const char *key, double value) {
    char text[40];
    snprintf(text, sizeof text, "%.17g", value);
    return json_object_set_new(object, key, json_string(text));
}

static json_t *setting_json(const ingot_setting *s, unsigned which) {
    json_t *object = json_object();
    int failed = object == NULL;
    if (which & INGOT_GIVEN_METHOD) {
        failed |= json_object_set_new(object, "method", json_string(choice_names[s->method]));
    }
    if (which & INGOT_GIVEN_BITS) {
        failed |= json_object_set_new(object, "bits", json_integer(s->bits));
    }
    if (which & INGOT_GIVEN_GROUP) {
        failed |= json_object_set_new(object, "group",
                                      s->group != 0 ? json_integer((json_int_t)s->group)
                                                    : json_string("row"));
    }
    if (which & INGOT_GIVEN_SYMMETRIC) {
        failed |= json_object_set_new(object, "symmetric", json_boolean(s->is_symmetric));
    }
    if (which & INGOT_GIVEN_OUTLIERS) {
        failed |= set_decimal(object, "outliers", s->outliers);
    }
    if (which & INGOT_GIVEN_SCALE) {
        failed |= json_object_set_new(object, "scale_dtype", json_string(scale_names[s->scale]));
    }
    if (failed != 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}

json_t *ingot_recipe_json(const ingot_recipe *recipe) {
    json_t *object = json_object(), *rules = json_array();
    int failed = object == NULL || rules == NULL;
    for (uint64_t i = 0; i < recipe->rule_count && failed == 0; i++) {
        json_t *rule = setting_json(&recipe->rules[i].setting, recipe->rules[i].setting.given);
        failed |= rule == NULL ||
                  json_object_set_new(rule, "pattern", json_string(recipe->rules[i].pattern));
        failed |= json_array_append_new(rules, rule);
    }
    failed |= json_object_set_new(object, "tensors", rules);
    failed |= json_object_set_new(object, "defaults", setting_json(&recipe->defaults, ~0u));
    failed |= json_object_set_new(object, "effort", json_string(effort_names[recipe->effort]));
    failed |= json_object_set_new(object, "steps", steps_json(&recipe->steps));
    failed |= json_object_set_new(object, "embed_bits", json_integer(recipe->embed_bits));
    failed |= json_object_set_new(object, "head_bits", json_integer(recipe->head_bits));
    if (recipe->target_bpw != 0) {
        failed |= set_decimal(object, "target_bpw", recipe->target_bpw);
    }
    if (failed != 0) {
        json_decref(object);
        return NULL;
    }
    return object;
}
