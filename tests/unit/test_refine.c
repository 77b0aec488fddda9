/* kernels/refine.h on the cpu backend: refine_cases.h on every instruction set, and the same bits
 * with more threads. */
#include "refine_cases.h"

static void on_cpu(void (*run)(const ingot_backend *backend, double epsilon)) {
    for (unsigned threads = 1; threads <= 2; threads++) {
        ingot_backend backend;
        CU_ASSERT_FATAL(ingot_backend_open(&backend, "cpu", threads, NULL) == INGOT_OK);
        run(&backend, 2e-6);
        ingot_backend_close(&backend);
    }
}

static void drift(void) {
    on_cpu(refine_drift);
}

static void products(void) {
    on_cpu(refine_products);
}

static void solve(void) {
    on_cpu(refine_solve);
}

static void polish_on(const ingot_backend *backend, double epsilon) {
    (void)epsilon;
    refine_polish(backend, false);
}

static void polish(void) {
    on_cpu(polish_on);
}

/* All operations in a row on one and on three threads: equal bits. */
static void threads(void) {
    enum { ROWS = 150, N = 270, M = 500 };
    ingot_arena *arena = new_arena();
    const float *w = random_weights(arena, ROWS * N), *gram = random_gram(arena, N, 2 * N);
    const float *a = random_weights(arena, M * N), *b = random_weights(arena, M * N);
    float *importance = NULL, *out[2];
    ingot_quantized q[2];
    const ingot_quant_format format = {
        .bits = 3, .group = 64, .zero_mode = INGOT_ZERO_STORED, .scale_dtype = INGOT_F16};
    CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&importance, N * sizeof(float)) == INGOT_OK);
    for (uint64_t j = 0; j < N; j++) {
        importance[j] = 1.01f * gram[j * N + j];
    }
    for (unsigned i = 0; i < 2; i++) {
        ingot_backend backend;
        unsigned step;
        CU_ASSERT_FATAL(ingot_backend_open(&backend, "cpu", 1 + 2 * i, NULL) == INGOT_OK);
        const ingot_backend_ops *ops = backend.ops;
        void *context = backend.context;
        CU_ASSERT_FATAL(ingot_arena_alloc(arena, (void **)&out[i], N * N * sizeof(float)) == 0);
        memset(out[i], 0, N * N * sizeof(float));
        CU_ASSERT(ops->drift(context, out[i], a, b, b, M, N, N) == INGOT_OK);
        CU_ASSERT(ops->gram_solve(context, out[i], &step, N, gram, N, arena) == INGOT_OK);
        CU_ASSERT(ops->multiply_add(context, out[i], 0.5f, w, gram, 70, N, N) == 0);
        q[i] = new_quantized(ROWS, N, format, arena);
        ingot_quantize_rtn(&q[i], w, NULL);
        CU_ASSERT(ops->quantize_polish(context, &q[i], w, gram, importance, 3, arena) == INGOT_OK);
        ingot_backend_close(&backend);
    }
    CU_ASSERT(memcmp(out[0], out[1], N * N * sizeof(float)) == 0);
    CU_ASSERT(memcmp(q[0].codes, q[1].codes, ROWS * N) == 0);
    CU_ASSERT(memcmp(q[0].scales, q[1].scales, ROWS * q[0].groups * sizeof(float)) == 0);
    CU_ASSERT(memcmp(q[0].zeros, q[1].zeros, ROWS * q[0].groups) == 0);
    ingot_arena_destroy(arena);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"drift of inputs", drift},
        {"products", products},
        {"solving with H", solve},
        {"polish against a slow one", polish},
        {"equal bits with more threads", threads},
        CU_TEST_INFO_NULL,
    };
    return run_on_every_level("refine", tests);
}
