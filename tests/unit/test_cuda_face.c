/* The public face of the kernels (kernels/ingot_kernels.h) on a CUDA device.  Skipped, loudly,
 * without one. */
#include "kernels_face.h"

#include "calib/engine_model.h"

#define VOCAB 203u

static ingot_engine *open_engine(packed_model *p, uint64_t sequences, uint64_t capacity) {
    ingot_arena *arena;
    ingot_engine_model model;
    ingot_engine *engine = NULL;
    ingot_error error = {0};
    const ingot_engine_options options = {.sequences = sequences, .capacity = capacity};
    bind(p);
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ingot_engine_model_create(&model, &p->tiny->model, &p->source, arena, NULL, &error),
        INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_engine_create(&engine, kernels, &model, &options, NULL, &error),
                          INGOT_OK);
    ingot_arena_destroy(arena);
    return engine;
}

/* Logits are those of the token that `next` gave, and refused where there is none such: before
 * anything was fed or chosen, after more was fed, and where the device has gone on. */
static void test_logits(void) {
    static const tiny_shape shape = {64, 96, 6, 2, 16, VOCAB};
    static const uint32_t prompt[] = {5, 49, 77};
    float fed[2][VOCAB], got[2][VOCAB] = {{-7}};
    uint32_t ids[2];
    packed_model p = pack_model(0, &shape, W4);
    ingot_engine *engine = open_engine(&p, 2, 16);
    CU_ASSERT_EQUAL(ingot_engine_logits(engine, kernels, got[0]), INGOT_ERR_USAGE);
    for (uint64_t s = 0; s < 2; s++) {
        CU_ASSERT_EQUAL(ingot_engine_feed(engine, kernels, s, prompt + s, 2, fed[s]), INGOT_OK);
        CU_ASSERT_EQUAL(ingot_engine_logits(engine, kernels, got[0]), INGOT_ERR_USAGE);
    }
    CU_ASSERT_EQUAL(got[0][0], -7); /* nothing was written */
    CU_ASSERT_EQUAL(ingot_engine_next(engine, kernels, 0, ids), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_engine_logits(engine, kernels, got[0]), INGOT_OK);
    CU_ASSERT_EQUAL(memcmp(got, fed, sizeof got), 0);
    CU_ASSERT_EQUAL(ingot_engine_next(engine, kernels, 2, ids), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_engine_logits(engine, kernels, got[0]), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ingot_engine_next(engine, kernels, 1, ids), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_engine_logits(engine, kernels, got[0]), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ingot_engine_next(engine, kernels, 0, ids), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_engine_logits(engine, kernels, got[0]), INGOT_OK);
    for (uint64_t s = 0; s < 2; s++) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < VOCAB; i++) {
            best = got[s][i] > got[s][best] ? i : best;
        }
        CU_ASSERT_EQUAL(ids[s], best);
    }
    CU_ASSERT_EQUAL(ingot_engine_feed(engine, kernels, 1, prompt, 1, NULL), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_engine_logits(engine, kernels, got[0]), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ingot_engine_rewind(engine, kernels, 0), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_engine_logits(engine, kernels, got[0]), INGOT_ERR_USAGE);
    ingot_engine_destroy(engine, kernels);
    packed_destroy(&p);
}

/* What was said of loading. */
typedef struct told {
    uint64_t done, total;
    bool is_rising;
} told;

static void note(void *context, uint64_t done_bytes, uint64_t total_bytes) {
    told *t = context;
    t->is_rising = (t->done == 0 || t->is_rising) && done_bytes > t->done;
    t->done = done_bytes;
    t->total = total_bytes;
}

/* How far loading is, from host memory and from a container; the room between matrices, which
 * counts in the whole alone, is less than they are. */
static void test_progress(void) {
    static const tiny_shape shape = {64, 96, 6, 2, 16, VOCAB};
    char path[64];
    (void)snprintf(path, sizeof path, "/tmp/ingot-cuda-face-%d.ingot", (int)getpid());
    packed_model p = pack_model(0, &shape, OUTLIERS);
    bind(&p);
    write_container(&p, path, false);
    ingot_container *container;
    ingot_error error = {0};
    ingot_weight_source stored;
    CU_ASSERT_EQUAL_FATAL(ingot_open(&container, path, &error), INGOT_OK);
    ingot_weight_source_from_container(&stored, container, true);
    const ingot_weight_source *sources[] = {&p.source, &stored};
    for (int i = 0; i < 2; i++) {
        told seen = {0};
        const ingot_engine_options options = {
            .sequences = 1, .capacity = 10, .progress = note, .progress_context = &seen};
        ingot_arena *arena;
        ingot_engine_model model;
        ingot_engine *engine = NULL;
        CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
        CU_ASSERT_EQUAL_FATAL(
            ingot_engine_model_create(&model, &p.tiny->model, sources[i], arena, NULL, &error),
            INGOT_OK);
        CU_ASSERT_EQUAL_FATAL(ingot_engine_create(&engine, kernels, &model, &options, NULL, &error),
                              INGOT_OK);
        CU_ASSERT(seen.is_rising && seen.done <= seen.total && seen.done > seen.total / 2);
        ingot_engine_destroy(engine, kernels);
        ingot_arena_destroy(arena);
    }
    ingot_close(container);
    CU_ASSERT_EQUAL(unlink(path), 0);
    packed_destroy(&p);
}

int main(void) {
    const CU_TestInfo engine_tests[] = {
        {"logits", test_logits}, {"how far loading is", test_progress}, CU_TEST_INFO_NULL};
    ingot_error error;
    face_tolerance = 0x1p-18;
    const ingot_status status = ingot_kernels_open(&kernels, "cuda", 2, &error);
    if (status == INGOT_ERR_DEVICE) {
        printf("SKIP: no CUDA device: %s\n", error.reason);
        return 77;
    }
    if (status != INGOT_OK) {
        printf("%s\n", error.reason);
        return 1;
    }
    int result = face_run("face of the kernels on CUDA");
    result |= suite_run("the engine behind it", engine_tests);
    ingot_kernels_close(kernels);
    return result;
}
