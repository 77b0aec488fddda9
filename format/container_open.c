/* Opening a container: the numbered reader algorithm of spec/container.md up to, not including,
 * DATA.  Rules are checked in the order of their codes, so that every reader reports the same
 * first error.
 *
 * Invariants once a shard is open: every size was recomputed from the shape; parts and chunks lie
 * at their canonical offsets inside DATA; names are legal, unique and NUL-terminated; no allocation
 * was larger than the file. */
#include "format/container_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#define TRANSFER "copy or download the file again"

static ingot_status bad(ingot_error *error, ingot_status code, const shard *part,
                        const char *tensor, const char *remedy, const char *reason) {
    return ingot_error_set(error, code, part->path, tensor, remedy, "%s",
                           reason != NULL ? reason : ingot_status_text(code));
}

static void digest_of(uint8_t digest[16], const uint8_t *bytes, uint64_t size) {
    const XXH128_hash_t hash = XXH3_128bits(bytes, (size_t)size);
    store_le(digest, hash.low64, 8);
    store_le(digest + 8, hash.high64, 8);
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
        return ingot_error_set(error, INGOT_ERR_INPUT, part->path, NULL, "name a container file",
                               "is not a regular file");
    }
    *size = (uint64_t)info.st_size;
    return INGOT_OK;
}

static ingot_status check_superblock(shard *part, uint64_t size, ingot_error *error) {
    uint8_t bytes[SUPERBLOCK_BYTES] = {0};
    superblock *super = &part->super;
    if (size < SUPERBLOCK_BYTES + TRAILER_BYTES) {
        return bad(error, INGOT_BAD_TOO_SHORT, part, NULL, TRANSFER, NULL);
    }
    INGOT_TRY(shard_read_at(part, bytes, SUPERBLOCK_BYTES, 0, error));
    if (memcmp(bytes, ingot_container_magic, 8) != 0) {
        return bad(error, INGOT_BAD_MAGIC, part, NULL, "is this an Ingot container?", NULL);
    }
    if (load_le(bytes + 120, 8) != XXH3_64bits(bytes, 120)) {
        return bad(error, INGOT_BAD_SUPERBLOCK_DIGEST, part, NULL, TRANSFER, NULL);
    }
    superblock_decode(super, bytes);
    if (super->major != 1) {
        return bad(error, INGOT_BAD_VERSION, part, NULL, "use a newer Ingot", NULL);
    }
    if ((super->incompat & ~KNOWN_INCOMPAT) != 0) {
        return bad(error, INGOT_BAD_INCOMPAT, part, NULL, "use a newer Ingot", NULL);
    }
    if (load_le(bytes + 12, 4) != SUPERBLOCK_BYTES || super->table_offset != SUPERBLOCK_BYTES ||
        super->section_count > MAX_SECTIONS || super->profile > 2 || super->shard_count < 1 ||
        super->shard_count > MAX_SHARDS || super->shard_index >= super->shard_count ||
        super->file_size > MAX_FILE_BYTES || !is_zero(bytes + 104, 16)) {
        return bad(error, INGOT_BAD_SUPERBLOCK, part, NULL, TRANSFER, NULL);
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
        return bad(error, INGOT_BAD_TRAILER, part, NULL, TRANSFER, NULL);
    }
    return INGOT_OK;
}

static ingot_status read_section_table(shard *part, ingot_error *error) {
    const uint32_t count = part->super.section_count;
    const uint64_t bytes = (uint64_t)count * SECTION_BYTES;
    uint8_t table[MAX_SECTIONS * SECTION_BYTES];
    if (SUPERBLOCK_BYTES + bytes + TRAILER_BYTES > part->super.file_size) {
        return bad(error, INGOT_BAD_TABLE, part, NULL, TRANSFER, NULL);
    }
    INGOT_TRY(shard_read_at(part, table, bytes, SUPERBLOCK_BYTES, error));
    uint8_t root[16];
    digest_of(root, table, bytes);
    if (memcmp(root, part->super.root, 16) != 0) {
        return bad(error, INGOT_BAD_ROOT, part, NULL, TRANSFER, NULL);
    }
    part->sections = calloc(count + 1, sizeof *part->sections);
    if (part->sections == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, NULL, NULL, "out of memory");
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
    return is_complete ? INGOT_OK : bad(error, INGOT_BAD_SECTION_ORDER, part, NULL, TRANSFER, NULL);
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
        return bad(error, INGOT_BAD_SECTION_BOUNDS, part, NULL, TRANSFER, NULL);
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
    return is_legal ? INGOT_OK : bad(error, INGOT_BAD_SECTION_SIZE, part, NULL, TRANSFER, NULL);
}

static ingot_status read_front(shard *part, ingot_error *error) {
    const uint32_t count = part->super.section_count;
    part->front = malloc((size_t)part->data_offset + 1);
    if (part->front == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, NULL, NULL, "out of memory");
    }
    INGOT_TRY(shard_read_at(part, part->front, part->data_offset, 0, error));
    for (uint32_t i = 0; i + 1 < count; i++) {
        uint8_t digest[16];
        const section *record = &part->sections[i];
        digest_of(digest, part->front + record->offset, record->size);
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
        return bad(error, INGOT_BAD_GAP, part, NULL, TRANSFER, NULL);
    }
    part->records = part->front + find_section(part, FOURCC_TIDX)->offset;
    part->sorted = part->front + find_section(part, FOURCC_TSRT)->offset;
    part->names = part->front + find_section(part, FOURCC_NAME)->offset;
    part->names_size = find_section(part, FOURCC_NAME)->size;
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
    part->tensors = calloc(part->tensor_count + 1, sizeof *part->tensors);
    part->name_store = malloc((size_t)(part->names_size + part->tensor_count + MAX_SECTIONS));
    if (part->tensors == NULL || part->name_store == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, NULL, NULL, "out of memory");
    }
    char *store = part->name_store;
    uint64_t at = 0;
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        const uint8_t *bytes = part->records + i * RECORD_BYTES;
        const uint64_t length = load_le(bytes + 4, 2);
        if (load_le(bytes, 4) != at || length > part->names_size - at ||
            !tensor_name_is_legal((const char *)part->names + at, length)) {
            return bad(error, INGOT_BAD_NAME, part, NULL, TRANSFER, NULL);
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
            return bad(error, INGOT_BAD_NAME, part, NULL, TRANSFER, NULL);
        }
        memcpy(store, part->names + at, (size_t)length);
        store[length] = '\0';
        if (previous != NULL && strcmp(previous, store) >= 0) {
            return bad(error, INGOT_BAD_NAME, part, NULL, TRANSFER, NULL);
        }
        previous = store;
        store += length + 1;
        at += length;
    }
    return at == part->names_size ? INGOT_OK
                                  : bad(error, INGOT_BAD_NAME, part, NULL, TRANSFER, NULL);
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
    return reason == NULL ? INGOT_OK
                          : bad(error, INGOT_BAD_RECORD, part, tensor->name, TRANSFER, reason);
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
            return bad(error, INGOT_BAD_GEOMETRY, part, tensor->name, TRANSFER, NULL);
        }
    }
    return data == part->data_size && chunk == part->chunk_count
               ? INGOT_OK
               : bad(error, INGOT_BAD_GEOMETRY, part, NULL, TRANSFER, NULL);
}

static ingot_status check_aliases(shard *part, ingot_error *error) {
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        ingot_tensor *tensor = &part->tensors[i];
        if (tensor->kind != INGOT_ALIAS) {
            continue;
        }
        if (tensor->alias_of >= part->tensor_count ||
            part->tensors[tensor->alias_of].kind == INGOT_ALIAS) {
            return bad(error, INGOT_BAD_ALIAS, part, tensor->name, TRANSFER, NULL);
        }
        const ingot_tensor *target = &part->tensors[tensor->alias_of];
        if (tensor->rank != target->rank || tensor->dtype != target->dtype ||
            memcmp(tensor->dim, target->dim, sizeof tensor->dim) != 0 ||
            tensor->bits != target->bits || tensor->group != target->group ||
            tensor->scale_dtype != target->scale_dtype || tensor->zero_mode != target->zero_mode) {
            return bad(error, INGOT_BAD_ALIAS, part, tensor->name, TRANSFER, NULL);
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
            return bad(error, INGOT_BAD_SORT, part, NULL, TRANSFER, NULL);
        }
        previous = part->tensors[index].name;
    }
    return INGOT_OK;
}

static ingot_status check_ledger(const shard *part, ingot_error *error) {
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        if (!ledger_is_legal(part->ledger + i * LEDGER_BYTES)) {
            return bad(error, INGOT_BAD_LEDGER, part, part->tensors[i].name, TRANSFER, NULL);
        }
    }
    return INGOT_OK;
}

/* Every chunk has a place of its own and together they fill the stored DATA exactly. */
static int compare_offsets(const void *a, const void *b) {
    const uint64_t left = load_le((const uint8_t *)a, 8);
    const uint64_t right = load_le((const uint8_t *)b, 8);
    return left < right ? -1 : left > right;
}

static ingot_status check_zmap(const shard *part, ingot_error *error) {
    if (part->zmap == NULL) {
        return INGOT_OK;
    }
    uint8_t *map = malloc((size_t)(part->chunk_count * ZMAP_BYTES) + 1);
    if (map == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, NULL, NULL, "out of memory");
    }
    memcpy(map, part->zmap, (size_t)(part->chunk_count * ZMAP_BYTES));
    qsort(map, (size_t)part->chunk_count, ZMAP_BYTES, compare_offsets);
    uint64_t at = 0;
    bool is_exact = true;
    for (uint64_t i = 0; i < part->chunk_count && is_exact; i++) {
        const uint8_t *entry = map + i * ZMAP_BYTES;
        const uint64_t length = load_le(entry + 8, 4);
        is_exact = load_le(entry, 8) == at && length > 0 && length <= CHUNK_BYTES &&
                   load_le(entry + 12, 4) <= 1;
        at += length;
    }
    free(map);
    return is_exact && at == part->data_stored_size
               ? INGOT_OK
               : bad(error, INGOT_BAD_ZMAP, part, NULL, TRANSFER, NULL);
}

static ingot_status open_shard(shard *part, const char *path, ingot_error *error) {
    uint64_t size = 0;
    part->fd = -1;
    part->path = strdup(path);
    if (part->path == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
    }
    INGOT_TRY(open_file(part, &size, error));
    INGOT_TRY(check_superblock(part, size, error));
    INGOT_TRY(read_section_table(part, error));
    INGOT_TRY(check_section_order(part, error));
    INGOT_TRY(check_section_bounds(part, error));
    INGOT_TRY(check_section_sizes(part, error));
    INGOT_TRY(read_front(part, error));
    INGOT_TRY(read_names(part, error));
    INGOT_TRY(check_geometry(part, error));
    INGOT_TRY(check_aliases(part, error));
    INGOT_TRY(check_sorted(part, error));
    INGOT_TRY(check_ledger(part, error));
    return check_zmap(part, error);
}

static void close_shard(shard *part) {
    if (part->fd >= 0) {
        (void)close(part->fd);
    }
    free(part->path);
    free(part->front);
    free(part->sections);
    free(part->tensors);
    free(part->name_store);
}

/* ---- the set -------------------------------------------------------------------------------- */

static ingot_status open_siblings(ingot_container *container, const char *path,
                                  ingot_error *error) {
    const shard *first = &container->shards[0];
    const uint32_t count = container->shard_count;
    for (uint32_t i = 1; i < count; i++) {
        shard *part = &container->shards[i];
        char *sibling = shard_path_sibling(path, i, count);
        if (sibling == NULL || access(sibling, F_OK) != 0) {
            const ingot_status status = ingot_error_set(
                error, INGOT_BAD_SHARD_MISSING, sibling != NULL ? sibling : path, NULL,
                "put all shards of the set into one folder under their own names",
                "shard %u of %u is missing", i + 1, count);
            free(sibling);
            return status;
        }
        const ingot_status status = open_shard(part, sibling, error);
        free(sibling);
        INGOT_TRY(status);
        if (part->super.shard_index != i || part->super.shard_count != count ||
            part->super.profile != first->super.profile ||
            memcmp(part->super.set_id, first->super.set_id, 16) != 0 ||
            part->meta_size != first->meta_size ||
            memcmp(part->meta, first->meta, (size_t)first->meta_size) != 0 ||
            memcmp(part->super.root, first->shard_roots + (i - 1) * 16, 16) != 0) {
            return bad(error, INGOT_BAD_SHARD, part, NULL, "do not mix shards of different sets",
                       NULL);
        }
    }
    return INGOT_OK;
}

static int compare_names(const void *a, const void *b, void *context) {
    const ingot_container *container = context;
    return strcmp(ingot_tensor_at(container, *(const uint32_t *)a)->name,
                  ingot_tensor_at(container, *(const uint32_t *)b)->name);
}

/* Within a shard its own index proves that names are unique; over the set a common index does. */
static ingot_status merge_index(ingot_container *container, ingot_error *error) {
    const uint64_t count = container->tensor_count;
    if (container->shard_count == 1) {
        return INGOT_OK;
    }
    container->sorted = malloc((size_t)(count + 1) * sizeof *container->sorted);
    if (container->sorted == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, container->shards[0].path, NULL, NULL,
                               "out of memory");
    }
    for (uint32_t i = 0; i < count; i++) {
        container->sorted[i] = i;
    }
    qsort_r(container->sorted, (size_t)count, sizeof *container->sorted, compare_names, container);
    for (uint64_t i = 1; i < count; i++) {
        const uint32_t *pair = container->sorted + i - 1;
        if (compare_names(pair, pair + 1, container) == 0) {
            const shard *part = shard_of_tensor(container, ingot_max_u64(pair[0], pair[1]));
            return bad(error, INGOT_BAD_SHARD, part, ingot_tensor_at(container, pair[0])->name,
                       TRANSFER, "a tensor stands in two shards");
        }
    }
    return INGOT_OK;
}

static ingot_status collect_files(ingot_container *container, ingot_error *error) {
    const shard *part = &container->shards[0];
    const char *name = part->name_store;
    for (uint64_t i = 0; i < part->tensor_count; i++) {
        name += strlen(name) + 1;
    }
    container->files = calloc(MAX_SECTIONS, sizeof *container->files);
    if (container->files == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, part->path, NULL, NULL, "out of memory");
    }
    for (uint32_t i = 0; i < part->super.section_count; i++) {
        const section *record = &part->sections[i];
        if (record->fourcc == FOURCC_FILE) {
            container->files[container->file_count++] =
                (file_entry){name, part->front + record->offset, record->size};
            name += strlen(name) + 1;
        }
    }
    return INGOT_OK;
}

static ingot_status open_set(ingot_container *container, const char *path, ingot_error *error) {
    container->shards = calloc(1, sizeof *container->shards);
    if (container->shards == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
    }
    container->shard_count = 1;
    INGOT_TRY(open_shard(&container->shards[0], path, error));
    const superblock super = container->shards[0].super;
    if (super.shard_count > 1) {
        close_shard(&container->shards[0]);
        free(container->shards);
        container->shard_count = 0;
        container->shards = calloc(super.shard_count, sizeof *container->shards);
        if (container->shards == NULL) {
            return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
        }
        for (uint32_t i = 0; i < super.shard_count; i++) {
            container->shards[i].fd = -1;
        }
        container->shard_count = super.shard_count;
        char *first = shard_path_sibling(path, 0, super.shard_count);
        if (first == NULL || access(first, F_OK) != 0) {
            const ingot_status status =
                ingot_error_set(error, INGOT_BAD_SHARD_MISSING, first != NULL ? first : path, NULL,
                                "put all shards of the set into one folder under their own names",
                                "the first shard of the set is missing");
            free(first);
            return status;
        }
        const ingot_status status = open_shard(&container->shards[0], first, error);
        free(first);
        INGOT_TRY(status);
        if (container->shards[0].super.shard_index != 0 ||
            container->shards[0].super.shard_count != super.shard_count) {
            return bad(error, INGOT_BAD_SHARD, &container->shards[0], NULL,
                       "do not mix shards of different sets", NULL);
        }
        INGOT_TRY(open_siblings(container, path, error));
    }
    for (uint32_t i = 0; i < container->shard_count; i++) {
        container->shards[i].first_tensor = container->tensor_count;
        container->tensor_count += container->shards[i].tensor_count;
        for (uint64_t t = 0; t < container->shards[i].tensor_count; t++) {
            /* From here on targets are counted over the whole set. */
            if (container->shards[i].tensors[t].kind == INGOT_ALIAS) {
                container->shards[i].tensors[t].alias_of += container->shards[i].first_tensor;
            }
        }
    }
    if (container->tensor_count > MAX_TENSORS) {
        return bad(error, INGOT_BAD_SHARD, &container->shards[0], NULL, TRANSFER,
                   "the set holds more tensors than the format allows");
    }
    INGOT_TRY(merge_index(container, error));
    INGOT_TRY(collect_files(container, error));
    return content_id_compute(container->content_id, container->shards, container->shard_count);
}

ingot_status ingot_open(ingot_container **out, const char *path, ingot_error *error) {
    *out = NULL;
    ingot_container *container = calloc(1, sizeof *container);
    if (container == NULL) {
        return ingot_error_set(error, INGOT_ERR_NO_MEMORY, path, NULL, NULL, "out of memory");
    }
    const ingot_status status = open_set(container, path, error);
    if (status != INGOT_OK) {
        ingot_close(container);
        return status;
    }
    *out = container;
    return INGOT_OK;
}

void ingot_close(ingot_container *container) {
    if (container == NULL) {
        return;
    }
    for (uint32_t i = 0; i < container->shard_count; i++) {
        close_shard(&container->shards[i]);
    }
    free(container->shards);
    free(container->files);
    free(container->sorted);
    free(container);
}

bool ingot_is_container(const char *path) {
    uint8_t bytes[8];
    const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) {
        return false;
    }
    const ssize_t got = pread(fd, bytes, sizeof bytes, 0);
    (void)close(fd);
    return got == (ssize_t)sizeof bytes && memcmp(bytes, ingot_container_magic, 8) == 0;
}
