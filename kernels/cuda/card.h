/* What decides how the CUDA backend spreads its work over a device.
 *
 * Declarations that C understands; internal to the backend.  It is what a context begins with, so
 * that tests can put a lesser card in the place of the one they run on. */
#ifndef INGOT_CUDA_CARD_H
#define INGOT_CUDA_CARD_H

#include <stdbool.h>

#define CUDA_CLUSTER_PARTS 8 /* blocks of a cluster that run on every device of compute 9.0 */

/* The least shared_bytes of compute capability 8.0 and later: 8.6, 8.9 and 12.x have no more. */
#define CUDA_LEAST_SHARED_BYTES (99 * 1024)

typedef struct ingot_cuda_card {
    int multiprocessors;
    int shared_bytes; /* of shared memory that a block can have */
    bool is_hopper;   /* or later: clusters of blocks, programmatic dependent launches */
    int major, minor; /* of compute capability */
    /* clusters of 1 .. blocks of product_cluster.h that run at once; zeros: it is not for here */
    unsigned short clusters[CUDA_CLUSTER_PARTS];
} ingot_cuda_card;

#endif
