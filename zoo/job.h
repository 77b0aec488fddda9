/* A product on its way: statistics, conversion, evaluation, each a child process, and the record
 * that says how far it came (spec/zoo.md, section 4). */
#ifndef INGOT_ZOO_JOB_H
#define INGOT_ZOO_JOB_H

#include "zoo/product.h"

#include <sys/resource.h>
#include <sys/types.h>

typedef enum ingot_job_step {
    INGOT_STEP_STATISTICS,
    INGOT_STEP_CONVERT,
    INGOT_STEP_VERIFY,
    INGOT_STEP_NONE /* nothing is left to do */
} ingot_job_step;
const char *ingot_job_step_name(ingot_job_step step); /* the tool: "ingot-convert" */

typedef struct ingot_zoo_job {
    const ingot_manifest *manifest;
    const ingot_shelf *shelf;
    const ingot_zoo_product *product;
    ingot_product_keys keys;
    json_t *record;  /* owned */
    int lock;        /* of the product; negative: not held */
    int shared_lock; /* of the statistics or the sensitivity table that this job makes */
    ingot_job_step step;
    pid_t child; /* 0: none */
    bool is_forced;
    bool is_restarted;   /* a state of an interrupted conversion was refused, and is gone */
    bool is_remade;      /* its file was damaged, and is made anew */
    bool must_wait;      /* another makes anew what it shares with others */
    bool has_new_shared; /* what it shares with others was damaged, and is made anew */
    const char *device;
    unsigned threads;
    double step_started; /* monotonic seconds */
} ingot_zoo_job;

/* Takes the lock, reads the record and decides the first step; INGOT_ERR_LOCKED: somebody else is
 * at it, or makes what it shares with others.  is_forced: makes it anew in any case.  fingerprint:
 * of the model's folder. A job is ended with ingot_job_close whatever becomes of it. */
ingot_status ingot_job_open(ingot_zoo_job *job, const ingot_manifest *manifest,
                            const ingot_shelf *shelf, const ingot_zoo_product *product,
                            const char *fingerprint, bool is_forced,
                            ingot_error *error) INGOT_MUST_CHECK;
/* Starts the child of the step at hand, on job->device with job->threads. */
ingot_status ingot_job_start(ingot_zoo_job *job, ingot_error *error) INGOT_MUST_CHECK;
/* Takes the end of the child (both from wait4): the next step, or why the product failed,
 * or why it must wait. */
ingot_status ingot_job_finish(ingot_zoo_job *job, int wait_status, const struct rusage *usage,
                              ingot_error *error) INGOT_MUST_CHECK;
/* Puts a failure on record. */
void ingot_job_fail(ingot_zoo_job *job, const ingot_error *error);
/* Releases locks and record; the child must have ended. */
void ingot_job_close(ingot_zoo_job *job);

#endif
