/* From the description of a model to that of the engine.  Vectors are loaded here, matrices of a
 * container only named: the engine reads them itself, many at once. */
#include "calib/engine_model.h"

#include "calib/forward.h"
#include "common/files.h"

#include <string.h>

bool ingot_engine_model_is_plain(const ingot_model *model) {
    return model->linear[INGOT_ROLE_GATE].is_present && model->norm != INGOT_NORM_LAYER &&
           model->norm_suffix[INGOT_SLOT_ATTENTION_POST] == NULL &&
           model->norm_suffix[INGOT_SLOT_MLP_POST] == NULL;
}

typedef struct reader {
    const ingot_model *model;
    const ingot_weight_source *source;
    ingot_arena *arena;
    ingot_error *error;
    ingot_progress *progress;
    uint64_t done, total; /* bytes of the matrices that are loaded */
} reader;

/* What stays in a container is neither loaded nor shown here. */
static ingot_status advance(reader *r, uint64_t bytes) {
    r->done += bytes;
    if (r->source->container == NULL) {
        (void)ingot_progress_bytes(r->progress, r->done, r->total);
    }
    return ingot_interrupt_check(r->error);
}

static ingot_status read_matrix(const reader *r, ingot_engine_matrix *out, const char *name,
                                uint64_t rows, uint64_t cols) {
    const ingot_weight_source *source = r->source;
    memset(out, 0, sizeof *out);
    if (source->container != NULL) {
        const ingot_tensor *tensor = ingot_tensor_find(source->container, name, &out->index);
        if (tensor != NULL) {
            const ingot_weight_view shape = {.rows = tensor->rows, .cols = tensor->cols};
            out->origin = INGOT_ENGINE_CONTAINER;
            out->container = source->container;
            return ingot_view_check_shape(&shape, rows, cols, name, source->path, r->error);
        }
    }
    out->origin = INGOT_ENGINE_HOST;
    INGOT_TRY(source->load(source->self, name, r->arena, &out->view, r->error));
    return ingot_view_check_shape(&out->view, rows, cols, name, source->path, r->error);
}

static ingot_status read_linears(const reader *r, ingot_engine_layer *out, uint64_t layer) {
    static const ingot_role roles[INGOT_ENGINE_ROLES] = {
        INGOT_ROLE_Q,    INGOT_ROLE_K,  INGOT_ROLE_V,   INGOT_ROLE_O,
        INGOT_ROLE_GATE, INGOT_ROLE_UP, INGOT_ROLE_DOWN};
    char name[INGOT_NAME_SIZE];
    for (int i = 0; i < INGOT_ENGINE_ROLES; i++) {
        const ingot_linear_desc *desc = &r->model->linear[roles[i]];
        ingot_model_linear_name(r->model, layer, roles[i], name);
        INGOT_TRY(read_matrix(r, &out->linear[i], name, desc->rows, desc->cols));
        if (desc->has_bias) {
            float *bias;
            ingot_model_bias_name(r->model, layer, roles[i], name);
            INGOT_TRY(ingot_vector_load(&bias, name, desc->rows, r->source, r->arena, r->error));
            out->bias[i] = (ingot_engine_vector){bias, desc->rows};
        }
    }
    return INGOT_OK;
}

static ingot_status read_norm(const reader *r, ingot_engine_vector *out, uint64_t layer,
                              ingot_norm_slot slot, uint64_t width) {
    char name[INGOT_NAME_SIZE];
    if (ingot_model_norm_name(r->model, layer, slot, name)) {
        float *weight;
        INGOT_TRY(ingot_vector_load(&weight, name, width, r->source, r->arena, r->error));
        *out = (ingot_engine_vector){weight, width};
    }
    return INGOT_OK;
}

static ingot_status read_layer(const reader *r, ingot_engine_layer *out, uint64_t layer) {
    const ingot_model *m = r->model;
    out->window = m->window == NULL ? 0 : m->window[layer];
    INGOT_TRY(read_linears(r, out, layer));
    INGOT_TRY(read_norm(r, &out->norm_attention, layer, INGOT_SLOT_ATTENTION, m->hidden));
    INGOT_TRY(read_norm(r, &out->norm_mlp, layer, INGOT_SLOT_MLP, m->hidden));
    INGOT_TRY(read_norm(r, &out->norm_q, layer, INGOT_SLOT_Q, m->head_dim));
    return read_norm(r, &out->norm_k, layer, INGOT_SLOT_K, m->head_dim);
}

static ingot_status read_ends(const reader *r, ingot_engine_model *out) {
    const ingot_model *m = r->model;
    INGOT_TRY(read_matrix(r, &out->embed, m->embed_name, m->vocab, m->hidden));
    if (!ingot_ends_is_shared(m, r->source)) {
        INGOT_TRY(read_matrix(r, &out->head, m->head_name, m->vocab, m->hidden));
    }
    if (m->final_norm_name != NULL) {
        float *weight;
        INGOT_TRY(ingot_vector_load(&weight, m->final_norm_name, m->hidden, r->source, r->arena,
                                    r->error));
        out->final_norm = (ingot_engine_vector){weight, m->hidden};
    }
    return INGOT_OK;
}

ingot_engine_model ingot_engine_model_numbers(const ingot_model *model) {
    return (ingot_engine_model){.layers = model->layers,
                                .hidden = model->hidden,
                                .ffn = model->ffn,
                                .heads = model->heads,
                                .kv_heads = model->kv_heads,
                                .head_dim = model->head_dim,
                                .vocab = model->vocab,
                                .rotary_dim = model->rotary_dim,
                                .norm = model->norm,
                                .norm_eps = model->norm_eps,
                                .activation = model->activation,
                                .embed_scale = model->embed_scale,
                                .attention_scale = model->attention_scale,
                                .rotary_scale = model->rope_attention_factor,
                                .inverse_frequency = model->inverse_frequency};
}

ingot_status ingot_engine_model_create(ingot_engine_model *out, const ingot_model *model,
                                       const ingot_weight_source *source, ingot_arena *arena,
                                       ingot_progress *progress, ingot_error *error) {
    reader r = {.model = model,
                .source = source,
                .arena = arena,
                .error = error,
                .progress = progress,
                .total = ingot_model_load_bytes(model, source)};
    void *memory;
    *out = ingot_engine_model_numbers(model);
    INGOT_TRY(ingot_arena_array(arena, &memory, model->layers, sizeof(ingot_engine_layer)));
    ingot_engine_layer *layers = memory;
    memset(layers, 0, model->layers * sizeof *layers);
    out->layer = layers;
    INGOT_TRY(advance(&r, 0));
    for (uint64_t i = 0; i < model->layers; i++) {
        INGOT_TRY(read_layer(&r, &layers[i], i));
        INGOT_TRY(advance(&r, ingot_block_load_bytes(model, i, source)));
    }
    INGOT_TRY(read_ends(&r, out));
    return advance(&r, ingot_ends_load_bytes(model, source));
}
