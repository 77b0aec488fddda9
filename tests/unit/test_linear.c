/* ops->linear on every device against its FP64 reference: weights of every kind, many rows of x and
 * few.  As tests/unit/test_kernels.c, which holds the other operations. */
#include "backend_devices.h"
#include "backend_inputs.h"
#include "backend_reference.h"

typedef struct linear_case {
    const ingot_weight_view *w;
    const float *bias, *x;
    uint64_t m;
} linear_case;

static void run_linear(const ingot_backend *b, const void *argument, float *out) {
    const linear_case *c = argument;
    const uint64_t bytes = c->m * c->w->rows * sizeof(float);
    ingot_weight_view view;
    CU_ASSERT_FATAL(b->ops->upload_view(b->context, &view, c->w) == INGOT_OK);
    float *x = device_put_floats(b, c->x, c->m * c->w->cols);
    float *bias = device_put_floats(b, c->bias, c->w->rows);
    float *y = device_put(b, NULL, bytes);
    CU_ASSERT(b->ops->linear(b->context, y, &view, bias, x, c->m) == INGOT_OK);
    device_take(b, out, y, bytes);
    device_release(b, x);
    device_release(b, bias);
    b->ops->release_view(b->context, &view);
}

static void check_linear_of(input_weights w, uint64_t m, bool has_bias) {
    const uint64_t rows = w.view.rows, cols = w.view.cols;
    float *x = input_floats(m * cols, 1.0), *bias = input_floats(rows, 0.5);
    double *value = doubles(m * rows), *size = doubles(m * rows);
    const linear_case c = {&w.view, has_bias ? bias : NULL, x, m};
    char what[140];
    const int used = snprintf(what, sizeof what, "linear of %llu rows by ", (unsigned long long)m);
    input_describe(what + used, sizeof what - (size_t)used, &w.view);
    ref_linear(value, size, &w.view, c.bias, x, m);
    device_check(run_linear, &c,
                 &(expected){.what = what,
                             .value = value,
                             .size = size,
                             .count = m * rows,
                             .tolerance = sum_tolerance(cols),
                             .is_product = true});
    free(x);
    free(bias);
    free(value);
    free(size);
    input_weights_free(&w);
}

static void check_linear(unsigned kind, uint64_t m, uint64_t rows, uint64_t cols, bool has_bias) {
    check_linear_of(input_kind(kind, rows, cols), m, has_bias);
}

/* Few rows of x: groups that are parts of a block of sixteen words, blocks, and several of them;
 * more groups in a row than are widened at once; rows that end within a word. */
static void test_few_rows(void) {
    static const uint64_t groups[] = {16, 32, 64, 128, 256, 1024};
    static const ingot_dtype dtypes[] = {INGOT_F32, INGOT_F16, INGOT_BF16};
    for (unsigned i = 0; i < 72; i++) {
        const unsigned bits = i % 3 == 0 ? 2 : i % 3 == 1 ? 4 : 8;
        const uint64_t cols = i % 8 == 7 ? 8192 + input_below(1000) : 1 + input_below(1500);
        const uint64_t drawn = i % 6 == 5 ? cols : groups[input_below(6)];
        const uint64_t group = drawn < cols ? drawn : cols;
        check_linear_of(input_grouped(1 + input_below(5), cols, bits, group,
                                      i % 2 == 0 ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED,
                                      dtypes[input_below(3)], i % 4 == 3),
                        1 + input_below(4), i % 5 == 0);
    }
    report_share();
}

static void test_linear(void) {
    static const uint64_t rows_of_x[] = {1, 2, 3, 4, 5, 17, 33, 129};
    for (unsigned kind = 0; kind < INPUT_KINDS; kind++) {
        for (unsigned i = 0; i < 8; i++) {
            check_linear(kind, rows_of_x[i], input_size(300), input_size(300), i % 2 == 0);
        }
    }
    for (unsigned kind = 0; kind < INPUT_KINDS; kind += 4) { /* more than one tile each way */
        check_linear(kind, 1029, 33, 17, true);
        check_linear(kind, 7, 515, 129, kind % 8 == 0);
        check_linear(kind, 5, 19, 2085, true);
        check_linear(kind, 6, 19, 2085, false);
        check_linear(kind, 3, 19, 4133, false);
    }
    report_share();
}

int main(void) {
    input_start("linear");
    const CU_TestInfo tests[] = {
        {"devices", devices_open}, /* first: the others use them */
        {"linear", test_linear},
        {"linear of few rows", test_few_rows},
        CU_TEST_INFO_NULL,
    };
    const int result = suite_run("linear", tests);
    devices_close();
    return result;
}
