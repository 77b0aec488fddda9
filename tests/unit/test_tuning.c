/* The steps of tuning (kernels/quantize.h, ingot_tuning_*) on every device against what their
 * description says, in FP64, with equal bits for every number of threads. */
#include "backend_devices.h"
#include "backend_inputs.h"
#include "common/memory.h"

/* A matrix and its start, on the host. */
typedef struct tuning_case {
    uint64_t rows, cols, groups;
    ingot_quant_format format;
    uint8_t *codes, *zeros;
    float *scales, *w, *gradient;
    uint64_t *outlier_ptr; /* one outlier in every third row, or NULL */
    uint32_t *outlier_col;
    uint64_t outliers;
    unsigned steps;
} tuning_case;

#define RATE      0.02f
#define GAIN_RATE 0.03f

static void *take(ingot_arena *arena, uint64_t bytes, const ingot_backend *b, const void *from) {
    void *memory = NULL;
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, &memory, bytes) == INGOT_OK);
    if (from != NULL) {
        CU_ASSERT_FATAL(b->ops->upload(b->context, memory, from, bytes) == INGOT_OK);
    }
    return memory;
}

/* out: positions, gains, codes and scales after the steps. */
static void run_case(const ingot_backend *b, const void *argument, float *out) {
    const tuning_case *c = argument;
    const uint64_t n = c->rows * c->cols, g = c->rows * c->groups;
    ingot_arena *arena = NULL;
    CU_ASSERT_FATAL(ingot_backend_arena_create(&arena, b) == INGOT_OK);
    ingot_quantized q = {.format = c->format, .rows = c->rows, .cols = c->cols};
    q.groups = c->groups;
    q.codes = take(arena, n, b, c->codes);
    q.zeros = take(arena, g, b, c->zeros);
    q.scales = take(arena, g * sizeof(float), b, c->scales);
    if (c->outliers != 0) {
        q.outliers.count = c->outliers;
        q.outliers.row_ptr = take(arena, (c->rows + 1) * sizeof(uint64_t), b, c->outlier_ptr);
        q.outliers.col = take(arena, c->outliers * sizeof(uint32_t), b, c->outlier_col);
    }
    const float *w = take(arena, n * sizeof(float), b, c->w);
    const float *gradient = take(arena, n * sizeof(float), b, c->gradient);
    const ingot_tuning t = {.position = take(arena, n * sizeof(float), b, NULL),
                            .gain = take(arena, g * sizeof(float), b, NULL),
                            .start_scale = take(arena, g * sizeof(float), b, NULL)};
    CU_ASSERT(b->ops->tuning_begin(b->context, &t, &q, w) == INGOT_OK);
    for (unsigned step = 0; step < c->steps; step++) {
        CU_ASSERT(b->ops->tuning_step(b->context, &t, &q, gradient, RATE, GAIN_RATE) == INGOT_OK);
    }
    CU_ASSERT(b->ops->tuning_round(b->context, &q, &t) == INGOT_OK);
    uint8_t *codes = malloc(n);
    CU_ASSERT(b->ops->download(b->context, out, t.position, n * sizeof(float)) == INGOT_OK);
    CU_ASSERT(b->ops->download(b->context, out + n, t.gain, g * sizeof(float)) == INGOT_OK);
    CU_ASSERT(b->ops->download(b->context, codes, q.codes, n) == INGOT_OK);
    CU_ASSERT(b->ops->download(b->context, out + 2 * n + g, q.scales, g * sizeof(float)) == 0);
    for (uint64_t i = 0; i < n; i++) {
        out[n + g + i] = (float)codes[i];
        out[i] = isinf(out[i]) ? -1000.0f : out[i]; /* an outlier: comparable */
    }
    free(codes);
    ingot_arena_destroy(arena);
}

static bool is_outlier(const tuning_case *c, uint64_t row, uint64_t col) {
    return c->outliers != 0 && c->outlier_ptr[row] != c->outlier_ptr[row + 1] &&
           c->outlier_col[c->outlier_ptr[row]] == col;
}

static double clamp(double x, double low, double high) {
    return fmin(fmax(x, low), high);
}

/* The same from the description: value, and the size errors are relative to. */
static void expect_case(const tuning_case *c, double *value, double *size) {
    const uint64_t n = c->rows * c->cols, g = c->rows * c->groups;
    const double top = (double)((1u << c->format.bits) - 1);
    for (uint64_t at = 0; at < g; at++) {
        const uint64_t row = at / c->groups, first = at % c->groups * c->format.group;
        const double scale = (double)c->scales[at], zero = (double)c->zeros[at];
        double sum = 0, gain = 1;
        for (uint64_t j = first; j < c->cols && j < first + c->format.group; j++) {
            const uint64_t i = row * c->cols + j;
            const double code = (double)c->codes[i], slope = (double)c->gradient[i];
            const double lacks = scale != 0 ? (double)c->w[i] / scale + zero - code : 0;
            double position = code + clamp(lacks, -0.25, 0.25);
            for (unsigned step = 0; step < c->steps; step++) {
                const double turn =
                    (double)RATE * (double)((slope * scale > 0) - (slope * scale < 0));
                position = clamp(position - turn, -0.5, top + 0.5);
            }
            sum += slope * (code - zero);
            value[i] = is_outlier(c, row, j) ? -1000 : position;
            size[i] = is_outlier(c, row, j) ? 0 : (4 + c->steps) * (top + 1);
            value[n + g + i] = is_outlier(c, row, j) ? zero : clamp(nearbyint(position), 0, top);
            /* the nearest code is not known at the middle between two */
            size[n + g + i] = fabs(fabs(position - floor(position)) - 0.5) < 1e-4 ? 1e9 : 0;
        }
        for (unsigned step = 0; step < c->steps; step++) {
            gain = clamp(gain - (double)GAIN_RATE * (double)((sum * scale > 0) - (sum * scale < 0)),
                         0.5, 2);
        }
        value[n + at] = gain;
        size[n + at] = 4 + c->steps;
        const double stored =
            (double)ingot_scale_store((float)(scale * gain), c->format.scale_dtype);
        value[2 * n + g + at] = stored != 0 ? stored : scale;
        size[2 * n + g + at] =
            fabs(scale) * 0x1p18 + 0x1p-1; /* a step of the stored type, at most 2^-7 */
    }
}

static void add_outliers(tuning_case *c) {
    c->outlier_ptr = calloc(c->rows + 1, sizeof *c->outlier_ptr);
    c->outlier_col = calloc(c->rows, sizeof *c->outlier_col);
    for (uint64_t row = 0; row < c->rows; row++) {
        c->outlier_ptr[row] = c->outliers;
        if (row % 3 == 0) {
            c->outlier_col[c->outliers++] = (uint32_t)input_below(c->cols);
        }
    }
    c->outlier_ptr[c->rows] = c->outliers;
}

static void check_case(unsigned number) {
    static const ingot_dtype dtypes[] = {INGOT_F16, INGOT_BF16, INGOT_F32};
    tuning_case c = {.rows = input_size(65), .cols = input_size(300), .steps = number % 4 * 7};
    c.format =
        (ingot_quant_format){.bits = 2 + number % 7,
                             .group = 1 + input_below(c.cols),
                             .zero_mode = number % 2 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC,
                             .scale_dtype = dtypes[number % 3]};
    c.groups = (c.cols + c.format.group - 1) / c.format.group;
    const uint64_t n = c.rows * c.cols, g = c.rows * c.groups, count = 2 * n + 2 * g;
    c.codes = calloc(n, 1), c.zeros = calloc(g, 1), c.scales = calloc(g, sizeof(float));
    c.w = input_floats(n, 0.05), c.gradient = input_floats(n, 1e-4);
    for (uint64_t at = 0; at < g; at++) {
        const float scale = (float)(0.05 * input_normal());
        c.scales[at] = at % 11 == 5 ? 0.0f : ingot_scale_store(scale, c.format.scale_dtype);
        c.zeros[at] = c.format.zero_mode == INGOT_ZERO_STORED
                          ? (uint8_t)input_below(1u << c.format.bits)
                          : (uint8_t)(1u << (c.format.bits - 1));
    }
    for (uint64_t i = 0; i < n; i++) {
        c.codes[i] = (uint8_t)input_below(1u << c.format.bits);
        c.gradient[i] = i % 13 == 0 ? 0.0f : c.gradient[i];
    }
    if (number % 5 == 0) {
        add_outliers(&c);
    }
    double *value = calloc(count, sizeof *value), *size = calloc(count, sizeof *size);
    expect_case(&c, value, size);
    device_check(
        run_case, &c,
        &(expected){
            .what = "tuning", .value = value, .size = size, .count = count, .tolerance = 1});
    free(c.codes);
    free(c.zeros);
    free(c.scales);
    free(c.w);
    free(c.gradient);
    free(c.outlier_ptr);
    free(c.outlier_col);
    free(value);
    free(size);
}

/* ---- scales alone --------------------------------------------------------------------------- */

/* out: the gradient by the gains, gains and scales after the steps. */
static void run_scales(const ingot_backend *b, const void *argument, float *out) {
    const tuning_case *c = argument;
    const uint64_t n = c->rows * c->cols, g = c->rows * c->groups;
    ingot_arena *arena = NULL;
    CU_ASSERT_FATAL(ingot_backend_arena_create(&arena, b) == INGOT_OK);
    ingot_quantized q = {.format = c->format, .rows = c->rows, .cols = c->cols};
    q.groups = c->groups;
    q.codes = take(arena, n, b, c->codes);
    q.zeros = take(arena, g, b, c->zeros);
    q.scales = take(arena, g * sizeof(float), b, c->scales);
    const float *slopes = take(arena, n * sizeof(float), b, c->gradient);
    const float *start = take(arena, g * sizeof(float), b, c->scales);
    float *gain = take(arena, g * sizeof(float), b, c->w), *sum = NULL;
    sum = take(arena, g * sizeof(float), b, c->w);
    CU_ASSERT(b->ops->scale_backward(b->context, sum, &q, slopes) == INGOT_OK);
    CU_ASSERT(b->ops->download(b->context, out, sum, g * sizeof(float)) == INGOT_OK);
    for (unsigned step = 0; step < c->steps; step++) {
        CU_ASSERT(b->ops->scale_step(b->context, &q, gain, start, slopes, GAIN_RATE) == INGOT_OK);
    }
    CU_ASSERT(b->ops->download(b->context, out + g, gain, g * sizeof(float)) == INGOT_OK);
    CU_ASSERT(b->ops->download(b->context, out + 2 * g, q.scales, g * sizeof(float)) == INGOT_OK);
    ingot_arena_destroy(arena);
}

static void check_scales(unsigned number) {
    static const ingot_dtype dtypes[] = {INGOT_F16, INGOT_BF16, INGOT_F32};
    tuning_case c = {.rows = input_size(65), .cols = input_size(300), .steps = 1 + number % 4 * 7};
    c.format = (ingot_quant_format){.bits = 2 + number % 7,
                                    .group = 1 + input_below(c.cols),
                                    .scale_dtype = dtypes[number % 3]};
    c.groups = (c.cols + c.format.group - 1) / c.format.group;
    const uint64_t n = c.rows * c.cols, g = c.rows * c.groups;
    c.codes = calloc(n, 1), c.zeros = calloc(g, 1), c.scales = calloc(g, sizeof(float));
    c.w = calloc(n, sizeof(float)), c.gradient = input_floats(n, 1e-2);
    double *value = calloc(3 * g, sizeof *value), *size = calloc(3 * g, sizeof *size);
    for (uint64_t i = 0; i < n; i++) {
        c.codes[i] = (uint8_t)input_below(1u << c.format.bits);
    }
    for (uint64_t at = 0; at < g; at++) {
        const uint64_t row = at / c.groups, first = at % c.groups * c.format.group;
        const float scale = (float)(0.05 * input_normal());
        c.w[at] = (float)(1 + 0.2 * input_normal());
        c.scales[at] = at % 11 == 5 ? 0.0f : ingot_scale_store(scale, c.format.scale_dtype);
        c.zeros[at] = (uint8_t)input_below(1u << c.format.bits);
        /* a sum of group + 1 values, whose products were rounded: as many roundings of each */
        const double roundings = (double)c.format.group + 1;
        value[at] = (double)c.w[at];
        size[at] = roundings * fabs(value[at]);
        for (uint64_t j = first; j < c.cols && j < first + c.format.group; j++) {
            const double term = (double)c.gradient[row * c.cols + j] *
                                ((double)c.codes[row * c.cols + j] - (double)c.zeros[at]);
            value[at] += term;
            size[at] += roundings * fabs(term);
        }
        double gain = (double)c.w[at];
        for (unsigned step = 0; step < c.steps; step++) {
            const double slope = (double)c.gradient[at] * (double)c.scales[at];
            gain = clamp(gain - (double)GAIN_RATE * (double)((slope > 0) - (slope < 0)), 0.5, 2);
        }
        value[g + at] = gain;
        size[g + at] = 4 + c.steps;
        const double stored =
            (double)ingot_scale_store((float)((double)c.scales[at] * gain), c.format.scale_dtype);
        value[2 * g + at] = stored != 0 ? stored : (double)c.scales[at];
        size[2 * g + at] = fabs((double)c.scales[at]) * 0x1p18 + 0x1p-1;
    }
    device_check(
        run_scales, &c,
        &(expected){
            .what = "scales", .value = value, .size = size, .count = 3 * g, .tolerance = 1});
    free(c.codes);
    free(c.zeros);
    free(c.scales);
    free(c.w);
    free(c.gradient);
    free(value);
    free(size);
}

static void test_scales(void) {
    for (unsigned i = 0; i < input_rounds(42); i++) {
        check_scales(i);
    }
    printf("largest error %.2f of the bound ", largest_share);
}

static void test_steps(void) {
    for (unsigned i = 0; i < input_rounds(42); i++) {
        check_case(i);
    }
    printf("largest error %.2f of the bound ", largest_share);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"devices", devices_open},
        {"start, steps and rounding", test_steps},
        {"scales alone", test_scales},
        {"closing", devices_close},
        CU_TEST_INFO_NULL,
    };
    input_start("tuning");
    return suite_run("tuning", tests);
}
