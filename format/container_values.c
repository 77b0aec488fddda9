/* The value rules of quantized tensors (spec/container.md, "Value rules"; spec/quantization.md):
 * padding of code rows, range of scales and zero points, and the outliers.
 *
 * The first three are decided byte by byte, so they are checked on whatever piece of a part is at
 * hand.  Outliers tie three parts together; they are checked in one pass over streams that either
 * lie in memory or are read a chunk at a time, so that memory does not grow with the tensor. */
#include "format/container_internal.h"
#include "format/half.h"

#include <math.h>
#include <stdlib.h>

static ingot_status value_error(ingot_error *error, ingot_status code, const shard *part,
                                const ingot_tensor *tensor, const char *what, uint64_t position) {
    return ingot_error_set(error, code, part->path, tensor->name, "convert the model again",
                           "%s (%s %llu)", ingot_status_text(code), what,
                           (unsigned long long)position);
}

/* ---- rules of single parts ----------------------------------------------------------------- */

static ingot_status check_codes(const shard *part, const ingot_tensor *tensor, uint64_t offset,
                                const uint8_t *bytes, uint64_t length, ingot_error *error) {
    const uint64_t stride = tensor->row_stride_bytes;
    const uint64_t used_bits = tensor->cols * tensor->bits;
    const uint64_t end = offset + length;
    if (used_bits == stride * 8) {
        return INGOT_OK;
    }
    for (uint64_t row = offset / stride; row * stride < end; row++) {
        const uint64_t partial = row * stride + used_bits / 8;
        const uint64_t to = ingot_min_u64((row + 1) * stride, end);
        unsigned stray = 0;
        for (uint64_t at = ingot_max_u64(partial, offset); at < to; at++) {
            stray |= (unsigned)bytes[at - offset] >> (at == partial ? used_bits % 8 : 0);
        }
        if (stray != 0) {
            return value_error(error, INGOT_BAD_CODE_PADDING, part, tensor, "row", row);
        }
    }
    return INGOT_OK;
}

/* Legal magnitudes as bit patterns: zero, or from least to most. */
static uint64_t first_bad_u16(const uint8_t *bytes, uint64_t count, unsigned least, unsigned most) {
    unsigned bad = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint16_t bits;
        memcpy(&bits, bytes + 2 * i, sizeof bits);
        const uint16_t size = bits & 0x7fffu;
        bad |= (unsigned)(size > most) | ((unsigned)(size < least) & (unsigned)(size != 0));
    }
    for (uint64_t i = 0; bad != 0 && i < count; i++) {
        const unsigned size = (unsigned)load_le(bytes + 2 * i, 2) & 0x7fffu;
        if (size > most || (size < least && size != 0)) {
            return i;
        }
    }
    return count;
}

static uint64_t first_bad_u32(const uint8_t *bytes, uint64_t count, uint32_t least, uint32_t most) {
    unsigned bad = 0;
    for (uint64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, bytes + 4 * i, sizeof bits);
        const uint32_t size = bits & 0x7fffffffu;
        bad |= (unsigned)(size > most) | ((unsigned)(size < least) & (unsigned)(size != 0));
    }
    for (uint64_t i = 0; bad != 0 && i < count; i++) {
        const uint32_t size = (uint32_t)load_le(bytes + 4 * i, 4) & 0x7fffffffu;
        if (size > most || (size < least && size != 0)) {
            return i;
        }
    }
    return count;
}

static ingot_status check_scales(const shard *part, const ingot_tensor *tensor, uint64_t offset,
                                 const uint8_t *bytes, uint64_t length, ingot_error *error) {
    const uint64_t size = ingot_dtype_bytes(tensor->scale_dtype);
    const uint64_t count = length / size;
    uint64_t bad;
    switch (tensor->scale_dtype) {
    case INGOT_F16: /* 2^-24 is the least binary16 there is; 2^15 */
        bad = first_bad_u16(bytes, count, 0x0001, 0x7800);
        break;
    case INGOT_BF16: /* 2^-100, 2^100 */
        bad = first_bad_u16(bytes, count, 0x0d80, 0x7180);
        break;
    default:
        bad = first_bad_u32(bytes, count, 0x0d800000u, 0x71800000u);
        break;
    }
    return bad == count
               ? INGOT_OK
               : value_error(error, INGOT_BAD_SCALE, part, tensor, "entry", offset / size + bad);
}

static ingot_status check_zeros(const shard *part, const ingot_tensor *tensor, uint64_t offset,
                                const uint8_t *bytes, uint64_t length, ingot_error *error) {
    unsigned all = 0;
    for (uint64_t i = 0; i < length; i++) {
        all |= bytes[i];
    }
    if (all >> tensor->bits == 0) {
        return INGOT_OK;
    }
    uint64_t at = 0;
    while (bytes[at] >> tensor->bits == 0) {
        at++;
    }
    return value_error(error, INGOT_BAD_ZERO_POINT, part, tensor, "entry", offset + at);
}

ingot_status values_check_piece(const shard *part, const ingot_tensor *tensor, unsigned which,
                                uint64_t offset, const uint8_t *bytes, uint64_t length,
                                ingot_error *error) {
    if (tensor->kind != INGOT_GROUPED || length == 0) {
        return INGOT_OK;
    }
    switch (which) {
    case INGOT_PART_CODES:
        return check_codes(part, tensor, offset, bytes, length, error);
    case INGOT_PART_SCALES:
        return check_scales(part, tensor, offset, bytes, length, error);
    case INGOT_PART_ZEROS:
        return check_zeros(part, tensor, offset, bytes, length, error);
    default:
        return INGOT_OK;
    }
}

/* ---- outliers -------------------------------------------------------------------------------- */

/* Five sequential streams, each with a window of its own so that none drives another out. */
typedef enum stream { ROW_PTR, COLUMNS, VALUES, CODES, ZEROS, STREAM_COUNT } stream;

static const unsigned part_of_stream[STREAM_COUNT] = {INGOT_PART_OUTLIERS, INGOT_PART_OUTLIERS,
                                                      INGOT_PART_OUTLIERS, INGOT_PART_CODES,
                                                      INGOT_PART_ZEROS};

typedef struct source {
    const shard *part;
    const ingot_tensor *tensor;
    const uint8_t *const *parts; /* in memory; NULL, it or a part: read through the windows */
    chunk_reader *reader;
    uint8_t *windows; /* [STREAM_COUNT][CHUNK_BYTES] */
    uint64_t chunk[STREAM_COUNT];
    ingot_error *error;
} source;

/* *out points at the bytes from offset of the stream's part; no element straddles a chunk. */
static ingot_status source_at(source *from, stream which, uint64_t offset, const uint8_t **out) {
    const unsigned p = part_of_stream[which];
    if (from->parts != NULL && from->parts[p] != NULL) {
        *out = from->parts[p] + offset;
        return INGOT_OK;
    }
    const uint64_t chunk = offset / CHUNK_BYTES;
    uint8_t *window = from->windows + (uint64_t)which * CHUNK_BYTES;
    if (from->chunk[which] != chunk) {
        from->chunk[which] = UINT64_MAX;
        INGOT_TRY(chunk_read(from->part, from->tensor, p, chunk, false, window, from->reader,
                             from->error));
        from->chunk[which] = chunk;
    }
    *out = window + offset % CHUNK_BYTES;
    return INGOT_OK;
}

static ingot_status code_at(source *from, uint64_t row, uint64_t col, unsigned *code) {
    const unsigned bits = from->tensor->bits;
    const uint64_t bit = col * bits;
    const uint64_t offset = row * from->tensor->row_stride_bytes + bit / 8;
    const uint8_t *byte;
    INGOT_TRY(source_at(from, CODES, offset, &byte));
    unsigned word = *byte;
    if (bit % 8 + bits > 8) {
        INGOT_TRY(source_at(from, CODES, offset + 1, &byte));
        word |= (unsigned)*byte << 8;
    }
    *code = (word >> (bit % 8)) & ((1u << bits) - 1);
    return INGOT_OK;
}

/* Column, value and code of outlier `at` of a row; *previous is the column before it, plus one. */
static ingot_status check_outlier(source *from, uint64_t row, uint64_t at, uint64_t *previous) {
    const ingot_tensor *tensor = from->tensor;
    const uint64_t size = ingot_dtype_bytes(tensor->dtype);
    const uint8_t *bytes;
    INGOT_TRY(source_at(from, COLUMNS, outlier_col_offset(tensor) + 4 * at, &bytes));
    const uint64_t col = load_le(bytes, 4);
    if (col >= tensor->cols || col < *previous) {
        return value_error(from->error, INGOT_BAD_OUTLIER, from->part, tensor, "column of outlier",
                           at);
    }
    *previous = col + 1;
    INGOT_TRY(source_at(from, VALUES, outlier_val_offset(tensor) + size * at, &bytes));
    float value;
    ingot_convert_to_f32(&value, bytes, tensor->dtype, 1);
    if (!isfinite(value)) {
        return value_error(from->error, INGOT_BAD_OUTLIER, from->part, tensor, "value of outlier",
                           at);
    }
    unsigned zero = 1u << (tensor->bits - 1);
    if (tensor->zero_mode == INGOT_ZERO_STORED) {
        INGOT_TRY(
            source_at(from, ZEROS, row * tensor->groups_per_row + col / tensor->group, &bytes));
        zero = *bytes;
    }
    unsigned code = 0;
    INGOT_TRY(code_at(from, row, col, &code));
    if (code != zero) {
        return value_error(from->error, INGOT_BAD_OUTLIER, from->part, tensor, "code of outlier",
                           at);
    }
    return INGOT_OK;
}

static ingot_status check_rows(source *from) {
    const ingot_tensor *tensor = from->tensor;
    const uint8_t *bytes;
    uint64_t at = 0;
    INGOT_TRY(source_at(from, ROW_PTR, 0, &bytes));
    if (load_le(bytes, 8) != 0) {
        return value_error(from->error, INGOT_BAD_OUTLIER, from->part, tensor, "row", 0);
    }
    for (uint64_t row = 0; row < tensor->rows; row++) {
        INGOT_TRY(source_at(from, ROW_PTR, 8 * (row + 1), &bytes));
        const uint64_t end = load_le(bytes, 8);
        if (end < at || end > tensor->outlier_count) {
            return value_error(from->error, INGOT_BAD_OUTLIER, from->part, tensor, "row", row);
        }
        for (uint64_t previous = 0; at < end; at++) {
            INGOT_TRY(check_outlier(from, row, at, &previous));
        }
    }
    if (at != tensor->outlier_count) {
        return value_error(from->error, INGOT_BAD_OUTLIER, from->part, tensor, "row", tensor->rows);
    }
    const uint64_t used = outlier_col_offset(tensor) + 4 * tensor->outlier_count;
    if (used < outlier_val_offset(tensor)) {
        INGOT_TRY(source_at(from, COLUMNS, used, &bytes));
        if (load_le(bytes, 4) != 0) {
            return value_error(from->error, INGOT_BAD_OUTLIER, from->part, tensor,
                               "padding after column", tensor->outlier_count);
        }
    }
    return INGOT_OK;
}

ingot_status values_check_outliers(const shard *part, const ingot_tensor *tensor,
                                   const uint8_t *const *parts, chunk_reader *reader,
                                   ingot_error *error) {
    if (tensor->kind != INGOT_GROUPED || tensor->outlier_count == 0) {
        return INGOT_OK;
    }
    source from = {
        .part = part, .tensor = tensor, .parts = parts, .reader = reader, .error = error};
    for (unsigned i = 0; i < STREAM_COUNT; i++) {
        from.chunk[i] = UINT64_MAX;
    }
    if (reader != NULL) {
        from.windows = malloc(STREAM_COUNT * CHUNK_BYTES);
        if (from.windows == NULL) {
            return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, tensor->name, NULL,
                                   "out of memory");
        }
    }
    const ingot_status status = check_rows(&from);
    free(from.windows);
    return status;
}
