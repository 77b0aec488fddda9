/* The scale search of kernels/quantize.h against the same search in FP64, group by group, on random
 * inputs, on every instruction set. */
#include "search_reference.h"

static const struct {
    uint64_t rows, cols, group;
    unsigned bits;
    ingot_zero_mode zero_mode;
    ingot_dtype scale_dtype;
} shapes[] = {
    {8, 200, 64, 3, INGOT_ZERO_SYMMETRIC, INGOT_F16},
    {8, 256, 128, 4, INGOT_ZERO_SYMMETRIC, INGOT_F16},
    {8, 320, 128, 4, INGOT_ZERO_STORED, INGOT_F16},
    {20, 257, 257, 8, INGOT_ZERO_SYMMETRIC, INGOT_BF16},
    {9, 300, 300, 4, INGOT_ZERO_STORED, INGOT_F32},
    {6, 192, 64, 2, INGOT_ZERO_STORED, INGOT_F16},
    {16, 129, 32, 5, INGOT_ZERO_SYMMETRIC, INGOT_F32},
    {16, 255, 64, 6, INGOT_ZERO_STORED, INGOT_BF16},
    {40, 100, 100, 7, INGOT_ZERO_SYMMETRIC, INGOT_F16},
    {30, 128, 64, 8, INGOT_ZERO_STORED, INGOT_F32},
    {9, 50, 7, 4, INGOT_ZERO_STORED, INGOT_F16},
    {9, 20, 1, 3, INGOT_ZERO_SYMMETRIC, INGOT_F16},
    {40, 1, 1, 8, INGOT_ZERO_STORED, INGOT_F16},
};
#define SHAPES (sizeof shapes / sizeof *shapes)

static void test_bounds(void) {
    uint64_t groups = 0, outside = 0;
    for (unsigned i = 0; i < 4 * SHAPES; i++) {
        ingot_arena *arena = new_arena();
        const uint64_t rows = shapes[i / 4].rows, cols = shapes[i / 4].cols, n = rows * cols;
        const ingot_quant_format format = {.bits = shapes[i / 4].bits,
                                           .group = shapes[i / 4].group,
                                           .zero_mode = shapes[i / 4].zero_mode,
                                           .scale_dtype = shapes[i / 4].scale_dtype};
        const float *w = random_weights(arena, n);
        float *d = random_weights(arena, cols);
        for (uint64_t k = 0; k < cols; k++) {
            d[k] = k % 29 == 3 ? 0.0f : d[k] * d[k] * 40.0f + 1e-3f;
        }
        const float *importance = i % 2 != 0 ? d : NULL;
        ingot_quantized q = new_quantized(rows, cols, format, arena);
        CU_ASSERT(ingot_quantize_search(&q, w, importance, arena, NULL) == INGOT_OK);
        if (i % 4 >= 2) {
            CU_ASSERT(ingot_outliers_choose(&q, w, importance, 1 + n / 50, INGOT_F16, arena, arena,
                                            NULL) == INGOT_OK);
            CU_ASSERT(ingot_quantize_search(&q, w, importance, arena, NULL) == INGOT_OK);
        }
        outside += search_outside(w, importance, &q);
        groups += rows * q.groups;
        ingot_arena_destroy(arena);
    }
    printf("%llu of %llu groups outside ", (unsigned long long)outside, (unsigned long long)groups);
    CU_ASSERT(outside <= search_outside_most(groups));
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"losses of groups", test_bounds},
        CU_TEST_INFO_NULL,
    };
    return run_on_every_level("search", tests);
}
