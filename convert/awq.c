/* AWQ: which input channels are scaled up before rounding, and by how much (convert/block.h).
 *
 * Per fold 20 ratios x {activation alone, activation and weight}; each is judged by the loss of the
 * fold's consumers under H when they are rounded with the scale grid of the real quantizer.  The
 * best is kept only if the block as a whole then does better on windows that were not used. */
#include "common/sizes.h"
#include "convert/block.h"

#include <math.h>
#include <string.h>

#define RATIOS (INGOT_FOLD_TRIALS / 2)

/* What the functions below share. */
typedef struct awq {
    ingot_block_state *state;
    const ingot_loop_job *job;
    const ingot_backend_ops *ops;
    void *context;
    const ingot_rank *rank;
    const ingot_batch *batch;
    ingot_arena *arena, *device;              /* host and device: what is chosen */
    ingot_arena *fold_host, *fold_device;     /* for one fold */
    ingot_arena *trial_device, *block_device; /* for one candidate, one rounded block */
    ingot_arena *judged;                      /* device: outputs of the judges */
    ingot_error *error;
} awq;

/* Producer channel that feeds a consumer's column. */
static uint64_t channel_of(const ingot_fold_desc *f, uint64_t column) {
    if (f->is_norm || f->repeat <= 1) {
        return column;
    }
    return column / (f->repeat * f->head_dim) * f->head_dim + column % f->head_dim;
}

static const ingot_tensor_spec *spec_of(const awq *a, ingot_role role) {
    const ingot_plan *plan = a->job->plan;
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        if (t->layer == a->state->layer && t->class == INGOT_CLASS_LINEAR && t->role == role &&
            (t->origin == INGOT_ORIGIN_QUANTIZE || t->origin == INGOT_ORIGIN_COPY)) {
            return &plan->specs[i];
        }
    }
    return NULL;
}

static ingot_quant_format format_of(const ingot_tensor_spec *spec) {
    return (ingot_quant_format){.bits = spec->bits,
                                .group = spec->group,
                                .zero_mode = spec->zero_mode,
                                .scale_dtype = spec->scale_dtype};
}

/* ---- judging one vector --------------------------------------------------------------------- */

/* Rows of a consumer in F32, evenly thinned to INGOT_FOLD_ROWS. */
typedef struct sample {
    const ingot_tensor_spec *spec;
    float *w;               /* [rows][cols], host */
    ingot_weight_view view; /* the same on the device */
    uint64_t rows, cols;
} sample;

static ingot_status take_sample(sample *out, const awq *a, ingot_role role) {
    const ingot_weight_view *v = &a->state->block.host.linear[role];
    const uint8_t *data = v->data;
    void *copy;
    out->spec = spec_of(a, role);
    out->rows = ingot_min_u64(v->rows, INGOT_FOLD_ROWS);
    out->cols = v->cols;
    const uint64_t bytes = out->rows * out->cols * sizeof *out->w;
    INGOT_TRY(ingot_arena_alloc(a->fold_host, (void **)&out->w, bytes));
    for (uint64_t r = 0; r < out->rows; r++) {
        const uint64_t from = r * v->rows / out->rows;
        ingot_rows_to_f32(out->w + r * v->cols, data + from * v->cols * ingot_dtype_bytes(v->dtype),
                          v->dtype, v->cols);
    }
    INGOT_TRY(ingot_arena_alloc(a->fold_device, &copy, bytes));
    INGOT_TRY(a->ops->upload(a->context, copy, out->w, bytes));
    out->view = (ingot_weight_view){.kind = INGOT_DENSE,
                                    .rows = out->rows,
                                    .cols = out->cols,
                                    .dtype = INGOT_F32,
                                    .data = copy};
    return INGOT_OK;
}

/* Sum over the consumers of the loss under H when their columns are multiplied by fold[cols]
 * (device). */
static ingot_status fold_loss(double *out, const awq *a, const sample *samples, unsigned count,
                              const ingot_input_state *input, const float *fold) {
    ingot_arena *trial = a->trial_device;
    const uint64_t n = input->width;
    float *gram, *importance;
    ingot_arena_reset(trial);
    INGOT_TRY(ingot_arena_array(trial, (void **)&gram, n, n * sizeof *gram));
    INGOT_TRY(ingot_arena_array(trial, (void **)&importance, n, sizeof *importance));
    INGOT_TRY(a->ops->gram_fold(a->context, gram, input->plain_gram, fold, n));
    INGOT_TRY(a->ops->gram_diagonal(a->context, importance, gram, n));
    *out = 0;
    for (unsigned k = 0; k < count; k++) {
        const sample *s = &samples[k];
        const ingot_quant_format format = format_of(s->spec);
        float *w;
        double loss;
        uint64_t bad;
        ingot_quantized q;
        INGOT_TRY(ingot_arena_array(trial, (void **)&w, s->rows, n * sizeof *w));
        INGOT_TRY(a->ops->values(a->context, w, &bad, &s->view, NULL, fold));
        INGOT_TRY(ingot_quantized_create(&q, s->rows, n, &format, trial));
        INGOT_TRY(a->ops->quantize_search(a->context, &q, w, importance, trial));
        INGOT_TRY(a->ops->quadratic_loss(a->context, &loss, w, s->rows, n, &q, gram, trial));
        *out += loss;
    }
    return INGOT_OK;
}

/* ---- candidates ----------------------------------------------------------------------------- */

/* Mean |x| and largest relative |w| of every producer channel. */
static void channel_figures(float *activation, float *weight, const ingot_fold_desc *f,
                            uint64_t channels, const ingot_input_state *input,
                            const sample *samples, unsigned count) {
    memset(activation, 0, channels * sizeof *activation);
    memset(weight, 0, channels * sizeof *weight);
    const float share = f->is_norm || f->repeat <= 1 ? 1.0f : 1.0f / (float)f->repeat;
    for (uint64_t c = 0; c < input->width; c++) {
        activation[channel_of(f, c)] += share * input->magnitude[c];
    }
    for (unsigned k = 0; k < count; k++) {
        for (uint64_t r = 0; r < samples[k].rows; r++) {
            const float *row = samples[k].w + r * input->width;
            float largest = 0;
            for (uint64_t c = 0; c < input->width; c++) {
                largest = fabsf(row[c]) > largest ? fabsf(row[c]) : largest;
            }
            for (uint64_t c = 0; largest > 0 && c < input->width; c++) {
                weight[channel_of(f, c)] += share * fabsf(row[c]) / largest;
            }
        }
    }
}

/* scale[channels] for one ratio, brought to a geometric middle of 1. */
static void candidate(float *scale, const float *activation, const float *weight, uint64_t channels,
                      double ratio, bool with_weight) {
    double low = INFINITY, high = 0;
    for (uint64_t c = 0; c < channels; c++) {
        double s = 1;
        if (activation[c] > 0) {
            s = pow((double)activation[c], ratio);
            s /= with_weight ? pow((double)weight[c] + 1e-4, 1 - ratio) : 1;
        }
        s = s < 1e-4 ? 1e-4 : s > 1e4 ? 1e4 : s;
        scale[c] = (float)s;
        low = s < low ? s : low;
        high = s > high ? s : high;
    }
    const double middle = sqrt(low * high);
    for (uint64_t c = 0; c < channels; c++) {
        scale[c] = (float)((double)scale[c] / middle);
    }
}

/* *loss of a candidate scale[channels] (NULL: ones). */
static ingot_status try_scale(double *loss, const awq *a, const sample *samples,
                              const ingot_fold_desc *f, const ingot_input_state *input,
                              const float *scale, float *columns, float *device_columns) {
    for (uint64_t c = 0; c < input->width; c++) {
        columns[c] = scale != NULL ? scale[channel_of(f, c)] : 1.0f;
    }
    INGOT_TRY(a->ops->upload(a->context, device_columns, columns, input->width * sizeof *columns));
    return fold_loss(loss, a, samples, f->consumer_count, input, device_columns);
}

/* best[channels] = the vector with the smallest loss; *gained when it beats ones. */
static ingot_status search_fold(bool *gained, float *best, const awq *a, unsigned fold,
                                uint64_t channels, const ingot_input_state *input) {
    const ingot_fold_desc *f = &a->job->model->fold[fold];
    sample samples[4];
    float *activation, *weight, *scale, *columns, *device_columns;
    double least, loss;
    for (unsigned k = 0; k < f->consumer_count; k++) {
        INGOT_TRY(take_sample(&samples[k], a, f->consumers[k]));
    }
    INGOT_TRY(ingot_arena_alloc(a->fold_host, (void **)&activation, channels * sizeof(float)));
    INGOT_TRY(ingot_arena_alloc(a->fold_host, (void **)&weight, channels * sizeof(float)));
    INGOT_TRY(ingot_arena_alloc(a->fold_host, (void **)&scale, channels * sizeof(float)));
    INGOT_TRY(ingot_arena_alloc(a->fold_host, (void **)&columns, input->width * sizeof(float)));
    INGOT_TRY(
        ingot_arena_alloc(a->fold_device, (void **)&device_columns, input->width * sizeof(float)));
    channel_figures(activation, weight, f, channels, input, samples, f->consumer_count);
    for (uint64_t c = 0; c < channels; c++) {
        best[c] = 1.0f;
    }
    INGOT_TRY(try_scale(&least, a, samples, f, input, NULL, columns, device_columns));
    *gained = false;
    for (unsigned i = 1; i < INGOT_FOLD_TRIALS; i++) { /* 0 is the vector of ones */
        candidate(scale, activation, weight, channels, (double)(i / 2) / RATIOS, i % 2 == 1);
        INGOT_TRY(try_scale(&loss, a, samples, f, input, scale, columns, device_columns));
        if (loss < least) {
            least = loss;
            *gained = true;
            memcpy(best, scale, channels * sizeof *best);
        }
    }
    ingot_arena_reset(a->trial_device);
    return INGOT_OK;
}

/* ---- the whole block ------------------------------------------------------------------------ */

/* Sets the state's folds to one fold's vectors, or (scale NULL) to ones. */
static ingot_status set_fold(const awq *a, unsigned fold, const float *scale) {
    const ingot_fold_desc *f = &a->job->model->fold[fold];
    ingot_block_state *s = a->state;
    ingot_input_state *input = &s->input[a->job->model->linear[f->consumers[0]].input];
    for (uint64_t c = 0; c < input->width; c++) {
        input->fold[c] = scale != NULL ? scale[channel_of(f, c)] : 1.0f;
    }
    INGOT_TRY(
        a->ops->upload(a->context, input->device_fold, input->fold, input->width * sizeof(float)));
    if (f->is_norm) {
        memcpy(s->norm_fold[f->slot], input->fold, input->width * sizeof(float));
        return INGOT_OK;
    }
    const uint64_t rows = a->job->model->linear[f->producer].rows;
    for (uint64_t r = 0; r < rows; r++) {
        s->row_fold[f->producer][r] = scale != NULL ? 1.0f / scale[r] : 1.0f;
    }
    return a->ops->upload(a->context, s->device_row_fold[f->producer], s->row_fold[f->producer],
                          rows * sizeof(float));
}

/* Diagonal of an input's H under its fold, in the fold's arena. */
static ingot_status folded_importance(float **out, const awq *a, const ingot_input_state *input) {
    const uint64_t n = input->width;
    const float *gram = input->plain_gram;
    INGOT_TRY(ingot_arena_array(a->fold_device, (void **)out, n, sizeof(float)));
    if (input->fold != NULL) {
        float *folded;
        INGOT_TRY(ingot_arena_array(a->fold_device, (void **)&folded, n, n * sizeof *folded));
        INGOT_TRY(a->ops->gram_fold(a->context, folded, gram, input->device_fold, n));
        gram = folded;
    }
    return a->ops->gram_diagonal(a->context, *out, gram, n);
}

/* A linear as a dense F32 matrix: rounded with searched scales under its folds, or as it is. */
static ingot_status rounded_linear(ingot_weight_view *out, const awq *a, ingot_role role) {
    const ingot_block_state *s = a->state;
    const ingot_weight_view *v = &s->source[role];
    const ingot_input_state *input = &s->input[a->job->model->linear[role].input];
    const ingot_tensor_spec *spec = spec_of(a, role);
    if (spec == NULL || spec->kind != INGOT_GROUPED) {
        *out = *v;
        return INGOT_OK;
    }
    const ingot_quant_format format = format_of(spec);
    const ingot_linear_job values = {.backend = a->job->backend,
                                     .source = v,
                                     .row_fold = s->device_row_fold[role],
                                     .column_fold = input->device_fold};
    float *w, *importance;
    ingot_quantized q;
    ingot_arena_reset(a->fold_device);
    INGOT_TRY(ingot_arena_array(a->block_device, (void **)&w, v->rows, v->cols * sizeof *w));
    INGOT_TRY(ingot_linear_values(w, &values, a->error));
    INGOT_TRY(folded_importance(&importance, a, input));
    INGOT_TRY(ingot_quantized_create(&q, v->rows, v->cols, &format, a->fold_device));
    INGOT_TRY(a->ops->quantize_search(a->context, &q, w, importance, a->fold_device));
    INGOT_TRY(a->ops->quantized_values(a->context, w, &q));
    *out = (ingot_weight_view){
        .kind = INGOT_DENSE, .rows = v->rows, .cols = v->cols, .dtype = INGOT_F32, .data = w};
    return INGOT_OK;
}

/* *vector = host[count] divided or multiplied by the fold, on the device; left alone when either
 * is absent. */
static ingot_status folded_vector(float **vector, const awq *a, const float *host,
                                  const float *fold, bool divide, uint64_t count) {
    float *copy;
    if (host == NULL || fold == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_alloc(a->fold_host, (void **)&copy, count * sizeof *copy));
    for (uint64_t i = 0; i < count; i++) {
        copy[i] = divide ? host[i] / fold[i] : host[i] * fold[i];
    }
    INGOT_TRY(ingot_arena_alloc(a->block_device, (void **)vector, count * sizeof *copy));
    return a->ops->upload(a->context, *vector, copy, count * sizeof *copy);
}

/* The block rounded with searched scales under the folds that are set now. */
static ingot_status rounded_block(ingot_block *out, const awq *a) {
    const ingot_block_state *s = a->state;
    const struct ingot_block_host *host = &s->block.host;
    const uint64_t hidden = a->job->model->hidden;
    *out = s->block;
    ingot_arena_reset(a->block_device);
    ingot_arena_reset(a->fold_host);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        if (a->job->model->linear[role].is_present) {
            INGOT_TRY(rounded_linear(&out->linear[role], a, (ingot_role)role));
            INGOT_TRY(folded_vector(&out->bias[role], a, host->bias[role], s->row_fold[role], false,
                                    a->job->model->linear[role].rows));
        }
    }
    for (unsigned slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        const float *fold = s->norm_fold[slot];
        INGOT_TRY(folded_vector(&out->norm[slot], a, host->norm[slot], fold, true, hidden));
        INGOT_TRY(
            folded_vector(&out->norm_bias[slot], a, host->norm_bias[slot], fold, true, hidden));
    }
    return INGOT_OK;
}

/* Runs a block on the judges: out[judges][length][hidden] on the device. */
static ingot_status run_judges(float *out, const awq *a, const ingot_block *block) {
    const ingot_batch *b = a->batch;
    const uint64_t first = b->windows - ingot_max_u64(b->judges, 1);
    const ingot_batch_use use = {.output = out};
    return ingot_batch_run(b, a->job, block, first, b->windows, &use, a->error);
}

/* Squared distance of the rounded block's output from the reference, over all devices: without
 * windows that are held out each judges by one of its own, and all must decide alike, since each
 * quantizes rows behind these folds. */
static ingot_status judge(double *out, const awq *a, const float *reference, float *output,
                          uint64_t count) {
    ingot_block rounded;
    INGOT_TRY(rounded_block(&rounded, a));
    INGOT_TRY(run_judges(output, a, &rounded));
    INGOT_TRY(a->ops->distance(a->context, out, output, reference, count));
    return ingot_team_sum_host(a->rank, out, 1);
}

/* ---- the folds of a block ------------------------------------------------------------------- */

/* A fold vector on both sides. */
static ingot_status both_sides(const awq *a, float **host, float **device, uint64_t count) {
    INGOT_TRY(ingot_arena_array(a->arena, (void **)host, count, sizeof(float)));
    return ingot_arena_array(a->device, (void **)device, count, sizeof(float));
}

static ingot_status allocate_folds(const awq *a) {
    const ingot_model *model = a->job->model;
    ingot_block_state *s = a->state;
    for (unsigned i = 0; i < model->fold_count; i++) {
        const ingot_fold_desc *f = &model->fold[i];
        ingot_input_state *input = &s->input[model->linear[f->consumers[0]].input];
        if (!s->is_fold_planned[i]) {
            continue;
        }
        INGOT_TRY(both_sides(a, &input->fold, &input->device_fold, input->width));
        input->is_of_linear = !f->is_norm;
        if (f->is_norm) {
            INGOT_TRY(ingot_arena_array(a->arena, (void **)&s->norm_fold[f->slot], input->width,
                                        sizeof(float)));
        } else {
            INGOT_TRY(both_sides(a, &s->row_fold[f->producer], &s->device_row_fold[f->producer],
                                 model->linear[f->producer].rows));
        }
        INGOT_TRY(set_fold(a, i, NULL));
    }
    return INGOT_OK;
}

static ingot_status choose_one(const awq *a, unsigned fold, const float *reference, float *output,
                               uint64_t count, double *least) {
    const ingot_model *model = a->job->model;
    const ingot_fold_desc *f = &model->fold[fold];
    const ingot_input_state *input = &a->state->input[model->linear[f->consumers[0]].input];
    const uint64_t channels = f->is_norm ? input->width : model->linear[f->producer].rows;
    bool gained = false;
    float *scale;
    if (input->plain_gram == NULL || input->tokens == 0) {
        return INGOT_OK;
    }
    ingot_arena_reset(a->fold_host);
    ingot_arena_reset(a->fold_device);
    INGOT_TRY(ingot_arena_alloc(a->arena, (void **)&scale, channels * sizeof *scale));
    INGOT_TRY(search_fold(&gained, scale, a, fold, channels, input));
    if (!gained) {
        return INGOT_OK;
    }
    INGOT_TRY(set_fold(a, fold, scale));
    if (reference == NULL) {
        return INGOT_OK;
    }
    double loss;
    INGOT_TRY(judge(&loss, a, reference, output, count));
    if (loss < *least) {
        *least = loss;
        return INGOT_OK;
    }
    return set_fold(a, fold, NULL);
}

static ingot_status choose_all(const awq *a) {
    const ingot_model *model = a->job->model;
    uint64_t count = 0;
    double least = 0;
    float *reference = NULL, *output = NULL;
    INGOT_TRY(allocate_folds(a));
    if (a->batch != NULL) {
        count = ingot_max_u64(a->batch->judges, 1) * a->batch->length * model->hidden;
        INGOT_TRY(ingot_arena_array(a->judged, (void **)&reference, count, sizeof(float)));
        INGOT_TRY(ingot_arena_array(a->judged, (void **)&output, count, sizeof(float)));
        INGOT_TRY(run_judges(reference, a, &a->state->block));
        INGOT_TRY(judge(&least, a, reference, output, count));
    }
    for (unsigned i = 0; i < model->fold_count; i++) {
        if (a->state->is_fold_planned[i]) {
            INGOT_TRY(choose_one(a, i, reference, output, count, &least));
        }
    }
    return INGOT_OK;
}

ingot_status ingot_awq_choose(ingot_block_state *state, const ingot_loop_job *job,
                              const ingot_rank *rank, const ingot_batch *batch, ingot_arena *arena,
                              ingot_arena *device, ingot_error *error) {
    const ingot_backend *backend = job->backend;
    awq a = {.state = state,
             .job = job,
             .ops = backend->ops,
             .context = backend->context,
             .rank = rank,
             .batch = batch,
             .arena = arena,
             .device = device,
             .error = error};
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_arena_create(&a.fold_host));
    INGOT_GO(ingot_backend_arena_create(&a.fold_device, backend));
    INGOT_GO(ingot_backend_arena_create(&a.trial_device, backend));
    INGOT_GO(ingot_backend_arena_create(&a.block_device, backend));
    INGOT_GO(ingot_backend_arena_create(&a.judged, backend));
    INGOT_GO(choose_all(&a));
done:
    ingot_arena_destroy(a.fold_host);
    ingot_arena_destroy(a.fold_device);
    ingot_arena_destroy(a.trial_device);
    ingot_arena_destroy(a.block_device);
    ingot_arena_destroy(a.judged);
    return status;
}
