/* Sparse outliers beside what the same bits buy as smaller groups (spec/quality.md, section 8). */
#ifndef INGOT_OUTLIER_GAIN_H
#define INGOT_OUTLIER_GAIN_H

#include "convert/linear.h"

/* Bits per weight of a matrix: codes, scales, zero points and `outliers` sparse weights of
 * `dtype` with their columns and the pointers of the rows. */
double ingot_outlier_gain_bits(const ingot_quant_format *format, uint64_t rows, uint64_t cols,
                               uint64_t outliers, ingot_dtype dtype);

/* The smallest group of the format whose matrix without outliers is no larger than the job's with
 * them; 0 when that is none smaller than the job's. */
uint64_t ingot_outlier_gain_group(const ingot_quant_format *format, uint64_t rows, uint64_t cols,
                                  uint64_t outliers, ingot_dtype dtype);

/* Output errors (without data: weight errors) of rounding w[rows][cols] with searched scales,
 * relative to that of the job's format without outliers: *outliers with those that were chosen,
 * *groups with the groups of ingot_outlier_gain_group in their place, NaN when there are none.
 * Rounding, not the column loop, which would cost as much as the conversion again.  importance
 * [cols] or NULL as in ingot_quantize_search; device memory, from scratch. */
ingot_status ingot_outlier_gain(double *outliers, double *groups, const ingot_linear_job *job,
                                const float *w, const ingot_outliers *chosen,
                                const float *importance, ingot_arena *scratch) INGOT_MUST_CHECK;

#endif
