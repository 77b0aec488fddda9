/* kernels/quantize.h but GPTQ (test_gptq.c) against slow plain references in FP64 on random inputs,
 * on every instruction set. */
#include "quantize_inputs.h"

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

/* Rows and columns that fill no vector and no tile: every method gives legal codes, and the
 * better ones are better. */
static void test_odd_sizes(void) {
    static const uint64_t sizes[] = {1, 3, 17, 33, 65, 129, 255};
    for (unsigned i = 0; i < 28; i++) {
        ingot_arena *arena = new_arena();
        const uint64_t rows = sizes[(i * 3 + 1) % 7], cols = sizes[i % 7];
        const ingot_quant_format format = {.bits = 2 + i % 7,
                                           .group = i % 2 == 0 || cols < 16 ? cols : 16,
                                           .zero_mode = (ingot_zero_mode)(i / 7 % 2),
                                           .scale_dtype = i < 14 ? INGOT_F16 : INGOT_F32};
        const float *w = random_weights(arena, rows * cols);
        const float *gram = random_gram(arena, cols, 2 * cols + 8);
        ingot_quantized q = new_quantized(rows, cols, format, arena);
        ingot_gptq_factor factor;
        memset(q.codes, 0xff, rows * cols);
        ingot_quantize_rtn(&q, w, NULL);
        for (uint64_t k = 0; k < rows * q.groups; k++) {
            check_rtn_group(&q, w, k / q.groups, k % q.groups);
        }
        CU_ASSERT(ingot_gptq_factorize(&factor, gram, cols, format.group, arena, arena) ==
                  INGOT_OK);
        const double plain = weighted_loss(w, &q, factor.importance);
        memset(q.codes, 0xff, rows * cols);
        CU_ASSERT(ingot_quantize_search(&q, w, factor.importance, arena, NULL) == INGOT_OK);
        CU_ASSERT(weighted_loss(w, &q, factor.importance) <= plain * (1 + 1e-6) + 1e-12);
        memset(q.codes, 0xff, rows * cols);
        CU_ASSERT(ingot_quantize_gptq(&q, w, &factor, arena, NULL) == INGOT_OK);
        unsigned illegal = 0;
        for (uint64_t k = 0; k < rows * cols; k++) {
            illegal += q.codes[k] >> q.format.bits != 0;
        }
        CU_ASSERT(illegal == 0);
        ingot_arena_destroy(arena);
    }
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
    /* a scale that loses so much precision that the zero point would leave the range */
    const float low = -1.4f * 15 * 0x1p-24f;
    ingot_quantized tiny = new_quantized(
        1, 1,
        (ingot_quant_format){
            .bits = 4, .group = 1, .zero_mode = INGOT_ZERO_STORED, .scale_dtype = INGOT_F16},
        arena);
    ingot_quantize_rtn(&tiny, &low, NULL);
    CU_ASSERT(tiny.scales[0] == 0x1p-24f && tiny.zeros[0] == 15 && tiny.codes[0] == 0);
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
            importance[j] = (float)exp(2 * input_normal());
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
                const double loss = group_loss(w, &found, importance, r, first, end);
                const double rounded = group_loss(w, &plain, importance, r, first, end);
                CU_ASSERT(loss <= rounded * (1 + 1e-5));
                excess += log(loss / best);
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

/* Of equal gains the first are taken, as many as were asked for. */
static void test_outlier_ties(void) {
    ingot_arena *arena = new_arena();
    enum { ROWS = 90, COLS = 40, COUNT = 47 };
    float *w = random_weights(arena, ROWS * COLS);
    for (unsigned r = 1; r < ROWS; r++) {
        memcpy(w + r * COLS, w, COLS * sizeof *w);
    }
    const ingot_quant_format format = {
        .bits = 4, .group = COLS, .zero_mode = INGOT_ZERO_SYMMETRIC, .scale_dtype = INGOT_F16};
    ingot_quantized q = new_quantized(ROWS, COLS, format, arena);
    CU_ASSERT(ingot_quantize_search(&q, w, NULL, arena, NULL) == INGOT_OK);
    CU_ASSERT(ingot_outliers_choose(&q, w, NULL, COUNT, INGOT_F32, arena, arena, NULL) == INGOT_OK);
    CU_ASSERT(q.outliers.row_ptr[ROWS] == COUNT);
    for (unsigned r = 0; r < ROWS; r++) {
        CU_ASSERT(q.outliers.row_ptr[r + 1] - q.outliers.row_ptr[r] == (r < COUNT));
    }
    CU_ASSERT(ingot_outliers_choose(&q, w, NULL, ROWS * COLS + 1, INGOT_F32, arena, arena, NULL) ==
              INGOT_ERR_USAGE);
    ingot_arena_destroy(arena);
}

/* Weights that F16 does not hold are outliers of F32 alone, and are counted; where there are not
 * enough others the largest are cut off, and of weights that are all too small the smallest are
 * taken. */
static void test_outlier_range(void) {
    ingot_arena *arena = new_arena();
    enum { ROWS = 30, COLS = 40, COUNT = 12 };
    float *w = random_weights(arena, ROWS * COLS), largest = 0;
    const ingot_quant_format format = {
        .bits = 4, .group = COLS, .zero_mode = INGOT_ZERO_SYMMETRIC, .scale_dtype = INGOT_BF16};
    ingot_quantized q = new_quantized(ROWS, COLS, format, arena);
    w[17] = -1e6f;
    w[500] = 65519.0f; /* the last that F16 holds, as 65504 */
    w[1100] = 65520.0f;
    for (unsigned i = 0; i < 2; i++) {
        const ingot_dtype dtype = i == 0 ? INGOT_F16 : INGOT_F32;
        q.outliers = (ingot_outliers){0};
        CU_ASSERT(ingot_quantize_search(&q, w, NULL, arena, NULL) == INGOT_OK);
        CU_ASSERT(ingot_outliers_choose(&q, w, NULL, COUNT, dtype, arena, arena, NULL) == INGOT_OK);
        CU_ASSERT(q.outliers.count == COUNT && q.outliers.row_ptr[ROWS] == COUNT);
        CU_ASSERT(q.outliers.left_out == (i == 0 ? 2 : 0));
        for (unsigned k = 0; k < COUNT; k++) {
            largest = fmaxf(largest, fabsf(q.outliers.val[k]));
        }
        CU_ASSERT(largest == (i == 0 ? 65504.0f : 1e6f));
    }
    for (unsigned i = 0; i < ROWS * COLS; i++) {
        w[i] = (i % 2 != 0 ? 1e6f : 2e6f) + (float)i;
    }
    q.outliers = (ingot_outliers){0};
    CU_ASSERT(ingot_quantize_search(&q, w, NULL, arena, NULL) == INGOT_OK);
    CU_ASSERT(ingot_outliers_choose(&q, w, NULL, COUNT, INGOT_F16, arena, arena, NULL) == INGOT_OK);
    CU_ASSERT(q.outliers.left_out > 0 && q.outliers.val[0] == 65504.0f);
    for (unsigned i = 0; i < ROWS * COLS; i++) {
        w[i] = 1e-12f * (float)(i + 1); /* all of them 0 */
    }
    q.outliers = (ingot_outliers){0};
    CU_ASSERT(ingot_quantize_search(&q, w, NULL, arena, NULL) == INGOT_OK);
    CU_ASSERT(ingot_outliers_choose(&q, w, NULL, 3, INGOT_F16, arena, arena, NULL) == INGOT_OK);
    CU_ASSERT(q.outliers.left_out == 3 && q.outliers.val[2] == 0.0f);
    ingot_arena_destroy(arena);
}

/* What an outlier's value is does not matter to the scale of its group, and its places can be
 * given to a matrix that was quantized without. */
static void test_outlier_places(void) {
    ingot_arena *arena = new_arena();
    enum { ROWS = 67, COLS = 104, COUNT = 150 };
    float *w = random_weights(arena, ROWS * COLS), importance[COLS];
    for (unsigned i = 0; i < COLS; i++) {
        importance[i] = (float)exp(input_normal());
    }
    const ingot_quant_format format = {
        .bits = 3, .group = 32, .zero_mode = INGOT_ZERO_STORED, .scale_dtype = INGOT_F16};
    ingot_quantized q = new_quantized(ROWS, COLS, format, arena);
    ingot_quantized again = new_quantized(ROWS, COLS, format, arena);
    ingot_quantized placed = new_quantized(ROWS, COLS, format, arena);
    CU_ASSERT(ingot_quantize_search(&q, w, importance, arena, NULL) == INGOT_OK);
    CU_ASSERT(ingot_outliers_choose(&q, w, importance, COUNT, INGOT_F16, arena, arena, NULL) ==
              INGOT_OK);
    CU_ASSERT(ingot_quantize_search(&q, w, importance, arena, NULL) == INGOT_OK);
    ingot_quantize_rtn(&placed, w, NULL);
    CU_ASSERT(ingot_outliers_place(&placed, &q.outliers, w, arena) == INGOT_OK);
    for (unsigned r = 0; r < ROWS; r++) {
        for (uint64_t i = q.outliers.row_ptr[r]; i < q.outliers.row_ptr[r + 1]; i++) {
            const uint32_t c = q.outliers.col[i];
            CU_ASSERT(placed.outliers.val[i] == ingot_round_to_dtype(w[r * COLS + c], INGOT_F16));
            CU_ASSERT(placed.codes[r * COLS + c] == placed.zeros[r * placed.groups + c / 32]);
            w[r * COLS + c] = (float)input_normal();
        }
    }
    again.outliers = q.outliers;
    CU_ASSERT(ingot_quantize_search(&again, w, importance, arena, NULL) == INGOT_OK);
    CU_ASSERT(memcmp(q.scales, again.scales, ROWS * q.groups * sizeof(float)) == 0);
    CU_ASSERT(memcmp(q.zeros, again.zeros, ROWS * q.groups) == 0);
    CU_ASSERT(memcmp(q.codes, again.codes, ROWS * COLS) == 0);
    ingot_arena_destroy(arena);
}

static void test_low_precision(void) {
    const uint16_t scales[6] = {0, 0x8000, 0x0400, 0x03ff, 0x8001, 0xbc00}; /* F16 bits */
    ingot_weight_view view = {.kind = INGOT_GROUPED,
                              .rows = 2,
                              .groups_per_row = 3,
                              .scale_dtype = INGOT_F16,
                              .scales = scales};
    CU_ASSERT(ingot_view_low_precision(&view) == 2);
    view.scale_dtype = INGOT_BF16;
    CU_ASSERT(ingot_view_low_precision(&view) == 0);
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
        row_fold[i] = (float)(0.5 + input_uniform());
    }
    for (unsigned i = 0; i < cols; i++) {
        column_fold[i] = (float)(0.5 + input_uniform());
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

static void test_values(void) {
    ingot_arena *arena = new_arena();
    const uint64_t rows = 67, cols = 89;
    const float *w = random_weights(arena, rows * cols);
    uint16_t *half = NULL;
    float *out = NULL, row_fold[67], column_fold[89], gram[9] = {4, 0, 0, 6, 9};
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&half, rows * cols * 2) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&out, rows * cols * 4) == INGOT_OK);
    for (unsigned i = 0; i < cols; i++) {
        column_fold[i] = (float)(0.5 + input_uniform());
        row_fold[i % 67] = (float)(0.5 + input_uniform());
    }
    ingot_convert_from_f32(half, INGOT_BF16, w, rows * cols);
    const ingot_weight_view source = {
        .kind = INGOT_DENSE, .rows = rows, .cols = cols, .dtype = INGOT_BF16, .data = half};
    uint64_t bad;
    CU_ASSERT(ingot_quantize_values(out, &bad, &source, row_fold, column_fold, NULL) == INGOT_OK);
    CU_ASSERT(bad == UINT64_MAX);
    for (uint64_t i = 0; i < rows * cols; i++) {
        const double exact = (double)ingot_round_to_dtype(w[i], INGOT_BF16) *
                             (double)row_fold[i / cols] * (double)column_fold[i % cols];
        CU_ASSERT(fabs((double)out[i] - exact) <= 0x1p-23 * fabs(exact));
    }
    half[66 * 89 + 5] = 0x7f80; /* infinity; the first bad one is told */
    half[63 * 89 + 88] = 0x7fc0;
    CU_ASSERT(ingot_quantize_values(out, &bad, &source, NULL, NULL, NULL) == INGOT_OK);
    CU_ASSERT(bad == 63 * 89 + 88);
    gram[1] = NAN; /* the upper triangle is not read */
    gram[6] = 1, gram[7] = 2, gram[8] = 3;
    const float fold[3] = {2, 3, 1}, folded[9] = {1, 1, 0.5f, 1, 1, 2 / 3.0f, 0.5f, 2 / 3.0f, 3};
    ingot_gram_fold(gram, gram, fold, 3, NULL);
    CU_ASSERT(memcmp(gram, folded, sizeof gram) == 0);
    ingot_arena_destroy(arena);
}

/* Everything that is done to one matrix, its results one after another: what must have the same
 * bits for every number of threads. */
typedef struct matrix_results {
    uint8_t bytes[1 << 20];
    uint64_t size;
} matrix_results;

static void keep(matrix_results *r, const void *data, uint64_t size) {
    CU_ASSERT_FATAL(size <= sizeof r->bytes - r->size);
    memcpy(r->bytes + r->size, data, size);
    r->size += size;
}

static void keep_quantized(matrix_results *r, const ingot_quantized *q, ingot_arena *arena,
                           ingot_pool *pool) {
    ingot_weight_view view;
    float *values = NULL;
    CU_ASSERT(ingot_quantized_pack(&view, q, arena, pool) == INGOT_OK);
    keep(r, view.codes, q->rows * view.row_stride_bytes);
    keep(r, view.scales, q->rows * q->groups * ingot_dtype_bytes(view.scale_dtype));
    keep(r, q->zeros, q->rows * q->groups);
    if (q->outliers.count != 0) {
        keep(r, view.outlier_row_ptr, (q->rows + 1) * sizeof(uint64_t));
        keep(r, view.outlier_col, q->outliers.count * sizeof(uint32_t));
        keep(r, view.outlier_val, q->outliers.count * ingot_dtype_bytes(view.dtype));
    }
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&values, q->rows * q->cols * 4) == INGOT_OK);
    ingot_quantized_values(values, q, pool);
    keep(r, values, q->rows * q->cols * sizeof *values);
}

static void quantize_in_every_way(matrix_results *r, const float *w, const float *gram,
                                  const ingot_gptq_factor *factor, ingot_quant_format format,
                                  uint64_t rows, ingot_pool *pool) {
    ingot_arena *arena = new_arena();
    const uint64_t cols = factor->cols;
    ingot_quantized q = new_quantized(rows, cols, format, arena);
    double figures[3];
    r->size = 0;
    ingot_quantize_rtn(&q, w, pool);
    keep_quantized(r, &q, arena, pool);
    CU_ASSERT(ingot_quantize_search(&q, w, factor->importance, arena, pool) == INGOT_OK);
    keep_quantized(r, &q, arena, pool);
    CU_ASSERT(ingot_outliers_choose(&q, w, factor->importance, rows * cols / 64, INGOT_F16, arena,
                                    arena, pool) == INGOT_OK);
    CU_ASSERT(ingot_quantize_gptq(&q, w, factor, arena, pool) == INGOT_OK);
    keep_quantized(r, &q, arena, pool);
    const ingot_weight_view source = {
        .kind = INGOT_DENSE, .rows = rows, .cols = cols, .dtype = INGOT_F32, .data = w};
    CU_ASSERT(ingot_quantized_weight_error(&figures[0], &source, NULL, NULL, &q, pool) == INGOT_OK);
    CU_ASSERT(ingot_quadratic_loss(&figures[1], w, rows, cols, &q, gram, pool, arena) == INGOT_OK);
    CU_ASSERT(ingot_quadratic_loss(&figures[2], w, rows, cols, NULL, gram, pool, arena) ==
              INGOT_OK);
    keep(r, figures, sizeof figures);
    ingot_arena_destroy(arena);
}

static void test_threads(void) {
    static const uint64_t shapes[][3] = {{300, 160, 64}, {65, 33, 33}, {1, 17, 8}, {129, 255, 128}};
    matrix_results *one = malloc(sizeof *one), *many = malloc(sizeof *many);
    for (unsigned i = 0; i < 8; i++) {
        const uint64_t rows = shapes[i / 2][0], cols = shapes[i / 2][1];
        ingot_arena *arena = new_arena();
        const float *w = random_weights(arena, rows * cols);
        const float *gram = random_gram(arena, cols, 300);
        const ingot_quant_format format = {.bits = 2 + (i * 3) % 7,
                                           .group = shapes[i / 2][2],
                                           .zero_mode = (ingot_zero_mode)(i % 2),
                                           .scale_dtype = INGOT_F16};
        ingot_gptq_factor factor;
        CU_ASSERT(ingot_gptq_factorize(&factor, gram, cols, format.group, arena, arena) ==
                  INGOT_OK);
        quantize_in_every_way(one, w, gram, &factor, format, rows, NULL);
        for (unsigned threads = 1; threads <= 3; threads++) {
            ingot_pool *pool = NULL;
            CU_ASSERT_FATAL(ingot_pool_create(&pool, threads) == INGOT_OK);
            quantize_in_every_way(many, w, gram, &factor, format, rows, pool);
            CU_ASSERT(one->size == many->size && memcmp(one->bytes, many->bytes, one->size) == 0);
            ingot_pool_destroy(pool);
        }
        ingot_arena_destroy(arena);
    }
    free(one);
    free(many);
}

/* The same through the table of operations of the cpu backend. */
static void quantize_through_table(matrix_results *r, const float *w, const float *gram,
                                   ingot_quant_format format, uint64_t rows, uint64_t cols,
                                   const ingot_backend *b) {
    ingot_arena *arena = NULL;
    CU_ASSERT_FATAL(ingot_backend_arena_create(&arena, b) == INGOT_OK);
    ingot_quantized q = new_quantized(rows, cols, format, arena);
    ingot_gptq_factor factor;
    ingot_weight_view view;
    float *values = NULL, *folded = NULL, diagonal[160];
    double figures[3], sums[2];
    uint64_t bad = 0;
    const ingot_weight_view source = {
        .kind = INGOT_DENSE, .rows = rows, .cols = cols, .dtype = INGOT_F32, .data = w};
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&values, rows * cols * 4) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&folded, cols * cols * 4) == INGOT_OK);
    CU_ASSERT(b->ops->values(b->context, values, &bad, &source, NULL, NULL) == INGOT_OK);
    CU_ASSERT(bad == UINT64_MAX && memcmp(values, w, rows * cols * sizeof *w) == 0);
    CU_ASSERT(b->ops->gram_fold(b->context, folded, gram, NULL, cols) == INGOT_OK);
    CU_ASSERT(memcmp(folded, gram, cols * cols * sizeof *gram) == 0);
    CU_ASSERT(b->ops->gram_diagonal(b->context, diagonal, gram, cols) == INGOT_OK);
    CU_ASSERT(diagonal[0] == gram[0] && diagonal[cols - 1] == gram[cols * cols - 1]);
    CU_ASSERT(b->ops->factorize(b->context, &factor, gram, cols, format.group, arena, arena) ==
              INGOT_OK);
    r->size = 0;
    CU_ASSERT(b->ops->quantize_rtn(b->context, &q, w) == INGOT_OK);
    keep_quantized(r, &q, arena, NULL);
    CU_ASSERT(b->ops->quantize_search(b->context, &q, w, factor.importance, arena) == INGOT_OK);
    keep_quantized(r, &q, arena, NULL);
    CU_ASSERT(b->ops->outliers_choose(b->context, &q, w, factor.importance, rows * cols / 64,
                                      INGOT_F16, arena, arena) == INGOT_OK);
    CU_ASSERT(b->ops->quantize_gptq(b->context, &q, w, &factor, arena) == INGOT_OK);
    keep_quantized(r, &q, arena, NULL);
    CU_ASSERT(b->ops->quantized_values(b->context, values, &q) == INGOT_OK);
    CU_ASSERT(memcmp(values, r->bytes + r->size - rows * cols * 4, rows * cols * 4) == 0);
    CU_ASSERT(b->ops->quantized_pack(b->context, &view, &q, arena) == INGOT_OK);
    CU_ASSERT(view.rows == rows && view.outlier_count == rows * cols / 64);
    CU_ASSERT(b->ops->weight_error(b->context, sums, &source, NULL, NULL, &q, arena) == INGOT_OK);
    figures[0] = ingot_weight_error_ratio(sums);
    CU_ASSERT(b->ops->quadratic_loss(b->context, &figures[1], w, rows, cols, &q, gram, arena) ==
              INGOT_OK);
    CU_ASSERT(b->ops->quadratic_loss(b->context, &figures[2], w, rows, cols, NULL, gram, arena) ==
              INGOT_OK);
    keep(r, figures, sizeof figures);
    const ingot_outliers chosen = q.outliers;
    q.outliers.count = 0;
    CU_ASSERT(b->ops->quantize_rtn(b->context, &q, w) == INGOT_OK);
    CU_ASSERT(b->ops->outliers_place(b->context, &q, &chosen, w, arena) == INGOT_OK);
    CU_ASSERT(q.outliers.count == chosen.count && q.outliers.val != chosen.val);
    ingot_arena_destroy(arena);
}

static void test_table(void) {
    enum { ROWS = 129, COLS = 160 };
    matrix_results *direct = malloc(sizeof *direct), *table = malloc(sizeof *table);
    ingot_arena *arena = new_arena();
    const float *w = random_weights(arena, ROWS * COLS);
    const float *gram = random_gram(arena, COLS, 300);
    const ingot_quant_format format = {
        .bits = 3, .group = 64, .zero_mode = INGOT_ZERO_STORED, .scale_dtype = INGOT_F16};
    ingot_gptq_factor factor;
    CU_ASSERT(ingot_gptq_factorize(&factor, gram, COLS, format.group, arena, arena) == INGOT_OK);
    quantize_in_every_way(direct, w, gram, &factor, format, ROWS, NULL);
    for (unsigned threads = 1; threads <= 3; threads++) {
        ingot_backend backend;
        CU_ASSERT_FATAL(ingot_backend_open(&backend, "cpu", threads, NULL) == INGOT_OK);
        quantize_through_table(table, w, gram, format, ROWS, COLS, &backend);
        CU_ASSERT(direct->size == table->size &&
                  memcmp(direct->bytes, table->bytes, table->size) == 0);
        ingot_backend_close(&backend);
    }
    ingot_arena_destroy(arena);
    free(direct);
    free(table);
}

/* Instruction sets that both have fused multiply-adds agree bit for bit. */
static void test_levels(void) {
    const char *level = getenv("INGOT_CPU_ISA");
    if (level == NULL || strcmp(level, "v4") != 0) {
        return;
    }
    matrix_results *v4 = malloc(sizeof *v4), *v3 = malloc(sizeof *v3);
    for (unsigned i = 0; i < 4; i++) {
        const uint64_t rows = 67, cols = 129 + 16 * i;
        ingot_arena *arena = new_arena();
        const float *w = random_weights(arena, rows * cols);
        const float *gram = random_gram(arena, cols, 300);
        const ingot_quant_format format = {.bits = 2 + 2 * i,
                                           .group = i % 2 == 0 ? 64 : cols,
                                           .zero_mode = (ingot_zero_mode)(i / 2),
                                           .scale_dtype = INGOT_F16};
        ingot_gptq_factor factor;
        CU_ASSERT(ingot_gptq_factorize(&factor, gram, cols, format.group, arena, arena) ==
                  INGOT_OK);
        quantize_in_every_way(v4, w, gram, &factor, format, rows, NULL);
        (void)setenv("INGOT_CPU_ISA", "v3", 1);
        quantize_in_every_way(v3, w, gram, &factor, format, rows, NULL);
        (void)setenv("INGOT_CPU_ISA", "v4", 1);
        CU_ASSERT(v3->size == v4->size && memcmp(v3->bytes, v4->bytes, v3->size) == 0);
        ingot_arena_destroy(arena);
    }
    free(v4);
    free(v3);
}

static void test_not_finite(void) {
    float values[50] = {0};
    CU_ASSERT(ingot_first_not_finite(values, INGOT_F32, 50) == 50);
    for (unsigned i = 0; i < 50; i++) {
        values[i] = i % 2 ? NAN : -INFINITY;
        CU_ASSERT(ingot_first_not_finite(values, INGOT_F32, 50) == i);
        values[i] = 3e38f;
    }
    CU_ASSERT(ingot_first_not_finite(values, INGOT_F32, 50) == 50);
    /* 16-bit types, over the block the scan works in */
    static uint16_t bits[9000];
    for (unsigned i = 0; i < 9000; i++) {
        bits[i] = i % 2 ? 0x7bff : 0xbbff; /* the largest F16, and an ordinary number */
    }
    CU_ASSERT(ingot_first_not_finite(bits, INGOT_F16, 9000) == 9000);
    for (unsigned i = 4090; i < 4100; i++) {
        bits[i] = i % 2 ? 0x7e01 : 0xfc00;
        CU_ASSERT(ingot_first_not_finite(bits, INGOT_F16, 9000) == i);
        CU_ASSERT(ingot_first_not_finite(bits, INGOT_BF16, 9000) == 9000);
        bits[i] = i % 2 ? 0x7fc1 : 0xff80;
        CU_ASSERT(ingot_first_not_finite(bits, INGOT_BF16, 9000) == i);
        bits[i] = 0;
    }
    CU_ASSERT(ingot_first_not_finite(bits, INGOT_F16, 0) == 0);
}

/* What a symmetric format of either sign can store a stored zero point can: a negative scale is the
 * positive one with the zero point mirrored.  The search must find as good a place. */
static void test_zero_points(void) {
    ingot_arena *arena = new_arena();
    for (unsigned bits = 2; bits <= 5; bits++) {
        const uint64_t rows = 60, cols = 256;
        const float *w = random_weights(arena, rows * cols);
        float importance[256];
        double loss[2];
        for (unsigned j = 0; j < cols; j++) {
            importance[j] = (float)exp(input_normal());
        }
        for (unsigned k = 0; k < 2; k++) {
            const ingot_quant_format format = {.bits = bits,
                                               .group = 64,
                                               .zero_mode = k == 0 ? INGOT_ZERO_SYMMETRIC
                                                                   : INGOT_ZERO_STORED,
                                               .scale_dtype = INGOT_F16};
            ingot_quantized q = new_quantized(rows, cols, format, arena);
            CU_ASSERT(ingot_quantize_search(&q, w, importance, arena, NULL) == INGOT_OK);
            loss[k] = weighted_loss(w, &q, importance);
        }
        CU_ASSERT(loss[1] <= loss[0] * 1.001);
    }
    ingot_arena_destroy(arena);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"plain rounding", test_rtn},
        {"odd sizes", test_odd_sizes},
        {"zero and tiny weights", test_zero_weights},
        {"scale search against exhaustive search", test_search},
        {"stored zero points against symmetric scales", test_zero_points},
        {"outliers", test_outliers},
        {"outliers of equal gain", test_outlier_ties},
        {"outliers beyond F16", test_outlier_range},
        {"places of outliers", test_outlier_places},
        {"scales of low precision", test_low_precision},
        {"weight error", test_weight_error},
        {"values and folded H", test_values},
        {"same bytes for any number of threads", test_threads},
        {"same bytes through the table of operations", test_table},
        {"same bytes with AVX2 and AVX-512", test_levels},
        {"values that are not finite", test_not_finite},
        CU_TEST_INFO_NULL,
    };
    return run_on_every_level("quantize", tests);
}
