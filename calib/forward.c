/* The forward pass of a decoder block, driven by the description in calib/model.h: which norms
 * exist and where, biases, q/k norms, rotary, grouped heads, windows and gating are data.  All
 * arithmetic goes through backend operations on device memory; the residual stream is FP32.
 * Not here: running a whole model over text (calib/score.c, calib/stats.c, calib/decode.c). */
#include "calib/forward_internal.h"
#include "common/files.h"
#include "common/sizes.h"
#include "format/half.h"

#include <string.h>

/* ---- loading ---------------------------------------------------------------------------- */

ingot_status ingot_view_check_shape(const ingot_weight_view *view, uint64_t rows, uint64_t cols,
                                    const char *name, const char *path, ingot_error *error) {
    if (view->rows == rows && view->cols == cols) {
        return INGOT_OK;
    }
    return ingot_error_set(error, INGOT_ERR_INPUT, path, name,
                           "config.json and the weights belong to different models",
                           "the shape is %llu x %llu, the model needs %llu x %llu",
                           (unsigned long long)view->rows, (unsigned long long)view->cols,
                           (unsigned long long)rows, (unsigned long long)cols);
}

ingot_status ingot_vector_load(float **out, const char *name, uint64_t width,
                               const ingot_weight_source *source, ingot_arena *arena,
                               ingot_error *error) {
    ingot_weight_view view;
    INGOT_TRY(source->load(source->self, name, arena, &view, error));
    if (view.kind != INGOT_DENSE || view.rows * view.cols != width) {
        return ingot_error_set(error, INGOT_ERR_INPUT, source->path, name, NULL,
                               "expected a dense vector of %llu values", (unsigned long long)width);
    }
    if (view.dtype != INGOT_F32 && view.dtype != INGOT_F16 && view.dtype != INGOT_BF16) {
        return ingot_error_set(error, INGOT_ERR_INPUT, source->path, name, NULL,
                               "%s is not a floating-point vector", ingot_dtype_name(view.dtype));
    }
    void *memory;
    if (ingot_arena_alloc(arena, &memory, width * sizeof(float)) != INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, source->path, name, NULL,
                               "no memory for a vector");
    }
    *out = memory;
    ingot_convert_to_f32(*out, view.data, view.dtype, width);
    return INGOT_OK;
}

/* What to do where a tensor does not go onto a device. */
static const char *device_remedy(ingot_status status) {
    return status == INGOT_ERR_NO_MEMORY ? "end what else uses the device, or use --device cpu"
                                         : "see nvidia-smi";
}

static ingot_status upload_vector(float **device, const float *host, uint64_t width,
                                  const ingot_backend *backend, ingot_error *error) {
    void *memory = NULL;
    ingot_status status = backend->ops->alloc(backend->context, &memory, width * sizeof(float));
    if (status == INGOT_OK) {
        status = backend->ops->upload(backend->context, memory, host, width * sizeof(float));
        if (status != INGOT_OK) {
            backend->ops->release(backend->context, memory);
        }
    }
    if (status != INGOT_OK) {
        return ingot_error_set(error, status, NULL, NULL, device_remedy(status),
                               "a vector could not be put on the device: %s",
                               ingot_status_text(status));
    }
    *device = memory;
    return INGOT_OK;
}

/* What one load needs at hand. */
typedef struct loader {
    ingot_block *block;
    const ingot_model *model;
    const ingot_weight_source *source;
    const ingot_backend *backend;
    ingot_arena *arena;
    ingot_error *error;
} loader;

static ingot_status load_block_vector(const loader *l, const char *name, uint64_t width,
                                      float **host, float **device) {
    INGOT_TRY(ingot_vector_load(host, name, width, l->source, l->arena, l->error));
    INGOT_TRY(upload_vector(device, *host, width, l->backend, l->error));
    l->block->owned_vector[l->block->owned_vector_count++] = *device;
    return INGOT_OK;
}

static ingot_status load_linear(const loader *l, ingot_role role) {
    const ingot_linear_desc *desc = &l->model->linear[role];
    ingot_block *block = l->block;
    if (!desc->is_present) {
        return INGOT_OK;
    }
    char name[INGOT_NAME_SIZE];
    ingot_model_linear_name(l->model, block->layer, role, name);
    ingot_weight_view *host = &block->host.linear[role];
    INGOT_TRY(l->source->load(l->source->self, name, l->arena, host, l->error));
    INGOT_TRY(
        ingot_view_check_shape(host, desc->rows, desc->cols, name, l->source->path, l->error));
    const ingot_status status =
        l->backend->ops->upload_view(l->backend->context, &block->owned_view[role], host);
    if (status != INGOT_OK) {
        return ingot_error_set(l->error, status, l->source->path, name, device_remedy(status),
                               "the tensor could not be put on the device: %s",
                               ingot_status_text(status));
    }
    block->has_owned_view[role] = true;
    block->linear[role] = block->owned_view[role];
    if (desc->has_bias) {
        ingot_model_bias_name(l->model, block->layer, role, name);
        INGOT_TRY(
            load_block_vector(l, name, desc->rows, &block->host.bias[role], &block->bias[role]));
    }
    return INGOT_OK;
}

/* "X.weight" becomes "X.bias"; false when the name does not end so. */
static bool norm_bias_name(char *name) {
    const size_t length = strlen(name);
    static const char weight[] = "weight";
    const size_t tail = sizeof weight - 1;
    if (length < tail || strcmp(name + length - tail, weight) != 0) {
        return false;
    }
    memcpy(name + length - tail, "bias", sizeof "bias");
    return true;
}

static bool has_tensor(const ingot_weight_source *source, const char *name) {
    ingot_weight_info info;
    return source->describe(source->self, name, &info);
}

static ingot_status load_norm(const loader *l, ingot_norm_slot slot) {
    ingot_block *block = l->block;
    char name[INGOT_NAME_SIZE];
    if (!ingot_model_norm_name(l->model, block->layer, slot, name)) {
        return INGOT_OK;
    }
    const bool is_head_norm = slot == INGOT_SLOT_Q || slot == INGOT_SLOT_K;
    const uint64_t width = is_head_norm ? l->model->head_dim : l->model->hidden;
    INGOT_TRY(load_block_vector(l, name, width, &block->host.norm[slot], &block->norm[slot]));
    if (l->model->norm == INGOT_NORM_LAYER && norm_bias_name(name) && has_tensor(l->source, name)) {
        INGOT_TRY(load_block_vector(l, name, width, &block->host.norm_bias[slot],
                                    &block->norm_bias[slot]));
    }
    return INGOT_OK;
}

static ingot_status load_all(const loader *l) {
    for (int role = 0; role < INGOT_ROLE_COUNT; role++) {
        INGOT_TRY(load_linear(l, (ingot_role)role));
    }
    for (int slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        INGOT_TRY(load_norm(l, (ingot_norm_slot)slot));
    }
    return INGOT_OK;
}

ingot_status ingot_block_load(ingot_block *out, const ingot_model *model, uint64_t layer,
                              const ingot_weight_source *source, const ingot_backend *backend,
                              ingot_arena *arena, ingot_error *error) {
    memset(out, 0, sizeof *out);
    out->layer = layer;
    const loader l = {out, model, source, backend, arena, error};
    const ingot_status status = load_all(&l);
    if (status != INGOT_OK) {
        ingot_block_release(out, backend);
    }
    return status;
}

static uint64_t load_bytes(const ingot_weight_source *source, const char *name) {
    ingot_weight_info info;
    return source->describe(source->self, name, &info) ? info.load_bytes : 0;
}

uint64_t ingot_block_load_bytes(const ingot_model *model, uint64_t layer,
                                const ingot_weight_source *source) {
    char name[INGOT_NAME_SIZE];
    uint64_t bytes = 0;
    for (int role = 0; role < INGOT_ROLE_COUNT; role++) {
        if (model->linear[role].is_present) {
            ingot_model_linear_name(model, layer, (ingot_role)role, name);
            bytes += load_bytes(source, name);
        }
    }
    return bytes;
}

void ingot_block_release(ingot_block *block, const ingot_backend *backend) {
    for (int role = 0; role < INGOT_ROLE_COUNT; role++) {
        if (block->has_owned_view[role]) {
            backend->ops->release_view(backend->context, &block->owned_view[role]);
        }
    }
    for (unsigned i = 0; i < block->owned_vector_count; i++) {
        backend->ops->release(backend->context, block->owned_vector[i]);
    }
    memset(block, 0, sizeof *block);
}

/* ---- cache and workspace ---------------------------------------------------------------- */

/* *out = count floats of device memory; the product is checked. */
static ingot_status alloc_floats(float **out, const ingot_backend *backend, uint64_t rows,
                                 uint64_t cols, uint64_t depth, ingot_error *error) {
    uint64_t bytes;
    void *memory = NULL;
    *out = NULL;
    if (!ingot_size_mul(&bytes, rows, cols) || !ingot_size_mul(&bytes, bytes, depth) ||
        !ingot_size_mul(&bytes, bytes, sizeof(float))) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, NULL, NULL, "use a shorter window",
                               "a buffer of more than 2^64 bytes was asked for");
    }
    const ingot_status status = backend->ops->alloc(backend->context, &memory, bytes);
    if (status != INGOT_OK) {
        return ingot_error_set(error, status, NULL, NULL, "use shorter or fewer windows",
                               "no memory for %llu bytes on the device", (unsigned long long)bytes);
    }
    *out = memory;
    return INGOT_OK;
}

ingot_status ingot_kv_cache_create(ingot_kv_cache *out, const ingot_model *model,
                                   const ingot_backend *backend, uint64_t sequences,
                                   uint64_t capacity, ingot_error *error) {
    memset(out, 0, sizeof *out);
    out->sequences = sequences;
    out->capacity = capacity;
    ingot_status status = INGOT_OK;
    void *memory;
    INGOT_GO(ingot_alloc_zero(&memory, model->layers, sizeof(float *)));
    out->k = memory;
    INGOT_GO(ingot_alloc_zero(&memory, model->layers, sizeof(float *)));
    out->v = memory;
    const uint64_t width = model->kv_heads * model->head_dim;
    for (uint64_t i = 0; i < model->layers; i++) {
        INGOT_GO(alloc_floats(&out->k[i], backend, sequences, capacity, width, error));
        INGOT_GO(alloc_floats(&out->v[i], backend, sequences, capacity, width, error));
    }
done:
    if (status != INGOT_OK) {
        ingot_kv_cache_destroy(out, model, backend);
    }
    return status;
}

static void release_all(float **buffers, uint64_t count, const ingot_backend *backend) {
    for (uint64_t i = 0; buffers != NULL && i < count; i++) {
        if (buffers[i] != NULL) {
            backend->ops->release(backend->context, buffers[i]);
        }
    }
}

void ingot_kv_cache_destroy(ingot_kv_cache *cache, const ingot_model *model,
                            const ingot_backend *backend) {
    release_all(cache->k, model->layers, backend);
    release_all(cache->v, model->layers, backend);
    ingot_free(cache->k);
    ingot_free(cache->v);
    memset(cache, 0, sizeof *cache);
}

static uint64_t width_if(bool is_needed, uint64_t width) {
    return is_needed ? width : 0;
}

/* Floats a token of every buffer of a workspace; 0: not needed. */
static void buffer_widths(uint64_t *widths, const ingot_model *model, bool is_kept) {
    const uint64_t hidden = model->hidden, q = model->heads * model->head_dim;
    const uint64_t kv = model->kv_heads * model->head_dim;
    const char *const *norm = model->norm_suffix;
    const uint64_t wanted[INGOT_WORKSPACE_BUFFERS] = {
        hidden,
        hidden,
        q,
        q,
        kv,
        kv,
        width_if(model->linear[INGOT_ROLE_GATE].is_present, model->ffn),
        model->ffn,
        width_if(is_kept, hidden),
        width_if(is_kept, model->ffn),
        width_if(is_kept, hidden),
        width_if(is_kept && norm[INGOT_SLOT_Q] != NULL, q),
        width_if(is_kept && norm[INGOT_SLOT_K] != NULL, kv),
        width_if(is_kept && norm[INGOT_SLOT_ATTENTION_POST] != NULL, hidden),
        width_if(is_kept && norm[INGOT_SLOT_MLP_POST] != NULL, hidden),
    };
    memcpy(widths, wanted, sizeof wanted);
}

ingot_status ingot_workspace_open(ingot_workspace **out, const ingot_model *model,
                                  const ingot_backend *backend, uint64_t max_tokens, bool is_kept,
                                  ingot_error *error) {
    *out = NULL;
    void *memory;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_workspace)));
    ingot_workspace *w = memory;
    w->backend = backend;
    w->max_tokens = max_tokens;
    w->is_kept = is_kept;
    uint64_t widths[INGOT_WORKSPACE_BUFFERS];
    buffer_widths(widths, model, is_kept);
    ingot_status status = INGOT_OK;
    for (int i = 0; i < INGOT_WORKSPACE_BUFFERS && status == INGOT_OK; i++) {
        if (widths[i] != 0) {
            status = alloc_floats(&w->buffer[i], backend, max_tokens, widths[i], 1, error);
        }
    }
    if (status != INGOT_OK) {
        ingot_workspace_destroy(w);
        return status;
    }
    *out = w;
    return INGOT_OK;
}

uint64_t ingot_workspace_token_bytes(const ingot_model *model) {
    const uint64_t heads = (model->heads + model->kv_heads) * model->head_dim;
    return 2 * sizeof(float) * (model->hidden + heads + model->ffn);
}

ingot_status ingot_workspace_create(ingot_workspace **out, const ingot_model *model,
                                    const ingot_backend *backend, uint64_t max_tokens,
                                    ingot_error *error) {
    return ingot_workspace_open(out, model, backend, max_tokens, false, error);
}

void ingot_workspace_destroy(ingot_workspace *workspace) {
    if (workspace == NULL) {
        return;
    }
    release_all(workspace->buffer, INGOT_WORKSPACE_BUFFERS, workspace->backend);
    ingot_free(workspace);
}

/* ---- one block -------------------------------------------------------------------------- */

/* One call of ingot_block_forward: what its steps share. */
typedef struct pass {
    const ingot_model *model;
    const ingot_backend_ops *ops;
    void *context;
    const ingot_block *block;
    ingot_workspace *work;
    uint64_t sequences, q_len, tokens;
    ingot_kv_cache *cache;
    ingot_input_hook hook;
    void *hook_context;
} pass;

static ingot_status run_linear(const pass *p, ingot_role role, float *y, const float *x,
                               uint64_t m) {
    return p->ops->linear(p->context, y, &p->block->linear[role], p->block->bias[role], x, m);
}

static ingot_status run_norm(const pass *p, ingot_norm_slot slot, float *y, const float *x,
                             uint64_t m, uint64_t width) {
    return p->ops->norm(p->context, y, x, p->block->norm[slot], p->block->norm_bias[slot],
                        p->model->norm, p->model->norm_eps, m, width);
}

static ingot_status call_hook(const pass *p, ingot_input input, const float *x, uint64_t width) {
    return p->hook == NULL ? INGOT_OK : p->hook(p->hook_context, input, x, p->tokens, width);
}

/* Puts x[m][width] aside where the workspace has a buffer for it. */
static ingot_status keep(const pass *p, float *to, const float *x, uint64_t m, uint64_t width) {
    return to == NULL ? INGOT_OK : p->ops->copy(p->context, to, x, m * width * sizeof *x);
}

/* *input = the normed residual stream, or the stream itself in models without a norm there. */
static ingot_status norm_input(const pass *p, ingot_norm_slot slot, float *x, const float **input) {
    const ingot_workspace *w = p->work;
    float *own = slot == INGOT_SLOT_MLP && w->is_kept ? w->mlp_normed : w->normed;
    if (p->block->norm[slot] != NULL) {
        *input = own;
        return run_norm(p, slot, own, x, p->tokens, p->model->hidden);
    }
    *input = w->is_kept ? own : x;
    return w->is_kept ? keep(p, own, x, p->tokens, p->model->hidden) : INGOT_OK;
}

/* Norm over every head and rotation, in place, of m tokens. */
static ingot_status shape_heads(const pass *p, ingot_norm_slot slot, float *x, uint64_t m,
                                uint64_t heads) {
    const ingot_model *model = p->model;
    if (p->block->norm[slot] != NULL) {
        float *raw = slot == INGOT_SLOT_Q ? p->work->q_raw : p->work->k_raw;
        INGOT_TRY(keep(p, raw, x, m * heads, model->head_dim));
        INGOT_TRY(run_norm(p, slot, x, x, m * heads, model->head_dim));
    }
    if (model->rotary_dim == 0) {
        return INGOT_OK;
    }
    const uint64_t first = p->cache == NULL ? 0 : p->cache->length;
    return p->ops->rotary(p->context, x, first, p->q_len, model->inverse_frequency,
                          model->rope_attention_factor, m, heads, model->head_dim,
                          model->rotary_dim);
}

/* Keys and values of all tokens, into the cache or the workspace: *k and *v are what attention
 * reads.  In a cache the rows of different sequences are `capacity` apart: those of one sequence
 * are written where they belong, those of several are copied there. */
static ingot_status project_kv(const pass *p, const float *input, float **k, float **v,
                               uint64_t *kv_len, uint64_t *kv_stride) {
    const ingot_model *model = p->model;
    const uint64_t width = model->kv_heads * model->head_dim;
    const bool is_direct = p->cache == NULL || p->sequences == 1;
    float *k_rows = p->work->k, *v_rows = p->work->v;
    *k = k_rows;
    *v = v_rows;
    *kv_len = p->q_len;
    *kv_stride = p->q_len;
    if (p->cache != NULL) {
        const uint64_t offset = p->cache->length * width;
        *k = p->cache->k[p->block->layer];
        *v = p->cache->v[p->block->layer];
        *kv_len = p->cache->length + p->q_len;
        *kv_stride = p->cache->capacity;
        k_rows = is_direct ? *k + offset : k_rows;
        v_rows = is_direct ? *v + offset : v_rows;
    }
    INGOT_TRY(run_linear(p, INGOT_ROLE_K, k_rows, input, p->tokens));
    INGOT_TRY(run_linear(p, INGOT_ROLE_V, v_rows, input, p->tokens));
    INGOT_TRY(shape_heads(p, INGOT_SLOT_K, k_rows, p->tokens, model->kv_heads));
    if (is_direct) {
        return INGOT_OK;
    }
    const uint64_t row = width * sizeof(float), offset = p->cache->length * width;
    INGOT_TRY(p->ops->copy_rows(p->context, *k + offset, *kv_stride * row, k_rows, p->q_len * row,
                                p->q_len * row, p->sequences));
    return p->ops->copy_rows(p->context, *v + offset, *kv_stride * row, v_rows, p->q_len * row,
                             p->q_len * row, p->sequences);
}

/* x += post(o(attention(norm(x)))) */
static ingot_status attention_half(const pass *p, float *x) {
    const ingot_model *model = p->model;
    ingot_workspace *w = p->work;
    const float *input;
    INGOT_TRY(norm_input(p, INGOT_SLOT_ATTENTION, x, &input));
    INGOT_TRY(call_hook(p, INGOT_INPUT_ATTENTION, input, model->hidden));
    INGOT_TRY(run_linear(p, INGOT_ROLE_Q, w->q, input, p->tokens));
    INGOT_TRY(shape_heads(p, INGOT_SLOT_Q, w->q, p->tokens, model->heads));
    float *k, *v;
    ingot_attention shape = {
        .sequences = p->sequences,
        .q_len = p->q_len,
        .heads = model->heads,
        .kv_heads = model->kv_heads,
        .head_dim = model->head_dim,
        .window = model->window == NULL ? 0 : model->window[p->block->layer],
        .scale = model->attention_scale,
    };
    INGOT_TRY(project_kv(p, input, &k, &v, &shape.kv_len, &shape.kv_stride));
    INGOT_TRY(p->ops->attention(p->context, w->context, w->q, k, v, &shape));
    INGOT_TRY(call_hook(p, INGOT_INPUT_OUTPUT, w->context, model->heads * model->head_dim));
    INGOT_TRY(run_linear(p, INGOT_ROLE_O, w->output, w->context, p->tokens));
    if (p->block->norm[INGOT_SLOT_ATTENTION_POST] != NULL) {
        INGOT_TRY(keep(p, w->attention_output, w->output, p->tokens, model->hidden));
        INGOT_TRY(
            run_norm(p, INGOT_SLOT_ATTENTION_POST, w->output, w->output, p->tokens, model->hidden));
    }
    INGOT_TRY(p->ops->add(p->context, x, w->output, 1.0f, p->tokens * model->hidden));
    return keep(p, w->middle, x, p->tokens, model->hidden);
}

/* x += post(down(act(gate(norm(x))) * up(norm(x)))), or down(act(up(...))) without a gate */
static ingot_status mlp_half(const pass *p, float *x) {
    const ingot_model *model = p->model;
    ingot_workspace *w = p->work;
    const float *input;
    INGOT_TRY(norm_input(p, INGOT_SLOT_MLP, x, &input));
    INGOT_TRY(call_hook(p, INGOT_INPUT_MLP, input, model->hidden));
    INGOT_TRY(run_linear(p, INGOT_ROLE_UP, w->up, input, p->tokens));
    const bool is_gated = model->linear[INGOT_ROLE_GATE].is_present;
    float *inner = w->up;
    if (is_gated) {
        inner = w->gate;
        INGOT_TRY(run_linear(p, INGOT_ROLE_GATE, w->gate, input, p->tokens));
    }
    if (w->is_kept) {
        INGOT_TRY(keep(p, w->inner, inner, p->tokens, model->ffn));
        inner = w->inner;
    }
    INGOT_TRY(p->ops->activate(p->context, inner, is_gated ? w->up : NULL, model->activation,
                               p->tokens * model->ffn));
    INGOT_TRY(call_hook(p, INGOT_INPUT_DOWN, inner, model->ffn));
    INGOT_TRY(run_linear(p, INGOT_ROLE_DOWN, w->output, inner, p->tokens));
    if (p->block->norm[INGOT_SLOT_MLP_POST] != NULL) {
        INGOT_TRY(keep(p, w->mlp_output, w->output, p->tokens, model->hidden));
        INGOT_TRY(run_norm(p, INGOT_SLOT_MLP_POST, w->output, w->output, p->tokens, model->hidden));
    }
    return p->ops->add(p->context, x, w->output, 1.0f, p->tokens * model->hidden);
}

ingot_status ingot_block_forward_part(const ingot_model *model, const ingot_backend *backend,
                                      const ingot_block *block, ingot_block_part part, float *x,
                                      uint64_t sequences, uint64_t q_len, ingot_kv_cache *cache,
                                      ingot_workspace *workspace, ingot_input_hook hook,
                                      void *hook_context) {
    uint64_t tokens;
    if (!ingot_size_mul(&tokens, sequences, q_len) || tokens > workspace->max_tokens) {
        return INGOT_ERR_USAGE;
    }
    if (cache != NULL && (sequences != cache->sequences || cache->length > cache->capacity ||
                          q_len > cache->capacity - cache->length)) {
        return INGOT_ERR_USAGE;
    }
    const pass p = {
        .model = model,
        .ops = backend->ops,
        .context = backend->context,
        .block = block,
        .work = workspace,
        .sequences = sequences,
        .q_len = q_len,
        .tokens = tokens,
        .cache = cache,
        .hook = hook,
        .hook_context = hook_context,
    };
    if (part != INGOT_BLOCK_MLP) {
        INGOT_TRY(attention_half(&p, x));
    }
    return part != INGOT_BLOCK_ATTENTION ? mlp_half(&p, x) : INGOT_OK;
}

ingot_status ingot_block_forward(const ingot_model *model, const ingot_backend *backend,
                                 const ingot_block *block, float *x, uint64_t sequences,
                                 uint64_t q_len, ingot_kv_cache *cache, ingot_workspace *workspace,
                                 ingot_input_hook hook, void *hook_context) {
    return ingot_block_forward_part(model, backend, block, INGOT_BLOCK_WHOLE, x, sequences, q_len,
                                    cache, workspace, hook, hook_context);
}

ingot_status ingot_block_forward_batch(const ingot_model *model, const ingot_backend *backend,
                                       const ingot_block *block, float *x, uint64_t sequences,
                                       uint64_t q_len, ingot_workspace *workspace,
                                       ingot_input_hook hook, void *hook_context,
                                       ingot_error *error) {
    const uint64_t per_call = q_len == 0 ? 0 : workspace->max_tokens / q_len;
    if (per_call == 0) {
        return INGOT_ERR_USAGE;
    }
    for (uint64_t s = 0; s < sequences; s += per_call) {
        const uint64_t count = ingot_min_u64(per_call, sequences - s);
        INGOT_TRY(ingot_interrupt_check(error));
        INGOT_TRY(ingot_block_forward(model, backend, block, x + s * q_len * model->hidden, count,
                                      q_len, NULL, workspace, hook, hook_context));
    }
    return INGOT_OK;
}

/* ---- the ends --------------------------------------------------------------------------- */

static ingot_status load_end(ingot_ends *ends, ingot_weight_view *view, const char *name,
                             const ingot_model *model, const ingot_weight_source *source,
                             const ingot_backend *backend, ingot_arena *arena, ingot_error *error) {
    ingot_weight_view host;
    INGOT_TRY(source->load(source->self, name, arena, &host, error));
    INGOT_TRY(
        ingot_view_check_shape(&host, model->vocab, model->hidden, name, source->path, error));
    const ingot_status status = backend->ops->upload_view(backend->context, view, &host);
    if (status != INGOT_OK) {
        return ingot_error_set(error, status, source->path, name, device_remedy(status),
                               "the tensor could not be put on the device: %s",
                               ingot_status_text(status));
    }
    ends->owned_view[ends->owned_view_count++] = *view;
    return INGOT_OK;
}

static ingot_status load_final_norm(ingot_ends *ends, const ingot_model *model,
                                    const ingot_weight_source *source, const ingot_backend *backend,
                                    ingot_arena *arena, ingot_error *error) {
    if (model->final_norm_name == NULL) {
        return INGOT_OK;
    }
    float *host = NULL;
    INGOT_TRY(
        ingot_vector_load(&host, model->final_norm_name, model->hidden, source, arena, error));
    INGOT_TRY(upload_vector(&ends->final_norm, host, model->hidden, backend, error));
    ends->owned_vector[ends->owned_vector_count++] = ends->final_norm;
    char name[INGOT_NAME_SIZE];
    const size_t length = strlen(model->final_norm_name);
    if (model->norm != INGOT_NORM_LAYER || length >= sizeof name) {
        return INGOT_OK;
    }
    memcpy(name, model->final_norm_name, length + 1);
    if (norm_bias_name(name) && has_tensor(source, name)) {
        INGOT_TRY(ingot_vector_load(&host, name, model->hidden, source, arena, error));
        INGOT_TRY(upload_vector(&ends->final_norm_bias, host, model->hidden, backend, error));
        ends->owned_vector[ends->owned_vector_count++] = ends->final_norm_bias;
    }
    return INGOT_OK;
}

bool ingot_ends_is_shared(const ingot_model *model, const ingot_weight_source *source) {
    ingot_weight_info head, table;
    if (model->head_name == NULL) {
        return model->is_tied;
    }
    if (!source->describe(source->self, model->head_name, &head)) {
        return ingot_model_stand_in(model, model->head_name) != NULL;
    }
    return model->is_tied &&
           (head.is_alias ||
            (source->is_same != NULL && source->describe(source->self, model->embed_name, &table) &&
             head.kind == INGOT_DENSE && table.kind == INGOT_DENSE && head.dtype == table.dtype));
}

static ingot_status load_ends(ingot_ends *ends, ingot_ends_part part, const ingot_model *model,
                              const ingot_weight_source *source, const ingot_backend *backend,
                              ingot_arena *arena, ingot_error *error) {
    const bool is_shared = ingot_ends_is_shared(model, source);
    if ((part & INGOT_ENDS_EMBED) != 0 || is_shared) {
        INGOT_TRY(
            load_end(ends, &ends->embed, model->embed_name, model, source, backend, arena, error));
        ends->head = ends->embed;
    }
    if ((part & INGOT_ENDS_HEAD) == 0) {
        return INGOT_OK;
    }
    if (!is_shared) {
        INGOT_TRY(
            load_end(ends, &ends->head, model->head_name, model, source, backend, arena, error));
    }
    return load_final_norm(ends, model, source, backend, arena, error);
}

ingot_status ingot_ends_load(ingot_ends *out, const ingot_model *model,
                             const ingot_weight_source *source, const ingot_backend *backend,
                             ingot_arena *arena, ingot_error *error) {
    return ingot_ends_load_part(out, INGOT_ENDS_BOTH, model, source, backend, arena, error);
}

ingot_status ingot_ends_load_part(ingot_ends *out, ingot_ends_part part, const ingot_model *model,
                                  const ingot_weight_source *source, const ingot_backend *backend,
                                  ingot_arena *arena, ingot_error *error) {
    memset(out, 0, sizeof *out);
    const ingot_status status = load_ends(out, part, model, source, backend, arena, error);
    if (status != INGOT_OK) {
        ingot_ends_release(out, backend);
    }
    return status;
}

uint64_t ingot_ends_load_bytes(const ingot_model *model, const ingot_weight_source *source) {
    const bool is_shared = ingot_ends_is_shared(model, source);
    return load_bytes(source, model->embed_name) +
           (is_shared ? 0 : load_bytes(source, model->head_name));
}

uint64_t ingot_model_load_bytes(const ingot_model *model, const ingot_weight_source *source) {
    uint64_t bytes = ingot_ends_load_bytes(model, source);
    for (uint64_t layer = 0; layer < model->layers; layer++) {
        bytes += ingot_block_load_bytes(model, layer, source);
    }
    return bytes;
}

void ingot_ends_release(ingot_ends *ends, const ingot_backend *backend) {
    for (unsigned i = 0; i < ends->owned_view_count; i++) {
        backend->ops->release_view(backend->context, &ends->owned_view[i]);
    }
    for (unsigned i = 0; i < ends->owned_vector_count; i++) {
        backend->ops->release(backend->context, ends->owned_vector[i]);
    }
    memset(ends, 0, sizeof *ends);
}

ingot_status ingot_ends_embed(const ingot_ends *ends, const ingot_model *model,
                              const ingot_backend *backend, float *x, const uint32_t *ids,
                              uint64_t m) {
    for (uint64_t i = 0; i < m; i++) {
        if (ids[i] >= model->vocab) {
            return INGOT_ERR_INPUT;
        }
    }
    return backend->ops->embed(backend->context, x, &ends->embed, ids, m, model->embed_scale);
}

ingot_status ingot_ends_logits(const ingot_ends *ends, const ingot_model *model,
                               const ingot_backend *backend, float *logits, const float *x,
                               float *scratch, uint64_t m) {
    const float *input = x;
    if (ends->final_norm != NULL) {
        INGOT_TRY(backend->ops->norm(backend->context, scratch, x, ends->final_norm,
                                     ends->final_norm_bias, model->norm, model->norm_eps, m,
                                     model->hidden));
        input = scratch;
    }
    return backend->ops->linear(backend->context, logits, &ends->head, NULL, input, m);
}
