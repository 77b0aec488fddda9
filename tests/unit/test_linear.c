/* ops->linear on every device against its FP64 reference: weights of every kind, many rows of x and
 * few.  As tests/unit/test_kernels.c, which holds the other operations. */
#include "backend_devices.h"
#include "backend_inputs.h"
#include "backend_reference.h"
#include "kernels/cpu/cpu.h"

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

/* sum |w| largest, of the values of x among sixteen neighbours: these share a scale, or fewer do.
 */
static double *word_sizes(const ingot_weight_view *w, const float *x, uint64_t m) {
    double *size = doubles(m * w->rows);
    for (uint64_t i = 0; i < m; i++) {
        for (uint64_t k = 0; k < w->cols; k += 16) {
            double largest = 0;
            for (uint64_t j = k; j < k + 16 && j < w->cols; j++) {
                largest = fmax(largest, fabs((double)x[i * w->cols + j]));
            }
            for (uint64_t r = 0; r < w->rows; r++) {
                for (uint64_t j = k; j < k + 16 && j < w->cols; j++) {
                    size[i * w->rows + r] += largest * fabs(ref_weight(w, r, j));
                }
            }
        }
    }
    return size;
}

/* Values of one sign and another, some of them far from the others, and zeros. */
static float *activations(uint64_t count) {
    float *x = input_floats(count, 1.0);
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t kind = input_below(60);
        x[i] *= kind == 0 ? 300.0f : kind == 1 ? 1e-4f : kind == 2 ? 0.0f : 1.0f;
    }
    return x;
}

static void check_linear_of(input_weights w, uint64_t m, bool has_bias) {
    const uint64_t rows = w.view.rows, cols = w.view.cols;
    const bool is_rounded = m <= INGOT_CPU_DOT_ROWS && w.view.kind == INGOT_GROUPED;
    float *x = is_rounded ? activations(m * cols) : input_floats(m * cols, 1.0);
    float *bias = input_floats(rows, 0.5);
    double *value = doubles(m * rows), *size = doubles(m * rows);
    double *word_size = is_rounded ? word_sizes(&w.view, x, m) : NULL;
    const linear_case c = {&w.view, has_bias ? bias : NULL, x, m};
    char what[140];
    const int used = snprintf(what, sizeof what, "linear of %llu rows by ", (unsigned long long)m);
    input_describe(what + used, sizeof what - (size_t)used, &w.view);
    ref_linear(value, size, &w.view, c.bias, x, m);
    device_check(run_linear, &c,
                 &(expected){.what = what,
                             .value = value,
                             .size = size,
                             .word_size = word_size,
                             .count = m * rows,
                             .tolerance = sum_tolerance(cols),
                             .is_product = true});
    free(x);
    free(bias);
    free(value);
    free(size);
    free(word_size);
    input_weights_free(&w);
}

static void check_linear(unsigned kind, uint64_t m, uint64_t rows, uint64_t cols, bool has_bias) {
    check_linear_of(input_kind(kind, rows, cols), m, has_bias);
}

/* A value that is not finite makes every sum with it so; values next to nothing vanish. */
static void test_special_values(void) {
    static const float special[] = {NAN, INFINITY, -INFINITY, 1e-42f, 1e30f};
    for (unsigned bits = 2; bits <= 8; bits++) {
        input_weights w = input_grouped(3, 200, bits, 32, INGOT_ZERO_STORED, INGOT_F32, false);
        for (unsigned i = 0; i < input_rounds(5); i++) {
            float *x = input_floats(200, 0.0), y[3];
            x[input_below(200)] = special[i];
            for (unsigned d = 0; d < DEVICES; d++) {
                if (!devices[d].is_open || devices[d].isa == NULL) {
                    continue;
                }
                const ingot_backend *b = &devices[d].backend[0];
                CU_ASSERT(b->ops->linear(b->context, y, &w.view, NULL, x, 1) == INGOT_OK);
                for (unsigned r = 0; r < 3; r++) {
                    CU_ASSERT(isfinite(special[i]) == (isfinite(y[r]) != 0));
                    CU_ASSERT(i != 3 || fabsf(y[r]) < 1e-30f);
                }
            }
            free(x);
        }
        input_weights_free(&w);
    }
}

/* Few rows of x: groups that are parts of a block of sixteen words, blocks, and several of them;
 * more groups in a row than are widened at once; rows that end within a word. */
static void test_few_rows(void) {
    static const uint64_t groups[] = {8, 16, 24, 32, 64, 128, 256, 1024};
    static const ingot_dtype dtypes[] = {INGOT_F32, INGOT_F16, INGOT_BF16};
    for (unsigned i = 0; i < input_rounds(168); i++) {
        const unsigned bits = 2 + i % 7;
        const uint64_t cols = i % 8 == 7 ? 8192 + input_below(1000) : 1 + input_below(1500);
        const uint64_t drawn = i % 6 == 5 ? cols : groups[input_below(8)];
        const uint64_t group = drawn < cols ? drawn : cols;
        check_linear_of(input_grouped(1 + input_below(i % 4 == 0 ? 70 : 5), cols, bits, group,
                                      i % 2 == 0 ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED,
                                      dtypes[input_below(3)], i % 4 == 3),
                        1 + input_below(4), i % 5 == 0);
    }
    report_share();
}

static void test_linear(void) {
    static const uint64_t rows_of_x[] = {1, 2, 3, 4, 5, 17, 33, 129};
    for (unsigned kind = 0; kind < INPUT_KINDS; kind++) {
        for (unsigned i = 0; i < input_rounds(8); i++) {
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
        {"values that are not finite", test_special_values},
        CU_TEST_INFO_NULL,
    };
    const int result = suite_run("linear", tests);
    devices_close();
    return result;
}
