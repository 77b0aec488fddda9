/* Scoring: perplexity and KL divergence by streaming.  A batch of windows goes through the model
 * one block at a time, candidate and source in step; then the head is applied to chunks of rows, so
 * that logits[rows][vocab] stay small.  Per-position results are kept and summed in order at the
 * end.  Protocol: architecture.md section 5. */
#include "calib/score.h"

#include "common/files.h"
#include "common/sizes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_BATCH_BYTES (512ull << 20)
#define LOGITS_BYTES        (64ull << 20) /* of one chunk of logits, per model */

/* One of the two models. */
typedef struct side {
    const ingot_weight_source *source;
    ingot_arena *arena;
    float *hidden;  /* [batch * length][hidden], device */
    float *logits;  /* [rows][vocab], device */
    uint32_t *best; /* [rows] */
    double *nll;    /* [positions] */
} side;

typedef struct scorer {
    const ingot_model *model;
    const ingot_backend *backend;
    const ingot_windows *windows;
    ingot_workspace *work;
    side sides[2]; /* candidate, source */
    unsigned side_count;
    uint64_t batch;  /* windows per batch */
    uint64_t rows;   /* per chunk of logits */
    float *scratch;  /* [rows][hidden], device */
    double *kld;     /* [positions] */
    uint64_t agreed; /* positions with the same argmax */
    ingot_progress *progress;
    ingot_error *error;
} scorer;

static ingot_status device_floats(const scorer *s, float **out, uint64_t rows, uint64_t cols) {
    uint64_t bytes;
    void *memory = NULL;
    if (!ingot_size_mul(&bytes, rows, cols) || !ingot_size_mul(&bytes, bytes, sizeof(float))) {
        return ingot_error_set(s->error, INGOT_ERR_NO_MEMORY, NULL, NULL, NULL,
                               "a buffer of more than 2^64 bytes was asked for");
    }
    const ingot_status status = s->backend->ops->alloc(s->backend->context, &memory, bytes);
    if (status != INGOT_OK) {
        return ingot_error_set(s->error, status, NULL, NULL, "use shorter windows",
                               "no memory for %llu bytes on the device", (unsigned long long)bytes);
    }
    *out = memory;
    return INGOT_OK;
}

static ingot_status host_array(const scorer *s, void **out, uint64_t count, uint64_t size) {
    const ingot_status status = ingot_alloc_zero(out, count, size);
    return status == INGOT_OK ? status
                              : ingot_error_set(s->error, status, NULL, NULL, NULL,
                                                "no memory for the scores of %llu positions",
                                                (unsigned long long)count);
}

static ingot_status open_side(scorer *s, side *one, uint64_t positions) {
    void *memory;
    INGOT_TRY(ingot_arena_create(&one->arena));
    INGOT_TRY(device_floats(s, &one->hidden, s->batch * s->windows->length, s->model->hidden));
    INGOT_TRY(device_floats(s, &one->logits, s->rows, s->model->vocab));
    INGOT_TRY(host_array(s, &memory, s->rows, sizeof(uint32_t)));
    one->best = memory;
    INGOT_TRY(host_array(s, &memory, positions, sizeof(double)));
    one->nll = memory;
    return INGOT_OK;
}

static void release(const scorer *s, float *memory) {
    if (memory != NULL) {
        s->backend->ops->release(s->backend->context, memory);
    }
}

static void close_scorer(scorer *s) {
    for (unsigned i = 0; i < s->side_count; i++) {
        side *one = &s->sides[i];
        release(s, one->hidden);
        release(s, one->logits);
        ingot_arena_destroy(one->arena);
        ingot_free(one->best);
        ingot_free(one->nll);
    }
    release(s, s->scratch);
    ingot_free(s->kld);
    ingot_workspace_destroy(s->work);
}

/* An operation failed without saying more. */
static ingot_status explain(const scorer *s, const side *one, ingot_status status,
                            const char *what) {
    if (status == INGOT_OK || (s->error != NULL && s->error->status == status)) {
        return status;
    }
    return ingot_error_set(s->error, status, one->source->path, NULL, NULL, "%s failed: %s", what,
                           ingot_status_text(status));
}

static ingot_status embed_batch(scorer *s, side *one, uint64_t first, uint64_t count) {
    ingot_ends ends;
    const uint64_t length = s->windows->length;
    ingot_arena_reset(one->arena);
    INGOT_TRY(ingot_ends_load_part(&ends, INGOT_ENDS_EMBED, s->model, one->source, s->backend,
                                   one->arena, s->error));
    const ingot_status status = ingot_ends_embed(&ends, s->model, s->backend, one->hidden,
                                                 s->windows->ids + first * length, count * length);
    ingot_ends_release(&ends, s->backend);
    return explain(s, one, status, "the embedding");
}

static ingot_status block_batch(scorer *s, side *one, uint64_t layer, uint64_t count) {
    ingot_block block;
    ingot_arena_reset(one->arena);
    INGOT_TRY(
        ingot_block_load(&block, s->model, layer, one->source, s->backend, one->arena, s->error));
    const ingot_status status = ingot_block_forward_batch(
        s->model, s->backend, &block, one->hidden, count, s->windows->length, s->work, NULL, NULL);
    ingot_block_release(&block, s->backend);
    return explain(s, one, status, "a block of the model");
}

/* Scores m positions from row `row` of window `window` of the batch, whose first is `first`. */
static ingot_status score_rows(scorer *s, const ingot_ends *ends, uint64_t first, uint64_t window,
                               uint64_t row, uint64_t m) {
    const ingot_model *model = s->model;
    const uint64_t length = s->windows->length;
    const uint64_t position = (first + window) * (length - 1) + row;
    const uint32_t *targets = s->windows->ids + (first + window) * length + row + 1;
    const ingot_backend_ops *ops = s->backend->ops;
    void *context = s->backend->context;
    for (unsigned i = 0; i < s->side_count; i++) {
        side *one = &s->sides[i];
        const float *x = one->hidden + (window * length + row) * model->hidden;
        ingot_status status =
            ingot_ends_logits(&ends[i], model, s->backend, one->logits, x, s->scratch, m);
        if (status == INGOT_OK) {
            status = ops->score(context, one->nll + position, one->best, one->logits, targets, m,
                                model->vocab);
        }
        INGOT_TRY(explain(s, one, status, "the head"));
        for (uint64_t k = 0; k < m; k++) {
            if (!isfinite(one->nll[position + k])) {
                return ingot_error_set(s->error, INGOT_ERR_NUMERIC, one->source->path, NULL,
                                       "look for NaN or infinite weights",
                                       "the likelihood of token %llu of window %llu is not finite",
                                       (unsigned long long)(row + k + 1),
                                       (unsigned long long)(first + window));
            }
        }
    }
    if (s->side_count < 2) {
        return INGOT_OK;
    }
    for (uint64_t k = 0; k < m; k++) {
        s->agreed += s->sides[0].best[k] == s->sides[1].best[k];
    }
    return explain(s, &s->sides[0],
                   ops->divergence(context, s->kld + position, s->sides[1].logits,
                                   s->sides[0].logits, m, model->vocab),
                   "the divergence");
}

static ingot_status head_batch(scorer *s, uint64_t first, uint64_t count) {
    ingot_ends ends[2];
    memset(ends, 0, sizeof ends);
    ingot_status status = INGOT_OK;
    for (unsigned i = 0; i < s->side_count; i++) {
        side *one = &s->sides[i];
        ingot_arena_reset(one->arena);
        INGOT_GO(ingot_ends_load_part(&ends[i], INGOT_ENDS_HEAD, s->model, one->source, s->backend,
                                      one->arena, s->error));
    }
    const uint64_t scored = s->windows->length - 1;
    for (uint64_t w = 0; w < count; w++) {
        INGOT_GO(ingot_interrupt_check(s->error));
        for (uint64_t row = 0; row < scored; row += s->rows) {
            INGOT_GO(score_rows(s, ends, first, w, row, ingot_min_u64(s->rows, scored - row)));
        }
    }
done:
    for (unsigned i = 0; i < s->side_count; i++) {
        ingot_ends_release(&ends[i], s->backend);
    }
    return status;
}

static ingot_status run_batch(scorer *s, uint64_t first, uint64_t count) {
    for (unsigned i = 0; i < s->side_count; i++) {
        INGOT_TRY(embed_batch(s, &s->sides[i], first, count));
    }
    for (uint64_t layer = 0; layer < s->model->layers; layer++) {
        for (unsigned i = 0; i < s->side_count; i++) {
            INGOT_TRY(ingot_interrupt_check(s->error));
            INGOT_TRY(block_batch(s, &s->sides[i], layer, count));
        }
        if (s->progress != NULL) {
            /* The head counts as one more layer. */
            const double share = (double)(layer + 1) / (double)(s->model->layers + 1);
            ingot_progress_update(s->progress, (double)first + share * (double)count);
        }
    }
    INGOT_TRY(head_batch(s, first, count));
    if (s->progress != NULL) {
        ingot_progress_update(s->progress, (double)(first + count));
    }
    return INGOT_OK;
}

static double sum(const double *values, uint64_t count) {
    double total = 0;
    for (uint64_t i = 0; i < count; i++) {
        total += values[i];
    }
    return total;
}

static int compare_doubles(const void *a, const void *b) {
    const double x = *(const double *)a;
    const double y = *(const double *)b;
    return (x > y) - (x < y);
}

static void summarize(ingot_score *out, scorer *s, uint64_t positions) {
    const double n = (double)positions;
    out->positions = positions;
    out->perplexity = exp(sum(s->sides[0].nll, positions) / n);
    if (s->side_count < 2) {
        return;
    }
    out->source_perplexity = exp(sum(s->sides[1].nll, positions) / n);
    out->ppl_ratio = out->perplexity / out->source_perplexity;
    out->kld_mean = sum(s->kld, positions) / n;
    out->top1 = (double)s->agreed / n;
    qsort(s->kld, positions, sizeof *s->kld, compare_doubles);
    /* ceil(0.99 n) in integers: 99 n / 100 rounded up. */
    out->kld_p99 = s->kld[ingot_ceil_div(positions * 99, 100) - 1];
}

static ingot_status open_scorer(scorer *s, uint64_t positions, uint64_t batch_bytes) {
    const uint64_t length = s->windows->length;
    const uint64_t window_bytes = length * s->model->hidden * sizeof(float) * s->side_count;
    batch_bytes = batch_bytes == 0 ? DEFAULT_BATCH_BYTES : batch_bytes;
    s->batch = ingot_max_u64(1, ingot_min_u64(s->windows->count, batch_bytes / window_bytes));
    s->rows = LOGITS_BYTES / (s->model->vocab * sizeof(float));
    s->rows = ingot_max_u64(1, ingot_min_u64(s->rows, length - 1));
    for (unsigned i = 0; i < s->side_count; i++) {
        INGOT_TRY(open_side(s, &s->sides[i], positions));
    }
    INGOT_TRY(device_floats(s, &s->scratch, s->rows, s->model->hidden));
    if (s->side_count == 2) {
        void *memory;
        INGOT_TRY(host_array(s, &memory, positions, sizeof(double)));
        s->kld = memory;
    }
    /* No more than a batch holds, and never less than one window. */
    const uint64_t call_windows = ingot_min_u64(s->batch, s->backend->batch_tokens / length);
    return ingot_workspace_create(&s->work, s->model, s->backend,
                                  ingot_max_u64(1, call_windows) * length, s->error);
}

ingot_status ingot_score_run(ingot_score *out, const ingot_model *model,
                             const ingot_weight_source *candidate,
                             const ingot_weight_source *source, const ingot_windows *windows,
                             const ingot_backend *backend, uint64_t batch_bytes,
                             ingot_progress *progress, ingot_error *error) {
    *out = (ingot_score){0, NAN, NAN, NAN, NAN, NAN, NAN};
    uint64_t positions;
    if (windows->count == 0 || windows->length < 2 ||
        !ingot_size_mul(&positions, windows->count, windows->length - 1)) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "use a window of 2 or more",
                               "windows of %llu tokens cannot be scored",
                               (unsigned long long)windows->length);
    }
    ingot_error local;
    memset(&local, 0, sizeof local);
    scorer s = {
        .model = model,
        .backend = backend,
        .windows = windows,
        .sides = {{.source = candidate}, {.source = source}},
        .side_count = source == NULL ? 1 : 2,
        .progress = progress,
        .error = &local,
    };
    ingot_status status = INGOT_OK;
    INGOT_GO(open_scorer(&s, positions, batch_bytes));
    for (uint64_t first = 0; first < windows->count; first += s.batch) {
        INGOT_GO(run_batch(&s, first, ingot_min_u64(s.batch, windows->count - first)));
    }
    summarize(out, &s, positions);
done:
    close_scorer(&s);
    if (status != INGOT_OK && local.status != status) {
        ingot_error_set(&local, status, candidate->path, NULL, NULL, "scoring failed: %s",
                        ingot_status_text(status));
    }
    if (status != INGOT_OK && error != NULL) {
        *error = local;
    }
    return status;
}
