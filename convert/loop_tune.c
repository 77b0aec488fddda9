/* Tuning of a block in the main loop (convert/tune.h): its matrices are quantized before any is
 * written, and learned together. */
#include "convert/loop_internal.h"

#include "common/files.h"
#include "convert/tune.h"

/* Quantizes a matrix of the block and gives the block its values, without writing it. */
static ingot_status quantize_ahead(ingot_loop *l, ingot_block_state *state, uint64_t index) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_linear_desc *d = &l->job->model->linear[t->role];
    ingot_input_state *input = &state->input[d->input];
    ingot_tuned_matrix *m = &l->tuned[t->role];
    ingot_linear_job *job = &m->job;
    INGOT_TRY(ingot_interrupt_check(l->error));
    if (!input->is_collected) {
        INGOT_TRY(ingot_loop_collect(l, state, INGOT_INPUT_BIT(d->input)));
    }
    double since = ingot_clock_seconds();
    ingot_batch_rest(&l->batch, l->job->backend);
    INGOT_TRY(ingot_loop_linear_job(job, l, index, &state->source[t->role], input,
                                    state->device_row_fold[t->role]));
    ingot_arena_reset(l->scratch);
    INGOT_TRY(
        ingot_arena_array(l->block.device, (void **)&m->target, d->rows, d->cols * sizeof(float)));
    job->target = m->target;
    INGOT_TRY(ingot_linear_quantize(&m->q, &l->job->ledgers[index], &l->job->steps[index],
                                    &m->bound, job, l->block.device, l->scratch, l->error));
    job->data.factor = NULL;
    job->data.drift = NULL;
    INGOT_TRY(
        l->ops->quantized_pack(l->context, &state->block.linear[t->role], &m->q, l->block.device));
    ingot_loop_lap(l, INGOT_PHASE_QUANTIZE, &since);
    return INGOT_OK;
}

ingot_status ingot_loop_tune(ingot_loop *l, ingot_block_state *state) {
    ingot_tune_job job = {
        .loop = l->job, .batch = &l->batch, .block = &state->block, .ahead = l->behind};
    bool learns = false;
    for (uint64_t i = 0; i < l->job->plan->count; i++) {
        const ingot_plan_tensor *t = &l->job->plan->tensors[i];
        if (t->layer == state->layer && t->origin == INGOT_ORIGIN_QUANTIZE) {
            INGOT_TRY(quantize_ahead(l, state, i));
            job.linear[t->role] = &l->tuned[t->role].q;
            job.target[t->role] = l->tuned[t->role].target;
            job.is_fixed[t->role] = t->method == INGOT_METHOD_RTN; /* stays plain */
            job.made_by[t->role] = &l->tuned[t->role].job;
            job.bound[t->role] = l->tuned[t->role].bound;
            learns |= !job.is_fixed[t->role];
        }
    }
    INGOT_TRY(ingot_loop_apply_folds(l, state, INGOT_INPUT_ALL));
    double since = ingot_clock_seconds();
    if (learns) {
        ingot_tune_result *result = &l->job->tunings[state->layer];
        /* of all that quantizing took, H alone is needed again */
        for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
            ingot_arena_clear(l->solving[i]);
        }
        ingot_arena_clear(l->scratch);
        INGOT_TRY(ingot_tune_block(result, &job, l->error));
        ingot_progress_line(l->job->progress,
                            "block %llu: tuned in %u steps, held-out error %.3f of the start's",
                            (unsigned long long)(state->layer + 1), result->step,
                            result->before > 0 ? result->after / result->before : 1.0);
    }
    ingot_loop_lap(l, INGOT_PHASE_TUNE, &since);
    return INGOT_OK;
}
