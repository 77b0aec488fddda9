/* Opening a source of weights with its model description and tokenizer. */
#include "calib/text_model.h"

#include <stdio.h>
#include <string.h>

static ingot_status open_tokenizer(ingot_text_model *t, const char *path, ingot_error *error) {
    static const char name[] = "tokenizer.json";
    uint64_t size = 0;
    const char *bytes = t->source.file(t->source.self, name, &size);
    if (bytes == NULL) {
        return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL,
                               "put the model's tokenizer.json beside its config.json",
                               "there is no %s", name);
    }
    char inner[1100];
    (void)snprintf(inner, sizeof inner, "%s/%s", path, name);
    INGOT_TRY(ingot_tokenizer_create(&t->tokenizer, bytes, size, inner, error));
    const uint64_t ids = ingot_tokenizer_vocab(t->tokenizer);
    if (ids > t->model.vocab) {
        return ingot_error_set(error, INGOT_ERR_INPUT, path, name,
                               "use the tokenizer that belongs to this model",
                               "the tokenizer is larger than the embedding: %llu ids, %llu rows",
                               (unsigned long long)ids, (unsigned long long)t->model.vocab);
    }
    return INGOT_OK;
}

ingot_status ingot_text_model_open(ingot_text_model *out, const char *path, bool verify,
                                   ingot_error *error) {
    memset(out, 0, sizeof *out);
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_weight_source_open(&out->source, path, verify, error));
    out->has_source = true;
    INGOT_GO(ingot_model_open(&out->model, &out->source, error));
    out->has_model = true;
    INGOT_GO(open_tokenizer(out, path, error));
done:
    if (status != INGOT_OK) {
        ingot_text_model_close(out);
    }
    return status;
}

void ingot_text_model_close(ingot_text_model *text_model) {
    ingot_tokenizer_destroy(text_model->tokenizer);
    if (text_model->has_model) {
        ingot_model_close(&text_model->model);
    }
    if (text_model->has_source) {
        ingot_weight_source_close(&text_model->source);
    }
    memset(text_model, 0, sizeof *text_model);
}
