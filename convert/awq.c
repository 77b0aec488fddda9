/* AWQ: which input channels are scaled up before rounding, and by how much (convert/block.h).
 *
 * Per fold 20 ratios x {activation alone, activation and weight}; each is judged by the loss of the
 * fold's consumers under H when they are rounded with the scale grid of the real quantizer.  The
 * best is kept only if the block as a whole then does better on windows that were not used. */
#include "convert/block.h"

#include <math.h>
#include <string.h>

#define RATIOS    20u
#define MOST_ROWS 512u /* rows of a consumer that are looked at, evenly spaced */

/* What the functions below share; buffers for one fold are in `scratch`. */
typedef struct awq {
    ingot_block_state *state;
    const ingot_loop_job *job;
    const ingot_batch *batch;
    ingot_arena *arena, *scratch, *dense;
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

/* Rows of a consumer in F32, thinned to MOST_ROWS. */
typedef struct sample {
    const ingot_tensor_spec *spec;
    float *w; /* [rows][cols] */
    uint64_t rows, cols;
} sample;

static ingot_status take_sample(sample *out, const awq *a, ingot_role role) {
    const ingot_weight_view *v = &a->state->source[role];
    const uint8_t *data = v->data;
    out->spec = spec_of(a, role);
    out->rows = v->rows < MOST_ROWS ? v->rows : MOST_ROWS;
    out->cols = v->cols;
    INGOT_TRY(
        ingot_arena_alloc(a->scratch, (void **)&out->w, out->rows * out->cols * sizeof *out->w));
    for (uint64_t r = 0; r < out->rows; r++) {
        const uint64_t from = r * v->rows / out->rows;
        ingot_rows_to_f32(out->w + r * v->cols, data + from * v->cols * ingot_dtype_bytes(v->dtype),
                          v->dtype, v->cols);
    }
    return INGOT_OK;
}

/* Sum over the consumers of the loss under H when their columns are multiplied by fold[cols]. */
static ingot_status fold_loss(double *out, const awq *a, const sample *samples, unsigned count,
                              const ingot_input_state *input, const float *fold,
                              ingot_arena *temporary) {
    const uint64_t n = input->width;
    float *gram, *importance;
    INGOT_TRY(ingot_arena_alloc(temporary, (void **)&gram, n * n * sizeof *gram));
    INGOT_TRY(ingot_arena_alloc(temporary, (void **)&importance, n * sizeof *importance));
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j < n; j++) {
            gram[i * n + j] = input->plain_gram[i * n + j] / (fold[i] * fold[j]);
        }
        importance[i] = gram[i * n + i];
    }
    *out = 0;
    for (unsigned k = 0; k < count; k++) {
        const sample *s = &samples[k];
        const ingot_quant_format format = format_of(s->spec);
        float *w;
        double loss;
        ingot_quantized q;
        INGOT_TRY(ingot_arena_alloc(temporary, (void **)&w, s->rows * n * sizeof *w));
        for (uint64_t r = 0; r < s->rows; r++) {
            for (uint64_t c = 0; c < n; c++) {
                w[r * n + c] = s->w[r * n + c] * fold[c];
            }
        }
        INGOT_TRY(ingot_quantized_create(&q, s->rows, n, &format, temporary));
        INGOT_TRY(ingot_quantize_search(&q, w, importance, temporary, a->job->backend->pool));
        INGOT_TRY(
            ingot_quadratic_loss(&loss, w, s->rows, n, &q, gram, a->job->backend->pool, temporary));
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

/* best[channels] = the vector with the smallest loss; *gained when it beats ones. */
static ingot_status search_fold(bool *gained, float *best, const awq *a, unsigned fold,
                                uint64_t channels, const ingot_input_state *input) {
    const ingot_fold_desc *f = &a->job->model->fold[fold];
    sample samples[4];
    float *activation, *weight, *scale, *columns;
    double least, loss;
    ingot_arena *temporary = a->dense;
    for (unsigned k = 0; k < f->consumer_count; k++) {
        INGOT_TRY(take_sample(&samples[k], a, f->consumers[k]));
    }
    INGOT_TRY(ingot_arena_alloc(a->scratch, (void **)&activation, channels * sizeof(float)));
    INGOT_TRY(ingot_arena_alloc(a->scratch, (void **)&weight, channels * sizeof(float)));
    INGOT_TRY(ingot_arena_alloc(a->scratch, (void **)&scale, channels * sizeof(float)));
    INGOT_TRY(ingot_arena_alloc(a->scratch, (void **)&columns, input->width * sizeof(float)));
    channel_figures(activation, weight, f, channels, input, samples, f->consumer_count);
    for (uint64_t c = 0; c < input->width; c++) {
        columns[c] = 1.0f;
    }
    for (uint64_t c = 0; c < channels; c++) {
        best[c] = 1.0f;
    }
    ingot_arena_reset(temporary);
    INGOT_TRY(fold_loss(&least, a, samples, f->consumer_count, input, columns, temporary));
    *gained = false;
    for (unsigned i = 1; i < 2 * RATIOS; i++) { /* 0 is the vector of ones */
        candidate(scale, activation, weight, channels, (double)(i / 2) / RATIOS, i % 2 == 1);
        for (uint64_t c = 0; c < input->width; c++) {
            columns[c] = scale[channel_of(f, c)];
        }
        ingot_arena_reset(temporary);
        INGOT_TRY(fold_loss(&loss, a, samples, f->consumer_count, input, columns, temporary));
        if (loss < least) {
            least = loss;
            *gained = true;
            memcpy(best, scale, channels * sizeof *best);
        }
    }
    return INGOT_OK;
}

/* ---- the whole block ------------------------------------------------------------------------ */

/* Points the state's folds at one fold's vectors, or (scale NULL) at ones. */
static void set_fold(const awq *a, unsigned fold, const float *scale) {
    const ingot_fold_desc *f = &a->job->model->fold[fold];
    ingot_block_state *s = a->state;
    ingot_input_state *input = &s->input[a->job->model->linear[f->consumers[0]].input];
    for (uint64_t c = 0; c < input->width; c++) {
        input->fold[c] = scale != NULL ? scale[channel_of(f, c)] : 1.0f;
    }
    if (f->is_norm) {
        memcpy(s->norm_fold[f->slot], input->fold, input->width * sizeof(float));
        return;
    }
    for (uint64_t r = 0; r < a->job->model->linear[f->producer].rows; r++) {
        s->row_fold[f->producer][r] = scale != NULL ? 1.0f / scale[r] : 1.0f;
    }
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
    const ingot_linear_job values = {
        .source = v, .row_fold = s->row_fold[role], .column_fold = input->fold};
    float *w, *importance;
    ingot_quantized q;
    ingot_arena_reset(a->scratch);
    INGOT_TRY(ingot_arena_alloc(a->dense, (void **)&w, v->rows * v->cols * sizeof *w));
    INGOT_TRY(ingot_arena_alloc(a->scratch, (void **)&importance, v->cols * sizeof *importance));
    INGOT_TRY(ingot_linear_values(w, &values, a->job->backend->pool, a->error));
    for (uint64_t c = 0; c < v->cols; c++) {
        const float fold = input->fold != NULL ? input->fold[c] : 1.0f;
        importance[c] = input->plain_gram[c * v->cols + c] / (fold * fold);
    }
    INGOT_TRY(ingot_quantized_create(&q, v->rows, v->cols, &format, a->scratch));
    INGOT_TRY(ingot_quantize_search(&q, w, importance, a->scratch, a->job->backend->pool));
    for (uint64_t r = 0; r < v->rows; r++) {
        ingot_quantized_row(w + r * v->cols, &q, r);
    }
    *out = (ingot_weight_view){
        .kind = INGOT_DENSE, .rows = v->rows, .cols = v->cols, .dtype = INGOT_F32, .data = w};
    return INGOT_OK;
}

static ingot_status folded_vector(float **vector, const awq *a, const float *fold, bool divide,
                                  uint64_t count) {
    float *copy;
    if (*vector == NULL || fold == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_alloc(a->dense, (void **)&copy, count * sizeof *copy));
    for (uint64_t i = 0; i < count; i++) {
        copy[i] = divide ? (*vector)[i] / fold[i] : (*vector)[i] * fold[i];
    }
    *vector = copy;
    return INGOT_OK;
}

/* The block rounded with searched scales under the folds that are set now. */
static ingot_status rounded_block(ingot_block *out, const awq *a) {
    const ingot_block_state *s = a->state;
    *out = s->block;
    ingot_arena_reset(a->dense);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        if (a->job->model->linear[role].is_present) {
            INGOT_TRY(rounded_linear(&out->linear[role], a, (ingot_role)role));
            INGOT_TRY(folded_vector(&out->bias[role], a, s->row_fold[role], false,
                                    a->job->model->linear[role].rows));
        }
    }
    for (unsigned slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        INGOT_TRY(
            folded_vector(&out->norm[slot], a, s->norm_fold[slot], true, a->job->model->hidden));
        INGOT_TRY(folded_vector(&out->norm_bias[slot], a, s->norm_fold[slot], true,
                                a->job->model->hidden));
    }
    return INGOT_OK;
}

/* Runs a block on the judges: out[judges][length][hidden] on the host. */
static ingot_status run_judges(float *out, const awq *a, const ingot_block *block) {
    const ingot_batch *b = a->batch;
    const ingot_backend *backend = a->job->backend;
    const uint64_t window = b->length * a->job->model->hidden;
    const uint64_t first = b->windows - (b->judges != 0 ? b->judges : 1);
    for (uint64_t w = first; w < b->windows; w++) {
        INGOT_TRY(backend->ops->upload(backend->context, b->scratch, b->states + w * window,
                                       window * sizeof(float)));
        INGOT_TRY(ingot_block_forward(a->job->model, backend, block, b->scratch, 1, b->length, NULL,
                                      b->workspace, NULL, NULL));
        INGOT_TRY(backend->ops->download(backend->context, out + (w - first) * window, b->scratch,
                                         window * sizeof(float)));
    }
    return INGOT_OK;
}

/* Squared distance of the rounded block's output from the reference. */
static ingot_status judge(double *out, const awq *a, const float *reference, float *output,
                          uint64_t count) {
    ingot_block rounded;
    INGOT_TRY(rounded_block(&rounded, a));
    INGOT_TRY(run_judges(output, a, &rounded));
    *out = 0;
    for (uint64_t i = 0; i < count; i++) {
        const double e = (double)output[i] - (double)reference[i];
        *out += e * e;
    }
    return INGOT_OK;
}

/* ---- the folds of a block ------------------------------------------------------------------- */

static ingot_status allocate_folds(const awq *a) {
    const ingot_model *model = a->job->model;
    for (unsigned i = 0; i < model->fold_count; i++) {
        const ingot_fold_desc *f = &model->fold[i];
        ingot_input_state *input = &a->state->input[model->linear[f->consumers[0]].input];
        if (!a->state->is_fold_planned[i]) {
            continue;
        }
        INGOT_TRY(ingot_arena_alloc(a->arena, (void **)&input->fold, input->width * sizeof(float)));
        float **producer =
            f->is_norm ? &a->state->norm_fold[f->slot] : &a->state->row_fold[f->producer];
        const uint64_t width = f->is_norm ? input->width : model->linear[f->producer].rows;
        INGOT_TRY(ingot_arena_alloc(a->arena, (void **)producer, width * sizeof(float)));
        set_fold(a, i, NULL);
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
    ingot_arena_reset(a->scratch);
    INGOT_TRY(ingot_arena_alloc(a->arena, (void **)&scale, channels * sizeof *scale));
    INGOT_TRY(search_fold(&gained, scale, a, fold, channels, input));
    if (!gained) {
        return INGOT_OK;
    }
    set_fold(a, fold, scale);
    if (reference == NULL) {
        return INGOT_OK;
    }
    double loss;
    INGOT_TRY(judge(&loss, a, reference, output, count));
    if (loss < *least) {
        *least = loss;
    } else {
        set_fold(a, fold, NULL);
    }
    return INGOT_OK;
}

static ingot_status choose_all(const awq *a, float **reference) {
    const ingot_model *model = a->job->model;
    uint64_t count = 0;
    double least = 0;
    float *output = NULL;
    INGOT_TRY(allocate_folds(a));
    if (a->batch != NULL) {
        const uint64_t judges = a->batch->judges != 0 ? a->batch->judges : 1;
        count = judges * a->batch->length * model->hidden;
        INGOT_TRY(ingot_alloc((void **)reference, 2 * count * sizeof(float)));
        output = *reference + count;
        INGOT_TRY(run_judges(*reference, a, &a->state->block));
        INGOT_TRY(judge(&least, a, *reference, output, count));
    }
    for (unsigned i = 0; i < model->fold_count; i++) {
        if (a->state->is_fold_planned[i]) {
            INGOT_TRY(choose_one(a, i, *reference, output, count, &least));
        }
    }
    return INGOT_OK;
}

ingot_status ingot_awq_choose(ingot_block_state *state, const ingot_loop_job *job,
                              const ingot_batch *batch, ingot_arena *arena, ingot_error *error) {
    awq a = {.state = state, .job = job, .batch = batch, .arena = arena, .error = error};
    float *reference = NULL;
    ingot_status status = ingot_arena_create(&a.scratch);
    INGOT_GO(status);
    INGOT_GO(ingot_arena_create(&a.dense));
    INGOT_GO(choose_all(&a, &reference));
done:
    ingot_free(reference);
    ingot_arena_destroy(a.scratch);
    ingot_arena_destroy(a.dense);
    return status;
}
