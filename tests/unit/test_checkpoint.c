/* Checkpoint folders: whole ones, and every disagreement between config, index and shards; the
 * weight source over them. */
#include "format/checkpoint.h"

#include "checkpoint_folder.h"
#include "format/weight_source.h"

#include <pthread.h>

#define SHARD_1 "model-00001-of-00002.safetensors"
#define SHARD_2 "model-00002-of-00002.safetensors"
#define INDEX   "model.safetensors.index.json"

static const char header_1[] = "{\"z\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
                               "\"m\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[12,20]}}";
static const char header_2[] = "{\"a\":{\"dtype\":\"BF16\",\"shape\":[4],\"data_offsets\":[0,8]},"
                               "\"y\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[8,20]}}";
static const char index_text[] =
    "{\"metadata\":{\"total_size\":1},\"weight_map\":{\"z\":\"" SHARD_1 "\",\"m\":\"" SHARD_1
    "\",\"a\":\"" SHARD_2 "\",\"y\":\"" SHARD_2 "\"}}";

static void put_single(void) {
    folder_clear();
    put_text("config.json", "{}");
    put_safetensors("model.safetensors", header_1, 20);
}

static void put_sharded(void) {
    folder_clear();
    put_text("config.json", "{}");
    put_safetensors(SHARD_1, header_1, 20);
    put_safetensors(SHARD_2, header_2, 20);
    put_text(INDEX, index_text);
}

static ingot_checkpoint *opened(void) {
    ingot_checkpoint *checkpoint = NULL;
    const ingot_status status = ingot_checkpoint_open(&checkpoint, folder, &error);
    if (status != INGOT_OK) {
        printf("\n    %s: %s", error.file, error.reason);
    }
    CU_ASSERT_EQUAL_FATAL(status, INGOT_OK);
    return checkpoint;
}

static void refused(const char *what, ingot_status wanted, const char *text) {
    ingot_checkpoint *checkpoint = NULL;
    const ingot_status status = ingot_checkpoint_open(&checkpoint, folder, &error);
    check_error(what, status, wanted, text);
    CU_ASSERT_PTR_NULL(checkpoint);
    CU_ASSERT(error.remedy[0] != '\0');
    ingot_checkpoint_close(checkpoint);
}

static void test_single(void) {
    put_single();
    ingot_checkpoint *checkpoint = opened();
    uint64_t index = 7;
    uint8_t bytes[4];
    CU_ASSERT_EQUAL(ingot_checkpoint_count(checkpoint), 2);
    CU_ASSERT_EQUAL(ingot_checkpoint_shard_count(checkpoint), 1);
    CU_ASSERT_STRING_EQUAL(ingot_checkpoint_path(checkpoint), folder);
    const ingot_st_tensor *m = ingot_checkpoint_find(checkpoint, "m", &index);
    CU_ASSERT_PTR_NOT_NULL_FATAL(m);
    CU_ASSERT_EQUAL(index, 1);
    CU_ASSERT_PTR_EQUAL(m, ingot_checkpoint_at(checkpoint, 1));
    CU_ASSERT_PTR_NULL(ingot_checkpoint_find(checkpoint, "mm", NULL));
    CU_ASSERT_EQUAL(ingot_checkpoint_read(checkpoint, 1, 4, 4, bytes, &error), INGOT_OK);
    CU_ASSERT(bytes[0] == 16 && bytes[3] == 19);
    CU_ASSERT_EQUAL(ingot_checkpoint_read(checkpoint, 1, 4, 5, bytes, &error), INGOT_ERR_INTERNAL);
    CU_ASSERT_EQUAL(ingot_checkpoint_read(checkpoint, 1, UINT64_MAX, 2, bytes, &error),
                    INGOT_ERR_INTERNAL);
    ingot_checkpoint_close(checkpoint);
    ingot_checkpoint_close(NULL);
}

static void test_sharded(void) {
    static const char *const names[] = {"z", "m", "a", "y"};
    put_sharded();
    ingot_checkpoint *checkpoint = opened();
    CU_ASSERT_EQUAL_FATAL(ingot_checkpoint_count(checkpoint), 4);
    CU_ASSERT_EQUAL(ingot_checkpoint_shard_count(checkpoint), 2);
    for (uint64_t i = 0; i < 4; i++) {
        uint64_t index;
        CU_ASSERT_STRING_EQUAL(ingot_checkpoint_at(checkpoint, i)->name, names[i]);
        CU_ASSERT_PTR_NOT_NULL(ingot_checkpoint_find(checkpoint, names[i], &index));
        CU_ASSERT_EQUAL(index, i);
        CU_ASSERT_PTR_NOT_NULL(
            strstr(ingot_checkpoint_shard_path(checkpoint, i), i < 2 ? SHARD_1 : SHARD_2));
    }
    ingot_checkpoint_close(checkpoint);

    /* A single file beside the index counts alone. */
    put_safetensors("model.safetensors", header_2, 20);
    checkpoint = opened();
    CU_ASSERT_EQUAL(ingot_checkpoint_count(checkpoint), 2);
    CU_ASSERT_PTR_NULL(ingot_checkpoint_find(checkpoint, "z", NULL));
    ingot_checkpoint_close(checkpoint);
}

static void test_files(void) {
    uint64_t size = 0;
    put_single();
    put_text("tokenizer.json", "{\"a\":\"\\u0000\"}");
    put_text("LICENSE", "");
    put_text("notes.txt", "stays at home");
    put_text("training_args.bin", "x");
    CU_ASSERT_EQUAL_FATAL(mkdir(in_folder("README.md"), 0755), 0);
    ingot_checkpoint *checkpoint = opened();
    CU_ASSERT_EQUAL_FATAL(ingot_checkpoint_file_count(checkpoint), 3);
    CU_ASSERT_STRING_EQUAL(ingot_checkpoint_file_name(checkpoint, 0), "LICENSE");
    CU_ASSERT_STRING_EQUAL(ingot_checkpoint_file_name(checkpoint, 1), "config.json");
    CU_ASSERT_STRING_EQUAL(ingot_checkpoint_file_name(checkpoint, 2), "tokenizer.json");
    CU_ASSERT_STRING_EQUAL(ingot_checkpoint_file(checkpoint, "tokenizer.json", &size),
                           "{\"a\":\"\\u0000\"}");
    CU_ASSERT_EQUAL(size, 14);
    CU_ASSERT_PTR_NULL(ingot_checkpoint_file(checkpoint, "notes.txt", &size));
    ingot_checkpoint_close(checkpoint);

    /* It would travel, and no tokenizer come out at the other end. */
    put_text("tokenizer.json",
             "version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n");
    refused("a pointer of Git LFS", INGOT_ERR_INPUT, "tokenizer.json: is a pointer of Git LFS");
}

static void test_no_checkpoint(void) {
    ingot_checkpoint *checkpoint = NULL;
    put_single();
    check_error("missing folder", ingot_checkpoint_open(&checkpoint, in_folder("no-such"), &error),
                INGOT_ERR_NOT_FOUND, "does not exist");
    check_error("a file", ingot_checkpoint_open(&checkpoint, in_folder("config.json"), &error),
                INGOT_ERR_INPUT, "not a folder");
    char *longest = malloc(5000);
    CU_ASSERT_PTR_NOT_NULL_FATAL(longest);
    /* the same folder by a path that would be cut to a legal one */
    (void)snprintf(longest, 5000, "%s", folder);
    for (size_t i = strlen(longest); i < 1022; i += 2) {
        memcpy(longest + i, "/.", 3);
    }
    check_error("a long path", ingot_checkpoint_open(&checkpoint, longest, &error), INGOT_ERR_INPUT,
                "too long");
    memset(longest, '/', 4999);
    memcpy(longest, folder, strlen(folder));
    longest[2000] = '\0';
    check_error("a longer path", ingot_checkpoint_open(&checkpoint, longest, &error),
                INGOT_ERR_INPUT, "too long");
    free(longest);

    folder_clear();
    put_safetensors("model.safetensors", header_1, 20);
    refused("no config", INGOT_ERR_NOT_FOUND, "config.json");
    put_text("config.json", "{");
    refused("broken config", INGOT_ERR_INPUT, "JSON");
    put_text("config.json", "[1]");
    refused("config is a list", INGOT_ERR_INPUT, "not a JSON object");
    put_text("config.json", "{\"a\":1,\"a\":2}");
    refused("config says a thing twice", INGOT_ERR_INPUT, "uplicate");

    folder_clear();
    put_text("config.json", "{}");
    refused("nothing there", INGOT_ERR_NOT_FOUND, "model.safetensors");
    static const char *const foreign[] = {"pytorch_model.bin", "model.pt", "consolidated.00.pth",
                                          "model.gguf"};
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++) {
        folder_clear();
        put_text("config.json", "{}");
        put_text("training_args.bin", "x");
        put_text(foreign[i], "larger");
        refused(foreign[i], INGOT_ERR_UNSUPPORTED, foreign[i]);
    }
}

static void test_unreadable(void) {
    put_single();
    if (geteuid() == 0) {
        printf("SKIP: root reads everything ");
        return;
    }
    CU_ASSERT_EQUAL_FATAL(chmod(in_folder("model.safetensors"), 0), 0);
    refused("unreadable weights", INGOT_ERR_IO, "model.safetensors");
}

static void test_quantized(void) {
    put_single();
    put_text("config.json", "{\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4}}");
    refused("quantization_config", INGOT_ERR_UNSUPPORTED, "quantization_config: awq");
    put_text("config.json", "{\"quantization_config\":{}}");
    refused("quantization_config without method", INGOT_ERR_UNSUPPORTED, "already quantized");
    put_text("config.json", "{\"quantization_config\":null}");
    ingot_checkpoint_close(opened());

    static const char *const dtypes[] = {"F8_E4M3", "F8_E5M2"};
    for (size_t i = 0; i < 2; i++) {
        char header[128];
        put_single();
        (void)snprintf(header, sizeof header,
                       "{\"w\":{\"dtype\":\"%s\",\"shape\":[4],\"data_offsets\":[0,4]}}",
                       dtypes[i]);
        put_safetensors("model.safetensors", header, 4);
        refused(dtypes[i], INGOT_ERR_UNSUPPORTED, dtypes[i]);
        CU_ASSERT_STRING_EQUAL(error.tensor, "w");
    }
    static const char *const names[] = {"qweight", "weight_packed", "scales", "SCB"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char header[128];
        put_single();
        (void)snprintf(header, sizeof header,
                       "{\"l.%s\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                       names[i]);
        put_safetensors("model.safetensors", header, 4);
        refused(names[i], INGOT_ERR_UNSUPPORTED, "already quantized");
    }
}

static void test_index(void) {
    static const char *const illegal[] = {
        "../x.safetensors", "/etc/x.safetensors", "a/b.safetensors",  "..",    "",
        ".safetensors",     "model.bin",          "x.safetensors\\n", "model",
    };
    for (size_t i = 0; i < sizeof illegal / sizeof *illegal; i++) {
        char text[128];
        put_sharded();
        (void)snprintf(text, sizeof text, "{\"weight_map\":{\"z\":\"%s\"}}", illegal[i]);
        put_text(INDEX, text);
        refused(illegal[i], INGOT_ERR_INPUT, "z: the index names no legal shard");
    }
    put_sharded();
    put_text(INDEX, "not JSON");
    refused("index", INGOT_ERR_INPUT, INDEX);
    put_text(INDEX, "{}");
    refused("index", INGOT_ERR_INPUT, "weight_map");
    put_text(INDEX, "{\"weight_map\":{\"z\":3}}");
    refused("index", INGOT_ERR_INPUT, "z: the index names no legal shard");
    put_text(INDEX, "{\"weight_map\":{\"z\":\"" SHARD_1 "\",\"z\":\"" SHARD_2 "\"}}");
    refused("index", INGOT_ERR_INPUT, "uplicate");

    put_sharded();
    CU_ASSERT_EQUAL_FATAL(unlink(in_folder(SHARD_2)), 0);
    refused("missing shard", INGOT_ERR_NOT_FOUND, SHARD_2);

    put_sharded();
    put_safetensors(SHARD_2, "{}", 0);
    refused("in the index, not in the shard", INGOT_ERR_INPUT, "which does not have it");
    put_text(INDEX, "{\"weight_map\":{\"z\":\"" SHARD_1 "\"}}");
    refused("in the shard, not in the index", INGOT_ERR_INPUT, "m: stands in " SHARD_1);

    put_sharded();
    put_text(INDEX, "{\"weight_map\":{\"z\":\"" SHARD_2 "\",\"m\":\"" SHARD_1 "\",\"a\":\"" SHARD_2
                    "\",\"y\":\"" SHARD_2 "\"}}");
    refused("in another shard", INGOT_ERR_INPUT, "z: stands in " SHARD_1 ", but the index says");

    put_sharded();
    put_safetensors(SHARD_2, header_1, 20);
    refused("in two shards", INGOT_ERR_INPUT, "two shards");
    put_safetensors(SHARD_2, header_2, 19);
    refused("truncated shard", INGOT_ERR_INPUT, SHARD_2);
}

/* ---- as a weight source ------------------------------------------------------------------------
 */

static void test_source(void) {
    ingot_weight_source source;
    ingot_weight_info info;
    ingot_weight_view view;
    ingot_arena *arena;
    put_sharded();
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_weight_source_open(&source, folder, true, &error), INGOT_OK);
    CU_ASSERT(source.describe(source.self, "y", &info));
    CU_ASSERT(info.rank == 2 && info.dim[0] == 2 && info.dim[1] == 3 && info.load_bytes == 12);
    CU_ASSERT(info.kind == INGOT_DENSE && info.dtype == INGOT_F16 && info.is_float);
    CU_ASSERT_FALSE(source.describe(source.self, "x", &info));
    CU_ASSERT_EQUAL(source.load(source.self, "y", arena, &view, &error), INGOT_OK);
    CU_ASSERT(view.kind == INGOT_DENSE && view.rows == 2 && view.cols == 3);
    CU_ASSERT(((const uint8_t *)view.data)[0] == 8 && ((const uint8_t *)view.data)[11] == 19);
    CU_ASSERT_EQUAL(source.load(source.self, "a", arena, &view, &error), INGOT_OK);
    CU_ASSERT(view.rows == 1 && view.cols == 4 && view.dtype == INGOT_BF16);
    check_error("load", source.load(source.self, "x", arena, &view, &error), INGOT_ERR_NOT_FOUND,
                "x: there is no such tensor");
    CU_ASSERT_STRING_EQUAL(source.name_at(source.self, 3), "y");
    CU_ASSERT_PTR_NULL(source.name_at(source.self, 4));

    bool is_same = true;
    CU_ASSERT_EQUAL(source.is_same(source.self, "z", "y", &is_same, &error), INGOT_OK);
    CU_ASSERT_FALSE(is_same); /* same shape, bytes 0.. and 8.. */
    CU_ASSERT_EQUAL(source.is_same(source.self, "z", "z", &is_same, &error), INGOT_OK);
    CU_ASSERT(is_same);
    CU_ASSERT_EQUAL(source.is_same(source.self, "z", "m", &is_same, &error), INGOT_OK);
    CU_ASSERT_FALSE(is_same);
    ingot_weight_source_close(&source);

    put_single();
    put_safetensors("model.safetensors",
                    "{\"i\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,8]},"
                    "\"j\":{\"dtype\":\"I32\",\"shape\":[],\"data_offsets\":[8,12]}}",
                    12);
    CU_ASSERT_EQUAL_FATAL(ingot_weight_source_open(&source, folder, true, &error), INGOT_OK);
    CU_ASSERT(source.describe(source.self, "i", &info));
    CU_ASSERT_FALSE(info.is_float);
    check_error("load", source.load(source.self, "i", arena, &view, &error), INGOT_ERR_UNSUPPORTED,
                "i: dtype I64");
    CU_ASSERT_EQUAL(source.load(source.self, "j", arena, &view, &error), INGOT_OK);
    CU_ASSERT(view.rows == 1 && view.cols == 1 && view.dtype == INGOT_I32);
    ingot_weight_source_close(&source);
    ingot_arena_destroy(arena);
}

/* Folders open at the same time in several threads; nothing is shared. */
static void *open_often(void *result) {
    for (int i = 0; i < 50 && *(bool *)result; i++) {
        ingot_checkpoint *checkpoint = NULL;
        *(bool *)result = ingot_checkpoint_open(&checkpoint, folder, NULL) == INGOT_OK &&
                          ingot_checkpoint_find(checkpoint, "a", NULL) != NULL &&
                          ingot_checkpoint_find(checkpoint, "z", NULL) != NULL;
        ingot_checkpoint_close(checkpoint);
    }
    return NULL;
}

static void test_threads(void) {
    pthread_t thread[4];
    bool is_good[4] = {true, true, true, true};
    put_sharded();
    for (int i = 0; i < 4; i++) {
        CU_ASSERT_EQUAL_FATAL(pthread_create(&thread[i], NULL, open_often, &is_good[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        CU_ASSERT_EQUAL(pthread_join(thread[i], NULL), 0);
        CU_ASSERT(is_good[i]);
    }
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"one file", test_single},
        {"shards", test_sharded},
        {"the small files", test_files},
        {"no checkpoint", test_no_checkpoint},
        {"unreadable", test_unreadable},
        {"already quantized", test_quantized},
        {"index against shards", test_index},
        {"weight source", test_source},
        {"several threads", test_threads},
        CU_TEST_INFO_NULL,
    };
    folder_make();
    const int result = suite_run("checkpoint", tests);
    folder_remove();
    return result;
}
