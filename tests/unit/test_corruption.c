/* Damage of every kind to containers that are otherwise whole: the full check must notice each one,
 * and name the section, or the tensor and the chunk, where the damage lies in one.
 *
 *   every bit of two small containers (one compressed), every length they can be cut to
 *   every byte of a container of 1 MiB (every 31st by default, from a random start; all with
 *   INGOT_TEST_EVERY=1), bursts, swapped chunks, zeroed pages, two files spliced
 *
 * Not here: damage behind repaired digests, which is the fuzzers' (tests/fuzz). */
#include "suite.h"

#include "format/container_internal.h"
#include "format/container_write.h"
#include "format/pack.h"

#include <fcntl.h>
#include <math.h>
#include <sys/mman.h>
#include <time.h>

#define DEFAULT_STRIDE 31u
#define BURSTS         3000u

static uint64_t random_state;
static uint64_t caught, named;

static uint64_t random_u64(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

/* ---- containers in memory ----------------------------------------------------------------------
 */

/* Where a byte of the file belongs to. */
typedef struct region {
    uint64_t offset, size;
    char section[5]; /* "" in DATA and outside of sections */
    char tensor[32]; /* of DATA */
    uint64_t chunk;
} region;

typedef struct image {
    uint8_t *bytes;
    uint64_t size;
    int fd; /* a memory file with the same bytes */
    char path[64];
    region regions[512];
    unsigned region_count;
} image;

static char folder[] = "/tmp/ingot-corruption-XXXXXX";

enum { TENSORS = 5 };
static const char *const names[TENSORS] = {"a.weight", "a.weight#fold", "b.weight", "c.bias", "d"};

/* rows scales the size: 8 rows for the small containers. */
static void write_container(const char *path, uint64_t rows, bool is_compressed) {
    const ingot_tensor_spec specs[TENSORS] = {
        {.name = names[0],
         .kind = INGOT_GROUPED,
         .rank = 2,
         .dim = {rows, 40},
         .dtype = INGOT_F16,
         .bits = 3,
         .scale_dtype = INGOT_F16,
         .zero_mode = INGOT_ZERO_STORED,
         .group = 32,
         .outlier_count = 2},
        {.name = names[1], .kind = INGOT_AUXILIARY, .rank = 1, .dim = {40}, .dtype = INGOT_F32},
        {.name = names[2], .rank = 2, .dim = {rows, 24}, .dtype = INGOT_BF16},
        {.name = names[3], .rank = 1, .dim = {0}, .dtype = INGOT_F32},
        {.name = names[4], .kind = INGOT_ALIAS, .alias_of = 2}};
    const ingot_file_spec files[] = {{.name = "config.json", .bytes = "{}", .size = 2}};
    const ingot_writer_plan plan = {.tensors = specs,
                                    .tensor_count = TENSORS,
                                    .files = files,
                                    .file_count = 1,
                                    .meta = "{\"a\":1}",
                                    .meta_size = 7,
                                    .is_compressed = is_compressed};
    ingot_writer *writer;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_writer_create(&writer, path, true, &plan, &error), INGOT_OK);
    for (uint64_t i = 0; i < TENSORS - 1; i++) {
        ingot_tensor tensor;
        CU_ASSERT_EQUAL_FATAL(ingot_tensor_geometry(&tensor, &specs[i], &error), INGOT_OK);
        uint8_t *bytes = calloc(1, (size_t)tensor.part_bytes[0] + 1);
        uint64_t *row_ptr = calloc((size_t)tensor.rows + 1, sizeof *row_ptr);
        uint16_t *scales = malloc((size_t)(tensor.rows * 2) * sizeof *scales);
        uint8_t *zeros = malloc((size_t)tensor.rows * 2);
        for (uint64_t b = 0; specs[i].kind != INGOT_GROUPED && b < tensor.part_bytes[0]; b++) {
            bytes[b] = (uint8_t)(random_u64() % 4);
        }
        for (uint64_t r = 0; specs[i].kind == INGOT_GROUPED && r < tensor.rows; r++) {
            uint8_t codes[40];
            for (unsigned c = 0; c < 40; c++) {
                codes[c] = c == 7 && r < 2 ? 5 : (uint8_t)(random_u64() % 8);
            }
            ingot_pack_row(bytes + r * tensor.row_stride_bytes, codes, 40, 3);
            zeros[2 * r] = zeros[2 * r + 1] = 5;
            scales[2 * r] = (uint16_t)(0x2000 + random_u64() % 512);
            scales[2 * r + 1] = 0xA000;
            row_ptr[r + 1] = r < 2 ? r + 1 : 2;
        }
        static const uint32_t cols[] = {7, 7};
        static const uint16_t values[] = {0x4900, 0xC900};
        const ingot_weight_view view = {.kind = specs[i].kind == INGOT_GROUPED ? INGOT_GROUPED
                                                                               : INGOT_DENSE,
                                        .rows = tensor.rows,
                                        .cols = tensor.cols,
                                        .dtype = specs[i].dtype,
                                        .data = bytes,
                                        .bits = 3,
                                        .zero_mode = INGOT_ZERO_STORED,
                                        .scale_dtype = INGOT_F16,
                                        .group = 32,
                                        .groups_per_row = 2,
                                        .row_stride_bytes = tensor.row_stride_bytes,
                                        .codes = bytes,
                                        .scales = scales,
                                        .zeros = zeros,
                                        .outlier_count = specs[i].outlier_count,
                                        .outlier_row_ptr = row_ptr,
                                        .outlier_col = cols,
                                        .outlier_val = values};
        CU_ASSERT_EQUAL_FATAL(ingot_writer_put(writer, i, &view, NULL, &error), INGOT_OK);
        free(zeros);
        free(scales);
        free(row_ptr);
        free(bytes);
    }
    CU_ASSERT_EQUAL_FATAL(ingot_writer_finish(writer, 1, NULL, NULL, &error), INGOT_OK);
}

static void add_region(image *out, uint64_t offset, uint64_t size, const char *type,
                       const char *tensor, uint64_t chunk) {
    CU_ASSERT_FATAL(out->region_count < sizeof out->regions / sizeof *out->regions);
    region *r = &out->regions[out->region_count++];
    *r = (region){.offset = offset, .size = size, .chunk = chunk};
    (void)snprintf(r->section, sizeof r->section, "%s", type);
    (void)snprintf(r->tensor, sizeof r->tensor, "%s", tensor);
}

/* Sections and chunks of the intact file. */
static void map_regions(image *out) {
    ingot_container *container;
    CU_ASSERT_EQUAL_FATAL(ingot_open(&container, out->path, NULL), INGOT_OK);
    const shard *part = &container->shards[0];
    for (uint32_t i = 0; i + 1 < part->super.section_count; i++) {
        const section *record = &part->sections[i];
        const char type[5] = {(char)record->fourcc, (char)(record->fourcc >> 8),
                              (char)(record->fourcc >> 16), (char)(record->fourcc >> 24), '\0'};
        add_region(out, record->offset, record->size, type, "", 0);
    }
    for (uint64_t t = 0; t < part->tensor_count; t++) {
        const ingot_tensor *tensor = &part->tensors[t];
        uint64_t number = tensor->first_chunk;
        for (unsigned p = 0; p < INGOT_PART_COUNT; p++) {
            for (uint64_t at = 0; at < tensor->part_bytes[p]; at += CHUNK_BYTES, number++) {
                const uint8_t *stored =
                    part->zmap == NULL ? NULL : part->zmap + number * ZMAP_BYTES;
                const uint64_t offset =
                    stored == NULL ? tensor->part_offset[p] + at : load_le(stored, 8);
                const uint64_t size = stored == NULL
                                          ? ingot_min_u64(CHUNK_BYTES, tensor->part_bytes[p] - at)
                                          : load_le(stored + 8, 4);
                add_region(out, part->data_offset + offset, size, "", tensor->name, number);
            }
        }
    }
    ingot_close(container);
}

static void image_make(image *out, uint64_t rows, bool is_compressed) {
    char path[64];
    (void)snprintf(path, sizeof path, "%s/x.ingot", folder);
    write_container(path, rows, is_compressed);
    memset(out, 0, sizeof *out);
    FILE *file = fopen(path, "rb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT_FATAL(fseek(file, 0, SEEK_END) == 0);
    out->size = (uint64_t)ftell(file);
    rewind(file);
    out->bytes = malloc((size_t)out->size);
    CU_ASSERT_FATAL(out->bytes != NULL && fread(out->bytes, 1, out->size, file) == out->size);
    (void)fclose(file);
    (void)unlink(path);
    out->fd = memfd_create("corruption", MFD_CLOEXEC);
    CU_ASSERT_FATAL(out->fd >= 0);
    (void)snprintf(out->path, sizeof out->path, "/proc/self/fd/%d", out->fd);
    CU_ASSERT_FATAL(pwrite(out->fd, out->bytes, out->size, 0) == (ssize_t)out->size);
    map_regions(out);
}

static void image_free(image *old) {
    free(old->bytes);
    (void)close(old->fd);
}

/* ---- one damage ------------------------------------------------------------------------------ */

static ingot_status full_check(const image *file, ingot_error *error) {
    ingot_container *container;
    INGOT_TRY(ingot_open(&container, file->path, error));
    const ingot_status status = ingot_check_full(container, 1, NULL, NULL, error);
    ingot_close(container);
    return status;
}

/* The place that all of [offset, offset + size) lies in, or NULL. */
static const region *region_at(const image *file, uint64_t offset, uint64_t size) {
    for (unsigned i = 0; i < file->region_count; i++) {
        const region *r = &file->regions[i];
        if (offset >= r->offset && offset + size <= r->offset + r->size) {
            return r;
        }
    }
    return NULL;
}

static bool names_place(const region *r, const ingot_error *error) {
    char text[32];
    if (r->tensor[0] == '\0') {
        return error->status == INGOT_BAD_SECTION_DIGEST &&
               strstr(error->reason, r->section) != NULL;
    }
    (void)snprintf(text, sizeof text, "chunk %llu)", (unsigned long long)r->chunk);
    return strcmp(error->tensor, r->tensor) == 0 && strstr(error->reason, text) != NULL;
}

/* The file as it stands must be refused; what changed is [offset, offset + size). */
static void expect_caught(const image *file, uint64_t offset, uint64_t size, const char *what) {
    ingot_error error = {0};
    const ingot_status status = full_check(file, &error);
    const bool is_caught = status > INGOT_BAD_FIRST && status < INGOT_BAD_LAST;
    const region *place = region_at(file, offset, size);
    const bool is_named = place == NULL || names_place(place, &error);
    if (!is_caught || !is_named) {
        printf("\n    %s at %llu, %llu bytes: %s, \"%s\" (%s)", what, (unsigned long long)offset,
               (unsigned long long)size, ingot_status_code(status), error.reason, error.tensor);
    }
    CU_ASSERT(is_caught && is_named);
    caught += is_caught;
    named += place != NULL && is_named;
}

/* Writes other bytes over the file, expects that to be caught, and puts the old ones back.  Nothing
 * happens where they are the same. */
static void damage(const image *file, uint64_t offset, const uint8_t *bytes, uint64_t size,
                   const char *what) {
    uint64_t first = 0;
    uint64_t end = size;
    while (first < size && bytes[first] == file->bytes[offset + first]) {
        first++;
    }
    while (end > first && bytes[end - 1] == file->bytes[offset + end - 1]) {
        end--;
    }
    if (first == end) {
        return;
    }
    CU_ASSERT_FATAL(pwrite(file->fd, bytes, size, (off_t)offset) == (ssize_t)size);
    expect_caught(file, offset + first, end - first, what);
    CU_ASSERT_FATAL(pwrite(file->fd, file->bytes + offset, size, (off_t)offset) == (ssize_t)size);
}

static void expect_whole(const image *file) {
    ingot_error error = {0};
    CU_ASSERT_EQUAL(full_check(file, &error), INGOT_OK);
}

static void report(const char *what) {
    printf("\n    %llu damaged files caught (%s), the place named in %llu ",
           (unsigned long long)caught, what, (unsigned long long)named);
    caught = named = 0;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_every_bit(void) {
    for (int is_compressed = 0; is_compressed < 2; is_compressed++) {
        image file;
        image_make(&file, 8, is_compressed != 0);
        expect_whole(&file);
        for (uint64_t at = 0; at < file.size; at++) {
            for (unsigned bit = 0; bit < 8; bit++) {
                const uint8_t changed = file.bytes[at] ^ (uint8_t)(1u << bit);
                damage(&file, at, &changed, 1, "bit");
            }
        }
        expect_whole(&file);
        CU_ASSERT_EQUAL(caught, 8 * file.size);
        CU_ASSERT(named > file.size);
        report(is_compressed != 0 ? "every bit, compressed" : "every bit");
        image_free(&file);
    }
}

static void test_every_length(void) {
    for (int is_compressed = 0; is_compressed < 2; is_compressed++) {
        image file;
        image_make(&file, 8, is_compressed != 0);
        for (uint64_t length = file.size; length-- > 0;) {
            CU_ASSERT_FATAL(ftruncate(file.fd, (off_t)length) == 0);
            expect_caught(&file, 0, file.size, "cut");
        }
        /* and longer than it should be */
        CU_ASSERT_FATAL(pwrite(file.fd, file.bytes, file.size, 0) == (ssize_t)file.size);
        for (uint64_t more = 1; more < 64; more++) {
            CU_ASSERT_FATAL(ftruncate(file.fd, (off_t)(file.size + more)) == 0);
            expect_caught(&file, 0, file.size, "longer");
        }
        CU_ASSERT_FATAL(ftruncate(file.fd, (off_t)file.size) == 0);
        expect_whole(&file);
        image_free(&file);
    }
    report("every length");
}

/* Two files with the same layout and other values, and the same file with other lengths: the head
 * of one with the rest of the other. */
static void test_splice(void) {
    image a, b;
    image_make(&a, 8, false);
    image_make(&b, 8, false);
    CU_ASSERT_EQUAL_FATAL(a.size, b.size);
    for (uint64_t cut = 1; cut < a.size; cut++) {
        /* Where the two agree on one side of the cut, the other side makes it the other file. */
        if (memcmp(a.bytes, b.bytes, cut) != 0) {
            damage(&a, cut, b.bytes + cut, a.size - cut, "tail of another file");
        }
        if (memcmp(a.bytes + cut, b.bytes + cut, a.size - cut) != 0) {
            damage(&a, 0, b.bytes, cut, "head of another file");
        }
    }
    expect_whole(&a);
    CU_ASSERT(caught > a.size);
    report("spliced");
    image_free(&a);
    image_free(&b);
}

/* ---- a container of 1 MiB ----------------------------------------------------------------------
 */

#define LARGE_ROWS 13360u

static void test_every_byte(void) {
    const char *every = getenv("INGOT_TEST_EVERY");
    const uint64_t stride = every != NULL && every[0] == '1' ? 1 : DEFAULT_STRIDE;
    image file;
    image_make(&file, LARGE_ROWS, false);
    CU_ASSERT(file.size >= 1000000 && file.size <= 1100000);
    uint64_t expected = 0;
    for (uint64_t at = random_u64() % stride; at < file.size; at += stride, expected++) {
        const uint8_t changed = file.bytes[at] ^ (uint8_t)(1 + random_u64() % 255);
        damage(&file, at, &changed, 1, "byte");
    }
    CU_ASSERT_EQUAL(caught, expected);
    expect_whole(&file);
    printf("\n    of %llu bytes", (unsigned long long)file.size);
    report(stride == 1 ? "every byte" : "every 31st byte; INGOT_TEST_EVERY=1 takes them all");
    image_free(&file);
}

static void test_bursts(void) {
    static uint8_t burst[8192];
    image file;
    image_make(&file, LARGE_ROWS, false);
    for (unsigned n = 0; n < BURSTS; n++) {
        const uint64_t size = 1 + random_u64() % sizeof burst;
        const uint64_t offset = random_u64() % (file.size - size);
        for (uint64_t i = 0; i < size; i++) {
            burst[i] = n % 3 == 0 ? 0xff : (uint8_t)random_u64();
        }
        damage(&file, offset, burst, size, "burst");
    }
    expect_whole(&file);
    CU_ASSERT(caught > BURSTS - BURSTS / 100);
    report("bursts");
    image_free(&file);
}

static void test_zeroed_pages(void) {
    static const uint8_t zeros[65536];
    static const uint64_t sizes[] = {512, 4096, 65536};
    image file;
    image_make(&file, LARGE_ROWS, false);
    for (unsigned s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        for (uint64_t at = 0; at < file.size; at += sizes[s]) {
            damage(&file, at, zeros, ingot_min_u64(sizes[s], file.size - at), "zeroed page");
        }
    }
    expect_whole(&file);
    CU_ASSERT(caught > file.size / 1024);
    report("zeroed pages");
    image_free(&file);
}

/* Pieces of DATA in each other's place: pages of one part, rows, whole parts; and digests swapped
 * without their chunks. */
static void test_swaps(void) {
    image file;
    image_make(&file, LARGE_ROWS, false);
    uint8_t *changed = malloc((size_t)file.size);
    CU_ASSERT_PTR_NOT_NULL_FATAL(changed);
    static const uint64_t sizes[] = {8, 16, 256, 4096, 65536};
    for (unsigned n = 0; n < 2000; n++) {
        const uint64_t size = sizes[n % 5];
        const uint64_t slots = file.size / size;
        const uint64_t a = random_u64() % slots * size;
        const uint64_t b = random_u64() % slots * size;
        memcpy(changed, file.bytes, (size_t)file.size);
        memcpy(changed + a, file.bytes + b, (size_t)size);
        memcpy(changed + b, file.bytes + a, (size_t)size);
        damage(&file, 0, changed, file.size, "swap");
    }
    for (unsigned i = 0; i < file.region_count; i++) { /* chunks, and their digests */
        for (unsigned j = i + 1; j < file.region_count; j++) {
            const region *a = &file.regions[i], *b = &file.regions[j];
            const uint64_t size = ingot_min_u64(a->size, b->size);
            if (a->tensor[0] == '\0' || b->tensor[0] == '\0') {
                continue;
            }
            memcpy(changed, file.bytes, (size_t)file.size);
            memcpy(changed + a->offset, file.bytes + b->offset, (size_t)size);
            memcpy(changed + b->offset, file.bytes + a->offset, (size_t)size);
            damage(&file, 0, changed, file.size, "swapped chunks");
        }
    }
    for (unsigned i = 0; i < file.region_count; i++) {
        const region *digests = &file.regions[i];
        for (uint64_t k = 16; strcmp(digests->section, "CHNK") == 0 && k <= digests->size; k += 8) {
            uint8_t pair[16];
            memcpy(pair, file.bytes + digests->offset + k - 8, 8);
            memcpy(pair + 8, file.bytes + digests->offset + k - 16, 8);
            damage(&file, digests->offset + k - 16, pair, 16, "swapped digests");
        }
    }
    expect_whole(&file);
    CU_ASSERT(caught > 1000);
    report("swapped");
    free(changed);
    image_free(&file);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"every bit", test_every_bit}, {"every length", test_every_length},
        {"splice", test_splice},       {"every byte of 1 MiB", test_every_byte},
        {"bursts", test_bursts},       {"zeroed pages", test_zeroed_pages},
        {"swaps", test_swaps},         CU_TEST_INFO_NULL,
    };
    const char *seed = getenv("INGOT_TEST_SEED");
    random_state = seed == NULL ? (uint64_t)time(NULL) : strtoull(seed, NULL, 10);
    printf("INGOT_TEST_SEED=%llu\n", (unsigned long long)random_state);
    random_state = random_state * UINT64_C(0x9E3779B97F4A7C15) + 1;
    if (mkdtemp(folder) == NULL) {
        perror(folder);
        return 2;
    }
    const int result = suite_run("corruption", tests);
    (void)rmdir(folder);
    return result;
}
