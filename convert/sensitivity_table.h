/* The kept table of sensitivities (spec/recipe.md, "The sensitivity table"): JSON, keyed by what
 * was measured, so that another target costs no second pass. */
#ifndef INGOT_SENSITIVITY_TABLE_H
#define INGOT_SENSITIVITY_TABLE_H

#include "convert/sensitivity.h"

/* What a table was measured on, and what this conversion asks for. */
typedef struct ingot_sensitivity_key {
    uint8_t source[16];  /* ingot_stats_model_digest of the checkpoint */
    uint8_t text[16];    /* of the texts, concatenated */
    uint8_t setting[16]; /* windows, measured widths, and the geometry of the matrices */
} ingot_sensitivity_key;

/* setting of the job; source and text are the caller's to fill. */
ingot_status ingot_sensitivity_setting(uint8_t setting[16],
                                       const ingot_sensitivity_job *job) INGOT_MUST_CHECK;

typedef enum ingot_table_state {
    INGOT_TABLE_ABSENT,
    INGOT_TABLE_READ,
    INGOT_TABLE_OTHER_SOURCE, /* whole, but measured on something else */
    INGOT_TABLE_OTHER_TEXT,
    INGOT_TABLE_OTHER_SETTING
} ingot_table_state;

/* out[job->count] when *state is INGOT_TABLE_READ.  INGOT_ERR_INPUT for a file that is no table, or
 * one that was damaged or edited: it is not replaced. */
ingot_status ingot_sensitivity_read(ingot_sensitivity *out, ingot_table_state *state,
                                    const char *path, const ingot_sensitivity_job *job,
                                    const ingot_sensitivity_key *key,
                                    ingot_error *error) INGOT_MUST_CHECK;
/* Replaces what is there. */
ingot_status ingot_sensitivity_write(const ingot_sensitivity *measured, const char *path,
                                     const ingot_sensitivity_job *job,
                                     const ingot_sensitivity_key *key,
                                     ingot_error *error) INGOT_MUST_CHECK;

#endif
