/* The main loop of a conversion (convert/loop.h). */
#include "convert/loop.h"

#include "common/files.h"
#include "common/memory.h"
#include "convert/block.h"
#include "format/digest.h"

#include <math.h>
#include <string.h>

#define COPY_BYTES   (8u << 20) /* of a dense tensor read at once */
#define CHUNK_TOKENS 4096u      /* of one forward call, or one window */
#define JUDGES_MOST  8u

const char *ingot_phase_name(ingot_phase phase) {
    static const char *const names[] = {"plan",     "read",  "collect",   "fold",
                                        "quantize", "write", "propagate", "finish"};
    return names[phase];
}

double ingot_lap(double *since) {
    const double now = ingot_clock_seconds(), elapsed = now - *since;
    *since = now;
    return elapsed;
}

/* What the functions below share. */
typedef struct loop {
    const ingot_loop_job *job;
    ingot_arena *block, *linear, *scratch; /* lifetimes: a block, a tensor, a call */
    ingot_batch batch;
    bool has_batch;
    ingot_error *error;
} loop;

static void lap(const loop *l, ingot_phase phase, double *since) {
    l->job->phase_seconds[phase] += ingot_lap(since);
}

/* ---- dense tensors -------------------------------------------------------------------------- */

static ingot_status check_finite(const loop *l, const ingot_st_tensor *source, const void *bytes,
                                 uint64_t offset, uint64_t size, float *values) {
    if (source->dtype == INGOT_I32 || source->dtype == INGOT_U8) {
        return INGOT_OK;
    }
    const uint64_t element = ingot_dtype_bytes(source->dtype), count = size / element;
    ingot_rows_to_f32(values, bytes, source->dtype, count);
    const uint64_t bad = ingot_first_not_finite(values, count);
    return bad == count ? INGOT_OK
                        : ingot_error_set(l->error, INGOT_ERR_NUMERIC,
                                          ingot_checkpoint_path(l->job->checkpoint), source->name,
                                          "the checkpoint is damaged: fetch or export it again",
                                          "element %llu is NaN or infinite",
                                          (unsigned long long)(offset / element + bad));
}

/* Copies a tensor's bytes as they are, digesting and scanning them on the way. */
static ingot_status copy_dense(loop *l, uint64_t index) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_st_tensor *source = ingot_checkpoint_at(l->job->checkpoint, t->source_index);
    ingot_digest_stream *digest = NULL;
    void *bytes;
    float *values;
    ingot_arena_reset(l->linear);
    INGOT_TRY(ingot_arena_alloc(l->linear, &bytes, COPY_BYTES));
    INGOT_TRY(ingot_arena_alloc(l->linear, (void **)&values, 2ull * COPY_BYTES));
    INGOT_TRY(ingot_digest_stream_create(&digest));
    ingot_status status = INGOT_OK;
    double since = ingot_clock_seconds();
    for (uint64_t offset = 0; offset < source->bytes;) {
        const uint64_t left = source->bytes - offset;
        const uint64_t size = left < COPY_BYTES ? left : COPY_BYTES;
        INGOT_GO(ingot_interrupt_check(l->error));
        INGOT_GO(ingot_checkpoint_read(l->job->checkpoint, t->source_index, offset, size, bytes,
                                       l->error));
        ingot_digest_stream_update(digest, bytes, size);
        INGOT_GO(check_finite(l, source, bytes, offset, size, values));
        lap(l, INGOT_PHASE_READ, &since);
        INGOT_GO(ingot_writer_put_bytes(l->job->writer, index, bytes, size, offset, l->error));
        lap(l, INGOT_PHASE_WRITE, &since);
        offset += size;
    }
    ingot_ledger *ledger = &l->job->ledgers[index];
    ingot_ledger_copy(ledger);
    ingot_digest_stream_finish(digest, ledger->source_digest);
    ingot_writer_put_ledger(l->job->writer, index, ledger);
done:
    ingot_digest_stream_destroy(digest);
    return status;
}

/* A norm divided by its fold, or a bias multiplied by its row fold, stored as F32. */
static ingot_status write_folded(loop *l, uint64_t index, const ingot_block_state *state) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_st_tensor *source = ingot_checkpoint_at(l->job->checkpoint, t->source_index);
    void *bytes;
    float *values;
    ingot_arena_reset(l->linear);
    INGOT_TRY(ingot_arena_alloc(l->linear, &bytes, source->bytes));
    INGOT_TRY(ingot_arena_alloc(l->linear, (void **)&values, source->elements * sizeof *values));
    INGOT_TRY(ingot_checkpoint_read(l->job->checkpoint, t->source_index, 0, source->bytes, bytes,
                                    l->error));
    INGOT_TRY(check_finite(l, source, bytes, 0, source->bytes, values));
    ingot_rows_to_f32(values, bytes, source->dtype, source->elements);
    ingot_ledger *ledger = &l->job->ledgers[index];
    ingot_ledger_copy(ledger);
    ingot_digest128(ledger->source_digest, bytes, source->bytes);
    ledger->is_folded = true;
    for (uint64_t i = 0; i < source->elements; i++) {
        values[i] = t->class == INGOT_CLASS_NORM ? values[i] / state->norm_fold[t->slot][i]
                                                 : values[i] * state->row_fold[t->role][i];
    }
    const ingot_weight_view view = {.kind = INGOT_DENSE,
                                    .rows = 1,
                                    .cols = source->elements,
                                    .dtype = INGOT_F32,
                                    .data = values};
    return ingot_writer_put(l->job->writer, index, &view, ledger, l->error);
}

static ingot_status write_fold(loop *l, uint64_t index, const ingot_block_state *state) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_linear_desc *d = &l->job->model->linear[t->role];
    const bool is_row = t->origin == INGOT_ORIGIN_ROW_FOLD;
    const ingot_weight_view view = {.kind = INGOT_DENSE,
                                    .rows = 1,
                                    .cols = is_row ? d->rows : d->cols,
                                    .dtype = INGOT_F32,
                                    .data = is_row ? state->row_fold[t->role]
                                                   : state->input[d->input].fold};
    ingot_ledger_copy(&l->job->ledgers[index]);
    return ingot_writer_put(l->job->writer, index, &view, &l->job->ledgers[index], l->error);
}

/* ---- one matrix ----------------------------------------------------------------------------- */

/* The factor of an input for a group size, made when first needed. */
static ingot_status get_factor(const ingot_gptq_factor **out, loop *l, ingot_input_state *input,
                               uint64_t group) {
    *out = NULL;
    if (input == NULL || input->plain_gram == NULL) {
        return INGOT_OK;
    }
    if (input->factor.group != group) {
        ingot_arena_reset(l->scratch);
        INGOT_TRY(ingot_gptq_factorize(&input->factor, input->gram, input->width, group, l->block,
                                       l->scratch));
    }
    *out = &input->factor;
    return INGOT_OK;
}

/* Copies those parts of a packed view that still lie in the tensor's arena into the block's. */
static ingot_status keep_parts(loop *l, ingot_weight_view *view) {
    const struct {
        const void *from;
        uint64_t bytes;
    } parts[] = {
        {view->zeros, view->rows * view->groups_per_row},
        {view->outlier_row_ptr, (view->rows + 1) * sizeof *view->outlier_row_ptr},
        {view->outlier_col, view->outlier_count * sizeof *view->outlier_col},
    };
    void *copy[3] = {NULL, NULL, NULL};
    for (unsigned i = 0; i < 3; i++) {
        if (parts[i].from != NULL) {
            INGOT_TRY(ingot_arena_alloc(l->block, &copy[i], parts[i].bytes));
            memcpy(copy[i], parts[i].from, parts[i].bytes);
        }
    }
    view->zeros = copy[0];
    view->outlier_row_ptr = copy[1];
    view->outlier_col = copy[2];
    return INGOT_OK;
}

/* Quantizes and writes planned tensor `index` whose source values are `source`; *stored, when not
 * NULL, is what a loader will see, in the block's arena. */
static ingot_status convert_matrix(loop *l, uint64_t index, const ingot_weight_view *source,
                                   ingot_input_state *input, const float *row_fold,
                                   ingot_weight_view *stored) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_tensor_spec *spec = &l->job->plan->specs[index];
    ingot_pool *pool = l->job->backend->pool;
    ingot_linear_job job = {.file = ingot_checkpoint_path(l->job->checkpoint),
                            .name = t->name,
                            .source = source,
                            .row_fold = row_fold,
                            .column_fold = input != NULL ? input->fold : NULL,
                            .format = {.bits = spec->bits,
                                       .group = spec->group,
                                       .zero_mode = spec->zero_mode,
                                       .scale_dtype = spec->scale_dtype},
                            .outlier_count = spec->outlier_count,
                            .outlier_dtype = spec->dtype,
                            .method = t->method};
    double since = ingot_clock_seconds();
    INGOT_TRY(ingot_interrupt_check(l->error));
    INGOT_TRY(get_factor(&job.data.factor, l, input, spec->group));
    if (job.data.factor != NULL) {
        job.data.gram = input->gram;
        job.data.plain_gram = input->plain_gram;
        job.data.tokens = input->tokens;
    }
    ingot_arena_reset(l->scratch);
    ingot_quantized q;
    ingot_weight_view view;
    ingot_ledger *ledger = &l->job->ledgers[index];
    INGOT_TRY(ingot_linear_quantize(&q, ledger, &job, l->linear, l->scratch, pool, l->error));
    ingot_digest128(ledger->source_digest, source->data,
                    source->rows * source->cols * ingot_dtype_bytes(source->dtype));
    INGOT_TRY(ingot_quantized_pack(&view, &q, stored != NULL ? l->block : l->linear, pool));
    if (stored != NULL) {
        INGOT_TRY(keep_parts(l, &view));
    }
    lap(l, INGOT_PHASE_QUANTIZE, &since);
    INGOT_TRY(ingot_writer_put(l->job->writer, index, &view, ledger, l->error));
    lap(l, INGOT_PHASE_WRITE, &since);
    if (stored != NULL) {
        *stored = view;
    }
    return INGOT_OK;
}

/* A matrix outside the blocks, or in a block that needs no forward pass. */
static ingot_status convert_alone(loop *l, uint64_t index, ingot_input_state *input) {
    const ingot_plan_tensor *t = &l->job->plan->tensors[index];
    const ingot_st_tensor *source = ingot_checkpoint_at(l->job->checkpoint, t->source_index);
    void *bytes;
    double since = ingot_clock_seconds();
    ingot_arena_reset(l->linear);
    INGOT_TRY(ingot_arena_alloc(l->linear, &bytes, source->bytes));
    INGOT_TRY(ingot_checkpoint_read(l->job->checkpoint, t->source_index, 0, source->bytes, bytes,
                                    l->error));
    lap(l, INGOT_PHASE_READ, &since);
    const ingot_weight_view view = {.kind = INGOT_DENSE,
                                    .rows = source->dim[0],
                                    .cols = source->dim[1],
                                    .dtype = source->dtype,
                                    .data = bytes};
    return convert_matrix(l, index, &view, input, NULL, NULL);
}

/* ---- statistics of a block ------------------------------------------------------------------ */

typedef struct collector {
    const ingot_backend *backend;
    float *gram[INGOT_INPUT_COUNT];       /* device */
    double *magnitude[INGOT_INPUT_COUNT]; /* device */
    uint64_t tokens[INGOT_INPUT_COUNT];
} collector;

static ingot_status collect_input(void *context, ingot_input input, const float *x, uint64_t m,
                                  uint64_t width) {
    collector *c = context;
    uint64_t dropped = 0;
    INGOT_TRY(c->backend->ops->gram(c->backend->context, c->gram[input], c->magnitude[input],
                                    &dropped, x, m, width));
    c->tokens[input] += m - dropped;
    return INGOT_OK;
}

/* Runs the block over windows first .. end-1 of the batch.  Without a hook the states advance. */
static ingot_status run_block(loop *l, const ingot_block_state *state, uint64_t first, uint64_t end,
                              ingot_input_hook hook, void *context) {
    const ingot_loop_job *job = l->job;
    const ingot_batch *b = &l->batch;
    const uint64_t window = b->length * job->model->hidden;
    for (uint64_t w = first; w < end; w += b->chunk) {
        const uint64_t count = end - w < b->chunk ? end - w : b->chunk;
        float *x = b->states + w * window;
        INGOT_TRY(ingot_interrupt_check(l->error));
        const uint64_t bytes = count * window * sizeof *x;
        INGOT_TRY(job->backend->ops->upload(job->backend->context, b->scratch, x, bytes));
        const ingot_status status =
            ingot_block_forward(job->model, job->backend, &state->block, b->scratch, count,
                                b->length, NULL, b->workspace, hook, context);
        if (status != INGOT_OK) {
            return ingot_error_set(l->error, status, ingot_checkpoint_path(job->checkpoint), NULL,
                                   NULL, "block %llu could not be run: %s",
                                   (unsigned long long)state->layer, ingot_status_text(status));
        }
        if (hook == NULL) {
            INGOT_TRY(job->backend->ops->download(job->backend->context, x, b->scratch, bytes));
        }
        ingot_progress_update(job->progress, (double)state->layer +
                                                 0.5 * (double)(w + count) / (double)b->windows);
    }
    return INGOT_OK;
}

/* Moves what was gathered to the host and releases the device's share. */
static ingot_status take_statistics(loop *l, ingot_block_state *state, collector *c,
                                    ingot_input input, bool is_good) {
    const ingot_backend *backend = l->job->backend;
    ingot_input_state *s = &state->input[input];
    ingot_status status = INGOT_OK;
    double *magnitude = NULL;
    if (!is_good || !s->is_present) {
        goto done;
    }
    INGOT_GO(
        ingot_arena_alloc(l->block, (void **)&s->plain_gram, s->width * s->width * sizeof(float)));
    INGOT_GO(ingot_arena_alloc(l->block, (void **)&s->magnitude, s->width * sizeof(float)));
    INGOT_GO(ingot_alloc((void **)&magnitude, s->width * sizeof *magnitude));
    INGOT_GO(backend->ops->download(backend->context, s->plain_gram, c->gram[input],
                                    s->width * s->width * sizeof(float)));
    INGOT_GO(backend->ops->download(backend->context, magnitude, c->magnitude[input],
                                    s->width * sizeof *magnitude));
    s->tokens = c->tokens[input];
    for (uint64_t j = 0; j < s->width; j++) {
        s->magnitude[j] = s->tokens != 0 ? (float)(magnitude[j] / (double)s->tokens) : 0.0f;
    }
    ingot_gram_mirror(s->plain_gram, s->width);
    s->gram = s->plain_gram;
done:
    if (c->gram[input] != NULL) {
        backend->ops->release(backend->context, c->gram[input]);
    }
    if (c->magnitude[input] != NULL) {
        backend->ops->release(backend->context, c->magnitude[input]);
    }
    ingot_free(magnitude);
    return status;
}

static ingot_status zero_device(const ingot_backend *backend, void **out, uint64_t bytes) {
    void *zeros = NULL;
    INGOT_TRY(backend->ops->alloc(backend->context, out, bytes));
    ingot_status status = ingot_alloc_zero(&zeros, bytes, 1);
    if (status == INGOT_OK) {
        status = backend->ops->upload(backend->context, *out, zeros, bytes);
    }
    ingot_free(zeros);
    return status;
}

static ingot_status collect(loop *l, ingot_block_state *state) {
    collector c = {.backend = l->job->backend};
    ingot_status status = INGOT_OK;
    for (unsigned i = 0; i < INGOT_INPUT_COUNT && status == INGOT_OK; i++) {
        const ingot_input_state *s = &state->input[i];
        if (s->is_present) {
            status =
                zero_device(c.backend, (void **)&c.gram[i], s->width * s->width * sizeof(float));
        }
        if (s->is_present && status == INGOT_OK) {
            status = zero_device(c.backend, (void **)&c.magnitude[i], s->width * sizeof(double));
        }
    }
    if (status == INGOT_OK) {
        const uint64_t end = l->batch.windows - l->batch.judges;
        status = run_block(l, state, 0, end, collect_input, &c);
    }
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        const ingot_status taken =
            take_statistics(l, state, &c, (ingot_input)i, status == INGOT_OK);
        status = status == INGOT_OK ? taken : status;
    }
    return status;
}

static ingot_status load_statistics(loop *l, ingot_block_state *state) {
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        ingot_input_state *s = &state->input[i];
        ingot_stats_input loaded;
        if (!s->is_present) {
            continue;
        }
        INGOT_TRY(ingot_stats_load(l->job->stats, state->layer, (ingot_input)i, l->block, &loaded,
                                   l->error));
        s->plain_gram = s->gram = loaded.gram;
        s->magnitude = loaded.magnitude;
        s->tokens = loaded.tokens;
        ingot_gram_mirror(s->gram, s->width);
    }
    return INGOT_OK;
}

/* ---- folds ---------------------------------------------------------------------------------- */

/* H of a folded input: x becomes x / fold. */
static ingot_status fold_gram(loop *l, ingot_input_state *s) {
    if (s->fold == NULL || s->plain_gram == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_alloc(l->block, (void **)&s->gram, s->width * s->width * sizeof(float)));
    for (uint64_t i = 0; i < s->width; i++) {
        for (uint64_t j = 0; j <= i; j++) {
            s->gram[i * s->width + j] = s->plain_gram[i * s->width + j] / (s->fold[i] * s->fold[j]);
        }
    }
    ingot_gram_mirror(s->gram, s->width);
    return INGOT_OK;
}

/* The block as the forward pass sees it once its folds and codes are in place. */
static ingot_status apply_folds(loop *l, ingot_block_state *state) {
    const ingot_model *model = l->job->model;
    for (unsigned slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        const float *fold = state->norm_fold[slot];
        float *parts[2] = {state->block.norm[slot], state->block.norm_bias[slot]};
        for (unsigned k = 0; fold != NULL && k < 2; k++) {
            for (uint64_t i = 0; parts[k] != NULL && i < model->hidden; i++) {
                parts[k][i] /= fold[i];
            }
        }
    }
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const float *fold = state->row_fold[role];
        for (uint64_t i = 0;
             fold != NULL && state->block.bias[role] != NULL && i < model->linear[role].rows; i++) {
            state->block.bias[role][i] *= fold[i];
        }
    }
    return INGOT_OK;
}

/* ---- one block ------------------------------------------------------------------------------ */

static void begin_state(const loop *l, ingot_block_state *state, uint64_t layer) {
    const ingot_plan *plan = l->job->plan;
    *state = (ingot_block_state){.layer = layer};
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        if (t->layer != layer) {
            continue;
        }
        if (t->origin == INGOT_ORIGIN_QUANTIZE && t->method != INGOT_METHOD_COPY) {
            const ingot_linear_desc *d = &l->job->model->linear[t->role];
            state->input[d->input].is_present = true;
            state->input[d->input].width = d->cols;
        }
        if (t->origin == INGOT_ORIGIN_COLUMN_FOLD || t->origin == INGOT_ORIGIN_ROW_FOLD) {
            state->is_fold_planned[t->fold] = true;
        }
    }
}

/* "q 0.61 k 0.58 ...": the result's error as a fraction of plain rounding's. */
static void report_block(const loop *l, const ingot_block_state *state, double seconds) {
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

static ingot_status load_block(loop *l, ingot_block_state *state) {
    INGOT_TRY(ingot_block_load(&state->block, l->job->model, state->layer, l->job->source,
                               l->job->backend, l->block, l->error));
    memcpy(state->source, state->block.linear, sizeof state->source);
    return INGOT_OK;
}

/* Writes the tensors of a block in the order of the plan, quantizing on the way. */
static ingot_status convert_block_tensors(loop *l, ingot_block_state *state) {
    const ingot_plan *plan = l->job->plan;
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        if (t->layer != state->layer) {
            continue;
        }
        switch (t->origin) {
        case INGOT_ORIGIN_COPY:
            INGOT_TRY(copy_dense(l, i));
            break;
        case INGOT_ORIGIN_FOLDED:
            INGOT_TRY(write_folded(l, i, state));
            break;
        case INGOT_ORIGIN_COLUMN_FOLD:
        case INGOT_ORIGIN_ROW_FOLD:
            INGOT_TRY(write_fold(l, i, state));
            break;
        case INGOT_ORIGIN_ALIAS:
            break;
        case INGOT_ORIGIN_QUANTIZE: {
            ingot_input_state *input = &state->input[l->job->model->linear[t->role].input];
            if (!l->has_batch && state->source[t->role].data == NULL) {
                INGOT_TRY(convert_alone(l, i, input));
                break;
            }
            ingot_arena_reset(l->linear);
            INGOT_TRY(convert_matrix(l, i, &state->source[t->role], input, state->row_fold[t->role],
                                     &state->block.linear[t->role]));
            break;
        }
        }
    }
    return INGOT_OK;
}

static ingot_status convert_block_steps(loop *l, ingot_block_state *state) {
    double since = ingot_clock_seconds();
    const double start = since;
    if (l->has_batch || l->job->plan->has_folds) {
        INGOT_TRY(load_block(l, state));
        lap(l, INGOT_PHASE_READ, &since);
    }
    if (l->has_batch) {
        INGOT_TRY(collect(l, state));
    } else if (l->job->stats != NULL && l->job->plan->needs_gram) {
        INGOT_TRY(load_statistics(l, state));
    }
    lap(l, INGOT_PHASE_COLLECT, &since);
    if (l->job->plan->has_folds) {
        INGOT_TRY(
            ingot_awq_choose(state, l->job, l->has_batch ? &l->batch : NULL, l->block, l->error));
        for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
            INGOT_TRY(fold_gram(l, &state->input[i]));
        }
        lap(l, INGOT_PHASE_FOLD, &since);
    }
    INGOT_TRY(convert_block_tensors(l, state));
    since = ingot_clock_seconds();
    if (l->has_batch && state->layer + 1 < l->job->model->layers) {
        INGOT_TRY(apply_folds(l, state));
        INGOT_TRY(run_block(l, state, 0, l->batch.windows, NULL, NULL));
        lap(l, INGOT_PHASE_PROPAGATE, &since);
    }
    report_block(l, state, ingot_clock_seconds() - start);
    return INGOT_OK;
}

static ingot_status convert_block(loop *l, uint64_t layer) {
    ingot_block_state state;
    ingot_arena_reset(l->block);
    begin_state(l, &state, layer);
    const ingot_status status = convert_block_steps(l, &state);
    ingot_block_release(&state.block, l->job->backend);
    return status;
}

/* ---- the batch ------------------------------------------------------------------------------ */

static ingot_status begin_batch(loop *l) {
    const ingot_loop_job *job = l->job;
    const ingot_backend *backend = job->backend;
    ingot_batch *b = &l->batch;
    ingot_ends ends;
    b->windows = job->windows->count;
    b->length = job->windows->length;
    b->chunk = b->length >= CHUNK_TOKENS ? 1 : CHUNK_TOKENS / b->length;
    b->chunk = b->chunk > b->windows ? b->windows : b->chunk;
    if (job->plan->has_folds && b->windows >= 8) {
        b->judges = b->windows / 16 + 1 > JUDGES_MOST ? JUDGES_MOST : b->windows / 16 + 1;
    }
    const uint64_t window_bytes = b->length * job->model->hidden * sizeof(float);
    INGOT_TRY(backend->ops->alloc(backend->context, (void **)&b->scratch, b->chunk * window_bytes));
    INGOT_TRY(ingot_alloc((void **)&b->states, b->windows * window_bytes));
    INGOT_TRY(
        ingot_workspace_create(&b->workspace, job->model, backend, b->chunk * b->length, l->error));
    ingot_arena_reset(l->block);
    INGOT_TRY(ingot_ends_load_part(&ends, INGOT_ENDS_EMBED, job->model, job->source, backend,
                                   l->block, l->error));
    ingot_status status = INGOT_OK;
    for (uint64_t w = 0; w < b->windows && status == INGOT_OK; w++) {
        status = ingot_ends_embed(&ends, job->model, backend, b->scratch,
                                  job->windows->ids + w * b->length, b->length);
        if (status == INGOT_OK) {
            status = backend->ops->download(backend->context,
                                            b->states + w * b->length * job->model->hidden,
                                            b->scratch, window_bytes);
        }
    }
    ingot_ends_release(&ends, backend);
    return status;
}

static void end_batch(loop *l) {
    const ingot_backend *backend = l->job->backend;
    ingot_workspace_destroy(l->batch.workspace);
    ingot_free(l->batch.states);
    if (l->batch.scratch != NULL) {
        backend->ops->release(backend->context, l->batch.scratch);
    }
}

static ingot_status convert_all(loop *l) {
    const ingot_plan *plan = l->job->plan;
    uint64_t next_layer = 0;
    if (l->has_batch) {
        double since = ingot_clock_seconds();
        INGOT_TRY(begin_batch(l));
        lap(l, INGOT_PHASE_COLLECT, &since);
    }
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        if (t->layer != INGOT_PLAN_NONE) {
            if (t->layer == next_layer) {
                INGOT_TRY(convert_block(l, next_layer++));
                ingot_progress_update(l->job->progress, (double)next_layer);
            }
        } else if (t->origin == INGOT_ORIGIN_QUANTIZE) {
            INGOT_TRY(convert_alone(l, i, NULL));
        } else if (t->origin != INGOT_ORIGIN_ALIAS) {
            INGOT_TRY(copy_dense(l, i));
        }
    }
    return INGOT_OK;
}

ingot_status ingot_loop_run(const ingot_loop_job *job, ingot_error *error) {
    loop l = {.job = job, .error = error};
    l.has_batch = job->windows != NULL && job->plan->needs_gram;
    ingot_status status = ingot_arena_create(&l.block);
    INGOT_GO(status);
    INGOT_GO(ingot_arena_create(&l.linear));
    INGOT_GO(ingot_arena_create(&l.scratch));
    INGOT_GO(convert_all(&l));
done:
    end_batch(&l);
    ingot_arena_destroy(l.block);
    ingot_arena_destroy(l.linear);
    ingot_arena_destroy(l.scratch);
    return status == INGOT_ERR_NO_MEMORY && error != NULL && error->status == INGOT_OK
               ? ingot_error_set(error, status, NULL, NULL,
                                 "use fewer --samples or a shorter --seq-len", "out of memory")
               : status;
}
