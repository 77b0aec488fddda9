/* Slurm as the engine: jobs are written and submitted here, scheduled there (spec/zoo.md). */
#ifndef INGOT_ZOO_CLUSTER_H
#define INGOT_ZOO_CLUSTER_H

#include "zoo/manifest.h"
#include "zoo/shelf.h"

/* *out = product -> {"job", "state", "node", "reason"} of its latest task, as squeue and, where
 * accounting is on, sacct tell it; an empty object where nothing was submitted.  New reference.
 * Slurm that does not answer is a warning on stderr. */
ingot_status ingot_cluster_states(json_t **out, const ingot_shelf *shelf,
                                  ingot_error *error) INGOT_MUST_CHECK;

/* Whether Slurm has the task still before it, or at work. */
bool ingot_cluster_is_pending(const char *state);

#endif
