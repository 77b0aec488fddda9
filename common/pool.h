/* A thread pool for fixed tiles of work.
 *
 * Determinism: the caller cuts the work into tiles whose boundaries do not depend on the number of
 * threads, each tile writes its own output, and reductions over tiles are done by the caller in
 * index order.  Then results are the same for any thread count (architecture.md, "Same bytes"). */
#ifndef INGOT_POOL_H
#define INGOT_POOL_H

#include "ingot_status.h"

#include <stddef.h>

typedef struct ingot_pool ingot_pool;
/* index: 0..count-1, each exactly once; worker: 0..threads-1, for per-thread scratch. */
typedef void (*ingot_task)(void *context, size_t index, unsigned worker);

/* threads = 0: one per usable CPU (affinity mask).  At most 256. */
ingot_status ingot_pool_create(ingot_pool **out, unsigned threads) INGOT_MUST_CHECK;
void ingot_pool_destroy(ingot_pool *pool);
unsigned ingot_pool_threads(const ingot_pool *pool);
/* Runs task for every index and returns when all are done; the calling thread is worker 0.
 * A NULL pool runs on the caller alone.  Not re-entrant: a task must not call it on its pool. */
void ingot_pool_run(ingot_pool *pool, size_t count, ingot_task task, void *context);

/* Of a task that can fail; *error is its own, empty when it begins. */
typedef ingot_status (*ingot_attempt)(void *context, size_t index, unsigned worker,
                                      ingot_error *error);
/* The same for such tasks.  Returns the status and gives the error (which may be NULL) of the least
 * index that failed, whatever the number of threads; some with a larger index are then left out,
 * none with a smaller one is. */
ingot_status ingot_pool_try(ingot_pool *pool, size_t count, ingot_attempt attempt, void *context,
                            ingot_error *error) INGOT_MUST_CHECK;

#endif
