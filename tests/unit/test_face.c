/* The public face of the kernels (kernels/ingot_kernels.h), the CPU backend behind it instead of
 * the library of the CUDA backend: what it does itself needs no device. */
#define ingot_plugin_open open_cpu
#include "kernels/ingot_kernels.c"

#include "kernels_face.h"

static void *copy(const void *from, uint64_t bytes) {
    void *to = NULL;
    if (from != NULL) {
        to = malloc(bytes + 1);
        memcpy(to, from, bytes);
    }
    return to;
}

/* The memory of a device is not the host's, as the CPU's is: a view there is a copy. */
static ingot_status upload_copy(void *context, ingot_weight_view *device,
                                const ingot_weight_view *host) {
    (void)context;
    const uint64_t groups = host->rows * host->groups_per_row;
    *device = *host;
    device->data = copy(host->data, host->rows * host->cols * ingot_dtype_bytes(host->dtype));
    device->codes = copy(host->codes, host->rows * host->row_stride_bytes);
    device->scales = copy(host->scales, groups * ingot_dtype_bytes(host->scale_dtype));
    device->zeros = copy(host->zeros, groups);
    device->outlier_row_ptr = copy(host->outlier_row_ptr, (host->rows + 1) * sizeof(uint64_t));
    device->outlier_col = copy(host->outlier_col, host->outlier_count * sizeof(uint32_t));
    device->outlier_val =
        copy(host->outlier_val, host->outlier_count * ingot_dtype_bytes(host->dtype));
    return INGOT_OK;
}

static void release_copy(void *context, ingot_weight_view *device) {
    (void)context;
    const void *parts[] = {device->data,       device->codes,           device->scales,
                           device->zeros,      device->outlier_row_ptr, device->outlier_col,
                           device->outlier_val};
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++) {
        free((void *)(uintptr_t)parts[i]);
    }
}

ingot_status open_cpu(ingot_backend *out, const char *device, int ordinal, unsigned threads,
                      ingot_error *error) {
    static ingot_backend_ops ops;
    (void)device;
    (void)ordinal;
    INGOT_TRY(ingot_backend_open(out, "cpu", threads, error));
    ops = *out->ops;
    ops.upload_view = upload_copy;
    ops.release_view = release_copy;
    out->ops = &ops;
    return INGOT_OK;
}

int main(void) {
    ingot_error error;
    face_tolerance = 0x1p-10; /* that of products in integers */
    if (ingot_kernels_open(&kernels, "cuda:0", 2, &error) != INGOT_OK) {
        printf("%s\n", error.reason);
        return 1;
    }
    const int result = face_run("face of the kernels");
    ingot_kernels_close(kernels);
    return result;
}
