/* Tokenizer: against vectors of the `tokenizers` library (tests/make_tokenizer_vectors.py), against
 * a plain merge on random vocabularies, on hostile files and texts, and, where ../shared is, over
 * whole corpora. */
#include "calib/tokenizer.h"
#include "common/files.h"
#include "common/json.h"
#include "common/memory.h"
#include "common/progress.h"

#include "signal_child.h"
#include "suite.h"

#include <string.h>
#include <time.h>

#define VECTORS         "tests/vectors/tokenizer"
#define FILE_BYTES_MAX  (64u << 20)
#define LONG_WORD_BYTES (1u << 20)

static ingot_error error;

static void explain(void) {
    char text[2048];
    ingot_error_format(&error, text, sizeof text);
    (void)fprintf(stderr, "    %s\n", text);
}

static ingot_tokenizer *open_tokenizer(const char *path) {
    char *bytes = NULL;
    uint64_t size;
    ingot_tokenizer *tokenizer = NULL;
    ingot_status status = ingot_file_read_all(path, FILE_BYTES_MAX, &bytes, &size, &error);
    if (status == INGOT_OK) {
        status = ingot_tokenizer_create(&tokenizer, bytes, size, path, &error);
    }
    if (status != INGOT_OK) {
        explain();
    }
    ingot_free(bytes);
    return tokenizer;
}

static ingot_status create(ingot_tokenizer **out, const char *json) {
    memset(&error, 0, sizeof error);
    return ingot_tokenizer_create(out, json, strlen(json), "t.json", &error);
}

/* FNV-1a over 32-bit words. */
static uint64_t digest_ids(const uint32_t *ids, uint64_t count) {
    uint64_t hash = 0xCBF29CE484222325ull;
    for (uint64_t i = 0; i < count; i++) {
        hash = (hash ^ ids[i]) * 0x100000001B3ull;
    }
    return hash;
}

static bool is_digest(uint64_t digest, const json_t *expected) {
    char text[17];
    (void)snprintf(text, sizeof text, "%016llx", (unsigned long long)digest);
    return json_is_string(expected) && strcmp(text, json_string_value(expected)) == 0;
}

/* Bytes of a hexadecimal member, repeated; released with free. */
static char *read_hex(const json_t *value, uint64_t times, uint64_t *size) {
    const char *hex = json_string_value(value);
    const uint64_t unit = hex == NULL ? 0 : strlen(hex) / 2;
    char *bytes = malloc(unit * times + 1);
    if (bytes == NULL) {
        abort();
    }
    for (uint64_t i = 0; i < unit; i++) {
        unsigned byte = 0;
        (void)sscanf(hex + 2 * i, "%2x", &byte);
        bytes[i] = (char)byte;
    }
    for (uint64_t i = 1; i < times; i++) {
        memcpy(bytes + i * unit, bytes, unit);
    }
    *size = unit * times;
    return bytes;
}

/* ---- Vectors ---- */

/* The vectors spell a decoded text out where it is not the text itself, and what is left without
 * special tokens where that is something else again. */
static void check_decoded(const ingot_tokenizer *tokenizer, const json_t *test, const char *text,
                          uint64_t size, const uint32_t *ids, uint64_t count, bool skip) {
    const json_t *expected = json_object_get(test, "decoded");
    if (skip && json_object_get(test, "skipped") != NULL) {
        expected = json_object_get(test, "skipped");
    }
    uint64_t want_size = size, got_size = 0;
    char *want = expected == NULL ? NULL : read_hex(expected, 1, &want_size);
    char *got = NULL;
    CU_ASSERT_EQUAL(ingot_tokenizer_decode(tokenizer, ids, count, skip, &got, &got_size, &error),
                    INGOT_OK);
    const bool is_same =
        got_size == want_size && memcmp(got, want == NULL ? text : want, got_size) == 0;
    CU_ASSERT(is_same && got[got_size] == '\0');
    if (!is_same) {
        (void)fprintf(stderr, "    decoded \"%s\"\n    instead \"%s\"\n", got,
                      want == NULL ? text : want);
    }
    free(want);
    ingot_free(got);
}

static bool same_ids(const json_t *expected, const uint32_t *ids, uint64_t count) {
    bool is_same = json_array_size(expected) == count;
    for (uint64_t i = 0; is_same && i < count; i++) {
        is_same = json_integer_value(json_array_get(expected, i)) == (json_int_t)ids[i];
    }
    return is_same;
}

/* A case that gives ids and no text. */
static void check_ids(const ingot_tokenizer *tokenizer, const json_t *test) {
    const json_t *list = json_object_get(test, "ids");
    uint32_t ids[64];
    const uint64_t count = json_array_size(list);
    CU_ASSERT_FATAL(count <= sizeof ids / sizeof ids[0]);
    for (uint64_t i = 0; i < count; i++) {
        ids[i] = (uint32_t)json_integer_value(json_array_get(list, i));
    }
    check_decoded(tokenizer, test, "", 0, ids, count, false);
    check_decoded(tokenizer, test, "", 0, ids, count, true);
}

static void check_case(const ingot_tokenizer *tokenizer, const json_t *test, const char *name) {
    uint64_t size, count = 0;
    const json_t *times = json_object_get(test, "times");
    char *text = read_hex(json_object_get(test, "text"),
                          times == NULL ? 1 : (uint64_t)json_integer_value(times), &size);
    uint32_t *ids = NULL;
    CU_ASSERT_EQUAL(ingot_tokenizer_encode(tokenizer, text, size, &ids, &count, &error), INGOT_OK);
    bool is_same;
    if (times != NULL) {
        is_same = (json_int_t)count == json_integer_value(json_object_get(test, "count")) &&
                  is_digest(digest_ids(ids, count), json_object_get(test, "fnv"));
    } else {
        is_same = same_ids(json_object_get(test, "ids"), ids, count);
    }
    CU_ASSERT(is_same);
    if (!is_same) {
        (void)fprintf(stderr, "    %s: other tokens for \"%.200s\"\n", name, text);
    }
    if (times == NULL) {
        check_decoded(tokenizer, test, text, size, ids, count, false);
        check_decoded(tokenizer, test, text, size, ids, count, true);
    }
    free(text);
    ingot_free(ids);
}

static void test_vectors(void) {
    static const char *const names[] = {
        "llama3",   "qwen2",     "digits",          "gpt2",        "deepseek",
        "fallback", "metaspace", "metaspace-first", "punctuation", "affixes",
    };
    for (size_t n = 0; n <= sizeof names / sizeof names[0]; n++) {
        const bool is_demo = n == sizeof names / sizeof names[0];
        const char *name = is_demo ? "demo-4m" : names[n];
        char path[256];
        (void)snprintf(path, sizeof path, VECTORS "/%s.json", name);
        ingot_tokenizer *tokenizer =
            open_tokenizer(is_demo ? "examples/demo-4m/tokenizer.json" : path);
        (void)snprintf(path, sizeof path, VECTORS "/%s.cases.json", name);
        json_t *tests = NULL;
        CU_ASSERT_EQUAL(ingot_json_read(&tests, path, FILE_BYTES_MAX, &error), INGOT_OK);
        CU_ASSERT_PTR_NOT_NULL_FATAL(tokenizer);
        CU_ASSERT_FATAL(json_array_size(tests) > 100);
        for (size_t i = 0; i < json_array_size(tests); i++) {
            const json_t *test = json_array_get(tests, i);
            if (json_object_get(test, "text") == NULL) {
                check_ids(tokenizer, test);
            } else {
                check_case(tokenizer, test, name);
            }
        }
        json_decref(tests);
        ingot_tokenizer_destroy(tokenizer);
    }
}

/* ---- A plain reference ---- */

#define LETTERS     5u
#define MERGES_MAX  60u
#define SYMBOLS_MAX 600u

static uint64_t random_state;

static uint64_t random_below(uint64_t limit) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state % limit;
}

typedef struct plain_merge {
    uint32_t left, right, id;
} plain_merge;

typedef struct plain {
    char tokens[LETTERS + MERGES_MAX][32];
    uint32_t letter_count, token_count, merge_count;
    plain_merge merges[MERGES_MAX];
    json_t *json;
} plain;

/* Random merges of existing tokens, shuffled: a merge may rank before those that make its parts. */
static void make_plain(plain *p) {
    json_t *vocab = json_object(), *merges = json_array();
    /* Short tokens of few letters: many merges share their parts and compete. */
    const uint64_t letters = 2 + random_below(LETTERS - 1), longest = 3 + random_below(10);
    memset(p, 0, sizeof *p);
    for (; p->token_count < letters; p->token_count++) {
        p->tokens[p->token_count][0] = (char)('a' + p->token_count);
    }
    p->letter_count = p->token_count;
    for (unsigned i = 0; i < MERGES_MAX; i++) {
        const uint32_t left = (uint32_t)random_below(p->token_count);
        const uint32_t right = (uint32_t)random_below(p->token_count);
        if (strlen(p->tokens[left]) + strlen(p->tokens[right]) > longest) {
            continue;
        }
        char token[64];
        (void)snprintf(token, sizeof token, "%s%s", p->tokens[left], p->tokens[right]);
        memcpy(p->tokens[p->token_count], token, 32);
        uint32_t id = 0;
        while (strcmp(p->tokens[id], token) != 0) {
            id++;
        }
        p->token_count += id == p->token_count;
        p->merges[p->merge_count++] = (plain_merge){left, right, id};
    }
    for (uint32_t i = p->merge_count; i > 1; i--) {
        const uint32_t j = (uint32_t)random_below(i);
        const plain_merge swap = p->merges[j];
        p->merges[j] = p->merges[i - 1];
        p->merges[i - 1] = swap;
    }
    for (uint32_t i = 0; i < p->token_count; i++) {
        json_object_set_new(vocab, p->tokens[i], json_integer(i));
    }
    for (uint32_t i = 0; i < p->merge_count; i++) {
        json_array_append_new(
            merges, json_pack("[ss]", p->tokens[p->merges[i].left], p->tokens[p->merges[i].right]));
    }
    p->json =
        json_pack("{s:{s:s,s:o,s:o}}", "model", "type", "BPE", "vocab", vocab, "merges", merges);
}

/* Rank of a pair; the last of equal merges counts. */
static uint32_t plain_rank(const plain *p, uint32_t left, uint32_t right) {
    for (uint32_t i = p->merge_count; i > 0; i--) {
        if (p->merges[i - 1].left == left && p->merges[i - 1].right == right) {
            return i - 1;
        }
    }
    return UINT32_MAX;
}

static uint64_t plain_encode(const plain *p, const char *text, uint64_t size, uint32_t *ids) {
    for (uint64_t i = 0; i < size; i++) {
        ids[i] = (uint32_t)(text[i] - 'a');
    }
    for (;;) {
        uint32_t best = UINT32_MAX;
        uint64_t at = 0;
        for (uint64_t i = 0; i + 1 < size; i++) {
            const uint32_t rank = plain_rank(p, ids[i], ids[i + 1]);
            if (rank < best) {
                best = rank;
                at = i;
            }
        }
        if (best == UINT32_MAX) {
            return size;
        }
        ids[at] = p->merges[best].id;
        size--;
        memmove(ids + at + 1, ids + at + 2, (size - at - 1) * sizeof *ids);
    }
}

static void check_plain(const plain *p, const ingot_tokenizer *tokenizer, uint64_t size) {
    char text[SYMBOLS_MAX];
    uint32_t want[SYMBOLS_MAX], *ids = NULL;
    uint64_t count;
    const uint64_t letters = 1 + random_below(p->letter_count);
    for (uint64_t i = 0; i < size; i++) {
        text[i] = (char)('a' + random_below(letters));
    }
    const uint64_t want_count = plain_encode(p, text, size, want);
    CU_ASSERT_EQUAL_FATAL(ingot_tokenizer_encode(tokenizer, text, size, &ids, &count, &error),
                          INGOT_OK);
    CU_ASSERT(count == want_count && memcmp(ids, want, count * sizeof *ids) == 0);
    ingot_free(ids);
}

static void test_plain_merge(void) {
    const char *seed = getenv("INGOT_TEST_SEED");
    random_state = seed == NULL ? (uint64_t)time(NULL) : strtoull(seed, NULL, 10);
    (void)printf("(seed %llu) ", (unsigned long long)random_state);
    random_state = random_state * 0x9E3779B97F4A7C15ull | 1;
    for (int round = 0; round < 60; round++) {
        plain p;
        make_plain(&p);
        char *text = ingot_json_canonical(p.json);
        ingot_tokenizer *tokenizer = NULL;
        CU_ASSERT_EQUAL_FATAL(create(&tokenizer, text), INGOT_OK);
        for (int i = 0; i < 40; i++) {
            check_plain(&p, tokenizer, 1 + random_below(i < 30 ? 80 : SYMBOLS_MAX));
        }
        ingot_tokenizer_destroy(tokenizer);
        free(text);
        json_decref(p.json);
    }
}

/* ---- Files that are refused ---- */

#define MODEL                                                                                      \
    "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[\"a b\"]}"
#define SPLIT(rx)                                                                                  \
    "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" rx                          \
    "\"},\"behavior\":\"Isolated\",\"invert\":false}," MODEL "}"

static void test_refused(void) {
    static const struct {
        ingot_status status;
        const char *json, *reason;
    } cases[] = {
        {INGOT_ERR_INPUT, "", ""},
        {INGOT_ERR_INPUT, "[]", "file"},
        {INGOT_ERR_INPUT, "{}", "model"},
        {INGOT_ERR_UNSUPPORTED, "{\"version\":\"2.0\"," MODEL "}", "2.0"},
        {INGOT_ERR_UNSUPPORTED, "{\"model\":{\"type\":\"Unigram\"}}", "Unigram"},
        {INGOT_ERR_UNSUPPORTED, "{\"model\":{\"type\":\"BPE\",\"dropout\":0.1}}", "dropout"},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", "pair"},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a a\"]}}", "pair"},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "pair"},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}", "\"b\""},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", "\"aa\""},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":{\"a\":0,\"\":1},\"merges\":[\"a \"]}}",
         "nothing"},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "share"},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "id"},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":{\"a\":4294967295},\"merges\":[]}}", "id"},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":{\"a\":\"x\"},\"merges\":[]}}", "id"},
        {INGOT_ERR_INPUT, "{\"model\":{\"vocab\":[],\"merges\":[]}}", "vocabulary"},
        {INGOT_ERR_INPUT, "{\"added_tokens\":{}," MODEL "}", "added"},
        {INGOT_ERR_INPUT, "{\"added_tokens\":[{\"id\":1}]," MODEL "}", "content"},
        {INGOT_ERR_UNSUPPORTED, "{\"normalizer\":{\"type\":\"Precompiled\"}," MODEL "}",
         "Precompiled"},
        {INGOT_ERR_UNSUPPORTED, "{\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}," MODEL "}",
         "Bert"},
        {INGOT_ERR_UNSUPPORTED, "{\"decoder\":{\"type\":\"WordPiece\"}," MODEL "}", "WordPiece"},
        {INGOT_ERR_INPUT, "{\"pre_tokenizer\":{\"type\":\"Sequence\"}," MODEL "}", "pretokenizers"},
        {INGOT_ERR_INPUT, "{\"normalizer\":{\"type\":\"Prepend\"}," MODEL "}", "prepend"},
        {INGOT_ERR_INPUT, "{\"decoder\":{\"type\":\"Strip\",\"content\":\"ab\"}," MODEL "}",
         "content"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("(a"), "end"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("a)"), "opened"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("[a"), "end"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("*a"), "repeat"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("a\\\\"), "backslash"},
        {INGOT_ERR_UNSUPPORTED, SPLIT(""), "empty"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("\\\\p{NoSuchScript}"), "NoSuchScript"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("[a&&b]"), "intersection"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("[[:alpha:]]"), "POSIX"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("(*UTF)a"), "callout"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("(?R)"), "group"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("\\\\C"), "escape"},
        {INGOT_ERR_UNSUPPORTED, SPLIT("((((a{999}){999}){999}){999})"), "large"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        ingot_tokenizer *tokenizer = NULL;
        const ingot_status status = create(&tokenizer, cases[i].json);
        const bool is_right = status == cases[i].status && tokenizer == NULL &&
                              strstr(error.reason, cases[i].reason) != NULL;
        CU_ASSERT(is_right);
        CU_ASSERT_STRING_EQUAL(error.file, "t.json");
        if (!is_right) {
            (void)fprintf(stderr, "    %s: status %d\n", cases[i].json, (int)status);
            explain();
        }
        ingot_tokenizer_destroy(tokenizer);
    }
}

static void test_deep_file(void) {
    char text[4096] = "{\"pre_tokenizer\":";
    for (int i = 0; i < 40; i++) {
        (void)strcat(text, "{\"type\":\"Sequence\",\"pretokenizers\":[");
    }
    (void)strcat(text, "{\"type\":\"Whitespace\"}");
    for (int i = 0; i < 40; i++) {
        (void)strcat(text, "]}");
    }
    (void)strcat(text, "," MODEL "}");
    ingot_tokenizer *tokenizer = NULL;
    CU_ASSERT_EQUAL(create(&tokenizer, text), INGOT_ERR_INPUT);
    CU_ASSERT_PTR_NULL(tokenizer);
}

/* An expression that is exponential must end in a status, not in other tokens. */
static void test_expression_limit(void) {
    static const char *const expressions[] = {SPLIT("(a+)+$"), SPLIT("(?:a|aa)*c")};
    char text[4096];
    memset(text, 'a', sizeof text);
    memcpy(text + sizeof text - 2, "bc", 2);
    for (size_t i = 0; i < sizeof expressions / sizeof expressions[0]; i++) {
        ingot_tokenizer *tokenizer = NULL;
        uint32_t *ids = NULL;
        uint64_t count;
        CU_ASSERT_EQUAL_FATAL(create(&tokenizer, expressions[i]), INGOT_OK);
        CU_ASSERT_EQUAL(ingot_tokenizer_encode(tokenizer, text, sizeof text, &ids, &count, &error),
                        INGOT_ERR_INPUT);
        CU_ASSERT_PTR_NULL(ids);
        CU_ASSERT_PTR_NOT_NULL(strstr(error.reason, "limit"));
        ingot_tokenizer_destroy(tokenizer);
    }
}

/* A repeated group keeps every turn on the stack: more than the JIT's, so the interpreter takes
 * over. */
static void test_jit_stack(void) {
    const uint64_t size = 400000;
    char *text = malloc(size);
    ingot_tokenizer *tokenizer = NULL;
    uint32_t *ids = NULL;
    uint64_t count = 0;
    CU_ASSERT_EQUAL_FATAL(create(&tokenizer, SPLIT("(?:(a)|(b))+")), INGOT_OK);
    CU_ASSERT_PTR_NOT_NULL_FATAL(text);
    memset(text, 'a', size);
    CU_ASSERT_EQUAL(ingot_tokenizer_encode(tokenizer, text, size, &ids, &count, &error), INGOT_OK);
    CU_ASSERT_EQUAL(count, size);
    ingot_free(ids);
    ingot_tokenizer_destroy(tokenizer);
    free(text);
}

static void test_bad_ids(void) {
    ingot_tokenizer *tokenizer = NULL;
    char *text = NULL;
    uint64_t size;
    CU_ASSERT_EQUAL_FATAL(create(&tokenizer, "{" MODEL "}"), INGOT_OK);
    CU_ASSERT_EQUAL(ingot_tokenizer_vocab(tokenizer), 3);
    const uint32_t bad[] = {3, 0, UINT32_MAX, 0, 3};
    CU_ASSERT_EQUAL_FATAL(ingot_tokenizer_decode(tokenizer, bad, 5, false, &text, &size, &error),
                          INGOT_OK);
    CU_ASSERT_STRING_EQUAL(text, "a a"); /* one space, as between neighbours without a decoder */
    ingot_free(text);
    CU_ASSERT_EQUAL_FATAL(ingot_tokenizer_decode(tokenizer, bad, 1, true, &text, &size, &error),
                          INGOT_OK);
    CU_ASSERT(size == 0 && text[0] == '\0');
    ingot_free(text);
    CU_ASSERT_EQUAL(ingot_tokenizer_decode(tokenizer, bad, 0, false, &text, &size, &error),
                    INGOT_OK);
    CU_ASSERT(size == 0 && text != NULL && text[0] == '\0');
    ingot_free(text);
    ingot_tokenizer_destroy(tokenizer);
}

/* Every allocation fails once. */
static void test_no_memory(void) {
    char *bytes = NULL;
    uint64_t size;
    CU_ASSERT_EQUAL_FATAL(
        ingot_file_read_all(VECTORS "/qwen2.json", FILE_BYTES_MAX, &bytes, &size, &error),
        INGOT_OK);
    static const char text[] = "caf\xC3\xA9 e\xCC\x81 foo <tool> \xFF 123";
    ingot_status status = INGOT_ERR_NO_MEMORY;
    uint64_t n = 0;
    while (status != INGOT_OK && n < 100000) {
        ingot_tokenizer *tokenizer = NULL;
        uint32_t *ids = NULL;
        uint64_t count = 0, decoded_size;
        char *decoded = NULL;
        ingot_memory_fail_after(++n);
        status = ingot_tokenizer_create(&tokenizer, bytes, size, "t.json", &error);
        if (status == INGOT_OK) {
            status = ingot_tokenizer_encode(tokenizer, text, sizeof text - 1, &ids, &count, &error);
        }
        if (status == INGOT_OK) {
            status = ingot_tokenizer_decode(tokenizer, ids, count, false, &decoded, &decoded_size,
                                            &error);
        }
        ingot_memory_fail_after(0);
        CU_ASSERT(status == INGOT_OK || status == INGOT_ERR_NO_MEMORY);
        CU_ASSERT(status == INGOT_OK || error.status == INGOT_ERR_NO_MEMORY);
        ingot_free(ids);
        ingot_free(decoded);
        ingot_tokenizer_destroy(tokenizer);
    }
    CU_ASSERT_EQUAL(status, INGOT_OK);
    CU_ASSERT(n > 20);
    ingot_free(bytes);
}

/* One word of a megabyte: n log n takes a fraction of a second, a quadratic merge hours. */
static void test_long_word(void) {
    ingot_tokenizer *tokenizer = open_tokenizer("examples/demo-4m/tokenizer.json");
    char *text = malloc(LONG_WORD_BYTES), *decoded = NULL;
    uint32_t *ids = NULL;
    uint64_t count = 0, size = 0;
    CU_ASSERT_PTR_NOT_NULL_FATAL(tokenizer);
    CU_ASSERT_PTR_NOT_NULL_FATAL(text);
    random_state = 1;
    for (uint64_t i = 0; i < LONG_WORD_BYTES; i++) {
        text[i] = "etaoinshrdlu"[random_below(12)];
    }
    const double start = ingot_clock_seconds();
    CU_ASSERT_EQUAL(ingot_tokenizer_encode(tokenizer, text, LONG_WORD_BYTES, &ids, &count, &error),
                    INGOT_OK);
    CU_ASSERT(ingot_clock_seconds() - start < 60);
    CU_ASSERT_EQUAL(ingot_tokenizer_decode(tokenizer, ids, count, false, &decoded, &size, &error),
                    INGOT_OK);
    CU_ASSERT(size == LONG_WORD_BYTES && memcmp(text, decoded, size) == 0);
    free(text);
    ingot_free(ids);
    ingot_free(decoded);
    ingot_tokenizer_destroy(tokenizer);
}

/* ---- Corpora ---- */

static void check_corpus(const ingot_tokenizer *tokenizer, const char *path, const json_t *want) {
    char *text = NULL, *decoded = NULL;
    uint32_t *ids = NULL;
    uint64_t size = 0, count = 0, decoded_size = 0;
    CU_ASSERT_EQUAL_FATAL(ingot_file_read_all(path, FILE_BYTES_MAX, &text, &size, &error),
                          INGOT_OK);
    CU_ASSERT_EQUAL(ingot_tokenizer_encode(tokenizer, text, size, &ids, &count, &error), INGOT_OK);
    CU_ASSERT_EQUAL((json_int_t)count, json_integer_value(json_object_get(want, "count")));
    CU_ASSERT(is_digest(digest_ids(ids, count), json_object_get(want, "fnv")));
    CU_ASSERT_EQUAL(
        ingot_tokenizer_decode(tokenizer, ids, count, false, &decoded, &decoded_size, &error),
        INGOT_OK);
    CU_ASSERT(decoded_size == size && memcmp(decoded, text, size) == 0);
    ingot_free(text);
    ingot_free(decoded);
    ingot_free(ids);
}

static void test_corpora(void) {
    const char *shared = suite_shared(), *smollm2 = getenv("INGOT_SMOLLM2"), *model;
    if (shared == NULL) {
        (void)printf("\nSKIP whole corpora: there is no ../shared\n");
        return;
    }
    json_t *root = NULL, *texts;
    CU_ASSERT_EQUAL_FATAL(ingot_json_read(&root, VECTORS "/corpora.json", FILE_BYTES_MAX, &error),
                          INGOT_OK);
    json_object_foreach(root, model, texts) {
        char path[4096];
        (void)snprintf(path, sizeof path, "%s/models/%s/tokenizer.json", shared, model);
        if (strcmp(model, "smollm2-135m") == 0) {
            if (smollm2 == NULL) {
                (void)printf("\nSKIP smollm2-135m: INGOT_SMOLLM2 does not name its folder\n");
                continue;
            }
            (void)snprintf(path, sizeof path, "%s/tokenizer.json", smollm2);
        }
        ingot_tokenizer *tokenizer = open_tokenizer(path);
        const char *file;
        json_t *want;
        CU_ASSERT_PTR_NOT_NULL_FATAL(tokenizer);
        json_object_foreach(texts, file, want) {
            (void)snprintf(path, sizeof path, "%s/corpora/%s", shared, file);
            check_corpus(tokenizer, path, want);
        }
        ingot_tokenizer_destroy(tokenizer);
    }
    json_decref(root);
}

static ingot_status encode_after_signal(void *context, ingot_error *failure) {
    static const char text[] = "The old captain looked at the sea";
    uint32_t *ids;
    uint64_t count;
    (void)raise(SIGINT);
    const ingot_status status =
        ingot_tokenizer_encode(context, text, strlen(text), &ids, &count, failure);
    ingot_free(ids);
    return status;
}

/* A signal ends it before the next word: half a gigabyte took none for 14 s. */
static void test_interrupt(void) {
    ingot_tokenizer *tokenizer = open_tokenizer("examples/demo-4m/tokenizer.json");
    CU_ASSERT_PTR_NOT_NULL_FATAL(tokenizer);
    signal_expect(encode_after_signal, tokenizer);
    ingot_tokenizer_destroy(tokenizer);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"vectors of the reference library", test_vectors},
        {"merging against a plain reference", test_plain_merge},
        {"files that are refused", test_refused},
        {"a file nested too deeply", test_deep_file},
        {"expressions that run into their limit", test_expression_limit},
        {"more stack than the JIT has", test_jit_stack},
        {"ids that do not exist", test_bad_ids},
        {"every allocation fails", test_no_memory},
        {"a word of a megabyte", test_long_word},
        {"whole corpora", test_corpora},
        {"a signal between words", test_interrupt},
        CU_TEST_INFO_NULL,
    };
    return suite_run("tokenizer", tests);
}
