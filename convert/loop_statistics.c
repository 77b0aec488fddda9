/* Statistics of the block at hand: when they are gathered, what folds make of them, and when they
 * are given back. */
#include "convert/loop_internal.h"

#include "common/files.h"

#include <string.h>

bool ingot_loop_is_sequential(const ingot_loop *l) {
    return l->job->plan->steps.is_sequential;
}

/* ---- folds ---------------------------------------------------------------------------------- */

/* H of folded inputs: x becomes x / fold. */
static ingot_status fold_grams(ingot_loop *l, ingot_block_state *state, unsigned inputs) {
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        ingot_input_state *s = &state->input[i];
        if ((inputs & INGOT_INPUT_BIT(i)) != 0 && s->fold != NULL && s->plain_gram != NULL) {
            INGOT_TRY(ingot_arena_array(s->memory, (void **)&s->gram, s->width,
                                        s->width * sizeof(float)));
            INGOT_TRY(
                l->ops->gram_fold(l->context, s->gram, s->plain_gram, s->device_fold, s->width));
        }
    }
    return INGOT_OK;
}

/* What folds were chosen by makes room: inputs follow in turn. */
static void forget_plain_statistics(ingot_loop *l, ingot_block_state *state) {
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        state->input[i].plain_gram = state->input[i].gram = NULL;
        ingot_arena_reset(l->statistics[i]);
    }
}

ingot_status ingot_loop_choose_folds(ingot_loop *l, ingot_block_state *state) {
    const bool is_in_turn = l->has_batch && ingot_loop_is_sequential(l);
    if (is_in_turn) {
        double since = ingot_clock_seconds();
        INGOT_TRY(ingot_batch_wake(&l->batch, l->job));
        INGOT_TRY(ingot_collect_for_folds(state, l->job, &l->rank, &l->batch, l->block.host,
                                          l->scratch, l->error));
        ingot_loop_lap(l, INGOT_PHASE_COLLECT, &since);
    }
    double since = ingot_clock_seconds();
    if (l->has_batch) {
        INGOT_TRY(ingot_batch_wake(&l->batch, l->job));
    }
    INGOT_TRY(ingot_awq_choose(state, l->job, &l->rank, l->has_batch ? &l->batch : NULL,
                               l->block.host, l->block.device, l->error));
    if (is_in_turn) {
        forget_plain_statistics(l, state);
    } else {
        INGOT_TRY(fold_grams(l, state, INGOT_INPUT_ALL));
    }
    ingot_loop_lap(l, INGOT_PHASE_FOLD, &since);
    return INGOT_OK;
}

/* *vector = host[count] divided or multiplied by the fold, on the device for as long as the block
 * is: the full-precision stream reads what it replaces.  NULL stays. */
static ingot_status folded_vector(float **vector, ingot_loop *l, const float *host,
                                  const float *fold, bool divides, uint64_t count) {
    float *folded;
    if (host == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_array(l->block.host, (void **)&folded, count, sizeof *folded));
    for (uint64_t i = 0; i < count; i++) {
        folded[i] = divides ? host[i] / fold[i] : host[i] * fold[i];
    }
    INGOT_TRY(ingot_arena_array(l->block.device, (void **)vector, count, sizeof *folded));
    return l->ops->upload(l->context, *vector, folded, count * sizeof *folded);
}

static ingot_status apply_fold(ingot_loop *l, ingot_block_state *state, const ingot_fold_desc *f) {
    const ingot_model *model = l->job->model;
    ingot_block *b = &state->block;
    if (!f->is_norm) {
        return folded_vector(&b->bias[f->producer], l, b->host.bias[f->producer],
                             state->row_fold[f->producer], false, model->linear[f->producer].rows);
    }
    const float *fold = state->norm_fold[f->slot];
    INGOT_TRY(
        folded_vector(&b->norm[f->slot], l, b->host.norm[f->slot], fold, true, model->hidden));
    return folded_vector(&b->norm_bias[f->slot], l, b->host.norm_bias[f->slot], fold, true,
                         model->hidden);
}

ingot_status ingot_loop_apply_folds(ingot_loop *l, ingot_block_state *state, unsigned inputs) {
    const ingot_model *model = l->job->model;
    for (unsigned i = 0; i < model->fold_count; i++) {
        const ingot_fold_desc *f = &model->fold[i];
        const ingot_role reader = f->is_norm ? f->consumers[0] : f->producer;
        const bool is_settled = (inputs & INGOT_INPUT_BIT(model->linear[reader].input)) != 0;
        if (state->is_fold_planned[i] && is_settled && !state->is_fold_applied[i]) {
            state->is_fold_applied[i] = true;
            INGOT_TRY(apply_fold(l, state, f));
        }
    }
    return INGOT_OK;
}

/* ---- statistics of a block ------------------------------------------------------------------ */

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
    /* in turn, linears that read the inputs before these have their folds by now */
    const unsigned first = inputs & (~inputs + 1);
    INGOT_TRY(ingot_loop_is_sequential(l) ? ingot_loop_apply_folds(l, state, first - 1) : INGOT_OK);
    if (is_settled && (inputs & HALF_INPUTS) == inputs) {
        INGOT_TRY(
            ingot_batch_halfway(&l->batch, l->job, &state->checkpoint, &state->block, l->error));
    }
    INGOT_TRY(ingot_collect(state, l->job, &l->rank, &l->batch, inputs,
                            (inputs & INGOT_INPUT_BIT(last)) != 0, l->block.host, l->scratch,
                            l->error));
    INGOT_TRY(fold_grams(l, state, inputs));
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
