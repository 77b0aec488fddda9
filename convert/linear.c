/* Quantizing one matrix (convert/linear.h). */
#include "convert/linear.h"

#include "common/memory.h"
#include "common/sizes.h"
#include "convert/outlier_gain.h"

#include <math.h>

ingot_status ingot_linear_values(float *out, const ingot_linear_job *job, ingot_error *error) {
    uint64_t bad;
    INGOT_TRY(job->backend->ops->values(job->backend->context, out, &bad, job->source,
                                        job->row_fold, job->column_fold));
    return bad == UINT64_MAX
               ? INGOT_OK
               : ingot_error_set(error, INGOT_ERR_NUMERIC, job->file, job->name,
                                 "the checkpoint is damaged: fetch or export it again",
                                 "row %llu, column %llu is NaN or infinite",
                                 (unsigned long long)(job->first_row + bad / job->source->cols),
                                 (unsigned long long)(bad % job->source->cols));
}

void ingot_ledger_copy(ingot_ledger *ledger) {
    *ledger = (ingot_ledger){.method = INGOT_METHOD_COPY,
                             .weight_error = NAN,
                             .weight_error_rtn = NAN,
                             .output_error = NAN,
                             .output_error_rtn = NAN,
                             .damping = NAN};
}

void ingot_ledger_learn(ingot_ledger *ledger, ingot_method method, double weight_error) {
    /* sums of the same values in the same order are equal */
    const bool is_changed = weight_error != ledger->weight_error;
    if (is_changed && ledger->fallback == INGOT_FALLBACK_WORSE_THAN_RTN) {
        ledger->method = method;
        ledger->fallback = INGOT_FALLBACK_NONE;
    }
    ledger->weight_error = weight_error;
}

/* What the functions below share. */
typedef struct work {
    const ingot_linear_job *job;
    const ingot_backend_ops *ops;
    void *context;
    const float *source; /* folded weights */
    const float *w;      /* what is to be stored: these, or corrected for drift */
    double norm;         /* tr(W H W^T) of that; NaN without data */
    ingot_arena *arena, *scratch;
    ingot_arena *call; /* of one operation, which leaves nothing in it */
    ingot_error *error;
} work;

/* Memory of the operation that follows. */
static ingot_arena *for_call(const work *k) {
    ingot_arena_reset(k->call);
    return k->call;
}

/* A way to store the matrix and how good it is. */
typedef struct result {
    ingot_quantized q;
    double weight_error;       /* data-free, relative */
    double loss, output_error; /* under H, squared and relative; NaN without data */
} result;

/* Of the rows at hand; NaN without data. */
static ingot_status quadratic_part(double *loss, const work *k, const float *w,
                                   const ingot_quantized *q, const float *gram) {
    const ingot_weight_view *v = k->job->source;
    *loss = NAN;
    return gram == NULL ? INGOT_OK
                        : k->ops->quadratic_loss(k->context, loss, w, v->rows, v->cols, q, gram,
                                                 for_call(k));
}

static double not_negative(double loss) {
    return isnan(loss) || loss > 0 ? loss : 0;
}

static ingot_status quadratic(double *loss, const work *k, const float *w, const ingot_quantized *q,
                              const float *gram) {
    INGOT_TRY(quadratic_part(loss, k, w, q, gram));
    INGOT_TRY(ingot_team_sum_host(&k->job->rank, loss, 1));
    *loss = not_negative(*loss);
    return INGOT_OK;
}

static double relative(double loss, double norm) {
    return isnan(loss) ? (double)NAN : norm > 0 ? sqrt(loss / norm) : 0;
}

/* Fills the errors of a result whose codes are chosen. */
static ingot_status measure(result *r, const work *k) {
    const ingot_linear_job *job = k->job;
    double sums[3];
    INGOT_TRY(k->ops->weight_error(k->context, sums, job->source, job->row_fold, job->column_fold,
                                   &r->q, for_call(k)));
    INGOT_TRY(quadratic_part(&sums[2], k, k->w, &r->q, job->data.gram));
    INGOT_TRY(ingot_team_sum_host(&job->rank, sums, 3));
    r->weight_error = ingot_weight_error_ratio(sums);
    r->loss = not_negative(sums[2]);
    r->output_error = relative(r->loss, k->norm);
    return INGOT_OK;
}

static ingot_status create(result *r, const work *k, ingot_dtype scale_dtype) {
    const ingot_weight_view *v = k->job->source;
    ingot_quant_format format = k->job->format;
    format.scale_dtype = scale_dtype;
    return ingot_quantized_create(&r->q, v->rows, v->cols, &format, k->arena);
}

/* ---- one result ----------------------------------------------------------------------------- */

/* Plain rounding of the folded source with the outliers, if any, in their places. */
static ingot_status round_plainly(ingot_quantized *q, const work *k,
                                  const ingot_outliers *outliers) {
    INGOT_TRY(k->ops->quantize_rtn(k->context, q, k->source));
    return outliers->count == 0
               ? INGOT_OK
               : k->ops->outliers_place(k->context, q, outliers, k->source, k->arena);
}

static bool has_loop(ingot_method method) {
    return method == INGOT_METHOD_GPTQ || method == INGOT_METHOD_AWQ_GPTQ;
}

/* The column loop and the polish. */
static ingot_status loop_and_polish(const work *k, result *r, ingot_steps_taken *steps) {
    const ingot_linear_job *job = k->job;
    const ingot_gptq_factor *factor = job->data.factor;
    INGOT_TRY(k->ops->quantize_gptq(k->context, &r->q, k->w, factor, for_call(k)));
    if (job->polish_rounds == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(quadratic(&steps->gptq, k, k->w, &r->q, job->data.gram));
    return k->ops->quantize_polish(k->context, &r->q, k->w, job->data.gram, factor->importance,
                                   job->polish_rounds, for_call(k));
}

/* Quantizes by the method; INGOT_METHOD_RTN with outliers keeps the plain scales. */
static ingot_status by_method(const work *k, result *r, ingot_ledger *ledger,
                              ingot_steps_taken *steps) {
    ingot_quantized *q = &r->q;
    const ingot_linear_job *job = k->job;
    const ingot_gptq_factor *factor = job->data.factor;
    const float *importance = factor != NULL ? factor->importance : NULL;
    if (job->outlier_count != 0) {
        INGOT_TRY(k->ops->quantize_search(k->context, q, k->w, importance, for_call(k)));
        INGOT_TRY(k->ops->outliers_choose(k->context, q, k->w, importance, job->outlier_count,
                                          job->outlier_dtype, k->arena, for_call(k)));
        steps->left_out = (double)q->outliers.left_out;
        INGOT_TRY(ingot_outlier_gain(&steps->outliers, &steps->groups, job, k->w, &q->outliers,
                                     importance, for_call(k)));
    }
    const bool is_gptq = has_loop(job->method);
    if (job->method == INGOT_METHOD_RTN) {
        const ingot_outliers outliers = q->outliers;
        q->outliers.count = 0;
        return round_plainly(q, k, &outliers);
    }
    if (is_gptq && factor != NULL && factor->damping_step != 255) {
        return loop_and_polish(k, r, steps);
    }
    if (is_gptq || job->method == INGOT_METHOD_AWQ) {
        ledger->fallback = factor == NULL ? INGOT_FALLBACK_NO_DATA
                           : is_gptq      ? INGOT_FALLBACK_NOT_POSITIVE
                                          : INGOT_FALLBACK_NONE;
        ledger->method =
            ledger->fallback == INGOT_FALLBACK_NONE ? job->method : INGOT_METHOD_SEARCHED;
    }
    return k->ops->quantize_search(k->context, q, k->w, importance, for_call(k));
}

/* ---- the yardstick -------------------------------------------------------------------------- */

/* Plain rounding of the unfolded source with 16-bit scales: its errors go into the ledger.
 * unfolded: the target without folds. */
static ingot_status measure_plain(result *plain, const work *k, const float *unfolded,
                                  ingot_ledger *ledger) {
    work own = *k;
    ingot_linear_job job = *k->job;
    if (job.row_fold != NULL || job.column_fold != NULL) {
        const ingot_weight_view *v = job.source;
        float *w;
        job.row_fold = job.column_fold = NULL;
        job.data.gram = job.data.plain_gram;
        INGOT_TRY(ingot_arena_array(k->scratch, (void **)&w, v->rows * v->cols, sizeof *w));
        INGOT_TRY(ingot_linear_values(w, &job, k->error));
        own.job = &job;
        own.source = w;
        own.w = unfolded != NULL ? unfolded : w;
        INGOT_TRY(quadratic(&own.norm, &own, own.w, NULL, job.data.gram));
    }
    const ingot_dtype dtype = job.format.scale_dtype;
    INGOT_TRY(create(plain, &own, dtype == INGOT_F32 ? INGOT_F16 : dtype));
    INGOT_TRY(k->ops->quantize_rtn(k->context, &plain->q, own.source));
    INGOT_TRY(measure(plain, &own));
    ledger->weight_error_rtn = plain->weight_error;
    ledger->output_error_rtn = plain->output_error;
    return INGOT_OK;
}

/* ---- the bound ------------------------------------------------------------------------------ */

/* What the scales of plain rounding tell about a matrix: the sum over weights of the squared step;
 * groups that would need a greater scale than there is, and groups whose scale is too small to be
 * precise. */
enum { SQUARED, LARGE, SMALL, STEP_SUMS };

/* Adds the scales of `plain`, which may have another type than the job says. */
static ingot_status add_steps(double sums[STEP_SUMS], const work *k, const ingot_quantized *plain) {
    const ingot_dtype own = k->job->format.scale_dtype, dtype = plain->format.scale_dtype;
    const double least = (double)ingot_scale_least(own);
    const double precise = own == INGOT_F16 ? 0x1p-17 : least; /* from here on as BF16 */
    const uint64_t count = plain->rows * plain->groups, group = plain->format.group;
    void *memory;
    INGOT_TRY(ingot_alloc(&memory, count * sizeof *plain->scales));
    const ingot_status status =
        k->ops->download(k->context, memory, plain->scales, count * sizeof *plain->scales);
    for (uint64_t i = 0; status == INGOT_OK && i < count; i++) {
        const uint64_t width = ingot_min_u64(group, plain->cols - i % plain->groups * group);
        const double step = (double)((const float *)memory)[i];
        const double stored = step > least ? step : least;
        sums[SQUARED] += (double)width * stored * stored;
        /* the greatest scale of the type that it is in may have been a greater one */
        sums[LARGE] +=
            step > (double)ingot_scale_greatest(own) || step >= (double)ingot_scale_greatest(dtype);
        sums[SMALL] += step < precise;
    }
    ingot_free(memory);
    return status;
}

static ingot_status refuse(const work *k, const char *reason) {
    const ingot_linear_job *job = k->job;
    const ingot_dtype dtype = job->format.scale_dtype;
    return ingot_error_set(k->error, INGOT_ERR_NUMERIC, job->file, job->name,
                           dtype == INGOT_F16 ? "a rule of a recipe gives it scale_dtype \"bf16\""
                                              : "keep the tensor by a rule of a recipe",
                           "its weights are too %s for %s scales", reason, ingot_dtype_name(dtype));
}

/* *bound = the largest weight error that a verifier accepts (spec/quality.md, "Bound on the weight
 * error"), or, steps being of FP32 here, the next smaller one. */
static ingot_status bound_error(double *bound, const work *k) {
    const ingot_linear_job *job = k->job;
    ingot_quant_format format = job->format;
    ingot_quantized q;
    double sums[STEP_SUMS + 2] = {0}, *errors = sums + STEP_SUMS;
    ingot_arena *call = for_call(k);
    format.scale_dtype = INGOT_F32;
    INGOT_TRY(ingot_quantized_create(&q, job->source->rows, job->source->cols, &format, call));
    INGOT_TRY(k->ops->quantize_rtn(k->context, &q, k->source));
    INGOT_TRY(add_steps(sums, k, &q));
    INGOT_TRY(k->ops->weight_error(k->context, errors, job->source, job->row_fold, job->column_fold,
                                   &q, call));
    INGOT_TRY(ingot_team_sum_host(&job->rank, sums, STEP_SUMS + 2));
    const double norm = errors[1];
    *bound = sums[SQUARED] < norm ? sqrt(sums[SQUARED] / norm) * (1 - 0x1p-20) : 1;
    return sums[LARGE] == 0 ? INGOT_OK : refuse(k, "large");
}

/* A result that cannot be made valid is not made. */
static ingot_status check_error(const work *k, const result *r, double bound) {
    return r->weight_error <= bound ? INGOT_OK : refuse(k, "small");
}

/* Plain rounding is half a step from the source at most where its scales are precise. */
static ingot_status check_plain(const work *k, const result *plain) {
    double sums[STEP_SUMS] = {0}, bound;
    INGOT_TRY(add_steps(sums, k, &plain->q));
    INGOT_TRY(ingot_team_sum_host(&k->job->rank, sums, STEP_SUMS));
    if (sums[LARGE] + sums[SMALL] == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(bound_error(&bound, k));
    return check_error(k, plain, bound);
}

/* Worse than plain rounding under H, or so far from the source that a verifier could not tell it
 * from a damaged one; where H does not tell (none, beyond FP32, no input at all) in its weights. */
static bool is_worse(const result *r, const result *plain, bool has_gram, double bound) {
    const bool is_farther = !(r->weight_error <= plain->weight_error);
    return has_gram && isfinite(plain->loss) && r->loss != plain->loss
               ? !(r->loss < plain->loss) || (is_farther && !(r->weight_error <= bound))
               : is_farther;
}

/* Replaces the result by plain rounding of the folded source, with the same outliers and scale
 * type, when that is better.  yardstick: the result of measure_plain. */
static ingot_status guard(result *r, const work *k, ingot_ledger *ledger, const result *yardstick,
                          double bound) {
    const ingot_linear_job *job = k->job;
    const bool is_same = job->row_fold == NULL && job->column_fold == NULL &&
                         r->q.outliers.count == 0 && job->format.scale_dtype != INGOT_F32;
    result plain = *yardstick;
    if (!is_same) {
        INGOT_TRY(create(&plain, k, job->format.scale_dtype));
        INGOT_TRY(round_plainly(&plain.q, k, &r->q.outliers));
        INGOT_TRY(measure(&plain, k));
    }
    if (is_worse(r, &plain, job->data.gram != NULL, bound)) {
        *r = plain;
        ledger->fallback = INGOT_FALLBACK_WORSE_THAN_RTN;
        ledger->method = INGOT_METHOD_RTN;
    }
    return INGOT_OK;
}

/* ---- the target ----------------------------------------------------------------------------- */

/* The target in place of the source: *unfolded before folds, k->w under them. */
static ingot_status correct(work *k, float **unfolded, ingot_steps_taken *steps) {
    const ingot_linear_job *job = k->job;
    const ingot_weight_view *v = job->source;
    const uint64_t count = v->rows * v->cols;
    const bool is_folded = job->row_fold != NULL || job->column_fold != NULL;
    const float *plain = k->source;
    ingot_arena *call = for_call(k);
    float *folded;
    INGOT_TRY(ingot_arena_array(k->scratch, (void **)unfolded, count, sizeof **unfolded));
    if (is_folded) {
        ingot_linear_job source = *job;
        float *w;
        source.row_fold = source.column_fold = NULL;
        INGOT_TRY(ingot_arena_array(call, (void **)&w, count, sizeof *w));
        INGOT_TRY(ingot_linear_values(w, &source, k->error));
        plain = w;
    }
    ingot_rank rank = job->rank;
    rank.backend = job->backend;
    INGOT_TRY(ingot_correct(*unfolded, &steps->share, &steps->gain, job->data.drift, plain,
                            job->first_row, v->rows, v->cols, &rank, call));
    k->w = *unfolded;
    if (!is_folded) {
        return INGOT_OK;
    }
    const ingot_weight_view target = {.kind = INGOT_DENSE,
                                      .rows = v->rows,
                                      .cols = v->cols,
                                      .dtype = INGOT_F32,
                                      .data = *unfolded};
    ingot_linear_job fold = *job;
    fold.source = &target;
    INGOT_TRY(ingot_arena_array(k->scratch, (void **)&folded, count, sizeof *folded));
    INGOT_TRY(ingot_linear_values(folded, &fold, k->error));
    k->w = folded;
    return INGOT_OK;
}

/* ---- all of it ------------------------------------------------------------------------------ */

static void begin_ledger(ingot_ledger *ledger, const ingot_linear_job *job) {
    ingot_ledger_copy(ledger);
    ledger->method = job->method;
    ledger->is_folded = job->row_fold != NULL || job->column_fold != NULL;
    ledger->tokens_seen = job->data.tokens;
    if (job->data.factor != NULL) {
        ledger->damping_step = job->data.factor->damping_step;
        ledger->damping = job->data.factor->damping;
        ledger->dead_columns = job->data.factor->dead_columns;
    }
}

/* As ingot_linear_quantize; *strays: the correction took the weights too far from the source. */
static ingot_status quantize(ingot_quantized *out, ingot_ledger *ledger, ingot_steps_taken *steps,
                             double *bound, bool *strays, const ingot_linear_job *job,
                             ingot_arena *arena, ingot_arena *scratch, ingot_arena *call,
                             ingot_error *error) {
    const ingot_weight_view *v = job->source;
    float *w, *unfolded = NULL;
    INGOT_TRY(ingot_arena_array(scratch, (void **)&w, v->rows * v->cols, sizeof *w));
    INGOT_TRY(ingot_linear_values(w, job, error));
    work k = {.job = job,
              .ops = job->backend->ops,
              .context = job->backend->context,
              .source = w,
              .w = w,
              .arena = arena,
              .scratch = scratch,
              .call = call,
              .error = error};
    begin_ledger(ledger, job);
    *steps = (ingot_steps_taken){NAN, NAN, NAN, NAN, NAN, NAN, NAN};
    *bound = (double)NAN;
    const ingot_drift *drift = job->data.drift;
    const bool is_corrected = has_loop(job->method) && drift != NULL && drift->solved != NULL;
    if (is_corrected) {
        INGOT_TRY(correct(&k, &unfolded, steps));
    }
    result chosen, plain;
    INGOT_TRY(quadratic(&k.norm, &k, k.w, NULL, job->data.gram));
    INGOT_TRY(create(&chosen, &k, job->format.scale_dtype));
    INGOT_TRY(by_method(&k, &chosen, ledger, steps));
    INGOT_TRY(measure(&chosen, &k));
    const bool is_plain = job->method == INGOT_METHOD_RTN && job->outlier_count == 0 &&
                          !ledger->is_folded && job->format.scale_dtype != INGOT_F32;
    if (is_plain) {
        ledger->weight_error_rtn = chosen.weight_error;
        ledger->output_error_rtn = chosen.output_error;
        INGOT_TRY(check_plain(&k, &chosen));
    } else {
        INGOT_TRY(measure_plain(&plain, &k, unfolded, ledger));
        INGOT_TRY(bound_error(bound, &k));
        *strays = is_corrected && chosen.weight_error > *bound;
        steps->gptq = relative(steps->gptq, plain.loss);
        steps->polished = isnan(steps->gptq) ? (double)NAN : relative(chosen.loss, plain.loss);
        INGOT_TRY(guard(&chosen, &k, ledger, &plain, *bound));
        INGOT_TRY(*strays ? INGOT_OK : check_error(&k, &chosen, *bound));
    }
    ledger->weight_error = chosen.weight_error;
    ledger->output_error = chosen.output_error;
    ledger->outliers = chosen.q.outliers.count;
    *out = chosen.q;
    return job->target == NULL
               ? INGOT_OK
               : k.ops->copy(k.context, job->target, k.w, v->rows * v->cols * sizeof *k.w);
}

ingot_status ingot_linear_quantize(ingot_quantized *out, ingot_ledger *ledger,
                                   ingot_steps_taken *steps, double *bound,
                                   const ingot_linear_job *job, ingot_arena *arena,
                                   ingot_arena *scratch, ingot_error *error) {
    bool strays = false;
    ingot_arena *call;
    INGOT_TRY(ingot_backend_arena_create(&call, job->backend));
    ingot_status status =
        quantize(out, ledger, steps, bound, &strays, job, arena, scratch, call, error);
    if (status == INGOT_OK && strays) {
        ingot_linear_job plain = *job;
        plain.data.drift = NULL;
        status = quantize(out, ledger, steps, bound, &strays, &plain, arena, scratch, call, error);
    }
    ingot_arena_destroy(call);
    return status;
}

ingot_status ingot_linear_bound(double *bound, const ingot_linear_job *job, ingot_arena *scratch,
                                ingot_error *error) {
    float *w;
    work k = {
        .job = job, .ops = job->backend->ops, .context = job->backend->context, .error = error};
    ingot_arena_reset(scratch);
    ingot_status status = ingot_backend_arena_create(&k.call, job->backend);
    INGOT_GO(status);
    INGOT_GO(
        ingot_arena_array(scratch, (void **)&w, job->source->rows * job->source->cols, sizeof *w));
    INGOT_GO(ingot_linear_values(w, job, error));
    k.source = w;
    INGOT_GO(bound_error(bound, &k));
done:
    ingot_arena_destroy(k.call);
    return status;
}

ingot_status ingot_linear_strays(bool *strays, const ingot_linear_job *job, double bound,
                                 const ingot_quantized *q, ingot_arena *scratch) {
    double sums[2];
    ingot_arena_reset(scratch);
    INGOT_TRY(job->backend->ops->weight_error(job->backend->context, sums, job->source,
                                              job->row_fold, job->column_fold, q, scratch));
    *strays = !(ingot_weight_error_ratio(sums) <= bound);
    return INGOT_OK;
}

ingot_status ingot_linear_measure(ingot_ledger *ledger, const ingot_linear_job *job,
                                  const float *target, const ingot_quantized *q,
                                  ingot_arena *scratch) {
    work k = {.job = job,
              .ops = job->backend->ops,
              .context = job->backend->context,
              .w = target,
              .call = scratch};
    result r = {.q = *q};
    INGOT_TRY(quadratic(&k.norm, &k, target, NULL, job->data.gram));
    INGOT_TRY(measure(&r, &k));
    ingot_ledger_learn(ledger, job->method, r.weight_error);
    ledger->output_error = r.output_error;
    return INGOT_OK;
}
