/* Operations on rows and elements: embedding, norms, rotary embedding, activations, sums. */
#include "common/sizes.h"
#include "kernels/cpu/cpu.h"

/* Elements a task should have at least, so that waking a thread is worth it. */
#define TASK_ELEMENTS 16384u

typedef struct rows_task {
    const ingot_cpu *cpu;
    ingot_cpu_cut cut;
    float *y;
    const float *x, *weight, *bias;
    const ingot_weight_view *table;
    const uint32_t *ids;
    const double *frequency;
    ingot_norm_kind norm;
    ingot_activation activation;
    float parameter; /* eps or scale */
    uint64_t m, n, heads, rotary_dim;
    uint64_t first, period; /* of positions */
} rows_task;

static ingot_cpu_cut cut_rows(uint64_t m, uint64_t n) {
    return ingot_cpu_cut_make(m, ingot_ceil_div(TASK_ELEMENTS, ingot_max_u64(n, 1)), 1);
}

static void embed_rows(void *context, size_t index, unsigned worker) {
    const rows_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut, index);
    const uint64_t count = ingot_cpu_cut_size(&t->cut, index);
    for (uint64_t i = begin; i < begin + count; i++) {
        float *row = t->y + i * t->n;
        t->cpu->isa->weight->segment(row, t->table, t->ids[i], 0, t->n);
        if (t->parameter != 1.0f) {
            t->cpu->isa->math->scale(row, t->parameter, t->n);
        }
    }
}

ingot_status ingot_cpu_embed(void *context, float *y, const ingot_weight_view *table,
                             const uint32_t *ids, uint64_t m, float scale) {
    const ingot_cpu *cpu = context;
    for (uint64_t i = 0; i < m; i++) {
        if (ids[i] >= table->rows) {
            return INGOT_ERR_INPUT;
        }
    }
    rows_task t = {.cpu = cpu,
                   .cut = cut_rows(m, table->cols),
                   .y = y,
                   .table = table,
                   .ids = ids,
                   .parameter = scale,
                   .n = table->cols};
    ingot_pool_run(cpu->pool, t.cut.count, embed_rows, &t);
    return INGOT_OK;
}

static void norm_rows(void *context, size_t index, unsigned worker) {
    const rows_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut, index);
    const uint64_t count = ingot_cpu_cut_size(&t->cut, index);
    for (uint64_t i = begin; i < begin + count; i++) {
        t->cpu->isa->math->norm(t->y + i * t->n, t->x + i * t->n, t->weight, t->bias, t->norm,
                                t->parameter, t->n);
    }
}

ingot_status ingot_cpu_norm(void *context, float *y, const float *x, const float *weight,
                            const float *bias, ingot_norm_kind kind, float eps, uint64_t m,
                            uint64_t n) {
    const ingot_cpu *cpu = context;
    rows_task t = {.cpu = cpu,
                   .cut = cut_rows(m, n),
                   .y = y,
                   .x = x,
                   .weight = weight,
                   .bias = bias,
                   .norm = kind,
                   .parameter = eps,
                   .n = n};
    ingot_pool_run(cpu->pool, t.cut.count, norm_rows, &t);
    return INGOT_OK;
}

/* Tasks are ranges of positions: the angles of one, in the worker's scratch, serve all its rows
 * and all their heads. */
static void rotary_positions(void *context, size_t index, unsigned worker) {
    const rows_task *t = context;
    const uint64_t half = t->rotary_dim / 2;
    float *cosine = ingot_cpu_scratch(t->cpu, worker), *sine = cosine + half;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut, index);
    const uint64_t count = ingot_cpu_cut_size(&t->cut, index);
    for (uint64_t p = begin; p < begin + count; p++) {
        t->cpu->isa->math->angles(cosine, sine, t->frequency, (double)(t->first + p), t->parameter,
                                  half);
        for (uint64_t i = p; i < t->m; i += t->period) {
            for (uint64_t h = 0; h < t->heads; h++) {
                t->cpu->isa->math->rotate(t->y + (i * t->heads + h) * t->n, cosine, sine, half);
            }
        }
    }
}

ingot_status ingot_cpu_rotary(void *context, float *x, uint64_t first, uint64_t period,
                              const double *inverse_frequency, float scale, uint64_t m,
                              uint64_t heads, uint64_t head_dim, uint64_t rotary_dim) {
    const ingot_cpu *cpu = context;
    if (rotary_dim > head_dim || rotary_dim % 2 != 0 || rotary_dim > INGOT_CPU_SCRATCH_FLOATS) {
        return INGOT_ERR_USAGE;
    }
    const uint64_t rows = ingot_ceil_div(m, ingot_max_u64(period, 1)); /* of one position */
    rows_task t = {.cpu = cpu,
                   .cut = cut_rows(ingot_min_u64(m, period), rows * heads * head_dim),
                   .y = x,
                   .first = first,
                   .period = period,
                   .m = m,
                   .frequency = inverse_frequency,
                   .parameter = scale,
                   .n = head_dim,
                   .heads = heads,
                   .rotary_dim = rotary_dim};
    ingot_pool_run(cpu->pool, t.cut.count, rotary_positions, &t);
    return INGOT_OK;
}

static void activate_elements(void *context, size_t index, unsigned worker) {
    const rows_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut, index);
    const float *up = t->x != NULL ? t->x + begin : NULL;
    t->cpu->isa->math->activate(t->y + begin, up, t->activation,
                                ingot_cpu_cut_size(&t->cut, index));
}

ingot_status ingot_cpu_activate(void *context, float *gate, const float *up, ingot_activation kind,
                                uint64_t n) {
    const ingot_cpu *cpu = context;
    rows_task t = {.cpu = cpu,
                   .cut = ingot_cpu_cut_make(n, TASK_ELEMENTS, 64),
                   .y = gate,
                   .x = up,
                   .activation = kind};
    ingot_pool_run(cpu->pool, t.cut.count, activate_elements, &t);
    return INGOT_OK;
}

static void add_elements(void *context, size_t index, unsigned worker) {
    const rows_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut, index);
    t->cpu->isa->math->add(t->y + begin, t->x + begin, t->parameter,
                           ingot_cpu_cut_size(&t->cut, index));
}

ingot_status ingot_cpu_add(void *context, float *y, const float *x, float scale, uint64_t n) {
    const ingot_cpu *cpu = context;
    rows_task t = {.cpu = cpu,
                   .cut = ingot_cpu_cut_make(n, TASK_ELEMENTS, 64),
                   .y = y,
                   .x = x,
                   .parameter = scale};
    ingot_pool_run(cpu->pool, t.cut.count, add_elements, &t);
    return INGOT_OK;
}
