/* Internal to kernels/cuda: the scale search over groups that lie anywhere, shared by rounding and
 * GPTQ. */
#ifndef INGOT_CUDA_SEARCH_H
#define INGOT_CUDA_SEARCH_H

#include "kernels/cuda/quantize.h"

/* `groups` groups of `group` values (the last one may be short) in each of `rows` rows. */
typedef struct cuda_search_job {
    const float *w;          /* [rows][stride] */
    const float *importance; /* [cols], in the order of w's columns; NULL: ones */
    const uint8_t *skip; /* [rows][skip_stride], nonzero: left out, its code is the zero point */
    uint64_t skip_stride;
    uint64_t rows, cols, stride, group, groups;
    unsigned bits;
    ingot_dtype scale_dtype;
    float *scales;  /* [rows][scale_stride], written from column first_group on */
    uint8_t *zeros; /* likewise */
    uint64_t scale_stride, first_group;
    uint8_t *codes; /* [rows][stride]; NULL: scales alone */
} cuda_search_job;

ingot_status cuda_search_groups(const ingot_cuda *cuda, const cuda_search_job *job,
                                ingot_zero_mode zero_mode);

/* mask[rows][cols] = 1 where an outlier is, else 0. */
ingot_status cuda_outlier_mask(const ingot_cuda *cuda, uint8_t *mask, const ingot_outliers *o,
                               uint64_t rows, uint64_t cols);

#endif
