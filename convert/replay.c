/* Recomputing hidden states (convert/replay.h). */
#include "convert/replay.h"

#include "common/files.h"

#include <string.h>

/* ---- the partial output as a weight source -------------------------------------------------- */

/* Names of finished tensors -> what was stored of them. */
typedef struct stored_source {
    ingot_loop *loop;
    const ingot_loop_job *job;
    ingot_weight_source source;
} stored_source;

static bool describe(void *self, const char *name, ingot_weight_info *info) {
    const stored_source *s = self;
    memset(info, 0, sizeof *info);
    return ingot_plan_find(s->job->plan, name) != INGOT_PLAN_NONE;
}

static ingot_status load(void *self, const char *name, ingot_arena *arena, ingot_weight_view *view,
                         ingot_error *error) {
    const stored_source *s = self;
    const uint64_t index = ingot_plan_find(s->job->plan, name);
    void *buffer;
    if (index == INGOT_PLAN_NONE) {
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, s->source.path, name, NULL,
                               "there is no such tensor");
    }
    if (s->loop->distill != NULL && ingot_waiting_is_of(s->job->plan, index)) {
        return ingot_loop_keep_saved(s->loop, index, arena, view);
    }
    INGOT_TRY(ingot_arena_alloc(arena, &buffer, ingot_writer_load_bytes(s->job->stored, index)));
    return ingot_writer_load(s->job->stored, index, buffer, view, error);
}

/* ---- the streams ---------------------------------------------------------------------------- */

/* The windows of one forward call are those of the first run: chunks begin anew at the judges where
 * the full-precision stream ran beside the collecting of statistics, in the second half of the
 * block alone where the first was over by then (ingot_batch_halfway). */
static ingot_status run_exact(ingot_loop *l, const ingot_block *block) {
    const ingot_batch *b = &l->batch;
    ingot_batch_use use = {.is_exact = true};
    const bool is_in_turn = b->streams == INGOT_BOTH_IN_TURN && !l->job->is_tuned;
    uint64_t fitted = b->windows;
    for (uint64_t i = 0; i < l->job->plan->count; i++) {
        const ingot_plan_tensor *t = &l->job->plan->tensors[i];
        if (t->layer == block->layer && t->origin == INGOT_ORIGIN_QUANTIZE) {
            const ingot_input input = l->job->model->linear[t->role].input;
            fitted = b->windows - b->judges; /* something was collected */
            if (is_in_turn && (input == INGOT_INPUT_MLP || input == INGOT_INPUT_DOWN)) {
                use.part = INGOT_BLOCK_MLP;
            }
        }
    }
    if (use.part == INGOT_BLOCK_MLP) {
        const ingot_batch_use before = {.is_exact = true, .part = INGOT_BLOCK_ATTENTION};
        INGOT_TRY(ingot_batch_run(b, l->job, block, 0, b->windows, &before, l->error));
    }
    INGOT_TRY(ingot_batch_run(b, l->job, block, 0, fitted, &use, l->error));
    return ingot_batch_run(b, l->job, block, fitted, b->windows, &use, l->error);
}

static ingot_status run_stream(ingot_loop *l, const ingot_weight_source *source, uint64_t layer,
                               bool is_exact) {
    ingot_block block;
    INGOT_TRY(ingot_block_load(&block, l->job->model, layer, source, l->job->backend, l->block.host,
                               l->error));
    ingot_status status = is_exact ? run_exact(l, &block)
                                   : ingot_batch_run(&l->batch, l->job, &block, 0, l->batch.windows,
                                                     &(ingot_batch_use){0}, l->error);
    if (status == INGOT_OK && !is_exact && l->distill != NULL) {
        status = ingot_distill_keep_block(l->distill, &block);
    }
    (void)!l->ops->wait(l->context); /* the block's memory goes */
    ingot_block_release(&block, l->job->backend);
    return status;
}

ingot_status ingot_replay(ingot_loop *l) {
    stored_source stored = {.loop = l, .job = l->job};
    double since = ingot_clock_seconds();
    stored.source = (ingot_weight_source){
        .self = &stored, .path = l->job->source->path, .describe = describe, .load = load};
    for (uint64_t layer = 0; layer < l->job->first_block; layer++) {
        INGOT_TRY(ingot_interrupt_check(l->error));
        ingot_loop_reset(&l->block);
        INGOT_TRY(ingot_prefetch_take(l->prefetch, layer, l->error));
        if (l->batch.exact.values != NULL) {
            INGOT_TRY(run_stream(l, ingot_prefetch_source(l->prefetch), layer, true));
            ingot_loop_reset(&l->block);
        }
        INGOT_TRY(run_stream(l, &stored.source, layer, false));
        if (ingot_loop_is_writer(l)) {
            ingot_progress_line(l->job->progress, "block %llu/%llu  finished before",
                                (unsigned long long)(layer + 1),
                                (unsigned long long)l->job->model->layers);
        }
        ingot_loop_lap(l, INGOT_PHASE_PROPAGATE, &since);
    }
    return INGOT_OK;
}
