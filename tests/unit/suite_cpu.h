/* A suite whose tests all run on one backend, the CPU with two threads, and on tiny models drawn
 * from one seed. */
#ifndef INGOT_TEST_SUITE_CPU_H
#define INGOT_TEST_SUITE_CPU_H

#include "suite.h"
#include "tiny_model.h"

static ingot_backend backend;
static uint64_t seed;

/* suite_run with both of them. */
static inline int suite_run_cpu(const char *name, const CU_TestInfo *tests) {
    ingot_error error;
    seed = tiny_seed();
    if (ingot_backend_open(&backend, "cpu", 2, &error) != INGOT_OK) {
        fprintf(stderr, "no backend: %s\n", error.reason);
        return 2;
    }
    const int result = suite_run(name, tests);
    ingot_backend_close(&backend);
    return result;
}

#endif
