/* The main loop of a conversion (convert/loop.h). */
#include "convert/loop_internal.h"

#include "common/files.h"
#include "common/memory.h"
#include "common/sizes.h"
#include "common/worker.h"
#include "convert/collect.h"
#include "convert/plan_forecast.h"
#include "convert/prefetch.h"
#include "convert/replay.h"
#include "convert/resume.h"
#include "convert/team_run.h"
#include "convert/tune.h"
#include "format/digest.h"

#include <math.h>
#include <string.h>

#define JUDGES_MOST 8u

const char *ingot_phase_name(ingot_phase phase) {
    static const char *const names[] = {"plan", "read",    "collect", "fold",      "quantize",
                                        "tune", "distill", "write",   "propagate", "finish"};
    return names[phase];
}

double ingot_lap(double *since) {
    const double now = ingot_clock_seconds(), elapsed = now - *since;
    *since = now;
    return elapsed;
}

/* ---- one matrix ----------------------------------------------------------------------------- */

/* The factor of an input for a group size, made when first needed. */
static ingot_status get_factor(const ingot_gptq_factor **out, ingot_loop *l,
                               ingot_input_state *input, uint64_t group) {
    *out = NULL;
    if (input == NULL || input->plain_gram == NULL) {
        return INGOT_OK;
    }
    if (input->factor.group != group) {
        ingot_arena_reset(l->scratch);
        INGOT_TRY(l->ops->factorize(l->context, &input->factor, input->gram, input->width, group,
                                    input->solving, l->scratch));
    }
    *out = &input->factor;
    return INGOT_OK;
}

/* A matrix of the checkpoint on both sides. */
typedef struct source_pair {
    const ingot_weight_view *host, *device;
} source_pair;

ingot_status ingot_loop_linear_job(ingot_linear_job *job, ingot_loop *l, uint64_t index,
                                   const ingot_weight_view *source, ingot_input_state *input,
                                   const float *row_fold) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_tensor_spec *spec = &l->job->plan->specs[index];
    *job =
        (ingot_linear_job){.backend = l->job->backend,
                           .file = ingot_checkpoint_shard_path(l->job->checkpoint, t->source_index),
                           .name = t->name,
                           .source = source,
                           .row_fold = row_fold,
                           .column_fold = input != NULL ? input->device_fold : NULL,
                           .format = {.bits = spec->bits,
                                      .group = spec->group,
                                      .zero_mode = spec->zero_mode,
                                      .scale_dtype = spec->scale_dtype},
                           .outlier_count = spec->outlier_count,
                           .outlier_dtype = spec->dtype,
                           .method = t->method,
                           .polish_rounds = l->job->plan->steps.polish_rounds};
    INGOT_TRY(get_factor(&job->data.factor, l, input, spec->group));
    if (job->data.factor != NULL) {
        job->data.gram = input->gram;
        job->data.plain_gram = input->plain_gram;
        job->data.tokens = input->tokens;
        job->data.drift = input->is_corrected ? &input->drift : NULL;
    }
    return INGOT_OK;
}

/* The rows of a job that are this device's. */
static bool take_rows(ingot_linear_job *job, ingot_weight_view *own, const ingot_loop *l) {
    const ingot_weight_view *source = job->source;
    uint64_t first, count;
    if (job->outlier_count != 0 || !ingot_team_rows(&first, &count, &l->rank, source->rows)) {
        return false; /* which outliers are best is a question to the whole matrix */
    }
    *own = *source;
    own->rows = count;
    own->data =
        (const char *)source->data + first * source->cols * ingot_dtype_bytes(source->dtype);
    job->source = own;
    job->row_fold = job->row_fold != NULL ? job->row_fold + first : NULL;
    job->first_row = first;
    job->rank = l->rank;
    return true;
}

/* The XXH3-128 of a matrix in the checkpoint. */
static void digest_source(uint8_t digest[16], const ingot_loop *l, uint64_t index,
                          const ingot_weight_view *host) {
    if (ingot_prefetch_bytes(l->prefetch, l->job->plan->tensors[index].source_index, digest) ==
        NULL) {
        ingot_digest128(digest, host->data,
                        host->rows * host->cols * ingot_dtype_bytes(host->dtype));
    }
}

/* Brings the packed matrix of a job to the host, the rows of all devices where these share it;
 * *stored as in convert_matrix. */
static ingot_status bring_together(ingot_weight_view *packed, ingot_loop *l,
                                   const ingot_linear_job *job, const ingot_weight_view *own,
                                   uint64_t rows, ingot_weight_view *fetched,
                                   ingot_weight_view *stored) {
    if (job->rank.team != NULL) {
        INGOT_TRY(ingot_team_gather(packed, &l->rank, rows, job->first_row, own, l->block.host));
        INGOT_TRY(l->ops->upload_view(l->context, fetched, packed));
        *stored = *fetched;
        return INGOT_OK;
    }
    if (stored != NULL) {
        *stored = *own;
    }
    return l->ops->download_view(l->context, packed, own, l->tensors[l->turn].host);
}

/* Quantizes planned tensor `index`, unless *tuned has been already, and writes it; *stored, when
 * not NULL, is what a loader will see, on the device for as long as the block is, in *fetched where
 * several devices share the work. */
static ingot_status convert_matrix(ingot_loop *l, uint64_t index, source_pair source,
                                   ingot_input_state *input, const float *row_fold,
                                   const ingot_tuned_matrix *tuned, ingot_weight_view *fetched,
                                   ingot_weight_view *stored) {
    ingot_linear_job job;
    ingot_weight_view rows;
    double since = ingot_clock_seconds();
    INGOT_TRY(ingot_interrupt_check(l->error));
    ingot_batch_rest(&l->batch, l->job->backend);
    if (tuned != NULL && tuned->target != NULL) {
        job = tuned->job;
    } else {
        INGOT_TRY(ingot_loop_linear_job(&job, l, index, source.device, input, row_fold));
    }
    const bool is_shared = stored != NULL && take_rows(&job, &rows, l);
    ingot_arena_reset(l->scratch);
    ingot_quantized q;
    double bound;
    ingot_weight_view view, packed;
    ingot_ledger own_ledger, *ledger = &own_ledger;
    ingot_steps_taken own_steps, *steps = &own_steps;
    if (ingot_loop_is_writer(l)) {
        ledger = &l->job->ledgers[index];
        steps = &l->job->steps[index];
    }
    if (tuned != NULL && tuned->target != NULL) {
        q = tuned->q;
        bound = tuned->bound;
        INGOT_TRY(ingot_linear_measure(ledger, &job, tuned->target, &q, l->scratch));
    } else {
        INGOT_TRY(ingot_linear_quantize(&q, ledger, steps, &bound, &job, l->tensors[l->turn].device,
                                        l->scratch, l->error));
    }
    INGOT_TRY(l->ops->quantized_pack(l->context, &view, &q,
                                     stored != NULL && !is_shared ? l->block.device
                                                                  : l->tensors[l->turn].device));
    INGOT_TRY(bring_together(&packed, l, &job, &view, source.host->rows, fetched, stored));
    if (l->job->backend->has_own_memory) {
        ingot_arena_reset(l->scratch); /* for the calls that follow; a host keeps it at hand */
    }
    ingot_loop_lap(l, INGOT_PHASE_QUANTIZE, &since);
    if (!ingot_loop_is_writer(l)) {
        return INGOT_OK;
    }
    digest_source(ledger->source_digest, l, index, source.host);
    ledger->low_precision_scales = (uint32_t)ingot_view_low_precision(&packed);
    return l->distill != NULL && stored != NULL ? ingot_loop_keep_matrix(l, index, &q, bound)
                                                : ingot_loop_put_behind(l, index, &packed, ledger);
}

/* A matrix outside the blocks, or in a block that needs no forward pass. */
static ingot_status convert_alone(ingot_loop *l, uint64_t index, ingot_input_state *input) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_st_tensor *source = ingot_checkpoint_at(l->job->checkpoint, t->source_index);
    uint8_t digest[16];
    double since = ingot_clock_seconds();
    INGOT_TRY(ingot_loop_next_tensor(l));
    const void *bytes = ingot_prefetch_bytes(l->prefetch, t->source_index, digest);
    if (bytes == NULL) {
        void *own;
        INGOT_TRY(ingot_arena_alloc(l->tensors[l->turn].host, &own, source->bytes));
        INGOT_TRY(ingot_checkpoint_read(l->job->checkpoint, t->source_index, 0, source->bytes, own,
                                        l->error));
        bytes = own;
    }
    ingot_loop_lap(l, INGOT_PHASE_READ, &since);
    const ingot_weight_view host = {.kind = INGOT_DENSE,
                                    .rows = source->dim[0],
                                    .cols = source->dim[1],
                                    .dtype = source->dtype,
                                    .data = bytes};
    ingot_weight_view device;
    INGOT_TRY(l->ops->upload_view(l->context, &device, &host));
    const source_pair pair = {.host = &host, .device = &device};
    const ingot_status status = convert_matrix(l, index, pair, input, NULL, NULL, NULL, NULL);
    l->ops->release_view(l->context, &device);
    return status;
}

/* ---- one block ------------------------------------------------------------------------------ */

static bool corrects(const ingot_plan *plan) {
    return plan->needs_gram && plan->steps.corrects && plan->has_loop;
}

/* Whether matrices make up for the drift of their inputs: where there are judges, of which tuning
 * alone takes one of fewer windows too.  A device of several has a part of the windows only. */
static bool has_drift(const ingot_loop *l) {
    return l->has_batch && l->judges != 0 && corrects(l->job->plan) &&
           (l->rank.size > 1 || l->job->windows->count >= INGOT_JUDGED_FROM);
}

/* Whether a linear's output is added to the residual stream as it is. */
static bool reaches_residual(const ingot_loop *l, ingot_role role) {
    const char *const *norm = l->job->model->norm_suffix;
    return l->job->plan->steps.corrects_residual &&
           ((role == INGOT_ROLE_O && norm[INGOT_SLOT_ATTENTION_POST] == NULL) ||
            (role == INGOT_ROLE_DOWN && norm[INGOT_SLOT_MLP_POST] == NULL));
}

static void begin_state(const ingot_loop *l, ingot_block_state *state, uint64_t layer) {
    const ingot_plan *plan = l->job->plan;
    /* statistics of an input are gathered when those before it have served */
    const bool is_in_turn = l->has_batch && ingot_loop_is_sequential(l);
    *state = (ingot_block_state){.layer = layer};
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        if (t->layer != layer) {
            continue;
        }
        if (t->origin == INGOT_ORIGIN_QUANTIZE && t->method != INGOT_METHOD_COPY) {
            const ingot_linear_desc *d = &l->job->model->linear[t->role];
            ingot_input_state *input = &state->input[d->input];
            input->is_present = true;
            input->memory = l->statistics[is_in_turn && !l->job->is_tuned ? 0 : d->input];
            input->solving = l->solving[is_in_turn ? 0 : d->input];
            input->width = d->cols;
            if (has_drift(l) &&
                (t->method == INGOT_METHOD_GPTQ || t->method == INGOT_METHOD_AWQ_GPTQ)) {
                input->is_corrected = true;
                input->has_residual = reaches_residual(l, t->role);
            }
            input->has_outliers |= plan->specs[i].outlier_count != 0;
        }
        if (t->origin == INGOT_ORIGIN_COLUMN_FOLD || t->origin == INGOT_ORIGIN_ROW_FOLD) {
            state->is_fold_planned[t->fold] = true;
        }
    }
}

/* "q 0.61 k 0.58 ...": the result's error as a fraction of plain rounding's. */
static void report_block(const ingot_loop *l, const ingot_block_state *state, double seconds) {
    char text[256] = "", *at = text;
    for (uint64_t i = 0; i < l->job->plan->count; i++) {
        const ingot_plan_tensor *t = &l->job->plan->tensors[i];
        if (t->layer != state->layer || t->origin != INGOT_ORIGIN_QUANTIZE) {
            continue;
        }
        const ingot_ledger *g = &l->job->ledgers[i];
        const bool has_output = isfinite(g->output_error) && g->output_error_rtn > 0;
        const double ratio = has_output                ? g->output_error / g->output_error_rtn
                             : g->weight_error_rtn > 0 ? g->weight_error / g->weight_error_rtn
                                                       : 1.0;
        const int n =
            snprintf(at, sizeof text - (size_t)(at - text), "  %s %.2f%s", ingot_role_name(t->role),
                     ratio, g->fallback != INGOT_FALLBACK_NONE ? "*" : "");
        at += n > 0 && (size_t)n < sizeof text - (size_t)(at - text) ? n : 0;
    }
    ingot_progress_line(l->job->progress, "block %llu/%llu  error / plain:%s  %.1f s",
                        (unsigned long long)(state->layer + 1),
                        (unsigned long long)l->job->model->layers, text, seconds);
}

static ingot_status load_block(ingot_loop *l, ingot_block_state *state) {
    INGOT_TRY(ingot_block_load(&state->block, l->job->model, state->layer,
                               ingot_prefetch_source(l->prefetch), l->job->backend, l->block.host,
                               l->error));
    memcpy(state->source, state->block.linear, sizeof state->source);
    state->checkpoint = state->block;
    return INGOT_OK;
}

/* Writes the tensors of a block in the order of the plan, quantizing on the way. */
static ingot_status convert_block_tensors(ingot_loop *l, ingot_block_state *state) {
    const ingot_plan *plan = l->job->plan;
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        if (t->layer != state->layer) {
            continue;
        }
        switch (t->origin) {
        case INGOT_ORIGIN_COPY:
            INGOT_TRY(ingot_loop_is_writer(l) ? ingot_loop_copy_dense(l, i) : INGOT_OK);
            break;
        case INGOT_ORIGIN_FOLDED:
            INGOT_TRY(ingot_loop_is_writer(l) ? ingot_loop_write_folded(l, i, state) : INGOT_OK);
            break;
        case INGOT_ORIGIN_COLUMN_FOLD:
        case INGOT_ORIGIN_ROW_FOLD:
            INGOT_TRY(ingot_loop_is_writer(l) ? ingot_loop_write_fold(l, i, state) : INGOT_OK);
            break;
        case INGOT_ORIGIN_ALIAS:
            break;
        case INGOT_ORIGIN_QUANTIZE: {
            ingot_input_state *input = &state->input[l->job->model->linear[t->role].input];
            if (l->has_batch && !input->is_collected) {
                INGOT_TRY(ingot_loop_collect(
                    l, state, INGOT_INPUT_BIT(l->job->model->linear[t->role].input)));
            }
            if (!l->has_batch && state->source[t->role].data == NULL) {
                INGOT_TRY(convert_alone(l, i, input));
                break;
            }
            INGOT_TRY(ingot_loop_next_tensor(l));
            const source_pair pair = {.host = &state->block.host.linear[t->role],
                                      .device = &state->source[t->role]};
            INGOT_TRY(convert_matrix(l, i, pair, input, state->device_row_fold[t->role],
                                     &l->tuned[t->role], &state->fetched[t->role],
                                     &state->block.linear[t->role]));
            ingot_loop_forget_statistics(l, state, i);
            break;
        }
        }
    }
    return INGOT_OK;
}

static ingot_status convert_block_steps(ingot_loop *l, ingot_block_state *state) {
    double since = ingot_clock_seconds();
    const double start = since;
    INGOT_TRY(ingot_prefetch_take(l->prefetch, state->layer, l->error));
    ingot_loop_lap(l, INGOT_PHASE_READ, &since);
    if (l->has_batch || l->job->plan->has_folds) {
        INGOT_TRY(load_block(l, state));
        ingot_loop_lap(l, INGOT_PHASE_READ, &since);
    }
    if (l->has_batch && !ingot_loop_is_sequential(l)) {
        INGOT_TRY(ingot_loop_collect(l, state, INGOT_INPUT_ALL));
        since = ingot_clock_seconds();
    } else if (!l->has_batch && l->job->stats != NULL && l->job->plan->needs_gram) {
        INGOT_TRY(ingot_loop_load_statistics(l, state));
    }
    ingot_loop_lap(l, INGOT_PHASE_COLLECT, &since);
    if (l->job->plan->has_folds) {
        INGOT_TRY(ingot_loop_choose_folds(l, state));
    }
    if (l->job->is_tuned && l->job->plan->steps.tunes && l->batch.judges != 0) {
        INGOT_TRY(ingot_loop_tune(l, state));
    }
    INGOT_TRY(convert_block_tensors(l, state));
    INGOT_TRY(l->has_batch ? ingot_loop_apply_folds(l, state, INGOT_INPUT_ALL) : INGOT_OK);
    INGOT_TRY(ingot_loop_keep_step(l, state));
    since = ingot_clock_seconds();
    if (l->has_batch && state->layer + 1 < l->job->model->layers) {
        INGOT_TRY(ingot_batch_wake(&l->batch, l->job));
        INGOT_TRY(ingot_batch_run(&l->batch, l->job, &state->block, 0, l->batch.windows,
                                  &(ingot_batch_use){0}, l->error));
        ingot_loop_lap(l, INGOT_PHASE_PROPAGATE, &since);
    }
    if (l->distill != NULL) {
        INGOT_TRY(ingot_distill_keep_block(l->distill, &state->block));
    }
    ingot_batch_end(&l->batch);
    if (ingot_loop_is_writer(l)) {
        report_block(l, state, ingot_clock_seconds() - start);
    }
    return INGOT_OK;
}

static ingot_status convert_block(ingot_loop *l, uint64_t layer) {
    ingot_block_state state;
    /* what is on its way, or looked at by other devices, may lie in the block's memory */
    INGOT_TRY(ingot_loop_settle(l));
    INGOT_TRY(ingot_team_meet(&l->rank));
    ingot_loop_reset(&l->block);
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        ingot_arena_reset(l->statistics[i]);
        ingot_arena_reset(l->solving[i]);
    }
    memset(l->tuned, 0, sizeof l->tuned);
    begin_state(l, &state, layer);
    const ingot_status status = convert_block_steps(l, &state);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        l->ops->release_view(l->context, &state.fetched[role]);
    }
    ingot_block_release(&state.block, l->job->backend);
    return status;
}

/* ---- the batch ------------------------------------------------------------------------------ */

uint64_t ingot_loop_judges(const ingot_plan *plan, uint64_t windows, bool is_tuned) {
    const bool are_wanted = plan->has_folds || corrects(plan) || is_tuned;
    if (are_wanted && windows >= INGOT_JUDGED_FROM) {
        return ingot_min_u64(windows / 16 + 1, JUDGES_MOST);
    }
    return is_tuned && windows > 1 ? 1 : 0;
}

static ingot_status begin_batch(ingot_loop *l) {
    const uint64_t tuning =
        l->job->is_tuned ? ingot_tune_bytes(l->job->model, l->job->windows->length) : 0;
    const ingot_streams streams = !has_drift(l) && !l->job->is_tuned ? INGOT_PREFIX_ALONE
                                  : ingot_loop_is_sequential(l)      ? INGOT_BOTH_IN_TURN
                                                                     : INGOT_BOTH;
    const ingot_block_need need = ingot_plan_block_need(
        l->job->plan, l->job->model, has_drift(l), tuning, l->judges * l->job->windows->length);
    ingot_loop_reset(&l->block);
    return ingot_batch_create(&l->batch, l->job, l->judges, streams, &need, l->block.host,
                              l->error);
}

/* A block, and the state behind it. */
static ingot_status finish_block(ingot_loop *l, uint64_t layer) {
    INGOT_TRY(convert_block(l, layer));
    ingot_progress_update(l->job->progress, (double)(layer + 1));
    if (l->job->resume == NULL || !ingot_loop_is_writer(l)) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_loop_settle(l));
    return ingot_resume_save(l->job->resume, layer + 1, l->error);
}

static ingot_status convert_all(ingot_loop *l) {
    const ingot_plan *plan = l->job->plan;
    const uint64_t first = l->job->first_block;
    uint64_t next_layer = 0;
    if (l->has_batch && (first < l->job->model->layers || l->distill != NULL)) {
        double since = ingot_clock_seconds();
        INGOT_TRY(begin_batch(l));
        ingot_loop_lap(l, INGOT_PHASE_COLLECT, &since);
        INGOT_TRY(ingot_replay(l));
    }
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        if (t->layer != INGOT_PLAN_NONE) {
            if (t->layer == next_layer) {
                next_layer++;
                INGOT_TRY(next_layer > first ? finish_block(l, t->layer) : INGOT_OK);
            }
        } else if (!ingot_loop_is_writer(l) || ingot_writer_is_put(l->job->writer, i)) {
            continue;
        } else if (t->origin == INGOT_ORIGIN_QUANTIZE) {
            INGOT_TRY(convert_alone(l, i, NULL));
        } else if (t->origin != INGOT_ORIGIN_ALIAS) {
            INGOT_TRY(ingot_loop_copy_dense(l, i));
        }
    }
    return l->distill != NULL ? ingot_loop_distill(l) : INGOT_OK;
}

static ingot_status open_memory(ingot_loop_memory *m, const ingot_backend *backend) {
    INGOT_TRY(ingot_backend_host_arena_create(&m->host, backend));
    return ingot_backend_arena_create(&m->device, backend);
}

static void close_memory(ingot_loop_memory *m) {
    ingot_arena_destroy(m->host);
    ingot_arena_destroy(m->device);
}

/* One device's part of a conversion; all of it where there is one device. */
static ingot_status run_rank(const ingot_loop_job *job, const ingot_rank *rank, uint64_t judges,
                             ingot_error *error) {
    ingot_loop l = {.job = job,
                    .rank = *rank,
                    .judges = judges,
                    .ops = job->backend->ops,
                    .context = job->backend->context,
                    .has_batch = job->windows != NULL && job->plan->needs_gram,
                    .error = error};
    ingot_status status = INGOT_OK;
    INGOT_GO(open_memory(&l.block, job->backend));
    INGOT_GO(open_memory(&l.tensors[0], job->backend));
    INGOT_GO(open_memory(&l.tensors[1], job->backend));
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        INGOT_GO(ingot_backend_arena_create(&l.statistics[i], job->backend));
        INGOT_GO(ingot_backend_arena_create(&l.solving[i], job->backend));
    }
    INGOT_GO(ingot_backend_arena_create(&l.scratch, job->backend));
    if (ingot_plan_distills(job->plan, job->is_tuned) && judges != 0 && rank->size == 1) {
        INGOT_GO(ingot_distill_create(&l.distill, job, INGOT_DISTILL_CODES_MOST));
    }
    INGOT_GO(ingot_worker_create(&l.writing));
    INGOT_GO(ingot_prefetch_create(&l.prefetch, job, l.has_batch ? 0 : job->first_block, false));
    if (job->is_tuned && job->plan->steps.tunes) {
        INGOT_GO(ingot_prefetch_create(&l.behind, job, job->model->layers, true));
    }
    INGOT_GO(convert_all(&l));
    INGOT_GO(ingot_loop_settle(&l));
    INGOT_GO(ingot_team_meet(rank)); /* nobody's memory goes before it was written */
done:;
    const char *failure = ingot_backend_failure(job->backend, status);
    if (status != INGOT_OK) {
        ingot_team_leave(rank);
    }
    ingot_worker_destroy(l.writing); /* first: it may be using what goes next */
    ingot_distill_destroy(l.distill);
    ingot_prefetch_destroy(l.prefetch);
    ingot_prefetch_destroy(l.behind);
    ingot_batch_destroy(&l.batch, job->backend);
    close_memory(&l.block);
    close_memory(&l.tensors[0]);
    close_memory(&l.tensors[1]);
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        ingot_arena_destroy(l.statistics[i]);
        ingot_arena_destroy(l.solving[i]);
    }
    ingot_arena_destroy(l.scratch);
    const bool is_memory = status == INGOT_ERR_NO_MEMORY;
    return (is_memory || status == INGOT_ERR_DEVICE) && error != NULL && error->status == INGOT_OK
               ? ingot_error_set(error, status, NULL, NULL,
                                 !is_memory ? "see nvidia-smi"
                                 : job->windows != NULL
                                     ? "use fewer --samples or a shorter --seq-len"
                                     : "free some memory",
                                 "%s", failure)
               : status;
}

ingot_status ingot_loop_try(const ingot_loop_job *job, ingot_error *error) {
    const uint64_t windows = job->windows != NULL ? job->windows->count : 0;
    const uint64_t judges = ingot_loop_judges(job->plan, windows, job->is_tuned);
    const uint64_t shared = windows != 0 && job->plan->needs_gram ? windows - judges : 1;
    const unsigned size = (unsigned)ingot_min_u64(shared, job->other_count + 1);
    const ingot_rank alone = {.size = 1, .backend = job->backend};
    return size > 1 ? ingot_team_run(job, size, judges, run_rank, error)
                    : run_rank(job, &alone, judges, error);
}
