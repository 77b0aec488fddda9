/* Likelihood and divergence of rows of logits, FP64 inside. */
#include "kernels/cpu/cpu.h"

#include "common/sizes.h"
#include "kernels/draw.h"

#include <math.h>

#define PAIR_TILE   65536u /* elements a task sums */
#define TASK_LOGITS 65536u

typedef struct score_task {
    const ingot_cpu *cpu;
    ingot_cpu_cut cut;
    double *values;
    uint32_t *best;
    const float *p, *q;
    const uint32_t *targets;
    uint64_t vocab;
} score_task;

static void score_rows(void *context, size_t index, unsigned worker) {
    const score_task *t = context;
    const ingot_cpu_math_ops *math = t->cpu->isa->math;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut, index);
    const uint64_t end = begin + ingot_cpu_cut_size(&t->cut, index);
    for (uint64_t i = begin; i < end; i++) {
        const float *row = t->p + i * t->vocab;
        if (t->targets != NULL) {
            t->values[i] = math->nll(row, t->vocab, t->targets[i]);
        }
        if (t->best != NULL) {
            t->best[i] = (uint32_t)math->argmax(row, t->vocab);
        }
    }
}

static ingot_cpu_cut cut_logits(uint64_t m, uint64_t vocab) {
    return ingot_cpu_cut_make(m, ingot_ceil_div(TASK_LOGITS, ingot_max_u64(vocab, 1)), 1);
}

ingot_status ingot_cpu_score(void *context, double *nll, uint32_t *best, const float *logits,
                             const uint32_t *targets, uint64_t m, uint64_t vocab) {
    const ingot_cpu *cpu = context;
    for (uint64_t i = 0; targets != NULL && i < m; i++) {
        if (targets[i] >= vocab) {
            return INGOT_ERR_INPUT;
        }
    }
    score_task t = {.cpu = cpu,
                    .cut = cut_logits(m, vocab),
                    .values = nll,
                    .best = best,
                    .p = logits,
                    .targets = targets,
                    .vocab = vocab};
    ingot_pool_run(cpu->pool, t.cut.count, score_rows, &t);
    return INGOT_OK;
}

static void divergence_rows(void *context, size_t index, unsigned worker) {
    const score_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut, index);
    const uint64_t end = begin + ingot_cpu_cut_size(&t->cut, index);
    for (uint64_t i = begin; i < end; i++) {
        t->values[i] =
            t->cpu->isa->math->divergence(t->p + i * t->vocab, t->q + i * t->vocab, t->vocab);
    }
}

ingot_status ingot_cpu_divergence(void *context, double *kl, const float *p, const float *q,
                                  uint64_t m, uint64_t vocab) {
    const ingot_cpu *cpu = context;
    score_task t = {
        .cpu = cpu, .cut = cut_logits(m, vocab), .values = kl, .p = p, .q = q, .vocab = vocab};
    ingot_pool_run(cpu->pool, t.cut.count, divergence_rows, &t);
    return INGOT_OK;
}

#define EXP_RUN 256u

/* out[n] = share (out - softmax(p)), the sum of exp(p - top) being `total`. */
static void subtract_softmax(const ingot_cpu_math_ops *math, float *out, const float *p, float top,
                             double total, float share, uint64_t n) {
    float e[EXP_RUN];
    for (uint64_t first = 0; first < n; first += EXP_RUN) {
        const uint64_t count = ingot_min_u64(EXP_RUN, n - first);
        for (uint64_t i = 0; i < count; i++) {
            e[i] = p[first + i] - top;
        }
        math->exp_f32(e, e, count);
        for (uint64_t i = 0; i < count; i++) {
            out[first + i] = share * (out[first + i] - (float)((double)e[i] / total));
        }
    }
}

/* *total = sum exp(x[n] - top) */
static void softmax_sum(const ingot_cpu_math_ops *math, double *total, const float *x, float top,
                        uint64_t n) {
    float e[EXP_RUN];
    *total = 0;
    for (uint64_t first = 0; first < n; first += EXP_RUN) {
        const uint64_t count = ingot_min_u64(EXP_RUN, n - first);
        for (uint64_t i = 0; i < count; i++) {
            e[i] = x[first + i] - top;
        }
        math->exp_f32(e, e, count);
        for (uint64_t i = 0; i < count; i++) {
            *total += (double)e[i];
        }
    }
}

typedef struct slope_task {
    const ingot_cpu *cpu;
    ingot_cpu_cut cut;
    float *q;
    const float *p;
    float share;
    uint64_t vocab;
} slope_task;

static void slope_rows(void *context, size_t index, unsigned worker) {
    const slope_task *t = context;
    const ingot_cpu_math_ops *math = t->cpu->isa->math;
    const uint64_t n = t->vocab, begin = ingot_cpu_cut_begin(&t->cut, index);
    const uint64_t end = begin + ingot_cpu_cut_size(&t->cut, index);
    (void)worker;
    for (uint64_t row = begin; row < end; row++) {
        float *q = t->q + row * n;
        const float *p = t->p + row * n;
        const float top_q = q[math->argmax(q, n)], top_p = p[math->argmax(p, n)];
        double total_q, total_p;
        softmax_sum(math, &total_q, q, top_q, n);
        softmax_sum(math, &total_p, p, top_p, n);
        for (uint64_t i = 0; i < n; i++) {
            q[i] -= top_q;
        }
        math->exp_f32(q, q, n);
        for (uint64_t i = 0; i < n; i++) {
            q[i] = (float)((double)q[i] / total_q);
        }
        subtract_softmax(math, q, p, top_p, total_p, t->share, n);
    }
}

ingot_status ingot_cpu_divergence_backward(void *context, float *q, const float *p, float share,
                                           uint64_t m, uint64_t vocab) {
    const ingot_cpu *cpu = context;
    slope_task t = {
        .cpu = cpu, .cut = cut_logits(m, vocab), .q = q, .p = p, .share = share, .vocab = vocab};
    ingot_pool_run(cpu->pool, t.cut.count, slope_rows, &t);
    return INGOT_OK;
}

typedef struct pair_task {
    const float *a, *b;
    double *sums; /* [tiles] */
    bool is_inner;
    ingot_cpu_cut cut;
} pair_task;

static void pair_tile(void *context, size_t index, unsigned worker) {
    const pair_task *t = context;
    (void)worker;
    const uint64_t begin = ingot_cpu_cut_begin(&t->cut, index);
    const uint64_t end = begin + ingot_cpu_cut_size(&t->cut, index);
    double sum = 0;
    for (uint64_t i = begin; i < end && t->is_inner; i++) {
        sum += (double)t->a[i] * (double)t->b[i];
    }
    for (uint64_t i = begin; i < end && !t->is_inner; i++) {
        const double e = (double)t->a[i] - (double)t->b[i];
        sum += e * e;
    }
    t->sums[index] = sum;
}

static ingot_status sum_pairs(const ingot_cpu *cpu, double *out, const float *a, const float *b,
                              uint64_t n, bool is_inner) {
    void *memory;
    pair_task t = {
        .a = a, .b = b, .is_inner = is_inner, .cut = ingot_cpu_cut_make(n, PAIR_TILE, 1)};
    *out = 0;
    INGOT_TRY(ingot_alloc_zero(&memory, t.cut.count, sizeof(double)));
    t.sums = memory;
    ingot_pool_run(cpu->pool, t.cut.count, pair_tile, &t);
    for (uint64_t i = 0; i < t.cut.count; i++) {
        *out += t.sums[i];
    }
    ingot_free(memory);
    return INGOT_OK;
}

ingot_status ingot_cpu_distance(void *context, double *out, const float *a, const float *b,
                                uint64_t n) {
    return sum_pairs(context, out, a, b, n, false);
}

ingot_status ingot_cpu_inner(void *context, double *out, const float *a, const float *b,
                             uint64_t n) {
    return sum_pairs(context, out, a, b, n, true);
}

/* ---- drawing a token ------------------------------------------------------------------------ */

typedef struct draw_task {
    uint32_t *next;
    const double *u;
    const float *logits;
    uint64_t vocab;
} draw_task;

static void draw_row(void *context, size_t row, unsigned worker) {
    const draw_task *t = context;
    const float *x = t->logits + row * t->vocab;
    bool is_finite = true;
    (void)worker;
    for (uint64_t k = 0; k < t->vocab; k++) {
        is_finite &= isfinite(x[k]) != 0;
    }
    t->next[row] = is_finite ? (uint32_t)ingot_draw_token(x, t->vocab, 1, t->u[row]) : UINT32_MAX;
}

ingot_status ingot_cpu_draw(void *context, uint32_t *next, const double *u, const float *logits,
                            uint64_t m, uint64_t vocab) {
    const ingot_cpu *cpu = context;
    draw_task t = {.next = next, .u = u, .logits = logits, .vocab = vocab};
    if (vocab == 0 || vocab > UINT32_MAX) {
        return INGOT_ERR_UNSUPPORTED;
    }
    ingot_pool_run(cpu->pool, m, draw_row, &t);
    return INGOT_OK;
}
