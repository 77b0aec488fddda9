/* Opening one file of a container: steps 1 to 22 of the reader algorithm of spec/container.md.
 * Rules are checked in the order of their codes, so that every reader reports the same first error.
 * The steps up to the section table need no memory; what the others need follows from the table and
 * comes out of the one block of the container (container_set.c).
 *
 * Invariants once a shard is open: every size was recomputed from the shape; parts and chunks lie
 * at their canonical offsets inside DATA; names are legal, unique and NUL-terminated. */
#include "format/container_internal.h"
#include "format/digest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#define TRANSFER "copy or download the file again"
/* Bytes, at most: format/safetensors.h, which is no part of libingot. */
#define SAFETENSORS_HEADER UINT64_C(100000000)

ingot_status shard_error(ingot_error *error, ingot_status code, const shard *part,
                         const char *tensor, const char *remedy, const char *reason) {
    return ingot_error_set(error, code, part->path, tensor, remedy, "%s",
                           reason != NULL ? reason : ingot_status_text(code));
}

static bool is_zero(const uint8_t *bytes, uint64_t size) {
    for (uint64_t i = 0; i < size; i++) {
        if (bytes[i] != 0) {
            return false;
        }
    }
    return true;
}

/* The same for a rule that one section breaks. */
static ingot_status bad_section(ingot_error *error, ingot_status code, const shard *part,
                                const section *record) {
    const bool is_unknown = code == INGOT_BAD_CRITICAL_SECTION;
    char type[5] = "????";
    for (unsigned i = 0; i < 4; i++) {
        const uint8_t letter = (uint8_t)(record->fourcc >> (8 * i));
        type[i] = letter > 0x20 && letter < 0x7f ? (char)letter : '?';
    }
    return ingot_error_set(error, code, part->path, NULL,
                           is_unknown ? "use a newer Ingot" : TRANSFER,
                           "%s (section %s, number %u)", ingot_status_text(code), type,
                           (unsigned)(record - part->sections));
}

/* ---- superblock, trailer, section table ---------------------------------------------------- */

static ingot_status open_file(shard *part, uint64_t *size, ingot_error *error) {
    struct stat info;
    /* O_NONBLOCK: opening a FIFO must fail below, not wait for a writer. */
    part->fd = open(part->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (part->fd < 0) {
        const bool is_missing = errno == ENOENT || errno == ENOTDIR;
        return ingot_error_set(error, is_missing ? INGOT_ERR_NOT_FOUND : INGOT_ERR_IO, part->path,
                               NULL,
                               is_missing        ? "check the path"
                               : errno == EMFILE ? "raise the limit of open files (ulimit -n)"
                                                 : "check its permissions",
                               "cannot be opened: %s", strerror(errno));
    }
    if (fstat(part->fd, &info) != 0) {
        return ingot_error_set(error, INGOT_ERR_IO, part->path, NULL, NULL, "cannot stat: %s",
                               strerror(errno));
    }
    if (!S_ISREG(info.st_mode)) {
        return ingot_error_set(error, INGOT_ERR_IO, part->path, NULL,
                               "name a container, which is a regular file",
                               S_ISDIR(info.st_mode) ? "is a folder" : "is not a regular file");
    }
    *size = (uint64_t)info.st_size;
    return INGOT_OK;
}

/* The remedy for a file that is no container, by how it begins: with the superblock's bytes, zeros
 * where there are fewer.  A clone that has not fetched its large files has a few lines of text in
 * the place of each; common/files.h knows them, too, which libingot does without. */
static const char *remedy_of(const uint8_t *bytes, const char *otherwise) {
    static const char pointer[] = "version https://git-lfs.github.com/spec/";
    static const char zip[] = {'P', 'K', 3, 4};
    if (memcmp(bytes, pointer, sizeof pointer - 1) == 0) {
        return "it is a pointer of Git LFS: git lfs pull, in the folder of the clone";
    }
    if (memcmp(bytes, "GGUF", 4) == 0) {
        return "it is a GGUF file: ingot-convert makes a container of the checkpoint";
    }
    if (memcmp(bytes, zip, sizeof zip) == 0) {
        return "it is a zip archive, such as PyTorch saves: ingot-convert makes a container of a "
               "checkpoint in safetensors";
    }
    if (bytes[8] == '{' && load_le(bytes, 8) <= SAFETENSORS_HEADER) {
        return "it is a safetensors file: ingot-convert makes a container of its folder";
    }
    return otherwise;
}

static ingot_status check_superblock(shard *part, uint64_t size, ingot_error *error) {
    uint8_t bytes[SUPERBLOCK_BYTES] = {0};
    superblock *super = &part->super;
    if (size < SUPERBLOCK_BYTES + TRAILER_BYTES) {
        const uint64_t start = size < SUPERBLOCK_BYTES ? size : SUPERBLOCK_BYTES;
        INGOT_TRY(shard_read_at(part, bytes, start, 0, error));
        return shard_error(error, INGOT_BAD_TOO_SHORT, part, NULL, remedy_of(bytes, TRANSFER),
                           NULL);
    }
    INGOT_TRY(shard_read_at(part, bytes, SUPERBLOCK_BYTES, 0, error));
    if (memcmp(bytes, ingot_container_magic, 8) != 0) {
        return shard_error(error, INGOT_BAD_MAGIC, part, NULL,
                           is_zero(bytes, SUPERBLOCK_BYTES)
                               ? "it begins with zeros: " TRANSFER
                               : remedy_of(bytes, "is this an Ingot container?"),
                           NULL);
    }
    if (load_le(bytes + 120, 8) != ingot_digest64(bytes, 120)) {
        return shard_error(error, INGOT_BAD_SUPERBLOCK_DIGEST, part, NULL, TRANSFER, NULL);
    }
    superblock_decode(super, bytes);
    if (super->major != 1) {
        return shard_error(error, INGOT_BAD_VERSION, part, NULL, "use a newer Ingot", NULL);
    }
    if ((super->incompat & ~KNOWN_INCOMPAT) != 0) {
        return shard_error(error, INGOT_BAD_INCOMPAT, part, NULL, "use a newer Ingot", NULL);
    }
    if (load_le(bytes + 12, 4) != SUPERBLOCK_BYTES || super->table_offset != SUPERBLOCK_BYTES ||
        super->section_count > MAX_SECTIONS || super->profile > 2 || super->shard_count < 1 ||
        super->shard_count > MAX_SHARDS || super->shard_index >= super->shard_count ||
        super->file_size > MAX_FILE_BYTES || !is_zero(bytes + 104, 16)) {
        return shard_error(error, INGOT_BAD_SUPERBLOCK, part, NULL, TRANSFER, NULL);
    }
    if (super->file_size != size) {
        return ingot_error_set(error, INGOT_BAD_FILE_SIZE, part->path, NULL, TRANSFER,
                               "the file has %llu bytes, its superblock says %llu",
                               (unsigned long long)size, (unsigned long long)super->file_size);
    }
    uint8_t trailer[TRAILER_BYTES];
    INGOT_TRY(shard_read_at(part, trailer, TRAILER_BYTES, size - TRAILER_BYTES, error));
    if (memcmp(trailer, super->root, 16) != 0 || load_le(trailer + 16, 8) != size ||
        memcmp(trailer + 24, ingot_container_end, 8) != 0) {
        return shard_error(error, INGOT_BAD_TRAILER, part, NULL, TRANSFER, NULL);
    }
    return INGOT_OK;
}

static ingot_status read_section_table(shard *part, ingot_error *error) {
    const uint32_t count = part->super.section_count;
    const uint64_t bytes = (uint64_t)count * SECTION_BYTES;
    uint8_t table[MAX_SECTIONS * SECTION_BYTES];
    if (SUPERBLOCK_BYTES + bytes + TRAILER_BYTES > part->super.file_size) {
        return shard_error(error, INGOT_BAD_TABLE, part, NULL, TRANSFER, NULL);
    }
    INGOT_TRY(shard_read_at(part, table, bytes, SUPERBLOCK_BYTES, error));
    uint8_t root[16];
    ingot_digest128(root, table, bytes);
    if (memcmp(root, part->super.root, 16) != 0) {
        return shard_error(error, INGOT_BAD_ROOT, part, NULL, TRANSFER, NULL);
    }
    for (uint32_t i = 0; i < count; i++) {
        section_decode(&part->sections[i], table + i * SECTION_BYTES);
    }
    return INGOT_OK;
}

/* Position of a known section in the file; unknown ones (0) may stand anywhere before DATA. */
static unsigned section_position(uint32_t fourcc) {
    static const uint32_t order[] = {FOURCC_TIDX, FOURCC_TSRT, FOURCC_NAME, FOURCC_CHNK,
                                     FOURCC_LEDG, FOURCC_META, FOURCC_FILE, FOURCC_SHRD,
                                     FOURCC_ZMAP, FOURCC_DATA};
    for (unsigned i = 0; i < sizeof order / sizeof *order; i++) {
        if (order[i] == fourcc) {
            return i + 1;
        }
    }
    return 0;
}

static ingot_status check_section_order(const shard *part, ingot_error *error) {
    const uint32_t count = part->super.section_count;
    const bool is_compressed = (part->super.incompat & INCOMPAT_ZSTD) != 0;
    const bool has_roots = part->super.shard_count > 1 && part->super.shard_index == 0;
    unsigned seen[11] = {0};
    unsigned last = 0;
    for (uint32_t i = 0; i < count; i++) {
        const section *record = &part->sections[i];
        const unsigned position = section_position(record->fourcc);
        if (position == 0) {
            if ((record->flags & SECTION_CRITICAL) != 0) {
                return bad_section(error, INGOT_BAD_CRITICAL_SECTION, part, record);
            }
            continue;
        }
        if (position < last || (position == last && record->fourcc != FOURCC_FILE) ||
            record->flags != SECTION_CRITICAL) {
            return bad_section(error, INGOT_BAD_SECTION_ORDER, part, record);
        }
        last = position;
        seen[position]++;
    }
    const bool may_have_files = part->super.shard_index == 0;
    const bool is_complete = (seen[7] == 0 || may_have_files) && seen[1] && seen[2] && seen[3] &&
                             seen[4] && seen[5] && seen[6] && (seen[8] == 1) == has_roots &&
                             (seen[9] == 1) == is_compressed && seen[10] &&
                             part->sections[count - 1].fourcc == FOURCC_DATA;
    return is_complete ? INGOT_OK
                       : shard_error(error, INGOT_BAD_SECTION_ORDER, part, NULL, TRANSFER, NULL);
}

static ingot_status check_section_bounds(shard *part, ingot_error *error) {
    const uint32_t count = part->super.section_count;
    const uint64_t limit = part->super.file_size - TRAILER_BYTES;
    uint64_t at = SUPERBLOCK_BYTES + (uint64_t)count * SECTION_BYTES;
    for (uint32_t i = 0; i < count; i++) {
        const section *record = &part->sections[i];
        const uint64_t alignment = record->fourcc == FOURCC_DATA ? DATA_ALIGNMENT : 8;
        uint64_t expected;
        uint64_t end;
        if (!ingot_size_align(&expected, at, alignment) || record->offset != expected ||
            !ingot_size_add(&end, expected, record->size) || end > limit) {
            return bad_section(error, INGOT_BAD_SECTION_BOUNDS, part, record);
        }
        at = end;
    }
    uint64_t file_end;
    if (!ingot_size_align(&file_end, at, 8) || file_end != limit) {
        return shard_error(error, INGOT_BAD_SECTION_BOUNDS, part, NULL, TRANSFER, NULL);
    }
    part->data_offset = part->sections[count - 1].offset;
    part->data_stored_size = part->sections[count - 1].size;
    part->data_size = part->sections[count - 1].aux;
    return INGOT_OK;
}

static const section *find_section(const shard *part, uint32_t fourcc) {
    for (uint32_t i = 0; i < part->super.section_count; i++) {
        if (part->sections[i].fourcc == fourcc) {
            return &part->sections[i];
        }
    }
    return NULL;
}

static ingot_status check_section_sizes(shard *part, ingot_error *error) {
    const uint64_t tensors = find_section(part, FOURCC_TIDX)->size;
    const uint64_t chunks = find_section(part, FOURCC_CHNK)->size;
    const section *roots = find_section(part, FOURCC_SHRD);
    const section *map = find_section(part, FOURCC_ZMAP);
    part->tensor_count = tensors / RECORD_BYTES;
    part->chunk_count = chunks / 8;
    part->names_size = find_section(part, FOURCC_NAME)->size;
    const bool is_legal =
        tensors % RECORD_BYTES == 0 && part->tensor_count <= MAX_TENSORS &&
        find_section(part, FOURCC_TSRT)->size == part->tensor_count * 4 &&
        find_section(part, FOURCC_LEDG)->size == part->tensor_count * LEDGER_BYTES &&
        chunks % 8 == 0 && find_section(part, FOURCC_META)->size <= MAX_META_BYTES &&
        part->data_size <= MAX_FILE_BYTES &&
        (map != NULL || part->data_size == part->data_stored_size) &&
        (map == NULL || map->size == part->chunk_count * ZMAP_BYTES) &&
        (roots == NULL || roots->size == (part->super.shard_count - 1) * 16u);
    for (uint32_t i = 0; i < part->super.section_count; i++) {
        const section *record = &part->sections[i];
        const bool is_chunked = record->fourcc == FOURCC_CHNK || record->fourcc == FOURCC_ZMAP ||
                                record->fourcc == FOURCC_DATA;
        const bool has_aux = record->fourcc == FOURCC_FILE || record->fourcc == FOURCC_DATA ||
                             section_position(record->fourcc) == 0;
        if ((!is_chunked && record->size > MAX_SECTION_BYTES) || (!has_aux && record->aux != 0)) {
            return bad_section(error, INGOT_BAD_SECTION_SIZE, part, record);
        }
    }
    return is_legal ? INGOT_OK
                    : shard_error(error, INGOT_BAD_SECTION_SIZE, part, NULL, TRANSFER, NULL);
}

static ingot_status read_front(shard *part, ingot_error *error) {
    const uint32_t count = part->super.section_count;
    INGOT_TRY(shard_read_at(part, part->front, part->data_offset, 0, error));
    for (uint32_t i = 0; i + 1 < count; i++) {
        uint8_t digest[16];
        const section *record = &part->sections[i];
        ingot_digest128(digest, part->front + record->offset, record->size);
        if (memcmp(digest, record->digest, 16) != 0) {
            return bad_section(error, INGOT_BAD_SECTION_DIGEST, part, record);
        }
    }
    if (!is_zero(part->sections[count - 1].digest, 16)) {
        return bad_section(error, INGOT_BAD_SECTION_DIGEST, part, &part->sections[count - 1]);
    }
    uint64_t at = SUPERBLOCK_BYTES + (uint64_t)count * SECTION_BYTES;
    for (uint32_t i = 0; i < count; i++) {
        const section *record = &part->sections[i];
        if (!is_zero(part->front + at, record->offset - at)) {
            return bad_section(error, INGOT_BAD_GAP, part, record);
        }
        at = record->offset + record->size;
    }
    uint8_t tail[8] = {0};
    INGOT_TRY(shard_read_at(part, tail, part->super.file_size - TRAILER_BYTES - at, at, error));
    if (!is_zero(tail, sizeof tail)) {
        return shard_error(error, INGOT_BAD_GAP, part, NULL, TRANSFER, NULL);
    }
    part->records = part->front + find_section(part, FOURCC_TIDX)->offset;
    part->sorted = part->front + find_section(part, FOURCC_TSRT)->offset;
    part->names = part->front + find_section(part, FOURCC_NAME)->offset;
    part->chunks = part->front + find_section(part, FOURCC_CHNK)->offset;
    part->ledger = part->front + find_section(part, FOURCC_LEDG)->offset;
    part->meta = (const char *)part->front + find_section(part, FOURCC_META)->offset;
    part->meta_size = find_section(part, FOURCC_META)->size;
    const section *roots = find_section(part, FOURCC_SHRD);
    const section *map = find_section(part, FOURCC_ZMAP);
    part->shard_roots = roots != NULL ? part->front + roots->offset : NULL;
    part->zmap = map != NULL ? part->front + map->offset : NULL;
    return INGOT_OK;
}

/* ---- names and tensor records -------------------------------------------------------------- */

static ingot_status read_names(shard *part, ingot_error *error) {
    char *store = part->name_store;
    uint64_t at = 0;
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        const uint8_t *bytes = part->records + i * RECORD_BYTES;
        const uint64_t length = load_le(bytes + 4, 2);
        if (load_le(bytes, 4) != at || length > part->names_size - at ||
            !tensor_name_is_legal((const char *)part->names + at, length)) {
            return shard_error(error, INGOT_BAD_NAME, part, NULL, TRANSFER, NULL);
        }
        memcpy(store, part->names + at, (size_t)length);
        store[length] = '\0';
        part->tensors[i].name = store;
        store += length + 1;
        at += length;
    }
    const char *previous = NULL;
    for (uint32_t i = 0; i < part->super.section_count; i++) {
        section *record = &part->sections[i];
        if (record->fourcc != FOURCC_FILE) {
            continue;
        }
        const uint64_t length = record->aux >> 32;
        if ((record->aux & UINT32_MAX) != at || length > part->names_size - at ||
            !file_name_is_legal((const char *)part->names + at, length)) {
            return shard_error(error, INGOT_BAD_NAME, part, NULL, TRANSFER, NULL);
        }
        memcpy(store, part->names + at, (size_t)length);
        store[length] = '\0';
        if (previous != NULL && strcmp(previous, store) >= 0) {
            return shard_error(error, INGOT_BAD_NAME, part, NULL, TRANSFER, NULL);
        }
        previous = store;
        store += length + 1;
        at += length;
    }
    return at == part->names_size ? INGOT_OK
                                  : shard_error(error, INGOT_BAD_NAME, part, NULL, TRANSFER, NULL);
}

static ingot_status decode_record(shard *part, uint64_t index, ingot_error *error) {
    const uint8_t *bytes = part->records + index * RECORD_BYTES;
    ingot_tensor *tensor = &part->tensors[index];
    tensor->kind = (ingot_kind)bytes[6];
    tensor->rank = bytes[7];
    for (unsigned i = 0; i < INGOT_MAX_RANK; i++) {
        tensor->dim[i] = load_le(bytes + 8 + 8 * i, 8);
    }
    tensor->dtype = (ingot_dtype)bytes[40];
    tensor->bits = bytes[41];
    tensor->scale_dtype = (ingot_dtype)bytes[42];
    tensor->zero_mode = (ingot_zero_mode)bytes[43];
    tensor->group = load_le(bytes + 44, 4);
    if (tensor->kind == INGOT_ALIAS) {
        tensor->alias_of = load_le(bytes + 48, 8);
    } else {
        tensor->outlier_count = load_le(bytes + 48, 8);
    }
    const char *reason = tensor_measure(tensor);
    if (reason == NULL && !is_zero(bytes + 128, 32)) {
        reason = "reserved bytes of the record are not zero";
    }
    return reason == NULL
               ? INGOT_OK
               : shard_error(error, INGOT_BAD_RECORD, part, tensor->name, TRANSFER, reason);
}

static ingot_status check_geometry(shard *part, ingot_error *error) {
    uint64_t data = 0;
    uint64_t chunk = 0;
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        INGOT_TRY(decode_record(part, i, error));
    }
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        const uint8_t *bytes = part->records + i * RECORD_BYTES;
        ingot_tensor *tensor = &part->tensors[i];
        tensor_place(tensor, &data, &chunk);
        bool is_canonical = load_le(bytes + 56, 8) == tensor->first_chunk &&
                            data <= part->data_size && chunk <= part->chunk_count;
        for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
            is_canonical = is_canonical &&
                           load_le(bytes + 64 + 16 * p, 8) == tensor->part_offset[p] &&
                           load_le(bytes + 72 + 16 * p, 8) == tensor->part_bytes[p];
        }
        if (!is_canonical) {
            return shard_error(error, INGOT_BAD_GEOMETRY, part, tensor->name, TRANSFER, NULL);
        }
    }
    return data == part->data_size && chunk == part->chunk_count
               ? INGOT_OK
               : shard_error(error, INGOT_BAD_GEOMETRY, part, NULL, TRANSFER, NULL);
}

static ingot_status check_aliases(shard *part, ingot_error *error) {
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        ingot_tensor *tensor = &part->tensors[i];
        if (tensor->kind != INGOT_ALIAS) {
            continue;
        }
        if (tensor->alias_of >= part->tensor_count ||
            part->tensors[tensor->alias_of].kind == INGOT_ALIAS) {
            return shard_error(error, INGOT_BAD_ALIAS, part, tensor->name, TRANSFER, NULL);
        }
        const ingot_tensor *target = &part->tensors[tensor->alias_of];
        if (tensor->rank != target->rank || tensor->dtype != target->dtype ||
            memcmp(tensor->dim, target->dim, sizeof tensor->dim) != 0 ||
            tensor->bits != target->bits || tensor->group != target->group ||
            tensor->scale_dtype != target->scale_dtype || tensor->zero_mode != target->zero_mode) {
            return shard_error(error, INGOT_BAD_ALIAS, part, tensor->name, TRANSFER, NULL);
        }
        tensor->groups_per_row = target->groups_per_row;
        tensor->row_stride_bytes = target->row_stride_bytes;
        tensor->outlier_count = target->outlier_count;
    }
    return INGOT_OK;
}

static ingot_status check_sorted(const shard *part, ingot_error *error) {
    const char *previous = NULL;
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        const uint64_t index = load_le(part->sorted + 4 * i, 4);
        if (index >= part->tensor_count ||
            (previous != NULL && strcmp(previous, part->tensors[index].name) >= 0)) {
            return shard_error(error, INGOT_BAD_SORT, part, NULL, TRANSFER, NULL);
        }
        previous = part->tensors[index].name;
    }
    return INGOT_OK;
}

static ingot_status check_ledger(const shard *part, ingot_error *error) {
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        if (!ledger_is_legal(part->ledger + i * LEDGER_BYTES)) {
            return shard_error(error, INGOT_BAD_LEDGER, part, part->tensors[i].name, TRANSFER,
                               NULL);
        }
    }
    return INGOT_OK;
}

/* ---- the map of a compressed file ------------------------------------------------------------ */

static uint64_t stored_offset(const shard *part, uint64_t chunk) {
    return load_le(part->zmap + chunk * ZMAP_BYTES, 8);
}

/* Restores the heap (greatest offset first) below `root`. */
static void sift_down(const shard *part, uint64_t *chunks, uint64_t root, uint64_t count) {
    for (uint64_t child = 2 * root + 1; child < count; child = 2 * root + 1) {
        if (child + 1 < count &&
            stored_offset(part, chunks[child]) < stored_offset(part, chunks[child + 1])) {
            child++;
        }
        if (stored_offset(part, chunks[root]) >= stored_offset(part, chunks[child])) {
            return;
        }
        const uint64_t moved = chunks[root];
        chunks[root] = chunks[child];
        chunks[child] = moved;
        root = child;
    }
}

/* Chunks in the order of their places in the file: in place and within n log n, which qsort does
 * not promise. */
static void sort_chunks(const shard *part) {
    uint64_t *chunks = part->chunk_order;
    const uint64_t count = part->chunk_count;
    bool is_sorted = true;
    for (uint64_t i = 0; i < count; i++) {
        chunks[i] = i;
        is_sorted = is_sorted && (i == 0 || stored_offset(part, i - 1) < stored_offset(part, i));
    }
    for (uint64_t root = is_sorted ? 0 : count / 2; root-- > 0;) {
        sift_down(part, chunks, root, count);
    }
    for (uint64_t left = is_sorted ? 0 : count; left-- > 1;) {
        const uint64_t greatest = chunks[0];
        chunks[0] = chunks[left];
        chunks[left] = greatest;
        sift_down(part, chunks, 0, left);
    }
}

/* Every chunk has a place of its own and together they fill the stored DATA exactly. */
static ingot_status check_zmap(const shard *part, ingot_error *error) {
    if (part->zmap == NULL) {
        return INGOT_OK;
    }
    sort_chunks(part);
    uint64_t at = 0;
    bool is_exact = true;
    for (uint64_t i = 0; i < part->chunk_count && is_exact; i++) {
        const uint8_t *entry = part->zmap + part->chunk_order[i] * ZMAP_BYTES;
        const uint64_t length = load_le(entry + 8, 4);
        is_exact = load_le(entry, 8) == at && length > 0 && length <= CHUNK_BYTES &&
                   load_le(entry + 12, 4) <= 1;
        at += length;
    }
    return is_exact && at == part->data_stored_size
               ? INGOT_OK
               : shard_error(error, INGOT_BAD_ZMAP, part, NULL, TRANSFER, NULL);
}

/* ---- both halves ------------------------------------------------------------------------------
 */

ingot_status shard_open_table(shard *part, const char *path, section sections[MAX_SECTIONS],
                              ingot_error *error) {
    uint64_t size = 0;
    *part = (shard){.fd = -1, .path = path, .sections = sections};
    INGOT_TRY(open_file(part, &size, error));
    INGOT_TRY(check_superblock(part, size, error));
    INGOT_TRY(read_section_table(part, error));
    INGOT_TRY(check_section_order(part, error));
    INGOT_TRY(check_section_bounds(part, error));
    return check_section_sizes(part, error);
}

void shard_take_memory(shard *part, block *memory) {
    const uint32_t sections = part->super.section_count;
    const bool has_map = find_section(part, FOURCC_ZMAP) != NULL;
    const size_t path_size = strlen(part->path) + 1;
    char *path = block_take(memory, path_size);
    section *table = block_take(memory, sections * sizeof *table);
    part->front = block_take(memory, part->data_offset);
    part->tensors = block_take(memory, part->tensor_count * sizeof *part->tensors);
    part->name_store = block_take(memory, part->names_size + part->tensor_count + sections);
    part->chunk_order =
        has_map ? block_take(memory, part->chunk_count * sizeof *part->chunk_order) : NULL;
    if (block_is_enough(memory)) {
        part->path = memcpy(path, part->path, path_size);
        part->sections = memcpy(table, part->sections, sections * sizeof *table);
    }
}

ingot_status shard_open_rest(shard *part, block *memory, ingot_error *error) {
    shard_take_memory(part, memory);
    if (!block_is_enough(memory)) {
        return ingot_error_set(error, INGOT_ERR_IO, part->path, NULL, "try again",
                               "the file changed while it was opened");
    }
    INGOT_TRY(read_front(part, error));
    INGOT_TRY(read_names(part, error));
    INGOT_TRY(check_geometry(part, error));
    INGOT_TRY(check_aliases(part, error));
    INGOT_TRY(check_sorted(part, error));
    INGOT_TRY(check_ledger(part, error));
    return check_zmap(part, error);
}
