/* The CPU as a CUDA device: as libingot_cuda.so on LD_LIBRARY_PATH, beside small_card.c as the
 * driver, it is what tools open where they find a GPU (kernels/plugin.c).  Memory is the host's. */
#include "kernels/cpu/cpu.h"
#include "kernels/cuda/open.h"

#include <stdio.h>
#include <string.h>

/* In place of coretype.c, which no library can hold: the tool has done what that does. */
const bool ingot_cpu_chooses_core = true;

unsigned ingot_cuda_interface(void);
ingot_cuda_open_function ingot_cuda_open;

unsigned ingot_cuda_interface(void) {
    return INGOT_CUDA_INTERFACE;
}

ingot_status ingot_cuda_open(ingot_backend *out, int ordinal, unsigned threads,
                             ingot_error *error) {
    static ingot_backend_ops ops;
    if (ordinal > 0) {
        return ingot_error_set(error, INGOT_ERR_DEVICE, NULL, NULL, NULL, "there is one card");
    }
    INGOT_TRY(ingot_cpu_open(out, threads, error));
    ops = *out->ops;
    ops.name = "cuda";
    out->ops = &ops;
    (void)snprintf(out->path, sizeof out->path, "cuda/a card of the tests");
    return INGOT_OK;
}
