/* Reading a manifest: every value is checked, every error names its line (spec/zoo.md). */
#include "zoo/manifest.h"

#include "calib/dataset.h"
#include "common/files.h"
#include "kernels/device_name.h"
#include "zoo/manifest_fields.h"
#include "zoo/remains.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MANIFEST_LIMIT_BYTES (64u << 20)

/* ---- models, texts, recipes ----------------------------------------------------------------- */

static ingot_status read_models(const reader *r) {
    ingot_manifest *out = r->out;
    const place here = {.key = "models"};
    json_t *table, *value;
    const char *name;
    INGOT_TRY(ingot_field_table(r, "models", true, &table, r->model_index));
    INGOT_TRY(ingot_field_array(r, &out->models, json_object_size(table), sizeof *out->models));
    json_object_foreach(table, name, value) {
        const place named = {.parent = &here, .key = name};
        if (!json_is_string(value) || json_string_length(value) == 0) {
            return ingot_field_refuse(r, &named, "model \"%s\" must be the path of a folder", name);
        }
        ingot_zoo_model *model = &out->models[out->model_count++];
        model->name = name;
        INGOT_TRY(ingot_field_keep_path(r, &model->path, json_string_value(value)));
    }
    return INGOT_OK;
}

static ingot_status read_text(const reader *r, ingot_zoo_text *text, const json_t *value,
                              const place *at) {
    const uint64_t count = json_is_array(value) ? json_array_size(value) : 1;
    if (count == 0 || count > INGOT_MAX_TEXTS) {
        return ingot_field_refuse(r, at, "text \"%s\" must have 1 to %u files", text->name,
                                  INGOT_MAX_TEXTS);
    }
    INGOT_TRY(ingot_field_array(r, &text->paths, count, sizeof *text->paths));
    for (uint64_t i = 0; i < count; i++) {
        const json_t *path = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_string(path) || json_string_length(path) == 0) {
            return ingot_field_refuse(
                r, at, "text \"%s\" must be the path of a file or a list of them", text->name);
        }
        INGOT_TRY(ingot_field_keep_path(r, &text->paths[i], json_string_value(path)));
    }
    text->path_count = count;
    return INGOT_OK;
}

static ingot_status read_texts(const reader *r) {
    ingot_manifest *out = r->out;
    const place here = {.key = "texts"};
    json_t *table, *value;
    const char *name;
    INGOT_TRY(ingot_field_table(r, "texts", false, &table, r->text_index));
    INGOT_TRY(ingot_field_array(r, &out->texts, json_object_size(table), sizeof *out->texts));
    json_object_foreach(table, name, value) {
        const place named = {.parent = &here, .key = name};
        ingot_zoo_text *text = &out->texts[out->text_count++];
        text->name = name;
        INGOT_TRY(read_text(r, text, value, &named));
    }
    return INGOT_OK;
}

/* The recipe parser's error and its remedy, with our line in front of it. */
static ingot_status refuse_recipe(const reader *r, const char *name, const ingot_error *cause) {
    const place table = {.key = "recipes"}, named = {.parent = &table, .key = name};
    if (cause->status == INGOT_ERR_NO_MEMORY) {
        return ingot_field_no_memory(r);
    }
    const ingot_status status =
        ingot_field_refuse(r, &named, "recipe \"%s\": %.240s", name, cause->reason);
    if (r->error != NULL && cause->remedy[0] != '\0') {
        (void)snprintf(r->error->remedy, sizeof r->error->remedy, "%s", cause->remedy);
    }
    return status;
}

static ingot_status take_recipe(const reader *r, ingot_zoo_recipe *recipe, const json_t *value) {
    ingot_error cause = {0};
    recipe->text = ingot_json_canonical(value);
    if (recipe->text == NULL) {
        return ingot_field_no_memory(r);
    }
    ingot_recipe_init(&recipe->recipe);
    const char *file = recipe->path != NULL ? recipe->path : r->out->path;
    const ingot_status status =
        ingot_recipe_parse(&recipe->recipe, recipe->text, strlen(recipe->text), file, &cause);
    return status == INGOT_OK ? INGOT_OK : refuse_recipe(r, recipe->name, &cause);
}

static ingot_status read_recipes(const reader *r) {
    ingot_manifest *out = r->out;
    const place here = {.key = "recipes"};
    json_t *table, *value;
    const char *name;
    INGOT_TRY(ingot_field_table(r, "recipes", true, &table, r->recipe_index));
    INGOT_TRY(ingot_field_array(r, &out->recipes, json_object_size(table), sizeof *out->recipes));
    json_object_foreach(table, name, value) {
        const place named = {.parent = &here, .key = name};
        ingot_zoo_recipe *recipe = &out->recipes[out->recipe_count++];
        recipe->name = name;
        if (json_is_string(value) && json_string_length(value) > 0) {
            INGOT_TRY(ingot_field_keep_path(r, &recipe->path, json_string_value(value)));
        } else if (json_is_object(value)) {
            INGOT_TRY(take_recipe(r, recipe, value));
        } else {
            return ingot_field_refuse(
                r, &named, "recipe \"%s\" must be an object or the path of its file", name);
        }
    }
    return INGOT_OK;
}

/* ---- products ------------------------------------------------------------------------------- */

static ingot_status find(const reader *r, const json_t *index, const char *kind, const char *name,
                         const place *at, uint64_t *out) {
    const json_t *position = json_object_get(index, name);
    if (position == NULL) {
        return ingot_field_refuse(r, at, "there is no %s \"%.100s\" in this manifest", kind, name);
    }
    *out = (uint64_t)json_integer_value(position);
    return INGOT_OK;
}

static ingot_status read_gates(const reader *r, ingot_zoo_product *product, const json_t *object,
                               const place *at) {
    static const char *const keys[] = {"max_ppl_ratio", "max_kld", "max_accuracy_drop"};
    json_t *gates = ingot_field_member(object, "gates");
    const place here = {.parent = at, .key = "gates"};
    if (gates == NULL) {
        return INGOT_OK;
    }
    if (!json_is_object(gates)) {
        return ingot_field_refuse(r, &here, "\"gates\" must be an object");
    }
    INGOT_TRY(CHECK_KEYS(r, gates, &here, keys));
    INGOT_TRY(ingot_field_limit(r, gates, &here, keys[0], 0, &product->max_ppl_ratio));
    INGOT_TRY(ingot_field_limit(r, gates, &here, keys[1], 0, &product->max_kld));
    return ingot_field_limit(r, gates, &here, keys[2], -1, &product->max_accuracy_drop);
}

/* Whatever a product shares with "defaults"; keys that are not there leave it as it is. */
static ingot_status read_shared(const reader *r, ingot_zoo_product *p, const json_t *object,
                                const place *at) {
    const char *calibration = NULL, *evaluation = NULL, *tasks = NULL;
    const place calibrated = {.parent = at, .key = "calibration"};
    const place evaluated = {.parent = at, .key = "evaluation"};
    INGOT_TRY(ingot_field_string(r, object, at, "calibration", &calibration));
    if (calibration != NULL) {
        INGOT_TRY(find(r, r->text_index, "text", calibration, &calibrated, &p->calibration));
    }
    INGOT_TRY(ingot_field_string(r, object, at, "evaluation", &evaluation));
    if (evaluation != NULL) {
        INGOT_TRY(find(r, r->text_index, "text", evaluation, &evaluated, &p->evaluation));
    }
    INGOT_TRY(ingot_field_string(r, object, at, "tasks", &tasks));
    if (tasks != NULL) {
        INGOT_TRY(ingot_field_keep_path(r, &p->tasks, tasks));
    }
    INGOT_TRY(ingot_field_u64(r, object, at, "seq_len", 2, 1u << 20, &p->seq_len));
    INGOT_TRY(ingot_field_u64(r, object, at, "windows", 1, 1u << 20, &p->windows));
    INGOT_TRY(ingot_field_bool(r, object, at, "statistics", &p->uses_statistics));
    INGOT_TRY(ingot_field_bool(r, object, at, "zstd", &p->is_compressed));
    INGOT_TRY(ingot_field_bool(r, object, at, "sha256", &p->with_sha256));
    INGOT_TRY(ingot_field_u64(r, object, at, "shard_bytes", 1, INT64_MAX, &p->shard_bytes));
    return read_gates(r, p, object, at);
}

/* Marks a name or an output as taken; *other is the entry that took it before, or -1. */
static ingot_status take(const reader *r, json_t *taken, const char *key, unsigned entry,
                         json_int_t *other) {
    const json_t *before = json_object_get(taken, key);
    *other = before != NULL ? json_integer_value(before) : -1;
    return before != NULL || json_object_set_new(taken, key, json_integer(entry)) == 0
               ? INGOT_OK
               : ingot_field_no_memory(r);
}

static unsigned line_of_entry(const reader *r, json_int_t entry) {
    const place list = {.key = "products"}, at = {.parent = &list, .index = (size_t)entry};
    return ingot_json_line(r->out->text, r->out->size, &at);
}

/* Two products must not share a name or a file. */
static ingot_status check_unique(const reader *r, const ingot_zoo_product *p, const place *at) {
    json_int_t other;
    INGOT_TRY(take(r, r->names, p->name, p->entry, &other));
    if (other >= 0) {
        return ingot_field_refuse(r, at, "product %s was already listed on line %u", p->name,
                                  line_of_entry(r, other));
    }
    INGOT_TRY(take(r, r->outputs, p->output, p->entry, &other));
    if (other >= 0) {
        return ingot_field_refuse(r, at, "product %s would write %s, as does the one on line %u",
                                  p->name, p->output, line_of_entry(r, other));
    }
    return INGOT_OK;
}

/* The product that writes STEM.ingot as a set, where an output is STEM-NNNNN-of-NNNNN.ingot; NULL:
 * there is none. */
static const ingot_zoo_product *find_set(const reader *r, const char *output) {
    const ingot_manifest *m = r->out;
    for (uint64_t i = 0; i < m->product_count; i++) {
        const ingot_zoo_product *p = &m->products[i];
        if (p->shard_bytes != 0 && strcmp(p->output, output) != 0 &&
            ingot_output_is_form(output, p->output)) {
            return p;
        }
    }
    return NULL;
}

/* No output lies where another needs a folder, or a shard. */
static ingot_status check_places(const reader *r) {
    const ingot_manifest *m = r->out;
    const place list = {.key = "products"};
    char folder[1024];
    for (uint64_t i = 0; i < m->product_count; i++) {
        const ingot_zoo_product *p = &m->products[i];
        const place at = {.parent = &list, .index = p->entry};
        (void)snprintf(folder, sizeof folder, "%s", p->output);
        for (char *slash = strrchr(folder, '/'); slash != NULL; slash = strrchr(folder, '/')) {
            *slash = '\0';
            const json_t *other = json_object_get(r->outputs, folder);
            if (other != NULL) {
                return ingot_field_refuse(r, &at, "product %s needs a folder %s, a file of line %u",
                                          p->name, folder,
                                          line_of_entry(r, json_integer_value(other)));
            }
        }
        const ingot_zoo_product *set = strstr(p->output, "-of-") ? find_set(r, p->output) : NULL;
        if (set != NULL) {
            return ingot_field_refuse(r, &at,
                                      "product %s would write %s, a shard of the one on line %u",
                                      p->name, p->output, line_of_entry(r, set->entry));
        }
    }
    return INGOT_OK;
}

static bool is_self(const ingot_zoo_text *text) {
    bool is = false;
    for (uint64_t i = 0; i < text->path_count; i++) {
        is = is || strcmp(text->paths[i], INGOT_ZOO_SELF) == 0;
    }
    return is;
}

static ingot_status check_product(const reader *r, const ingot_zoo_product *p, const place *at) {
    const bool scores_text = p->evaluation != INGOT_ZOO_NONE;
    if ((!isnan(p->max_ppl_ratio) || !isnan(p->max_kld)) && !scores_text) {
        return ingot_field_refuse(r, at,
                                  "a gate on perplexity or divergence needs \"evaluation\"%s",
                                  ingot_field_member(r->defaults, "gates") != NULL
                                      ? " (\"gates\": null takes those of \"defaults\" back)"
                                      : "");
    }
    if (!isnan(p->max_accuracy_drop) && p->tasks == NULL) {
        return ingot_field_refuse(r, at, "a gate on accuracy needs \"tasks\"");
    }
    if ((p->seq_len != 0 || p->windows != 0) && !scores_text) {
        return ingot_field_refuse(
            r, at,
            "\"seq_len\" and \"windows\" are of the \"evaluation\", and there is "
            "none");
    }
    if (scores_text && is_self(&r->out->texts[p->evaluation])) {
        return ingot_field_refuse(r, at, "what the model itself writes is no text to score it on");
    }
    if (p->uses_statistics && p->calibration == INGOT_ZOO_NONE) {
        return ingot_field_refuse(r, at, "\"statistics\" need a \"calibration\" text");
    }
    return check_unique(r, p, at);
}

/* Takes out of a copy of the defaults what an object has null. */
static void take_back(json_t *defaults, const json_t *object) {
    json_t *value;
    const char *key;
    json_object_foreach((json_t *)(uintptr_t)object, key, value) {
        if (json_is_null(value)) {
            (void)json_object_del(defaults, key);
        }
    }
}

/* The defaults that a product has not taken back: null in place of a key, or of a gate.  Without
 * text what is only of it goes, too. */
static ingot_status defaults_of(const reader *r, const json_t *object, json_t **out) {
    json_t *gates = json_object_get(object, "gates"), *shared;
    *out = json_copy(r->defaults);
    if (*out == NULL) {
        return ingot_field_no_memory(r);
    }
    take_back(*out, object);
    if (json_is_null(json_object_get(object, "evaluation"))) {
        (void)json_object_del(*out, "seq_len");
        (void)json_object_del(*out, "windows");
    }
    if (json_is_null(json_object_get(object, "calibration"))) {
        (void)json_object_del(*out, "statistics");
    }
    shared = json_object_get(*out, "gates");
    if (json_is_object(gates) && json_is_object(shared)) {
        shared = json_copy(shared);
        take_back(shared, gates);
        return json_object_set_new(*out, "gates", shared) == 0 ? INGOT_OK
                                                               : ingot_field_no_memory(r);
    }
    return INGOT_OK;
}

static ingot_status read_product(const reader *r, ingot_zoo_product *p, const json_t *object,
                                 const char *recipe, const place *at) {
    ingot_manifest *out = r->out;
    const place defaults = {.key = "defaults"}, named = {.parent = at, .key = "output"};
    const char *output = NULL;
    if (r->defaults != NULL) {
        json_t *kept = NULL;
        ingot_status status = defaults_of(r, object, &kept);
        status = status == INGOT_OK ? read_shared(r, p, kept, &defaults) : status;
        json_decref(kept); /* its texts are the document's */
        INGOT_TRY(status);
    }
    INGOT_TRY(read_shared(r, p, object, at));
    INGOT_TRY(ingot_field_keep_text(r, &p->name, "%s/%s", out->models[p->model].name, recipe));
    INGOT_TRY(ingot_field_string(r, object, at, "output", &output));
    if (output == NULL) {
        INGOT_TRY(ingot_field_keep_text(r, &p->output, "%s.ingot", p->name));
    } else if (ingot_field_is_output(output)) {
        p->output = output;
    } else {
        return ingot_field_refuse(
            r, &named,
            "\"output\" must name a file of the shelf that ends in .ingot, without a dot "
            "in front of any part");
    }
    return check_product(r, p, at);
}

static ingot_status read_entry(const reader *r, const json_t *object, unsigned entry,
                               const place *at) {
    ingot_manifest *out = r->out;
    const place models = {.parent = at, .key = "model"};
    const place recipes = {.parent = at, .key = "recipes"};
    const json_t *list = ingot_field_member(object, "recipes");
    const char *model = NULL;
    uint64_t model_index = 0;
    INGOT_TRY(ingot_field_string(r, object, at, "model", &model));
    if (model == NULL) {
        return ingot_field_refuse(r, at, "a product needs a \"model\"");
    }
    INGOT_TRY(find(r, r->model_index, "model", model, &models, &model_index));
    if (!json_is_array(list) || json_array_size(list) == 0) {
        return ingot_field_refuse(r, at, "a product needs \"recipes\", a list of their names");
    }
    if (json_array_size(list) > 1 && ingot_field_member(object, "output") != NULL) {
        return ingot_field_refuse(r, at, "one \"output\" for %zu recipes", json_array_size(list));
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        const place here = {.parent = &recipes, .index = i};
        const char *name = json_string_value(json_array_get(list, i));
        ingot_zoo_product *p = &out->products[out->product_count];
        *p = (ingot_zoo_product){.model = model_index,
                                 .calibration = INGOT_ZOO_NONE,
                                 .evaluation = INGOT_ZOO_NONE,
                                 .max_ppl_ratio = NAN,
                                 .max_kld = NAN,
                                 .max_accuracy_drop = NAN,
                                 .entry = entry};
        if (name == NULL) {
            return ingot_field_refuse(r, &here, "the name of a recipe must be a text");
        }
        INGOT_TRY(find(r, r->recipe_index, "recipe", name, &here, &p->recipe));
        INGOT_TRY(read_product(r, p, object, name, at));
        out->product_count++;
    }
    return INGOT_OK;
}

#define SHARED_KEYS                                                                                \
    "calibration", "evaluation", "tasks", "seq_len", "windows", "statistics", "zstd", "sha256",    \
        "shard_bytes", "gates"

static ingot_status read_defaults(reader *r) {
    static const char *const keys[] = {SHARED_KEYS};
    const place here = {.key = "defaults"};
    r->defaults = ingot_field_member(r->out->root, "defaults");
    if (r->defaults == NULL) {
        return INGOT_OK;
    }
    if (!json_is_object(r->defaults)) {
        return ingot_field_refuse(r, &here, "\"defaults\" must be an object");
    }
    return CHECK_KEYS(r, r->defaults, &here, keys);
}

static ingot_status read_products(reader *r) {
    static const char *const keys[] = {"model", "recipes", "output", SHARED_KEYS};
    ingot_manifest *out = r->out;
    const place here = {.key = "products"};
    json_t *list = ingot_field_member(out->root, "products");
    uint64_t count = 0;
    INGOT_TRY(read_defaults(r));
    if (!json_is_array(list) || json_array_size(list) == 0) {
        return ingot_field_refuse(r, list != NULL ? &here : NULL,
                                  "\"products\" must be a list with at least one product");
    }
    for (size_t i = 0; i < json_array_size(list); i++) {
        count += json_array_size(json_object_get(json_array_get(list, i), "recipes"));
    }
    INGOT_TRY(ingot_field_array(r, &out->products, count, sizeof *out->products));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const place at = {.parent = &here, .index = i};
        json_t *object = json_array_get(list, i);
        if (!json_is_object(object)) {
            return ingot_field_refuse(r, &at, "a product must be an object");
        }
        INGOT_TRY(CHECK_KEYS(r, object, &at, keys));
        INGOT_TRY(read_entry(r, object, (unsigned)i, &at));
    }
    return check_places(r);
}

/* ---- the rest of the root ------------------------------------------------------------------- */

static ingot_status read_devices(const reader *r) {
    ingot_manifest *out = r->out;
    const place here = {.key = "devices"};
    const json_t *list = ingot_field_member(out->root, "devices");
    const uint64_t count = list != NULL ? json_array_size(list) : 1;
    if (list != NULL && (!json_is_array(list) || count == 0 || count > INGOT_ZOO_MAX_DEVICES)) {
        return ingot_field_refuse(r, &here, "\"devices\" must be a list of 1 to %u devices",
                                  INGOT_ZOO_MAX_DEVICES);
    }
    INGOT_TRY(ingot_field_array(r, &out->devices, count, sizeof *out->devices));
    out->device_count = count;
    out->devices[0] = "auto";
    for (uint64_t i = 0; list != NULL && i < count; i++) {
        const place at = {.parent = &here, .index = i};
        const char *name = json_string_value(json_array_get(list, i));
        if (name == NULL || ingot_device_check_name(name, NULL) != INGOT_OK) {
            return ingot_field_refuse(r, &at,
                                      "a device is \"auto\", \"cpu\", \"cuda\" or \"cuda:N\"");
        }
        out->devices[i] = name;
    }
    return INGOT_OK;
}

static ingot_status read_limits(const reader *r) {
    static const char *const keys[] = {"host_bytes", "device_bytes", "disk_bytes", "threads",
                                       "jobs"};
    ingot_zoo_limits *limits = &r->out->limits;
    const place here = {.key = "limits"};
    json_t *object = ingot_field_member(r->out->root, "limits");
    if (object == NULL) {
        return INGOT_OK;
    }
    if (!json_is_object(object)) {
        return ingot_field_refuse(r, &here, "\"limits\" must be an object");
    }
    INGOT_TRY(CHECK_KEYS(r, object, &here, keys));
    INGOT_TRY(ingot_field_u64(r, object, &here, keys[0], 1, INT64_MAX, &limits->host_bytes));
    INGOT_TRY(ingot_field_u64(r, object, &here, keys[1], 1, INT64_MAX, &limits->device_bytes));
    INGOT_TRY(ingot_field_u64(r, object, &here, keys[2], 1, INT64_MAX, &limits->disk_bytes));
    INGOT_TRY(ingot_field_u64(r, object, &here, keys[3], 1, 256, &limits->threads));
    return ingot_field_u64(r, object, &here, keys[4], 1, 256, &limits->jobs);
}

/* Options of sbatch that only the site knows: partition, account, time. */
static ingot_status read_slurm(const reader *r) {
    ingot_manifest *out = r->out;
    const place here = {.key = "slurm"};
    const json_t *list = ingot_field_member(out->root, "slurm");
    if (list == NULL) {
        return INGOT_OK;
    }
    if (!json_is_array(list) || json_array_size(list) > INGOT_ZOO_MAX_SLURM) {
        return ingot_field_refuse(r, &here, "\"slurm\" must be a list of at most %u options",
                                  INGOT_ZOO_MAX_SLURM);
    }
    INGOT_TRY(ingot_field_array(r, &out->slurm, json_array_size(list), sizeof *out->slurm));
    for (size_t i = 0; i < json_array_size(list); i++) {
        const place at = {.parent = &here, .index = i};
        out->slurm[i] = json_string_value(json_array_get(list, i));
        if (out->slurm[i] == NULL || strncmp(out->slurm[i], "--", 2) != 0) {
            return ingot_field_refuse(r, &at, "an option of sbatch begins with two dashes");
        }
    }
    out->slurm_count = json_array_size(list);
    return INGOT_OK;
}

static ingot_status read_root(reader *r) {
    static const char *const keys[] = {"shelf",    "models",  "texts",  "recipes", "defaults",
                                       "products", "devices", "limits", "slurm"};
    const char *shelf = NULL;
    if (!json_is_object(r->out->root)) {
        return ingot_field_refuse(r, NULL, "a manifest is one JSON object");
    }
    INGOT_TRY(CHECK_KEYS(r, r->out->root, NULL, keys));
    INGOT_TRY(ingot_field_string(r, r->out->root, NULL, "shelf", &shelf));
    if (shelf == NULL) {
        return ingot_field_refuse(r, NULL, "\"shelf\" is missing: the folder for the products");
    }
    INGOT_TRY(ingot_field_keep_path(r, &r->out->shelf, shelf));
    INGOT_TRY(read_models(r));
    INGOT_TRY(read_texts(r));
    INGOT_TRY(read_recipes(r));
    INGOT_TRY(read_devices(r));
    INGOT_TRY(read_limits(r));
    INGOT_TRY(read_slurm(r));
    return read_products(r);
}

static ingot_status keep_document(const reader *r, const char *text, uint64_t size,
                                  const char *path) {
    ingot_manifest *out = r->out;
    const char *slash = strrchr(path, '/');
    void *memory;
    out->path = path;
    if (ingot_arena_create(&out->arena) != INGOT_OK ||
        ingot_arena_alloc(out->arena, &memory, size + 1) != INGOT_OK) {
        return ingot_field_no_memory(r);
    }
    memcpy(memory, text, size);
    out->text = memory;
    out->text[size] = '\0';
    out->size = size;
    INGOT_TRY(ingot_field_keep_text(r, &out->path, "%s", path));
    return slash == NULL ? ingot_field_keep_text(r, &out->folder, ".")
           : slash == path
               ? ingot_field_keep_text(r, &out->folder, "/")
               : ingot_field_keep_text(r, &out->folder, "%.*s", (int)(slash - path), path);
}

ingot_status ingot_manifest_parse(ingot_manifest *out, const char *text, uint64_t size,
                                  const char *path, ingot_error *error) {
    reader r = {.out = out, .error = error};
    *out = (ingot_manifest){0};
    INGOT_TRY(keep_document(&r, text, size, path));
    INGOT_TRY(ingot_json_parse(&out->root, out->text, size, out->path, error));
    r.model_index = json_object();
    r.text_index = json_object();
    r.recipe_index = json_object();
    r.names = json_object();
    r.outputs = json_object();
    const ingot_status status = read_root(&r);
    json_decref(r.model_index);
    json_decref(r.text_index);
    json_decref(r.recipe_index);
    json_decref(r.names);
    json_decref(r.outputs);
    return status;
}

void ingot_manifest_free(ingot_manifest *manifest) {
    for (uint64_t i = 0; i < manifest->recipe_count; i++) {
        free(manifest->recipes[i].text);
        ingot_recipe_free(&manifest->recipes[i].recipe);
    }
    json_decref(manifest->root);
    ingot_arena_destroy(manifest->arena);
    *manifest = (ingot_manifest){0};
}

bool ingot_product_has_data(const ingot_zoo_product *product) {
    return product->calibration != INGOT_ZOO_NONE;
}

bool ingot_product_has_gates(const ingot_zoo_product *product) {
    return !isnan(product->max_ppl_ratio) || !isnan(product->max_kld) ||
           !isnan(product->max_accuracy_drop);
}

ingot_status ingot_manifest_read(ingot_manifest *out, const char *path, ingot_error *error) {
    char *bytes = NULL;
    uint64_t size = 0;
    *out = (ingot_manifest){0};
    INGOT_TRY(ingot_file_read_all(path, MANIFEST_LIMIT_BYTES, &bytes, &size, error));
    ingot_status status = ingot_manifest_parse(out, bytes, size, path, error);
    ingot_free(bytes);
    if (status == INGOT_OK) {
        status = ingot_manifest_check(out, error);
    }
    return status;
}
