/* The inner loops of kernels/quantize.c that are compiled once per instruction set
 * (kernels/cpu/isa_quantize.c).  Internal to kernels/.
 *
 * A "padded group" is a group copied into a buffer whose length is a multiple of
 * INGOT_QUANTIZE_LANES, with zero weights and zero importance behind its end: such places add
 * nothing to any sum. */
#ifndef INGOT_QUANTIZE_ISA_H
#define INGOT_QUANTIZE_ISA_H

#include "format/ingot.h"

#define INGOT_QUANTIZE_LANES 16u /* floats a vector step works on, on every instruction set */
#define INGOT_QUANTIZE_TILE  64u /* rows of one tile of the GPTQ loop */

/* What a scale search found for one group. */
typedef struct ingot_group_choice {
    float scale;
    unsigned zero;
    float loss; /* sum of importance * squared error under that scale */
} ingot_group_choice;

typedef struct ingot_quantize_ops {
    const char *name;
    void (*to_f32)(float *out, const void *in, ingot_dtype dtype, uint64_t count);
    uint64_t (*first_not_finite)(const float *values, uint64_t count);
    void (*range)(float *low, float *high, const float *w, uint64_t count);
    /* codes[count] = clamp(round(w / scale) + zero), any count; scale 0 gives zero */
    void (*codes)(uint8_t *codes, const float *w, uint64_t count, float scale, unsigned zero,
                  unsigned bits);
    /* Best scale and zero of a padded group. */
    void (*search)(ingot_group_choice *choice, const float *w, const float *importance,
                   uint64_t padded, unsigned bits, ingot_zero_mode zero_mode,
                   ingot_dtype scale_dtype);
    /* The sequential part of GPTQ on a tile of rows and a block of columns.
     * t[columns][TILE]: targets; w: the weights themselves; e[columns][TILE]: errors out;
     * feedback: A of the block, row stride `stride`; scale[TILE], zero[TILE] of the
     * rows; keep[columns][TILE]: nonzero where the weight is an outlier (NULL: none), whose
     * code is zero and whose value (rounded to keep_dtype) is left in kept[columns][TILE]. */
    void (*feedback)(uint8_t *codes, float *e, const float *t, const float *w,
                     const float *feedback, uint64_t stride, uint64_t columns, const float *scale,
                     const float *zero, unsigned bits, const uint8_t *keep, float *kept,
                     ingot_dtype keep_dtype);
    /* One pass of integer descent on a tile of rows and a block of columns (polish.c): each code in
     * turn becomes the best one under all others.  r[columns][TILE]: (E H) of the block, which
     * follows; gram: H of the block, row stride `stride`; keep: nonzero where nothing may change.
     */
    void (*descend)(uint8_t *codes, float *r, const float *gram, uint64_t stride, uint64_t columns,
                    const float *scale, const float *zero, unsigned bits, const uint8_t *keep);
    /* out[cols] of one row: scales[g] * (codes - zeros[g]) */
    void (*row)(float *out, const uint8_t *codes, uint64_t cols, uint64_t group,
                const float *scales, const uint8_t *zeros);
    /* sums[0] += |a - b|^2, sums[1] += |a|^2 with a = source * row_fold * column_fold */
    void (*error_row)(double sums[2], const float *source, float row_fold, const float *column_fold,
                      const float *stored, uint64_t cols);
    /* sum a_i b_i in FP64 */
    double (*dot)(const float *a, const float *b, uint64_t count);
} ingot_quantize_ops;

extern const ingot_quantize_ops ingot_quantize_ops_v2, ingot_quantize_ops_v3, ingot_quantize_ops_v4;

#endif
