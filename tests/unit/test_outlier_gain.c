/* Outliers beside smaller groups (convert/outlier_gain.h): sizes against the file format's, errors
 * against sums in FP64 over the stored values. */
#include "convert/outlier_gain.h"
#include "quantize_inputs.h"

#include <math.h>
#include <string.h>

#define ROWS 48u
#define COLS 512u

static const ingot_quant_format format = {
    .bits = 4, .group = 128, .zero_mode = INGOT_ZERO_SYMMETRIC, .scale_dtype = INGOT_F16};

static void sizes(void) {
    ingot_quant_format f = format;
    CU_ASSERT(ingot_outlier_gain_bits(&f, ROWS, COLS, 0, INGOT_F16) == 4.125);
    /* 48 bits an outlier, 64 a row and one pointer more */
    CU_ASSERT_DOUBLE_EQUAL(ingot_outlier_gain_bits(&f, ROWS, COLS, 96, INGOT_F16),
                           4.125 + 48.0 * 96 / (ROWS * COLS) + 64.0 * 49 / (ROWS * COLS), 1e-12);
    CU_ASSERT(ingot_outlier_gain_group(&f, ROWS, COLS, 0, INGOT_F16) == 0);   /* no size to spend */
    CU_ASSERT(ingot_outlier_gain_group(&f, ROWS, COLS, 8, INGOT_F16) == 64);  /* 4.268 bits: 4.25 */
    CU_ASSERT(ingot_outlier_gain_group(&f, ROWS, COLS, 96, INGOT_F16) == 64); /* 4.44 */
    CU_ASSERT(ingot_outlier_gain_group(&f, ROWS, COLS, 200, INGOT_F16) == 32);
    f.zero_mode = INGOT_ZERO_STORED; /* 24 bits a group */
    CU_ASSERT(ingot_outlier_gain_bits(&f, ROWS, COLS, 0, INGOT_F16) == 4.1875);
    f.group = 32;
    CU_ASSERT(ingot_outlier_gain_group(&f, ROWS, COLS, 200, INGOT_F16) ==
              0); /* there are none smaller */
    f.group = COLS;
    CU_ASSERT(ingot_outlier_gain_group(&f, ROWS, COLS, 8, INGOT_F16) == 128);
}

/* Squared error of w rounded in groups of `group`; weighted by importance where there is one. */
static double reference(const float *w, uint64_t group, const ingot_outliers *outliers,
                        const float *importance, ingot_arena *arena, ingot_pool *pool) {
    ingot_quant_format f = format;
    ingot_quantized q;
    f.group = group;
    CU_ASSERT_FATAL(ingot_quantized_create(&q, ROWS, COLS, &f, arena) == INGOT_OK);
    q.outliers = *outliers;
    CU_ASSERT_FATAL(ingot_quantize_search(&q, w, importance, arena, pool) == INGOT_OK);
    double sum = 0;
    for (uint64_t r = 0; r < ROWS; r++) {
        for (uint64_t j = 0; j < COLS; j++) {
            const uint64_t g = r * q.groups + j / group;
            double value = (double)q.scales[g] * ((int)q.codes[r * COLS + j] - (int)q.zeros[g]);
            for (uint64_t i = outliers->count != 0 ? outliers->row_ptr[r] : 0;
                 outliers->count != 0 && i < outliers->row_ptr[r + 1]; i++) {
                value = outliers->col[i] == j ? (double)outliers->val[i] : value;
            }
            const double lacks = (double)w[r * COLS + j] - value;
            sum += lacks * lacks * (importance != NULL ? (double)importance[j] : 1);
        }
    }
    return sum;
}

/* lone: a weight of every group is 40 times the others. */
static void check_matrix(const ingot_backend *backend, bool has_data, bool is_lone) {
    const uint64_t count = ROWS * COLS / 128;
    const ingot_outliers none = {.dtype = INGOT_F16};
    const ingot_weight_view view = {.kind = INGOT_DENSE, .rows = ROWS, .cols = COLS};
    ingot_linear_job job = {.backend = backend, .source = &view, .format = format};
    ingot_arena *arena;
    ingot_quantized q;
    float *w, *gram, *importance = NULL;
    CU_ASSERT_FATAL(ingot_arena_create(&arena) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&w, ROWS * COLS * sizeof *w) == INGOT_OK);
    for (uint64_t i = 0; i < ROWS * COLS; i++) {
        w[i] = (float)(0.05 * input_normal());
    }
    for (uint64_t i = 0; is_lone && i < count; i++) {
        w[i * 128 + input_below(128)] = 2;
    }
    ingot_weight_view dense = view;
    dense.dtype = INGOT_F32;
    dense.data = w;
    job.source = &dense;
    if (has_data) { /* inputs that have nothing to do with each other */
        CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&gram, COLS * COLS * sizeof *gram) ==
                        INGOT_OK);
        CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&importance, COLS * sizeof *w) ==
                        INGOT_OK);
        memset(gram, 0, COLS * COLS * sizeof *gram);
        for (uint64_t j = 0; j < COLS; j++) {
            importance[j] = gram[j * COLS + j] = (float)(0.5 + input_uniform());
        }
        job.data.gram = gram;
    }
    CU_ASSERT_FATAL(ingot_quantized_create(&q, ROWS, COLS, &format, arena) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_quantize_search(&q, w, importance, arena, backend->pool) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_outliers_choose(&q, w, importance, count, INGOT_F16, arena, arena,
                                          backend->pool) == INGOT_OK);
    double own, other;
    CU_ASSERT_FATAL(ingot_outlier_gain(&own, &other, &job, w, &q.outliers, importance, arena) ==
                    INGOT_OK);
    const uint64_t group = ingot_outlier_gain_group(&format, ROWS, COLS, count, INGOT_F16);
    const double plain = reference(w, 128, &none, importance, arena, backend->pool);
    const double with = reference(w, 128, &q.outliers, importance, arena, backend->pool);
    const double smaller = reference(w, group, &none, importance, arena, backend->pool);
    CU_ASSERT_DOUBLE_EQUAL(own, sqrt(with / plain), 1e-4);
    CU_ASSERT_DOUBLE_EQUAL(other, sqrt(smaller / plain), 1e-4);
    CU_ASSERT(is_lone ? own < 0.5 * other : other < own);
    ingot_arena_destroy(arena);
}

static void gains(void) {
    ingot_backend backend;
    CU_ASSERT_FATAL(ingot_backend_open(&backend, "cpu", 2, NULL) == INGOT_OK);
    for (unsigned i = 0; i < 4; i++) {
        check_matrix(&backend, i % 2 == 1, i / 2 == 1);
    }
    ingot_backend_close(&backend);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"sizes", sizes},
        {"gains", gains},
        CU_TEST_INFO_NULL,
    };
    input_start("outlier gain");
    return suite_run("outlier gain", tests);
}
