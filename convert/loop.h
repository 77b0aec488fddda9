/* The main loop of a conversion: blocks in order, each collected on the quantized prefix,
 * quantized, written and propagated (spec/architecture.md).  Only one block of weights, its
 * statistics and the hidden states of the calibration batch are resident. */
#ifndef INGOT_LOOP_H
#define INGOT_LOOP_H

#include "calib/dataset.h"
#include "calib/forward.h"
#include "calib/stats.h"
#include "common/progress.h"
#include "convert/linear.h"
#include "convert/plan.h"
#include "convert/waiting.h"

typedef enum ingot_phase {
    INGOT_PHASE_PLAN,
    INGOT_PHASE_READ,
    INGOT_PHASE_COLLECT,
    INGOT_PHASE_FOLD,
    INGOT_PHASE_QUANTIZE,
    INGOT_PHASE_TUNE,
    INGOT_PHASE_DISTILL,
    INGOT_PHASE_WRITE,
    INGOT_PHASE_PROPAGATE,
    INGOT_PHASE_FINISH,
    INGOT_PHASE_COUNT
} ingot_phase;
const char *ingot_phase_name(ingot_phase phase);

/* What tuning a block came to (convert/tune.h): mean squared error of its output, per value, on the
 * windows that are held out. */
typedef struct ingot_tune_result {
    double before, after;
    double divergence[2]; /* of the model with exact blocks behind this one: tuned, and not */
    unsigned step;        /* whose iterate was kept; 0: the start */
} ingot_tune_result;

/* What distillation came to (convert/distill.h): mean divergence in nats on the windows that are
 * held out. */
typedef struct ingot_distill_result {
    double before, after;
    unsigned step; /* whose scales were kept; 0: those it began with */
    bool has_run;
} ingot_distill_result;

/* What is saved after every block (convert/resume.h). */
typedef struct ingot_resume ingot_resume;

typedef struct ingot_loop_job {
    const ingot_checkpoint *checkpoint;
    const ingot_weight_source *source; /* over the checkpoint */
    const ingot_model *model;
    const ingot_backend *backend;
    const ingot_backend *others; /* [other_count]: further devices, each like the first */
    unsigned other_count;
    const ingot_plan *plan;
    const ingot_windows *windows; /* calibration batch, or NULL */
    const ingot_stats *stats;     /* a statistics file, or NULL */
    bool is_tuned;                /* effort best: blocks are tuned (convert/tune.h) and distilled
                                     (convert/distill.h), as the plan's steps say; wants windows */
    uint64_t seed;
    ingot_writer *writer;
    ingot_resume *resume;   /* NULL: nothing is saved */
    ingot_waiting *waiting; /* where matrices that wait for distillation are saved; NULL likewise */
    uint64_t
        first_block; /* blocks before it are finished, in `stored`; tensors that were put stay */
    const ingot_writer *stored; /* the writer, for every device */
    bool spares_device;         /* hidden states live in host memory from the start */
    unsigned *shortages; /* counted: states that went to the host, calls of fewer windows, and
                            times the loop began anew for want of memory */
    ingot_progress *progress;
    double *phase_seconds;              /* [INGOT_PHASE_COUNT], added to */
    uint64_t *phase_bytes;              /* [INGOT_PHASE_COUNT], device memory at its most: raised */
    ingot_ledger *ledgers;              /* [plan->count], filled */
    ingot_steps_taken *steps;           /* [plan->count], filled for quantized tensors */
    ingot_tune_result *tunings;         /* [model->layers], filled where blocks are tuned */
    ingot_distill_result *distillation; /* filled where blocks are tuned */
} ingot_loop_job;

/* Windows from which on some are held out of the statistics; without them nothing is corrected. */
#define INGOT_JUDGED_FROM 8u
/* How many of `windows` are held out, the last ones. */
uint64_t ingot_loop_judges(const ingot_plan *plan, uint64_t windows, bool is_tuned);

/* Converts every tensor of the plan and puts it into the writer.  Out of memory it goes on from the
 * last block that is whole in the writer, with less of it (spec/decisions/0022). */
ingot_status ingot_loop_run(const ingot_loop_job *job, ingot_error *error) INGOT_MUST_CHECK;

/* The same without that: ends when memory is short. */
ingot_status ingot_loop_try(const ingot_loop_job *job, ingot_error *error) INGOT_MUST_CHECK;

/* Seconds since *since, which becomes now. */
double ingot_lap(double *since);

#endif
