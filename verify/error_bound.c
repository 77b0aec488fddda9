/* The bound on the weight error of a quantized tensor (spec/quality.md, "Bound on the weight
 * error"): the root mean square of one whole step of plain rounding, computed from the source
 * alone, and never more than what storing zeros would cost. */
#include "common/sizes.h"
#include "kernels/quantize.h"
#include "verify/source_check.h"

#include <math.h>

/* The step of plain rounding for a group: what it would take from the smallest to the largest
 * code. */
static double plain_step(const ingot_tensor *tensor, const float *w, uint64_t count) {
    double low = 0, high = 0; /* zero is always representable */
    for (uint64_t i = 0; i < count; i++) {
        low = w[i] < low ? (double)w[i] : low;
        high = w[i] > high ? (double)w[i] : high;
    }
    /* No finer than the smallest scale the stored type has: spec/quantization.md, "Scales". */
    const double least = (double)ingot_scale_least(tensor->scale_dtype);
    const unsigned codes = 1u << tensor->bits;
    const double step = tensor->zero_mode == INGOT_ZERO_STORED ? (high - low) / (codes - 1)
                                                               : fmax(high, -low) / (codes / 2 - 1);
    return fmax(step, least);
}

void ingot_bound_add(ingot_bound_sums *sums, const ingot_tensor *tensor, const float *w,
                     uint64_t rows) {
    const uint64_t cols = tensor->cols;
    for (uint64_t r = 0; r < rows; r++) {
        for (uint64_t first = 0; first < cols; first += tensor->group) {
            const uint64_t count = ingot_min_u64(tensor->group, cols - first);
            const float *group = w + r * cols + first;
            const double step = plain_step(tensor, group, count);
            double norm = 0;
            for (uint64_t i = 0; i < count; i++) {
                norm += (double)group[i] * (double)group[i];
            }
            sums->step_squared += (double)count * step * step;
            sums->norm_squared += norm;
        }
    }
}

double ingot_bound_value(const ingot_bound_sums *sums) {
    if (sums->norm_squared == 0) {
        return 0;
    }
    return fmin(sqrt(sums->step_squared / sums->norm_squared), 1.0);
}
