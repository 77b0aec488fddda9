/* ingot-convert: checkpoint (+ text or statistics) + recipe -> container. */
#ifndef INGOT_CONVERT_H
#define INGOT_CONVERT_H

#include "common/cli.h"
#include "convert/loop.h"
#include "convert/plan_measure.h"
#include "convert/recipe.h"

typedef struct ingot_convert_options {
    const char *model_dir, *output, *recipe_path, *stats, *sensitivity, *device, *devices;
    const char *texts[INGOT_MAX_TEXTS];
    uint64_t text_count;
    unsigned threads;
    uint64_t shard_size_bytes;
    bool is_dry_run, force, resumes, is_compressed, with_sha256, as_json;
    /* for a plan: bytes of the calibration text, of statistics as well; whether these are of one
     * that the model writes (calib/self_text.h); what the container is scored on */
    uint64_t text_bytes;
    bool stats_of_self_text;
    ingot_scoring_job scoring;
    ingot_recipe recipe; /* what options gave; the file fills the rest */
} ingot_convert_options;

/* What --json reports; NaN and empty where not computed. */
typedef struct ingot_convert_result {
    uint64_t bytes, source_bytes;
    double seconds, phase_seconds[INGOT_PHASE_COUNT];
    uint64_t phase_bytes[INGOT_PHASE_COUNT]; /* of one device, at its most; 0 on the cpu */
    uint64_t peak_device_bytes;              /* 0 on the cpu */
    double bits_per_weight;
    uint64_t fallbacks;
    unsigned memory_shortages;  /* times that memory was short and less of it was made to do */
    ingot_tune_result *tunings; /* [tuning_count], one a block; ingot_free */
    uint64_t tuning_count;
    ingot_distill_result distillation;
    uint8_t root[16], content_id[16];
    bool is_written;
    bool was_finished; /* by a run before: nothing was done; steps and what they came to are not
                          known any more */
    char path[4096];   /* of the container, of a set its first shard */
    json_t *forecast;  /* of a dry run (ingot_forecast_json); else NULL; the caller's to release */
    json_t *tensors; /* what became of each quantized tensor, step by step (spec/cli.md); NULL: not
                        written; the caller's to release */
} ingot_convert_result;

/* Command-line table and its handler (context: ingot_convert_options). */
extern const ingot_cli_spec ingot_convert_spec;
ingot_status ingot_convert_option(void *context, const char *name, const char *value,
                                  ingot_error *error);

/* Converts.  The output appears under its name only when it is complete and verified. */
ingot_status ingot_convert_run(ingot_convert_result *result, ingot_convert_options *options,
                               ingot_error *error) INGOT_MUST_CHECK;

/* The plan of a conversion, as the command line gives it (ingot_convert_option), for whoever plans
 * many: no device is opened, no text is read; what is measured is what *speeds lacks for the
 * seconds (NULL: these are NaN).  Of the texts and a statistics
 * file only that they are named counts: the calibration batch is taken to have all of its samples.
 * With a target of bits per weight the file has the size of the target.  An output that exists is
 * no error, and none need be named.  model_dir may be a config.json (convert/plan_config.h).  The
 * size of META is that of the longest numbers: file_bytes may be a few bytes more than the file
 * has.  *json (json may be NULL) is the whole of it, ingot_forecast_json, the caller's to release.
 */
ingot_status ingot_convert_plan(ingot_forecast *out, json_t **json, ingot_convert_options *options,
                                ingot_speeds *speeds, ingot_error *error) INGOT_MUST_CHECK;

/* The whole tool; returns the exit code. */
int ingot_convert_tool(int argc, char **argv);

#endif
