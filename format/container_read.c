/* Reading what an open container holds: chunks, tensors, files (spec/container.md, "Integrity",
 * level "tensor"). */
#include "format/container_internal.h"
#include "format/digest.h"
#include "format/outliers.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include <zstd.h>

#define TRANSFER "copy or download the file again"

ingot_status shard_read_at(const shard *part, void *buffer, uint64_t size, uint64_t offset,
                           ingot_error *error) {
    uint8_t *at = buffer;
    while (size > 0) {
        const size_t want = (size_t)ingot_min_u64(size, UINT64_C(1) << 30);
        const ssize_t got = pread(part->fd, at, want, (off_t)offset);
        if (got < 0 && errno == EINTR) {
            continue;
        }
        if (got <= 0) {
            return ingot_error_set(error, INGOT_ERR_IO, part->path, NULL,
                                   "check the disk and the file's size", "read failed: %s",
                                   got == 0 ? "the file became shorter" : strerror(errno));
        }
        at += got;
        size -= (uint64_t)got;
        offset += (uint64_t)got;
    }
    return INGOT_OK;
}

const shard *shard_of_tensor(const ingot_container *container, uint64_t index) {
    uint32_t low = 0; /* the last shard that starts at or before index; empty ones start later */
    uint32_t high = container->shard_count;
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (container->shards[middle].first_tensor <= index) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return &container->shards[low];
}

/* ---- chunks ------------------------------------------------------------------------------- */

ingot_status chunk_reader_create(chunk_reader *out, bool is_compressed) {
    *out = (chunk_reader){0};
    if (!is_compressed) {
        return INGOT_OK;
    }
    out->stored = malloc(CHUNK_BYTES);
    out->zstd = ZSTD_createDCtx();
    if (out->stored == NULL || out->zstd == NULL) {
        chunk_reader_destroy(out);
        return INGOT_ERR_NO_MEMORY;
    }
    return INGOT_OK;
}

void chunk_reader_destroy(chunk_reader *reader) {
    free(reader->stored);
    (void)ZSTD_freeDCtx(reader->zstd);
    *reader = (chunk_reader){0};
}

/* Number of a part's chunk in the shard. */
static uint64_t chunk_number(const ingot_tensor *tensor, unsigned which, uint64_t chunk) {
    uint64_t number = tensor->first_chunk + chunk;
    for (unsigned p = 0; p < which; p++) {
        number += ingot_ceil_div(tensor->part_bytes[p], CHUNK_BYTES);
    }
    return number;
}

uint64_t chunk_length(const ingot_tensor *tensor, unsigned which, uint64_t chunk) {
    return ingot_min_u64(CHUNK_BYTES, tensor->part_bytes[which] - chunk * CHUNK_BYTES);
}

static ingot_status chunk_error(ingot_error *error, ingot_status code, const shard *part,
                                const ingot_tensor *tensor, uint64_t number) {
    return ingot_error_set(error, code, part->path, tensor->name, TRANSFER, "%s (chunk %llu)",
                           ingot_status_text(code), (unsigned long long)number);
}

ingot_status chunk_check_digest(const shard *part, const ingot_tensor *tensor, unsigned which,
                                uint64_t chunk, const uint8_t *bytes, ingot_error *error) {
    const uint64_t number = chunk_number(tensor, which, chunk);
    const uint64_t digest = ingot_digest64(bytes, chunk_length(tensor, which, chunk));
    return digest == load_le(part->chunks + number * 8, 8)
               ? INGOT_OK
               : chunk_error(error, INGOT_BAD_CHUNK_DIGEST, part, tensor, number);
}

static ingot_status read_compressed(const shard *part, const ingot_tensor *tensor, uint64_t number,
                                    uint64_t length, bool verify, void *buffer,
                                    chunk_reader *reader, ingot_error *error) {
    const uint8_t *entry = part->zmap + number * ZMAP_BYTES;
    const size_t stored = (size_t)load_le(entry + 8, 4); /* <= CHUNK_BYTES */
    const bool is_plain = load_le(entry + 12, 4) == 0;
    uint8_t *image = reader->stored;
    INGOT_TRY(shard_read_at(part, image, stored, part->data_offset + load_le(entry, 8), error));
    if (verify && ingot_digest64(image, stored) != load_le(entry + 16, 8)) {
        return chunk_error(error, INGOT_BAD_STORED_DIGEST, part, tensor, number);
    }
    if (is_plain) {
        if (stored != length) {
            return chunk_error(error, INGOT_BAD_COMPRESSION, part, tensor, number);
        }
        memcpy(buffer, image, stored);
        return INGOT_OK;
    }
    /* The library may also decode the frames of its versions before RFC 8878. */
    const bool is_frame = stored > 4 && load_le(image, 4) == ZSTD_MAGICNUMBER &&
                          ZSTD_getFrameContentSize(image, stored) == length &&
                          ZSTD_getDictID_fromFrame(image, stored) == 0 &&
                          ZSTD_findFrameCompressedSize(image, stored) == stored;
    if (!is_frame ||
        ZSTD_decompressDCtx(reader->zstd, buffer, (size_t)length, image, stored) != length) {
        return chunk_error(error, INGOT_BAD_COMPRESSION, part, tensor, number);
    }
    return INGOT_OK;
}

ingot_status chunk_read(const shard *part, const ingot_tensor *tensor, unsigned which,
                        uint64_t chunk, bool verify, void *buffer, chunk_reader *reader,
                        ingot_error *error) {
    const uint64_t length = chunk_length(tensor, which, chunk);
    if (part->zmap != NULL) {
        INGOT_TRY(read_compressed(part, tensor, chunk_number(tensor, which, chunk), length, verify,
                                  buffer, reader, error));
    } else {
        INGOT_TRY(shard_read_at(
            part, buffer, length,
            part->data_offset + tensor->part_offset[which] + chunk * CHUNK_BYTES, error));
    }
    return verify ? chunk_check_digest(part, tensor, which, chunk, buffer, error) : INGOT_OK;
}

static ingot_status part_load(const shard *part, const ingot_tensor *tensor, unsigned which,
                              bool verify, uint8_t *buffer, chunk_reader *reader,
                              ingot_error *error) {
    const uint64_t bytes = tensor->part_bytes[which];
    if (!verify && part->zmap == NULL) {
        return shard_read_at(part, buffer, bytes, part->data_offset + tensor->part_offset[which],
                             error);
    }
    for (uint64_t at = 0; at < bytes; at += CHUNK_BYTES) {
        const uint64_t chunk = at / CHUNK_BYTES;
        INGOT_TRY(chunk_read(part, tensor, which, chunk, verify, buffer + at, reader, error));
        if (verify) {
            INGOT_TRY(values_check_piece(part, tensor, which, at, buffer + at,
                                         chunk_length(tensor, which, chunk), error));
        }
    }
    return INGOT_OK;
}

/* ---- public access ------------------------------------------------------------------------- */

static const ingot_tensor *resolve(const ingot_container *container, uint64_t index,
                                   const shard **part) {
    *part = shard_of_tensor(container, index);
    const ingot_tensor *tensor = &(*part)->tensors[index - (*part)->first_tensor];
    return tensor->kind == INGOT_ALIAS ? ingot_tensor_at(container, tensor->alias_of) : tensor;
}

static uint64_t aligned(uint64_t bytes) {
    return (bytes + 63) & ~UINT64_C(63);
}

uint64_t tensor_load_bytes(const ingot_tensor *tensor) {
    uint64_t total = 0;
    for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
        total += aligned(tensor->part_bytes[p]);
    }
    return total;
}

uint64_t ingot_tensor_load_bytes(const ingot_container *container, uint64_t index) {
    const shard *part;
    return tensor_load_bytes(resolve(container, index, &part));
}

static void fill_view(ingot_weight_view *view, const ingot_tensor *tensor,
                      const uint8_t *const parts[INGOT_PART_COUNT]) {
    memset(view, 0, sizeof *view);
    view->rows = tensor->rows;
    view->cols = tensor->cols;
    view->dtype = tensor->dtype;
    if (tensor->kind != INGOT_GROUPED) {
        view->kind = INGOT_DENSE;
        view->data = parts[INGOT_PART_CODES];
        return;
    }
    view->kind = INGOT_GROUPED;
    view->bits = tensor->bits;
    view->zero_mode = tensor->zero_mode;
    view->scale_dtype = tensor->scale_dtype;
    view->group = tensor->group;
    view->groups_per_row = tensor->groups_per_row;
    view->row_stride_bytes = tensor->row_stride_bytes;
    view->codes = parts[INGOT_PART_CODES];
    view->scales = parts[INGOT_PART_SCALES];
    view->zeros = tensor->zero_mode == INGOT_ZERO_STORED ? parts[INGOT_PART_ZEROS] : NULL;
    view->outlier_count = tensor->outlier_count;
    if (tensor->outlier_count > 0) {
        const uint8_t *outliers = parts[INGOT_PART_OUTLIERS];
        view->outlier_row_ptr = (const uint64_t *)(const void *)outliers;
        view->outlier_col = (const uint32_t *)(const void *)(outliers + outlier_col_offset(tensor));
        view->outlier_val = outliers + outlier_val_offset(tensor);
    }
}

static ingot_status reader_for(chunk_reader *out, const shard *part, const ingot_tensor *tensor,
                               ingot_error *error) {
    if (chunk_reader_create(out, part->zmap != NULL) == INGOT_OK) {
        return INGOT_OK;
    }
    return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, tensor->name, NULL,
                           "out of memory");
}

ingot_status tensor_load(const shard *part, const ingot_tensor *tensor, bool verify, void *buffer,
                         ingot_weight_view *view, ingot_error *error) {
    const uint8_t *parts[INGOT_PART_COUNT];
    chunk_reader reader;
    INGOT_TRY(reader_for(&reader, part, tensor, error));
    ingot_status status = INGOT_OK;
    uint8_t *at = buffer;
    for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
        parts[p] = at;
        INGOT_GO(part_load(part, tensor, p, verify, at, &reader, error));
        at += aligned(tensor->part_bytes[p]);
    }
    /* Outliers index memory when they are used: their rules hold with and without digests. */
    INGOT_GO(values_check_outliers(part, tensor, parts, NULL, error));
    fill_view(view, tensor, parts);
done:
    chunk_reader_destroy(&reader);
    return status;
}

ingot_status ingot_tensor_load(const ingot_container *container, uint64_t index, bool verify,
                               void *buffer, ingot_weight_view *view, ingot_error *error) {
    const shard *part;
    const ingot_tensor *tensor = resolve(container, index, &part);
    return tensor_load(part, tensor, verify, buffer, view, error);
}

ingot_status ingot_outliers_load(const ingot_container *container, uint64_t index, bool verify,
                                 void *buffer, ingot_weight_view *view, ingot_error *error) {
    const shard *part;
    const ingot_tensor *tensor = resolve(container, index, &part);
    const uint8_t *parts[INGOT_PART_COUNT] = {[INGOT_PART_OUTLIERS] = buffer};
    chunk_reader reader;
    if (tensor->kind != INGOT_GROUPED || tensor->outlier_count == 0) {
        return ingot_error_set(error, INGOT_ERR_USAGE, part->path, tensor->name, NULL,
                               "the tensor has no outliers");
    }
    INGOT_TRY(reader_for(&reader, part, tensor, error));
    ingot_status status = INGOT_OK;
    INGOT_GO(part_load(part, tensor, INGOT_PART_OUTLIERS, verify, buffer, &reader, error));
    INGOT_GO(values_check_outliers(part, tensor, parts, &reader, error));
    fill_view(view, tensor, parts);
done:
    chunk_reader_destroy(&reader);
    return status;
}

ingot_status ingot_part_read(const ingot_container *container, uint64_t index, ingot_part which,
                             uint64_t offset, uint64_t size, bool verify, void *buffer,
                             ingot_error *error) {
    const shard *part;
    const ingot_tensor *tensor = resolve(container, index, &part);
    uint64_t end;
    if ((unsigned)which >= INGOT_PART_COUNT || !ingot_size_add(&end, offset, size) ||
        end > tensor->part_bytes[which]) {
        return ingot_error_set(error, INGOT_ERR_USAGE, part->path, tensor->name, NULL,
                               "a read goes beyond the end of the part");
    }
    if (part->zmap == NULL && !verify) {
        return shard_read_at(part, buffer, size,
                             part->data_offset + tensor->part_offset[which] + offset, error);
    }
    chunk_reader reader;
    INGOT_TRY(reader_for(&reader, part, tensor, error));
    ingot_status status = INGOT_OK;
    uint8_t *out = buffer;
    uint8_t *whole = NULL; /* a chunk of which only a piece is wanted */
    while (offset < end) {
        const uint64_t chunk = offset / CHUNK_BYTES;
        const uint64_t start = chunk * CHUNK_BYTES;
        const uint64_t length = chunk_length(tensor, which, chunk);
        const uint64_t take = ingot_min_u64(start + length, end) - offset;
        const bool is_whole = take == length;
        if (!is_whole && whole == NULL && (whole = malloc(CHUNK_BYTES)) == NULL) {
            status = ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, tensor->name, NULL,
                                     "out of memory");
            goto done;
        }
        INGOT_GO(
            chunk_read(part, tensor, which, chunk, verify, is_whole ? out : whole, &reader, error));
        if (verify) {
            INGOT_GO(values_check_piece(part, tensor, which, start, is_whole ? out : whole, length,
                                        error));
        }
        if (!is_whole) {
            memcpy(out, whole + (offset - start), (size_t)take);
        }
        out += take;
        offset += take;
    }
done:
    free(whole);
    chunk_reader_destroy(&reader);
    return status;
}

const char *ingot_path(const ingot_container *container) {
    return container->shards[0].path;
}

void ingot_get_info(const ingot_container *container, ingot_info *out) {
    const shard *first = &container->shards[0];
    memset(out, 0, sizeof *out);
    out->major = first->super.major;
    out->minor = first->super.minor;
    for (uint32_t i = 0; i < container->shard_count; i++) {
        out->file_bytes += container->shards[i].super.file_size;
        out->decoded_data_bytes += container->shards[i].data_size;
    }
    out->profile = first->super.profile;
    out->shard_count = container->shard_count;
    out->is_compressed = first->zmap != NULL;
    out->incompat = first->super.incompat;
    out->ro_compat = first->super.ro_compat;
    out->compat = first->super.compat;
    memcpy(out->root, first->super.root, 16);
    memcpy(out->content_id, container->content_id, 16);
}

const char *ingot_meta(const ingot_container *container, uint64_t *size) {
    *size = container->shards[0].meta_size;
    return container->shards[0].meta;
}

uint64_t ingot_tensor_count(const ingot_container *container) {
    return container->tensor_count;
}

const ingot_tensor *ingot_tensor_at(const ingot_container *container, uint64_t index) {
    const shard *part = shard_of_tensor(container, index);
    return &part->tensors[index - part->first_tensor];
}

/* Record number at position `at` of the index by name. */
static uint64_t sorted_at(const ingot_container *container, uint64_t at) {
    return container->sorted != NULL ? container->sorted[at]
                                     : load_le(container->shards[0].sorted + 4 * at, 4);
}

const ingot_tensor *ingot_tensor_find(const ingot_container *container, const char *name,
                                      uint64_t *index) {
    uint64_t low = 0;
    uint64_t high = container->tensor_count;
    while (low < high) {
        const uint64_t middle = low + (high - low) / 2;
        const uint64_t candidate = sorted_at(container, middle);
        const ingot_tensor *tensor = ingot_tensor_at(container, candidate);
        const int order = strcmp(tensor->name, name);
        if (order == 0) {
            if (index != NULL) {
                *index = candidate;
            }
            return tensor;
        }
        if (order < 0) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return NULL;
}

void ingot_ledger_at(const ingot_container *container, uint64_t index, ingot_ledger *out) {
    const shard *part = shard_of_tensor(container, index);
    ledger_decode(out, part->ledger + (index - part->first_tensor) * LEDGER_BYTES);
}

uint64_t ingot_file_entry_count(const ingot_container *container) {
    return container->file_count;
}

const char *ingot_file_entry_name(const ingot_container *container, uint64_t index) {
    return container->files[index].name;
}

const void *ingot_file_entry(const ingot_container *container, const char *name, uint64_t *size) {
    for (uint64_t i = 0; i < container->file_count; i++) {
        if (strcmp(container->files[i].name, name) == 0) {
            *size = container->files[i].size;
            return container->files[i].bytes;
        }
    }
    return NULL;
}
