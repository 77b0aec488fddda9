/* META of a converted container: where it came from and how it was made (spec/container.md,
 * section 9). */
#ifndef INGOT_META_H
#define INGOT_META_H

#include "calib/dataset.h"
#include "calib/stats.h"
#include "common/json.h"
#include "convert/plan.h"

typedef struct ingot_meta_job {
    const ingot_checkpoint *checkpoint;
    const ingot_model *model;
    const ingot_backend *backend;
    const ingot_plan *plan;
    const ingot_recipe *recipe;
    const ingot_text *text;       /* NULL: none */
    bool is_self_text;            /* which the model wrote */
    const ingot_windows *windows; /* with text */
    const ingot_stats *stats;     /* NULL: none */
    bool with_sha256;             /* of every shard of the source */
    bool is_forecast;             /* for its size alone: SHA-256 of zeros, no shard is read */
} ingot_meta_job;

/* *text: canonical JSON (integers and decimal strings only; no time, host, path or thread count),
 * released with free().  Nothing in it depends on anything but inputs, options and backend. */
ingot_status ingot_meta_create(char **text, const ingot_meta_job *job,
                               ingot_error *error) INGOT_MUST_CHECK;

/* A digest as the JSON string it has in META and in tables; NULL when out of memory. */
json_t *ingot_meta_hex(const uint8_t digest[16]);

#endif
