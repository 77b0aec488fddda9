/* What makes a quantized matrix better than the column loop alone: a target that makes up for the
 * drift of the layer's inputs, and a polish of scales and codes.
 *
 * With X the inputs on the quantized prefix, X' those in the full-precision model, H = X X^T and
 * D = (X' - X) X^T, the matrix that brings X closest to W X' is W + W D H^-1: the least squares
 * solution, and the target that is quantized in place of W.
 *
 * Deterministic, and the same bits for any number of threads, as quantize.h has it. */
#ifndef INGOT_REFINE_H
#define INGOT_REFINE_H

#include "kernels/quantize.h"

/* x[rows][n] becomes x (H + damping)^-1, from the lower triangle of gram[n][n]; dead columns (zero
 * diagonal) and damping as in ingot_gptq_factorize.  *damping_step: the rung of the ladder that
 * made H positive definite; 255: none did, and x is zero.  The last rung is in FP64, the others in
 * FP32. */
ingot_status ingot_gram_solve(float *x, unsigned *damping_step, uint64_t rows, const float *gram,
                              uint64_t n, ingot_arena *scratch, ingot_pool *pool) INGOT_MUST_CHECK;

/* out[rows][n] += share * a[rows][k] b[k][n], FP32 */
void ingot_multiply_add(float *out, float share, const float *a, const float *b, uint64_t rows,
                        uint64_t k, uint64_t n, ingot_pool *pool);

/* Lowers tr(E (H + damping) E^T), E = w - W', by at most `rounds` rounds over the groups of q
 * (fewer when a tile of rows changes no more).  In a group: the scale that is best for its codes,
 * rounded to its dtype; with stored zero points the best zero point likewise; then each code in
 * turn the best one under all others.  A change is made only where the loss falls, so the loss of
 * every row falls or stays.  Places of outliers stay as they are. w[rows][cols]; gram[cols][cols]
 * is H, whole; importance[cols] the diagonal of H + damping (ingot_gptq_factor). */
ingot_status ingot_quantize_polish(ingot_quantized *q, const float *w, const float *gram,
                                   const float *importance, unsigned rounds, ingot_arena *scratch,
                                   ingot_pool *pool) INGOT_MUST_CHECK;

#endif
