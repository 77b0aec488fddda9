/* How wrong a quantized matrix is: against its weights alone, and under H. */
#include "common/sizes.h"
#include "format/half.h"
#include "format/pack.h"
#include "kernels/quantize_internal.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

/* ---- against the weights ------------------------------------------------------------------- */

typedef struct error_task {
    const ingot_quantize_ops *ops;
    const ingot_weight_view *source;
    const float *row_fold, *column_fold;
    const ingot_weight_view *stored; /* or */
    const ingot_quantized *q;
    double *sums;   /* [rows][2] */
    float *scratch; /* [threads][3][cols]: source, stored, unpacked codes and scales */
} error_task;

/* The row of a view, equal to ingot_weight_row. */
static void stored_row(const error_task *task, float *out, float *unpacked, uint64_t r) {
    const ingot_weight_view *v = task->stored;
    if (v->kind == INGOT_DENSE) {
        const uint8_t *data = v->data;
        task->ops->to_f32(out, data + r * v->cols * ingot_dtype_bytes(v->dtype), v->dtype, v->cols);
        return;
    }
    uint8_t *codes = (uint8_t *)unpacked;
    uint8_t zeros = (uint8_t)(1u << (v->bits - 1));
    const uint8_t *scales = v->scales;
    ingot_unpack_row(codes, v->codes + r * v->row_stride_bytes, 0, v->cols, v->bits);
    for (uint64_t g = 0; g < v->groups_per_row; g++) {
        const uint64_t first = g * v->group, at = r * v->groups_per_row + g;
        float scale;
        ingot_convert_to_f32(&scale, scales + at * ingot_dtype_bytes(v->scale_dtype),
                             v->scale_dtype, 1);
        task->ops->row(out + first, codes + first, ingot_min_u64(v->group, v->cols - first),
                       v->group, &scale, v->zeros != NULL ? &v->zeros[at] : &zeros);
    }
    for (uint64_t i = v->outlier_count != 0 ? v->outlier_row_ptr[r] : 0;
         v->outlier_count != 0 && i < v->outlier_row_ptr[r + 1]; i++) {
        const uint8_t *values = v->outlier_val;
        ingot_convert_to_f32(&out[v->outlier_col[i]], values + i * ingot_dtype_bytes(v->dtype),
                             v->dtype, 1);
    }
}

static void error_tile(void *context, size_t tile, unsigned worker) {
    const error_task *task = context;
    const ingot_weight_view *v = task->source;
    float *source = task->scratch + 3 * worker * v->cols, *stored = source + v->cols;
    for (uint64_t r = tile * INGOT_QUANTIZE_TILE; r < ingot_tile_end(tile, v->rows); r++) {
        const uint8_t *data = v->data;
        task->ops->to_f32(source, data + r * v->cols * ingot_dtype_bytes(v->dtype), v->dtype,
                          v->cols);
        if (task->q != NULL) {
            ingot_quantized_row(stored, task->q, r);
        } else {
            stored_row(task, stored, stored + v->cols, r);
        }
        task->sums[2 * r] = task->sums[2 * r + 1] = 0;
        task->ops->error_row(&task->sums[2 * r], source,
                             task->row_fold != NULL ? task->row_fold[r] : 1.0f, task->column_fold,
                             stored, v->cols);
    }
}

static ingot_status add_errors(double total[2], error_task *task, ingot_pool *pool) {
    const ingot_weight_view *source = task->source;
    uint64_t scratch_bytes;
    if (!ingot_size_mul(&scratch_bytes, 3 * sizeof(float) * ingot_pool_width(pool), source->cols)) {
        return INGOT_ERR_NO_MEMORY;
    }
    task->ops = ingot_quantize_ops_get();
    ingot_status status = ingot_alloc((void **)&task->scratch, scratch_bytes);
    INGOT_GO(status);
    INGOT_GO(ingot_alloc_zero((void **)&task->sums, source->rows, 2 * sizeof(double)));
    ingot_pool_run(pool, ingot_row_tiles(source->rows), error_tile, task);
    for (uint64_t r = 0; r < source->rows; r++) {
        total[0] += task->sums[2 * r];
        total[1] += task->sums[2 * r + 1];
    }
done:
    ingot_free(task->scratch);
    ingot_free(task->sums);
    return status;
}

double ingot_weight_error_ratio(const double sums[2]) {
    return sums[0] == 0 ? 0 : sums[1] == 0 ? (double)INFINITY : sqrt(sums[0] / sums[1]);
}

ingot_status ingot_weight_error_add(double sums[2], const ingot_weight_view *source,
                                    const float *row_fold, const float *column_fold,
                                    const ingot_weight_view *stored, ingot_pool *pool) {
    error_task task = {
        .source = source, .row_fold = row_fold, .column_fold = column_fold, .stored = stored};
    return add_errors(sums, &task, pool);
}

ingot_status ingot_quantized_weight_error_add(double sums[2], const ingot_weight_view *source,
                                              const float *row_fold, const float *column_fold,
                                              const ingot_quantized *q, ingot_pool *pool) {
    error_task task = {.source = source, .row_fold = row_fold, .column_fold = column_fold, .q = q};
    return add_errors(sums, &task, pool);
}

ingot_status ingot_weight_error(double *error, const ingot_weight_view *source,
                                const float *row_fold, const float *column_fold,
                                const ingot_weight_view *stored, ingot_pool *pool) {
    double sums[2] = {0, 0};
    INGOT_TRY(ingot_weight_error_add(sums, source, row_fold, column_fold, stored, pool));
    *error = ingot_weight_error_ratio(sums);
    return INGOT_OK;
}

ingot_status ingot_quantized_weight_error(double *error, const ingot_weight_view *source,
                                          const float *row_fold, const float *column_fold,
                                          const ingot_quantized *q, ingot_pool *pool) {
    double sums[2] = {0, 0};
    INGOT_TRY(ingot_quantized_weight_error_add(sums, source, row_fold, column_fold, q, pool));
    *error = ingot_weight_error_ratio(sums);
    return INGOT_OK;
}

/* ---- under H ------------------------------------------------------------------------------- */

typedef struct fold_task {
    float *out;
    const float *gram, *fold;
    uint64_t n;
} fold_task;

/* Rows of the lower triangle, and the columns of the upper one that mirror them: every element is
 * written by one tile, and gram may be out because a tile reads its own rows' triangle alone. */
static void fold_tile(void *context, size_t tile, unsigned worker) {
    (void)worker;
    const fold_task *t = context;
    for (uint64_t i = tile * INGOT_QUANTIZE_TILE; i < ingot_tile_end(tile, t->n); i++) {
        for (uint64_t j = 0; j <= i; j++) {
            const float value = t->gram[i * t->n + j];
            const float folded = t->fold != NULL ? value / (t->fold[i] * t->fold[j]) : value;
            t->out[i * t->n + j] = folded;
            t->out[j * t->n + i] = folded;
        }
    }
}

void ingot_gram_fold(float *out, const float *gram, const float *fold, uint64_t n,
                     ingot_pool *pool) {
    fold_task task = {.out = out, .gram = gram, .fold = fold, .n = n};
    ingot_pool_run(pool, ingot_row_tiles(n), fold_tile, &task);
}

typedef struct loss_task {
    const ingot_quantize_ops *ops;
    const float *w, *gram;
    const ingot_quantized *q; /* NULL: the weights themselves */
    double *sums;             /* [tiles] */
    float *scratch;           /* [threads][2][TILE][cols] */
    uint64_t rows, cols;
} loss_task;

static void loss_tile(void *context, size_t tile, unsigned worker) {
    const loss_task *task = context;
    const uint64_t n = task->cols, first = tile * INGOT_QUANTIZE_TILE;
    const uint64_t rows = ingot_tile_end(tile, task->rows) - first;
    float *e = task->scratch + 2 * worker * INGOT_QUANTIZE_TILE * n;
    float *product = e + INGOT_QUANTIZE_TILE * n;
    for (uint64_t r = 0; r < rows; r++) {
        const float *w = task->w + (first + r) * n;
        float *row = e + r * n;
        if (task->q == NULL) {
            memcpy(row, w, n * sizeof *row);
            continue;
        }
        ingot_quantized_row(row, task->q, first + r);
        for (uint64_t j = 0; j < n; j++) {
            row[j] = w[j] - row[j];
        }
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)rows, (int)n, (int)n, 1.0f, e,
                (int)n, task->gram, (int)n, 0.0f, product, (int)n);
    task->sums[tile] = 0;
    for (uint64_t r = 0; r < rows; r++) {
        task->sums[tile] += task->ops->dot(e + r * n, product + r * n, n);
    }
}

ingot_status ingot_quadratic_loss(double *loss, const float *w, uint64_t rows, uint64_t cols,
                                  const ingot_quantized *q, const float *gram, ingot_pool *pool,
                                  ingot_arena *scratch) {
    loss_task task = {
        .ops = ingot_quantize_ops_get(), .w = w, .gram = gram, .q = q, .rows = rows, .cols = cols};
    const uint64_t tiles = ingot_row_tiles(rows);
    INGOT_TRY(ingot_arena_array(scratch, (void **)&task.sums, tiles, sizeof(double)));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&task.scratch,
                                2 * (uint64_t)ingot_pool_width(pool) * INGOT_QUANTIZE_TILE,
                                cols * sizeof(float)));
    ingot_pool_run(pool, tiles, loss_tile, &task);
    *loss = 0;
    for (uint64_t t = 0; t < tiles; t++) {
        *loss += task.sums[t];
    }
    return INGOT_OK;
}
