/* A decoder model described by data: everything the forward pass, the planner and the folds need to
 * know about an architecture, read from config.json.  A family is a row of a table in model.c, not
 * a branch in the loop. */
#ifndef INGOT_MODEL_H
#define INGOT_MODEL_H

#include "format/weight_source.h"
#include "kernels/backend.h"

/* The linears of a block. */
typedef enum ingot_role {
    INGOT_ROLE_Q,
    INGOT_ROLE_K,
    INGOT_ROLE_V,
    INGOT_ROLE_O,
    INGOT_ROLE_GATE,
    INGOT_ROLE_UP,
    INGOT_ROLE_DOWN,
    INGOT_ROLE_COUNT
} ingot_role;
const char *ingot_role_name(ingot_role role); /* "q", "k", ... as reports print them */

/* Where linears of a block read from: linears with the same input share H. */
typedef enum ingot_input {
    INGOT_INPUT_ATTENTION, /* q, k, v: width hidden */
    INGOT_INPUT_OUTPUT,    /* o: width heads * head_dim */
    INGOT_INPUT_MLP,       /* gate, up: width hidden */
    INGOT_INPUT_DOWN,      /* down: width ffn */
    INGOT_INPUT_COUNT
} ingot_input;
const char *ingot_input_name(ingot_input input); /* "attention", "output", "mlp", "down" */

/* The norms of a block (absent ones have no name). */
typedef enum ingot_norm_slot {
    INGOT_SLOT_ATTENTION,      /* before q, k, v */
    INGOT_SLOT_MLP,            /* before gate, up */
    INGOT_SLOT_ATTENTION_POST, /* on the attention output, before the residual */
    INGOT_SLOT_MLP_POST,
    INGOT_SLOT_Q, /* per head, on q after projection */
    INGOT_SLOT_K,
    INGOT_SLOT_COUNT
} ingot_norm_slot;

typedef struct ingot_linear_desc {
    bool is_present;
    bool has_bias;
    uint64_t rows, cols; /* out, in features */
    ingot_input input;
    const char *suffix; /* "self_attn.q_proj": PREFIX.LAYER.SUFFIX.weight */
} ingot_linear_desc;

/* A producer whose output can be divided by a vector that its consumers' columns are multiplied by
 * (AWQ): a norm's weight, or the rows of a linear. */
typedef struct ingot_fold_desc {
    bool is_norm;
    ingot_norm_slot slot; /* producer when is_norm */
    ingot_role producer;  /* else: rows of this linear (v or up) */
    ingot_role consumers[4];
    unsigned consumer_count;
    /* v -> o with grouped heads: consumer column c is fed by producer row
     * (c / (repeat * head_dim)) * head_dim + c % head_dim; repeat = 1: column = row. */
    uint64_t repeat, head_dim;
} ingot_fold_desc;

typedef enum ingot_rope_kind {
    INGOT_ROPE_DEFAULT,
    INGOT_ROPE_LINEAR,
    INGOT_ROPE_LLAMA3
} ingot_rope_kind;

typedef struct ingot_model {
    char family[32]; /* config's model_type: "llama", "mistral", "qwen2", "qwen3" */
    uint64_t layers, hidden, ffn, heads, kv_heads, head_dim, vocab, context;
    ingot_norm_kind norm;
    float norm_eps;
    ingot_activation activation;
    float embed_scale;  /* 1 for most */
    bool is_tied;       /* the head is the embedding table */
    bool is_tie_stated; /* config.json says so, or says not; else the tensors decide */
    float attention_scale;
    double *inverse_frequency; /* [rotary_dim / 2], rope scaling applied; owned */
    uint64_t rotary_dim;
    float rope_attention_factor;
    uint64_t *window; /* [layers], 0: full attention; owned */
    ingot_linear_desc linear[INGOT_ROLE_COUNT];
    const char *norm_suffix[INGOT_SLOT_COUNT]; /* NULL: absent */
    ingot_fold_desc fold[8];
    unsigned fold_count;
    const char *layer_prefix;    /* "model.layers" */
    const char *embed_name;      /* "model.embed_tokens.weight" */
    const char *final_norm_name; /* "model.norm.weight" */
    const char *head_name;       /* "lm_head.weight" */
    uint32_t eos_ids[8];         /* end-of-text tokens: generation_config, else config */
    unsigned eos_count;
    bool is_endless; /* such tokens are named, but none of the vocabulary */
    uint32_t bos_id; /* what a text begins with, by config.json */
    bool has_bos;
} ingot_model;

/* Reads config.json (and generation_config.json) of the source, checks every size and that every
 * tensor the description names is there with its shape, and of a checkpoint that it has no further
 * layers.  INGOT_ERR_UNSUPPORTED names an unknown architecture, activation or rope type;
 * INGOT_ERR_INPUT a misshapen tensor, the first few of those that are missing, or the first of a
 * layer too many. */
ingot_status ingot_model_open(ingot_model *out, const ingot_weight_source *source,
                              ingot_error *error) INGOT_MUST_CHECK;
/* From the text of config.json alone, without weights (plans). */
ingot_status ingot_model_from_config(ingot_model *out, const char *config, uint64_t size,
                                     const char *path, ingot_error *error) INGOT_MUST_CHECK;
/* The end-of-text tokens that a generation_config.json names, where it names any. */
ingot_status ingot_model_add_eos(ingot_model *model, const char *generation_config, uint64_t size,
                                 const char *path, ingot_error *error) INGOT_MUST_CHECK;
void ingot_model_close(ingot_model *model);

#define INGOT_NAME_SIZE 256
/* "PREFIX.LAYER.SUFFIX.weight" / ".bias" into name[INGOT_NAME_SIZE]. */
void ingot_model_linear_name(const ingot_model *model, uint64_t layer, ingot_role role, char *name);
void ingot_model_bias_name(const ingot_model *model, uint64_t layer, ingot_role role, char *name);
/* False when the slot is absent. */
bool ingot_model_norm_name(const ingot_model *model, uint64_t layer, ingot_norm_slot slot,
                           char *name);

/* What a tensor of the checkpoint is to this model. */
typedef enum ingot_tensor_class {
    INGOT_CLASS_LINEAR, /* a block's linear: layer and role are set */
    INGOT_CLASS_BIAS,   /* of a block's linear */
    INGOT_CLASS_NORM,
    INGOT_CLASS_EMBED,
    INGOT_CLASS_HEAD,
    INGOT_CLASS_UNKNOWN /* not described (inv_freq, ...): copied dense and reported */
} ingot_tensor_class;
/* The layer that a name says a tensor is of, which may be beyond the model's last; false: of none.
 */
bool ingot_model_layer_of(const ingot_model *model, const char *name, uint64_t *layer);
ingot_tensor_class ingot_model_classify(const ingot_model *model, const char *name, uint64_t *layer,
                                        ingot_role *role);
/* What a tensor that its checkpoint does not have was made from: of the head that is not said to be
 * its own the embedding; else NULL. */
const char *ingot_model_stand_in(const ingot_model *model, const char *name);

#endif
