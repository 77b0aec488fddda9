/* Grouped-affine quantization: plain rounding, scale search, packing and errors, over fixed tiles
 * of rows.  GPTQ is in gptq.c, outliers in outliers.c, the inner loops in cpu/isa_quantize.c. */
#include "kernels/quantize.h"

#include "common/sizes.h"
#include "format/half.h"
#include "format/pack.h"
#include "kernels/cpu/cpu.h"
#include "kernels/quantize_internal.h"

#include <float.h>
#include <math.h>
#include <string.h>

const ingot_quantize_ops *ingot_quantize_ops_get(void) {
    static const ingot_quantize_ops *const levels[] = {
        &ingot_quantize_ops_v2, &ingot_quantize_ops_v3, &ingot_quantize_ops_v4};
    const ingot_cpu_isa *isa = ingot_cpu_isa_select();
    for (size_t i = 0; isa != NULL && i < sizeof levels / sizeof levels[0]; i++) {
        if (strcmp(isa->name, levels[i]->name) == 0) {
            return levels[i];
        }
    }
    return levels[0];
}

ingot_status ingot_quantized_create(ingot_quantized *out, uint64_t rows, uint64_t cols,
                                    const ingot_quant_format *format, ingot_arena *arena) {
    *out = (ingot_quantized){.format = *format, .rows = rows, .cols = cols};
    out->groups = ingot_ceil_div(cols, format->group);
    uint64_t weights, scales;
    if (!ingot_size_mul(&weights, rows, cols) || !ingot_size_mul(&scales, rows, out->groups)) {
        return INGOT_ERR_NO_MEMORY;
    }
    INGOT_TRY(ingot_arena_array(arena, (void **)&out->codes, weights, 1));
    INGOT_TRY(ingot_arena_array(arena, (void **)&out->scales, scales, sizeof(float)));
    return ingot_arena_array(arena, (void **)&out->zeros, scales, 1);
}

void ingot_quantized_row(float *out, const ingot_quantized *q, uint64_t row) {
    ingot_quantize_ops_get()->row(out, q->codes + row * q->cols, q->cols, q->format.group,
                                  q->scales + row * q->groups, q->zeros + row * q->groups);
    const ingot_outliers *o = &q->outliers;
    for (uint64_t i = o->count != 0 ? o->row_ptr[row] : 0; o->count != 0 && i < o->row_ptr[row + 1];
         i++) {
        out[o->col[i]] = o->val[i];
    }
}

float ingot_scale_least(ingot_dtype dtype) {
    return dtype == INGOT_F16 ? 0x1p-24f : 0x1p-100f;
}

float ingot_scale_greatest(ingot_dtype dtype) {
    return dtype == INGOT_F16 ? 0x1p15f : 0x1p100f;
}

float ingot_scale_store(float scale, ingot_dtype dtype) {
    const float largest = ingot_scale_greatest(dtype);
    float stored = ingot_round_to_dtype(scale, dtype);
    if (!(fabsf(stored) >= ingot_scale_least(dtype))) {
        return 0.0f;
    }
    if (!(fabsf(stored) <= largest)) {
        stored = copysignf(largest, scale);
    }
    return stored;
}

float ingot_outlier_store(float w, ingot_dtype dtype) {
    const float largest = dtype == INGOT_F16 ? 65504.0f : FLT_MAX;
    return ingot_round_to_dtype(w > largest ? largest : w < -largest ? -largest : w, dtype);
}

void ingot_rows_to_f32(float *out, const void *in, ingot_dtype dtype, uint64_t count) {
    ingot_quantize_ops_get()->to_f32(out, in, dtype, count);
}

/* The exponent is all ones; blocks first, so that the usual answer costs one pass of vectors. */
static uint64_t first_special_16(const uint16_t *bits, uint64_t count, uint16_t exponent) {
    const uint64_t block = 4096;
    for (uint64_t first = 0; first < count; first += block) {
        const uint64_t end = ingot_min_u64(first + block, count);
        unsigned any = 0;
        for (uint64_t i = first; i < end; i++) {
            any |= (bits[i] & exponent) == exponent;
        }
        for (uint64_t i = first; any != 0 && i < end; i++) {
            if ((bits[i] & exponent) == exponent) {
                return i;
            }
        }
    }
    return count;
}

uint64_t ingot_first_not_finite(const void *values, ingot_dtype dtype, uint64_t count) {
    return dtype == INGOT_F16    ? first_special_16(values, count, 0x7c00)
           : dtype == INGOT_BF16 ? first_special_16(values, count, 0x7f80)
                                 : ingot_quantize_ops_get()->first_not_finite(values, count);
}

uint64_t ingot_view_low_precision(const ingot_weight_view *view) {
    const uint16_t *bits = view->scales;
    uint64_t count = 0;
    if (view->kind != INGOT_GROUPED || view->scale_dtype != INGOT_F16) {
        return 0;
    }
    for (uint64_t i = 0; i < view->rows * view->groups_per_row; i++) {
        const unsigned magnitude = bits[i] & 0x7fffu;
        count += magnitude != 0 && magnitude < 0x0400u; /* subnormal */
    }
    return count;
}

uint64_t ingot_row_tiles(uint64_t rows) {
    return ingot_ceil_div(rows, INGOT_QUANTIZE_TILE);
}

uint64_t ingot_tile_end(uint64_t tile, uint64_t rows) {
    return ingot_min_u64((tile + 1) * INGOT_QUANTIZE_TILE, rows);
}

/* ---- values ------------------------------------------------------------------------------- */

typedef struct values_task {
    const ingot_quantize_ops *ops;
    const ingot_weight_view *source;
    const float *row_fold, *column_fold;
    const ingot_quantized *q;
    float *out;
    uint64_t *bad; /* [tiles]: index of the first value that is not finite, or UINT64_MAX */
} values_task;

static void source_tile(void *context, size_t tile, unsigned worker) {
    (void)worker;
    const values_task *task = context;
    const ingot_weight_view *v = task->source;
    const uint64_t first = tile * INGOT_QUANTIZE_TILE, cols = v->cols;
    const uint64_t rows = ingot_tile_end(tile, v->rows) - first;
    const uint8_t *data = v->data;
    float *out = task->out + first * cols;
    task->ops->to_f32(out, data + first * cols * ingot_dtype_bytes(v->dtype), v->dtype,
                      rows * cols);
    const uint64_t bad = task->ops->first_not_finite(out, rows * cols);
    task->bad[tile] = bad == rows * cols ? UINT64_MAX : first * cols + bad;
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t c = 0; task->row_fold != NULL && c < cols; c++) {
            out[r * cols + c] *= task->row_fold[first + r];
        }
        for (uint64_t c = 0; task->column_fold != NULL && c < cols; c++) {
            out[r * cols + c] *= task->column_fold[c];
        }
    }
}

ingot_status ingot_quantize_values(float *out, uint64_t *bad, const ingot_weight_view *source,
                                   const float *row_fold, const float *column_fold,
                                   ingot_pool *pool) {
    const uint64_t tiles = ingot_row_tiles(source->rows);
    values_task task = {.ops = ingot_quantize_ops_get(),
                        .source = source,
                        .row_fold = row_fold,
                        .column_fold = column_fold,
                        .out = out};
    INGOT_TRY(ingot_alloc((void **)&task.bad, tiles * sizeof *task.bad));
    ingot_pool_run(pool, tiles, source_tile, &task);
    *bad = UINT64_MAX;
    for (uint64_t t = 0; t < tiles && *bad == UINT64_MAX; t++) {
        *bad = task.bad[t];
    }
    ingot_free(task.bad);
    return INGOT_OK;
}

static void stored_tile(void *context, size_t tile, unsigned worker) {
    (void)worker;
    const values_task *task = context;
    for (uint64_t r = tile * INGOT_QUANTIZE_TILE; r < ingot_tile_end(tile, task->q->rows); r++) {
        ingot_quantized_row(task->out + r * task->q->cols, task->q, r);
    }
}

void ingot_quantized_values(float *out, const ingot_quantized *q, ingot_pool *pool) {
    values_task task = {.q = q, .out = out};
    ingot_pool_run(pool, ingot_row_tiles(q->rows), stored_tile, &task);
}

/* ---- packing ------------------------------------------------------------------------------ */

typedef struct pack_task {
    const ingot_quantized *q;
    uint8_t *codes, *scales;
    uint64_t stride, scale_bytes;
} pack_task;

static void pack_tile(void *context, size_t tile, unsigned worker) {
    (void)worker;
    const pack_task *task = context;
    const ingot_quantized *q = task->q;
    for (uint64_t r = tile * INGOT_QUANTIZE_TILE; r < ingot_tile_end(tile, q->rows); r++) {
        ingot_pack_row(task->codes + r * task->stride, q->codes + r * q->cols, q->cols,
                       q->format.bits);
        ingot_convert_from_f32(task->scales + r * q->groups * task->scale_bytes,
                               q->format.scale_dtype, q->scales + r * q->groups, q->groups);
    }
}

static ingot_status pack_outliers(ingot_weight_view *view, const ingot_quantized *q,
                                  ingot_arena *arena) {
    const ingot_outliers *o = &q->outliers;
    void *row_ptr, *col, *val;
    INGOT_TRY(ingot_arena_array(arena, &row_ptr, q->rows + 1, sizeof *o->row_ptr));
    INGOT_TRY(ingot_arena_array(arena, &col, o->count, sizeof *o->col));
    INGOT_TRY(ingot_arena_array(arena, &val, o->count, ingot_dtype_bytes(o->dtype)));
    memcpy(row_ptr, o->row_ptr, (q->rows + 1) * sizeof *o->row_ptr);
    memcpy(col, o->col, o->count * sizeof *o->col);
    ingot_convert_from_f32(val, o->dtype, o->val, o->count);
    view->outlier_row_ptr = row_ptr;
    view->outlier_col = col;
    view->outlier_val = val;
    return INGOT_OK;
}

ingot_status ingot_quantized_pack(ingot_weight_view *view, const ingot_quantized *q,
                                  ingot_arena *arena, ingot_pool *pool) {
    const ingot_outliers *o = &q->outliers;
    pack_task task = {.q = q,
                      .stride = ingot_pack_row_bytes(q->cols, q->format.bits),
                      .scale_bytes = ingot_dtype_bytes(q->format.scale_dtype)};
    INGOT_TRY(ingot_arena_array(arena, (void **)&task.codes, q->rows, task.stride));
    INGOT_TRY(
        ingot_arena_array(arena, (void **)&task.scales, q->rows * q->groups, task.scale_bytes));
    ingot_pool_run(pool, ingot_row_tiles(q->rows), pack_tile, &task);
    *view = (ingot_weight_view){
        .kind = INGOT_GROUPED,
        .rows = q->rows,
        .cols = q->cols,
        .dtype = o->count != 0 ? o->dtype : INGOT_F16,
        .bits = q->format.bits,
        .zero_mode = q->format.zero_mode,
        .scale_dtype = q->format.scale_dtype,
        .group = q->format.group,
        .groups_per_row = q->groups,
        .row_stride_bytes = task.stride,
        .codes = task.codes,
        .scales = task.scales,
        .outlier_count = o->count,
    };
    if (q->format.zero_mode == INGOT_ZERO_STORED) {
        void *zeros;
        INGOT_TRY(ingot_arena_array(arena, &zeros, q->rows, q->groups));
        memcpy(zeros, q->zeros, q->rows * q->groups);
        view->zeros = zeros;
    }
    return o->count == 0 ? INGOT_OK : pack_outliers(view, q, arena);
}

/* ---- plain rounding ----------------------------------------------------------------------- */

typedef struct round_task {
    const ingot_quantize_ops *ops;
    ingot_quantized *q;
    const float *w;
} round_task;

static void plain_scale(float *scale, uint8_t *zero, const ingot_quant_format *format, float low,
                        float high) {
    const unsigned half = 1u << (format->bits - 1), top = (1u << format->bits) - 1;
    low = low < 0 ? low : 0;
    high = high > 0 ? high : 0;
    *zero = (uint8_t)half;
    if (format->zero_mode == INGOT_ZERO_SYMMETRIC) {
        const float largest = -low > high ? -low : high;
        *scale = ingot_scale_store(largest / (float)(half - 1), format->scale_dtype);
        return;
    }
    *scale = ingot_scale_store((high - low) / (float)top, format->scale_dtype);
    if (*scale != 0.0f) {
        const float z = rintf(-low / *scale);
        *zero = (uint8_t)(z > (float)top ? (float)top : z);
    }
}

static void round_tile(void *context, size_t tile, unsigned worker) {
    (void)worker;
    const round_task *task = context;
    ingot_quantized *q = task->q;
    for (uint64_t r = tile * INGOT_QUANTIZE_TILE; r < ingot_tile_end(tile, q->rows); r++) {
        for (uint64_t g = 0; g < q->groups; g++) {
            const uint64_t first = g * q->format.group;
            const uint64_t count = ingot_min_u64(q->format.group, q->cols - first);
            const float *w = task->w + r * q->cols + first;
            float *scale = &q->scales[r * q->groups + g];
            uint8_t *zero = &q->zeros[r * q->groups + g];
            float low, high;
            task->ops->range(&low, &high, w, count);
            plain_scale(scale, zero, &q->format, low, high);
            task->ops->codes(q->codes + r * q->cols + first, w, count, *scale, *zero,
                             q->format.bits);
        }
    }
}

void ingot_quantize_rtn(ingot_quantized *q, const float *w, ingot_pool *pool) {
    round_task task = {.ops = ingot_quantize_ops_get(), .q = q, .w = w};
    ingot_pool_run(pool, ingot_row_tiles(q->rows), round_tile, &task);
}

/* ---- scale search ------------------------------------------------------------------------- */

typedef struct search_task {
    const ingot_quantize_ops *ops;
    ingot_quantized *q;
    const float *w, *importance;
    float *scratch; /* [threads][2][padded cols] */
    uint64_t padded;
} search_task;

static void search_row(const search_task *task, uint64_t r, float *w, float *d) {
    ingot_quantized *q = task->q;
    const ingot_outliers *o = &q->outliers;
    uint64_t next = o->count != 0 ? o->row_ptr[r] : 0;
    const uint64_t last = o->count != 0 ? o->row_ptr[r + 1] : 0;
    for (uint64_t g = 0; g < q->groups; g++) {
        const uint64_t first = g * q->format.group;
        const uint64_t count = ingot_min_u64(q->format.group, q->cols - first);
        const uint64_t padded = ingot_pad_lanes(count), outlier = next;
        memcpy(w, task->w + r * q->cols + first, count * sizeof *w);
        for (uint64_t i = 0; i < padded; i++) {
            d[i] = i >= count ? 0.0f : task->importance != NULL ? task->importance[first + i] : 1;
            w[i] = i >= count ? 0.0f : w[i];
        }
        for (; next < last && o->col[next] < first + count; next++) {
            w[o->col[next] - first] = d[o->col[next] - first] = 0.0f;
        }
        ingot_group_choice choice;
        task->ops->search(&choice, w, d, padded, q->format.bits, q->format.zero_mode,
                          q->format.scale_dtype);
        q->scales[r * q->groups + g] = choice.scale;
        q->zeros[r * q->groups + g] = (uint8_t)choice.zero;
        uint8_t *codes = q->codes + r * q->cols;
        task->ops->codes(codes + first, w, count, choice.scale, choice.zero, q->format.bits);
        for (uint64_t i = outlier; i < next; i++) {
            codes[o->col[i]] = (uint8_t)choice.zero;
        }
    }
}

static void search_tile(void *context, size_t tile, unsigned worker) {
    const search_task *task = context;
    float *w = task->scratch + 2 * worker * task->padded, *d = w + task->padded;
    for (uint64_t r = tile * INGOT_QUANTIZE_TILE; r < ingot_tile_end(tile, task->q->rows); r++) {
        search_row(task, r, w, d);
    }
}

ingot_status ingot_quantize_search(ingot_quantized *q, const float *w, const float *importance,
                                   ingot_arena *scratch, ingot_pool *pool) {
    search_task task = {.ops = ingot_quantize_ops_get(),
                        .q = q,
                        .w = w,
                        .importance = importance,
                        .padded = ingot_pad_lanes(q->format.group)};
    INGOT_TRY(ingot_arena_array(scratch, (void **)&task.scratch,
                                2 * (uint64_t)ingot_pool_width(pool), task.padded * sizeof(float)));
    ingot_pool_run(pool, ingot_row_tiles(q->rows), search_tile, &task);
    return INGOT_OK;
}
