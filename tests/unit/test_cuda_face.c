/* The public face of the kernels (kernels/ingot_kernels.h) on a CUDA device.  Skipped, loudly,
 * without one. */
#include "kernels_face.h"

int main(void) {
    ingot_error error;
    face_tolerance = 0x1p-18;
    const ingot_status status = ingot_kernels_open(&kernels, "cuda", 2, &error);
    if (status == INGOT_ERR_DEVICE) {
        printf("SKIP: no CUDA device: %s\n", error.reason);
        return 77;
    }
    if (status != INGOT_OK) {
        printf("%s\n", error.reason);
        return 1;
    }
    const int result = face_run("face of the kernels on CUDA");
    ingot_kernels_close(kernels);
    return result;
}
