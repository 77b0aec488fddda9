/* Products over a matrix that is being learned (kernels/codes.h), on every device against FP64:
 * both directions, outliers, rows and groups that start at multiples of 8 and others. */
#include "kernels/codes.h"

#include "backend_devices.h"
#include "backend_inputs.h"
#include "backend_reference.h"
#include "backward_reference.h"
#include "common/sizes.h"

typedef struct codes_case {
    const ingot_quantized *q; /* host */
    const float *x, *dy;
    uint64_t m;
} codes_case;

static void *put_part(const ingot_backend *b, const void *part, uint64_t count, uint64_t size) {
    return part != NULL ? device_put(b, part, count * size) : NULL;
}

/* out: x W^T, then dy W. */
static void run_codes(const ingot_backend *b, const void *argument, float *out) {
    const codes_case *c = argument;
    const ingot_quantized *host = c->q;
    ingot_quantized q = *host;
    ingot_outliers *o = &q.outliers;
    const uint64_t n = q.rows * q.cols, groups = q.rows * q.groups;
    q.codes = put_part(b, host->codes, n, 1);
    q.scales = put_part(b, host->scales, groups, sizeof(float));
    q.zeros = put_part(b, host->zeros, groups, 1);
    o->row_ptr = put_part(b, o->row_ptr, q.rows + 1, sizeof *o->row_ptr);
    o->col = put_part(b, o->col, o->count, sizeof *o->col);
    o->val = put_part(b, o->val, o->count, sizeof *o->val);
    float *x = device_put_floats(b, c->x, c->m * q.cols);
    float *dy = device_put_floats(b, c->dy, c->m * q.rows);
    float *y = device_put(b, NULL, c->m * q.rows * sizeof *y), *values = NULL;
    float *dx = device_put(b, NULL, c->m * q.cols * sizeof *dx);
    ingot_weight_view view = ingot_codes_view(&q);
    if (!ingot_backend_reads_codes(b, &q)) {
        values = device_put(b, NULL, n * sizeof *values);
        CU_ASSERT(b->ops->quantized_values(b->context, values, &q) == INGOT_OK);
        view = ingot_values_view(&q, values);
    }
    CU_ASSERT(b->ops->linear(b->context, y, &view, NULL, x, c->m) == INGOT_OK);
    CU_ASSERT(b->ops->linear_backward(b->context, dx, &view, dy, false, c->m) == INGOT_OK);
    device_take(b, out, y, c->m * q.rows * sizeof *y);
    device_take(b, out + c->m * q.rows, dx, c->m * q.cols * sizeof *dx);
    const void *const parts[] = {q.codes, q.scales, q.zeros, o->row_ptr, o->col,
                                 o->val,  x,        dy,      values};
    for (unsigned i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        device_release(b, parts[i]);
    }
}

/* The parts of a grouped view of 8 bits and binary32 scales; codes[rows][cols] is the caller's. */
static ingot_quantized quantized_of(const ingot_weight_view *w, uint8_t *codes) {
    for (uint64_t row = 0; row < w->rows; row++) {
        memcpy(codes + row * w->cols, w->codes + row * w->row_stride_bytes, w->cols);
    }
    return (ingot_quantized){.format = {.bits = 8, .group = w->group, .scale_dtype = INGOT_F32},
                             .rows = w->rows,
                             .cols = w->cols,
                             .groups = w->groups_per_row,
                             .codes = codes,
                             .scales = (float *)(uintptr_t)w->scales,
                             .zeros = (uint8_t *)(uintptr_t)w->zeros,
                             .outliers = {.count = w->outlier_count,
                                          .row_ptr = (uint64_t *)(uintptr_t)w->outlier_row_ptr,
                                          .col = (uint32_t *)(uintptr_t)w->outlier_col,
                                          .val = (float *)(uintptr_t)w->outlier_val,
                                          .dtype = INGOT_F32}};
}

static void check_codes(uint64_t m, uint64_t rows, uint64_t cols, uint64_t group,
                        bool has_outliers) {
    input_weights w = input_grouped(rows, cols, 8, group, INGOT_ZERO_STORED, INGOT_F32, false);
    uint8_t *codes = calloc(rows * cols, 1);
    if (has_outliers) {
        input_add_outliers(&w, (uint8_t *)(uintptr_t)w.view.codes, INGOT_F32);
    }
    const ingot_quantized q = quantized_of(&w.view, codes);
    const ingot_weight_view view = ingot_codes_view(&q);
    float *x = input_floats(m * cols, 1.0), *dy = input_floats(m * rows, 1.0);
    float *row = calloc(2 * cols, sizeof *row), *none = calloc(m * cols, sizeof *none);
    double *value = doubles(m * (rows + cols)), *size = doubles(m * (rows + cols));
    for (uint64_t r = 0; r < rows; r++) { /* of equal bits */
        ingot_weight_row(row, &view, r, cols);
        ingot_quantized_row(row + cols, &q, r);
        CU_ASSERT(memcmp(row, row + cols, cols * sizeof *row) == 0);
    }
    const codes_case c = {&q, x, dy, m};
    ref_linear(value, size, &w.view, NULL, x, m);
    ref_linear_backward(value + m * rows, size + m * rows, &w.view, dy, none, m);
    device_check(run_codes, &c,
                 &(expected){.what = "products over codes",
                             .value = value,
                             .size = size,
                             .count = m * (rows + cols),
                             .tolerance = sum_tolerance(ingot_max_u64(rows, cols)),
                             .is_product = true});
    free(codes);
    free(x);
    free(dy);
    free(row);
    free(none);
    free(value);
    free(size);
    input_weights_free(&w);
}

static void test_codes(void) {
    for (unsigned i = 0; i < input_rounds(24); i++) {
        const uint64_t cols = i % 3 != 0 ? 8 * (1 + input_below(40)) : input_size(300);
        const uint64_t drawn = i % 4 != 0 ? 8 * (1 + input_below(17)) : 1 + input_below(100);
        check_codes(16 + input_below(40), input_size(129), cols, ingot_min_u64(drawn, cols),
                    i % 2 != 0);
    }
    report_share();
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"devices", devices_open},
        {"products over codes", test_codes},
        {"closing", devices_close},
        CU_TEST_INFO_NULL,
    };
    input_start("codes");
    return suite_run("codes", tests);
}
