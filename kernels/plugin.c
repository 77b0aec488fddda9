/* The CUDA backend is a library of its own, opened here: a tool starts, and does its work on the
 * cpu, on machines that have neither it nor CUDA's libraries. */
#include "kernels/plugin.h"

#include "kernels/cuda/open.h"
#include "kernels/device_name.h"

#include <dlfcn.h>
#include <stddef.h>
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

ingot_status ingot_plugin_open(ingot_backend *out, const char *device, int ordinal,
                               unsigned threads, ingot_error *error) {
    ingot_cuda_open_function *open = NULL;
    INGOT_TRY(load_cuda(&open, device, error));
    return open(out, ordinal, threads, error);
}

/* ---- free memory ---------------------------------------------------------------------------- */

/* The driver's interface is stable and small enough to be declared here: nothing but the driver is
 * loaded.  0 is success of all of these. */
typedef struct driver {
    int (*init)(unsigned flags);
    int (*get)(int *device, int ordinal);
    int (*retain)(void **context, int device);
    int (*push)(void *context);
    int (*info)(size_t *free_bytes, size_t *total_bytes);
    int (*pop)(void **context);
    int (*release)(int device);
} driver;

static bool find(void *library, const char *name, void *function, size_t size) {
    void *symbol = dlsym(library, name);
    memcpy(function, &symbol, size); /* C has no cast from data to function */
    return symbol != NULL;
}

static bool load(driver *d) {
    void *library = dlopen(INGOT_CUDA_DRIVER, RTLD_LAZY | RTLD_LOCAL);
    return library != NULL && find(library, "cuInit", &d->init, sizeof d->init) &&
           find(library, "cuDeviceGet", &d->get, sizeof d->get) &&
           find(library, "cuDevicePrimaryCtxRetain", &d->retain, sizeof d->retain) &&
           find(library, "cuCtxPushCurrent_v2", &d->push, sizeof d->push) &&
           find(library, "cuMemGetInfo_v2", &d->info, sizeof d->info) &&
           find(library, "cuCtxPopCurrent_v2", &d->pop, sizeof d->pop) &&
           find(library, "cuDevicePrimaryCtxRelease_v2", &d->release, sizeof d->release);
}

bool ingot_plugin_free_bytes(uint64_t *bytes, const char *device) {
    driver d;
    int number, ordinal;
    void *context;
    size_t free_bytes = 0, total_bytes = 0;
    *bytes = 0;
    if (!ingot_device_ordinal(&ordinal, device) || !load(&d) || d.init(0) != 0 ||
        d.get(&number, ordinal < 0 ? 0 : ordinal) != 0 || d.retain(&context, number) != 0) {
        return false;
    }
    bool is_known = d.push(context) == 0;
    if (is_known) {
        is_known = d.info(&free_bytes, &total_bytes) == 0;
        (void)d.pop(&context);
    }
    (void)d.release(number);
    if (is_known) {
        *bytes =
            free_bytes > INGOT_PLUGIN_KERNEL_BYTES ? free_bytes - INGOT_PLUGIN_KERNEL_BYTES : 1;
    }
    return is_known;
}
