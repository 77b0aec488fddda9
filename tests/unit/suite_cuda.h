/* A suite whose tests compare the CUDA backend with the CPU's.  Skipped, loudly, without a device.
 */
#ifndef INGOT_TEST_SUITE_CUDA_H
#define INGOT_TEST_SUITE_CUDA_H

#include "kernels/backend.h"
#include "suite.h"

static ingot_backend cuda, cpu;

/* Opens both; 0, or what main is to return. */
static inline int suite_open_both(void) {
    ingot_error error;
    const ingot_status status = ingot_backend_open(&cuda, "cuda", 3, &error);
    if (status == INGOT_ERR_DEVICE) {
        printf("SKIP: no CUDA device: %s\n", error.reason);
        return 77;
    }
    if (status != INGOT_OK || ingot_backend_open(&cpu, "cpu", 0, &error) != INGOT_OK) {
        printf("%s\n", error.reason);
        return 1;
    }
    return 0;
}

/* suite_run with both of them, and closes them. */
static inline int suite_run_both(const char *name, const CU_TestInfo *tests) {
    const int result = suite_run(name, tests);
    ingot_backend_close(&cuda);
    ingot_backend_close(&cpu);
    return result;
}

#endif
