/* Fold vectors: finding those behind a tensor, and proving that they cancel. */
#include "verify/source_folds.h"

#include "verify/source_check.h"

#include <math.h>
#include <string.h>

#define AUX_NAME_SIZE (INGOT_NAME_SIZE + 16)

bool ingot_is_auxiliary(const ingot_container *container, const ingot_tensor *tensor) {
    if (tensor->kind == INGOT_ALIAS) {
        tensor = ingot_tensor_at(container, tensor->alias_of);
    }
    return tensor->kind == INGOT_AUXILIARY;
}

/* Values of the fold vector NAME + suffix of `count` elements; NULL when there is none such. */
static ingot_status load_vector(const float **out, const ingot_verification *verification,
                                const char *name, const char *suffix, uint64_t count,
                                ingot_arena *arena, ingot_error *error) {
    char full[AUX_NAME_SIZE];
    uint64_t index;
    *out = NULL;
    (void)snprintf(full, sizeof full, "%s%s", name, suffix);
    const ingot_tensor *tensor = ingot_tensor_find(verification->container, full, &index);
    if (tensor == NULL || !ingot_is_auxiliary(verification->container, tensor)) {
        return INGOT_OK;
    }
    void *buffer;
    ingot_weight_view view;
    INGOT_TRY(
        ingot_arena_alloc(arena, &buffer, ingot_tensor_load_bytes(verification->container, index)));
    INGOT_TRY(ingot_tensor_load(verification->container, index, !verification->is_full, buffer,
                                &view, error));
    if (view.rows == 1 && view.cols == count && view.dtype == INGOT_F32) {
        *out = view.data;
    }
    return INGOT_OK;
}

/* The #fold of the linears behind a norm, which the norm was divided by. */
static ingot_status load_divisor(ingot_folds *out, const ingot_verification *verification,
                                 const ingot_tensor *norm, ingot_arena *arena, ingot_error *error) {
    const ingot_model *model = &verification->model;
    char name[INGOT_NAME_SIZE];
    const char *dot = strrchr(norm->name, '.');
    const size_t stem = dot == NULL ? strlen(norm->name) : (size_t)(dot - norm->name) + 1;
    for (unsigned i = 0; i < model->fold_count; i++) {
        const ingot_fold_desc *fold = &model->fold[i];
        for (uint64_t layer = 0; fold->is_norm && layer < model->layers; layer++) {
            /* The stem, so that the bias of a norm is found with its weight. */
            if (ingot_model_norm_name(model, layer, fold->slot, name) &&
                strncmp(name, norm->name, stem) == 0) {
                ingot_model_linear_name(model, layer, fold->consumers[0], name);
                return load_vector(&out->divisor, verification, name, "#fold", norm->cols, arena,
                                   error);
            }
        }
    }
    return INGOT_OK;
}

ingot_status ingot_folds_load(ingot_folds *out, const ingot_verification *verification,
                              const ingot_tensor_report *report, ingot_arena *arena,
                              ingot_error *error) {
    const ingot_tensor *tensor = report->tensor;
    char name[INGOT_NAME_SIZE];
    *out = (ingot_folds){0};
    switch (report->class) {
    case INGOT_CLASS_LINEAR:
        INGOT_TRY(load_vector(&out->row, verification, tensor->name, "#rowfold", tensor->rows,
                              arena, error));
        return load_vector(&out->column, verification, tensor->name, "#fold", tensor->cols, arena,
                           error);
    case INGOT_CLASS_BIAS:
        ingot_model_linear_name(&verification->model, report->layer, report->role, name);
        return load_vector(&out->column, verification, name, "#rowfold", tensor->cols, arena,
                           error);
    case INGOT_CLASS_NORM:
        return load_divisor(out, verification, tensor, arena, error);
    case INGOT_CLASS_EMBED:
    case INGOT_CLASS_HEAD:
    case INGOT_CLASS_UNKNOWN:
        break;
    }
    return INGOT_OK;
}

/* ---- do they cancel? ------------------------------------------------------------------------ */

static ingot_tensor_report *report_of(const ingot_verification *verification, const char *name,
                                      const char *suffix) {
    char full[AUX_NAME_SIZE];
    uint64_t index;
    (void)snprintf(full, sizeof full, "%s%s", name, suffix);
    return ingot_tensor_find(verification->container, full, &index) != NULL
               ? &verification->tensors[index]
               : NULL;
}

static void reject(ingot_tensor_report *report, const char *reason) {
    if (report != NULL) {
        report->source_verdict = INGOT_VERDICT_NO;
        (void)snprintf(report->source_reason, sizeof report->source_reason, "%s", reason);
    }
}

static void accept(ingot_tensor_report *report) {
    if (report != NULL && report->source_verdict == INGOT_VERDICT_NONE) {
        report->source_verdict = INGOT_VERDICT_YES;
    }
}

static bool is_usable(const float *vector, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        if (!isfinite(vector[i]) || vector[i] == 0) {
            return false;
        }
    }
    return true;
}

/* Column c of a consumer is fed by this row of the producer. */
static uint64_t producer_row(const ingot_fold_desc *fold, uint64_t column) {
    if (fold->repeat <= 1) {
        return column;
    }
    return column / (fold->repeat * fold->head_dim) * fold->head_dim + column % fold->head_dim;
}

/* The vector of one consumer against that of the first one, and against the producer's rows. */
static const char *judge_consumer(const ingot_fold_desc *fold, const float *vector,
                                  const float *first, const float *rows, uint64_t count,
                                  uint64_t row_count) {
    if (vector == NULL || first == NULL) {
        return "linears with the same input have different fold scales";
    }
    if (!is_usable(vector, count)) {
        return "a fold scale is zero or not finite";
    }
    if (memcmp(vector, first, count * sizeof *vector) != 0) {
        return "linears with the same input have different fold scales";
    }
    if (fold->is_norm) {
        return NULL; /* the norm was compared with source / fold */
    }
    if (rows == NULL || producer_row(fold, count - 1) >= row_count) {
        return "the producer of this input is not folded";
    }
    for (uint64_t c = 0; c < count; c++) {
        const double product = (double)vector[c] * (double)rows[producer_row(fold, c)];
        if (!(fabs(product - 1) <= INGOT_FOLD_TOLERANCE)) {
            return "fold scales do not cancel against those of the producer";
        }
    }
    return NULL;
}

static ingot_status check_fold(ingot_verification *verification, const ingot_fold_desc *fold,
                               uint64_t layer, ingot_arena *arena, ingot_error *error) {
    const ingot_model *model = &verification->model;
    char name[INGOT_NAME_SIZE], producer[INGOT_NAME_SIZE];
    const float *vectors[4] = {0}, *rows = NULL;
    bool is_folded = false;
    if (!fold->is_norm) {
        ingot_model_linear_name(model, layer, fold->producer, producer);
        INGOT_TRY(load_vector(&rows, verification, producer, "#rowfold",
                              model->linear[fold->producer].rows, arena, error));
        is_folded = rows != NULL;
    }
    for (unsigned i = 0; i < fold->consumer_count; i++) {
        ingot_model_linear_name(model, layer, fold->consumers[i], name);
        INGOT_TRY(load_vector(&vectors[i], verification, name, "#fold",
                              model->linear[fold->consumers[i]].cols, arena, error));
        is_folded = is_folded || vectors[i] != NULL;
    }
    if (!is_folded) {
        return INGOT_OK;
    }
    const uint64_t row_count = fold->is_norm ? 0 : model->linear[fold->producer].rows;
    for (unsigned i = 0; i < fold->consumer_count; i++) {
        ingot_model_linear_name(model, layer, fold->consumers[i], name);
        ingot_tensor_report *report = report_of(verification, name, "#fold");
        const char *reason = judge_consumer(fold, vectors[i], vectors[0], rows,
                                            model->linear[fold->consumers[i]].cols, row_count);
        if (reason == NULL) {
            accept(report);
            continue;
        }
        /* A consumer without a vector is reported through what it has. */
        reject(report != NULL                   ? report
               : !fold->is_norm && rows != NULL ? report_of(verification, producer, "#rowfold")
                                                : report_of(verification, name, ""),
               reason);
    }
    if (rows != NULL) {
        accept(report_of(verification, producer, "#rowfold"));
    }
    return INGOT_OK;
}

ingot_status ingot_folds_check(ingot_verification *verification, ingot_error *error) {
    ingot_arena *arena = NULL;
    ingot_status status = ingot_arena_create(&arena);
    INGOT_GO(status);
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        ingot_tensor_report *report = &verification->tensors[i];
        if (ingot_is_auxiliary(verification->container, report->tensor)) {
            report->source_verdict = INGOT_VERDICT_NONE;
        }
    }
    for (unsigned i = 0; verification->has_model && i < verification->model.fold_count; i++) {
        for (uint64_t layer = 0; layer < verification->model.layers; layer++) {
            ingot_arena_reset(arena);
            INGOT_GO(check_fold(verification, &verification->model.fold[i], layer, arena, error));
        }
    }
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        ingot_tensor_report *report = &verification->tensors[i];
        if (report->source_verdict == INGOT_VERDICT_NONE) {
            reject(report, "no fold of the model explains this auxiliary tensor");
        }
    }
done:
    ingot_arena_destroy(arena);
    return status;
}
