/* A backend whose first call of attention, in the first block of a model, is when SIGINT comes. */
#ifndef INGOT_TEST_SIGNAL_BACKEND_H
#define INGOT_TEST_SIGNAL_BACKEND_H

#include "common/files.h"
#include "kernels/backend.h"

#include <CUnit/Basic.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static ingot_status (*signal_attention)(void *, float *, const float *, const float *,
                                        const float *, const ingot_attention *);
static unsigned signal_calls;

static inline ingot_status signal_attend(void *context, float *out, const float *q, const float *k,
                                         const float *v, const ingot_attention *shape) {
    if (signal_calls++ == 0) {
        (void)raise(SIGINT); /* a second one would end the process */
    }
    return signal_attention(context, out, q, k, v, shape);
}

/* That `work` ends interrupted, with attention called once.  In a child: a signal stays for the
 * rest of the process. */
static inline void signal_expect(ingot_status (*work)(ingot_backend *device, void *context,
                                                      ingot_error *error),
                                 void *context) {
    int result = -1;
    const pid_t child = fork();
    CU_ASSERT_FATAL(child >= 0);
    if (child != 0) {
        CU_ASSERT_EQUAL(waitpid(child, &result, 0), child);
        CU_ASSERT_EQUAL(result, 0);
        return;
    }
    ingot_backend device; /* one of its own: threads of another are not in the child */
    ingot_error error;
    if (ingot_backend_open(&device, "cpu", 1, &error) != INGOT_OK) {
        _exit(2);
    }
    ingot_backend_ops ops = *device.ops;
    signal_attention = ops.attention;
    ops.attention = signal_attend;
    device.ops = &ops;
    ingot_interrupt_install();
    const ingot_status status = work(&device, context, &error);
    if (status != INGOT_ERR_INTERRUPTED || error.status != INGOT_ERR_INTERRUPTED ||
        strstr(error.reason, "SIGINT") == NULL) {
        _exit(3);
    }
    _exit(signal_calls == 1 ? 0 : 4);
}

#endif
