/* The container reader on any bytes: open, every accessor, every tensor with and without digests,
 * full check.  Each input is tried as it is and once more with all digests and the frame repaired,
 * so that the rules behind the digests are reached.
 *
 * Beyond not crashing: every status is OK or a documented code; the full check gives the same
 * verdict with one thread and with three; what passes it loads without an error. */
#include "container_mutate.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

#define MOST_LOAD_BYTES (UINT64_C(32) << 20)

static void require(bool holds, const char *what, ingot_status status) {
    if (!holds) {
        (void)fprintf(stderr, "fuzz_container: %s (%s)\n", what, ingot_status_code(status));
        abort();
    }
}

static void require_documented(ingot_status status) {
    const bool is_rule = status > INGOT_BAD_FIRST && status < INGOT_BAD_LAST &&
                         strcmp(ingot_status_code(status), "E_UNKNOWN") != 0;
    require(status == INGOT_OK || is_rule || status == INGOT_ERR_NO_MEMORY ||
                status == INGOT_ERR_IO,
            "a status that is not documented", status);
}

/* ---- use ------------------------------------------------------------------------------------- */

static void use_tensor(const ingot_container *container, uint64_t index, bool is_sound) {
    const uint64_t bytes = ingot_tensor_load_bytes(container, index);
    const ingot_tensor *tensor = ingot_tensor_at(container, index);
    uint64_t found = UINT64_MAX;
    ingot_ledger ledger;
    ingot_ledger_at(container, index, &ledger);
    require(ingot_tensor_find(container, tensor->name, &found) == tensor && found == index,
            "a tensor is not found under its name", INGOT_OK);
    if (bytes > MOST_LOAD_BYTES) {
        return;
    }
    void *buffer = aligned_alloc(64, (size_t)bytes + 64);
    if (buffer == NULL) {
        return;
    }
    for (int verify = 0; verify < 2; verify++) {
        ingot_weight_view view;
        const ingot_status status =
            ingot_tensor_load(container, index, verify != 0, buffer, &view, NULL);
        require_documented(status);
        require(status == INGOT_OK || !is_sound, "a sound tensor does not load", status);
        const bool is_float = view.kind == INGOT_GROUPED || view.dtype <= INGOT_BF16;
        if (status != INGOT_OK || view.cols == 0 || view.rows == 0 || !is_float) {
            continue;
        }
        float values[64];
        const uint64_t last = view.rows - 1;
        ingot_weight_row(values, &view, 0, ingot_min_u64(64, view.cols));
        ingot_weight_row(values, &view, last, ingot_min_u64(64, view.cols));
    }
    uint8_t piece[100];
    for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
        const uint64_t length = ingot_min_u64(sizeof piece, tensor->part_bytes[p]);
        require_documented(ingot_part_read(container, index, (ingot_part)p,
                                           tensor->part_bytes[p] - length, length, p % 2 == 0,
                                           piece, NULL));
    }
    free(buffer);
}

static void use_path(const char *path) {
    ingot_container *container;
    ingot_error error = {0};
    ingot_status status = ingot_open(&container, path, &error);
    require_documented(status);
    if (status != INGOT_OK) {
        require(error.status == status && error.reason[0] != '\0', "an error without a reason",
                status);
        return;
    }
    status = ingot_check_full(container, 1, NULL, NULL, NULL);
    require_documented(status);
    require(ingot_check_full(container, 3, NULL, NULL, NULL) == status,
            "the verdict depends on the threads", status);
    const uint64_t count = ingot_tensor_count(container);
    for (uint64_t i = 0; i < count && i < 64; i++) {
        use_tensor(container, i, status == INGOT_OK);
    }
    ingot_info info;
    uint64_t size = 0;
    ingot_get_info(container, &info);
    (void)ingot_meta(container, &size);
    for (uint64_t i = 0; i < ingot_file_entry_count(container); i++) {
        const char *name = ingot_file_entry_name(container, i);
        require(ingot_file_entry(container, name, &size) != NULL, "a file is not found", INGOT_OK);
    }
    ingot_close(container);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static int fd = -1;
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz_container", MFD_CLOEXEC);
        require(fd >= 0, "no memory file", INGOT_ERR_IO);
        (void)snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    uint8_t *copy = malloc(size + 1);
    if (copy == NULL) {
        return 0;
    }
    memcpy(copy, data, size);
    for (int pass = 0; pass < 2; pass++) {
        require(ftruncate(fd, (off_t)size) == 0 && pwrite(fd, copy, size, 0) == (ssize_t)size,
                "the memory file cannot be written", INGOT_ERR_IO);
        use_path(path);
        if (pass == 0) {
            repair(copy, size);
        }
    }
    free(copy);
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    return container_mutate(data, size, max_size, seed);
}
