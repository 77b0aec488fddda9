/* Working memory of the engine of the CUDA backend: nothing is written behind it.  What products
 * ask for is compared with what the engine takes in test_engine_memory.cu, without a device; here
 * one case is computed, with guards behind all that the engine has.  Skipped, loudly, without a
 * device. */
#include "tiny_model.h"

#include "calib/decode.h"
#include "calib/engine_model.h"
#include "suite_cuda.h"

/* A model whose matrices have 4 bits in groups of 64, and up 3. */
static ingot_status load(void *self, const char *name, ingot_arena *arena, ingot_weight_view *view,
                         ingot_error *error) {
    INGOT_TRY(tiny_load(self, name, arena, view, error));
    if (strstr(name, "_proj.weight") == NULL) {
        return INGOT_OK;
    }
    const ingot_quant_format format = {
        .bits = strstr(name, "up_proj") != NULL ? 3 : 4, .group = 64, .scale_dtype = INGOT_F16};
    const float *w = view->data;
    ingot_quantized q;
    INGOT_TRY(ingot_quantized_create(&q, view->rows, view->cols, &format, arena));
    ingot_quantize_rtn(&q, w, NULL);
    return ingot_quantized_pack(view, &q, arena, NULL);
}

static ingot_engine *open_engine(const tiny_model *t, const ingot_weight_source *source,
                                 uint64_t capacity) {
    ingot_arena *arena;
    ingot_engine_model model;
    ingot_engine *engine = NULL;
    ingot_error error = {0};
    const ingot_engine_options options = {.sequences = 1, .capacity = capacity};
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_engine_model_create(&model, &t->model, source, arena, NULL, &error),
                          INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        cuda.ops->engine->create(cuda.context, &engine, &model, &options, NULL, &error), INGOT_OK);
    ingot_arena_destroy(arena);
    return engine;
}

#define GUARDS      512u
#define GUARD_BYTES (64u << 10)

static void put_guards(void *guard[GUARDS], const uint8_t *bytes) {
    for (unsigned i = 0; i < GUARDS; i++) {
        CU_ASSERT_EQUAL_FATAL(cuda.ops->alloc(cuda.context, &guard[i], GUARD_BYTES), INGOT_OK);
        CU_ASSERT_EQUAL_FATAL(cuda.ops->upload(cuda.context, guard[i], bytes, GUARD_BYTES),
                              INGOT_OK);
    }
}

/* How many are no longer as they were. */
static unsigned take_guards(void *guard[GUARDS], const uint8_t *bytes) {
    uint8_t *now = malloc(GUARD_BYTES);
    unsigned written = 0;
    for (unsigned i = 0; i < GUARDS; i++) {
        CU_ASSERT_EQUAL_FATAL(cuda.ops->download(cuda.context, now, guard[i], GUARD_BYTES),
                              INGOT_OK);
        written += memcmp(bytes, now, GUARD_BYTES) != 0;
        cuda.ops->release(cuda.context, guard[i]);
    }
    free(now);
    return written;
}

/* Gate and up that go apart, with the most rows of x that pass by packed weights: gate has a kernel
 * for so many, up has none, and what cuBLAS writes for it lies in working memory of which no other
 * product needs as much.  Sizes are such that this memory is the last that the engine takes. */
static void test_up_apart(void) {
    static const tiny_shape shape = {128, 1028, 4, 1, 32, 203};
    enum { rows = 64 };
    tiny_model *t = tiny_create_shaped(0, tiny_seed(), &shape);
    ingot_weight_source source = t->source;
    source.load = load;
    ingot_engine *engine = open_engine(t, &source, rows);
    ingot_decoder *reference;
    ingot_error error;
    uint8_t *bytes = malloc(GUARD_BYTES);
    void *guard[GUARDS];
    float got[203], expected[203];
    uint32_t ids[rows];
    CU_ASSERT_EQUAL_FATAL(
        ingot_decoder_create(&reference, &t->model, &source, &cpu, rows, NULL, &error), INGOT_OK);
    tiny_ids(t, ids, rows);
    memset(bytes, 0xa5, GUARD_BYTES);
    put_guards(guard, bytes);
    CU_ASSERT_EQUAL(cuda.ops->engine->feed(engine, 0, ids, rows, got), INGOT_OK);
    const unsigned written = take_guards(guard, bytes);
    printf("%u guards written ", written);
    CU_ASSERT_EQUAL(written, 0);
    CU_ASSERT_EQUAL(ingot_decoder_feed(reference, ids, rows, expected, &error), INGOT_OK);
    double off = 0, norm = 0;
    for (uint64_t i = 0; i < shape.vocab; i++) {
        off += pow((double)got[i] - (double)expected[i], 2);
        norm += pow((double)expected[i], 2);
    }
    CU_ASSERT(sqrt(off / norm) < 1e-2); /* keys, values and inputs of products are binary16 */
    cuda.ops->engine->destroy(engine);
    ingot_decoder_destroy(reference);
    free(bytes);
    tiny_destroy(t);
}

int main(void) {
    const int missing = suite_open_both();
    if (missing != 0) {
        return missing;
    }
    const CU_TestInfo tests[] = {
        {"gate and up apart", test_up_apart},
        CU_TEST_INFO_NULL,
    };
    return suite_run_both("cuda engine memory", tests);
}
