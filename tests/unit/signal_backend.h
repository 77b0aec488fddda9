/* A backend whose first call of attention, in the first block of a model, is when SIGINT comes. */
#ifndef INGOT_TEST_SIGNAL_BACKEND_H
#define INGOT_TEST_SIGNAL_BACKEND_H

#include "kernels/backend.h"
#include "signal_child.h"

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

typedef struct signal_run {
    ingot_status (*work)(ingot_backend *device, void *context, ingot_error *error);
    void *context;
} signal_run;

static inline ingot_status signal_run_once(void *context, ingot_error *error) {
    const signal_run *run = context;
    ingot_backend device; /* one of its own: threads of another are not in the child */
    INGOT_TRY(ingot_backend_open(&device, "cpu", 1, error));
    ingot_backend_ops ops = *device.ops;
    signal_attention = ops.attention;
    ops.attention = signal_attend;
    device.ops = &ops;
    const ingot_status status = run->work(&device, run->context, error);
    ingot_backend_close(&device);
    return signal_calls == 1 ? status : INGOT_ERR_INTERNAL;
}

/* That `work` ends interrupted, with attention called once. */
static inline void signal_expect_on_backend(ingot_status (*work)(ingot_backend *device,
                                                                 void *context, ingot_error *error),
                                            void *context) {
    signal_expect(signal_run_once, &(signal_run){work, context});
}

#endif
