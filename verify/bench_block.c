/* One block of a model on a device (verify/bench_block.h). */
#include "verify/bench_block.h"

#include "calib/forward.h"
#include "common/memory.h"
#include "common/progress.h"
#include "common/random.h"
#include "common/sizes.h"

#include <math.h>

typedef struct subject {
    const ingot_model *model;
    const ingot_backend *backend;
    uint64_t sequences, length, tokens, widest;
    uint64_t width[INGOT_INPUT_COUNT]; /* 0: no linear reads it */
    ingot_block block;
    ingot_workspace *work;
    ingot_arena *host, *device;
    float *random;   /* [tokens][widest], host */
    float *x, *gram; /* device: [tokens][widest], [widest][widest] */
    uint64_t *dropped;
    ingot_error *error;
} subject;

static ingot_status place(subject *s, const ingot_weight_source *source) {
    const ingot_backend *b = s->backend;
    for (unsigned role = 0; role < INGOT_ROLE_COUNT; role++) {
        const ingot_linear_desc *d = &s->model->linear[role];
        if (d->is_present) {
            s->width[d->input] = d->cols;
            s->widest = ingot_max_u64(s->widest, d->cols);
        }
    }
    INGOT_TRY(ingot_arena_create(&s->host));
    INGOT_TRY(ingot_backend_arena_create(&s->device, b));
    INGOT_TRY(
        ingot_arena_array(s->host, (void **)&s->random, s->tokens * s->widest, sizeof *s->random));
    INGOT_TRY(ingot_arena_array(s->device, (void **)&s->x, s->tokens * s->widest, sizeof *s->x));
    INGOT_TRY(
        ingot_arena_array(s->device, (void **)&s->gram, s->widest * s->widest, sizeof *s->gram));
    INGOT_TRY(ingot_arena_alloc(s->device, (void **)&s->dropped, sizeof *s->dropped));
    uint64_t state = 1;
    for (uint64_t i = 0; i < s->tokens * s->widest; i++) {
        s->random[i] = ingot_random_signed(&state);
    }
    INGOT_TRY(ingot_block_load(&s->block, s->model, 0, source, b, s->host, s->error));
    return ingot_workspace_create(&s->work, s->model, b, s->tokens, s->error);
}

static ingot_status run_forward(const subject *s) {
    return ingot_block_forward(s->model, s->backend, &s->block, s->x, s->sequences, s->length, NULL,
                               s->work, NULL, NULL);
}

static ingot_status run_statistics(const subject *s) {
    const ingot_backend_ops *ops = s->backend->ops;
    for (unsigned i = 0; i < INGOT_INPUT_COUNT; i++) {
        if (s->width[i] != 0) {
            INGOT_TRY(ops->gram(s->backend->context, s->gram, NULL, s->dropped, s->x, s->tokens,
                                s->width[i]));
        }
    }
    return INGOT_OK;
}

/* Seconds of the fastest of the runs, after one to warm up; values are the same for each. */
static ingot_status time_best(double *seconds, const subject *s, unsigned runs,
                              ingot_status (*run)(const subject *s)) {
    const ingot_backend_ops *ops = s->backend->ops;
    void *context = s->backend->context;
    *seconds = (double)INFINITY;
    for (unsigned i = 0; i <= runs; i++) {
        INGOT_TRY(ops->upload(context, s->x, s->random, s->tokens * s->widest * sizeof *s->x));
        INGOT_TRY(ops->zero(context, s->gram, s->widest * s->widest * sizeof *s->gram));
        INGOT_TRY(ops->zero(context, s->dropped, sizeof *s->dropped));
        INGOT_TRY(ops->wait(context));
        const double start = ingot_clock_seconds();
        INGOT_TRY(run(s));
        INGOT_TRY(ops->wait(context));
        *seconds = i != 0 ? fmin(*seconds, ingot_clock_seconds() - start) : *seconds;
    }
    return INGOT_OK;
}

ingot_status ingot_bench_block_measure(ingot_bench_block *out, const ingot_model *model,
                                       const ingot_weight_source *source,
                                       const ingot_backend *backend, uint64_t length, unsigned runs,
                                       ingot_error *error) {
    subject s = {.model = model, .backend = backend, .length = length, .error = error};
    ingot_status status;
    s.sequences = ingot_max_u64(1, backend->batch_tokens / length);
    s.tokens = s.sequences * length;
    INGOT_GO(place(&s, source));
    INGOT_GO(time_best(&out->forward_seconds, &s, runs, run_forward));
    INGOT_GO(time_best(&out->statistics_seconds, &s, runs, run_statistics));
    out->forward_seconds /= (double)s.tokens;
    out->statistics_seconds /= (double)s.tokens;
done:
    ingot_workspace_destroy(s.work);
    ingot_block_release(&s.block, backend);
    ingot_arena_destroy(s.device);
    ingot_arena_destroy(s.host);
    return status;
}
