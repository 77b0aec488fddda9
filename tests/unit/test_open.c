/* What opening a container costs: one allocation whatever it holds, none for a file that is refused
 * by its superblock or section table, and everything given back. */
#include "suite.h"

#include "format/container_internal.h"
#include "format/container_write.h"
#include "format/digest.h"

#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>

/* ---- counting -------------------------------------------------------------------------------- */

static atomic_bool is_counting;
static atomic_ullong allocations, allocated_bytes, releases;

static void count_allocation(size_t size) {
    if (atomic_load(&is_counting)) {
        atomic_fetch_add(&allocations, 1);
        atomic_fetch_add(&allocated_bytes, size);
    }
}

static void count_release(const volatile void *memory) {
    if (memory != NULL && atomic_load(&is_counting)) {
        atomic_fetch_add(&releases, 1);
    }
}

#if defined(__SANITIZE_ADDRESS__)

int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void *, size_t),
                                              void (*on_free)(const volatile void *));

static void on_allocation(const volatile void *memory, size_t size) {
    (void)memory;
    count_allocation(size);
}

static bool watch(void) {
    return __sanitizer_install_malloc_and_free_hooks(on_allocation, count_release) != 0;
}

#else

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *memory);

void *malloc(size_t size) {
    count_allocation(size);
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
    count_allocation(count * size);
    return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
    count_allocation(size);
    return __libc_realloc(old, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
    count_allocation(size);
    return __libc_memalign(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    count_allocation(size);
    *out = __libc_memalign(alignment, size);
    return *out == NULL ? ENOMEM : 0;
}

void free(void *memory) {
    count_release(memory);
    __libc_free(memory);
}

static bool watch(void) {
    return true;
}

#endif

static void start_counting(void) {
    atomic_store(&allocations, 0);
    atomic_store(&allocated_bytes, 0);
    atomic_store(&releases, 0);
    atomic_store(&is_counting, true);
}

/* ---- containers ------------------------------------------------------------------------------ */

enum { TENSORS = 1500 };
static char folder[] = "/tmp/ingot-open-XXXXXX";
static char names[TENSORS][24];
static ingot_tensor_spec specs[TENSORS];

static const char *path_of(const char *name) {
    static char path[128];
    (void)snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

/* Tensors of 64 bytes whose names are in no order, the last one an alias, and two files.  Returns
 * the number of shards. */
static uint32_t write_container(const char *path, bool is_compressed, uint64_t shard_size_bytes) {
    static const ingot_file_spec files[] = {{"config.json", "{}", 2}, {"tokenizer.json", "{}", 2}};
    for (uint64_t i = 0; i < TENSORS; i++) {
        (void)snprintf(names[i], sizeof names[i], "tensor.%04llu",
                       (unsigned long long)(i * 7919 % TENSORS));
        specs[i] =
            (ingot_tensor_spec){.name = names[i], .rank = 2, .dim = {2, 8}, .dtype = INGOT_F32};
    }
    specs[TENSORS - 1].kind = INGOT_ALIAS;
    specs[TENSORS - 1].alias_of = TENSORS - 2;
    const ingot_writer_plan plan = {.tensors = specs,
                                    .tensor_count = TENSORS,
                                    .files = files,
                                    .file_count = 2,
                                    .meta = "{}",
                                    .meta_size = 2,
                                    .is_compressed = is_compressed,
                                    .shard_size_bytes = shard_size_bytes};
    ingot_writer *writer;
    ingot_error error = {0};
    CU_ASSERT_EQUAL_FATAL(ingot_writer_create(&writer, path, true, &plan, &error), INGOT_OK);
    for (uint64_t i = 0; i + 1 < TENSORS; i++) {
        float values[16] = {0};
        values[i % 16] = (float)i;
        const ingot_weight_view view = {.rows = 2, .cols = 8, .dtype = INGOT_F32, .data = values};
        CU_ASSERT_EQUAL_FATAL(ingot_writer_put(writer, i, &view, NULL, &error), INGOT_OK);
    }
    CU_ASSERT_EQUAL_FATAL(ingot_writer_finish(writer, 1, NULL, NULL, &error), INGOT_OK);
    ingot_layout_info layout;
    CU_ASSERT_EQUAL_FATAL(ingot_layout_compute(&layout, &plan, &error), INGOT_OK);
    return layout.shard_count;
}

/* Opens, counts, and uses what was opened. */
static void check_one_allocation(const char *path) {
    ingot_container *container = NULL;
    ingot_error error = {0};
    start_counting();
    const ingot_status status = ingot_open(&container, path, &error);
    const unsigned long long opened = atomic_load(&allocations);
    const unsigned long long bytes = atomic_load(&allocated_bytes);
    if (status != INGOT_OK) {
        printf("%s: %s: %s\n", path, ingot_status_code(status), error.reason);
    }
    CU_ASSERT_EQUAL_FATAL(status, INGOT_OK);
    CU_ASSERT_EQUAL(opened, 1);
    CU_ASSERT_EQUAL(atomic_load(&releases), 0);
    uint64_t front = 0;
    for (uint32_t i = 0; i < container->shard_count; i++) {
        front += container->shards[i].data_offset;
    }
    CU_ASSERT(bytes >= front && bytes <= 3 * front + 65536);
    CU_ASSERT_EQUAL(ingot_tensor_count(container), TENSORS);
    CU_ASSERT_EQUAL(ingot_file_entry_count(container), 2);
    for (uint64_t i = 0; i < TENSORS; i++) {
        uint64_t index = UINT64_MAX;
        const ingot_tensor *tensor = ingot_tensor_find(container, names[i], &index);
        CU_ASSERT(tensor != NULL && index == i);
    }
    CU_ASSERT_EQUAL(ingot_check_full(container, 1, NULL, NULL, &error), INGOT_OK);
    start_counting();
    ingot_close(container);
    CU_ASSERT_EQUAL(atomic_load(&releases), 1);
    atomic_store(&is_counting, false);
}

static void test_one_file(void) {
    (void)write_container(path_of("plain.ingot"), false, 0);
    check_one_allocation(path_of("plain.ingot"));
}

static void test_compressed(void) {
    (void)write_container(path_of("packed.ingot"), true, 0);
    check_one_allocation(path_of("packed.ingot"));
}

static uint8_t *slurp(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    (void)fseek(file, 0, SEEK_END);
    *size = (size_t)ftell(file);
    rewind(file);
    uint8_t *bytes = malloc(*size);
    CU_ASSERT_EQUAL_FATAL(fread(bytes, 1, *size, file), *size);
    (void)fclose(file);
    return bytes;
}

/* Puts the stored chunks of a compressed file into any order; digests are those of the new file. */
static void shuffle_chunks(const char *path) {
    size_t size;
    uint8_t *bytes = slurp(path, &size);
    uint8_t *old = slurp(path, &size);
    superblock super;
    section map, data;
    superblock_decode(&super, bytes);
    uint8_t *table = bytes + SUPERBLOCK_BYTES;
    uint8_t *map_entry = table + (super.section_count - 2) * SECTION_BYTES;
    section_decode(&map, map_entry);
    section_decode(&data, map_entry + SECTION_BYTES);
    CU_ASSERT_EQUAL_FATAL(map.fourcc, FOURCC_ZMAP);
    const uint64_t count = map.size / ZMAP_BYTES;
    uint64_t at = 0;
    for (uint64_t i = 0; i < count; i++) { /* 1499 chunks: 700 has no common factor with it */
        uint8_t *entry = bytes + map.offset + i * 700 % count * ZMAP_BYTES;
        const uint64_t from = load_le(entry, 8), length = load_le(entry + 8, 4);
        memcpy(bytes + data.offset + at, old + data.offset + from, (size_t)length);
        store_le(entry, at, 8);
        at += length;
    }
    CU_ASSERT_EQUAL(at, data.size);
    ingot_digest128(map.digest, bytes + map.offset, map.size);
    section_encode(map_entry, &map);
    ingot_digest128(super.root, table, super.section_count * SECTION_BYTES);
    superblock_encode(bytes, &super);
    memcpy(bytes + size - TRAILER_BYTES, super.root, 16);
    FILE *file = fopen(path, "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT_EQUAL_FATAL(fwrite(bytes, 1, size, file), size);
    (void)fclose(file);
    free(old);
    free(bytes);
}

static void test_chunks_in_any_order(void) {
    (void)write_container(path_of("shuffled.ingot"), true, 0);
    shuffle_chunks(path_of("shuffled.ingot"));
    check_one_allocation(path_of("shuffled.ingot"));
}

#define SHARD_SIZE_BYTES (200 * 64) /* of parts */

static void check_set(bool is_compressed) {
    const uint32_t count = write_container(path_of("set.ingot"), is_compressed, SHARD_SIZE_BYTES);
    CU_ASSERT(count >= 7);
    for (uint32_t i = 1; i <= count; i++) {
        char name[64];
        (void)snprintf(name, sizeof name, "set-%05u-of-%05u.ingot", i, count);
        check_one_allocation(path_of(name));
    }
}

static void test_set(void) {
    check_set(false);
    check_set(true);
}

static void change_byte(const char *path, long offset) {
    FILE *file = fopen(path, "r+b");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    (void)fseek(file, offset, SEEK_SET);
    const int byte = fgetc(file);
    (void)fseek(file, offset, SEEK_SET);
    (void)fputc(byte ^ 1, file);
    (void)fclose(file);
}

static void check_refused(const char *path, ingot_status expected, unsigned long long most) {
    ingot_container *container = NULL;
    start_counting();
    CU_ASSERT_EQUAL(ingot_open(&container, path, NULL), expected);
    CU_ASSERT_PTR_NULL(container);
    CU_ASSERT_EQUAL(atomic_load(&allocations), most);
    CU_ASSERT_EQUAL(atomic_load(&releases), most);
    atomic_store(&is_counting, false);
}

static void test_refused_before_memory(void) {
    static const struct {
        long offset;
        ingot_status status;
        unsigned long long allocations;
    } faults[] = {{0, INGOT_BAD_MAGIC, 0},
                  {30, INGOT_BAD_SUPERBLOCK_DIGEST, 0},
                  {SUPERBLOCK_BYTES + 16, INGOT_BAD_ROOT, 0},
                  {SUPERBLOCK_BYTES + 10 * SECTION_BYTES, INGOT_BAD_SECTION_DIGEST, 1}};
    (void)write_container(path_of("bad.ingot"), false, 0);
    for (unsigned i = 0; i < sizeof faults / sizeof *faults; i++) {
        change_byte(path_of("bad.ingot"), faults[i].offset);
        check_refused(path_of("bad.ingot"), faults[i].status, faults[i].allocations);
        change_byte(path_of("bad.ingot"), faults[i].offset);
    }
    check_refused(path_of("absent.ingot"), INGOT_ERR_NOT_FOUND, 0);
}

static const char *shard_of(uint32_t number, uint32_t count) {
    static char paths[4][128];
    static unsigned turn;
    char *path = paths[turn++ % 4];
    (void)snprintf(path, sizeof paths[0], "%s/few-%05u-of-%05u.ingot", folder, number, count);
    return path;
}

static void check_set_error(const char *path, ingot_status expected, const char *file) {
    ingot_container *container;
    ingot_error error = {0};
    CU_ASSERT_EQUAL(ingot_open(&container, path, &error), expected);
    CU_ASSERT_STRING_EQUAL(error.file, file);
}

/* The block is measured before the files are read: a fault of a later one still comes later. */
static void test_first_error_of_a_set(void) {
    const long digest = SUPERBLOCK_BYTES + 10 * SECTION_BYTES; /* of the first section */
    const uint32_t count = write_container(path_of("few.ingot"), false, SHARD_SIZE_BYTES);
    change_byte(shard_of(3, count), digest);
    change_byte(shard_of(5, count), 0);
    check_set_error(shard_of(6, count), INGOT_BAD_SECTION_DIGEST, shard_of(3, count));
    check_set_error(shard_of(5, count), INGOT_BAD_MAGIC, shard_of(5, count));
    change_byte(shard_of(3, count), digest);
    check_set_error(shard_of(1, count), INGOT_BAD_MAGIC, shard_of(5, count));
    CU_ASSERT_EQUAL(unlink(shard_of(5, count)), 0);
    check_set_error(shard_of(1, count), INGOT_BAD_SHARD_MISSING, shard_of(5, count));
}

int main(void) {
    static const CU_TestInfo tests[] = {{"one file", test_one_file},
                                        {"compressed", test_compressed},
                                        {"chunks in any order", test_chunks_in_any_order},
                                        {"a set, through any shard", test_set},
                                        {"refused before memory", test_refused_before_memory},
                                        {"first error of a set", test_first_error_of_a_set},
                                        CU_TEST_INFO_NULL};
    if (mkdtemp(folder) == NULL || !watch()) {
        return 2;
    }
    const int result = suite_run("open", tests);
    char command[64];
    (void)snprintf(command, sizeof command, "rm -rf %s", folder);
    return system(command) != 0 || result;
}
