/* Signals that end a run: a flag that long loops poll (common/files.h). */
#include "common/files.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t interrupt_signal;

static void on_signal(int number) {
    interrupt_signal = number;
}

void ingot_interrupt_install(void) {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    /* The second signal of a kind ends the process at once, for those who cannot wait. */
    action.sa_flags = (int)(SA_RESTART | SA_RESETHAND);
    (void)sigemptyset(&action.sa_mask);
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
    struct sigaction old_action;
    if (sigaction(SIGHUP, NULL, &old_action) == 0 && old_action.sa_handler != SIG_IGN) {
        (void)sigaction(SIGHUP, &action, NULL); /* under nohup it stays ignored */
    }
    /* A file over RLIMIT_FSIZE is to be an error of that write, not the end of the process. */
    (void)signal(SIGXFSZ, SIG_IGN);
}

bool ingot_interrupted(void) {
    return interrupt_signal != 0;
}

ingot_status ingot_interrupt_check(ingot_error *error) {
    if (interrupt_signal == 0) {
        return INGOT_OK;
    }
    return ingot_error_set(error, INGOT_ERR_INTERRUPTED, NULL, NULL, "run it again",
                           "interrupted by %s",
                           interrupt_signal == SIGINT    ? "SIGINT"
                           : interrupt_signal == SIGTERM ? "SIGTERM"
                                                         : "SIGHUP");
}
