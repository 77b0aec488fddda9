/* The safetensors reader: what it reads, and every way a header can lie. */
#include "format/safetensors.h"

#include "checkpoint_folder.h"
#include "format/digest.h"

static const char two_tensors[] =
    "{\"__metadata__\":{\"format\":\"pt\"},"
    "\"b\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
    "\"a\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]},"
    "\"empty\":{\"dtype\":\"BF16\",\"shape\":[0,5],\"data_offsets\":[16,16]}}  ";

static void test_reads(void) {
    ingot_safetensors *file;
    uint8_t bytes[12];
    folder_clear();
    put_safetensors("model.safetensors", two_tensors, 16);
    CU_ASSERT_EQUAL_FATAL(ingot_safetensors_open(&file, in_folder("model.safetensors"), &error),
                          INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_safetensors_count(file), 3);
    const ingot_st_tensor *a = ingot_safetensors_at(file, 0);
    const ingot_st_tensor *b = ingot_safetensors_at(file, 1);
    const ingot_st_tensor *empty = ingot_safetensors_at(file, 2);
    CU_ASSERT_STRING_EQUAL(a->name, "a");
    CU_ASSERT(a->rank == 0 && a->elements == 1 && a->bytes == 4 && a->dtype == INGOT_F32);
    CU_ASSERT_STRING_EQUAL(b->name, "b");
    CU_ASSERT(b->rank == 2 && b->dim[0] == 2 && b->dim[1] == 3 && b->elements == 6);
    CU_ASSERT(b->dtype == INGOT_F16 && b->is_supported && b->bytes == 12);
    CU_ASSERT_STRING_EQUAL(b->dtype_name, "F16");
    CU_ASSERT_STRING_EQUAL(empty->name, "empty");
    CU_ASSERT(empty->elements == 0 && empty->bytes == 0);
    CU_ASSERT_EQUAL(b->offset, 8 + strlen(two_tensors) + 4);
    CU_ASSERT_EQUAL(ingot_file_read_at(ingot_safetensors_file(file), bytes, 12, b->offset, &error),
                    INGOT_OK);
    CU_ASSERT(bytes[0] == 4 && bytes[11] == 15);

    uint8_t whole[8 + sizeof two_tensors] = {sizeof two_tensors - 1, 0};
    uint8_t wanted[16];
    uint8_t digest[16];
    CU_ASSERT_FATAL(sizeof two_tensors - 1 < 65536);
    whole[1] = (uint8_t)((sizeof two_tensors - 1) >> 8);
    memcpy(whole + 8, two_tensors, sizeof two_tensors - 1);
    ingot_digest128(wanted, whole, 8 + sizeof two_tensors - 1);
    ingot_safetensors_header_digest(file, digest);
    CU_ASSERT_EQUAL(memcmp(wanted, digest, 16), 0);
    ingot_safetensors_close(file);
    ingot_safetensors_close(NULL);
}

static void test_dtypes(void) {
    static const struct {
        const char *name;
        unsigned bytes;
        bool is_supported;
    } dtypes[] = {
        {"F64", 8, false},  {"F32", 4, true},      {"F16", 2, true},      {"BF16", 2, true},
        {"I64", 8, false},  {"I32", 4, true},      {"I16", 2, false},     {"I8", 1, false},
        {"U8", 1, true},    {"U16", 2, false},     {"U32", 4, false},     {"U64", 8, false},
        {"BOOL", 1, false}, {"F8_E4M3", 1, false}, {"F8_E5M2", 1, false},
    };
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        char header[128];
        ingot_safetensors *file = NULL;
        folder_clear();
        (void)snprintf(header, sizeof header,
                       "{\"t\":{\"dtype\":\"%s\",\"shape\":[3],\"data_offsets\":[0,%u]}}",
                       dtypes[i].name, 3 * dtypes[i].bytes);
        put_safetensors("x.safetensors", header, 3 * dtypes[i].bytes);
        CU_ASSERT_EQUAL_FATAL(ingot_safetensors_open(&file, in_folder("x.safetensors"), &error),
                              INGOT_OK);
        CU_ASSERT_STRING_EQUAL(ingot_safetensors_at(file, 0)->dtype_name, dtypes[i].name);
        CU_ASSERT_EQUAL(ingot_safetensors_at(file, 0)->is_supported, dtypes[i].is_supported);
        ingot_safetensors_close(file);
    }
}

/* Opens x.safetensors and expects a refusal that names the file. */
static void refused(const char *what, ingot_status wanted, const char *text) {
    ingot_safetensors *file = NULL;
    const ingot_status status = ingot_safetensors_open(&file, in_folder("x.safetensors"), &error);
    check_error(what, status, wanted, text);
    CU_ASSERT_PTR_NULL(file);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.file, "x.safetensors"));
    ingot_safetensors_close(file);
}

static void refused_header(const char *header, size_t data_bytes, ingot_status wanted,
                           const char *text) {
    folder_clear();
    put_safetensors("x.safetensors", header, data_bytes);
    refused(header, wanted, text);
}

static void test_lengths(void) {
    static const char header[] = "{\"t\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}";
    const size_t size = sizeof header - 1;
    ingot_safetensors *file = NULL;
    folder_clear();
    CU_ASSERT_EQUAL(ingot_safetensors_open(&file, in_folder("x.safetensors"), &error),
                    INGOT_ERR_NOT_FOUND);
    for (size_t cut = 0; cut < 8; cut++) {
        put_bytes("x.safetensors", "\4\0\0\0\0\0\0\0", cut);
        refused("cut inside the length", INGOT_ERR_INPUT, "too short");
    }
    /* every shorter file: the header or the data are not all there */
    for (size_t cut = 8; cut < 8 + size + 4; cut++) {
        put_safetensors("x.safetensors", header, 4);
        CU_ASSERT_EQUAL_FATAL(truncate(in_folder("x.safetensors"), (off_t)cut), 0);
        refused("truncated", INGOT_ERR_INPUT,
                cut < 8 + size ? "longer than the file" : "truncated");
    }
    put_safetensors("x.safetensors", header, 5);
    refused("bytes behind the end", INGOT_ERR_INPUT, "belong to none");
    put_safetensors_lying("x.safetensors", size + 5, header, 4);
    refused("length beyond the file", INGOT_ERR_INPUT, "longer than the file");
    put_safetensors_lying("x.safetensors", UINT64_MAX, header, 4);
    refused("largest length", INGOT_ERR_INPUT, "100 MB");
    put_safetensors_lying("x.safetensors", 100000001, header, 4);
    refused("over the limit", INGOT_ERR_INPUT, "100 MB");
    put_safetensors_lying("x.safetensors", size - 1, header, 4);
    refused("length before the end", INGOT_ERR_INPUT, "JSON");
    put_safetensors_lying("x.safetensors", 0, header, 4);
    refused("no header", INGOT_ERR_INPUT, "JSON");
}

/* What a clone without Git LFS has in place of its large files. */
static void test_pointer(void) {
    static const char pointer[] =
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
        "size 16060556376\n";
    folder_clear();
    put_bytes("x.safetensors", pointer, sizeof pointer - 1);
    refused("a pointer", INGOT_ERR_INPUT, "is a pointer of Git LFS, not the file itself");
    refused("a pointer", INGOT_ERR_INPUT, "git lfs pull");
    put_bytes("x.safetensors", pointer, 20);
    refused("its first bytes", INGOT_ERR_INPUT, "100 MB");
}

static void test_json(void) {
    refused_header("", 0, INGOT_ERR_INPUT, "JSON");
    refused_header("[]", 0, INGOT_ERR_INPUT, "not a JSON object");
    refused_header(" {}", 0, INGOT_ERR_INPUT, "not a JSON object");
    refused_header("{\"a\":1", 0, INGOT_ERR_INPUT, "JSON");
    refused_header("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
                   "\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
                   2, INGOT_ERR_INPUT, "uplicate");
    refused_header("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"I8\",\"shape\":[1],"
                   "\"data_offsets\":[0,1]}}",
                   1, INGOT_ERR_INPUT, "uplicate");
    refused_header("{\"__metadata__\":[]}", 0, INGOT_ERR_INPUT, "__metadata__");
    refused_header("{\"__metadata__\":{\"a\":1}}", 0, INGOT_ERR_INPUT, "__metadata__");
    refused_header("{\"a\":3}", 0, INGOT_ERR_INPUT, "a: its entry");
    char deep[512] = "{\"a\":";
    memset(deep + strlen(deep), '[', 400);
    refused_header(deep, 0, INGOT_ERR_INPUT, "deep");
}

static void test_names(void) {
    refused_header("{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
                   INGOT_ERR_INPUT, "name");
    refused_header("{\"a b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
                   INGOT_ERR_INPUT, "name");
    refused_header("{\"a\\n\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
                   INGOT_ERR_INPUT, "name");
    refused_header("{\"\\u00e4\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
                   INGOT_ERR_INPUT, "name");
    for (unsigned length = 255; length <= 256; length++) {
        char name[257];
        char header[400];
        ingot_safetensors *file = NULL;
        memset(name, 'n', sizeof name);
        name[length] = '\0';
        (void)snprintf(header, sizeof header,
                       "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
        folder_clear();
        put_safetensors("x.safetensors", header, 1);
        CU_ASSERT_EQUAL(ingot_safetensors_open(&file, in_folder("x.safetensors"), &error),
                        length == 255 ? INGOT_OK : INGOT_ERR_INPUT);
        ingot_safetensors_close(file);
    }
}

#define TENSOR(name, rest) "\"" name "\":{" rest "}"

static void test_entries(void) {
    static const struct {
        const char *entry;
        size_t data_bytes;
        ingot_status status;
        const char *text;
    } cases[] = {
        {"\"shape\":[1],\"data_offsets\":[0,1]", 1, INGOT_ERR_INPUT, "t: has no dtype"},
        {"\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]", 1, INGOT_ERR_INPUT, "no dtype"},
        {"\"dtype\":\"F61\",\"shape\":[1],\"data_offsets\":[0,1]", 1, INGOT_ERR_UNSUPPORTED,
         "t: dtype 'F61'"},
        {"\"dtype\":\"U8\",\"data_offsets\":[0,1]", 1, INGOT_ERR_INPUT, "t: has no shape"},
        {"\"dtype\":\"U8\",\"shape\":4,\"data_offsets\":[0,4]", 4, INGOT_ERR_INPUT, "no shape"},
        {"\"dtype\":\"U8\",\"shape\":[1,1,1,1,1],\"data_offsets\":[0,1]", 1, INGOT_ERR_INPUT,
         "dimensions"},
        {"\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]", 1, INGOT_ERR_INPUT, "dimension"},
        {"\"dtype\":\"U8\",\"shape\":[1.5],\"data_offsets\":[0,1]", 1, INGOT_ERR_INPUT,
         "dimension"},
        {"\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]", 1, INGOT_ERR_INPUT,
         "dimension"},
        {"\"dtype\":\"U8\",\"shape\":[9223372036854775808],\"data_offsets\":[0,1]", 1,
         INGOT_ERR_INPUT, "JSON"},
        {"\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]", 0,
         INGOT_ERR_INPUT, "overflows"},
        /* 2^62 elements of 4 bytes are 0 bytes, modulo 2^64 */
        {"\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]", 0,
         INGOT_ERR_INPUT, "does not give the size"},
        {"\"dtype\":\"U8\",\"shape\":[4611686018427387904,4],\"data_offsets\":[0,0]", 0,
         INGOT_ERR_INPUT, "overflows"},
        {"\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]", 4, INGOT_ERR_INPUT,
         "does not give the size"},
        {"\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,8]", 8, INGOT_ERR_INPUT,
         "does not give the size"},
        {"\"dtype\":\"U8\",\"shape\":[1]", 1, INGOT_ERR_INPUT, "data_offsets"},
        {"\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]", 1, INGOT_ERR_INPUT, "data_offsets"},
        {"\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]", 1, INGOT_ERR_INPUT,
         "data_offsets"},
        {"\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,0]", 1, INGOT_ERR_INPUT,
         "data_offsets"},
        {"\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]", 1, INGOT_ERR_INPUT,
         "data_offsets"},
        {"\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0.0,1.0]", 1, INGOT_ERR_INPUT,
         "data_offsets"},
        {"\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]", 1, INGOT_ERR_INPUT, "beyond"},
        {"\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9223372036854775806,"
         "9223372036854775807]",
         1, INGOT_ERR_INPUT, "beyond"},
        {"\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]", 2, INGOT_ERR_INPUT, "gap"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char header[256];
        (void)snprintf(header, sizeof header, "{\"t\":{%s}}", cases[i].entry);
        refused_header(header, cases[i].data_bytes, cases[i].status, cases[i].text);
    }
}

static void test_cover(void) {
    refused_header(
        "{" TENSOR("a", "\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]") "," TENSOR(
            "b", "\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[3,7]") "}",
        7, INGOT_ERR_INPUT, "b: its data overlap");
    refused_header(
        "{" TENSOR("a", "\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]") "," TENSOR(
            "b", "\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]") "}",
        4, INGOT_ERR_INPUT, "overlap");
    refused_header(
        "{" TENSOR("a", "\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]") "," TENSOR(
            "b", "\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[5,9]") "}",
        9, INGOT_ERR_INPUT, "b: there is a gap");
    refused_header(
        "{" TENSOR("a", "\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]") "," TENSOR(
            "z", "\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]") "}",
        4, INGOT_ERR_INPUT, "overlap");
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"tensors, scalars, empty ones, digest of the header", test_reads},
        {"every dtype", test_dtypes},
        {"truncated and lying lengths", test_lengths},
        {"a pointer of Git LFS", test_pointer},
        {"headers that are no tensor table", test_json},
        {"names", test_names},
        {"entries that contradict themselves", test_entries},
        {"overlaps, gaps", test_cover},
        CU_TEST_INFO_NULL,
    };
    folder_make();
    const int result = suite_run("safetensors", tests);
    folder_remove();
    return result;
}
