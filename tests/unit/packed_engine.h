/* Engines of the CUDA backend with models of packed_model.h. */
#ifndef INGOT_PACKED_ENGINE_H
#define INGOT_PACKED_ENGINE_H

#include "packed_model.h"

#include "calib/engine_model.h"
#include "suite_cuda.h"

static float softcap; /* of scores; models of calib/ have none */

static ingot_engine *open_engine(const packed_model *p, uint64_t sequences, uint64_t capacity) {
    ingot_arena *arena;
    ingot_engine_model model;
    ingot_engine *engine = NULL;
    ingot_error error = {0};
    const ingot_engine_options options = {.sequences = sequences, .capacity = capacity};
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ingot_engine_model_create(&model, &p->tiny->model, &p->source, arena, NULL, &error),
        INGOT_OK);
    model.softcap = softcap;
    CU_ASSERT_EQUAL_FATAL(ingot_engine_check(&model, &options, &error), INGOT_OK);
    const ingot_status status =
        cuda.ops->engine->create(cuda.context, &engine, &model, &options, NULL, &error);
    if (status != INGOT_OK) {
        printf("\n    create: %s %s\n", ingot_status_text(status), error.reason);
    }
    CU_ASSERT_EQUAL_FATAL(status, INGOT_OK);
    ingot_arena_destroy(arena);
    return engine;
}

#endif
