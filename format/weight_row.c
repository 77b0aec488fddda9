/* The reference dequantizer: plain, slow, exact (spec/quantization.md, "Values"). */
#include "format/half.h"
#include "format/pack.h"

static float element(const void *values, ingot_dtype dtype, uint64_t index) {
    float value;
    const uint64_t bytes = ingot_dtype_bytes(dtype);
    ingot_convert_to_f32(&value, (const uint8_t *)values + index * bytes, dtype, 1);
    return value;
}

void ingot_weight_row(float *out, const ingot_weight_view *view, uint64_t row, uint64_t count) {
    if (view->kind == INGOT_DENSE) {
        const uint64_t bytes = ingot_dtype_bytes(view->dtype);
        ingot_convert_to_f32(out, (const uint8_t *)view->data + row * view->cols * bytes,
                             view->dtype, count);
        return;
    }
    const uint8_t *codes = view->codes + row * view->row_stride_bytes;
    for (uint64_t col = 0; col < count; col++) {
        const uint64_t group = row * view->groups_per_row + col / view->group;
        const int zero =
            view->zero_mode == INGOT_ZERO_STORED ? view->zeros[group] : 1 << (view->bits - 1);
        uint8_t code;
        ingot_unpack_row(&code, codes, col, 1, view->bits);
        out[col] = element(view->scales, view->scale_dtype, group) * (float)((int)code - zero);
    }
    if (view->outlier_count == 0) {
        return;
    }
    for (uint64_t i = view->outlier_row_ptr[row]; i < view->outlier_row_ptr[row + 1]; i++) {
        if (view->outlier_col[i] < count) {
            out[view->outlier_col[i]] = element(view->outlier_val, view->dtype, i);
        }
    }
}
