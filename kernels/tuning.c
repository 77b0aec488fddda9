/* Rounding and signed descent of codes and scales (kernels/quantize.h), over fixed tiles of rows.
 * Where the gradient comes from is the business of calib/backward.h. */
#include "kernels/quantize.h"

#include "common/sizes.h"
#include "kernels/quantize_internal.h"

#include <math.h>

#define REMAINDER_MOST 0.25f /* of a step */
#define GAIN_LEAST     0.5f
#define GAIN_MOST      2.0f
#define LANES          16u

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

/* To nearest, ties to even, for 0 <= x <= 255: a call of the library for every weight would cost
 * more than the rest of a step. */
static float nearest(float x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23 */
    return (x + magic) - magic;
}

static void round_row(const tuning_task *task, uint64_t row) {
    const ingot_quantized *q = task->q;
    const float most = (float)((1u << q->format.bits) - 1);
    const float *position = task->t->position + row * q->cols;
    uint8_t *codes = q->codes + row * q->cols;
    for (uint64_t g = 0; g < q->groups; g++) {
        const uint64_t at = row * q->groups + g;
        const uint8_t zero = q->zeros[at];
        uint64_t begin, end;
        group_range(q, g, &begin, &end);
        const float start = task->t->start_scale[at];
        const float stored = ingot_scale_store(start * task->t->gain[at], q->format.scale_dtype);
        q->scales[at] = stored != 0.0f ? stored : start; /* the smallest there is */
        for (uint64_t j = begin; j < end; j++) {
            const float low = position[j] > 0.0f ? position[j] : 0.0f;
            const int code = (int)nearest(low < most ? low : most);
            codes[j] = position[j] == -INFINITY ? zero : (uint8_t)code;
        }
    }
}

/* Moves positions[n] by turn against the signs of gradient[n]; returns the sum of gradient times
 * (code - zero), in lanes added in a fixed order. */
static float step_group(float *position, const float *gradient, const uint8_t *codes, uint64_t n,
                        float zero, float turn, float most) {
    float lanes[LANES] = {0}, sum = 0.0f;
    for (uint64_t first = 0; first < n; first += LANES) {
        const uint64_t count = ingot_min_u64(LANES, n - first);
        for (uint64_t i = 0; i < count; i++) {
            const float slope = gradient[first + i], at = position[first + i];
            lanes[i] += slope * ((float)codes[first + i] - zero);
            float moved = at - turn * sign_of(slope);
            moved = moved > -0.5f ? moved : -0.5f;
            moved = moved < most ? moved : most;
            position[first + i] = at == -INFINITY ? at : moved;
        }
    }
    for (unsigned i = 0; i < LANES; i++) {
        sum += lanes[i];
    }
    return sum;
}

static void step_row(const tuning_task *task, uint64_t row) {
    const ingot_quantized *q = task->q;
    const float most = (float)((1u << q->format.bits) - 1) + 0.5f;
    for (uint64_t g = 0; g < q->groups; g++) {
        const uint64_t at = row * q->groups + g;
        const float turn = task->rate * sign_of(q->scales[at]);
        uint64_t begin, end;
        group_range(q, g, &begin, &end);
        const uint64_t first = row * q->cols + begin;
        const float sum =
            step_group(task->t->position + first, task->gradient + first, q->codes + first,
                       end - begin, (float)q->zeros[at], turn, most);
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

/* ---- scales alone --------------------------------------------------------------------------- */

typedef struct scale_task {
    const ingot_quantized *q;
    float *out;            /* gradient by the gains, or the gains themselves */
    const float *gradient; /* by the weights, or by the gains */
    const float *start;
    float rate;
} scale_task;

static void sum_row(const scale_task *task, uint64_t row) {
    const ingot_quantized *q = task->q;
    for (uint64_t g = 0; g < q->groups; g++) {
        const float zero = (float)q->zeros[row * q->groups + g];
        float lanes[LANES] = {0}, sum = 0.0f;
        uint64_t begin, end;
        group_range(q, g, &begin, &end);
        const uint8_t *codes = q->codes + row * q->cols;
        const float *slopes = task->gradient + row * q->cols;
        for (uint64_t first = begin; first < end; first += LANES) {
            const uint64_t count = ingot_min_u64(LANES, end - first);
            for (uint64_t i = 0; i < count; i++) {
                lanes[i] += slopes[first + i] * ((float)codes[first + i] - zero);
            }
        }
        for (unsigned i = 0; i < LANES; i++) {
            sum += lanes[i];
        }
        task->out[row * q->groups + g] += sum;
    }
}

static void step_scales(const scale_task *task, uint64_t row) {
    const ingot_quantized *q = task->q;
    for (uint64_t at = row * q->groups; at < (row + 1) * q->groups; at++) {
        const float start = task->start[at];
        const float gain = task->out[at] - task->rate * sign_of(task->gradient[at] * start);
        task->out[at] = fminf(fmaxf(gain, GAIN_LEAST), GAIN_MOST);
        const float stored = ingot_scale_store(start * task->out[at], q->format.scale_dtype);
        q->scales[at] = stored != 0.0f ? stored : start;
    }
}

static void run_scale_tile(void *context, size_t tile, unsigned worker) {
    const scale_task *task = context;
    const uint64_t end = ingot_tile_end(tile, task->q->rows);
    (void)worker;
    for (uint64_t row = tile == 0 ? 0 : ingot_tile_end(tile - 1, task->q->rows); row < end; row++) {
        if (task->start != NULL) {
            step_scales(task, row);
        } else {
            sum_row(task, row);
        }
    }
}

void ingot_scale_backward(float *out, const ingot_quantized *q, const float *gradient,
                          ingot_pool *pool) {
    scale_task task = {.q = q, .out = out, .gradient = gradient};
    ingot_pool_run(pool, ingot_row_tiles(q->rows), run_scale_tile, &task);
}

void ingot_scale_step(ingot_quantized *q, float *gain, const float *start, const float *gradient,
                      float rate, ingot_pool *pool) {
    scale_task task = {.q = q, .out = gain, .gradient = gradient, .start = start, .rate = rate};
    ingot_pool_run(pool, ingot_row_tiles(q->rows), run_scale_tile, &task);
}
