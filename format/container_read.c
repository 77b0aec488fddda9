/* Reading what an open container holds: chunks, tensors, files (spec/container.md, "Integrity",
 * level "tensor"). */
#include "format/container_internal.h"
#include "format/half.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include <xxhash.h>
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
    uint32_t s = container->shard_count - 1;
    while (s > 0 && container->shards[s].first_tensor > index) {
        s--;
    }
    return &container->shards[s];
}

uint64_t chunk_scratch_bytes(const shard *part) {
    return part->zmap != NULL ? CHUNK_BYTES : 0;
}

static ingot_status read_compressed(const shard *part, const ingot_tensor *tensor, uint64_t chunk,
                                    uint64_t length, bool verify, void *buffer, uint8_t *scratch,
                                    ingot_error *error) {
    const uint8_t *entry = part->zmap + chunk * ZMAP_BYTES;
    const uint64_t stored = load_le(entry + 8, 4);
    INGOT_TRY(shard_read_at(part, scratch, stored, part->data_offset + load_le(entry, 8), error));
    if (verify && XXH3_64bits(scratch, (size_t)stored) != load_le(entry + 16, 8)) {
        return ingot_error_set(error, INGOT_BAD_STORED_DIGEST, part->path, tensor->name, TRANSFER,
                               "the digest of compressed chunk %llu does not match",
                               (unsigned long long)chunk);
    }
    bool is_whole;
    if (load_le(entry + 12, 4) == 0) {
        is_whole = stored == length;
        if (is_whole) {
            memcpy(buffer, scratch, (size_t)length);
        }
    } else {
        is_whole = ZSTD_getFrameContentSize(scratch, (size_t)stored) == length &&
                   ZSTD_findFrameCompressedSize(scratch, (size_t)stored) == stored &&
                   ZSTD_decompress(buffer, (size_t)length, scratch, (size_t)stored) == length;
    }
    return is_whole ? INGOT_OK
                    : ingot_error_set(error, INGOT_BAD_COMPRESSION, part->path, tensor->name,
                                      TRANSFER, "chunk %llu does not decode to its size",
                                      (unsigned long long)chunk);
}

ingot_status chunk_read(const shard *part, const ingot_tensor *tensor, uint64_t chunk,
                        uint64_t part_offset, uint64_t length, bool verify, void *buffer,
                        uint8_t *scratch, ingot_error *error) {
    if (part->zmap != NULL) {
        INGOT_TRY(read_compressed(part, tensor, chunk, length, verify, buffer, scratch, error));
    } else {
        INGOT_TRY(shard_read_at(part, buffer, length, part->data_offset + part_offset, error));
    }
    if (verify && XXH3_64bits(buffer, (size_t)length) != load_le(part->chunks + chunk * 8, 8)) {
        return ingot_error_set(error, INGOT_BAD_CHUNK_DIGEST, part->path, tensor->name, TRANSFER,
                               "the digest of data chunk %llu does not match",
                               (unsigned long long)chunk);
    }
    return INGOT_OK;
}

/* First chunk of a part of the tensor. */
static uint64_t part_first_chunk(const ingot_tensor *tensor, unsigned which) {
    uint64_t chunk = tensor->first_chunk;
    for (unsigned p = 0; p < which; p++) {
        chunk += ingot_ceil_div(tensor->part_bytes[p], CHUNK_BYTES);
    }
    return chunk;
}

static ingot_status part_load(const shard *part, const ingot_tensor *tensor, unsigned which,
                              bool verify, uint8_t *buffer, uint8_t *scratch, ingot_error *error) {
    const uint64_t bytes = tensor->part_bytes[which];
    if (!verify && part->zmap == NULL) {
        return shard_read_at(part, buffer, bytes, part->data_offset + tensor->part_offset[which],
                             error);
    }
    uint64_t chunk = part_first_chunk(tensor, which);
    for (uint64_t at = 0; at < bytes; at += CHUNK_BYTES, chunk++) {
        INGOT_TRY(chunk_read(part, tensor, chunk, tensor->part_offset[which] + at,
                             ingot_min_u64(CHUNK_BYTES, bytes - at), verify, buffer + at, scratch,
                             error));
    }
    return INGOT_OK;
}

/* ---- value rules ------------------------------------------------------------------------- */

static float value_at(const uint8_t *values, ingot_dtype dtype, uint64_t index) {
    float value;
    ingot_convert_to_f32(&value, values + index * ingot_dtype_bytes(dtype), dtype, 1);
    return value;
}

static ingot_status value_error(ingot_error *error, ingot_status code, const shard *part,
                                const ingot_tensor *tensor, uint64_t position) {
    return ingot_error_set(error, code, part->path, tensor->name, "convert the model again",
                           "%s (entry %llu)", ingot_status_text(code),
                           (unsigned long long)position);
}

static ingot_status check_scales(const shard *part, const ingot_tensor *tensor,
                                 const uint8_t *scales, ingot_error *error) {
    const bool is_half = tensor->scale_dtype == INGOT_F16;
    const float least = is_half ? 0x1p-24f : 0x1p-100f;
    const float most = is_half ? 0x1p15f : 0x1p100f;
    const uint64_t count = tensor->rows * tensor->groups_per_row;
    for (uint64_t i = 0; i < count; i++) {
        const float size = fabsf(value_at(scales, tensor->scale_dtype, i));
        if (!(size == 0.0f || (size >= least && size <= most))) {
            return value_error(error, INGOT_BAD_SCALE, part, tensor, i);
        }
    }
    return INGOT_OK;
}

static unsigned code_at(const uint8_t *row, uint64_t col, unsigned bits) {
    const uint64_t bit = col * bits;
    unsigned word = row[bit / 8];
    if (bit % 8 + bits > 8) {
        word |= (unsigned)row[bit / 8 + 1] << 8;
    }
    return (word >> (bit % 8)) & ((1u << bits) - 1);
}

static ingot_status check_outliers(const shard *part, const ingot_tensor *tensor,
                                   const uint8_t *const parts[INGOT_PART_COUNT],
                                   ingot_error *error) {
    const uint8_t *rows = parts[INGOT_PART_OUTLIERS];
    const uint8_t *cols = rows + outlier_col_offset(tensor);
    const uint8_t *vals = rows + outlier_val_offset(tensor);
    uint64_t at = 0;
    for (uint64_t row = 0; row < tensor->rows; row++) {
        const uint64_t end = load_le(rows + 8 * (row + 1), 8);
        if (load_le(rows + 8 * row, 8) != at || end < at || end > tensor->outlier_count) {
            return value_error(error, INGOT_BAD_OUTLIER, part, tensor, row);
        }
        const uint8_t *codes = parts[INGOT_PART_CODES] + row * tensor->row_stride_bytes;
        for (uint64_t first = at; at < end; at++) {
            const uint64_t col = load_le(cols + 4 * at, 4);
            if (col >= tensor->cols || (at > first && col <= load_le(cols + 4 * (at - 1), 4)) ||
                !isfinite(value_at(vals, tensor->dtype, at))) {
                return value_error(error, INGOT_BAD_OUTLIER, part, tensor, at);
            }
            const uint64_t group = row * tensor->groups_per_row + col / tensor->group;
            const unsigned zero = tensor->zero_mode == INGOT_ZERO_STORED
                                      ? parts[INGOT_PART_ZEROS][group]
                                      : 1u << (tensor->bits - 1);
            if (code_at(codes, col, tensor->bits) != zero) {
                return value_error(error, INGOT_BAD_OUTLIER, part, tensor, at);
            }
        }
    }
    const uint64_t used = outlier_col_offset(tensor) + 4 * tensor->outlier_count;
    if (at != tensor->outlier_count ||
        (used < outlier_val_offset(tensor) && load_le(rows + used, 4) != 0)) {
        return value_error(error, INGOT_BAD_OUTLIER, part, tensor, at);
    }
    return INGOT_OK;
}

static ingot_status check_code_padding(const shard *part, const ingot_tensor *tensor,
                                       const uint8_t *codes, ingot_error *error) {
    const uint64_t used_bits = tensor->cols * tensor->bits;
    for (uint64_t row = 0; row < tensor->rows; row++) {
        const uint8_t *bytes = codes + row * tensor->row_stride_bytes;
        uint64_t at = used_bits / 8;
        unsigned stray = used_bits % 8 != 0 ? (unsigned)bytes[at++] >> (used_bits % 8) : 0;
        for (; at < tensor->row_stride_bytes; at++) {
            stray |= bytes[at];
        }
        if (stray != 0) {
            return value_error(error, INGOT_BAD_CODE_PADDING, part, tensor, row);
        }
    }
    return INGOT_OK;
}

ingot_status tensor_check_values(const shard *part, const ingot_tensor *tensor,
                                 const uint8_t *const parts[INGOT_PART_COUNT], ingot_error *error) {
    if (tensor->kind != INGOT_GROUPED) {
        return INGOT_OK;
    }
    INGOT_TRY(check_code_padding(part, tensor, parts[INGOT_PART_CODES], error));
    INGOT_TRY(check_scales(part, tensor, parts[INGOT_PART_SCALES], error));
    if (tensor->zero_mode == INGOT_ZERO_STORED && tensor->bits < 8) {
        const uint64_t count = tensor->rows * tensor->groups_per_row;
        for (uint64_t i = 0; i < count; i++) {
            if (parts[INGOT_PART_ZEROS][i] >> tensor->bits != 0) {
                return value_error(error, INGOT_BAD_ZERO_POINT, part, tensor, i);
            }
        }
    }
    return tensor->outlier_count == 0 ? INGOT_OK : check_outliers(part, tensor, parts, error);
}

/* ---- public access ------------------------------------------------------------------------- */

static const ingot_tensor *resolve(const ingot_container *container, uint64_t index,
                                   const shard **part) {
    *part = shard_of_tensor(container, index);
    const ingot_tensor *tensor = &(*part)->tensors[index - (*part)->first_tensor];
    return tensor->kind == INGOT_ALIAS ? &(*part)->tensors[tensor->alias_of] : tensor;
}

static uint64_t aligned(uint64_t bytes) {
    return (bytes + 63) & ~UINT64_C(63);
}

uint64_t ingot_tensor_load_bytes(const ingot_container *container, uint64_t index) {
    const shard *part;
    const ingot_tensor *tensor = resolve(container, index, &part);
    uint64_t total = 0;
    for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
        total += aligned(tensor->part_bytes[p]);
    }
    return total;
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

ingot_status ingot_tensor_load(const ingot_container *container, uint64_t index, bool verify,
                               void *buffer, ingot_weight_view *view, ingot_error *error) {
    const shard *part;
    const ingot_tensor *tensor = resolve(container, index, &part);
    const uint8_t *parts[INGOT_PART_COUNT];
    uint8_t *scratch = NULL;
    if (part->zmap != NULL) {
        scratch = malloc(CHUNK_BYTES);
        if (scratch == NULL) {
            return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, tensor->name, NULL,
                                   "out of memory");
        }
    }
    ingot_status status = INGOT_OK;
    uint8_t *at = buffer;
    for (unsigned p = 0; p < INGOT_PART_COUNT && status == INGOT_OK; p++) {
        parts[p] = at;
        status = part_load(part, tensor, p, verify, at, scratch, error);
        at += aligned(tensor->part_bytes[p]);
    }
    free(scratch);
    INGOT_TRY(status);
    /* Outliers index memory when they are used: their bounds hold with and without digests. */
    if (verify) {
        INGOT_TRY(tensor_check_values(part, tensor, parts, error));
    } else if (tensor->outlier_count > 0) {
        INGOT_TRY(check_outliers(part, tensor, parts, error));
    }
    fill_view(view, tensor, parts);
    return INGOT_OK;
}

ingot_status ingot_part_read(const ingot_container *container, uint64_t index, ingot_part which,
                             uint64_t offset, uint64_t size, bool verify, void *buffer,
                             ingot_error *error) {
    const shard *part;
    const ingot_tensor *tensor = resolve(container, index, &part);
    uint64_t end;
    if (!ingot_size_add(&end, offset, size) || end > tensor->part_bytes[which]) {
        return ingot_error_set(error, INGOT_ERR_USAGE, part->path, tensor->name, NULL,
                               "a read goes beyond the end of the part");
    }
    if (part->zmap == NULL && !verify) {
        return shard_read_at(part, buffer, size,
                             part->data_offset + tensor->part_offset[which] + offset, error);
    }
    uint8_t *scratch = malloc(2 * CHUNK_BYTES);
    if (scratch == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, tensor->name, NULL,
                               "out of memory");
    }
    uint8_t *whole = scratch + CHUNK_BYTES;
    ingot_status status = INGOT_OK;
    const uint64_t first = part_first_chunk(tensor, which);
    while (offset < end && status == INGOT_OK) {
        const uint64_t chunk = offset / CHUNK_BYTES;
        const uint64_t start = chunk * CHUNK_BYTES;
        const uint64_t length = ingot_min_u64(CHUNK_BYTES, tensor->part_bytes[which] - start);
        const uint64_t take = ingot_min_u64(start + length, end) - offset;
        status = chunk_read(part, tensor, first + chunk, tensor->part_offset[which] + start, length,
                            verify, whole, scratch, error);
        if (status == INGOT_OK) {
            memcpy(buffer, whole + (offset - start), (size_t)take);
            buffer = (uint8_t *)buffer + take;
            offset += take;
        }
    }
    free(scratch);
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

const ingot_tensor *ingot_tensor_find(const ingot_container *container, const char *name,
                                      uint64_t *index) {
    for (uint32_t s = 0; s < container->shard_count; s++) {
        const shard *part = &container->shards[s];
        uint64_t low = 0;
        uint64_t high = part->tensor_count;
        while (low < high) {
            const uint64_t middle = low + (high - low) / 2;
            const uint64_t candidate = load_le(part->sorted + 4 * middle, 4);
            const int order = strcmp(part->tensors[candidate].name, name);
            if (order == 0) {
                if (index != NULL) {
                    *index = part->first_tensor + candidate;
                }
                return &part->tensors[candidate];
            }
            if (order < 0) {
                low = middle + 1;
            } else {
                high = middle;
            }
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
