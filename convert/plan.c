/* The plan of a conversion (convert/plan.h). */
#include "convert/plan.h"

#include "common/memory.h"
#include "common/sizes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What the functions below share. */
typedef struct planner {
    ingot_plan *plan;
    const ingot_checkpoint *checkpoint;
    const ingot_model *model;
    const ingot_recipe *recipe;
    bool has_data;
    uint64_t capacity;
    ingot_error *error;
    bool has_wide_enough; /* an explicit group fits at least one row */
    bool has_linear;
} planner;

/* ---- dtypes of scales and outliers ---------------------------------------------------------- */

#define SURVEY_ROWS 64u /* rows that are looked at, evenly spaced */

/* What is seen there; all zero where there are no weights to look at. */
typedef struct survey {
    uint64_t groups;
    uint64_t small, large; /* of them, with a plain scale below 2^-17 or over 2^15 */
    float largest;         /* weight */
} survey;

/* Adds w[cols], a row. */
static void survey_row(survey *out, const float *w, uint64_t cols, uint64_t group, unsigned bits) {
    for (uint64_t first = 0; first < cols; first += group) {
        float largest = 0;
        for (uint64_t j = first; j < first + group && j < cols; j++) {
            largest = fabsf(w[j]) > largest ? fabsf(w[j]) : largest;
        }
        const float scale = largest / (float)((1u << (bits - 1)) - 1);
        out->groups++;
        out->small += scale > 0 && scale < 0x1p-17f;
        out->large += scale > 0x1p15f;
        out->largest = fmaxf(out->largest, largest);
    }
}

static ingot_status survey_rows(survey *out, const planner *p, uint64_t index,
                                const ingot_tensor_spec *spec) {
    const ingot_st_tensor *tensor = ingot_checkpoint_at(p->checkpoint, index);
    const uint64_t rows = spec->dim[0], cols = spec->dim[1];
    const uint64_t element = ingot_dtype_bytes(tensor->dtype),
                   count = rows < SURVEY_ROWS ? rows : SURVEY_ROWS;
    ingot_status status = INGOT_OK;
    uint8_t *bytes = NULL;
    float *w = NULL;
    *out = (survey){0};
    if (!ingot_checkpoint_has_weights(p->checkpoint)) {
        return INGOT_OK;
    }
    INGOT_GO(ingot_alloc((void **)&bytes, cols * element));
    INGOT_GO(ingot_alloc((void **)&w, cols * sizeof *w));
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t row = i * rows / count;
        INGOT_GO(ingot_checkpoint_read(p->checkpoint, index, row * cols * element, cols * element,
                                       bytes, p->error));
        ingot_rows_to_f32(w, bytes, tensor->dtype, cols);
        survey_row(out, w, cols, spec->group, spec->bits);
    }
done:
    ingot_free(bytes);
    ingot_free(w);
    return status;
}

/* `auto` scales: BF16 where F16 would lose, where more than one group in a hundred is small (F16
 * has fewer bits there than BF16) or one is large. */
static ingot_dtype scale_dtype(ingot_scale_choice choice, const survey *seen) {
    switch (choice) {
    case INGOT_SCALE_AUTO:
        return seen->large > 0 || seen->small * 100 > seen->groups ? INGOT_BF16 : INGOT_F16;
    case INGOT_SCALE_F16:
        break;
    case INGOT_SCALE_BF16:
        return INGOT_BF16;
    case INGOT_SCALE_F32:
        return INGOT_F32;
    }
    return INGOT_F16;
}

/* F32 where the largest weights, of which outliers are, are near the ends of F16: folds and
 * corrections make them larger, and below 2^-14 F16 has fewer bits. */
static ingot_dtype outlier_dtype(const survey *seen) {
    const bool is_small = seen->largest > 0 && seen->largest < 0x1p-12f;
    return is_small || seen->largest >= 0x1p15f ? INGOT_F32 : INGOT_F16;
}

/* What a matrix is like decides the types that depend on it. */
static ingot_status choose_dtypes(ingot_tensor_spec *spec, const planner *p, uint64_t index,
                                  const ingot_setting *s) {
    survey seen = {0};
    if (s->scale == INGOT_SCALE_AUTO || spec->outlier_count != 0) {
        INGOT_TRY(survey_rows(&seen, p, index, spec));
    }
    spec->scale_dtype = scale_dtype(s->scale, &seen);
    spec->dtype = spec->outlier_count != 0 ? outlier_dtype(&seen) : INGOT_F16;
    return INGOT_OK;
}

/* ---- adding tensors ------------------------------------------------------------------------- */

static ingot_status add(const planner *p, const char *name, const ingot_plan_tensor *tensor,
                        const ingot_tensor_spec *spec) {
    ingot_plan *plan = p->plan;
    if (plan->count == p->capacity) {
        return INGOT_ERR_INTERNAL;
    }
    ingot_plan_tensor *t = &plan->tensors[plan->count];
    *t = *tensor;
    t->name = strdup(name);
    if (t->name == NULL) {
        return INGOT_ERR_NO_MEMORY;
    }
    if (strlen(name) > INGOT_MAX_NAME) {
        free(t->name);
        return ingot_error_set(p->error, INGOT_ERR_INPUT, ingot_checkpoint_path(p->checkpoint),
                               name, NULL, "the name is too long");
    }
    plan->specs[plan->count] = *spec;
    plan->specs[plan->count].name = t->name;
    plan->count++;
    return INGOT_OK;
}

/* A dense tensor of the checkpoint, stored under a name as it is or, behind a fold, as F32. */
static ingot_status add_dense(const planner *p, uint64_t index, const char *name,
                              const ingot_plan_tensor *tensor) {
    const ingot_st_tensor *source = ingot_checkpoint_at(p->checkpoint, index);
    if (!source->is_supported) {
        return ingot_error_set(p->error, INGOT_ERR_UNSUPPORTED,
                               ingot_checkpoint_shard_path(p->checkpoint, index), source->name,
                               "convert the checkpoint to F32, F16 or BF16",
                               "dtype %s is not supported", source->dtype_name);
    }
    ingot_tensor_spec spec = {.kind = INGOT_DENSE, .rank = source->rank, .dtype = source->dtype};
    for (unsigned i = 0; i < source->rank; i++) {
        spec.dim[i] = source->dim[i];
    }
    if (source->rank == 0) { /* a scalar is stored with one dimension */
        spec.rank = 1;
        spec.dim[0] = 1;
    }
    if (tensor->origin == INGOT_ORIGIN_FOLDED) {
        spec.dtype = INGOT_F32;
    }
    return add(p, name, tensor, &spec);
}

static ingot_method planned_method(const planner *p, ingot_choice choice, bool has_input) {
    const bool has_data = p->has_data && has_input;
    switch (choice) {
    case INGOT_CHOICE_RTN:
        return INGOT_METHOD_RTN;
    case INGOT_CHOICE_SEARCHED:
        return INGOT_METHOD_SEARCHED;
    case INGOT_CHOICE_AWQ:
        return has_data ? INGOT_METHOD_AWQ : INGOT_METHOD_SEARCHED;
    case INGOT_CHOICE_GPTQ:
        return has_data ? INGOT_METHOD_GPTQ : INGOT_METHOD_SEARCHED;
    case INGOT_CHOICE_AWQ_GPTQ:
        return has_data ? INGOT_METHOD_AWQ_GPTQ : INGOT_METHOD_SEARCHED;
    case INGOT_CHOICE_DEFAULT:
        return has_data      ? INGOT_METHOD_GPTQ
               : p->has_data ? INGOT_METHOD_SEARCHED
                             : INGOT_METHOD_RTN;
    case INGOT_CHOICE_KEEP:
        break;
    }
    return INGOT_METHOD_COPY;
}

static ingot_status add_quantized(planner *p, uint64_t index, const char *name,
                                  ingot_plan_tensor *tensor, const ingot_setting *s,
                                  ingot_method method) {
    const ingot_st_tensor *source = ingot_checkpoint_at(p->checkpoint, index);
    const uint64_t rows = source->dim[0], cols = source->dim[1];
    const uint64_t group = s->group == 0 || s->group > cols ? cols : s->group;
    ingot_tensor_spec spec = {.kind = INGOT_GROUPED,
                              .rank = 2,
                              .dim = {rows, cols},
                              .dtype = INGOT_F16,
                              .bits = s->bits,
                              .scale_dtype = INGOT_F16,
                              .zero_mode =
                                  s->is_symmetric ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED,
                              .group = group};
    spec.outlier_count = (uint64_t)floor(s->outliers * (double)rows * (double)cols);
    INGOT_TRY(choose_dtypes(&spec, p, index, s));
    tensor->origin = INGOT_ORIGIN_QUANTIZE;
    tensor->method = method;
    ingot_tensor_spec named = spec;
    uint64_t bytes;
    named.name = name;
    INGOT_TRY(ingot_plan_stored_bytes(&bytes, &named, p->error));
    p->plan->quantized_weights += rows * cols;
    p->plan->quantized_bytes += bytes;
    p->plan->needs_gram =
        p->plan->needs_gram ||
        (p->has_data && tensor->class == INGOT_CLASS_LINEAR && method != INGOT_METHOD_RTN);
    p->plan->has_loop =
        p->plan->has_loop ||
        (p->has_data && (method == INGOT_METHOD_GPTQ || method == INGOT_METHOD_AWQ_GPTQ));
    p->has_linear = true;
    p->has_wide_enough = p->has_wide_enough || s->group <= cols;
    const uint64_t work = rows * cols * 12 + (p->has_data ? cols * cols * 12 : 0);
    p->plan->work_bytes = ingot_max_u64(p->plan->work_bytes, work);
    return add(p, name, tensor, &spec);
}

/* True for a tensor whose values can be grouped: a matrix of a float type. */
static bool is_matrix(const ingot_st_tensor *t) {
    return t->is_supported && t->rank == 2 && t->dim[0] > 0 && t->dim[1] > 0 &&
           (t->dtype == INGOT_F32 || t->dtype == INGOT_F16 || t->dtype == INGOT_BF16);
}

/* ---- folds ---------------------------------------------------------------------------------- */

static bool is_awq(ingot_method method) {
    return method == INGOT_METHOD_AWQ || method == INGOT_METHOD_AWQ_GPTQ;
}

/* The method a linear will get, without adding it. */
static ingot_method linear_method(const planner *p, uint64_t layer, ingot_role role) {
    char name[INGOT_NAME_SIZE];
    bool is_named;
    ingot_model_linear_name(p->model, layer, role, name);
    const ingot_setting s = ingot_recipe_setting(p->recipe, name, &is_named);
    return planned_method(p, s.method, true);
}

/* A fold is planned when its producer and all its consumers take AWQ (a norm takes anything), and
 * no two folds share a consumer's columns or a producer's rows. */
static bool is_fold_planned(const planner *p, uint64_t layer, unsigned fold) {
    const ingot_fold_desc *f = &p->model->fold[fold];
    for (unsigned i = 0; i < f->consumer_count; i++) {
        if (!is_awq(linear_method(p, layer, f->consumers[i]))) {
            return false;
        }
    }
    return f->is_norm || is_awq(linear_method(p, layer, f->producer));
}

/* Index of the planned fold of which role is a consumer (or, is_row, the producer); -1: none. */
static int fold_of(const planner *p, uint64_t layer, ingot_role role, bool is_row) {
    for (unsigned i = 0; i < p->model->fold_count; i++) {
        const ingot_fold_desc *f = &p->model->fold[i];
        bool is_in = is_row && !f->is_norm && f->producer == role;
        for (unsigned c = 0; !is_row && c < f->consumer_count; c++) {
            is_in = is_in || f->consumers[c] == role;
        }
        if (is_in && is_fold_planned(p, layer, i)) {
            return (int)i;
        }
    }
    return -1;
}

/* A record that shares the bytes of the planned tensor `target`: its shape, another name. */
static ingot_status alias_spec(ingot_tensor_spec *out, const planner *p, const char *target) {
    const uint64_t index = ingot_plan_find(p->plan, target);
    if (index == INGOT_PLAN_NONE) {
        return INGOT_ERR_INTERNAL;
    }
    *out = p->plan->specs[index];
    out->kind = INGOT_ALIAS;
    out->alias_of = index;
    return INGOT_OK;
}

/* NAME#fold or NAME#rowfold of a linear; consumers share the vector of the first in load order. */
static ingot_status add_fold(planner *p, const ingot_plan_tensor *linear, const char *name,
                             int fold, bool is_row) {
    if (fold < 0) {
        return INGOT_OK;
    }
    const ingot_fold_desc *f = &p->model->fold[fold];
    const ingot_linear_desc *d = &p->model->linear[linear->role];
    char aux[INGOT_NAME_SIZE + 16], first[INGOT_NAME_SIZE], target[INGOT_NAME_SIZE + 16];
    snprintf(aux, sizeof aux, "%s#%s", name, is_row ? "rowfold" : "fold");
    ingot_plan_tensor t = *linear;
    t.source_index = INGOT_PLAN_NONE;
    t.origin = is_row ? INGOT_ORIGIN_ROW_FOLD : INGOT_ORIGIN_COLUMN_FOLD;
    t.fold = (unsigned)fold;
    t.method = INGOT_METHOD_COPY;
    t.reason = "fold scales";
    ingot_tensor_spec spec = {.kind = INGOT_AUXILIARY,
                              .rank = 1,
                              .dtype = INGOT_F32,
                              .dim = {is_row ? d->rows : d->cols}};
    p->plan->has_folds = true;
    ingot_role owner = f->consumers[0]; /* the first in load order holds the vector */
    for (unsigned i = 1; i < f->consumer_count; i++) {
        owner = f->consumers[i] < owner ? f->consumers[i] : owner;
    }
    if (!is_row && owner != linear->role) {
        ingot_model_linear_name(p->model, linear->layer, owner, first);
        snprintf(target, sizeof target, "%s#fold", first);
        t.origin = INGOT_ORIGIN_ALIAS;
        INGOT_TRY(alias_spec(&spec, p, target));
    }
    return add(p, aux, &t, &spec);
}

/* ---- the model's parts ---------------------------------------------------------------------- */

static ingot_status plan_linear(planner *p, uint64_t index, uint64_t layer, ingot_role role) {
    const ingot_st_tensor *source = ingot_checkpoint_at(p->checkpoint, index);
    bool is_named;
    const ingot_setting s = ingot_recipe_setting(p->recipe, source->name, &is_named);
    ingot_plan_tensor t = {.source_index = index,
                           .class = INGOT_CLASS_LINEAR,
                           .layer = layer,
                           .role = role,
                           .origin = INGOT_ORIGIN_COPY,
                           .reason = is_named ? "recipe rule" : "linear of a block",
                           .is_width_stated = (s.given & INGOT_GIVEN_BITS) != 0};
    const ingot_method method = planned_method(p, s.method, true);
    if (method == INGOT_METHOD_COPY) {
        t.reason = "kept by the recipe";
        return add_dense(p, index, source->name, &t);
    }
    if (!is_matrix(source)) {
        return ingot_error_set(p->error, INGOT_ERR_UNSUPPORTED,
                               ingot_checkpoint_shard_path(p->checkpoint, index), source->name,
                               "give it the method \"keep\" in a recipe",
                               "only matrices of F32, F16 or BF16 can be quantized");
    }
    INGOT_TRY(add_quantized(p, index, source->name, &t, &s, method));
    INGOT_TRY(add_fold(p, &t, source->name, fold_of(p, layer, role, false), false));
    return add_fold(p, &t, source->name, fold_of(p, layer, role, true), true);
}

static ingot_status plan_block_tensor(planner *p, uint64_t layer, const char *name,
                                      ingot_plan_tensor t, bool is_folded) {
    uint64_t index;
    if (ingot_checkpoint_find(p->checkpoint, name, &index) == NULL) {
        return INGOT_OK;
    }
    t.source_index = index;
    t.layer = layer;
    t.origin = is_folded ? INGOT_ORIGIN_FOLDED : INGOT_ORIGIN_COPY;
    t.reason = is_folded ? "behind a fold: stored F32" : "stays in its source type";
    return add_dense(p, index, name, &t);
}

static ingot_status plan_block(planner *p, uint64_t layer) {
    char name[INGOT_NAME_SIZE];
    for (unsigned slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        bool is_folded = false;
        for (unsigned i = 0; i < p->model->fold_count; i++) {
            const ingot_fold_desc *f = &p->model->fold[i];
            is_folded = is_folded || (f->is_norm && f->slot == (ingot_norm_slot)slot &&
                                      is_fold_planned(p, layer, i));
        }
        const ingot_plan_tensor t = {.class = INGOT_CLASS_NORM, .slot = (ingot_norm_slot)slot};
        if (!ingot_model_norm_name(p->model, layer, (ingot_norm_slot)slot, name)) {
            continue;
        }
        INGOT_TRY(plan_block_tensor(p, layer, name, t, is_folded));
        char *dot = strrchr(name, '.'); /* a LAYER norm's bias is divided as well */
        if (p->model->norm == INGOT_NORM_LAYER && dot != NULL) {
            snprintf(dot, sizeof name - (size_t)(dot - name), ".bias");
            INGOT_TRY(plan_block_tensor(p, layer, name, t, is_folded));
        }
    }
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        uint64_t index;
        if (!p->model->linear[role].is_present) {
            continue;
        }
        ingot_model_linear_name(p->model, layer, (ingot_role)role, name);
        if (ingot_checkpoint_find(p->checkpoint, name, &index) == NULL) {
            return ingot_error_set(p->error, INGOT_ERR_INPUT, ingot_checkpoint_path(p->checkpoint),
                                   name,
                                   "see that config.json is the model's, and no shard is missing",
                                   "the checkpoint lacks this tensor");
        }
        INGOT_TRY(plan_linear(p, index, layer, (ingot_role)role));
        if (p->model->linear[role].has_bias) {
            const ingot_plan_tensor t = {.class = INGOT_CLASS_BIAS, .role = (ingot_role)role};
            ingot_model_bias_name(p->model, layer, (ingot_role)role, name);
            INGOT_TRY(plan_block_tensor(p, layer, name, t,
                                        fold_of(p, layer, (ingot_role)role, true) >= 0));
        }
    }
    return INGOT_OK;
}

/* The setting of the embedding or the head: what a rule says of it, then `bits`, then defaults. */
static ingot_setting end_setting(const planner *p, const char *name, unsigned bits,
                                 bool *is_named) {
    ingot_setting s = ingot_recipe_setting(p->recipe, name, is_named);
    if (bits != 0) {
        s.bits = s.given & INGOT_GIVEN_BITS ? s.bits : bits;
        if (s.method == INGOT_CHOICE_KEEP && !(s.given & INGOT_GIVEN_METHOD)) {
            s.method = INGOT_CHOICE_DEFAULT; /* a default that keeps does not undo them */
        }
    }
    return s;
}

/* Embedding or head: dense unless bits are asked for, by an option or by a rule. */
static ingot_status plan_end(planner *p, const char *name, const char *source_name,
                             ingot_tensor_class class, unsigned bits) {
    uint64_t index;
    bool is_named;
    ingot_setting s = end_setting(p, name, bits, &is_named);
    ingot_plan_tensor t = {.class = class,
                           .layer = INGOT_PLAN_NONE,
                           .origin = INGOT_ORIGIN_COPY,
                           .reason = "stays in its source type",
                           .is_width_stated = true};
    if (ingot_checkpoint_find(p->checkpoint, source_name, &index) == NULL) {
        return ingot_error_set(p->error, INGOT_ERR_INPUT, ingot_checkpoint_path(p->checkpoint),
                               source_name,
                               "see that config.json is the model's, and no shard is missing",
                               "the checkpoint lacks this tensor");
    }
    t.source_index = index;
    const bool is_wanted = bits != 0 || is_named;
    ingot_method method = planned_method(p, s.method, false);
    if (!is_wanted || method == INGOT_METHOD_COPY) {
        return add_dense(p, index, name, &t);
    }
    t.reason = is_named ? "recipe rule" : "asked for";
    s.outliers = is_named ? s.outliers : 0;
    return add_quantized(p, index, name, &t, &s, method);
}

static ingot_status plan_head(planner *p) {
    const ingot_model *model = p->model;
    bool is_named;
    uint64_t index;
    const ingot_setting s = end_setting(p, model->head_name, p->recipe->head_bits, &is_named);
    const bool has_own = ingot_checkpoint_find(p->checkpoint, model->head_name, &index) != NULL;
    if (!model->is_tied) {
        return plan_end(p, model->head_name, model->head_name, INGOT_CLASS_HEAD,
                        p->recipe->head_bits);
    }
    /* On its own, from the embedding's values, unless both are kept. */
    const bool is_kept = planned_method(p, s.method, false) == INGOT_METHOD_COPY;
    const uint64_t embed = ingot_plan_find(p->plan, model->embed_name);
    const bool is_same =
        is_kept && embed != INGOT_PLAN_NONE && p->plan->specs[embed].kind == INGOT_DENSE;
    if ((p->recipe->head_bits != 0 || is_named) && !is_same) {
        return plan_end(p, model->head_name, has_own ? model->head_name : model->embed_name,
                        INGOT_CLASS_HEAD, p->recipe->head_bits);
    }
    const ingot_plan_tensor t = {.class = INGOT_CLASS_HEAD,
                                 .layer = INGOT_PLAN_NONE,
                                 .source_index = INGOT_PLAN_NONE,
                                 .origin = INGOT_ORIGIN_ALIAS,
                                 .reason = "tied to the embedding"};
    ingot_tensor_spec spec;
    INGOT_TRY(alias_spec(&spec, p, model->embed_name));
    return add(p, model->head_name, &t, &spec);
}

/* Whatever no part of the model named. */
static ingot_status plan_unknown(planner *p) {
    for (uint64_t i = 0; i < ingot_checkpoint_count(p->checkpoint); i++) {
        const ingot_st_tensor *source = ingot_checkpoint_at(p->checkpoint, i);
        if (ingot_plan_find(p->plan, source->name) != INGOT_PLAN_NONE) {
            continue;
        }
        const ingot_plan_tensor t = {.class = INGOT_CLASS_UNKNOWN,
                                     .layer = INGOT_PLAN_NONE,
                                     .source_index = i,
                                     .origin = INGOT_ORIGIN_COPY,
                                     .reason = "not known to this model: copied"};
        INGOT_TRY(add_dense(p, i, source->name, &t));
    }
    return INGOT_OK;
}

static ingot_status plan_all(planner *p) {
    const ingot_model *model = p->model;
    INGOT_TRY(plan_end(p, model->embed_name, model->embed_name, INGOT_CLASS_EMBED,
                       p->recipe->embed_bits));
    for (uint64_t layer = 0; layer < model->layers; layer++) {
        INGOT_TRY(plan_block(p, layer));
    }
    const ingot_plan_tensor norm = {.class = INGOT_CLASS_NORM, .slot = INGOT_SLOT_COUNT};
    INGOT_TRY(plan_block_tensor(p, INGOT_PLAN_NONE, model->final_norm_name, norm, false));
    INGOT_TRY(plan_head(p));
    return plan_unknown(p);
}

static void measure(ingot_plan *plan, const planner *p) {
    const ingot_model *model = p->model;
    uint64_t layer_bytes = 0, last = INGOT_PLAN_NONE;
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_plan_tensor *t = &plan->tensors[i];
        if (t->source_index == INGOT_PLAN_NONE) {
            continue;
        }
        const uint64_t bytes = ingot_checkpoint_at(p->checkpoint, t->source_index)->bytes;
        layer_bytes = t->layer == last ? layer_bytes + bytes : bytes;
        last = t->layer;
        plan->piece_bytes = ingot_max_u64(plan->piece_bytes, layer_bytes);
        if (t->layer != INGOT_PLAN_NONE) {
            plan->block_bytes = ingot_max_u64(plan->block_bytes, layer_bytes);
        }
    }
    for (uint64_t i = 0; i < ingot_checkpoint_count(p->checkpoint); i++) {
        plan->source_bytes += ingot_checkpoint_at(p->checkpoint, i)->bytes;
    }
    bool seen[INGOT_INPUT_COUNT] = {false};
    for (unsigned role = 0; plan->needs_gram && role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *d = &model->linear[role];
        if (d->is_present && !seen[d->input]) {
            seen[d->input] = true;
            plan->gram_bytes += d->cols * d->cols * sizeof(float);
            plan->gram_file_bytes += d->cols * (d->cols + 1) / 2 * sizeof(float) * model->layers;
        }
    }
}

ingot_status ingot_plan_create(ingot_plan *out, const ingot_checkpoint *checkpoint,
                               const ingot_model *model, const ingot_recipe *recipe, bool has_data,
                               ingot_error *error) {
    planner p = {.plan = out,
                 .checkpoint = checkpoint,
                 .model = model,
                 .recipe = recipe,
                 .has_data = has_data,
                 .error = error};
    *out = (ingot_plan){.steps = recipe->steps};
    /* every tensor, two folds for each linear, and a head */
    p.capacity = ingot_checkpoint_count(checkpoint) * 3 + 2;
    INGOT_TRY(ingot_alloc_zero((void **)&out->tensors, p.capacity, sizeof *out->tensors));
    ingot_status status = ingot_alloc_zero((void **)&out->specs, p.capacity, sizeof *out->specs);
    INGOT_GO(status);
    INGOT_GO(plan_all(&p));
    if (p.has_linear && !p.has_wide_enough && (recipe->defaults.given & INGOT_GIVEN_GROUP)) {
        status = ingot_error_set(error, INGOT_ERR_USAGE, ingot_checkpoint_path(checkpoint), NULL,
                                 "use a smaller group or --group row",
                                 "group %llu is larger than every row of the model",
                                 (unsigned long long)recipe->defaults.group);
        goto done;
    }
    measure(out, &p);
done:
    if (status != INGOT_OK) {
        ingot_plan_free(out);
    }
    return status;
}

ingot_status ingot_plan_stored_bytes(uint64_t *out, const ingot_tensor_spec *spec,
                                     ingot_error *error) {
    ingot_tensor geometry;
    *out = 0;
    INGOT_TRY(ingot_tensor_geometry(&geometry, spec, error));
    for (unsigned i = 0; i < INGOT_PART_COUNT; i++) {
        *out += geometry.part_bytes[i];
    }
    return INGOT_OK;
}

ingot_status ingot_plan_set_bits(ingot_plan *plan, uint64_t index, unsigned bits, const char *note,
                                 const ingot_checkpoint *checkpoint, const ingot_recipe *recipe,
                                 ingot_error *error) {
    const planner p = {.plan = plan, .checkpoint = checkpoint, .recipe = recipe, .error = error};
    ingot_plan_tensor *t = &plan->tensors[index];
    ingot_tensor_spec *spec = &plan->specs[index];
    bool is_named;
    uint64_t before, after;
    ingot_setting s = ingot_recipe_setting(recipe, t->name, &is_named);
    s.bits = bits;
    INGOT_TRY(ingot_plan_stored_bytes(&before, spec, error));
    spec->bits = bits;
    INGOT_TRY(choose_dtypes(spec, &p, t->source_index, &s));
    INGOT_TRY(ingot_plan_stored_bytes(&after, spec, error));
    plan->quantized_bytes = plan->quantized_bytes - before + after;
    snprintf(t->note, sizeof t->note, "%s", note);
    return INGOT_OK;
}

void ingot_plan_free(ingot_plan *plan) {
    for (uint64_t i = 0; i < plan->count; i++) {
        free(plan->tensors[i].name);
    }
    ingot_free(plan->tensors);
    ingot_free(plan->specs);
    *plan = (ingot_plan){0};
}

uint64_t ingot_plan_find(const ingot_plan *plan, const char *name) {
    for (uint64_t i = 0; i < plan->count; i++) {
        if (strcmp(plan->tensors[i].name, name) == 0) {
            return i;
        }
    }
    return INGOT_PLAN_NONE;
}

bool ingot_plan_distills(const ingot_plan *plan, bool is_best) {
    return is_best && plan->steps.distills && !plan->has_folds;
}

double ingot_plan_bits_per_weight(const ingot_plan *plan) {
    return plan->quantized_weights != 0
               ? 8.0 * (double)plan->quantized_bytes / (double)plan->quantized_weights
               : NAN;
}
