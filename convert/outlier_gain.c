/* Outliers beside smaller groups (convert/outlier_gain.h). */
#include "convert/outlier_gain.h"

#include "common/sizes.h"
#include "format/pack.h"

#include <math.h>

double ingot_outlier_gain_bits(const ingot_quant_format *format, uint64_t rows, uint64_t cols,
                               uint64_t outliers, ingot_dtype dtype) {
    const uint64_t groups = rows * ingot_ceil_div(cols, format->group);
    const uint64_t of_group =
        ingot_dtype_bytes(format->scale_dtype) + (format->zero_mode == INGOT_ZERO_STORED ? 1 : 0);
    const uint64_t of_outlier = sizeof(uint32_t) + ingot_dtype_bytes(dtype);
    const uint64_t sparse =
        outliers == 0 ? 0 : (rows + 1) * sizeof(uint64_t) + outliers * of_outlier;
    const uint64_t bytes =
        rows * ingot_pack_row_bytes(cols, format->bits) + groups * of_group + sparse;
    return 8 * (double)bytes / ((double)rows * (double)cols);
}

uint64_t ingot_outlier_gain_group(const ingot_quant_format *format, uint64_t rows, uint64_t cols,
                                  uint64_t outliers, ingot_dtype dtype) {
    static const uint64_t groups[] = {32, 64, 128}; /* of the format, but for whole rows */
    const double most = ingot_outlier_gain_bits(format, rows, cols, outliers, dtype);
    for (unsigned i = 0; i < sizeof groups / sizeof groups[0] && groups[i] < format->group; i++) {
        ingot_quant_format smaller = *format;
        smaller.group = groups[i];
        if (groups[i] < cols && ingot_outlier_gain_bits(&smaller, rows, cols, 0, dtype) <= most) {
            return groups[i];
        }
    }
    return 0;
}

/* *error = of w rounded with searched scales in groups of `group`. */
static ingot_status round_in(double *error, const ingot_linear_job *job, const float *w,
                             uint64_t group, const ingot_outliers *outliers,
                             const float *importance, ingot_arena *scratch) {
    const ingot_backend_ops *ops = job->backend->ops;
    void *context = job->backend->context;
    const uint64_t rows = job->source->rows, cols = job->source->cols;
    ingot_quant_format format = job->format;
    ingot_quantized q;
    format.group = group;
    INGOT_TRY(ingot_quantized_create(&q, rows, cols, &format, scratch));
    q.outliers = *outliers;
    INGOT_TRY(ops->quantize_search(context, &q, w, importance, scratch));
    if (job->data.gram != NULL) {
        double loss;
        INGOT_TRY(ops->quadratic_loss(context, &loss, w, rows, cols, &q, job->data.gram, scratch));
        *error = sqrt(fmax(loss, 0));
        return INGOT_OK;
    }
    double sums[2] = {0};
    INGOT_TRY(ops->weight_error(context, sums, job->source, job->row_fold, job->column_fold, &q,
                                scratch));
    *error = ingot_weight_error_ratio(sums);
    return INGOT_OK;
}

ingot_status ingot_outlier_gain(double *outliers, double *groups, const ingot_linear_job *job,
                                const float *w, const ingot_outliers *chosen,
                                const float *importance, ingot_arena *scratch) {
    const ingot_outliers none = {.dtype = chosen->dtype};
    const uint64_t group = ingot_outlier_gain_group(
        &job->format, job->source->rows, job->source->cols, chosen->count, chosen->dtype);
    double without;
    *groups = NAN;
    INGOT_TRY(round_in(&without, job, w, job->format.group, &none, importance, scratch));
    INGOT_TRY(round_in(outliers, job, w, job->format.group, chosen, importance, scratch));
    *outliers = without > 0 ? *outliers / without : (double)NAN;
    if (group == 0 || !(without > 0)) {
        return INGOT_OK;
    }
    INGOT_TRY(round_in(groups, job, w, group, &none, importance, scratch));
    *groups /= without;
    return INGOT_OK;
}
