/* Decodes with a container on a CUDA device: token ids in, token ids out, with nothing but libingot
 * and libingot_kernels.
 *
 *     decode MODEL.ingot COUNT ID...
 *
 * For models of the Llama family without scaled rotary frequencies.  Sizes come from the shapes of
 * the tensors, the rest from config.json, which the container carries; of JSON this program knows
 * only how to find "key": number. */
#include <ingot.h>
#include <ingot_kernels.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int complain(const char *what, const ingot_error *error) {
    fprintf(stderr, "decode: %s: %s\n", what, error != NULL ? error->reason : "");
    return 2;
}

/* The number behind "key" in config.json, or `otherwise`. */
static double number(const ingot_container *container, const char *key, double otherwise) {
    uint64_t size = 0;
    const char *json = ingot_file_entry(container, "config.json", &size);
    const size_t length = strlen(key);
    for (uint64_t i = 0; json != NULL && i + length + 3 < size; i++) {
        if (json[i] == '"' && memcmp(json + i + 1, key, length) == 0 &&
            json[i + length + 1] == '"') {
            char text[64];
            i += length + 2;
            while (i < size && (json[i] == ':' || json[i] == ' ')) {
                i++;
            }
            const uint64_t rest = size - i < sizeof text - 1 ? size - i : sizeof text - 1;
            memcpy(text, json + i, (size_t)rest);
            text[rest] = '\0';
            char *end;
            const double value = strtod(text, &end);
            return end != text ? value : otherwise;
        }
    }
    return otherwise;
}

/* A tensor of the container as a matrix of the model; false when it is not there. */
static int find(ingot_engine_matrix *out, const ingot_container *container, const char *name) {
    memset(out, 0, sizeof *out);
    if (ingot_tensor_find(container, name, &out->index) == NULL) {
        return 0;
    }
    out->origin = INGOT_ENGINE_CONTAINER;
    out->container = container;
    return 1;
}

static const ingot_tensor *shape_of(const ingot_engine_matrix *matrix) {
    return ingot_tensor_at(matrix->container, matrix->index);
}

/* A dense vector as FP32, to be freed; NULL when it is not there or not readable. */
static float *vector(const ingot_container *container, const char *name) {
    uint64_t index;
    ingot_weight_view view;
    const ingot_tensor *tensor = ingot_tensor_find(container, name, &index);
    if (tensor == NULL) {
        return NULL;
    }
    const uint64_t count = tensor->rows * tensor->cols;
    float *out = malloc(count * sizeof *out);
    void *bytes = aligned_alloc(64, (ingot_tensor_load_bytes(container, index) + 64) / 64 * 64);
    if (out != NULL && bytes != NULL &&
        ingot_tensor_load(container, index, true, bytes, &view, NULL) == INGOT_OK) {
        ingot_weight_row(out, &view, 0, count);
    } else {
        free(out);
        out = NULL;
    }
    free(bytes);
    return out;
}

static int describe_layer(ingot_engine_layer *layer, const ingot_container *container, unsigned i) {
    static const char *const suffix[INGOT_ENGINE_ROLES] = {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
    char name[128];
    for (int role = 0; role < INGOT_ENGINE_ROLES; role++) {
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", i, suffix[role]);
        if (!find(&layer->linear[role], container, name)) {
            return 0;
        }
    }
    snprintf(name, sizeof name, "model.layers.%u.input_layernorm.weight", i);
    layer->norm_attention = vector(container, name);
    snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight", i);
    layer->norm_mlp = vector(container, name);
    return layer->norm_attention != NULL && layer->norm_mlp != NULL;
}

#define MOST_LAYERS 256u

typedef struct description {
    ingot_engine_model model;
    ingot_engine_layer layers[MOST_LAYERS];
    double inverse_frequency[64];
} description;

/* False when the container holds no model that this program knows. */
static int describe(description *d, const ingot_container *container) {
    ingot_engine_model *m = &d->model;
    const int is_scaled = !isnan(number(container, "factor", NAN));
    if (is_scaled || !find(&m->embed, container, "model.embed_tokens.weight")) {
        return 0;
    }
    (void)find(&m->head, container, "lm_head.weight");
    while (m->layers < MOST_LAYERS &&
           describe_layer(&d->layers[m->layers], container, (unsigned)m->layers)) {
        m->layers++;
    }
    m->final_norm = vector(container, "model.norm.weight");
    if (m->layers == 0 || m->final_norm == NULL) {
        return 0;
    }
    const ingot_engine_layer *first = &d->layers[0];
    m->layer = d->layers;
    m->vocab = shape_of(&m->embed)->rows;
    m->hidden = shape_of(&m->embed)->cols;
    m->ffn = shape_of(&first->linear[INGOT_ENGINE_UP])->rows;
    m->heads = (uint64_t)number(container, "num_attention_heads", 1);
    m->head_dim = shape_of(&first->linear[INGOT_ENGINE_Q])->rows / (m->heads != 0 ? m->heads : 1);
    m->kv_heads =
        shape_of(&first->linear[INGOT_ENGINE_K])->rows / (m->head_dim != 0 ? m->head_dim : 1);
    m->rotary_dim = m->head_dim;
    m->norm = INGOT_NORM_RMS;
    m->norm_eps = (float)number(container, "rms_norm_eps", 1e-6);
    m->activation = INGOT_ACT_SILU;
    m->embed_scale = 1;
    m->rotary_scale = 1;
    if (m->head_dim == 0 || m->head_dim > 128) {
        return 0;
    }
    m->attention_scale = 1 / sqrtf((float)m->head_dim);
    const double theta = number(container, "rope_theta", 10000);
    for (uint64_t i = 0; i < m->head_dim / 2; i++) {
        d->inverse_frequency[i] = pow(theta, -2.0 * (double)i / (double)m->head_dim);
    }
    m->inverse_frequency = d->inverse_frequency;
    return 1;
}

static int decode(ingot_engine *engine, ingot_kernels *kernels, const uint32_t *prompt,
                  uint64_t prompt_count, uint64_t count) {
    const uint64_t state = 0;
    ingot_status status = ingot_engine_feed(engine, kernels, 0, prompt, prompt_count, NULL);
    if (status == INGOT_OK) {
        status = ingot_engine_sampler(engine, kernels, 0, &state);
    }
    for (uint64_t i = 0; i < count && status == INGOT_OK; i++) {
        uint32_t id;
        status = ingot_engine_next(engine, kernels, count - 1 - i, &id);
        if (status == INGOT_OK) {
            printf("%u%c", id, i + 1 == count ? '\n' : ' ');
        }
    }
    if (status != INGOT_OK) {
        fprintf(stderr, "decode: %s\n", ingot_status_text(status));
    }
    return status == INGOT_OK ? 0 : 2;
}

static void free_vectors(description *d) {
    for (uint64_t i = 0; i < MOST_LAYERS; i++) {
        free((float *)(uintptr_t)d->layers[i].norm_attention);
        free((float *)(uintptr_t)d->layers[i].norm_mlp);
    }
    free((float *)(uintptr_t)d->model.final_norm);
}

static int run(description *d, const ingot_container *container, ingot_kernels *kernels, int argc,
               char **argv) {
    const uint64_t count = strtoull(argv[2], NULL, 10), prompt_count = (uint64_t)argc - 3;
    ingot_error error;
    ingot_engine *engine;
    if (!describe(d, container)) {
        return complain(argv[1], &(ingot_error){.reason = "not a model this program knows"});
    }
    const ingot_engine_options options = {.sequences = 1, .capacity = prompt_count + count};
    if (ingot_engine_create(&engine, kernels, &d->model, &options, NULL, &error) != INGOT_OK) {
        return complain(argv[1], &error);
    }
    uint32_t *prompt = malloc(prompt_count * sizeof *prompt);
    int code = 2;
    if (prompt != NULL) {
        for (uint64_t i = 0; i < prompt_count; i++) {
            prompt[i] = (uint32_t)strtoul(argv[i + 3], NULL, 10);
        }
        code = decode(engine, kernels, prompt, prompt_count, count);
    }
    free(prompt);
    ingot_engine_destroy(engine, kernels);
    return code;
}

int main(int argc, char **argv) {
    ingot_error error;
    ingot_container *container;
    ingot_kernels *kernels;
    if (argc < 4) {
        fprintf(stderr, "usage: decode MODEL.ingot COUNT ID...\n");
        return 2;
    }
    if (ingot_open(&container, argv[1], &error) != INGOT_OK) {
        return complain(argv[1], &error);
    }
    int code = 2;
    description *d = calloc(1, sizeof *d);
    if (d != NULL && ingot_kernels_open(&kernels, "cuda", 0, &error) == INGOT_OK) {
        code = run(d, container, kernels, argc, argv);
        free_vectors(d);
        ingot_kernels_close(kernels);
    } else {
        code = complain("cuda", d != NULL ? &error : NULL);
    }
    free(d);
    ingot_close(container);
    return code;
}
