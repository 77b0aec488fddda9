/* Weight sources over a checkpoint folder and over a container. */
#include "format/weight_source.h"

#include <stdlib.h>
#include <string.h>

static ingot_status not_found(const char *path, const char *name, ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_NOT_FOUND, path, name, "is the checkpoint complete?",
                           "there is no such tensor");
}

/* ---- checkpoint ------------------------------------------------------------------------------ */

typedef struct folder_source {
    const ingot_checkpoint *checkpoint;
    ingot_checkpoint *owned; /* closed with the source, or NULL */
} folder_source;

static bool folder_describe(void *self, const char *name, ingot_weight_info *info) {
    const folder_source *source = self;
    const ingot_st_tensor *tensor = ingot_checkpoint_find(source->checkpoint, name, NULL);
    if (tensor == NULL) {
        return false;
    }
    memset(info, 0, sizeof *info);
    info->rank = tensor->rank;
    memcpy(info->dim, tensor->dim, sizeof info->dim);
    info->kind = INGOT_DENSE;
    info->dtype = tensor->dtype;
    info->load_bytes = tensor->bytes;
    return true;
}

static ingot_status folder_load(void *self, const char *name, ingot_arena *arena,
                                ingot_weight_view *view, ingot_error *error) {
    const folder_source *source = self;
    uint64_t index;
    const ingot_st_tensor *tensor = ingot_checkpoint_find(source->checkpoint, name, &index);
    const char *path = ingot_checkpoint_path(source->checkpoint);
    void *bytes;
    if (tensor == NULL) {
        return not_found(path, name, error);
    }
    if (!tensor->is_supported || tensor->dtype > INGOT_BF16) {
        return ingot_error_set(error, INGOT_ERR_UNSUPPORTED,
                               ingot_checkpoint_shard_path(source->checkpoint, index), name,
                               "save the checkpoint as F16, BF16 or F32",
                               "weights of dtype %s cannot be used", tensor->dtype_name);
    }
    if (ingot_arena_alloc(arena, &bytes, tensor->bytes) != INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, name, "free some memory",
                               "out of memory");
    }
    INGOT_TRY(ingot_checkpoint_read(source->checkpoint, index, 0, tensor->bytes, bytes, error));
    memset(view, 0, sizeof *view);
    view->kind = INGOT_DENSE;
    view->cols = tensor->rank > 0 ? tensor->dim[tensor->rank - 1] : 1;
    view->rows = view->cols > 0 ? tensor->elements / view->cols : 0;
    view->dtype = tensor->dtype;
    view->data = bytes;
    return INGOT_OK;
}

static const char *folder_file(void *self, const char *name, uint64_t *size) {
    return ingot_checkpoint_file(((const folder_source *)self)->checkpoint, name, size);
}

static const char *folder_name_at(void *self, uint64_t index) {
    const folder_source *source = self;
    return index < ingot_checkpoint_count(source->checkpoint)
               ? ingot_checkpoint_at(source->checkpoint, index)->name
               : NULL;
}

static void folder_close(void *self) {
    folder_source *source = self;
    ingot_checkpoint_close(source->owned);
    free(source);
}

static ingot_status folder_make(ingot_weight_source *out, const ingot_checkpoint *checkpoint,
                                ingot_checkpoint *owned, ingot_error *error) {
    folder_source *source = calloc(1, sizeof *source);
    if (source == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, ingot_checkpoint_path(checkpoint), NULL,
                               NULL, "out of memory");
    }
    *source = (folder_source){checkpoint, owned};
    *out = (ingot_weight_source){.self = source,
                                 .path = ingot_checkpoint_path(checkpoint),
                                 .describe = folder_describe,
                                 .load = folder_load,
                                 .file = folder_file,
                                 .name_at = folder_name_at,
                                 .close = folder_close};
    return INGOT_OK;
}

ingot_status ingot_weight_source_from_checkpoint(ingot_weight_source *out,
                                                 const ingot_checkpoint *checkpoint,
                                                 ingot_error *error) {
    return folder_make(out, checkpoint, NULL, error);
}

/* ---- container ------------------------------------------------------------------------------- */

typedef struct container_source {
    const ingot_container *container;
    ingot_container *owned;
    bool verify;
    char path[1024];
} container_source;

static bool container_describe(void *self, const char *name, ingot_weight_info *info) {
    const container_source *source = self;
    uint64_t index;
    const ingot_tensor *tensor = ingot_tensor_find(source->container, name, &index);
    if (tensor == NULL) {
        return false;
    }
    memset(info, 0, sizeof *info);
    info->rank = tensor->rank;
    memcpy(info->dim, tensor->dim, sizeof info->dim);
    /* An alias repeats its target's geometry, widths included. */
    info->kind = tensor->bits > 0 ? INGOT_GROUPED : INGOT_DENSE;
    info->dtype = tensor->dtype;
    info->bits = tensor->bits;
    info->load_bytes = ingot_tensor_load_bytes(source->container, index);
    return true;
}

static ingot_status container_load(void *self, const char *name, ingot_arena *arena,
                                   ingot_weight_view *view, ingot_error *error) {
    const container_source *source = self;
    uint64_t index;
    void *bytes;
    if (ingot_tensor_find(source->container, name, &index) == NULL) {
        return not_found(source->path, name, error);
    }
    if (ingot_arena_alloc(arena, &bytes, ingot_tensor_load_bytes(source->container, index)) !=
        INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, source->path, name, "free some memory",
                               "out of memory");
    }
    return ingot_tensor_load(source->container, index, source->verify, bytes, view, error);
}

static const char *container_file(void *self, const char *name, uint64_t *size) {
    return ingot_file_entry(((const container_source *)self)->container, name, size);
}

static const char *container_name_at(void *self, uint64_t index) {
    const container_source *source = self;
    const uint64_t count = ingot_tensor_count(source->container);
    for (uint64_t i = 0; i < count; i++) {
        const ingot_tensor *tensor = ingot_tensor_at(source->container, i);
        const bool is_model = strchr(tensor->name, '#') == NULL;
        if (is_model && index-- == 0) {
            return tensor->name;
        }
    }
    return NULL;
}

static void container_close(void *self) {
    container_source *source = self;
    ingot_close(source->owned);
    free(source);
}

static ingot_status container_make(ingot_weight_source *out, const ingot_container *container,
                                   ingot_container *owned, bool verify, const char *path,
                                   ingot_error *error) {
    container_source *source = calloc(1, sizeof *source);
    if (source == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
    }
    source->container = container;
    source->owned = owned;
    source->verify = verify;
    strncpy(source->path, path, sizeof source->path - 1);
    *out = (ingot_weight_source){.self = source,
                                 .path = source->path,
                                 .describe = container_describe,
                                 .load = container_load,
                                 .file = container_file,
                                 .name_at = container_name_at,
                                 .close = container_close};
    return INGOT_OK;
}

ingot_status ingot_weight_source_from_container(ingot_weight_source *out,
                                                const ingot_container *container, const char *path,
                                                bool verify, ingot_error *error) {
    return container_make(out, container, NULL, verify, path, error);
}

ingot_status ingot_weight_source_open(ingot_weight_source *out, const char *path, bool verify,
                                      ingot_error *error) {
    memset(out, 0, sizeof *out);
    if (!ingot_path_is_directory(path)) {
        ingot_container *container;
        INGOT_TRY(ingot_open(&container, path, error));
        const ingot_status status = container_make(out, container, container, verify, path, error);
        if (status != INGOT_OK) {
            ingot_close(container);
        }
        return status;
    }
    ingot_checkpoint *checkpoint;
    INGOT_TRY(ingot_checkpoint_open(&checkpoint, path, error));
    const ingot_status status = folder_make(out, checkpoint, checkpoint, error);
    if (status != INGOT_OK) {
        ingot_checkpoint_close(checkpoint);
    }
    return status;
}

void ingot_weight_source_close(ingot_weight_source *source) {
    if (source->close != NULL) {
        source->close(source->self);
        source->close = NULL;
    }
}
