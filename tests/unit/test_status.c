/* Status codes: names, texts, exit codes; error reports that are cut, never overrun. */
#include "common/ingot_status.h"

#include "suite.h"

#include <string.h>

typedef struct container_code {
    ingot_status status;
    const char *name;
} container_code;

static const container_code container_codes[] = {
#define INGOT_CONTAINER_CODE(name, number, text) {INGOT_BAD_##name, "E_" #name},
#include "common/ingot_container_codes.h"
#undef INGOT_CONTAINER_CODE
};

#define CODE_COUNT (sizeof container_codes / sizeof container_codes[0])

static void test_codes(void) {
    CU_ASSERT_STRING_EQUAL(ingot_status_code(INGOT_OK), "OK");
    CU_ASSERT_STRING_EQUAL(ingot_status_code(INGOT_ERR_NO_SPACE), "E_NO_SPACE");
    CU_ASSERT_STRING_EQUAL(ingot_status_code(INGOT_FAIL_GATE), "E_GATE");
    CU_ASSERT_STRING_EQUAL(ingot_status_code((ingot_status)9999), "E_UNKNOWN");
    /* Every code is known and names and numbers are unique. */
    for (int a = 0; a < 256; a++) {
        const char *name = ingot_status_code((ingot_status)a);
        CU_ASSERT(ingot_status_text((ingot_status)a)[0] != '\0');
        for (int b = 0; b < a && strcmp(name, "E_UNKNOWN") != 0; b++) {
            CU_ASSERT_STRING_NOT_EQUAL(name, ingot_status_code((ingot_status)b));
        }
    }
    for (int status = INGOT_OK; status <= INGOT_ERR_INTERNAL; status++) {
        CU_ASSERT_STRING_NOT_EQUAL(ingot_status_code((ingot_status)status), "E_UNKNOWN");
    }
    for (size_t i = 0; i < CODE_COUNT; i++) {
        CU_ASSERT_STRING_EQUAL(ingot_status_code(container_codes[i].status),
                               container_codes[i].name);
        CU_ASSERT(container_codes[i].status > INGOT_BAD_FIRST);
        CU_ASSERT(container_codes[i].status < INGOT_BAD_LAST);
    }
}

static void test_exit_codes(void) {
    CU_ASSERT_EQUAL(ingot_status_exit_code(INGOT_OK), 0);
    for (int status = 1; status <= INGOT_ERR_INTERNAL; status++) {
        CU_ASSERT_EQUAL(ingot_status_exit_code((ingot_status)status), 2);
    }
    for (size_t i = 0; i < CODE_COUNT; i++) {
        CU_ASSERT_EQUAL(ingot_status_exit_code(container_codes[i].status), 1);
    }
    CU_ASSERT_EQUAL(ingot_status_exit_code(INGOT_FAIL_SOURCE), 1);
    CU_ASSERT_EQUAL(ingot_status_exit_code(INGOT_FAIL_GATE), 1);
    CU_ASSERT_EQUAL(ingot_status_exit_code((ingot_status)9999), 2);
}

static void test_format(void) {
    ingot_error error;
    char text[256];
    CU_ASSERT_EQUAL(ingot_error_set(&error, INGOT_ERR_IO, "a.bin", "w.1", "do this", "bad %d", 7),
                    INGOT_ERR_IO);
    ingot_error_format(&error, text, sizeof text);
    CU_ASSERT_STRING_EQUAL(text, "a.bin: w.1: bad 7 (do this)");
    CU_ASSERT_EQUAL(ingot_error_set(&error, INGOT_ERR_NUMERIC, NULL, NULL, NULL, "%s", "nan"),
                    INGOT_ERR_NUMERIC);
    ingot_error_format(&error, text, sizeof text);
    CU_ASSERT_STRING_EQUAL(text, "nan");
    error.reason[0] = '\0'; /* an error nobody explained still says something */
    ingot_error_format(&error, text, sizeof text);
    CU_ASSERT_STRING_EQUAL(text, ingot_status_text(INGOT_ERR_NUMERIC));
    CU_ASSERT_EQUAL(ingot_error_set(NULL, INGOT_ERR_IO, "f", "t", "r", "x"), INGOT_ERR_IO);
}

static void test_context(void) {
    /* A caller adds what it knows: parts of the old error are arguments of the new one. */
    ingot_error error;
    (void)!ingot_error_set(&error, INGOT_ERR_IO, "a.bin", NULL, "copy it again", "short");
    CU_ASSERT_EQUAL(ingot_error_set(&error, error.status, error.file, "w", error.remedy,
                                    "reading: %s", error.reason),
                    INGOT_ERR_IO);
    char text[256];
    ingot_error_format(&error, text, sizeof text);
    CU_ASSERT_STRING_EQUAL(text, "a.bin: w: reading: short (copy it again)");
}

static void test_cut(void) {
    static char long_text[5000];
    memset(long_text, 'x', sizeof long_text - 1);
    ingot_error error;
    memset(&error, 0x55, sizeof error);
    CU_ASSERT_EQUAL(
        ingot_error_set(&error, INGOT_ERR_IO, long_text, long_text, long_text, "%s", long_text),
        INGOT_ERR_IO);
    CU_ASSERT_EQUAL(strlen(error.file), sizeof error.file - 1);
    CU_ASSERT_EQUAL(strlen(error.tensor), sizeof error.tensor - 1);
    CU_ASSERT_EQUAL(strlen(error.reason), sizeof error.reason - 1);
    CU_ASSERT_EQUAL(strlen(error.remedy), sizeof error.remedy - 1);
    char guarded[41];
    for (size_t size = 0; size <= 40; size++) {
        memset(guarded, '#', sizeof guarded);
        ingot_error_format(&error, guarded, size);
        CU_ASSERT_EQUAL(guarded[size], '#');
        CU_ASSERT(size == 0 || strlen(guarded) == size - 1);
    }
}

int main(void) {
    const CU_TestInfo tests[] = {{"codes", test_codes},   {"exit codes", test_exit_codes},
                                 {"format", test_format}, {"context", test_context},
                                 {"cut", test_cut},       CU_TEST_INFO_NULL};
    return suite_run("status", tests);
}
