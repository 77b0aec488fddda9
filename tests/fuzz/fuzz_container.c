/* The container reader on any bytes: open, every accessor, every tensor with and without digests,
 * full check.  Each input is tried as it is and once more with all digests and the frame repaired,
 * so that the rules behind the digests are reached.
 *
 * Beyond not crashing: every status is OK or a documented code; the full check gives the same
 * verdict with one thread and with three; what passes it loads without an error. */
#include "format/container_internal.h"
#include "format/digest.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zstd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

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

/* ---- repair ---------------------------------------------------------------------------------- */

/* Bytes at [offset, offset + size) of the file, NULL if they are not all there. */
static uint8_t *range(uint8_t *bytes, size_t total, uint64_t offset, uint64_t size) {
    return offset <= total && size <= total - offset ? bytes + offset : NULL;
}

static const uint8_t *find(const uint8_t *bytes, uint64_t count, uint32_t fourcc) {
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *entry = bytes + SUPERBLOCK_BYTES + i * SECTION_BYTES;
        if (load_le(entry, 4) == fourcc) {
            return entry;
        }
    }
    return NULL;
}

static uint8_t *section_bytes(uint8_t *bytes, size_t total, const uint8_t *entry) {
    return entry == NULL ? NULL
                         : range(bytes, total, load_le(entry + 8, 8), load_le(entry + 16, 8));
}

/* Digests of stored and of decoded chunks of a compressed file. */
static void repair_stored(uint8_t *data, uint64_t data_size, uint8_t *map, uint64_t map_size,
                          uint8_t *chunks, uint64_t chunk_count) {
    static uint8_t decoded[CHUNK_BYTES];
    for (uint64_t i = 0; i < chunk_count && (i + 1) * ZMAP_BYTES <= map_size; i++) {
        uint8_t *entry = map + i * ZMAP_BYTES;
        const uint64_t length = load_le(entry + 8, 4);
        const uint8_t *stored = range(data, (size_t)data_size, load_le(entry, 8), length);
        if (stored == NULL) {
            continue;
        }
        store_le(entry + 16, ingot_digest64(stored, length), 8);
        if (load_le(entry + 12, 4) == 0) {
            store_le(chunks + 8 * i, ingot_digest64(stored, length), 8);
            continue;
        }
        const size_t got = ZSTD_decompress(decoded, sizeof decoded, stored, (size_t)length);
        if (ZSTD_isError(got) == 0) {
            store_le(chunks + 8 * i, ingot_digest64(decoded, got), 8);
        }
    }
}

static void repair_chunks(uint8_t *data, uint64_t data_size, const uint8_t *records,
                          uint64_t records_size, uint8_t *chunks, uint64_t chunk_count) {
    for (uint64_t at = 0; at + RECORD_BYTES <= records_size; at += RECORD_BYTES) {
        uint64_t chunk = load_le(records + at + 56, 8);
        for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
            const uint64_t offset = load_le(records + at + 64 + 16 * p, 8);
            const uint64_t bytes = load_le(records + at + 72 + 16 * p, 8);
            for (uint64_t done = 0; done < bytes && chunk < chunk_count; done += CHUNK_BYTES) {
                const uint64_t length = ingot_min_u64(CHUNK_BYTES, bytes - done);
                uint64_t start;
                const uint8_t *piece = NULL;
                if (ingot_size_add(&start, offset, done)) {
                    piece = range(data, (size_t)data_size, start, length);
                }
                if (piece == NULL) {
                    return;
                }
                store_le(chunks + 8 * chunk++, ingot_digest64(piece, length), 8);
            }
        }
    }
}

static void repair_data(uint8_t *bytes, size_t size, uint64_t count) {
    const uint8_t *data_entry = find(bytes, count, FOURCC_DATA);
    const uint8_t *chunk_entry = find(bytes, count, FOURCC_CHNK);
    const uint8_t *record_entry = find(bytes, count, FOURCC_TIDX);
    const uint8_t *map_entry = find(bytes, count, FOURCC_ZMAP);
    uint8_t *data = section_bytes(bytes, size, data_entry);
    uint8_t *chunks = section_bytes(bytes, size, chunk_entry);
    uint8_t *records = section_bytes(bytes, size, record_entry);
    uint8_t *map = section_bytes(bytes, size, map_entry);
    if (data == NULL || chunks == NULL || records == NULL) {
        return;
    }
    const uint64_t data_size = load_le(data_entry + 16, 8);
    const uint64_t chunk_count = load_le(chunk_entry + 16, 8) / 8;
    if (map != NULL) {
        repair_stored(data, data_size, map, load_le(map_entry + 16, 8), chunks, chunk_count);
    } else {
        repair_chunks(data, data_size, records, load_le(record_entry + 16, 8), chunks, chunk_count);
    }
}

static void repair(uint8_t *bytes, size_t size) {
    if (size < SUPERBLOCK_BYTES + TRAILER_BYTES) {
        return;
    }
    memcpy(bytes, ingot_container_magic, 8);
    store_le(bytes + 16, size, 8);
    const uint64_t most = (size - SUPERBLOCK_BYTES - TRAILER_BYTES) / SECTION_BYTES;
    const uint64_t count = ingot_min_u64(load_le(bytes + 56, 4), ingot_min_u64(most, MAX_SECTIONS));
    repair_data(bytes, size, count);
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *entry = bytes + SUPERBLOCK_BYTES + i * SECTION_BYTES;
        const uint8_t *content = section_bytes(bytes, size, entry);
        if (content != NULL && load_le(entry, 4) != FOURCC_DATA) {
            ingot_digest128(entry + 32, content, load_le(entry + 16, 8));
        }
    }
    ingot_digest128(bytes + 88, bytes + SUPERBLOCK_BYTES, count * SECTION_BYTES);
    store_le(bytes + 120, ingot_digest64(bytes, 120), 8);
    uint8_t *trailer = bytes + size - TRAILER_BYTES;
    memcpy(trailer, bytes + 88, 16);
    store_le(trailer + 16, size, 8);
    memcpy(trailer + 24, ingot_container_end, 8);
}

/* ---- use ---------------------------------------------------------------------------------------
 */

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
        repair(copy, size);
    }
    free(copy);
    return 0;
}
