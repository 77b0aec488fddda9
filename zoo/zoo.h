/* ingot-zoo: a manifest of models, recipes and products -> a shelf of verified files and a report
 * (spec/zoo.md). */
#ifndef INGOT_ZOO_H
#define INGOT_ZOO_H

#include "common/cli.h"
#include "zoo/manifest.h"
#include "zoo/shelf.h"

#define INGOT_ZOO_MAX_ONLY 256u

typedef struct ingot_zoo_options {
    const char *manifest_path;
    uint64_t jobs, threads; /* 0: as the manifest says */
    const char *only[INGOT_ZOO_MAX_ONLY];
    uint64_t only_count;   /* 0: all products */
    const char *device;    /* takes the place of the manifest's; NULL: those */
    bool until_statistics; /* run: products stop there */
    const char *folder;    /* of the report's files; NULL: the shelf */
    bool as_json, is_forced;
    bool with_tensors; /* plan: tensor by tensor */
} ingot_zoo_options;

/* What a subcommand has to say: the JSON object of --json, and the exit code. */
typedef struct ingot_zoo_result {
    json_t *json; /* owned */
    int exit_code;
} ingot_zoo_result;

/* Each prints its text to stdout unless as_json, fills *result, and returns the status of what kept
 * it from running at all. */
typedef ingot_status (*ingot_zoo_command)(ingot_zoo_result *result, const ingot_manifest *manifest,
                                          const ingot_zoo_options *options, ingot_error *error);
ingot_status ingot_zoo_plan(ingot_zoo_result *result, const ingot_manifest *manifest,
                            const ingot_zoo_options *options, ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_zoo_run(ingot_zoo_result *result, const ingot_manifest *manifest,
                           const ingot_zoo_options *options, ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_zoo_status(ingot_zoo_result *result, const ingot_manifest *manifest,
                              const ingot_zoo_options *options,
                              ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_zoo_report(ingot_zoo_result *result, const ingot_manifest *manifest,
                              const ingot_zoo_options *options,
                              ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_zoo_verify(ingot_zoo_result *result, const ingot_manifest *manifest,
                              const ingot_zoo_options *options,
                              ingot_error *error) INGOT_MUST_CHECK;
ingot_status ingot_zoo_slurm(ingot_zoo_result *result, const ingot_manifest *manifest,
                             const ingot_zoo_options *options, ingot_error *error) INGOT_MUST_CHECK;

/* Products that a run makes at a time. */
uint64_t ingot_zoo_jobs(const ingot_manifest *manifest, const ingot_zoo_options *options);
/* Whether --only, if given, names the product. */
bool ingot_zoo_is_chosen(const ingot_zoo_options *options, const ingot_zoo_product *product);

/* The whole tool; returns the exit code. */
int ingot_zoo_tool(int argc, char **argv);

#endif
