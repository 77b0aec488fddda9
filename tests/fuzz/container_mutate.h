/* Repair and structure-aware mutation of container images, shared by the fuzz targets whose input
 * is a container (spec/container.md).  A mutation changes fields where fields are; the repair then
 * makes frame and digests match, so that the rules behind the digests are reached. */
#ifndef INGOT_FUZZ_CONTAINER_MUTATE_H
#define INGOT_FUZZ_CONTAINER_MUTATE_H

#include "format/container_internal.h"
#include "format/digest.h"

#include <zstd.h>

/* libFuzzer's own mutations; not there in a replay. */
__attribute__((weak)) size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* ---- repair ---------------------------------------------------------------------------------- */

/* Bytes at [offset, offset + size) of the file, NULL if they are not all there. */
static uint8_t *range(uint8_t *bytes, size_t total, uint64_t offset, uint64_t size) {
    return offset <= total && size <= total - offset ? bytes + offset : NULL;
}

static const uint8_t *find(const uint8_t *bytes, uint64_t count, uint32_t fourcc) {
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *entry = bytes + SUPERBLOCK_BYTES + i * SECTION_BYTES;
        if (load_le(entry, 4) == fourcc) {
            return entry;
        }
    }
    return NULL;
}

static uint8_t *section_bytes(uint8_t *bytes, size_t total, const uint8_t *entry) {
    return entry == NULL ? NULL
                         : range(bytes, total, load_le(entry + 8, 8), load_le(entry + 16, 8));
}

/* Digests of stored and of decoded chunks of a compressed file. */
static void repair_stored(uint8_t *data, uint64_t data_size, uint8_t *map, uint64_t map_size,
                          uint8_t *chunks, uint64_t chunk_count) {
    static uint8_t decoded[CHUNK_BYTES];
    for (uint64_t i = 0; i < chunk_count && (i + 1) * ZMAP_BYTES <= map_size; i++) {
        uint8_t *entry = map + i * ZMAP_BYTES;
        const uint64_t length = load_le(entry + 8, 4);
        const uint8_t *stored = range(data, (size_t)data_size, load_le(entry, 8), length);
        if (stored == NULL) {
            continue;
        }
        store_le(entry + 16, ingot_digest64(stored, length), 8);
        if (load_le(entry + 12, 4) == 0) {
            store_le(chunks + 8 * i, ingot_digest64(stored, length), 8);
            continue;
        }
        const size_t got = ZSTD_decompress(decoded, sizeof decoded, stored, (size_t)length);
        if (ZSTD_isError(got) == 0) {
            store_le(chunks + 8 * i, ingot_digest64(decoded, got), 8);
        }
    }
}

static void repair_chunks(uint8_t *data, uint64_t data_size, const uint8_t *records,
                          uint64_t records_size, uint8_t *chunks, uint64_t chunk_count) {
    for (uint64_t at = 0; at + RECORD_BYTES <= records_size; at += RECORD_BYTES) {
        uint64_t chunk = load_le(records + at + 56, 8);
        for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
            const uint64_t offset = load_le(records + at + 64 + 16 * p, 8);
            const uint64_t bytes = load_le(records + at + 72 + 16 * p, 8);
            for (uint64_t done = 0; done < bytes && chunk < chunk_count; done += CHUNK_BYTES) {
                const uint64_t length = ingot_min_u64(CHUNK_BYTES, bytes - done);
                uint64_t start;
                const uint8_t *piece = NULL;
                if (ingot_size_add(&start, offset, done)) {
                    piece = range(data, (size_t)data_size, start, length);
                }
                if (piece == NULL) {
                    return;
                }
                store_le(chunks + 8 * chunk++, ingot_digest64(piece, length), 8);
            }
        }
    }
}

static void repair_data(uint8_t *bytes, size_t size, uint64_t count) {
    const uint8_t *data_entry = find(bytes, count, FOURCC_DATA);
    const uint8_t *chunk_entry = find(bytes, count, FOURCC_CHNK);
    const uint8_t *record_entry = find(bytes, count, FOURCC_TIDX);
    const uint8_t *map_entry = find(bytes, count, FOURCC_ZMAP);
    uint8_t *data = section_bytes(bytes, size, data_entry);
    uint8_t *chunks = section_bytes(bytes, size, chunk_entry);
    uint8_t *records = section_bytes(bytes, size, record_entry);
    uint8_t *map = section_bytes(bytes, size, map_entry);
    if (data == NULL || chunks == NULL || records == NULL) {
        return;
    }
    const uint64_t data_size = load_le(data_entry + 16, 8);
    const uint64_t chunk_count = load_le(chunk_entry + 16, 8) / 8;
    if (map != NULL) {
        repair_stored(data, data_size, map, load_le(map_entry + 16, 8), chunks, chunk_count);
    } else {
        repair_chunks(data, data_size, records, load_le(record_entry + 16, 8), chunks, chunk_count);
    }
}

static void repair(uint8_t *bytes, size_t size) {
    if (size < SUPERBLOCK_BYTES + TRAILER_BYTES) {
        return;
    }
    memcpy(bytes, ingot_container_magic, 8);
    store_le(bytes + 16, size, 8);
    const uint64_t most = (size - SUPERBLOCK_BYTES - TRAILER_BYTES) / SECTION_BYTES;
    const uint64_t count = ingot_min_u64(load_le(bytes + 56, 4), ingot_min_u64(most, MAX_SECTIONS));
    repair_data(bytes, size, count);
    for (uint64_t i = 0; i < count; i++) {
        uint8_t *entry = bytes + SUPERBLOCK_BYTES + i * SECTION_BYTES;
        const uint8_t *content = section_bytes(bytes, size, entry);
        if (content != NULL && load_le(entry, 4) != FOURCC_DATA) {
            ingot_digest128(entry + 32, content, load_le(entry + 16, 8));
        }
    }
    ingot_digest128(bytes + 88, bytes + SUPERBLOCK_BYTES, count * SECTION_BYTES);
    store_le(bytes + 120, ingot_digest64(bytes, 120), 8);
    uint8_t *trailer = bytes + size - TRAILER_BYTES;
    memcpy(trailer, bytes + 88, 16);
    store_le(trailer + 16, size, 8);
    memcpy(trailer + 24, ingot_container_end, 8);
}

/* ---- mutation -------------------------------------------------------------------------------- */

typedef struct mutation {
    uint8_t *bytes;
    size_t size, max_size;
    uint64_t state; /* of the generator */
} mutation;

static uint64_t next_random(mutation *m) {
    m->state ^= m->state << 13;
    m->state ^= m->state >> 7;
    m->state ^= m->state << 17;
    return m->state;
}

static uint64_t below(mutation *m, uint64_t limit) {
    return limit == 0 ? 0 : next_random(m) % limit;
}

/* A value where rules have their edges, or next to the old one. */
static uint64_t other_value(mutation *m, uint64_t old) {
    static const uint64_t edges[] = {0,
                                     1,
                                     2,
                                     3,
                                     4,
                                     7,
                                     8,
                                     9,
                                     16,
                                     255,
                                     256,
                                     4096,
                                     65535,
                                     65536,
                                     UINT64_C(1) << 20,
                                     UINT32_MAX,
                                     UINT64_C(1) << 32,
                                     UINT64_C(1) << 48,
                                     UINT64_C(1) << 63,
                                     UINT64_MAX};
    switch (below(m, 6)) {
    case 0:
        return old + 1;
    case 1:
        return old - 1;
    case 2:
        return old ^ UINT64_C(1) << below(m, 64);
    case 3:
        return old + 8 * below(m, 600);
    case 4:
        return next_random(m) >> below(m, 64);
    default:
        return edges[below(m, sizeof edges / sizeof *edges)];
    }
}

static void change_field(mutation *m, uint8_t *base, const uint8_t *fields, size_t field_count) {
    const size_t which = (size_t)below(m, field_count);
    uint8_t *at = base + fields[2 * which];
    const unsigned width = fields[2 * which + 1];
    store_le(at, other_value(m, load_le(at, width)), width);
}

/* offset, width */
static const uint8_t superblock_fields[] = {8,  2, 10, 2, 12, 4, 16, 8, 24, 8, 32, 8, 40,  8, 48, 8,
                                            56, 4, 60, 4, 64, 4, 68, 4, 72, 8, 88, 8, 104, 8};
static const uint8_t section_fields[] = {0, 4, 4, 4, 8, 8, 16, 8, 24, 8, 32, 8};
static const uint8_t record_fields[] = {0,  4, 4,  2, 6,  1, 7,  1, 8,   8, 16,  8, 24,  8, 32,  8,
                                        40, 1, 41, 1, 42, 1, 43, 1, 44,  4, 48,  8, 56,  8, 64,  8,
                                        72, 8, 80, 8, 88, 8, 96, 8, 104, 8, 112, 8, 120, 8, 128, 8};
static const uint8_t ledger_fields[] = {0,  1, 1,  1, 2,  1, 3,  1, 4,  4, 8,  4, 12, 4, 16, 8,
                                        24, 8, 32, 8, 40, 8, 48, 8, 56, 8, 64, 8, 72, 8, 88, 8};
static const uint8_t zmap_fields[] = {0, 8, 8, 4, 12, 4, 16, 8};

static uint64_t section_count_of(const uint8_t *bytes, size_t size) {
    const uint64_t most = (size - SUPERBLOCK_BYTES - TRAILER_BYTES) / SECTION_BYTES;
    return ingot_min_u64(load_le(bytes + 56, 4), ingot_min_u64(most, MAX_SECTIONS));
}

/* The section of a type and its size; NULL where it is not there or empty. */
static uint8_t *section_of(const mutation *m, uint32_t fourcc, uint64_t *size) {
    const uint8_t *entry = find(m->bytes, section_count_of(m->bytes, m->size), fourcc);
    *size = entry == NULL ? 0 : load_le(entry + 16, 8);
    return *size == 0 ? NULL : section_bytes(m->bytes, m->size, entry);
}

/* A field of one record of a section of records. */
static void change_record(mutation *m, uint32_t fourcc, uint64_t stride, const uint8_t *fields,
                          size_t field_count) {
    uint64_t size;
    uint8_t *records = section_of(m, fourcc, &size);
    if (records != NULL && size >= stride) {
        change_field(m, records + stride * below(m, size / stride), fields, field_count);
    }
}

static void swap_records(mutation *m, uint8_t *records, uint64_t count, uint64_t stride) {
    if (count < 2) {
        return;
    }
    uint8_t *a = records + stride * below(m, count);
    uint8_t *b = records + stride * below(m, count);
    for (uint64_t i = 0; i < stride; i++) {
        const uint8_t byte = a[i];
        a[i] = b[i];
        b[i] = byte;
    }
}

/* Bytes of any section, its size kept. */
static void change_content(mutation *m) {
    const uint64_t count = section_count_of(m->bytes, m->size);
    if (count == 0) {
        return;
    }
    const uint8_t *entry = m->bytes + SUPERBLOCK_BYTES + SECTION_BYTES * below(m, count);
    uint8_t *content = section_bytes(m->bytes, m->size, entry);
    const uint64_t size = load_le(entry + 16, 8);
    if (content == NULL || size == 0) {
        return;
    }
    if (LLVMFuzzerMutate != NULL && below(m, 2) == 0) {
        (void)LLVMFuzzerMutate(content, (size_t)size, (size_t)size);
        return;
    }
    const uint64_t width = ingot_min_u64(1 + below(m, 8), size);
    uint8_t *at = content + below(m, size - width + 1);
    store_le(at, other_value(m, load_le(at, (unsigned)width)), (unsigned)width);
}

/* Gives every tensor the parts that follow from its shape, and DATA the size that follows from
 * them, so that changed shapes get as far as the rules of the values. */
static void lay_out_again(mutation *m) {
    uint64_t records_size, offset = 0, chunk = 0;
    uint8_t *records = section_of(m, FOURCC_TIDX, &records_size);
    const uint64_t count = section_count_of(m->bytes, m->size);
    if (records == NULL) {
        return;
    }
    uint8_t *entry = m->bytes + SUPERBLOCK_BYTES + SECTION_BYTES * (count - 1);
    if (load_le(entry, 4) != FOURCC_DATA || find(m->bytes, count, FOURCC_ZMAP) != NULL) {
        return;
    }
    for (uint64_t at = 0; at + RECORD_BYTES <= records_size; at += RECORD_BYTES) {
        uint8_t *bytes = records + at;
        ingot_tensor tensor = {.kind = (ingot_kind)bytes[6],
                               .rank = bytes[7],
                               .dtype = (ingot_dtype)bytes[40],
                               .bits = bytes[41],
                               .scale_dtype = (ingot_dtype)bytes[42],
                               .zero_mode = (ingot_zero_mode)bytes[43],
                               .group = load_le(bytes + 44, 4),
                               .outlier_count = load_le(bytes + 48, 8)};
        for (unsigned i = 0; i < INGOT_MAX_RANK; i++) {
            tensor.dim[i] = load_le(bytes + 8 + 8 * i, 8);
        }
        if (tensor_measure(&tensor) != NULL) {
            return;
        }
        tensor_place(&tensor, &offset, &chunk);
        store_le(bytes + 56, tensor.first_chunk, 8);
        for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
            store_le(bytes + 64 + 16 * p, tensor.part_offset[p], 8);
            store_le(bytes + 72 + 16 * p, tensor.part_bytes[p], 8);
        }
    }
    const uint64_t start = load_le(entry + 8, 8);
    if (start > m->size || offset > m->max_size ||
        start + offset + 8 + TRAILER_BYTES > m->max_size) {
        return;
    }
    const size_t size = (size_t)((start + offset + 7) / 8 * 8 + TRAILER_BYTES);
    if (size > m->size) {
        memset(m->bytes + m->size - TRAILER_BYTES, 0, size - m->size + TRAILER_BYTES);
    }
    memset(m->bytes + start + offset, 0, size - (size_t)(start + offset));
    m->size = size;
    store_le(entry + 16, offset, 8);
    store_le(entry + 24, offset, 8);
}

static void mutate_once(mutation *m) {
    const uint64_t count = section_count_of(m->bytes, m->size);
    uint64_t size;
    uint8_t *records;
    switch (below(m, 12)) {
    case 0:
        change_field(m, m->bytes, superblock_fields, sizeof superblock_fields / 2);
        break;
    case 1:
        if (count > 0) {
            change_field(m, m->bytes + SUPERBLOCK_BYTES + SECTION_BYTES * below(m, count),
                         section_fields, sizeof section_fields / 2);
        }
        break;
    case 2:
        swap_records(m, m->bytes + SUPERBLOCK_BYTES, count, SECTION_BYTES);
        break;
    case 3:
        records = section_of(m, FOURCC_TIDX, &size);
        if (records != NULL) {
            swap_records(m, records, size / RECORD_BYTES, RECORD_BYTES);
        }
        break;
    case 4:
    case 5:
        change_record(m, FOURCC_TIDX, RECORD_BYTES, record_fields, sizeof record_fields / 2);
        break;
    case 6:
        change_record(m, FOURCC_TIDX, RECORD_BYTES, record_fields, sizeof record_fields / 2);
        lay_out_again(m);
        break;
    case 7:
        change_record(m, FOURCC_LEDG, LEDGER_BYTES, ledger_fields, sizeof ledger_fields / 2);
        break;
    case 8:
        change_record(m, FOURCC_ZMAP, ZMAP_BYTES, zmap_fields, sizeof zmap_fields / 2);
        break;
    default:
        change_content(m);
        break;
    }
}

/* The custom mutator of a target whose input is a container. */
static size_t container_mutate(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    mutation m = {.bytes = data,
                  .size = size,
                  .max_size = max_size,
                  .state = (uint64_t)seed * UINT64_C(0x9E3779B97F4A7C15) + 1};
    (void)next_random(&m);
    const bool is_image = size >= SUPERBLOCK_BYTES + TRAILER_BYTES;
    if (!is_image || (LLVMFuzzerMutate != NULL && below(&m, 8) == 0)) {
        return LLVMFuzzerMutate != NULL ? LLVMFuzzerMutate(data, size, max_size) : size;
    }
    for (uint64_t n = 1 + below(&m, 3); n > 0; n--) {
        mutate_once(&m);
    }
    if (below(&m, 8) != 0) {
        repair(m.bytes, m.size);
    }
    return m.size;
}

#endif
