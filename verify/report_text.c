/* The verification for people, as aligned text. */
#include "common/cli.h"
#include "format/digest.h"
#include "verify/source_check.h"
#include "verify/verify.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define WORST_COUNT    5u
#define FAILURES_SHOWN 10u

/* A figure in `width` columns, or a dash where there is none. */
static void print_figure(FILE *out, int width, double value) {
    if (isnan(value)) {
        (void)fprintf(out, "%*s", width, "-");
    } else {
        (void)fprintf(out, "%*.5f", width, value);
    }
}

/* "-12.3 %": how much less error than plain rounding. */
static void print_change(FILE *out, int width, double value, double plain) {
    if (isnan(value) || isnan(plain) || plain <= 0) {
        (void)fprintf(out, "%*s", width, "-");
    } else {
        (void)fprintf(out, "%+*.1f %%", width - 2, 100 * (value / plain - 1));
    }
}

static void report_identity(const ingot_verification *verification, FILE *out) {
    const ingot_info *info = &verification->info;
    char root[33], content[33], size[32], source[32];
    ingot_digest_hex(root, info->root);
    ingot_digest_hex(content, info->content_id);
    ingot_format_bytes(size, sizeof size, (double)info->file_bytes);
    (void)fprintf(out, "root        %s\n", root);
    (void)fprintf(out, "content id  %s\n", content);
    (void)fprintf(out, "size        %s", size);
    if (info->shard_count > 1) {
        (void)fprintf(out, " in %" PRIu32 " shards", info->shard_count);
    }
    if (!isnan(verification->bits_per_weight)) {
        (void)fprintf(out, ", %.4f bits per quantized weight", verification->bits_per_weight);
    }
    if (verification->source_bytes != 0) {
        ingot_format_bytes(source, sizeof source, (double)verification->source_bytes);
        (void)fprintf(out, "; source %s (%.2f times as large)", source,
                      (double)verification->source_bytes / (double)info->file_bytes);
    }
    (void)fprintf(out, "\n");
}

static void report_integrity(const ingot_verification *verification, FILE *out) {
    char rate[32];
    if (verification->options.is_quick) {
        (void)fprintf(out, "integrity   structure and metadata only (--quick)\n");
    } else if (verification->is_full) {
        ingot_format_bytes(rate, sizeof rate,
                           (double)verification->info.file_bytes /
                               fmax(verification->full_seconds, 1e-9));
        (void)fprintf(out, "integrity   every byte accounted for (%.2f s, %s/s)\n",
                      verification->full_seconds, rate);
    }
    if (verification->source_verdict == INGOT_VERDICT_NONE) {
        return;
    }
    if (verification->source_verdict == INGOT_VERDICT_YES) {
        const bool is_model = verification->info.profile == INGOT_PROFILE_MODEL;
        (void)fprintf(out, "source      all %" PRIu64 " tensors %s %s%s (%.2f s)\n",
                      verification->source_checked, is_model ? "recomputed from" : "of",
                      verification->options.source_path,
                      is_model ? " and equal" : " are those the statistics were taken of",
                      verification->source_seconds);
        return;
    }
    const uint64_t count = verification->source_failures;
    (void)fprintf(out, "source      NOT from %s: %" PRIu64 " difference%s\n",
                  verification->options.source_path, count, count == 1 ? "" : "s");
    uint64_t shown = 0;
    for (; shown < FAILURES_SHOWN && shown < json_array_size(verification->source_differences);
         shown++) {
        const char *tensor, *reason = ingot_source_difference(verification, shown, &tensor);
        (void)fprintf(out, "            %s%s%s\n", tensor != NULL ? tensor : "",
                      tensor != NULL ? ": " : "", reason);
    }
    if (shown < count) {
        (void)fprintf(out, "            and %" PRIu64 " more\n", count - shown);
    }
}

static void report_kinds(const ingot_verification *verification, FILE *out) {
    bool has_header = false;
    for (unsigned i = 0; i < INGOT_KIND_COUNT; i++) {
        const ingot_kind_summary *kind = &verification->kinds[i];
        char bits[16];
        if (kind->tensors == 0) {
            continue;
        }
        if (!has_header) {
            (void)fprintf(out, "\n%-8s %7s %5s %8s | %9s %9s %9s | %9s %9s %9s\n", "kind of",
                          "tensors", "bits", "bits per", "weight", "plain", "change", "output",
                          "plain", "change");
            (void)fprintf(out, "%-8s %7s %5s %8s | %9s %9s %9s | %9s %9s %9s\n", "layer", "", "",
                          "weight", "error", "rounding", "", "error", "rounding", "");
            has_header = true;
        }
        (void)snprintf(bits, sizeof bits, kind->bits_low == kind->bits_high ? "%u" : "%u-%u",
                       kind->bits_low, kind->bits_high);
        (void)fprintf(out, "%-8s %7" PRIu64 " %5s %8.4f |",
                      ingot_layer_kind_name((ingot_layer_kind)i), kind->tensors, bits,
                      8.0 * (double)kind->stored_bytes / (double)kind->parameters);
        print_figure(out, 10, kind->weight_error);
        print_figure(out, 10, kind->weight_error_rtn);
        print_change(out, 10, kind->weight_error, kind->weight_error_rtn);
        (void)fprintf(out, " |");
        print_figure(out, 10, kind->output_error);
        print_figure(out, 10, kind->output_error_rtn);
        print_change(out, 10, kind->output_error, kind->output_error_rtn);
        if (kind->fallbacks != 0) {
            (void)fprintf(out, "  %" PRIu64 " fell back to plain rounding", kind->fallbacks);
        }
        (void)fprintf(out, "\n");
    }
}

/* What a tensor is ranked by: what its output suffers, else what its weights do. */
static double badness(const ingot_tensor_report *report) {
    const ingot_ledger *ledger = &report->ledger;
    return isnan(ledger->output_error) ? ledger->weight_error : ledger->output_error;
}

static void report_worst(const ingot_verification *verification, FILE *out) {
    const ingot_tensor_report *worst[WORST_COUNT] = {0};
    unsigned count = 0;
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        const ingot_tensor_report *report = &verification->tensors[i];
        if (report->tensor->kind != INGOT_GROUPED || isnan(badness(report))) {
            continue;
        }
        unsigned at = count;
        while (at > 0 && badness(worst[at - 1]) < badness(report)) {
            at--;
        }
        if (at == WORST_COUNT) {
            continue;
        }
        count = count < WORST_COUNT ? count + 1 : count;
        memmove(&worst[at + 1], &worst[at], (count - 1 - at) * sizeof *worst);
        worst[at] = report;
    }
    if (count == 0) {
        return;
    }
    (void)fprintf(out, "\nlargest errors\n");
    for (unsigned i = 0; i < count; i++) {
        const ingot_ledger *ledger = &worst[i]->ledger;
        const bool has_output = !isnan(ledger->output_error);
        (void)fprintf(out, "  %-48s %s error %.5f (plain rounding %.5f)\n", worst[i]->tensor->name,
                      has_output ? "output" : "weight", badness(worst[i]),
                      has_output ? ledger->output_error_rtn : ledger->weight_error_rtn);
    }
}

static void report_score(const ingot_verification *verification, FILE *out) {
    const ingot_score *score = &verification->score;
    if (isnan(score->perplexity)) {
        return;
    }
    (void)fprintf(out, "\nperplexity  %.4f", score->perplexity);
    if (!isnan(score->source_perplexity)) {
        (void)fprintf(out, "; source %.4f, ratio %.5f", score->source_perplexity, score->ppl_ratio);
    }
    (void)fprintf(out, "\n            %" PRIu64 " windows of %" PRIu64 " tokens, %.1f s on %s\n",
                  verification->window_count, verification->window_length,
                  verification->text_seconds, verification->backend);
    if (!isnan(score->kld_mean)) {
        (void)fprintf(
            out, "divergence  KL mean %.5f nats, 99th percentile %.4f; same top token %.2f %%\n",
            score->kld_mean, score->kld_p99, 100 * score->top1);
    }
}

static void report_tasks(const ingot_verification *verification, FILE *out) {
    const ingot_task_score *score = &verification->task_score;
    if (score->answers == NULL) {
        return;
    }
    (void)fprintf(out, "\naccuracy    %.2f %% of %" PRIu64 " items", 100 * score->accuracy,
                  score->items);
    if (!isnan(score->drop)) {
        (void)fprintf(out, "; source %.2f %%, drop %+.2f points (95 %% interval %+.2f to %+.2f)",
                      100 * score->source_accuracy, 100 * score->drop, 100 * score->drop_low,
                      100 * score->drop_high);
    }
    (void)fprintf(out, "\n            ");
    if (!isnan(score->drop)) {
        (void)fprintf(out,
                      "%" PRIu64 " answers lost, %" PRIu64 " gained, %" PRIu64 " other than the "
                      "source's; ",
                      score->lost, score->gained, score->changed);
    }
    (void)fprintf(out, "%.1f s on %s\n", verification->tasks_seconds, verification->backend);
}

static void report_gates(const ingot_verification *verification, FILE *out) {
    const ingot_verify_options *options = &verification->options;
    if (verification->gates_passed == INGOT_VERDICT_NONE) {
        return;
    }
    (void)fprintf(out, "gates       ");
    if (!isnan(options->max_ppl_ratio)) {
        (void)fprintf(out, "perplexity ratio <= %g: %s  ", options->max_ppl_ratio,
                      verification->score.ppl_ratio <= options->max_ppl_ratio ? "met" : "NOT MET");
    }
    if (!isnan(options->max_kld)) {
        (void)fprintf(out, "mean KL <= %g: %s  ", options->max_kld,
                      verification->score.kld_mean <= options->max_kld ? "met" : "NOT MET");
    }
    if (!isnan(options->max_accuracy_drop)) {
        (void)fprintf(out, "accuracy drop <= %g: %s", options->max_accuracy_drop,
                      verification->task_score.drop <= options->max_accuracy_drop ? "met"
                                                                                  : "NOT MET");
    }
    (void)fprintf(out, "\n");
}

static const char *verdict_text(const ingot_verification *verification) {
    if (verification->valid == INGOT_VERDICT_NO) {
        return "NOT VALID";
    }
    if (verification->error.status == INGOT_FAIL_GATE) {
        return "valid, but over a gate";
    }
    if (verification->error.status != INGOT_OK) {
        return "could not be completed";
    }
    return "valid";
}

void ingot_verify_report_text(const ingot_verification *verification, FILE *out) {
    (void)fprintf(out, "file        %s\n", verification->options.path);
    if (verification->container != NULL) {
        report_identity(verification, out);
        report_integrity(verification, out);
        report_kinds(verification, out);
        report_worst(verification, out);
        report_score(verification, out);
        report_tasks(verification, out);
        report_gates(verification, out);
        (void)fprintf(out, "\n");
    }
    (void)fprintf(out, "verdict     %s", verdict_text(verification));
    if (verification->error.status != INGOT_OK) {
        (void)fprintf(out, " (%s)", ingot_status_code(verification->error.status));
    }
    (void)fprintf(out, "\n");
}
