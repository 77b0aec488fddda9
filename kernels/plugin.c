/* The CUDA backend is a library of its own, opened here: a tool starts, and does its work on the
 * cpu, on machines that have neither it nor CUDA's libraries. */
#include "kernels/plugin.h"

#include "kernels/cuda/open.h"

#include <dlfcn.h>
#include <string.h>

/* *open = the entry of the CUDA backend; INGOT_ERR_DEVICE with the reason. */
static ingot_status load_cuda(ingot_cuda_open_function **open, const char *device,
                              ingot_error *error) {
    static const char remedy[] = "use --device cpu, or build with CUDA=1 and install CUDA";
    /* The driver first: looking for it costs nothing, and our library brings a gigabyte along. */
    if (dlopen(INGOT_CUDA_DRIVER, RTLD_LAZY | RTLD_LOCAL) == NULL) {
        return ingot_error_set(error, INGOT_ERR_DEVICE, NULL, NULL, "use --device cpu",
                               "device %s: this machine has no NVIDIA driver: %s", device,
                               dlerror());
    }
    void *library = dlopen(INGOT_CUDA_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        return ingot_error_set(error, INGOT_ERR_DEVICE, NULL, NULL, remedy,
                               "device %s: the CUDA backend cannot be used: %s", device, dlerror());
    }
    void *interface = dlsym(library, INGOT_CUDA_INTERFACE_SYMBOL);
    void *entry = dlsym(library, INGOT_CUDA_OPEN_SYMBOL);
    ingot_cuda_interface_function *version = NULL;
    memcpy(&version, &interface, sizeof version); /* C has no cast from data to function */
    memcpy(open, &entry, sizeof *open);
    if (version == NULL || *open == NULL || version() != INGOT_CUDA_INTERFACE) {
        (void)dlclose(library);
        return ingot_error_set(error, INGOT_ERR_DEVICE, NULL, NULL, remedy,
                               "%s belongs to another version", INGOT_CUDA_LIBRARY);
    }
    return INGOT_OK; /* the library stays: its code runs until the process ends */
}

ingot_status ingot_plugin_open(ingot_backend *out, const char *device, int ordinal,
                               unsigned threads, ingot_error *error) {
    ingot_cuda_open_function *open = NULL;
    INGOT_TRY(load_cuda(&open, device, error));
    return open(out, ordinal, threads, error);
}
