/* Block tuning (convert/tune.h). */
#include "convert/tune.h"

#include "calib/backward.h"
#include "common/files.h"
#include "common/memory.h"
#include "common/random.h"
#include "common/sizes.h"
#include "convert/suffix.h"
#include "kernels/codes.h"

#include <math.h>
#include <string.h>

#define STEPS       100u
#define SEQUENCES   8u  /* of a step */
#define GIVE_UP_AT  50u /* steps, where no iterate was better than the start by then */
#define JUDGE_EVERY 5u  /* steps; odd, since codes may change back and forth from step to step */
#define RATE        0.6 /* way of a position in all steps, in codes, times 2 */
#define GAIN_RATE   0.3 /* of a gain, likewise */
#define TAPE_BYTES  (UINT64_C(4) << 30)
/* Of the judges, on which a result is held against its start. */
#define GUARD_TOKENS UINT64_C(8192)

/* What the functions below share. */
typedef struct tuner {
    const ingot_tune_job *job;
    const ingot_backend_ops *ops;
    void *context;
    const ingot_model *model;
    const ingot_batch *batch;
    uint64_t per_call;     /* sequences the tape holds */
    uint64_t floats;       /* of a window's states */
    ingot_arena *kept;     /* device: what is needed to the end */
    ingot_arena *learning; /* device: what the steps alone need */
    ingot_arena *call;     /* device: of one operation, which leaves nothing in it */
    ingot_tape *tape;
    ingot_block block; /* its linears have the values of the codes at hand */
    float *x, *target; /* [per_call][length][hidden]; the target is normalized */
    float *normed;     /* likewise */
    float *weight;     /* [hidden]: of the norm that reads the block's output; else ones */
    ingot_norm_kind norm;
    struct matrix {
        ingot_quantized *q;
        ingot_quantized best;  /* codes and scales of the best iterate */
        ingot_quantized start; /* and of the start */
        ingot_tuning tuning;
        float *values; /* NULL where products read the codes */
        float *gradient;
    } matrix[INGOT_ROLE_COUNT];
    float *gradient[INGOT_ROLE_COUNT];
    uint64_t random;
} tuner;

/* ---- memory --------------------------------------------------------------------------------- */

static uint64_t tape_floats(const ingot_model *m) {
    return 6 * m->hidden + 5 * m->heads * m->head_dim + 6 * m->kv_heads * m->head_dim + 4 * m->ffn;
}

static uint64_t sequences_per_call(const ingot_model *model, uint64_t length,
                                   uint64_t batch_tokens) {
    const uint64_t tokens =
        ingot_min_u64(TAPE_BYTES / (tape_floats(model) * sizeof(float)), batch_tokens);
    return ingot_max_u64(1, ingot_min_u64(tokens / length, SEQUENCES));
}

ingot_learning_work ingot_tune_work(uint64_t windows, uint64_t length, uint64_t judges) {
    const double taken = (double)(ingot_min_u64(SEQUENCES, windows - judges) * length);
    const double judged = (double)(judges * length);
    return (ingot_learning_work){.steps = STEPS,
                                 .pass_tokens = (1 + (double)STEPS / JUDGE_EVERY) * judged,
                                 .learn_tokens = STEPS * taken,
                                 .behind_tokens =
                                     3 * (double)ingot_min_u64(judges * length, GUARD_TOKENS)};
}

uint64_t ingot_tune_bytes(const ingot_model *model, uint64_t length) {
    uint64_t bytes = 0;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        /* position, gradient, two sets of codes, scales; values where no product reads codes */
        const uint64_t each = model->linear[role].cols % 8 == 0 ? 12 : 16;
        bytes += each * model->linear[role].rows * model->linear[role].cols;
    }
    const uint64_t tokens = sequences_per_call(model, length, UINT64_MAX / sizeof(float)) * length;
    return 4 * tokens * (tape_floats(model) + 3 * model->hidden) + bytes;
}

static ingot_status floats_of(float **out, ingot_arena *arena, uint64_t rows, uint64_t cols) {
    return ingot_arena_array(arena, (void **)out, rows, cols * sizeof(float));
}

static ingot_status begin_matrix(tuner *t, unsigned role) {
    ingot_arena *arena = t->learning;
    struct matrix *m = &t->matrix[role];
    ingot_quantized *q = m->q = t->job->linear[role];
    if (q == NULL) {
        return INGOT_OK;
    }
    t->block.linear[role] = ingot_codes_view(q);
    if (!ingot_backend_reads_codes(t->job->loop->backend, q)) {
        INGOT_TRY(floats_of(&m->values, arena, q->rows, q->cols));
        INGOT_TRY(t->ops->quantized_values(t->context, m->values, q));
        t->block.linear[role] = ingot_values_view(q, m->values);
    }
    if (t->job->is_fixed[role]) {
        m->q = NULL;
        return INGOT_OK;
    }
    INGOT_TRY(floats_of(&m->tuning.position, arena, q->rows, q->cols));
    INGOT_TRY(floats_of(&m->tuning.gain, arena, q->rows, q->groups));
    INGOT_TRY(floats_of(&m->tuning.start_scale, arena, q->rows, q->groups));
    INGOT_TRY(floats_of(&m->gradient, arena, q->rows, q->cols));
    INGOT_TRY(ingot_quantized_create(&m->best, q->rows, q->cols, &q->format, t->kept));
    INGOT_TRY(ingot_quantized_create(&m->start, q->rows, q->cols, &q->format, t->kept));
    INGOT_TRY(t->ops->tuning_begin(t->context, &m->tuning, q, t->job->target[role]));
    t->gradient[role] = m->gradient;
    return INGOT_OK;
}

/* ---- windows -------------------------------------------------------------------------------- */

/* to[length][hidden] (device) = states of a window. */
static ingot_status take_window(const tuner *t, float *to, const ingot_states *from,
                                uint64_t window) {
    const float *states = from->values + window * t->floats;
    const uint64_t bytes = t->floats * sizeof *to;
    return from->is_on_device ? t->ops->copy(t->context, to, states, bytes)
                              : t->ops->upload(t->context, to, states, bytes);
}

/* y[m][hidden] = x as the norm of what follows puts it out. */
static ingot_status normalize(const tuner *t, float *y, const float *x, uint64_t sequences) {
    return t->ops->norm(t->context, y, x, t->weight, NULL, t->norm, t->model->norm_eps,
                        sequences * t->batch->length, t->model->hidden);
}

/* x and target = what the block reads and should put out, normalized, for `count` windows. */
static ingot_status take_windows(const tuner *t, const uint64_t *windows, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        INGOT_TRY(take_window(t, t->x + i * t->floats, &t->batch->prefix, windows[i]));
        INGOT_TRY(take_window(t, t->target + i * t->floats, &t->batch->exact, windows[i]));
    }
    return normalize(t, t->target, t->target, count);
}

/* Different windows below `limit` (all of them when there are fewer), by the seed. */
static uint64_t draw_windows(tuner *t, uint64_t windows[SEQUENCES], uint64_t limit) {
    const uint64_t count = ingot_min_u64(SEQUENCES, limit);
    for (uint64_t i = 0; i < count;) {
        windows[i] = ingot_random_bits(&t->random) % limit;
        bool is_new = true;
        for (uint64_t k = 0; k < i; k++) {
            is_new = is_new && windows[k] != windows[i];
        }
        i += is_new;
    }
    return count;
}

/* ---- one step ------------------------------------------------------------------------------- */

static ingot_status values_of_all(const tuner *t) {
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const struct matrix *m = &t->matrix[role];
        if (m->q != NULL && m->values != NULL) {
            INGOT_TRY(t->ops->quantized_values(t->context, m->values, m->q));
        }
    }
    return INGOT_OK;
}

/* Codes, scales and values of the positions and gains at hand. */
static ingot_status round_all(const tuner *t) {
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const struct matrix *m = &t->matrix[role];
        if (m->q != NULL) {
            INGOT_TRY(t->ops->tuning_round(t->context, m->q, &m->tuning));
        }
    }
    return values_of_all(t);
}

static ingot_status add_gradients(const tuner *t, const uint64_t *windows, uint64_t count) {
    for (uint64_t first = 0; first < count; first += t->per_call) {
        const uint64_t n = ingot_min_u64(t->per_call, count - first);
        INGOT_TRY(take_windows(t, windows + first, n));
        INGOT_TRY(ingot_tape_forward(t->tape, &t->block, t->x, n, t->batch->length));
        /* half the sum of squares of normalized differences, and back through the norm */
        INGOT_TRY(normalize(t, t->normed, t->x, n));
        INGOT_TRY(t->ops->add(t->context, t->normed, t->target, -1.0f, n * t->floats));
        INGOT_TRY(t->ops->norm_backward(t->context, t->normed, t->normed, t->x, t->weight, t->norm,
                                        t->model->norm_eps, n * t->batch->length,
                                        t->model->hidden));
        INGOT_TRY(ingot_tape_backward(t->tape, &t->block, t->normed, NULL, t->gradient));
    }
    return INGOT_OK;
}

static ingot_status step_all(tuner *t, float rate, float gain_rate) {
    uint64_t windows[SEQUENCES];
    const uint64_t count = draw_windows(t, windows, t->batch->windows - t->batch->judges);
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const struct matrix *m = &t->matrix[role];
        if (m->q != NULL) {
            INGOT_TRY(t->ops->zero(t->context, m->gradient,
                                   m->q->rows * m->q->cols * sizeof *m->gradient));
        }
    }
    INGOT_TRY(add_gradients(t, windows, count));
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const struct matrix *m = &t->matrix[role];
        if (m->q != NULL) {
            INGOT_TRY(
                t->ops->tuning_step(t->context, &m->tuning, m->q, m->gradient, rate, gain_rate));
        }
    }
    return INGOT_OK;
}

/* Mean squared error of the block's normalized output on the windows that are held out. */
static ingot_status judge(const tuner *t, double *loss) {
    const ingot_batch *b = t->batch;
    double sum = 0;
    for (uint64_t first = b->windows - b->judges; first < b->windows; first += t->per_call) {
        const uint64_t n = ingot_min_u64(t->per_call, b->windows - first);
        uint64_t windows[SEQUENCES];
        double part;
        for (uint64_t i = 0; i < n; i++) {
            windows[i] = first + i;
        }
        INGOT_TRY(take_windows(t, windows, n));
        INGOT_TRY(ingot_tape_forward(t->tape, &t->block, t->x, n, b->length));
        INGOT_TRY(normalize(t, t->x, t->x, n));
        INGOT_TRY(t->ops->distance(t->context, &part, t->x, t->target, n * t->floats));
        sum += part;
    }
    *loss = sum / (double)(b->judges * t->floats);
    return INGOT_OK;
}

/* to = codes and scales of from. */
static ingot_status copy_codes(const tuner *t, const ingot_quantized *to,
                               const ingot_quantized *from) {
    INGOT_TRY(t->ops->copy(t->context, to->codes, from->codes, from->rows * from->cols));
    return t->ops->copy(t->context, to->scales, from->scales,
                        from->rows * from->groups * sizeof *from->scales);
}

/* Matrices of the iterate at hand that are too far from their source go back to their start and
 * stay there: gains that make up for what others lack take scales further than many bits allow.
 * The start is then the best there is. */
static ingot_status fix_strays(tuner *t, ingot_tune_result *result, bool *any) {
    *any = false;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        struct matrix *m = &t->matrix[role];
        bool strays = false;
        if (m->q != NULL && t->job->made_by[role] != NULL) {
            INGOT_TRY(ingot_linear_strays(&strays, t->job->made_by[role], t->job->bound[role], m->q,
                                          t->call));
        }
        if (!strays) {
            continue;
        }
        INGOT_TRY(copy_codes(t, m->q, &m->start));
        if (m->values != NULL) {
            INGOT_TRY(t->ops->quantized_values(t->context, m->values, m->q));
        }
        m->q = NULL;
        t->gradient[role] = NULL;
        *any = true;
    }
    for (unsigned role = 0; role < INGOT_ROLE_COUNT && *any; role++) {
        const struct matrix *m = &t->matrix[role];
        if (m->q != NULL) {
            INGOT_TRY(copy_codes(t, &m->best, &m->start));
        }
    }
    if (*any) {
        result->after = result->before;
        result->step = 0;
    }
    return INGOT_OK;
}

/* Keeps the iterate at hand when it is the best so far, by the judges, and no matrix strays. */
static ingot_status consider(tuner *t, ingot_tune_result *result, unsigned step) {
    double loss;
    bool strays = true;
    while (strays) {
        strays = false;
        INGOT_TRY(judge(t, &loss));
        if (step != 0 && !(loss < result->after)) {
            return INGOT_OK;
        }
        if (step != 0) {
            INGOT_TRY(fix_strays(t, result, &strays));
        }
    }
    result->before = step == 0 ? loss : result->before;
    result->after = loss;
    result->step = step;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const struct matrix *m = &t->matrix[role];
        if (m->q != NULL) {
            INGOT_TRY(copy_codes(t, &m->best, m->q));
        }
    }
    return INGOT_OK;
}

/* All linears become those of the best iterate, or of the start. */
static ingot_status choose(const tuner *t, bool is_best) {
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const struct matrix *m = &t->matrix[role];
        if (m->q != NULL) {
            INGOT_TRY(copy_codes(t, m->q, is_best ? &m->best : &m->start));
        }
    }
    return INGOT_OK;
}

/* What the block that was chosen puts out for `count` windows from `first` on. */
static ingot_status put_out(const tuner *t, float *out, uint64_t first, uint64_t count) {
    INGOT_TRY(values_of_all(t));
    for (uint64_t i = 0; i < count; i += t->per_call) {
        const uint64_t n = ingot_min_u64(t->per_call, count - i);
        for (uint64_t k = i; k < i + n; k++) {
            INGOT_TRY(take_window(t, out + k * t->floats, &t->batch->prefix, first + k));
        }
        INGOT_TRY(ingot_tape_forward(t->tape, &t->block, out + i * t->floats, n, t->batch->length));
    }
    return INGOT_OK;
}

/* Makes room for the rest of the model. */
static void forget_learning(tuner *t) {
    ingot_tape_destroy(t->tape);
    ingot_arena_destroy(t->learning);
    ingot_arena_destroy(t->call);
    t->tape = NULL;
    t->learning = t->call = NULL;
}

/* A block nearer to its target may lead the blocks behind it astray: the result is kept only where
 * it lowers the divergence of the model with exact blocks behind it, too. */
static ingot_status guard(tuner *t, ingot_tune_result *result, ingot_error *error) {
    const ingot_batch *b = t->batch;
    const uint64_t count = ingot_min_u64(b->judges, ingot_ceil_div(GUARD_TOKENS, b->length));
    const uint64_t first = b->windows - count;
    float *states;
    if (result->step == 0) {
        return choose(t, false);
    }
    if (t->job->ahead != NULL) {
        INGOT_TRY(ingot_prefetch_begin(t->job->ahead, t->job->block->layer + 1, error));
    }
    INGOT_TRY(floats_of(&states, t->kept, 3 * count, t->floats));
    INGOT_TRY(choose(t, true));
    INGOT_TRY(put_out(t, states, first, count));
    INGOT_TRY(choose(t, false));
    INGOT_TRY(put_out(t, states + count * t->floats, first, count));
    for (uint64_t i = 0; i < count; i++) {
        INGOT_TRY(take_window(t, states + (2 * count + i) * t->floats, &b->exact, first + i));
    }
    forget_learning(t);
    INGOT_TRY(ingot_suffix_divergence(result->divergence, t->job->loop, t->job->ahead, states,
                                      t->job->block->layer, count, b->length, t->kept, error));
    if (result->divergence[0] < result->divergence[1]) {
        return choose(t, true);
    }
    result->step = 0;
    result->after = result->before;
    return INGOT_OK;
}

static ingot_status descend(tuner *t, ingot_tune_result *result, ingot_error *error) {
    INGOT_TRY(consider(t, result, 0));
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const struct matrix *m = &t->matrix[role];
        if (m->q != NULL) {
            INGOT_TRY(copy_codes(t, &m->start, m->q));
        }
    }
    for (unsigned step = 0; step < STEPS; step++) {
        INGOT_TRY(ingot_interrupt_check(error));
        INGOT_TRY(round_all(t));
        if (step != 0 && step % JUDGE_EVERY == 0) {
            INGOT_TRY(consider(t, result, step));
        }
        if (step == GIVE_UP_AT && result->step == 0) {
            return INGOT_OK; /* decision 0036 */
        }
        const double left = (1 - (double)step / STEPS) / STEPS;
        INGOT_TRY(step_all(t, (float)(RATE * left), (float)(GAIN_RATE * left)));
    }
    INGOT_TRY(round_all(t));
    return consider(t, result, STEPS);
}

/* The weight of the norm that reads the block's output: what it makes small is of little account.
 */
static ingot_status load_weight(const tuner *t, ingot_error *error) {
    const ingot_model *m = t->model;
    const uint64_t next = t->job->block->layer + 1;
    char name[INGOT_NAME_SIZE];
    void *memory;
    ingot_arena *host = NULL;
    float *weight = NULL;
    bool has_norm = m->final_norm_name != NULL;
    if (next < m->layers) {
        has_norm = ingot_model_norm_name(m, next, INGOT_SLOT_ATTENTION, name);
    } else if (has_norm) {
        (void)snprintf(name, sizeof name, "%s", m->final_norm_name);
    }
    INGOT_TRY(ingot_arena_create(&host));
    ingot_status status = ingot_arena_alloc(host, &memory, m->hidden * sizeof *weight);
    if (status == INGOT_OK && has_norm) {
        status = ingot_vector_load(&weight, name, m->hidden, t->job->loop->source, host, error);
    } else if (status == INGOT_OK) {
        weight = memory;
        for (uint64_t i = 0; i < m->hidden; i++) {
            weight[i] = 1.0f;
        }
    }
    if (status == INGOT_OK) {
        status = t->ops->upload(t->context, t->weight, weight, m->hidden * sizeof *weight);
    }
    ingot_arena_destroy(host);
    return status;
}

static ingot_status run(tuner *t, ingot_tune_result *result, ingot_error *error) {
    const ingot_backend *backend = t->job->loop->backend;
    const uint64_t length = t->batch->length;
    INGOT_TRY(ingot_backend_arena_create(&t->kept, backend));
    INGOT_TRY(ingot_backend_arena_create(&t->learning, backend));
    INGOT_TRY(ingot_backend_arena_create(&t->call, backend));
    ingot_arena *arena = t->learning;
    INGOT_TRY(floats_of(&t->x, arena, t->per_call, t->floats));
    INGOT_TRY(floats_of(&t->target, arena, t->per_call, t->floats));
    INGOT_TRY(floats_of(&t->normed, arena, t->per_call, t->floats));
    INGOT_TRY(floats_of(&t->weight, arena, 1, t->model->hidden));
    INGOT_TRY(load_weight(t, error));
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        INGOT_TRY(begin_matrix(t, role));
    }
    INGOT_TRY(ingot_tape_create(&t->tape, t->model, backend, t->per_call * length, error));
    INGOT_TRY(descend(t, result, error));
    return guard(t, result, error);
}

ingot_status ingot_tune_block(ingot_tune_result *out, const ingot_tune_job *job,
                              ingot_error *error) {
    const ingot_backend *backend = job->loop->backend;
    const ingot_model *model = job->loop->model;
    tuner t = {.job = job,
               .ops = backend->ops,
               .context = backend->context,
               .model = model,
               .batch = job->batch,
               .per_call = sequences_per_call(model, job->batch->length, backend->batch_tokens),
               .floats = job->batch->length * model->hidden,
               .norm = model->norm == INGOT_NORM_LAYER ? INGOT_NORM_LAYER : INGOT_NORM_RMS,
               .block = *job->block,
               .random = job->loop->seed ^ (job->block->layer + 1) * 0xD1B54A32D192ED03u};
    *out = (ingot_tune_result){0};
    const ingot_status status = run(&t, out, error);
    forget_learning(&t);
    ingot_arena_destroy(t.kept);
    return status;
}
