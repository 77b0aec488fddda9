/* The conformance vectors of spec/vectors/ through the public reader: the values and digests of
 * valid files, the first error of invalid ones, the future; and the writer reproduces what it can
 * express byte for byte. */
#include "common/files.h"
#include "common/json.h"
#include "common/memory.h"
#include "format/container_write.h"
#include "format/digest.h"
#include "format/ingot.h"
#include "suite.h"

#include <string.h>
#include <unistd.h>

#define FOLDER "spec/vectors/"

static json_t *manifest;

static const char *text(const json_t *object, const char *key) {
    const char *value = json_string_value(json_object_get(object, key));
    return value != NULL ? value : "";
}

static void path_of(char path[256], const json_t *entry) {
    (void)snprintf(path, 256, FOLDER "%s", text(entry, "file"));
}

static char *to_hex(const uint8_t *bytes, uint64_t size) {
    char *out = malloc(2 * size + 1);
    for (uint64_t i = 0; i < size; i++) {
        (void)snprintf(out + 2 * i, 3, "%02x", bytes[i]);
    }
    out[2 * size] = '\0';
    return out;
}

/* ---- values -----------------------------------------------------------------------------------
 */

/* What the manifest calls the values of a tensor: bytes of dense ones, binary32 of grouped ones. */
static uint8_t *values_of(const ingot_weight_view *v, uint64_t *size) {
    const uint64_t element = v->kind == INGOT_DENSE ? ingot_dtype_bytes(v->dtype) : sizeof(float);
    *size = v->rows * v->cols * element;
    uint8_t *out = malloc(*size + 1);
    if (v->kind == INGOT_DENSE) {
        if (*size != 0) {
            memcpy(out, v->data, *size);
        }
        return out;
    }
    for (uint64_t r = 0; r < v->rows; r++) {
        float *row = (float *)(void *)(out + r * v->cols * sizeof(float));
        ingot_weight_row(row, v, r, v->cols);
        for (uint64_t i = 0; i < v->cols; i++) {
            row[i] = row[i] == 0.0f ? 0.0f : row[i]; /* the zeros are equal */
        }
    }
    return out;
}

/* The manifest's hexadecimal with negative zeros of grouped values made positive. */
static bool same_values(const char *wanted, const char *got, bool is_grouped) {
    if (!is_grouped || strlen(wanted) != strlen(got)) {
        return strcmp(wanted, got) == 0;
    }
    for (size_t i = 0; wanted[i] != '\0'; i += 8) {
        const bool is_zero = strncmp(wanted + i, "00000080", 8) == 0;
        if (strncmp(is_zero ? "00000000" : wanted + i, got + i, 8) != 0) {
            return false;
        }
    }
    return true;
}

static void check_tensor(const ingot_container *c, uint64_t index, const json_t *wanted) {
    static const char *const kinds[] = {"dense", "grouped", "alias", "auxiliary"};
    const ingot_tensor *t = ingot_tensor_at(c, index);
    const json_t *shape = json_object_get(wanted, "shape");
    CU_ASSERT_STRING_EQUAL(t->name, text(wanted, "name"));
    CU_ASSERT_STRING_EQUAL(kinds[t->kind], text(wanted, "kind"));
    CU_ASSERT(t->rank == json_array_size(shape));
    for (unsigned i = 0; i < t->rank; i++) {
        CU_ASSERT(t->dim[i] == (uint64_t)json_integer_value(json_array_get(shape, i)));
    }
    ingot_weight_view view;
    void *buffer = NULL;
    CU_ASSERT_FATAL(ingot_alloc(&buffer, ingot_tensor_load_bytes(c, index)) == INGOT_OK);
    CU_ASSERT_FATAL(ingot_tensor_load(c, index, true, buffer, &view, NULL) == INGOT_OK);
    uint64_t size;
    uint8_t *values = values_of(&view, &size);
    if (json_object_get(wanted, "values_xxh3_64") != NULL) {
        char digest[17];
        (void)snprintf(digest, sizeof digest, "%016llx",
                       (unsigned long long)ingot_digest64(values, size));
        CU_ASSERT_STRING_EQUAL(digest, text(wanted, "values_xxh3_64"));
    } else {
        char *hex = to_hex(values, size);
        CU_ASSERT(same_values(text(wanted, "values"), hex, view.kind == INGOT_GROUPED));
        free(hex);
    }
    free(values);
    ingot_free(buffer);
}

static void check_content(const ingot_container *c, const json_t *entry) {
    const json_t *tensors = json_object_get(entry, "tensors"), *files;
    ingot_info info;
    char digest[33];
    ingot_get_info(c, &info);
    CU_ASSERT(info.profile == (uint32_t)json_integer_value(json_object_get(entry, "profile")));
    ingot_digest_hex(digest, info.content_id);
    CU_ASSERT_STRING_EQUAL(digest, text(entry, "content_id"));
    ingot_digest_hex(digest, info.root);
    CU_ASSERT_STRING_EQUAL(digest, text(entry, "root"));
    uint64_t size;
    const char *meta = ingot_meta(c, &size),
               *wanted = text(entry, "meta"); /* may have a NUL byte */
    CU_ASSERT(size == json_string_length(json_object_get(entry, "meta")) &&
              memcmp(meta, wanted, size) == 0);
    files = json_object_get(entry, "files");
    CU_ASSERT(ingot_file_entry_count(c) == json_object_size(files));
    for (uint64_t i = 0; i < ingot_file_entry_count(c); i++) {
        const char *name = ingot_file_entry_name(c, i);
        const void *bytes = ingot_file_entry(c, name, &size);
        char *hex = to_hex(bytes, size);
        CU_ASSERT_STRING_EQUAL(hex, text(files, name));
        free(hex);
    }
    CU_ASSERT_FATAL(ingot_tensor_count(c) == json_array_size(tensors));
    for (uint64_t i = 0; i < ingot_tensor_count(c); i++) {
        check_tensor(c, i, json_array_get(tensors, i));
    }
}

/* Opens and checks in full; the first error's code, or NULL with the container open. */
static const char *first_code(ingot_container **c, const char *path) {
    ingot_status status = ingot_open(c, path, NULL);
    if (status == INGOT_OK) {
        status = ingot_check_full(*c, 2, NULL, NULL, NULL);
        if (status != INGOT_OK) {
            ingot_close(*c);
        }
    }
    return status == INGOT_OK ? NULL : ingot_status_code(status);
}

static void check_entry(const json_t *entry) {
    char path[256];
    ingot_container *c = NULL;
    path_of(path, entry);
    const char *code = first_code(&c, path), *wanted = text(entry, "code");
    if (strcmp(code != NULL ? code : "", wanted) != 0) {
        printf("  %s: %s, expected %s\n", path, code != NULL ? code : "no error", wanted);
    }
    CU_ASSERT_STRING_EQUAL(code != NULL ? code : "", wanted);
    if (code == NULL) {
        if (*wanted == '\0') {
            check_content(c, entry);
        }
        ingot_close(c);
    }
}

static void check_all(const char *kind, size_t least) {
    const json_t *entries = json_object_get(manifest, kind);
    CU_ASSERT_FATAL(json_array_size(entries) >= least);
    for (size_t i = 0; i < json_array_size(entries); i++) {
        check_entry(json_array_get(entries, i));
    }
}

static void test_valid(void) {
    check_all("valid", 30);
}
static void test_invalid(void) {
    check_all("invalid", 60);
}
static void test_future(void) {
    check_all("future", 7);
}

/* Every code of the specification has a vector. */
static void test_every_code(void) {
    static const char *const codes[] = {
#define INGOT_CONTAINER_CODE(NAME, number, words) "E_" #NAME,
#include "common/ingot_container_codes.h"
#undef INGOT_CONTAINER_CODE
    };
    for (size_t k = 0; k < sizeof codes / sizeof codes[0]; k++) {
        bool is_there = strcmp(codes[k], "E_META") == 0; /* a rule of ingot-verify alone */
        for (unsigned side = 0; side < 2; side++) {
            const json_t *entries = json_object_get(manifest, side == 0 ? "invalid" : "future");
            for (size_t i = 0; i < json_array_size(entries); i++) {
                is_there =
                    is_there || strcmp(text(json_array_get(entries, i), "code"), codes[k]) == 0;
            }
        }
        if (!is_there) {
            printf("  no vector for %s\n", codes[k]);
        }
        CU_ASSERT(is_there);
    }
}

/* ---- writing ----------------------------------------------------------------------------------
 */

static ingot_tensor_spec spec_of(const ingot_tensor *t) {
    ingot_tensor_spec spec = {.name = t->name,
                              .kind = t->kind,
                              .rank = t->rank,
                              .dtype = t->dtype,
                              .bits = t->bits,
                              .scale_dtype = t->scale_dtype,
                              .zero_mode = t->zero_mode,
                              .group = t->group,
                              .outlier_count = t->kind == INGOT_GROUPED ? t->outlier_count : 0,
                              .alias_of = t->alias_of};
    memcpy(spec.dim, t->dim, sizeof spec.dim);
    return spec;
}

static void put_tensors(ingot_writer *writer, const ingot_container *c, uint64_t count) {
    for (uint64_t i = 0; i < count; i++) {
        ingot_ledger ledger;
        ingot_weight_view view;
        void *buffer = NULL;
        ingot_ledger_at(c, i, &ledger);
        if (ingot_tensor_at(c, i)->kind == INGOT_ALIAS) {
            ingot_writer_put_ledger(writer, i, &ledger);
            continue;
        }
        CU_ASSERT_FATAL(ingot_alloc(&buffer, ingot_tensor_load_bytes(c, i)) == INGOT_OK);
        CU_ASSERT_FATAL(ingot_tensor_load(c, i, true, buffer, &view, NULL) == INGOT_OK);
        CU_ASSERT(ingot_writer_put(writer, i, &view, &ledger, NULL) == INGOT_OK);
        ingot_free(buffer);
    }
}

static bool same_files(const char *a, const char *b) {
    char *x = NULL, *y = NULL;
    uint64_t m = 0, n = 0;
    const bool is_read = ingot_file_read_all(a, UINT64_C(1) << 30, &x, &m, NULL) == INGOT_OK &&
                         ingot_file_read_all(b, UINT64_C(1) << 30, &y, &n, NULL) == INGOT_OK;
    const bool is_same = is_read && m == n && memcmp(x, y, m) == 0;
    ingot_free(x);
    ingot_free(y);
    return is_same;
}

static void rewrite(const char *path, const ingot_container *c) {
    char out[64] = "/tmp/ingot-vector-XXXXXX";
    const int descriptor = mkstemp(out);
    CU_ASSERT_FATAL(descriptor >= 0);
    (void)close(descriptor);
    const uint64_t count = ingot_tensor_count(c), files = ingot_file_entry_count(c);
    ingot_tensor_spec *specs = calloc(count + 1, sizeof *specs);
    ingot_file_spec *entries = calloc(files + 1, sizeof *entries);
    for (uint64_t i = 0; i < count; i++) {
        specs[i] = spec_of(ingot_tensor_at(c, i));
    }
    for (uint64_t i = 0; i < files; i++) {
        entries[i].name = ingot_file_entry_name(c, i);
        entries[i].bytes = ingot_file_entry(c, entries[i].name, &entries[i].size);
    }
    ingot_info info;
    ingot_get_info(c, &info);
    ingot_writer_plan plan = {.profile = info.profile,
                              .tensors = specs,
                              .tensor_count = count,
                              .files = entries,
                              .file_count = files};
    plan.meta = ingot_meta(c, &plan.meta_size);
    ingot_writer *writer = NULL;
    CU_ASSERT_FATAL(ingot_writer_create(&writer, out, true, &plan, NULL) == INGOT_OK);
    put_tensors(writer, c, count);
    CU_ASSERT(ingot_writer_finish(writer, 1, NULL, NULL, NULL) == INGOT_OK);
    const bool is_same = same_files(path, out);
    if (!is_same) {
        printf("  %s is written differently\n", path);
    }
    CU_ASSERT(is_same);
    (void)unlink(out);
    free(specs);
    free(entries);
}

/* The writer puts an alias behind its target, so that both are in one shard. */
static bool has_near_aliases(const ingot_container *c) {
    for (uint64_t i = 0; i < ingot_tensor_count(c); i++) {
        const ingot_tensor *t = ingot_tensor_at(c, i);
        const ingot_tensor *before = i > 0 ? ingot_tensor_at(c, i - 1) : NULL;
        if (t->kind == INGOT_ALIAS && t->alias_of + 1 != i &&
            !(before != NULL && before->kind == INGOT_ALIAS && before->alias_of == t->alias_of)) {
            return false;
        }
    }
    return true;
}

/* All valid vectors but sets (their shards are cut by size) and compressed ones (the bytes of a
 * compressor are not prescribed). */
static void test_writer(void) {
    const json_t *entries = json_object_get(manifest, "valid");
    unsigned count = 0;
    for (size_t i = 0; i < json_array_size(entries); i++) {
        char path[256];
        ingot_container *c = NULL;
        ingot_info info;
        path_of(path, json_array_get(entries, i));
        CU_ASSERT_FATAL(ingot_open(&c, path, NULL) == INGOT_OK);
        ingot_get_info(c, &info);
        if (info.shard_count == 1 && !info.is_compressed && has_near_aliases(c)) {
            rewrite(path, c);
            count++;
        }
        ingot_close(c);
    }
    CU_ASSERT(count >= 25);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"valid", test_valid},       {"invalid", test_invalid},
        {"future", test_future},     {"a vector for every code", test_every_code},
        {"the writer", test_writer}, CU_TEST_INFO_NULL,
    };
    manifest = json_load_file(FOLDER "vectors.json", JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL);
    if (manifest == NULL) {
        printf(FOLDER "vectors.json cannot be read\n");
        return 2;
    }
    const int result = suite_run("vectors", tests);
    json_decref(manifest);
    return result;
}
