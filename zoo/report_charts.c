/* Charts of the zoo's page (zoo/report.h). */
#include "zoo/report.h"

#include "common/cli.h"
#include "zoo/shelf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIDTH         440.0
#define LEFT          58.0
#define RIGHT         14.0
#define TOP           12.0
#define PANEL_HEIGHT  270.0
#define BOTTOM        40.0
#define BAR_HEIGHT    16.0
#define BAR_STEP      26.0
#define NAME_CHARS    30  /* of a recipe beside its point */
#define PRODUCT_CHARS 48  /* of a product over its bar, which its time and memory stand behind */
#define CHAR_WIDTH    6.6 /* of small text, about */

const char *const ingot_zoo_phase_labels[INGOT_ZOO_PHASES] = {"statistics and plan",
                                                              "collect and propagate",
                                                              "quantize, fold, tune, distill",
                                                              "read and write",
                                                              "finish",
                                                              "verify"};

double ingot_zoo_quality(const json_t *row) {
    return ingot_json_number_at(json_object_get(row, "verify"), "kld_mean");
}

double ingot_zoo_bytes(const json_t *row) {
    return ingot_json_number_at(json_object_get(row, "file"), "bytes");
}

double ingot_zoo_peak_bytes(const json_t *row) {
    static const char *const names[] = {"statistics", "convert", "verify"};
    const json_t *steps = json_object_get(row, "steps");
    double most = NAN;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        /* fmax leaves out what is not a number */
        most =
            fmax(most, ingot_json_number_at(json_object_get(steps, names[i]), "peak_host_bytes"));
    }
    return most;
}

static bool is_scored(const json_t *row) {
    return isfinite(ingot_zoo_quality(row)) && ingot_zoo_bytes(row) > 0;
}

static bool is_best(const json_t *row) {
    return json_is_true(json_object_get(row, "front"));
}

/* ---- size against quality ------------------------------------------------------------------- */

/* Quality on a logarithmic scale: recipes lie decades apart. */
typedef struct plane {
    double low_bytes, high_bytes, low, high; /* of quality: logarithms */
} plane;

static double x_at(const plane *p, double bytes) {
    const double share = (bytes - p->low_bytes) / (p->high_bytes - p->low_bytes);
    return LEFT + share * (WIDTH - LEFT - RIGHT);
}

static double y_at(const plane *p, double quality) {
    const double at = log10(fmax(quality, 1e-9));
    return TOP + (p->high - at) / (p->high - p->low) * (PANEL_HEIGHT - TOP - BOTTOM);
}

static bool make_plane(plane *p, const json_t *rows) {
    *p = (plane){.low_bytes = INFINITY, .high_bytes = 0, .low = INFINITY, .high = -INFINITY};
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i);
        if (is_scored(row)) {
            const double at = log10(fmax(ingot_zoo_quality(row), 1e-9));
            p->low_bytes = fmin(p->low_bytes, ingot_zoo_bytes(row));
            p->high_bytes = fmax(p->high_bytes, ingot_zoo_bytes(row));
            p->low = fmin(p->low, at);
            p->high = fmax(p->high, at);
        }
    }
    const double room = fmax(0.08 * (p->high_bytes - p->low_bytes), 0.02 * p->high_bytes);
    p->low_bytes -= room;
    p->high_bytes += 2.5 * room; /* labels stand to the right of points */
    p->low = p->low - 0.3;
    p->high = p->high + 0.15;
    return isfinite(p->low);
}

static void draw_size_ticks(ingot_markup *markup, const plane *p) {
    ingot_axis axis;
    char text[32];
    ingot_axis_from_zero(&axis, p->high_bytes - p->low_bytes, 4, 0, 1);
    for (double at = ceil(p->low_bytes / axis.step) * axis.step; at <= p->high_bytes;
         at += axis.step) {
        ingot_svg_line(markup, "grid", x_at(p, at), TOP, x_at(p, at), PANEL_HEIGHT - BOTTOM);
        ingot_format_bytes(text, sizeof text, at);
        ingot_svg_text(markup, "tick", x_at(p, at), PANEL_HEIGHT - BOTTOM + 16, "middle", text);
    }
}

static void draw_quality_ticks(ingot_markup *markup, const plane *p) {
    static const double steps[] = {1, 2, 5};
    const bool has_between = p->high - p->low < 2;
    for (double decade = floor(p->low); decade <= p->high; decade++) {
        for (unsigned i = 0; i < (has_between ? 3 : 1); i++) {
            const double value = steps[i] * pow(10, decade), at = log10(value);
            char text[32];
            if (at < p->low || at > p->high) {
                continue;
            }
            (void)snprintf(text, sizeof text, "%g", value);
            ingot_svg_line(markup, "grid", LEFT, y_at(p, value), WIDTH - RIGHT, y_at(p, value));
            ingot_svg_text(markup, "tick", LEFT - 6, y_at(p, value) + 4, "end", text);
        }
    }
}

static int by_bytes(const void *a, const void *b) {
    const double x = ingot_zoo_bytes(*(json_t *const *)a), y = ingot_zoo_bytes(*(json_t *const *)b);
    return x < y ? -1 : x > y;
}

/* Stairs through the best: at each size the quality that can be had. */
static void draw_front(ingot_markup *markup, const plane *p, const json_t *rows) {
    const size_t count = json_array_size(rows);
    const json_t **best = calloc(count + 1, sizeof *best);
    double *x = calloc(2 * count + 1, sizeof *x), *y = calloc(2 * count + 1, sizeof *y);
    size_t found = 0, points = 0;
    if (best == NULL || x == NULL || y == NULL) {
        markup->is_failed = true;
    } else {
        for (size_t i = 0; i < count; i++) {
            if (is_best(json_array_get(rows, i))) {
                best[found++] = json_array_get(rows, i);
            }
        }
        qsort(best, found, sizeof *best, by_bytes);
        for (size_t i = 0; i < found; i++) {
            const double at = x_at(p, ingot_zoo_bytes(best[i]));
            if (i > 0) {
                x[points] = at;
                y[points++] = y_at(p, ingot_zoo_quality(best[i - 1]));
            }
            x[points] = at;
            y[points++] = y_at(p, ingot_zoo_quality(best[i]));
        }
        ingot_svg_polyline(markup, "path front", x, y, points);
    }
    free(best);
    free(x);
    free(y);
}

/* What names must not stand on: points, and names before them. */
typedef struct box {
    double left, top, right, bottom;
} box;

typedef struct names {
    box *taken; /* [2 * rows] */
    size_t count;
} names;

static bool is_free(const names *n, const box *b) {
    bool is_free = b->left >= 0 && b->right <= WIDTH && b->top >= 0;
    for (size_t i = 0; i < n->count && is_free; i++) {
        const box *t = &n->taken[i];
        is_free = b->right <= t->left || b->left >= t->right || b->bottom <= t->top ||
                  b->top >= t->bottom;
    }
    return is_free;
}

/* A name of ASCII characters, of which `most` stand in a picture. */
static void cut_name(char *text, size_t size, const char *name, int most) {
    const bool is_cut = strlen(name) > (size_t)most;
    (void)snprintf(text, size, "%.*s%s", most - is_cut, name, is_cut ? "\u2026" : "");
}

/* Beside its point where there is room, first below if it is one of the best, which the others are
 * above of; else nowhere: the point says it when it is pointed at. */
static void draw_name(ingot_markup *markup, const plane *p, const json_t *row, names *n) {
    const char *recipe = ingot_zoo_text_of(row, "recipe");
    const double x = x_at(p, ingot_zoo_bytes(row)), y = y_at(p, ingot_zoo_quality(row));
    char text[NAME_CHARS + 8];
    cut_name(text, sizeof text, recipe, NAME_CHARS);
    const double width = CHAR_WIDTH * (double)strnlen(recipe, NAME_CHARS);
    for (unsigned i = 0; i < 4; i++) {
        const bool is_left = i >= 2, is_below = (i % 2 == 0) == is_best(row);
        const double at = is_left ? x - 8 : x + 8, line = is_below ? y + 15 : y - 6;
        const box b = {is_left ? at - width : at, line - 10, is_left ? at : at + width, line + 3};
        if (is_free(n, &b)) {
            n->taken[n->count++] = b;
            ingot_svg_text(markup, "name", at, line, is_left ? "end" : "start", text);
            return;
        }
    }
}

static void draw_point(ingot_markup *markup, const plane *p, const json_t *row, names *n) {
    char text[200], size[32];
    const char *recipe = ingot_zoo_text_of(row, "recipe");
    const double x = x_at(p, ingot_zoo_bytes(row)), y = y_at(p, ingot_zoo_quality(row));
    const char *verdict = ingot_zoo_text_of(json_object_get(row, "gates"), "verdict");
    const bool is_over = verdict != NULL && strcmp(verdict, "failed") == 0;
    ingot_format_bytes(size, sizeof size, ingot_zoo_bytes(row));
    (void)snprintf(text, sizeof text, "%.100s: %s, KL %.5g%s", recipe, size, ingot_zoo_quality(row),
                   is_over ? ", over a gate" : "");
    ingot_svg_circle(markup,
                     is_over        ? "dot over"
                     : is_best(row) ? "dot best"
                                    : "dot other",
                     x, y, 4.5, text);
    n->taken[n->count++] = (box){x - 5, y - 5, x + 5, y + 5};
}

/* All points, then names: of the best first. */
static void draw_points(ingot_markup *markup, const plane *p, const json_t *rows) {
    const size_t count = json_array_size(rows);
    names n = {.taken = calloc(2 * count + 1, sizeof *n.taken)};
    if (n.taken == NULL) {
        markup->is_failed = true;
        return;
    }
    for (unsigned pass = 0; pass < 3; pass++) {
        for (size_t i = 0; i < count; i++) {
            const json_t *row = json_array_get(rows, i);
            if (is_scored(row) && pass == 0) {
                draw_point(markup, p, row, &n);
            } else if (is_scored(row) && is_best(row) == (pass == 1)) {
                draw_name(markup, p, row, &n);
            }
        }
    }
    free(n.taken);
}

void ingot_zoo_chart_quality(ingot_markup *markup, const json_t *rows) {
    plane p;
    if (!make_plane(&p, rows)) {
        ingot_markup_add(markup, "<p class=\"soft\">No product was scored on a text.</p>\n");
        return;
    }
    ingot_svg_begin(markup, WIDTH, PANEL_HEIGHT,
                    "Size of every product against its mean KL divergence");
    draw_size_ticks(markup, &p);
    draw_quality_ticks(markup, &p);
    draw_front(markup, &p, rows);
    draw_points(markup, &p, rows);
    ingot_svg_text(markup, "label", (LEFT + WIDTH - RIGHT) / 2, PANEL_HEIGHT - 6, "middle",
                   "size of the file");
    ingot_svg_end(markup);
}

/* ---- error per layer ------------------------------------------------------------------------ */

/* The error of the output where there were activations to measure it on, else of the weights. */
static const json_t *layers_of(const json_t *row, const char *figure) {
    const json_t *list = json_object_get(json_object_get(row, "layers"), figure);
    for (size_t i = 0; i < json_array_size(list); i++) {
        if (json_is_number(json_array_get(list, i))) {
            return list;
        }
    }
    return NULL;
}

static void draw_layer_axes(ingot_markup *markup, const ingot_axis *axis, size_t layers) {
    char text[32];
    for (unsigned i = 0; i < ingot_axis_tick_count(axis); i++) {
        const double value = axis->low + i * axis->step, y = ingot_axis_at(axis, value);
        ingot_svg_line(markup, "grid", LEFT, y, WIDTH - RIGHT, y);
        (void)snprintf(text, sizeof text, "%.*f", (int)axis->decimals, value);
        ingot_svg_text(markup, "tick", LEFT - 6, y + 4, "end", text);
    }
    const size_t step = layers > 16 ? (layers + 7) / 8 : 1;
    for (size_t i = 0; i < layers; i += step) {
        const double x = LEFT + (WIDTH - LEFT - RIGHT) * ((double)i + 0.5) / (double)layers;
        (void)snprintf(text, sizeof text, "%zu", i);
        ingot_svg_text(markup, "tick", x, PANEL_HEIGHT - BOTTOM + 16, "middle", text);
    }
    ingot_svg_text(markup, "label", (LEFT + WIDTH - RIGHT) / 2, PANEL_HEIGHT - 6, "middle",
                   "layer");
}

static void draw_layers(ingot_markup *markup, const ingot_axis *axis, const json_t *list,
                        size_t layers, unsigned series, const char *name) {
    double *x = calloc(layers + 1, sizeof *x), *y = calloc(layers + 1, sizeof *y);
    char class[32], tooltip[200];
    if (x == NULL || y == NULL) {
        markup->is_failed = true;
    } else {
        for (size_t i = 0; i < layers; i++) {
            const json_t *value = json_array_get(list, i);
            x[i] = LEFT + (WIDTH - LEFT - RIGHT) * ((double)i + 0.5) / (double)layers;
            y[i] =
                json_is_number(value) ? ingot_axis_at(axis, json_number_value(value)) : (double)NAN;
        }
        (void)snprintf(class, sizeof class, "path s%u", series);
        ingot_svg_polyline(markup, class, x, y, layers);
        (void)snprintf(class, sizeof class, "dot s%u", series);
        for (size_t i = 0; i < layers && layers <= 64; i++) {
            if (isfinite(y[i])) {
                (void)snprintf(tooltip, sizeof tooltip, "%.90s, layer %zu: %.5g", name, i,
                               json_number_value(json_array_get(list, i)));
                ingot_svg_circle(markup, class, x[i], y[i], 2.6, tooltip);
            }
        }
    }
    free(x);
    free(y);
}

/* One chart of one figure; nothing where no product has it. */
static void chart_figure(ingot_markup *markup, const json_t *rows, const char *figure,
                         const char *title) {
    double high = 0;
    size_t layers = 0;
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *list = layers_of(json_array_get(rows, i), figure);
        layers = json_array_size(list) > layers ? json_array_size(list) : layers;
        for (size_t k = 0; k < json_array_size(list); k++) {
            high = fmax(high, json_number_value(json_array_get(list, k)));
        }
    }
    if (layers == 0) {
        return;
    }
    ingot_axis axis;
    ingot_axis_from_zero(&axis, high, 5, PANEL_HEIGHT - BOTTOM, TOP);
    ingot_markup_add(markup, "<div><p class=\"hint\">%s</p>\n", title);
    ingot_svg_begin(markup, WIDTH, PANEL_HEIGHT, title);
    draw_layer_axes(markup, &axis, layers);
    for (size_t i = json_array_size(rows); i > 0; i--) { /* the first ones on top */
        const json_t *row = json_array_get(rows, i - 1), *list = layers_of(row, figure);
        const unsigned series = (unsigned)(i - 1 < INGOT_ZOO_SERIES ? i - 1 : INGOT_ZOO_SERIES);
        if (list != NULL) {
            draw_layers(markup, &axis, list, layers, series, ingot_zoo_text_of(row, "recipe"));
        }
    }
    ingot_svg_end(markup);
    ingot_markup_add(markup, "</div>\n");
}

void ingot_zoo_chart_layers(ingot_markup *markup, const json_t *rows) {
    ingot_markup_add(markup, "<div class=\"panels wide\">\n");
    chart_figure(markup, rows, "weight", "Relative error of the weights");
    chart_figure(markup, rows, "output", "Relative error of the outputs, on the calibration text");
    ingot_markup_add(markup, "</div>\n");
}

/* ---- time ----------------------------------------------------------------------------------- */

static double sum_of(const json_t *object, const char *const *keys, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        const double value = ingot_json_number_at(object, keys[i]);
        sum += isfinite(value) ? value : 0;
    }
    return sum;
}

/* seconds[phases] of a product, as they are coloured; the sum. */
static double times_of(double seconds[INGOT_ZOO_PHASES], const json_t *row) {
    static const char *const plan[] = {"plan"}, *const data[] = {"collect", "propagate"},
                             *const work[] = {"quantize", "fold", "tune", "distill"},
                             *const files[] = {"read", "write"}, *const finish[] = {"finish"},
                             *const all[] = {"seconds"};
    const json_t *phases = json_object_get(json_object_get(row, "convert"), "phases");
    const json_t *steps = json_object_get(row, "steps");
    double sum = 0;
    seconds[0] = sum_of(phases, plan, 1) + sum_of(json_object_get(steps, "statistics"), all, 1);
    seconds[1] = sum_of(phases, data, 2);
    seconds[2] = sum_of(phases, work, 4);
    seconds[3] = sum_of(phases, files, 2);
    seconds[4] = sum_of(phases, finish, 1);
    seconds[5] = sum_of(json_object_get(steps, "verify"), all, 1);
    for (unsigned i = 0; i < INGOT_ZOO_PHASES; i++) {
        sum += seconds[i];
    }
    return sum;
}

static int by_time(const void *a, const void *b) {
    double ignored[INGOT_ZOO_PHASES];
    const double x = times_of(ignored, *(json_t *const *)a);
    const double y = times_of(ignored, *(json_t *const *)b);
    return x > y ? -1 : x < y;
}

static void draw_time(ingot_markup *markup, const json_t *row, double y, const ingot_axis *axis) {
    double seconds[INGOT_ZOO_PHASES], at = 0;
    char text[200], time[32], class[16];
    const double sum = times_of(seconds, row);
    const double peak = ingot_zoo_peak_bytes(row);
    cut_name(text, sizeof text, ingot_zoo_text_of(row, "product"), PRODUCT_CHARS);
    ingot_svg_text(markup, "label", 0, y + 12, "start", text);
    for (unsigned i = 0; i < INGOT_ZOO_PHASES; i++) {
        if (seconds[i] > 0) {
            const double from = ingot_axis_at(axis, at), to = ingot_axis_at(axis, at + seconds[i]);
            ingot_format_seconds(time, sizeof time, seconds[i]);
            (void)snprintf(text, sizeof text, "%s: %s", ingot_zoo_phase_labels[i], time);
            (void)snprintf(class, sizeof class, "bar s%u", i);
            ingot_svg_rect(markup, class, from, y + 17, fmax(to - from, 0.3), BAR_HEIGHT - 4, text);
            at += seconds[i];
        }
    }
    ingot_format_seconds(time, sizeof time, sum);
    int length = snprintf(text, sizeof text, "%s", time);
    if (isfinite(peak)) {
        char bytes[32];
        ingot_format_bytes(bytes, sizeof bytes, peak);
        (void)snprintf(text + length, sizeof text - (size_t)length, ", %s", bytes);
    }
    ingot_svg_text(markup, "tick", WIDTH, y + 12, "end", text);
}

void ingot_zoo_chart_times(ingot_markup *markup, const json_t *rows, size_t most) {
    const size_t count = json_array_size(rows);
    const json_t **timed = calloc(count + 1, sizeof *timed);
    double ignored[INGOT_ZOO_PHASES];
    size_t found = 0;
    if (timed == NULL) {
        markup->is_failed = true;
        return;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *row = json_array_get(rows, i);
        if (times_of(ignored, row) > 0) {
            timed[found++] = row;
        }
    }
    qsort(timed, found, sizeof *timed, by_time);
    if (found > 0) {
        const size_t shown = found < most ? found : most;
        ingot_axis axis;
        const double height = (BAR_STEP + 12) * (double)shown;
        ingot_axis_from_zero(&axis, times_of(ignored, timed[0]), 4, 0, WIDTH);
        axis.high = times_of(ignored, timed[0]);
        ingot_svg_begin(markup, WIDTH, height, "Time of every product by phase");
        for (size_t i = 0; i < shown; i++) {
            draw_time(markup, timed[i], (BAR_STEP + 12) * (double)i, &axis);
        }
        ingot_svg_end(markup);
        if (shown < found) {
            ingot_markup_add(markup,
                             "<p class=\"hint\">The %zu slowest of %zu; report.csv has "
                             "all.</p>\n",
                             shown, found);
        }
    }
    free(timed);
}
