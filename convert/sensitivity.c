/* KL sensitivity of matrices (convert/sensitivity.h). */
#include "convert/sensitivity.h"

#include "calib/forward.h"
#include "common/files.h"
#include "common/memory.h"
#include "common/progress.h"
#include "common/sizes.h"
#include "convert/linear.h"

#include <math.h>
#include <string.h>

#define HOST_STATE_BYTES   (1ull << 30)
#define DEVICE_STATE_BYTES (8ull << 30)
#define LOGITS_BYTES       (64ull << 20) /* of one chunk of logits */

/* Slot 0 of the hidden states is the exact model; slot 1 + k is candidate first + k of a wave, that
 * is matrix candidate / INGOT_MEASURED_COUNT at the width of the rest. */
typedef struct measurer {
    const ingot_sensitivity_job *job;
    const ingot_backend_ops *ops;
    void *context;
    ingot_arena *host, *device, *scratch;
    ingot_workspace *work;
    float *hidden;             /* [slots][slot_floats] */
    float *logits[2], *normed; /* [rows][vocab], [rows][hidden] */
    double *kl;                /* [rows], host */
    uint64_t tokens;           /* of the windows */
    uint64_t slot_floats, slots, rows;
    uint64_t slots_most,
        calls_most; /* slots, windows of a forward call: limits, then what is used */
    ingot_sensitivity *out;
    ingot_progress progress;
    ingot_error *error;
} measurer;

ingot_status ingot_sensitivity_windows(ingot_windows *out, const ingot_windows *calibration) {
    *out = (ingot_windows){.count = ingot_min_u64(calibration->count, INGOT_SENSITIVITY_WINDOWS),
                           .length = ingot_min_u64(calibration->length, INGOT_SENSITIVITY_LENGTH)};
    INGOT_TRY(ingot_alloc_zero((void **)&out->ids, out->count * out->length, sizeof *out->ids));
    for (uint64_t i = 0; i < out->count; i++) {
        const uint64_t from = out->count > 1 ? i * (calibration->count - 1) / (out->count - 1) : 0;
        memcpy(out->ids + i * out->length, calibration->ids + from * calibration->length,
               out->length * sizeof *out->ids);
    }
    return INGOT_OK;
}

static uint64_t layer_of(const measurer *m, uint64_t candidate) {
    return m->job->plan->tensors[m->job->tensors[candidate / INGOT_MEASURED_COUNT]].layer;
}

/* *view = a matrix rounded to `bits` with searched scales, packed, in m->device. */
static ingot_status round_matrix(ingot_weight_view *view, measurer *m, uint64_t index,
                                 unsigned bits, const ingot_weight_view *source) {
    const ingot_tensor_spec *spec = &m->job->plan->specs[index];
    const ingot_quant_format format = {.bits = bits,
                                       .group = spec->group,
                                       .zero_mode = spec->zero_mode,
                                       .scale_dtype = spec->scale_dtype};
    ingot_quantized q;
    float *w;
    uint64_t bad;
    ingot_arena_reset(m->device);
    ingot_arena_reset(m->scratch);
    INGOT_TRY(ingot_arena_array(m->scratch, (void **)&w, source->rows * source->cols, sizeof *w));
    INGOT_TRY(m->ops->values(m->context, w, &bad, source, NULL, NULL));
    if (bad != UINT64_MAX) {
        return ingot_error_set(m->error, INGOT_ERR_NUMERIC, m->job->source->path, spec->name,
                               "the checkpoint is damaged: fetch or export it again",
                               "row %llu, column %llu is NaN or infinite",
                               (unsigned long long)(bad / source->cols),
                               (unsigned long long)(bad % source->cols));
    }
    INGOT_TRY(ingot_quantized_create(&q, source->rows, source->cols, &format, m->device));
    INGOT_TRY(m->ops->quantize_search(m->context, &q, w, NULL, m->scratch));
    if (spec->outlier_count != 0) {
        INGOT_TRY(m->ops->outliers_choose(m->context, &q, w, NULL, spec->outlier_count, spec->dtype,
                                          m->device, m->scratch));
        INGOT_TRY(m->ops->quantize_search(m->context, &q, w, NULL, m->scratch));
    }
    return m->ops->quantized_pack(m->context, view, &q, m->device);
}

static ingot_status forward(measurer *m, const ingot_block *block, float *x, uint64_t sequences) {
    return ingot_block_forward_batch(m->job->model, m->job->backend, block, x, sequences,
                                     m->job->windows->length, m->work, NULL, NULL, m->error);
}

/* A candidate leaves the exact model: its block, with the one matrix rounded. */
static ingot_status branch(measurer *m, const ingot_block *exact, uint64_t candidate, float *x) {
    const uint64_t index = m->job->tensors[candidate / INGOT_MEASURED_COUNT];
    const ingot_role role = m->job->plan->tensors[index].role;
    ingot_block block = *exact;
    INGOT_TRY(ingot_interrupt_check(m->error));
    INGOT_TRY(round_matrix(&block.linear[role], m, index,
                           INGOT_MEASURED_LEAST + (unsigned)(candidate % INGOT_MEASURED_COUNT),
                           &exact->linear[role]));
    INGOT_TRY(m->ops->copy(m->context, x, m->hidden, m->slot_floats * sizeof *x));
    return forward(m, &block, x, m->job->windows->count);
}

/* One block for the `active` slots, then for the candidates of this block, which branch off before
 * the exact states move on. */
static ingot_status run_block(measurer *m, const ingot_block *block, uint64_t layer, uint64_t first,
                              uint64_t end, uint64_t *active) {
    uint64_t slots = *active;
    for (uint64_t c = first + slots - 1; c < end && layer_of(m, c) == layer; c++) {
        INGOT_TRY(branch(m, block, c, m->hidden + slots * m->slot_floats));
        slots++;
    }
    INGOT_TRY(forward(m, block, m->hidden, *active * m->job->windows->count));
    *active = slots;
    return INGOT_OK;
}

static ingot_status embed(measurer *m) {
    ingot_ends ends;
    ingot_arena_reset(m->host);
    INGOT_TRY(ingot_ends_load_part(&ends, INGOT_ENDS_EMBED, m->job->model, m->job->source,
                                   m->job->backend, m->host, m->error));
    const ingot_status status = ingot_ends_embed(&ends, m->job->model, m->job->backend, m->hidden,
                                                 m->job->windows->ids, m->tokens);
    ingot_ends_release(&ends, m->job->backend);
    return status;
}

/* Adds the divergences of `rows` tokens from `row` of every candidate to its sum. */
static ingot_status score_rows(measurer *m, const ingot_ends *ends, uint64_t first, uint64_t end,
                               uint64_t row, uint64_t rows) {
    const ingot_model *model = m->job->model;
    for (uint64_t slot = 0; slot < 1 + end - first; slot++) {
        const float *x = m->hidden + slot * m->slot_floats + row * model->hidden;
        float *logits = m->logits[slot != 0];
        INGOT_TRY(ingot_ends_logits(ends, model, m->job->backend, logits, x, m->normed, rows));
        if (slot == 0) {
            continue;
        }
        const uint64_t candidate = first + slot - 1;
        double *sum =
            &m->out[candidate / INGOT_MEASURED_COUNT].kl[candidate % INGOT_MEASURED_COUNT];
        INGOT_TRY(m->ops->divergence(m->context, m->kl, m->logits[0], logits, rows, model->vocab));
        for (uint64_t i = 0; i < rows; i++) {
            *sum += m->kl[i];
        }
        INGOT_TRY(ingot_interrupt_check(m->error));
    }
    return INGOT_OK;
}

static ingot_status score(measurer *m, uint64_t first, uint64_t end) {
    ingot_ends ends;
    ingot_status status = INGOT_OK;
    ingot_arena_reset(m->host);
    INGOT_TRY(ingot_ends_load_part(&ends, INGOT_ENDS_HEAD, m->job->model, m->job->source,
                                   m->job->backend, m->host, m->error));
    for (uint64_t row = 0; row < m->tokens; row += m->rows) {
        INGOT_GO(score_rows(m, &ends, first, end, row, ingot_min_u64(m->rows, m->tokens - row)));
    }
done:
    ingot_ends_release(&ends, m->job->backend);
    return status;
}

static ingot_status run_wave(measurer *m, uint64_t first, uint64_t end) {
    uint64_t active = 1;
    INGOT_TRY(embed(m));
    for (uint64_t layer = 0; layer < m->job->model->layers; layer++) {
        ingot_block block;
        ingot_arena_reset(m->host);
        INGOT_TRY(ingot_interrupt_check(m->error));
        INGOT_TRY(ingot_block_load(&block, m->job->model, layer, m->job->source, m->job->backend,
                                   m->host, m->error));
        const ingot_status status = run_block(m, &block, layer, first, end, &active);
        ingot_block_release(&block, m->job->backend);
        INGOT_TRY(status);
        const double share = (double)(layer + 1) / (double)(m->job->model->layers + 1);
        ingot_progress_update(&m->progress, (double)first + share * (double)(end - first));
    }
    INGOT_TRY(score(m, first, end));
    ingot_progress_update(&m->progress, (double)end);
    return INGOT_OK;
}

static ingot_status device_floats(const measurer *m, float **out, uint64_t rows, uint64_t cols) {
    uint64_t count, bytes;
    void *memory = NULL;
    *out = NULL;
    if (!ingot_size_mul(&count, rows, cols) || !ingot_size_mul(&bytes, count, sizeof(float))) {
        return INGOT_ERR_NO_MEMORY;
    }
    const ingot_status status = m->ops->alloc(m->context, &memory, bytes);
    *out = memory;
    return status;
}

/* Hidden states of the exact model and of candidates that are kept at once. */
static uint64_t slots_for(uint64_t slot_floats, uint64_t count, uint64_t bytes,
                          bool has_own_memory) {
    if (bytes == 0) {
        bytes = has_own_memory ? DEVICE_STATE_BYTES : HOST_STATE_BYTES;
    }
    return ingot_min_u64(ingot_max_u64(2, bytes / (slot_floats * sizeof(float))),
                         count * INGOT_MEASURED_COUNT + 1);
}

/* Windows of a forward call. */
static uint64_t calls_for(uint64_t windows, uint64_t length, uint64_t batch_tokens) {
    return ingot_min_u64(ingot_max_u64(1, batch_tokens / length), windows);
}

/* Tokens whose logits are there at once. */
static uint64_t rows_for(const ingot_model *model, uint64_t tokens) {
    const uint64_t rows = LOGITS_BYTES / (model->vocab * sizeof(float));
    return ingot_max_u64(1, ingot_min_u64(rows, tokens));
}

uint64_t ingot_sensitivity_bytes(const ingot_model *model, uint64_t count, uint64_t windows,
                                 uint64_t length, uint64_t batch_tokens, bool has_own_memory) {
    windows = ingot_min_u64(windows, INGOT_SENSITIVITY_WINDOWS);
    length = ingot_min_u64(length, INGOT_SENSITIVITY_LENGTH);
    const uint64_t slot_floats = windows * length * model->hidden;
    const uint64_t slots = slots_for(slot_floats, count, 0, has_own_memory);
    const uint64_t calls = calls_for(slots * windows, length, batch_tokens);
    const uint64_t rows = rows_for(model, windows * length);
    return sizeof(float) * (slots * slot_floats + rows * (2 * model->vocab + model->hidden)) +
           calls * length * ingot_workspace_token_bytes(model);
}

static ingot_status open_measurer(measurer *m) {
    const ingot_sensitivity_job *job = m->job;
    m->tokens = job->windows->count * job->windows->length;
    m->slot_floats = m->tokens * job->model->hidden;
    m->slots = m->slots_most = ingot_min_u64(
        slots_for(m->slot_floats, job->count, job->state_bytes, job->backend->has_own_memory),
        m->slots_most);
    m->calls_most = ingot_min_u64(
        calls_for(m->slots * job->windows->count, job->windows->length, job->backend->batch_tokens),
        m->calls_most);
    m->rows = rows_for(job->model, m->tokens);
    INGOT_TRY(ingot_backend_host_arena_create(&m->host, job->backend));
    INGOT_TRY(ingot_backend_arena_create(&m->device, job->backend));
    INGOT_TRY(ingot_backend_arena_create(&m->scratch, job->backend));
    INGOT_TRY(device_floats(m, &m->hidden, m->slots, m->slot_floats));
    INGOT_TRY(device_floats(m, &m->logits[0], m->rows, job->model->vocab));
    INGOT_TRY(device_floats(m, &m->logits[1], m->rows, job->model->vocab));
    INGOT_TRY(device_floats(m, &m->normed, m->rows, job->model->hidden));
    INGOT_TRY(ingot_alloc_zero((void **)&m->kl, m->rows, sizeof *m->kl));
    return ingot_workspace_create(&m->work, job->model, job->backend,
                                  m->calls_most * job->windows->length, m->error);
}

static void close_measurer(measurer *m) {
    float *const owned[] = {m->hidden, m->logits[0], m->logits[1], m->normed};
    for (unsigned i = 0; i < sizeof owned / sizeof *owned; i++) {
        if (owned[i] != NULL) {
            m->ops->release(m->context, owned[i]);
        }
    }
    ingot_workspace_destroy(m->work);
    ingot_arena_destroy(m->host);
    ingot_arena_destroy(m->device);
    ingot_arena_destroy(m->scratch);
    ingot_free(m->kl);
}

/* Sums become means. */
static ingot_status finish(const measurer *m) {
    for (uint64_t i = 0; i < m->job->count; i++) {
        for (unsigned w = 0; w < INGOT_MEASURED_COUNT; w++) {
            double *kl = &m->out[i].kl[w];
            *kl /= (double)m->tokens;
            if (!isfinite(*kl)) {
                return ingot_error_set(m->error, INGOT_ERR_NUMERIC, m->job->source->path,
                                       m->job->plan->tensors[m->job->tensors[i]].name,
                                       "give the widths with --bits",
                                       "the model's output is not finite with this tensor at %u "
                                       "bits",
                                       INGOT_MEASURED_LEAST + w);
            }
        }
    }
    return INGOT_OK;
}

/* All of it with the memory that m->slots_most and m->calls_most allow. */
static ingot_status measure(measurer *m) {
    const uint64_t candidates = m->job->count * INGOT_MEASURED_COUNT;
    ingot_status status = INGOT_OK;
    memset(m->out, 0, m->job->count * sizeof *m->out);
    INGOT_GO(open_measurer(m));
    for (uint64_t first = 0; first < candidates; first += m->slots - 1) {
        INGOT_GO(run_wave(m, first, ingot_min_u64(first + m->slots - 1, candidates)));
    }
    INGOT_GO(finish(m));
done:
    close_measurer(m);
    return status;
}

/* Less memory for the next attempt; false: there is nothing to save. */
static bool can_spare(measurer *m) {
    if (m->slots_most <= 2 && m->calls_most <= 1) {
        return false;
    }
    m->slots_most = ingot_max_u64(2, m->slots_most / 2);
    m->calls_most = ingot_max_u64(1, m->calls_most / 2);
    return true;
}

ingot_status ingot_sensitivity_measure(ingot_sensitivity *out, const ingot_sensitivity_job *job,
                                       ingot_error *error) {
    const measurer plan = {
        .job = job, .ops = job->backend->ops, .context = job->backend->context, .out = out};
    ingot_error own;
    measurer m = plan;
    m.slots_most = m.calls_most = UINT64_MAX;
    ingot_progress_begin(&m.progress, "measuring", "roundings",
                         (double)(job->count * INGOT_MEASURED_COUNT), false);
    for (;;) {
        measurer now = m;
        own = (ingot_error){0};
        now.error = &own;
        const ingot_status status = measure(&now);
        m.progress = now.progress;
        m.slots_most = now.slots_most;
        m.calls_most = now.calls_most;
        if (status != INGOT_ERR_NO_MEMORY || !can_spare(&m)) {
            ingot_progress_end(&m.progress);
            if (status == INGOT_ERR_NO_MEMORY && own.status == INGOT_OK) {
                (void)!ingot_error_set(&own, status, NULL, NULL, "use a shorter --seq-len",
                                       "out of memory while measuring sensitivities");
            }
            if (status != INGOT_OK && error != NULL) {
                *error = own;
            }
            return status;
        }
        if (job->shortages != NULL) {
            (*job->shortages)++;
        }
        ingot_progress_line(&m.progress,
                            "%s: measuring anew with %llu states at once, %llu windows a call",
                            ingot_backend_failure(job->backend, status),
                            (unsigned long long)m.slots_most, (unsigned long long)m.calls_most);
    }
}

void ingot_sensitivity_costs(double cost[INGOT_WIDTH_COUNT], const ingot_sensitivity *measured) {
    for (unsigned w = 0; w < INGOT_WIDTH_COUNT; w++) {
        const unsigned bits = INGOT_WIDTH_LEAST + w;
        const double value = bits <= INGOT_MEASURED_MOST ? measured->kl[bits - INGOT_MEASURED_LEAST]
                                                         : cost[w - 1] / 4;
        cost[w] = w > 0 && value > cost[w - 1] ? cost[w - 1] : value;
    }
}
