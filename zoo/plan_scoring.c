/* How much a product is scored on (zoo/plan_scoring.h). */
#include "zoo/plan_scoring.h"

#include "calib/text_model.h"
#include "common/files.h"
#include "common/json.h"
#include "common/sizes.h"
#include "zoo/shelf.h"

#include <math.h>
#include <stdio.h>

#define SAMPLE_BYTES          (UINT64_C(1) << 20)
#define TOKENIZER_LIMIT_BYTES (UINT64_C(1) << 28)

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
    char path[4096], *bytes = NULL, *text = NULL;
    uint64_t size, text_size, count;
    uint32_t *ids = NULL;
    ingot_tokenizer *tokenizer = NULL;
    double rate = NAN;
    ingot_status status = ingot_path_join(path, sizeof path, model, INGOT_TOKENIZER_FILE);
    INGOT_GO(status);
    INGOT_GO(ingot_file_read_all(path, TOKENIZER_LIMIT_BYTES, &bytes, &size, NULL));
    INGOT_GO(ingot_tokenizer_create(&tokenizer, bytes, size, path, NULL));
    INGOT_GO(read_sample(&text, &text_size, text_path));
    INGOT_GO(ingot_tokenizer_encode(tokenizer, text, text_size, &ids, &count, NULL));
    rate = text_size != 0 ? (double)count / (double)text_size : (double)NAN;
done:
    ingot_free(ids);
    ingot_free(text);
    ingot_free(bytes);
    ingot_tokenizer_destroy(tokenizer);
    return rate;
}

double ingot_zoo_scored_tokens(json_t *cache, const ingot_manifest *manifest,
                               const ingot_zoo_product *product, uint64_t length) {
    char key[64];
    if (product->evaluation == INGOT_ZOO_NONE || length == 0) {
        return NAN;
    }
    const ingot_zoo_text *text = &manifest->texts[product->evaluation];
    (void)snprintf(key, sizeof key, "%llu %llu", (unsigned long long)product->model,
                   (unsigned long long)product->evaluation);
    if (json_object_get(cache, key) == NULL) {
        ingot_json_put(cache, key,
                       ingot_json_number(
                           tokens_per_byte(manifest->models[product->model].path, text->paths[0])));
    }
    double windows = floor(ingot_zoo_number(cache, key) * (double)text->bytes / (double)length);
    if (product->windows != 0 && windows > (double)product->windows) {
        windows = (double)product->windows;
    }
    return windows * (double)length;
}
