/* One thread beside the caller that runs one job at a time: reading ahead, writing behind. */
#ifndef INGOT_WORKER_H
#define INGOT_WORKER_H

#include "ingot_status.h"

typedef struct ingot_worker ingot_worker;

/* A job; *error is the worker's own and reaches the caller of the next wait. */
typedef ingot_status (*ingot_job)(void *context, ingot_error *error);

ingot_status ingot_worker_create(ingot_worker **out) INGOT_MUST_CHECK;
/* Waits for the job at hand, whose status is lost. NULL is fine. */
void ingot_worker_destroy(ingot_worker *worker);
/* Starts a job; the one before must have been waited for.  context stays the caller's and must
 * live until the next wait. */
void ingot_worker_start(ingot_worker *worker, ingot_job job, void *context);
/* Returns when the job is done, with its status and error; INGOT_OK when there is none.  A job's
 * status is given once. */
ingot_status ingot_worker_wait(ingot_worker *worker, ingot_error *error) INGOT_MUST_CHECK;

#endif
