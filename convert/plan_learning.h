/* How long --effort best learns, and the table of a target of bits per weight takes: what a unit of
 * their work takes on a device. */
#ifndef INGOT_PLAN_LEARNING_H
#define INGOT_PLAN_LEARNING_H

#include "convert/plan_forecast.h"
#include "kernels/backend.h"

/* A piece of work on a device, to be timed. */
typedef ingot_status (*ingot_timed_work)(void *context);
/* *seconds of one call, the device being done with it: the least of several.  The first one warms
 * up: kernels and libraries of a device are loaded when they are first used, in every conversion
 * anew; *longer grows by what that took. */
ingot_status ingot_time_work(double *seconds, double *longer, const ingot_backend *backend,
                             ingot_timed_work work, void *context) INGOT_MUST_CHECK;

/* *out[rows][cols] = numbers between -1 and 1, always the same for a shape; in `arena`, which is of
 * `backend`. */
ingot_status ingot_random_matrix(float **out, const ingot_backend *backend, ingot_arena *arena,
                                 uint64_t rows, uint64_t cols) INGOT_MUST_CHECK;

/* Of tuning one block, or of distilling all of them. */
typedef struct ingot_learning_work {
    double steps;
    double pass_tokens;   /* that run through a block, */
    double learn_tokens;  /* and back as well */
    double behind_tokens; /* tuning: through all blocks behind it and the head */
    double head_tokens;   /* distillation: whose logits, or their gradients, are made */
} ingot_learning_work;

/* Seconds of a unit of it. */
typedef struct ingot_learning_pace {
    double pass;  /* of a token through a block, */
    double learn; /* there and back */
    double step;  /* of a block's codes and scales, after either */
    double head;  /* of a token's logits, or their gradient */
    double first; /* what first calls took longer */
} ingot_learning_pace;

/* Measures a step on random weights of the model's shape; *has_pace is false where its blocks have
 * so many weights that products are nearly all of the work.  flops: of products a second. */
ingot_status ingot_learning_measure(ingot_learning_pace *out, bool *has_pace,
                                    const ingot_forecast_job *job, const ingot_backend *backend,
                                    double flops, ingot_error *error) INGOT_MUST_CHECK;

#endif
