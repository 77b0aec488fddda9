/* GPTQ (arXiv 2210.17323) in the form of LDLQ (arXiv 2307.13304): one Cholesky factor in reverse
 * order, no inverse.  Columns are visited group by group, so that the file needs no column index:
 * groups by the mean of their diagonal of H, columns inside a group by their own, both descending.
 *
 * For a tile of rows and a block of columns the targets are w + E A, E the errors of the columns
 * done so far and A the feedback: one sgemm per block ("lazy" update), then the block column by
 * column.  A group's scale is searched on those targets, the error-updated weights. */
#include "common/sizes.h"
#include "kernels/quantize_internal.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* LAPACK, Fortran calling convention, column-major. */
void spotrf_(const char *uplo, const int *n, float *a, const int *lda, int *info);
void dpotrf_(const char *uplo, const int *n, double *a, const int *lda, int *info);

#define BLOCK 128u /* columns of one lazy update */

const double ingot_gptq_dampings[INGOT_DAMPING_STEPS] = {0.01, 0.03, 0.1, 0.3, 1.0, 1.0};

/* ---- order -------------------------------------------------------------------------------- */

typedef struct ranked {
    double key;
    uint64_t index;
} ranked;

static int by_key_descending(const void *a, const void *b) {
    const ranked *x = a, *y = b;
    if (x->key != y->key) {
        return x->key > y->key ? -1 : 1;
    }
    return x->index < y->index ? -1 : 1;
}

ingot_status ingot_gptq_order(uint32_t *order, const float *diagonal, uint64_t cols,
                              uint64_t group_size, ingot_arena *scratch) {
    const uint64_t groups = ingot_ceil_div(cols, group_size);
    ranked *group, *column;
    INGOT_TRY(ingot_arena_array(scratch, (void **)&group, groups, sizeof *group));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&column, group_size, sizeof *column));
    for (uint64_t g = 0; g < groups; g++) {
        const uint64_t first = g * group_size;
        const uint64_t end = ingot_min_u64(first + group_size, cols);
        double total = 0;
        for (uint64_t j = first; j < end; j++) {
            total += (double)diagonal[j];
        }
        group[g] = (ranked){.key = total / (double)(end - first), .index = g};
    }
    qsort(group, groups, sizeof *group, by_key_descending);
    for (uint64_t g = 0, at = 0; g < groups; g++) {
        const uint64_t first = group[g].index * group_size;
        const uint64_t count = ingot_min_u64(group_size, cols - first);
        for (uint64_t j = 0; j < count; j++) {
            column[j] = (ranked){.key = (double)diagonal[first + j], .index = first + j};
        }
        qsort(column, count, sizeof *column, by_key_descending);
        for (uint64_t j = 0; j < count; j++) {
            order[at++] = (uint32_t)column[j].index;
        }
    }
    return INGOT_OK;
}

double ingot_gptq_mean(const float *diagonal, uint64_t cols, uint32_t *dead_columns) {
    double total = 0;
    *dead_columns = 0;
    for (uint64_t j = 0; j < cols; j++) {
        total += (double)diagonal[j];
        *dead_columns += !((double)diagonal[j] > 0);
    }
    return !isfinite(total) ? total : total > 0 ? total / (double)cols : 1.0;
}

void ingot_gptq_importance(float *importance, const float *diagonal, uint64_t cols, double damping,
                           double mean) {
    for (uint64_t j = 0; j < cols; j++) {
        const double d = (double)diagonal[j];
        importance[j] = (float)ingot_gptq_damped(d > 0 && isfinite(d) ? d : 0, damping,
                                                 isfinite(mean) ? mean : 1.0);
    }
}

/* ---- factor ------------------------------------------------------------------------------- */

/* Element (i, j), i >= j, of the damped H in the reversed order of the factor. */
static double reversed(const ingot_gptq_factor *factor, const float *gram, double mean,
                       double damping, uint64_t i, uint64_t j) {
    const uint64_t n = factor->cols;
    const uint64_t a = factor->order[n - 1 - i], b = factor->order[n - 1 - j];
    const double value = (double)(a > b ? gram[a * n + b] : gram[b * n + a]);
    if (i != j) {
        return value;
    }
    return ingot_gptq_damped(value > 0 ? value : mean, damping, mean);
}

bool ingot_cholesky_f32(float *a, uint64_t n) {
    int size = (int)n, info = 0; /* row-major lower is column-major upper: U^T U = L L^T */
    spotrf_("U", &size, a, &size, &info);
    for (uint64_t i = 0; info == 0 && i < n; i++) {
        if (!(a[i * n + i] > 0.0f) || !isfinite(a[i * n + i])) {
            return false;
        }
    }
    return info == 0;
}

bool ingot_cholesky_f64(double *a, uint64_t n) {
    int size = (int)n, info = 0;
    dpotrf_("U", &size, a, &size, &info);
    for (uint64_t i = 0; info == 0 && i < n; i++) {
        if (!(a[i * n + i] > 0) || !isfinite(a[i * n + i])) {
            return false;
        }
    }
    return info == 0;
}

static bool factor_f32(float *l, const ingot_gptq_factor *factor, const float *gram, double mean,
                       double damping) {
    const uint64_t n = factor->cols;
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j <= i; j++) {
            l[i * n + j] = (float)reversed(factor, gram, mean, damping, i, j);
        }
    }
    return ingot_cholesky_f32(l, n);
}

static ingot_status factor_f64(bool *is_done, float *l, const ingot_gptq_factor *factor,
                               const float *gram, double mean, double damping,
                               ingot_arena *scratch) {
    const uint64_t n = factor->cols;
    double *d;
    INGOT_TRY(ingot_arena_array(scratch, (void **)&d, n * n, sizeof *d));
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j <= i; j++) {
            d[i * n + j] = reversed(factor, gram, mean, damping, i, j);
        }
    }
    *is_done = ingot_cholesky_f64(d, n);
    for (uint64_t i = 0; *is_done && i < n; i++) {
        for (uint64_t j = 0; j <= i; j++) {
            l[i * n + j] = (float)d[i * n + j];
        }
    }
    return INGOT_OK;
}

/* feedback_kj = R_kj / R_jj with R = J L J, J the reversal. */
static void fill_feedback(float *feedback, const float *l, uint64_t n) {
    for (uint64_t k = 0; k < n; k++) {
        const float *row = l + (n - 1 - k) * n;
        for (uint64_t j = k + 1; j < n; j++) {
            const uint64_t c = n - 1 - j;
            feedback[k * n + j] = row[c] / l[c * n + c];
        }
    }
}

ingot_status ingot_gptq_factorize(ingot_gptq_factor *out, const float *gram, uint64_t cols,
                                  uint64_t group, ingot_arena *arena, ingot_arena *scratch) {
    *out = (ingot_gptq_factor){.cols = cols, .group = group, .damping_step = 255};
    if (cols > 46340) { /* cols^2 must fit the LAPACK integer */
        return INGOT_ERR_UNSUPPORTED;
    }
    INGOT_TRY(ingot_arena_array(arena, (void **)&out->order, cols, sizeof *out->order));
    INGOT_TRY(ingot_arena_array(arena, (void **)&out->importance, cols, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&out->feedback, cols * cols, sizeof(float)));
    memset(out->feedback, 0, cols * cols * sizeof(float));
    float *diagonal, *l;
    INGOT_TRY(ingot_arena_array(scratch, (void **)&diagonal, cols, sizeof *diagonal));
    for (uint64_t j = 0; j < cols; j++) {
        diagonal[j] = gram[j * cols + j];
    }
    INGOT_TRY(ingot_gptq_order(out->order, diagonal, cols, group, scratch));
    const double mean = ingot_gptq_mean(diagonal, cols, &out->dead_columns);
    INGOT_TRY(ingot_arena_array(scratch, (void **)&l, cols * cols, sizeof *l));
    bool is_done = false;
    for (unsigned step = 0; isfinite(mean) && !is_done && step < INGOT_DAMPING_STEPS; step++) {
        out->damping = ingot_gptq_dampings[step];
        if (step + 1 < INGOT_DAMPING_STEPS) {
            is_done = factor_f32(l, out, gram, mean, out->damping);
        } else {
            INGOT_TRY(factor_f64(&is_done, l, out, gram, mean, out->damping, scratch));
        }
        out->damping_step = is_done ? step : 255;
    }
    ingot_gptq_importance(out->importance, diagonal, cols, out->damping, mean);
    if (is_done) {
        fill_feedback(out->feedback, l, cols);
    }
    return INGOT_OK;
}

/* ---- the column loop ---------------------------------------------------------------------- */

/* Scratch of one worker. */
typedef struct tile_scratch {
    float *w, *error;       /* [TILE][cols], in the order of the factor */
    float *target, *search; /* [TILE][padded group] */
    float *importance;      /* [2][padded group]: of a group, and of a row without its outliers */
    float *columns;         /* [3][BLOCK][TILE]: targets, weights, errors of a block, transposed */
    float *kept;            /* [BLOCK][TILE] */
    uint8_t *keep, *codes;  /* [BLOCK][TILE] */
} tile_scratch;

typedef struct gptq_task {
    const ingot_quantize_ops *ops;
    ingot_quantized *q;
    const float *w;
    const ingot_gptq_factor *factor;
    float *importance; /* [cols], in the order of the factor */
    tile_scratch *scratch;
} gptq_task;

/* A tile's state: rows first .. first+rows-1, scales of the group at hand. */
typedef struct tile_state {
    uint64_t first, rows;
    float scale[INGOT_QUANTIZE_TILE], zero[INGOT_QUANTIZE_TILE];
} tile_state;

/* Index of (row, column) among the outliers, or count when it is none. */
static uint64_t find_outlier(const ingot_outliers *o, uint64_t row, uint32_t column) {
    uint64_t low = o->row_ptr[row], high = o->row_ptr[row + 1];
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        if (o->col[middle] < column) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low < o->row_ptr[row + 1] && o->col[low] == column ? low : o->count;
}

/* target[TILE][stride] = w + error A for columns at .. at+count-1. */
static void update_targets(const gptq_task *task, const tile_scratch *s, const tile_state *tile,
                           uint64_t at, uint64_t count, uint64_t stride) {
    const uint64_t n = task->factor->cols;
    for (uint64_t r = 0; r < tile->rows; r++) {
        memcpy(s->target + r * stride, s->w + r * n + at, count * sizeof(float));
        memset(s->target + r * stride + count, 0, (stride - count) * sizeof(float));
    }
    if (at > 0) {
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)tile->rows, (int)count, (int)at,
                    1.0f, s->error, (int)n, task->factor->feedback + at, (int)n, 1.0f, s->target,
                    (int)stride);
    }
}

/* search[TILE][stride] = the error-updated weights of a group: what its targets become if the group
 * itself is then quantized without error.  The shift d = t - w of a column takes part in the
 * feedback to those after it, d_j = p_j - sum_{k<j} d_k A_kj with p = error A of the columns done:
 * a triangular system. */
static void updated_weights(const gptq_task *task, const tile_scratch *s, const tile_state *tile,
                            uint64_t at, uint64_t count, uint64_t stride) {
    const uint64_t n = task->factor->cols;
    for (uint64_t r = 0; r < tile->rows; r++) {
        for (uint64_t j = 0; j < count; j++) {
            s->search[r * stride + j] = s->target[r * stride + j] - s->w[r * n + at + j];
        }
        memset(s->search + r * stride + count, 0, (stride - count) * sizeof(float));
    }
    if (at > 0) {
        cblas_strsm(CblasRowMajor, CblasRight, CblasUpper, CblasNoTrans, CblasUnit, (int)tile->rows,
                    (int)count, 1.0f, task->factor->feedback + at * n + at, (int)n, s->search,
                    (int)stride);
    }
    for (uint64_t r = 0; r < tile->rows; r++) {
        for (uint64_t j = 0; j < count; j++) {
            s->search[r * stride + j] += s->w[r * n + at + j];
        }
    }
}

/* Searches the scale of every row of the tile on the updated weights of one group. */
static void choose_scales(const gptq_task *task, const tile_scratch *s, tile_state *tile,
                          uint64_t at, uint64_t count, uint64_t stride) {
    ingot_quantized *q = task->q;
    const uint64_t group = task->factor->order[at] / task->factor->group;
    const uint64_t padded = ingot_pad_lanes(count);
    float *own = s->importance + stride;
    memset(s->importance, 0, padded * sizeof(float));
    memcpy(s->importance, task->importance + at, count * sizeof(float));
    for (uint64_t r = 0; r < tile->rows; r++) {
        float *w = s->search + r * stride;
        bool is_reduced = false;
        for (uint64_t j = 0; q->outliers.count != 0 && j < count; j++) {
            if (find_outlier(&q->outliers, tile->first + r, task->factor->order[at + j]) !=
                q->outliers.count) {
                if (!is_reduced) {
                    memcpy(own, s->importance, padded * sizeof(float));
                }
                is_reduced = true;
                own[j] = w[j] = 0.0f;
            }
        }
        ingot_group_choice choice;
        task->ops->search(&choice, w, is_reduced ? own : s->importance, padded, q->format.bits,
                          q->format.zero_mode, q->format.scale_dtype);
        tile->scale[r] = choice.scale;
        tile->zero[r] = (float)choice.zero;
        q->scales[(tile->first + r) * q->groups + group] = choice.scale;
        q->zeros[(tile->first + r) * q->groups + group] = (uint8_t)choice.zero;
    }
}

/* Marks the outliers of a block; true when there are any. */
static bool mark_outliers(const gptq_task *task, const tile_scratch *s, const tile_state *tile,
                          uint64_t at, uint64_t count) {
    const ingot_outliers *o = &task->q->outliers;
    bool any = false;
    if (o->count == 0) {
        return false;
    }
    memset(s->keep, 0, count * INGOT_QUANTIZE_TILE);
    for (uint64_t r = 0; r < tile->rows; r++) {
        for (uint64_t j = 0; j < count; j++) {
            const bool is_outlier =
                find_outlier(o, tile->first + r, task->factor->order[at + j]) != o->count;
            s->keep[j * INGOT_QUANTIZE_TILE + r] = is_outlier;
            any = any || is_outlier;
        }
    }
    return any;
}

static void quantize_block(const gptq_task *task, const tile_scratch *s, const tile_state *tile,
                           uint64_t at, uint64_t count, uint64_t stride) {
    const uint64_t n = task->factor->cols;
    const ingot_outliers *o = &task->q->outliers;
    float *t = s->columns, *w = t + (uint64_t)BLOCK * INGOT_QUANTIZE_TILE;
    float *e = w + (uint64_t)BLOCK * INGOT_QUANTIZE_TILE;
    memset(t, 0, 3 * (uint64_t)BLOCK * INGOT_QUANTIZE_TILE * sizeof *t);
    for (uint64_t r = 0; r < tile->rows; r++) {
        for (uint64_t j = 0; j < count; j++) {
            t[j * INGOT_QUANTIZE_TILE + r] = s->target[r * stride + j];
            w[j * INGOT_QUANTIZE_TILE + r] = s->w[r * n + at + j];
        }
    }
    const bool has_outliers = mark_outliers(task, s, tile, at, count);
    task->ops->feedback(s->codes, e, t, w, task->factor->feedback + at * n + at, n, count,
                        tile->scale, tile->zero, task->q->format.bits,
                        has_outliers ? s->keep : NULL, s->kept, o->dtype);
    for (uint64_t r = 0; r < tile->rows; r++) {
        for (uint64_t j = 0; j < count; j++) {
            const uint64_t from = j * INGOT_QUANTIZE_TILE + r;
            const uint32_t column = task->factor->order[at + j];
            s->error[r * n + at + j] = e[from];
            task->q->codes[(tile->first + r) * n + column] = s->codes[from];
            if (has_outliers && s->keep[from] != 0) {
                o->val[find_outlier(o, tile->first + r, column)] = s->kept[from];
            }
        }
    }
}

static void gptq_tile(void *context, size_t index, unsigned worker) {
    const gptq_task *task = context;
    const tile_scratch *s = &task->scratch[worker];
    const uint64_t n = task->factor->cols, group = task->factor->group;
    tile_state tile = {.first = index * INGOT_QUANTIZE_TILE};
    tile.rows = ingot_tile_end(index, task->q->rows) - tile.first;
    for (uint64_t r = 0; r < tile.rows; r++) {
        for (uint64_t j = 0; j < n; j++) {
            s->w[r * n + j] = task->w[(tile.first + r) * n + task->factor->order[j]];
        }
    }
    const uint64_t stride = ingot_pad_lanes(group);
    for (uint64_t at = 0; at < n;) {
        const uint64_t first = task->factor->order[at] / group * group;
        const uint64_t count = ingot_min_u64(group, n - first);
        update_targets(task, s, &tile, at, count, stride);
        updated_weights(task, s, &tile, at, count, stride);
        choose_scales(task, s, &tile, at, count, stride);
        for (uint64_t block = at; block < at + count; block += BLOCK) {
            const uint64_t width = ingot_min_u64(BLOCK, at + count - block);
            if (count > BLOCK) {
                update_targets(task, s, &tile, block, width, stride);
            }
            quantize_block(task, s, &tile, block, width, stride);
        }
        at += count;
    }
}

static ingot_status tile_scratch_create(tile_scratch *s, uint64_t cols, uint64_t group,
                                        ingot_arena *arena) {
    const uint64_t tile = INGOT_QUANTIZE_TILE, padded = ingot_pad_lanes(group);
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->w, tile * cols, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->error, tile * cols, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->target, tile * padded, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->search, tile * padded, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->importance, 2 * padded, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->columns, 3 * BLOCK * tile, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->kept, BLOCK * tile, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->keep, BLOCK * tile, 1));
    return ingot_arena_array(arena, (void **)&s->codes, BLOCK * tile, 1);
}

ingot_status ingot_quantize_gptq(ingot_quantized *q, const float *w,
                                 const ingot_gptq_factor *factor, ingot_arena *scratch,
                                 ingot_pool *pool) {
    const unsigned workers = ingot_pool_width(pool);
    gptq_task task = {.ops = ingot_quantize_ops_get(), .q = q, .w = w, .factor = factor};
    INGOT_TRY(ingot_arena_array(scratch, (void **)&task.scratch, workers, sizeof *task.scratch));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&task.importance, q->cols, sizeof(float)));
    for (unsigned i = 0; i < workers; i++) {
        INGOT_TRY(tile_scratch_create(&task.scratch[i], q->cols, factor->group, scratch));
    }
    for (uint64_t j = 0; j < q->cols; j++) {
        task.importance[j] = factor->importance[factor->order[j]];
    }
    ingot_pool_run(pool, ingot_row_tiles(q->rows), gptq_tile, &task);
    return INGOT_OK;
}
