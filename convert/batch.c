/* The calibration batch (convert/batch.h). */
#include "convert/batch.h"

#include "common/files.h"
#include "common/sizes.h"

static uint64_t window_floats(const ingot_batch *b, const ingot_model *model) {
    return b->length * model->hidden;
}

/* ---- opening -------------------------------------------------------------------------------- */

static void count_shortage(const ingot_loop_job *job) {
    if (job->shortages != NULL) {
        (*job->shortages)++;
    }
}

static ingot_status place_states(ingot_states *states, const ingot_batch *b,
                                 const ingot_loop_job *job) {
    const ingot_backend_ops *ops = job->backend->ops;
    uint64_t bytes;
    if (!ingot_size_mul(&bytes, window_floats(b, job->model), sizeof(float)) ||
        !ingot_size_mul(&bytes, bytes, b->windows)) {
        return INGOT_ERR_NO_MEMORY;
    }
    states->is_on_device = !job->spares_device || !job->backend->has_own_memory;
    if (states->is_on_device) {
        const ingot_status status =
            ops->alloc(job->backend->context, (void **)&states->values, bytes);
        if (status != INGOT_ERR_NO_MEMORY || !job->backend->has_own_memory) {
            return status;
        }
        states->is_on_device = false;
        count_shortage(job);
    }
    ingot_progress_line(job->progress,
                        "%.1f GiB of hidden states do not fit the device: kept in host memory",
                        (double)bytes / 0x1p30);
    return ops->host_alloc(job->backend->context, (void **)&states->values, bytes);
}

static uint64_t input_width(const ingot_model *model, ingot_input input) {
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *d = &model->linear[role];
        if (d->is_present && d->input == input) {
            return d->cols;
        }
    }
    return 0;
}

/* The linears behind these inputs write to the residual stream. */
static bool has_residual(ingot_input input) {
    return input == INGOT_INPUT_OUTPUT || input == INGOT_INPUT_DOWN;
}

static void release(float **memory, const ingot_backend *backend) {
    if (*memory != NULL) {
        backend->ops->release(backend->context, *memory);
        *memory = NULL;
    }
}

/* Of pointers to the same memory one is released. */
static void release_all(float *memory[INGOT_INPUT_COUNT], const ingot_backend *backend) {
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        for (unsigned k = i + 1; k < INGOT_INPUT_COUNT; k++) {
            memory[k] = memory[k] == memory[i] ? NULL : memory[k];
        }
        release(&memory[i], backend);
    }
}

static void release_call(ingot_batch *b, const ingot_backend *backend) {
    release_all(b->aside, backend);
    release_all(b->aside_residual, backend);
    release(&b->scratch, backend);
    release(&b->aside_output, backend);
    release(&b->unfolded, backend);
    ingot_workspace_destroy(b->workspace);
    b->workspace = NULL;
}

static uint64_t widest_input(const ingot_model *model) {
    uint64_t widest = 0;
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        widest = ingot_max_u64(widest, input_width(model, (ingot_input)i));
    }
    return widest;
}

/* Memory for inputs of the exact states of so many tokens. */
static ingot_status place_aside(ingot_batch *b, const ingot_loop_job *job, uint64_t tokens) {
    const ingot_backend_ops *ops = job->backend->ops;
    void *context = job->backend->context;
    const bool is_in_turn = b->streams == INGOT_BOTH_IN_TURN;
    const uint64_t hidden = job->model->hidden, widest = widest_input(job->model);
    INGOT_TRY(ops->alloc(context, (void **)&b->aside_output, tokens * hidden * sizeof(float)));
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        const uint64_t width = is_in_turn ? widest : input_width(job->model, (ingot_input)i);
        float **residual = &b->aside_residual[i];
        if (is_in_turn && i != 0) {
            b->aside[i] = b->aside[0];
        } else if (width != 0) {
            INGOT_TRY(ops->alloc(context, (void **)&b->aside[i], tokens * width * sizeof(float)));
        }
        if (is_in_turn && i == INGOT_INPUT_DOWN) {
            *residual = b->aside_residual[INGOT_INPUT_OUTPUT];
        } else if (width != 0 && has_residual((ingot_input)i)) {
            INGOT_TRY(ops->alloc(context, (void **)residual, tokens * hidden * sizeof(float)));
        }
    }
    return INGOT_OK;
}

/* Memory of a forward call of b->chunk windows. */
static ingot_status place_call(ingot_batch *b, const ingot_loop_job *job) {
    const ingot_backend *backend = job->backend;
    const uint64_t tokens = b->chunk * b->length;
    INGOT_TRY(backend->ops->alloc(backend->context, (void **)&b->scratch,
                                  tokens * job->model->hidden * sizeof(float)));
    if (b->streams != INGOT_PREFIX_ALONE) {
        INGOT_TRY(place_aside(b, job, tokens));
    }
    if (b->unfolds) {
        INGOT_TRY(backend->ops->alloc(backend->context, (void **)&b->unfolded,
                                      tokens * widest_input(job->model) * sizeof(float)));
    }
    return ingot_workspace_create(&b->workspace, job->model, backend, tokens, NULL);
}

/* Memory for `wanted` windows a call, or as many as fit. */
static ingot_status place_calls(ingot_batch *b, const ingot_loop_job *job, uint64_t wanted) {
    const ingot_backend *backend = job->backend;
    ingot_status status = INGOT_ERR_NO_MEMORY;
    for (b->chunk = wanted; status == INGOT_ERR_NO_MEMORY && b->chunk != 0;) {
        status = place_call(b, job);
        if (status != INGOT_ERR_NO_MEMORY) {
            break;
        }
        release_call(b, backend);
        b->chunk = b->chunk == 1 ? 0 : b->chunk / 2;
    }
    if (status == INGOT_OK && b->chunk < wanted) {
        count_shortage(job);
        ingot_progress_line(job->progress,
                            "device memory is short: %llu windows a call instead of %llu",
                            (unsigned long long)b->chunk, (unsigned long long)wanted);
    }
    return status;
}

static ingot_status embed_states(const ingot_batch *b, const ingot_loop_job *job,
                                 const ingot_ends *ends, const ingot_states *to) {
    const ingot_backend *backend = job->backend;
    const uint64_t floats = window_floats(b, job->model);
    for (uint64_t w = 0; w < b->windows; w++) {
        float *states = to->values + w * floats;
        float *x = to->is_on_device ? states : b->scratch;
        INGOT_TRY(ingot_ends_embed(ends, job->model, backend, x, job->windows->ids + w * b->length,
                                   b->length));
        if (!to->is_on_device) {
            INGOT_TRY(backend->ops->download(backend->context, states, x, floats * sizeof(float)));
        }
    }
    return INGOT_OK;
}

static ingot_status embed(ingot_batch *b, const ingot_loop_job *job, ingot_arena *arena,
                          ingot_error *error) {
    const ingot_backend *backend = job->backend;
    ingot_ends ends;
    INGOT_TRY(ingot_ends_load_part(&ends, INGOT_ENDS_EMBED, job->model, job->source, backend, arena,
                                   error));
    ingot_status status = embed_states(b, job, &ends, &b->prefix);
    if (status == INGOT_OK && b->exact.values != NULL) {
        status = embed_states(b, job, &ends, &b->exact);
    }
    ingot_ends_release(&ends, backend);
    return status;
}

static void unreserve(void **reserve, const ingot_backend *backend) {
    if (*reserve != NULL) {
        backend->ops->release(backend->context, *reserve);
        *reserve = NULL;
    }
}

/* Device memory that what follows is to leave free, until it is given back. */
static ingot_status reserve_bytes(void **reserve, const ingot_backend *backend, uint64_t bytes) {
    unreserve(reserve, backend);
    return backend->has_own_memory ? backend->ops->alloc(backend->context, reserve, bytes)
                                   : INGOT_OK;
}

ingot_status ingot_batch_create(ingot_batch *out, const ingot_loop_job *job, uint64_t judges,
                                ingot_streams streams, const ingot_block_need *need,
                                ingot_arena *arena, ingot_error *error) {
    const ingot_backend *backend = job->backend;
    void *reserve = NULL;
    *out = (ingot_batch){.windows = job->windows->count,
                         .length = job->windows->length,
                         .judges = judges,
                         .streams = streams,
                         .unfolds = need != NULL && need->unfolds};
    const uint64_t beside = need != NULL ? need->beside_calls : 0;
    const uint64_t between = need != NULL ? need->between_calls : 0;
    ingot_status status = INGOT_OK;
    INGOT_GO(reserve_bytes(&reserve, backend, ingot_max_u64(beside, between)));
    INGOT_GO(place_states(&out->prefix, out, job));
    if (streams != INGOT_PREFIX_ALONE) {
        INGOT_GO(place_states(&out->exact, out, job));
    }
    INGOT_GO(reserve_bytes(&reserve, backend, beside));
    INGOT_GO(place_calls(
        out, job,
        ingot_min_u64(out->windows, ingot_max_u64(1, backend->batch_tokens / out->length))));
    unreserve(&reserve, backend);
    INGOT_GO(embed(out, job, arena, error));
done:
    unreserve(&reserve, backend);
    if (status != INGOT_OK) {
        ingot_batch_destroy(out, backend);
    }
    return status;
}

static void release_states(const ingot_states *states, const ingot_backend *backend) {
    if (states->values != NULL && states->is_on_device) {
        backend->ops->release(backend->context, states->values);
    } else if (states->values != NULL) {
        backend->ops->host_release(backend->context, states->values);
    }
}

void ingot_batch_rest(ingot_batch *batch, const ingot_backend *backend) {
    if (backend->has_own_memory) {
        release_call(batch, backend);
    }
}

ingot_status ingot_batch_wake(ingot_batch *batch, const ingot_loop_job *job) {
    return batch->workspace != NULL ? INGOT_OK : place_calls(batch, job, batch->chunk);
}

void ingot_batch_forget_prefix(ingot_batch *batch, const ingot_backend *backend) {
    release_states(&batch->prefix, backend);
    batch->prefix = (ingot_states){0};
    release_call(batch, backend);
}

ingot_status ingot_batch_spare_exact(ingot_batch *batch, const ingot_loop_job *job) {
    const ingot_backend *backend = job->backend;
    const uint64_t bytes = batch->windows * window_floats(batch, job->model) * sizeof(float);
    ingot_states to = {0};
    if (!backend->has_own_memory || !batch->exact.is_on_device || batch->exact.values == NULL) {
        return INGOT_OK;
    }
    if (backend->ops->host_alloc(backend->context, (void **)&to.values, bytes) != INGOT_OK) {
        return INGOT_OK;
    }
    const ingot_status status =
        backend->ops->download(backend->context, to.values, batch->exact.values, bytes);
    release_states(status == INGOT_OK ? &batch->exact : &to, backend);
    batch->exact = status == INGOT_OK ? to : batch->exact;
    return status;
}

void ingot_batch_destroy(ingot_batch *batch, const ingot_backend *backend) {
    release_call(batch, backend);
    release_states(&batch->prefix, backend);
    release_states(&batch->exact, backend);
    *batch = (ingot_batch){0};
}

/* ---- running -------------------------------------------------------------------------------- */

/* *x = device memory with the states of `count` windows that the block may change. */
static ingot_status take_windows(float **x, const ingot_batch *b, const ingot_states *from,
                                 const ingot_loop_job *job, uint64_t first, uint64_t count,
                                 bool is_kept) {
    const ingot_backend *backend = job->backend;
    float *states = from->values + first * window_floats(b, job->model);
    const uint64_t bytes = count * window_floats(b, job->model) * sizeof(float);
    *x = from->is_on_device && is_kept ? states : b->scratch;
    if (*x == states) {
        return INGOT_OK;
    }
    return from->is_on_device ? backend->ops->copy(backend->context, *x, states, bytes)
                              : backend->ops->upload(backend->context, *x, states, bytes);
}

/* Passes inputs on, and ends a run that has gone as far as it is to. */
typedef struct watch {
    const ingot_batch_use *use;
    bool is_done;
} watch;

/* The status that ends a run which has gone as far as it was to. */
#define FAR_ENOUGH INGOT_ERR_USAGE

static ingot_status watch_input(void *context, ingot_input input, const float *x, uint64_t m,
                                uint64_t width) {
    watch *w = context;
    const ingot_batch_use *use = w->use;
    INGOT_TRY(use->hook(use->hook_context, input, x, m, width));
    w->is_done = use->stops && input == use->last;
    return w->is_done ? FAR_ENOUGH : INGOT_OK;
}

/* Runs a block over at most a chunk of windows; what becomes of its output: ingot_batch_use.
 * *at: where the states are meanwhile. */
static ingot_status run_chunk(const ingot_batch *b, const ingot_loop_job *job,
                              const ingot_block *block, uint64_t first, uint64_t count,
                              ingot_block_part part, const ingot_batch_use *use, bool is_kept,
                              const float **at, ingot_error *error) {
    const ingot_backend *backend = job->backend;
    const ingot_states *states = use->is_exact ? &b->exact : &b->prefix;
    const uint64_t floats = window_floats(b, job->model);
    const uint64_t bytes = count * floats * sizeof(float);
    float *x;
    INGOT_TRY(ingot_interrupt_check(error));
    INGOT_TRY(take_windows(&x, b, states, job, first, count, is_kept));
    *at = x;
    watch w = {.use = use};
    const ingot_status status =
        ingot_block_forward_part(job->model, backend, block, part, x, count, b->length, NULL,
                                 b->workspace, use->hook != NULL ? watch_input : NULL, &w);
    if (status != INGOT_OK && !w.is_done) {
        return ingot_error_set(
            error, status, ingot_checkpoint_path(job->checkpoint), NULL,
            status == INGOT_ERR_NO_MEMORY ? "use fewer --samples or a shorter --seq-len" : NULL,
            "block %llu could not be run: %s", (unsigned long long)block->layer,
            ingot_backend_failure(backend, status));
    }
    if (use->output != NULL) {
        return backend->ops->copy(backend->context, use->output, x, bytes);
    }
    return is_kept && !states->is_on_device
               ? backend->ops->download(backend->context, states->values + first * floats, x, bytes)
               : INGOT_OK;
}

static void show_progress(const ingot_batch *b, const ingot_loop_job *job, const ingot_block *block,
                          uint64_t done) {
    ingot_progress_update(job->progress,
                          (double)block->layer + 0.5 * (double)done / (double)b->windows);
}

/* What is left of the block at hand. */
static ingot_block_part part_left(const ingot_batch *b) {
    return b->is_halfway ? INGOT_BLOCK_MLP : INGOT_BLOCK_WHOLE;
}

ingot_status ingot_batch_run(const ingot_batch *batch, const ingot_loop_job *job,
                             const ingot_block *block, uint64_t first, uint64_t end,
                             const ingot_batch_use *use, ingot_error *error) {
    const bool is_kept = use->hook == NULL && use->output == NULL;
    const uint64_t floats = window_floats(batch, job->model);
    const ingot_block_part left = use->part != INGOT_BLOCK_WHOLE ? use->part : part_left(batch);
    for (uint64_t w = first; w < end; w += batch->chunk) {
        const uint64_t count = ingot_min_u64(batch->chunk, end - w);
        ingot_batch_use part = *use;
        part.output = use->output != NULL ? use->output + (w - first) * floats : NULL;
        const float *at;
        INGOT_TRY(run_chunk(batch, job, block, w, count, left, &part, is_kept, &at, error));
        show_progress(batch, job, block, w + count);
    }
    return INGOT_OK;
}

static ingot_status run_attention(const ingot_batch *batch, const ingot_loop_job *job,
                                  const ingot_block *block, bool is_exact, ingot_error *error) {
    const ingot_batch_use use = {.is_exact = is_exact, .part = INGOT_BLOCK_ATTENTION};
    return ingot_batch_run(batch, job, block, 0, batch->windows, &use, error);
}

ingot_status ingot_batch_halfway(ingot_batch *batch, const ingot_loop_job *job,
                                 const ingot_block *exact, const ingot_block *prefix,
                                 ingot_error *error) {
    if (batch->is_halfway) {
        return INGOT_OK;
    }
    INGOT_TRY(run_attention(batch, job, prefix, false, error));
    if (batch->exact.values != NULL) {
        INGOT_TRY(run_attention(batch, job, exact, true, error));
    }
    batch->is_halfway = true;
    return INGOT_OK;
}

void ingot_batch_end(ingot_batch *batch) {
    batch->is_halfway = false;
}

/* ---- both streams --------------------------------------------------------------------------- */

typedef struct pair {
    const ingot_batch *batch;
    const ingot_loop_job *job;
    const ingot_pair_use *use;
    const float *at; /* the states at hand */
} pair;

static ingot_status keep_input(void *context, ingot_input input, const float *x, uint64_t m,
                               uint64_t width) {
    const pair *p = context;
    const ingot_backend *backend = p->job->backend;
    const uint64_t hidden = p->job->model->hidden;
    if ((p->use->wanted & 1u << input) == 0) {
        return INGOT_OK;
    }
    if (p->batch->aside_residual[input] != NULL) {
        INGOT_TRY(backend->ops->copy(backend->context, p->batch->aside_residual[input], p->at,
                                     m * hidden * sizeof *x));
    }
    return backend->ops->copy(backend->context, p->batch->aside[input], x, m * width * sizeof *x);
}

static ingot_status meet_input(void *context, ingot_input input, const float *x, uint64_t m,
                               uint64_t width) {
    const pair *p = context;
    if ((p->use->wanted & 1u << input) == 0) {
        return INGOT_OK;
    }
    const ingot_pair_inputs inputs = {
        .exact = p->batch->aside[input],
        .prefix = x,
        .exact_residual = p->batch->aside_residual[input],
        .prefix_residual = has_residual(input) ? p->at : NULL,
        .scratch = has_residual(input) ? p->batch->aside_output : NULL,
    };
    return p->use->hook(p->use->hook_context, input, &inputs, m, width);
}

ingot_status ingot_batch_run_pair(const ingot_batch *batch, const ingot_loop_job *job,
                                  const ingot_block *exact, const ingot_block *prefix,
                                  uint64_t first, uint64_t end, const ingot_pair_use *use,
                                  ingot_error *error) {
    pair p = {.batch = batch, .job = job, .use = use};
    const ingot_batch_use keep = {.hook = keep_input,
                                  .hook_context = &p,
                                  .is_exact = true,
                                  .stops = !use->advances,
                                  .last = use->last};
    const ingot_batch_use meet = {
        .hook = meet_input, .hook_context = &p, .stops = true, .last = use->last};
    for (uint64_t w = first; w < end; w += batch->chunk) {
        const uint64_t count = ingot_min_u64(batch->chunk, end - w);
        INGOT_TRY(run_chunk(batch, job, exact, w, count, part_left(batch), &keep, use->advances,
                            &p.at, error));
        INGOT_TRY(
            run_chunk(batch, job, prefix, w, count, part_left(batch), &meet, false, &p.at, error));
        show_progress(batch, job, prefix, w + count);
    }
    return INGOT_OK;
}

ingot_status ingot_batch_exact(float **out, const ingot_batch *batch, const ingot_loop_job *job,
                               uint64_t first, uint64_t end, ingot_arena *arena) {
    const ingot_backend *backend = job->backend;
    const uint64_t floats = window_floats(batch, job->model);
    const uint64_t bytes = (end - first) * floats * sizeof(float);
    const float *from = batch->exact.values + first * floats;
    INGOT_TRY(ingot_arena_alloc(arena, (void **)out, bytes));
    return batch->exact.is_on_device ? backend->ops->copy(backend->context, *out, from, bytes)
                                     : backend->ops->upload(backend->context, *out, from, bytes);
}
