/* A driver with one card of which INGOT_TEST_CARD_BYTES are free, as far as a plan asks
 * (kernels/plugin.c).  As libcuda.so.1 on LD_LIBRARY_PATH it stands in for the real one. */
#include <stddef.h>
#include <stdlib.h>

static int contexts;

int cuInit(unsigned flags);
int cuDeviceGet(int *device, int ordinal);
int cuDevicePrimaryCtxRetain(void **context, int device);
int cuCtxPushCurrent_v2(void *context);
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes);
int cuCtxPopCurrent_v2(void **context);
int cuDevicePrimaryCtxRelease_v2(int device);

int cuInit(unsigned flags) {
    return flags != 0;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = ordinal;
    return ordinal == 0 ? 0 : 101; /* CUDA_ERROR_INVALID_DEVICE */
}

int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = &contexts;
    contexts++;
    return device;
}

int cuCtxPushCurrent_v2(void *context) {
    return context != &contexts;
}

int cuMemGetInfo_v2(size_t *free_bytes, size_t *total_bytes) {
    const char *text = getenv("INGOT_TEST_CARD_BYTES");
    *total_bytes = (size_t)24 << 30;
    *free_bytes = text != NULL ? (size_t)strtoull(text, NULL, 10) : *total_bytes;
    return contexts == 1 ? 0 : 201; /* CUDA_ERROR_INVALID_CONTEXT */
}

int cuCtxPopCurrent_v2(void **context) {
    *context = &contexts;
    return 0;
}

int cuDevicePrimaryCtxRelease_v2(int device) {
    contexts--;
    return device;
}
