/* common/progress.h: what a log gets of long work, and a terminal. */
#include "common/progress.h"
#include "suite.h"

#include <fcntl.h>
#include <string.h>
#include <sys/ioctl.h>

#define LONG_SECONDS 61.0 /* more than a line a minute */

static char printed[1024];

/* Updates with stderr in a file, whose text is in `printed` then. */
static void update(ingot_progress *progress, double done) {
    FILE *file = tmpfile();
    CU_ASSERT_PTR_NOT_NULL_FATAL(file);
    (void)fflush(stderr);
    const int saved = dup(STDERR_FILENO);
    (void)dup2(fileno(file), STDERR_FILENO);
    ingot_progress_update(progress, done);
    (void)fflush(stderr);
    (void)dup2(saved, STDERR_FILENO);
    (void)close(saved);
    rewind(file);
    printed[fread(printed, 1, sizeof printed - 1, file)] = '\0';
    (void)fclose(file);
}

/* As if so much time had passed. */
static void pass(ingot_progress *progress, double seconds) {
    progress->start_seconds -= seconds;
    progress->last_line_seconds -= seconds;
}

/* Of what depends on the clock the beginning is compared. */
static void begins(const char *text) {
    CU_ASSERT_NSTRING_EQUAL(printed, text, strlen(text));
}

static void test_log(void) {
    ingot_progress progress;
    ingot_progress_begin(&progress, "scoring", "windows", 40, false);
    progress.is_terminal = false;
    update(&progress, 1);
    CU_ASSERT_STRING_EQUAL(printed, ""); /* short work */
    pass(&progress, LONG_SECONDS);
    update(&progress, 0);
    CU_ASSERT_STRING_EQUAL(printed, ""); /* nothing done */
    update(&progress, 10);
    begins("scoring  25%  10/40 windows  0.16 windows/s  3m 0");
    CU_ASSERT_PTR_NOT_NULL(strstr(printed, "s left\n"));
    update(&progress, 11);
    CU_ASSERT_STRING_EQUAL(printed, ""); /* a minute has not passed */
    pass(&progress, LONG_SECONDS);
    update(&progress, 10);
    CU_ASSERT_STRING_EQUAL(printed, ""); /* no more is done */
    update(&progress, 8);                /* begun anew with less at once */
    begins("scoring  20%  8/40 windows  0.07 windows/s  8m ");
    ingot_progress_begin(&progress, "checking", "MB", 0, false);
    progress.is_terminal = false;
    pass(&progress, LONG_SECONDS);
    update(&progress, 6100);
    begins("checking 6100 MB  100 MB/s\n");
    progress.is_quiet = true;
    pass(&progress, LONG_SECONDS);
    update(&progress, 9000);
    CU_ASSERT_STRING_EQUAL(printed, "");
}

/* Updates with stderr in a terminal of so many columns. */
static void update_terminal(ingot_progress *progress, double done, unsigned short columns) {
    const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    CU_ASSERT_FATAL(terminal >= 0 && grantpt(terminal) == 0 && unlockpt(terminal) == 0);
    const int end = open(ptsname(terminal), O_RDWR | O_NOCTTY);
    const struct winsize size = {.ws_row = 24, .ws_col = columns};
    CU_ASSERT_FATAL(end >= 0 && ioctl(terminal, TIOCSWINSZ, &size) == 0);
    (void)fflush(stderr);
    const int saved = dup(STDERR_FILENO);
    (void)dup2(end, STDERR_FILENO);
    progress->last_draw_seconds = -1;
    ingot_progress_update(progress, done);
    (void)fflush(stderr);
    (void)dup2(saved, STDERR_FILENO);
    (void)close(saved);
    const ssize_t count = read(terminal, printed, sizeof printed - 1);
    printed[count > 0 ? count : 0] = '\0';
    (void)close(end);
    (void)close(terminal);
}

static void test_terminal(void) {
    ingot_progress progress;
    ingot_progress_begin(&progress, "checking", "MB", 0, false);
    progress.is_terminal = true;
    update_terminal(&progress, 5, 80);
    CU_ASSERT_STRING_EQUAL(printed, "\r\033[Kchecking 5 MB");
    update(&progress, 6);
    CU_ASSERT_STRING_EQUAL(printed, ""); /* at most ten times a second */
    ingot_progress_begin(&progress, "scoring", "windows", 40, false);
    progress.is_terminal = true;
    progress.patience_seconds = LONG_SECONDS - 1;
    update(&progress, 9);
    CU_ASSERT_STRING_EQUAL(printed, ""); /* it may be over soon */
    progress.start_seconds -= LONG_SECONDS;
    update_terminal(&progress, 10, 120);
    begins("\r\033[Kscoring [######..................]  25%  10/40 windows  0.16 windows/s  3m 0");
    update_terminal(&progress, 50, 120); /* more than was thought */
    CU_ASSERT_PTR_NOT_NULL(strstr(printed, "[########################] 100%  50/40 windows"));
}

/* A line that is too long for the terminal cannot be drawn over. */
static void test_narrow(void) {
    static const struct {
        unsigned short columns;
        const char *text;
    } cases[] = {
        {80, "\r\033[Kscoring [#####...............]  25%  10/40 windows  0.16 windows/s  3m 0"},
        {64, "\r\033[Kscoring [#...]  25%  10/40 windows  0.16 windows/s  3m 0"},
        {63, "\r\033[Kscoring  25%  10/40 windows  0.16 windows/s  3m 0"},
        {20, "\r\033[Kscoring  25%  10/40"},
        {1, "\r\033[K"},
    };
    ingot_progress progress;
    ingot_progress_begin(&progress, "scoring", "windows", 40, false);
    progress.is_terminal = true;
    progress.start_seconds -= LONG_SECONDS;
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        update_terminal(&progress, 10, cases[i].columns);
        begins(cases[i].text);
        CU_ASSERT(strlen(printed) < cases[i].columns + strlen("\r\033[K"));
    }
}

int main(void) {
    static const CU_TestInfo tests[] = {
        {"log", test_log},
        {"terminal", test_terminal},
        {"a narrow terminal", test_narrow},
        CU_TEST_INFO_NULL,
    };
    return suite_run("progress", tests);
}
