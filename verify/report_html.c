/* The verification as one page: no scripts, nothing fetched, light and dark, phone and desktop. */
#include "common/cli.h"
#include "common/files.h"
#include "common/json.h"
#include "common/page.h"
#include "format/digest.h"
#include "verify/report_charts.h"
#include "verify/source_check.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DIFFERENCES_SHOWN 100u

/* ---- head and tiles ------------------------------------------------------------------------- */

static void add_verdict(ingot_markup *markup, const ingot_verification *verification) {
    const ingot_error *error = &verification->error;
    const bool is_good = error->status == INGOT_OK;
    const char *text = verification->valid == INGOT_VERDICT_NO ? "not valid"
                       : error->status == INGOT_FAIL_GATE      ? "valid, but over a gate"
                       : !is_good                              ? "not completed"
                                                               : "valid";
    char message[INGOT_ERROR_TEXT_SIZE];
    ingot_markup_add(markup, "<p><span class=\"verdict %s\">%s</span></p>\n",
                     is_good ? "good" : "bad", text);
    if (!is_good) {
        ingot_error_format(error, message, sizeof message);
        ingot_markup_add(markup, "<p class=\"bad\">%s: ", ingot_status_code(error->status));
        ingot_markup_text(markup, message);
        ingot_markup_add(markup, "</p>\n");
    }
}

static void add_tile(ingot_markup *markup, const char *name, const char *value) {
    ingot_markup_add(markup, "<div class=\"tile\"><b>");
    ingot_markup_text(markup, value);
    ingot_markup_add(markup, "</b><span>%s</span></div>\n", name);
}

static void add_tiles(ingot_markup *markup, const ingot_verification *verification) {
    const ingot_score *score = &verification->score;
    char text[64];
    ingot_markup_add(markup, "<div class=\"tiles\">\n");
    ingot_format_bytes(text, sizeof text, (double)verification->info.file_bytes);
    add_tile(markup, "size of the container", text);
    if (verification->source_bytes != 0) {
        (void)snprintf(text, sizeof text, "%.2f x",
                       (double)verification->source_bytes / (double)verification->info.file_bytes);
        add_tile(markup, "smaller than the source", text);
    }
    if (!isnan(verification->bits_per_weight)) {
        (void)snprintf(text, sizeof text, "%.3f", verification->bits_per_weight);
        add_tile(markup, "bits per quantized weight", text);
    }
    if (!isnan(score->perplexity)) {
        (void)snprintf(text, sizeof text, "%.3f", score->perplexity);
        add_tile(markup, "perplexity", text);
    }
    if (!isnan(score->ppl_ratio)) {
        (void)snprintf(text, sizeof text, "%+.2f %%", 100 * (score->ppl_ratio - 1));
        add_tile(markup, "perplexity against the source", text);
    }
    if (!isnan(score->kld_mean)) {
        (void)snprintf(text, sizeof text, "%.4f", score->kld_mean);
        add_tile(markup, "mean KL divergence, nats", text);
        (void)snprintf(text, sizeof text, "%.2f %%", 100 * score->top1);
        add_tile(markup, "same top token", text);
    }
    if (!isnan(verification->task_score.accuracy)) {
        (void)snprintf(text, sizeof text, "%.2f %%", 100 * verification->task_score.accuracy);
        add_tile(markup, "of the items answered", text);
    }
    ingot_markup_add(markup, "</div>\n");
}

/* ---- differences ----------------------------------------------------------------------------- */

static void add_differences(ingot_markup *markup, const ingot_verification *verification) {
    const uint64_t count = verification->source_failures;
    uint64_t shown = 0;
    if (count == 0) {
        return;
    }
    ingot_markup_add(markup, "<section class=\"card\"><h2>Unlike the source</h2>\n"
                             "<div class=\"scroll\"><table><tbody>\n");
    for (; shown < DIFFERENCES_SHOWN && shown < json_array_size(verification->source_differences);
         shown++) {
        const char *tensor, *reason = ingot_source_difference(verification, shown, &tensor);
        ingot_markup_add(markup, "<tr><td>");
        ingot_markup_text(markup, tensor != NULL ? tensor : "");
        ingot_markup_add(markup, "%s", tensor != NULL ? ": " : "");
        ingot_markup_text(markup, reason);
        ingot_markup_add(markup, "</td></tr>\n");
    }
    ingot_markup_add(markup, "</tbody></table></div>\n");
    if (shown < count) {
        ingot_markup_add(markup, "<p class=\"hint\">and %" PRIu64 " more</p>\n", count - shown);
    }
    ingot_markup_add(markup, "</section>\n");
}

/* ---- charts ---------------------------------------------------------------------------------- */

static void add_charts(ingot_markup *markup, const ingot_verification *verification) {
    if (verification->quantized_weights != 0 && verification->has_model) {
        ingot_markup_add(markup,
                         "<section class=\"card\"><h2>Error per layer against plain rounding</h2>\n"
                         "<ul class=\"legend\"><li><i class=\"bar stored\"></i>stored</li>"
                         "<li><i class=\"bar plain\"></i>plain rounding at the same setting</li>"
                         "</ul>\n");
        ingot_chart_errors(markup, verification);
        ingot_markup_add(markup, "</section>\n");
    }
    ingot_markup_add(markup, "<div class=\"pair\">\n<section class=\"card\"><h2>Bits per "
                             "tensor</h2>\n");
    ingot_chart_bits(markup, verification);
    ingot_markup_add(markup, "<ul class=\"legend\"><li><i class=\"bar stored\"></i>quantized</li>"
                             "<li><i class=\"bar dense\"></i>dense</li></ul></section>\n"
                             "<section class=\"card\"><h2>Where the bytes are</h2>\n");
    ingot_chart_sizes(markup, verification);
    ingot_markup_add(markup, "</section>\n</div>\n");
}

static void add_row(ingot_markup *markup, const char *name, const char *value) {
    ingot_markup_add(markup, "<dt>%s</dt><dd>", name);
    ingot_markup_text(markup, value);
    ingot_markup_add(markup, "</dd>\n");
}

static void add_score(ingot_markup *markup, const ingot_verification *verification) {
    const ingot_score *score = &verification->score;
    const ingot_verify_options *options = &verification->options;
    char text[160];
    if (isnan(score->perplexity)) {
        return;
    }
    ingot_markup_add(
        markup,
        "<div class=\"pair\">\n<section class=\"card\"><h2>Perplexity and divergence</h2>\n");
    ingot_chart_score(markup, verification);
    ingot_markup_add(markup, "</section>\n<section class=\"card\"><h2>On this text</h2>\n<dl>\n");
    if (!isnan(score->kld_mean)) {
        (void)snprintf(text, sizeof text, "mean %.5f nats, 99th percentile %.4f", score->kld_mean,
                       score->kld_p99);
        add_row(markup, "KL divergence", text);
        (void)snprintf(text, sizeof text, "%.3f %% of positions", 100 * score->top1);
        add_row(markup, "same top token", text);
        (void)snprintf(text, sizeof text, "%.5f", score->ppl_ratio);
        add_row(markup, "perplexity ratio", text);
    }
    for (uint64_t i = 0; i < options->text_count; i++) {
        add_row(markup, "text", options->text_paths[i]);
    }
    (void)snprintf(text, sizeof text,
                   "%" PRIu64 " windows of %" PRIu64 " tokens, %" PRIu64 " positions",
                   verification->window_count, verification->window_length, score->positions);
    add_row(markup, "scored", text);
    if (!isnan(options->max_ppl_ratio)) {
        (void)snprintf(text, sizeof text, "perplexity ratio at most %g", options->max_ppl_ratio);
        add_row(markup, "gate", text);
    }
    if (!isnan(options->max_kld)) {
        (void)snprintf(text, sizeof text, "mean KL at most %g", options->max_kld);
        add_row(markup, "gate", text);
    }
    add_row(markup, "backend", verification->backend);
    ingot_markup_add(markup, "</dl></section>\n</div>\n");
}

static void add_tasks(ingot_markup *markup, const ingot_verification *verification) {
    const ingot_task_score *score = &verification->task_score;
    char text[160];
    if (score->answers == NULL) {
        return;
    }
    ingot_markup_add(markup,
                     "<div class=\"pair\">\n<section class=\"card\"><h2>Task accuracy</h2>\n");
    ingot_chart_tasks(markup, verification);
    ingot_markup_add(markup, "</section>\n<section class=\"card\"><h2>On these items</h2>\n<dl>\n");
    if (!isnan(score->drop)) {
        (void)snprintf(text, sizeof text, "%+.2f points, 95 %% interval %+.2f to %+.2f",
                       100 * score->drop, 100 * score->drop_low, 100 * score->drop_high);
        add_row(markup, "accuracy lost", text);
        (void)snprintf(text, sizeof text,
                       "%" PRIu64 " from right to wrong, %" PRIu64 " from wrong to right, %" PRIu64
                       " another choice in all",
                       score->lost, score->gained, score->changed);
        add_row(markup, "answers that changed", text);
    }
    add_row(markup, "items", verification->options.tasks_path);
    (void)snprintf(text, sizeof text, "%" PRIu64 " items, %" PRIu64 " choices", score->items,
                   verification->tasks.choices);
    add_row(markup, "scored", text);
    if (!isnan(verification->options.max_accuracy_drop)) {
        (void)snprintf(text, sizeof text, "accuracy lower by at most %g points",
                       100 * verification->options.max_accuracy_drop);
        add_row(markup, "gate", text);
    }
    add_row(markup, "backend", verification->backend);
    ingot_markup_add(markup, "</dl></section>\n</div>\n");
}

/* ---- ledger ---------------------------------------------------------------------------------- */

static void add_figure(ingot_markup *markup, double value) {
    if (isnan(value)) {
        ingot_markup_add(markup, "<td class=\"soft\">-</td>");
    } else {
        ingot_markup_add(markup, "<td>%.5f</td>", value);
    }
}

static void add_ledger_row(ingot_markup *markup, const ingot_tensor_report *report) {
    const ingot_tensor *tensor = report->tensor;
    const ingot_ledger *ledger = &report->ledger;
    const bool is_grouped = tensor->kind == INGOT_GROUPED;
    char size[32];
    ingot_format_bytes(size, sizeof size, (double)report->stored_bytes);
    ingot_markup_add(markup, "<tr><td>");
    ingot_markup_text(markup, tensor->name);
    ingot_markup_add(markup, "</td><td>%s</td><td>%s</td>", size,
                     is_grouped                    ? ingot_method_name(ledger->method)
                     : tensor->kind == INGOT_ALIAS ? "tied"
                     : tensor->kind == INGOT_DENSE ? ingot_dtype_name(tensor->dtype)
                                                   : "fold");
    if (is_grouped) {
        ingot_markup_add(markup, "<td>%u</td><td>%" PRIu64 "</td>", tensor->bits, tensor->group);
        add_figure(markup, ledger->weight_error);
        add_figure(markup, ledger->weight_error_rtn);
        add_figure(markup, ledger->output_error);
        add_figure(markup, ledger->output_error_rtn);
    } else {
        ingot_markup_add(markup, "<td></td><td></td><td></td><td></td><td></td><td></td>");
    }
    ingot_markup_add(markup, "<td%s>%s%s</td></tr>\n",
                     report->source_verdict == INGOT_VERDICT_NO ? " class=\"bad\"" : "",
                     report->source_verdict == INGOT_VERDICT_YES  ? "equal"
                     : report->source_verdict == INGOT_VERDICT_NO ? "differs"
                                                                  : "",
                     ledger->fallback != INGOT_FALLBACK_NONE ? ", fell back" : "");
}

static void add_ledger(ingot_markup *markup, const ingot_verification *verification) {
    ingot_markup_add(markup,
                     "<section class=\"card\"><h2>Ledger</h2>\n<div class=\"scroll\"><table><thead>"
                     "<tr><th>tensor</th><th>size</th><th>method</th><th>bits</th><th>group</th>"
                     "<th>weight error</th><th>plain</th><th>output error</th><th>plain</th>"
                     "<th>source</th></tr></thead><tbody>\n");
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        add_ledger_row(markup, &verification->tensors[i]);
    }
    ingot_markup_add(markup, "</tbody></table></div>\n"
                             "<p class=\"hint\">Errors are relative: of the weights "
                             "||WF - W'|| / ||WF||, of the output ||(WF - W')X|| / ||WFX|| on the "
                             "calibration text.</p></section>\n");
}

static void add_provenance(ingot_markup *markup, const ingot_verification *verification) {
    char hex[33], text[64];
    ingot_markup_add(markup, "<section class=\"card\"><h2>Provenance</h2>\n<dl>\n");
    ingot_digest_hex(hex, verification->info.root);
    add_row(markup, "root (names the file)", hex);
    ingot_digest_hex(hex, verification->info.content_id);
    add_row(markup, "content id", hex);
    (void)snprintf(text, sizeof text, "%u.%u", verification->info.major, verification->info.minor);
    add_row(markup, "format version", text);
    add_row(markup, "checked",
            verification->options.is_quick ? "structure and metadata"
            : verification->is_full        ? "every byte"
                                           : "failed");
    add_row(markup, "source",
            verification->options.source_path != NULL ? verification->options.source_path
                                                      : "not given");
    ingot_markup_add(markup, "</dl>\n");
    char *meta = verification->meta == NULL
                     ? NULL
                     : ingot_json_text(verification->meta, JSON_SORT_KEYS | JSON_INDENT(2));
    if (meta != NULL) {
        ingot_markup_add(markup, "<details><summary>Metadata of the conversion</summary><pre>");
        ingot_markup_text(markup, meta);
        ingot_markup_add(markup, "</pre></details>\n");
    }
    free(meta);
    ingot_markup_add(markup, "</section>\n");
}

/* ---- page ------------------------------------------------------------------------------------ */

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

ingot_status ingot_verify_report_html(const ingot_verification *verification, const char *path,
                                      ingot_error *error) {
    ingot_markup markup = {0};
    ingot_markup_add(&markup, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                              "<meta name=\"viewport\" content=\"width=device-width,"
                              "initial-scale=1\"><title>");
    ingot_markup_text(&markup, base_name(verification->options.path));
    ingot_markup_add(&markup,
                     " - verification</title>\n<style>%s</style></head>\n<body><main>\n"
                     "<h1>",
                     ingot_page_style);
    ingot_markup_text(&markup, base_name(verification->options.path));
    ingot_markup_add(&markup, "</h1>\n");
    if (verification->has_model) {
        ingot_markup_add(&markup, "<p class=\"soft\">");
        ingot_markup_text(&markup, verification->model.family);
        ingot_markup_add(&markup, ", %" PRIu64 " layers, %.1f million parameters</p>\n",
                         verification->model.layers, (double)verification->parameters / 1e6);
    }
    add_verdict(&markup, verification);
    add_tiles(&markup, verification);
    add_differences(&markup, verification);
    add_score(&markup, verification);
    add_tasks(&markup, verification);
    add_charts(&markup, verification);
    add_ledger(&markup, verification);
    add_provenance(&markup, verification);
    ingot_markup_add(&markup, "<p class=\"hint\">ingot-verify %s</p>\n</main></body></html>\n",
                     INGOT_VERSION);
    ingot_status status = ingot_markup_status(&markup);
    if (status != INGOT_OK) {
        status = ingot_error_set(error, status, path, NULL, NULL, "out of memory for the report");
    } else {
        status = ingot_file_write_all(path, markup.text, markup.size, true, error);
    }
    ingot_markup_free(&markup);
    return status;
}
