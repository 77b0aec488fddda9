/* What the files of the container writer share.  Not installed. */
#ifndef INGOT_CONTAINER_WRITE_INTERNAL_H
#define INGOT_CONTAINER_WRITE_INTERNAL_H

#include "common/files.h"
#include "common/pool.h"
#include "format/container_internal.h"
#include "format/container_write.h"

typedef struct writer_shard {
    ingot_output *output;
    char *path;
    superblock super;
    section sections[MAX_SECTIONS];
    uint64_t tensor_count, chunk_count, names_size;
    ingot_tensor *tensors; /* in record order; alias_of is local */
    uint64_t *plan_index;  /* of each record */
    uint64_t data_size, data_offset, stored_size;
    uint8_t *front;
    uint8_t *tidx, *tsrt, *names, *chunks, *ledger, *meta, *roots, *zmap; /* into front */
} writer_shard;

typedef struct place {
    uint32_t shard;
    uint64_t local;
    bool is_put, has_ledger;
    uint64_t streamed_bytes;
} place;

struct ingot_writer {
    const ingot_writer_plan *plan;
    writer_shard *shards;
    char *name; /* of the first shard; its path is what that leads to */
    uint32_t shard_count;
    bool is_forced;      /* existing files are replaced */
    place *places;       /* by plan index */
    uint8_t *compressed; /* ZSTD_compressBound(CHUNK_BYTES), compressed files only */
    void *zstd;          /* ZSTD_CCtx, likewise */
    ingot_pool *pool;    /* that digests and writes chunks; NULL: the caller alone */
};

/* What a plan becomes; *out is released with writer_destroy. */
ingot_status writer_lay_out(ingot_writer **out, const ingot_writer_plan *plan,
                            ingot_error *error) INGOT_MUST_CHECK;
void writer_destroy(ingot_writer *writer);

/* files[plan->file_count] = the plan's files, sorted by name and checked. */
ingot_status writer_sort_files(const ingot_file_spec **files, const ingot_writer_plan *plan,
                               ingot_error *error) INGOT_MUST_CHECK;

/* Everything of the front of a shard that follows from the plan. */
ingot_status writer_build_front(ingot_writer *writer, writer_shard *part,
                                ingot_error *error) INGOT_MUST_CHECK;

/* part->path = where shard `index` is made of a writer whose whole is to lie at path: in order. */
ingot_status writer_name_shard(ingot_writer *writer, uint32_t index, const char *path,
                               ingot_error *error) INGOT_MUST_CHECK;

ingot_status writer_no_memory(ingot_error *error);

/* A shard of this set that has its final name and no partial file any more was renamed by a run
 * that was killed before the whole set was: it becomes a partial file again. */
void writer_take_back(const char *path, const uint8_t set_id[16]);

#endif
