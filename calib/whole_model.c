/* A whole model in memory (calib/whole_model.h). */
#include "calib/whole_model.h"

#include "common/files.h"

static ingot_status device_floats(const ingot_whole_model *w, float **out, uint64_t rows,
                                  uint64_t cols) {
    return w->backend->ops->alloc(w->backend->context, (void **)out, rows * cols * sizeof(float));
}

ingot_status ingot_whole_model_load(ingot_whole_model *out, const ingot_weight_source *source,
                                    ingot_progress *progress, ingot_error *error) {
    const ingot_model *model = out->model;
    const uint64_t total = ingot_model_load_bytes(model, source);
    uint64_t done = ingot_ends_load_bytes(model, source);
    INGOT_TRY(ingot_arena_create_from(&out->arena, &ingot_large_pages));
    INGOT_TRY(ingot_alloc_zero((void **)&out->blocks, model->layers, sizeof *out->blocks));
    (void)ingot_progress_bytes(progress, 0, total);
    INGOT_TRY(ingot_ends_load(&out->ends, model, source, out->backend, out->arena, error));
    for (; out->loaded < model->layers; out->loaded++) {
        (void)ingot_progress_bytes(progress, done, total);
        INGOT_TRY(ingot_interrupt_check(error));
        INGOT_TRY(ingot_block_load(&out->blocks[out->loaded], model, out->loaded, source,
                                   out->backend, out->arena, error));
        done += ingot_block_load_bytes(model, out->loaded, source);
    }
    (void)ingot_progress_bytes(progress, done, total);
    return INGOT_OK;
}

ingot_status ingot_whole_model_make_room(ingot_whole_model *w, uint64_t sequences,
                                         uint64_t capacity, uint64_t tokens, uint64_t rows,
                                         ingot_error *error) {
    const ingot_model *m = w->model;
    INGOT_TRY(ingot_kv_cache_create(&w->cache, m, w->backend, sequences, capacity, error));
    INGOT_TRY(ingot_workspace_create(&w->work, m, w->backend, tokens, error));
    INGOT_TRY(device_floats(w, &w->x, tokens, m->hidden));
    INGOT_TRY(device_floats(w, &w->scratch, rows, m->hidden));
    return device_floats(w, &w->logits, rows, m->vocab);
}

ingot_status ingot_whole_model_pass(ingot_whole_model *w, const uint32_t *ids, uint64_t count,
                                    ingot_progress *progress, ingot_error *error) {
    const uint64_t sequences = w->cache.sequences;
    const double before = (double)w->cache.length;
    INGOT_TRY(ingot_ends_embed(&w->ends, w->model, w->backend, w->x, ids, sequences * count));
    for (uint64_t layer = 0; layer < w->model->layers; layer++) {
        INGOT_TRY(ingot_interrupt_check(error));
        INGOT_TRY(ingot_block_forward(w->model, w->backend, &w->blocks[layer], w->x, sequences,
                                      count, &w->cache, w->work, NULL, NULL));
        if (progress != NULL) {
            const double share = (double)(layer + 1) / (double)w->model->layers;
            ingot_progress_update(progress, before + (double)count * share);
        }
    }
    w->cache.length += count;
    return INGOT_OK;
}

static void release(const ingot_whole_model *w, float *memory) {
    if (memory != NULL) {
        w->backend->ops->release(w->backend->context, memory);
    }
}

void ingot_whole_model_release(ingot_whole_model *w) {
    if (w->backend == NULL) {
        return;
    }
    for (uint64_t i = 0; i < w->loaded; i++) {
        ingot_block_release(&w->blocks[i], w->backend);
    }
    ingot_ends_release(&w->ends, w->backend);
    ingot_kv_cache_destroy(&w->cache, w->model, w->backend);
    ingot_workspace_destroy(w->work);
    release(w, w->x);
    release(w, w->scratch);
    release(w, w->logits);
    ingot_free(w->blocks);
    ingot_arena_destroy(w->arena);
    *w = (ingot_whole_model){0};
}
