/* The one place that knows which backends exist. */
#include "kernels/backend.h"

#include "kernels/cpu/cpu.h"

#include <string.h>

ingot_status ingot_backend_open(ingot_backend *out, const char *device, unsigned threads,
                                ingot_error *error) {
    memset(out, 0, sizeof *out);
    if (strcmp(device, "auto") == 0 || strcmp(device, "cpu") == 0) {
        return ingot_cpu_open(out, threads, error);
    }
    if (strcmp(device, "cuda") == 0 || strncmp(device, "cuda:", 5) == 0) {
        return ingot_error_set(error, INGOT_ERR_DEVICE, NULL, NULL, "use --device cpu",
                               "device %s: this build has no CUDA backend", device);
    }
    return ingot_error_set(error, INGOT_ERR_USAGE, NULL, NULL, "use auto, cpu, cuda or cuda:N",
                           "unknown device '%s'", device);
}

void ingot_backend_close(ingot_backend *backend) {
    if (backend->ops != NULL) {
        backend->ops->close(backend->context);
    }
    memset(backend, 0, sizeof *backend);
}
