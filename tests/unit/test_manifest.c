/* zoo/manifest.h and common/json_line.h: what a manifest may say, and that every error names its
 * line. */
#include "common/json_line.h"
#include "suite.h"
#include "zoo/manifest.h"

#include <math.h>
#include <string.h>

static ingot_status parse(ingot_manifest *out, const char *text, ingot_error *error) {
    memset(error, 0, sizeof *error);
    return ingot_manifest_parse(out, text, strlen(text), "folder/zoo.json", error);
}

static const char whole[] =
    "{\"shelf\": \"s\",\n"
    " \"models\": {\"m\": \"../m\", \"n\": \"/abs\"},\n"
    " \"texts\": {\"t\": [\"a\", \"b\"], \"u\": \"c\"},\n"
    " \"recipes\": {\"r\": {\"defaults\": {\"bits\": 3}}, \"q\": \"q.json\"},\n"
    " \"defaults\": {\"evaluation\": \"u\", \"windows\": 7, \"gates\": {\"max_kld\": 0.5}},\n"
    " \"devices\": [\"cpu\", \"cuda:1\"], \"limits\": {\"jobs\": 3, \"host_bytes\": 12},\n"
    " \"products\": [{\"model\": \"m\", \"recipes\": [\"r\", \"q\"], \"calibration\": \"t\"},\n"
    "  {\"model\": \"n\", \"recipes\": [\"r\"], \"output\": \"x/y.ingot\", \"windows\": 9,\n"
    "   \"gates\": {\"max_ppl_ratio\": 2}, \"zstd\": true}]}\n";

static void test_whole(void) {
    ingot_manifest m;
    ingot_error error;
    CU_ASSERT_FATAL(parse(&m, whole, &error) == INGOT_OK);
    CU_ASSERT_STRING_EQUAL(m.shelf, "folder/s");
    CU_ASSERT_STRING_EQUAL(m.models[0].path, "folder/../m");
    CU_ASSERT_STRING_EQUAL(m.models[1].path, "/abs");
    CU_ASSERT(m.text_count == 2 && m.texts[0].path_count == 2);
    CU_ASSERT_STRING_EQUAL(m.texts[0].paths[1], "folder/b");
    CU_ASSERT(m.recipes[0].recipe.defaults.bits == 3 && m.recipes[0].path == NULL);
    CU_ASSERT_STRING_EQUAL(m.recipes[1].path, "folder/q.json");
    CU_ASSERT(m.device_count == 2 && m.limits.jobs == 3 && m.limits.host_bytes == 12);
    CU_ASSERT_FATAL(m.product_count == 3);
    CU_ASSERT_STRING_EQUAL(m.products[1].name, "m/q");
    CU_ASSERT_STRING_EQUAL(m.products[1].output, "m/q.ingot");
    CU_ASSERT(m.products[0].calibration == 0 && m.products[2].calibration == INGOT_ZOO_NONE);
    CU_ASSERT(m.products[0].windows == 7 && m.products[2].windows == 9);
    CU_ASSERT(m.products[0].max_kld == 0.5 && isnan(m.products[0].max_ppl_ratio));
    CU_ASSERT(m.products[2].max_kld == 0.5 && m.products[2].max_ppl_ratio == 2);
    CU_ASSERT(m.products[2].is_compressed && !m.products[1].is_compressed);
    ingot_manifest_free(&m);
}

/* null takes back what "defaults" say, and what is only of that with it; its own keys hold. */
static void test_taken_back(void) {
    static const char text[] =
        "{\"shelf\": \"s\", \"models\": {\"m\": \"m\"}, \"texts\": {\"t\": \"t\", \"u\": \"u\"},\n"
        " \"recipes\": {\"a\": {}, \"b\": {}, \"c\": {}, \"d\": {}, \"e\": {}},\n"
        " \"defaults\": {\"evaluation\": \"u\", \"windows\": 7, \"seq_len\": 9, \"tasks\": \"i\",\n"
        "  \"gates\": {\"max_kld\": 0.5, \"max_ppl_ratio\": 2}, \"calibration\": \"t\", "
        "\"statistics\": true,\n"
        "  \"zstd\": true, \"shard_bytes\": 100},\n"
        " \"products\": [{\"model\": \"m\", \"recipes\": [\"a\"], \"evaluation\": null, \"gates\": "
        "null},\n"
        "  {\"model\": \"m\", \"recipes\": [\"b\"], \"gates\": {\"max_kld\": null, "
        "\"max_accuracy_drop\": 1}},\n"
        "  {\"model\": \"m\", \"recipes\": [\"c\"], \"calibration\": null, \"windows\": null},\n"
        "  {\"model\": \"m\", \"recipes\": [\"d\"], \"tasks\": null, \"zstd\": null, "
        "\"shard_bytes\": null},\n"
        "  {\"model\": \"m\", \"recipes\": [\"e\"], \"output\": null}]}";
    ingot_manifest m;
    ingot_error error;
    CU_ASSERT_FATAL(parse(&m, text, &error) == INGOT_OK && m.product_count == 5);
    const ingot_zoo_product *p = m.products;
    CU_ASSERT(p[0].evaluation == INGOT_ZOO_NONE && p[0].windows == 0 && p[0].seq_len == 0);
    CU_ASSERT(!ingot_product_has_gates(&p[0]) && p[0].tasks != NULL && p[0].uses_statistics);
    CU_ASSERT(isnan(p[1].max_kld) && p[1].max_ppl_ratio == 2 && p[1].max_accuracy_drop == 1);
    CU_ASSERT(p[1].evaluation == 1 && p[1].windows == 7);
    CU_ASSERT(p[2].calibration == INGOT_ZOO_NONE && !p[2].uses_statistics);
    CU_ASSERT(p[2].windows == 0 && p[2].seq_len == 9 && p[2].max_kld == 0.5);
    CU_ASSERT(p[3].tasks == NULL && !p[3].is_compressed && p[3].shard_bytes == 0);
    CU_ASSERT(p[4].tasks != NULL && p[4].is_compressed && p[4].shard_bytes == 100);
    CU_ASSERT(p[4].max_kld == 0.5 && p[4].calibration == 0 && p[4].evaluation == 1);
    ingot_manifest_free(&m);
}

/* A manifest with one line replaced by another, and what the error must say. */
typedef struct bad_case {
    const char *from, *to, *message;
} bad_case;

static void check_bad(const bad_case *c) {
    char text[4096];
    ingot_manifest m;
    ingot_error error;
    const char *at = strstr(whole, c->from);
    CU_ASSERT_FATAL(at != NULL);
    (void)snprintf(text, sizeof text, "%.*s%s%s", (int)(at - whole), whole, c->to,
                   at + strlen(c->from));
    const ingot_status status = parse(&m, text, &error);
    CU_ASSERT(status == INGOT_ERR_INPUT);
    CU_ASSERT_STRING_EQUAL(error.file, "folder/zoo.json");
    if (strstr(error.reason, c->message) == NULL) {
        fprintf(stderr, "\n%s\n  gave: %s\n  expected: %s\n", text, error.reason, c->message);
        CU_FAIL("another message");
    }
    ingot_manifest_free(&m);
}

static void test_bad(void) {
    static const bad_case cases[] = {
        {"\"shelf\": \"s\"", "\"shelf\": \"s\", \"colour\": 1", "line 1: unknown key \"colour\""},
        {"\"shelf\": \"s\",\n", "\n", "line 1: \"shelf\" is missing"},
        {"\"shelf\": \"s\"", "\"shelf\": 3", "line 1: \"shelf\" must be"},
        {"\"m\": \"../m\"", "\"m\": 4", "line 2: model \"m\""},
        {"\"m\": \"../m\"", "\"a/b\": \"x\"", "line 2: \"a/b\" is no name"},
        {"\"m\": \"../m\"", "\"..\": \"x\"", "line 2: \"..\" is no name"},
        {"\"m\": \"../m\"", "\"m\": \"x\", \"m\": \"y\"", "line 2"},
        {"[\"a\", \"b\"]", "[]", "line 3: text \"t\""},
        {"[\"a\", \"b\"]", "[\"a\", 1]", "line 3: text \"t\""},
        {"\"bits\": 3", "\"bits\": 9", "line 4: recipe \"r\": \"bits\" must lie"},
        {"\"bits\": 3", "\"bitz\": 3", "line 4: recipe \"r\": unknown key \"bitz\""},
        {"\"windows\": 7", "\"windoes\": 7", "line 5: unknown key \"windoes\""},
        {"\"windows\": 7", "\"windows\": 0", "line 5: \"windows\" must be a whole number"},
        {"\"max_kld\": 0.5", "\"max_kld\": -1", "line 5: \"max_kld\" must be a number"},
        {"\"max_kld\": 0.5", "\"min_kld\": 1", "line 5: unknown key \"min_kld\""},
        {"\"cuda:1\"", "\"gpu\"", "line 6: a device is"},
        {"\"cuda:1\"", "\"cuda:\"", "line 6: a device is"},
        {"\"jobs\": 3", "\"jobs\": 0", "line 6: \"jobs\" must be"},
        {"\"model\": \"m\"", "\"model\": \"z\"", "line 7: there is no model \"z\""},
        {"[\"r\", \"q\"]", "[\"r\", \"z\"]", "line 7: there is no recipe \"z\""},
        {"[\"r\", \"q\"]", "[\"r\", \"r\"]", "line 7: product m/r was already listed on line 7"},
        {"\"model\": \"n\"", "\"model\": \"m\"",
         "line 8: product m/r was already listed on line 7"},
        {"x/y.ingot", "m/q.ingot",
         "line 8: product n/r would write m/q.ingot, as does the one on "
         "line 7"},
        {"x/y.ingot", "m/q.ingot/y.ingot",
         "line 8: product n/r needs a folder m/q.ingot, a file of line 7"},
        {"\"calibration\": \"t\"},\n  {\"model\": \"n\", \"recipes\": [\"r\"], \"output\": "
         "\"x/y.ingot\"",
         "\"shard_bytes\": 9},\n"
         " {\"model\": \"n\", \"recipes\": [\"r\"], \"output\": \"m/q-00001-of-00002.ingot\"",
         "line 8: product n/r would write m/q-00001-of-00002.ingot, a shard of the one on line 7"},
        {"x/y.ingot", "../y.ingot", "line 8: \"output\" must name"},
        {"x/y.ingot", ".ingot-zoo/y.ingot", "line 8: \"output\" must name"},
        {"x/y.ingot", "/y.ingot", "line 8: \"output\" must name"},
        {"\"zstd\": true", "\"zstd\": 1", "line 9: \"zstd\" must be true or false"},
        {"\"calibration\": \"t\"", "\"calibration\": \"v\"", "line 7: there is no text \"v\""},
        {"\"calibration\": \"t\"", "\"statistics\": true", "line 7: \"statistics\" need"},
        {"\"evaluation\": \"u\", \"windows\": 7, ", "", "line 7: a gate on perplexity"},
        {"\"calibration\": \"t\"", "\"evaluation\": null",
         "line 7: a gate on perplexity or divergence needs \"evaluation\" (\"gates\": null takes "
         "those of \"defaults\" back)"},
        {"\"gates\": {\"max_ppl_ratio\": 2}", "\"gates\": null, \"evaluation\": null",
         "line 8: \"seq_len\" and \"windows\" are of the \"evaluation\""},
        {"\"gates\": {\"max_ppl_ratio\": 2}", "\"gates\": {\"max_accuracy_drop\": 2}",
         "line 8: a gate on accuracy"},
        {"\"model\": \"n\", ", "", "line 8: a product needs a \"model\""},
        {"\"recipes\": [\"r\"]", "\"recipes\": \"r\"", "line 8: a product needs \"recipes\""},
        {"\"products\": [", "\"products\": [7, ", "line 7: a product must be an object"},
        {"}]}\n", "}]\n", "not valid JSON: line"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_bad(&cases[i]);
    }
}

/* One remedy, that of the recipe. */
static void test_recipe_remedy(void) {
    static const char text[] = "{\"shelf\": \"s\", \"models\": {\"m\": \"m\"},\n"
                               " \"recipes\": {\"r\": {\"recipe\": 3}},\n"
                               " \"products\": [{\"model\": \"m\", \"recipes\": [\"r\"]}]}";
    ingot_manifest m;
    ingot_error error;
    CU_ASSERT(parse(&m, text, &error) == INGOT_ERR_INPUT);
    CU_ASSERT_STRING_EQUAL(error.reason, "line 2: recipe \"r\": unknown key \"recipe\"");
    CU_ASSERT_STRING_EQUAL(error.remedy, "spec/recipe.md has the keys of recipes");
    ingot_manifest_free(&m);
}

static void test_lines(void) {
    static const char text[] = "{\n \"a\\u0062\": [1, {\n\"x\": \"}]\\\"\",\n \"y\": 2}\n, 3 ],\n"
                               "\"c\": -1e5}";
    const ingot_json_place ab = {.key = "ab"}, second = {.parent = &ab, .index = 1};
    const ingot_json_place y = {.parent = &second, .key = "y"};
    const ingot_json_place third = {.parent = &ab, .index = 2}, c = {.key = "c"};
    const ingot_json_place nothing = {.parent = &second, .key = "z"};
    CU_ASSERT(ingot_json_line(text, strlen(text), NULL) == 1);
    CU_ASSERT(ingot_json_line(text, strlen(text), &ab) == 2);
    CU_ASSERT(ingot_json_line(text, strlen(text), &second) == 2);
    CU_ASSERT(ingot_json_line(text, strlen(text), &y) == 4);
    CU_ASSERT(ingot_json_line(text, strlen(text), &third) == 5);
    CU_ASSERT(ingot_json_line(text, strlen(text), &c) == 6);
    CU_ASSERT(ingot_json_line(text, strlen(text), &nothing) == 2);
}

static void test_example(void) {
    ingot_manifest m;
    ingot_error error = {0};
    CU_ASSERT(ingot_manifest_read(&m, "examples/zoo/zoo.json", &error) == INGOT_OK);
    CU_ASSERT(m.product_count == 6);
    ingot_manifest_free(&m);
}

int main(void) {
    static const CU_TestInfo tests[] = {{"all of a manifest", test_whole},
                                        {"defaults taken back", test_taken_back},
                                        {"errors name their line", test_bad},
                                        {"the remedy of a recipe", test_recipe_remedy},
                                        {"lines of values", test_lines},
                                        {"the example", test_example},
                                        CU_TEST_INFO_NULL};
    return suite_run("manifest", tests);
}
