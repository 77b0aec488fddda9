/* The arithmetic of one device: a const struct of operations, and nothing else.
 *
 * `cpu` always exists and is the oracle; every other backend is tested against it.  Only
 * kernels/backend.c knows which exist.  Buffers marked "device" come from ops->alloc; on the cpu
 * backend device memory is host memory and upload/download are copies.
 *
 * Operations may return before the device is done; download, score, divergence and whatever else
 * fills a host variable wait for it.  Host buffers given to upload may be reused once it returns.
 *
 * All matrices are row-major, all activations FP32, all sums at least FP32.  Operations take no
 * memory of their own beyond fixed per-worker scratch in the context, are deterministic and give
 * the same bits for any number of threads: work is cut into tiles that depend on shapes only and
 * reductions run in a fixed order.
 *
 * Shapes are given in elements; m is a number of tokens (rows). */
#ifndef INGOT_BACKEND_H
#define INGOT_BACKEND_H

#include "kernels/ingot_kernels.h"
#include "kernels/quantize.h"
#include "kernels/refine.h"

/* One call of causal attention over `sequences` sequences of equal geometry.
 * q:   [sequences][q_len][heads][head_dim]
 * k,v: [sequences][kv_stride][kv_heads][head_dim], the first kv_len rows of each are valid
 * out: [sequences][q_len][heads][head_dim]
 * Query i of a sequence has position kv_len - q_len + i and sees keys j <= position, and with
 * window > 0 only keys j > position - window.  Query head h reads key head h / (heads/kv_heads). */
typedef struct ingot_attention {
    uint64_t sequences, q_len, kv_len, kv_stride;
    uint64_t heads, kv_heads, head_dim;
    uint64_t window; /* 0: none */
    float scale;     /* multiplies q . k, usually 1/sqrt(head_dim) */
    float softcap;   /* 0: none; else scores become softcap * tanh(score / softcap) */
} ingot_attention;

struct ingot_product;
struct ingot_product_form;
typedef struct ingot_engine_ops ingot_engine_ops; /* kernels/engine.h */
struct ingot_measured;
struct ingot_measure_shape;

typedef struct ingot_backend_ops {
    const char *name;               /* "cpu", "cuda" */
    const ingot_engine_ops *engine; /* the fast decoder, NULL where there is none */

    /* device memory; INGOT_ERR_NO_MEMORY when it is exhausted */
    ingot_status (*alloc)(void *context, void **out, uint64_t bytes);
    void (*release)(void *context, void *memory);
    ingot_status (*upload)(void *context, void *device, const void *host, uint64_t bytes);
    ingot_status (*download)(void *context, void *host, const void *device, uint64_t bytes);
    ingot_status (*copy)(void *context, void *to, const void *from, uint64_t bytes); /* device */
    /* rows of `bytes` each; from one to the next are to_stride and from_stride bytes (device) */
    ingot_status (*copy_rows)(void *context, void *to, uint64_t to_stride, const void *from,
                              uint64_t from_stride, uint64_t bytes, uint64_t rows);
    /* to = what lies in device memory of another context of the same backend, which has been waited
     * for */
    ingot_status (*fetch)(void *context, void *to, void *from_context, const void *from,
                          uint64_t bytes);
    ingot_status (*zero)(void *context, void *device, uint64_t bytes);
    /* host memory that copies to and from the device at full speed (pinned) */
    ingot_status (*host_alloc)(void *context, void **out, uint64_t bytes);
    void (*host_release)(void *context, void *memory);
    /* returns when the device has done all it was given: for timers */
    ingot_status (*wait)(void *context);
    /* the most device memory that was in use at once since the last call; 0 where it is host
     * memory */
    uint64_t (*peak_bytes)(void *context);
    /* *device becomes a view whose pointers the operations may use; on cpu a plain copy of the
     * struct.  release_view undoes it. */
    ingot_status (*upload_view)(void *context, ingot_weight_view *device,
                                const ingot_weight_view *host);
    void (*release_view)(void *context, ingot_weight_view *device);
    /* *host becomes a view of the same values in host memory from the arena; on cpu a plain copy
     * of the struct. */
    ingot_status (*download_view)(void *context, ingot_weight_view *host,
                                  const ingot_weight_view *device, ingot_arena *arena);

    /* y[m][cols] = table row ids[i] (any view; ids on the host), times scale */
    ingot_status (*embed)(void *context, float *y, const ingot_weight_view *table,
                          const uint32_t *ids, uint64_t m, float scale);
    /* y[m][n] = norm(x[m][n]); in place allowed; weight[n], bias[n] (LAYER only, may be NULL) */
    ingot_status (*norm)(void *context, float *y, const float *x, const float *weight,
                         const float *bias, ingot_norm_kind kind, float eps, uint64_t m,
                         uint64_t n);
    /* y[m][w->rows] = x[m][w->cols] W^T + bias[w->rows] (bias may be NULL); y does not overlap x */
    ingot_status (*linear)(void *context, float *y, const ingot_weight_view *w, const float *bias,
                           const float *x, uint64_t m);
    /* Half-split rotary embedding in place: x[m][heads][head_dim], pairs (i, i + rotary_dim/2) of
     * the first rotary_dim features turned by position * inverse_frequency[i] (host array of
     * rotary_dim/2), where row r has position first + r % period; cos and sin are multiplied by
     * `scale` (attention factor, 1 for most).  Angles in double. */
    ingot_status (*rotary)(void *context, float *x, uint64_t first, uint64_t period,
                           const double *inverse_frequency, float scale, uint64_t m, uint64_t heads,
                           uint64_t head_dim, uint64_t rotary_dim);
    ingot_status (*attention)(void *context, float *out, const float *q, const float *k,
                              const float *v, const ingot_attention *shape);
    /* gate[n] = activation(gate[n]) * up[n]; with up NULL: activation alone */
    ingot_status (*activate)(void *context, float *gate, const float *up, ingot_activation kind,
                             uint64_t n);
    /* *out = sum (a[n] - b[n])^2 in FP64, in a fixed order */
    ingot_status (*distance)(void *context, double *out, const float *a, const float *b,
                             uint64_t n);
    /* *out = sum a[n] b[n] in FP64, in a fixed order */
    ingot_status (*inner)(void *context, double *out, const float *a, const float *b, uint64_t n);
    /* y[n] += scale * x[n] */
    ingot_status (*add)(void *context, float *y, const float *x, float scale, uint64_t n);

    /* Gradients.  dX is the derivative of a loss by X, in X's shape.
     *
     * dx[m][n] = of norm's input x[m][n] from dy[m][n]; dx may be dy */
    ingot_status (*norm_backward)(void *context, float *dx, const float *dy, const float *x,
                                  const float *weight, ingot_norm_kind kind, float eps, uint64_t m,
                                  uint64_t n);
    /* dx[m][w->cols] = dy[m][w->rows] W, or += with adds; dx does not overlap dy */
    ingot_status (*linear_backward)(void *context, float *dx, const ingot_weight_view *w,
                                    const float *dy, bool adds, uint64_t m);
    /* dw[rows][cols] += dy[m][rows]^T x[m][cols] */
    ingot_status (*weight_backward)(void *context, float *dw, const float *dy, const float *x,
                                    uint64_t m, uint64_t rows, uint64_t cols);
    /* In place: gate[n] and up[n], the inputs of activate, become their gradients, d[n] being that
     * of its result; up may be NULL */
    ingot_status (*activate_backward)(void *context, float *gate, float *up, const float *d,
                                      ingot_activation kind, uint64_t n);
    /* Gradients of attention's q, k and v from dout and what attention read and wrote; whole
     * sequences alone (q_len = kv_len = kv_stride, else INGOT_ERR_USAGE). */
    ingot_status (*attention_backward)(void *context, float *dq, float *dk, float *dv,
                                       const float *dout, const float *q, const float *k,
                                       const float *v, const float *out,
                                       const ingot_attention *shape);

    /* Statistics of a layer's input x[m][n]:
     * gram[n][n] += x^T x, lower triangle (row i, columns 0..i), FP32; what stands above the
     * diagonal is undefined afterwards;
     * magnitude[n] += sum |x| (FP64).  Rows with a non-finite value are left out; *dropped (device)
     * is increased by their number.  Each output may be NULL. */
    ingot_status (*gram)(void *context, float *gram, double *magnitude, uint64_t *dropped,
                         const float *x, uint64_t m, uint64_t n);

    /* Drift of a layer's values against its inputs: out[p][n] += (a[m][p] - b[m][p])^T x[m][n],
     * FP32.  Rows with a value that is not finite in a, b or x are left out; a device may leave
     * out those with values beyond 2^24, which H has, too.  b may be x; NULL: zeros. */
    ingot_status (*drift)(void *context, float *out, const float *a, const float *b, const float *x,
                          uint64_t m, uint64_t p, uint64_t n);

    /* Scores of logits[m][vocab] (host arrays out): nll[m] = log sum exp - logit[target] in nats,
     * FP64 inside; best[m] = argmax (lowest index on ties).  targets may be NULL (nll untouched).
     */
    ingot_status (*score)(void *context, double *nll, uint32_t *best, const float *logits,
                          const uint32_t *targets, uint64_t m, uint64_t vocab);
    /* next[m] (host) = a token drawn from softmax(logits[m][vocab]) by inversion in FP64: the first
     * whose cumulative probability exceeds u[m] (host, 0 <= u < 1), to the rounding of sums in each
     * device's own order; UINT32_MAX where a logit is not finite */
    ingot_status (*draw)(void *context, uint32_t *next, const double *u, const float *logits,
                         uint64_t m, uint64_t vocab);
    /* kl[m] = KL(softmax(p) || softmax(q)) in nats, FP64 inside, never negative */
    ingot_status (*divergence)(void *context, double *kl, const float *p, const float *q,
                               uint64_t m, uint64_t vocab);
    /* In place: q[m][vocab] becomes share (softmax(q) - softmax(p)), share times the gradient of
     * KL(softmax(p) || softmax(q)) by q; device memory */
    ingot_status (*divergence_backward)(void *context, float *q, const float *p, float share,
                                        uint64_t m, uint64_t vocab);

    /* The functions of kernels/quantize.h and refine.h of like name, on device memory: views, w,
     * gram, folds, importance, outliers and the arrays inside *q and *factor are device memory,
     * arenas give device memory (ingot_backend_arena_create); counts, losses, errors and *bad are
     * host. */
    ingot_status (*values)(void *context, float *out, uint64_t *bad,
                           const ingot_weight_view *source, const float *row_fold,
                           const float *column_fold);
    ingot_status (*gram_fold)(void *context, float *out, const float *gram, const float *fold,
                              uint64_t n);
    /* out[n] = diagonal of gram[n][n] */
    ingot_status (*gram_diagonal)(void *context, float *out, const float *gram, uint64_t n);
    ingot_status (*factorize)(void *context, ingot_gptq_factor *out, const float *gram,
                              uint64_t cols, uint64_t group, ingot_arena *arena,
                              ingot_arena *scratch);
    ingot_status (*quantize_rtn)(void *context, ingot_quantized *q, const float *w);
    ingot_status (*quantize_search)(void *context, ingot_quantized *q, const float *w,
                                    const float *importance, ingot_arena *scratch);
    ingot_status (*quantize_gptq)(void *context, ingot_quantized *q, const float *w,
                                  const ingot_gptq_factor *factor, ingot_arena *scratch);
    ingot_status (*tuning_begin)(void *context, const ingot_tuning *t, const ingot_quantized *q,
                                 const float *w);
    ingot_status (*tuning_round)(void *context, ingot_quantized *q, const ingot_tuning *t);
    ingot_status (*tuning_step)(void *context, const ingot_tuning *t, const ingot_quantized *q,
                                const float *gradient, float rate, float gain_rate);
    ingot_status (*scale_backward)(void *context, float *out, const ingot_quantized *q,
                                   const float *gradient);
    ingot_status (*scale_step)(void *context, ingot_quantized *q, float *gain, const float *start,
                               const float *gradient, float rate);
    ingot_status (*outliers_choose)(void *context, ingot_quantized *q, const float *w,
                                    const float *importance, uint64_t count, ingot_dtype dtype,
                                    ingot_arena *arena, ingot_arena *scratch);
    ingot_status (*outliers_place)(void *context, ingot_quantized *q,
                                   const ingot_outliers *outliers, const float *w,
                                   ingot_arena *arena);
    ingot_status (*quantized_values)(void *context, float *out, const ingot_quantized *q);
    ingot_status (*quantized_pack)(void *context, ingot_weight_view *view, const ingot_quantized *q,
                                   ingot_arena *arena);
    /* ingot_quantized_weight_error_add from nothing: ingot_weight_error_ratio(sums) is the error */
    ingot_status (*weight_error)(void *context, double sums[2], const ingot_weight_view *source,
                                 const float *row_fold, const float *column_fold,
                                 const ingot_quantized *q, ingot_arena *scratch);
    ingot_status (*quadratic_loss)(void *context, double *loss, const float *w, uint64_t rows,
                                   uint64_t cols, const ingot_quantized *q, const float *gram,
                                   ingot_arena *scratch);

    /* Products of the decoder, and the workspace they need: kernels/cuda/product.h; NULL on the
     * cpu. */
    ingot_status (*product)(void *context, const struct ingot_product *job);
    uint64_t (*product_workspace_bytes)(void *context, const struct ingot_product *job);
    /* What they take of each other and hand on: the same file. */
    struct ingot_product_form (*product_takes)(void *context, const struct ingot_product *job);
    unsigned (*product_hands)(void *context, const struct ingot_product *job, bool has_norm);

    ingot_status (*gram_solve)(void *context, float *x, unsigned *damping_step, uint64_t rows,
                               const float *gram, uint64_t n, ingot_arena *scratch);
    ingot_status (*multiply_add)(void *context, float *out, float share, const float *a,
                                 const float *b, uint64_t rows, uint64_t k, uint64_t n);
    ingot_status (*quantize_polish)(void *context, ingot_quantized *q, const float *w,
                                    const float *gram, const float *importance, unsigned rounds,
                                    ingot_arena *scratch);

    /* For ingot-bench (kernels/measure.h); NULL on the cpu.  What the memory delivers, and a
     * product of random weights that depend on the seed: out->error says whether it was right. */
    ingot_status (*measure_read)(void *context, double *bytes_per_second);
    ingot_status (*measure_product)(void *context, struct ingot_measured *out,
                                    const struct ingot_measure_shape *shape, uint64_t seed);

    /* The last call of this thread that failed below the operations, with what was said about it;
     * "" without one.  NULL on the cpu. */
    const char *(*failure)(void);

    void (*close)(void *context);
} ingot_backend_ops;

typedef struct ingot_backend {
    const ingot_backend_ops *ops;
    void *context;
    ingot_pool *pool;      /* for host-side work beside the device, owned by the backend */
    bool has_own_memory;   /* device memory is not host memory */
    uint64_t batch_tokens; /* tokens of one forward call that keep the device busy */
    char path[64];         /* what the results depend on: "cpu/v4/SkylakeX", "cuda/NVIDIA H100 ...";
                              recorded in files */
} ingot_backend;

/* device: "auto", "cpu", "cuda", "cuda:N".  threads 0: one per usable CPU.  INGOT_ERR_DEVICE when
 * the device is not there; "auto" falls back to cpu. */
ingot_status ingot_backend_open(ingot_backend *out, const char *device, unsigned threads,
                                ingot_error *error) INGOT_MUST_CHECK;
/* What a process that opens `device` here and now is given, by name: of "auto" "cuda" or "cpu", any
 * other as it is.  A process of its own opens it, so that this one, which starts others that do,
 * has no context on a GPU; for callers without threads. */
const char *ingot_backend_settle(const char *device);
void ingot_backend_close(ingot_backend *backend);
/* What is to be said of a status that an operation has just returned in this thread: of a device
 * the call that failed, else ingot_status_text. */
const char *ingot_backend_failure(const ingot_backend *backend, ingot_status status);

/* An arena of device memory, and one of host memory, pinned as far as the system lets it be.
 * Destroy them before the backend is closed. */
ingot_status ingot_backend_arena_create(ingot_arena **out,
                                        const ingot_backend *backend) INGOT_MUST_CHECK;
ingot_status ingot_backend_host_arena_create(ingot_arena **out,
                                             const ingot_backend *backend) INGOT_MUST_CHECK;

#endif
