/* The rest of the model behind a block (convert/suffix.h). */
#include "convert/suffix.h"

#include "common/files.h"
#include "common/memory.h"
#include "common/sizes.h"

#include <string.h>

#define LOGITS_BYTES (UINT64_C(512) << 20) /* of a chunk, per model */

/* states[sequences][length][hidden] go through the blocks behind `layer`. */
static ingot_status run_blocks(const ingot_loop_job *job, ingot_prefetch *ahead, float *states,
                               uint64_t layer, uint64_t sequences, uint64_t length,
                               ingot_error *error) {
    const ingot_model *m = job->model;
    const ingot_weight_source *source = ahead != NULL ? ingot_prefetch_source(ahead) : job->source;
    const uint64_t wanted = ingot_max_u64(1, job->backend->batch_tokens / length);
    ingot_workspace *work = NULL;
    ingot_status status = ingot_workspace_create(&work, m, job->backend,
                                                 ingot_min_u64(wanted, sequences) * length, error);
    for (uint64_t at = layer + 1; status == INGOT_OK && at < m->layers; at++) {
        ingot_arena *host = NULL;
        ingot_block block;
        memset(&block, 0, sizeof block);
        INGOT_GO(ingot_interrupt_check(error));
        INGOT_GO(ahead != NULL ? ingot_prefetch_take(ahead, at, error) : INGOT_OK);
        INGOT_GO(ingot_arena_create(&host));
        status = ingot_block_load(&block, m, at, source, job->backend, host, error);
        if (status == INGOT_OK) {
            status = ingot_block_forward_batch(m, job->backend, &block, states, sequences, length,
                                               work, NULL, NULL, error);
            ingot_block_release(&block, job->backend);
        }
        ingot_arena_destroy(host);
    }
done:
    ingot_workspace_destroy(work);
    return status;
}

/* What the comparison of logits needs. */
typedef struct ending {
    const ingot_loop_job *job;
    const ingot_ends *ends;
    float *p, *q;  /* [rows][vocab], device */
    float *normed; /* [rows][hidden], device */
    double *kl;    /* [rows], host */
    uint64_t rows;
} ending;

/* divergence[i] = mean of candidate i over all `tokens` positions. */
static ingot_status compare(const ending *e, double divergence[2], const float *states,
                            uint64_t tokens) {
    const ingot_model *m = e->job->model;
    const ingot_backend *b = e->job->backend;
    double sum[2] = {0};
    for (uint64_t row = 0; row < tokens; row += e->rows) {
        const uint64_t n = ingot_min_u64(e->rows, tokens - row);
        const float *exact = states + (2 * tokens + row) * m->hidden;
        INGOT_TRY(ingot_ends_logits(e->ends, m, b, e->p, exact, e->normed, n));
        for (unsigned i = 0; i < 2; i++) {
            const float *x = states + (i * tokens + row) * m->hidden;
            INGOT_TRY(ingot_ends_logits(e->ends, m, b, e->q, x, e->normed, n));
            INGOT_TRY(b->ops->divergence(b->context, e->kl, e->p, e->q, n, m->vocab));
            for (uint64_t k = 0; k < n; k++) {
                sum[i] += e->kl[k];
            }
        }
    }
    divergence[0] = sum[0] / (double)tokens;
    divergence[1] = sum[1] / (double)tokens;
    return INGOT_OK;
}

ingot_status ingot_suffix_divergence(double divergence[2], const ingot_loop_job *job,
                                     ingot_prefetch *ahead, float *states, uint64_t layer,
                                     uint64_t count, uint64_t length, ingot_arena *arena,
                                     ingot_error *error) {
    const ingot_model *m = job->model;
    const uint64_t tokens = count * length;
    ending e = {.job = job};
    ingot_ends ends;
    ingot_arena *host = NULL;
    memset(&ends, 0, sizeof ends);
    e.ends = &ends;
    e.rows = ingot_max_u64(1, ingot_min_u64(tokens, LOGITS_BYTES / (m->vocab * sizeof(float))));
    INGOT_TRY(run_blocks(job, ahead, states, layer, 3 * count, length, error));
    INGOT_TRY(ingot_arena_create(&host));
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_arena_array(arena, (void **)&e.p, e.rows, m->vocab * sizeof(float)));
    INGOT_GO(ingot_arena_array(arena, (void **)&e.q, e.rows, m->vocab * sizeof(float)));
    INGOT_GO(ingot_arena_array(arena, (void **)&e.normed, e.rows, m->hidden * sizeof(float)));
    INGOT_GO(ingot_arena_array(host, (void **)&e.kl, e.rows, sizeof(double)));
    INGOT_GO(ingot_ends_load_part(&ends, INGOT_ENDS_HEAD, m,
                                  ahead != NULL ? ingot_prefetch_source(ahead) : job->source,
                                  job->backend, host, error));
    status = compare(&e, divergence, states, tokens);
done:
    ingot_ends_release(&ends, job->backend);
    ingot_arena_destroy(host);
    return status;
}
