/* Weight sources over a checkpoint folder and over a container. */
#include "format/weight_source.h"

#include "common/files.h"
#include "common/sizes.h"

#include <stdio.h>
#include <string.h>

static bool is_float(ingot_dtype dtype) {
    return dtype == INGOT_F32 || dtype == INGOT_F16 || dtype == INGOT_BF16;
}

static ingot_status not_found(const char *path, const char *name, ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_NOT_FOUND, path, name, "is the checkpoint complete?",
                           "there is no such tensor");
}

/* ---- checkpoint ------------------------------------------------------------------------------ */

/* A source is the handle itself: nothing to allocate, nothing to own. */
static bool folder_describe(void *self, const char *name, ingot_weight_info *info) {
    const ingot_checkpoint *checkpoint = self;
    const ingot_st_tensor *tensor = ingot_checkpoint_find(checkpoint, name, NULL);
    if (tensor == NULL) {
        return false;
    }
    memset(info, 0, sizeof *info);
    info->rank = tensor->rank;
    memcpy(info->dim, tensor->dim, sizeof info->dim);
    info->kind = INGOT_DENSE;
    info->dtype = tensor->dtype;
    info->is_float = tensor->is_supported && is_float(tensor->dtype);
    info->load_bytes = tensor->bytes;
    return true;
}

static ingot_status folder_load(void *self, const char *name, ingot_arena *arena,
                                ingot_weight_view *view, ingot_error *error) {
    const ingot_checkpoint *checkpoint = self;
    uint64_t index;
    const ingot_st_tensor *tensor = ingot_checkpoint_find(checkpoint, name, &index);
    const char *path = ingot_checkpoint_path(checkpoint);
    void *bytes;
    if (tensor == NULL) {
        return not_found(path, name, error);
    }
    if (!tensor->is_supported) {
        return ingot_error_set(error, INGOT_ERR_UNSUPPORTED,
                               ingot_checkpoint_shard_path(checkpoint, index), name,
                               "save the checkpoint as F16, BF16 or F32",
                               "dtype %s is not supported", tensor->dtype_name);
    }
    if (ingot_arena_alloc(arena, &bytes, tensor->bytes) != INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, name, "free some memory",
                               "out of memory");
    }
    INGOT_TRY(ingot_checkpoint_read(checkpoint, index, 0, tensor->bytes, bytes, error));
    memset(view, 0, sizeof *view);
    view->kind = INGOT_DENSE;
    view->cols = tensor->rank > 0 ? tensor->dim[tensor->rank - 1] : 1;
    view->rows = view->cols > 0 ? tensor->elements / view->cols : 0;
    view->dtype = tensor->dtype;
    view->data = bytes;
    return INGOT_OK;
}

static const char *folder_file(void *self, const char *name, uint64_t *size) {
    return ingot_checkpoint_file(self, name, size);
}

static const char *folder_name_at(void *self, uint64_t index) {
    const ingot_checkpoint *checkpoint = self;
    return index < ingot_checkpoint_count(checkpoint) ? ingot_checkpoint_at(checkpoint, index)->name
                                                      : NULL;
}

#define COMPARE_BYTES (UINT64_C(1) << 20)

/* buffer[2][COMPARE_BYTES] */
static ingot_status compare_bytes(const ingot_checkpoint *checkpoint, uint64_t a, uint64_t b,
                                  uint8_t *buffer, bool *out, ingot_error *error) {
    const uint64_t bytes = ingot_checkpoint_at(checkpoint, a)->bytes;
    *out = true;
    for (uint64_t at = 0; at < bytes && *out; at += COMPARE_BYTES) {
        const uint64_t size = bytes - at < COMPARE_BYTES ? bytes - at : COMPARE_BYTES;
        INGOT_TRY(ingot_checkpoint_read(checkpoint, a, at, size, buffer, error));
        INGOT_TRY(ingot_checkpoint_read(checkpoint, b, at, size, buffer + COMPARE_BYTES, error));
        *out = memcmp(buffer, buffer + COMPARE_BYTES, size) == 0;
    }
    return INGOT_OK;
}

static ingot_status folder_is_same(void *self, const char *a, const char *b, bool *out,
                                   ingot_error *error) {
    const ingot_checkpoint *checkpoint = self;
    uint64_t i;
    uint64_t j;
    void *buffer;
    const ingot_st_tensor *first = ingot_checkpoint_find(checkpoint, a, &i);
    const ingot_st_tensor *second = ingot_checkpoint_find(checkpoint, b, &j);
    *out = false;
    if (first == NULL || second == NULL || strcmp(first->dtype_name, second->dtype_name) != 0 ||
        first->rank != second->rank || memcmp(first->dim, second->dim, sizeof first->dim) != 0) {
        return INGOT_OK;
    }
    if (ingot_alloc(&buffer, 2 * COMPARE_BYTES) != INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, ingot_checkpoint_path(checkpoint), a,
                               "free some memory", "out of memory");
    }
    const ingot_status status = compare_bytes(checkpoint, i, j, buffer, out, error);
    ingot_free(buffer);
    return status;
}

static void folder_close(void *self) {
    ingot_checkpoint_close(self);
}

void ingot_weight_source_from_checkpoint(ingot_weight_source *out,
                                         const ingot_checkpoint *checkpoint) {
    *out = (ingot_weight_source){.self = (void *)(uintptr_t)checkpoint,
                                 .path = ingot_checkpoint_path(checkpoint),
                                 .describe = folder_describe,
                                 .load = folder_load,
                                 .file = folder_file,
                                 .name_at = folder_name_at,
                                 .is_same = folder_is_same};
}

/* ---- container ------------------------------------------------------------------------------- */

static bool container_describe(void *self, const char *name, ingot_weight_info *info) {
    const ingot_container *container = self;
    uint64_t index;
    const ingot_tensor *tensor = ingot_tensor_find(container, name, &index);
    if (tensor == NULL) {
        return false;
    }
    memset(info, 0, sizeof *info);
    info->rank = tensor->rank;
    memcpy(info->dim, tensor->dim, sizeof info->dim);
    /* An alias repeats its target's geometry, widths included. */
    info->kind = tensor->bits > 0 ? INGOT_GROUPED : INGOT_DENSE;
    info->dtype = tensor->dtype;
    info->is_float = tensor->bits > 0 || is_float(tensor->dtype);
    info->is_alias = tensor->kind == INGOT_ALIAS;
    info->bits = tensor->bits;
    info->load_bytes = ingot_tensor_load_bytes(container, index);
    return true;
}

static ingot_status load_from(const ingot_container *container, const char *name, bool verify,
                              ingot_arena *arena, ingot_weight_view *view, ingot_error *error) {
    uint64_t index;
    void *bytes;
    if (ingot_tensor_find(container, name, &index) == NULL) {
        return not_found(ingot_path(container), name, error);
    }
    if (ingot_arena_alloc(arena, &bytes, ingot_tensor_load_bytes(container, index)) != INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, ingot_path(container), name,
                               "free some memory", "out of memory");
    }
    return ingot_tensor_load(container, index, verify, bytes, view, error);
}

static ingot_status container_load(void *self, const char *name, ingot_arena *arena,
                                   ingot_weight_view *view, ingot_error *error) {
    return load_from(self, name, true, arena, view, error);
}

static ingot_status container_load_unverified(void *self, const char *name, ingot_arena *arena,
                                              ingot_weight_view *view, ingot_error *error) {
    return load_from(self, name, false, arena, view, error);
}

static const char *container_file(void *self, const char *name, uint64_t *size) {
    return ingot_file_entry(self, name, size);
}

static const char *container_name_at(void *self, uint64_t index) {
    const ingot_container *container = self;
    const uint64_t count = ingot_tensor_count(container);
    for (uint64_t i = 0; i < count; i++) {
        const ingot_tensor *tensor = ingot_tensor_at(container, i);
        if (tensor->kind != INGOT_AUXILIARY && index-- == 0) {
            return tensor->name;
        }
    }
    return NULL;
}

static void container_close(void *self) {
    ingot_close(self);
}

void ingot_weight_source_from_container(ingot_weight_source *out, const ingot_container *container,
                                        bool verify) {
    *out = (ingot_weight_source){.self = (void *)(uintptr_t)container,
                                 .path = ingot_path(container),
                                 .describe = container_describe,
                                 .load = verify ? container_load : container_load_unverified,
                                 .file = container_file,
                                 .name_at = container_name_at,
                                 .container = container,
                                 .skips_verify = !verify};
}

/* Whether the file begins as a safetensors file does, or as JSON and lies beside a config.json. */
static bool is_checkpoint_part(const char *path) {
    uint8_t start[9] = {0};
    char config[INGOT_PATH_BYTES];
    uint64_t length = 0;
    ingot_file *file;
    if (ingot_file_open(&file, path, NULL) != INGOT_OK) {
        return false;
    }
    const uint64_t size = ingot_min_u64(sizeof start, ingot_file_size(file));
    const bool is_read = ingot_file_read_at(file, start, size, 0, NULL) == INGOT_OK;
    ingot_file_close(file);
    for (int i = 0; i < 8; i++) {
        length |= (uint64_t)start[i] << (8 * i);
    }
    if (!is_read || (start[8] == '{' && length <= INGOT_ST_HEADER_MOST_BYTES)) {
        return is_read;
    }
    const char *slash = strrchr(path, '/');
    const int folder = slash == NULL ? 0 : (int)(slash + 1 - path);
    const int written = snprintf(config, sizeof config, "%.*sconfig.json", folder, path);
    return start[0] == '{' && written > 0 && (size_t)written < sizeof config &&
           ingot_path_exists(config);
}

ingot_status ingot_weight_container_open(ingot_container **out, const char *path,
                                         ingot_error *error) {
    const ingot_status status = ingot_open(out, path, error);
    const bool is_none = status == INGOT_BAD_MAGIC || status == INGOT_BAD_TOO_SHORT;
    if (is_none && error != NULL && is_checkpoint_part(path)) {
        return ingot_error_set(
            error, status, path, NULL,
            "this is a file of a checkpoint: name the folder that holds it and config.json", "%s",
            error->reason);
    }
    return status;
}

ingot_status ingot_weight_source_open(ingot_weight_source *out, const char *path, bool verify,
                                      ingot_error *error) {
    memset(out, 0, sizeof *out);
    if (ingot_path_is_directory(path)) {
        ingot_checkpoint *checkpoint;
        INGOT_TRY(ingot_checkpoint_open(&checkpoint, path, error));
        ingot_weight_source_from_checkpoint(out, checkpoint);
        out->close = folder_close;
    } else {
        ingot_container *container;
        INGOT_TRY(ingot_weight_container_open(&container, path, error));
        ingot_weight_source_from_container(out, container, verify);
        out->close = container_close;
    }
    return INGOT_OK;
}

void ingot_weight_source_close(ingot_weight_source *source) {
    if (source->close != NULL) {
        source->close(source->self);
        source->close = NULL;
    }
}
