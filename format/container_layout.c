/* Bytes <-> structures, and the geometry that follows from shapes (spec/container.md, sections
 * "Superblock", "Tensor record", "Ledger"; spec/quantization.md, "Parts").  The one place where
 * field offsets stand. */
#include "format/container_internal.h"
#include "format/container_write.h"
#include "format/pack.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* The state of a digest is an object here, whose size only the header's own code can know. */
#define XXH_INLINE_ALL
#include <xxhash.h>

const uint8_t ingot_container_magic[8] = {0x89, 'I', 'G', 'T', 0x0d, 0x0a, 0x1a, 0x0a};
const uint8_t ingot_container_end[8] = {'I', 'G', 'T', 'E', 'N', 'D', '\r', '\n'};

#define MAX_ELEMENTS (UINT64_C(1) << 48)

void superblock_encode(uint8_t bytes[SUPERBLOCK_BYTES], const superblock *super) {
    memset(bytes, 0, SUPERBLOCK_BYTES);
    memcpy(bytes, ingot_container_magic, 8);
    store_le(bytes + 8, super->major, 2);
    store_le(bytes + 10, super->minor, 2);
    store_le(bytes + 12, SUPERBLOCK_BYTES, 4);
    store_le(bytes + 16, super->file_size, 8);
    store_le(bytes + 24, super->incompat, 8);
    store_le(bytes + 32, super->ro_compat, 8);
    store_le(bytes + 40, super->compat, 8);
    store_le(bytes + 48, super->table_offset, 8);
    store_le(bytes + 56, super->section_count, 4);
    store_le(bytes + 60, super->profile, 4);
    store_le(bytes + 64, super->shard_index, 4);
    store_le(bytes + 68, super->shard_count, 4);
    memcpy(bytes + 72, super->set_id, 16);
    memcpy(bytes + 88, super->root, 16);
    store_le(bytes + 120, XXH3_64bits(bytes, 120), 8);
}

void superblock_decode(superblock *super, const uint8_t bytes[SUPERBLOCK_BYTES]) {
    super->major = (unsigned)load_le(bytes + 8, 2);
    super->minor = (unsigned)load_le(bytes + 10, 2);
    super->file_size = load_le(bytes + 16, 8);
    super->incompat = load_le(bytes + 24, 8);
    super->ro_compat = load_le(bytes + 32, 8);
    super->compat = load_le(bytes + 40, 8);
    super->table_offset = load_le(bytes + 48, 8);
    super->section_count = (uint32_t)load_le(bytes + 56, 4);
    super->profile = (uint32_t)load_le(bytes + 60, 4);
    super->shard_index = (uint32_t)load_le(bytes + 64, 4);
    super->shard_count = (uint32_t)load_le(bytes + 68, 4);
    memcpy(super->set_id, bytes + 72, 16);
    memcpy(super->root, bytes + 88, 16);
}

void section_encode(uint8_t bytes[SECTION_BYTES], const section *record) {
    store_le(bytes, record->fourcc, 4);
    store_le(bytes + 4, record->flags, 4);
    store_le(bytes + 8, record->offset, 8);
    store_le(bytes + 16, record->size, 8);
    store_le(bytes + 24, record->aux, 8);
    memcpy(bytes + 32, record->digest, 16);
}

void section_decode(section *record, const uint8_t bytes[SECTION_BYTES]) {
    record->fourcc = (uint32_t)load_le(bytes, 4);
    record->flags = (uint32_t)load_le(bytes + 4, 4);
    record->offset = load_le(bytes + 8, 8);
    record->size = load_le(bytes + 16, 8);
    record->aux = load_le(bytes + 24, 8);
    memcpy(record->digest, bytes + 32, 16);
}

void record_encode(uint8_t bytes[RECORD_BYTES], const ingot_tensor *tensor, uint64_t name_offset) {
    memset(bytes, 0, RECORD_BYTES);
    store_le(bytes, name_offset, 4);
    store_le(bytes + 4, strlen(tensor->name), 2);
    bytes[6] = (uint8_t)tensor->kind;
    bytes[7] = (uint8_t)tensor->rank;
    for (unsigned i = 0; i < INGOT_MAX_RANK; i++) {
        store_le(bytes + 8 + 8 * i, tensor->dim[i], 8);
    }
    bytes[40] = (uint8_t)tensor->dtype;
    bytes[41] = (uint8_t)tensor->bits;
    bytes[42] = (uint8_t)tensor->scale_dtype;
    bytes[43] = (uint8_t)tensor->zero_mode;
    store_le(bytes + 44, tensor->group, 4);
    store_le(bytes + 48, tensor->kind == INGOT_ALIAS ? tensor->alias_of : tensor->outlier_count, 8);
    store_le(bytes + 56, tensor->first_chunk, 8);
    for (unsigned i = 0; i < INGOT_PART_COUNT; i++) {
        store_le(bytes + 64 + 16 * i, tensor->part_offset[i], 8);
        store_le(bytes + 72 + 16 * i, tensor->part_bytes[i], 8);
    }
}

static void store_double(uint8_t *bytes, double value) {
    uint64_t bits = UINT64_C(0x7ff8000000000000); /* the one NaN the format allows */
    if (!isnan(value)) {
        memcpy(&bits, &value, sizeof bits);
    }
    store_le(bytes, bits, 8);
}

static double load_double(const uint8_t *bytes) {
    const uint64_t bits = load_le(bytes, 8);
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void ledger_encode(uint8_t bytes[LEDGER_BYTES], const ingot_ledger *ledger) {
    memset(bytes, 0, LEDGER_BYTES);
    bytes[0] = (uint8_t)ledger->method;
    bytes[1] = (uint8_t)ledger->fallback;
    bytes[2] = (uint8_t)ledger->damping_step;
    bytes[3] = ledger->is_folded ? 1 : 0;
    store_le(bytes + 4, ledger->dead_columns, 4);
    store_le(bytes + 8, ledger->low_precision_scales, 4);
    store_le(bytes + 16, ledger->tokens_seen, 8);
    store_le(bytes + 24, ledger->outliers, 8);
    store_double(bytes + 32, ledger->weight_error);
    store_double(bytes + 40, ledger->weight_error_rtn);
    store_double(bytes + 48, ledger->output_error);
    store_double(bytes + 56, ledger->output_error_rtn);
    store_double(bytes + 64, ledger->damping);
    memcpy(bytes + 72, ledger->source_digest, 16);
}

void ledger_decode(ingot_ledger *ledger, const uint8_t bytes[LEDGER_BYTES]) {
    ledger->method = (ingot_method)bytes[0];
    ledger->fallback = (ingot_fallback)bytes[1];
    ledger->damping_step = bytes[2];
    ledger->is_folded = (bytes[3] & 1) != 0;
    ledger->dead_columns = (uint32_t)load_le(bytes + 4, 4);
    ledger->low_precision_scales = (uint32_t)load_le(bytes + 8, 4);
    ledger->tokens_seen = load_le(bytes + 16, 8);
    ledger->outliers = load_le(bytes + 24, 8);
    ledger->weight_error = load_double(bytes + 32);
    ledger->weight_error_rtn = load_double(bytes + 40);
    ledger->output_error = load_double(bytes + 48);
    ledger->output_error_rtn = load_double(bytes + 56);
    ledger->damping = load_double(bytes + 64);
    memcpy(ledger->source_digest, bytes + 72, 16);
}

bool ledger_is_legal(const uint8_t bytes[LEDGER_BYTES]) {
    if (bytes[0] > INGOT_METHOD_SEARCHED || bytes[1] > INGOT_FALLBACK_NOT_POSITIVE ||
        bytes[3] > 1 || load_le(bytes + 12, 4) != 0) {
        return false;
    }
    for (unsigned at = 32; at < 72; at += 8) {
        const double value = load_double(bytes + at);
        const bool is_canonical_nan = load_le(bytes + at, 8) == UINT64_C(0x7ff8000000000000);
        if (!is_canonical_nan && !(isfinite(value) && value >= 0 && !signbit(value))) {
            return false;
        }
    }
    for (unsigned at = 88; at < LEDGER_BYTES; at++) {
        if (bytes[at] != 0) {
            return false;
        }
    }
    return true;
}

const char *ingot_method_name(ingot_method method) {
    static const char *const names[] = {"copy", "rtn", "awq", "gptq", "awq+gptq", "searched"};
    return (unsigned)method < sizeof names / sizeof *names ? names[method] : "unknown";
}

const char *ingot_fallback_name(ingot_fallback fallback) {
    static const char *const names[] = {"none", "worse-than-rtn", "no-data", "not-positive"};
    return (unsigned)fallback < sizeof names / sizeof *names ? names[fallback] : "unknown";
}

/* ---- geometry ----------------------------------------------------------------------------- */

static const char *measure_shape(ingot_tensor *tensor) {
    if (tensor->rank < 1 || tensor->rank > INGOT_MAX_RANK) {
        return "the rank is not 1..4";
    }
    /* The limit takes empty dimensions as 1, so that it does not depend on their order. */
    uint64_t extent = 1;
    tensor->rows = 1;
    for (unsigned i = 0; i < INGOT_MAX_RANK; i++) {
        if (i >= tensor->rank) {
            if (tensor->dim[i] != 0) {
                return "a dimension beyond the rank is not zero";
            }
            continue;
        }
        if (!ingot_size_mul(&extent, extent, ingot_max_u64(tensor->dim[i], 1)) ||
            extent > MAX_ELEMENTS) {
            return "the shape is over the limit";
        }
        if (i + 1 < tensor->rank) {
            tensor->rows *= tensor->dim[i];
        }
    }
    tensor->cols = tensor->dim[tensor->rank - 1];
    return NULL;
}

static const char *measure_grouped(ingot_tensor *tensor) {
    if (tensor->rows == 0 || tensor->cols == 0) {
        return "a quantized tensor is empty";
    }
    if (tensor->cols > UINT32_MAX) {
        return "a quantized row is too long";
    }
    if (tensor->bits < 2 || tensor->bits > 8) {
        return "the width is not 2..8";
    }
    if (tensor->scale_dtype > INGOT_BF16) {
        return "the scale type is not F16, BF16 or F32";
    }
    if (tensor->zero_mode > INGOT_ZERO_STORED) {
        return "the zero mode is not known";
    }
    if (tensor->group == 0 || tensor->group > tensor->cols ||
        (tensor->group % 8 != 0 && tensor->group != tensor->cols)) {
        return "the group is neither a multiple of 8 nor the row";
    }
    if (tensor->outlier_count == 0 ? tensor->dtype != INGOT_F16 : tensor->dtype > INGOT_F16) {
        return "the outlier type is not F16 or F32";
    }
    if (tensor->outlier_count > tensor->rows * tensor->cols) {
        return "there are more outliers than weights";
    }
    tensor->groups_per_row = ingot_ceil_div(tensor->cols, tensor->group);
    tensor->row_stride_bytes = ingot_pack_row_bytes(tensor->cols, tensor->bits);
    const uint64_t groups = tensor->rows * tensor->groups_per_row; /* <= elements <= 2^48 */
    if (!ingot_size_mul(&tensor->part_bytes[INGOT_PART_CODES], tensor->rows,
                        tensor->row_stride_bytes)) {
        return "the shape overflows";
    }
    tensor->part_bytes[INGOT_PART_SCALES] = groups * ingot_dtype_bytes(tensor->scale_dtype);
    tensor->part_bytes[INGOT_PART_ZEROS] = tensor->zero_mode == INGOT_ZERO_STORED ? groups : 0;
    if (tensor->outlier_count > 0) {
        tensor->part_bytes[INGOT_PART_OUTLIERS] =
            outlier_val_offset(tensor) + tensor->outlier_count * ingot_dtype_bytes(tensor->dtype);
    }
    return NULL;
}

const char *tensor_measure(ingot_tensor *tensor) {
    memset(tensor->part_bytes, 0, sizeof tensor->part_bytes);
    tensor->groups_per_row = 0;
    tensor->row_stride_bytes = 0;
    const char *reason = measure_shape(tensor);
    if (reason != NULL) {
        return reason;
    }
    switch (tensor->kind) {
    case INGOT_GROUPED:
        return measure_grouped(tensor);
    case INGOT_AUXILIARY:
        if (tensor->dtype != INGOT_F32) {
            return "an auxiliary tensor is not F32";
        }
        break;
    case INGOT_DENSE:
        if (ingot_dtype_bytes(tensor->dtype) == 0) {
            return "the element type is not known";
        }
        break;
    case INGOT_ALIAS: /* measured through its target */
        return NULL;
    default:
        return "the kind is not known";
    }
    if (tensor->bits != 0 || tensor->scale_dtype != 0 || tensor->zero_mode != 0 ||
        tensor->group != 0 || tensor->outlier_count != 0) {
        return "a field of quantized tensors is set on a dense one";
    }
    tensor->part_bytes[INGOT_PART_CODES] =
        tensor->rows * tensor->cols * ingot_dtype_bytes(tensor->dtype);
    return NULL;
}

uint64_t outlier_col_offset(const ingot_tensor *tensor) {
    return 8 * (tensor->rows + 1);
}

uint64_t outlier_val_offset(const ingot_tensor *tensor) {
    return outlier_col_offset(tensor) + (4 * tensor->outlier_count + 7) / 8 * 8;
}

uint64_t part_alignment(uint64_t part_bytes) {
    return part_bytes >= LARGE_PART_BYTES ? DATA_ALIGNMENT : PART_ALIGNMENT;
}

void tensor_place(ingot_tensor *tensor, uint64_t *data_offset, uint64_t *chunk) {
    tensor->first_chunk = *chunk;
    for (unsigned i = 0; i < INGOT_PART_COUNT; i++) {
        const uint64_t bytes = tensor->part_bytes[i];
        tensor->part_offset[i] = 0;
        if (bytes > 0) {
            const uint64_t alignment = part_alignment(bytes);
            tensor->part_offset[i] = (*data_offset + alignment - 1) / alignment * alignment;
            *data_offset = tensor->part_offset[i] + bytes;
        }
    }
    *chunk += tensor_chunk_count(tensor);
}

uint64_t tensor_chunk_count(const ingot_tensor *tensor) {
    uint64_t count = 0;
    for (unsigned i = 0; i < INGOT_PART_COUNT; i++) {
        count += ingot_ceil_div(tensor->part_bytes[i], CHUNK_BYTES);
    }
    return count;
}

ingot_status ingot_tensor_geometry(ingot_tensor *out, const ingot_tensor_spec *spec,
                                   ingot_error *error) {
    memset(out, 0, sizeof *out);
    out->name = spec->name;
    out->kind = spec->kind;
    out->rank = spec->rank;
    memcpy(out->dim, spec->dim, sizeof out->dim);
    out->dtype = spec->dtype;
    out->bits = spec->bits;
    out->scale_dtype = spec->scale_dtype;
    out->zero_mode = spec->zero_mode;
    out->group = spec->group;
    out->outlier_count = spec->outlier_count;
    out->alias_of = spec->alias_of;
    const char *reason = tensor_measure(out);
    if (reason == NULL && !tensor_name_is_legal(spec->name, strlen(spec->name))) {
        reason = "the name is not 1..255 printable ASCII characters";
    }
    if (reason != NULL) {
        return ingot_error_set(error, INGOT_ERR_USAGE, NULL, spec->name, NULL,
                               "the container format cannot hold this tensor: %s", reason);
    }
    return INGOT_OK;
}

/* ---- names -------------------------------------------------------------------------------- */

bool tensor_name_is_legal(const char *name, uint64_t length) {
    if (length < 1 || length > INGOT_MAX_NAME) {
        return false;
    }
    for (uint64_t i = 0; i < length; i++) {
        if (name[i] < 0x21 || name[i] > 0x7e) {
            return false;
        }
    }
    return true;
}

bool file_name_is_legal(const char *name, uint64_t length) {
    if (length < 1 || length > INGOT_MAX_NAME || name[0] == '.') {
        return false;
    }
    for (uint64_t i = 0; i < length; i++) {
        const char c = name[i];
        const bool is_word = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
                             (c >= '0' && c <= '9') || c == '.' || c == '_' || c == '-';
        if (!is_word) {
            return false;
        }
    }
    return true;
}

/* Length of "-00001-of-00002" before the extension. */
#define SHARD_MARK 15u

char *shard_path_make(const char *path, uint32_t index, uint32_t count) {
    const char *slash = strrchr(path, '/');
    const char *dot = strrchr(path, '.');
    if (dot == NULL || (slash != NULL && dot < slash)) {
        dot = path + strlen(path);
    }
    const size_t size = strlen(path) + SHARD_MARK + 16;
    char *out = malloc(size);
    if (out != NULL) {
        (void)snprintf(out, size, "%.*s-%05u-of-%05u%s", (int)(dot - path), path, index + 1, count,
                       dot);
    }
    return out;
}

/* Value of five decimal digits, or UINT32_MAX. */
static uint32_t five_digits(const char *text) {
    uint32_t value = 0;
    for (unsigned i = 0; i < 5; i++) {
        if (text[i] < '0' || text[i] > '9') {
            return UINT32_MAX;
        }
        value = 10 * value + (uint32_t)(text[i] - '0');
    }
    return value;
}

/* The mark within a shard's path, NULL where there is none. */
static const char *find_mark(const char *path) {
    const char *slash = strrchr(path, '/');
    const char *dot = strrchr(path, '.');
    if (dot == NULL || (slash != NULL && dot < slash)) {
        dot = path + strlen(path);
    }
    /* A set under construction carries ".partial" behind the shard's own name. */
    if (strcmp(dot, ".partial") == 0) {
        const char *inner = dot;
        while (inner > path && inner[-1] != '.' && inner[-1] != '/') {
            inner--;
        }
        if (inner > path && inner[-1] == '.') {
            dot = inner - 1;
        }
    }
    const char *start = slash != NULL ? slash + 1 : path;
    if (dot < start + SHARD_MARK) {
        return NULL;
    }
    const char *mark = dot - SHARD_MARK;
    return mark[0] == '-' && memcmp(mark + 6, "-of-", 4) == 0 ? mark : NULL;
}

uint32_t shard_path_place(const char *path, uint32_t count) {
    const char *mark = find_mark(path);
    if (mark == NULL || five_digits(mark + 10) != count) {
        return NO_PLACE;
    }
    const uint32_t number = five_digits(mark + 1);
    return number >= 1 && number <= count ? number - 1 : NO_PLACE;
}

void shard_path_sibling(char *out, const char *path, uint32_t index) {
    memcpy(out, path, strlen(path) + 1);
    char *digits = out + (find_mark(path) - path) + 1;
    uint32_t number = index + 1;
    for (unsigned i = 5; i-- > 0; number /= 10) {
        digits[i] = (char)('0' + number % 10);
    }
}

/* ---- content id --------------------------------------------------------------------------- */

static void content_record(uint8_t bytes[RECORD_BYTES], const shard *part, uint64_t index) {
    memcpy(bytes, part->records + index * RECORD_BYTES, RECORD_BYTES);
    memset(bytes, 0, 4);      /* name offset */
    memset(bytes + 56, 0, 8); /* first chunk */
    for (unsigned i = 0; i < INGOT_PART_COUNT; i++) {
        memset(bytes + 64 + 16 * i, 0, 8);
    }
    if (part->tensors[index].kind == INGOT_ALIAS) {
        store_le(bytes + 48, part->tensors[index].alias_of, 8);
    }
}

void content_id_compute(uint8_t id[16], const shard *shards, uint32_t count) {
    XXH3_state_t state;
    (void)XXH3_128bits_reset(&state);
    for (uint32_t s = 0; s < count; s++) {
        for (uint64_t i = 0; i < shards[s].tensor_count; i++) {
            uint8_t bytes[RECORD_BYTES];
            content_record(bytes, &shards[s], i);
            (void)XXH3_128bits_update(&state, bytes, RECORD_BYTES);
        }
    }
    for (uint32_t s = 0; s < count; s++) {
        for (uint64_t i = 0; i < shards[s].tensor_count; i++) {
            const char *name = shards[s].tensors[i].name;
            (void)XXH3_128bits_update(&state, name, strlen(name));
        }
    }
    for (uint32_t s = 0; s < count; s++) {
        (void)XXH3_128bits_update(&state, shards[s].chunks, (size_t)(shards[s].chunk_count * 8));
    }
    const XXH128_hash_t hash = XXH3_128bits_digest(&state);
    store_le(id, hash.low64, 8);
    store_le(id + 8, hash.high64, 8);
}
