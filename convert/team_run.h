/* Runs a conversion on several devices, a thread for each. */
#ifndef INGOT_CONVERT_TEAM_RUN_H
#define INGOT_CONVERT_TEAM_RUN_H

#include "convert/loop.h"
#include "convert/team.h"

/* One device's part: job->backend is the device, job->windows are its windows, the last `judges` of
 * which every device has.  job->writer is NULL but for rank 0. */
typedef ingot_status ingot_rank_run(const ingot_loop_job *job, const ingot_rank *rank,
                                    uint64_t judges, ingot_error *error);

/* Calls run for the ranks 0 (in this thread, on job->backend) .. size-1 (on job->others).  The
 * error is that of the rank that left first. */
ingot_status ingot_team_run(const ingot_loop_job *job, unsigned size, uint64_t judges,
                            ingot_rank_run *run, ingot_error *error) INGOT_MUST_CHECK;

#endif
