/* common/worker.h: jobs run in order beside the caller, statuses and errors arrive once. */
#include "common/worker.h"
#include "suite.h"

#include <string.h>

typedef struct step {
    int value;
    ingot_status status;
} step;

static ingot_status run_step(void *context, ingot_error *error) {
    step *s = context;
    s->value++;
    return s->status == INGOT_OK
               ? INGOT_OK
               : ingot_error_set(error, s->status, "a file", NULL, NULL, "step %d", s->value);
}

static void test_jobs(void) {
    ingot_worker *worker;
    CU_ASSERT_FATAL(ingot_worker_create(&worker) == INGOT_OK);
    CU_ASSERT(ingot_worker_wait(worker, NULL) == INGOT_OK); /* nothing was started */
    step s = {0};
    for (int i = 0; i < 1000; i++) {
        ingot_worker_start(worker, run_step, &s);
        CU_ASSERT(ingot_worker_wait(worker, NULL) == INGOT_OK);
        CU_ASSERT(s.value == i + 1);
    }
    ingot_worker_destroy(worker);
}

static void test_failures(void) {
    ingot_worker *worker;
    ingot_error error = {.status = INGOT_OK};
    CU_ASSERT_FATAL(ingot_worker_create(&worker) == INGOT_OK);
    step s = {.status = INGOT_ERR_IO};
    ingot_worker_start(worker, run_step, &s);
    CU_ASSERT(ingot_worker_wait(worker, &error) == INGOT_ERR_IO);
    CU_ASSERT(error.status == INGOT_ERR_IO && strcmp(error.reason, "step 1") == 0);
    CU_ASSERT(ingot_worker_wait(worker, &error) == INGOT_OK); /* given once */
    ingot_worker_start(worker, run_step, &s);
    CU_ASSERT(ingot_worker_wait(worker, NULL) == INGOT_ERR_IO);
    ingot_worker_destroy(worker);
}

/* Destroying waits for the job at hand. */
static void test_destroy(void) {
    step s = {0};
    for (int i = 0; i < 200; i++) {
        ingot_worker *worker;
        CU_ASSERT_FATAL(ingot_worker_create(&worker) == INGOT_OK);
        ingot_worker_start(worker, run_step, &s);
        ingot_worker_destroy(worker);
        CU_ASSERT(s.value == i + 1);
    }
    ingot_worker_destroy(NULL);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"jobs", test_jobs},
        {"failures", test_failures},
        {"destroy", test_destroy},
        CU_TEST_INFO_NULL,
    };
    return suite_run("worker", tests);
}
