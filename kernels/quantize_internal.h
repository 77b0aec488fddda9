/* Shared by the files of kernels/ that implement quantize.h; not for other folders. */
#ifndef INGOT_QUANTIZE_INTERNAL_H
#define INGOT_QUANTIZE_INTERNAL_H

#include "kernels/quantize.h"
#include "kernels/quantize_isa.h"

/* The widest variant this processor runs. */
const ingot_quantize_ops *ingot_quantize_ops_get(void);

uint64_t ingot_row_tiles(uint64_t rows);
uint64_t ingot_tile_end(uint64_t tile, uint64_t rows); /* one past the last row */

/* ---- GPTQ: what every backend decides alike ---- */

extern const double ingot_gptq_dampings[INGOT_DAMPING_STEPS];

#ifdef __CUDACC__
#define INGOT_BOTH_SIDES __host__ __device__
#else
#define INGOT_BOTH_SIDES
#endif
/* value, of the diagonal of H, raised by its damping (kernels/quantize.h). */
INGOT_BOTH_SIDES static inline double ingot_gptq_damped(double value, double damping, double mean) {
    return value + INGOT_SHRINKAGE * (value < mean ? value : mean) + damping * mean;
}
#undef INGOT_BOTH_SIDES

/* order[cols]: groups by the mean of diagonal[cols], columns inside a group by their own, both
 * descending, ties by index. */
ingot_status ingot_gptq_order(uint32_t *order, const float *diagonal, uint64_t cols,
                              uint64_t group_size, ingot_arena *scratch) INGOT_MUST_CHECK;
/* Mean of the diagonal (1 when it is all zero, not finite when it overflows), and the number of
 * columns that are not positive. */
double ingot_gptq_mean(const float *diagonal, uint64_t cols, uint32_t *dead_columns);
/* importance[cols] = the damped diagonal */
void ingot_gptq_importance(float *importance, const float *diagonal, uint64_t cols, double damping,
                           double mean);

/* The lower triangle of a[n][n], row-major, becomes its Cholesky factor L (a = L L^T), by LAPACK on
 * one thread; false when it is not positive definite or the diagonal of L is not finite.  What
 * stands above the diagonal is left alone.  n fits an int. */
bool ingot_cholesky_f32(float *a, uint64_t n);
bool ingot_cholesky_f64(double *a, uint64_t n);

static inline uint64_t ingot_pad_lanes(uint64_t count) {
    return (count + INGOT_QUANTIZE_LANES - 1) / INGOT_QUANTIZE_LANES * INGOT_QUANTIZE_LANES;
}

/* Workers a pool may use (a NULL pool: the caller). */
static inline unsigned ingot_pool_width(const ingot_pool *pool) {
    return pool != NULL ? ingot_pool_threads(pool) : 1;
}

#endif
