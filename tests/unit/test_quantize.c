/* kernels/quantize.h against slow plain references in FP64 on random inputs. */
#include "format/half.h"
#include "kernels/quantize.h"
#include "suite.h"

#include <math.h>
#include <string.h>
#include <time.h>

static uint64_t seed;

static double uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) * 0x1p-53;
}

static double normal(void) {
    return sqrt(-2 * log(1 - uniform())) * cos(6.283185307179586 * uniform());
}

/* Weights with a few large ones, as real matrices have. */
static float *random_weights(ingot_arena *arena, uint64_t count) {
    float *w = NULL;
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&w, count * sizeof *w) == INGOT_OK);
    for (uint64_t i = 0; i < count; i++) {
        w[i] = (float)(normal() * (uniform() < 0.01 ? 0.3 : 0.05));
    }
    return w;
}

/* H = X^T X of correlated inputs with channels of very different energy; lower triangle, mirrored.
 */
static float *random_gram(ingot_arena *arena, uint64_t n, uint64_t tokens) {
    float *gram = NULL, *x = NULL;
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&gram, n * n * sizeof *gram) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&x, n * sizeof *x) == INGOT_OK);
    memset(gram, 0, n * n * sizeof *gram);
    for (uint64_t t = 0; t < tokens; t++) {
        const double common = normal();
        for (uint64_t i = 0; i < n; i++) {
            const double scale = 0.2 + 3.0 * (double)((i * 7919) % n) / (double)n;
            x[i] = (float)(scale * (normal() + 0.7 * common));
        }
        for (uint64_t i = 0; i < n; i++) {
            for (uint64_t j = 0; j <= i; j++) {
                gram[i * n + j] += x[i] * x[j];
            }
        }
    }
    ingot_gram_fold(gram, gram, NULL, n, NULL);
    return gram;
}

static ingot_arena *new_arena(void) {
    ingot_arena *arena = NULL;
    CU_ASSERT_FATAL(ingot_arena_create(&arena) == INGOT_OK);
    return arena;
}

static ingot_quantized new_quantized(uint64_t rows, uint64_t cols, ingot_quant_format format,
                                     ingot_arena *arena) {
    ingot_quantized q;
    CU_ASSERT_FATAL(ingot_quantized_create(&q, rows, cols, &format, arena) == INGOT_OK);
    return q;
}

static double loss_reference(const float *w, const ingot_quantized *q, const float *gram) {
    const uint64_t n = q->cols;
    double *e = calloc(n, sizeof *e), total = 0;
    float *row = calloc(n, sizeof *row);
    for (uint64_t r = 0; r < q->rows; r++) {
        ingot_quantized_row(row, q, r);
        for (uint64_t i = 0; i < n; i++) {
            e[i] = (double)w[r * n + i] - (double)row[i];
        }
        for (uint64_t i = 0; i < n; i++) {
            for (uint64_t j = 0; j < n; j++) {
                total += e[i] * e[j] * (double)gram[i * n + j];
            }
        }
    }
    free(e);
    free(row);
    return total;
}

static double weighted_loss(const float *w, const ingot_quantized *q, const float *importance) {
    double total = 0;
    float *row = calloc(q->cols, sizeof *row);
    for (uint64_t r = 0; r < q->rows; r++) {
        ingot_quantized_row(row, q, r);
        for (uint64_t i = 0; i < q->cols; i++) {
            const double e = (double)w[r * q->cols + i] - (double)row[i];
            total += e * e * (importance != NULL ? (double)importance[i] : 1.0);
        }
    }
    free(row);
    return total;
}

/* The same of columns first..end-1 of row r. */
static double group_loss(const float *w, const ingot_quantized *q, const float *importance,
                         uint64_t r, uint64_t first, uint64_t end) {
    double total = 0;
    float *row = calloc(q->cols, sizeof *row);
    ingot_quantized_row(row, q, r);
    for (uint64_t i = first; i < end; i++) {
        const double e = (double)w[r * q->cols + i] - (double)row[i];
        total += e * e * (double)importance[i];
    }
    free(row);
    return total;
}

/* ---- plain rounding ----------------------------------------------------------------------- */

static void check_rtn_group(const ingot_quantized *q, const float *w, uint64_t r, uint64_t g) {
    const uint64_t first = g * q->format.group;
    const unsigned top = (1u << q->format.bits) - 1, half = 1u << (q->format.bits - 1);
    double low = 0, high = 0;
    uint64_t end = first + q->format.group < q->cols ? first + q->format.group : q->cols;
    for (uint64_t j = first; j < end; j++) {
        const double x = (double)w[r * q->cols + j];
        low = x < low ? x : low;
        high = x > high ? x : high;
    }
    const bool is_symmetric = q->format.zero_mode == INGOT_ZERO_SYMMETRIC;
    const double plain = is_symmetric ? fmax(-low, high) / (half - 1) : (high - low) / top;
    const float scale = q->scales[r * q->groups + g];
    const double ulp = q->format.scale_dtype == INGOT_BF16 ? 0x1p-8 : 0x1p-11;
    CU_ASSERT(fabs((double)scale - plain) <= plain * ulp + 0x1p-25);
    CU_ASSERT(scale == ingot_round_to_dtype(scale, q->format.scale_dtype));
    const unsigned zero = q->zeros[r * q->groups + g];
    CU_ASSERT(!is_symmetric || zero == half);
    for (uint64_t j = first; scale != 0 && j < end; j++) {
        const double x = (double)w[r * q->cols + j] / (double)scale;
        double code = rint(x) + zero;
        code = code < 0 ? 0 : code > top ? top : code;
        const bool is_tie = fabs(fabs(x - trunc(x)) - 0.5) < 1e-4;
        CU_ASSERT(is_tie || code == q->codes[r * q->cols + j]);
    }
}

static void test_rtn(void) {
    static const uint64_t groups[] = {8, 32, 128, 200};
    ingot_arena *arena = new_arena();
    for (unsigned bits = 2; bits <= 8; bits++) {
        for (unsigned i = 0; i < 8; i++) {
            const uint64_t rows = 70, cols = 200;
            const float *w = random_weights(arena, rows * cols);
            ingot_quantized q = new_quantized(
                rows, cols,
                (ingot_quant_format){.bits = bits,
                                     .group = groups[i / 2],
                                     .zero_mode = i % 2 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC,
                                     .scale_dtype = i < 6 ? INGOT_F16 : INGOT_BF16},
                arena);
            ingot_quantize_rtn(&q, w, NULL);
            for (uint64_t r = 0; r < rows; r++) {
                for (uint64_t g = 0; g < q.groups; g++) {
                    check_rtn_group(&q, w, r, g);
                }
            }
        }
    }
    ingot_arena_destroy(arena);
}

static void test_zero_weights(void) {
    ingot_arena *arena = new_arena();
    float w[3 * 40] = {0};
    w[45] = 1e-12f; /* below every F16 scale */
    for (unsigned mode = 0; mode < 2; mode++) {
        ingot_quantized q = new_quantized(3, 40,
                                          (ingot_quant_format){.bits = 4,
                                                               .group = 16,
                                                               .zero_mode = (ingot_zero_mode)mode,
                                                               .scale_dtype = INGOT_F16},
                                          arena);
        ingot_quantize_rtn(&q, w, NULL);
        CU_ASSERT(weighted_loss(w, &q, NULL) < 1e-20);
        CU_ASSERT(ingot_quantize_search(&q, w, NULL, arena, NULL) == INGOT_OK);
        CU_ASSERT(weighted_loss(w, &q, NULL) < 1e-20);
    }
    CU_ASSERT(ingot_scale_store(1e9f, INGOT_F16) == 32768.0f);
    CU_ASSERT(ingot_scale_store(-1e9f, INGOT_F16) == -32768.0f);
    CU_ASSERT(ingot_scale_store(1e-9f, INGOT_F16) == 0.0f);
    CU_ASSERT(ingot_scale_store(1e-9f, INGOT_BF16) != 0.0f);
    ingot_arena_destroy(arena);
}

/* ---- scale search ------------------------------------------------------------------------- */

/* Smallest weighted loss of one group over a fine grid of scales and every zero, in FP64. */
static double search_reference(const float *w, const float *d, uint64_t n, unsigned bits,
                               bool is_symmetric) {
    const int top = (1 << bits) - 1, half = 1 << (bits - 1);
    double largest = 0, best = INFINITY;
    for (uint64_t j = 0; j < n; j++) {
        largest = fmax(largest, fabs((double)w[j]));
    }
    for (int z = is_symmetric ? half : 0; z <= (is_symmetric ? half : top); z++) {
        for (int i = -400; i <= 400; i++) {
            const double s = largest * 2.2 * i / 400.0 / half;
            double loss = 0;
            for (uint64_t j = 0; s != 0 && j < n; j++) {
                double c = rint((double)w[j] / s);
                c = c < -z ? -z : c > top - z ? top - z : c;
                const double e = (double)w[j] - s * c;
                loss += (double)d[j] * e * e;
            }
            best = s != 0 && loss < best ? loss : best;
        }
    }
    return best;
}

static void test_search(void) {
    ingot_arena *arena = new_arena();
    for (unsigned i = 0; i < 8; i++) {
        const bool is_symmetric = i % 2 == 0;
        const unsigned bits = 2 + i / 2;
        const uint64_t rows = 24, cols = 72, group = 32;
        const float *w = random_weights(arena, rows * cols);
        float importance[72];
        for (unsigned j = 0; j < cols; j++) {
            importance[j] = (float)exp(2 * normal());
        }
        const ingot_quant_format format = {.bits = bits,
                                           .group = group,
                                           .zero_mode = is_symmetric ? INGOT_ZERO_SYMMETRIC
                                                                     : INGOT_ZERO_STORED,
                                           .scale_dtype = INGOT_F16};
        ingot_quantized plain = new_quantized(rows, cols, format, arena);
        ingot_quantized found = new_quantized(rows, cols, format, arena);
        ingot_quantize_rtn(&plain, w, NULL);
        CU_ASSERT(ingot_quantize_search(&found, w, importance, arena, NULL) == INGOT_OK);
        double reference = 0;
        double excess = 0; /* sum over the groups of log(loss / exhaustive loss) */
        uint64_t groups = 0;
        for (uint64_t r = 0; r < rows; r++) {
            for (uint64_t first = 0; first < cols; first += group, groups++) {
                const uint64_t end = first + group < cols ? first + group : cols;
                const double best = search_reference(w + r * cols + first, importance + first,
                                                     end - first, bits, is_symmetric);
                reference += best;
                excess += log(group_loss(w, &found, importance, r, first, end) / best);
            }
        }
        const double loss = weighted_loss(w, &found, importance);
        printf(" %u bits %s: plain %.4g found %.4g exhaustive %.4g, by group %.3f;", bits,
               is_symmetric ? "sym" : "asym", weighted_loss(w, &plain, importance), loss, reference,
               exp(excess / (double)groups));
        CU_ASSERT(loss <= weighted_loss(w, &plain, importance));
        /* The mean over the groups: importances are heavy-tailed, so the sum hangs on a few of
         * them.  Largest of 480 draws: 1.28 (5 bits). */
        CU_ASSERT(excess <= log(1.35) * (double)groups);
    }
    ingot_arena_destroy(arena);
}

/* ---- GPTQ ---------------------------------------------------------------------------------- */

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
        h[i * cols + i] += factor.damping * mean;
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

/* ---- outliers ------------------------------------------------------------------------------ */

static void test_outliers(void) {
    ingot_arena *arena = new_arena();
    const uint64_t rows = 67, cols = 104, count = rows * cols / 100;
    const float *w = random_weights(arena, rows * cols);
    const float *gram = random_gram(arena, cols, 200);
    ingot_gptq_factor factor;
    CU_ASSERT(ingot_gptq_factorize(&factor, gram, cols, 32, arena, arena) == INGOT_OK);
    for (unsigned mode = 0; mode < 2; mode++) {
        const ingot_quant_format format = {
            .bits = 3, .group = 32, .zero_mode = (ingot_zero_mode)mode, .scale_dtype = INGOT_F16};
        ingot_quantized q = new_quantized(rows, cols, format, arena);
        CU_ASSERT(ingot_quantize_search(&q, w, factor.importance, arena, NULL) == INGOT_OK);
        const double before = weighted_loss(w, &q, factor.importance);
        CU_ASSERT(ingot_outliers_choose(&q, w, factor.importance, count, INGOT_F16, arena, arena,
                                        NULL) == INGOT_OK);
        CU_ASSERT(ingot_quantize_search(&q, w, factor.importance, arena, NULL) == INGOT_OK);
        CU_ASSERT(q.outliers.count == count && q.outliers.row_ptr[rows] == count);
        CU_ASSERT(weighted_loss(w, &q, factor.importance) < 0.9 * before);
        const double searched = loss_reference(w, &q, gram);
        for (unsigned pass = 0; pass < 2; pass++) {
            for (uint64_t r = 0; r < rows; r++) {
                for (uint64_t i = q.outliers.row_ptr[r]; i < q.outliers.row_ptr[r + 1]; i++) {
                    const uint32_t c = q.outliers.col[i];
                    CU_ASSERT(c < cols);
                    CU_ASSERT(i == q.outliers.row_ptr[r] || c > q.outliers.col[i - 1]);
                    CU_ASSERT(q.codes[r * cols + c] == q.zeros[r * q.groups + c / 32]);
                    CU_ASSERT(q.outliers.val[i] ==
                              ingot_round_to_dtype(q.outliers.val[i], INGOT_F16));
                }
            }
            CU_ASSERT(ingot_quantize_gptq(&q, w, &factor, arena, NULL) == INGOT_OK);
        }
        CU_ASSERT(loss_reference(w, &q, gram) < searched);
    }
    ingot_arena_destroy(arena);
}

/* ---- errors, packing, threads -------------------------------------------------------------- */

static void test_weight_error(void) {
    ingot_arena *arena = new_arena();
    const uint64_t rows = 75, cols = 89;
    const float *w = random_weights(arena, rows * cols);
    uint16_t *half = NULL;
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&half, rows * cols * 2) == INGOT_OK);
    ingot_convert_from_f32(half, INGOT_F16, w, rows * cols);
    float row_fold[75], column_fold[89], row[89];
    for (unsigned i = 0; i < rows; i++) {
        row_fold[i] = (float)(0.5 + uniform());
    }
    for (unsigned i = 0; i < cols; i++) {
        column_fold[i] = (float)(0.5 + uniform());
    }
    for (unsigned bits = 2; bits <= 8; bits++) {
        const ingot_quant_format format = {.bits = bits,
                                           .group = bits % 2 ? 16 : cols,
                                           .zero_mode =
                                               bits > 4 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC,
                                           .scale_dtype = bits == 8 ? INGOT_F32 : INGOT_F16};
        ingot_quantized q = new_quantized(rows, cols, format, arena);
        CU_ASSERT(ingot_quantize_search(&q, w, NULL, arena, NULL) == INGOT_OK);
        CU_ASSERT(ingot_outliers_choose(&q, w, NULL, 50, INGOT_F16, arena, arena, NULL) ==
                  INGOT_OK);
        CU_ASSERT(ingot_quantize_search(&q, w, NULL, arena, NULL) == INGOT_OK);
        ingot_weight_view stored;
        CU_ASSERT(ingot_quantized_pack(&stored, &q, arena, NULL) == INGOT_OK);
        const ingot_weight_view source = {
            .kind = INGOT_DENSE, .rows = rows, .cols = cols, .dtype = INGOT_F16, .data = half};
        double difference = 0, norm = 0;
        for (uint64_t r = 0; r < rows; r++) {
            ingot_weight_row(row, &stored, r, cols);
            for (uint64_t c = 0; c < cols; c++) {
                const double a = (double)ingot_f16_to_f32(half[r * cols + c]) *
                                 (double)row_fold[r] * (double)column_fold[c];
                difference += (a - (double)row[c]) * (a - (double)row[c]);
                norm += a * a;
            }
        }
        double packed, unpacked;
        CU_ASSERT(ingot_weight_error(&packed, &source, row_fold, column_fold, &stored, NULL) ==
                  INGOT_OK);
        CU_ASSERT(ingot_quantized_weight_error(&unpacked, &source, row_fold, column_fold, &q,
                                               NULL) == INGOT_OK);
        CU_ASSERT(fabs(packed - sqrt(difference / norm)) <= 1e-12 * packed);
        CU_ASSERT(packed == unpacked);
    }
    ingot_arena_destroy(arena);
}

static void test_threads(void) {
    ingot_arena *arena = new_arena();
    ingot_pool *pool = NULL;
    CU_ASSERT_FATAL(ingot_pool_create(&pool, 3) == INGOT_OK);
    const uint64_t rows = 300, cols = 160;
    const float *w = random_weights(arena, rows * cols);
    const float *gram = random_gram(arena, cols, 300);
    ingot_gptq_factor factor;
    CU_ASSERT(ingot_gptq_factorize(&factor, gram, cols, 64, arena, arena) == INGOT_OK);
    const ingot_quant_format format = {
        .bits = 4, .group = 64, .zero_mode = INGOT_ZERO_SYMMETRIC, .scale_dtype = INGOT_F16};
    ingot_quantized one = new_quantized(rows, cols, format, arena);
    ingot_quantized many = new_quantized(rows, cols, format, arena);
    CU_ASSERT(ingot_quantize_gptq(&one, w, &factor, arena, NULL) == INGOT_OK);
    CU_ASSERT(ingot_quantize_gptq(&many, w, &factor, arena, pool) == INGOT_OK);
    CU_ASSERT(memcmp(one.codes, many.codes, rows * cols) == 0);
    CU_ASSERT(memcmp(one.scales, many.scales, rows * one.groups * sizeof(float)) == 0);
    double a, b;
    CU_ASSERT(ingot_quadratic_loss(&a, w, rows, cols, &one, gram, NULL, arena) == INGOT_OK);
    CU_ASSERT(ingot_quadratic_loss(&b, w, rows, cols, &one, gram, pool, arena) == INGOT_OK);
    CU_ASSERT(a == b);
    ingot_pool_destroy(pool);
    ingot_arena_destroy(arena);
}

static void test_not_finite(void) {
    float values[50] = {0};
    CU_ASSERT(ingot_first_not_finite(values, 50) == 50);
    for (unsigned i = 0; i < 50; i++) {
        values[i] = i % 2 ? NAN : -INFINITY;
        CU_ASSERT(ingot_first_not_finite(values, 50) == i);
        values[i] = 3e38f;
    }
    CU_ASSERT(ingot_first_not_finite(values, 50) == 50);
}

int main(void) {
    const char *fixed = getenv("INGOT_TEST_SEED");
    seed = fixed != NULL ? strtoull(fixed, NULL, 10) : (uint64_t)time(NULL);
    printf("quantize: INGOT_TEST_SEED=%llu\n", (unsigned long long)seed);
    const CU_TestInfo tests[] = {
        {"plain rounding", test_rtn},
        {"zero and tiny weights", test_zero_weights},
        {"scale search against exhaustive search", test_search},
        {"GPTQ against the textbook by the explicit inverse", test_gptq},
        {"GPTQ with dead columns and a singular H", test_gptq_dead_and_singular},
        {"outliers", test_outliers},
        {"weight error", test_weight_error},
        {"same bytes for any number of threads", test_threads},
        {"values that are not finite", test_not_finite},
        CU_TEST_INFO_NULL,
    };
    return suite_run("quantize", tests);
}
