/* Gradients of the linear and row-wise operations (kernels/backend.h); attention's are in
 * attention_backward.c. */
#include "common/sizes.h"
#include "kernels/cpu/cpu.h"

#define TASK_ELEMENTS 16384u
/* Tile of dW: sums run over all rows of x, so the tile is what stays in cache. */
#define TILE_ROWS 128u
#define TILE_COLS 256u
/* Tile of dX, and the rows of W that are unpacked at once: 256 x 1024 floats are 1 MiB. */
#define TILE_M 512u
#define TILE_N 1024u
#define TILE_K 256u

typedef struct backward_task {
    const ingot_cpu *cpu;
    ingot_cpu_cut cut_m, cut_n, cut_k;
    float *dx, *up;
    const float *dy, *x, *weight;
    const ingot_weight_view *w;
    ingot_norm_kind norm;
    ingot_activation activation;
    float eps;
    bool adds;
    uint64_t m, n, rows;
} backward_task;

static void norm_rows(void *context, size_t index, unsigned worker) {
    const backward_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut_m, index);
    const uint64_t end = begin + ingot_cpu_cut_size(&t->cut_m, index);
    for (uint64_t at = begin * t->n; at < end * t->n; at += t->n) {
        t->cpu->isa->backward->norm(t->dx + at, t->dy + at, t->x + at, t->weight, t->norm, t->eps,
                                    t->n);
    }
}

ingot_status ingot_cpu_norm_backward(void *context, float *dx, const float *dy, const float *x,
                                     const float *weight, ingot_norm_kind kind, float eps,
                                     uint64_t m, uint64_t n) {
    const ingot_cpu *cpu = context;
    if (n == 0) {
        return INGOT_OK;
    }
    backward_task t = {.cpu = cpu,
                       .cut_m = ingot_cpu_cut_make(m, ingot_ceil_div(TASK_ELEMENTS, n), 1),
                       .dx = dx,
                       .dy = dy,
                       .x = x,
                       .weight = weight,
                       .norm = kind,
                       .eps = eps,
                       .n = n};
    ingot_pool_run(cpu->pool, t.cut_m.count, norm_rows, &t);
    return INGOT_OK;
}

static void activate_elements(void *context, size_t index, unsigned worker) {
    const backward_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut_n, index);
    t->cpu->isa->backward->activate(t->dx + begin, t->up != NULL ? t->up + begin : NULL,
                                    t->dy + begin, t->activation,
                                    ingot_cpu_cut_size(&t->cut_n, index));
}

ingot_status ingot_cpu_activate_backward(void *context, float *gate, float *up, const float *d,
                                         ingot_activation kind, uint64_t n) {
    const ingot_cpu *cpu = context;
    backward_task t = {.cpu = cpu,
                       .cut_n = ingot_cpu_cut_make(n, TASK_ELEMENTS, 64),
                       .dx = gate,
                       .up = up,
                       .dy = d,
                       .activation = kind};
    ingot_pool_run(cpu->pool, t.cut_n.count, activate_elements, &t);
    return INGOT_OK;
}

static void input_tile(void *context, size_t index, unsigned worker) {
    const backward_task *t = context;
    const uint64_t i_m = index / t->cut_n.count, i_n = index % t->cut_n.count;
    const uint64_t m0 = ingot_cpu_cut_begin(&t->cut_m, i_m), m = ingot_cpu_cut_size(&t->cut_m, i_m);
    const uint64_t n0 = ingot_cpu_cut_begin(&t->cut_n, i_n), n = ingot_cpu_cut_size(&t->cut_n, i_n);
    const uint64_t rows = t->w->rows, cols = t->w->cols;
    float *dx = t->dx + m0 * cols + n0;
    const float *dy = t->dy + m0 * rows;
    if (t->w->kind == INGOT_DENSE && t->w->dtype == INGOT_F32) {
        ingot_cpu_gemm_nn(dx, cols, dy, rows, (const float *)t->w->data + n0, cols, m, n, rows,
                          t->adds ? 1.0f : 0.0f);
        return;
    }
    float *tile = ingot_cpu_scratch(t->cpu, worker);
    for (uint64_t i_k = 0; i_k < t->cut_k.count; i_k++) {
        const uint64_t k0 = ingot_cpu_cut_begin(&t->cut_k, i_k);
        const uint64_t k = ingot_cpu_cut_size(&t->cut_k, i_k);
        for (uint64_t i = 0; i < k; i++) {
            t->cpu->isa->weight->segment(tile + i * n, t->w, k0 + i, n0, n);
        }
        ingot_cpu_gemm_nn(dx, cols, dy + k0, rows, tile, n, m, n, k,
                          t->adds || i_k != 0 ? 1.0f : 0.0f);
    }
}

ingot_status ingot_cpu_linear_backward(void *context, float *dx, const ingot_weight_view *w,
                                       const float *dy, bool adds, uint64_t m) {
    const ingot_cpu *cpu = context;
    const bool is_dense =
        w->kind == INGOT_DENSE &&
        (w->dtype == INGOT_F32 || w->dtype == INGOT_F16 || w->dtype == INGOT_BF16);
    const bool is_grouped = w->kind == INGOT_GROUPED && w->bits >= 2 && w->bits <= 8;
    if ((!is_dense && !is_grouped) || !ingot_cpu_fits(w->rows) || !ingot_cpu_fits(w->cols)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    backward_task t = {.cpu = cpu,
                       .cut_m = ingot_cpu_cut_make(m, TILE_M, 16),
                       .cut_n = ingot_cpu_cut_make(w->cols, TILE_N, 64),
                       .cut_k = ingot_cpu_cut_make(w->rows, TILE_K, 1),
                       .dx = dx,
                       .dy = dy,
                       .w = w,
                       .adds = adds};
    ingot_pool_run(cpu->pool, t.cut_m.count * t.cut_n.count, input_tile, &t);
    return INGOT_OK;
}

static void weight_tile(void *context, size_t index, unsigned worker) {
    const backward_task *t = context;
    (void)worker;
    const uint64_t i_m = index / t->cut_n.count, i_n = index % t->cut_n.count;
    const uint64_t m0 = ingot_cpu_cut_begin(&t->cut_m, i_m), m = ingot_cpu_cut_size(&t->cut_m, i_m);
    const uint64_t n0 = ingot_cpu_cut_begin(&t->cut_n, i_n), n = ingot_cpu_cut_size(&t->cut_n, i_n);
    ingot_cpu_gemm_tn(t->dx + m0 * t->n + n0, t->n, t->dy + m0, t->rows, t->x + n0, t->n, m, n,
                      t->m, 1.0f);
}

ingot_status ingot_cpu_weight_backward(void *context, float *dw, const float *dy, const float *x,
                                       uint64_t m, uint64_t rows, uint64_t cols) {
    const ingot_cpu *cpu = context;
    if (!ingot_cpu_fits(m) || !ingot_cpu_fits(rows) || !ingot_cpu_fits(cols)) {
        return INGOT_ERR_UNSUPPORTED;
    }
    backward_task t = {.cpu = cpu,
                       .cut_m = ingot_cpu_cut_make(rows, TILE_ROWS, 16),
                       .cut_n = ingot_cpu_cut_make(cols, TILE_COLS, 16),
                       .dx = dw,
                       .dy = dy,
                       .x = x,
                       .m = m,
                       .n = cols,
                       .rows = rows};
    ingot_pool_run(cpu->pool, t.cut_m.count * t.cut_n.count, weight_tile, &t);
    return INGOT_OK;
}
