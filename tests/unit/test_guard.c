/* ingot_linear_quantize is never worse than plain rounding: also of weights and inputs so large
 * that a loss is beyond FP32, where it once kept a matrix of zeros. */
#include "convert/linear.h"

#include "quantize_inputs.h"

#define ROWS 24u
#define COLS 256u

typedef struct sample {
    ingot_backend backend;
    ingot_arena *arena, *scratch, *kept;
    ingot_weight_view view;
    float *w, *gram, *scaled;
} sample;

static void open_sample(sample *s) {
    *s = (sample){.arena = new_arena(), .scratch = new_arena(), .kept = new_arena()};
    CU_ASSERT_FATAL(ingot_backend_open(&s->backend, "cpu", 2, NULL) == INGOT_OK);
    s->w = random_weights(s->arena, ROWS * COLS);
    s->gram = random_gram(s->arena, COLS, 600);
    CU_ASSERT_FATAL(ingot_arena_alloc(s->arena, (void **)&s->scaled, COLS * COLS * sizeof(float)) ==
                    INGOT_OK);
    s->view = (ingot_weight_view){
        .kind = INGOT_DENSE, .rows = ROWS, .cols = COLS, .dtype = INGOT_F32, .data = s->w};
}

static void close_sample(sample *s) {
    ingot_arena_destroy(s->arena);
    ingot_arena_destroy(s->scratch);
    ingot_arena_destroy(s->kept);
    ingot_backend_close(&s->backend);
}

/* The ledger of the weights under a multiple of H. */
static ingot_ledger quantize(sample *s, float gram_scale, ingot_method method) {
    ingot_gptq_factor factor;
    ingot_quantized q;
    ingot_ledger ledger;
    ingot_steps_taken steps;
    for (uint64_t i = 0; i < (uint64_t)COLS * COLS; i++) {
        s->scaled[i] = s->gram[i] * gram_scale;
    }
    ingot_arena_reset(s->scratch);
    ingot_arena_reset(s->kept);
    CU_ASSERT_FATAL(s->backend.ops->factorize(s->backend.context, &factor, s->scaled, COLS, 64,
                                              s->kept, s->scratch) == INGOT_OK);
    const ingot_linear_job job = {
        .backend = &s->backend,
        .file = "",
        .name = "",
        .source = &s->view,
        .format = {.bits = 4,
                   .group = 64,
                   .zero_mode = INGOT_ZERO_SYMMETRIC,
                   .scale_dtype = INGOT_BF16},
        .outlier_dtype = INGOT_F16,
        .method = method,
        .polish_rounds = 2,
        .data = {.gram = s->scaled, .plain_gram = s->scaled, .factor = &factor, .tokens = 600}};
    ingot_arena_reset(s->scratch);
    CU_ASSERT_FATAL(ingot_linear_quantize(&q, &ledger, &steps, &job, s->kept, s->scratch, NULL) ==
                    INGOT_OK);
    return ledger;
}

static void test_sizes(void) {
    static const ingot_method methods[] = {INGOT_METHOD_GPTQ, INGOT_METHOD_AWQ};
    sample s;
    open_sample(&s);
    for (unsigned m = 0; m < 2; m++) {
        const ingot_ledger usual = quantize(&s, 1, methods[m]);
        CU_ASSERT(usual.fallback == INGOT_FALLBACK_NONE);
        CU_ASSERT(usual.output_error < usual.output_error_rtn);
    }
    for (uint64_t i = 0; i < (uint64_t)ROWS * COLS; i++) {
        s.w[i] *= 1e14f;
    }
    for (unsigned m = 0; m < 2; m++) {
        for (float scale = 1; scale < 1e33f; scale *= 1e8f) {
            const ingot_ledger large = quantize(&s, scale, methods[m]);
            const bool is_better = large.output_error <= large.output_error_rtn;
            CU_ASSERT(is_better || large.weight_error <= large.weight_error_rtn);
            CU_ASSERT(large.weight_error < 0.3);
        }
    }
    close_sample(&s);
}

int main(void) {
    const CU_TestInfo tests[] = {{"losses of every size", test_sizes}, CU_TEST_INFO_NULL};
    return run_on_every_level("guard", tests);
}
