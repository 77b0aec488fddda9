/* Reader of one safetensors file.  The header is hostile input: every rule of the safetensors
 * format is checked (length, JSON, dtype, shape x size, offsets in order without gap or overlap,
 * exact cover, duplicate keys) before a tensor is believed.  Weights are read with pread. */
#ifndef INGOT_SAFETENSORS_H
#define INGOT_SAFETENSORS_H

#include "common/files.h"
#include "format/ingot.h"

#define INGOT_ST_HEADER_MOST_BYTES UINT64_C(100000000) /* the published limit */

typedef struct ingot_st_tensor {
    const char *name;       /* owned by the file handle; printable ASCII, 1..255 */
    const char *dtype_name; /* as written: "BF16", "F8_E4M3", ... */
    bool is_supported;      /* dtype has an ingot_dtype */
    ingot_dtype dtype;      /* valid when is_supported */
    unsigned rank;          /* 0..4; 0 is a scalar */
    uint64_t dim[INGOT_MAX_RANK];
    uint64_t elements;
    uint64_t offset; /* absolute, in the file */
    uint64_t bytes;
} ingot_st_tensor;

typedef struct ingot_safetensors ingot_safetensors;

ingot_status ingot_safetensors_open(ingot_safetensors **out, const char *path,
                                    ingot_error *error) INGOT_MUST_CHECK;
void ingot_safetensors_close(ingot_safetensors *file); /* NULL is fine */
uint64_t ingot_safetensors_count(const ingot_safetensors *file);
/* In the order of their offsets. */
const ingot_st_tensor *ingot_safetensors_at(const ingot_safetensors *file, uint64_t index);
const ingot_file *ingot_safetensors_file(const ingot_safetensors *file);
/* XXH3-128 of the length field and the JSON header. */
void ingot_safetensors_header_digest(const ingot_safetensors *file, uint8_t digest[16]);

#endif
