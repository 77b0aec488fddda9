/* The public face of the CUDA backend: thin calls into its tables. */
#include "kernels/ingot_kernels.h"

#include "kernels/device_name.h"
#include "kernels/engine.h"
#include "kernels/plugin.h"

#include <stdlib.h>
#include <string.h>

struct ingot_kernels {
    ingot_backend backend;
};

ingot_status ingot_kernels_open(ingot_kernels **out, const char *device, unsigned threads,
                                ingot_error *error) {
    int ordinal;
    *out = NULL;
    if (!ingot_device_ordinal(&ordinal, device)) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "use cuda or cuda:N",
                               "unknown device '%s'", device);
    }
    ingot_kernels *kernels = calloc(1, sizeof *kernels);
    if (kernels == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, NULL, NULL, NULL, "out of memory");
    }
    const ingot_status status =
        ingot_plugin_open(&kernels->backend, device, ordinal, threads, error);
    if (status != INGOT_OK) {
        free(kernels);
        return status;
    }
    *out = kernels;
    return INGOT_OK;
}

void ingot_kernels_close(ingot_kernels *kernels) {
    if (kernels != NULL) {
        kernels->backend.ops->close(kernels->backend.context);
        free(kernels);
    }
}

ingot_status ingot_kernels_alloc(ingot_kernels *kernels, void **out, uint64_t bytes) {
    return kernels->backend.ops->alloc(kernels->backend.context, out, bytes);
}

void ingot_kernels_free(ingot_kernels *kernels, void *memory) {
    kernels->backend.ops->release(kernels->backend.context, memory);
}

ingot_status ingot_kernels_to_device(ingot_kernels *kernels, void *device, const void *host,
                                     uint64_t bytes) {
    return kernels->backend.ops->upload(kernels->backend.context, device, host, bytes);
}

ingot_status ingot_kernels_to_host(ingot_kernels *kernels, void *host, const void *device,
                                   uint64_t bytes) {
    return kernels->backend.ops->download(kernels->backend.context, host, device, bytes);
}

ingot_status ingot_kernels_upload(ingot_kernels *kernels, ingot_weight_view *out,
                                  const ingot_container *container, uint64_t index, bool verify,
                                  ingot_error *error) {
    ingot_weight_view host;
    void *bytes = NULL;
    memset(out, 0, sizeof *out);
    if (index >= ingot_tensor_count(container)) {
        return ingot_error_set(error, INGOT_ERR_USAGE, ingot_path(container), NULL, NULL,
                               "there is no tensor %llu", (unsigned long long)index);
    }
    /* aligned_alloc wants a multiple, and more than nothing */
    const uint64_t size = ingot_tensor_load_bytes(container, index) + 64;
    if (size < 64 || (bytes = aligned_alloc(64, size / 64 * 64)) == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, ingot_path(container), NULL, NULL,
                               "out of memory");
    }
    ingot_status status = ingot_tensor_load(container, index, verify, bytes, &host, error);
    if (status == INGOT_OK) {
        status = kernels->backend.ops->upload_view(kernels->backend.context, out, &host);
        if (status != INGOT_OK) {
            ingot_error_set(
                error, status, ingot_path(container), ingot_tensor_at(container, index)->name, NULL,
                "the tensor could not be put on the device: %s", ingot_status_text(status));
        }
    }
    free(bytes);
    return status;
}

void ingot_kernels_release(ingot_kernels *kernels, ingot_weight_view *view) {
    kernels->backend.ops->release_view(kernels->backend.context, view);
}

ingot_status ingot_kernels_product(ingot_kernels *kernels, float *y, const ingot_weight_view *w,
                                   const float *x, uint64_t m) {
    return kernels->backend.ops->linear(kernels->backend.context, y, w, NULL, x, m);
}

ingot_status ingot_engine_create(ingot_engine **out, ingot_kernels *kernels,
                                 const ingot_engine_model *model,
                                 const ingot_engine_options *options, ingot_engine_load *load,
                                 ingot_error *error) {
    if (error != NULL) {
        error->status = INGOT_OK;
    }
    const ingot_status status = kernels->backend.ops->engine->create(kernels->backend.context, out,
                                                                     model, options, load, error);
    if (status != INGOT_OK && error != NULL && error->status == INGOT_OK) {
        return ingot_error_set(error, status, NULL, NULL, NULL, "the model could not be loaded: %s",
                               ingot_status_text(status));
    }
    return status;
}

void ingot_engine_destroy(ingot_engine *engine, ingot_kernels *kernels) {
    kernels->backend.ops->engine->destroy(engine);
}

ingot_status ingot_engine_rewind(ingot_engine *engine, ingot_kernels *kernels, uint64_t sequence) {
    return kernels->backend.ops->engine->rewind(engine, sequence);
}

ingot_status ingot_engine_feed(ingot_engine *engine, ingot_kernels *kernels, uint64_t sequence,
                               const uint32_t *ids, uint64_t count, float *logits) {
    return kernels->backend.ops->engine->feed(engine, sequence, ids, count, logits);
}

ingot_status ingot_engine_sampler(ingot_engine *engine, ingot_kernels *kernels, double temperature,
                                  const uint64_t *state) {
    return kernels->backend.ops->engine->sampler(engine, temperature, state);
}

ingot_status ingot_engine_next(ingot_engine *engine, ingot_kernels *kernels, uint64_t ahead,
                               uint32_t *ids) {
    return kernels->backend.ops->engine->next(engine, ahead, ids);
}

ingot_status ingot_engine_logits(ingot_engine *engine, ingot_kernels *kernels, float *logits) {
    return kernels->backend.ops->engine->logits(engine, logits);
}

ingot_status ingot_engine_saturated(ingot_engine *engine, ingot_kernels *kernels,
                                    bool *is_saturated) {
    return kernels->backend.ops->engine->saturated(engine, is_saturated);
}
