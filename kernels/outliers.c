/* The choice of sparse outliers: exactly `count` weights of a matrix, by what keeping each one
 * apart would save. */
#include "common/sizes.h"
#include "format/half.h"
#include "kernels/quantize_internal.h"

#include <math.h>
#include <string.h>

#define F16_END 65520.0f /* from here on nearest to infinity */

typedef struct gain_task {
    const ingot_quantize_ops *ops;
    const ingot_quantized *q;
    const float *w, *importance;
    ingot_dtype dtype; /* of outliers */
    float *gain;       /* [rows][cols] */
    float *scratch;    /* [threads][3][padded group]: weights, importance, row of values */
    uint64_t padded;
} gain_task;

/* What is saved when element `index` leaves its group and the group is searched again. */
static float gain_without(const gain_task *task, float *w, float *d, uint64_t padded,
                          uint64_t index, float loss) {
    const ingot_quant_format *format = &task->q->format;
    const float old_w = w[index], old_d = d[index];
    ingot_group_choice choice;
    w[index] = d[index] = 0.0f;
    task->ops->search(&choice, w, d, padded, format->bits, format->zero_mode, format->scale_dtype);
    w[index] = old_w;
    d[index] = old_d;
    return loss - choice.loss;
}

static void gain_group(const gain_task *task, uint64_t r, uint64_t g, float *w, float *d,
                       float *value) {
    const ingot_quantized *q = task->q;
    const uint64_t first = g * q->format.group;
    const uint64_t count = ingot_min_u64(q->format.group, q->cols - first);
    const uint64_t padded = ingot_pad_lanes(count);
    float *gain = task->gain + r * q->cols + first;
    memset(w, 0, padded * sizeof *w);
    memset(d, 0, padded * sizeof *d);
    memcpy(w, task->w + r * q->cols + first, count * sizeof *w);
    task->ops->row(value, q->codes + r * q->cols + first, count, count,
                   &q->scales[r * q->groups + g], &q->zeros[r * q->groups + g]);
    double loss = 0;
    uint64_t low = 0, high = 0;
    for (uint64_t j = 0; j < count; j++) {
        d[j] = task->importance != NULL ? task->importance[first + j] : 1.0f;
        const float e = w[j] - value[j];
        gain[j] = d[j] * e * e;
        loss += (double)gain[j];
        low = w[j] < w[low] ? j : low;
        high = w[j] > w[high] ? j : high;
    }
    const float at_low = gain_without(task, w, d, padded, low, (float)loss);
    const float at_high = gain_without(task, w, d, padded, high, (float)loss);
    gain[low] = at_low > gain[low] ? at_low : gain[low];
    gain[high] = at_high > gain[high] ? at_high : gain[high];
}

static void gain_tile(void *context, size_t tile, unsigned worker) {
    const gain_task *task = context;
    float *w = task->scratch + 3 * worker * task->padded;
    for (uint64_t r = tile * INGOT_QUANTIZE_TILE; r < ingot_tile_end(tile, task->q->rows); r++) {
        for (uint64_t g = 0; g < task->q->groups; g++) {
            gain_group(task, r, g, w, w + task->padded, w + 2 * task->padded);
        }
    }
}

/* What keeping element `index` gains; is_stored: in the type it would have.  Binary16 has its
 * 11 bits for what is normal in it: whatever is gained beyond is lost again by storing it. */
static float gain_of(const gain_task *task, uint64_t index, bool is_stored) {
    const float w = task->w[index], size = fabsf(w), gain = task->gain[index];
    if (!is_stored || task->dtype != INGOT_F16 || size == 0 ||
        (size >= 0x1p-14f && size < F16_END)) {
        return gain;
    }
    const float e = ingot_outlier_store(w, task->dtype) - w;
    const float d = task->importance != NULL ? task->importance[index % task->q->cols] : 1.0f;
    return size < F16_END ? gain - d * e * e : -INFINITY;
}

/* Orders gains like numbers; what is none comes last. */
static uint32_t order_of(float gain) {
    const uint32_t bits = ingot_float_to_bits(gain);
    return isnan(gain) ? 0 : bits >> 31 != 0 ? ~bits : bits | 0x80000000u;
}

/* The `count`-th largest gain in its order, and how many of that very value are to be taken.
 * histogram[65536] is the caller's. */
static uint32_t gain_threshold(const gain_task *task, bool is_stored, uint64_t count,
                               uint64_t *histogram, uint64_t *ties) {
    const uint64_t total = task->q->rows * task->q->cols;
    uint32_t prefix = 0;
    uint64_t wanted = count;
    for (unsigned pass = 0; pass < 2; pass++) {
        memset(histogram, 0, 65536 * sizeof *histogram);
        for (uint64_t i = 0; i < total; i++) {
            const uint32_t order = order_of(gain_of(task, i, is_stored));
            if (pass == 0) {
                histogram[order >> 16]++;
            } else if (order >> 16 == prefix) {
                histogram[order & 0xffff]++;
            }
        }
        uint32_t at = 65535;
        for (; at > 0 && histogram[at] < wanted; at--) {
            wanted -= histogram[at];
        }
        prefix = pass == 0 ? at : prefix << 16 | at;
    }
    *ties = wanted;
    return prefix;
}

/* The first of the largest gains as they are stored; any: the threshold of gains as they are. */
static ingot_status take_outliers(ingot_outliers *o, const gain_task *task, uint32_t any,
                                  uint32_t threshold, uint64_t ties) {
    const uint64_t rows = task->q->rows, cols = task->q->cols;
    uint64_t taken = 0;
    for (uint64_t r = 0; r < rows; r++) {
        o->row_ptr[r] = taken;
        for (uint64_t c = 0; c < cols; c++) {
            const uint64_t i = r * cols + c;
            const uint32_t order = order_of(gain_of(task, i, true));
            if (order < threshold || (order == threshold && ties == 0)) {
                const uint32_t before = order_of(task->gain[i]);
                o->left_out += before > order && before >= any;
                continue;
            }
            ties -= order == threshold;
            o->col[taken] = (uint32_t)c;
            o->val[taken] = ingot_outlier_store(task->w[i], o->dtype);
            taken++;
        }
    }
    o->row_ptr[rows] = taken;
    o->left_out = ingot_min_u64(o->left_out, o->count); /* of equal gains all were counted */
    return taken == o->count ? INGOT_OK : INGOT_ERR_INTERNAL;
}

ingot_status ingot_outliers_choose(ingot_quantized *q, const float *w, const float *importance,
                                   uint64_t count, ingot_dtype dtype, ingot_arena *arena,
                                   ingot_arena *scratch, ingot_pool *pool) {
    ingot_outliers *o = &q->outliers;
    *o = (ingot_outliers){.dtype = dtype};
    if (count == 0) {
        return INGOT_OK;
    }
    if (count > q->rows * q->cols) {
        return INGOT_ERR_USAGE;
    }
    gain_task task = {.ops = ingot_quantize_ops_get(),
                      .q = q,
                      .w = w,
                      .importance = importance,
                      .dtype = dtype,
                      .padded = ingot_pad_lanes(q->format.group)};
    uint64_t *histogram, ties;
    INGOT_TRY(ingot_arena_array(arena, (void **)&o->row_ptr, q->rows + 1, sizeof(uint64_t)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&o->col, count, sizeof(uint32_t)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&o->val, count, sizeof(float)));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&histogram, 65536, sizeof *histogram));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&task.gain, q->rows * q->cols, sizeof(float)));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&task.scratch,
                                3 * (uint64_t)ingot_pool_width(pool), task.padded * sizeof(float)));
    ingot_pool_run(pool, ingot_row_tiles(q->rows), gain_tile, &task);
    o->count = count;
    const uint32_t any = gain_threshold(&task, false, count, histogram, &ties);
    const uint32_t threshold = gain_threshold(&task, true, count, histogram, &ties);
    return take_outliers(o, &task, any, threshold, ties);
}

ingot_status ingot_outliers_place(ingot_quantized *q, const ingot_outliers *outliers,
                                  const float *w, ingot_arena *arena) {
    q->outliers = *outliers;
    if (outliers->count == 0) {
        return INGOT_OK;
    }
    INGOT_TRY(ingot_arena_array(arena, (void **)&q->outliers.val, outliers->count, sizeof(float)));
    for (uint64_t r = 0; r < q->rows; r++) {
        for (uint64_t i = outliers->row_ptr[r]; i < outliers->row_ptr[r + 1]; i++) {
            const uint64_t c = outliers->col[i];
            q->codes[r * q->cols + c] = q->zeros[r * q->groups + c / q->format.group];
            q->outliers.val[i] = ingot_outlier_store(w[r * q->cols + c], outliers->dtype);
        }
    }
    return INGOT_OK;
}
