/* The markup writer of the reports.  Not a general XML library: no parsing, no name spaces. */
#include "common/svg.h"

#include "common/memory.h"
#include "common/sizes.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define CAPACITY_FIRST_BYTES 16384u

/* ---- text ---------------------------------------------------------------------------------- */

/* Room for size more bytes and the NUL. */
static bool reserve(ingot_markup *markup, uint64_t size) {
    uint64_t wanted;
    if (markup->is_failed) {
        return false;
    }
    if (!ingot_size_add(&wanted, markup->size, size) || !ingot_size_add(&wanted, wanted, 1)) {
        markup->is_failed = true;
        return false;
    }
    if (wanted <= markup->capacity) {
        return true;
    }
    uint64_t capacity = ingot_max_u64(markup->capacity, CAPACITY_FIRST_BYTES);
    while (capacity < wanted) {
        if (!ingot_size_mul(&capacity, capacity, 2)) {
            markup->is_failed = true;
            return false;
        }
    }
    void *grown;
    if (ingot_alloc(&grown, capacity) != INGOT_OK) {
        markup->is_failed = true;
        return false;
    }
    if (markup->size != 0) {
        memcpy(grown, markup->text, markup->size);
    }
    ingot_free(markup->text);
    markup->text = grown;
    markup->capacity = capacity;
    return true;
}

static void append(ingot_markup *markup, const char *bytes, uint64_t size) {
    if (reserve(markup, size)) {
        memcpy(markup->text + markup->size, bytes, size);
        markup->size += size;
        markup->text[markup->size] = '\0';
    }
}

void ingot_markup_free(ingot_markup *markup) {
    ingot_free(markup->text);
    *markup = (ingot_markup){0};
}

ingot_status ingot_markup_status(const ingot_markup *markup) {
    return markup->is_failed ? INGOT_ERR_NO_MEMORY : INGOT_OK;
}

void ingot_markup_add(ingot_markup *markup, const char *format, ...) {
    va_list arguments, again;
    va_start(arguments, format);
    va_copy(again, arguments);
    const int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) {
        markup->is_failed = true;
    } else if (reserve(markup, (uint64_t)length)) {
        (void)vsnprintf(markup->text + markup->size, (size_t)length + 1, format, again);
        markup->size += (uint64_t)length;
    }
    va_end(again);
}

/* Length of the well-formed UTF-8 sequence at bytes[size] (RFC 3629 section 4), 0 if there is
 * none. */
static uint64_t sequence_length(const unsigned char *bytes, uint64_t size) {
    const unsigned char lead = bytes[0];
    if (lead < 0x80) {
        return 1;
    }
    const uint64_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || size < length) {
        return 0;
    }
    for (uint64_t i = 1; i < length; i++) {
        if ((bytes[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    const bool is_overlong = (lead == 0xe0 && bytes[1] < 0xa0) || (lead == 0xf0 && bytes[1] < 0x90);
    const bool is_surrogate = lead == 0xed && bytes[1] >= 0xa0;
    const bool is_beyond = lead == 0xf4 && bytes[1] >= 0x90;
    return is_overlong || is_surrogate || is_beyond ? 0 : length;
}

static const char *reference_of(unsigned char c) {
    switch (c) {
    case '&':
        return "&amp;";
    case '<':
        return "&lt;";
    case '>':
        return "&gt;";
    case '"':
        return "&quot;";
    case '\'':
        return "&#39;";
    default:
        return NULL;
    }
}

void ingot_markup_text_n(ingot_markup *markup, const char *text, uint64_t size) {
    static const char replacement[] = "\xef\xbf\xbd"; /* U+FFFD */
    uint64_t i = 0;
    while (i < size && text[i] != '\0') {
        const unsigned char *bytes = (const unsigned char *)text + i;
        const uint64_t length = sequence_length(bytes, size - i);
        const bool is_control =
            (*bytes < 0x20 && *bytes != '\t' && *bytes != '\n') || *bytes == 0x7f;
        const char *reference = reference_of(*bytes);
        if (length == 0 || is_control) {
            append(markup, replacement, sizeof replacement - 1);
        } else if (reference != NULL) {
            append(markup, reference, strlen(reference));
        } else {
            append(markup, (const char *)bytes, length);
        }
        i += length == 0 ? 1 : length;
    }
}

void ingot_markup_text(ingot_markup *markup, const char *text) {
    ingot_markup_text_n(markup, text, strlen(text));
}

/* ---- elements ------------------------------------------------------------------------------ */

void ingot_svg_begin(ingot_markup *markup, double width, double height, const char *title) {
    ingot_markup_add(markup,
                     "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" "
                     "role=\"img\"><title>",
                     width, height);
    ingot_markup_text(markup, title);
    ingot_markup_add(markup, "</title>\n");
}

void ingot_svg_end(ingot_markup *markup) {
    ingot_markup_add(markup, "</svg>\n");
}

void ingot_svg_line(ingot_markup *markup, const char *class, double x1, double y1, double x2,
                    double y2) {
    ingot_markup_add(markup,
                     "<line class=\"%s\" x1=\"%.2f\" y1=\"%.2f\" x2=\"%.2f\" y2=\"%.2f\"/>\n",
                     class, x1, y1, x2, y2);
}

/* Ends an element that was left open before its ">", with a tooltip inside it. */
static void close_element(ingot_markup *markup, const char *name, const char *tooltip) {
    if (tooltip == NULL) {
        ingot_markup_add(markup, "/>\n");
        return;
    }
    ingot_markup_add(markup, "><title>");
    ingot_markup_text(markup, tooltip);
    ingot_markup_add(markup, "</title></%s>\n", name);
}

void ingot_svg_rect(ingot_markup *markup, const char *class, double x, double y, double width,
                    double height, const char *tooltip) {
    ingot_markup_add(markup,
                     "<rect class=\"%s\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\"",
                     class, x, y, width, height);
    close_element(markup, "rect", tooltip);
}

void ingot_svg_circle(ingot_markup *markup, const char *class, double x, double y, double radius,
                      const char *tooltip) {
    ingot_markup_add(markup, "<circle class=\"%s\" cx=\"%.2f\" cy=\"%.2f\" r=\"%.2f\"", class, x, y,
                     radius);
    close_element(markup, "circle", tooltip);
}

void ingot_svg_polyline(ingot_markup *markup, const char *class, const double *x, const double *y,
                        uint64_t count) {
    bool is_open = false;
    for (uint64_t i = 0; i < count; i++) {
        const bool is_point = isfinite(x[i]) && isfinite(y[i]);
        if (is_point) {
            if (!is_open) {
                ingot_markup_add(markup, "<polyline class=\"%s\" points=\"", class);
            }
            ingot_markup_add(markup, "%s%.2f,%.2f", is_open ? " " : "", x[i], y[i]);
        } else if (is_open) {
            ingot_markup_add(markup, "\"/>\n");
        }
        is_open = is_point;
    }
    if (is_open) {
        ingot_markup_add(markup, "\"/>\n");
    }
}

void ingot_svg_text(ingot_markup *markup, const char *class, double x, double y, const char *anchor,
                    const char *text) {
    ingot_markup_add(markup, "<text class=\"%s\" x=\"%.2f\" y=\"%.2f\" text-anchor=\"%s\">", class,
                     x, y, anchor);
    ingot_markup_text(markup, text);
    ingot_markup_add(markup, "</text>\n");
}

/* ---- axes ---------------------------------------------------------------------------------- */

void ingot_axis_from_zero(ingot_axis *axis, double high, unsigned ticks, double from, double to) {
    if (!isfinite(high) || high <= 0) {
        high = 1;
    }
    const double rough = high / (ticks == 0 ? 1 : ticks);
    const double exponent = floor(log10(rough));
    const double power = pow(10, exponent);
    const double mantissa = rough / power;
    /* 1e-9: a rough step that is round but for its last bits is not raised to the next one. */
    const double step = (mantissa <= 1 + 1e-9   ? 1
                         : mantissa <= 2 + 1e-9 ? 2
                         : mantissa <= 5 + 1e-9 ? 5
                                                : 10) *
                        power;
    const double digits = ceil(-log10(step) - 1e-9);
    *axis = (ingot_axis){.low = 0,
                         .high = ceil(high / step - 1e-9) * step,
                         .from = from,
                         .to = to,
                         .step = step,
                         .decimals = digits > 0 ? (unsigned)fmin(digits, 12) : 0};
}

double ingot_axis_at(const ingot_axis *axis, double value) {
    return axis->from + (value - axis->low) / (axis->high - axis->low) * (axis->to - axis->from);
}

unsigned ingot_axis_tick_count(const ingot_axis *axis) {
    return (unsigned)lround((axis->high - axis->low) / axis->step) + 1;
}
