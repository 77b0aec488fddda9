/* What the cuda backend keeps between operations: the binary16 copy of activations that products
 * and statistics share, made by whoever writes them first, and what it does with values that
 * binary16 does not hold.  tests/unit/test_kernels.c compares the operations one by one; here they
 * follow each other.  Skipped, loudly, where there is no device. */
#include "backend_inputs.h"
#include "backend_reference.h"
#include "suite.h"

static ingot_backend cuda;

#define REQUIRE_OK(call) CU_ASSERT_FATAL((call) == INGOT_OK)

static void *to_device(const void *from, uint64_t bytes) {
    void *memory = NULL;
    REQUIRE_OK(cuda.ops->alloc(cuda.context, &memory, bytes));
    REQUIRE_OK(cuda.ops->upload(cuda.context, memory, from, bytes));
    return memory;
}

static float *to_host(const float *from, uint64_t count) {
    float *memory = malloc(count * sizeof *memory);
    REQUIRE_OK(cuda.ops->download(cuda.context, memory, from, count * sizeof *memory));
    return memory;
}

static void release(void *memory) {
    cuda.ops->release(cuda.context, memory);
}

/* ---- what a product and the statistics of the input at hand are --------------------------------
 */

typedef struct input {
    float *x; /* [m][n], device */
    uint64_t m, n;
} input;

/* Bound of an error, relative to the sum of magnitudes: two factors of binary16, sums in FP32. */
#define PRODUCT_BOUND 0x1p-10

/* y = x W^T from what the device holds, against what x holds now.  Rows with a value that is not
 * finite must come out not finite. */
static void check_product(const char *what, const input *in, const ingot_weight_view *w) {
    ingot_weight_view view;
    float *y = NULL;
    const uint64_t count = in->m * w->rows;
    REQUIRE_OK(cuda.ops->upload_view(cuda.context, &view, w));
    REQUIRE_OK(cuda.ops->alloc(cuda.context, (void **)&y, count * sizeof *y));
    REQUIRE_OK(cuda.ops->linear(cuda.context, y, &view, NULL, in->x, in->m));
    float *got = to_host(y, count), *x = to_host(in->x, in->m * in->n);
    double *value = calloc(count, sizeof *value), *size = calloc(count, sizeof *size);
    ref_linear(value, size, w, NULL, x, in->m);
    unsigned wrong = 0;
    for (uint64_t i = 0; i < count; i++) {
        const bool is_right =
            isfinite(value[i]) ? fabs((double)got[i] - value[i]) <= PRODUCT_BOUND * size[i] + 1e-37
                               : !isfinite(got[i]);
        wrong += !is_right;
    }
    if (wrong != 0) {
        printf("\n    %s: %u of %llu products are wrong", what, wrong, (unsigned long long)count);
    }
    CU_ASSERT(wrong == 0);
    free(got);
    free(x);
    free(value);
    free(size);
    release(y);
    cuda.ops->release_view(cuda.context, &view);
}

/* x^T x and the sums of |x| the same way. */
static void check_statistics(const char *what, const input *in) {
    const uint64_t n = in->n, cells = n * n;
    double *value = calloc(cells, sizeof *value), *size = calloc(cells, sizeof *size);
    double *sums = calloc(n, sizeof *sums);
    uint64_t dropped = 0;
    float *gram = to_device(value, cells * sizeof *gram);
    double *magnitude = to_device(sums, n * sizeof *sums);
    uint64_t *counter = to_device(&dropped, sizeof dropped);
    REQUIRE_OK(cuda.ops->gram(cuda.context, gram, magnitude, counter, in->x, in->m, n));
    float *got = to_host(gram, cells), *x = to_host(in->x, in->m * n);
    REQUIRE_OK(cuda.ops->download(cuda.context, &dropped, counter, sizeof dropped));
    CU_ASSERT(ref_gram(value, size, sums, x, in->m, n) == dropped);
    unsigned wrong = 0;
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j <= i; j++) {
            const double error = fabs((double)got[i * n + j] - value[i * n + j]);
            wrong += !(error <= PRODUCT_BOUND * size[i * n + j] + 1e-37);
        }
    }
    double *got_sums = malloc(n * sizeof *got_sums);
    REQUIRE_OK(cuda.ops->download(cuda.context, got_sums, magnitude, n * sizeof *got_sums));
    for (uint64_t i = 0; i < n; i++) {
        wrong += !(fabs(got_sums[i] - sums[i]) <= 1e-12 * sums[i]);
    }
    if (wrong != 0) {
        printf("\n    %s: %u statistics are wrong", what, wrong);
    }
    CU_ASSERT(wrong == 0);
    free(value);
    free(size);
    free(sums);
    free(got);
    free(x);
    free(got_sums);
    release(gram);
    release(magnitude);
    release(counter);
}

static void check_all(const char *what, const input *in, const ingot_weight_view *w) {
    check_product(what, in, w);
    check_statistics(what, in);
    check_product(what, in, w); /* the statistics have put the copy back */
}

/* ---- the copy follows what it is a copy of -----------------------------------------------------
 */

typedef struct writer {
    const char *name;
    void (*write)(const input *in, float *other); /* other: like in->x */
} writer;

static void write_upload(const input *in, float *other) {
    (void)other;
    float *host = input_floats(in->m * in->n, 1.0);
    REQUIRE_OK(cuda.ops->upload(cuda.context, in->x, host, in->m * in->n * sizeof *host));
    free(host);
}

/* The second half alone: any overlap counts. */
static void write_part(const input *in, float *other) {
    (void)other;
    float *host = input_floats(in->n, 1.0);
    float *row = in->x + in->m / 2 * in->n;
    REQUIRE_OK(cuda.ops->upload(cuda.context, row, host, in->n * sizeof *host));
    free(host);
}

static void write_copy(const input *in, float *other) {
    REQUIRE_OK(cuda.ops->copy(cuda.context, in->x, other, in->m * in->n * sizeof(float)));
}

static void write_zero(const input *in, float *other) {
    (void)other;
    REQUIRE_OK(cuda.ops->zero(cuda.context, in->x, in->n * sizeof(float)));
}

static void write_norm(const input *in, float *other) {
    float *ones = input_floats(in->n, 1.0);
    float *weight = to_device(ones, in->n * sizeof *ones);
    REQUIRE_OK(cuda.ops->norm(cuda.context, in->x, other, weight, NULL, INGOT_NORM_RMS, 1e-5f,
                              in->m, in->n));
    release(weight);
    free(ones);
}

static void write_norm_in_place(const input *in, float *other) {
    write_norm(in, in->x);
    (void)other;
}

static void write_activate(const input *in, float *other) {
    REQUIRE_OK(cuda.ops->activate(cuda.context, in->x, other, INGOT_ACT_SILU, in->m * in->n));
}

static void write_add(const input *in, float *other) {
    REQUIRE_OK(cuda.ops->add(cuda.context, in->x, other, 0.5f, in->m * in->n));
}

static void write_rotary(const input *in, float *other) {
    (void)other;
    const double frequency[2] = {1.0, 0.3};
    REQUIRE_OK(cuda.ops->rotary(cuda.context, in->x, 3, 5, frequency, 1.0f, in->m, 1, in->n, 4));
}

static void write_embed(const input *in, float *other) {
    (void)other;
    input_weights w = input_grouped(7, in->n, 4, 8, INGOT_ZERO_STORED, INGOT_F16, false);
    ingot_weight_view view;
    uint32_t *ids = calloc(in->m, sizeof *ids);
    REQUIRE_OK(cuda.ops->upload_view(cuda.context, &view, &w.view));
    REQUIRE_OK(cuda.ops->embed(cuda.context, in->x, &view, ids, in->m, 1.0f));
    cuda.ops->release_view(cuda.context, &view);
    input_weights_free(&w);
    free(ids);
}

static void write_linear(const input *in, float *other) {
    input_weights w = input_dense(in->n, in->n, INGOT_BF16);
    ingot_weight_view view;
    REQUIRE_OK(cuda.ops->upload_view(cuda.context, &view, &w.view));
    REQUIRE_OK(cuda.ops->linear(cuda.context, in->x, &view, NULL, other, in->m));
    cuda.ops->release_view(cuda.context, &view);
    input_weights_free(&w);
}

static void write_attention(const input *in, float *other) {
    const ingot_attention shape = {1, in->m, in->m, in->m, 1, 1, in->n, 0, 0.1f, 0.0f};
    REQUIRE_OK(cuda.ops->attention(cuda.context, in->x, other, other, other, &shape));
}

static const writer writers[] = {
    {"upload", write_upload},     {"upload of a part", write_part},
    {"copy", write_copy},         {"zero", write_zero},
    {"norm", write_norm},         {"norm in place", write_norm_in_place},
    {"activate", write_activate}, {"add", write_add},
    {"rotary", write_rotary},     {"embed", write_embed},
    {"linear", write_linear},     {"attention", write_attention},
};

static void check_writers(uint64_t m, uint64_t n) {
    input_weights w = input_kind((unsigned)input_below(INPUT_KINDS), 5, n);
    float *host = input_floats(m * n, 1.0), *more = input_floats(m * n, 1.0);
    const input in = {to_device(host, m * n * sizeof *host), m, n};
    float *other = to_device(more, m * n * sizeof *more);
    for (unsigned i = 0; i < sizeof writers / sizeof writers[0]; i++) {
        check_product("before", &in, &w.view);
        writers[i].write(&in, other);
        check_all(writers[i].name, &in, &w.view);
    }
    release(in.x);
    release(other);
    free(host);
    free(more);
    input_weights_free(&w);
}

static void test_writers(void) {
    check_writers(33, 72);
    check_writers(17, 60);  /* no multiple of 8: the copy has gaps */
    check_writers(40, 256); /* norms make the copy themselves */
}

/* ---- copies made by those who write ------------------------------------------------------------
 */

/* n >= 256 for a norm, 2^20 values for an activation; scale: of the result, about. */
static void check_maker(bool is_norm, uint64_t m, uint64_t n, double scale) {
    char what[80];
    (void)snprintf(what, sizeof what, "%s of %llux%llu, scale %g", is_norm ? "norm" : "activation",
                   (unsigned long long)m, (unsigned long long)n, scale);
    input_weights w = input_dense(3, n, INGOT_F16);
    float *host = input_floats(m * n, 1.0), *more = input_floats(m * n, scale);
    float *from = to_device(host, m * n * sizeof *host);
    const input in = {to_device(more, m * n * sizeof *more), m, n};
    if (is_norm) {
        float *weight = to_device(more, n * sizeof *more);
        REQUIRE_OK(cuda.ops->norm(cuda.context, in.x, from, weight, weight, INGOT_NORM_LAYER, 1e-5f,
                                  m, n));
        release(weight);
    } else {
        REQUIRE_OK(cuda.ops->activate(cuda.context, in.x, from, INGOT_ACT_RELU, m * n));
    }
    check_product(what, &in, &w.view);
    if (n <= 512) {
        check_all(what, &in, &w.view);
    }
    release(in.x);
    release(from);
    free(host);
    free(more);
    input_weights_free(&w);
}

static void test_makers(void) {
    static const double scales[] = {1.0, 3e-9, 1e5, 1e12};
    for (unsigned i = 0; i < 4; i++) {
        check_maker(true, 19, 264, scales[i]);
        check_maker(true, 16, 4104, scales[i]); /* longer than what threads keep */
        check_maker(false, 2048, 512, scales[i]);
    }
}

/* ---- values that binary16 does not hold --------------------------------------------------------
 */

static void check_range(double x_scale, double w_scale) {
    const uint64_t m = 65, n = 136, rows = 11;
    float *host = input_floats(m * n, x_scale), *weights = input_floats(rows * n, w_scale);
    const ingot_weight_view w = {
        .kind = INGOT_DENSE, .rows = rows, .cols = n, .dtype = INGOT_F32, .data = weights};
    const input in = {to_device(host, m * n * sizeof *host), m, n};
    char what[80];
    (void)snprintf(what, sizeof what, "x of %g, w of %g", x_scale, w_scale);
    check_all(what, &in, &w);
    release(in.x);
    free(host);
    free(weights);
}

/* Rows that are not finite and rows far beyond the others, one at a time and together. */
static void check_rows(bool has_special, bool has_wide) {
    const uint64_t m = 70, n = 300;
    float *host = input_floats(m * n, 1.0);
    for (uint64_t row = 0; row < m; row += 7) {
        if (has_special) {
            host[row * n + input_below(n)] = row % 2 == 0 ? NAN : -INFINITY;
        }
        if (has_wide) {
            host[(row + 1) * n + input_below(n)] = 3e15f;
        }
    }
    const input in = {to_device(host, m * n * sizeof *host), m, n};
    check_statistics("rows set apart", &in);
    check_statistics("rows set apart again", &in);
    if (!has_wide) { /* one scale for all rows: products of the others lose them beside 1e15 */
        input_weights w = input_dense(9, n, INGOT_BF16);
        check_all("rows that are not finite", &in, &w.view);
        input_weights_free(&w);
    }
    release(in.x);
    free(host);
}

static void test_ranges(void) {
    static const double scales[] = {1e-15, 1e-7, 1e-3, 1.0, 3e4, 1e7, 1e14};
    for (unsigned i = 0; i < 7; i++) {
        check_range(scales[i], scales[input_below(7)]);
        check_range(scales[input_below(7)], scales[i]);
    }
    check_rows(false, false);
    check_rows(true, false);
    check_rows(false, true);
    check_rows(true, true);
}

/* ---- weights in pieces -------------------------------------------------------------------------
 */

/* 256 MiB in binary16 are unpacked at once; these are more.  Some rows are looked at. */
static void test_pieces(void) {
    const uint64_t rows = 2100, cols = 65536, m = 16;
    uint8_t *codes = malloc(rows * cols / 4);
    uint16_t *scales = malloc(rows * sizeof *scales);
    for (uint64_t i = 0; i < rows * cols / 4; i += 8) {
        const uint64_t bits = input_bits();
        memcpy(codes + i, &bits, 8);
    }
    for (uint64_t i = 0; i < rows; i++) {
        scales[i] = ingot_f32_to_f16(0.01f + (float)i * 1e-5f);
    }
    const ingot_weight_view w = {.kind = INGOT_GROUPED,
                                 .rows = rows,
                                 .cols = cols,
                                 .dtype = INGOT_F16,
                                 .bits = 2,
                                 .scale_dtype = INGOT_F16,
                                 .group = cols,
                                 .groups_per_row = 1,
                                 .row_stride_bytes = cols / 4,
                                 .codes = codes,
                                 .scales = scales};
    float *x = input_floats(m * cols, 1.0), *bias = input_floats(rows, 100.0);
    float *x_there = to_device(x, m * cols * sizeof *x), *y = NULL;
    float *bias_there = to_device(bias, rows * sizeof *bias);
    ingot_weight_view view;
    REQUIRE_OK(cuda.ops->upload_view(cuda.context, &view, &w));
    REQUIRE_OK(cuda.ops->alloc(cuda.context, (void **)&y, m * rows * sizeof *y));
    REQUIRE_OK(cuda.ops->linear(cuda.context, y, &view, bias_there, x_there, m));
    float *got = to_host(y, m * rows);
    static const uint64_t looked_at[] = {0, 1, 1049, 1050, 1279, 1280, 1281, 2047, 2048, 2099};
    for (unsigned k = 0; k < sizeof looked_at / sizeof looked_at[0]; k++) {
        const uint64_t row = looked_at[k];
        double value[16] = {0}, size[16] = {0};
        const ingot_weight_view one = {.kind = INGOT_GROUPED,
                                       .rows = 1,
                                       .cols = cols,
                                       .dtype = INGOT_F16,
                                       .bits = 2,
                                       .scale_dtype = INGOT_F16,
                                       .group = cols,
                                       .groups_per_row = 1,
                                       .row_stride_bytes = cols / 4,
                                       .codes = codes + row * (cols / 4),
                                       .scales = scales + row};
        ref_linear(value, size, &one, bias + row, x, m);
        for (uint64_t i = 0; i < m; i++) {
            CU_ASSERT(fabs((double)got[i * rows + row] - value[i]) <= PRODUCT_BOUND * size[i]);
        }
    }
    cuda.ops->release_view(cuda.context, &view);
    release(x_there);
    release(bias_there);
    release(y);
    free(got);
    free(x);
    free(bias);
    free(codes);
    free(scales);
}

int main(void) {
    ingot_error error;
    input_start("cuda forward");
    if (ingot_backend_open(&cuda, "cuda", 0, &error) != INGOT_OK) {
        printf("SKIP: no CUDA device: %s\n", error.reason);
        return 77;
    }
    const CU_TestInfo tests[] = {
        {"the copy follows what is written", test_writers},
        {"norms and activations make the copy", test_makers},
        {"ranges", test_ranges},
        {"weights in pieces", test_pieces},
        CU_TEST_INFO_NULL,
    };
    const int result = suite_run("cuda forward", tests);
    ingot_backend_close(&cuda);
    return result;
}
