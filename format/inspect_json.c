/* ingot-inspect --json (keys: spec/cli.md). */
#include "format/inspect.h"

#include "format/digest.h"

#include <math.h>
#include <string.h>

static json_t *text_or_null(const char *text) {
    return text == NULL ? json_null() : json_string(text);
}

static json_t *digest_or_null(const uint8_t digest[16]) {
    static const uint8_t none[16];
    char hex[33];
    if (memcmp(digest, none, sizeof none) == 0) {
        return json_null();
    }
    ingot_digest_hex(hex, digest);
    return json_string(hex);
}

static json_t *mask(uint64_t value) {
    char hex[24];
    (void)snprintf(hex, sizeof hex, "0x%016llx", (unsigned long long)value);
    return json_string(hex);
}

static bool put_ledger(json_t *object, const ingot_ledger *ledger) {
    return ingot_json_put(object, "method", json_string(ingot_method_name(ledger->method))) &&
           ingot_json_put(object, "fallback",
                          text_or_null(ledger->fallback == INGOT_FALLBACK_NONE
                                           ? NULL
                                           : ingot_fallback_name(ledger->fallback))) &&
           ingot_json_put(object, "folded", json_boolean(ledger->is_folded)) &&
           ingot_json_put(object, "damping", ingot_json_number(ledger->damping)) &&
           ingot_json_put(object, "damping_step",
                          isfinite(ledger->damping) ? ingot_json_count(ledger->damping_step)
                                                    : json_null()) &&
           ingot_json_put(object, "dead_columns", ingot_json_count(ledger->dead_columns)) &&
           ingot_json_put(object, "low_precision_scales",
                          ingot_json_count(ledger->low_precision_scales)) &&
           ingot_json_put(object, "tokens_seen", ingot_json_count(ledger->tokens_seen)) &&
           ingot_json_put(object, "outliers", ingot_json_count(ledger->outliers)) &&
           ingot_json_put(object, "weight_error", ingot_json_number(ledger->weight_error)) &&
           ingot_json_put(object, "weight_error_rtn",
                          ingot_json_number(ledger->weight_error_rtn)) &&
           ingot_json_put(object, "output_error", ingot_json_number(ledger->output_error)) &&
           ingot_json_put(object, "output_error_rtn",
                          ingot_json_number(ledger->output_error_rtn)) &&
           ingot_json_put(object, "source_digest", digest_or_null(ledger->source_digest));
}

/* Keys as in ingot-verify --json where they mean the same. */
static json_t *tensor_json(const inspection *all, const inspect_tensor *tensor) {
    const ingot_tensor *record = tensor->record;
    const bool is_grouped = record != NULL && record->kind == INGOT_GROUPED;
    json_t *object = json_object();
    json_t *shape = json_array();
    bool is_good = true;
    for (unsigned i = 0; i < tensor->rank; i++) {
        is_good &= json_array_append_new(shape, ingot_json_count(tensor->dim[i])) == 0;
    }
    is_good =
        is_good && ingot_json_put(object, "name", json_string(tensor->name)) &&
        ingot_json_put(object, "role", json_string(all->roles[tensor->role].name)) &&
        ingot_json_put(object, "kind", json_string(tensor->kind)) &&
        ingot_json_put(object, "dtype", json_string(tensor->dtype)) &&
        ingot_json_put(object, "alias_of", text_or_null(tensor->alias_of)) &&
        ingot_json_put(object, "bytes", ingot_json_count(tensor->bytes)) &&
        ingot_json_put(object, "bits", is_grouped ? ingot_json_count(record->bits) : json_null()) &&
        ingot_json_put(object, "group",
                       is_grouped ? ingot_json_count(record->group) : json_null()) &&
        ingot_json_put(object, "symmetric",
                       is_grouped ? json_boolean(record->zero_mode == INGOT_ZERO_SYMMETRIC)
                                  : json_null()) &&
        ingot_json_put(object, "scale_dtype",
                       text_or_null(is_grouped ? ingot_dtype_name(record->scale_dtype) : NULL)) &&
        ingot_json_put(
            object, "bits_per_weight",
            is_grouped ? ingot_json_number(8.0 * (double)tensor->bytes / (double)tensor->elements)
                       : json_null()) &&
        ingot_json_put(object, "ledger", json_null());
    is_good = json_object_set_new(object, "shape", shape) == 0 && is_good;
    if (is_good && record != NULL) {
        json_t *ledger = json_object();
        is_good = put_ledger(ledger, &tensor->ledger);
        is_good = ingot_json_put(object, "ledger", ledger) && is_good;
    }
    if (!is_good) {
        json_decref(object);
        return NULL;
    }
    return object;
}

static json_t *tensors_json(const inspection *all) {
    json_t *array = json_array();
    for (uint64_t i = 0; i < all->tensor_count; i++) {
        if (json_array_append_new(array, tensor_json(all, &all->tensors[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *roles_json(const inspection *all) {
    json_t *array = json_array();
    for (uint64_t i = 0; i < all->role_count; i++) {
        const inspect_role *role = &all->roles[i];
        const ingot_tensor *record = role->is_uniform ? role->first->record : NULL;
        const bool is_grouped = record != NULL && record->kind == INGOT_GROUPED;
        json_t *object = json_object();
        const bool is_good =
            ingot_json_put(object, "role", json_string(role->name)) &&
            ingot_json_put(object, "tensors", ingot_json_count(role->tensors)) &&
            ingot_json_put(object, "weights", ingot_json_count(role->elements)) &&
            ingot_json_put(object, "bytes", ingot_json_count(role->bytes)) &&
            ingot_json_put(object, "kind",
                           text_or_null(role->is_uniform ? role->first->kind : NULL)) &&
            ingot_json_put(object, "dtype",
                           text_or_null(role->is_uniform ? role->first->dtype : NULL)) &&
            ingot_json_put(object, "bits",
                           is_grouped ? ingot_json_count(record->bits) : json_null()) &&
            ingot_json_put(object, "group",
                           is_grouped ? ingot_json_count(record->group) : json_null()) &&
            ingot_json_put(object, "weight_error", ingot_json_number(role->weight_error)) &&
            ingot_json_put(object, "weight_error_rtn", ingot_json_number(role->weight_error_rtn)) &&
            ingot_json_put(object, "output_error", ingot_json_number(role->output_error)) &&
            ingot_json_put(object, "output_error_rtn", ingot_json_number(role->output_error_rtn));
        if (json_array_append_new(array, object) != 0 || !is_good) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *methods_json(const inspection *all) {
    json_t *object = json_object();
    for (unsigned i = 0; i < sizeof all->methods / sizeof *all->methods; i++) {
        if (all->methods[i] > 0 && !ingot_json_put(object, ingot_method_name((ingot_method)i),
                                                   ingot_json_count(all->methods[i]))) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

static json_t *files_json(const inspection *all) {
    json_t *array = json_array();
    const bool is_container = all->container != NULL;
    const uint64_t total = is_container ? ingot_file_entry_count(all->container)
                                        : ingot_checkpoint_file_count(all->checkpoint);
    for (uint64_t i = 0; i < total; i++) {
        const char *name = is_container ? ingot_file_entry_name(all->container, i)
                                        : ingot_checkpoint_file_name(all->checkpoint, i);
        uint64_t size = 0;
        if (is_container) {
            (void)ingot_file_entry(all->container, name, &size);
        } else {
            (void)ingot_checkpoint_file(all->checkpoint, name, &size);
        }
        json_t *object = json_object();
        const bool is_good = ingot_json_put(object, "name", json_string(name)) &&
                             ingot_json_put(object, "bytes", ingot_json_count(size));
        if (json_array_append_new(array, object) != 0 || !is_good) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *sha256_json(const inspection *all) {
    json_t *object = json_object();
    for (uint64_t i = 0; i < inspection_data_file_count(all); i++) {
        if (!ingot_json_put(object, path_base(inspection_data_file(all, i)),
                            json_string(all->sha256[i]))) {
            json_decref(object);
            return NULL;
        }
    }
    return object;
}

static json_t *features_json(const inspection *all) {
    json_t *object = json_object();
    if (!ingot_json_put(object, "incompat", mask(all->info.incompat)) ||
        !ingot_json_put(object, "ro_compat", mask(all->info.ro_compat)) ||
        !ingot_json_put(object, "compat", mask(all->info.compat))) {
        json_decref(object);
        return NULL;
    }
    return object;
}

static json_t *difference_json(const inspect_difference *entry) {
    const inspect_tensor *any = entry->a != NULL ? entry->a : entry->b;
    const char *status = entry->b == NULL ? "removed" : entry->a == NULL ? "added" : "equal";
    json_t *object = json_object();
    json_t *fields = json_array();
    const struct {
        bool differs;
        const char *name;
    } all[] = {{entry->differs_in_shape, "shape"},
               {entry->differs_in_storage, "storage"},
               {entry->differs_in_data, "data"},
               {entry->differs_in_ledger, "ledger"}};
    bool is_good = true;
    for (unsigned i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].differs) {
            status = "different";
            is_good &= json_array_append_new(fields, json_string(all[i].name)) == 0;
        }
    }
    const double a = entry->a != NULL ? entry->a->ledger.weight_error : NAN;
    const double b = entry->b != NULL ? entry->b->ledger.weight_error : NAN;
    const double output_a = entry->a != NULL ? entry->a->ledger.output_error : NAN;
    const double output_b = entry->b != NULL ? entry->b->ledger.output_error : NAN;
    is_good &= ingot_json_put(object, "name", json_string(any->name));
    is_good &= ingot_json_put(object, "status", json_string(status));
    is_good &= ingot_json_put(object, "differs_in", fields);
    is_good &= ingot_json_put(object, "bytes",
                              entry->a != NULL ? ingot_json_count(entry->a->bytes) : json_null());
    is_good &= ingot_json_put(object, "other_bytes",
                              entry->b != NULL ? ingot_json_count(entry->b->bytes) : json_null());
    is_good &= ingot_json_put(object, "weight_error", ingot_json_number(a));
    is_good &= ingot_json_put(object, "other_weight_error", ingot_json_number(b));
    is_good &= ingot_json_put(object, "output_error", ingot_json_number(output_a));
    is_good &= ingot_json_put(object, "other_output_error", ingot_json_number(output_b));
    if (!is_good) {
        json_decref(object);
        return NULL;
    }
    return object;
}

static json_t *comparison_json(const inspection *other, const inspect_comparison *comparison) {
    json_t *object = json_object();
    json_t *array = json_array();
    bool is_good = true;
    for (uint64_t i = 0; i < comparison->count; i++) {
        is_good &= json_array_append_new(array, difference_json(&comparison->entries[i])) == 0;
    }
    is_good &= ingot_json_put(object, "path", ingot_json_any_text(other->path));
    is_good &= ingot_json_put(object, "root", digest_or_null(other->info.root));
    is_good &= ingot_json_put(object, "content_id", digest_or_null(other->info.content_id));
    is_good &= ingot_json_put(object, "bits_per_weight",
                              ingot_json_number(inspection_bits_per_weight(other)));
    is_good &= ingot_json_put(object, "bytes", ingot_json_count(other->file_bytes));
    is_good &= ingot_json_put(object, "same_content", json_boolean(comparison->is_same_content));
    is_good &= ingot_json_put(object, "same_meta", json_boolean(comparison->is_meta_equal));
    is_good &= ingot_json_put(object, "same_files", json_boolean(comparison->are_files_equal));
    is_good &= ingot_json_put(object, "equal", ingot_json_count(comparison->equal));
    is_good &= ingot_json_put(object, "different", ingot_json_count(comparison->different));
    is_good &= ingot_json_put(object, "removed", ingot_json_count(comparison->only_a));
    is_good &= ingot_json_put(object, "added", ingot_json_count(comparison->only_b));
    is_good &= ingot_json_put(object, "tensors", array);
    if (!is_good) {
        json_decref(object);
        return NULL;
    }
    return object;
}

static bool put_container(json_t *object, const inspection *all) {
    char version[32];
    (void)snprintf(version, sizeof version, "%u.%u", all->info.major, all->info.minor);
    return ingot_json_put(object, "format_version", json_string(version)) &&
           ingot_json_put(object, "root", digest_or_null(all->info.root)) &&
           ingot_json_put(object, "content_id", digest_or_null(all->info.content_id)) &&
           ingot_json_put(object, "data_bytes", ingot_json_count(all->info.decoded_data_bytes)) &&
           ingot_json_put(object, "compressed", json_boolean(all->info.is_compressed)) &&
           ingot_json_put(object, "features", features_json(all)) &&
           ingot_json_put(object, "methods", methods_json(all)) &&
           json_object_set(object, "meta", all->meta) == 0;
}

static bool put_all(json_t *object, const inspection *all, bool with_tensors) {
    bool is_good =
        ingot_json_put(object, "path", ingot_json_any_text(all->path)) &&
        ingot_json_put(object, "profile", json_string(inspection_profile_name(all))) &&
        ingot_json_put(object, "bytes", ingot_json_count(all->file_bytes)) &&
        ingot_json_put(object, "shards", ingot_json_count(inspection_data_file_count(all))) &&
        ingot_json_put(object, "tensor_count", ingot_json_count(all->tensor_count)) &&
        ingot_json_put(object, "quantized_tensors", ingot_json_count(all->quantized_tensors)) &&
        ingot_json_put(object, "weights", ingot_json_count(all->weights)) &&
        ingot_json_put(object, "quantized_weights", ingot_json_count(all->quantized_weights)) &&
        ingot_json_put(object, "bits_per_weight",
                       ingot_json_number(inspection_bits_per_weight(all))) &&
        ingot_json_put(object, "file_bits_per_weight",
                       ingot_json_number(inspection_file_bits_per_weight(all))) &&
        ingot_json_put(object, "roles", roles_json(all)) &&
        ingot_json_put(object, "files", files_json(all));
    if (is_good && all->container != NULL) {
        is_good = put_container(object, all);
    }
    if (is_good && with_tensors) {
        is_good = ingot_json_put(object, "tensors", tensors_json(all));
    }
    if (is_good && all->sha256 != NULL) {
        is_good = ingot_json_put(object, "sha256", sha256_json(all));
    }
    return is_good;
}

json_t *inspection_json(const inspection *all, bool with_tensors, const inspection *other,
                        const inspect_comparison *comparison, const ingot_error *error) {
    static const char *const keys[] = {
        "path",    "profile",    "format_version",  "root",
        "bytes",   "data_bytes", "content_id",      "compressed",
        "shards",  "features",   "bits_per_weight", "file_bits_per_weight",
        "weights", "methods",    "tensor_count",    "quantized_tensors",
        "roles",   "tensors",    "files",           "quantized_weights",
        "meta",    "sha256",     "compare"};
    json_t *object = json_object();
    bool is_good = object != NULL;
    for (unsigned i = 0; i < sizeof keys / sizeof *keys; i++) {
        is_good = is_good && ingot_json_put(object, keys[i], json_null());
    }
    is_good = is_good && ingot_json_put_error(object, error);
    if (is_good && all != NULL) {
        is_good = put_all(object, all, with_tensors);
        if (is_good && comparison != NULL) {
            is_good = ingot_json_put(object, "compare", comparison_json(other, comparison));
        }
    }
    if (!is_good) {
        json_decref(object);
        return NULL;
    }
    return object;
}
