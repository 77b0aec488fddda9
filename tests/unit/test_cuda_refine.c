/* kernels/refine.h on the cuda backend: refine_cases.h; skipped, loudly, where there is no device.
 */
#include "refine_cases.h"

static ingot_backend cuda;

static void drift(void) {
    refine_drift(&cuda, 0x1p-9);
}

static void products(void) {
    refine_products(&cuda, 0x1p-9);
}

static void solve(void) {
    refine_solve(&cuda, 0);
}

static void solve_large(void) {
    refine_solve_large(&cuda);
}

static void polish(void) {
    refine_polish(&cuda, true);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"drift of inputs", drift},
        {"products", products},
        {"solving with H", solve},
        {"solving with a larger H", solve_large},
        {"polish against a slow one", polish},
        CU_TEST_INFO_NULL,
    };
    ingot_error error = {0};
    input_start("cuda_refine");
    if (ingot_backend_open(&cuda, "cuda", 2, &error) != INGOT_OK) {
        printf("SKIP: no CUDA device: %s\n", error.reason);
        return 77;
    }
    const int result = suite_run("cuda_refine", tests);
    ingot_backend_close(&cuda);
    return result;
}
