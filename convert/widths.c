/* Widths by measured sensitivity (convert/widths.h). */
#include "convert/widths.h"

#include "calib/stats.h"
#include "common/files.h"
#include "common/memory.h"
#include "common/progress.h"
#include "convert/sensitivity_table.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define LEAST_SHARE 0.995 /* of the target */
/* Of the target: a size is divided by the weights where it is printed and multiplied by them here,
 * each of which is off by half an epsilon at most. */
#define ROUNDING (4 * DBL_EPSILON)

/* What the functions below share; arrays of [count]. */
typedef struct chooser {
    const ingot_widths_job *job;
    ingot_plan *plan;
    uint64_t *tensors; /* indices in the plan */
    uint64_t count;
    ingot_windows windows;
    ingot_sensitivity *measured;
    ingot_width_item *items;
    unsigned *bits;
    ingot_error *error;
} chooser;

static ingot_status open_chooser(chooser *c) {
    const uint64_t room = c->plan->count + 1;
    INGOT_TRY(ingot_alloc_zero((void **)&c->tensors, room, sizeof *c->tensors));
    for (uint64_t i = 0; i < c->plan->count; i++) {
        const ingot_plan_tensor *t = &c->plan->tensors[i];
        if (t->origin == INGOT_ORIGIN_QUANTIZE && !t->is_width_stated) {
            c->tensors[c->count++] = i;
        }
    }
    if (c->count == 0) {
        return ingot_error_set(c->error, INGOT_ERR_USAGE, c->job->source->path, NULL,
                               "leave the target out",
                               "a target is given, and the recipe states every width");
    }
    INGOT_TRY(ingot_alloc_zero((void **)&c->measured, c->count, sizeof *c->measured));
    INGOT_TRY(ingot_alloc_zero((void **)&c->items, c->count, sizeof *c->items));
    INGOT_TRY(ingot_alloc_zero((void **)&c->bits, c->count, sizeof *c->bits));
    return ingot_sensitivity_windows(&c->windows, c->job->windows);
}

static void close_chooser(chooser *c) {
    ingot_free(c->tensors);
    ingot_free(c->measured);
    ingot_free(c->items);
    ingot_free(c->bits);
    ingot_windows_free(&c->windows);
}

/* ---- sensitivities -------------------------------------------------------------------------- */

static ingot_status measure(const chooser *c, const ingot_sensitivity_job *job) {
    const double start = ingot_clock_seconds();
    INGOT_TRY(ingot_sensitivity_measure(c->measured, job, c->error));
    (void)fprintf(stderr,
                  "plan: measured the sensitivity of %llu matrices at %u..%u bits on %llu x %llu "
                  "tokens, %.1f s\n",
                  (unsigned long long)c->count, INGOT_MEASURED_LEAST, INGOT_MEASURED_MOST,
                  (unsigned long long)c->windows.count, (unsigned long long)c->windows.length,
                  ingot_clock_seconds() - start);
    return INGOT_OK;
}

/* The table that is kept, or a new one. */
static ingot_status get_sensitivities(const chooser *c) {
    static const char *const reasons[] = {NULL, NULL, "another checkpoint", "another text",
                                          "other windows, matrices, groups or outliers"};
    const ingot_widths_job *w = c->job;
    const ingot_sensitivity_job job = {.source = w->source,
                                       .model = w->model,
                                       .backend = w->backend,
                                       .plan = c->plan,
                                       .tensors = c->tensors,
                                       .count = c->count,
                                       .windows = &c->windows,
                                       .shortages = w->shortages};
    if (w->table == NULL) {
        return measure(c, &job);
    }
    ingot_sensitivity_key key;
    ingot_table_state state;
    memcpy(key.text, w->text->digest, sizeof key.text);
    INGOT_TRY(ingot_sensitivity_setting(key.setting, &job));
    INGOT_TRY(ingot_stats_model_digest(key.source, w->source, c->error));
    INGOT_TRY(ingot_sensitivity_read(c->measured, &state, w->table, &job, &key, c->error));
    if (state == INGOT_TABLE_READ) {
        (void)fprintf(stderr, "plan: sensitivities from %s\n", w->table);
        return INGOT_OK;
    }
    if (state != INGOT_TABLE_ABSENT) {
        (void)fprintf(stderr, "plan: %s was measured on %s: measuring again\n", w->table,
                      reasons[state]);
    }
    INGOT_TRY(ingot_output_check(w->table, c->error));
    INGOT_TRY(measure(c, &job));
    return ingot_sensitivity_write(c->measured, w->table, &job, &key, c->error);
}

/* ---- the choice ----------------------------------------------------------------------------- */

static ingot_status fill_items(chooser *c) {
    for (uint64_t i = 0; i < c->count; i++) {
        ingot_width_item *item = &c->items[i];
        ingot_sensitivity_costs(item->cost, &c->measured[i]);
        for (unsigned w = 0; w < INGOT_WIDTH_COUNT; w++) {
            ingot_tensor_spec spec = c->plan->specs[c->tensors[i]];
            spec.bits = INGOT_WIDTH_LEAST + w;
            INGOT_TRY(ingot_plan_stored_bytes(&item->bytes[w], &spec, c->error));
        }
    }
    return INGOT_OK;
}

/* Bytes of the quantized tensors whose width is not chosen here. */
static ingot_status stated_bytes(uint64_t *out, const chooser *c) {
    *out = c->plan->quantized_bytes;
    for (uint64_t i = 0; i < c->count; i++) {
        uint64_t bytes;
        INGOT_TRY(ingot_plan_stored_bytes(&bytes, &c->plan->specs[c->tensors[i]], c->error));
        *out -= bytes;
    }
    return INGOT_OK;
}

static ingot_status allocate(chooser *c) {
    const double target = c->job->recipe->target_bpw, weights = (double)c->plan->quantized_weights,
                 wanted = target * weights / 8;
    uint64_t stated, nearest = 0;
    INGOT_TRY(stated_bytes(&stated, c));
    const double most = floor(wanted * (1 + ROUNDING)) - (double)stated,
                 least = ceil(LEAST_SHARE * wanted) - (double)stated;
    const ingot_status status =
        ingot_allocate_widths(c->bits, &nearest, c->items, c->count,
                              least > 0 ? (uint64_t)least : 0, most > 0 ? (uint64_t)most : 0);
    if (status != INGOT_ERR_USAGE) {
        return status;
    }
    const double reached = 8 * (double)(stated + nearest) / weights;
    char remedy[64];
    snprintf(remedy, sizeof remedy, "use --target-bpw %.4f, or another group",
             ceil(reached * 1e4) / 1e4);
    return ingot_error_set(c->error, INGOT_ERR_USAGE, c->job->source->path, NULL, remedy,
                           "no widths of 2..8 bits come to %g bits per weight, scales included; "
                           "the nearest is %.4f",
                           target, reached);
}

static ingot_status apply(const chooser *c) {
    for (uint64_t i = 0; i < c->count; i++) {
        const unsigned w = c->bits[i] - INGOT_WIDTH_LEAST;
        const double *cost = c->items[i].cost;
        char note[INGOT_PLAN_NOTE_SIZE];
        if (w > 0) {
            snprintf(note, sizeof note, "KL %.2g, at %u bits %.2g", cost[w], c->bits[i] - 1,
                     cost[w - 1]);
        } else {
            snprintf(note, sizeof note, "KL %.2g", cost[w]);
        }
        INGOT_TRY(ingot_plan_set_bits(c->plan, c->tensors[i], c->bits[i], note, c->job->checkpoint,
                                      c->job->recipe, c->error));
        c->plan->expected_kl += cost[w];
    }
    c->plan->target_bpw = c->job->recipe->target_bpw;
    return INGOT_OK;
}

ingot_status ingot_widths_choose(ingot_plan *plan, const ingot_widths_job *job,
                                 ingot_error *error) {
    chooser c = {.job = job, .plan = plan, .error = error};
    ingot_status status = INGOT_OK;
    INGOT_GO(open_chooser(&c));
    INGOT_GO(get_sensitivities(&c));
    INGOT_GO(fill_items(&c));
    INGOT_GO(allocate(&c));
    INGOT_GO(apply(&c));
done:
    close_chooser(&c);
    return status;
}
