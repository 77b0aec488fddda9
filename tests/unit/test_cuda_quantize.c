/* The quantization operations of the cuda backend against those of the cpu, through the operation
 * tables, on fresh random inputs and odd sizes.  What is exact (values, packing, plain rounding) is
 * compared bit for bit; a search may break near ties differently, so its codes agree in nearly
 * every place and its losses closely.  Skipped, loudly, where there is no device. */
#include "kernels/backend.h"
#include "search_reference.h"

#include <math.h>
#include <string.h>

static ingot_backend cuda;
static double largest_loss_error;  /* since it was last reset */
static ingot_arena *host, *device; /* of the case at hand */

#define REQUIRE_OK(call) CU_ASSERT_FATAL((call) == INGOT_OK)

static void begin(void) {
    REQUIRE_OK(ingot_arena_create(&host));
    REQUIRE_OK(ingot_backend_arena_create(&device, &cuda));
}

static void end(void) {
    ingot_arena_destroy(host);
    ingot_arena_destroy(device);
}

static void *to_device(const void *from, uint64_t bytes) {
    void *memory = NULL;
    REQUIRE_OK(ingot_arena_alloc(device, &memory, bytes));
    REQUIRE_OK(cuda.ops->upload(cuda.context, memory, from, bytes));
    return memory;
}

static void *to_host(const void *from, uint64_t bytes) {
    void *memory = NULL;
    REQUIRE_OK(ingot_arena_alloc(host, &memory, bytes));
    REQUIRE_OK(cuda.ops->download(cuda.context, memory, from, bytes));
    return memory;
}

/* A quantized matrix of the device, whole, on the host. */
static ingot_quantized fetch(const ingot_quantized *q) {
    ingot_quantized copy = *q;
    copy.codes = to_host(q->codes, q->rows * q->cols);
    copy.scales = to_host(q->scales, q->rows * q->groups * sizeof(float));
    copy.zeros = to_host(q->zeros, q->rows * q->groups);
    if (q->outliers.count != 0) {
        copy.outliers.row_ptr = to_host(q->outliers.row_ptr, (q->rows + 1) * sizeof(uint64_t));
        copy.outliers.col = to_host(q->outliers.col, q->outliers.count * sizeof(uint32_t));
        copy.outliers.val = to_host(q->outliers.val, q->outliers.count * sizeof(float));
    }
    return copy;
}

static ingot_quantized on_device(uint64_t rows, uint64_t cols, ingot_quant_format format) {
    ingot_quantized q;
    REQUIRE_OK(ingot_quantized_create(&q, rows, cols, &format, device));
    /* poisoned: what is not written is seen */
    const uint64_t groups = rows * q.groups;
    void *poison = NULL;
    REQUIRE_OK(ingot_arena_alloc(host, &poison, rows * cols + 4 * groups));
    memset(poison, 0xa5, rows * cols + 4 * groups);
    REQUIRE_OK(cuda.ops->upload(cuda.context, q.codes, poison, rows * cols));
    REQUIRE_OK(cuda.ops->upload(cuda.context, q.scales, poison, groups * sizeof(float)));
    REQUIRE_OK(cuda.ops->upload(cuda.context, q.zeros, poison, groups));
    return q;
}

/* Share of groups with the same scale and zero point; in those every code must be the same. */
static double equal_groups(const ingot_quantized *a, const ingot_quantized *b) {
    uint64_t same = 0;
    for (uint64_t r = 0; r < a->rows; r++) {
        for (uint64_t g = 0; g < a->groups; g++) {
            const uint64_t at = r * a->groups + g, first = r * a->cols + g * a->format.group;
            const uint64_t left = a->cols - g * a->format.group;
            const uint64_t count = left < a->format.group ? left : a->format.group;
            if (a->scales[at] == b->scales[at] && a->zeros[at] == b->zeros[at]) {
                CU_ASSERT(memcmp(a->codes + first, b->codes + first, count) == 0);
                same++;
            }
        }
    }
    return (double)same / (double)(a->rows * a->groups);
}

/* Share of values that agree to a quarter of a step.  Codes are no measure: a scale and its
 * negative, or windows of codes one apart, store the same values. */
static double agreement(const ingot_quantized *a, const ingot_quantized *b) {
    float *x = NULL, *y = NULL;
    uint64_t same = 0;
    REQUIRE_OK(ingot_arena_alloc(host, (void **)&x, a->cols * sizeof *x));
    REQUIRE_OK(ingot_arena_alloc(host, (void **)&y, a->cols * sizeof *y));
    for (uint64_t r = 0; r < a->rows; r++) {
        ingot_quantized_row(x, a, r);
        ingot_quantized_row(y, b, r);
        for (uint64_t c = 0; c < a->cols; c++) {
            const float step = fabsf(a->scales[r * a->groups + c / a->format.group]);
            same += fabsf(x[c] - y[c]) <= 0.25f * step;
        }
    }
    return (double)same / (double)(a->rows * a->cols);
}

typedef struct shape {
    uint64_t rows, cols, group;
    unsigned bits;
    ingot_zero_mode zero_mode;
    ingot_dtype scale_dtype;
} shape;

static const shape shapes[] = {
    {1, 33, 32, 4, INGOT_ZERO_SYMMETRIC, INGOT_F16},
    {70, 200, 64, 3, INGOT_ZERO_SYMMETRIC, INGOT_F16},
    {129, 384, 128, 4, INGOT_ZERO_SYMMETRIC, INGOT_F16},
    {65, 320, 128, 4, INGOT_ZERO_STORED, INGOT_F16},
    {33, 257, 257, 8, INGOT_ZERO_SYMMETRIC, INGOT_BF16},
    {17, 300, 300, 4, INGOT_ZERO_STORED, INGOT_F32},
    {40, 576, 128, 2, INGOT_ZERO_STORED, INGOT_F16},
    {64, 129, 32, 5, INGOT_ZERO_SYMMETRIC, INGOT_F32},
    {31, 255, 64, 6, INGOT_ZERO_STORED, INGOT_BF16},
    {200, 1024, 128, 3, INGOT_ZERO_SYMMETRIC, INGOT_F16},
    {9, 100, 100, 7, INGOT_ZERO_SYMMETRIC, INGOT_F16},
    {45, 500, 200, 4, INGOT_ZERO_STORED, INGOT_F16},
    {66, 300, 96, 3, INGOT_ZERO_SYMMETRIC, INGOT_BF16},
    {21, 150, 7, 4, INGOT_ZERO_STORED, INGOT_F16},
    {12, 70, 1, 3, INGOT_ZERO_SYMMETRIC, INGOT_F16},
    {130, 1, 1, 8, INGOT_ZERO_STORED, INGOT_F16},
};
#define SHAPES        (sizeof shapes / sizeof shapes[0])
#define SMALL_WEIGHTS 15000u

/* INGOT_TEST_SMALL=1 leaves the larger shapes out: for compute-sanitizer, under which a kernel
 * takes a hundred times as long. */
static bool is_left_out(const shape *s) {
    return getenv("INGOT_TEST_SMALL") != NULL && s->rows * s->cols > SMALL_WEIGHTS;
}

static ingot_quant_format format_of(const shape *s) {
    return (ingot_quant_format){.bits = s->bits,
                                .group = s->group,
                                .zero_mode = s->zero_mode,
                                .scale_dtype = s->scale_dtype};
}

static float *random_importance(uint64_t n) {
    float *d = random_weights(host, n);
    for (uint64_t i = 0; i < n; i++) {
        d[i] = i % 29 == 3 ? 0.0f : d[i] * d[i] * 40.0f + 1e-3f;
    }
    return d;
}

/* ---- exact ------------------------------------------------------------------------------------
 */

static void test_values(void) {
    static const ingot_dtype types[] = {INGOT_F32, INGOT_F16, INGOT_BF16};
    for (unsigned i = 0; i < 12; i++) {
        begin();
        const uint64_t rows = 1 + 37 * i, cols = 3 + 61 * i, n = rows * cols;
        const ingot_dtype dtype = types[i % 3];
        float *w = random_weights(host, n), *row = random_weights(host, rows);
        float *column = random_weights(host, cols), *expected = random_weights(host, n);
        void *stored = NULL;
        REQUIRE_OK(ingot_arena_alloc(host, &stored, n * sizeof(float)));
        if (i % 4 == 3) {
            w[n / 2] = NAN;
            w[n - 1] = INFINITY;
        }
        ingot_convert_from_f32(stored, dtype, w, n);
        ingot_weight_view view = {
            .kind = INGOT_DENSE, .rows = rows, .cols = cols, .dtype = dtype, .data = stored};
        ingot_weight_view there;
        uint64_t bad, bad_there;
        const float *row_fold = i % 2 ? row : NULL, *column_fold = i % 3 ? column : NULL;
        REQUIRE_OK(ingot_quantize_values(expected, &bad, &view, row_fold, column_fold, NULL));
        REQUIRE_OK(cuda.ops->upload_view(cuda.context, &there, &view));
        float *out = to_device(w, n * sizeof *w);
        REQUIRE_OK(cuda.ops->values(cuda.context, out, &bad_there, &there,
                                    row_fold != NULL ? to_device(row, rows * sizeof *row) : NULL,
                                    column_fold != NULL ? to_device(column, cols * sizeof *column)
                                                        : NULL));
        CU_ASSERT(bad == bad_there);
        const float *got = to_host(out, n * sizeof *out);
        uint64_t wrong = 0;
        for (uint64_t k = 0; k < n; k++) {
            wrong += memcmp(&got[k], &expected[k], sizeof *got) != 0 && !isnan(expected[k]);
        }
        CU_ASSERT(wrong == 0);
        cuda.ops->release_view(cuda.context, &there);
        end();
    }
}

static void test_gram_fold(void) {
    static const uint64_t sizes[] = {1, 31, 33, 100, 257};
    for (unsigned i = 0; i < 10; i++) {
        begin();
        const uint64_t n = sizes[i % 5], bytes = n * n * sizeof(float);
        float *gram = random_weights(host, n * n), *fold = random_weights(host, n);
        float *expected = random_weights(host, n * n);
        for (uint64_t k = 0; k < n; k++) {
            fold[k] = fabsf(fold[k]) + 0.1f;
        }
        ingot_gram_fold(expected, gram, i < 5 ? fold : NULL, n, NULL);
        float *in = to_device(gram, bytes), *diagonal = to_device(gram, n * sizeof *gram);
        REQUIRE_OK(cuda.ops->gram_fold(cuda.context, in, in,
                                       i < 5 ? to_device(fold, n * sizeof *fold) : NULL, n));
        REQUIRE_OK(cuda.ops->gram_diagonal(cuda.context, diagonal, in, n));
        const float *got = to_host(in, bytes), *on = to_host(diagonal, n * sizeof *diagonal);
        CU_ASSERT(memcmp(got, expected, bytes) == 0);
        for (uint64_t k = 0; k < n; k++) {
            CU_ASSERT(on[k] == expected[k * n + k]);
        }
        end();
    }
}

static void compare_views(const ingot_weight_view *a, const ingot_weight_view *b) {
    const uint64_t groups = a->rows * a->groups_per_row;
    CU_ASSERT_FATAL(a->row_stride_bytes == b->row_stride_bytes && a->bits == b->bits &&
                    a->outlier_count == b->outlier_count && a->dtype == b->dtype);
    CU_ASSERT(memcmp(a->codes, b->codes, a->rows * a->row_stride_bytes) == 0);
    CU_ASSERT(memcmp(a->scales, b->scales, groups * ingot_dtype_bytes(a->scale_dtype)) == 0);
    CU_ASSERT((a->zeros == NULL) == (b->zeros == NULL));
    CU_ASSERT(a->zeros == NULL || memcmp(a->zeros, b->zeros, groups) == 0);
    if (a->outlier_count != 0) {
        CU_ASSERT(
            memcmp(a->outlier_row_ptr, b->outlier_row_ptr, (a->rows + 1) * sizeof(uint64_t)) == 0);
        CU_ASSERT(memcmp(a->outlier_col, b->outlier_col, a->outlier_count * sizeof(uint32_t)) == 0);
        CU_ASSERT(memcmp(a->outlier_val, b->outlier_val,
                         a->outlier_count * ingot_dtype_bytes(a->dtype)) == 0);
    }
}

/* Plain rounding, its values, its packed parts and its errors, with and without outliers. */
static void test_rtn_and_pack(void) {
    for (unsigned i = 0; i < 2 * SHAPES; i++) {
        const shape *s = &shapes[i / 2];
        if (is_left_out(s)) {
            continue;
        }
        begin();
        const uint64_t n = s->rows * s->cols;
        float *w = random_weights(host, n);
        const ingot_quant_format format = format_of(s);
        float *there = to_device(w, n * sizeof *w);
        ingot_quantized q = new_quantized(s->rows, s->cols, format, host);
        ingot_quantized r = on_device(s->rows, s->cols, format);
        ingot_quantize_rtn(&q, w, NULL);
        REQUIRE_OK(cuda.ops->quantize_rtn(cuda.context, &r, there));
        if (i % 2 != 0) {
            const ingot_dtype dtype = i % 4 == 1 ? INGOT_F16 : INGOT_F32;
            const uint64_t count = 1 + n / 50;
            REQUIRE_OK(ingot_outliers_choose(&q, w, NULL, count, dtype, host, host, NULL));
            REQUIRE_OK(cuda.ops->outliers_choose(cuda.context, &r, there, NULL, count, dtype,
                                                 device, device));
            const ingot_outliers a = q.outliers, b = r.outliers;
            REQUIRE_OK(ingot_outliers_place(&q, &a, w, host));
            REQUIRE_OK(cuda.ops->outliers_place(cuda.context, &r, &b, there, device));
        }
        ingot_quantized got = fetch(&r);
        CU_ASSERT(memcmp(got.scales, q.scales, q.rows * q.groups * sizeof(float)) == 0);
        CU_ASSERT(memcmp(got.zeros, q.zeros, q.rows * q.groups) == 0);
        CU_ASSERT(memcmp(got.codes, q.codes, n) == 0);
        ingot_weight_view packed, packed_there, fetched;
        REQUIRE_OK(ingot_quantized_pack(&packed, &q, host, NULL));
        REQUIRE_OK(cuda.ops->quantized_pack(cuda.context, &packed_there, &r, device));
        REQUIRE_OK(cuda.ops->download_view(cuda.context, &fetched, &packed_there, host));
        compare_views(&packed, &fetched);
        float *expected = random_weights(host, n), *out = to_device(w, n * sizeof *w);
        ingot_quantized_values(expected, &q, NULL);
        REQUIRE_OK(cuda.ops->quantized_values(cuda.context, out, &r));
        CU_ASSERT(memcmp(to_host(out, n * sizeof *out), expected, n * sizeof *expected) == 0);
        end();
    }
}

/* ---- errors -----------------------------------------------------------------------------------
 */

/* The same view over device memory. */
static ingot_weight_view view_to_device(const ingot_weight_view *view) {
    ingot_weight_view there = *view;
    there.data = to_device(view->data, view->rows * view->cols * ingot_dtype_bytes(view->dtype));
    return there;
}

/* Against the weights: sums in another order, of the same FP64 terms. */
static void test_weight_error(void) {
    static const ingot_dtype types[] = {INGOT_F32, INGOT_F16, INGOT_BF16};
    for (unsigned i = 0; i < 3 * SHAPES; i++) {
        const shape *s = &shapes[i / 3];
        if (is_left_out(s)) {
            continue;
        }
        begin();
        const uint64_t n = s->rows * s->cols;
        float *w = random_weights(host, n), *row = random_weights(host, s->rows);
        float *column = random_weights(host, s->cols);
        void *stored = NULL;
        REQUIRE_OK(ingot_arena_alloc(host, &stored, n * sizeof(float)));
        ingot_weight_view view = {.kind = INGOT_DENSE,
                                  .rows = s->rows,
                                  .cols = s->cols,
                                  .dtype = types[i % 3],
                                  .data = stored};
        ingot_convert_from_f32(stored, view.dtype, w, n);
        const ingot_weight_view view_there = view_to_device(&view);
        float *there = to_device(w, n * sizeof *w);
        ingot_quantized r = on_device(s->rows, s->cols, format_of(s));
        REQUIRE_OK(cuda.ops->quantize_rtn(cuda.context, &r, there));
        if (i % 2 != 0) {
            REQUIRE_OK(cuda.ops->outliers_choose(cuda.context, &r, there, NULL, 1 + n / 40,
                                                 INGOT_F16, device, device));
        }
        const ingot_quantized q = fetch(&r);
        for (unsigned folds = 0; folds < 4; folds++) {
            const float *row_fold = folds & 1 ? row : NULL,
                        *column_fold = folds & 2 ? column : NULL;
            double expected, sums[2];
            REQUIRE_OK(
                ingot_quantized_weight_error(&expected, &view, row_fold, column_fold, &q, NULL));
            REQUIRE_OK(cuda.ops->weight_error(
                cuda.context, sums, &view_there,
                row_fold != NULL ? to_device(row, s->rows * sizeof *row) : NULL,
                column_fold != NULL ? to_device(column, s->cols * sizeof *column) : NULL, &r,
                device));
            CU_ASSERT(fabs(ingot_weight_error_ratio(sums) - expected) <= 1e-12 * expected);
        }
        end();
    }
}

/* Relative, of a loss under H: factors have the 11 bits of TF32.  H may be cut to them instead of
 * rounded, which is common to all rows; the rest averages out over rows and columns. */
static double loss_tolerance(const ingot_quantized *q) {
    return 5e-4 + 1e-3 / sqrt((double)q->cols) + 3e-3 / sqrt((double)q->rows);
}

/* tr(E H E^T) of a matrix on the device against FP64, and tr(W H W^T) against FP32. */
static void check_losses(const float *w, const float *there, const ingot_quantized *r,
                         const float *gram) {
    const float *gram_there = to_device(gram, r->cols * r->cols * sizeof *gram);
    const ingot_quantized q = fetch(r);
    double expected = loss_reference(w, &q, gram), got;
    REQUIRE_OK(cuda.ops->quadratic_loss(cuda.context, &got, there, r->rows, r->cols, r, gram_there,
                                        device));
    largest_loss_error = fmax(largest_loss_error, fabs(got - expected) / expected);
    CU_ASSERT(fabs(got - expected) <= loss_tolerance(r) * expected);
    REQUIRE_OK(ingot_quadratic_loss(&expected, w, r->rows, r->cols, NULL, gram, NULL, host));
    REQUIRE_OK(cuda.ops->quadratic_loss(cuda.context, &got, there, r->rows, r->cols, NULL,
                                        gram_there, device));
    largest_loss_error = fmax(largest_loss_error, fabs(got - expected) / expected);
    CU_ASSERT(fabs(got - expected) <= loss_tolerance(r) * expected);
}

static void test_losses(void) {
    largest_loss_error = 0;
    for (unsigned i = 0; i < SHAPES; i++) {
        const shape *s = &shapes[i];
        if (is_left_out(s)) {
            continue;
        }
        begin();
        const uint64_t n = s->rows * s->cols;
        float *w = random_weights(host, n), *gram = random_gram(host, s->cols, s->cols + 40);
        float *there = to_device(w, n * sizeof *w);
        ingot_quantized r = on_device(s->rows, s->cols, format_of(s));
        REQUIRE_OK(cuda.ops->quantize_rtn(cuda.context, &r, there));
        check_losses(w, there, &r, gram);
        end();
    }
    printf("largest relative error %.2g ", largest_loss_error);
}

/* ---- search and GPTQ --------------------------------------------------------------------------
 */

/* Searches on both sides since it was last reset: their groups, and those whose loss is none that a
 * search leaves. */
static struct { uint64_t groups, outside; } searched;

static void judge_search(const float *w, const float *d, const ingot_quantized *host_side,
                         const ingot_quantized *device_side) {
    searched.groups += host_side->rows * host_side->groups;
    searched.outside += search_outside(w, d, device_side);
    CU_ASSERT(search_outside(w, d, host_side) <= search_outside_most(searched.groups));
}

static void end_searches(void) {
    printf("%llu of %llu groups outside ", (unsigned long long)searched.outside,
           (unsigned long long)searched.groups);
    CU_ASSERT(searched.outside <= search_outside_most(searched.groups));
    searched.groups = searched.outside = 0;
}

static void test_search(void) {
    for (unsigned i = 0; i < 2 * SHAPES; i++) {
        const shape *s = &shapes[i / 2];
        if (is_left_out(s)) {
            continue;
        }
        begin();
        const uint64_t n = s->rows * s->cols;
        float *w = random_weights(host, n), *importance = random_importance(s->cols);
        memset(w, 0, (s->group < s->cols ? s->group : s->cols) * sizeof *w); /* a group of zeros */
        const float *d = i % 2 ? importance : NULL;
        float *there = to_device(w, n * sizeof *w);
        ingot_quantized q = new_quantized(s->rows, s->cols, format_of(s), host);
        ingot_quantized r = on_device(s->rows, s->cols, format_of(s));
        REQUIRE_OK(ingot_quantize_search(&q, w, d, host, NULL));
        REQUIRE_OK(cuda.ops->quantize_search(
            cuda.context, &r, there,
            d != NULL ? to_device(importance, s->cols * sizeof *importance) : NULL, device));
        const ingot_quantized got = fetch(&r);
        const double groups = equal_groups(&q, &got), same = agreement(&q, &got);
        const double a = weighted_loss(w, &q, d), b = weighted_loss(w, &got, d);
        printf("  search %ux%u g%u w%u: %.4f of the groups and %.4f of the values agree, losses "
               "%.6g %.6g\n",
               (unsigned)s->rows, (unsigned)s->cols, (unsigned)s->group, s->bits, groups, same, a,
               b);
        judge_search(w, d, &q, &got);
        const uint64_t group = s->group < s->cols ? s->group : s->cols;
        CU_ASSERT((1 - same) * (double)n <= (double)group + 1e-3 * (double)n);
        /* with many levels, or scales of 24 bits, nearly all candidates are near ties */
        CU_ASSERT(s->bits > 4 || s->scale_dtype == INGOT_F32 || groups >= 0.9);
        end();
    }
    end_searches();
}

/* Factors of the same H on both, and what they must share: everything that decides which file comes
 * out, bit for bit, and the feedback within FP32 (tolerance, of the largest element).  Above the
 * diagonal H is not read. */
static void factorize_both(ingot_gptq_factor *q, ingot_gptq_factor *r, const float *gram,
                           uint64_t cols, uint64_t group, double tolerance) {
    const uint64_t cells = cols * cols;
    float *lower = NULL;
    REQUIRE_OK(ingot_arena_alloc(host, (void **)&lower, cells * sizeof *lower));
    for (uint64_t i = 0; i < cells; i++) {
        lower[i] = i % cols > i / cols ? NAN : gram[i];
    }
    const float *there = to_device(lower, cells * sizeof *lower);
    REQUIRE_OK(ingot_gptq_factorize(q, gram, cols, group, host, host));
    REQUIRE_OK(cuda.ops->factorize(cuda.context, r, there, cols, group, device, device));
    CU_ASSERT(r->cols == cols && r->group == group);
    CU_ASSERT(q->damping_step == r->damping_step && q->damping == r->damping);
    CU_ASSERT(q->dead_columns == r->dead_columns);
    CU_ASSERT(
        memcmp(q->order, to_host(r->order, cols * sizeof *q->order), cols * sizeof *q->order) == 0);
    CU_ASSERT(memcmp(q->importance, to_host(r->importance, cols * sizeof(float)),
                     cols * sizeof(float)) == 0);
    const float *feedback = to_host(r->feedback, cells * sizeof(float));
    double worst = 0, largest = 0;
    for (uint64_t i = 0; i < cells; i++) {
        const double difference = fabs((double)feedback[i] - (double)q->feedback[i]);
        worst = difference <= worst ? worst : difference; /* NaN is the worst */
        largest = fmax(largest, fabs((double)q->feedback[i]));
    }
    CU_ASSERT(worst <= tolerance * largest + 1e-12);
}

/* Every step of the damping, and H that none helps: too indefinite, overflowed, NaN, all dead. */
static void test_factor(void) {
    static const double lowest[] = {0.505, 0.52, 0.565, 0.7, 1.15, 5.0};
    for (unsigned i = 0; i < 9; i++) {
        begin();
        const uint64_t cols = 50;
        float *gram = random_weights(host, cols * cols);
        ingot_gptq_factor q, r;
        indefinite_gram(gram, cols, lowest[i < 5 ? i : 5]);
        if (i == 6 || i == 7) {
            gram[20 * cols + 20] = i == 6 ? INFINITY : NAN;
        }
        memset(gram, 0, i == 8 ? cols * cols * sizeof *gram : 0);
        factorize_both(&q, &r, gram, cols, 16, 1e-3);
        CU_ASSERT(r.damping_step == (i < 5 ? i : i < 8 ? 255 : 0));
        CU_ASSERT(r.dead_columns == (i == 7 ? 1 : i == 8 ? cols : 0));
        end();
    }
    begin(); /* positive definite by less than FP32 resolves: the step in FP64 */
    float *gram = random_weights(host, 50 * 50);
    bool is_reached = false;
    for (uint64_t n = 10; n <= 50; n++) {
        ingot_gptq_factor r;
        barely_definite_gram(gram, n);
        const float *there = to_device(gram, n * n * sizeof *gram);
        REQUIRE_OK(cuda.ops->factorize(cuda.context, &r, there, n, 16, device, device));
        const float *feedback = to_host(r.feedback, n * n * sizeof(float));
        CU_ASSERT(r.damping == 1.0 && isfinite(feedback[1]));
        CU_ASSERT(r.damping_step == 4 || r.damping_step == 5);
        is_reached = is_reached || r.damping_step == 5;
    }
    CU_ASSERT(is_reached);
    end();
}

/* Several blocks on the diagonal, the last of them short; rounding factors to 11 bits somewhere
 * brings the difference from 1e-5 to 3e-4. */
static void test_large_factor(void) {
    begin();
    ingot_gptq_factor q, r;
    factorize_both(&q, &r, random_gram(host, 1300, 80), 1300, 128, 5e-5);
    CU_ASSERT(r.damping_step == 0);
    end();
}

/* The places of q's outliers for a matrix on the device. */
static ingot_outliers outliers_to_device(const ingot_quantized *q) {
    const ingot_outliers *o = &q->outliers;
    return (ingot_outliers){.count = o->count,
                            .row_ptr = to_device(o->row_ptr, (q->rows + 1) * sizeof *o->row_ptr),
                            .col = to_device(o->col, o->count * sizeof *o->col),
                            .val = to_device(o->val, o->count * sizeof *o->val),
                            .dtype = o->dtype};
}

/* Chosen, placed and searched again: the same places, of which a search leaves the rest alone. */
static void test_outliers(void) {
    for (unsigned i = 0; i < SHAPES; i++) {
        const shape *s = &shapes[i];
        if (is_left_out(s)) {
            continue;
        }
        begin();
        const uint64_t n = s->rows * s->cols, count = i % 5 == 4 ? 0 : 1 + n / (i % 2 ? 10 : 90);
        const ingot_dtype dtype = i % 3 ? INGOT_F16 : INGOT_F32;
        float *w = random_weights(host, n), *d = random_importance(s->cols);
        const float *there = to_device(w, n * sizeof *w);
        const float *d_there = to_device(d, s->cols * sizeof *d);
        ingot_quantized q = new_quantized(s->rows, s->cols, format_of(s), host);
        ingot_quantized r = on_device(s->rows, s->cols, format_of(s));
        REQUIRE_OK(cuda.ops->quantize_search(cuda.context, &r, there, d_there, device));
        REQUIRE_OK(cuda.ops->outliers_choose(cuda.context, &r, there, d_there, count, dtype, device,
                                             device));
        CU_ASSERT(r.outliers.count == count);
        ingot_quantized found = fetch(&r);
        const ingot_outliers chosen = found.outliers;
        found.outliers = (ingot_outliers){0};
        REQUIRE_OK(ingot_outliers_choose(&found, w, d, count, dtype, host, host, NULL));
        const ingot_outliers expected = found.outliers;
        if (count != 0) {
            CU_ASSERT(chosen.dtype == dtype);
            CU_ASSERT(memcmp(chosen.row_ptr, expected.row_ptr, (s->rows + 1) * 8) == 0);
            CU_ASSERT(memcmp(chosen.col, expected.col, count * sizeof *chosen.col) == 0);
            CU_ASSERT(memcmp(chosen.val, expected.val, count * sizeof *chosen.val) == 0);
        }
        q.outliers = expected;
        REQUIRE_OK(ingot_quantize_search(&q, w, d, host, NULL));
        REQUIRE_OK(cuda.ops->quantize_search(cuda.context, &r, there, d_there, device));
        const ingot_quantized got = fetch(&r);
        (void)equal_groups(&q, &got);
        judge_search(w, d, &q, &got);
        /* a near tie between two scales may change the codes of a whole group */
        const uint64_t group = s->group < s->cols ? s->group : s->cols;
        CU_ASSERT((1 - agreement(&q, &got)) * (double)n <= (double)group + 1e-3 * (double)n);
        end();
    }
    end_searches();
}

static void test_gptq(void) {
    largest_loss_error = 0;
    for (unsigned i = 0; i < 2 * SHAPES; i++) {
        const shape *s = &shapes[i / 2];
        if (is_left_out(s)) {
            continue;
        }
        begin();
        const uint64_t n = s->rows * s->cols, dead = s->cols > 2 ? 2 : 0;
        float *w = random_weights(host, n), *gram = random_gram(host, s->cols, s->cols + 40);
        for (uint64_t k = 0; i % 3 == 1 && k < s->cols; k++) { /* a dead column */
            gram[k * s->cols + dead] = gram[dead * s->cols + k] = 0.0f;
        }
        float *there = to_device(w, n * sizeof *w);
        ingot_gptq_factor factor, factor_there;
        factorize_both(&factor, &factor_there, gram, s->cols, s->group, 1e-3);
        ingot_quantized q = new_quantized(s->rows, s->cols, format_of(s), host);
        ingot_quantized r = on_device(s->rows, s->cols, format_of(s));
        ingot_quantized again = on_device(s->rows, s->cols, format_of(s));
        if (i % 2 != 0) { /* the same places, so that results can be compared */
            const uint64_t count = 1 + n / 100;
            REQUIRE_OK(ingot_quantize_search(&q, w, factor.importance, host, NULL));
            REQUIRE_OK(ingot_outliers_choose(&q, w, factor.importance, count,
                                             i % 4 == 1 ? INGOT_F16 : INGOT_F32, host, host, NULL));
            r.outliers = outliers_to_device(&q);
            again.outliers = outliers_to_device(&q);
        }
        REQUIRE_OK(ingot_quantize_gptq(&q, w, &factor, host, NULL));
        REQUIRE_OK(cuda.ops->quantize_gptq(cuda.context, &r, there, &factor_there, device));
        REQUIRE_OK(cuda.ops->quantize_gptq(cuda.context, &again, there, &factor_there, device));
        const ingot_quantized got = fetch(&r), repeated = fetch(&again);
        CU_ASSERT(memcmp(got.codes, repeated.codes, n) == 0);
        CU_ASSERT(memcmp(got.scales, repeated.scales, q.rows * q.groups * sizeof(float)) == 0);
        const double a = loss_reference(w, &q, gram), b = loss_reference(w, &got, gram);
        const double same = agreement(&q, &got);
        double norm;
        REQUIRE_OK(ingot_quadratic_loss(&norm, w, q.rows, q.cols, NULL, gram, NULL, host));
        printf("  gptq %ux%u g%u w%u: %.4f of the values agree, losses %.6g %.6g\n",
               (unsigned)s->rows, (unsigned)s->cols, (unsigned)s->group, s->bits, same, a, b);
        /* One code that rounds otherwise moves the targets of all later columns of its row. */
        CU_ASSERT(fabs(b - a) <= (n > 100000 ? 0.002 : 0.02) * a + 1e-7 * norm);
        CU_ASSERT((1 - same) * (double)n <= (double)s->cols + 0.05 * (double)n);
        check_losses(w, there, &r, gram);
        end();
    }
    printf("largest relative error of a loss %.2g ", largest_loss_error);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"source values", test_values},
        {"H under a fold", test_gram_fold},
        {"plain rounding, outliers, packing", test_rtn_and_pack},
        {"errors against the weights", test_weight_error},
        {"losses under H", test_losses},
        {"scale search", test_search},
        {"outliers", test_outliers},
        {"order, damping and factor", test_factor},
        {"factor of several blocks", test_large_factor},
        {"gptq", test_gptq},
        CU_TEST_INFO_NULL,
    };
    ingot_error error = {0};
    input_start("cuda_quantize");
    if (ingot_backend_open(&cuda, "cuda", 2, &error) != INGOT_OK) {
        printf("SKIP: no CUDA device: %s\n", error.reason);
        return 77;
    }
    const int result = suite_run("cuda_quantize", tests);
    ingot_backend_close(&cuda);
    return result;
}
