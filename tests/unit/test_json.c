/* JSON: what is refused, typed members, canonical text. */
#include "common/json.h"

#include "suite.h"

#include <math.h>
#include <string.h>

static ingot_error error;

static ingot_status parse(json_t **out, const char *text) {
    memset(&error, 0, sizeof error);
    return ingot_json_parse(out, text, strlen(text), "f.json", &error);
}

#if !defined(__SANITIZE_ADDRESS__) /* which brings an allocator of its own */

static unsigned long long fail_at, allocations;
static bool is_every_later;

void *__libc_malloc(size_t size);

void *malloc(size_t size) {
    const bool fails =
        fail_at != 0 && (++allocations == fail_at || (is_every_later && allocations > fail_at));
    return fails ? NULL : __libc_malloc(size);
}

/* jansson's scanner forgot a byte when its buffer could not grow, and wrote past a string's end. */
static void test_every_allocation_fails(void) {
    static const char text[] = "{\"__metadata__\": {\"format\": \"pt\"}, \"lm_head.weight\": "
                               "{\"shape\": [1024, 1234567890123456],"
                               " \"dtype of more than a few bytes\": "
                               "\"a\\u00e9bcdefghijklmnopqrstuvwxyz\"}, \"x\": -1.25e-300}";
    for (int mode = 0; mode < 2; mode++) {
        unsigned long long at = 1;
        is_every_later = mode != 0;
        for (ingot_status status = INGOT_ERR_NO_MEMORY; status != INGOT_OK; at++) {
            json_t *value = NULL;
            allocations = 0;
            fail_at = at;
            status = parse(&value, text);
            fail_at = 0;
            CU_ASSERT_FATAL(status == INGOT_OK || status == INGOT_ERR_NO_MEMORY);
            CU_ASSERT_EQUAL(value != NULL, status == INGOT_OK);
            json_decref(value);
        }
        CU_ASSERT(at > 20);
    }
}

/* Writing left out keys for which there was no memory, and said nothing. */
static void test_every_allocation_of_a_text_fails(void) {
    static const char canonical[] =
        "{\"a key that is longer than a buffer\":{\"and one more of that kind\":null},"
        "\"the buffer has to grow within keys\":[1,2.5,\"and within values like this one\"]}";
    json_t *value;
    CU_ASSERT_EQUAL_FATAL(parse(&value, canonical), INGOT_OK);
    char *text = NULL;
    is_every_later = false;
    unsigned long long at = 1;
    for (; text == NULL; at++) {
        allocations = 0;
        fail_at = at;
        text = ingot_json_canonical(value);
        fail_at = 0;
    }
    CU_ASSERT_STRING_EQUAL(text, canonical);
    CU_ASSERT(at > 3);
    free(text);
    json_decref(value);
}

#endif

static void test_refused(void) {
    static const char *const cases[][2] = {
        {"", "line 1"},
        {"{\"a\": 1,\n \"b\": 2,\n \"a\": 3}", "line 3"}, /* duplicate key */
        {"{\"a\": {\"b\": 1, \"b\": 1}}", "line 1"},
        {"{\n\n\"a\": }", "line 3"},
        {"{} x", "line 1"},
        {"[1, 2", "line 1"},
        {"{\"a\": 99999999999999999999}", "line 1"},
        {"{\"a\": 1e999}", "line 1"},
        {"{\"a\": NaN}", "line 1"},
        {"{\"a\": \"\xff\"}", "line 1"},
        {"{\"a\\u0000b\": 1}", "line 1"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 9085657\n",
         "is a pointer of Git LFS, not the file itself"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        json_t *value = NULL;
        CU_ASSERT_EQUAL(parse(&value, cases[i][0]), INGOT_ERR_INPUT);
        CU_ASSERT_PTR_NULL(value);
        CU_ASSERT_STRING_EQUAL(error.file, "f.json");
        CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, cases[i][1]));
        for (const char *c = error.reason; *c != '\0'; c++) {
            CU_ASSERT((unsigned char)*c >= 0x20);
        }
    }
}

/* jansson passes over a NUL byte behind a number. */
static void test_nul_byte(void) {
    static const char text[] = "{\"a\":\n1\0}";
    json_t *value = NULL;
    CU_ASSERT(ingot_json_parse(&value, text, sizeof text - 1, "f.json", &error) == INGOT_ERR_INPUT);
    CU_ASSERT_PTR_NULL(value);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "line 2: a NUL byte"));
}

static void test_depth(void) {
    enum { limit = 64 };
    static char text[3 * 100000];
    static const size_t depths[] = {1, limit, limit + 1, 100000};
    for (size_t i = 0; i < sizeof depths / sizeof depths[0]; i++) {
        memset(text, '[', depths[i]);
        memset(text + depths[i], ']', depths[i]);
        text[2 * depths[i]] = '\0';
        json_t *value = NULL;
        CU_ASSERT_EQUAL(parse(&value, text), depths[i] <= limit ? INGOT_OK : INGOT_ERR_INPUT);
        json_decref(value);
    }
    /* Brackets in strings do not count, nor do those that were closed. */
    memset(text, '[', sizeof text);
    memcpy(text, "[\"\\\"", 4);
    memcpy(text + 1000, "\"]", 3);
    json_t *value = NULL;
    CU_ASSERT_EQUAL(parse(&value, text), INGOT_OK);
    json_decref(value);
    size_t length = 0;
    text[length++] = '[';
    for (int i = 0; i < 1000; i++) {
        memcpy(text + length, "{},", 3);
        length += 3;
    }
    memcpy(text + length, "[]]", 4);
    CU_ASSERT_EQUAL(parse(&value, text), INGOT_OK);
    json_decref(value);
}

static void test_members(void) {
    json_t *object = NULL;
    CU_ASSERT_EQUAL_FATAL(parse(&object, "{\"u\": 9007199254740993, \"neg\": -1, \"d\": 0.5, "
                                         "\"b\": true, \"s\": \"text\", \"null\": null}"),
                          INGOT_OK);
    uint64_t u = 7;
    double d = 7.0;
    bool b = false;
    const char *s = "old";
    CU_ASSERT_EQUAL(ingot_json_get_u64(object, "u", &u, "f", &error), INGOT_OK);
    CU_ASSERT_EQUAL(u, 9007199254740993u); /* not representable as a double */
    CU_ASSERT_EQUAL(ingot_json_get_double(object, "d", &d, "f", &error), INGOT_OK);
    CU_ASSERT_EQUAL(d, 0.5);
    CU_ASSERT_EQUAL(ingot_json_get_bool(object, "b", &b, "f", &error), INGOT_OK);
    CU_ASSERT_TRUE(b);
    CU_ASSERT_EQUAL(ingot_json_get_string(object, "s", &s, "f", &error), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(s, "text");
    /* Missing and null keep the default. */
    CU_ASSERT_EQUAL(ingot_json_get_u64(object, "none", &u, "f", &error), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_json_get_u64(object, "null", &u, "f", &error), INGOT_OK);
    CU_ASSERT_EQUAL(u, 9007199254740993u);
    CU_ASSERT_EQUAL(ingot_json_get_string(object, "null", &s, "f", &error), INGOT_OK);
    CU_ASSERT_STRING_EQUAL(s, "text");
    /* Another type is an error that names file and key. */
    CU_ASSERT_EQUAL(ingot_json_get_u64(object, "neg", &u, "f", &error), INGOT_ERR_INPUT);
    CU_ASSERT_EQUAL(ingot_json_get_u64(object, "d", &u, "f", &error), INGOT_ERR_INPUT);
    CU_ASSERT_EQUAL(ingot_json_get_double(object, "s", &d, "f", &error), INGOT_ERR_INPUT);
    CU_ASSERT_EQUAL(ingot_json_get_bool(object, "u", &b, "f", &error), INGOT_ERR_INPUT);
    CU_ASSERT_EQUAL(ingot_json_get_string(object, "u", &s, "f", &error), INGOT_ERR_INPUT);
    CU_ASSERT_STRING_EQUAL(error.file, "f");
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "\"u\""));
    CU_ASSERT_EQUAL(u, 9007199254740993u);
    json_decref(object);
}

static void test_keys(void) {
    static const char *const keys[] = {"bits", "group"};
    json_t *object = NULL;
    CU_ASSERT_EQUAL_FATAL(parse(&object, "{\"bits\": 4, \"grup\": 1}"), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_json_check_keys(object, keys, 2, "f", &error), INGOT_ERR_INPUT);
    CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "\"grup\""));
    CU_ASSERT_EQUAL(json_object_del(object, "grup"), 0);
    CU_ASSERT_EQUAL(ingot_json_check_keys(object, keys, 2, "f", &error), INGOT_OK);
    json_decref(object);
    CU_ASSERT_EQUAL_FATAL(parse(&object, "[]"), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_json_check_keys(object, keys, 2, "f", &error), INGOT_ERR_INPUT);
    json_decref(object);
}

static void test_writing(void) {
    json_t *object = NULL;
    CU_ASSERT_EQUAL_FATAL(parse(&object, " {\"b\": [1, 2.5], \"a\": {\"z\": null, \"y\": true}} "),
                          INGOT_OK);
    char *text = ingot_json_canonical(object);
    CU_ASSERT_STRING_EQUAL(text, "{\"a\":{\"y\":true,\"z\":null},\"b\":[1,2.5]}");
    free(text);
    size_t size = 0;
    text = NULL;
    FILE *stream = open_memstream(&text, &size);
    CU_ASSERT_PTR_NOT_NULL_FATAL(stream);
    CU_ASSERT(ingot_json_print(object, stream));
    CU_ASSERT_EQUAL(fclose(stream), 0);
    CU_ASSERT_STRING_EQUAL(
        text, "{\n \"a\": {\n  \"y\": true,\n  \"z\": null\n },\n \"b\": [\n  1,\n  2.5\n ]\n}\n");
    free(text);
    json_decref(object);
    json_t *number = ingot_json_number(NAN);
    CU_ASSERT_TRUE(json_is_null(number));
    json_decref(number);
    number = ingot_json_number(-INFINITY);
    CU_ASSERT_TRUE(json_is_null(number));
    json_decref(number);
    number = ingot_json_number(0.1);
    CU_ASSERT_EQUAL(json_number_value(number), 0.1);
    json_decref(number);
}

/* Texts of any bytes; a sequence that is cut is no UTF-8, nor is half of a surrogate pair. */
static void test_any_text(void) {
    static const struct {
        const char *text, *wanted;
    } cases[] = {
        {"plain", "plain"},
        {"", ""},
        {"caf\xc3\xa9 \xe6\x97\xa5 \xf0\x9f\x98\x80", "caf\xc3\xa9 \xe6\x97\xa5 \xf0\x9f\x98\x80"},
        {"\xff\xc3\xa9", "?\xc3\xa9"},
        {"cut \xe6\x97", "cut ??"},
        {"\xed\xa0\x80", "???"},
        {"\xc0\x80.", "??."}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *value = ingot_json_any_text(cases[i].text);
        CU_ASSERT_STRING_EQUAL(json_string_value(value), cases[i].wanted);
        json_decref(value);
    }
    CU_ASSERT_TRUE(json_is_null(ingot_json_any_text(NULL)));
}

static void test_read(void) {
    char name[] = "/tmp/ingot-json-XXXXXX";
    const int descriptor = mkstemp(name);
    CU_ASSERT_FATAL(descriptor >= 0);
    CU_ASSERT_EQUAL(write(descriptor, "{\"a\": 1}\n", 9), 9);
    (void)close(descriptor);
    json_t *value = NULL;
    CU_ASSERT_EQUAL(ingot_json_read(&value, name, 9, &error), INGOT_OK);
    CU_ASSERT_TRUE(json_is_object(value));
    json_decref(value);
    CU_ASSERT_EQUAL(ingot_json_read(&value, name, 8, &error), INGOT_ERR_INPUT);
    CU_ASSERT_PTR_NULL(value);
    (void)unlink(name);
    CU_ASSERT_EQUAL(ingot_json_read(&value, name, 8, &error), INGOT_ERR_NOT_FOUND);
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"refused", test_refused},
        {"nul byte", test_nul_byte},
        {"depth", test_depth},
        {"members", test_members},
        {"keys", test_keys},
        {"writing", test_writing},
        {"any text", test_any_text},
        {"read", test_read},
#if !defined(__SANITIZE_ADDRESS__)
        {"every allocation fails", test_every_allocation_fails},
        {"every allocation of a text fails", test_every_allocation_of_a_text_fails},
#endif
        CU_TEST_INFO_NULL
    };
    return suite_run("json", tests);
}
