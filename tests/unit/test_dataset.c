/* Texts and windows: concatenation, digests, the window formulas, and every refusal. */
#include "calib/dataset.h"
#include "common/files.h"
#include "common/memory.h"
#include "format/digest.h"

#include "suite.h"

#include <string.h>

static ingot_error error;
static ingot_tokenizer *tokenizer;
static char folder[] = "/tmp/ingot-dataset-XXXXXX";
static char paths[3][64];

/* One token a letter: "a" 0, "b" 1, "c" 7. */
static const char model[] =
    "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":7},\"merges\":[]}}";

static void write_text(unsigned index, const char *text) {
    (void)snprintf(paths[index], sizeof paths[index], "%s/%u.txt", folder, index);
    CU_ASSERT_EQUAL_FATAL(ingot_file_write_all(paths[index], text, strlen(text), true, &error),
                          INGOT_OK);
}

static ingot_status load(ingot_text *out, const char *const *list, uint64_t count) {
    memset(&error, 0, sizeof error);
    return ingot_text_load(out, list, count, tokenizer, &error);
}

static void test_concatenation(void) {
    static const char whole[] = "abbaab";
    static const uint32_t ids[] = {0, 1, 1, 0, 0, 1};
    write_text(0, "abb");
    write_text(1, "");
    write_text(2, "aab");
    const char *const list[] = {paths[0], paths[1], paths[2]};
    ingot_text text;
    CU_ASSERT_EQUAL_FATAL(load(&text, list, 3), INGOT_OK);
    CU_ASSERT(text.count == 6 && memcmp(text.ids, ids, sizeof ids) == 0);
    CU_ASSERT_EQUAL(text.bytes, 6);
    uint8_t digest[16];
    ingot_digest128(digest, whole, sizeof whole - 1);
    CU_ASSERT_EQUAL(memcmp(digest, text.digest, sizeof digest), 0);
    ingot_text_free(&text);
    CU_ASSERT_PTR_NULL(text.ids);
}

/* More than one read of the file. */
static void test_long_text(void) {
    const uint64_t size = (3u << 20) + 17;
    char *bytes = malloc(size);
    CU_ASSERT_PTR_NOT_NULL_FATAL(bytes);
    for (uint64_t i = 0; i < size; i++) {
        bytes[i] = "ab"[i * 2654435761u >> 20 & 1];
    }
    (void)snprintf(paths[0], sizeof paths[0], "%s/0.txt", folder);
    CU_ASSERT_EQUAL_FATAL(ingot_file_write_all(paths[0], bytes, size, true, &error), INGOT_OK);
    const char *const list[] = {paths[0]};
    ingot_text text;
    CU_ASSERT_EQUAL_FATAL(load(&text, list, 1), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(text.count, size);
    bool is_same = true;
    for (uint64_t i = 0; i < size; i++) {
        is_same = is_same && text.ids[i] == (uint32_t)(bytes[i] - 'a');
    }
    CU_ASSERT(is_same);
    uint8_t digest[16];
    ingot_digest128(digest, bytes, size);
    CU_ASSERT_EQUAL(memcmp(digest, text.digest, sizeof digest), 0);
    ingot_text_free(&text);
    free(bytes);
}

static void check_refused(ingot_status want, const char *const *list, uint64_t count,
                          const char *file, const char *reason) {
    ingot_text text;
    CU_ASSERT_EQUAL(load(&text, list, count), want);
    CU_ASSERT_PTR_NULL(text.ids);
    CU_ASSERT_STRING_EQUAL(error.file, file);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, reason));
}

static void test_refused_texts(void) {
    char missing[64];
    (void)snprintf(missing, sizeof missing, "%s/missing.txt", folder);
    write_text(0, "");
    write_text(1, "zzz"); /* characters without a token are dropped */
    write_text(2, "abc");
    const char *const empty[] = {paths[0], paths[0]}, *const none[] = {paths[1]},
                      *const gone[] = {paths[2], missing}, *const not_file[] = {folder};
    check_refused(INGOT_ERR_INPUT, empty, 2, paths[0], "empty");
    check_refused(INGOT_ERR_INPUT, none, 1, paths[1], "no tokens");
    check_refused(INGOT_ERR_NOT_FOUND, gone, 2, missing, "");
    check_refused(INGOT_ERR_INPUT, not_file, 1, folder, "");
    check_refused(INGOT_ERR_USAGE, NULL, 0, "", "no text");
}

/* A text whose token at i is i. */
static ingot_text counting(uint64_t count) {
    ingot_text text = {.count = count};
    void *ids;
    CU_ASSERT_EQUAL_FATAL(ingot_alloc(&ids, count * sizeof(uint32_t)), INGOT_OK);
    text.ids = ids;
    for (uint64_t i = 0; i < count; i++) {
        text.ids[i] = (uint32_t)i;
    }
    return text;
}

static void check_windows(const ingot_windows *windows, const uint64_t *starts, uint64_t count,
                          uint64_t length) {
    CU_ASSERT_EQUAL_FATAL(windows->count, count);
    CU_ASSERT_EQUAL_FATAL(windows->length, length);
    for (uint64_t i = 0; i < count; i++) {
        for (uint64_t j = 0; j < length; j++) {
            CU_ASSERT_EQUAL(windows->ids[i * length + j], starts[i] + j);
        }
    }
}

static void test_calibration(void) {
    ingot_text text = counting(103);
    ingot_windows windows;
    static const uint64_t five[] = {0, 23, 46, 69, 93}, one[] = {0}, two[] = {0, 93};
    CU_ASSERT_EQUAL(ingot_windows_calibration(&windows, &text, 5, 10, "t", &error), INGOT_OK);
    check_windows(&windows, five, 5, 10);
    ingot_windows_free(&windows);
    CU_ASSERT_EQUAL(ingot_windows_calibration(&windows, &text, 1, 10, "t", &error), INGOT_OK);
    check_windows(&windows, one, 1, 10);
    ingot_windows_free(&windows);
    CU_ASSERT_EQUAL(ingot_windows_calibration(&windows, &text, 2, 10, "t", &error), INGOT_OK);
    check_windows(&windows, two, 2, 10);
    ingot_windows_free(&windows);
    CU_ASSERT_EQUAL(ingot_windows_calibration(&windows, &text, 128, 10, "t", &error), INGOT_OK);
    CU_ASSERT_EQUAL(windows.count, 10); /* floor(T / L) */
    CU_ASSERT_EQUAL(windows.ids[9 * 10], 93);
    ingot_windows_free(&windows);
    CU_ASSERT_EQUAL(ingot_windows_calibration(&windows, &text, 128, 103, "t", &error), INGOT_OK);
    check_windows(&windows, one, 1, 103);
    ingot_windows_free(&windows);
    ingot_text_free(&text);
}

static void test_evaluation(void) {
    ingot_text text = counting(103);
    ingot_windows windows;
    static const uint64_t starts[] = {0, 25, 50, 75};
    CU_ASSERT_EQUAL(ingot_windows_evaluation(&windows, &text, 0, 25, "t", &error), INGOT_OK);
    check_windows(&windows, starts, 4, 25);
    ingot_windows_free(&windows);
    CU_ASSERT_EQUAL(ingot_windows_evaluation(&windows, &text, 3, 25, "t", &error), INGOT_OK);
    check_windows(&windows, starts, 3, 25);
    ingot_windows_free(&windows);
    CU_ASSERT_EQUAL(ingot_windows_evaluation(&windows, &text, 9, 25, "t", &error), INGOT_OK);
    check_windows(&windows, starts, 4, 25);
    ingot_windows_free(&windows);
    ingot_text_free(&text);
}

static void test_refused_windows(void) {
    ingot_text text = counting(103);
    ingot_windows windows;
    CU_ASSERT_EQUAL(ingot_windows_calibration(&windows, &text, 4, 104, "t.txt", &error),
                    INGOT_ERR_INPUT);
    CU_ASSERT_STRING_EQUAL(error.file, "t.txt");
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "103"));
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "104"));
    CU_ASSERT(error.remedy[0] != '\0');
    CU_ASSERT_PTR_NULL(windows.ids);
    CU_ASSERT_EQUAL(ingot_windows_evaluation(&windows, &text, 0, 104, "t.txt", &error),
                    INGOT_ERR_INPUT);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "104"));
    CU_ASSERT_EQUAL(ingot_windows_evaluation(&windows, &text, 0, 0, "t", &error), INGOT_ERR_USAGE);
    CU_ASSERT_EQUAL(ingot_windows_calibration(&windows, &text, 0, 8, "t", &error), INGOT_ERR_USAGE);
    ingot_text_free(&text);
}

static void test_no_memory(void) {
    write_text(0, "abab");
    const char *const list[] = {paths[0]};
    ingot_status status = INGOT_ERR_NO_MEMORY;
    uint64_t n = 0;
    while (status != INGOT_OK && n < 1000) {
        ingot_text text;
        ingot_windows windows = {0};
        ingot_memory_fail_after(++n);
        status = load(&text, list, 1);
        if (status == INGOT_OK) {
            status = ingot_windows_calibration(&windows, &text, 2, 2, "t", &error);
        }
        ingot_memory_fail_after(0);
        CU_ASSERT(status == INGOT_OK || status == INGOT_ERR_NO_MEMORY);
        CU_ASSERT(status == INGOT_OK || error.status == INGOT_ERR_NO_MEMORY);
        ingot_windows_free(&windows);
        ingot_text_free(&text);
    }
    CU_ASSERT_EQUAL(status, INGOT_OK);
    CU_ASSERT(n > 4);
}

static void test_length(void) {
    uint64_t length = 0;
    CU_ASSERT_EQUAL(ingot_windows_length(&length, 0, 4096, "m", &error), INGOT_OK);
    CU_ASSERT_EQUAL(length, 2048);
    CU_ASSERT_EQUAL(ingot_windows_length(&length, 0, 100, "m", &error), INGOT_OK);
    CU_ASSERT_EQUAL(length, 100);
    CU_ASSERT_EQUAL(ingot_windows_length(&length, 100, 100, "m", &error), INGOT_OK);
    CU_ASSERT_EQUAL(length, 100);
    CU_ASSERT_EQUAL(ingot_windows_length(&length, 101, 100, "m", &error), INGOT_ERR_USAGE);
    CU_ASSERT_STRING_EQUAL(error.file, "m");
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "101 tokens do not fit"));
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"files are concatenated and digested", test_concatenation},
        {"a text of several reads", test_long_text},
        {"texts that are refused", test_refused_texts},
        {"calibration windows", test_calibration},
        {"evaluation windows", test_evaluation},
        {"windows that are refused", test_refused_windows},
        {"the length of a window", test_length},
        {"every allocation fails", test_no_memory},
        CU_TEST_INFO_NULL,
    };
    if (mkdtemp(folder) == NULL ||
        ingot_tokenizer_create(&tokenizer, model, sizeof model - 1, "model", &error) != INGOT_OK) {
        return 2;
    }
    const int failed = suite_run("dataset", tests);
    ingot_tokenizer_destroy(tokenizer);
    for (unsigned i = 0; i < 3; i++) {
        (void)unlink(paths[i]);
    }
    (void)rmdir(folder);
    return failed;
}
