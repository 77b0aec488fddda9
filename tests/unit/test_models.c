/* Real models against what `transformers` computes from them: reference.json beside each model of
 * ../shared, and tests/fixtures/reference_windows.json for a few windows of text.
 *
 * In a normal run only those windows and the prompts are computed; INGOT_CHECK_MODELS=1 (make
 * check-models) runs whole texts as well, half an hour on two cores.  INGOT_SMOLLM2 names the
 * folder of smollm2-135m, which ../shared holds as a build script. */
#include "calib/decode.h"
#include "calib/score.h"
#include "calib/text_model.h"
#include "common/files.h"
#include "common/json.h"
#include "suite.h"

#include <math.h>
#include <string.h>

static ingot_backend backend;
static const char *shared;

/* Folder of a model, or NULL after saying why it is skipped. */
static const char *folder_of(const char *model, char *path, size_t size) {
    const char *smollm2 = getenv("INGOT_SMOLLM2");
    if (strcmp(model, "smollm2-135m") == 0) {
        if (smollm2 == NULL) {
            printf("\nSKIP: %s, INGOT_SMOLLM2 does not name its folder\n", model);
        }
        return smollm2;
    }
    snprintf(path, size, "%s/models/%s", shared, model);
    return path;
}

static json_t *read_json(const char *path) {
    json_t *value = NULL;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(ingot_json_read(&value, path, 1 << 24, &error), INGOT_OK);
    return value;
}

/* logits[count][vocab] of one sequence, in host memory. */
static float *run_logits(const ingot_text_model *from, const uint32_t *ids, uint64_t count) {
    const ingot_model *model = &from->model;
    const ingot_backend_ops *ops = backend.ops;
    ingot_arena *arena;
    ingot_workspace *work;
    ingot_ends ends;
    ingot_block block;
    ingot_error error;
    void *x, *scratch, *logits;
    CU_ASSERT_EQUAL_FATAL(ingot_arena_create(&arena), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_workspace_create(&work, model, &backend, count, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ops->alloc(backend.context, &x, count * model->hidden * sizeof(float)),
                          INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ops->alloc(backend.context, &scratch, count * model->hidden * sizeof(float)), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ops->alloc(backend.context, &logits, count * model->vocab * sizeof(float)), INGOT_OK);
    float *host = malloc(count * model->vocab * sizeof *host);
    CU_ASSERT_EQUAL_FATAL(ingot_ends_load(&ends, model, &from->source, &backend, arena, &error),
                          INGOT_OK);
    CU_ASSERT_EQUAL(ingot_ends_embed(&ends, model, &backend, x, ids, count), INGOT_OK);
    for (uint64_t i = 0; i < model->layers; i++) {
        CU_ASSERT_EQUAL_FATAL(
            ingot_block_load(&block, model, i, &from->source, &backend, arena, &error), INGOT_OK);
        CU_ASSERT_EQUAL(
            ingot_block_forward(model, &backend, &block, x, 1, count, NULL, work, NULL, NULL),
            INGOT_OK);
        ingot_block_release(&block, &backend);
    }
    CU_ASSERT_EQUAL(ingot_ends_logits(&ends, model, &backend, logits, x, scratch, count), INGOT_OK);
    CU_ASSERT_EQUAL(
        ops->download(backend.context, host, logits, count * model->vocab * sizeof(float)),
        INGOT_OK);
    ingot_ends_release(&ends, &backend);
    ops->release(backend.context, x);
    ops->release(backend.context, scratch);
    ops->release(backend.context, logits);
    ingot_workspace_destroy(work);
    ingot_arena_destroy(arena);
    return host;
}

static uint64_t argmax(const float *row, uint64_t n) {
    uint64_t best = 0;
    for (uint64_t i = 1; i < n; i++) {
        best = row[i] > row[best] ? i : best;
    }
    return best;
}

static double nll_of(const float *row, uint64_t n, uint32_t target) {
    const double peak = (double)row[argmax(row, n)];
    double total = 0;
    for (uint64_t i = 0; i < n; i++) {
        total += exp((double)row[i] - peak);
    }
    /* cppcheck-suppress invalidFunctionArg; the term of the peak is 1 */
    return log(total) + peak - (double)row[target];
}

/* A prompt of reference.json: ids, argmax at every position, first logits of the last one. */
static void check_prompt(const ingot_text_model *from, const json_t *prompt) {
    const char *text = json_string_value(json_object_get(prompt, "text"));
    const json_t *ids = json_object_get(prompt, "ids");
    const json_t *best = json_object_get(prompt, "argmax_per_position");
    const json_t *last = json_object_get(prompt, "last_logits_first8");
    const uint64_t vocab = from->model.vocab;
    uint32_t *got;
    uint64_t count;
    ingot_error error;
    CU_ASSERT_PTR_NOT_NULL_FATAL(text);
    CU_ASSERT_EQUAL_FATAL(
        ingot_tokenizer_encode(from->tokenizer, text, strlen(text), &got, &count, &error),
        INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(count, json_array_size(ids));
    CU_ASSERT_EQUAL_FATAL(count, json_array_size(best));
    float *logits = run_logits(from, got, count);
    double largest = 0;
    for (uint64_t i = 0; i < count; i++) {
        CU_ASSERT_EQUAL(got[i], json_integer_value(json_array_get(ids, i)));
        CU_ASSERT_EQUAL(argmax(logits + i * vocab, vocab),
                        (uint64_t)json_integer_value(json_array_get(best, i)));
    }
    const float *row = logits + (count - 1) * vocab;
    for (uint64_t i = 0; i < vocab; i++) {
        largest = fmax(largest, fabs((double)row[i]));
    }
    CU_ASSERT_FATAL(json_array_size(last) == 8);
    for (size_t i = 0; i < 8; i++) {
        CU_ASSERT(fabs((double)row[i] - json_number_value(json_array_get(last, i))) <
                  1e-3 * largest);
    }
    free(logits);
    ingot_free(got);
}

/* Greedy ids of reference.json with the cache. */
static void check_greedy(const ingot_text_model *from, const json_t *prompt) {
    const json_t *expected = json_object_get(prompt, "greedy_ids");
    const char *text = json_string_value(json_object_get(prompt, "text"));
    if (expected == NULL) {
        return;
    }
    ingot_decoder *decoder;
    ingot_generation generation;
    ingot_sampler sampler = {0};
    uint32_t *ids;
    uint64_t count;
    ingot_error error;
    CU_ASSERT_EQUAL_FATAL(
        ingot_tokenizer_encode(from->tokenizer, text, strlen(text), &ids, &count, &error),
        INGOT_OK);
    const uint64_t limit = json_array_size(expected);
    CU_ASSERT_EQUAL_FATAL(ingot_decoder_create(&decoder, &from->model, &from->source, &backend,
                                               count + limit, NULL, &error),
                          INGOT_OK);
    CU_ASSERT_EQUAL(
        ingot_generate(&generation, decoder, &sampler, ids, count, limit, NULL, NULL, &error),
        INGOT_OK);
    CU_ASSERT_EQUAL(generation.count, limit);
    for (uint64_t i = 0; i < generation.count; i++) {
        CU_ASSERT_EQUAL(generation.ids[i], json_integer_value(json_array_get(expected, i)));
    }
    ingot_generation_free(&generation);
    ingot_decoder_destroy(decoder);
    ingot_free(ids);
}

/* Whole texts: perplexity within 0.1 %. */
static void check_perplexity(const ingot_text_model *from, const char *model, const json_t *entry) {
    const char *name = json_string_value(json_object_get(entry, "text"));
    const double expected = json_number_value(json_object_get(entry, "ppl"));
    ingot_text text;
    ingot_windows windows;
    ingot_score score;
    ingot_error error;
    char path[512];
    /* The flat files name no text: it is books-eval.txt (README of the models). */
    snprintf(path, sizeof path, "%s/corpora/%s", shared,
             json_object_get(entry, "ids") != NULL ? "books-eval.txt" : name);
    const char *paths[] = {path};
    CU_ASSERT_EQUAL_FATAL(ingot_text_load(&text, paths, 1, from->tokenizer, &error), INGOT_OK);
    CU_ASSERT_EQUAL(text.count, (uint64_t)json_integer_value(json_object_get(entry, "tokens")));
    CU_ASSERT_EQUAL_FATAL(
        ingot_windows_evaluation(
            &windows, &text, (uint64_t)json_integer_value(json_object_get(entry, "windows")),
            (uint64_t)json_integer_value(json_object_get(entry, "ctx")), path, &error),
        INGOT_OK);
    const double start = ingot_clock_seconds();
    CU_ASSERT_EQUAL_FATAL(ingot_score_run(&score, &from->model, &from->source, NULL, &windows,
                                          &backend, 0, NULL, &error),
                          INGOT_OK);
    printf("%s, %s, %llu windows of %llu: perplexity %.5f, reference %.5f, %.0f s\n", model, path,
           (unsigned long long)windows.count, (unsigned long long)windows.length, score.perplexity,
           expected, ingot_clock_seconds() - start);
    (void)fflush(stdout);
    CU_ASSERT(fabs(score.perplexity / expected - 1) < 1e-3);
    ingot_windows_free(&windows);
    ingot_text_free(&text);
}

static void check_model(const char *name) {
    char buffer[512], path[512];
    const char *folder = shared == NULL ? NULL : folder_of(name, buffer, sizeof buffer);
    if (folder == NULL) {
        return;
    }
    ingot_text_model from;
    ingot_error error;
    snprintf(path, sizeof path, "%s/models/%s/reference.json", shared, name);
    json_t *reference = read_json(path);
    CU_ASSERT_EQUAL_FATAL(ingot_text_model_open(&from, folder, true, &error), INGOT_OK);
    const json_t *prompts = json_object_get(reference, "prompts");
    const json_t *scores = json_object_get(reference, "perplexity");
    const bool is_flat = prompts == NULL;
    for (size_t i = 0; i < (is_flat ? 1 : json_array_size(prompts)); i++) {
        check_prompt(&from, is_flat ? reference : json_array_get(prompts, i));
        check_greedy(&from, is_flat ? reference : json_array_get(prompts, i));
    }
    for (size_t i = 0;
         getenv("INGOT_CHECK_MODELS") != NULL && i < (is_flat ? 1 : json_array_size(scores)); i++) {
        check_perplexity(&from, name, is_flat ? reference : json_array_get(scores, i));
    }
    ingot_text_model_close(&from);
    json_decref(reference);
}

static void test_demo(void) {
    check_model("demo-4m");
}
static void test_books(void) {
    check_model("books-28m");
}
static void test_smollm2(void) {
    check_model("smollm2-135m");
}

/* One window: mean likelihood, and the argmax everywhere. */
static void check_window(const ingot_text_model *from, const uint32_t *ids, uint64_t length,
                         const json_t *expected) {
    const uint64_t vocab = from->model.vocab;
    const json_t *best = json_object_get(expected, "argmax");
    float *logits = run_logits(from, ids, length);
    double nll = 0;
    uint64_t different = 0;
    CU_ASSERT_EQUAL_FATAL(json_array_size(best), length - 1);
    for (uint64_t i = 0; i + 1 < length; i++) {
        const float *row = logits + i * vocab;
        nll += nll_of(row, vocab, ids[i + 1]) / (double)(length - 1);
        different += argmax(row, vocab) != (uint64_t)json_integer_value(json_array_get(best, i));
    }
    const double gap = nll - json_number_value(json_object_get(expected, "nll"));
    if (different != 0 || !(fabs(gap) < 1e-5)) {
        printf("nll off by %g, %llu other argmax\n", gap, (unsigned long long)different);
    }
    CU_ASSERT_EQUAL(different, 0);
    CU_ASSERT(fabs(gap) < 1e-5); /* 0.001 % of perplexity */
    free(logits);
}

static void check_case(const json_t *item) {
    const char *name = json_string_value(json_object_get(item, "model"));
    const json_t *expected = json_object_get(item, "windows");
    char buffer[512], path[512];
    const char *folder = folder_of(name, buffer, sizeof buffer);
    if (folder == NULL) {
        return;
    }
    ingot_text_model from;
    ingot_text text;
    ingot_windows windows;
    ingot_error error;
    snprintf(path, sizeof path, "%s/corpora/%s", shared,
             json_string_value(json_object_get(item, "text")));
    const char *paths[] = {path};
    CU_ASSERT_EQUAL_FATAL(ingot_text_model_open(&from, folder, true, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(ingot_text_load(&text, paths, 1, from.tokenizer, &error), INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(
        ingot_windows_evaluation(&windows, &text, json_array_size(expected),
                                 (uint64_t)json_integer_value(json_object_get(item, "length")),
                                 path, &error),
        INGOT_OK);
    CU_ASSERT_EQUAL_FATAL(windows.count, json_array_size(expected));
    for (uint64_t w = 0; w < windows.count; w++) {
        check_window(&from, windows.ids + w * windows.length, windows.length,
                     json_array_get(expected, w));
    }
    ingot_windows_free(&windows);
    ingot_text_free(&text);
    ingot_text_model_close(&from);
}

static void test_windows(void) {
    if (shared == NULL) {
        printf("\nSKIP: no ../shared, real models are not compared with transformers\n");
        return;
    }
    json_t *cases = read_json("tests/fixtures/reference_windows.json");
    CU_ASSERT(json_array_size(cases) >= 4);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        check_case(json_array_get(cases, i));
    }
    json_decref(cases);
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"windows of text", test_windows}, {"demo-4m", test_demo}, {"books-28m", test_books},
        {"smollm2-135m", test_smollm2},    CU_TEST_INFO_NULL,
    };
    ingot_error error;
    shared = suite_shared();
    if (ingot_backend_open(&backend, "cpu", 0, &error) != INGOT_OK) {
        fprintf(stderr, "no backend: %s\n", error.reason);
        return 2;
    }
    const int result = suite_run("models", tests);
    ingot_backend_close(&backend);
    return result;
}
