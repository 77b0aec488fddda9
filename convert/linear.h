/* One matrix from source values to codes, with its ledger record. */
#ifndef INGOT_LINEAR_H
#define INGOT_LINEAR_H

#include "convert/correct.h"
#include "convert/team.h"

/* Calibration statistics of a matrix's input, as it is after the fold, in device memory.  Absent:
 * gram NULL. */
typedef struct ingot_linear_data {
    const float *gram;               /* [cols][cols], H, whole */
    const float *plain_gram;         /* H before the fold (gram itself when there is none) */
    const ingot_gptq_factor *factor; /* of gram, for this group size */
    uint64_t tokens;
    const ingot_drift *drift; /* NULL: the target is the matrix itself */
} ingot_linear_data;

/* What the steps of a matrix gained; NaN where a step was not taken. */
typedef struct ingot_steps_taken {
    double share; /* of the correction that was made (convert/correct.h), */
    double gain;  /* and what it gained on the judges */
    /* Output errors relative to that of plain rounding: */
    double gptq;     /* after the column loop, before the polish */
    double polished; /* after the polish */
    /* convert/outlier_gain.h: what outliers gain, and smaller groups in their place */
    double outliers, groups;
    double left_out; /* of its outliers, which their type cannot hold (kernels/quantize.h) */
} ingot_steps_taken;

typedef struct ingot_linear_job {
    const ingot_backend *backend;
    /* Of a matrix that ranks share each has a job for its rows, from first_row on: source, row_fold
     * and results are of these, losses and errors of the whole.  rank.team NULL: all rows. */
    ingot_rank rank;
    uint64_t first_row;
    const char *file, *name;             /* for errors */
    const ingot_weight_view *source;     /* dense F32, F16 or BF16; device */
    const float *row_fold, *column_fold; /* device; NULL: none */
    ingot_quant_format format;
    uint64_t outlier_count;
    ingot_dtype outlier_dtype;
    ingot_method method;
    unsigned polish_rounds;
    ingot_linear_data data;
    float *target; /* not NULL: takes what the codes stand for, [rows][cols], device */
} ingot_linear_job;

/* out[rows][cols] (device) = source * row_fold * column_fold in binary32.  INGOT_ERR_NUMERIC names
 * the first value that is NaN or infinite. */
ingot_status ingot_linear_values(float *out, const ingot_linear_job *job,
                                 ingot_error *error) INGOT_MUST_CHECK;

/* Quantizes by the job's method; what ends worse than plain rounding (under H, or without data by
 * its weights) or over the bound below is replaced by it and flagged; a matrix whose plain scales
 * their type cannot hold is INGOT_ERR_NUMERIC.  The ledger's source digest and what depends on the
 * stored scales (low_precision_scales) are left alone.  *bound: ingot_linear_bound, or NaN where
 * plain rounding is the job's method.  Both arenas give device memory; results lie in arena;
 * scratch may be reset afterwards. */
ingot_status ingot_linear_quantize(ingot_quantized *out, ingot_ledger *ledger,
                                   ingot_steps_taken *steps, double *bound,
                                   const ingot_linear_job *job, ingot_arena *arena,
                                   ingot_arena *scratch, ingot_error *error) INGOT_MUST_CHECK;

/* Errors of a result that may have changed after ingot_linear_quantize, into its record
 * (ingot_ledger_learn).  target: device, as
 * that call left it, and not in scratch, which is reset. */
ingot_status ingot_linear_measure(ingot_ledger *ledger, const ingot_linear_job *job,
                                  const float *target, const ingot_quantized *q,
                                  ingot_arena *scratch) INGOT_MUST_CHECK;

/* *bound: the largest weight error that a verifier accepts (spec/quality.md, "Bound on the weight
 * error"), and whether a result that changed after ingot_linear_quantize is over it.  All rows are
 * the job's; scratch (device) is reset. */
ingot_status ingot_linear_bound(double *bound, const ingot_linear_job *job, ingot_arena *scratch,
                                ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_linear_strays(bool *strays, const ingot_linear_job *job, double bound,
                                 const ingot_quantized *q, ingot_arena *scratch) INGOT_MUST_CHECK;

/* Ledger record of a dense tensor. */
void ingot_ledger_copy(ingot_ledger *ledger);
/* The weight error of a matrix that was tuned or distilled, into its record.  What changed is plain
 * rounding no longer, if it had fallen back to that: it is of `method`, the recipe's. */
void ingot_ledger_learn(ingot_ledger *ledger, ingot_method method, double weight_error);

#endif
