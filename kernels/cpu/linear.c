/* y = x W^T + bias without ever holding W in FP32: tiles of rows and columns are unpacked into the
 * worker's scratch and multiplied by OpenBLAS, or, for few rows of x, row by row in cache.
 *
 * A tile of y is one task; its sums run over the column tiles in order. */
#include "common/sizes.h"
#include "format/half.h"
#include "kernels/cpu/cpu.h"

#include <string.h>

/* Tile of W: 256 x 1024 floats are 1 MiB, half of a second-level cache. */
#define TILE_N 256u
#define TILE_K 1024u
/* Rows of x per task: every unpacked weight then serves that many products. */
#define TILE_M 1024u
/* Of W per task when x has few rows. */
#define ROWS_PER_TASK    1024u
#define TASK_BYTES_LEAST (UINT64_C(128) << 10)
#define TASK_BYTES_MOST  (UINT64_C(512) << 10)

typedef struct linear_task {
    const ingot_cpu *cpu;
    const ingot_weight_view *w;
    float *y;
    const float *bias, *x;
    const int32_t *arranged; /* x as isa->product wants it, or NULL */
    uint64_t arranged_stride;
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

/* Whether isa->product takes the view: words of one group, and 1, 2, 4, 8 or a multiple of 16 of
 * them in a group. */
static bool has_product(const ingot_cpu_isa *isa, const ingot_weight_view *w) {
    if (w->kind != INGOT_GROUPED) {
        return false;
    }
    const uint64_t per_word = isa->product->word_codes(w->bits), words = w->group / per_word;
    return w->groups_per_row == 1 ||
           (w->group % per_word == 0 && words != 0 && (16 % words == 0 || words % 16 == 0));
}

/* Outliers, whose codes stand for zero (spec/quantization.md, section 5). */
static void add_outliers(float *sums, const linear_task *t, uint64_t row) {
    const ingot_weight_view *w = t->w;
    for (uint64_t i = w->outlier_row_ptr[row]; i < w->outlier_row_ptr[row + 1]; i++) {
        float value;
        if (w->dtype == INGOT_F16) {
            value = ingot_f16_to_f32(((const uint16_t *)w->outlier_val)[i]);
        } else {
            value = ((const float *)w->outlier_val)[i];
        }
        for (uint64_t r = 0; r < t->m; r++) {
            sums[r] += value * t->x[r * w->cols + w->outlier_col[i]];
        }
    }
}

/* Uses the scratch of all workers, which products row by row leave alone. */
static void arrange(linear_task *t) {
    const ingot_cpu_product_ops *product = t->cpu->isa->product;
    if (!has_product(t->cpu->isa, t->w)) {
        return;
    }
    t->arranged_stride = product->arranged_count(t->w->cols, t->w->bits);
    if (t->arranged_stride > INGOT_CPU_SCRATCH_FLOATS / t->m) {
        return;
    }
    int32_t *arranged = (int32_t *)(void *)ingot_cpu_scratch(t->cpu, 0);
    for (uint64_t i = 0; i < t->m; i++) {
        product->arrange(arranged + i * t->arranged_stride, t->x + i * t->w->cols, t->w);
    }
    t->arranged = arranged;
}

/* sums[rows][m] */
static void row_sums(float *sums, const linear_task *t, uint64_t row, uint64_t rows) {
    const ingot_cpu_isa *isa = t->cpu->isa;
    const unsigned m = (unsigned)t->m;
    if (t->arranged != NULL) {
        isa->product->rows(sums, t->w, row, rows, t->arranged, t->arranged_stride, m);
    }
    for (uint64_t i = 0; i < rows; i++) {
        if (t->arranged == NULL) {
            memset(sums + i * m, 0, m * sizeof *sums);
            isa->weight->row_dots(sums + i * m, t->w, row + i, t->x, t->w->cols, m);
        } else if (t->w->outlier_count != 0) {
            add_outliers(sums + i * m, t, row + i);
        }
    }
}

static void linear_rows(void *context, size_t index, unsigned worker) {
    const linear_task *t = context;
    (void)worker;
    const uint64_t m = t->m, begin = ingot_cpu_cut_begin(&t->cut_n, index);
    const uint64_t rows = ingot_cpu_cut_size(&t->cut_n, index);
    if (m == 1) { /* the sums are y */
        float *y = t->y + begin;
        row_sums(y, t, begin, rows);
        for (uint64_t i = 0; t->bias != NULL && i < rows; i++) {
            y[i] += t->bias[begin + i];
        }
        return;
    }
    float sums[ROWS_PER_TASK * INGOT_CPU_DOT_ROWS];
    row_sums(sums, t, begin, rows);
    for (uint64_t i = 0; i < rows; i++) {
        for (uint64_t r = 0; r < m; r++) {
            const float bias = t->bias != NULL ? t->bias[begin + i] : 0.0f;
            t->y[r * t->w->rows + begin + i] = sums[i * m + r] + bias;
        }
    }
}

/* Some tasks for every thread, as many for each: large ones, since codes are asked for ahead within
 * a task.  The sum of a row does not depend on the task that it is in. */
static ingot_cpu_cut cut_few_rows(const ingot_weight_view *w, unsigned threads) {
    const uint64_t bytes =
        w->rows * (w->kind == INGOT_GROUPED ? w->row_stride_bytes : w->cols * sizeof(float));
    const uint64_t task = ingot_min_u64(
        ingot_max_u64(bytes / (4 * (uint64_t)threads), TASK_BYTES_LEAST), TASK_BYTES_MOST);
    const uint64_t count = ingot_ceil_div(ingot_ceil_div(bytes, task), threads) * threads;
    const uint64_t rows = ingot_ceil_div(w->rows, ingot_max_u64(count, 1));
    return ingot_cpu_cut_make(w->rows, ingot_min_u64((rows + 3) / 4 * 4, ROWS_PER_TASK), 4);
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
        arrange(&t);
        t.cut_n = cut_few_rows(w, ingot_pool_threads(cpu->pool));
        ingot_pool_run(cpu->pool, t.cut_n.count, linear_rows, &t);
        return INGOT_OK;
    }
    t.cut_m = ingot_cpu_cut_make(m, TILE_M, 16);
    t.cut_n = ingot_cpu_cut_make(w->rows, TILE_N, 16);
    t.cut_k = ingot_cpu_cut_make(w->cols, TILE_K, 64);
    ingot_pool_run(cpu->pool, t.cut_m.count * t.cut_n.count, linear_tile, &t);
    return INGOT_OK;
}
