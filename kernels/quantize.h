/* Grouped-affine quantization of a weight matrix: plain rounding, scale search, GPTQ, and the
 * errors that judge them.
 *
 * Weights are W[rows][cols] (out x in features), groups of `group` columns along a row, the last
 * one may be short.  A stored value is s (q - z) rounded once to binary32 (spec/quantization.md).
 * Scales are rounded to their stored dtype before a code is chosen, so what is judged here is what
 * a loader computes.
 *
 * Deterministic: rows are independent, work is cut into fixed tiles of rows, and sums run in an
 * order that depends on shapes alone; the bytes are the same for any number of threads.  They do
 * depend on the instruction set (the backend's path), because of fused multiply-adds.
 *
 * Not here: which tensor gets what (convert/plan.h), where H comes from (calib/). */
#ifndef INGOT_QUANTIZE_H
#define INGOT_QUANTIZE_H

#include "common/memory.h"
#include "common/pool.h"
#include "format/ingot.h"

/* How a matrix is to be stored. */
typedef struct ingot_quant_format {
    unsigned bits;  /* 2..8 */
    uint64_t group; /* 1..cols */
    ingot_zero_mode zero_mode;
    ingot_dtype scale_dtype;
} ingot_quant_format;

/* The sparse outliers of a matrix: CSR, columns increasing in a row. */
typedef struct ingot_outliers {
    uint64_t count;
    uint64_t *row_ptr; /* [rows + 1] */
    uint32_t *col;     /* [count] */
    float *val;        /* [count], representable in dtype */
    ingot_dtype dtype; /* F16 or F32 */
    uint64_t left_out; /* would have been among them, but for dtype, which cannot hold them */
} ingot_outliers;

/* A quantized matrix before packing.  All arrays are the arena's. */
typedef struct ingot_quantized {
    ingot_quant_format format;
    uint64_t rows, cols, groups; /* groups per row */
    uint8_t *codes;              /* [rows][cols] */
    float *scales;               /* [rows][groups], representable in scale_dtype */
    uint8_t *zeros;              /* [rows][groups]; 2^(bits-1) when symmetric */
    ingot_outliers outliers;     /* count 0: none */
} ingot_quantized;

ingot_status ingot_quantized_create(ingot_quantized *out, uint64_t rows, uint64_t cols,
                                    const ingot_quant_format *format,
                                    ingot_arena *arena) INGOT_MUST_CHECK;
/* out[cols] = row `row` as a loader computes it. */
void ingot_quantized_row(float *out, const ingot_quantized *q, uint64_t row);
/* out[rows][cols]: all of them. */
void ingot_quantized_values(float *out, const ingot_quantized *q, ingot_pool *pool);
/* Puts all parts into the arena exactly as they lie in a file, and points *view at them. */
ingot_status ingot_quantized_pack(ingot_weight_view *view, const ingot_quantized *q,
                                  ingot_arena *arena, ingot_pool *pool) INGOT_MUST_CHECK;
/* Groups of a grouped view (host) whose F16 scale is not zero and lies under 2^-14 (0 for other
 * scale dtypes). */
uint64_t ingot_view_low_precision(const ingot_weight_view *view);

/* A scale rounded to its dtype and brought into the range the format allows: zero where it is too
 * small to be stored, the largest allowed magnitude where it is too large. */
float ingot_scale_store(float scale, ingot_dtype dtype);
/* The least and the greatest magnitude of a scale that is not zero. */
float ingot_scale_least(ingot_dtype dtype);
float ingot_scale_greatest(ingot_dtype dtype);

/* out[rows][cols] = source * row_fold * column_fold in binary32 (NULL folds: ones); source is a
 * dense view.  *bad = index of the first source value that is NaN or infinite, or UINT64_MAX. */
ingot_status ingot_quantize_values(float *out, uint64_t *bad, const ingot_weight_view *source,
                                   const float *row_fold, const float *column_fold,
                                   ingot_pool *pool) INGOT_MUST_CHECK;
/* out[count] = in[count] of dtype F32, F16 or BF16, with the vector path of this machine. */
void ingot_rows_to_f32(float *out, const void *in, ingot_dtype dtype, uint64_t count);
/* Index of the first of count values of dtype (F32, F16, BF16) that is NaN or infinite, or count.
 */
uint64_t ingot_first_not_finite(const void *values, ingot_dtype dtype, uint64_t count);

/* ---- plain rounding --------------------------------------------------------------------- */

/* The yardstick: symmetric s = max|w| / (2^(bits-1) - 1); asymmetric s = (max - min) /
 * (2^bits - 1) with zero included in the range and z = round(-min / s); scales rounded to
 * scale_dtype, codes to nearest.  w[rows][cols].  Outliers of q are ignored (count must be 0). */
void ingot_quantize_rtn(ingot_quantized *q, const float *w, ingot_pool *pool);

/* ---- scale search ----------------------------------------------------------------------- */

/* Per group the scale (and zero) that minimise sum_j importance[j] (w_j - s (q_j - z))^2 among a
 * ladder of clipped ranges of either sign, each refitted by least squares, the winner rounded to
 * its dtype, rounded again and refitted until it no longer gains; codes to nearest.  Never worse
 * than plain rounding under that measure.  importance[cols] >= 0 (NULL: ones), in the order of the
 * columns.  Outliers of q (row_ptr, col) are left out of the sums; their codes become z. */
ingot_status ingot_quantize_search(ingot_quantized *q, const float *w, const float *importance,
                                   ingot_arena *scratch, ingot_pool *pool) INGOT_MUST_CHECK;

/* ---- outliers --------------------------------------------------------------------------- */

/* A weight as an outlier of dtype holds it: rounded, cut off at its largest number. */
float ingot_outlier_store(float w, ingot_dtype dtype);

/* Chooses exactly `count` weights by the loss that keeping them apart removes: importance times
 * squared rounding error, for the largest and the smallest weight of a group the gain of searching
 * the group again without it.  Below the normal numbers of dtype what is lost by storing it counts,
 * and weights beyond them come last.  Ties go to the lower index.  Fills q->outliers (row_ptr, col;
 * val = ingot_outlier_store of w) from the arena.  q must hold the result of a search; search it
 * again afterwards. */
ingot_status ingot_outliers_choose(ingot_quantized *q, const float *w, const float *importance,
                                   uint64_t count, ingot_dtype dtype, ingot_arena *arena,
                                   ingot_arena *scratch, ingot_pool *pool) INGOT_MUST_CHECK;

/* Gives q the places of `outliers` (which q then shares): their codes become z, and q's own val
 * (from the arena) ingot_outlier_store of w[rows][cols]. */
ingot_status ingot_outliers_place(ingot_quantized *q, const ingot_outliers *outliers,
                                  const float *w, ingot_arena *arena) INGOT_MUST_CHECK;

/* ---- GPTQ ------------------------------------------------------------------------------- */

/* The order in which columns are quantized and the factor of H in that order, shared by all
 * matrices that read the same input.
 *
 * With H + damping = R R^T (R upper triangular in the chosen order) the loss of an error row e is
 * |e R|^2, so column j is best rounded at w_j + sum_{k<j} e_k R_kj / R_jj: this is GPTQ (arXiv
 * 2210.17323) in the form of LDLQ (arXiv 2307.13304), which needs one factorization and no
 * inverse. */
typedef struct ingot_gptq_factor {
    uint64_t cols, group;
    uint32_t *order;       /* [cols]: the column quantized at step i; groups stay together */
    float *feedback;       /* [cols][cols]: R_kj / R_jj above the diagonal, in that order */
    float *importance;     /* [cols]: diagonal of H + damping, in column order */
    double damping;        /* of the last term below: fraction of the mean diagonal */
    unsigned damping_step; /* 0: the first was enough; 255: none was */
    uint32_t dead_columns; /* diagonal was zero */
} ingot_gptq_factor;

/* Damping adds to each d of the diagonal of H, with their mean m,
 *
 *     INGOT_SHRINKAGE * min(d, m) + damping * m
 *
 * The first term is there for texts that are not the calibration's: their inputs are correlated in
 * other ways (decision 0033).  The second makes H positive definite. */
#define INGOT_SHRINKAGE     0.5
#define INGOT_DAMPING_STEPS 6 /* 0.01 0.03 0.1 0.3 1 in FP32, then 1 in FP64 */

/* gram[cols][cols]: H, lower triangle (row i, columns 0..i); not changed.  Dead columns get the
 * mean diagonal (they are then independent of all others and simply rounded).  When no damping
 * makes H positive definite damping_step is 255, the order and importance are still valid, and
 * feedback is zero.  scratch is for temporary storage and may be reset afterwards; the factor
 * itself lives in arena. */
ingot_status ingot_gptq_factorize(ingot_gptq_factor *out, const float *gram, uint64_t cols,
                                  uint64_t group, ingot_arena *arena,
                                  ingot_arena *scratch) INGOT_MUST_CHECK;

/* Quantizes w[rows][cols] with error feedback.  When the first column of a group is reached its
 * scale is searched on the error-updated weights.  Outliers of q (row_ptr, col) are kept at their
 * error-updated value, which is written to val. */
ingot_status ingot_quantize_gptq(ingot_quantized *q, const float *w,
                                 const ingot_gptq_factor *factor, ingot_arena *scratch,
                                 ingot_pool *pool) INGOT_MUST_CHECK;

/* ---- tuning ------------------------------------------------------------------------------ */

/* Codes and scales on the way of a gradient descent: position[rows][cols] in units of codes, whose
 * rounding is the code, and gain[rows][groups], whose product with start_scale[rows][groups] is the
 * scale before it is stored.  A position of -infinity marks an outlier, whose code stays z. */
typedef struct ingot_tuning {
    float *position, *gain, *start_scale;
} ingot_tuning;

/* position = code + what w[rows][cols] / scale lacks of it, at most a quarter of a step, so
 * that the rounding is the code of q; gain = 1, start_scale = the scales of q. */
void ingot_tuning_begin(const ingot_tuning *t, const ingot_quantized *q, const float *w,
                        ingot_pool *pool);
/* Codes (position rounded, ties to even, within the range of the format) and stored scales of q. */
void ingot_tuning_round(ingot_quantized *q, const ingot_tuning *t, ingot_pool *pool);
/* One step of signed descent along gradient[rows][cols], that of the stored weights, taken straight
 * through the rounding: position -= rate sign, gain -= gain_rate sign of its group's sum.
 * Positions stay within half a step of the range of codes, gains within 1/2 .. 2.  q: as
 * ingot_tuning_round left it. */
void ingot_tuning_step(const ingot_tuning *t, const ingot_quantized *q, const float *gradient,
                       float rate, float gain_rate, ingot_pool *pool);

/* out[rows][groups] += the gradient by what each group's scale is multiplied by, divided by that
 * scale: the sum of gradient[rows][cols] times code - zero, FP32 in a fixed order. */
void ingot_scale_backward(float *out, const ingot_quantized *q, const float *gradient,
                          ingot_pool *pool);
/* One step of signed descent of scales alone: gain[rows][groups] -= rate sign(gradient * start),
 * within 1/2 .. 2, and the stored scales of q become start * gain; both [rows][groups]. */
void ingot_scale_step(ingot_quantized *q, float *gain, const float *start, const float *gradient,
                      float rate, ingot_pool *pool);

/* ---- errors ----------------------------------------------------------------------------- */

/* The data-free relative error ||W F - W'||_F / ||W F||_F of a stored matrix, where
 * (W F)[r][c] = source[r][c] * row_fold[r] * column_fold[c] in FP64 (NULL folds are ones): the
 * figure of the ledger, recomputed by verification.  FP64, per row in 16 lanes added in a fixed
 * order, rows in index order.  0 / 0 is 0; anything else over 0 is infinite.  source is a dense
 * view (F32, F16, BF16), stored any view of the same shape. */
ingot_status ingot_weight_error(double *error, const ingot_weight_view *source,
                                const float *row_fold, const float *column_fold,
                                const ingot_weight_view *stored, ingot_pool *pool) INGOT_MUST_CHECK;

/* The same for a matrix that is not yet packed; equal to ingot_weight_error of its packed view. */
ingot_status ingot_quantized_weight_error(double *error, const ingot_weight_view *source,
                                          const float *row_fold, const float *column_fold,
                                          const ingot_quantized *q,
                                          ingot_pool *pool) INGOT_MUST_CHECK;

/* The same in tiles of rows: adds the squares of |W F - W'| to sums[0] and of |W F| to sums[1].
 * Tiles in index order give the sums of the whole, bit for bit. */
ingot_status ingot_weight_error_add(double sums[2], const ingot_weight_view *source,
                                    const float *row_fold, const float *column_fold,
                                    const ingot_weight_view *stored,
                                    ingot_pool *pool) INGOT_MUST_CHECK;
ingot_status ingot_quantized_weight_error_add(double sums[2], const ingot_weight_view *source,
                                              const float *row_fold, const float *column_fold,
                                              const ingot_quantized *q,
                                              ingot_pool *pool) INGOT_MUST_CHECK;
/* The error that such sums stand for. */
double ingot_weight_error_ratio(const double sums[2]);

/* tr(E H E^T) with E = W - W', or tr(W H W^T) when q is NULL: the squared output errors of the
 * ledger.  w[rows][cols]; gram[cols][cols] is H, whole (ingot_gram_fold).  FP32 products, FP64
 * sums. */
ingot_status ingot_quadratic_loss(double *loss, const float *w, uint64_t rows, uint64_t cols,
                                  const ingot_quantized *q, const float *gram, ingot_pool *pool,
                                  ingot_arena *scratch) INGOT_MUST_CHECK;

/* out[n][n] = the whole of H under a fold, x becoming x / fold: gram_ij / (fold_i fold_j), from
 * the lower triangle of gram; fold[n] may be NULL, out may be gram itself. */
void ingot_gram_fold(float *out, const float *gram, const float *fold, uint64_t n,
                     ingot_pool *pool);

#endif
