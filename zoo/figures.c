/* Which figures of the tools' reports a record keeps, and errors by layer. */
#include "zoo/figures.h"

#include "zoo/shelf.h"

#include <math.h>
#include <string.h>

#define LAYERS_MAX 4096u

static json_t *pick(const json_t *report, const char *const *keys, size_t count) {
    json_t *object = json_object();
    for (size_t i = 0; i < count; i++) {
        json_t *value = json_object_get(report, keys[i]);
        ingot_json_put(object, keys[i], value != NULL ? json_deep_copy(value) : json_null());
    }
    return object;
}

json_t *ingot_zoo_convert_figures(const json_t *report) {
    static const char *const keys[] = {"bytes",           "source_bytes",     "seconds",
                                       "phases",          "peak_host_bytes",  "fallbacks",
                                       "bits_per_weight", "peak_device_bytes"};
    return pick(report, keys, sizeof keys / sizeof *keys);
}

json_t *ingot_zoo_verify_figures(const json_t *report) {
    static const char *const keys[] = {
        "valid",   "perplexity", "source_perplexity", "ppl_ratio",     "kld_mean", "kld_p99",
        "top1",    "accuracy",   "source_accuracy",   "accuracy_drop", "seconds",  "positions",
        "windows", "seq_len",    "text_digest",       "task_items",    "backend"};
    return pick(report, keys, sizeof keys / sizeof *keys);
}

/* Root mean square of one figure over the tensors of each layer. */
static json_t *layer_errors(const json_t *tensors, const char *key, size_t layers) {
    double sums[LAYERS_MAX] = {0};
    unsigned counts[LAYERS_MAX] = {0};
    json_t *list = json_array();
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        const json_t *tensor = json_array_get(tensors, i);
        const double layer = ingot_json_number_at(tensor, "layer");
        const double value = ingot_json_number_at(tensor, key);
        if (layer >= 0 && layer < (double)layers && isfinite(value)) {
            sums[(size_t)layer] += value * value;
            counts[(size_t)layer]++;
        }
    }
    for (size_t i = 0; i < layers; i++) {
        (void)json_array_append_new(
            list, counts[i] > 0 ? ingot_json_number(sqrt(sums[i] / counts[i])) : json_null());
    }
    return list;
}

json_t *ingot_zoo_layer_errors(const json_t *report) {
    const json_t *tensors = json_object_get(report, "tensors");
    json_t *object = json_object();
    size_t layers = 0;
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        const double layer = ingot_json_number_at(json_array_get(tensors, i), "layer");
        if (layer >= (double)layers && layer < LAYERS_MAX) {
            layers = (size_t)layer + 1;
        }
    }
    ingot_json_put(object, "output", layer_errors(tensors, "output_error", layers));
    ingot_json_put(object, "output_rtn", layer_errors(tensors, "output_error_rtn", layers));
    ingot_json_put(object, "weight", layer_errors(tensors, "weight_error", layers));
    ingot_json_put(object, "weight_rtn", layer_errors(tensors, "weight_error_rtn", layers));
    return object;
}
