/* The one place that knows which backends exist.
 *
 * The CUDA backend is a library of its own, opened here: a tool starts, and does its work on the
 * cpu, on machines that have neither it nor CUDA's libraries. */
#include "kernels/backend.h"

#include "kernels/cpu/cpu.h"
#include "kernels/cuda/open.h"

#include <dlfcn.h>
#include <stdlib.h>
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

static ingot_status open_cuda(ingot_backend *out, const char *device, int ordinal, unsigned threads,
                              ingot_error *error) {
    ingot_cuda_open_function *open = NULL;
    INGOT_TRY(load_cuda(&open, device, error));
    return open(out, ordinal, threads, error);
}

ingot_status ingot_backend_open(ingot_backend *out, const char *device, unsigned threads,
                                ingot_error *error) {
    memset(out, 0, sizeof *out);
    if (strcmp(device, "cpu") == 0) {
        return ingot_cpu_open(out, threads, error);
    }
    if (strcmp(device, "auto") == 0) {
        return open_cuda(out, device, -1, threads, NULL) == INGOT_OK
                   ? INGOT_OK
                   : ingot_cpu_open(out, threads, error);
    }
    if (strcmp(device, "cuda") == 0) {
        return open_cuda(out, device, -1, threads, error);
    }
    if (strncmp(device, "cuda:", 5) == 0) {
        char *end;
        const long ordinal = strtol(device + 5, &end, 10);
        if (end != device + 5 && *end == '\0' && ordinal >= 0 && ordinal < 1024) {
            return open_cuda(out, device, (int)ordinal, threads, error);
        }
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

ingot_status ingot_backend_arena_create(ingot_arena **out, const ingot_backend *backend) {
    const ingot_allocator device = {.alloc = backend->ops->alloc,
                                    .release = backend->ops->release,
                                    .context = backend->context};
    return ingot_arena_create_from(out, &device);
}

ingot_status ingot_backend_host_arena_create(ingot_arena **out, const ingot_backend *backend) {
    /* Pinning memory takes milliseconds, and giving it back waits for the device. */
    const ingot_allocator host = {.alloc = backend->ops->host_alloc,
                                  .release = backend->ops->host_release,
                                  .context = backend->context,
                                  .is_slow = backend->has_own_memory};
    return ingot_arena_create_from(out, &host);
}
