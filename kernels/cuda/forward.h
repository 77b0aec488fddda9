/* Internal to kernels/cuda: the operations of ingot_backend_ops that serve the forward pass and
 * the statistics; kernels/backend.h says what each computes. */
#ifndef INGOT_CUDA_FORWARD_H
#define INGOT_CUDA_FORWARD_H

#include "kernels/cuda/cuda.h"

/* rows.cu */
ingot_status cuda_embed(void *context, float *y, const ingot_weight_view *table,
                        const uint32_t *ids, uint64_t m, float scale);
ingot_status cuda_norm(void *context, float *y, const float *x, const float *weight,
                       const float *bias, ingot_norm_kind kind, float eps, uint64_t m, uint64_t n);
ingot_status cuda_rotary(void *context, float *x, uint64_t first, uint64_t period,
                         const double *inverse_frequency, float scale, uint64_t m, uint64_t heads,
                         uint64_t head_dim, uint64_t rotary_dim);
ingot_status cuda_activate(void *context, float *gate, const float *up, ingot_activation kind,
                           uint64_t n);
ingot_status cuda_add(void *context, float *y, const float *x, float scale, uint64_t n);

/* linear.cu */
ingot_status cuda_linear(void *context, float *y, const ingot_weight_view *w, const float *bias,
                         const float *x, uint64_t m);

/* attention.cu */
ingot_status cuda_attention(void *context, float *out, const float *q, const float *k,
                            const float *v, const ingot_attention *shape);

/* gram.cu */
ingot_status cuda_gram(void *context, float *gram, double *magnitude, uint64_t *dropped,
                       const float *x, uint64_t m, uint64_t n);

/* score.cu */
ingot_status cuda_score(void *context, double *nll, uint32_t *best, const float *logits,
                        const uint32_t *targets, uint64_t m, uint64_t vocab);
ingot_status cuda_divergence(void *context, double *kl, const float *p, const float *q, uint64_t m,
                             uint64_t vocab);

/* ---- activations in binary16 (half.cu) --------------------------------------------------------
 */

/* Activations rounded to binary16, all divided by one power of two that brings the largest finite
 * magnitude into range.  Rows with a value that is not finite are zero in `good` copies. */
typedef struct cuda_half_copy {
    const __half *values; /* [m][stride], columns behind n are zero */
    uint64_t stride;      /* n rounded up to a multiple of 8: products want 16-byte rows */
    const float *unscale; /* device: what products are multiplied by */
} cuda_half_copy;

/* The copy of x[m][n]; made once as long as x is not written, since several products and the
 * statistics read the same input.  Valid until the next call. */
ingot_status cuda_half_of(ingot_cuda *cuda, cuda_half_copy *out, const float *x, uint64_t m,
                          uint64_t n);
/* To be called by every operation that writes device memory: forgets a copy of that range. */
void cuda_written(ingot_cuda *cuda, const void *memory, uint64_t bytes);

#endif
