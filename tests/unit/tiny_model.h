/* Random models of a few thousand weights for the tests of calib/: the description is filled in by
 * hand, the weights come from a source in memory, and a plain FP64 forward pass written from the
 * formulas is what the real one is compared with.  The reference shares no code with it. */
#ifndef INGOT_TEST_TINY_MODEL_H
#define INGOT_TEST_TINY_MODEL_H

#include "calib/dataset.h"
#include "calib/forward.h"
#include "common/random.h"

#include <CUnit/Basic.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TINY_TENSORS 128
#ifndef TINY_MAX
#define TINY_MAX 64 /* features of any vector */
#endif

typedef struct tiny_tensor {
    char name[INGOT_NAME_SIZE];
    uint64_t rows, cols;
    unsigned rank;
    float *data;
} tiny_tensor;

/* Sizes other than the usual ones. */
typedef struct tiny_shape {
    uint64_t hidden, ffn, heads, kv_heads, head_dim, vocab;
} tiny_shape;

typedef struct tiny_model {
    ingot_model model;
    ingot_weight_source source;
    tiny_tensor tensor[TINY_TENSORS];
    unsigned count;
    uint64_t random;
    double inverse_frequency[TINY_MAX];
    uint64_t window[8];
} tiny_model;

enum {
    TINY_QKV_BIAS = 1,
    TINY_HEAD_NORMS = 2,
    TINY_WINDOW = 4,
    TINY_LAYER_NORM = 8, /* with biases everywhere */
    TINY_UNGATED = 16,
    TINY_POST_NORMS = 32,
    TINY_PARTIAL_ROTARY = 64,
    TINY_TIED = 128,
    TINY_SCALES = 256, /* unusual embedding, attention and rotary factors */
    TINY_NO_PRE_NORMS = 512,
    TINY_WIDE = 1024,       /* ffn of 800, where TINY_MAX allows */
    TINY_LARGE_VOCAB = 2048 /* of 400000 */
};

/* INGOT_TEST_SEED repeats a run. */
static inline uint64_t tiny_seed(void) {
    const char *text = getenv("INGOT_TEST_SEED");
    const uint64_t seed = text == NULL ? (uint64_t)time(NULL) : strtoull(text, NULL, 10);
    printf("\n    INGOT_TEST_SEED=%llu ", (unsigned long long)seed);
    return seed;
}

static inline uint64_t tiny_bits(tiny_model *t) {
    return ingot_random_bits(&t->random);
}

/* Uniform in [-1, 1). */
static inline float tiny_value(tiny_model *t) {
    return (float)((double)(int64_t)tiny_bits(t) * 0x1p-63);
}

static inline tiny_tensor *tiny_find(const tiny_model *t, const char *name) {
    for (unsigned i = 0; i < t->count; i++) {
        if (strcmp(t->tensor[i].name, name) == 0) {
            return (tiny_tensor *)(uintptr_t)&t->tensor[i];
        }
    }
    return NULL;
}

static inline void tiny_add(tiny_model *t, const char *name, unsigned rank, uint64_t rows,
                            uint64_t cols, float middle, float spread) {
    if (t->count == TINY_TENSORS) {
        abort();
    }
    tiny_tensor *tensor = &t->tensor[t->count++];
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    tensor->rank = rank;
    tensor->rows = rows;
    tensor->cols = cols;
    tensor->data = malloc(rows * cols * sizeof(float));
    for (uint64_t i = 0; i < rows * cols; i++) {
        tensor->data[i] = middle + spread * tiny_value(t);
    }
}

static inline bool tiny_describe(void *self, const char *name, ingot_weight_info *info) {
    const tiny_tensor *tensor = tiny_find(self, name);
    if (tensor == NULL) {
        return false;
    }
    *info = (ingot_weight_info){.rank = tensor->rank,
                                .kind = INGOT_DENSE,
                                .dtype = INGOT_F32,
                                .load_bytes = tensor->rows * tensor->cols * sizeof(float)};
    info->dim[0] = tensor->rank == 2 ? tensor->rows : tensor->cols;
    info->dim[1] = tensor->rank == 2 ? tensor->cols : 0;
    return true;
}

static inline ingot_status tiny_load(void *self, const char *name, ingot_arena *arena,
                                     ingot_weight_view *view, ingot_error *error) {
    const tiny_tensor *tensor = tiny_find(self, name);
    if (tensor == NULL) {
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, "tiny", name, NULL, "not there");
    }
    const uint64_t bytes = tensor->rows * tensor->cols * sizeof(float);
    void *memory;
    INGOT_TRY(ingot_arena_alloc(arena, &memory, bytes));
    memcpy(memory, tensor->data, bytes);
    *view = (ingot_weight_view){.kind = INGOT_DENSE,
                                .rows = tensor->rows,
                                .cols = tensor->cols,
                                .dtype = INGOT_F32,
                                .data = memory};
    return INGOT_OK;
}

static inline const char *tiny_file(void *self, const char *name, uint64_t *size) {
    (void)self;
    if (strcmp(name, "config.json") != 0) {
        return NULL;
    }
    *size = 2;
    return "{}";
}

static inline const char *tiny_name_at(void *self, uint64_t index) {
    const tiny_model *t = self;
    return index < t->count ? t->tensor[index].name : NULL;
}

static inline void tiny_close(void *self) {
    (void)self;
}

static inline void tiny_linear(ingot_model *m, ingot_role role, const char *suffix, uint64_t rows,
                               uint64_t cols, ingot_input input, bool has_bias) {
    m->linear[role] = (ingot_linear_desc){.is_present = true,
                                          .has_bias = has_bias,
                                          .rows = rows,
                                          .cols = cols,
                                          .input = input,
                                          .suffix = suffix};
}

static inline void tiny_describe_model(tiny_model *t, unsigned flags, const tiny_shape *shape) {
    ingot_model *m = &t->model;
    const bool all_bias = (flags & TINY_LAYER_NORM) != 0;
    const bool qkv_bias = all_bias || (flags & TINY_QKV_BIAS) != 0;
    snprintf(m->family, sizeof m->family, "tiny");
    m->layers = 3;
    m->hidden = 24; /* not heads * head_dim */
    m->ffn = (flags & TINY_WIDE) != 0 ? 800 : 40;
    m->heads = 6;
    m->kv_heads = 2;
    m->head_dim = 8;
    m->vocab = (flags & TINY_LARGE_VOCAB) != 0 ? 400000 : 50;
    if (shape != NULL) {
        m->hidden = shape->hidden;
        m->ffn = shape->ffn;
        m->heads = shape->heads;
        m->kv_heads = shape->kv_heads;
        m->head_dim = shape->head_dim;
        m->vocab = shape->vocab;
    }
    m->context = 64;
    m->norm = all_bias ? INGOT_NORM_LAYER : INGOT_NORM_RMS;
    m->norm_eps = 1e-5f;
    m->activation = (flags & TINY_UNGATED) != 0 ? INGOT_ACT_GELU_TANH : INGOT_ACT_SILU;
    m->embed_scale = (flags & TINY_SCALES) != 0 ? 1.7f : 1.0f;
    m->attention_scale = (flags & TINY_SCALES) != 0 ? 0.5f : 1.0f / sqrtf((float)m->head_dim);
    m->rope_attention_factor = (flags & TINY_SCALES) != 0 ? 1.2f : 1.0f;
    m->rotary_dim = (flags & TINY_PARTIAL_ROTARY) != 0 ? m->head_dim / 2 : m->head_dim;
    m->is_tied = (flags & TINY_TIED) != 0;
    m->inverse_frequency = t->inverse_frequency;
    m->window = t->window;
    for (uint64_t i = 0; i < m->rotary_dim / 2; i++) {
        t->inverse_frequency[i] = pow(100.0, -2.0 * (double)i / (double)m->rotary_dim);
    }
    for (uint64_t i = 0; i < m->layers && (flags & TINY_WINDOW) != 0; i++) {
        t->window[i] = i == 1 ? 0 : 3 + i; /* one layer of full attention among them */
    }
    const uint64_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    tiny_linear(m, INGOT_ROLE_Q, "self_attn.q_proj", q, m->hidden, INGOT_INPUT_ATTENTION, qkv_bias);
    tiny_linear(m, INGOT_ROLE_K, "self_attn.k_proj", kv, m->hidden, INGOT_INPUT_ATTENTION,
                qkv_bias);
    tiny_linear(m, INGOT_ROLE_V, "self_attn.v_proj", kv, m->hidden, INGOT_INPUT_ATTENTION,
                qkv_bias);
    tiny_linear(m, INGOT_ROLE_O, "self_attn.o_proj", m->hidden, q, INGOT_INPUT_OUTPUT, all_bias);
    if ((flags & TINY_UNGATED) == 0) {
        tiny_linear(m, INGOT_ROLE_GATE, "mlp.gate_proj", m->ffn, m->hidden, INGOT_INPUT_MLP,
                    all_bias);
    }
    tiny_linear(m, INGOT_ROLE_UP, "mlp.up_proj", m->ffn, m->hidden, INGOT_INPUT_MLP, all_bias);
    tiny_linear(m, INGOT_ROLE_DOWN, "mlp.down_proj", m->hidden, m->ffn, INGOT_INPUT_DOWN, all_bias);
    if ((flags & TINY_NO_PRE_NORMS) == 0) {
        m->norm_suffix[INGOT_SLOT_ATTENTION] = "input_layernorm";
        m->norm_suffix[INGOT_SLOT_MLP] = "post_attention_layernorm";
    }
    if ((flags & TINY_POST_NORMS) != 0) {
        m->norm_suffix[INGOT_SLOT_ATTENTION_POST] = "attention_post_norm";
        m->norm_suffix[INGOT_SLOT_MLP_POST] = "mlp_post_norm";
    }
    if ((flags & TINY_HEAD_NORMS) != 0) {
        m->norm_suffix[INGOT_SLOT_Q] = "self_attn.q_norm";
        m->norm_suffix[INGOT_SLOT_K] = "self_attn.k_norm";
    }
    m->layer_prefix = "model.layers";
    m->embed_name = "model.embed_tokens.weight";
    m->final_norm_name = "model.norm.weight";
    m->head_name = "lm_head.weight";
}

static inline void tiny_add_norm(tiny_model *t, const char *name, uint64_t width) {
    char bias[INGOT_NAME_SIZE];
    tiny_add(t, name, 1, 1, width, 1.0f, 0.5f);
    if (t->model.norm == INGOT_NORM_LAYER) {
        snprintf(bias, sizeof bias, "%.*s.bias", (int)(strlen(name) - strlen(".weight")), name);
        tiny_add(t, bias, 1, 1, width, 0.0f, 0.3f);
    }
}

static inline tiny_model *tiny_create_shaped(unsigned flags, uint64_t seed,
                                             const tiny_shape *shape) {
    tiny_model *t = calloc(1, sizeof *t);
    ingot_model *m = &t->model;
    char name[INGOT_NAME_SIZE];
    t->random = seed;
    tiny_describe_model(t, flags, shape);
    t->source = (ingot_weight_source){.self = t,
                                      .path = "tiny",
                                      .describe = tiny_describe,
                                      .load = tiny_load,
                                      .file = tiny_file,
                                      .name_at = tiny_name_at,
                                      .close = tiny_close};
    tiny_add(t, m->embed_name, 2, m->vocab, m->hidden, 0, 1);
    for (uint64_t layer = 0; layer < m->layers; layer++) {
        for (int role = 0; role < INGOT_ROLE_COUNT; role++) {
            const ingot_linear_desc *desc = &m->linear[role];
            if (desc->is_present) {
                ingot_model_linear_name(m, layer, (ingot_role)role, name);
                tiny_add(t, name, 2, desc->rows, desc->cols, 0, 1.7f / sqrtf((float)desc->cols));
            }
            if (desc->has_bias) {
                ingot_model_bias_name(m, layer, (ingot_role)role, name);
                tiny_add(t, name, 1, 1, desc->rows, 0, 0.5f);
            }
        }
        for (int slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
            if (ingot_model_norm_name(m, layer, (ingot_norm_slot)slot, name)) {
                const bool is_head = slot == INGOT_SLOT_Q || slot == INGOT_SLOT_K;
                tiny_add_norm(t, name, is_head ? m->head_dim : m->hidden);
            }
        }
    }
    tiny_add_norm(t, m->final_norm_name, m->hidden);
    if (!m->is_tied) {
        tiny_add(t, m->head_name, 2, m->vocab, m->hidden, 0, 0.5f);
    }
    return t;
}

static inline tiny_model *tiny_create(unsigned flags, uint64_t seed) {
    return tiny_create_shaped(flags, seed, NULL);
}

static inline void tiny_destroy(tiny_model *t) {
    for (unsigned i = 0; i < t->count; i++) {
        free(t->tensor[i].data);
    }
    free(t);
}

/* ids[count], random. */
static inline void tiny_ids(tiny_model *t, uint32_t *ids, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        ids[i] = (uint32_t)(tiny_bits(t) % t->model.vocab);
    }
}

/* Random windows, released with free(windows.ids). */
static inline ingot_windows tiny_windows(tiny_model *t, uint64_t count, uint64_t length) {
    ingot_windows windows = {.count = count, .length = length};
    windows.ids = malloc(count * length * sizeof *windows.ids);
    tiny_ids(t, windows.ids, count * length);
    return windows;
}

/* ---- the reference, in FP64, one token after the other ----------------------------------- */

static inline void tiny_ref_linear(const tiny_model *t, uint64_t layer, ingot_role role, double *y,
                                   const double *x) {
    char name[INGOT_NAME_SIZE];
    const ingot_linear_desc *desc = &t->model.linear[role];
    ingot_model_linear_name(&t->model, layer, role, name);
    const float *w = tiny_find(t, name)->data;
    const float *bias = NULL;
    if (desc->has_bias) {
        ingot_model_bias_name(&t->model, layer, role, name);
        bias = tiny_find(t, name)->data;
    }
    for (uint64_t r = 0; r < desc->rows; r++) {
        double sum = bias == NULL ? 0 : bias[r];
        for (uint64_t c = 0; c < desc->cols; c++) {
            sum += (double)w[r * desc->cols + c] * x[c];
        }
        y[r] = sum;
    }
}

static inline void tiny_ref_norm(const tiny_model *t, const char *name, double *y, const double *x,
                                 uint64_t n) {
    char bias_name[INGOT_NAME_SIZE];
    const float *w = tiny_find(t, name)->data;
    const float *bias = NULL;
    double mean = 0, square = 0;
    if (t->model.norm == INGOT_NORM_LAYER) {
        snprintf(bias_name, sizeof bias_name, "%.*s.bias", (int)(strlen(name) - strlen(".weight")),
                 name);
        bias = tiny_find(t, bias_name)->data;
        for (uint64_t i = 0; i < n; i++) {
            mean += x[i] / (double)n;
        }
    }
    for (uint64_t i = 0; i < n; i++) {
        square += (x[i] - mean) * (x[i] - mean) / (double)n;
    }
    for (uint64_t i = 0; i < n; i++) {
        y[i] = (x[i] - mean) / sqrt(square + (double)t->model.norm_eps) * w[i] +
               (bias == NULL ? 0 : bias[i]);
    }
}

/* y = norm(x) where the slot exists, else x. */
static inline void tiny_ref_slot(const tiny_model *t, uint64_t layer, ingot_norm_slot slot,
                                 double *y, const double *x, uint64_t n) {
    char name[INGOT_NAME_SIZE];
    if (ingot_model_norm_name(&t->model, layer, slot, name)) {
        tiny_ref_norm(t, name, y, x, n);
    } else {
        memmove(y, x, n * sizeof *y);
    }
}

static inline void tiny_ref_heads(const tiny_model *t, uint64_t layer, ingot_norm_slot slot,
                                  double *x, uint64_t heads, uint64_t position) {
    const ingot_model *m = &t->model;
    const uint64_t half = m->rotary_dim / 2;
    for (uint64_t h = 0; h < heads; h++) {
        double *head = x + h * m->head_dim;
        tiny_ref_slot(t, layer, slot, head, head, m->head_dim);
        for (uint64_t i = 0; i < half; i++) {
            const double angle = (double)position * m->inverse_frequency[i];
            const double c = cos(angle) * (double)m->rope_attention_factor;
            const double s = sin(angle) * (double)m->rope_attention_factor;
            const double a = head[i], b = head[i + half];
            head[i] = a * c - b * s;
            head[i + half] = b * c + a * s;
        }
    }
}

static inline double tiny_ref_activate(const ingot_model *m, double x) {
    if (m->activation == INGOT_ACT_SILU) {
        return x / (1 + exp(-x));
    }
    if (m->activation == INGOT_ACT_GELU) {
        return 0.5 * x * erfc(-x / sqrt(2.0));
    }
    return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)));
}

static inline void tiny_ref_attend(const ingot_model *m, uint64_t window, uint64_t i, double *out,
                                   const double *q, double (*k)[TINY_MAX], double (*v)[TINY_MAX]) {
    for (uint64_t h = 0; h < m->heads; h++) {
        const uint64_t kv = h / (m->heads / m->kv_heads) * m->head_dim;
        double total = 0, *head = out + h * m->head_dim;
        memset(head, 0, m->head_dim * sizeof *head);
        for (uint64_t j = 0; j <= i; j++) {
            double score = 0;
            if (window != 0 && j + window <= i) {
                continue;
            }
            for (uint64_t d = 0; d < m->head_dim; d++) {
                score += q[h * m->head_dim + d] * k[j][kv + d];
            }
            const double weight = exp(score * (double)m->attention_scale);
            total += weight;
            for (uint64_t d = 0; d < m->head_dim; d++) {
                head[d] += weight * v[j][kv + d];
            }
        }
        for (uint64_t d = 0; d < m->head_dim; d++) {
            head[d] /= total;
        }
    }
}

/* What the linears of a block read, per token. */
typedef double tiny_inputs[INGOT_INPUT_COUNT][TINY_MAX];

static inline void tiny_ref_mlp(const tiny_model *t, uint64_t layer, double *x,
                                tiny_inputs inputs) {
    const ingot_model *m = &t->model;
    double up[TINY_MAX], gate[TINY_MAX], out[TINY_MAX];
    double *inner = inputs[INGOT_INPUT_DOWN];
    tiny_ref_slot(t, layer, INGOT_SLOT_MLP, inputs[INGOT_INPUT_MLP], x, m->hidden);
    tiny_ref_linear(t, layer, INGOT_ROLE_UP, up, inputs[INGOT_INPUT_MLP]);
    if (m->linear[INGOT_ROLE_GATE].is_present) {
        tiny_ref_linear(t, layer, INGOT_ROLE_GATE, gate, inputs[INGOT_INPUT_MLP]);
    }
    for (uint64_t f = 0; f < m->ffn; f++) {
        inner[f] = m->linear[INGOT_ROLE_GATE].is_present ? tiny_ref_activate(m, gate[f]) * up[f]
                                                         : tiny_ref_activate(m, up[f]);
    }
    tiny_ref_linear(t, layer, INGOT_ROLE_DOWN, out, inner);
    tiny_ref_slot(t, layer, INGOT_SLOT_MLP_POST, out, out, m->hidden);
    for (uint64_t c = 0; c < m->hidden; c++) {
        x[c] += out[c];
    }
}

/* x[n] tokens of one sequence through a block; inputs[n] may be NULL. */
static inline void tiny_ref_block(const tiny_model *t, uint64_t layer, double (*x)[TINY_MAX],
                                  uint64_t n, tiny_inputs *inputs) {
    const ingot_model *m = &t->model;
    double(*k)[TINY_MAX] = calloc(n, sizeof *k);
    double(*v)[TINY_MAX] = calloc(n, sizeof *v);
    for (uint64_t i = 0; i < n; i++) {
        double q[TINY_MAX], out[TINY_MAX];
        tiny_inputs local;
        double(*in)[TINY_MAX] = inputs == NULL ? local : inputs[i];
        tiny_ref_slot(t, layer, INGOT_SLOT_ATTENTION, in[INGOT_INPUT_ATTENTION], x[i], m->hidden);
        tiny_ref_linear(t, layer, INGOT_ROLE_Q, q, in[INGOT_INPUT_ATTENTION]);
        tiny_ref_linear(t, layer, INGOT_ROLE_K, k[i], in[INGOT_INPUT_ATTENTION]);
        tiny_ref_linear(t, layer, INGOT_ROLE_V, v[i], in[INGOT_INPUT_ATTENTION]);
        tiny_ref_heads(t, layer, INGOT_SLOT_Q, q, m->heads, i);
        tiny_ref_heads(t, layer, INGOT_SLOT_K, k[i], m->kv_heads, i);
        tiny_ref_attend(m, m->window[layer], i, in[INGOT_INPUT_OUTPUT], q, k, v);
        tiny_ref_linear(t, layer, INGOT_ROLE_O, out, in[INGOT_INPUT_OUTPUT]);
        tiny_ref_slot(t, layer, INGOT_SLOT_ATTENTION_POST, out, out, m->hidden);
        for (uint64_t c = 0; c < m->hidden; c++) {
            x[i][c] += out[c];
        }
        tiny_ref_mlp(t, layer, x[i], in);
    }
    free(k);
    free(v);
}

/* logits[n][vocab] of one sequence. */
static inline void tiny_ref_logits(const tiny_model *t, const uint32_t *ids, uint64_t n,
                                   double *logits) {
    const ingot_model *m = &t->model;
    const float *embed = tiny_find(t, m->embed_name)->data;
    const float *head = m->is_tied ? embed : tiny_find(t, m->head_name)->data;
    double(*x)[TINY_MAX] = calloc(n, sizeof *x);
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t c = 0; c < m->hidden; c++) {
            x[i][c] = (double)embed[ids[i] * m->hidden + c] * (double)m->embed_scale;
        }
    }
    for (uint64_t layer = 0; layer < m->layers; layer++) {
        tiny_ref_block(t, layer, x, n, NULL);
    }
    for (uint64_t i = 0; i < n; i++) {
        double normed[TINY_MAX];
        tiny_ref_norm(t, m->final_norm_name, normed, x[i], m->hidden);
        for (uint64_t w = 0; w < m->vocab; w++) {
            double sum = 0;
            for (uint64_t c = 0; c < m->hidden; c++) {
                sum += (double)head[w * m->hidden + c] * normed[c];
            }
            logits[i * m->vocab + w] = sum;
        }
    }
    free(x);
}

#endif
