/* Statistics of a layer's inputs: the lower triangle of x^T x, sums of magnitudes, the rows that
 * had to be left out; and drift against the inputs of the full-precision model. */
#include "common/sizes.h"
#include "kernels/cpu/cpu.h"

#include <cblas.h>
#include <string.h>

#define GRAM_TILE   256u /* rows and columns of a tile of the triangle */
#define COLUMN_TILE 64u  /* columns of a task that sums magnitudes */
#define CHECK_TILE  64u  /* rows of a task that looks for non-finite values */

typedef struct gram_task {
    const ingot_cpu *cpu;
    float *gram;
    double *magnitude;
    const float *x;
    const uint8_t *is_bad; /* [m] */
    uint64_t m, n;
    ingot_cpu_cut cut;
} gram_task;

static void check_rows(void *context, size_t index, unsigned worker) {
    const gram_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut, index);
    const uint64_t end = begin + ingot_cpu_cut_size(&t->cut, index);
    for (uint64_t i = begin; i < end; i++) {
        t->cpu->flags[i] = !t->cpu->isa->math->is_finite(t->x + i * t->n, t->n);
    }
}

static void sum_columns(void *context, size_t index, unsigned worker) {
    const gram_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut, index);
    const uint64_t count = ingot_cpu_cut_size(&t->cut, index);
    for (uint64_t i = 0; i < t->m; i++) {
        if (!t->is_bad[i]) {
            t->cpu->isa->math->magnitude(t->magnitude + begin, t->x + i * t->n + begin, count);
        }
    }
}

/* Next run of good rows from *begin; false when there is none. */
static bool next_run(const gram_task *t, uint64_t *begin, uint64_t *end) {
    uint64_t i = *begin;
    while (i < t->m && t->is_bad[i]) {
        i++;
    }
    *begin = i;
    while (i < t->m && !t->is_bad[i]) {
        i++;
    }
    *end = i;
    return *begin < *end;
}

/* Tile number index of the lower triangle, counted row by row. */
static void gram_tile(void *context, size_t index, unsigned worker) {
    const gram_task *t = context;
    (void)worker;
    uint64_t i = 0, j = index;
    while (j > i) {
        j -= i + 1;
        i++;
    }
    const uint64_t i0 = ingot_cpu_cut_begin(&t->cut, i), rows = ingot_cpu_cut_size(&t->cut, i);
    const uint64_t j0 = ingot_cpu_cut_begin(&t->cut, j), cols = ingot_cpu_cut_size(&t->cut, j);
    float *c = t->gram + i0 * t->n + j0;
    for (uint64_t begin = 0, end; next_run(t, &begin, &end); begin = end) {
        const float *x = t->x + begin * t->n;
        const int count = (int)(end - begin), stride = (int)t->n;
        if (i == j) {
            cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, (int)rows, count, 1.0f, x + i0,
                        stride, 1.0f, c, stride);
        } else {
            cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)rows, (int)cols, count, 1.0f,
                        x + i0, stride, x + j0, stride, 1.0f, c, stride);
        }
    }
}

static uint64_t gram_chunk(ingot_cpu *cpu, float *gram, double *magnitude, const float *x,
                           uint64_t m, uint64_t n) {
    gram_task t = {.cpu = cpu,
                   .gram = gram,
                   .magnitude = magnitude,
                   .x = x,
                   .is_bad = cpu->flags,
                   .m = m,
                   .n = n};
    t.cut = ingot_cpu_cut_make(m, CHECK_TILE, 1);
    ingot_pool_run(cpu->pool, t.cut.count, check_rows, &t);
    if (magnitude != NULL) {
        t.cut = ingot_cpu_cut_make(n, COLUMN_TILE, 16);
        ingot_pool_run(cpu->pool, t.cut.count, sum_columns, &t);
    }
    if (gram != NULL) {
        t.cut = ingot_cpu_cut_make(n, GRAM_TILE, 16);
        ingot_pool_run(cpu->pool, t.cut.count * (t.cut.count + 1) / 2, gram_tile, &t);
    }
    uint64_t bad = 0;
    for (uint64_t i = 0; i < m; i++) {
        bad += cpu->flags[i];
    }
    return bad;
}

ingot_status ingot_cpu_gram(void *context, float *gram, double *magnitude, uint64_t *dropped,
                            const float *x, uint64_t m, uint64_t n) {
    ingot_cpu *cpu = context;
    if (!ingot_cpu_fits(n)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    for (uint64_t at = 0; at < m; at += INGOT_CPU_GRAM_ROWS) {
        const uint64_t count = ingot_min_u64(m - at, INGOT_CPU_GRAM_ROWS);
        const uint64_t bad = gram_chunk(cpu, gram, magnitude, x + at * n, count, n);
        if (dropped != NULL) {
            *dropped += bad;
        }
    }
    return INGOT_OK;
}

/* ---- drift ---------------------------------------------------------------------------------- */

#define DRIFT_ROWS (INGOT_CPU_SCRATCH_FLOATS / GRAM_TILE) /* whose differences fit the scratch */

typedef struct drift_task {
    const ingot_cpu *cpu;
    float *out;
    const float *a, *b, *x;
    uint64_t m, p, n;
    ingot_cpu_cut check, down, across; /* rows looked at; rows and columns of out */
} drift_task;

static void check_pairs(void *context, size_t index, unsigned worker) {
    const drift_task *t = context;
    const ingot_cpu_math_ops *math = t->cpu->isa->math;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->check, index);
    const uint64_t end = begin + ingot_cpu_cut_size(&t->check, index);
    for (uint64_t i = begin; i < end; i++) {
        t->cpu->flags[i] = !math->is_finite(t->a + i * t->p, t->p) ||
                           (t->b != NULL && !math->is_finite(t->b + i * t->p, t->p)) ||
                           !math->is_finite(t->x + i * t->n, t->n);
    }
}

static void drift_tile(void *context, size_t index, unsigned worker) {
    const drift_task *t = context;
    float *difference = ingot_cpu_scratch(t->cpu, worker);
    const uint64_t i = index / t->across.count, j = index % t->across.count;
    const uint64_t i0 = ingot_cpu_cut_begin(&t->down, i), rows = ingot_cpu_cut_size(&t->down, i);
    const uint64_t j0 = ingot_cpu_cut_begin(&t->across, j);
    const uint64_t cols = ingot_cpu_cut_size(&t->across, j);
    const gram_task runs = {.is_bad = t->cpu->flags, .m = t->m};
    for (uint64_t begin = 0, end; next_run(&runs, &begin, &end); begin = end) {
        for (uint64_t r = begin; r < end; r++) {
            const float *a = t->a + r * t->p + i0;
            float *d = difference + (r - begin) * rows;
            memcpy(d, a, rows * sizeof *d);
            for (uint64_t k = 0; t->b != NULL && k < rows; k++) {
                d[k] = a[k] - t->b[r * t->p + i0 + k];
            }
        }
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)rows, (int)cols,
                    (int)(end - begin), 1.0f, difference, (int)rows, t->x + begin * t->n + j0,
                    (int)t->n, 1.0f, t->out + i0 * t->n + j0, (int)t->n);
    }
}

ingot_status ingot_cpu_drift(void *context, float *out, const float *a, const float *b,
                             const float *x, uint64_t m, uint64_t p, uint64_t n) {
    ingot_cpu *cpu = context;
    drift_task t = {.cpu = cpu, .out = out, .p = p, .n = n};
    if (!ingot_cpu_fits(n) || !ingot_cpu_fits(p)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    t.down = ingot_cpu_cut_make(p, GRAM_TILE, 16);
    t.across = ingot_cpu_cut_make(n, GRAM_TILE, 16);
    for (uint64_t at = 0; at < m; at += DRIFT_ROWS) {
        t.m = ingot_min_u64(m - at, DRIFT_ROWS);
        t.a = a + at * p;
        t.b = b != NULL ? b + at * p : NULL;
        t.x = x + at * n;
        t.check = ingot_cpu_cut_make(t.m, CHECK_TILE, 1);
        ingot_pool_run(cpu->pool, t.check.count, check_pairs, &t);
        ingot_pool_run(cpu->pool, t.down.count * t.across.count, drift_tile, &t);
    }
    return INGOT_OK;
}
