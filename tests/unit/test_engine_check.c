/* What the engine takes (ingot_engine_check), without a device: models of every kind of storage in
 * host memory and in containers, and everything in a description that is not as the engine would
 * read it. */
#include "packed_model.h"

#include "calib/engine_model.h"
#include "suite.h"

#include <stddef.h>
#include <unistd.h>

static const tiny_shape usual = {64, 96, 6, 2, 16, 203};

/* A description that may be changed. */
typedef struct subject {
    packed_model packed;
    ingot_arena *arena;
    ingot_container *container; /* or NULL: matrices are in host memory */
    ingot_weight_source source;
    ingot_engine_model model;
    ingot_engine_layer layers[8];
    ingot_engine_options options;
} subject;

static void open_subject(subject *s, int storage, bool is_stored) {
    char path[64];
    ingot_error error = {0};
    memset(s, 0, sizeof *s);
    s->packed = pack_model(TINY_QKV_BIAS | TINY_HEAD_NORMS, &usual, storage);
    bind(&s->packed);
    s->source = s->packed.source;
    if (is_stored) {
        snprintf(path, sizeof path, "/tmp/ingot-check-%d.ingot", (int)getpid());
        write_container(&s->packed, path, false);
        CU_ASSERT_EQUAL_FATAL(ingot_open(&s->container, path, &error), INGOT_OK);
        CU_ASSERT_EQUAL(unlink(path), 0);
        ingot_weight_source_from_container(&s->source, s->container, true);
    }
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&s->arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_engine_model_create(&s->model, &s->packed.tiny->model, &s->source,
                                                    s->arena, NULL, &error),
                          INGOT_OK);
    CU_ASSERT_FATAL(s->model.layers <= 8);
    memcpy(s->layers, s->model.layer, s->model.layers * sizeof *s->layers);
    s->model.layer = s->layers;
    s->options = (ingot_engine_options){.sequences = 3, .capacity = 100};
}

static void close_subject(subject *s) {
    ingot_arena_destroy(s->arena);
    ingot_close(s->container);
    packed_destroy(&s->packed);
}

/* The check ends with `status`, and its error has the text. */
static void expect(const subject *s, const char *what, ingot_status status, const char *text) {
    ingot_error error = {0};
    char got[INGOT_ERROR_TEXT_SIZE] = "";
    const ingot_status result = ingot_engine_check(&s->model, &s->options, &error);
    ingot_error_format(&error, got, sizeof got);
    if (result != status || strstr(got, text) == NULL) {
        printf("\n    %s: %s '%s'\n", what, ingot_status_code(result), got);
    }
    CU_ASSERT_EQUAL(result, status);
    CU_ASSERT(result == INGOT_OK || error.status == status);
    CU_ASSERT_PTR_NOT_NULL(strstr(got, text));
    CU_ASSERT_EQUAL(ingot_engine_check(&s->model, &s->options, NULL), status);
}

static void test_fits(void) {
    for (int storage = DENSE; storage < STORAGES; storage++) {
        for (int is_stored = 0; is_stored < 2; is_stored++) {
            subject s;
            open_subject(&s, storage, is_stored != 0);
            expect(&s, "as it is", INGOT_OK, "");
            close_subject(&s);
        }
    }
}

/* ---- what is changed ------------------------------------------------------------------------- */

/* `size` bytes of the subject become those of `value`. */
typedef struct change {
    const char *what;
    size_t offset, size;
    uint64_t value;
    ingot_status status;
    const char *text;
} change;

#define OF(field)            offsetof(subject, field), sizeof((subject *)NULL)->field
#define MODEL(field)         OF(model.field)
#define LAYER(number, field) OF(layers[number].field)
#define VIEW(role, field)    LAYER(1, linear[INGOT_ENGINE_##role].view.field)

static void check_changes(subject *s, const change *changes, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const change *c = &changes[i];
        uint8_t before[8];
        CU_ASSERT_FATAL(c->size <= sizeof before);
        memcpy(before, (uint8_t *)s + c->offset, c->size);
        memcpy((uint8_t *)s + c->offset, &c->value, c->size);
        expect(s, c->what, c->status, c->text);
        memcpy((uint8_t *)s + c->offset, before, c->size);
    }
    expect(s, "as it was", INGOT_OK, "");
}

#define COUNT(array) (sizeof(array) / sizeof *(array))

static void test_numbers(void) {
    static const change changes[] = {
        {"no layers", MODEL(layers), 0, INGOT_ERR_UNSUPPORTED, "layers = 0"},
        {"no width", MODEL(hidden), 0, INGOT_ERR_UNSUPPORTED, "hidden = 0"},
        {"odd width", MODEL(hidden), 66, INGOT_ERR_UNSUPPORTED, "hidden = 66"},
        {"wide", MODEL(hidden), (1u << 20) + 4, INGOT_ERR_UNSUPPORTED, "hidden = 1048580"},
        {"no ffn", MODEL(ffn), 0, INGOT_ERR_UNSUPPORTED, "ffn = 0"},
        {"long ffn", MODEL(ffn), (1u << 24) + 1, INGOT_ERR_UNSUPPORTED, "ffn = 16777217"},
        {"no ids", MODEL(vocab), 0, INGOT_ERR_UNSUPPORTED, "vocab = 0"},
        {"many ids", MODEL(vocab), (1u << 24) + 1, INGOT_ERR_UNSUPPORTED, "vocab = 16777217"},
        {"no heads", MODEL(heads), 0, INGOT_ERR_UNSUPPORTED, "heads = 0"},
        {"many heads", MODEL(heads), 4098, INGOT_ERR_UNSUPPORTED, "heads = 4098"},
        {"no key heads", MODEL(kv_heads), 0, INGOT_ERR_UNSUPPORTED, "kv_heads = 0"},
        {"no head", MODEL(head_dim), 0, INGOT_ERR_UNSUPPORTED, "head_dim = 0"},
        {"odd head", MODEL(head_dim), 20, INGOT_ERR_UNSUPPORTED, "head_dim = 20"},
        {"long head", MODEL(head_dim), 136, INGOT_ERR_UNSUPPORTED, "head_dim = 136"},
        {"odd rotation", MODEL(rotary_dim), 7, INGOT_ERR_UNSUPPORTED, "rotary_dim = 7"},
        {"layer norms", MODEL(norm), INGOT_NORM_LAYER, INGOT_ERR_UNSUPPORTED, "RMS"},
        {"no norm", MODEL(norm), 17, INGOT_ERR_UNSUPPORTED, "RMS"},
        {"no activation", MODEL(activation), 17, INGOT_ERR_UNSUPPORTED, "activation"},
        {"no sequences", OF(options.sequences), 0, INGOT_ERR_UNSUPPORTED, "sequences = 0"},
        {"many sequences", OF(options.sequences), 65, INGOT_ERR_UNSUPPORTED, "sequences = 65"},
        {"no capacity", OF(options.capacity), 0, INGOT_ERR_UNSUPPORTED, "capacity = 0"},
        {"capacity", OF(options.capacity), UINT64_MAX, INGOT_ERR_UNSUPPORTED, "capacity = 1844"},
        {"uneven heads", MODEL(kv_heads), 4, INGOT_ERR_INPUT, "6 heads do not share 4"},
        {"rotation", MODEL(rotary_dim), 18, INGOT_ERR_INPUT, "18 features turn in heads of 16"},
        {"frequencies", MODEL(inverse_frequency), 0, INGOT_ERR_INPUT, "frequencies"},
        {"layers", MODEL(layer), 0, INGOT_ERR_INPUT, "the layers are missing"},
    };
    subject s;
    open_subject(&s, W4, false);
    check_changes(&s, changes, COUNT(changes));
    close_subject(&s);
}

/* Numbers and matrices that do not belong together, and matrices that are none. */
static void test_matrices(void) {
    static const change changes[] = {
        {"hidden", MODEL(hidden), 68, INGOT_ERR_INPUT, "embed: the shape is 203 x 64"},
        {"vocab", MODEL(vocab), 204, INGOT_ERR_INPUT, "the model needs 204 x 64"},
        {"ffn", MODEL(ffn), 97, INGOT_ERR_INPUT, "layer 0, GATE: the shape is 96 x 64"},
        {"heads", MODEL(heads), 8, INGOT_ERR_INPUT,
         "layer 0, Q: the shape is 96 x 64, the model "
         "needs 128 x 64"},
        {"key heads", MODEL(kv_heads), 3, INGOT_ERR_INPUT, "layer 0, K: the shape is 32 x 64"},
        {"head_dim", MODEL(head_dim), 24, INGOT_ERR_INPUT, "layer 0, Q"},
        {"q", VIEW(Q, rows), 95, INGOT_ERR_INPUT, "layer 1, Q: the shape is 95 x 64"},
        {"k", VIEW(K, cols), 65, INGOT_ERR_INPUT, "layer 1, K"},
        {"v", VIEW(V, rows), 96, INGOT_ERR_INPUT, "layer 1, V"},
        {"o", VIEW(O, cols), 64, INGOT_ERR_INPUT, "layer 1, O"},
        {"gate", VIEW(GATE, rows), 95, INGOT_ERR_INPUT, "layer 1, GATE"},
        {"up", VIEW(UP, rows), 97, INGOT_ERR_INPUT, "layer 1, UP"},
        {"down", VIEW(DOWN, cols), 97, INGOT_ERR_INPUT, "layer 1, DOWN"},
        {"head", MODEL(head.view.rows), 202, INGOT_ERR_INPUT, "head: the shape is 202"},
        {"table", MODEL(embed.origin), INGOT_ENGINE_NONE, INGOT_ERR_UNSUPPORTED, "embed"},
        {"none", LAYER(1, linear[INGOT_ENGINE_V].origin), INGOT_ENGINE_NONE, INGOT_ERR_UNSUPPORTED,
         "layer 1, V: the engine needs"},
        {"kind", VIEW(K, kind), INGOT_ALIAS, INGOT_ERR_INPUT, "neither dense nor grouped"},
        {"bits", VIEW(K, bits), 9, INGOT_ERR_INPUT, "layer 1, K: the codes"},
        {"bit", VIEW(K, bits), 1, INGOT_ERR_INPUT, "layer 1, K: the codes"},
        {"scales", VIEW(K, scale_dtype), INGOT_I32, INGOT_ERR_INPUT, "layer 1, K: the codes"},
        {"zeros", VIEW(K, zero_mode), 2, INGOT_ERR_INPUT, "layer 1, K: the codes"},
        {"no group", VIEW(K, group), 0, INGOT_ERR_INPUT, "groups of 0"},
        {"odd group", VIEW(K, group), 12, INGOT_ERR_INPUT, "groups of 12"},
        {"wide group", VIEW(K, group), 72, INGOT_ERR_INPUT, "groups of 72"},
        {"groups", VIEW(K, groups_per_row), 7, INGOT_ERR_INPUT, "7 groups and 32 bytes"},
        {"stride", VIEW(K, row_stride_bytes), 16, INGOT_ERR_INPUT, "2 groups and 16 bytes"},
        {"codes", VIEW(K, codes), 0, INGOT_ERR_INPUT, "parts of the matrix"},
        {"no scales", VIEW(K, scales), 0, INGOT_ERR_INPUT, "parts of the matrix"},
        {"no zeros", VIEW(K, zero_mode), INGOT_ZERO_STORED, INGOT_ERR_INPUT, "parts of the matrix"},
        {"outliers", VIEW(K, outlier_count), 1, INGOT_ERR_INPUT, "parts of the outliers"},
        {"all outliers", VIEW(K, outlier_count), 32 * 64 + 1, INGOT_ERR_INPUT, "2049 outliers"},
    };
    subject s;
    open_subject(&s, W4, false);
    check_changes(&s, changes, COUNT(changes));
    s.layers[1].linear[INGOT_ENGINE_K].view.dtype = INGOT_BF16;
    s.layers[1].linear[INGOT_ENGINE_K].view.outlier_count = 1;
    expect(&s, "outliers of BF16", INGOT_ERR_INPUT, "1 outliers of BF16");
    s.layers[1].linear[INGOT_ENGINE_K].view.dtype = INGOT_F16;
    s.layers[1].linear[INGOT_ENGINE_K].origin = INGOT_ENGINE_RANDOM;
    expect(&s, "random outliers", INGOT_ERR_INPUT, "random outliers");
    s.layers[1].linear[INGOT_ENGINE_K].view.outlier_count = 0;
    s.layers[1].linear[INGOT_ENGINE_K].view.codes = NULL; /* they have no memory yet */
    expect(&s, "random weights", INGOT_OK, "");
    close_subject(&s);
}

static void test_dense(void) {
    static const change changes[] = {
        {"integers", VIEW(K, dtype), INGOT_I32, INGOT_ERR_UNSUPPORTED, "layer 1, K: I32"},
        {"bytes", MODEL(embed.view.dtype), INGOT_U8, INGOT_ERR_UNSUPPORTED, "embed: U8"},
        {"data", VIEW(K, data), 0, INGOT_ERR_INPUT, "parts of the matrix"},
    };
    subject s;
    open_subject(&s, DENSE, false);
    check_changes(&s, changes, COUNT(changes));
    close_subject(&s);
}

static void test_vectors(void) {
    static const change changes[] = {
        {"short norm", LAYER(1, norm_attention.count), 63, INGOT_ERR_INPUT,
         "layer 1, norm_attention: has 63 values, the model needs 64"},
        {"norm of nothing", LAYER(0, norm_mlp.count), 0, INGOT_ERR_INPUT, "layer 0, norm_mlp"},
        {"nothing", LAYER(0, norm_mlp.values), 0, INGOT_ERR_INPUT, "the values are missing"},
        {"norm of q", LAYER(1, norm_q.count), 64, INGOT_ERR_INPUT, "layer 1, norm_q"},
        {"norm of k", LAYER(1, norm_k.count), 8, INGOT_ERR_INPUT, "layer 1, norm_k"},
        {"last norm", MODEL(final_norm.count), 65, INGOT_ERR_INPUT, "final_norm"},
        {"bias", LAYER(1, bias[INGOT_ENGINE_K].count), 31, INGOT_ERR_INPUT, "layer 1, bias of K"},
        {"no bias", LAYER(1, bias[INGOT_ENGINE_O].count), 64, INGOT_ERR_INPUT, "bias of O"},
    };
    subject s;
    open_subject(&s, W4, false);
    check_changes(&s, changes, COUNT(changes));
    s.layers[0].norm_mlp = (ingot_engine_vector){NULL, 0};
    expect(&s, "no norm", INGOT_OK, "");
    close_subject(&s);
}

static void test_outliers(void) {
    subject s;
    open_subject(&s, OUTLIERS, false);
    ingot_weight_view *v = &s.layers[1].linear[INGOT_ENGINE_K].view;
    const uint64_t rows = v->rows;
    CU_ASSERT_FATAL(v->outlier_count >= 2 && rows >= 2);
    uint64_t *ends = malloc((rows + 1) * sizeof *ends);
    uint32_t *col = malloc(v->outlier_count * sizeof *col);
    memcpy(ends, v->outlier_row_ptr, (rows + 1) * sizeof *ends);
    memcpy(col, v->outlier_col, v->outlier_count * sizeof *col);
    v->outlier_row_ptr = ends;
    v->outlier_col = col;
    expect(&s, "outliers", INGOT_OK, "");
    for (int i = 0; i < 4; i++) {
        uint64_t *end = &ends[i == 0 ? 0 : i == 1 ? rows : 1];
        const uint64_t before = *end;
        *end = i == 3 ? UINT64_MAX : before + 1 + (i == 2 ? v->outlier_count : 0);
        expect(&s, "an end of a row", INGOT_ERR_INPUT, "layer 1, K: an outlier is outside");
        *end = before;
    }
    col[v->outlier_count - 1] = (uint32_t)v->cols;
    expect(&s, "a column", INGOT_ERR_INPUT, "layer 1, K: an outlier is outside");
    free(ends);
    free(col);
    close_subject(&s);
}

/* Tensors of a container that are not those of the model: the error has file and name. */
static void test_containers(void) {
    ingot_container *folds;
    ingot_error error;
    subject s;
    open_subject(&s, W4, true);
    ingot_engine_matrix *k = &s.layers[1].linear[INGOT_ENGINE_K];
    const ingot_engine_matrix before = *k;
    CU_ASSERT_EQUAL_FATAL(k->origin, INGOT_ENGINE_CONTAINER);
    k->index = s.layers[1].linear[INGOT_ENGINE_Q].index;
    expect(&s, "another matrix", INGOT_ERR_INPUT,
           ".ingot: model.layers.1.self_attn.q_proj.weight: the shape is 96 x 64, the model needs "
           "32 x 64");
    CU_ASSERT_FATAL(ingot_tensor_find(s.container, "model.norm.weight", &k->index) != NULL);
    expect(&s, "a vector", INGOT_ERR_INPUT, "model.norm.weight: the shape is 1 x 64");
    k->index = ingot_tensor_count(s.container);
    expect(&s, "behind the last", INGOT_ERR_INPUT, "layer 1, K: the container has no tensor");
    k->index = UINT64_MAX;
    expect(&s, "far behind", INGOT_ERR_INPUT, "layer 1, K: the container has no tensor");
    k->container = NULL;
    expect(&s, "no container", INGOT_ERR_INPUT, "layer 1, K: the container has no tensor");
    CU_ASSERT_EQUAL_FATAL(ingot_open(&folds, "spec/vectors/valid/folds.ingot", &error), INGOT_OK);
    k->container = folds;
    k->index = 0;
    while (ingot_tensor_at(folds, k->index)->kind != INGOT_AUXILIARY) {
        k->index++;
    }
    expect(&s, "a fold", INGOT_ERR_INPUT, "#fold: the tensor is no matrix");
    ingot_close(folds);
    *k = before;
    expect(&s, "as it was", INGOT_OK, "");
    close_subject(&s);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"models that fit", test_fits},
        {"numbers", test_numbers},
        {"matrices", test_matrices},
        {"dense matrices", test_dense},
        {"vectors", test_vectors},
        {"outliers", test_outliers},
        {"tensors of containers", test_containers},
        CU_TEST_INFO_NULL,
    };
    seed = tiny_seed();
    return suite_run("engine check", tests);
}
