/* y = x W^T + bias without ever holding W in FP32: tiles of rows and columns are unpacked into the
 * worker's scratch and multiplied by OpenBLAS, or, for few rows of x, row by row in cache.
 *
 * A tile of y is one task; its sums run over the column tiles in order. */
#include "common/sizes.h"
#include "kernels/cpu/cpu.h"

#include <string.h>

/* Tile of W: 256 x 1024 floats are 1 MiB, half of a second-level cache. */
#define TILE_N 256u
#define TILE_K 1024u
/* Rows of x per task: every unpacked weight then serves that many products. */
#define TILE_M 1024u
/* Rows of W per task when x has few rows. */
#define ROWS_PER_TASK 32u

typedef struct linear_task {
    const ingot_cpu *cpu;
    const ingot_weight_view *w;
    float *y;
    const float *bias, *x;
    uint64_t m;
    ingot_cpu_cut cut_m, cut_n, cut_k;
} linear_task;

static void fill_bias(float *y, uint64_t stride, const float *bias, uint64_t m, uint64_t n) {
    for (uint64_t i = 0; i < m; i++) {
        memcpy(y + i * stride, bias, n * sizeof(float));
    }
}

static void unpack_tile(const linear_task *t, float *tile, uint64_t row, uint64_t rows,
                        uint64_t col, uint64_t cols) {
    for (uint64_t i = 0; i < rows; i++) {
        t->cpu->isa->weight->segment(tile + i * cols, t->w, row + i, col, cols);
    }
}

static void linear_tile(void *context, size_t index, unsigned worker) {
    const linear_task *t = context;
    const uint64_t i_m = index / t->cut_n.count, i_n = index % t->cut_n.count;
    const uint64_t m0 = ingot_cpu_cut_begin(&t->cut_m, i_m), m = ingot_cpu_cut_size(&t->cut_m, i_m);
    const uint64_t n0 = ingot_cpu_cut_begin(&t->cut_n, i_n), n = ingot_cpu_cut_size(&t->cut_n, i_n);
    const uint64_t cols = t->w->cols, rows = t->w->rows;
    float *y = t->y + m0 * rows + n0;
    const float *x = t->x + m0 * cols;
    float beta = 0.0f;
    if (t->bias != NULL) {
        fill_bias(y, rows, t->bias + n0, m, n);
        beta = 1.0f;
    }
    if (t->w->kind == INGOT_DENSE && t->w->dtype == INGOT_F32) {
        const float *w = (const float *)t->w->data + n0 * cols;
        ingot_cpu_gemm_nt(y, rows, x, cols, w, cols, m, n, cols, beta);
        return;
    }
    float *tile = ingot_cpu_scratch(t->cpu, worker);
    for (uint64_t i_k = 0; i_k < t->cut_k.count; i_k++) {
        const uint64_t k0 = ingot_cpu_cut_begin(&t->cut_k, i_k);
        const uint64_t k = ingot_cpu_cut_size(&t->cut_k, i_k);
        unpack_tile(t, tile, n0, n, k0, k);
        ingot_cpu_gemm_nt(y, rows, x + k0, cols, tile, k, m, n, k, beta);
        beta = 1.0f;
    }
}

static void linear_rows(void *context, size_t index, unsigned worker) {
    const linear_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut_n, index);
    const uint64_t end = begin + ingot_cpu_cut_size(&t->cut_n, index);
    for (uint64_t row = begin; row < end; row++) {
        float sums[INGOT_CPU_DOT_ROWS] = {0};
        t->cpu->isa->weight->row_dots(sums, t->w, row, t->x, t->w->cols, (unsigned)t->m);
        for (uint64_t i = 0; i < t->m; i++) {
            t->y[i * t->w->rows + row] = sums[i] + (t->bias != NULL ? t->bias[row] : 0.0f);
        }
    }
}

static bool is_computable(const ingot_weight_view *w) {
    if (w->kind == INGOT_DENSE) {
        return w->dtype == INGOT_F32 || w->dtype == INGOT_F16 || w->dtype == INGOT_BF16;
    }
    return w->kind == INGOT_GROUPED && w->bits >= 2 && w->bits <= 8;
}

ingot_status ingot_cpu_linear(void *context, float *y, const ingot_weight_view *w,
                              const float *bias, const float *x, uint64_t m) {
    const ingot_cpu *cpu = context;
    if (!is_computable(w) || !ingot_cpu_fits(w->rows) || !ingot_cpu_fits(w->cols)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    linear_task t = {.cpu = cpu, .w = w, .y = y, .bias = bias, .x = x, .m = m};
    if (m == 0 || w->rows == 0) {
        return INGOT_OK;
    }
    if (m <= INGOT_CPU_DOT_ROWS) {
        t.cut_n = ingot_cpu_cut_make(w->rows, ROWS_PER_TASK, 1);
        ingot_pool_run(cpu->pool, t.cut_n.count, linear_rows, &t);
        return INGOT_OK;
    }
    t.cut_m = ingot_cpu_cut_make(m, TILE_M, 16);
    t.cut_n = ingot_cpu_cut_make(w->rows, TILE_N, 16);
    t.cut_k = ingot_cpu_cut_make(w->cols, TILE_K, 64);
    ingot_pool_run(cpu->pool, t.cut_m.count * t.cut_n.count, linear_tile, &t);
    return INGOT_OK;
}
