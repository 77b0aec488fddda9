/* Opening libingot_cuda.so (spec/decisions/0007). */
#ifndef INGOT_PLUGIN_H
#define INGOT_PLUGIN_H

#include "kernels/backend.h"

/* Opens CUDA device number `ordinal` (-1: the first); `device` is its name in error texts.
 * INGOT_ERR_DEVICE when there is no driver, no library or no such device. */
ingot_status ingot_plugin_open(ingot_backend *out, const char *device, int ordinal,
                               unsigned threads, ingot_error *error) INGOT_MUST_CHECK;

/* What a process takes of a GPU beside what it allocates: a context, and kernels, ours and those of
 * cuBLAS and cuSOLVER, each loaded when it is first called.  On one H200, driver 580. */
#define INGOT_PLUGIN_CONTEXT_BYTES UINT64_C(550000000)
#define INGOT_PLUGIN_KERNEL_BYTES  UINT64_C(220000000)

/* *bytes (1 at least) that a process can allocate on a device (cuda: the first; cuda:N), of what is
 * free beside a context, which is made for the question and given back; false where there is no
 * such device. */
bool ingot_plugin_free_bytes(uint64_t *bytes, const char *device);

#endif
