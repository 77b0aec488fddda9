/* What a manifest names: folders, recipe files and texts, before any work. */
#include "common/files.h"
#include "common/json_line.h"
#include "format/digest.h"
#include "zoo/manifest.h"

#include <string.h>

#define RECIPE_LIMIT_BYTES (16u << 20)
#define READ_BYTES         (1u << 20)

/* An error about a member of models, texts or recipes, or about an entry of products. */
static ingot_status refuse(const ingot_manifest *m, const ingot_json_place *at, const char *what,
                           const ingot_error *cause, ingot_error *error) {
    const ingot_status status = cause->status == INGOT_ERR_USAGE ? INGOT_ERR_INPUT : cause->status;
    char text[500];
    (void)snprintf(text, sizeof text, "%.240s%s%.240s", cause->file,
                   cause->file[0] != 0 ? ": " : "", cause->reason);
    return ingot_error_set(error, status, m->path, NULL, cause->remedy, "line %u: %s: %s",
                           ingot_json_line(m->text, m->size, at), what, text);
}

static ingot_status check_model(const ingot_manifest *m, const ingot_zoo_model *model,
                                ingot_error *error) {
    const ingot_json_place table = {.key = "models"};
    const ingot_json_place at = {.parent = &table, .key = model->name};
    char config[4096], what[160];
    ingot_error cause = {.status = INGOT_ERR_NOT_FOUND};
    (void)snprintf(what, sizeof what, "model \"%s\"", model->name);
    (void)snprintf(cause.file, sizeof cause.file, "%.1000s", model->path);
    if (!ingot_path_is_directory(model->path)) {
        (void)snprintf(cause.reason, sizeof cause.reason, "there is no such folder");
        (void)snprintf(cause.remedy, sizeof cause.remedy,
                       "correct its path, which begins at the manifest's folder");
        return refuse(m, &at, what, &cause, error);
    }
    if (ingot_path_join(config, sizeof config, model->path, "config.json") != INGOT_OK ||
        !ingot_path_exists(config)) {
        (void)snprintf(cause.reason, sizeof cause.reason, "the folder has no config.json");
        (void)snprintf(cause.remedy, sizeof cause.remedy,
                       "name a folder written by save_pretrained");
        return refuse(m, &at, what, &cause, error);
    }
    return INGOT_OK;
}

static ingot_status digest_file(ingot_digest_stream *stream, uint64_t *bytes, const char *path,
                                void *buffer, ingot_error *error) {
    ingot_file *file;
    ingot_status status = INGOT_OK;
    if (strcmp(path, INGOT_ZOO_SELF) == 0) {
        ingot_digest_stream_update(stream, path, strlen(path));
        return INGOT_OK;
    }
    INGOT_TRY(ingot_file_open(&file, path, error));
    const uint64_t size = ingot_file_size(file);
    *bytes += size;
    for (uint64_t at = 0; at < size && status == INGOT_OK; at += READ_BYTES) {
        const uint64_t piece = size - at < READ_BYTES ? size - at : READ_BYTES;
        status = ingot_file_read_at(file, buffer, piece, at, error);
        if (status == INGOT_OK) {
            ingot_digest_stream_update(stream, buffer, piece);
        }
    }
    ingot_file_close(file);
    return status;
}

static ingot_status digest_text(ingot_zoo_text *text, void *buffer, ingot_error *error) {
    ingot_digest_stream *stream;
    ingot_status status = ingot_digest_stream_create(&stream);
    for (uint64_t i = 0; i < text->path_count && status == INGOT_OK; i++) {
        status = digest_file(stream, &text->bytes, text->paths[i], buffer, error);
    }
    if (status == INGOT_OK) {
        ingot_digest_stream_finish(stream, text->digest);
    }
    ingot_digest_stream_destroy(stream);
    return status;
}

static ingot_status check_texts(ingot_manifest *m, ingot_error *error) {
    const ingot_json_place table = {.key = "texts"};
    void *buffer;
    ingot_status status = INGOT_OK;
    INGOT_TRY(ingot_alloc(&buffer, READ_BYTES));
    for (uint64_t i = 0; i < m->text_count && status == INGOT_OK; i++) {
        const ingot_json_place at = {.parent = &table, .key = m->texts[i].name};
        ingot_error cause = {0};
        char what[160];
        status = digest_text(&m->texts[i], buffer, &cause);
        if (status != INGOT_OK) {
            cause.status = status;
            (void)snprintf(what, sizeof what, "text \"%s\"", m->texts[i].name);
            status = refuse(m, &at, what, &cause, error);
        }
    }
    ingot_free(buffer);
    return status;
}

/* A recipe of its own file: read here, since parsing a manifest opens nothing. */
static ingot_status read_recipe(ingot_zoo_recipe *recipe, ingot_error *error) {
    json_t *value = NULL;
    INGOT_TRY(ingot_json_read(&value, recipe->path, RECIPE_LIMIT_BYTES, error));
    recipe->text = ingot_json_canonical(value);
    json_decref(value);
    if (recipe->text == NULL) {
        return INGOT_ERR_NO_MEMORY;
    }
    ingot_recipe_init(&recipe->recipe);
    return ingot_recipe_parse(&recipe->recipe, recipe->text, strlen(recipe->text), recipe->path,
                              error);
}

static ingot_status check_recipes(ingot_manifest *m, ingot_error *error) {
    const ingot_json_place table = {.key = "recipes"};
    for (uint64_t i = 0; i < m->recipe_count; i++) {
        const ingot_json_place at = {.parent = &table, .key = m->recipes[i].name};
        ingot_error cause = {0};
        char what[160];
        const ingot_status status =
            m->recipes[i].path != NULL ? read_recipe(&m->recipes[i], &cause) : INGOT_OK;
        if (status != INGOT_OK) {
            cause.status = status;
            (void)snprintf(what, sizeof what, "recipe \"%s\"", m->recipes[i].name);
            return refuse(m, &at, what, &cause, error);
        }
    }
    return INGOT_OK;
}

/* What a recipe asks for must go with what the product has; what it has no use for goes. */
static ingot_status check_product(const ingot_manifest *m, ingot_zoo_product *p,
                                  ingot_error *error) {
    const ingot_json_place list = {.key = "products"};
    const ingot_json_place at = {.parent = &list, .index = p->entry};
    const ingot_recipe *recipe = &m->recipes[p->recipe].recipe;
    const bool needs_text = recipe->target_bpw != 0 || recipe->effort == INGOT_EFFORT_BEST;
    ingot_error cause = {0};
    ingot_status status = ingot_recipe_check(recipe, ingot_product_has_data(p), &cause);
    if (status == INGOT_OK && needs_text && !ingot_product_has_data(p)) {
        status = ingot_error_set(&cause, INGOT_ERR_INPUT, NULL, NULL, "give \"calibration\"",
                                 "its recipe measures on a text, and there is none");
    }
    if (status == INGOT_OK && needs_text && p->uses_statistics) {
        status = ingot_error_set(&cause, INGOT_ERR_INPUT, NULL, NULL, "leave \"statistics\" out",
                                 "its recipe needs the text itself, not statistics of it");
    }
    if (status == INGOT_OK && p->tasks != NULL) {
        ingot_file *file = NULL;
        status = ingot_file_open(&file, p->tasks, &cause);
        ingot_file_close(file);
    }
    if (!ingot_recipe_uses_data(recipe)) {
        p->calibration = INGOT_ZOO_NONE;
        p->uses_statistics = false;
    }
    return status == INGOT_OK ? INGOT_OK : refuse(m, &at, p->name, &cause, error);
}

ingot_status ingot_manifest_check(ingot_manifest *manifest, ingot_error *error) {
    for (uint64_t i = 0; i < manifest->model_count; i++) {
        INGOT_TRY(check_model(manifest, &manifest->models[i], error));
    }
    INGOT_TRY(check_texts(manifest, error));
    INGOT_TRY(check_recipes(manifest, error));
    for (uint64_t i = 0; i < manifest->product_count; i++) {
        INGOT_TRY(check_product(manifest, &manifest->products[i], error));
    }
    return INGOT_OK;
}
