/* Statistics of a block's inputs (convert/collect.h). */
#include "convert/collect.h"

/* What is summed over one set of windows. */
typedef struct sums {
    float *gram[INGOT_INPUT_COUNT]; /* device; NULL: not wanted */
    double *magnitude[INGOT_INPUT_COUNT];
    float *drift[INGOT_INPUT_COUNT]; /* [drift_rows][n] */
    uint64_t tokens[INGOT_INPUT_COUNT];
} sums;

typedef struct collector {
    ingot_block_state *state;
    const ingot_loop_job *job;
    const ingot_rank *rank;
    const ingot_backend_ops *ops;
    void *context;
    ingot_batch *batch;
    unsigned inputs;
    bool is_for_folds, wants_magnitudes;
    ingot_arena *host, *scratch;
    sums fitted, judged; /* statistics; held out */
    sums *now;
    uint64_t *dropped; /* [INGOT_INPUT_COUNT], device */
    ingot_error *error;
} collector;

/* Statistics are of inputs without folds; those of a linear whose rows are folded by now are
 * smaller by the fold. */
static ingot_status unfold(const float **x, const collector *c, ingot_input input, uint64_t m,
                           uint64_t width) {
    const ingot_input_state *s = &c->state->input[input];
    const ingot_weight_view folded = {
        .kind = INGOT_DENSE, .rows = m, .cols = width, .dtype = INGOT_F32, .data = *x};
    uint64_t bad; /* left out and counted by what follows */
    if (s->fold == NULL || !s->is_of_linear) {
        return INGOT_OK;
    }
    *x = c->batch->unfolded;
    return c->ops->values(c->context, c->batch->unfolded, &bad, &folded, NULL, s->device_fold);
}

static ingot_status add_gram(collector *c, ingot_input input, const float *x, uint64_t m,
                             uint64_t width) {
    sums *s = c->now;
    s->tokens[input] += m;
    return c->ops->gram(c->context, s->gram[input], s->magnitude[input], c->dropped + input, x, m,
                        width);
}

static ingot_status collect_input(void *context, ingot_input input, const float *x, uint64_t m,
                                  uint64_t width) {
    collector *c = context;
    if (c->now->gram[input] == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(unfold(&x, c, input, m, width));
    return add_gram(c, input, x, m, width);
}

/* Of inputs that one linear alone reads, the drift of its output is wanted (convert/correct.h). */
static bool is_of_output(unsigned input) {
    return input == INGOT_INPUT_OUTPUT || input == INGOT_INPUT_DOWN;
}

static uint64_t drift_rows(const collector *c, unsigned input, uint64_t n) {
    return is_of_output(input) ? c->job->model->hidden : n;
}

/* out[hidden][n] += (y' - y) x^T: W times the drift of the input, plus that of the stream. */
static ingot_status add_output_drift(const collector *c, float *out, ingot_input input,
                                     const ingot_pair_inputs *in, uint64_t m, uint64_t n) {
    const ingot_role role = input == INGOT_INPUT_OUTPUT ? INGOT_ROLE_O : INGOT_ROLE_DOWN;
    const uint64_t hidden = c->job->model->hidden;
    const bool has_residual = c->state->input[input].has_residual;
    INGOT_TRY(c->ops->add(c->context, in->exact, in->prefix, -1.0f, m * n));
    INGOT_TRY(c->ops->linear(c->context, in->scratch, &c->state->checkpoint.linear[role], NULL,
                             in->exact, m));
    if (has_residual) {
        INGOT_TRY(c->ops->add(c->context, in->scratch, in->exact_residual, 1.0f, m * hidden));
    }
    return c->ops->drift(c->context, out, in->scratch, has_residual ? in->prefix_residual : NULL,
                         in->prefix, m, hidden, n);
}

static ingot_status collect_pair(void *context, ingot_input input, const ingot_pair_inputs *in,
                                 uint64_t m, uint64_t width) {
    collector *c = context;
    const sums *s = c->now;
    ingot_pair_inputs plain = *in;
    if (s->gram[input] == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(unfold(&plain.prefix, c, input, m, width));
    INGOT_TRY(add_gram(c, input, plain.prefix, m, width));
    if (s->drift[input] == NULL) {
        return INGOT_OK;
    }
    return is_of_output(input) ? add_output_drift(c, s->drift[input], input, &plain, m, width)
                               : c->ops->drift(c->context, s->drift[input], plain.exact,
                                               plain.prefix, plain.prefix, m, width, width);
}

static ingot_status zeroed(const collector *c, ingot_arena *arena, void **out, uint64_t count,
                           uint64_t size) {
    INGOT_TRY(ingot_arena_array(arena, out, count, size));
    return c->ops->zero(c->context, *out, count * size);
}

static ingot_status place_sums(const collector *c, sums *s) {
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        const ingot_input_state *input = &c->state->input[i];
        const uint64_t n = input->width;
        if (!input->is_present || (c->inputs & INGOT_INPUT_BIT(i)) == 0) {
            continue;
        }
        INGOT_TRY(zeroed(c, s == &c->fitted ? input->memory : input->solving, (void **)&s->gram[i],
                         n, n * sizeof(float)));
        if (c->wants_magnitudes && s == &c->fitted) {
            INGOT_TRY(zeroed(c, c->scratch, (void **)&s->magnitude[i], n, sizeof(double)));
        }
        if (input->is_corrected && !c->is_for_folds) {
            INGOT_TRY(zeroed(c, input->solving, (void **)&s->drift[i], drift_rows(c, i, n),
                             n * sizeof(float)));
        }
    }
    return INGOT_OK;
}

static ingot_status run(collector *c, uint64_t first, uint64_t end, bool is_last) {
    unsigned last = 0, wanted = 0;
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        last = c->now->gram[i] != NULL ? i : last;
        wanted |= c->now->gram[i] != NULL ? INGOT_INPUT_BIT(i) : 0;
    }
    if (c->batch->exact.values != NULL && !c->is_for_folds) {
        const ingot_pair_use use = {.wanted = wanted,
                                    .last = (ingot_input)last,
                                    .advances = is_last,
                                    .hook = collect_pair,
                                    .hook_context = c};
        return ingot_batch_run_pair(c->batch, c->job, &c->state->checkpoint, &c->state->block,
                                    first, end, &use, c->error);
    }
    const ingot_batch_use use = {
        .hook = collect_input, .hook_context = c, .stops = true, .last = (ingot_input)last};
    return ingot_batch_run(c->batch, c->job, &c->state->block, first, end, &use, c->error);
}

/* ---- what follows from the sums ------------------------------------------------------------- */

static ingot_status take_magnitude(const collector *c, ingot_input_state *s, unsigned input) {
    double *total;
    if (c->fitted.magnitude[input] == NULL) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_array(c->host, (void **)&total, s->width, sizeof *total));
    INGOT_TRY(ingot_arena_array(c->host, (void **)&s->magnitude, s->width, sizeof(float)));
    INGOT_TRY(
        c->ops->download(c->context, total, c->fitted.magnitude[input], s->width * sizeof *total));
    INGOT_TRY(ingot_team_sum_host(c->rank, total, s->width));
    for (uint64_t j = 0; j < s->width; j++) {
        s->magnitude[j] = s->tokens != 0 ? (float)(total[j] / (double)s->tokens) : 0.0f;
    }
    return INGOT_OK;
}

/* x becomes x H^-1; *solves: a damping was found. */
static ingot_status solve(const collector *c, bool *solves, float *x, uint64_t rows,
                          const float *gram, uint64_t n) {
    unsigned step;
    ingot_arena_reset(c->scratch);
    INGOT_TRY(c->ops->gram_solve(c->context, x, &step, rows, gram, n, c->scratch));
    *solves = *solves && step != 255;
    return INGOT_OK;
}

/* The correction fitted without the judges, then H and drift of all windows and the correction of
 * these.  Where no damping makes H positive definite there is no correction. */
static ingot_status take_drift(const collector *c, ingot_input_state *s, unsigned input) {
    const uint64_t n = s->width, rows = drift_rows(c, input, n);
    float *drift = c->fitted.drift[input], *fitted;
    uint64_t first = 0, own = rows; /* those that this device quantizes */
    const float *judge_gram = c->judged.gram[input];
    ingot_drift *d = &s->drift;
    bool solves = true;
    INGOT_TRY(ingot_arena_array(s->solving, (void **)&fitted, rows, n * sizeof *fitted));
    if (is_of_output(input) && !s->has_outliers) {
        (void)ingot_team_rows(&first, &own, c->rank, rows);
    }
    const uint64_t at = first * n;
    INGOT_TRY(c->ops->copy(c->context, fitted + at, drift + at, own * n * sizeof *fitted));
    INGOT_TRY(solve(c, &solves, fitted + at, own, s->gram, n));
    INGOT_TRY(c->ops->add(c->context, s->gram, judge_gram, 1.0f, n * n));
    INGOT_TRY(c->ops->add(c->context, drift, c->judged.drift[input], 1.0f, rows * n));
    INGOT_TRY(solve(c, &solves, drift + at, own, s->gram, n));
    *d = (ingot_drift){.is_of_output = is_of_output(input),
                       .solved = solves ? drift : NULL,
                       .fitted = fitted,
                       .judge_gram = judge_gram,
                       .judge_drift = c->judged.drift[input]};
    return INGOT_OK;
}

/* Over the windows of all devices; the judges are the same on every one. */
static ingot_status sum_over_devices(const collector *c, unsigned input, uint64_t n) {
    float *drift = c->fitted.drift[input];
    ingot_arena_reset(c->scratch);
    INGOT_TRY(ingot_team_sum(c->rank, c->fitted.gram[input], n * n, c->scratch));
    return drift == NULL ? INGOT_OK
                         : ingot_team_sum(c->rank, drift, drift_rows(c, input, n) * n, c->scratch);
}

static ingot_status take_statistics(const collector *c, unsigned input) {
    ingot_input_state *s = &c->state->input[input];
    const uint64_t n = s->width;
    INGOT_TRY(sum_over_devices(c, input, n));
    s->plain_gram = s->gram = c->fitted.gram[input];
    INGOT_TRY(c->ops->gram_fold(c->context, s->gram, s->gram, NULL, n));
    if (c->judged.gram[input] != NULL) {
        INGOT_TRY(
            c->ops->gram_fold(c->context, c->judged.gram[input], c->judged.gram[input], NULL, n));
    }
    return c->fitted.drift[input] != NULL ? take_drift(c, s, input) : INGOT_OK;
}

/* Nothing is known of an input: named by the first linear that reads it. */
static ingot_status no_rows_error(const collector *c, unsigned input) {
    const ingot_model *model = c->job->model;
    char name[INGOT_NAME_SIZE] = "";
    for (unsigned role = 0; role < INGOT_ROLE_COUNT && name[0] == '\0'; role++) {
        const ingot_linear_desc *d = &model->linear[role];
        if (d->is_present && (unsigned)d->input == input) {
            ingot_model_linear_name(model, c->state->layer, (ingot_role)role, name);
        }
    }
    return ingot_error_set(c->error, INGOT_ERR_NUMERIC, c->job->source->path, name,
                           "look for NaN or infinite weights",
                           "every activation row that it reads has a value that is not finite");
}

static ingot_status collect(collector *c, bool is_last) {
    ingot_batch *batch = c->batch;
    uint64_t dropped[INGOT_INPUT_COUNT];
    double tokens[INGOT_INPUT_COUNT];
    const uint64_t judges = batch->judges, fitted = batch->windows - judges;
    const bool has_judges = judges != 0 && batch->exact.values != NULL && !c->is_for_folds;
    ingot_arena_reset(c->scratch);
    INGOT_TRY(zeroed(c, c->scratch, (void **)&c->dropped, INGOT_INPUT_COUNT, sizeof *dropped));
    INGOT_TRY(place_sums(c, &c->fitted));
    c->now = &c->fitted;
    INGOT_TRY(run(c, 0, fitted, is_last));
    INGOT_TRY(c->ops->download(c->context, dropped, c->dropped, sizeof dropped));
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        tokens[i] = (double)(c->fitted.tokens[i] - dropped[i]);
    }
    INGOT_TRY(ingot_team_sum_host(c->rank, tokens, INGOT_INPUT_COUNT));
    INGOT_TRY(c->ops->zero(c->context, c->dropped, sizeof dropped));
    if (has_judges) {
        INGOT_TRY(place_sums(c, &c->judged));
        c->now = &c->judged;
        INGOT_TRY(run(c, fitted, batch->windows, is_last));
    }
    INGOT_TRY(c->ops->download(c->context, dropped, c->dropped, sizeof dropped));
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        ingot_input_state *input = &c->state->input[i];
        if (c->fitted.gram[i] != NULL) { /* while scratch holds the magnitudes */
            input->tokens = (uint64_t)tokens[i] + c->judged.tokens[i] - dropped[i];
            if (input->tokens == 0) {
                return no_rows_error(c, i);
            }
            INGOT_TRY(take_magnitude(c, input, i));
        }
    }
    ingot_batch_rest(batch, c->job->backend); /* solving needs as much */
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        if (c->fitted.gram[i] != NULL) {
            INGOT_TRY(take_statistics(c, i));
        }
    }
    return INGOT_OK;
}

static collector collector_of(ingot_block_state *state, const ingot_loop_job *job,
                              const ingot_rank *rank, ingot_batch *batch, ingot_arena *host,
                              ingot_arena *scratch, ingot_error *error) {
    return (collector){.state = state,
                       .job = job,
                       .rank = rank,
                       .ops = job->backend->ops,
                       .context = job->backend->context,
                       .batch = batch,
                       .host = host,
                       .scratch = scratch,
                       .error = error};
}

ingot_status ingot_collect(ingot_block_state *state, const ingot_loop_job *job,
                           const ingot_rank *rank, ingot_batch *batch, unsigned inputs,
                           bool is_last, ingot_arena *host, ingot_arena *scratch,
                           ingot_error *error) {
    const ingot_plan *plan = job->plan;
    collector c = collector_of(state, job, rank, batch, host, scratch, error);
    c.inputs = inputs;
    c.wants_magnitudes = plan->has_folds && !plan->steps.is_sequential;
    return collect(&c, is_last);
}

ingot_status ingot_collect_for_folds(ingot_block_state *state, const ingot_loop_job *job,
                                     const ingot_rank *rank, ingot_batch *batch, ingot_arena *host,
                                     ingot_arena *scratch, ingot_error *error) {
    collector c = collector_of(state, job, rank, batch, host, scratch, error);
    c.inputs = INGOT_INPUT_ALL;
    c.is_for_folds = c.wants_magnitudes = true;
    return collect(&c, false);
}
