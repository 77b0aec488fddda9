/* What the rest of the tree knows of the CUDA backend: the symbols of libingot_cuda.so, which
 * kernels/plugin.c opens at run time (spec/decisions/0007). */
#ifndef INGOT_CUDA_OPEN_H
#define INGOT_CUDA_OPEN_H

#include "kernels/backend.h"

/* Of the plugin; a tool refuses one that was built from other sources. */
#define INGOT_CUDA_INTERFACE 13u
typedef unsigned ingot_cuda_interface_function(void);

/* Opens device number `ordinal` (-1: the first) with `threads` host threads beside it.
 * INGOT_ERR_DEVICE when there is no such device or no driver. */
typedef ingot_status ingot_cuda_open_function(ingot_backend *out, int ordinal, unsigned threads,
                                              ingot_error *error);

#define INGOT_CUDA_DRIVER           "libcuda.so.1"
#define INGOT_CUDA_LIBRARY          "libingot_cuda.so"
#define INGOT_CUDA_INTERFACE_SYMBOL "ingot_cuda_interface"
#define INGOT_CUDA_OPEN_SYMBOL      "ingot_cuda_open"

#endif
