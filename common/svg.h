/* Markup for reports: a growing text with escaping, and the few SVG elements a chart needs.
 *
 * Text from files (tensor names, paths) goes through ingot_markup_text, which makes it safe inside
 * an element or a quoted attribute.  Colours are not set here: elements carry classes, the page's
 * style sheet gives them colours for light and dark.  Coordinates are in pixels of the viewBox. */
#ifndef INGOT_SVG_H
#define INGOT_SVG_H

#include "ingot_status.h"

#include <stdbool.h>
#include <stdint.h>

/* Zero-initialise.  A failed allocation is remembered and reported by ingot_markup_status, so
 * that the calls between need no checks; nothing is added after it. */
typedef struct ingot_markup {
    char *text; /* NUL-terminated once something was added */
    uint64_t size, capacity;
    bool is_failed;
} ingot_markup;

void ingot_markup_free(ingot_markup *markup);
ingot_status ingot_markup_status(const ingot_markup *markup) INGOT_MUST_CHECK;

/* Adds markup of our own: literals and formatted numbers, never text from a file. */
void ingot_markup_add(ingot_markup *markup, const char *format, ...) INGOT_PRINTF(2, 3);
/* Adds text: & < > " ' as references; control characters but tab and newline, and bytes that are
 * not UTF-8, as U+FFFD. */
void ingot_markup_text(ingot_markup *markup, const char *text);
/* The same for at most size bytes; stops at a NUL. */
void ingot_markup_text_n(ingot_markup *markup, const char *text, uint64_t size);

/* <svg> that fills the width of its container and keeps its proportions; title is read aloud. */
void ingot_svg_begin(ingot_markup *markup, double width, double height, const char *title);
void ingot_svg_end(ingot_markup *markup);
/* class is a constant of the caller's style sheet. */
void ingot_svg_line(ingot_markup *markup, const char *class, double x1, double y1, double x2,
                    double y2);
void ingot_svg_rect(ingot_markup *markup, const char *class, double x, double y, double width,
                    double height, const char *tooltip);
void ingot_svg_circle(ingot_markup *markup, const char *class, double x, double y, double radius,
                      const char *tooltip);
/* x[count], y[count]; points that are not finite break the line. */
void ingot_svg_polyline(ingot_markup *markup, const char *class, const double *x, const double *y,
                        uint64_t count);
/* anchor: "start", "middle" or "end". */
void ingot_svg_text(ingot_markup *markup, const char *class, double x, double y, const char *anchor,
                    const char *text);

/* A linear scale from values to pixels, with round tick marks. */
typedef struct ingot_axis {
    double low, high;  /* values */
    double from, to;   /* pixels */
    double step;       /* between ticks: 1, 2 or 5 times a power of ten */
    unsigned decimals; /* that tell two ticks apart */
} ingot_axis;

/* An axis from 0 to at least `high` (not positive or not finite: 1) with about `ticks` ticks. */
void ingot_axis_from_zero(ingot_axis *axis, double high, unsigned ticks, double from, double to);
double ingot_axis_at(const ingot_axis *axis, double value);
unsigned ingot_axis_tick_count(const ingot_axis *axis);

#endif
