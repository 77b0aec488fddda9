/* ingot-convert: the command line, and what it came to as text or JSON (convert/convert.h). */
#include "common/memory.h"
#include "common/sizes.h"
#include "convert/convert.h"
#include "format/digest.h"

#include <math.h>
#include <string.h>

static json_t *digest_or_null(const uint8_t digest[16], bool is_known) {
    char text[33];
    ingot_digest_hex(text, digest);
    return is_known ? json_string(text) : json_null();
}

/* Per block what its tuning came to. */
static json_t *tunings_json(const ingot_convert_result *r) {
    json_t *array = json_array();
    for (uint64_t i = 0; i < r->tuning_count; i++) {
        json_t *block = json_object();
        ingot_json_put(block, "before", ingot_json_number(r->tunings[i].before));
        ingot_json_put(block, "after", ingot_json_number(r->tunings[i].after));
        ingot_json_put(block, "steps", json_integer((json_int_t)r->tunings[i].step));
        ingot_json_put(block, "kld_before", ingot_json_number(r->tunings[i].divergence[1]));
        ingot_json_put(block, "kld_after", ingot_json_number(r->tunings[i].divergence[0]));
        (void)json_array_append_new(array, block);
    }
    return array;
}

static json_t *distillation_json(const ingot_distill_result *r) {
    json_t *object = json_object();
    ingot_json_put(object, "before", ingot_json_number(r->before));
    ingot_json_put(object, "after", ingot_json_number(r->after));
    ingot_json_put(object, "steps", json_integer((json_int_t)r->step));
    return object;
}

/* False when not all of it was printed. */
static bool print_json(const ingot_convert_options *o, const ingot_convert_result *r,
                       const ingot_error *error) {
    json_t *object = json_object(), *phases = json_object(), *memory = json_object();
    const bool is_good = error->status == INGOT_OK;
    for (unsigned i = 0; i < INGOT_PHASE_COUNT; i++) {
        ingot_json_put(phases, ingot_phase_name((ingot_phase)i),
                       ingot_json_number(r->phase_seconds[i]));
        ingot_json_put(memory, ingot_phase_name((ingot_phase)i),
                       json_integer((json_int_t)r->phase_bytes[i]));
    }
    const char *output = r->is_written ? r->path : o->output;
    ingot_json_put(object, "output", ingot_json_any_text(output));
    ingot_json_put(object, "bytes", is_good ? json_integer((json_int_t)r->bytes) : json_null());
    ingot_json_put(object, "source_bytes",
                   r->source_bytes != 0 ? json_integer((json_int_t)r->source_bytes) : json_null());
    ingot_json_put(object, "seconds", ingot_json_number(r->seconds));
    ingot_json_put(object, "phases", phases);
    ingot_json_put(object, "phase_device_bytes", memory);
    ingot_json_put(object, "peak_host_bytes", json_integer((json_int_t)ingot_memory_peak_bytes()));
    ingot_json_put(object, "peak_device_bytes", json_integer((json_int_t)r->peak_device_bytes));
    ingot_json_put(object, "bits_per_weight", ingot_json_number(r->bits_per_weight));
    ingot_json_put(object, "fallbacks",
                   r->is_written ? json_integer((json_int_t)r->fallbacks) : json_null());
    ingot_json_put(object, "memory_shortages", json_integer((json_int_t)r->memory_shortages));
    ingot_json_put(object, "tensors", r->tensors != NULL ? json_incref(r->tensors) : json_null());
    ingot_json_put(object, "plan", r->forecast != NULL ? json_incref(r->forecast) : json_null());
    ingot_json_put(object, "tuning",
                   r->is_written && r->tuning_count != 0 ? tunings_json(r) : json_null());
    ingot_json_put(object, "distillation",
                   r->is_written && r->distillation.has_run ? distillation_json(&r->distillation)
                                                            : json_null());
    ingot_json_put(object, "root", digest_or_null(r->root, r->is_written));
    ingot_json_put(object, "content_id", digest_or_null(r->content_id, r->is_written));
    ingot_json_put_error(object, error);
    const bool is_printed = ingot_json_print(object, stdout);
    json_decref(object);
    return is_printed;
}

/* Whether outliers or smaller groups of no more bits gain more, over the matrices where both are
 * possible. */
static void print_outliers(const json_t *tensors) {
    double bits[2] = {0}, squares[2] = {0};
    uint64_t count = 0, kept = 0;
    for (size_t i = 0; i < json_array_size(tensors); i++) {
        const json_t *o = json_object_get(json_array_get(tensors, i), "outliers");
        const json_t *own = json_object_get(o, "error"), *other = json_object_get(o, "group_error");
        if (!json_is_number(own) || !json_is_number(other)) {
            continue;
        }
        const double error[2] = {json_number_value(own), json_number_value(other)};
        count++;
        kept += error[0] <= error[1];
        for (unsigned k = 0; k < 2; k++) {
            squares[k] += error[k] * error[k];
            bits[k] += json_number_value(
                json_object_get(o, k == 0 ? "bits_per_weight" : "group_bits_per_weight"));
        }
    }
    if (count != 0) {
        const double n = (double)count;
        printf(
            "outliers (%.3f bits) leave %.2f of the error of rounding, smaller groups (%.3f bits) "
            "%.2f: %s pay more, outliers in %llu of %llu matrices\n",
            bits[0] / n, sqrt(squares[0] / n), bits[1] / n, sqrt(squares[1] / n),
            squares[0] <= squares[1] ? "outliers" : "smaller groups", (unsigned long long)kept,
            (unsigned long long)count);
    }
}

static void print_text(const ingot_convert_result *r) {
    char size[32], before[32], time[32], peak[32];
    ingot_format_bytes(size, sizeof size, (double)r->bytes);
    ingot_format_bytes(before, sizeof before, (double)r->source_bytes);
    ingot_format_bytes(peak, sizeof peak, (double)ingot_memory_peak_bytes());
    ingot_format_seconds(time, sizeof time, r->seconds);
    printf("%s: %s%s from %s of weights", r->path, r->was_finished ? "complete before, " : "", size,
           before);
    if (!isnan(r->bits_per_weight)) {
        printf(", %.3f bits per quantized weight", r->bits_per_weight);
    }
    printf(", %s, peak memory %s\n", time, peak);
    double start = 0, kept = 0;
    for (uint64_t i = 0; i < r->tuning_count; i++) {
        start += r->tunings[i].before;
        kept += r->tunings[i].after;
    }
    if (start > 0) {
        printf("tuning took %.0f %% of the blocks' squared error on held-out windows away\n",
               100 * (1 - kept / start));
    }
    if (r->distillation.has_run) {
        printf("distillation took the divergence on held-out windows from %.4f to %.4f\n",
               r->distillation.before, r->distillation.after);
    }
    print_outliers(r->tensors);
    if (r->fallbacks != 0) {
        printf("%llu tensors fell back; the ledger says why\n", (unsigned long long)r->fallbacks);
    }
}

int ingot_convert_tool(int argc, char **argv) {
    ingot_convert_options options = {0};
    ingot_convert_result result = {.bits_per_weight = NAN};
    ingot_error error = {0};
    ingot_recipe_init(&options.recipe);
    const ingot_cli_outcome outcome =
        ingot_cli_parse(&ingot_convert_spec, argc, argv, ingot_convert_option, &options,
                        &options.model_dir, &error);
    if (outcome == INGOT_CLI_EXIT) {
        return 0;
    }
    if (outcome == INGOT_CLI_USAGE) {
        error.status = error.status == INGOT_OK ? INGOT_ERR_USAGE : error.status;
        options.as_json = options.as_json || ingot_cli_has_flag(argc, argv, "json");
        return ingot_cli_finish(ingot_convert_spec.tool, 2,
                                !options.as_json || print_json(&options, &result, &error));
    }
    ingot_interrupt_install();
    const ingot_status status = ingot_convert_run(&result, &options, &error);
    ingot_recipe_free(&options.recipe);
    if (status != INGOT_OK && error.status != status) {
        (void)ingot_error_set(&error, status, options.model_dir, NULL, NULL, "%s",
                              ingot_status_text(status));
    }
    const bool is_printed = !options.as_json || print_json(&options, &result, &error);
    if (status == INGOT_OK && !options.as_json && !options.is_dry_run) {
        print_text(&result);
    }
    json_decref(result.tensors);
    json_decref(result.forecast);
    ingot_free(result.tunings);
    return ingot_cli_end(ingot_convert_spec.tool, status, &error, is_printed);
}
