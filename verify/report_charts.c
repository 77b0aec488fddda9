/* Charts of the HTML report.  Panels are drawn for a width of 300 to 400 pixels, so that their text
 * stays readable on a phone without being redrawn. */
#include "verify/report_charts.h"

#include "common/cli.h"
#include "common/memory.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

/* ---- error per layer ------------------------------------------------------------------------ */

#define PANEL_WIDTH  320.0
#define PANEL_HEIGHT 190.0
#define PANEL_LEFT   46.0
#define PANEL_RIGHT  310.0
#define PANEL_TOP    30.0
#define PANEL_BOTTOM 160.0

typedef struct error_points {
    double *x, *value, *plain; /* [count] */
    uint64_t *layer;
    uint64_t count;
} error_points;

/* Is there an output error anywhere?  Then all panels show output errors, else weight errors. */
static bool has_output_errors(const ingot_verification *verification) {
    for (unsigned i = 0; i < INGOT_KIND_COUNT; i++) {
        if (!isnan(verification->kinds[i].output_error)) {
            return true;
        }
    }
    return false;
}

static bool is_of_panel(const ingot_tensor_report *report, ingot_layer_kind kind) {
    return report->tensor->kind == INGOT_GROUPED && report->layer_kind == kind && report->has_layer;
}

static double largest_error(const ingot_verification *verification, bool is_output) {
    double largest = 0;
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        const ingot_tensor_report *report = &verification->tensors[i];
        const ingot_ledger *ledger = &report->ledger;
        if (report->tensor->kind != INGOT_GROUPED || !report->has_layer) {
            continue;
        }
        /* fmax leaves out what is not a number */
        largest = fmax(largest, is_output ? ledger->output_error : ledger->weight_error);
        largest = fmax(largest, is_output ? ledger->output_error_rtn : ledger->weight_error_rtn);
    }
    return largest;
}

static void draw_frame(ingot_markup *markup, const ingot_axis *y, const char *title,
                       uint64_t layers) {
    char text[64];
    ingot_svg_begin(markup, PANEL_WIDTH, PANEL_HEIGHT, title);
    ingot_svg_text(markup, "chart-title", PANEL_LEFT, 16, "start", title);
    for (unsigned i = 0; i < ingot_axis_tick_count(y); i++) {
        const double value = y->low + i * y->step, at = ingot_axis_at(y, value);
        (void)snprintf(text, sizeof text, "%.*f", (int)y->decimals, value);
        ingot_svg_line(markup, i == 0 ? "axis" : "grid", PANEL_LEFT, at, PANEL_RIGHT, at);
        ingot_svg_text(markup, "tick", PANEL_LEFT - 6, at + 4, "end", text);
    }
    const uint64_t step = layers <= 8 ? 1 : (layers + 7) / 8;
    for (uint64_t layer = 0; layer < layers; layer += step) {
        const double at =
            PANEL_LEFT + ((double)layer + 0.5) / (double)layers * (PANEL_RIGHT - PANEL_LEFT);
        (void)snprintf(text, sizeof text, "%" PRIu64, layer);
        ingot_svg_text(markup, "tick", at, PANEL_BOTTOM + 15, "middle", text);
    }
}

static void draw_series(ingot_markup *markup, const ingot_axis *y, const error_points *points,
                        const double *values, const char *name, const char *path_class,
                        const char *dot_class, double *scratch) {
    char tooltip[160];
    for (uint64_t i = 0; i < points->count; i++) {
        scratch[i] = isnan(values[i]) ? (double)NAN : ingot_axis_at(y, values[i]);
    }
    ingot_svg_polyline(markup, path_class, points->x, scratch, points->count);
    for (uint64_t i = 0; i < points->count; i++) {
        if (!isnan(values[i])) {
            (void)snprintf(tooltip, sizeof tooltip, "layer %" PRIu64 ", %s: %.5f", points->layer[i],
                           name, values[i]);
            ingot_svg_circle(markup, dot_class, points->x[i], scratch[i],
                             points->count > 40 ? 2 : 3, tooltip);
        }
    }
}

static void draw_panel(ingot_markup *markup, const ingot_verification *verification,
                       ingot_layer_kind kind, bool is_output, const ingot_axis *y,
                       error_points *points, double *scratch) {
    char title[64];
    const uint64_t layers = verification->model.layers;
    points->count = 0;
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        const ingot_tensor_report *report = &verification->tensors[i];
        const ingot_ledger *ledger = &report->ledger;
        if (!is_of_panel(report, kind)) {
            continue;
        }
        const uint64_t at = points->count++;
        points->layer[at] = report->layer;
        points->x[at] = PANEL_LEFT +
                        ((double)report->layer + 0.5) / (double)layers * (PANEL_RIGHT - PANEL_LEFT);
        points->value[at] = is_output ? ledger->output_error : ledger->weight_error;
        points->plain[at] = is_output ? ledger->output_error_rtn : ledger->weight_error_rtn;
    }
    if (points->count == 0) {
        return;
    }
    (void)snprintf(title, sizeof title, "%s: relative %s error", ingot_layer_kind_name(kind),
                   is_output ? "output" : "weight");
    draw_frame(markup, y, title, layers);
    draw_series(markup, y, points, points->plain, "plain rounding", "path plain", "dot plain",
                scratch);
    draw_series(markup, y, points, points->value, "stored", "path stored", "dot stored", scratch);
    ingot_svg_text(markup, "tick", (PANEL_LEFT + PANEL_RIGHT) / 2, PANEL_HEIGHT - 4, "middle",
                   "layer");
    ingot_svg_end(markup);
}

void ingot_chart_errors(ingot_markup *markup, const ingot_verification *verification) {
    const bool is_output = has_output_errors(verification);
    ingot_axis y;
    ingot_axis_from_zero(&y, largest_error(verification, is_output), 4, PANEL_BOTTOM, PANEL_TOP);
    void *memory;
    const uint64_t room = verification->tensor_count + 1;
    if (ingot_alloc_zero(&memory, room, 4 * sizeof(double) + sizeof(uint64_t)) != INGOT_OK) {
        markup->is_failed = true;
        return;
    }
    double *numbers = memory;
    error_points points = {.x = numbers,
                           .value = numbers + room,
                           .plain = numbers + 2 * room,
                           .layer = (void *)(numbers + 4 * room)};
    ingot_markup_add(markup, "<div class=\"panels\">\n");
    for (unsigned kind = 0; verification->has_model && kind < INGOT_ROLE_COUNT; kind++) {
        draw_panel(markup, verification, (ingot_layer_kind)kind, is_output, &y, &points,
                   numbers + 3 * room);
    }
    ingot_markup_add(markup, "</div>\n");
    ingot_free(memory);
}

/* ---- bits per tensor ------------------------------------------------------------------------ */

#define BITS_WIDTH  400.0
#define BITS_HEIGHT 180.0
#define BITS_LEFT   40.0
#define BITS_RIGHT  395.0
#define BITS_TOP    14.0
#define BITS_BOTTOM 155.0

static bool is_stored(const ingot_tensor_report *report) {
    const ingot_tensor *tensor = report->tensor;
    return (tensor->kind == INGOT_DENSE || tensor->kind == INGOT_GROUPED) &&
           tensor->rows * tensor->cols != 0;
}

static double stored_bits(const ingot_tensor_report *report) {
    return 8.0 * (double)report->stored_bytes /
           ((double)report->tensor->rows * (double)report->tensor->cols);
}

void ingot_chart_bits(ingot_markup *markup, const ingot_verification *verification) {
    uint64_t count = 0, at = 0;
    double highest = 0;
    char text[400];
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        if (is_stored(&verification->tensors[i])) {
            highest = fmax(highest, stored_bits(&verification->tensors[i]));
            count++;
        }
    }
    ingot_axis y;
    ingot_axis_from_zero(&y, highest, 4, BITS_BOTTOM, BITS_TOP);
    ingot_svg_begin(markup, BITS_WIDTH, BITS_HEIGHT, "bits per weight of every tensor");
    for (unsigned i = 0; i < ingot_axis_tick_count(&y); i++) {
        const double value = i * y.step, line = ingot_axis_at(&y, value);
        (void)snprintf(text, sizeof text, "%.*f", (int)y.decimals, value);
        ingot_svg_line(markup, i == 0 ? "axis" : "grid", BITS_LEFT, line, BITS_RIGHT, line);
        ingot_svg_text(markup, "tick", BITS_LEFT - 6, line + 4, "end", text);
    }
    const double slot = count == 0 ? 0 : (BITS_RIGHT - BITS_LEFT) / (double)count;
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        const ingot_tensor_report *report = &verification->tensors[i];
        if (!is_stored(report)) {
            continue;
        }
        const double top = ingot_axis_at(&y, stored_bits(report));
        (void)snprintf(text, sizeof text, "%s: %.3f bits per weight", report->tensor->name,
                       stored_bits(report));
        ingot_svg_rect(markup, report->tensor->kind == INGOT_GROUPED ? "bar stored" : "bar dense",
                       BITS_LEFT + (double)at++ * slot, top, fmax(slot * 0.8, 0.5),
                       BITS_BOTTOM - top, text);
    }
    ingot_svg_text(markup, "tick", (BITS_LEFT + BITS_RIGHT) / 2, BITS_HEIGHT - 6, "middle",
                   "tensors in load order");
    ingot_svg_end(markup);
}

/* ---- sizes ---------------------------------------------------------------------------------- */

typedef enum size_class {
    SIZE_CODES,
    SIZE_SCALES, /* and zero points */
    SIZE_OUTLIERS,
    SIZE_DENSE, /* and fold scales */
    SIZE_FRONT, /* files, tables, padding */
    SIZE_COUNT
} size_class;

static void sum_sizes(const ingot_verification *verification, double bytes[SIZE_COUNT]) {
    double data = 0;
    for (uint64_t i = 0; i < verification->tensor_count; i++) {
        const ingot_tensor *tensor = verification->tensors[i].tensor;
        if (tensor->kind == INGOT_ALIAS) {
            continue;
        }
        const bool is_grouped = tensor->kind == INGOT_GROUPED;
        bytes[is_grouped ? SIZE_CODES : SIZE_DENSE] += (double)tensor->part_bytes[INGOT_PART_CODES];
        bytes[SIZE_SCALES] += (double)tensor->part_bytes[INGOT_PART_SCALES] +
                              (double)tensor->part_bytes[INGOT_PART_ZEROS];
        bytes[SIZE_OUTLIERS] += (double)tensor->part_bytes[INGOT_PART_OUTLIERS];
        data += (double)verification->tensors[i].stored_bytes;
    }
    /* A compressed file may be smaller than the data it decodes to. */
    bytes[SIZE_FRONT] = fmax(0, (double)verification->info.file_bytes - data);
}

void ingot_chart_sizes(ingot_markup *markup, const ingot_verification *verification) {
    static const char *const names[SIZE_COUNT] = {"codes", "scales and zero points", "outliers",
                                                  "dense tensors and fold scales",
                                                  "files, tables, padding"};
    static const char *const classes[SIZE_COUNT] = {"bar stored", "bar plain", "bar third",
                                                    "bar dense", "bar rest"};
    double bytes[SIZE_COUNT] = {0}, x = 0;
    char size[32], text[160];
    sum_sizes(verification, bytes);
    double total = 0;
    for (unsigned i = 0; i < SIZE_COUNT; i++) {
        total += bytes[i];
    }
    const double scale = 396.0 / fmax(fmax(total, (double)verification->source_bytes), 1);
    const bool has_source = verification->source_bytes != 0;
    ingot_svg_begin(markup, 400, has_source ? 96 : 48, "where the bytes are");
    ingot_format_bytes(size, sizeof size, (double)verification->info.file_bytes);
    (void)snprintf(text, sizeof text, "container: %s", size);
    ingot_svg_text(markup, "label", 2, 14, "start", text);
    for (unsigned i = 0; i < SIZE_COUNT; i++) {
        ingot_format_bytes(size, sizeof size, bytes[i]);
        (void)snprintf(text, sizeof text, "%s: %s", names[i], size);
        ingot_svg_rect(markup, classes[i], 2 + x, 20, bytes[i] * scale, 20, text);
        x += bytes[i] * scale;
    }
    if (has_source) {
        ingot_format_bytes(size, sizeof size, (double)verification->source_bytes);
        (void)snprintf(text, sizeof text, "tensors of the source: %s", size);
        ingot_svg_text(markup, "label", 2, 62, "start", text);
        ingot_svg_rect(markup, "bar rest", 2, 68, (double)verification->source_bytes * scale, 20,
                       text);
    }
    ingot_svg_end(markup);
    ingot_markup_add(markup, "<ul class=\"legend\">\n");
    for (unsigned i = 0; i < SIZE_COUNT; i++) {
        if (bytes[i] > 0) {
            ingot_format_bytes(size, sizeof size, bytes[i]);
            ingot_markup_add(markup, "<li><i class=\"%s\"></i>%s: %s</li>\n", classes[i], names[i],
                             size);
        }
    }
    ingot_markup_add(markup, "</ul>\n");
}

#define SCORE_WIDTH 390.0 /* of the longest bar */

/* ---- perplexity and divergence --------------------------------------------------------------- */

static void draw_bar(ingot_markup *markup, const char *class, const char *name, double value,
                     double scale, double top) {
    char text[96];
    const double width = isinf(value) ? SCORE_WIDTH : value * scale;
    (void)snprintf(text, sizeof text, value < 1e15 ? "%s: %.4f" : "%s: %.4g", name, value);
    ingot_svg_text(markup, "label", 2, top, "start", text);
    ingot_svg_rect(markup, class, 2, top + 6, width, 20, text);
}

/* A gate as a mark over the first bar, where it is on the chart. */
static void draw_gate(ingot_markup *markup, double gate, double scale) {
    if (gate >= 0 && isfinite(gate)) {
        ingot_svg_line(markup, "gate", 2 + gate * scale, 20, 2 + gate * scale, 45);
    }
}

void ingot_chart_score(ingot_markup *markup, const ingot_verification *verification) {
    const ingot_score *score = &verification->score;
    const double gate = verification->options.max_ppl_ratio * score->source_perplexity;
    const double kld_gate = verification->options.max_kld;
    if (isnan(score->perplexity)) {
        return;
    }
    const bool has_source = !isnan(score->source_perplexity);
    /* fmax leaves out what is not a number */
    double scale = SCORE_WIDTH / fmax(fmax(score->perplexity, score->source_perplexity), gate);
    ingot_svg_begin(markup, 400, has_source ? 100 : 52, "perplexity");
    draw_bar(markup, "bar stored", "perplexity of the container", score->perplexity, scale, 14);
    draw_gate(markup, gate, scale);
    if (has_source) {
        draw_bar(markup, "bar rest", "perplexity of the source", score->source_perplexity, scale,
                 62);
    }
    ingot_svg_end(markup);
    if (isnan(score->kld_mean)) {
        return;
    }
    scale = SCORE_WIDTH / fmax(fmax(fmax(score->kld_mean, score->kld_p99), kld_gate), 1e-12);
    ingot_svg_begin(markup, 400, 96, "KL divergence from the source, in nats");
    draw_bar(markup, "bar stored", "mean KL divergence, nats", score->kld_mean, scale, 14);
    draw_gate(markup, kld_gate, scale);
    draw_bar(markup, "bar rest", "99th percentile", score->kld_p99, scale, 62);
    ingot_svg_end(markup);
}

/* ---- tasks ----------------------------------------------------------------------------------- */

void ingot_chart_tasks(ingot_markup *markup, const ingot_verification *verification) {
    const ingot_task_score *score = &verification->task_score;
    const bool has_source = !isnan(score->source_accuracy);
    const double scale = SCORE_WIDTH / 100; /* of percent */
    ingot_svg_begin(markup, 400, has_source ? 100 : 52, "accuracy");
    draw_bar(markup, "bar stored", "accuracy of the container, %", 100 * score->accuracy, scale,
             14);
    if (has_source) {
        draw_gate(markup, 100 * (score->source_accuracy - verification->options.max_accuracy_drop),
                  scale);
        draw_bar(markup, "bar rest", "accuracy of the source, %", 100 * score->source_accuracy,
                 scale, 62);
    }
    ingot_svg_end(markup);
}
