/* libingot: the reader of the Ingot container, version 1 (spec/container.md).
 *
 * A container holds the tensors of a model (dense or weight-only quantized), the verbatim files of
 * its checkpoint, and a ledger of what quantization did.  This header is the whole public face:
 * libc, xxHash and zstd are all it needs.
 *
 * Levels of checking (spec/container.md, "Integrity"):
 *   open    ingot_open: everything except DATA - magic, sizes, digests of all metadata, geometry
 *   tensor  ingot_tensor_load with verify: the bytes of what is loaded
 *   full    ingot_check_full: every byte of the file is accounted for
 *
 * No byte sequence makes these functions crash, read outside the file, or allocate beyond the
 * limits of the specification.  A handle may be used from several threads at once. */
#ifndef INGOT_H
#define INGOT_H

#include "ingot_status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- what is in the tensor index (spec/container.md, "Tensor record") -------------------- */

typedef enum ingot_dtype {
    INGOT_F32 = 0,
    INGOT_F16 = 1,
    INGOT_BF16 = 2,
    INGOT_I32 = 3,
    INGOT_U8 = 4
} ingot_dtype;

/* Bytes per element (4, 2, 2, 4, 1); 0 for an unknown value. */
uint64_t ingot_dtype_bytes(ingot_dtype dtype);
const char *ingot_dtype_name(ingot_dtype dtype); /* "F32" ... */

typedef enum ingot_kind {
    INGOT_DENSE = 0,
    INGOT_GROUPED = 1,  /* grouped-affine integers: w = s (q - z) */
    INGOT_ALIAS = 2,    /* the same bytes as another record of this file (tied weights) */
    INGOT_AUXILIARY = 3 /* dense F32 that is no model tensor: fold scales, NAME#fold */
} ingot_kind;

typedef enum ingot_zero_mode {
    INGOT_ZERO_SYMMETRIC = 0, /* z = 2^(bits-1) */
    INGOT_ZERO_STORED = 1     /* u8 zeros[rows][groups] */
} ingot_zero_mode;

typedef enum ingot_part {
    INGOT_PART_CODES = 0, /* codes, or the data of a dense tensor */
    INGOT_PART_SCALES = 1,
    INGOT_PART_ZEROS = 2,
    INGOT_PART_OUTLIERS = 3, /* u64 row_ptr[rows+1], u32 col[nnz], pad to 8, val[nnz] */
    INGOT_PART_COUNT = 4
} ingot_part;

#define INGOT_MAX_RANK 4
#define INGOT_MAX_NAME 255

/* One tensor, decoded and checked.  An alias has the shape and storage fields of its target, but no
 * parts of its own.  rows x cols is the matrix view: cols is the last dimension,
 * rows the product of the others (rank 1: 1 x dim[0]). */
typedef struct ingot_tensor {
    const char *name; /* NUL-terminated, owned by the container handle */
    ingot_kind kind;
    unsigned rank;
    uint64_t dim[INGOT_MAX_RANK];
    uint64_t rows, cols;
    ingot_dtype dtype;       /* dense: element; grouped: outlier values */
    unsigned bits;           /* grouped: 2..8 */
    ingot_dtype scale_dtype; /* grouped: F16, BF16 or F32 */
    ingot_zero_mode zero_mode;
    uint64_t group;            /* grouped: group length along cols, last one may be short */
    uint64_t groups_per_row;   /* grouped: ceil(cols / group) */
    uint64_t row_stride_bytes; /* grouped: bytes from one row of codes to the next */
    uint64_t outlier_count;    /* grouped: nnz */
    uint64_t alias_of;         /* alias: index of the target, as for ingot_tensor_at */
    uint64_t part_offset[INGOT_PART_COUNT]; /* in the decoded image of DATA */
    uint64_t part_bytes[INGOT_PART_COUNT];
    uint64_t first_chunk;
} ingot_tensor;

/* ---- a weight matrix in memory --------------------------------------------------------- */

/* How a matrix looks to whoever computes with it: dense, or the parts of a grouped-affine tensor
 * exactly as they lie in the file.  All pointers are borrowed. */
typedef struct ingot_weight_view {
    ingot_kind kind; /* INGOT_DENSE or INGOT_GROUPED */
    uint64_t rows, cols;
    ingot_dtype dtype; /* dense: element; grouped: outlier values */
    const void *data;  /* dense: w[rows][cols] */
    unsigned bits;     /* from here on: grouped only */
    ingot_zero_mode zero_mode;
    ingot_dtype scale_dtype;
    uint64_t group, groups_per_row, row_stride_bytes;
    const uint8_t *codes; /* [rows][row_stride_bytes], bit strings, spec/quantization.md */
    const void *scales;   /* [rows][groups_per_row] of scale_dtype */
    const uint8_t *zeros; /* [rows][groups_per_row], NULL when symmetric */
    uint64_t outlier_count;
    const uint64_t *outlier_row_ptr; /* [rows+1], NULL when outlier_count is 0 */
    const uint32_t *outlier_col;     /* [outlier_count] */
    const void *outlier_val;         /* [outlier_count] of dtype */
} ingot_weight_view;

/* out[count] = row `row` of the matrix from column 0, as binary32: s (q - z) rounded once, outliers
 * replacing (spec/quantization.md).  count <= cols.  Plain, slow, exact: the reference. */
void ingot_weight_row(float *out, const ingot_weight_view *view, uint64_t row, uint64_t count);

/* ---- the ledger ------------------------------------------------------------------------ */

typedef enum ingot_method {
    INGOT_METHOD_COPY = 0, /* stored as in the source */
    INGOT_METHOD_RTN = 1,
    INGOT_METHOD_AWQ = 2,
    INGOT_METHOD_GPTQ = 3,
    INGOT_METHOD_AWQ_GPTQ = 4,
    INGOT_METHOD_SEARCHED = 5 /* rounding with searched scales (--effort fast) */
} ingot_method;
const char *ingot_method_name(ingot_method method); /* "copy", "rtn", "awq", "gptq", ... */

typedef enum ingot_fallback {
    INGOT_FALLBACK_NONE = 0,
    INGOT_FALLBACK_WORSE_THAN_RTN = 1, /* the result was worse than plain rounding: replaced */
    INGOT_FALLBACK_NO_DATA = 2,        /* no calibration tokens reached the tensor */
    INGOT_FALLBACK_NOT_POSITIVE = 3    /* the Hessian could not be factorized at any damping */
} ingot_fallback;
const char *ingot_fallback_name(ingot_fallback fallback);

/* What quantization did to one tensor.  NaN where a figure does not apply.
 * weight errors are ||W F - W'||_F / ||W F||_F (F the fold), computable from the source alone;
 * output errors are ||(W F - W') X||_F / ||W F X||_F on the calibration activations. */
typedef struct ingot_ledger {
    ingot_method method;
    ingot_fallback fallback;
    unsigned damping_step; /* 0: the first damping was enough; 255: not factorized */
    bool is_folded;
    uint32_t dead_columns;         /* input features that were always zero */
    uint32_t low_precision_scales; /* groups whose F16 scale is below 2^-14 */
    uint64_t tokens_seen;
    uint64_t outliers;
    double weight_error;     /* of the stored tensor */
    double weight_error_rtn; /* of plain rounding at the same bits, group and zero mode */
    double output_error;
    double output_error_rtn;
    double damping;            /* fraction of the mean diagonal of H, quality.md section 6 */
    uint8_t source_digest[16]; /* XXH3-128 of the source tensor's bytes, little-endian; or zeros */
} ingot_ledger;

/* ---- opening --------------------------------------------------------------------------- */

typedef struct ingot_container ingot_container;

/* Opens a container (for a sharded set: any shard of it; the siblings are found beside it) and
 * checks everything but DATA.  One block of memory is allocated, of the size that checked section
 * tables ask for.  *out is released with ingot_close.  Errors: INGOT_ERR_NOT_FOUND,
 * INGOT_ERR_IO, INGOT_ERR_NO_MEMORY, INGOT_ERR_UNSUPPORTED and the INGOT_BAD_* codes. */
ingot_status ingot_open(ingot_container **out, const char *path,
                        ingot_error *error) INGOT_MUST_CHECK;
void ingot_close(ingot_container *container); /* NULL is fine */

/* Path of the first shard, owned by the handle. */
const char *ingot_path(const ingot_container *container);

/* Cheap test of the first 8 bytes of a file: does it claim to be an Ingot container? */
bool ingot_is_container(const char *path);

/* What a container holds. */
#define INGOT_PROFILE_MODEL      0u
#define INGOT_PROFILE_STATISTICS 1u
#define INGOT_PROFILE_STATE      2u /* of a conversion */

typedef struct ingot_info {
    unsigned major, minor;
    uint64_t file_bytes; /* of all shards */
    uint64_t decoded_data_bytes;
    uint32_t profile;     /* INGOT_PROFILE_... */
    uint32_t shard_count; /* 1 when not sharded */
    bool is_compressed;
    uint64_t incompat, ro_compat, compat; /* feature masks of the first shard */
    uint8_t root[16];                     /* of the first shard: names the file */
    uint8_t content_id[16]; /* names the content whatever the compression or sharding */
} ingot_info;
void ingot_get_info(const ingot_container *container, ingot_info *out);

/* Canonical JSON text (not NUL-terminated), owned by the handle. */
const char *ingot_meta(const ingot_container *container, uint64_t *size);

/* ---- tensors --------------------------------------------------------------------------- */

/* Records of all shards in load order. */
uint64_t ingot_tensor_count(const ingot_container *container);
const ingot_tensor *ingot_tensor_at(const ingot_container *container, uint64_t index);
/* NULL when there is no tensor of that name. Aliases are found under their own name. */
const ingot_tensor *ingot_tensor_find(const ingot_container *container, const char *name,
                                      uint64_t *index);
/* index < ingot_tensor_count. */
void ingot_ledger_at(const ingot_container *container, uint64_t index, ingot_ledger *out);

/* Bytes of memory ingot_tensor_load needs for this tensor (aliases resolved). */
uint64_t ingot_tensor_load_bytes(const ingot_container *container, uint64_t index);
/* Reads all parts of a tensor into buffer[ingot_tensor_load_bytes] (64-byte aligned, caller's) and
 * points *view into it; an alias gives its target.  verify: digests of every chunk, range of
 * scales, zeros and outliers; without it only bounds hold. */
ingot_status ingot_tensor_load(const ingot_container *container, uint64_t index, bool verify,
                               void *buffer, ingot_weight_view *view,
                               ingot_error *error) INGOT_MUST_CHECK;
/* A part of a part: size bytes from offset within the part.  verify: digests of the 1 MiB chunks
 * they lie in (which are read whole), range of scales and zeros; the rules of outliers concern a
 * whole tensor and are those of ingot_tensor_load alone. */
ingot_status ingot_part_read(const ingot_container *container, uint64_t index, ingot_part part,
                             uint64_t offset, uint64_t size, bool verify, void *buffer,
                             ingot_error *error) INGOT_MUST_CHECK;

/* ---- verbatim files --------------------------------------------------------------------- */

uint64_t ingot_file_entry_count(const ingot_container *container);
const char *ingot_file_entry_name(const ingot_container *container, uint64_t index);
/* Bytes are owned by the handle (digested at open). NULL when there is no such file. */
const void *ingot_file_entry(const ingot_container *container, const char *name, uint64_t *size);

/* ---- full check ------------------------------------------------------------------------- */

/* Reports work done, in bytes; returning false stops the check with INGOT_ERR_INTERRUPTED.  Any of
 * the check's threads calls it, one at a time. */
typedef bool (*ingot_check_progress)(void *context, uint64_t done_bytes, uint64_t total_bytes);

/* The full level: every chunk, every padding byte, scale range, zero range, outlier rules.  Uses
 * up to `threads` threads (0: one).  INGOT_OK means every byte of every shard is accounted for. */
ingot_status ingot_check_full(const ingot_container *container, unsigned threads,
                              ingot_check_progress progress, void *context,
                              ingot_error *error) INGOT_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
