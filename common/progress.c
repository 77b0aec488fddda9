/* Progress on stderr.  A bar is drawn only on a terminal, at most ten times a second; finished
 * units of work are plain lines, on a terminal and in a log alike.  Work that has no such units, or
 * long ones, has a line a minute in a log. */
#include "common/progress.h"

#include "common/cli.h"
#include "common/files.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define BAR_CELLS            24
#define LEAST_CELLS          4 /* a shorter bar shows nothing */
#define REDRAW_SECONDS       0.1
#define FIRST_ESTIMATE_AFTER 0.5  /* seconds: earlier rates are noise */
#define LINE_SECONDS         60.0 /* without a line in a log, after which it gets one */
#define TEXT_BYTES           256

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
        .last_line_seconds = ingot_clock_seconds(),
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

static double share_of(const ingot_progress *progress, double done) {
    const double fraction = done / progress->total;
    return fraction < 0.0 ? 0.0 : fraction > 1.0 ? 1.0 : fraction;
}

static void append(char text[TEXT_BYTES], const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void append(char text[TEXT_BYTES], const char *format, ...) {
    const size_t length = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    (void)vsnprintf(text + length, TEXT_BYTES - length, format, arguments);
    va_end(arguments);
}

/* How far, how fast, how long still; a bar behind the label. */
static void describe(const ingot_progress *progress, char text[TEXT_BYTES], const char *bar,
                     double done, double now) {
    const double elapsed_seconds = now - progress->start_seconds;
    text[0] = '\0';
    append(text, "%s", progress->label);
    if (progress->total > 0.0) {
        append(text, "%s %3.0f%%  %.0f/%.0f %s", bar, 100.0 * share_of(progress, done), done,
               progress->total, progress->unit);
    } else {
        append(text, " %.0f %s", done, progress->unit);
    }
    if (elapsed_seconds > FIRST_ESTIMATE_AFTER && done > 0.0) {
        const double rate = done / elapsed_seconds;
        append(text, "  %.*f %s/s", rate < 10.0 ? 2 : 0, rate, progress->unit);
        if (progress->total > done) {
            char left[32];
            ingot_format_seconds(left, sizeof left, (progress->total - done) / rate);
            append(text, "  %s left", left);
        }
    }
}

/* Of the terminal: what is wider would not be drawn over, but scroll. */
static size_t terminal_columns(void) {
    struct winsize size;
    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

static void draw_bar(ingot_progress *progress, double done, double now) {
    char text[TEXT_BYTES], bar[BAR_CELLS + 4] = "";
    if (progress->last_draw_seconds >= 0.0 && now - progress->last_draw_seconds < REDRAW_SECONDS) {
        return;
    }
    progress->last_draw_seconds = now;
    const size_t columns = terminal_columns() - 1; /* in the last one some begin a new line */
    describe(progress, text, "", done, now);
    const size_t others = strlen(text) + 3; /* " [" and "]" */
    const size_t room = columns > others ? columns - others : 0;
    const size_t cells = room < BAR_CELLS ? room : BAR_CELLS;
    if (progress->total > 0.0 && cells >= LEAST_CELLS) {
        memcpy(bar, " [", 2);
        memset(bar + 2, '.', cells);
        memset(bar + 2, '#', (size_t)(share_of(progress, done) * (double)cells));
        bar[2 + cells] = ']';
        describe(progress, text, bar, done, now);
    }
    (void)fprintf(stderr, "\r\033[K%.*s", (int)columns, text);
    (void)fflush(stderr);
    progress->is_drawn = true;
}

void ingot_progress_update(ingot_progress *progress, double done) {
    if (progress->is_quiet) {
        return;
    }
    const double now = ingot_clock_seconds();
    if (progress->is_terminal) {
        if (now - progress->start_seconds >= progress->patience_seconds) {
            draw_bar(progress, done, now);
        }
    } else if (now - progress->last_line_seconds >= LINE_SECONDS &&
               done != progress->last_line_done) {
        char text[TEXT_BYTES];
        describe(progress, text, "", done, now);
        progress->last_line_done = done;
        ingot_progress_line(progress, "%s", text);
    }
}

bool ingot_progress_bytes(void *progress, uint64_t done_bytes, uint64_t total_bytes) {
    ingot_progress *shown = progress;
    if (shown != NULL) {
        shown->total = (double)total_bytes / 1e6;
        ingot_progress_update(shown, (double)done_bytes / 1e6);
    }
    return !ingot_interrupted();
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
    progress->last_line_seconds = ingot_clock_seconds();
}

void ingot_progress_end(ingot_progress *progress) {
    clear_bar(progress);
    (void)fflush(stderr);
}
