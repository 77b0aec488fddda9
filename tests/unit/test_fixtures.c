/* The forward pass against logits that `transformers` computed: tests/fixtures, written by
 * tests/make_fixtures.py, one folder per family.  Everything between config.json and a logit is
 * under test: the description, the checkpoint reader, the blocks and both ends. */
#include "calib/score.h"
#include "common/files.h"
#include "common/json.h"
#include "suite.h"

#include <math.h>
#include <string.h>

#define LOGIT_TOLERANCE      2e-5 /* of the largest logit; FP32 sums in another order */
#define PERPLEXITY_TOLERANCE 1e-5 /* relative */
#define LENGTH_MAX           64u
#define VOCAB_MAX            256u

typedef struct fixture {
    ingot_weight_source source;
    ingot_model model;
    ingot_backend backend;
    json_t *expected;
    uint32_t ids[LENGTH_MAX];
    uint64_t length;
} fixture;

static bool fixture_open(fixture *f, const char *name) {
    ingot_error error = {0};
    char path[256];
    memset(f, 0, sizeof *f);
    (void)snprintf(path, sizeof path, "tests/fixtures/%s", name);
    bool is_good = ingot_weight_source_open(&f->source, path, true, &error) == INGOT_OK &&
                   ingot_model_open(&f->model, &f->source, &error) == INGOT_OK &&
                   ingot_backend_open(&f->backend, "cpu", 2, &error) == INGOT_OK;
    (void)snprintf(path, sizeof path, "tests/fixtures/%s/expected.json", name);
    is_good = is_good && ingot_json_read(&f->expected, path, 1 << 20, &error) == INGOT_OK;
    if (!is_good) {
        char text[2048];
        ingot_error_format(&error, text, sizeof text);
        printf("\n    %s\n", text);
        return false;
    }
    const json_t *ids = json_object_get(f->expected, "ids");
    f->length = json_array_size(ids);
    CU_ASSERT_FATAL(f->length > 1 && f->length <= LENGTH_MAX && f->model.vocab <= VOCAB_MAX);
    for (uint64_t i = 0; i < f->length; i++) {
        f->ids[i] = (uint32_t)json_integer_value(json_array_get(ids, i));
    }
    return true;
}

static void fixture_close(fixture *f) {
    json_decref(f->expected);
    ingot_backend_close(&f->backend);
    ingot_model_close(&f->model);
    ingot_weight_source_close(&f->source);
}

/* logits[length][vocab]; the sequence runs in pieces of `first` tokens and then one by one through
 * a key-value cache, or at once when first is the length. */
static ingot_status run(const fixture *f, uint64_t first, float *logits) {
    const ingot_model *model = &f->model;
    const ingot_backend *backend = &f->backend;
    float x[LENGTH_MAX * VOCAB_MAX];
    float scratch[LENGTH_MAX * VOCAB_MAX];
    ingot_arena *arena = NULL;
    ingot_workspace *workspace = NULL;
    ingot_kv_cache cache;
    ingot_ends ends;
    ingot_block block;
    ingot_status status = ingot_arena_create(&arena);
    memset(&cache, 0, sizeof cache);
    memset(&ends, 0, sizeof ends);
    INGOT_GO(status);
    INGOT_GO(ingot_workspace_create(&workspace, model, backend, f->length, NULL));
    INGOT_GO(ingot_kv_cache_create(&cache, model, backend, 1, f->length, NULL));
    INGOT_GO(ingot_ends_load(&ends, model, &f->source, backend, arena, NULL));
    for (uint64_t at = 0; at < f->length;) {
        const uint64_t count = at == 0 ? first : 1;
        INGOT_GO(ingot_ends_embed(&ends, model, backend, x, f->ids + at, count));
        for (uint64_t layer = 0; layer < model->layers; layer++) {
            INGOT_GO(ingot_block_load(&block, model, layer, &f->source, backend, arena, NULL));
            status = ingot_block_forward(model, backend, &block, x, 1, count,
                                         first < f->length ? &cache : NULL, workspace, NULL, NULL);
            ingot_block_release(&block, backend);
            INGOT_GO(status);
        }
        INGOT_GO(ingot_ends_logits(&ends, model, backend, logits + at * model->vocab, x, scratch,
                                   count));
        at += count;
        cache.length = at;
    }
done:
    ingot_ends_release(&ends, backend);
    ingot_kv_cache_destroy(&cache, model, backend);
    ingot_workspace_destroy(workspace);
    ingot_arena_destroy(arena);
    return status;
}

static void check_logits(const fixture *f, const float *logits) {
    const uint64_t vocab = f->model.vocab;
    const json_t *rows = json_object_get(f->expected, "logits");
    const json_t *best = json_object_get(f->expected, "argmax");
    const uint64_t first =
        (uint64_t)json_integer_value(json_object_get(f->expected, "first_logit_position"));
    double largest = 0;
    double worst = 0;
    CU_ASSERT_FATAL(json_array_size(rows) > 0 && first + json_array_size(rows) == f->length);
    for (uint64_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        CU_ASSERT_FATAL(json_array_size(row) == vocab);
        for (uint64_t j = 0; j < vocab; j++) {
            const double wanted = json_real_value(json_array_get(row, j));
            largest = fmax(largest, fabs(wanted));
            worst = fmax(worst, fabs(wanted - (double)logits[(first + i) * vocab + j]));
        }
    }
    printf("\n    largest error %.2e of the largest logit ", worst / largest);
    CU_ASSERT(worst <= LOGIT_TOLERANCE * largest);
    CU_ASSERT_FATAL(json_array_size(best) == f->length);
    for (uint64_t i = 0; i < f->length; i++) {
        uint64_t top = 0;
        for (uint64_t j = 1; j < vocab; j++) {
            top = logits[i * vocab + j] > logits[i * vocab + top] ? j : top;
        }
        CU_ASSERT_EQUAL(top, json_integer_value(json_array_get(best, i)));
    }
}

static void check_perplexity(const fixture *f) {
    uint32_t ids[LENGTH_MAX];
    ingot_score score;
    memcpy(ids, f->ids, sizeof ids);
    const ingot_windows windows = {.count = 1, .length = f->length, .ids = ids};
    const double wanted = json_real_value(json_object_get(f->expected, "perplexity"));
    CU_ASSERT_EQUAL_FATAL(
        ingot_score_run(&score, &f->model, &f->source, NULL, &windows, &f->backend, 0, NULL, NULL),
        INGOT_OK);
    CU_ASSERT_EQUAL(score.positions, f->length - 1);
    CU_ASSERT_DOUBLE_EQUAL(score.perplexity, wanted, PERPLEXITY_TOLERANCE * wanted);
}

static void check(const char *name) {
    fixture f;
    float logits[LENGTH_MAX * VOCAB_MAX];
    CU_ASSERT_FATAL(fixture_open(&f, name));
    CU_ASSERT_EQUAL_FATAL(run(&f, f.length, logits), INGOT_OK);
    check_logits(&f, logits);
    memset(logits, 0, sizeof logits);
    CU_ASSERT_EQUAL_FATAL(run(&f, 5, logits), INGOT_OK); /* shorter than any window */
    check_logits(&f, logits);
    check_perplexity(&f);
    /* generation_config.json names two end tokens, config.json only the first. */
    CU_ASSERT_EQUAL(f.model.eos_count, 2);
    CU_ASSERT(f.model.eos_ids[0] == 2 && f.model.eos_ids[1] == 3);
    fixture_close(&f);
}

static void test_qwen2(void) {
    check("tiny-qwen2");
}

static void test_qwen3(void) {
    check("tiny-qwen3");
}

static void test_mistral(void) {
    check("tiny-mistral");
}

static void test_llama(void) {
    check("tiny-llama");
}

static void test_llama_bias(void) {
    check("tiny-llama-bias");
}

int main(void) {
    const CU_TestInfo tests[] = {
        {"Qwen2: q/k/v biases, a window in one layer, tied head, F16", test_qwen2},
        {"Qwen3: q/k norms, wide heads, BF16", test_qwen3},
        {"Mistral: a window in every layer, untied head", test_mistral},
        {"Llama: llama3 rope scaling, one key head, shards", test_llama},
        {"Llama: biases, linear rope scaling, GELU, F32", test_llama_bias},
        CU_TEST_INFO_NULL,
    };
    return suite_run("fixtures", tests);
}
