/* Measuring the products of a backend where they run: times without the host, beside what the
 * memory delivers.  For ingot-bench; nothing else calls it. */
#ifndef INGOT_MEASURE_H
#define INGOT_MEASURE_H

#include "kernels/backend.h"

/* y[m][rows] = x[m][cols] W^T with symmetric or stored zeros and F16 scales, or with 16 bits of
 * dense weights in BF16, x of `dtype`. */
typedef struct ingot_measure_shape {
    uint64_t rows, cols, m, group;
    unsigned bits;
    bool has_zeros;
    bool is_handed;    /* x as the product in front hands it on, where this one takes it so */
    ingot_dtype dtype; /* F16 or BF16 */
} ingot_measure_shape;

typedef struct ingot_measured {
    double median_us, low_us, high_us; /* of a call; low and high: 10th and 90th percentile */
    uint64_t bytes;                    /* of W: codes, scales, zero points, or dense weights */
    double error;     /* ||y - y'|| / ||y'||, y' in FP64 over the exact s (q - z) and the same x */
    bool is_measured; /* false, and nothing else: no x is handed on to such a product */
    double cublas_us; /* the same shape by cuBLAS, weights in BF16, as they are; median */
} ingot_measured;

#endif
