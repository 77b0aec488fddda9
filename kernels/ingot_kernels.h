/* libingot_kernels: computing with the tensors of a container on a CUDA device, and decoding with a
 * whole model there.  With libingot (ingot.h) it is all that a loader needs; the device's code is
 * in libingot_cuda.so, which is opened when a device is.
 *
 *     ingot_open            a container            (ingot.h)
 *     ingot_kernels_open    a device
 *     ingot_kernels_upload, ingot_kernels_product  single tensors
 *     ingot_engine_create   a model: description below, in plain numbers
 *     ingot_engine_feed, ingot_engine_next         token ids in, token ids out
 *
 * A handle is used by one thread at a time.  Everything made from an ingot_kernels is released
 * before it. */
#ifndef INGOT_KERNELS_H
#define INGOT_KERNELS_H

#include "ingot.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- a device ---------------------------------------------------------------------------- */

typedef struct ingot_kernels ingot_kernels;

/* device: "cuda" (the first) or "cuda:N".  threads read and check files; 0: one per usable CPU.
 * INGOT_ERR_DEVICE when there is no such device or no libingot_cuda.so. */
ingot_status ingot_kernels_open(ingot_kernels **out, const char *device, unsigned threads,
                                ingot_error *error) INGOT_MUST_CHECK;
void ingot_kernels_close(ingot_kernels *kernels); /* NULL is fine */

/* Device memory; INGOT_ERR_NO_MEMORY when there is no more. */
ingot_status ingot_kernels_alloc(ingot_kernels *kernels, void **out,
                                 uint64_t bytes) INGOT_MUST_CHECK;
void ingot_kernels_free(ingot_kernels *kernels, void *memory); /* NULL is fine */
/* Copies between host and device; complete when they return. */
ingot_status ingot_kernels_to_device(ingot_kernels *kernels, void *device, const void *host,
                                     uint64_t bytes) INGOT_MUST_CHECK;
ingot_status ingot_kernels_to_host(ingot_kernels *kernels, void *host, const void *device,
                                   uint64_t bytes) INGOT_MUST_CHECK;

/* Reads tensor `index` as ingot_tensor_load does (verify: digests and value rules) and puts it on
 * the device, packed as it is; *out is a view there, to be released with
 * ingot_kernels_release.  INGOT_ERR_USAGE when there is no such tensor. */
ingot_status ingot_kernels_upload(ingot_kernels *kernels, ingot_weight_view *out,
                                  const ingot_container *container, uint64_t index, bool verify,
                                  ingot_error *error) INGOT_MUST_CHECK;
void ingot_kernels_release(ingot_kernels *kernels, ingot_weight_view *view);
/* y[m][w->rows] = x[m][w->cols] W^T; x and y are FP32 on the device and do not overlap.  A single
 * product, of a tensor of floats or a quantized one: fewer than 16 rows of x are multiplied in FP32
 * with the weights as ingot_weight_row gives them; for more both are rounded to binary16 (scaled,
 * so that nothing overflows), and sums are FP32.  It is not what the engine decodes with, whose
 * products are made for speed and take x in binary16: a loader that wants that describes a model.
 * INGOT_ERR_UNSUPPORTED for integers. */
ingot_status ingot_kernels_product(ingot_kernels *kernels, float *y, const ingot_weight_view *w,
                                   const float *x, uint64_t m) INGOT_MUST_CHECK;

/* ---- a model ----------------------------------------------------------------------------- */

typedef enum ingot_norm_kind {
    INGOT_NORM_RMS,          /* y = x / sqrt(mean x^2 + eps) * w */
    INGOT_NORM_RMS_PLUS_ONE, /* the same with (1 + w), Gemma */
    INGOT_NORM_LAYER         /* y = (x - mean) / sqrt(var + eps) * w + b */
} ingot_norm_kind;

typedef enum ingot_activation {
    INGOT_ACT_SILU,
    INGOT_ACT_GELU,      /* exact, erf */
    INGOT_ACT_GELU_TANH, /* tanh approximation */
    INGOT_ACT_RELU
} ingot_activation;

/* Where the weights of a matrix come from. */
typedef enum ingot_engine_origin {
    INGOT_ENGINE_NONE,      /* the model has no such matrix */
    INGOT_ENGINE_HOST,      /* `view`, in host memory */
    INGOT_ENGINE_CONTAINER, /* tensor `index` of `container`; an alias gives its target */
    INGOT_ENGINE_RANDOM     /* the geometry of `view`, filled on the device: for measurements */
} ingot_engine_origin;

typedef struct ingot_engine_matrix {
    ingot_engine_origin origin;
    ingot_weight_view view;
    const ingot_container *container;
    uint64_t index;
} ingot_engine_matrix;

typedef enum ingot_engine_role {
    INGOT_ENGINE_Q,
    INGOT_ENGINE_K,
    INGOT_ENGINE_V,
    INGOT_ENGINE_O,
    INGOT_ENGINE_GATE,
    INGOT_ENGINE_UP,
    INGOT_ENGINE_DOWN,
    INGOT_ENGINE_ROLES
} ingot_engine_role;

/* A vector in host memory; values NULL and count 0 where the model has none. */
typedef struct ingot_engine_vector {
    const float *values;
    uint64_t count;
} ingot_engine_vector;

/* One block:
 *     x += O attention(rotary(norm(Q n)), rotary(norm(K n)), V n),  n = norm_attention(x)
 *     x += DOWN (activation(GATE n) * (UP n)),                      n = norm_mlp(x)
 * Rows and columns of the matrices are
 *     Q     heads head_dim,    hidden      O     hidden, heads head_dim
 *     K, V  kv_heads head_dim, hidden      DOWN  hidden, ffn
 *     GATE, UP  ffn, hidden */
typedef struct ingot_engine_layer {
    ingot_engine_matrix linear[INGOT_ENGINE_ROLES];
    ingot_engine_vector bias[INGOT_ENGINE_ROLES]; /* [rows] */
    ingot_engine_vector norm_attention, norm_mlp; /* [hidden] */
    ingot_engine_vector norm_q, norm_k;           /* [head_dim] */
    uint64_t window;                              /* 0: full attention */
} ingot_engine_layer;

typedef struct ingot_engine_model {
    uint64_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab, rotary_dim;
    ingot_norm_kind norm;
    float norm_eps;
    ingot_activation activation;
    float embed_scale, attention_scale; /* of embeddings; of q . k */
    float softcap;      /* 0: none; else scores become softcap * tanh(score / softcap) */
    float rotary_scale; /* multiplies cos and sin */
    const double *inverse_frequency; /* [rotary_dim / 2] */
    ingot_engine_matrix embed, head; /* [vocab][hidden]; head: NONE when it is the table */
    ingot_engine_vector final_norm;  /* [hidden] */
    const ingot_engine_layer *layer; /* [layers] */
} ingot_engine_model;

typedef struct ingot_engine_options {
    uint64_t sequences; /* 1..64 */
    uint64_t capacity;  /* tokens of each */
    bool skip_verify;   /* containers: no digests and value rules; bounds always hold */
    uint64_t seed;      /* of INGOT_ENGINE_RANDOM */
    /* Called now and then while weights are loaded; another status than INGOT_OK ends it.  May be
     * NULL. */
    ingot_status (*poll)(ingot_error *error);
    /* Called while weights are loaded, with the bytes that are and about how many there are in all,
     * by any of the threads that load, one at a time.  May be NULL. */
    void (*progress)(void *context, uint64_t done_bytes, uint64_t total_bytes);
    void *progress_context;
} ingot_engine_options;

/* How loading went. */
typedef struct ingot_engine_load {
    double seconds;
    uint64_t bytes; /* of weights, as they lie in the file */
} ingot_engine_load;

/* Whether the engine takes this model: what ingot_engine_create checks before it loads anything,
 * without a device.  INGOT_ERR_UNSUPPORTED for what it does not cover: layer norms, heads of more
 * than 128 features or not of a multiple of 8, a width that is no multiple of 4, sizes and options
 * beyond its limits.  INGOT_ERR_INPUT where the description contradicts itself: a matrix or a
 * vector of another size than follows from hidden, ffn, heads, kv_heads, head_dim and vocab, a
 * tensor that is not there or no matrix of weights, a view whose parts do not fit together; *error
 * names the tensor, or its place in the model, and the reason. */
ingot_status ingot_engine_check(const ingot_engine_model *model,
                                const ingot_engine_options *options,
                                ingot_error *error) INGOT_MUST_CHECK;

/* ---- decoding ---------------------------------------------------------------------------- */

/* A model with its KV cache on a device.  Keys, values and the inputs of products are binary16,
 * sums and the residual stream FP32. */
typedef struct ingot_engine ingot_engine;

/* Loads all weights; they stay packed.  The description, host views and containers are not used
 * afterwards.  load may be NULL.  Errors of ingot_engine_check and ingot_tensor_load;
 * INGOT_ERR_NO_MEMORY. */
ingot_status ingot_engine_create(ingot_engine **out, ingot_kernels *kernels,
                                 const ingot_engine_model *model,
                                 const ingot_engine_options *options, ingot_engine_load *load,
                                 ingot_error *error) INGOT_MUST_CHECK;
void ingot_engine_destroy(ingot_engine *engine, ingot_kernels *kernels); /* NULL is fine */
/* Forgets the tokens of a sequence.  INGOT_ERR_USAGE when there is none of that number. */
ingot_status ingot_engine_rewind(ingot_engine *engine, ingot_kernels *kernels,
                                 uint64_t sequence) INGOT_MUST_CHECK;
/* Appends ids[count] (host, count >= 1) to a sequence.  With logits[vocab] (host): those after
 * the last one, INGOT_ERR_NUMERIC when one is not finite.  INGOT_ERR_USAGE when they do not
 * fit or there is no such sequence, INGOT_ERR_INPUT for an id beyond the vocabulary; then nothing
 * was appended.  After
 * `next` it begins anew: every sequence is fed before the following `next`. */
ingot_status ingot_engine_feed(ingot_engine *engine, ingot_kernels *kernels, uint64_t sequence,
                               const uint32_t *ids, uint64_t count, float *logits) INGOT_MUST_CHECK;
/* How tokens are chosen from now on, the greatest logit at temperature 0 (the lowest
 * index on ties), else the softmax of logits / temperature by inversion in FP64: u in [0, 1) from
 * SplitMix64 with state[sequences] (host), one number per token, and the first index whose
 * cumulative probability exceeds u.  What `next` has chosen ahead stays as it is chosen.
 * INGOT_ERR_USAGE for a temperature that is negative or not finite. */
ingot_status ingot_engine_sampler(ingot_engine *engine, ingot_kernels *kernels, double temperature,
                                  const uint64_t *state) INGOT_MUST_CHECK;
/* The next token of every sequence into ids[sequences] (host), chosen from the logits that are
 * there; every sequence must have been fed.  The token counts as fed once the next call asks
 * for more.  `ahead` (at most 32): further calls that will surely follow or whose work may be
 * done in vain; the device then need not wait for the host.  Draws do not depend on it: a token
 * that was never asked for took no random number.  INGOT_ERR_USAGE when a sequence
 * is full or was not fed, INGOT_ERR_NUMERIC when a logit is not finite. */
ingot_status ingot_engine_next(ingot_engine *engine, ingot_kernels *kernels, uint64_t ahead,
                               uint32_t *ids) INGOT_MUST_CHECK;
/* logits[sequences][vocab] (host): those the last token of `next` was chosen from.  INGOT_ERR_USAGE
 * when a sequence was fed or rewound since, or none was fed at all, and when `next` has worked
 * ahead of that token; INGOT_ERR_NUMERIC when one is not finite. */
ingot_status ingot_engine_logits(ingot_engine *engine, ingot_kernels *kernels,
                                 float *logits) INGOT_MUST_CHECK;
/* Whether a query, key or value, or an input of a product of many rows, has been beyond 65504, the
 * largest of binary16, and cut off to it since the engine was created or this was last asked, by
 * tokens chosen ahead, too: then the model may say otherwise than in FP32.  Other inputs of
 * products beyond it are infinite, and logits not finite. */
ingot_status ingot_engine_saturated(ingot_engine *engine, ingot_kernels *kernels,
                                    bool *is_saturated) INGOT_MUST_CHECK;

#ifdef __cplusplus
}
#endif

#endif
