/* Distillation (convert/distill.h). */
#include "convert/distill.h"

#include "calib/backward.h"
#include "common/files.h"
#include "common/memory.h"
#include "common/random.h"
#include "common/sizes.h"
#include "kernels/codes.h"

#include <math.h>
#include <string.h>

#define TAPE_BYTES   (UINT64_C(4) << 30)
#define LOGITS_BYTES (UINT64_C(512) << 20) /* of a chunk, per model */

/* How a model is learned (spec/quality.md, section 10, and decision 0028). */
typedef struct schedule {
    unsigned steps, sequences; /* sequences of a step */
    unsigned judge_every;      /* steps */
    double code_rate;          /* way of a position in all steps, in codes, times 2 */
    double gain_rate;          /* of a gain, in the first step */
} schedule;

static const schedule of_scales = {100, 4, 10, 0, 0.001};
static const schedule of_codes = {200, 8, 10, 2.4, 0.0003};
#define SEQUENCES_MOST 8u
/* How much the held-out divergence of the last iterate may lie above the start's: what the few
 * windows of the judges cannot tell from no change (decision 0028). */
#define TOLERANCE 1.02

static const schedule *schedule_for(bool learns_codes) {
    return learns_codes ? &of_codes : &of_scales;
}

/* One quantized matrix and the way of its scales. */
typedef struct learned {
    bool is_kept, is_fixed;                /* fixed: its scales stay */
    double bound;                          /* on the weight error */
    double error;                          /* of what was learned; NaN: it is as it was kept */
    ingot_quantized kept;                  /* host */
    ingot_quantized q;                     /* the same on the device, where they are learned */
    float *gain, *start, *gradient, *best; /* [rows][groups], device */
    float *position;                       /* [rows][cols], device, where codes are learned */
    uint8_t *best_codes;                   /* likewise */
} learned;

typedef struct layer {
    ingot_block block; /* device; linears of kept matrices are filled in when they are needed */
    learned matrix[INGOT_ROLE_COUNT];
} layer;

struct ingot_distill {
    const ingot_loop_job *job;
    const ingot_model *model;
    const ingot_backend_ops *ops;
    void *context;
    layer *layers;        /* [model->layers] */
    ingot_arena *waiting; /* host: kept matrices until they are uploaded */
    ingot_arena *blocks;  /* device: what was copied of blocks */
    ingot_arena *device;  /* everything else */
    uint64_t codes_most;  /* weights up to which codes are learned as well */
    bool learns_codes;
    const schedule *way;
    const ingot_batch *batch;
    ingot_ends ends;
    ingot_arena *ends_host;
    ingot_tape *tape;
    uint64_t floats;   /* of a window's states */
    uint64_t per_call; /* windows the tape holds */
    uint64_t rows;     /* tokens whose logits are made at once */
    float *states;     /* [layers + 1][sequences][length][hidden]: what each block reads */
    float *slope;      /* [sequences][length][hidden]: gradient of what follows */
    float *x;          /* [per_call][length][hidden] */
    float *exact;      /* [length][hidden] */
    float *normed;     /* [rows][hidden] */
    float *logits[2];  /* [rows][vocab]: quantized, full-precision */
    float *values[INGOT_ROLE_COUNT]; /* of the block at hand; NULL where products read the codes */
    float *slopes[INGOT_ROLE_COUNT]; /* likewise, their gradients */
    double *divergence;              /* [rows], host */
    uint32_t *order;                 /* the windows in the order they are taken, host */
    uint64_t taken;
    uint64_t random;
};

ingot_status ingot_distill_create(ingot_distill **out, const ingot_loop_job *job,
                                  uint64_t codes_most) {
    void *memory;
    *out = NULL;
    INGOT_TRY(ingot_alloc_zero(&memory, 1, sizeof(ingot_distill)));
    ingot_distill *d = memory;
    *d = (ingot_distill){.job = job,
                         .model = job->model,
                         .ops = job->backend->ops,
                         .context = job->backend->context,
                         .random = job->seed,
                         .codes_most = codes_most};
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_alloc_zero((void **)&d->layers, d->model->layers, sizeof *d->layers));
    INGOT_GO(ingot_arena_create(&d->waiting));
    INGOT_GO(ingot_arena_create(&d->ends_host));
    INGOT_GO(ingot_backend_arena_create(&d->blocks, job->backend));
    INGOT_GO(ingot_backend_arena_create(&d->device, job->backend));
done:
    if (status != INGOT_OK) {
        ingot_distill_destroy(d);
        return status;
    }
    *out = d;
    return INGOT_OK;
}

void ingot_distill_destroy(ingot_distill *d) {
    if (d == NULL) {
        return;
    }
    ingot_tape_destroy(d->tape);
    ingot_ends_release(&d->ends, d->job->backend);
    ingot_arena_destroy(d->device);
    ingot_arena_destroy(d->blocks);
    ingot_arena_destroy(d->waiting);
    ingot_arena_destroy(d->ends_host);
    ingot_free(d->layers);
    ingot_free(d->divergence);
    ingot_free(d->order);
    ingot_free(d);
}

/* ---- keeping -------------------------------------------------------------------------------- */

/* *vector, where there is one, becomes a copy of itself. */
static ingot_status keep_vector(ingot_distill *d, float **vector, uint64_t width) {
    float *copy;
    if (*vector == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_array(d->blocks, (void **)&copy, width, sizeof *copy));
    INGOT_TRY(d->ops->copy(d->context, copy, *vector, width * sizeof *copy));
    *vector = copy;
    return INGOT_OK;
}

ingot_status ingot_distill_keep_block(ingot_distill *d, const ingot_block *block) {
    layer *l = &d->layers[block->layer];
    l->block = (ingot_block){.layer = block->layer};
    memcpy(l->block.linear, block->linear, sizeof l->block.linear);
    memcpy(l->block.bias, block->bias, sizeof l->block.bias);
    memcpy(l->block.norm, block->norm, sizeof l->block.norm);
    memcpy(l->block.norm_bias, block->norm_bias, sizeof l->block.norm_bias);
    for (unsigned slot = 0; slot < INGOT_SLOT_COUNT; slot++) {
        const bool is_of_heads = slot == INGOT_SLOT_Q || slot == INGOT_SLOT_K;
        const uint64_t width = is_of_heads ? d->model->head_dim : d->model->hidden;
        INGOT_TRY(keep_vector(d, &l->block.norm[slot], width));
        INGOT_TRY(keep_vector(d, &l->block.norm_bias[slot], width));
    }
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        ingot_weight_view *view = &l->block.linear[role];
        INGOT_TRY(keep_vector(d, &l->block.bias[role], d->model->linear[role].rows));
        if (!d->model->linear[role].is_present || l->matrix[role].is_kept) {
            continue;
        }
        void *copy;
        const uint64_t bytes = view->rows * view->cols * ingot_dtype_bytes(view->dtype);
        INGOT_TRY(ingot_arena_alloc(d->blocks, &copy, bytes));
        INGOT_TRY(d->ops->copy(d->context, copy, view->data, bytes));
        view->data = copy;
    }
    return INGOT_OK;
}

/* How an array goes from one memory to another. */
typedef ingot_status (*carry)(void *context, void *to, const void *from, uint64_t bytes);

static ingot_status move_part(const ingot_distill *d, carry way, void *out, const void *from,
                              uint64_t bytes, ingot_arena *arena) {
    void *to;
    INGOT_TRY(ingot_arena_alloc(arena, &to, bytes));
    memcpy(out, &to, sizeof to); /* a pointer of any type */
    return way(d->context, to, from, bytes);
}

/* *q becomes a copy of itself in other memory. */
static ingot_status move_matrix(const ingot_distill *d, carry way, ingot_quantized *q,
                                ingot_arena *arena) {
    const uint64_t n = q->rows * q->cols, g = q->rows * q->groups;
    ingot_outliers *o = &q->outliers;
    INGOT_TRY(move_part(d, way, &q->codes, q->codes, n, arena));
    INGOT_TRY(move_part(d, way, &q->scales, q->scales, g * sizeof *q->scales, arena));
    INGOT_TRY(move_part(d, way, &q->zeros, q->zeros, g, arena));
    if (o->count == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(
        move_part(d, way, &o->row_ptr, o->row_ptr, (q->rows + 1) * sizeof *o->row_ptr, arena));
    INGOT_TRY(move_part(d, way, &o->col, o->col, o->count * sizeof *o->col, arena));
    return move_part(d, way, &o->val, o->val, o->count * sizeof *o->val, arena);
}

static ingot_status copy_on_host(void *context, void *to, const void *from, uint64_t bytes) {
    (void)context;
    memcpy(to, from, bytes);
    return INGOT_OK;
}

ingot_status ingot_distill_keep_matrix(ingot_distill *d, uint64_t at, ingot_role role,
                                       const ingot_quantized *q, double bound, bool is_fixed,
                                       bool is_on_host) {
    learned *m = &d->layers[at].matrix[role];
    *m = (learned){
        .is_kept = true, .is_fixed = is_fixed, .bound = bound, .error = (double)NAN, .kept = *q};
    return move_matrix(d, is_on_host ? copy_on_host : d->ops->download, &m->kept, d->waiting);
}

const ingot_quantized *ingot_distill_waiting(const ingot_distill *d, uint64_t at, ingot_role role) {
    return &d->layers[at].matrix[role].kept;
}

double ingot_distill_error(const ingot_distill *d, uint64_t at, ingot_role role) {
    return d->layers[at].matrix[role].error;
}

ingot_status ingot_distill_matrix(ingot_quantized *q, const ingot_distill *d, uint64_t at,
                                  ingot_role role, ingot_arena *arena) {
    *q = d->layers[at].matrix[role].kept;
    return move_matrix(d, d->ops->upload, q, arena);
}

/* ---- memory --------------------------------------------------------------------------------- */

static ingot_status floats_of(const ingot_distill *d, float **out, uint64_t rows, uint64_t cols) {
    return ingot_arena_array(d->device, (void **)out, rows, cols * sizeof(float));
}

static uint64_t tape_token_bytes(const ingot_model *m) {
    return 4 * (6 * m->hidden + 5 * m->heads * m->head_dim + 6 * m->kv_heads * m->head_dim +
                4 * m->ffn);
}

/* Rows whose logits are there at once. */
static uint64_t logit_rows(const ingot_model *m, uint64_t length) {
    return ingot_max_u64(1, ingot_min_u64(length, LOGITS_BYTES / (m->vocab * sizeof(float))));
}

/* Weights and *groups of the matrices that wait. */
static uint64_t planned_weights(uint64_t *groups, const ingot_plan *plan) {
    uint64_t weights = 0;
    *groups = 0;
    for (uint64_t i = 0; i < plan->count; i++) {
        const ingot_tensor_spec *spec = &plan->specs[i];
        if (ingot_waiting_is_of(plan, i)) {
            weights += spec->dim[0] * spec->dim[1];
            *groups += spec->dim[0] * ingot_ceil_div(spec->dim[1], spec->group);
        }
    }
    return weights;
}

uint64_t ingot_distill_bytes(uint64_t *waiting_bytes, const ingot_plan *plan, const ingot_model *m,
                             uint64_t length) {
    uint64_t groups, block = 0;
    const uint64_t weights = planned_weights(&groups, plan);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        /* gradients; values where no product reads codes */
        const uint64_t each = m->linear[role].cols % 8 == 0 ? 4 : 8;
        block += each * m->linear[role].rows * m->linear[role].cols;
    }
    const bool learns_codes = weights <= INGOT_DISTILL_CODES_MOST;
    const uint64_t sequences = schedule_for(learns_codes)->sequences;
    const uint64_t window = 4 * length * m->hidden; /* bytes */
    const uint64_t calls =
        ingot_max_u64(length * tape_token_bytes(m),
                      ingot_min_u64(TAPE_BYTES, sequences * length * tape_token_bytes(m)));
    *waiting_bytes = weights + 5 * groups;
    return *waiting_bytes + (learns_codes ? 5 * weights : 0) + 16 * groups + block +
           ((m->layers + 3) * sequences + 1) * window + calls +
           8 * logit_rows(m, length) * m->vocab + 8 * m->vocab * m->hidden;
}

ingot_learning_work ingot_distill_work(const ingot_plan *plan, uint64_t windows, uint64_t length,
                                       uint64_t judges) {
    uint64_t groups;
    const schedule *way = schedule_for(planned_weights(&groups, plan) <= INGOT_DISTILL_CODES_MOST);
    const double steps = way->steps;
    const double taken = (double)(ingot_min_u64(way->sequences, windows - judges) * length);
    const double judged = (1 + steps / way->judge_every) * (double)(judges * length);
    /* forward; again on the way back, block by block */
    return (ingot_learning_work){.steps = steps,
                                 .pass_tokens = steps * taken + judged,
                                 .learn_tokens = steps * taken,
                                 .head_tokens = steps * 3 * taken + 2 * judged};
}

static ingot_status place_learned(const ingot_distill *d, learned *m) {
    const ingot_quantized *q = &m->q;
    m->q = m->kept;
    INGOT_TRY(move_matrix(d, d->ops->upload, &m->q, d->device));
    INGOT_TRY(floats_of(d, &m->gain, q->rows, q->groups));
    INGOT_TRY(floats_of(d, &m->start, q->rows, q->groups));
    INGOT_TRY(floats_of(d, &m->gradient, q->rows, q->groups));
    INGOT_TRY(floats_of(d, &m->best, q->rows, q->groups));
    INGOT_TRY(d->ops->copy(d->context, m->start, q->scales, q->rows * q->groups * sizeof(float)));
    void *ones;
    INGOT_TRY(ingot_alloc(&ones, q->rows * q->groups * sizeof(float)));
    for (uint64_t i = 0; i < q->rows * q->groups; i++) {
        ((float *)ones)[i] = 1.0f;
    }
    const ingot_status status =
        d->ops->upload(d->context, m->gain, ones, q->rows * q->groups * sizeof(float));
    ingot_free(ones);
    return status;
}

/* Where the codes of a matrix begin: at the weights of the source, as near as their codes allow. */
static ingot_status begin_codes(const ingot_distill *d, learned *m, uint64_t at, ingot_role role,
                                ingot_error *error) {
    const ingot_weight_source *source = d->job->source;
    const uint64_t n = m->q.rows * m->q.cols;
    ingot_weight_view host, device;
    ingot_arena *arena = NULL;
    char name[INGOT_NAME_SIZE];
    uint64_t bad;
    INGOT_TRY(floats_of(d, &m->position, m->q.rows, m->q.cols));
    INGOT_TRY(ingot_arena_alloc(d->device, (void **)&m->best_codes, n));
    INGOT_TRY(ingot_arena_create(&arena));
    ingot_model_linear_name(d->model, at, role, name);
    ingot_status status = INGOT_OK;
    INGOT_GO(source->load(source->self, name, arena, &host, error));
    INGOT_GO(d->ops->upload_view(d->context, &device, &host));
    status = d->ops->values(d->context, d->slopes[role], &bad, &device, NULL, NULL);
    d->ops->release_view(d->context, &device);
    if (status == INGOT_OK) {
        const ingot_tuning t = {m->position, m->gain, m->start};
        status = d->ops->tuning_begin(d->context, &t, &m->q, d->slopes[role]);
    }
done:
    ingot_arena_destroy(arena);
    return status;
}

static uint64_t count_weights(const ingot_distill *d) {
    uint64_t count = 0;
    for (uint64_t at = 0; at < d->model->layers; at++) {
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            const learned *m = &d->layers[at].matrix[role];
            count += m->is_kept ? m->kept.rows * m->kept.cols : 0;
        }
    }
    return count;
}

/* Whether products want the values of a role's matrices: of any block. */
static bool has_values(const ingot_distill *d, unsigned role) {
    bool is_wanted = false;
    for (uint64_t at = 0; at < d->model->layers; at++) {
        const learned *m = &d->layers[at].matrix[role];
        is_wanted =
            is_wanted || (m->is_kept && !ingot_backend_reads_codes(d->job->backend, &m->kept));
    }
    return is_wanted;
}

/* All the memory of the way; INGOT_ERR_NO_MEMORY is no failure of the conversion. */
static ingot_status place_way(ingot_distill *d, ingot_error *error) {
    const ingot_model *m = d->model;
    const uint64_t length = d->batch->length;
    const uint64_t tokens =
        ingot_min_u64(TAPE_BYTES / tape_token_bytes(m), d->job->backend->batch_tokens);
    d->learns_codes = count_weights(d) <= d->codes_most;
    d->way = schedule_for(d->learns_codes);
    const uint64_t sequences = d->way->sequences;
    d->floats = length * m->hidden;
    d->per_call = ingot_max_u64(1, ingot_min_u64(tokens / length, sequences));
    d->rows = logit_rows(m, length);
    INGOT_TRY(floats_of(d, &d->states, (m->layers + 1) * sequences, d->floats));
    INGOT_TRY(floats_of(d, &d->slope, sequences, d->floats));
    INGOT_TRY(floats_of(d, &d->x, d->per_call, d->floats));
    INGOT_TRY(floats_of(d, &d->exact, 1, d->floats));
    INGOT_TRY(floats_of(d, &d->normed, d->rows, m->hidden));
    INGOT_TRY(floats_of(d, &d->logits[0], d->rows, m->vocab));
    INGOT_TRY(floats_of(d, &d->logits[1], d->rows, m->vocab));
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *desc = &m->linear[role];
        if (desc->is_present && has_values(d, role)) {
            INGOT_TRY(floats_of(d, &d->values[role], desc->rows, desc->cols));
        }
        if (desc->is_present) {
            INGOT_TRY(floats_of(d, &d->slopes[role], desc->rows, desc->cols));
        }
    }
    for (uint64_t at = 0; at < m->layers; at++) {
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            learned *one = &d->layers[at].matrix[role];
            INGOT_TRY(one->is_kept ? place_learned(d, one) : INGOT_OK);
            if (one->is_kept && !one->is_fixed && d->learns_codes) {
                INGOT_TRY(begin_codes(d, one, at, (ingot_role)role, error));
            }
        }
    }
    INGOT_TRY(ingot_alloc_zero((void **)&d->divergence, d->rows, sizeof *d->divergence));
    INGOT_TRY(ingot_alloc_zero((void **)&d->order, d->batch->windows, sizeof *d->order));
    d->taken = d->batch->windows;
    INGOT_TRY(ingot_tape_create(&d->tape, m, d->job->backend, d->per_call * length, NULL));
    return ingot_ends_load(&d->ends, m, d->job->source, d->job->backend, d->ends_host, error);
}

/* ---- forward -------------------------------------------------------------------------------- */

static float *states_of(const ingot_distill *d, uint64_t at) {
    return d->states + at * d->way->sequences * d->floats;
}

/* The block with the values of its matrices as they are now. */
static ingot_status block_at(const ingot_distill *d, ingot_block *out, uint64_t at) {
    const layer *l = &d->layers[at];
    *out = l->block;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_quantized *q = &l->matrix[role].q;
        if (!l->matrix[role].is_kept) {
            continue;
        }
        if (ingot_backend_reads_codes(d->job->backend, q)) {
            out->linear[role] = ingot_codes_view(q);
            continue;
        }
        INGOT_TRY(d->ops->quantized_values(d->context, d->values[role], q));
        out->linear[role] = ingot_values_view(q, d->values[role]);
    }
    return INGOT_OK;
}

/* The states of `count` windows in front of every block and behind the last. */
static ingot_status run_forward(const ingot_distill *d, const uint32_t *windows, uint64_t count) {
    const uint64_t length = d->batch->length;
    for (uint64_t i = 0; i < count; i++) {
        INGOT_TRY(ingot_ends_embed(&d->ends, d->model, d->job->backend, d->states + i * d->floats,
                                   d->job->windows->ids + windows[i] * length, length));
    }
    for (uint64_t at = 0; at < d->model->layers; at++) {
        ingot_block block;
        float *to = states_of(d, at + 1);
        INGOT_TRY(block_at(d, &block, at));
        INGOT_TRY(
            d->ops->copy(d->context, to, states_of(d, at), count * d->floats * sizeof(float)));
        for (uint64_t i = 0; i < count; i += d->per_call) {
            INGOT_TRY(ingot_tape_forward(d->tape, &block, to + i * d->floats,
                                         ingot_min_u64(d->per_call, count - i), length));
        }
    }
    return INGOT_OK;
}

static ingot_status take_exact(const ingot_distill *d, uint64_t window) {
    const ingot_states *from = &d->batch->exact;
    const float *states = from->values + window * d->floats;
    const uint64_t bytes = d->floats * sizeof(float);
    return from->is_on_device ? d->ops->copy(d->context, d->exact, states, bytes)
                              : d->ops->upload(d->context, d->exact, states, bytes);
}

/* Logits of m tokens of both models, from the states behind the last block. */
static ingot_status make_logits(const ingot_distill *d, const float *x, const float *exact,
                                uint64_t m) {
    INGOT_TRY(
        ingot_ends_logits(&d->ends, d->model, d->job->backend, d->logits[1], exact, d->normed, m));
    return ingot_ends_logits(&d->ends, d->model, d->job->backend, d->logits[0], x, d->normed, m);
}

/* ---- backward ------------------------------------------------------------------------------- */

/* slope = gradient of the mean divergence of `count` windows by the states behind the last block.
 */
static ingot_status back_head(const ingot_distill *d, const uint32_t *windows, uint64_t count) {
    const ingot_model *m = d->model;
    const uint64_t length = d->batch->length;
    const float share = 1.0f / (float)(count * length);
    for (uint64_t i = 0; i < count; i++) {
        INGOT_TRY(take_exact(d, windows[i]));
        for (uint64_t row = 0; row < length; row += d->rows) {
            const uint64_t n = ingot_min_u64(d->rows, length - row);
            const float *x = states_of(d, m->layers) + i * d->floats + row * m->hidden;
            float *slope = d->slope + i * d->floats + row * m->hidden;
            INGOT_TRY(make_logits(d, x, d->exact + row * m->hidden, n));
            INGOT_TRY(d->ops->divergence_backward(d->context, d->logits[0], d->logits[1], share, n,
                                                  m->vocab));
            INGOT_TRY(
                d->ops->linear_backward(d->context, slope, &d->ends.head, d->logits[0], false, n));
            if (d->ends.final_norm != NULL) {
                INGOT_TRY(d->ops->norm_backward(d->context, slope, slope, x, d->ends.final_norm,
                                                m->norm, m->norm_eps, n, m->hidden));
            }
        }
    }
    return INGOT_OK;
}

/* Gradients of a block's matrices, of all windows, one step along them with the part `left` of the
 * rates, and slope in front of it. */
static ingot_status back_block(const ingot_distill *d, uint64_t at, uint64_t count, double left) {
    ingot_block block;
    float *wanted[INGOT_ROLE_COUNT] = {NULL};
    INGOT_TRY(block_at(d, &block, at));
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const learned *m = &d->layers[at].matrix[role];
        if (m->is_kept && !m->is_fixed) {
            wanted[role] = d->slopes[role];
            INGOT_TRY(
                d->ops->zero(d->context, wanted[role], m->q.rows * m->q.cols * sizeof(float)));
        }
    }
    for (uint64_t i = 0; i < count; i += d->per_call) {
        const uint64_t n = ingot_min_u64(d->per_call, count - i);
        const float *before = states_of(d, at) + i * d->floats;
        INGOT_TRY(d->ops->copy(d->context, d->x, before, n * d->floats * sizeof(float)));
        INGOT_TRY(ingot_tape_recall(d->tape, &block, d->x, n, d->batch->length));
        INGOT_TRY(ingot_tape_backward(d->tape, &block, d->slope + i * d->floats,
                                      at != 0 ? before : NULL, wanted));
    }
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        learned *m = &d->layers[at].matrix[role];
        if (wanted[role] == NULL) {
            continue;
        }
        if (d->learns_codes) {
            const ingot_tuning t = {m->position, m->gain, m->start};
            INGOT_TRY(d->ops->tuning_step(d->context, &t, &m->q, wanted[role],
                                          (float)(d->way->code_rate * left / d->way->steps),
                                          (float)(d->way->gain_rate * left)));
            INGOT_TRY(d->ops->tuning_round(d->context, &m->q, &t));
            continue;
        }
        INGOT_TRY(d->ops->zero(d->context, m->gradient, m->q.rows * m->q.groups * sizeof(float)));
        INGOT_TRY(d->ops->scale_backward(d->context, m->gradient, &m->q, wanted[role]));
        INGOT_TRY(d->ops->scale_step(d->context, &m->q, m->gain, m->start, m->gradient,
                                     (float)(d->way->gain_rate * left)));
    }
    return INGOT_OK;
}

/* ---- the way -------------------------------------------------------------------------------- */

/* The windows of the next step: all of them once, shuffled, before any comes again. */
static uint64_t draw_windows(ingot_distill *d, uint32_t windows[SEQUENCES_MOST]) {
    const uint64_t limit = d->batch->windows - d->batch->judges;
    const uint64_t count = ingot_min_u64(d->way->sequences, limit);
    if (d->taken + count > limit) {
        for (uint64_t i = 0; i < limit; i++) {
            d->order[i] = (uint32_t)i;
        }
        for (uint64_t i = limit - 1; i > 0; i--) {
            const uint64_t k = ingot_random_bits(&d->random) % (i + 1);
            const uint32_t kept = d->order[i];
            d->order[i] = d->order[k];
            d->order[k] = kept;
        }
        d->taken = 0;
    }
    memcpy(windows, d->order + d->taken, count * sizeof *windows);
    d->taken += count;
    return count;
}

static ingot_status step(ingot_distill *d, double left) {
    uint32_t windows[SEQUENCES_MOST];
    const uint64_t count = draw_windows(d, windows);
    INGOT_TRY(run_forward(d, windows, count));
    INGOT_TRY(back_head(d, windows, count));
    for (uint64_t at = d->model->layers; at-- > 0;) {
        INGOT_TRY(back_block(d, at, count, left));
    }
    return INGOT_OK;
}

/* Mean divergence on the windows that are held out. */
static ingot_status judge(const ingot_distill *d, double *mean) {
    const ingot_batch *b = d->batch;
    const ingot_model *m = d->model;
    double sum = 0;
    for (uint64_t first = b->windows - b->judges; first < b->windows; first += d->way->sequences) {
        const uint64_t count = ingot_min_u64(d->way->sequences, b->windows - first);
        uint32_t windows[SEQUENCES_MOST];
        for (uint64_t i = 0; i < count; i++) {
            windows[i] = (uint32_t)(first + i);
        }
        INGOT_TRY(run_forward(d, windows, count));
        for (uint64_t i = 0; i < count; i++) {
            INGOT_TRY(take_exact(d, windows[i]));
            for (uint64_t row = 0; row < b->length; row += d->rows) {
                const uint64_t n = ingot_min_u64(d->rows, b->length - row);
                const uint64_t skip = row * m->hidden;
                INGOT_TRY(make_logits(d, states_of(d, m->layers) + i * d->floats + skip,
                                      d->exact + skip, n));
                INGOT_TRY(d->ops->divergence(d->context, d->divergence, d->logits[1], d->logits[0],
                                             n, m->vocab));
                for (uint64_t k = 0; k < n; k++) {
                    sum += d->divergence[k];
                }
            }
        }
    }
    *mean = sum / (double)(b->judges * b->length);
    return INGOT_OK;
}

/* Of every matrix: best = what is at hand, or what is at hand = best. */
static ingot_status copy_best(const ingot_distill *d, bool is_back) {
    for (uint64_t at = 0; at < d->model->layers; at++) {
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            const learned *m = &d->layers[at].matrix[role];
            const ingot_quantized *q = &m->q;
            if (m->is_kept) {
                INGOT_TRY(d->ops->copy(d->context, is_back ? q->scales : m->best,
                                       is_back ? m->best : q->scales,
                                       q->rows * q->groups * sizeof(float)));
            }
            if (m->best_codes != NULL) {
                INGOT_TRY(d->ops->copy(d->context, is_back ? q->codes : m->best_codes,
                                       is_back ? m->best_codes : q->codes, q->rows * q->cols));
            }
        }
    }
    return INGOT_OK;
}

/* Makes what is at hand the result. */
static ingot_status keep(const ingot_distill *d, ingot_distill_result *result, unsigned at,
                         double loss) {
    result->before = at == 0 ? loss : result->before;
    result->after = loss;
    result->step = at;
    return copy_best(d, false);
}

/* What the divergence of an iterate must be below to be better than the start. */
static double limit_of(const ingot_distill *d, const ingot_distill_result *result, unsigned at) {
    const bool is_last = at == d->way->steps && d->learns_codes;
    return (is_last ? TOLERANCE : 1) * result->before;
}

/* The last iterate, unless the judges advise against it; then the best of those they have seen. */
static ingot_status descend(ingot_distill *d, ingot_distill_result *result, ingot_error *error) {
    const unsigned steps = d->way->steps;
    double loss;
    INGOT_TRY(judge(d, &loss));
    INGOT_TRY(keep(d, result, 0, loss));
    for (unsigned i = 1; i <= steps; i++) {
        INGOT_TRY(ingot_interrupt_check(error));
        INGOT_TRY(step(d, 1 - (double)(i - 1) / steps));
        if (i % d->way->judge_every != 0) {
            continue;
        }
        INGOT_TRY(judge(d, &loss));
        const bool is_last = i == steps && d->learns_codes;
        if (loss < (is_last ? limit_of(d, result, i) : result->after)) {
            INGOT_TRY(keep(d, result, i, loss));
        }
    }
    return copy_best(d, true);
}

/* ---- strays --------------------------------------------------------------------------------- */

/* *out = the weight error of a matrix as it is now.  Its source lies where its gradient did. */
static ingot_status measure_error(const ingot_distill *d, double *out, uint64_t at, ingot_role role,
                                  ingot_arena *host, ingot_arena *scratch, ingot_error *error) {
    const ingot_weight_source *source = d->job->source;
    const ingot_quantized *q = &d->layers[at].matrix[role].q;
    char name[INGOT_NAME_SIZE];
    ingot_weight_view view;
    double sums[2];
    ingot_arena_reset(host);
    ingot_arena_reset(scratch);
    ingot_model_linear_name(d->model, at, role, name);
    INGOT_TRY(source->load(source->self, name, host, &view, error));
    INGOT_TRY(d->ops->upload(d->context, d->slopes[role], view.data,
                             view.rows * view.cols * ingot_dtype_bytes(view.dtype)));
    view.data = d->slopes[role];
    INGOT_TRY(d->ops->weight_error(d->context, sums, &view, NULL, NULL, q, scratch));
    *out = ingot_weight_error_ratio(sums);
    return INGOT_OK;
}

static ingot_status go_to_start(const ingot_distill *d, learned *m) {
    const ingot_quantized *q = &m->q, *start = &m->kept;
    m->error = (double)NAN;
    INGOT_TRY(d->ops->upload(d->context, q->scales, start->scales,
                             q->rows * q->groups * sizeof *q->scales));
    return m->best_codes != NULL
               ? d->ops->upload(d->context, q->codes, start->codes, q->rows * q->cols)
               : INGOT_OK;
}

/* Matrices of the result that are too far from their source go to their start; *any: there are. */
static ingot_status fix_strays(const ingot_distill *d, bool *any, ingot_error *error) {
    ingot_arena *host = NULL, *scratch = NULL;
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_arena_create(&host));
    INGOT_GO(ingot_backend_arena_create(&scratch, d->job->backend));
    for (uint64_t at = 0; at < d->model->layers; at++) {
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            learned *m = &d->layers[at].matrix[role];
            if (!m->is_kept || m->is_fixed) {
                continue;
            }
            INGOT_GO(ingot_interrupt_check(error));
            INGOT_GO(measure_error(d, &m->error, at, (ingot_role)role, host, scratch, error));
            if (!(m->error <= m->bound)) {
                INGOT_GO(go_to_start(d, m));
                *any = true;
            }
        }
    }
done:
    ingot_arena_destroy(host);
    ingot_arena_destroy(scratch);
    return status;
}

/* Without its strays the result must still be better than the start; else that is the result. */
static ingot_status settle(const ingot_distill *d, ingot_distill_result *result,
                           ingot_error *error) {
    bool any = false;
    if (result->step == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(fix_strays(d, &any, error));
    if (!any) {
        return INGOT_OK;
    }
    INGOT_TRY(judge(d, &result->after));
    if (result->after < limit_of(d, result, result->step)) {
        return INGOT_OK;
    }
    for (uint64_t at = 0; at < d->model->layers; at++) {
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            learned *m = &d->layers[at].matrix[role];
            INGOT_TRY(m->is_kept ? go_to_start(d, m) : INGOT_OK);
        }
    }
    result->after = result->before;
    result->step = 0;
    return INGOT_OK;
}

/* What was learned, to where the matrices wait. */
static ingot_status bring_back(const ingot_distill *d) {
    for (uint64_t at = 0; at < d->model->layers; at++) {
        for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
            const learned *m = &d->layers[at].matrix[role];
            if (m->is_kept) {
                INGOT_TRY(d->ops->download(d->context, m->kept.scales, m->q.scales,
                                           m->q.rows * m->q.groups * sizeof(float)));
            }
            if (m->best_codes != NULL) {
                INGOT_TRY(
                    d->ops->download(d->context, m->kept.codes, m->q.codes, m->q.rows * m->q.cols));
            }
        }
    }
    return INGOT_OK;
}

/* Gives device memory back. */
static void leave(ingot_distill *d) {
    ingot_tape_destroy(d->tape);
    d->tape = NULL;
    ingot_ends_release(&d->ends, d->job->backend);
    ingot_arena_destroy(d->device);
    d->device = NULL;
}

ingot_status ingot_distill_run(ingot_distill_result *out, ingot_distill *d,
                               const ingot_batch *batch, ingot_error *error) {
    *out = (ingot_distill_result){0};
    d->batch = batch;
    ingot_status status = place_way(d, error);
    if (status == INGOT_ERR_NO_MEMORY) {
        leave(d);
        return INGOT_OK;
    }
    INGOT_GO(status);
    out->has_run = true;
    INGOT_GO(descend(d, out, error));
    INGOT_GO(settle(d, out, error));
    INGOT_GO(bring_back(d));
done:
    leave(d);
    return status;
}
