/* Internal to kernels/cuda: the operations of ingot_backend_ops that make gradients and walk along
 * them; kernels/backend.h and kernels/quantize.h say what each computes. */
#ifndef INGOT_CUDA_BACKWARD_H
#define INGOT_CUDA_BACKWARD_H

#include "kernels/cuda/cuda.h"

/* backward.cu */
ingot_status cuda_norm_backward(void *context, float *dx, const float *dy, const float *x,
                                const float *weight, ingot_norm_kind kind, float eps, uint64_t m,
                                uint64_t n);
ingot_status cuda_linear_backward(void *context, float *dx, const ingot_weight_view *w,
                                  const float *dy, bool adds, uint64_t m);
ingot_status cuda_weight_backward(void *context, float *dw, const float *dy, const float *x,
                                  uint64_t m, uint64_t rows, uint64_t cols);
ingot_status cuda_activate_backward(void *context, float *gate, float *up, const float *d,
                                    ingot_activation kind, uint64_t n);

/* attention_backward.cu */
ingot_status cuda_attention_backward(void *context, float *dq, float *dk, float *dv,
                                     const float *dout, const float *q, const float *k,
                                     const float *v, const float *out,
                                     const ingot_attention *shape);

/* tuning.cu */
ingot_status cuda_tuning_begin(void *context, const ingot_tuning *t, const ingot_quantized *q,
                               const float *w);
ingot_status cuda_tuning_round(void *context, ingot_quantized *q, const ingot_tuning *t);
ingot_status cuda_tuning_step(void *context, const ingot_tuning *t, const ingot_quantized *q,
                              const float *gradient, float rate, float gain_rate);
ingot_status cuda_scale_backward(void *context, float *out, const ingot_quantized *q,
                                 const float *gradient);
ingot_status cuda_scale_step(void *context, ingot_quantized *q, float *gain, const float *start,
                             const float *gradient, float rate);

#endif
