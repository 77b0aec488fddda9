/* How long --effort best learns (convert/plan_learning.h).
 *
 * In a small model exponentials, copies and, on a GPU, the start of many kernels take as long as
 * the products do, so that one block of its shape is run there and back as tuning and distillation
 * do it. */
#include "convert/plan_learning.h"

#include "calib/backward.h"
#include "common/memory.h"
#include "common/progress.h"
#include "common/random.h"
#include "common/sizes.h"
#include "kernels/codes.h"

#include <math.h>

#define LEAST_SECONDS 0.03 /* of a measurement; what is faster is repeated, */
#define LEAST_CALLS   3u   /* and what is slower, too: other processes may have had the processor */

#define WEIGHTS_MOST                                                                               \
    (UINT64_C(4) << 20)  /* of a block that is measured, and of a part of a head                   \
                          */
#define SEQUENCES   8u   /* of a step */
#define CPU_TOKENS  512u /* measured where more take longer in proportion */
#define HEAD_TOKENS 512u

ingot_status ingot_time_work(double *seconds, double *longer, const ingot_backend *backend,
                             ingot_timed_work work, void *context) {
    double first = 0, spent = 0;
    *seconds = INFINITY;
    for (unsigned calls = 0; calls <= LEAST_CALLS || spent < LEAST_SECONDS; calls++) {
        const double start = ingot_clock_seconds();
        INGOT_TRY(work(context));
        INGOT_TRY(backend->ops->wait(backend->context));
        const double taken = ingot_clock_seconds() - start;
        if (calls == 0) {
            first = taken;
        } else {
            *seconds = fmin(*seconds, taken);
            spent += taken;
        }
    }
    *longer += fmax(0, first - *seconds);
    return INGOT_OK;
}

/* A block of random weights that is learned. */
typedef struct pupil {
    const ingot_model *model;
    const ingot_backend *backend;
    const ingot_backend_ops *ops;
    void *context;
    ingot_arena *arena; /* device */
    ingot_tape *tape;
    ingot_block block;
    uint64_t sequences, length;
    float *input, *target, *x, *slope; /* [sequences][length][hidden] */
    float *weight;                     /* [hidden]: of a norm behind the block */
    struct matrix {
        ingot_quantized q;
        ingot_tuning tuning;
        float *values; /* NULL where products read the codes */
    } matrix[INGOT_ROLE_COUNT];
    float *gradient[INGOT_ROLE_COUNT]; /* NULL: no such matrix */
    ingot_weight_view head;
    uint64_t head_tokens;
    float *logits[2]; /* [head_tokens][head.rows] */
} pupil;

/* ---- random matrices ------------------------------------------------------------------------ */

static ingot_status floats_of(float **out, const pupil *p, uint64_t rows, uint64_t cols) {
    return ingot_arena_array(p->arena, (void **)out, rows, cols * sizeof **out);
}

ingot_status ingot_random_matrix(float **out, const ingot_backend *backend, ingot_arena *arena,
                                 uint64_t rows, uint64_t cols) {
    float *host;
    const uint64_t count = rows * cols;
    uint64_t state = rows * 31 + cols;
    INGOT_TRY(ingot_arena_array(arena, (void **)out, rows, cols * sizeof **out));
    INGOT_TRY(ingot_alloc((void **)&host, count * sizeof *host));
    for (uint64_t i = 0; i < count; i++) {
        host[i] = ingot_random_signed(&state);
    }
    const ingot_status status =
        backend->ops->upload(backend->context, *out, host, count * sizeof *host);
    ingot_free(host);
    return status;
}

static ingot_status random_of(float **out, const pupil *p, uint64_t rows, uint64_t cols) {
    return ingot_random_matrix(out, p->backend, p->arena, rows, cols);
}

static ingot_status place_matrix(pupil *p, unsigned role, const ingot_setting *setting) {
    const ingot_linear_desc *d = &p->model->linear[role];
    struct matrix *m = &p->matrix[role];
    const ingot_quant_format format = {
        .bits = setting->bits,
        .group = setting->group == 0 ? d->cols : ingot_min_u64(setting->group, d->cols),
        .zero_mode = setting->is_symmetric ? INGOT_ZERO_SYMMETRIC : INGOT_ZERO_STORED,
        .scale_dtype = INGOT_F16};
    float *w;
    if (!d->is_present) {
        return INGOT_OK;
    }
    INGOT_TRY(random_of(&w, p, d->rows, d->cols));
    INGOT_TRY(ingot_quantized_create(&m->q, d->rows, d->cols, &format, p->arena));
    INGOT_TRY(p->ops->quantize_rtn(p->context, &m->q, w));
    INGOT_TRY(floats_of(&m->tuning.position, p, d->rows, d->cols));
    INGOT_TRY(floats_of(&m->tuning.gain, p, d->rows, m->q.groups));
    INGOT_TRY(floats_of(&m->tuning.start_scale, p, d->rows, m->q.groups));
    INGOT_TRY(floats_of(&p->gradient[role], p, d->rows, d->cols));
    INGOT_TRY(p->ops->tuning_begin(p->context, &m->tuning, &m->q, w));
    p->block.linear[role] = ingot_codes_view(&m->q);
    if (!ingot_backend_reads_codes(p->backend, &m->q)) {
        m->values = w;
        p->block.linear[role] = ingot_values_view(&m->q, w);
    }
    return INGOT_OK;
}

static ingot_status place_block(pupil *p, const ingot_setting *setting, ingot_error *error) {
    const ingot_model *model = p->model;
    const uint64_t tokens = p->sequences * p->length;
    float **const states[] = {&p->input, &p->target, &p->x, &p->slope};
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        INGOT_TRY(place_matrix(p, role, setting));
    }
    for (unsigned slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        const bool is_of_head = slot == INGOT_SLOT_Q || slot == INGOT_SLOT_K;
        if (model->norm_suffix[slot] != NULL) {
            INGOT_TRY(random_of(&p->block.norm[slot], p, 1,
                                is_of_head ? model->head_dim : model->hidden));
        }
    }
    for (size_t i = 0; i < sizeof states / sizeof *states; i++) {
        INGOT_TRY(random_of(states[i], p, tokens, model->hidden));
    }
    INGOT_TRY(random_of(&p->weight, p, 1, model->hidden));
    return ingot_tape_create(&p->tape, model, p->backend, tokens, error);
}

/* The head, or as many of its rows as are measured. */
static ingot_status place_head(pupil *p, ingot_dtype dtype) {
    const ingot_model *m = p->model;
    const uint64_t rows = ingot_max_u64(1, ingot_min_u64(m->vocab, WEIGHTS_MOST / m->hidden));
    const uint64_t bytes = rows * m->hidden * ingot_dtype_bytes(dtype);
    void *data;
    p->head_tokens = ingot_min_u64(p->sequences * p->length, HEAD_TOKENS);
    INGOT_TRY(ingot_arena_alloc(p->arena, &data, bytes));
    INGOT_TRY(p->ops->zero(p->context, data, bytes));
    INGOT_TRY(random_of(&p->logits[0], p, p->head_tokens, rows));
    INGOT_TRY(random_of(&p->logits[1], p, p->head_tokens, rows));
    p->head = (ingot_weight_view){
        .kind = INGOT_DENSE, .rows = rows, .cols = m->hidden, .dtype = dtype, .data = data};
    return INGOT_OK;
}

/* ---- what is timed -------------------------------------------------------------------------- */

static ingot_status pass(void *context) {
    const pupil *p = context;
    const uint64_t bytes = p->sequences * p->length * p->model->hidden * sizeof *p->x;
    INGOT_TRY(p->ops->copy(p->context, p->x, p->input, bytes));
    return ingot_tape_forward(p->tape, &p->block, p->x, p->sequences, p->length);
}

static ingot_status learn(void *context) {
    const pupil *p = context;
    const ingot_model *m = p->model;
    const uint64_t tokens = p->sequences * p->length;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_quantized *q = &p->matrix[role].q;
        if (p->gradient[role] != NULL) {
            INGOT_TRY(p->ops->zero(p->context, p->gradient[role],
                                   q->rows * q->cols * sizeof *p->gradient[role]));
        }
    }
    INGOT_TRY(pass(context));
    INGOT_TRY(p->ops->norm(p->context, p->slope, p->x, p->weight, NULL, m->norm, m->norm_eps,
                           tokens, m->hidden));
    INGOT_TRY(p->ops->add(p->context, p->slope, p->target, -1.0f, tokens * m->hidden));
    INGOT_TRY(p->ops->norm_backward(p->context, p->slope, p->slope, p->x, p->weight, m->norm,
                                    m->norm_eps, tokens, m->hidden));
    return ingot_tape_backward(p->tape, &p->block, p->slope, p->input, p->gradient);
}

static ingot_status step(void *context) {
    pupil *p = context;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        struct matrix *m = &p->matrix[role];
        if (p->gradient[role] == NULL) {
            continue;
        }
        INGOT_TRY(
            p->ops->tuning_step(p->context, &m->tuning, &m->q, p->gradient[role], 1e-3f, 1e-3f));
        INGOT_TRY(p->ops->tuning_round(p->context, &m->q, &m->tuning));
        if (m->values != NULL) {
            INGOT_TRY(p->ops->quantized_values(p->context, m->values, &m->q));
        }
    }
    return INGOT_OK;
}

/* Logits of two models, and the gradient by the states they were made of. */
static ingot_status score(void *context) {
    const pupil *p = context;
    const uint64_t m = p->head_tokens;
    INGOT_TRY(p->ops->linear(p->context, p->logits[0], &p->head, NULL, p->input, m));
    INGOT_TRY(p->ops->linear(p->context, p->logits[1], &p->head, NULL, p->target, m));
    INGOT_TRY(p->ops->divergence_backward(p->context, p->logits[0], p->logits[1], 1e-3f, m,
                                          p->head.rows));
    return p->ops->linear_backward(p->context, p->slope, &p->head, p->logits[0], false, m);
}

static ingot_status measure(ingot_learning_pace *out, pupil *p, const ingot_forecast_job *job,
                            double flops, ingot_error *error) {
    const ingot_model *m = job->model;
    const char *head_name = m->head_name != NULL ? m->head_name : m->embed_name;
    uint64_t index;
    const ingot_st_tensor *head = ingot_checkpoint_find(job->checkpoint, head_name, &index);
    double seconds;
    INGOT_TRY(ingot_backend_arena_create(&p->arena, p->backend));
    INGOT_TRY(place_block(p, &job->recipe->defaults, error));
    INGOT_TRY(place_head(p, head != NULL ? head->dtype : INGOT_F32));
    const double tokens = (double)(p->sequences * p->length);
    /* attention meets half of a window, twice; what of it is not measured is products alone */
    const double rest =
        2 * (double)m->heads * (double)m->head_dim * (double)(job->length - p->length) / flops;
    INGOT_TRY(ingot_time_work(&seconds, &out->first, p->backend, pass, p));
    out->pass = seconds / tokens + rest;
    INGOT_TRY(ingot_time_work(&seconds, &out->first, p->backend, learn, p));
    out->learn = seconds / tokens + 3 * rest;
    INGOT_TRY(ingot_time_work(&out->step, &out->first, p->backend, step, p));
    INGOT_TRY(ingot_time_work(&seconds, &out->first, p->backend, score, p));
    out->head = seconds / (3 * (double)p->head_tokens) * (double)m->vocab / (double)p->head.rows;
    return INGOT_OK;
}

ingot_status ingot_learning_measure(ingot_learning_pace *out, bool *has_pace,
                                    const ingot_forecast_job *job, const ingot_backend *backend,
                                    double flops, ingot_error *error) {
    const ingot_model *model = job->model;
    pupil p = {
        .model = model, .backend = backend, .ops = backend->ops, .context = backend->context};
    uint64_t weights = 0;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *d = &model->linear[role];
        weights += d->is_present ? d->rows * d->cols : 0;
    }
    *out = (ingot_learning_pace){0};
    *has_pace = weights <= WEIGHTS_MOST;
    if (!*has_pace) {
        return INGOT_OK;
    }
    const uint64_t fitting = ingot_max_u64(1, backend->batch_tokens / job->length);
    p.length = backend->has_own_memory ? job->length : ingot_min_u64(job->length, CPU_TOKENS);
    p.sequences = backend->has_own_memory
                      ? ingot_min_u64(ingot_min_u64(SEQUENCES, job->windows), fitting)
                      : 1;
    const ingot_status status = measure(out, &p, job, flops, error);
    ingot_tape_destroy(p.tape);
    ingot_arena_destroy(p.arena);
    return status;
}
