/* Statistics of the block at hand: when they are gathered, what folds make of them, and when they
 * are given back. */
#include "convert/loop_internal.h"

#include "common/files.h"

#include <string.h>

/* ---- statistics of a block ------------------------------------------------------------------ */

bool ingot_loop_is_sequential(const ingot_loop *l) {
    return l->job->plan->steps.is_sequential && !l->job->plan->has_folds;
}

/* Inputs of the second half of a block. */
#define HALF_INPUTS (INGOT_INPUT_BIT(INGOT_INPUT_MLP) | INGOT_INPUT_BIT(INGOT_INPUT_DOWN))

ingot_status ingot_loop_collect(ingot_loop *l, ingot_block_state *state, unsigned inputs) {
    double since = ingot_clock_seconds();
    unsigned last = 0;
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        last = state->input[i].is_present ? i : last;
    }
    /* With inputs one after another what comes before these is settled: it is run once. */
    const bool is_settled = ingot_loop_is_sequential(l) && !l->job->is_tuned;
    if (ingot_loop_is_sequential(l)) {
        ingot_arena_reset(l->solving[0]); /* what quantized the matrices before */
    }
    INGOT_TRY(ingot_batch_wake(&l->batch, l->job));
    if (is_settled && (inputs & HALF_INPUTS) == inputs) {
        INGOT_TRY(
            ingot_batch_halfway(&l->batch, l->job, &state->checkpoint, &state->block, l->error));
    }
    INGOT_TRY(ingot_collect(state, l->job, &l->rank, &l->batch, inputs,
                            (inputs & INGOT_INPUT_BIT(last)) != 0, l->block.host, l->scratch,
                            l->error));
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        state->input[i].is_collected |= (inputs & INGOT_INPUT_BIT(i)) != 0;
    }
    ingot_loop_lap(l, INGOT_PHASE_COLLECT, &since);
    return INGOT_OK;
}

ingot_status ingot_loop_keep_step(ingot_loop *l, const ingot_block_state *state) {
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        if (state->input[i].is_present) {
            return INGOT_OK;
        }
    }
    if (l->batch.exact.values == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_batch_wake(&l->batch, l->job));
    return ingot_batch_run(&l->batch, l->job, &state->checkpoint, 0, l->batch.windows,
                           &(ingot_batch_use){.is_exact = true}, l->error);
}

ingot_status ingot_loop_load_statistics(ingot_loop *l, ingot_block_state *state) {
    INGOT_TRY(ingot_loop_next_tensor(l));
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        ingot_input_state *s = &state->input[i];
        ingot_stats_input loaded;
        if (!s->is_present) {
            continue;
        }
        const uint64_t bytes = s->width * s->width * sizeof(float);
        ingot_arena_reset(l->tensors[l->turn].host);
        INGOT_TRY(ingot_stats_load(l->job->stats, state->layer, (ingot_input)i,
                                   l->tensors[l->turn].host, &loaded, l->error));
        INGOT_TRY(ingot_arena_array(l->block.host, (void **)&s->magnitude, s->width,
                                    sizeof *s->magnitude));
        memcpy(s->magnitude, loaded.magnitude, s->width * sizeof *s->magnitude);
        s->tokens = loaded.tokens;
        INGOT_TRY(ingot_arena_alloc(s->memory, (void **)&s->plain_gram, bytes));
        INGOT_TRY(l->ops->upload(l->context, s->plain_gram, loaded.gram, bytes));
        INGOT_TRY(l->ops->gram_fold(l->context, s->plain_gram, s->plain_gram, NULL, s->width));
        s->gram = s->plain_gram;
    }
    return INGOT_OK;
}

/* ---- folds ---------------------------------------------------------------------------------- */

/* H of folded inputs: x becomes x / fold. */
static ingot_status fold_grams(ingot_loop *l, ingot_block_state *state) {
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        ingot_input_state *s = &state->input[i];
        if (s->fold != NULL && s->plain_gram != NULL) {
            INGOT_TRY(ingot_arena_array(s->memory, (void **)&s->gram, s->width,
                                        s->width * sizeof(float)));
            INGOT_TRY(
                l->ops->gram_fold(l->context, s->gram, s->plain_gram, s->device_fold, s->width));
        }
    }
    return INGOT_OK;
}

ingot_status ingot_loop_choose_folds(ingot_loop *l, ingot_block_state *state) {
    if (l->has_batch) {
        INGOT_TRY(ingot_batch_wake(&l->batch, l->job));
    }
    INGOT_TRY(ingot_awq_choose(state, l->job, l->has_batch ? &l->batch : NULL, l->block.host,
                               l->block.device, l->error));
    return fold_grams(l, state);
}

ingot_status ingot_loop_apply_folds(ingot_loop *l, ingot_block_state *state) {
    const ingot_model *model = l->job->model;
    ingot_block *b = &state->block;
    for (unsigned slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        const float *fold = state->norm_fold[slot];
        float *host[2] = {b->host.norm[slot], b->host.norm_bias[slot]};
        float *device[2] = {b->norm[slot], b->norm_bias[slot]};
        for (unsigned k = 0; fold != NULL && k < 2; k++) {
            for (uint64_t i = 0; host[k] != NULL && i < model->hidden; i++) {
                host[k][i] /= fold[i];
            }
            if (host[k] != NULL) {
                INGOT_TRY(
                    l->ops->upload(l->context, device[k], host[k], model->hidden * sizeof(float)));
            }
        }
    }
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const float *fold = state->row_fold[role];
        float *host = b->host.bias[role];
        const uint64_t rows = model->linear[role].rows;
        if (fold != NULL && host != NULL) {
            for (uint64_t i = 0; i < rows; i++) {
                host[i] *= fold[i];
            }
            INGOT_TRY(l->ops->upload(l->context, b->bias[role], host, rows * sizeof(float)));
        }
    }
    return INGOT_OK;
}

/* ---- their end ------------------------------------------------------------------------------ */

void ingot_loop_forget_statistics(ingot_loop *l, ingot_block_state *state, uint64_t index) {
    const ingot_plan *plan = l->job->plan;
    const ingot_input input = l->job->model->linear[plan->tensors[index].role].input;
    for (uint64_t i = index + 1; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        if (t->layer == state->layer && t->origin == INGOT_ORIGIN_QUANTIZE &&
            l->job->model->linear[t->role].input == input) {
            return;
        }
    }
    ingot_input_state *s = &state->input[input];
    s->plain_gram = s->gram = NULL;
    s->drift = (ingot_drift){0};
    s->factor = (ingot_gptq_factor){0};
    ingot_arena_reset(s->memory);
    ingot_arena_reset(s->solving);
}
