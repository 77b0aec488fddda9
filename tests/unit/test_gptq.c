/* GPTQ of kernels/quantize.h against the textbook in FP64, its factor at every step of the damping,
 * and what happens where there is none; on every instruction set. */
#include "quantize_inputs.h"

/* Upper triangular U with U^T U = inverse of a[n][n], in FP64 by the explicit inverse. */
static void inverse_factor(double *u, const double *a, uint64_t n) {
    double *work = calloc(n * 2 * n, sizeof *work);
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j < n; j++) {
            work[i * 2 * n + j] = a[i * n + j];
        }
        work[i * 2 * n + n + i] = 1;
    }
    for (uint64_t p = 0; p < n; p++) { /* Gauss-Jordan; a is positive definite */
        const double pivot = work[p * 2 * n + p];
        for (uint64_t j = 0; j < 2 * n; j++) {
            work[p * 2 * n + j] /= pivot;
        }
        for (uint64_t i = 0; i < n; i++) {
            const double factor = i == p ? 0 : work[i * 2 * n + p];
            for (uint64_t j = 0; factor != 0 && j < 2 * n; j++) {
                work[i * 2 * n + j] -= factor * work[p * 2 * n + j];
            }
        }
    }
    memset(u, 0, n * n * sizeof *u);
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = i; j < n; j++) {
            double value = work[i * 2 * n + n + j];
            for (uint64_t k = 0; k < i; k++) {
                value -= u[k * n + i] * u[k * n + j];
            }
            u[i * n + j] = i == j ? sqrt(value) : value / u[i * n + i];
        }
    }
    free(work);
}

/* Textbook GPTQ of one row in FP64 by the inverse Hessian, scales searched when a group begins.
 * codes[] is compared with q's; returns whether all are equal. */
static bool gptq_row_reference(const ingot_quantized *q, const float *w, uint64_t row,
                               const ingot_gptq_factor *factor, const double *u,
                               ingot_arena *arena) {
    const uint64_t n = q->cols, group = q->format.group;
    double *t = calloc(n, sizeof *t);
    float scale = 0;
    int zero = 0;
    bool is_equal = true;
    for (uint64_t j = 0; j < n; j++) {
        t[j] = (double)w[row * n + factor->order[j]];
    }
    for (uint64_t j = 0, left = 0; j < n; j++, left--) {
        const uint64_t g = factor->order[j] / group;
        if (left == 0) {
            const uint64_t count = (g + 1) * group <= n ? group : n - g * group;
            ingot_quant_format format = q->format;
            format.group = count;
            ingot_quantized one = new_quantized(1, count, format, arena);
            float values[256], importance[256];
            for (uint64_t k = 0; k < count; k++) {
                values[k] = (float)t[j + k];
                importance[k] = factor->importance[factor->order[j + k]];
            }
            CU_ASSERT(ingot_quantize_search(&one, values, importance, arena, NULL) == INGOT_OK);
            scale = one.scales[0];
            zero = one.zeros[0];
            is_equal = is_equal && scale == q->scales[row * q->groups + g] &&
                       zero == q->zeros[row * q->groups + g];
            left = count;
        }
        const int top = (1 << q->format.bits) - 1;
        double c = scale != 0 ? rint(t[j] / (double)scale) : 0;
        c = c < -zero ? -zero : c > top - zero ? top - zero : c;
        is_equal = is_equal && q->codes[row * n + factor->order[j]] == (int)c + zero;
        const double e = (t[j] - (double)scale * c) / u[j * n + j];
        for (uint64_t k = j + 1; k < n; k++) {
            t[k] -= e * u[j * n + k];
        }
    }
    free(t);
    return is_equal;
}

static void check_gptq(unsigned bits, uint64_t group, bool is_symmetric, uint64_t cols) {
    ingot_arena *arena = new_arena();
    const uint64_t rows = 130;
    const float *w = random_weights(arena, rows * cols);
    const float *gram = random_gram(arena, cols, 300);
    const ingot_quant_format format = {.bits = bits,
                                       .group = group,
                                       .zero_mode =
                                           is_symmetric ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED,
                                       .scale_dtype = INGOT_F16};
    ingot_quantized q = new_quantized(rows, cols, format, arena);
    ingot_quantized plain = new_quantized(rows, cols, format, arena);
    ingot_gptq_factor factor;
    CU_ASSERT(ingot_gptq_factorize(&factor, gram, cols, group, arena, arena) == INGOT_OK);
    CU_ASSERT(factor.damping_step == 0 && factor.dead_columns == 0);
    CU_ASSERT(ingot_quantize_gptq(&q, w, &factor, arena, NULL) == INGOT_OK);
    ingot_quantize_rtn(&plain, w, NULL);
    double mean = 0;
    for (uint64_t j = 0; j < cols; j++) {
        mean += (double)gram[j * cols + j] / (double)cols;
    }
    double *h = calloc(cols * cols, sizeof *h), *u = calloc(cols * cols, sizeof *u);
    for (uint64_t i = 0; i < cols; i++) {
        for (uint64_t j = 0; j < cols; j++) {
            h[i * cols + j] = (double)gram[factor.order[i] * cols + factor.order[j]];
        }
        h[i * cols + i] = damped_reference(h[i * cols + i], factor.damping, mean);
    }
    inverse_factor(u, h, cols);
    uint64_t equal = 0;
    for (uint64_t r = 0; r < rows; r++) {
        equal += gptq_row_reference(&q, w, r, &factor, u, arena);
    }
    free(h);
    free(u);
    const double loss = loss_reference(w, &q, gram), yardstick = loss_reference(w, &plain, gram);
    printf(" %u bits g%d: %d of %d rows as the textbook, loss %.3f of plain;", bits, (int)group,
           (int)equal, (int)rows, loss / yardstick);
    CU_ASSERT(equal * 100 >= rows * 80); /* the rest: FP32 and FP64 part at a near tie */
    CU_ASSERT(loss < 0.8 * yardstick);
    double fast;
    CU_ASSERT(ingot_quadratic_loss(&fast, w, rows, cols, &q, gram, NULL, arena) == INGOT_OK);
    CU_ASSERT(fabs(fast - loss) <= 1e-4 * loss);
    ingot_arena_destroy(arena);
}

static void test_gptq(void) {
    check_gptq(4, 32, true, 96);
    check_gptq(3, 64, false, 200); /* short last group */
    check_gptq(4, 128, true, 256);
    check_gptq(8, 176, true, 176); /* one group a row, longer than a block */
    check_gptq(2, 8, false, 40);
}

static void test_gptq_dead_and_singular(void) {
    ingot_arena *arena = new_arena();
    const uint64_t rows = 20, cols = 64;
    float *w = random_weights(arena, rows * cols);
    float *gram = random_gram(arena, cols, 10); /* rank 10 */
    for (uint64_t j = 0; j < cols; j++) {
        gram[j * cols + 5] = gram[5 * cols + j] = 0; /* a dead column */
    }
    const ingot_quant_format format = {
        .bits = 4, .group = 32, .zero_mode = INGOT_ZERO_SYMMETRIC, .scale_dtype = INGOT_F16};
    ingot_quantized q = new_quantized(rows, cols, format, arena);
    ingot_gptq_factor factor;
    CU_ASSERT(ingot_gptq_factorize(&factor, gram, cols, 32, arena, arena) == INGOT_OK);
    CU_ASSERT(factor.dead_columns == 1 && factor.damping_step < INGOT_DAMPING_STEPS);
    CU_ASSERT(ingot_quantize_gptq(&q, w, &factor, arena, NULL) == INGOT_OK);
    for (uint64_t r = 0; r < rows; r++) { /* the dead column is rounded, not zeroed */
        const float s = q.scales[r * q.groups];
        float c = rintf(w[r * cols + 5] / s);
        c = c < -8 ? -8 : c > 7 ? 7 : c;
        CU_ASSERT(q.codes[r * cols + 5] == (uint8_t)(c + 8));
    }
    gram[0] = -1e6f; /* an indefinite H: every step of the ladder is tried and told */
    gram[3 * cols + 2] = gram[2 * cols + 3] = 1e9f;
    CU_ASSERT(ingot_gptq_factorize(&factor, gram, cols, 32, arena, arena) == INGOT_OK);
    CU_ASSERT(factor.damping_step == 255);
    ingot_arena_destroy(arena);
}

/* A permutation that keeps the columns of a group together. */
static void check_order(const ingot_gptq_factor *factor) {
    uint8_t seen[256] = {0};
    for (uint64_t i = 0; i < factor->cols; i++) {
        const uint32_t c = factor->order[i];
        CU_ASSERT_FATAL(c < factor->cols);
        CU_ASSERT(seen[c]++ == 0);
        const bool is_first = i == 0 || factor->order[i - 1] / factor->group != c / factor->group;
        for (uint64_t k = c / factor->group * factor->group;
             is_first && k < factor->cols && k / factor->group == c / factor->group; k++) {
            CU_ASSERT(k == c || seen[k] == 0);
        }
    }
}

/* R R^T of a factor is the damped H, in the order of the factor: |R_jj| is not kept, so it is
 * found again from the diagonal, last column first. */
static void check_factor(const ingot_gptq_factor *factor, const float *gram) {
    const uint64_t n = factor->cols;
    double mean = 0, *d = calloc(n, sizeof *d), worst = 0;
    for (uint64_t j = 0; j < n; j++) {
        mean += (double)gram[j * n + j] / (double)n;
    }
    for (uint64_t i = n; i-- > 0;) { /* H_ij = sum_{k >= j} A_ik d_k A_jk, A unit upper, i <= j */
        for (uint64_t j = n; j-- > i;) {
            const uint64_t a = factor->order[i], b = factor->order[j];
            double h = (double)gram[a * n + b], sum = 0;
            h = i == j ? damped_reference(h, factor->damping, mean) : h;
            for (uint64_t k = j + 1; k < n; k++) {
                sum += (double)factor->feedback[i * n + k] * d[k] *
                       (double)factor->feedback[j * n + k];
            }
            if (i == j) {
                d[i] = h - sum;
                CU_ASSERT(d[i] > 0);
            } else {
                const double product = (double)factor->feedback[i * n + j] * d[j];
                worst = fmax(worst, fabs(h - sum - product) / mean);
            }
        }
    }
    CU_ASSERT(worst < 1e-4);
    free(d);
}

/* Each step of the ladder is the first that suffices for some H; the last repeats the damping of
 * the one before in FP64. */
static void test_damping_ladder(void) {
    static const double steps[] = {0.01, 0.03, 0.1, 0.3, 1.0, 1.0};
    enum { COLS = 50 };
    ingot_arena *arena = new_arena();
    static float gram[COLS * COLS];
    ingot_gptq_factor factor;
    double lowest = 0.5 + 0.005; /* half of the diagonal is shrinkage */
    for (unsigned step = 0; step < 5; step++) {
        indefinite_gram(gram, COLS, lowest);
        CU_ASSERT(ingot_gptq_factorize(&factor, gram, COLS, 16, arena, arena) == INGOT_OK);
        CU_ASSERT(factor.damping_step == step && factor.damping == steps[step]);
        check_order(&factor);
        check_factor(&factor, gram);
        lowest = step < 4 ? 0.5 + (steps[step] + steps[step + 1]) / 2 : 0;
    }
    bool is_reached = false; /* an H that is positive definite by less than FP32 resolves */
    for (uint64_t n = 10; n <= COLS; n++) {
        barely_definite_gram(gram, n);
        CU_ASSERT(ingot_gptq_factorize(&factor, gram, n, 16, arena, arena) == INGOT_OK);
        CU_ASSERT(factor.damping_step == 4 || factor.damping_step == 5);
        is_reached = is_reached || factor.damping_step == 5;
        CU_ASSERT(factor.damping == 1.0 && isfinite(factor.feedback[1]));
    }
    CU_ASSERT(is_reached);
    ingot_arena_destroy(arena);
}

/* Where no damping helps the factor says so and is still of use: GPTQ with it is the search. */
static void test_no_factor(void) {
    enum { ROWS = 19, COLS = 50 };
    ingot_arena *arena = new_arena();
    static float gram[COLS * COLS];
    const float *w = random_weights(arena, ROWS * COLS);
    const ingot_quant_format format = {
        .bits = 3, .group = 16, .zero_mode = INGOT_ZERO_STORED, .scale_dtype = INGOT_F16};
    for (unsigned i = 0; i < 4; i++) {
        ingot_gptq_factor factor;
        indefinite_gram(gram, COLS, 5.0);
        if (i > 0) { /* sums that overflowed, or worse; all columns dead */
            gram[20 * COLS + 20] = i == 1 ? INFINITY : NAN;
        }
        memset(gram, 0, i == 3 ? sizeof gram : 0);
        CU_ASSERT(ingot_gptq_factorize(&factor, gram, COLS, 16, arena, arena) == INGOT_OK);
        CU_ASSERT(i == 3 ? factor.damping_step == 0 : factor.damping_step == 255);
        CU_ASSERT(factor.dead_columns == (i == 3 ? COLS : i == 2));
        check_order(&factor);
        for (unsigned k = 0; k < COLS * COLS; k++) {
            CU_ASSERT(factor.feedback[k] == 0.0f);
        }
        for (unsigned k = 0; k < COLS; k++) {
            CU_ASSERT(isfinite(factor.importance[k]) && factor.importance[k] >= 0);
        }
        ingot_quantized q = new_quantized(ROWS, COLS, format, arena);
        ingot_quantized found = new_quantized(ROWS, COLS, format, arena);
        CU_ASSERT(ingot_quantize_gptq(&q, w, &factor, arena, NULL) == INGOT_OK);
        CU_ASSERT(ingot_quantize_search(&found, w, factor.importance, arena, NULL) == INGOT_OK);
        const double a = weighted_loss(w, &q, factor.importance);
        const double b = weighted_loss(w, &found, factor.importance);
        CU_ASSERT(fabs(a - b) <= 1e-3 * b); /* sums in another order */
    }
    ingot_arena_destroy(arena);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"against the textbook by the explicit inverse", test_gptq},
        {"dead columns and a singular H", test_gptq_dead_and_singular},
        {"every step of the damping", test_damping_ladder},
        {"no factor", test_no_factor},
        CU_TEST_INFO_NULL,
    };
    return run_on_every_level("gptq", tests);
}
