/* Work that a signal is to end, in a child: a signal stays for the rest of a process. */
#ifndef INGOT_TEST_SIGNAL_CHILD_H
#define INGOT_TEST_SIGNAL_CHILD_H

#include "common/files.h"

#include <CUnit/Basic.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef ingot_status (*signal_work)(void *context, ingot_error *error);

/* That `work`, which raises SIGINT, ends interrupted by it. */
static inline void signal_expect(signal_work work, void *context) {
    int result = -1;
    const pid_t child = fork();
    CU_ASSERT_FATAL(child >= 0);
    if (child == 0) {
        ingot_error error = {0};
        ingot_interrupt_install();
        const ingot_status status = work(context, &error);
        const bool is_told = error.status == status && strstr(error.reason, "SIGINT") != NULL;
        _exit(status == INGOT_ERR_INTERRUPTED && is_told ? 0 : 1);
    }
    CU_ASSERT_EQUAL(waitpid(child, &result, 0), child);
    CU_ASSERT_EQUAL(result, 0);
}

#endif
