/* Whether a description of a model (kernels/ingot_kernels.h) is one that the engine computes with.
 *
 * The engine takes memory by the numbers of the description and reads weights by the geometry of
 * each matrix: here the two are held against each other, before anything is loaded, so that no
 * container and no caller makes it read or write beyond either.  Values are not looked at, but for
 * those of outliers in host memory that are places; those of a container are checked as it is read.
 */
#include "common/sizes.h"
#include "format/pack.h"
#include "kernels/engine.h"

#include <stdarg.h>
#include <stdio.h>

#define MOST_WIDTH    (UINT64_C(1) << 20)
#define MOST_ROWS     (UINT64_C(1) << 24) /* of ffn, of the vocabulary */
#define MOST_HEADS    UINT64_C(4096)
#define MOST_CAPACITY (UINT64_C(1) << 24)

#define NO_LAYER UINT64_MAX

/* What is being looked at. */
typedef struct place {
    const ingot_engine_matrix *matrix; /* NULL: a vector */
    const char *name;
    uint64_t layer;
    ingot_error *error;
} place;

static bool is_stored(const ingot_engine_matrix *m) {
    return m != NULL && m->origin == INGOT_ENGINE_CONTAINER && m->container != NULL &&
           m->index < ingot_tensor_count(m->container);
}

INGOT_PRINTF(3, 4)
static ingot_status refuse(const place *at, ingot_status status, const char *format, ...) {
    char name[64], reason[256];
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(reason, sizeof reason, format, arguments);
    va_end(arguments);
    if (at->layer == NO_LAYER) {
        (void)snprintf(name, sizeof name, "%s", at->name);
    } else {
        (void)snprintf(name, sizeof name, "layer %llu, %s", (unsigned long long)at->layer,
                       at->name);
    }
    const bool has_name = is_stored(at->matrix);
    return ingot_error_set(
        at->error, status, has_name ? ingot_path(at->matrix->container) : NULL,
        has_name ? ingot_tensor_at(at->matrix->container, at->matrix->index)->name : name, NULL,
        "%s", reason);
}

/* ---- numbers -------------------------------------------------------------------------------- */

ingot_status ingot_engine_check_numbers(const ingot_engine_model *m,
                                        const ingot_engine_options *options, ingot_error *error) {
    const struct {
        const char *what;
        uint64_t value, least, most, multiple;
    } sizes[] = {
        {"layers", m->layers, 1, UINT64_MAX, 1},
        {"hidden", m->hidden, 1, MOST_WIDTH, 4},
        {"ffn", m->ffn, 1, MOST_ROWS, 1},
        {"vocab", m->vocab, 1, MOST_ROWS, 1},
        {"head_dim", m->head_dim, 1, ENGINE_HEAD_DIM, 8},
        {"heads", m->heads, 1, MOST_HEADS, 1},
        {"kv_heads", m->kv_heads, 1, MOST_HEADS, 1},
        {"rotary_dim", m->rotary_dim, 0, ENGINE_HEAD_DIM, 2},
        {"sequences", options->sequences, 1, ENGINE_SEQUENCES, 1},
        {"capacity", options->capacity, 1, MOST_CAPACITY, 1},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (sizes[i].value < sizes[i].least || sizes[i].value > sizes[i].most ||
            sizes[i].value % sizes[i].multiple != 0) {
            return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, NULL, NULL, NULL,
                                   "the engine does not cover %s = %llu", sizes[i].what,
                                   (unsigned long long)sizes[i].value);
        }
    }
    if (m->norm != INGOT_NORM_RMS && m->norm != INGOT_NORM_RMS_PLUS_ONE) {
        return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, NULL, NULL, NULL,
                               "the engine covers RMS norms alone");
    }
    if ((unsigned)m->activation > INGOT_ACT_RELU) {
        return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, NULL, NULL, NULL,
                               "the activation is not known");
    }
    if (m->heads % m->kv_heads != 0) {
        return ingot_error_set(error, INGOT_ERR_INPUT, NULL, NULL, NULL,
                               "%llu heads do not share %llu key heads evenly",
                               (unsigned long long)m->heads, (unsigned long long)m->kv_heads);
    }
    if (m->rotary_dim > m->head_dim) {
        return ingot_error_set(error, INGOT_ERR_INPUT, NULL, NULL, NULL,
                               "%llu features turn in heads of %llu",
                               (unsigned long long)m->rotary_dim, (unsigned long long)m->head_dim);
    }
    return INGOT_OK;
}

static ingot_status check_parts(const ingot_engine_model *m, ingot_error *error) {
    if (m->layer == NULL || (m->rotary_dim != 0 && m->inverse_frequency == NULL)) {
        return ingot_error_set(error, INGOT_ERR_INPUT, NULL, NULL, NULL, "%s are missing",
                               m->layer == NULL ? "the layers" : "the frequencies of rotation");
    }
    return INGOT_OK;
}

/* ---- matrices ------------------------------------------------------------------------------- */

ingot_weight_view ingot_engine_matrix_view(const ingot_engine_matrix *matrix) {
    if (matrix->origin != INGOT_ENGINE_CONTAINER) {
        return matrix->view;
    }
    const ingot_tensor *t = ingot_tensor_at(matrix->container, matrix->index);
    return (ingot_weight_view){.kind = t->bits != 0 ? INGOT_GROUPED
                                                    : INGOT_DENSE, /* an alias: as its target is */
                               .rows = t->rows,
                               .cols = t->cols,
                               .dtype = t->dtype,
                               .bits = t->bits,
                               .zero_mode = t->zero_mode,
                               .scale_dtype = t->scale_dtype,
                               .group = t->group,
                               .groups_per_row = t->groups_per_row,
                               .row_stride_bytes = t->row_stride_bytes,
                               .outlier_count = t->outlier_count};
}

static bool is_float(ingot_dtype dtype) {
    return dtype == INGOT_F32 || dtype == INGOT_F16 || dtype == INGOT_BF16;
}

/* The rules of spec/quantization.md; a container has been held against them when it was opened. */
static ingot_status check_grouped(const place *at, const ingot_weight_view *v) {
    if (v->bits < 2 || v->bits > 8 || !is_float(v->scale_dtype) ||
        (v->zero_mode != INGOT_ZERO_SYMMETRIC && v->zero_mode != INGOT_ZERO_STORED)) {
        return refuse(at, INGOT_ERR_INPUT, "the codes are of no known kind");
    }
    if (v->group == 0 || v->group > v->cols || (v->group % 8 != 0 && v->group != v->cols)) {
        return refuse(at, INGOT_ERR_INPUT,
                      "groups of %llu columns are neither a multiple of 8 nor the row",
                      (unsigned long long)v->group);
    }
    if (v->groups_per_row != ingot_ceil_div(v->cols, v->group) ||
        v->row_stride_bytes != ingot_pack_row_bytes(v->cols, v->bits)) {
        return refuse(at, INGOT_ERR_INPUT,
                      "%llu groups and %llu bytes are not those of a row of %llu columns",
                      (unsigned long long)v->groups_per_row,
                      (unsigned long long)v->row_stride_bytes, (unsigned long long)v->cols);
    }
    if (v->outlier_count > v->rows * v->cols ||
        (v->outlier_count != 0 && v->dtype != INGOT_F32 && v->dtype != INGOT_F16)) {
        return refuse(at, INGOT_ERR_INPUT, "%llu outliers of %s cannot be",
                      (unsigned long long)v->outlier_count, ingot_dtype_name(v->dtype));
    }
    return INGOT_OK;
}

/* What is used as a place in memory. */
static ingot_status check_outliers(const place *at, const ingot_weight_view *v) {
    const uint64_t *ends = v->outlier_row_ptr;
    if (v->outlier_count == 0) {
        return INGOT_OK;
    }
    if (ends == NULL || v->outlier_col == NULL || v->outlier_val == NULL) {
        return refuse(at, INGOT_ERR_INPUT, "parts of the outliers are missing");
    }
    bool is_right = ends[0] == 0 && ends[v->rows] == v->outlier_count;
    for (uint64_t row = 0; is_right && row < v->rows; row++) {
        is_right = ends[row] <= ends[row + 1] && ends[row + 1] <= v->outlier_count;
        for (uint64_t k = ends[row]; is_right && k < ends[row + 1]; k++) {
            is_right = v->outlier_col[k] < v->cols;
        }
    }
    return is_right ? INGOT_OK : refuse(at, INGOT_ERR_INPUT, "an outlier is outside the matrix");
}

static ingot_status check_host(const place *at, const ingot_weight_view *v) {
    const bool has_parts = v->kind == INGOT_DENSE
                               ? v->data != NULL
                               : v->codes != NULL && v->scales != NULL &&
                                     (v->zero_mode != INGOT_ZERO_STORED || v->zeros != NULL);
    if (!has_parts) {
        return refuse(at, INGOT_ERR_INPUT, "parts of the matrix are missing");
    }
    return v->kind == INGOT_GROUPED ? check_outliers(at, v) : INGOT_OK;
}

static ingot_status check_origin(const place *at) {
    const ingot_engine_matrix *m = at->matrix;
    switch (m->origin) {
    case INGOT_ENGINE_HOST:
    case INGOT_ENGINE_RANDOM:
        return m->view.kind == INGOT_DENSE || m->view.kind == INGOT_GROUPED
                   ? INGOT_OK
                   : refuse(at, INGOT_ERR_INPUT, "the view is neither dense nor grouped");
    case INGOT_ENGINE_CONTAINER:
        if (m->container == NULL || m->index >= ingot_tensor_count(m->container)) {
            return refuse(at, INGOT_ERR_INPUT, "the container has no tensor %llu",
                          (unsigned long long)m->index);
        }
        return ingot_tensor_at(m->container, m->index)->kind != INGOT_AUXILIARY
                   ? INGOT_OK
                   : refuse(at, INGOT_ERR_INPUT, "the tensor is no matrix of a model");
    default:
        return refuse(at, INGOT_ERR_UNSUPPORTED, "the engine needs this matrix");
    }
}

static ingot_status check_matrix(const ingot_engine_matrix *m, const char *name, uint64_t layer,
                                 uint64_t rows, uint64_t cols, ingot_error *error) {
    const place at = {m, name, layer, error};
    INGOT_TRY(check_origin(&at));
    const ingot_weight_view v = ingot_engine_matrix_view(m);
    if (v.rows != rows || v.cols != cols) {
        return refuse(&at, INGOT_ERR_INPUT, "the shape is %llu x %llu, the model needs %llu x %llu",
                      (unsigned long long)v.rows, (unsigned long long)v.cols,
                      (unsigned long long)rows, (unsigned long long)cols);
    }
    if (v.kind == INGOT_GROUPED) {
        INGOT_TRY(check_grouped(&at, &v));
    } else if (!is_float(v.dtype)) {
        return refuse(&at, INGOT_ERR_UNSUPPORTED, "%s is not a floating-point matrix",
                      ingot_dtype_name(v.dtype));
    }
    if (m->origin == INGOT_ENGINE_RANDOM && v.kind == INGOT_GROUPED && v.outlier_count != 0) {
        return refuse(&at, INGOT_ERR_INPUT, "random outliers have no place");
    }
    return m->origin == INGOT_ENGINE_HOST ? check_host(&at, &v) : INGOT_OK;
}

/* ---- vectors -------------------------------------------------------------------------------- */

static ingot_status check_vector(const ingot_engine_vector *v, const char *name, uint64_t layer,
                                 uint64_t count, ingot_error *error) {
    const place at = {NULL, name, layer, error};
    if (v->values == NULL && v->count == 0) {
        return INGOT_OK;
    }
    if (v->values == NULL) {
        return refuse(&at, INGOT_ERR_INPUT, "the values are missing");
    }
    if (v->count != count) {
        return refuse(&at, INGOT_ERR_INPUT, "has %llu values, the model needs %llu",
                      (unsigned long long)v->count, (unsigned long long)count);
    }
    return INGOT_OK;
}

/* ---- the model ------------------------------------------------------------------------------ */

static ingot_status check_layer(const ingot_engine_model *m, uint64_t number, ingot_error *error) {
    const ingot_engine_layer *layer = &m->layer[number];
    const uint64_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    const struct {
        const char *name, *bias;
        uint64_t rows, cols;
    } roles[INGOT_ENGINE_ROLES] = {
        {"Q", "bias of Q", q, m->hidden},
        {"K", "bias of K", kv, m->hidden},
        {"V", "bias of V", kv, m->hidden},
        {"O", "bias of O", m->hidden, q},
        {"GATE", "bias of GATE", m->ffn, m->hidden},
        {"UP", "bias of UP", m->ffn, m->hidden},
        {"DOWN", "bias of DOWN", m->hidden, m->ffn},
    };
    for (int i = 0; i < INGOT_ENGINE_ROLES; i++) {
        INGOT_TRY(check_matrix(&layer->linear[i], roles[i].name, number, roles[i].rows,
                               roles[i].cols, error));
        INGOT_TRY(check_vector(&layer->bias[i], roles[i].bias, number, roles[i].rows, error));
    }
    INGOT_TRY(check_vector(&layer->norm_attention, "norm_attention", number, m->hidden, error));
    INGOT_TRY(check_vector(&layer->norm_mlp, "norm_mlp", number, m->hidden, error));
    INGOT_TRY(check_vector(&layer->norm_q, "norm_q", number, m->head_dim, error));
    return check_vector(&layer->norm_k, "norm_k", number, m->head_dim, error);
}

ingot_status ingot_engine_check(const ingot_engine_model *model,
                                const ingot_engine_options *options, ingot_error *error) {
    INGOT_TRY(ingot_engine_check_numbers(model, options, error));
    INGOT_TRY(check_parts(model, error));
    INGOT_TRY(check_matrix(&model->embed, "embed", NO_LAYER, model->vocab, model->hidden, error));
    for (uint64_t i = 0; i < model->layers; i++) {
        INGOT_TRY(check_layer(model, i, error));
    }
    if (model->head.origin != INGOT_ENGINE_NONE) {
        INGOT_TRY(check_matrix(&model->head, "head", NO_LAYER, model->vocab, model->hidden, error));
    }
    return check_vector(&model->final_norm, "final_norm", NO_LAYER, model->hidden, error);
}
