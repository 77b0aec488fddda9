/* Going on with an interrupted conversion (--resume): what is saved after every block, and when it
 * is believed (spec/resume.md).
 *
 * The tensors of finished blocks lie in the partial output, but for matrices that wait for
 * distillation (convert/waiting.h).  The state beside it, OUT.resume, is a container of profile 2
 * with what they do not say: the growing sections of the fronts, and what --json reports of
 * finished blocks.  Hidden states are not saved: they are recomputed from what is written
 * (convert/replay.h), since they are large and change with every block. */
#ifndef INGOT_RESUME_H
#define INGOT_RESUME_H

#include "convert/linear.h"
#include "convert/loop.h"

/* "OUT.resume" into path[4096]; INGOT_ERR_USAGE when that is too long. */
ingot_status ingot_resume_path(char path[4096], const char *output,
                               ingot_error *error) INGOT_MUST_CHECK;
/* Whether a state of ours lies there, whole or not: a container that is not said to be something
 * else. */
bool ingot_resume_is_state(const char *path);

typedef struct ingot_resume_job {
    const char *path; /* of the state */
    const ingot_checkpoint *checkpoint;
    const ingot_plan *plan;
    const ingot_writer_plan *writer_plan; /* its META says what the conversion is */
    ingot_writer *writer;
    ingot_waiting *waiting; /* NULL: no matrix waits for distillation */
    uint64_t layers;
    ingot_ledger *ledgers;      /* [plan->count] */
    ingot_steps_taken *steps;   /* [plan->count] */
    ingot_tune_result *tunings; /* [layers]; NULL: blocks are not tuned */
} ingot_resume_job;

/* References to all of the job but its path, which is copied. */
ingot_status ingot_resume_create(ingot_resume **out, const ingot_resume_job *job,
                                 ingot_error *error) INGOT_MUST_CHECK;
/* Waits for a state on its way. NULL is fine. */
void ingot_resume_destroy(ingot_resume *resume);

/* Whether the state is whole and of this conversion, without a look at the partial output (the
 * job's writer is not needed): INGOT_ERR_STATE says why not. */
ingot_status ingot_resume_check(const ingot_resume_job *job, ingot_error *error) INGOT_MUST_CHECK;
/* Reads the state and takes over what it says: *blocks are finished.  Reads all that is written and
 * its source tensors.  INGOT_ERR_STATE says why a state is refused: damaged, of another model,
 * text, recipe, version, backend or instruction set, or not that of the partial output. */
ingot_status ingot_resume_load(ingot_resume *resume, uint64_t *blocks,
                               ingot_error *error) INGOT_MUST_CHECK;

/* Saves the state of now, `blocks` being finished, in the background: what was put becomes durable,
 * then the state replaces the one before.  Nothing may be on its way to the writer.  The status of
 * the state before is that of this call. */
ingot_status ingot_resume_save(ingot_resume *resume, uint64_t blocks,
                               ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_resume_wait(ingot_resume *resume, ingot_error *error) INGOT_MUST_CHECK;
/* Blocks of the last state that is durable; 0: there is none. */
uint64_t ingot_resume_blocks(const ingot_resume *resume);

#endif
