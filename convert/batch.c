/* The calibration batch (convert/batch.h). */
#include "convert/batch.h"

#include "common/files.h"
#include "common/sizes.h"

static uint64_t window_floats(const ingot_batch *b, const ingot_model *model) {
    return b->length * model->hidden;
}

/* ---- opening -------------------------------------------------------------------------------- */

static ingot_status place_states(ingot_batch *b, const ingot_loop_job *job) {
    const ingot_backend_ops *ops = job->backend->ops;
    uint64_t bytes;
    if (!ingot_size_mul(&bytes, window_floats(b, job->model), sizeof(float)) ||
        !ingot_size_mul(&bytes, bytes, b->windows)) {
        return INGOT_ERR_NO_MEMORY;
    }
    b->is_on_device = true;
    const ingot_status status = ops->alloc(job->backend->context, (void **)&b->states, bytes);
    if (status != INGOT_ERR_NO_MEMORY) {
        return status;
    }
    b->is_on_device = false;
    ingot_progress_line(job->progress,
                        "%.1f GiB of hidden states do not fit the device: kept in host memory",
                        (double)bytes / 0x1p30);
    return ops->host_alloc(job->backend->context, (void **)&b->states, bytes);
}

/* Workspace and scratch for as many windows a call as keep the device busy, or fit. */
static ingot_status place_workspace(ingot_batch *b, const ingot_loop_job *job) {
    const ingot_backend *backend = job->backend;
    const uint64_t wanted =
        ingot_min_u64(b->windows, ingot_max_u64(1, backend->batch_tokens / b->length));
    ingot_status status = INGOT_ERR_NO_MEMORY;
    for (b->chunk = wanted; status == INGOT_ERR_NO_MEMORY && b->chunk != 0;) {
        status = backend->ops->alloc(backend->context, (void **)&b->scratch,
                                     b->chunk * window_floats(b, job->model) * sizeof(float));
        if (status == INGOT_OK) {
            status = ingot_workspace_create(&b->workspace, job->model, backend,
                                            b->chunk * b->length, NULL);
        }
        if (status != INGOT_ERR_NO_MEMORY) {
            break;
        }
        if (b->scratch != NULL) {
            backend->ops->release(backend->context, b->scratch);
            b->scratch = NULL;
        }
        b->chunk = b->chunk == 1 ? 0 : b->chunk / 2;
    }
    if (status == INGOT_OK && b->chunk < wanted) {
        ingot_progress_line(job->progress,
                            "device memory is short: %llu windows a call instead of %llu",
                            (unsigned long long)b->chunk, (unsigned long long)wanted);
    }
    return status;
}

static ingot_status embed(ingot_batch *b, const ingot_loop_job *job, ingot_arena *arena,
                          ingot_error *error) {
    const ingot_backend *backend = job->backend;
    const uint64_t floats = window_floats(b, job->model);
    ingot_ends ends;
    INGOT_TRY(ingot_ends_load_part(&ends, INGOT_ENDS_EMBED, job->model, job->source, backend, arena,
                                   error));
    ingot_status status = INGOT_OK;
    for (uint64_t w = 0; w < b->windows && status == INGOT_OK; w++) {
        float *states = b->states + w * floats;
        float *x = b->is_on_device ? states : b->scratch;
        status = ingot_ends_embed(&ends, job->model, backend, x, job->windows->ids + w * b->length,
                                  b->length);
        if (status == INGOT_OK && !b->is_on_device) {
            status = backend->ops->download(backend->context, states, x, floats * sizeof(float));
        }
    }
    ingot_ends_release(&ends, backend);
    return status;
}

ingot_status ingot_batch_create(ingot_batch *out, const ingot_loop_job *job, uint64_t judges,
                                uint64_t reserve_bytes, ingot_arena *arena, ingot_error *error) {
    const ingot_backend *backend = job->backend;
    void *reserve = NULL;
    *out = (ingot_batch){
        .windows = job->windows->count, .length = job->windows->length, .judges = judges};
    ingot_status status = INGOT_OK;
    if (backend->has_own_memory) {
        INGOT_GO(backend->ops->alloc(backend->context, &reserve, reserve_bytes));
    }
    INGOT_GO(place_states(out, job));
    INGOT_GO(place_workspace(out, job));
    if (reserve != NULL) {
        backend->ops->release(backend->context, reserve);
        reserve = NULL;
    }
    INGOT_GO(embed(out, job, arena, error));
done:
    if (reserve != NULL) {
        backend->ops->release(backend->context, reserve);
    }
    if (status != INGOT_OK) {
        ingot_batch_destroy(out, backend);
    }
    return status;
}

void ingot_batch_destroy(ingot_batch *batch, const ingot_backend *backend) {
    ingot_workspace_destroy(batch->workspace);
    if (batch->scratch != NULL) {
        backend->ops->release(backend->context, batch->scratch);
    }
    if (batch->states != NULL && batch->is_on_device) {
        backend->ops->release(backend->context, batch->states);
    } else if (batch->states != NULL) {
        backend->ops->host_release(backend->context, batch->states);
    }
    *batch = (ingot_batch){0};
}

/* ---- running -------------------------------------------------------------------------------- */

/* *x = device memory with the states of `count` windows that the block may change. */
static ingot_status take_windows(float **x, const ingot_batch *b, const ingot_loop_job *job,
                                 uint64_t first, uint64_t count, bool is_kept) {
    const ingot_backend *backend = job->backend;
    float *states = b->states + first * window_floats(b, job->model);
    const uint64_t bytes = count * window_floats(b, job->model) * sizeof(float);
    *x = b->is_on_device && is_kept ? states : b->scratch;
    if (*x == states) {
        return INGOT_OK;
    }
    return b->is_on_device ? backend->ops->copy(backend->context, *x, states, bytes)
                           : backend->ops->upload(backend->context, *x, states, bytes);
}

ingot_status ingot_batch_run(const ingot_batch *batch, const ingot_loop_job *job,
                             const ingot_block *block, uint64_t first, uint64_t end,
                             const ingot_batch_use *use, ingot_error *error) {
    const ingot_backend *backend = job->backend;
    const bool is_kept = use->hook == NULL && use->output == NULL;
    const uint64_t floats = window_floats(batch, job->model);
    for (uint64_t w = first; w < end; w += batch->chunk) {
        const uint64_t count = ingot_min_u64(batch->chunk, end - w);
        const uint64_t bytes = count * floats * sizeof(float);
        float *x;
        INGOT_TRY(ingot_interrupt_check(error));
        INGOT_TRY(take_windows(&x, batch, job, w, count, is_kept));
        const ingot_status status =
            ingot_block_forward(job->model, backend, block, x, count, batch->length, NULL,
                                batch->workspace, use->hook, use->hook_context);
        if (status != INGOT_OK) {
            return ingot_error_set(error, status, ingot_checkpoint_path(job->checkpoint), NULL,
                                   NULL, "block %llu could not be run: %s",
                                   (unsigned long long)block->layer, ingot_status_text(status));
        }
        if (use->output != NULL) {
            INGOT_TRY(
                backend->ops->copy(backend->context, use->output + (w - first) * floats, x, bytes));
        } else if (is_kept && !batch->is_on_device) {
            INGOT_TRY(
                backend->ops->download(backend->context, batch->states + w * floats, x, bytes));
        }
        ingot_progress_update(job->progress, (double)block->layer + 0.5 * (double)(w + count) /
                                                                        (double)batch->windows);
    }
    return INGOT_OK;
}
