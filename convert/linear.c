/* Quantizing one matrix (convert/linear.h). */
#include "convert/linear.h"

#include "format/half.h"

#include <math.h>
#include <string.h>

#define TILE_ROWS 64u

typedef struct values_task {
    const ingot_linear_job *job;
    float *out;
    uint64_t *bad; /* [tiles]: index of the first value that is not finite, or UINT64_MAX */
} values_task;

static void values_tile(void *context, size_t tile, unsigned worker) {
    (void)worker;
    const values_task *task = context;
    const ingot_linear_job *job = task->job;
    const ingot_weight_view *v = job->source;
    const uint64_t first = tile * TILE_ROWS, cols = v->cols;
    const uint64_t rows = v->rows - first < TILE_ROWS ? v->rows - first : TILE_ROWS;
    const uint8_t *data = v->data;
    float *out = task->out + first * cols;
    ingot_rows_to_f32(out, data + first * cols * ingot_dtype_bytes(v->dtype), v->dtype,
                      rows * cols);
    const uint64_t bad = ingot_first_not_finite(out, rows * cols);
    task->bad[tile] = bad == rows * cols ? UINT64_MAX : first * cols + bad;
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t c = 0; job->row_fold != NULL && c < cols; c++) {
            out[r * cols + c] *= job->row_fold[first + r];
        }
        for (uint64_t c = 0; job->column_fold != NULL && c < cols; c++) {
            out[r * cols + c] *= job->column_fold[c];
        }
    }
}

ingot_status ingot_linear_values(float *out, const ingot_linear_job *job, ingot_pool *pool,
                                 ingot_error *error) {
    const uint64_t tiles = (job->source->rows + TILE_ROWS - 1) / TILE_ROWS;
    values_task task = {.job = job, .out = out};
    INGOT_TRY(ingot_alloc((void **)&task.bad, tiles * sizeof *task.bad));
    ingot_pool_run(pool, tiles, values_tile, &task);
    ingot_status status = INGOT_OK;
    for (uint64_t t = 0; t < tiles && status == INGOT_OK; t++) {
        if (task.bad[t] != UINT64_MAX) {
            status = ingot_error_set(error, INGOT_ERR_NUMERIC, job->file, job->name,
                                     "the checkpoint is damaged: fetch or export it again",
                                     "row %llu, column %llu is NaN or infinite",
                                     (unsigned long long)(task.bad[t] / job->source->cols),
                                     (unsigned long long)(task.bad[t] % job->source->cols));
        }
    }
    ingot_free(task.bad);
    return status;
}

void ingot_ledger_copy(ingot_ledger *ledger) {
    *ledger = (ingot_ledger){.method = INGOT_METHOD_COPY,
                             .weight_error = NAN,
                             .weight_error_rtn = NAN,
                             .output_error = NAN,
                             .output_error_rtn = NAN,
                             .damping = NAN};
}

/* ---- one result ----------------------------------------------------------------------------- */

/* What the functions below share. */
typedef struct work {
    const ingot_linear_job *job;
    const float *w; /* folded weights */
    ingot_arena *arena, *scratch;
    ingot_pool *pool;
} work;

/* Relative output error of q on weights w under gram; NaN without data. */
static ingot_status output_error(double *error, double *loss, const work *k, const float *w,
                                 const ingot_quantized *q, const float *gram) {
    double norm;
    *error = *loss = NAN;
    if (gram == NULL) {
        return INGOT_OK;
    }
    const ingot_weight_view *v = k->job->source;
    INGOT_TRY(ingot_quadratic_loss(loss, w, v->rows, v->cols, q, gram, k->pool, k->scratch));
    INGOT_TRY(ingot_quadratic_loss(&norm, w, v->rows, v->cols, NULL, gram, k->pool, k->scratch));
    *loss = *loss > 0 ? *loss : 0;
    *error = norm > 0 ? sqrt(*loss / norm) : 0;
    return INGOT_OK;
}

/* Puts the job's outliers, as q names them, back over plainly rounded codes. */
static void restore_outliers(ingot_quantized *q, const ingot_outliers *outliers, const float *w) {
    q->outliers = *outliers;
    for (uint64_t r = 0; outliers->count != 0 && r < q->rows; r++) {
        for (uint64_t i = outliers->row_ptr[r]; i < outliers->row_ptr[r + 1]; i++) {
            const uint64_t c = outliers->col[i];
            q->codes[r * q->cols + c] = q->zeros[r * q->groups + c / q->format.group];
            outliers->val[i] = ingot_round_to_dtype(w[r * q->cols + c], outliers->dtype);
        }
    }
}

static ingot_status choose_outliers(const work *k, ingot_quantized *q, const float *importance) {
    const ingot_linear_job *job = k->job;
    if (job->outlier_count == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_quantize_search(q, k->w, importance, k->scratch, k->pool));
    return ingot_outliers_choose(q, k->w, importance, job->outlier_count, job->outlier_dtype,
                                 k->arena, k->scratch, k->pool);
}

/* Quantizes by the method; INGOT_METHOD_RTN with outliers keeps the plain scales. */
static ingot_status by_method(const work *k, ingot_quantized *q, ingot_ledger *ledger) {
    const ingot_linear_job *job = k->job;
    const ingot_gptq_factor *factor = job->data.factor;
    const float *importance = factor != NULL ? factor->importance : NULL;
    INGOT_TRY(choose_outliers(k, q, importance));
    const bool is_gptq = job->method == INGOT_METHOD_GPTQ || job->method == INGOT_METHOD_AWQ_GPTQ;
    if (job->method == INGOT_METHOD_RTN) {
        const ingot_outliers outliers = q->outliers;
        q->outliers.count = 0;
        ingot_quantize_rtn(q, k->w, k->pool);
        restore_outliers(q, &outliers, k->w);
        return INGOT_OK;
    }
    if (is_gptq && factor != NULL && factor->damping_step != 255) {
        return ingot_quantize_gptq(q, k->w, factor, k->scratch, k->pool);
    }
    if (is_gptq || job->method == INGOT_METHOD_AWQ) {
        ledger->fallback = factor == NULL ? INGOT_FALLBACK_NO_DATA
                           : is_gptq      ? INGOT_FALLBACK_NOT_POSITIVE
                                          : INGOT_FALLBACK_NONE;
        ledger->method =
            ledger->fallback == INGOT_FALLBACK_NONE ? job->method : INGOT_METHOD_SEARCHED;
    }
    return ingot_quantize_search(q, k->w, importance, k->scratch, k->pool);
}

/* ---- the yardstick -------------------------------------------------------------------------- */

/* Errors of plain rounding of the unfolded weights, scales in F16, into the ledger. */
static ingot_status measure_plain(const work *k, ingot_ledger *ledger) {
    const ingot_linear_job *job = k->job;
    const ingot_weight_view *v = job->source;
    ingot_linear_job unfolded = *job;
    unfolded.row_fold = unfolded.column_fold = NULL;
    const bool is_folded = job->row_fold != NULL || job->column_fold != NULL;
    const float *w = k->w;
    if (is_folded) {
        float *values;
        INGOT_TRY(
            ingot_arena_alloc(k->scratch, (void **)&values, v->rows * v->cols * sizeof *values));
        INGOT_TRY(ingot_linear_values(values, &unfolded, k->pool, NULL));
        w = values;
    }
    ingot_quantized plain;
    ingot_quant_format format = job->format;
    format.scale_dtype = format.scale_dtype == INGOT_F32 ? INGOT_F16 : format.scale_dtype;
    INGOT_TRY(ingot_quantized_create(&plain, v->rows, v->cols, &format, k->scratch));
    ingot_quantize_rtn(&plain, w, k->pool);
    INGOT_TRY(
        ingot_quantized_weight_error(&ledger->weight_error_rtn, v, NULL, NULL, &plain, k->pool));
    double loss;
    return output_error(&ledger->output_error_rtn, &loss, k, w, &plain, job->data.plain_gram);
}

/* Replaces q by plain rounding of the folded weights when that is better. */
static ingot_status guard(const work *k, ingot_quantized *q, ingot_ledger *ledger, double loss) {
    const ingot_linear_job *job = k->job;
    const ingot_weight_view *v = job->source;
    ingot_quantized plain;
    double error, plain_error, plain_loss;
    INGOT_TRY(ingot_quantized_create(&plain, v->rows, v->cols, &job->format, k->arena));
    ingot_quantize_rtn(&plain, k->w, k->pool);
    if (q->outliers.count != 0) {
        ingot_outliers copy = q->outliers;
        INGOT_TRY(ingot_arena_alloc(k->arena, (void **)&copy.val, copy.count * sizeof *copy.val));
        restore_outliers(&plain, &copy, k->w);
    }
    INGOT_TRY(output_error(&error, &plain_loss, k, k->w, &plain, job->data.gram));
    INGOT_TRY(ingot_quantized_weight_error(&plain_error, v, job->row_fold, job->column_fold, &plain,
                                           k->pool));
    const bool is_worse =
        job->data.gram != NULL ? loss > plain_loss : ledger->weight_error > plain_error;
    if (is_worse) {
        *q = plain;
        ledger->fallback = INGOT_FALLBACK_WORSE_THAN_RTN;
        ledger->method = INGOT_METHOD_RTN;
        ledger->weight_error = plain_error;
        ledger->output_error = error;
    }
    return INGOT_OK;
}

ingot_status ingot_linear_quantize(ingot_quantized *out, ingot_ledger *ledger,
                                   const ingot_linear_job *job, ingot_arena *arena,
                                   ingot_arena *scratch, ingot_pool *pool, ingot_error *error) {
    const ingot_weight_view *v = job->source;
    float *w;
    double loss;
    INGOT_TRY(ingot_arena_alloc(scratch, (void **)&w, v->rows * v->cols * sizeof *w));
    INGOT_TRY(ingot_linear_values(w, job, pool, error));
    const work k = {.job = job, .w = w, .arena = arena, .scratch = scratch, .pool = pool};
    ingot_ledger_copy(ledger);
    ledger->method = job->method;
    ledger->is_folded = job->row_fold != NULL || job->column_fold != NULL;
    ledger->tokens_seen = job->data.tokens;
    if (job->data.factor != NULL) {
        ledger->damping_step = job->data.factor->damping_step;
        ledger->damping = job->data.factor->damping;
        ledger->dead_columns = job->data.factor->dead_columns;
    }
    INGOT_TRY(ingot_quantized_create(out, v->rows, v->cols, &job->format, arena));
    INGOT_TRY(by_method(&k, out, ledger));
    INGOT_TRY(ingot_quantized_weight_error(&ledger->weight_error, v, job->row_fold,
                                           job->column_fold, out, pool));
    INGOT_TRY(output_error(&ledger->output_error, &loss, &k, w, out, job->data.gram));
    const bool is_plain = job->method == INGOT_METHOD_RTN && job->outlier_count == 0 &&
                          !ledger->is_folded && job->format.scale_dtype != INGOT_F32;
    if (is_plain) {
        ledger->weight_error_rtn = ledger->weight_error;
        ledger->output_error_rtn = ledger->output_error;
    } else {
        INGOT_TRY(measure_plain(&k, ledger));
        INGOT_TRY(guard(&k, out, ledger, loss));
    }
    ledger->low_precision_scales = (uint32_t)ingot_quantized_low_precision(out);
    ledger->outliers = out->outliers.count;
    return INGOT_OK;
}
