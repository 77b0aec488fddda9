/* Matrices that wait for distillation (convert/distill.h), on disk: what --resume needs of them.
 *
 * They are in no partial output, which takes each tensor once, and are not packed, so that what is
 * read back is what waited, bit by bit.  The file, OUT.waiting.partial, is a container of profile 2
 * that is never finished: the growing sections of its front are saved in the state
 * (convert/resume.h, spec/resume.md section 2), as those of the partial output are. */
#ifndef INGOT_WAITING_H
#define INGOT_WAITING_H

#include "convert/plan.h"
#include "format/container_write.h"
#include "kernels/quantize.h"

typedef struct ingot_waiting ingot_waiting;

/* "OUT.waiting.partial" into path[4096]; INGOT_ERR_USAGE when that is too long. */
ingot_status ingot_waiting_path(char path[4096], const char *output,
                                ingot_error *error) INGOT_MUST_CHECK;
/* Whether tensor `index` of the plan is one that waits, of a conversion that distils. */
bool ingot_waiting_is_of(const ingot_plan *plan, uint64_t index);
/* Bytes of the file, but for its front. */
uint64_t ingot_waiting_bytes(const ingot_plan *plan);

/* A new file in place of what may be there; or, with goes_on, the one that an interrupted run left:
 * INGOT_ERR_NOT_FOUND where there is none.  A reference to the plan. */
ingot_status ingot_waiting_create(ingot_waiting **out, const char *output, const ingot_plan *plan,
                                  bool goes_on, ingot_error *error) INGOT_MUST_CHECK;
/* The file goes, unless an interrupted run left it or its writer keeps it; NULL is fine. */
void ingot_waiting_destroy(ingot_waiting *waiting);
/* The file goes in any case: all that waited is written. NULL is fine. */
void ingot_waiting_remove(ingot_waiting *waiting);

/* Its writer, for what a state says of it. */
ingot_writer *ingot_waiting_writer(ingot_waiting *waiting);
/* The writer's number of tensor `index` of the plan, which waits. */
uint64_t ingot_waiting_number(const ingot_waiting *waiting, uint64_t index);

/* Writes a matrix (host memory) and its record.  Not thread safe. */
ingot_status ingot_waiting_put(ingot_waiting *waiting, uint64_t index, const ingot_quantized *q,
                               const ingot_ledger *ledger, ingot_error *error) INGOT_MUST_CHECK;
/* *q = a matrix that was put, in memory from the arena (host). */
ingot_status ingot_waiting_load(ingot_quantized *q, const ingot_waiting *waiting, uint64_t index,
                                ingot_arena *arena, ingot_error *error) INGOT_MUST_CHECK;

#endif
