/* Inputs and judges for tests of kernels/quantize.h: weights and Hessians as models have them, the
 * losses of a quantized matrix in FP64, and the suite run once per instruction set. */
#ifndef INGOT_QUANTIZE_INPUTS_H
#define INGOT_QUANTIZE_INPUTS_H

#include "backend_inputs.h"
#include "kernels/cpu/cpu.h"
#include "kernels/quantize.h"
#include "suite.h"

/* Weights with a few large ones, as real matrices have. */
static inline float *random_weights(ingot_arena *arena, uint64_t count) {
    float *w = NULL;
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&w, count * sizeof *w) == INGOT_OK);
    for (uint64_t i = 0; i < count; i++) {
        w[i] = (float)(input_normal() * (input_uniform() < 0.01 ? 0.3 : 0.05));
    }
    return w;
}

/* H = X^T X of correlated inputs with channels of very different energy; lower triangle, mirrored.
 */
static inline float *random_gram(ingot_arena *arena, uint64_t n, uint64_t tokens) {
    float *gram = NULL, *x = NULL;
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&gram, n * n * sizeof *gram) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&x, n * sizeof *x) == INGOT_OK);
    memset(gram, 0, n * n * sizeof *gram);
    for (uint64_t t = 0; t < tokens; t++) {
        const double common = input_normal();
        for (uint64_t i = 0; i < n; i++) {
            const double scale = 0.2 + 3.0 * (double)((i * 7919) % n) / (double)n;
            x[i] = (float)(scale * (input_normal() + 0.7 * common));
        }
        for (uint64_t i = 0; i < n; i++) {
            for (uint64_t j = 0; j <= i; j++) {
                gram[i * n + j] += x[i] * x[j];
            }
        }
    }
    ingot_gram_fold(gram, gram, NULL, n, NULL);
    return gram;
}

/* H of unit diagonal and correlated columns whose lowest eigenvalue is -d, in the direction (1, -1)
 * of two columns that meet all others alike. */
static inline void indefinite_gram(float *gram, uint64_t n, double d) {
    for (uint64_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j < n; j++) {
            const double a = i == 3 || i == 7 ? 0.9 : 0.3 + 0.6 * (double)i / (double)n;
            const double b = j == 3 || j == 7 ? 0.9 : 0.3 + 0.6 * (double)j / (double)n;
            gram[i * n + j] = i == j ? 1.0f : (float)(a * b);
        }
    }
    gram[7 * n + 3] = gram[3 * n + 7] = (float)(1 + d);
}

/* A value of the diagonal of H with its damping, by the formula of kernels/quantize.h; a dead
 * column has the mean first. */
static inline double damped_reference(double value, double damping, double mean) {
    const double d = value > 0 ? value : mean;
    return d + 0.5 * fmin(d, mean) + damping * mean;
}

/* Positive definite with the damping of the last step, and by less than FP32 resolves: the diagonal
 * is then 2.5 + 1.25 * 2^-22, which FP32 rounds to the element that it has to exceed. */
static inline void barely_definite_gram(float *gram, uint64_t n) {
    indefinite_gram(gram, n, 1.5 + 0x1p-22);
    for (uint64_t i = 0; i < n; i++) {
        gram[i * n + i] = 1 + 0x1p-23f;
    }
}

static inline ingot_arena *new_arena(void) {
    ingot_arena *arena = NULL;
    CU_ASSERT_FATAL(ingot_arena_create(&arena) == INGOT_OK);
    return arena;
}

static inline ingot_quantized new_quantized(uint64_t rows, uint64_t cols, ingot_quant_format format,
                                            ingot_arena *arena) {
    ingot_quantized q;
    CU_ASSERT_FATAL(ingot_quantized_create(&q, rows, cols, &format, arena) == INGOT_OK);
    return q;
}

static inline double loss_reference(const float *w, const ingot_quantized *q, const float *gram) {
    const uint64_t n = q->cols;
    double *e = calloc(n, sizeof *e), total = 0;
    float *row = calloc(n, sizeof *row);
    for (uint64_t r = 0; r < q->rows; r++) {
        ingot_quantized_row(row, q, r);
        for (uint64_t i = 0; i < n; i++) {
            e[i] = (double)w[r * n + i] - (double)row[i];
        }
        for (uint64_t i = 0; i < n; i++) {
            for (uint64_t j = 0; j < n; j++) {
                total += e[i] * e[j] * (double)gram[i * n + j];
            }
        }
    }
    free(e);
    free(row);
    return total;
}

static inline double weighted_loss(const float *w, const ingot_quantized *q,
                                   const float *importance) {
    double total = 0;
    float *row = calloc(q->cols, sizeof *row);
    for (uint64_t r = 0; r < q->rows; r++) {
        ingot_quantized_row(row, q, r);
        for (uint64_t i = 0; i < q->cols; i++) {
            const double e = (double)w[r * q->cols + i] - (double)row[i];
            total += e * e * (importance != NULL ? (double)importance[i] : 1.0);
        }
    }
    free(row);
    return total;
}

/* The suite once per instruction set that this processor has. */
static inline int run_on_every_level(const char *name, const CU_TestInfo *tests) {
    int result = 0;
    ingot_backend backend; /* keeps BLAS to one thread, as in every tool */
    if (ingot_backend_open(&backend, "cpu", 1, NULL) != INGOT_OK) {
        return 2;
    }
    input_start(name);
    for (unsigned level = 0; ingot_cpu_isa_at(level) != NULL; level++) {
        printf("%s\n", ingot_cpu_isa_at(level)->name);
        (void)setenv("INGOT_CPU_ISA", ingot_cpu_isa_at(level)->name, 1);
        result |= suite_run(name, tests);
    }
    ingot_backend_close(&backend);
    return result;
}

#endif
