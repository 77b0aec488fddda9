/* How long learning takes, by a short measurement (convert/plan_learning.h). */
#include "convert/plan_learning.h"

#include "common/progress.h"
#include "suite.h"

#include <math.h>
#include <time.h>

#define TINY "tests/fixtures/tiny-llama"

/* Calls that take as long as it says, and what they took. */
typedef struct script {
    double seconds[8], taken[8];
    unsigned calls;
} script;

static ingot_status play(void *context) {
    script *s = context;
    const double start = ingot_clock_seconds();
    const struct timespec nap = {.tv_nsec = (long)(1e9 * s->seconds[s->calls])};
    (void)nanosleep(&nap, NULL);
    s->taken[s->calls++] = ingot_clock_seconds() - start;
    return INGOT_OK;
}

static ingot_status wait_for_nothing(void *context) {
    (void)context;
    return INGOT_OK;
}

/* Other processes have the processor for all calls but one. */
static void test_least(void) {
    const ingot_backend_ops ops = {.wait = wait_for_nothing};
    const ingot_backend backend = {.ops = &ops};
    script slow = {.seconds = {0.06, 0.05, 0.001, 0.05}};
    double seconds, longer = 1;
    CU_ASSERT_EQUAL(ingot_time_work(&seconds, &longer, &backend, play, &slow), INGOT_OK);
    CU_ASSERT_EQUAL(slow.calls, 4);
    CU_ASSERT(seconds >= slow.taken[2] && seconds < 0.03);
    CU_ASSERT(longer > 1 + 0.03 && longer < 1 + slow.taken[0]);
    script quick = {.seconds = {0.001, 0.006, 0.006, 0.006, 0.006, 0.006, 0.006, 0.006}};
    CU_ASSERT_EQUAL(ingot_time_work(&seconds, &longer, &backend, play, &quick), INGOT_OK);
    CU_ASSERT(quick.calls > 4 && seconds >= 0.006);
}

/* Of a block of the model's shape, there and back, or of none where it is large. */
static void test_pace(void) {
    ingot_error error;
    ingot_backend backend;
    ingot_checkpoint *checkpoint;
    ingot_weight_source source;
    ingot_model model;
    ingot_recipe recipe = {.defaults = {.bits = 4, .group = 32, .is_symmetric = true}};
    ingot_learning_pace pace, longer;
    bool has_pace = false;
    CU_ASSERT_EQUAL_FATAL(ingot_backend_open(&backend, "cpu", 1, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_checkpoint_open(&checkpoint, TINY, &error), INGOT_OK);
    ingot_weight_source_from_checkpoint(&source, checkpoint);
    CU_ASSERT_EQUAL_FATAL(ingot_model_open(&model, &source, &error), INGOT_OK);
    ingot_forecast_job job = {
        .checkpoint = checkpoint, .model = &model, .recipe = &recipe, .windows = 4, .length = 32};
    CU_ASSERT_EQUAL(ingot_learning_measure(&pace, &has_pace, &job, &backend, 1e9, &error),
                    INGOT_OK);
    CU_ASSERT(has_pace);
    CU_ASSERT(pace.pass > 0 && pace.step > 0 && pace.head > 0);
    CU_ASSERT(pace.learn > pace.pass);
    /* what is longer than the window that is measured counts by its products */
    job.length = 1 << 20;
    CU_ASSERT_EQUAL(ingot_learning_measure(&longer, &has_pace, &job, &backend, 1e3, &error),
                    INGOT_OK);
    CU_ASSERT(longer.pass > 100 * pace.pass);
    model.linear[INGOT_ROLE_Q].rows = 1 << 20;
    CU_ASSERT_EQUAL(ingot_learning_measure(&pace, &has_pace, &job, &backend, 1e9, &error),
                    INGOT_OK);
    CU_ASSERT(!has_pace && pace.pass == 0);
    ingot_model_close(&model);
    ingot_checkpoint_close(checkpoint);
    ingot_backend_close(&backend);
}

int main(void) {
    const CU_TestInfo tests[] = {{"the least of several calls", test_least},
                                 {"steps of learning", test_pace},
                                 CU_TEST_INFO_NULL};
    return suite_run("forecast", tests);
}
