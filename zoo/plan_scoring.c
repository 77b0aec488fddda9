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

ingot_scored ingot_zoo_scored_text(json_t *cache, const ingot_manifest *manifest,
                                   const ingot_zoo_product *product, uint64_t length) {
    char key[64];
    const ingot_zoo_text *text = &manifest->texts[product->evaluation];
    (void)snprintf(key, sizeof key, "%llu %llu", (unsigned long long)product->model,
                   (unsigned long long)product->evaluation);
    if (json_object_get(cache, key) == NULL) {
        const char *model = manifest->models[product->model].path;
        ingot_json_put(cache, key, ingot_json_number(tokens_per_byte(model, text->paths[0])));
    }
    double windows = floor(ingot_json_number_at(cache, key) * (double)text->bytes / (double)length);
    if (product->windows != 0 && windows > (double)product->windows) {
        windows = (double)product->windows;
    }
    const double tokens = windows * (double)length;
    return (ingot_scored){tokens, (double)length, tokens};
}

static ingot_scored count_items(const char *model, const char *path) {
    ingot_tasks tasks = {0};
    ingot_tasks_size size;
    ingot_tokenizer *tokenizer = NULL;
    ingot_scored counted = {NAN, NAN, NAN};
    ingot_status status = open_tokenizer(&tokenizer, model);
    INGOT_GO(status);
    INGOT_GO(ingot_tasks_read(&tasks, path, NULL));
    INGOT_GO(ingot_tasks_measure(&size, &tasks, path, tokenizer, UINT64_MAX, SAMPLE_BYTES, NULL));
    counted = (ingot_scored){size.tokens * (double)tasks.choices, size.tokens,
                             size.scored * (double)tasks.choices};
done:
    ingot_tasks_free(&tasks);
    ingot_tokenizer_destroy(tokenizer);
    return counted;
}

ingot_scored ingot_zoo_scored_items(json_t *cache, const ingot_manifest *manifest,
                                    const ingot_zoo_product *product) {
    char key[4096];
    (void)snprintf(key, sizeof key, "%llu %.4000s", (unsigned long long)product->model,
                   product->tasks);
    json_t *known = json_object_get(cache, key);
    if (known == NULL) {
        const ingot_scored s = count_items(manifest->models[product->model].path, product->tasks);
        known = json_object();
        ingot_json_put(known, "tokens", ingot_json_number(s.tokens));
        ingot_json_put(known, "length", ingot_json_number(s.length));
        ingot_json_put(known, "scored", ingot_json_number(s.scored));
        ingot_json_put(cache, key, known);
    }
    return (ingot_scored){ingot_json_number_at(known, "tokens"),
                          ingot_json_number_at(known, "length"),
                          ingot_json_number_at(known, "scored")};
}

static double seconds_of(const ingot_scoring_pace *pace, ingot_scored s) {
    return s.tokens * (pace->token + s.length * pace->length) + s.scored * pace->scored;
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
        const ingot_scored windows =
            ingot_zoo_scored_text(cache, manifest, product, forecast->scoring_length);
        seconds += seconds_of(pace, windows);
    }
    return has_items ? seconds + seconds_of(pace, ingot_zoo_scored_items(cache, manifest, product))
                     : seconds;
}
