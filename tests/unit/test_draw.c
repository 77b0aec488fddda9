/* ops->draw on every device against sums in FP64. */
#include "backend_devices.h"
#include "backend_inputs.h"

#include <float.h>
#include <math.h>

/* Draws lie where the cumulative sum passes u, to its rounding; a row that is not finite has none.
 */
static void check_draw(uint64_t m, uint64_t vocab) {
    float *logits = input_floats(m * vocab, input_below(2) == 0 ? 3.0 : 300.0);
    double *u = doubles(m);
    uint32_t *next = malloc(m * sizeof *next);
    const uint64_t bad = input_below(m);
    for (uint64_t i = 0; i < m; i++) {
        u[i] = i % 7 == 0 ? 0 : i % 7 == 1 ? 1 - 0x1p-53 : input_uniform();
    }
    logits[bad * vocab + input_below(vocab)] = m % 2 == 0 ? NAN : INFINITY;
    for (unsigned k = 0; k < DEVICES * DEVICE_THREADS; k++) {
        const ingot_backend *b = &devices[k / DEVICE_THREADS].backend[k % DEVICE_THREADS];
        if (!devices[k / DEVICE_THREADS].is_open) {
            continue;
        }
        memset(next, POISON, m * sizeof *next);
        float *x = device_put_floats(b, logits, m * vocab);
        CU_ASSERT(b->ops->draw(b->context, next, u, x, m, vocab) == INGOT_OK);
        device_release(b, x);
        for (uint64_t i = 0; i < m; i++) {
            const float *row = logits + i * vocab;
            double total = 0, before = 0, top = -INFINITY;
            if (i == bad) {
                CU_ASSERT(next[i] == UINT32_MAX);
                continue;
            }
            CU_ASSERT_FATAL(next[i] < vocab);
            for (uint64_t j = 0; j < vocab; j++) {
                top = fmax(top, (double)row[j]);
            }
            for (uint64_t j = 0; j < vocab; j++) {
                total += exp((double)row[j] - top);
                before += j < next[i] ? exp((double)row[j] - top) : 0;
            }
            const double after = before + exp((double)row[next[i]] - top);
            /* exp below the smallest normal number is as each library rounds it, or zero */
            CU_ASSERT(before <= u[i] * total * (1 + 1e-12) + DBL_MIN);
            CU_ASSERT(after >= u[i] * total * (1 - 1e-12));
        }
    }
    free(logits);
    free(u);
    free(next);
}

static void test_draw(void) {
    for (unsigned i = 0; i < 24; i++) {
        check_draw(input_size(129), input_size(300));
    }
    check_draw(70, 32003);
    check_draw(5, 140000); /* more than a piece for each of the most blocks */
    if (getenv("INGOT_TEST_SMALL") == NULL) {
        check_draw(65600, 3); /* more rows than a grid has */
    }
}

int main(void) {
    input_start("draw");
    const CU_TestInfo tests[] = {
        {"devices", devices_open}, /* first: the others use them */
        {"draws", test_draw},
        CU_TEST_INFO_NULL,
    };
    const int result = suite_run("draw", tests);
    devices_close();
    return result;
}
