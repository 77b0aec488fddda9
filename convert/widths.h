/* Widths by measured sensitivity (--target-bpw): reads or measures the table, chooses, and changes
 * the plan before anything is written (spec/recipe.md, "Widths by sensitivity"). */
#ifndef INGOT_WIDTHS_H
#define INGOT_WIDTHS_H

#include "calib/dataset.h"
#include "convert/plan.h"

typedef struct ingot_widths_job {
    const ingot_checkpoint *checkpoint;
    const ingot_weight_source *source; /* over the checkpoint */
    const ingot_model *model;
    const ingot_backend *backend;
    const ingot_recipe *recipe; /* target_bpw is set */
    const ingot_text *text;
    const ingot_windows *windows; /* the calibration batch */
    const char *table;            /* path of the sensitivity table; NULL: it is not kept */
    unsigned *shortages;          /* counted, as of a loop's job */
} ingot_widths_job;

/* Gives every linear of the plan whose width no rule states the width that makes the sum of
 * sensitivities least, the size of all quantized tensors being at most target_bpw a weight and at
 * least 99.5 % of that.  INGOT_ERR_USAGE when no choice of widths lies there; the error names the
 * nearest size.  Says on stderr where the sensitivities came from. */
ingot_status ingot_widths_choose(ingot_plan *plan, const ingot_widths_job *job,
                                 ingot_error *error) INGOT_MUST_CHECK;

#endif
