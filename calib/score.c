/* Scoring: likelihoods, perplexity and KL divergence by streaming.  A batch of sequences goes
 * through the model one block at a time, candidate and source in step; then the head is applied to
 * chunks of rows, so that logits[rows][vocab] stay small.  Per-position results are kept and summed
 * in order at the end.  Protocol: architecture.md section 5. */
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
    float *hidden;  /* [batch_tokens][hidden], device */
    float *logits;  /* [rows][vocab], device */
    uint32_t *best; /* [rows] */
    double *nll;    /* [positions], the caller's */
} side;

/* A run of sequences that is scored at once. */
typedef struct batch {
    uint64_t first, count; /* sequences */
    const uint32_t *ids;   /* of the first */
    uint64_t tokens;       /* of all */
    uint64_t position;     /* of the first token that is scored */
} batch;

typedef struct scorer {
    const ingot_model *model;
    const ingot_backend *backend;
    const ingot_sequences *sequences;
    ingot_workspace *work;
    side sides[2]; /* candidate, source */
    unsigned side_count;
    uint64_t batch_tokens; /* at most, of one batch */
    uint64_t rows;         /* per chunk of logits */
    float *scratch;        /* [rows][hidden], device */
    double *kld;           /* [positions], the caller's; NULL: not asked for */
    uint64_t agreed;       /* positions with the same argmax, with kld */
    ingot_progress *progress;
    ingot_error failure, *error; /* error: &failure */
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

static ingot_status host_array(ingot_error *error, void **out, uint64_t count, uint64_t size) {
    const ingot_status status = ingot_alloc_zero(out, count, size);
    return status == INGOT_OK ? status
                              : ingot_error_set(error, status, NULL, NULL, NULL,
                                                "no memory for the scores of %llu positions",
                                                (unsigned long long)count);
}

static ingot_status open_side(scorer *s, side *one) {
    void *memory;
    INGOT_TRY(ingot_arena_create(&one->arena));
    INGOT_TRY(device_floats(s, &one->hidden, s->batch_tokens, s->model->hidden));
    INGOT_TRY(device_floats(s, &one->logits, s->rows, s->model->vocab));
    INGOT_TRY(host_array(s->error, &memory, s->rows, sizeof(uint32_t)));
    one->best = memory;
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
        *one = (side){.source = one->source, .nll = one->nll};
    }
    release(s, s->scratch);
    ingot_workspace_destroy(s->work);
    s->scratch = NULL;
    s->work = NULL;
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

static ingot_status embed_batch(scorer *s, side *one, const batch *part) {
    ingot_ends ends;
    ingot_arena_reset(one->arena);
    INGOT_TRY(ingot_ends_load_part(&ends, INGOT_ENDS_EMBED, s->model, one->source, s->backend,
                                   one->arena, s->error));
    const ingot_status status =
        ingot_ends_embed(&ends, s->model, s->backend, one->hidden, part->ids, part->tokens);
    ingot_ends_release(&ends, s->backend);
    return explain(s, one, status, "the embedding");
}

/* Neighbours of the same length go through the block together. */
static ingot_status block_batch(scorer *s, side *one, uint64_t layer, const batch *part) {
    const ingot_sequence *item = s->sequences->items + part->first;
    ingot_block block;
    float *x = one->hidden;
    ingot_arena_reset(one->arena);
    INGOT_TRY(
        ingot_block_load(&block, s->model, layer, one->source, s->backend, one->arena, s->error));
    ingot_status status = INGOT_OK;
    for (uint64_t i = 0, run; i < part->count && status == INGOT_OK; i += run) {
        const uint64_t length = item[i].length;
        for (run = 1; i + run < part->count && item[i + run].length == length;) {
            run++;
        }
        status = ingot_block_forward_batch(s->model, s->backend, &block, x, run, length, s->work,
                                           NULL, NULL, s->error);
        x += run * length * s->model->hidden;
    }
    ingot_block_release(&block, s->backend);
    return explain(s, one, status, "a block of the model");
}

/* Scores targets[m], the tokens after rows [row, row + m) of the batch; they are the positions from
 * `position` on. */
static ingot_status score_rows(scorer *s, const ingot_ends *ends, uint64_t row, uint64_t position,
                               const uint32_t *targets, uint64_t m) {
    const ingot_model *model = s->model;
    const ingot_backend_ops *ops = s->backend->ops;
    void *context = s->backend->context;
    for (unsigned i = 0; i < s->side_count; i++) {
        side *one = &s->sides[i];
        const float *x = one->hidden + row * model->hidden;
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
                                       "the likelihood of scored token %llu is not finite",
                                       (unsigned long long)(position + k));
            }
        }
    }
    if (s->kld == NULL) {
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

static ingot_status head_batch(scorer *s, const batch *part) {
    ingot_ends ends[2];
    memset(ends, 0, sizeof ends);
    ingot_status status = INGOT_OK;
    for (unsigned i = 0; i < s->side_count; i++) {
        side *one = &s->sides[i];
        ingot_arena_reset(one->arena);
        INGOT_GO(ingot_ends_load_part(&ends[i], INGOT_ENDS_HEAD, s->model, one->source, s->backend,
                                      one->arena, s->error));
    }
    uint64_t start = 0, position = part->position; /* of the sequence, of its first scored token */
    for (uint64_t i = 0; i < part->count; i++) {
        const ingot_sequence *item = &s->sequences->items[part->first + i];
        const uint64_t scored = item->length - item->first;
        for (uint64_t k = 0; k < scored; k += s->rows) {
            INGOT_GO(ingot_interrupt_check(s->error));
            const uint64_t target = start + item->first + k;
            INGOT_GO(score_rows(s, ends, target - 1, position + k, part->ids + target,
                                ingot_min_u64(s->rows, scored - k)));
        }
        start += item->length;
        position += scored;
    }
done:
    for (unsigned i = 0; i < s->side_count; i++) {
        ingot_ends_release(&ends[i], s->backend);
    }
    return status;
}

static ingot_status run_batch(scorer *s, const batch *part) {
    for (unsigned i = 0; i < s->side_count; i++) {
        INGOT_TRY(embed_batch(s, &s->sides[i], part));
    }
    for (uint64_t layer = 0; layer < s->model->layers; layer++) {
        for (unsigned i = 0; i < s->side_count; i++) {
            INGOT_TRY(block_batch(s, &s->sides[i], layer, part));
        }
        if (s->progress != NULL) {
            /* The head counts as one more layer. */
            const double share = (double)(layer + 1) / (double)(s->model->layers + 1);
            ingot_progress_update(s->progress, (double)part->first + share * (double)part->count);
        }
    }
    INGOT_TRY(head_batch(s, part));
    if (s->progress != NULL) {
        ingot_progress_update(s->progress, (double)(part->first + part->count));
    }
    return INGOT_OK;
}

/* The sequences after `part` that fit in one batch. */
static batch next_batch(const scorer *s, batch part) {
    const ingot_sequence *items = s->sequences->items;
    for (uint64_t i = 0; i < part.count; i++) {
        part.position += items[part.first + i].length - items[part.first + i].first;
    }
    part = (batch){part.first + part.count, 0, part.ids + part.tokens, 0, part.position};
    while (part.first + part.count < s->sequences->count &&
           part.tokens + items[part.first + part.count].length <= s->batch_tokens) {
        part.tokens += items[part.first + part.count++].length;
    }
    return part;
}

/* Tokens of a batch. */
static uint64_t tokens_at_once(const ingot_model *model, unsigned sides, uint64_t longest,
                               uint64_t tokens, uint64_t batch_bytes) {
    batch_bytes = batch_bytes == 0 ? DEFAULT_BATCH_BYTES : batch_bytes;
    return ingot_max_u64(
        longest, ingot_min_u64(tokens, batch_bytes / (model->hidden * sizeof(float) * sides)));
}

/* Rows of logits. */
static uint64_t rows_at_once(const ingot_model *model, uint64_t longest) {
    const uint64_t most = LOGITS_BYTES / (model->vocab * sizeof(float));
    return ingot_max_u64(1, ingot_min_u64(most, longest - 1));
}

uint64_t ingot_score_bytes(const ingot_model *model, uint64_t tokens, uint64_t longest,
                           uint64_t batch_tokens) {
    const uint64_t kept = tokens_at_once(model, 2, longest, tokens, 0);
    const uint64_t rows = rows_at_once(model, longest);
    const uint64_t call = ingot_max_u64(longest, ingot_min_u64(kept, batch_tokens));
    return sizeof(float) * (2 * kept * model->hidden + rows * (2 * model->vocab + model->hidden)) +
           call * ingot_workspace_token_bytes(model);
}

/* Sizes of everything from the longest sequence and batch_bytes. */
static ingot_status open_scorer(scorer *s, uint64_t longest, uint64_t tokens,
                                uint64_t batch_bytes) {
    s->batch_tokens = tokens_at_once(s->model, s->side_count, longest, tokens, batch_bytes);
    s->rows = rows_at_once(s->model, longest);
    for (unsigned i = 0; i < s->side_count; i++) {
        INGOT_TRY(open_side(s, &s->sides[i]));
    }
    INGOT_TRY(device_floats(s, &s->scratch, s->rows, s->model->hidden));
    /* No more than a batch holds, and never less than one sequence. */
    const uint64_t call_tokens = ingot_min_u64(s->batch_tokens, s->backend->batch_tokens);
    return ingot_workspace_create(&s->work, s->model, s->backend,
                                  ingot_max_u64(longest, call_tokens), s->error);
}

/* All sequences, in batches of so many bytes. */
static ingot_status run_batches(scorer *s, uint64_t longest, uint64_t tokens,
                                uint64_t batch_bytes) {
    s->agreed = 0;
    INGOT_TRY(open_scorer(s, longest, tokens, batch_bytes));
    for (batch part = next_batch(s, (batch){.ids = s->sequences->ids}); part.count != 0;
         part = next_batch(s, part)) {
        INGOT_TRY(run_batch(s, &part));
    }
    return INGOT_OK;
}

/* Out of memory it begins anew with half as many tokens at once, while a batch has more than one
 * sequence: what is scored does not depend on it. */
static ingot_status run_in_room(scorer *s, uint64_t longest, uint64_t tokens,
                                uint64_t batch_bytes) {
    for (;;) {
        const ingot_status status = run_batches(s, longest, tokens, batch_bytes);
        const uint64_t at_once = s->batch_tokens;
        close_scorer(s);
        if (status != INGOT_ERR_NO_MEMORY || at_once <= longest) {
            return status;
        }
        batch_bytes = at_once / 2 * s->model->hidden * sizeof(float) * s->side_count;
        if (s->progress != NULL) {
            ingot_progress_line(s->progress, "%s: fewer than %llu tokens at once",
                                ingot_backend_failure(s->backend, status),
                                (unsigned long long)at_once);
        }
        s->failure = (ingot_error){0};
    }
}

/* Fills nll of both sides and, if s->kld is set, kld and agreed. */
static ingot_status run_scorer(scorer *s, uint64_t batch_bytes, ingot_error *error) {
    const ingot_sequences *sequences = s->sequences;
    uint64_t longest = 0, tokens = 0;
    s->error = &s->failure;
    ingot_status status = INGOT_OK;
    for (uint64_t i = 0; i < sequences->count; i++) {
        const ingot_sequence *item = &sequences->items[i];
        if (item->first == 0 || item->first >= item->length) {
            status =
                ingot_error_set(&s->failure, INGOT_ERR_USAGE, NULL, NULL, "use a longer one",
                                "a sequence of %llu tokens cannot be scored from token %llu",
                                (unsigned long long)item->length, (unsigned long long)item->first);
            goto done;
        }
        longest = ingot_max_u64(longest, item->length);
        tokens += item->length;
    }
    INGOT_GO(run_in_room(s, longest, tokens, batch_bytes));
done:
    if (status != INGOT_OK && s->failure.status != status) {
        ingot_error_set(&s->failure, status, s->sides[0].source->path, NULL, NULL,
                        "scoring failed: %s", ingot_status_text(status));
    }
    if (status != INGOT_OK && error != NULL) {
        *error = s->failure;
    }
    return status;
}

ingot_status ingot_score_sequences(double *nll, double *source_nll, const ingot_model *model,
                                   const ingot_weight_source *candidate,
                                   const ingot_weight_source *source,
                                   const ingot_sequences *sequences, const ingot_backend *backend,
                                   uint64_t batch_bytes, ingot_progress *progress,
                                   ingot_error *error) {
    scorer s = {
        .model = model,
        .backend = backend,
        .sequences = sequences,
        .sides = {{.source = candidate, .nll = nll}, {.source = source, .nll = source_nll}},
        .side_count = source == NULL ? 1 : 2,
        .progress = progress,
    };
    return run_scorer(&s, batch_bytes, error);
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

static void summarize(ingot_score *out, const scorer *s, uint64_t positions) {
    const double n = (double)positions;
    const double mean = sum(s->sides[0].nll, positions) / n;
    out->positions = positions;
    out->perplexity = exp(mean);
    if (s->side_count < 2) {
        return;
    }
    const double source_mean = sum(s->sides[1].nll, positions) / n;
    out->source_perplexity = exp(source_mean);
    out->ppl_ratio = exp(mean - source_mean); /* also where both are beyond a binary64 */
    out->kld_mean = sum(s->kld, positions) / n;
    out->top1 = (double)s->agreed / n;
    qsort(s->kld, positions, sizeof *s->kld, compare_doubles);
    /* ceil(0.99 n) in integers: 99 n / 100 rounded up. */
    out->kld_p99 = s->kld[ingot_ceil_div(positions * 99, 100) - 1];
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
    const unsigned side_count = source == NULL ? 1 : 2;
    void *items = NULL, *nll[2] = {NULL, NULL}, *kld = NULL;
    ingot_status status;
    INGOT_GO(host_array(error, &items, windows->count, sizeof(ingot_sequence)));
    for (unsigned i = 0; i < side_count; i++) {
        INGOT_GO(host_array(error, &nll[i], positions, sizeof(double)));
    }
    if (source != NULL) {
        INGOT_GO(host_array(error, &kld, positions, sizeof(double)));
    }
    for (uint64_t i = 0; i < windows->count; i++) {
        ((ingot_sequence *)items)[i] = (ingot_sequence){windows->length, 1};
    }
    const ingot_sequences sequences = {windows->ids, items, windows->count};
    scorer s = {
        .model = model,
        .backend = backend,
        .sequences = &sequences,
        .sides = {{.source = candidate, .nll = nll[0]}, {.source = source, .nll = nll[1]}},
        .side_count = side_count,
        .kld = kld,
        .progress = progress,
    };
    INGOT_GO(run_scorer(&s, batch_bytes, error));
    summarize(out, &s, positions);
done:
    ingot_free(items);
    ingot_free(nll[0]);
    ingot_free(nll[1]);
    ingot_free(kld);
    return status;
}
