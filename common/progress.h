/* Progress on stderr: a bar with rate and time left on a terminal, plain lines otherwise. */
#ifndef INGOT_PROGRESS_H
#define INGOT_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct ingot_progress {
    const char *label; /* "converting" */
    const char *unit;  /* "blocks", "windows", "MB" */
    double total;      /* in units; 0 when not known */
    double start_seconds;
    double patience_seconds; /* 0, or what the caller sets: a terminal is shown nothing before */
    double last_draw_seconds;
    double last_line_seconds, last_line_done; /* of a line in a log */
    bool is_terminal;
    bool is_quiet;
    bool is_drawn;
} ingot_progress;

/* quiet: nothing is ever printed. label and unit must outlive the progress. */
void ingot_progress_begin(ingot_progress *progress, const char *label, const char *unit,
                          double total, bool quiet);
/* On a terminal: redraws the bar at most ten times a second.  In a log: a line where there was none
 * for a minute and more is done since. */
void ingot_progress_update(ingot_progress *progress, double done);
/* For work that reports bytes (ingot_check_full): progress is an ingot_progress whose unit is MB,
 * or NULL, of which nothing is shown.  False once the tool is interrupted. */
bool ingot_progress_bytes(void *progress, uint64_t done_bytes, uint64_t total_bytes);
/* A finished unit of work: clears the bar, prints one plain line, redraws.  Printed on a terminal
 * and in a log alike. */
void ingot_progress_line(ingot_progress *progress, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* Clears the bar. */
void ingot_progress_end(ingot_progress *progress);

/* Monotonic wall clock in seconds. */
double ingot_clock_seconds(void);

#endif
