/* The quantization operations of the cpu backend: kernels/quantize.h on the backend's threads. */
#include "kernels/cpu/cpu.h"

static ingot_pool *pool_of(void *context) {
    return ((const ingot_cpu *)context)->pool;
}

ingot_status ingot_cpu_values(void *context, float *out, uint64_t *bad,
                              const ingot_weight_view *source, const float *row_fold,
                              const float *column_fold) {
    return ingot_quantize_values(out, bad, source, row_fold, column_fold, pool_of(context));
}

ingot_status ingot_cpu_gram_fold(void *context, float *out, const float *gram, const float *fold,
                                 uint64_t n) {
    ingot_gram_fold(out, gram, fold, n, pool_of(context));
    return INGOT_OK;
}

ingot_status ingot_cpu_gram_diagonal(void *context, float *out, const float *gram, uint64_t n) {
    (void)context;
    for (uint64_t i = 0; i < n; i++) {
        out[i] = gram[i * n + i];
    }
    return INGOT_OK;
}

ingot_status ingot_cpu_factorize(void *context, ingot_gptq_factor *out, const float *gram,
                                 uint64_t cols, uint64_t group, ingot_arena *arena,
                                 ingot_arena *scratch) {
    (void)context;
    return ingot_gptq_factorize(out, gram, cols, group, arena, scratch);
}

ingot_status ingot_cpu_rtn(void *context, ingot_quantized *q, const float *w) {
    ingot_quantize_rtn(q, w, pool_of(context));
    return INGOT_OK;
}

ingot_status ingot_cpu_search(void *context, ingot_quantized *q, const float *w,
                              const float *importance, ingot_arena *scratch) {
    return ingot_quantize_search(q, w, importance, scratch, pool_of(context));
}

ingot_status ingot_cpu_gptq(void *context, ingot_quantized *q, const float *w,
                            const ingot_gptq_factor *factor, ingot_arena *scratch) {
    return ingot_quantize_gptq(q, w, factor, scratch, pool_of(context));
}

ingot_status ingot_cpu_outliers_choose(void *context, ingot_quantized *q, const float *w,
                                       const float *importance, uint64_t count, ingot_dtype dtype,
                                       ingot_arena *arena, ingot_arena *scratch) {
    return ingot_outliers_choose(q, w, importance, count, dtype, arena, scratch, pool_of(context));
}

ingot_status ingot_cpu_outliers_place(void *context, ingot_quantized *q,
                                      const ingot_outliers *outliers, const float *w,
                                      ingot_arena *arena) {
    (void)context;
    return ingot_outliers_place(q, outliers, w, arena);
}

ingot_status ingot_cpu_quantized_values(void *context, float *out, const ingot_quantized *q) {
    ingot_quantized_values(out, q, pool_of(context));
    return INGOT_OK;
}

ingot_status ingot_cpu_pack(void *context, ingot_weight_view *view, const ingot_quantized *q,
                            ingot_arena *arena) {
    return ingot_quantized_pack(view, q, arena, pool_of(context));
}

ingot_status ingot_cpu_weight_error(void *context, double sums[2], const ingot_weight_view *source,
                                    const float *row_fold, const float *column_fold,
                                    const ingot_quantized *q, ingot_arena *scratch) {
    (void)scratch;
    sums[0] = sums[1] = 0;
    return ingot_quantized_weight_error_add(sums, source, row_fold, column_fold, q,
                                            pool_of(context));
}

ingot_status ingot_cpu_quadratic_loss(void *context, double *loss, const float *w, uint64_t rows,
                                      uint64_t cols, const ingot_quantized *q, const float *gram,
                                      ingot_arena *scratch) {
    return ingot_quadratic_loss(loss, w, rows, cols, q, gram, pool_of(context), scratch);
}

ingot_status ingot_cpu_gram_solve(void *context, float *x, unsigned *damping_step, uint64_t rows,
                                  const float *gram, uint64_t n, ingot_arena *scratch) {
    return ingot_gram_solve(x, damping_step, rows, gram, n, scratch, pool_of(context));
}

ingot_status ingot_cpu_multiply_add(void *context, float *out, float share, const float *a,
                                    const float *b, uint64_t rows, uint64_t k, uint64_t n) {
    if (!ingot_cpu_fits(k) || !ingot_cpu_fits(n)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    ingot_multiply_add(out, share, a, b, rows, k, n, pool_of(context));
    return INGOT_OK;
}

ingot_status ingot_cpu_polish(void *context, ingot_quantized *q, const float *w, const float *gram,
                              const float *importance, unsigned rounds, ingot_arena *scratch) {
    return ingot_quantize_polish(q, w, gram, importance, rounds, scratch, pool_of(context));
}

ingot_status ingot_cpu_tuning_begin(void *context, const ingot_tuning *t, const ingot_quantized *q,
                                    const float *w) {
    ingot_tuning_begin(t, q, w, pool_of(context));
    return INGOT_OK;
}

ingot_status ingot_cpu_tuning_round(void *context, ingot_quantized *q, const ingot_tuning *t) {
    ingot_tuning_round(q, t, pool_of(context));
    return INGOT_OK;
}

ingot_status ingot_cpu_tuning_step(void *context, const ingot_tuning *t, const ingot_quantized *q,
                                   const float *gradient, float rate, float gain_rate) {
    ingot_tuning_step(t, q, gradient, rate, gain_rate, pool_of(context));
    return INGOT_OK;
}

ingot_status ingot_cpu_scale_backward(void *context, float *out, const ingot_quantized *q,
                                      const float *gradient) {
    ingot_scale_backward(out, q, gradient, pool_of(context));
    return INGOT_OK;
}

ingot_status ingot_cpu_scale_step(void *context, ingot_quantized *q, float *gain,
                                  const float *start, const float *gradient, float rate) {
    ingot_scale_step(q, gain, start, gradient, rate, pool_of(context));
    return INGOT_OK;
}
