/* The container writer (spec/container.md, conformance class "writer").
 *
 * The geometry is frozen first: all shapes, widths and outlier counts are known when the writer is
 * opened, so the front of the file has its final size, parts go to their planned place in any
 * order, and digests, section table and superblock are written last.  The file exists under
 * PATH.partial until ingot_writer_finish has re-read it with the public reader. */
#ifndef INGOT_CONTAINER_WRITE_H
#define INGOT_CONTAINER_WRITE_H

#include "format/ingot.h"

/* One tensor of the plan; everything the geometry needs. */
typedef struct ingot_tensor_spec {
    const char *name; /* 1..255 printable ASCII, borrowed for the life of the writer */
    ingot_kind kind;
    unsigned rank;
    uint64_t dim[INGOT_MAX_RANK];
    ingot_dtype dtype;
    unsigned bits;
    ingot_dtype scale_dtype;
    ingot_zero_mode zero_mode;
    uint64_t group;
    uint64_t outlier_count;
    uint64_t alias_of; /* alias: index of the target in the same array */
} ingot_tensor_spec;

typedef struct ingot_file_spec {
    const char *name;  /* [A-Za-z0-9._-]{1,255}, not starting with a dot */
    const void *bytes; /* borrowed until finish */
    uint64_t size;
} ingot_file_spec;

typedef struct ingot_writer_plan {
    uint32_t profile;
    const ingot_tensor_spec *tensors; /* load order */
    uint64_t tensor_count;
    const ingot_file_spec *files; /* any order */
    uint64_t file_count;
    const char *meta; /* canonical JSON, final */
    uint64_t meta_size;
    bool is_compressed;          /* zstd, one frame per chunk */
    uint64_t shard_size_bytes;   /* 0: one file; else the most DATA bytes of a shard */
    uint8_t set_id[16];          /* sharded sets: XXH3-128 of source digests and recipe */
    struct ingot_output *output; /* an output begun under the path, for one uncompressed file: the
                                    writer's once this is created.  NULL: it begins one itself */
} ingot_writer_plan;

/* Sizes that follow from a plan, before anything is written. */
typedef struct ingot_layout_info {
    uint64_t file_bytes; /* of all shards, uncompressed */
    uint64_t data_bytes;
    uint32_t shard_count;
} ingot_layout_info;
ingot_status ingot_layout_compute(ingot_layout_info *out, const ingot_writer_plan *plan,
                                  ingot_error *error) INGOT_MUST_CHECK;

/* Geometry of one tensor on its own: fills rows, cols, groups_per_row, row_stride_bytes and
 * part_bytes of *out from the spec (offsets are zero). INGOT_ERR_USAGE for an illegal spec. */
ingot_status ingot_tensor_geometry(ingot_tensor *out, const ingot_tensor_spec *spec,
                                   ingot_error *error) INGOT_MUST_CHECK;

typedef struct ingot_writer ingot_writer;

/* Opens PATH.partial (locked) and reserves the front.  For a sharded plan PATH "X.ingot" becomes
 * X-00001-of-0000N.ingot ....  Keeps references to the plan's arrays. */
ingot_status ingot_writer_create(ingot_writer **out, const char *path, bool force,
                                 const ingot_writer_plan *plan,
                                 ingot_error *error) INGOT_MUST_CHECK;
/* From now on chunks are digested and written by this many threads, or as many as are of use, where
 * the file is not compressed.  Its bytes are the same with every number. */
ingot_status ingot_writer_use_threads(ingot_writer *writer, unsigned threads) INGOT_MUST_CHECK;
/* Writes all parts of tensor `index` from the view, which must match the spec exactly, and takes
 * its ledger record.  Each tensor (but aliases) exactly once, in any order; not thread safe. */
ingot_status ingot_writer_put(ingot_writer *writer, uint64_t index, const ingot_weight_view *view,
                              const ingot_ledger *ledger, ingot_error *error) INGOT_MUST_CHECK;
/* Streams a dense tensor: size bytes at offset of its data; in order, the last call completes it.
 * The ledger is given once with ingot_writer_put_ledger. */
ingot_status ingot_writer_put_bytes(ingot_writer *writer, uint64_t index, const void *bytes,
                                    uint64_t size, uint64_t offset,
                                    ingot_error *error) INGOT_MUST_CHECK;
void ingot_writer_put_ledger(ingot_writer *writer, uint64_t index, const ingot_ledger *ledger);
/* Makes what was put durable (fsync). */
ingot_status ingot_writer_sync(ingot_writer *writer, ingot_error *error) INGOT_MUST_CHECK;
/* Digests, front, superblock, fsync, full check by the public reader (threads as in
 * ingot_check_full), rename.  Releases the writer in every case; on failure no file is left, unless
 * ingot_writer_keep was called.
 * root and content_id (16 bytes each) may be NULL. */
ingot_status ingot_writer_finish(ingot_writer *writer, unsigned threads, uint8_t *root,
                                 uint8_t *content_id, ingot_error *error) INGOT_MUST_CHECK;
/* The file that stands for the whole when it is finished: the path given, or the first shard's.
 * Owned by the writer. */
const char *ingot_writer_path(const ingot_writer *writer);
/* Where a shard is made, which its name may lead to as a symbolic link. */
const char *ingot_writer_shard_path(const ingot_writer *writer, uint32_t index);
/* Removes the partial file, unless it is kept; NULL is fine. */
void ingot_writer_abort(ingot_writer *writer);

/* ---- going on after an interruption (container_write_resume.c) ------------------------------ */

/* From now on a failure leaves the partial files. */
void ingot_writer_keep(ingot_writer *writer);
/* As ingot_writer_create, on the partial files that an interrupted run with the same plan left;
 * INGOT_ERR_NOT_FOUND where one is missing.  They are kept.  Nothing counts as put until
 * ingot_writer_restore. */
ingot_status ingot_writer_reopen(ingot_writer **out, const char *path, bool force,
                                 const ingot_writer_plan *plan,
                                 ingot_error *error) INGOT_MUST_CHECK;

/* Opens what a run with the same plan finished: geometry, META, files, compression and shards are
 * the plan's, no shard is set aside for another, and no partial file is beside one, but where
 * may_be_begun for the first.  The data may be any, and is not looked at.  INGOT_ERR_NOT_FOUND, or
 * the error of ingot_open, says why there is none. */
ingot_status ingot_writer_find(ingot_container **out, const char *path, bool may_be_begun,
                               const ingot_writer_plan *plan, ingot_error *error) INGOT_MUST_CHECK;

/* The sections of a front that grow with what is put. */
typedef enum ingot_writer_image {
    INGOT_IMAGE_CHUNKS, /* CHNK */
    INGOT_IMAGE_LEDGER, /* LEDG */
    INGOT_IMAGE_ZMAP,   /* ZMAP: compressed files only */
    INGOT_IMAGE_COUNT
} ingot_writer_image;
uint32_t ingot_writer_shard_count(const ingot_writer *writer);
/* *bytes[*size]: the section of a shard as it is now, the writer's own; to be saved, or filled
 * before ingot_writer_restore.  *size 0: there is none. */
void ingot_writer_get_image(uint8_t **bytes, uint64_t *size, ingot_writer *writer, uint32_t shard,
                            ingot_writer_image which);
/* Whether tensor `index` is whole in the partial file. */
bool ingot_writer_is_put(const ingot_writer *writer, uint64_t index);
/* Takes tensors with is_put[index] (plan->tensor_count of them) as put, the images being those of
 * the time when they were: reads all of them back, and INGOT_ERR_STATE names one that is not what
 * its digests say. */
ingot_status ingot_writer_restore(ingot_writer *writer, const bool *is_put,
                                  ingot_error *error) INGOT_MUST_CHECK;
/* Tensor `index` counts as not put, or not begun, and is to be put again.  Of a compressed file
 * room is won back for what lies behind all that is put. */
void ingot_writer_forget(ingot_writer *writer, uint64_t index);
/* The record of a tensor that was put. */
void ingot_writer_get_ledger(ingot_ledger *out, const ingot_writer *writer, uint64_t index);
/* Reads a tensor that was put (no alias) into buffer[ingot_writer_load_bytes], as ingot_tensor_load
 * does, digests checked.  Thread safe, also beside puts of other tensors. */
uint64_t ingot_writer_load_bytes(const ingot_writer *writer, uint64_t index);
ingot_status ingot_writer_load(const ingot_writer *writer, uint64_t index, void *buffer,
                               ingot_weight_view *view, ingot_error *error) INGOT_MUST_CHECK;

#endif
