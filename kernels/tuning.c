/* Rounding and signed descent of codes and scales (kernels/quantize.h), over fixed tiles of rows.
 * Where the gradient comes from is the business of calib/backward.h. */
#include "kernels/quantize.h"

#include "common/sizes.h"
#include "kernels/quantize_internal.h"

#include <math.h>

#define REMAINDER_MOST 0.49f /* of a step: the rounding of a start is its code */
#define GAIN_LEAST     0.5f
#define GAIN_MOST      2.0f

typedef struct tuning_task {
    const ingot_tuning *t;
    const ingot_quantized *q;
    const float *w, *gradient;
    float rate, gain_rate;
} tuning_task;

/* Columns of group g: [*begin, *end). */
static void group_range(const ingot_quantized *q, uint64_t g, uint64_t *begin, uint64_t *end) {
    *begin = g * q->format.group;
    *end = ingot_min_u64(*begin + q->format.group, q->cols);
}

static float sign_of(float x) {
    return (float)(x > 0.0f) - (float)(x < 0.0f);
}

static void begin_row(const tuning_task *task, uint64_t row) {
    const ingot_quantized *q = task->q;
    const uint8_t *codes = q->codes + row * q->cols;
    const float *w = task->w + row * q->cols;
    float *position = task->t->position + row * q->cols;
    for (uint64_t g = 0; g < q->groups; g++) {
        const float scale = q->scales[row * q->groups + g];
        const float zero = (float)q->zeros[row * q->groups + g];
        uint64_t begin, end;
        group_range(q, g, &begin, &end);
        task->t->start_scale[row * q->groups + g] = scale;
        task->t->gain[row * q->groups + g] = 1.0f;
        for (uint64_t j = begin; j < end; j++) {
            const float lacks = scale != 0.0f ? w[j] / scale + zero - (float)codes[j] : 0.0f;
            position[j] = (float)codes[j] + fminf(fmaxf(lacks, -REMAINDER_MOST), REMAINDER_MOST);
        }
    }
    const ingot_outliers *o = &q->outliers;
    for (uint64_t i = o->count != 0 ? o->row_ptr[row] : 0; o->count != 0 && i < o->row_ptr[row + 1];
         i++) {
        position[o->col[i]] = -INFINITY;
    }
}

static void round_row(const tuning_task *task, uint64_t row) {
    const ingot_quantized *q = task->q;
    const float most = (float)((1u << q->format.bits) - 1);
    const float *position = task->t->position + row * q->cols;
    uint8_t *codes = q->codes + row * q->cols;
    for (uint64_t g = 0; g < q->groups; g++) {
        const uint64_t at = row * q->groups + g;
        uint64_t begin, end;
        group_range(q, g, &begin, &end);
        q->scales[at] =
            ingot_scale_store(task->t->start_scale[at] * task->t->gain[at], q->format.scale_dtype);
        for (uint64_t j = begin; j < end; j++) {
            codes[j] = position[j] == -INFINITY
                           ? q->zeros[at]
                           : (uint8_t)fminf(fmaxf(rintf(position[j]), 0.0f), most);
        }
    }
}

static void step_row(const tuning_task *task, uint64_t row) {
    const ingot_quantized *q = task->q;
    const float most = (float)((1u << q->format.bits) - 1) + 0.5f;
    const float *gradient = task->gradient + row * q->cols;
    const uint8_t *codes = q->codes + row * q->cols;
    float *position = task->t->position + row * q->cols;
    for (uint64_t g = 0; g < q->groups; g++) {
        const uint64_t at = row * q->groups + g;
        const float zero = (float)q->zeros[at];
        const float turn = task->rate * sign_of(q->scales[at]);
        float sum = 0.0f;
        uint64_t begin, end;
        group_range(q, g, &begin, &end);
        for (uint64_t j = begin; j < end; j++) {
            sum += gradient[j] * ((float)codes[j] - zero);
            const float moved = position[j] - turn * sign_of(gradient[j]);
            position[j] = position[j] == -INFINITY ? -INFINITY : fminf(fmaxf(moved, -0.5f), most);
        }
        const float gain =
            task->t->gain[at] - task->gain_rate * sign_of(sum * task->t->start_scale[at]);
        task->t->gain[at] = fminf(fmaxf(gain, GAIN_LEAST), GAIN_MOST);
    }
}

/* The three row functions over tiles of rows; a NULL w: no start, a NULL gradient: no step. */
static void run_tile(void *context, size_t tile, unsigned worker) {
    const tuning_task *task = context;
    const uint64_t end = ingot_tile_end(tile, task->q->rows);
    (void)worker;
    for (uint64_t row = tile == 0 ? 0 : ingot_tile_end(tile - 1, task->q->rows); row < end; row++) {
        if (task->w != NULL) {
            begin_row(task, row);
        } else if (task->gradient != NULL) {
            step_row(task, row);
        } else {
            round_row(task, row);
        }
    }
}

void ingot_tuning_begin(const ingot_tuning *t, const ingot_quantized *q, const float *w,
                        ingot_pool *pool) {
    tuning_task task = {.t = t, .q = q, .w = w};
    ingot_pool_run(pool, ingot_row_tiles(q->rows), run_tile, &task);
}

void ingot_tuning_round(ingot_quantized *q, const ingot_tuning *t, ingot_pool *pool) {
    tuning_task task = {.t = t, .q = q};
    ingot_pool_run(pool, ingot_row_tiles(q->rows), run_tile, &task);
}

void ingot_tuning_step(const ingot_tuning *t, const ingot_quantized *q, const float *gradient,
                       float rate, float gain_rate, ingot_pool *pool) {
    tuning_task task = {.t = t, .q = q, .gradient = gradient, .rate = rate, .gain_rate = gain_rate};
    ingot_pool_run(pool, ingot_row_tiles(q->rows), run_tile, &task);
}
