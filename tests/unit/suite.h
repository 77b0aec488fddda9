/* The main() of a unit test: one CUnit suite per file, exit code from the number of failures (not
 * from CU_basic_run_tests, which returns 0 when assertions fail) and from whether anything ran. */
#ifndef INGOT_TEST_SUITE_H
#define INGOT_TEST_SUITE_H

#include <CUnit/Basic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Folder with the extra models and texts (../shared, or $INGOT_SHARED), or NULL: such tests skip
 * loudly. */
static inline const char *suite_shared(void) {
    const char *folder = getenv("INGOT_SHARED");
    if (folder == NULL) {
        folder = "../shared";
    }
    return access(folder, R_OK) == 0 ? folder : NULL;
}

static inline int suite_run(const char *name, const CU_TestInfo *tests) {
    if (CU_initialize_registry() != CUE_SUCCESS) {
        return 2;
    }
    CU_pSuite suite = CU_add_suite(name, NULL, NULL);
    for (const CU_TestInfo *test = tests; suite != NULL && test->pName != NULL; test++) {
        CU_add_test(suite, test->pName, test->pTestFunc);
    }
    CU_basic_set_mode(CU_BRM_VERBOSE);
    const CU_ErrorCode code = CU_basic_run_tests();
    const unsigned failures = CU_get_number_of_failures();
    const unsigned ran = CU_get_number_of_tests_run();
    CU_cleanup_registry();
    return code != CUE_SUCCESS || failures != 0 || ran == 0;
}

#endif
