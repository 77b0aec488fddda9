/* Products of the decoder: a few rows of x with a matrix in the layout of the file.
 *
 *     y = f(norm(x) W^T + bias) + residual,   f(a) = a,  act(a)  or  act(a) (norm(x) U^T + up_bias)
 *
 * Weights stay packed (spec/quantization.md): no copy, no other layout.  norm(x) is rounded to 16
 * bits, weights are exact, sums are FP32: beyond what the rounding of x does, |error| <= 2^-20 of
 * the sum of magnitudes.  Where one x is far larger than the others of its row it is below 2^-18 as
 * tested, and by what is known of tensor cores never above 2^-17 (decision 0013).  For one or two
 * rows of x in F16 these are the magnitudes of codes plus those of zero points, not of their
 * differences, a zero point below the middle of all codes counting as that, and most weights of 3,
 * 4 or 8 bits (those with F16 scales, decision 0056) round x once more: one below 2^-11 of the
 * largest of its 128 columns (128 i to 128 i + 127), or of its group of 32 or 64, to a multiple of
 * 2^-21 of the largest power of two not above that one, which is up to 2^-15 of those magnitudes
 * (2^-14 with zero points) if all roundings have one sign, and below 2^-17 as tested (decision
 * 0043).  An x that is not finite leaves nothing finite in its row of y.  Weights are rounded to 16
 * bits as well, a piece at a time, the smallest to multiples of 2^-38 of the largest, for more than
 * cuda_product_packed_rows rows of x, and from 9 rows on where no kernel reads them packed (that
 * number is 0): columns that are not a multiple of 32, groups other than whole rows and powers of
 * two from 32, groups of 32 and 64 unless codes have 4 or 8 bits, and dense ones (decision 0046)
 * but for those of the dtype of x, and up to 64 rows of BF16 with x of F16, in columns that are a
 * multiple of 8.  Those of F32 are exact to 2^-22 of each up to 8 rows; what cuBLAS multiplies (9
 * rows and more) is below 2^-16, as tested, where one x is far larger.
 *
 * All work goes to the stream of the context in order, allocates nothing and never waits, so that
 * it can be captured into a CUDA graph.  Results are deterministic: the same bits for the same
 * inputs, shapes and GPU model.  One row of y depends on one row of x.
 *
 * Matrices that read the same x (query, key and value) are one product when their rows follow each
 * other in memory: same columns, bits, group, zero mode and scale dtype make one view.
 *
 * Declarations that C understands; internal to the backend, like all of kernels/cuda. */
#ifndef INGOT_CUDA_PRODUCT_H
#define INGOT_CUDA_PRODUCT_H

#include "kernels/backend.h"

/* x of 3 to 64 rows as products of packed weights read it: F16, in one tile (product_unpack.h). */
typedef struct ingot_product_form {
    unsigned bits; /* columns stand in the order of codes of so many bits */
    unsigned rows; /* of the tile, of which the last may hold anything: 16, 32 or 64; 0: none */
} ingot_product_form;

/* Sums of squares of rows, each of a part of the columns, for a norm without weights. */
typedef struct ingot_product_squares {
    float *sums; /* [m][parts + 1], device; behind the parts of a row: the power of two times which
                    it was handed on */
    unsigned parts; /* 0: not known */
} ingot_product_squares;

/* What a product hands on to the one behind it, which saves a kernel between them: y in F16, in the
 * form that cuda_product_takes says.  With norm_weight y times those weights and times a power of
 * two, of which squares make norm(y) (RMS norms alone).  The power is 2^-5 divided by the root mean
 * square of the rows of which the job has squares, itself rounded down to a power of two.  Values
 * are therefore at most 65504 where they are 2^20 times that root or more, and below 2^-9 of it
 * they are rounded to multiples of 2^-19 of it. */
typedef struct ingot_product_next {
    void *x; /* [form.rows][rows of W], device, 256-byte aligned, overlaps nothing that is read;
                NULL: nothing is handed on */
    ingot_product_form form;
    /* [rows of W], device, 16-byte aligned, or NULL; kind and eps as those of the job */
    const float *norm_weight;
    ingot_product_squares squares; /* with norm_weight: written; parts from cuda_product_hands */
} ingot_product_next;

typedef struct ingot_product {
    /* The previous kernel of the stream may still run when this one starts (programmatic dependent
     * launch): weights are fetched before it ends, x and residual are read and y is written after
     * it has ended.  Safe only when the previous kernel was ordinary, or waits in every block for
     * its own predecessor (griddepcontrol.wait), as all kernels of this file do.  They let their
     * successor start at once.  W, bias and norm_weight must have been written long before. */
    bool is_chained;
    uint64_t m; /* rows of x */

    /* in host memory, its pointers on the device, what they point to readable to the end of its
     * last aligned word of 4 bytes; any kind */
    const ingot_weight_view *w;
    const float *bias;           /* [w->rows], device, or NULL */
    const ingot_weight_view *up; /* U: as many rows and columns as W, or NULL */
    const float *up_bias;
    /* Bounds of the magnitudes of W and of U, outliers among them; 0: below 128.  Their copies in
     * 16 bits are scaled by them. */
    float largest, up_largest;
    bool has_activation; /* must be true with up */
    ingot_activation activation;

    const void *x;             /* [m][w->cols] of x_dtype, device; rows follow each other */
    ingot_product_form x_form; /* rows: x is in this form, as another product handed it on */
    ingot_dtype x_dtype;       /* F16, BF16 or F32 */
    ingot_dtype dtype;         /* F16 or BF16: what norm(x) is rounded to */
    const float *norm_weight;  /* [w->cols], device, or NULL: norm(x) = x */
    const float *norm_bias;    /* INGOT_NORM_LAYER alone, may be NULL */
    ingot_norm_kind norm_kind;
    float norm_eps;
    /* sums NULL: none.  Where next has a norm: those of the residual, or of rows of about its size;
     * else x was handed on with a norm, and these with it. */
    ingot_product_squares squares;
    float *x_squares; /* [m][2], device, or NULL: where cuda_product_normalises, becomes the sum of
                         squares of each row of x, and room, as ingot_product_squares of one part */

    const void *residual; /* [m][w->rows] of y_dtype, device, or NULL; may be y */
    void *y;              /* [m][w->rows], device; overlaps nothing else that is read; NULL where
                             next takes it, without a norm */
    ingot_product_next next;
    ingot_dtype y_dtype; /* F32, F16 or BF16 */

    void *workspace; /* device, 256-byte aligned, cuda_product_workspace_bytes; any contents.  Work
                        in the same stream may share it. */
} ingot_product;

#ifdef __cplusplus
extern "C" {
#endif

/* Bytes of workspace that a product of these shapes needs; depends on shapes, views' kinds and
 * dtypes alone, not on pointers (but which are NULL matters), and never decreases when m grows up
 * to 64, or to cuda_product_packed_rows if that is more. */
uint64_t cuda_product_workspace_bytes(void *context, const ingot_product *job);

/* The most rows of x with which products with w and up (NULL: none) read packed weights; 64 or
 * more, or 0 where no kernel reads more than a few rows' so. */
uint64_t cuda_product_packed_rows(void *context, const ingot_weight_view *w,
                                  const ingot_weight_view *up);

/* Whether one product can take w and up (NULL: none) together: of one shape, stored alike
 * (kernels/cuda/weights.h).  Others go by two products. */
bool cuda_product_is_alike(const ingot_weight_view *w, const ingot_weight_view *up);

/* Whether the product asks for the split of a multiprocessor's memory that leaves most to L1
 * (cuda_carveout): other kernels between such products do well to ask for the same. */
bool cuda_product_uses_l1(void *context, const ingot_product *job);

/* The form in which the product, as it is but for x, would take an x that is handed on; rows are 0
 * where it takes none. */
ingot_product_form cuda_product_takes(void *context, const ingot_product *job);

/* Whether the product can hand on y, with a norm or without: the parts of squares, or 1; else 0. */
unsigned cuda_product_hands(void *context, const ingot_product *job, bool has_norm);

/* Whether a kernel in front of the product normalises x, and leaves its squares. */
bool cuda_product_normalises(void *context, const ingot_product *job);

/* Launches the product.  INGOT_ERR_UNSUPPORTED for weights of other kinds, forms that the product
 * does not take, y that it cannot hand on, and more than 2^32 - 1 rows or columns, INGOT_ERR_DEVICE
 * when a launch fails.  Nothing is done for m = 0. */
ingot_status cuda_product(void *context, const ingot_product *job) INGOT_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
