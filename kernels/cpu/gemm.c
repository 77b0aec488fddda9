/* The products of OpenBLAS under row-major names, and how dimensions are cut into tiles.
 *
 * Tile sizes follow from shapes alone, never from the number of threads (backend.h). */
#include "common/sizes.h"
#include "kernels/cpu/cpu.h"

#include <cblas.h>
#include <limits.h>

bool ingot_cpu_fits(uint64_t dimension) {
    return dimension <= (uint64_t)INT_MAX;
}

ingot_cpu_cut ingot_cpu_cut_make(uint64_t total, uint64_t largest, uint64_t step) {
    ingot_cpu_cut cut = {.total = total};
    if (total == 0) {
        cut.tile = step;
        return cut;
    }
    const uint64_t wanted = ingot_ceil_div(total, largest);
    cut.tile = ingot_ceil_div(ingot_ceil_div(total, wanted), step) * step;
    cut.count = ingot_ceil_div(total, cut.tile);
    return cut;
}

void ingot_cpu_gemm_nt(float *c, uint64_t ldc, const float *a, uint64_t lda, const float *b,
                       uint64_t ldb, uint64_t m, uint64_t n, uint64_t k, float beta) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)m, (int)n, (int)k, 1.0f, a, (int)lda,
                b, (int)ldb, beta, c, (int)ldc);
}

void ingot_cpu_gemm_nn(float *c, uint64_t ldc, const float *a, uint64_t lda, const float *b,
                       uint64_t ldb, uint64_t m, uint64_t n, uint64_t k, float beta) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)n, (int)k, 1.0f, a,
                (int)lda, b, (int)ldb, beta, c, (int)ldc);
}

void ingot_cpu_gemm_tn(float *c, uint64_t ldc, const float *a, uint64_t lda, const float *b,
                       uint64_t ldb, uint64_t m, uint64_t n, uint64_t k, float beta) {
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)m, (int)n, (int)k, 1.0f, a, (int)lda,
                b, (int)ldb, beta, c, (int)ldc);
}
