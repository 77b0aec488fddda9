/* The verification as one JSON object (spec/cli.md, "ingot-verify --json"): every key is there on
 * every outcome, null where nothing was computed. */
#include "common/cli.h"
#include "common/json.h"
#include "format/digest.h"
#include "verify/verify.h"

#include <math.h>
#include <string.h>

static json_t *verdict(ingot_verdict value) {
    return value == INGOT_VERDICT_NONE ? json_null() : json_boolean(value == INGOT_VERDICT_YES);
}

static json_t *text_or_null(const char *text) {
    return ingot_json_any_text(text != NULL && text[0] != '\0' ? text : NULL);
}

static json_t *count_or_null(uint64_t value, bool is_known) {
    return is_known ? ingot_json_count(value) : json_null();
}

static json_t *digest_or_null(const uint8_t digest[16], bool is_known) {
    static const uint8_t none[16] = {0};
    char hex[33];
    if (!is_known || memcmp(digest, none, sizeof none) == 0) {
        return json_null();
    }
    ingot_digest_hex(hex, digest);
    return json_string(hex);
}

static const char *kind_name(ingot_kind kind) {
    switch (kind) {
    case INGOT_DENSE:
        return "dense";
    case INGOT_GROUPED:
        return "grouped";
    case INGOT_ALIAS:
        return "alias";
    case INGOT_AUXILIARY:
        return "auxiliary";
    }
    return "unknown";
}

static void add_storage(json_t *object, const ingot_verification *verification,
                        const ingot_tensor_report *report) {
    const ingot_tensor *tensor = report->tensor;
    const bool is_grouped = tensor->kind == INGOT_GROUPED;
    json_t *shape = json_array();
    for (unsigned i = 0; i < tensor->rank; i++) {
        (void)json_array_append_new(shape, json_integer((json_int_t)tensor->dim[i]));
    }
    const double weights = (double)tensor->rows * (double)tensor->cols;
    const ingot_tensor *target = tensor->kind == INGOT_ALIAS
                                     ? ingot_tensor_at(verification->container, tensor->alias_of)
                                     : NULL;
    (void)json_object_set_new(object, "name", text_or_null(tensor->name));
    (void)json_object_set_new(object, "kind", json_string(kind_name(tensor->kind)));
    (void)json_object_set_new(object, "shape", shape);
    (void)json_object_set_new(object, "layer", count_or_null(report->layer, report->has_layer));
    (void)json_object_set_new(object, "role",
                              json_string(ingot_layer_kind_name(report->layer_kind)));
    (void)json_object_set_new(object, "dtype", text_or_null(ingot_dtype_name(tensor->dtype)));
    (void)json_object_set_new(object, "alias_of",
                              text_or_null(target == NULL ? NULL : target->name));
    (void)json_object_set_new(object, "bytes", json_integer((json_int_t)report->stored_bytes));
    (void)json_object_set_new(object, "bits", count_or_null(tensor->bits, is_grouped));
    (void)json_object_set_new(object, "group", count_or_null(tensor->group, is_grouped));
    (void)json_object_set_new(object, "symmetric",
                              is_grouped ? json_boolean(tensor->zero_mode == INGOT_ZERO_SYMMETRIC)
                                         : json_null());
    (void)json_object_set_new(object, "scale_dtype",
                              is_grouped ? text_or_null(ingot_dtype_name(tensor->scale_dtype))
                                         : json_null());
    (void)json_object_set_new(
        object, "bits_per_weight",
        is_grouped ? ingot_json_number(8.0 * (double)report->stored_bytes / weights) : json_null());
}

static json_t *tensor_object(const ingot_verification *verification,
                             const ingot_tensor_report *report) {
    const ingot_ledger *ledger = &report->ledger;
    const bool is_grouped = report->tensor->kind == INGOT_GROUPED;
    json_t *object = json_object();
    add_storage(object, verification, report);
    (void)json_object_set_new(object, "method", text_or_null(ingot_method_name(ledger->method)));
    (void)json_object_set_new(object, "fallback",
                              ledger->fallback == INGOT_FALLBACK_NONE
                                  ? json_null()
                                  : text_or_null(ingot_fallback_name(ledger->fallback)));
    (void)json_object_set_new(object, "folded", json_boolean(ledger->is_folded));
    (void)json_object_set_new(object, "damping", ingot_json_number(ledger->damping));
    (void)json_object_set_new(object, "damping_step",
                              count_or_null(ledger->damping_step, isfinite(ledger->damping)));
    (void)json_object_set_new(object, "dead_columns", json_integer(ledger->dead_columns));
    (void)json_object_set_new(object, "low_precision_scales",
                              json_integer(ledger->low_precision_scales));
    (void)json_object_set_new(object, "tokens_seen", ingot_json_count(ledger->tokens_seen));
    (void)json_object_set_new(object, "outliers", ingot_json_count(ledger->outliers));
    (void)json_object_set_new(object, "weight_error", ingot_json_number(ledger->weight_error));
    (void)json_object_set_new(object, "weight_error_rtn",
                              ingot_json_number(ledger->weight_error_rtn));
    (void)json_object_set_new(object, "output_error", ingot_json_number(ledger->output_error));
    (void)json_object_set_new(object, "output_error_rtn",
                              ingot_json_number(ledger->output_error_rtn));
    (void)json_object_set_new(object, "source_digest", digest_or_null(ledger->source_digest, true));
    (void)json_object_set_new(object, "source_equal", verdict(report->source_verdict));
    (void)json_object_set_new(object, "source_reason", text_or_null(report->source_reason));
    (void)json_object_set_new(object, "recomputed_error",
                              is_grouped ? ingot_json_number(report->recomputed_error)
                                         : json_null());
    (void)json_object_set_new(object, "error_bound",
                              is_grouped ? ingot_json_number(report->error_bound) : json_null());
    return object;
}

static json_t *kinds_object(const ingot_verification *verification) {
    json_t *kinds = json_object();
    for (unsigned i = 0; i < INGOT_KIND_COUNT; i++) {
        const ingot_kind_summary *kind = &verification->kinds[i];
        if (kind->tensors == 0) {
            continue;
        }
        json_t *object = json_object();
        (void)json_object_set_new(object, "tensors", json_integer((json_int_t)kind->tensors));
        (void)json_object_set_new(object, "parameters", json_integer((json_int_t)kind->parameters));
        (void)json_object_set_new(object, "bytes", json_integer((json_int_t)kind->stored_bytes));
        (void)json_object_set_new(object, "fallbacks", json_integer((json_int_t)kind->fallbacks));
        (void)json_object_set_new(object, "weight_error", ingot_json_number(kind->weight_error));
        (void)json_object_set_new(object, "weight_error_rtn",
                                  ingot_json_number(kind->weight_error_rtn));
        (void)json_object_set_new(object, "output_error", ingot_json_number(kind->output_error));
        (void)json_object_set_new(object, "output_error_rtn",
                                  ingot_json_number(kind->output_error_rtn));
        (void)json_object_set_new(kinds, ingot_layer_kind_name((ingot_layer_kind)i), object);
    }
    return kinds;
}

static void add_outcome(json_t *root, const ingot_verification *verification) {
    const ingot_error *error = &verification->error;
    const bool is_failed = error->status != INGOT_OK;
    char message[INGOT_ERROR_TEXT_SIZE];
    ingot_error_format(error, message, sizeof message);
    (void)json_object_set_new(root, "valid", verdict(verification->valid));
    (void)json_object_set_new(root, "gates_passed", verdict(verification->gates_passed));
    ingot_json_put_code(root, error->status);
    (void)json_object_set_new(root, "error_text", text_or_null(is_failed ? message : NULL));
    (void)json_object_set_new(root, "error_tensor", text_or_null(is_failed ? error->tensor : NULL));
    (void)json_object_set_new(root, "tool", json_string("ingot-verify"));
    (void)json_object_set_new(root, "version", json_string(INGOT_VERSION));
}

static void add_container(json_t *root, const ingot_verification *verification) {
    const bool is_open = verification->container != NULL;
    const ingot_info *info = &verification->info;
    const ingot_verify_options *options = &verification->options;
    char format[32];
    (void)snprintf(format, sizeof format, "%u.%u", info->major, info->minor);
    (void)json_object_set_new(root, "file", text_or_null(options->path));
    (void)json_object_set_new(root, "level", json_string(options->is_quick ? "quick" : "full"));
    (void)json_object_set_new(root, "format_version", text_or_null(is_open ? format : NULL));
    (void)json_object_set_new(root, "root", digest_or_null(info->root, is_open));
    (void)json_object_set_new(root, "content_id", digest_or_null(info->content_id, is_open));
    (void)json_object_set_new(root, "bytes", count_or_null(info->file_bytes, is_open));
    (void)json_object_set_new(root, "shards", count_or_null(info->shard_count, is_open));
    (void)json_object_set_new(root, "compressed",
                              is_open ? json_boolean(info->is_compressed) : json_null());
    (void)json_object_set_new(root, "parameters", count_or_null(verification->parameters, is_open));
    (void)json_object_set_new(root, "quantized_weights",
                              count_or_null(verification->quantized_weights, is_open));
    (void)json_object_set_new(root, "bits_per_weight",
                              ingot_json_number(verification->bits_per_weight));
    (void)json_object_set_new(
        root, "model", text_or_null(verification->has_model ? verification->model.family : NULL));
    (void)json_object_set_new(
        root, "meta", verification->meta != NULL ? json_incref(verification->meta) : json_null());
}

static void add_source(json_t *root, const ingot_verification *verification) {
    const bool is_checked = verification->source_verdict != INGOT_VERDICT_NONE;
    (void)json_object_set_new(root, "source", text_or_null(verification->options.source_path));
    (void)json_object_set_new(root, "source_equal", verdict(verification->source_verdict));
    (void)json_object_set_new(
        root, "source_bytes",
        count_or_null(verification->source_bytes, verification->source_bytes != 0));
    (void)json_object_set_new(root, "source_checked",
                              count_or_null(verification->source_checked, is_checked));
    (void)json_object_set_new(root, "source_failures",
                              count_or_null(verification->source_failures, is_checked));
    (void)json_object_set_new(root, "source_differences",
                              is_checked ? json_incref(verification->source_differences)
                                         : json_null());
}

static void add_text(json_t *root, const ingot_verification *verification) {
    const ingot_verify_options *options = &verification->options;
    const ingot_score *score = &verification->score;
    const bool is_cut = verification->window_count != 0;
    json_t *texts = options->text_count == 0 ? json_null() : json_array();
    for (uint64_t i = 0; i < options->text_count; i++) {
        (void)json_array_append_new(texts, text_or_null(options->text_paths[i]));
    }
    (void)json_object_set_new(root, "text", texts);
    (void)json_object_set_new(root, "text_digest",
                              digest_or_null(verification->text_digest, is_cut));
    (void)json_object_set_new(root, "text_tokens",
                              count_or_null(verification->text_tokens, is_cut));
    (void)json_object_set_new(root, "seq_len", count_or_null(verification->window_length, is_cut));
    (void)json_object_set_new(root, "windows", count_or_null(verification->window_count, is_cut));
    (void)json_object_set_new(root, "positions",
                              count_or_null(score->positions, !isnan(score->perplexity)));
    (void)json_object_set_new(root, "perplexity", ingot_json_number(score->perplexity));
    (void)json_object_set_new(root, "source_perplexity",
                              ingot_json_number(score->source_perplexity));
    (void)json_object_set_new(root, "ppl_ratio", ingot_json_number(score->ppl_ratio));
    (void)json_object_set_new(root, "kld_mean", ingot_json_number(score->kld_mean));
    (void)json_object_set_new(root, "kld_p99", ingot_json_number(score->kld_p99));
    (void)json_object_set_new(root, "top1", ingot_json_number(score->top1));
    (void)json_object_set_new(root, "max_ppl_ratio", ingot_json_number(options->max_ppl_ratio));
    (void)json_object_set_new(root, "max_kld", ingot_json_number(options->max_kld));
    (void)json_object_set_new(root, "backend", text_or_null(verification->backend));
}

/* Items that the two models answer differently. */
static json_t *changes_array(const ingot_verification *verification) {
    const ingot_task_score *score = &verification->task_score;
    json_t *changes = json_array();
    for (uint64_t i = 0; i < score->items; i++) {
        const ingot_task_answer *answer = &score->answers[i];
        if (answer->candidate == answer->source) {
            continue;
        }
        json_t *object = json_object();
        (void)json_object_set_new(object, "line",
                                  json_integer((json_int_t)verification->tasks.items[i].line));
        (void)json_object_set_new(object, "answer",
                                  json_integer((json_int_t)verification->tasks.items[i].answer));
        (void)json_object_set_new(object, "choice", json_integer(answer->candidate));
        (void)json_object_set_new(object, "source_choice", json_integer(answer->source));
        (void)json_array_append_new(changes, object);
    }
    return changes;
}

static void add_tasks(json_t *root, const ingot_verification *verification) {
    const ingot_verify_options *options = &verification->options;
    const ingot_task_score *score = &verification->task_score;
    const bool is_scored = score->answers != NULL;
    const bool has_source = is_scored && !isnan(score->drop);
    (void)json_object_set_new(root, "tasks", text_or_null(options->tasks_path));
    (void)json_object_set_new(
        root, "tasks_digest",
        digest_or_null(verification->tasks.digest, verification->tasks.count != 0));
    (void)json_object_set_new(root, "task_items", count_or_null(score->items, is_scored));
    (void)json_object_set_new(root, "accuracy", ingot_json_number(score->accuracy));
    (void)json_object_set_new(root, "source_accuracy", ingot_json_number(score->source_accuracy));
    (void)json_object_set_new(root, "accuracy_drop", ingot_json_number(score->drop));
    (void)json_object_set_new(root, "accuracy_drop_low", ingot_json_number(score->drop_low));
    (void)json_object_set_new(root, "accuracy_drop_high", ingot_json_number(score->drop_high));
    (void)json_object_set_new(root, "answers_lost", count_or_null(score->lost, has_source));
    (void)json_object_set_new(root, "answers_gained", count_or_null(score->gained, has_source));
    (void)json_object_set_new(root, "answers_changed",
                              has_source ? changes_array(verification) : json_null());
    (void)json_object_set_new(root, "max_accuracy_drop",
                              ingot_json_number(options->max_accuracy_drop));
}

static void add_seconds(json_t *root, const ingot_verification *verification) {
    json_t *seconds = json_object();
    (void)json_object_set_new(seconds, "open", ingot_json_number(verification->open_seconds));
    (void)json_object_set_new(seconds, "full", ingot_json_number(verification->full_seconds));
    (void)json_object_set_new(seconds, "source", ingot_json_number(verification->source_seconds));
    (void)json_object_set_new(seconds, "text", ingot_json_number(verification->text_seconds));
    (void)json_object_set_new(seconds, "tasks", ingot_json_number(verification->tasks_seconds));
    (void)json_object_set_new(root, "seconds", seconds);
}

json_t *ingot_verify_report_json(const ingot_verification *verification) {
    const bool is_open = verification->container != NULL;
    json_t *root = json_object();
    json_t *tensors = is_open ? json_array() : json_null();
    if (root == NULL || tensors == NULL) {
        json_decref(root);
        json_decref(tensors);
        return NULL;
    }
    for (uint64_t i = 0; is_open && i < verification->tensor_count; i++) {
        (void)json_array_append_new(tensors,
                                    tensor_object(verification, &verification->tensors[i]));
    }
    add_outcome(root, verification);
    add_container(root, verification);
    add_source(root, verification);
    add_text(root, verification);
    add_tasks(root, verification);
    add_seconds(root, verification);
    (void)json_object_set_new(root, "kinds", is_open ? kinds_object(verification) : json_null());
    (void)json_object_set_new(root, "tensors", tensors);
    return root;
}
