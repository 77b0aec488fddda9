/* The forward pass of a decoder, one block at a time.
 *
 * calib/ knows nothing of quantization: it runs a block on a batch of hidden states and hands each
 * linear's input to a callback.  Weights come as views, dense or grouped, so the same code runs the
 * checkpoint, the container and the mixture in between. */
#ifndef INGOT_FORWARD_H
#define INGOT_FORWARD_H

#include "calib/model.h"

/* One block's weights.  `linear`, `bias`, `norm` and `norm_bias` are what the backend runs (device
 * memory); `host` holds the same as they were loaded, in the caller's arena.  On the cpu backend
 * both are the same bytes for linears.  A caller may put other device views or vectors in place
 * between two calls (the quantized prefix, AWQ folds); it keeps owning those. */
typedef struct ingot_block {
    uint64_t layer;
    ingot_weight_view linear[INGOT_ROLE_COUNT];
    float *bias[INGOT_ROLE_COUNT];      /* [rows] or NULL */
    float *norm[INGOT_SLOT_COUNT];      /* weight [width] or NULL */
    float *norm_bias[INGOT_SLOT_COUNT]; /* LAYER norms, or NULL */

    struct ingot_block_host {
        ingot_weight_view linear[INGOT_ROLE_COUNT];
        float *bias[INGOT_ROLE_COUNT];
        float *norm[INGOT_SLOT_COUNT];
        float *norm_bias[INGOT_SLOT_COUNT];
    } host;

    /* What ingot_block_load put on the device, for ingot_block_release. */
    ingot_weight_view owned_view[INGOT_ROLE_COUNT];
    bool has_owned_view[INGOT_ROLE_COUNT];
    float *owned_vector[INGOT_ROLE_COUNT + 2 * INGOT_SLOT_COUNT];
    unsigned owned_vector_count;
} ingot_block;

/* INGOT_ERR_INPUT, naming the tensor, when the view is not rows x cols. */
ingot_status ingot_view_check_shape(const ingot_weight_view *view, uint64_t rows, uint64_t cols,
                                    const char *name, const char *path,
                                    ingot_error *error) INGOT_MUST_CHECK;
/* *out = a dense tensor of `width` values as FP32 in the arena. */
ingot_status ingot_vector_load(float **out, const char *name, uint64_t width,
                               const ingot_weight_source *source, ingot_arena *arena,
                               ingot_error *error) INGOT_MUST_CHECK;

/* Loads a block into the arena and onto the device.  INGOT_ERR_INPUT when a tensor has not the
 * shape of the model.  On failure nothing is left on the device. */
ingot_status ingot_block_load(ingot_block *out, const ingot_model *model, uint64_t layer,
                              const ingot_weight_source *source, const ingot_backend *backend,
                              ingot_arena *arena, ingot_error *error) INGOT_MUST_CHECK;
/* What the source says that loading the matrices of a block takes, in bytes. */
uint64_t ingot_block_load_bytes(const ingot_model *model, uint64_t layer,
                                const ingot_weight_source *source);
/* Gives the device memory of ingot_block_load back; the arena is the caller's.  A zeroed block is
 * fine. */
void ingot_block_release(ingot_block *block, const ingot_backend *backend);

/* Keys and values of the tokens seen so far, per layer. */
typedef struct ingot_kv_cache {
    uint64_t sequences, capacity; /* tokens per sequence */
    uint64_t length;              /* valid tokens, the same for all sequences */
    float **k, **v; /* [layers] of [sequences][capacity][kv_heads][head_dim], device */
} ingot_kv_cache;
ingot_status ingot_kv_cache_create(ingot_kv_cache *out, const ingot_model *model,
                                   const ingot_backend *backend, uint64_t sequences,
                                   uint64_t capacity, ingot_error *error) INGOT_MUST_CHECK;
void ingot_kv_cache_destroy(ingot_kv_cache *cache, const ingot_model *model,
                            const ingot_backend *backend);

/* Scratch for blocks of at most max_tokens tokens, reused over calls: about
 * 4 * max_tokens * (2 hidden + 2 heads * head_dim + 2 kv_heads * head_dim + 2 ffn) bytes. */
typedef struct ingot_workspace ingot_workspace;
/* Bytes that a token takes in one, about. */
uint64_t ingot_workspace_token_bytes(const ingot_model *model);
ingot_status ingot_workspace_create(ingot_workspace **out, const ingot_model *model,
                                    const ingot_backend *backend, uint64_t max_tokens,
                                    ingot_error *error) INGOT_MUST_CHECK;
void ingot_workspace_destroy(ingot_workspace *workspace);

/* Receives the input x[m][width] of the linears that read from `input`; device memory, valid
 * during the call. A status other than INGOT_OK stops the forward pass. */
typedef ingot_status (*ingot_input_hook)(void *context, ingot_input input, const float *x,
                                         uint64_t m, uint64_t width);

/* x[sequences * q_len][hidden] (device) becomes the block's output, in place.
 * Without a cache positions run 0..q_len-1 in every sequence; with one, keys and values are
 * appended at cache->length (which the caller advances once all layers ran).
 * INGOT_ERR_USAGE when the tokens exceed the workspace or the cache.
 * hook may be NULL.  sequences * q_len <= the workspace's max_tokens. */
ingot_status ingot_block_forward(const ingot_model *model, const ingot_backend *backend,
                                 const ingot_block *block, float *x, uint64_t sequences,
                                 uint64_t q_len, ingot_kv_cache *cache, ingot_workspace *workspace,
                                 ingot_input_hook hook, void *hook_context) INGOT_MUST_CHECK;

/* The halves of a block: x += attention, x += mlp. */
typedef enum ingot_block_part {
    INGOT_BLOCK_WHOLE,
    INGOT_BLOCK_ATTENTION,
    INGOT_BLOCK_MLP
} ingot_block_part;
/* The same for a part of a block: both halves after each other are the block. */
ingot_status ingot_block_forward_part(const ingot_model *model, const ingot_backend *backend,
                                      const ingot_block *block, ingot_block_part part, float *x,
                                      uint64_t sequences, uint64_t q_len, ingot_kv_cache *cache,
                                      ingot_workspace *workspace, ingot_input_hook hook,
                                      void *hook_context) INGOT_MUST_CHECK;

/* ingot_block_forward for any number of sequences without a cache: as many per call as the
 * workspace holds, in order.  The hook is called once per call, for its tokens.  On a CPU all of
 * them can be minutes: a signal is looked for before each call, INGOT_ERR_INTERRUPTED, for which
 * alone *error is filled. */
ingot_status ingot_block_forward_batch(const ingot_model *model, const ingot_backend *backend,
                                       const ingot_block *block, float *x, uint64_t sequences,
                                       uint64_t q_len, ingot_workspace *workspace,
                                       ingot_input_hook hook, void *hook_context,
                                       ingot_error *error) INGOT_MUST_CHECK;

/* The two ends of the model: embedding table, final norm, head.  A tied head shares its view with
 * the table unless the source stores a head of its own. */
typedef struct ingot_ends {
    ingot_weight_view embed, head;
    float *final_norm, *final_norm_bias;

    /* What was put on the device, for ingot_ends_release. */
    ingot_weight_view owned_view[2];
    unsigned owned_view_count;
    float *owned_vector[2];
    unsigned owned_vector_count;
} ingot_ends;

/* Whether head and table are one tensor: a tied model stores the head once, as an alias, or as a
 * copy that ingot_model_open found to be the same bytes.  A head that was quantized on its own is
 * none of these. */
bool ingot_ends_is_shared(const ingot_model *model, const ingot_weight_source *source);
ingot_status ingot_ends_load(ingot_ends *out, const ingot_model *model,
                             const ingot_weight_source *source, const ingot_backend *backend,
                             ingot_arena *arena, ingot_error *error) INGOT_MUST_CHECK;
/* Which end to load: a streaming caller needs the table first and the head last. */
typedef enum ingot_ends_part {
    INGOT_ENDS_EMBED = 1, /* embed */
    INGOT_ENDS_HEAD = 2,  /* final norm and head */
    INGOT_ENDS_BOTH = 3
} ingot_ends_part;
ingot_status ingot_ends_load_part(ingot_ends *out, ingot_ends_part part, const ingot_model *model,
                                  const ingot_weight_source *source, const ingot_backend *backend,
                                  ingot_arena *arena, ingot_error *error) INGOT_MUST_CHECK;
/* As ingot_block_load_bytes: both ends; the whole model. */
uint64_t ingot_ends_load_bytes(const ingot_model *model, const ingot_weight_source *source);
uint64_t ingot_model_load_bytes(const ingot_model *model, const ingot_weight_source *source);
/* Gives the device memory of a load back; a zeroed struct is fine. */
void ingot_ends_release(ingot_ends *ends, const ingot_backend *backend);
/* x[m][hidden] = embeddings of ids[m] (host). */
ingot_status ingot_ends_embed(const ingot_ends *ends, const ingot_model *model,
                              const ingot_backend *backend, float *x, const uint32_t *ids,
                              uint64_t m) INGOT_MUST_CHECK;
/* logits[m][vocab] = head(final norm(x[m][hidden])); scratch[m][hidden] is the caller's. */
ingot_status ingot_ends_logits(const ingot_ends *ends, const ingot_model *model,
                               const ingot_backend *backend, float *logits, const float *x,
                               float *scratch, uint64_t m) INGOT_MUST_CHECK;

#endif
