/* Opening a source of weights with its model description and tokenizer. */
#include "calib/text_model.h"
#include "common/files.h"

#include <string.h>

ingot_status ingot_source_tokenizer(ingot_tokenizer **out, const ingot_weight_source *source,
                                    const ingot_model *model, ingot_error *error) {
    char path[4096];
    uint64_t size = 0;
    *out = NULL;
    if (ingot_path_join(path, sizeof path, source->path, INGOT_TOKENIZER_FILE) != INGOT_OK) {
        return ingot_error_set(error, INGOT_ERR_INPUT, source->path, NULL, NULL,
                               "the path is too long");
    }
    const char *bytes = source->file(source->self, INGOT_TOKENIZER_FILE, &size);
    if (bytes == NULL) {
        return ingot_error_set(error, INGOT_ERR_NOT_FOUND, path, NULL,
                               source->container != NULL
                                   ? "convert a checkpoint that has one"
                                   : "put the model's tokenizer.json beside its config.json",
                               "there is no tokenizer, which a text is read with");
    }
    INGOT_TRY(ingot_tokenizer_create(out, bytes, size, path, error));
    /* added tokens may lie behind the rows, as long as no text has them: one that pads, say */
    const uint64_t ids = ingot_tokenizer_base_vocab(*out);
    if (ids > model->vocab) {
        ingot_tokenizer_destroy(*out);
        *out = NULL;
        return ingot_error_set(error, INGOT_ERR_INPUT, path, NULL,
                               source->container != NULL
                                   ? "convert a checkpoint whose tokenizer belongs to it"
                                   : "use the tokenizer that belongs to this model",
                               "the tokenizer is larger than the embedding: %llu ids, %llu rows",
                               (unsigned long long)ids, (unsigned long long)model->vocab);
    }
    ingot_tokenizer_set_rows(*out, model->vocab);
    return INGOT_OK;
}

ingot_status ingot_text_model_open_weights(ingot_text_model *out, const char *path, bool verify,
                                           ingot_error *error) {
    memset(out, 0, sizeof *out);
    ingot_status status = INGOT_OK;
    INGOT_GO(ingot_weight_source_open(&out->source, path, verify, error));
    out->has_source = true;
    INGOT_GO(ingot_model_open(&out->model, &out->source, error));
    out->has_model = true;
done:
    if (status != INGOT_OK) {
        ingot_text_model_close(out);
    }
    return status;
}

ingot_status ingot_text_model_open(ingot_text_model *out, const char *path, bool verify,
                                   ingot_error *error) {
    INGOT_TRY(ingot_text_model_open_weights(out, path, verify, error));
    const ingot_status status =
        ingot_source_tokenizer(&out->tokenizer, &out->source, &out->model, error);
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
