/* A container against its checkpoint by the digests in its ledger: the checkpoint is read once, at
 * the speed of the disk, however many containers came from it.  What is recomputed from the weights
 * themselves is ingot-verify's part. */
#include "zoo/source.h"

#include "calib/model.h"
#include "common/memory.h"
#include "format/checkpoint.h"

#include <stdio.h>
#include <string.h>

struct ingot_zoo_source {
    ingot_checkpoint *checkpoint;
    ingot_model model;
    bool has_model;         /* its architecture is known */
    uint8_t (*digests)[16]; /* of each tensor's bytes */
};

static void describe(ingot_zoo_source *source, const char *folder) {
    uint64_t size;
    ingot_error ignored = {0};
    const char *config = ingot_checkpoint_file(source->checkpoint, "config.json", &size);
    source->has_model = config != NULL && ingot_model_from_config(&source->model, config, size,
                                                                  folder, &ignored) == INGOT_OK;
}

ingot_status ingot_zoo_source_open(ingot_zoo_source **out, const char *folder, ingot_error *error) {
    void *memory;
    ingot_status status;
    *out = NULL;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_zoo_source)));
    ingot_zoo_source *source = memory;
    INGOT_GO(ingot_checkpoint_open(&source->checkpoint, folder, error));
    describe(source, folder);
    const uint64_t count = ingot_checkpoint_count(source->checkpoint);
    INGOT_GO(ingot_alloc_zero(&memory, count + 1, sizeof *source->digests));
    source->digests = memory;
    for (uint64_t i = 0; i < count; i++) {
        INGOT_GO(ingot_checkpoint_digest(source->digests[i], source->checkpoint, i, error));
    }
    *out = source;
    source = NULL;
done:
    ingot_zoo_source_close(source);
    return status;
}

void ingot_zoo_source_close(ingot_zoo_source *source) {
    if (source != NULL) {
        if (source->has_model) {
            ingot_model_close(&source->model);
        }
        ingot_checkpoint_close(source->checkpoint);
        ingot_free(source->digests);
        ingot_free(source);
    }
}

/* Whether the folder has the tensor, or what stands for it. */
static bool find_tensor(uint64_t *at, const ingot_zoo_source *source, const char *name) {
    if (ingot_checkpoint_find(source->checkpoint, name, at) != NULL) {
        return true;
    }
    const char *stand_in = source->has_model ? ingot_model_stand_in(&source->model, name) : NULL;
    return stand_in != NULL && ingot_checkpoint_find(source->checkpoint, stand_in, at) != NULL;
}

/* A tensor of the container, by the digest of its source in the ledger. */
static bool has_tensor(const ingot_zoo_source *source, const ingot_container *container,
                       uint64_t index, char reason[160]) {
    static const uint8_t none[16];
    const ingot_tensor *tensor = ingot_tensor_at(container, index);
    ingot_ledger ledger;
    uint64_t at;
    ingot_ledger_at(container, index, &ledger);
    if (memcmp(ledger.source_digest, none, sizeof none) == 0) {
        return true; /* an alias, or made by the conversion */
    }
    if (!find_tensor(&at, source, tensor->name)) {
        (void)snprintf(reason, 160, "%.120s is not in the model any more", tensor->name);
        return false;
    }
    if (memcmp(ledger.source_digest, source->digests[at], sizeof none) != 0) {
        (void)snprintf(reason, 160, "%.120s of the model has changed", tensor->name);
        return false;
    }
    return true;
}

static bool has_files(const ingot_zoo_source *source, const ingot_container *container,
                      char reason[160]) {
    const uint64_t count = ingot_file_entry_count(container);
    if (count != ingot_checkpoint_file_count(source->checkpoint)) {
        (void)snprintf(reason, 160, "the model's small files are others than the container's");
        return false;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t size, stored_size;
        const char *name = ingot_file_entry_name(container, i);
        const void *stored = ingot_file_entry(container, name, &stored_size);
        const char *bytes = ingot_checkpoint_file(source->checkpoint, name, &size);
        if (bytes == NULL || size != stored_size || memcmp(bytes, stored, size) != 0) {
            (void)snprintf(reason, 160, "%.120s of the model has changed", name);
            return false;
        }
    }
    return true;
}

ingot_status ingot_zoo_source_compare(bool *is_same, const ingot_zoo_source *source,
                                      const char *container, char reason[160], ingot_error *error) {
    ingot_container *opened = NULL;
    reason[0] = '\0';
    *is_same = false;
    INGOT_TRY(ingot_open(&opened, container, error));
    *is_same = has_files(source, opened, reason);
    for (uint64_t i = 0; i < ingot_tensor_count(opened) && *is_same; i++) {
        *is_same = has_tensor(source, opened, i, reason);
    }
    ingot_close(opened);
    return INGOT_OK;
}

ingot_status ingot_zoo_compare_source(bool *is_same, const char *container, const char *folder,
                                      char reason[160], ingot_error *error) {
    ingot_zoo_source *source;
    *is_same = false;
    INGOT_TRY(ingot_zoo_source_open(&source, folder, error));
    const ingot_status status = ingot_zoo_source_compare(is_same, source, container, reason, error);
    ingot_zoo_source_close(source);
    return status;
}
