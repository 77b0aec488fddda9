/* The zoo as one page: no scripts, nothing fetched, light and dark, phone and desktop. */
#include "common/cli.h"
#include "common/page.h"
#include "zoo/report.h"
#include "zoo/shelf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BARS_MAX 60u

/* Colours that are told apart on light and dark: eight series, and a quiet one. */
static const char own_style[] =
    ":root{--c0:#2563c9;--c1:#c4650a;--c2:#157a3c;--c3:#7a4cc2;--c4:#b3261e;--c5:#0f7c86;"
    "--c6:#8a6d00;--c7:#a8417d;--c8:#9a9da5}"
    "@media(prefers-color-scheme:dark){:root{--c0:#6ea3ff;--c1:#f0a04b;--c2:#58c787;--c3:#b795f5;"
    "--c4:#ff8a80;--c5:#4cc5cf;--c6:#d8b93f;--c7:#ee8fc4;--c8:#6d727d}}"
    ".s0{--c:var(--c0)}.s1{--c:var(--c1)}.s2{--c:var(--c2)}.s3{--c:var(--c3)}.s4{--c:var(--c4)}"
    ".s5{--c:var(--c5)}.s6{--c:var(--c6)}.s7{--c:var(--c7)}.s8{--c:var(--c8)}"
    ".path[class*=' s']{stroke:var(--c)}.dot[class*=' s']{fill:var(--c)}"
    ".bar[class*=' s']{fill:var(--c);background:var(--c)}"
    ".path.front{stroke:var(--good);stroke-dasharray:5 3}"
    ".dot.best{fill:var(--good)}.dot.other{fill:var(--card);stroke:var(--soft);stroke-width:1.5}"
    ".dot.over{fill:var(--bad)}i.dot{border-radius:50% "
    "!important}i.dot.best{background:var(--good)}"
    "i.dot.over{background:var(--bad)}i.dot.other{border:1.5px solid var(--soft)}"
    "svg .name{fill:var(--ink)}.wide{grid-template-columns:repeat(auto-fit,minmax(min(100%,400px),"
    "1fr))}"
    "td.meter{min-width:120px}.meter i{display:block;height:6px;border-radius:3px;"
    "background:var(--rest);overflow:hidden}.meter b{display:block;height:6px}"
    ".meter b.good{background:var(--good)}.meter b.bad{background:var(--bad)}"
    "section .legend{margin-bottom:10px}"
    ".best-mark{color:var(--good);font-weight:600}";

static void add_text_cell(ingot_markup *m, const char *class, const char *text) {
    ingot_markup_add(m, "<td%s%s%s>", class[0] != '\0' ? " class=\"" : "", class,
                     class[0] != '\0' ? "\"" : "");
    ingot_markup_text(m, text != NULL ? text : "-");
    ingot_markup_add(m, "</td>");
}

static void add_number_cell(ingot_markup *m, double value, int decimals) {
    char text[48];
    (void)snprintf(text, sizeof text, "%.*f", decimals, value);
    add_text_cell(m, isfinite(value) ? "" : "soft", isfinite(value) ? text : "-");
}

static void add_bytes_cell(ingot_markup *m, double value) {
    char text[48] = "-";
    if (isfinite(value) && value > 0) {
        ingot_format_bytes(text, sizeof text, value);
    }
    add_text_cell(m, "", text);
}

static void add_seconds_cell(ingot_markup *m, double value) {
    char text[48] = "-";
    if (isfinite(value)) {
        ingot_format_seconds(text, sizeof text, value);
    }
    add_text_cell(m, "", text);
}

static const char *verdict_of(const json_t *row) {
    const char *verdict = ingot_zoo_text_of(json_object_get(row, "gates"), "verdict");
    return verdict != NULL ? verdict : "none";
}

/* ---- head ----------------------------------------------------------------------------------- */

static size_t count_if(const json_t *rows, const char *state, const char *verdict) {
    size_t count = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        count += (state == NULL || strcmp(ingot_zoo_text_of(row, "state"), state) == 0) &&
                 (verdict == NULL || strcmp(verdict_of(row), verdict) == 0);
    }
    return count;
}

static void add_tile(ingot_markup *m, const char *name, const char *value) {
    ingot_markup_add(m, "<div class=\"tile\"><b>%s</b><span>%s</span></div>\n", value, name);
}

static void add_count(ingot_markup *m, const char *name, size_t count) {
    char text[24];
    (void)snprintf(text, sizeof text, "%zu", count);
    add_tile(m, name, text);
}

static void add_head(ingot_markup *m, const json_t *rows) {
    const size_t done = count_if(rows, "done", NULL), over = count_if(rows, NULL, "failed");
    const size_t count = json_array_size(rows);
    const bool is_good = done == count && over == 0;
    double bytes = 0, seconds = 0;
    char text[48];
    for (size_t i = 0; i < count; i++) {
        const json_t *row = json_array_get(rows, i), *steps = json_object_get(row, "steps");
        static const char *const names[] = {"statistics", "convert", "verify"};
        bytes += isfinite(ingot_zoo_bytes(row)) ? ingot_zoo_bytes(row) : 0;
        for (unsigned k = 0; k < 3; k++) {
            const double step = ingot_json_number_at(json_object_get(steps, names[k]), "seconds");
            seconds += isfinite(step) ? step : 0;
        }
    }
    ingot_markup_add(m, "<h1>Zoo</h1>\n<p><span class=\"verdict %s\">%s</span></p>\n",
                     is_good ? "good" : "bad",
                     is_good         ? "all products made, within their gates"
                     : done == count ? "over a gate"
                     : over > 0      ? "not complete, and over a gate"
                                     : "not complete");
    ingot_markup_add(m, "<div class=\"tiles\">\n");
    add_count(m, "products", count);
    add_count(m, "finished", done);
    add_count(m, "over a gate", over);
    ingot_format_bytes(text, sizeof text, bytes);
    add_tile(m, "on the shelf", text);
    ingot_format_seconds(text, sizeof text, seconds);
    add_tile(m, "spent on them", text);
    ingot_markup_add(m, "</div>\n");
}

/* ---- tables --------------------------------------------------------------------------------- */

static void add_product_row(ingot_markup *m, const json_t *row) {
    const json_t *convert = json_object_get(row, "convert"),
                 *verify = json_object_get(row, "verify");
    const json_t *steps = json_object_get(row, "steps");
    const char *state = ingot_zoo_text_of(row, "state"), *verdict = verdict_of(row);
    const bool is_done = strcmp(state, "done") == 0, is_over = strcmp(verdict, "failed") == 0;
    const bool is_front = json_is_true(json_object_get(row, "front"));
    ingot_markup_add(m, "<tr>");
    ingot_markup_add(m, "<td>");
    ingot_markup_text(m, ingot_zoo_text_of(row, "product"));
    ingot_markup_add(m, is_front
                            ? " <span class=\"best-mark\" title=\"no other is both smaller and "
                              "better\">&#9679;</span></td>"
                            : "</td>");
    add_text_cell(m, is_done ? "" : "bad", state);
    add_text_cell(m, is_over ? "bad" : strcmp(verdict, "passed") == 0 ? "good" : "soft", verdict);
    add_bytes_cell(m, ingot_zoo_bytes(row));
    add_number_cell(m, ingot_json_number_at(convert, "bits_per_weight"), 3);
    add_number_cell(m, ingot_json_number_at(verify, "perplexity"), 4);
    add_number_cell(m, ingot_json_number_at(verify, "ppl_ratio"), 4);
    add_number_cell(m, ingot_zoo_quality(row), 5);
    add_number_cell(m, 100 * ingot_json_number_at(verify, "top1"), 2);
    add_seconds_cell(m, ingot_json_number_at(json_object_get(steps, "convert"), "seconds"));
    add_seconds_cell(m, ingot_json_number_at(json_object_get(steps, "verify"), "seconds"));
    add_bytes_cell(m, ingot_zoo_peak_bytes(row));
    add_bytes_cell(m, ingot_json_number_at(convert, "peak_device_bytes"));
    ingot_markup_add(m, "</tr>\n");
    if (!is_done && ingot_zoo_text_of(row, "reason") != NULL) {
        ingot_markup_add(m, "<tr><td colspan=\"13\" class=\"bad\">");
        ingot_markup_text(m, ingot_zoo_text_of(row, "reason"));
        ingot_markup_add(m, "</td></tr>\n");
    }
}

static void add_products(ingot_markup *m, const json_t *rows) {
    ingot_markup_add(m,
                     "<section class=\"card\"><h2>Products</h2>\n<div class=\"scroll\"><table>"
                     "<thead><tr><th>product</th><th>state</th><th>gates</th><th>size</th>"
                     "<th>bits</th><th>perplexity</th><th>ratio</th><th>KL</th><th>top 1, %%</th>"
                     "<th>convert</th><th>verify</th><th>memory</th>"
                     "<th>device</th></tr></thead><tbody>\n");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        add_product_row(m, json_array_get(rows, i));
    }
    ingot_markup_add(m, "</tbody></table></div>\n<p class=\"hint\"><span class=\"best-mark\">"
                        "&#9679;</span> no other product of its model is both smaller and better. "
                        "Perplexity and KL divergence (mean, nats) on the evaluation text; memory: "
                        "the most a step took.</p></section>\n");
}

/* Five decimals, or of a figure that is over its limit by less, what tells them apart. */
static void add_gate_figures(ingot_markup *m, double value, double limit) {
    char found[INGOT_FIGURE_SIZE], most[INGOT_FIGURE_SIZE];
    if (value > limit && value - limit < 1e-5) {
        ingot_format_apart(found, most, value, limit, 5);
        add_text_cell(m, "", found);
        add_text_cell(m, "", most);
    } else {
        add_number_cell(m, value, 5);
        add_number_cell(m, limit, 5);
    }
}

static void add_gate_row(ingot_markup *m, const json_t *row, const char *key, const char *name) {
    const json_t *gate = json_object_get(json_object_get(row, "gates"), key);
    const double value = ingot_json_number_at(gate, "value"),
                 limit = ingot_json_number_at(gate, "limit");
    const bool is_good = value <= limit;
    /* A ratio is measured from 1, where nothing was lost. */
    const double start = strcmp(key, "ppl_ratio") == 0 ? 1 : 0;
    if (!json_is_object(gate)) {
        return;
    }
    const double share = fmin(fmax((value - start) / fmax(limit - start, 1e-12), 0), 1);
    ingot_markup_add(m, "<tr>");
    add_text_cell(m, "", ingot_zoo_text_of(row, "product"));
    add_text_cell(m, "", name);
    add_gate_figures(m, value, limit);
    ingot_markup_add(m,
                     "<td class=\"meter\"><i><b class=\"%s\" style=\"width:%.0f%%\"></b></i></td>",
                     is_good ? "good" : "bad", isfinite(value) ? 100 * share : 0);
    add_text_cell(m,
                  isnan(value) ? "soft"
                  : is_good    ? "good"
                               : "bad",
                  isnan(value) ? "open"
                  : is_good    ? "passed"
                               : "over");
    ingot_markup_add(m, "</tr>\n");
}

static void add_gates(ingot_markup *m, const json_t *rows) {
    if (count_if(rows, NULL, "none") == json_array_size(rows)) {
        return;
    }
    ingot_markup_add(m, "<section class=\"card\"><h2>Gates</h2>\n<div class=\"scroll\"><table>"
                        "<thead><tr><th>product</th><th>gate</th><th>measured</th><th>limit</th>"
                        "<th></th><th></th></tr></thead><tbody>\n");
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        add_gate_row(m, row, "ppl_ratio", "perplexity ratio");
        add_gate_row(m, row, "kld_mean", "mean KL divergence");
        add_gate_row(m, row, "accuracy_drop", "loss of accuracy");
    }
    ingot_markup_add(m, "</tbody></table></div></section>\n");
}

/* ---- one model ------------------------------------------------------------------------------ */

static void add_series_legend(ingot_markup *m, const json_t *rows) {
    ingot_markup_add(m, "<ul class=\"legend\">");
    for (size_t i = 0; i < json_array_size(rows) && i < INGOT_ZOO_SERIES; i++) {
        ingot_markup_add(m, "<li><i class=\"bar s%zu\"></i>", i);
        ingot_markup_text(m, ingot_zoo_text_of(json_array_get(rows, i), "recipe"));
        ingot_markup_add(m, "</li>");
    }
    if (json_array_size(rows) > INGOT_ZOO_SERIES) {
        ingot_markup_add(m, "<li><i class=\"bar s%u\"></i>others</li>", INGOT_ZOO_SERIES);
    }
    ingot_markup_add(m, "</ul>\n");
}

static void add_model(ingot_markup *m, const char *name, const json_t *rows) {
    ingot_markup_add(m, "<section class=\"card\"><h2>");
    ingot_markup_text(m, name);
    ingot_markup_add(m,
                     ": size against quality</h2>\n<p class=\"hint\">Mean KL divergence from the "
                     "checkpoint in nats, logarithmic: lower is better.</p>\n");
    ingot_zoo_chart_quality(m, rows);
    ingot_markup_add(m, "<ul class=\"legend\"><li><i class=\"dot best\"></i>the best at their "
                        "size</li><li><i class=\"dot other\"></i>others</li>"
                        "<li><i class=\"dot over\"></i>over a gate</li></ul></section>\n"
                        "<section class=\"card\"><h2>");
    ingot_markup_text(m, name);
    ingot_markup_add(m, ": error per layer</h2>\n");
    add_series_legend(m, rows);
    ingot_zoo_chart_layers(m, rows);
    ingot_markup_add(m, "</section>\n");
}

static void add_times(ingot_markup *m, const json_t *rows) {
    ingot_markup_add(m, "<section class=\"card\"><h2>Time and memory</h2>\n<ul class=\"legend\">");
    for (unsigned i = 0; i < INGOT_ZOO_PHASES; i++) {
        ingot_markup_add(m, "<li><i class=\"bar s%u\"></i>%s</li>", i, ingot_zoo_phase_labels[i]);
    }
    ingot_markup_add(m, "</ul>\n");
    ingot_zoo_chart_times(m, rows, BARS_MAX);
    ingot_markup_add(m, "</section>\n");
}

/* name -> list of its rows, in order of appearance. */
static json_t *by_model(const json_t *rows) {
    json_t *models = json_object();
    for (size_t i = 0; i < json_array_size(rows); i++) {
        json_t *row = json_array_get(rows, i);
        const char *name = ingot_zoo_text_of(row, "model");
        if (json_object_get(models, name) == NULL) {
            ingot_json_put(models, name, json_array());
        }
        (void)json_array_append(json_object_get(models, name), row);
    }
    return models;
}

void ingot_zoo_page(ingot_markup *markup, const json_t *rows) {
    json_t *models = by_model(rows);
    const char *name;
    json_t *own;
    ingot_markup_add(markup,
                     "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                     "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
                     "<title>Zoo: %zu products</title>\n<style>",
                     json_array_size(rows));
    ingot_markup_add(markup, "%s%s", ingot_page_style, own_style);
    ingot_markup_add(markup, "</style></head>\n<body><main>\n");
    add_head(markup, rows);
    add_products(markup, rows);
    add_gates(markup, rows);
    json_object_foreach(models, name, own) {
        add_model(markup, name, own);
    }
    add_times(markup, rows);
    ingot_markup_add(markup, "</main></body></html>\n");
    json_decref(models);
}
