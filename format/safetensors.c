/* Reader of safetensors headers (the format as published by its authors: u64 header length, JSON
 * object name -> {dtype, shape, data_offsets}, then the data).  The header is hostile input:
 * nothing in it is believed before it was checked against the size of the file. */
#include "format/safetensors.h"

#include "common/json.h"
#include "common/memory.h"
#include "common/sizes.h"
#include "format/digest.h"

#include <stdlib.h>
#include <string.h>

#define MAX_TENSORS (UINT64_C(1) << 20)
#define REMEDY      "download the checkpoint again"

struct ingot_safetensors {
    ingot_file *file;
    json_t *header; /* owns the strings */
    ingot_st_tensor *tensors;
    uint64_t count;
    uint8_t digest[16];
};

static const struct {
    const char *name;
    unsigned bytes;
    bool is_supported;
    ingot_dtype dtype;
} dtypes[] = {
    {"F32", 4, true, INGOT_F32},      {"F16", 2, true, INGOT_F16},
    {"BF16", 2, true, INGOT_BF16},    {"I32", 4, true, INGOT_I32},
    {"U8", 1, true, INGOT_U8},        {"F64", 8, false, INGOT_F32},
    {"I64", 8, false, INGOT_F32},     {"U64", 8, false, INGOT_F32},
    {"U32", 4, false, INGOT_F32},     {"I16", 2, false, INGOT_F32},
    {"U16", 2, false, INGOT_F32},     {"I8", 1, false, INGOT_F32},
    {"BOOL", 1, false, INGOT_F32},    {"F8_E4M3", 1, false, INGOT_F32},
    {"F8_E5M2", 1, false, INGOT_F32}, {"F8_E8M0", 1, false, INGOT_F32},
};

static ingot_status refuse(const ingot_safetensors *st, const char *tensor, const char *reason,
                           ingot_error *error) {
    return ingot_error_set(error, INGOT_ERR_INPUT, ingot_file_path(st->file), tensor, REMEDY, "%s",
                           reason);
}

static bool is_legal_name(const char *name) {
    const size_t length = strlen(name);
    if (length < 1 || length > INGOT_MAX_NAME) {
        return false;
    }
    for (size_t i = 0; i < length; i++) {
        if (name[i] < 0x21 || name[i] > 0x7e) {
            return false;
        }
    }
    return true;
}

static ingot_status parse_dtype(const ingot_safetensors *st, ingot_st_tensor *tensor,
                                const json_t *value, unsigned *element_bytes, ingot_error *error) {
    const char *name = json_string_value(value);
    if (name == NULL) {
        return refuse(st, tensor->name, "has no dtype", error);
    }
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(dtypes[i].name, name) == 0) {
            tensor->dtype_name = dtypes[i].name;
            tensor->is_supported = dtypes[i].is_supported;
            tensor->dtype = dtypes[i].dtype;
            *element_bytes = dtypes[i].bytes;
            return INGOT_OK;
        }
    }
    return ingot_error_set(error, INGOT_ERR_UNSUPPORTED, ingot_file_path(st->file), tensor->name,
                           "save the checkpoint as F16, BF16 or F32", "dtype '%s' is not known",
                           name);
}

static ingot_status parse_shape(const ingot_safetensors *st, ingot_st_tensor *tensor,
                                const json_t *value, ingot_error *error) {
    if (!json_is_array(value)) {
        return refuse(st, tensor->name, "has no shape", error);
    }
    if (json_array_size(value) > INGOT_MAX_RANK) {
        return refuse(st, tensor->name, "has more than 4 dimensions", error);
    }
    tensor->rank = (unsigned)json_array_size(value);
    tensor->elements = 1;
    for (unsigned i = 0; i < tensor->rank; i++) {
        const json_t *dim = json_array_get(value, i);
        if (!json_is_integer(dim) || json_integer_value(dim) < 0) {
            return refuse(st, tensor->name, "a dimension is not a whole number", error);
        }
        tensor->dim[i] = (uint64_t)json_integer_value(dim);
        if (!ingot_size_mul(&tensor->elements, tensor->elements, tensor->dim[i])) {
            return refuse(st, tensor->name, "its shape overflows", error);
        }
    }
    return INGOT_OK;
}

static ingot_status parse_tensor(const ingot_safetensors *st, ingot_st_tensor *tensor,
                                 const json_t *entry, uint64_t data_start, uint64_t data_size,
                                 ingot_error *error) {
    unsigned element_bytes = 0;
    uint64_t expected;
    if (!is_legal_name(tensor->name)) {
        return refuse(st, NULL, "a tensor's name is not 1..255 printable ASCII characters", error);
    }
    if (!json_is_object(entry)) {
        return refuse(st, tensor->name, "its entry is not an object", error);
    }
    INGOT_TRY(parse_dtype(st, tensor, json_object_get(entry, "dtype"), &element_bytes, error));
    INGOT_TRY(parse_shape(st, tensor, json_object_get(entry, "shape"), error));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0);
    const json_t *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end) ||
        json_integer_value(begin) < 0 || json_integer_value(end) < json_integer_value(begin)) {
        return refuse(st, tensor->name, "its data_offsets are not two rising whole numbers", error);
    }
    const uint64_t first = (uint64_t)json_integer_value(begin);
    tensor->bytes = (uint64_t)json_integer_value(end) - first;
    if (first + tensor->bytes > data_size) {
        return refuse(st, tensor->name, "its data lie beyond the end of the file (truncated?)",
                      error);
    }
    if (!ingot_size_mul(&expected, tensor->elements, element_bytes) || expected != tensor->bytes) {
        return refuse(st, tensor->name, "its shape does not give the size of its data", error);
    }
    tensor->offset = data_start + first;
    return INGOT_OK;
}

/* __metadata__ maps strings to strings, nothing else. */
static ingot_status check_metadata(const ingot_safetensors *st, json_t *metadata,
                                   ingot_error *error) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata)) {
        return refuse(st, NULL, "__metadata__ is not an object", error);
    }
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value)) {
            return refuse(st, NULL, "__metadata__ holds something other than strings", error);
        }
    }
    return INGOT_OK;
}

static int compare_offsets(const void *a, const void *b) {
    const ingot_st_tensor *left = a;
    const ingot_st_tensor *right = b;
    if (left->offset != right->offset) {
        return left->offset < right->offset ? -1 : 1;
    }
    if (left->bytes != right->bytes) { /* empty tensors go before the one that starts there */
        return left->bytes < right->bytes ? -1 : 1;
    }
    return strcmp(left->name, right->name);
}

static ingot_status parse_all(ingot_safetensors *st, uint64_t data_start, ingot_error *error) {
    const uint64_t data_size = ingot_file_size(st->file) - data_start;
    const char *name;
    json_t *entry;
    const uint64_t most = json_object_size(st->header);
    if (most > MAX_TENSORS) {
        return refuse(st, NULL, "has too many tensors", error);
    }
    st->tensors = calloc(most + 1, sizeof *st->tensors);
    if (st->tensors == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, ingot_file_path(st->file), NULL, NULL,
                               "out of memory");
    }
    json_object_foreach(st->header, name, entry) {
        if (strcmp(name, "__metadata__") == 0) {
            INGOT_TRY(check_metadata(st, entry, error));
            continue;
        }
        ingot_st_tensor *tensor = &st->tensors[st->count++];
        tensor->name = name;
        INGOT_TRY(parse_tensor(st, tensor, entry, data_start, data_size, error));
    }
    qsort(st->tensors, (size_t)st->count, sizeof *st->tensors, compare_offsets);
    uint64_t at = data_start;
    for (uint64_t i = 0; i < st->count; i++) {
        if (st->tensors[i].offset != at) {
            return refuse(st, st->tensors[i].name,
                          st->tensors[i].offset < at ? "its data overlap another tensor's"
                                                     : "there is a gap before its data",
                          error);
        }
        at += st->tensors[i].bytes;
    }
    if (at != ingot_file_size(st->file)) {
        return refuse(st, NULL, "bytes behind the last tensor belong to none", error);
    }
    return INGOT_OK;
}

static ingot_status check_pointer(const ingot_safetensors *st, ingot_error *error) {
    char start[64];
    const uint64_t size = ingot_min_u64(sizeof start, ingot_file_size(st->file));
    INGOT_TRY(ingot_file_read_at(st->file, start, size, 0, error));
    return ingot_file_refuse_pointer(start, size, ingot_file_path(st->file), error);
}

ingot_status ingot_safetensors_open(ingot_safetensors **out, const char *path, ingot_error *error) {
    ingot_status status;
    void *bytes = NULL;
    uint8_t length_field[8];
    uint64_t length = 0;
    ingot_safetensors *st = calloc(1, sizeof *st);
    *out = NULL;
    if (st == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
    }
    INGOT_GO(ingot_file_open(&st->file, path, error));
    if (ingot_file_size(st->file) < 8) {
        status = refuse(st, NULL, "is too short for a safetensors file", error);
        goto done;
    }
    INGOT_GO(ingot_file_read_at(st->file, length_field, 8, 0, error));
    for (unsigned i = 0; i < 8; i++) {
        length |= (uint64_t)length_field[i] << (8 * i);
    }
    if (length > INGOT_ST_HEADER_MOST_BYTES) {
        INGOT_GO(check_pointer(st, error));
        status = refuse(st, NULL, "its header is longer than the limit of 100 MB", error);
        goto done;
    }
    if (length > ingot_file_size(st->file) - 8) {
        status = refuse(st, NULL, "its header is longer than the file (truncated?)", error);
        goto done;
    }
    INGOT_GO(ingot_alloc(&bytes, length + 8));
    INGOT_GO(ingot_file_read_at(st->file, bytes, length + 8, 0, error));
    ingot_digest128(st->digest, bytes, length + 8);
    INGOT_GO(ingot_json_parse(&st->header, (const char *)bytes + 8, length, path, error));
    if (!json_is_object(st->header) || ((const char *)bytes)[8] != '{') {
        status = refuse(st, NULL, "its header is not a JSON object", error);
        goto done;
    }
    INGOT_GO(parse_all(st, length + 8, error));
    *out = st;
    st = NULL;
done:
    if (status == INGOT_ERR_NO_MEMORY && error != NULL && error->status == INGOT_OK) {
        (void)ingot_error_set(error, status, path, NULL, NULL, "out of memory");
    }
    ingot_free(bytes);
    ingot_safetensors_close(st);
    return status;
}

void ingot_safetensors_close(ingot_safetensors *file) {
    if (file != NULL) {
        ingot_file_close(file->file);
        json_decref(file->header);
        free(file->tensors);
        free(file);
    }
}

uint64_t ingot_safetensors_count(const ingot_safetensors *file) {
    return file->count;
}

const ingot_st_tensor *ingot_safetensors_at(const ingot_safetensors *file, uint64_t index) {
    return &file->tensors[index];
}

const ingot_file *ingot_safetensors_file(const ingot_safetensors *file) {
    return file->file;
}

void ingot_safetensors_header_digest(const ingot_safetensors *file, uint8_t digest[16]) {
    memcpy(digest, file->digest, 16);
}
