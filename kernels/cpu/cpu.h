/* Internal to kernels/cpu: the context of the cpu backend and its vector routines.
 *
 * Loops whose speed depends on the instruction set live in isa_*.c, which are compiled once per
 * x86-64 level and reached through the tables below; everything else is ordinary C around
 * OpenBLAS.  Routines of the tables take no memory and know nothing of threads. */
#ifndef INGOT_CPU_H
#define INGOT_CPU_H

#include "kernels/backend.h"

/* Weights: unpacking and products with few rows (isa_weights.c). */
typedef struct ingot_cpu_weight_ops {
    /* out[count] = row `row`, columns first .. first+count-1, exactly as ingot_weight_row gives
     * them.  first is a multiple of 8. */
    void (*segment)(float *out, const ingot_weight_view *w, uint64_t row, uint64_t first,
                    uint64_t count);
    /* sums[i] += w[count] . x[i * x_stride ..], i < m <= INGOT_CPU_DOT_ROWS */
    void (*dots)(float *sums, const float *w, const float *x, uint64_t x_stride, unsigned m,
                 uint64_t count);
    /* sums[i] += row `row` of a dense or grouped view . x[i * x_stride ..], whole row */
    void (*row_dots)(float *sums, const ingot_weight_view *w, uint64_t row, const float *x,
                     uint64_t x_stride, unsigned m);
} ingot_cpu_weight_ops;

#define INGOT_CPU_DOT_ROWS 4u

/* Products of packed weights, outliers left out (isa_product.c).  Activations are rounded to 16
 * bits (spec/decisions/0020, 0027) and arranged once for all rows of the weights. */
typedef struct ingot_cpu_product_ops {
    /* Codes that share a scale of the activations and must belong to one group. */
    unsigned (*word_codes)(unsigned bits);
    /* 32-bit elements that one row of x takes when arranged */
    uint64_t (*arranged_count)(uint64_t cols, unsigned bits);
    void (*arrange)(void *out, const float *x, const ingot_weight_view *w);
    /* sums[i * m + r] = row `row + i` . row r of x, which was arranged r * stride elements behind
     * `arranged`; i < rows, r < m <= INGOT_CPU_DOT_ROWS.  Words lie in one group each (linear.c).
     */
    void (*rows)(float *sums, const ingot_weight_view *w, uint64_t row, uint64_t rows,
                 const void *arranged, uint64_t stride, unsigned m);
} ingot_cpu_product_ops;

/* Element-wise and row-wise arithmetic (isa_math.c). */
typedef struct ingot_cpu_math_ops {
    void (*norm)(float *y, const float *x, const float *weight, const float *bias,
                 ingot_norm_kind kind, float eps, uint64_t n);
    void (*activate)(float *gate, const float *up, ingot_activation kind, uint64_t n);
    void (*add)(float *y, const float *x, float scale, uint64_t n);
    void (*scale)(float *y, float scale, uint64_t n);
    /* One head: pairs (i, i + half) turned by the angle with these cosines and sines. */
    void (*rotate)(float *x, const float *cosine, const float *sine, uint64_t half);
    /* cosine[n], sine[n] of position * frequency[n], times scale */
    void (*angles)(float *cosine, float *sine, const double *frequency, double position,
                   float scale, uint64_t n);
    /* One key block of an online softmax: scores[n], n > 0, become exp(t - max) with
     * t = scale * score (softcap applied); *maximum and *sum are updated.  Returns the factor
     * that what was accumulated before must be multiplied by. */
    float (*softmax)(float *scores, uint64_t n, float scale, float softcap, float *maximum,
                     float *sum);
    /* magnitude[n] += |x[n]| in FP64 */
    void (*magnitude)(double *magnitude, const float *x, uint64_t n);
    bool (*is_finite)(const float *x, uint64_t n);
    /* log sum exp(x) - x[target] in nats */
    double (*nll)(const float *x, uint64_t n, uint64_t target);
    uint64_t (*argmax)(const float *x, uint64_t n);
    double (*divergence)(const float *p, const float *q, uint64_t n);
    /* The two exponentials on their own, for tests: y[n] = exp(x[n]) */
    void (*exp_f32)(float *y, const float *x, uint64_t n);
    void (*exp_f64)(double *y, const double *x, uint64_t n);
} ingot_cpu_math_ops;

/* Gradients, row by row (isa_backward.c). */
typedef struct ingot_cpu_backward_ops {
    void (*norm)(float *dx, const float *dy, const float *x, const float *weight,
                 ingot_norm_kind kind, float eps, uint64_t n);
    void (*activate)(float *gate, float *up, const float *d, ingot_activation kind, uint64_t n);
    /* One row of attention: score[n] = q . k becomes the weight of the softmax whose logarithm of
     * the sum is log_sum, slope[n] = dout . v the gradient of the score, delta being dout . out. */
    void (*softmax)(float *score, float *slope, uint64_t n, float scale, float softcap,
                    float log_sum, float delta);
} ingot_cpu_backward_ops;

typedef struct ingot_cpu_isa {
    const char *name; /* "v2", "v3", "v4": x86-64 levels */
    const ingot_cpu_weight_ops *weight;
    const ingot_cpu_product_ops *product;
    const ingot_cpu_math_ops *math;
    const ingot_cpu_backward_ops *backward;
} ingot_cpu_isa;

extern const ingot_cpu_weight_ops ingot_cpu_weight_v2, ingot_cpu_weight_v3, ingot_cpu_weight_v4;
extern const ingot_cpu_product_ops ingot_cpu_product_v2, ingot_cpu_product_v3, ingot_cpu_product_v4;
extern const ingot_cpu_product_ops ingot_cpu_product_v3n, ingot_cpu_product_v4n;
extern const ingot_cpu_math_ops ingot_cpu_math_v2, ingot_cpu_math_v3, ingot_cpu_math_v4;
extern const ingot_cpu_backward_ops ingot_cpu_backward_v2, ingot_cpu_backward_v3,
    ingot_cpu_backward_v4;

/* The best level this processor has, or the one named by INGOT_CPU_ISA; NULL when that name is
 * unknown or the processor lacks it. */
const ingot_cpu_isa *ingot_cpu_isa_select(void);
/* Level number index (0: v2 ...), NULL past the end or when the processor lacks it.  Where it has
 * the dot products of bytes as well (AVX-VNNI with v3, AVX512-VNNI with v4), the level's products
 * use them and give the same bits. */
const ingot_cpu_isa *ingot_cpu_isa_at(unsigned index);

/* Fixed scratch of one worker: the largest need is a dequantized weight tile. */
#define INGOT_CPU_SCRATCH_FLOATS (320u * 1024u)
/* Rows of statistics input that are examined at once (one flag byte each). */
#define INGOT_CPU_GRAM_ROWS 4096u
/* Tokens of one forward call: more gain nothing, and cost memory. */
#define INGOT_CPU_BATCH_TOKENS 4096u

typedef struct ingot_cpu {
    ingot_pool *pool;
    const ingot_cpu_isa *isa;
    float *scratch; /* [threads][INGOT_CPU_SCRATCH_FLOATS] */
    uint8_t *flags; /* [INGOT_CPU_GRAM_ROWS] */
} ingot_cpu;

static inline float *ingot_cpu_scratch(const ingot_cpu *cpu, unsigned worker) {
    return cpu->scratch + (size_t)worker * INGOT_CPU_SCRATCH_FLOATS;
}

/* A dimension cut into equal tiles (the last may be smaller). */
typedef struct ingot_cpu_cut {
    uint64_t total, tile, count;
} ingot_cpu_cut;
/* Tiles of at most `largest`, as equal as a multiple of `step` allows. */
ingot_cpu_cut ingot_cpu_cut_make(uint64_t total, uint64_t largest, uint64_t step);
static inline uint64_t ingot_cpu_cut_begin(const ingot_cpu_cut *cut, uint64_t index) {
    return index * cut->tile;
}
static inline uint64_t ingot_cpu_cut_size(const ingot_cpu_cut *cut, uint64_t index) {
    const uint64_t rest = cut->total - index * cut->tile;
    return rest < cut->tile ? rest : cut->tile;
}

/* Row-major products, single-threaded, sizes checked to fit BLAS integers by the caller:
 * c[m][n] = beta c + a[m][k] b[n][k]^T,   c[m][n] = beta c + a[m][k] b[k][n]   and
 * c[m][n] = beta c + a[k][m]^T b[k][n] */
void ingot_cpu_gemm_nt(float *c, uint64_t ldc, const float *a, uint64_t lda, const float *b,
                       uint64_t ldb, uint64_t m, uint64_t n, uint64_t k, float beta);
void ingot_cpu_gemm_nn(float *c, uint64_t ldc, const float *a, uint64_t lda, const float *b,
                       uint64_t ldb, uint64_t m, uint64_t n, uint64_t k, float beta);
void ingot_cpu_gemm_tn(float *c, uint64_t ldc, const float *a, uint64_t lda, const float *b,
                       uint64_t ldb, uint64_t m, uint64_t n, uint64_t k, float beta);
/* False when a dimension does not fit the integers of BLAS. */
bool ingot_cpu_fits(uint64_t dimension);

/* Operations of the backend, one or a few per file. */
ingot_status ingot_cpu_embed(void *context, float *y, const ingot_weight_view *table,
                             const uint32_t *ids, uint64_t m, float scale);
ingot_status ingot_cpu_norm(void *context, float *y, const float *x, const float *weight,
                            const float *bias, ingot_norm_kind kind, float eps, uint64_t m,
                            uint64_t n);
ingot_status ingot_cpu_linear(void *context, float *y, const ingot_weight_view *w,
                              const float *bias, const float *x, uint64_t m);
ingot_status ingot_cpu_rotary(void *context, float *x, uint64_t first, uint64_t period,
                              const double *inverse_frequency, float scale, uint64_t m,
                              uint64_t heads, uint64_t head_dim, uint64_t rotary_dim);
ingot_status ingot_cpu_attention(void *context, float *out, const float *q, const float *k,
                                 const float *v, const ingot_attention *shape);
ingot_status ingot_cpu_activate(void *context, float *gate, const float *up, ingot_activation kind,
                                uint64_t n);
ingot_status ingot_cpu_add(void *context, float *y, const float *x, float scale, uint64_t n);
ingot_status ingot_cpu_norm_backward(void *context, float *dx, const float *dy, const float *x,
                                     const float *weight, ingot_norm_kind kind, float eps,
                                     uint64_t m, uint64_t n);
ingot_status ingot_cpu_linear_backward(void *context, float *dx, const ingot_weight_view *w,
                                       const float *dy, bool adds, uint64_t m);
ingot_status ingot_cpu_weight_backward(void *context, float *dw, const float *dy, const float *x,
                                       uint64_t m, uint64_t rows, uint64_t cols);
ingot_status ingot_cpu_activate_backward(void *context, float *gate, float *up, const float *d,
                                         ingot_activation kind, uint64_t n);
ingot_status ingot_cpu_attention_backward(void *context, float *dq, float *dk, float *dv,
                                          const float *dout, const float *q, const float *k,
                                          const float *v, const float *out,
                                          const ingot_attention *shape);
ingot_status ingot_cpu_gram(void *context, float *gram, double *magnitude, uint64_t *dropped,
                            const float *x, uint64_t m, uint64_t n);
ingot_status ingot_cpu_drift(void *context, float *out, const float *a, const float *b,
                             const float *x, uint64_t m, uint64_t p, uint64_t n);
ingot_status ingot_cpu_inner(void *context, double *out, const float *a, const float *b,
                             uint64_t n);
ingot_status ingot_cpu_distance(void *context, double *out, const float *a, const float *b,
                                uint64_t n);
ingot_status ingot_cpu_score(void *context, double *nll, uint32_t *best, const float *logits,
                             const uint32_t *targets, uint64_t m, uint64_t vocab);
ingot_status ingot_cpu_draw(void *context, uint32_t *next, const double *u, const float *logits,
                            uint64_t m, uint64_t vocab);
ingot_status ingot_cpu_divergence(void *context, double *kl, const float *p, const float *q,
                                  uint64_t m, uint64_t vocab);
ingot_status ingot_cpu_divergence_backward(void *context, float *q, const float *p, float share,
                                           uint64_t m, uint64_t vocab);

ingot_status ingot_cpu_values(void *context, float *out, uint64_t *bad,
                              const ingot_weight_view *source, const float *row_fold,
                              const float *column_fold);
ingot_status ingot_cpu_gram_fold(void *context, float *out, const float *gram, const float *fold,
                                 uint64_t n);
ingot_status ingot_cpu_gram_diagonal(void *context, float *out, const float *gram, uint64_t n);
ingot_status ingot_cpu_factorize(void *context, ingot_gptq_factor *out, const float *gram,
                                 uint64_t cols, uint64_t group, ingot_arena *arena,
                                 ingot_arena *scratch);
ingot_status ingot_cpu_rtn(void *context, ingot_quantized *q, const float *w);
ingot_status ingot_cpu_search(void *context, ingot_quantized *q, const float *w,
                              const float *importance, ingot_arena *scratch);
ingot_status ingot_cpu_gptq(void *context, ingot_quantized *q, const float *w,
                            const ingot_gptq_factor *factor, ingot_arena *scratch);
ingot_status ingot_cpu_outliers_choose(void *context, ingot_quantized *q, const float *w,
                                       const float *importance, uint64_t count, ingot_dtype dtype,
                                       ingot_arena *arena, ingot_arena *scratch);
ingot_status ingot_cpu_outliers_place(void *context, ingot_quantized *q,
                                      const ingot_outliers *outliers, const float *w,
                                      ingot_arena *arena);
ingot_status ingot_cpu_quantized_values(void *context, float *out, const ingot_quantized *q);
ingot_status ingot_cpu_pack(void *context, ingot_weight_view *view, const ingot_quantized *q,
                            ingot_arena *arena);
ingot_status ingot_cpu_weight_error(void *context, double sums[2], const ingot_weight_view *source,
                                    const float *row_fold, const float *column_fold,
                                    const ingot_quantized *q, ingot_arena *scratch);
ingot_status ingot_cpu_gram_solve(void *context, float *x, unsigned *damping_step, uint64_t rows,
                                  const float *gram, uint64_t n, ingot_arena *scratch);
ingot_status ingot_cpu_multiply_add(void *context, float *out, float share, const float *a,
                                    const float *b, uint64_t rows, uint64_t k, uint64_t n);
ingot_status ingot_cpu_polish(void *context, ingot_quantized *q, const float *w, const float *gram,
                              const float *importance, unsigned rounds, ingot_arena *scratch);
ingot_status ingot_cpu_quadratic_loss(void *context, double *loss, const float *w, uint64_t rows,
                                      uint64_t cols, const ingot_quantized *q, const float *gram,
                                      ingot_arena *scratch);
ingot_status ingot_cpu_tuning_begin(void *context, const ingot_tuning *t, const ingot_quantized *q,
                                    const float *w);
ingot_status ingot_cpu_tuning_round(void *context, ingot_quantized *q, const ingot_tuning *t);
ingot_status ingot_cpu_tuning_step(void *context, const ingot_tuning *t, const ingot_quantized *q,
                                   const float *gradient, float rate, float gain_rate);
ingot_status ingot_cpu_scale_backward(void *context, float *out, const ingot_quantized *q,
                                      const float *gradient);
ingot_status ingot_cpu_scale_step(void *context, ingot_quantized *q, float *gain,
                                  const float *start, const float *gradient, float rate);

/* Fills *out for a pool of `threads`.  INGOT_ERR_DEVICE when INGOT_CPU_ISA asks for what the
 * processor lacks. */
ingot_status ingot_cpu_open(ingot_backend *out, unsigned threads,
                            ingot_error *error) INGOT_MUST_CHECK;

/* coretype.c acts before main; open.c reads this so that whoever links the backend links it too. */
extern const bool ingot_cpu_chooses_core;

#endif
