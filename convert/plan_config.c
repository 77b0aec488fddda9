/* A model without its weights (convert/plan_config.h). */
#include "convert/plan_config.h"

#include "common/files.h"
#include "common/json.h"
#include "common/memory.h"

#include <dirent.h>
#include <string.h>

#define CONFIG_LIMIT_BYTES (16u << 20)
#define PATH_BYTES         4096

static bool has_ending(const char *name, const char *ending) {
    const size_t length = strlen(name), tail = strlen(ending);
    return length >= tail && strcmp(name + length - tail, ending) == 0;
}

/* A file that may hold weights: such a folder is a checkpoint, whole or not. */
static bool is_weights(const char *name) {
    static const char *const endings[] = {
        ".safetensors", ".safetensors.index.json", ".bin", ".pt", ".pth", ".gguf", ".h5",
        ".msgpack"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        if (has_ending(name, endings[i])) {
            return true;
        }
    }
    return false;
}

bool ingot_plan_is_config(const char *path) {
    bool has_config = false, has_weights = false;
    if (!ingot_path_is_directory(path)) {
        return has_ending(path, ".json");
    }
    DIR *folder = opendir(path);
    for (const struct dirent *item = folder != NULL ? readdir(folder) : NULL; item != NULL;
         item = readdir(folder)) {
        has_config = has_config || strcmp(item->d_name, "config.json") == 0;
        has_weights = has_weights || is_weights(item->d_name);
    }
    if (folder != NULL) {
        (void)closedir(folder);
    }
    return has_config && !has_weights;
}

/* ---- the tensors ---------------------------------------------------------------------------- */

/* Tensors in the order of a checkpoint; names in one block. */
typedef struct listing {
    ingot_st_tensor *tensors;
    char (*names)[INGOT_NAME_SIZE];
    uint64_t count;
    ingot_dtype dtype;
} listing;

/* rows 0: a vector. */
static void add(listing *l, const char *name, uint64_t rows, uint64_t cols) {
    ingot_st_tensor *t = &l->tensors[l->count];
    (void)snprintf(l->names[l->count], INGOT_NAME_SIZE, "%s", name);
    *t = (ingot_st_tensor){.name = l->names[l->count],
                           .dtype_name = ingot_dtype_name(l->dtype),
                           .is_supported = true,
                           .dtype = l->dtype,
                           .rank = rows != 0 ? 2 : 1,
                           .dim = {rows != 0 ? rows : cols, rows != 0 ? cols : 0},
                           .elements = (rows != 0 ? rows : 1) * cols};
    t->bytes = t->elements * ingot_dtype_bytes(l->dtype);
    l->count++;
}

static void add_block(listing *l, const ingot_model *model, uint64_t layer) {
    char name[INGOT_NAME_SIZE];
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *d = &model->linear[role];
        if (!d->is_present) {
            continue;
        }
        ingot_model_linear_name(model, layer, (ingot_role)role, name);
        add(l, name, d->rows, d->cols);
        if (d->has_bias) {
            ingot_model_bias_name(model, layer, (ingot_role)role, name);
            add(l, name, 0, d->rows);
        }
    }
    for (unsigned slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        if (ingot_model_norm_name(model, layer, (ingot_norm_slot)slot, name)) {
            const bool is_of_heads = slot == INGOT_SLOT_Q || slot == INGOT_SLOT_K;
            add(l, name, 0, is_of_heads ? model->head_dim : model->hidden);
        }
    }
}

static ingot_status list_tensors(listing *l, const ingot_model *model) {
    const uint64_t most = model->layers * (2 * INGOT_ROLE_COUNT + INGOT_SLOT_COUNT) + 3;
    void *memory;
    INGOT_TRY(ingot_alloc_zero((void **)&l->tensors, most, sizeof *l->tensors));
    INGOT_TRY(ingot_alloc_zero(&memory, most, INGOT_NAME_SIZE));
    l->names = memory;
    add(l, model->embed_name, model->vocab, model->hidden);
    for (uint64_t layer = 0; layer < model->layers; layer++) {
        add_block(l, model, layer);
    }
    add(l, model->final_norm_name, 0, model->hidden);
    if (!model->is_tied) {
        add(l, model->head_name, model->vocab, model->hidden);
    }
    return INGOT_OK;
}

/* ---- reading -------------------------------------------------------------------------------- */

static ingot_status read_dtype(ingot_dtype *out, const char *bytes, uint64_t size, const char *path,
                               ingot_error *error) {
    static const char *const names[] = {"float32", "float16", "bfloat16"};
    static const ingot_dtype dtypes[] = {INGOT_F32, INGOT_F16, INGOT_BF16};
    json_t *config;
    INGOT_TRY(ingot_json_parse(&config, bytes, size, path, error));
    const char *name = json_string_value(json_object_get(config, "torch_dtype"));
    if (name == NULL) {
        name = json_string_value(json_object_get(config, "dtype"));
    }
    const json_t *quantization = json_object_get(config, "quantization_config");
    ingot_status status = INGOT_OK;
    bool is_known = name == NULL;
    *out = INGOT_F32;
    for (size_t i = 0; name != NULL && i < sizeof names / sizeof *names; i++) {
        if (strcmp(name, names[i]) == 0) {
            *out = dtypes[i];
            is_known = true;
        }
    }
    if (quantization != NULL && !json_is_null(quantization)) {
        status = ingot_error_set(error, INGOT_ERR_UNSUPPORTED, path, NULL,
                                 "start from the original FP16, BF16 or FP32 checkpoint",
                                 "the checkpoint is already quantized (quantization_config)");
    } else if (!is_known) {
        status = ingot_error_set(error, INGOT_ERR_UNSUPPORTED, path, NULL,
                                 "convert the checkpoint to F32, F16 or BF16",
                                 "dtype %s is not supported", name);
    }
    json_decref(config);
    return status;
}

ingot_status ingot_plan_read_config(ingot_checkpoint **checkpoint, ingot_model *model,
                                    const char *path, ingot_error *error) {
    char file[PATH_BYTES];
    char *bytes = NULL;
    uint64_t size;
    listing list = {0};
    bool has_model = false;
    ingot_status status = INGOT_OK;
    *checkpoint = NULL;
    if (!ingot_path_is_directory(path)) {
        (void)snprintf(file, sizeof file, "%s", path);
    } else {
        INGOT_TRY(ingot_path_join(file, sizeof file, path, "config.json"));
    }
    INGOT_TRY(ingot_file_read_all(file, CONFIG_LIMIT_BYTES, &bytes, &size, error));
    INGOT_GO(ingot_model_from_config(model, bytes, size, file, error));
    has_model = true;
    INGOT_GO(read_dtype(&list.dtype, bytes, size, file, error));
    INGOT_GO(list_tensors(&list, model));
    INGOT_GO(ingot_checkpoint_describe(checkpoint, path, list.tensors, list.count, error));
done:
    ingot_free(list.tensors);
    ingot_free(list.names);
    ingot_free(bytes);
    if (status != INGOT_OK && has_model) {
        ingot_model_close(model);
    }
    return status;
}
