/* Internal to kernels/cuda: the operations of ingot_backend_ops that quantize; kernels/backend.h
 * and kernels/quantize.h say what each computes. */
#ifndef INGOT_CUDA_QUANTIZE_H
#define INGOT_CUDA_QUANTIZE_H

#include "kernels/cuda/cuda.h"

/* values.cu */
ingot_status cuda_values(void *context, float *out, uint64_t *bad, const ingot_weight_view *source,
                         const float *row_fold, const float *column_fold);
ingot_status cuda_gram_fold(void *context, float *out, const float *gram, const float *fold,
                            uint64_t n);
ingot_status cuda_gram_diagonal(void *context, float *out, const float *gram, uint64_t n);
ingot_status cuda_quantized_values(void *context, float *out, const ingot_quantized *q);
ingot_status cuda_quantized_pack(void *context, ingot_weight_view *view, const ingot_quantized *q,
                                 ingot_arena *arena);

/* outliers.cu */
ingot_status cuda_outliers_choose(void *context, ingot_quantized *q, const float *w,
                                  const float *importance, uint64_t count, ingot_dtype dtype,
                                  ingot_arena *arena, ingot_arena *scratch);
ingot_status cuda_outliers_place(void *context, ingot_quantized *q, const ingot_outliers *outliers,
                                 const float *w, ingot_arena *arena);

/* search.cu */
ingot_status cuda_rtn(void *context, ingot_quantized *q, const float *w);
ingot_status cuda_search(void *context, ingot_quantized *q, const float *w, const float *importance,
                         ingot_arena *scratch);

/* factorize.cu */
ingot_status cuda_factorize(void *context, ingot_gptq_factor *out, const float *gram, uint64_t cols,
                            uint64_t group, ingot_arena *arena, ingot_arena *scratch);

/* cholesky.cu: row-major lower triangle l[n][n] of H becomes its factor, H = L L^T; false when H is
 * not positive definite.  What lies above the diagonal is overwritten and means nothing.  n^2 fits
 * an int.  Waits for the device. */
ingot_status cuda_cholesky(bool *is_done, const ingot_cuda *cuda, float *l, uint64_t n);
ingot_status cuda_cholesky(bool *is_done, const ingot_cuda *cuda, double *l, uint64_t n);
/* x[rows][n] becomes x H^-1, by that factor. */
ingot_status cuda_substitute(const ingot_cuda *cuda, float *x, const float *l, uint64_t rows,
                             uint64_t n);
ingot_status cuda_substitute(const ingot_cuda *cuda, float *x, const double *l, uint64_t rows,
                             uint64_t n);

/* refine.cu */
ingot_status cuda_multiply_add(void *context, float *out, float share, const float *a,
                               const float *b, uint64_t rows, uint64_t k, uint64_t n);
ingot_status cuda_gram_solve(void *context, float *x, unsigned *damping_step, uint64_t rows,
                             const float *gram, uint64_t n, ingot_arena *scratch);

/* polish.cu */
ingot_status cuda_polish(void *context, ingot_quantized *q, const float *w, const float *gram,
                         const float *importance, unsigned rounds, ingot_arena *scratch);

/* gptq.cu */
ingot_status cuda_gptq(void *context, ingot_quantized *q, const float *w,
                       const ingot_gptq_factor *factor, ingot_arena *scratch);

/* error.cu */
ingot_status cuda_weight_error(void *context, double sums[2], const ingot_weight_view *source,
                               const float *row_fold, const float *column_fold,
                               const ingot_quantized *q, ingot_arena *scratch);
ingot_status cuda_quadratic_loss(void *context, double *loss, const float *w, uint64_t rows,
                                 uint64_t cols, const ingot_quantized *q, const float *gram,
                                 ingot_arena *scratch);

#endif
