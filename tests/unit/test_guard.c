/* ingot_linear_quantize is never worse than plain rounding: also of weights and inputs so large
 * that a loss is beyond FP32, or so small that there is none, where it once kept a matrix of zeros.
 */
#include "convert/linear.h"

#include "quantize_inputs.h"

#define ROWS 24u
#define COLS 256u

typedef struct sample {
    ingot_backend backend;
    ingot_arena *arena, *scratch, *kept;
    ingot_weight_view view;
    float *w, *gram, *scaled, *target;
    ingot_quant_format format;
    uint64_t outliers;   /* of the job that follows */
    double left_out;     /* of the last one */
    ingot_status status; /* of the last call */
    unsigned fallbacks;
} sample;

static void open_sample(sample *s) {
    *s = (sample){.arena = new_arena(), .scratch = new_arena(), .kept = new_arena()};
    CU_ASSERT_FATAL(ingot_backend_open(&s->backend, "cpu", 2, NULL) == INGOT_OK);
    s->w = random_weights(s->arena, ROWS * COLS);
    s->gram = random_gram(s->arena, COLS, 600);
    CU_ASSERT_FATAL(ingot_arena_alloc(s->arena, (void **)&s->scaled, COLS * COLS * sizeof(float)) ==
                    INGOT_OK);
    CU_ASSERT_FATAL(ingot_arena_alloc(s->arena, (void **)&s->target, ROWS * COLS * sizeof(float)) ==
                    INGOT_OK);
    s->format = (ingot_quant_format){4, 64, INGOT_ZERO_SYMMETRIC, INGOT_BF16};
    s->view = (ingot_weight_view){
        .kind = INGOT_DENSE, .rows = ROWS, .cols = COLS, .dtype = INGOT_F32, .data = s->w};
}

static void close_sample(sample *s) {
    ingot_arena_destroy(s->arena);
    ingot_arena_destroy(s->scratch);
    ingot_arena_destroy(s->kept);
    ingot_backend_close(&s->backend);
}

/* A matrix that fell back is plain rounding for as long as nothing learns on from there. */
static void check_learned(sample *s, const ingot_linear_job *job, ingot_quantized *q,
                          const ingot_ledger *made) {
    ingot_ledger ledger = *made;
    CU_ASSERT(ledger.method == INGOT_METHOD_RTN && ledger.weight_error == ledger.weight_error_rtn);
    CU_ASSERT(ingot_linear_measure(&ledger, job, job->target, q, s->scratch) == INGOT_OK);
    CU_ASSERT(ledger.method == INGOT_METHOD_RTN && ledger.weight_error == made->weight_error);
    CU_ASSERT(ledger.fallback == INGOT_FALLBACK_WORSE_THAN_RTN);
    q->scales[0] *= 1.25f;
    CU_ASSERT(ingot_linear_measure(&ledger, job, job->target, q, s->scratch) == INGOT_OK);
    CU_ASSERT(ledger.method == job->method && ledger.weight_error != made->weight_error);
    CU_ASSERT(ledger.fallback == INGOT_FALLBACK_NONE);
    s->fallbacks++;
}

/* The ledger of the weights under a multiple of H. */
static ingot_ledger quantize(sample *s, float gram_scale, ingot_method method) {
    ingot_gptq_factor factor;
    ingot_quantized q;
    ingot_ledger ledger;
    ingot_steps_taken steps;
    double bound, again;
    for (uint64_t i = 0; i < (uint64_t)COLS * COLS; i++) {
        s->scaled[i] = s->gram[i] * gram_scale;
    }
    ingot_arena_reset(s->scratch);
    ingot_arena_reset(s->kept);
    CU_ASSERT_FATAL(s->backend.ops->factorize(s->backend.context, &factor, s->scaled, COLS,
                                              s->format.group, s->kept, s->scratch) == INGOT_OK);
    const ingot_linear_job job = {
        .backend = &s->backend,
        .file = "",
        .name = "",
        .source = &s->view,
        .format = s->format,
        .outlier_count = s->outliers,
        .outlier_dtype = INGOT_F16,
        .method = method,
        .polish_rounds = 2,
        .target = s->target,
        .data = {.gram = s->scaled, .plain_gram = s->scaled, .factor = &factor, .tokens = 600}};
    ingot_arena_reset(s->scratch);
    s->status = ingot_linear_quantize(&q, &ledger, &steps, &bound, &job, s->kept, s->scratch, NULL);
    s->left_out = steps.left_out;
    if (s->status == INGOT_OK && method != INGOT_METHOD_RTN) { /* as a resumed one asks for it */
        CU_ASSERT(ingot_linear_bound(&again, &job, s->scratch, NULL) == INGOT_OK);
        CU_ASSERT(again == bound && ledger.weight_error <= bound);
    }
    if (s->status == INGOT_OK && ledger.fallback == INGOT_FALLBACK_WORSE_THAN_RTN) {
        check_learned(s, &job, &q, &ledger);
    }
    return ledger;
}

static void test_sizes(void) {
    static const ingot_method methods[] = {INGOT_METHOD_GPTQ, INGOT_METHOD_AWQ};
    sample s;
    open_sample(&s);
    for (unsigned m = 0; m < 2; m++) {
        const ingot_ledger usual = quantize(&s, 1, methods[m]);
        CU_ASSERT_FATAL(s.status == INGOT_OK);
        CU_ASSERT(usual.fallback == INGOT_FALLBACK_NONE);
        CU_ASSERT(usual.output_error < usual.output_error_rtn);
    }
    for (uint64_t i = 0; i < (uint64_t)ROWS * COLS; i++) {
        s.w[i] *= 1e14f;
    }
    for (unsigned m = 0; m < 2; m++) {
        for (float scale = 1; scale < 1e33f; scale *= 1e8f) {
            const ingot_ledger large = quantize(&s, scale, methods[m]);
            CU_ASSERT_FATAL(s.status == INGOT_OK);
            const bool is_better = large.output_error <= large.output_error_rtn;
            CU_ASSERT(is_better || large.weight_error <= large.weight_error_rtn);
            CU_ASSERT(large.weight_error < 0.3);
        }
    }
    close_sample(&s);
}

/* No inputs, or some whose products are below FP32: every result has the same loss, none, whatever
 * the squares of weights that are searched for scales. */
static void test_no_input(void) {
    static const ingot_method methods[] = {INGOT_METHOD_GPTQ, INGOT_METHOD_AWQ};
    static const float gram_scales[] = {0, 1e-42f, 1};
    static const float sizes[] = {1, 1e-27f, 1e25f}; /* of the weights */
    for (unsigned i = 0; i < 3; i++) {
        sample s;
        open_sample(&s);
        for (uint64_t k = 0; k < (uint64_t)ROWS * COLS; k++) {
            s.w[k] *= sizes[i];
        }
        for (unsigned k = 0; k < 6; k++) {
            const ingot_ledger ledger = quantize(&s, gram_scales[k / 2], methods[k % 2]);
            CU_ASSERT_FATAL(s.status == INGOT_OK);
            CU_ASSERT(ledger.weight_error < 0.3);
        }
        CU_ASSERT(i == 0 || s.fallbacks != 0);
        close_sample(&s);
    }
}

/* Weights beyond the scales of their type are refused, not cut off. */
static void test_too_large(void) {
    static const ingot_method methods[] = {INGOT_METHOD_GPTQ, INGOT_METHOD_RTN};
    static const ingot_dtype dtypes[] = {INGOT_F16, INGOT_BF16, INGOT_F32};
    sample s;
    open_sample(&s);
    for (unsigned i = 0; i < 6; i++) {
        s.format.scale_dtype = dtypes[i / 2];
        s.w[17] = 7 * 32000.0f;
        (void)quantize(&s, 1, methods[i % 2]);
        CU_ASSERT(s.status == INGOT_OK);
        s.w[17] = s.format.scale_dtype == INGOT_F16 ? -7 * 33000.0f : 1e32f;
        (void)quantize(&s, 1, methods[i % 2]);
        CU_ASSERT(s.status == INGOT_ERR_NUMERIC);
    }
    close_sample(&s);
}

/* Outliers at the end of F16: those beyond are none, and what the column loop takes over it is cut
 * off there. */
static void test_outliers(void) {
    static const ingot_method methods[] = {INGOT_METHOD_RTN, INGOT_METHOD_AWQ, INGOT_METHOD_GPTQ};
    for (unsigned m = 0; m < 3; m++) {
        sample s;
        float largest = 0;
        open_sample(&s);
        s.outliers = ROWS * COLS / 10;
        for (uint64_t i = 0; i < (uint64_t)ROWS * COLS; i++) {
            largest = fmaxf(largest, fabsf(s.w[i]));
        }
        for (uint64_t i = 0; i < (uint64_t)ROWS * COLS; i++) { /* many at the very end */
            s.w[i] = fminf(fmaxf(s.w[i] / largest * 200000, -65500), 65500);
        }
        s.w[700] = -80000;
        const ingot_ledger ledger = quantize(&s, 1, methods[m]);
        CU_ASSERT_FATAL(s.status == INGOT_OK);
        CU_ASSERT(s.left_out == 1 && ledger.outliers == s.outliers);
        CU_ASSERT(ledger.fallback == INGOT_FALLBACK_NONE && ledger.weight_error < 0.15);
        close_sample(&s);
    }
}

int main(void) {
    const CU_TestInfo tests[] = {{"losses of every size", test_sizes},
                                 {"no losses", test_no_input},
                                 {"beyond the scales", test_too_large},
                                 {"outliers beyond F16", test_outliers},
                                 CU_TEST_INFO_NULL};
    return run_on_every_level("guard", tests);
}
