/* What the reader's and the writer's files share: byte layout, decoded shards.  Not installed.
 * Offsets and sizes are those of spec/container.md. */
#ifndef INGOT_CONTAINER_INTERNAL_H
#define INGOT_CONTAINER_INTERNAL_H

#include "common/sizes.h"
#include "format/ingot.h"

#include <string.h>

#define SUPERBLOCK_BYTES     128u
#define SECTION_BYTES        48u
#define RECORD_BYTES         160u
#define LEDGER_BYTES         128u
#define ZMAP_BYTES           24u
#define TRAILER_BYTES        32u
#define CHUNK_BYTES          (UINT64_C(1) << 20)
#define DATA_ALIGNMENT       4096u
#define PART_ALIGNMENT       256u
#define LARGE_PART_BYTES     (UINT64_C(64) << 10) /* from here parts are page aligned */
#define MAX_FILE_BYTES       (UINT64_C(1) << 48)
#define MAX_SECTIONS         64u
#define MAX_TENSORS          (UINT64_C(1) << 20)
#define MAX_META_BYTES       (UINT64_C(16) << 20)
#define MAX_FILE_ENTRY_BYTES (UINT64_C(256) << 20)
#define MAX_SECTION_BYTES    (UINT64_C(256) << 20) /* all but CHNK, ZMAP and DATA */
#define MAX_SHARDS           9999u
#define INCOMPAT_ZSTD        UINT64_C(1)
#define KNOWN_INCOMPAT       INCOMPAT_ZSTD
#define SECTION_CRITICAL     1u

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "views point straight at the little-endian bytes of the file");

#define FOURCC(a, b, c, d)                                                                         \
    ((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)
#define FOURCC_TIDX FOURCC('T', 'I', 'D', 'X')
#define FOURCC_TSRT FOURCC('T', 'S', 'R', 'T')
#define FOURCC_NAME FOURCC('N', 'A', 'M', 'E')
#define FOURCC_CHNK FOURCC('C', 'H', 'N', 'K')
#define FOURCC_LEDG FOURCC('L', 'E', 'D', 'G')
#define FOURCC_META FOURCC('M', 'E', 'T', 'A')
#define FOURCC_FILE FOURCC('F', 'I', 'L', 'E')
#define FOURCC_SHRD FOURCC('S', 'H', 'R', 'D')
#define FOURCC_ZMAP FOURCC('Z', 'M', 'A', 'P')
#define FOURCC_DATA FOURCC('D', 'A', 'T', 'A')

extern const uint8_t ingot_container_magic[8];
extern const uint8_t ingot_container_end[8];

static inline uint64_t load_le(const uint8_t *bytes, unsigned count) {
    uint64_t value = 0;
    for (unsigned i = 0; i < count; i++) {
        value |= (uint64_t)bytes[i] << (8 * i);
    }
    return value;
}
static inline void store_le(uint8_t *bytes, uint64_t value, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        bytes[i] = (uint8_t)(value >> (8 * i));
    }
}

typedef struct superblock {
    unsigned major, minor;
    uint64_t file_size, incompat, ro_compat, compat, table_offset;
    uint32_t section_count, profile, shard_index, shard_count;
    uint8_t set_id[16], root[16];
} superblock;

typedef struct section {
    uint32_t fourcc, flags;
    uint64_t offset, size, aux;
    uint8_t digest[16];
} section;

/* Where one chunk lies in a compressed file. */
typedef struct stored_chunk {
    uint64_t offset;        /* from the start of DATA */
    uint32_t length, codec; /* codec 0: stored as it is, 1: zstd frame */
    uint64_t digest;
} stored_chunk;

/* One file of the set, decoded and checked at the open level.  All it points to lies in the block
 * of its container. */
typedef struct shard {
    const char *path;
    int fd;         /* -1: not open */
    uint8_t *front; /* every byte before DATA */
    superblock super;
    section *sections;
    uint64_t first_tensor, tensor_count; /* within the container's global order */
    ingot_tensor *tensors;
    const uint8_t *records, *sorted, *names, *chunks, *ledger, *zmap, *shard_roots;
    uint64_t names_size, chunk_count;
    const char *meta;
    uint64_t meta_size;
    char *name_store;      /* NUL-terminated copies of all names */
    uint64_t *chunk_order; /* chunks by their place in a compressed file; else NULL */
    uint64_t data_offset, data_stored_size, data_size;
} shard;

typedef struct file_entry {
    const char *name;
    const uint8_t *bytes;
    uint64_t size;
} file_entry;

/* The first piece of the one block that holds everything of an open container. */
struct ingot_container {
    shard *shards;
    uint32_t shard_count;
    uint64_t tensor_count;
    uint32_t *sorted; /* records of all shards by name; NULL: one shard, its own index */
    file_entry *files;
    uint64_t file_count;
    uint8_t content_id[16];
};

/* ---- container_layout.c: bytes <-> structures, geometry ---------------------------------- */

void superblock_encode(uint8_t bytes[SUPERBLOCK_BYTES], const superblock *super);
void superblock_decode(superblock *super, const uint8_t bytes[SUPERBLOCK_BYTES]);
void section_encode(uint8_t bytes[SECTION_BYTES], const section *record);
void section_decode(section *record, const uint8_t bytes[SECTION_BYTES]);
void record_encode(uint8_t bytes[RECORD_BYTES], const ingot_tensor *tensor, uint64_t name_offset);
void ledger_encode(uint8_t bytes[LEDGER_BYTES], const ingot_ledger *ledger);
void ledger_decode(ingot_ledger *ledger, const uint8_t bytes[LEDGER_BYTES]);
/* False when a field is out of its legal range or a reserved byte is not zero. */
bool ledger_is_legal(const uint8_t bytes[LEDGER_BYTES]);

/* Fills rows, cols, groups_per_row, row_stride_bytes and part_bytes from shape and widths; NULL, or
 * the reason why that is illegal. */
const char *tensor_measure(ingot_tensor *tensor);
uint64_t part_alignment(uint64_t part_bytes);
/* Gives the parts of the next tensor their canonical offsets and chunks, advancing both. */
void tensor_place(ingot_tensor *tensor, uint64_t *data_offset, uint64_t *chunk);
uint64_t tensor_chunk_count(const ingot_tensor *tensor);
bool tensor_name_is_legal(const char *name, uint64_t length);
bool file_name_is_legal(const char *name, uint64_t length);
/* Byte offsets of columns and values inside an outlier part. */
uint64_t outlier_col_offset(const ingot_tensor *tensor);
uint64_t outlier_val_offset(const ingot_tensor *tensor);

/* "X.ingot" -> "X-00001-of-0000N.ingot" (malloc'd, NULL when out of memory). */
char *shard_path_make(const char *path, uint32_t index, uint32_t count);
#define NO_PLACE UINT32_MAX
/* The index that the name of one of `count` shards stands for, NO_PLACE where it is none. */
uint32_t shard_path_place(const char *path, uint32_t count);
/* out[strlen(path) + 1] = the path of shard `index` beside that of another. */
void shard_path_sibling(char *out, const char *path, uint32_t index);

/* The content id over decoded shards (spec/container.md, "Content id"). */
void content_id_compute(uint8_t id[16], const shard *shards, uint32_t count);

/* ---- container_open.c: one file ------------------------------------------------------------ */

/* The memory of an open container: one block, handed out from its front.  With start NULL nothing
 * is, and `used` becomes the size the block must have.  Sizes come from section tables that were
 * checked, so that their sum cannot overflow. */
typedef struct block {
    uint8_t *start; /* zeroed, [size] */
    uint64_t size, used;
} block;
/* NULL where the block is too small, or none. */
void *block_take(block *memory, uint64_t bytes);
static inline bool block_is_enough(const block *memory) {
    return memory->start != NULL && memory->used <= memory->size;
}

/* Steps 1 to 13: opens the file and checks superblock, trailer and section table.  part->path and
 * part->sections are borrowed; part->fd is the caller's to close, error or not. */
ingot_status shard_open_table(shard *part, const char *path, section sections[MAX_SECTIONS],
                              ingot_error *error);
/* Takes what the remaining steps need; where the block is enough, path and sections move there. */
void shard_take_memory(shard *part, block *memory);
/* Steps 14 to 22. */
ingot_status shard_open_rest(shard *part, block *memory, ingot_error *error);
/* Sets and returns an error of this file; reason NULL: the text of the code. */
ingot_status shard_error(ingot_error *error, ingot_status code, const shard *part,
                         const char *tensor, const char *remedy, const char *reason);

/* ---- container_read.c --------------------------------------------------------------------- */

/* Reads exactly size bytes of a shard; INGOT_ERR_IO names the file. */
ingot_status shard_read_at(const shard *part, void *buffer, uint64_t size, uint64_t offset,
                           ingot_error *error);

/* What reading chunks of a compressed shard needs; empty for others.  One per thread. */
typedef struct chunk_reader {
    uint8_t *stored; /* [CHUNK_BYTES] */
    void *zstd;      /* ZSTD_DCtx */
} chunk_reader;
ingot_status chunk_reader_create(chunk_reader *out, bool is_compressed);
void chunk_reader_destroy(chunk_reader *reader);

/* Decoded bytes of chunk `chunk` of part `which` into buffer[CHUNK_BYTES], of which chunk_length
 * are written.  verify: stored and decoded digests. */
ingot_status chunk_read(const shard *part, const ingot_tensor *tensor, unsigned which,
                        uint64_t chunk, bool verify, void *buffer, chunk_reader *reader,
                        ingot_error *error);
uint64_t chunk_length(const ingot_tensor *tensor, unsigned which, uint64_t chunk);
/* ingot_tensor_load of a tensor (no alias) of a shard, and the bytes it needs. */
uint64_t tensor_load_bytes(const ingot_tensor *tensor);
ingot_status tensor_load(const shard *part, const ingot_tensor *tensor, bool verify, void *buffer,
                         ingot_weight_view *view, ingot_error *error);
/* Digest of decoded bytes that were read by other means. */
ingot_status chunk_check_digest(const shard *part, const ingot_tensor *tensor, unsigned which,
                                uint64_t chunk, const uint8_t *bytes, ingot_error *error);
const shard *shard_of_tensor(const ingot_container *container, uint64_t index);

/* ---- container_values.c ------------------------------------------------------------------- */

/* The rules of length bytes at `offset` of a part (whole elements): padding of rows of codes, range
 * of scales, range of zero points. */
ingot_status values_check_piece(const shard *part, const ingot_tensor *tensor, unsigned which,
                                uint64_t offset, const uint8_t *bytes, uint64_t length,
                                ingot_error *error);
/* The outlier rules; parts in memory, or those that are NULL, with parts NULL all, read through the
 * reader. */
ingot_status values_check_outliers(const shard *part, const ingot_tensor *tensor,
                                   const uint8_t *const *parts, chunk_reader *reader,
                                   ingot_error *error);

#endif
