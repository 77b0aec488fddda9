/* The end of a conversion whose matrices are distilled before they are written (convert/distill.h).
 */
#include "convert/loop_internal.h"

#include "common/files.h"

#include <math.h>

ingot_status ingot_loop_keep_matrix(ingot_loop *l, uint64_t index, const ingot_quantized *q,
                                    double bound) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    INGOT_TRY(ingot_distill_keep_matrix(l->distill, t->layer, t->role, q, bound,
                                        t->method == INGOT_METHOD_RTN, /* stays plain */
                                        false));
    return l->job->waiting != NULL
               ? ingot_loop_save_behind(l, index,
                                        ingot_distill_waiting(l->distill, t->layer, t->role),
                                        &l->job->ledgers[index])
               : INGOT_OK;
}

/* *packed = a kept matrix as it lies in a file, from the arena (host); the device memory is the
 * caller's. */
static ingot_status pack_kept(ingot_loop *l, uint64_t index, ingot_quantized *q,
                              ingot_weight_view *packed, ingot_arena *host, ingot_arena *device) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    ingot_weight_view view;
    INGOT_TRY(ingot_distill_matrix(q, l->distill, t->layer, t->role, device));
    INGOT_TRY(l->ops->quantized_pack(l->context, &view, q, device));
    return l->ops->download_view(l->context, packed, &view, host);
}

/* The bound on the weight error of a matrix that is not at hand. */
static ingot_status bound_of(double *bound, ingot_loop *l, uint64_t index, ingot_arena *arena) {
    const ingot_weight_source *source = l->job->source;
    ingot_weight_view host, device;
    ingot_linear_job job;
    INGOT_TRY(
        source->load(source->self, l->job->plan->tensors[index].name, arena, &host, l->error));
    INGOT_TRY(l->ops->upload_view(l->context, &device, &host));
    ingot_status status = ingot_loop_linear_job(&job, l, index, &device, NULL, NULL);
    if (status == INGOT_OK) {
        status = ingot_linear_bound(bound, &job, l->scratch, l->error);
    }
    l->ops->release_view(l->context, &device);
    return status;
}

ingot_status ingot_loop_keep_saved(ingot_loop *l, uint64_t index, ingot_arena *arena,
                                   ingot_weight_view *packed) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    ingot_quantized q;
    double bound;
    INGOT_TRY(bound_of(&bound, l, index, arena));
    INGOT_TRY(ingot_waiting_load(&q, l->job->waiting, index, arena, l->error));
    INGOT_TRY(ingot_distill_keep_matrix(l->distill, t->layer, t->role, &q, bound,
                                        t->method == INGOT_METHOD_RTN, true));
    return pack_kept(l, index, &q, packed, arena, l->block.device);
}

static ingot_status write_matrix(ingot_loop *l, uint64_t index) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    ingot_quantized q;
    ingot_weight_view packed;
    INGOT_TRY(ingot_interrupt_check(l->error));
    INGOT_TRY(ingot_loop_next_tensor(l));
    const ingot_loop_memory *memory = &l->tensors[l->turn];
    INGOT_TRY(pack_kept(l, index, &q, &packed, memory->host, memory->device));
    const double error = ingot_distill_error(l->distill, t->layer, t->role);
    ingot_ledger *ledger = &l->job->ledgers[index];
    if (!isnan(error)) {
        ingot_ledger_learn(ledger, t->method, error);
    }
    ledger->low_precision_scales = (uint32_t)ingot_view_low_precision(&packed);
    return ingot_loop_put_behind(l, index, &packed, ledger);
}

/* Device memory that only the block loop needs makes room. */
static ingot_status make_room(ingot_loop *l) {
    ingot_batch_forget_prefix(&l->batch, l->job->backend);
    ingot_arena_clear(l->block.device);
    ingot_arena_clear(l->scratch);
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        ingot_arena_clear(l->statistics[i]);
        ingot_arena_clear(l->solving[i]);
    }
    return ingot_batch_spare_exact(&l->batch, l->job);
}

ingot_status ingot_loop_distill(ingot_loop *l) {
    ingot_distill_result *result = l->job->distillation;
    double since = ingot_clock_seconds();
    INGOT_TRY(ingot_loop_settle(l));
    INGOT_TRY(make_room(l));
    INGOT_TRY(ingot_distill_run(result, l->distill, &l->batch, l->error));
    if (result->has_run) {
        ingot_progress_line(l->job->progress,
                            "distilled in %u steps, held-out divergence %.4f, before %.4f",
                            result->step, result->after, result->before);
    } else {
        ingot_progress_line(l->job->progress, "no device memory for distillation: left out");
    }
    ingot_loop_lap(l, INGOT_PHASE_DISTILL, &since);
    for (uint64_t i = 0; i < l->job->plan->count; i++) {
        const ingot_plan_tensor *t = &l->job->plan->tensors[i];
        if (t->layer != INGOT_PLAN_NONE && t->origin == INGOT_ORIGIN_QUANTIZE) {
            INGOT_TRY(write_matrix(l, i));
        }
    }
    ingot_loop_lap(l, INGOT_PHASE_WRITE, &since);
    return INGOT_OK;
}
