/* What lies below the cpu backend (kernels/cpu/cpu.h), on every instruction set: unpacking of any
 * stretch of a row, the exponentials, and products of levels v3 and v4, with dot products of bytes
 * (VNNI) and without, against each other. */
#include "backend_inputs.h"
#include "backend_reference.h"
#include "kernels/cpu/cpu.h"
#include "suite.h"

/* Any stretch of a row, for every kind of weight: exactly what a loader computes. */
static void check_segments(const ingot_cpu_isa *isa, unsigned kind) {
    const uint64_t rows = 3, cols = input_size(300);
    input_weights w = input_kind(kind, rows, cols);
    for (uint64_t first = 0; first < cols; first += 8 * (1 + input_below(4))) {
        const uint64_t count = 1 + input_below(cols - first), row = input_below(rows);
        float *out = malloc((count + 1) * sizeof *out);
        out[count] = 12345.0f;
        isa->weight->segment(out, &w.view, row, first, count);
        unsigned wrong = out[count] != 12345.0f;
        for (uint64_t i = 0; i < count; i++) {
            wrong += (double)out[i] != ref_weight(&w.view, row, first + i);
        }
        CU_ASSERT(wrong == 0);
        free(out);
    }
    input_weights_free(&w);
}

static void check_exponentials(const ingot_cpu_isa *isa) {
    float x[129], y[129];
    double wide[129], y_wide[129];
    for (unsigned i = 0; i < 129; i++) {
        x[i] = (float)(-87.3 + 175.6 * input_uniform());
        wide[i] = i % 2 == 0 ? -700 * input_uniform() : -input_uniform();
    }
    x[3] = x[128] = NAN;
    x[5] = -INFINITY;
    x[7] = 0.0f;
    wide[128] = -INFINITY;
    isa->math->exp_f32(y, x, 129);
    isa->math->exp_f64(y_wide, wide, 129);
    for (unsigned i = 0; i < 129; i++) {
        const double exact = exp((double)x[i]);
        CU_ASSERT(isnan(x[i]) ? isnan(y[i]) : fabs((double)y[i] - exact) <= 1.5 * 0x1p-23 * exact);
        CU_ASSERT(fabs(y_wide[i] - exp(wide[i])) <= 1e-15 * exp(wide[i]));
    }
}

static void test_segments(void) {
    for (unsigned level = 0; ingot_cpu_isa_at(level) != NULL; level++) {
        for (unsigned kind = 0; kind < INPUT_KINDS; kind++) {
            check_segments(ingot_cpu_isa_at(level), kind);
        }
    }
}

static void test_exponentials(void) {
    for (unsigned level = 0; ingot_cpu_isa_at(level) != NULL; level++) {
        for (unsigned i = 0; i < 20; i++) {
            check_exponentials(ingot_cpu_isa_at(level));
        }
    }
}

/* sums[rows][m] of all rows of a view and m rows of x, by one table. */
static float *product_of(const ingot_cpu_product_ops *ops, const ingot_weight_view *w,
                         const float *x, unsigned m) {
    const uint64_t stride = ops->arranged_count(w->cols, w->bits);
    int32_t *arranged = malloc(m * stride * sizeof *arranged);
    float *sums = malloc(w->rows * m * sizeof *sums);
    for (unsigned r = 0; r < m; r++) {
        ops->arrange(arranged + r * stride, x + r * w->cols, w);
    }
    ops->rows(sums, w, 0, w->rows, arranged, stride, m);
    free(arranged);
    return sums;
}

/* Products have the same bits, whatever instructions of levels v3 and v4 they use. */
static void test_products(void) {
    static const struct {
        const ingot_cpu_product_ops *plain, *other;
        unsigned level;
        bool is_vnni;
    } pairs[] = {{&ingot_cpu_product_v3, &ingot_cpu_product_v3n, 1, true},
                 {&ingot_cpu_product_v4, &ingot_cpu_product_v4n, 2, true},
                 {&ingot_cpu_product_v3, &ingot_cpu_product_v4, 2, false}};
    static const uint64_t groups[] = {32, 64, 128, 256};
    for (unsigned i = 0; i < 3; i++) {
        const ingot_cpu_isa *isa = ingot_cpu_isa_at(pairs[i].level);
        if (isa == NULL || (pairs[i].is_vnni && isa->product != pairs[i].other)) {
            printf("\nSKIP: no level v%u%s\n", 2 + pairs[i].level,
                   pairs[i].is_vnni ? " with VNNI" : "");
            continue;
        }
        for (unsigned k = 0; k < 140; k++) {
            const unsigned m = 1 + input_below(4);
            const uint64_t rows = 1 + input_below(40), cols = 1 + input_below(1500);
            const uint64_t drawn = k % 6 == 5 ? cols : groups[input_below(4)];
            input_weights w = input_grouped(rows, cols, 2 + k % 7, drawn < cols ? drawn : cols,
                                            k % 2 == 0 ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED,
                                            INGOT_F16, false);
            float *x = input_floats(m * cols, 1.0);
            float *plain = product_of(pairs[i].plain, &w.view, x, m);
            float *other = product_of(pairs[i].other, &w.view, x, m);
            CU_ASSERT(memcmp(plain, other, rows * m * sizeof *plain) == 0);
            free(plain);
            free(other);
            free(x);
            input_weights_free(&w);
        }
    }
}

static void test_levels(void) {
    CU_ASSERT(ingot_cpu_isa_at(0) != NULL);
    CU_ASSERT(ingot_cpu_isa_at(3) == NULL);
    for (unsigned level = 0; ingot_cpu_isa_at(level) != NULL; level++) {
        (void)setenv("INGOT_CPU_ISA", ingot_cpu_isa_at(level)->name, 1);
        CU_ASSERT(ingot_cpu_isa_select() == ingot_cpu_isa_at(level));
    }
    (void)setenv("INGOT_CPU_ISA", "v9", 1);
    CU_ASSERT(ingot_cpu_isa_select() == NULL);
    (void)unsetenv("INGOT_CPU_ISA");
    CU_ASSERT(ingot_cpu_isa_select() != NULL);
}

int main(void) {
    input_start("isa");
    const CU_TestInfo tests[] = {
        {"segments of a row", test_segments},
        {"exponentials", test_exponentials},
        {"products by all instructions of v3 and v4", test_products},
        {"levels by name", test_levels},
        CU_TEST_INFO_NULL,
    };
    return suite_run("isa", tests);
}
