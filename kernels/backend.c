/* The one place that knows which backends exist. */
#include "kernels/backend.h"

#include "kernels/cpu/cpu.h"
#include "kernels/device_name.h"
#include "kernels/plugin.h"

#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

ingot_status ingot_backend_open(ingot_backend *out, const char *device, unsigned threads,
                                ingot_error *error) {
    memset(out, 0, sizeof *out);
    if (strcmp(device, "cpu") == 0) {
        return ingot_cpu_open(out, threads, error);
    }
    if (strcmp(device, "auto") == 0) {
        return ingot_plugin_open(out, device, -1, threads, NULL) == INGOT_OK
                   ? INGOT_OK
                   : ingot_cpu_open(out, threads, error);
    }
    int ordinal;
    return ingot_device_ordinal(&ordinal, device)
               ? ingot_plugin_open(out, device, ordinal, threads, error)
               : ingot_device_check_name(device, error);
}

const char *ingot_backend_settle(const char *device) {
    int code = 0;
    if (strcmp(device, "auto") != 0) {
        return device;
    }
    const pid_t child = fork();
    if (child == 0) {
        ingot_backend backend;
        const bool is_open = ingot_backend_open(&backend, device, 1, NULL) == INGOT_OK;
        _exit(is_open && strcmp(backend.ops->name, "cuda") == 0);
    }
    while (child > 0 && waitpid(child, &code, 0) < 0 && errno == EINTR) {
    }
    return child > 0 && WIFEXITED(code) && WEXITSTATUS(code) == 1 ? "cuda" : "cpu";
}

void ingot_backend_close(ingot_backend *backend) {
    if (backend->ops != NULL) {
        backend->ops->close(backend->context);
    }
    memset(backend, 0, sizeof *backend);
}

ingot_status ingot_backend_arena_create(ingot_arena **out, const ingot_backend *backend) {
    /* A device keeps what is released at hand for the next request; host memory would be faulted
     * in anew. */
    const ingot_allocator device = {.alloc = backend->ops->alloc,
                                    .release = backend->ops->release,
                                    .context = backend->context,
                                    .is_quick = backend->has_own_memory};
    return ingot_arena_create_from(out, &device);
}

ingot_status ingot_backend_host_arena_create(ingot_arena **out, const ingot_backend *backend) {
    /* Pinning memory takes milliseconds, and giving it back waits for the device.  What may be
     * pinned is less than what there is; copies from other memory are slower, no more. */
    const ingot_allocator host = {.alloc = backend->ops->host_alloc,
                                  .release = backend->ops->host_release,
                                  .context = backend->context,
                                  .is_slow = backend->has_own_memory,
                                  .may_be_plain = backend->has_own_memory};
    return ingot_arena_create_from(out, &host);
}

const char *ingot_backend_failure(const ingot_backend *backend, ingot_status status) {
    const bool is_of_device = status == INGOT_ERR_DEVICE || status == INGOT_ERR_NO_MEMORY;
    const char *text = is_of_device && backend->ops != NULL && backend->ops->failure != NULL
                           ? backend->ops->failure()
                           : "";
    return text[0] != '\0' ? text : ingot_status_text(status);
}
