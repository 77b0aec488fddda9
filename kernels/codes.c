/* Views of a matrix that is being learned (kernels/codes.h). */
#include "kernels/codes.h"

bool ingot_backend_reads_codes(const ingot_backend *backend, const ingot_quantized *q) {
    return backend->has_own_memory && q->cols % 8 == 0 &&
           (q->format.group % 8 == 0 || q->groups == 1);
}

ingot_weight_view ingot_codes_view(const ingot_quantized *q) {
    return (ingot_weight_view){.kind = INGOT_GROUPED,
                               .rows = q->rows,
                               .cols = q->cols,
                               .dtype = INGOT_F32,
                               .bits = 8,
                               .zero_mode = INGOT_ZERO_STORED,
                               .scale_dtype = INGOT_F32,
                               .group = q->format.group,
                               .groups_per_row = q->groups,
                               .row_stride_bytes = q->cols,
                               .codes = q->codes,
                               .scales = q->scales,
                               .zeros = q->zeros,
                               .outlier_count = q->outliers.count,
                               .outlier_row_ptr = q->outliers.row_ptr,
                               .outlier_col = q->outliers.col,
                               .outlier_val = q->outliers.val};
}

ingot_weight_view ingot_values_view(const ingot_quantized *q, const float *values) {
    return (ingot_weight_view){
        .kind = INGOT_DENSE, .rows = q->rows, .cols = q->cols, .dtype = INGOT_F32, .data = values};
}
