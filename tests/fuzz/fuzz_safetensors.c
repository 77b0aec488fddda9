/* Fuzz target: the safetensors reader.  A file that is accepted must be covered exactly by its
 * tensors, in order, and every tensor must be readable to its last byte. */
#include "common/sizes.h"
#include "format/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void check(const ingot_safetensors *file, size_t size) {
    uint64_t at = 0;
    for (uint64_t i = 0; i < ingot_safetensors_count(file); i++) {
        const ingot_st_tensor *t = ingot_safetensors_at(file, i);
        uint64_t elements = 1;
        uint8_t last;
        if (strlen(t->name) < 1 || strlen(t->name) > INGOT_MAX_NAME || t->rank > INGOT_MAX_RANK) {
            abort();
        }
        for (unsigned d = 0; d < t->rank; d++) {
            if (!ingot_size_mul(&elements, elements, t->dim[d])) {
                abort();
            }
        }
        if (elements != t->elements || (i > 0 && t->offset != at) || t->offset > size ||
            t->bytes > size - t->offset ||
            (t->is_supported && t->bytes != elements * ingot_dtype_bytes(t->dtype))) {
            abort();
        }
        at = t->offset + t->bytes;
        if (t->bytes > 0 &&
            ingot_file_read_at(ingot_safetensors_file(file), &last, 1, at - 1, NULL) != INGOT_OK) {
            abort();
        }
    }
    if (ingot_safetensors_count(file) > 0 && at != size) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    ingot_safetensors *file = NULL;
    ingot_error error;
    const int fd = memfd_create("fuzz", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) {
        perror("memfd");
        abort();
    }
    (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (ingot_safetensors_open(&file, path, &error) == INGOT_OK) {
        check(file, size);
    } else if (file != NULL || error.reason[0] == '\0') {
        abort();
    }
    ingot_safetensors_close(file);
    (void)close(fd);
    return 0;
}
