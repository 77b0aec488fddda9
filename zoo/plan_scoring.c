/* How much a product is scored on (zoo/plan_scoring.h). */
#include "zoo/plan_scoring.h"

#include "calib/tasks.h"
#include "calib/text_model.h"
#include "common/files.h"
#include "common/sizes.h"
#include "zoo/shelf.h"

#include <math.h>
#include <stdio.h>

#define SAMPLE_BYTES          (UINT64_C(1) << 20)
#define TOKENIZER_LIMIT_BYTES (UINT64_C(1) << 28)

static ingot_status open_tokenizer(ingot_tokenizer **out, const char *model) {
    char path[4096], *bytes = NULL;
    uint64_t size;
    INGOT_TRY(ingot_path_join(path, sizeof path, model, INGOT_TOKENIZER_FILE));
    INGOT_TRY(ingot_file_read_all(path, TOKENIZER_LIMIT_BYTES, &bytes, &size, NULL));
    const ingot_status status = ingot_tokenizer_create(out, bytes, size, path, NULL);
    ingot_free(bytes);
    return status;
}

/* The beginning of a text. */
static ingot_status read_sample(char **text, uint64_t *size, const char *path) {
    ingot_file *file;
    INGOT_TRY(ingot_file_open(&file, path, NULL));
    *size = ingot_min_u64(ingot_file_size(file), SAMPLE_BYTES);
    ingot_status status = ingot_alloc((void **)text, *size + 1);
    if (status == INGOT_OK) {
        status = ingot_file_read_at(file, *text, *size, 0, NULL);
    }
    ingot_file_close(file);
    return status;
}

/* Tokens of a byte of the text; NaN: it cannot be told. */
static double tokens_per_byte(const char *model, const char *text_path) {
    char *text = NULL;
    uint64_t size, count;
    uint32_t *ids = NULL;
    ingot_tokenizer *tokenizer = NULL;
    double rate = NAN;
    ingot_status status = open_tokenizer(&tokenizer, model);
    INGOT_GO(status);
    INGOT_GO(read_sample(&text, &size, text_path));
    INGOT_GO(ingot_tokenizer_encode(tokenizer, text, size, &ids, &count, NULL));
    rate = size != 0 ? (double)count / (double)size : (double)NAN;
done:
    ingot_free(ids);
    ingot_free(text);
    ingot_tokenizer_destroy(tokenizer);
    return rate;
}

/* Sequences of tokens that both models run. */
typedef struct scored {
    double tokens; /* of all sequences; NaN: it cannot be told */
    double length; /* of one, on average */
    double scored; /* tokens whose likelihood is asked for */
} scored;

/* Tokens of a byte of a product's evaluation, from the first MiB of the text. */
static double rate_of(json_t *cache, const ingot_manifest *manifest,
                      const ingot_zoo_product *product) {
    char key[64];
    (void)snprintf(key, sizeof key, "%llu text %llu", (unsigned long long)product->model,
                   (unsigned long long)product->evaluation);
    if (json_object_get(cache, key) == NULL) {
        const char *model = manifest->models[product->model].path;
        const char *path = manifest->texts[product->evaluation].paths[0];
        ingot_json_put(cache, key, ingot_json_number(tokens_per_byte(model, path)));
    }
    return ingot_json_number_at(cache, key);
}

/* The windows of a product's evaluation, of `length` tokens. */
static scored text_of(json_t *cache, const ingot_manifest *manifest,
                      const ingot_zoo_product *product, uint64_t length) {
    const ingot_zoo_text *text = &manifest->texts[product->evaluation];
    double windows =
        floor(rate_of(cache, manifest, product) * (double)text->bytes / (double)length);
    if (product->windows != 0 && windows > (double)product->windows) {
        windows = (double)product->windows;
    }
    const double tokens = windows * (double)length;
    return (scored){tokens, (double)length, tokens};
}

ingot_status ingot_zoo_check_text(json_t *cache, const ingot_manifest *manifest,
                                  const ingot_zoo_product *product, uint64_t length,
                                  ingot_error *error) {
    if (product->evaluation == INGOT_ZOO_NONE) {
        return INGOT_OK;
    }
    const ingot_zoo_text *text = &manifest->texts[product->evaluation];
    if (text->path_count != 1 || text->bytes > SAMPLE_BYTES) {
        return INGOT_OK; /* an estimate is no reason */
    }
    const double tokens =
        text->bytes == 0 ? 0 : rint(rate_of(cache, manifest, product) * (double)text->bytes);
    if (!(tokens < (double)length)) { /* or it cannot be told */
        return INGOT_OK;
    }
    return ingot_error_set(error, INGOT_ERR_INPUT, text->paths[0], NULL,
                           "give more text or a smaller \"seq_len\"",
                           "the text has %.0f tokens, one window of the evaluation needs %llu",
                           tokens, (unsigned long long)length);
}

static ingot_status measure_items(ingot_tasks_size *size, bool *has_tokenizer, const char *model,
                                  const char *path, ingot_error *error) {
    ingot_tasks tasks;
    ingot_tokenizer *tokenizer = NULL;
    INGOT_TRY(ingot_tasks_read(&tasks, path, error));
    *has_tokenizer = open_tokenizer(&tokenizer, model) == INGOT_OK;
    const ingot_status status =
        ingot_tasks_measure(size, &tasks, path, tokenizer, UINT64_MAX, SAMPLE_BYTES, error);
    ingot_tasks_free(&tasks);
    ingot_tokenizer_destroy(tokenizer);
    return status;
}

static uint64_t count_at(const json_t *object, const char *key) {
    return (uint64_t)json_integer_value(json_object_get(object, key));
}

/* *has_tokenizer: else a byte was taken for a token. */
static ingot_status items_of(ingot_tasks_size *out, bool *has_tokenizer, json_t *cache,
                             const ingot_manifest *manifest, const ingot_zoo_product *product,
                             ingot_error *error) {
    char key[4096];
    (void)snprintf(key, sizeof key, "%llu tasks %.4000s", (unsigned long long)product->model,
                   product->tasks);
    json_t *known = json_object_get(cache, key);
    if (known == NULL) {
        INGOT_TRY(measure_items(out, has_tokenizer, manifest->models[product->model].path,
                                product->tasks, error));
        known = json_pack("{s:b, s:I, s:I, s:I, s:f, s:f, s:f}", "has_tokenizer", *has_tokenizer,
                          "items", (json_int_t)out->items, "choices", (json_int_t)out->choices,
                          "text_bytes", (json_int_t)out->text_bytes, "tokens", out->tokens,
                          "scored", out->scored, "longest", out->longest);
        if (known == NULL || json_object_set_new(cache, key, known) != 0) {
            return ingot_error_set(error, INGOT_ERR_NO_MEMORY, product->tasks, NULL, NULL,
                                   "out of memory");
        }
    }
    *has_tokenizer = json_is_true(json_object_get(known, "has_tokenizer"));
    *out = (ingot_tasks_size){.items = count_at(known, "items"),
                              .choices = count_at(known, "choices"),
                              .text_bytes = count_at(known, "text_bytes"),
                              .tokens = ingot_json_number_at(known, "tokens"),
                              .scored = ingot_json_number_at(known, "scored"),
                              .longest = ingot_json_number_at(known, "longest")};
    return INGOT_OK;
}

ingot_status ingot_zoo_scoring(ingot_scoring_job *out, json_t *cache,
                               const ingot_manifest *manifest, const ingot_zoo_product *product,
                               ingot_error *error) {
    bool has_tokenizer;
    *out = (ingot_scoring_job){0};
    if (product->evaluation != INGOT_ZOO_NONE) {
        out->text_bytes = manifest->texts[product->evaluation].bytes;
        out->windows = product->windows;
        out->length = product->seq_len;
    }
    return product->tasks == NULL
               ? INGOT_OK
               : items_of(&out->items, &has_tokenizer, cache, manifest, product, error);
}

static double seconds_of(const ingot_scoring_pace *pace, scored s) {
    return s.tokens * (pace->token + s.length * pace->length) + s.scored * pace->scored;
}

static double seconds_of_items(const ingot_scoring_pace *pace, json_t *cache,
                               const ingot_manifest *manifest, const ingot_zoo_product *product) {
    ingot_tasks_size size;
    bool has_tokenizer;
    if (items_of(&size, &has_tokenizer, cache, manifest, product, NULL) != INGOT_OK ||
        !has_tokenizer) {
        return NAN;
    }
    const double choices = (double)size.choices;
    return seconds_of(pace, (scored){choices * size.tokens, size.tokens, choices * size.scored});
}

double ingot_zoo_scoring_seconds(json_t *cache, const ingot_manifest *manifest,
                                 const ingot_zoo_product *product, const ingot_forecast *forecast) {
    const ingot_scoring_pace *pace = &forecast->scoring_pace;
    const bool has_text = product->evaluation != INGOT_ZOO_NONE, has_items = product->tasks != NULL;
    if (!isfinite(pace->token) || (!has_text && !has_items)) {
        return NAN;
    }
    double seconds = pace->start;
    if (has_text) {
        seconds += seconds_of(pace, text_of(cache, manifest, product, forecast->scoring_length));
    }
    return has_items ? seconds + seconds_of_items(pace, cache, manifest, product) : seconds;
}
