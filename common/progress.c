/* Progress on stderr.  A bar is drawn only on a terminal, at most ten times a second; finished
 * units of work are plain lines, on a terminal and in a log alike. */
#include "common/progress.h"

#include "common/cli.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define BAR_CELLS            24
#define REDRAW_SECONDS       0.1
#define FIRST_ESTIMATE_AFTER 0.5 /* seconds: earlier rates are noise */

double ingot_clock_seconds(void) {
    struct timespec now;
    if (clock_gettime(CLOCK_MONOTONIC, &now) != 0) {
        return 0.0;
    }
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void ingot_progress_begin(ingot_progress *progress, const char *label, const char *unit,
                          double total, bool quiet) {
    const char *terminal = getenv("TERM");
    *progress = (ingot_progress){
        .label = label,
        .unit = unit,
        .total = total,
        .start_seconds = ingot_clock_seconds(),
        .last_draw_seconds = -1.0,
        .is_terminal =
            isatty(STDERR_FILENO) == 1 && (terminal == NULL || strcmp(terminal, "dumb") != 0),
        .is_quiet = quiet,
        .is_drawn = false,
    };
}

static void clear_bar(ingot_progress *progress) {
    if (progress->is_drawn) {
        (void)fputs("\r\033[K", stderr);
        progress->is_drawn = false;
    }
}

void ingot_progress_update(ingot_progress *progress, double done) {
    if (progress->is_quiet || !progress->is_terminal) {
        return;
    }
    const double now = ingot_clock_seconds();
    const double elapsed_seconds = now - progress->start_seconds;
    if (progress->last_draw_seconds >= 0.0 && now - progress->last_draw_seconds < REDRAW_SECONDS) {
        return;
    }
    progress->last_draw_seconds = now;
    char text[256];
    int length = 0;
    if (progress->total > 0.0) {
        double fraction = done / progress->total;
        fraction = fraction < 0.0 ? 0.0 : fraction > 1.0 ? 1.0 : fraction;
        char bar[BAR_CELLS + 1];
        memset(bar, '.', BAR_CELLS);
        memset(bar, '#', (size_t)(fraction * BAR_CELLS));
        bar[BAR_CELLS] = '\0';
        length = snprintf(text, sizeof text, "%s [%s] %3.0f%%  %.0f/%.0f %s", progress->label, bar,
                          100.0 * fraction, done, progress->total, progress->unit);
    } else {
        length = snprintf(text, sizeof text, "%s %.0f %s", progress->label, done, progress->unit);
    }
    (void)fprintf(stderr, "\r\033[K%.*s", length < 0 ? 0 : 200, text);
    if (elapsed_seconds > FIRST_ESTIMATE_AFTER && done > 0.0) {
        const double rate = done / elapsed_seconds;
        (void)fprintf(stderr, "  %.*f %s/s", rate < 10.0 ? 2 : 0, rate, progress->unit);
        if (progress->total > done) {
            char left[32];
            ingot_format_seconds(left, sizeof left, (progress->total - done) / rate);
            (void)fprintf(stderr, "  %s left", left);
        }
    }
    (void)fflush(stderr);
    progress->is_drawn = true;
}

void ingot_progress_line(ingot_progress *progress, const char *format, ...) {
    if (progress->is_quiet) {
        return;
    }
    clear_bar(progress);
    va_list arguments;
    va_start(arguments, format);
    (void)vfprintf(stderr, format, arguments);
    va_end(arguments);
    (void)fputc('\n', stderr);
    (void)fflush(stderr);
    progress->last_draw_seconds = -1.0; /* the next update redraws at once */
}

void ingot_progress_end(ingot_progress *progress) {
    clear_bar(progress);
    (void)fflush(stderr);
}
