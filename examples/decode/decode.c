/* Decodes with a container on a CUDA device: token ids in, token ids out, with nothing but libingot
 * and libingot_kernels.
 *
 *     decode MODEL.ingot COUNT ID...
 *
 * For models of the families Llama, Mistral, Qwen2 and Qwen3 without scaled rotary frequencies and
 * without windows that differ from layer to layer; what it would compute wrongly it refuses.
 * Numbers come from config.json, which the container carries; of JSON this program knows only how
 * to find "key": value.  Whether the shapes of the tensors are those of the numbers is checked by
 * libingot_kernels. */
#include <ingot.h>
#include <ingot_kernels.h>

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST_LAYERS 256u
#define MOST_TOKENS (UINT64_C(1) << 24)
#define MOST_SIZE   1e9

static int complain(const char *what, const ingot_error *error) {
    fprintf(stderr, "decode: %s: %s%s%s\n", what, error->tensor, *error->tensor != '\0' ? ": " : "",
            error->reason);
    return 2;
}

/* ---- config.json ---------------------------------------------------------------------------- */

/* Copies what stands behind "key" in config.json, or nothing. */
static void find_value(char text[64], const ingot_container *container, const char *key) {
    uint64_t size = 0;
    const char *json = ingot_file_entry(container, "config.json", &size);
    const size_t length = strlen(key);
    text[0] = '\0';
    for (uint64_t i = 0; json != NULL && i + length + 2 < size; i++) {
        if (json[i] != '"' || memcmp(json + i + 1, key, length) != 0 ||
            json[i + length + 1] != '"') {
            continue;
        }
        i += length + 2;
        while (i < size && isspace((unsigned char)json[i])) {
            i++;
        }
        if (i == size || json[i] != ':') { /* a value of that text */
            continue;
        }
        i++;
        while (i < size && isspace((unsigned char)json[i])) {
            i++;
        }
        const uint64_t rest = size - i < 63 ? size - i : 63;
        memcpy(text, json + i, (size_t)rest);
        text[rest] = '\0';
        return;
    }
}

/* The number behind "key", or `otherwise`. */
static double number(const ingot_container *container, const char *key, double otherwise) {
    char text[64], *end;
    find_value(text, container, key);
    const double value = strtod(text, &end);
    return end != text ? value : otherwise;
}

/* The same as a size; 0 where it is none. */
static uint64_t size_of(const ingot_container *container, const char *key, uint64_t otherwise) {
    const double value = number(container, key, (double)otherwise);
    return value >= 1 && value <= MOST_SIZE ? (uint64_t)value : 0;
}

/* Whether what is behind "key" begins with `value`. */
static int is(const ingot_container *container, const char *key, const char *value) {
    char text[64];
    find_value(text, container, key);
    return strncmp(text, value, strlen(value)) == 0;
}

/* Whether there is a text behind "key", but another than `value`. */
static int is_other(const ingot_container *container, const char *key, const char *value) {
    return is(container, key, "\"") && !is(container, key, value);
}

/* ---- tensors -------------------------------------------------------------------------------- */

typedef struct description {
    const ingot_container *container;
    ingot_engine_model model;
    ingot_engine_layer layers[MOST_LAYERS];
    double inverse_frequency[64];
    uint64_t used; /* tensors */
    ingot_error error;
} description;

/* 0. */
static int refuse(description *d, const char *tensor, const char *reason) {
    return ingot_error_set(&d->error, INGOT_ERR_UNSUPPORTED, NULL, tensor, NULL, "%s", reason) ==
           INGOT_OK;
}

/* A tensor of the container as a matrix of the model; false when it is not there. */
static int find(description *d, ingot_engine_matrix *out, const char *name) {
    memset(out, 0, sizeof *out);
    if (ingot_tensor_find(d->container, name, &out->index) == NULL) {
        return 0;
    }
    out->origin = INGOT_ENGINE_CONTAINER;
    out->container = d->container;
    d->used++;
    return 1;
}

/* The vector of that name as FP32, its values to be freed; none where the container has none. False
 * when it cannot be read. */
static int vector(description *d, ingot_engine_vector *out, const char *name) {
    uint64_t index;
    ingot_weight_view view;
    const ingot_tensor *tensor = ingot_tensor_find(d->container, name, &index);
    if (tensor == NULL) {
        return 1;
    }
    if (tensor->kind != INGOT_DENSE || tensor->rank != 1 || tensor->dtype > INGOT_BF16) {
        return refuse(d, name, "is no vector of floats");
    }
    const uint64_t bytes = ingot_tensor_load_bytes(d->container, index);
    float *values = malloc((tensor->cols + 1) * sizeof *values);
    void *buffer = aligned_alloc(64, (bytes + 64) / 64 * 64);
    int is_read = values != NULL && buffer != NULL;
    if (!is_read) {
        (void)refuse(d, name, "there is no memory");
    } else if (ingot_tensor_load(d->container, index, true, buffer, &view, &d->error) != INGOT_OK) {
        is_read = 0;
    } else {
        ingot_weight_row(values, &view, 0, tensor->cols);
        *out = (ingot_engine_vector){values, tensor->cols};
        d->used++;
    }
    free(buffer);
    if (!is_read) {
        free(values);
    }
    return is_read;
}

static int needed(description *d, ingot_engine_vector *out, const char *name) {
    return vector(d, out, name) &&
           (out->values != NULL || refuse(d, name, "the container has no such tensor"));
}

static int describe_layer(description *d, unsigned i) {
    static const char *const suffix[INGOT_ENGINE_ROLES] = {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
    ingot_engine_layer *layer = &d->layers[i];
    char name[128];
    for (int role = 0; role < INGOT_ENGINE_ROLES; role++) {
        snprintf(name, sizeof name, "model.layers.%u.%s.weight", i, suffix[role]);
        if (!find(d, &layer->linear[role], name)) {
            return refuse(d, name, "the container has no such tensor");
        }
        snprintf(name, sizeof name, "model.layers.%u.%s.bias", i, suffix[role]);
        if (!vector(d, &layer->bias[role], name)) {
            return 0;
        }
    }
    snprintf(name, sizeof name, "model.layers.%u.input_layernorm.weight", i);
    if (!needed(d, &layer->norm_attention, name)) {
        return 0;
    }
    snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight", i);
    if (!needed(d, &layer->norm_mlp, name)) {
        return 0;
    }
    snprintf(name, sizeof name, "model.layers.%u.self_attn.q_norm.weight", i);
    if (!vector(d, &layer->norm_q, name)) {
        return 0;
    }
    snprintf(name, sizeof name, "model.layers.%u.self_attn.k_norm.weight", i);
    return vector(d, &layer->norm_k, name);
}

/* A tensor that was not looked for belongs to a computation that this program does not know. */
static int has_no_more(description *d) {
    uint64_t count = 0;
    for (uint64_t i = 0; i < ingot_tensor_count(d->container); i++) {
        count += ingot_tensor_at(d->container, i)->kind != INGOT_AUXILIARY;
    }
    return count == d->used ||
           refuse(d, NULL, "there are tensors that this program does not compute with");
}

static int describe_tensors(description *d) {
    ingot_engine_model *m = &d->model;
    if (!find(d, &m->embed, "model.embed_tokens.weight")) {
        return refuse(d, "model.embed_tokens.weight", "the container has no such tensor");
    }
    (void)find(d, &m->head, "lm_head.weight");
    for (unsigned i = 0; i < m->layers; i++) {
        if (!describe_layer(d, i)) {
            return 0;
        }
    }
    return needed(d, &m->final_norm, "model.norm.weight") && has_no_more(d);
}

/* ---- the model ------------------------------------------------------------------------------ */

/* False for what config.json says and the description below would not have. */
static int is_known(description *d) {
    const ingot_container *c = d->container;
    const int is_llama = is(c, "model_type", "\"llama\""),
              is_mistral = is(c, "model_type", "\"mistral\""),
              is_qwen = is(c, "model_type", "\"qwen2\"") || is(c, "model_type", "\"qwen3\"");
    if (!is_llama && !is_mistral && !is_qwen) {
        return refuse(d, NULL, "the model is of no family that this program knows");
    }
    const int is_scaled =
        !isnan(number(c, "factor", NAN)) || is_other(c, "rope_type", "\"default\"");
    if (is_scaled || number(c, "partial_rotary_factor", 1) != 1) {
        return refuse(d, NULL, "its rotary frequencies are scaled, or turn a part of a head");
    }
    if (is_other(c, "hidden_act", "\"silu\"")) {
        return refuse(d, NULL, "its activation is not SiLU");
    }
    if (is_qwen && is(c, "use_sliding_window", "true")) {
        return refuse(d, NULL, "its windows differ from layer to layer");
    }
    const int has_window = is_mistral && !is(c, "sliding_window", "null");
    for (unsigned i = 0; has_window && i < MOST_LAYERS; i++) {
        d->layers[i].window = size_of(c, "sliding_window", 4096);
    }
    return !has_window || d->layers[0].window != 0 || refuse(d, NULL, "its window is no size");
}

static int describe_numbers(description *d) {
    const ingot_container *c = d->container;
    ingot_engine_model *m = &d->model;
    m->layers = size_of(c, "num_hidden_layers", 0);
    m->hidden = size_of(c, "hidden_size", 0);
    m->ffn = size_of(c, "intermediate_size", 0);
    m->vocab = size_of(c, "vocab_size", 0);
    m->heads = size_of(c, "num_attention_heads", 0);
    m->kv_heads = size_of(c, "num_key_value_heads", m->heads);
    m->head_dim = is(c, "model_type", "\"qwen3\"") ? 128 : m->hidden / (m->heads + (m->heads == 0));
    m->head_dim = size_of(c, "head_dim", m->head_dim);
    if (m->layers == 0 || m->layers > MOST_LAYERS || m->head_dim == 0 || m->head_dim > 128) {
        return refuse(d, NULL, "config.json has no sizes that this program knows");
    }
    m->rotary_dim = m->head_dim;
    m->norm = INGOT_NORM_RMS;
    m->norm_eps = (float)number(c, "rms_norm_eps", 1e-6);
    m->activation = INGOT_ACT_SILU;
    m->embed_scale = 1;
    m->rotary_scale = 1;
    m->attention_scale = 1 / sqrtf((float)m->head_dim);
    const double theta = number(c, "rope_theta", 10000);
    for (uint64_t i = 0; i < m->head_dim / 2; i++) {
        d->inverse_frequency[i] = pow(theta, -2.0 * (double)i / (double)m->head_dim);
    }
    m->inverse_frequency = d->inverse_frequency;
    m->layer = d->layers;
    return 1;
}

static int describe(description *d) {
    return is_known(d) && describe_numbers(d) && describe_tensors(d);
}

static void free_vector(ingot_engine_vector *vector_of) {
    free((float *)(uintptr_t)vector_of->values);
}

static void free_vectors(description *d) {
    for (unsigned i = 0; i < MOST_LAYERS; i++) {
        ingot_engine_layer *layer = &d->layers[i];
        for (int role = 0; role < INGOT_ENGINE_ROLES; role++) {
            free_vector(&layer->bias[role]);
        }
        free_vector(&layer->norm_attention);
        free_vector(&layer->norm_mlp);
        free_vector(&layer->norm_q);
        free_vector(&layer->norm_k);
    }
    free_vector(&d->model.final_norm);
}

/* ---- decoding ------------------------------------------------------------------------------- */

typedef struct request {
    uint64_t count, prompt_count;
    uint32_t *prompt;
} request;

static int decode(ingot_engine *engine, ingot_kernels *kernels, const request *r) {
    const uint64_t state = 0;
    ingot_status status = ingot_engine_feed(engine, kernels, 0, r->prompt, r->prompt_count, NULL);
    if (status == INGOT_OK) {
        status = ingot_engine_sampler(engine, kernels, 0, &state);
    }
    for (uint64_t i = 0; i < r->count && status == INGOT_OK; i++) {
        uint32_t id;
        status = ingot_engine_next(engine, kernels, r->count - 1 - i, &id);
        if (status == INGOT_OK) {
            printf("%u%c", id, i + 1 == r->count ? '\n' : ' ');
        }
    }
    if (status != INGOT_OK) {
        fprintf(stderr, "decode: %s\n", ingot_status_text(status));
    }
    return status == INGOT_OK ? 0 : 2;
}

/* Everything is checked before a device is looked for. */
static int run(description *d, const char *path, const request *r) {
    const ingot_engine_options options = {.sequences = 1, .capacity = r->prompt_count + r->count};
    ingot_kernels *kernels;
    ingot_engine *engine;
    if (!describe(d) || ingot_engine_check(&d->model, &options, &d->error) != INGOT_OK) {
        return complain(path, &d->error);
    }
    for (uint64_t i = 0; i < r->prompt_count; i++) {
        if (r->prompt[i] >= d->model.vocab) {
            (void)refuse(d, NULL, "an id is beyond the vocabulary");
            return complain(path, &d->error);
        }
    }
    if (ingot_kernels_open(&kernels, "cuda", 0, &d->error) != INGOT_OK) {
        return complain("cuda", &d->error);
    }
    int code = 2;
    if (ingot_engine_create(&engine, kernels, &d->model, &options, NULL, &d->error) == INGOT_OK) {
        code = decode(engine, kernels, r);
        ingot_engine_destroy(engine, kernels);
    } else {
        (void)complain(path, &d->error);
    }
    ingot_kernels_close(kernels);
    return code;
}

/* ---- the command line ----------------------------------------------------------------------- */

/* Decimal digits and nothing else, up to `most`. */
static int parse(uint64_t *out, const char *text, uint64_t most) {
    char *end;
    errno = 0;
    *out = strtoull(text, &end, 10);
    return isdigit((unsigned char)*text) && *end == '\0' && errno == 0 && *out <= most;
}

static int parse_request(request *r, int argc, char **argv) {
    r->prompt_count = (uint64_t)argc - 3;
    if (!parse(&r->count, argv[2], MOST_TOKENS) || r->count == 0) {
        fprintf(stderr, "decode: %s is no count of tokens\n", argv[2]);
        return 0;
    }
    r->prompt = malloc(r->prompt_count * sizeof *r->prompt);
    for (uint64_t i = 0; r->prompt != NULL && i < r->prompt_count; i++) {
        uint64_t id;
        if (!parse(&id, argv[i + 3], UINT32_MAX)) {
            fprintf(stderr, "decode: %s is no token id\n", argv[i + 3]);
            return 0;
        }
        r->prompt[i] = (uint32_t)id;
    }
    return r->prompt != NULL;
}

int main(int argc, char **argv) {
    ingot_error error;
    ingot_container *container;
    request r = {0};
    if (argc < 4) {
        fprintf(stderr, "usage: decode MODEL.ingot COUNT ID...\n");
        return 2;
    }
    if (!parse_request(&r, argc, argv)) {
        free(r.prompt);
        return 2;
    }
    if (ingot_open(&container, argv[1], &error) != INGOT_OK) {
        free(r.prompt);
        return complain(argv[1], &error);
    }
    int code = 2;
    description *d = calloc(1, sizeof *d);
    if (d != NULL) {
        d->container = container;
        code = run(d, argv[1], &r);
        free_vectors(d);
    }
    free(d);
    free(r.prompt);
    ingot_close(container);
    return code;
}
