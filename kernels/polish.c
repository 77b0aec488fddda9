/* Polish of scales, zero points and codes (kernels/refine.h), for tiles of rows.
 *
 * With E = W - W' and r = E H of a row, changing stored values of a group by d changes the loss by
 * d H_gg d^T - 2 r_g d^T and r by -d H_g.  A group's scale (d = delta c, c = q - z), zero point
 * (d = -k s) and codes (d = s k, one column after the other) are changed in turn on the group's own
 * r, and what changed then moves r of all columns by one sgemm. */
#include "kernels/refine.h"

#include "common/sizes.h"
#include "kernels/quantize_internal.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#define BLOCK 128u /* columns whose codes are visited between two updates of all */
#define TILE  ((uint64_t)INGOT_QUANTIZE_TILE)

typedef struct polish_task {
    const ingot_quantize_ops *ops;
    ingot_quantized *q;
    const float *w;
    const float *gram;   /* [cols][cols], damped */
    float *group_sum;    /* [cols]: gram summed over the columns of the own group */
    double *group_total; /* [groups]: group_sum summed over the group */
    struct polish_scratch {
        float *e, *r;           /* [TILE][cols]: E (then values), E H */
        float *steps, *product; /* [TILE][group]: c as floats, c H_gg */
        float *own;             /* [TILE][group]: r of the group at hand */
        float *change;          /* [TILE][group] of stored values */
        float *columns, *delta; /* [BLOCK][TILE]: r and changes of a block, transposed */
        uint8_t *codes, *keep;  /* [BLOCK][TILE] */
        float scale[TILE], zero[TILE];
    } * scratch;
    unsigned rounds;
} polish_task;

typedef struct polish_scratch polish_scratch;

/* The tile and the group at hand. */
typedef struct place {
    uint64_t first, rows; /* of the tile */
    uint64_t group, at, count;
} place;

static bool is_outlier(const ingot_outliers *o, uint64_t row, uint64_t column) {
    for (uint64_t i = o->count != 0 ? o->row_ptr[row] : 0; o->count != 0 && i < o->row_ptr[row + 1];
         i++) {
        if (o->col[i] == column) {
            return true;
        }
    }
    return false;
}

static bool has_outliers(const ingot_outliers *o, uint64_t row) {
    return o->count != 0 && o->row_ptr[row] != o->row_ptr[row + 1];
}

/* r[TILE][cols] -= change[TILE][count] H[at .. at+count-1] */
static void move_all(const polish_task *t, const polish_scratch *s, const place *p, uint64_t at,
                     uint64_t count, const float *change) {
    const int n = (int)t->q->cols;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)p->rows, n, (int)count, -1.0f,
                change, (int)t->q->format.group, t->gram + at * t->q->cols, n, 1.0f, s->r, n);
}

/* The scale of one row: *scale changes, and own, where the loss falls by it. */
static void refit_scale(const polish_task *t, float *scale, float *own, const float *steps,
                        const float *product, uint64_t count) {
    const double along = t->ops->dot(own, steps, count);
    const double square = t->ops->dot(product, steps, count);
    if (!(square > 0) || *scale == 0.0f) {
        return;
    }
    const float moved =
        ingot_scale_store((float)((double)*scale + along / square), t->q->format.scale_dtype);
    const double delta = (double)moved - (double)*scale;
    if (moved == 0.0f || !(delta * (2 * along - delta * square) > 0)) {
        return;
    }
    *scale = moved;
    for (uint64_t j = 0; j < count; j++) {
        own[j] -= (float)delta * product[j];
    }
}

/* The zero point of one row; steps follow it. */
static void refit_zero(const polish_task *t, uint8_t *zero, float *own, float scale,
                       const place *p) {
    const double top = (double)((1u << t->q->format.bits) - 1), s = (double)scale;
    const double square = t->group_total[p->group];
    double along = 0;
    for (uint64_t j = 0; j < p->count; j++) {
        along += (double)own[j];
    }
    if (s == 0 || !(square > 0)) {
        return;
    }
    double moved = rint((double)*zero - along / (s * square));
    moved = moved < 0 ? 0 : moved > top ? top : moved;
    const double d = -s * (moved - (double)*zero); /* what every stored value changes by */
    if (!(d * (2 * along - d * square) > 0)) {
        return;
    }
    *zero = (uint8_t)moved;
    for (uint64_t j = 0; j < p->count; j++) {
        own[j] -= (float)d * t->group_sum[p->at + j];
    }
}

/* Scales and zero points of the group; own r follows. */
static void refit(const polish_task *t, const polish_scratch *s, const place *p) {
    ingot_quantized *q = t->q;
    const uint64_t n = q->cols, stride = q->format.group;
    for (uint64_t i = 0; i < p->rows; i++) {
        const uint64_t row = p->first + i;
        const float zero = (float)q->zeros[row * q->groups + p->group];
        for (uint64_t j = 0; j < p->count; j++) {
            s->steps[i * stride + j] = (float)q->codes[row * n + p->at + j] - zero;
        }
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)p->rows, (int)p->count,
                (int)p->count, 1.0f, s->steps, (int)stride, t->gram + p->at * n + p->at, (int)n,
                0.0f, s->product, (int)stride);
    for (uint64_t i = 0; i < p->rows; i++) {
        const uint64_t row = p->first + i, at = row * q->groups + p->group;
        float *own = s->own + i * stride;
        refit_scale(t, &q->scales[at], own, s->steps + i * stride, s->product + i * stride,
                    p->count);
        if (q->format.zero_mode == INGOT_ZERO_STORED && !has_outliers(&q->outliers, row)) {
            refit_zero(t, &q->zeros[at], own, q->scales[at], p);
        }
    }
}

/* Codes of columns at .. at+count-1 of the group; own holds r of the group from p->at on. */
static void descend(const polish_task *t, polish_scratch *s, const place *p, uint64_t at,
                    uint64_t count) {
    ingot_quantized *q = t->q;
    const uint64_t n = q->cols, stride = q->format.group, inside = at - p->at;
    memset(s->columns, 0, count * TILE * sizeof(float));
    memset(s->codes, 0, count * TILE);
    memset(s->keep, 1, count * TILE);
    memset(s->scale, 0, sizeof s->scale);
    memset(s->zero, 0, sizeof s->zero);
    for (uint64_t i = 0; i < p->rows; i++) {
        const uint64_t row = p->first + i;
        s->scale[i] = q->scales[row * q->groups + p->group];
        s->zero[i] = (float)q->zeros[row * q->groups + p->group];
        const bool is_watched = has_outliers(&q->outliers, row);
        for (uint64_t j = 0; j < count; j++) {
            s->columns[j * TILE + i] = s->own[i * stride + inside + j];
            s->codes[j * TILE + i] = q->codes[row * n + at + j];
            s->keep[j * TILE + i] = is_watched && is_outlier(&q->outliers, row, at + j);
        }
    }
    t->ops->descend(s->codes, s->columns, t->gram + at * n + at, n, count, s->scale, s->zero,
                    q->format.bits, s->keep);
    for (uint64_t i = 0; i < p->rows; i++) {
        for (uint64_t j = 0; j < count; j++) {
            q->codes[(p->first + i) * n + at + j] = s->codes[j * TILE + i];
        }
    }
}

/* values[TILE][group] of the columns at hand as they are stored now, without outliers. */
static void stored_values(const polish_task *t, float *values, const place *p, uint64_t at,
                          uint64_t count) {
    const ingot_quantized *q = t->q;
    for (uint64_t i = 0; i < p->rows; i++) {
        const uint64_t row = p->first + i, g = row * q->groups + p->group;
        t->ops->row(values + i * q->format.group, q->codes + row * q->cols + at, count, count,
                    &q->scales[g], &q->zeros[g]);
    }
}

/* change = values now - change; true when any differs.  Outliers, whose code is the zero point, are
 * zero before and after. */
static bool changed_values(const polish_task *t, const polish_scratch *s, const place *p,
                           uint64_t at, uint64_t count) {
    const uint64_t stride = t->q->format.group;
    bool any = false;
    stored_values(t, s->product, p, at, count);
    for (uint64_t i = 0; i < p->rows; i++) {
        for (uint64_t j = 0; j < count; j++) {
            float *change = &s->change[i * stride + j];
            *change = s->product[i * stride + j] - *change;
            any = any || *change != 0.0f;
        }
    }
    return any;
}

static void take_own(const polish_task *t, const polish_scratch *s, const place *p) {
    for (uint64_t i = 0; i < p->rows; i++) {
        memcpy(s->own + i * t->q->format.group, s->r + i * t->q->cols + p->at,
               p->count * sizeof(float));
    }
}

/* One group of a tile; true when something changed. */
static bool polish_group(const polish_task *t, polish_scratch *s, const place *p) {
    bool any = false;
    take_own(t, s, p);
    stored_values(t, s->change, p, p->at, p->count);
    refit(t, s, p);
    if (p->count > BLOCK) { /* the codes come in blocks, each under all that changed before */
        if (changed_values(t, s, p, p->at, p->count)) {
            any = true;
            move_all(t, s, p, p->at, p->count, s->change);
        }
        for (uint64_t at = p->at; at < p->at + p->count; at += BLOCK) {
            const uint64_t count = ingot_min_u64(BLOCK, p->at + p->count - at);
            take_own(t, s, p);
            stored_values(t, s->change, p, at, count);
            descend(t, s, p, at, count);
            if (changed_values(t, s, p, at, count)) {
                any = true;
                move_all(t, s, p, at, count, s->change);
            }
        }
        return any;
    }
    descend(t, s, p, p->at, p->count);
    if (changed_values(t, s, p, p->at, p->count)) {
        any = true;
        move_all(t, s, p, p->at, p->count, s->change);
    }
    return any;
}

static void polish_tile(void *context, size_t index, unsigned worker) {
    const polish_task *t = context;
    polish_scratch *s = &t->scratch[worker];
    const ingot_quantized *q = t->q;
    const uint64_t n = q->cols;
    place p = {.first = index * TILE};
    p.rows = ingot_tile_end(index, q->rows) - p.first;
    for (uint64_t i = 0; i < p.rows; i++) {
        float *e = s->e + i * n;
        const float *w = t->w + (p.first + i) * n;
        ingot_quantized_row(e, q, p.first + i);
        for (uint64_t j = 0; j < n; j++) {
            e[j] = w[j] - e[j];
        }
    }
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)p.rows, (int)n, (int)n, 1.0f, s->e,
                (int)n, t->gram, (int)n, 0.0f, s->r, (int)n);
    bool any = true;
    for (unsigned round = 0; any && round < t->rounds; round++) {
        any = false;
        for (p.group = 0; p.group < q->groups; p.group++) {
            p.at = p.group * q->format.group;
            p.count = ingot_min_u64(q->format.group, n - p.at);
            any = polish_group(t, s, &p) || any;
        }
    }
}

static ingot_status scratch_create(polish_scratch *s, uint64_t cols, uint64_t group,
                                   ingot_arena *arena) {
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->e, TILE * cols, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->r, TILE * cols, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->steps, TILE * group, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->product, TILE * group, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->own, TILE * group, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->change, TILE * group, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->columns, BLOCK * TILE, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&s->codes, BLOCK * TILE, 1));
    return ingot_arena_array(arena, (void **)&s->keep, BLOCK * TILE, 1);
}

/* The damped H and what zero points need of it. */
static ingot_status prepare(polish_task *t, const float *gram, const float *importance,
                            ingot_arena *arena) {
    const ingot_quantized *q = t->q;
    const uint64_t n = q->cols;
    float *copy;
    INGOT_TRY(ingot_arena_array(arena, (void **)&copy, n, n * sizeof *copy));
    INGOT_TRY(ingot_arena_array(arena, (void **)&t->group_sum, n, sizeof(float)));
    INGOT_TRY(ingot_arena_array(arena, (void **)&t->group_total, q->groups, sizeof(double)));
    memcpy(copy, gram, n * n * sizeof *copy);
    memset(t->group_total, 0, q->groups * sizeof(double));
    for (uint64_t i = 0; i < n; i++) {
        copy[i * n + i] = importance[i];
    }
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t first = i / q->format.group * q->format.group;
        const uint64_t end = ingot_min_u64(first + q->format.group, n);
        double sum = 0;
        for (uint64_t j = first; j < end; j++) {
            sum += (double)copy[i * n + j];
        }
        t->group_sum[i] = (float)sum;
        t->group_total[i / q->format.group] += sum;
    }
    t->gram = copy;
    return INGOT_OK;
}

ingot_status ingot_quantize_polish(ingot_quantized *q, const float *w, const float *gram,
                                   const float *importance, unsigned rounds, ingot_arena *scratch,
                                   ingot_pool *pool) {
    const unsigned workers = ingot_pool_width(pool);
    polish_task task = {.ops = ingot_quantize_ops_get(), .q = q, .w = w, .rounds = rounds};
    INGOT_TRY(prepare(&task, gram, importance, scratch));
    INGOT_TRY(ingot_arena_array(scratch, (void **)&task.scratch, workers, sizeof *task.scratch));
    for (unsigned i = 0; i < workers; i++) {
        INGOT_TRY(scratch_create(&task.scratch[i], q->cols, q->format.group, scratch));
    }
    ingot_pool_run(pool, ingot_row_tiles(q->rows), polish_tile, &task);
    return INGOT_OK;
}
