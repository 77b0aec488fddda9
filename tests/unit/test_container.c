/* The container: round trips of everything the format can hold, and proof that no changed byte, cut
 * or missing shard goes unnoticed by the full check. */
#include "suite.h"

#include "common/files.h"
#include "common/memory.h"
#include "format/container_internal.h"
#include "format/container_write.h"
#include "format/digest.h"
#include "format/half.h"
#include "format/outliers.h"
#include "format/pack.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>

static char folder[] = "/tmp/ingot-test-XXXXXX";
static uint64_t random_state;

static uint64_t random_u64(void) {
    random_state = random_state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return random_state >> 11;
}

static const char *path_of(const char *name) {
    static char path[4][256];
    static int turn;
    turn = (turn + 1) % 4;
    (void)snprintf(path[turn], sizeof path[turn], "%s/%s", folder, name);
    return path[turn];
}

/* Zeroed memory that lives until the suite ends. */
static void *kept[8192];
static size_t kept_count;

static void *keep(uint64_t count, uint64_t size) {
    CU_ASSERT_FATAL(kept_count < sizeof kept / sizeof *kept);
    void *memory = calloc((size_t)count + 1, (size_t)size);
    CU_ASSERT_PTR_NOT_NULL_FATAL(memory);
    kept[kept_count++] = memory;
    return memory;
}

/* A tensor of random contents that obeys the value rules. */
static ingot_weight_view random_view(const ingot_tensor *tensor) {
    ingot_weight_view view = {.kind = tensor->kind == INGOT_GROUPED ? INGOT_GROUPED : INGOT_DENSE,
                              .rows = tensor->rows,
                              .cols = tensor->cols,
                              .dtype = tensor->dtype};
    uint8_t *bytes = keep(1, (size_t)tensor->part_bytes[0] + 1);
    view.data = bytes;
    if (view.kind == INGOT_DENSE) {
        for (uint64_t i = 0; i < tensor->part_bytes[0]; i++) {
            bytes[i] = (uint8_t)random_u64();
        }
        return view;
    }
    view.data = NULL;
    view.bits = tensor->bits;
    view.zero_mode = tensor->zero_mode;
    view.scale_dtype = tensor->scale_dtype;
    view.group = tensor->group;
    view.groups_per_row = tensor->groups_per_row;
    view.row_stride_bytes = tensor->row_stride_bytes;
    view.outlier_count = tensor->outlier_count;
    const uint64_t groups = tensor->rows * tensor->groups_per_row;
    uint8_t *zeros = keep(1, (size_t)groups);
    uint8_t *scales = keep(groups, 4);
    for (uint64_t i = 0; i < groups; i++) {
        const float scale =
            (random_u64() % 2 ? -1.0f : 1.0f) * (float)(random_u64() % 1000) / 512.0f;
        ingot_convert_from_f32(scales + i * ingot_dtype_bytes(view.scale_dtype), view.scale_dtype,
                               &scale, 1);
        zeros[i] = (uint8_t)(random_u64() % (1u << view.bits));
    }
    uint64_t *row_ptr = keep(tensor->rows + 1, 8);
    uint32_t *cols = keep(tensor->outlier_count + 1, 4);
    float *values = keep(tensor->outlier_count + 1, 4);
    uint8_t *codes = keep(1, (size_t)tensor->cols);
    uint64_t used = 0;
    for (uint64_t row = 0; row < tensor->rows; row++) {
        for (uint64_t col = 0; col < tensor->cols; col++) {
            codes[col] = (uint8_t)(random_u64() % (1u << view.bits));
        }
        const uint64_t left = tensor->rows - row;
        const uint64_t here = (tensor->outlier_count - used + left - 1) / left;
        for (uint64_t i = 0; i < here; i++, used++) {
            const uint64_t col = i * 3;
            const uint64_t group = row * tensor->groups_per_row + col / view.group;
            cols[used] = (uint32_t)col;
            const float value = (float)(random_u64() % 100);
            ingot_convert_from_f32((uint8_t *)values + used * ingot_dtype_bytes(view.dtype),
                                   view.dtype, &value, 1);
            codes[col] = view.zero_mode == INGOT_ZERO_STORED ? zeros[group]
                                                             : (uint8_t)(1u << (view.bits - 1));
        }
        row_ptr[row + 1] = used;
        ingot_pack_row(bytes + row * view.row_stride_bytes, codes, tensor->cols, view.bits);
    }
    view.codes = bytes;
    view.scales = scales;
    view.zeros = view.zero_mode == INGOT_ZERO_STORED ? zeros : NULL;
    view.outlier_row_ptr = row_ptr;
    view.outlier_col = cols;
    view.outlier_val = values;
    return view;
}

enum { MOST_SPECS = 64 };
static ingot_tensor_spec specs[MOST_SPECS];
static ingot_weight_view views[MOST_SPECS];
static char names[MOST_SPECS][32];
static uint64_t spec_count;

static void add_spec(ingot_tensor_spec spec) {
    (void)snprintf(names[spec_count], sizeof names[0], "tensor.%c.%llu",
                   'z' - (char)spec_count % 26, (unsigned long long)spec_count);
    spec.name = names[spec_count];
    specs[spec_count++] = spec;
}

static void make_specs(void) {
    spec_count = 0;
    for (ingot_dtype dtype = INGOT_F32; dtype <= INGOT_U8; dtype++) {
        add_spec((ingot_tensor_spec){.rank = 2, .dim = {3, 5}, .dtype = dtype});
    }
    add_spec((ingot_tensor_spec){.rank = 1, .dim = {0}, .dtype = INGOT_F32});
    add_spec((ingot_tensor_spec){.rank = 3, .dim = {2, 3, 4}, .dtype = INGOT_F16});
    add_spec((ingot_tensor_spec){.rank = 4, .dim = {2, 3, 4, 5}, .dtype = INGOT_BF16});
    add_spec(
        (ingot_tensor_spec){.kind = INGOT_AUXILIARY, .rank = 1, .dim = {7}, .dtype = INGOT_F32});
    for (unsigned bits = 2; bits <= 8; bits++) {
        add_spec(
            (ingot_tensor_spec){.kind = INGOT_GROUPED,
                                .rank = 2,
                                .dim = {5, 100},
                                .dtype = INGOT_F16,
                                .bits = bits,
                                .group = bits % 2 ? 32 : 100,
                                .scale_dtype = (ingot_dtype)(bits % 3),
                                .zero_mode = bits % 2 ? INGOT_ZERO_STORED : INGOT_ZERO_SYMMETRIC,
                                .outlier_count = bits > 4 ? 7 : 0});
    }
    const uint64_t target = spec_count - 1;
    add_spec((ingot_tensor_spec){.kind = INGOT_ALIAS, .alias_of = target});
    specs[spec_count - 1].rank = specs[target].rank;
    memcpy(specs[spec_count - 1].dim, specs[target].dim, sizeof specs[target].dim);
    random_state = 20261124;
    for (uint64_t i = 0; i < spec_count; i++) {
        ingot_tensor tensor;
        CU_ASSERT_EQUAL_FATAL(ingot_tensor_geometry(&tensor, &specs[i], NULL), INGOT_OK);
        if (specs[i].kind != INGOT_ALIAS) {
            views[i] = random_view(&tensor);
        }
    }
}

static const ingot_file_spec some_files[] = {{"tokenizer.json", "{\"b\":1}", 7},
                                             {"config.json", "{}", 2}};

static ingot_writer_plan make_plan(bool is_compressed, uint64_t shard_size_bytes) {
    return (ingot_writer_plan){.tensors = specs,
                               .tensor_count = spec_count,
                               .files = some_files,
                               .file_count = 2,
                               .meta = "{\"a\":1}",
                               .meta_size = 7,
                               .is_compressed = is_compressed,
                               .shard_size_bytes = shard_size_bytes};
}

static void write_container(const char *path, const ingot_writer_plan *plan, bool is_backwards) {
    ingot_writer *writer;
    ingot_error error = {0};
    CU_ASSERT_EQUAL_FATAL(ingot_writer_create(&writer, path, true, plan, &error), INGOT_OK);
    for (uint64_t i = 0; i < plan->tensor_count; i++) {
        const uint64_t index = is_backwards ? plan->tensor_count - 1 - i : i;
        const ingot_ledger ledger = {.method = INGOT_METHOD_RTN,
                                     .weight_error = 0.125,
                                     .weight_error_rtn = NAN,
                                     .output_error = NAN,
                                     .output_error_rtn = NAN,
                                     .damping = NAN,
                                     .tokens_seen = index};
        if (plan->tensors[index].kind != INGOT_ALIAS) {
            CU_ASSERT_EQUAL_FATAL(ingot_writer_put(writer, index, &views[index], &ledger, &error),
                                  INGOT_OK);
        }
    }
    const ingot_status status = ingot_writer_finish(writer, 2, NULL, NULL, &error);
    if (status != INGOT_OK) {
        printf("%s: %s: %s\n", ingot_status_code(status), error.tensor, error.reason);
    }
    CU_ASSERT_EQUAL_FATAL(status, INGOT_OK);
}

static void compare_views(const ingot_weight_view *a, const ingot_weight_view *b) {
    float left[512];
    float right[512];
    CU_ASSERT_EQUAL_FATAL(a->rows, b->rows);
    if (a->kind == INGOT_DENSE) {
        CU_ASSERT_EQUAL(
            memcmp(a->data, b->data, (size_t)(a->rows * a->cols) * ingot_dtype_bytes(a->dtype)), 0);
        return;
    }
    for (uint64_t row = 0; row < a->rows; row++) {
        ingot_weight_row(left, a, row, a->cols);
        ingot_weight_row(right, b, row, b->cols);
        CU_ASSERT_EQUAL(memcmp(left, right, (size_t)a->cols * 4), 0);
    }
}

static unsigned outliers_compared;

/* The outliers of a tensor alone are those that loading the whole of it gives. */
static void compare_outliers(const ingot_container *container, uint64_t index,
                             const ingot_weight_view *whole, bool verify) {
    const ingot_tensor *tensor = ingot_tensor_at(container, index);
    tensor = tensor->kind == INGOT_ALIAS ? ingot_tensor_at(container, tensor->alias_of) : tensor;
    ingot_weight_view view;
    void *buffer;
    CU_ASSERT_EQUAL_FATAL(ingot_alloc(&buffer, tensor->part_bytes[INGOT_PART_OUTLIERS] + 1),
                          INGOT_OK);
    const ingot_status status = ingot_outliers_load(container, index, verify, buffer, &view, NULL);
    CU_ASSERT_EQUAL(status, tensor->outlier_count != 0 ? INGOT_OK : INGOT_ERR_USAGE);
    if (tensor->outlier_count != 0) {
        const uint64_t n = tensor->outlier_count;
        CU_ASSERT_EQUAL(view.outlier_count, n);
        CU_ASSERT(view.codes == NULL && view.scales == NULL && view.zeros == NULL);
        CU_ASSERT(memcmp(view.outlier_row_ptr, whole->outlier_row_ptr, 8 * (tensor->rows + 1)) ==
                  0);
        CU_ASSERT(memcmp(view.outlier_col, whole->outlier_col, 4 * n) == 0);
        CU_ASSERT(memcmp(view.outlier_val, whole->outlier_val,
                         n * ingot_dtype_bytes(tensor->dtype)) == 0);
        outliers_compared++;
    }
    ingot_free(buffer);
}

static void read_back(const char *path, uint8_t content_id[16]) {
    ingot_container *container;
    ingot_error error = {0};
    ingot_info info;
    CU_ASSERT_EQUAL_FATAL(ingot_open(&container, path, &error), INGOT_OK);
    ingot_get_info(container, &info);
    memcpy(content_id, info.content_id, 16);
    CU_ASSERT_EQUAL(ingot_tensor_count(container), spec_count);
    for (uint64_t i = 0; i < spec_count; i++) {
        uint64_t index;
        const ingot_tensor *tensor = ingot_tensor_find(container, specs[i].name, &index);
        CU_ASSERT_PTR_NOT_NULL_FATAL(tensor);
        CU_ASSERT_PTR_EQUAL(tensor, ingot_tensor_at(container, index));
        void *buffer;
        ingot_weight_view view;
        CU_ASSERT_EQUAL_FATAL(ingot_alloc(&buffer, ingot_tensor_load_bytes(container, index)),
                              INGOT_OK);
        CU_ASSERT_EQUAL_FATAL(
            ingot_tensor_load(container, index, i % 2 == 0, buffer, &view, &error), INGOT_OK);
        const uint64_t source = specs[i].kind == INGOT_ALIAS ? specs[i].alias_of : i;
        compare_views(&views[source], &view);
        compare_outliers(container, index, &view, i % 2 == 0);
        ingot_free(buffer);
        ingot_ledger ledger;
        ingot_ledger_at(container, index, &ledger);
        if (specs[i].kind != INGOT_ALIAS) {
            CU_ASSERT_EQUAL(ledger.tokens_seen, i);
            CU_ASSERT_EQUAL(ledger.weight_error, 0.125);
            CU_ASSERT(isnan(ledger.output_error));
        }
    }
    uint64_t size;
    CU_ASSERT_EQUAL(memcmp(ingot_file_entry(container, "tokenizer.json", &size), "{\"b\":1}", 7),
                    0);
    CU_ASSERT_EQUAL(size, 7);
    CU_ASSERT_STRING_EQUAL(ingot_file_entry_name(container, 0), "config.json");
    CU_ASSERT_PTR_NULL(ingot_file_entry(container, "absent", &size));
    ingot_close(container);
}

static void test_round_trips(void) {
    uint8_t plain[16];
    uint8_t other[16];
    make_specs();
    const ingot_writer_plan whole = make_plan(false, 0);
    write_container(path_of("whole.ingot"), &whole, false);
    read_back(path_of("whole.ingot"), plain);
    CU_ASSERT(outliers_compared != 0);
    write_container(path_of("backwards.ingot"), &whole, true);
    read_back(path_of("backwards.ingot"), other);
    CU_ASSERT_EQUAL(memcmp(plain, other, 16), 0);
    const ingot_writer_plan packed = make_plan(true, 0);
    write_container(path_of("packed.ingot"), &packed, true);
    read_back(path_of("packed.ingot"), other);
    CU_ASSERT_EQUAL(memcmp(plain, other, 16), 0);
    const ingot_writer_plan sharded = make_plan(false, 900);
    write_container(path_of("set.ingot"), &sharded, false);
    ingot_layout_info layout;
    CU_ASSERT_EQUAL(ingot_layout_compute(&layout, &sharded, NULL), INGOT_OK);
    CU_ASSERT(layout.shard_count > 2);
    char name[64];
    (void)snprintf(name, sizeof name, "set-%05u-of-%05u.ingot", 2u, layout.shard_count);
    read_back(path_of(name), other);
    CU_ASSERT_EQUAL(memcmp(plain, other, 16), 0);
    CU_ASSERT_EQUAL(unlink(path_of(name)), 0);
    ingot_container *container;
    (void)snprintf(name, sizeof name, "set-%05u-of-%05u.ingot", 1u, layout.shard_count);
    CU_ASSERT_EQUAL(ingot_open(&container, path_of(name), NULL), INGOT_BAD_SHARD_MISSING);
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

static void spill(const char *path, const uint8_t *bytes, size_t size) {
    FILE *file = fopen(path, "wb");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT_EQUAL_FATAL(fwrite(bytes, 1, size, file), size);
    (void)fclose(file);
}

static ingot_status check_file(const char *path) {
    ingot_container *container;
    const ingot_status opened = ingot_open(&container, path, NULL);
    if (opened != INGOT_OK) {
        return opened;
    }
    const ingot_status status = ingot_check_full(container, 1, NULL, NULL, NULL);
    ingot_close(container);
    return status;
}

static void flip_every_byte(const char *name, size_t data_step) {
    size_t size;
    uint8_t *bytes = slurp(path_of(name), &size);
    FILE *file = fopen(path_of("flipped.ingot"), "wb+");
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    CU_ASSERT_EQUAL_FATAL(fwrite(bytes, 1, size, file), size);
    (void)fflush(file);
    unsigned unnoticed = 0;
    for (size_t i = 0; i < size; i += i < 4096 ? 1 : data_step) {
        const uint8_t changed = bytes[i] ^ (uint8_t)(1u << (i % 8));
        CU_ASSERT_EQUAL_FATAL(pwrite(fileno(file), &changed, 1, (off_t)i), 1);
        const ingot_status status = check_file(path_of("flipped.ingot"));
        if (status <= INGOT_BAD_FIRST || status >= INGOT_BAD_LAST) {
            printf("byte %zu: %s\n", i, ingot_status_code(status));
            unnoticed++;
        }
        CU_ASSERT_EQUAL_FATAL(pwrite(fileno(file), &bytes[i], 1, (off_t)i), 1);
    }
    CU_ASSERT_EQUAL(unnoticed, 0);
    CU_ASSERT_EQUAL(check_file(path_of("flipped.ingot")), INGOT_OK);
    (void)fclose(file);
    free(bytes);
}

static void test_every_byte_counts(void) {
    make_specs();
    const ingot_writer_plan whole = make_plan(false, 0);
    write_container(path_of("whole.ingot"), &whole, false);
    flip_every_byte("whole.ingot", 1);
    const ingot_writer_plan packed = make_plan(true, 0);
    write_container(path_of("packed.ingot"), &packed, false);
    flip_every_byte("packed.ingot", 1);
}

static void test_truncations(void) {
    make_specs();
    const ingot_writer_plan whole = make_plan(false, 0);
    write_container(path_of("whole.ingot"), &whole, false);
    size_t size;
    uint8_t *bytes = slurp(path_of("whole.ingot"), &size);
    for (size_t cut = 0; cut < size; cut += cut < 300 ? 1 : 97) {
        spill(path_of("cut.ingot"), bytes, cut);
        const ingot_status status = check_file(path_of("cut.ingot"));
        CU_ASSERT(status > INGOT_BAD_FIRST && status < INGOT_BAD_LAST);
    }
    free(bytes);
}

/* Changes bytes and makes every digest right again, so that only the rule itself can object. */
/* pristine: the unchanged file, whose geometry is used. */
static void reseal(uint8_t *bytes, const uint8_t *pristine) {
    const uint64_t count = load_le(pristine + 56, 4);
    uint64_t data = 0;
    uint64_t records = 0;
    uint64_t record_bytes = 0;
    uint64_t chunks = 0;
    for (uint64_t i = 0; i < count; i++) {
        const uint8_t *entry = pristine + SUPERBLOCK_BYTES + i * SECTION_BYTES;
        const uint32_t fourcc = (uint32_t)load_le(entry, 4);
        const uint64_t offset = load_le(entry + 8, 8);
        data = fourcc == FOURCC_DATA ? offset : data;
        records = fourcc == FOURCC_TIDX ? offset : records;
        record_bytes = fourcc == FOURCC_TIDX ? load_le(entry + 16, 8) : record_bytes;
        chunks = fourcc == FOURCC_CHNK ? offset : chunks;
    }
    for (uint64_t at = 0; at < record_bytes; at += RECORD_BYTES) {
        uint64_t chunk = load_le(pristine + records + at + 56, 8);
        for (unsigned p = 0; p < 4; p++) {
            const uint64_t offset = load_le(pristine + records + at + 64 + 16 * p, 8);
            const uint64_t size = load_le(pristine + records + at + 72 + 16 * p, 8);
            if (size > 0) { /* every part of the test file is smaller than a chunk */
                store_le(bytes + chunks + 8 * chunk++, ingot_digest64(bytes + data + offset, size),
                         8);
            }
        }
    }
    for (uint64_t i = 0; i + 1 < count; i++) {
        uint8_t *entry = bytes + SUPERBLOCK_BYTES + i * SECTION_BYTES;
        const uint8_t *place = pristine + SUPERBLOCK_BYTES + i * SECTION_BYTES;
        ingot_digest128(entry + 32, bytes + load_le(place + 8, 8), load_le(place + 16, 8));
    }
    ingot_digest128(bytes + 88, bytes + SUPERBLOCK_BYTES, count * SECTION_BYTES);
    store_le(bytes + 120, ingot_digest64(bytes, 120), 8);
    memcpy(bytes + load_le(bytes + 16, 8) - TRAILER_BYTES, bytes + 88, 16);
}

static uint64_t section_offset(const uint8_t *bytes, uint32_t fourcc) {
    for (uint64_t i = 0; i < load_le(bytes + 56, 4); i++) {
        const uint8_t *entry = bytes + SUPERBLOCK_BYTES + i * SECTION_BYTES;
        if (load_le(entry, 4) == fourcc) {
            return load_le(entry + 8, 8);
        }
    }
    return 0;
}

/* What loading the outliers of a tensor says. */
static ingot_status outliers_of(const char *path, uint64_t index, bool verify) {
    ingot_container *container;
    ingot_weight_view view;
    void *buffer;
    CU_ASSERT_EQUAL_FATAL(ingot_open(&container, path, NULL), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ingot_alloc(&buffer, ingot_tensor_at(container, index)->part_bytes[INGOT_PART_OUTLIERS]),
        INGOT_OK);
    const ingot_status status = ingot_outliers_load(container, index, verify, buffer, &view, NULL);
    ingot_free(buffer);
    ingot_close(container);
    return status;
}

static void test_rules(void) {
    make_specs();
    const ingot_writer_plan whole = make_plan(false, 0);
    write_container(path_of("whole.ingot"), &whole, false);
    size_t size;
    uint8_t *bytes = slurp(path_of("whole.ingot"), &size);
    const uint64_t tidx = section_offset(bytes, FOURCC_TIDX);
    const uint64_t data = section_offset(bytes, FOURCC_DATA);
    /* Record 15 is the 8-bit tensor with outliers, 14 the 7-bit one with zeros. */
    const uint64_t r8 = tidx + 15 * RECORD_BYTES;
    const uint64_t r7 = tidx + 14 * RECORD_BYTES;
    const struct {
        uint64_t at;
        uint8_t value;
        ingot_status expected;
    } faults[] = {
        {8, 2, INGOT_BAD_VERSION},
        {31, 1, INGOT_BAD_INCOMPAT},
        {60, 9, INGOT_BAD_SUPERBLOCK},
        {104, 1, INGOT_BAD_SUPERBLOCK},
        {SUPERBLOCK_BYTES, 'X', INGOT_BAD_CRITICAL_SECTION},
        {SUPERBLOCK_BYTES + 8, 0, INGOT_BAD_SECTION_BOUNDS},
        {section_offset(bytes, FOURCC_NAME), 7, INGOT_BAD_NAME},
        {tidx + 6, 9, INGOT_BAD_RECORD},
        {tidx + 7, 0, INGOT_BAD_RECORD},
        {tidx + 130, 1, INGOT_BAD_RECORD},
        {r8 + 41, 9, INGOT_BAD_RECORD},
        {r8 + 41, 7, INGOT_BAD_GEOMETRY},
        {tidx + 64, 8, INGOT_BAD_GEOMETRY},
        {tidx + 56, 3, INGOT_BAD_GEOMETRY},
        {tidx + 16 * RECORD_BYTES + 48, 16, INGOT_BAD_ALIAS},
        {tidx + 16 * RECORD_BYTES + 41, 4, INGOT_BAD_ALIAS},
        {section_offset(bytes, FOURCC_TSRT), 5, INGOT_BAD_SORT},
        {section_offset(bytes, FOURCC_LEDG), 77, INGOT_BAD_LEDGER},
        {section_offset(bytes, FOURCC_LEDG) + 39, 0x80, INGOT_BAD_LEDGER},
        {data + load_le(bytes + r8 + 64, 8) + 101, 1, INGOT_BAD_CODE_PADDING},
        {data + load_le(bytes + r7 + 80, 8) + 1, 0x7c, INGOT_BAD_SCALE},
        {data + load_le(bytes + r7 + 96, 8), 0x80, INGOT_BAD_ZERO_POINT},
        {data + load_le(bytes + r8 + 112, 8), 1, INGOT_BAD_OUTLIER},
        {data + load_le(bytes + r8 + 64, 8), 3, INGOT_BAD_OUTLIER},
        {data + 70, 1, INGOT_BAD_DATA_GAP},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        uint8_t *changed = malloc(size);
        memcpy(changed, bytes, size);
        changed[faults[i].at] = faults[i].value;
        reseal(changed, bytes);
        spill(path_of("fault.ingot"), changed, size);
        const ingot_status status = check_file(path_of("fault.ingot"));
        if (status != faults[i].expected) {
            printf("fault %zu: %s, expected %s\n", i, ingot_status_code(status),
                   ingot_status_code(faults[i].expected));
        }
        CU_ASSERT_EQUAL(status, faults[i].expected);
        if (status == INGOT_BAD_OUTLIER) {
            CU_ASSERT_EQUAL(outliers_of(path_of("fault.ingot"), 15, i % 2 == 0), status);
        }
        free(changed);
    }
    uint8_t *copy = malloc(size);
    memcpy(copy, bytes, size);
    reseal(copy, bytes);
    CU_ASSERT_EQUAL(memcmp(copy, bytes, size), 0);
    free(copy);
    spill(path_of("fault.ingot"), bytes, size);
    CU_ASSERT_EQUAL(check_file(path_of("fault.ingot")), INGOT_OK);
    free(bytes);
}

static void test_writer_refuses(void) {
    make_specs();
    ingot_writer *writer;
    ingot_writer_plan plan = make_plan(false, 0);
    specs[1].name = specs[0].name;
    CU_ASSERT_EQUAL(ingot_writer_create(&writer, path_of("twice.ingot"), true, &plan, NULL),
                    INGOT_ERR_USAGE);
    CU_ASSERT_NOT_EQUAL(access(path_of("twice.ingot.partial"), F_OK), 0);
    make_specs();
    CU_ASSERT_EQUAL_FATAL(ingot_writer_create(&writer, path_of("short.ingot"), true, &plan, NULL),
                          INGOT_OK);
    CU_ASSERT_EQUAL(ingot_writer_finish(writer, 1, NULL, NULL, NULL), INGOT_ERR_INTERNAL);
    CU_ASSERT_NOT_EQUAL(access(path_of("short.ingot"), F_OK), 0);
    CU_ASSERT_NOT_EQUAL(access(path_of("short.ingot.partial"), F_OK), 0);
}

static void test_large_part(void) {
    /* Several chunks, page alignment, streaming. */
    const uint64_t rows = 700;
    const uint64_t cols = 1000;
    ingot_tensor_spec spec = {.name = "big", .rank = 2, .dim = {rows, cols}, .dtype = INGOT_F32};
    ingot_writer_plan plan = {.tensors = &spec, .tensor_count = 1, .meta = "{}", .meta_size = 2};
    uint8_t *bytes = malloc(rows * cols * 4);
    for (uint64_t i = 0; i < rows * cols * 4; i++) {
        bytes[i] = (uint8_t)random_u64();
    }
    ingot_writer *writer;
    CU_ASSERT_EQUAL_FATAL(ingot_writer_create(&writer, path_of("big.ingot"), true, &plan, NULL),
                          INGOT_OK);
    for (uint64_t at = 0; at < rows * cols * 4; at += CHUNK_BYTES) {
        CU_ASSERT_EQUAL_FATAL(
            ingot_writer_put_bytes(writer, 0, bytes + at,
                                   ingot_min_u64(CHUNK_BYTES, rows * cols * 4 - at), at, NULL),
            INGOT_OK);
    }
    CU_ASSERT_EQUAL(ingot_writer_finish(writer, 2, NULL, NULL, NULL), INGOT_OK);
    ingot_container *container;
    CU_ASSERT_EQUAL_FATAL(ingot_open(&container, path_of("big.ingot"), NULL), INGOT_OK);
    uint8_t piece[5000];
    const uint64_t offset = CHUNK_BYTES - 1234;
    CU_ASSERT_EQUAL(
        ingot_part_read(container, 0, INGOT_PART_CODES, offset, sizeof piece, true, piece, NULL),
        INGOT_OK);
    CU_ASSERT_EQUAL(memcmp(piece, bytes + offset, sizeof piece), 0);
    CU_ASSERT_EQUAL(
        ingot_part_read(container, 0, INGOT_PART_CODES, rows * cols * 4 - 1, 2, false, piece, NULL),
        INGOT_ERR_USAGE);
    ingot_close(container);
    free(bytes);
}

/* ---- several writers ------------------------------------------------------------------------ */

enum { BIG_TENSORS = 4 };
static ingot_tensor_spec big_specs[BIG_TENSORS];
static ingot_weight_view big_views[BIG_TENSORS];

/* Tensors of some chunks each, the last of them cut anywhere. */
static ingot_writer_plan make_big_plan(void) {
    static const char *const big_names[BIG_TENSORS] = {"a", "b", "c", "d"};
    for (uint64_t i = 0; i < BIG_TENSORS; i++) {
        const uint64_t size = (i + 1) * CHUNK_BYTES + random_u64() % CHUNK_BYTES;
        uint8_t *bytes = keep(size, 1);
        for (uint64_t k = 0; k < size; k++) {
            bytes[k] = (uint8_t)random_u64();
        }
        big_specs[i] =
            (ingot_tensor_spec){.name = big_names[i], .rank = 1, .dim = {size}, .dtype = INGOT_U8};
        big_views[i] = (ingot_weight_view){
            .kind = INGOT_DENSE, .rows = 1, .cols = size, .dtype = INGOT_U8, .data = bytes};
    }
    return (ingot_writer_plan){
        .tensors = big_specs, .tensor_count = BIG_TENSORS, .meta = "{}", .meta_size = 2};
}

/* begun: the output is reserved in the background before the writer is there. */
static ingot_status write_big(const char *path, ingot_writer_plan plan, unsigned threads,
                              bool begun) {
    ingot_writer *writer = NULL;
    ingot_output *output = NULL;
    ingot_status status = INGOT_OK;
    if (begun) {
        ingot_layout_info layout;
        INGOT_GO(ingot_layout_compute(&layout, &plan, NULL));
        INGOT_GO(ingot_output_create(&output, path, true, NULL));
        ingot_output_reserve_behind(output, layout.file_bytes - 5000 + random_u64() % 10000);
        plan.output = output;
    }
    INGOT_GO(ingot_writer_create(&writer, path, true, &plan, NULL));
    output = NULL;
    INGOT_GO(ingot_writer_use_threads(writer, threads));
    for (uint64_t i = 0; i < BIG_TENSORS; i++) {
        INGOT_GO(ingot_writer_put(writer, i, &big_views[i], NULL, NULL));
    }
    return ingot_writer_finish(writer, threads, NULL, NULL, NULL);
done:
    ingot_writer_abort(writer);
    ingot_output_abort(output);
    return status;
}

static void compare_writers(void) {
    const ingot_writer_plan plan = make_big_plan();
    size_t size, other_size;
    CU_ASSERT_EQUAL_FATAL(write_big(path_of("alone.ingot"), plan, 1, false), INGOT_OK);
    uint8_t *alone = slurp(path_of("alone.ingot"), &size);
    for (unsigned threads = 1; threads <= 9; threads += 2) {
        CU_ASSERT_EQUAL_FATAL(write_big(path_of("threads.ingot"), plan, threads, threads % 4 == 3),
                              INGOT_OK);
        uint8_t *bytes = slurp(path_of("threads.ingot"), &other_size);
        CU_ASSERT_EQUAL_FATAL(other_size, size);
        CU_ASSERT_EQUAL(memcmp(bytes, alone, size), 0);
        free(bytes);
    }
    free(alone);
}

/* The disk is full at every change of the output in turn, whichever thread meets it. */
static void fill_disk(void) {
    const ingot_writer_plan plan = make_big_plan();
    unsigned failures = 0;
    for (uint64_t n = 1; n < 100; n++) {
        ingot_output_fail_after(n);
        const ingot_status status =
            write_big(path_of("full.ingot"), plan, n % 3 == 0 ? 8 : 3, n % 2 != 0);
        ingot_output_fail_after(0);
        CU_ASSERT_NOT_EQUAL(access(path_of("full.ingot.partial"), F_OK), 0);
        if (status == INGOT_OK) {
            break;
        }
        failures++;
        CU_ASSERT_EQUAL(status, INGOT_ERR_NO_SPACE);
        CU_ASSERT_NOT_EQUAL(access(path_of("full.ingot"), F_OK), 0);
    }
    /* reserving, 14 chunks, and what finishing takes */
    CU_ASSERT(failures > 15 && failures < 99);
    CU_ASSERT_EQUAL(check_file(path_of("full.ingot")), INGOT_OK);
}

static int remove_all(const char *path) {
    char command[64];
    (void)snprintf(command, sizeof command, "rm -rf %s", path);
    return system(command);
}

/* The same here and where files are in memory, which threads write by mappings. */
static void in_both_folders(void (*test)(void)) {
    char usual[sizeof folder], memory[] = "/dev/shm/ingot-XXXXXX";
    test();
    if (mkdtemp(memory) == NULL) {
        printf("SKIP: no /dev/shm: not written by mappings\n");
        return;
    }
    memcpy(usual, folder, sizeof usual);
    memcpy(folder, memory, sizeof memory);
    test();
    memcpy(folder, usual, sizeof usual);
    CU_ASSERT_EQUAL(remove_all(memory), 0);
}

static void test_writer_threads(void) {
    in_both_folders(compare_writers);
}

static void test_writer_threads_full(void) {
    in_both_folders(fill_disk);
}

int main(void) {
    const CU_TestInfo tests[] = {{"round trips", test_round_trips},
                                 {"every byte counts", test_every_byte_counts},
                                 {"truncations", test_truncations},
                                 {"each rule has its code", test_rules},
                                 {"the writer refuses", test_writer_refuses},
                                 {"a part of several chunks", test_large_part},
                                 {"several writers", test_writer_threads},
                                 {"several writers on a full disk", test_writer_threads_full},
                                 CU_TEST_INFO_NULL};
    if (mkdtemp(folder) == NULL) {
        return 2;
    }
    const int failed = suite_run("container", tests);
    for (size_t i = 0; i < kept_count; i++) {
        free(kept[i]);
    }
    return remove_all(folder) != 0 || failed;
}
